"""Entries by key: in memory as far as a budget goes, on disk as far as the folder takes them, else computed."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from torch.utils.data import get_worker_info

from medvol.data import cache_codec, cache_entry
from medvol.data.cache_counts import SharedCounts
from medvol.data.cache_crop import Source, from_file, from_memory
from medvol.data.cache_entry import Array, EntryDamaged, Header
from medvol.data.cache_store import CacheFolder


@dataclass(frozen=True)
class Recipe:
    """How to get an entry that is not there.

    Args:
        key: Name of the entry.
        case: For messages.
        compute: Returns the item after the deterministic steps.
    """

    key: str
    case: str
    compute: Callable[[], Any]


@dataclass(frozen=True)
class _Held:
    """An entry that this process has seen and verified; `arrays` is None when they are read from disk each time."""

    header: Header
    template: Any
    arrays: tuple[Array, ...] | None = None


@final
class Tiers:
    """The memory and the disk of one data set.

    Args:
        folder: Where entries lie on disk.
        ram_bytes: Bytes of arrays held in memory.
        counts: Where hits, misses, damaged entries and uncached results are counted.
    """

    def __init__(self, folder: CacheFolder, ram_bytes: int, counts: SharedCounts) -> None:
        self.folder = folder
        self.ram_bytes = ram_bytes
        self.ram_used = 0
        self.counts = counts
        self._held: dict[str, _Held] = {}
        self._own: Collection[str] = frozenset()
        self._storing = True

    def begin(self, keys: Collection[str]) -> None:
        """Say which entries the data set has from now on; others leave the memory, and the disk is tried again."""
        self._own = frozenset(keys)
        self._held = {key: held for key, held in self._held.items() if key in self._own}
        self.ram_used = sum(held.header.length for held in self._held.values() if held.arrays is not None)
        self._storing = True

    def item(self, recipe: Recipe) -> Any:
        """Return a fresh item."""
        held = self._held.get(recipe.key)
        arrays = None if held is None else self._read(recipe.key, held)
        if held is None or arrays is None:
            held, arrays = self._first_access(recipe)
            if held.arrays is not None:
                arrays = [array.copy() for array in arrays]
        else:
            self.counts.add("hits")
        return cache_codec.build(held.template, arrays)

    def part(self, recipe: Recipe, make: Callable[[Any, Source], Any]) -> Any:
        """Return what `make` builds from an entry's template and a source that reads no more than it is asked for."""
        held = self._held.get(recipe.key)
        if held is None:
            held, arrays = self._first_access(recipe)
            return make(held.template, from_memory(arrays))
        if held.arrays is not None:
            self.counts.add("hits")
            return make(held.template, from_memory(held.arrays))
        with contextlib.suppress(EntryDamaged, OSError):
            with self._opened(recipe.key, held) as descriptor:
                part = make(held.template, from_file(descriptor, held.header))
            self.counts.add("hits")
            return part
        held, arrays = self._first_access(recipe)
        return make(held.template, from_memory(arrays))

    def ensure(self, recipe: Recipe) -> Any:
        """Prepare an entry unless this process has it and it is still there; return its template."""
        held = self._held.get(recipe.key)
        if held is None or (held.arrays is None and self._read(recipe.key, held) is None):
            held, _ = self._first_access(recipe)
        return held.template

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker reads from disk; sending it the memory of the main process would copy it.
        return self.__dict__ | {"_held": {}, "ram_used": 0}

    def _read(self, key: str, held: _Held) -> list[Array] | None:
        """Return copies of a verified entry's arrays, or None when its file is gone, replaced or cut."""
        if held.arrays is not None:
            return [array.copy() for array in held.arrays]
        try:
            with self._opened(key, held) as descriptor:
                return cache_entry.read_arrays(descriptor, held.header)
        except (EntryDamaged, OSError):
            return None

    @contextlib.contextmanager
    def _opened(self, key: str, held: _Held) -> Iterator[int]:
        """Open the file of a verified entry, if it still is the same."""
        descriptor = self.folder.open(key)
        if descriptor is None:
            raise EntryDamaged("removed")
        try:
            if not cache_entry.is_same(descriptor, held.header):
                raise EntryDamaged("replaced")
            yield descriptor
        finally:
            os.close(descriptor)

    def _first_access(self, recipe: Recipe) -> tuple[_Held, list[Array]]:
        """Return an entry that this process has not seen: from disk when it is there and sound, else computed."""
        key = recipe.key
        found = self._open(key, count_damage=False)
        if found is None:
            with self.folder.only_one(key):
                # Another process may have computed it while this one waited.
                found = self._open(key, count_damage=True)
                if found is None:
                    found = self._compute(recipe)
        return found

    def _open(self, key: str, *, count_damage: bool) -> tuple[_Held, list[Array]] | None:
        """Return a verified entry from disk."""
        try:
            descriptor = self.folder.open(key)
            if descriptor is None:
                return None
            try:
                header = cache_entry.read_header(descriptor, key)
                arrays = cache_entry.read_arrays(descriptor, header)
            finally:
                os.close(descriptor)
            cache_entry.verify(header, arrays)
        except (EntryDamaged, OSError):
            if count_damage:
                self.counts.add("damaged")
            return None
        self.folder.mark_used(key)
        self.counts.add("hits")
        return self._hold(key, header, arrays, on_disk=True), arrays

    def _compute(self, recipe: Recipe) -> tuple[_Held, list[Array]]:
        """Run the deterministic steps and store what comes out."""
        content, arrays = cache_codec.encode(recipe.compute(), case=recipe.case)
        # A step may pass on an array that it keeps itself, such as an atlas.
        arrays = [np.array(array, order="C") for array in arrays]
        header, head = cache_entry.pack(recipe.key, content, arrays)
        self.counts.add("misses")
        stored = self._store(recipe.key, head, header, arrays)
        if not stored:
            self.counts.add("uncached")
        return self._hold(recipe.key, header, arrays, on_disk=stored), arrays

    def _hold(self, key: str, header: Header, arrays: list[Array], *, on_disk: bool) -> _Held:
        """Remember an entry, with its arrays where the budget allows it."""
        held = _Held(header, cache_codec.template(header.content))
        # A large array is better mapped from the page cache than copied out of memory at each access.
        is_large = any(place.nbytes >= cache_entry.MAPPED_BYTES for place in header.places)
        fits = get_worker_info() is None and self.ram_used + header.length <= self.ram_bytes
        if fits and not (is_large and on_disk):
            self.ram_used += header.length
            held = replace(held, arrays=tuple(arrays))
        if held.arrays is not None or on_disk:
            self._held[key] = held
        return held

    def _store(self, key: str, head: bytes, header: Header, arrays: Sequence[Array]) -> bool:
        """Write an entry; after the first failure nothing is tried until `begin`."""
        if not self._storing:
            return False
        reason = f"the entries would take more than max_disk_bytes = {self.folder.max_bytes}"
        try:
            self._storing = self.folder.store(key, head, header, arrays, self._own)
        except OSError as error:
            self._storing = False
            reason = error.strerror or str(error)
        if not self._storing and self.counts.warn_once():
            warnings.warn(
                f"the volume cache in {self.folder.path} cannot take more: {reason}; going on without it, "
                "cases that do not fit into memory are prepared anew at each access",
                stacklevel=2,
            )
        return self._storing
