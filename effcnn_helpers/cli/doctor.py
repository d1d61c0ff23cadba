"""Is this machine ready for the series? A line per check and, under each problem, its cure.

Only the standard library is imported here. Each check imports what it looks at, so that a package that is
missing or broken ends as a line of the report.
"""

from __future__ import annotations  # so that a Python that is too old can read this file and be told so

import importlib
import importlib.metadata
import operator
import os
import platform
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

MEMORY_GB = 3.0          # free, for JupyterLab, its browser and a notebook
LEAST_MEMORY_GB = 1.5    # with less, the system may end a notebook's kernel
DISK_GB = 1.0            # both data sets, the copies that their download makes, checkpoints
BUSY_CORES = 0.5         # with more of them busy, the measured speed says little
PROBE_SECONDS = 10.0     # for the timed steps of all models together, at most
# The reference machine, 2 cores: minutes of `make notebooks`, seconds per image of a training step on 1 thread.
SERIES_MINUTES = 8.2
REFERENCE_SECONDS = {"1.5k-dw": 2.6e-4, "143k-dw": 4.9e-4}

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"
INSTALL = 'in the project\'s folder: python -m pip install -e ".[deploy,dev]"'
EXTRAS = {"deploy": "the runtimes of notebook 15", "dev": "the test suite"}
IMPORT_NAMES = {"mosaicml": "composer"}  # the other packages are imported by the name that pip knows


class Line(NamedTuple):
    """What a check saw. state: OK, NOTE or PROBLEM; cure: an exact command or setting, not shown when all is well."""

    state: str
    text: str
    cure: str = ""


def doctor() -> int:
    """Print the report; 0 when the series can run, 1 when something must be cured first."""
    problems, cures = 0, set()
    for topic, check in CHECKS.items():
        for line in lines_of(check):
            problems += line.state == PROBLEM
            print(f"{line.state:9}{topic:10}{line.text}", flush=True)
            if line.state != OK:
                print(f"{'':19}cure: {'as above' if line.cure in cures else line.cure}", flush=True)
                cures.add(line.cure)
    print(f"problems: {problems}; cure them, then run this again" if problems else
          "ready: make notebooks executes the series, make lab opens it (without make: python -m effcnn_helpers run)")
    return 1 if problems else 0


def lines_of(check: Callable[[], Iterator[Line]]) -> list[Line]:
    """What a check says; when it fails itself, its last line names the exception."""
    lines = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # many packages warn, when imported, of what a reader cannot change
        try:
            for line in check():
                lines.append(line)
        except Exception as error:  # a broken installation may raise anything, and the report must go on
            lines.append(Line(PROBLEM, f"could not be checked: {describe(error)}", INSTALL))
    return lines


