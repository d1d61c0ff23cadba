"""The recorded runs that the project ships: whole, of the real data, and what their weights give."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import effcnn_helpers
from effcnn_helpers.cli.bench import BUSY_CORES, names_of_networks
from effcnn_helpers.cli.recording import train_or_load
from effcnn_helpers.cli.selections import PILOTS, pilot_runs, select
from effcnn_helpers.cli.verify import ALLOWED_FLIPS, check_run, verify
from effcnn_helpers.datasets import DATASETS, load_images
from effcnn_helpers.latency import latency_path, latency_table, passes_by_model, read_latency
from effcnn_helpers.models import count_parameters
from effcnn_helpers.paper import TABLE_3, TEST_IMAGES
from effcnn_helpers.recipes import RECIPES
from effcnn_helpers.records import (
    all_runs,
    build_network,
    read_network,
    read_run,
    record_to_json,
    recorded_dir,
    table_runs,
)
from effcnn_helpers.runtimes import RUNTIMES
from effcnn_helpers.tables import table_3, table_4, table_5


@pytest.fixture(autouse=True)
def recorded(monkeypatch) -> Path:
    """The package's own folder, for once."""
    monkeypatch.delenv("EFFCNN_RECORDED_DIR")
    assert recorded_dir() == Path(effcnn_helpers.__file__).parent / "recorded"
    return recorded_dir()


def test_every_accuracy_of_the_paper_has_its_run_of_seed_0():
    wanted = select(["mnist", "cifar10", "table-4", "table-5"], [0])
    assert len(wanted) == 31
    recorded = {run.config for run in all_runs()}
    assert [config.name for config in wanted if config not in recorded] == []


def test_every_file_belongs_to_a_run(recorded):
    names = {record.config.name for record in all_runs()}
    stray = [path for path in recorded.rglob("*") if path.is_file() and path != latency_path() and not (
        path.name in ("run.json", "weights.safetensors")
        and path.parent.relative_to(recorded).as_posix() in names)]
    assert stray == []


def test_every_record_is_written_as_this_code_writes_it(recorded):
    for record in all_runs():
        text = (recorded / record.config.name / "run.json").read_text(encoding="utf-8")
        assert text == record_to_json(record), record.config.name
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_every_run_is_a_full_one_on_the_real_data_by_committed_code():
    for record in all_runs():
        name = record.config.name
        assert record.config.whole, name
        assert record.data["real"] is True, name
        assert record.git["modified"] is False and len(record.git["commit"]) == 40, name
        held_out = {"mnist": 10_000, "cifar10": 5_000}[record.config.dataset]
        tested = record.config.evaluate_on == "test"
        assert record.total == (TEST_IMAGES if tested else held_out), name
        assert record.started <= record.ended, name
        assert record.train_seconds == pytest.approx(sum(row["seconds"] for row in record.epochs)), name


def test_every_run_of_a_dataset_was_trained_on_the_same_images():
    runs = list(all_runs())
    for dataset in DATASETS:
        digests = {run.data["sha256"] for run in runs if run.config.dataset == dataset}
        assert len(digests) == 1, dataset


def test_every_run_has_its_models_parameters_and_files(recorded):
    for record in all_runs():
        name = record.config.name
        assert count_parameters(build_network(record.config)) == record.parameters, name
        assert count_parameters(read_network(record)) == record.parameters, name
        size = (recorded / name / "weights.safetensors").stat().st_size
        assert size == record.bytes["safetensors"], name


def test_composers_last_accuracy_is_the_recorded_count():
    for record in all_runs():
        last = record.epochs[-1]["test_accuracy_percent"]
        assert last == pytest.approx(record.accuracy_percent, abs=1e-4), record.config.name


def test_runs_of_a_table_follow_the_recipe_and_are_found_by_it():
    for record in all_runs():
        config = record.config
        if config.evaluate_on == "test":
            entry = RECIPES[config.recipe.name, config.dataset]
            # The folder names another length, and what else a rung of a ladder changes.
            on_a_ladder = replace(config, seed=0) in select(["beyond"], [0])
            assert on_a_ladder or config.recipe == replace(entry, epochs=config.epochs), config.name
            assert train_or_load(config) == record


def test_every_validation_run_is_one_that_a_recipe_was_chosen_by():
    pilots = {config for recipe, dataset in PILOTS for config in pilot_runs(recipe, dataset)}
    tried = {run.config for run in all_runs(below="validation")}
    assert tried and tried <= {*pilots, *select(["pilot-beyond"], [0])}


def test_every_run_is_in_the_folder_of_its_name_which_no_other_has(recorded):
    folders = sorted(path.parent for path in recorded.rglob("run.json"))
    assert [recorded / read_run(folder).config.name for folder in folders] == folders
    assert len({read_run(folder).config for folder in folders}) == len(folders)


