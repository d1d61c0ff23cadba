import contextlib
import dataclasses
import json
import re
from dataclasses import asdict, fields, replace
from itertools import combinations
from types import SimpleNamespace

import pytest

from effcnn_helpers import recipes
from effcnn_helpers.batches import AUGMENTATIONS
from effcnn_helpers.cli.selections import PILOTS, pilot_runs, select
from effcnn_helpers.datasets import DATASETS
from effcnn_helpers.errors import EffcnnError
from effcnn_helpers.models import MODELS
from effcnn_helpers.paper import TABLE_3
from effcnn_helpers.recipes import (
    PROFILES,
    RECIPES,
    USUAL,
    Recipe,
    RunConfig,
    config_from,
    current_profile,
    dataset_of,
    live_run,
    recipe_of,
    shortened,
    table_run,
)
from effcnn_helpers.techniques import TECHNIQUES

NAN, INFINITE = float("nan"), float("inf")
PLAIN = Recipe("plain", epochs=3)
WHOLE_NUMBERS = [2.5, 2.0, "2", True, None, -1, [2]]
NUMBERS = [NAN, INFINITE, -INFINITE, -0.1, "0.1", True, None, [0.1], 1j]
NAMES = ["", " ", "a/b", "a,b", "a=b", "a+b", "..", ".hidden", "a\nb", "a\\b", None, 3]


# What is refused


@pytest.mark.parametrize("field, values, expected", [
    ("name", NAMES, "letters, digits"),
    ("epochs", [0, *WHOLE_NUMBERS], "a whole number of 1 or more"),
    ("version", [0, *WHOLE_NUMBERS], "a whole number of 1 or more"),
    ("batch_size", [0, 1, *WHOLE_NUMBERS], "2 or more (BatchNorm needs two images)"),
    ("optimizer", ["adamw", "SGD", None, ["sgd"]], "sgd or adam"),
    ("learning_rate", [0, 0.0, *NUMBERS], "a number above 0"),
    ("momentum", [1, 1.0, *NUMBERS], "a number from 0 to less than 1"),
    ("weight_decay", NUMBERS, "0 or a number above it"),
    ("schedule", ["cosine", None, ["linear"]], "constant or linear"),
    ("rise", [1, 1.0, *NUMBERS], "a share from 0 to less than 1"),
    ("augmentation", [("spin",), ("flip", "spin"), ["flip"], "flip", None], "flip"),
    ("average", NUMBERS, "0 or a number of epochs"),
    ("teacher", ["8k", None, 0, ["25k"]], "one of 25k, 7k"),
    ("processes", [0, 65, *WHOLE_NUMBERS], "1 or more, with two images"),
    ("precision", ["float16", "fp32", None, 32, ["float32"]], "float32 or bfloat16"),
    ("fresh_statistics", [0, 1, None, "yes", [True]], "True or False"),
])
def test_recipe_refuses_what_cannot_be_trained_with(field, values, expected):
    for value in values:
        with pytest.raises(EffcnnError) as refusal:
            Recipe(**{"name": "plain", "epochs": 3, field: value})
        assert f"Recipe.{field} is {value!r}; use " in str(refusal.value)
        assert expected in str(refusal.value)


def test_every_field_of_a_recipe_is_checked():
    """Nothing is a possible value of any of them."""
    for field in fields(Recipe):
        with pytest.raises(EffcnnError, match=rf"Recipe\.{field.name} is <object"):
            Recipe(**{"name": "plain", "epochs": 3, field.name: object()})


