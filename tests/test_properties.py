"""Whatever a function is given: it works, or it raises ValueError or TypeError with the value in its words.

2,000 examples in all; `make soak` (TESTS_SOAK=1) tries twenty times as many.
"""

import json
import math
import os
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from effcnn_helpers import settings as project_settings
from effcnn_helpers.cli.selections import select
from effcnn_helpers.datasets import DATASETS, DataError, ImageDataset, dataset_from_arrays, spec_of
from effcnn_helpers.errors import EffcnnError
from effcnn_helpers.models import MODELS, build_model, layer_costs
from effcnn_helpers.recipes import (
    PROFILES,
    RECIPES,
    Recipe,
    RunConfig,
    config_from,
    current_profile,
    live_run,
    recipe_of,
    table_run,
)
from effcnn_helpers.records import RecordError, RunRecord, record_from_json, record_to_json
from effcnn_helpers.statistics import Spread, Summary, binomial_se_percent, paired_difference, summarise, verdict
from effcnn_helpers.techniques import TECHNIQUES, check_techniques, in_order

MORE = 20 if os.environ.get("TESTS_SOAK") else 1
NAMES = {"model": list(MODELS), "dataset": list(DATASETS), "recipe": [name for name, _ in RECIPES],
         "technique": list(TECHNIQUES)}

numbers = st.integers() | st.floats() | st.sampled_from([0, 1, -1, 2**32, 10**400, 0.1, 1e308, 5e-324])
plain = st.none() | st.booleans() | numbers | st.text(max_size=8) | st.binary(max_size=3)
anything = plain | st.lists(plain, max_size=3) | st.lists(plain, max_size=2).map(tuple) | st.dictionaries(
    st.text(max_size=3), plain, max_size=2)


def examples(count: int):
    """So many examples of a property; `derandomize`: the same ones each time, but for a soak."""
    return settings(max_examples=count * MORE, deadline=None, derandomize=MORE == 1, database=None,
                    suppress_health_check=list(HealthCheck))


def one_of(kind: str):
    """A name that there is, or anything."""
    return st.sampled_from(NAMES[kind]) | anything


def techniques():
    """Names that there are, in any order and number, or anything."""
    known = st.lists(st.sampled_from(NAMES["technique"]), max_size=4)
    return known | known.map(tuple) | st.lists(one_of("technique"), max_size=2) | anything


def parts(value) -> list:
    """A value and, for a collection, what it holds."""
    inner = value.items() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [value, *(part for one in inner for part in parts(one))]


def works_or_says(call, *values):
    """What `call` returns; None where it refuses one of the values, or a part of one, in words that show it."""
    try:
        return call()
    except (ValueError, TypeError) as error:
        shown = [part for value in values for part in parts(value)]
        said = str(error)
        assert isinstance(error, EffcnnError) or "unexpected keyword" in said, f"{type(error).__name__}: {said}"
        assert any(repr(part) in said or str(part) in said for part in shown), f"{shown} is not named: {said}"
        return None


# What a run is


@examples(250)
@given(st.fixed_dictionaries({}, optional={
    field.name: anything | st.sampled_from([field.default, 1, 2, 0.5, "adam", "linear", ("flip",), "a name"])
    for field in fields(Recipe)}))
@example({"learning_rate": 10**400})
@example({"augmentation": (["flip"],)})
def test_recipe(values):
    values = {"name": "one", "epochs": 1, **values}
    recipe = works_or_says(lambda: Recipe(**values), *values.values())
    if recipe:
        config = RunConfig("own", "own", recipe)
        assert config_from(json.loads(json.dumps(vars(config), default=vars))) == config
        assert all(0 <= recipe.factor(share) <= 1 for share in (0.0, 0.3, 1.0))


@examples(250)
@given(st.fixed_dictionaries({}, optional={
    "model": one_of("model"), "dataset": one_of("dataset"), "recipe": anything, "techniques": techniques(),
    "seed": anything, "train_images": anything, "test_images": anything,
    "evaluate_on": st.sampled_from(["test", "validation"]) | anything}))
