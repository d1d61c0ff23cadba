"""The paper's tables with our recorded runs beside them, and the rule behind each verdict."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from .latency import latency_path, passes_by_model, read_latency
from .models import dataset_of
from .paper import TABLE_3, TABLE_4, TABLE_5, TEST_IMAGES, table_3_row
from .recipes import TECHNIQUE_MODELS
from .records import RecordError, all_runs, table_rows, table_runs
from .techniques import labels_of
from .training import RunRecord

PAPER_GAIN = "paper's gain"  # an f-string of Python 3.11 cannot hold the apostrophe


@dataclass(frozen=True)
class Summary:
    """Accuracies of the runs of one row. sd_percent: sample standard deviation, None for a single run."""

    n: int
    mean_percent: float
    sd_percent: float | None

    def __str__(self) -> str:
        spread = f" ± {self.sd_percent:.2f}" if self.sd_percent is not None else ""
        return f"{self.mean_percent:.2f}{spread} (n={self.n})"


def summarise(accuracies_percent: list[float]) -> Summary | None:
    """Number, mean and spread of a row's accuracies; None when there is no run."""
    if not accuracies_percent:
        return None
    spread = statistics.stdev(accuracies_percent) if len(accuracies_percent) > 1 else None
    return Summary(len(accuracies_percent), statistics.mean(accuracies_percent), spread)


def binomial_se_percent(accuracy_percent: float, images: int = TEST_IMAGES) -> float:
    """Standard error, in percentage points, of an accuracy measured once on `images` test images."""
    share = accuracy_percent / 100
    return 100 * math.sqrt(share * (1 - share) / images)


def last_epoch(run: RunRecord) -> float:
    """A run's accuracy in percent, as the tables give it."""
    return run.accuracy_percent


def fresh_statistics(run: RunRecord) -> float:
    """Its accuracy (percent) with fresh BatchNorm statistics: much less a matter of when training stopped.

    Raises RecordError where that was not measured, as in a live run.
    """
    if run.fresh_correct is None:
        raise RecordError(f"{run.config.name} was not measured with fresh BatchNorm statistics; only recorded runs are")
    return 100 * run.fresh_correct / run.total


def pooled_sd_percent(summaries: list[Summary | None]) -> float:
    """Seed-to-seed standard deviation, pooled over the rows with several runs; 0 if there is none."""
    repeated = [row for row in summaries if row and row.sd_percent is not None]
    freedom = sum(row.n - 1 for row in repeated)
    return math.sqrt(sum((row.n - 1) * row.sd_percent**2 for row in repeated) / freedom) if freedom else 0.0


def settles(techniques: tuple[str, ...]) -> bool:
    """Whether a training comes to rest, by a rate that falls to almost nothing or a mean of weights.

    At a constant rate it stops somewhere in a zigzag, which scatters the last epoch far more.
    """
    return not {"one_cycle_lr", "swa"}.isdisjoint(techniques)


def seed_spreads(dataset: str, accuracy: Callable[[RunRecord], float] = last_epoch, root: Path | None = None,
                 plain: bool = False) -> dict[bool, float]:
    """Seed-to-seed standard deviation (percent) of rows that settle (True) and of those that do not (False).

    Pooled over all recorded rows of either kind of the model that Tables 4 and 5 add techniques to (plain: over the
    models of Table 3 instead), as two or three seeds do not show a row's own; a row with one seed is taken to scatter
    like the others of its kind. Where no row of a kind has several seeds, over those of both kinds.
    """
    recorded = table_rows(dataset, root, model="" if plain else TECHNIQUE_MODELS[dataset])
    rows = [(techniques, summarise([accuracy(run) for run in runs]))
            for (_, techniques), runs in recorded.items() if not (plain and techniques)]
    return {kind: pooled_sd_percent([row for techniques, row in rows if settles(techniques) == kind])
            or pooled_sd_percent([row for _, row in rows]) for kind in (True, False)}


def verdict(paper_percent: float, ours: Summary | None, spread_percent: float = 0.0) -> str:
    """What our accuracy says of the paper's single reading; "not run" without one of ours.

    "reproduced": they differ by no more than two binomial standard errors of 10,000 test images.
    "within noise": by more, but by no more than the seeds explain, 2 sqrt(binomial² + sd² (1 + 1/n)): the two can
    be told apart neither from each other nor from a disagreement of that size.
    "exceeded", "not reproduced": ours is higher or lower than that.

    sd: that of `seed_spreads`. The paper gives none, so its seeds are taken to scatter like ours.
    """
    if ours is None:
        return "not run"
    binomial = binomial_se_percent(paper_percent)
    difference = ours.mean_percent - paper_percent
    if abs(difference) <= 2 * binomial:
        return "reproduced"
    if abs(difference) <= 2 * math.hypot(binomial, spread_percent * math.sqrt(1 + 1 / ours.n)):
        return "within noise"
    return "exceeded" if difference > 0 else "not reproduced"


