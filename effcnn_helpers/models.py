"""The paper's eight architectures (Tables 1 and 2), written so that they read like its tables, and ours beyond it.

Every model maps normalised images (N, C, H, W) to logits (N, classes). The tables say (c_in, c_out)/kernel
and leave three things open; the parameter counts fix them:
- each 3x3 or depthwise-separable block ends in BatchNorm and ReLU, a transition block has neither;
- every 3x3 convolution is padded by 1, so only the max-pools change the image's size;
- the MNIST models use no bias, the CIFAR-10 models a bias in every 3x3, depthwise and pointwise
  convolution. No classifier has one.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torchinfo
from torch import nn

from .errors import EffcnnError, look_up


class Conv3x3(nn.Sequential):
    """3x3 convolution, BatchNorm, ReLU: (N, c_in, H, W) -> (N, c_out, H, W)."""

    def __init__(self, c_in: int, c_out: int, bias: bool = False):
        super().__init__(OrderedDict(
            conv=nn.Conv2d(c_in, c_out, kernel_size=3, padding=1, bias=bias),
            norm=nn.BatchNorm2d(c_out),
            relu=nn.ReLU(),
        ))


class DepthwiseSeparableConv2d(nn.Sequential):
    """One 3x3 filter per channel, then a 1x1 mix of the channels, BatchNorm, ReLU (paper, section III.B).

    (N, c_in, H, W) -> (N, c_out, H, W), with 9 c_in + c_in c_out weights instead of 9 c_in c_out.
    """

    def __init__(self, c_in: int, c_out: int, bias: bool = False):
        super().__init__(OrderedDict(
            depthwise=nn.Conv2d(c_in, c_in, kernel_size=3, padding=1, groups=c_in, bias=bias),
            pointwise=nn.Conv2d(c_in, c_out, kernel_size=1, bias=bias),
            norm=nn.BatchNorm2d(c_out),
            relu=nn.ReLU(),
        ))


def transition_block(c_in: int, c_out: int) -> nn.Conv2d:
    """1x1 convolution that narrows (N, c_in, H, W) to (N, c_out, H, W); no BatchNorm, no ReLU, no bias."""
    return nn.Conv2d(c_in, c_out, kernel_size=1, bias=False)


class GapHead(nn.Sequential):
    """Global average pooling, then a 1x1 convolution as classifier: (N, c_in, H, W) -> (N, classes) logits."""

    def __init__(self, c_in: int, classes: int = 10):
        super().__init__(OrderedDict(
            gap=nn.AdaptiveAvgPool2d(1),
            classifier=nn.Conv2d(c_in, classes, kernel_size=1, bias=False),
            flatten=nn.Flatten(),
        ))


class ResidualBlock(nn.Module):
    """Adds what came in to what two 3x3 convolutions make of it (He et al., "Deep residual learning", 2015).

    (N, c_in, H, W) -> (N, c_out, H, W). Where the widths differ, a 1x1 convolution with BatchNorm widens what came in.
    """

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.block1 = Conv3x3(c_in, c_out)
        self.block2 = Conv3x3(c_out, c_out)
        self.block2.relu = nn.Identity()  # the ReLU comes after the sum
        self.shortcut = nn.Identity() if c_in == c_out else nn.Sequential(OrderedDict(
            conv=nn.Conv2d(c_in, c_out, kernel_size=1, bias=False),
            norm=nn.BatchNorm2d(c_out),
        ))
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.block2(self.block1(x)) + self.shortcut(x))


class ResidualSeparable(nn.Module):
    """Adds what came in to what one depthwise-separable convolution makes of it: (N, c, H, W) -> (N, c, H, W)."""

    def __init__(self, c: int):
        super().__init__()
        self.block = DepthwiseSeparableConv2d(c, c)
        self.block.relu = nn.Identity()  # the ReLU comes after the sum
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.block(x) + x)


def mnist_25k(classes: int = 10) -> nn.Sequential:
    """25K without depthwise convolutions (Table 1): 25,144 parameters."""
    return nn.Sequential(OrderedDict(
        conv1=Conv3x3(1, 8),                          # 28 x 28
        conv2=Conv3x3(8, 16),
        maxpool1=nn.MaxPool2d(2),                     # 14 x 14
        conv3=Conv3x3(16, 32),
        conv4=Conv3x3(32, 64),
        maxpool2=nn.MaxPool2d(2),                     # 7 x 7
        head=GapHead(64, classes),
    ))


def mnist_7k(classes: int = 10) -> nn.Sequential:
    """7K without depthwise convolutions (Table 1): 7,767 parameters."""
    return nn.Sequential(OrderedDict(
        conv1=Conv3x3(1, 8),                          # 28 x 28
        conv2=Conv3x3(8, 12),
        transition1=transition_block(12, 8),
        maxpool1=nn.MaxPool2d(2),                     # 14 x 14
        conv3=Conv3x3(8, 12),
        conv4=Conv3x3(12, 16),
        transition2=transition_block(16, 12),
        maxpool2=nn.MaxPool2d(2),                     # 7 x 7
        conv5=Conv3x3(12, 15),
        conv6=Conv3x3(15, 15),
        head=GapHead(15, classes),
    ))


def mnist_7k_dw(classes: int = 10) -> nn.Sequential:
    """7K with depthwise convolutions (Table 1): 7,611 parameters."""
    return nn.Sequential(OrderedDict(
        conv1=Conv3x3(1, 10),                         # 28 x 28
        conv2=DepthwiseSeparableConv2d(10, 12),
        transition1=transition_block(12, 10),
        maxpool1=nn.MaxPool2d(2),                     # 14 x 14
        conv3=Conv3x3(10, 13),
        conv4=Conv3x3(13, 16),
        transition2=transition_block(16, 12),
        maxpool2=nn.MaxPool2d(2),                     # 7 x 7
        conv5=Conv3x3(12, 15),
        conv6=Conv3x3(15, 15),
        head=GapHead(15, classes),
    ))


def mnist_5k(classes: int = 10) -> nn.Sequential:
    """5K without depthwise convolutions (Table 1): 5,712 parameters."""
    return nn.Sequential(OrderedDict(
        conv1=Conv3x3(1, 8),                          # 28 x 28
        conv2=Conv3x3(8, 12),
        transition1=transition_block(12, 8),
        maxpool1=nn.MaxPool2d(2),                     # 14 x 14
        conv3=Conv3x3(8, 12),
        conv4=Conv3x3(12, 16),
        transition2=transition_block(16, 12),
        maxpool2=nn.MaxPool2d(2),                     # 7 x 7
        conv5=Conv3x3(12, 15),
        head=GapHead(15, classes),
    ))


def mnist_5k_dw(classes: int = 10) -> nn.Sequential:
    """5K with depthwise convolutions (Table 1): 5,616 parameters."""
    return nn.Sequential(OrderedDict(
        conv1=Conv3x3(1, 8),                          # 28 x 28
        conv2=DepthwiseSeparableConv2d(8, 12),
        transition1=transition_block(12, 8),
        maxpool1=nn.MaxPool2d(2),                     # 14 x 14
        conv3=Conv3x3(8, 13),
        conv4=Conv3x3(13, 18),
        transition2=transition_block(18, 12),
        maxpool2=nn.MaxPool2d(2),                     # 7 x 7
        conv5=Conv3x3(12, 16),
        head=GapHead(16, classes),
    ))


def mnist_1_5k_dw(classes: int = 10, widths: tuple[int, int, int, int] = (8, 12, 16, 15)) -> nn.Sequential:
    """1.5K with depthwise convolutions (Table 1): 1,560 parameters. Other widths keep its form; they are ours."""
    first, second, third, last = widths
    return nn.Sequential(OrderedDict(
        conv1=Conv3x3(1, first),                      # 28 x 28
        conv2=DepthwiseSeparableConv2d(first, second),
        transition1=transition_block(second, first),
        maxpool1=nn.MaxPool2d(2),                     # 14 x 14
        conv3=DepthwiseSeparableConv2d(first, second),
        conv4=DepthwiseSeparableConv2d(second, third),
        transition2=transition_block(third, second),
        maxpool2=nn.MaxPool2d(2),                     # 7 x 7
        conv5=DepthwiseSeparableConv2d(second, last),
        head=GapHead(last, classes),
    ))


def mnist_25k_res(classes: int = 10) -> nn.Sequential:
    """25K with residual blocks, not the paper's: 25,004 parameters, two thirds of them at 7 x 7."""
    return nn.Sequential(OrderedDict(
        conv1=Conv3x3(1, 16),                         # 28 x 28
        maxpool1=nn.MaxPool2d(2),                     # 14 x 14
        block2=ResidualBlock(16, 20),
        maxpool2=nn.MaxPool2d(2),                     # 7 x 7
        block3=ResidualBlock(20, 22),
        block4=ResidualBlock(22, 22),
        head=GapHead(22, classes),
    ))


