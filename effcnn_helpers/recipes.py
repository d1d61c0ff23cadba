"""What a run is: its configuration, the recipe of each dataset, the profiles, the runs behind each table."""

import os
from dataclasses import dataclass, replace

from .data import ImageDataset
from .models import MODELS, dataset_of

# Counts up whenever a dataset's recipe changes; runs of another version are not mixed into a table.
RECIPE_VERSION = {"mnist": 1, "cifar10": 1}


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a training run's result, except the machine and the library versions.

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
    learning_rate: float = 0.1       # constant
    train_images: int | None = None
    test_images: int | None = None
    evaluate_on: str = "test"
    profile: str = "full"

    def __post_init__(self):
        dataset_of(self.model)
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
        """The run's folder: "mnist/1.5k-dw/baseline/seed0"; validation runs name what they try, too."""
        folder = f"{self.dataset}/{self.model}/baseline/seed{self.seed}"
        if self.evaluate_on == "validation":
            return f"validation/{folder}/{self.optimizer}-{self.learning_rate:g}-{self.epochs}ep"
        return folder


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
    "smoke": Profile("smoke", train_images=256, test_images=200, live_epochs=1),
    "live": Profile("live", train_images=10_000, test_images=2_000, live_epochs=3),
    "full": Profile("full", train_images=None, test_images=None, live_epochs=12),
}

# Optimiser and learning rate were chosen by the validation runs (tables.pilot_table shows them). CIFAR-10 has
# no recipe yet: it needs validation runs of its own first.
RECIPES = {
    "mnist": {"epochs": 12, "batch_size": 128, "optimizer": "sgd", "learning_rate": 0.1, "train_images": 50_000},
}


def current_profile(name: str | None = None) -> Profile:
    """The profile by name or, without one, from $EFFCNN_PROFILE ("live" when unset). Raises ValueError."""
    name = name or os.environ.get("EFFCNN_PROFILE") or "live"
    if name not in PROFILES:
        raise ValueError(f"unknown profile {name!r}; use one of {', '.join(PROFILES)} (argument or EFFCNN_PROFILE)")
    return PROFILES[name]


def table_run(model: str, seed: int = 0) -> RunConfig:
    """A run of the paper's tables: the dataset's recipe for one model and seed. ValueError without a recipe."""
    if dataset_of(model) not in RECIPES:
        raise ValueError(f"{model} has no recipe: there is one for {', '.join(RECIPES)}, none for {dataset_of(model)}")
    return RunConfig(model=model, seed=seed, **RECIPES[dataset_of(model)])


def live_run(model: str, profile: Profile, dataset: ImageDataset, epochs: int | None = None) -> RunConfig:
    """A run small enough to watch: the same recipe on fewer images and epochs.

    At most the profile's images (or as many as the dataset has) and at most the profile's epochs. With the
    full profile it is the run of the table itself.
    """
    if profile.name == "full":
        return table_run(model)
    return replace(table_run(model), profile=profile.name,
                   epochs=min(epochs or profile.live_epochs, profile.live_epochs),
                   train_images=min(profile.train_images, len(dataset.train)),
                   test_images=min(profile.test_images, len(dataset.test)))


def pilot_runs() -> list[RunConfig]:
    """The validation runs that the MNIST recipe's optimiser and learning rate were chosen by.

    Eight choices for half of the recipe's epochs, then the two best of them for all.
    """
    wide = [("sgd", 0.01), ("sgd", 0.03), ("sgd", 0.1), ("sgd", 0.3), ("sgd", 1.0),
            ("adam", 0.001), ("adam", 0.003), ("adam", 0.01)]
    narrow = [("sgd", 0.1), ("sgd", 0.3)]
    return [
        replace(table_run(model), optimizer=optimizer, learning_rate=learning_rate, epochs=epochs,
                train_images=None, evaluate_on="validation")
        for choices, epochs in ((wide, 6), (narrow, 12))
        for model in ("25k", "1.5k-dw") for optimizer, learning_rate in choices
    ]


def select(selection: str, seeds: list[int]) -> list[RunConfig]:
    """The runs that a selection names, each seed of one model before the next seed.

    selection: "mnist" (the six models of Table 3), one model such as "1.5k-dw", or "pilot".
    Raises ValueError, listing the selections, for anything else.
    """
    if selection == "pilot":
        return pilot_runs()
    if selection == "mnist":
        models = list(MODELS["mnist"])
    elif any(selection in MODELS[dataset] for dataset in RECIPES):
        models = [selection]
    else:
        known = ", ".join(["mnist", "pilot", *(name for dataset in RECIPES for name in MODELS[dataset])])
        raise ValueError(f"unknown selection {selection!r}; use one of {known}")
    return [table_run(model, seed) for seed in seeds for model in models]
