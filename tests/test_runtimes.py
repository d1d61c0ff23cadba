import copy
import gc
import importlib.metadata
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor import config as inductor

from effcnn_helpers import runtimes
from effcnn_helpers.batches import normalise
from effcnn_helpers.datasets import load_images
from effcnn_helpers.errors import EffcnnError
from effcnn_helpers.models import Conv3x3, DepthwiseSeparableConv2d, GapHead, count_parameters
from effcnn_helpers.recipes import table_run
from effcnn_helpers.records import build_network, read_network, table_runs
from effcnn_helpers.runtimes import COMPILED, RUNTIMES, RuntimeMissingError, prepare, sizes

RECORDED = Path(runtimes.__file__).parent / "recorded"


@pytest.fixture(scope="module")
def cases():
    """Two networks with statistics of their own, their images, and logits by plain PyTorch."""
    found = {}
    for model, techniques in (("1.5k-dw", ()), ("143k-dw", ("blurpool", "squeeze_excite"))):
        config = table_run(model, techniques=techniques)
        x = normalise(load_images(config.dataset).test.x[:40], config.dataset)
        torch.manual_seed(0)
        network = build_network(config)
        for _ in range(5):
            network.train()(x)  # so that folding BatchNorm has something to fold
        with torch.inference_mode():
            found[model] = network.eval(), x, network(x)
    return found


@pytest.mark.parametrize("model", ["1.5k-dw", "143k-dw"])
@pytest.mark.parametrize("runtime", [name for name in RUNTIMES if name != "int8"])
def test_runtime_computes_what_plain_pytorch_computes(runtime, model, cases):
    network, x, logits = cases[model]
    predict = prepare(runtime, network, x)
    for _ in range(3):  # TorchScript compiles itself anew in its first calls
        torch.testing.assert_close(predict(x), logits, atol=1e-4, rtol=1e-4)
    kept = predict(x)
    torch.testing.assert_close(predict(x[:3]), logits[:3], atol=1e-4, rtol=1e-4, msg="a batch of another size")
    torch.testing.assert_close(kept, logits, atol=1e-4, rtol=1e-4, msg="an earlier result is not written over")


@pytest.fixture(scope="module")
def few_layers(digits):
    """A network and its images. A compiler needs seconds for each layer; notebook 15 compiles a trained network."""
    torch.manual_seed(0)
    network = nn.Sequential(Conv3x3(1, 4), nn.MaxPool2d(2), DepthwiseSeparableConv2d(4, 6), GapHead(6))
    x = normalise(digits.test.x[:100], "mnist")
    network.train()(x)  # so that folding BatchNorm has something to fold
    return network, x


@pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
@pytest.mark.parametrize("runtime", COMPILED)
def test_compiled_network_computes_what_eager_pytorch_computes(runtime, few_layers):
    network, x = few_layers
    logits = prepare("eager", network, x)(x)
    predict = prepare(runtime, network, x[:8])
    found = predict(x)
    torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(predict(x[:1]), logits[:1], atol=1e-5, rtol=1e-4, msg="an image alone")
    torch.testing.assert_close(found, logits, atol=1e-5, rtol=1e-4, msg="an earlier result is not written over")
    # A second network of the same layers is compiled, too.
    with inductor.patch({"cpp.cxx": ("no compiler",)}), pytest.raises(RuntimeMissingError):
        prepare(runtime, copy.deepcopy(network), x[:8])


@pytest.mark.parametrize("runtime", COMPILED)
@pytest.mark.parametrize("says, cause", [(None, "No working C.. compiler found"), ("no room", "error: no room")])
def test_compiling_that_fails_shows_the_cause(runtime, says, cause, few_layers, tmp_path):
    compiler = tmp_path / "compiler"
    if says:  # it is there, and compiles nothing
        compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && echo 12 && exit\n'
                            f'echo "a.cpp:1: error: {says}" >&2\nexit 1\n')
        compiler.chmod(0o755)
    network, x = few_layers
    named = f"^{COMPILED[runtime]} needs a C.. compiler .*: {cause}"
    with inductor.patch({"cpp.cxx": (str(compiler),)}), pytest.raises(RuntimeMissingError, match=named) as refusal:
        prepare(runtime, network, x)
    assert "\n" not in str(refusal.value)


