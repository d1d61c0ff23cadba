"""The HTML edition: complete, linked, and drawn by a browser without a complaint."""

import functools
import json
import re
import sys
import threading
import warnings
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from sphinx.deprecation import RemovedInSphinx11Warning

from effcnn_helpers.maintain.book import book

ROOT = Path(__file__).parent.parent
NOTEBOOKS = [path.relative_to(ROOT).with_suffix("").as_posix() for path in
             sorted(ROOT.glob("notebooks/[0-9][0-9]_*.ipynb")) + sorted(ROOT.glob("notebooks/solutions/*.ipynb"))]
PAGES = ["index.html", *(f"{name}.html" for name in NOTEBOOKS), "draw.html", "CONTRIBUTING.html",
         "figures/RESULTS.html", "notebooks/INSTRUCTORS.html"]


CUT_OFF = """
function scrolls(e) {
    return e.tagName != "ARTICLE" && (getComputedStyle(e).overflowX == "auto" || scrolls(e.parentElement));
}
return [...document.querySelectorAll("article table, article pre, article img, article math")]
    .filter(e => e.getBoundingClientRect().right > innerWidth && !scrolls(e)).map(e => e.outerHTML.slice(0, 80));
"""  # what ends beyond the window's edge and has no scroll bar


def build(project: Path, out: Path) -> int:
    """`book`, called in that folder."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # MyST still uses what Sphinx 11 will do without; both are pinned.
        warnings.simplefilter("ignore", RemovedInSphinx11Warning)
        patch.chdir(project)
        return book(out)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    """The folder with the whole book. A warning of Sphinx is a failure."""
    out = tmp_path_factory.mktemp("build") / "book"
    assert build(ROOT, out) == 0
    return out


@pytest.fixture(scope="module")
def soups(pages) -> dict[Path, BeautifulSoup]:
    """Each page, parsed."""
    return {pages / name: BeautifulSoup((pages / name).read_text(encoding="utf-8"), "html.parser") for name in PAGES}


def cells(name: str, kind: str) -> list[dict]:
    text = (ROOT / f"{name}.ipynb").read_text(encoding="utf-8")
    return [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == kind]


def test_contents_list_every_notebook_in_order(pages, soups):
    listed = [link["href"] for link in soups[pages / "index.html"].select(".sidebar-tree a")]
    assert listed == PAGES[1:] and len(listed) >= 16
    for page, soup in soups.items():
        if page.name != "draw.html":
            assert len(soup.select(".sidebar-tree a")) == len(listed), page


def test_page_to_draw_on_is_the_one_among_the_figures(pages):
    assert (pages / "draw.html").read_bytes() == (ROOT / "figures/draw.html").read_bytes()


def test_links_of_the_readme_lead_to_pages(pages, soups):
    named = re.findall(r"\]\((notebooks/.*?)\.(?:ipynb|md)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    links = [link["href"] for link in soups[pages / "index.html"].select("article a[href^=notebooks]")]
    assert links == [f"{name}.html" for name in named] and named


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_page_has_the_notebooks_headings_cells_and_pictures(name, pages, soups):
    soup = soups[pages / f"{name}.html"]
    prose = "\n\n".join("".join(cell["source"]) for cell in cells(name, "markdown"))
    prose = re.sub(r"^```.*?^```", "", prose, flags=re.MULTILINE | re.DOTALL)
    for level in (1, 2, 3):
        expected = len(re.findall(rf"^#{{{level}}} ", prose, flags=re.MULTILINE))
        assert len(soup.select(f"article h{level}")) == expected, f"headings of level {level}"
    code = cells(name, "code")
    assert len(soup.select("article .cell_input")) == sum(any(cell["source"]) for cell in code)
    drawn = [output for cell in code for output in cell["outputs"] if "image/png" in output.get("data", {})]
    pictures = soup.select("article .cell_output img")
    assert len(pictures) == len(drawn)
    for picture, output in zip(pictures, drawn, strict=True):
        assert output["metadata"]["image/png"]["alt"] in picture["alt"]
    # Formulas are in the page as MathML; nothing is left for a script to convert.
    assert len(soup.select("math[display=block]")) == prose.count("$$") / 2
    assert not re.search(r"\\\(|\\\[|\\frac|\\text", soup.article.text)


def test_every_link_and_picture_leads_somewhere(pages, soups):
    lost = []
    for page, soup in soups.items():
        for tag in soup.select("a[href], img[src], script[src], link[href]"):
            url = urlsplit(tag.get("href") or tag.get("src"))
            if url.netloc and tag.name == "a" or url.scheme == "data":
                continue
            target = (page.parent / unquote(url.path)).resolve() if url.path else page
            found = not url.netloc and target.is_file() and pages in target.parents
            if found and url.fragment and target in soups:
                found = soups[target].find(id=unquote(url.fragment)) is not None
            if not found:
                lost.append((page.name, url.geturl()))
    assert lost == []


def test_pages_hold_no_state_of_widgets(pages):
    assert [page.name for page in pages.rglob("*.html") if "widget-state" in page.read_text(encoding="utf-8")] == []


def test_the_readmes_link_to_the_page_to_draw_on_leads_to_it(tmp_path):
    for folder in ("notebooks/solutions", "figures"):
        (tmp_path / folder).mkdir(parents=True)
    notebook = {"cells": [{"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# First\n"}],
                "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    for path in ("notebooks/00_first.ipynb", "notebooks/solutions/00_first_solutions.ipynb"):
        (tmp_path / path).write_text(json.dumps(notebook), encoding="utf-8")
    (tmp_path / "figures/draw.html").write_text("<p>the page", encoding="utf-8")
    (tmp_path / "README.md").write_text("# Title\n\n[draw](figures/draw.html)\n", encoding="utf-8")
    assert build(tmp_path, tmp_path / "book") == 0
    index = BeautifulSoup((tmp_path / "book/index.html").read_text(encoding="utf-8"), "html.parser")
    assert [link["href"] for link in index.select("article p a")] == ["draw.html"]
    assert (tmp_path / "book/draw.html").read_text(encoding="utf-8") == "<p>the page"


@pytest.mark.parametrize("fault", ["[lost](02_lost.ipynb)", r"$\nonsense{x}$"])
def test_a_fault_fails_and_leaves_the_old_book(fault, tmp_path, capfd):
    (tmp_path / "notebooks/solutions").mkdir(parents=True)
    (tmp_path / "README.md").write_text("# Title\n\n[first](notebooks/00_first.ipynb)\n", encoding="utf-8")
    cell = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": "# First\n"}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path, page = tmp_path / "notebooks/00_first.ipynb", tmp_path / "build/book/notebooks/00_first.html"
    for copy in (path, tmp_path / "notebooks/solutions/00_first_solutions.ipynb"):
        copy.write_text(json.dumps(notebook), encoding="utf-8")
    assert build(tmp_path, Path("build/book")) == 0
    assert "no outputs in 00_first" in capfd.readouterr().out
    before = page.read_bytes()
    cell["source"] += fault
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert build(tmp_path, Path("build/book")) == 1
    assert "00_first" in capfd.readouterr().err
    assert page.read_bytes() == before and [path.name for path in (tmp_path / "build").iterdir()] == ["book"]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "furo", None)
    with pytest.raises(ValueError, match="furo is not installed; .* -m pip install"):
        book(Path("build/book"))


@pytest.fixture(scope="module")
def server(pages):
    """The book's address on this machine's loopback."""
    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=pages)) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_browser_draws_every_page(server, browser):
    faults = []
    for name in PAGES:
        browser.get(f"{server}/{name}")
        broken = browser.execute_script("return [...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
        faults += [(name, source) for source in broken]
        for width in (1280, 400):
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                    {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})
            faults += [(name, f"cut off at {width} pixels: {tag}") for tag in browser.execute_script(CUT_OFF)]
        # Chromium asks each site for an icon; the book has none.
        faults += [(name, entry["message"]) for entry in browser.get_log("browser")
                   if entry["level"] == "SEVERE" and "/favicon.ico" not in entry["message"]]
    assert faults == []
