"""Each technique does what its name says, and the traps that Composer leaves open stay closed."""

import functools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from effcnn_helpers.batches import BatchLoader
from effcnn_helpers.datasets import load_images
from effcnn_helpers.errors import EffcnnError
from effcnn_helpers.models import Conv3x3, GapHead, build_model, count_parameters
from effcnn_helpers.paper import TABLE_4, TABLE_5
from effcnn_helpers.recipes import Recipe, RunConfig, table_run
from effcnn_helpers.records import build_network, read_network, read_run, write_run
from effcnn_helpers.techniques import (
    SWA_RATE,
    SWA_START,
    TECHNIQUES,
    Technique,
    add_to_network,
    check_techniques,
    in_order,
    labels_of,
    make_algorithms,
    one_cycle,
    squeeze_excite,
    technique_of,
)
from effcnn_helpers.training import make_optimizer, make_scheduler, predict, train, train_own

PLAIN = Recipe("plain", epochs=1)
FALLING = Recipe("falling", epochs=4, weight_decay=0.01, schedule="linear", rise=0.2,
                 augmentation=("flip", "crop"))


@pytest.fixture(scope="module")
def small(tiny):
    """Four epochs of two batches."""
    return replace(tiny, recipe=replace(tiny.recipe, epochs=4))


@pytest.fixture(scope="module")
def trained(digits) -> Callable:
    """A function from a configuration to its (record, network), each trained once for all tests here."""
    return functools.cache(lambda config: train(config, digits, threads=1))


def config_of(model: str, *techniques: str, recipe: Recipe = PLAIN) -> RunConfig:
    return RunConfig(model, "cifar10" if model.startswith("143k") else "mnist", recipe, techniques)


def weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def assert_equal_state(first: nn.Module, second: nn.Module) -> None:
    other = second.state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, other[name]), name


# Names, order, combinations


def test_entries_are_the_papers_eight_under_names_labels_and_colours_of_their_own():
    assert list(TECHNIQUES) == ["one_cycle_lr", "cutout", "blurpool", "squeeze_excite", "mixup",
                                "label_smoothing", "sam", "swa"]
    for name, entry in TECHNIQUES.items():
        assert entry.name == name and technique_of(name) is entry
    for field in ("label", "abbreviation", "color"):
        assert len({getattr(entry, field) for entry in TECHNIQUES.values()}) == 8


def test_every_entry_acts_somewhere():
    hooks = ("change_network", "algorithm", "wrap_optimizer", "schedule")
    acting = {name: [hook for hook in hooks if getattr(entry, hook)] for name, entry in TECHNIQUES.items()}
    assert acting == {
        "one_cycle_lr": ["schedule"], "cutout": ["algorithm"], "blurpool": ["change_network"],
        "squeeze_excite": ["change_network"], "mixup": ["algorithm"], "label_smoothing": ["algorithm"],
        "sam": ["wrap_optimizer"], "swa": ["algorithm", "schedule"]}


def test_one_cycle_and_swa_bring_a_run_to_rest_and_nothing_else_does():
    resting = {name for name in TECHNIQUES if config_of("1.5k-dw", name).comes_to_rest}
    assert resting == {"one_cycle_lr", "swa"}
    assert config_of("1.5k-dw", "mixup", "sam", "swa").comes_to_rest
    assert not config_of("1.5k-dw", "mixup", "sam").comes_to_rest
    assert not config_of("1.5k-dw").comes_to_rest
    assert config_of("1.5k-dw", recipe=FALLING).comes_to_rest


@pytest.mark.parametrize("techniques, complaint", [
    (("cutmix",), "unknown technique 'cutmix'; the techniques are one_cycle_lr, cutout,.* swa"),
    (("mixup", "cutout"), r"write each once and in this order: \('cutout', 'mixup'\)"),
    (("sam", "sam"), r"write each once and in this order: \('sam',\)"),
    (("one_cycle_lr", "swa"), "one_cycle_lr and swa contradict each other: SWA averages what .*; leave one"),
    (("one_cycle_lr", "mixup", "sam", "swa"), "one_cycle_lr and swa contradict each other"),
])
def test_unknown_and_senseless_techniques_are_refused(techniques, complaint):
    with pytest.raises(EffcnnError, match=complaint):
        check_techniques(techniques)
    with pytest.raises(EffcnnError, match=complaint):
        config_of("1.5k-dw", *techniques)


