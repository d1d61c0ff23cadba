"""The short versions that the notebooks teach, taken from their cells, against Composer's and torch's own.

Each test has a broken sibling: the same comparison must fail for a version with a plausible mistake.
"""

from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from torch import nn

from effcnn_helpers.techniques import CUTOUT_PIXELS, TECHNIQUES, one_cycle

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def own_version(technique: str, *mistake: str) -> dict:
    """What the notebook's own cell defines; `mistake`: (text, what replaces it) in its source."""
    [path] = NOTEBOOKS.glob(f"[0-9][0-9]_{technique}.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    [source] = [cell.source for cell in cells if "own-version" in cell.metadata.get("tags", [])]
    if mistake:
        assert mistake[0] in source, f"{path.name}: no {mistake[0]!r} to get wrong"
        source = source.replace(*mistake)
    names: dict = {}
    exec(source, names)
    return names


def assert_one_cycle(one_cycle_rate) -> None:
    for steps, highest in ((10, 0.1), (101, 3.0), (391, 0.003)):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
        schedule = one_cycle(optimizer, highest, steps)
        for step in range(steps):
            assert one_cycle_rate(step, steps, highest) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
            optimizer.step()
            schedule.step()


def assert_cutout(cutout) -> None:
    from composer.functional import cutout_batch

    for seed in range(50):
        for side in (28, 32):
            x = torch.randn(3, 2, side, side)
            np.random.seed(seed)
            theirs = cutout_batch(x, length=CUTOUT_PIXELS / side)
            np.random.seed(seed)
            assert torch.equal(cutout(x, CUTOUT_PIXELS), theirs)


def assert_blurpool(blur_max_pool) -> None:
    from composer.algorithms.blurpool.blurpool_layers import BlurMaxPool2d

    for shape in ((2, 1, 28, 28), (1, 12, 14, 14), (3, 5, 7, 9)):
        x = torch.randn(shape)
        torch.testing.assert_close(blur_max_pool(x), BlurMaxPool2d(kernel_size=2, stride=2)(x), atol=1e-6, rtol=0)


def assert_squeeze_excite(SqueezeExcite) -> None:
    from composer.algorithms.squeeze_excite.squeeze_excite import SqueezeExcite2d

    for channels, hidden in ((8, 1), (16, 2), (5, 5)):
        torch.manual_seed(0)
        theirs = SqueezeExcite2d(channels, hidden)
        ours = SqueezeExcite(channels, hidden)
        weights = [parameter for parameter in theirs.parameters()]
        assert [p.numel() for p in ours.parameters()] == [p.numel() for p in weights], "two layers without bias"
        for mine, given in zip(ours.parameters(), weights, strict=True):
            mine.data = given.data.reshape(mine.shape).clone()
        x = torch.randn(2, channels, 6, 4)
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=0)


CASES = {
    "one_cycle_lr": ("one_cycle_rate", assert_one_cycle),
    "cutout": ("cutout", assert_cutout),
    "blurpool": ("blur_max_pool", assert_blurpool),
    "squeeze_excite": ("SqueezeExcite", assert_squeeze_excite),
}


@pytest.mark.parametrize("technique", CASES)
def test_own_version_is_composers(technique):
    name, compare = CASES[technique]
    compare(own_version(technique)[name])


MISTAKES = {
    "one_cycle_lr": [("rise * steps - 1", "rise * steps"),  # the top one step late
                     ("last = first / end_factor", "last = highest / end_factor"),
                     ("math.pi * part", "math.pi * part / 2")],
    "cutout": [("max(0, row - half)", "row - half"),  # a negative start counts from the other end
               ("half = pixels // 2", "half = pixels"),
               ("row = np.random.randint(height)\n    column = np.random.randint(width)",
                "column = np.random.randint(width)\n    row = np.random.randint(height)")],
    "blurpool": [("stride=1", "stride=2"),  # nothing left to blur: the maximum is subsampled already
                 ("[1.0, 2.0, 1.0]) / 4", "[1.0, 1.0, 1.0]) / 3"),
                 ("padding=1", "padding=0")],
    "squeeze_excite": [("torch.relu(self.narrow(squeezed))", "self.narrow(squeezed)"),
                       ("x.mean(dim=(2, 3))", "x.amax(dim=(2, 3))"),
                       ("torch.sigmoid(", "torch.tanh(")],
}


@pytest.mark.parametrize("technique, mistake", [(name, mistake) for name in MISTAKES for mistake in MISTAKES[name]])
def test_own_version_with_a_mistake_is_found_out(technique, mistake):
    name, compare = CASES[technique]
    with pytest.raises((AssertionError, RuntimeError)):
        compare(own_version(technique, *mistake)[name])


def test_every_technique_with_a_notebook_has_its_own_version_tested():
    assert set(CASES) == {path.stem[3:] for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")} & set(TECHNIQUES)
