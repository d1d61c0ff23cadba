"""How long things take: variants timed in turn, so that a busy moment of the machine meets all of them."""

import json
import timeit
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from .models import MODELS
from .paper import TABLE_3
from .records import RecordError, recorded_dir
from .runtimes import RUNTIMES

SCHEMA_VERSION = 1


def time_interleaved(calls: Mapping[str, Callable[[], object]], rounds: int = 15, threads: int = 1,
                     warm_up: Callable[[str], object] | None = None) -> pd.DataFrame:
    """Milliseconds per call: one row per variant and round, columns variant and ms.

    In each round every variant in turn is called twice to warm up, then once against the clock, with
    Python's garbage collection off (`timeit`). warm_up: what to do for a variant, by name, instead of the
    two calls. threads: of torch, for all variants.
    """
    rows = []
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(rounds):
            for name, call in calls.items():
                if warm_up:
                    warm_up(name)
                else:
                    call()
                    call()
                rows.append({"variant": name, "ms": 1000 * timeit.timeit(call, number=1)})
    finally:
        torch.set_num_threads(before)
    return pd.DataFrame(rows)


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


def ceilings(threads: int = 1, side: int = 1_536, numbers: int = 32_000_000) -> tuple[float, float]:
    """The two roofs over every layer here: (billion operations a second, billion bytes a second).

    The fastest of five calls each of: a product of two square matrices with this side, and a 3x3 convolution of
    128 channels (whichever library is the faster one on this processor); a copy of so many numbers of 4 bytes,
    read and written. A roof is what is possible, so the fastest counts, not the median.
    """
    a, b = torch.randn(side, side), torch.randn(side, side)
    layer = nn.Conv2d(128, 128, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    x = torch.randn(4, 128, 32, 32).contiguous(memory_format=torch.channels_last)
    source, target = torch.randn(numbers), torch.empty(numbers)
    operations = {"product": 2 * side**3, "convolution": 2 * 9 * 128 * x.numel()}
    times = time_interleaved({"product": lambda: a @ b, "convolution": inference(layer, x),
                              "copy": lambda: target.copy_(source)}, rounds=5, threads=threads)
    fastest = times.groupby("variant")["ms"].min()
    computing = max(count / fastest[name] for name, count in operations.items())
    return computing / 1e6, 8 * numbers / fastest["copy"] / 1e6


def ratios(times: pd.DataFrame, to: str) -> pd.DataFrame:
    """Median, quartiles and the ratio to a variant: columns ms, lower, upper, ratio, a row per variant.

    The ratio is the median of each round's own ratio. Raises KeyError for an unknown variant.
    """
    rounds = times.assign(round=times.groupby("variant").cumcount()).pivot(
        index="round", columns="variant", values="ms")[list(dict.fromkeys(times["variant"]))]
    return pd.DataFrame({"ms": rounds.median(), "lower": rounds.quantile(0.25), "upper": rounds.quantile(0.75),
                         "ratio": rounds.div(rounds[to], axis=0).median()})


def latency_path(root: Path | None = None) -> Path:
    """The recorded measurement of `python -m effcnn_helpers bench --full`, among the recorded runs under `root`."""
    return (root or recorded_dir()) / "latency.json"


def read_latency(path: Path | None = None) -> dict:
    """A measurement as `bench` wrote it. Raises RecordError when it is missing or something else."""
    path = path or latency_path()
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version is {record['schema_version']}, this code reads {SCHEMA_VERSION}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: {error}; measure again with `python -m effcnn_helpers bench --full`") from error
    return record


def latency_table(record: dict, view: str) -> pd.DataFrame:
    """One view of a measurement: a row per variant and batch size.

    Columns: model, techniques ("" for none), runtime, batch, ms (median), lower, upper (quartiles), ratio
    (to eager PyTorch on the same network and batch, the median over the rounds); for the view "single" p50,
    p90, p99 and the ratio of p50.
    """
    of_view = [row for row in record["rows"] if row["view"] == view]
    times = {(row["variant"], row["batch"]): pd.Series(row.get("times_ms") or [row["p50"]]) for row in of_view}
    rows = []
    for row in of_view:
        network, runtime = row["variant"].rsplit("/", 1)
        model, _, techniques = network.partition("/")
        ours, eager = times[row["variant"], row["batch"]], times[f"{network}/eager", row["batch"]]
        if view == "single":
            summary = {share: row[share] for share in ("p50", "p90", "p99")}
        else:
            summary = {"ms": ours.median(), "lower": ours.quantile(0.25), "upper": ours.quantile(0.75)}
        rows.append({"model": model, "techniques": techniques, "runtime": runtime, "batch": row["batch"], **summary,
                     "ratio": (ours / eager).median()})
    return pd.DataFrame(rows)


def in_one_line(record: dict) -> str:
    """How many times faster than eager PyTorch the fastest runtimes are, for a notebook's headline."""
    table = latency_table(record, "pass")
    words = []
    for model, of_model in table.groupby("model", sort=False):
        faster = 1 / of_model.set_index("runtime")["ratio"]
        exact = faster.drop(index=["eager", "int8"])
        fastest = f"{RUNTIMES[exact.idxmax()]} ×{exact.max():.1f}"
        words.append(f"{MODELS[model].label}: {fastest}, int8 ×{faster['int8']:.1f}")
    return "; ".join(words)


def passes_by_model(record: dict) -> pd.DataFrame:
    """Fig. 5: a row per model label in the paper's order, for eager PyTorch and no technique.

    Columns: seconds (median for one pass over the test images), lower, upper (quartiles), paper.
    """
    table = latency_table(record, "models").set_index("model")
    rows = [row for row in TABLE_3 if row.model in table.index]
    ours = table.loc[[row.model for row in rows], ["ms", "lower", "upper"]].rename(columns={"ms": "seconds"}) / 1000
    return ours.set_axis([row.label for row in rows]).assign(paper=[row.latency_seconds for row in rows])
