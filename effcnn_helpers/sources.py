"""Where images of your own come from: a folder, an .npz file, a further dataset of torchvision's."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from . import settings
from .datasets import KEYS, DataError, DatasetSpec, load_images, read_arrays
from .findings import Found
from .pictures import FORMATS, PictureError, converted, read_picture

# Folders that are parts of a dataset and not classes; of several tests the first one that is there.
TRAINS, TESTS = ("train", "training"), ("test", "testing", "val", "valid", "validation")
NOT_OURS = ("thumbs.db", "desktop.ini", "__macosx")  # what other systems leave in a folder
LAYOUTS = (KEYS, ("x", "y"))

FURTHER = {re.sub(r"\W", "", spec.label.lower()): spec for spec in (
    DatasetSpec("fashion-mnist", "Fashion-MNIST", (1, 28, 28), (
        "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"),
        (), (), torchvision="FashionMNIST"),
    DatasetSpec("kmnist", "KMNIST", (1, 28, 28), (
        "o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"), (), (), torchvision="KMNIST"),
    DatasetSpec("svhn", "SVHN", (3, 32, 32), tuple("0123456789"), (), (), torchvision="SVHN"),
    DatasetSpec("cifar100", "CIFAR-100", (3, 32, 32), tuple((
        "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can "
        "castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin "
        "elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster "
        "man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck "
        "pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk "
        "skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger "
        "tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm").split()),
        (), (), torchvision="CIFAR100"),
)}


def read_source(source: str | Path, image_shape: tuple[int, int, int]) -> Found:
    """All pictures of a folder, an npz file or a further dataset. Raises DataError for anything else."""
    path = Path(source).expanduser()
    if path.is_dir():
        try:
            return read_folder(path, image_shape)
        except OSError as error:
            raise DataError(f"{settings.access_problem(path, error)}; make it readable, or copy what is") from error
    if path.is_file():
        return from_arrays(read_arrays(path, *LAYOUTS), path.stem, path.name, image_shape)
    spec = FURTHER.get(re.sub(r"\W", "", str(source).lower()))
    if spec is None:
        raise DataError(f"there is no folder or file {str(source)!r}, and no dataset of that name; give a folder with "
                        "one folder per class, an .npz file, or one of "
                        + ", ".join(further.label for further in FURTHER.values()))
    data = load_images(spec)
    arrays = {}
    for part, images in (("train", data.train), ("test", data.test)):
        arrays[f"x_{part}"], arrays[f"y_{part}"] = images.x.permute(0, 2, 3, 1).numpy(), images.y.numpy()
    return from_arrays(arrays, spec.name, data.source, image_shape, spec.classes)


def read_folder(folder: Path, image_shape: tuple[int, int, int]) -> Found:
    """The pictures below a folder, its test part's among them."""
    parts, unused = parts_of(folder)
    found = Found(folder.resolve().name, f"folder {folder.resolve().name}", (), "test" in parts)
    seen: dict[str, list[Path]] = {kind: [] for kind in ("damaged", "no picture", "hidden", "loose", "nested")}
    if parts["train"] != folder:
        sort_files(folder, seen)
    for part, place in parts.items():
        classes = sort_files(place, seen)
        if part == "train":
            refuse_unless_classes(place, [path.name for path in classes], len(seen["loose"]))
            found.classes = tuple(path.name for path in classes)
        unknown = [path.name for path in classes if path.name not in found.classes]
        if unknown:
            raise DataError(f"{place} has the class {unknown[0]!r}, which has no training images; the classes are "
                            f"{', '.join(found.classes)}: rename the folder, or add it to the training images")
        files = [(path, label.name) for label in classes for path in files_below(label)]
        for path, label in tqdm(files, desc=place.name, leave=False, disable=not settings.progress_shown()):
            if is_hidden(path):
                seen["hidden"].append(path)
                continue
            if path.parent != place / label and path.parent not in seen["nested"]:
                seen["nested"].append(path.parent)
            try:
                picture = read_picture(path, image_shape)
            except PictureError:
                is_named_so = path.suffix.lower() in Image.registered_extensions()
                seen["damaged" if is_named_so else "no picture"].append(path)
            else:
                found.add(picture, shown(path, folder), found.classes.index(label), part == "test")
    for kind, text in (("damaged", "damaged files, left out"),
                       ("no picture", f"files that are no pictures in {', '.join(FORMATS)}, left out"),
                       ("hidden", "hidden files, ignored"),
                       ("loose", "files in no class folder, ignored"),
                       ("nested", "folders within a class, whose files belong to it")):
        found.note(kind, text, [shown(path, folder) for path in seen[kind]])
    found.note("unused", "folders not used, as another one is for testing", [f"{path.name}/" for path in unused])
    return found


