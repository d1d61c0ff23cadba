import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t as student

from effcnn_helpers.errors import EffcnnError
from effcnn_helpers.paper import TABLE_4, TABLE_5
from effcnn_helpers.statistics import (
    Gain,
    Spread,
    Summary,
    binomial_se_percent,
    difference_of_means,
    gain_of_readings,
    gain_over,
    half_width,
    joined,
    paired_difference,
    spread_of,
    summarise,
    summary_of,
    verdict,
    wilson_percent,
)

EXACT = Spread(0.0, 5)  # seeds without any luck


def test_summary_of_a_row():
    assert summarise([]) is None
    assert summarise([98.5]) == Summary(1, 98.5, None)
    several = summarise([98.0, 98.5, 99.1])
    mean = (98.0 + 98.5 + 99.1) / 3
    by_hand = math.sqrt(((98.0 - mean) ** 2 + (98.5 - mean) ** 2 + (99.1 - mean) ** 2) / 2)
    assert several.n == 3
    assert several.mean_percent == pytest.approx(mean)
    assert several.sd_percent == pytest.approx(by_hand)


def test_summary_of_runs_is_by_their_last_epoch(make_record):
    runs = [make_record(wrong=wrong, fresh_correct=9_900) for wrong in (200, 100)]
    assert summary_of(runs) == summarise([98.0, 99.0])
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


def test_spread_weighs_each_row_by_its_degrees_of_freedom(row):
    rows = [row(200, 160, 150), row(100, 70), row(300)]
    accuracies = [[98.0, 98.4, 98.5], [99.0, 99.3], [97.0]]
    squares = sum((value - statistics.mean(one)) ** 2 for one in accuracies for value in one)
    spread = spread_of([*rows, []])
    assert spread.sd_percent == pytest.approx(math.sqrt(squares / (2 + 1)))
    assert spread.freedom == 2 + 1


@pytest.mark.parametrize("seeds", [[], [0, 0], [1, 0, 1]])
def test_there_is_no_spread_without_a_repeated_row(seeds, row):
    assert spread_of([row(*[100] * count) for count in seeds]) is None


@pytest.mark.parametrize("sd, freedom, named", [(-1.0, 2, "the spread is -1.0"), (0.3, 0, "freedom is 0"),
                                                (0.3, 1.5, "freedom is 1.5")])
def test_a_spread_that_cannot_be_is_refused(sd, freedom, named):
    with pytest.raises(EffcnnError, match=named):
        Spread(sd, freedom)


def test_students_factor_stands_in_every_textbook():
    assert [round(half_width(1.0, freedom), 3) for freedom in (1, 2, 10, math.inf)] == [12.706, 4.303, 2.228, 1.960]
    assert half_width(math.inf, 0) == math.inf


def test_degrees_of_freedom_are_those_of_welch_and_satterthwaite():
    """All of the seeds' where they are all there is; the more, the more of the error is known."""
    assert joined(0.0, Spread(0.5, 4), share=2) == pytest.approx((0.5 * math.sqrt(2), 4))
    error, freedom = joined(0.3, Spread(0.4, 4), share=1)
    assert error == pytest.approx(0.5)
    assert freedom == pytest.approx((0.3**2 + 0.4**2) ** 2 / (0.4**4 / 4))
    assert joined(0.3, Spread(0.0, 4), share=1) == (0.3, math.inf)
    assert joined(0.3, None, share=1) == (math.inf, 0)


@pytest.mark.parametrize("images", [0.0, 0.2, 1.0])
def test_an_interval_misses_the_truth_once_in_twenty(images):
    """Two thousand tables: a spread from 4 degrees of freedom, the mean of 3 seeds against that of 3 others."""
    random = np.random.default_rng(0)
    trials, missed = 2_000, 0
    for _ in range(trials):
        rows = random.normal(0, 0.3, (2, 3))
        spread = Spread(float(np.sqrt(rows.var(axis=1, ddof=1).mean())), 4)
        difference = rows[0].mean() - rows[1].mean() + random.normal(0, images)
        missed += abs(difference) > half_width(*joined(images, spread, 2 / 3))
    assert 0.035 < missed / trials < 0.065