def test_the_tables_count_every_run_of_their_rows():
    tables = [table_3(dataset) for dataset in DATASETS]
    # The first row of a technique table is the baseline, which Table 3 has counted.
    tables += [table.iloc[1:] for table in (table_4("mnist"), table_4("cifar10"), table_5())]
    counted = sum(row.n for table in tables for row in table["ours"] if row)
    rows = set(select(["mnist", "cifar10", "table-4", "table-5"], [0, 1, 2]))
    assert counted == sum(record.config in rows for record in all_runs())


def test_weights_give_what_was_recorded(real_data_dir, monkeypatch, capsys):
    """Measured again where the real images are; elsewhere `verify` must not pass."""
    if real_data_dir:
        monkeypatch.setenv("EFFCNN_DATA_DIR", str(real_data_dir))
    status = verify(quick=True)
    printed = capsys.readouterr().out
    if real_data_dir:
        assert status == 0, printed
    else:
        assert status == 1 and "the real mnist is not here" in printed


@pytest.mark.parametrize("model", ["1.5k-dw", "143k-dw"])
def test_one_run_of_each_dataset_is_measured_again_on_all_images(model, real_data_dir, monkeypatch):
    """With fresh BatchNorm statistics, too: a changed count of those is seen."""
    run = table_runs(model)[0]
    if not real_data_dir or not (real_data_dir / f"{run.config.dataset}.npz").is_file():
        pytest.skip(f"needs the real {run.config.dataset}")
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(real_data_dir))
    dataset = load_images(run.config.dataset)
    problems, notes = check_run(run, dataset)
    assert dataset.real and problems == [] and len(notes) <= ALLOWED_FLIPS


def test_the_recorded_latency_is_of_the_recorded_networks_at_rest():
    """Every model in every runtime, all outputs checked, by committed code.

    PyTorch answers as it did when the networks were recorded.
    """
    record = read_latency()
    assert record["kind"] == "full" and record["git"]["modified"] is False
    assert record["machine"]["busy_cores_before"] <= BUSY_CORES
    checks = {check["variant"]: check for check in record["checks"]}
    names = names_of_networks(full=True)
    assert set(checks) == {f"{name}/{runtime}" for name in names for runtime in RUNTIMES}
    assert not [variant for variant, check in checks.items() if check["wrong"]]
    for name in names:
        model, _, techniques = name.partition("/")
        # Measured before records of this kind named their runs: the tables were by the recipe "constant" then.
        run = table_runs(model, techniques.split("+") if techniques else (), recipe="constant")[0]
        if "runs" in record:
            run = read_run(recorded_dir() / record["runs"][name])
        difference = abs(checks[f"{name}/eager"]["accuracy_percent"] - run.accuracy_percent)
        assert difference * run.total / 100 <= ALLOWED_FLIPS + 0.5, name
    assert set(record["sizes"]) == {row.model for row in TABLE_3}


def test_what_notebook_15_says_of_the_recorded_latency_is_so():
    record = read_latency()
    side_by_side = passes_by_model(record)["seconds"]
    slower = {model: side_by_side[f"{model}-DW"] / side_by_side[model] for model in ("7K", "5K", "143K")}
    assert 1.1 < slower["5K"] < 1.25 and 1.1 < slower["7K"] < 1.25
    assert 0.95 < slower["143K"] < 1.05
    digits = side_by_side[[row.label for row in TABLE_3 if row.dataset == "mnist"]]
    assert digits.idxmin() == "5K" and 1.8 < digits.max() / digits.min() < 2.2

    ms = latency_table(record, "pass").set_index(["model", "runtime"])["ms"].unstack()
    pairs = [("7k", "7k-dw"), ("5k", "5k-dw"), ("143k", "143k-dw")]
    assert all(ms["openvino"][depthwise] < ms["openvino"][plain] for plain, depthwise in pairs)
    assert ms["openvino"].idxmin() == "1.5k-dw"
    exact = ms["eager"] / ms[["frozen", "onnxruntime", "openvino"]].min(axis=1)
    assert 2.35 < exact.min() and exact["143k-dw"] > 2.5
    assert exact["1.5k-dw"] == exact.max() > 5
    int8 = ms["eager"] / ms["int8"]
    assert int8.min() > 3.6 and int8.max() < 6.5
    assert ms["int8"]["1.5k-dw"] > ms["openvino"]["1.5k-dw"]

    percent = {check["variant"]: check["accuracy_percent"] for check in record["checks"]}
    assert all(abs(percent[f"{model}/int8"] - percent[f"{model}/eager"]) < 0.3
               for model in ms.index)


def test_our_sizes_agree_with_the_papers():
    for dataset in DATASETS:
        for row in table_3(dataset).itertuples():
            assert abs(row.our_kb - row.paper_kb) < 1.5, row.model
