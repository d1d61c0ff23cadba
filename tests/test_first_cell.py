"""The first cell of every notebook, on a machine like Colab's: PyTorch and the rest are there, effcnn is not."""

import importlib.metadata
import os
import subprocess
import sysconfig
import tomllib
import venv
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
LEFT_OUT = ("effcnn", "__editable__", "mosaicml-", "composer")
MINUTES_AT_MOST = 2


@pytest.fixture(scope="module")
def colab(tmp_path_factory) -> Path:
    """The Python of a new environment that sees this one's packages, all but effcnn and Composer."""
    folder = tmp_path_factory.mktemp("colab")
    (folder / "there").mkdir()
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if not package.name.startswith(LEFT_OUT):
            (folder / "there" / package.name).symlink_to(package)
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / Path(sysconfig.get_path("scripts")).name / "python"
    site = subprocess.run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                          capture_output=True, text=True, check=True).stdout.strip()
    Path(site, "there.pth").write_text(f"{folder / 'there'}\n", encoding="utf-8")
    return python


def run(python: Path, code: str, folder: Path, **settings: str) -> str:
    """What the code prints, run away from the checkout, where effcnn_helpers lies in no parent folder."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([python, "-c", code], cwd=folder, env=environment | settings, capture_output=True, text=True,
                          timeout=60 * MINUTES_AT_MOST)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_first_cell_installs_effcnn_and_composer_beside_the_torch_that_is_there(colab, tmp_path):
    notebook = nbformat.read(ROOT / "notebooks/01_mnist_25k.ipynb", as_version=4)
    cell = next(cell.source for cell in notebook.cells if cell.cell_type == "code")
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    where = "import importlib.util as u; print(*(u.find_spec(name) for name in ('effcnn_helpers', 'composer')))"
    assert run(colab, where, tmp_path) == "None None\n"

    # git fetches the repository's address from this checkout, as it is committed.
    said = run(colab, cell, tmp_path, GIT_CONFIG_COUNT="2", GIT_CONFIG_KEY_0=f"url.file://{ROOT}.insteadOf",
               GIT_CONFIG_VALUE_0=project["urls"]["Repository"], GIT_CONFIG_KEY_1="safe.directory",
               GIT_CONFIG_VALUE_1="*")
    [composer] = [pin for pin in project["dependencies"] if pin.startswith("mosaicml")]
    assert said == f"installed beside torch {importlib.metadata.version('torch')}: {composer}\n"

    use = "import composer, torch; from effcnn_helpers import records; " \
          "print(composer.__file__, torch.__file__, len(records.table_runs('25k')) > 0, sep='\\n')"
    composer_file, torch_file, recorded = run(colab, use, tmp_path, EFFCNN_RECORDED_DIR="").splitlines()
    assert Path(composer_file).is_relative_to(colab.parents[1]) and recorded == "True"
    assert Path(torch_file).is_relative_to(colab.parents[2] / "there")
    assert run(colab, cell, tmp_path) == "", "the second time there is nothing to do"
