"""One look for the whole series. Functions draw on the axes they are given and return them."""

import math
import re
from collections import Counter

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from IPython import get_ipython
from IPython.core.pylabtools import print_figure
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from .datasets import Images
from .models import MODELS, count_parameters, kind_of, model_of
from .paper import TABLE_3, accuracy_of
from .recipes import Profile, RunConfig
from .records import RunRecord
from .techniques import TECHNIQUES, labels_of

# The kinds of layers that models.kind_of names, in seaborn's colour-blind-safe palette.
KIND_COLORS = dict(zip(
    ("3x3 convolution", "depthwise convolution", "1x1 convolution", "BatchNorm2d", "Linear"),
    sns.color_palette("colorblind", 5), strict=True))


def use_style() -> None:
    """Seaborn's white grid, readable on a projector and on a narrow screen."""
    sns.set_theme(style="whitegrid", palette="colorblind", rc={
        "figure.dpi": 100, "figure.figsize": (7, 3.6), "figure.constrained_layout.use": True,
        "axes.titlesize": 12, "axes.titleweight": "bold", "font.size": 11,
        # The same figure gives the same SVG file, and its text stays text.
        "svg.hashsalt": "effcnn", "svg.fonttype": "none",
    })
    shell = get_ipython()
    if shell is not None:
        matplotlib.pyplot.switch_backend(matplotlib.get_backend())  # loads IPython's own way to draw, replaced here
        shell.display_formatter.formatters["image/png"].for_type(Figure, png_with_words)


def png_with_words(figure: Figure) -> tuple[str, dict] | None:
    """A figure for a notebook: the picture in base64, and its description as alternative text. None when empty."""
    picture = print_figure(figure, base64=True)
    return picture and (picture, {"alt": describe(figure)})


def describe(figure: Figure) -> str:
    """What a figure shows, in words, for whoever cannot see it: titles, axes and legend of each panel."""
    panels = []
    for ax in figure.axes:
        x, y, title = ax.get_xlabel(), ax.get_ylabel(), ax.get_title()
        about = [title or ("Picture" if ax.images else "Plot")]
        if x or y:
            about.append(f"{y} against {x}" if x and y else x or y)
        for axis in (ax.yaxis, ax.xaxis):
            names = [text.get_text() for text in axis.get_ticklabels()
                     if re.search("[A-Za-z]{2}", text.get_text()) and "$" not in text.get_text()]  # 10⁵ in TeX
            if axis.get_visible() and names:
                about.append(f"for {', '.join(names)}")
        legend = ax.get_legend()
        if legend:
            about.append(f"legend: {', '.join(text.get_text() for text in legend.get_texts())}")
        panels.append("; ".join(about))
    # Rows of pictures without titles need no list of them.
    counted = [f"{words} ({count} times)" if count > 1 else words for words, count in Counter(panels).items()]
    words = ". ".join([text for text in (figure.get_suptitle(), *counted, figure.get_supxlabel()) if text])
    return " ".join(words.split())  # titles and labels of several lines


def label_of(model: str) -> str:
    """A model's name as figures and tables write it: "1.5k-dw" -> "1.5K-DW"; a network of your own keeps its name."""
    return MODELS[model].label if model in MODELS else model


def stamp(figure: Figure, profile: Profile) -> None:
    """Mark a figure whose numbers do not come from full recorded runs."""
    if profile.name != "full":
        figure.supxlabel(f"{profile.name} profile: a short run on few images, not a result", fontsize=9, color="0.35")


