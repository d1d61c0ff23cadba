"""What the notebooks share: start, checks of exercises, headline; and the install beside another torch."""

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest

from effcnn_helpers import complete_install, notebook
from effcnn_helpers.cli import run
from effcnn_helpers.cli.run import headline_of
from effcnn_helpers.errors import EffcnnError
from effcnn_helpers.notebook import check


def test_start_says_what_the_numbers_depend_on(capsys):
    profile, images = notebook.start("mnist", profile="smoke")
    shown = capsys.readouterr().out
    assert profile.name == "smoke" and len(images.train) == 4_000
    for part in ("smoke", "embedded sample", "1 thread", "torch", "not the real mnist"):
        assert part in shown


def test_unanswered_exercise_says_so_and_does_not_count_as_solved():
    result = check(..., (lambda answer: True, "never shown"))
    assert not result and "Not answered yet" in repr(result)


def test_first_failing_test_gives_its_hint():
    tests = ((lambda n: n > 0, "above 0"), (lambda n: n % 2 == 0, "even"), (lambda n: n == 4, "four"))
    assert repr(check(-1, *tests)).endswith("Hint: above 0")
    assert repr(check(3, *tests)).endswith("Hint: even")
    assert not check(2, *tests)
    solved = check(4, *tests)
    assert solved and repr(solved) == "Correct."


def test_answer_that_cannot_be_tried_ends_in_a_hint_not_a_traceback():
    result = check("eight", (lambda n: n + 1 == 9, "a number"))
    assert not result and "TypeError" in repr(result) and "Hint: a number" in repr(result)


def test_headline_is_found_by_the_runner(capsys):
    notebook.headline("two and two is four")
    output = nbformat.v4.new_output("stream", name="stdout", text=capsys.readouterr().out)
    cell = nbformat.v4.new_code_cell("", outputs=[output])
    assert headline_of(nbformat.v4.new_notebook(cells=[cell])) == "two and two is four"


def test_requirements_that_are_there_are_not_installed_again(monkeypatch):
    assert complete_install.missing_requirements("effcnn") == []
    monkeypatch.setattr(complete_install.importlib.metadata, "requires",
                        lambda name: ["torch>=99", "no-such-package-here==1", "left-out; extra == 'out'"])
    assert complete_install.missing_requirements("effcnn") == ["no-such-package-here==1"]
    assert complete_install.missing_requirements("effcnn", ("dev",)) == ["no-such-package-here==1"]
    assert complete_install.missing_requirements("effcnn", ("out", "in")) == ["no-such-package-here==1", "left-out"]


def test_completing_an_install_needs_only_the_standard_library():
    code = ("import sys, effcnn_helpers.complete_install; "
            "print({'torch', 'numpy', 'composer', 'platformdirs'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_unknown_profile_is_refused():
    with pytest.raises(ValueError, match="smoke, live, full"):
        notebook.start("mnist", profile="quick")


def test_live_run_is_told_in_a_line_with_or_without_a_limit_of_images(make_record, capsys):
    for count, shown in ((1_000, "on 1,000 images"), (None, "on all images")):
        notebook.tell(make_record(wrong=200, fresh_correct=9_900, recipe={"epochs": 1}, config={"train_images": count}))
        told = capsys.readouterr().out
        assert f"1 epoch {shown} in " in told and told.endswith(
            "98.0 % of 10,000 test images\n")


def test_tell_gives_fresh_statistics_too_where_a_run_stops_in_a_zigzag(make_record, capsys):
    notebook.tell(make_record(wrong=200, fresh_correct=9_900, recipe={"schedule": "constant"}))
    assert capsys.readouterr().out.endswith("98.0 % of 10,000 test images, 99.0 % with fresh statistics\n")


def test_full_profile_without_the_real_data_is_refused_with_what_is_there():
    with pytest.raises(EffcnnError, match="profile full needs the real mnist.*embedded sample.*mnist.npz"):
        notebook.start("mnist", profile="full")


def test_package_that_is_not_the_notebooks_own_is_named(tmp_path, monkeypatch, capsys):
    """As where last week's version is installed and today's notebooks lie beside it."""
    (tmp_path / "checkout/notebooks").mkdir(parents=True)
    (tmp_path / "checkout/effcnn_helpers").mkdir()
    (tmp_path / "checkout/effcnn_helpers/__init__.py").touch()
    monkeypatch.chdir(tmp_path / "checkout/notebooks")
    notebook.start("mnist", profile="smoke")
    shown = capsys.readouterr().out
    assert f"NOTE      effcnn_helpers comes from {notebook.PACKAGE}, not from this notebook's {tmp_path}" in shown


@pytest.mark.parametrize("folder", [notebook.PACKAGE.parent, notebook.PACKAGE, Path(tempfile.gettempdir())])
def test_the_notebooks_own_package_is_not_worth_a_word(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    notebook.start("mnist", profile="smoke")
    assert "comes from" not in capsys.readouterr().out


@pytest.mark.parametrize("backend", ["Agg", "nbagg"])
def test_started_notebook_draws_inline_whatever_the_shell_asks_for(backend, tmp_path, monkeypatch):
    """As in JupyterLab, which hands its own environment down to kernels."""
    monkeypatch.setattr(run, "INLINE", backend)
    cells = ["import matplotlib.pyplot as plt\nfrom effcnn_helpers import notebook\nnotebook.start('mnist')",
             "plt.plot([1, 2])\nplt.show()"]
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]),
                   tmp_path / "01_any.ipynb")
    executed, error = asyncio.run(run.execute(tmp_path / "01_any.ipynb", "smoke"))
    assert error is None
    [output] = executed.cells[1].outputs
    assert "image/png" in output.data
