import copy
import json
import os
import pickle
import random
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from effcnn_helpers.cli import recording
from effcnn_helpers.cli.recording import train_or_load, unfinished_dir, write_run
from effcnn_helpers.data import BatchLoader, DataError, Images, load_images, normalise
from effcnn_helpers.machine import tune_allocator
from effcnn_helpers.models import build_model
from effcnn_helpers.recipes import RECIPE_VERSION, RunConfig
from effcnn_helpers.records import RecordError, read_network, read_run
from effcnn_helpers.training import (
    SCHEMA_VERSION,
    fresh_correct,
    last_whole_checkpoint,
    predict,
    split_for,
    train,
    weight_bytes,
)


def assert_same_weights(first: nn.Module, second: nn.Module) -> None:
    """Bit for bit, BatchNorm statistics included."""
    other = second.state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, other[name]), name


def without_clock(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_same_seed_gives_the_same_run_bit_for_bit(tiny, digits, tiny_run):
    record, network = tiny_run
    torch.rand(5), np.random.rand(5), random.random()  # whatever was drawn before has no say
    again, network_again = train(tiny, digits, threads=1)
    assert_same_weights(network, network_again)
    assert without_clock(again.epochs) == without_clock(record.epochs)
    assert again.misclassified == record.misclassified


def test_other_seed_gives_another_run(tiny, digits, tiny_run):
    record, network = tiny_run
    other, other_network = train(replace(tiny, seed=1), digits, threads=1)
    assert other.epochs[0]["train_loss"] != record.epochs[0]["train_loss"]
    assert not torch.equal(network.conv1.conv.weight, other_network.conv1.conv.weight)


def test_weights_differ_from_where_training_started(tiny, tiny_run):
    torch.manual_seed(tiny.seed)
    assert not torch.equal(build_model(tiny.model).conv1.conv.weight, tiny_run[1].conv1.conv.weight)


@pytest.mark.parametrize("optimizer, learning_rate", [("sgd", 0.1), ("adam", 0.003)])
def test_training_is_the_plain_loop_that_the_notebooks_teach(optimizer, learning_rate, tiny, digits):
    """Composer's Trainer against a loop in PyTorch alone: the same weights and losses, within 1e-6."""
    config = replace(tiny, optimizer=optimizer, learning_rate=learning_rate, seed=4, train_images=300)
    record, trained = train(config, digits, threads=1)

    torch.manual_seed(4)
    network = build_model(config.model).to(memory_format=torch.channels_last)
    if optimizer == "sgd":
        update = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.9)
    else:
        update = torch.optim.Adam(network.parameters(), lr=learning_rate)
    loader = BatchLoader(digits.train.first(300), "mnist", 128, shuffle=True, seed=4)
    train_losses, test_losses = [], []
    for loader.epoch in range(2):
        network.train()
        loss_sum = 0.0
        for x, y in loader:
            loss = nn.functional.cross_entropy(network(x), y)
            update.zero_grad()
            loss.backward()
            update.step()
            loss_sum += loss.item() * len(y)
        train_losses.append(loss_sum / 300)
        network.eval()
        with torch.no_grad():
            logits = network(normalise(digits.test.x[:200], "mnist"))
            test_losses.append(nn.functional.cross_entropy(logits, digits.test.y[:200]).item())

    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], tensor, atol=1e-6, rtol=0, msg=name)
    assert [row["train_loss"] for row in record.epochs] == pytest.approx(train_losses, abs=1e-6)
    assert [row["test_loss"] for row in record.epochs] == pytest.approx(test_losses, abs=1e-5)
    assert record.correct == (logits.argmax(dim=1) == digits.test.y[:200]).sum()


def test_composers_last_accuracy_is_the_recorded_one(tiny_run):
    record, _ = tiny_run
    assert record.epochs[-1]["test_accuracy_percent"] == pytest.approx(record.accuracy_percent, abs=1e-4)