def paired_difference(first: RunRecord, second: RunRecord) -> tuple[float, float]:
    """(accuracy of `first` minus that of `second`, its standard error), in percentage points.

    Both networks saw the same images, so only those count that exactly one of them got wrong (McNemar).
    Raises ValueError when the two were measured on different images.
    """
    if (first.total, first.data["sha256"]) != (second.total, second.data["sha256"]):
        raise ValueError(f"{first.config.name} and {second.config.name} were measured on different images")
    only_second = len(second.misclassified.keys() - first.misclassified.keys())
    only_first = len(first.misclassified.keys() - second.misclassified.keys())
    n = first.total
    variance = only_first + only_second - (only_second - only_first) ** 2 / n
    return 100 * (only_second - only_first) / n, 100 * math.sqrt(variance) / n


@dataclass(frozen=True)
class Gain:
    """What a technique adds to the baseline's accuracy, in percentage points, and the standard error of that."""

    points: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.points:+.2f} ± {self.standard_error:.2f}"

    @property
    def effect(self) -> str:
        """"gain" or "loss" beyond two standard errors, else "within noise"."""
        if abs(self.points) <= 2 * self.standard_error:
            return "within noise"
        return "gain" if self.points > 0 else "loss"


def gain_over(runs: list[RunRecord], baseline: list[RunRecord], spreads: dict[bool, float] | None = None,
              accuracy: Callable[[RunRecord], float] = last_epoch) -> Gain | None:
    """The mean difference in accuracy between runs and the baseline's of the same seeds; None without a common one.

    Runs of a seed share their first weights and the order of the images (with SWA every step), so a seed with a
    row alone would count for its luck. The standard error joins that of the test images (paired answers after the last
    epoch, see `paired_difference`; more seeds see the same images, so they do not lower it) with that of the seeds
    on both sides (from `seed_spreads` of `accuracy`), as if what they share did not help: it is on the safe side.
    """
    by_seed = {run.config.seed: run for run in baseline}
    pairs = [(run, by_seed[run.config.seed]) for run in runs if run.config.seed in by_seed]
    if not pairs:
        return None
    points = statistics.mean(accuracy(run) - accuracy(other) for run, other in pairs)
    images = statistics.mean(paired_difference(run, other)[1] for run, other in pairs)
    seeds = math.hypot(*((spreads or {}).get(settles(run.config.techniques), 0.0) for run in pairs[0]))
    return Gain(points, math.hypot(images, seeds / math.sqrt(len(pairs))))


def table_3(dataset: str, root: Path | None = None) -> pd.DataFrame:
    """Table 3 of the paper for one dataset: a row per model, the paper's numbers and ours.

    Columns: model, depthwise, parameters, paper (percent), ours (Summary or None), verdict, fresh (Summary of ours
    with fresh BatchNorm statistics, which is no result of the recipe and has no verdict), paper_seconds,
    our_seconds (one pass over the test images, eager PyTorch, median of the recorded measurement; None without
    one), paper_kb, our_kb (torch's pickled state dict, 1 KB = 1,024 bytes: so weighed, ours agree with the paper's).
    """
    rows = [row for row in TABLE_3 if row.dataset == dataset]
    runs = {row.model: table_runs(row.model, root=root) for row in rows}
    ours = {model: summarise([run.accuracy_percent for run in of_model]) for model, of_model in runs.items()}
    spread = seed_spreads(dataset, root=root, plain=True)[False]
    measured = latency_path(root)
    seconds = passes_by_model(read_latency(measured))["seconds"] if measured.exists() else {}
    return pd.DataFrame([{
        "model": row.label, "depthwise": "yes" if row.depthwise else "no", "parameters": row.parameters,
        "paper": row.accuracy_percent, "ours": ours[row.model],
        "verdict": verdict(row.accuracy_percent, ours[row.model], spread),
        "fresh": summarise([fresh_statistics(run) for run in runs[row.model]]),
        "paper_seconds": row.latency_seconds, "our_seconds": seconds.get(row.label),
        "paper_kb": row.size_kb,
        "our_kb": runs[row.model][0].bytes["state_dict"] / 1024 if runs[row.model] else None,
    } for row in rows])


