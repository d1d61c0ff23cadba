"""The paper's tables with ours beside them, in three formats; the figures."""

import base64
import io
import json
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest

from effcnn_helpers.cli.results import results
from effcnn_helpers.ladder import LADDERS
from effcnn_helpers.maintain.figures import draw_slides, figures
from effcnn_helpers.paper import TABLE_3, TABLE_4, TABLE_5
from effcnn_helpers.recipes import recipe_of
from effcnn_helpers.records import recorded_dir
from effcnn_helpers.tables import table_4

DIGITS = [row.model for row in TABLE_3 if row.dataset == "mnist"]


@pytest.fixture
def some_runs(write_record):
    for seed, wrong in enumerate((200, 160, 150)):
        write_record("1.5k-dw", wrong=wrong, seed=seed)
    write_record("25k", wrong=41)


def test_results_say_the_same_in_every_format(some_runs, capsys):
    def printed(format):
        assert results(format) == 0
        return capsys.readouterr().out

    from_json = json.loads(printed("json"))["Table 3, MNIST half"]
    first_table = printed("markdown").split("\n\n")[1]
    markdown = [[cell.strip() for cell in line.strip("|").split("|")]
                for line in first_table.splitlines()]
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
        assert cells == [row["model"], f"{row['parameters']:,}", f"{row['paper']:.2f}", ours, row["verdict"],
                         str(row["paper_kb"]), f"{row['our_kb']:.1f}" if row["our_kb"] else ""]


def test_results_in_json_are_the_recorded_numbers(some_runs, capsys):
    assert results("json") == 0
    rows = json.loads(capsys.readouterr().out)["Table 3, MNIST half"]
    assert rows[0]["ours"] == {"n": 1, "mean_percent": pytest.approx(99.59), "sd_percent": None}
    assert rows[-1]["ours"]["mean_percent"] == pytest.approx(98.3)
    assert rows[1]["ours"] is None and rows[1]["verdict"] == "not run"


def test_results_in_json_give_a_gain_with_its_interval(write_record, capsys):
    for seed, wrong in enumerate((165, 175)):
        write_record(wrong=wrong, seed=seed)
    write_record(wrong=100, config={"techniques": ("cutout",)})
    assert results("json") == 0
    rows = json.loads(capsys.readouterr().out)["Table 4, MNIST half: techniques on 1.5K-DW"]
    [gain] = [row["gain"] for row in rows if row["gain"]]
    expected = table_4("mnist").set_index("techniques").loc[[("cutout",)], "gain"].item()
    assert gain == pytest.approx({"points": 0.7, "half_width": expected.half_width, "p_value": expected.p_value})


def test_seconds_have_a_table_of_their_own(capsys):
    assert results("markdown") == 0
    [table] = [part for part in capsys.readouterr().out.split("\n\n") if "paper (s)" in part]
    assert len(table.splitlines()) == 2 + len(TABLE_3) and "| 143K-DW | yes         | 8.82" in table


def test_results_without_runs_and_with_their_recipe(capsys):
    assert results("terminal") == 0
    printed = capsys.readouterr().out
    # Table 5 begins with the baseline, as Table 4 does.
    accuracies = [*(row.accuracy_percent for row in TABLE_3), *TABLE_5.values(), 79.90]
    accuracies += [percent for row in TABLE_4.values() for percent in row.values() if percent]
    assert printed.count("not run") == len(accuracies) + len(LADDERS) == 38  # the table of aims has verdicts, too
    for dataset in ("mnist", "cifar10"):
        [line] = [line for line in printed.splitlines() if f"Recipe of {dataset}: " in line]
        recipe = recipe_of(None, dataset)
        for field in ("name", "epochs", "learning_rate", "momentum", "weight_decay", "schedule"):
            assert f"{field} {getattr(recipe, field)}" in line
        assert line.endswith("augmentation none.")


# figures


@pytest.fixture
def without_slides(monkeypatch):
    """They have a test of their own; all of them take a second each."""
    monkeypatch.setattr("effcnn_helpers.maintain.figures.draw_slides", lambda notebooks, out: None)


