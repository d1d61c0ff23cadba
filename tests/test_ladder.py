"""The ladders of notebook 16: one change a rung, gains over what was kept."""

from dataclasses import asdict, replace

import pytest

from effcnn_helpers.cli.selections import select
from effcnn_helpers.ladder import LADDERS, climb, ladder_table
from effcnn_helpers.recipes import Recipe, RunConfig, table_run

START = RunConfig("7k", "mnist", Recipe("plain", epochs=2))


def knobs(config: RunConfig) -> dict:
    """Everything that can be changed about a run, flat."""
    return {**asdict(config), **asdict(config.recipe), "recipe": None}


@pytest.mark.parametrize("budget", LADDERS)
def test_a_rung_changes_one_thing_of_what_was_kept_below_it(budget):
    first, *others = LADDERS[budget]
    below = first.config
    assert below == table_run(below.model, recipe="settled")
    for rung in others:
        now, then = knobs(rung.config), knobs(below)
        assert len([name for name in now if now[name] != then[name]]) == 1, rung.change
        below = rung.config if rung.kept else below
    assert len({rung.config for rung in LADDERS[budget]}) == len(LADDERS[budget])


def test_a_rung_that_is_not_kept_is_not_under_the_next_one():
    bottom, crops, longer = climb(START, ("crops", {"augmentation": ("crop",)}, False), ("longer", {"epochs": 5}, True))
    assert bottom.config == START
    assert crops.config == replace(START, recipe=Recipe("plain", epochs=2, augmentation=("crop",)))
    assert longer.config == replace(START, recipe=Recipe("plain", epochs=5))


def test_the_table_has_the_gain_over_what_was_kept_below_and_the_minutes(write_record, tmp_path, monkeypatch):
    monkeypatch.setitem(LADDERS, "7k", climb(
        START, ("crops", {"augmentation": ("crop",)}, False), ("longer", {"epochs": 4}, True),
        ("wider", {"model": "25k"}, True)))
    for seed in (0, 1):
        for change, wrong in (({}, 100), ({"augmentation": ("crop",)}, 300), ({"epochs": 4}, 60)):
            write_record("7k", seed=seed, wrong=wrong, root=tmp_path, train_seconds=60.0 * (seed + 1),
                         recipe={**asdict(START.recipe), **change}, config={"train_images": None})
    table = ladder_table("7k", tmp_path)
    assert table["change"].tolist() == ["the tables' recipe", "crops", "longer", "wider"]
    assert [row.mean_percent for row in table["ours"][:3]] == pytest.approx([99.0, 97.0, 99.4])
    assert [row.points for row in table["gain"][1:3]] == pytest.approx([-2.0, 0.4])
    assert table["minutes"][:3].tolist() == [1.5] * 3 and table["parameters"][0] == 7_767
    assert table.loc[0, "gain"] is None and table.loc[3, ["ours", "gain", "parameters"]].isna().all()


def test_a_sweep_takes_all_ladders_one_of_them_and_their_rungs_on_validation_images():
    everything = {rung.config for rungs in LADDERS.values() for rung in rungs}
    assert set(select(["beyond"], [0])) == everything
    assert select(["beyond-7k"], [3]) == [replace(rung.config, seed=3) for rung in LADDERS["7k"]]
    pilots = select(["pilot-beyond"], [0, 1])
    assert {(run.evaluate_on, run.train_images) for run in pilots} == {("validation", None)}
    assert len(pilots) == len(everything)
