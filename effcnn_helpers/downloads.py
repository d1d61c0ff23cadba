"""Real data sets by torchvision, in a process of its own: one time limit for all, and one error."""

import contextlib
import inspect
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from .errors import EffcnnError
from .settings import progress_shown

READ_SECONDS = 10  # without a byte from the server


class DownloadError(EffcnnError):
    """A data set that could not be downloaded, and why."""


def download(name: str, seconds: float = 300) -> dict[str, np.ndarray]:
    """A data set's arrays x_train, y_train, x_test, y_test: uint8, in Keras' npz layout.

    name: of torchvision's class, such as "MNIST" or "CIFAR10". seconds: for all of it, at most.
    Raises DownloadError with the cause, whatever it is.
    """
    bar = progress_shown()
    limit = f"{seconds / 60:g} minutes" if seconds >= 120 else f"{seconds:g} seconds"
    print(f"downloading {name}, at most {limit}; EFFCNN_DOWNLOAD=0 skips it", flush=True)
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            fetch(name, Path(folder), seconds, bar)
            with np.load(Path(folder, "arrays.npz")) as file:
                return dict(file)
    except OSError as error:
        cause = f"{type(error).__name__}: {error}"
        raise DownloadError(f"{name} could not be downloaded: {cause}") from error


def fetch(name: str, folder: Path, seconds: float, bar: bool) -> None:
    """Let a process of its own write arrays.npz; it ends with this one, or when the time is up."""
    # Where this package was found, however that was. Its progress is shown here, from the outside.
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TQDM_DISABLE": "1"}
    deadline = time.monotonic() + seconds
    with subprocess.Popen([sys.executable, "-m", __name__, name, str(folder)], env=environment,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          encoding="utf-8", errors="replace") as process:
        try:
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
                if bar:
                    print(f"\r{megabytes(folder):.1f} MB", end="", flush=True)
        finally:
            in_time = process.poll() is not None
            process.kill()
        if bar:
            print()
        if not in_time:
            raise DownloadError(f"{name} could not be downloaded: after {seconds:g} seconds only "
                                f"{megabytes(folder):.1f} MB were there")
        if process.returncode:
            said = process.stdout.read().strip().splitlines() if process.returncode > 0 else []
            cause = said[-1] if said else f"its process ended with status {process.returncode}"
            raise DownloadError(f"{name} could not be downloaded: {cause}")


def megabytes(folder: Path) -> float:
    """The size of all files in a folder, which may come and go meanwhile."""
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            size += path.stat().st_size
    return size / 1e6


def failure(name: str, folder: Path) -> str | None:
    """Download a data set and write its arrays; when that fails, one line that says why."""
    import torchvision.datasets

    kind = getattr(torchvision.datasets, name)
    try:
        by_split = "split" in inspect.signature(kind).parameters
        arrays = {}
        for part in ("train", "test"):
            which = {"split": part} if by_split else {"train": part == "train"}
            images = kind(folder, download=True, **which)
            arrays |= in_keras_layout(images, part)
        np.savez(folder / "arrays.npz",
                 **{key: np.asarray(array, np.uint8)  # type: ignore[arg-type]
                    for key, array in arrays.items()})
    except Exception as error:  # no network, a proxy without host, an error page, a full disk …
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def in_keras_layout(images, part: str) -> dict:
    """The arrays x_train and y_train, say, of one of torchvision's image datasets."""
    x = images.data
    if x.ndim == 4 and x.shape[1] == 3:  # SVHN puts the channels first, and calls its labels so
        x = x.transpose(0, 2, 3, 1)
    y = images.targets if hasattr(images, "targets") else images.labels
    return {f"x_{part}": x, f"y_{part}": y}


def main() -> int:
    """The process that `fetch` starts. Its last line is the cause when it fails."""
    # The pipe from the parent ends with the parent, even when that one is killed.
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
    socket.setdefaulttimeout(READ_SECONDS)
    cause = failure(sys.argv[1], Path(sys.argv[2]))
    print(f"\n{cause}")
    return 1 if cause else 0


if __name__ == "__main__":
    raise SystemExit(main())