def test_configuration(values):
    values = {"model": "1.5k-dw", "dataset": "mnist", "recipe": Recipe("one", epochs=1), **values}
    config = works_or_says(lambda: RunConfig(**values), *values.values())
    if config:
        assert ".." not in config.name.split("/") and "" not in config.name.split("/") and config.passes >= 1
        assert config_from(json.loads(json.dumps(vars(config), default=vars))) == config


@examples(150)
@given(one_of("model"), anything, techniques(), one_of("recipe"), st.none() | one_of("dataset"), anything)
def test_run_of_a_table(model, seed, names, recipe, dataset, epochs):
    config = works_or_says(lambda: table_run(model, seed, names, recipe, dataset, epochs),
                           model, seed, names, recipe, dataset, epochs)
    if config:
        assert config.techniques == in_order(names)


@examples(150)
@given(one_of("model"), st.sampled_from(list(PROFILES)), anything, techniques(), one_of("recipe"))
def test_live_run(digits, model, profile, epochs, names, recipe):
    config = works_or_says(lambda: live_run(model, PROFILES[profile], digits, epochs, names, recipe),
                           model, epochs, names, recipe, digits.spec.image_shape)
    if config and profile != "full":
        assert config.epochs <= PROFILES[profile].live_epochs and config.test_images <= len(digits.test)


@examples(150)
@given(techniques())
def test_order_of_techniques(names):
    ordered = works_or_says(lambda: in_order(names), names)
    works_or_says(lambda: check_techniques(names), names)
    if ordered is not None:
        assert in_order(ordered) == ordered and set(ordered) == set(names)


@examples(50)
@given(anything)
def test_name_of_a_profile_or_a_dataset(name):
    works_or_says(lambda: spec_of(name), name)
    works_or_says(lambda: recipe_of("constant", name), name)
    if name:
        works_or_says(lambda: current_profile(name), name)


@examples(150)
@given(st.lists(st.sampled_from([*DATASETS, "table-4", "table-5", "pilot-mnist", *MODELS]) | st.text(max_size=8)
                | st.builds("{}/{}@{}".format, st.sampled_from(NAMES["model"]), st.sampled_from(NAMES["technique"]),
                            st.integers(-2, 99) | st.text(max_size=2)), max_size=3),
       st.lists(st.integers(-1, 2**33), max_size=2))
def test_selection_of_a_sweep(selections, seeds):
    values = [*selections, *[part for one in selections for part in one.replace("@", "/").replace("+", "/").split("/")]]
    values += [int(part) for part in values if part.isdecimal()]  # 007 is 7
    chosen = works_or_says(lambda: select(selections, seeds), *values, *seeds)
    if chosen:
        assert len(set(chosen)) == len({config.name for config in chosen}) == len(chosen)


# Data


shapes = st.sampled_from([(3, 28, 28), (2, 28, 28, 1), (1, 28, 28), (0, 28, 28), (3, 32, 32, 3), (3,), (), (3, 1)])
arrays = st.builds(
    lambda shape, kind, low, high: np.random.default_rng(0).integers(low, low + high, shape).astype(kind),
    shapes, st.sampled_from(["uint8", "int64", "int8", "float32", "bool", "complex64", "U3", "O"]),
    st.integers(-2, 5), st.integers(1, 9))


@examples(200)
@given(st.sampled_from(list(DATASETS)), st.dictionaries(
    st.sampled_from(["x_train", "y_train", "x_test", "y_test"]), arrays | anything))
def test_dataset_from_arrays(name, changes):
    images, labels = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28), np.array([3, 7])
    values = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels, **changes}
    try:
        dataset = dataset_from_arrays(DATASETS[name], values, "made up")
    except DataError as error:
        assert str(error).startswith("made up: ") and "expected" in str(error)
    else:
        assert isinstance(dataset, ImageDataset) and not dataset.real
        assert len(dataset.train.x) == len(dataset.train.y) >= 1