def show_images(images: Images, classes: tuple[str, ...], count: int = 10, captions: list[str] | None = None) -> Figure:
    """A row of the first `count` images (N, C, H, W) uint8, each under its class or a caption of its own."""
    count = min(count, len(images))
    figure, axes = plt.subplots(1, count, figsize=(1.0 * count, 1.5), squeeze=False)
    for index, ax in enumerate(axes.flat):
        ax.imshow(images.x[index].permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray_r")
        ax.set_title(captions[index] if captions else classes[images.y[index]], fontsize=10, weight="normal")
        ax.axis("off")
    return figure


def plot_layer_costs(costs: pd.DataFrame, axes: tuple[Axes, Axes]) -> tuple[Axes, Axes]:
    """Parameters and multiply-adds per layer, side by side; `costs` as from models.layer_costs."""
    palette = {kind: KIND_COLORS.get(kind, "0.5") for kind in costs["kind"]}
    for ax, column, title in zip(axes, ("parameters", "multiply_adds"), ("Parameters", "Multiply-adds, one image"),
                                 strict=True):
        sns.barplot(costs, y="layer", x=column, hue="kind", palette=palette, dodge=False, ax=ax,
                    legend=column == "multiply_adds")
        ax.set(title=title, xlabel="count", ylabel="")
        ax.xaxis.set_major_formatter(matplotlib.ticker.EngFormatter(sep=""))
    axes[1].set_yticklabels([])
    axes[1].legend(title=None, fontsize=9)
    return axes


def draw_network(network: nn.Module, image_shape: tuple[int, int, int], ax: Axes) -> Axes:
    """The network's parts from left to right as blocks: as high as their maps, as wide as they have channels.

    A part is a direct child of `network`, coloured by its depthwise convolution, if it has one,
    else by its layer with most parameters; without parameters (a pool, say) it is grey.
    Below it stands what it puts out. image_shape: (C, H, W).
    """
    parts = [("image", image_shape, "0.85", "")]

    def remember(part: nn.Module, _, output: torch.Tensor) -> None:
        layers = [layer for layer in part.modules() if not list(layer.children())]
        count = count_parameters(part)
        kinds = [kind_of(layer) for layer in sorted(layers, key=count_parameters)]
        kind = "depthwise convolution" if "depthwise convolution" in kinds else kinds[-1]
        color = KIND_COLORS.get(kind, "0.5") if count else "0.7"
        name = next(name for name, child in network.named_children() if child is part)
        parts.append((name, tuple(output.shape[1:]), color, f"{count:,}" if count else ""))

    hooks = [child.register_forward_hook(remember) for child in network.children()]
    was_training = network.training
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, *image_shape))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    left = 0.0
    for name, shape, color, count in parts:
        channels, side = shape[0], shape[1] if len(shape) > 1 else 1
        width, height = 0.35 + channels ** 0.5 / 8, 0.25 + side / image_shape[1]
        ax.add_patch(Rectangle((left, -height / 2), width, height, facecolor=color, edgecolor="white"))
        middle = left + width / 2
        size = " × ".join(str(number) for number in shape)
        ax.text(middle, -height / 2 - 0.06, size, rotation=90, ha="center", va="top", fontsize=9)
        ax.text(middle, height / 2 + 0.06, f"{name}  {count}", rotation=90, ha="center", va="bottom", fontsize=9)
        left += width + 0.12
    colors = {color for *_, color, _ in parts}
    words = {"depthwise convolution": "depthwise, then 1x1 convolution"}
    kinds = [Rectangle((0, 0), 1, 1, color=color, label=words.get(kind, kind))
             for kind, color in KIND_COLORS.items() if color in colors]
    ax.legend(handles=kinds, fontsize=9, ncols=3, loc="lower center", bbox_to_anchor=(0.5, -0.12))
    ax.set(xlim=(-0.1, left), ylim=(-1.6, 2.1),
           title="Above: parameters. Below: channels × height × width")
    ax.axis("off")
    return ax


def name_of(config: RunConfig) -> str:
    """A run's name in a legend: "1.5K-DW", "1.5K-DW, BlurPool"."""
    return ", ".join([label_of(config.model), *([labels_of(config.techniques)] if config.techniques else [])])


def style_of(config: RunConfig, beside_techniques: bool) -> dict:
    """Colour and line of a run: by its technique where techniques are compared, else by its model.

    The baseline beside techniques is grey and so, darker, are combinations; a network of your own is black.
    """
    if not beside_techniques:
        model = MODELS.get(config.model)
        return {"color": model.color if model else "black", "linestyle": model.linestyle if model else "-"}
    if len(config.techniques) == 1:
        return {"color": TECHNIQUES[config.techniques[0]].color, "linestyle": "-"}
    return {"color": "0.2" if config.techniques else "0.55", "linestyle": "-"}


