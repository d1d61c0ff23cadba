"""Folders, arrays and further datasets: which pictures are found, under which labels, and what is refused."""

import functools
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from effcnn_helpers import datasets
from effcnn_helpers.datasets import DataError
from effcnn_helpers.sources import FURTHER, files_below, read_source

GREY = (1, 28, 28)


def kinds(found) -> dict[str, tuple[str, ...]]:
    return {finding.kind: finding.names for finding in found.findings}


def rows(found) -> list[tuple[str, str, bool]]:
    return [(name, found.classes[label], test)
            for name, label, test in zip(found.names, found.labels, found.in_test, strict=True)]


def test_folder_with_a_folder_per_class(picture_folder):
    found = read_source(picture_folder({"cat": 2, "dog": 1}), GREY)
    assert (found.name, found.source, found.classes, found.has_test) == (
        "things", "folder things", ("cat", "dog"), False)
    assert rows(found) == [("cat/00.png", "cat", False), ("cat/01.png", "cat", False), ("dog/00.png", "dog", False)]
    assert found.findings == []


@pytest.mark.parametrize("train, test", [("train", "test"), ("Train", "val"), ("training", "testing")])
def test_folder_with_training_and_test_parts(train, test, picture_folder, tmp_path):
    picture_folder({"cat": 1, "dog": 1}, f"things/{train}")
    picture_folder({"dog": 1}, f"things/{test}")
    found = read_source(tmp_path / "things", GREY)
    assert found.has_test and found.classes == ("cat", "dog")
    assert rows(found) == [(f"{train}/cat/00.png", "cat", False), (f"{train}/dog/00.png", "dog", False),
                           (f"{test}/dog/00.png", "dog", True)]


def test_of_two_test_folders_one_is_used_and_the_other_named(picture_folder, tmp_path):
    for part in ("train", "val", "test"):
        picture_folder({"cat": 1, "dog": 1}, f"things/{part}")
    found = read_source(tmp_path / "things", GREY)
    assert {name.split("/")[0] for name in found.names} == {"train", "test"}
    assert kinds(found) == {"unused": ("val/",)}


def test_train_without_test_is_left_to_be_split(picture_folder, tmp_path):
    picture_folder({"cat": 1, "dog": 1}, "things/train")
    found = read_source(tmp_path / "things", GREY)
    assert not found.has_test and found.classes == ("cat", "dog")


def test_class_that_is_called_train_is_a_class(picture_folder):
    assert read_source(picture_folder({"train": 1, "plane": 1}), GREY).classes == ("plane", "train")


def test_everything_that_is_not_used_is_named(picture_folder):
    folder = picture_folder({"cat": 2, "dog": 2})
    whole = (folder / "cat/00.png").read_bytes()
    for name, content in {"cat/cut.png": whole[:99], "dog/empty.jpg": b"", "dog/notes.txt": b"dogs", "README.md": b"",
                          ".DS_Store": b"", "cat/Thumbs.db": b"", "dog/._00.png": b""}.items():
        (folder / name).write_bytes(content)
    shutil.copytree(folder / "cat", folder / ".trash")
    shutil.copytree(folder / "dog", folder / "dog/.old")
    found = read_source(folder, GREY)
    assert len(found.names) == 4 and found.classes == ("cat", "dog")
    assert kinds(found) == {
        "damaged": ("cat/cut.png", "dog/empty.jpg"), "no picture": ("dog/notes.txt",), "loose": ("README.md",),
        "hidden": (".DS_Store", ".trash", "cat/Thumbs.db", "dog/._00.png", "dog/.old")}
    assert "damaged files, left out (2): cat/cut.png, dog/empty.jpg" in map(str, found.findings)


def test_files_beside_the_parts_are_named_too(picture_folder, tmp_path):
    picture_folder({"cat": 1, "dog": 1}, "things/train")
    picture_folder({"cat": 1, "dog": 1}, "things/test")
    (tmp_path / "things/labels.csv").write_text("")
    (tmp_path / "things/test/.DS_Store").write_text("")
    assert kinds(read_source(tmp_path / "things", GREY)) == {
        "loose": ("labels.csv",), "hidden": ("test/.DS_Store",)}


