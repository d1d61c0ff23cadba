import json
import math
import statistics
from dataclasses import asdict

import pytest

from effcnn_helpers.paper import TABLE_3, TABLE_4, TABLE_5, table_3_row
from effcnn_helpers.recipes import RECIPES, Recipe
from effcnn_helpers.records import table_runs
from effcnn_helpers.statistics import Spread, Summary, gain_over
from effcnn_helpers.tables import (
    combinations_in_one_line,
    compare_technique,
    compare_with_paper,
    in_one_line,
    pilot_table,
    table_3,
    table_4,
    table_5,
    techniques_in_one_line,
    worded,
    worded_seconds,
    worded_techniques,
)


def test_table_3_shows_exactly_the_recorded_numbers(write_record, tmp_path):
    for seed, wrong in enumerate((200, 160, 150)):
        write_record("1.5k-dw", wrong=wrong, seed=seed, root=tmp_path)
    write_record("7k", wrong=66, root=tmp_path, bytes={"safetensors": 33_333, "state_dict": 44_444})
    write_record("25k", wrong=5, seed=9, root=tmp_path, config={"evaluate_on": "validation"})
    table = table_3("mnist", tmp_path).set_index("model")
    assert list(table.index) == ["25K", "7K", "7K-DW", "5K", "5K-DW", "1.5K-DW"]
    digits = [row for row in TABLE_3 if row.dataset == "mnist"]
    assert list(table["paper"]) == [row.accuracy_percent for row in digits]
    assert list(table["depthwise"]) == ["no", "no", "yes", "no", "yes", "yes"]
    assert list(table["parameters"]) == [25_144, 7_767, 7_611, 5_712, 5_616, 1_560]

    smallest, single = table.loc["1.5K-DW", "ours"], table.loc["7K", "ours"]
    assert smallest.n == 3
    assert smallest.mean_percent == pytest.approx((98.0 + 98.4 + 98.5) / 3)
    assert smallest.sd_percent == pytest.approx(statistics.stdev([98.0, 98.4, 98.5]))
    assert single == Summary(1, 99.34, None)
    assert table.loc["7K", "our_kb"] == 44_444 / 1024
    assert table.loc["1.5K-DW", "our_kb"] == 18_356 / 1024
    measured = {"7K", "1.5K-DW"}
    assert dict(table["verdict"]) == {
        model: "reproduced" if model in measured else "not run" for model in table.index}
    assert {model for model, ours in table["ours"].items() if ours} == measured


def test_table_3_judges_each_row_by_the_spread_of_its_table(write_record, tmp_path):
    """0.4 points too few: noise where seeds are known to scatter as much, beyond it where they agree."""
    write_record("7k", wrong=106, root=tmp_path)

    def verdict_on_7k():
        return table_3("mnist", tmp_path).set_index("model").loc["7K", "verdict"]

    assert verdict_on_7k() == "within noise", "nothing is known of the seeds"
    for seed, wrong in enumerate((140, 141, 139)):
        write_record("1.5k-dw", wrong=wrong, seed=seed, root=tmp_path)
    assert verdict_on_7k() == "not reproduced"
    for seed, wrong in enumerate((40, 90)):
        write_record("5k-dw", wrong=wrong, seed=seed, root=tmp_path)
    assert verdict_on_7k() == "within noise"


def test_table_4_judges_by_all_rows_of_its_model(write_record, tmp_path):
    """Rows of other models and of other lengths do not count; all runs of both sides make the gain."""
    rows = [("1.5k-dw", (), (200, 240, 220)), ("1.5k-dw", ("swa",), (100, 110)), ("7k", (), (100, 900))]
    for model, techniques, wrong in rows:
        for seed, count in enumerate(wrong):
            write_record(model, wrong=count, seed=seed, root=tmp_path,
                         config={"techniques": techniques})
    for seed, count in enumerate((100, 900)):
        write_record(wrong=count, seed=seed, root=tmp_path, recipe={"epochs": 60})
    gain = table_4("mnist", tmp_path).set_index("techniques").loc[[("swa",)], "gain"].item()
    runs, baseline = (table_runs("1.5k-dw", row, root=tmp_path) for row in (("swa",), ()))
    variance = (2 * statistics.variance([2.0, 2.4, 2.2]) + statistics.variance([1.0, 1.1])) / 3
    by_hand = gain_over(runs, baseline, Spread(math.sqrt(variance), 3))
    assert vars(gain) == pytest.approx(vars(by_hand))
    assert gain.points == pytest.approx(2.2 - 1.05)


