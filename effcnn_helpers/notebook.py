"""What every notebook does in the same way: its start, its exercises, its headline."""

import hashlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch

from . import plots
from .complete_install import version
from .datasets import ImageDataset, load_images
from .errors import EffcnnError
from .machine import cpu_name, prepare
from .recipes import Profile, current_profile
from .records import RunRecord

PACKAGE = Path(__file__).parent


def start(dataset: str, profile: str | None = None) -> tuple[Profile, ImageDataset]:
    """Set a notebook up: plotting style, seed, allocator, profile, data; say what there is.

    Raises EffcnnError for an unknown profile or dataset, for damaged data, and when the full
    profile lacks the real data.
    """
    chosen = current_profile(profile)
    draw_inline()
    plots.use_style()
    torch.manual_seed(0)
    prepare()
    images = load_images(dataset, download=chosen.name != "smoke")
    if chosen.train_images is None and not images.real:
        raise EffcnnError(f"the profile {chosen.name} needs the real {dataset}, and the data at "
                          f"hand is: {images.source}; set EFFCNN_DATA_DIR to a folder with "
                          f"{dataset}.npz, or EFFCNN_PROFILE to live")
    packages = ("torch", "torchvision", "mosaicml")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{cpu_name()}, no GPU"
    threads = torch.get_num_threads()
    amount = "all" if chosen.train_images is None else f"up to {chosen.train_images:,}"
    print(f"profile   {chosen.name} ({amount} training images)")
    print(f"data      {images.source}: {len(images.train):,} training and "
          f"{len(images.test):,} test images")
    print(f"machine   {device}, {threads} thread{'s' if threads > 1 else ''}")
    print(f"versions  effcnn {version()}, python {platform.python_version()}, "
          f"{', '.join(versions)}")
    other = other_checkout()
    if other:
        print(f"NOTE      effcnn_helpers comes from {PACKAGE}, not from this notebook's {other}: "
              "they may not fit. Restart the kernel, then begin with "
              f"sys.path.insert(0, {str(other.parent)!r})")
    if not images.real:
        print(f"NOTE      this is not the real {dataset}: accuracies measured live cannot be held "
              "against the paper's")
    return chosen, images


def draw_inline() -> None:
    """Let a kernel draw into its notebook, also where MPLBACKEND from the shell says otherwise."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    asked_for = os.environ.get("MPLBACKEND", "").lower()
    if hasattr(shell, "kernel") and matplotlib.get_backend().lower() == asked_for:
        shell.run_line_magic("matplotlib", "inline")


def other_checkout() -> Path | None:
    """The package in the checkout around the current folder, when another one is imported."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        package = folder / "effcnn_helpers"
        if (package / "__init__.py").is_file():
            return None if package.samefile(PACKAGE) else package
    return None


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
    """Check an answer against (test, hint) pairs, in order; the first that fails gives its hint.

    A test is a function of the answer that returns true when it is right. `...` counts as not
    answered.
    """
    if answer is ...:
        return Check(False, "Not answered yet: replace the dots, then run the cell again.")
    for test, hint in tests:
        try:
            passed = bool(test(answer))
        except Exception as error:  # whatever a learner's answer does, it should end in a hint
            problem = f"{type(error).__name__}: {error}"
            return Check(False, f"Not yet: trying your answer gave {problem}\nHint: {hint}")
        if not passed:
            return Check(False, f"Not yet. Hint: {hint}")
    return Check(True, "Correct.")


def digest(answer) -> str:
    """A short fingerprint of an answer, so that a check need not show it.

    Numbers count to three decimals, texts without case, sets and lists by their members.
    """
    if isinstance(answer, (set, frozenset, list, tuple)):
        members = [digest(member) for member in answer]
        text = " ".join(members if isinstance(answer, (list, tuple)) else sorted(members))
    elif isinstance(answer, str):
        text = answer.strip().casefold()
    else:
        text = f"{float(answer):.3f}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def fits(*digests: str) -> Callable:
    """A test for `check`: whether an answer has one of these fingerprints (see `digest`)."""
    return lambda answer: digest(answer) in digests


def tell(run: RunRecord) -> None:
    """Print what a live run was and where it got to; without a rest at its end, with fresh statistics, too."""
    config = run.config
    epochs = f"{config.epochs} epoch{'s' if config.epochs > 1 else ''}"
    images = "all" if config.train_images is None else f"{config.train_images:,}"
    fresh = "" if config.comes_to_rest else f", {run.fresh_percent:.1f} % with fresh statistics"
    print(f"{plots.name_of(config)}: {epochs} on {images} images in {run.train_seconds:.0f} s: "
          f"{run.accuracy_percent:.1f} % of {run.total:,} test images{fresh}")


def headline(text: str) -> None:
    """Print a notebook's main result; the command `run` shows it beside the notebook's name."""
    print(f"Headline: {text}")
