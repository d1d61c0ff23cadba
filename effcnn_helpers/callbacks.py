"""What Composer's Trainer calls while it trains. Imports Composer: `training` loads it when a run starts."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from composer import Callback
from composer.algorithms.sam import SAMOptimizer
from composer.models import ComposerClassifier
from composer.utils import dist
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn, update_bn
from tqdm.auto import tqdm

from .batches import BatchLoader
from .errors import EffcnnError

TEACHER_SHARE, TEMPERATURE = 0.9, 4.0  # of a student's loss


class DivergedError(EffcnnError):
    """The training loss is no longer a finite number."""


class History(Callback):
    """Keeps one row per epoch, tells the loader which epoch it is, stops a run whose loss is not finite.

    rows: dicts of train_loss (mean over the epoch's images while they trained), test_loss,
    test_accuracy_percent, learning_rate, seconds (training alone). Part of Composer's checkpoints.
    """

    def __init__(self, loader: BatchLoader, on_epoch: Callable[[list[dict]], None] | None = None):
        self.loader, self.on_epoch = loader, on_epoch
        self.rows: list[dict] = []

    def epoch_start(self, state, logger):
        self.loader.epoch = state.timestamp.epoch.value
        self.learning_rate = state.optimizers[0].param_groups[0]["lr"]
        self.loss_sum, self.images = 0.0, 0
        self.started = time.perf_counter()

    def batch_end(self, state, logger):
        loss = state.total_loss_dict["loss/train/total"]
        self.refuse_unless_finite(loss, f"training loss in epoch {state.timestamp.epoch.value + 1}, batch "
                                        f"{state.timestamp.batch_in_epoch.value},")
        images = state.timestamp.sample_in_epoch.value  # of all processes, as the loss is their mean
        self.loss_sum += loss * (images - self.images)
        self.images = images

    def epoch_end(self, state, logger):
        self.seconds = time.perf_counter() - self.started

    def eval_start(self, state, logger):
        for statistics in state.model.buffers():  # each process has its own since the last step, the first one's count
            dist.broadcast(statistics, src=0)

    def eval_end(self, state, logger):
        metrics = state.eval_metrics["eval"]
        test_loss = metrics["CrossEntropy"].compute().item()
        # The last step of a run shows what it did to the weights only here.
        self.refuse_unless_finite(test_loss, f"test loss after epoch {state.timestamp.epoch.value}")
        self.rows.append({
            "train_loss": self.loss_sum / len(self.loader.images),
            "test_loss": test_loss,
            "test_accuracy_percent": 100 * metrics["MulticlassAccuracy"].compute().item(),
            "learning_rate": self.learning_rate,
            "seconds": self.seconds,
        })
        if self.on_epoch:
            self.on_epoch(self.rows)

    def refuse_unless_finite(self, loss: float, what: str):
        if not math.isfinite(loss):
            raise DivergedError(f"the {what} is {loss} at learning rate {self.learning_rate:g}; use a smaller "
                                "Recipe.learning_rate")

    def state_dict(self):
        return {"rows": self.rows}

    def load_state_dict(self, state):
        self.rows = state["rows"]


class ProgressBar(Callback):
    """One bar for the whole run, gone when it ends: a widget in a notebook, text in a terminal."""

    def __init__(self, label: str, epochs: int, history: History):
        self.label, self.epochs, self.history = label, epochs, history

    def fit_start(self, state, logger):
        per_epoch = len(self.history.loader)
        self.bar = tqdm(total=self.epochs * per_epoch, initial=state.timestamp.batch.value,
                        desc=self.label, unit="batch", leave=False, dynamic_ncols=True)

    def batch_end(self, state, logger):
        self.bar.update()

    def eval_end(self, state, logger):
        row = self.history.rows[-1]
        self.bar.set_postfix_str(f"epoch {len(self.history.rows)}/{self.epochs}, loss {row['train_loss']:.3f}, "
                                 f"accuracy {row['test_accuracy_percent']:.2f} %")

    def close(self, state, logger):
        if hasattr(self, "bar"):
            self.bar.close()


class FreshStatistics(Callback):
    """After the last epoch, measures BatchNorm's running statistics anew over the training images.

    Averaged weights have never seen an image, and Composer's SWA leaves them with the statistics of the
    last weights that have. And weights that saw augmented images have the statistics of those. Comes before the
    evaluation and the checkpoint of that epoch.
    """

    def __init__(self, loader: BatchLoader):
        self.loader = loader

    def epoch_end(self, state, logger):
        if state.timestamp.epoch == state.max_duration:
            network = (state.model.module if state.is_model_ddp else state.model).module
            update_bn(self.loader, network, device=next(network.parameters()).device)


class MovingAverage(Callback):
    """Keeps an exponential moving average of the weights and of BatchNorm's statistics; it is evaluated and kept.

    After each batch the average takes over 1 - 2 ** (-1 / half_life) of the difference, so that what a batch did to
    it counts half after `half_life` batches more. Training goes on from the weights themselves. Part of Composer's
    checkpoints; that of the last epoch holds the average as the network's weights.
    """

    def __init__(self, half_life: float):
        self.move = get_ema_multi_avg_fn(0.5 ** (1 / half_life))
        self.mean: list[torch.Tensor] = []

    def fit_start(self, state, logger):
        # A state dict shares its memory with the network. It also counts batches, in whole numbers: no mean of those.
        self.values = [value for value in state.model.state_dict().values() if value.is_floating_point()]
        self.mean = [mean.to(value.device) for mean, value in zip(self.mean or self.values, self.values, strict=True)]
        self.mean = [mean.clone() for mean in self.mean]

    def batch_end(self, state, logger):
        self.move(self.mean, self.values, None)

    def epoch_end(self, state, logger):
        self.swap()

    def eval_end(self, state, logger):
        if state.timestamp.epoch < state.max_duration:
            self.swap()

    def swap(self):
        """Exchange the network's weights with their average."""
        for mean, value in zip(self.mean, self.values, strict=True):
            weights = value.clone()
            value.copy_(mean)
            mean.copy_(weights)

    def state_dict(self):
        return {"mean": self.mean}

    def load_state_dict(self, state):
        self.mean = state["mean"]


class Student(ComposerClassifier):
    """Learns from the labels and from the answers of a larger network that is trained already (Hinton et al., 2015).

    Its loss is (1 - TEACHER_SHARE) of the cross-entropy and TEACHER_SHARE T² of the Kullback-Leibler divergence from
    the teacher's softmax to its own, both of logits divided by the TEMPERATURE T, which brings out how likely the
    teacher finds each wrong class.
    """

    def __init__(self, network: nn.Module, teacher: nn.Module, **options):
        super().__init__(network, **options)
        self.teachers = [teacher]  # in a list it is no part of what is trained, saved and put into training mode

    def loss(self, outputs, batch, *args, **kwargs):
        [teacher] = self.teachers
        with torch.no_grad():
            answers = teacher.to(outputs.device)(batch[0])
        divergence = functional.kl_div((outputs / TEMPERATURE).log_softmax(dim=1),
                                       (answers / TEMPERATURE).softmax(dim=1), reduction="batchmean")
        labels = super().loss(outputs, batch, *args, **kwargs)
        return (1 - TEACHER_SHARE) * labels + TEACHER_SHARE * TEMPERATURE**2 * divergence


class SharpnessAware(SAMOptimizer):
    """Composer's SAM optimizer around another one, with three repairs.

    A SAM step passes its batch through the network twice, at the weights and at the worst point near
    them. Here the second pass
    - leaves BatchNorm's running statistics alone, which belong to the weights themselves;
    - draws the same random numbers as the first, so that Mixup blends the same images.
    And the state of the inner optimizer (its momentum) is part of a checkpoint.
    """

    def __init__(self, base_optimizer: torch.optim.Optimizer, network: nn.Module, rho: float):
        # The inner defaults are what a OneCycleLR looks for.
        super().__init__(base_optimizer, rho=rho, **base_optimizer.defaults)
        self.network = network

    def step(self, closure=None):
        if closure is None:  # how a checkpoint's loading fills an empty state
            return self.base_optimizer.step()
        first_pass = None

        def same_batch(**options):
            nonlocal first_pass
            if first_pass is None:
                first_pass = torch.get_rng_state(), np.random.get_state()
                return closure(**options)
            torch.set_rng_state(first_pass[0])
            np.random.set_state(first_pass[1])
            with running_statistics_kept(self.network):
                return closure(**options)

        return super().step(same_batch)

    def state_dict(self):
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict):
        self.base_optimizer.load_state_dict(state_dict)
        self.param_groups = self.base_optimizer.param_groups


@contextlib.contextmanager
def running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """BatchNorm normalises by the batch as ever, but its running statistics stay as they are."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
