import dataclasses
import json
import re
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from effcnn_helpers.cli.selections import PILOT_STAGES, pilot_runs, select
from effcnn_helpers.models import MODELS
from effcnn_helpers.recipes import (
    PROFILES,
    RECIPE_VERSION,
    RECIPES,
    RunConfig,
    config_from,
    current_profile,
    live_run,
    table_run,
)

EVERY_MODEL = [model for models in MODELS.values() for model in models]
WITH_RECIPE = [model for dataset in RECIPES for model in MODELS[dataset]]


@pytest.mark.parametrize("field, value, expected", [
    ("seed", -1, "0 or more"),
    ("epochs", 0, "1 or more"),
    ("batch_size", 1, "2 or more"),
    ("optimizer", "adamw", '"sgd" or "adam"'),
    ("learning_rate", 0, "a number above 0"),
    ("learning_rate", -0.1, "a number above 0"),
    ("learning_rate", float("nan"), "a number above 0"),
    ("learning_rate", float("inf"), "a number above 0"),
    ("train_images", 1, "2 or more"),
    ("test_images", 0, "1 or more"),
    ("evaluate_on", "train", '"test" or "validation"'),
    ("profile", "fast", "one of smoke, live, full"),
])
def test_config_refuses_what_cannot_be_trained_with(field, value, expected):
    with pytest.raises(ValueError) as refusal:
        RunConfig(**{"model": "25k", field: value})
    assert f"RunConfig.{field} is {value!r}" in str(refusal.value)
    assert expected in str(refusal.value)


def test_config_refuses_an_unknown_model_and_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown model '2k'.*25k, 7k, 7k-dw, 5k, 5k-dw, 1.5k-dw, 143k, 143k-dw"):
        RunConfig("2k")


@pytest.mark.parametrize("field, value", [
    ("seed", 0), ("epochs", 1), ("batch_size", 2), ("optimizer", "adam"), ("learning_rate", 1e-9),
    ("train_images", 2), ("train_images", None), ("test_images", 1), ("test_images", None)])
def test_config_takes_the_smallest_values_that_work(field, value):
    assert getattr(RunConfig(**{"model": "25k", field: value}), field) == value