def test_record_describes_its_run(tiny, digits, tiny_run):
    record, network = tiny_run
    assert record.config == tiny
    assert (record.schema_version, record.recipe_version) == (SCHEMA_VERSION, RECIPE_VERSION["mnist"])
    assert record.parameters == 1_560
    assert len(record.epochs) == 2 and [row["learning_rate"] for row in record.epochs] == [0.1, 0.1]
    assert record.data == {"source": digits.source, "real": False, "sha256": digits.sha256}
    assert record.train_seconds == sum(row["seconds"] for row in record.epochs) > 0
    assert record.started <= record.ended and record.started.endswith("+00:00")
    assert record.resumed is False
    assert record.environment["torch"] == torch.__version__.split("+")[0]
    assert (record.environment["composer"], record.environment["threads"]) == ("0.32.1", 1)
    assert set(record.git) == {"commit", "modified"}

    predicted = predict(network, digits.test.first(200), "mnist").argmax(dim=1)
    wrong = {index: predicted[index].item() for index in range(200) if predicted[index] != digits.test.y[index]}
    assert record.misclassified == wrong
    assert (record.correct, record.total) == (200 - len(wrong), 200)


def test_fresh_statistics_are_measured_on_the_training_images_and_the_network_stays_as_it_is(tiny, digits, tiny_run):
    """The labels are what the network answers with the right statistics, so any others miss some of them."""
    record, network = tiny_run
    assert record.fresh_correct is None
    inverted = replace(digits, train=replace(digits.train, x=255 - digits.train.x))
    train_images, test_images = split_for(tiny, inverted)
    answers = {}
    for name, images in {"training images": train_images, "test images": test_images, "running": None}.items():
        by_hand = copy.deepcopy(network)
        if images:
            update_bn([normalise(x, "mnist") for x in images.x.split(128)], by_hand)
        answers[name] = predict(by_hand, digits.test, "mnist").argmax(dim=1)
    labelled = replace(inverted, test=replace(digits.test, y=answers["training images"]))
    for name in ("test images", "running"):
        assert not torch.equal(answers[name][:200], labelled.test.y[:200]), f"statistics of the {name} answer alike"
    before = copy.deepcopy(network.state_dict())
    assert fresh_correct(network, tiny, labelled) == 200
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_recorded_run_counts_what_is_right_with_fresh_statistics(tiny, digits, tmp_path):
    record = train_or_load(tiny, digits, tmp_path, threads=1)
    assert record.fresh_correct == fresh_correct(read_network(record, tmp_path), tiny, digits)


def test_sizes_are_those_of_the_files(tmp_path, tiny_run):
    record, network = tiny_run
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    assert record.bytes == weight_bytes(network)
    # The name of a file is part of torch's archive: allow for it.
    assert record.bytes["state_dict"] == pytest.approx((tmp_path / "weights.pt").stat().st_size, abs=1_000)
    folder = write_run(record, network)
    assert record.bytes["safetensors"] == (folder / "weights.safetensors").stat().st_size


def test_predict_is_in_evaluation_mode_in_order_and_blind_to_batches(digits, tiny_run):
    network = tiny_run[1].train()
    logits = predict(network, digits.test, "mnist")
    assert not network.training and not logits.requires_grad
    alone = torch.cat([predict(network, Images(digits.test.x[i:i + 1], digits.test.y[i:i + 1]), "mnist")
                       for i in (0, 499, 500, 999)])
    torch.testing.assert_close(logits[[0, 499, 500, 999]], alone, atol=1e-4, rtol=0)


def test_on_epoch_is_called_with_the_rows_so_far(tiny, digits):
    seen = []
    record, _ = train(tiny, digits, threads=1, on_epoch=lambda rows: seen.append(list(rows)))
    assert seen == [record.epochs[:1], record.epochs]


