"""The short versions that the notebooks teach, taken from their cells, against Composer's and torch's own.

Each test has a broken sibling: the same comparison must fail for a version with a plausible mistake.
"""

import copy
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from torch import nn

from effcnn_helpers import batches
from effcnn_helpers.batches import CROP_PIXELS
from effcnn_helpers.models import build_model
from effcnn_helpers.techniques import CUTOUT_PIXELS, TECHNIQUES, one_cycle

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def own_version(technique: str, *mistake: str) -> SimpleNamespace:
    """What the notebook's own cell defines, by name; `mistake`: (text, what replaces it) in its source."""
    [path] = NOTEBOOKS.glob(f"[0-9][0-9]_{technique}.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    [source] = [cell.source for cell in cells if "own-version" in cell.metadata.get("tags", [])]
    if mistake:
        assert mistake[0] in source, f"{path.name}: no {mistake[0]!r} to get wrong"
        source = source.replace(*mistake)
    names: dict = {}
    exec(source, names)
    return SimpleNamespace(**names)


def assert_one_cycle(own) -> None:
    for steps, highest in ((10, 0.1), (101, 3.0), (391, 0.003)):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
        schedule = one_cycle(optimizer, highest, steps)
        for step in range(steps):
            assert own.one_cycle_rate(step, steps, highest) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
            optimizer.step()
            schedule.step()


def assert_cutout(own) -> None:
    from composer.functional import cutout_batch

    for seed in range(50):
        for side in (28, 32):
            x = torch.randn(3, 2, side, side)
            np.random.seed(seed)
            theirs = cutout_batch(x, length=CUTOUT_PIXELS / side)
            np.random.seed(seed)
            assert torch.equal(own.cutout(x, CUTOUT_PIXELS), theirs)


def assert_blurpool(own) -> None:
    from composer.algorithms.blurpool.blurpool_layers import BlurMaxPool2d

    for shape in ((2, 1, 28, 28), (1, 12, 14, 14), (3, 5, 7, 9)):
        x = torch.randn(shape)
        torch.testing.assert_close(own.blur_max_pool(x), BlurMaxPool2d(kernel_size=2, stride=2)(x), atol=1e-6, rtol=0)


def assert_squeeze_excite(own) -> None:
    from composer.algorithms.squeeze_excite.squeeze_excite import SqueezeExcite2d

    for channels, hidden in ((8, 1), (16, 2), (5, 5)):
        torch.manual_seed(0)
        theirs = SqueezeExcite2d(channels, hidden)
        ours = own.SqueezeExcite(channels, hidden)
        weights = [parameter for parameter in theirs.parameters()]
        assert [p.numel() for p in ours.parameters()] == [p.numel() for p in weights], "two layers without bias"
        for mine, given in zip(ours.parameters(), weights, strict=True):
            mine.data = given.data.reshape(mine.shape).clone()
        x = torch.randn(2, channels, 6, 4)
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=0)


def assert_mixup(own) -> None:
    from composer.functional import mixup_batch

    for seed in range(20):
        torch.manual_seed(seed)
        x, y, logits = torch.randn(16, 3, 8, 8), torch.randint(10, (16,)), torch.randn(16, 10)
        results = []
        for blend in (own.mixup, mixup_batch):
            np.random.seed(seed)
            torch.manual_seed(seed)
            results.append(blend(x, y, alpha=0.2))
        (ours, y_ours, share), (theirs, y_theirs, their_share) = results
        assert torch.equal(ours, theirs) and torch.equal(y_ours, y_theirs) and share == their_share
        hard, partner = (nn.functional.one_hot(label, 10) for label in (y, y_theirs))
        blended = nn.functional.cross_entropy(logits, (1 - their_share) * hard + their_share * partner)
        torch.testing.assert_close(own.mixup_loss(logits, y, y_theirs, their_share), blended)


def assert_label_smoothing(own) -> None:
    from composer.functional import smooth_labels

    for classes in (2, 10, 100):
        logits, y = 3 * torch.randn(32, classes), torch.randint(classes, (32,))
        for smoothing in (0.0, 0.1, 1.0):
            theirs = smooth_labels(logits, y, smoothing=smoothing)
            assert torch.equal(own.smooth_labels(y, classes, smoothing), theirs)
            torch.testing.assert_close(own.smoothed_loss(logits, y, smoothing),
                                       nn.functional.cross_entropy(logits, theirs))


