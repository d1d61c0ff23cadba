"""The pre-flight: each thing that may be wrong shows its line and its cure and decides the exit status.

A test changes what the checks look at, so that neither this machine nor its load decides anything.
"""

import ast
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from effcnn_helpers import datasets, records, settings
from effcnn_helpers.cli import bench, doctor, main, sweep
from effcnn_helpers.recipes import table_run

ROOT = Path(__file__).parent.parent
INSTALLED = importlib.metadata.version("numpy")
PIP = f"{sys.executable} -m pip install"
INSTALL = f"cure: {PIP} -e "


@pytest.fixture(autouse=True)
def healthy(monkeypatch, tmp_path, write_record):
    """A machine on which the series can run, in a project's folder, with one package to check and one recorded run."""
    monkeypatch.setattr(platform, "python_version", lambda: "3.12.4")
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: {"Requires-Python": "<3.14,>=3.11"})
    requirements(monkeypatch, f"numpy=={INSTALLED.split('+')[0]}")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8e9, total=16e9))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=50e9))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(bench, "busy_cores", lambda: 0.0)
    monkeypatch.setattr(sweep, "seconds_per_image",
                        lambda config, threads, steps: doctor.REFERENCE_SECONDS[config.model])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()
    write_record()


def requirements(monkeypatch, *lines: str) -> None:
    """Let these be what effcnn needs."""
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: list(lines))


@pytest.fixture
def report(capsys):
    """A function that runs the doctor and returns its exit status and its report, with runs of spaces as one."""
    def run() -> tuple[int, str]:
        status = main(["doctor"])
        return status, "\n".join(" ".join(line.split()) for line in capsys.readouterr().out.splitlines())
    return run


def expect(report, status: int, *lines: str) -> None:
    """The report must end with this status and hold these beginnings of lines, one directly under the other."""
    ended, text = report()
    assert "\n" + "".join(f"{line}\n" for line in lines)[:-1] in "\n" + cut(text, lines), text
    assert ended == status
    assert ("PROBLEM" in text) == bool(status)
    assert text.splitlines()[-1].startswith("problems: " if status else "ready: make notebooks")


def cut(text: str, lines: tuple[str, ...]) -> str:
    """The report with each line that begins as one of `lines` does cut down to that."""
    return "\n".join(next((start for start in lines if line.startswith(start)), line) for line in text.splitlines())


def test_healthy_machine_is_ready(report):
    status, text = report()
    assert status == 0
    lines = [line for line in text.splitlines() if not line.startswith("note data ") and "EFFCNN_DATA_DIR" not in line]
    assert [line.split()[:2] for line in lines[:-1]] == [["ok", topic] for topic in (
        "python", "packages", "settings", "cores", "memory", "folders", "folders", "gpu", "records", "speed", "speed")]
    assert f"make notebooks: about {doctor.SERIES_MINUTES:.0f} minutes" in text and "1 recorded runs" in text


def test_doctor_leaves_no_file_behind(report, tmp_path):
    report()
    assert [path.name for path in tmp_path.iterdir()] == ["notebooks"]
    assert not settings.cache_dir().exists()


# Python and packages


@pytest.mark.parametrize("version, fits", [("3.10.14", False), ("3.11.0", True), ("3.13.9", True), ("3.14.0", False),
                                           ("3.14.0rc1", False), ("3.9.18", False), ("3.12.4+", True)])
def test_python_is_held_against_the_versions_that_effcnn_accepts(version, fits, report, monkeypatch):
    monkeypatch.setattr(platform, "python_version", lambda: version)
    if fits:
        expect(report, 0, f"ok python {version}; effcnn needs >=3.11, <3.14")
    else:
        expect(report, 1, f"PROBLEM python {version}; effcnn needs >=3.11, <3.14",
               "cure: conda env create -f environment.yml, or name a Python that fits: make PYTHON=")


def test_accepted_versions_are_those_of_the_installed_effcnn(monkeypatch):
    monkeypatch.undo()
    line, = doctor.check_python()
    assert line.state == doctor.OK and "effcnn needs >=3.11, <3.14" in line.text


def test_effcnn_that_is_not_installed_is_a_problem(report, monkeypatch):
    def fail(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "metadata", fail)
    monkeypatch.setattr(importlib.metadata, "requires", fail)
    expect(report, 1, "PROBLEM python could not be checked: PackageNotFoundError: No package metadata was found for "
           "effcnn", INSTALL, "PROBLEM packages could not be checked: PackageNotFoundError", "cure: as above")


