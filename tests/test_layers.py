"""The architecture, enforced: imports point down the list of layers, and nothing light imports anything heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "medvol"

LAYERS = [
    "cli",
    "commands",
    "bundle",
    "report",
    "explain",
    "training",
    "inference",
    "networks",
    "transforms",
    "data",
    "metrics",
    "io",
    "phantoms",
    "geometry",
    "errors",
]
"""From top to bottom; a module imports from its own layer and from those below it."""

LIGHT = ["medvol", "medvol.cli", "medvol.errors", "medvol.geometry", "medvol.io", "medvol.metrics", "medvol.data.table"]
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported_layers(path):
    """Yield the layer of each medvol module that a file imports, lazily or not."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom) and node.module == "medvol":
            names = [f"medvol.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "medvol" and len(parts) > 1 and parts[1] in LAYERS:
                yield parts[1]


def layer_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_the_layers(path):
    layer = layer_of(path)
    if layer == "__init__":
        assert not list(imported_layers(path)), "import medvol must stay light"
        return
    upwards = [name for name in imported_layers(path) if LAYERS.index(name) < LAYERS.index(layer)]
    assert not upwards, f"{layer} may not import from {upwards}"


def test_every_module_belongs_to_a_layer():
    assert {layer_of(path) for path in MODULES} - {"__init__"} <= set(LAYERS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_holds_one_idea_in_about_300_lines(path):
    assert len(path.read_text().splitlines()) <= 330


def test_the_light_part_imports_neither_torch_nor_monai():
    code = f"import sys, {', '.join(LIGHT)}; print([name for name in ('torch', 'monai') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
