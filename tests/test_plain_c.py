import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from composer.algorithms.squeeze_excite.squeeze_excite import SqueezeExcite2d
from torch import nn
from torch.nn import functional

from effcnn_helpers import plain_c
from effcnn_helpers.batches import normalise
from effcnn_helpers.datasets import load_images
from effcnn_helpers.errors import EffcnnError
from effcnn_helpers.ladder import LADDERS
from effcnn_helpers.models import Conv3x3, GapHead, build_model
from effcnn_helpers.plain_c import KINDS, CSource, write_c
from effcnn_helpers.recipes import table_run
from effcnn_helpers.records import read_network, runs_of_row
from effcnn_helpers.techniques import add_to_network

RECORDED = Path(plain_c.__file__).parent / "recorded"
CC = shutil.which("cc") or shutil.which("gcc")
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror"]
SANITISED = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# The arrays that the caller gives are on the heap, where the sanitizer sees any step out of them.
MAIN = """\
#include <stdio.h>
#include <stdlib.h>
#include "model.h"

int main(void)
{
    uint8_t *image = malloc(MODEL_HEIGHT * MODEL_WIDTH * MODEL_CHANNELS);
    NUMBER *logits = malloc(MODEL_CLASSES * sizeof(NUMBER));
    for (int n = 0; fread(image, MODEL_HEIGHT * MODEL_WIDTH * MODEL_CHANNELS, 1, stdin) == 1; n++) {
        int32_t best = n < 10 ? model_classify(image) : -1;
        model_predict(image, logits);
        fwrite(logits, sizeof(NUMBER), MODEL_CLASSES, stdout);
        fwrite(&best, sizeof best, 1, stdout);
    }
    free(image);
    free(logits);
    return 0;
}
"""

needs_compiler = pytest.mark.skipif(CC is None, reason="needs a C compiler")


def logits_in_c(written: CSource, kind: str, x: torch.Tensor, flags: list[str]) -> torch.Tensor:
    """Logits (N, classes) of uint8 images (N, C, H, W) by the C files; of the first, `classify` must tell the class."""
    folder = written.source.parent
    (folder / "main.c").write_text(MAIN)
    number = "float" if kind == "float32" else "int32_t"
    subprocess.run([CC, *STRICT, *flags, f"-DNUMBER={number}", "main.c", "model.c", "-o", "main", "-lm"],
                   cwd=folder, check=True)
    done = subprocess.run([folder / "main"], input=x.permute(0, 2, 3, 1).contiguous().numpy().tobytes(),
                          capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    rows = np.frombuffer(done.stdout, np.int32).reshape(len(x), -1)
    numbers = rows[:, :-1].copy().view(np.float32 if kind == "float32" else np.int32)
    assert (numbers.argmax(axis=1) == rows[:, -1])[:10].all()
    return torch.from_numpy(numbers.astype(np.float64)) * written.logit_unit


def logits_in_torch(network: nn.Module, dataset: str, x: torch.Tensor) -> torch.Tensor:
    network = network.eval().to(memory_format=torch.channels_last)
    with torch.inference_mode():
        return torch.cat([network(normalise(part, dataset).contiguous(memory_format=torch.channels_last))
                          for part in x.split(100)]).double()


def warmed(network: nn.Module, dataset: str) -> nn.Module:
    """The network with BatchNorms that have something to fold, some of it negative."""
    torch.manual_seed(0)
    x = normalise(load_images(dataset).train.x[:40], dataset)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias, std=0.3)
    for _ in range(10):
        network.train()(x)
    return network.eval()


