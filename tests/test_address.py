"""The repository's address stands in pyproject.toml; everything else is made from it."""

import shutil
from pathlib import Path

import pytest

from effcnn_helpers.cli import main

ROOT = Path(__file__).parents[1]
FORK = "https://github.com/somebody/small-networks"


@pytest.fixture
def copy(tmp_path, monkeypatch) -> Path:
    """The files that hold the address, in a folder of their own."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for name in ("pyproject.toml", "README.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def texts(folder: Path) -> dict[str, str]:
    files = [*folder.rglob("*.ipynb"), folder / "README.md", folder / "CITATION.cff"]
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in files}


def test_the_committed_files_hold_the_address_of_pyproject(copy, capsys):
    before = texts(copy)
    assert main(["address"]) == 0
    assert texts(copy) == before, "python -m effcnn_helpers address"
    assert capsys.readouterr().out == ""


def test_a_fork_changes_one_line(copy, capsys):
    project = (copy / "pyproject.toml").read_text(encoding="utf-8")
    [line] = [line for line in project.splitlines() if line.startswith("Repository = ")]
    (copy / "pyproject.toml").write_text(project.replace(line, f'Repository = "{FORK}"'), encoding="utf-8")
    old = line.split('"')[1].removeprefix("https://github.com/")
    before = texts(copy)
    assert main(["address"]) == 0
    after = texts(copy)
    assert len(capsys.readouterr().out.splitlines()) == len(after)
    for name, text in after.items():
        assert old not in text, name
        assert text.replace(FORK, "").replace("somebody/small-networks", "") == before[name].replace(
            f"https://github.com/{old}", "").replace(old, ""), name
    opening = after["notebooks/07_cutout.ipynb"]
    assert "research.google.com/github/somebody/small-networks/blob/main/notebooks/07_cutout.ipynb" in opening
    assert f"effcnn @ git+{FORK}" in opening


@pytest.mark.parametrize("address, message", [
    ("https://example.org/effcnn", "use https://github.com/OWNER/NAME"),
    (None, "no pyproject.toml in"),
])
def test_an_address_that_colab_cannot_open_and_a_wrong_folder_are_refused(address, message, copy, capsys):
    project = copy / "pyproject.toml"
    if address:
        project.write_text(f'[project.urls]\nRepository = "{address}"\n', encoding="utf-8")
    else:
        project.unlink()
    assert main(["address"]) == 1
    assert message in capsys.readouterr().err
