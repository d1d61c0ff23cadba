"""Print the paper's tables with our recorded numbers beside them."""

import json

import pandas as pd
from tabulate import tabulate

from ..ladder import LADDERS, goals_table, ladder_table, worded_ladder
from ..latency import latency_path, read_latency
from ..recipes import RECIPES, knobs_of, recipe_of
from ..tables import table_3, table_4, table_5, worded, worded_seconds, worded_techniques

BASIS = """\
Ours: mean ± standard deviation over n seeds, last epoch, all 10,000 test images.
Gain: over all of the baseline's runs, ± half the width of its 95 % interval (Student's t); an effect is a gain
or a loss where the interval does not hold 0. Verdicts and gains take the luck of the seeds into account by a
spread that is pooled over rows with several seeds: in Table 3 over the models of the same images, in Tables 4
and 5 over the rows of the same images. If no technique did anything, one in twenty would still show an effect.
Beyond the paper: each change's gain is over the highest row above it that was kept; in brackets: not kept."""


def results(format: str) -> int:
    """Print the tables as "terminal" text, "markdown" or "json"."""
    print(report(format))
    return 0


def report(format: str) -> str:
    """The paper's tables with ours beside them, and what they rest on, as `results` prints them."""
    ladders = {ladder.parameters: ladder_table(budget) for budget, ladder in LADDERS.items()}
    halves = {"MNIST": table_3("mnist"), "CIFAR-10": table_3("cifar10")}
    tables = {
        **{f"Table 3, {half} half": table for half, table in halves.items()},
        "Table 4, MNIST half: techniques on 1.5K-DW": table_4("mnist"),
        "Table 4, CIFAR-10 half: techniques on 143K-DW": table_4("cifar10"),
        "Table 5, CIFAR-10: combinations on 143K-DW": table_5(),
        **{f"Beyond the paper, {parameters:,} parameters": table for parameters, table in ladders.items()
           if table["gain"].notna().any()},
    }
    if format == "json":
        return json.dumps({title: json.loads(plain(table).to_json(orient="records"))
                           for title, table in tables.items()}, indent=1)
    heading, style = ("**{}**", "github") if format == "markdown" else ("{}", "simple")
    words = {"techniques": worded_techniques, "change": worded_ladder, "depthwise": worded}  # by what a table has
    texts = {title: next(word for column, word in words.items() if column in table)(table)
             for title, table in tables.items()}
    texts["Beyond the paper: what each budget is to reach"] = goals_table()
    texts["Table 3: seconds"] = worded_seconds(pd.concat(halves.values()))
    parts = []
    for title, text in texts.items():
        text = text.reset_index()
        parts.append(heading.format(title))
        parts.append(tabulate(text, headers="keys", tablefmt=style, showindex=False, disable_numparse=True))
    lines = [BASIS]
    if latency_path().exists():
        measured = read_latency()
        lines.append(f"Latency: one pass over the test images, eager PyTorch, {measured['threads']} thread of "
                     f"{measured['machine']['cpu']}, median; the paper's processor is not named.")
    for (name, dataset), recipe in RECIPES.items():
        if name == recipe_of(None, dataset).name:
            knobs = {**knobs_of(recipe), "augmentation": " + ".join(recipe.augmentation) or "none"}
            lines.append(f"Recipe of {dataset}: {', '.join(f'{key} {value}' for key, value in knobs.items())}.")
    return "\n\n".join([*parts, "\n".join(lines)])


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its summaries and gains as dicts, a gain's interval with it."""
    ours = [ours and vars(ours) for ours in table["ours"]]
    if "gain" not in table:
        return table.assign(ours=ours)
    return table.assign(ours=ours, gain=[gain and {"points": gain.points, "half_width": gain.half_width,
                                                   "p_value": gain.p_value} for gain in table["gain"]])
