"""The numbers that the README and the committed notebooks show are the recorded ones."""

import re
from pathlib import Path

import nbformat
import pytest

from effcnn_helpers.cli import main
from effcnn_helpers.tables import pilot_table, table_3, worded

ROOT = Path(__file__).parents[1]
SERIES = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


@pytest.fixture(autouse=True)
def recorded(monkeypatch):
    """The package's own runs."""
    monkeypatch.delenv("EFFCNN_RECORDED_DIR")


def outputs(path: Path) -> list:
    cells = nbformat.read(path, as_version=4).cells
    return [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]


def html_rows(html: str) -> list[list[str]]:
    """The rows of a DataFrame as a notebook shows it, heading first."""
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr.*?</tr>", html, re.DOTALL)]


def test_readme_shows_the_current_tables(capsys):
    assert main(["results", "--format", "markdown"]) == 0
    printed = capsys.readouterr().out.strip()
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- python -m effcnn_helpers results .*? -->\n(.*?)<!-- end of results -->", text, re.DOTALL)
    assert shown[1].strip() == printed, "paste the output of the command into README.md again"


def test_tables_in_the_notebooks_show_the_recorded_accuracies():
    expected = {model: row.to_list() for model, row in worded(table_3("mnist")).iterrows()}
    seen = set()
    for path in SERIES:
        for output in outputs(path):
            html = output.get("data", {}).get("text/html", "")
            if "ours (%)" in html:
                for row in html_rows(html)[2:]:
                    assert row[1:] == expected[row[0]], f"{path.name} shows {row}: make refresh"
                    seen.add(row[0])
    assert seen == set(expected)


def test_headlines_of_the_notebooks_show_the_recorded_accuracies():
    expected = worded(table_3("mnist"))["ours (%)"]
    found = re.findall(r"(?:Headline:|;) ([\d.]+K(?:-DW)?): ours (.*?), paper",
                       "\n".join(output.text for path in SERIES for output in outputs(path)
                                 if output.output_type == "stream"))
    assert dict(found) == expected.to_dict(), "make refresh"


def test_the_table_of_validation_runs_shows_the_recorded_accuracies():
    html = next(output.data["text/html"] for output in outputs(SERIES[0])
                if "learning rate" in output.get("data", {}).get("text/html", ""))
    shown = [row[-1] for row in html_rows(html)[2:]]
    assert [float(mean) for mean in shown] == pilot_table("mnist")["mean"].to_list(), "make refresh"
