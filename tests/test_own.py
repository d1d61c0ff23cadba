"""From a folder of pictures to a trained network and its answers, in code and by the two commands."""

import contextlib
import io
import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from PIL import Image

from effcnn_helpers import own
from effcnn_helpers.batches import normalise
from effcnn_helpers.cli import main
from effcnn_helpers.cli import train as train_command
from effcnn_helpers.datasets import DATASETS, DatasetSpec
from effcnn_helpers.errors import EffcnnError
from effcnn_helpers.export import export
from effcnn_helpers.ladder import LADDERS
from effcnn_helpers.models import build_model, model_of
from effcnn_helpers.own import (
    BUDGETS,
    LEAST_STEPS,
    Trained,
    accuracy_in_words,
    confusion,
    load_trained,
    mistakes,
    model_within,
    own_dataset,
    recipe_in_words,
    recipe_within,
    save_trained,
    train_within,
    write_example,
)
from effcnn_helpers.pictures import read_picture
from effcnn_helpers.recipes import USUAL, recipe_of
from effcnn_helpers.records import RecordError, build_network
from effcnn_helpers.training import predict

RECORDED = Path(own.__file__).parent / "recorded"
ENOUGH = {"cat": 20, "dog": 20}
EXAMPLE = 80  # images


# A dataset from a folder


def test_dataset_holds_the_pictures_under_their_labels_and_names(picture_folder):
    folder = picture_folder({"cat": 20, "dog": 30}, size=(32, 32), colour=True)
    checked = own_dataset(folder, (3, 32, 32))
    data = checked.dataset
    assert data.classes == data.spec.classes == ("cat", "dog") and data.name == "things"
    assert (data.train.x.shape, data.train.x.dtype) == ((40, 3, 32, 32), torch.uint8)
    assert data.test.y.bincount().tolist() == [4, 6] and data.train.y.bincount().tolist() == [16, 24]
    for row, name in enumerate(checked.test_names):
        pixels = np.asarray(Image.open(folder / name))
        assert np.array_equal(data.test.x[row].permute(1, 2, 0), pixels)
        assert name.split("/")[0] == data.classes[data.test.y[row]]
    everything = {image.numpy().tobytes() for part in (data.train, data.test) for image in part.x}
    assert len(everything) == 50, "each picture is in one part"


