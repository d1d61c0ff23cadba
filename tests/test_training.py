import copy
import ctypes
import itertools
import os
import pickle
import platform
import random
import signal
import subprocess
import sys
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from composer.functional import compute_ema
from torch import nn
from torch.optim.swa_utils import update_bn

from effcnn_helpers import plots, statistics
from effcnn_helpers.batches import BatchLoader, normalise
from effcnn_helpers.cli import recording
from effcnn_helpers.cli.recording import train_or_load, unfinished_dir
from effcnn_helpers.datasets import DataError, DatasetSpec, Images, dataset_from_arrays, load_images
from effcnn_helpers.errors import EffcnnError
from effcnn_helpers.machine import prepare, tune_allocator
from effcnn_helpers.models import GapHead, build_model
from effcnn_helpers.recipes import RECIPES, USUAL, Recipe, RunConfig, recipe_of
from effcnn_helpers.records import (
    SCHEMA_VERSION,
    RecordError,
    read_network,
    read_run,
    recorded_dir,
    weight_bytes,
    write_run,
)
from effcnn_helpers.techniques import add_to_network
from effcnn_helpers.training import (
    fresh_correct,
    in_precision,
    last_whole_checkpoint,
    predict,
    split_for,
    train,
    train_own,
)


def by_recipe(config: RunConfig, **changes) -> RunConfig:
    """The configuration with other values in its recipe."""
    return replace(config, recipe=replace(config.recipe, **changes))


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


# A recipe


def rates_by_hand(recipe: Recipe, steps: int) -> list[float]:
    """The rate in the middle of each step: up a straight line, then level or down to 0."""
    rising = recipe.rise * steps
    rates = []
    for step in range(steps):
        at = step + 0.5
        if at < rising:
            rates.append(recipe.learning_rate * at / rising)
        elif recipe.schedule == "linear":
            rates.append(recipe.learning_rate * (steps - at) / (steps - rising))
        else:
            rates.append(recipe.learning_rate)
    return rates


def plain_loop(network: nn.Module, recipe: Recipe, images: Images, seed: int,
               teacher: nn.Module | None = None) -> list[float]:
    """Train a network in PyTorch alone, as the notebooks teach it; returns the mean loss of each epoch."""
    kernels = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    if recipe.optimizer == "sgd":
        update = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
    else:
        update = torch.optim.Adam(groups, lr=recipe.learning_rate, betas=(recipe.momentum, 0.999))
    loader = BatchLoader(images, "mnist", recipe.batch_size, shuffle=True, seed=seed,
                         augmentation=recipe.augmentation)
    rates = iter(rates_by_hand(recipe, recipe.epochs * len(loader)))
    losses = []
    mean = copy.deepcopy(network)
    network.train()
    for loader.epoch in range(recipe.epochs):
        loss_sum = 0.0
        for x, y in loader:
            rate = next(rates)
            for group in update.param_groups:
                group["lr"] = rate
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                logits = network(x)
            logits = logits.float()
            loss = nn.functional.cross_entropy(logits, y)
            if teacher:
                wanted = teacher(x).detach().div(4).softmax(dim=1)
                own = logits.div(4).softmax(dim=1)
                loss = 0.1 * loss + 0.9 * 16 * (wanted * (wanted / own).log()).sum(dim=1).mean()
            update.zero_grad()
            loss.backward()
            update.step()
            if recipe.average:
                compute_ema(network, mean, smoothing=0.5 ** (1 / (recipe.average * len(loader))))
            loss_sum += loss.item() * len(y)
        losses.append(loss_sum / len(images))
    if recipe.average:
        averaged = {name: value for name, value in mean.state_dict().items() if value.is_floating_point()}
        network.load_state_dict({**network.state_dict(), **averaged})
    if recipe.fresh_statistics:
        update_bn([normalise(x, "mnist") for x in images.x.split(500)], network)
    return losses