def mnist_1_5k_res(classes: int = 10) -> nn.Sequential:
    """1.5K with residual sums around depthwise-separable convolutions, not the paper's: 1,504 parameters."""
    return nn.Sequential(OrderedDict(
        conv1=Conv3x3(1, 8),                          # 28 x 28
        conv2=DepthwiseSeparableConv2d(8, 12),
        maxpool1=nn.MaxPool2d(2),                     # 14 x 14
        block3=ResidualSeparable(12),
        block4=ResidualSeparable(12),
        maxpool2=nn.MaxPool2d(2),                     # 7 x 7
        block5=ResidualSeparable(12),
        block6=ResidualSeparable(12),
        head=GapHead(12, classes),
    ))


def cifar10_143k(classes: int = 10, widths: tuple[int, int, int, int] = (16, 32, 64, 120)) -> nn.Sequential:
    """143K without depthwise convolutions (Table 2): 143,208 parameters. Other widths keep its form; they are ours."""
    first, second, third, last = widths
    return nn.Sequential(OrderedDict(
        conv1=Conv3x3(3, first, bias=True),           # 32 x 32
        conv2=Conv3x3(first, first, bias=True),
        maxpool1=nn.MaxPool2d(2),                     # 16 x 16
        conv3=Conv3x3(first, second, bias=True),
        conv4=Conv3x3(second, second, bias=True),
        maxpool2=nn.MaxPool2d(2),                     # 8 x 8
        conv5=Conv3x3(second, third, bias=True),
        conv6=Conv3x3(third, third, bias=True),
        maxpool3=nn.MaxPool2d(2),                     # 4 x 4
        conv7=Conv3x3(third, last, bias=True),
        head=GapHead(last, classes),
    ))


