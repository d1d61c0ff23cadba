import math
import statistics
from dataclasses import replace

import pytest

from effcnn_helpers.errors import EffcnnError
from effcnn_helpers.paper import TABLE_4, TABLE_5
from effcnn_helpers.statistics import (
    NO_SPREAD,
    Gain,
    Spread,
    Summary,
    binomial_se_percent,
    fresh_statistics,
    gain_over,
    last_epoch,
    paired_difference,
    pooled_sd_percent,
    spread_of,
    summarise,
    summary_of,
    verdict,
    wilson_percent,
)


def test_summary_of_a_row():
    assert summarise([]) is None
    assert summarise([98.5]) == Summary(1, 98.5, None)
    several = summarise([98.0, 98.5, 99.1])
    mean = (98.0 + 98.5 + 99.1) / 3
    by_hand = math.sqrt(((98.0 - mean) ** 2 + (98.5 - mean) ** 2 + (99.1 - mean) ** 2) / 2)
    assert several.n == 3
    assert several.mean_percent == pytest.approx(mean)
    assert several.sd_percent == pytest.approx(by_hand)


def test_summary_of_runs_counts_the_accuracy_that_is_asked_for(make_record):
    runs = [make_record(wrong=wrong, fresh_correct=fresh)
            for wrong, fresh in ((200, 9_850), (100, 9_870))]
    assert summary_of(runs) == summary_of(runs, last_epoch) == summarise([98.0, 99.0])
    assert summary_of(runs, fresh_statistics) == summarise([98.5, 98.7])
    assert summary_of([]) is None


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


@pytest.fixture
def row(make_record):
    """A function that makes up a row: a run for each count of wrong answers, seed by seed."""
    def make(*wrong: int, techniques=(), **changes):
        return [make_record(wrong=count, seed=seed, config={"techniques": techniques}, **changes)
                for seed, count in enumerate(wrong)]
    return make


def test_pooled_spread_weighs_each_row_by_its_degrees_of_freedom(row):
    rows = [row(200, 160, 150), row(100, 70), row(300)]
    accuracies = [[98.0, 98.4, 98.5], [99.0, 99.3], [97.0]]
    squares = sum((value - statistics.mean(one)) ** 2 for one in accuracies for value in one)
    assert pooled_sd_percent([*rows, []]) == pytest.approx(math.sqrt(squares / (2 + 1)))
    assert pooled_sd_percent(rows, fresh_statistics) == pytest.approx(pooled_sd_percent(rows))


def test_pooled_spread_is_of_the_accuracy_that_is_asked_for(row):
    runs = row(200, 100)
    runs = [replace(run, fresh_correct=9_850 + 10 * run.config.seed) for run in runs]
    by_hand = statistics.stdev([98.5, 98.6])
    assert pooled_sd_percent([runs], fresh_statistics) == pytest.approx(by_hand)


@pytest.mark.parametrize("seeds", [[], [0, 0], [1, 0, 1]])
def test_pooled_spread_is_zero_without_a_repeated_row(seeds, row):
    assert pooled_sd_percent([row(*[100] * count) for count in seeds]) == 0


def test_spread_is_that_of_rows_that_end_alike(row):
    moving = [row(200, 240), row(50, 80, techniques=("cutout",)), row(20, techniques=("mixup",))]
    resting = [row(100, 110, techniques=("swa",)), row(90, 94, techniques=("one_cycle_lr",))]
    zigzag = math.sqrt((statistics.variance([2.0, 2.4]) + statistics.variance([0.5, 0.8])) / 2)
    rest = math.sqrt((statistics.variance([1.0, 1.1]) + statistics.variance([0.9, 0.94])) / 2)
    spread = spread_of([*moving, [], *resting])
    assert (spread.moving, spread.resting) == pytest.approx((zigzag, rest))
    assert (spread.of(moving[0][0]), spread.of(resting[1][0])) == (spread.moving, spread.resting)


