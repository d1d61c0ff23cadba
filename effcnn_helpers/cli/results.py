"""Print the paper's tables with our recorded numbers beside them."""

import json

import pandas as pd
from tabulate import tabulate

from ..latency import latency_path, read_latency
from ..recipes import HEADLINE, RECIPES, knobs_of
from ..tables import table_3, table_4, table_5, worded, worded_techniques

BASIS = """\
Ours: mean ± standard deviation over n seeds, last epoch, all 10,000 test images.
Gain: over the baseline's runs of the same seeds, ± its standard error; within two of them it is noise.
Fresh statistics: with BatchNorm's statistics measured anew over training images, much less a matter of
when training stopped; the recipe does not do so, and no verdict uses it. The spread between seeds
that verdicts and gains take into account is pooled over rows with several: in Table 3 over the models of
the same images; in Tables 4 and 5 over the rows of the same images, one spread for those that come to
rest, one for those that stop in a zigzag."""


def results(format: str) -> int:
    """Print the tables as "terminal" text, "markdown" or "json"."""
    print(report(format))
    return 0


def report(format: str) -> str:
    """The paper's tables with ours beside them, and what they rest on, as `results` prints them."""
    tables = {
        "Table 3, MNIST half": table_3("mnist"),
        "Table 3, CIFAR-10 half": table_3("cifar10"),
        "Table 4, MNIST half: techniques on 1.5K-DW": table_4("mnist"),
        "Table 4, CIFAR-10 half: techniques on 143K-DW": table_4("cifar10"),
        "Table 5, CIFAR-10: combinations on 143K-DW": table_5(),
    }
    if format == "json":
        return json.dumps({title: json.loads(plain(table).to_json(orient="records"))
                           for title, table in tables.items()}, indent=1)
    heading, style = ("**{}**", "github") if format == "markdown" else ("{}", "simple")
    parts = []
    for title, table in tables.items():
        text = (worded_techniques(table) if "techniques" in table else worded(table)).reset_index()
        parts.append(heading.format(title))
        parts.append(tabulate(text, headers="keys", tablefmt=style, showindex=False, disable_numparse=True))
    lines = [BASIS]
    if latency_path().exists():
        measured = read_latency()
        lines.append(f"Latency: one pass over the test images, eager PyTorch, {measured['threads']} thread of "
                     f"{measured['machine']['cpu']}, median; the paper's processor is not named.")
    for (name, dataset), recipe in RECIPES.items():
        if name == HEADLINE:
            knobs = {**knobs_of(recipe), "augmentation": " + ".join(recipe.augmentation) or "none"}
            lines.append(f"Recipe of {dataset}: {', '.join(f'{key} {value}' for key, value in knobs.items())}.")
    return "\n\n".join([*parts, "\n".join(lines)])


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its summaries and gains as dicts."""
    return table.assign(**{name: [entry and vars(entry) for entry in table[name]]
                           for name in ("ours", "fresh", "gain", "fresh_gain") if name in table})
