"""`python -m effcnn_helpers.complete_install [EXTRA ...]`: what effcnn needs, beside a torch that stays as it is.

For Colab and the like: Composer pins an older torch than the one there, yet runs on it. So Composer is
installed without its dependencies, then whatever effcnn and Composer need and is missing; packages that
are there stay as they are. Uses the standard library alone, as nothing else may be there yet.
"""

import importlib.metadata
import re
import subprocess
import sys


def is_installed(name: str) -> bool:
    """Whether a distribution is there, in any version."""
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def missing_requirements(distribution: str, extras: tuple[str, ...] = ()) -> list[str]:
    """The requirements of an installed distribution, and of these extras, that no version of is installed."""
    needed = []
    for line in importlib.metadata.requires(distribution) or []:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"]([\w.-]+)", marker)
        if extra is None:
            needed.append(line)  # pip reads other markers by itself
        elif extra[1] in extras:
            needed.append(requirement.strip())
    return [line for line in needed if not is_installed(re.match(r"[\w.-]+", line)[0])]


def pip_install(*arguments: str) -> None:
    """Run pip for this Python; CalledProcessError when it fails."""
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *arguments], check=True)


if __name__ == "__main__":
    composer = [line for line in missing_requirements("effcnn") if line.startswith("mosaicml")]
    if composer:
        pip_install("--no-deps", *composer)
    rest = missing_requirements("effcnn", tuple(sys.argv[1:])) + missing_requirements("mosaicml")
    if rest:
        pip_install(*rest)
    print(f"installed beside torch {importlib.metadata.version('torch')}: {', '.join(composer + rest) or 'nothing'}")
