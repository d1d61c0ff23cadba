"""A sweep: what it trains, in which order, how long it expects that to take, and how it ends."""

import json
import os
import queue
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import result_of

from effcnn_helpers.cli import sweep, worker
from effcnn_helpers.cli.recording import unfinished_dir
from effcnn_helpers.errors import EffcnnError
from effcnn_helpers.models import build_model
from effcnn_helpers.paper import TABLE_3
from effcnn_helpers.recipes import RECIPES, Recipe, RunConfig, table_run
from effcnn_helpers.records import all_runs, read_run, write_run

pytestmark = pytest.mark.usefixtures("terminal_signals")

DIGITS = [row.model for row in TABLE_3 if row.dataset == "mnist"]
SMOKE = "settled,epochs=1/baseline/seed{},train=384,test=200"


@pytest.fixture
def small_sweep(tmp_path):
    """A function that sweeps 1.5K-DW, tiny runs, into a folder of its own."""
    def start(*selections: str, **changes) -> int:
        options = dict(seeds=[0], recipe=None, jobs=2, threads=1, profile="smoke", minutes=None,
                       out=tmp_path)
        return sweep.sweep(list(selections) or ["1.5k-dw"], **{**options, **changes})
    return start


def test_sweep_trains_what_is_missing_and_then_has_nothing_to_do(
        small_sweep, digits_folder, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(digits_folder))
    assert small_sweep() == 0
    printed = capfd.readouterr().out
    assert "1 runs selected, 0 of them recorded" in printed and "epoch 1/1" in printed
    record = read_run(tmp_path / "mnist/1.5k-dw" / SMOKE.format(0))
    expected = table_run("1.5k-dw", epochs=1)
    assert record.config == replace(expected, train_images=384, test_images=200)
    assert f"recorded: {record.accuracy_percent:.2f} %" in printed
    assert record.environment["threads"] == 1 and record.fresh_correct is not None

    assert small_sweep() == 0
    printed = capfd.readouterr().out
    assert "1 runs selected, 1 of them recorded" in printed and "epoch" not in printed


def test_two_sweeps_at_once_train_a_run_once(digits_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(digits_folder))
    command = [sys.executable, "-m", "effcnn_helpers", "sweep", "1.5k-dw", "--profile", "smoke",
               "--out", str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert "".join(outputs).count("epoch 1/1") == 1, outputs
    for process, output in zip(both, outputs, strict=True):
        done = "recorded: " in output or "1 of them recorded" in output
        assert process.returncode == (0 if done else 1), output
        assert done or "being trained by another process" in output
    assert 0 in [process.returncode for process in both]
    assert len(list(all_runs(tmp_path))) == 1


def test_whole_sweep_without_the_real_data_fails_and_says_why(
        small_sweep, tmp_path, digits_folder, monkeypatch, capfd):
    """In one line: it is for the user to mend."""
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(digits_folder))
    assert small_sweep(profile="full") == 1
    shown = capfd.readouterr()
    assert "mnist/1.5k-dw/settled/baseline/seed0: failed" in shown.out
    assert "error: runs of all images are recorded on the real mnist only" in shown.err
    assert "Traceback" not in shown.err
    assert list(all_runs(tmp_path)) == []


def test_sweep_takes_the_recipe_that_it_is_given(small_sweep, quick_workers, monkeypatch):
    monkeypatch.setitem(RECIPES, ("own", "mnist"), Recipe("own", epochs=9, schedule="linear"))
    assert small_sweep("5k", "25k", recipe="own") == 0
    assert [config.recipe for config in quick_workers.started] == [
        Recipe("own", epochs=1, schedule="linear")] * 2
    with pytest.raises(EffcnnError, match="no recipe 'other' for mnist"):
        small_sweep(recipe="other")


# Workers


