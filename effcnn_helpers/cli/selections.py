"""Which runs a sweep trains: the paper's tables, single rows, and the validation runs behind the recipes."""

from dataclasses import replace

from ..models import MODELS
from ..paper import TABLE_4, TABLE_5
from ..recipes import TECHNIQUE_MODELS, RunConfig, table_run

# Stages of validation runs: (rows as (model, techniques), epochs, [(optimizer, learning rate), ...]). Several
# choices for a part of the recipe's epochs, then the best of them (CIFAR-10: of each optimiser, as all four
# were level) for all. A run with SWA is a baseline until its last epoch, so its curve serves for both.
PILOT_STAGES = {
    "mnist": [
        ([("25k", ()), ("1.5k-dw", ())], 6,
         [("sgd", 0.01), ("sgd", 0.03), ("sgd", 0.1), ("sgd", 0.3), ("sgd", 1.0),
          ("adam", 0.001), ("adam", 0.003), ("adam", 0.01)]),
        ([("25k", ()), ("1.5k-dw", ())], 12, [("sgd", 0.1), ("sgd", 0.3)]),
    ],
    "cifar10": [
        ([("143k-dw", ())], 5, [("sgd", 0.03), ("sgd", 0.1), ("adam", 0.001), ("adam", 0.003)]),
        ([("143k-dw", ("swa",))], 20, [("sgd", 0.1), ("adam", 0.003)]),
        ([("143k-dw", ("cutout", "blurpool", "mixup"))], 20, [("sgd", 0.1)]),  # does it suit a stack of three, too?
    ],
}


def pilot_runs(dataset: str) -> list[RunConfig]:
    """The validation runs that a dataset's optimiser and learning rate were chosen by (see PILOT_STAGES)."""
    return [
        replace(table_run(model, techniques=techniques), optimizer=optimizer, learning_rate=learning_rate,
                epochs=epochs, train_images=None, evaluate_on="validation")
        for rows, epochs, choices in PILOT_STAGES[dataset]
        for model, techniques in rows for optimizer, learning_rate in choices
    ]


def select(selections: list[str], seeds: list[int]) -> list[RunConfig]:
    """The runs that selections name, without repeats, each seed of every row before the next seed.

    A selection is "mnist" or "cifar10" (the halves of Table 3), "table-4" or "table-5", a model such as
    "1.5k-dw", a model with techniques such as "143k-dw/cutout+mixup", either of them with its own number of
    epochs such as "143k-dw@60", or "pilot-mnist", "pilot-cifar10" (the validation runs, which have a seed of
    their own). Raises ValueError for anything else.
    """
    rows: list[RunConfig] = []
    for selection in selections:
        row, at, epochs = selection.partition("@")
        model, _, techniques = row.partition("/")
        if selection in MODELS:
            rows += [table_run(model) for model in MODELS[selection]]
        elif selection == "table-4":
            rows += [table_run(TECHNIQUE_MODELS[dataset], techniques=row)
                     for row, accuracies in TABLE_4.items() for dataset in accuracies
                     if accuracies[dataset] is not None]
        elif selection == "table-5":
            rows += [table_run(TECHNIQUE_MODELS["cifar10"], techniques=row) for row in TABLE_5]
        elif selection.removeprefix("pilot-") in MODELS:
            rows += pilot_runs(selection.removeprefix("pilot-"))
        elif any(model in models for models in MODELS.values()) and epochs.isdecimal() == bool(at):
            run = table_run(model, techniques=techniques.split("+") if techniques else ())
            rows.append(replace(run, epochs=int(epochs)) if at else run)
        else:
            known = ", ".join([*MODELS, "table-4", "table-5", *(f"pilot-{name}" for name in MODELS),
                               *(name for models in MODELS.values() for name in models)])
            raise ValueError(f"unknown selection {selection!r}; use some of {known}, or a model with techniques such "
                             "as 143k-dw/cutout+mixup, or with its own number of epochs such as 143k-dw@60")
    table_rows = [row for row in rows if row.evaluate_on == "test"]
    pilots = [row for row in rows if row.evaluate_on == "validation"]
    return list(dict.fromkeys(pilots + [replace(row, seed=seed) for seed in seeds for row in table_rows]))