def test_two_averages_of_the_weights_are_refused():
    with pytest.raises(EffcnnError, match="Recipe.average is 0.5, and swa averages the weights, too"):
        RunConfig("1.5k-dw", "mnist", AVERAGED, ("swa",))


def test_two_schedules_are_refused_and_so_is_what_an_entry_excludes(monkeypatch):
    monkeypatch.setitem(TECHNIQUES, "restarts", Technique(
        "restarts", "Restarts", "R", "black", excludes={"sam": "they are enemies"},
        schedule=lambda optimizer, recipe, steps: one_cycle(optimizer, recipe.learning_rate, steps)))
    check_techniques(("cutout", "mixup", "restarts"))
    for other in ("one_cycle_lr", "swa"):
        with pytest.raises(EffcnnError, match=f"{other} and restarts each bring a learning rate schedule"):
            check_techniques((other, "restarts"))
    with pytest.raises(EffcnnError, match="restarts and sam contradict each other: they are enemies"):
        check_techniques(("sam", "restarts"))


def test_every_row_of_the_papers_tables_can_be_asked_for_in_the_papers_order():
    for row in [*TABLE_4, *TABLE_5]:
        config = table_run("143k-dw", techniques=reversed(row))
        assert set(config.techniques) == set(row) and config.techniques == in_order(row)


def test_labels_are_the_papers_words():
    assert labels_of(()) == "baseline"
    assert labels_of(("blurpool", "squeeze_excite", "swa")) == "BlurPool + Squeeze-and-Excite + SWA"


# What every technique owes: it changes the run, the run is repeatable, a stop does not show


class Stop(Exception):
    pass


def stop_after_third_epoch(rows):
    if len(rows) == 3:
        raise Stop


COMBINATIONS = [*((name,) for name in TECHNIQUES), ("cutout", "blurpool", "mixup", "label_smoothing", "sam", "swa"),
                ("one_cycle_lr", "sam")]
AVERAGED = Recipe("averaged", epochs=4, average=0.5)
SGD, ADAM = Recipe("sgd", epochs=4), Recipe("adam", epochs=4, optimizer="adam", learning_rate=0.003)


@pytest.mark.parametrize("techniques, recipe", [
    *((techniques, SGD) for techniques in COMBINATIONS),
    *((techniques, ADAM) for techniques in COMBINATIONS if {"sam", "one_cycle_lr"} & set(techniques)),
    *((techniques, FALLING) for techniques in ((), ("swa",), ("mixup", "sam"))),
    *((techniques, AVERAGED) for techniques in ((), ("mixup", "sam")))],
    ids=lambda value: value.name if isinstance(value, Recipe) else "+".join(value) or "baseline")
def test_stopped_run_goes_on_to_the_same_weights(techniques, recipe, small, digits, trained, tmp_path):
    config = replace(small, techniques=techniques, recipe=recipe)
    whole, network = trained(config)
    with pytest.raises(Stop):
        train(config, digits, checkpoints=tmp_path, threads=1, on_epoch=stop_after_third_epoch)
    resumed, network_resumed = train(config, digits, checkpoints=tmp_path, threads=1)
    assert resumed.resumed
    assert_equal_state(network, network_resumed)
    assert resumed.misclassified == whole.misclassified
    assert_equal_state(network, train(config, digits, checkpoints=tmp_path, threads=1)[1])  # nothing left to train
    assert whole.epochs[-1]["test_accuracy_percent"] == pytest.approx(whole.accuracy_percent, abs=1e-4)
    assert whole.parameters == count_parameters(network)

    if techniques:
        baseline, network_baseline = trained(replace(config, techniques=()))
        assert [row["train_loss"] for row in whole.epochs] != [row["train_loss"] for row in baseline.epochs] or any(
            not torch.equal(weights, network_baseline.get_parameter(name))
            for name, weights in network.named_parameters())


