"""Several processes of Composer's launcher that train one run."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from processes_together import IMAGES, blended, recipe, without_batchnorm
from torch.optim.swa_utils import update_bn

from effcnn_helpers.batches import AUGMENTATIONS, BatchLoader, normalise
from effcnn_helpers.cli import main, together
from effcnn_helpers.errors import EffcnnError
from effcnn_helpers.recipes import Recipe, RunConfig, config_from, recipe_of, table_run, values_of
from effcnn_helpers.records import all_runs, build_network, read_network, record_from_json, record_to_json, runs_of_row
from effcnn_helpers.training import predict, train, train_own

pytestmark = pytest.mark.usefixtures("terminal_signals")


@pytest.fixture(scope="module")
def launch(digits_folder, tmp_path_factory):
    """A function that runs something in two processes of Composer's launcher, with the embedded digits as data."""
    folders = {f"EFFCNN_{name}_DIR": str(tmp_path_factory.mktemp("launched")) for name in ("CACHE", "RECORDED")}

    def start(*arguments) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "composer.cli.launcher", "-n", "2", *map(str, arguments)], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, **folders, "EFFCNN_DATA_DIR": str(digits_folder)})
        return f"{done.stdout}\nstatus {done.returncode}"
    return start


# Through the command


def test_two_processes_make_one_record_that_its_weights_bear_out(launch, digits, tmp_path):
    printed = launch("-m", "effcnn_helpers", "together", "1.5k-dw", "--profile", "smoke", "--out", tmp_path)
    assert "status 0" in printed and printed.count("epoch 1 ") == printed.count("recorded: ") == 1, printed
    [record] = all_runs(tmp_path)
    assert record.config.recipe.processes == 2
    assert record.config.name == "mnist/1.5k-dw/settled,epochs=1,processes=2/baseline/seed0,train=384,test=200"
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["run.json", "weights.safetensors"]
    test = digits.test.first(200)
    wrong = (predict(read_network(record, tmp_path), test, "mnist").argmax(dim=1) != test.y).nonzero().flatten()
    assert wrong.tolist() == list(record.misclassified)
    assert record.epochs[-1]["test_accuracy_percent"] == pytest.approx(record.accuracy_percent)

    alone, _ = train(replace(record.config, recipe=replace(record.config.recipe, processes=1)), digits, threads=1)
    assert record.epochs[0]["train_loss"] == pytest.approx(alone.epochs[0]["train_loss"], rel=0.02)


def test_a_run_that_fails_ends_all_processes(launch, tmp_path):
    """Here the embedded digits, where a run of all images asks for the real ones."""
    printed = launch("-m", "effcnn_helpers", "together", "1.5k-dw", "--out", tmp_path)
    assert "error: runs of all images are recorded on the real mnist only" in printed
    assert "status 0" not in printed and not [*all_runs(tmp_path)]


def test_command_trains_alone_without_a_launcher(digits_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(digits_folder))
    for epochs in (1, 0):  # the second time it is there
        assert main(["together", "1.5k-dw", "--profile", "smoke", "--out", str(tmp_path)]) == 0
        [record] = all_runs(tmp_path)
        printed = capsys.readouterr().out
        assert record.config.recipe.processes == 1 and "recorded: " in printed
        assert printed.count("epoch 1 ") == epochs


def test_a_leftover_of_a_launcher_is_no_launch(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["together", "1.5k-dw", "--profile", "smoke", "--out", str(tmp_path)]) == 1
    assert "WORLD_SIZE=2 is set, as if this were one of several processes" in capsys.readouterr().err


def test_a_process_with_other_data_or_checkpoints_refuses_to_follow(tmp_path, digits, tiny, monkeypatch):
    config = replace(tiny, recipe=replace(tiny.recipe, processes=2))
    values = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
              "MASTER_PORT": "29500"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    from composer.utils import dist

    def tell(told: list):
        told[0] = config, digits.sha256, "ep1.pt"

    monkeypatch.setattr(dist, "initialize_dist", lambda device, timeout: None)
    monkeypatch.setattr(dist, "broadcast_object_list", tell)
    monkeypatch.setattr(together, "images_of", lambda name, download: digits)
    with pytest.raises(EffcnnError, match="process 1 starts from .*'none'.* and the first one from .*'ep1.pt'"):
        together.together(["1.5k-dw"], [0], 1, "smoke", tmp_path)


# What they compute