@pytest.mark.parametrize("recipe", [
    Recipe("constant", epochs=2),
    Recipe("adam", epochs=2, optimizer="adam", learning_rate=0.003),
    Recipe("falling", epochs=2, schedule="linear", rise=0.3),
    Recipe("decayed", epochs=2, batch_size=64, momentum=0.5, weight_decay=0.05),
    Recipe("adam falling", epochs=2, optimizer="adam", learning_rate=0.01, momentum=0.5, weight_decay=0.05,
           schedule="linear"),
    Recipe("augmented", epochs=2, rise=0.5, augmentation=("flip", "hole")),
    Recipe("averaged", epochs=2, average=0.5),
    Recipe("lowered", epochs=2, precision="bfloat16"),
    Recipe("fresh", epochs=2, average=0.5, augmentation=("hole",), fresh_statistics=True),
], ids=lambda recipe: recipe.name)
def test_training_is_the_plain_loop_that_the_notebooks_teach(recipe, tiny, digits):
    """Composer's Trainer against a loop in PyTorch alone: the same weights and losses, within 1e-6.

    By a network whose widths are multiples of 8, so that BatchNorm is torch's own (see batchnorm.py).
    """
    config = replace(tiny, model="25k", recipe=recipe, seed=4, train_images=300)
    record, trained = train(config, digits, threads=1)

    torch.manual_seed(4)
    network = build_model(config.model).to(memory_format=torch.channels_last)
    losses = plain_loop(network, recipe, digits.train.first(300), seed=4)
    network.eval()
    with torch.no_grad():
        logits = network(normalise(digits.test.x[:200], "mnist"))
    test_loss = nn.functional.cross_entropy(logits, digits.test.y[:200]).item()

    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], tensor, atol=1e-6, rtol=0, msg=name)
    assert [row["train_loss"] for row in record.epochs] == pytest.approx(losses, abs=1e-6)
    assert record.epochs[-1]["test_loss"] == pytest.approx(test_loss, abs=1e-5)
    assert record.correct == (logits.argmax(dim=1) == digits.test.y[:200]).sum()
    steps = len(BatchLoader(digits.train.first(300), "mnist", recipe.batch_size))
    assert [row["learning_rate"] for row in record.epochs] == pytest.approx(
        rates_by_hand(recipe, 2 * steps)[::steps])


