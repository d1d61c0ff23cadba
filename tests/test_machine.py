"""Waiting is set before torch loads, threads are chosen and given back, git counts where it should."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from effcnn_helpers import machine

ROOT = Path(machine.__file__).parents[1]


def run(code: str, **settings: str) -> str:
    """What a fresh Python prints in which nothing is set but `settings`."""
    names = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=ROOT, env=environment | settings)
    return done.stdout.strip()


@pytest.mark.parametrize("settings, expected", [
    ({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_waiting_is_set_before_torch_is_loaded(settings, expected):
    code = ("import os, sys, effcnn_helpers\n"
            "print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)")
    assert run(code, **settings) == f"{expected} False"


@pytest.mark.skipif(sys.platform != "linux", reason="asks GNU's OpenMP")
def test_openmp_has_read_it():
    code = "import os; os.dup2(1, 2); import effcnn_helpers, torch"  # it shows them on stderr
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in run(code, OMP_DISPLAY_ENV="TRUE")


@pytest.fixture
def six_cores(monkeypatch):
    """A machine of six cores and a process that has not been set up yet."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine, "usable_cores", lambda: 6)
    monkeypatch.setattr(machine, "TORCHS_CHOICE", torch.get_num_threads())
    machine.prepare.cache_clear()
    with machine.threads(None):
        yield
    machine.prepare.cache_clear()


def test_prepare_chooses_once(six_cores):
    assert machine.prepare() == torch.get_num_threads() == 3
    torch.set_num_threads(2)  # a user's, later
    machine.prepare()
    assert torch.get_num_threads() == 2


def test_prepare_leaves_a_number_set_before(six_cores):
    torch.set_num_threads(5)
    assert machine.prepare() == torch.get_num_threads() == 5


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_variable_decides(name, six_cores, monkeypatch):
    monkeypatch.setenv(name, "7")
    monkeypatch.setattr(machine, "TORCHS_CHOICE", 7)  # as torch has read it
    assert machine.choose_threads() == 7


@pytest.mark.parametrize("cores, expected", [
    (0.5, 1), (1, 1), (2, 1), (3, 1), (4, 2), (8, 4), (64, 4)])
def test_choose_threads(cores, expected, six_cores, monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: cores)
    assert machine.choose_threads() == expected


@pytest.mark.parametrize("files, expected", [
    ({}, 8),
    ({"cpu.max": "max 100000\n"}, 8),
    ({"cpu.max": "150000 100000\n"}, 1.5),
    ({"cpu.max": "1600000 100000\n"}, 8),
    ({"cpu.max": ""}, 8),
    ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
    ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
])
def test_usable_cores_knows_a_containers_share(files, expected, tmp_path, monkeypatch):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert machine.usable_cores() == expected


def test_usable_cores_where_the_system_cannot_bind(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.usable_cores() == 1


@pytest.mark.parametrize("count, inside", [(3, 3), (None, 2)])
def test_threads_are_given_back(count, inside):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(KeyError), machine.threads(count):
            assert torch.get_num_threads() == inside
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_git_counts_only_where_it_tracks_this_file(tmp_path, monkeypatch):
    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True,
                              capture_output=True, text=True).stdout.strip()

    # As a wheel lies inside a learner's own project.
    package = tmp_path / "site-packages" / "effcnn_helpers"
    package.mkdir(parents=True)
    own = package / "machine.py"
    own.write_text("")
    git("init")
    git("commit", "--allow-empty", "-m", "a learner's own")
    monkeypatch.setattr(machine, "__file__", str(own))
    assert machine.describe_git() == {"commit": None, "modified": None}
    git("add", ".")
    git("commit", "-m", "a checkout")
    assert machine.describe_git() == {"commit": git("rev-parse", "HEAD"), "modified": False}
    index = (tmp_path / ".git/index").read_bytes()
    os.utime(own, (0, 0))
    assert machine.describe_git()["modified"] is False
    # A kill must leave no .git/index.lock, which would stop the user's own git.
    assert (tmp_path / ".git/index").read_bytes() == index, "git wrote, and so took a lock"
    own.write_text("changed")
    assert machine.describe_git()["modified"] is True


@pytest.mark.parametrize("flags, vnni", [
    ("flags : fpu avx512_vnni sse", "with VNNI"), ("flags : fpu avx_vnni", "with VNNI"),
    ("flags : fpu avx512f avx512_4vnniw", "without VNNI"), (None, "VNNI unknown")])
def test_instructions_tell_whether_int8_sums_may_overflow(flags, vnni, monkeypatch):
    def read_text(path):
        if flags is None:
            raise FileNotFoundError(path)
        return flags

    monkeypatch.setattr(machine.Path, "read_text", read_text)
    assert machine.instructions() == f"{torch.backends.cpu.get_cpu_capability()}, {vnni}"
