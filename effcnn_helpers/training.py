"""Training through Composer's Trainer: a RunConfig, or a network of your own, in; a RunRecord and the network out."""

import contextlib
import copy
import functools
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from . import machine, settings
from .batches import BatchLoader
from .batchnorm import folded
from .datasets import DataError, DatasetSpec, ImageDataset, Images
from .machine import describe_environment, describe_git, now, prepare
from .models import count_parameters
from .recipes import Recipe, RunConfig, recipe_of
from .records import SCHEMA_VERSION, RunRecord, build_network, read_network, read_run, recorded_dir, weight_bytes
from .techniques import add_to_network, chosen, in_order, make_algorithms

EVAL_BATCH = 500
FRESH_IMAGES, FRESH_BATCH = 10_000, 128  # how many training images, in which batches, fresh statistics come from


def split_for(config: RunConfig, dataset: ImageDataset) -> tuple[Images, Images]:
    """The (training, evaluation) images of a run. Raises DataError when the dataset has too few or is another."""
    if dataset.name != config.dataset:
        raise DataError(f"this is a run on {config.dataset}, but the dataset given is {dataset.name}")
    if config.evaluate_on == "validation":
        dataset = dataset.validation_split()
    try:
        return dataset.train.first(config.train_images), dataset.test.first(config.test_images)
    except DataError as error:
        raise DataError(f"{error} ({dataset.source}); use fewer images (a smaller profile), or set EFFCNN_DATA_DIR "
                        f"to a folder with the real {dataset.name}.npz") from error


def train(config: RunConfig, dataset: ImageDataset, checkpoints: Path | None = None,
          progress: bool | None = None, threads: int | None = None,
          on_epoch: Callable[[list[dict]], None] | None = None) -> tuple[RunRecord, nn.Module]:
    """Train one model from scratch, on the GPU where there is one.

    Args:
        config: the run; its model is one of models.MODELS.
        dataset: images of the configuration's dataset.
        checkpoints: a folder for a checkpoint per epoch; when it already holds some of this very run, training
            goes on from the last whole one and ends with the weights of an undisturbed run. Composer unpickles
            these checkpoints, so the folder must be your own.
        progress: show a bar. Default: unless EFFCNN_PROGRESS=0.
        threads: CPU threads, for this run alone. Default: see machine.choose_threads.
        on_epoch: called after each epoch with the rows so far (see callbacks.History).

    Returns: the record, and the trained network in evaluation mode on the CPU.

    Raises: DataError when the dataset does not fit the configuration, RecordError when the recipe's teacher is not
        recorded, DivergedError when the loss is no longer finite.
    """
    def build() -> nn.Module:
        return build_network(config)

    return fit(config, build, dataset, checkpoints, progress, threads, on_epoch)


def train_own(network: nn.Module, dataset: ImageDataset, recipe: Recipe | None = None, name: str = "own",
              techniques: tuple[str, ...] = (), seed: int = 0, train_images: int | None = None,
              test_images: int | None = None, progress: bool | None = None, threads: int | None = None,
              on_epoch: Callable[[list[dict]], None] | None = None) -> tuple[RunRecord, nn.Module]:
    """Train a copy of a network of your own, from the weights that it has; its record fits every plot and table.

    Args:
        network: maps normalised images (N, C, H, W) to logits (N, classes).
        dataset: what it learns from, say `load_images("mnist")`.
        recipe: how. Default: the tables' recipe for this dataset.
        name: what plots and tables call it.
        techniques: names from techniques.TECHNIQUES.
        seed: of the order of the images and of the techniques; the weights are yours.
        train_images, test_images: how many to use. Default: all.

    The rest, what it returns and raises: as `train`.
    """
    config = RunConfig(name, dataset.name, recipe or recipe_of(None, dataset.name), in_order(techniques), seed,
                       train_images, test_images)

    def build() -> nn.Module:
        return add_to_network(copy.deepcopy(network), config.techniques)

    return fit(config, build, dataset, None, progress, threads, on_epoch)


