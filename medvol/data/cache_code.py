"""What identifies a piece of code: a package and its version, or the bytecode and what it reads."""

from __future__ import annotations

import dis
import functools
import importlib.metadata
import os
import struct
import sys
import sysconfig
import types
from pathlib import Path
from typing import Any

_FURNITURE = frozenset(
    {"__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__abstractmethods__"}
    | {"__firstlineno__", "__static_attributes__", "__annotate_func__", "__annotations_cache__", "__classdictcell__"}
    | {"_abc_impl", "__parameters__", "__orig_bases__", "__dataclass_params__", "__match_args__"}
)
"""Members of a class that say nothing of what it does, and some of which differ between two equal classes."""

_PACKAGE_FOLDERS = tuple(
    str(Path(folder).resolve()) + os.sep
    for name, folder in sysconfig.get_paths().items()
    if name in {"stdlib", "platstdlib", "purelib", "platlib"}
)
_PACKAGE_FOLDER_NAMES = {"site-packages", "dist-packages"}
"""Of the user (`pip install --user`), of a Linux distribution, of an environment below this one."""


_PLAIN_BYTES = type("_Plain", (), {}).__basicsize__
_POINTER_BYTES = struct.calcsize("P")


def package_of(module: str) -> str:
    """Return the top-level package when `module` is installed, built in, or medvol; empty for the user's own code."""
    top = module.partition(".")[0]
    if top == "medvol" or top in sys.stdlib_module_names:
        return top
    # A notebook's `__main__` has no file and is as much the user's own as a script is.
    file = getattr(sys.modules.get(module), "__file__", None)
    return top if file is not None and _is_installed(file) else ""


@functools.cache
def package_version(top: str) -> str:
    """Return the version of a top-level package, or an empty string when it has none."""
    if top in sys.stdlib_module_names:
        return ".".join(map(str, sys.version_info[:3]))
    version = getattr(sys.modules.get(top), "__version__", None)
    if isinstance(version, str):
        return version
    try:
        return importlib.metadata.version(top)
    except importlib.metadata.PackageNotFoundError:
        return ""


def qualified_name(value: Any) -> str:
    """Return module and name of a class or function."""
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"


def bytecode(code: types.CodeType) -> bytes:
    """Return what a code object does, without the constants and without file name and line numbers."""
    shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    handlers = getattr(code, "co_exceptiontable", b"")  # since Python 3.11
    return code.co_code + repr((shape, names, handlers)).encode()


def closure_of(function: types.FunctionType) -> list[tuple[str, Any]]:
    """Return the names and values that a function closes over; None for a name that is not assigned yet."""
    cells = function.__closure__ or ()
    return [
        (f"closure {name}", _content(cell)) for name, cell in zip(function.__code__.co_freevars, cells, strict=True)
    ]


def globals_of(function: types.FunctionType) -> list[tuple[str, Any]]:
    """Return the globals that a function and the functions within it read; builtins and attribute names are none."""
    names: set[str] = set()
    todo = [function.__code__]
    while todo:
        code = todo.pop()
        names.update(step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
        todo.extend(constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    found = function.__globals__
    return [(f"global {name}", found[name]) for name in sorted(names) if name in found]


def members_of(value: type) -> list[tuple[str, Any]]:
    """Return the methods and class attributes that a class defines itself."""
    generated = (types.GetSetDescriptorType, types.MemberDescriptorType)
    members = sorted(vars(value).items())
    return [(name, item) for name, item in members if name not in _FURNITURE and not isinstance(item, generated)]


def state_of(value: Any) -> dict[str, Any] | None:
    """Return the attributes of an object, from its slots and its `__dict__`; None when it can have none."""
    names = [name for base in type(value).__mro__ for name in _slots(base) if hasattr(value, name)]
    if not names and not hasattr(value, "__dict__"):
        return None
    return {name: getattr(value, name) for name in names} | getattr(value, "__dict__", {})


def has_hidden_state(value: Any) -> bool:
    """Tell whether an object, such as an open file, is larger than its attributes explain."""
    kind = type(value)
    slots = sum(len(_slots(base)) for base in kind.__mro__)
    return kind.__basicsize__ > _PLAIN_BYTES + slots * _POINTER_BYTES


def _slots(base: type) -> tuple[str, ...]:
    slots = vars(base).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None


@functools.cache
def _is_installed(file: str) -> bool:
    path = Path(file).resolve()
    if str(path).startswith(_PACKAGE_FOLDERS) or not _PACKAGE_FOLDER_NAMES.isdisjoint(path.parts):
        return True
    # A folder that packages were installed into by name (`pip install --target`) describes them. One's own code does
    # not, nor what was installed as editable, which is described elsewhere.
    return any(_describes_packages(folder) for folder in path.parents)


@functools.cache
def _describes_packages(folder: Path) -> bool:
    return folder in {Path(entry).resolve() for entry in sys.path if entry} and any(folder.glob("*.dist-info"))
