"""How long things take: variants timed in turn, so that a busy moment of the machine meets all of them."""

import contextlib
import io
from collections.abc import Callable

import pandas as pd
import torch
from torch import nn

# torch's benchmark module can compile C++ and prints, while it loads, whether it found CUDA's compiler.
with contextlib.redirect_stderr(io.StringIO()):
    from torch.utils.benchmark import Timer


def time_interleaved(calls: dict[str, Callable[[], object]], rounds: int = 15, threads: int = 1) -> pd.DataFrame:
    """Milliseconds per call: one row per variant and round, columns variant and ms.

    In each round every variant in turn is called twice to warm up, then once against the clock.
    """
    timers = {name: Timer("call()", globals={"call": call}, num_threads=threads) for name, call in calls.items()}
    return pd.DataFrame([{"variant": name, "ms": 1000 * timer.timeit(1).mean}
                         for _ in range(rounds) for name, timer in timers.items()])


def inference(network: nn.Module, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    """A call of the network on x (N, C, H, W), in evaluation mode and without gradients."""
    network.eval()

    def call():
        with torch.inference_mode():
            return network(x)

    return call


def training_step(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """A call that passes images x (N, C, H, W) and labels y forward and back; the weights stay as they are."""
    def call():
        network.train()
        network.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()

    return call


def ratios(times: pd.DataFrame, to: str) -> pd.DataFrame:
    """Median, quartiles and the ratio to a variant: columns ms, lower, upper, ratio, a row per variant.

    The ratio is the median of each round's own ratio. Raises KeyError for an unknown variant.
    """
    rounds = times.assign(round=times.groupby("variant").cumcount()).pivot(
        index="round", columns="variant", values="ms")[list(dict.fromkeys(times["variant"]))]
    return pd.DataFrame({"ms": rounds.median(), "lower": rounds.quantile(0.25), "upper": rounds.quantile(0.75),
                         "ratio": rounds.div(rounds[to], axis=0).median()})
