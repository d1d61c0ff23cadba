"""What is worth a remark about images of your own: about single pictures, copies, classes."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from .datasets import DataError
from .pictures import Picture

LEAST_IMAGES = 20  # to train on, in all
FEW_IMAGES = 10  # a class with fewer is named
UNEVEN = 5  # times as many images in the largest class as in the smallest: named


@dataclass(frozen=True)
class Finding:
    """What a check found: one line. kind: a word for it. names: of all the images or files it is about."""

    kind: str
    text: str
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.names:
            return self.text
        more = f" and {len(self.names) - 3:,} more" if len(self.names) > 3 else ""
        return f"{self.text} ({len(self.names):,}): {', '.join(self.names[:3])}{more}"


@dataclass
class Found:
    """What a source holds, a row per picture. has_test: whether it comes with a test part."""

    name: str
    source: str
    classes: tuple[str, ...]
    has_test: bool
    pictures: list[Picture] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    in_test: list[bool] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def add(self, picture: Picture, name: str, label: int, in_test: bool) -> None:
        self.pictures.append(picture)
        self.names.append(name)
        self.labels.append(label)
        self.in_test.append(in_test)

    def note(self, kind: str, text: str, names: Iterable[str]) -> None:
        """A finding about these images, unless there are none."""
        names = tuple(names)
        if names:
            self.findings.append(Finding(kind, text, names))


def remark_on_pictures(found: Found, image_shape: tuple[int, int, int]) -> None:
    """Findings about the pictures themselves: sizes, colours, what was mended, nothing to see."""
    channels, height, width = image_shape

    def named(condition) -> list[str]:
        return [name for name, picture in zip(found.names, found.pictures, strict=True) if condition(picture)]

    sizes = Counter(picture.size for picture in found.pictures)
    if set(sizes) - {(width, height)}:
        usual = sizes.most_common(1)[0][0]
        padded = len(named(lambda picture: picture.size[0] * height != picture.size[1] * width))
        found.findings.append(Finding(
            "sizes", f"all pictures are now {width} × {height} pixels"
            + (f", {padded:,} with bars beside them to keep their proportions" if padded else "")
            + f"; they were {usual[0]} × {usual[1]}" + (", except" if len(sizes) > 1 else ""),
            tuple(named(lambda picture: picture.size != usual))))
    coloured, grey = named(lambda picture: picture.is_colour), named(lambda picture: not picture.is_colour)
    if coloured and channels == 1:
        found.note("colours", "pictures in colour, now grey", coloured)
    elif coloured and grey:
        fewer, word = (grey, "grey pictures among those in colour") if len(grey) <= len(coloured) else (
            coloured, "pictures in colour among grey ones")
        found.note("colours", f"{word}, which may give their class away", fewer)
    for quirk, text in (("turned", "pictures turned upright, as their EXIF data say"),
                        ("transparent", "pictures transparent in places, now white there"),
                        ("16 bits", "pictures of 16 bits, now of 8"),
                        ("several frames", "files with several frames, of which the first counts")):
        found.note(quirk, text, named(lambda picture, quirk=quirk: quirk in picture.quirks))
    found.note("constant", "pictures of one even colour", named(
        lambda picture: picture.pixels.min() == picture.pixels.max()))


def left_out(found: Found, labels: np.ndarray, in_test: np.ndarray) -> np.ndarray:
    """Which rows do not count: copies and contradictions in training (see the module's docstring)."""
    same: dict[bytes, list[int]] = {}
    for row, picture in enumerate(found.pictures):
        digest = hashlib.blake2b(picture.pixels.tobytes(), digest_size=16).digest()
        same.setdefault(digest, []).append(row)
    out = np.zeros(len(labels), bool)
    notes: dict[str, list[str]] = {"two labels": [], "in both parts": [], "copies": [], "copies in test": []}
    for rows in same.values():
        training, test = [row for row in rows if not in_test[row]], [row for row in rows if in_test[row]]
        if len(set(labels[rows])) > 1:
            notes["two labels"].append(" = ".join(found.names[row] for row in rows))
            out[training] = True
            continue
        first = test[0] if test else training[0]
        copies = training if test else training[1:]
        out[copies] = True
        notes["in both parts" if test else "copies"] += [f"{found.names[row]} = {found.names[first]}" for row in copies]
        notes["copies in test"] += [f"{found.names[row]} = {found.names[first]}" for row in test[1:]]
    for kind, text in (("two labels", "pictures under two labels, left out of training"),
                       ("in both parts", "training images that are test images, too, left out of training"),
                       ("copies", "copies of other images, left out"),
                       ("copies in test", "copies within the test part, which stays as it is")):
        found.note(kind, text, notes[kind])
    return out


def refuse_if_too_few(found: Found, labels: np.ndarray, train: np.ndarray) -> None:
    """Raise DataError when a class has no training image, or all of them together are too few."""
    because = "".join(f"; {finding}" for finding in found.findings)
    for number, name in enumerate(found.classes):
        if not (labels[train] == number).any():
            raise DataError(f"the class {name!r} of {found.source} has no image to train on; add some, or remove the "
                            f"class{because}")
    if train.sum() < LEAST_IMAGES:
        raise DataError(f"{found.source} has {train.sum()} images to train on; expected {LEAST_IMAGES} or more: add "
                        f"some{because}")


def remark_on_classes(found: Found, labels: np.ndarray, kept: np.ndarray, in_test: np.ndarray) -> None:
    """Findings about how many images the classes have."""
    counts, tests = (np.bincount(labels[rows], minlength=len(found.classes)) for rows in (kept, kept & in_test))
    numbered = [f"{name} ({count:,})" for name, count in zip(found.classes, counts, strict=True)]
    found.note("few", f"classes with fewer than {FEW_IMAGES} images",
               [text for text, count in zip(numbered, counts, strict=True) if count < FEW_IMAGES])
    found.note("untested", "classes without a test image",
               [name for name, count in zip(found.classes, tests, strict=True) if not count])
    if counts.max() >= UNEVEN * counts.min():
        always = 100 * tests[counts.argmax()] / tests.sum()
        found.findings.append(Finding("uneven", f"{numbered[counts.argmax()]} has {counts.max() / counts.min():.0f} "
                                      f"times as many images as {numbered[counts.argmin()]}; whoever always answers "
                                      f"{found.classes[counts.argmax()]!r} is right in {always:.0f} % of the tests"))
