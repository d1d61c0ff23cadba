"""Measure latency and size of the recorded networks. Nothing else should run meanwhile."""

import json
import time
from functools import partial
from pathlib import Path

import psutil
import torch
from torch import nn

from ..data import ImageDataset, load_images, normalise
from ..latency import (
    SCHEMA_VERSION,
    busy_cores,
    ceilings,
    latency_path,
    median_ratios,
    one_pass,
    percentiles,
    read_latency,
    time_interleaved,
)
from ..models import MODELS, dataset_of
from ..recipes import TECHNIQUE_MODELS
from ..records import read_network, table_runs
from ..runtimes import RUNTIMES, Predict, prepare, sizes
from ..training import cpu_name, describe_environment, describe_git, now, tune_allocator

BUSY_CORES = 0.3  # so much of a core may be busy with other programs
SMALLEST = ("1.5k-dw", "5k-dw")  # the quick bench tries all runtimes on these
CHANGING = (("blurpool",), ("squeeze_excite",))  # techniques that stay in the deployed network
BATCHES = (1, 8, 32, 128, 512, 1024)
SINGLE_IMAGES = 300
SAME = 1e-3  # logits of two runtimes may differ by so much, in parts of the largest


def bench(full: bool, threads: int, out: Path | None) -> int:
    """Measure, write a JSON file, compare its ratios with the recorded ones; 0 unless a runtime computes wrongly.

    full: all runtimes on all models, more rounds, more batch sizes (about 20 minutes instead of 4).
    out: by default the package's recorded file for `full`, build/latency.json for a quick one.
    Raises ValueError while a sweep runs on this machine, or when a model has no recorded run.
    """
    refuse_beside_a_sweep()
    before = busy_cores()
    if before > BUSY_CORES:
        print(f"NOTE  other programs keep {before:.1f} cores busy: the spreads will be larger than they need be")
    tune_allocator()
    started, clock = now(), time.monotonic()
    datasets = {name: load_images(name) for name in MODELS}
    examples = {name: normalise(dataset.train.x[:300], name) for name, dataset in datasets.items()}
    networks = {name: network_of(*name.split("/")) for name in names_of_networks(full)}
    variants = {f"{name}/{runtime}": prepare(runtime, network, examples[dataset_of(name.split("/")[0])], threads)
                for name, network in networks.items()
                for runtime in RUNTIMES if runtime == "eager" or full or name.split("/")[0] in SMALLEST}
    checks = check_outputs(variants, datasets, threads)
    rows = measure(variants, datasets, full, threads)
    record = {
        "schema_version": SCHEMA_VERSION, "kind": "full" if full else "quick", "threads": threads,
        "machine": {"cpu": cpu_name(), "cores": psutil.cpu_count(), "busy_cores_before": round(before, 2),
                    "busy_cores_after": round(busy_cores(), 2)},
        "ceilings": dict(zip(("gigaoperations_per_second", "gigabytes_per_second"),
                             (round(roof, 2) for roof in ceilings(threads)), strict=True)),
        "environment": describe_environment(), "git": describe_git(), "started": started, "ended": now(),
        "sizes": {name: sizes(network, examples[dataset_of(name)]) for name, network in networks.items()
                  if "/" not in name and (full or name in SMALLEST)},
        "checks": checks, "rows": rows,
    }
    path = out or (latency_path() if full else Path("build/latency.json"))
    earlier = read_latency() if latency_path().exists() else None
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(as_json(record), encoding="utf-8")
    part.replace(path)
    print(f"{path}: {len(rows)} rows in {time.monotonic() - clock:.0f} s")
    if earlier:
        compare(record, earlier)
    return 1 if any(check["wrong"] for check in checks) else 0


def refuse_beside_a_sweep() -> None:
    """Raise ValueError, naming its process, while a sweep trains on this machine."""
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = process.info["cmdline"] or []
        if "effcnn_helpers" in words and "sweep" in words:
            raise ValueError(f"a sweep is running (process {process.info['pid']}); measure when it has ended")


def names_of_networks(full: bool) -> list[str]:
    """"1.5k-dw", "1.5k-dw/blurpool", …: every model; for `full` also those that a technique has changed."""
    changed = [f"{model}/{'+'.join(techniques)}" for model in TECHNIQUE_MODELS.values() for techniques in CHANGING]
    return [name for models in MODELS.values() for name in models] + (changed if full else [])


def network_of(model: str, techniques: str = "") -> nn.Module:
    """The recorded network of a row, first seed. Raises ValueError, saying how to train it, when there is none."""
    runs = table_runs(model, techniques.split("+") if techniques else ())
    if not runs:
        raise ValueError(f"no recorded run of {model}/{techniques or 'baseline'}; train it first: "
                         f"python -m effcnn_helpers sweep {model}{'/' + techniques if techniques else ''}")
    return read_network(runs[0])


