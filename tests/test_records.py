import itertools
import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from effcnn_helpers.cli import recording
from effcnn_helpers.cli.recording import RunBusyError, train_or_load, unfinished_dir
from effcnn_helpers.datasets import DATASETS, DataError
from effcnn_helpers.errors import EffcnnError
from effcnn_helpers.models import build_model
from effcnn_helpers.recipes import RECIPES, Recipe, table_run
from effcnn_helpers.records import (
    SCHEMA_VERSION,
    RecordError,
    all_runs,
    build_network,
    contiguous_state,
    read_network,
    read_run,
    record_from_json,
    record_to_json,
    recorded_dir,
    rows_of_model,
    runs_of_row,
    table_runs,
    weight_bytes,
    write_run,
)

BASELINE = "mnist/1.5k-dw/settled/baseline"


@pytest.mark.parametrize("changes", [
    {}, {"wrong": 0}, {"wrong": 10_000}, {"total": 1, "wrong": 0},
    {"config": {"evaluate_on": "validation", "train_images": None}, "fresh_correct": 0},
    {"recipe": {"optimizer": "adam", "learning_rate": 0.003, "augmentation": ("flip", "crop")}},
    {"recipe": {"name": "own", "schedule": "linear", "rise": 0.2}, "config": {"model": "my net"}},
    {"recipe": {"epochs": 1}, "resumed": True, "git": {"commit": "c0ffee", "modified": False}},
], ids=str)
def test_record_survives_writing_and_reading(changes, make_record):
    record = make_record(**changes)
    assert record_from_json(record_to_json(record)) == record


def test_measured_record_survives_writing_and_reading(tiny_run):
    record, network = tiny_run
    folder = write_run(record, network)
    assert folder == recorded_dir() / (
        "mnist/1.5k-dw/tiny,epochs=2/baseline/seed0,train=256,test=200")
    assert sorted(path.name for path in folder.iterdir()) == ["run.json", "weights.safetensors"]
    assert read_run(folder) == record
    read = read_network(record)
    assert not read.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(read.state_dict()[name], tensor), name


@pytest.mark.parametrize("split", ["test", "validation"])
def test_written_form_is_plain_json_with_the_count_under_its_split(split, make_record):
    record = make_record(wrong=2, total=50, recipe={"epochs": 3}, config={"evaluate_on": split})
    text = record_to_json(record)
    fields = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert fields[split] == {"correct": 48, "fresh_correct": 48, "total": 50}
    assert fields["misclassified"] == "0:3 1:3"
    assert fields["config"]["model"] == "1.5k-dw" and fields["schema_version"] == 3
    assert len(fields["epochs"]) == sum("train_loss" in line for line in text.splitlines()) == 3


def test_written_form_spells_the_recipe_out(make_record):
    """Whoever reads it needs neither this code nor its recipes."""
    fields = json.loads(record_to_json(make_record(recipe={"augmentation": ("flip", "crop"), "average": 2})))
    assert fields["config"]["recipe"] == {
        "name": "settled", "epochs": 20, "version": 1, "batch_size": 128, "optimizer": "sgd",
        "learning_rate": 0.3, "momentum": 0.9, "weight_decay": 1e-4, "schedule": "linear",
        "rise": 0.2, "augmentation": ["flip", "crop"], "average": 2.0}


def test_sizes_are_those_of_the_files(tiny_run, tmp_path):
    record, network = tiny_run
    safetensors.torch.save_file(contiguous_state(network), tmp_path / "weights.safetensors")
    torch.save(network.state_dict(), tmp_path / "state_dict.pt")
    assert weight_bytes(network) == record.bytes
    assert record.bytes["safetensors"] == (tmp_path / "weights.safetensors").stat().st_size
    assert abs(record.bytes["state_dict"] - (tmp_path / "state_dict.pt").stat().st_size) < 1_500


def edited(record, **changes) -> str:
    """A record's text with fields replaced; None takes a field away."""
    fields = {**json.loads(record_to_json(record)), **changes}
    return json.dumps({key: value for key, value in fields.items() if value is not None})


def with_config(record, **changes) -> str:
    """A record's text with fields of the configuration replaced; None takes a field away."""
    config = {**json.loads(record_to_json(record))["config"], **changes}
    return edited(record, config={key: value for key, value in config.items()
                                  if changes.get(key, 0) is not None})


