"""The ladders of notebook 16: one change a rung, gains over what was kept."""

import math
from dataclasses import asdict, replace

import pytest

from effcnn_helpers.cli.selections import select
from effcnn_helpers.ladder import LADDERS, Rung, climb, goals_table, ladder_table, rows_at_rest, worded_ladder
from effcnn_helpers.models import MODELS, build_model, count_parameters
from effcnn_helpers.paper import TABLE_3, TABLE_4, TABLE_5, accuracy_of
from effcnn_helpers.recipes import Recipe, RunConfig, table_run
from effcnn_helpers.statistics import Spread, gain_over

START = RunConfig("7k", "mnist", Recipe("plain", epochs=2))


def put_up(monkeypatch, budget: str, rungs: tuple[Rung, ...]) -> None:
    """Other rungs for a budget."""
    monkeypatch.setitem(LADDERS, budget, replace(LADDERS[budget], rungs=rungs))


def knobs(config: RunConfig) -> dict:
    """Everything that can be changed about a run, flat."""
    return {**asdict(config), **asdict(config.recipe), "recipe": None}


@pytest.mark.parametrize("budget", LADDERS)
def test_a_rung_changes_one_thing_of_what_was_kept_below_it(budget):
    first, *others = LADDERS[budget].rungs
    below = first.config
    assert below == table_run(below.model, recipe="settled")
    for rung in others:
        now, then = knobs(rung.config), knobs(below)
        assert len([name for name in now if now[name] != then[name]]) == 1, rung.change
        below = rung.config if rung.kept else below
    assert len({rung.config for rung in LADDERS[budget].rungs}) == len(LADDERS[budget].rungs)


def test_a_rung_that_is_not_kept_is_not_under_the_next_one():
    bottom, crops, longer = climb(START, ("crops", {"augmentation": ("crop",)}, False), ("longer", {"epochs": 5}, True))
    assert bottom.config == START
    assert crops.config == replace(START, recipe=Recipe("plain", epochs=2, augmentation=("crop",)))
    assert longer.config == replace(START, recipe=Recipe("plain", epochs=5))


def test_the_table_has_the_gain_over_what_was_kept_below(write_record, tmp_path, monkeypatch):
    put_up(monkeypatch, "7k", climb(
        START, ("crops", {"augmentation": ("crop",)}, False), ("longer", {"epochs": 4}, True),
        ("wider", {"model": "25k"}, True)))
    for seed in (0, 1):
        for change, wrong in (({}, 100), ({"augmentation": ("crop",)}, 300), ({"epochs": 4}, 60)):
            write_record("7k", seed=seed, wrong=wrong, root=tmp_path,
                         recipe={**asdict(START.recipe), **change}, config={"train_images": None})
    table = ladder_table("7k", tmp_path)
    assert table["change"].tolist() == ["recipe plain", "crops", "longer", "wider"]
    assert [row.mean_percent for row in table["ours"][:3]] == pytest.approx([99.0, 97.0, 99.4])
    assert [row.points for row in table["gain"][1:3]] == pytest.approx([-2.0, 0.4])
    assert table["parameters"][0] == 7_767
    assert table.loc[0, "gain"] is None and table.loc[3, ["ours", "gain", "parameters"]].isna().all()
    assert [gain.freedom for gain in table["gain"][1:3]] == [0, 0]  # none of these rows comes to rest

    words = worded_ladder(table)
    assert list(words.index) == ["recipe plain", "(crops)", "longer", "wider"]
    assert words["network"].to_list() == ["7K", "7K", "7K", "25K"]
    assert words["gain"].to_list() == ["", "-2.00 ± ?", "+0.40 ± ?", ""]
    assert words.loc["wider"].to_list() == ["25K", "", "no run yet", "", ""]


