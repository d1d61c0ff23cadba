import json
import math
import statistics
from dataclasses import replace

import pytest

from effcnn_helpers.paper import TABLE_3, TABLE_4, TABLE_5, table_3_row
from effcnn_helpers.records import RecordError
from effcnn_helpers.tables import (
    Gain,
    Summary,
    binomial_se_percent,
    combinations_in_one_line,
    compare_technique,
    compare_with_paper,
    endings,
    fresh_statistics,
    gain_over,
    paired_difference,
    pilot_table,
    pooled_sd_percent,
    seed_spreads,
    summarise,
    table_3,
    table_4,
    table_5,
    techniques_in_one_line,
    verdict,
    worded,
    worded_techniques,
)


def test_summary_of_a_row():
    assert summarise([]) is None
    assert summarise([98.5]) == Summary(1, 98.5, None)
    several = summarise([98.0, 98.5, 99.1])
    mean = (98.0 + 98.5 + 99.1) / 3
    by_hand = math.sqrt(((98.0 - mean) ** 2 + (98.5 - mean) ** 2 + (99.1 - mean) ** 2) / 2)
    assert several.n == 3
    assert several.mean_percent == pytest.approx(mean) and several.sd_percent == pytest.approx(by_hand)


def test_summary_in_words():
    assert str(Summary(1, 98.346, None)) == "98.35 (n=1)"
    assert str(Summary(3, 98.5, 0.0649)) == "98.50 ± 0.06 (n=3)"


@pytest.mark.parametrize("accuracy, rounded", [(86, 0.35), (98.35, 0.13), (79.9, 0.40), (100, 0.0)])
def test_binomial_standard_error_of_the_tests_ten_thousand_images(accuracy, rounded):
    assert round(binomial_se_percent(accuracy), 2) == rounded


def test_binomial_standard_error_is_the_spread_of_a_count():
    """Against the whole distribution of the number of right answers among 30 images, at 80 %."""
    chances = [math.comb(30, right) * 0.8**right * 0.2 ** (30 - right) for right in range(31)]
    mean = sum(chance * right / 30 for right, chance in enumerate(chances))
    variance = sum(chance * (right / 30 - mean) ** 2 for right, chance in enumerate(chances))
    assert binomial_se_percent(80, images=30) == pytest.approx(100 * math.sqrt(variance))


def test_pooled_spread_weighs_each_row_by_its_degrees_of_freedom():
    rows = [[98.0, 98.4, 98.5], [99.0, 99.3], [97.0]]
    squares = sum((value - statistics.mean(row)) ** 2 for row in rows for value in row)
    pooled = pooled_sd_percent([summarise(row) for row in rows] + [None])
    assert pooled == pytest.approx(math.sqrt(squares / (2 + 1)))


@pytest.mark.parametrize("rows", [[], [None, None], [Summary(1, 98.0, None), None]])
def test_pooled_spread_is_zero_without_a_repeated_row(rows):
    assert pooled_sd_percent(rows) == 0


def test_verdict_without_a_run():
    assert verdict(98.35, None) == "not run"


# The binomial standard error at 50 % is 0.5 points, so the margins come out by hand.
@pytest.mark.parametrize("n, table_sd, margin", [
    (1, 0.0, 1.0),
    (1, 0.5, 2 * math.sqrt(0.25 + 0.25 * 2)),
    (3, 0.5, 2 * math.sqrt(0.25 + 0.25 * 4 / 3)),
    (5, 1.2, 2 * math.sqrt(0.25 + 1.44 * 6 / 5)),
])
def test_verdict_changes_at_the_margins(n, table_sd, margin):
    def verdict_at(difference):
        return verdict(50, Summary(n, 50 + difference, 0.1 if n > 1 else None), table_sd)

    assert verdict_at(0) == verdict_at(1 - 1e-9) == verdict_at(-1 + 1e-9) == "reproduced"
    if table_sd:
        assert {verdict_at(points) for points in (1 + 1e-9, margin - 1e-9, -1 - 1e-9, 1e-9 - margin)} == {
            "within noise"}
    assert verdict_at(margin + 1e-9) == "exceeded"
    assert verdict_at(-margin - 1e-9) == "not reproduced"


def test_verdict_at_exactly_the_margin_is_reproduced():
    assert verdict(50, Summary(1, 51.0, None)) == verdict(50, Summary(1, 49.0, None)) == "reproduced"