def check_outputs(variants: dict[str, Predict], datasets: dict[str, ImageDataset], threads: int) -> list[dict]:
    """Each variant against eager PyTorch on all test images, a row each.

    Columns: variant, max_difference (of the logits), accuracy_percent, other_answers (images), wrong.
    An int8 model is another model, so it is never wrong; its accuracy tells what it is worth.
    """
    torch.set_num_threads(threads)
    rows, eager = [], {}
    for variant, predict in variants.items():
        name, runtime = variant.rsplit("/", 1)
        dataset = datasets[dataset_of(name.split("/")[0])]
        logits = torch.cat([predict(normalise(x, dataset.name)) for x in dataset.test.x.split(128)])
        reference = eager.setdefault(name, logits)
        answers = logits.argmax(dim=1)
        difference = (logits - reference).abs().max().item()
        rows.append({"variant": variant, "max_difference": difference,
                     "accuracy_percent": 100 * (answers == dataset.test.y).double().mean().item(),
                     "other_answers": int((answers != reference.argmax(dim=1)).sum()),
                     "wrong": runtime != "int8" and difference > SAME * reference.abs().max().item()})
        print(f"{variant:28} logits within {difference:.0e} of eager's, {rows[-1]['accuracy_percent']:.2f} %",
              flush=True)
    return rows


def measure(variants: dict[str, Predict], datasets: dict[str, ImageDataset], full: bool, threads: int) -> list[dict]:
    """Three views of every variant, a row each: view, variant, batch, and the times of its rounds.

    pass: ms for all test images, batch by batch of 128, normalising included (the paper's view); batch: ms
    for one batch of normalised images; single: p50, p90 and p99 of many calls with one image each.
    """
    def dataset_for(variant: str) -> ImageDataset:
        return datasets[dataset_of(variant.split("/")[0])]

    def batch_of(variant: str, size: int) -> torch.Tensor:
        return normalise(dataset_for(variant).test.x[:size], dataset_for(variant).name)

    def row(view: str, variant: str, size: int, times) -> dict:
        of_variant = times[times["variant"] == variant]
        if view == "single":
            summary = percentiles(of_variant).loc[variant].round(4).to_dict() | {"calls": len(of_variant)}
        else:
            summary = {"times_ms": of_variant["ms"].round(4).to_list()}
        return {"view": view, "variant": variant, "batch": size, **summary}

    rows = []
    passes = {variant: partial(one_pass, predict, dataset_for(variant).test, dataset_for(variant).name)
              for variant, predict in variants.items()}
    times = time_interleaved(passes, rounds=7 if full else 3, threads=threads,
                             warm_up=lambda variant: variants[variant](batch_of(variant, 128)))
    rows += [row("pass", variant, 128, times) for variant in variants]
    print(f"passes over the test images: {len(variants)} variants", flush=True)
    for size in BATCHES if full else ():
        calls = {variant: partial(predict, batch_of(variant, size)) for variant, predict in variants.items()}
        times = time_interleaved(calls, rounds=5 if size > 128 else 15, threads=threads)
        rows += [row("batch", variant, size, times) for variant in variants]
        print(f"batches of {size}", flush=True)
    calls = {variant: partial(predict, batch_of(variant, 1)) for variant, predict in variants.items()}
    times = time_interleaved(calls, rounds=SINGLE_IMAGES, threads=threads)
    return rows + [row("single", variant, 1, times) for variant in variants]


def as_json(record: dict) -> str:
    """The record as text; each row takes a line."""
    lists = {name: ",\n".join("  " + json.dumps(row) for row in record[name]) for name in ("checks", "rows")}
    head = json.dumps({key: value for key, value in record.items() if key not in lists}, indent=1)[:-2]
    return head + "".join(f',\n "{name}": [\n{text}\n ]' for name, text in lists.items()) + "\n}\n"


def compare(record: dict, earlier: dict) -> None:
    """Print by how much the ratios to eager PyTorch have changed since the recorded measurement."""
    if record["machine"]["cpu"] != earlier["machine"]["cpu"] or record["threads"] != earlier["threads"]:
        print(f"the recorded measurement is of another machine or number of threads: {earlier['machine']['cpu']}")
        return
    ratios = [median_ratios(one) for one in (record, earlier)]
    changes = (ratios[0] / ratios[1] - 1).dropna()
    worst = changes.abs().idxmax()
    print(f"{len(changes)} ratios to eager PyTorch, against the recorded ones: largest change "
          f"{100 * changes[worst]:+.0f} % ({' '.join(map(str, worst))}), "
          f"{(changes.abs() <= 0.15).sum()} within 15 %")
