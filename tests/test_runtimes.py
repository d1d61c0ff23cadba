import importlib
import subprocess
import sys

import pytest
import torch

from effcnn_helpers import runtimes
from effcnn_helpers.data import load_images, normalise
from effcnn_helpers.models import count_parameters
from effcnn_helpers.recipes import RunConfig
from effcnn_helpers.runtimes import RUNTIMES, RuntimeMissingError, prepare, sizes
from effcnn_helpers.training import build_network


@pytest.fixture(scope="module")
def cases():
    """Two networks with statistics of their own, their images, and logits by plain PyTorch."""
    found = {}
    for model, techniques in (("1.5k-dw", ()), ("143k-dw", ("blurpool", "squeeze_excite"))):
        config = RunConfig(model, techniques=techniques)
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


def test_int8_is_near_and_not_the_same(cases):
    network, x, logits = cases["1.5k-dw"]
    quantised = prepare("int8", network, x)(x)
    difference = (quantised - logits).abs().max() / logits.abs().max()
    assert 1e-4 < difference < 0.2


def test_preparing_leaves_the_network_as_it_is(cases):
    network, x, _ = cases["1.5k-dw"]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for runtime in RUNTIMES:
        prepare(runtime, network, x)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert not network.training


def test_unknown_and_missing_runtimes_are_named(cases, monkeypatch):
    network, x, _ = cases["1.5k-dw"]
    with pytest.raises(ValueError, match="runtime is 'tensorrt'; use one of eager, "):
        prepare("tensorrt", network, x)

    def nothing(package):
        raise ImportError(package)

    monkeypatch.setattr(importlib, "import_module", nothing)
    with pytest.raises(RuntimeMissingError, match=r"openvino is not installed; pip install -e '\.\[deploy\]'"):
        runtimes.required("openvino")


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
