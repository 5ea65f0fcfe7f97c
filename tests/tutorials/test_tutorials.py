"""The tutorials run from the top, and their committed outputs are those of their code."""

import ast
import base64
import io
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from PIL import Image

import pyro_zilognormal
from tools.run_tutorials import ROOT, SHORT, TUTORIALS, code_cells, digest, environment, execute

NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))
OF_A_MACHINE = re.compile(
    r"(^|[\s\"'(=:])(/(tmp|home|root|Users|opt|work|usr|var)/|[A-Z]:\\)|site-packages|\bat 0x[0-9a-f]+"
)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: pathlib.Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def outputs(path: pathlib.Path) -> list[nbformat.NotebookNode]:
    return [output for cell in code_cells(read(path)) for output in cell.outputs]


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


Run = Callable[[pathlib.Path], str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs a notebook in its short mode, and returns what came to standard error."""
    env = environment(str(tmp_path_factory.mktemp("settings")), short=True)
    command = [sys.executable, "-m", "tests.tutorials.forks"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=ROOT, env=env, **pipes) as child:

        def answer(path: pathlib.Path) -> str:
            print(path, file=child.stdin, flush=True)
            return json.loads(child.stdout.readline())

        yield answer


@each_notebook
def test_it_runs(path: pathlib.Path, run: Run) -> None:
    assert run(path) == ""


@each_notebook
def test_it_has_a_short_mode_and_asserts_its_results(path: pathlib.Path) -> None:
    cells = code_cells(read(path))
    assert f'short = bool(os.environ.get("{SHORT}"))' in cells[0].source
    assert any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(cells[-1].source)))


@each_notebook
def test_the_outputs_are_of_this_code_run_in_full_and_in_order(path: pathlib.Path) -> None:
    notebook = read(path)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert notebook.metadata.executed == {"mode": "full", "code_sha256": digest(notebook)}, (
        f"run `python tools/run_tutorials.py {path.name}`: the code has changed since"
    )
    found = outputs(path)
    assert found
    assert not [o for o in found if o.output_type == "error" or o.get("name") == "stderr"]


@each_notebook
def test_no_output_shows_a_path_or_an_address(path: pathlib.Path) -> None:
    for output in outputs(path):
        pictures = [value for kind, value in output.get("data", {}).items() if kind == "image/png"]
        texts = [value for kind, value in output.get("data", {}).items() if kind != "image/png"]
        marks = [Image.open(io.BytesIO(base64.b64decode(picture))).text for picture in pictures]
        shown = "\n".join([output.get("text", ""), json.dumps(texts), json.dumps(marks)])
        assert not OF_A_MACHINE.search(shown), shown


@each_notebook
def test_links_lead_somewhere(path: pathlib.Path) -> None:
    prose = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)#\s]+)", prose):
        assert target.startswith("https://") or (TUTORIALS / target).exists(), target


@each_notebook
def test_it_renders_small(path: pathlib.Path) -> None:
    """The page is small, and no picture is wider than the page."""
    assert path.stat().st_size < 1_500_000
    for output in outputs(path):
        if "image/png" in output.get("data", {}):
            assert Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).width <= 1000


def notebook_of(*sources: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


FAILING = {
    "an error": ("assert 1 + 1 == 3", "AssertionError"),
    "a warning": ("import warnings; warnings.warn('odd')", "UserWarning: odd"),
    "a picture": ("import matplotlib.pyplot as plt; plt.figtext(0, 0, r'$\\frac{$')", "ParseSyntaxException"),
    "words": ("import os; os.system('echo odd >&2')", "odd\n"),
    "an end": ("import os; os.abort()", "ended by signal 6"),
}


@pytest.mark.parametrize("name", FAILING)
def test_what_goes_wrong_in_a_notebook_is_seen(name: str, run: Run, tmp_path: pathlib.Path) -> None:
    source, says = FAILING[name]
    nbformat.write(notebook_of(source), tmp_path / "a.ipynb")
    assert says in run(tmp_path / "a.ipynb")


def test_a_kernel_is_of_this_python_and_this_package_and_stops_at_a_warning() -> None:
    notebook = notebook_of(
        "import importlib.util, os, sys\n"
        "package = importlib.util.find_spec('pyro_zilognormal').origin\n"
        "print(sys.executable, package, bool(os.environ['ZILN_TUTORIAL_SHORT']), sep='\\n')",
        "import warnings\nwarnings.warn('a warning')",
        "print('more')",
    )
    with pytest.raises(CellExecutionError, match="a warning"):
        execute(notebook, short=True)
    assert notebook.cells[0].outputs[0].text.split() == [sys.executable, pyro_zilognormal.__file__, "True"]
    assert not notebook.cells[2].outputs


@pytest.mark.parametrize("text", ["/tmp/a.png", "File '/home/me/x.py'", "<Axes at 0x7f3a>", "lib/site-packages/x.py"])
def test_the_pattern_finds_paths_and_addresses(text: str) -> None:
    assert OF_A_MACHINE.search(text)