class Own(nn.Module):
    """What the series' networks lack: strides, bare BatchNorms and ReLUs, Linear after Flatten, functions."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 6, (5, 3), stride=(3, 2), padding=(0, 2))
        self.pool = nn.MaxPool2d((2, 3), stride=(1, 2))
        self.norm = nn.BatchNorm2d(6)
        self.wide = nn.Conv2d(6, 7, 6, padding=3)
        self.dropout = nn.Dropout()
        self.hidden = nn.Linear(7 * 8 * 8, 20)
        self.out = nn.Linear(20, 10)

    def forward(self, x):
        x = self.norm(self.pool(functional.relu(self.first(x)))).relu()
        x = torch.flatten(self.dropout(self.wide(x)), 1)
        return torch.relu(self.out(functional.relu(self.hidden(x))))


class Sums(nn.Module):
    """Branches whose value is needed again when it is written over; sums in every spelling, one with a BatchNorm."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1, stride=2), nn.Conv2d(6, 6, 3, padding=1)
        self.third, self.fourth = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 5, padding=2)
        self.norm = nn.BatchNorm2d(6)
        self.head = GapHead(6)

    def forward(self, x):
        x = self.first(x)
        x = self.norm(self.second(functional.relu(x)) + x)
        y = torch.add(x, self.third(x))
        y += self.fourth(y.relu())
        return self.head(y.add(x).relu())


def open_gates() -> nn.Module:
    """Squeeze-and-Excite whose sigmoid never takes a negative number, as after a training that opens its gates."""
    gates = SqueezeExcite2d(8)
    for layer in gates.pool_and_mlp[2], gates.pool_and_mlp[4]:
        nn.init.uniform_(layer.weight)
    return nn.Sequential(Conv3x3(1, 8), gates, GapHead(8))


SMALL = {
    "1.5k-dw": lambda: (build_model("1.5k-dw"), "mnist"),
    "7k with techniques": lambda: (add_to_network(build_model("7k"), ("blurpool", "squeeze_excite")), "mnist"),
    "143k-dw with techniques": lambda: (add_to_network(build_model("143k-dw"), ("blurpool", "squeeze_excite")),
                                        "cifar10"),
    "techniques with open gates": lambda: (open_gates(), "mnist"),
    "own": lambda: (Own(), "mnist"),
    "142k-res with techniques": lambda: (add_to_network(build_model("142k-res"), ("blurpool", "squeeze_excite")),
                                         "cifar10"),
    "sums": lambda: (Sums(), "mnist"),
}


@pytest.fixture(scope="module")
def small():
    """Networks with made-up weights, the dataset of each, and its logits of some images."""
    found = {}
    for name, make in SMALL.items():
        torch.manual_seed(0)
        network, dataset = make()
        network = warmed(network, dataset)
        shape = load_images(dataset).spec.image_shape
        x = torch.cat([load_images(dataset).test.x[:12], torch.zeros(1, *shape, dtype=torch.uint8),
                       torch.full((1, *shape), 255, dtype=torch.uint8),
                       torch.randint(256, (2, *shape), dtype=torch.uint8)])
        found[name] = network, dataset, x, logits_in_torch(network, dataset, x)
    return found


@needs_compiler
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kind", KINDS)
def test_c_computes_what_pytorch_computes(kind, name, small, tmp_path):
    """Under the sanitizers, on the embedded images and on the extremes: black, white, noise."""
    network, dataset, x, wanted = small[name]
    written = write_c(network, dataset, tmp_path, load_images(dataset).train.x[:200], kind)
    found = logits_in_c(written, kind, x, SANITISED)
    if kind == "float32":
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    else:  # black, white and noise leave the ranges of the examples, so they may be cut off
        spread = wanted[:12].std()
        assert (found - wanted)[:12].square().mean().sqrt() < 0.15 * spread
        assert (found - wanted)[:12].abs().max() > 1e-6 * spread, "the very logits of float32 are not int8's"


