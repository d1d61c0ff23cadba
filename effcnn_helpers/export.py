"""A trained run as files for another runtime, checked against PyTorch before they are kept."""

import ctypes
import difflib
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from . import runtimes
from .batches import normalise
from .datasets import ImageDataset
from .errors import EffcnnError
from .own import Trained
from .picture_page import picture_page
from .plain_c import CSource, write_c
from .records import WRITING, recorded_dir
from .runtimes import Predict

FORMATS = {
    "onnx": "for ONNX Runtime and many others",
    "openvino-int8": "OpenVINO with 8-bit weights and features",
    "executorch": "PyTorch's runtime for phones and devices (one image at a time)",
    "c": "C99 without dependencies, float32",
    "c-int8": "C99 in whole numbers only",
    "page": "a web page that answers pictures, in one file",
}
IN_C = {"c": "float32", "c-int8": "int8"}
CALIBRATION = 500  # training images from which int8 takes the ranges of its values
SAME = 1e-3        # logits of two runtimes may differ by so much, in parts of the largest


@dataclass(frozen=True)
class Exported:
    """What `export` wrote, and what the network in these files answers to test images.

    images: how many it was asked (0: the files were not run, as there is no C compiler, or as it takes a browser).
    others: how many of them it gives another class than PyTorch does. correct, correct_in_torch:
    how many each of the two gets right.
    """

    files: list[Path]
    images: int
    others: int
    correct: int
    correct_in_torch: int


def find_run(name: str) -> Path:
    """The folder of a run: a path, or its name below the recorded ones.

    Raises EffcnnError, with the names that come nearest, when there is none.
    """
    root = recorded_dir()
    for folder in (Path(name).expanduser(), root / name):
        if (folder / "run.json").is_file():
            return folder
    names = sorted(path.parent.relative_to(root).as_posix() for path in root.rglob("run.json")
                   if WRITING not in str(path))
    below = [other for other in names if other.startswith(name.rstrip("/") + "/")]
    near = below or difflib.get_close_matches(name, names, n=3)
    hint = f"; there are {', '.join(near[:3])}" if near else ""
    raise EffcnnError(f"no run in {name}, neither as a path nor below {root}{hint}")


def export(trained: Trained, to: str, folder: Path, dataset: ImageDataset,
           images: int = 1_000) -> Exported:
    """Write a trained network for another runtime into a folder, as files named model.….

    to: one of FORMATS. dataset: what int8 takes the ranges of its values from (500 training images),
    and the test images that both networks answer, `images` of them at most. A page compares its answers to some of
    them with PyTorch's each time that it is opened.
    Files of the same name are replaced when all are whole and have answered: without int8 with
    PyTorch's logits, else EffcnnError is raised. Raises RuntimeMissingError for a runtime that is
    not installed, EffcnnError for an unknown format or a layer that plain C does not know.
    """
    if to not in FORMATS:
        raise EffcnnError(f"format is {to!r}; use one of {', '.join(FORMATS)}")
    test = dataset.test.first(min(images, len(dataset.test)))
    wanted = in_batches(runtimes.prepare("eager", trained.network, torch.empty(0)), normalise(test.x, trained.spec))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=WRITING) as temporary:
        predict = write(trained, to, Path(temporary), dataset)
        x = test.x if to in IN_C else normalise(test.x, trained.spec)
        found = in_batches(predict, x) if predict else wanted[:0]
        difference = (found - wanted[:len(found)]).abs().max().item() if predict else 0.0
        if "int8" not in to and not difference <= SAME * wanted.abs().max().item():
            raise EffcnnError(f"the network as {to} computes something else than in PyTorch: its logits differ by "
                              f"up to {difference:.1e}; nothing was written")
        files = [folder / path.name for path in sorted(Path(temporary).iterdir())]
        for path in files:
            (Path(temporary) / path.name).replace(path)
    answers, answers_in_torch, y = found.argmax(dim=1), wanted.argmax(dim=1)[:len(found)], test.y[:len(found)]
    return Exported(files, len(found), int((answers != answers_in_torch).sum()), int((answers == y).sum()),
                    int((answers_in_torch == y).sum()))


def write(trained: Trained, to: str, folder: Path, dataset: ImageDataset) -> Predict | None:
    """Write the files; returns what they compute, or None without a C compiler and for a page.

    From normalised images (N, C, H, W) to logits; C takes uint8 ones.
    """
    network, spec = trained.network, trained.spec
    pixels = dataset.train.x[:CALIBRATION]
    examples = normalise(pixels, spec)
    if to == "page":
        (folder / "model.html").write_text(picture_page(trained, dataset), encoding="utf-8")
        return None
    if to in IN_C:
        return in_c(write_c(network, spec, folder, pixels, IN_C[to]), len(spec.classes))
    if to == "onnx":
        model = runtimes.onnx_bytes(network, examples)
        (folder / "model.onnx").write_bytes(model)
        return runtimes.in_onnxruntime(model, threads=1)
    if to == "executorch":
        program = runtimes.executorch_bytes(network, examples)
        (folder / "model.pte").write_bytes(program)
        return runtimes.in_executorch(program)
    openvino = runtimes.required("openvino")
    openvino.save_model(runtimes.quantised(network, examples), folder / "model.xml")
    return runtimes.in_openvino(openvino.Core().read_model(folder / "model.xml"), threads=1)


def in_batches(predict: Callable, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([predict(part) for part in x.split(100)])


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def loaded(written: CSource, *flags: str):
    """The compiled C function that takes the addresses of one image and of its logits."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "model.so"
        done = subprocess.run([compiler(), "-std=c99", *flags, "-shared", "-fPIC", written.source, "-o", library,
                               "-lm"], capture_output=True, text=True)
        if done.returncode:
            raise EffcnnError(f"{compiler()} cannot compile {written.source.name}: {done.stderr.strip()}")
        function = getattr(ctypes.CDLL(str(library)), f"{written.source.stem}_predict")
    function.restype, function.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p]
    return function


def in_c(written: CSource, classes: int) -> Predict | None:
    """What the C files compute: a function from uint8 images (N, C, H, W) to logits; None without a C compiler."""
    if compiler() is None:
        return None
    function = loaded(written, "-O3")
    number = torch.float32 if written.logit_unit == 1.0 else torch.int32

    def call(x: torch.Tensor) -> torch.Tensor:
        pixels = x.permute(0, 2, 3, 1).contiguous()
        logits = torch.empty(len(x), classes, dtype=number)
        for image, row in zip(pixels, logits, strict=True):
            function(image.data_ptr(), row.data_ptr())
        return logits.float() * written.logit_unit

    return call
