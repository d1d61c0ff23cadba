"""Train a list of runs, a few at a time, each in a process of its own; stop and start again at will."""

import contextlib
import json
import os
import queue
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from ..datasets import load_images
from ..errors import EffcnnError
from ..machine import prepare
from ..models import build_model, model_of
from ..recipes import PROFILES, RunConfig, shortened
from ..records import RunRecord, all_runs, read_run, recorded_dir
from ..training import in_precision, last_whole_checkpoint
from .recording import unfinished_dir
from .selections import select
from .worker import BUSY

START_SECONDS = 5           # of a run: setting up and recording it (a process imports Composer once for many runs)
EVALUATION_SHARE = 1.15     # an epoch with its evaluation, against its training alone
STOP_SECONDS = 2            # what a worker may take to end by itself


@dataclass(eq=False)
class Worker:
    """A process that trains one run after another, and what is known of the one that it trains now."""

    process: subprocess.Popen
    config: RunConfig | None = None
    seconds_left: float = 0.0

    def begin(self, config: RunConfig, seconds: float) -> None:
        """Let it train a run."""
        self.config, self.seconds_left = config, seconds
        with contextlib.suppress(OSError, ValueError):  # it has just ended, which its last report will tell
            os.write(self.process.stdin.fileno(), (json.dumps(asdict(config)) + "\n").encode())


def sweep(selections: list[str], seeds: list[int], jobs: int, threads: int, profile: str,
          minutes: float | None, out: Path | None, recipe: str | None = None, cluster: str | None = None) -> int:
    """Train the selected runs that are not recorded yet; returns 0 when every one of them is in the end.

    cluster: the address of a scheduler of Dask whose workers train them, in place of processes here (see cluster.py).
    """
    if cluster and minutes:
        raise EffcnnError("--minutes has no say on a cluster, whose workers end what they have begun; leave it out")
    # Ended by a job scheduler or a closing session, the sweep stops its workers as it does at Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    root, configs = asked_for(selections, seeds, profile, out, recipe)
    waiting = [config for config in configs if not (root / config.name).exists()]
    print(f"{len(configs)} runs selected, {len(configs) - len(waiting)} of them recorded in {root}", flush=True)
    if not waiting:
        return 0
    if cluster:
        from .cluster import train_on

        return train_on(cluster, waiting, root, threads)
    start = time.monotonic()
    deadline = start + 60 * minutes if minutes else float("inf")
    seconds = estimates(waiting, root, threads)
    print(f"{len(waiting)} to train, {jobs} at a time: about "
          f"{sum(seconds.values()) / min(jobs, len(waiting)) / 60:.0f} minutes", flush=True)

    running: list[Worker] = []
    idle: list[Worker] = []
    failed, too_long, busy, again = [], [], [], []
    reports: queue.Queue = queue.Queue()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                config = waiting.pop(0)
                if time.monotonic() + seconds[config] > deadline:
                    too_long.append(config)
                    continue
                worker = idle.pop() if idle else start_worker(root, threads, reports)
                worker.begin(config, seconds[config])
                running.append(worker)
            try:
                worker, report = reports.get(timeout=1)
            except queue.Empty:
                if time.monotonic() > deadline and running:
                    print("time is up: the runs that still train go on from their last epoch next time", flush=True)
                    too_long += [worker.config for worker in running]
                    break
                continue
            config = worker.config
            if "epoch" in report:
                worker.seconds_left = (config.epochs - report["epoch"]) * report["seconds"] * EVALUATION_SHARE
                left = sum(seconds[config] for config in waiting) + sum(worker.seconds_left for worker in running)
                print(f"{time.strftime('%H:%M:%S')}  {config.name}  epoch {report['epoch']}/{config.epochs}  "
                      f"loss {report['train_loss']:.4f}  accuracy {report['test_accuracy_percent']:.2f} %  "
                      f"{report['seconds']:.0f} s  | {len(running) + len(waiting)} runs left, about "
                      f"{left / jobs / 60:.0f} min", flush=True)
                continue
            if worker in idle:  # its process has ended after its last run
                idle.remove(worker)
                continue
            running.remove(worker)
            if "status" in report:
                idle.append(worker)
            if report.get("status") == 0:
                record = read_run(root / config.name)
                print(f"{time.strftime('%H:%M:%S')}  {config.name}  recorded: {record.accuracy_percent:.2f} % after "
                      f"{record.train_seconds:.0f} s of training", flush=True)
            elif report.get("status") == BUSY:
                busy.append(config)
            elif report.get("ended", 0) < 0 and config not in again:  # killed, say because memory was short
                print(f"{config.name}: its process was killed; it goes on in another one", flush=True)
                again.append(config)
                waiting.append(config)
            else:
                failed.append(config)
    finally:
        stop([worker.process for worker in running + idle])
    for configs_left, why in ((busy, "being trained by another process"), (failed, "failed (see its message above)"),
                              (too_long, "not enough time left; the same command goes on")):
        for config in configs_left:
            print(f"{config.name}: {why}", flush=True)
    return 1 if busy or failed or too_long else 0


