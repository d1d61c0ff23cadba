"""Redraw the paper's figures from our own runs and tensors, and write its tables with ours beside them.

Figs. 1, 5 and 6 are drawn here, as SVG and PNG. Figs. 2 to 4, and what each technique adds, are what
notebooks draw in cells tagged "figure:NAME"; their last outputs are taken out, as PNG. slides/ holds the
picture that each notebook lets its reader move, as wide as a slide. draw.html is the page to draw on.
RESULTS.md holds the tables.
"""

import base64
import io
import re
from pathlib import Path

import matplotlib
import nbformat
from PIL import Image

from .. import settings
from ..cli.results import report
from ..cli.run import find_notebooks, write_whole
from ..draw_page import draw_page, missing_runs
from ..latency import latency_path, passes_by_model, read_latency
from ..paper import TABLE_3
from ..plots import draw_convolution_costs, plot_curves, plot_latency, use_style
from ..records import table_runs

RESULTS = """\
# Results

Every table of the paper with our numbers beside it, from the recorded runs in `effcnn_helpers/recorded`.
`make figures` writes this page; `python -m effcnn_helpers results` prints the same.

*Reproduced*: ours and the paper's reading differ by no more than two standard errors of 10,000 test images.
*Within noise*: by more, but not by more than the luck of images and seeds explains (95 %). *Not reproduced*,
*exceeded*: ours is lower or higher even so. The rule is `effcnn_helpers.statistics.verdict`. *Effect*: whether the
95 % interval of our gain over our own baseline leaves 0 out. With 31 rows and 23 effects, expect one or two of each to
be judged wrongly by chance alone.

"""


def figures(out: Path) -> int:
    """Draw every figure that there are recorded runs for into `out`; the same runs give the same files."""
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    use_style()
    settings.make_folder(out)

    figure, ax = plt.subplots(figsize=(8, 4.8))
    draw_convolution_costs(ax, c_in=8, c_out=12)
    save(figure, out / "fig1_depthwise_separable")

    for dataset, title, shape, limits in (("mnist", "MNIST", (2, 3), (96, 99.7)),
                                          ("cifar10", "CIFAR-10", (1, 2), (50, 90))):
        runs = {row.model: table_runs(row.model) for row in TABLE_3 if row.dataset == dataset}
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
    if latency_path().exists():
        figure, ax = plt.subplots(figsize=(7.5, 4))
        plot_latency(passes_by_model(read_latency()), ax)
        save(figure, out / "fig5_latency")
    else:
        print("Fig. 5 waits for a measurement: python -m effcnn_helpers bench --full")
    take_from_notebooks(Path("notebooks"), out)
    draw_slides(Path("notebooks"), out / "slides")
    if missing_runs():
        print(f"The page to draw on waits for its runs: {', '.join(missing_runs())}")
    else:
        write_whole(out / "draw.html", draw_page())
        print(out / "draw.html")
    write_whole(out / "RESULTS.md", RESULTS + report("markdown") + "\n")
    print(out / "RESULTS.md")
    return 0


def take_from_notebooks(notebooks: Path, out: Path) -> None:
    """Write the picture of each cell tagged "figure:NAME" to out/NAME.png. Raises ValueError where there are none."""
    for path in find_notebooks(notebooks, []):
        for cell in nbformat.read(path, as_version=4).cells:
            for name in (tag.removeprefix("figure:") for tag in cell.metadata.get("tags", []) if "figure:" in tag):
                pictures = pictures_of(cell)
                if not pictures:
                    print(f"{name} waits for notebook {path.stem[:2]} to be executed: make refresh")
                    continue
                (out / f"{name}.png").write_bytes(pictures[0])
                print(out / f"{name}.png")


def pictures_of(cell: nbformat.NotebookNode) -> list[bytes]:
    """The PNG files among a cell's outputs."""
    return [base64.b64decode(output.data["image/png"]) for output in cell.get("outputs", [])
            if "image/png" in output.get("data", {})]


def draw_slides(notebooks: Path, out: Path) -> None:
    """For each notebook its moving picture, at rest, under title and question: out/NN.png, 1920 x 1080."""
    import matplotlib.pyplot as plt

    out.mkdir(parents=True, exist_ok=True)
    for path in find_notebooks(notebooks, []):
        cells = nbformat.read(path, as_version=4).cells
        pictures = [picture for cell in cells if re.search(r"^touch\(", cell.source, re.MULTILINE)
                    for picture in pictures_of(cell)]
        if not pictures:
            print(f"The slide of notebook {path.stem[:2]} waits for its picture: make refresh")
            continue
        title, question = re.findall(r"^(?:# |\*\*)(.*?)(?:\*\*)?$", cells[0].source, re.MULTILINE)[:2]
        figure = plt.figure(figsize=(16, 9), layout="none")
        figure.text(0.04, 0.93, title, fontsize=34, weight="bold", va="center")
        figure.text(0.04, 0.86, question, fontsize=20, color="0.35", va="center")
        ax = figure.add_axes((0.04, 0.04, 0.92, 0.77))
        ax.imshow(plt.imread(io.BytesIO(pictures[0])), interpolation="lanczos")
        ax.axis("off")
        slide = io.BytesIO()
        figure.savefig(slide, dpi=120)
        plt.close(figure)
        # 256 colours are enough for a plot, and a quarter of the bytes.
        Image.open(slide).convert("RGB").quantize(256).save(out / f"{path.stem[:2]}.png", optimize=True)
    print(out)


def save(figure, stem: Path) -> None:
    """Write `stem`.svg and `stem`.png, without the date and program that would change each time."""
    figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None, "Creator": None})
    figure.savefig(stem.with_suffix(".png"), dpi=150, metadata={"Software": None})
    print(f"{stem}.svg, {stem}.png")