def test_progress_bar_shows_epochs_and_only_when_asked(tiny, digits, capsys, monkeypatch):
    train(tiny, digits, threads=1)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("EFFCNN_PROGRESS", "1")
    train(tiny, digits, threads=1, progress=False)
    assert capsys.readouterr().err == ""
    train(tiny, digits, threads=1)
    shown = capsys.readouterr().err
    assert "1.5k-dw seed 0" in shown and "epoch 2/2" in shown


def test_divergence_stops_the_run_and_names_epoch_and_learning_rate(tiny, digits):
    config = replace(tiny, learning_rate=1e6, train_images=1_000)
    with pytest.raises(RuntimeError, match=r"epoch \d, batch \d.*learning rate 1e\+06.*smaller") as stop:
        train(config, digits, threads=1)
    assert type(stop.value).__name__ == "DivergedError"
    assert "training loss" in str(stop.value) and ("nan" in str(stop.value) or "inf" in str(stop.value))


def test_divergence_in_the_very_last_step_is_noticed_too(tiny, digits):
    """The loss of that step is still finite; only the evaluation after it shows what became of the weights."""
    config = replace(tiny, learning_rate=1e30, epochs=1, train_images=64)
    with pytest.raises(RuntimeError, match=r"epoch 1.*learning rate 1e\+30"):
        train(config, digits, threads=1)


def test_dataset_of_another_kind_is_refused(tiny):
    with pytest.raises(DataError, match="1.5k-dw is a mnist model, but the dataset given is cifar10"):
        train(tiny, load_images("cifar10"))


@pytest.mark.parametrize("field, count", [("train_images", 4_001), ("test_images", 1_001)])
def test_too_few_images_are_refused(field, count, tiny, digits):
    with pytest.raises(DataError, match=f"{count:,} images asked for"):
        train(replace(tiny, **{field: count}), digits)


def test_splits_of_a_run(digits):
    config = RunConfig("7k", train_images=3_000)
    for evaluate_on, first_test_image, test_size in (("test", digits.test.x[0], 1_000),
                                                     ("validation", digits.train.x[3_334], 666)):
        train_images, test_images = split_for(replace(config, evaluate_on=evaluate_on), digits)
        assert torch.equal(train_images.x, digits.train.x[:3_000])
        assert torch.equal(test_images.x[0], first_test_image) and len(test_images) == test_size
    with pytest.raises(DataError, match="4,000 images asked for, but this split holds 3,334"):
        split_for(replace(config, evaluate_on="validation", train_images=4_000), digits)


# Stopping and going on


class Stop(Exception):
    pass


def stop_in_epoch(epoch: int):
    def on_epoch(rows):
        if len(rows) == epoch:
            raise Stop
    return on_epoch


@pytest.fixture(scope="module")
def longer(tiny):
    return replace(tiny, epochs=4)


@pytest.fixture(scope="module")
def undisturbed(longer, digits):
    return train(longer, digits, threads=1)


def assert_ends_like(undisturbed, record, network):
    assert_same_weights(undisturbed[1], network)
    assert without_clock(record.epochs) == without_clock(undisturbed[0].epochs)
    assert record.misclassified == undisturbed[0].misclassified


