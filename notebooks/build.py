"""Execute the notebooks and write them as .ipynb with their outputs: `python notebooks/build.py [01_volumes ...]`.

What would differ from machine to machine is left out: warnings, times, identifiers, widgets without a kernel. An output
that shows a path of the machine is an error. Pictures get a palette, which makes them a third as large.
"""

import base64
import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent
LARGEST_BYTES = 300_000
MOST_SECONDS = 1200  # of a cell, on a machine that is busy with something else
PATHS = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|usr|opt|mnt|var|Users|builds?)/")
WIDGET = "application/vnd.jupyter.widget-view+json"


def build(source: Path) -> None:
    """Execute one notebook and write it beside its source."""
    started = time.monotonic()
    notebook = jupytext.read(source)
    NotebookClient(notebook, timeout=MOST_SECONDS, resources={"metadata": {"path": str(FOLDER)}}).execute()
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    for index, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{index:02d}", {}
        if cell.cell_type == "code":
            cell.outputs = [tidied(output) for output in cell.outputs if output.get("name") != "stderr"]
    text = nbformat.writes(notebook) + "\n"
    shown = PATHS.search(text)
    if shown is not None:
        sys.exit(f"{source.name} shows a path: {text[shown.start() - 60 : shown.end() + 60]!r}")
    if len(text) > LARGEST_BYTES:
        sys.exit(f"{source.name} has {len(text):,} bytes, more than {LARGEST_BYTES:,}: show smaller pictures")
    source.with_suffix(".ipynb").write_text(text, encoding="utf-8")
    print(f"{source.stem}: {time.monotonic() - started:.0f} s, {len(text) / 1000:.0f} kB", flush=True)


def tidied(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return an output without what only a running kernel could show, its picture with a palette."""
    data = output.get("data", {})
    data.pop(WIDGET, None)
    if "image/png" in data:
        data["image/png"] = with_palette(data["image/png"])
    return output


def with_palette(encoded: str) -> str:
    """Return a PNG, base64 in and out, with at most 256 colours; the given one where that is smaller."""
    stream = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    # Pillow's default drops rare colours, which the outlines of masks are; k-means keeps greys grey.
    reduced = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
    reduced.save(stream, format="png", optimize=True)
    smaller = base64.b64encode(stream.getvalue()).decode("ascii")
    return min(smaller, encoded.replace("\n", ""), key=len)


if __name__ == "__main__":
    # The volumes are too small for two threads to gain, and on a busy machine threads that wait for each other cost ten
    # times the time.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chosen = sys.argv[1:]
    with tempfile.TemporaryDirectory() as place:  # where the notebooks put what they work on; nothing of it is left
        os.environ["TMPDIR"] = place
        for path in sorted(FOLDER.glob("[0-9]*.py")):
            if not chosen or path.stem in chosen:
                build(path)
