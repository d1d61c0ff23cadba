"""Training through Composer's Trainer: a RunConfig in, a RunRecord and the trained model out."""

import copy
import io
import os
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from . import techniques
from .data import BatchLoader, DataError, ImageDataset, Images
from .machine import describe_environment, describe_git, now, tune_allocator
from .models import IMAGE_SHAPES, build_model, count_parameters
from .recipes import RECIPE_VERSION, RunConfig

SCHEMA_VERSION = 2
EVAL_BATCH = 500
FRESH_IMAGES, FRESH_BATCH = 10_000, 128  # how many training images, in which batches, fresh statistics come from


@dataclass(frozen=True)
class RunRecord:
    """A finished run, as plain data.

    epochs: one dict per epoch (see callbacks.History); a curve to look at, never to choose by.
    correct, total: of the images of config.evaluate_on, after the last epoch.
    fresh_correct: likewise with fresh BatchNorm statistics (see `fresh_correct`); None where that was not measured.
    misclassified: index of each wrongly classified image -> the class it was taken for.
    bytes: size of the weights as "safetensors" and as a pickled "state_dict".
    train_seconds: training alone, without evaluation. resumed: whether the run was interrupted on its way.
    """

    schema_version: int
    recipe_version: int
    config: RunConfig
    parameters: int
    epochs: list[dict]
    correct: int
    fresh_correct: int | None
    total: int
    misclassified: dict[int, int]
    bytes: dict[str, int]
    data: dict
    environment: dict
    git: dict
    started: str
    ended: str
    train_seconds: float
    resumed: bool

    @property
    def accuracy_percent(self) -> float:
        return 100 * self.correct / self.total


def split_for(config: RunConfig, dataset: ImageDataset) -> tuple[Images, Images]:
    """The (training, evaluation) images of a run. Raises DataError when the dataset has too few or is another."""
    if dataset.name != config.dataset:
        raise DataError(f"{config.model} is a {config.dataset} model, but the dataset given is {dataset.name}")
    if config.evaluate_on == "validation":
        dataset = dataset.validation_split()
    return dataset.train.first(config.train_images), dataset.test.first(config.test_images)


def train(config: RunConfig, dataset: ImageDataset, checkpoints: Path | None = None, progress: bool | None = None,
          threads: int | None = None,
          on_epoch: Callable[[list[dict]], None] | None = None) -> tuple[RunRecord, nn.Module]:
    """Train one model from scratch, on the GPU where there is one.

    checkpoints: a folder for a checkpoint per epoch; when it already holds some of this very run, training
    goes on from the last whole one and ends with the weights of an undisturbed run. Composer unpickles
    these checkpoints, so the folder must be your own.
    progress: show a bar (default: unless EFFCNN_PROGRESS=0). threads: CPU threads (default: torch's choice).
    on_epoch: called after each epoch with the rows so far (see callbacks.History).
    Raises DataError when the dataset does not fit the configuration, DivergedError when the loss is no
    longer finite.
    """
    import composer
    from composer.optim import ConstantScheduler
    from torchmetrics import MetricCollection

    from .callbacks import FreshStatistics, History, ProgressBar

    tune_allocator()
    if threads is not None:
        torch.set_num_threads(threads)
    train_images, test_images = split_for(config, dataset)
    started = now()

    # Composer's own seeding comes after the model is built, too late for the initial weights.
    composer.utils.reproducibility.seed_all(config.seed)
    network = build_network(config).to(memory_format=torch.channels_last)
    loader = BatchLoader(train_images, config.dataset, config.batch_size, shuffle=True, seed=config.seed)
    history = History(loader, on_epoch)
    callbacks = [history]
    if "swa" in config.techniques:
        callbacks.append(FreshStatistics(BatchLoader(train_images, config.dataset, EVAL_BATCH)))
    if progress is None:
        progress = os.environ.get("EFFCNN_PROGRESS", "1") != "0"
    if progress:
        callbacks.append(ProgressBar(f"{config.model} seed {config.seed}", config.epochs, history))
    resume_from = last_whole_checkpoint(checkpoints)
    model = composer.models.ComposerClassifier(
        network, num_classes=10,
        train_metrics=MetricCollection([]),  # accuracy on training batches costs time; nothing here shows it
    )
    optimizer = make_optimizer(config, network)
    one_cycle = "one_cycle_lr" in config.techniques
    trainer = composer.Trainer(
        model=model,
        train_dataloader=composer.core.DataSpec(loader, split_batch=whole_batch),
        eval_dataloader=composer.core.DataSpec(
            BatchLoader(test_images, config.dataset, EVAL_BATCH), split_batch=whole_batch),
        optimizers=optimizer,
        schedulers=(techniques.one_cycle(optimizer, config.learning_rate, config.epochs * len(loader)) if one_cycle
                    else ConstantScheduler()),
        step_schedulers_every_batch=True,  # left to itself, Composer steps torch's schedulers once an epoch
        algorithms=techniques.make_algorithms(config.techniques, IMAGE_SHAPES[config.dataset][-1]),
        max_duration=f"{config.epochs}ep",
        callbacks=callbacks,
        seed=config.seed,
        device="gpu" if torch.cuda.is_available() else "cpu",
        precision="fp32",
        run_name=config.name.replace("/", "-"),
        progress_bar=False,
        load_path=str(resume_from) if resume_from else None,
        load_progress_bar=False,
        save_folder=str(checkpoints) if checkpoints else None,
        save_filename="ep{epoch}.pt",
        save_latest_filename=None,
        save_overwrite=True,
        save_num_checkpoints_to_keep=2,
        spin_dataloaders=False,  # the loader's order depends on (seed, epoch) alone
    )
    try:
        # A run killed after its last checkpoint has nothing left to train.
        if trainer.state.timestamp.epoch.value < config.epochs:
            with warnings.catch_warnings():
                # Blended labels sum to 1 but for rounding.
                warnings.filterwarnings("ignore", "Some targets have less than 1 total probability")
                trainer.fit()
    finally:
        trainer.close()

    network = network.cpu().eval()
    predicted = predict(network, test_images, config.dataset).argmax(dim=1)
    wrong = (predicted != test_images.y).nonzero().flatten().tolist()
    record = RunRecord(
        schema_version=SCHEMA_VERSION,
        recipe_version=RECIPE_VERSION[config.dataset],
        config=config,
        parameters=count_parameters(network),
        epochs=history.rows,
        correct=len(test_images) - len(wrong),
        fresh_correct=None,
        total=len(test_images),
        misclassified={index: predicted[index].item() for index in wrong},
        bytes=weight_bytes(network),
        data={"source": dataset.source, "real": dataset.real, "sha256": dataset.sha256},
        environment=describe_environment(),
        git=describe_git(),
        started=started,
        ended=now(),
        train_seconds=sum(row["seconds"] for row in history.rows),
        resumed=resume_from is not None,
    )
    return record, network


