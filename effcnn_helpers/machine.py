"""What a run or a measurement ran on and from which code; settings that let it run faster."""

import contextlib
import ctypes
import datetime
import functools
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch

CGROUP = Path("/sys/fs/cgroup")
TORCHS_CHOICE = torch.get_num_threads()


@functools.cache
def prepare() -> int:
    """Set this process up for training, once: allocator and CPU threads. Returns the threads.

    A number of threads that somebody set since this module was imported stays, and so does every
    later one.
    """
    tune_allocator()
    if torch.get_num_threads() == TORCHS_CHOICE:
        torch.set_num_threads(choose_threads())
    return torch.get_num_threads()


def choose_threads() -> int:
    """CPU threads for training: half the cores that this process may use, 1 to 4.

    OMP_NUM_THREADS or MKL_NUM_THREADS, where set, decide instead. A step of these networks is many
    short pieces of work, and after each all threads wait for the slowest. On two cores a second
    thread gains nothing at rest (1.5K: 59 to 64 ms a step with one thread, 71 to 78 with two) and
    loses beside a busy process (66 to 80 against 276 to 586, or 84 to 94 where the threads sleep
    while they wait, see effcnn_helpers/__init__.py). With more cores, half of them leaves out
    hyperthreads and the slow cores of a laptop, and leaves some to whatever else runs.
    """
    if os.environ.get("OMP_NUM_THREADS") or os.environ.get("MKL_NUM_THREADS"):
        return TORCHS_CHOICE  # torch has read them
    return min(4, max(1, int(usable_cores() / 2)))


def usable_cores() -> float:
    """Cores that this process may use: those it is bound to, or less if a container has a quota."""
    known = hasattr(os, "sched_getaffinity")
    bound = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    # "quota period" in microseconds, in one file or, with version 1 of control groups, in two.
    version_1 = "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"
    for quota_file, period_file in (("cpu.max", "cpu.max"), version_1):
        try:
            quota = int((CGROUP / quota_file).read_text().split()[0])
            period = int((CGROUP / period_file).read_text().split()[-1])
        except (OSError, ValueError, IndexError):  # no such file, or "max": no limit
            continue
        if quota > 0 and period > 0:
            return min(bound, quota / period)
    return bound


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """While inside, torch uses `count` CPU threads (None: no change); then as many as before."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def tune_allocator() -> bool:
    """Let glibc keep freed memory for the next training step instead of giving it back.

    A step frees and asks for the same large blocks again; asking the system for them each time
    costs up to a third of the step. Linux with glibc only: elsewhere nothing happens. Returns
    whether it took effect.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    m_trim_threshold, m_mmap_max = -1, -4  # from malloc.h
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(m_mmap_max, 0) and libc.mallopt(m_trim_threshold, 2**31 - 1))


def describe_environment() -> dict:
    """Versions and machine, as a record stores them."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    packages = {"torch": "torch", "torchvision": "torchvision", "composer": "mosaicml"}
    versions = {name: importlib.metadata.version(package) for name, package in packages.items()}
    return {"python": platform.python_version(), **versions,
            "platform": platform.platform(terse=True), "cpu": cpu_name(), "cores": os.cpu_count(),
            "threads": torch.get_num_threads(), "device": device}


def cpu_name() -> str:
    """The processor's name, as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def instructions() -> str:
    """The widest vectors that torch uses here, and whether there are some for 8-bit sums: "AVX512, with VNNI"."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())  # Linux alone has it
    except OSError:
        vnni = "VNNI unknown"
    else:
        vnni = f"{'with' if {'avx512_vnni', 'avx_vnni'} & flags else 'without'} VNNI"
    return f"{torch.backends.cpu.get_cpu_capability()}, {vnni}"


def describe_git() -> dict:
    """The commit of the package's checkout and whether its code was modified.

    None for both outside a checkout, also where the package is installed inside another project's:
    only a repository that tracks this very file counts.
    """
    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "--no-optional-locks", *arguments], cwd=Path(__file__).parent, text=True,
                                  capture_output=True, check=True)
            return done.stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    if git("ls-files", "--error-unmatch", "--", Path(__file__).name) is None:
        return {"commit": None, "modified": None}
    modified = bool(git("status", "--porcelain", "--", "*.py"))
    return {"commit": git("rev-parse", "HEAD"), "modified": modified}


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