def test_a_table_of_another_recipe_takes_its_runs_alone(write_record, tmp_path, monkeypatch):
    for dataset in ("mnist", "cifar10"):
        monkeypatch.setitem(RECIPES, ("own", dataset), Recipe("own", epochs=3))
    write_record(wrong=200, root=tmp_path)
    own = asdict(Recipe("own", epochs=3))
    write_record(wrong=100, root=tmp_path, recipe=own)
    write_record(wrong=70, root=tmp_path, recipe=own, config={"techniques": ("cutout",)})
    write_record("143k-dw", wrong=1_400, root=tmp_path, recipe=own,
                 config={"techniques": ("cutout", "blurpool", "mixup")})

    def accuracies(table):
        return [ours.mean_percent for ours in table["ours"] if ours]

    assert accuracies(table_3("mnist", tmp_path)) == [98.0]
    assert accuracies(table_4("mnist", tmp_path)) == [98.0]
    assert accuracies(table_5(tmp_path)) == []
    assert accuracies(table_3("mnist", tmp_path, "own")) == [99.0]
    assert accuracies(table_4("mnist", tmp_path, "own")) == [99.0, 99.3]
    assert accuracies(table_5(tmp_path, "own")) == [86.0]


def test_each_record_is_read_once_for_a_comparison(write_record, tmp_path, files_read):
    for model in ("7k", "7k-dw", "1.5k-dw", "143k-dw"):
        for seed in (0, 1):
            write_record(model, seed=seed, root=tmp_path)
            write_record(model, seed=seed, root=tmp_path, config={"techniques": ("mixup",)})
    for compare, most in ((lambda: compare_with_paper(["7k", "7k-dw"], tmp_path), 6),
                          (lambda: in_one_line(["143k-dw"], tmp_path), 2),
                          (lambda: compare_technique(("mixup",), tmp_path), 8),
                          (lambda: combinations_in_one_line(tmp_path), 4)):
        files_read.clear()
        compare()
        assert len(files_read) == len(set(files_read)) == most


def test_table_3_of_cifar10_without_runs():
    table = table_3("cifar10")
    assert list(table["model"]) == ["143K", "143K-DW"]
    assert list(table["verdict"]) == ["not run", "not run"]


def test_worded_table_says_the_same_in_text(write_record, tmp_path):
    write_record("1.5k-dw", wrong=165, root=tmp_path)
    (tmp_path / "latency.json").write_text(json.dumps({"schema_version": 1, "rows": [
        {"view": "models", "variant": "1.5k-dw/eager", "batch": 128,
         "times_ms": [2600, 2500, 9000]},
        {"view": "pass", "variant": "1.5k-dw/eager", "batch": 128, "times_ms": [2000, 2000, 2000]},
        {"view": "pass", "variant": "1.5k-dw/blurpool/eager", "batch": 128,
         "times_ms": [4000, 4000, 4000]},
        {"view": "pass", "variant": "1.5k-dw/openvino", "batch": 128,
         "times_ms": [300, 300, 300]}]}))
    table = table_3("mnist", tmp_path)
    assert {model: dict(row) for model, row in worded(table).iterrows() if model in ("1.5K-DW", "25K")} == {
        "1.5K-DW": {"parameters": "1,560", "paper (%)": "98.35", "ours (%)": "98.35 (n=1)",
                    "verdict": "reproduced", "paper (KB)": "19", "ours (KB)": "17.9"},
        "25K": {"parameters": "25,144", "paper (%)": "99.35", "ours (%)": "no run yet",
                "verdict": "not run", "paper (KB)": "107", "ours (KB)": ""}}
    seconds = worded_seconds(table)
    assert dict(seconds.loc["1.5K-DW"]) == {"depthwise": "yes", "paper (s)": "2.52", "ours (s)": "2.60"}
    assert dict(seconds.loc["25K"]) == {"depthwise": "no", "paper (s)": "3.36", "ours (s)": ""}


