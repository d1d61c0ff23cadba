"""The numbers that the page of results and the committed notebooks show are the recorded ones."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from tabulate import tabulate

from effcnn_helpers.cli.results import report
from effcnn_helpers.datasets import DATASETS
from effcnn_helpers.ladder import goals_table, ladder_table, worded_ladder
from effcnn_helpers.maintain.figures import RESULTS
from effcnn_helpers.models import MODELS
from effcnn_helpers.paper import TABLE_5
from effcnn_helpers.records import record_to_json, recorded_dir, rows_of_model, table_runs
from effcnn_helpers.scorecard import scorecard
from effcnn_helpers.statistics import gain_over, spread_of, summary_of
from effcnn_helpers.tables import (
    combinations_in_one_line,
    compare_technique,
    pilot_table,
    table_3,
    table_4,
    table_5,
    techniques_in_one_line,
    worded,
    worded_techniques,
)
from effcnn_helpers.techniques import TECHNIQUES

ROOT = Path(__file__).parents[1]
SERIES = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))

# What the tables said when the prose was last read against them: the verdicts at the end of the notebooks, README,
# INSTRUCTORS. When one changes, read those sentences again, then write it here.
VERDICTS_WHEN_READ = {
    "25K": "reproduced",
    "7K": "reproduced",
    "7K-DW": "reproduced",
    "5K": "reproduced",
    "5K-DW": "reproduced",
    "1.5K-DW": "exceeded",
    "143K": "exceeded",
    "143K-DW": "exceeded",
}
# Verdict, effect.
EFFECTS_WHEN_READ = {
    ("mnist", ("one_cycle_lr",)): ("reproduced", "within noise"),
    ("mnist", ("cutout",)): ("within noise", "within noise"),
    ("mnist", ("blurpool",)): ("reproduced", "within noise"),
    ("mnist", ("squeeze_excite",)): ("within noise", "within noise"),
    ("mnist", ("mixup",)): ("exceeded", "loss"),
    ("mnist", ("label_smoothing",)): ("reproduced", "within noise"),
    ("mnist", ("sam",)): ("reproduced", "within noise"),
    ("mnist", ("swa",)): ("reproduced", "within noise"),
    ("mnist", ("blurpool", "squeeze_excite", "swa")): ("within noise", "within noise"),
    ("cifar10", ("one_cycle_lr",)): ("exceeded", "within noise"),
    ("cifar10", ("cutout",)): ("exceeded", "within noise"),
    ("cifar10", ("blurpool",)): ("exceeded", "gain"),
    ("cifar10", ("squeeze_excite",)): ("exceeded", "within noise"),
    ("cifar10", ("mixup",)): ("within noise", "gain"),
    ("cifar10", ("label_smoothing",)): ("exceeded", "within noise"),
    ("cifar10", ("sam",)): ("exceeded", "within noise"),
    ("cifar10", ("swa",)): ("exceeded", "within noise"),
    ("cifar10", ("cutout", "blurpool", "squeeze_excite", "mixup")): ("within noise", "gain"),
    ("cifar10", ("cutout", "blurpool", "mixup")): ("reproduced", "gain"),
    ("cifar10", ("cutout", "blurpool", "mixup", "sam")): ("reproduced", "gain"),
    ("cifar10", ("cutout", "blurpool", "mixup", "swa")): ("not reproduced", "within noise"),
    ("cifar10", ("cutout", "blurpool", "mixup", "label_smoothing")): ("reproduced", "gain"),
    ("cifar10", ("cutout", "blurpool", "mixup", "label_smoothing", "sam", "swa")): ("not reproduced", "within noise"),
}


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


def tables_with(heading: str) -> list[tuple[Path, str]]:
    """(notebook, HTML) of every DataFrame shown in the series with a column of this name."""
    found = [(path, output.get("data", {}).get("text/html", "")) for path in SERIES for output in outputs(path)]
    return [(path, html) for path, html in found if f">{heading}</th>" in html]


def test_page_of_results_shows_the_current_tables():
    shown = (ROOT / "figures/RESULTS.md").read_text(encoding="utf-8")
    assert shown == RESULTS + report("markdown") + "\n", "make figures"


def test_tables_in_the_notebooks_show_the_recorded_accuracies():
    expected = {model: row.to_list() for dataset in DATASETS
                for model, row in worded(table_3(dataset)).iterrows()}
    seen = set()
    for path, html in tables_with("paper (KB)"):
        for row in html_rows(html)[2:]:
            assert row[1:] == expected[row[0]], f"{path.name} shows {row}: make refresh"
            seen.add(row[0])
    assert seen == set(expected)


def test_technique_tables_in_the_notebooks_show_the_recorded_accuracies():
    seen = set()
    for path, html in tables_with("our gain"):
        if path.stem[3:] not in TECHNIQUES:
            continue
        expected = compare_technique((path.stem[3:],))
        rows = [[name, *cells] for name, cells in zip(expected.index, expected.values.tolist(), strict=True)]
        assert html_rows(html)[2:] == rows, f"{path.name}: make refresh"
        seen.add(path.stem[3:])
    assert seen == {path.stem[3:] for path in SERIES} & set(TECHNIQUES)


def test_tables_of_combinations_show_the_recorded_accuracies():
    mnist, cifar = table_4("mnist"), table_5()
    mnist = mnist[mnist["techniques"].map(lambda row: set(row) <= {"blurpool", "squeeze_excite", "swa"})]
    expected = [[[label, *cells] for label, cells in zip(table.index, table.values.tolist(), strict=True)]
                for table in map(worded_techniques, (mnist, cifar))]
    shown = [html_rows(html)[2:] for path, html in tables_with("our gain") if path.stem == "14_combinations"]
    assert shown and all(table in expected for table in shown), "make refresh"
    assert all(table in shown for table in expected)


def test_scorecard_in_notebook_14_is_that_of_the_recorded_runs():
    expected = scorecard()
    [html] = [html for path, html in tables_with("stands in") if path.stem == "14_combinations"]
    assert html_rows(html)[2:] == [
        [claim, *cells] for claim, cells in zip(expected.index, expected.values.tolist(), strict=True)], "make refresh"


def test_headlines_of_the_notebooks_show_the_recorded_accuracies():
    headlines = {path.stem: re.findall(r"^Headline: (.*)$", "\n".join(
        output.text for output in outputs(path) if output.output_type == "stream"), re.MULTILINE) for path in SERIES}
    assert {len(found) for found in headlines.values()} == {1}
    of_models = {}
    for stem, [text] in headlines.items():
        if stem[3:] in TECHNIQUES:
            assert text == techniques_in_one_line((stem[3:],)), f"{stem}: make refresh"
        elif stem == "14_combinations":
            assert text == combinations_in_one_line(), "make refresh"
        else:
            of_models |= dict(re.findall(r"([\d.]+K(?:-DW)?): ours (.*?), paper", text))
    expected = {model: row["ours (%)"] for dataset in DATASETS for model, row in worded(table_3(dataset)).iterrows()}
    assert of_models == expected, "make refresh"


def test_ladders_and_goals_in_notebook_16_are_those_of_the_recorded_runs():
    of_digits = [worded_ladder(ladder_table(budget))[["accuracy (%)", "gain"]] for budget in ("1.5k", "7k", "25k")]
    expected = {"effect": worded_ladder(ladder_table("143k")),
                "fresh BatchNorm statistics": pd.concat(of_digits, axis=1).fillna(""),
                "aim: any architecture": goals_table()}
    for heading, table in expected.items():
        [html] = [html for path, html in tables_with(heading) if path.name.startswith("16")]
        shown = html_rows(html)[-len(table):]
        assert shown == [[name, *cells] for name, cells in zip(table.index, table.values.tolist(), strict=True)], (
            f"{heading}: make refresh")


def test_a_stale_number_turns_the_suite_red(tmp_path, monkeypatch):
    """One more image right in each record of a row, and what the notebooks show is no longer what is recorded.

    In each, as the spread between seeds, which the intervals of other rows rest on, then stays as it is.
    """
    shutil.copytree(recorded_dir(), tmp_path / "recorded")
    monkeypatch.setenv("EFFCNN_RECORDED_DIR", str(tmp_path / "recorded"))
    test_headlines_of_the_notebooks_show_the_recorded_accuracies()
    for run in table_runs("143k-dw", ("mixup",)):
        fixed = dict(list(run.misclassified.items())[1:])
        text = record_to_json(replace(run, misclassified=fixed, correct=run.correct + 1))
        (recorded_dir() / run.config.name / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(AssertionError, match="10_mixup: make refresh"):
        test_headlines_of_the_notebooks_show_the_recorded_accuracies()
    with pytest.raises(AssertionError, match="10_mixup.ipynb: make refresh"):
        test_technique_tables_in_the_notebooks_show_the_recorded_accuracies()


def test_sizes_in_notebook_16_are_those_of_the_recorded_runs():
    [html, _] = [html for _, html in tables_with("trained by")]
    shown = {label: [int(count), accuracy] for _, label, _, count, accuracy in html_rows(html)[1:]}
    runs = {model.label: table_runs(model.name, recipe="settled") for model in MODELS.values()}
    assert shown == {label: [found[0].parameters, str(summary_of(found))] for label, found in runs.items() if found}


def test_notebook_14_holds_each_stack_against_the_sum_of_its_parts():
    """By the means of the rows, not image by image as there."""
    means = {techniques: summary_of(found).mean_percent for techniques, found in rows_of_model("143k-dw").items()}
    gains = {techniques: mean - means[()] for techniques, mean in means.items()}
    [html] = [html for _, html in tables_with("together minus sum")]
    for (_, _, _, _, difference, _), stack in zip(html_rows(html)[1:], TABLE_5, strict=True):
        expected = gains[stack] - sum(gains[(name,)] for name in stack)
        assert float(difference.split()[0]) == pytest.approx(expected, abs=0.006), stack


def test_notebook_14s_first_exercise_quotes_what_is_recorded():
    rows = rows_of_model("143k-dw", "constant")
    spread = spread_of(rows.values())
    stack, others = ("cutout", "blurpool", "mixup"), ("blurpool", "mixup", "label_smoothing")
    quoted = [(stack, ()), (("cutout", *others), others), *(((name,), ()) for name in stack), (stack, ()),
              ((*stack, "swa"), (*stack, "label_smoothing"))]
    expected = [str(gain_over(rows[row], rows[other], spread)).replace("-", "−") for row, other in quoted]
    [text] = [cell.source for cell in nbformat.read(ROOT / "notebooks/14_combinations.ipynb", 4).cells
              if "**1 (judge).**" in cell.source]
    assert re.findall(r"[+−]\d+\.\d\d ± \d+\.\d\d", text) == expected
    assert f"the standard deviation is {spread.sd_percent:.2f}" in text


# Accuracies in the README's findings: the words before and after, and the row.
README_SAYS = {
    "143K-DW reaches {} %": ("143k-dw", ()),
    "Cutout, BlurPool and Mixup together reach {} %": ("143k-dw", ("cutout", "blurpool", "mixup")),
    "86.8 % there, {} % here": ("143k-dw", max(TABLE_5, key=TABLE_5.get)),
    "1,560 parameters reach {} %": ("1.5k-dw", ()),
    "300 parameters read {} % of the digits": ("0.3k-dw", ()),
    "576 read {} %": ("0.6k-dw", ()),
}


def test_readme_says_what_is_recorded():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tabulate(goals_table().reset_index(), "keys", "github", showindex=False, disable_numparse=True) in text
    words = " ".join(text.split())
    for phrase, row in README_SAYS.items():
        assert phrase.format(f"{summary_of(table_runs(*row)).mean_percent:.1f}") in words, phrase


@pytest.mark.parametrize("dataset, stem", [("mnist", "00_start_here"), ("cifar10", "05_cifar10_143k")])
def test_the_tables_of_validation_runs_show_the_recorded_accuracies(dataset, stem):
    [html] = [html for path, html in tables_with("learning rate") if path.stem == stem]
    table = pilot_table(dataset)
    shown = [[float(cell) for cell in row[-len(table.columns):]] for row in html_rows(html)[2:]]
    np.testing.assert_array_equal(shown, table.to_numpy(), "make refresh")


def test_the_prose_was_read_since_a_verdict_or_an_effect_changed():
    tables = [table_3(dataset) for dataset in DATASETS]
    assert {row["model"]: row["verdict"] for table in tables for _, row in table.iterrows()} == VERDICTS_WHEN_READ
    rows = [("cifar10", row) for _, row in table_5().iterrows()]
    rows += [(dataset, row) for dataset in DATASETS for _, row in table_4(dataset).iterrows()]
    effects = {(dataset, row["techniques"]): (row["verdict"], row["gain"].effect)
               for dataset, row in rows if row["techniques"]}
    assert effects == EFFECTS_WHEN_READ