@pytest.mark.parametrize("ours, expected", [
    (98.35, "reproduced"), (98.60, "reproduced"), (98.10, "reproduced"),
    (98.61, "exceeded"), (98.09, "not reproduced")])
def test_verdict_on_the_papers_smallest_model(ours, expected):
    assert verdict(98.35, Summary(1, ours, None)) == expected


def test_verdict_would_not_tell_the_papers_own_combinations_apart():
    """Four rows of Table 5 lie between 86.08 and 86.37 %: single readings, so noise."""
    close = [percent for percent in TABLE_5.values() if 86 < percent < 86.5]
    assert len(close) == 4
    assert {verdict(one, Summary(1, other, None)) for one in close for other in close} == {"reproduced"}
    assert verdict(TABLE_4[()]["cifar10"], Summary(1, TABLE_4[("mixup",)]["cifar10"], None)) == "exceeded"


def test_paired_difference_by_hand(make_record):
    """Ten images: two that only the first got wrong, four that only the second did, two both."""
    first = replace(make_record(total=10, wrong=4), misclassified=dict.fromkeys([0, 1, 2, 3], 3))
    second = replace(make_record(total=10, wrong=6), misclassified=dict.fromkeys([2, 3, 4, 5, 6, 7], 8))
    difference, error = paired_difference(first, second)
    per_image = [-1, -1, 0, 0, 1, 1, 1, 1, 0, 0]  # right answer of the first minus that of the second
    assert difference == pytest.approx(100 * statistics.mean(per_image)) == pytest.approx(20)
    assert difference == pytest.approx(first.accuracy_percent - second.accuracy_percent)
    assert error == pytest.approx(100 * statistics.pstdev(per_image) / math.sqrt(10))

    back, same_error = paired_difference(second, first)
    assert back == -difference and same_error == error


def test_paired_difference_of_a_run_with_itself_is_nothing(make_record):
    assert paired_difference(make_record(), make_record()) == (0, 0)


@pytest.mark.parametrize("changes", [{"total": 9_000}, {"data": {"sha256": "another"}}])
def test_paired_difference_wants_the_same_images(changes, make_record):
    with pytest.raises(ValueError, match="measured on different images"):
        paired_difference(make_record(), make_record("7k", **changes))


def test_table_3_shows_exactly_the_recorded_numbers(write_record, tmp_path):
    for seed, wrong in enumerate((200, 160, 150)):
        write_record("1.5k-dw", wrong=wrong, seed=seed, root=tmp_path)
    write_record("7k", wrong=66, root=tmp_path, bytes={"safetensors": 33_333, "state_dict": 44_444})
    write_record("25k", wrong=5, seed=9, root=tmp_path, config={"evaluate_on": "validation"})
    table = table_3("mnist", tmp_path).set_index("model")
    assert list(table.index) == ["25K", "7K", "7K-DW", "5K", "5K-DW", "1.5K-DW"]
    assert list(table["paper"]) == [row.accuracy_percent for row in TABLE_3 if row.dataset == "mnist"]
    assert list(table["depthwise"]) == ["no", "no", "yes", "no", "yes", "yes"]
    assert list(table["parameters"]) == [25_144, 7_767, 7_611, 5_712, 5_616, 1_560]

    smallest, single = table.loc["1.5K-DW", "ours"], table.loc["7K", "ours"]
    assert smallest.n == 3
    assert smallest.mean_percent == pytest.approx((98.0 + 98.4 + 98.5) / 3)
    assert smallest.sd_percent == pytest.approx(statistics.stdev([98.0, 98.4, 98.5]))
    assert single == Summary(1, 99.34, None)
    assert table.loc["7K", "our_kb"] == 44_444 / 1024
    assert table.loc["1.5K-DW", "our_kb"] == 18_356 / 1024
    assert list(table["verdict"]) == ["not run", "reproduced", "not run", "not run", "not run", "reproduced"]
    assert [ours is None for ours in table["ours"]] == [True, False, True, True, True, False]


def test_table_3_judges_each_row_by_the_spread_of_its_table(write_record, tmp_path):
    """0.4 points too few: not reproduced by itself, within the noise that another row shows."""
    write_record("7k", wrong=106, root=tmp_path)
    assert table_3("mnist", tmp_path).set_index("model").loc["7K", "verdict"] == "not reproduced"
    for seed, wrong in enumerate((140, 190)):
        write_record("1.5k-dw", wrong=wrong, seed=seed, root=tmp_path)
    assert table_3("mnist", tmp_path).set_index("model").loc["7K", "verdict"] == "within noise"


