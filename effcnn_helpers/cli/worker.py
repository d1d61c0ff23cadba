"""One run of a sweep, in a process of its own: `python -m effcnn_helpers.cli.worker CONFIG_JSON ROOT THREADS`.

Prints a JSON line after each epoch. Exit status: 0 recorded, 75 another process is training this run.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ..errors import EffcnnError
from ..recipes import RunConfig, config_from
from .recording import RunBusyError, train_or_load

BUSY = 75


def report(rows: list[dict[str, Any]]) -> None:
    """Tell the sweep about the newest epoch; without one that listens, end at once."""
    try:
        print(json.dumps({"epoch": len(rows), **rows[-1]}), flush=True)
    except OSError:
        os._exit(1)


def work(config: RunConfig, root: Path, threads: int) -> int:
    """Train or find one run, reporting each epoch on standard output."""
    try:
        train_or_load(config, root=root, wait=False, progress=False, threads=threads, on_epoch=report)
    except RunBusyError:
        return BUSY
    except EffcnnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def end_with(parent: int) -> None:
    """End this process soon after its parent has ended, however that was (Windows: it trains on)."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    raise SystemExit(work(config_from(json.loads(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3])))
