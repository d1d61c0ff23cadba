"""What may happen to a machine while runs are trained and recorded: nothing recorded is lost, nothing is half there.

`make soak` tries each fault more often (TESTS_SOAK=1).
"""

import multiprocessing
import os
import random
import signal
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from effcnn_helpers.cli.recording import train_or_load
from effcnn_helpers.recipes import Recipe, RunConfig
from effcnn_helpers.records import RunRecord, read_run

SOAK = bool(os.environ.get("TESTS_SOAK"))
KILLS = int(os.environ.get("TESTS_KILLS", 20 if SOAK else 1))  # of each stack
STACKS = [(), ("swa",), ("sam",), ("cutout", "blurpool", "mixup")]


def small(techniques: tuple[str, ...] = (), **changes) -> RunConfig:
    """Four short epochs."""
    options = dict(seed=1, train_images=128, test_images=100)
    recipe = Recipe("small", epochs=4, batch_size=64)
    return RunConfig("1.5k-dw", "mnist", recipe, techniques, **{**options, **changes})


def train_in_process(config: RunConfig, root: Path, environment: dict[str, str], seconds: float | None) -> None:
    """What a process of its own does that trains and records a run; it notes how long that took it, without waiting.

    seconds: after so long the system ends it, as by `kill -9`.
    """
    os.environ.update(environment)
    if seconds:
        signal.setitimer(signal.ITIMER_PROF, seconds)
    train_or_load(config, root=root, progress=False, threads=1)
    (root / "seconds").write_text(str(time.process_time()))


@pytest.fixture(scope="module")
def forked():
    """A function that runs such a process; it need not import Composer again, as its parent has. Its exit status."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["composer.algorithms", "effcnn_helpers.callbacks", "effcnn_helpers.cli.recording"])

    def start(config: RunConfig, root: Path, seconds: float | None = None) -> int:
        environment = {name: os.environ[name] for name in ("EFFCNN_CACHE_DIR", "EFFCNN_DATA_DIR")}
        process = context.Process(target=train_in_process, args=(config, root, environment, seconds))
        process.start()
        process.join()
        return process.exitcode

    warm = context.Process(target=time.time)
    warm.start()
    warm.join()  # now the parent of all has imported Composer
    return start


def result_of(record: RunRecord) -> dict:
    """All of a record but clocks."""
    values = asdict(record)
    for name in ("started", "ended", "train_seconds", "resumed"):
        values.pop(name)
    values["epochs"] = [{**row, "seconds": 0} for row in record.epochs]
    return values


def weights_of(config: RunConfig, root: Path) -> bytes:
    return (root / config.name / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("techniques", STACKS, ids=lambda names: "+".join(names) or "baseline")
def test_run_killed_at_any_moment_goes_on_to_the_same_record(techniques, forked, digits_folder, tmp_path,
                                                             monkeypatch):
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(digits_folder))
    config = small(techniques)
    undisturbed = tmp_path / "undisturbed"
    assert forked(config, undisturbed) == 0
    seconds = float((undisturbed / "seconds").read_text())
    expected = result_of(read_run(undisturbed / config.name))
    resumed = 0
    for kill in range(KILLS):
        root = tmp_path / str(kill)
        status = forked(config, root, seconds * random.uniform(0.1, 1))
        assert status in (-signal.SIGPROF, 0)
        assert not (root / config.name).exists() or read_run(root / config.name)
        assert forked(config, root) == 0
        record = read_run(root / config.name)
        assert result_of(record) == expected, kill
        assert weights_of(config, root) == weights_of(config, undisturbed), kill
        resumed += record.resumed
        print(f"kill {kill}: status {status}, resumed {record.resumed}", flush=True)
    assert resumed or not SOAK