@needs_compiler
@pytest.mark.parametrize("config, lost", [
    (table_run("1.5k-dw"), 0.3),
    (table_run("1.5k-dw", techniques=("blurpool", "squeeze_excite", "swa")), 0.3),
    (table_run("25k"), 0.3),
    (table_run("143k-dw", techniques=("blurpool",)), 0.5),
    (LADDERS["143k"].rungs[-1].config, 0.5),
])
def test_all_test_images_are_answered_as_by_the_trained_network(config, lost, real_data_dir, tmp_path, monkeypatch):
    dataset = config.dataset
    if real_data_dir is None or not (real_data_dir / f"{dataset}.npz").is_file():
        pytest.skip("needs EFFCNN_DATA_DIR with the real data")
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(real_data_dir))
    images = load_images(dataset)
    [first, *_] = runs_of_row(config, RECORDED)
    network = read_network(first, RECORDED)
    wanted = logits_in_torch(network, dataset, images.test.x)
    logits = {kind: logits_in_c(write_c(network, dataset, tmp_path / kind, images.train.x[:500], kind), kind,
                                images.test.x, ["-O3", "-march=native"]) for kind in KINDS}
    correct = {kind: (found.argmax(dim=1) == images.test.y).sum().item() for kind, found in logits.items()}
    differ = logits["float32"].argmax(dim=1) != wanted.argmax(dim=1)
    best = wanted.topk(2).values
    assert (best[differ, 0] - best[differ, 1] < 1e-3).all()
    torch.testing.assert_close(logits["float32"], wanted, atol=1e-3, rtol=1e-3)
    of_torch = (wanted.argmax(dim=1) == images.test.y).sum().item()
    assert correct["int8"] >= of_torch - lost / 100 * len(images.test)


@needs_compiler
@pytest.mark.parametrize("kind, flash, ram", [("float32", 9_000, 65_536), ("int8", 25_000, 20_000)])
def test_flash_and_ram_are_what_the_compiler_allots(kind, flash, ram, small, tmp_path):
    network, dataset, *_ = small["1.5k-dw"]
    written = write_c(network, dataset, tmp_path, load_images(dataset).train.x[:200], kind)
    subprocess.run([CC, *STRICT, "-Os", "-c", "model.c"], cwd=tmp_path, check=True)
    sizes: dict[str, int] = {}
    symbols = subprocess.check_output(["nm", "--print-size", "model.o"], cwd=tmp_path, text=True)
    for line in symbols.splitlines():
        if len(line.split()) == 4:
            _, size, section, _ = line.split()
            sizes[section.lower()] = sizes.get(section.lower(), 0) + int(size, 16)
    assert (sizes["r"], sizes["b"]) == (written.flash_bytes, written.ram_bytes)
    header = written.header.read_text()
    assert f"#define MODEL_FLASH_BYTES {written.flash_bytes} " in header
    assert f"#define MODEL_RAM_BYTES {written.ram_bytes} " in header
    assert "d" not in sizes, "nothing that must be copied to RAM at the start"
    if kind == "int8":
        assert sizes["r"] + sizes["t"] < flash
    assert written.flash_bytes < flash and written.ram_bytes < ram


def test_int8_has_no_floating_point_and_neither_kind_a_library(small, tmp_path):
    for name, (network, dataset, *_) in small.items():
        for kind in KINDS:
            written = write_c(network, dataset, tmp_path, load_images(dataset).train.x[:20], kind)
            text = written.header.read_text() + written.source.read_text()
            assert bool(re.search(r"\bfloat\b", text)) == (kind == "float32")
            allowed = {'"model.h"', "<stdint.h>", *(["<math.h>"] if kind == "float32" and "tech" in name else [])}
            assert set(re.findall(r"#include (\S+)", text)) == allowed
            assert not re.search(r"\b(double|malloc|alloca)\b", text)


def test_the_same_files_every_time_and_the_network_as_it_was(small, tmp_path):
    network, dataset, *_ = small["7k with techniques"]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    examples = load_images(dataset).train.x[:50]
    for kind in KINDS:
        first, second = (write_c(network, dataset, tmp_path / folder, examples, kind, name="digits")
                         for folder in ("a", "b"))
        assert first.header == tmp_path / "a" / "digits.h"
        assert first.source.read_bytes() == second.source.read_bytes()
        assert first.header.read_bytes() == second.header.read_bytes()
    after = network.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


