"""The scorecard: the paper's claims about results, one by one, each held against the recorded runs."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import pandas as pd

from .latency import latency_path, passes_by_model, read_latency
from .models import build_model, count_parameters
from .paper import TABLE_3, TABLE_4, TABLE_4_MODELS, TABLE_5, accuracy_of, table_3_row
from .recipes import dataset_of
from .records import RunRecord, rows_of_model, table_runs
from .statistics import Gain, Spread, gain_of_readings, gain_over, spread_of, summary_of, verdict

Words = tuple[str, str | None, str | None]  # the paper's, ours, verdict or effect; None while a run is missing


@dataclass(frozen=True)
class Recorded:
    """What is recorded of the paper's rows.

    runs: by row, "7k" for one of Table 3, "1.5k-dw/blurpool+swa" for one of Tables 4 and 5; a row without runs is
    empty or missing. passes: `latency.passes_by_model`, None without a measurement.
    """

    runs: dict[str, list[RunRecord]]
    passes: pd.DataFrame | None


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper about results.

    place: where it stands there. notebook: the one that shows it. kind: how it is compared. rows: those that it is
    about, as in `Recorded`. rivals: those that they are compared with. number: the paper's, where it measures none.
    """

    words: str
    place: str
    notebook: str
    kind: Callable[["Claim", Recorded], Words]
    rows: list[str]
    rivals: list[str]
    number: str = "no number"


def scorecard(root: Path | None = None) -> pd.DataFrame:
    """Every claim with the paper's number and ours, worded: a row per claim, in the order of `CLAIMS`.

    Index: claim. Columns: stands in (sections of the paper), paper, ours ("not run" while a run is missing), verdict
    or effect, notebook. Accuracies are in percent, ± the standard deviation between seeds; differences in points, ±
    half of the 95 % interval; latencies in multiples of the rival's; sizes in KB of 1,024 bytes.
    """
    recorded = read_recorded(root)
    rows = []
    for claim in CLAIMS:
        paper, ours, effect = claim.kind(claim, recorded)
        rows.append({"claim": claim.words, "stands in": claim.place, "paper": paper, "ours": ours or "not run",
                     "verdict or effect": effect or "not run", "notebook": claim.notebook})
    return pd.DataFrame(rows).set_index("claim")


def read_recorded(root: Path | None = None) -> Recorded:
    """The recorded runs of Tables 3 to 5, by row, and the recorded latencies."""
    runs = {row.model: table_runs(row.model, root=root) for row in TABLE_3}
    for model in TABLE_4_MODELS.values():
        runs |= {row_name(model, row): found for row, found in rows_of_model(model, root=root).items()}
    measured = latency_path(root)
    return Recorded(runs, passes_by_model(read_latency(measured)) if measured.exists() else None)


def row_name(model: str, techniques: tuple[str, ...]) -> str:
    """A row as `Recorded` has it."""
    return f"{model}/{'+'.join(techniques)}" if techniques else model


def paper_percent(row: str) -> float:
    """The paper's accuracy for a row."""
    model, *techniques = re.split("[/+]", row)
    return accuracy_of(dataset_of(model), model, tuple(techniques))


def spread_around(row: str, runs: dict[str, list[RunRecord]]) -> Spread | None:
    """The spread between seeds among the rows that a row is compared with: Table 3's, or all of its model."""
    model, with_techniques, _ = row.partition("/")
    if with_techniques:
        return spread_of(found for name, found in runs.items() if name.partition("/")[0] == model)
    return spread_of(runs[other.model] for other in TABLE_3 if other.dataset == dataset_of(model))


def lead(row: str, rivals: list[str], runs: dict[str, list[RunRecord]]) -> tuple[Gain, Gain | None]:
    """(the paper's, our) accuracy of a row minus that of the best of its rivals, in points; a row is not its own rival.

    The best by the paper's numbers for the paper, by ours for us. Ours is None until the row and all rivals have run.
    """
    rivals = [rival for rival in rivals if rival != row]
    paper = gain_of_readings(paper_percent(row), max(map(paper_percent, rivals)))
    measured = [runs.get(rival, []) for rival in rivals]
    best = max(measured, key=lambda found: summary_of(found).mean_percent) if all(measured) else []
    return paper, gain_over(runs.get(row, []), best, spread_around(row, runs))


# The kinds of claims: each says what the paper has, what we have, and what that says of the claim.

def accuracy(claim: Claim, recorded: Recorded) -> Words:
    """The accuracy of one row, with its verdict."""
    [row] = claim.rows
    paper, ours = paper_percent(row), summary_of(recorded.runs.get(row, []))
    judged = verdict(paper, ours, spread_around(row, recorded.runs))
    return f"{paper:.2f} %", str(ours) if ours else None, judged


