import base64
import json
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest
import safetensors.torch
import torch

from effcnn_helpers.cli import EXAMPLES, main, sweep, verify
from effcnn_helpers.cli.recording import unfinished_dir, write_run
from effcnn_helpers.cli.run import kernel_environment
from effcnn_helpers.data import Images, load_images
from effcnn_helpers.models import MODELS, build_model
from effcnn_helpers.paper import TABLE_3, TABLE_4, TABLE_5
from effcnn_helpers.recipes import RECIPES, RunConfig, table_run
from effcnn_helpers.records import all_runs, read_run, record_to_json, recorded_dir
from effcnn_helpers.training import fresh_correct, predict, train


@pytest.fixture(autouse=True)
def signals():
    """As in a terminal, also where the suite was started with Ctrl-C ignored; and as they were, afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


# The command line itself


def test_help_ends_in_examples(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    assert EXAMPLES in capsys.readouterr().out


def example_lines() -> list[str]:
    return [line.strip() for line in EXAMPLES.splitlines() if line.strip().startswith("python")]


@pytest.mark.parametrize("line", example_lines())
def test_example_of_the_help_is_understood(line, monkeypatch):
    python, module_switch, package, command, *arguments = shlex.split(line)
    assert (python, module_switch, package) == ("python", "-m", "effcnn_helpers")
    asked = []
    monkeypatch.setattr(f"effcnn_helpers.cli.{command}.{command}", lambda **options: asked.append(options) or 0)
    assert main([command, *arguments]) == 0
    assert len(asked) == 1


def test_every_command_that_a_reader_needs_has_an_example():
    shown = {shlex.split(line)[3] for line in example_lines()}
    assert shown == {"doctor", "sweep", "verify", "results", "bench", "run", "book"}


@pytest.mark.parametrize("arguments, message", [
    ([], "required: command"),
    (["train"], "invalid choice: 'train'"),
    (["sweep", "--jobs", "0"], "--jobs is 0; use a number above 0"),
    (["sweep", "--threads", "-1"], "--threads is -1"),
    (["sweep", "--minutes", "0"], "--minutes is 0.0"),
    (["sweep", "--seeds", "one"], "invalid int value: 'one'"),
    (["sweep", "--profile", "live"], "invalid choice: 'live'"),
    (["results", "--format", "html"], "invalid choice: 'html'"),
])
def test_misuse_ends_with_status_2_and_says_what_is_wrong(arguments, message, capsys):
    with pytest.raises(SystemExit) as misuse:
        main(arguments)
    assert misuse.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments, message", [
    (["sweep", "imagenet"], "error: unknown selection 'imagenet'; use some of mnist, cifar10, table-4"),
    (["sweep", "25k", "--seeds", "-1"], "error: RunConfig.seed is -1; use 0 or more"),
])
def test_impossible_request_ends_with_status_1_and_a_message(arguments, message, capsys):
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_damaged_record_ends_with_status_1_and_a_message(write_record, capsys):
    path = recorded_dir() / write_record().config.name / "run.json"
    path.write_text("{")
    for command in ("results", "verify"):
        assert main([command]) == 1
        assert f"error: {path}" in capsys.readouterr().err


# sweep


def smoke_sweep(*arguments, out: Path) -> list[str]:
    return ["sweep", "1.5k-dw", "--profile", "smoke", "--out", str(out), *map(str, arguments)]


def test_sweep_trains_what_is_missing_and_then_has_nothing_to_do(digits_folder, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(digits_folder))
    assert main(smoke_sweep(out=tmp_path)) == 0
    printed = capfd.readouterr().out
    assert "1 runs selected, 0 of them recorded" in printed and "epoch 1/1" in printed
    record = read_run(tmp_path / "mnist/1.5k-dw/baseline/seed0")
    assert record.config == replace(table_run("1.5k-dw"), epochs=1, train_images=384, test_images=200, profile="smoke")
    assert f"recorded: {record.accuracy_percent:.2f} %" in printed
    assert record.environment["threads"] == 1

    assert main(smoke_sweep(out=tmp_path)) == 0
    printed = capfd.readouterr().out
    assert "1 runs selected, 1 of them recorded" in printed and "epoch" not in printed


def test_two_sweeps_at_once_train_a_run_once(digits_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(digits_folder))
    command = [sys.executable, "-m", "effcnn_helpers", *smoke_sweep(out=tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    outputs = [process.communicate()[0] for process in both]
    assert "".join(outputs).count("epoch 1/1") == 1, outputs
    for process, output in zip(both, outputs, strict=True):
        assert (process.returncode == 0) == ("recorded: " in output or "1 of them recorded" in output), output
        assert process.returncode == 0 or "being trained by another process" in output
    assert 0 in [process.returncode for process in both]
    assert len(list(all_runs(tmp_path))) == 1


def test_full_sweep_without_the_real_data_fails_and_says_why(tmp_path, digits_folder, monkeypatch, capfd):
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(digits_folder))
    assert main(["sweep", "1.5k-dw", "--out", str(tmp_path)]) == 1
    shown = capfd.readouterr()
    assert "mnist/1.5k-dw/baseline/seed0: failed" in shown.out
    assert "runs of the full profile are recorded on the real mnist only" in shown.err
    assert list(all_runs(tmp_path)) == []


def test_sweep_starts_nothing_that_cannot_end_in_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "start_worker", lambda *_: pytest.fail("started"))
    assert main(smoke_sweep("--minutes", 0.1, "--seeds", 0, 1, out=tmp_path)) == 1
    printed = capsys.readouterr().out
    for seed in (0, 1):
        assert f"mnist/1.5k-dw/baseline/seed{seed}: not enough time left; the same command goes on" in printed
    assert not any(tmp_path.iterdir())


@pytest.fixture
def sleepers(monkeypatch):
    """Workers that only sleep, in real processes; the list of those that were started."""
    started = []

    def start(config, root, threads, reports):
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return started[-1]

    monkeypatch.setattr(sweep, "start_worker", start)
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_sweep_stops_what_still_trains_when_the_time_is_up(sleepers, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sweep, "START_SECONDS", 0)
    assert main(smoke_sweep("--minutes", 0.005, "--seeds", 0, 1, "--jobs", 1, out=tmp_path)) == 1
    printed = capsys.readouterr().out
    assert "time is up" in printed
    assert "seed0: not enough time left" in printed
    assert [process.poll() for process in sleepers] == [-signal.SIGTERM]


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_sweep_stops_its_workers(number, status, sleepers, tmp_path, monkeypatch, capsys):
    """By Ctrl-C, or by whatever ends the session it runs in."""
    start = sweep.start_worker

    def start_and_interrupt(*arguments):
        process = start(*arguments)
        if len(sleepers) == 2:
            # To the main thread, as from a terminal: a signal to the timer's own thread would not wake it.
            threading.Timer(0.2, signal.pthread_kill, [threading.main_thread().ident, number]).start()
        return process

    monkeypatch.setattr(sweep, "start_worker", start_and_interrupt)
    try:
        assert main(smoke_sweep("--seeds", 0, 1, 2, out=tmp_path)) == status
    except SystemExit as end:
        assert end.code == status
    assert number != signal.SIGINT or "the same command goes on from here" in capsys.readouterr().err
    assert len(sleepers) == 2
    assert all(process.poll() is not None for process in sleepers)


@pytest.fixture
def quick_workers(make_record, monkeypatch):
    """Workers that record a made-up run after a moment, in threads; `.most` is how many ran at a time."""
    seen = SimpleNamespace(running=0, most=0, started=[], status={})
    lock = threading.Lock()

    def start(config: RunConfig, root: Path, threads: int, reports: queue.Queue):
        def finish():
            status = seen.status.get(config.model, 0)
            if status == 0:
                record = make_record(config.model, config={"epochs": 1, "profile": "smoke"})
                record = replace(record, config=config)
                write_run(record, build_model(config.model), root)
                reports.put((config.name, {"epoch": 1, **record.epochs[0]}))
            with lock:
                seen.running -= 1
            reports.put((config.name, status))

        with lock:
            seen.running += 1
            seen.most = max(seen.most, seen.running)
        seen.started.append(config)
        threading.Timer(0.05, finish).start()
        return SimpleNamespace(terminate=lambda: None, wait=lambda: 0)

    monkeypatch.setattr(sweep, "start_worker", start)
    return seen


@pytest.mark.parametrize("jobs", [1, 2, 6])
def test_sweep_of_a_table_runs_so_many_at_a_time_until_all_are_recorded(jobs, quick_workers, tmp_path, capsys):
    write_run_of = tmp_path / "mnist/7k/baseline/seed0"
    write_run_of.mkdir(parents=True)  # as if this one were recorded
    arguments = ["sweep", "mnist", "--profile", "smoke", "--jobs", str(jobs), "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert [config.model for config in quick_workers.started] == [model for model in MODELS["mnist"] if model != "7k"]
    assert quick_workers.most <= jobs
    assert quick_workers.most > 1 or jobs == 1
    printed = capsys.readouterr().out
    assert "6 runs selected, 1 of them recorded" in printed and printed.count("recorded: 98.35 %") == 5


@pytest.mark.parametrize("status, reason", [(75, "being trained by another process"), (1, "failed (see its message"),
                                            (-9, "failed (see its message")])
def test_sweep_goes_on_after_a_run_that_failed_and_names_it(status, reason, quick_workers, tmp_path, capsys):
    quick_workers.status["7k-dw"] = status
    assert main(["sweep", "mnist", "--profile", "smoke", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert f"mnist/7k-dw/baseline/seed0: {reason}" in printed
    assert printed.count(": failed") + printed.count(": being trained") == 1
    assert len(list(all_runs(tmp_path))) == 5


def test_estimate_follows_recorded_runs_and_what_is_left_of_a_checkpoint(write_record, digits, monkeypatch, tmp_path):
    config = replace(table_run("7k", seed=5), epochs=12, train_images=50_000)
    monkeypatch.setattr(sweep, "load_images", lambda name: digits)
    monkeypatch.setattr(sweep, "seconds_per_image", lambda config, threads: 1e-3)
    timed = sweep.estimate_seconds(config, tmp_path, 1)
    assert timed == pytest.approx(20 + 12 * 50_000 * 1e-3 * 1.15)
    write_record("7k", root=tmp_path)  # 1.5 seconds an epoch
    known = sweep.estimate_seconds(config, tmp_path, 1)
    assert known == pytest.approx(20 + 12 * 1.5 * 1.15)

    folder = unfinished_dir(config, digits)
    folder.mkdir(parents=True)
    torch.save({}, folder / "ep9.pt")
    assert sweep.estimate_seconds(config, tmp_path, 1) == pytest.approx(20 + 3 * 1.5 * 1.15)


def test_training_step_is_timed_per_image():
    config = RunConfig("1.5k-dw", batch_size=16)
    assert 0 < sweep.seconds_per_image(config, threads=1, steps=2) < 1


# verify


@pytest.fixture(scope="module")
def full_run(as_if_real):
    """(record, network) of a run that claims the full profile, trained on embedded digits until it knows some."""
    config = RunConfig("1.5k-dw", epochs=2, batch_size=16, optimizer="adam", learning_rate=0.01, train_images=1_000)
    record, network = train(config, as_if_real, threads=1)
    return replace(record, fresh_correct=fresh_correct(network, config, as_if_real)), network


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
    assert main(["verify"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^ok +mnist/1\.5k-dw/baseline-2ep/seed0  \d+\.\d\d %$", printed, re.MULTILINE)
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
    fields["test"] = {"correct": 9_000 + fields["test"]["correct"], "total": 10_000}


def another_model_size(fields, clear):
    fields["parameters"] -= 1


def another_fresh_count(fields, clear):
    fields["test"]["fresh_correct"] -= 4


def no_fresh_count(fields, clear):
    fields["test"]["fresh_correct"] = None


def other_data(fields, clear):
    fields["data"]["sha256"] = "0" * 64


@pytest.mark.parametrize("change", [hide_a_mistake, another_mistake, another_answer, another_count, more_images,
                                    another_model_size, another_fresh_count, no_fresh_count, other_data])
def test_verify_refuses_a_record_that_was_changed(change, folder, clear, capsys):
    rewrite(folder, lambda fields: change(fields, clear))
    assert main(["verify"]) == 1
    shown = capsys.readouterr()
    assert "FAILED  mnist/1.5k-dw/baseline-2ep/seed0" in shown.out or f"error: {folder}" in shown.err


def test_verify_refuses_a_mistake_listed_as_its_own_label(folder, as_if_real, capsys):
    def change(fields):
        index = next(index for index in range(1_000) if index not in wrong_answers(fields))
        put_wrong_answers(fields, {**wrong_answers(fields), index: as_if_real.test.y[index].item()})

    rewrite(folder, change)
    assert main(["verify"]) == 1
    assert "which is its label" in capsys.readouterr().out


def test_verify_refuses_weights_that_were_changed(folder, capsys):
    path = folder / "weights.safetensors"
    weights = safetensors.torch.load_file(path)
    weights["head.classifier.weight"][0] += 1
    safetensors.torch.save_file(weights, path)
    assert main(["verify"]) == 1
    assert "classified differently than recorded" in capsys.readouterr().out


def test_verify_refuses_weights_that_are_not_numbers(folder, capsys):
    path = folder / "weights.safetensors"
    weights = safetensors.torch.load_file(path)
    weights["head.classifier.weight"].fill_(float("nan"))
    safetensors.torch.save_file(weights, path)
    assert main(["verify"]) == 1


@pytest.fixture
def near_tie(full_run, as_if_real):
    """(record, network, candidates): a network whose favourite class has a twin with nearly the same logits.

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
    candidates = [index for index, pair in enumerate(best_two(network, as_if_real)) if set(pair) == {favourite, twin}]
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
    taken = {index: pair[index in flipped] for index, pair in enumerate(best_two(network, dataset))}
    wrong = {index: label for index, label in taken.items() if label != dataset.test.y[index]}
    return replace(record, misclassified=wrong, correct=record.total - len(wrong),
                   fresh_correct=fresh_correct(network, record.config, dataset))


