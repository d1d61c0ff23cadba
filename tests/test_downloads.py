"""Downloads from a server on this machine: what arrives, and every way in which it may not."""

import contextlib
import gc
import gzip
import hashlib
import http.server
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import psutil
import pytest
import torchvision.datasets

from effcnn_helpers import downloads
from effcnn_helpers.downloads import DownloadError, download
from effcnn_helpers.errors import EffcnnError

TRICKLE = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"  # and then nearly nothing
KEYS = ("x_train", "y_train", "x_test", "y_test")
FILES = dict(zip(KEYS, ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz",
                        "t10k-labels-idx1-ubyte.gz"), strict=True))


def small_arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {"x_train": random.integers(0, 256, (30, 28, 28), np.uint8), "y_train": np.arange(30, dtype=np.uint8) % 10,
            "x_test": random.integers(0, 256, (20, 28, 28), np.uint8), "y_test": np.arange(20, dtype=np.uint8) % 10}


def idx_files(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    """The four files as MNIST's authors publish them."""
    return {name: gzip.compress(struct.pack(f">BBBB{arrays[key].ndim}I", 0, 0, 8, arrays[key].ndim,
                                            *arrays[key].shape) + arrays[key].tobytes())
            for key, name in FILES.items()}


@pytest.fixture
def point_torchvision_at(tmp_path, monkeypatch):
    """A function that lets torchvision, here and in a downloading process, ask a port of this machine."""
    def point(port: int, files: dict[str, bytes] | None = None) -> None:
        where = f"http://127.0.0.1:{port}/"
        sums = [(name, hashlib.md5(content).hexdigest()) for name, content in (files or {}).items()]
        monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", [where])
        monkeypatch.setattr(torchvision.datasets.MNIST, "resources", sums or torchvision.datasets.MNIST.resources)
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", f"{where}cifar-10-python.tar.gz")
        (tmp_path / "path").mkdir()
        # Python imports a module of this name when it starts.
        (tmp_path / "path/sitecustomize.py").write_text(f"""
import sys
if "effcnn_helpers.downloads" in sys.orig_argv:
    from torchvision.datasets import MNIST
    MNIST.mirrors = [{where!r}]
    MNIST.resources = {sums} or MNIST.resources
""")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "path"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")

    return point


@pytest.fixture
def serve(point_torchvision_at):
    """A function that serves files on this machine to torchvision; it returns the paths asked for."""
    servers = []

    def start(files: dict[str, bytes], served: dict[str, bytes] | None = None) -> list[str]:
        asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                content = (files if served is None else served).get(self.path[1:])
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
        point_torchvision_at(server.server_address[1], files)
        return asked

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def answering(point_torchvision_at):
    """A function that starts a server that is none: it sends `text` to each caller, then a byte per `pause` seconds.

    It returns the list of those who called.
    """
    listener, stopping = socket.create_server(("127.0.0.1", 0)), threading.Event()
    threads, callers = [], []

    def answer(connection: socket.socket, text: bytes, pause: float | None):
        with connection:
            try:
                connection.recv(4_096)
                connection.sendall(text)
                while pause and not stopping.wait(pause):
                    connection.sendall(b".")
            except OSError:
                pass  # the caller has gone

    def listen(text: bytes, pause: float | None):
        while not stopping.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            callers.append(connection)
            threads.append(threading.Thread(target=answer, args=(connection, text, pause)))
            threads[-1].start()

    def start(text: bytes, pause: float | None = None) -> list:
        listener.settimeout(0.1)
        threads.append(threading.Thread(target=listen, args=(text, pause)))
        threads[-1].start()
        point_torchvision_at(listener.getsockname()[1])
        return callers

    yield start
    stopping.set()
    for thread in threads:
        thread.join()
    listener.close()


def downloading() -> list[psutil.Process]:
    """The downloading processes that this test started and that have not ended."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie counts as none, too
            if "effcnn_helpers.downloads" in child.cmdline():
                found.append(child)
    return found


def test_download_gives_the_arrays_in_keras_layout_and_says_how_to_do_without(serve, tmp_path, capsys, monkeypatch):
    arrays = small_arrays()
    asked = serve(idx_files(arrays))
    monkeypatch.chdir(tmp_path)
    found = download("MNIST")
    assert list(found) == list(KEYS)
    for key in KEYS:
        assert found[key].dtype == np.uint8 and np.array_equal(found[key], arrays[key])
    assert {path[1:] for path in asked} == set(FILES.values())
    assert capsys.readouterr().out == "downloading MNIST, at most 5 minutes; EFFCNN_DOWNLOAD=0 skips it\n"
    assert [path.name for path in tmp_path.iterdir()] == ["path"]


# Whatever torchvision meets ends as one line


def cause(name: str = "MNIST") -> str:
    """Why a download fails, as its process says it."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # urllib leaves sockets to the collector
        said = downloads.failure(name, Path(folder))
        gc.collect()
    assert said and "\n" not in said
    return said


def test_dataset_with_channels_first_and_labels_of_another_name_comes_in_the_same_layout(tmp_path, monkeypatch):
    """So torchvision has SVHN."""
    arrays = {part: np.random.default_rng(size).integers(0, 256, (size, 3, 32, 30), np.uint8)
              for part, size in (("train", 5), ("test", 2))}

    class HouseNumbers:
        def __init__(self, root, split, download):
            assert download
            self.data, self.labels = arrays[split], np.arange(len(arrays[split]))

    monkeypatch.setattr(torchvision.datasets, "SVHN", HouseNumbers)
    assert downloads.failure("SVHN", tmp_path) is None
    with np.load(tmp_path / "arrays.npz") as file:
        assert set(file) == set(KEYS)
        for part in ("train", "test"):
            assert np.array_equal(file[f"x_{part}"][:, 4, 7], arrays[part][:, :, 4, 7])
            assert np.array_equal(file[f"y_{part}"], range(len(arrays[part])))


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10"])
def test_no_server(name, point_torchvision_at):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    point_torchvision_at(port)
    assert "Connection refused" in cause(name)


def test_file_that_is_not_there(serve):
    serve(idx_files(small_arrays()), served={})
    assert "HTTP Error 404" in cause()


def test_error_page_in_place_of_the_file(serve):
    files = idx_files(small_arrays())
    serve(files, served=dict.fromkeys(files, b"<html>sign in</html>"))
    assert cause() == "RuntimeError: File not found or corrupted."


@pytest.mark.parametrize("text, shown", [(b"", "RemoteDisconnected"), (b"220 no server\r\n\r\n", "BadStatusLine")])
def test_server_that_talks_nonsense(text, shown, answering):
    answering(text)
    assert shown in cause()


@pytest.mark.parametrize("proxy", ["http://", "http://:8080", "nonsense", "//"])
def test_proxy_that_cannot_be_one(proxy, point_torchvision_at, monkeypatch):
    point_torchvision_at(9)
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", proxy)
    assert ": " in cause()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied"),
                                   ValueError("no host\ngiven"), MemoryError()])
