"""Run the tutorials in full and write their outputs back, so that they can be committed.

    python tools/run_tutorials.py            all of tutorials/*.ipynb
    python tools/run_tutorials.py 01 05      those whose names start so

It needs the extra [tutorials]. Each notebook runs from the top in a new kernel of this Python, in an empty folder, on
one thread, with warnings as errors. What differs from run to run without saying anything (times, versions, random
identifiers of cells) is left out of the file; a digest of the code is kept, by which the tests know outputs that
are older than their code.
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
SHORT = "ZILN_TUTORIAL_SHORT"  # notebooks lower their numbers of steps and draws where it is set
# But for those of the kernel about itself.
WARNINGS_ARE_ERRORS = (
    "import warnings; warnings.simplefilter('error'); warnings.filterwarnings('ignore', module='ipykernel')"
)


def execute(notebook: NotebookNode, *, short: bool, timeout: float = 900) -> None:
    """Run every cell and put the outputs into the notebook.

    Raises:
        CellExecutionError: at the first cell that fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        # Lines that are printed come in pieces that depend on the clock: they are joined.
        client = NotebookClient(notebook, km=_kernel(folder), timeout=timeout, resources=where, coalesce_streams=True)
        client.execute(env=_environment(folder, short), cleanup_kc=True)


def digest(notebook: NotebookNode) -> str:
    """A digest of the code, by which outputs know the code that made them."""
    code = "\0".join(cell.source for cell in code_cells(notebook))
    return hashlib.sha256(code.encode()).hexdigest()


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells with code, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tidy(notebook: NotebookNode) -> None:
    """Leave in the metadata only what is the same in each run."""
    notebook.metadata = NotebookNode(
        kernelspec=NotebookNode(display_name="Python 3", language="python", name="python3"),
        language_info=NotebookNode(name="python"),
        executed=NotebookNode(mode="full", code_sha256=digest(notebook)),
    )
    for number, cell in enumerate(notebook.cells, 1):
        cell.metadata, cell.id = NotebookNode(), f"cell-{number}"


def _kernel(folder: str) -> AsyncKernelManager:
    """A kernel of this very Python, whatever kernels the user has; through a pipe, since ports may be taken."""
    options = {} if os.name == "nt" else {"transport": "ipc"}
    kernel = AsyncKernelManager(connection_file=os.path.join(folder, "kernel.json"), **options)
    start = f"--IPKernelApp.exec_lines={WARNINGS_ARE_ERRORS}"
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", start]
    kernel._kernel_spec = KernelSpec(argv=argv, display_name="Python 3", language="python")
    return kernel


def _environment(folder: str, short: bool) -> dict[str, str]:
    """The environment of a kernel: the package that this Python finds, and nothing of the user's settings."""
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
