"""What a trained network takes on a device: bytes, memory, time; and which of its layers int8 reaches."""

import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from . import runtimes
from .batches import normalise
from .datasets import DatasetSpec, ImageDataset, spec_of
from .export import CALIBRATION, FORMATS, IN_C, Trained, compiler, loaded, write
from .latency import ratios, time_interleaved
from .lowering import lower
from .models import layer_costs
from .plain_c import write_c
from .runtimes import RuntimeMissingError

LAYERS = ("Convolution", "GroupConvolution", "MatMul")
TIMED = tuple(to for to in FORMATS if to != "page")  # a browser's time is shown on the page


def footprint(trained: Trained, dataset: ImageDataset, formats: tuple[str, ...] = TIMED,
              rounds: int = 300) -> pd.DataFrame:
    """A row per format (see export.FORMATS; no page) of a trained network, one image at a time.

    Columns: file_bytes (of model files; none for C); constant_bytes and code_bytes (C: of its
    arrays, and of the machine code at -Os for this processor; a runtime's own code of some MB is
    not counted); ram_bytes (C: its static arena; a runtime's memory can hardly be told from that of
    Python around it); ms (median; C with -O3 -march=native) and ratio (to the first format, round
    by round); multiply_adds. What does not apply is missing. A format whose runtime or compiler is
    not there is left out.
    """
    pixels, spec = dataset.test.x[:1], trained.spec
    image = normalise(pixels, spec).contiguous()
    rows: dict[str, dict[str, int]] = {}
    calls: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for to in formats:
            folder = Path(temporary) / to
            folder.mkdir()
            if to in IN_C:
                if compiler() is None:
                    continue
                written = write_c(trained.network, spec, folder, dataset.train.x[:CALIBRATION], IN_C[to])
                calls[to] = answering(loaded(written, "-O3", "-march=native"), pixels, len(spec.classes))
                rows[to] = {"constant_bytes": written.flash_bytes, "code_bytes": code_bytes(written.source),
                            "ram_bytes": written.ram_bytes}
                continue
            try:
                predict = write(trained, to, folder, dataset)
            except RuntimeMissingError:
                continue
            calls[to] = partial(predict, image)
            rows[to] = {"file_bytes": sum(path.stat().st_size for path in folder.iterdir())}
        times = ratios(time_interleaved(calls, rounds), to=next(iter(calls)))
    table = pd.DataFrame(rows).T.join(times[["ms", "ratio"]])
    work = int(layer_costs(trained.network, spec.image_shape)["multiply_adds"].sum())
    return table.assign(multiply_adds=work)


def answering(function: Callable, pixels: torch.Tensor, classes: int) -> Callable[[], object]:
    """A C function's call for one image (1, C, H, W), uint8."""
    image = pixels.permute(0, 2, 3, 1).contiguous()
    logits = torch.empty(classes)  # either kind of number has 4 bytes
    return lambda: function(image.data_ptr(), logits.data_ptr())


def code_bytes(source: Path) -> int:
    """Bytes of machine code of a C file that is compiled for size (-Os), constants not counted."""
    target = source.with_suffix(".o")
    subprocess.run([compiler(), "-std=c99", "-Os", "-c", source, "-o", target], check=True, cwd=source.parent)
    symbols = subprocess.check_output(["nm", "--print-size", target], text=True)
    fields = [line.split() for line in symbols.splitlines()]
    return sum(int(size, 16) for _, size, kind, *_ in (row for row in fields if len(row) == 4) if kind in "tT")


def live_activations(network: nn.Module, dataset: str | DatasetSpec) -> pd.DataFrame:
    """How many numbers each step of plain C needs at the same time, for one image.

    Columns: step, kind, numbers (of every buffer, borders among them, that is read or written now or
    read later). The largest is the peak activation memory in numbers: times 4 bytes as float32, 1 as
    int8. BatchNorm and ReLU are part of a convolution; pixels and logits are the caller's.
    """
    steps = lower(network, spec_of(dataset))
    used: dict[int, list] = {}  # a buffer's id: the buffer, its first step, its last
    for index, step in enumerate(steps):
        for value in (step.x, step.y, step.by):
            if value not in (None, steps[0].x, steps[-1].y):
                used.setdefault(id(value.buffer), [value.buffer, index, index])[2] = index
    return pd.DataFrame([
        {"step": step.name, "kind": step.kind,
         "numbers": sum(buffer.numbers for buffer, first, last in used.values() if first <= index <= last)}
        for index, step in enumerate(steps)])


def quantised_layers(model) -> pd.DataFrame:
    """What became of each layer with weights in an OpenVINO model such as runtimes.quantised makes.

    Columns: layer; op; weights ("i8": stored as 8-bit whole numbers, "rounded": as 4-byte numbers
    that are rounded to the steps of int8 whenever the model runs, "f32": untouched); features
    (whether its input is rounded to 8 bits, too); runs_in (the numbers in which OpenVINO computes it
    on this processor, such as "i8" or "f32").
    """
    compiled = runtimes.required("openvino").Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    precision = {}
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        for name in str(info["originalLayersNames"].astype(str)).split(","):
            precision[name] = str(info["runtimePrecision"].astype(str))
    rows = []
    for node in model.get_ops():
        if node.get_type_name() in LAYERS:
            rounded, element = origin(node.input_value(1).get_node())
            source = node.input_value(0).get_node()
            while source.get_type_name() == "MaxPool":  # it compares, and leaves the steps as they are
                source = source.input_value(0).get_node()
            weights = "i8" if element in ("i8", "u8") else "rounded" if rounded else element
            name = node.get_friendly_name()
            layer = name.removesuffix("/WithoutBiases").removesuffix("/Conv").strip("/").replace("/", ".")
            rows.append({"layer": layer, "op": node.get_type_name(), "weights": weights,
                         "features": source.get_type_name() == "FakeQuantize", "runs_in": precision.get(name)})
    return pd.DataFrame(rows)


def origin(node) -> tuple[bool, str]:
    """(whether a FakeQuantize is on the way to the constant that a node is made of, the constant's type)."""
    rounded = False
    while node.get_input_size():
        rounded |= node.get_type_name() == "FakeQuantize"
        node = node.input_value(0).get_node()
    return rounded, node.get_output_element_type(0).get_type_name()
