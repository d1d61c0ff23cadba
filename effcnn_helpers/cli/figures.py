"""Redraw the paper's figures from our own runs and tensors, as SVG and PNG."""

from pathlib import Path

import matplotlib

from ..models import MODELS
from ..plots import draw_convolution_costs, plot_curves, use_style
from ..records import table_runs


def figures(out: Path) -> int:
    """Draw every figure that there are recorded runs for into `out`; the same runs give the same files."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    use_style()
    out.mkdir(parents=True, exist_ok=True)

    figure, ax = plt.subplots(figsize=(8, 4.8))
    draw_convolution_costs(ax, c_in=8, c_out=12)
    save(figure, out / "fig1_depthwise_separable")

    for dataset, title, shape, limits in (("mnist", "MNIST", (2, 3), (96, 99.7)),
                                          ("cifar10", "CIFAR-10", (1, 2), (50, 90))):
        runs = {model: table_runs(model) for model in MODELS[dataset]}
        if not all(runs.values()):
            print(f"Fig. 6, {title}, waits for its runs: "
                  + ", ".join(model for model, found in runs.items() if not found))
            continue
        figure, axes = plt.subplots(*shape, figsize=(4 * shape[1], 3.25 * shape[0]), sharex=True, sharey=True)
        for ax, of_model in zip(axes.flat, runs.values(), strict=True):
            plot_curves(of_model, ax)
            ax.set(title=None, ylim=limits)
        figure.suptitle(f"{title}: test accuracy after each epoch", weight="bold")
        save(figure, out / f"fig6_training_curves_{dataset}")
    return 0


def save(figure, stem: Path) -> None:
    """Write `stem`.svg and `stem`.png, without the date and program that would change each time."""
    figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
    figure.savefig(stem.with_suffix(".png"), dpi=150, metadata={"Software": None})
    print(f"{stem}.svg, {stem}.png")
