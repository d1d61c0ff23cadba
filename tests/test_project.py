"""The repository itself: dependencies, make targets, layout."""

import ast
import importlib.metadata
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import conftest
import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

import effcnn_helpers
from effcnn_helpers.cli import main

ROOT = Path(__file__).parent.parent
AT_THE_TOP = {
    "README.md", "environment.yml", "notebooks", "effcnn_helpers", "figures", "tests", "pyproject.toml", "Makefile",
    "LICENSE", ".ci", ".gitignore", ".gitattributes", "CITATION.cff", "requirements.lock", "requirements-all.lock",
    "CONTRIBUTING.md"}
TARGETS = {"notebooks", "test", "lab", "refresh", "figures", "results"}
NOT_IMPORTED = {
    "ipykernel": "runs the notebooks", "ipywidgets": "draws tqdm's bars", "jupyterlab": "make lab",
    "furo": "make book", "mypy": "make test", "myst-nb": "make book", "nbval": "make test",
    "pytest-cov": "make test", "pytest-xdist": "make test", "ruff": "make test"}


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files of the repository, as git lists them."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(project: dict, *extras: str) -> list[Requirement]:
    """The project's own dependencies and those of the extras, or of all when none is named."""
    optional = project["optional-dependencies"]
    lines = sum((optional[extra] for extra in extras or optional), project["dependencies"])
    return [Requirement(line) for line in lines]


def locked(name: str) -> dict[str, set[str]]:
    """Package: versions (several where they differ by Python or system). Every line must fit."""
    text = (ROOT / name).read_text(encoding="utf-8").removeprefix("-r requirements.lock\n")
    versions: dict[str, set[str]] = {}
    for entry in re.split(r"\n(?=\S)", text.rstrip("\n")):
        first, *hashes = entry.split(" \\\n")
        package, version = re.fullmatch(r"([a-z0-9-]+)==([\w.]+)(?: ; .+)?", first).groups()
        assert hashes, entry
        assert all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}", line) for line in hashes), entry
        versions.setdefault(package, set()).add(version)
    return versions


def test_environment_for_conda_installs_the_project(project):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, rest = environment["dependencies"]
    assert (python, pip) == ("python=3.11", "pip")
    [project_itself] = rest["pip"]
    [extras] = re.findall(r"^-e \.\[([a-z,]+)\]$", project_itself)
    assert set(extras.split(",")) == {"deploy", "lab"} <= set(project["optional-dependencies"])


def test_every_dependency_is_a_range(project):
    for requirement in requirements(project):
        signs = {specifier.operator for specifier in requirement.specifier}
        exact = {"=="} if requirement.name == "mosaicml" else {">=", "<"}
        assert signs == exact or requirement.name in ("furo", "packaging") and signs == {">="}, requirement


@pytest.mark.parametrize("lock, extras", [("requirements.lock", ("deploy", "lab")),
                                          ("requirements-all.lock", ("test", "book", "cluster"))])
def test_lock_files_hold_what_pyproject_asks_for(project, lock, extras):
    versions = locked("requirements.lock")
    if lock == "requirements-all.lock":
        more = locked(lock)
        assert not set(more) & set(versions), "requirements-all.lock adds to the other one: make lock"
        versions |= more
    for requirement in requirements(project, *extras):
        found = versions.get(requirement.name, set())
        assert found and all(version in requirement.specifier for version in found), f"{requirement}: make lock"


def test_learners_install_neither_tests_nor_book(project):
    optional = project["optional-dependencies"]
    others = {Requirement(line).name for line in optional["test"] + optional["book"] + optional["cluster"]}
    needed_anyway = {"beautifulsoup4", "pyyaml"}  # by nbconvert, Composer
    assert others & set(locked("requirements.lock")) == needed_anyway