def test_compare_with_paper_shows_the_rows_that_were_asked_for(write_record, tmp_path):
    write_record("7k-dw", wrong=54, root=tmp_path)
    text = compare_with_paper(["7k", "7k-dw"], tmp_path)
    assert list(text.index) == ["7K", "7K-DW"]
    assert text.loc["7K-DW", "ours (%)"] == "99.46 (n=1)"
    assert text.loc["7K", "verdict"] == "not run"
    assert float(text.loc["7K-DW", "paper (%)"]) == table_3_row("mnist", "7k-dw").accuracy_percent
    assert in_one_line(["7k", "7k-dw"], tmp_path) == (
        "7K: ours no run yet, paper 99.34, not run; "
        "7K-DW: ours 99.46 (n=1), paper 99.46, reproduced")


HELD_OUT = {"evaluate_on": "validation", "train_images": None}
CONSTANT = {"name": "constant", "schedule": "constant", "rise": 0.0, "weight_decay": 0.0, "learning_rate": 0.1}


def test_pilot_table_ranks_the_choices_by_their_last_three_epochs(write_record, tmp_path):
    """The curves rise by 3 points an epoch: the mean of the last three is 3 below the last."""
    for model, optimizer, rate, epochs, wrong in (
            ("1.5k-dw", "sgd", 0.1, 6, 200), ("25k", "sgd", 0.1, 6, 100),
            ("1.5k-dw", "adam", 0.01, 6, 150), ("25k", "adam", 0.01, 6, 50),
            ("25k", "sgd", 0.1, 12, 400)):
        tried = {**CONSTANT, "optimizer": optimizer, "learning_rate": rate, "epochs": epochs}
        write_record(model, wrong=wrong, root=tmp_path, recipe=tried, config=HELD_OUT)
    write_record("25k", wrong=9, root=tmp_path, recipe={"name": "own"}, config=HELD_OUT)
    write_record("25k", wrong=1, root=tmp_path, recipe=CONSTANT)  # a test run has no say
    write_record("25k", wrong=2, root=tmp_path, recipe={**CONSTANT, "augmentation": ("affine",)}, config=HELD_OUT)
    table = pilot_table("mnist", tmp_path, "constant")
    assert list(table.index) == [
        ("baseline", 12, "sgd", 0.1), ("baseline", 6, "adam", 0.01), ("baseline", 6, "sgd", 0.1)]
    assert table.iloc[1:].to_dict("records") == [{"1.5k-dw": 95.5, "25k": 96.5},
                                                 {"1.5k-dw": 95.0, "25k": 96.0}]
    assert table.iloc[0]["25k"] == 93.0
    assert len(pilot_table("mnist", tmp_path / "nowhere")) == 0


def test_pilot_table_takes_a_run_with_swa_for_a_baseline_but_for_its_end(write_record, tmp_path):
    write_record(wrong=200, root=tmp_path, recipe={**CONSTANT, "epochs": 8},
                 config={"techniques": ("cutout", "swa"), **HELD_OUT})
    table = pilot_table("mnist", tmp_path, "constant")
    assert table["1.5k-dw"].to_dict() == {
        ("Cutout", 8, "sgd", 0.1): 92.0, ("Cutout + SWA", 8, "sgd", 0.1): 98.0}


def test_pilot_table_is_of_the_recipe_that_is_asked_for(write_record, tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, ("own", "mnist"), Recipe("own", epochs=4))
    write_record(wrong=200, root=tmp_path, config=HELD_OUT)
    write_record(wrong=100, root=tmp_path, recipe={**CONSTANT, "name": "own", "epochs": 4}, config=HELD_OUT)
    assert pilot_table("mnist", tmp_path)["1.5k-dw"].to_list() == [98.0]
    assert pilot_table("mnist", tmp_path, "own")["1.5k-dw"].to_list() == [96.0]


def test_pilot_table_takes_the_end_of_a_run_that_comes_to_rest_and_shows_its_weight_decay(write_record, tmp_path):
    falling = {"name": "settled-pilot", "schedule": "linear", "epochs": 8}
    for decay, wrong in ((1e-4, 200), (5e-4, 100)):
        write_record(wrong=wrong, root=tmp_path, recipe=falling | {"weight_decay": decay},
                     config={"techniques": ("swa",), **HELD_OUT})
    table = pilot_table("mnist", tmp_path, "settled")
    assert table["1.5k-dw"].to_dict() == {("SWA", 8, "sgd", 0.3, 5e-4): 99.0, ("SWA", 8, "sgd", 0.3, 1e-4): 98.0}


