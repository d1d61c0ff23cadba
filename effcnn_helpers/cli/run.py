"""Execute the notebooks headless, each in a kernel of its own, two at a time."""

import asyncio
import concurrent.futures
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import IO

import nbclient
import nbconvert
import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

from .. import settings
from ..errors import EffcnnError
from ..machine import usable_cores

CELL_SECONDS = 600
START_SECONDS = 60    # for a kernel to answer
STARTS = 3            # as long as PORT_TAKEN is the cause
PORT_TAKEN = "Address already in use"  # jupyter_client picks free ports; another process may be faster to bind one
STOP_SECONDS = 2      # for a kernel to end by itself
TIMES_NETWORKS = "15"
INLINE = "module://matplotlib_inline.backend_inline"


class ThisPython(KernelSpecManager):
    """Finds one kernel: the Python that runs this, whatever kernels the user has installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        # Quiet below errors: it would warn that it talks over TCP, on the loopback alone.
        launch = [sys.executable, "-m", "ipykernel_launcher", "--log-level=ERROR",
                  "-f", "{connection_file}"]
        return KernelSpec(argv=launch, display_name="Python 3", language="python")


class KernelStartError(Exception):
    """A kernel that could not start; its text is the cause."""


Executed = tuple[nbformat.NotebookNode, str | None]


def run(numbers: list[str], profile: str, in_place: bool, out: Path, jobs: int | None = None) -> int:
    """Execute the notebooks with these numbers (all when none is given); 0 when none failed.

    in_place: write the outputs into notebooks/ itself, the solutions' too; otherwise copies
    (ipynb, HTML) go to `out`.
    jobs: how many at a time. Default: two where there are two cores, as a kernel takes half of them
    (see machine.choose_threads); one in place, as these outputs are kept, and times are among them.
    Raises EffcnnError for a number or setting that is wrong.
    """
    for check in settings.CHECKS.values():
        check()
    notebooks = find_notebooks(Path("notebooks"), numbers)
    if in_place:
        solutions = Path("notebooks/solutions")
        beside = [solutions / f"{path.stem}_solutions.ipynb" for path in notebooks]
        notebooks += [path for path in beside if path.exists()]
    else:
        settings.make_folder(out)
    failed = 0

    def finish(path: Path, executed: Executed, seconds: float) -> None:
        nonlocal failed
        notebook, error = executed
        if in_place and not error:
            write_whole(path, nbformat.writes(notebook) + "\n")
        elif not in_place:
            write_whole(out / path.name, nbformat.writes(notebook) + "\n")
            html, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
            write_whole(out / f"{path.stem}.html", html)
        failed += error is not None
        print(f"{path.stem:25} {seconds:5.0f} s  {error or headline_of(notebook)}", flush=True)

    jobs = jobs or (1 if in_place or usable_cores() < 2 else 2)
    in_background(execute_all(notebooks, profile, jobs, finish))
    where = "" if in_place else f"; executed copies in {out}"
    print(f"{len(notebooks)} notebooks, {failed} failed{where}")
    return 1 if failed else 0


def find_notebooks(folder: Path, numbers: list[str]) -> list[Path]:
    """The series in order, or the notebooks with these numbers. Raises EffcnnError for others."""
    series = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not series:
        raise EffcnnError(f"no notebooks in {folder.resolve()}; run this from the project's folder")
    if not numbers:
        return series
    unknown = set(numbers) - {path.name[:2] for path in series}
    if unknown:
        raise EffcnnError(f"no notebook {', '.join(sorted(unknown))}; there are "
                          f"{', '.join(path.name[:2] for path in series)}")
    return [path for path in series if path.name[:2] in numbers]


async def execute_all(notebooks: list[Path], profile: str, jobs: int,
                      finish: Callable[[Path, Executed, float], None]) -> None:
    """Execute notebooks, `jobs` at a time, handing each to `finish` with the seconds that it took.

    Those that time networks run last, each alone.
    """
    free = asyncio.Semaphore(jobs)

    async def one(path: Path) -> None:
        async with free:
            start = time.monotonic()
            if sys.stdout.isatty():
                print(f"{path.stem} …\r", end="", flush=True)
            executed = await execute(path, profile)
            finish(path, executed, time.monotonic() - start)

    alone = [path for path in notebooks if path.name.startswith(TIMES_NETWORKS)]
    try:
        async with asyncio.TaskGroup() as group:
            for path in notebooks:
                if path not in alone:
                    group.create_task(one(path))
    except* Exception as problems:
        raise problems.exceptions[0] from None
    for path in alone:
        await one(path)


async def execute(path: Path, profile: str, starts: int = STARTS) -> Executed:
    """The executed notebook and, when a cell failed, one line that says which and how."""
    notebook = nbformat.read(path, as_version=4)
    manager = AsyncKernelManager(kernel_spec_manager=ThisPython(), shutdown_wait_time=STOP_SECONDS)
    client = nbclient.NotebookClient(
        notebook, timeout=CELL_SECONDS, km=manager, store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}})
    error = None
    with tempfile.TemporaryFile() as terminal:
        try:
            await in_kernel(client, manager, kernel_environment(profile), terminal)
        except nbclient.exceptions.CellExecutionError as problem:
            error = f"FAILED: {problem.ename}: {problem.evalue}"
        except nbclient.exceptions.CellTimeoutError:
            error = f"FAILED: a cell took longer than {CELL_SECONDS} s"
        except nbclient.exceptions.DeadKernelError:
            if (task := asyncio.current_task()) and task.cancelling():
                raise asyncio.CancelledError from None  # which nbclient takes for a death
            error = "FAILED: the kernel died"
            print(*lines_of(terminal), sep="\n", end="", file=sys.stderr)
        except KernelStartError as problem:
            cause = (lines_of(terminal) or [str(problem)])[-1]
            if PORT_TAKEN in cause and starts > 1:
                return await execute(path, profile, starts - 1)
            error = f"FAILED: the kernel could not start: {cause}"
    return clean(notebook), error


async def in_kernel(client: nbclient.NotebookClient, manager: AsyncKernelManager,
                    environment: dict[str, str], terminal: IO[bytes]) -> None:
    """Execute a notebook; whatever happens, no kernel is left.

    terminal: gets what the kernel itself writes, outside of cells.
    Raises KernelStartError, and what nbclient raises for a cell.
    """
    try:
        try:
            await to_its_end(client.async_start_new_kernel(
                env=environment, stdout=terminal, stderr=terminal))
            client.kc = manager.client()
            client.kc.start_channels()
            await client.kc.wait_for_ready(timeout=START_SECONDS)
        except Exception as error:  # the system, ZeroMQ and jupyter_client have errors of their own
            raise KernelStartError(str(error)) from error
        client.kc.allow_stdin = False
        await client.async_execute(cleanup_kc=False)
    finally:
        if client.kc is not None:
            client.kc.stop_channels()
        if manager.has_kernel:
            await to_its_end(manager.shutdown_kernel())


async def to_its_end(work: Awaitable) -> None:
    """Await `work` whole, also when cancelled meanwhile: half of it would leave a kernel behind."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def in_background(work: Coroutine) -> None:
    """Await `work` in a thread, so that signals meet this one; they cancel it and wait for its end.

    A signal then goes on as the exception that it raised. In the main thread, nbclient would answer it:
    by ending the kernel and going on.
    """
    with (settings.signal_handlers_kept(),
          asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner,
          concurrent.futures.ThreadPoolExecutor(1) as pool):
        loop = runner.get_loop()
        task = loop.create_task(work)
        job = pool.submit(loop.run_until_complete, task)
        try:
            while not concurrent.futures.wait([job], timeout=1).done:
                pass  # Windows hears signals only here
        except BaseException:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # a second one must not keep the kernel alive
            loop.call_soon_threadsafe(task.cancel)
            raise
    job.result()


