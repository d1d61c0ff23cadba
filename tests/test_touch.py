"""What a learner moves and guesses, with widgets and without."""

import matplotlib.pyplot as plt
import pytest

from effcnn_helpers import touch as module
from effcnn_helpers.touch import Guess, in_words, touch


@pytest.fixture
def moving(monkeypatch):
    """A live notebook, as far as widgets are concerned; what it displays."""
    monkeypatch.setenv("EFFCNN_PROGRESS", "1")
    displayed = []
    monkeypatch.setattr(module, "display", displayed.append)
    return displayed


def test_without_widgets_a_picture_is_drawn_once_with_its_defaults(monkeypatch):
    seen, shown = [], []
    monkeypatch.setattr(plt, "show", lambda: shown.append(len(seen)))
    touch(lambda row=3, column=5: seen.append((row, column)), row=(0, 9), column=(0, 9))
    assert seen == [(3, 5)] and shown == [1]


def test_moving_a_slider_draws_anew_in_the_same_place(moving):
    seen = []

    def draw(row=3, side="left"):
        seen.append((row, side))
        plt.figure().gca().set_title(f"Row <{row}>, {side}")

    another = plt.figure()
    touch(draw, row=(0, 9), side=["left", "right"])
    open_before = plt.get_fignums()
    [box] = moving
    panel, picture = box.children
    row, side, output = panel.children
    assert (row.value, row.max, side.value) == (3, 9, "left")
    first = picture.value
    row.value = 4
    side.value = "right"
    assert seen == [(3, "left"), (4, "left"), (4, "right")]
    assert first.count("<img ") == picture.value.count("<img ") == 1 and first != picture.value
    assert 'alt="Row &lt;4&gt;, right"' in picture.value
    assert plt.fignum_exists(another.number) and len(plt.get_fignums()) == len(open_before) and not output.outputs
    plt.close(another)


def test_guess_of_a_number_is_shown_beside_the_result(moving, capsys):
    guess = Guess("Weights?")
    guess._ipython_display_()
    assert guess.widget in moving[0].children
    guess.against(1_152)
    guess.widget.value = "1,000"
    guess.against(1_152)
    guess.widget.value = "12.5 %"
    guess.against(12.25, " %")
    guess.widget.value = "1152"
    guess.against(1_152)
    guess.widget.value = "many"
    guess.against(1_152)
    assert capsys.readouterr().out.splitlines() == [
        "Weights? 1,152. You made no guess.",
        "Weights? 1,152. You guessed 1,000, 152 too low.",
        "Weights? 12.25 %. You guessed 12.5 %, 0.25 % too high.",
        "Weights? 1,152. As you guessed.",
        "Weights? 1,152. You made no guess."]


def test_guess_of_a_choice(moving, capsys):
    guess = Guess("More?", ["yes", "no"])
    guess.against("no")
    guess.widget.value = "yes"
    guess.against("no")
    guess.widget.value = "no"
    guess.against("no")
    assert capsys.readouterr().out.splitlines() == [
        "More? no. You made no guess.", "More? no. You guessed yes.", "More? no. As you guessed."]
    with pytest.raises(ValueError, match="the result is 'perhaps'; the choices are yes, no"):
        guess.against("perhaps")


def test_guess_without_widgets_is_a_line(capsys):
    Guess("Weights?")._ipython_display_()
    Guess("More?", ["yes", "no"])._ipython_display_()
    assert capsys.readouterr().out == "Your guess: Weights?\nYour guess: More? (yes · no)\n"


@pytest.mark.parametrize("value, words", [
    (1_152, "1,152"), (100, "100"), (0.5, "0.5"), (98.6304, "98.63"), (-0.25, "-0.25"), (0, "0"), ("no", "no")])
def test_numbers_in_words(value, words):
    assert in_words(value) == words