def test_table_3_of_cifar10_without_runs():
    table = table_3("cifar10")
    assert list(table["model"]) == ["143K", "143K-DW"]
    assert list(table["verdict"]) == ["not run", "not run"]


def test_worded_table_says_the_same_in_text(write_record, tmp_path):
    write_record("1.5k-dw", wrong=165, root=tmp_path)
    (tmp_path / "latency.json").write_text(json.dumps({"schema_version": 1, "rows": [
        {"view": "models", "variant": "1.5k-dw/eager", "batch": 128, "times_ms": [2600, 2500, 9000]},
        {"view": "pass", "variant": "1.5k-dw/eager", "batch": 128, "times_ms": [2000, 2000, 2000]},
        {"view": "pass", "variant": "1.5k-dw/blurpool/eager", "batch": 128, "times_ms": [4000, 4000, 4000]},
        {"view": "pass", "variant": "1.5k-dw/openvino", "batch": 128, "times_ms": [300, 300, 300]}]}))
    text = worded(table_3("mnist", tmp_path))
    assert dict(text.loc["1.5K-DW"]) == {
        "depthwise": "yes", "parameters": "1,560", "paper (%)": "98.35", "ours (%)": "98.35 (n=1)",
        "verdict": "reproduced", "fresh statistics (%)": "98.35 (n=1)", "paper (s)": "2.52", "ours (s)": "2.60",
        "paper (KB)": "19", "ours (KB)": "17.9"}
    assert dict(text.loc["25K"]) == {
        "depthwise": "no", "parameters": "25,144", "paper (%)": "99.35", "ours (%)": "no run yet",
        "verdict": "not run", "fresh statistics (%)": "", "paper (s)": "3.36", "ours (s)": "",
        "paper (KB)": "107", "ours (KB)": ""}


def test_compare_with_paper_shows_the_rows_that_were_asked_for(write_record, tmp_path):
    write_record("7k-dw", wrong=54, root=tmp_path)
    text = compare_with_paper(["7k", "7k-dw"], tmp_path)
    assert list(text.index) == ["7K", "7K-DW"]
    assert text.loc["7K-DW", "ours (%)"] == "99.46 (n=1)"
    assert text.loc["7K", "verdict"] == "not run"
    assert float(text.loc["7K-DW", "paper (%)"]) == table_3_row("mnist", "7k-dw").accuracy_percent


def test_pilot_table_ranks_the_choices_by_their_last_three_epochs(write_record, tmp_path):
    """The made-up curves rise by 3 points an epoch, so the mean of the last three is 3 below the last."""
    for model, optimizer, rate, epochs, wrong in (
            ("1.5k-dw", "sgd", 0.1, 6, 200), ("25k", "sgd", 0.1, 6, 100), ("1.5k-dw", "adam", 0.01, 6, 150),
            ("25k", "adam", 0.01, 6, 50), ("25k", "sgd", 0.1, 12, 400)):
        write_record(model, wrong=wrong, root=tmp_path, config={
            "optimizer": optimizer, "learning_rate": rate, "evaluate_on": "validation", "epochs": epochs})
    write_record("25k", wrong=1, root=tmp_path)  # a test run has no say
    table = pilot_table("mnist", tmp_path)
    assert list(table.index) == [
        ("baseline", 12, "sgd", 0.1), ("baseline", 6, "adam", 0.01), ("baseline", 6, "sgd", 0.1)]
    assert table.iloc[1:].to_dict("records") == [{"1.5k-dw": 95.5, "25k": 96.5, "mean": 96.0},
                                                 {"1.5k-dw": 95.0, "25k": 96.0, "mean": 95.5}]
    assert table.iloc[0]["25k"] == table.iloc[0]["mean"] == 93.0
    assert len(pilot_table("mnist", tmp_path / "nowhere")) == 0


def test_pilot_table_takes_a_run_with_swa_for_a_baseline_but_for_its_end(write_record, tmp_path):
    write_record(wrong=200, root=tmp_path, config={
        "techniques": ("cutout", "swa"), "evaluate_on": "validation", "epochs": 8})
    table = pilot_table("mnist", tmp_path)
    assert table["1.5k-dw"].to_dict() == {("Cutout", 8, "sgd", 0.1): 92.0, ("Cutout + SWA", 8, "sgd", 0.1): 98.0}


