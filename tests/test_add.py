"""The four additions of CONTRIBUTING.md, followed word for word in a copy of the package."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from effcnn_helpers.datasets import ImageDataset
from effcnn_helpers.records import RecordError, read_run

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = {text.partition("\n")[0]: text for text in PAGE.split("\n## ")[1:]}
# "Above `NAME` in `file`" or "at the end of `NAME` in `file`", and the block that follows.
ADDITION = re.compile(r"(Above|[Aa]t the end of)\s+`(\w+)`\s+in\s+`([\w/.]+)`[^`]*```python\n(.*?)```", re.DOTALL)
SMOKE = "build/smoke-runs"

# Runs in the copy, after the page's commands; prints what it sees there.
DRIVER = f'''
import json, re
from dataclasses import asdict, replace
from pathlib import Path
import matplotlib.pyplot as plt
import torch
from effcnn_helpers import plots, records, statistics, techniques
from effcnn_helpers.datasets import DATASETS, load_images
from effcnn_helpers.recipes import recipe_of, table_run
from effcnn_helpers.training import train

page, own, recorded = json.loads(Path("page.json").read_text()), {{}}, {{}}
exec(page["network"], own)
exec(page["dataset"], recorded)

smoke = {{run.config.name: run for run in records.all_runs(Path("{SMOKE}"))}}
[clipped] = [run for run in smoke.values() if run.config.techniques]
[tiny] = [run for run in smoke.values() if run.config.model == "tiny"]
plain, network = train(replace(clipped.config, techniques=()), load_images("mnist"), threads=1)
first, second = (net.conv1.conv.weight for net in (network, records.read_network(clipped, Path("{SMOKE}"))))

# As if the runs of the table had been trained.
for techniques_ in ((), ("gradient_clipping",)):
    config = table_run("1.5k-dw", techniques=techniques_)
    run = replace(clipped, config=config, epochs=clipped.epochs * config.epochs)
    records.write_run(run, records.build_network(config))
found = eval(page["table_runs"])
ax = plt.figure().gca()
plots.plot_curves([*found, tiny, own["record"], recorded["record"]], ax)

print(json.dumps({{
    "smoke": sorted(smoke),
    "clipping changes the weights": not torch.equal(first, second),
    "label": techniques.labels_of(("swa", "gradient_clipping")),
    "technique's colour": plots.style_of(found[0].config, True)["color"],
    "network's colour": plots.style_of(tiny.config, False)["color"],
    "table_runs": [run.config.name for run in found],
    "gain": statistics.gain_over(found, records.table_runs("1.5k-dw"), None).points,
    "legend": [text.get_text() for text in ax.get_legend().get_texts()],
    "recipe": asdict(recipe_of("gentle", "mnist")),
    "recorded recipe": asdict(next(run for run in smoke.values() if "gentle" in run.config.name).config.recipe),
    "tiny parameters": tiny.parameters,
    "own": [own["record"].config.name, own["record"].total, own["record"].parameters],
    "dataset's run": [run.config.name for run in records.runs_of_row(recorded["record"].config)],
    "dataset's images": [recorded["record"].total, recorded["record"].data["source"]],
    "dataset's mean": DATASETS["fashion"].mean,
}}))
'''


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A folder with a package that has the page's entries in it."""
    folder = tmp_path_factory.mktemp("extended")
    shutil.copytree(ROOT / "effcnn_helpers", folder / "effcnn_helpers",
                    ignore=shutil.ignore_patterns("recorded", "__pycache__"))
    for where, name, file, block in ADDITION.findall(PAGE):
        path = folder / file
        source = path.read_text(encoding="utf-8")
        start = source.index(f"\n{name} = ") + 1
        place = start if where == "Above" else source.index("\n)}\n", start) + 1
        path.write_text(source[:place] + block + source[place:], encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def seen(extended: Path, digits: ImageDataset, digits_folder: Path) -> dict:
    """What the page's commands and calls leave and show."""
    for name in ("images", "runs"):
        (extended / name).mkdir()
    shutil.copy(digits_folder / "mnist.npz", extended / "images")
    # The clothes are digits here: nothing is downloaded in a test.
    np.savez(extended / "images" / "fashion.npz", x_train=digits.train.x[:150].squeeze(1), y_train=digits.train.y[:150],
             x_test=digits.test.x[:50].squeeze(1), y_test=digits.test.y[:50])
    environment = {**os.environ, "PYTHONPATH": str(extended), "EFFCNN_DATA_DIR": str(extended / "images"),
                   "EFFCNN_RECORDED_DIR": str(extended / "runs")}
    commands = [shlex.split(line) for line in "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).splitlines()]
    assert [command[:4] for command in commands] == [["python", "-m", "effcnn_helpers", "sweep"]] * 3
    processes = [subprocess.Popen([sys.executable, *command[1:]], cwd=extended, env=environment,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for command in commands]
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], "\n".join(said)
    network, _ = re.findall(r"```python\n(.*?)```", SECTIONS["A network"], re.DOTALL)
    _, dataset = re.findall(r"```python\n(.*?)```", SECTIONS["A dataset"], re.DOTALL)
    [table_runs] = re.findall(r"`(records\.table_runs\(.*?\))`", PAGE)
    (extended / "page.json").write_text(json.dumps(
        {"network": network, "dataset": dataset, "table_runs": table_runs}), encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", DRIVER], cwd=extended, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_each_addition_is_one_entry_of_its_file():
    assert [(name, file) for where, name, file, _ in ADDITION.findall(PAGE) if where != "Above"] == [
        ("TECHNIQUES", "effcnn_helpers/techniques.py"), ("RECIPES", "effcnn_helpers/recipes.py"),
        ("MODELS", "effcnn_helpers/models.py"), ("DATASETS", "effcnn_helpers/datasets.py")]


def test_the_sweeps_record_each_addition_in_a_folder_of_its_own(seen):
    assert seen["smoke"] == [
        "mnist/1.5k-dw/gentle,epochs=1/baseline/seed0,train=384,test=200",
        "mnist/1.5k-dw/settled,epochs=1/gradient_clipping/seed0,train=384,test=200",
        "mnist/tiny/settled,epochs=1/baseline/seed0,train=384,test=200"]


def test_the_technique_acts_has_its_label_and_colour_and_its_row_is_found(seen):
    assert seen["clipping changes the weights"]
    assert (seen["label"], seen["technique's colour"]) == ("SWA + Gradient clipping", "#44aa99")
    assert seen["table_runs"] == ["mnist/1.5k-dw/settled/gradient_clipping/seed0"]
    assert f"`{seen['table_runs'][0]}`" in PAGE
    assert seen["gain"] == 0, "both rows are the same made-up run"
    assert "1.5K-DW, Gradient clipping, 1 seed" in seen["legend"]


def test_the_recipe_is_spelled_out_in_the_record(seen):
    assert (seen["recipe"]["learning_rate"], seen["recipe"]["schedule"]) == (0.05, "linear")
    assert seen["recorded recipe"] == {**seen["recipe"], "epochs": 1}


def test_the_network_is_trained_as_an_entry_and_without_one(seen):
    assert seen["network's colour"] == "#332288"
    assert seen["tiny parameters"] == 8 * 9 + 16 + 80
    assert "Tiny, 1 seed" in seen["legend"] and "mine, 1 seed" in seen["legend"]
    name, total, parameters = seen["own"]
    assert name.startswith("mnist/mine/") and total == 1_000
    assert parameters == 16 * 25 + 16 + 1024 * 10 + 10


def test_the_dataset_is_read_trained_on_and_found_again(seen):
    assert seen["dataset's run"] == [
        "fashion/1.5k-dw/settled,epochs=20,learning_rate=0.3,weight_decay=0.0001,schedule=linear,rise=0.2/baseline/seed0"]
    assert seen["dataset's images"] == [50, "fashion.npz in EFFCNN_DATA_DIR"]
    assert seen["dataset's mean"] == [0.2860]


def test_the_paper_is_silent_about_all_of_them(seen):
    assert not any(entry.startswith("paper") for entry in seen["legend"])


def test_without_its_entry_a_technique_is_unknown(seen, extended):
    """The package itself refuses the record that its extended copy wrote."""
    with pytest.raises(RecordError, match="unknown technique 'gradient_clipping'"):
        read_run(extended / SMOKE / seen["smoke"][1])
