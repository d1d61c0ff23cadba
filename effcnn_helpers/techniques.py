"""The paper's eight techniques: their names and settings, and what each one is in Composer or torch.

Four act on one thing each: `one_cycle_lr` on the learning rate, `cutout` and `mixup` on the training
images, `label_smoothing` on the labels. Two change the network (`blurpool`, `squeeze_excite`), two the
way its weights are found (`sam`, `swa`). Where the paper gives no setting, Composer's or torch's default
is used. Composer is imported when a technique is.
"""

import logging
import warnings
from collections.abc import Iterable

import torch
from torch import nn

# In the order in which folder names and configurations list them; labels as in the paper's tables.
TECHNIQUES = {
    "one_cycle_lr": "One Cycle LR",
    "cutout": "Cutout",
    "blurpool": "BlurPool",
    "squeeze_excite": "Squeeze-and-Excite",
    "mixup": "Mixup",
    "label_smoothing": "Label smoothing",
    "sam": "SAM",
    "swa": "SWA",
}

ONE_CYCLE_RISE = 0.5            # share of the steps with a rising rate (section III.K); torch's default is 0.3
CUTOUT_PIXELS = 10              # side of the square hole (III.G)
SQUEEZE_EXCITE_LATENT = 0.125   # hidden units of a block, as a share of its channels
SQUEEZE_EXCITE_MIN_CHANNELS = {"mnist": 8, "cifar10": 16}  # Composer's 128 would leave these networks as they are
MIXUP_ALPHA = 0.2               # of the Beta distribution; Composer's default
LABEL_SMOOTHING = 0.1           # III.J
SAM_RHO = 0.05                  # Composer's default
SWA_START = 0.75                # share of the training before the first average (III.E); then one every epoch


def check_techniques(techniques: tuple[str, ...]) -> None:
    """Raise ValueError unless these are techniques of the paper, in order, that can be used together."""
    unknown = [name for name in techniques if name not in TECHNIQUES]
    if unknown:
        raise ValueError(f"unknown technique {unknown[0]!r}; the techniques of the paper are {', '.join(TECHNIQUES)}")
    if techniques != in_order(techniques):
        raise ValueError(f"techniques are {techniques!r}; write each once and in this order: {in_order(techniques)!r}")
    if "one_cycle_lr" in techniques and "swa" in techniques:
        raise ValueError("one_cycle_lr and swa contradict each other: SWA averages what a rate that stays high "
                         "wanders through, and One Cycle brings the rate to almost 0; leave one of them out")


def in_order(techniques: Iterable[str]) -> tuple[str, ...]:
    """The techniques without repeats, in the order of TECHNIQUES; unknown names last."""
    names = dict.fromkeys(techniques)
    return (*(name for name in TECHNIQUES if name in names), *(name for name in names if name not in TECHNIQUES))


def add_to_network(network: nn.Module, techniques: tuple[str, ...], dataset: str) -> nn.Module:
    """The network with the techniques that change it, in place: BlurPool, Squeeze-and-Excite. Then make the optimizer.

    Raises ValueError when a technique finds nothing to change, which Composer lets pass in silence.
    """
    if not {"blurpool", "squeeze_excite"} & set(techniques):
        return network
    from composer.algorithms.blurpool.blurpool_layers import BlurMaxPool2d
    from composer.algorithms.squeeze_excite.squeeze_excite import SqueezeExciteConv2d
    from composer.functional import apply_blurpool, apply_squeeze_excite

    if "blurpool" in techniques:
        apply_blurpool(network)
        _refuse_unless_any(BlurMaxPool2d, network, "blurpool found no max-pool")
    if "squeeze_excite" in techniques:
        channels = SQUEEZE_EXCITE_MIN_CHANNELS[dataset]
        apply_squeeze_excite(network, latent_channels=SQUEEZE_EXCITE_LATENT, min_channels=channels)
        _refuse_unless_any(SqueezeExciteConv2d, network,
                           f"squeeze_excite found no convolution with {channels} or more channels in and out")
    return network


def _refuse_unless_any(kind: type[nn.Module], network: nn.Module, problem: str) -> None:
    if not any(isinstance(module, kind) for module in network.modules()):
        raise ValueError(f"{problem} in this network; leave the technique out or change the network")


def make_algorithms(techniques: tuple[str, ...], image_side: int) -> list:
    """Composer's algorithms for the techniques that act while a run trains, in the order that they need.

    image_side: height and width of the images. Mixup comes before label smoothing: the other way round,
    Composer would blend smoothed labels of one image with hard labels of the other.
    """
    from composer.algorithms import SWA, CutOut, LabelSmoothing, MixUp

    algorithms = []
    if "cutout" in techniques:
        # Composer takes a fraction of the side and checks nothing: 10 would mean ten times the image.
        algorithms.append(CutOut(length=CUTOUT_PIXELS / image_side))
    if "mixup" in techniques:
        algorithms.append(MixUp(alpha=MIXUP_ALPHA))
    if "label_smoothing" in techniques:
        algorithms.append(LabelSmoothing(smoothing=LABEL_SMOOTHING))
    if "swa" in techniques:
        # Composer warns that it leaves BatchNorm statistics stale; callbacks.FreshStatistics sees to them.
        logging.getLogger("composer.algorithms.swa.swa").setLevel(logging.ERROR)
        with warnings.catch_warnings(action="ignore"):
            algorithms.append(SWA(swa_start=f"{SWA_START}dur", swa_end="1dur", update_interval="1ep"))
    return algorithms


def one_cycle(optimizer: torch.optim.Optimizer, highest_rate: float,
              steps: int) -> torch.optim.lr_scheduler.OneCycleLR:
    """torch's schedule over `steps` batches: from a 25th of the highest rate up to it, and down to almost 0.

    To be stepped after every batch. As is torch's default, momentum (0.85 to 0.95) runs against the rate.
    Raises ValueError for fewer than 3 steps, too few for a rise and a fall.
    """
    if steps < 3:
        raise ValueError(f"one_cycle_lr needs 3 steps or more, and this run has {steps}; use more images or epochs")
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=highest_rate, total_steps=steps,
                                               pct_start=ONE_CYCLE_RISE)


def labels_of(techniques: tuple[str, ...]) -> str:
    """Techniques as tables and figures write them: "BlurPool + Mixup", or "baseline"."""
    return " + ".join(TECHNIQUES[name] for name in techniques) or "baseline"
