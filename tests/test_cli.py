import json
import shlex
import subprocess
import sys

import pytest

from effcnn_helpers.cli import EXAMPLES, MAINTAIN, main
from effcnn_helpers.records import recorded_dir

pytestmark = pytest.mark.usefixtures("terminal_signals")


# The command line itself


def test_help_ends_in_examples(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    assert EXAMPLES in capsys.readouterr().out


def example_lines() -> list[str]:
    """Composer's launcher starts Python by itself."""
    lines = [line.strip().replace("composer -n 2", "python") for line in EXAMPLES.splitlines()]
    return [line for line in lines if line.startswith("python")]


@pytest.mark.parametrize("line", example_lines())
def test_example_of_the_help_is_understood(line, monkeypatch):
    python, module_switch, package, command, *arguments = shlex.split(line)
    assert (python, module_switch, package) == ("python", "-m", "effcnn_helpers")
    asked = []
    package = "maintain" if command in MAINTAIN else "cli"
    monkeypatch.setattr(f"effcnn_helpers.{package}.{command}.{command}", lambda **options: asked.append(options) or 0)
    assert main([command, *arguments]) == 0
    assert len(asked) == 1


def test_every_command_that_a_reader_needs_has_an_example():
    shown = {shlex.split(line)[3] for line in example_lines()}
    assert shown == {"doctor", "sweep", "together", "train", "predict", "verify", "results", "bench", "export", "run",
                     "book"}


@pytest.mark.parametrize("arguments, message", [
    ([], "required: command"),
    (["teach"], "invalid choice: 'teach'"),
    (["sweep", "--jobs", "0"], "--jobs is 0; use a number above 0"),
    (["sweep", "--minutes", "nan"], "--minutes is nan; use a number above 0"),
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
    (["sweep", "25k", "--seeds", "-1"], "error: RunConfig.seed is -1; use a whole number from 0 to 4294967295"),
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


def test_module_can_be_run_from_any_folder(tmp_path):
    done = subprocess.run([sys.executable, "-m", "effcnn_helpers", "results", "--format", "json"], cwd=tmp_path,
                          capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["Table 3, MNIST half"]) == 6
    assert list(tmp_path.iterdir()) == []
