"""Settings from the environment: each is right, or refused with value, expectation and cure."""

import getpass
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from effcnn_helpers import settings
from effcnn_helpers.errors import EffcnnError

PACKAGE = Path(settings.__file__).parent


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    for names in settings.CHECKS:
        for name in names.split():
            monkeypatch.delenv(name, raising=False)


def test_what_is_not_set_or_empty_has_its_default(monkeypatch):
    for value in (None, ""):
        if value is not None:
            for names in settings.CHECKS:
                for name in names.split():
                    monkeypatch.setenv(name, value)
        assert settings.profile_name() == "live"
        assert settings.data_dir() is None
        assert settings.cache_dir().name == "effcnn"
        assert settings.recorded_dir() == PACKAGE / "recorded"
        assert settings.downloads_allowed() and settings.progress_shown()
        settings.refuse_leftover_launcher()


@pytest.mark.parametrize("name, function", [("EFFCNN_DOWNLOAD", settings.downloads_allowed),
                                            ("EFFCNN_PROGRESS", settings.progress_shown)])
@pytest.mark.parametrize("value, meaning", [
    ("1", True), ("true", True), ("YES", True), ("On", True), (" 1 ", True),
    ("0", False), ("False", False), ("no", False), ("OFF", False)])
def test_switch_understands_the_usual_words(name, function, value, meaning, monkeypatch):
    monkeypatch.setenv(name, value)
    assert function() is meaning


@pytest.mark.parametrize("name, value, message", [
    ("EFFCNN_DOWNLOAD", "never", "EFFCNN_DOWNLOAD is 'never'; use 1 .or true, yes, on. or 0 .or false, no, off.*unset"),
    ("EFFCNN_PROGRESS", "2", "EFFCNN_PROGRESS is '2'; use 1"),
    ("EFFCNN_PROFILE", "turbo", "EFFCNN_PROFILE is 'turbo'; use one of smoke, live, full, or unset it"),
    ("EFFCNN_DATA_DIR", "nowhere", "EFFCNN_DATA_DIR is 'nowhere', which is not a folder; correct it, or unset it"),
    ("EFFCNN_DATA_DIR", __file__, "EFFCNN_DATA_DIR is .*test_settings.py', which is not a folder"),
    ("EFFCNN_RECORDED_DIR", "nowhere", "EFFCNN_RECORDED_DIR is 'nowhere', which is not a folder.*package's own runs"),
    ("EFFCNN_CACHE_DIR", "~no-such-user/c", "EFFCNN_CACHE_DIR is '~no-such-user/c'.*does not know; write the folder's"),
])
def test_wrong_value_is_refused_with_what_is_expected(name, value, message, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(EffcnnError, match=message):
        settings.CHECKS[name]()


def test_folders_may_begin_with_the_users_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "My Drive").mkdir()
    for name, function in (("DATA", settings.data_dir), ("RECORDED", settings.recorded_dir),
                           ("CACHE", settings.cache_dir)):
        monkeypatch.setenv(f"EFFCNN_{name}_DIR", "~/My Drive")
        assert function() == tmp_path / "My Drive"


