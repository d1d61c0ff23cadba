"""The repository itself: pins, make targets, layout."""

import re
import subprocess
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

import effcnn_helpers
from effcnn_helpers.cli import main

ROOT = Path(__file__).parent.parent
AT_THE_TOP = {
    "README.md", "environment.yml", "notebooks", "effcnn_helpers", "figures", "tests", "pyproject.toml", "Makefile",
    "LICENSE", ".ci", ".gitignore", ".gitattributes", "CITATION.cff"}
TARGETS = {"notebooks", "test", "lab", "refresh", "figures", "results"}


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files of the repository, as git lists them."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_environment_for_conda_repeats_the_pins(project):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == "effcnn" and environment["channels"] == ["conda-forge"]
    python, pip, pinned = environment["dependencies"]
    assert (python, pip) == ("python=3.11", "pip")
    extras = project["optional-dependencies"]
    assert pinned == {"pip": project["dependencies"] + extras["deploy"] + extras["dev"]}


def test_every_dependency_has_an_exact_pin(project):
    for requirement in sum(project["optional-dependencies"].values(), project["dependencies"]):
        assert re.fullmatch(r"[a-z0-9-]+==[0-9]+(\.[0-9]+)+", requirement), requirement


def make_targets() -> dict[str, str]:
    """Each target of the Makefile with its recipe."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z-]+):.*\n((?:\t.*\n)+)", text, flags=re.MULTILINE))


def test_makefile_has_the_agreed_targets_and_each_of_the_readmes():
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert TARGETS | named <= set(make_targets())


def commands_in(text: str) -> set[str]:
    return set(re.findall(r"python -m effcnn_helpers ([a-z]+)", text))


def test_commands_that_make_and_the_readme_call_exist(capsys):
    commands = commands_in((ROOT / "README.md").read_text(encoding="utf-8"))
    commands |= commands_in("\n".join(make_targets().values()))
    assert commands
    for command in commands:
        with pytest.raises(SystemExit) as done:
            main([command, "--help"])
        assert done.value.code == 0, command
    capsys.readouterr()


def test_targets_are_declared_phony_and_helped():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split()) == set(make_targets())
    assert set(re.findall(r"^([a-z-]+):.*##", text, re.MULTILINE)) == set(make_targets())


def test_continuous_integration_calls_make_test():
    assert re.search(r"^make test$", (ROOT / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE)


def test_top_level_holds_nothing_but_the_agreed_names(tracked):
    assert {name.split("/")[0] for name in tracked} <= AT_THE_TOP


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in target or (ROOT / target).exists(), target


def test_the_maps_of_the_readme_and_of_notebook_00_agree_with_the_notebooks():
    start = nbformat.read(ROOT / "notebooks/00_start_here.ipynb", as_version=4)
    of_readme, of_notebook = (
        re.findall(r"^\| \[\d\d · .*$", text.replace("](notebooks/", "]("), re.MULTILINE)
        for text in ((ROOT / "README.md").read_text(encoding="utf-8"), "\n".join(cell.source for cell in start.cells)))
    assert of_readme == of_notebook
    series = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    assert len(of_readme) == len(series)
    for line, path in zip(of_readme, series, strict=True):
        opening = nbformat.read(path, as_version=4).cells[0].source
        name, _, _, minutes, *_ = line.strip("| ").split(" | ")
        assert name.endswith(f"]({path.name})") and opening.startswith(f"# {path.name[:2]} · ")
        assert f"**Time:** {minutes} minutes" in opening


def test_no_tracked_text_holds_a_path_of_somebodys_machine(tracked):
    # Put together here, so that this file does not hold what it looks for.
    folders = "|".join(("home", "Users", "root", "work"))
    machine_path = re.compile(rf"(?<![\w.~-])/(?:{folders})/[\w.-]+|\b[A-Z]:\\+Users\\")
    assert machine_path.search("in /" + "home/somebody/project") and not machine_path.search("notebooks/" + "work/a")
    found = []
    for name in tracked:
        try:
            text = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures, weights
        found += [f"{name}: {hit[0]}" for hit in machine_path.finditer(text)]
    assert found == []


def test_no_tracked_file_is_large(tracked):
    assert [name for name in tracked if (ROOT / name).stat().st_size > 5_000_000] == []


def test_the_package_says_what_each_of_its_modules_is_for():
    modules = {path.stem for path in (ROOT / "effcnn_helpers").glob("[a-z]*.py")}
    assert modules | {"cli"} == set(re.findall(r"`([a-z_]+)`", effcnn_helpers.__doc__))


def test_notebooks_and_what_they_import_do_without_the_commands():
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "effcnn_helpers").glob("[a-z]*.py")}
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        sources[path] = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    reaching = r"(?:from|import) +(?:effcnn_helpers)?\.?cli\b|from +(?:effcnn_helpers|\.) +import +.*\bcli\b"
    assert [path.name for path, text in sources.items() if re.search(reaching, text)] == []
