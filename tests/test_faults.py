"""What may happen to a machine while runs are trained and recorded: nothing recorded is lost, nothing is half there.

`make soak` tries each fault more often (TESTS_SOAK=1).
"""

import multiprocessing
import os
import random
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from effcnn_helpers.cli.recording import train_or_load, unfinished_dir
from effcnn_helpers.recipes import Recipe, RunConfig
from effcnn_helpers.records import RunRecord, read_run

SOAK = bool(os.environ.get("TESTS_SOAK"))
KILLS = 20 if SOAK else 1  # of each stack
STACKS = [(), ("swa",), ("sam",), ("cutout", "blurpool", "mixup")]


def small(techniques: tuple[str, ...] = (), **changes) -> RunConfig:
    """Four short epochs."""
    options = dict(seed=1, train_images=384, test_images=200)
    return RunConfig("1.5k-dw", "mnist", Recipe("small", epochs=4), techniques, **{**options, **changes})


def train_in_process(config: RunConfig, root: Path, environment: dict[str, str]) -> None:
    """What a process of its own does that trains and records a run."""
    os.environ.update(environment)
    train_or_load(config, root=root, progress=False, threads=1)


@pytest.fixture(scope="module")
def forked():
    """A function that starts such a process; it need not import Composer again, as its parent has."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["composer.algorithms", "effcnn_helpers.callbacks", "effcnn_helpers.cli.recording"])

    def start(config: RunConfig, root: Path) -> multiprocessing.Process:
        environment = {name: os.environ[name] for name in ("EFFCNN_CACHE_DIR", "EFFCNN_DATA_DIR")}
        process = context.Process(target=train_in_process, args=(config, root, environment))
        process.start()
        return process

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
def test_run_killed_at_any_moment_goes_on_to_the_same_record(techniques, forked, digits, digits_folder, tmp_path,
                                                             monkeypatch):
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(digits_folder))
    config = small(techniques)
    start = time.monotonic()
    process = forked(config, tmp_path / "undisturbed")
    process.join()
    seconds = time.monotonic() - start
    expected = result_of(read_run(tmp_path / "undisturbed" / config.name))
    resumed = whole = 0
    for kill in range(KILLS):
        root = tmp_path / str(kill)
        process = forked(config, root)
        process.join(seconds * random.uniform(0.2, 1))
        whole += not process.is_alive()
        process.kill()
        process.join()
        assert not (root / config.name).exists() or read_run(root / config.name)
        process = forked(config, root)
        process.join()
        assert process.exitcode == 0
        record = read_run(root / config.name)
        assert result_of(record) == expected, kill
        assert weights_of(config, root) == weights_of(config, tmp_path / "undisturbed"), kill
        assert not unfinished_dir(config, digits.sha256).exists()
        resumed += record.resumed
    print(f"{KILLS} kills: {resumed} runs went on from a checkpoint, {whole} had just ended")
    assert resumed or KILLS < 20