@pytest.mark.parametrize("field, values, expected", [
    ("model", NAMES, "letters, digits"),
    ("dataset", NAMES, "letters, digits"),
    ("recipe", ["constant", None, {"epochs": 3}], 'say recipe_of("constant", "mnist")'),
    ("seed", [*WHOLE_NUMBERS, 2**32], "a whole number from 0 to 4294967295"),
    ("train_images", [0, 1, 2.5, "2", True, -1, NAN], "2 or more, or None for all"),
    ("test_images", [0, 2.5, "2", True, -1, NAN], "1 or more, or None for all"),
    ("evaluate_on", ["train", "Test", "", None, True, ["test"]], '"test" or "validation"'),
])
def test_config_refuses_what_cannot_be_trained_with(field, values, expected):
    for value in values:
        with pytest.raises(EffcnnError) as refusal:
            RunConfig(**{"model": "25k", "dataset": "mnist", "recipe": PLAIN, field: value})
        assert f"RunConfig.{field} is {value!r}; use " in str(refusal.value)
        assert expected in str(refusal.value)


@pytest.mark.parametrize("techniques, message", [
    (("dropout",), "unknown technique 'dropout'; the techniques are one_cycle_lr, cutout"),
    (("mixup", "cutout"), r"write each once and in this order: \('cutout', 'mixup'\)"),
    (("mixup", "mixup"), r"write each once and in this order: \('mixup',\)"),
    (["mixup"], r"techniques are \['mixup'\]"),
    (("one_cycle_lr", "swa"), "contradict each other"),
])
def test_config_refuses_techniques_that_cannot_be_used_together(techniques, message):
    with pytest.raises(EffcnnError, match=message):
        RunConfig("25k", "mnist", PLAIN, techniques)


@pytest.mark.parametrize("epochs", [0, -1, 2.5, True])
def test_a_table_run_of_no_length_is_refused(epochs):
    with pytest.raises(EffcnnError, match=rf"Recipe\.epochs is {epochs}"):
        table_run("25k", epochs=epochs)
    with pytest.raises(EffcnnError, match=rf"epochs is {epochs}"):
        live_run("25k", PROFILES["live"], of_size(), epochs=epochs)


@pytest.mark.parametrize("make", [
    lambda: RunConfig("25k", "cifar10", PLAIN), lambda: RunConfig("143k", "mnist", PLAIN),
    lambda: table_run("143k-dw", dataset="mnist"),
    lambda: replace(table_run("7k"), dataset="cifar10")])
def test_a_model_on_images_of_another_shape_is_refused(make):
    sizes = r"takes images \(., .., ..\), and those of .* use a model"
    with pytest.raises(EffcnnError, match=sizes):
        make()


@pytest.mark.parametrize("make, message", [
    (lambda: table_run("2k"), "unknown model '2k'; the models are 25k, 7k, 7k-dw, 5k, 5k-dw, 1.5k"),
    (lambda: table_run("2k", dataset="mnist"), "unknown model '2k'; the models are 25k"),
    (lambda: dataset_of("2k"), "unknown model '2k'"),
    (lambda: table_run("25k", recipe="best"), r"no recipe 'best' for mnist; .* constant \(mnist\)"),
    (lambda: table_run("25k", dataset="svhn"), "no recipe 'settled' for svhn"),
    (lambda: recipe_of("best", "cifar10"), r"no recipe 'best' for cifar10; .* \(cifar10\)"),
])
def test_what_is_unknown_is_refused_with_what_is_known(make, message):
    with pytest.raises(EffcnnError, match=message):
        make()


@pytest.mark.parametrize("field, value", [
    ("epochs", 1), ("version", 1), ("batch_size", 2), ("optimizer", "adam"), ("momentum", 0),
    ("learning_rate", 1e-9), ("weight_decay", 0), ("schedule", "linear"), ("rise", 0.999),
    ("augmentation", ("flip", "crop")), ("average", 0), ("teacher", "25k"), ("processes", 64),
    ("precision", "bfloat16"), ("fresh_statistics", False),
    ("name", "settled-2 v1.0_a")])
def test_recipe_takes_the_smallest_values_that_work(field, value):
    assert getattr(replace(PLAIN, **{field: value}), field) == value


@pytest.mark.parametrize("field, value", [
    ("seed", 0), ("train_images", 2), ("train_images", None), ("test_images", 1),
    ("test_images", None), ("evaluate_on", "validation"), ("model", "my own net 2"),
    ("dataset", "photos")])
