"""Notebook 16's ladders: from the recipe settled up to a much better network of the same size, one change a rung."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import pandas as pd

from .models import model_of
from .recipes import Recipe, RunConfig, table_run
from .records import RunRecord, all_runs, runs_of_row
from .statistics import gain_over, spread_of, summary_of, verdict


@dataclass(frozen=True)
class Rung:
    """One step of a ladder: what it changes, in words, and the run that has this and all that was kept below.

    kept: whether the rungs above stand on it, or it is shown for what it did not bring.
    """

    change: str
    config: RunConfig
    kept: bool = True


@dataclass(frozen=True)
class Ladder:
    """Rungs within a budget of parameters, from the bottom, and what they are to reach, in percent of the test images.

    paper: the paper's best by its networks of this size, with whatever techniques. own: to be reached by one of the
    paper's architectures, trained better. any: by any architecture.
    """

    parameters: int
    paper: float
    own: float
    any: float
    rungs: tuple[Rung, ...]

    @property
    def kept(self) -> list[RunConfig]:
        """The runs of the rungs that are kept, from the bottom."""
        return [rung.config for rung in self.rungs if rung.kept]


def climb(start: RunConfig, *steps: tuple[str, dict, bool]) -> tuple[Rung, ...]:
    """The rungs of a ladder. steps: (change in words, changed fields of the recipe and the run, kept)."""
    rungs = [Rung(f"recipe {start.recipe.name}", start)]
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
    rung below; Gain or None).
    The spread between seeds is that of all recorded rows of the dataset whose rate falls to 0.
    """
    rungs = LADDERS[budget].rungs
    recorded = {rung: runs_of_row(rung.config, root) for rung in rungs}
    spread = spread_of(rows_at_rest(rungs[0].config.dataset, root))
    rows = []
    below: list[RunRecord] = []
    for rung, runs in recorded.items():
        rows.append({"change": rung.change, "kept": rung.kept, "model": rung.config.model,
                     "parameters": runs[0].parameters if runs else None, "ours": summary_of(runs),
                     "gain": gain_over(runs, below, spread)})
        below = runs if rung.kept else below
    return pd.DataFrame(rows)


def rows_at_rest(dataset: str, root: Path | None = None) -> list[list[RunRecord]]:
    """The recorded runs on all images of a dataset whose rate falls to 0, those of a row together."""
    rows: dict[str, list[RunRecord]] = {}
    for run in all_runs(root, dataset):
        if run.config.whole and run.config.recipe.comes_to_rest:
            rows.setdefault(run.config.row_folder, []).append(run)
    return list(rows.values())


def worded_ladder(table: pd.DataFrame) -> pd.DataFrame:
    """A `ladder_table` with every cell as text, ready to be shown."""
    return pd.DataFrame({
        "change": [change if kept else f"({change})"
                   for change, kept in zip(table["change"], table["kept"], strict=True)],
        "network": [model_of(model).label for model in table["model"]],
        "parameters": ["" if pd.isna(count) else f"{count:,.0f}" for count in table["parameters"]],
        "accuracy (%)": ["no run yet" if row is None else str(row) for row in table["ours"]],
        "gain": ["" if gain is None else str(gain) for gain in table["gain"]],
        "effect": [gain.effect if gain and gain.freedom else "" for gain in table["gain"]],
    }).set_index("change")


def goals_table(root: Path | None = None) -> pd.DataFrame:
    """How far each ladder has come, worded: its highest kept rung, and the highest by one of the paper's networks.

    The verdict (see statistics.verdict) is that of the highest rung against the paper's best.
    """
    rows = []
    for ladder in LADDERS.values():
        reached = {"own": [config for config in ladder.kept if model_of(config.model).paper], "any": ladder.kept}
        summaries = {kind: summary_of(runs_of_row(configs[-1], root)) for kind, configs in reached.items()}
        row = {"parameters": f"≤ {ladder.parameters:,}", "paper's best (%)": f"{ladder.paper:.2f}"}
        for kind, words in (("own", "its architecture"), ("any", "any architecture")):
            summary = summaries[kind]
            row[f"{words} (%)"] = "no run yet" if summary is None else str(summary)
            aim = getattr(ladder, kind)
            row[f"aim: {words}"] = f"{aim:.2f}" + (
                "" if summary is None else ", reached" if summary.mean_percent >= aim else ", not yet")
        spread = spread_of(rows_at_rest(ladder.rungs[0].config.dataset, root))
        row["verdict"] = verdict(ladder.paper, summaries["any"], spread)
        rows.append(row)
    return pd.DataFrame(rows).set_index("parameters")


def digits_rungs(model: str, *further: tuple[str, dict, bool]) -> tuple[Rung, ...]:
    """How one of the paper's MNIST networks is trained better, and further steps."""
    return climb(table_run(model, recipe="settled"),
                 ("images turned, scaled, shifted", {"augmentation": ("affine",)}, True),
                 ("BlurPool", {"techniques": ("blurpool",)}, True),
                 ("averaged weights", {"average": 1.0}, True),
                 ("fresh BatchNorm statistics", {"fresh_statistics": True}, True),
                 ("three times the epochs", {"epochs": 60}, True),
                 *further)


# By the budget of parameters, as decided before any of their runs on test images. A rung that is not kept is shown for
# what it brings or costs.
LADDERS = {
    "1.5k": Ladder(1_560, 99.21, 99.35, 99.45, digits_rungs(
        "1.5k-dw",
        ("25K as a teacher", {"teacher": "25k"}, False),
        ("residual sums", {"model": "1.5k-res"}, True))),
    "7k": Ladder(7_767, 99.46, 99.5, 99.6, digits_rungs("7k")),
    "25k": Ladder(25_144, 99.35, 99.6, 99.65, digits_rungs(
        "25k",
        ("residual sums", {"model": "25k-res"}, True))),
    "143k": Ladder(143_396, 86.76, 90.0, 92.5, climb(
        table_run("143k-dw", recipe="settled"),
        ("bfloat16 in training", {"precision": "bfloat16"}, True),
        ("flips and crops", {"augmentation": ("flip", "crop")}, True),
        ("no depthwise layers", {"model": "143k"}, True),
        ("BlurPool", {"techniques": ("blurpool",)}, True),
        ("three times the epochs", {"epochs": 60}, True),
        ("residual blocks", {"model": "142k-res"}, True))),
}
