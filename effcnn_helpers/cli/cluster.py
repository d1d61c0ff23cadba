"""A sweep's runs on the workers of a Dask cluster, on as many machines as there are, in place of processes here.

    dask scheduler                                             # on one machine
    dask worker tcp://HOST:8786 --nworkers 4 --nthreads 1      # on each machine: as many runs at a time
    python -m effcnn_helpers sweep mnist --seeds 0 1 2 --cluster tcp://HOST:8786

All machines see the same EFFCNN_RECORDED_DIR (or --out) and EFFCNN_CACHE_DIR. Dask gives what a lost worker trained to
another one, which goes on from the run's last epoch. Each run is trained in a process of its own, as in a sweep here:
it ends with its worker.
"""

import queue
import time
from pathlib import Path

from .. import settings
from ..errors import EffcnnError
from ..recipes import RunConfig, config_from, values_of
from ..records import RecordError, read_run
from .sweep import start_worker, stop
from .worker import BUSY

ANSWER_SECONDS = 30  # for the scheduler


def train_on(address: str, configs: list[RunConfig], root: Path, threads: int) -> int:
    """Train runs on the cluster whose scheduler has this address; returns 0 when every one of them is recorded.

    Stopped, it takes back what no worker has begun; what they train they end and record.
    Raises EffcnnError without Dask, or when no scheduler answers.
    """
    try:
        from distributed import Client, as_completed
    except ModuleNotFoundError as error:
        raise EffcnnError(f"Dask is not installed ({error}); install it on all machines with "
                          f"`{settings.pip_command('distributed')}`") from error
    settings.make_folder(root)
    try:
        client = Client(address, timeout=ANSWER_SECONDS)
    except (OSError, ValueError) as error:
        raise EffcnnError(f"no scheduler of Dask answers at {address} ({error}); start one with `dask scheduler`, "
                          "which shows its address") from error
    failed = 0
    with client:
        runs = {client.submit(train_there, values_of(config), str(root.absolute()), threads): config
                for config in configs}
        print(f"{len(runs)} to train, {sum(client.nthreads().values())} at a time", flush=True)
        for future in as_completed(runs):
            try:
                problem = future.exception()
                record = None if problem else read_run(root / runs[future].name)
            except RecordError as error:  # the worker wrote it elsewhere
                problem = error
            failed += problem is not None
            told = f"failed: {problem}" if problem else f"recorded: {record.accuracy_percent:.2f} %"
            print(f"{time.strftime('%H:%M:%S')}  {runs[future].name}  {told}", flush=True)
    return 1 if failed else 0


def train_there(values: dict, root: str, threads: int) -> None:
    """What a worker of the cluster does: train and record one run. Raises EffcnnError when it is not recorded then."""
    if not Path(root).is_dir():
        raise EffcnnError(f"{root} is no folder on this worker's machine; share it, or name another one with --out")
    reports: queue.Queue = queue.Queue()
    worker = start_worker(Path(root), threads, reports)
    try:
        worker.begin(config_from(values), 0.0)
        report: dict = {}
        while not report.keys() & {"status", "ended"}:
            _, report = reports.get()
    finally:
        stop([worker.process])
    if report.get("status") == BUSY:
        raise EffcnnError("another process is training it; ask again when it has ended")
    if report.get("status") != 0:
        raise EffcnnError(f"its process ended with {report}; see the worker's messages")
