"""What a run is: its configuration, the recipe of each dataset, the profiles."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .data import ImageDataset
from .models import dataset_of
from .techniques import check_techniques, in_order

# Counts up whenever a dataset's recipe changes; runs of another version are not mixed into a table.
RECIPE_VERSION = {"mnist": 1, "cifar10": 1}


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a training run's result, except the machine and the library versions.

    techniques: names from techniques.TECHNIQUES, in the order in which they stand there; none: the baseline.
    train_images: how many training images to use, from the start (None: all of the split).
    test_images: likewise for the images that accuracy is measured on.
    evaluate_on: "test", or "validation" for choosing hyperparameters on held-out training images.
    Raises ValueError, naming the field, for a value that cannot be trained with.
    """

    model: str
    seed: int = 0
    epochs: int = 1
    batch_size: int = 128
    optimizer: str = "sgd"           # "sgd" (momentum 0.9) or "adam"; no weight decay
    learning_rate: float = 0.1       # constant; with one_cycle_lr the highest
    train_images: int | None = None
    test_images: int | None = None
    evaluate_on: str = "test"
    profile: str = "full"
    techniques: tuple[str, ...] = ()

    def __post_init__(self):
        dataset_of(self.model)
        check_techniques(self.techniques)
        problems = {
            "seed": None if self.seed >= 0 else "0 or more",
            "epochs": None if self.epochs >= 1 else "1 or more",
            "batch_size": None if self.batch_size >= 2 else "2 or more (BatchNorm needs two images)",
            "optimizer": None if self.optimizer in ("sgd", "adam") else '"sgd" or "adam"',
            "learning_rate": None if 0 < self.learning_rate < float("inf") else "a number above 0",
            "train_images": None if self.train_images is None or self.train_images >= 2 else "2 or more",
            "test_images": None if self.test_images is None or self.test_images >= 1 else "1 or more",
            "evaluate_on": None if self.evaluate_on in ("test", "validation") else '"test" or "validation"',
            "profile": None if self.profile in PROFILES else f"one of {', '.join(PROFILES)}",
        }
        for field, expected in problems.items():
            if expected:
                raise ValueError(f"RunConfig.{field} is {getattr(self, field)!r}; use {expected}")

    @property
    def dataset(self) -> str:
        return dataset_of(self.model)

    @property
    def name(self) -> str:
        """The run's folder among the recorded ones, say "mnist/1.5k-dw/baseline/seed0".

        A run of another length than its recipe's says so ("baseline-60ep"), a validation run names what it tries.
        """
        row = "+".join(self.techniques) or "baseline"
        if self.profile == "full" and self.evaluate_on == "test" and self.epochs != RECIPES[self.dataset]["epochs"]:
            row += f"-{self.epochs}ep"
        folder = f"{self.dataset}/{self.model}/{row}/seed{self.seed}"
        if self.evaluate_on == "validation":
            return f"validation/{folder}/{self.optimizer}-{self.learning_rate:g}-{self.epochs}ep"
        return folder


def config_from(fields: dict) -> RunConfig:
    """The configuration that `dataclasses.asdict` and JSON made into `fields`. Raises TypeError or ValueError."""
    return RunConfig(**{**fields, "techniques": tuple(fields.get("techniques", ()))})


@dataclass(frozen=True)
class Profile:
    """How much of a run a notebook does itself.

    train_images, test_images: None means all of them. live_epochs: per model trained in front of the learner.
    """

    name: str
    train_images: int | None
    test_images: int | None
    live_epochs: int


PROFILES = {
    "smoke": Profile("smoke", train_images=384, test_images=200, live_epochs=1),
    "live": Profile("live", train_images=10_000, test_images=2_000, live_epochs=3),
    "full": Profile("full", train_images=None, test_images=None, live_epochs=12),
}

# Optimiser and learning rate were chosen by validation runs (cli/selections.py names them, tables.pilot_table
# shows them).
RECIPES = {
    "mnist": {"epochs": 12, "batch_size": 128, "optimizer": "sgd", "learning_rate": 0.1, "train_images": 50_000},
    "cifar10": {"epochs": 20, "batch_size": 128, "optimizer": "sgd", "learning_rate": 0.1, "train_images": 50_000},
}
# The models that Tables 4 and 5 add techniques to.
TECHNIQUE_MODELS = {"mnist": "1.5k-dw", "cifar10": "143k-dw"}


def current_profile(name: str | None = None) -> Profile:
    """The profile by name or, without one, from $EFFCNN_PROFILE ("live" when unset). Raises ValueError."""
    name = name or os.environ.get("EFFCNN_PROFILE") or "live"
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; use one of {', '.join(PROFILES)} (argument or EFFCNN_PROFILE)")
    return PROFILES[name]


def table_run(model: str, seed: int = 0, techniques: Iterable[str] = ()) -> RunConfig:
    """A run of the paper's tables: the dataset's recipe for one model and seed, plus techniques in any order."""
    return RunConfig(model=model, seed=seed, techniques=in_order(techniques), **RECIPES[dataset_of(model)])


def live_run(model: str, profile: Profile, dataset: ImageDataset, epochs: int | None = None,
             techniques: Iterable[str] = ()) -> RunConfig:
    """A run small enough to watch: the same recipe on fewer images and epochs.

    At most the profile's images (or as many as the dataset has) and at most the profile's epochs. With the
    full profile it is the run of the table itself.
    """
    whole = table_run(model, techniques=techniques)
    if profile.name == "full":
        return whole
    return replace(whole, profile=profile.name,
                   epochs=min(epochs or profile.live_epochs, profile.live_epochs),
                   train_images=min(profile.train_images, len(dataset.train)),
                   test_images=min(profile.test_images, len(dataset.test)))
