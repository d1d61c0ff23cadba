import json

import pandas as pd
import psutil
import pytest
import torch

from effcnn_helpers.cli import bench
from effcnn_helpers.cli.bench import median_ratios, one_pass, percentiles
from effcnn_helpers.datasets import DataError
from effcnn_helpers.errors import EffcnnError
from effcnn_helpers.latency import latency_path, latency_table, read_latency
from effcnn_helpers.records import RecordError
from effcnn_helpers.runtimes import RUNTIMES


@pytest.fixture
def at_rest(monkeypatch):
    """A machine on which nothing else runs."""
    monkeypatch.setattr(bench, "busy_cores", lambda: 0.0)
    monkeypatch.setattr(bench, "refuse_beside_a_sweep", lambda: None)


@pytest.fixture
def small_bench(at_rest, monkeypatch, write_record):
    """A bench of one network, with few calls."""
    write_record("1.5k-dw")
    monkeypatch.setattr(bench, "names_of_networks", lambda full: ["1.5k-dw"])
    monkeypatch.setattr(bench, "SINGLE_IMAGES", 3)
    monkeypatch.setattr(bench, "BATCHES", (1, 128))


def test_bench_records_all_views_and_a_second_one_compares_itself(small_bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "refuse_unreal", lambda *_: None)  # the sample is enough here
    assert bench.bench(full=True, threads=1, out=None) == 0
    record = read_latency()
    assert latency_path().exists() and record["kind"] == "full" and record["threads"] == 1
    assert record["machine"]["cpu"] == bench.cpu_name()
    assert record["machine"]["instructions"] == bench.instructions()
    assert record["environment"]["torch"] == torch.__version__.partition("+")[0]
    assert record["git"].keys() == {"commit", "modified"}
    assert all(roof > 0 for roof in record["ceilings"].values())
    passes = latency_table(record, "pass")
    assert passes["runtime"].to_list() == list(RUNTIMES) and (passes["ms"] > 0).all()
    assert passes.set_index("runtime")["ratio"]["eager"] == 1
    assert sorted(latency_table(record, "batch")["batch"].unique()) == [1, 128]
    single = latency_table(record, "single")
    assert (single["p50"] <= single["p90"]).all() and (single["p90"] <= single["p99"]).all()
    assert [check["wrong"] for check in record["checks"]] == [False] * len(RUNTIMES)
    assert record["sizes"]["1.5k-dw"]["weights"] == 6784

    assert bench.bench(full=False, threads=1, out=tmp_path / "second.json") == 0
    printed = capsys.readouterr().out
    assert "ratios to eager PyTorch, against the recorded ones: largest change" in printed
    assert read_latency(tmp_path / "second.json")["kind"] == "quick"


def test_runtime_that_computes_something_else_is_reported(small_bench, tmp_path, monkeypatch, capsys):
    prepare = bench.prepare

    def broken(runtime, *arguments):
        predict = prepare(runtime, *arguments)
        return (lambda x: 1.01 * predict(x)) if runtime == "frozen" else predict

    monkeypatch.setattr(bench, "prepare", broken)
    assert bench.bench(full=False, threads=1, out=tmp_path / "out.json") == 1
    checks = json.loads((tmp_path / "out.json").read_text())["checks"]
    assert [check["variant"] for check in checks if check["wrong"]] == ["1.5k-dw/frozen"]


def test_bench_beside_a_sweep_is_refused(monkeypatch):
    class Process:
        info = {"pid": 4711, "cmdline": ["python", "-m", "effcnn_helpers", "sweep", "mnist"]}

    monkeypatch.setattr(psutil, "process_iter", lambda attributes: [Process()])
    with pytest.raises(EffcnnError, match=r"a sweep is running \(process 4711\)"):
        bench.bench(full=False, threads=1, out=None)


def test_the_packages_record_is_of_the_real_images_alone(at_rest):
    with pytest.raises(DataError, match="full measurements are recorded on the real mnist only.*embedded sample"):
        bench.bench(full=True, threads=1, out=None)


def test_bench_without_recorded_runs_says_how_to_get_them(at_rest, monkeypatch, capsys):
    monkeypatch.setattr(bench, "busy_cores", lambda: 2.0)
    with pytest.raises(EffcnnError, match="no recorded run of 25k/baseline; train it first: "
                                          "python -m effcnn_helpers sweep 25k$"):
        bench.bench(full=False, threads=1, out=None)
    assert "other programs keep 2.0 cores busy" in capsys.readouterr().out
    with pytest.raises(EffcnnError, match="sweep 7k/blurpool$"):
        bench.first_run("7k", "blurpool")


def test_a_changed_network_is_that_of_the_shortest_row_that_has_it(write_record):
    stack = ("cutout", "blurpool", "squeeze_excite", "mixup")
    for row in (stack, ("cutout", "blurpool"), ("blurpool",), ("cutout",)):
        write_record("143k-dw", config={"techniques": row})
    assert bench.first_run("143k-dw", "blurpool+squeeze_excite").config.techniques == stack
    assert bench.first_run("143k-dw", "blurpool").config.techniques == ("blurpool",)
    assert bench.first_run("143k-dw").config.techniques == ("cutout",)  # which leaves the network as it is
    with pytest.raises(EffcnnError, match="sweep 143k-dw/squeeze_excite$"):
        bench.first_run("143k-dw", "squeeze_excite")


def test_damaged_and_missing_measurements_are_named(tmp_path):
    remedy = r"latency\.json.*measure again with `python -m effcnn_helpers bench --full`"
    with pytest.raises(RecordError, match=remedy):
        read_latency()
    (tmp_path / "old.json").write_text('{"schema_version": 0}')
    with pytest.raises(RecordError, match="schema_version is 0, this code reads 1"):
        read_latency(tmp_path / "old.json")


def test_ratios_are_taken_round_by_round():
    rows = [{"view": "pass", "variant": "5k/eager", "batch": 128, "times_ms": [10, 100, 20]},
            {"view": "pass", "variant": "5k/frozen", "batch": 128, "times_ms": [5, 20, 8]},
            {"view": "single", "variant": "5k/eager", "batch": 1, "p50": 2, "p90": 3, "p99": 4},
            {"view": "single", "variant": "5k/frozen", "batch": 1, "p50": 1, "p90": 3, "p99": 4}]
    assert median_ratios({"rows": rows}).to_dict() == {
        ("pass", "5k", "", "frozen", 128): 0.4, ("single", "5k", "", "frozen", 1): 0.5}


def test_one_pass_answers_every_image(digits):
    def halves(x):
        return torch.stack([x[..., :14].sum(dim=(1, 2, 3)), x[..., 14:].sum(dim=(1, 2, 3))], dim=1)

    brighter = one_pass(halves, digits.test, "mnist")
    assert torch.equal(brighter, halves(digits.test.x.double()).argmax(dim=1))


def test_percentiles_are_exceeded_that_often():
    times = pd.DataFrame({"variant": ["a"] * 101, "ms": range(101)})
    assert percentiles(times).loc["a"].to_dict() == {"p50": 50, "p90": 90, "p99": 99}
