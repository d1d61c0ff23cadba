"""Train a run and record it, once: from what is recorded or half trained already, whole or not at all."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import filelock

from .. import settings
from ..datasets import DataError, ImageDataset, load_images
from ..errors import EffcnnError
from ..recipes import RunConfig, values_of
from ..records import RecordError, RunRecord, read_run, recorded_dir, write_run
from ..training import train


class RunBusyError(EffcnnError):
    """Another process is training this very run."""


def train_or_load(config: RunConfig, dataset: ImageDataset | None = None, root: Path | None = None,
                  wait: bool = True, by: Callable | None = None, **options) -> RunRecord:
    """The recorded run of a configuration; when there is none, train it (resuming where it stopped), record it.

    dataset: loaded when needed. wait: for another process that trains this very run, else raise RunBusyError.
    by: trains it; called as `training.train` is, the default. options: progress, threads, on_epoch of `training.train`.
    Raises RecordError when the run recorded under this name has another configuration, DataError when a run
    of all images would be recorded on anything but the real data, EffcnnError when the disk does not take it.
    """
    folder = (root or recorded_dir()) / config.name
    if folder.exists():
        return checked(read_run(folder), config, folder)
    dataset = dataset or load_images(config.dataset, download=config.whole)
    if config.whole:
        refuse_unreal(dataset, "runs of all images")
    unfinished = unfinished_dir(config, dataset.sha256)
    with settings.writing(unfinished, "make room, or name another folder in EFFCNN_CACHE_DIR; the same command goes "
                                      "on from the run's last epoch"):
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        try:
            with filelock.FileLock(f"{unfinished}.lock", blocking=wait):
                if not folder.exists():
                    record, network = (by or train)(config, dataset, checkpoints=unfinished, **options)
                    write_run(record, network, root)
                    shutil.rmtree(unfinished, ignore_errors=True)
        except filelock.Timeout as error:
            raise RunBusyError(f"{config.name} is being trained by another process") from error
    return checked(read_run(folder), config, folder)


def refuse_unreal(dataset: ImageDataset, what: str) -> None:
    """Raise DataError, saying `what` would be recorded, unless a dataset has its real images."""
    if not dataset.real:
        raise DataError(f"{what} are recorded on the real {dataset.name} only, and the data at hand is: "
                        f"{dataset.source}; set EFFCNN_DATA_DIR to a folder with {dataset.name}.npz")


def checked(record: RunRecord, config: RunConfig, folder: Path) -> RunRecord:
    """The record, if it is of this configuration. Raises RecordError, naming what differs."""
    found, asked = asdict(record.config), asdict(config)
    differing = [f"{key}: {found[key]!r} there, {asked[key]!r} asked for" for key in asked if found[key] != asked[key]]
    if differing:
        raise RecordError(f"{folder} holds another run ({'; '.join(differing)}); move it away or ask for that run")
    return record


def unfinished_dir(config: RunConfig, data_sha256: str) -> Path:
    """Where a run's checkpoints lie until it ends: one folder for each configuration and data."""
    whole = json.dumps([values_of(config), data_sha256])
    return settings.cache_dir() / "unfinished" / config.name / hashlib.sha256(whole.encode()).hexdigest()[:12]
