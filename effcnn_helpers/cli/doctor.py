"""Is this machine ready for the series? A line per check and, under each problem, its cure.

Only the standard library is imported here. Each check imports what it looks at, so that a package
that is missing or broken ends as a line of the report.
"""

from __future__ import annotations  # so that a Python that is too old can be told so

import importlib
import importlib.metadata
import operator
import os
import platform
import re
import shlex
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from .. import settings
from ..errors import EffcnnError

MEMORY_GB = 3.0          # free, for JupyterLab, its browser and a notebook
LEAST_MEMORY_GB = 1.5    # with less, the system may end a notebook's kernel
DISK_GB = 1.0            # both data sets, the copies that their download makes, checkpoints
BUSY_CORES = 0.5         # with more of them busy, the measured speed says little
PROBE_SECONDS = 10.0     # for the timed steps of all models together, at most
# The reference machine, 2 cores: minutes of `make notebooks`, and seconds per image of a training
# step on 1 thread.
SERIES_MINUTES = 8.2
REFERENCE_SECONDS = {"1.5k-dw": 2.6e-4, "143k-dw": 4.9e-4}

OK, NOTE, PROBLEM = "ok", "note", "PROBLEM"
ROOT = Path(__file__).parents[2]  # of the checkout, when this is one
INSTALL = shlex.join([sys.executable, "-m", *(
    ("pip", "install", "-e", f"{ROOT}[deploy,test]") if (ROOT / "pyproject.toml").is_file() else
    ("effcnn_helpers.complete_install", "deploy"))])
EXTRAS = {"deploy": "the runtimes of notebook 15", "test": "the test suite",
          "lab": "a server for notebooks of your own", "book": "the HTML edition"}
IMPORT_NAMES = {"mosaicml": "composer", "ipython": "IPython", "pillow": "PIL"}  # not pip's names


class Line(NamedTuple):
    """What a check saw. state: OK, NOTE or PROBLEM; cure: a command or setting."""

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
          "ready: make notebooks executes the series, make lab opens it (without make: "
          "python -m effcnn_helpers run)")
    return 1 if problems else 0


def lines_of(check: Callable[[], Iterator[Line]]) -> list[Line]:
    """What a check says; when it fails itself, its last line names the exception."""
    lines = []
    with warnings.catch_warnings():
        # Many packages warn, when imported, of what a reader cannot change.
        warnings.simplefilter("ignore")
        try:
            for line in check():
                lines.append(line)
        except Exception as error:  # a broken installation may raise anything; the report goes on
            file = error.filename if isinstance(error, OSError) else None
            lines.append(Line(PROBLEM, f"could not be checked: {describe(error)}",
                              f"see to it that {file} can be read" if file else INSTALL))
    return lines


def describe(error: Exception) -> str:
    """The exception's name and the first line of its text."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def check_python() -> Iterator[Line]:
    """This Python against the versions that the installed effcnn accepts."""
    version = platform.python_version()
    accepted = importlib.metadata.metadata("effcnn")["Requires-Python"]
    compare = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:3])
    fits = all(compare[sign](numbers, tuple(int(number) for number in bound.split(".")))
               for sign, bound in re.findall(r"([<>]=?)\s*(\d+(?:\.\d+)*)", accepted))
    needs = ", ".join(sorted(accepted.split(","))[::-1])
    yield Line(OK if fits else PROBLEM, f"{version}; effcnn needs {needs}",
               "conda env create -f environment.yml, or name a Python that fits: "
               "make PYTHON=/path/to/python3.11")


def check_packages() -> Iterator[Line]:
    """The installed packages against accepted versions; what everything needs is imported."""
    from packaging.requirements import Requirement

    missing, others, fitting = {}, [], 0
    for line in importlib.metadata.requires("effcnn"):
        requirement = Requirement(line)
        name, extra = requirement.name, (re.findall(r"extra == ['\"](\w+)", line) or [None])[0]
        if requirement.marker and not requirement.marker.evaluate({"extra": extra or ""}):
            continue  # for another system
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.setdefault(extra, []).append(name)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            fitting += 1
        else:
            others.append(f"{name} {version} (accepted: {requirement.specifier})")
        if extra is None:
            try:
                importlib.import_module(IMPORT_NAMES.get(name, name.replace("-", "_")))
            except Exception as error:  # an extension built for something else may raise anything
                yield Line(PROBLEM, f"{name} {version} cannot be imported: {describe(error)}",
                           settings.pip_command(name, options="--force-reinstall"))
    if None in missing:
        complete = shlex.join([sys.executable, "-m", "effcnn_helpers.complete_install"])
        yield Line(PROBLEM, f"missing: {', '.join(missing[None])}",
                   f"{settings.pip_command(*missing.pop(None))}, or, to leave an installed torch "
                   f"as it is: {complete}")
    for extra, names in missing.items():
        yield Line(NOTE, f"missing, only for {EXTRAS.get(extra, extra)}: {', '.join(names)}",
                   settings.pip_command(*names))
    if others:
        accepted = settings.pip_command(*(other.split()[0] for other in others))
        yield Line(NOTE, f"other versions than accepted: {', '.join(others)}; results may differ",
                   f"none needed; for accepted versions, {accepted}")
    yield Line(OK, f"{fitting} in accepted versions")


def check_settings() -> Iterator[Line]:
    """Each environment variable of effcnn's, and those that a launcher may have left."""
    wrong = 0
    for names, check in settings.CHECKS.items():
        try:
            check()
        except EffcnnError as error:
            wrong += 1
            yield Line(PROBLEM, str(error), f"correct {names} or: unset {names}")
    if not wrong:
        used = [name for names in settings.CHECKS for name in names.split() if os.environ.get(name)]
        yield Line(OK, f"{', '.join(used) or 'none'} set")


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
    """Write access and space where downloads, checkpoints and executed notebooks go."""
    space = "a folder that can be written and has space"
    for what, folder, cure in (
            ("cache", settings.cache_dir().absolute(), f"set EFFCNN_CACHE_DIR to {space}"),
            ("current", Path.cwd(), f"change to a copy of the project in {space}")):
        # The cache is made when it is needed. What may not be looked into counts as not there.
        there = next(path for path in (folder, *folder.parents) if os.path.exists(path))
        try:
            with tempfile.TemporaryFile(dir=there):
                free = shutil.disk_usage(there).free / 1e9
        except OSError as error:
            yield Line(PROBLEM, f"{what}: {settings.access_problem(folder, error)}", cure)
        else:
            yield Line(OK if free >= DISK_GB else PROBLEM,
                       f"{what}: {folder} can be written, {free:.1f} GB free; "
                       f"{DISK_GB:.0f} GB is enough", cure)
    if not Path("notebooks").is_dir():
        yield Line(NOTE, "the current folder has no notebooks/", "change to the project's folder")