def plot_curves(runs: list[RunRecord], ax: Axes, paper: bool = True) -> Axes:
    """Test accuracy by epoch, a thin line for each run, the paper's value dotted."""
    beside = any(run.config.techniques for run in runs)
    rows: dict[str, list[RunRecord]] = {}
    for run in runs:
        rows.setdefault(name_of(run.config), []).append(run)
    for name, of_row in rows.items():
        config = of_row[0].config
        style = style_of(config, beside)
        label = f"{name}, {len(of_row)} seed{'s' if len(of_row) > 1 else ''}"
        for run in of_row:
            accuracies = [row["test_accuracy_percent"] for row in run.epochs]
            ax.plot(range(1, len(accuracies) + 1), accuracies, linewidth=1.2, label=label, **style)
            label = None  # one entry in the legend
        value = accuracy_of(config.dataset, config.model, config.techniques)
        if paper and value is not None:
            # Thick enough to be seen on a line of the grid.
            ax.axhline(value, color=style["color"], linestyle=":", linewidth=2.2, label=f"paper: {value:.2f} %")
    ax.set(xlabel="Epoch", ylabel="Test accuracy (%)", title="Test accuracy after each epoch")
    label_epochs(ax.xaxis)
    if runs:
        ax.legend(fontsize=9, loc="lower right")
    return ax


def plot_loss(runs: list[RunRecord], ax: Axes) -> Axes:
    """Training and test loss by epoch of each run given, on a logarithmic axis."""
    beside = any(run.config.techniques for run in runs)
    for run in runs:
        epochs = range(1, len(run.epochs) + 1)
        for kind, style in (("train", "-"), ("test", ":")):
            ax.plot(epochs, [row[f"{kind}_loss"] for row in run.epochs], style, marker="o", markersize=4,
                    color=style_of(run.config, beside)["color"], label=f"{name_of(run.config)}, {kind}")
    ax.set(xlabel="Epoch", ylabel="Cross-entropy loss", title="Training and test loss", yscale="log")
    label_log_axis(ax.yaxis)
    label_epochs(ax.xaxis)
    if runs:
        ax.legend(fontsize=9)
    return ax


def plot_gains(table: pd.DataFrame, ax: Axes) -> Axes:
    """What each technique adds to the baseline: the paper's gain, and ours with its 95 % interval.

    table: as from tables.table_4 or table_5.
    """
    rows = table[[bool(row) for row in table["techniques"]]].reset_index(drop=True)
    ax.axvline(0, color="0.3", linewidth=1)
    ax.plot(rows["paper_gain"], rows.index, "D", color="0.3", markerfacecolor="white", label="paper", zorder=3)
    label = "ours, 95 % interval"
    for place, (techniques, gain) in enumerate(zip(rows["techniques"], rows["gain"], strict=True)):
        if gain is not None:
            color = TECHNIQUES[techniques[0]].color if len(techniques) == 1 else "0.2"
            half = gain.half_width if math.isfinite(gain.half_width) else None
            ax.errorbar(gain.points, place, xerr=half, fmt="o", color=color, capsize=4, label=label)
            label = None  # one entry in the legend
    ax.set(yticks=rows.index, yticklabels=[labels_of(row) for row in rows["techniques"]],
           xlabel="Points over the baseline", ylabel="", title="What each technique adds")
    ax.invert_yaxis()
    ax.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
    return ax


def plot_times(summary: pd.DataFrame, ax: Axes, title: str) -> Axes:
    """Horizontal bars: median milliseconds with quartiles; `summary` as from latency.ratios."""
    ax.barh(summary.index, summary["ms"], color=sns.color_palette("colorblind")[0],
            xerr=[summary["ms"] - summary["lower"], summary["upper"] - summary["ms"]], capsize=4)
    for place, (ms, upper, ratio) in enumerate(zip(summary["ms"], summary["upper"], summary["ratio"], strict=True)):
        ax.text(max(ms, upper), place, f"  {ms:.{2 if ms < 1 else 1}f} ms, ×{ratio:.2f}", va="center", fontsize=9)
    ax.set(xlabel="Milliseconds (median, quartiles)", title=title, xlim=(0, 1.45 * summary["upper"].max()))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    return ax


def plot_latency(passes: pd.DataFrame, ax: Axes) -> Axes:
    """Fig. 5: bars of seconds for one pass over the test images, with quartiles, and the paper's readings.

    passes: a row per model label; columns seconds (median), lower, upper (quartiles), paper.
    """
    colors = [model_of(row.model).color for row in TABLE_3 if row.label in passes.index]
    ax.barh(passes.index, passes["seconds"], color=colors, capsize=4, label="ours, median and quartiles",
            xerr=[passes["seconds"] - passes["lower"], passes["upper"] - passes["seconds"]])
    ax.plot(passes["paper"], range(len(passes)), "D", color="0.3", markerfacecolor="white",
            label="paper, another machine")
    ax.set(xlabel="Seconds for 10,000 test images", title="Latency of one pass, eager PyTorch, one thread")
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.legend(fontsize=9)
    return ax