@pytest.mark.parametrize("flips", [0, 1, 3])
def test_verify_allows_and_names_a_few_flips_by_rounding(flips, near_tie, as_if_real, at_hand, capsys):
    record, network, candidates = near_tie
    flipped = candidates[:flips]
    write_run(as_recorded_elsewhere(record, network, as_if_real, flipped), network)
    assert main(["verify"]) == 0
    printed = capsys.readouterr().out
    assert [int(index) for index in re.findall(r"image (\d+) flips by rounding", printed)] == flipped


def test_verify_refuses_a_fourth_flip(near_tie, as_if_real, at_hand, capsys):
    record, network, candidates = near_tie
    write_run(as_recorded_elsewhere(record, network, as_if_real, candidates[:4]), network)
    assert main(["verify"]) == 1
    assert "4 images are classified differently than recorded, 0 of them not by rounding" in capsys.readouterr().out


def test_verify_refuses_one_flip_that_is_not_by_rounding(near_tie, as_if_real, at_hand, capsys):
    record, network, candidates = near_tie
    top = predict(network, as_if_real.test, "mnist").topk(2, dim=1).values
    wide = next(index for index in range(1_000) if top[index, 0] - top[index, 1] > 2e-3)
    write_run(as_recorded_elsewhere(record, network, as_if_real, [candidates[0], wide]), network)
    assert main(["verify"]) == 1
    assert "2 images are classified differently than recorded, 1 of them not by rounding" in capsys.readouterr().out


