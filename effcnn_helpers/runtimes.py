"""The same trained weights in several runtimes, and their size in several formats (notebook 15).

ONNX, ONNX Runtime, OpenVINO and NNCF come with the extra `deploy`, ExecuTorch with the extra of its
name; they are imported when needed. torch.compile and AOTInductor need a C++ compiler.
"""

import contextlib
import copy
import ctypes
import importlib
import io
import logging
import os
import platform
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .errors import EffcnnError
from .records import weight_bytes
from .settings import pip_command

Predict = Callable[[torch.Tensor], torch.Tensor]

RUNTIMES = {
    "eager": "PyTorch, eager",
    "channels_last": "PyTorch, channels last",
    "frozen": "TorchScript, frozen",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "int8": "OpenVINO, int8",
}
# They take up to a minute of compiling for each network: the bench does without.
COMPILED = {"compile": "torch.compile", "aotinductor": "AOTInductor"}
FOLDED = {"freezing": True}  # weights are constants: torch folds each BatchNorm into its convolution


class RuntimeMissingError(EffcnnError):
    """A package or compiler that a runtime needs is not there, or does not work."""


def prepare(runtime: str, network: nn.Module, examples: torch.Tensor, threads: int = 1) -> Predict:
    """A function from normalised images (N, C, H, W), float32, to logits (N, 10), by a runtime.

    runtime: one of RUNTIMES or, with a C++ compiler, of COMPILED.
    network: copied, so it stays as it is. examples: normalised training images (N, C, H, W); int8
    takes the ranges of its values from them, the others at most their shape. threads: of ONNX
    Runtime and OpenVINO; PyTorch's own run with the threads that torch is set to when they are
    called.
    Raises EffcnnError for an unknown runtime, RuntimeMissingError for one that is not installed,
    does not load or cannot compile.
    """
    network = copy.deepcopy(network).eval()
    if runtime == "eager":
        return in_torch(network.to(memory_format=torch.contiguous_format), torch.contiguous_format)
    if runtime == "channels_last":
        return in_torch(network.to(memory_format=torch.channels_last), torch.channels_last)
    if runtime == "frozen":
        example = examples[:1].contiguous(memory_format=torch.channels_last)
        network = without_composers_blurpool(network, example).to(memory_format=torch.channels_last)
        with warnings.catch_warnings(action="ignore"):  # newer versions of torch announce its end
            # Folds each BatchNorm into its convolution.
            frozen = torch.jit.freeze(torch.jit.trace(network, example))
        return in_torch(frozen, torch.channels_last)
    if runtime == "onnxruntime":
        return in_onnxruntime(onnx_bytes(network, examples), threads)
    if runtime == "openvino":
        return in_openvino(openvino_model(network, examples), threads)
    if runtime == "int8":
        return in_openvino(quantised(network, examples), threads)
    if runtime in COMPILED:
        return compiled(runtime, network, examples)
    raise EffcnnError(f"runtime is {runtime!r}; use one of {', '.join(RUNTIMES | COMPILED)}")


