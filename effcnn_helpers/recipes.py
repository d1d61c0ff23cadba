"""What a run is: how it trains (`Recipe`), everything that decides its result (`RunConfig`), and how much of it a
notebook does itself (`Profile`)."""

import re
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from . import settings
from .batches import AUGMENTATIONS
from .datasets import DATASETS, ImageDataset
from .errors import EffcnnError
from .models import MODELS, model_of
from .techniques import check_techniques, chosen, in_order

# Knobs that came when runs were recorded already.
LATER = ("average", "teacher", "processes", "precision", "fresh_statistics")
OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("constant", "linear")
PRECISIONS = ("float32", "bfloat16")
NAME = "letters, digits, spaces, '.', '_' and '-', the first a letter or digit"


def is_name(value) -> bool:
    """Whether a name can be a part of a run's folder, where / , = and + have meanings of their own."""
    return isinstance(value, str) and re.fullmatch(r"[^\W_][\w .-]*", value) is not None


def is_whole(value, least: int) -> bool:
    """Whether a value is a whole number, no bool, of at least this size."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_share(value, below: float = 1.0) -> bool:
    """Whether a value is a number from 0 to less than `below`, and one that a float can hold."""
    largest = sys.float_info.max
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < below and value <= largest


@dataclass(frozen=True)
class Recipe:
    """Every knob of a training run. One of your own is one more entry in RECIPES.

    version: counts up when an entry changes; runs of another version are not mixed into a table.
    optimizer: "sgd" or "adam". learning_rate: the highest. momentum: of SGD; Adam's first beta.
    weight_decay: on the weights of convolutions and linear layers, not on BatchNorm and biases.
    schedule: "constant", or "linear": falls to 0 over the whole run, step by step.
    rise: share of the steps in which the rate first rises from 0, linearly.
    augmentation: names from batches.AUGMENTATIONS, in order.
    average: half-life, in epochs, of a moving average of the weights, which is evaluated and kept; 0: none.
    teacher: a model whose answers are learned from, too (see callbacks.Student): its recorded run of seed 0, trained
        otherwise alike; "": none.
    processes: how many share each batch (see cli/together.py). BatchNorm normalises each share by itself.
    precision: of what passes through the network in training: "float32", or "bfloat16", which keeps 8 bits of
        float32's 24 and all of its range (weights, their updates and every evaluation stay float32). Nearly twice as
        fast on processors with AMX, on others slower.
    fresh_statistics: whether BatchNorm's statistics are measured anew after the last epoch, over the training images
        without augmentation, as the network is going to see images (Wu and Johnson, 2021).
    Raises EffcnnError, naming the field, for a value that cannot be trained with.
    """

    name: str
    epochs: int
    version: int = 1
    batch_size: int = 128
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    rise: float = 0.0
    augmentation: tuple[str, ...] = ()
    average: float = 0.0
    teacher: str = ""
    processes: int = 1
    precision: str = "float32"
    fresh_statistics: bool = False

    def __post_init__(self):
        known = isinstance(self.augmentation, tuple) and all(name in [*AUGMENTATIONS] for name in self.augmentation)
        problems = {
            "name": None if is_name(self.name) else NAME,
            "epochs": None if is_whole(self.epochs, 1) else "a whole number of 1 or more",
            "version": None if is_whole(self.version, 1) else "a whole number of 1 or more",
            "batch_size": None if is_whole(self.batch_size, 2) else "2 or more (BatchNorm needs two images)",
            "optimizer": None if self.optimizer in OPTIMIZERS else " or ".join(OPTIMIZERS),
            "learning_rate": None if is_share(self.learning_rate, float("inf")) and self.learning_rate > 0
            else "a number above 0",
            "momentum": None if is_share(self.momentum) else "a number from 0 to less than 1",
            "weight_decay": None if is_share(self.weight_decay, float("inf")) else "0 or a number above it",
            "schedule": None if self.schedule in SCHEDULES else " or ".join(SCHEDULES),
            "rise": None if is_share(self.rise) else "a share from 0 to less than 1",
            "augmentation": None if known else f"a tuple of names from {', '.join(AUGMENTATIONS)}",
            "average": None if is_share(self.average, float("inf")) else "0 or a number of epochs",
            "teacher": None if self.teacher in ["", *MODELS] else f'"" or one of {", ".join(MODELS)}',
            "processes": None if is_whole(self.processes, 1) and not (
                is_whole(self.batch_size, 2) and self.batch_size < 2 * self.processes)
            else "1 or more, with two images of a batch or more for each",
            "precision": None if self.precision in PRECISIONS else " or ".join(PRECISIONS),
            "fresh_statistics": None if isinstance(self.fresh_statistics, bool) else "True or False",
        }
        refuse("Recipe", self, problems)
        # 1 and 1.0 are one recipe, one folder.
        for field in ("learning_rate", "momentum", "weight_decay", "rise", "average"):
            object.__setattr__(self, field, float(getattr(self, field)))

    @property
    def comes_to_rest(self) -> bool:
        """Whether a run ends with a rate of almost 0. At a constant rate it stops somewhere in a zigzag."""
        return self.schedule != "constant"

    def optimizer_for(self, network: nn.Module) -> torch.optim.Optimizer:
        """torch's optimizer over the network's parameters, with this recipe's rate, momentum and decay."""
        decayed, others = [], []
        for parameter in network.parameters():
            (decayed if self.weight_decay and parameter.ndim > 1 else others).append(parameter)
        groups: list[dict] = [{"params": decayed, "weight_decay": self.weight_decay}, {"params": others}]
        groups = [group for group in groups if group["params"]]
        if self.optimizer == "adam":
            return torch.optim.Adam(groups, lr=self.learning_rate, betas=(self.momentum, 0.999))
        return torch.optim.SGD(groups, lr=self.learning_rate, momentum=self.momentum)

    def factor(self, progress: float, falls_to: float = 0.0, falls_until: float = 1.0) -> float:
        """The rate as a share of the highest, at a share of the run's steps (0 to 1).

        falls_to, falls_until: where a falling rate ends, and after which share of the steps.
        """
        if progress < self.rise:
            return progress / self.rise
        if self.schedule == "constant":
            return 1.0
        left = max(0.0, (falls_until - progress) / (falls_until - self.rise))
        return falls_to + (1 - falls_to) * left

    def scheduler(self, optimizer: torch.optim.Optimizer, steps: int, falls_to: float = 0.0,
                  falls_until: float = 1.0) -> LambdaLR:
        """torch's scheduler of this recipe over so many batches, to be stepped after every batch."""
        return LambdaLR(optimizer, lambda step: self.factor((step + 0.5) / steps, falls_to, falls_until))