def build_network(config: RunConfig) -> nn.Module:
    """A fresh network of a configuration, with the techniques that change it; weights from torch's global generator."""
    return techniques.add_to_network(build_model(config.model), config.techniques, config.dataset)


def whole_batch(batch, microbatch_size) -> list:
    """For Composer's DataSpec: keep batches whole (it would warn at each last, smaller one of an epoch)."""
    return [batch]


def make_optimizer(config: RunConfig, network: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum 0.9, or Adam; the configuration's learning rate, no weight decay; inside SAM if so asked."""
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(network.parameters(), lr=config.learning_rate, momentum=0.9)
    else:
        optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
    if "sam" in config.techniques:
        from .callbacks import SharpnessAware

        return SharpnessAware(optimizer, network, rho=techniques.SAM_RHO)
    return optimizer


def last_whole_checkpoint(folder: Path | None) -> Path | None:
    """The checkpoint of the highest epoch in a folder; one cut off while it was written is passed over."""
    if folder is None or not folder.is_dir():
        return None
    found = sorted(folder.glob("ep*.pt"), key=lambda path: int(path.stem[2:]), reverse=True)
    return next((path for path in found if zipfile.is_zipfile(path)), None)


@torch.inference_mode()
def predict(network: nn.Module, images: Images, name: str) -> torch.Tensor:
    """Logits (N, 10) for all images of a split, by the network in evaluation mode on the CPU."""
    network.eval()
    return torch.cat([network(x) for x, _ in BatchLoader(images, name, EVAL_BATCH)])


def fresh_correct(network: nn.Module, config: RunConfig, dataset: ImageDataset) -> int:
    """Right answers of a run's network on its evaluation images, with BatchNorm's statistics measured anew.

    Over the first 10,000 of its training images; the network stays as it is. At a constant learning rate the running
    statistics lag behind the weights, so this tells less of the moment at which training stopped.
    """
    train_images, test_images = split_for(config, dataset)
    fresh = copy.deepcopy(network)
    update_bn(BatchLoader(train_images.first(min(FRESH_IMAGES, len(train_images))), config.dataset, FRESH_BATCH), fresh)
    return (predict(fresh, test_images, config.dataset).argmax(dim=1) == test_images.y).sum().item()


def weight_bytes(network: nn.Module) -> dict[str, int]:
    """Size on disk of a network's weights, in bytes, in two formats."""
    pickled = io.BytesIO()
    torch.save(network.state_dict(), pickled)
    return {"safetensors": len(safetensors.torch.save(contiguous_state(network))),
            "state_dict": len(pickled.getvalue())}


def contiguous_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """The network's weights and BatchNorm statistics as safetensors wants them."""
    return {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