def test_folders_within_a_class_belong_to_it_and_are_named(picture_folder):
    folder = picture_folder({"cat": 1, "dog/big": 2})
    found = read_source(folder, GREY)
    assert rows(found)[1:] == [("dog/big/00.png", "dog", False), ("dog/big/01.png", "dog", False)]
    assert kinds(found) == {"nested": ("dog/big",)}


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_are_followed_but_not_in_a_circle(picture_folder, tmp_path):
    folder = picture_folder({"cat": 1, "dog": 1})
    elsewhere = picture_folder({"pictures": 2}, "elsewhere")
    (folder / "cow").symlink_to(elsewhere / "pictures", target_is_directory=True)
    (folder / "cat/link.png").symlink_to(elsewhere / "pictures/00.png")
    (folder / "dog/round").symlink_to(folder / "dog", target_is_directory=True)
    (folder / "dog/gone.png").symlink_to(tmp_path / "nowhere.png")
    found = read_source(folder, GREY)
    assert found.names == ["cat/00.png", "cat/link.png", "cow/00.png", "cow/01.png", "dog/00.png"]
    assert kinds(found) == {"damaged": ("dog/gone.png",)}
    assert [path.name for path in files_below(folder / "dog")] == ["00.png", "gone.png"]


def test_folder_that_is_no_dataset_is_refused(picture_folder, tmp_path):
    def message(source) -> str:
        with pytest.raises(DataError) as refusal:
            read_source(source, GREY)
        return str(refusal.value)

    assert "there is no folder or file 'nowhere', and no dataset of that name; give a folder" in message("nowhere")
    assert "Fashion-MNIST, KMNIST, SVHN, CIFAR-100" in message("nowhere")
    one = picture_folder({"cat": 2})
    assert "things has one class, 'cat'; expected two or more: add a folder" in message(one)
    assert "cat has no folders, but 2 files directly in it; expected one folder per class" in message(one / "cat")
    (tmp_path / "empty").mkdir()
    assert "empty has no class; expected two or more" in message(tmp_path / "empty")
    picture_folder({"cat": 1, "dog": 1}, "parts/train")
    picture_folder({"cat": 1, "cow": 1}, "parts/test")
    assert "has the class 'cow', which has no training images; the classes are cat, dog" in message(tmp_path / "parts")


def test_folder_of_another_user_is_refused_with_its_owner(picture_folder, monkeypatch):
    """The superuser may read everything, so what another one would meet is made up here."""
    folder = picture_folder({"cat": 1, "dog": 1})

    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(DataError, match=r"things cannot be read or written \(Permission denied\); .* belongs to"):
        read_source(folder, GREY)


def arrays(count: int = 6, size: tuple[int, ...] = (28, 28), labels=(0, 1)) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(count).integers(0, 256, (count, *size), np.uint8)
    return x, np.array([labels[0], *(labels[row % len(labels)] for row in range(count - 1))])  # in no order


@pytest.fixture
def npz(tmp_path):
    """A function that reads arrays written as an npz file."""
    def read(shape=GREY, **content):
        np.savez(tmp_path / "file.npz", **content)
        return read_source(tmp_path / "file.npz", shape)

    return read


def test_file_in_keras_layout(npz):
    (x, y), (x_test, y_test) = arrays(6), arrays(4)
    found = npz(x_train=x, y_train=y, x_test=x_test, y_test=y_test[:, None])
    assert (found.name, found.source, found.has_test, found.classes) == ("file", "file.npz", True, ("0", "1"))
    assert found.labels == [*y, *y_test] and found.in_test == [False] * 6 + [True] * 4
    assert all(np.array_equal(picture.pixels, image)
               for picture, image in zip(found.pictures, [*x, *x_test], strict=True))
    assert (found.names[0], found.names[-1], found.findings) == ("x_train[0]", "x_test[3]", [])


@pytest.mark.parametrize("size", [(40, 28), (28, 28, 1), (32, 32, 3), (32, 32, 4)])
@pytest.mark.parametrize("shape", [GREY, (3, 32, 32)])
def test_file_with_images_of_every_size_to_be_split(size, shape, npz):
    x, y = arrays(6, size)
    found = npz(shape, x=x, y=y)
    assert not found.has_test
    assert {picture.pixels.shape for picture in found.pictures} == {(28, 28) if shape == GREY else (32, 32, 3)}
    assert all("transparent" in picture.quirks for picture in found.pictures) == (size == (32, 32, 4))


def test_labels_may_leave_gaps_or_be_words(npz):
    x, y = arrays(7, labels=(3, 7, 10))
    found = npz(x=x, y=y)
    assert found.classes == ("3", "7", "10") and [found.classes[label] for label in found.labels] == [*map(str, y)]
    x, y = arrays(6, labels=("dog", "cat"))
    found = npz(x=x, y=y)
    assert found.classes == ("cat", "dog") and [found.classes[label] for label in found.labels] == [*y]


