"""Recorded runs: what a run left, and reading, writing, finding it. A folder each: run.json, weights.safetensors."""

import contextlib
import io
import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from . import settings
from .datasets import DATASETS
from .errors import EffcnnError
from .models import build_model
from .recipes import RunConfig, config_from, dataset_of, recipe_of, table_run, values_of
from .techniques import add_to_network

SCHEMA_VERSION = 3
SWEEP = "`python -m effcnn_helpers sweep`"
ROOM = "make room, or see to it that its parent folder is writable"
WRITING = ".writing-"  # begins the names of folders that are not whole yet


class RecordError(EffcnnError):
    """A recorded run that is missing, damaged, or not the run that was asked for."""


@dataclass(frozen=True)
class RunRecord:
    """A finished run, as plain data.

    epochs: one dict per epoch (see callbacks.History); a curve to look at, never to choose by.
    correct, total: of the images of config.evaluate_on, after the last epoch.
    fresh_correct: likewise with fresh BatchNorm statistics (see training.fresh_correct).
    misclassified: index of each wrongly classified image -> the class it was taken for.
    bytes: size of the weights as "safetensors" and as a pickled "state_dict".
    train_seconds: training alone, without evaluation. resumed: whether the run was interrupted on its way.
    """

    schema_version: int
    config: RunConfig
    parameters: int
    epochs: list[dict]
    correct: int
    fresh_correct: int
    total: int
    misclassified: dict[int, int]
    bytes: dict[str, int]
    data: dict
    environment: dict
    git: dict
    started: str
    ended: str
    train_seconds: float
    resumed: bool

    @property
    def accuracy_percent(self) -> float:
        return 100 * self.correct / self.total

    @property
    def fresh_percent(self) -> float:
        """The accuracy with fresh BatchNorm statistics: hardly a matter of when training stopped."""
        return 100 * self.fresh_correct / self.total


def recorded_dir() -> Path:
    """Where recorded runs are: $EFFCNN_RECORDED_DIR or the package's own folder."""
    return settings.recorded_dir()


def build_network(config: RunConfig, classes: int | None = None) -> nn.Module:
    """A fresh network of a configuration, with the techniques that change it; weights from torch's global generator.

    classes: how many. Default: the dataset's, 10 where it is in no list.
    """
    if classes is None:
        classes = len(DATASETS[config.dataset].classes) if config.dataset in DATASETS else 10
    return add_to_network(build_model(config.model, classes), config.techniques)


def contiguous_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """The network's weights and BatchNorm statistics as safetensors wants them."""
    return {name: tensor.contiguous() for name, tensor in network.state_dict().items()}


def weight_bytes(network: nn.Module) -> dict[str, int]:
    """Size on disk of a network's weights, in bytes, in two formats."""
    pickled = io.BytesIO()
    torch.save(network.state_dict(), pickled)
    return {"safetensors": len(safetensors.torch.save(contiguous_state(network))),
            "state_dict": len(pickled.getvalue())}


def record_to_json(record: RunRecord) -> str:
    """A record as it is written; each epoch takes a line, as does the list of misclassified images."""
    values = {**asdict(record), "config": values_of(record.config)}
    values[record.config.evaluate_on] = {name: values.pop(name) for name in ("correct", "fresh_correct", "total")}
    rows = ",\n".join("  " + json.dumps(row) for row in values.pop("epochs"))
    wrong = " ".join(f"{index}:{taken}" for index, taken in values.pop("misclassified").items())
    return f'{json.dumps(values, indent=1)[:-2]},\n "epochs": [\n{rows}\n ],\n "misclassified": "{wrong}"\n}}\n'


def record_from_json(text: str) -> RunRecord:
    """The record that `record_to_json` wrote. Raises RecordError when the text is something else."""
    try:
        values = json.loads(text)
        if values["schema_version"] != SCHEMA_VERSION:
            raise RecordError(f"schema_version is {values['schema_version']}, this code reads {SCHEMA_VERSION}")
        values["config"] = config_from(values["config"])
        values.update(values.pop(values["config"].evaluate_on))
        pairs = (pair.split(":") for pair in values["misclassified"].split())
        values["misclassified"] = {int(index): int(taken) for index, taken in pairs}
        record = RunRecord(**values)
        check_counts(record)
    except RecordError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecordError(f"not a recorded run ({type(error).__name__}: {error})") from error
    return record