def test_quick_verify_looks_at_seed_0_and_the_first_thousand_images(
        folder, full_run, clear, as_if_real, monkeypatch, capsys):
    record, network = full_run
    other = write_run(replace(record, config=replace(record.config, seed=1)), network)
    rewrite(other, lambda fields: hide_a_mistake(fields, clear))
    assert main(["verify"]) == 1
    capsys.readouterr()
    assert main(["verify", "--quick"]) == 0
    assert "1 runs: 0 failed, 0 unverified, first 1,000 images of seed 0 only" in capsys.readouterr().out

    seen = []
    monkeypatch.setattr(verify, "predict", lambda network, images, name: seen.append(len(images)) or
                        predict(network, images, name))
    twice = replace(as_if_real, test=Images(as_if_real.test.x.repeat(2, 1, 1, 1), as_if_real.test.y.repeat(2)))
    verify.check_run(record, twice, images=1_000)
    assert seen == [1_000]


def test_verify_without_the_real_data_says_so_and_fails(full_run, capsys):
    write_run(*full_run)
    assert not load_images("mnist").real
    assert main(["verify"]) == 1
    printed = capsys.readouterr().out
    assert "the real mnist is not here (found: embedded sample" in printed
    assert "EFFCNN_DATA_DIR" in printed and "mnist.npz" in printed
    assert "1 runs: 0 failed, 1 unverified" in printed and "ok  " not in printed