def in_torch(network: Callable, memory_format: torch.memory_format) -> Predict:
    def call(x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return network(x.contiguous(memory_format=memory_format))

    return call


def compiled(runtime: str, network: nn.Module, examples: torch.Tensor) -> Predict:
    """What C++ does that torch writes for this network, processor and number of threads, and compiles anew now.

    examples: two or more normalised images (N, C, H, W). torch.compile compiles once more for an image alone.
    Raises RuntimeMissingError, with the cause, where there is no C++ compiler or compiling fails.
    """
    examples = examples.contiguous()
    network = without_composers_blurpool(network, examples[:1]).to(memory_format=torch.contiguous_format)
    # torch's extensions say there whether they have found a GPU's compiler.
    with contextlib.redirect_stderr(io.StringIO()), tempfile.TemporaryDirectory() as folder, torch.no_grad():
        from torch import _inductor
        from torch._inductor.utils import fresh_inductor_cache

        with fresh_inductor_cache():  # without it, a second compiling takes a fraction of the first one
            try:
                if runtime == "compile":
                    torch.compiler.reset()  # else a network of the same layers takes over what is there
                    faster = torch.compile(network, dynamic=True, options=FOLDED)
                    predict = in_torch(faster, torch.contiguous_format)
                    predict(examples)
                    return predict
                program = torch.export.export(network, (examples,), dynamic_shapes=({0: torch.export.Dim("n")},))
                package = _inductor.aoti_compile_and_package(program, package_path=f"{folder}/model.pt2",
                                                             inductor_configs=FOLDED)
                return in_torch(_inductor.aoti_load_package(package), torch.contiguous_format)
            except Exception as error:  # torch's, or the compiler's
                failure = error
    said = re.search(r"error: .+", str(failure)) or re.search(r".+", str(failure))
    raise RuntimeMissingError(f"{COMPILED[runtime]} needs a C++ compiler and cannot compile here "
                              f"({type(failure).__name__}: {said[0] if said else ''})") from failure


def in_onnxruntime(model: bytes, threads: int) -> Predict:
    onnxruntime = required("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"x": x.contiguous().numpy()})[0])


def in_openvino(model, threads: int) -> Predict:
    """Compiled anew for each batch size, when it is first met: a fixed size is the faster one."""
    core = required("openvino").Core()
    # Without the hint, OpenVINO may compute in bfloat16 where the processor can.
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "f32", "ENABLE_CPU_PINNING": False}
    requests: dict[int, Any] = {}

    def call(x: torch.Tensor) -> torch.Tensor:
        if len(x) not in requests:
            fixed = model.clone()
            fixed.reshape(list(x.shape))
            with signal_stack_kept():
                requests[len(x)] = core.compile_model(fixed, "CPU", settings).create_infer_request()
        logits = requests[len(x)].infer({0: x.contiguous().numpy()}, share_inputs=True)[0]
        return torch.from_numpy(logits.copy())  # the next call uses the request's memory again

    return call


@contextlib.contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Put back this thread's alternate signal stack: compiling, OpenVINO replaces it by its own.

    It frees its own with the last of its models, and the next signal after that, such as an
    interrupted cell's, would crash Python. Linux with glibc only: elsewhere nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    before = ctypes.create_string_buffer(24)  # stack_t: an address, flags, a size
    libc.sigaltstack(None, before)
    try:
        yield
    finally:
        libc.sigaltstack(before, None)


def without_composers_blurpool(network: nn.Module, example: torch.Tensor) -> nn.Module:
    """The network with each BlurMaxPool2d as a max-pool and a depthwise convolution, in place.

    Composer's makes its filter anew in every call, from the shape of its input: exporters cannot
    follow that.
    """
    from composer.algorithms.blurpool.blurpool_layers import BlurMaxPool2d

    channels: dict[str, int] = {}
    pools = {name: module for name, module in network.named_modules()
             if isinstance(module, BlurMaxPool2d)}
    hooks = [pool.register_forward_pre_hook(
                 lambda _, x, name=name: channels.update({name: x[0].shape[1]}))
             for name, pool in pools.items()]
    with torch.inference_mode():
        network(example)
    for hook in hooks:
        hook.remove()
    for name, pool in pools.items():
        filters = pool.filt2d.expand(channels[name], 1, -1, -1)
        blur = nn.Conv2d(channels[name], channels[name], filters.shape[-1], stride=pool.stride,
                         padding=filters.shape[-1] // 2, groups=channels[name], bias=False)
        blur.weight.data = filters.clone()
        network.set_submodule(name, nn.Sequential(
            nn.MaxPool2d(pool.kernel_size, stride=1, padding=pool.padding, dilation=pool.dilation),
            blur))
    return network


def onnx_bytes(network: nn.Module, examples: torch.Tensor) -> bytes:
    """The network as an ONNX model with any number of images: input "x", output "logits"."""
    required("onnx")
    network = without_composers_blurpool(copy.deepcopy(network).eval(), examples[:1])
    network.to(memory_format=torch.contiguous_format)
    model = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # newer versions of torch prefer another one
        torch.onnx.export(network, (examples[:1].contiguous(),), model, dynamo=False,
                          input_names=["x"], output_names=["logits"],
                          dynamic_axes={"x": {0: "n"}, "logits": {0: "n"}})
    return model.getvalue()


def openvino_model(network: nn.Module, examples: torch.Tensor):
    """The network as OpenVINO's model, read from ONNX."""
    return required("openvino").Core().read_model(model=onnx_bytes(network, examples))


def quantised(network: nn.Module, examples: torch.Tensor):
    """OpenVINO's model with 8-bit weights and activations: NNCF's static post-training one."""
    os.environ.setdefault("NNCF_CI", "1")  # NNCF reports each use to its makers otherwise
    nncf = required("nncf")
    nncf.set_log_level(logging.ERROR)
    # NNCF's progress bars: widgets, in a notebook.
    required("rich").reconfigure(quiet=True, force_jupyter=False)
    batches = [batch.contiguous().numpy() for batch in examples.split(100)]
    # Weights of 7 bits: without VNNI instructions sums of 8-bit products overflow, in silence, and
    # the 1.5K network answers 67 % of the digits instead of 98 %.
    parameters = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    # torch's extensions, which NNCF loads, say there whether they have found a GPU's compiler.
    with (warnings.catch_warnings(action="ignore"), contextlib.redirect_stderr(io.StringIO()),
          signal_stack_kept()):
        return nncf.quantize(openvino_model(network, examples), nncf.Dataset(batches),
                             subset_size=len(batches), advanced_parameters=parameters)


def executorch_bytes(network: nn.Module, examples: torch.Tensor) -> bytes:
    """The network as an ExecuTorch program for one image at a time; XNNPACK computes its layers."""
    network = without_composers_blurpool(copy.deepcopy(network).eval(), examples[:1])
    network.to(memory_format=torch.contiguous_format)
    with warnings.catch_warnings(action="ignore"):  # it imports what setuptools is about to drop
        exir = required("executorch.exir", pkg_resources="setuptools")
        xnnpack = required("executorch.backends.xnnpack.partition.xnnpack_partitioner")
        # Its compiler of flatbuffers, which it looks for on the PATH: there only in an activated venv.
        flatc = Path(required("executorch.data.bin").__file__).with_name("flatc")
        if flatc.exists():
            os.environ.setdefault("FLATC_EXECUTABLE", str(flatc))
        program = torch.export.export(network, (examples[:1].contiguous(),))
        return exir.to_edge_transform_and_lower(
            program, partitioner=[xnnpack.XnnpackPartitioner()]).to_executorch().buffer


def in_executorch(program: bytes) -> Predict:
    """Image by image, with the threads that ExecuTorch takes (one for each of the cores)."""
    with warnings.catch_warnings(action="ignore"):  # it calls itself experimental
        runtime = required("executorch.runtime")
    # The default asks for a check that its wheel was built without, and says so each time.
    loaded = runtime.Runtime.get().load_program(program, verification=runtime.Verification.Minimal)
    method = loaded.load_method("forward")

    def call(x: torch.Tensor, kept=(program, loaded)) -> torch.Tensor:
        """kept: what the method reads and does not keep alive itself; without it the process crashes."""
        # Cloned, because the next call uses the method's memory again.
        return torch.cat([method.execute([one.contiguous()])[0].clone() for one in x.split(1)])

    return call


def sizes(network: nn.Module, examples: torch.Tensor) -> dict[str, int]:
    """Bytes of a network in several formats.

    weights: the bare numbers, 4 bytes each, BatchNorm's running statistics among them; state_dict
    (torch's pickle), safetensors, onnx: with their headers; int8_weights and int8_graph: OpenVINO's
    two files.
    """
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "int8.xml"
        required("openvino").save_model(quantised(network, examples), model)
        int8 = {"int8_weights": model.with_suffix(".bin").stat().st_size,
                "int8_graph": model.stat().st_size}
    bare = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    onnx = len(onnx_bytes(network, examples))
    return {"weights": bare, **weight_bytes(network), "onnx": onnx, **int8}


def required(module: str, **beside: str):
    """The imported module. Raises RuntimeMissingError, with cause and cure, without it.

    beside: modules that it imports without asking pip for them, and the package of each.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except Exception as error:  # an extension built for something else may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name in (package, *beside):
            cure = pip_command(package, *beside.values())
            raise RuntimeMissingError(f"{error.name} is not installed; {cure} brings it") from error
        cure = pip_command(package, options="--force-reinstall")
        raise RuntimeMissingError(
            f"{package} is installed but does not load ({type(error).__name__}: {error}); "
            f"when the cause does not tell what to do, {cure} may help") from error
