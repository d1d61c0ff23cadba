"""What each of several processes does that tests/test_together.py starts through Composer's launcher."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from effcnn_helpers.datasets import load_images
from effcnn_helpers.recipes import Recipe, RunConfig
from effcnn_helpers.training import train, train_own

# Batches of 128 in two unequal shares: 300 = 128 + 128 + 44, 101 = 51 + 50.
IMAGES = {"train_images": 300, "test_images": 101}


def without_batchnorm() -> nn.Module:
    """Nothing in it depends on the other images of a batch."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 4, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


def recipe(processes: int) -> Recipe:
    """One that draws random numbers for each image."""
    return Recipe("tiny", epochs=2, augmentation=("crop", "hole"), processes=processes)


def blended(processes: int) -> RunConfig:
    """A run with BatchNorm, whose processes draw random numbers of their own."""
    measured_anew = replace(recipe(processes), fresh_statistics=True)
    return RunConfig("1.5k-dw", "mnist", measured_anew, ("cutout", "blurpool", "mixup"), **IMAGES)


def main(folder: Path) -> None:
    """Train; write what came of it into files of this process."""
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    digits, checkpoints = load_images("mnist"), folder / "checkpoints"
    results = {"plain": train_own(without_batchnorm(), digits, recipe(processes), threads=1, **IMAGES),
               "whole": train(blended(processes), digits, checkpoints, threads=1)}
    torch.distributed.barrier()
    if rank == 0:
        (checkpoints / "ep2.pt").unlink()
    torch.distributed.barrier()
    results["resumed"] = train(blended(processes), digits, checkpoints, threads=1)
    torch.save({name: (record.epochs, record.accuracy_percent, record.resumed, network.state_dict())
                for name, (record, network) in results.items()}, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