def refuse(kind: str, entry, problems: dict[str, str | None]) -> None:
    """Raise EffcnnError for the first field with a problem; problems: field -> what was expected, or None."""
    for field, expected in problems.items():
        if expected:
            raise EffcnnError(f"{kind}.{field} is {getattr(entry, field)!r}; use {expected}")


# By name and dataset, chosen by validation runs (cli/selections.py names them, tables.pilot_table shows those that are
# recorded: the runs behind "settled").
# "constant": the plain recipe of the first measurement, which stops in a zigzag. "settled": its rate falls to 0, so
# that a run comes to rest; the best in the mean over rows without and with techniques, though within noise.
RECIPES = {(recipe.name, dataset): recipe for dataset, recipe in (
    ("mnist", Recipe("constant", epochs=12)),
    ("cifar10", Recipe("constant", epochs=20)),
    ("mnist", Recipe("settled", epochs=20, learning_rate=0.3, weight_decay=1e-4, schedule="linear", rise=0.2)),
    ("cifar10", Recipe("settled", epochs=20, learning_rate=0.3, weight_decay=5e-4, schedule="linear", rise=0.2)),
)}
USUAL = "settled"  # the recipe of the paper's tables, and of what a notebook trains itself


def recipe_of(name: str | None, dataset: str) -> Recipe:
    """The recipe of this name for a dataset, None: that of the tables.

    Raises EffcnnError, listing the recipes, for an unknown one.
    """
    if name is None:
        name = USUAL
    if not (isinstance(name, str) and isinstance(dataset, str) and (name, dataset) in RECIPES):
        known = ", ".join(f"{known} ({of})" for known, of in RECIPES)
        raise EffcnnError(f"no recipe {name!r} for {dataset}; the recipes are {known}")
    return RECIPES[name, dataset]


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a training run's result, except the machine and the library versions.

    model: a name from models.MODELS, or that of a network of your own (see training.train).
    techniques: names from techniques.TECHNIQUES, in the order in which they stand there; none: the baseline.
    train_images: how many training images to use, from the start (None: all of the split).
    test_images: likewise for the images that accuracy is measured on.
    evaluate_on: "test", or "validation" for choosing hyperparameters on held-out training images.
    Raises EffcnnError, naming the field, for a value that cannot be trained with.
    """

    model: str
    dataset: str
    recipe: Recipe
    techniques: tuple[str, ...] = ()
    seed: int = 0
    train_images: int | None = None
    test_images: int | None = None
    evaluate_on: str = "test"

    def __post_init__(self):
        check_techniques(self.techniques)
        refuse("RunConfig", self, {
            "model": None if is_name(self.model) else NAME,
            "dataset": None if is_name(self.dataset) else NAME,
            "recipe": None if isinstance(self.recipe, Recipe) else 'a Recipe, say recipe_of("constant", "mnist")',
            "seed": None if is_whole(self.seed, 0) and self.seed < 2**32 else "a whole number from 0 to 4294967295",
            "train_images": None if self.train_images is None or is_whole(self.train_images, 2)
            else "a whole number of 2 or more, or None for all",
            "test_images": None if self.test_images is None or is_whole(self.test_images, 1)
            else "a whole number of 1 or more, or None for all",
            "evaluate_on": None if self.evaluate_on in ("test", "validation") else '"test" or "validation"',
        })
        for entry in chosen(self.techniques):
            if entry.fresh_statistics and self.recipe.average:
                raise EffcnnError(f"Recipe.average is {self.recipe.average}, and {entry.name} averages the weights, "
                                  "too; leave one of them out")
            if self.recipe.processes > 1 and entry.alone:
                raise EffcnnError(f"Recipe.processes is {self.recipe.processes}, but {entry.alone}; use 1, or leave "
                                  f"{entry.name} out")
        model, spec = MODELS.get(self.model), DATASETS.get(self.dataset)
        if model and spec and model.image_shape != spec.image_shape:
            raise EffcnnError(f"{model.name} takes images {model.image_shape}, and those of {spec.name} are "
                              f"{spec.image_shape}; use a model that fits")

    @property
    def epochs(self) -> int:
        return self.recipe.epochs

    @property
    def comes_to_rest(self) -> bool:
        """Whether its training ends at rest, by the recipe or by a technique."""
        return self.recipe.comes_to_rest or any(entry.comes_to_rest for entry in chosen(self.techniques))

    @property
    def fresh_statistics(self) -> bool:
        """Whether BatchNorm's statistics are measured anew at its end, by the recipe or for a technique."""
        return self.recipe.fresh_statistics or any(entry.fresh_statistics for entry in chosen(self.techniques))

    @property
    def passes(self) -> int:
        """How often a training step passes its batch through the network."""
        return max([entry.passes for entry in chosen(self.techniques)], default=1)

    @property
    def taught_by(self) -> "RunConfig | None":
        """The run whose network is the teacher; None without one."""
        if not self.recipe.teacher:
            return None
        return replace(self, model=self.recipe.teacher, recipe=replace(self.recipe, teacher=""), seed=0)

    @property
    def whole(self) -> bool:
        """Whether it uses all the images that a run of the tables uses."""
        return self.test_images is None and self.train_images == self.usual_images

    @property
    def usual_images(self) -> int | None:
        """How many training images a run of the tables, or a validation run, uses; None: all of the split."""
        spec = DATASETS.get(self.dataset)
        return spec.train_images if spec and self.evaluate_on == "test" else None

    @property
    def name(self) -> str:
        """The run's folder among the recorded ones, say "mnist/1.5k-dw/constant/baseline/seed0".

        Two configurations that differ anywhere have different names: what differs from the recipe of that
        name ("constant,epochs=60") and from the usual images ("seed0,train=5000") is part of it.
        """
        folder = f"{self.row_folder}/seed{self.seed}"
        if self.train_images != self.usual_images:
            folder += f",train={self.train_images or 'all'}"
        if self.test_images is not None:
            folder += f",test={self.test_images}"
        return folder

    @property
    def row_folder(self) -> str:
        """The folder of all seeds of this row."""
        row = "+".join(self.techniques) or "baseline"
        folder = f"{self.dataset}/{self.model}/{recipe_folder(self.recipe, self.dataset)}/{row}"
        return f"validation/{folder}" if self.evaluate_on == "validation" else folder