def test_config_takes_the_smallest_values_that_work(field, value):
    config = RunConfig(**{"model": "25k", "dataset": "mnist", "recipe": PLAIN, field: value})
    assert getattr(config, field) == value


# The folder's name


def others(value, field: str) -> list:
    """Other values of a field, of every kind that it has."""
    if field == "augmentation":
        return [("flip",), ("crop",), ("flip", "crop"), ("crop", "flip"), ("crop", "flip", "flip")]
    if field == "techniques":
        alone = [(name,) for name in TECHNIQUES]
        return [*alone, ("cutout", "mixup"), ("cutout", "blurpool", "mixup"), ("blurpool", "mixup")]
    return {"name": ["constant", "other", "other 2", "constant-epochs.3"],
            "epochs": [1, 2, 12, 20, 60], "version": [2, 3], "batch_size": [64, 12, 2],
            "optimizer": ["adam"], "learning_rate": [0.01, 0.10000000000000002, 1e-5, 1, 10.0],
            "momentum": [0, 0.95, 0.09], "weight_decay": [1e-4, 5e-4, 0.1, 1], "rise": [0.1, 0.25],
            "average": [0.1, 2], "teacher": ["25k", "7k"], "processes": [2, 3], "precision": ["bfloat16"],
            "fresh_statistics": [True],
            "schedule": ["linear"], "model": ["own", "7k", "7k-dw", "constant"],
            "dataset": ["photos", "validation"], "seed": [1, 10, 11],
            "train_images": [None, 2, 200, 5_000, 50_000], "test_images": [1, 200, 5_000],
            "evaluate_on": ["validation"]}[field]


def every_change(config: RunConfig) -> list[RunConfig]:
    """The configuration with each field of it, and of its recipe, changed, where the two go together."""
    changed = []
    for field in fields(Recipe):
        for value in others(config.recipe, field.name):
            with contextlib.suppress(EffcnnError):  # say SWA, and averaged weights
                changed.append(replace(config, recipe=replace(config.recipe, **{field.name: value})))
    for field in fields(RunConfig):
        if field.name != "recipe":
            for value in others(config, field.name):
                with contextlib.suppress(EffcnnError):
                    changed.append(replace(config, **{field.name: value}))
    return changed


@pytest.mark.parametrize("start", [
    RunConfig("own", "photos", Recipe("plain", epochs=1)),
    replace(table_run("25k"), model="own"), replace(table_run("25k"), model="own", dataset="svhn")],
    ids=["nothing registered", "registered recipe", "recipe registered for another dataset"])
def test_the_folder_tells_every_two_configurations_apart(start):
    """Any two that differ in one or two fields, in whatever they differ."""
    configs = {start, *every_change(start)}
    for config in every_change(start):
        configs |= set(every_change(config))
    names = {}
    for config in configs:
        assert names.setdefault(config.name, config) == config
        assert config.name.startswith(f"{config.row_folder}/seed{config.seed}")
    assert len(names) == len(configs) > 1_500


def test_only_the_seed_and_the_images_are_told_apart_within_a_row():
    config = table_run("25k")
    for other in every_change(replace(config, model="own")):
        within = replace(other, seed=config.seed, train_images=config.train_images,
                         test_images=config.test_images)
        assert (other.row_folder == replace(config, model="own").row_folder) == (
            within == replace(config, model="own")), other


@pytest.mark.parametrize("change, folder", [
    ({}, "constant"),
    ({"version": 2}, "constant,version=2"),
    ({"epochs": 60}, "constant,epochs=60"),
    ({"augmentation": ("flip", "crop")}, "constant,augmentation=flip+crop"),
    ({"augmentation": ("crop", "flip")}, "constant,augmentation=crop+flip"),
    ({"optimizer": "adam", "learning_rate": 0.003, "epochs": 6},
     "constant,epochs=6,optimizer=adam,learning_rate=0.003"),
    ({"weight_decay": 1}, "constant,weight_decay=1.0"),
    ({"name": "own"}, "own,epochs=12"),
])
def test_the_folder_says_what_differs_from_the_recipe_of_that_name(change, folder):
    config = replace(table_run("7k"), recipe=replace(recipe_of("constant", "mnist"), **change))
    assert config.name == f"mnist/7k/{folder}/baseline/seed0"