def parts_of(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """({"train": …, "test": …}, test folders left over); the folder itself is "train" where it has no parts."""
    inside = {path.name.lower(): path for path in folder.iterdir() if path.is_dir() and not is_hidden(path)}
    trains, tests = ([inside[name] for name in names if name in inside] for names in (TRAINS, TESTS))
    if len(trains) != 1 or len(inside) > 1 + len(tests):
        return {"train": folder}, []
    return {"train": trains[0], **({"test": tests[0]} if tests else {})}, tests[1:]


def sort_files(place: Path, seen: dict[str, list[Path]]) -> list[Path]:
    """The class folders in a folder; files beside them are noted."""
    classes = []
    for path in sorted(place.iterdir()):
        (seen["hidden"] if is_hidden(path) else classes if path.is_dir() else seen["loose"]).append(path)
    return classes


def shown(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def is_hidden(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in NOT_OURS


def files_below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """A folder's files in order, and those of its folders; links are followed, but never in a circle."""
    here = folder.resolve()
    if here in above:
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not is_hidden(path):
            yield from files_below(path, above | {here})
        else:
            yield path


def refuse_unless_classes(where, classes, loose: int = 0) -> None:
    """Raise DataError unless there are two classes or more."""
    if not classes and loose:
        raise DataError(f"{where} has no folders, but {loose:,} files directly in it; expected one folder per class, "
                        "named after it: make them and move the images there")
    if len(classes) < 2:
        there = f"one class, {classes[0]!r}" if len(classes) else "no class"
        raise DataError(f"{where} has {there}; expected two or more: add a folder (in an .npz file, a label) for each")


def from_arrays(arrays: dict[str, np.ndarray], name: str, origin: str, image_shape: tuple[int, int, int],
                classes: tuple[str, ...] | None = None) -> Found:
    """The pictures of arrays in Keras' layout. classes: what the labels 0, 1, … stand for, else themselves."""
    pairs = [("x", "y")] if "x" in arrays else [("x_train", "y_train"), ("x_test", "y_test")]
    for x_key, y_key in pairs:
        x, y = arrays[x_key], arrays[y_key]
        if x.dtype != np.uint8 or not (x.ndim == 3 or x.ndim == 4 and x.shape[3] in (1, 3, 4)) or not x.size:
            raise DataError(f"{origin}: {x_key} is {x.dtype} {x.shape}; expected uint8 (N, H, W) or (N, H, W, C), C "
                            "being 1, 3 or 4: write it so")
        if y.shape == (len(x), 1):
            arrays[y_key] = y = y[:, 0]
        if y.shape != (len(x),) or y.dtype.kind not in "iuU":
            raise DataError(f"{origin}: {y_key} is {y.dtype} {y.shape}; expected {len(x)} whole numbers or words: "
                            "write one label per image")
    values = list(range(len(classes))) if classes else np.unique(arrays[pairs[0][1]]).tolist()
    refuse_unless_classes(origin, values)
    found = Found(name, origin, classes or tuple(map(str, values)), len(pairs) == 2)
    numbers = {value: number for number, value in enumerate(values)}
    for part, (x_key, y_key) in enumerate(pairs):
        y = arrays[y_key].tolist()
        unknown = sorted(set(y) - set(values))
        if unknown:
            raise DataError(f"{origin}: {y_key} has the label {unknown[0]!r}, which no training image has; the labels "
                            f"are {', '.join(map(str, values))}: correct it, or leave these images out")
        ordered = y == sorted(y) or y == [values[row % len(values)] for row in range(len(y))]
        found.note("order", "labels in a regular order, which may be a list's and not that of the images: look at "
                   "some of them", [y_key] if ordered else [])
        pixels = arrays[x_key]
        pixels = pixels[..., 0] if pixels.shape[3:] == (1,) else pixels
        for row, (image, label) in enumerate(zip(pixels, y, strict=True)):
            picture = converted(Image.fromarray(image), image_shape)
            found.add(picture, f"{x_key}[{row}]", numbers[label], part == 1)
    return found