def recipe_folder(recipe: Recipe, dataset: str) -> str:
    """A recipe's name and, where it differs from the entry of that name, by what: "constant,epochs=60".

    Without such an entry: where it differs from the defaults and 1 epoch.
    """
    entry = RECIPES.get((recipe.name, dataset)) or Recipe(recipe.name, epochs=1)
    differing = [field.name for field in fields(Recipe)
                 if getattr(recipe, field.name) != getattr(entry, field.name)]
    return ",".join([recipe.name, *(f"{name}={worded(getattr(recipe, name))}" for name in differing)])


def worded(value) -> str:
    """A field's value as a part of a folder's name."""
    return "+".join(value) if isinstance(value, tuple) else str(value)


def knobs_of(recipe: Recipe) -> dict:
    """A recipe's fields by name; those that recipes have had only since go without saying at their defaults."""
    return {name: value for name, value in asdict(recipe).items()
            if name not in LATER or value != getattr(Recipe, name)}


def values_of(config: RunConfig) -> dict:
    """A configuration as records have it."""
    return {**asdict(config), "recipe": knobs_of(config.recipe)}


def config_from(values: dict) -> RunConfig:
    """The configuration that `values_of` or `dataclasses.asdict`, and JSON, made into `values`.

    Raises TypeError, KeyError or ValueError where they are something else.
    """
    recipe = values["recipe"]
    recipe = Recipe(**{**recipe, "augmentation": tuple(recipe["augmentation"])})
    return RunConfig(**{**values, "recipe": recipe, "techniques": tuple(values["techniques"])})


