"""A trained network as plain C: one header, one source file, no dependencies, no malloc; float32 or int8.

`write_c` writes each step that `lowering` makes of the network (convolution, max-pool, mean, …) as a C function with
its numbers written out. In C, images and activations lie as (H, W, C), so that the inner loops run over neighbouring
numbers; a value that is padded further on is kept with its border of zeros.
"""

import math
import re
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .datasets import DatasetSpec, spec_of
from .errors import EffcnnError
from .lowering import Buffer, Step, Value, lower, run

KINDS = ("float32", "int8")
TERMS = 18        # of a sum that is written out in the source, about: more of them no longer run faster
FACTOR_BITS = 14  # of int8's factors; with sums of ACC_BITS a product stays in 32 bits
ACC_BITS = 15
SIGMOID_UNIT = 1 / 255


@dataclass(frozen=True)
class CSource:
    """What `write_c` wrote.

    flash_bytes: of the constant arrays. ram_bytes: of the static arena that holds the activations. Neither counts
    code or stack. logit_unit: what a logit of 1 stands for (1.0 as float32).
    """

    header: Path
    source: Path
    flash_bytes: int
    ram_bytes: int
    logit_unit: float


def write_c(network: nn.Module, dataset: str | DatasetSpec, folder: Path, examples: torch.Tensor | None = None,
            kind: str = "float32", name: str = "model") -> CSource:
    """Write `<name>.h` and `<name>.c` into a folder: the network in C99, from pixels to logits.

    network: copied, so it stays as it is. dataset: what the network was trained on, for the images' shape and
    normalisation, which is part of the C. examples: uint8 (N, C, H, W), training images from which int8 takes the
    ranges of its values; a few hundred will do. kind: "float32", or "int8": integer arithmetic only. name: of files
    and functions, a C identifier in small letters.

    The functions are not reentrant: activations lie in one static arena. Right shifts of negative numbers must be
    arithmetic, as with every compiler in use. Raises EffcnnError for a network with a layer that it does not know,
    a wrong kind, name or wrong examples; then nothing is written.
    """
    spec = spec_of(dataset)
    if kind not in KINDS:
        raise EffcnnError(f"kind is {kind!r}; use one of {', '.join(KINDS)}")
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise EffcnnError(f"name is {name!r}; use small letters, digits and _, a letter first")
    if kind == "int8" and (examples is None or examples.dtype != torch.uint8 or not len(examples)
                           or examples.shape[1:] != spec.image_shape):
        got = "missing" if examples is None else f"{examples.dtype} {tuple(examples.shape)}"
        raise EffcnnError(f"examples are {got}; int8 needs uint8 training images (N, {str(spec.image_shape)[1:]}")
    steps = lower(network, spec)
    if kind == "int8":
        set_units(steps, examples)
    arena = plan_arena(steps)
    source = Source(kind)
    functions = [source.function(index, step, steps[-1]) for index, step in enumerate(steps)]
    header, body = source.files(name, spec, steps, functions, arena)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}.h", folder / f"{name}.c"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as temporary:
        for path, text in zip(paths, (header, body), strict=True):
            (Path(temporary) / path.name).write_text(text, encoding="ascii")
        for path in paths:
            (Path(temporary) / path.name).replace(path)
    return CSource(*paths, source.flash_bytes, arena * source.number_bytes, source.logit_unit)


# int8 and the arena


def set_units(steps: list[Step], examples: torch.Tensor) -> None:
    """Give every value the unit in which its range over these uint8 images (N, C, H, W) just fits 8 bits."""
    lows: dict[Value, float] = {}
    highs: dict[Value, float] = {}
    # Every pixel value there is, so that none is cut off.
    pixels = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1).expand(256, *examples.shape[1:])
    with torch.inference_mode():
        for images, some in ((pixels[:, :, :1, :1], steps[:1]), *((batch, steps) for batch in examples.split(100))):
            for value, numbers in run(some, images).items():
                lows[value] = min(float(numbers.min()), lows.get(value, 0.0))
                highs[value] = max(float(numbers.max()), highs.get(value, 0.0))
    for step in steps:
        y = step.y
        if step.kind == "maxpool":  # it compares, and computes nothing
            y.unit, y.low = step.x.unit, step.x.low
        elif step.kind == "sigmoid":
            y.unit, y.low = SIGMOID_UNIT, 0
        elif lows[y] >= 0:
            y.unit, y.low = (highs[y] or 1.0) / 255, 0
        else:
            y.unit = max(highs[y], -lows[y]) / 127
        y.high = 127 if y.low else 255