@pytest.mark.parametrize("techniques", [("blurpool",), ("squeeze_excite",), ("blurpool", "squeeze_excite", "swa")])
def test_recorded_network_with_techniques_is_read_back_whole(techniques, small, digits, trained, tmp_path):
    config = replace(small, recipe=PLAIN, techniques=techniques)
    record, network = trained(config)
    folder = write_run(record, network, tmp_path)
    assert folder == tmp_path / config.name and "+".join(techniques) in folder.parts
    again = read_run(folder)
    assert again == record
    images = digits.test.first(50)
    torch.testing.assert_close(predict(read_network(again, tmp_path), images, "mnist"),
                               predict(network, images, "mnist"), atol=1e-5, rtol=0)


class Counted(nn.Sequential):
    """Counts how often a batch passes through any copy of it while it trains."""

    passes = 0

    def forward(self, x):
        Counted.passes += self.training and torch.is_grad_enabled()
        return super().forward(x)


@pytest.mark.parametrize("techniques", [(), *((name,) for name in TECHNIQUES), ("mixup", "sam", "swa")])
def test_a_step_passes_its_batch_as_often_as_the_entry_says(techniques, digits):
    network = Counted(OrderedDict(conv1=Conv3x3(1, 8), conv2=Conv3x3(8, 8), pool=nn.MaxPool2d(2), head=GapHead(8)))
    before = Counted.passes
    recipe = Recipe("counted", epochs=2, batch_size=16)
    record, _ = train_own(network, digits, recipe, techniques=techniques, train_images=32, test_images=20, threads=1)
    steps = 4
    assert Counted.passes - before == steps * record.config.passes
    assert record.config.passes == (2 if "sam" in techniques else 1)


# One Cycle


def test_one_cycle_rises_for_half_of_the_steps_and_falls_below_its_start():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=9.0, momentum=0.9)
    schedule = one_cycle(optimizer, highest_rate=0.1, steps=101)
    rates, momenta = [], []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        schedule.step()
    highest = int(np.argmax(rates))
    assert rates[0] == pytest.approx(0.004) and rates[highest] == pytest.approx(0.1, abs=1e-4)
    assert highest == pytest.approx(50, abs=1)
    assert rates[:highest] == sorted(rates[:highest]) and rates[highest:] == sorted(rates[highest:], reverse=True)
    assert rates[-1] < rates[0] / 1000
    assert momenta[highest] == pytest.approx(0.85, abs=1e-3) and momenta[0] == pytest.approx(0.95)


def test_one_cycle_refuses_a_run_too_short_for_a_cycle():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=9.0, momentum=0.9)
    with pytest.raises(EffcnnError, match="3 steps or more, and this run has 2"):
        one_cycle(optimizer, highest_rate=0.1, steps=2)
    one_cycle(optimizer, highest_rate=0.1, steps=3)


@pytest.mark.parametrize("recipe", [SGD, FALLING], ids=lambda recipe: recipe.name)
def test_one_cycle_is_stepped_after_every_batch(recipe, small, trained):
    """Stepped once an epoch, Composer's way with torch's schedulers, the rate would never leave its start."""
    record, _ = trained(replace(small, recipe=recipe, techniques=("one_cycle_lr",)))
    batches = 2
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    schedule = one_cycle(optimizer, 0.1, 4 * batches)
    expected = []
    for step in range(4 * batches):
        if step % batches == 0:
            expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert [row["learning_rate"] for row in record.epochs] == pytest.approx(expected)


# Cutout


@pytest.mark.parametrize("side", [28, 32])
def test_cutout_removes_at_most_ten_by_ten_pixels_and_mostly_exactly_that(side):
    [cutout] = make_algorithms(("cutout",), side)
    state = SimpleNamespace(batch=None, batch_get_item=lambda key: state.batch[key],
                            batch_set_item=lambda key, value: state.batch.__setitem__(key, value))
    sizes = []
    np.random.seed(0)
    for _ in range(200):
        state.batch = [torch.ones(2, 1, side, side), None]
        cutout.apply(None, state, None)
        assert torch.equal(state.batch[0][0], state.batch[0][1]), "one hole for the whole batch"
        sizes.append(int((state.batch[0][0] == 0).sum()))
    assert max(sizes) == 100 and np.mean(np.array(sizes) == 100) > 0.3


