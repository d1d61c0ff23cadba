import math
import re

import pytest
import torch
import torchinfo
from torch import nn

from effcnn_helpers.errors import EffcnnError
from effcnn_helpers.models import (
    MODELS,
    Conv3x3,
    DepthwiseSeparableConv2d,
    GapHead,
    ResidualBlock,
    ResidualSeparable,
    build_model,
    count_parameters,
    kind_of,
    layer_costs,
    model_of,
    transition_block,
)

COUNTS = {"25k": 25_144, "7k": 7_767, "7k-dw": 7_611, "5k": 5_712, "5k-dw": 5_616, "1.5k-dw": 1_560,
          "143k": 143_208, "143k-dw": 143_396}

# The paper's Tables 1 and 2, cell by cell; DW: depthwise separable, TB: transition block.
LAYERS = {
    "25k": "(1,8)/3x3 (8,16)/3x3 Maxpool (16,32)/3x3 (32,64)/3x3 Maxpool GAP (64,10)/1x1",
    "7k": "(1,8)/3x3 (8,12)/3x3 TB(12,8)/1x1 Maxpool (8,12)/3x3 (12,16)/3x3 TB(16,12)/1x1 Maxpool "
          "(12,15)/3x3 (15,15)/3x3 GAP (15,10)/1x1",
    "7k-dw": "(1,10)/3x3 DW(10,12)/3x3 TB(12,10)/1x1 Maxpool (10,13)/3x3 (13,16)/3x3 TB(16,12)/1x1 Maxpool "
             "(12,15)/3x3 (15,15)/3x3 GAP (15,10)/1x1",
    "5k": "(1,8)/3x3 (8,12)/3x3 TB(12,8)/1x1 Maxpool (8,12)/3x3 (12,16)/3x3 TB(16,12)/1x1 Maxpool "
          "(12,15)/3x3 GAP (15,10)/1x1",
    "5k-dw": "(1,8)/3x3 DW(8,12)/3x3 TB(12,8)/1x1 Maxpool (8,13)/3x3 (13,18)/3x3 TB(18,12)/1x1 Maxpool "
             "(12,16)/3x3 GAP (16,10)/1x1",
    "1.5k-dw": "(1,8)/3x3 DW(8,12)/3x3 TB(12,8)/1x1 Maxpool DW(8,12)/3x3 DW(12,16)/3x3 TB(16,12)/1x1 Maxpool "
               "DW(12,15)/3x3 GAP (15,10)/1x1",
    "143k": "(3,16)/3x3 (16,16)/3x3 Maxpool (16,32)/3x3 (32,32)/3x3 Maxpool (32,64)/3x3 (64,64)/3x3 Maxpool "
            "(64,120)/3x3 GAP (120,10)/1x1",
    "143k-dw": "(3,16)/3x3 (16,16)/3x3 Maxpool DW(16,32)/3x3 (32,32)/3x3 Maxpool DW(32,64)/3x3 (64,64)/3x3 Maxpool "
               "DW(64,128)/3x3 DW(128,192)/3x3 DW(192,260)/3x3 GAP (260,10)/1x1",
}
PHOTO_MODELS = ("143k", "143k-dw")  # CIFAR-10's; the others are MNIST's
every_model = pytest.mark.parametrize("name", COUNTS)


def in_the_papers_words(layer: nn.Module) -> str:
    if isinstance(layer, Conv3x3):
        return f"({layer.conv.in_channels},{layer.conv.out_channels})/3x3"
    if isinstance(layer, DepthwiseSeparableConv2d):
        return f"DW({layer.depthwise.in_channels},{layer.pointwise.out_channels})/3x3"
    if isinstance(layer, GapHead):
        return f"GAP ({layer.classifier.in_channels},{layer.classifier.out_channels})/1x1"
    if isinstance(layer, nn.Conv2d):
        return f"TB({layer.in_channels},{layer.out_channels})/1x1"
    assert isinstance(layer, nn.MaxPool2d)
    return "Maxpool"


@every_model
def test_parameter_count_is_the_papers(name):
    assert count_parameters(build_model(name)) == COUNTS[name]


@every_model
def test_layers_are_those_of_the_papers_tables(name):
    assert " ".join(map(in_the_papers_words, build_model(name))) == LAYERS[name]


@every_model
def test_torchinfo_counts_the_same_parameters(name):
    shape = MODELS[name].image_shape
    assert torchinfo.summary(build_model(name), input_size=(1, *shape), verbose=0).trainable_params == COUNTS[name]


