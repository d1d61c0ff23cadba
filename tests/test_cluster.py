"""A sweep on the workers of a Dask cluster."""

import builtins
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from effcnn_helpers.cli import cluster, main
from effcnn_helpers.cli.sweep import sweep
from effcnn_helpers.datasets import load_images
from effcnn_helpers.errors import EffcnnError
from effcnn_helpers.recipes import Recipe, RunConfig
from effcnn_helpers.records import all_runs, read_network
from effcnn_helpers.training import measured, split_for

pytestmark = pytest.mark.usefixtures("terminal_signals")

RUNS = [RunConfig("1.5k-dw", "mnist", Recipe("tiny", epochs=6), seed=seed, train_images=1_280, test_images=200)
        for seed in range(3)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def two_workers(digits_folder, monkeypatch):
    """(address, workers) of a cluster on this machine, started as one starts it by hand."""
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(digits_folder))
    address = f"tcp://127.0.0.1:{free_port()}"
    options = "--no-dashboard", "--host", "127.0.0.1"
    commands = [["scheduler", "--port", address.rpartition(":")[2], *options],
                *[["worker", address, "--no-nanny", "--nthreads", "1", *options]] * 2]
    processes = [subprocess.Popen([sys.executable, "-m", "dask", *command]) for command in commands]
    yield address, processes[1:]
    for process in reversed(processes):
        process.terminate()
        process.wait()


def kill_one_that_trains(workers: list[subprocess.Popen], cache: Path, killed: list) -> None:
    """kill -9 of a worker as soon as its run has left a checkpoint."""
    while not killed:
        time.sleep(0.05)
        for path in cache.glob("unfinished/**/ep*.pt"):
            opened = [worker for worker in workers for process in psutil.Process(worker.pid).children()
                      for file in process.open_files() if file.path == f"{path.parent}.lock"]
            for worker in opened[:1]:
                os.kill(worker.pid, signal.SIGKILL)
                killed.append(path.parent)
                return


def test_every_run_is_recorded_once_though_a_worker_is_killed(two_workers, tmp_path, capfd):
    address, workers = two_workers
    cache, killed = Path(os.environ["EFFCNN_CACHE_DIR"]), []
    threading.Thread(target=kill_one_that_trains, args=(workers, cache, killed), daemon=True).start()
    assert cluster.train_on(address, RUNS, tmp_path, 1) == 0, capfd.readouterr()
    assert capfd.readouterr().out.count("  recorded: ") == len(RUNS)
    records = [*all_runs(tmp_path)]
    assert [record.config for record in records] == RUNS
    files = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["run.json"] * len(RUNS) + ["weights.safetensors"] * len(RUNS)
    [again] = [record for record in records if record.config.name in str(killed[0])]
    assert again.resumed and sum(worker.poll() is None for worker in workers) == 1
    digits = load_images("mnist")
    for record in records:
        network = read_network(record, tmp_path)
        once_more = measured(record.config, network, digits, split_for(record.config, digits)[1])
        assert once_more.misclassified == record.misclassified


def test_what_is_wrong_is_said_in_a_line(two_workers, tmp_path, capfd, monkeypatch):
    """A run that cannot be trained, and records that end up elsewhere: the machines share no folder."""
    address, workers = two_workers
    workers.pop().kill()
    too_many = replace(RUNS[0], train_images=9_999)
    assert cluster.train_on(address, [too_many], tmp_path, 1) == 1
    assert f"{too_many.name}  failed: its process ended with {{'status': 1}}; see" in capfd.readouterr().out

    submit = cluster.train_there
    monkeypatch.setattr(cluster, "train_there", lambda values, root, threads: submit(values, "/none", threads))
    assert cluster.train_on(address, RUNS[:1], tmp_path, 1) == 1
    assert "failed: /none is no folder on this worker's machine; share it" in capfd.readouterr().out
    monkeypatch.setattr(cluster, "train_there", lambda values, root, threads: None)
    assert cluster.train_on(address, RUNS[:1], tmp_path, 1) == 1
    assert "failed: " in (printed := capfd.readouterr().out) and "No such file or directory" in printed


def test_no_scheduler_and_no_dask_are_said_with_a_cure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 1)
    command = ["sweep", "1.5k-dw", "--profile", "smoke", "--out", str(tmp_path), "--cluster"]
    assert main([*command, f"tcp://127.0.0.1:{free_port()}"]) == 1
    assert "error: no scheduler of Dask answers at tcp://127.0.0.1:" in capsys.readouterr().err
    assert main([*command, "anywhere:"]) == 1
    assert "start one with `dask scheduler`" in capsys.readouterr().err
    imported = builtins.__import__

    def without_dask(name, *arguments, **options):
        if name == "distributed":
            raise ModuleNotFoundError("No module named 'distributed'")
        return imported(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_dask)
    assert main([*command, "tcp://127.0.0.1:8786"]) == 1
    assert "Dask is not installed" in (shown := capsys.readouterr().err) and "pip install" in shown


def test_a_limit_of_time_is_refused(tmp_path):
    with pytest.raises(EffcnnError, match="--minutes has no say on a cluster"):
        sweep(["1.5k-dw"], [0], 2, 1, "smoke", 5.0, tmp_path, None, "tcp://127.0.0.1:8786")


def test_a_run_that_another_process_trains_is_not_recorded(monkeypatch, tmp_path):
    """Say one of a worker that the scheduler has lost sight of."""
    class Worker:
        process = None

        def begin(self, config, seconds):
            self.reports.put((self, {"epoch": 1}))
            self.reports.put((self, {"status": 75}))

    def start(root, threads, reports):
        worker = Worker()
        worker.reports = reports
        return worker

    monkeypatch.setattr(cluster, "start_worker", start)
    monkeypatch.setattr(cluster, "stop", lambda processes: None)
    with pytest.raises(EffcnnError, match="another process is training it; ask again when it has ended"):
        cluster.train_there(cluster.values_of(RUNS[0]), str(tmp_path), 1)
