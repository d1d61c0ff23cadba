"""Execute the notebooks headless, in order, each in a kernel of its own."""

import os
import re
import sys
import time
from pathlib import Path

import nbclient
import nbconvert
import nbformat
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

CELL_SECONDS = 600


class ThisPython(KernelSpecManager):
    """Finds one kernel: the Python that runs this, whatever kernels the user has installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        # Quiet below errors: the kernel would warn that it talks over TCP, on this machine's loopback alone.
        launch = [sys.executable, "-m", "ipykernel_launcher", "--log-level=ERROR", "-f", "{connection_file}"]
        return KernelSpec(argv=launch, display_name="Python 3", language="python")


def run(numbers: list[str], profile: str, in_place: bool, out: Path) -> int:
    """Execute the notebooks with these numbers (all when none is given); 0 when none failed.

    in_place: write the outputs into notebooks/ itself, the solutions' too; otherwise copies (ipynb, HTML) go to `out`.
    """
    notebooks = find_notebooks(Path("notebooks"), numbers)
    if in_place:
        solutions = [path.parent / "solutions" / f"{path.stem}_solutions.ipynb" for path in notebooks]
        notebooks += [path for path in solutions if path.exists()]
    out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for path in notebooks:
        start = time.monotonic()
        if sys.stdout.isatty():
            print(f"{path.stem} …\r", end="", flush=True)
        notebook, error = execute(path, profile)
        if in_place and not error:
            write_whole(path, nbformat.writes(notebook) + "\n")
        elif not in_place:
            write_whole(out / path.name, nbformat.writes(notebook) + "\n")
            html, _ = nbconvert.HTMLExporter().from_notebook_node(notebook)
            write_whole(out / f"{path.stem}.html", html)
        failed += error is not None
        print(f"{path.stem:25} {time.monotonic() - start:5.0f} s  {error or headline_of(notebook)}", flush=True)
    print(f"{len(notebooks)} notebooks, {failed} failed" + ("" if in_place else f"; executed copies in {out}"))
    return 1 if failed else 0


def find_notebooks(folder: Path, numbers: list[str]) -> list[Path]:
    """The series in order, or the notebooks whose names start with `numbers`. Raises ValueError for others."""
    series = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not series:
        raise ValueError(f"no notebooks in {folder.resolve()}; run this from the project's folder")
    if not numbers:
        return series
    unknown = set(numbers) - {path.name[:2] for path in series}
    if unknown:
        raise ValueError(f"no notebook {', '.join(sorted(unknown))}; there are {', '.join(p.name[:2] for p in series)}")
    return [path for path in series if path.name[:2] in numbers]


def execute(path: Path, profile: str) -> tuple[nbformat.NotebookNode, str | None]:
    """The executed notebook and, when a cell failed, one line that says which and how."""
    notebook = nbformat.read(path, as_version=4)
    manager = AsyncKernelManager(kernel_spec_manager=ThisPython())
    client = nbclient.NotebookClient(notebook, timeout=CELL_SECONDS, km=manager, store_widget_state=False,
                                     resources={"metadata": {"path": str(path.parent)}})
    error = None
    try:
        client.execute(cleanup_kc=True, env=kernel_environment(profile))
    except nbclient.exceptions.CellExecutionError as problem:
        error = f"FAILED: {problem.ename}: {problem.evalue}"
    except nbclient.exceptions.CellTimeoutError:
        error = f"FAILED: a cell took longer than {CELL_SECONDS} s"
    except (nbclient.exceptions.DeadKernelError, AssertionError):
        # nbclient answers Ctrl-C by ending the kernel, and then meets it dead.
        if hasattr(client, "_async_cleanup_kernel_future"):
            raise KeyboardInterrupt from None
        error = "FAILED: the kernel died"
    return clean(notebook), error


def kernel_environment(profile: str) -> dict[str, str]:
    """This process's environment for a kernel that works in notebooks/: no bars, folders by their full path."""
    environment = {**os.environ, "EFFCNN_PROFILE": profile, "EFFCNN_PROGRESS": "0"}
    for name in ("EFFCNN_DATA_DIR", "EFFCNN_CACHE_DIR", "EFFCNN_RECORDED_DIR"):
        if environment.get(name):
            environment[name] = str(Path(environment[name]).resolve())
    return environment


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what differs from one execution to the next and means nothing: clocks, widgets, kernel names."""
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
    """Replace a file in one move, so that a stop half-way leaves the old one."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