def worded(table: pd.DataFrame) -> pd.DataFrame:
    """A `table_3` with every cell as text, ready to be shown."""
    return pd.DataFrame({
        "model": table["model"],
        "depthwise": table["depthwise"],
        "parameters": [f"{count:,}" for count in table["parameters"]],
        "paper (%)": [f"{percent:.2f}" for percent in table["paper"]],
        "ours (%)": ["no run yet" if row is None else str(row) for row in table["ours"]],
        "verdict": table["verdict"],
        "fresh statistics (%)": ["" if row is None else str(row) for row in table["fresh"]],
        "paper (s)": [f"{seconds:.2f}" for seconds in table["paper_seconds"]],
        "ours (s)": ["" if pd.isna(seconds) else f"{seconds:.2f}" for seconds in table["our_seconds"]],
        "paper (KB)": [str(kb) for kb in table["paper_kb"]],
        "ours (KB)": ["" if pd.isna(kb) else f"{kb:.1f}" for kb in table["our_kb"]],
    }).set_index("model")


def compare_with_paper(models: list[str], root: Path | None = None) -> pd.DataFrame:
    """The rows of Table 3 for some models of one dataset, worded for a notebook."""
    table = table_3(dataset_of(models[0]), root)
    labels = [row.label for row in TABLE_3 if row.model in models]
    return worded(table[table["model"].isin(labels)])


def in_one_line(models: list[str], root: Path | None = None) -> str:
    """Our accuracies beside the paper's and the verdicts, for a notebook's headline."""
    return "; ".join(f"{model}: ours {row['ours (%)']}, paper {row['paper (%)']}, {row['verdict']}"
                     for model, row in compare_with_paper(models, root).iterrows())


def table_4(dataset: str, root: Path | None = None) -> pd.DataFrame:
    """Table 4 of the paper for one dataset: each technique on the smallest depthwise model.

    Columns: techniques (tuple), parameters (as trained; None without a run), paper (percent), ours (Summary
    or None), verdict, paper_gain (points over the paper's baseline), gain (Gain or None), fresh_gain (the same with
    fresh BatchNorm statistics).
    """
    return _technique_table(dataset, {row: by_dataset[dataset] for row, by_dataset in TABLE_4.items()}, root)


def table_5(root: Path | None = None) -> pd.DataFrame:
    """Table 5 of the paper, combinations on CIFAR-10; the baseline first, then columns and rows as in `table_4`."""
    return _technique_table("cifar10", {(): TABLE_4[()]["cifar10"], **TABLE_5}, root)


def _technique_table(dataset: str, paper: dict[tuple[str, ...], float | None], root: Path | None) -> pd.DataFrame:
    """A row for each of the paper's accuracies by techniques, as `table_4` and `table_5` describe it; None: no row."""
    paper = {row: percent for row, percent in paper.items() if percent is not None}
    runs = {row: table_runs(TECHNIQUE_MODELS[dataset], row, root) for row in paper}
    ours = {row: summarise([run.accuracy_percent for run in of_row]) for row, of_row in runs.items()}
    spreads, fresh_spreads = (seed_spreads(dataset, accuracy, root) for accuracy in (last_epoch, fresh_statistics))
    return pd.DataFrame([{
        "techniques": row, "parameters": runs[row][0].parameters if runs[row] else None,
        "paper": percent, "ours": ours[row], "verdict": verdict(percent, ours[row], spreads[settles(row)]),
        "paper_gain": percent - paper[()],
        "gain": gain_over(runs[row], runs[()], spreads) if row else None,
        "fresh_gain": gain_over(runs[row], runs[()], fresh_spreads, fresh_statistics) if row else None,
    } for row, percent in paper.items()])


def worded_techniques(table: pd.DataFrame) -> pd.DataFrame:
    """A `table_4` or `table_5` with every cell as text, ready to be shown."""
    return pd.DataFrame({
        "technique": [labels_of(row) for row in table["techniques"]],
        "parameters": ["" if pd.isna(count) else f"{count:,.0f}" for count in table["parameters"]],
        "paper (%)": [f"{percent:.2f}" for percent in table["paper"]],
        "ours (%)": ["no run yet" if row is None else str(row) for row in table["ours"]],
        "verdict": table["verdict"].to_list(),
        PAPER_GAIN: [f"{points:+.2f}" if row else ""
                     for row, points in zip(table["techniques"], table["paper_gain"], strict=True)],
        "our gain": ["" if gain is None else str(gain) for gain in table["gain"]],
        "effect": ["" if gain is None else gain.effect for gain in table["gain"]],
        "gain, fresh statistics": ["" if gain is None else str(gain) for gain in table["fresh_gain"]],
        "effect, fresh": ["" if gain is None else gain.effect for gain in table["fresh_gain"]],
    }).set_index("technique")


