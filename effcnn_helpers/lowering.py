"""A trained network as a short list of steps, each of which anything that can loop and multiply can do.

`lower` follows the network by torch.fx, folds each BatchNorm, and leaves convolutions, max-pools, means, sums of two
branches and the like, one after the other. `plain_c` writes each step as a function in C; network.js runs them in a
browser.
"""

import copy
import operator
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional

from .batches import normalise
from .datasets import DatasetSpec
from .errors import EffcnnError
from .runtimes import without_composers_blurpool

WRITABLE = ("C and pages can be written of Conv2d (plain or depthwise), Linear, BatchNorm2d, ReLU, MaxPool2d, "
            "AdaptiveAvgPool2d(1), Flatten, Dropout, Identity, sums of two branches, Composer's BlurMaxPool2d and "
            "SqueezeExcite2d")


@dataclass(eq=False)
class Buffer:
    """A place in the arena for (height, width, channels) numbers and a border of zeros around them."""

    height: int
    width: int
    channels: int
    border: int = 0
    offset: int = 0

    @property
    def row(self) -> int:
        return (self.width + 2 * self.border) * self.channels

    @property
    def numbers(self) -> int:
        return (self.height + 2 * self.border) * self.row

    def at(self, up: int = 0, left: int = 0) -> int:
        """The first number of the first pixel, or of one so far above and left of it."""
        return (self.border - up) * self.row + (self.border - left) * self.channels


@dataclass(eq=False)
class Value:
    """What a step makes, in a buffer. As int8 a number is `unit` times a whole one from `low` to `high`."""

    buffer: Buffer
    unit: float = 1.0
    low: int = -127
    high: int = 127


@dataclass(eq=False)
class Step:
    """One function in C. weight: (C_out, C_in per group, kH, kW) of conv and depthwise, (C, 1, 1, 1) of those that
    multiply each channel (affine, scale, add, input). scale multiplies by the values `by` before, add adds them."""

    kind: str
    name: str
    x: Value
    y: Value
    weight: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    relu: bool = False
    by: Value | None = None

    @property
    def foldable(self) -> bool:
        """Whether a BatchNorm or ReLU that follows can be part of it."""
        return self.weight is not None and self.kind != "input" and not self.relu


class Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return is_squeeze_excite(module) or super().is_leaf_module(module, name)


def is_squeeze_excite(module: nn.Module) -> bool:
    from composer.algorithms.squeeze_excite.squeeze_excite import SqueezeExcite2d

    return isinstance(module, SqueezeExcite2d)


def lower(network: nn.Module, spec: DatasetSpec) -> list[Step]:
    """The network as steps, the first of which normalises pixels. Raises EffcnnError, naming the layer it cannot take.

    What the steps compute is compared with what the network computes.
    """
    network = copy.deepcopy(network).cpu().float().eval()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (4, *spec.image_shape), dtype=torch.uint8, generator=generator)
    with torch.inference_mode():
        wanted = network(normalise(noise, spec))
    network = without_composers_blurpool(network, normalise(noise[:1], spec)).requires_grad_(False)
    try:
        graph = Tracer().trace(network)
    except Exception as error:  # a forward method may do anything with the stand-in that fx gives it
        raise EffcnnError(f"this network cannot be followed ({error}); {WRITABLE}") from error
    lowering = Lowering(spec)
    modules = dict(network.named_modules())
    with torch.no_grad():
        for node in graph.nodes:
            lowering.add(node, modules)
        steps = lowering.finished()
        found = run(steps, noise)[steps[-1].y].flatten(1)
    if found.shape != wanted.shape or not torch.allclose(found, wanted, rtol=1e-3, atol=1e-3):
        raise EffcnnError(f"this network computes something else than its layers say; {WRITABLE}")
    return steps


SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")  # of two branches
SAME_AS = {functional.relu: nn.ReLU, torch.relu: nn.ReLU, "relu": nn.ReLU,
           torch.flatten: nn.Flatten, "flatten": nn.Flatten}  # as functions or methods


