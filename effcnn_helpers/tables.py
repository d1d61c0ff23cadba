"""The paper's tables with our recorded runs beside them."""

from dataclasses import replace
from pathlib import Path
from statistics import mean

import pandas as pd

from .latency import latency_path, passes_by_model, read_latency
from .models import model_of
from .paper import TABLE_3, TABLE_4, TABLE_4_MODELS, TABLE_5
from .recipes import dataset_of, recipe_of
from .records import all_runs, rows_of_model, table_runs
from .statistics import gain_over, spread_of, summary_of, verdict
from .techniques import labels_of

PAPER_GAIN = "paper's gain"  # an f-string of Python 3.11 cannot hold the apostrophe


def table_3(dataset: str, root: Path | None = None, recipe: str | None = None) -> pd.DataFrame:
    """Table 3 of the paper for one dataset: a row per model, the paper's numbers and ours.

    recipe: its name; default: that of the dataset's tables, here and below.
    Columns: model, depthwise, parameters, paper (percent), ours (Summary or None), verdict, paper_seconds,
    our_seconds (one pass over the test images, eager PyTorch, median of the recorded measurement; None without
    one), paper_kb, our_kb (torch's pickled state dict, 1 KB = 1,024 bytes: so weighed, ours agree with the paper's).
    """
    rows = [row for row in TABLE_3 if row.dataset == dataset]
    runs = {row.model: table_runs(row.model, recipe=recipe, root=root) for row in rows}
    spread = spread_of(runs.values())
    measured = latency_path(root)
    seconds = passes_by_model(read_latency(measured))["seconds"] if measured.exists() else {}
    return pd.DataFrame([{
        "model": row.label, "depthwise": "yes" if row.depthwise else "no", "parameters": row.parameters,
        "paper": row.accuracy_percent, "ours": summary_of(runs[row.model]),
        "verdict": verdict(row.accuracy_percent, summary_of(runs[row.model]), spread),
        "paper_seconds": row.latency_seconds, "our_seconds": seconds.get(row.label),
        "paper_kb": row.size_kb,
        "our_kb": runs[row.model][0].bytes["state_dict"] / 1024 if runs[row.model] else None,
    } for row in rows])