def test_figures_are_the_same_files_each_time(without_slides, write_record, tmp_path, capsys):
    for model in DIGITS:
        write_record(model, wrong=120)
    for out in ("first", "second"):
        assert figures(tmp_path / out) == 0
    names = sorted(path.name for path in (tmp_path / "first").iterdir() if path.is_file())
    drawn = {f"{stem}.{kind}" for stem in ("fig1_depthwise_separable", "fig6_training_curves_mnist")
             for kind in ("png", "svg")}
    taken = {"fig2_squeeze.png", "fig2_excite.png", "fig3_blurpool.png", "fig4_loss_landscape.png",
             "gains_cifar10.png", "ladder_cifar10.png", "pareto.png"}
    assert set(names) == drawn | taken | {"RESULTS.md"}
    for name in names:
        first, second = ((tmp_path / out / name).read_bytes() for out in ("first", "second"))
        assert first == second, name
    svg = (tmp_path / "first" / "fig6_training_curves_mnist.svg").read_text()
    assert svg.count("paper: ") == 6 and "paper: 98.35 %" in svg


def test_figure_of_a_notebook_is_its_last_output_and_is_named_when_there_is_none(
        tmp_path, monkeypatch, capsys):
    notebook = nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_code_cell("draw()", metadata={"tags": ["figure:fig2_drawn"]}, outputs=[
            nbformat.v4.new_output("display_data", {
                "image/png": base64.b64encode(b"a picture").decode()})]),
        nbformat.v4.new_code_cell("draw()", metadata={"tags": ["figure:fig3_not_executed"]})])
    (tmp_path / "notebooks").mkdir()
    nbformat.write(notebook, tmp_path / "notebooks/08_any.ipynb")
    monkeypatch.chdir(tmp_path)
    assert figures(Path("figures")) == 0
    assert (tmp_path / "figures/fig2_drawn.png").read_bytes() == b"a picture"
    assert not (tmp_path / "figures/fig3_not_executed.png").exists()
    assert "fig3_not_executed waits for notebook 08" in capsys.readouterr().out


def test_slide_shows_the_moving_picture_under_title_and_question(tmp_path, capsys):
    picture = io.BytesIO()
    plt.imsave(picture, np.zeros((40, 60)))
    moving = nbformat.v4.new_code_cell("touch(draw, rate=(0, 1))", outputs=[nbformat.v4.new_output(
        "display_data", {"image/png": base64.b64encode(picture.getvalue()).decode()})])
    opening = nbformat.v4.new_markdown_cell("# 06 · A title\n\n**A question?**\n\n1. more")
    for name, cells in (("06_moves", [opening, moving]), ("07_waits", [opening])):
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    for out in ("slides", "again"):
        draw_slides(tmp_path, tmp_path / out)
        assert [path.name for path in (tmp_path / out).iterdir()] == ["06.png"]
    assert (tmp_path / "slides/06.png").read_bytes() == (tmp_path / "again/06.png").read_bytes()
    slide = plt.imread(tmp_path / "slides/06.png")
    assert slide.shape[:2] == (1080, 1920)
    assert slide[:250, :, :3].min() < 0.5, "no title"
    assert "slide of notebook 07 waits" in capsys.readouterr().out


def test_figure_5_is_the_recorded_measurement(without_slides, tmp_path, capsys):
    assert figures(tmp_path) == 0
    printed = capsys.readouterr().out
    assert "Fig. 5 waits for a measurement: python -m effcnn_helpers bench --full" in printed
    rows = [{"view": "models", "variant": f"{row.model}/eager", "batch": 128,
             "times_ms": [3000, 3100, 3200]} for row in TABLE_3]
    recorded_dir().mkdir(parents=True, exist_ok=True)
    (recorded_dir() / "latency.json").write_text(json.dumps(
        {"schema_version": 1, "rows": rows, "threads": 1, "machine": {"cpu": "a processor"}}))
    assert figures(tmp_path) == 0
    svg = (tmp_path / "fig5_latency.svg").read_text()
    assert all(f">{row.label}<" in svg for row in TABLE_3)


def test_figure_that_lacks_its_runs_is_named(without_slides, write_record, tmp_path, capsys):
    write_record("25k")
    assert figures(tmp_path) == 0
    printed = capsys.readouterr().out
    assert "Fig. 6, MNIST, waits for its runs: 7k, 7k-dw, 5k, 5k-dw, 1.5k-dw" in printed
    assert {path.suffix for path in tmp_path.iterdir() if path.is_file()} == {".svg", ".png", ".md"}
