"""Recorded runs re-measured from their weights: what is refused, what is rounding."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from effcnn_helpers.cli import verify
from effcnn_helpers.datasets import Images, load_images
from effcnn_helpers.models import build_model
from effcnn_helpers.recipes import Recipe, RunConfig
from effcnn_helpers.records import RecordError, record_to_json, write_run
from effcnn_helpers.training import fresh_correct, predict, train

NAME = ("mnist/1.5k-dw/quick,epochs=2,batch_size=16,optimizer=adam,learning_rate=0.01/baseline/"
        "seed0,train=1000")


@pytest.fixture(scope="module")
def full_run(as_if_real):
    """(record, network) of a run on embedded digits, trained until it knows some."""
    recipe = Recipe("quick", epochs=2, batch_size=16, optimizer="adam", learning_rate=0.01)
    config = RunConfig("1.5k-dw", "mnist", recipe, train_images=1_000)
    record, network = train(config, as_if_real, threads=1)
    fresh = fresh_correct(network, config, as_if_real)
    assert fresh != record.correct, "the two counts can be told apart"
    return replace(record, fresh_correct=fresh), network


@pytest.fixture(scope="module")
def clear(full_run, as_if_real) -> list[int]:
    """Test images of which the network is sure, so that no rounding excuses another answer."""
    top = predict(full_run[1], as_if_real.test, "mnist").topk(2, dim=1).values
    return torch.nonzero(top[:, 0] - top[:, 1] > 0.1).flatten().tolist()


@pytest.fixture
def at_hand(as_if_real, monkeypatch):
    """The embedded digits stand for the real set."""
    monkeypatch.setattr(verify, "load_images", lambda name: as_if_real)


@pytest.fixture
def folder(full_run, at_hand) -> Path:
    """The recorded run's folder, for a test to tamper with."""
    return write_run(*full_run)


def test_verify_accepts_a_run_as_it_was_recorded(folder, capsys):
    assert verify.verify(quick=False) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"^ok +{re.escape(NAME)}  \d+\.\d\d %$", printed, re.MULTILINE)
    assert "1 runs: 0 failed, 0 unverified" in printed


def rewrite(folder: Path, change) -> None:
    """Let `change` edit run.json's fields."""
    fields = json.loads((folder / "run.json").read_text())
    change(fields)
    (folder / "run.json").write_text(json.dumps(fields))


def wrong_answers(fields) -> dict[int, int]:
    pairs = (pair.split(":") for pair in fields["misclassified"].split())
    return {int(index): int(taken) for index, taken in pairs}


def put_wrong_answers(fields, wrong: dict[int, int]) -> None:
    """Keeps the record consistent with itself: only measuring again can tell."""
    fields["misclassified"] = " ".join(f"{index}:{taken}" for index, taken in wrong.items())
    fields["test"]["correct"] = fields["test"]["total"] - len(wrong)


def hide_a_mistake(fields, clear):
    wrong = wrong_answers(fields)
    wrong.pop(next(index for index in clear if index in wrong))
    put_wrong_answers(fields, wrong)


def another_mistake(fields, clear):
    wrong = wrong_answers(fields)
    index = next(index for index in clear if index not in wrong)
    put_wrong_answers(fields, {**wrong, index: 0})


def another_answer(fields, clear):
    wrong = wrong_answers(fields)
    index = next(index for index in clear if index in wrong)
    put_wrong_answers(fields, {**wrong, index: (wrong[index] + 1) % 10})


def another_count(fields, clear):
    fields["test"]["correct"] += 1


def more_images(fields, clear):
    for count in ("correct", "fresh_correct", "total"):
        fields["test"][count] += 9_000


def another_model_size(fields, clear):
    fields["parameters"] -= 1


def another_fresh_count(fields, clear):
    fields["test"]["fresh_correct"] -= 4


def no_fresh_count(fields, clear):
    fields["test"]["fresh_correct"] = None


def other_data(fields, clear):
    fields["data"]["sha256"] = "0" * 64


@pytest.mark.parametrize("change, problem", [
    (hide_a_mistake, "1 images are classified differently"),
    (another_mistake, "1 images are classified differently"),
    (another_answer, "1 images are classified differently"),
    (more_images, "recorded on 10,000 images, there are 1,000"),
    (another_model_size, "1,560 parameters, recorded 1,559"),
    (another_fresh_count, "right with fresh BatchNorm statistics, recorded"),
    (other_data, "trained and measured on other data")])
def test_verify_refuses_a_record_that_was_changed(change, problem, folder, clear, capsys):
    rewrite(folder, lambda fields: change(fields, clear))
    assert verify.verify(quick=False) == 1
    printed = capsys.readouterr().out
    assert f"FAILED  {NAME}" in printed and problem in printed


@pytest.mark.parametrize("change, problem", [
    (another_count, "images are listed as misclassified"), (no_fresh_count, "fresh_correct is None of 1000")])
def test_verify_refuses_a_count_that_its_own_record_contradicts(change, problem, folder, clear):
    rewrite(folder, lambda fields: change(fields, clear))
    with pytest.raises(RecordError, match=f"{folder}.* {problem}"):
        verify.verify(quick=False)


def test_verify_refuses_a_mistake_listed_as_its_own_label(folder, as_if_real, capsys):
    def change(fields):
        index = next(index for index in range(1_000) if index not in wrong_answers(fields))
        put_wrong_answers(fields, {**wrong_answers(fields), index: as_if_real.test.y[index].item()})

    rewrite(folder, change)
    assert verify.verify(quick=False) == 1
    assert "which is its label" in capsys.readouterr().out


