"""What the notebooks share: start, checks of exercises, headline; and the install beside another torch."""

import subprocess
import sys

import pytest

from effcnn_helpers import complete_install, notebook
from effcnn_helpers.cli.run import headline_of
from effcnn_helpers.notebook import check


def test_start_says_what_the_numbers_depend_on(capsys):
    profile, images = notebook.start("mnist", profile="smoke")
    shown = capsys.readouterr().out
    assert profile.name == "smoke" and len(images.train) == 4_000
    for part in ("smoke", "embedded sample", "threads", "torch", "not the real mnist"):
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
    import nbformat

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
