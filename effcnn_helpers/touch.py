"""What a learner moves and guesses: widgets in a live notebook, the same thing standing still elsewhere.

"Elsewhere" is wherever nothing listens: a committed notebook on GitHub, the HTML edition, a regression
run. There `EFFCNN_PROGRESS` is 0.
"""

import functools
import html
from collections.abc import Callable

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.figure import Figure

from . import plots, settings


def touch(draw: Callable, **controls) -> None:
    """Let a learner move the arguments of `draw`; without widgets, draw once with its defaults.

    Args:
        draw: draws one figure from its arguments, which all have defaults, and need not show it.
            It is called at every move, so what is slow is computed before, in a cell of its own.
        controls: for each argument a range (least, greatest), a range with a step, a list of
            choices, a dict of them by label, or a widget: as for `ipywidgets.interactive`.
    """
    if not settings.progress_shown():
        draw()
        plt.show()
        return
    # Not ipywidgets' own output area: a front end that is slow to show it would put the first picture elsewhere.
    picture = ipywidgets.HTML()

    @functools.wraps(draw)
    def redraw(**values):
        others = set(plt.get_fignums())
        draw(**values)
        figures = [plt.figure(number) for number in plt.get_fignums() if number not in others]
        picture.value = "".join(map(image_tag, figures))
        for figure in figures:
            plt.close(figure)

    panel = ipywidgets.interactive(redraw, **controls)  # begins with the defaults of `draw`
    for control in panel.children[:-1]:
        control.style.description_width = "initial"
        control.layout.width = "min(95%, 480px)"
        if isinstance(control, ipywidgets.FloatSlider):  # its own two decimals round 0.125 up
            control.readout_format = f".{len(f'{control.step:g}'.partition('.')[2])}f"
    display(ipywidgets.VBox([panel, picture]))


def image_tag(figure: Figure) -> str:
    """A figure as HTML, with its description for whoever cannot see it."""
    data, metadata = plots.png_with_words(figure)
    words = html.escape(metadata["alt"], quote=True)
    return f'<img style="max-width: 100%" alt="{words}" src="data:image/png;base64,{data}">'


class Guess:
    """A learner's guess, made before the result is computed and remembered until it is shown.

    As the last line of a cell it shows its question with something to fill in.
    """

    def __init__(self, question: str, choices: list[str] | None = None):
        """choices: the answers to choose from; without them, the guess is a number."""
        self.question = question
        self.choices = choices
        if choices:
            self.widget = ipywidgets.ToggleButtons(options=choices, value=None)
            self.widget.style.button_width = "max-content"
        else:
            self.widget = ipywidgets.Text(placeholder="a number", layout={"width": "160px"})

    def _ipython_display_(self) -> None:
        if not settings.progress_shown():
            options = f" ({' · '.join(self.choices)})" if self.choices else ""
            print(f"Your guess: {self.question}{options}")
            return
        question = ipywidgets.HTML(f"<b>Your guess:</b> {self.question}")
        display(ipywidgets.VBox([question, self.widget]))

    @property
    def value(self) -> str | float | None:
        """What was guessed: one of the choices, or a number; None without a guess that is one."""
        answer = self.widget.value
        if self.choices or not answer:
            return answer or None
        try:
            return float(answer.replace(",", "").replace("%", ""))
        except ValueError:
            return None

    def against(self, result: str | float, unit: str = "") -> None:
        """Print the result with the guess beside it.

        Raises ValueError for a result that is none of the choices.
        """
        if self.choices and result not in self.choices:
            raise ValueError(f"the result is {result!r}; the choices are {', '.join(self.choices)}")
        guessed = self.value
        if guessed is None:
            said = "You made no guess"
        elif guessed == result:
            said = "As you guessed"
        else:
            said = f"You guessed {in_words(guessed)}{unit}"
            if isinstance(guessed, float) and not isinstance(result, str):
                side = "high" if guessed > result else "low"
                said += f", {in_words(abs(guessed - result))}{unit} too {side}"
        print(f"{self.question} {in_words(result)}{unit}. {said}.")


def in_words(value: str | float) -> str:
    """A number with its thousands apart and at most three decimals; a text as it is."""
    if isinstance(value, str):
        return value
    return f"{value:,.3f}".rstrip("0").rstrip(".")