@pytest.fixture
def quick_workers(make_record, monkeypatch):
    """Workers that record a made-up run after a moment, in threads; `.most`: how many at a time, `.workers`: how many
    in all. `.report`: what one tells instead of {"status": 0}, by model."""
    seen = SimpleNamespace(running=0, most=0, started=[], workers=0, report={})
    lock = threading.Lock()

    class Worker(sweep.Worker):
        def begin(self, config, seconds):
            self.config = config
            seen.started.append(config)
            with lock:
                seen.running += 1
                seen.most = max(seen.most, seen.running)
            threading.Timer(0.05, self.finish).start()

        def finish(self):
            report = seen.report.get(self.config.model, {"status": 0})
            if report == {"status": 0}:
                record = make_record(self.config.model, recipe={"epochs": self.config.epochs})
                record = replace(record, config=self.config)
                write_run(record, build_model(self.config.model), self.root)
                self.reports.put((self, {"epoch": 1, **record.epochs[0]}))
            with lock:
                seen.running -= 1
            self.reports.put((self, report))

    def start(root: Path, threads: int, reports: queue.Queue):
        seen.workers += 1
        worker = Worker(SimpleNamespace(terminate=lambda: None, wait=lambda timeout=None: 0, stdin=None))
        worker.root, worker.reports = root, reports
        return worker

    monkeypatch.setattr(sweep, "start_worker", start)
    return seen


@pytest.mark.parametrize("jobs", [1, 2, 6])
def test_sweep_of_a_table_runs_so_many_at_a_time_until_all_are_recorded(
        jobs, small_sweep, quick_workers, tmp_path, capsys):
    (tmp_path / "mnist/7k" / SMOKE.format(0)).mkdir(parents=True)  # as if this one were recorded
    assert small_sweep("mnist", jobs=jobs) == 0
    models = [config.model for config in quick_workers.started]
    assert models == [model for model in DIGITS if model != "7k"]
    assert quick_workers.most <= jobs
    assert quick_workers.most > 1 or jobs == 1
    assert quick_workers.workers == quick_workers.most, "one process serves many runs"
    printed = capsys.readouterr().out
    assert "6 runs selected, 1 of them recorded" in printed
    assert printed.count("recorded: 98.35 %") == 5


@pytest.mark.parametrize("report, reason, tried", [
    ({"status": worker.BUSY}, "being trained by another process", 1), ({"status": 1}, "failed (see its message", 1),
    ({"ended": 1}, "failed (see its message", 1), ({"ended": -9}, "failed (see its message", 2)])
def test_sweep_goes_on_after_a_run_that_failed_and_names_it(
        report, reason, tried, small_sweep, quick_workers, tmp_path, capsys):
    """One whose process was killed is tried once more."""
    quick_workers.report["7k-dw"] = report
    assert small_sweep("mnist") == 1
    printed = capsys.readouterr().out
    assert f"mnist/7k-dw/{SMOKE.format(0)}: {reason}" in printed
    assert printed.count(": failed") + printed.count(": being trained") == 1
    assert [config.model for config in quick_workers.started].count("7k-dw") == tried
    assert len(list(all_runs(tmp_path))) == 5


@pytest.mark.parametrize("error, status", [
    (worker.RunBusyError("busy"), worker.BUSY), (EffcnnError("no data"), 1)])
def test_worker_tells_by_its_status_why_it_ended(error, status, monkeypatch, capsys, tmp_path):
    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr(worker, "train_or_load", refuse)
    assert worker.work(table_run("7k"), tmp_path, 1) == status
    assert capsys.readouterr().err == ("" if status == worker.BUSY else "error: no data\n")


def test_worker_keeps_the_traceback_of_a_mistake_of_ours(monkeypatch, tmp_path):
    monkeypatch.setattr(worker, "train_or_load", lambda *_, **__: [].pop())
    with pytest.raises(IndexError):
        worker.work(table_run("7k"), tmp_path, 1)


def test_run_has_the_same_result_in_a_fresh_process_and_after_others(worker, tmp_path):
    """Also after one that failed in the middle, and one that changed how Composer trains."""
    config = RunConfig("1.5k-dw", "mnist", Recipe("tiny", epochs=2), train_images=256, test_images=200)
    before = [replace(config, techniques=("mixup", "sam", "swa"), seed=1),
              replace(config, recipe=replace(config.recipe, learning_rate=1e30)),
              replace(config, recipe=replace(config.recipe, batch_size=32, optimizer="adam"))]
    results = []
    for place, configs in (("fresh", [config]), ("after others", [*before, config])):
        process = worker(tmp_path / place)
        statuses = []
        for run in configs:
            process.begin(run)
            statuses += [next(report["status"] for report in process.reports if "status" in report)]
        folder = tmp_path / place / config.name
        results.append((result_of(read_run(folder)), (folder / "weights.safetensors").read_bytes()))
    assert statuses == [0, 1, 0, 0]
    assert results[0] == results[1]


SOAK = bool(os.environ.get("TESTS_SOAK"))
RUNS, KILLED = (200, 10) if SOAK else (5, 1)


