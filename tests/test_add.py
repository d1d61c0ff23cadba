"""The README's three steps to a ninth technique, followed to the letter in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import safetensors.torch
import torch

from effcnn_helpers.records import read_run

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A folder with a package that has the README's lines in it."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "effcnn_helpers", folder / "effcnn_helpers",
                    ignore=shutil.ignore_patterns("recorded", "__pycache__"))
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Add a technique")[1].split("\n## ")[0]
    name, algorithm = (textwrap.indent(textwrap.dedent(block), "    ")
                       for block in re.findall(r"```python\n(.*?) *```", section, re.DOTALL))
    path = folder / "effcnn_helpers" / "techniques.py"
    source = path.read_text(encoding="utf-8")
    for before, lines in (("}\n", name), ("    return algorithms\n", algorithm)):
        head, found, tail = source.partition(before)
        assert found
        source = head + lines + before + tail
    path.write_text(source, encoding="utf-8")
    return folder


def python(folder: Path, *arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_new_technique_trains_another_network(extended):
    python(extended, "-m", "effcnn_helpers", "sweep", "1.5k-dw", "1.5k-dw/gradient_clipping", "--profile", "smoke",
           "--out", "runs")
    weights = {row: safetensors.torch.load_file(extended / f"runs/mnist/1.5k-dw/{row}/seed0/weights.safetensors")
               for row in ("baseline", "gradient_clipping")}
    same = [torch.equal(tensor, weights["gradient_clipping"][name]) for name, tensor in weights["baseline"].items()]
    assert not all(same)


def test_the_new_technique_has_its_label_and_colour(extended):
    shown = python(extended, "-c", "from effcnn_helpers import plots, techniques as t; "
                   "print(t.labels_of(('swa', 'gradient_clipping')), plots.TECHNIQUE_COLORS['gradient_clipping'])")
    assert shown.strip() == "SWA + Gradient clipping #44aa99"


def test_without_the_new_lines_it_is_unknown(extended):
    """The package itself refuses the record that its extended copy wrote."""
    with pytest.raises(Exception, match="unknown technique 'gradient_clipping'"):
        read_run(extended / "runs/mnist/1.5k-dw/gradient_clipping/seed0")
