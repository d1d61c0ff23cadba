"""Print the paper's tables with our recorded numbers beside them."""

import json

from ..recipes import RECIPES
from ..tables import table_3, worded

TITLES = {"mnist": "Table 3, MNIST half"}


def results(format: str) -> int:
    """Print the tables as "terminal" text, "markdown" or "json"."""
    if format == "json":
        tables = {}
        for dataset, title in TITLES.items():
            table = table_3(dataset)
            table["ours"] = [summary and vars(summary) for summary in table["ours"]]
            tables[title] = json.loads(table.to_json(orient="records"))
        print(json.dumps(tables, indent=1))
        return 0
    for dataset, title in TITLES.items():
        table = worded(table_3(dataset)).reset_index()
        print(f"**{title}**\n" if format == "markdown" else f"{title}\n")
        print(aligned([list(table.columns), *table.values.tolist()], format == "markdown"))
        recipe = ", ".join(f"{key} {value}" for key, value in RECIPES[dataset].items())
        print("\nOurs: mean ± standard deviation over n seeds, last epoch, all 10,000 test images.")
        print(f"Recipe: {recipe}.\n")
    return 0


def aligned(rows: list[list[str]], markdown: bool) -> str:
    """Rows of text as a table with columns of equal width; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    edge, between = ("| ", " | ") if markdown else ("", "  ")
    lines = [f"{edge}{between.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))}{edge[::-1]}"
             for row in rows]
    rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|" if markdown else "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:]])
