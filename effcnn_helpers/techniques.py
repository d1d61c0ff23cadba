"""The paper's eight techniques: their names and settings, and what each one is in Composer or torch."""

from collections.abc import Iterable

# In the order in which folder names and configurations list them.
TECHNIQUES = ("one_cycle_lr", "cutout", "blurpool", "squeeze_excite", "mixup", "label_smoothing", "sam", "swa")


def check_techniques(techniques: tuple[str, ...]) -> None:
    """Raise ValueError unless these are techniques of the paper, in order, that can be used together."""
    unknown = [name for name in techniques if name not in TECHNIQUES]
    if unknown:
        raise ValueError(f"unknown technique {unknown[0]!r}; the techniques of the paper are {', '.join(TECHNIQUES)}")
    if techniques != in_order(techniques):
        raise ValueError(f"techniques are {techniques}; write each once and in this order: {in_order(techniques)}")
    if "one_cycle_lr" in techniques and "swa" in techniques:
        raise ValueError("one_cycle_lr and swa contradict each other: SWA averages what a rate that stays high "
                         "wanders through, and One Cycle has brought the rate to almost 0 by then; leave one out")


def in_order(techniques: Iterable[str]) -> tuple[str, ...]:
    """The techniques without repeats, in the order of TECHNIQUES; unknown names last."""
    names = dict.fromkeys(techniques)
    return (*(name for name in TECHNIQUES if name in names), *(name for name in names if name not in TECHNIQUES))