def check_data() -> Iterator[Line]:
    """Where each data set would come from; nothing is downloaded."""
    from ..datasets import DATASETS, load_images, npz_path

    for name, spec in DATASETS.items():
        cure = f"set EFFCNN_DATA_DIR to a folder that holds the real {name}.npz"
        try:
            path = npz_path(spec)
            if path.exists():
                images = load_images(name, download=False)
                proof = ", real by its sha256" if images.real else ""
                yield Line(OK if images.real else NOTE, f"{name}: {images.source}{proof}", cure)
            elif settings.downloads_allowed():
                yield Line(NOTE, f"{name}: no {path}; a download is tried once; when it fails, the "
                                 "embedded sample is used", cure)
            else:
                yield Line(NOTE, f"{name}: no {path}; EFFCNN_DOWNLOAD is "
                                 f"{os.environ['EFFCNN_DOWNLOAD']}, so the embedded sample is used",
                           cure)
        except (EffcnnError, OSError) as error:
            yield Line(PROBLEM, f"{name}: {error}", cure)


def check_gpu() -> Iterator[Line]:
    """Whether training would use a GPU."""
    import torch

    if torch.cuda.is_available():
        yield Line(NOTE, f"{torch.cuda.get_device_name()}; the recorded runs are of CPUs: what is "
                         "trained live differs in the last digits",
                   'none needed; to train on the CPU: CUDA_VISIBLE_DEVICES=""')
    else:
        yield Line(OK, "none, none needed; the recorded runs are of CPUs")


def check_records() -> Iterator[Line]:
    """The recorded runs: each run.json read whole, each weights file opened."""
    import safetensors

    from ..records import all_runs

    if os.environ.get("EFFCNN_RECORDED_DIR"):
        cure = "correct or unset EFFCNN_RECORDED_DIR"
    elif (ROOT / ".git").exists():
        cure = f"git -C {ROOT} restore effcnn_helpers/recorded"
    else:
        cure = "install effcnn anew"
    path: Path | str = "recorded runs"
    try:
        root = path = settings.recorded_dir()
        runs = list(all_runs())
        for path in (root / run.config.name / "weights.safetensors" for run in runs):
            with safetensors.safe_open(path, framework="np"):
                pass
    except (EffcnnError, OSError, safetensors.SafetensorError) as error:
        yield Line(PROBLEM, f"{path}: {describe(error)}", cure)
    else:
        yield Line(OK if runs else NOTE, f"{len(runs)} recorded runs in {root}", cure)


def check_speed() -> Iterator[Line]:
    """A training step's time per image, and what it makes of the reference machine's minutes."""
    from .bench import busy_cores

    busy = busy_cores()
    seconds = {model: probe(model) for model in REFERENCE_SECONDS}
    factor = sum(seconds[model] / REFERENCE_SECONDS[model] for model in seconds) / len(seconds)
    times = ", ".join(f"{model} {1e3 * each:.2f} ms" for model, each in seconds.items())
    yield Line(OK, f"{times} per image and training step on 1 thread: {factor:.1f} times the "
                   "reference machine's")
    crowded = busy > BUSY_CORES
    beside = f", measured while other programs keep {busy:.1f} cores busy" if crowded else ""
    yield Line(NOTE if crowded else OK,
               f"make notebooks: about {SERIES_MINUTES * factor:.0f} minutes{beside}",
               "run this again when the other programs have ended")


def probe(model: str) -> float:
    """Seconds per image of a training step on 1 thread, in the model's share of PROBE_SECONDS."""
    from ..recipes import table_run
    from .sweep import seconds_per_image

    config = table_run(model)
    # One step with few images tells for how many whole ones there is time; three more each time
    # are not timed.
    few = replace(config, recipe=replace(config.recipe, batch_size=16))
    rough = seconds_per_image(few, threads=1, steps=1)
    left = PROBE_SECONDS / len(REFERENCE_SECONDS) - 4 * 16 * rough
    steps = min(10, int(left / (rough * config.recipe.batch_size)) - 3)
    return seconds_per_image(config, threads=1, steps=steps) if steps >= 1 else rough


CHECKS = {"python": check_python, "packages": check_packages, "settings": check_settings,
          "cores": check_cores, "memory": check_memory, "folders": check_folders,
          "data": check_data, "gpu": check_gpu, "records": check_records, "speed": check_speed}
