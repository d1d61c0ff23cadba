"""What a run or a measurement ran on and from which code; a setting that lets it run faster."""

import ctypes
import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch


def tune_allocator() -> bool:
    """Let glibc keep freed memory for the next training step instead of giving it back to the system.

    A step frees and asks for the same large blocks again; asking the system for them each time costs up to
    a third of the step. Linux with glibc only: elsewhere nothing happens. Returns whether it took effect.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    m_trim_threshold, m_mmap_max = -1, -4  # from malloc.h
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(m_mmap_max, 0) and libc.mallopt(m_trim_threshold, 2**31 - 1))


def describe_environment() -> dict:
    """Versions and machine, as a record stores them."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    versions = {name: importlib.metadata.version(package)
                for name, package in (("torch", "torch"), ("torchvision", "torchvision"), ("composer", "mosaicml"))}
    return {"python": platform.python_version(), **versions, "platform": platform.platform(terse=True),
            "cpu": cpu_name(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "device": device}


def cpu_name() -> str:
    """The processor's name, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe_git() -> dict:
    """The commit of the package's checkout and whether its code was modified; None outside a checkout."""
    def git(*arguments: str) -> str | None:
        try:
            return subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True,
                                  check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    modified = git("status", "--porcelain", "--", "*.py")
    return {"commit": git("rev-parse", "HEAD"), "modified": None if modified is None else bool(modified)}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