def cifar10_143k_dw(classes: int = 10) -> nn.Sequential:
    """143K with depthwise convolutions (Table 2): 143,396 parameters."""
    return nn.Sequential(OrderedDict(
        conv1=Conv3x3(3, 16, bias=True),              # 32 x 32
        conv2=Conv3x3(16, 16, bias=True),
        maxpool1=nn.MaxPool2d(2),                     # 16 x 16
        conv3=DepthwiseSeparableConv2d(16, 32, bias=True),
        conv4=Conv3x3(32, 32, bias=True),
        maxpool2=nn.MaxPool2d(2),                     # 8 x 8
        conv5=DepthwiseSeparableConv2d(32, 64, bias=True),
        conv6=Conv3x3(64, 64, bias=True),
        maxpool3=nn.MaxPool2d(2),                     # 4 x 4
        conv7=DepthwiseSeparableConv2d(64, 128, bias=True),
        conv8=DepthwiseSeparableConv2d(128, 192, bias=True),
        conv9=DepthwiseSeparableConv2d(192, 260, bias=True),
        head=GapHead(260, classes),
    ))


def cifar10_142k_res(classes: int = 10) -> nn.Sequential:
    """142K with residual blocks, not the paper's: 141,936 parameters, three quarters of them at 8 x 8."""
    return nn.Sequential(OrderedDict(
        conv1=Conv3x3(3, 16),                         # 32 x 32
        block2=ResidualBlock(16, 16),
        maxpool1=nn.MaxPool2d(2),                     # 16 x 16
        block3=ResidualBlock(16, 32),
        block4=ResidualBlock(32, 32),
        maxpool2=nn.MaxPool2d(2),                     # 8 x 8
        block5=ResidualBlock(32, 56),
        block6=ResidualBlock(56, 56),
        head=GapHead(56, classes),
    ))


@dataclass(frozen=True)
class Model:
    """A network of the series: its names, its colour and line in every plot, how to build it.

    image_shape: (C, H, W) of what it is made for. build: from the number of classes to a network.
    paper: whether it is one of the paper's. A network of your own is one more entry in MODELS.
    """

    name: str
    label: str
    color: str
    image_shape: tuple[int, int, int]
    build: Callable[[int], nn.Module]
    linestyle: str = "-"
    paper: bool = False