def test_executorch_answers_image_by_image_when_its_program_is_gone(cases):
    """Its wheel reads the program's bytes in every call, and does not keep them."""
    pytest.importorskip("executorch", reason="needs the extra executorch")
    network, x, logits = cases["143k-dw"]
    predict = runtimes.in_executorch(runtimes.executorch_bytes(network, x))
    gc.collect()
    others = [torch.randn(50_000) for _ in range(200)]  # take the memory that was given back
    kept = predict(x)
    torch.testing.assert_close(kept, logits, atol=1e-4, rtol=1e-4)
    predict(torch.zeros_like(x))
    torch.testing.assert_close(kept, logits, atol=1e-4, rtol=1e-4, msg="an earlier result is not written over")
    assert len(others) == 200


def test_int8_answers_nearly_as_the_trained_network_does(digits):
    # How near the logits are differs between processors: without VNNI instructions sums may saturate.
    [first, *_] = table_runs("1.5k-dw", root=RECORDED)
    network = read_network(first, RECORDED)
    x = normalise(digits.test.x, "mnist")
    with torch.inference_mode():
        logits = network(x)
    quantised = prepare("int8", network, x[:300])(x)
    assert (quantised.argmax(dim=1) == logits.argmax(dim=1)).double().mean() > 0.97
    assert (quantised - logits).abs().max() > 1e-3 * logits.abs().max()


def test_preparing_leaves_the_network_as_it_is(cases):
    network, x, _ = cases["1.5k-dw"]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for runtime in RUNTIMES:
        prepare(runtime, network, x)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not network.training


def test_unknown_runtime_is_named(cases):
    network, x, _ = cases["1.5k-dw"]
    with pytest.raises(EffcnnError, match="runtime is 'tensorrt'; use one of eager, "):
        prepare("tensorrt", network, x)


def test_missing_runtime_is_named_with_a_cure_for_this_python(tmp_path, monkeypatch):
    """Also away from a checkout, where pip knows no extra of ours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "openvino", None)  # as if it were not there
    accepted = next(line.partition(";")[0] for line in importlib.metadata.requires("effcnn") if "openvino" in line)
    with pytest.raises(RuntimeMissingError) as refusal:
        runtimes.required("openvino")
    assert isinstance(refusal.value, EffcnnError)
    command = shlex.join([sys.executable, "-m", "pip", "install", accepted.strip()])
    assert str(refusal.value) == f"openvino is not installed; {command} brings it"


@pytest.mark.parametrize("code, cause", [
    ("raise ImportError('libopenvino.so: cannot open shared object file')", "ImportError: libopenvino.so: cannot open"),
    ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    ("raise OSError('[WinError 126]')", "OSError: .WinError 126"),
    ("import numpy; numpy.nothing", "AttributeError: module 'numpy' has no attribute 'nothing'"),
])
def test_runtime_that_is_installed_but_does_not_load_shows_the_cause(code, cause, tmp_path, monkeypatch):
    (tmp_path / "brokenruntime.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeMissingError, match=f"brokenruntime is installed but does not load .{cause}") as refusal:
        runtimes.required("brokenruntime")
    assert "not installed" not in str(refusal.value)
    assert "--force-reinstall brokenruntime may help" in str(refusal.value)


def test_sizes_are_weights_and_overhead(cases):
    network, x, _ = cases["1.5k-dw"]
    found = sizes(network, x)
    numbers = count_parameters(network) + sum(buffer.numel() for buffer in network.buffers())
    counters = sum(buffer.dtype == torch.int64 for buffer in network.buffers())  # of 8 bytes each
    assert found["weights"] == 4 * numbers + 4 * counters
    assert all(found[name] > found["weights"] for name in ("safetensors", "state_dict", "onnx"))
    assert found["int8_weights"] < found["weights"] < found["int8_graph"]


@pytest.mark.parametrize("runtime", ["openvino", "int8"])
def test_a_signal_after_a_runtime_is_gone_does_not_crash_python(runtime):
    """OpenVINO leaves a signal stack that it has freed: where it stays, any signal ends the process with SIGSEGV."""
    code = f"""
import gc, os, signal, torch
from effcnn_helpers.models import build_model
from effcnn_helpers.runtimes import prepare
signal.signal(signal.SIGUSR1, lambda number, frame: print("alive"))
x = torch.randn(100, 1, 28, 28)
first, second = (prepare({runtime!r}, build_model("1.5k-dw").eval(), x) for _ in range(2))
first(x), second(x)
del first
gc.collect()
del second
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "alive"), done.stderr