def test_torch_of_the_lock_and_the_newest_tested_one_are_in_range(project):
    ranges = {requirement.name: requirement.specifier for requirement in requirements(project)}
    newest = re.findall(r"(torch\w*)==([\d.]+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert [name for name, _ in newest] == ["torch", "torchvision"]
    for name, version in newest:
        assert version in ranges[name] and {version} != locked("requirements.lock")[name]


def imported(paths) -> set[str]:
    """The packages, as pip names them, that Python files import."""
    modules = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules.add(node.module.split(".")[0])
    modules -= set(sys.stdlib_module_names) | {"effcnn_helpers"}
    owners = importlib.metadata.packages_distributions()
    return {owners[module][0].lower().replace("_", "-") for module in modules if module in owners}


def test_what_is_imported_is_required_and_what_is_required_is_used(project):
    package, tests = (list((ROOT / folder).rglob("*.py")) for folder in ("effcnn_helpers", "tests"))
    named = {requirement.name for requirement in requirements(project)}
    assert imported(package) <= named
    by_name = {Requirement(line).name for extra in ("deploy", "executorch")
               for line in project["optional-dependencies"][extra]}
    assert named == imported(package + tests) & named | by_name | set(NOT_IMPORTED)


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
@pytest.mark.parametrize("given, shown", [
    ("/a/My Drive", "/a/My Drive"), ("My Drive", "{folder}/My Drive"), ("data", "{folder}/data"),
    ("~/data", "~/data"), ("D:/My Data", "D:/My Data")])
@pytest.mark.parametrize("by", ["environment", "argument"])
def test_make_hands_down_a_data_folder_with_blanks(given, shown, by, tmp_path):
    (tmp_path / "show.mk").write_text(f'include {ROOT}/Makefile\nshow:\n\t@echo "$$EFFCNN_DATA_DIR"\n')
    setting = f"EFFCNN_DATA_DIR={given}"
    command = ["make", "-f", "show.mk", "show", *([setting] if by == "argument" else [])]
    of_outer_make = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")  # `make test` hands them down
    environment = {key: value for key, value in os.environ.items() if key not in ("EFFCNN_DATA_DIR", *of_outer_make)}
    environment |= {"EFFCNN_DATA_DIR": given} if by == "environment" else {}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == shown.format(folder=tmp_path)


def make_targets() -> dict[str, str]:
    """Each target of the Makefile with its recipe."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z-]+):.*\n((?:\t.*\n)+)", text, flags=re.MULTILINE))


def readme_and_contributing() -> str:
    return "\n".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md"))


def test_makefile_has_the_agreed_targets_and_each_of_the_readmes():
    text = readme_and_contributing()
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE))
    assert TARGETS | named <= set(make_targets())


def commands_in(text: str) -> set[str]:
    return set(re.findall(r"python -m effcnn_helpers ([a-z]+)", text))


def test_commands_that_make_and_the_readme_call_exist(capsys):
    commands = commands_in(readme_and_contributing())
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


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "notebooks/INSTRUCTORS.md"])
def test_links_of_a_page_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert "://" in target or ((ROOT / name).parent / target).exists(), target


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
    assert modules | {"cli", "maintain"} == set(re.findall(r"`([a-z_]+)`", effcnn_helpers.__doc__))


def test_notebooks_and_what_they_import_do_without_the_commands():
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "effcnn_helpers").glob("[a-z]*.py")}
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        sources[path] = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    reaching = r"(?:from|import) +(?:effcnn_helpers)?\.?cli\b|from +(?:effcnn_helpers|\.) +import +.*\bcli\b"
    assert [path.name for path, text in sources.items() if re.search(reaching, text)] == []


def test_tests_that_the_notebooks_name_exist():
    defined = {name for path in (ROOT / "tests").glob("*.py")
               for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)}
    named = {name for path in (ROOT / "notebooks").glob("*.ipynb")
             for name in re.findall(r"`(test(?:_[a-z0-9]+){3,})`", path.read_text(encoding="utf-8"))}
    assert named and named <= defined, named - defined


def test_tests_of_a_file_share_a_process_and_notebooks_do_not(tmp_path):
    """By the scheduler of conftest.py. pytest-xdist's own way to group once stopped working without a word."""
    (tmp_path / "conftest.py").write_text("\n\n".join([
        "import pytest", "from xdist.scheduler import LoadFileScheduling", inspect.getsource(conftest.ByFile),
        inspect.getsource(conftest.pytest_xdist_make_scheduler)]))
    # A notebook waits for one in the other process, so that a busy machine cannot give all of them to the first.
    test = """
import os, pathlib, time, pytest

@pytest.mark.parametrize("number", range(6))
def test_it(number):
    name = pathlib.Path(__file__).stem
    pathlib.Path(f"{name} {number} {os.environ['PYTEST_XDIST_WORKER']}").touch()
    for _ in range(50 if name == "test_notebooks" else 1):
        if len({path.name[-3:] for path in pathlib.Path().glob(f"{name} *")}) == 2:
            break
        time.sleep(0.1)
"""
    for name in ("test_one", "test_other", "test_notebooks"):
        (tmp_path / f"{name}.py").write_text(test)
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "xdist", "-n", "2", "-p", "no:cacheprovider", "-q"],
                          cwd=tmp_path, env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    seen = [path.name.split() for path in tmp_path.glob("test_* * gw?")]
    assert len(seen) == 18
    processes = {name: len({worker for of, _, worker in seen if of == name}) for name, _, _ in seen}
    assert processes == {"test_one": 1, "test_other": 1, "test_notebooks": 2}