_DIGITS, _PHOTOS = (1, 28, 28), (3, 32, 32)
MODELS = {model.name: model for model in (
    Model("25k", "25K", "#0173b2", _DIGITS, mnist_25k, paper=True),
    Model("7k", "7K", "#de8f05", _DIGITS, mnist_7k, paper=True),
    Model("7k-dw", "7K-DW", "#029e73", _DIGITS, mnist_7k_dw, "--", paper=True),
    Model("5k", "5K", "#d55e00", _DIGITS, mnist_5k, paper=True),
    Model("5k-dw", "5K-DW", "#cc78bc", _DIGITS, mnist_5k_dw, "--", paper=True),
    Model("1.5k-dw", "1.5K-DW", "#ca9161", _DIGITS, mnist_1_5k_dw, "--", paper=True),
    Model("143k", "143K", "#882255", _PHOTOS, cifar10_143k, paper=True),
    Model("143k-dw", "143K-DW", "#44aa99", _PHOTOS, cifar10_143k_dw, "--", paper=True),
    Model("142k-res", "142K-Res", "#7b6fd0", _PHOTOS, cifar10_142k_res, ":"),
    Model("25k-res", "25K-Res", "#1b4f8a", _DIGITS, mnist_25k_res, ":"),
    Model("1.5k-res", "1.5K-Res", "#7a5230", _DIGITS, mnist_1_5k_res, ":"),
    Model("0.3k-dw", "0.3K-DW", "#e6c9a8", _DIGITS, partial(mnist_1_5k_dw, widths=(2, 4, 5, 5)), "--"),
    Model("0.6k-dw", "0.6K-DW", "#dcb588", _DIGITS, partial(mnist_1_5k_dw, widths=(4, 6, 8, 8)), "--"),
    Model("1k-dw", "1K-DW", "#d3a374", _DIGITS, partial(mnist_1_5k_dw, widths=(6, 9, 12, 11)), "--"),
    Model("2.8k-dw", "2.8K-DW", "#a5713c", _DIGITS, partial(mnist_1_5k_dw, widths=(12, 16, 24, 24)), "--"),
    Model("9k", "9K", "#ddaabb", _PHOTOS, partial(cifar10_143k, widths=(4, 8, 16, 30))),
    Model("36k", "36K", "#c07088", _PHOTOS, partial(cifar10_143k, widths=(8, 16, 32, 60))),
    Model("80k", "80K", "#a04466", _PHOTOS, partial(cifar10_143k, widths=(12, 24, 48, 88))),
)}


def model_of(name: str) -> Model:
    """The entry of a model. Raises EffcnnError, listing the models, for an unknown name."""
    return look_up("model", name, MODELS)


def build_model(name: str, classes: int = 10) -> nn.Module:
    """A fresh model by its name, say "1.5k-dw", with weights drawn from torch's global generator.

    Raises EffcnnError, listing the models, for an unknown name.
    """
    return model_of(name).build(classes)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def layer_costs(model: nn.Module, image_shape: tuple[int, int, int]) -> pd.DataFrame:
    """Where parameters and work go: one row per layer that has any, counted by torchinfo.

    image_shape: (C, H, W). Columns: layer, kind, parameters, multiply_adds (for one image).
    Raises EffcnnError when the model does not take images of this shape.
    """
    try:
        summary = torchinfo.summary(model, input_size=(1, *image_shape), verbose=0)
    except (RuntimeError, TypeError, ValueError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise EffcnnError(f"the model does not take images of the shape {image_shape!r} ({cause}); "
                          "use the (C, H, W) that it is made for") from error
    names = {id(module): name for name, module in model.named_modules()}
    rows = [
        {"layer": names[info.layer_id],
         "kind": kind_of(info.module), "parameters": info.num_params, "multiply_adds": info.macs}
        for info in summary.summary_list
        if info.is_leaf_layer and info.num_params > 0
    ]
    return pd.DataFrame(rows)


def kind_of(layer: nn.Module) -> str:
    """What a layer is called in the field: "3x3 convolution", "depthwise convolution", …"""
    if not isinstance(layer, nn.Conv2d):
        return type(layer).__name__
    if 1 < layer.groups == layer.in_channels:
        return "depthwise convolution"
    kind = f"{layer.kernel_size[0]}x{layer.kernel_size[1]} convolution"
    return kind if layer.groups == 1 else f"grouped {kind}"