def difference(claim: Claim, recorded: Recorded) -> Words:
    """One row minus the best of its rivals, with the effect."""
    [row] = claim.rows
    paper, ours = lead(row, claim.rivals, recorded.runs)
    return f"{paper.points:+.2f}", str(ours) if ours else None, ours.effect if ours else None


def count(claim: Claim, recorded: Recorded) -> Words:
    """How many rows lie above the best of their rivals."""
    leads = [lead(row, claim.rivals, recorded.runs) for row in claim.rows]
    effects = Counter(ours.effect for _, ours in leads if ours)
    told = ", ".join(f"{number} {effect}" for effect, number in effects.items())
    higher = sum(paper.points > 0 for paper, _ in leads)
    return f"{higher} of {len(leads)} higher", told, told and f"gain in {effects['gain']} of {effects.total()}"


def mean_gain(claim: Claim, recorded: Recorded) -> Words:
    """The mean gain of techniques on one network against that on another, each over its baseline."""
    leads = [[lead(row, [row.partition("/")[0]], recorded.runs) for row in rows] for rows in (claim.rows, claim.rivals)]
    paper = [fmean(theirs.points for theirs, _ in pairs) for pairs in leads]
    words = "{:+.2f} against {:+.2f}".format
    gains = [[ours for _, ours in pairs] for pairs in leads]
    if not all(map(all, gains)):
        return words(*paper), None, None
    points = [fmean(gain.points for gain in each) for each in gains]
    halves = [fmean(gain.half_width for gain in each) for each in gains]  # as if all erred alike: on the safe side
    return words(*paper), words(*points), "larger" if points[0] - points[1] > sum(halves) else "cannot tell"


def latency(claim: Claim, recorded: Recorded) -> Words:
    """How many times the seconds of its rival; an effect where the quartiles of the two do not overlap."""
    rows = [table_3_row(dataset_of(model), model) for model in (*claim.rows, *claim.rivals)]
    paper = f"×{rows[0].latency_seconds / rows[1].latency_seconds:.2f}"
    if recorded.passes is None:
        return paper, None, None
    one, two = (recorded.passes.loc[row.label] for row in rows)
    effect = "slower" if one["lower"] > two["upper"] else "faster" if one["upper"] < two["lower"] else "cannot tell"
    return paper, f"×{one['seconds'] / two['seconds']:.2f}", effect


def parameters(claim: Claim, _: Recorded) -> Words:
    """How many parameters, counted, from the rival's network to this one."""
    models = [*claim.rivals, *claim.rows]
    paper = [table_3_row(dataset_of(model), model).parameters for model in models]
    ours = [count_parameters(build_model(model)) for model in models]
    words = "{:,} to {:,}".format
    return words(*paper), words(*ours), "reproduced" if ours == paper else "not reproduced"


def file_size(claim: Claim, recorded: Recorded) -> Words:
    """The size of the trained weights as a file of torch's, in KB, from the rival's network to this one."""
    models = [*claim.rivals, *claim.rows]
    paper = "{} to {} KB".format(*(table_3_row(dataset_of(model), model).size_kb for model in models))
    found = [recorded.runs[model] for model in models]
    if not all(found):
        return paper, None, None
    before, after = (runs[0].bytes["state_dict"] / 1024 for runs in found)
    return paper, f"{before:.1f} to {after:.1f} KB", "smaller" if after < before else "not smaller"


def unmeasured(claim: Claim, _: Recorded) -> Words:
    """A claim that neither the paper nor this series measures."""
    return claim.number, "not measured", "not measured"


DIGITS, PHOTOS = TABLE_4_MODELS["mnist"], TABLE_4_MODELS["cifar10"]
SINGLES = {model: [row_name(model, row) for row in TABLE_4 if len(row) == 1] for model in (DIGITS, PHOTOS)}
STACKS = [row_name(PHOTOS, row) for row in TABLE_5]
DIGITS_STACK, BEST_STACK = f"{DIGITS}/blurpool+squeeze_excite+swa", row_name(PHOTOS, max(TABLE_5, key=TABLE_5.get))
OF_CONCLUSION = ("blurpool", "mixup", "cutout", "label_smoothing", "swa", "squeeze_excite")
SIX = {model: [f"{model}/{name}" for name in OF_CONCLUSION] for model in (DIGITS, PHOTOS)}

