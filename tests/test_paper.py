import pytest

from effcnn_helpers.models import MODELS, DepthwiseSeparableConv2d, build_model, count_parameters
from effcnn_helpers.paper import TABLE_3, TABLE_4, TABLE_5, TEST_IMAGES, table_3_row

# The project's fixed order of technique names.
TECHNIQUES = ("one_cycle_lr", "cutout", "blurpool", "squeeze_excite", "mixup", "label_smoothing", "sam", "swa")
SMALLEST_DEPTHWISE = {"mnist": "1.5k-dw", "cifar10": "143k-dw"}


def test_table_3_has_one_row_for_each_model_that_can_be_built():
    assert [(row.dataset, row.model) for row in TABLE_3] == [
        (dataset, model) for dataset, models in MODELS.items() for model in models]


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


@pytest.mark.parametrize("dataset", MODELS)
def test_baseline_of_table_4_is_the_smallest_depthwise_row_of_table_3(dataset):
    depthwise = [row for row in TABLE_3 if row.dataset == dataset and row.depthwise]
    smallest = min(depthwise, key=lambda row: row.parameters)
    assert smallest.model == SMALLEST_DEPTHWISE[dataset]
    assert TABLE_4[()][dataset] == smallest.accuracy_percent


def test_table_4_has_the_baseline_then_each_technique_then_one_combination():
    assert list(TABLE_4) == [(), *((name,) for name in TECHNIQUES), ("blurpool", "squeeze_excite", "swa")]
    missing = [(names, dataset) for names, row in TABLE_4.items() for dataset in MODELS if row[dataset] is None]
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