# Techniques


@pytest.mark.parametrize("points, error, effect, words", [
    (2.0, 0.9, "gain", "+2.00 ± 0.90"), (-2.0, 0.9, "loss", "-2.00 ± 0.90"),
    (1.79, 0.9, "within noise", "+1.79 ± 0.90"), (-1.8, 0.9, "within noise", "-1.80 ± 0.90"),
    (0.0, 0.0, "within noise", "+0.00 ± 0.00")])
def test_gain_counts_beyond_two_standard_errors(points, error, effect, words):
    assert Gain(points, error).effect == effect
    assert str(Gain(points, error)) == words


def test_gain_compares_runs_of_the_same_seed(make_record):
    baseline = [make_record(seed=0, wrong=200), make_record(seed=1, wrong=300)]
    runs = [make_record(seed=1, wrong=250), make_record(seed=2, wrong=10)]
    alone = gain_over(runs, baseline)
    assert alone.points == pytest.approx(0.5)
    assert alone.standard_error == pytest.approx(paired_difference(runs[0], baseline[1])[1])
    # The spread between seeds counts for both sides of the difference.
    spread = gain_over(runs, baseline, {False: 0.3, True: 9})
    assert spread.standard_error == pytest.approx(math.sqrt(alone.standard_error**2 + 2 * 0.3**2))
    assert gain_over(runs[1:], baseline) is None and gain_over([], baseline) is None


def test_gain_over_several_seeds_is_their_mean_and_the_spread_shrinks(make_record):
    baseline = [make_record(seed=seed, wrong=200) for seed in (0, 1)]
    runs = [make_record(seed=0, wrong=150), make_record(seed=1, wrong=130)]
    gain = gain_over(runs, baseline, {False: 0.4, True: 9})
    errors = [paired_difference(*pair)[1] for pair in zip(runs, baseline, strict=True)]
    assert gain.points == pytest.approx(0.6)
    assert gain.standard_error == pytest.approx(math.sqrt(statistics.mean(errors) ** 2 + 2 * 0.4**2 / 2))


def test_fresh_gain_compares_what_was_right_with_fresh_statistics(write_record, tmp_path):
    write_record(wrong=200, root=tmp_path, fresh_correct=9_830)
    write_record(wrong=150, root=tmp_path, fresh_correct=9_860, config={"techniques": ("cutout",)})
    table = table_4("mnist", tmp_path).set_index("techniques")
    assert table.loc[[("cutout",)], "gain"].item().points == pytest.approx(0.5)
    assert table.loc[[("cutout",)], "fresh_gain"].item().points == pytest.approx(0.3)


def test_fresh_statistics_of_a_run_without_any_are_refused(make_record):
    assert fresh_statistics(make_record(fresh_correct=9_870)) == pytest.approx(98.7)
    with pytest.raises(RecordError, match="seed0 was not measured with fresh BatchNorm statistics"):
        fresh_statistics(make_record(fresh_correct=None))


def test_gain_of_a_row_that_settles_has_its_own_spread_on_its_side(make_record):
    runs = [make_record(config={"techniques": ("swa",)}, wrong=150)]
    gain = gain_over(runs, [make_record(wrong=200)], {False: 0.4, True: 0.1})
    images = paired_difference(runs[0], make_record(wrong=200))[1]
    assert gain.standard_error == pytest.approx(math.sqrt(images**2 + 0.4**2 + 0.1**2))


