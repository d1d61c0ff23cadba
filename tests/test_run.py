"""`python -m effcnn_helpers run`: real kernels on small notebooks; what fails is named, what is stopped is gone."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from effcnn_helpers.cli import main
from effcnn_helpers.cli import run as runner
from effcnn_helpers.cli.run import kernel_environment, write_whole
from effcnn_helpers.errors import EffcnnError

pytestmark = pytest.mark.usefixtures("terminal_signals")

INLINE = "module://matplotlib_inline.backend_inline"
# As Composer does when it is imported: an interrupt ends a cell with SystemExit, not with KeyboardInterrupt.
TRAINS = """
import signal, sys, time
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: sys.exit(128 + number))
open("started", "w").close()
time.sleep(60)
"""
# Swallows whatever can be swallowed.
HOLDS_ON = """
import time
open("started", "w").close()
while True:
    try:
        time.sleep(60)
    except BaseException:
        pass
"""


def write_notebook(path: Path, *cells: str) -> str:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    path.write_text(nbformat.writes(notebook))
    return path.read_text()


def kernels() -> list[psutil.Process]:
    """The kernels on this machine that were started by this test's processes, however long ago."""
    found = []
    for process in psutil.process_iter():
        try:
            if "ipykernel_launcher" in process.cmdline() and Path.cwd() in (
                    Path(process.cwd()), *Path(process.cwd()).parents):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            continue
    return found


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project folder to run in; its notebooks/ holds what a test puts there. No kernel may be left."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notebooks").mkdir()
    yield tmp_path
    left = kernels()
    for process in left:
        process.kill()
    assert left == []