def test_a_whole_rate_is_the_same_recipe_as_its_fraction():
    """One run, one folder."""
    one, other = (replace(PLAIN, learning_rate=rate, weight_decay=rate) for rate in (1, 1.0))
    assert one == other
    assert RunConfig("own", "mnist", one).name == RunConfig("own", "mnist", other).name
    assert json.dumps(asdict(one)) == json.dumps(asdict(other))


@pytest.mark.parametrize("model", MODELS)
def test_name_is_the_folder_that_the_design_gives(model):
    dataset = {28: "mnist", 32: "cifar10"}[MODELS[model].image_shape[-1]]
    assert dataset_of(model) == table_run(model).dataset == dataset
    assert table_run(model, seed=3).name == f"{dataset}/{model}/{USUAL}/baseline/seed3"
    both = table_run(model, techniques=("cutout", "mixup"))
    assert both.name == f"{dataset}/{model}/{USUAL}/cutout+mixup/seed0"


def test_name_of_a_validation_run_says_what_it_tries():
    tried = Recipe("constant", epochs=6, optimizer="adam", learning_rate=0.003)
    config = RunConfig("25k", "mnist", tried, seed=1, evaluate_on="validation")
    assert config.name == ("validation/mnist/25k/constant,epochs=6,optimizer=adam,"
                           "learning_rate=0.003/baseline/seed1")


def test_name_says_when_not_the_usual_images_are_used():
    """MNIST's tables use 50,000 of the training images, CIFAR-10's and validation runs use all."""
    mnist, cifar = table_run("7k"), table_run("143k")
    assert (mnist.train_images, cifar.train_images) == (50_000, None)
    assert replace(mnist, train_images=None).name == f"{mnist.name},train=all"
    assert replace(cifar, train_images=50_000).name == f"{cifar.name},train=50000"
    few = replace(mnist, train_images=5_000, test_images=200)
    assert few.name == f"{mnist.name},train=5000,test=200"
    held_out = replace(mnist, evaluate_on="validation", train_images=None)
    assert held_out.name == f"validation/{mnist.name}"
    whole = [mnist, cifar, held_out]
    assert all(config.whole for config in whole)
    assert not any(replace(config, train_images=40_000).whole for config in whole)
    assert not any(replace(config, test_images=10_000).whole for config in whole)


# What a configuration is


