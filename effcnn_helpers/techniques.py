"""The paper's eight techniques: what each one is in Composer or torch, with its settings.

Four act on one thing each: One Cycle on the learning rate, Cutout and Mixup on the training images, label
smoothing on the labels. Two change the network (BlurPool, Squeeze-and-Excite), two the way its weights
are found (SAM, SWA). Where the paper gives no setting, Composer's or torch's default is used. Composer is
imported when a technique is.
"""

import copy
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from .errors import EffcnnError, look_up

if TYPE_CHECKING:
    from composer import Algorithm

    from .recipes import Recipe

ONE_CYCLE_RISE = 0.5            # share of the steps with a rising rate (section III.K); torch's default is 0.3
CUTOUT_PIXELS = 10              # side of the square hole (III.G)
SQUEEZE_EXCITE_LATENT = 0.125   # hidden units of a block, as a share of its channels
MIXUP_ALPHA = 0.2               # of the Beta distribution; Composer's default
LABEL_SMOOTHING = 0.1           # III.J
SAM_RHO = 0.05                  # Composer's default
SWA_START = 0.75                # share of the training before the first average (III.E); then one every epoch
SWA_RATE = 0.5                  # what a falling rate ends at there, as a share of the highest


@dataclass(frozen=True)
class Technique:
    """One technique: its names, what the rest of the code asks about it, and where it acts.

    abbreviation: as in the paper's Table 5. color: in every plot.
    comes_to_rest: whether it ends a run at rest that a constant rate would leave in a zigzag.
    passes: how often a training step passes its batch through the network.
    fresh_statistics: whether BatchNorm's statistics must be measured anew after the last epoch.
    excludes: techniques that contradict it, and why. alone: why several processes cannot share its batches.

    Its hooks, None where it does not act:
    - change_network: network -> None, in place; raises EffcnnError when it finds nothing to change.
    - algorithm: side of the images in pixels -> Composer's algorithm that acts while a run trains.
    - wrap_optimizer: (optimizer, network) -> optimizer.
    - schedule: (optimizer, recipe, number of steps) -> torch's scheduler in the recipe's place, to be
      stepped after every batch.
    """

    name: str
    label: str
    abbreviation: str
    color: str
    comes_to_rest: bool = False
    passes: int = 1
    fresh_statistics: bool = False
    excludes: Mapping[str, str] = field(default_factory=dict)
    alone: str = ""
    change_network: Callable[[nn.Module], None] | None = None
    algorithm: Callable[[int], "Algorithm"] | None = None
    wrap_optimizer: Callable[[Optimizer, nn.Module], Optimizer] | None = None
    schedule: Callable[[Optimizer, "Recipe", int], LRScheduler] | None = None


def one_cycle(optimizer: Optimizer, highest_rate: float, steps: int) -> OneCycleLR:
    """torch's schedule over `steps` batches: from a 25th of the highest rate up to it, and down to almost 0.

    To be stepped after every batch. As is torch's default, momentum (0.85 to 0.95) runs against the rate.
    Raises EffcnnError for fewer than 3 steps, too few for a rise and a fall.
    """
    if steps < 3:
        raise EffcnnError(f"one_cycle_lr needs 3 steps or more, and this run has {steps}; use more images or epochs")
    return OneCycleLR(optimizer, max_lr=highest_rate, total_steps=steps, pct_start=ONE_CYCLE_RISE)


def cutout(image_side: int) -> "Algorithm":
    """Composer's Cutout: one hole for the whole batch."""
    from composer.algorithms import CutOut

    # Composer takes a fraction of the side and checks nothing: 10 would mean ten times the image.
    return CutOut(length=CUTOUT_PIXELS / image_side)


def blurpool(network: nn.Module) -> None:
    """A blur before every max-pool's subsampling."""
    from composer.algorithms.blurpool.blurpool_layers import BlurMaxPool2d
    from composer.functional import apply_blurpool

    apply_blurpool(network)
    if not any(isinstance(module, BlurMaxPool2d) for module in network.modules()):
        raise EffcnnError("blurpool found no max-pool in this network; leave the technique out or change the network")


def squeeze_excite(network: nn.Module) -> None:
    """A block after every convolution with at least as many channels, in and out, as the first one makes.

    Composer's own limit, 128 channels, would leave the networks of this series as they are.
    """
    from composer.algorithms.squeeze_excite.squeeze_excite import SqueezeExciteConv2d
    from composer.functional import apply_squeeze_excite

    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    least = convolutions[0].out_channels if convolutions else 1
    apply_squeeze_excite(network, latent_channels=SQUEEZE_EXCITE_LATENT, min_channels=least)
    if not any(isinstance(module, SqueezeExciteConv2d) for module in network.modules()):
        raise EffcnnError(f"squeeze_excite found no convolution with {least} or more channels in and out in this "
                          "network; leave the technique out or change the network")


def mixup(image_side: int) -> "Algorithm":
    """Composer's Mixup: one share for the whole batch."""
    from composer.algorithms import MixUp

    return MixUp(alpha=MIXUP_ALPHA)


def label_smoothing(image_side: int) -> "Algorithm":
    """Composer's label smoothing."""
    from composer.algorithms import LabelSmoothing

    return LabelSmoothing(smoothing=LABEL_SMOOTHING)