def test_arrays_that_cannot_be_written(error, serve, monkeypatch):
    def fail(*_, **__):
        raise error

    serve(idx_files(small_arrays()))
    monkeypatch.setattr(np, "savez", fail)
    assert cause() == f"{type(error).__name__}: {' '.join(str(error).split())}"


# Whatever becomes of the process ends as one error


def refused(seconds: float = 60) -> str:
    """The words with which a download fails, always of the same class and always in time."""
    start = time.monotonic()
    with pytest.raises(DownloadError) as refusal:
        download("MNIST", seconds)
    assert time.monotonic() - start < seconds + 5
    assert downloading() == []
    assert isinstance(refusal.value, EffcnnError)
    assert str(refusal.value).startswith("MNIST could not be downloaded: ")
    return str(refusal.value)


def test_cause_comes_out_of_the_process_and_progress_is_shown_on_the_way(serve, monkeypatch, capsys):
    monkeypatch.setenv("EFFCNN_PROGRESS", "1")
    files = idx_files(small_arrays())
    serve(files, served=dict.fromkeys(files, b"<html>sign in</html>"))
    assert refused(seconds=150).endswith(": RuntimeError: File not found or corrupted.")
    shown = capsys.readouterr().out
    assert "at most 2.5 minutes" in shown and "\r0.0 MB" in shown and shown.endswith(" MB\n")


def test_server_that_sends_a_byte_now_and_then_is_given_up_when_the_time_is_up(answering, monkeypatch):
    """No read of it takes long, so a limit for each read would never end it."""
    asked = answering(TRICKLE, pause=0.2)
    clock = time.monotonic
    # The minutes pass at once, but not before the bytes trickle.
    monkeypatch.setattr(downloads.time, "monotonic", lambda: clock() + 300 * (len(asked) > 1))
    with pytest.raises(DownloadError, match="^MNIST could not be downloaded: after 300 seconds only 0.0 MB were there"):
        download("MNIST")
    assert downloading() == []


@pytest.mark.parametrize("end, shown", [("os._exit(3)", "its process ended with status 3"),
                                        ("os.kill(os.getpid(), 9)", "its process ended with status -9")])
def test_process_that_ends_without_a_word(end, shown, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(f"import os, sys\nif 'effcnn_helpers.downloads' in sys.orig_argv: {end}")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert refused().endswith(shown)


def test_folder_for_temporary_files_that_is_full(monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads.tempfile, "TemporaryDirectory", full)
    assert "No space left on device" in refused()


def test_python_that_cannot_be_started(monkeypatch):
    monkeypatch.setattr(downloads.sys, "executable", "/nowhere/python")
    assert "/nowhere/python" in refused()


def test_interrupted_download_leaves_no_process(answering, monkeypatch):
    answering(TRICKLE, pause=0.2)

    def interrupt(folder):
        assert downloading()
        raise KeyboardInterrupt

    monkeypatch.setenv("EFFCNN_PROGRESS", "1")
    monkeypatch.setattr(downloads, "megabytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        download("MNIST")
    assert downloading() == []


def test_download_ends_with_a_process_that_is_killed(answering):
    answering(TRICKLE, pause=0.2)
    parent = subprocess.Popen([sys.executable, "-c",
                               "from effcnn_helpers.downloads import download; download('MNIST')"])
    while not downloading():
        time.sleep(0.1)
    [child] = downloading()
    parent.kill()
    parent.wait()
    assert psutil.wait_procs([child], timeout=20)[1] == []