def test_sweep_whose_workers_are_killed_records_every_run_once(digits_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(digits_folder))
    command = [sys.executable, "-m", "effcnn_helpers", "sweep", "1.5k-dw", "--profile", "smoke", "--out",
               str(tmp_path), "--seeds", *map(str, range(RUNS))]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as sweeping:
        ended, killed = [], 0
        for line in sweeping.stdout:
            ended += re.findall(r"(\S+)  recorded: ", line)
            if len(ended) > (killed + 0.5) * RUNS / (KILLED + 1) and killed < KILLED and "  epoch " in line:
                random.choice(psutil.Process(sweeping.pid).children()).kill()
                killed += 1
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert killed == KILLED and sweeping.returncode == 0
    assert len(ended) == len(set(ended)) == len(list(all_runs(tmp_path))) == RUNS
    files = [path for path in tmp_path.rglob("*") if path.is_file() and ".writing-" not in str(path)]
    assert len(files) == 2 * RUNS
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{seconds / RUNS:.2f} seconds of processor time per run, its training and all imports included")
    assert not SOAK or seconds / RUNS < 2


# How long it takes


@pytest.fixture
def measured(digits, monkeypatch):
    """A step of a millisecond an image; the names of the datasets that were loaded."""
    loaded = []
    monkeypatch.setattr(sweep, "load_images", lambda name: loaded.append(name) or digits)
    monkeypatch.setattr(sweep, "seconds_per_image", lambda config, threads: 1e-3)
    return loaded


def estimate(config: RunConfig, root: Path) -> float:
    [seconds] = sweep.estimates([config], root, threads=1).values()
    return seconds


def test_estimate_follows_recorded_runs_and_what_is_left_of_a_checkpoint(
        write_record, digits, measured, tmp_path):
    config = table_run("7k", seed=5)
    assert estimate(config, tmp_path) == pytest.approx(sweep.START_SECONDS + 20 * 50_000 * 1e-3 * 1.15)
    write_record("7k", root=tmp_path)  # 1.5 seconds an epoch
    assert estimate(config, tmp_path) == pytest.approx(sweep.START_SECONDS + 20 * 1.5 * 1.15)

    folder = unfinished_dir(config, digits.sha256)
    folder.mkdir(parents=True)
    torch.save({}, folder / "ep17.pt")
    assert estimate(config, tmp_path) == pytest.approx(sweep.START_SECONDS + 3 * 1.5 * 1.15)


def test_estimate_passes_a_batch_as_often_as_the_techniques_do(write_record, measured, tmp_path):
    """SAM passes it twice, so a plain run says nothing of it, nor it of a plain run."""
    plain, sam = table_run("7k"), table_run("7k", techniques=("sam",))
    assert estimate(sam, tmp_path) == pytest.approx(sweep.START_SECONDS + 2 * 20 * 50_000 * 1e-3 * 1.15)
    write_record("7k", root=tmp_path)
    assert estimate(sam, tmp_path) == pytest.approx(sweep.START_SECONDS + 2 * 20 * 50_000 * 1e-3 * 1.15)
    write_record("7k", root=tmp_path, config={"techniques": ("sam",)}, train_seconds=120.0)
    assert estimate(sam, tmp_path) == pytest.approx(sweep.START_SECONDS + 120 * 1.15)
    assert estimate(plain, tmp_path) == pytest.approx(sweep.START_SECONDS + 20 * 1.5 * 1.15)


def test_estimate_follows_the_usual_run_of_the_same_model(write_record, measured, tmp_path):
    for seed, (model, seconds) in enumerate([("7k", 24.0), ("7k", 60.0), ("7k", 12.0),
                                             ("7k-dw", 600.0)]):
        write_record(model, seed=seed, root=tmp_path, train_seconds=seconds)
    assert estimate(table_run("7k"), tmp_path) == pytest.approx(sweep.START_SECONDS + 24 * 1.15)
    assert estimate(table_run("5k"), tmp_path) == pytest.approx(sweep.START_SECONDS + 20 * 50 * 1.15)


def test_estimate_counts_the_images_and_epochs_of_each_run(write_record, measured, tmp_path):
    """A recorded run of 5,000 images and 3 epochs took 6 seconds: 0.4 ms an image."""
    write_record("7k", root=tmp_path, recipe={"epochs": 3}, config={"train_images": 5_000},
                 train_seconds=6.0)
    assert estimate(table_run("7k"), tmp_path) == pytest.approx(sweep.START_SECONDS + 20 * 50_000 * 4e-4 * 1.15)
    longer = table_run("7k", epochs=60)
    assert estimate(longer, tmp_path) == pytest.approx(sweep.START_SECONDS + 60 * 50_000 * 4e-4 * 1.15)


