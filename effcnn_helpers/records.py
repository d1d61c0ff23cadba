"""Recorded runs: a folder each, with `run.json` and `weights.safetensors`, written whole or not at all."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import filelock
import safetensors
import safetensors.torch
from torch import nn

from .data import DataError, ImageDataset, cache_dir, load_images
from .models import dataset_of
from .recipes import RECIPE_VERSION, RECIPES, RunConfig, config_from
from .techniques import in_order
from .training import SCHEMA_VERSION, RunRecord, build_network, contiguous_state, train

WRITING = ".writing-"  # begins the names of folders that are not whole yet


class RecordError(ValueError):
    """A recorded run that is missing, damaged, or not the run that was asked for."""


class RunBusyError(RuntimeError):
    """Another process is training this very run."""


def recorded_dir() -> Path:
    """Where recorded runs are: $EFFCNN_RECORDED_DIR or the package's own folder."""
    return Path(os.environ.get("EFFCNN_RECORDED_DIR") or Path(__file__).parent / "recorded")


def record_to_json(record: RunRecord) -> str:
    """A record as it is written; each epoch takes a line, as does the list of misclassified images."""
    fields = asdict(record)
    fields[record.config.evaluate_on] = {"correct": fields.pop("correct"), "total": fields.pop("total")}
    rows = ",\n".join("  " + json.dumps(row) for row in fields.pop("epochs"))
    wrong = " ".join(f"{index}:{taken}" for index, taken in fields.pop("misclassified").items())
    return f'{json.dumps(fields, indent=1)[:-2]},\n "epochs": [\n{rows}\n ],\n "misclassified": "{wrong}"\n}}\n'


def record_from_json(text: str) -> RunRecord:
    """The record that `record_to_json` wrote. Raises RecordError when the text is something else."""
    try:
        fields = json.loads(text)
        if fields["schema_version"] != SCHEMA_VERSION:
            raise RecordError(f"schema_version is {fields['schema_version']}, this code reads {SCHEMA_VERSION}")
        fields["config"] = config_from(fields["config"])
        fields.update(fields.pop(fields["config"].evaluate_on))
        pairs = (pair.split(":") for pair in fields["misclassified"].split())
        fields["misclassified"] = {int(index): int(taken) for index, taken in pairs}
        record = RunRecord(**fields)
        if record.total - record.correct != len(record.misclassified):
            raise RecordError(f"{record.correct} of {record.total} correct, but {len(record.misclassified)} images "
                              "are listed as misclassified")
        beyond = [index for index in record.misclassified if not 0 <= index < record.total]
        if beyond:
            raise RecordError(f"image {beyond[0]} is listed as misclassified, but there are {record.total}")
        if len(record.epochs) != record.config.epochs:
            raise RecordError(f"{len(record.epochs)} epochs are listed, the configuration has {record.config.epochs}")
    except RecordError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecordError(f"not a recorded run ({type(error).__name__}: {error})") from error
    return record


def write_run(record: RunRecord, network: nn.Module, root: Path | None = None) -> Path:
    """Write a run's folder under `root` in one move. When it is there already, the first one stays."""
    folder = (root or recorded_dir()) / record.config.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=WRITING) as temporary:
        whole = Path(temporary) / folder.name
        whole.mkdir()
        (whole / "run.json").write_text(record_to_json(record), encoding="utf-8")
        safetensors.torch.save_file(contiguous_state(network), whole / "weights.safetensors")
        with contextlib.suppress(OSError):
            whole.rename(folder)
    if not folder.is_dir():
        raise RecordError(f"{folder} could not be written; check that its parent folder is writable")
    return folder


def read_run(folder: Path) -> RunRecord:
    """The record in a run's folder. Raises RecordError, naming the file, when it is missing or damaged."""
    path = Path(folder) / "run.json"
    try:
        return record_from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecordError) as error:
        raise RecordError(f"{path}: {error}; delete the folder and train the run again with "
                          "`python -m effcnn_helpers sweep`") from error


