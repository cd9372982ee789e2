"""A generated folder is complete or absent, and is made once.

It is built beside its place and renamed into it. A marker inside, `cohort.json`, holds the arguments it was made with
and the size of every file, so that a later call with the same arguments finds it intact and returns at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from medvol.errors import MedvolError

MARKER = "cohort.json"
TABLE = "cases.csv"

GENERATOR_VERSION = 1
"""Raised whenever the same arguments give other files, so that old folders are made anew."""


def made_once(
    folder: str | PathLike[str], arguments: Mapping[str, Any], build: Callable[[Path], Mapping[str, Any]]
) -> Path:
    """Return the case table in `folder`, building the folder unless it is there already.

    Args:
        folder: Absent, empty, or made by an earlier call with the same arguments.
        arguments: What the content follows from, JSON-ready.
        build: Fills an empty folder, `cases.csv` included, and returns what the marker shall hold besides.

    Returns:
        Path of `cases.csv`.

    Raises:
        MedvolError: FOLDER_IN_USE when the folder holds anything else, of which nothing is touched; CANNOT_WRITE.
    """
    target = Path(folder)
    found = _inspect(target, arguments)
    if found == "intact":
        return target / TABLE
    draft = target.parent / f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        raise MedvolError(
            "CANNOT_WRITE", file=target, found=str(error.strerror), fix="name a folder that you may write to"
        ) from error
    try:
        facts = build(draft)
        _write_marker(draft, arguments, facts)
        _move_into_place(draft, target, arguments)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target / TABLE


def _inspect(target: Path, arguments: Mapping[str, Any]) -> str:
    """Return "absent", "intact", or "stale" for one that may be replaced; refuse anything that is not ours."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return "absent"
    marker = _marker_of(target)
    if marker is None:
        raise _in_use(target, f"a folder or file without {MARKER}")
    made_with = marker.get("arguments", {})
    if made_with != _plain(arguments):
        other = [name for name in arguments if made_with.get(name) != _plain(arguments)[name]]
        wanted = ", ".join(f"{name}={made_with.get(name)} instead of {arguments[name]}" for name in other[:3])
        raise _in_use(target, f"a cohort made with {wanted}")
    listed = marker.get("files", {})
    present = _sizes(target)
    if present == listed and marker.get("version") == GENERATOR_VERSION and marker["table_sha256"] == _hash(target):
        return "intact"
    foreign = sorted(set(present) - set(listed))
    if foreign:
        raise _in_use(target, f"{len(foreign)} files of another origin, e.g. {foreign[0]}, in a damaged or old cohort")
    return "stale"


def _move_into_place(draft: Path, target: Path, arguments: Mapping[str, Any]) -> None:
    if target.is_dir() and any(target.iterdir()):
        # Either stale, or another process was faster while we built.
        if _inspect(target, arguments) == "intact":
            return
        # Gone from its place in one step; a crash leaves the folder absent, never half empty.
        retired = draft.with_suffix(".old")
        target.rename(retired)
        draft.rename(target)
        shutil.rmtree(retired, ignore_errors=True)
        return
    try:
        draft.replace(target)
    except OSError:
        if not target.exists() or _inspect(target, arguments) != "intact":
            raise


def _write_marker(folder: Path, arguments: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    content = {
        "version": GENERATOR_VERSION,
        "arguments": dict(arguments),
        **facts,
        "table_sha256": _hash(folder),
        "files": _sizes(folder),
    }
    (folder / MARKER).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _marker_of(folder: Path) -> dict[str, Any] | None:
    try:
        content = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _sizes(folder: Path) -> dict[str, int]:
    """Return the size of every file but the marker, by path relative to the folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MARKER)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def _hash(folder: Path) -> str:
    table = folder / TABLE
    return hashlib.sha256(table.read_bytes()).hexdigest() if table.is_file() else ""


def _plain(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments as they come back from JSON: tuples are lists there."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(arguments)))
    return plain


def _in_use(target: Path, found: str) -> MedvolError:
    return MedvolError(
        "FOLDER_IN_USE",
        file=target,
        found=found,
        expected="an absent or empty folder, or a cohort made with the same arguments",
        fix="name another folder or delete this one",
    )