def test_the_papers_eight_come_first_in_its_order():
    assert list(MODELS)[:8] == list(COUNTS)
    assert not any(entry.paper for entry in list(MODELS.values())[8:])
    for name in COUNTS:
        entry = MODELS[name]
        assert (entry.name, entry.label, entry.paper) == (name, name.upper(), True)
        assert entry.image_shape == ((3, 32, 32) if name in PHOTO_MODELS else (1, 28, 28))
        assert entry.linestyle == ("--" if name.endswith("-dw") else "-")
        assert model_of(name) is entry
    assert len({entry.color for entry in MODELS.values()}) == len(MODELS)


def test_our_own_networks_have_their_parameters():
    counts = {name: count_parameters(build_model(name)) for name in MODELS if name not in COUNTS}
    assert counts == {"142k-res": 141_936, "25k-res": 25_004, "1.5k-res": 1_504, "0.3k-dw": 300, "0.6k-dw": 576,
                      "1k-dw": 1_005, "2.8k-dw": 2_764, "9k": 9_450, "36k": 36_468, "80k": 80_164}
    for ours, papers in (("142k-res", "143k-dw"), ("25k-res", "25k"), ("1.5k-res", "1.5k-dw")):
        assert counts[ours] < COUNTS[papers]


@pytest.mark.parametrize("like, names", [("1.5k-dw", ("0.3k-dw", "0.6k-dw", "1k-dw", "2.8k-dw")),
                                         ("143k", ("9k", "36k", "80k"))])
def test_other_widths_keep_the_papers_form(like, names):
    """The same layers with other numbers of channels, and as many outputs as classes."""
    def form(name: str) -> list[str]:
        return [re.sub(r"\d+,\d+", "n,m", in_the_papers_words(layer)) for layer in build_model(name)]

    for name in names:
        assert form(name) == form(like), name
        assert build_model(name, 7).head.classifier.out_channels == 7


@pytest.mark.parametrize("c_in, c_out", [(16, 16), (16, 32)])
def test_residual_block_adds_what_came_in(c_in, c_out):
    """Written out; with other widths what came in is widened first. One without its sum would differ."""
    torch.manual_seed(0)
    block = ResidualBlock(c_in, c_out)
    x = torch.randn(4, c_in, 6, 6)

    def normed(x, conv, norm, padding):
        x = nn.functional.conv2d(x, conv.weight, padding=padding)
        return nn.functional.batch_norm(x, None, None, norm.weight, norm.bias, training=True)

    change = normed(x, block.block1.conv, block.block1.norm, 1).relu()
    change = normed(change, block.block2.conv, block.block2.norm, 1)
    came_in = x if c_in == c_out else normed(x, block.shortcut.conv, block.shortcut.norm, 0)
    torch.testing.assert_close(block(x), (change + came_in).relu())


def test_residual_separable_convolution_adds_what_came_in():
    torch.manual_seed(0)
    block = ResidualSeparable(6)
    x = torch.randn(4, 6, 5, 5)
    change = block.block.norm(block.block.pointwise(block.block.depthwise(x)))
    torch.testing.assert_close(block(x), (change + x).relu())


@every_model
@pytest.mark.parametrize("classes", [2, 100])
def test_a_model_is_built_for_another_number_of_classes(name, classes):
    network = build_model(name, classes).eval()
    assert network(torch.randn(2, *MODELS[name].image_shape)).shape == (2, classes)
    features = network.head.classifier.in_channels
    assert count_parameters(network) == COUNTS[name] + features * (classes - 10)


@every_model
def test_logits_have_ten_columns_and_no_activation(name):
    torch.manual_seed(0)
    network = build_model(name).eval()
    logits = network(torch.randn(3, *MODELS[name].image_shape))
    assert logits.shape == (3, 10)
    assert logits.min() < 0 < logits.max()
    assert not torch.allclose(logits.sum(dim=1), torch.ones(3))


