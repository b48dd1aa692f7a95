"""The notebooks run from top to bottom without a warning, and are stored without outputs."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import notebooks
from tests.conftest import COMPILED

REPOSITORY = Path(__file__).parent.parent
FOLDER = REPOSITORY / "docs" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
DEVICES = "large_networks_on_many_devices"
EXPECTED = {"first_steps", "your_own_rule", "recurrent_and_spiking", DEVICES, "lecture"}

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def ran(*paths: Path) -> dict[str, dict[str, str]]:
    """Runs notebooks in a process of their own: flags for XLA must be set before JAX is imported.

    What they compile is shared with the tests of this session: most of it is single operations, known from there.
    """
    settings = {"MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": os.environ[COMPILED]}
    settings |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    half_written = ("default:Error reading persistent", "default:Error writing persistent")  # entries of other workers
    warnings = [argument for filter in ("error", *half_written) for argument in ("-W", filter)]
    ended = subprocess.run(
        [sys.executable, *warnings, "-m", "tests.notebooks", *map(str, paths)],
        cwd=REPOSITORY,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(ended.stdout or pytest.fail(ended.stderr[-3000:]))
    assert ended.returncode == any(of["error"] for of in found.values())
    return found


@pytest.fixture(scope="module")
def found():
    """What each said and the error that ended it. The one that asks for devices goes first: the process is then its."""
    return ran(*sorted(NOTEBOOKS, key=lambda path: path.stem != DEVICES))


def test_all_are_there():
    assert {path.stem for path in NOTEBOOKS} == EXPECTED


@pytest.mark.slow
@each
def test_it_runs_from_top_to_bottom(path, found):
    assert not found[path.stem]["error"], found[path.stem]["error"][-3000:]
    if path.stem == DEVICES:  # on one device its claims about bytes are not checked
        assert found[DEVICES]["said"].startswith("8 devices")


@each
def test_it_is_stored_without_outputs(path):
    book = notebooks.read(path)
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert book["metadata"]["kernelspec"]["name"] == "python3"
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in book["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@each
def test_it_has_a_title_and_installs_what_it_needs(path):
    book = notebooks.read(path)
    title = book["cells"][0]
    assert title["cell_type"] == "markdown"
    assert title["source"][0].startswith("# ")
    code = next("".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code")
    assert "except ImportError:" in code
    assert '%pip install -q "nl_jax[experiments]"' in code


@each
def test_its_claims_are_checked_between_the_figures(path):
    """Every notebook has several cells of asserts; none of them compares constants."""
    asserts = [
        node
        for _, code in notebooks.code_cells(path)
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Assert)
    ]
    assert len(asserts) >= 5
    for node in asserts:
        assert any(isinstance(part, ast.Name) for part in ast.walk(node.test)), ast.unparse(node)


@each
def test_every_page_and_experiment_it_names_is_there(path):
    text = "".join("".join(cell["source"]) for cell in notebooks.read(path)["cells"])
    for page in notebooks.named(text):
        assert (REPOSITORY / page).exists(), page


def book_of(tmp_path: Path, *cells: str) -> Path:
    """A notebook of these code cells."""
    path = tmp_path / "book.ipynb"
    path.write_text(
        notebooks.json.dumps(
            {"cells": [{"cell_type": "code", "id": f"cell{i}", "source": [code]} for i, code in enumerate(cells)]}
        )
    )
    return path


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (("x = 1", "assert x == 2"), "book.ipynb, cell cell1"),
        (("import warnings", "warnings.warn('mind')"), "UserWarning: mind"),
    ],
    ids=["a false claim", "a warning"],
)
def test_a_notebook_that_is_wrong_fails(tmp_path, cells, said):
    assert said in ran(book_of(tmp_path, *cells))["book"]["error"]


def test_lines_for_the_notebook_are_left_out(tmp_path):
    path = book_of(tmp_path, "try:\n    import ast\nexcept ImportError:\n    %pip install -q ast\n!ls\nx = 5 % 3")
    ((_, code),) = notebooks.code_cells(path)
    assert code == "try:\n    import ast\nexcept ImportError:\n    pass\npass\nx = 5 % 3"
    assert ran(path) == {"book": {"said": "", "error": ""}}