def test_config_is_plain_frozen_data():
    config = table_run("7k-dw", seed=2, techniques=["swa", "cutout"])
    assert config.techniques == ("cutout", "swa")
    assert len({config, table_run("7k-dw", 2, ("cutout", "swa")), table_run("7k-dw", seed=2)}) == 2
    for entry, field in ((config, "seed"), (config.recipe, "epochs")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(entry, field, 3)


def test_config_survives_json():
    config = table_run("7k-dw", seed=2, techniques=["swa", "cutout"])
    tried = replace(config, recipe=replace(PLAIN, augmentation=("flip", "crop")), train_images=9)
    for one in (config, tried):
        assert config_from(json.loads(json.dumps(asdict(one)))) == one


@pytest.mark.parametrize("damage, error", [
    (lambda values: values.pop("recipe"), KeyError), (lambda values: values.pop("seed"), None),
    (lambda values: values["recipe"].pop("epochs"), TypeError),
    (lambda values: values.update(seed="1"), EffcnnError),
    (lambda values: values.update(profile="full"), TypeError),
    (lambda values: values["recipe"].update(gamma=1), TypeError)])
def test_config_from_something_else_is_refused(damage, error):
    values = asdict(table_run("7k", seed=0))
    damage(values)
    if error is None:
        assert config_from(values) == table_run("7k")  # as it is without a word
    else:
        with pytest.raises(error):
            config_from(values)


@pytest.mark.parametrize("schedule, techniques, rests", [
    ("constant", (), False), ("constant", ("cutout", "mixup"), False), ("linear", (), True),
    ("constant", ("one_cycle_lr",), True), ("constant", ("cutout", "swa"), True)])
def test_a_run_comes_to_rest_by_its_recipe_or_by_a_technique(schedule, techniques, rests):
    config = RunConfig("7k", "mnist", replace(PLAIN, schedule=schedule), techniques)
    assert config.comes_to_rest is rests


def test_a_batch_is_passed_as_often_as_the_technique_that_passes_it_most_often():
    assert table_run("7k").passes == table_run("7k", techniques=("cutout", "swa")).passes == 1
    assert table_run("7k", techniques=("cutout", "sam", "swa")).passes == 2


@pytest.mark.parametrize("dataset", DATASETS)
def test_one_recipe_serves_every_model_of_a_table(dataset):
    runs = [table_run(row.model) for row in TABLE_3 if row.dataset == dataset]
    assert len({replace(run, model=runs[0].model) for run in runs}) == 1
    assert runs[0].recipe == RECIPES[USUAL, dataset] == recipe_of(None, dataset)
    assert (runs[0].test_images, runs[0].evaluate_on, runs[0].whole) == (None, "test", True)


def test_recipes_are_found_by_their_own_names_and_their_dataset():
    assert all(recipe.name == name for (name, _), recipe in RECIPES.items())
    assert {dataset for _, dataset in RECIPES} <= set(DATASETS)


def test_a_network_trains_on_another_dataset_of_its_shape(monkeypatch):
    letters = replace(DATASETS["mnist"], name="letters", train_images=None)
    monkeypatch.setitem(DATASETS, "letters", letters)
    monkeypatch.setitem(RECIPES, (USUAL, "letters"), Recipe(USUAL, epochs=4))
    run = table_run("7k", dataset="letters", recipe=USUAL)
    assert (run.dataset, run.epochs, run.train_images) == ("letters", 4, None)
    assert run.name == f"letters/7k/{USUAL}/baseline/seed0" and run.whole
    assert dataset_of("7k") == "mnist", "the first one of that shape"


def test_a_model_without_a_dataset_is_named(monkeypatch):
    wide = replace(MODELS["25k"], name="wide", image_shape=(1, 64, 64))
    monkeypatch.setitem(MODELS, "wide", wide)
    with pytest.raises(EffcnnError, match=r"wide takes images \(1, 64, 64\).*datasets\.DATASETS"):
        table_run("wide")


# Profiles and runs to watch


def of_size(train: int = 60_000, test: int = 10_000, name: str = "mnist") -> SimpleNamespace:
    """All that a live run asks of its dataset."""
    return SimpleNamespace(train=range(train), test=range(test), name=name)


def test_profile_comes_from_the_argument_then_the_environment_then_live(monkeypatch):
    assert current_profile().name == "live"
    monkeypatch.setenv("EFFCNN_PROFILE", "smoke")
    assert current_profile().name == "smoke"
    assert current_profile("full").name == "full"
    monkeypatch.setenv("EFFCNN_PROFILE", "")
    assert current_profile().name == "live"


def test_unknown_profile_is_refused(monkeypatch):
    with pytest.raises(EffcnnError, match="unknown profile 'turbo'; use one of smoke, live, full"):
        current_profile("turbo")
    monkeypatch.setenv("EFFCNN_PROFILE", "turbo")
    with pytest.raises(EffcnnError, match="PROFILE is 'turbo'; use one of smoke, live, full"):
        current_profile()


def test_live_run_takes_techniques():
    run = live_run("1.5k-dw", PROFILES["live"], of_size(), techniques=("mixup", "cutout"))
    plain = live_run("1.5k-dw", PROFILES["live"], of_size())
    assert run == replace(plain, techniques=("cutout", "mixup"))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("profile", ["smoke", "live"])
def test_live_run_is_the_recipe_on_few_images(model, profile):
    run = live_run(model, PROFILES[profile], of_size(name=dataset_of(model)))
    assert run.train_images <= 10_000 and run.test_images <= 2_000 and run.epochs <= 3
    assert not run.whole
    whole = table_run(model, recipe=USUAL)
    assert replace(run, recipe=replace(run.recipe, epochs=whole.epochs), test_images=None,
                   train_images=whole.train_images) == whole


def test_live_run_is_on_the_dataset_that_is_given(monkeypatch):
    monkeypatch.setitem(DATASETS, "letters", replace(DATASETS["mnist"], name="letters"))
    monkeypatch.setitem(RECIPES, (USUAL, "letters"), Recipe(USUAL, epochs=4))
    assert live_run("7k", PROFILES["live"], of_size(name="letters")).dataset == "letters"
    with pytest.raises(EffcnnError, match="use a model that fits"):
        live_run("7k", PROFILES["live"], of_size(name="cifar10"))


def test_live_run_takes_no_more_images_than_there_are():
    run = live_run("7k", PROFILES["live"], of_size(4_000, 1_000))
    assert (run.train_images, run.test_images) == (4_000, 1_000)
    smoke = live_run("7k", PROFILES["smoke"], of_size(4_000, 1_000))
    assert (smoke.train_images, smoke.test_images) == (384, 200)


@pytest.mark.parametrize("profile, asked, epochs", [
    ("live", 2, 2), ("live", 9, 3), ("live", None, 3), ("smoke", 2, 1), ("smoke", None, 1)])
def test_live_run_takes_at_most_the_profiles_epochs(profile, asked, epochs):
    assert live_run("7k", PROFILES[profile], of_size(), epochs=asked).epochs == epochs


def test_a_short_run_is_not_made_longer():
    """A recipe of one's own with two epochs on a thousand images."""
    config = RunConfig("7k", "mnist", Recipe("brief", epochs=2), train_images=1_000, test_images=50)
    assert shortened(config, PROFILES["live"], 60_000, 10_000) == config
    assert shortened(config, PROFILES["smoke"], 60_000, 10_000).train_images == 384
    assert shortened(config, PROFILES["live"], 60_000, 10_000, epochs=3).epochs == 2


@pytest.mark.parametrize("model", MODELS)
def test_live_run_of_the_full_profile_is_a_whole_run(model):
    full, dataset = PROFILES["full"], of_size(name=dataset_of(model))
    assert live_run(model, full, dataset, epochs=2) == table_run(model, recipe=USUAL)
    assert shortened(table_run(model, seed=4), full, 384, 200) == table_run(model, seed=4)


# What a sweep can be asked for


@pytest.mark.parametrize("recipe, dataset", PILOTS)
def test_pilot_runs_never_look_at_the_test_images(recipe, dataset):
    runs = pilot_runs(recipe, dataset)
    kinds = {(run.evaluate_on, run.dataset, run.seed) for run in runs}
    assert kinds == {("validation", dataset, 0)}
    assert all(run.name.startswith("validation/") and run.whole for run in runs)
    assert len({run.name for run in runs}) == len(runs)


@pytest.mark.parametrize("recipe, dataset", PILOTS)
def test_pilot_tries_the_same_choices_on_each_row_and_the_recipe_is_one_of_them(recipe, dataset):
    stages = PILOTS[recipe, dataset]
    for rows, tried in stages:
        assert len(set(tried)) == len(tried)
        assert {(run.model, run.techniques, run.recipe) for run in pilot_runs(recipe, dataset)} >= {
            (*row, choice) for row in rows for choice in tried}
    if (recipe, dataset) in RECIPES:
        entry = RECIPES[recipe, dataset]
        chosen = [replace(entry, name=tried[0].name, epochs=tried[0].epochs) for _, tried in stages]
        assert all(choice in tried for choice, (_, tried) in zip(chosen, stages, strict=True))
        assert chosen[-1].epochs == entry.epochs, "the last stage is as long as the recipe"


def test_select_takes_each_seed_of_every_model_before_the_next_seed():
    runs = select(["mnist"], [0, 2])
    models = [row.model for row in TABLE_3 if row.dataset == "mnist"]
    assert runs == [table_run(model, seed) for seed in (0, 2) for model in models]


@pytest.mark.parametrize("model", MODELS)
def test_select_takes_one_model(model):
    assert select([model], [1]) == [table_run(model, 1)]


def test_select_takes_another_number_of_epochs_which_the_folder_names():
    [run] = select(["143k-dw/blurpool@60"], [1])
    assert run == table_run("143k-dw", 1, ("blurpool",), epochs=60)
    assert run.name == "cifar10/143k-dw/settled,epochs=60/blurpool/seed1"
    assert select(["143k-dw@20"], [0]) == select(["143k-dw"], [0]), "the recipe's own length"


def test_select_takes_rows_with_techniques_and_the_papers_tables():
    assert select(["143k-dw/mixup+cutout"], [2]) == [table_run("143k-dw", 2, ("cutout", "mixup"))]
    table_4 = select(["table-4"], [0])
    assert len(table_4) == 19 and {run.model for run in table_4} == {"1.5k-dw", "143k-dw"}
    assert len(select(["table-5"], [0])) == 6
    everything = select(["mnist", "cifar10", "table-4", "table-5"], [0])
    assert len(everything) == 31, "the paper's accuracy rows, each once"


def test_select_takes_another_recipe_for_all_of_them(monkeypatch):
    for dataset in DATASETS:
        own = Recipe("own", epochs=5, schedule="linear")
        monkeypatch.setitem(recipes.RECIPES, ("own", dataset), own)
    runs = select(["mnist", "143k-dw/cutout", "table-4", "table-5", "5k@7"], [1], recipe="own")
    assert {run.recipe.name for run in runs} == {"own"}
    assert {run.epochs for run in runs} == {5, 7}
    with pytest.raises(EffcnnError, match="no recipe 'owm' for mnist"):
        select(["mnist"], [0], recipe="owm")


@pytest.mark.parametrize("recipe, dataset", PILOTS)
def test_select_takes_the_pilot_whatever_the_seeds(recipe, dataset):
    assert select([f"pilot-{dataset}"], [0, 1], recipe) == pilot_runs(recipe, dataset)


@pytest.mark.parametrize("selection", [
    "imagenet", "pilot", "7k+mixup", "7k@", "7k@ten", "7k@-1", "mnist@3", "table-4@3", ""])
def test_select_refuses_the_rest_and_lists_what_there_is(selection):
    known = ("mnist, cifar10, table-4, table-5, beyond-1.5k.*, beyond, pilot-beyond, pilot-.*mnist.*, 25k.*"
             "143k-dw/cutout")
    message = f"unknown selection '{re.escape(selection)}'; use some of {known}"
    with pytest.raises(EffcnnError, match=message):
        select([selection], [0])


@pytest.mark.parametrize("selection, message", [
    ("7k/dropout", "unknown technique 'dropout'"), ("7k@0", r"Recipe\.epochs is 0"),
    ("7k/one_cycle_lr+swa", "contradict each other")])
def test_select_refuses_rows_that_cannot_be_trained(selection, message):
    with pytest.raises(EffcnnError, match=message):
        select([selection], [0])


@pytest.mark.parametrize("seed", [-1, 1.5, True])
def test_select_refuses_seeds_that_are_none(seed):
    with pytest.raises(EffcnnError, match=rf"RunConfig\.seed is {seed}"):
        select(["7k"], [seed])


def test_augmentations_are_told_apart_in_any_order():
    """Their order decides what is done to an image first."""
    orders = [("flip", "crop"), ("crop", "flip"), tuple(AUGMENTATIONS), tuple(AUGMENTATIONS)[::-1]]
    names = [RunConfig("own", "mnist", replace(PLAIN, augmentation=order)).name for order in orders]
    assert all(one != other for one, other in combinations(names, 2))