# BlurPool and Squeeze-and-Excite


@pytest.mark.parametrize("model, pools", [("1.5k-dw", 2), ("143k-dw", 3)])
def test_blurpool_replaces_every_max_pool_and_adds_no_parameter(model, pools):
    network = build_network(config_of(model, "blurpool"))
    kinds = [type(module).__name__ for module in network.modules()]
    assert kinds.count("BlurMaxPool2d") == pools and "MaxPool2d" not in kinds
    assert count_parameters(network) == count_parameters(build_model(model))


@pytest.mark.parametrize("model, least, parameters", [("1.5k-dw", 8, 1_842), ("143k-dw", 16, 190_628)])
def test_squeeze_excite_inserts_blocks_and_their_parameters_are_counted(model, least, parameters):
    network = build_network(config_of(model, "squeeze_excite"))
    wide = {name for name, layer in build_model(model).named_modules()
            if isinstance(layer, nn.Conv2d) and min(layer.in_channels, layer.out_channels) >= least}
    followed = {name for name, module in network.named_modules() if type(module).__name__ == "SqueezeExciteConv2d"}
    assert followed == wide and followed
    assert ("head.classifier" in followed) == (least == 8)
    assert count_parameters(network) == parameters


@pytest.mark.parametrize("techniques, layers, problem", [
    (("blurpool",), [nn.Conv2d(1, 8, 3)], "blurpool found no max-pool"),
    (("squeeze_excite",), [nn.Conv2d(1, 8, 3)], "found no convolution with 8 or more channels in and out"),
    (("squeeze_excite",), [nn.Flatten(), nn.Linear(4, 2)], "squeeze_excite found no convolution"),
    (("blurpool", "squeeze_excite"), [nn.Conv2d(1, 8, 3), nn.MaxPool2d(2)], "squeeze_excite found no convolution"),
    (("blurpool", "squeeze_excite"), [nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)], "blurpool found no max-pool"),
])
@pytest.mark.filterwarnings("ignore:Applying (BlurPool|SqueezeExcite) did not change any layers")
def test_technique_that_would_change_nothing_is_refused_and_the_network_stays_as_it_is(techniques, layers, problem):
    network = nn.Sequential(*layers)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.raises(EffcnnError, match=problem):
        add_to_network(network, techniques)
    assert list(network) == layers, "the very same layers"
    assert network.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_the_trial_of_a_change_does_not_move_the_weights_that_are_drawn():
    torch.manual_seed(0)
    directly = build_model("1.5k-dw")
    squeeze_excite(directly)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    added = build_network(config_of("1.5k-dw", "squeeze_excite"))
    assert_equal_state(directly, added)
    assert torch.equal(torch.get_rng_state(), after)


def test_a_network_is_changed_in_place():
    network = build_model("1.5k-dw")
    assert add_to_network(network, ("cutout", "blurpool")) is network
    assert type(network.maxpool1).__name__ == "BlurMaxPool2d"


@pytest.mark.parametrize("techniques", [("blurpool",), ("squeeze_excite",), ("cutout", "mixup")])
def test_techniques_leave_the_baselines_initial_weights_alone(techniques):
    torch.manual_seed(0)
    plain = list(build_model("1.5k-dw").parameters())
    torch.manual_seed(0)
    network = build_network(config_of("1.5k-dw", *techniques))
    changed = dict(network.named_parameters())
    kept = [changed[name] for name in changed if ".se." not in name]
    assert len(kept) == len(plain) and all(map(torch.equal, kept, plain))


# Mixup and label smoothing


def test_mixup_blends_hard_labels_and_smoothing_comes_after():
    from composer.core import Event

    algorithms = make_algorithms(("mixup", "label_smoothing"), 28)
    state = SimpleNamespace(outputs=torch.zeros(8, 10), batch=[torch.rand(8, 1, 28, 28), torch.arange(8)],
                            batch_get_item=lambda key: state.batch[key],
                            batch_set_item=lambda key, value: state.batch.__setitem__(key, value))
    np.random.seed(3)
    for event in (Event.BEFORE_FORWARD, Event.BEFORE_LOSS):
        for algorithm in algorithms:
            if algorithm.match(event, state):
                algorithm.apply(event, state, None)
    mixup = algorithms[0]
    hard = nn.functional.one_hot(torch.arange(8), 10).float()
    blended = (1 - mixup.mixing) * hard + mixup.mixing * hard[mixup.indices]
    assert 0.01 < mixup.mixing <= 0.5
    torch.testing.assert_close(state.batch[1], 0.9 * blended + 0.01)