def test_mean_and_spread_are_those_of_the_training_images(picture_folder):
    data = own_dataset(picture_folder(ENOUGH, colour=True, size=(32, 32)), (3, 32, 32)).dataset
    normal = normalise(data.train.x, data.spec)
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(normal.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_a_channel_that_never_changes_does_not_divide_by_zero(picture_folder):
    folder = picture_folder(ENOUGH, size=(32, 32), colour=True)
    for path in folder.rglob("*.png"):
        pixels = np.array(Image.open(path))
        pixels[..., 2] = 9
        Image.fromarray(pixels).save(path)
    data = own_dataset(folder, (3, 32, 32)).dataset
    assert normalise(data.train.x, data.spec).isfinite().all()


def test_split_and_order_follow_the_seed(picture_folder):
    folder = picture_folder(ENOUGH)
    first, again, other = (own_dataset(folder, seed=seed) for seed in (0, 0, 1))
    assert first.test_names == again.test_names and first.dataset.sha256 == again.dataset.sha256
    assert torch.equal(first.dataset.train.x, again.dataset.train.x)
    assert set(first.test_names) != set(other.test_names)
    labels = first.dataset.train.y.tolist()
    assert labels != sorted(labels), "shuffled: any first part is a fair sample"
    assert len(own_dataset(folder, test_share=0.5).dataset.test) == 20


def test_a_test_part_that_is_there_is_used_and_shuffled(picture_folder, tmp_path):
    picture_folder(ENOUGH, "things/train")
    picture_folder({"cat": 9, "dog": 9}, "things/val")
    checked = own_dataset(tmp_path / "things")
    assert {name.split("/")[0] for name in checked.test_names} == {"val"}
    assert list(checked.test_names) != sorted(checked.test_names)
    assert (len(checked.dataset.train), len(checked.dataset.test)) == (40, 18)


@pytest.mark.parametrize("folder, name, called", [
    ("my pets", None, "my pets"), ("_ünï+code!", None, "ünï-code-"), ("mnist", None, "own-mnist"),
    ("things", "pets", "pets"), ("things", "cifar10", "own-cifar10")])
def test_name_is_the_folders_and_never_that_of_a_dataset_of_the_series(folder, name, called, picture_folder):
    assert own_dataset(picture_folder(ENOUGH, folder), name=name).dataset.name == called
    assert called not in DATASETS


@pytest.mark.parametrize("wrong, message", [
    ({"image_shape": (2, 28, 28)}, "image_shape is (2, 28, 28); use (1, height, width)"),
    ({"image_shape": (28, 28)}, "image_shape is (28, 28)"),
    ({"test_share": 0}, "test_share is 0; use a number between 0 and 1"),
    ({"test_share": 1.0}, "test_share is 1.0"),
    ({"seed": -1}, "seed is -1; use a whole number of 0 or more"),
    ({"name": "a/b"}, "name is 'a/b'; use letters, digits"),
])
def test_wrong_argument_is_refused_before_anything_is_read(wrong, message):
    with pytest.raises(EffcnnError, match=re.escape(message)):
        own_dataset("nowhere", **wrong)


# Budgets


def test_each_budget_has_a_network_that_keeps_it():
    assert BUDGETS == {"1.5k": "1.5k-dw", "25k": "25k", "143k": "143k-dw"}
    assert [model_within(budget).image_shape for budget in BUDGETS] == [(1, 28, 28), (1, 28, 28), (3, 32, 32)]
    with pytest.raises(EffcnnError, match="budget is '7k'; use one of 1.5k, 25k, 143k"):
        model_within("7k")


def test_a_small_folder_is_gone_through_more_often_and_in_small_batches():
    usual = recipe_of(USUAL, "mnist")
    assert recipe_within("25k", 50_000) == recipe_within("25k", 4_000) == usual
    assert recipe_within("143k", 50_000) == recipe_of(USUAL, "cifar10")
    small = recipe_within("25k", 800)  # 25 steps
    rate = usual.learning_rate / 4  # as 32 images are a quarter of 128
    assert small == replace(usual, batch_size=32, learning_rate=rate, epochs=24) and 24 * 25 == LEAST_STEPS
    assert recipe_within("25k", 2_000) == replace(small, epochs=20), "20 epochs are enough"
    assert recipe_within("25k", 800, epochs=3) == replace(small, epochs=3)
    assert recipe_in_words(small, 801) == (
        "24 epochs of 26 steps with 32 images, 624 steps in all (by default at least 600)")


def test_images_of_another_shape_than_the_budgets_are_refused(picture_folder):
    data = own_dataset(picture_folder(ENOUGH)).dataset
    with pytest.raises(EffcnnError, match=re.escape("use own_dataset(…, image_shape=(3, 32, 32))")):
        train_within("143k", data)


# The example


def test_example_is_the_same_every_time_and_is_read_without_a_remark(tmp_path):
    first, second = (write_example(tmp_path / name, 200) for name in "ab")
    files = sorted(path.relative_to(first) for path in first.rglob("*.png"))
    assert len(files) == 200 and len({path.parent for path in files}) == 10
    assert all((first / path).read_bytes() == (second / path).read_bytes() for path in files)
    checked = own_dataset(first, (3, 32, 32))
    assert checked.findings == () and len(checked.dataset.classes) == 10
    with pytest.raises(EffcnnError, match="a is there already; name another folder"):
        write_example(first)


def test_the_examples_flaws_are_found_and_no_others(tmp_path):
    checked = own_dataset(write_example(tmp_path / "shapes", 200, flaws=True), (3, 32, 32))
    found = {finding.kind: finding.names for finding in checked.findings}
    assert set(found) == {"damaged", "copies", "colours"}
    assert found["damaged"] == ("disc/damaged.png",) and found["copies"][0].startswith("disc/copy.png = disc/")
    assert found["colours"][0].endswith("/grey.png")


# From the example to answers: one training by the command serves all that follows


@pytest.fixture(scope="module")
def trained(tmp_path_factory, session_folders) -> dict:
    """What `train` says and leaves of a short training on the example."""
    root = tmp_path_factory.mktemp("trained")
    folder = write_example(root / "shapes", EXAMPLE, flaws=True)
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.chdir(root)
        assert main(["train", str(folder), "--budget", "1.5k", "--epochs", "2", "--seed", "3"]) == 0
    return {"root": root, "folder": folder, "said": said.getvalue(), "model": root / "trained/shapes-1.5k",
            "trained": load_trained(root / "trained/shapes-1.5k"), "checked": own_dataset(folder, seed=3)}


def test_train_says_what_it_found_how_good_it_is_and_where_the_network_is(trained):
    lines, record = trained["said"].splitlines(), trained["trained"].record
    assert lines[0] == "folder shapes: 10 classes, 61 training and 20 test images of 1 × 28 × 28"
    assert "- damaged files, left out (1): disc/damaged.png" in lines
    assert "training 1.5K-DW (1,560 parameters): 2 epochs of 2 steps with 32 images, 4 steps in all "\
           "(by default at least 600)" in lines
    assert lines[-2] == accuracy_in_words(record)
    where = Path("trained/shapes-1.5k")
    assert lines[-1] == f"kept in {where}; try it: python -m effcnn_helpers predict {where} IMAGE"
    assert sorted(path.name for path in trained["model"].iterdir()) == [
        "dataset.json", "run.json", "weights.safetensors"]


def test_what_is_kept_is_the_network_that_was_trained_on_these_images(trained):
    saved, data = trained["trained"], trained["checked"].dataset
    assert isinstance(saved, Trained) and not saved.network.training
    assert saved.spec == data.spec
    config = saved.record.config
    assert (config.model, config.dataset, config.seed, config.epochs) == ("1.5k-dw", "shapes", 3, 2)
    right = (predict(saved.network, data.test, saved.spec).argmax(dim=1) == data.test.y).sum()
    assert (saved.record.correct, saved.record.total) == (right, 20)


@pytest.mark.parametrize("budget", BUDGETS)
def test_better_is_the_top_of_notebook_16s_ladder(budget, trained, tmp_path):
    top = [rung.config for rung in LADDERS[budget].rungs if rung.kept][-1]
    data = own_dataset(trained["folder"], model_of(top.model).image_shape).dataset
    better = train_within(budget, data, 1, better=True)
    config = load_trained(save_trained(tmp_path / budget, better.record, better.network, better.spec)).record.config
    assert (config.model, config.techniques) == (top.model, top.techniques)
    assert config.recipe.augmentation == top.recipe.augmentation != ()
    assert config.recipe.average == top.recipe.average
    assert f"changed at random ({', '.join(top.recipe.augmentation)})" in recipe_in_words(config.recipe, 60)
    plain = train_within(budget, data, 1).record.config
    assert (plain.techniques, plain.recipe.augmentation, plain.recipe.average) == ((), (), 0)
    assert export(better, "c", tmp_path / "c", data).others == 0


def test_training_again_gives_the_same_network(trained):
    torch.manual_seed(5)  # what was drawn before does not matter
    again = train_within("1.5k", trained["checked"].dataset, 2, seed=3, threads=1)
    for name, tensor in trained["trained"].network.state_dict().items():
        torch.testing.assert_close(again.network.state_dict()[name], tensor, atol=1e-4, rtol=1e-3)


def test_confusion_and_mistakes_are_those_of_the_network(trained):
    saved, checked = trained["trained"], trained["checked"]
    data = checked.dataset
    taken = predict(saved.network, data.test, saved.spec).argmax(dim=1)
    table = confusion(saved.record, data)
    assert list(table.index) == list(table.columns) == list(data.classes)
    for true, answer in ((true, answer) for true in range(10) for answer in range(10)):
        assert table.iloc[true, answer] == ((data.test.y == true) & (taken == answer)).sum()
    images, rows = mistakes(saved.record, checked)
    wrong = (taken != data.test.y).nonzero().flatten()
    assert len(wrong) and torch.equal(images.x, data.test.x[wrong])
    pd.testing.assert_frame_equal(rows, pd.DataFrame({
        "file": [checked.test_names[row] for row in wrong],
        "class": [data.classes[data.test.y[row]] for row in wrong],
        "answer": [data.classes[taken[row]] for row in wrong]}))
    assert all(file.split("/")[0] == label for file, label in zip(rows["file"], rows["class"], strict=True))


def test_mistakes_on_other_images_are_refused(trained):
    other = own_dataset(trained["folder"], seed=4)
    with pytest.raises(EffcnnError, match="was not measured on these test images"):
        confusion(trained["trained"].record, other.dataset)


def lines_of(capsys, *arguments: str) -> tuple[int, list[str], list[str]]:
    status = main(["predict", *arguments])
    said = capsys.readouterr()
    return status, said.out.splitlines(), said.err.splitlines()


def test_predict_answers_as_the_network_did_in_the_test(trained, capsys):
    saved, checked, folder = trained["trained"], trained["checked"], trained["folder"]
    shares = predict(saved.network, checked.dataset.test, saved.spec).softmax(dim=1)
    files = [str(folder / name) for name in checked.test_names]
    status, lines, errors = lines_of(capsys, str(trained["model"]), *files)
    assert (status, errors) == (0, [])
    for file, row, line in zip(files, shares, lines, strict=True):
        (first, second), (best, next_best) = row.topk(2)
        classes = saved.spec.classes
        assert line == (f"{file}  {classes[best]} {100 * first:.1f} %  ({classes[next_best]} {100 * second:.1f} %)")


def test_predict_takes_folders_and_patterns_and_answers_all_but_the_damaged(trained, capsys):
    folder, model = trained["folder"], str(trained["model"])
    rings = sorted(str(path) for path in (folder / "ring").iterdir())
    status, lines, errors = lines_of(capsys, model, str(folder / "ring"))
    assert (status, [line.split("  ")[0] for line in lines], errors) == (0, rings, [])
    assert lines_of(capsys, model, str(folder / "rin*/*.png"))[1] == lines
    status, lines, errors = lines_of(capsys, model, str(folder / "disc"), rings[0], str(folder / "gone.png"))
    discs = sorted(str(path) for path in (folder / "disc").glob("[0-9c]*.png"))
    assert status == 1 and [line.split("  ")[0] for line in lines] == [*discs, rings[0]]
    assert len(errors) == 2 and errors[0].startswith(f"error: {folder / 'disc/damaged.png'} ")
    assert errors[1] == f"error: {folder / 'gone.png'} cannot be read (No such file or directory)"


def test_predict_on_an_empty_folder_or_without_a_network_fails(trained, tmp_path, capsys):
    (tmp_path / ".DS_Store").write_text("")
    status, lines, errors = lines_of(capsys, str(trained["model"]), str(tmp_path))
    assert (status, lines) == (1, []) and errors == [f"error: {tmp_path} cannot be read (Is a directory)"]
    status, lines, errors = lines_of(capsys, str(tmp_path), "a.png")
    assert status == 1 and errors[0].startswith(f"error: {tmp_path} holds no trained network, for it has no run.json")


# Keeping and loading


@pytest.fixture
def saved(make_record, tmp_path) -> Path:
    """A folder with an untrained network for three classes."""
    spec = DatasetSpec("pets", "pets", (1, 28, 28), ("cat", "dog", "kōala"), (0.4,), (0.2,))
    record = make_record(wrong=2, total=30)
    record = replace(record, config=replace(record.config, dataset="pets"))
    return save_trained(tmp_path / "deep/pets", record, build_model("1.5k-dw", 3), spec)


def test_round_trip(saved, make_record):
    loaded = load_trained(str(saved))
    assert loaded.spec == DatasetSpec("pets", "pets", (1, 28, 28), ("cat", "dog", "kōala"), (0.4,), (0.2,))
    assert loaded.record.config.dataset == "pets" and loaded.record.misclassified == {0: 3, 1: 3}
    weights = safetensors.torch.load_file(saved / "weights.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in loaded.network.state_dict().items())
    assert loaded.network(torch.zeros(2, 1, 28, 28)).shape == (2, 3) and not loaded.network.training


def test_networks_with_techniques_are_built_as_they_were(make_record, tmp_path):
    spec = DatasetSpec("pets", "pets", (1, 28, 28), ("cat", "dog"), (0.4,), (0.2,))
    record = make_record(config={"techniques": ("blurpool", "squeeze_excite")})
    record = replace(record, config=replace(record.config, dataset="pets"))
    network = build_network(record.config, 2).eval()
    loaded = load_trained(save_trained(tmp_path / "a", record, network, spec)).network
    x = torch.rand(4, 1, 28, 28)
    assert torch.equal(loaded(x), network(x))


def test_a_recorded_run_is_loaded_with_its_dataset(write_record, tmp_path):
    record = write_record(root=tmp_path)
    loaded = load_trained(tmp_path / record.config.name)
    assert loaded.record == record and loaded.spec is DATASETS["mnist"]
    real = load_trained(next(RECORDED.glob("cifar10/143k-dw/*/baseline/seed0")))
    assert real.spec is DATASETS["cifar10"] and real.network(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_what_is_there_already_is_not_overwritten(saved):
    before = (saved / "run.json").read_bytes()
    loaded = load_trained(saved)
    with pytest.raises(EffcnnError, match="pets is there already; name another folder"):
        save_trained(saved, loaded.record, loaded.network, loaded.spec)
    assert (saved / "run.json").read_bytes() == before


def test_folder_is_written_whole_or_not_at_all(saved, tmp_path, monkeypatch):
    loaded = load_trained(saved)

    def full_disk(*arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(json, "dumps", full_disk)
    monkeypatch.setattr(own, "write_into", lambda *arguments: None)
    with pytest.raises(RecordError, match=r"new/one could not be written \(no space left on device\)"):
        save_trained(tmp_path / "new/one", loaded.record, loaded.network, loaded.spec)
    assert list((tmp_path / "new").iterdir()) == []


def test_what_could_not_be_loaded_again_is_not_saved(saved, tmp_path):
    loaded = load_trained(saved)
    record = replace(loaded.record, config=replace(loaded.record.config, model="mine"))
    with pytest.raises(EffcnnError, match="unknown model 'mine'"):
        save_trained(tmp_path / "mine", record, loaded.network, loaded.spec)
    with pytest.raises(EffcnnError, match="the run was on pets, and the dataset given is birds; give that of the run"):
        save_trained(tmp_path / "mine", loaded.record, loaded.network, replace(loaded.spec, name="birds"))
    assert not (tmp_path / "mine").exists()


def edit(**changes):
    def damage(path: Path) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}))

    return damage


DAMAGES = {
    "no dataset": ("dataset.json", Path.unlink),
    "half a dataset": ("dataset.json", lambda path: path.write_text(path.read_text(encoding="utf-8")[:40])),
    "a list": ("dataset.json", lambda path: path.write_text("[1]")),
    "another model": ("dataset.json", edit(model="25k")),
    "an unknown model": ("dataset.json", edit(model="mine")),
    "another dataset": ("dataset.json", edit(name="birds")),
    "another shape": ("dataset.json", edit(image_shape=[3, 28, 28])),
    "no spread": ("dataset.json", edit(std=[0.0])),
    "spreads too many": ("dataset.json", edit(std=[0.1, 0.2])),
    "a mean that is a word": ("dataset.json", edit(mean=["dark"])),
    "fewer classes": ("dataset.json", edit(classes=["cat", "dog"])),
    "classes by number": ("dataset.json", edit(classes=[1, 2, 3])),
    "one more field": ("dataset.json", edit(more=1)),
    "no weights": ("weights.safetensors", Path.unlink),
    "half the weights": ("weights.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-9])),
    "a pickle": ("weights.safetensors", lambda path: torch.save({}, path)),
    "half a record": ("run.json", lambda path: path.write_text(path.read_text(encoding="utf-8")[:-9])),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folder_is_refused_with_the_file_and_a_remedy(damage, saved):
    name, change = DAMAGES[damage]
    change(saved / name)
    with pytest.raises(RecordError) as refusal:
        load_trained(saved)
    message = str(refusal.value)
    assert str(saved / ("weights.safetensors" if damage == "fewer classes" else name)) in message
    assert message.endswith("again with `python -m effcnn_helpers train`")


def test_a_folder_without_a_network_is_refused(tmp_path):
    with pytest.raises(RecordError, match="holds no trained network, for it has no run.json; give a folder that"):
        load_trained(tmp_path)


# The commands


@pytest.mark.parametrize("arguments, message", [
    (["nowhere"], "error: there is no folder or file 'nowhere', and no dataset of that name"),
    (["{folder}", "--out", "{folder}"], "error: {folder} is there already; name another folder"),
    (["{folder}", "--epochs", "0"], "error: Recipe.epochs is 0; use a whole number of 1 or more"),
    (["{folder}", "--seed", "-1"], "error: seed is -1; use a whole number of 0 or more"),
])
def test_train_refuses_in_one_line_and_leaves_nothing(arguments, message, picture_folder, tmp_path, monkeypatch,
                                                      capsys):
    monkeypatch.chdir(tmp_path)
    folder = picture_folder(ENOUGH)
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", *(argument.format(folder=folder) for argument in arguments)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(message.format(folder=folder)) and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_network_of_that_name_is_refused_before_it_is_trained(picture_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train_command, "train_within", lambda *arguments: pytest.fail("trained in vain"))
    folder = picture_folder(ENOUGH)
    (tmp_path / "trained/things-25k").mkdir(parents=True)
    assert main(["train", str(folder)]) == 1
    assert f"error: {Path('trained/things-25k')} is there already" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["train"], ["train", "a", "--budget", "7k"], ["predict", "model"]])
def test_misuse_ends_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as misuse:
        main(arguments)
    assert misuse.value.code == 2
    capsys.readouterr()


def test_interrupted_training_keeps_nothing_and_says_so(terminal_signals, trained, tmp_path, monkeypatch):
    """A real Ctrl-C in a process of its own, once the bar says that an epoch is over."""
    monkeypatch.setenv("EFFCNN_PROGRESS", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "effcnn_helpers", "train", str(trained["folder"]), "--budget", "1.5k",
         "--epochs", "9999", "--out", str(tmp_path / "out")], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    errors = b""
    while b"epoch 1/9999" not in errors and process.poll() is None:
        errors += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    errors += process.communicate(timeout=60)[1]
    assert process.returncode == 130, errors
    assert b"Traceback" not in errors and errors.endswith(b"stopped; nothing is kept\n")
    assert list(tmp_path.iterdir()) == []


def test_predict_reads_files_as_the_training_did(trained):
    """The test images' files and the dataset's pixels are the same, so answers cannot differ by what was read."""
    checked = trained["checked"]
    for row, name in enumerate(checked.test_names):
        picture = read_picture(trained["folder"] / name, checked.dataset.spec.image_shape)
        assert np.array_equal(picture.pixels, checked.dataset.test.x[row, 0])
