"""What may happen to a machine while runs are trained and recorded: nothing recorded is lost, nothing is half there.

`make soak` tries each fault more often (TESTS_SOAK=1).
"""

import datetime
import errno
import multiprocessing
import os
import random
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import result_of
from process_of_a_run import signal_after, train_in_process

from effcnn_helpers.cli import recording
from effcnn_helpers.cli.recording import train_or_load
from effcnn_helpers.cli.run import write_whole
from effcnn_helpers.errors import EffcnnError
from effcnn_helpers.recipes import Recipe, RunConfig
from effcnn_helpers.records import read_run, recorded_dir
from effcnn_helpers.training import last_whole_checkpoint, train

SOAK = bool(os.environ.get("TESTS_SOAK"))
KILLS = int(os.environ.get("TESTS_KILLS", 20 if SOAK else 1))  # of each stack
STACKS = [(), ("swa",), ("sam",), ("cutout", "blurpool", "mixup")]


def small(techniques: tuple[str, ...] = (), **changes) -> RunConfig:
    """Four short epochs."""
    options = dict(seed=1, train_images=128, test_images=100)
    recipe = Recipe("small", epochs=4, batch_size=64)
    return RunConfig("1.5k-dw", "mnist", recipe, techniques, **{**options, **changes})


@pytest.fixture(scope="module")
def forked():
    """A function that runs such a process; it need not import Composer again, as its parent has. Its exit status."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["composer.algorithms", "effcnn_helpers.callbacks", "effcnn_helpers.cli.recording"])

    def start(config: RunConfig, root: Path, seconds: float | None = None) -> int:
        environment = {name: os.environ[name] for name in ("EFFCNN_CACHE_DIR", "EFFCNN_DATA_DIR")}
        process = context.Process(target=train_in_process, args=(config, root, environment, seconds))
        process.start()
        process.join()
        return process.exitcode

    warm = context.Process(target=time.time)
    warm.start()
    warm.join()  # now the parent of all has imported Composer
    return start


def weights_of(config: RunConfig, root: Path) -> bytes:
    return (root / config.name / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("techniques", STACKS, ids=lambda names: "+".join(names) or "baseline")
def test_run_killed_at_any_moment_goes_on_to_the_same_record(techniques, forked, digits_folder, tmp_path,
                                                             monkeypatch):
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(digits_folder))
    config = small(techniques)
    undisturbed = tmp_path / "undisturbed"
    assert forked(config, tmp_path / "warm") == 0  # the first one takes longer
    assert forked(config, undisturbed) == 0
    seconds = float((undisturbed / "seconds").read_text())
    expected = result_of(read_run(undisturbed / config.name))
    killed = resumed = 0
    for kill in range(KILLS):
        root = tmp_path / str(kill)
        status = forked(config, root, seconds * random.uniform(0.1, 1))
        assert status in (-signal.SIGKILL, 0)
        assert not (root / config.name).exists() or read_run(root / config.name)
        assert forked(config, root) == 0
        record = read_run(root / config.name)
        assert result_of(record) == expected, kill
        assert weights_of(config, root) == weights_of(config, undisturbed), kill
        killed += status != 0
        resumed += record.resumed
    print(f"{killed} of {KILLS} killed in time, {resumed} went on from a checkpoint", flush=True)
    assert killed >= KILLS / 2 and resumed or not SOAK


# An interrupted notebook


@pytest.fixture(scope="module")
def undisturbed(digits):
    """(record, weights, seconds of processor time) of a run of `small`."""
    train(small(), digits, threads=1)  # the first one imports Composer
    start = time.process_time()
    record, network = train(small(), digits, threads=1)
    return record, network.state_dict(), time.process_time() - start


@pytest.mark.parametrize("techniques", STACKS, ids=lambda names: "+".join(names) or "baseline")
def test_notebook_interrupted_while_it_trains_goes_on_cleanly(techniques, undisturbed, digits, terminal_signals):
    """As by the stop button, at any moment: what is trained next in the same kernel is as in a fresh one."""
    record, weights, seconds = undisturbed
    interrupted = 0
    for _ in range(KILLS):
        over = threading.Event()
        button = threading.Thread(target=signal_after, args=(seconds * random.uniform(0.05, 0.7), signal.SIGINT, over))
        button.start()
        try:
            train(small(techniques), digits)
            over.set()
            button.join()
        except KeyboardInterrupt:
            interrupted += 1
    print(f"{interrupted} of {KILLS} interrupted", flush=True)
    again, network = train(small(), digits, threads=1)
    assert result_of(again) == result_of(record)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert interrupted >= KILLS / 2 or not SOAK


def test_clock_that_jumps_changes_nothing(undisturbed, digits, monkeypatch):
    """As when a laptop finds its time server, or summer time ends, in the middle of a run."""
    import composer.trainer.trainer

    clock = iter(range(0, -1_000_000, -3_600))  # an hour back at each look

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, zone=None):
            return datetime.datetime(2026, 1, 1, tzinfo=zone) + datetime.timedelta(seconds=next(clock))

    monkeypatch.setattr(composer.trainer.trainer, "datetime", SimpleNamespace(
        datetime=Jumping, timedelta=datetime.timedelta))
    monkeypatch.setattr("effcnn_helpers.machine.datetime", SimpleNamespace(datetime=Jumping, UTC=datetime.UTC))
    monkeypatch.setattr(time, "time", lambda: -next(clock))
    record = train_or_load(small(), digits, progress=False, threads=1)
    assert record.ended < record.started and record.train_seconds > 0
    assert result_of(record) == result_of(undisturbed[0])
    assert read_run(recorded_dir() / small().name) == record


# A disk that is full, or closed


FULL = OSError(errno.ENOSPC, "No space left on device")
CLOSED = OSError(errno.EROFS, "Read-only file system")


@pytest.mark.parametrize("hidden", [False, True], ids=["as the system says it", "as torch says it"])
def test_full_disk_under_a_checkpoint_is_named_and_the_run_goes_on_later(hidden, undisturbed, digits, monkeypatch):
    save, written = torch.save, []

    def fail(content, file, *arguments, **options):
        if isinstance(getattr(file, "name", None), str):
            written.append(file.name)
            if len(written) == 3:
                file.write(b"PK half of it")
                try:
                    raise FULL
                finally:
                    if hidden:
                        raise RuntimeError("[enforce fail at inline_container.cc] . unexpected pos")
        return save(content, file, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(EffcnnError) as refusal:
        patch.setattr(torch, "save", fail)
        train_or_load(small(), digits, progress=False, threads=1)
    assert "No space left on device" in str(refusal.value) and "make room" in str(refusal.value)
    assert "EFFCNN_CACHE_DIR" in str(refusal.value)
    record = train_or_load(small(), digits, progress=False, threads=1)
    assert record.resumed and result_of(record) == result_of(undisturbed[0])


def test_mistake_of_ours_in_training_is_not_blamed_on_the_disk(digits, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(recording, "train", fail)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train_or_load(small(), digits)


@pytest.mark.parametrize("error", [FULL, CLOSED], ids=["full", "closed"])
def test_cache_that_cannot_be_written_is_named_with_its_owner(error, digits, monkeypatch):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(EffcnnError, match=f"unfinished/.*{error.strerror}.*belongs to .*EFFCNN_CACHE_DIR"):
        train_or_load(small(), digits)


@pytest.mark.parametrize("error", [FULL, CLOSED], ids=["full", "closed"])
def test_notebook_that_cannot_be_written_stays_as_it_was(error, tmp_path, monkeypatch):
    path = tmp_path / "01.ipynb"
    path.write_text("old")
    write_text = Path.write_text

    def half(self, text, **options):
        write_text(self, text[:3], **options)
        raise error

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(EffcnnError, match=f"01.ipynb cannot be read or written .{error.strerror}.*; make room"):
        write_whole(path, "new and longer")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_checkpoint_with_a_flipped_bit_is_passed_over(digits, undisturbed, tmp_path):
    """Anywhere in its first or last part, or in the weights."""
    class Stop(Exception):
        pass

    def stop(rows):
        if len(rows) == 3:
            raise Stop

    with pytest.raises(Stop):
        train(small(), digits, checkpoints=tmp_path, threads=1, on_epoch=stop)
    last, earlier = tmp_path / "ep2.pt", tmp_path / "ep1.pt"
    whole = last.read_bytes()
    refused = 0
    positions = range(100, len(whole), max(1, len(whole) // (40 if SOAK else 8)))
    for position in positions:
        last.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1:])
        found = last_whole_checkpoint(tmp_path)
        assert found in (last, earlier)
        refused += found == earlier
        if found == last:  # where nothing of the content is
            assert torch.load(last, weights_only=False).keys() == torch.load(earlier, weights_only=False).keys()
    assert refused > len(positions) / 2
    last.write_bytes(whole[:len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 4]) + whole[len(whole) // 2 + 1:])
    record, network = train(small(), digits, checkpoints=tmp_path, threads=1)
    assert record.resumed and result_of(record) == result_of(undisturbed[0])
