"""What recorded runs say: means and spreads, verdicts on the paper's numbers, gains. Accuracies are in percent."""

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from scipy.stats import t as student

from .errors import EffcnnError
from .paper import TEST_IMAGES
from .records import RunRecord


@dataclass(frozen=True)
class Summary:
    """Accuracies of the runs of one row. sd_percent: sample standard deviation, None for a single run."""

    n: int
    mean_percent: float
    sd_percent: float | None

    def __str__(self) -> str:
        spread = f" ± {self.sd_percent:.2f}" if self.sd_percent is not None else ""
        return f"{self.mean_percent:.2f}{spread} (n={self.n})"


def check_percent(value: float, what: str = "an accuracy") -> None:
    """Raise EffcnnError unless a value is a number from 0 to 100."""
    if not isinstance(value, int | float) or not 0 <= value <= 100:
        raise EffcnnError(f"{what} is {value!r}; use a number from 0 to 100")


def summarise(accuracies_percent: list[float]) -> Summary | None:
    """Number, mean and spread of a row's accuracies; None when there is no run.

    Raises EffcnnError for what is no percentage.
    """
    for accuracy in accuracies_percent:
        check_percent(accuracy)
    if not accuracies_percent:
        return None
    spread = statistics.stdev(accuracies_percent) if len(accuracies_percent) > 1 else None
    return Summary(len(accuracies_percent), statistics.mean(accuracies_percent), spread)


def summary_of(runs: list[RunRecord]) -> Summary | None:
    """The summary of recorded runs; None when there is none."""
    return summarise([run.accuracy_percent for run in runs])


def binomial_se_percent(accuracy_percent: float, images: int = TEST_IMAGES) -> float:
    """Standard error, in percentage points, of an accuracy measured once on `images` test images."""
    check_percent(accuracy_percent)
    if not isinstance(images, int) or images < 1:
        raise EffcnnError(f"images is {images!r}; use a whole number of 1 or more")
    share = accuracy_percent / 100
    return 100 * math.sqrt(share * (1 - share) / images)


def wilson_percent(correct: int, images: int, sigmas: float = 1.96) -> tuple[float, float]:
    """Wilson's interval for an accuracy, in percent: the accuracies that `correct` of `images` leave possible.

    Unlike the accuracy ± its standard error it stays within 0 to 100 % and is honest for few images.
    """
    share, square = correct / images, sigmas**2 / images
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(share * (1 - share) * square + square**2 / 4) / (1 + square)
    return 100 * (middle - half), 100 * (middle + half)


@dataclass(frozen=True)
class Spread:
    """How far runs lie apart that differ in their seed alone.

    sd_percent: their standard deviation, in percentage points. freedom: degrees of freedom of that estimate, at
    least 1; the fewer, the less it can be trusted.
    """

    sd_percent: float
    freedom: int

    def __post_init__(self):
        check_percent(self.sd_percent, "the spread")
        if not isinstance(self.freedom, int) or not 1 <= self.freedom < 10**9:
            raise EffcnnError(f"freedom is {self.freedom!r}; use a whole number from 1 to 999999999")


def spread_of(rows: Iterable[list[RunRecord]]) -> Spread | None:
    """The spread between seeds, pooled over rows, as the few seeds of a row do not show its own.

    A row with one seed is taken to scatter like the others. None where no row has several.
    """
    summaries = [summary_of(runs) for runs in rows if len(runs) > 1]
    freedom = sum(row.n - 1 for row in summaries)
    if not freedom:
        return None
    squares = sum((row.n - 1) * row.sd_percent**2 for row in summaries)
    return Spread(math.sqrt(squares / freedom), freedom)


def joined(images: float, spread: Spread | None, share: float) -> tuple[float, float]:
    """(standard error, degrees of freedom) of a difference that owes something to images and something to seeds.

    images: the standard error by the images, in points, which is known. share: the variance that the seeds add, as
    a multiple of `spread`'s, which is estimated; so the degrees of freedom are those of Welch and Satterthwaite.
    Infinite and 0 where the spread is unknown.
    """
    if spread is None:
        return math.inf, 0
    seeds = spread.sd_percent * math.sqrt(share)
    error = math.hypot(images, seeds)
    return error, spread.freedom * (error / seeds) ** 4 if seeds else math.inf


def half_width(error: float, freedom: float) -> float:
    """Half the width of the 95 % interval around a difference, by Student's t; infinite for an infinite error."""
    return error * float(student.ppf(0.975, freedom)) if freedom else math.inf