def sharpness_aware(optimizer: Optimizer, network: nn.Module) -> Optimizer:
    """Composer's SAM around an optimizer, with our repairs."""
    from .callbacks import SharpnessAware

    return SharpnessAware(optimizer, network, rho=SAM_RHO)


def weight_averaging(image_side: int) -> "Algorithm":
    """Composer's SWA, to the very end."""
    from composer.algorithms import SWA

    # Composer warns that it leaves BatchNorm statistics stale; callbacks.FreshStatistics sees to them.
    logging.getLogger("composer.algorithms.swa.swa").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):
        return SWA(swa_start=f"{SWA_START}dur", swa_end="1dur", update_interval="1ep")


def averaging_rate(optimizer: Optimizer, recipe: "Recipe", steps: int) -> LRScheduler:
    """A falling rate falls to SWA_RATE when the averaging starts and stays there; a constant one stays as it is.

    A mean is worth something only of weights that still move.
    """
    return recipe.scheduler(optimizer, steps, falls_to=SWA_RATE, falls_until=SWA_START)


# In the order in which folder names, configurations and Composer's algorithms have them. Mixup comes before label
# smoothing: the other way round, Composer would blend smoothed labels of one image with hard labels of the other.
TECHNIQUES = {technique.name: technique for technique in (
    Technique("one_cycle_lr", "One Cycle LR", "OCLR", "#0173b2", comes_to_rest=True,
              excludes={"swa": "SWA averages what a rate that stays high wanders through, and One Cycle brings the "
                               "rate to almost 0"},
              schedule=lambda optimizer, recipe, steps: one_cycle(optimizer, recipe.learning_rate, steps)),
    Technique("cutout", "Cutout", "CO", "#de8f05", algorithm=cutout),
    Technique("blurpool", "BlurPool", "BP", "#029e73", change_network=blurpool),
    Technique("squeeze_excite", "Squeeze-and-Excite", "SE", "#d55e00", change_network=squeeze_excite),
    Technique("mixup", "Mixup", "M", "#cc78bc", algorithm=mixup),
    Technique("label_smoothing", "Label smoothing", "LS", "#ca9161", algorithm=label_smoothing),
    Technique("sam", "SAM", "SAM", "#882255", passes=2, wrap_optimizer=sharpness_aware,
              alone="SAM looks for the worst point of a whole batch, and each process knows its share alone"),
    Technique("swa", "SWA", "SWA", "#56b4e9", comes_to_rest=True, fresh_statistics=True,
              alone="Composer's SWA cannot go on from a checkpoint of several processes",
              algorithm=weight_averaging, schedule=averaging_rate),
)}


def technique_of(name: str) -> Technique:
    """A technique's entry. Raises EffcnnError, listing the techniques, for an unknown name."""
    return look_up("technique", name, TECHNIQUES)


def chosen(techniques: Iterable[str]) -> list[Technique]:
    """The entries of several techniques, in their order. Raises EffcnnError for what is no list of known names."""
    if isinstance(techniques, str | bytes) or not isinstance(techniques, Iterable):
        raise EffcnnError(f"techniques are {techniques!r}; use a list of names such as ['sam']")
    return [technique_of(name) for name in techniques]


def check_techniques(techniques: tuple[str, ...]) -> None:
    """Raise EffcnnError unless these are known techniques, in order, that can be used together."""
    entries = chosen(techniques)
    if techniques != in_order(techniques):
        raise EffcnnError(f"techniques are {techniques!r}; write each once and in this order: {in_order(techniques)!r}")
    for entry in entries:
        for other in set(entry.excludes) & set(techniques):
            raise EffcnnError(f"{entry.name} and {other} contradict each other: {entry.excludes[other]}; leave one of "
                              "them out")
    with_schedule = [entry.name for entry in entries if entry.schedule]
    if len(with_schedule) > 1:
        raise EffcnnError(f"{' and '.join(with_schedule)} each bring a learning rate schedule; leave one of them out")


def in_order(techniques: Iterable[str]) -> tuple[str, ...]:
    """The techniques without repeats, in the order of TECHNIQUES. Raises EffcnnError as `chosen` does."""
    names = [entry.name for entry in chosen(techniques)]
    return tuple(name for name in TECHNIQUES if name in names)


def add_to_network(network: nn.Module, techniques: tuple[str, ...]) -> nn.Module:
    """The network with the techniques that change it, as BlurPool and Squeeze-and-Excite do. Then make the optimizer.

    Works in place. Raises EffcnnError when a technique finds nothing to change, which Composer lets pass
    in silence; the network is then as it was.
    """
    changes = [technique.change_network for technique in chosen(techniques) if technique.change_network]
    if not changes:
        return network
    with torch.random.fork_rng(devices=[]):  # the trial must not move the weights that are drawn next
        trial = copy.deepcopy(network)
        for change in changes:
            change(trial)
    for change in changes:
        change(network)
    return network


def make_algorithms(techniques: tuple[str, ...], image_side: int) -> list:
    """Composer's algorithms for the techniques that act while a run trains. image_side: in pixels."""
    return [technique.algorithm(image_side) for technique in chosen(techniques) if technique.algorithm]


def labels_of(techniques: tuple[str, ...]) -> str:
    """Techniques as tables and figures write them: "BlurPool + Mixup", or "baseline"."""
    return " + ".join(TECHNIQUES[name].label for name in techniques) or "baseline"