def assert_sam(own) -> None:
    from composer.algorithms.sam import SAMOptimizer

    torch.manual_seed(0)
    ours = build_model("1.5k-dw").double()  # in single precision rounding may flip a ReLU
    theirs = copy.deepcopy(ours)
    optimizer, inner = (torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9) for network in (ours, theirs))
    wrapped = SAMOptimizer(inner, rho=0.05)
    for _ in range(3):
        x, y = torch.randn(32, 1, 28, 28, dtype=torch.float64), torch.randint(10, (32,))

        def closure(ddp_sync=True, loss_dict=None, x=x, y=y):
            wrapped.zero_grad()
            loss = nn.functional.cross_entropy(theirs(x), y)
            loss.backward()
            return loss.item()

        assert own.sam_step(ours, optimizer, x, y, rho=0.05) == pytest.approx(wrapped.step(closure))
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name], msg=name)


def assert_swa(own) -> None:
    from torch.optim.swa_utils import AveragedModel, update_bn

    torch.manual_seed(0)
    networks = [build_model("1.5k-dw") for _ in range(3)]
    batches = [(torch.randn(16, 1, 28, 28), None) for _ in range(3)]
    running = AveragedModel(networks[0])
    for network in networks:
        running.update_parameters(network)
        network(torch.randn(16, 1, 28, 28))  # so that no two have the same statistics
    update_bn(batches, running.module)
    before = copy.deepcopy(networks[-1].state_dict())
    ours = own.refresh_statistics(own.average_weights(networks), batches)
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, running.module.state_dict()[name], atol=1e-6, rtol=1e-4, msg=name)
        assert torch.equal(networks[-1].state_dict()[name], before[name]), "the networks themselves stay as they are"
    assert {module.momentum for module in ours.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}
    assert not ours.training


def assert_beyond_the_paper(own) -> None:
    x = torch.randn(50, 3, 32, 24)
    mirrored = torch.rand(50, generator=torch.Generator().manual_seed(1)) < 0.5
    assert torch.equal(own.flip(x, mirrored), batches.flip(x, torch.Generator().manual_seed(1)))
    down, right = torch.randint(2 * CROP_PIXELS + 1, (2, 50), generator=torch.Generator().manual_seed(2))
    assert torch.equal(own.crop(x, down, right, CROP_PIXELS), batches.crop(x, torch.Generator().manual_seed(2)))


CASES = {
    "one_cycle_lr": assert_one_cycle,
    "cutout": assert_cutout,
    "blurpool": assert_blurpool,
    "squeeze_excite": assert_squeeze_excite,
    "mixup": assert_mixup,
    "label_smoothing": assert_label_smoothing,
    "sam": assert_sam,
    "swa": assert_swa,
    "beyond_the_paper": assert_beyond_the_paper,
}


@pytest.mark.parametrize("technique", CASES)
def test_own_version_is_composers(technique):
    CASES[technique](own_version(technique))


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
    "mixup": [("min(share, 1 - share)", "max(share, 1 - share)"),  # the partner's share taken for the image's own
              ("x[partner], y[partner]", "x[partner], y"),
              ("return (1 - share) * F.cross_entropy(logits, y) + share *",
               "return share * F.cross_entropy(logits, y) + (1 - share) *")],
    "label_smoothing": [("smoothing / classes", "smoothing / (classes - 1)"),
                        ("(1 - smoothing) * hard", "hard"),
                        (".sum(dim=1).mean()", ".mean()")],
    "sam": [("rho * part / length", "rho * part"),
            ("weight.sub_(climb)", "weight.sub_(0 * climb)"),  # never comes back
            ("length = torch.stack([part.norm() for part in gradients]).norm()",
             "length = max(part.norm() for part in gradients)"),
            ("optimizer.zero_grad()", "pass")],  # the gradients pile up
    "swa": [("norm.momentum = None", "norm.momentum = 0.1"),
            ("norm.reset_running_stats()", "pass"),
            ("copy.deepcopy(networks[-1])", "networks[-1]"),
            ("mean(dim=0)", "sum(dim=0)")],
    "beyond_the_paper": [("flip(-1)", "flip(-2)"), ('mode="reflect"', 'mode="replicate"'),
                         ("zip(padded, down, right)", "zip(padded, right, down)")],
}


@pytest.mark.parametrize("technique, mistake", [(name, mistake) for name in MISTAKES for mistake in MISTAKES[name]])
def test_own_version_with_a_mistake_is_found_out(technique, mistake):
    own = own_version(technique, *mistake)
    with pytest.raises((AssertionError, RuntimeError)):
        CASES[technique](own)


def test_every_technique_with_a_notebook_has_its_own_version_tested():
    assert set(CASES) - {"beyond_the_paper"} == {
        path.stem[3:] for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")} & set(TECHNIQUES)