def test_label_smoothing_keeps_a_confident_network_from_zero_loss(small, digits, trained):
    """One step: its loss is that of the first weights with smoothed labels, the test loss that of hard ones."""
    record, network = trained(replace(small, recipe=PLAIN, techniques=("label_smoothing",), train_images=64))
    torch.manual_seed(small.seed)
    first = build_model("1.5k-dw").to(memory_format=torch.channels_last).train()
    [(x, y)] = BatchLoader(digits.train.first(64), "mnist", 128, shuffle=True, seed=small.seed)
    smoothed = nn.functional.cross_entropy(first(x), y, label_smoothing=0.1).item()
    hard = nn.functional.cross_entropy(predict(network, digits.test.first(200), "mnist"), digits.test.y[:200]).item()
    assert record.epochs[0]["train_loss"] == pytest.approx(smoothed, abs=1e-5)
    assert record.epochs[0]["test_loss"] == pytest.approx(hard, abs=1e-5)


# SAM


def sam_step(config: RunConfig, network: nn.Module, x: torch.Tensor, y: torch.Tensor):
    """One step as Composer's Trainer takes it; returns (loss, λ that each of the two passes drew)."""
    optimizer = make_optimizer(config, network)
    drawn = []

    def closure(ddp_sync=True, loss_dict=None):
        drawn.append((np.random.beta(0.2, 0.2), torch.randperm(8).tolist()))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), y)
        loss.backward()
        return loss.item()

    return optimizer.step(closure), drawn


@pytest.fixture
def sam_case(digits):
    config = config_of("1.5k-dw", "sam")
    torch.manual_seed(5)
    x, y = next(iter(BatchLoader(digits.train.first(32), "mnist", 32)))
    return config, build_network(config).train(), x, y


def test_sam_descends_by_the_gradient_at_the_worst_point_nearby(sam_case):
    config, network, x, y = sam_case
    start = weights_of(network)
    parameters = list(network.parameters())
    loss = nn.functional.cross_entropy(network(x), y)
    gradients = torch.autograd.grad(loss, parameters)
    norm = torch.sqrt(sum((gradient**2).sum() for gradient in gradients))
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter += 0.05 * gradient / norm
    worst = torch.autograd.grad(nn.functional.cross_entropy(network(x), y), parameters)
    expected = {name: start[name] - 0.1 * gradient for name, gradient in zip(start, worst, strict=True)}
    network.load_state_dict(start, strict=False)

    measured, _ = sam_step(config, network, x, y)
    assert measured == pytest.approx(loss.item(), abs=1e-6), "the loss at the weights, not at the worst point"
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], atol=1e-6, rtol=1e-5, msg=name)


def test_sams_second_pass_leaves_batchnorm_statistics_alone(sam_case):
    config, network, x, y = sam_case
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    once = build_model("1.5k-dw").train()
    once.load_state_dict(network.state_dict())
    once(x)
    sam_step(config, network, x, y)
    for name, buffer in network.named_buffers():
        if name.endswith(("mean", "var")):
            torch.testing.assert_close(buffer, once.get_buffer(name), msg=name)
            assert not torch.equal(buffer, before[name]), name
    assert {module.momentum for module in network.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}


def test_sams_second_pass_sees_the_same_random_numbers(sam_case):
    _, drawn = sam_step(*sam_case)
    assert len(drawn) == 2 and drawn[0] == drawn[1]
    _, drawn_next = sam_step(*sam_case)
    assert drawn_next[0] != drawn[0], "but the next step draws new ones"


# SWA


