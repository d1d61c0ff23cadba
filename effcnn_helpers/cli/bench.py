"""Measure latency and size of the recorded networks. Nothing else should run meanwhile."""

import json
import time
from functools import partial
from pathlib import Path

import pandas as pd
import psutil
import torch

from .. import settings
from ..batches import normalise
from ..datasets import ImageDataset, Images, load_images
from ..errors import EffcnnError
from ..latency import SCHEMA_VERSION, ceilings, latency_path, latency_table, read_latency, time_interleaved
from ..machine import cpu_name, describe_environment, describe_git, instructions, now, tune_allocator
from ..paper import TABLE_3, TABLE_4_MODELS
from ..recipes import dataset_of
from ..records import RunRecord, read_network, rows_of_model
from ..runtimes import RUNTIMES, Predict, prepare, sizes
from ..techniques import chosen
from .recording import refuse_unreal
from .run import write_whole

BUSY_CORES = 0.3  # so much of a core may be busy with other programs
SMALLEST = ("1.5k-dw", "5k-dw")  # the quick bench tries all runtimes on these
CHANGING = (("blurpool",), ("squeeze_excite",))  # techniques that stay in the deployed network
BATCH = 128  # of the passes over the test images
BATCHES = (1, 8, 32, 128, 512, 1024)
ROUNDS = 7
SINGLE_IMAGES = 300
SAME = 1e-3  # logits of two runtimes may differ by so much, in parts of the largest


def bench(full: bool, threads: int, out: Path | None) -> int:
    """Measure, write a JSON file, compare its ratios with the recorded ones; 0 unless a runtime computes wrongly.

    full: all runtimes on all models, more batch sizes (about 15 minutes instead of 2).
    out: by default the package's recorded file for `full`, build/latency.json for a quick one.
    Raises EffcnnError while a sweep runs on this machine or when a model has no recorded run, DataError when the
    package's file would be measured on anything but the real images.
    """
    refuse_beside_a_sweep()
    before = busy_cores()
    if before > BUSY_CORES:
        print(f"NOTE  other programs keep {before:.1f} cores busy: the spreads will be larger than they need be")
    tune_allocator()
    started, clock = now(), time.monotonic()
    datasets = {name: load_images(name) for name in TABLE_4_MODELS}
    if full and out is None:
        for dataset in datasets.values():
            refuse_unreal(dataset, "full measurements")
    runs = {name: first_run(*name.split("/")) for name in names_of_networks(full)}
    networks = {name: read_network(run) for name, run in runs.items()}
    roofs = ceilings(threads)
    plain = {f"{name}/eager": prepare("eager", network, torch.empty(0))
             for name, network in networks.items() if "/" not in name}
    checks, rows = [], measure_passes("models", plain, datasets, threads)
    for model in (name for name in networks if "/" not in name and (full or name in SMALLEST)):
        dataset = datasets[dataset_of(model)]
        examples = normalise(dataset.train.x[:300], dataset.name)
        variants = {f"{name}/{runtime}": prepare(runtime, network, examples, threads)
                    for name, network in networks.items() if name.split("/")[0] == model for runtime in RUNTIMES}
        checks += check_outputs(variants, dataset, threads)
        # On their own, in a quick bench as in a full one: so their ratios can be compared.
        rows += measure(dict(list(variants.items())[:len(RUNTIMES)]), dataset, full, threads)
        if len(variants) > len(RUNTIMES):
            rows += measure_passes("techniques", variants, datasets, threads)
    record = {
        "schema_version": SCHEMA_VERSION, "kind": "full" if full else "quick", "threads": threads,
        "machine": {"cpu": cpu_name(), "instructions": instructions(), "cores": psutil.cpu_count(),
                    "busy_cores_before": round(before, 2), "busy_cores_after": round(busy_cores(), 2)},
        "ceilings": dict(zip(("gigaoperations_per_second", "gigabytes_per_second"),
                             (round(roof, 2) for roof in roofs), strict=True)),
        "environment": describe_environment(), "git": describe_git(), "started": started, "ended": now(),
        "runs": {name: run.config.name for name, run in runs.items()},
        "sizes": {name: sizes(network, normalise(datasets[dataset_of(name)].train.x[:300], dataset_of(name)))
                  for name, network in networks.items() if "/" not in name and (full or name in SMALLEST)},
        "checks": checks, "rows": rows,
    }
    path = out or (latency_path() if full else Path("build/latency.json"))
    earlier = read_latency() if latency_path().exists() else None
    settings.make_folder(path.parent)
    write_whole(path, as_json(record))
    print(f"{path}: {len(rows)} rows in {time.monotonic() - clock:.0f} s")
    if earlier:
        compare(record, earlier)
    return 1 if any(check["wrong"] for check in checks) else 0


def busy_cores(seconds: float = 1.0) -> float:
    """How many cores other programs keep busy, as a mean over so many seconds of waiting."""
    return psutil.cpu_percent(interval=seconds) / 100 * psutil.cpu_count()


def refuse_beside_a_sweep() -> None:
    """Raise ValueError, naming its process, while a sweep trains on this machine."""
    for process in psutil.process_iter(["pid", "cmdline"]):
        words = process.info["cmdline"] or []
        if "effcnn_helpers" in words and "sweep" in words:
            raise EffcnnError(f"a sweep is running (process {process.info['pid']}); measure when it has ended")


