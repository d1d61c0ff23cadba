"""Images of your own: read and checked, trained on within a budget of parameters, kept and loaded again.

`own_dataset` turns a folder, an .npz file or the name of a further dataset into an ImageDataset. Each
picture takes the network's shape (see `pictures`). What is left out or changed is a `Finding`:
- Hidden files, damaged files and files that are no pictures are left out.
- Copies (the same pixels, converted) of training images are left out: the first one counts.
- Without a test part, `test_share` of each class becomes one, drawn by the seed, after that.
- A test part that comes with the images stays as it is; training images that are in it are left out.
- Pictures that stand under two labels are left out of training, for nobody knows which one is true.
Both parts are shuffled, so that the first 1,000 images are a fair sample.
"""

import json
import math
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from .datasets import DATASETS, KEYS, DataError, DatasetSpec, ImageDataset, Images, dataset_from_arrays
from .errors import EffcnnError
from .findings import Finding, left_out, refuse_if_too_few, remark_on_classes, remark_on_pictures
from .ladder import LADDERS
from .models import MODELS, Model, model_of
from .pictures import read_picture
from .recipes import NAME, USUAL, Recipe, RunConfig, is_name, is_whole, table_run
from .records import RecordError, RunRecord, network_in, read_run, write_into, written_whole
from .samples import synthetic_shapes
from .sources import read_source
from .statistics import wilson_percent
from .training import predict, train_own


@dataclass(frozen=True)
class Checked:
    """A dataset and what its checks found; printed, a line for each finding. test_names: of the test images."""

    dataset: ImageDataset
    findings: tuple[Finding, ...]
    test_names: tuple[str, ...]

    def __str__(self) -> str:
        data = self.dataset
        first = (f"{data.source}: {len(data.classes)} classes, {len(data.train):,} training and {len(data.test):,} "
                 f"test images of {' × '.join(map(str, data.spec.image_shape))}")
        return "\n".join([first, *(f"- {finding}" for finding in self.findings or ["nothing to remark"])])


def own_dataset(source: str | Path, image_shape: tuple[int, int, int] = (1, 28, 28), name: str | None = None,
                test_share: float = 0.2, seed: int = 0) -> Checked:
    """Images of your own as a dataset for every network of this shape, with what the checks found.

    Args:
        source: a folder with a folder per class, or with such a train/ and a test/ (or val/) in it; an
            .npz file with x_train, y_train, x_test, y_test, or with x and y; or the name of a further
            dataset of torchvision's: Fashion-MNIST, KMNIST, SVHN, CIFAR-100.
        image_shape: (channels, height, width) that the network takes; 1 or 3 channels.
        name: what records and tables call it. Default: the folder's. A name of DATASETS gets "own-" before it.
        test_share: of each class, for testing, where there is no test part.
        seed: of this split and of the order of the images.

    Raises: EffcnnError for a wrong argument, DataError for a source that is no dataset.
    """
    refuse_arguments(image_shape, name, test_share, seed)
    found = read_source(source, image_shape)
    name = name or re.sub(r"[^\w .-]", "-", found.name).lstrip("_ .-") or "own"
    name = f"own-{name}" if name in DATASETS else name
    labels, in_test = np.array(found.labels, int), np.array(found.in_test, bool)
    remark_on_pictures(found, image_shape)
    kept = ~left_out(found, labels, in_test)
    refuse_if_too_few(found, labels, kept & ~in_test)
    random = np.random.default_rng(seed)
    if not found.has_test:
        in_test = split(labels, kept, test_share, random)
    remark_on_classes(found, labels, kept, in_test)
    train, test = (random.permutation(np.flatnonzero(rows)) for rows in (kept & ~in_test, kept & in_test))
    if not len(test):
        raise DataError(f"{found.source} has no image left to test on; expected one or more: add some")
    pixels = np.stack([picture.pixels for picture in found.pictures])
    mean, std = mean_and_std(pixels[train])
    channels, height, width = image_shape
    spec = DatasetSpec(name, name, (channels, height, width), found.classes, mean, std)
    arrays = dict(zip(KEYS, (pixels[train], labels[train], pixels[test], labels[test]), strict=True))
    return Checked(dataset_from_arrays(spec, arrays, found.source), tuple(found.findings),
                   tuple(found.names[row] for row in test))


