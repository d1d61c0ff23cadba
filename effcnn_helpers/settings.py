"""What the shell hands down: every setting of effcnn, read and checked anew whenever it is needed.

Only the standard library is imported with this file: the pre-flight must read it on any machine.
"""

from __future__ import annotations  # so that a Python that is too old can read this file, too

import contextlib
import importlib.metadata
import os
import re
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from .errors import EffcnnError

PROFILES = ("smoke", "live", "full")
YES, NO = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
# What torchrun and Composer's launcher set for each of their processes.
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}


def profile_name() -> str:
    """How much a notebook does: $EFFCNN_PROFILE or "live". Raises EffcnnError for another word."""
    name = os.environ.get("EFFCNN_PROFILE") or "live"
    if name not in PROFILES:
        raise EffcnnError(f"EFFCNN_PROFILE is {name!r}; use one of {', '.join(PROFILES)}, "
                          "or unset it")
    return name


def data_dir() -> Path | None:
    """The folder with the data that $EFFCNN_DATA_DIR names. Raises EffcnnError when it is none."""
    return folder_there("EFFCNN_DATA_DIR", "the cache folder, a download or the embedded sample")


def cache_dir() -> Path:
    """Where downloads and unfinished runs are kept: $EFFCNN_CACHE_DIR or the user's cache folder.

    It is made when it is needed. Raises EffcnnError for a user's home that there is not.
    """
    import platformdirs

    return folder("EFFCNN_CACHE_DIR") or Path(platformdirs.user_cache_dir("effcnn"))


def recorded_dir() -> Path:
    """Where recorded runs are: $EFFCNN_RECORDED_DIR or the package's own folder.

    Raises EffcnnError when the one that is set is no folder.
    """
    own = Path(__file__).parent / "recorded"
    return folder_there("EFFCNN_RECORDED_DIR", "the package's own runs") or own


def downloads_allowed() -> bool:
    """Whether data may be downloaded: $EFFCNN_DOWNLOAD, yes when unset. Raises EffcnnError."""
    return switch("EFFCNN_DOWNLOAD")


def progress_shown() -> bool:
    """Whether bars and widgets are shown: $EFFCNN_PROGRESS, yes when unset. Raises EffcnnError."""
    return switch("EFFCNN_PROGRESS")


def switch(name: str) -> bool:
    value = os.environ.get(name, "").strip().lower() or "1"
    if value not in YES + NO:
        raise EffcnnError(f"{name} is {os.environ[name]!r}; use 1 (or {', '.join(YES[1:])}) "
                          f"or 0 (or {', '.join(NO[1:])}), or unset it")
    return value in YES


def folder(name: str) -> Path | None:
    """The folder that a variable names, there or not; ~ is the user's home, as in a shell."""
    value = os.environ.get(name)
    if not value:
        return None
    path = Path(os.path.expanduser(value))
    if str(path).startswith("~"):
        raise EffcnnError(f"{name} is {value!r}, the home of a user whom this machine does not "
                          "know; write the folder's full path")
    return path


def folder_there(name: str, otherwise: str) -> Path | None:
    path = folder(name)
    try:
        os.scandir(path).close() if path else None
    except PermissionError as error:
        problem = access_problem(path, error)
        raise EffcnnError(f"{name}: {problem}; name a folder of your own") from error
    except OSError as error:
        raise EffcnnError(f"{name} is {os.environ[name]!r}, which is not a folder; correct it, or "
                          f"unset it to use {otherwise}") from error
    return path


def place() -> tuple[int, int]:
    """Which of how many processes of a launcher this is, from 0; (0, 1) without one. Raises EffcnnError."""
    try:
        rank, processes = (int(os.environ.get(name) or ALONE[name]) for name in ("RANK", "WORLD_SIZE"))
    except ValueError as error:
        raise EffcnnError(f"RANK or WORLD_SIZE is not a whole number ({error}); unset both") from error
    return rank, processes


def refuse_leftover_launcher(processes: int = 1) -> None:
    """Raise EffcnnError unless this is one of so many processes that a launcher like torchrun started.

    With variables of one that is gone, Composer would wait, in silence and for minutes, for others.
    """
    there = [name for name in LAUNCHER if os.environ.get(name)]
    several = any((os.environ.get(name) or alone) != alone for name, alone in ALONE.items())
    if several and len(there) < len(LAUNCHER):
        shown = " ".join(f"{name}={os.environ[name]}" for name in there)
        raise EffcnnError(f"{shown} is set, as if this were one of several processes, but no "
                          f"launcher started it; unset {' '.join(there)}")
    if place()[1] != processes:
        cure = (f"use the command `composer -n {processes} -m effcnn_helpers together`" if processes > 1 else
                f"use the command `together` with a launcher, or unset {' '.join(there)}")
        raise EffcnnError(f"WORLD_SIZE is {place()[1]}, and what runs here is for {processes}; {cure}")


# Every check of this file, by the variables whose values it looks at.
CHECKS = {
    "EFFCNN_PROFILE": profile_name,
    "EFFCNN_DATA_DIR": data_dir,
    "EFFCNN_CACHE_DIR": cache_dir,
    "EFFCNN_RECORDED_DIR": recorded_dir,
    "EFFCNN_DOWNLOAD": downloads_allowed,
    "EFFCNN_PROGRESS": progress_shown,
    " ".join(LAUNCHER): refuse_leftover_launcher,
}


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, where there is none. Raises EffcnnError when it cannot."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EffcnnError(f"{access_problem(path, error)}; name another folder") from error


@contextlib.contextmanager
def writing(path: Path, cure: str = "make room, or name another folder") -> Iterator[None]:
    """Raise EffcnnError, with the cure, when what is written inside does not get to the disk.

    torch ends such a failure with a RuntimeError of its own, which hides the system's.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise EffcnnError(f"{access_problem(path, cause)}; {cure}") from error


def access_problem(path: Path, error: OSError) -> str:
    """One line for a file or folder that cannot be read or written: which, why, and whose it is.

    For a path that is not there, the nearest folder above it that is.
    """
    there = next(place for place in (path, *path.parents, Path.cwd()) if os.path.exists(place))
    owner = owner_of(there)
    return (f"{path} cannot be read or written ({error.strerror or error})"
            + (f"; {there} belongs to {owner}" if owner else ""))


def owner_of(path: Path) -> str | None:
    """The user's name, a number where the user is unknown, None where a system cannot tell."""
    try:
        return path.owner()
    except KeyError:
        return f"user {path.stat().st_uid}"
    except (NotImplementedError, OSError):
        return None


def pip_command(*packages: str, options: str = "") -> str:
    """The command that installs packages for this very Python, in versions that effcnn accepts."""
    try:
        needed = importlib.metadata.requires("effcnn") or []
    except importlib.metadata.PackageNotFoundError:  # a checkout that was not installed
        needed = []
    lines = [line.partition(";")[0].strip() for line in needed]
    accepted = {re.match(r"[\w.-]+", line)[0]: line for line in lines}
    wanted = [accepted.get(package, package) for package in packages]
    return shlex.join([sys.executable, "-m", "pip", "install", *options.split(), *wanted])


@contextlib.contextmanager
def signal_handlers_kept() -> Iterator[None]:
    """Put back what Ctrl-C and SIGTERM do; Composer changes both when it is imported."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can change them
        return
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            if handler is not None:  # None: it is not Python's, and cannot be put back
                signal.signal(number, handler)
