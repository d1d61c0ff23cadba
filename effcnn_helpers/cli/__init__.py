"""`python -m effcnn_helpers …`: long work outside a notebook."""

from __future__ import annotations  # so that a Python that is too old can read this file, too

import argparse
import importlib
import signal
import sys
from pathlib import Path

from ..errors import EffcnnError
from ..settings import signal_handlers_kept

EXAMPLES = """examples:
  python -m effcnn_helpers doctor
      is this machine ready? each problem with its cure, and the minutes to expect
  python -m effcnn_helpers sweep mnist --seeds 0 1 2 --jobs 2 --threads 1 --minutes 150
      train what is missing of the MNIST table, two runs at a time, for at most 150 minutes
  python -m effcnn_helpers sweep cifar10 143k-dw/blurpool
      the CIFAR-10 half of Table 3 and one row of Table 4
  python -m effcnn_helpers sweep mnist --seeds 0 1 2 --cluster tcp://10.0.0.1:8786
      the same on the workers of a Dask cluster, on as many machines as it has
  composer -n 2 -m effcnn_helpers together 25k
      one run by two processes, which share every batch (composer --help: across machines, too)
  python -m effcnn_helpers train photos --budget 143k
      train on images of your own, a folder per class; the network goes to trained/photos-143k
  python -m effcnn_helpers predict trained/photos-143k new.jpg
      what that network sees in a picture
  python -m effcnn_helpers verify --quick
      re-measure the recorded runs of seed 0 on the first 1,000 test images
  python -m effcnn_helpers results --format markdown
      the paper's tables with our numbers beside them
  python -m effcnn_helpers bench
      measure latency and size on this machine, in about 2 minutes (--full: 15)
  python -m effcnn_helpers export mnist/1.5k-dw/constant/baseline/seed0 --to c-int8 --out build/c
      a recorded run as C in whole numbers only (onnx, openvino-int8, executorch, c: likewise)
  python -m effcnn_helpers run 01 04
      execute two notebooks headless; the executed copies go to build/notebooks
  python -m effcnn_helpers book
      the series as HTML pages with a table of contents, in build/book
"""