def test_a_recipe_that_falls_to_zero_makes_every_row_rest(row):
    runs = row(100, 110, recipe={"schedule": "linear"})
    spread = spread_of([runs, row(100, 400)])
    assert spread.of(runs[0]) == pytest.approx(statistics.stdev([1.0, 1.1]))


def test_rows_of_a_kind_without_repeats_are_taken_to_scatter_like_the_others(row):
    zigzag = statistics.stdev([2.0, 2.4])
    single = row(100, techniques=("swa",))
    assert vars(spread_of([row(200, 240), single])) == pytest.approx(
        {"resting": zigzag, "moving": zigzag})
    rest = statistics.stdev([1.0, 1.2])
    assert vars(spread_of([row(5), row(100, 120, techniques=("swa",))])) == pytest.approx(
        {"resting": rest, "moving": rest})
    assert spread_of([row(5), single]) == spread_of([]) == NO_SPREAD == Spread(0.0, 0.0)


def test_spread_is_of_the_accuracy_that_is_asked_for(row):
    runs = [replace(run, fresh_correct=9_900 + 10 * run.config.seed) for run in row(200, 100)]
    by_hand = statistics.stdev([99.0, 99.1])
    assert spread_of([runs], fresh_statistics).moving == pytest.approx(by_hand)


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
        within = (1 + 1e-9, margin - 1e-9, -1 - 1e-9, 1e-9 - margin)
        assert {verdict_at(points) for points in within} == {"within noise"}
    assert verdict_at(margin + 1e-9) == "exceeded"
    assert verdict_at(-margin - 1e-9) == "not reproduced"


def test_verdict_at_exactly_the_margin_is_reproduced():
    assert verdict(50, Summary(1, 51.0, None)) == "reproduced"
    assert verdict(50, Summary(1, 49.0, None)) == "reproduced"


@pytest.mark.parametrize("ours, expected", [
    (98.35, "reproduced"), (98.60, "reproduced"), (98.10, "reproduced"),
    (98.61, "exceeded"), (98.09, "not reproduced")])
def test_verdict_on_the_papers_smallest_model(ours, expected):
    assert verdict(98.35, Summary(1, ours, None)) == expected


def test_verdict_would_not_tell_the_papers_own_combinations_apart():
    """Four rows of Table 5 lie between 86.08 and 86.37 %: single readings, so noise."""
    close = [percent for percent in TABLE_5.values() if 86 < percent < 86.5]
    assert len(close) == 4
    verdicts = {verdict(one, Summary(1, other, None)) for one in close for other in close}
    assert verdicts == {"reproduced"}
    mixup = Summary(1, TABLE_4[("mixup",)]["cifar10"], None)
    assert verdict(TABLE_4[()]["cifar10"], mixup) == "exceeded"


def test_paired_difference_by_hand(make_record):
    """Ten images: two that only the first got wrong, four that only the second did, two both."""
    first = replace(make_record(total=10, wrong=4), misclassified=dict.fromkeys([0, 1, 2, 3], 3))
    second = replace(make_record(total=10, wrong=6), misclassified=dict.fromkeys(range(2, 8), 8))
    difference, error = paired_difference(first, second)
    # A right answer of the first minus one of the second, image by image.
    per_image = [-1, -1, 0, 0, 1, 1, 1, 1, 0, 0]
    assert difference == pytest.approx(100 * statistics.mean(per_image)) == pytest.approx(20)
    assert difference == pytest.approx(first.accuracy_percent - second.accuracy_percent)
    assert error == pytest.approx(100 * statistics.pstdev(per_image) / math.sqrt(10))

    back, same_error = paired_difference(second, first)
    assert back == -difference and same_error == error


def test_paired_difference_of_a_run_with_itself_is_nothing(make_record):
    assert paired_difference(make_record(), make_record()) == (0, 0)


