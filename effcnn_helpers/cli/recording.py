"""Train a run and record it, once: from what is recorded or half trained already, whole or not at all."""

import contextlib
import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import filelock
import safetensors.torch
from torch import nn

from ..data import DataError, ImageDataset, cache_dir, load_images
from ..recipes import RECIPE_VERSION, RunConfig
from ..records import WRITING, RecordError, read_run, record_to_json, recorded_dir
from ..training import RunRecord, contiguous_state, fresh_correct, train


class RunBusyError(RuntimeError):
    """Another process is training this very run."""


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
        return checked(read_run(folder), config, folder)
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
                write_run(replace(record, fresh_correct=fresh_correct(network, config, dataset)), network, root)
                shutil.rmtree(unfinished, ignore_errors=True)
    except filelock.Timeout as error:
        raise RunBusyError(f"{config.name} is being trained by another process") from error
    return checked(read_run(folder), config, folder)


def checked(record: RunRecord, config: RunConfig, folder: Path) -> RunRecord:
    """The record, if it is of this configuration and the current recipe. Raises RecordError, naming what differs."""
    found, asked = asdict(record.config), asdict(config)
    found["recipe_version"], asked["recipe_version"] = record.recipe_version, RECIPE_VERSION[config.dataset]
    differing = [f"{key}: {found[key]!r} there, {asked[key]!r} asked for" for key in asked if found[key] != asked[key]]
    if differing:
        raise RecordError(f"{folder} holds another run ({'; '.join(differing)}); move it away or ask for that run")
    return record


def unfinished_dir(config: RunConfig, dataset: ImageDataset) -> Path:
    """Where a run's checkpoints lie until it ends: one folder for each configuration, data and recipe."""
    whole = json.dumps([asdict(config), dataset.sha256, RECIPE_VERSION[config.dataset]])
    return cache_dir() / "unfinished" / config.name / hashlib.sha256(whole.encode()).hexdigest()[:12]


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
