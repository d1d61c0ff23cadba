import pytest

from effcnn_helpers.models import MODELS, DepthwiseSeparableConv2d, build_model, count_parameters
from effcnn_helpers.paper import (
    TABLE_3,
    TABLE_4,
    TABLE_4_MODELS,
    TABLE_5,
    TEST_IMAGES,
    accuracy_of,
    table_3_row,
)

# The project's fixed order of technique names.
TECHNIQUES = ("one_cycle_lr", "cutout", "blurpool", "squeeze_excite", "mixup", "label_smoothing", "sam", "swa")
SMALLEST_DEPTHWISE = {"mnist": "1.5k-dw", "cifar10": "143k-dw"}


def test_table_3_has_one_row_for_each_model_that_can_be_built():
    of_shape = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
    assert [(row.model, of_shape[row.dataset]) for row in TABLE_3] == [
        (model.name, model.image_shape) for model in MODELS.values() if model.paper]


@pytest.mark.parametrize("row", TABLE_3, ids=lambda row: row.model)
def test_row_of_table_3_describes_the_built_model(row):
    network = build_model(row.model)
    assert count_parameters(network) == row.parameters
    assert row.depthwise == any(isinstance(layer, DepthwiseSeparableConv2d) for layer in network)
    assert row.depthwise == row.model.endswith("-dw")
    assert row.label == row.model.upper()


@pytest.mark.parametrize("row", TABLE_3, ids=lambda row: row.model)
def test_sizes_and_latencies_of_table_3_are_plausible(row):
    # Four bytes a parameter, and up to half as much again for the file around them (small files: more).
    assert 4 * row.parameters / 1000 < row.size_kb < 4 * row.parameters / 1000 * 1.1 + 14
    assert 2 < row.latency_seconds < 9


def test_every_accuracy_is_a_whole_number_of_test_images():
    reported = [row.accuracy_percent for row in TABLE_3] + list(TABLE_5.values())
    reported += [percent for row in TABLE_4.values() for percent in row.values() if percent is not None]
    for percent in reported:
        assert percent * TEST_IMAGES / 100 == pytest.approx(round(percent * TEST_IMAGES / 100), abs=1e-6)
        assert 75 < percent < 100


@pytest.mark.parametrize("dataset", SMALLEST_DEPTHWISE)
def test_baseline_of_table_4_is_the_smallest_depthwise_row_of_table_3(dataset):
    depthwise = [row for row in TABLE_3 if row.dataset == dataset and row.depthwise]
    smallest = min(depthwise, key=lambda row: row.parameters)
    assert smallest.model == TABLE_4_MODELS[dataset] == SMALLEST_DEPTHWISE[dataset]
    assert TABLE_4[()][dataset] == smallest.accuracy_percent


def test_table_4_has_the_baseline_then_each_technique_then_one_combination():
    assert list(TABLE_4) == [(), *((name,) for name in TECHNIQUES), ("blurpool", "squeeze_excite", "swa")]
    missing = [(names, dataset) for names, row in TABLE_4.items() for dataset in row if row[dataset] is None]
    assert missing == [(("blurpool", "squeeze_excite", "swa"), "cifar10")]


def test_combinations_name_known_techniques_in_the_fixed_order():
    for names in [*TABLE_5, *list(TABLE_4)[1:]]:
        assert list(names) == [name for name in TECHNIQUES if name in names]


def test_gains_that_the_text_words_follow_from_the_tables():
    baseline = TABLE_4[()]["cifar10"]
    assert TABLE_4[("mixup",)]["cifar10"] - baseline == pytest.approx(3.62)
    assert max(TABLE_5.values()) - baseline == pytest.approx(6.86)
    assert max(TABLE_5, key=TABLE_5.get) == ("cutout", "blurpool", "mixup", "label_smoothing", "sam", "swa")


def test_two_techniques_lower_the_accuracy_of_one_dataset():
    lowered = [(names[0], dataset) for names, row in TABLE_4.items() for dataset, percent in row.items()
               if percent is not None and percent < TABLE_4[()][dataset]]
    assert lowered == [("one_cycle_lr", "cifar10"), ("mixup", "mnist")]


def test_table_3_row_finds_a_row_and_lists_them_when_there_is_none():
    assert table_3_row("mnist", "7k-dw").accuracy_percent == 99.46
    with pytest.raises(KeyError, match="no row mnist/143k.*mnist/25k.*cifar10/143k-dw"):
        table_3_row("mnist", "143k")


@pytest.mark.parametrize("dataset, model, techniques, percent", [
    ("mnist", "25k", (), 99.35),
    ("mnist", "1.5k-dw", (), 98.35),
    ("cifar10", "143k", (), 81.57),
    ("cifar10", "143k-dw", (), 79.90),
    ("mnist", "1.5k-dw", ("cutout",), 98.45),
    ("cifar10", "143k-dw", ("mixup",), 83.52),
    ("mnist", "1.5k-dw", ("blurpool", "squeeze_excite", "swa"), 99.20),
    ("cifar10", "143k-dw", ("cutout", "blurpool", "mixup"), 86.08),
])
def test_accuracy_of_a_row_that_the_paper_has(dataset, model, techniques, percent):
    assert accuracy_of(dataset, model, techniques) == percent


@pytest.mark.parametrize("dataset, model, techniques", [
    ("mnist", "1.5k-dw", ("cutout", "blurpool", "mixup")),  # Table 5 is CIFAR-10's alone
    ("cifar10", "143k-dw", ("blurpool", "squeeze_excite", "swa")),  # left out of Table 4
    ("mnist", "25k", ("cutout",)),  # Tables 4 and 5 have one model for each dataset
    ("cifar10", "143k", ("mixup",)),
    ("cifar10", "143k", ("cutout", "blurpool", "mixup")),
    ("cifar10", "143k-dw", ("cutout", "mixup")),
    ("cifar10", "143k-dw", ("gradient_clipping",)),
    ("cifar10", "25k", ()),
    ("mnist", "143k-dw", ("mixup",)),
    ("fashion", "1.5k-dw", ()),
    ("fashion", "1.5k-dw", ("cutout",)),
    ("mnist", "own", ()),
    ("mnist", "own", ("cutout",)),
])
def test_no_accuracy_of_a_row_that_the_paper_has_not(dataset, model, techniques):
    assert accuracy_of(dataset, model, techniques) is None