@pytest.mark.parametrize("labels, remarked", [([0, 0, 0, 1, 1, 1], True), ([0, 1, 0, 1, 0, 1], True),
                                              ([0, 1, 1, 0, 1, 0], False)])
def test_labels_in_a_regular_order_are_a_remark(labels, remarked, npz):
    assert kinds(npz(x=arrays()[0], y=np.array(labels))) == ({"order": ("y",)} if remarked else {})


def test_arrays_that_are_no_images_with_labels_are_refused(npz):
    x, y = arrays()

    def message(**content) -> str:
        with pytest.raises(DataError) as refusal:
            npz(**content)
        return str(refusal.value)

    assert "x is float64 (6, 28, 28); expected uint8 (N, H, W) or (N, H, W, C)" in message(x=x / 255, y=y)
    assert "x is uint8 (6, 784)" in message(x=x.reshape(6, -1), y=y)
    assert "x is uint8 (6, 28, 28, 2)" in message(x=np.stack([x, x], axis=-1), y=y)
    assert "x is uint8 (0, 28, 28)" in message(x=x[:0], y=y[:0])
    assert "y is int64 (5,); expected 6 whole numbers or words" in message(x=x, y=y[:5])
    assert "y is float64 (6,)" in message(x=x, y=y / 2)
    assert "has one class, 1; expected two or more" in message(x=x, y=np.ones(6, int))
    assert "y_test has the label 4, which no training image has; the labels are 0, 1" in message(
        x_train=x, y_train=y, x_test=x, y_test=y + 4)
    assert "expected x_train, y_train, x_test, y_test or x, y" in message(images=x, labels=y)
    assert "cannot be read as an npz file" in message(x=x, y=np.array([{}] * 6, dtype=object))


@pytest.fixture
def data_dir(tmp_path, monkeypatch) -> Path:
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(datasets, "downloaded", functools.cache(datasets.downloaded.__wrapped__))
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["Fashion-MNIST", "fashionmnist", "KMNIST", "SVHN", "CIFAR-100", "cifar100"])
def test_further_dataset_comes_from_its_file_with_its_classes(name, data_dir):
    spec = FURTHER[name.lower().replace("-", "")]
    channels, *size = spec.image_shape
    x, y = arrays(6, (*size, 3) if channels == 3 else tuple(size), labels=(0, len(spec.classes) - 1))
    np.savez(data_dir / f"{spec.name}.npz", x_train=x, y_train=y, x_test=x[:3], y_test=y[:3])
    found = read_source(name, spec.image_shape)
    assert (found.name, found.source) == (spec.name, f"{spec.name}.npz in EFFCNN_DATA_DIR")
    assert found.classes == spec.classes and found.has_test and found.labels == [*y, *y[:3]]
    assert np.array_equal(found.pictures[4].pixels, x[4])


def test_further_datasets_have_as_many_classes_as_torchvision_says():
    import torchvision.datasets

    assert {spec.torchvision: len(spec.classes) for spec in FURTHER.values()} == {
        "FashionMNIST": 10, "KMNIST": 10, "SVHN": 10, "CIFAR100": 100}
    assert FURTHER["kmnist"].classes == tuple(torchvision.datasets.KMNIST.classes)
    assert all(list(spec.classes) == sorted(set(spec.classes)) for spec in (FURTHER["cifar100"], FURTHER["svhn"]))
    assert all(hasattr(torchvision.datasets, spec.torchvision) for spec in FURTHER.values())


def test_further_dataset_is_downloaded_or_says_where_its_file_belongs(data_dir, monkeypatch):
    with pytest.raises(DataError, match=r"there is no .*kmnist\.npz and no other source of KMNIST; put the file there"):
        read_source("KMNIST", GREY)  # conftest forbids downloads
    (x, y), asked = arrays(), []
    monkeypatch.setenv("EFFCNN_DOWNLOAD", "1")
    monkeypatch.setattr(datasets, "download", lambda name: asked.append(name) or {
        "x_train": x, "y_train": y, "x_test": x, "y_test": y})
    assert read_source("KMNIST", GREY).source == "torchvision download"
    assert asked == ["KMNIST"] and os.listdir(data_dir) == ["kmnist.npz"]