def dataset_of(model: str) -> str:
    """The first dataset whose images a model takes. Raises EffcnnError for an unknown model."""
    shape = model_of(model).image_shape
    for spec in DATASETS.values():
        if spec.image_shape == shape:
            return spec.name
    raise EffcnnError(f"{model} takes images {shape}, and no dataset has such; add one to datasets.DATASETS")


def table_run(model: str, seed: int = 0, techniques: Iterable[str] = (), recipe: str | None = None,
              dataset: str | None = None, epochs: int | None = None) -> RunConfig:
    """A run of the paper's tables: the dataset's recipe for one model and seed, plus techniques in any order.

    recipe: its name; default: that of the dataset's tables. dataset: by default the first one whose images the
    model takes. epochs: other than the recipe's.
    Raises EffcnnError for an unknown model, technique, recipe or dataset.
    """
    dataset = dataset or dataset_of(model)
    model_of(model)
    trained_by = recipe_of(recipe, dataset)
    if epochs is not None:
        trained_by = replace(trained_by, epochs=epochs)
    spec = DATASETS.get(dataset)
    return RunConfig(model, dataset, trained_by, in_order(techniques), seed,
                     train_images=spec.train_images if spec else None)


@dataclass(frozen=True)
class Profile:
    """How much of a run a notebook does itself.

    train_images, test_images: None means all of them. live_epochs: per model trained in front of the
    learner; None: those of the recipe. rounds: of a timing whose median is shown.
    """

    name: str
    train_images: int | None
    test_images: int | None
    live_epochs: int | None
    rounds: int


PROFILES = {profile.name: profile for profile in (
    Profile("smoke", train_images=384, test_images=200, live_epochs=1, rounds=2),
    Profile("live", train_images=10_000, test_images=2_000, live_epochs=3, rounds=11),
    Profile("full", train_images=None, test_images=None, live_epochs=None, rounds=11),
)}


def current_profile(name: str | None = None) -> Profile:
    """The profile by name or, without one, from $EFFCNN_PROFILE ("live" when unset). Raises EffcnnError."""
    name = name or settings.profile_name()
    if not isinstance(name, str) or name not in PROFILES:
        raise EffcnnError(f"unknown profile {name!r}; use one of {', '.join(PROFILES)}")
    return PROFILES[name]


def live_run(model: str, profile: Profile, dataset: ImageDataset, epochs: int | None = None,
             techniques: Iterable[str] = (), recipe: str = USUAL) -> RunConfig:
    """A run small enough to watch: the same recipe on fewer images and epochs.

    At most the profile's images (or as many as the dataset has) and at most the profile's epochs. With the
    full profile it is the recipe's whole run.
    """
    return shortened(table_run(model, techniques=techniques, recipe=recipe, dataset=dataset.name), profile,
                     len(dataset.train), len(dataset.test), epochs)


def shortened(config: RunConfig, profile: Profile, train_images: int, test_images: int,
              epochs: int | None = None) -> RunConfig:
    """A run cut down to a profile's size, and to what a dataset holds; the full profile leaves it as it is."""
    if epochs is not None and not is_whole(epochs, 1):
        raise EffcnnError(f"Recipe.epochs is {epochs!r}; use a whole number of 1 or more")
    if profile.live_epochs is None:
        return config
    longest = min(profile.live_epochs, config.epochs)
    epochs = longest if epochs is None else min(epochs, longest)
    return replace(config, recipe=replace(config.recipe, epochs=epochs),
                   train_images=min(profile.train_images, train_images, config.train_images or train_images),
                   test_images=min(profile.test_images, test_images, config.test_images or test_images))