# Records


def with_one_changed(text: str, path: list[int], value) -> str:
    """The JSON text with one of its leaves, or branches, replaced; path: which child at each level, as a number."""
    top = here = json.loads(text)
    for step in path:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        key = keys[step % len(keys)]
        if not isinstance(here[key], dict | list) or not here[key] or step == path[-1]:
            here[key] = value
            break
        here = here[key]
    return json.dumps(top)


@pytest.fixture(scope="module")
def written(digits):
    """The text of a record as it is written."""
    recipe = Recipe("one", epochs=1)
    row = {"train_loss": 1.0, "test_loss": 1.0, "test_accuracy_percent": 50.0, "learning_rate": 0.1, "seconds": 1.0}
    return record_to_json(RunRecord(3, RunConfig("7k", "mnist", recipe), 10, [row], 1, 1, 2, {1: 3},
                                    {"safetensors": 1, "state_dict": 1}, {"sha256": "", "real": True, "source": ""},
                                    {}, {}, "", "", 1.0, False))


@examples(200)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=3), anything.filter(lambda value: not _has_bytes(value)))
def test_record_with_one_value_changed(written, path, value):
    text = with_one_changed(written, path, value)
    try:
        record = record_from_json(text)
    except RecordError as error:
        assert str(error)
    else:
        assert 0 <= record.accuracy_percent <= 100 and 0 <= record.fresh_percent <= 100
        assert record.config.name and len(record.epochs) == record.config.epochs


def _has_bytes(value) -> bool:
    return any(isinstance(part, bytes) for part in parts(value))


@examples(100)
@given(st.text(max_size=40))
def test_text_that_is_no_record(text):
    with pytest.raises(RecordError):
        record_from_json(text)


# Numbers


percentages = st.floats(0, 100)


@examples(100)
@given(st.lists(percentages | plain, max_size=4), percentages | plain, percentages | plain, st.integers(1, 9) | plain)
def test_summary_and_verdict(accuracies, paper, sd, freedom):
    summary = works_or_says(lambda: summarise(accuracies), accuracies)
    ours = summary or Summary(2, 50.0, 1.0)
    spread = works_or_says(lambda: Spread(sd, freedom), sd, freedom)
    word = works_or_says(lambda: verdict(paper, ours, spread), paper)
    assert word in (None, "reproduced", "within noise", "exceeded", "not reproduced")
    if summary:
        slack = 1e-9
        assert min(accuracies) - slack <= summary.mean_percent <= max(accuracies) + slack
        assert summary.sd_percent is None or summary.sd_percent >= 0


@examples(50)
@given(plain, plain)
def test_standard_error(accuracy, images):
    error = works_or_says(lambda: binomial_se_percent(accuracy, images), accuracy, images)
    assert error is None or error >= 0


@examples(50)
@given(st.sets(st.integers(0, 99)), st.sets(st.integers(0, 99)), st.integers(100, 200))
def test_paired_difference(make_record, first, second, total):
    runs = [make_record(wrong=len(wrong), total=total, misclassified=dict.fromkeys(wrong, 3))
            for wrong in (first, second)]
    points, error = paired_difference(*runs)
    assert math.isclose(points, 100 * (len(second) - len(first)) / total, abs_tol=1e-9) and error >= 0


@examples(40)
@given(st.tuples(*[st.sampled_from([1, 3, 28, 32, 0, -1])] * 3) | anything)
def test_costs_of_layers(shape):
    costs = works_or_says(lambda: layer_costs(build_model("1.5k-dw"), shape), [shape])
    assert costs is None or costs["parameters"].min() > 0


# What the shell hands down


@examples(110)
@given(st.sampled_from(list(project_settings.CHECKS)),
       st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=300)
       | st.sampled_from(["~", "~x", "/", "0", " 1"]))
def test_setting(names, value):
    with pytest.MonkeyPatch.context() as patch:
        for name in names.split():
            patch.setenv(name, value)
        works_or_says(project_settings.CHECKS[names], value)