def test_verify_without_runs_says_so_and_fails(capsys):
    assert main(["verify"]) == 1
    assert "no recorded runs" in capsys.readouterr().out


# results


@pytest.fixture
def some_runs(write_record):
    for seed, wrong in enumerate((200, 160, 150)):
        write_record("1.5k-dw", wrong=wrong, seed=seed)
    write_record("25k", wrong=41)


def test_results_say_the_same_in_every_format(some_runs, capsys):
    def printed(format):
        assert main(["results", "--format", format]) == 0
        return capsys.readouterr().out

    from_json = json.loads(printed("json"))["Table 3, MNIST half"]
    first_table = printed("markdown").split("\n\n")[1]
    markdown = [[cell.strip() for cell in line.strip("|").split("|")] for line in first_table.splitlines()]
    assert set("".join(markdown.pop(1))) == {"-"}
    terminal = printed("terminal").splitlines()
    starts = [terminal[2].index(name) for name in markdown[0]]
    for number, cells in enumerate(markdown):
        line = terminal[2 + number + (number > 0)]  # a rule follows the heading
        ends = [*starts[1:], None]
        assert [line[start:end].strip() for start, end in zip(starts, ends, strict=True)] == cells

    assert len(from_json) == len(markdown) - 1 == 6
    for row, cells in zip(from_json, markdown[1:], strict=True):
        ours = "no run yet"
        if row["ours"]:
            spread = f" ± {row['ours']['sd_percent']:.2f}" if row["ours"]["n"] > 1 else ""
            ours = f"{row['ours']['mean_percent']:.2f}{spread} (n={row['ours']['n']})"
        assert cells == [row["model"], row["depthwise"], f"{row['parameters']:,}", f"{row['paper']:.2f}", ours,
                         row["verdict"], ours if row["fresh"] else "", f"{row['paper_seconds']:.2f}", "",
                         str(row["paper_kb"]), f"{row['our_kb']:.1f}" if row["our_kb"] else ""]