@pytest.mark.parametrize("precision, lowered", [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_precision_is_that_of_training_alone_and_of_all_but_blurpool(precision, lowered):
    network = add_to_network(build_model("25k"), ("blurpool",)).train()
    seen = {}
    for name in ("conv2.conv", "maxpool1", "conv3.conv"):
        network.get_submodule(name).register_forward_hook(
            lambda layer, x, y, name=name: seen.update({name: y.dtype}))
    x = torch.randn(4, 1, 28, 28)
    with pytest.raises(KeyboardInterrupt), in_precision(network, precision):
        assert network(x).dtype == torch.float32
        assert seen == {"conv2.conv": lowered, "maxpool1": torch.float32, "conv3.conv": lowered}
        network.eval()(x)
        assert set(seen.values()) == {torch.float32}
        raise KeyboardInterrupt
    network.train()(x)
    assert set(seen.values()) == {torch.float32} and not torch.is_autocast_enabled("cpu")


def test_student_learns_from_labels_and_from_its_teachers_answers(tiny, digits):
    """Against the loss written out, in a loop in PyTorch alone. Its teacher is the recorded run named by the recipe."""
    config = replace(by_recipe(tiny, teacher="7k"), model="25k", seed=4)
    with pytest.raises(RecordError, match="7k"):
        train(config, digits, threads=1)
    teacher = train(config.taught_by, digits, threads=1)
    write_run(*teacher)
    before = copy.deepcopy(teacher[1].state_dict())
    record, student = train(config, digits, threads=1)

    torch.manual_seed(4)
    network = build_model("25k").to(memory_format=torch.channels_last)
    losses = plain_loop(network, config.recipe, digits.train.first(256), seed=4, teacher=teacher[1])
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], tensor, atol=1e-5, rtol=0, msg=name)
    assert [row["train_loss"] for row in record.epochs] == pytest.approx(losses, abs=1e-5)
    assert_same_weights(read_network(read_run(recorded_dir() / config.taught_by.name)), teacher[1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher[1].state_dict().items())
    assert record.parameters == 25_144 and config.taught_by.seed == 0


def test_folded_batchnorm_trains_as_torchs_own_to_rounding(tiny, tiny_run, digits):
    """The smallest network has widths that are no multiples of 8, for which training has a BatchNorm of its own."""
    torch.manual_seed(tiny.seed)
    network = build_model(tiny.model).to(memory_format=torch.channels_last)
    losses = plain_loop(network, tiny.recipe, digits.train.first(256), tiny.seed)
    assert [row["train_loss"] for row in tiny_run[0].epochs] == pytest.approx(losses, abs=1e-3)
    assert {type(module) for module in tiny_run[1].modules() if isinstance(module, nn.BatchNorm2d)} == {nn.BatchNorm2d}


@pytest.mark.parametrize("recipe, factors", [
    (Recipe("constant", epochs=1), {0: 1, 0.5: 1, 1: 1}),
    (Recipe("constant", epochs=1, rise=0.2), {0: 0, 0.1: 0.5, 0.2: 1, 0.6: 1, 1: 1}),
    (Recipe("linear", epochs=1, schedule="linear"), {0: 1, 0.25: 0.75, 1: 0}),
    (Recipe("linear", epochs=1, schedule="linear", rise=0.2), {0: 0, 0.05: 0.25, 0.2: 1, 0.6: 0.5, 1: 0}),
], ids=lambda value: value.name if isinstance(value, Recipe) else "")
def test_factor_of_the_rate_at_the_start_the_rise_and_the_end(recipe, factors):
    assert [recipe.factor(progress) for progress in factors] == pytest.approx(list(factors.values()))


def test_factor_falls_to_another_end_and_stays_there():
    recipe = Recipe("linear", epochs=1, schedule="linear", rise=0.2)
    shares = [recipe.factor(at, falls_to=0.4, falls_until=0.7) for at in (0, 0.1, 0.2, 0.45, 0.7, 0.8, 1)]
    assert shares == pytest.approx([0, 0.5, 1, 0.7, 0.4, 0.4, 0.4])
    assert Recipe("constant", epochs=1).factor(0.9, falls_to=0.4, falls_until=0.7) == 1


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_weight_decay_is_for_weights_of_several_dimensions_alone(optimizer):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    found = Recipe("decay", epochs=1, optimizer=optimizer, weight_decay=0.03).optimizer_for(network)
    decay = {id(parameter): group["weight_decay"] for group in found.param_groups for parameter in group["params"]}
    assert {name: decay[id(parameter)] for name, parameter in network.named_parameters()} == {
        "0.weight": 0.03, "0.bias": 0, "1.weight": 0, "1.bias": 0, "3.weight": 0.03, "3.bias": 0}


def test_optimizer_has_the_recipes_rate_and_momentum_for_every_parameter():
    network = build_model("1.5k-dw")
    for recipe in (Recipe("sgd", epochs=1, learning_rate=0.7, momentum=0.3, weight_decay=0.1),
                   Recipe("adam", epochs=1, optimizer="adam", learning_rate=0.7, momentum=0.3)):
        found = recipe.optimizer_for(network)
        assert type(found) is {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[recipe.optimizer]
        assert {group["lr"] for group in found.param_groups} == {0.7}
        assert {group.get("momentum", group.get("betas")) for group in found.param_groups} == {
            0.3 if recipe.optimizer == "sgd" else (0.3, 0.999)}
        assert sorted(map(id, (p for group in found.param_groups for p in group["params"]))) == sorted(
            map(id, network.parameters()))


def test_augmentation_is_for_training_images_alone(tiny, digits):
    """The run's last evaluation is that of its network on the images as they are, and so are its fresh statistics."""
    config = by_recipe(tiny, epochs=1, augmentation=("flip", "crop", "affine", "hole"))
    record, network = train(config, digits, threads=1)
    plain, _ = train(by_recipe(tiny, epochs=1), digits, threads=1)
    assert record.epochs[0]["train_loss"] != plain.epochs[0]["train_loss"]
    with torch.no_grad():
        logits = network(normalise(digits.test.x[:200], "mnist"))
    test_loss = nn.functional.cross_entropy(logits, digits.test.y[:200]).item()
    assert record.epochs[0]["test_loss"] == pytest.approx(test_loss, abs=1e-5)
    assert fresh_correct(network, config, digits) == fresh_correct(network, tiny, digits)


# A network of one's own


def own_network(classes: int = 10) -> nn.Module:
    torch.manual_seed(12)
    return nn.Sequential(OrderedDict(
        first=nn.Conv2d(1, 8, 5), relu=nn.ReLU(), pool=nn.MaxPool2d(2), norm=nn.BatchNorm2d(8),
        head=GapHead(8, classes)))


OWN_RECIPE = Recipe("mine", epochs=2, batch_size=64, learning_rate=0.05)


@pytest.fixture(scope="module")
def own_run(digits):
    """(network as it was given, its weights before, record, trained network)"""
    network = own_network()
    before = copy.deepcopy(network.state_dict())
    return network, before, *train_own(network, digits, OWN_RECIPE, "my net", seed=3, train_images=200,
                                       test_images=150, threads=1)


def test_own_network_stays_as_it_is_and_a_copy_is_trained_from_its_weights(own_run, digits):
    network, before, _, trained = own_run
    assert trained is not network and network.training and not trained.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    by_hand = copy.deepcopy(network).to(memory_format=torch.channels_last)
    plain_loop(by_hand, OWN_RECIPE, digits.train.first(200), seed=3)
    for name, tensor in by_hand.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], tensor, atol=1e-6, rtol=0, msg=name)
    assert not torch.equal(trained.first.weight, network.first.weight)


