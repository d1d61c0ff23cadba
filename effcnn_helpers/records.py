"""Recorded runs: a folder each, with `run.json` and `weights.safetensors`. `cli/recording.py` writes them."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import safetensors
import safetensors.torch
from torch import nn

from .models import dataset_of
from .recipes import RECIPE_VERSION, RECIPES, config_from
from .techniques import in_order
from .training import SCHEMA_VERSION, RunRecord, build_network

WRITING = ".writing-"  # begins the names of folders that are not whole yet


class RecordError(ValueError):
    """A recorded run that is missing, damaged, or not the run that was asked for."""


def recorded_dir() -> Path:
    """Where recorded runs are: $EFFCNN_RECORDED_DIR or the package's own folder."""
    return Path(os.environ.get("EFFCNN_RECORDED_DIR") or Path(__file__).parent / "recorded")


def record_to_json(record: RunRecord) -> str:
    """A record as it is written; each epoch takes a line, as does the list of misclassified images."""
    fields = asdict(record)
    fields[record.config.evaluate_on] = {name: fields.pop(name) for name in ("correct", "fresh_correct", "total")}
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
        if record.fresh_correct is not None and not 0 <= record.fresh_correct <= record.total:
            raise RecordError(f"fresh_correct is {record.fresh_correct} of {record.total}")
        if len(record.epochs) != record.config.epochs:
            raise RecordError(f"{len(record.epochs)} epochs are listed, the configuration has {record.config.epochs}")
    except RecordError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecordError(f"not a recorded run ({type(error).__name__}: {error})") from error
    return record


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


def table_runs(model: str, techniques: Iterable[str] = (), root: Path | None = None,
               epochs: int | None = None) -> list[RunRecord]:
    """The recorded runs of a model with these techniques by the current recipe, seed by seed; empty without any.

    epochs: for runs of another length than the recipe's.
    """
    return table_rows(dataset_of(model), root, epochs, model).get((model, in_order(techniques)), [])


def table_rows(dataset: str, root: Path | None = None, epochs: int | None = None,
               model: str = "") -> dict[tuple[str, tuple[str, ...]], list[RunRecord]]:
    """The recorded runs of a dataset (and model) by the current recipe, seed by seed, by (model, techniques)."""
    epochs = epochs or RECIPES[dataset]["epochs"]
    rows: dict[tuple[str, tuple[str, ...]], list[RunRecord]] = {}
    for run in all_runs(root, f"{dataset}/{model}"):
        config = run.config
        if (config.epochs, config.evaluate_on, config.profile) == (epochs, "test", "full") \
                and run.recipe_version == RECIPE_VERSION[dataset]:
            rows.setdefault((config.model, config.techniques), []).append(run)
    return rows