def test_swa_ends_with_the_mean_of_the_last_epochs_and_fresh_statistics(small, digits, trained):
    """Four epochs: from 75 % on means after epochs 3 and 4. Without SWA these epochs give the same weights."""
    averaged = trained(replace(small, techniques=("swa",)))[1]
    third = weights_of(trained(replace(small, recipe=replace(small.recipe, epochs=3)))[1])
    last = trained(small)[1]
    for name, parameter in averaged.named_parameters():
        mean = (third[name] + last.get_parameter(name).detach()) / 2
        torch.testing.assert_close(parameter.detach(), mean, atol=1e-6, rtol=1e-5, msg=name)

    by_hand = build_model("1.5k-dw").to(memory_format=torch.channels_last)
    by_hand.load_state_dict(averaged.state_dict())
    by_hand.train()
    with torch.no_grad():
        [(x, _)] = BatchLoader(digits.train.first(256), "mnist", 256)
        inputs = {}
        for name, module in by_hand.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(lambda module, args, output, name=name: inputs.update({name: args[0]}))
        by_hand(x)
    for name, seen in inputs.items():
        norm = averaged.get_submodule(name)
        torch.testing.assert_close(norm.running_mean, seen.mean(dim=(0, 2, 3)), atol=1e-4, rtol=1e-3)
        # Sums over 200,000 pixels of 32-bit numbers: torch 2.14's come out up to 0.12 % away from 2.7's.
        torch.testing.assert_close(norm.running_var, seen.var(dim=(0, 2, 3)), atol=1e-4, rtol=1e-2)
        assert not torch.allclose(norm.running_mean, last.get_submodule(name).running_mean, atol=1e-4)


def test_swa_averages_to_the_very_end():
    """Composer's own ending, 97 %, would go on training from the average in a run of 34 epochs or more."""
    [swa] = make_algorithms(("swa",), 28)
    assert (swa.swa_start.value, swa.swa_end.value, swa.swa_end.unit.value) == (0.75, 1.0, "dur")


def rates_of(config: RunConfig, steps: int) -> list[float]:
    """The learning rate of each of a run's steps."""
    network = nn.Sequential(nn.Linear(2, 2))
    optimizer = make_optimizer(config, network)
    schedule = make_scheduler(config, optimizer, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_swa_averages_under_a_rate_that_fell_to_a_half_and_stays_there():
    recipe = Recipe("falling", epochs=1, learning_rate=0.2, schedule="linear", rise=0.25)
    rates = rates_of(config_of("1.5k-dw", "swa", recipe=recipe), 100)
    assert rates[:25] == pytest.approx([0.2 * (step + 0.5) / 25 for step in range(25)])
    assert rates[25:75] == pytest.approx([0.2 - 0.1 * (step + 0.5) / 50 for step in range(50)])
    assert rates[75:] == pytest.approx([0.1] * 25)
    assert (SWA_START, SWA_RATE) == (0.75, 0.5)
    without = rates_of(config_of("1.5k-dw", recipe=recipe), 100)
    assert without[25:] == pytest.approx([0.2 - 0.2 * (step + 0.5) / 75 for step in range(75)])


def test_swa_leaves_a_constant_rate_as_it_is():
    assert rates_of(config_of("1.5k-dw", "swa"), 20) == [0.1] * 20
    rising = rates_of(config_of("1.5k-dw", "swa", recipe=replace(PLAIN, rise=0.5)), 20)
    assert rising == pytest.approx([0.1 * (step + 0.5) / 10 for step in range(10)] + [0.1] * 10)


@pytest.mark.parametrize("model", ["1.5k-dw", "143k-dw"])
def test_every_combination_of_the_paper_trains_on_both_datasets(model, digits):
    """One epoch on few images: the network's shapes and Composer's events fit together."""
    images = digits if model == "1.5k-dw" else load_images("cifar10")
    for techniques in (*TABLE_5, ("blurpool", "squeeze_excite", "swa")):
        config = replace(config_of(model, *in_order(techniques), recipe=replace(PLAIN, batch_size=32)),
                         train_images=64, test_images=20)
        record, network = train(config, images, threads=1)
        assert record.total == 20 and record.parameters == count_parameters(network)
        assert predict(network, images.test.first(2), config.dataset).shape == (2, 10)