def lines_of(file: IO[bytes]) -> list[str]:
    file.seek(0)
    return file.read().decode(errors="replace").strip().splitlines()


def kernel_environment(profile: str) -> dict[str, str]:
    """The environment of a kernel in notebooks/: no bars, pictures inline, full paths."""
    environment = {**os.environ, "EFFCNN_PROFILE": profile, "EFFCNN_PROGRESS": "0",
                   "MPLBACKEND": INLINE}
    for name in ("EFFCNN_DATA_DIR", "EFFCNN_CACHE_DIR", "EFFCNN_RECORDED_DIR"):
        if path := settings.folder(name):
            environment[name] = str(path.absolute())
    return environment


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what differs from one execution to the next: clocks, widgets, kernel names."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    })
    return notebook


def headline_of(notebook: nbformat.NotebookNode) -> str:
    """The result that the notebook prints as its headline, or an empty text."""
    texts = [output.text for cell in notebook.cells if cell.cell_type == "code"
             for output in cell.outputs if output.output_type == "stream"]
    found = re.findall(r"^Headline: (.*)$", "\n".join(texts), flags=re.MULTILINE)
    return found[-1] if found else ""


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one move: a stop half-way leaves the old one, and nothing beside it.

    Raises EffcnnError where it cannot be written.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    with settings.writing(path):
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