def names_of_networks(full: bool) -> list[str]:
    """"1.5k-dw", "1.5k-dw/blurpool", …: every model; for `full` also those that a technique has changed."""
    changed = [f"{model}/{'+'.join(techniques)}" for model in TABLE_4_MODELS.values() for techniques in CHANGING]
    return [row.model for row in TABLE_3] + (changed if full else [])


def first_run(model: str, techniques: str = "") -> RunRecord:
    """The first seed of the shortest recorded row of a model in which just these techniques change the network.

    Raises EffcnnError, saying how to train one, when there is none.
    """
    for row, runs in sorted(rows_of_model(model).items(), key=lambda item: len(item[0])):
        if "+".join(technique.name for technique in chosen(row) if technique.change_network) == techniques:
            return runs[0]
    raise EffcnnError(f"no recorded run of {model}/{techniques or 'baseline'}; train it first: "
                      f"python -m effcnn_helpers sweep {model}{'/' + techniques if techniques else ''}")


def check_outputs(variants: dict[str, Predict], dataset: ImageDataset, threads: int) -> list[dict]:
    """Each variant against eager PyTorch on all test images, a row each.

    Columns: variant, max_difference (of the logits), accuracy_percent, other_answers (images), wrong.
    An int8 model is another model, so it is never wrong; its accuracy tells what it is worth.
    """
    torch.set_num_threads(threads)
    rows, eager = [], {}
    for variant, predict in variants.items():
        name, runtime = variant.rsplit("/", 1)
        logits = torch.cat([predict(normalise(x, dataset.name)) for x in dataset.test.x.split(BATCH)])
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


def one_pass(predict: Predict, images: Images, name: str) -> torch.Tensor:
    """The answers (N,) to all images of a split, batch by batch, normalising included: the paper's measurement."""
    return torch.cat([predict(normalise(x, name)).argmax(dim=1) for x in images.x.split(BATCH)])


def measure_passes(view: str, variants: dict[str, Predict], datasets: dict[str, ImageDataset],
                   threads: int) -> list[dict]:
    """Rows of ms for all test images, batch by batch of 128, normalising included (the paper's view), in turn.

    view: "models" (the plain networks side by side), "pass" (a network's runtimes) or "techniques" (a network
    with and without what changes it, in all runtimes).
    """
    def images(variant: str) -> tuple[Images, str]:
        dataset = datasets[dataset_of(variant.split("/")[0])]
        return dataset.test, dataset.name

    passes = {variant: partial(one_pass, predict, *images(variant)) for variant, predict in variants.items()}
    times = time_interleaved(passes, ROUNDS, threads, warm_up=lambda variant: variants[variant](
        normalise(images(variant)[0].x[:BATCH], images(variant)[1])))
    print(f"{view}: passes over the test images, {', '.join(dict.fromkeys(v.split('/')[0] for v in variants))}",
          flush=True)
    return [{"view": view, "variant": variant, "batch": BATCH, "times_ms": ms_of(times, variant)}
            for variant in variants]


def measure(variants: dict[str, Predict], dataset: ImageDataset, full: bool, threads: int) -> list[dict]:
    """Three views of one network's runtimes: "pass"; "batch", ms for one batch of normalised images; and
    "single", p50, p90 and p99 of many calls with one image each."""
    def calls_with(size: int) -> dict[str, partial]:
        x = normalise(dataset.test.x[:size], dataset.name)
        return {variant: partial(predict, x) for variant, predict in variants.items()}

    rows = measure_passes("pass", variants, {dataset.name: dataset}, threads)
    for size in BATCHES if full else ():
        times = time_interleaved(calls_with(size), rounds=5 if size > 128 else 15, threads=threads)
        rows += [{"view": "batch", "variant": variant, "batch": size, "times_ms": ms_of(times, variant)}
                 for variant in variants]
    times = time_interleaved(calls_with(1), rounds=SINGLE_IMAGES, threads=threads)
    summary = percentiles(times).round(4)
    return rows + [{"view": "single", "variant": variant, "batch": 1, **summary.loc[variant], "calls": SINGLE_IMAGES}
                   for variant in variants]


def percentiles(times: pd.DataFrame) -> pd.DataFrame:
    """What one call in two, in ten and in a hundred exceeds: columns p50, p90, p99 (ms), a row per variant."""
    groups = times.groupby("variant", sort=False)["ms"]
    return pd.DataFrame({f"p{share}": groups.quantile(share / 100) for share in (50, 90, 99)})


def ms_of(times: pd.DataFrame, variant: str) -> list[float]:
    return times.loc[times["variant"] == variant, "ms"].round(4).to_list()


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


def median_ratios(record: dict) -> pd.Series:
    """Every ratio to eager PyTorch in a measurement, by (view, model, techniques, runtime, batch)."""
    keys = ["view", "model", "techniques", "runtime", "batch"]
    views = dict.fromkeys(row["view"] for row in record["rows"])
    table = pd.concat([latency_table(record, view).assign(view=view) for view in views])
    return table[table["runtime"] != "eager"].set_index(keys)["ratio"]
