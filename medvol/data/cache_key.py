"""The name of a cache entry: everything that decides what the deterministic steps make of an item.

A key is a digest of
* the content of the source files: size, modification time, and a hash of the first and last 64 KiB of each;
* every field of the item, because any step may read any of them: changing a label recomputes the case;
* the deterministic steps with all their parameters and code, see `cache_describe`;
* versions: medvol (with a digest of its source), MONAI, torch, NumPy, nibabel, pydicom, SimpleITK, the entry format,
  and whether MONAI tracks metadata.

What it cannot see: a file changed in its middle with size and time kept.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import get_track_meta

import medvol
from medvol.data.cache_describe import DIGEST_BYTES, describe
from medvol.data.cache_entry import FORMAT_VERSION
from medvol.errors import MedvolError

HASHED_BYTES = 64 * 1024  # at each end; headers stand at the start, and appending or rewriting moves the end
PACKAGES = ("monai", "torch", "numpy", "nibabel", "pydicom", "SimpleITK")


def chain_digest(steps: Sequence[Callable[..., Any]]) -> bytes:
    """Return the digest of the deterministic steps and of all versions.

    Raises:
        MedvolError: `NOT_DESCRIBABLE` naming the step whose parameters cannot be told apart.
    """
    digest = hashlib.blake2b(versions().encode(), digest_size=DIGEST_BYTES)
    digest.update(str(get_track_meta()).encode())
    for number, step in enumerate(steps):
        name = getattr(step, "__qualname__", type(step).__qualname__)
        digest.update(describe(step, what=f"step {number + 1} ({name})"))
    return digest.digest()


def item_keys(items: Sequence[Any], chain: bytes) -> list[str]:
    """Return the key of each item; each source file is looked at once.

    Raises:
        MedvolError: `NOT_DESCRIBABLE`, or what finding the files of a reference raises.
    """
    seen: dict[Path, bytes] = {}
    return [_item_key(item, chain, seen, number) for number, item in enumerate(items)]


def case_name(item: Any, number: int) -> str:
    """Return the name of a case for messages: its `case` field, else its position."""
    name = item.get("case") if isinstance(item, Mapping) else None
    return str(name) if name else f"#{number}"


def ends_of(path: Path) -> bytes:
    """Return a digest of a file's first and last 64 KiB, whatever its name and time; equal files have equal ones.

    Raises:
        OSError: Of a file that cannot be read.
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    with path.open("rb", buffering=0) as stream:
        _add_ends(stream, os.fstat(stream.fileno()).st_size, digest)
    return digest.digest()


def references(value: Any) -> Iterator[Path]:
    """Yield the files and folders that an item names.

    A bare word counts only when it is a file: the name of a case or a split may well be that of a folder.
    """
    if isinstance(value, Mapping):
        for item in value.values():
            yield from references(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from references(item)
    elif isinstance(value, (str, Path)) and (path := _existing(os.fspath(value))) is not None:
        yield path


@functools.cache
def versions() -> str:
    """Return the versions that an entry depends on, one per line."""
    lines = [f"entry {FORMAT_VERSION}", f"medvol {medvol.__version__} {_source_digest()}"]
    return "\n".join([*lines, *(f"{name} {_installed_version(name)}" for name in PACKAGES)])


def _item_key(item: Any, chain: bytes, seen: dict[Path, bytes], number: int) -> str:
    case = case_name(item, number)
    digest = hashlib.blake2b(chain, digest_size=DIGEST_BYTES)
    digest.update(describe(item, what="item", step=case))
    try:
        for path in references(item):
            for file in _files(path):
                if file not in seen:
                    seen[file] = _fingerprint(file)
                digest.update(seen[file])
    except MedvolError as error:
        raise error.for_case(case) from error
    except OSError as error:
        raise MedvolError(
            "CANNOT_READ",
            case=case,
            file=error.filename or "",
            found=error.strerror or str(error),
            fix="check the file and its permissions",
        ) from error
    return digest.hexdigest()


def _existing(text: str) -> Path | None:
    """Return the path a string names, without its fragment, when there is something."""
    from medvol.io.reference import parse_reference

    try:
        path = parse_reference(text).path
    except MedvolError:  # text that only looks like a reference, such as a remark with a '#'
        return None
    # os.path, because pathlib raises on text that is no path at all.
    if os.path.isfile(path) or (os.sep in text and os.path.isdir(path)):  # noqa: PTH112, PTH113
        return path
    return None


def _files(path: Path) -> Sequence[Path]:
    """Return the files that decide the voxels; of a folder all, which needs no header read and is on the safe side."""
    if path.is_dir():
        return sorted(Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    from medvol.io.reference import source_files

    return source_files(str(path))


def _fingerprint(path: Path) -> bytes:
    digest = hashlib.blake2b(str(path).encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES)
    with path.open("rb", buffering=0) as stream:
        status = os.fstat(stream.fileno())
        digest.update(f" {status.st_size} {status.st_mtime_ns} ".encode())
        _add_ends(stream, status.st_size, digest)
    return digest.digest()


def _add_ends(stream: io.FileIO, size: int, digest: hashlib.blake2b) -> None:
    digest.update(stream.read(HASHED_BYTES))
    if size > HASHED_BYTES:
        stream.seek(max(HASHED_BYTES, size - HASHED_BYTES))
        digest.update(stream.read(HASHED_BYTES))


def _source_digest() -> str:
    """Return a digest of medvol's own source, so that working on it does not need a new version to be seen."""
    digest = hashlib.blake2b(digest_size=8)
    root = Path(medvol.__file__).parent
    # The layers that cached steps are made of: tests/data/test_cache_key.py follows their imports.
    files = (file for layer in ("io", "data", "transforms") for file in root.glob(f"{layer}/**/*.py"))
    for file in sorted([root / "geometry.py", *files]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _installed_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