def test_results_in_json_are_the_recorded_numbers(some_runs, capsys):
    assert main(["results", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["Table 3, MNIST half"]
    assert rows[0]["ours"] == {"n": 1, "mean_percent": pytest.approx(99.59), "sd_percent": None}
    assert rows[-1]["ours"]["mean_percent"] == pytest.approx(98.3)
    assert rows[1]["ours"] is None and rows[1]["verdict"] == "not run"


def test_results_without_runs_and_with_their_recipe(capsys):
    assert main(["results"]) == 0
    printed = capsys.readouterr().out
    accuracies = [*(row.accuracy_percent for row in TABLE_3), *TABLE_5.values(), TABLE_4[()]["cifar10"]]
    accuracies += [percent for row in TABLE_4.values() for percent in row.values() if percent is not None]
    assert printed.count("not run") == len(accuracies) == 34
    assert f"learning_rate {RECIPES['mnist']['learning_rate']}" in printed and "last epoch" in printed


# figures


def test_figures_are_the_same_files_each_time(write_record, tmp_path, capsys):
    for model in MODELS["mnist"]:
        write_record(model, wrong=120)
    for out in ("first", "second"):
        assert main(["figures", "--out", str(tmp_path / out)]) == 0
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    drawn = {f"{stem}.{kind}" for stem in ("fig1_depthwise_separable", "fig6_training_curves_mnist")
             for kind in ("png", "svg")}
    taken = {"fig2_squeeze.png", "fig2_excite.png", "fig3_blurpool.png", "fig4_loss_landscape.png", "gains_cifar10.png"}
    assert set(names) == drawn | taken
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
    svg = (tmp_path / "first" / "fig6_training_curves_mnist.svg").read_text()
    assert svg.count("paper: ") == 6 and "paper: 98.35 %" in svg


def test_figure_of_a_notebook_is_its_last_output_and_is_named_when_there_is_none(tmp_path, monkeypatch, capsys):
    notebook = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_code_cell("draw()", metadata={"tags": ["figure:fig2_drawn"]}, outputs=[
            nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(b"a picture").decode()})]),
        nbformat.v4.new_code_cell("draw()", metadata={"tags": ["figure:fig3_not_executed"]})])
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks/08_any.ipynb")
    monkeypatch.chdir(tmp_path)
    assert main(["figures"]) == 0
    assert (tmp_path / "figures/fig2_drawn.png").read_bytes() == b"a picture"
    assert not (tmp_path / "figures/fig3_not_executed.png").exists()
    assert "fig3_not_executed waits for notebook 08" in capsys.readouterr().out