def test_missing_package_is_a_problem(report, monkeypatch):
    requirements(monkeypatch, "numpy<1", "no-such-thing<2,>=1.0", "nor-this==2.0")
    expect(report, 1, "PROBLEM packages missing: no-such-thing, nor-this",
           f"cure: {PIP} 'no-such-thing<2,>=1.0' nor-this==2.0, or, to leave an installed torch as it is: "
           f"{sys.executable} -m effcnn_helpers.complete_install")


def test_missing_package_of_an_extra_is_a_note(report, monkeypatch):
    requirements(monkeypatch, 'no-runtime==1.0; extra == "deploy"', "no-tests==1.0; extra == 'test'",
                 'no-need; sys_platform == "nowhere" and extra == "test"', "none; python_version < '3'")
    expect(report, 0, "note packages missing, only for the runtimes of notebook 15: no-runtime",
           f"cure: {PIP} no-runtime==1.0", "note packages missing, only for the test suite: no-tests",
           f"cure: {PIP} no-tests==1.0", "ok packages 0 in accepted versions")


def test_other_version_than_accepted_is_a_note(report, monkeypatch):
    requirements(monkeypatch, "numpy<1.1,>=1.0", 'pytest~=1.0; extra == "test"')
    expect(report, 0, f"note packages other versions than accepted: numpy {INSTALLED} (accepted: <1.1,>=1.0), pytest "
           f"{pytest.__version__} (accepted: ~=1.0); results may differ",
           f"cure: none needed; for accepted versions, {PIP} 'numpy<1.1,>=1.0' 'pytest~=1.0'",
           "ok packages 0 in accepted versions")


@pytest.mark.parametrize("version, accepted, fits", [
    ("2.7.0+cpu", "==2.7.0", True), ("2.7.1+cu126", ">=2.7,<2.8", True), ("2.8.0", ">=2.7,<2.8", False),
    ("2.8.0rc1", ">=2.7", True), ("2.10.0", ">=2.9", True), ("2.7.0", "", True)])
def test_version_is_held_against_a_range(version, accepted, fits, report, monkeypatch):
    """A build for another kind of machine (+cpu) is the same version; 2.10 is newer than 2.9."""
    requirements(monkeypatch, f"numpy{accepted}")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    expect(report, 0, f"ok packages {int(fits)} in accepted versions")


@pytest.mark.parametrize("code, shown", [
    ("raise OSError('libcudart.so.12: cannot open\\nmore of it')", "OSError: libcudart.so.12: cannot open"),
    ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    ("raise RuntimeError", "RuntimeError"),
])
def test_package_that_cannot_be_imported_is_a_problem(code, shown, report, tmp_path, monkeypatch):
    (tmp_path / "brokenthing.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    requirements(monkeypatch, "brokenthing==1.0")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    expect(report, 1, f"PROBLEM packages brokenthing 1.0 cannot be imported: {shown}",
           f"cure: {PIP} --force-reinstall brokenthing==1.0")


def test_installed_packages_can_be_imported_under_their_names(monkeypatch):
    """The real ones, as their names for pip and for import differ here and there."""
    monkeypatch.undo()
    assert [line for line in doctor.lines_of(doctor.check_packages) if line.state == doctor.PROBLEM] == []