def test_config_is_plain_frozen_data():
    config = table_run("7k-dw", seed=2, techniques=["swa", "cutout"])
    assert config.techniques == ("cutout", "swa")
    assert config_from(json.loads(json.dumps(asdict(config)))) == config
    assert config_from({"model": "7k"}) == RunConfig("7k"), "records from before there were techniques"
    assert len({config, table_run("7k-dw", 2, ("cutout", "swa")), table_run("7k-dw", seed=2)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3


@pytest.mark.parametrize("model", EVERY_MODEL)
def test_name_is_the_folder_that_the_design_gives(model):
    dataset = next(dataset for dataset, models in MODELS.items() if model in models)
    assert RunConfig(model, seed=3).dataset == dataset
    assert table_run(model, seed=3).name == f"{dataset}/{model}/baseline/seed3"
    both = table_run(model, techniques=("cutout", "mixup"))
    assert both.name == f"{dataset}/{model}/cutout+mixup/seed0"


def test_name_of_a_validation_run_says_what_it_tries():
    config = RunConfig("25k", seed=1, epochs=6, optimizer="adam", learning_rate=0.003, evaluate_on="validation")
    assert config.name == "validation/mnist/25k/baseline/seed1/adam-0.003-6ep"


@pytest.mark.parametrize("dataset", RECIPES)
def test_one_recipe_serves_every_model_of_a_table(dataset):
    runs = [table_run(model) for model in MODELS[dataset]]
    assert len({replace(run, model=runs[0].model) for run in runs}) == 1
    run = runs[0]
    assert (run.train_images, run.test_images, run.evaluate_on, run.profile) == (50_000, None, "test", "full")
    assert {key: getattr(run, key) for key in RECIPES[dataset]} == RECIPES[dataset]
    assert RECIPE_VERSION[dataset] >= 1


@pytest.mark.parametrize("dataset", RECIPES)
def test_pilot_runs_never_look_at_the_test_images(dataset):
    runs = pilot_runs(dataset)
    assert {run.evaluate_on for run in runs} == {"validation"} and {run.dataset for run in runs} == {dataset}
    assert all(run.name.startswith("validation/") and run.train_images is None for run in runs)
    assert len({run.name for run in runs}) == len(runs)


@pytest.mark.parametrize("dataset", RECIPES)
def test_pilot_tries_the_same_choices_on_each_row_and_the_recipe_is_one_of_them(dataset):
    recipe = RECIPES[dataset]
    chosen = recipe["optimizer"], recipe["learning_rate"]
    for _, epochs, choices in PILOT_STAGES[dataset]:
        assert chosen in choices and len(set(choices)) == len(choices)
        tried = {(run.optimizer, run.learning_rate) for run in pilot_runs(dataset) if run.epochs == epochs}
        assert set(choices) <= tried
    assert epochs == recipe["epochs"], "the last stage is as long as the recipe"


def test_profile_comes_from_the_argument_then_the_environment_then_live(monkeypatch):
    assert current_profile().name == "live"
    monkeypatch.setenv("EFFCNN_PROFILE", "smoke")
    assert current_profile().name == "smoke"
    assert current_profile("full").name == "full"
    monkeypatch.setenv("EFFCNN_PROFILE", "")
    assert current_profile().name == "live"


@pytest.mark.parametrize("where", ["argument", "environment"])
def test_unknown_profile_is_refused(where, monkeypatch):
    if where == "environment":
        monkeypatch.setenv("EFFCNN_PROFILE", "turbo")
    with pytest.raises(ValueError, match="unknown profile 'turbo'; use one of smoke, live, full.*EFFCNN_PROFILE"):
        current_profile("turbo" if where == "argument" else None)


def test_live_run_takes_techniques():
    images = of_size(60_000, 10_000)
    run = live_run("1.5k-dw", PROFILES["live"], images, techniques=("mixup", "cutout"))
    assert run == replace(live_run("1.5k-dw", PROFILES["live"], images), techniques=("cutout", "mixup"))


def of_size(train: int, test: int) -> SimpleNamespace:
    """All that a live run asks of its dataset."""
    return SimpleNamespace(train=range(train), test=range(test))


@pytest.mark.parametrize("model", WITH_RECIPE)
@pytest.mark.parametrize("profile", ["smoke", "live"])
def test_live_run_is_the_recipe_on_few_images(model, profile):
    run = live_run(model, PROFILES[profile], of_size(60_000, 10_000))
    assert run.train_images <= 10_000 and run.test_images <= 2_000 and run.epochs <= 3
    assert run.profile == profile and run.evaluate_on == "test"
    for field in ("optimizer", "learning_rate", "batch_size"):
        assert getattr(run, field) == getattr(table_run(model), field)


def test_live_run_takes_no_more_images_than_there_are():
    run = live_run("7k", PROFILES["live"], of_size(4_000, 1_000))
    assert (run.train_images, run.test_images) == (4_000, 1_000)
    assert live_run("7k", PROFILES["smoke"], of_size(4_000, 1_000)).train_images < 1_000


@pytest.mark.parametrize("profile, asked, epochs", [("live", 2, 2), ("live", 9, 3), ("live", None, 3), ("smoke", 2, 1)])
def test_live_run_takes_at_most_the_profiles_epochs(profile, asked, epochs):
    assert live_run("7k", PROFILES[profile], of_size(60_000, 10_000), epochs=asked).epochs == epochs


@pytest.mark.parametrize("model", WITH_RECIPE)
def test_live_run_of_the_full_profile_is_the_recorded_recipe(model):
    assert live_run(model, PROFILES["full"], of_size(60_000, 10_000), epochs=2) == table_run(model)


def test_select_takes_each_seed_of_every_model_before_the_next_seed():
    runs = select(["mnist"], [0, 2])
    assert [(run.seed, run.model) for run in runs] == [(seed, model) for seed in (0, 2) for model in MODELS["mnist"]]
    assert all(run == table_run(run.model, run.seed) for run in runs)


@pytest.mark.parametrize("model", WITH_RECIPE)
def test_select_takes_one_model(model):
    assert select([model], [1]) == [table_run(model, 1)]


def test_select_takes_another_number_of_epochs_which_the_folder_names():
    [run] = select(["143k-dw/blurpool@60"], [1])
    assert run == replace(table_run("143k-dw", 1, ("blurpool",)), epochs=60)
    assert run.name == "cifar10/143k-dw/blurpool-60ep/seed1"
    assert select(["143k-dw@20"], [0]) == select(["143k-dw"], [0]), "the recipe's own length has no folder of its own"


def test_select_takes_rows_with_techniques_and_the_papers_tables():
    assert select(["143k-dw/mixup+cutout"], [2]) == [table_run("143k-dw", 2, ("cutout", "mixup"))]
    table_4 = select(["table-4"], [0])
    assert len(table_4) == 19 and {run.model for run in table_4} == {"1.5k-dw", "143k-dw"}
    assert len(select(["table-5"], [0])) == 6
    assert len(select(["mnist", "cifar10", "table-4", "table-5"], [0])) == 31, "the paper's accuracy rows, each once"


@pytest.mark.parametrize("dataset", RECIPES)
def test_select_takes_the_pilot_whatever_the_seeds(dataset):
    assert select([f"pilot-{dataset}"], [0, 1]) == pilot_runs(dataset)


@pytest.mark.parametrize("selection", ["imagenet", "pilot", "7k+mixup", "7k@", "7k@ten", "mnist@3", ""])
def test_select_refuses_the_rest_and_lists_what_there_is(selection):
    with pytest.raises(ValueError, match=f"unknown selection '{re.escape(selection)}'; use some of mnist, cifar10, "
                                         "table-4, table-5, pilot-mnist, pilot-cifar10, 25k.*143k-dw/cutout"):
        select([selection], [0])
    with pytest.raises(ValueError, match="unknown technique 'dropout'"):
        select(["7k/dropout"], [0])
