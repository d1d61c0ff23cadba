"""Write the repository's address and the version, which pyproject.toml holds, wherever else they stand.

That is the cell that installs the package on Colab, the badge that opens a notebook there, the README and
CITATION.cff. A fork changes one line of pyproject.toml and calls this; so does a new version,
whose tag (v and the version) the cell installs.
"""

import re
import tomllib
from pathlib import Path

import nbformat

from ..cli.run import find_notebooks, write_whole
from ..errors import EffcnnError

COLAB = "https://colab.research.google.com/github"


def address() -> int:
    """Rewrite the files in the current folder; returns 0. Raises EffcnnError in another folder."""
    project = Path("pyproject.toml")
    if not project.is_file():
        raise EffcnnError(f"no pyproject.toml in {Path.cwd()}; run this from the project's folder")
    about = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    repository = about["urls"]["Repository"]
    name = name_of(repository)
    tagged = f"{repository}@v{about['version']}"
    series = find_notebooks(Path("notebooks"), [])
    for path in [*series, *sorted(Path("notebooks/solutions").glob("*.ipynb"))]:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.source = re.sub(r'(effcnn @ git\+)[^"]+', rf"\g<1>{tagged}", cell.source)
        if path in series:
            opening = notebook.cells[0]
            opening.source = f"{without_badge(opening.source)}\n\n{badge(repository, path.name)}"
        write_if_changed(path, nbformat.writes(notebook) + "\n")
    for path in (Path("README.md"), Path("CITATION.cff")):
        text = path.read_text(encoding="utf-8")
        text = re.sub(rf"{COLAB}/[^/]+/[^/]+/", f"{COLAB}/{name}/", text)
        write_if_changed(path, re.sub(r"(repository-code: |git clone )\S+", rf"\g<1>{repository}", text))
    return 0


def name_of(repository: str) -> str:
    """owner/name of a GitHub address. Raises EffcnnError for another one, which Colab cannot open."""
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", repository)
    if not found:
        raise EffcnnError(f"Repository in pyproject.toml is {repository!r}; use https://github.com/OWNER/NAME")
    return found[1]


def badge(repository: str, notebook: str) -> str:
    """Markdown of the button that opens a notebook of the series on Colab."""
    return (f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
            f"({COLAB}/{name_of(repository)}/blob/main/notebooks/{notebook})")


def without_badge(source: str) -> str:
    return re.sub(r"\s*\[!\[Open in Colab\].*$", "", source)


def write_if_changed(path: Path, text: str) -> None:
    if text != path.read_text(encoding="utf-8"):
        write_whole(path, text)
        print(path)