def test_doctor_reports_where_nothing_is_installed(tmp_path):
    """-S: Python without site-packages, so without torch, numpy and the rest."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-S", "-m", "effcnn_helpers", "doctor"], cwd=ROOT, env=environment,
                          capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")
    for topic in ("memory", "data", "records", "speed"):
        assert f"PROBLEM  {topic:10}could not be checked: ModuleNotFoundError: No module named" in done.stdout
    assert f"{sys.executable} -m pip install -e '{ROOT}[" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("problems: ")


@pytest.mark.parametrize("name", ["__init__.py", "__main__.py", "errors.py", "settings.py", "cli/__init__.py",
                                  "cli/doctor.py"])
def test_old_python_can_read_what_it_needs_for_the_report(name):
    ast.parse((ROOT / "effcnn_helpers" / name).read_text(encoding="utf-8"), feature_version=(3, 9))


# The machine


def test_more_threads_than_cores_are_a_note(report, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    expect(report, 0, "note cores 2 CPU cores, torch uses 8 threads", "cure: OMP_NUM_THREADS=2")


def test_cores_are_counted_where_the_system_cannot_tell_which_are_allowed(report, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    expect(report, 0, "ok cores 4 CPU cores, torch uses 2 threads")


@pytest.mark.parametrize("free, state, status", [(3.0, "ok", 0), (2.9, "note", 0), (1.5, "note", 0),
                                                 (1.4, "PROBLEM", 1)])
def test_little_memory_is_noted_and_too_little_a_problem(free, state, status, report, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free * 1e9, total=4e9))
    cure = [] if state == "ok" else ["cure: close other programs and notebooks"]
    expect(report, status, f"{state} memory {free:.1f} of 4.0 GB free; 3 GB are enough", *cure)


def test_full_disk_is_a_problem(report, monkeypatch):
    free = {settings.cache_dir().parent: 0.9e9}
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free.get(folder, 50e9)))
    expect(report, 1, f"PROBLEM folders cache: {settings.cache_dir()} can be written, 0.9 GB free; 1 GB is enough",
           "cure: set EFFCNN_CACHE_DIR to a folder that can be written and has space", "ok folders current: ")


def test_cache_that_cannot_be_written_is_a_problem(report, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("EFFCNN_CACHE_DIR", str(tmp_path / "file/cache"))
    expect(report, 1, f"PROBLEM folders cache: {tmp_path / 'file/cache'} cannot be read or written (Not a directory); ",
           "cure: set EFFCNN_CACHE_DIR to a folder that can be written and has space", "ok folders current: ")


def test_current_folder_that_cannot_be_written_is_a_problem(report, tmp_path, monkeypatch):
    temporary = doctor.tempfile.TemporaryFile

    def refuse(dir):
        if dir == tmp_path:
            raise PermissionError(13, "Permission denied")
        return temporary(dir=dir)

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    expect(report, 1, f"PROBLEM folders current: {tmp_path} cannot be read or written (Permission denied); {tmp_path} "
           f"belongs to {tmp_path.owner()}",
           "cure: change to a copy of the project in a folder that can be written and has space")


def test_folder_without_the_notebooks_is_noted(report, tmp_path):
    (tmp_path / "notebooks").rmdir()
    expect(report, 0, "note folders the current folder has no notebooks/", "cure: change to the project's folder")


@pytest.mark.parametrize("gpu", [False, True])
def test_gpu_is_noted_as_the_recorded_runs_had_none(gpu, report, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    if gpu:
        expect(report, 0, "note gpu A GPU; the recorded runs are of CPUs: what is trained live differs in the last",
               'cure: none needed; to train on the CPU: CUDA_VISIBLE_DEVICES=""')
    else:
        expect(report, 0, "ok gpu none, none needed; the recorded runs are of CPUs")


# Data and recorded runs

MNIST_CURE = "cure: set EFFCNN_DATA_DIR to a folder that holds the real mnist.npz"


@pytest.fixture
def data_dir(tmp_path_factory, monkeypatch) -> Path:
    """An empty folder that EFFCNN_DATA_DIR names."""
    folder = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(folder))
    return folder


@pytest.mark.parametrize("setting, what_happens", [
    ("1", "a download is tried once; when it fails, the embedded sample is used"),
    ("0", "EFFCNN_DOWNLOAD is 0, so the embedded sample is used"),
])
def test_data_that_is_not_there_is_noted_with_what_happens_then(setting, what_happens, report, data_dir, monkeypatch):
    monkeypatch.setattr(datasets, "download", lambda *_: pytest.fail("downloaded"))
    monkeypatch.setenv("EFFCNN_DOWNLOAD", setting)
    expect(report, 0, f"note data mnist: no {data_dir / 'mnist.npz'}; {what_happens}", MNIST_CURE,
           f"note data cifar10: no {data_dir / 'cifar10.npz'}; {what_happens}",
           "cure: set EFFCNN_DATA_DIR to a folder that holds the real cifar10.npz")


def test_data_is_looked_for_where_load_images_looks(report, digits_folder):
    folder = settings.cache_dir() / "data"
    shutil.copytree(digits_folder, folder)
    expect(report, 0, "note data mnist: mnist.npz in cache (not the real set", MNIST_CURE,
           f"note data cifar10: no {folder / 'cifar10.npz'}; ")


def test_real_data_is_known_by_its_sha256(report, data_dir, digits, digits_folder, monkeypatch):
    shutil.copy(digits_folder / "mnist.npz", data_dir)
    with np.load(data_dir / "mnist.npz") as arrays:
        digests = {key: datasets.sha256_of(arrays[key]) for key in datasets.KEYS}
    known = replace(datasets.DATASETS["mnist"], sha256=digests)
    monkeypatch.setitem(datasets.DATASETS, "mnist", known)
    expect(report, 0, "ok data mnist: mnist.npz in EFFCNN_DATA_DIR, real by its sha256", "note data cifar10: no ")


def test_damaged_data_is_a_problem(report, data_dir):
    path = data_dir / "mnist.npz"
    path.write_bytes(b"half a download")
    expect(report, 1, f"PROBLEM data mnist: {path} cannot be read as an npz file (", MNIST_CURE,
           "note data cifar10: no ")


def test_data_folder_that_is_not_there_is_a_problem(report, tmp_path, monkeypatch):
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(tmp_path / "nowhere"))
    expect(report, 1, f"PROBLEM data mnist: EFFCNN_DATA_DIR is '{tmp_path / 'nowhere'}', which is not a folder; "
           "correct it, or unset it", MNIST_CURE)


@pytest.mark.parametrize("name, content, shown", [
    ("run.json", "{", "RecordError: "),
    ("weights.safetensors", "version https://git-lfs.github.com/spec/v1", "SafetensorError: "),
    ("weights.safetensors", None, "FileNotFoundError: "),
])
def test_damaged_recorded_run_is_a_problem(name, content, shown, report):
    path = records.recorded_dir() / table_run("1.5k-dw").name / name
    path.unlink()
    if content:
        path.write_text(content)
    where = path if name == "weights.safetensors" else records.recorded_dir()
    expect(report, 1, f"PROBLEM records {where}: {shown}", "cure: correct or unset EFFCNN_RECORDED_DIR")


def test_no_recorded_runs_are_noted(report, tmp_path, monkeypatch):
    monkeypatch.setenv("EFFCNN_RECORDED_DIR", str(tmp_path))
    expect(report, 0, f"note records 0 recorded runs in {tmp_path}", "cure: correct or unset EFFCNN_RECORDED_DIR")


def test_recorded_run_that_may_not_be_read_is_a_problem(report, monkeypatch):
    def refuse():
        raise PermissionError(13, "Permission denied", "mnist/run.json")

    monkeypatch.setattr(records, "all_runs", refuse)
    expect(report, 1, f"PROBLEM records {records.recorded_dir()}: PermissionError: [Errno 13] Permission denied: "
           "'mnist/run.json'", "cure: correct or unset EFFCNN_RECORDED_DIR")


@pytest.mark.parametrize("checkout, cure", [(True, "git -C {} restore effcnn_helpers/recorded"),
                                            (False, "install effcnn anew")])
def test_damaged_run_of_the_projects_own_comes_back_as_it_came(checkout, cure, monkeypatch, tmp_path):
    monkeypatch.delenv("EFFCNN_RECORDED_DIR")
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    if checkout:
        (tmp_path / ".git").mkdir()

    def damaged():
        raise records.RecordError("run.json is damaged")

    monkeypatch.setattr(records, "all_runs", damaged)
    line, = doctor.check_records()
    assert (line.state, line.cure) == (doctor.PROBLEM, cure.format(tmp_path))


# Settings


@pytest.mark.parametrize("name, value, problem", [
    ("EFFCNN_PROFILE", "turbo", "EFFCNN_PROFILE is 'turbo'; use one of smoke, live, full"),
    ("EFFCNN_DOWNLOAD", "never", "EFFCNN_DOWNLOAD is 'never'; use 1"),
    ("EFFCNN_PROGRESS", "bar", "EFFCNN_PROGRESS is 'bar'; use 1"),
    ("EFFCNN_CACHE_DIR", "~no-such-user", "EFFCNN_CACHE_DIR is '~no-such-user'"),
    ("EFFCNN_DATA_DIR", "nowhere", "EFFCNN_DATA_DIR is 'nowhere', which is not a folder"),
    ("EFFCNN_RECORDED_DIR", "nowhere", "EFFCNN_RECORDED_DIR is 'nowhere', which is not a folder"),
])
def test_wrong_setting_is_a_problem_with_its_cure(name, value, problem, report, monkeypatch):
    monkeypatch.setenv(name, value)
    expect(report, 1, f"PROBLEM settings {problem}", f"cure: correct {name} or: unset {name}")


def test_every_wrong_setting_has_a_line(report, monkeypatch):
    monkeypatch.setenv("EFFCNN_DOWNLOAD", "never")
    monkeypatch.setenv("EFFCNN_PROFILE", "turbo")
    _, text = report()
    assert text.count("PROBLEM settings") == 2 and "ok settings" not in text


def test_variables_that_a_launcher_left_are_a_problem(report, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    expect(report, 1, "PROBLEM settings RANK=0 WORLD_SIZE=2 is set, as if this were one of several processes, but no "
           "launcher started it; unset RANK WORLD_SIZE", "cure: correct RANK ")


def test_cache_of_another_user_is_named_with_its_owner(report, tmp_path, monkeypatch):
    """Also where the folder above it may not even be looked into."""
    closed = tmp_path / "theirs"
    closed.mkdir()
    monkeypatch.setenv("EFFCNN_CACHE_DIR", str(closed / "cache"))
    temporary, stat = doctor.tempfile.TemporaryFile, os.stat

    def refuse(dir):
        if dir == closed:
            raise PermissionError(13, "Permission denied")
        return temporary(dir=dir)

    def refuse_beyond(path, *arguments, **options):
        if str(path).startswith(f"{closed}{os.sep}"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *arguments, **options)

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(os, "stat", refuse_beyond)
    expect(report, 1, f"PROBLEM folders cache: {closed / 'cache'} cannot be read or written (Permission denied); "
           f"{closed} belongs to {closed.owner()}",
           "cure: set EFFCNN_CACHE_DIR to a folder that can be written and has space", "ok folders current: ")


def test_file_that_may_not_be_read_is_not_cured_by_an_installation():
    def check():
        raise PermissionError(13, "Permission denied", "/theirs/file")
        yield

    [line] = doctor.lines_of(check)
    assert line.cure == "see to it that /theirs/file can be read"


# Speed


def test_expected_minutes_follow_the_measured_speed(report, monkeypatch):
    slower = {"1.5k-dw": 2, "143k-dw": 4}
    monkeypatch.setattr(sweep, "seconds_per_image", lambda config, threads, steps:
                        slower[config.model] * doctor.REFERENCE_SECONDS[config.model])
    times = ", ".join(f"{model} {1e3 * slower[model] * doctor.REFERENCE_SECONDS[model]:.2f} ms" for model in slower)
    expect(report, 0, f"ok speed {times} per image and training step on 1 thread: 3.0 times the reference machine's",
           f"ok speed make notebooks: about {3 * doctor.SERIES_MINUTES:.0f} minutes")


def test_speed_beside_other_programs_is_noted(report, monkeypatch):
    monkeypatch.setattr(bench, "busy_cores", lambda: 1.5)
    expect(report, 0, f"note speed make notebooks: about {doctor.SERIES_MINUTES:.0f} minutes, "
           "measured while other programs keep 1.5 cores busy",
           "cure: run this again when the other programs have ended")


@pytest.mark.parametrize("slowness", [1, 10, 30, 60, 100])
def test_probe_ends_in_time_on_slow_machines(slowness, monkeypatch):
    """Reckoned, not waited for: all steps that are asked for, with the three untimed ones of each call."""
    spent = []

    def timed(config, threads, steps):
        assert threads == 1 and steps >= 1
        seconds = slowness * doctor.REFERENCE_SECONDS[config.model]
        spent.append((steps + 3) * config.recipe.batch_size * seconds)
        return seconds

    monkeypatch.setattr(sweep, "seconds_per_image", timed)
    for model in doctor.REFERENCE_SECONDS:
        assert doctor.probe(model) == pytest.approx(slowness * doctor.REFERENCE_SECONDS[model])
    assert sum(spent) <= doctor.PROBE_SECONDS
    assert slowness > 1 or (len(spent) == 4 and sum(spent) < 3)


def test_probe_times_real_steps(monkeypatch):
    monkeypatch.undo()
    assert 0 < doctor.probe("1.5k-dw") < 1


def test_check_that_fails_itself_ends_as_a_line(report, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("no more")

    monkeypatch.setattr(sweep, "seconds_per_image", fail)
    expect(report, 1, "PROBLEM speed could not be checked: MemoryError: no more", INSTALL)