def test_record_of_an_own_network_says_what_was_trained(own_run, digits):
    network, _, record, trained = own_run
    assert record.config == RunConfig("my net", "mnist", OWN_RECIPE, seed=3, train_images=200, test_images=150)
    assert record.parameters == 8 * 25 + 8 + 16 + 80
    predicted = predict(trained, digits.test.first(150), "mnist").argmax(dim=1)
    assert record.correct == (predicted == digits.test.y[:150]).sum() and record.total == 150
    assert record.fresh_correct == fresh_correct(trained, record.config, digits)
    assert record.bytes == weight_bytes(trained)


def test_record_of_an_own_network_works_in_plots_and_tables(own_run, make_record, tmp_path):
    _, _, record, trained = own_run
    figure, (left, right) = plt.subplots(1, 2)
    plots.plot_curves([record, make_record("1.5k-dw")], left)
    plots.plot_loss([record], right)
    legend = [text.get_text() for text in left.get_legend().get_texts()]
    assert legend == ["my net, 1 seed", "1.5K-DW, 1 seed", "paper: 98.35 %"], "the paper knows nothing of it"
    curve = next(line for line in left.lines if line.get_label() == "my net, 1 seed")
    assert list(curve.get_ydata()) == [row["test_accuracy_percent"] for row in record.epochs]
    assert [text.get_text() for text in right.get_legend().get_texts()] == ["my net, train", "my net, test"]
    plt.close(figure)

    assert statistics.summary_of([record]).mean_percent == record.accuracy_percent
    assert read_run(write_run(record, trained, tmp_path)) == record


def test_own_network_takes_techniques_and_the_tables_recipe(digits):
    network = own_network()
    recipe = replace(recipe_of(None, "mnist"), epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, (recipe.name, "mnist"), recipe)
        record, trained = train_own(network, digits, techniques=("mixup", "blurpool"), train_images=64,
                                    test_images=50, threads=1)
    assert record.config == RunConfig("own", "mnist", recipe, ("blurpool", "mixup"), 0, 64, 50)
    assert type(trained.pool).__name__ == "BlurMaxPool2d" and type(network.pool) is nn.MaxPool2d
    with pytest.raises(EffcnnError, match="squeeze_excite found no convolution"):
        train_own(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), digits, recipe, techniques=("squeeze_excite",))


def test_own_network_learns_from_a_dataset_of_ones_own():
    """Without an entry anywhere: three classes of 6 x 6 pixels in two channels."""
    spec = DatasetSpec("leaves", "Leaves", (2, 6, 6), ("oak", "ash", "elm"), mean=(0.5, 0.5), std=(0.3, 0.3))
    y = np.arange(90) % 3
    x = np.random.default_rng(0).integers(0, 100, (90, 6, 6, 2), dtype=np.uint8)
    x[np.arange(90), 2 * y] += 150  # each class has a bright row of its own
    leaves = dataset_from_arrays(spec, {"x_train": x[:60], "y_train": y[:60], "x_test": x[60:], "y_test": y[60:]},
                                 "made up")
    network = nn.Sequential(nn.Flatten(), nn.Linear(72, 3))
    record, trained = train_own(network, leaves, Recipe("mine", epochs=8, batch_size=20), threads=1)
    assert record.correct == record.total == 30
    assert (record.config.dataset, record.data["source"]) == ("leaves", "made up")
    assert predict(trained, leaves.test, spec).shape == (30, 3)
    with pytest.raises(EffcnnError, match=f"no recipe '{USUAL}' for leaves; the recipes are"):
        train_own(network, leaves)


