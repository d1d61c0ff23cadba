"""Training throughput of our path against the plain stack, and against a bare loop: `make bench`.

Three ways to train a network on the same digits, in images per second:
- plain: what a newcomer writes: torchvision-style dataset (ToTensor and Normalize per image),
  DataLoader, Composer's Trainer, torch's own number of threads;
- ours: what `training.train` does: BatchLoader on uint8 tensors, channels last, our callbacks,
  Composer's Trainer, `machine.prepare`, the folded BatchNorm;
- bare: a PyTorch loop with all of ours but Composer and callbacks.

Each measurement is a fresh process; the ways alternate, round after round, with --busy also at rest and
beside one busy process per core. Read the ratios, not the absolute figures.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time

BATCH, WARM_UP, IMAGES = 128, 5, 12_800
WAYS = ("plain", "ours", "bare")


class Clock:
    """Counts images from the end of the warm-up on; `done` after the given seconds."""

    def __init__(self, seconds: float):
        self.limit, self.batches, self.images, self.seconds = seconds, 0, 0, 0.0

    def tick(self, images: int) -> bool:
        self.batches += 1
        if self.batches <= WARM_UP:
            self.start = time.perf_counter()
        else:
            self.images += images
            self.seconds = time.perf_counter() - self.start
        return self.seconds > self.limit


def measure(way: str, model: str, seconds: float) -> float:
    """Images per second of one way, from the end of the warm-up."""
    if way == "plain":
        import torch  # before our package: its choice of waiting is not a newcomer's
    from effcnn_helpers.datasets import Images, load_images  # isort: skip
    import torch

    torch.manual_seed(0)
    digits = load_images("mnist", download=False).train
    repeats = -(-IMAGES // len(digits))
    train = Images(digits.x.repeat(repeats, 1, 1, 1)[:IMAGES], digits.y.repeat(repeats)[:IMAGES])
    clock = Clock(seconds)
    {"plain": plain, "ours": ours, "bare": bare}[way](model, train, clock)
    return clock.images / clock.seconds


def fit(network, loader, callbacks: list, clock: Clock) -> None:
    """One epoch of Composer's Trainer, or less once the clock says so."""
    import composer
    import torch
    from torchmetrics import MetricCollection

    class Stop(composer.Callback):
        def batch_end(self, state, logger):
            if clock.tick(len(state.batch[1])):
                state.stop_training()

    # The plain stack keeps Composer's own default: accuracy on every training batch.
    metrics = {"train_metrics": MetricCollection([])} if callbacks else {}
    trainer = composer.Trainer(
        model=composer.models.ComposerClassifier(network, num_classes=10, **metrics),
        train_dataloader=loader, max_duration="1ep", callbacks=[*callbacks, Stop()],
        optimizers=torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
        progress_bar=False, device="cpu", seed=0)
    trainer.fit()
    trainer.close()


def plain(model: str, train, clock: Clock) -> None:
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    from effcnn_helpers.datasets import DATASETS
    from effcnn_helpers.models import build_model

    spec = DATASETS["mnist"]

    class Digits(Dataset):
        """What torchvision.datasets.MNIST does for each image."""

        transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(spec.mean, spec.std)])

        def __len__(self):
            return len(train)

        def __getitem__(self, index):
            return self.transform(Image.fromarray(train.x[index, 0].numpy())), int(train.y[index])

    fit(build_model(model), DataLoader(Digits(), batch_size=BATCH, shuffle=True), [], clock)


def prepared(model: str, train):
    """(network, loader) as `training.train` has them."""
    import torch

    from effcnn_helpers.batches import BatchLoader
    from effcnn_helpers.machine import prepare
    from effcnn_helpers.models import build_model

    prepare()
    network = build_model(model).to(memory_format=torch.channels_last)
    return network, BatchLoader(train, "mnist", BATCH, shuffle=True)


def ours(model: str, train, clock: Clock) -> None:
    from composer.core import DataSpec

    from effcnn_helpers.batchnorm import folded
    from effcnn_helpers.callbacks import History
    from effcnn_helpers.training import whole_batch

    network, loader = prepared(model, train)
    with folded(network):
        fit(network, DataSpec(loader, split_batch=whole_batch), [History(loader)], clock)


def bare(model: str, train, clock: Clock) -> None:
    import torch

    from effcnn_helpers.batchnorm import folded

    network, loader = prepared(model, train)
    optimizer = torch.optim.SGD(network.train().parameters(), lr=0.1, momentum=0.9)
    with folded(network):
        for x, y in loader:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(x), y)
            loss.backward()
            optimizer.step()
            loss.item()
            if clock.tick(len(y)):
                break


@contextlib.contextmanager
def busy(processes: int):
    """That many processes beside, each of which keeps a core busy."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def main() -> None:
    """Measure all ways in turn; print medians and the median of each round's ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="the most that one measurement takes")
    parser.add_argument("--models", nargs="+", default=["1.5k-dw", "25k"], help="of the MNIST models")
    parser.add_argument("--busy", action="store_true", help="also beside one busy process per core")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options.models[0], options.seconds)))
        return
    rates = {(model, beside, way): [] for model in options.models
             for beside in ([0, os.cpu_count()] if options.busy else [0]) for way in WAYS}
    for number in range(options.rounds):
        for (model, beside, way), found in rates.items():
            command = [sys.executable, __file__, "--way", way, "--models", model,
                       "--seconds", str(options.seconds)]
            with busy(beside):
                done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number + 1}: {model}, {beside} busy beside: {way} {found[-1]:.0f}/s", flush=True)
    report(rates)


def report(rates: dict[tuple[str, int, str], list[float]]) -> None:
    from effcnn_helpers.machine import choose_threads, cpu_name

    print(f"{cpu_name()}, {os.cpu_count()} cores, ours with {choose_threads()} thread(s), batch {BATCH}")
    for (model, beside, way), found in rates.items():
        line = f"{model:8} {beside} busy beside  {way:6} median {statistics.median(found):6.0f} images/s"
        if way != "ours":
            ratios = [a / b for a, b in zip(rates[model, beside, "ours"], found, strict=True)]
            line += (f"; ours / {way} x{statistics.median(ratios):.2f} "
                     f"(from {min(ratios):.2f} to {max(ratios):.2f})")
        print(line)


if __name__ == "__main__":
    main()
