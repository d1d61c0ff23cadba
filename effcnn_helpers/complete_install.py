"""`python -m effcnn_helpers.complete_install [EXTRA ...]`: what effcnn needs, torch left as it is.

For Colab and the like: Composer pins an older torch than the one there, yet runs on it. So Composer
is installed without its dependencies, then whatever effcnn and Composer need and is missing;
packages that are there stay as they are. Uses the standard library alone, as nothing else may be
there yet.
"""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]


def is_installed(name: str) -> bool:
    """Whether a distribution is there, in any version."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def name_of(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0]


def missing(requirements: list[str]) -> list[str]:
    """The requirements that no version of is installed."""
    return [line for line in requirements if not is_installed(name_of(line))]


def missing_requirements(distribution: str, extras: tuple[str, ...] = ()) -> list[str]:
    """What an installed distribution, with these extras, requires and no version of is there."""
    needed = []
    for line in importlib.metadata.requires(distribution) or []:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"]([\w.-]+)", marker)
        if extra is None:
            needed.append(line)  # pip reads other markers by itself
        elif extra[1] in extras:
            needed.append(requirement.strip())
    return missing(needed)


def checkouts_project() -> dict | None:
    """The [project] of pyproject.toml beside this package; None where it is installed as a copy."""
    path = CHECKOUT / "pyproject.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))["project"] if path.is_file() else None


def missing_here(extras: tuple[str, ...] = ()) -> list[str]:
    """What this copy of effcnn, with these extras, requires and no version of is there."""
    project = checkouts_project()
    if project is None:
        return missing_requirements("effcnn", extras)
    needed = [project["optional-dependencies"][extra] for extra in extras]
    return missing(sum(needed, project["dependencies"]))


def version() -> str:
    """effcnn's version: the checkout's own, or the installed one."""
    project = checkouts_project()
    return project["version"] if project else importlib.metadata.version("effcnn")


def complete(extras: tuple[str, ...] = ()) -> None:
    """Install what is missing. Raises CalledProcessError when pip fails."""
    composer = [line for line in missing_here() if line.startswith("mosaicml")]
    if composer:
        pip_install("--no-deps", *composer)
    rest = missing_here(extras) + missing_requirements("mosaicml")
    if rest:
        pip_install(*rest)
    installed = ", ".join(composer + rest) or "nothing"
    print(f"installed beside torch {importlib.metadata.version('torch')}: {installed}")


def pip_install(*arguments: str) -> None:
    """Run pip for this Python."""
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *arguments], check=True)


def ready(package: str) -> None:
    """For a notebook's first cell. Installs what is missing; says when versions differ.

    package: what the cell would have installed; it ends in @v and the version of the notebook.
    Raises ModuleNotFoundError in a checkout, where a kernel without the packages is the wrong one.
    """
    lacking = missing_here()
    if lacking and checkouts_project():
        raise ModuleNotFoundError(
            f"This notebook runs with {sys.executable}, which lacks "
            f"{', '.join(name_of(line) for line in lacking)}. Choose the kernel of the project's "
            f".venv (Kernel > Change Kernel), or install them: in {CHECKOUT}, "
            f"{sys.executable} -m effcnn_helpers.complete_install")
    if lacking:
        complete()
    wanted = package.rpartition("@v")[2]
    if wanted != version():
        print(f"This notebook is of effcnn {wanted}, the package of {version()} "
              f"({CHECKOUT}): they may not fit together.")


if __name__ == "__main__":
    complete(tuple(sys.argv[1:]))