def draw_convolution_costs(ax: Axes, c_in: int, c_out: int) -> Axes:
    """The arithmetic of the paper's Fig. 1 as areas: a 3x3 convolution beside its depthwise-separable form.

    Every small square is one weight. Left: c_out filters (rows) of c_in 3x3 slices. Right: one 3x3 slice
    per input channel, then a 1x1 filter (row) per output channel.
    """
    def draw(left: float, top: float, rows: int, side: int, kind: str, caption: str) -> None:
        for row in range(rows):
            for column in range(c_in):
                for weight in range(side * side):
                    corner = (left + 4 * column + weight % side, top + (side + 1) * row + weight // side)
                    ax.add_patch(Rectangle(corner, 0.8, 0.8, color=KIND_COLORS[kind], linewidth=0, snap=False))
        ax.text(left, top - 1.2, caption, color=KIND_COLORS[kind], fontsize=11)

    right = 4 * c_in + 6
    draw(0, 0, c_out, 3, "3x3 convolution", f"3×3 convolution: {c_in} × {c_out} × 9 = {9 * c_in * c_out}")
    draw(right, 0, 1, 3, "depthwise convolution", f"depthwise: {c_in} × 9 = {9 * c_in}")
    draw(right, 8, c_out, 1, "1x1 convolution", f"pointwise: {c_in} × {c_out} = {c_in * c_out}")
    ax.set(xlim=(-1, right + 4 * c_in + 4), ylim=(4 * c_out, -5), aspect="equal")
    ax.axis("off")
    return ax


def plot_climb(table: pd.DataFrame, ax: Axes, paper: float) -> Axes:
    """A ladder from its foot up: the accuracy after each rung and what it gained; hollow where it was not kept.

    A grey bar is as long as the 95 % interval of the gain.
    table: as from ladder.ladder_table. paper: the paper's best (%) within this budget of parameters.
    """
    done = table[[row is not None for row in table["ours"]]]
    percents = [row.mean_percent for row in done["ours"]]
    kept = [(percent, place) for percent, place in zip(percents, done.index, strict=True) if done["kept"][place]]
    ax.plot([percent for percent, _ in kept], [place for _, place in kept], color="0.7", linewidth=1)
    labelled = set()
    for place, percent in zip(done.index, percents, strict=True):
        entry, gain = model_of(done["model"][place]), done["gain"][place]
        ax.plot(percent, place, "o", color=entry.color, markerfacecolor=entry.color if done["kept"][place] else "white",
                label=None if entry.name in labelled else entry.label, markersize=9)
        labelled.add(entry.name)
        if gain is not None:
            if math.isfinite(gain.half_width):
                ax.errorbar(percent, place, xerr=gain.half_width, fmt="none", ecolor="0.8", elinewidth=4, zorder=0)
            ax.annotate(f"{gain.points:+.2f}", (percent, place), textcoords="offset points",
                        xytext=(0, 7), ha="center", fontsize=9,
                        bbox={"fc": "white", "ec": "none", "pad": 0.3, "alpha": 0.7})
    ax.axvline(paper, color="0.3", linestyle=":", label=f"the paper's best: {paper:.2f} %")
    ax.set(yticks=table.index, yticklabels=table["change"], xlabel="Test accuracy (%)", ylabel="",
           title="What each change brings", ylim=(-0.5, len(table) - 0.5))
    ax.margins(x=0.12)
    ax.legend(fontsize=9, loc="upper left")
    return ax


def label_epochs(axis: Axis) -> None:
    """Whole numbers, so that a usual last epoch, such as 12 or 20, is one of them."""
    axis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, steps=[1, 2, 4, 5, 10]))


def label_log_axis(axis: Axis) -> None:
    """Plain numbers at 1, 2 and 5 times each power of ten, and at some between them where the data span little.

    Call it when the data are drawn.
    """
    low, high = sorted(axis.get_view_interval())
    short = low > 0 and high / low < 10
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7) if short else (1, 2, 5)))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter(matplotlib.ticker.NullFormatter())