def test_each_dataset_is_loaded_and_each_record_read_once_for_all_runs(
        write_record, measured, tmp_path, files_read):
    for model in DIGITS:
        write_record(model, root=tmp_path)
    configs = [table_run(model, seed) for seed in range(5) for model in (*DIGITS, "143k")]
    files_read.clear()
    assert sweep.estimates(configs, tmp_path, threads=1).keys() == set(configs)
    assert sorted(measured) == ["cifar10", "mnist"]
    assert len(files_read) == len(set(files_read)) == len(DIGITS)


def test_a_sweep_of_many_runs_loads_and_reads_once(
        small_sweep, quick_workers, write_record, measured, tmp_path, files_read):
    for model in DIGITS:
        write_record(model, root=tmp_path)
    files_read.clear()
    assert small_sweep("mnist", seeds=[0, 1, 2], profile="full", jobs=6) == 0
    assert measured == ["mnist"]
    # What was there, once; and once each run that has been trained, for its last line.
    assert len(quick_workers.started) == 12
    assert len(files_read) == len(set(files_read)) == 6 + 12


def test_no_data_is_loaded_to_estimate_tiny_runs(measured, tmp_path):
    few = replace(table_run("7k"), train_images=384)
    assert sweep.estimates([few], tmp_path, threads=1) == {few: sweep.START_SECONDS}
    assert measured == []


def test_training_step_is_timed_per_image(monkeypatch):
    """Four steps of 16 images in 32 seconds: half a second an image. The first do not count."""
    config = RunConfig("1.5k-dw", "mnist", Recipe("small", epochs=1, batch_size=16))
    clock, calls, steps = iter([100.0, 132.0]), [], []

    def tick():
        steps.append(len(calls))
        return next(clock)

    def counted(name):
        network = build_model(name)
        network.register_forward_hook(lambda module, inputs, output: calls.append(inputs[0].shape))
        return network

    monkeypatch.setattr(sweep, "build_model", counted)
    monkeypatch.setattr(sweep, "time", SimpleNamespace(perf_counter=tick))
    assert sweep.seconds_per_image(config, threads=1, steps=4) == 0.5
    assert set(calls) == {(16, 1, 28, 28)} and steps == [3, 7]


# How it ends


def test_sweep_starts_nothing_that_cannot_end_in_time(small_sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "start_worker", lambda *_: pytest.fail("started"))
    assert small_sweep(minutes=0.05, seeds=[0, 1]) == 1
    printed = capsys.readouterr().out
    for seed in (0, 1):
        name = f"mnist/1.5k-dw/{SMOKE.format(seed)}"
        assert f"{name}: not enough time left; the same command goes on" in printed
    assert not any(tmp_path.iterdir())


@pytest.fixture
def sleepers(monkeypatch):
    """Workers that only sleep, in real processes; the list of these."""
    started = []

    def start(root, threads, reports):
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stdin=subprocess.PIPE,
                                        text=True))
        return sweep.Worker(started[-1])

    monkeypatch.setattr(sweep, "start_worker", start)
    yield started
    for process in started:
        process.kill()
        process.communicate()


def test_sweep_stops_what_still_trains_when_the_time_is_up(
        small_sweep, sleepers, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "START_SECONDS", 0)
    assert small_sweep(minutes=0.005, seeds=[0, 1], jobs=1) == 1
    printed = capsys.readouterr().out
    assert "time is up" in printed
    assert f"{SMOKE.format(0)}: not enough time left" in printed
    assert [process.poll() for process in sleepers] == [-signal.SIGTERM]


@pytest.mark.parametrize("number, error, status", [
    (signal.SIGINT, KeyboardInterrupt, None), (signal.SIGTERM, SystemExit, 143)])
def test_interrupted_sweep_stops_its_workers(
        number, error, status, small_sweep, sleepers, monkeypatch):
    """By Ctrl-C, or by whatever ends the session it runs in."""
    start = sweep.start_worker

    def start_and_interrupt(*arguments):
        sleeper = start(*arguments)
        if len(sleepers) == 2:
            # As from a terminal: a signal to the timer's own thread would not wake the main one.
            main_thread = threading.main_thread().ident
            threading.Timer(0.2, signal.pthread_kill, [main_thread, number]).start()
        return sleeper

    monkeypatch.setattr(sweep, "start_worker", start_and_interrupt)
    with pytest.raises(error) as end:
        small_sweep(seeds=[0, 1, 2])
    assert getattr(end.value, "code", None) == status
    assert len(sleepers) == 2
    assert all(process.poll() is not None for process in sleepers)


