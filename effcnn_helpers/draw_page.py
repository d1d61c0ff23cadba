"""A page to draw digits on, answered in the browser by the series' networks: one HTML file that loads nothing.

Its parts are in the folder `page`: what it looks like, the pen, how a drawing becomes an image like MNIST's, and the
interpreter of the steps that `lowering` makes of a network.
"""

import base64
import html
import json
import re
from pathlib import Path

import numpy as np
from IPython.display import HTML, display
from torch import nn

from .datasets import DatasetSpec, spec_of
from .lowering import Step, Value, lower
from .models import MODELS
from .recipes import RunConfig, table_run
from .records import read_network, read_run, recorded_dir
from .techniques import labels_of

PARTS = Path(__file__).parent / "page"
NETWORKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("1.5k-dw", ()), ("1.5k-dw", ("blurpool",)), ("25k", ()))  # the page compares the first two


def draw_page(root: Path | None = None) -> str:
    """The page as HTML, with the networks of recorded runs (seed 0 of the tables' recipe) in it.

    Args:
        root: folder of the recorded runs. Default: the package's own.

    Raises:
        RecordError: a run is missing or damaged.
    """
    networks = [network_of(config, root or recorded_dir()) for config in runs_shown()]
    weight_bytes = sum(network["bytes"] for network in networks)
    return filled("draw.html", {
        "title": "Draw a digit",
        "style": read_part("draw.css"),
        "data": f"const NETWORKS = {as_script(networks)};",
        "script": "\n\n".join(read_part(name) for name in ("network.js", "show.js", "digit.js", "draw.js")),
        "weight_bytes": f"{weight_bytes:,}",
        "base64_bytes": f"{sum(len(network['weights']) for network in networks):,}",
        "runs": ", ".join(network["run"] for network in networks),
        "lines": str(sum(bool(line.strip()) for line in read_part("network.js").splitlines())),
    })


def show_draw_page(root: Path | None = None) -> None:
    """Show the page in a notebook, in a frame of its own; the page gives the frame its height.

    Args:
        root: as for `draw_page`.
    """
    show_in_frame(draw_page(root), "Draw a digit")


def show_in_frame(page: str, title: str) -> None:
    """Show a page, given as HTML, in a notebook."""
    # Within a <div>: of a bare frame IPython warns.
    display(HTML(f'<div><iframe title="{html.escape(title)}" srcdoc="{html.escape(page)}" '
                 'style="width: 100%; height: 900px; border: 0"></iframe></div>'))


def runs_shown() -> list[RunConfig]:
    """The runs whose networks are on the page."""
    return [table_run(model, techniques=techniques) for model, techniques in NETWORKS]


def missing_runs(root: Path | None = None) -> list[str]:
    """The names of those that are not recorded."""
    return [config.name for config in runs_shown() if not ((root or recorded_dir()) / config.name).is_dir()]


def network_of(config: RunConfig, root: Path) -> dict:
    """A recorded run's network as the page's scripts read it."""
    record = read_run(root / config.name)
    return {
        "label": label_of(config),
        "run": config.name,
        "parameters": record.parameters,
        "right": f"{record.accuracy_percent:.1f}",
        **numbers_of(read_network(record, root), spec_of(config.dataset)),
    }


def label_of(config: RunConfig) -> str:
    """What a run's network is called on a page; one of the reader's own by its name."""
    label = MODELS[config.model].label if config.model in MODELS else config.model
    return f"{label} with {labels_of(config.techniques)}" if config.techniques else label


def numbers_of(network: nn.Module, spec: DatasetSpec) -> dict:
    """A network's steps and weights as network.js reads them. Raises EffcnnError as `lowering.lower` does."""
    steps = lower(network, spec)
    values = [steps[0].x, *(step.y for step in steps)]
    numbers = [tensor.flatten() for step in steps for tensor in (step.weight, step.bias) if tensor is not None]
    weights = np.concatenate(numbers).astype("<f4").tobytes()
    return {
        "bytes": len(weights),
        "steps": [step_of(step, values) for step in steps],
        "weights": base64.b64encode(weights).decode("ascii"),
    }


def step_of(step: Step, values: list[Value]) -> dict:
    """A step as network.js reads it. x, by: which of the values it takes.

    weights, biases: how many numbers of the network's are its own, in this order.
    """
    return {
        "kind": step.kind, "name": step.name, "x": values.index(step.x),
        "by": values.index(step.by) if step.by else None,
        "from": {name: getattr(step.x.buffer, place) for name, place in SHAPE.items()},
        "to": {name: getattr(step.y.buffer, place) for name, place in SHAPE.items()},
        "kernel": step.kernel, "stride": step.stride, "padding": step.padding, "relu": step.relu,
        "weights": 0 if step.weight is None else step.weight.numel(),
        "biases": 0 if step.bias is None else step.bias.numel(),
    }


SHAPE = {"maps": "channels", "height": "height", "width": "width"}


def read_part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8").strip()


def as_script(value: object) -> str:
    """A value as JavaScript, such that no text in it ends the script."""
    return json.dumps(value, ensure_ascii=False).replace("</", r"<\/").replace("<!--", r"<\!--")


def filled(name: str, parts: dict[str, str]) -> str:
    """A page, given the file of its body: its parts in the places of their names, and its own size."""
    page = read_part("page.html").replace("{{body}}", read_part(name))
    # All at once: a part may hold what looks like the name of another.
    page = re.sub(r"{{(\w+)}}", lambda place: parts.get(place[1], place[0]), page)
    return with_its_size(page + "\n")


def with_its_size(page: str) -> str:
    """The page with its own number of bytes written into it."""
    written, said = page, ""
    while said != (size := f"{len(written.encode()):,}"):  # the number is a part of what it counts
        written, said = page.replace("{{page_bytes}}", size), size
    return written
