"""What the processes do that tests/test_faults.py kills. Without pytest, so that each of them starts at once."""

import os
import signal
import threading
import time
from pathlib import Path

from effcnn_helpers.cli.recording import train_or_load
from effcnn_helpers.recipes import RunConfig


def signal_after(seconds: float, number: int, over: threading.Event) -> None:
    """Send this process a signal when it has worked so long, however long that takes on a busy machine."""
    end = time.process_time() + seconds
    while not over.wait(0.002):
        if time.process_time() >= end:
            os.kill(os.getpid(), number)
            return


def train_in_process(config: RunConfig, root: Path, environment: dict[str, str], seconds: float | None) -> None:
    """What a process of its own does that trains and records a run; it notes how long that took it, without waiting.

    seconds: after so long it ends by `kill -9`.
    """
    os.environ.update(environment)
    start = time.process_time()
    if seconds:
        threading.Thread(target=signal_after, args=(seconds, signal.SIGKILL, threading.Event()), daemon=True).start()
    train_or_load(config, root=root, progress=False, threads=1)
    (root / "seconds").write_text(str(time.process_time() - start))
