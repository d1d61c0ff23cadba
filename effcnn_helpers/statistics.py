"""What recorded runs say: means and spreads, verdicts on the paper's numbers, gains. Accuracies are in percent."""

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .errors import EffcnnError
from .paper import TEST_IMAGES
from .records import RunRecord

Accuracy = Callable[[RunRecord], float]


def last_epoch(run: RunRecord) -> float:
    """A run's accuracy in percent, as the tables give it."""
    return run.accuracy_percent


def fresh_statistics(run: RunRecord) -> float:
    """Its accuracy in percent with fresh BatchNorm statistics (see RunRecord.fresh_percent)."""
    return run.fresh_percent


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


def summary_of(runs: list[RunRecord], accuracy: Accuracy = last_epoch) -> Summary | None:
    """The summary of recorded runs; None when there is none."""
    return summarise([accuracy(run) for run in runs])


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


def pooled_sd_percent(rows: Iterable[list[RunRecord]], accuracy: Accuracy = last_epoch) -> float:
    """Seed-to-seed standard deviation, pooled over the rows with several runs; 0 if there is none."""
    summaries = [summary_of(runs, accuracy) for runs in rows if len(runs) > 1]
    freedom = sum(row.n - 1 for row in summaries)
    if freedom == 0:
        return 0.0
    squares = sum((row.n - 1) * row.sd_percent**2 for row in summaries)
    return math.sqrt(squares / freedom)


@dataclass(frozen=True)
class Spread:
    """Seed-to-seed standard deviations (percent) of runs that come to rest and of those that stop in a zigzag."""

    resting: float
    moving: float

    def of(self, run: RunRecord) -> float:
        """The spread of runs like this one."""
        return self.resting if run.config.comes_to_rest else self.moving


NO_SPREAD = Spread(0.0, 0.0)


def spread_of(rows: Iterable[list[RunRecord]], accuracy: Accuracy = last_epoch) -> Spread:
    """The spread between seeds, pooled over rows of runs, as two or three seeds do not show a row's own.

    A row with one seed is taken to scatter like the others of its kind; where no row of a kind has several
    seeds, like those of both kinds.
    """
    rows = [runs for runs in rows if runs]
    resting = [runs for runs in rows if runs[0].config.comes_to_rest]
    moving = [runs for runs in rows if not runs[0].config.comes_to_rest]
    both = pooled_sd_percent(rows, accuracy)
    return Spread(pooled_sd_percent(resting, accuracy) or both, pooled_sd_percent(moving, accuracy) or both)


def verdict(paper_percent: float, ours: Summary | None, spread_percent: float = 0.0) -> str:
    """What our accuracy says of the paper's single reading; "not run" without one of ours.

    "reproduced": they differ by no more than two binomial standard errors of 10,000 test images.
    "within noise": by more, but by no more than the seeds explain, 2 sqrt(binomial² + sd² (1 + 1/n)): the two can
    be told apart neither from each other nor from a disagreement of that size.
    "exceeded", "not reproduced": ours is higher or lower than that.

    sd: spread_percent. The paper gives none, so its seeds are taken to scatter like ours.
    """
    check_percent(paper_percent, "the paper's accuracy")
    check_percent(spread_percent, "the spread")
    if ours is None:
        return "not run"
    binomial = binomial_se_percent(paper_percent)
    difference = ours.mean_percent - paper_percent
    if abs(difference) <= 2 * binomial:
        return "reproduced"
    if abs(difference) <= 2 * math.hypot(binomial, spread_percent * math.sqrt(1 + 1 / ours.n)):
        return "within noise"
    return "exceeded" if difference > 0 else "not reproduced"


def paired_difference(first: RunRecord, second: RunRecord) -> tuple[float, float]:
    """(accuracy of `first` minus that of `second`, its standard error), in percentage points.

    Both networks saw the same images, so only those count that exactly one of them got wrong (McNemar).
    Raises EffcnnError when the two were measured on different images.
    """
    measured_on = [(run.total, run.data["sha256"], run.config.dataset, run.config.evaluate_on)
                   for run in (first, second)]
    if measured_on[0] != measured_on[1]:
        raise EffcnnError(f"{first.config.name} and {second.config.name} were measured on different images; "
                          "compare runs on the same ones")
    only_second = len(second.misclassified.keys() - first.misclassified.keys())
    only_first = len(first.misclassified.keys() - second.misclassified.keys())
    n = first.total
    variance = only_first + only_second - (only_second - only_first) ** 2 / n
    return 100 * (only_second - only_first) / n, 100 * math.sqrt(variance) / n


@dataclass(frozen=True)
class Gain:
    """What a technique adds to the baseline's accuracy, in percentage points, and the standard error of that."""

    points: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.points:+.2f} ± {self.standard_error:.2f}"

    @property
    def effect(self) -> str:
        """"gain" or "loss" beyond two standard errors, else "within noise"."""
        if abs(self.points) <= 2 * self.standard_error:
            return "within noise"
        return "gain" if self.points > 0 else "loss"


def gain_over(runs: list[RunRecord], baseline: list[RunRecord], spread: Spread = NO_SPREAD,
              accuracy: Accuracy = last_epoch) -> Gain | None:
    """The mean difference in accuracy between runs and the baseline's of the same seeds; None without a common one.

    Runs of a seed share their first weights and the order of the images (with SWA every step), so a seed with a
    row alone would count for its luck. The standard error joins that of the test images (paired answers after the last
    epoch, see `paired_difference`; more seeds see the same images, so they do not lower it) with that of the seeds
    on both sides (from `spread_of` the same accuracy), as if what they share did not help: it is on the safe side.
    """
    by_seed = {run.config.seed: run for run in baseline}
    pairs = [(run, by_seed[run.config.seed]) for run in runs if run.config.seed in by_seed]
    if not pairs:
        return None
    points = statistics.mean(accuracy(run) - accuracy(other) for run, other in pairs)
    images = statistics.mean(paired_difference(run, other)[1] for run, other in pairs)
    seeds = math.hypot(*(spread.of(run) for run in pairs[0]))
    return Gain(points, math.hypot(images, seeds / math.sqrt(len(pairs))))
