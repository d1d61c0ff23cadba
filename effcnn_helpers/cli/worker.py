"""Runs of a sweep, one after another, in a process of its own: `python -m effcnn_helpers.cli.worker ROOT THREADS`.

Reads from standard input a run's configuration, a line of JSON. Writes a JSON line after each epoch and one with the
status when the run has ended: 0 recorded, 75 another process is training it, 1 failed. Then it reads the next one: so
Composer is imported and the data loaded once for many runs. It ends as soon as its input does.
"""

import functools
import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

from ..datasets import load_images
from ..errors import EffcnnError
from ..recipes import RunConfig, config_from
from .recording import RunBusyError, train_or_load

BUSY = 75

images_of = functools.cache(load_images)


def tell(report: dict[str, Any]) -> None:
    """Say something to the sweep; without one that listens, end at once."""
    try:
        print(json.dumps(report), flush=True)
    except OSError:
        os._exit(1)


def work(config: RunConfig, root: Path, threads: int) -> int:
    """Train or find one run, reporting each epoch on standard output; its status."""
    try:
        dataset = images_of(config.dataset, download=config.whole)
        train_or_load(config, dataset, root=root, wait=False, progress=False, threads=threads,
                      on_epoch=lambda rows: tell({"epoch": len(rows), **rows[-1]}))
    except RunBusyError:
        return BUSY
    except EffcnnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def read(lines: queue.SimpleQueue) -> None:
    """Pass on what standard input says; it ends with the sweep, however that was, and this process with it."""
    # Unbuffered: a thread that waits in sys.stdin would hold its lock when Python ends.
    with open(0, "rb", buffering=0, closefd=False) as standard_input:
        for line in standard_input:
            lines.put(line)
    os._exit(1)


def main() -> None:
    """Work until the input ends. A mistake of ours ends this process, with its traceback."""
    lines: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=read, args=(lines,), daemon=True).start()
    while True:
        config = config_from(json.loads(lines.get()))
        tell({"status": work(config, Path(sys.argv[1]), int(sys.argv[2]))})


if __name__ == "__main__":
    main()