def test_cache_folder_need_not_be_there_and_is_not_made(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFCNN_CACHE_DIR", str(tmp_path / "later"))
    assert settings.cache_dir() == tmp_path / "later"
    assert not (tmp_path / "later").exists()


def test_folder_of_another_user_is_named_with_its_owner(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(settings.os, "scandir", refuse)
    monkeypatch.setenv("EFFCNN_DATA_DIR", str(tmp_path))
    with pytest.raises(EffcnnError, match=f"EFFCNN_DATA_DIR: {tmp_path} cannot be read or written .Permission denied.; "
                       f"{tmp_path} belongs to {tmp_path.owner()}; name a folder of your own"):
        settings.data_dir()


def test_owner_is_a_number_where_the_user_is_unknown_and_nothing_where_a_system_has_none(tmp_path, monkeypatch):
    def unknown(path):
        raise KeyError("uid not found")

    def unsupported(path):
        raise NotImplementedError

    assert settings.owner_of(tmp_path) == getpass.getuser()
    monkeypatch.setattr(Path, "owner", unknown)
    assert settings.owner_of(tmp_path) == f"user {tmp_path.stat().st_uid}"
    monkeypatch.setattr(Path, "owner", unsupported)
    assert settings.owner_of(tmp_path) is None
    missing = tmp_path / "a/b"
    assert settings.access_problem(missing, OSError(30, "Read-only file system")) == \
        f"{missing} cannot be read or written (Read-only file system)"


# Variables of a launcher

WHOLE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
         "MASTER_PORT": "29500"}


@pytest.mark.parametrize("left", [
    {"RANK": "0", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "4"}, {"RANK": "1"}, {"LOCAL_RANK": "1", "WORLD_SIZE": "1"},
    *({key: WHOLE[key] for key in WHOLE if key != missing} for missing in WHOLE if missing != "WORLD_SIZE")])
def test_variables_that_a_launcher_left_are_named(left, monkeypatch):
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EffcnnError) as refusal:
        settings.refuse_leftover_launcher()
    assert all(f"{name}={value}" in str(refusal.value) for name, value in left.items())
    assert "no launcher started it; unset " in str(refusal.value)


@pytest.mark.parametrize("launched, place", [
    (WHOLE, (0, 2)), ({**WHOLE, "RANK": "1"}, (1, 2)), ({"WORLD_SIZE": "1"}, (0, 1)),
    ({"RANK": "0", "WORLD_SIZE": ""}, (0, 1)), ({"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}, (0, 1))])
def test_real_launch_and_a_single_process_pass(launched, place, monkeypatch):
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    settings.refuse_leftover_launcher(processes=place[1])
    assert settings.place() == place


def test_whole_launch_is_refused_where_the_run_is_for_another_number_of_processes(monkeypatch):
    """In a notebook, say, that was opened from within one."""
    with pytest.raises(EffcnnError, match="WORLD_SIZE is 1, .* for 2; use the command `composer -n 2 -m effcnn_helper"):
        settings.refuse_leftover_launcher(processes=2)
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(EffcnnError, match="WORLD_SIZE is 2, .* for 1; .* or unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WO"):
        settings.refuse_leftover_launcher()
    with pytest.raises(EffcnnError, match="WORLD_SIZE is 2, and what runs here is for 3"):
        settings.refuse_leftover_launcher(processes=3)
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(EffcnnError, match="RANK or WORLD_SIZE is not a whole number .*'two'.*; unset both"):
        settings.place()


# The rest


def test_cure_installs_for_this_python_in_an_accepted_version(monkeypatch):
    lines = ["numpy<3,>=2", 'openvino~=2026.4; extra == "deploy"']
    monkeypatch.setattr(settings.importlib.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(settings.sys, "executable", "/my folder/python")
    assert settings.pip_command("openvino", "rich") == "'/my folder/python' -m pip install 'openvino~=2026.4' rich"
    again = settings.pip_command("numpy", options="--force-reinstall")
    assert again.endswith("pip install --force-reinstall 'numpy<3,>=2'")

    def not_installed(name):
        raise settings.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(settings.importlib.metadata, "requires", not_installed)
    assert settings.pip_command("onnx").endswith("-m pip install onnx")


def test_settings_can_be_read_where_nothing_is_installed():
    code = "import sys; import effcnn_helpers.settings; print({'torch', 'numpy', 'platformdirs'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)})
    assert done.stdout.strip() == "set()", done.stderr


def test_signal_handlers_are_put_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(RuntimeError), settings.signal_handlers_kept():
        for number in before:
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
        raise RuntimeError
    assert {number: signal.getsignal(number) for number in before} == before


def test_signal_handlers_are_left_alone_in_another_thread():
    entered = []

    def enter():
        with settings.signal_handlers_kept():
            entered.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [True]
