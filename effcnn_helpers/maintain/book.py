"""The series as HTML pages with contents: Sphinx and MyST-NB, from the committed notebooks."""

import json
import re
import shutil
import tempfile
from pathlib import Path

from ..cli.run import find_notebooks
from ..settings import make_folder

# Formulas become MathML, which browsers draw by themselves: no page loads anything from elsewhere.
CONFIGURATION = """
project = html_title = "effcnn"
extensions = ["myst_nb", "effcnn_helpers.maintain.book"]
nb_execution_mode = "off"
nb_ipywidgets_js = {}
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
highlight_language = "none"
html_theme = "furo"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["book.css"]
html_copy_source = html_show_copyright = html_use_index = False
"""
# On a phone, a wide table or formula scrolls by itself instead of being cut off. pandas' tables get thin lines.
STYLE = """
.cell_output .output.text_html, math[display=block] { overflow-x: auto; }
.cell_output .dataframe { border: 0; border-collapse: collapse; font-size: var(--font-size--small); }
.cell_output .dataframe :is(th, td) { border: 0; border-bottom: 1px solid var(--color-table-border);
    padding: 0.25rem 0.5rem; text-align: right; }
"""
CONTENTS = """

```{toctree}
:hidden:
:glob:
:caption: The series
notebooks/[0-9]*
```

```{toctree}
:hidden:
:glob:
:caption: Solutions
notebooks/solutions/*
```
"""
DRAW_PAGE = Path("figures/draw.html")
# In the contents stands a page with nothing but a title; the page to draw on then takes its place.
DRAW = """

```{toctree}
:hidden:
:caption: Try it
draw
```
"""
MORE = """
```{{toctree}}
:hidden:
:caption: More
{pages}
```
"""


def book(out: Path) -> int:
    """Build the pages into `out`; 0 when Sphinx had nothing to warn of. Executes nothing.

    Raises RuntimeMissingError without Sphinx and what it needs, EffcnnError where `out` cannot be.
    """
    from ..runtimes import required

    for package in ("furo", "myst_nb"):
        required(package)
    sphinx = required("sphinx.cmd.build")
    series = find_notebooks(Path("notebooks"), [])
    pages = [*series, *sorted(Path("notebooks/solutions").glob("*.ipynb"))]
    make_folder(out.parent)
    # Sphinx works in a folder of its own: it leaves more than pages, and a faulty build must not
    # replace a good one.
    with tempfile.TemporaryDirectory(prefix=f"{out.name}-", dir=out.parent) as folder:
        source, built = Path(folder, "source"), Path(folder, "html")
        write_source(source, pages)
        if sphinx.main(["-q", "-W", "--keep-going", "-d", f"{folder}/doctrees", str(source), str(built)]):
            print("the book has the faults that are named above")
            return 1
        if DRAW_PAGE.is_file():
            shutil.copy(DRAW_PAGE, built / DRAW_PAGE.name)
        shutil.copytree(built, out, dirs_exist_ok=True)
    bare = [path.stem for path in series if not is_executed(path)]
    if bare:
        print(f"no outputs in {', '.join(bare)}; make refresh executes the notebooks")
    print(f"{len(pages)} notebooks; open {out / 'index.html'}")
    return 0


def write_source(folder: Path, notebooks: list[Path]) -> None:
    """What Sphinx reads: the README as first page with the contents, the files that it links to, the notebooks.

    Each keeps its place relative to the README, so that links and pictures are found.
    """
    readme = Path("README.md").read_text(encoding="utf-8")
    linked = [Path(target) for target in re.findall(r"\]\(([^)#]+)", readme) if "://" not in target]
    for path in {*notebooks, *filter(Path.is_file, linked)}:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path)
    for path in notebooks:
        (folder / path).write_text(with_alternative_texts(path.read_text(encoding="utf-8")), encoding="utf-8")
    more = "\n".join(path.with_suffix("").as_posix() for path in dict.fromkeys(linked) if path.suffix == ".md")
    contents = CONTENTS
    if DRAW_PAGE.is_file():
        contents += DRAW
        readme = readme.replace(f"]({DRAW_PAGE.as_posix()})", "](draw.md)")
        (folder / "draw.md").write_text("# A page to draw on\n", encoding="utf-8")
    contents += (MORE.format(pages=more) if more else "")
    (folder / "index.md").write_text(readme + contents, encoding="utf-8")
    (folder / "static").mkdir()
    (folder / "static/book.css").write_text(STYLE, encoding="utf-8")
    (folder / "conf.py").write_text(CONFIGURATION, encoding="utf-8")


def with_alternative_texts(notebook: str) -> str:
    """A notebook's JSON with its pictures' descriptions where MyST-NB looks for them: in the cell's metadata."""
    content = json.loads(notebook)
    for cell in content["cells"]:
        described = (output.get("metadata", {}).get("image/png", {}) for output in cell.get("outputs", []))
        words = " ".join(metadata["alt"] for metadata in described if "alt" in metadata)
        if words:
            cell["metadata"]["mystnb"] = {"image": {"alt": words}}
    return json.dumps(content)


def is_executed(path: Path) -> bool:
    """Whether any cell of the notebook has an output."""
    return any(cell.get("outputs") for cell in json.loads(path.read_text(encoding="utf-8"))["cells"])


def setup(app) -> None:
    """Sphinx calls this for each name in `extensions`: what it shall do otherwise than it does by itself."""
    app.connect("doctree-read", replace_remote_pictures)
    app.add_html_math_renderer("mathml", (write_formula, None), (write_formula, None))


def replace_remote_pictures(app, page) -> None:
    """A badge such as Colab's becomes the words that stand for it: its picture would need the network."""
    from docutils import nodes

    for image in list(page.findall(nodes.image)):
        if "://" in image["uri"]:
            image.replace_self(nodes.Text(image.get("alt", "")))


def write_formula(translator, node) -> None:
    """Add a formula to the page, converted from LaTeX by docutils; what docutils can't read is a warning."""
    from docutils import nodes
    from docutils.utils.math import MathError
    from docutils.utils.math.latex2mathml import tex2mathml
    from sphinx.util.logging import getLogger

    try:
        translator.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    except MathError as problem:
        getLogger(__name__).warning("formula %s: %s", node.astext(), problem, location=node)
    raise nodes.SkipNode