# Techniques


@pytest.mark.parametrize("dataset, rows", [("mnist", 10), ("cifar10", 9)])
def test_table_4_has_the_papers_rows_and_waits_for_ours(dataset, rows, tmp_path):
    table = table_4(dataset, tmp_path)
    assert len(table) == rows and table["techniques"][0] == ()
    for _, row in table.iterrows():
        assert row["paper"] == TABLE_4[row["techniques"]][dataset]
        assert row["ours"] is None and row["gain"] is None and row["verdict"] == "not run"
        assert row["paper_gain"] == pytest.approx(row["paper"] - TABLE_4[()][dataset])


def test_table_4_shows_parameters_accuracy_and_gain_of_the_recorded_runs(write_record, tmp_path):
    write_record(wrong=165, root=tmp_path)
    write_record(wrong=100, root=tmp_path, parameters=1_842,
                 config={"techniques": ("squeeze_excite",)})
    # No row of the paper, and a row of another model.
    write_record(wrong=100, root=tmp_path, config={"techniques": ("cutout", "mixup")})
    write_record("7k", wrong=100, root=tmp_path, config={"techniques": ("cutout",)})
    table = table_4("mnist", tmp_path)
    assert table["parameters"].dropna().to_list() == [1_560, 1_842]
    text = worded_techniques(table)
    assert dict(text.loc["Squeeze-and-Excite"]) == {
        "paper (%)": "99.18", "ours (%)": "99.00 (n=1)", "verdict": "reproduced",
        "paper's gain": "+0.83", "our gain": "+0.65 ± ?", "effect": "within noise"}
    assert dict(text.loc["baseline"]) == {
        "paper (%)": "98.35", "ours (%)": "98.35 (n=1)", "verdict": "reproduced",
        "paper's gain": "", "our gain": "", "effect": ""}
    assert (text["ours (%)"] != "no run yet").sum() == 2


def test_table_5_begins_with_the_baseline(tmp_path):
    table = table_5(tmp_path)
    assert list(table["techniques"]) == [(), *TABLE_5]
    assert table["paper"][0] == TABLE_4[()]["cifar10"]


def test_combinations_in_one_line_names_the_best_of_ours_and_the_papers(write_record, tmp_path):
    papers = ("the paper's best is Cutout + BlurPool + Mixup + Label smoothing + SAM + SWA "
              "with 86.76")
    assert combinations_in_one_line(tmp_path) == f"no combination run yet; {papers}"
    stack = ("cutout", "blurpool", "mixup")
    for wrong, techniques in ((1_500, stack), (1_400, (*stack, "swa")), (1_300, ())):
        write_record("143k-dw", wrong=wrong, root=tmp_path, config={"techniques": techniques})
    assert combinations_in_one_line(tmp_path).startswith(
        "our best of 2 combinations is Cutout + BlurPool + Mixup + SWA with 86.00 (n=1); the "
        "paper's best")


def test_compare_technique_shows_baseline_and_technique_of_both_datasets(write_record, tmp_path):
    write_record("143k-dw", wrong=2_000, root=tmp_path)
    for seed in (0, 1):
        write_record("143k-dw", wrong=1_700, seed=seed, root=tmp_path, config={"techniques": ("cutout",)})
    text = compare_technique(("cutout",), tmp_path)
    assert list(text.index) == [f"{model}, {row}" for model in ("1.5K-DW", "143K-DW")
                                for row in ("baseline", "Cutout")]
    assert text.loc["143K-DW, Cutout", "ours (%)"] == "83.00 ± 0.00 (n=2)"
    assert techniques_in_one_line(("cutout",), tmp_path) == (
        "1.5K-DW: ours no run yet, gain not measured, paper 98.45, gain +0.10; "
        "143K-DW: ours 83.00 ± 0.00 (n=2), gain +3.00 ± 0.33, paper 82.92, gain +3.02")