def verdict(paper_percent: float, ours: Summary | None, spread: Spread | None) -> str:
    """What our accuracy says of the paper's single reading; "not run" without one of ours.

    "reproduced": they differ by no more than two binomial standard errors of 10,000 test images.
    "within noise": by more, but their 95 % interval, seeds included (see `joined`), still holds 0: the two can
    be told apart neither from each other nor from a disagreement of that size. Without any spread, too.
    "exceeded", "not reproduced": ours is higher or lower than that.

    The paper gives no spread, so its one seed is taken to scatter like each of ours: sd² (1 + 1/n).
    """
    check_percent(paper_percent, "the paper's accuracy")
    if ours is None:
        return "not run"
    binomial = binomial_se_percent(paper_percent)
    difference = ours.mean_percent - paper_percent
    if abs(difference) <= 2 * binomial:
        return "reproduced"
    if abs(difference) <= half_width(*joined(binomial, spread, 1 + 1 / ours.n)):
        return "within noise"
    return "exceeded" if difference > 0 else "not reproduced"


def paired_difference(first: RunRecord, second: RunRecord) -> tuple[float, float]:
    """(accuracy of `first` minus that of `second`, its standard error by the images), in percentage points.

    Both networks saw the same images, so only those count that exactly one of them got wrong (McNemar).
    Raises EffcnnError when the two were measured on different images.
    """
    return difference_of_means([first], [second])


def difference_of_means(first: list[RunRecord], second: list[RunRecord]) -> tuple[float, float]:
    """(mean accuracy of `first` minus that of `second`, its standard error by the images), in percentage points.

    For each image the share of the first runs that got it right minus that of the second: the mean of these
    differences, and its standard error. For one run on either side that is McNemar's. The luck of the seeds is
    not in it. Raises EffcnnError when they were measured on different images.
    """
    reference = first[0]
    for run in [*first, *second]:
        if measured_on(run) != measured_on(reference):
            raise EffcnnError(f"{reference.config.name} and {run.config.name} were measured on different images; "
                              "compare runs on the same ones")
    # By image: the share of the first that got it right minus that of the second.
    lead: defaultdict[int, float] = defaultdict(float)
    for runs, sign in ((first, -1), (second, 1)):
        for run in runs:
            for image in run.misclassified:
                lead[image] += sign / len(runs)
    mean = sum(lead.values()) / reference.total
    square = sum(share**2 for share in lead.values()) / reference.total
    return 100 * mean, 100 * math.sqrt((square - mean**2) / reference.total)


def measured_on(run: RunRecord) -> tuple:
    """What tells the images that a run was measured on from others."""
    return run.total, run.data["sha256"], run.config.dataset, run.config.evaluate_on


@dataclass(frozen=True)
class Gain:
    """What a technique adds to the baseline's accuracy: points ± half the width of the 95 % interval.

    error: the standard error. freedom: its degrees of freedom (see `joined`).
    """

    points: float
    error: float
    freedom: float

    def __str__(self) -> str:
        return f"{self.points:+.2f} ± {self.half_width:.2f}" if self.freedom else f"{self.points:+.2f} ± ?"

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % interval, in points; infinite while no spread between seeds is known."""
        return half_width(self.error, self.freedom)

    @property
    def effect(self) -> str:
        """"gain" or "loss" where the 95 % interval does not hold 0, else "within noise"."""
        if abs(self.points) <= self.half_width:
            return "within noise"
        return "gain" if self.points > 0 else "loss"

    @property
    def p_value(self) -> float:
        """How probable so large a difference, up or down, would be if there were no effect."""
        return 2 * float(student.sf(abs(self.points) / self.error, self.freedom)) if self.freedom else 1.0


def gain_over(runs: list[RunRecord], baseline: list[RunRecord], spread: Spread | None) -> Gain | None:
    """The mean accuracy of all runs minus that of all the baseline's; None while one side has none.

    Its standard error joins that of the images (`difference_of_means`) with that of the seeds on both sides,
    spread² (1/n + 1/m): as if seeds in common did not help, which is on the safe side.
    """
    if not runs or not baseline:
        return None
    points, images = difference_of_means(runs, baseline)
    return Gain(points, *joined(images, spread, 1 / len(runs) + 1 / len(baseline)))


def gain_of_readings(percent: float, baseline_percent: float) -> Gain:
    """The difference of two accuracies of the paper, one run each on its 10,000 test images.

    Its standard error is that of the images alone: how far seeds lie apart, the paper does not say.
    """
    error = math.hypot(binomial_se_percent(percent), binomial_se_percent(baseline_percent))
    return Gain(percent - baseline_percent, error, math.inf)