def worded(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracies, verdicts and sizes of a `table_3` as text, ready to be shown."""
    return pd.DataFrame({
        "model": table["model"],
        "parameters": [f"{count:,}" for count in table["parameters"]],
        "paper (%)": [f"{percent:.2f}" for percent in table["paper"]],
        "ours (%)": ["no run yet" if row is None else str(row) for row in table["ours"]],
        "verdict": table["verdict"],
        "paper (KB)": [str(kb) for kb in table["paper_kb"]],
        "ours (KB)": ["" if pd.isna(kb) else f"{kb:.1f}" for kb in table["our_kb"]],
    }).set_index("model")


def worded_seconds(table: pd.DataFrame) -> pd.DataFrame:
    """The latencies of a `table_3` as text."""
    return pd.DataFrame({
        "model": table["model"],
        "depthwise": table["depthwise"],
        "paper (s)": [f"{seconds:.2f}" for seconds in table["paper_seconds"]],
        "ours (s)": ["" if pd.isna(seconds) else f"{seconds:.2f}" for seconds in table["our_seconds"]],
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


def table_4(dataset: str, root: Path | None = None, recipe: str | None = None) -> pd.DataFrame:
    """Table 4 of the paper for one dataset: each technique on the smallest depthwise model.

    Columns: techniques (tuple), parameters (as trained; None without a run), paper (percent), ours (Summary
    or None), verdict, paper_gain (points over the paper's baseline), gain (Gain or None).
    """
    return technique_table(dataset, {row: by_dataset[dataset] for row, by_dataset in TABLE_4.items()}, root, recipe)


def table_5(root: Path | None = None, recipe: str | None = None) -> pd.DataFrame:
    """Table 5 of the paper, combinations on CIFAR-10; the baseline first, then columns and rows as in `table_4`."""
    return technique_table("cifar10", {(): TABLE_4[()]["cifar10"], **TABLE_5}, root, recipe)


def technique_table(dataset: str, paper: dict[tuple[str, ...], float | None], root: Path | None,
                    recipe: str | None) -> pd.DataFrame:
    """A row for each of the paper's accuracies by techniques, as `table_4` and `table_5` describe it; None: no row."""
    recorded = rows_of_model(TABLE_4_MODELS[dataset], recipe, root)
    spread = spread_of(recorded.values())
    baseline = recorded.get((), [])
    rows = []
    for techniques, percent in paper.items():
        if percent is None:
            continue
        runs = recorded.get(techniques, [])
        row = {"techniques": techniques, "parameters": runs[0].parameters if runs else None, "paper": percent,
               "ours": summary_of(runs), "verdict": verdict(percent, summary_of(runs), spread),
               "paper_gain": percent - paper[()],
               "gain": gain_over(runs, baseline, spread) if techniques else None}
        rows.append(row)
    return pd.DataFrame(rows)


def worded_techniques(table: pd.DataFrame) -> pd.DataFrame:
    """A `table_4` or `table_5` with every cell as text, ready to be shown."""
    return pd.DataFrame({
        "technique": [labels_of(row) for row in table["techniques"]],
        "paper (%)": [f"{percent:.2f}" for percent in table["paper"]],
        "ours (%)": ["no run yet" if row is None else str(row) for row in table["ours"]],
        "verdict": table["verdict"].to_list(),
        PAPER_GAIN: [f"{points:+.2f}" if row else ""
                     for row, points in zip(table["techniques"], table["paper_gain"], strict=True)],
        "our gain": ["" if gain is None else str(gain) for gain in table["gain"]],
        "effect": ["" if gain is None else gain.effect for gain in table["gain"]],
    }).set_index("technique")


def compare_technique(techniques: tuple[str, ...], root: Path | None = None) -> pd.DataFrame:
    """Baseline and one row of Table 4 on both datasets, worded for a notebook; the model is part of a row's name."""
    parts = []
    for dataset, model in TABLE_4_MODELS.items():
        table = table_4(dataset, root)
        rows = worded_techniques(table[table["techniques"].isin([(), techniques])])
        rows.index = [f"{model_of(model).label}, {name}" for name in rows.index]
        parts.append(rows)
    return pd.concat(parts).rename_axis("network")


def techniques_in_one_line(techniques: tuple[str, ...], root: Path | None = None) -> str:
    """Our gain beside the paper's on both datasets, for a notebook's headline."""
    rows = compare_technique(techniques, root).iloc[1::2]
    return "; ".join(f"{network.partition(',')[0]}: ours {row['ours (%)']}, gain {row['our gain'] or 'not measured'}, "
                     f"paper {row['paper (%)']}, gain {row[PAPER_GAIN]}" for network, row in rows.iterrows())


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


def pilot_table(dataset: str, root: Path | None = None, recipe: str | None = None) -> pd.DataFrame:
    """The validation runs behind a recipe: validation accuracy (%), one column per model, best mean first.

    One row per techniques, number of epochs, optimiser, learning rate and, where there is one, weight decay.
    The accuracy of a run that comes to rest is that of its last epoch, else the mean of its last three. At a
    constant rate a run with SWA is a baseline up to its last epoch: its three epochs before that stand in
    the baseline's row, its end alone in the row of SWA. A run that differs in anything else (a rung of notebook 16's
    ladders) is left out.
    """
    chosen = recipe_of(recipe, dataset)
    columns = ("name", "epochs", "optimizer", "learning_rate", "weight_decay")
    shown = {field: getattr(chosen, field) for field in columns}
    rows = []
    for run in all_runs(root, f"validation/{dataset}"):
        tried, techniques = run.config.recipe, run.config.techniques
        if tried.name not in (chosen.name, f"{chosen.name}-pilot") or replace(tried, **shown) != chosen:
            continue
        accuracies = [row["test_accuracy_percent"] for row in run.epochs]
        parts = {techniques: accuracies[-1:] if tried.comes_to_rest else accuracies[-3:]}
        if "swa" in techniques and not tried.comes_to_rest:
            before = tuple(name for name in techniques if name != "swa")
            parts = {before: accuracies[-4:-1], techniques: accuracies[-1:]}
        rows += [{"techniques": labels_of(names), "epochs": tried.epochs, "optimizer": tried.optimizer,
                  "learning rate": tried.learning_rate, "weight decay": tried.weight_decay,
                  "model": run.config.model, "accuracy": mean(part)}
                 for names, part in parts.items()]
    keys = ["techniques", "epochs", "optimizer", "learning rate"]
    if any(row["weight decay"] for row in rows):
        keys.append("weight decay")
    table = pd.DataFrame(rows, columns=[*keys, "model", "accuracy"]).pivot(
        index=keys, columns="model", values="accuracy")

    def baseline_first(column):
        return column != "baseline" if column.name == "techniques" else column

    ranked = table.assign(mean=table.mean(axis=1)).sort_values(
        ["techniques", "epochs", "mean"], ascending=[True, False, False], key=baseline_first)
    return ranked.drop(columns="mean").round(2)  # a mean over other models in each row compares nothing