def test_verdict_without_a_run():
    assert verdict(98.35, None, None) == "not run"


# The binomial standard error at 50 % is 0.5 points, so the margins come out by hand.
@pytest.mark.parametrize("n, sd, freedom, margin", [
    (1, 0.5, 20, student.ppf(0.975, 20 * (0.75 / 0.5) ** 2) * math.sqrt(0.25 + 0.25 * 2)),
    (3, 0.5, 2, student.ppf(0.975, 2 * (7 / 4) ** 2) * math.sqrt(0.25 + 0.25 * 4 / 3)),
    (5, 1.2, 8, student.ppf(0.975, 8 * (1.978 / 1.728) ** 2) * math.sqrt(0.25 + 1.44 * 6 / 5)),
])
def test_verdict_changes_at_the_margins(n, sd, freedom, margin):
    def verdict_at(difference):
        return verdict(50, Summary(n, 50 + difference, 0.1 if n > 1 else None), Spread(sd, freedom))

    # The degrees of freedom above: variance in all over that of the seeds, squared.
    assert verdict_at(0) == verdict_at(1 - 1e-9) == verdict_at(-1 + 1e-9) == "reproduced"
    within = (1 + 1e-9, margin - 1e-9, -1 - 1e-9, 1e-9 - margin)
    assert {verdict_at(points) for points in within} == {"within noise"}
    assert verdict_at(margin + 1e-9) == "exceeded"
    assert verdict_at(-margin - 1e-9) == "not reproduced"


def test_verdict_without_a_spread_cannot_tell_what_is_not_close():
    assert verdict(50, Summary(1, 51.0, None), None) == verdict(50, Summary(1, 49.0, None), None) == "reproduced"
    assert verdict(50, Summary(1, 60.0, None), None) == "within noise"


@pytest.mark.parametrize("ours, expected", [
    (98.35, "reproduced"), (98.60, "reproduced"), (98.10, "reproduced"),
    (98.61, "exceeded"), (98.09, "not reproduced")])
def test_verdict_on_the_papers_smallest_model(ours, expected):
    assert verdict(98.35, Summary(1, ours, None), EXACT) == expected


def test_verdict_would_not_tell_the_papers_own_combinations_apart():
    """Four rows of Table 5 lie between 86.08 and 86.37 %: single readings, so noise."""
    close = [percent for percent in TABLE_5.values() if 86 < percent < 86.5]
    assert len(close) == 4
    verdicts = {verdict(one, Summary(1, other, None), EXACT) for one in close for other in close}
    assert verdicts == {"reproduced"}
    mixup = Summary(1, TABLE_4[("mixup",)]["cifar10"], None)
    assert verdict(TABLE_4[()]["cifar10"], mixup, EXACT) == "exceeded"


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


def test_difference_of_means_is_by_the_share_of_runs_that_got_an_image_right(make_record):
    """Ten images, two runs against one."""
    def run(*wrong):
        return replace(make_record(total=10, wrong=len(wrong)), misclassified=dict.fromkeys(wrong, 3))

    first, second = [run(0, 1, 2, 3), run(0, 1, 4)], [run(2, 5, 6, 7, 8)]
    points, error = difference_of_means(first, second)
    per_image = [-1, -1, 1 / 2, -1 / 2, -1 / 2, 1, 1, 1, 1, 0]
    assert points == pytest.approx(100 * statistics.mean(per_image)) == pytest.approx(15)
    assert points == pytest.approx((60 + 70) / 2 - 50)
    assert error == pytest.approx(100 * statistics.pstdev(per_image) / math.sqrt(10))


