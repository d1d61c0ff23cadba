"""The scorecard: what each kind of claim says of made-up runs, and of none."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from effcnn_helpers.errors import EffcnnError
from effcnn_helpers.paper import TABLE_3, TABLE_4, TABLE_5
from effcnn_helpers.scorecard import CLAIMS, SINGLES, SIX, scorecard

ROOT = Path(__file__).parents[1]
COLUMNS = ["stands in", "paper", "ours", "verdict or effect", "notebook"]


@pytest.fixture
def row_of_runs(write_record, tmp_path):
    """A function that writes a run for each number of wrong answers, with seeds from 0."""
    def write(row: str, *wrong: int, **changes):
        model, *techniques = re.split("[/+]", row)
        for seed, count in enumerate(wrong):
            write_record(model, wrong=count, seed=seed, root=tmp_path, config={"techniques": tuple(techniques)},
                         **changes)
    return write


@pytest.fixture
def told(tmp_path):
    """A function that gives (paper, ours, verdict or effect) of a claim."""
    return lambda claim: tuple(scorecard(tmp_path).loc[claim, COLUMNS[1:4]])


def test_without_records_the_papers_numbers_stand_alone(tmp_path):
    score = scorecard(tmp_path)
    assert score.index.name == "claim" and list(score.columns) == COLUMNS and score.index.is_unique
    assert Counter(score["verdict or effect"]) == {"not run": 35, "not measured": 3, "reproduced": 1}
    assert (score["ours"] == "not run").equals(score["verdict or effect"] == "not run")
    counted = score.loc["25K to 1.5K-DW: fewer parameters"]
    assert counted.to_list() == ["IV.A, V", "25,144 to 1,560", "25,144 to 1,560", "reproduced", "04"]
    assert score["paper"].map(bool).all() and score.equals(scorecard()), "$EFFCNN_RECORDED_DIR is empty, too"
    of_kinds = {"1.5K-DW is as good as 25K": "-1.00", "7K-DW is slower than 7K": "×1.25",
                "25K to 1.5K-DW: a smaller file": "107 to 19 KB", "MNIST: 98.35 % with 1,560 parameters": "98.35 %",
                "CIFAR-10: stacks beat the best single technique": "6 of 6 higher",
                "Six techniques gain more on CIFAR-10 (mean)": "+2.49 against +0.41",
                "State of the art": "no rival named", "More robust networks": "no number"}
    assert score["paper"][list(of_kinds)].to_dict() == of_kinds


def test_an_accuracy_has_a_verdict_by_the_spread_of_its_table(row_of_runs, told):
    plain, blurpool = "MNIST: 98.35 % with 1,560 parameters", "MNIST: 99.2 % with 1,560 parameters (BlurPool)"
    row_of_runs("1.5k-dw", 100, 104)
    row_of_runs("1.5k-dw/blurpool", 40, 42)
    assert told(plain) == ("98.35 %", "98.98 ± 0.03 (n=2)", "exceeded")
    assert told(blurpool) == ("99.21 %", "99.59 ± 0.01 (n=2)", "exceeded")
    row_of_runs("7k", 20, 150)
    assert [told(claim)[2] for claim in (plain, blurpool)] == ["within noise", "exceeded"], "7K is in Table 3 alone"
    row_of_runs("1.5k-dw/swa", 20, 150)
    assert told(blurpool)[2] == "within noise"


def test_a_difference_has_an_effect_over_the_best_of_its_rivals(row_of_runs, told):
    row_of_runs("1.5k-dw", 200, 202)
    assert told("1.5K-DW is as good as 25K") == ("-1.00", "not run", "not run")
    row_of_runs("25k", 100, 102)
    paper, ours, effect = told("1.5K-DW is as good as 25K")
    assert (paper, effect) == ("-1.00", "loss") and ours.startswith("-1.00 ± 0.")
    row_of_runs("1.5k-dw/blurpool", 120, 122)
    assert told("MNIST: BlurPool improves")[2] == "gain"
    for row in {*SINGLES["1.5k-dw"]} - {"1.5k-dw/blurpool", "1.5k-dw/swa"}:
        row_of_runs(row, 190, 192)
    before_all = "MNIST: BlurPool before all others"
    assert told(before_all) == ("+0.03", "not run", "not run"), "the best of its rivals has not run"
    row_of_runs("1.5k-dw/swa", 60, 62)
    paper, ours, effect = told(before_all)
    assert (paper, effect) == ("+0.03", "loss") and ours.startswith("-0.60 ± 0.")


def test_a_count_tells_how_many_rows_gained(row_of_runs, told):
    row_of_runs("1.5k-dw", 200, 202)
    for row, wrong in (("blurpool", 100), ("swa", 110), ("mixup", 300), ("cutout", 201)):
        row_of_runs(f"1.5k-dw/{row}", wrong, wrong + 2)
    assert told("MNIST: techniques improve in general") == (
        "7 of 8 higher", "1 within noise, 2 gain, 1 loss", "gain in 2 of 4")


def test_a_mean_gain_counts_each_technique_over_its_own_baseline(row_of_runs, told):
    claim = "Six techniques gain more on CIFAR-10 (mean)"
    for model, baseline, others in (("1.5k-dw", 200, 180), ("143k-dw", 2_000, 1_700)):
        row_of_runs(model, baseline, baseline + 2)
        for row in SIX[model][:-1]:
            row_of_runs(row, others, others + 2)
    row_of_runs(SIX["143k-dw"][-1], 1_700, 1_702)
    assert told(claim) == ("+2.49 against +0.41", "not run", "not run"), "one of the twelve is missing"
    row_of_runs(SIX["1.5k-dw"][-1], 180, 182)
    assert told(claim) == ("+2.49 against +0.41", "+3.00 against +0.20", "larger")


def test_a_file_is_smaller_or_not(row_of_runs, told):
    claim = "25K to 1.5K-DW: a smaller file"
    row_of_runs("1.5k-dw", 100, bytes={"safetensors": 9_776, "state_dict": 20 * 1024})
    assert told(claim)[1:] == ("not run", "not run")
    row_of_runs("25k", 100, bytes={"safetensors": 9_776, "state_dict": 10 * 1024})
    assert told(claim) == ("107 to 19 KB", "10.0 to 20.0 KB", "not smaller")


def test_a_latency_is_slower_where_the_quartiles_lie_apart(tmp_path, told):
    milliseconds = {"25k": [4000] * 3, "7k": [1000, 1100, 1200], "7k-dw": [2000, 2200, 2400], "5k": [2200] * 3,
                    "5k-dw": [2100, 2200, 2300], "1.5k-dw": [1000] * 3, "143k": [9000] * 3, "143k-dw": [9900] * 3}
    (tmp_path / "latency.json").write_text(json.dumps({"schema_version": 1, "rows": [
        {"view": "models", "variant": f"{model}/eager", "batch": 100, "times_ms": times}
        for model, times in milliseconds.items()]}), encoding="utf-8")
    assert told("7K-DW is slower than 7K") == ("×1.25", "×2.00", "slower")
    assert told("5K-DW is slower than 5K") == ("×0.99", "×1.00", "cannot tell")
    assert told("1.5K-DW is the fastest: against 25K") == ("×0.75", "×0.25", "faster")


def test_what_nobody_measures_has_no_verdict(tmp_path):
    score = scorecard(tmp_path).loc[["State of the art", "More robust networks", "Ideal for edge and mobile devices"]]
    assert set(score["ours"]) == set(score["verdict or effect"]) == {"not measured"}


def test_claims_name_rows_of_the_paper_and_notebooks_of_the_series():
    notebooks = {path.name[:2] for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")}
    tables = {"1.5k-dw": TABLE_4, "143k-dw": {**TABLE_4, **TABLE_5}}
    rows = {row.model for row in TABLE_3} | {
        f"{model}/{'+'.join(techniques)}" for model, table in tables.items() for techniques in table if techniques}
    for claim in CLAIMS:
        assert {*claim.rows, *claim.rivals} <= rows, claim.words
        named = re.findall(r"\b\d\d\b", claim.notebook)
        assert named and set(named) <= notebooks, claim.words


def test_a_damaged_record_is_not_passed_over(row_of_runs, tmp_path):
    row_of_runs("1.5k-dw", 100)
    [path] = tmp_path.rglob("run.json")
    path.write_text("{", encoding="utf-8")
    with pytest.raises(EffcnnError, match=re.escape(str(path.parent))):
        scorecard(tmp_path)
