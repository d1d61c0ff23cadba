from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from effcnn_helpers import export, footprint, runtimes
from effcnn_helpers.batches import normalise
from effcnn_helpers.datasets import load_images
from effcnn_helpers.export import load_trained
from effcnn_helpers.models import GapHead
from effcnn_helpers.plain_c import write_c

RECORDED = Path(footprint.__file__).parent / "recorded"


@pytest.fixture(scope="module")
def trained():
    return load_trained(RECORDED / "mnist/1.5k-dw/constant/baseline/seed0")


@pytest.fixture(scope="module")
def model(trained):
    return runtimes.quantised(trained.network, normalise(load_images("mnist").train.x[:200], "mnist"))


@pytest.mark.skipif(not export.compiler(), reason="needs a C compiler")
def test_footprint_has_what_applies_to_each_format(trained, tmp_path):
    digits = load_images("mnist")
    table = footprint.footprint(trained, digits, ("onnx", "c", "c-int8"), rounds=5)
    assert list(table.index) == ["onnx", "c", "c-int8"]
    onnx = runtimes.onnx_bytes(trained.network, normalise(digits.train.x[:2], "mnist"))
    assert table.loc["onnx", "file_bytes"] == len(onnx)
    written = write_c(trained.network, "mnist", tmp_path)
    assert table.loc["c", "constant_bytes"] == written.flash_bytes
    assert table.loc["c", "ram_bytes"] == written.ram_bytes == 4 * table.loc["c-int8", "ram_bytes"]
    assert np.isnan(table.loc["onnx", ["constant_bytes", "code_bytes", "ram_bytes"]].astype(float)).all()
    assert np.isnan(table.loc[["c", "c-int8"], "file_bytes"].astype(float)).all()
    assert table.loc[["c", "c-int8"], "code_bytes"].between(1_000, 20_000).all()
    assert (table["ms"] > 0).all() and table.loc["onnx", "ratio"] == 1
    first, third = 8 * 9 + 8 * 9 + 8 * 12 + 12 * 8, 12 * 9 + 12 * 15
    second = 8 * 9 + 8 * 12 + 12 * 9 + 12 * 16 + 16 * 12
    norms = 2 * (8 + 12 + 12 + 16 + 15)  # torchinfo counts a BatchNorm's numbers once, not for every pixel
    assert (table["multiply_adds"] == 784 * first + 196 * second + 49 * third + 15 * 10 + norms).all()


@pytest.mark.skipif(not export.compiler(), reason="needs a C compiler")
def test_code_is_counted_without_constants(tmp_path):
    def of(numbers):
        (tmp_path / "a.c").write_text(f"const int table[] = {{{numbers}}}; int f(int x) {{ return table[x]; }}")
        return footprint.code_bytes(tmp_path / "a.c")

    assert 0 < of("1, 2") == of(", ".join(map(str, range(900)))) < 100


def test_live_activations_by_hand():
    """4 x 28 x 28 after the convolution, whose input has a border; then halves."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), GapHead(4))
    found = footprint.live_activations(network, "mnist").set_index("kind")["numbers"]
    assert list(found.index) == ["input", "conv", "maxpool", "mean", "conv"]
    image, wide, half = 30 * 30, 28 * 28 * 4, 14 * 14 * 4
    assert list(found) == [image, image + wide, wide + half, half + 4, 4]


def test_arena_is_as_large_as_the_peak(trained, tmp_path):
    peak = footprint.live_activations(trained.network, "mnist")["numbers"].max()
    assert write_c(trained.network, "mnist", tmp_path).ram_bytes == 4 * peak


def test_quantised_layers_tells_depthwise_from_the_others(trained, model):
    with runtimes.signal_stack_kept():
        table = footprint.quantised_layers(model).set_index("layer")
    convolutions = {name: layer for name, layer in trained.network.named_modules() if isinstance(layer, nn.Conv2d)}
    assert set(table.index) == set(convolutions)
    for name, layer in convolutions.items():
        assert table.loc[name, "weights"] == ("rounded" if layer.groups > 1 else "i8"), name
    assert table["features"].all()
    assert table["runs_in"].notna().all()


def test_no_layer_of_an_unquantised_model_counts_as_quantised(trained):
    plain = runtimes.openvino_model(trained.network, torch.zeros(1, 1, 28, 28))
    with runtimes.signal_stack_kept():
        table = footprint.quantised_layers(plain)
    assert len(table) == 12 and set(table["weights"]) == {"f32"} and not table["features"].any()
    assert set(table["runs_in"]) == {"f32"}