@pytest.mark.parametrize("changes", [
    {"total": 9_000}, {"data": {"sha256": "another"}}, {"config": {"evaluate_on": "validation"}},
    {"config": {"dataset": "letters"}}], ids=str)
def test_paired_difference_wants_the_same_images(changes, make_record):
    """A validation run of 10,000 images and a test run of 10,000 saw none in common."""
    test_run, other = make_record(), make_record("7k", **changes)
    for pair in ((test_run, other), (other, test_run)):
        with pytest.raises(EffcnnError, match="measured on different images"):
            paired_difference(*pair)


def test_paired_difference_of_two_validation_runs_is_one_of_the_same_images(make_record):
    held_out = {"config": {"evaluate_on": "validation", "train_images": None}}
    difference, _ = paired_difference(make_record(wrong=100, **held_out),
                                      make_record("7k", wrong=150, **held_out))
    assert difference == pytest.approx(0.5)


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
    spread = gain_over(runs, baseline, Spread(resting=9, moving=0.3))
    assert spread.standard_error == pytest.approx(math.sqrt(alone.standard_error**2 + 2 * 0.3**2))
    assert gain_over(runs[1:], baseline) is None and gain_over([], baseline) is None


def test_gain_over_several_seeds_is_their_mean_and_the_spread_shrinks(make_record):
    baseline = [make_record(seed=seed, wrong=200) for seed in (0, 1)]
    runs = [make_record(seed=0, wrong=150), make_record(seed=1, wrong=130)]
    gain = gain_over(runs, baseline, Spread(resting=9, moving=0.4))
    errors = [paired_difference(*pair)[1] for pair in zip(runs, baseline, strict=True)]
    assert gain.points == pytest.approx(0.6)
    by_hand = math.sqrt(statistics.mean(errors) ** 2 + 2 * 0.4**2 / 2)
    assert gain.standard_error == pytest.approx(by_hand)


def test_fresh_statistics_are_a_share_of_the_test_images(make_record):
    assert fresh_statistics(make_record(fresh_correct=9_870)) == pytest.approx(98.7)


def test_gain_of_a_row_that_settles_has_its_own_spread_on_its_side(make_record):
    runs = [make_record(config={"techniques": ("swa",)}, wrong=150)]
    gain = gain_over(runs, [make_record(wrong=200)], Spread(resting=0.1, moving=0.4))
    images = paired_difference(runs[0], make_record(wrong=200))[1]
    assert gain.standard_error == pytest.approx(math.sqrt(images**2 + 0.4**2 + 0.1**2))


def test_gain_by_another_accuracy_compares_that_one(make_record):
    baseline = [make_record(wrong=200, fresh_correct=9_830)]
    runs = [make_record(wrong=150, fresh_correct=9_860)]
    assert gain_over(runs, baseline).points == pytest.approx(0.5)
    assert gain_over(runs, baseline, accuracy=fresh_statistics).points == pytest.approx(0.3)


def test_gain_of_runs_on_other_images_is_refused(make_record):
    with pytest.raises(EffcnnError, match="measured on different images"):
        gain_over([make_record(config={"evaluate_on": "validation"})], [make_record()])


@pytest.mark.parametrize("correct, images", [(0, 20), (20, 20), (7, 20), (159, 200), (9_834, 10_000)])
def test_wilsons_interval_ends_where_the_count_lies_two_standard_errors_away(correct, images):
    low, high = wilson_percent(correct, images)
    assert 0 <= round(low, 9) <= 100 * correct / images <= round(high, 9) <= 100
    for end in (low, high):
        if 0 < round(end, 9) < 100:
            assert abs(100 * correct / images - end) == pytest.approx(1.96 * binomial_se_percent(end, images))


def test_wilsons_interval_as_others_compute_it():
    """An example of Newcombe (1998), who compares such intervals: 15 of 148."""
    assert wilson_percent(15, 148) == pytest.approx((6.24, 16.05), abs=0.01)