class Branches(nn.Module):
    """One branch has another shape than the other; they meet in the way that is given."""

    def __init__(self, meet):
        super().__init__()
        self.conv, self.gap, self.head = Conv3x3(1, 4), nn.AdaptiveAvgPool2d(1), GapHead(4)
        self.meet = meet

    def forward(self, x):
        x = self.conv(x)
        return self.head(self.meet(x, self.gap(x)))


class Decides(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class OtherReLU(nn.ReLU):
    """Its name and base promise something else than it does."""

    def forward(self, x):
        return x.clamp(0, 0.1)


def hooked() -> nn.Module:
    """A hook is seen by nobody who follows the layers."""
    network = nn.Sequential(Conv3x3(1, 4), GapHead(4))
    network[0].conv.register_forward_hook(lambda layer, x, y: 2 * y)
    return network


@pytest.mark.parametrize("network, message", [
    (nn.Sequential(Conv3x3(1, 4), nn.GELU(), GapHead(4)), r"layer 1 is GELU\(.*C and pages can be written of Conv2d"),
    (nn.Sequential(nn.Conv2d(1, 4, 3, dilation=2), GapHead(4)), r"layer 0 is Conv2d\(1, 4.*dilation"),
    (nn.Sequential(nn.Conv2d(1, 4, 3, padding="same"), GapHead(4)), "layer 0 is Conv2d.*same"),
    (nn.Sequential(Conv3x3(1, 4), nn.Conv2d(4, 4, 3, groups=2), GapHead(4)), "layer 1 is Conv2d.*groups=2"),
    (nn.Sequential(Conv3x3(1, 4), nn.MaxPool2d(3, padding=1), GapHead(4)), "layer 1 is MaxPool2d.*padding=1"),
    (Branches(torch.add), r"layer add is a sum of \(4, 28, 28\) and \(4, 1, 1\)"),
    (Branches(torch.mul), "layer mul is call_function mul"),
    (Branches(lambda x, _: x + x), "layer add is call_function add"),
    (Branches(lambda x, _: x + 1), "layer add is call_function add"),
    (Decides(), "cannot be followed"),
    (nn.Sequential(Conv3x3(1, 4), OtherReLU(), GapHead(4)), "layer clamp is call_method clamp"),
    (hooked(), "computes something else than its layers say"),
    (Conv3x3(1, 4), "ends in images of 28 x 28"),
])
@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_written_is_named_and_nothing_is_written(kind, network, message, tmp_path):
    with pytest.raises(EffcnnError, match=message):
        write_c(network, "mnist", tmp_path / "new", torch.zeros(1, 1, 28, 28, dtype=torch.uint8), kind)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("arguments, message", [
    ({"kind": "int4"}, "kind is 'int4'; use one of float32, int8"),
    ({"name": "2 nets"}, "name is '2 nets'"),
    ({"dataset": "imagenet"}, "unknown dataset"),
    ({"kind": "int8"}, "examples are missing"),
    ({"kind": "int8", "examples": torch.zeros(5, 1, 28, 28)}, r"examples are torch.float32 \(5, 1, 28, 28\)"),
    ({"kind": "int8", "examples": torch.zeros(5, 3, 32, 32, dtype=torch.uint8)}, r"uint8 training images \(N, 1, 28"),
])
def test_wrong_arguments_are_named(arguments, message, tmp_path):
    with pytest.raises(EffcnnError, match=message):
        write_c(build_model("1.5k-dw"), **{"dataset": "mnist", "folder": tmp_path / "new", **arguments})
    assert not (tmp_path / "new").exists()


def test_a_full_disk_leaves_the_files_that_were_there(small, tmp_path, monkeypatch):
    network, dataset, *_ = small["1.5k-dw"]
    before = {path.name: path.read_bytes() for path in (write_c(network, dataset, tmp_path).header,
                                                        write_c(network, dataset, tmp_path).source)}
    write_text = Path.write_text

    def full(path, text, **options):
        write_text(path, text[:100], **options)
        if path.suffix == ".c":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        write_c(build_model("7k"), dataset, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