def test_figure_5_is_the_recorded_measurement(tmp_path, capsys):
    assert main(["figures", "--out", str(tmp_path)]) == 0
    assert "Fig. 5 waits for a measurement: python -m effcnn_helpers bench --full" in capsys.readouterr().out
    rows = [{"view": "models", "variant": f"{row.model}/eager", "batch": 128, "times_ms": [3000, 3100, 3200]}
            for row in TABLE_3]
    recorded_dir().mkdir(parents=True, exist_ok=True)
    (recorded_dir() / "latency.json").write_text(json.dumps({"schema_version": 1, "rows": rows}))
    assert main(["figures", "--out", str(tmp_path)]) == 0
    svg = (tmp_path / "fig5_latency.svg").read_text()
    assert all(f">{row.label}<" in svg for row in TABLE_3)


def test_figure_that_lacks_its_runs_is_named(write_record, tmp_path, capsys):
    write_record("25k")
    assert main(["figures", "--out", str(tmp_path)]) == 0
    assert "Fig. 6, MNIST, waits for its runs: 7k, 7k-dw, 5k, 5k-dw, 1.5k-dw" in capsys.readouterr().out
    assert {path.suffix for path in tmp_path.iterdir()} == {".svg", ".png"}


# run


def write_notebook(path: Path, *cells: str) -> str:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    path.write_text(nbformat.writes(notebook))
    return path.read_text()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project folder to run in; its notebooks/ holds what a test puts there. No kernel may be left."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()
    yield tmp_path
    kernels = [child for child in psutil.Process().children() if "ipykernel_launcher" in child.cmdline()]
    assert kernels == []


