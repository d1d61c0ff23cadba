"""Batches: normalised as the plain formula says, augmented within bounds, in an order that a resumed run meets again.

The augmentations are read off pictures whose pixels say where they are: what comes out tells where it came from.
"""

import itertools
from collections import Counter

import pytest
import torch

from effcnn_helpers import batches
from effcnn_helpers.batches import AUGMENTATIONS, BatchLoader, affine, crop, flip, hole, normalise
from effcnn_helpers.datasets import DATASETS, Images, load_images
from effcnn_helpers.errors import EffcnnError

every_augmentation = pytest.mark.parametrize("name", AUGMENTATIONS)


def drawing(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def places(count: int, side: int = 28) -> torch.Tensor:
    """Images (count, 2, side, side) whose pixels hold their own row and column, as seen from the middle."""
    steps = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
    return torch.stack(torch.meshgrid(steps, steps, indexing="ij")).repeat(count, 1, 1, 1)


# Normalising


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_normalise_equals_the_plain_formula(name):
    mean, std = DATASETS[name].mean, DATASETS[name].std
    x = torch.arange(2 * len(mean) * 9, dtype=torch.uint8).view(2, len(mean), 3, 3) * 4
    expected = [[[(value / 255 - mean[c]) / std[c] for value in channel] for c, channel in enumerate(image)]
                for image in x.flatten(2).tolist()]
    torch.testing.assert_close(normalise(x, name).flatten(2), torch.tensor(expected), atol=1e-5, rtol=0)
    assert torch.equal(normalise(x, name), normalise(x, DATASETS[name]))
    assert x.dtype == torch.uint8


def test_normalised_digits_are_about_standard(digits):
    x = normalise(digits.train.x, "mnist")
    assert abs(x.mean()) < 0.05 and abs(x.std() - 1) < 0.05


# Augmentations


@every_augmentation
def test_augmentation_draws_from_its_generator_alone_and_leaves_its_images_as_they_are(name):
    x = torch.randn(8, 3, 32, 32, generator=drawing(1))
    before, state = x.clone(), torch.get_rng_state()
    first, again, other = (AUGMENTATIONS[name](x, drawing(seed)) for seed in (2, 2, 3))
    assert first.shape == x.shape and first.dtype == x.dtype
    assert torch.equal(first, again)
    assert not torch.equal(first, other) and not torch.equal(first, x)
    assert torch.equal(x, before) and torch.equal(torch.get_rng_state(), state)


def test_flip_mirrors_about_half_of_the_images_and_keeps_every_pixel():
    x = torch.randn(400, 2, 5, 6, generator=drawing())
    mirrored = x[:, :, :, [5, 4, 3, 2, 1, 0]]
    flipped = flip(x, drawing(1))
    as_before = (flipped == x).flatten(1).all(dim=1)
    as_in_a_mirror = (flipped == mirrored).flatten(1).all(dim=1)
    assert torch.all(as_before ^ as_in_a_mirror)
    assert 160 < as_before.sum() < 240
    assert torch.equal(flipped.flatten(1).sort().values, x.flatten(1).sort().values)


def test_crop_shifts_each_image_by_up_to_four_pixels_and_reflects_its_edge():
    count, side = 2_000, 28
    moved = crop(places(count), drawing()) + (side - 1) / 2  # back to row and column numbers
    counts = Counter()
    for image in moved.round().long():
        down, right = image[0, 14, 14].item() - 14, image[1, 14, 14].item() - 14
        for channel, shift in ((image[0], down), (image[1].T, right)):
            # Without the edge's own pixel, as a mirror on it would show the picture: 2 1 | 0 1 2
            expected = [min(abs(at + shift), 2 * (side - 1) - abs(at + shift)) for at in range(side)]
            assert torch.equal(channel, torch.tensor(expected).view(-1, 1).expand(side, side))
        counts[down, right] += 1
    assert set(counts) == set(itertools.product(range(-4, 5), repeat=2)), "each shift, down and right on their own"


def test_affine_turns_scales_and_shifts_each_image_within_its_bounds():
    """Bilinear sampling of a slope is exact, so an output's pixels tell where in the image they were taken."""
    count, middle = 3_000, slice(8, 20)  # away from the edge, where nothing from outside comes in
    targets = places(1)[0, :, middle, middle].flatten(1)
    taken = affine(places(count), drawing())[:, :, middle, middle].flatten(2)
    known = torch.cat([targets, torch.ones(1, targets.shape[1])]).T
    solved = torch.linalg.lstsq(known.expand(count, -1, -1), taken.transpose(1, 2)).solution  # (count, 3, 2)
    torch.testing.assert_close(known @ solved, taken.transpose(1, 2), atol=1e-3, rtol=0)

    (rows_down, columns_down), (rows_right, columns_right) = solved[:, 0].T, solved[:, 1].T
    torch.testing.assert_close(rows_down, columns_right, atol=1e-4, rtol=0)  # neither sheared nor stretched
    torch.testing.assert_close(rows_right, -columns_down, atol=1e-4, rtol=0)
    angle = torch.rad2deg(torch.atan2(rows_right, rows_down))
    scale = torch.hypot(rows_down, rows_right)
    for drawn, least, most in ((angle, -10, 10), (scale, 0.9, 1.1), (solved[:, 2, 0], -2, 2), (solved[:, 2, 1], -2, 2)):
        reach = (most - least) / 2
        assert least - 1e-3 <= drawn.min() < least + 0.02 * reach
        assert most - 0.02 * reach < drawn.max() <= most + 1e-3
        assert abs(drawn.mean() - (least + most) / 2) < 0.05 * reach
    together = torch.corrcoef(torch.stack([angle, scale, solved[:, 2, 0], solved[:, 2, 1]])) - torch.eye(4)
    assert together.abs().max() < 0.08, "each is drawn on its own"


def test_affine_without_turn_scale_or_shift_changes_nothing(monkeypatch):
    for name in ("AFFINE_DEGREES", "AFFINE_SCALE", "AFFINE_PIXELS"):
        monkeypatch.setattr(batches, name, 0)
    x = torch.randn(20, 3, 32, 32, generator=drawing())
    torch.testing.assert_close(affine(x, drawing(1)), x, atol=1e-4, rtol=0)


def test_affine_fills_with_the_edge():
    x = torch.full((50, 1, 28, 28), -3.5)
    torch.testing.assert_close(affine(x, drawing()), x)


def test_hole_is_a_square_of_ten_pixels_at_a_place_of_its_own_in_each_image():
    count, side = 3_000, 32
    x = torch.rand(count, 3, side, side, generator=drawing()) + 1
    holed = hole(x, drawing(1))
    gone = (holed == 0).all(dim=1)
    assert torch.equal(holed[~gone.unsqueeze(1).expand_as(x)], x[~gone.unsqueeze(1).expand_as(x)])
    places_found = set()
    for image in gone:
        rows, columns = (image.any(dim=axis).nonzero().flatten() for axis in (1, 0))
        assert image.sum() == len(rows) * len(columns), "a rectangle"
        for found in (rows, columns):
            first, last = found[0].item(), found[-1].item()
            assert len(found) == last - first + 1 <= 10
            assert len(found) == 10 or first == 0 or last == side - 1, "smaller only where it hangs over an edge"
            assert len(found) >= 5
        places_found.add((rows[0].item(), columns[-1].item()))
    assert len(places_found) > 500
    hit = gone.float().mean(dim=0)
    assert hit.min() > 0.01, "no pixel is safe, not even a corner's"


# The loader


def marked(count: int) -> Images:
    """Images that carry their own number in the first two pixels; its last digit is the label."""
    x = torch.zeros(count, 1, 28, 28, dtype=torch.uint8)
    x[:, 0, 0, 0], x[:, 0, 0, 1] = torch.arange(count) // 256, torch.arange(count) % 256
    return Images(x, torch.arange(count) % 10)


def numbers_in(batch: torch.Tensor) -> list[int]:
    pixels = (batch[:, 0, 0, :2] * 0.3081 + 0.1307) * 255
    return [round(high) * 256 + round(low) for high, low in pixels.tolist()]


def order_of(loader: BatchLoader) -> list[int]:
    return [number for x, _ in loader for number in numbers_in(x)]


def test_an_epoch_has_every_image_once_with_its_own_label():
    loader = BatchLoader(marked(300), "mnist", batch_size=128, shuffle=True)
    for epoch in range(3):
        loader.epoch = epoch
        found = list(loader)
        assert [len(y) for _, y in found] == [128, 128, 44] and len(loader) == 3
        assert Counter(order_of(loader)) == Counter(range(300))
        for x, y in found:
            assert x.dtype == torch.float32 and y.dtype == torch.int64
            assert [number % 10 for number in numbers_in(x)] == y.tolist()


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        loader = BatchLoader(marked(300), "mnist", batch_size=64, shuffle=True, seed=seed)
        loader.epoch = epoch
        torch.rand(3)  # the global generator has no say
        return tuple(order_of(loader))

    chosen = [(seed, epoch) for seed in range(4) for epoch in range(4)]
    assert len({order(*choice) for choice in chosen}) == len(chosen)
    assert all(order(*choice) == order(*choice) for choice in chosen)


def test_order_without_shuffling_is_the_images_own():
    loader = BatchLoader(marked(300), "mnist", batch_size=64, seed=3)
    loader.epoch = 2
    assert order_of(loader) == list(range(300))


@pytest.mark.parametrize("count, batch_size, number", [(1, 1, 1), (5, 8, 1), (8, 8, 1), (9, 8, 2), (16, 8, 2)])
def test_number_of_batches(count, batch_size, number):
    loader = BatchLoader(marked(count), "mnist", batch_size)
    assert len(loader) == len(list(loader)) == number


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_size_below_one_is_refused(batch_size):
    with pytest.raises(EffcnnError, match=f"batch_size is {batch_size}; use 1 or more"):
        BatchLoader(marked(5), "mnist", batch_size)


def test_unknown_augmentation_is_refused_with_a_list_of_the_known_ones():
    with pytest.raises(EffcnnError, match="unknown augmentation 'rotate'; use some of flip, crop, affine, hole"):
        BatchLoader(marked(5), "mnist", 2, augmentation=("flip", "rotate"))


@pytest.mark.parametrize("augmentation", [(), tuple(AUGMENTATIONS)])
def test_batches_are_channels_last(augmentation):
    loader = BatchLoader(load_images("cifar10").train.first(8), "cifar10", 8, augmentation=augmentation)
    [(x, _)] = loader
    assert x.shape == (8, 3, 32, 32)
    assert x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def batches_of(images: Images, seed: int, epoch: int, augmentation: tuple[str, ...]) -> list:
    """All batches of an epoch, by a loader of its own, as in a run that goes on after a stop."""
    loader = BatchLoader(images, "mnist", 128, shuffle=True, seed=seed, augmentation=augmentation)
    loader.epoch = epoch
    torch.rand(3)  # the global generator has no say
    return list(loader)


@pytest.mark.parametrize("augmentation", [*((name,) for name in AUGMENTATIONS), tuple(AUGMENTATIONS)], ids="+".join)
def test_augmented_batches_depend_on_seed_and_epoch_alone(augmentation, digits):
    images = digits.train.first(300)
    undisturbed = BatchLoader(images, "mnist", 128, shuffle=True, seed=1, augmentation=augmentation)
    epochs = {}
    for undisturbed.epoch in (0, 1, 2):
        epochs[undisturbed.epoch] = list(undisturbed)
    for epoch, expected in epochs.items():
        for (x, y), (x_again, y_again) in zip(expected, batches_of(images, 1, epoch, augmentation), strict=True):
            assert torch.equal(x, x_again) and torch.equal(y, y_again)


@every_augmentation
def test_an_image_is_augmented_anew_in_each_epoch_batch_and_seed(name):
    """All images are the same one here, so whatever differs was drawn."""
    picture = (places(1).sum(dim=1, keepdim=True) + 27).clamp(0, 255).to(torch.uint8)
    same = Images(picture.repeat(300, 1, 1, 1), torch.zeros(300, dtype=torch.int64))
    whole = {(seed, epoch): torch.cat([x for x, _ in batches_of(same, seed, epoch, (name,))])
             for seed, epoch in itertools.product((0, 1), repeat=2)}
    for first, second in itertools.combinations(whole.values(), 2):
        assert not torch.equal(first, second)
    one_epoch = whole[0, 0]
    assert not torch.equal(one_epoch[:128], one_epoch[128:256])


def test_augmentations_come_after_normalising_in_the_order_given(digits):
    images = digits.train.first(50)
    for names in (("hole", "crop"), ("crop", "hole")):
        loader = BatchLoader(images, "mnist", 50, augmentation=names)
        [(x, y)] = loader
        generator = loader.generator()
        expected = normalise(images.x, "mnist")
        for name in names:
            expected = {"hole": hole, "crop": crop}[name](expected, generator)
        assert torch.equal(x, expected) and torch.equal(y, images.y)