def in_whole_numbers(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights (C_out, n) as int8 and the unit of each channel (C_out,): the one that is best of 64 candidates.

    The largest weight is between 64 and 127 units, so that a blur's sixteenths come out exact.
    """
    largest = np.maximum(np.abs(weight).max(axis=1), 1e-12)
    units = largest / np.arange(64, 128)[:, None]
    errors = [np.square(np.round(weight / unit[:, None]) * unit[:, None] - weight).sum(axis=1) for unit in units]
    unit = units[np.argmin(errors, axis=0), np.arange(len(weight))]
    return np.round(weight / unit[:, None]).astype(np.int8), unit


def plan_arena(steps: list[Step]) -> int:
    """Give every buffer its place, so that none overlaps another that is needed at the same time. Returns the size."""
    lives: dict[Buffer, list[int]] = {}
    for index, step in enumerate(steps):
        for value in (step.x, step.y, step.by):
            if value not in (None, steps[0].x, steps[-1].y):  # the caller brings pixels and logits
                lives.setdefault(value.buffer, []).append(index)
    placed: list[Buffer] = []
    for buffer in sorted(lives, key=lambda buffer: -buffer.numbers):
        others = [other for other in placed
                  if lives[other][0] <= lives[buffer][-1] and lives[buffer][0] <= lives[other][-1]]
        for other in sorted(others, key=lambda other: other.offset):
            if buffer.offset + buffer.numbers <= other.offset:
                break
            buffer.offset = max(buffer.offset, other.offset + other.numbers)
        placed.append(buffer)
    return max(buffer.offset + buffer.numbers for buffer in placed)


# From steps to C


class Source:
    """The text of the C files, and what it needs of flash."""

    def __init__(self, kind: str):
        self.int8 = kind == "int8"
        self.number_bytes = 1 if self.int8 else 4
        self.arrays: list[str] = []
        self.flash_bytes = 0
        self.logit_unit = 1.0

    def array(self, name: str, numbers: np.ndarray, ctype: str) -> str:
        """Write a constant array down; returns its name."""
        flat = np.asarray(numbers).ravel()
        self.flash_bytes += flat.size * {"float": 4, "int32_t": 4, "int16_t": 2, "int8_t": 1, "uint8_t": 1}[ctype]
        words = [number_text(number, ctype) for number in flat]
        self.arrays.append(f"static const {ctype} {name}[{flat.size}] = {{\n"
                           + textwrap.fill(", ".join(words), 110, initial_indent="    ", subsequent_indent="    ")
                           + "\n};")
        return name

    def per_channel(self, what: str, numbers: np.ndarray, ctype: str) -> str:
        """An expression for the number of channel c; no array when all are the same."""
        if (numbers == numbers[0]).all():
            return number_text(numbers[0], ctype)
        return self.array(f"{self.name}_{what}", numbers, ctype) + "[c]"

    def function(self, index: int, step: Step, last: Step) -> tuple[str, str]:
        """(definition, call) of a step's function."""
        self.name = name = f"s{index}_" + re.sub(r"\W", "_", step.name)
        self.step = step
        x, y, by = step.x, step.y, step.by
        self.logits = step is last
        out = "int32_t" if self.logits and self.int8 else self.ctype(y)
        into = "uint8_t" if step.kind == "input" else self.ctype(x)
        if step.kind == "mean":
            body = self.mean()
        else:
            body = self.over_pixels(getattr(self, step.kind)(), into, out)
        if y.buffer.border and y.buffer is not x.buffer:
            body = f"for (int i = 0; i < {y.buffer.numbers}; i++) y[i] = 0;\n{body}"
        apart = "" if x.buffer is y.buffer else "restrict "
        parameters = [f"const {into} *{apart}x", f"{out} *{apart}y"]
        arguments = ["image" if step.kind == "input" else self.place(x), "logits" if self.logits else self.place(y)]
        if by:
            parameters.append(f"const {self.ctype(by)} *restrict by")
            arguments.append(self.place(by))
        shape = " x ".join(map(str, (y.buffer.height, y.buffer.width, y.buffer.channels)))
        return (f"/* {step.name}: {step.kind}{' and ReLU' if step.relu else ''}, to {shape} */\n"
                f"static void {name}({', '.join(parameters)})\n{{\n{textwrap.indent(body, '    ')}\n}}",
                f"{name}({', '.join(arguments)});")

    def ctype(self, value: Value) -> str:
        return "float" if not self.int8 else "int8_t" if value.low else "uint8_t"

    def place(self, value: Value) -> str:
        place = f"arena + {value.buffer.offset}"
        return f"(uint8_t *)({place})" if self.ctype(value) == "uint8_t" else place

    def over_pixels(self, body: str, into: str, out: str) -> str:
        """Loops over the pixels of y; in the body, p is the first number of its window in x and q its own."""
        x, y = self.step.x.buffer, self.step.y.buffer
        (down, right), source = self.step.stride, x
        if self.step.kind == "input":  # the image of the caller has no border
            source = Buffer(x.height, x.width, x.channels)
        return (f"for (int i = 0; i < {y.height}; i++)\n"
                f"    for (int j = 0; j < {y.width}; j++) {{\n"
                f"        const {into} *p = x + {source.at(*self.step.padding)} + i * {down * source.row} + j * "
                f"{right * source.channels};\n"
                f"        {out} *q = y + {y.at()} + i * {y.row} + j * {y.channels};\n"
                + textwrap.indent(body, " " * 8) + "\n    }")

    def each_channel(self, *lines: str) -> str:
        return (f"for (int c = 0; c < {self.step.y.buffer.channels}; c++) {{\n"
                + textwrap.indent("\n".join(lines), "    ") + "\n}")

    def stored(self, total: str, factor: np.ndarray | float = 1.0, bound: int = 0) -> str:
        """What makes a number of y out of `total`, an expression that holds a float or, as int8, an int32_t.

        factor: what one unit of the total is worth, per channel or for all. bound: the total's largest size.
        """
        if not self.int8:
            return f"{total} > 0.0f ? {total} : 0.0f" if self.step.relu else total
        y = self.step.y
        unit = 1.0 if self.logits else y.unit
        bias = np.zeros(1) if self.step.bias is None else self.step.bias.double().numpy() / unit
        early = max(0, int(bound).bit_length() - ACC_BITS)
        factor = np.atleast_1d(factor) / unit * 2.0**early
        room = min(2.0**FACTOR_BITS / max(np.abs(factor).max(), 1e-30), 2.0**29 / max(np.abs(bias).max(), 1e-30))
        late = math.floor(math.log2(room))
        late = late if self.logits else min(max(late, 0), 30)
        # Only of a unit that hardly ever works can the factor be too large for its place.
        whole = np.round(factor * 2.0**late).clip(-2**FACTOR_BITS, 2**FACTOR_BITS)
        # The halves make both shifts round to the nearest.
        added = np.round(bias * 2.0**late + (early > 0) * whole / 2) + (0 if self.logits or not late else 2**(late - 1))
        times = self.per_channel("factors", whole, "int16_t")
        plus = self.per_channel("biases", added, "int32_t")
        # A product of two int16 is one that compilers have vector instructions for.
        result = f"(int16_t)({total} >> {early}) * {times} + {plus}"
        if self.logits:
            self.logit_unit = 2.0**-late
            return result
        return f"({self.ctype(y)})clamp(({result}) >> {late}, {0 if self.step.relu else y.low}, {y.high})"

    def weights(self, layout: Callable[[np.ndarray], np.ndarray]) -> tuple[str, np.ndarray, int]:
        """The weights' array, by `layout` out of (C_out, C_in, kH, kW), and for `stored` its factor and bound."""
        weight = self.step.weight.double().numpy()
        if not self.int8:
            return self.array(f"{self.name}_weights", layout(weight), "float"), np.ones(1), 0
        whole, units = in_whole_numbers(weight.reshape(len(weight), -1))
        bound = np.abs(whole.astype(int)).sum(axis=1).max() * self.step.x.high
        name = self.array(f"{self.name}_weights", layout(whole.reshape(weight.shape)), "int8_t")
        return name, units * self.step.x.unit, bound

    def bias(self) -> str:
        """Where a sum over channel c starts: int8 adds its bias later, in `stored`."""
        return "0" if self.int8 else self.per_channel("biases", self.step.bias.numpy(), "float")

    def conv(self) -> str:
        step, x = self.step, self.step.x.buffer
        c_out, c_in, height, width = step.weight.shape
        if self.int8:
            # One dot product per channel, of int16 with int16: compilers know instructions for that.
            count = height * width * c_in
            name, factor, bound = self.weights(lambda weight: weight.transpose(0, 2, 3, 1))
            return "\n".join([
                f"int16_t window[{count}];",
                f"int32_t sums[{c_out}];",
                f"for (int r = 0; r < {height}; r++)",
                f"    for (int k = 0; k < {width * c_in}; k++)",
                f"        window[r * {width * c_in} + k] = p[r * {x.row} + k];",
                self.each_channel("int32_t sum = 0;", f"for (int k = 0; k < {count}; k++)",
                                  f"    sum += window[k] * {name}[c * {count} + k];", "sums[c] = sum;"),
                self.each_channel(f"q[c] = {self.stored('sums[c]', factor, bound)};")])
        # All output channels at once; as many terms written out as keep the sums out of memory for long.
        rows = height if height * width <= 25 else 1
        step_in = max(d for d in range(1, c_in + 1) if c_in % d == 0 and (d == 1 or d * rows * width <= TERMS))
        name, _, _ = self.weights(lambda weight: weight.reshape(c_out, c_in, -1, rows, width)
                                  .transpose(2, 1, 3, 4, 0))
        taps = [(u, r, k) for u in range(step_in) for r in range(rows) for k in range(width)]
        terms = [f"p[{r * x.row + k * c_in + u} + d] * w[{index * c_out} + c]"
                 for index, (u, r, k) in enumerate(taps)]
        update = textwrap.fill("sums[c] += " + " + ".join(terms) + ";", 100, subsequent_indent="    ",
                               break_long_words=False)
        inner = (f"for (int d = 0; d < {c_in}; d += {step_in}) {{\n"
                 f"    const float *w = {name} + d * {rows * width * c_out};\n"
                 + textwrap.indent(self.each_channel(update), "    ") + "\n}")
        if rows < height:
            inner = inner.replace(" + d]", f" + r * {x.row} + d]").replace(
                f"{name} + d", f"{name} + r * {c_in * width * c_out} + d")
            inner = f"for (int r = 0; r < {height}; r++)\n" + textwrap.indent(inner, "    ")
        return "\n".join([f"float sums[{c_out}];", self.each_channel(f"sums[c] = {self.bias()};"), inner,
                          self.each_channel(f"q[c] = {self.stored('sums[c]')};")])

    def depthwise(self) -> str:
        x = self.step.x.buffer
        channels, _, height, width = self.step.weight.shape
        name, factor, bound = self.weights(lambda weight: weight.transpose(2, 3, 1, 0))
        cast = "(int16_t)" if self.int8 else ""  # which holds the product of any two numbers of 8 bits here
        terms = [f"{cast}(p[{r * x.row + k * channels} + c] * {name}[{(r * width + k) * channels} + c])"
                 for r in range(height) for k in range(width)]
        if not self.int8:  # int8 adds its bias in `stored`
            terms.insert(0, self.bias())
        total = textwrap.fill("sums[c] = " + " + ".join(terms) + ";", 100, subsequent_indent="    ",
                              break_long_words=False)
        # Two loops: compilers make less of one that goes from 8 bits to 32 and back.
        return "\n".join([f"{'int32_t' if self.int8 else 'float'} sums[{channels}];", self.each_channel(total),
                          self.each_channel(f"q[c] = {self.stored('sums[c]', factor, bound)};")])

    def maxpool(self) -> str:
        x, (height, width) = self.step.x.buffer, self.step.kernel
        others = [r * x.row + k * x.channels for r in range(height) for k in range(width)][1:]
        return self.each_channel(f"{self.ctype(self.step.x)} most = p[c];",
                                 *(f"most = p[{other} + c] > most ? p[{other} + c] : most;" for other in others),
                                 "q[c] = most;")

    def mean(self) -> str:
        x = self.step.x.buffer
        pixels = x.height * x.width
        start, total = ("int32_t sum = 0;", "sum") if self.int8 else ("float sum = 0.0f;", f"sum / {pixels}.0f")
        return self.each_channel(
            start, f"for (int i = 0; i < {x.height}; i++)", f"    for (int j = 0; j < {x.width}; j++)",
            f"        sum += x[{x.at()} + i * {x.row} + j * {x.channels} + c];",
            f"y[{self.step.y.buffer.at()} + c] = "
            f"{self.stored(total, self.step.x.unit / pixels, pixels * self.step.x.high)};")

    def sigmoid(self) -> str:
        if not self.int8:
            return self.each_channel("q[c] = 1.0f / (1.0f + expf(-p[c]));")
        x = self.step.x  # which of gates that are always open is never negative, so uint8_t
        at = x.unit * np.arange(x.low, x.high + 1)
        table = self.array(f"{self.name}_table", np.round(1 / (1 + np.exp(-at)) / SIGMOID_UNIT), "uint8_t")
        return self.each_channel(f"q[c] = {table}[p[c] + {-x.low}];")

    def input(self) -> str:
        return self.per_channel_of("p[c]", self.step.x.unit, self.step.x.high)

    affine = input

    def scale(self) -> str:
        x, by = self.step.x, self.step.by
        return self.per_channel_of("p[c] * by[c]", x.unit * by.unit, x.high * by.high)

    def add(self) -> str:
        """As int8 both numbers are brought to one unit first, a fine one."""
        x, by = self.step.x, self.step.by
        other = f"const {self.ctype(by)} *o = by + {by.buffer.at()} + i * {by.buffer.row} + j * {by.buffer.channels};\n"
        if not self.int8:
            return other + self.per_channel_of("(p[c] + o[c])")
        unit = max(x.unit, by.unit) / 2**FACTOR_BITS
        times = [round(value.unit / unit) for value in (x, by)]
        bound = sum(factor * value.high for factor, value in zip(times, (x, by), strict=True))
        return other + self.per_channel_of(f"p[c] * {times[0]} + o[c] * {times[1]}", unit, bound)

    def per_channel_of(self, total: str, unit: float = 1.0, bound: int = 0) -> str:
        """A number times a factor, plus a bias, per channel. As int8 it is at most `bound`, 1 of it worth `unit`."""
        weight = self.step.weight.flatten().double().numpy()
        if self.int8:
            return self.each_channel(f"q[c] = {self.stored(f'({total})', weight * unit, bound)};")
        factors = self.per_channel("factors", weight, "float")
        return self.each_channel(f"float number = {total} * {factors} + {self.bias()};",
                                 f"q[c] = {self.stored('number')};")

    def files(self, name: str, spec: DatasetSpec, steps: list[Step], functions: list[tuple[str, str]],
              arena: int) -> tuple[str, str]:
        """The text of header and source."""
        channels, height, width = spec.image_shape
        classes, up = steps[-1].y.buffer.channels, name.upper()
        number = "int32_t" if self.int8 else "float"
        unit = f", in units of 2^{int(math.log2(self.logit_unit))}" if self.int8 else ""
        header = f"""\
/* A network for {spec.label}, {'integers only' if self.int8 else 'float32'}; written by effcnn_helpers.plain_c.

   An image is {height} x {width} pixels of {channels} byte{'s' if channels > 1 else ''}, row by row.
   Not reentrant: activations are in one static array. */
#ifndef {up}_H
#define {up}_H

#include <stdint.h>

#define {up}_HEIGHT {height}
#define {up}_WIDTH {width}
#define {up}_CHANNELS {channels}
#define {up}_CLASSES {classes}
#define {up}_FLASH_BYTES {self.flash_bytes} /* constant arrays; code comes on top */
#define {up}_RAM_BYTES {arena * self.number_bytes} /* the static array; a little stack comes on top */

/* The logits of an image{unit}. */
void {name}_predict(const uint8_t image[{height * width * channels}], {number} logits[{classes}]);

/* The class of an image, from 0. */
int {name}_classify(const uint8_t image[{height * width * channels}]);

#endif
"""
        definitions, calls = zip(*functions, strict=True)
        clamp = """\
static inline int32_t clamp(int32_t number, int32_t low, int32_t high)
{
    return number < low ? low : number > high ? high : number;
}

"""
        math_h = "#include <math.h>\n" if not self.int8 and any(step.kind == "sigmoid" for step in steps) else ""
        body = f"""\
#include "{name}.h"
{math_h}
{chr(10).join(self.arrays)}

static {'int8_t' if self.int8 else 'float'} memory[{arena}];

{clamp if self.int8 else ''}{(chr(10) * 2).join(definitions)}

void {name}_predict(const uint8_t image[{height * width * channels}], {number} logits[{classes}])
{{
    /* Volatile hides the place: GCC 12 with -O3 -mavx2 took a step from and to known ones for one without effect. */
    {'int8_t' if self.int8 else 'float'} *volatile hidden = memory, *arena = hidden;
    {(chr(10) + '    ').join(calls)}
}}

int {name}_classify(const uint8_t image[{height * width * channels}])
{{
    {number} logits[{classes}];
    int best = 0;
    {name}_predict(image, logits);
    for (int c = 1; c < {classes}; c++)
        if (logits[c] > logits[best])
            best = c;
    return best;
}}
"""
        return header, body


def number_text(number: float, ctype: str) -> str:
    if ctype != "float":
        return str(int(number))
    text = f"{np.float32(number):.9g}"
    return text + ("f" if "." in text or "e" in text else ".0f")