def test_spreads_are_pooled_over_rows_of_the_same_model_that_end_alike_or_over_plain_models(write_record, tmp_path):
    rows = (("7k", (), (100, 160)), ("1.5k-dw", (), (200, 240)), ("1.5k-dw", ("mixup",), (20,)),
            ("1.5k-dw", ("cutout",), (50, 80)))
    for model, techniques, wrong in rows:
        for seed, count in enumerate(wrong):
            write_record(model, wrong=count, seed=seed, root=tmp_path, config={"techniques": techniques})
    for seed, wrong in enumerate((3000, 2000)):
        write_record("143k", wrong=wrong, seed=seed, root=tmp_path)
    zigzag = math.sqrt((statistics.variance([2.0, 2.4]) + statistics.variance([0.5, 0.8])) / 2)
    assert seed_spreads("mnist", root=tmp_path) == pytest.approx({False: zigzag, True: zigzag})
    plain = math.sqrt((statistics.variance([1.0, 1.6]) + statistics.variance([2.0, 2.4])) / 2)
    assert seed_spreads("mnist", root=tmp_path, plain=True)[False] == pytest.approx(plain)
    for seed, wrong in enumerate((100, 110)):
        write_record(wrong=wrong, seed=seed, root=tmp_path, config={"techniques": ("swa",)})
    assert seed_spreads("mnist", root=tmp_path) == pytest.approx({False: zigzag, True: statistics.stdev([1.0, 1.1])})


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
    write_record(wrong=100, root=tmp_path, config={"techniques": ("squeeze_excite",)}, parameters=1_842)
    write_record(wrong=100, root=tmp_path, config={"techniques": ("cutout", "mixup")})  # no row of the paper
    write_record("7k", wrong=100, root=tmp_path, config={"techniques": ("cutout",)})   # another model
    text = worded_techniques(table_4("mnist", tmp_path))
    assert dict(text.loc["Squeeze-and-Excite"]) == {
        "parameters": "1,842", "paper (%)": "99.18", "ours (%)": "99.00 (n=1)", "verdict": "reproduced",
        "paper's gain": "+0.83", "our gain": "+0.65 ± 0.08", "effect": "gain",
        "gain, fresh statistics": "+0.65 ± 0.08", "effect, fresh": "gain"}
    assert dict(text.loc["baseline"]) == {
        "parameters": "1,560", "paper (%)": "98.35", "ours (%)": "98.35 (n=1)", "verdict": "reproduced",
        "paper's gain": "", "our gain": "", "effect": "", "gain, fresh statistics": "", "effect, fresh": ""}
    assert (text["ours (%)"] != "no run yet").sum() == 2


def test_table_5_begins_with_the_baseline(tmp_path):
    table = table_5(tmp_path)
    assert list(table["techniques"]) == [(), *TABLE_5] and table["paper"][0] == TABLE_4[()]["cifar10"]


def test_endings_shows_the_last_epoch_the_range_before_it_and_fresh_statistics(make_record):
    """The last five epochs of these records are 12, 9, 6, 3 and 0 points below their end."""
    [row] = endings([make_record(wrong=200, seed=1, fresh_correct=9_850)]).to_dict("records")
    assert row == {"techniques": "baseline", "seed": 1, "last epoch": 98.0, "last five epochs": "86.00 to 98.00",
                   "fresh statistics": 98.5}
    assert list(endings([]).columns) == list(row)


def test_combinations_in_one_line_names_the_best_of_ours_and_the_papers(write_record, tmp_path):
    papers = "the paper's best is Cutout + BlurPool + Mixup + Label smoothing + SAM + SWA with 86.76"
    assert combinations_in_one_line(tmp_path) == f"no combination run yet; {papers}"
    for wrong, techniques in ((1_500, ("cutout", "blurpool", "mixup")), (1_400, ("cutout", "blurpool", "mixup", "swa")),
                              (1_300, ())):
        write_record("143k-dw", wrong=wrong, root=tmp_path, config={"techniques": techniques})
    assert combinations_in_one_line(tmp_path).startswith(
        "our best of 2 combinations is Cutout + BlurPool + Mixup + SWA with 86.00 (n=1); the paper's best")


def test_compare_technique_shows_baseline_and_technique_of_both_datasets(write_record, tmp_path):
    write_record("143k-dw", wrong=2_000, root=tmp_path)
    write_record("143k-dw", wrong=1_700, root=tmp_path, config={"techniques": ("cutout",)})
    text = compare_technique(("cutout",), tmp_path)
    assert list(text.index) == [("1.5K-DW", "baseline"), ("1.5K-DW", "Cutout"), ("143K-DW", "baseline"),
                                ("143K-DW", "Cutout")]
    assert text.loc[("143K-DW", "Cutout"), "ours (%)"] == "83.00 (n=1)"
    assert techniques_in_one_line(("cutout",), tmp_path) == (
        "1.5K-DW: ours no run yet, gain not measured, paper 98.45, gain +0.10; "
        "143K-DW: ours 83.00 (n=1), gain +3.00 ± 0.17, paper 82.92, gain +3.02")
