"""Which runs a sweep trains: the paper's tables, single rows, and the validation runs behind the recipes."""

from dataclasses import replace

from ..datasets import DATASETS
from ..errors import EffcnnError
from ..ladder import LADDERS
from ..models import MODELS
from ..paper import TABLE_3, TABLE_4, TABLE_4_MODELS, TABLE_5
from ..recipes import Recipe, RunConfig, recipe_of, table_run

STACK = ("cutout", "blurpool", "mixup")


def settling(epochs: int, rate: float, decay: float) -> Recipe:
    """A candidate for the recipe "settled": a short rise, then a rate that falls to 0, and weight decay."""
    return Recipe("settled-pilot", epochs, learning_rate=rate, weight_decay=decay, schedule="linear", rise=0.2)


CONSTANT = Recipe("constant", epochs=12)  # of MNIST; CIFAR-10's has 20

# Stages of validation runs by recipe and dataset: (rows as (model, techniques), recipes to try on each of them).
# "constant": several choices for a part of the recipe's epochs, then the best of them (CIFAR-10: of each optimiser,
# as all four were level) for all. A run with SWA is a baseline until its last epoch, so its curve serves for both.
# "settled": for half of the epochs first; then the two best of them for all, with techniques, too.
Stage = tuple[list[tuple[str, tuple[str, ...]]], list[Recipe]]
PILOTS: dict[tuple[str, str], list[Stage]] = {
    ("constant", "mnist"): [
        ([("25k", ()), ("1.5k-dw", ())],
         [replace(CONSTANT, epochs=6, learning_rate=rate) for rate in (0.01, 0.03, 0.1, 0.3, 1.0)]
         + [replace(CONSTANT, epochs=6, optimizer="adam", learning_rate=rate) for rate in (0.001, 0.003, 0.01)]),
        ([("25k", ()), ("1.5k-dw", ())], [CONSTANT, replace(CONSTANT, learning_rate=0.3)]),
    ],
    ("constant", "cifar10"): [
        ([("143k-dw", ())],
         [replace(CONSTANT, epochs=5, learning_rate=rate) for rate in (0.03, 0.1)]
         + [replace(CONSTANT, epochs=5, optimizer="adam", learning_rate=rate) for rate in (0.001, 0.003)]),
        ([("143k-dw", ("swa",))], [replace(CONSTANT, epochs=20),
                                   replace(CONSTANT, epochs=20, optimizer="adam", learning_rate=0.003)]),
        ([("143k-dw", STACK)], [replace(CONSTANT, epochs=20)]),  # does it suit a stack of three, too?
    ],
    ("settled", "mnist"): [
        ([("25k", ()), ("1.5k-dw", ())],
         [settling(10, rate, decay) for rate in (0.1, 0.3) for decay in (1e-4, 5e-4)]),
        ([("25k", ()), ("1.5k-dw", ()), ("1.5k-dw", ("swa",))],
         [settling(20, 0.1, 5e-4), settling(20, 0.3, 1e-4)]),
        ([("7k", ()), ("5k", ())], [settling(20, 0.3, 1e-4)]),  # does it suit the sizes between, too?
    ],
    ("settled", "cifar10"): [
        ([("143k-dw", ())],
         [settling(10, rate, decay)
          for rate, decay in ((0.05, 5e-4), (0.1, 5e-4), (0.2, 5e-4), (0.3, 5e-4), (0.1, 1e-3), (0.2, 1e-3))]),
        ([("143k-dw", ()), ("143k-dw", STACK), ("143k-dw", ("swa",))],
         [settling(20, 0.2, 1e-3), settling(20, 0.3, 5e-4)]),
    ],
}


def held_out(config: RunConfig) -> RunConfig:
    """The same run, measured on held-out training images."""
    return replace(config, evaluate_on="validation", train_images=None)


RUNGS = {f"beyond-{budget}": [rung.config for rung in ladder.rungs] for budget, ladder in LADDERS.items()}
EVERY_RUNG = [config for configs in RUNGS.values() for config in configs]
SIZES = [table_run(model, recipe="settled") for model in MODELS]
BEYOND = {**RUNGS, "sizes": SIZES, "beyond": EVERY_RUNG + SIZES, "pilot-beyond": list(map(held_out, EVERY_RUNG))}


def pilot_runs(recipe: str | None, dataset: str) -> list[RunConfig]:
    """The validation runs that a recipe of a dataset, None: that of the tables, was chosen by (see PILOTS)."""
    return [held_out(RunConfig(model, dataset, tried, techniques))
            for rows, recipes in PILOTS[recipe_of(recipe, dataset).name, dataset]
            for model, techniques in rows for tried in recipes]


def select(selections: list[str], seeds: list[int], recipe: str | None = None) -> list[RunConfig]:
    """The runs that selections name, without repeats, each seed of every row before the next seed.

    A selection is "mnist" or "cifar10" (the halves of Table 3), "table-4" or "table-5", "beyond-1.5k" (notebook 16's
    ladder of a budget), "sizes" (every network, without techniques), "beyond" (all ladders and sizes), "pilot-beyond"
    (the ladders' rungs on validation images), a model such as "1.5k-dw", a model with techniques such as
    "143k-dw/cutout+mixup", either of them with its own number of epochs such as "143k-dw@60", or "pilot-mnist",
    "pilot-cifar10" (the validation runs, which have a seed of their own). recipe: for all of them; default: that of
    the tables. Raises EffcnnError for anything else.
    """
    rows: list[RunConfig] = []
    pilots = {f"pilot-{dataset}": dataset for of, dataset in PILOTS if of == (recipe or recipe_of(None, dataset).name)}
    for selection in selections:
        row, at, epochs = selection.partition("@")
        model, _, techniques = row.partition("/")
        if selection in DATASETS:
            rows += [table_run(entry.model, recipe=recipe) for entry in TABLE_3 if entry.dataset == selection]
        elif selection == "table-4":
            rows += [table_run(TABLE_4_MODELS[dataset], techniques=row, recipe=recipe)
                     for row, accuracies in TABLE_4.items() for dataset in accuracies
                     if accuracies[dataset] is not None]
        elif selection == "table-5":
            rows += [table_run(TABLE_4_MODELS["cifar10"], techniques=row, recipe=recipe) for row in TABLE_5]
        elif selection in BEYOND:
            rows += BEYOND[selection]
        elif selection in pilots:
            rows += pilot_runs(recipe, pilots[selection])
        elif model in MODELS and epochs.isdecimal() == bool(at):
            rows.append(table_run(model, techniques=techniques.split("+") if techniques else (), recipe=recipe,
                                  epochs=int(epochs) if at else None))
        else:
            known = ", ".join([*DATASETS, "table-4", "table-5", *BEYOND, *pilots, *MODELS])
            raise EffcnnError(f"unknown selection {selection!r}; use some of {known}, or a model with techniques such "
                              "as 143k-dw/cutout+mixup, or with its own number of epochs such as 143k-dw@60")
    table_rows = [row for row in rows if row.evaluate_on == "test"]
    validation = [row for row in rows if row.evaluate_on == "validation"]
    return list(dict.fromkeys(validation + [replace(row, seed=seed) for seed in seeds for row in table_rows]))