def test_more_runs_that_err_by_chance_make_the_images_part_smaller(make_record):
    """Runs of a kind do not agree in all their mistakes; what they disagree in averages out."""
    def runs(places):
        return [replace(make_record(wrong=100), misclassified=dict.fromkeys(range(start, start + 100), 0))
                for start in places]

    assert (difference_of_means(runs([0, 50, 100]), runs([500]))[1]
            < difference_of_means(runs([0]), runs([500]))[1])


@pytest.mark.parametrize("points, error, freedom, effect, words", [
    (2.0, 0.9, 1e9, "gain", "+2.00 ± 1.76"), (-2.0, 0.9, 1e9, "loss", "-2.00 ± 1.76"),
    (1.77, 0.9, 1e9, "gain", "+1.77 ± 1.76"), (1.76, 0.9, 1e9, "within noise", "+1.76 ± 1.76"),
    (-2.0, 0.9, 4, "within noise", "-2.00 ± 2.50"), (0.0, 0.0, math.inf, "within noise", "+0.00 ± 0.00"),
    (5.0, math.inf, 0, "within noise", "+5.00 ± ?")])
def test_a_gain_counts_where_its_interval_does_not_hold_0(points, error, freedom, effect, words):
    gain = Gain(points, error, freedom)
    assert gain.effect == effect
    assert str(gain) == words
    if error:
        assert (gain.p_value < 0.05) == (effect != "within noise")


def test_p_value_is_that_of_students_t():
    assert Gain(2.776445, 1.0, 4).p_value == pytest.approx(0.05)
    assert Gain(-1.959964, 1.0, math.inf).p_value == pytest.approx(0.05)
    assert Gain(5.0, math.inf, 0).p_value == 1.0


def test_gain_has_the_sign_and_size_of_the_difference_of_the_means_shown(make_record):
    """Also where the two rows have other seeds: all runs of both sides count."""
    baseline = [make_record(seed=0, wrong=200), make_record(seed=1, wrong=300)]
    runs = [make_record(seed=1, wrong=250), make_record(seed=2, wrong=10)]
    spread = Spread(0.3, 12)
    gain = gain_over(runs, baseline, spread)
    assert gain.points == pytest.approx(summary_of(runs).mean_percent - summary_of(baseline).mean_percent)
    assert gain.points == pytest.approx(1.2)
    images = difference_of_means(runs, baseline)[1]
    assert (gain.error, gain.freedom) == joined(images, spread, 1 / 2 + 1 / 2)
    assert gain.error == pytest.approx(math.hypot(images, 0.3))
    assert gain_over([], baseline, spread) is gain_over(runs, [], spread) is None


def test_more_seeds_make_a_gain_surer(make_record):
    baseline = [make_record(seed=seed, wrong=200) for seed in range(3)]
    runs = [make_record(seed=seed, wrong=150) for seed in range(3)]
    spread = Spread(0.3, 12)
    widths = [gain_over(runs[:count], baseline[:count], spread).half_width for count in (1, 2, 3)]
    assert widths == sorted(widths, reverse=True) and widths[0] > 1.5 * widths[2]


def test_gain_without_a_spread_is_not_judged(make_record):
    gain = gain_over([make_record(wrong=100)], [make_record(wrong=900)], None)
    assert (str(gain), gain.effect) == ("+8.00 ± ?", "within noise")


def test_gain_of_runs_on_other_images_is_refused(make_record):
    with pytest.raises(EffcnnError, match="measured on different images"):
        gain_over([make_record(config={"evaluate_on": "validation"})], [make_record()], None)


def test_gain_of_the_papers_readings_is_by_the_test_images_alone():
    """143K with depthwise convolutions and without."""
    gain = gain_of_readings(79.90, 81.57)
    assert (str(gain), gain.effect) == ("-1.67 ± 1.09", "loss")
    # Both have 10,000 images: their variances add.
    assert gain.error == pytest.approx(math.sqrt(79.90 * 20.10 / 10_000 + 81.57 * 18.43 / 10_000))
    with pytest.raises(EffcnnError, match="an accuracy is None"):
        gain_of_readings(TABLE_4[("blurpool", "squeeze_excite", "swa")]["cifar10"], 79.90)


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