def counts(correct: int | None, fresh_correct: int = 9_835) -> dict:
    return {"correct": correct, "fresh_correct": fresh_correct, "total": 10_000}


DAMAGES = {
    "nothing in it": lambda record: "",
    "cut off": lambda record: record_to_json(record)[:-40],
    "cut off early": lambda record: record_to_json(record)[:100],
    "no JSON": lambda record: "a text",
    "a list": lambda record: "[]",
    "a number": lambda record: "3",
    "an empty object": lambda record: "{}",
    "schema of the past": lambda record: edited(record, schema_version=SCHEMA_VERSION - 1),
    "schema of the future": lambda record: edited(record, schema_version=SCHEMA_VERSION + 1),
    "no schema": lambda record: edited(record, schema_version=None),
    "no configuration": lambda record: edited(record, config=None),
    "a model without a name": lambda record: with_config(record, model=""),
    "no model": lambda record: with_config(record, model=None),
    "no recipe": lambda record: with_config(record, recipe=None),
    "a recipe by its name alone": lambda record: with_config(record, recipe="constant"),
    "a recipe without its epochs": lambda record: with_config(record, recipe={"name": "constant"}),
    "an unknown technique": lambda record: with_config(record, techniques=["dropout"]),
    "another split": lambda record: with_config(record, evaluate_on="validation"),
    "an unknown field": lambda record: edited(record, accuracy=99.9),
    "an unknown field of the configuration": lambda record: with_config(record, profile="full"),
    "no count": lambda record: edited(record, test=None),
    "no number of correct answers": lambda record: (
        edited(record, test={"fresh_correct": 9_835, "total": 10_000})),
    "a count of words": lambda record: (
        edited(record, test={"correct": "most", "fresh_correct": 0, "total": "all"})),
    "a count that is nothing": lambda record: edited(record, test=counts(None)),
    "no count with fresh statistics": lambda record: (
        edited(record, test={"correct": 9_835, "total": 10_000})),
    "more right with fresh statistics than there are": lambda record: (
        edited(record, test=counts(9_835, 10_001))),
    "one correct answer too many": lambda record: edited(record, test=counts(9_836)),
    "one correct answer too few": lambda record: edited(record, test=counts(9_834)),
    "no images at all": lambda record: edited(
        record, test={"correct": 0, "fresh_correct": 0, "total": 0}, misclassified=""),
    "counts with a fraction": lambda record: (
        edited(record, test={"correct": 9_835.0, "fresh_correct": 9_835, "total": 10_000})),
    "epochs without values": lambda record: edited(record, epochs=[1] * 12),
    "no misclassified images": lambda record: edited(record, misclassified=""),
    "misclassified images without their class": lambda record: (
        edited(record, misclassified="1 2 3")),
    "misclassified images as a list": lambda record: edited(record, misclassified=[1, 2]),
    "no parameters": lambda record: edited(record, parameters=None),
    "no epochs": lambda record: edited(record, epochs=[]),
    "epochs that are a number": lambda record: edited(record, epochs=12),
    "one epoch missing": lambda record: (
        edited(record, epochs=json.loads(record_to_json(record))["epochs"][1:])),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_record_is_refused_with_its_file_and_a_remedy(damage, make_record, write_record):
    record = write_record()
    path = recorded_dir() / record.config.name / "run.json"
    path.write_text(damage(record))
    for read in (lambda: read_run(path.parent), lambda: list(all_runs()),
                 lambda: table_runs("1.5k-dw"), lambda: train_or_load(record.config)):
        with pytest.raises(RecordError) as refusal:
            read()
        assert str(path) in str(refusal.value) and "train the run again" in str(refusal.value)


@pytest.mark.parametrize("index", [-1, 10_000])
def test_misclassified_image_that_does_not_exist_is_refused(index, make_record):
    """One outside the split is never compared, so the count could say anything."""
    record = make_record(wrong=2)
    with pytest.raises(RecordError, match=f"image {index} is listed as misclassified"):
        record_from_json(edited(record, misclassified=f"0:3 {index}:3"))


def test_missing_record_is_refused(tmp_path):
    with pytest.raises(RecordError, match=r"run\.json"):
        read_run(tmp_path)


def test_record_that_is_no_text_is_refused(write_record):
    folder = recorded_dir() / write_record().config.name
    (folder / "run.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(RecordError, match=r"run\.json"):
        read_run(folder)


def other_weights(path):
    safetensors.torch.save_file(build_model("5k").state_dict(), path)


def one_missing(path):
    state = build_model("1.5k-dw").state_dict()
    state.pop("head.classifier.weight")
    safetensors.torch.save_file(state, path)


@pytest.mark.parametrize("damage", [
    lambda path: path.unlink(),
    lambda path: path.write_bytes(b""),
    lambda path: path.write_text("weights"),
    lambda path: path.write_bytes(path.read_bytes()[:-10]),
    lambda path: path.write_bytes(path.read_bytes()[:50]),
    other_weights, one_missing,
], ids=["missing", "empty", "text", "cut off", "cut off early", "another model's", "one missing"])
def test_damaged_weights_are_refused_with_their_file_and_a_remedy(damage, write_record):
    record = write_record()
    path = recorded_dir() / record.config.name / "weights.safetensors"
    damage(path)
    with pytest.raises(RecordError) as refusal:
        read_network(record)
    assert str(path) in str(refusal.value) and "train it again" in str(refusal.value)


def test_first_of_two_records_stays(make_record):
    first, second = make_record(wrong=100), make_record(wrong=200)
    folder = write_run(first, build_model("1.5k-dw"))
    weights = (folder / "weights.safetensors").read_bytes()
    assert write_run(second, build_model("1.5k-dw")) == folder
    assert read_run(folder) == first
    assert (folder / "weights.safetensors").read_bytes() == weights


def everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_nothing_else_is_left_beside_a_record(write_record):
    write_record(), write_record()
    baseline = recorded_dir() / BASELINE
    assert everything_in(baseline) == ["seed0", "seed0/run.json", "seed0/weights.safetensors"]


def test_record_is_written_whole_or_not_at_all(make_record, monkeypatch):
    def full_disk(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(RecordError, match=r"could not be written \(no space left on device\); make room"):
        write_run(make_record(), build_model("1.5k-dw"))
    assert everything_in(recorded_dir() / BASELINE) == []


def test_record_that_cannot_get_its_name_is_an_error(make_record):
    record = make_record()
    folder = recorded_dir() / record.config.name
    folder.parent.mkdir(parents=True)
    folder.write_text("a file in its place")
    with pytest.raises(RecordError, match="could not be written"):
        write_run(record, build_model("1.5k-dw"))
    assert everything_in(folder.parent) == ["seed0"]


@pytest.mark.parametrize("text", ["", None], ids=["half written", "whole"])
def test_folder_of_a_process_that_was_killed_while_writing_is_no_run(text, write_record):
    """Also one that another process is writing this very moment."""
    record = write_record(seed=1)
    left = recorded_dir() / BASELINE / ".writing-abc/seed0"
    left.mkdir(parents=True)
    (left / "run.json").write_text(record_to_json(record) if text is None else text)
    assert list(all_runs()) == [record]
    assert table_runs("1.5k-dw") == [record]


def test_record_in_the_wrong_folder_is_refused(write_record):
    record = write_record(seed=1)
    folder = recorded_dir() / record.config.name
    folder.rename(folder.with_name("seed2"))
    with pytest.raises(RecordError, match=f"seed2.*is the record of {BASELINE}/seed1"):
        list(all_runs())


def test_all_runs_come_in_the_order_of_their_folders_from_the_given_root(write_record, tmp_path):
    for model, seed in (("7k", 1), ("7k", 0), ("25k", 0)):
        write_record(model, seed=seed, root=tmp_path)
    assert [run.config.name for run in all_runs(tmp_path)] == [
        f"mnist/{row}" for row in ("25k/settled/baseline/seed0", "7k/settled/baseline/seed0",
                                   "7k/settled/baseline/seed1")]
    assert list(all_runs()) == []


def test_recorded_dir_is_the_packages_own_unless_the_environment_names_one(monkeypatch, tmp_path):
    monkeypatch.setenv("EFFCNN_RECORDED_DIR", str(tmp_path))
    assert recorded_dir() == tmp_path
    monkeypatch.delenv("EFFCNN_RECORDED_DIR")
    assert recorded_dir().parts[-2:] == ("effcnn_helpers", "recorded")


def test_table_runs_are_the_runs_of_the_table_and_no_others(write_record):
    """Whatever else was tried on the same model stands beside them."""
    wanted = [write_record(seed=10), write_record(seed=2), write_record(seed=0)][::-1]
    write_record("7k", seed=0)
    for seed, (recipe, config) in enumerate([
            ({"version": 99}, {}), ({"optimizer": "adam"}, {}), ({"learning_rate": 0.2}, {}),
            ({"name": "own"}, {}), ({"batch_size": 64}, {}), ({"augmentation": ("flip",)}, {}),
            ({}, {"train_images": 5_000}), ({}, {"train_images": None}), ({}, {"test_images": 200}),
            ({}, {"techniques": ("cutout",)}), ({}, {"evaluate_on": "validation"})]):
        write_record(seed=seed, recipe=recipe, config=config)
    longer = write_record(seed=0, recipe={"epochs": 60})
    assert table_runs("1.5k-dw") == runs_of_row(table_run("1.5k-dw", seed=7)) == wanted
    assert rows_of_model("1.5k-dw")[()] == wanted
    assert {row: len(runs) for row, runs in rows_of_model("1.5k-dw").items()} == {
        (): 3, ("cutout",): 1}
    assert table_runs("1.5k-dw", epochs=60) == [longer]
    assert table_runs("25k") == [] and rows_of_model("25k") == {}


def test_runs_of_a_row_on_few_images_are_those_with_as_many(write_record):
    few = [write_record(seed=seed, total=200, wrong=3,
                        config={"train_images": 384, "test_images": 200}) for seed in (0, 1)]
    write_record(seed=0)
    write_record(seed=0, total=200, wrong=3, config={"train_images": 385, "test_images": 200})
    write_record(seed=0, total=201, wrong=3, config={"train_images": 384, "test_images": 201})
    assert runs_of_row(few[0].config) == few


def test_one_row_is_read_without_reading_any_other_run(write_record, files_read):
    rows = [("1.5k-dw", (), 0), ("1.5k-dw", (), 1), ("1.5k-dw", ("cutout",), 0), ("25k", (), 0)]
    for model, techniques, seed in rows:
        write_record(model, seed=seed, config={"techniques": techniques})
    write_record(recipe={"epochs": 60})
    files_read.clear()
    assert len(table_runs("1.5k-dw")) == 2
    assert files_read == [recorded_dir() / BASELINE / f"seed{seed}/run.json" for seed in (0, 1)]
    files_read.clear()
    assert len(rows_of_model("1.5k-dw")) == 2
    assert len(files_read) == len(set(files_read)) == 3


def test_accuracies_are_shares_of_the_images(make_record):
    record = make_record(wrong=3, total=200, fresh_correct=198)
    assert (record.accuracy_percent, record.fresh_percent) == (98.5, 99.0)


def test_network_of_a_record_has_as_many_classes_as_its_dataset(monkeypatch):
    letters = replace(DATASETS["mnist"], name="letters", classes=tuple("ABCDEFGHIJKLM"))
    monkeypatch.setitem(DATASETS, "letters", letters)
    config = replace(table_run("7k"), dataset="letters")
    assert build_network(config)(torch.zeros(1, 1, 28, 28)).shape == (1, 13)
    assert build_network(table_run("7k"))(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_record_of_a_recipe_that_has_changed_since_is_named(write_record, monkeypatch):
    """Its folder no longer says what it is."""
    write_record()
    newer = replace(RECIPES["settled", "mnist"], version=2)
    monkeypatch.setitem(RECIPES, ("settled", "mnist"), newer)
    with pytest.raises(RecordError, match="is the record of .*/settled,version=1/.*; move it"):
        table_runs("1.5k-dw")


# Training or loading


def test_recorded_run_is_loaded_and_not_trained(write_record, monkeypatch):
    record = write_record()
    monkeypatch.setattr(recording, "train", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(recording, "load_images", lambda *_, **__: pytest.fail("loaded the data"))
    assert train_or_load(record.config) == record


def test_run_is_trained_once_recorded_and_its_checkpoints_removed(
        tiny, digits, tiny_run, monkeypatch, tmp_path):
    record = train_or_load(tiny, digits, root=tmp_path, threads=1)
    assert record.misclassified == tiny_run[0].misclassified
    assert read_run(tmp_path / tiny.name) == record
    assert record.fresh_correct is not None
    assert not unfinished_dir(tiny, digits.sha256).exists()
    monkeypatch.setattr(recording, "train", lambda *_, **__: pytest.fail("trained again"))
    assert train_or_load(tiny, digits, root=tmp_path) == record


@pytest.mark.parametrize("changes", [
    {"seed": 3}, {"techniques": ("sam",), "seed": 1}, {"train_images": None, "test_images": 9},
], ids=str)
def test_record_of_another_configuration_is_refused_naming_what_differs(changes, write_record):
    """One that someone has moved to another run's folder."""
    config = write_record().config
    asked = replace(config, **changes)
    place = recorded_dir() / asked.name
    place.parent.mkdir(parents=True, exist_ok=True)
    (recorded_dir() / config.name).rename(place)
    with pytest.raises(RecordError) as refusal:
        train_or_load(asked)
    for field, value in changes.items():
        there = f"{field}: {getattr(config, field)!r} there, {value!r} asked for"
        assert there in str(refusal.value)
    assert asked.name in str(refusal.value)
    assert str(refusal.value).count("asked for") == len(changes)


def test_record_of_another_recipe_is_refused(write_record, monkeypatch):
    """The entry has changed, and nobody has counted its version up."""
    config = write_record().config
    newer = replace(config.recipe, learning_rate=0.2)
    monkeypatch.setitem(RECIPES, ("settled", "mnist"), newer)
    differing = r"recipe: .*'learning_rate': 0\.3,.* there, .*'learning_rate': 0\.2,.* asked for"
    with pytest.raises(RecordError, match=differing):
        train_or_load(replace(config, recipe=newer))


def test_whole_run_is_not_recorded_on_anything_but_the_real_data(digits):
    with pytest.raises(DataError, match=r"real mnist only.*embedded sample.*DATA_DIR.*mnist\.npz"):
        train_or_load(table_run("1.5k-dw"), digits)
    assert list(recorded_dir().iterdir()) == []


def test_data_is_downloaded_for_a_whole_run_alone(tiny, digits, monkeypatch):
    asked = []
    monkeypatch.setattr(recording, "load_images",
                        lambda name, download: asked.append((name, download)) or digits)
    monkeypatch.setattr(recording, "train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(DataError):
        train_or_load(table_run("1.5k-dw"))
    with pytest.raises(pytest.fail.Exception):
        train_or_load(tiny)
    assert asked == [("mnist", True), ("mnist", False)]


def test_unfinished_runs_of_other_configurations_or_data_do_not_meet(tiny, digits):
    others = [replace(tiny, seed=1), replace(tiny, train_images=255), replace(tiny, test_images=9),
              replace(tiny, techniques=("cutout",)), replace(tiny, model="7k"),
              replace(tiny, recipe=replace(tiny.recipe, epochs=3)),
              replace(tiny, recipe=replace(tiny.recipe, version=2))]
    folders = [unfinished_dir(config, digits.sha256) for config in (tiny, *others)]
    folders.append(unfinished_dir(tiny, "another"))
    assert len(set(folders)) == len(folders) == 9
    assert unfinished_dir(replace(tiny), digits.sha256) == folders[0]


def test_unfinished_runs_by_recipes_of_one_name_do_not_meet(tiny, monkeypatch):
    """The entry has changed, and the run's name has not."""
    folders = []
    for rate in (0.1, 0.2):
        entry = replace(tiny.recipe, learning_rate=rate)
        monkeypatch.setitem(RECIPES, ("tiny", "mnist"), entry)
        folders.append(unfinished_dir(replace(tiny, recipe=entry), "data"))
    assert folders[0].parent == folders[1].parent and folders[0] != folders[1]


def test_two_processes_train_a_run_once(worker, digits, tmp_path, monkeypatch):
    config = replace(table_run("1.5k-dw"), recipe=Recipe("tiny", epochs=3), train_images=1_000,
                     test_images=200)
    other = worker(tmp_path)
    other.begin(config)
    first_epoch = next(other.reports)
    with pytest.raises(RunBusyError, match=f"{config.name} is being trained by another"):
        train_or_load(config, digits, root=tmp_path, wait=False)
    monkeypatch.setattr(recording, "train", lambda *_, **__: pytest.fail("trained twice"))
    record = train_or_load(config, digits, root=tmp_path)
    assert [report.get("epoch") for report in itertools.islice(other.reports, 3)] == [2, 3, None]
    assert record.epochs[0] == {key: first_epoch[key] for key in record.epochs[0]}
    assert len(record.epochs) == 3
    assert read_run(tmp_path / config.name) == record


def test_errors_of_records_are_for_the_user():
    assert issubclass(RecordError, EffcnnError) and issubclass(RunBusyError, EffcnnError)
