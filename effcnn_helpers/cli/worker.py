"""One run of a sweep, in a process of its own: `python -m effcnn_helpers.cli.worker CONFIG_JSON ROOT THREADS`.

Prints a JSON line after each epoch. Exit status: 0 recorded, 75 another process is training this run.
"""

import json
import sys
from pathlib import Path

from ..recipes import RunConfig, config_from
from .recording import RunBusyError, train_or_load

BUSY = 75


def work(config: RunConfig, root: Path, threads: int) -> int:
    """Train or find one run, reporting each epoch on standard output."""
    try:
        train_or_load(config, root=root, wait=False, progress=False, threads=threads,
                      on_epoch=lambda rows: print(json.dumps({"epoch": len(rows), **rows[-1]}), flush=True))
    except RunBusyError:
        return BUSY
    return 0


if __name__ == "__main__":
    raise SystemExit(work(config_from(json.loads(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])))
