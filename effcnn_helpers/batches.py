"""Batches from a split's tensors: normalised, augmented, in an order that a resumed run meets again."""

from collections.abc import Callable, Iterator

import torch
from torch.nn import functional

from .datasets import DatasetSpec, Images, spec_of
from .errors import EffcnnError

CROP_PIXELS = 4               # how far `crop` may shift an image, each way
HOLE_PIXELS = 10              # side of the hole that `hole` cuts; Cutout's of the paper
AFFINE_DEGREES, AFFINE_SCALE, AFFINE_PIXELS = 10, 0.1, 2  # the most that `affine` turns, scales, shifts


def normalise(x: torch.Tensor, dataset: str | DatasetSpec) -> torch.Tensor:
    """uint8 (N, C, H, W) -> float32 with mean 0 and standard deviation 1 over the real training images."""
    spec = spec_of(dataset)
    mean = torch.tensor(spec.mean, device=x.device).view(1, -1, 1, 1) * 255
    std = torch.tensor(spec.std, device=x.device).view(1, -1, 1, 1) * 255
    return (x.float() - mean) / std


def flip(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror every second image of (N, C, H, W), by chance, left to right."""
    mirrored = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)


def crop(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift each image of (N, C, H, W) by up to CROP_PIXELS each way; the edge is filled by reflection."""
    count, _, height, width = x.shape
    padded = functional.pad(x, [CROP_PIXELS] * 4, mode="reflect")
    down, right = torch.randint(2 * CROP_PIXELS + 1, (2, count, 1), generator=generator)
    image = torch.arange(count).view(-1, 1, 1)
    rows = (down + torch.arange(height)).unsqueeze(2)
    columns = (right + torch.arange(width)).unsqueeze(1)
    return padded.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 3, 1, 2)


def affine(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turn, scale and shift each image of (N, C, H, W) a little; what comes in from outside is the edge."""
    count, _, _, width = x.shape
    turn, scale, down, right = 2 * torch.rand(4, count, generator=generator) - 1
    angle = torch.deg2rad(AFFINE_DEGREES * turn)
    size = 1 + AFFINE_SCALE * scale
    shift = 2 * AFFINE_PIXELS / width
    rows = [torch.stack([size * angle.cos(), -size * angle.sin(), shift * right], dim=1),
            torch.stack([size * angle.sin(), size * angle.cos(), shift * down], dim=1)]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


def hole(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Cutout with a place of its own for each image of (N, C, H, W): a square of 0, the mean, centred anywhere."""
    count, _, height, width = x.shape
    centre_y = torch.randint(height, (count, 1), generator=generator)
    centre_x = torch.randint(width, (count, 1), generator=generator)
    half = HOLE_PIXELS // 2
    in_rows = (torch.arange(height) - centre_y + half).div(HOLE_PIXELS, rounding_mode="floor") == 0
    in_columns = (torch.arange(width) - centre_x + half).div(HOLE_PIXELS, rounding_mode="floor") == 0
    return x.masked_fill((in_rows.unsqueeze(2) & in_columns.unsqueeze(1)).unsqueeze(1), 0)


# What Recipe.augmentation may name: functions of normalised images (N, C, H, W) and a generator.
AUGMENTATIONS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    function.__name__: function for function in (flip, crop, affine, hole)}


class BatchLoader:
    """Batches (normalised images (N, C, H, W), labels (N,)) of a split, cut from its tensors whole.

    Composer's Trainer takes it as it takes a DataLoader. With `shuffle`, the order of epoch e depends on
    (seed, e) alone, as does what `augmentation` draws, so a resumed run sees the batches that it would
    have seen; the trainer sets `epoch`. augmentation: names from AUGMENTATIONS, in order.
    place: (which, of how many) processes this one is, from 0; of every batch it gets its share alone, as
    equal as can be, and all shares together are the batch that a single process would get.
    Raises EffcnnError for a batch size below 1, an unknown augmentation, an empty share.
    """

    def __init__(self, images: Images, dataset: str | DatasetSpec, batch_size: int, shuffle: bool = False,
                 seed: int = 0, augmentation: tuple[str, ...] = (), place: tuple[int, int] = (0, 1)):
        if batch_size < 1:
            raise EffcnnError(f"batch_size is {batch_size}; use 1 or more")
        unknown = [name for name in augmentation if name not in AUGMENTATIONS]
        if unknown:
            raise EffcnnError(f"unknown augmentation {unknown[0]!r}; use some of {', '.join(AUGMENTATIONS)}")
        last = len(images) % batch_size or batch_size
        if last < place[1]:
            raise EffcnnError(f"the last of the batches with {batch_size} of {len(images):,} images has {last}, too "
                              f"few for {place[1]} processes; use fewer processes")
        self.images, self.spec, self.batch_size = images, spec_of(dataset), batch_size
        self.shuffle, self.seed, self.epoch = shuffle, seed, 0
        self.augmentation, self.place = augmentation, place

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def generator(self) -> torch.Generator:
        """Random numbers of this epoch."""
        return torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)

    def order(self, generator: torch.Generator | None = None) -> torch.Tensor:
        """Indices of the images in this epoch's order."""
        if not self.shuffle:
            return torch.arange(len(self.images))
        return torch.randperm(len(self.images), generator=generator or self.generator())

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = self.generator()
        for rows in self.order(generator).split(self.batch_size):
            x = normalise(self.images.x[rows], self.spec)
            for name in self.augmentation:
                x = AUGMENTATIONS[name](x, generator)
            which, processes = self.place
            x, y = x.tensor_split(processes)[which], self.images.y[rows].tensor_split(processes)[which]
            yield x.contiguous(memory_format=torch.channels_last), y