def test_run_prints_headlines_and_names_the_error_of_a_failing_cell(project, monkeypatch, capsys):
    monkeypatch.setenv("EFFCNN_CACHE_DIR", "cache")
    good = write_notebook(project / "notebooks/01_good.ipynb",
                          "import os, sys", "print('Headline: 2 + 2 is', 2 + 2)",
                          "print(os.environ['EFFCNN_PROFILE'], os.environ['EFFCNN_PROGRESS'], "
                          "os.environ['EFFCNN_CACHE_DIR'], sys.executable)")
    write_notebook(project / "notebooks/02_bad.ipynb", "1 / 0", "print('Headline: reached')")
    write_notebook(project / "notebooks/03_dies.ipynb", "import os", "os._exit(1)")
    assert main(["run", "--profile", "smoke", "--out", "copies"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert re.fullmatch(r"01_good +\d+ s  2 \+ 2 is 4", lines[0])
    assert re.fullmatch(r"02_bad +\d+ s  FAILED: ZeroDivisionError: division by zero", lines[1])
    assert re.fullmatch(r"03_dies +\d+ s  FAILED: .+", lines[2])
    assert lines[3].startswith("3 notebooks, 2 failed")

    assert (project / "notebooks/01_good.ipynb").read_text() == good
    executed = nbformat.read(project / "copies/01_good.ipynb", as_version=4)
    assert [cell.execution_count for cell in executed.cells] == [1, 2, 3]
    seen = executed.cells[2].outputs[0].text.split()
    assert seen == ["smoke", "0", str(project / "cache"), sys.executable]
    assert "2 + 2 is 4" in (project / "copies/01_good.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in (project / "notebooks").iterdir()) == [
        "01_good.ipynb", "02_bad.ipynb", "03_dies.ipynb"]


def test_run_in_place_writes_outputs_into_the_notebooks_and_leaves_nothing_else(project, capsys):
    """Into their solutions, too; a notebook that fails stays as it was."""
    folder = project / "notebooks"
    (folder / "solutions").mkdir()
    write_notebook(folder / "00_start.ipynb", "print('Headline: ready')")
    write_notebook(folder / "solutions/00_start_solutions.ipynb", "6 * 7")
    failing = write_notebook(folder / "01_bad.ipynb", "raise ValueError('no')")
    write_notebook(folder / "solutions/01_bad_solutions.ipynb", "7 * 8")
    other = write_notebook(folder / "02_other.ipynb", "print('not asked for')")
    assert main(["run", "00", "01", "--in-place", "--out", "copies"]) == 1
    printed = capsys.readouterr().out
    assert "ready" in printed and "FAILED: ValueError: no" in printed and "1 failed" in printed

    notebook = nbformat.read(folder / "00_start.ipynb", as_version=4)
    assert notebook.cells[0].execution_count == 1
    assert notebook.cells[0].outputs[0].text == "Headline: ready\n"
    assert "execution" not in notebook.cells[0].metadata and "widgets" not in notebook.metadata
    assert notebook.metadata.kernelspec.name == "python3"
    solution = nbformat.read(folder / "solutions/00_start_solutions.ipynb", as_version=4)
    assert solution.cells[0].outputs[0].data["text/plain"] == "42"
    assert (folder / "01_bad.ipynb").read_text() == failing
    assert (folder / "02_other.ipynb").read_text() == other
    assert (folder / "00_start.ipynb").stat().st_mode == (folder / "02_other.ipynb").stat().st_mode
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*")) == [
        "00_start.ipynb", "01_bad.ipynb", "02_other.ipynb",
        "solutions/00_start_solutions.ipynb", "solutions/01_bad_solutions.ipynb"]


def test_interrupted_run_stops_at_once(project, capsys):
    write_notebook(project / "notebooks/01_long.ipynb", "open('started', 'w').close()\nimport time\ntime.sleep(60)")
    write_notebook(project / "notebooks/02_next.ipynb", "print('Headline: reached')")

    def interrupt():
        while not (project / "notebooks/started").exists():
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert main(["run", "--out", "copies"]) == 130
    thread.join()
    shown = capsys.readouterr()
    assert "reached" not in shown.out and "stopped" in shown.err


@pytest.mark.parametrize("numbers, message", [(["07"], "no notebook 07; there are 01"), ([], "no notebooks in")])
def test_run_of_a_notebook_that_is_not_there(numbers, message, project, capsys):
    if numbers:
        write_notebook(project / "notebooks/01_good.ipynb", "1")
    assert main(["run", *numbers]) == 1
    assert message in capsys.readouterr().err


def test_kernels_get_folders_by_their_full_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EFFCNN_DATA_DIR", "images")
    monkeypatch.delenv("EFFCNN_CACHE_DIR")
    environment = kernel_environment("live")
    assert environment["EFFCNN_DATA_DIR"] == str(tmp_path / "images")
    assert "EFFCNN_CACHE_DIR" not in environment
    assert environment["EFFCNN_PROFILE"] == "live"


def test_module_can_be_run_from_any_folder(tmp_path):
    done = subprocess.run([sys.executable, "-m", "effcnn_helpers", "results", "--format", "json"], cwd=tmp_path,
                          capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["Table 3, MNIST half"]) == 6
    assert list(tmp_path.iterdir()) == []


def test_record_text_is_what_write_run_writes(full_run, folder):
    assert (folder / "run.json").read_text() == record_to_json(full_run[0])
    assert time.strptime(full_run[0].started[:19], "%Y-%m-%dT%H:%M:%S")
