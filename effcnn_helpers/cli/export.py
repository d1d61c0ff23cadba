"""Write a trained run as files for another runtime."""

from pathlib import Path

from ..datasets import DATASETS, load_images
from ..errors import EffcnnError
from ..export import export as export_run
from ..export import find_run
from ..own import load_trained, own_dataset


def export(run: str, to: str, out: Path, images: str | None) -> int:
    """Write, run the result on test images beside PyTorch, and print files, bytes and what it answers.

    images: the folder (or what else `own_dataset` takes) that a network of your own was trained on.
    Raises EffcnnError for an unknown run, a runtime that is not installed, a network that cannot be written.
    """
    trained = load_trained(find_run(run))
    if images:
        dataset = own_dataset(images, trained.spec.image_shape, seed=trained.record.config.seed).dataset
    elif trained.spec.name in DATASETS:
        dataset = load_images(trained.spec)
    else:
        raise EffcnnError(f"{run} was trained on images of your own; name their folder with --images, as a few of "
                          "them are needed to try what was written")
    done = export_run(trained, to, out, dataset)
    for path in done.files:
        print(f"{path.stat().st_size:10,} bytes  {path}")
    if to == "page":
        print("open it in a browser: it takes pictures, and compares its answers to some test images with PyTorch's")
        return 0
    mean, std = (numbers[0] if len(numbers) == 1 else numbers for numbers in (trained.spec.mean, trained.spec.std))
    print("takes pixels from 0 to 255, normalises them itself" if to.startswith("c") else
          f"takes (pixels / 255 - {mean}) / {std}, float32 (N, C, H, W)")
    if not done.images:
        print("not run: there is no C compiler here (cc, gcc, clang)")
        return 0
    print(f"answers {done.others:,} of {done.images:,} test images otherwise than PyTorch, "
          f"{done.correct:,} right (PyTorch: {done.correct_in_torch:,}); images: {dataset.source}")
    return 0