MAINTAIN = ("book", "figures", "address")  # the commands that are in effcnn_helpers.maintain


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run one command.

    Returns the exit status: 0 fine, 1 failed, 2 misused, 130 or 143 stopped. Only what a user can
    mend ends in one line; a mistake of ours keeps its traceback.
    """
    parser = argparse.ArgumentParser(
        prog="python -m effcnn_helpers", epilog=EXAMPLES,
        description="Train, re-measure and show the recorded runs; run the notebooks.",
        formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    commands.add_parser("doctor", help="check that this machine is ready for the series")

    runs = argparse.ArgumentParser(add_help=False)
    runs.add_argument("selections", nargs="*", default=["mnist"], metavar="selection",
                      help="mnist, cifar10 (Table 3), table-4, table-5, a model such as 1.5k-dw, "
                      "one with techniques such as 143k-dw/cutout+mixup, beyond-1.5k (a ladder of better "
                      "networks), sizes (every network), beyond (all ladders and sizes), pilot-mnist, "
                      "pilot-cifar10, pilot-beyond (validation runs; default: mnist)")
    runs.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    runs.add_argument("--recipe", default=argparse.SUPPRESS,
                      help="how to train (default: as the tables do)")
    runs.add_argument("--threads", type=int, default=1,
                      help="CPU threads of each process (default: %(default)s)")
    runs.add_argument("--profile", choices=["full", "smoke"], default="full",
                      help="smoke: tiny runs that only show that everything works "
                      "(default: %(default)s)")
    runs.add_argument("--out", type=Path,
                      help="folder for the recorded runs (default: the package's own for the full "
                      "profile, build/smoke-runs for smoke)")

    sweep = commands.add_parser("sweep", parents=[runs], help="train the runs that are not recorded yet")
    sweep.add_argument("--jobs", type=int, default=2, help="runs at a time (default: %(default)s)")
    sweep.add_argument("--minutes", type=float,
                       help="start nothing that cannot end within so many minutes, stop what still "
                       "trains then; the next sweep goes on from there (default: no limit)")
    sweep.add_argument("--cluster", metavar="ADDRESS", help="have the workers of a Dask cluster train "
                       "them, in place of --jobs here; its scheduler's address, such as tcp://10.0.0.1:8786")

    commands.add_parser("together", parents=[runs],
                        help="the same, one run after another, each by all processes of Composer's launcher")

    train = commands.add_parser("train", help="train a small network on images of your own")
    train.add_argument("source", metavar="FOLDER",
                       help="a folder with a folder per class (or with such a train and a test folder), "
                       "an .npz file, or Fashion-MNIST, KMNIST, SVHN, CIFAR-100")
    train.add_argument("--budget", choices=["1.5k", "25k", "143k"], default="25k",
                       help="parameters: 1.5k and 25k see 28 × 28 grey pixels, 143k 32 × 32 in colour "
                       "(default: %(default)s)")
    train.add_argument("--better", action="store_true",
                       help="as at the top of notebook 16's ladder, which changes the images at random (grey ones are "
                       "turned, scaled and shifted, those in colour shifted and mirrored)")
    train.add_argument("--epochs", type=int, help="default: the recipe's, more for few images")
    train.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    train.add_argument("--out", type=Path, help="a new folder (default: trained/NAME-BUDGET)")

    predict = commands.add_parser("predict", help="what a trained network sees in images")
    predict.add_argument("model", type=Path, metavar="MODEL",
                         help="a folder that train wrote, or that of a recorded run")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders, patterns")

    verify = commands.add_parser("verify", help="re-measure the recorded runs from their weights")
    verify.add_argument("--quick", action="store_true",
                        help="seed 0 only, on the first 1,000 images")

    results = commands.add_parser("results", help="the paper's tables with ours beside them")
    results.add_argument("--format", choices=["terminal", "markdown", "json"], default="terminal")

    run = commands.add_parser("run", help="execute notebooks headless")
    run.add_argument("numbers", nargs="*", metavar="NN",
                     help="notebook numbers such as 01 (default: all)")
    run.add_argument("--profile", choices=["smoke", "live"], default="live")
    run.add_argument("--in-place", action="store_true",
                     help="write the outputs into the committed notebooks")
    run.add_argument("--out", type=Path, default=Path("build/notebooks"),
                     help="default: %(default)s")
    run.add_argument("--jobs", type=int, help="notebooks at a time (default: 2 on two or more cores, 1 in place)")

    book = commands.add_parser("book", help="build the series as HTML pages, with contents")
    book.add_argument("--out", type=Path, default=Path("build/book"), help="default: %(default)s")

    figures = commands.add_parser("figures", help="redraw the figures from the recorded runs")
    figures.add_argument("--out", type=Path, default=Path("figures"), help="default: %(default)s")

    bench = commands.add_parser("bench", help="measure latency and size of the recorded networks")
    bench.add_argument("--full", action="store_true",
                       help="all runtimes on all models, more batch sizes (about 15 minutes)")
    bench.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    bench.add_argument("--out", type=Path, help="JSON file (default: the package's own for --full, "
                       "else build/latency.json)")

    export = commands.add_parser("export", help="write a trained run as files for another runtime")
    export.add_argument("run", help="its folder below the recorded runs, such as "
                        "mnist/1.5k-dw/constant/baseline/seed0, or a path")
    export.add_argument("--to", required=True,
                        choices=["onnx", "openvino-int8", "executorch", "c", "c-int8", "page"])
    export.add_argument("--out", type=Path, required=True, help="folder for the files")
    export.add_argument("--images", help="the images that a network of your own was trained on")

    commands.add_parser("address", help="write the repository's address and version from "
                        "pyproject.toml into all other files")

    options = parser.parse_args(arguments)
    for name in ("jobs", "threads", "minutes"):
        if getattr(options, name, None) is not None and not getattr(options, name) > 0:
            parser.error(f"--{name} is {getattr(options, name)}; use a number above 0")
    command = options.__dict__.pop("command")
    with signal_handlers_kept():
        signal.signal(signal.SIGTERM, stop)
        try:
            # Imported when it is asked for: Composer, which some need, takes seconds, and the
            # doctor must come to speak where something is broken or missing.
            package = "effcnn_helpers.maintain" if command in MAINTAIN else __package__
            module = importlib.import_module(f".{command}", package)
            return getattr(module, command)(**vars(options))
        except EffcnnError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except (KeyboardInterrupt, SystemExit) as end:
            # Composer's own answer to Ctrl-C is a SystemExit, too.
            status = 130 if isinstance(end, KeyboardInterrupt) else end.code
            if status not in (130, 143):
                raise
            kept = "nothing is kept" if command == "train" else "the same command goes on from here"
            print(f"\nstopped; {kept}", file=sys.stderr)
            return status


def stop(number: int, frame) -> None:
    """What SIGTERM does: a job scheduler or a closing session ends a command as Ctrl-C does."""
    raise SystemExit(128 + number)