def test_verify_refuses_weights_that_were_changed(folder, capsys):
    path = folder / "weights.safetensors"
    weights = safetensors.torch.load_file(path)
    weights["head.classifier.weight"][0] += 1
    safetensors.torch.save_file(weights, path)
    assert verify.verify(quick=False) == 1
    assert "classified differently than recorded" in capsys.readouterr().out


def test_verify_refuses_weights_that_are_not_numbers(folder, capsys):
    path = folder / "weights.safetensors"
    weights = safetensors.torch.load_file(path)
    weights["head.classifier.weight"].fill_(float("nan"))
    safetensors.torch.save_file(weights, path)
    assert verify.verify(quick=False) == 1


@pytest.fixture
def near_tie(full_run, as_if_real):
    """(record, network, candidates): its favourite class has a twin with nearly the same logits.

    candidates: indices of test images where these two lead, so where rounding could take the other.
    """
    record, trained = full_run
    network = build_model(record.config.model)
    network.load_state_dict(trained.state_dict())
    favourite = predict(network, as_if_real.test, "mnist").argmax(dim=1).mode().values.item()
    twin = (favourite + 1) % 10
    with torch.no_grad():
        rows = network.head.classifier.weight
        rows[twin] = rows[favourite] * (1 - 1e-5)
    pairs = enumerate(best_two(network, as_if_real))
    candidates = [index for index, pair in pairs if set(pair) == {favourite, twin}]
    assert len(candidates) > 10
    return record, network, candidates


def best_two(network, dataset) -> list[tuple[int, int]]:
    """The class that each test image is taken for, and the next best."""
    logits = predict(network, dataset.test, "mnist")
    first = logits.argmax(dim=1)
    second = logits.scatter(1, first[:, None], -torch.inf).argmax(dim=1)
    return list(zip(first.tolist(), second.tolist(), strict=True))


def as_recorded_elsewhere(record, network, dataset, flipped: list[int]):
    """The record by a processor that takes these images for their second-best class."""
    pairs = enumerate(best_two(network, dataset))
    taken = {index: pair[index in flipped] for index, pair in pairs}
    wrong = {index: label for index, label in taken.items() if label != dataset.test.y[index]}
    return replace(record, misclassified=wrong, correct=record.total - len(wrong),
                   fresh_correct=fresh_correct(network, record.config, dataset))


@pytest.mark.parametrize("flips", [0, 1, 3])
def test_verify_allows_and_names_a_few_flips_by_rounding(
        flips, near_tie, as_if_real, at_hand, capsys):
    record, network, candidates = near_tie
    flipped = candidates[:flips]
    write_run(as_recorded_elsewhere(record, network, as_if_real, flipped), network)
    assert verify.verify(quick=False) == 0
    printed = capsys.readouterr().out
    named = re.findall(r"image (\d+) flips by rounding", printed)
    assert [int(index) for index in named] == flipped


def test_verify_refuses_a_fourth_flip(near_tie, as_if_real, at_hand, capsys):
    record, network, candidates = near_tie
    write_run(as_recorded_elsewhere(record, network, as_if_real, candidates[:4]), network)
    assert verify.verify(quick=False) == 1
    printed = capsys.readouterr().out
    assert "4 images are classified differently than recorded, 0 of them not" in printed


def test_verify_refuses_one_flip_that_is_not_by_rounding(near_tie, as_if_real, at_hand, capsys):
    record, network, candidates = near_tie
    top = predict(network, as_if_real.test, "mnist").topk(2, dim=1).values
    wide = next(index for index in range(1_000) if top[index, 0] - top[index, 1] > 2e-3)
    write_run(as_recorded_elsewhere(record, network, as_if_real, [candidates[0], wide]), network)
    assert verify.verify(quick=False) == 1
    printed = capsys.readouterr().out
    assert "2 images are classified differently than recorded, 1 of them not" in printed


def test_quick_verify_looks_at_seed_0_and_the_first_thousand_images(
        folder, full_run, clear, as_if_real, monkeypatch, capsys):
    record, network = full_run
    other = write_run(replace(record, config=replace(record.config, seed=1)), network)
    rewrite(other, lambda fields: hide_a_mistake(fields, clear))
    assert verify.verify(quick=False) == 1
    capsys.readouterr()
    assert verify.verify(quick=True) == 0
    printed = capsys.readouterr().out
    assert "1 runs: 0 failed, 0 unverified, first 1,000 images of seed 0 only" in printed

    seen = []
    monkeypatch.setattr(verify, "predict", lambda network, images, name: (
        seen.append(len(images)) or predict(network, images, name)))
    test = as_if_real.test
    twice = replace(as_if_real, test=Images(test.x.repeat(2, 1, 1, 1), test.y.repeat(2)))
    verify.check_run(record, twice, images=1_000)
    assert seen == [1_000]


def test_verify_without_the_real_data_says_so_and_fails(full_run, capsys):
    write_run(*full_run)
    assert not load_images("mnist").real
    assert verify.verify(quick=False) == 1
    printed = capsys.readouterr().out
    assert "the real mnist is not here (found: embedded sample" in printed
    assert "EFFCNN_DATA_DIR" in printed and "mnist.npz" in printed
    assert "1 runs: 0 failed, 1 unverified" in printed and "ok  " not in printed


def test_verify_without_runs_says_so_and_fails(capsys):
    assert verify.verify(quick=False) == 1
    assert "no recorded runs" in capsys.readouterr().out


def test_record_text_is_what_write_run_writes(full_run, folder):
    assert folder.as_posix().endswith(NAME)
    assert (folder / "run.json").read_text() == record_to_json(full_run[0])