@pytest.fixture(scope="module")
def results(launch, tmp_path_factory) -> list[dict]:
    """What each of two processes wrote (see processes_together.py): (epochs, accuracy, resumed, weights) by name."""
    folder = tmp_path_factory.mktemp("results")
    printed = launch(Path(__file__).with_name("processes_together.py"), folder)
    assert "status 0" in printed, printed
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def test_two_processes_compute_what_one_does_where_images_do_not_meet(results, digits):
    """Without BatchNorm; with unequal shares, augmented images, a loss and an accuracy over all shares."""
    record, network = train_own(without_batchnorm(), digits, recipe(1), threads=1, **IMAGES)
    epochs, accuracy, _, weights = results[0]["plain"]
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=1e-5)
    assert accuracy == record.accuracy_percent
    for row, alone in zip(epochs, record.epochs, strict=True):
        assert {**row, "seconds": 0} == pytest.approx({**alone, "seconds": 0}, rel=1e-4)


@pytest.mark.parametrize("name", ["plain", "whole", "resumed"])
def test_all_processes_end_with_the_same_network(results, name):
    first, second = (result[name][3] for result in results)
    assert all(torch.equal(tensor, second[key]) for key, tensor in first.items())


def test_a_stopped_run_goes_on_to_the_same_weights(results):
    """With random numbers of each process's own."""
    _, _, resumed, weights = results[0]["whole"]
    _, _, resumed_again, weights_again = results[0]["resumed"]
    assert (resumed, resumed_again) == (False, True)
    assert all(torch.equal(tensor, weights_again[key]) for key, tensor in weights.items())


def test_fresh_statistics_are_those_of_all_images_not_of_a_share(results, digits):
    trained = results[0]["whole"][3]
    network = build_network(blended(1))
    network.load_state_dict(trained)
    for count, close in ((300, True), (150, False)):
        update_bn([normalise(digits.train.first(count).x, "mnist")], network)
        pairs = [(trained[name], value) for name, value in network.named_buffers() if "running" in name]
        # Sums over 200,000 pixels of 32-bit numbers come out up to 0.12 % apart.
        assert all(torch.allclose(ours, theirs, atol=1e-4, rtol=5e-3) for ours, theirs in pairs) == close


def test_shares_are_the_batch_of_one_process(digits):
    options = SimpleNamespace(shuffle=True, seed=3, augmentation=tuple(AUGMENTATIONS))
    images = digits.train.first(300)
    alone = BatchLoader(images, "mnist", 128, **vars(options))
    shares = [BatchLoader(images, "mnist", 128, place=(which, 3), **vars(options)) for which in range(3)]
    assert [len(loader) for loader in shares] == [len(alone)] * 3
    for (x, y), *parts in zip(alone, *shares, strict=True):
        assert torch.equal(torch.cat([part for part, _ in parts]), x)
        assert torch.equal(torch.cat([part for _, part in parts]), y)
        sizes = [len(part) for part, _ in parts]
        assert max(sizes) - min(sizes) <= 1


def test_an_empty_share_is_refused(digits):
    with pytest.raises(EffcnnError, match="last of the batches with 128 of 257 images has 1, too few for 2 processes"):
        BatchLoader(digits.train.first(257), "mnist", 128, place=(0, 2))
    BatchLoader(digits.train.first(258), "mnist", 128, place=(0, 2))


# What a record says


def test_a_record_says_how_many_processes_trained_it(make_record, write_record):
    """In its recipe and its folder, so that no table takes it for a run of one process; that one is as it ever was."""
    alone, shared = make_record(), make_record(recipe={"processes": 2})
    assert "processes" not in record_to_json(alone) and '"processes": 2' in record_to_json(shared)
    for record in (alone, shared):
        assert record_from_json(record_to_json(record)) == record
        assert config_from(values_of(record.config)) == record.config
    assert shared.config.name == "mnist/1.5k-dw/settled,processes=2/baseline/seed0"
    for record in (alone, shared):
        write_record(recipe={"processes": record.config.recipe.processes})
    assert [run.config.recipe.processes for run in runs_of_row(table_run("1.5k-dw"))] == [1]


@pytest.mark.parametrize("processes", [0, 65, 2.0, True, "2"])
def test_processes_without_two_images_of_a_batch_are_refused(processes):
    with pytest.raises(EffcnnError, match="Recipe.processes is .*; use 1 or more, with two images of a batch or more"):
        replace(recipe_of("constant", "mnist"), processes=processes)
    Recipe("own", epochs=1, processes=64)


@pytest.mark.parametrize("technique, why", [("sam", "each process knows its share alone"),
                                            ("swa", "cannot go on from a checkpoint of several processes")])
def test_what_several_processes_would_get_wrong_is_refused(technique, why):
    with pytest.raises(EffcnnError, match=f"Recipe.processes is 2, but .* {why}; use 1, or leave {technique} out"):
        RunConfig("1.5k-dw", "mnist", Recipe("own", epochs=1, processes=2), (technique,))


def test_a_run_for_two_processes_is_refused_where_there_is_one(tiny, digits):
    with pytest.raises(EffcnnError, match="WORLD_SIZE is 1, and what runs here is for 2; use the command `composer"):
        train(replace(tiny, recipe=replace(tiny.recipe, processes=2)), digits)
