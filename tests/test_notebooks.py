"""The notebooks can be read: short cells, words first, no path of a machine, outputs that belong to the source."""

import re
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext")

FOLDER = Path(__file__).parent.parent / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9]*.py"))
SCREEN_LINES = 25
LARGEST_BYTES = 300_000
ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|usr|opt|mnt|var|Users|builds?)/")


def names(path):
    return path.stem


def built(source):
    return jupytext.read(source.with_suffix(".ipynb"))


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_every_notebook_has_a_number_of_its_own_and_is_built():
    numbers = [path.name[:3] for path in SOURCES]
    assert numbers
    assert len(set(numbers)) == len(numbers)
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == [path.stem for path in SOURCES]


@pytest.mark.parametrize("source", SOURCES, ids=names)
def test_no_cell_is_longer_than_a_screen(source):
    lengths = [len(cell.source.splitlines()) for cell in jupytext.read(source).cells]
    assert max(lengths) <= SCREEN_LINES


@pytest.mark.parametrize("source", SOURCES, ids=names)
def test_a_notebook_begins_with_its_title_and_one_kernel_suits_all(source):
    notebook = jupytext.read(source)
    assert notebook.cells[0].cell_type == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert notebook.metadata["kernelspec"] == kernel


@pytest.mark.parametrize("source", SOURCES, ids=names)
def test_the_built_notebook_is_of_this_source_and_was_run_from_top_to_bottom(source):
    notebook = built(source)
    assert [cell.source for cell in notebook.cells] == [cell.source for cell in jupytext.read(source).cells]
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))


@pytest.mark.parametrize("source", SOURCES, ids=names)
def test_the_built_notebook_shows_pictures_and_neither_errors_nor_warnings(source):
    outputs = [output for cell in code(built(source)) for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert not [output for output in outputs if "Warning" in output.get("text", "")]


@pytest.mark.parametrize("source", SOURCES, ids=names)
def test_neither_source_nor_outputs_show_a_path_of_a_machine(source):
    for path in (source, source.with_suffix(".ipynb")):
        assert not ABSOLUTE.search(path.read_text())


@pytest.mark.parametrize("source", SOURCES, ids=names)
def test_a_built_notebook_is_small(source):
    assert source.with_suffix(".ipynb").stat().st_size <= LARGEST_BYTES