def read_network(record: RunRecord, root: Path | None = None) -> nn.Module:
    """The trained network of a recorded run, in evaluation mode. Raises RecordError for damaged weights."""
    path = (root or recorded_dir()) / record.config.name / "weights.safetensors"
    network = build_network(record.config)
    try:
        network.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise RecordError(f"{path} does not hold the weights of {record.config.model}: {error}; delete the run's "
                          "folder and train it again with `python -m effcnn_helpers sweep`") from error
    return network.eval()


def all_runs(root: Path | None = None) -> Iterator[RunRecord]:
    """Every recorded run, in the order of folder names. Raises RecordError at a damaged one."""
    for path in sorted((root or recorded_dir()).rglob("run.json")):
        if WRITING in str(path):
            continue  # left by a process that was killed while it wrote
        record = read_run(path.parent)
        if (root or recorded_dir()) / record.config.name != path.parent:
            raise RecordError(f"{path} is the record of {record.config.name}; move it there")
        yield record


def table_runs(model: str, techniques: Iterable[str] = (), root: Path | None = None,
               epochs: int | None = None) -> list[RunRecord]:
    """The recorded runs of a model with these techniques by the current recipe, seed by seed; empty without any.

    epochs: for runs of another length than the recipe's.
    """
    epochs = epochs or RECIPES[dataset_of(model)]["epochs"]
    return [run for run in all_runs(root)
            if run.config.model == model and run.config.techniques == in_order(techniques)
            and run.config.epochs == epochs
            and run.config.evaluate_on == "test"
            and run.config.profile == "full" and run.recipe_version == RECIPE_VERSION[run.config.dataset]]


def unfinished_dir(config: RunConfig, dataset: ImageDataset) -> Path:
    """Where a run's checkpoints lie until it ends: one folder for each configuration, data and recipe."""
    whole = json.dumps([asdict(config), dataset.sha256, RECIPE_VERSION[config.dataset]])
    return cache_dir() / "unfinished" / config.name / hashlib.sha256(whole.encode()).hexdigest()[:12]


def train_or_load(config: RunConfig, dataset: ImageDataset | None = None, root: Path | None = None,
                  wait: bool = True, **options) -> RunRecord:
    """The recorded run of a configuration; when there is none, train it (resuming where it stopped), record it.

    dataset: loaded when needed. wait: for another process that trains this very run, else raise RunBusyError.
    options: progress, threads, on_epoch of `training.train`.
    Raises RecordError when the run recorded under this name has another configuration or recipe, DataError
    when a run of the full profile would be recorded on anything but the real data.
    """
    folder = (root or recorded_dir()) / config.name
    if folder.exists():
        return _checked(read_run(folder), config, folder)
    dataset = dataset or load_images(config.dataset, download=config.profile != "smoke")
    if config.profile == "full" and not dataset.real:
        raise DataError(f"runs of the full profile are recorded on the real {config.dataset} only, and the data at "
                        f"hand is: {dataset.source}; set EFFCNN_DATA_DIR to a folder with {config.dataset}.npz")
    unfinished = unfinished_dir(config, dataset)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(f"{unfinished}.lock", blocking=wait):
            if not folder.exists():
                record, network = train(config, dataset, checkpoints=unfinished, **options)
                write_run(record, network, root)
                shutil.rmtree(unfinished, ignore_errors=True)
    except filelock.Timeout as error:
        raise RunBusyError(f"{config.name} is being trained by another process") from error
    return _checked(read_run(folder), config, folder)


def _checked(record: RunRecord, config: RunConfig, folder: Path) -> RunRecord:
    found, asked = asdict(record.config), asdict(config)
    found["recipe_version"], asked["recipe_version"] = record.recipe_version, RECIPE_VERSION[config.dataset]
    differing = [f"{key}: {found[key]!r} there, {asked[key]!r} asked for" for key in asked if found[key] != asked[key]]
    if differing:
        raise RecordError(f"{folder} holds another run ({'; '.join(differing)}); move it away or ask for that run")
    return record