# A record


def test_composers_last_accuracy_is_the_recorded_one(tiny_run):
    record, _ = tiny_run
    assert record.epochs[-1]["test_accuracy_percent"] == pytest.approx(record.accuracy_percent, abs=1e-4)


def test_record_describes_its_run(tiny, digits, tiny_run):
    record, network = tiny_run
    assert record.config == tiny
    assert record.schema_version == SCHEMA_VERSION
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
    _, network = tiny_run
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


def test_threads_are_for_this_run_alone(tiny, digits):
    prepare()  # whichever test is the first to train
    torch.set_num_threads(2)
    try:
        inside = []
        record, _ = train(by_recipe(tiny, epochs=1), digits, threads=1,
                          on_epoch=lambda rows: inside.append(torch.get_num_threads()))
        assert (inside, record.environment["threads"], torch.get_num_threads()) == ([1], 1, 2)
    finally:
        torch.set_num_threads(1)


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
    config = replace(by_recipe(tiny, learning_rate=1e6), train_images=1_000)
    with pytest.raises(EffcnnError, match=r"epoch \d, batch \d.*learning rate 1e\+06.*smaller") as stop:
        train(config, digits, threads=1)
    assert type(stop.value).__name__ == "DivergedError"
    assert "training loss" in str(stop.value) and ("nan" in str(stop.value) or "inf" in str(stop.value))


def test_divergence_in_the_very_last_step_is_noticed_too(tiny, digits):
    """The loss of that step is still finite; only the evaluation after it shows what became of the weights."""
    config = replace(by_recipe(tiny, learning_rate=1e30, epochs=1), train_images=64)
    with pytest.raises(EffcnnError, match=r"epoch 1.*learning rate 1e\+30"):
        train(config, digits, threads=1)


def test_dataset_of_another_kind_is_refused(tiny):
    with pytest.raises(DataError, match="this is a run on mnist, but the dataset given is cifar10"):
        train(tiny, load_images("cifar10"))


@pytest.mark.parametrize("field, count", [("train_images", 4_001), ("test_images", 1_001)])
def test_too_few_images_are_refused(field, count, tiny, digits):
    with pytest.raises(DataError, match=f"{count:,} images asked for"):
        train(replace(tiny, **{field: count}), digits)


def test_splits_of_a_run(digits):
    config = RunConfig("7k", "mnist", Recipe("plain", epochs=1), train_images=3_000)
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
    return by_recipe(tiny, epochs=4)


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
    assert last_whole_checkpoint(unfinished_dir(longer, digits.sha256)).name == "ep4.pt"
    record = train_or_load(longer, digits, threads=1, on_epoch=lambda rows: pytest.fail("trained again"))
    assert record.resumed
    assert_ends_like(undisturbed, record, read_network(record))
    assert not unfinished_dir(longer, digits.sha256).exists()


def test_killed_process_leaves_a_run_that_goes_on_to_the_same_weights(worker, digits, tmp_path):
    config = RunConfig("1.5k-dw", "mnist", Recipe("plain", epochs=4), train_images=1_500, test_images=300)
    killed = worker(tmp_path)
    killed.begin(config)
    assert [next(killed.reports)["epoch"] for _ in range(2)] == [1, 2]
    killed.process.kill()
    assert killed.process.wait() == -signal.SIGKILL
    assert not (tmp_path / config.name).exists()
    assert last_whole_checkpoint(unfinished_dir(config, digits.sha256)) is not None

    another = worker(tmp_path)
    another.begin(config)
    *epochs, end = itertools.takewhile(lambda report: report != {"status": 0}, another.reports)
    assert end["epoch"] == 4 and 1 not in [report["epoch"] for report in epochs]
    record = read_run(tmp_path / config.name)
    assert record.resumed
    assert_ends_like(train(config, digits, threads=1), record, read_network(record, tmp_path))


# What importing and loading may not do


def test_importing_the_package_does_not_import_composer():
    """It takes seconds, and most of the package has no need of it."""
    modules = ["paper", "models", "datasets", "batches", "techniques", "recipes", "training", "records", "statistics",
               "tables", "plots", "latency", "notebook", "cli", "cli.results", "cli.verify", "cli.sweep", "cli.worker"]
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
    assert tune_allocator() == (platform.libc_ver()[0] == "glibc")
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("looked for mallopt"))
    assert tune_allocator() is False