# Where a sentence names no rows: a pair that supports it in the paper.
CLAIMS = (
    Claim("25K to 1.5K-DW: fewer parameters", "IV.A, V", "04", parameters, ["1.5k-dw"], ["25k"]),
    Claim("25K to 1.5K-DW: a smaller file", "IV.A, V", "04", file_size, ["1.5k-dw"], ["25k"]),
    Claim("MNIST: 98.35 % with 1,560 parameters", "IV.A, V", "04", accuracy, ["1.5k-dw"], []),
    Claim("1.5K-DW is as good as 25K", "IV.A", "04", difference, ["1.5k-dw"], ["25k"]),
    Claim("1.5K-DW is as good as 7K", "IV.A", "04", difference, ["1.5k-dw"], ["7k"]),
    Claim("7K-DW equals 7K or is better", "IV.A", "02", difference, ["7k-dw"], ["7k"]),
    Claim("5K-DW equals 5K or is better", "IV.A", "03", difference, ["5k-dw"], ["5k"]),
    Claim("143K-DW equals 143K", "IV.A", "05", difference, ["143k-dw"], ["143k"]),
    Claim("Fewer parameters, higher accuracy: 7K-DW over 25K", "IV.A", "02", difference, ["7k-dw"], ["25k"]),

    Claim("7K-DW is slower than 7K", "IV.B", "15", latency, ["7k-dw"], ["7k"]),
    Claim("5K-DW is slower than 5K", "IV.B", "15", latency, ["5k-dw"], ["5k"]),
    Claim("143K-DW is slower than 143K", "IV.B", "15", latency, ["143k-dw"], ["143k"]),
    Claim("1.5K-DW is the fastest: against 25K", "IV.B", "15", latency, ["1.5k-dw"], ["25k"]),
    Claim("1.5K-DW is the fastest: against 7K", "IV.B", "15", latency, ["1.5k-dw"], ["7k"]),
    Claim("1.5K-DW is the fastest: against 7K-DW", "IV.B", "15", latency, ["1.5k-dw"], ["7k-dw"]),
    Claim("1.5K-DW is the fastest: against 5K", "IV.B", "15", latency, ["1.5k-dw"], ["5k"]),
    Claim("1.5K-DW is the fastest: against 5K-DW", "IV.B", "15", latency, ["1.5k-dw"], ["5k-dw"]),

    Claim("MNIST: techniques improve in general", "IV.C", "06 to 13", count, SINGLES[DIGITS], [DIGITS]),
    Claim("CIFAR-10: techniques improve in general", "IV.C", "06 to 13", count, SINGLES[PHOTOS], [PHOTOS]),
    Claim("MNIST: BlurPool improves", "IV.C, V", "08", difference, ["1.5k-dw/blurpool"], [DIGITS]),
    Claim("CIFAR-10: BlurPool improves", "IV.C, V", "08", difference, ["143k-dw/blurpool"], [PHOTOS]),
    Claim("CIFAR-10: Mixup improves", "IV.C, V", "10", difference, ["143k-dw/mixup"], [PHOTOS]),
    Claim("CIFAR-10: Cutout improves", "IV.C, V", "07", difference, ["143k-dw/cutout"], [PHOTOS]),
    Claim("CIFAR-10: Label smoothing improves", "IV.C, V", "11", difference, ["143k-dw/label_smoothing"], [PHOTOS]),
    Claim("CIFAR-10: SWA improves", "IV.C, V", "13", difference, ["143k-dw/swa"], [PHOTOS]),
    Claim("CIFAR-10: Squeeze-and-Excite improves", "IV.C, V", "09", difference, ["143k-dw/squeeze_excite"], [PHOTOS]),
    Claim("MNIST: BlurPool before all others", "IV.C", "08", difference, ["1.5k-dw/blurpool"], SINGLES[DIGITS]),
    Claim("CIFAR-10: Mixup before all others", "IV.C", "10", difference, ["143k-dw/mixup"], SINGLES[PHOTOS]),
    Claim("MNIST: 99.2 % with 1,560 parameters (BlurPool)", "abstract, IV.C", "08", accuracy, ["1.5k-dw/blurpool"], []),
    Claim("Six techniques gain more on CIFAR-10 (mean)", "V", "14", mean_gain, SIX[PHOTOS], SIX[DIGITS]),

    Claim("MNIST: BP + SE + SWA stays at 99.2 %", "IV.C", "14", accuracy, [DIGITS_STACK], []),
    Claim("MNIST: BP + SE + SWA adds nothing to BlurPool", "IV.C", "14", difference, [DIGITS_STACK],
          ["1.5k-dw/blurpool"]),
    Claim("CIFAR-10: stacks beat the best single technique", "IV.C, V", "14", count, STACKS, SINGLES[PHOTOS]),
    Claim("CIFAR-10: 86.76 % (abstract: 86.01 %) with six techniques", "abstract, IV.C, V", "14", accuracy,
          [BEST_STACK], []),
    Claim("CIFAR-10: the six improve", "IV.C", "14", difference, [BEST_STACK], [PHOTOS]),
    Claim("CIFAR-10: the six before all other stacks", "IV.C", "14", difference, [BEST_STACK], STACKS),
    Claim("State of the art", "abstract, IV, V", "14, section 8; 16", unmeasured, [], [], "no rival named"),
    Claim("More robust networks", "title, abstract, I", "08: shifts; 11: noise", unmeasured, [], []),
    Claim("Ideal for edge and mobile devices", "V", "15: one CPU alone", unmeasured, [], []),
)