def describe(error: Exception) -> str:
    """The exception's name and the first line of its text."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def check_python() -> Iterator[Line]:
    """This Python against the versions that the installed effcnn accepts."""
    version, accepted = platform.python_version(), importlib.metadata.metadata("effcnn")["Requires-Python"]
    compare = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    fits = all(compare[sign](numbers, tuple(int(number) for number in bound.split(".")))
               for sign, bound in re.findall(r"([<>]=?)\s*(\d+(?:\.\d+)*)", accepted))
    yield Line(OK if fits else PROBLEM, f"{version}; effcnn needs {', '.join(sorted(accepted.split(','))[::-1])}",
               "conda env create -f environment.yml, or name a Python that fits: make PYTHON=/path/to/python3.11")


def check_packages() -> Iterator[Line]:
    """The installed packages against the pins; those that everything needs are imported, too."""
    missing, others, pinned = {}, [], 0
    for requirement in importlib.metadata.requires("effcnn"):
        name, pin, extra = re.match(r"""([\w.-]+)==([\w.]+)(?:.*extra == ["'](\w+)["'])?""", requirement).groups()
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.setdefault(extra, []).append(name)
            continue
        if version.split("+")[0] == pin:  # 2.7.0+cpu is 2.7.0, built for machines without a GPU
            pinned += 1
        else:
            others.append(f"{name} {version} (pinned: {pin})")
        if extra is None:
            try:
                importlib.import_module(IMPORT_NAMES.get(name, name))
            except Exception as error:  # an extension built for something else may raise anything
                yield Line(PROBLEM, f"{name} {version} cannot be imported: {describe(error)}",
                           f"python -m pip install --force-reinstall {requirement}")
    if None in missing:
        yield Line(PROBLEM, f"missing: {', '.join(missing.pop(None))}",
                   f"python -m effcnn_helpers.complete_install (leaves an installed torch as it is), or {INSTALL}")
    for extra, names in missing.items():
        yield Line(NOTE, f"missing, only for {EXTRAS.get(extra, extra)}: {', '.join(names)}", INSTALL)
    if others:
        yield Line(NOTE, f"other versions than pinned: {', '.join(others)}; results may differ in the last digits",
                   f"none needed; for the pinned versions, {INSTALL}")
    yield Line(OK, f"{pinned} as pinned")


def check_cores() -> Iterator[Line]:
    """The cores that this process may use and the threads that torch starts on them."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = torch.get_num_threads()
    yield Line(NOTE if threads > cores else OK, f"{cores} CPU cores, torch uses {threads} threads",
               f"OMP_NUM_THREADS={cores}")


def check_memory() -> Iterator[Line]:
    """The memory that is free now."""
    import psutil

    memory = psutil.virtual_memory()
    free = memory.available / 1e9
    yield Line(OK if free >= MEMORY_GB else NOTE if free >= LEAST_MEMORY_GB else PROBLEM,
               f"{free:.1f} of {memory.total / 1e9:.1f} GB free; {MEMORY_GB:.0f} GB are enough",
               "close other programs and notebooks (in JupyterLab: Kernel > Shut Down All Kernels)")


def check_folders() -> Iterator[Line]:
    """Write access and space where downloads, checkpoints and executed notebooks go; leaves nothing there."""
    from ..data import cache_dir

    for what, folder, cure in (
            ("cache", cache_dir(), "set EFFCNN_CACHE_DIR to a folder that can be written and has space"),
            ("current", Path.cwd(), "change to a copy of the project in a folder that can be written and has space")):
        there = next(path for path in (folder, *folder.parents) if path.exists())  # the cache is made when needed
        try:
            with tempfile.TemporaryFile(dir=there):
                free = shutil.disk_usage(there).free / 1e9
        except OSError as error:
            yield Line(PROBLEM, f"{what}: {folder} cannot be written ({describe(error)})", cure)
        else:
            yield Line(OK if free >= DISK_GB else PROBLEM,
                       f"{what}: {folder} can be written, {free:.1f} GB free; {DISK_GB:.0f} GB is enough", cure)
    if not Path("notebooks").is_dir():
        yield Line(NOTE, "the current folder has no notebooks/", "change to the project's folder")


def check_data() -> Iterator[Line]:
    """Where each data set would come from; nothing is downloaded."""
    from ..data import CLASSES, DataError, load_images, npz_path

    without = ("EFFCNN_DOWNLOAD is 0, so the embedded sample is used" if os.environ.get("EFFCNN_DOWNLOAD") == "0" else
               "a download is tried once; when it fails, the embedded sample is used")
    for name in CLASSES:
        cure = f"set EFFCNN_DATA_DIR to a folder that holds the real {name}.npz"
        try:
            path = npz_path(name)
            if path.exists():
                images = load_images(name, download=False)
                yield Line(OK if images.real else NOTE,
                           f"{name}: {images.source}{', real by its sha256' if images.real else ''}", cure)
            else:
                yield Line(NOTE, f"{name}: no {path}; {without}", cure)
        except DataError as error:
            yield Line(PROBLEM, f"{name}: {error}", cure)


def check_gpu() -> Iterator[Line]:
    """Whether training would use a GPU."""
    import torch

    gpu = torch.cuda.is_available()
    yield Line(NOTE if gpu else OK,
               f"{torch.cuda.get_device_name() if gpu else 'none, none needed'}; the recorded runs are of CPUs"
               f"{': what is trained live differs in the last digits' if gpu else ''}",
               'none needed; to train on the CPU: CUDA_VISIBLE_DEVICES=""')


def check_records() -> Iterator[Line]:
    """The recorded runs: each run.json read whole, each weights file opened."""
    import safetensors

    from ..records import RecordError, all_runs, recorded_dir

    own = os.environ.get("EFFCNN_RECORDED_DIR")
    cure = "correct or unset EFFCNN_RECORDED_DIR" if own else "git restore effcnn_helpers/recorded"
    path = recorded_dir()
    try:
        runs = list(all_runs())
        for path in (recorded_dir() / run.config.name / "weights.safetensors" for run in runs):
            with safetensors.safe_open(path, framework="np"):
                pass
    except (RecordError, OSError, safetensors.SafetensorError) as error:
        yield Line(PROBLEM, f"{path}: {describe(error)}", cure)
    else:
        yield Line(OK if runs else NOTE, f"{len(runs)} recorded runs in {recorded_dir()}", cure)


def check_speed() -> Iterator[Line]:
    """A training step's time per image, and the minutes that it makes of the reference machine's."""
    from .bench import busy_cores

    busy = busy_cores()
    seconds = {model: probe(model) for model in REFERENCE_SECONDS}
    factor = sum(seconds[model] / REFERENCE_SECONDS[model] for model in seconds) / len(seconds)
    yield Line(OK, f"{', '.join(f'{model} {1e3 * seconds[model]:.2f} ms' for model in seconds)} per image and training "
                   f"step on 1 thread: {factor:.1f} times the reference machine's")
    crowded = busy > BUSY_CORES
    yield Line(NOTE if crowded else OK, f"make notebooks: about {SERIES_MINUTES * factor:.0f} minutes"
               f"{f', measured while other programs keep {busy:.1f} cores busy' if crowded else ''}",
               "run this again when the other programs have ended")


def probe(model: str) -> float:
    """Seconds per image of a training step on 1 thread, within the model's share of PROBE_SECONDS."""
    from ..recipes import table_run
    from .sweep import seconds_per_image

    config = table_run(model)
    # One step with few images tells for how many whole ones there is time; three more each time are not timed.
    rough = seconds_per_image(replace(config, batch_size=16), threads=1, steps=1)
    left = PROBE_SECONDS / len(REFERENCE_SECONDS) - 4 * 16 * rough
    steps = min(10, int(left / (rough * config.batch_size)) - 3)
    return seconds_per_image(config, threads=1, steps=steps) if steps >= 1 else rough


CHECKS = {"python": check_python, "packages": check_packages, "cores": check_cores, "memory": check_memory,
          "folders": check_folders, "data": check_data, "gpu": check_gpu, "records": check_records,
          "speed": check_speed}
