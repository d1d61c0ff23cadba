"""Training on a GPU, wherever there is one. In processes of its own, as the suite keeps to the CPU.

Without one all of it is skipped: `pytest -m gpu` says so.
"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import ORIGINAL_CUDA

from effcnn_helpers.cli.verify import check_run
from effcnn_helpers.recipes import Recipe, RunConfig
from effcnn_helpers.records import all_runs, read_network, read_run
from effcnn_helpers.techniques import TECHNIQUES

RECIPE = Recipe("gpu", epochs=2, schedule="linear", weight_decay=1e-4, augmentation=("crop", "hole"))
ROWS = [(), *((name,) for name in TECHNIQUES), ("cutout", "blurpool", "mixup", "label_smoothing", "sam", "swa")]


def gpu_environment() -> dict[str, str] | None:
    """This environment with the GPU visible again; None where torch finds none."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    if ORIGINAL_CUDA is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ORIGINAL_CUDA
    if shutil.which("nvidia-smi") is None:
        return None
    looked = subprocess.run([sys.executable, "-c", "import torch; print(torch.cuda.is_available())"],
                            env=environment, capture_output=True, text=True)
    return environment if looked.stdout.strip() == "True" else None


@pytest.fixture(scope="module")
def on_gpu(digits_folder, tmp_path_factory):
    """A function that trains configurations on the GPU, one process for all: (recorded runs, folder)."""
    environment = gpu_environment()
    if environment is None:
        pytest.skip("no GPU here")
    driver = """
import json, sys
from pathlib import Path
import torch
from effcnn_helpers.cli.recording import train_or_load
from effcnn_helpers.recipes import config_from
assert torch.cuda.is_available()
for config in json.loads(sys.argv[1]):
    train_or_load(config_from(config), root=Path(sys.argv[2]), progress=False)
"""

    def train(configs: list[RunConfig], kill_after: str = "") -> Path:
        root = tmp_path_factory.mktemp("gpu")
        where = {"EFFCNN_DATA_DIR": str(digits_folder), "EFFCNN_CACHE_DIR": str(root / "cache")}
        command = [sys.executable, "-c", kill_after + driver, json.dumps([asdict(config) for config in configs]),
                   str(root / "recorded")]
        for _ in range(2 if kill_after else 1):
            done = subprocess.run(command, env=environment | where, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return root / "recorded"

    return train


def config(techniques: tuple[str, ...] = (), **changes) -> RunConfig:
    return RunConfig("1.5k-dw", "mnist", RECIPE, techniques, train_images=512, test_images=400, **changes)


@pytest.mark.gpu
def test_every_technique_trains_on_a_gpu_and_is_verified_on_the_cpu(on_gpu, digits):
    root = on_gpu([config(row) for row in ROWS])
    runs = list(all_runs(root))
    assert {run.config.techniques for run in runs} == set(ROWS)
    for run in runs:
        assert run.environment["device"] != "cpu"
        network = read_network(run, root)
        assert next(network.parameters()).device == torch.device("cpu")
        problems, _ = check_run(run, digits, root=root)
        assert problems == [], run.config.name


@pytest.mark.gpu
def test_a_run_killed_on_a_gpu_goes_on_to_the_same_record(on_gpu):
    # The first process ends after its first epoch, the second one goes on from the checkpoint.
    kill_after = """
import os
import effcnn_helpers.callbacks as callbacks
def end(self, state, logger):
    if state.timestamp.epoch.value == 1 and not os.path.exists(os.environ["EFFCNN_CACHE_DIR"] + "/killed"):
        open(os.environ["EFFCNN_CACHE_DIR"] + "/killed", "w").close()
        os._exit(9)
before = callbacks.History.epoch_start
callbacks.History.epoch_start = lambda self, state, logger: (end(self, state, logger), before(self, state, logger))[1]
"""
    for row in ((), ("mixup",), ("sam",), ("swa",)):
        whole = read_run(on_gpu([config(row)]) / config(row).name)
        broken = read_run(on_gpu([config(row)], kill_after) / config(row).name)
        assert broken.resumed and not whole.resumed
        assert len(broken.epochs) == len(whole.epochs)
        # Not to the last bit: a GPU may add in another order.
        assert broken.epochs[-1]["train_loss"] == pytest.approx(whole.epochs[-1]["train_loss"], rel=1e-2)
