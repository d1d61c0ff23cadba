"""Re-measure every recorded run from its weights, on the real images."""

from pathlib import Path

import torch

from ..datasets import ImageDataset, load_images
from ..models import count_parameters
from ..records import RunRecord, all_runs, read_network, recorded_dir
from ..training import fresh_correct, predict, split_for

ALLOWED_FLIPS = 3
ALLOWED_GAP = 1e-3


def verify(quick: bool) -> int:
    """Check all recorded runs (`quick`: seed 0 on the first 1,000 images); 0 when every one holds."""
    runs = [run for run in all_runs() if not quick or run.config.seed == 0]
    if not runs:
        print(f"no recorded runs in {recorded_dir()}: nothing to verify")
        return 1
    datasets = {name: load_images(name) for name in sorted({run.config.dataset for run in runs})}
    missing = [dataset for dataset in datasets.values() if not dataset.real]
    for dataset in missing:
        print(f"the real {dataset.name} is not here (found: {dataset.source}); set EFFCNN_DATA_DIR to a folder with "
              f"{dataset.name}.npz: its runs cannot be verified")
    failed = 0
    for run in runs:
        if datasets[run.config.dataset].real:
            problems, notes = check_run(run, datasets[run.config.dataset], images=1_000 if quick else None)
            failed += bool(problems)
            print(f"{'FAILED' if problems else 'ok':6}  {run.config.name}  {run.accuracy_percent:.2f} %"
                  + "".join(f"\n        {line}" for line in problems + notes), flush=True)
    print(f"{len(runs)} runs: {failed} failed, {sum(not datasets[run.config.dataset].real for run in runs)} unverified"
          f"{', first 1,000 images of seed 0 only' if quick else ''}")
    return 1 if failed or missing else 0


def check_run(run: RunRecord, dataset: ImageDataset, images: int | None = None,
              root: Path | None = None) -> tuple[list[str], list[str]]:
    """(problems, notes) of one run, re-measured on the first `images` of its evaluation split (None: all).

    Rounding differs between processors: up to 3 images may be classified differently when the two top
    logits lie within 1e-3 there; they are named. Anything else is a problem. On all images the number that is right
    with fresh BatchNorm statistics is counted again, too.
    """
    network = read_network(run, root)
    problems = []
    if count_parameters(network) != run.parameters:
        problems.append(f"{count_parameters(network):,} parameters, recorded {run.parameters:,}")
    if dataset.sha256 != run.data["sha256"]:
        problems.append(f"trained and measured on other data: {run.data['source']}")
    whole = split_for(run.config, dataset)[1]
    if len(whole) != run.total:
        problems.append(f"recorded on {run.total:,} images, there are {len(whole):,}")
    test = whole.first(images)
    logits = predict(network, test, dataset.name)
    expected = test.y.clone()
    for index, taken in run.misclassified.items():
        if index < len(test):
            expected[index] = taken
            if taken == test.y[index]:
                problems.append(f"image {index} is listed as misclassified as {taken}, which is its label")
    top = logits.topk(2, dim=1).values
    gaps = top[:, 0] - top[:, 1]
    flipped = torch.nonzero(logits.argmax(dim=1) != expected).flatten().tolist()
    wide = [index for index in flipped if not gaps[index] < ALLOWED_GAP]
    if wide or len(flipped) > ALLOWED_FLIPS:
        problems.append(f"{len(flipped)} images are classified differently than recorded, {len(wide)} of them not "
                        f"by rounding: {flipped[:10]}{' …' if len(flipped) > 10 else ''}")
        return problems, []
    if images is None:
        fresh = fresh_correct(network, run.config, dataset)
        if run.fresh_correct is None or abs(fresh - run.fresh_correct) > ALLOWED_FLIPS:
            problems.append(f"{fresh:,} right with fresh BatchNorm statistics, recorded {run.fresh_correct}")
    return problems, [f"image {index} flips by rounding (gap {gaps[index]:.1e})" for index in flipped]
