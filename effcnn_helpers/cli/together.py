"""Train runs one after another, each by all the processes that a launcher started: several share every batch.

    composer -n 2 -m effcnn_helpers together 1.5k-dw

Each process takes its share of a batch, and all step by the mean of their gradients. The first one leads: it looks
for records, says which run comes next, measures its network on all test images and records it. The others follow.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import nn

from .. import settings
from ..datasets import ImageDataset, load_images
from ..errors import EffcnnError
from ..recipes import RunConfig
from ..records import RunRecord
from ..training import last_whole_checkpoint, train
from .recording import train_or_load, unfinished_dir
from .sweep import asked_for

WAIT_SECONDS = 900  # for the others, one of which may download the data

images_of = cache(load_images)


def together(selections: list[str], seeds: list[int], threads: int, profile: str, out: Path | None,
             recipe: str | None = None) -> int:
    """Train the selected runs that are not recorded yet. Raises EffcnnError at the first that fails: the launcher then
    ends all processes, and the same command goes on."""
    rank, processes = settings.place()
    settings.refuse_leftover_launcher(processes)
    root, configs = asked_for(selections, seeds, profile, out, recipe)
    configs = [replace(config, recipe=replace(config.recipe, processes=processes)) for config in configs]
    with settings.signal_handlers_kept():
        from composer.utils import dist
    if processes > 1:
        dist.initialize_dist("gpu" if torch.cuda.is_available() else "cpu", WAIT_SECONDS)

    def announced(config: RunConfig, dataset: ImageDataset, checkpoints: Path,
                  **options) -> tuple[RunRecord, nn.Module]:
        dist.broadcast_object_list([(config, *state(dataset, checkpoints))])
        return train(config, dataset, checkpoints, **options)

    if rank == 0:
        for config in configs:
            record = train_or_load(config, images_of(config.dataset, download=config.whole), root, wait=False,
                                   by=announced, progress=False, threads=threads, on_epoch=report)
            print(f"{config.name}  recorded: {record.accuracy_percent:.2f} %", flush=True)
        dist.broadcast_object_list([None])
        return 0
    while True:
        told: list = [None]
        dist.broadcast_object_list(told)
        if told[0] is None:
            return 0
        config, *leaders = told[0]
        dataset = images_of(config.dataset, download=config.whole)
        checkpoints = unfinished_dir(config, dataset.sha256)
        if state(dataset, checkpoints) != leaders:
            raise EffcnnError(f"process {rank} starts from {state(dataset, checkpoints)} (data, checkpoint) and the "
                              f"first one from {leaders}; let EFFCNN_DATA_DIR and EFFCNN_CACHE_DIR name shared folders")
        train(config, dataset, checkpoints, progress=False, threads=threads)


def state(dataset: ImageDataset, checkpoints: Path) -> list[str]:
    """What all processes of a run must have in common when it starts."""
    checkpoint = last_whole_checkpoint(checkpoints)
    return [dataset.sha256, checkpoint.name if checkpoint else "none"]


def report(rows: list[dict]) -> None:
    """A line for the last epoch."""
    print(f"epoch {len(rows)}  loss {rows[-1]['train_loss']:.4f}  accuracy {rows[-1]['test_accuracy_percent']:.2f} %  "
          f"{rows[-1]['seconds']:.0f} s", flush=True)