class Lowering:
    """Steps, as layer after layer is added."""

    def __init__(self, spec: DatasetSpec):
        channels, height, width = spec.image_shape
        std = 255 * torch.tensor(spec.std).view(-1, 1, 1, 1)
        image = Value(Buffer(height, width, channels), low=0, high=255)
        self.now = Value(Buffer(height, width, channels))
        self.values: dict[fx.Node, Value] = {}  # what each node makes
        self.shared: set[Value] = set()  # what more than one node takes, so that nothing may be written over it
        self.steps = [Step("input", "input", image, self.now, 1 / std, -255 * torch.tensor(spec.mean) / std.flatten())]

    def add(self, node: fx.Node, modules: dict[str, nn.Module]) -> None:
        target, taken = node.target, [self.values[one] for one in node.all_input_nodes]
        self.name = str(target) if node.op == "call_module" else node.name
        if node.op == "output":
            self.now = taken[0]
        elif target in SUMS and len(taken) == 2 and not node.kwargs:
            self.sum(*taken)
        elif node.op != "placeholder":
            layer = modules[target] if node.op == "call_module" else SAME_AS.get(target, lambda: None)()
            if layer is None or len(taken) != 1:
                raise self.unknown(f"{node.op} {getattr(target, '__name__', target)}")
            self.now = taken[0]
            self.layer(layer)
        self.values[node] = self.now
        if len(node.users) > 1:
            self.shared.add(self.now)

    def unknown(self, what: object) -> EffcnnError:
        return EffcnnError(f"layer {self.name} is {what}, and {WRITABLE}")

    def layer(self, layer: nn.Module) -> None:
        x = self.now.buffer
        if isinstance(layer, (nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d)):
            return
        if isinstance(layer, nn.Conv2d):
            depthwise = 1 < layer.groups == layer.in_channels == layer.out_channels
            if (isinstance(layer.padding, str) or layer.padding_mode != "zeros" or set(layer.dilation) != {1}
                    or not (depthwise or layer.groups == 1)):
                raise self.unknown(layer)
            self.window("depthwise" if depthwise else "conv", layer.out_channels, layer.kernel_size, layer.stride,
                        layer.padding, weight=layer.weight, bias=layer.bias)
        elif isinstance(layer, nn.Linear):
            # The flattened image is (C, H, W): a convolution with a kernel of the image's size.
            weight = layer.weight.view(layer.out_features, x.channels, x.height, x.width)
            self.window("conv", layer.out_features, (x.height, x.width), weight=weight, bias=layer.bias)
        elif isinstance(layer, nn.BatchNorm2d) and layer.affine and layer.track_running_stats:
            # In float64: torch's float32 square root differs between processors in its last bit, and so would files.
            factor = layer.weight.double() / torch.sqrt(layer.running_var.double() + layer.eps)
            step = self.elementwise()
            step.weight = (step.weight * factor.view(-1, 1, 1, 1)).float()
            step.bias = (step.bias * factor + layer.bias - layer.running_mean * factor).float()
        elif isinstance(layer, nn.ReLU):
            self.elementwise().relu = True
        elif isinstance(layer, nn.MaxPool2d):
            kernel, stride, padding, dilation = map(pair, (layer.kernel_size, layer.stride, layer.padding,
                                                           layer.dilation))
            if padding != (0, 0) or dilation != (1, 1) or layer.ceil_mode or layer.return_indices:
                raise self.unknown(layer)
            self.window("maxpool", x.channels, kernel, stride)
        elif isinstance(layer, nn.AdaptiveAvgPool2d) and pair(layer.output_size) == (1, 1):
            self.window("mean", x.channels, (x.height, x.width))
        elif is_squeeze_excite(layer):
            scaled, name = self.now, self.name
            for part, inner in layer.pool_and_mlp.named_children():
                self.name = f"{name}.{part}"
                self.layer(inner)
            self.per_channel("scale", scaled, by=self.now)
        elif isinstance(layer, nn.Sigmoid) and (x.height, x.width) == (1, 1):
            self.step("sigmoid", self.over(self.now))
        else:
            raise self.unknown(layer)

    def window(self, kind: str, channels: int, kernel: tuple, stride: tuple = (1, 1), padding: tuple = (0, 0),
               weight: torch.Tensor | None = None, bias: torch.Tensor | None = None) -> None:
        """A step that makes each pixel from a window of pixels."""
        x = self.now.buffer
        x.border = max(x.border, *padding)
        height, width = ((size + 2 * p - k) // s + 1 for size, k, s, p in
                         zip((x.height, x.width), kernel, stride, padding, strict=True))
        if weight is not None and bias is None:
            bias = torch.zeros(channels)
        self.step(kind, Value(Buffer(height, width, channels)), weight=weight, bias=bias, kernel=kernel,
                  stride=stride, padding=padding)

    def elementwise(self) -> Step:
        """The last step if it can take in what follows, else a new one."""
        last = self.steps[-1]
        if last.foldable and last.y is self.now and self.now not in self.shared:
            return last
        return self.per_channel("affine", self.now)

    def sum(self, x: Value, by: Value) -> None:
        shapes = [(value.buffer.channels, value.buffer.height, value.buffer.width) for value in (x, by)]
        if shapes[0] != shapes[1]:
            raise self.unknown(f"a sum of {shapes[0]} and {shapes[1]}")
        self.per_channel("add", *((by, x) if x in self.shared else (x, by)))

    def per_channel(self, kind: str, x: Value, by: Value | None = None) -> Step:
        """A step that multiplies each channel by a number and adds one; both are still free."""
        channels = x.buffer.channels
        return self.step(kind, self.over(x), x, weight=torch.ones(channels), bias=torch.zeros(channels), by=by)

    def over(self, x: Value) -> Value:
        """A value of the shape of x, in its place unless x is needed again."""
        place = x.buffer
        return Value(Buffer(place.height, place.width, place.channels) if x in self.shared else place)

    def step(self, kind: str, y: Value, x: Value | None = None, weight: torch.Tensor | None = None, **more) -> Step:
        if weight is not None:
            weight = weight.reshape(len(weight), -1, *more.get("kernel", (1, 1)))
        self.steps.append(Step(kind, self.name, x or self.now, y, weight, **more))
        self.now = y
        return self.steps[-1]

    def finished(self) -> list[Step]:
        """All steps; the last one is a convolution without ReLU, which writes the logits."""
        last = self.steps[-1]
        x = self.now.buffer
        if not (last.y is self.now and last.foldable and last.kind in ("conv", "depthwise")):
            self.name = "logits"
            self.window("depthwise", x.channels, (1, 1), weight=torch.ones(x.channels))
        if (x.height, x.width) != (1, 1):
            raise EffcnnError(f"this network ends in images of {x.height} x {x.width}, not in logits; C can be "
                              "written of a network that classifies")
        return self.steps


def pair(value) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)


def run(steps: list[Step], images: torch.Tensor) -> dict[Value, torch.Tensor]:
    """Every value of uint8 images (N, C, H, W), computed by torch in float32."""
    values = {steps[0].x: images.float()}
    for step in steps:
        x = values[step.x]
        if step.kind in ("conv", "depthwise"):
            groups = len(step.weight) if step.kind == "depthwise" else 1
            x = functional.conv2d(x, step.weight, step.bias, step.stride, step.padding, groups=groups)
        elif step.kind == "maxpool":
            x = functional.max_pool2d(x, step.kernel, step.stride)
        elif step.kind == "mean":
            x = x.mean((2, 3), keepdim=True)
        elif step.kind == "sigmoid":
            x = x.sigmoid()
        else:
            if step.by:
                x = x + values[step.by] if step.kind == "add" else x * values[step.by]
            x = x * step.weight.view(1, -1, 1, 1) + step.bias.view(1, -1, 1, 1)
        values[step.y] = x.relu() if step.relu else x
    return values
