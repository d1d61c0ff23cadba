"""The series as regression tests: each notebook is executed again and its compared cells must not have changed.

Every notebook runs twice under nbval: with the real data (where there is some) and the recorded runs; and
with the embedded sample, no recorded run at all, a single thread and no C++ compiler. The compared cells
must agree with the committed outputs both times, so they can depend on the code alone.
"""

import ast
import os
import re
import shutil
import subprocess
import symtable
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import nbformat
import pytest
from conftest import kernel_environment

ROOT = Path(__file__).parents[1]
SERIES = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
SOLUTIONS = sorted((ROOT / "notebooks/solutions").glob("*.ipynb"))
VARIANTS = ("real data and records", "embedded data, no records, one thread, no C++ compiler")
COMPARED_CELLS = 4


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def is_compared(cell) -> bool:
    """Whether nbval compares this cell's output: executed, with an output, and not tagged to be ignored."""
    ignored = {"nbval-ignore-output", "nbval-skip", "raises-exception"} & set(cell.metadata.get("tags", []))
    return bool(cell.execution_count and cell.outputs and not ignored)


def run_nbval(path: Path, environment: dict[str, str], report: Path, cell_seconds: int = 240,
              starts: int = 3) -> tuple[list[str], str]:
    """(names of the cells that did not pass, nbval's output). An expected failure does not pass either:
    nbval marks the rest of a notebook so when a cell has timed out. A kernel that could not start gets
    another try: jupyter_client picks free ports, and another process may be faster to bind one."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "nbval.plugin", "--nbval", "--nbval-current-env",
         "--nbval-kernel-startup-timeout=120",
         f"--nbval-cell-timeout={cell_seconds}", f"--nbval-sanitize-with={ROOT / 'tests/sanitize.cfg'}",
         f"--junitxml={report}", "-p", "no:cacheprovider",
         "-o", "filterwarnings=", "-q", str(path)],
        # Other plugins only take time to load.
        cwd=ROOT, env=environment | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, capture_output=True, text=True)
    if "Kernel died before replying to kernel_info" in done.stdout and starts > 1:
        return run_nbval(path, environment, report, cell_seconds, starts - 1)
    cases = ElementTree.parse(report).getroot().findall(".//testcase")
    cells = len(code_cells(path))
    bad = [case.get("name") for case in cases if {part.tag for part in case} & {"failure", "error", "skipped"}]
    if len(cases) != cells:
        bad.append(f"{len(cases)} of {cells} code cells ran")
    return bad, done.stdout + done.stderr


def run_in_smoke(path: Path, environment: dict[str, str]) -> str:
    """"" when the notebook runs, else what went wrong; in a process of its own, as asyncio wants a main thread."""
    code = "import asyncio, pathlib, sys; from effcnn_helpers.cli.run import execute; " \
           "sys.exit(asyncio.run(execute(pathlib.Path(sys.argv[1]), 'smoke'))[1])"
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, env=environment, capture_output=True,
                          text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.fixture
def environments(real_data_dir, tmp_path) -> dict[str, dict[str, str]]:
    """The environment of a notebook's kernel, by variant."""
    base = kernel_environment()
    (tmp_path / "no records").mkdir()
    return {
        VARIANTS[0]: base | ({"EFFCNN_DATA_DIR": str(real_data_dir)} if real_data_dir else {}),
        VARIANTS[1]: base | {"EFFCNN_RECORDED_DIR": str(tmp_path / "no records"), "OMP_NUM_THREADS": "1",
                             "CXX": str(tmp_path / "no compiler")},
    }


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("path", SERIES, ids=lambda path: path.stem)
def test_notebook_gives_its_committed_outputs(path, variant, environments, tmp_path):
    bad, output = run_nbval(path, environments[variant], tmp_path / "report.xml")
    assert not bad, f"{path.name}, {variant}: {bad}\n{output}"


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_solutions_solve_their_exercises(path, environments):
    assert run_in_smoke(path, environments[VARIANTS[0]]) == ""


@pytest.mark.parametrize("path", SERIES + SOLUTIONS, ids=lambda path: path.stem)
def test_notebook_is_committed_as_it_ran(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run top to bottom: make refresh"
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert "widgets" not in notebook.metadata
    code = [[line for line in cell.source.splitlines() if line.strip()] for cell in cells]
    assert all(len(lines) <= 25 for lines in code), "split the cells of more than 25 lines"
    drawn = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
    assert all(output.metadata["image/png"]["alt"] for output in drawn), "pictures without words: make refresh"


@pytest.mark.parametrize("path", SERIES, ids=lambda path: path.stem)
def test_enough_cells_are_compared(path):
    assert sum(is_compared(cell) for cell in code_cells(path)) >= COMPARED_CELLS


@pytest.mark.parametrize("path", SERIES, ids=lambda path: path.stem)
def test_notebook_has_the_series_form(path):
    cells = nbformat.read(path, as_version=4).cells
    opening, everything = cells[0].source, "\n".join(cell.source for cell in cells)
    assert re.match(rf"# {path.name[:2]} · ", opening)
    assert "**You need:**" in opening and "**Time:**" in opening and "1. " in opening
    assert "**Predict" in everything and "## Questions" in everything and "check(" in everything
    assert "notebook.headline(" in everything
    assert (path.parent / "solutions" / f"{path.stem}_solutions.ipynb").exists()


def blocks(block: symtable.SymbolTable) -> list[symtable.SymbolTable]:
    """A block of code (module, function, class, …) and all blocks inside it."""
    return [block, *(inner for child in block.get_children() for inner in blocks(child))]


def names_taken_from_pictures(codes: list[str]) -> list[tuple[str, str]]:
    """(function, name) where `touch` moves the function, and a later cell assigns a global name that it reads.

    Also names read by the functions and classes of the notebook that it uses. They are read at every move, so a
    learner who has run the whole notebook would move another picture. Importing a module again is harmless.
    """
    modules = [symtable.symtable(code, "cell", "exec") for code in codes]
    assigned = [{symbol.get_name() for block in blocks(module) for symbol in block.get_symbols()
                 if symbol.is_assigned() and (block is module or symbol.is_declared_global())} for module in modules]
    defined: dict[str, symtable.SymbolTable] = {}
    taken = []
    for place, code in enumerate(codes):
        defined |= {child.get_name(): child for child in modules[place].get_children()}
        for call in ast.walk(ast.parse(code)):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "touch"):
                continue
            moved = call.args[0].id
            read, ahead = set(), {moved}
            while ahead:
                read |= ahead
                inside = [block for name in ahead & set(defined) for block in blocks(defined[name])]
                ahead = {symbol.get_name() for block in inside for symbol in block.get_symbols()
                         if symbol.is_global() and symbol.is_referenced()} - read
            taken += [(moved, name) for name in sorted(read & set().union(*assigned[place + 1:]))]
    return taken


