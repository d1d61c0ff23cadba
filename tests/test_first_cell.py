"""The first cell of every notebook: on a machine like Colab's, where PyTorch and the rest are there and effcnn
is not; in a checkout, with the right kernel and with a wrong one."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
LEFT_OUT = ("effcnn", "__editable__", "mosaicml-", "composer")
MINUTES_AT_MOST = 2
with open(ROOT / "pyproject.toml", "rb") as file:
    PROJECT = tomllib.load(file)["project"]
CELL = next(cell.source for cell in nbformat.read(ROOT / "notebooks/01_mnist_25k.ipynb", as_version=4).cells
            if cell.cell_type == "code")


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


def start(python: Path, code: str, folder: Path, **settings: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run([python, "-c", code], cwd=folder, env=environment | settings, capture_output=True, text=True,
                          timeout=60 * MINUTES_AT_MOST)


def run(python: Path, code: str, folder: Path, **settings: str) -> str:
    """What the code prints."""
    done = start(python, code, folder, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def released(tmp_path) -> dict[str, str]:
    """Settings with which git finds this checkout, as it is committed and with its version's tag, at its address."""
    folder = tmp_path / "released.git"
    subprocess.run(["git", "-c", "safe.directory=*", "clone", "--quiet", "--bare", ROOT, folder], check=True)
    subprocess.run(["git", "-C", folder, "tag", "--force", f"v{PROJECT['version']}"], check=True)
    return {"GIT_CONFIG_COUNT": "2", "GIT_CONFIG_KEY_0": f"url.file://{folder}.insteadOf",
            "GIT_CONFIG_VALUE_0": PROJECT["urls"]["Repository"], "GIT_CONFIG_KEY_1": "safe.directory",
            "GIT_CONFIG_VALUE_1": "*"}


def test_first_cell_installs_effcnn_and_composer_beside_the_torch_that_is_there(colab, released, tmp_path):
    where = "import importlib.util as u; print(*(u.find_spec(name) for name in ('effcnn_helpers', 'composer')))"
    assert run(colab, where, tmp_path) == "None None\n"

    said = run(colab, CELL, tmp_path, **released)
    [composer] = [line for line in PROJECT["dependencies"] if line.startswith("mosaicml")]
    assert said == f"installed beside torch {importlib.metadata.version('torch')}: {composer}\n"

    use = "import composer, torch; from effcnn_helpers import records; " \
          "print(composer.__file__, torch.__file__, len(records.table_runs('25k')) > 0, sep='\\n')"
    composer_file, torch_file, recorded = run(colab, use, tmp_path, EFFCNN_RECORDED_DIR="").splitlines()
    assert Path(composer_file).is_relative_to(colab.parents[1]) and recorded == "True"
    assert Path(torch_file).is_relative_to(colab.parents[2] / "there")
    assert run(colab, CELL, tmp_path) == "", "the second time there is nothing to do"


def test_first_cell_installs_the_tagged_version_of_the_package():
    package = f"effcnn @ git+{PROJECT['urls']['Repository']}@v{PROJECT['version']}"
    assert f'"{package}"' in CELL, "python -m effcnn_helpers address"


@pytest.fixture
def checkout(tmp_path) -> Path:
    """Another checkout than the one that is installed here; its folder of notebooks."""
    for name in ("__init__.py", "complete_install.py"):
        (tmp_path / "other/effcnn_helpers").mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "effcnn_helpers" / name, tmp_path / "other/effcnn_helpers")
    shutil.copy(ROOT / "pyproject.toml", tmp_path / "other")
    (tmp_path / "other/notebooks/solutions").mkdir(parents=True)
    return tmp_path / "other/notebooks"


@pytest.mark.parametrize("folder", [".", "solutions", ".."])
def test_first_cell_prefers_the_checkout_that_the_notebook_lies_in(folder, checkout):
    code = f"{CELL}\nprint(complete_install.__file__)"
    said = run(sys.executable, code, checkout / folder)
    assert Path(said.strip()) == checkout.parent / "effcnn_helpers/complete_install.py"


def test_first_cell_names_the_python_that_lacks_packages(checkout, tmp_path):
    venv.create(tmp_path / "wrong kernel")
    python = tmp_path / "wrong kernel" / Path(sysconfig.get_path("scripts")).name / "python"
    done = start(python, CELL, checkout)
    message = done.stderr.splitlines()[-1]
    assert message.startswith(f"ModuleNotFoundError: This notebook runs with {python}, which lacks ")
    names = [re.match(r"[\w-]+", line)[0] for line in PROJECT["dependencies"]]
    assert f"which lacks {', '.join(names)}. Choose" in message
    assert f"in {checkout.parent}, {python} -m effcnn_helpers.complete_install" in message


def test_first_cell_says_when_notebook_and_package_are_of_different_versions(checkout):
    project = checkout.parent / "pyproject.toml"
    project.write_text(re.sub(r'(?m)^version = ".*"', 'version = "0.1.7"', project.read_text("utf-8")), "utf-8")
    said = run(sys.executable, CELL, checkout)
    assert said == (f"This notebook is of effcnn {PROJECT['version']}, the package of 0.1.7 ({checkout.parent}): "
                    "they may not fit together.\n")
