"""What every notebook does in the same way: its start, its exercises, its headline."""

import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import plots
from .data import ImageDataset, load_images
from .machine import cpu_name, tune_allocator
from .recipes import Profile, current_profile
from .training import RunRecord


def start(dataset: str, profile: str | None = None) -> tuple[Profile, ImageDataset]:
    """Set a notebook up: plotting style, seed, allocator, profile, data; say what there is.

    Raises ValueError for an unknown profile or dataset, DataError for damaged data.
    """
    chosen = current_profile(profile)
    plots.use_style()
    torch.manual_seed(0)
    tune_allocator()
    images = load_images(dataset, download=chosen.name != "smoke")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchvision", "mosaicml")]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{cpu_name()}, no GPU"
    print(f"profile   {chosen.name} ({'all' if chosen.train_images is None else f'up to {chosen.train_images:,}'} "
          "training images)")
    print(f"data      {images.source}: {len(images.train):,} training and {len(images.test):,} test images")
    print(f"machine   {device}, {torch.get_num_threads()} threads")
    print(f"versions  python {platform.python_version()}, {', '.join(versions)}")
    if not images.real:
        print(f"NOTE      this is not the real {dataset}: accuracies measured live cannot be held against the paper's")
    return chosen, images


@dataclass(frozen=True)
class Check:
    """The outcome of an exercise: true when solved; shown as its message."""

    solved: bool
    message: str

    def __bool__(self) -> bool:
        return self.solved

    def __repr__(self) -> str:
        return self.message


def check(answer, *tests: tuple[Callable, str]) -> Check:
    """Check an answer against (test, hint) pairs, in order; the first test that fails gives its hint.

    A test is a function of the answer that returns true when it is right. `...` counts as not answered.
    """
    if answer is ...:
        return Check(False, "Not answered yet: replace the dots, then run the cell again.")
    for test, hint in tests:
        try:
            passed = bool(test(answer))
        except Exception as error:  # whatever a learner's answer does, it should end in a hint
            return Check(False, f"Not yet: trying your answer gave {type(error).__name__}: {error}\nHint: {hint}")
        if not passed:
            return Check(False, f"Not yet. Hint: {hint}")
    return Check(True, "Correct.")


def tell(run: RunRecord) -> None:
    """Print what a live run was and where it got to, in one line."""
    config = run.config
    epochs = f"{config.epochs} epoch{'s' if config.epochs > 1 else ''}"
    print(f"{plots.label_of(config.model)}: {epochs} on {config.train_images:,} images in {run.train_seconds:.0f} s: "
          f"{run.accuracy_percent:.1f} % of {run.total:,} test images")


def headline(text: str) -> None:
    """Print a notebook's main result; `python -m effcnn_helpers run` shows it beside the notebook's name."""
    print(f"Headline: {text}")
