import base64
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from effcnn_helpers.datasets import DATASETS
from effcnn_helpers.latency import ratios
from effcnn_helpers.models import MODELS, Model, build_model, layer_costs, mnist_5k
from effcnn_helpers.paper import table_3_row
from effcnn_helpers.plots import (
    KIND_COLORS,
    describe,
    draw_convolution_costs,
    label_of,
    plot_climb,
    plot_curves,
    plot_gains,
    plot_layer_costs,
    plot_loss,
    plot_times,
    png_with_words,
    show_images,
    stamp,
    use_style,
)
from effcnn_helpers.recipes import PROFILES
from effcnn_helpers.statistics import Gain, summarise
from effcnn_helpers.tables import table_4
from effcnn_helpers.techniques import TECHNIQUES, Technique


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        use_style()
        yield
    plt.close("all")


@pytest.fixture
def ax():
    """Axes of the only figure there may be: whatever draws on them opens no other, and can be drawn."""
    plt.close("all")  # what other tests left
    figure, ax = plt.subplots()
    yield ax
    assert plt.get_fignums() == [figure.number]
    figure.canvas.draw()


def legend_of(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def line_labelled(ax, label: str):
    return next(line for line in ax.get_lines() if line.get_label() == label)


def test_every_model_has_a_colour_and_a_label_of_its_own():
    for field in ("color", "label"):
        assert len({getattr(model, field) for model in MODELS.values()}) == len(MODELS)
    assert label_of("1.5k-dw") == "1.5K-DW" and label_of("my net") == "my net"
    assert len(set(KIND_COLORS.values())) == len(KIND_COLORS)


@pytest.mark.parametrize("c_in, c_out", [(8, 12), (3, 4), (1, 1), (5, 2)])
def test_one_square_is_drawn_for_each_weight(c_in, c_out, ax):
    assert draw_convolution_costs(ax, c_in, c_out) is ax
    counts = {kind: sum(to_rgb(patch.get_facecolor()) == to_rgb(color) for patch in ax.patches)
              for kind, color in KIND_COLORS.items()}
    assert counts == {"3x3 convolution": 9 * c_in * c_out, "depthwise convolution": 9 * c_in,
                      "1x1 convolution": c_in * c_out, "BatchNorm2d": 0, "Linear": 0}
    corners = [patch.get_xy() for patch in ax.patches]
    assert len(set(corners)) == len(corners), "squares cover each other"
    texts = " ".join(text.get_text() for text in ax.texts)
    assert all(str(count) in texts for count in (9 * c_in * c_out, 9 * c_in, c_in * c_out))


def test_all_squares_and_captions_lie_within_the_drawing(ax):
    draw_convolution_costs(ax, 8, 12)
    (left, right), (bottom, top) = ax.get_xlim(), sorted(ax.get_ylim())
    for patch in ax.patches:
        assert left <= patch.get_x() and patch.get_x() + patch.get_width() <= right
        assert bottom <= patch.get_y() and patch.get_y() + patch.get_height() <= top
    assert all(bottom <= text.get_position()[1] <= top for text in ax.texts)


@pytest.mark.parametrize("model, shape", [("1.5k-dw", (1, 28, 28)), ("143k", (3, 32, 32))])
def test_bars_are_as_long_as_the_layers_costs(model, shape):
    costs = layer_costs(build_model(model), shape)
    figure, axes = plt.subplots(1, 2)
    assert plot_layer_costs(costs, tuple(axes)) == tuple(axes)
    figure.canvas.draw()
    for ax, column in zip(axes, ("parameters", "multiply_adds"), strict=True):
        bars = {round(bar.get_y() + bar.get_height() / 2): bar for bar in ax.patches if bar.get_width() > 0}
        assert [bars[place].get_width() for place in range(len(costs))] == list(costs[column])
    names = [text.get_text() for text in axes[0].get_yticklabels()]
    assert names == list(costs["layer"])
    assert axes[0].get_legend() is None and set(legend_of(axes[1])) == set(costs["kind"])


def test_every_seed_is_a_curve_of_its_own_beside_the_papers_value(make_record, ax):
    runs = [make_record("7k-dw", wrong=wrong, seed=seed, recipe={"epochs": 3})
            for seed, wrong in enumerate((60, 70, 110))]
    runs.append(make_record("25k", wrong=65, recipe={"epochs": 3}))
    assert plot_curves(runs, ax) is ax
    several = line_labelled(ax, "7K-DW, 3 seeds")
    seeds = [line for line in ax.get_lines()
             if (line.get_color(), line.get_linestyle()) == (several.get_color(), "--")]
    assert [list(line.get_xdata()) for line in seeds] == [[1, 2, 3]] * 3
    assert [list(line.get_ydata()) for line in seeds] == [
        pytest.approx([last - 6, last - 3, last]) for last in (99.4, 99.3, 98.9)]
    assert line_labelled(ax, "25K, 1 seed").get_linestyle() == "-"
    for label, model in (("paper: 99.46 %", "7k-dw"), ("paper: 99.35 %", "25k")):
        line = line_labelled(ax, label)
        assert set(line.get_ydata()) == {table_3_row("mnist", model).accuracy_percent}
        assert to_rgb(line.get_color()) == to_rgb(MODELS[model].color)
        assert line.get_linestyle() == ":"
    assert legend_of(ax) == ["7K-DW, 3 seeds", "paper: 99.46 %", "25K, 1 seed", "paper: 99.35 %"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Epoch", "Test accuracy (%)")
    assert ax.get_title() == "Test accuracy after each epoch"


def test_curves_without_the_paper_and_without_runs(make_record, ax):
    plot_curves([], ax)
    assert ax.get_legend() is None and not ax.get_lines()
    plot_curves([make_record()], ax, paper=False)
    assert legend_of(ax) == ["1.5K-DW, 1 seed"]


def test_losses_are_those_of_the_run(make_record, ax):
    run = make_record("5k", recipe={"epochs": 3})
    assert plot_loss([run], ax) is ax
    for kind in ("train", "test"):
        line = line_labelled(ax, f"5K, {kind}")
        assert list(line.get_ydata()) == [row[f"{kind}_loss"] for row in run.epochs]
        assert list(line.get_xdata()) == [1, 2, 3]
    assert ax.get_yscale() == "log"


def test_no_losses_without_runs(ax):
    assert plot_loss([], ax) is ax and ax.get_legend() is None


def test_climb_has_a_place_for_each_rung_and_hollow_ones_for_what_was_not_kept(ax):
    table = pd.DataFrame({
        "change": ["start", "longer", "holes", "wider"], "kept": [True, True, False, True],
        "model": ["7k", "7k", "7k", "25k"], "ours": [summarise([98.0]), summarise([99.0]), summarise([98.5]), None],
        "gain": [None, Gain(1.0, 0.1, 5), Gain(-0.5, 0.1, 5), None]})
    assert plot_climb(table, ax, 98.7) is ax
    path, *dots, line = ax.lines
    assert path.get_xydata().tolist() == [[98.0, 0], [99.0, 1]]
    assert [dot.get_xydata().tolist() for dot in dots] == [[[98.0, 0]], [[99.0, 1]], [[98.5, 2]]]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [False, False, True]
    bars = [container[2][0].get_segments()[0][:, 0] for container in ax.containers]
    assert [(end - start) / 2 for start, end in bars] == pytest.approx([Gain(1.0, 0.1, 5).half_width] * 2)
    assert [text.get_text() for text in ax.texts] == ["+1.00", "-0.50"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["start", "longer", "holes", "wider"]
    assert legend_of(ax) == ["7K", "the paper's best: 98.70 %"] and line.get_xdata() == [98.7, 98.7]


@pytest.mark.parametrize("dataset", DATASETS)
def test_images_are_shown_under_their_class(dataset, digits):
    images, classes = digits.test.first(3), digits.classes
    if dataset == "cifar10":
        images = replace(images, x=images.x.repeat(1, 3, 1, 1))
        classes = DATASETS["cifar10"].classes
    figure = show_images(images, classes, count=5)
    figure.canvas.draw()
    assert plt.get_fignums() == [figure.number]
    assert len(figure.axes) == 3
    for index, ax in enumerate(figure.axes):
        assert ax.get_title() == classes[images.y[index]]
        shown = images.x[index].permute(1, 2, 0).squeeze().numpy()
        assert np.array_equal(ax.images[0].get_array(), shown)


def test_images_are_shown_under_captions_of_ones_own(digits):
    figure = show_images(digits.test, digits.classes, count=2, captions=["taken for 3", "taken for 8"])
    assert [ax.get_title() for ax in figure.axes] == ["taken for 3", "taken for 8"]


@pytest.mark.parametrize("profile, stamped", [("smoke", True), ("live", True), ("full", False)])
def test_figures_not_from_full_runs_are_stamped(profile, stamped, ax):
    stamp(ax.figure, PROFILES[profile])
    text = ax.figure.get_supxlabel()
    assert (f"{profile} profile" in text and "not a result" in text) if stamped else text == ""


def test_every_technique_has_a_colour_of_its_own():
    for field in ("color", "label", "abbreviation"):
        assert len({getattr(entry, field) for entry in TECHNIQUES.values()}) == len(TECHNIQUES) == 8
    greys = {to_rgb("0.55"), to_rgb("0.2"), to_rgb("black")}
    assert not greys & {to_rgb(entry.color) for entry in TECHNIQUES.values()}


def test_a_technique_of_ones_own_is_drawn_in_its_own_colour(make_record, ax, monkeypatch):
    entry = Technique("noise", "Label noise", "LN", "#123456")
    monkeypatch.setitem(TECHNIQUES, "noise", entry)
    plot_curves([make_record(), make_record(config={"techniques": ("noise",)})], ax)
    assert line_labelled(ax, "1.5K-DW, Label noise, 1 seed").get_color() == "#123456"


def test_a_model_that_was_added_is_drawn_by_its_entry(make_record, ax, monkeypatch):
    entry = Model("slim", "Slim", "#654321", (1, 28, 28), mnist_5k, linestyle="-.")
    monkeypatch.setitem(MODELS, "slim", entry)
    plot_curves([make_record("slim")], ax)
    line = line_labelled(ax, "Slim, 1 seed")
    assert (line.get_color(), line.get_linestyle()) == ("#654321", "-.")
    assert legend_of(ax) == ["Slim, 1 seed"], "the paper says nothing of it"


def test_a_network_of_ones_own_is_drawn_in_black_under_its_name(make_record, ax):
    """It has no entry, and the paper no row of it: neither a plain one nor one with techniques."""
    own = make_record(config={"model": "my net"})
    plot_curves([own, make_record()], ax)
    assert to_rgb(line_labelled(ax, "my net, 1 seed").get_color()) == to_rgb("black")
    assert legend_of(ax) == ["my net, 1 seed", "1.5K-DW, 1 seed", "paper: 98.35 %"]


def test_losses_of_a_network_of_ones_own_are_black(make_record, ax):
    plot_loss([make_record(config={"model": "my net"})], ax)
    assert {to_rgb(line.get_color()) for line in ax.get_lines()} == {to_rgb("black")}
    assert legend_of(ax) == ["my net, train", "my net, test"]


def test_the_papers_value_is_drawn_for_its_own_rows_alone(make_record, ax):
    """25K with Cutout is no row of it, nor are CIFAR-10's combinations on MNIST."""
    stack = ("cutout", "blurpool", "mixup")
    plot_curves([make_record("25k", config={"techniques": ("cutout",)}),
                 make_record(config={"techniques": stack}), make_record("143k-dw"),
                 make_record("143k-dw", config={"techniques": stack})], ax)
    assert [label for label in legend_of(ax) if "paper" in label] == ["paper: 79.90 %",
                                                                      "paper: 86.08 %"]


def test_curves_beside_techniques_are_coloured_by_technique_and_named_with_the_papers_value(make_record, ax):
    runs = [make_record(), make_record(config={"techniques": ("blurpool",)}),
            make_record(config={"techniques": ("blurpool",)}, seed=1),
            make_record(config={"techniques": ("blurpool", "squeeze_excite", "swa")}),
            make_record(config={"techniques": ("cutout", "mixup")})]
    plot_curves(runs, ax)
    assert legend_of(ax) == [
        "1.5K-DW, 1 seed", "paper: 98.35 %", "1.5K-DW, BlurPool, 2 seeds", "paper: 99.21 %",
        "1.5K-DW, BlurPool + Squeeze-and-Excite + SWA, 1 seed", "paper: 99.20 %",
        "1.5K-DW, Cutout + Mixup, 1 seed"]
    blurpool = line_labelled(ax, "1.5K-DW, BlurPool, 2 seeds")
    assert blurpool.get_color() == TECHNIQUES["blurpool"].color
    assert line_labelled(ax, "1.5K-DW, Cutout + Mixup, 1 seed").get_color() == "0.2"
    assert line_labelled(ax, "1.5K-DW, 1 seed").get_color() == "0.55"


def test_gains_are_drawn_with_their_interval_beside_the_papers(write_record, tmp_path, ax):
    for seed, wrong in enumerate((165, 175)):
        write_record(wrong=wrong, seed=seed, root=tmp_path)
    write_record(wrong=100, root=tmp_path, config={"techniques": ("cutout",)})
    table = table_4("mnist", tmp_path)
    plot_gains(table, ax)
    gain = table["gain"][2]
    [bar] = ax.containers
    assert bar.get_label() == "ours, 95 % interval" and bar[0].get_color() == TECHNIQUES["cutout"].color
    (left, _), (right, _) = bar.lines[2][0].get_segments()[0]
    assert (right - left) / 2 == pytest.approx(gain.half_width)
    assert (right + left) / 2 == pytest.approx(gain.points) == pytest.approx(0.70)
    assert len(ax.get_yticklabels()) == 9 and ax.get_yticklabels()[1].get_text() == "Cutout"
    assert list(line_labelled(ax, "paper").get_xdata())[:2] == pytest.approx([0.57, 0.10])


def test_a_gain_that_is_not_judged_is_drawn_without_an_interval(write_record, tmp_path, ax):
    write_record(wrong=165, root=tmp_path)
    write_record(wrong=100, root=tmp_path, config={"techniques": ("cutout",)})
    plot_gains(table_4("mnist", tmp_path), ax)
    [bar] = ax.containers
    assert list(bar[0].get_xdata()) == pytest.approx([0.65]) and not bar.has_xerr


def test_times_are_bars_with_their_median_and_ratio(ax):
    summary = ratios(pd.DataFrame({"variant": ["a", "b"] * 3, "ms": [10, 25, 12, 24, 11, 20]}), to="a")
    plot_times(summary, ax, "time")
    assert [patch.get_width() for patch in ax.patches] == [11, 24]
    assert [text.get_text().strip() for text in ax.texts] == ["11.0 ms, ×1.00", "24.0 ms, ×2.00"]


def test_a_figure_is_described_by_its_titles_axes_and_legend(ax, make_record):
    plot_curves([make_record(seed=0), make_record(seed=1)], ax)
    assert describe(ax.figure) == ("Test accuracy after each epoch; Test accuracy (%) against Epoch; "
                                   "legend: 1.5K-DW, 2 seeds, paper: 98.35 %")


def test_rows_of_bars_and_equal_pictures_are_named_once():
    figure, axes = plt.subplots(1, 4)
    axes[0].barh(["eager", "com\npiled"], [1, 2])
    axes[0].set(title="Latency", xlabel="Milliseconds", xscale="log")  # whose ticks are written in TeX
    for ax in axes[1:]:
        ax.imshow([[0, 1]])
    figure.supxlabel("smoke profile")
    assert describe(figure) == "Latency; Milliseconds; for eager, com piled. Picture (3 times). smoke profile"


def test_pictures_in_a_notebook_carry_their_description():
    figure, ax = plt.subplots()
    ax.set_title("What the parameters buy")
    picture, metadata = png_with_words(figure)
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert metadata == {"alt": describe(figure)}
    assert png_with_words(plt.figure()) is None