def test_stopped_run_goes_on_from_its_last_checkpoint(longer, digits, undisturbed, tmp_path):
    with pytest.raises(Stop):
        train(longer, digits, checkpoints=tmp_path, threads=1, on_epoch=stop_in_epoch(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ep1.pt", "ep2.pt"]
    epochs = []
    record, network = train(longer, digits, checkpoints=tmp_path, threads=1,
                            on_epoch=lambda rows: epochs.append(len(rows)))
    assert epochs == [3, 4]
    assert record.resumed
    assert_ends_like(undisturbed, record, network)


def test_checkpoint_that_was_cut_off_is_passed_over(longer, digits, undisturbed, tmp_path):
    with pytest.raises(Stop):
        train(longer, digits, checkpoints=tmp_path, threads=1, on_epoch=stop_in_epoch(3))
    whole = (tmp_path / "ep2.pt").read_bytes()
    (tmp_path / "ep2.pt").write_bytes(whole[:len(whole) // 2])
    (tmp_path / "ep3.pt").write_bytes(b"")
    assert last_whole_checkpoint(tmp_path) == tmp_path / "ep1.pt"
    record, network = train(longer, digits, checkpoints=tmp_path, threads=1)
    assert record.resumed
    assert_ends_like(undisturbed, record, network)


def test_run_starts_again_when_no_checkpoint_is_whole(longer, digits, undisturbed, tmp_path):
    (tmp_path / "ep1.pt").write_bytes(b"PK\3\4 cut off")
    record, network = train(longer, digits, checkpoints=tmp_path, threads=1)
    assert not record.resumed
    assert_ends_like(undisturbed, record, network)


def test_last_whole_checkpoint_counts_epochs_as_numbers(tmp_path):
    assert last_whole_checkpoint(None) is None
    assert last_whole_checkpoint(tmp_path / "nowhere") is None
    assert last_whole_checkpoint(tmp_path) is None
    for epoch in (9, 10):
        with zipfile.ZipFile(tmp_path / f"ep{epoch}.pt", "w") as archive:
            archive.writestr("data", "weights")
    assert last_whole_checkpoint(tmp_path) == tmp_path / "ep10.pt"


def test_run_killed_after_its_last_checkpoint_still_ends_well(longer, digits, undisturbed, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(recording, "write_run", killed)
        train_or_load(longer, digits, threads=1)
    assert last_whole_checkpoint(unfinished_dir(longer, digits)).name == "ep4.pt"
    record = train_or_load(longer, digits, threads=1, on_epoch=lambda rows: pytest.fail("trained again"))
    assert record.resumed
    assert_ends_like(undisturbed, record, read_network(record))
    assert not unfinished_dir(longer, digits).exists()


def test_killed_process_leaves_a_run_that_goes_on_to_the_same_weights(worker, digits, tmp_path):
    config = RunConfig("1.5k-dw", epochs=4, train_images=1_500, test_images=300, profile="smoke")
    with worker(config, tmp_path) as process:
        for line in process.stdout:
            if line.startswith("{") and json.loads(line)["epoch"] == 2:
                process.kill()
                break
    assert process.returncode not in (0, 75)
    assert not (tmp_path / config.name).exists()
    assert last_whole_checkpoint(unfinished_dir(config, digits)) is not None

    with worker(config, tmp_path) as process:
        epochs = [json.loads(line)["epoch"] for line in process.stdout]
    assert process.returncode == 0
    assert epochs[-1] == 4 and 1 not in epochs
    record = read_run(tmp_path / config.name)
    assert record.resumed
    assert_ends_like(train(config, digits, threads=1), record, read_network(record, tmp_path))


# What importing and loading may not do


def test_importing_the_package_does_not_import_composer():
    """It takes seconds, and most of the package has no need of it."""
    modules = ["paper", "models", "data", "techniques", "recipes", "training", "records", "tables", "plots", "latency",
               "notebook", "cli",
               "cli.results", "cli.verify", "cli.sweep", "cli.worker", "cli.figures"]
    code = f"import sys, {', '.join(f'effcnn_helpers.{name}' for name in modules)}; print('composer' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "False"


class WritesAFile:
    """What a pickled "weights" file could do to whoever loads it."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))],
                         ids=["torch", "pickle"])
def test_pickled_weights_are_refused_and_not_executed(save, tiny_run, tmp_path):
    record, network = tiny_run
    folder = write_run(record, network)
    save({**network.state_dict(), "more": WritesAFile(tmp_path / "executed")}, folder / "weights.safetensors")
    with pytest.raises(RecordError, match=r"weights\.safetensors does not hold the weights of 1\.5k-dw"):
        read_network(record)
    assert not (tmp_path / "executed").exists()


def test_allocator_is_tuned_where_there_is_glibc(monkeypatch):
    assert tune_allocator() in (True, False)
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert tune_allocator() is False