def test_the_spread_of_a_ladder_is_that_of_all_rows_at_rest(write_record, tmp_path, monkeypatch):
    """On the same images, by whichever recipe and model; runs in a zigzag or on fewer images tell nothing of it."""
    falling = replace(table_run("7k"), recipe=replace(START.recipe, schedule="linear"))
    put_up(monkeypatch, "7k", climb(falling, ("longer", {"epochs": 4}, True)))
    knobs = asdict(falling.recipe)
    for seed, wrong in ((0, 100), (1, 120)):
        write_record("7k", seed=seed, wrong=wrong, root=tmp_path, recipe=knobs)
        write_record("7k", seed=seed, wrong=60, root=tmp_path, recipe={**knobs, "epochs": 4})
        write_record("5k", seed=seed, wrong=20 * wrong, root=tmp_path, recipe={**knobs, "schedule": "constant"})
        write_record("5k", seed=seed, wrong=10 * wrong, root=tmp_path, recipe=knobs, config={"train_images": 500})
        write_record("25k", seed=seed, wrong=100, root=tmp_path, recipe=knobs)
    found = [run for row in rows_at_rest("mnist", tmp_path) for run in row]
    assert sorted(run.config.model for run in found) == ["25k"] * 2 + ["7k"] * 4
    [gain] = ladder_table("7k", tmp_path)["gain"][1:]
    seeds = math.sqrt(0.02 / 3)  # one row of three with two seeds scatters: 99.0 and 98.8
    longer, shorter = ([run for run in found if (run.config.model, run.config.epochs) == ("7k", epochs)]
                       for epochs in (4, 2))
    images = gain_over(longer, shorter, Spread(1e-9, 3)).error
    assert gain.error == pytest.approx(math.hypot(images, seeds))


def test_goals_are_reached_by_the_highest_kept_rung_and_the_highest_of_the_papers(write_record, tmp_path, monkeypatch):
    put_up(monkeypatch, "143k", climb(
        replace(START, model="143k", dataset="cifar10"), ("longer", {"epochs": 4}, True),
        ("residual", {"model": "142k-res"}, True), ("crops", {"augmentation": ("crop",)}, False)))
    knobs = asdict(START.recipe)
    for model, wrong, changes in (("143k", 3000, {}), ("143k", 1000, {"epochs": 4}), ("142k-res", 900, {"epochs": 4}),
                                  ("142k-res", 100, {"epochs": 4, "augmentation": ("crop",)})):
        write_record(model, wrong=wrong, root=tmp_path, recipe={**knobs, **changes}, config={"train_images": None})
    table = goals_table(tmp_path)
    assert table.loc["≤ 143,396"].to_list() == [
        "86.76", "90.00 (n=1)", "90.00, reached", "91.00 (n=1)", "92.50, not yet", "within noise"]
    assert table.loc["≤ 1,560"].to_list() == ["99.21", "no run yet", "99.35", "no run yet", "99.45", "not run"]
    for seed, wrong in ((0, 900), (1, 910)):  # the two seeds tell how far seeds lie apart
        write_record("142k-res", seed=seed, wrong=wrong, root=tmp_path, config={"train_images": None},
                     recipe={**knobs, "epochs": 4, "schedule": "linear"})
    assert goals_table(tmp_path).loc["≤ 143,396", "verdict"] == "exceeded"


@pytest.mark.parametrize("budget", LADDERS)
def test_every_network_of_a_ladder_keeps_to_its_budget(budget):
    ladder = LADDERS[budget]
    for rung in ladder.rungs:
        assert count_parameters(build_model(rung.config.model)) <= ladder.parameters, rung.change
    dataset = ladder.rungs[0].config.dataset
    of_this_size = [row.model for row in TABLE_3 if row.dataset == dataset and row.model.startswith(budget)]
    readings = [accuracy_of(dataset, model, techniques)
                for model in of_this_size for techniques in ((), *TABLE_4, *TABLE_5)]
    assert ladder.paper == max(filter(None, readings))


def test_a_sweep_takes_all_ladders_and_sizes_one_ladder_and_the_rungs_on_validation_images():
    everything = {rung.config for ladder in LADDERS.values() for rung in ladder.rungs}
    sizes = select(["sizes"], [0])
    assert [run.model for run in sizes] == list(MODELS)
    assert {(run.recipe.name, run.techniques, run.whole) for run in sizes} == {("settled", (), True)}
    assert set(select(["beyond"], [0])) == everything | set(sizes)
    assert select(["beyond-7k"], [3]) == [replace(rung.config, seed=3) for rung in LADDERS["7k"].rungs]
    pilots = select(["pilot-beyond"], [0, 1])
    assert {(run.evaluate_on, run.train_images) for run in pilots} == {("validation", None)}
    assert len(pilots) == len(everything)