def fit(config: RunConfig, build: Callable[[], nn.Module], dataset: ImageDataset, checkpoints: Path | None,
        progress: bool | None, threads: int | None,
        on_epoch: Callable[[list[dict]], None] | None) -> tuple[RunRecord, nn.Module]:
    """Train the network that `build` makes once the seed is set; the rest as `train` describes it."""
    settings.refuse_leftover_launcher(config.recipe.processes)
    prepare()
    with settings.signal_handlers_kept():
        import composer  # noqa: F401 (its first import changes what Ctrl-C does)
    if progress is None:
        progress = settings.progress_shown()
    with machine.threads(threads):
        return fit_here(config, build, dataset, checkpoints, progress, on_epoch)


def fit_here(config: RunConfig, build: Callable[[], nn.Module], dataset: ImageDataset, checkpoints: Path | None,
             progress: bool, on_epoch: Callable[[list[dict]], None] | None) -> tuple[RunRecord, nn.Module]:
    """`fit` with this process as it is."""
    import composer
    from composer.core import DataSpec
    from torchmetrics import MetricCollection

    from .callbacks import FreshStatistics, History, MovingAverage, ProgressBar, Student

    train_images, test_images = split_for(config, dataset)
    started = now()

    # Composer's own seeding comes after the model is built, too late for the initial weights.
    composer.utils.reproducibility.seed_all(config.seed)
    network = build().to(memory_format=torch.channels_last)
    place = settings.place()
    loader = BatchLoader(train_images, dataset.spec, config.recipe.batch_size, shuffle=True, seed=config.seed,
                         augmentation=config.recipe.augmentation, place=place)
    test_loader = BatchLoader(test_images, dataset.spec, EVAL_BATCH, place=place)
    history = History(loader, on_epoch)
    callbacks: list[composer.Callback] = [history]
    if config.recipe.average:
        callbacks.append(MovingAverage(config.recipe.average * len(loader)))
    if config.fresh_statistics:
        # After the moving average: the statistics are to be those of the weights that are kept.
        callbacks.append(FreshStatistics(BatchLoader(train_images, dataset.spec, EVAL_BATCH)))
    if progress:
        callbacks.append(ProgressBar(f"{config.model} seed {config.seed}", config.epochs, history))
    optimizer = make_optimizer(config, network)
    resume_from = last_whole_checkpoint(checkpoints)
    classifier = composer.models.ComposerClassifier
    if config.taught_by:
        teacher = read_network(read_run(recorded_dir() / config.taught_by.name))
        classifier = functools.partial(Student, teacher=teacher.to(memory_format=torch.channels_last))
    trainer = composer.Trainer(
        model=classifier(
            network, num_classes=len(dataset.classes),
            train_metrics=MetricCollection([]),  # accuracy on training batches costs time; nothing here shows it
        ),
        train_dataloader=DataSpec(loader, split_batch=whole_batch),
        eval_dataloader=DataSpec(test_loader, split_batch=whole_batch),
        optimizers=optimizer,
        schedulers=make_scheduler(config, optimizer, steps=config.epochs * len(loader)),
        step_schedulers_every_batch=True,  # left to itself, Composer steps torch's schedulers once an epoch
        algorithms=make_algorithms(config.techniques, dataset.spec.image_shape[-1]),
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
            with folded(network), in_precision(network, config.recipe.precision), warnings.catch_warnings():
                # Blended labels sum to 1 but for rounding.
                warnings.filterwarnings("ignore", "Some targets have less than 1 total probability")
                trainer.fit()
    finally:
        trainer.close()
    network = network.cpu().eval()
    record = measured(config, network, dataset, test_images)
    return replace(record, epochs=history.rows, started=started, resumed=resume_from is not None,
                   train_seconds=sum(row["seconds"] for row in history.rows)), network


def measured(config: RunConfig, network: nn.Module, dataset: ImageDataset, test_images: Images) -> RunRecord:
    """The record of a trained network, its training's own facts left open."""
    predicted = predict(network, test_images, dataset.spec).argmax(dim=1)
    wrong = (predicted != test_images.y).nonzero().flatten().tolist()
    return RunRecord(
        schema_version=SCHEMA_VERSION,
        config=config,
        parameters=count_parameters(network),
        epochs=[],
        correct=len(test_images) - len(wrong),
        fresh_correct=fresh_correct(network, config, dataset),
        total=len(test_images),
        misclassified={index: predicted[index].item() for index in wrong},
        bytes=weight_bytes(network),
        data={"source": dataset.source, "real": dataset.real, "sha256": dataset.sha256},
        environment=describe_environment(),
        git=describe_git(),
        started="",
        ended=now(),
        train_seconds=0.0,
        resumed=False,
    )


@contextlib.contextmanager
def in_precision(network: nn.Module, precision: str) -> Iterator[None]:
    """While inside, a network in training mode computes in the recipe's precision where torch's autocast allows it.

    Its logits are float32 all the same, and so is BlurPool: torch is slow at the gradient of its filters in bfloat16.
    Composer's Trainer has this for GPUs alone.
    """
    if precision == "float32":
        yield
        return
    from composer.algorithms.blurpool.blurpool_layers import BlurMaxPool2d

    def call(layer: nn.Module, forward: Callable, lowered: bool, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=lowered and layer.training):
            return forward(x if lowered else x.float()).float()

    layers = {network: True, **{layer: False for layer in network.modules() if isinstance(layer, BlurMaxPool2d)}}
    for layer, lowered in layers.items():
        layer.forward = functools.partial(call, layer, layer.forward, lowered)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def whole_batch(batch, microbatch_size) -> list:
    """For Composer's DataSpec: keep batches whole (it would warn at each last, smaller one of an epoch)."""
    return [batch]


def make_optimizer(config: RunConfig, network: nn.Module) -> torch.optim.Optimizer:
    """The recipe's optimizer over a network's parameters, inside what a technique puts around it."""
    optimizer = config.recipe.optimizer_for(network)
    for entry in chosen(config.techniques):
        if entry.wrap_optimizer:
            optimizer = entry.wrap_optimizer(optimizer, network)
    return optimizer


def make_scheduler(config: RunConfig, optimizer: torch.optim.Optimizer,
                   steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The recipe's schedule over so many batches, or that of a technique that brings its own."""
    for entry in chosen(config.techniques):
        if entry.schedule:
            return entry.schedule(optimizer, config.recipe, steps)
    return config.recipe.scheduler(optimizer, steps)


def last_whole_checkpoint(folder: Path | None) -> Path | None:
    """The checkpoint of the highest epoch in a folder; one cut off while it was written, or damaged, is passed over."""
    if folder is None or not folder.is_dir():
        return None
    found = sorted(folder.glob("ep*.pt"), key=lambda path: int(path.stem[2:]), reverse=True)
    return next((path for path in found if is_intact(path)), None)


def is_intact(checkpoint: Path) -> bool:
    """Whether a file is a zip archive, as torch writes them, whose parts all have their checksums."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            return archive.testzip() is None
    except Exception:  # zipfile names damage in a dozen ways
        return False


@torch.inference_mode()
def predict(network: nn.Module, images: Images, dataset: str | DatasetSpec) -> torch.Tensor:
    """Logits (N, classes) for all images of a split, by the network in evaluation mode on the CPU."""
    network.eval()
    return torch.cat([network(x) for x, _ in BatchLoader(images, dataset, EVAL_BATCH)])


def fresh_correct(network: nn.Module, config: RunConfig, dataset: ImageDataset) -> int:
    """Right answers of a run's network on its evaluation images, with BatchNorm's statistics measured anew.

    Over the first 10,000 of its training images; the network stays as it is. At a constant learning rate the running
    statistics lag behind the weights, so this tells less of the moment at which training stopped.
    """
    train_images, test_images = split_for(config, dataset)
    fresh = copy.deepcopy(network)
    update_bn(BatchLoader(train_images.first(min(FRESH_IMAGES, len(train_images))), dataset.spec, FRESH_BATCH), fresh)
    return (predict(fresh, test_images, dataset.spec).argmax(dim=1) == test_images.y).sum().item()
