"""What a trained network sees in image files."""

import glob
import sys
from collections.abc import Iterator
from pathlib import Path

from ..own import classify, load_trained
from ..pictures import PictureError
from ..sources import files_below, is_hidden


def predict(model: Path, images: list[str]) -> int:
    """Print a line per image; 1 when there was one that could not be read, or none at all."""
    trained = load_trained(model)
    failed = False
    for path in (path for image in images for path in files_of(image)):
        try:
            (first, share), (second, other), *_ = classify(trained, path)
        except PictureError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed = True
        else:
            print(f"{path}  {first} {100 * share:.1f} %  ({second} {100 * other:.1f} %)", flush=True)
    return 1 if failed else 0


def files_of(image: str) -> Iterator[Path]:
    """The files that an argument means: a file, all of a folder, or a pattern that the shell left alone.

    Where there is none, the argument itself, so that its error is told.
    """
    path = Path(image)
    paths = [path] if path.exists() else [Path(name) for name in sorted(glob.glob(image, recursive=True))] or [path]
    for path in paths:
        if path.is_dir():
            files = [file for file in files_below(path) if not is_hidden(file)]
            yield from files or [path]
        else:
            yield path
