"""Every number that the paper reports, as data, with the table or section it stands in.

Source: S. Ethiraj and B. K. Bolla, "Training Efficient CNNs: Tweaking the Nuts and Bolts of Neural
Networks for Lighter, Faster and Robust Models". Accuracies are top-1, in percent of the 10,000 test
images; latencies are seconds for one pass over them on the authors' CPU; sizes are kilobytes on disk.
The paper names neither seeds nor repeats: each number is a single reading.
"""

from dataclasses import dataclass

TEST_IMAGES = 10_000


@dataclass(frozen=True)
class Table3Row:
    """One row of Table 3: a model of the paper, trained plainly."""

    dataset: str
    model: str
    label: str
    depthwise: bool
    parameters: int
    accuracy_percent: float
    latency_seconds: float
    size_kb: int


TABLE_3 = (
    Table3Row("mnist", "25k", "25K", False, 25_144, 99.35, 3.36, 107),
    Table3Row("mnist", "7k", "7K", False, 7_767, 99.34, 2.67, 43),
    Table3Row("mnist", "7k-dw", "7K-DW", True, 7_611, 99.46, 3.35, 43),
    Table3Row("mnist", "5k", "5K", False, 5_712, 99.33, 2.76, 34),
    Table3Row("mnist", "5k-dw", "5K-DW", True, 5_616, 99.27, 2.74, 34),
    Table3Row("mnist", "1.5k-dw", "1.5K-DW", True, 1_560, 98.35, 2.52, 19),
    Table3Row("cifar10", "143k", "143K", False, 143_208, 81.57, 8.51, 578),
    Table3Row("cifar10", "143k-dw", "143K-DW", True, 143_396, 79.90, 8.82, 590),
)

# The models that Tables 4 and 5 add techniques to.
TABLE_4_MODELS = {"mnist": "1.5k-dw", "cifar10": "143k-dw"}

# Table 4: techniques added to the smallest depthwise model of each dataset; (): the baseline; None: not reported.
TABLE_4 = {
    (): {"mnist": 98.35, "cifar10": 79.90},
    ("one_cycle_lr",): {"mnist": 98.92, "cifar10": 79.42},
    ("cutout",): {"mnist": 98.45, "cifar10": 82.92},
    ("blurpool",): {"mnist": 99.21, "cifar10": 83.16},
    ("squeeze_excite",): {"mnist": 99.18, "cifar10": 81.61},
    ("mixup",): {"mnist": 97.85, "cifar10": 83.52},
    ("label_smoothing",): {"mnist": 98.83, "cifar10": 81.06},
    ("sam",): {"mnist": 98.77, "cifar10": 80.64},
    ("swa",): {"mnist": 99.02, "cifar10": 82.10},
    ("blurpool", "squeeze_excite", "swa"): {"mnist": 99.20, "cifar10": None},
}

# Table 5: techniques combined on the 143K model with depthwise convolutions, CIFAR-10.
TABLE_5 = {
    ("cutout", "blurpool", "squeeze_excite", "mixup"): 85.55,
    ("cutout", "blurpool", "mixup"): 86.08,
    ("cutout", "blurpool", "mixup", "sam"): 86.09,
    ("cutout", "blurpool", "mixup", "swa"): 86.37,
    ("cutout", "blurpool", "mixup", "label_smoothing"): 86.37,
    ("cutout", "blurpool", "mixup", "label_smoothing", "sam", "swa"): 86.76,
}


def table_3_row(dataset: str, model: str) -> Table3Row:
    """The paper's row for a model. Raises KeyError, listing the rows, when Table 3 has none."""
    for row in TABLE_3:
        if (row.dataset, row.model) == (dataset, model):
            return row
    rows = ", ".join(f"{row.dataset}/{row.model}" for row in TABLE_3)
    raise KeyError(f"Table 3 has no row {dataset}/{model}; it has {rows}")


def accuracy_of(dataset: str, model: str, techniques: tuple[str, ...] = ()) -> float | None:
    """What the paper reports for a row of Tables 3 to 5, in percent; None where it has no such row."""
    if not techniques:
        found = [row.accuracy_percent for row in TABLE_3 if (row.dataset, row.model) == (dataset, model)]
        return found[0] if found else None
    if TABLE_4_MODELS.get(dataset) != model:
        return None
    if techniques in TABLE_4:
        return TABLE_4[techniques][dataset]
    return TABLE_5.get(techniques) if dataset == "cifar10" else None