def check_counts(record: RunRecord) -> None:
    """Raise RecordError unless the record's counts agree with each other."""
    numbers = {name: getattr(record, name) for name in ("correct", "fresh_correct", "total")}
    for name, number in numbers.items():
        least = 1 if name == "total" else 0
        if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= record.total:
            raise RecordError(f"{name} is {number!r} of {record.total!r}")
    if record.total - record.correct != len(record.misclassified):
        raise RecordError(f"{record.correct} of {record.total} correct, but {len(record.misclassified)} images "
                          "are listed as misclassified")
    beyond = [index for index in record.misclassified if not 0 <= index < record.total]
    if beyond:
        raise RecordError(f"image {beyond[0]} is listed as misclassified, but there are {record.total}")
    if not all(isinstance(row, dict) for row in record.epochs):
        raise RecordError("an epoch is not listed by its values")
    if len(record.epochs) != record.config.epochs:
        raise RecordError(f"{len(record.epochs)} epochs are listed, the configuration has {record.config.epochs}")


def read_run(folder: Path, by: str = SWEEP) -> RunRecord:
    """The record in a run's folder. Raises RecordError, naming the file, when it is missing or damaged."""
    path = Path(folder) / "run.json"
    try:
        return record_from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecordError) as error:
        raise RecordError(f"{path}: {error}; delete the folder and train the run again with {by}") from error


def read_network(record: RunRecord, root: Path | None = None) -> nn.Module:
    """The trained network of a recorded run, in evaluation mode. Raises RecordError for damaged weights."""
    return network_in((root or recorded_dir()) / record.config.name, record.config)


def network_in(folder: Path, config: RunConfig, classes: int | None = None, by: str = SWEEP) -> nn.Module:
    """The network whose weights are in a folder. Raises RecordError when they are another's, or damaged."""
    path = Path(folder) / "weights.safetensors"
    network = build_network(config, classes)
    try:
        network.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise RecordError(f"{path} does not hold the weights of {config.model}: {error}; delete the run's "
                          f"folder and train it again with {by}") from error
    return network.eval()


def write_run(record: RunRecord, network: nn.Module, root: Path | None = None) -> Path:
    """Write a run's folder under `root` in one move. When it is there already, the first one stays.

    Raises RecordError, with the cause, when it cannot be written.
    """
    folder = (root or recorded_dir()) / record.config.name
    with written_whole(folder, f"{ROOM}, and the same command goes on from the run's last epoch") as whole:
        write_into(whole, record, network)
    return folder


def write_into(folder: Path, record: RunRecord, network: nn.Module) -> None:
    """The two files of a run."""
    (folder / "run.json").write_text(record_to_json(record), encoding="utf-8")
    safetensors.torch.save_file(contiguous_state(network), folder / "weights.safetensors")


@contextlib.contextmanager
def written_whole(folder: Path, cure: str = ROOM) -> Iterator[Path]:
    """A temporary folder to write into, which becomes `folder` in one move; one that is there already stays.

    Raises RecordError, with the cause and this cure, when it cannot be written.
    """
    cause = ""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=WRITING) as temporary:
            whole = Path(temporary) / folder.name
            whole.mkdir()
            yield whole
            whole.rename(folder)
    except (OSError, safetensors.SafetensorError) as error:
        cause = str(error)
    if not folder.is_dir():
        raise RecordError(f"{folder} could not be written ({cause}); {cure}")


def all_runs(root: Path | None = None, below: str = "") -> Iterator[RunRecord]:
    """Every recorded run (below: only those in this folder of `root`), in the order of folder names.

    Raises RecordError at a damaged one.
    """
    root = root or recorded_dir()
    for path in sorted((root / below).rglob("run.json")):
        if WRITING in str(path):
            continue  # left by a process that was killed while it wrote
        record = read_run(path.parent)
        if root / record.config.name != path.parent:
            raise RecordError(f"{path} is the record of {record.config.name}; move it there")
        yield record


def runs_of_row(config: RunConfig, root: Path | None = None) -> list[RunRecord]:
    """The recorded runs of a configuration with any seed, by seed; empty without any. Reads no other run."""
    runs = [run for run in all_runs(root, config.row_folder)
            if (run.config.train_images, run.config.test_images) == (config.train_images, config.test_images)]
    return sorted(runs, key=lambda run: run.config.seed)


def table_runs(model: str, techniques: Iterable[str] = (), recipe: str | None = None,
               epochs: int | None = None, root: Path | None = None) -> list[RunRecord]:
    """The recorded runs of a row of the paper's tables, seed by seed; empty without any.

    epochs: for runs of another length than the recipe's.
    """
    return runs_of_row(table_run(model, techniques=techniques, recipe=recipe, epochs=epochs), root)


def rows_of_model(model: str, recipe: str | None = None,
                  root: Path | None = None) -> dict[tuple[str, ...], list[RunRecord]]:
    """The recorded runs of a model by a recipe, on all images, seed by seed, by techniques."""
    rows: dict[tuple[str, ...], list[RunRecord]] = {}
    dataset = dataset_of(model)
    for run in all_runs(root, f"{dataset}/{model}/{recipe_of(recipe, dataset).name}"):
        if run.config.whole:
            rows.setdefault(run.config.techniques, []).append(run)
    return {techniques: sorted(runs, key=lambda run: run.config.seed) for techniques, runs in rows.items()}