def asked_for(selections: list[str], seeds: list[int], profile: str, out: Path | None,
              recipe: str | None) -> tuple[Path, list[RunConfig]]:
    """The folder for records and the runs, recorded or not, that a command's arguments name."""
    chosen = PROFILES[profile]
    configs = [shortened(config, chosen, chosen.train_images, chosen.test_images)
               for config in select(selections, seeds, recipe)]
    return out or (recorded_dir() if profile == "full" else Path("build/smoke-runs")), configs


def stop(processes: list[subprocess.Popen]) -> None:
    """End processes: ask all of them, and kill what is still there after STOP_SECONDS."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def start_worker(root: Path, threads: int, reports: queue.Queue) -> Worker:
    """Start a process for runs; what it tells arrives in `reports` as (worker, report), last {"ended": exit status}."""
    worker = Worker(subprocess.Popen(
        [sys.executable, "-m", f"{__package__}.worker", str(root), str(threads)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        process_group=0))  # so that Ctrl-C in a terminal reaches the sweep alone, which ends its workers

    def read():
        with worker.process as process:
            for line in process.stdout:
                if line.startswith("{"):
                    reports.put((worker, json.loads(line)))
        reports.put((worker, {"ended": process.returncode}))

    threading.Thread(target=read, daemon=True).start()
    return worker


def estimates(configs: list[RunConfig], root: Path, threads: int) -> dict[RunConfig, float]:
    """How many seconds the rest of each run will take. Recorded runs and data are read once for all of them."""
    if not any(config.whole for config in configs):
        return dict.fromkeys(configs, START_SECONDS)
    recorded = list(all_runs(root))
    digests = {name: load_images(name).sha256 for name in {config.dataset for config in configs}}
    found = {}
    for config in configs:
        checkpoint = last_whole_checkpoint(unfinished_dir(config, digests[config.dataset]))
        done = int(checkpoint.stem[2:]) if checkpoint else 0
        images = config.train_images or 50_000
        epoch = images * (usual(recorded, config) or config.passes * seconds_per_image(config, threads))
        found[config] = START_SECONDS + (config.epochs - done) * epoch * EVALUATION_SHARE
    return found


def usual(recorded: list[RunRecord], config: RunConfig) -> float:
    """The median seconds per image of recorded runs that compute alike; 0 without any."""
    def work(config: RunConfig) -> tuple:
        return config.model, config.passes, config.recipe.precision

    found = [run.train_seconds / len(run.epochs) / (run.config.train_images or 50_000) for run in recorded
             if work(run.config) == work(config)]
    return statistics.median(found) if found else 0.0


def seconds_per_image(config: RunConfig, threads: int, steps: int = 10) -> float:
    """Seconds of a plain training step on random images, per image."""
    prepare()
    torch.set_num_threads(threads)
    network = build_model(config.model).to(memory_format=torch.channels_last)
    x = torch.randn(config.recipe.batch_size, *model_of(config.model).image_shape)
    y = torch.zeros(config.recipe.batch_size, dtype=torch.long)
    with in_precision(network, config.recipe.precision):
        for step in range(steps + 3):
            if step == 3:
                start = time.perf_counter()
            nn.functional.cross_entropy(network(x), y).backward()
    return (time.perf_counter() - start) / steps / config.recipe.batch_size
