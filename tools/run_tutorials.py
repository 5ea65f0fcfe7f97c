"""Run the tutorials in full and write their outputs back, so that they can be committed.

    python tools/run_tutorials.py            all of tutorials/*.ipynb
    python tools/run_tutorials.py 01 05      those whose names start with 01 or 05

It needs the extra [tutorials]. Each notebook runs from the top in a new kernel of this Python, in an empty folder, on
one thread, with warnings as errors. The file omits what changes from run to run (times, versions, random identifiers
of cells) and holds a digest of the code, by which the tests find outputs that are older than their code.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pathlib
import sys
import tempfile

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = pathlib.Path(__file__).parents[1]
TUTORIALS = ROOT / "tutorials"
SHORT = "ZILN_TUTORIAL_SHORT"  # where it is set, notebooks take fewer steps and draws
# The kernel installs the filter when it runs its first cell: while it starts, modules of Jupyter may warn.
WARNINGS_ARE_ERRORS = """
def _strict(info):
    import warnings
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", module="ipykernel")
    get_ipython().events.unregister("pre_run_cell", _strict)
get_ipython().events.register("pre_run_cell", _strict)
"""


def execute(notebook: NotebookNode, *, short: bool, timeout: float = 900) -> None:
    """Run every cell and put the outputs into the notebook.

    Raises:
        CellExecutionError: at the first cell that fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        # coalesce_streams joins printed lines, which the kernel sends in pieces that depend on the clock.
        client = NotebookClient(notebook, km=_kernel(folder), timeout=timeout, resources=where, coalesce_streams=True)
        client.execute(env=environment(folder, short), cleanup_kc=True)


def environment(folder: str, short: bool) -> dict[str, str]:
    """Return that of a kernel, with the package of this Python and without the user's IPython settings."""
    package = importlib.util.find_spec("pyro_zilognormal")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the tutorials need pyro_zilognormal: run pip install -e '.[tutorials]'")
    paths = [str(pathlib.Path(package.origin).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONHASHSEED": "0",
        "IPYTHONDIR": folder,
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        SHORT: "1" if short else "",
    }


def digest(notebook: NotebookNode) -> str:
    """Return a SHA-256 digest of the code cells."""
    code = "\0".join(cell.source for cell in code_cells(notebook))
    return hashlib.sha256(code.encode()).hexdigest()


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """Return the code cells, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tidy(notebook: NotebookNode) -> None:
    """Keep only the metadata that are the same in every run."""
    notebook.metadata = NotebookNode(
        kernelspec=NotebookNode(display_name="Python 3", language="python", name="python3"),
        language_info=NotebookNode(name="python"),
        executed=NotebookNode(mode="full", code_sha256=digest(notebook)),
    )
    for number, cell in enumerate(notebook.cells, 1):
        cell.metadata, cell.id = NotebookNode(), f"cell-{number}"


def _kernel(folder: str) -> AsyncKernelManager:
    """A kernel of this Python interpreter. It listens on a pipe where possible, since ports may be taken."""
    options = {} if os.name == "nt" else {"transport": "ipc"}
    kernel = AsyncKernelManager(connection_file=os.path.join(folder, "kernel.json"), **options)
    start = f"--IPKernelApp.exec_lines={WARNINGS_ARE_ERRORS}"
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", start]
    kernel._kernel_spec = KernelSpec(argv=argv, display_name="Python 3", language="python")
    return kernel


def main(starts: list[str]) -> None:
    sys.path.insert(0, str(ROOT))
    for path in sorted(TUTORIALS.glob("*.ipynb")):
        if not starts or path.name.startswith(tuple(starts)):
            print(path.name, flush=True)
            notebook = nbformat.read(path, as_version=4)
            execute(notebook, short=False)
            tidy(notebook)
            nbformat.validate(notebook)
            nbformat.write(notebook, path)


if __name__ == "__main__":
    main(sys.argv[1:])
