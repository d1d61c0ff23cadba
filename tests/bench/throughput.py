"""Training throughput of our path against the plain stack, and against a bare loop: `make bench`.

Three ways to train the 1.5K model on the same images, in images per second:
- plain: torchvision-style dataset (ToTensor, Normalize per image), DataLoader, Composer's Trainer, NCHW;
- ours: BatchLoader on uint8 tensors, channels_last, our callbacks, Composer's Trainer, tuned allocator;
- bare: a PyTorch loop on the same tensors as ours, no Composer at all.

Each measurement is a fresh process, so that the allocator's settings do not leak from one to the next; the
three alternate, round after round. Read the ratios, not the absolute figures.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
from torch import nn

from effcnn_helpers.data import MEAN, STD, BatchLoader, load_images
from effcnn_helpers.machine import cpu_name, tune_allocator
from effcnn_helpers.models import build_model
from effcnn_helpers.training import whole_batch

MODEL, BATCH, WARM_UP = "1.5k-dw", 128, 10


def timed_epoch(images: int, threads: int, way: str) -> float:
    """Images per second of one way, over `images` training images after a few warm-up batches."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    train = load_images("mnist", download=False).train
    train = type(train)(train.x.repeat(-(-images // len(train)), 1, 1, 1)[:images],
                        train.y.repeat(-(-images // len(train)))[:images])
    return {"plain": plain, "ours": ours, "bare": bare}[way](train)


def fit(network: nn.Module, loader, callbacks: list) -> float:
    """Images per second of Composer's Trainer from the end of the warm-up to the last batch."""
    import composer
    from torchmetrics import MetricCollection

    class Clock(composer.Callback):
        seen = 0

        def batch_end(self, state, logger):
            if state.timestamp.batch.value == WARM_UP:
                self.start = time.perf_counter()
            elif state.timestamp.batch.value > WARM_UP:
                self.seen += len(state.batch[1])
                self.seconds = time.perf_counter() - self.start

    clock = Clock()
    # The plain stack keeps Composer's own default: accuracy on every training batch.
    metrics = {"train_metrics": MetricCollection([])} if callbacks else {}
    trainer = composer.Trainer(
        model=composer.models.ComposerClassifier(network, num_classes=10, **metrics), train_dataloader=loader,
        optimizers=torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9), max_duration="1ep",
        callbacks=[*callbacks, clock], progress_bar=False, device="cpu", seed=0)
    trainer.fit()
    trainer.close()
    return clock.seen / clock.seconds


def plain(train) -> float:
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    class Digits(Dataset):
        """What torchvision.datasets.MNIST does for each image."""

        transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN["mnist"], STD["mnist"])])

        def __len__(self):
            return len(train)

        def __getitem__(self, index):
            return self.transform(Image.fromarray(train.x[index, 0].numpy())), int(train.y[index])

    return fit(build_model(MODEL), DataLoader(Digits(), batch_size=BATCH, shuffle=True), [])


def ours(train) -> float:
    import composer

    from effcnn_helpers.callbacks import History

    tune_allocator()
    loader = BatchLoader(train, "mnist", BATCH, shuffle=True)
    network = build_model(MODEL).to(memory_format=torch.channels_last)
    return fit(network, composer.core.DataSpec(loader, split_batch=whole_batch), [History(loader)])


def bare(train) -> float:
    tune_allocator()
    loader = BatchLoader(train, "mnist", BATCH, shuffle=True)
    network = build_model(MODEL).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    seen = 0
    for batch, (x, y) in enumerate(loader, start=1):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
        loss.item()
        if batch == WARM_UP:
            start = time.perf_counter()
        elif batch > WARM_UP:
            seen += len(y)
    return seen / (time.perf_counter() - start)


def main() -> None:
    """Measure all three in turn and print medians and the ratios of each round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=12_800)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--way", choices=["plain", "ours", "bare"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(timed_epoch(options.images, options.threads, options.way)))
        return
    rates = {"plain": [], "ours": [], "bare": []}
    for number in range(options.rounds):
        for way, found in rates.items():
            command = [sys.executable, __file__, "--way", way, "--images", str(options.images),
                       "--threads", str(options.threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
        latest = ", ".join(f"{way} {found[-1]:.0f}/s" for way, found in rates.items())
        print(f"round {number + 1}: {latest}", flush=True)
    print(f"{cpu_name()}, {options.threads} thread(s), torch {torch.__version__}, {MODEL}, batch {BATCH}")
    for way, found in rates.items():
        print(f"{way:6} median {statistics.median(found):7.0f} images/s (from {min(found):.0f} to {max(found):.0f})")
    for label, over, under in (("ours / plain", "ours", "plain"), ("ours / bare", "ours", "bare")):
        ratios = [a / b for a, b in zip(rates[over], rates[under], strict=True)]
        print(f"{label:13} median {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