@every_model
def test_only_max_pools_and_the_head_change_the_image_size(name):
    sizes = []
    network = build_model(name)
    for layer in network:
        layer.register_forward_hook(
            lambda layer, inputs, output: sizes.append((type(layer), inputs[0].shape[2:], output.shape[2:])))
    network(torch.randn(2, *MODELS[name].image_shape))
    *body, (head, _, after_head) = sizes
    assert head is GapHead and after_head == ()
    for kind, before, after in body:
        assert after == (torch.Size(side // 2 for side in before) if kind is nn.MaxPool2d else before)


def plain_convolution(image, weights, biases):
    """3x3 convolution with a border of zeros, as sums over nested lists: [c_in][H][W] -> [c_out][H][W]."""
    height, width = len(image[0]), len(image[0][0])
    return [[[biases[c_out] + sum(
        weights[c_out][c_in][dy][dx] * image[c_in][y + dy - 1][x + dx - 1]
        for c_in in range(len(image)) for dy in range(3) for dx in range(3)
        if 0 <= y + dy - 1 < height and 0 <= x + dx - 1 < width)
        for x in range(width)] for y in range(height)] for c_out in range(len(weights))]


def plain_mix(image, weights, biases):
    """1x1 convolution as sums: each output channel is a weighted sum of the input channels."""
    return [[[biases[c_out] + sum(weights[c_out][c_in] * image[c_in][y][x] for c_in in range(len(image)))
              for x in range(len(image[0][0]))] for y in range(len(image[0]))] for c_out in range(len(weights))]


def plain_norm_and_relu(image, norm):
    mean, var, gain, shift = (tensor.tolist() for tensor in
                              (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return [[[max(0.0, gain[c] * (value - mean[c]) / math.sqrt(var[c] + 1e-5) + shift[c]) for value in row]
             for row in channel] for c, channel in enumerate(image)]


def give_statistics(norm: nn.BatchNorm2d) -> None:
    """BatchNorm statistics and weights that change every value, and leave some below and some above 0."""
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)


def biases_of(layer: nn.Conv2d) -> list[float]:
    return [0.0] * layer.out_channels if layer.bias is None else layer.bias.tolist()


@pytest.mark.parametrize("bias", [False, True])
def test_conv3x3_equals_plain_sums(bias):
    torch.manual_seed(1)
    block = Conv3x3(2, 3, bias=bias).eval()
    give_statistics(block.norm)
    assert (block.conv.bias is not None) == bias
    images = torch.randn(2, 2, 4, 5)
    expected = torch.tensor([plain_norm_and_relu(
        plain_convolution(image, block.conv.weight.tolist(), biases_of(block.conv)), block.norm)
        for image in images.tolist()])
    assert (expected == 0).any() and (expected > 0).any()
    torch.testing.assert_close(block(images), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bias", [False, True])
def test_depthwise_separable_convolution_equals_plain_sums(bias):
    torch.manual_seed(2)
    block = DepthwiseSeparableConv2d(3, 4, bias=bias).eval()
    give_statistics(block.norm)
    assert (block.depthwise.bias is not None) == (block.pointwise.bias is not None) == bias
    filters, filter_biases = block.depthwise.weight.tolist(), biases_of(block.depthwise)
    mix = block.pointwise.weight[:, :, 0, 0].tolist()
    images = torch.randn(2, 3, 4, 5)
    expected = []
    for image in images.tolist():
        filtered = [plain_convolution([image[c]], [filters[c]], [filter_biases[c]])[0] for c in range(3)]
        expected.append(plain_norm_and_relu(plain_mix(filtered, mix, biases_of(block.pointwise)), block.norm))
    expected = torch.tensor(expected)
    assert (expected == 0).any() and (expected > 0).any()
    torch.testing.assert_close(block(images), expected, atol=1e-5, rtol=0)


def test_depthwise_separable_form_has_the_weights_that_the_docstring_counts():
    block = DepthwiseSeparableConv2d(10, 12)
    assert block.depthwise.weight.numel() + block.pointwise.weight.numel() == 9 * 10 + 10 * 12
    assert Conv3x3(10, 12).conv.weight.numel() == 9 * 10 * 12


def test_head_is_the_mean_over_the_image_times_the_classifiers_weights():
    torch.manual_seed(3)
    head, images = GapHead(5, classes=3), torch.randn(2, 5, 7, 7)
    expected = torch.stack([head.classifier.weight[:, :, 0, 0] @ image.mean(dim=(1, 2)) for image in images])
    assert head.classifier.bias is None
    torch.testing.assert_close(head(images), expected, atol=1e-6, rtol=0)


def test_transition_block_has_neither_norm_nor_activation_nor_bias():
    torch.manual_seed(4)
    block, images = transition_block(3, 2), torch.randn(2, 3, 4, 4)
    assert type(block) is nn.Conv2d and block.bias is None
    expected = torch.einsum("oi,nihw->nohw", block.weight[:, :, 0, 0], images)
    assert expected.min() < 0
    torch.testing.assert_close(block(images), expected, atol=1e-6, rtol=0)


@every_model
def test_transition_blocks_stand_before_a_max_pool_and_are_followed_by_nothing_else(name):
    layers = list(build_model(name))
    for layer, following in zip(layers, layers[1:], strict=False):
        if type(layer) is nn.Conv2d:
            assert isinstance(following, nn.MaxPool2d)


@every_model
def test_biases_are_where_the_parameter_counts_put_them(name):
    """MNIST: none. CIFAR-10: in every convolution but the classifier."""
    for layer_name, layer in build_model(name).named_modules():
        if isinstance(layer, nn.Conv2d):
            assert (layer.bias is not None) == (name in PHOTO_MODELS and layer_name != "head.classifier")


def test_seven_k_without_its_norms_has_the_depthwise_models_count_by_coincidence():
    norms = [layer for layer in build_model("7k").modules() if isinstance(layer, nn.BatchNorm2d)]
    assert COUNTS["7k"] - sum(map(count_parameters, norms)) == COUNTS["7k-dw"]


@every_model
def test_layer_costs_add_up_to_the_whole_model(name):
    shape = MODELS[name].image_shape
    network = build_model(name)
    costs = layer_costs(network, shape)
    assert list(costs.columns) == ["layer", "kind", "parameters", "multiply_adds"]
    assert costs["parameters"].sum() == COUNTS[name]
    summary = torchinfo.summary(network, input_size=(1, *shape), verbose=0)
    assert costs["multiply_adds"].sum() == summary.total_mult_adds
    named = dict(network.named_modules())
    assert costs["layer"].is_unique
    for row in costs.itertuples():
        assert row.parameters == count_parameters(named[row.layer])
        assert row.kind == kind_of(named[row.layer])


def test_layer_costs_of_convolutions_follow_the_plain_formula():
    """Multiply-adds: for each output pixel and channel, one per weight of its filter."""
    costs = layer_costs(build_model("1.5k-dw"), (1, 28, 28)).set_index("layer")
    by_hand = {
        "conv1.conv": ("3x3 convolution", 1 * 8 * 9, 28 * 28),
        "conv2.depthwise": ("depthwise convolution", 8 * 9, 28 * 28),
        "conv2.pointwise": ("1x1 convolution", 8 * 12, 28 * 28),
        "transition1": ("1x1 convolution", 12 * 8, 28 * 28),
        "conv3.depthwise": ("depthwise convolution", 8 * 9, 14 * 14),
        "conv3.pointwise": ("1x1 convolution", 8 * 12, 14 * 14),
        "conv4.depthwise": ("depthwise convolution", 12 * 9, 14 * 14),
        "conv4.pointwise": ("1x1 convolution", 12 * 16, 14 * 14),
        "transition2": ("1x1 convolution", 16 * 12, 14 * 14),
        "conv5.depthwise": ("depthwise convolution", 12 * 9, 7 * 7),
        "conv5.pointwise": ("1x1 convolution", 12 * 15, 7 * 7),
        "head.classifier": ("1x1 convolution", 15 * 10, 1),
    }
    convolutions = costs[costs["kind"].str.endswith("convolution")]
    assert list(convolutions.index) == list(by_hand)
    for layer, (kind, weights, pixels) in by_hand.items():
        assert tuple(costs.loc[layer]) == (kind, weights, weights * pixels)
    assert set(costs["kind"]) == {"3x3 convolution", "depthwise convolution", "1x1 convolution", "BatchNorm2d"}


def test_layer_costs_leave_the_model_as_it_was():
    network = build_model("5k-dw")
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    layer_costs(network, (1, 28, 28))
    assert all(layer.training for layer in network.modules())
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_frozen_parameters_are_not_counted():
    network = build_model("1.5k-dw")
    network.head.requires_grad_(False)
    assert count_parameters(network) == 1_560 - 150


def test_weights_come_from_torchs_generator_alone():
    def weights(seed):
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(build_model("1.5k-dw").parameters())

    assert torch.equal(weights(5), weights(5))
    assert not torch.equal(weights(5), weights(6))


@pytest.mark.parametrize("function", [build_model, model_of])
def test_unknown_model_is_refused_with_a_list_of_the_known_ones(function):
    with pytest.raises(EffcnnError, match="unknown model '3k'") as refusal:
        function("3k")
    assert all(name in str(refusal.value) for name in COUNTS)


@pytest.mark.parametrize("layer, kind", [
    (nn.Conv2d(3, 6, 3), "3x3 convolution"),
    (nn.Conv2d(3, 6, 5), "5x5 convolution"),
    (nn.Conv2d(3, 6, (1, 3)), "1x3 convolution"),
    (nn.Conv2d(3, 6, 1), "1x1 convolution"),
    (nn.Conv2d(1, 8, 3), "3x3 convolution"),
    (nn.Conv2d(8, 8, 3, groups=8), "depthwise convolution"),
    (nn.Conv2d(8, 16, 5, groups=8), "depthwise convolution"),
    (nn.Conv2d(8, 8, 3, groups=4), "grouped 3x3 convolution"),
    (nn.Conv2d(8, 8, 1, groups=2), "grouped 1x1 convolution"),
    (nn.BatchNorm2d(3), "BatchNorm2d"),
    (nn.Linear(3, 2), "Linear"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_kind_of_a_layer(layer, kind):
    assert kind_of(layer) == kind