@pytest.mark.parametrize("path", SERIES, ids=lambda path: path.stem)
def test_no_later_cell_takes_a_name_from_a_moving_picture(path):
    assert names_taken_from_pictures([cell.source for cell in code_cells(path)]) == []


@pytest.mark.parametrize("later, taken", [
    ("rate = 1", ["rate"]), ("for rate in (1, 2): pass", ["rate"]), ("def height(): return 2", ["height"]),
    ("def set_it():\n    global rate\n    rate = 2", ["rate"]), ("def draw(step=1): pass", ["draw"]),
    ("def other():\n    rate = 2", []), ("step = width = 1", []), ("import math", []), ("rates['b'] = 2", []),
])
def test_a_name_taken_from_a_moving_picture_is_found(later, taken):
    """Also one that a comprehension reads, in a function that the picture's own calls."""
    before = ["import math\nrate, rates, width = 0, {}, 3", "def height():\n    return [rate * n for n in rates]",
              "def draw(step=width):\n    print(math.pi, height(), step)", "rate = 0.5\ntouch(draw, step=(0, width))"]
    assert names_taken_from_pictures([*before, later]) == [("draw", name) for name in taken]


def test_first_cell_is_the_same_everywhere_and_names_the_repository():
    with open(ROOT / "pyproject.toml", "rb") as file:
        address = tomllib.load(file)["project"]["urls"]["Repository"]
    first_cells = {code_cells(path)[0].source for path in SERIES + SOLUTIONS}
    assert len(first_cells) == 1
    assert f"git+{address}" in first_cells.pop()


def test_links_between_notebooks_lead_somewhere():
    for path in SERIES:
        for cell in nbformat.read(path, as_version=4).cells:
            for target in re.findall(r"\]\(([^)#:]+\.ipynb)\)", cell.source):
                assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_a_changed_output_and_a_hanging_cell_turn_nbval_red(tmp_path):
    """The suite itself: a wrong number fails, and so do a cell that hangs and the cells behind it."""
    notebook = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_code_cell("1 + 1", execution_count=1, outputs=[
            nbformat.v4.new_output("execute_result", {"text/plain": "3"}, execution_count=1)]),
        nbformat.v4.new_code_cell("import time; time.sleep(60)", execution_count=2),
        nbformat.v4.new_code_cell("print('after')", execution_count=3),
    ])
    path = tmp_path / "wrong.ipynb"
    nbformat.write(notebook, path)
    bad, output = run_nbval(path, dict(os.environ), tmp_path / "report.xml", cell_seconds=4)
    assert len(bad) == 3, output


UNCHANGED = ("models.py", "padding=1", "padding=1")


@pytest.mark.parametrize("module, right, wrong, stem", [
    (*UNCHANGED, "02_mnist_7k"), (*UNCHANGED, "10_mixup"),
    ("models.py", "padding=1", "padding=0", "02_mnist_7k"),
    ("techniques.py", "MixUp(alpha=MIXUP_ALPHA)", "MixUp(alpha=1.0)", "10_mixup"),
    # Smoothed before the labels are blended: the right class gets another share.
    ("techniques.py", "in chosen(techniques) if technique.algorithm]",
     "in chosen(techniques)[::-1] if technique.algorithm]", "10_mixup"),
])
def test_a_fault_in_a_helper_turns_its_notebook_red(module, right, wrong, stem, tmp_path):
    shutil.copytree(ROOT / "effcnn_helpers", tmp_path / "effcnn_helpers",
                    ignore=shutil.ignore_patterns("recorded", "__pycache__"))
    path = tmp_path / "effcnn_helpers" / module
    source = path.read_text(encoding="utf-8")
    assert right in source
    path.write_text(source.replace(right, wrong), encoding="utf-8")
    environment = kernel_environment() | {"EFFCNN_RECORDED_DIR": os.environ["EFFCNN_RECORDED_DIR"]}
    (tmp_path / "notebooks").mkdir()  # the first cell takes the helpers of the checkout that it lies in
    notebook = shutil.copy(ROOT / f"notebooks/{stem}.ipynb", tmp_path / "notebooks")
    bad, output = run_nbval(notebook, environment, tmp_path / "report.xml")
    assert bool(bad) == (right != wrong), output