def compare_technique(techniques: tuple[str, ...], root: Path | None = None) -> pd.DataFrame:
    """Baseline and one row of Table 4 on both datasets, worded for a notebook."""
    parts = {}
    for dataset, model in TECHNIQUE_MODELS.items():
        table = table_4(dataset, root)
        rows = table[table["techniques"].isin([(), techniques])]
        parts[table_3_row(dataset, model).label] = worded_techniques(rows)
    return pd.concat(parts, names=["model"])


def techniques_in_one_line(techniques: tuple[str, ...], root: Path | None = None) -> str:
    """Our gain beside the paper's on both datasets, for a notebook's headline."""
    rows = compare_technique(techniques, root).xs(labels_of(techniques), level="technique")
    return "; ".join(f"{model}: ours {row['ours (%)']}, gain {row['our gain'] or 'not measured'}, "
                     f"paper {row['paper (%)']}, gain {row[PAPER_GAIN]}" for model, row in rows.iterrows())


def combinations_in_one_line(root: Path | None = None) -> str:
    """The best combination of Table 5, ours and the paper's, for a notebook's headline."""
    table = table_5(root).iloc[1:]
    best = table.loc[table["paper"].idxmax()]
    paper = f"the paper's best is {labels_of(best['techniques'])} with {best['paper']:.2f}"
    measured = table[table["ours"].notna()]
    if measured.empty:
        return f"no combination run yet; {paper}"
    ours = measured.loc[measured["ours"].map(lambda summary: summary.mean_percent).idxmax()]
    return f"our best of {len(measured)} combinations is {labels_of(ours['techniques'])} with {ours['ours']}; {paper}"


def endings(runs: list[RunRecord]) -> pd.DataFrame:
    """How much of each recorded run's accuracy is the luck of its last epoch: a row per run, percent.

    Columns: techniques, seed, last epoch, last five epochs (lowest to highest), fresh statistics.
    """
    columns = ["techniques", "seed", "last epoch", "last five epochs", "fresh statistics"]
    rows = []
    for run in runs:
        lately = [row["test_accuracy_percent"] for row in run.epochs[-5:]]
        rows.append((labels_of(run.config.techniques), run.config.seed, run.accuracy_percent,
                     f"{min(lately):.2f} to {max(lately):.2f}", fresh_statistics(run)))
    return pd.DataFrame(rows, columns=columns).round(2)


def pilot_table(dataset: str, root: Path | None = None) -> pd.DataFrame:
    """The validation runs behind a recipe: mean validation accuracy (%) of their last three epochs, best first.

    One row per techniques, number of epochs, optimiser and learning rate, one column per model, and their
    mean. A run with SWA is a baseline up to its last epoch: its three epochs before that stand in the
    baseline's row, its end alone in the row of SWA.
    """
    rows = []
    for run in all_runs(root):
        config, techniques = run.config, run.config.techniques
        if config.evaluate_on != "validation" or config.dataset != dataset:
            continue
        accuracies = [row["test_accuracy_percent"] for row in run.epochs]
        parts = {techniques: accuracies[-3:]}
        if "swa" in techniques:
            before = tuple(name for name in techniques if name != "swa")
            parts = {before: accuracies[-4:-1], techniques: accuracies[-1:]}
        rows += [{"techniques": labels_of(names), "epochs": config.epochs, "optimizer": config.optimizer,
                  "learning rate": config.learning_rate, "model": config.model, "accuracy": statistics.mean(part)}
                 for names, part in parts.items()]
    keys = ["techniques", "epochs", "optimizer", "learning rate"]
    table = pd.DataFrame(rows, columns=[*keys, "model", "accuracy"]).pivot(
        index=keys, columns="model", values="accuracy")
    table["mean"] = table.mean(axis=1)

    def baseline_first(column):
        return column != "baseline" if column.name == "techniques" else column

    return table.sort_values(["techniques", "epochs", "mean"], ascending=[True, False, False],
                             key=baseline_first).round(2)