def test_worker_that_does_not_end_when_asked_is_killed(monkeypatch):
    monkeypatch.setattr(sweep, "STOP_SECONDS", 0.2)
    deaf = ("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
            "print(flush=True); time.sleep(60)")
    processes = [subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
                 for _ in range(2)]
    for process in processes:
        process.stdout.readline()
    start = time.monotonic()
    sweep.stop(processes)
    assert time.monotonic() - start < 2
    for process in processes:
        assert process.returncode == -signal.SIGKILL
        process.stdout.close()


LONG_SWEEP = """
import sys
from dataclasses import replace

from effcnn_helpers.cli import main, sweep

sweep.shortened = lambda config, *_: replace(
    config, recipe=replace(config.recipe, epochs=999), train_images=384, test_images=200)
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def long_sweep(digits_folder, tmp_path, monkeypatch):
    """A function that starts a sweep of long runs in a session of its own, as a terminal would, and
    waits until each has trained an epoch: (the sweep, its workers)."""
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(digits_folder))
    script = tmp_path / "long_sweep.py"
    script.write_text(LONG_SWEEP)
    started = []

    def start(seeds: str):
        command = [sys.executable, str(script), "sweep", "1.5k-dw", "--profile", "smoke",
                   "--seeds", *seeds, "--out", str(tmp_path / "runs")]
        sweeping = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                    text=True, start_new_session=True)
        started.append(psutil.Process(sweeping.pid))
        at_work = set()
        while len(at_work) < len(seeds):
            line = sweeping.stdout.readline()
            assert line, sweeping.stderr.read()
            at_work |= {seed for seed in seeds if f"/seed{seed}," in line and "  epoch 2/" in line}
        started.extend(started[0].children())
        return sweeping, started[1:]

    yield start
    for process in started:
        if process.is_running():
            process.kill()


@pytest.mark.parametrize("number, send, seeds, status", [
    (signal.SIGINT, os.killpg, "01", 130), (signal.SIGTERM, os.kill, "0", 143),
    (signal.SIGKILL, os.kill, "0", -9)])
def test_one_signal_ends_a_sweep_and_all_its_workers(
        number, send, seeds, status, long_sweep, tmp_path, digits):
    """Ctrl-C goes to all that a terminal runs, `kill` to one process. The next sweep goes on."""
    sweeping, workers = long_sweep(seeds)
    assert len(workers) == len(seeds)
    start = time.monotonic()
    send(sweeping.pid, number)
    sweeping.wait(timeout=10)
    gone, left = psutil.wait_procs(workers, timeout=max(0, start + 5 - time.monotonic()))
    assert left == [] and time.monotonic() - start < 5
    assert sweeping.returncode == status
    assert "Traceback" not in sweeping.communicate()[1], "a worker complained"
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert files == [], "half a record"
    for seed in seeds:
        config = table_run("1.5k-dw", int(seed), epochs=999)
        config = replace(config, train_images=384, test_images=200)
        assert sweep.last_whole_checkpoint(unfinished_dir(config, digits.sha256))


def test_worker_without_a_sweep_that_listens_ends_without_complaint():
    """A sweep killed with -9 closes its end of the pipe, perhaps before a worker sees that its parent has gone."""
    code = "from effcnn_helpers.cli.worker import tell; tell({'epoch': 1}); print('trains on')"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_worker_is_given_its_run_in_json():
    """What it is asked for is what it trains, in every field."""
    config = replace(table_run("143k", 3, ("cutout", "swa"), epochs=5), test_images=9)
    assert worker.config_from(json.loads(json.dumps(asdict(config)))) == config


def test_the_time_of_a_run_is_estimated_by_runs_in_its_own_precision(make_record):
    slow, fast = (make_record("7k", train_seconds=seconds, recipe={"precision": precision})
                  for precision, seconds in (("float32", 600.0), ("bfloat16", 300.0)))
    assert sweep.usual([slow, fast], slow.config) == 2 * sweep.usual([slow, fast], fast.config) > 0
    assert sweep.usual([slow], fast.config) == 0