def test_run_prints_headlines_and_names_the_error_of_a_failing_cell(project, monkeypatch, capsys):
    monkeypatch.setenv("EFFCNN_CACHE_DIR", "cache")
    good = write_notebook(project / "notebooks/01_good.ipynb",
                          "import os, sys", "print('Headline: 2 + 2 is', 2 + 2)",
                          "print(os.environ['EFFCNN_PROFILE'], os.environ['EFFCNN_PROGRESS'], "
                          "os.environ['EFFCNN_CACHE_DIR'], sys.executable)")
    write_notebook(project / "notebooks/02_bad.ipynb", "1 / 0", "print('Headline: reached')")
    write_notebook(project / "notebooks/03_dies.ipynb", "import os", "os._exit(1)")
    assert main(["run", "--profile", "smoke", "--out", "copies"]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    lines.sort()  # whichever ends first is told first
    assert len(lines) == 3
    assert re.fullmatch(r"01_good +\d+ s  2 \+ 2 is 4", lines[0])
    assert re.fullmatch(r"02_bad +\d+ s  FAILED: ZeroDivisionError: division by zero", lines[1])
    assert re.fullmatch(r"03_dies +\d+ s  FAILED: the kernel died.*", lines[2])
    assert last.startswith("3 notebooks, 2 failed")

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


# Side by side

MEETS = """
import pathlib, time
pathlib.Path("{mine}").touch()
while not pathlib.Path("{other}").exists():
    time.sleep(0.05)
"""


@pytest.mark.parametrize("cores, together", [(2, True), (1, False)])
def test_two_notebooks_run_at_once_where_there_are_cores_and_what_times_networks_runs_alone_at_the_end(
        cores, together, project, monkeypatch):
    monkeypatch.setattr(runner, "usable_cores", lambda: cores)
    meets = MEETS if together else ""
    write_notebook(project / "notebooks/01_first.ipynb", meets.format(mine="a", other="b"), "open('a_done', 'w')")
    write_notebook(project / "notebooks/02_second.ipynb", meets.format(mine="b", other="a"), "open('b_done', 'w')")
    write_notebook(project / "notebooks/15_latency.ipynb", "open('a_done'), open('b_done')")
    write_notebook(project / "notebooks/16_later.ipynb", "1 + 1")
    assert main(["run"]) == 0


def test_one_notebook_at_a_time_in_place_and_where_it_is_asked_for(project, monkeypatch):
    monkeypatch.setattr(runner, "usable_cores", lambda: 8)
    others = "import pathlib, time\nassert not list(pathlib.Path().glob('*.busy'))\n"
    for name in ("01_first", "02_second"):
        write_notebook(project / f"notebooks/{name}.ipynb",
                       f"{others}busy = pathlib.Path('{name}.busy')\nbusy.touch()\ntime.sleep(0.5)\nbusy.unlink()")
    assert main(["run", "--in-place"]) == 0
    assert main(["run", "--jobs", "1"]) == 0


def test_copy_that_cannot_be_written_ends_the_run_as_itself(project, monkeypatch):
    """Not as a group of errors, and without a kernel left."""
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(runner, "write_whole", full)
    for name in ("01_first", "02_second"):
        write_notebook(project / f"notebooks/{name}.ipynb", "1 + 1")
    with pytest.raises(OSError, match="No space left"):
        main(["run"])


# Stopped


def interrupted(number: int, project: Path, times: int = 1, options: tuple[str, ...] = ("--in-place",),
                kernels_started: tuple[str, ...] = ("started",)) -> tuple[int, str, float]:
    """Status, output and seconds of a run that gets a signal as a terminal sends it, to the whole group."""
    process = subprocess.Popen([sys.executable, "-m", "effcnn_helpers", "run", *options], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, start_new_session=True)
    while not all((project / "notebooks" / name).exists() for name in kernels_started) and process.poll() is None:
        time.sleep(0.05)
    start = time.monotonic()
    for _ in range(times):
        os.killpg(process.pid, number)
        time.sleep(0.3)
    output = process.communicate()[0]
    return process.returncode, output, time.monotonic() - start


@pytest.mark.parametrize("cell, times", [(TRAINS, 1), (HOLDS_ON, 2)], ids=["trains", "holds on, signalled twice"])
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_during_a_cell_ends_everything(number, status, cell, times, project):
    """No other notebook is started, no kernel and no half file is left."""
    first = write_notebook(project / "notebooks/01_first.ipynb", cell)
    second = write_notebook(project / "notebooks/02_next.ipynb", "print('Headline: reached')")
    ended, output, seconds = interrupted(number, project, times)
    assert kernels() == []
    assert (ended, seconds < 5) == (status, True), output
    assert "FAILED" not in output and "reached" not in output and "Traceback" not in output
    assert output.splitlines()[-1] == "stopped; the same command goes on from here"
    assert [(project / f"notebooks/{name}.ipynb").read_text() for name in ("01_first", "02_next")] == [first, second]
    assert {path.name for path in (project / "notebooks").iterdir()} == {"01_first.ipynb", "02_next.ipynb", "started"}


def test_signal_after_the_first_notebook_ends_everything_too(project):
    write_notebook(project / "notebooks/01_first.ipynb", "1 + 1")
    write_notebook(project / "notebooks/02_next.ipynb", TRAINS)
    ended, output, seconds = interrupted(signal.SIGTERM, project)
    assert (ended, seconds < 5) == (143, True), output
    assert "01_first" in output and "02_next" not in output


def test_signal_ends_two_notebooks_at_once(project):
    for name in ("01_first", "02_second"):
        write_notebook(project / f"notebooks/{name}.ipynb", TRAINS.replace("started", name))
    ended, output, seconds = interrupted(signal.SIGTERM, project, options=("--jobs", "2"),
                                         kernels_started=("01_first", "02_second"))
    assert kernels() == []
    assert (ended, seconds < 5) == (143, True), output
    assert "FAILED" not in output and "Traceback" not in output
    assert not list((project / "build/notebooks").iterdir())


def test_interrupted_run_leaves_the_signal_handlers_as_they_were(project, capsys):
    write_notebook(project / "notebooks/01_long.ipynb", TRAINS)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def interrupt():
        while not (project / "notebooks/started").exists():
            time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    assert main(["run", "--out", "copies"]) == 130
    thread.join()
    assert "stopped" in capsys.readouterr().err
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_file_whose_writing_is_interrupted_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


# What the machine hands down


@pytest.mark.parametrize("backend", ["Agg", "TkAgg", "nbagg", "no such backend"])
def test_kernel_draws_inline_whatever_the_shell_asks_for(backend, project, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", backend)
    draws = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    write_notebook(project / "notebooks/01_draws.ipynb", draws)
    assert main(["run", "--in-place"]) == 0
    cell = nbformat.read(project / "notebooks/01_draws.ipynb", as_version=4).cells[0]
    assert [output for output in cell.outputs if "image/png" in output.get("data", {})]


@pytest.mark.parametrize("launcher, cause", [
    ("raise ImportError('libzmq.so.5: cannot open')", "ImportError: libzmq.so.5: cannot open"),
    ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
    ("import os; os._exit(3)", "Kernel died before replying to kernel_info"),
])
def test_kernel_that_cannot_start_is_named_and_the_next_notebook_is_tried(launcher, cause, project, monkeypatch, capfd):
    (project / "path").mkdir()
    (project / "path/ipykernel_launcher.py").write_text(launcher)
    monkeypatch.setenv("PYTHONPATH", str(project / "path"), prepend=os.pathsep)
    for name in ("01_first", "02_next"):
        write_notebook(project / f"notebooks/{name}.ipynb", "1 + 1")
    assert main(["run"]) == 1
    shown = capfd.readouterr()
    *lines, last = [re.sub(r" +\d+ s ", "", line) for line in shown.out.splitlines()]
    assert sorted(lines) == [f"{name} FAILED: the kernel could not start: {cause}" for name in ("01_first", "02_next")]
    assert last.startswith("2 notebooks, 2 failed") and shown.err == ""


@pytest.mark.parametrize("taken, code", [(2, 0), (3, 1)])
def test_kernel_whose_port_was_taken_meanwhile_starts_again(taken, code, project, monkeypatch, capsys):
    (project / "path").mkdir()
    (project / "path/ipykernel_launcher.py").write_text(
        "import pathlib\n"
        "tries = pathlib.Path(__file__).with_name('tries')\n"
        "tries.write_text(tries.read_text() + 'x' if tries.exists() else 'x')\n"
        f"if len(tries.read_text()) <= {taken}:\n"
        "    raise OSError(98, 'Address already in use')\n"
        "from ipykernel import kernelapp\n"
        "kernelapp.launch_new_instance()\n")
    monkeypatch.setenv("PYTHONPATH", str(project / "path"), prepend=os.pathsep)
    write_notebook(project / "notebooks/01_first.ipynb", "1 + 1")
    assert main(["run"]) == code
    assert ("Address already in use" in capsys.readouterr().out) is bool(code)
    assert len((project / "path/tries").read_text()) == 3


def test_python_that_cannot_be_started_is_named(project, monkeypatch, capsys):
    monkeypatch.setattr(runner.sys, "executable", str(project / "nowhere/python"))
    write_notebook(project / "notebooks/01_first.ipynb", "1 + 1")
    assert main(["run"]) == 1
    assert "FAILED: the kernel could not start: " in (shown := capsys.readouterr().out) and "nowhere/python" in shown


def test_leftover_launcher_is_refused_before_the_first_notebook(project, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    write_notebook(project / "notebooks/01_first.ipynb", "1 + 1")
    assert main(["run"]) == 1
    shown = capsys.readouterr()
    assert "unset RANK WORLD_SIZE" in shown.err and shown.out == ""


@pytest.mark.parametrize("numbers, message", [(["07"], "no notebook 07; there are 01"), ([], "no notebooks in")])
def test_run_of_a_notebook_that_is_not_there(numbers, message, project, capsys):
    if numbers:
        write_notebook(project / "notebooks/01_good.ipynb", "1")
    assert main(["run", *numbers]) == 1
    assert message in capsys.readouterr().err


def test_folder_for_the_copies_that_cannot_be_made_is_named(project, capsys):
    write_notebook(project / "notebooks/01_good.ipynb", "1")
    (project / "file").write_text("in the way")
    assert main(["run", "--out", "file/copies"]) == 1
    assert "error: file/copies cannot be " in capsys.readouterr().err


def test_kernels_get_folders_by_their_full_path(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "my images").mkdir()
    monkeypatch.setenv("EFFCNN_DATA_DIR", "my images")
    monkeypatch.setenv("EFFCNN_CACHE_DIR", "~/cache")
    monkeypatch.setenv("EFFCNN_RECORDED_DIR", "")
    environment = kernel_environment("live")
    assert environment["EFFCNN_DATA_DIR"] == str(tmp_path / "my images")
    assert environment["EFFCNN_CACHE_DIR"] == str(tmp_path / "home/cache")
    assert environment["EFFCNN_RECORDED_DIR"] == ""
    assert environment["EFFCNN_PROFILE"] == "live"
    monkeypatch.delenv("EFFCNN_CACHE_DIR")
    assert "EFFCNN_CACHE_DIR" not in kernel_environment("live")


# The command line around it


def test_mistake_of_ours_keeps_its_traceback(monkeypatch):
    def mistaken(**options):
        raise ValueError("zip() argument 2 is shorter than argument 1")

    monkeypatch.setattr(runner, "run", mistaken)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        main(["run"])


def test_what_a_user_can_mend_ends_in_one_line(monkeypatch, capsys):
    def refused(**options):
        raise EffcnnError("EFFCNN_DOWNLOAD is 'never'")

    monkeypatch.setattr(runner, "run", refused)
    assert main(["run"]) == 1
    assert capsys.readouterr().err == "error: EFFCNN_DOWNLOAD is 'never'\n"


@pytest.mark.parametrize("end, status", [(KeyboardInterrupt(), 130), (SystemExit(130), 130), (SystemExit(143), 143)])
def test_end_by_a_signal_is_told_whoever_answered_it(end, status, monkeypatch, capsys):
    """Composer answers Ctrl-C with a SystemExit of its own."""
    def stopped(**options):
        raise end

    monkeypatch.setattr(runner, "run", stopped)
    assert main(["run"]) == status
    assert "stopped; the same command goes on from here" in capsys.readouterr().err


def test_another_exit_is_left_alone(monkeypatch):
    def leave(**options):
        raise SystemExit(3)

    monkeypatch.setattr(runner, "run", leave)
    with pytest.raises(SystemExit) as end:
        main(["run"])
    assert end.value.code == 3


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_a_sweep_within_seconds(number, status, tmp_path, monkeypatch):
    """A real one with a real worker, as from a terminal, at the moment when the worker has begun."""
    monkeypatch.setenv("EFFCNN_CACHE_DIR", str(tmp_path / "cache"))
    command = ["sweep", "1.5k-dw", "--recipe", "constant", "--profile", "smoke", "--out", str(tmp_path / "out")]
    sweep = subprocess.Popen([sys.executable, "-m", "effcnn_helpers", *command], stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True, start_new_session=True)
    started = psutil.Process(sweep.pid)
    while not (workers := started.children()) and sweep.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    start = time.monotonic()
    os.killpg(sweep.pid, number)
    output = sweep.communicate()[0]
    assert (sweep.returncode, time.monotonic() - start < 5) == (status, True), output
    assert not any(worker.is_running() for worker in workers)
    assert "Traceback" not in output and output.endswith("stopped; the same command goes on from here\n")
    assert not list(tmp_path.rglob("run.json")) and not list(tmp_path.rglob(".writing*"))