def refuse_arguments(image_shape, name, test_share, seed) -> None:
    """Raise EffcnnError, naming the argument, for a value that makes no dataset."""
    if not (len(image_shape) == 3 and image_shape[0] in (1, 3) and all(is_whole(side, 1) for side in image_shape)):
        raise EffcnnError(f"image_shape is {image_shape}; use (1, height, width) or (3, height, width)")
    if name is not None and not is_name(name):
        raise EffcnnError(f"name is {name!r}; use {NAME}")
    if not 0 < test_share < 1:
        raise EffcnnError(f"test_share is {test_share}; use a number between 0 and 1, say 0.2")
    if not is_whole(seed, 0):
        raise EffcnnError(f"seed is {seed!r}; use a whole number of 0 or more")


def split(labels: np.ndarray, kept: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Which rows are for testing: this share of each class, at least one, but never the last for training."""
    in_test = np.zeros(len(labels), bool)
    for number in np.unique(labels):
        rows = random.permutation(np.flatnonzero(kept & (labels == number)))
        in_test[rows[:min(len(rows) - 1, max(1, round(share * len(rows))))]] = True
    return in_test


def mean_and_std(pixels: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel of uint8 images (N, H, W[, C]), on a 0-1 scale, to four digits; std is never 0."""
    axes = (0, 1, 2)
    mean = np.atleast_1d(pixels.mean(axes, dtype=np.float64))
    squares = np.atleast_1d(np.square(pixels, dtype=np.uint16).mean(axes, dtype=np.float64))
    std = np.sqrt((squares - mean**2).clip(1))
    return tuple((mean / 255).round(4).tolist()), tuple((std / 255).round(4).tolist())


# The largest network within each budget of parameters. Few images are trained on in small batches, at a
# rate in proportion, and more often than the recipe says, until so many steps are taken.
BUDGETS = {"1.5k": "1.5k-dw", "25k": "25k", "143k": "143k-dw"}
FEW_TO_TRAIN_ON, SMALL_BATCH, LEAST_STEPS = 4_000, 32, 600


@dataclass(frozen=True)
class Trained:
    """A trained network (in evaluation mode, on the CPU), its record, and the dataset that it is for."""

    record: RunRecord
    network: nn.Module
    spec: DatasetSpec


def run_within(budget: str, better: bool = False) -> RunConfig:
    """The run of the series that a training for a budget follows: a network of the paper, as it is trained live.

    better: the top of notebook 16's ladder for this budget. It changes the images at random (grey ones are turned,
    scaled and shifted, those in colour shifted and mirrored), so take it where such a change leaves the class.
    Raises EffcnnError for another budget than "1.5k", "25k" or "143k".
    """
    if budget not in BUDGETS:
        raise EffcnnError(f"budget is {budget!r}; use one of {', '.join(BUDGETS)}")
    if not better:
        return table_run(BUDGETS[budget], recipe=USUAL)
    top = LADDERS[budget].kept[-1]
    return replace(top, recipe=replace(top.recipe, precision="float32"))  # few processors are faster in bfloat16


def model_within(budget: str) -> Model:
    """The network for a budget. Raises EffcnnError as `run_within` does."""
    return model_of(run_within(budget).model)


def recipe_within(budget: str, train_images: int, epochs: int | None = None, better: bool = False) -> Recipe:
    """How to train for a budget. epochs: by default the recipe's, or as many more as make LEAST_STEPS."""
    recipe = run_within(budget, better).recipe
    if train_images < FEW_TO_TRAIN_ON:
        rate = recipe.learning_rate * SMALL_BATCH / recipe.batch_size  # a step on fewer images is less sure
        recipe = replace(recipe, batch_size=SMALL_BATCH, learning_rate=rate)
    steps = math.ceil(train_images / recipe.batch_size)
    if epochs is None:
        epochs = max(recipe.epochs, math.ceil(LEAST_STEPS / steps))
    return replace(recipe, epochs=epochs)


def recipe_in_words(recipe: Recipe, train_images: int) -> str:
    """How long a training is, and what it does to the images."""
    steps = math.ceil(train_images / recipe.batch_size)
    changed = f", images changed at random ({', '.join(recipe.augmentation)})" if recipe.augmentation else ""
    return (f"{recipe.epochs} epochs of {steps:,} steps with {recipe.batch_size} images, {recipe.epochs * steps:,} "
            f"steps in all (by default at least {LEAST_STEPS}){changed}")


def train_within(budget: str, dataset: ImageDataset, epochs: int | None = None, seed: int = 0,
                 better: bool = False, **options) -> Trained:
    """Train the network of a budget on a dataset of its shape.

    epochs: default: see `recipe_within`. seed: of the weights and of all that chance decides. better: see `run_within`.
    options: progress, threads, on_epoch of `training.train_own`. Raises EffcnnError as that does, or
    when the images have another shape.
    """
    followed = run_within(budget, better)
    model = model_of(followed.model)
    if dataset.spec.image_shape != model.image_shape:
        raise EffcnnError(f"the network for {budget} takes images {model.image_shape}, and those of {dataset.name} are "
                          f"{dataset.spec.image_shape}; use own_dataset(…, image_shape={model.image_shape})")
    recipe = recipe_within(budget, len(dataset.train), epochs, better)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = model.build(len(dataset.classes))
    record, network = train_own(network, dataset, recipe, name=model.name, seed=seed,
                                techniques=followed.techniques, **options)
    return Trained(record, network, dataset.spec)


def save_trained(folder: str | Path, record: RunRecord, network: nn.Module, spec: DatasetSpec) -> Path:
    """Write a new folder in one move: run.json, weights.safetensors and, unless it is in DATASETS, dataset.json.

    Raises EffcnnError when the folder is there already, when the run was on another dataset, or when
    its network is none of models.MODELS and so could not be built again.
    """
    folder = Path(folder)
    refuse_existing(folder)
    model_of(record.config.model)
    if record.config.dataset != spec.name:
        raise EffcnnError(f"the run was on {record.config.dataset}, and the dataset given is {spec.name}; give that "
                          "of the run")
    with written_whole(folder) as whole:
        write_into(whole, record, network)
        if spec.name not in DATASETS:
            facts = {key: value for key, value in asdict(spec).items() if key in SPEC_FIELDS}
            text = json.dumps({"model": record.config.model, **facts}, indent=1, ensure_ascii=False)
            (whole / "dataset.json").write_text(text + "\n", encoding="utf-8")
    return folder


SPEC_FIELDS = ("name", "label", "image_shape", "classes", "mean", "std")


def refuse_existing(folder: Path) -> None:
    """Raise EffcnnError unless a folder can be made here."""
    if folder.exists():
        raise EffcnnError(f"{folder} is there already; name another folder, or move it away")


def load_trained(folder: str | Path) -> Trained:
    """What `save_trained` wrote, or a recorded run of the series. Executes nothing that is in the folder.

    Raises RecordError, naming the file, for what is missing, damaged or does not belong together.
    """
    folder = Path(folder)
    if not (folder / "run.json").is_file():
        raise RecordError(f"{folder} holds no trained network, for it has no run.json; give a folder that "
                          f"{TRAIN} wrote, or that of a recorded run")
    record = read_run(folder, TRAIN)
    path = folder / "dataset.json"
    if not path.exists() and record.config.dataset in DATASETS:
        spec = DATASETS[record.config.dataset]
    else:
        spec = read_spec(path, record)
    return Trained(record, network_in(folder, record.config, len(spec.classes), TRAIN), spec)


TRAIN = "`python -m effcnn_helpers train`"


def read_spec(path: Path, record: RunRecord) -> DatasetSpec:
    """The dataset of a saved network. Raises RecordError unless it is whole and this record's."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        model = MODELS[values.pop("model")]
        facts: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value
                                 for key, value in values.items()}
        spec = DatasetSpec(**facts)
        fits = (model.name, spec.name, spec.image_shape) == (
            record.config.model, record.config.dataset, model.image_shape)
        [*map(float, spec.mean)]  # a TypeError or ValueError for anything but numbers
        if not (fits and len(spec.mean) == len(spec.std) == spec.image_shape[0] and min(spec.std) > 0
                and len(spec.classes) > 1 and all(isinstance(name, str) for name in spec.classes)):
            raise ValueError("it is not the dataset of run.json")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecordError(f"{path}: {type(error).__name__}: {error}; delete the folder and train the run again with "
                          f"{TRAIN}") from error
    return spec


def classify(trained: Trained, path: str | Path) -> list[tuple[str, float]]:
    """(class, probability) for the picture in a file, the likeliest first. Raises PictureError, naming the file."""
    pixels = torch.from_numpy(read_picture(Path(path), trained.spec.image_shape).pixels.copy())
    x = pixels.view(1, *trained.spec.image_shape[1:], -1).permute(0, 3, 1, 2)
    [logits] = predict(trained.network, Images(x, torch.zeros(1, dtype=torch.int64)), trained.spec)
    shares = zip(trained.spec.classes, logits.softmax(dim=0).tolist(), strict=True)
    return sorted(shares, key=lambda entry: -entry[1])


def accuracy_in_words(record: RunRecord) -> str:
    """The accuracy of a run with what so few test images leave open."""
    low, high = wilson_percent(record.correct, record.total)
    return (f"{record.accuracy_percent:.1f} % of {record.total:,} test images right "
            f"(95 % interval: {low:.1f} to {high:.1f} %)")


def answers(record: RunRecord, dataset: ImageDataset) -> torch.Tensor:
    """The classes (N,) that a run took its test images for. Raises EffcnnError when they are another dataset's."""
    if record.data["sha256"] != dataset.sha256 or record.config.evaluate_on != "test":
        raise EffcnnError(f"{record.config.name} was not measured on these test images ({dataset.source}); read them "
                          "with the arguments that they had when it was trained")
    taken = dataset.test.y[:record.total].clone()
    for index, answer in record.misclassified.items():
        taken[index] = answer
    return taken


def confusion(record: RunRecord, dataset: ImageDataset) -> pd.DataFrame:
    """Test images counted by class (rows) and answer (columns)."""
    counts = np.zeros((len(dataset.classes), len(dataset.classes)), int)
    np.add.at(counts, (dataset.test.y[:record.total].numpy(), answers(record, dataset).numpy()), 1)
    return pd.DataFrame(counts, pd.Index(dataset.classes, name="class"), pd.Index(dataset.classes, name="answer"))


def mistakes(record: RunRecord, checked: Checked) -> tuple[Images, pd.DataFrame]:
    """The test images that a run got wrong, for plots.show_images, and a row for each: file, class, answer."""
    dataset = checked.dataset
    taken = answers(record, dataset)
    rows = sorted(record.misclassified)
    table = pd.DataFrame({
        "file": [checked.test_names[row] for row in rows],
        "class": [dataset.classes[dataset.test.y[row]] for row in rows],
        "answer": [dataset.classes[taken[row]] for row in rows]})
    return Images(dataset.test.x[rows], dataset.test.y[rows]), table


def write_example(folder: str | Path, images: int = 1_000, flaws: bool = False) -> Path:
    """A new folder with drawn shapes as PNG files, a folder for each of ten classes; the same every time.

    flaws: with a damaged file, a copy and a grey picture among those in colour. Raises EffcnnError when the folder is
    there already.
    """
    folder = Path(folder)
    refuse_existing(folder)
    sample = synthetic_shapes(images, 10)
    pictures = [Image.fromarray(pixels) for pixels in sample.arrays["x_train"]]
    with written_whole(folder) as whole:
        for name in sample.classes:
            (whole / name).mkdir()
        for row, (picture, label) in enumerate(zip(pictures, sample.arrays["y_train"], strict=True)):
            picture.save(whole / sample.classes[label] / f"{row:04}.png")
        if flaws:
            first = sorted((whole / "disc").iterdir())[0]
            (whole / "disc" / "copy.png").write_bytes(first.read_bytes())
            (whole / "disc" / "damaged.png").write_bytes(first.read_bytes()[:200])
            another = Image.fromarray(sample.arrays["x_test"][0])
            another.convert("L").save(whole / sample.classes[sample.arrays["y_test"][0]] / "grey.png")
    return folder
