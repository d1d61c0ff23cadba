"""What the code may not do on a learner's machine: run what it loads, build shell commands, call home, write anywhere.

A notebook is watched while it runs, by the audit events that Python itself raises.
"""

import ast
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import kernel_environment

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "effcnn_helpers").rglob("*.py"))
NETWORK = {"socket", "ssl", "http", "urllib", "ftplib", "smtplib", "requests", "httpx", "aiohttp", "urllib3"}
PICKLE = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
SERIES = sorted(path.name for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
WATCHED = SERIES if os.environ.get("TESTS_SOAK") else ["06_one_cycle_lr.ipynb"]


def imports_of(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.split(".")[0])
    return names


def unsafe_calls(tree: ast.AST) -> list[str]:
    """Calls that run what a file or a string says."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {option.arg: ast.unparse(option.value) for option in node.keywords}
        found += [name] if name in ("eval", "exec", "os.system", "os.popen", "subprocess.getoutput") else []
        found += [name] if name == "torch.load" and options.get("weights_only") != "True" else []
        found += [name] if name == "np.load" and options.get("allow_pickle", "False") != "False" else []
        found += [name] if options.get("shell", "False") != "False" else []
    return found


def test_no_source_unpickles_or_builds_shell_commands_and_one_downloads():
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {path.name: calls for path, tree in trees.items() if (calls := unsafe_calls(tree))} == {}
    assert {path.name for path, tree in trees.items() if imports_of(tree) & PICKLE} == set()
    assert {path.name for path, tree in trees.items() if imports_of(tree) & NETWORK} == {"downloads.py"}


@pytest.mark.parametrize("code", [
    "torch.load(path)", "torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)", "eval(text)",
    "subprocess.run(text, shell=True)", "os.system(text)"])
def test_unsafe_call_is_found(code):
    assert unsafe_calls(ast.parse(code))


WATCH = """
import os, sys
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND
REPORT = os.open({report!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def watch(event, values):
    if event == "open" and isinstance(values[0], (str, bytes)) and values[2] and values[2] & WRITES:
        os.write(REPORT, ("write " + os.path.abspath(os.fsdecode(values[0])) + chr(10)).encode())
    elif event == "socket.getaddrinfo" or event == "socket.connect" and isinstance(values[1], tuple):
        host = values[1][0] if event == "socket.connect" else values[0]
        if host not in ("127.0.0.1", "::1", "localhost", None):
            os.write(REPORT, ("network " + str(host) + chr(10)).encode())
            raise OSError("no network in this test")

sys.addaudithook(watch)
"""


def seen_while(code: str, folder: Path, environment: dict[str, str]) -> list[str]:
    """What a Python process, and those that it starts, write and whom they call: "write PATH", "network HOST"."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WATCH.format(report=str(folder / "report")))
    paths = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**environment, "PYTHONPATH": paths},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return sorted(set((folder / "report").read_text().splitlines()))


def test_the_watch_sees_writing_and_calling(tmp_path):
    code = f"""
import socket
open({str(tmp_path / 'written')!r}, "w").close()
open({str(tmp_path / 'written')!r}).close()
try:
    socket.create_connection(("203.0.113.1", 80), timeout=1)
except OSError:
    pass
"""
    seen = [line for line in seen_while(code, tmp_path / "watch", dict(os.environ)) if "__pycache__" not in line]
    assert seen == ["network 203.0.113.1", f"write {tmp_path / 'written'}"]


@pytest.mark.parametrize("name", WATCHED)
def test_notebook_calls_nobody_and_writes_to_its_own_folders_alone(name, tmp_path):
    """Also where the caller's downloads are allowed: the data is there, so nothing is asked for."""
    environment = kernel_environment()
    code = ("import asyncio, pathlib, sys; from effcnn_helpers.cli.run import execute; "
            f"sys.exit(asyncio.run(execute(pathlib.Path('notebooks/{name}'), 'smoke'))[1])")
    seen = [line for line in seen_while(code, tmp_path / "watch", environment) if "__pycache__" not in line]
    assert [line for line in seen if line.startswith("network")] == []
    written = [Path(line.removeprefix("write ")) for line in seen]
    assert written, "the watch is asleep"
    # Matplotlib and IPython have caches of their own in the user's.
    elsewhere = [Path(tempfile.gettempdir()), Path("/dev"), Path("/proc"), Path.home() / ".cache"]
    elsewhere += [Path(environment[name]) for name in ("EFFCNN_CACHE_DIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR")]
    for path in written:
        allowed = [ROOT / "build", ROOT / "figures"] if path.is_relative_to(ROOT) else elsewhere
        assert any(path.is_relative_to(folder) for folder in allowed), path
