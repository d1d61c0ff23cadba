"""Notebook 16's ladders: from the tables' recipe up to a much better network of the same size, one change a rung."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import mean

import pandas as pd

from .recipes import Recipe, RunConfig, table_run
from .records import RunRecord, runs_of_row
from .statistics import gain_over, spread_of, summary_of


@dataclass(frozen=True)
class Rung:
    """One step of a ladder: what it changes, in words, and the run that has this and all that was kept below.

    kept: whether the rungs above stand on it, or it is shown for what it did not bring.
    """

    change: str
    config: RunConfig
    kept: bool = True


def climb(start: RunConfig, *steps: tuple[str, dict, bool]) -> tuple[Rung, ...]:
    """The rungs of a ladder. steps: (change in words, changed fields of the recipe and the run, kept)."""
    rungs = [Rung("the tables' recipe", start)]
    below = start
    in_recipe = {field.name for field in fields(Recipe)}
    for change, values, kept in steps:
        recipe = replace(below.recipe, **{name: value for name, value in values.items() if name in in_recipe})
        rest = {name: value for name, value in values.items() if name not in in_recipe}
        config = replace(below, recipe=recipe, **rest)
        rungs.append(Rung(change, config, kept))
        below = config if kept else below
    return tuple(rungs)


def ladder_table(budget: str, root: Path | None = None) -> pd.DataFrame:
    """A ladder with its recorded runs: a row per rung, from the bottom.

    Columns: change, kept, model, parameters (None without a run), ours (Summary or None), gain (over the highest kept
    rung below; Gain or None), minutes (of training, the mean over the runs, on the machine that each record names).
    """
    rungs = LADDERS[budget]
    recorded = {rung: runs_of_row(rung.config, root) for rung in rungs}
    spread = spread_of(recorded.values())
    rows = []
    below: list[RunRecord] = []
    for rung, runs in recorded.items():
        rows.append({"change": rung.change, "kept": rung.kept, "model": rung.config.model,
                     "parameters": runs[0].parameters if runs else None, "ours": summary_of(runs),
                     "gain": gain_over(runs, below, spread),
                     "minutes": mean(run.train_seconds for run in runs) / 60 if runs else None})
        below = runs if rung.kept else below
    return pd.DataFrame(rows)


def digits_ladder(model: str) -> tuple[Rung, ...]:
    """How one of the paper's MNIST networks is trained better."""
    return climb(table_run(model, recipe="settled"),
                 ("images turned, scaled, shifted", {"augmentation": ("affine",)}, True),
                 ("BlurPool", {"techniques": ("blurpool",)}, True),
                 ("three times the epochs", {"epochs": 60}, True),
                 ("averaged weights", {"average": 1.0}, True))


# By the budget of parameters, as decided before any of their runs on test images. A rung that is not kept is shown for
# what it brings or costs: the last of "143k" is the paper's own architecture, trained as the best of ours.
LADDERS: dict[str, tuple[Rung, ...]] = {
    "1.5k": digits_ladder("1.5k-dw"),
    "7k": digits_ladder("7k"),
    "25k": digits_ladder("25k"),
    "143k": climb(table_run("143k-dw", recipe="settled"),
                  ("half the bits in training", {"precision": "bfloat16"}, True),
                  ("flips and crops", {"augmentation": ("flip", "crop")}, True),
                  ("no depthwise layers", {"model": "143k"}, True),
                  ("BlurPool", {"techniques": ("blurpool",)}, True),
                  ("residual blocks", {"model": "142k-res"}, True),
                  ("a hole in each image", {"augmentation": ("flip", "crop", "hole")}, False),
                  ("label smoothing", {"techniques": ("blurpool", "label_smoothing")}, False),
                  ("three times the epochs", {"epochs": 60}, True),
                  ("no residual blocks", {"model": "143k"}, False)),
}
