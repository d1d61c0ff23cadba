"""The folded BatchNorm equals torch's and is never seen from outside training."""

import copy
import io

import pytest
import torch
from torch import nn

from effcnn_helpers.batchnorm import FoldedBatchNorm2d, FoldedNorm, foldable, folded, folds
from effcnn_helpers.models import build_model

SHAPES = [(128, 12, 28, 28), (96, 15, 7, 7), (2, 18, 14, 14), (5, 10, 4, 4), (16, 12, 1, 1)]


def images(shape, offset=0.0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 2 + offset
    return x.contiguous(memory_format=torch.channels_last)


def pair(channels, **options):
    """The same layer twice, torch's and the folded one, with weights that are not 0 and 1."""
    theirs = nn.BatchNorm2d(channels, **options)
    if theirs.affine:
        nn.init.normal_(theirs.weight)
        nn.init.normal_(theirs.bias)
    ours = copy.deepcopy(theirs)
    ours.__class__ = FoldedBatchNorm2d
    return theirs, ours


def passes(layer, x, steps=2):
    """(output, gradients of input, weight and bias) after some training steps."""
    for step in range(steps):
        layer.zero_grad()
        leaf = (x + step).detach().requires_grad_()
        y = layer(leaf)
        y.backward(images(y.shape).square())
    return [y.detach(), leaf.grad, layer.weight.grad, layer.bias.grad]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("momentum", [0.1, 0.0, None])
def test_equals_torch(shape, momentum, monkeypatch):
    """Torch's in double precision: its long sums in float32 are off by 1e-3 here, ours by 2e-5."""
    calls = []
    apply = FoldedNorm.apply
    monkeypatch.setattr(FoldedNorm, "apply", lambda *given: calls.append(1) or apply(*given))
    theirs, ours = pair(shape[1], momentum=momentum)
    theirs.double()
    x = images(shape, offset=3.0)
    names = ("output", "input gradient", "weight gradient", "bias gradient")
    results = zip(names, passes(theirs, x.double()), passes(ours, x), strict=True)
    for name, expected, found in results:
        error = (found - expected).abs().max() / expected.abs().max()
        assert error < (1e-4 if name == "weight gradient" else 2e-6), name
    assert len(calls) == 2  # not the fallback
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, expected in theirs.state_dict().items():
        found = ours.state_dict()[name].to(expected.dtype)
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-6)


def test_gradients_by_finite_differences():
    x = images((4, 6, 2, 2)).double().requires_grad_()
    weight, bias = (torch.randn(6, dtype=torch.double, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(
        lambda *inputs: FoldedNorm.apply(*inputs, 1e-5)[0], (x, weight, bias))


@pytest.mark.parametrize("x, options", [
    (images((8, 12, 4, 4)).contiguous(), {}),
    (images((8, 12, 4, 4)).double(), {"dtype": torch.double}),
    (images((3, 15, 7, 7)), {}),  # 147 pixels: no multiple of 16
    (images((8, 12, 4, 4)), {"affine": False}),
    (images((8, 12, 4, 4)), {"track_running_stats": False}),
], ids=["NCHW", "float64", "odd", "no weights", "no statistics"])
def test_falls_back_to_torch(x, options):
    theirs, ours = pair(x.shape[1], **options)
    assert torch.equal(theirs(x), ours(x))
    for name, expected in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], expected)


def test_evaluation_is_torchs_own():
    theirs, ours = pair(12)
    x = images((8, 12, 4, 4), offset=1.0)
    assert foldable(x)
    assert torch.equal(theirs.eval()(x), ours.eval()(x))
    assert ours.num_batches_tracked == 0


def test_in_place_relu_may_follow_and_format_is_kept():
    _, ours = pair(12)
    x = images((8, 12, 4, 4)).requires_grad_()
    y = nn.ReLU(inplace=True)(ours(x))
    y.sum().backward()  # its gradient comes expanded, not channels last
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


def test_one_pixel_per_channel_is_refused_as_by_torch():
    _, ours = pair(16)  # nothing to fold, so only this stops it
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ours(images((1, 16, 1, 1)))


def test_mixed_precision_is_torchs_own():
    with torch.autocast("cpu", torch.bfloat16):
        assert not foldable(images((8, 12, 4, 4)))


@pytest.mark.parametrize("channels, expected", [(12, 4), (15, 16), (18, 8), (260, 4), (10, 8)])
def test_folds(channels, expected):
    assert folds(channels) == expected


def test_only_uneven_layers_are_exchanged_and_given_back():
    network = build_model("1.5k-dw")
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]

    class Own(nn.BatchNorm2d):
        pass

    network.append(Own(12))
    with pytest.raises(KeyError), folded(network):
        kinds = {norm.num_features: type(norm) for norm in norms}
        assert kinds == {8: nn.BatchNorm2d, 16: nn.BatchNorm2d,
                         12: FoldedBatchNorm2d, 15: FoldedBatchNorm2d}
        assert type(network[-1]) is Own
        raise KeyError
    assert {type(norm) for norm in norms} == {nn.BatchNorm2d}
    torch.save(build_model("1.5k-dw"), kept := io.BytesIO())
    with folded(fresh := build_model("1.5k-dw")):
        pass
    torch.save(fresh, after := io.BytesIO())
    assert b"FoldedBatchNorm2d" not in after.getvalue()
    assert len(after.getvalue()) == len(kept.getvalue())


def test_a_training_step_of_a_whole_network_is_the_same():
    torch.manual_seed(0)
    theirs = build_model("7k-dw").to(memory_format=torch.channels_last)
    ours = copy.deepcopy(theirs)
    x, y = images((32, 1, 28, 28)), torch.arange(32) % 10
    with folded(ours):
        for network in (theirs, ours):
            nn.functional.cross_entropy(network(x), y).backward()
    for expected, found in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-5)
