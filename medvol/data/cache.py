"""A data set whose deterministic steps run once: the volume cache.

    dataset = CachedVolumes(items, chain, cache_dir="cache")
    dataset.fill()                        # optional; a bad file is found now, not in the middle of an epoch
    loader = DataLoader(dataset, ...)

Choices and their reasons:

* Sources are looked at when the data set is made, at `set_data` and at `fill`, not at each access: one look per life is
  what keeps a hit at tens of microseconds. A file that changes meanwhile is seen by the next data set.
* What an access costs (96 cubed, int16, 1.8 MB, one core): copying out of memory 50 us, reading the file 40 to 65 us,
  mapping it and touching every page 300 us. So volumes are copied or read, and only arrays of 8 MiB or more are mapped
  copy-on-write, which wins when a crop uses a part of them. Crops of smaller ones read the planes they need.
* Workers of a loader hold nothing in memory of their own: they inherit what the main process holds when they are
  forked, and share the page cache otherwise. Memory times workers is how MONAI's `CacheDataset` ends a run.
* A checksum is verified at the first access in a process.
* Random steps are seeded from (seed, epoch, item, access), so that any number of workers gives the same items. Items
  that are drawn twice in an epoch by different workers at the same moment are the exception.
"""

from __future__ import annotations

import copy
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from torch.utils.data import Dataset, Subset
from tqdm import tqdm

from medvol.data import cache_codec
from medvol.data.cache_chain import AfterCache, as_chain, count_cached, run, run_cached, seed_item
from medvol.data.cache_counts import NAMES, SharedCounts
from medvol.data.cache_crop import Source, StartOf, build_crop, from_memory
from medvol.data.cache_key import case_name, chain_digest, item_keys
from medvol.data.cache_store import CacheFolder
from medvol.data.cache_tiers import Recipe, Tiers
from medvol.data.notes import ReaderNotes, notes_of
from medvol.errors import MedvolError

__all__ = ["AfterCache", "CacheStats", "CachedVolumes"]

RAM_BYTES = 2 * 2**30
MAX_DISK_BYTES = 50 * 2**30
DrawStart = Callable[[Sequence[int], Mapping[str, Any], np.random.RandomState], Sequence[int]]
MANY_FAILURES = 10  # when so many cases fail, the chain is at fault, and the rest need not be waited for


@dataclass(frozen=True)
class CacheStats:
    """What a data set did since it was made, in all processes.

    Args:
        hits: Accesses that found a prepared item.
        misses: Accesses that ran the deterministic steps.
        damaged: Entries that were torn, flipped or foreign, and were recomputed.
        uncached: Misses whose result could not be stored on disk.
        ram_bytes: Bytes of the entries held in memory by this process.
        disk_bytes: Bytes of all entries in the folder, those of other data sets included.
    """

    hits: int
    misses: int
    damaged: int
    uncached: int
    ram_bytes: int
    disk_bytes: int


@final
class CachedVolumes(Dataset[Any]):
    """Items after a chain of transforms, whose deterministic part is computed once and kept on disk and in memory.

    All steps before the first random one (`RandomizableTrait`) or `AfterCache` run once per item; the rest run on each
    access. The item of the first access and of every later one are equal in type, dtype, affine, metadata and applied
    operations, and are the caller's own: changing one never changes the cache. An index gives an item, a slice or a
    list of indices a `Subset`.

    Args:
        data: Items, e.g. `{"case": "a", "image": "/path/a.nii.gz", "label": 1}`.
        transform: A `Compose`, a sequence of callables, or one.
        cache_dir: Folder of the entries; may be shared between data sets, chains and processes.
        ram_bytes: Entries are held in memory up to so many bytes; 0 holds none.
        max_disk_bytes: Bytes that all entries in the folder may take together.
        seed: Of the random steps; None leaves their generators alone, as MONAI does.
        progress: Whether `fill` shows a progress bar.

    Raises:
        MedvolError: `NOT_DESCRIBABLE` for a step without a key, `BAD_TRANSFORM`, `NOT_A_FOLDER`.
    """

    def __init__(
        self,
        data: Sequence[Any],
        transform: Sequence[Callable[..., Any]] | Callable[..., Any] | None,
        *,
        cache_dir: str | os.PathLike[str],
        ram_bytes: int = RAM_BYTES,
        max_disk_bytes: int = MAX_DISK_BYTES,
        seed: int | None = 0,
        progress: bool = True,
    ) -> None:
        self.transform = as_chain(transform)
        self.cached_steps = count_cached(self.transform)
        self.seed = seed
        self.progress = progress
        self._generator = np.random.RandomState()
        self._counts = SharedCounts(0)
        folder = CacheFolder(Path(cache_dir), max_disk_bytes)
        folder.sweep()
        self._tiers = Tiers(folder, ram_bytes, self._counts)
        self.set_data(data)

    def set_data(self, data: Sequence[Any]) -> None:
        """Take other items. What is prepared already is used; nothing on disk is deleted.

        As with MONAI's `CacheDataset`, a loader with persistent workers has to be made anew.
        """
        keys = self._keys_of(data)  # may refuse; then everything stays as it was
        counts = SharedCounts(len(data))
        counts.take_over(self._counts)
        self._counts = self._tiers.counts = counts
        self.data, self._keys = data, keys
        self._tiers.begin(keys)

    def fill(self) -> CacheStats:
        """Prepare what is missing and check what is there, with a progress bar; warn of what readers noted.

        Raises:
            MedvolError: Of the first case that cannot be prepared; the other failures stand in `details`.
        """
        self._keys = self._keys_of(self.data)
        self._tiers.begin(self._keys)
        failures: list[MedvolError] = []
        notes = ReaderNotes()
        for index in tqdm(range(len(self)), desc="Preparing volumes", unit="case", disable=not self.progress):
            try:
                if self.cached_steps:
                    recipe = self._recipe(index)
                    notes.add(recipe.case, notes_of(self._tiers.ensure(recipe)))
            except MedvolError as error:
                failures.append(error)
                if len(failures) >= MANY_FAILURES:
                    break
        notes.warn()
        if failures:
            raise _summary(failures) from failures[0]
        return self.stats

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins: a resumed run then draws what the uninterrupted one would have drawn.

        Without it, the random steps of an item differ from access to access all the same.
        """
        self._counts.start_epoch(epoch)

    @property
    def stats(self) -> CacheStats:
        """Return the counts so far; lists the folder."""
        counts = {name: self._counts.total(name) for name in NAMES}
        on_disk = sum(entry.nbytes for entry in self._tiers.folder.entries())
        return CacheStats(**counts, ram_bytes=self._tiers.ram_used, disk_bytes=on_disk)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self.data)

    def __getitem__(self, index: int | slice | Sequence[int]) -> Any:
        """Return an item, or a `Subset` for a slice or a sequence of indices."""
        if isinstance(index, slice):
            return Subset(self, range(*index.indices(len(self))))
        if isinstance(index, Sequence):
            return Subset(self, index)
        number = self._number(index)
        return self.finish(number, self._cached_item(number))

    def __getitems__(self, indices: Iterable[int]) -> list[Any]:
        """Return several items; what a loader asks for when it fetches a batch."""
        return [self[index] for index in indices]

    def read_crop(self, index: int, start: Sequence[int], size: Sequence[int]) -> Any:
        """Return a crop of the *cached* item, reading only the crop; nothing after the cache is run.

        Every image directly in the item is cropped; they must share a spatial shape. Affines move to the crop's first
        voxel, and the crop is traced like MONAI's `SpatialCrop`. For the steps after the cache: `finish(index, crop)`.

        Args:
            index: Number of the item.
            start: First voxel along each axis after the channel.
            size: Voxels along each axis after the channel.

        Raises:
            MedvolError: `BAD_CROP`, or what preparing the item raises.
        """
        return self._crop(self._number(index), lambda shape, item: tuple(start), size)

    def random_crop(self, index: int, size: Sequence[int]) -> Any:
        """Return a crop at a random place, after all steps.

        What a `RandSpatialCropd` before the other random steps would give, without reading or copying the rest of the
        volume. Where it lies depends on seed, epoch, item and access, as all that is random here.

        Args:
            index: Number of the item.
            size: Voxels along each axis after the channel.

        Raises:
            MedvolError: `BAD_CROP` when an image is smaller, or what preparing the item or a later step raises.
        """

        def anywhere(shape: Sequence[int], item: Mapping[str, Any], generator: np.random.RandomState) -> list[int]:
            # A side that is too short is refused by name later; here it must only not fail.
            room = [max(side - length, 0) for side, length in zip(shape, size, strict=True)]
            return [int(generator.randint(0, most + 1)) for most in room]

        return self.drawn_crop(index, size, anywhere)

    def drawn_crop(self, index: int, size: Sequence[int], draw_start: DrawStart) -> Any:
        """Return a crop at a place that `draw_start` draws, after all steps.

        Args:
            index: Number of the item.
            size: Voxels along each axis after the channel.
            draw_start: Returns the first voxel along each axis, given the image's lengths, the fields of the cached
                item that are not cropped, and a generator seeded as in `random_crop`.

        Raises:
            MedvolError: As `random_crop`.
        """
        number = self._number(index)

        def seeded(shape: Sequence[int], item: Mapping[str, Any]) -> Sequence[int]:
            self._seed((), number)
            return draw_start(shape, item, self._generator)

        return self.finish(number, self._crop(number, seeded, size))

    def _crop(self, number: int, draw_start: StartOf, size: Sequence[int]) -> Any:
        recipe = self._recipe(number)

        def make(template: Any, source: Source) -> Any:
            return build_crop(template, source, draw_start, tuple(size), case=recipe.case)

        if self.cached_steps:
            return self._tiers.part(recipe, make)
        content, arrays = cache_codec.encode(self.data[number], case=recipe.case)
        return make(cache_codec.template(content), from_memory(arrays))

    def finish(self, index: int, item: Any) -> Any:
        """Run the steps after the cache on an item or a crop of it.

        Raises:
            MedvolError: What a step raises, with the case named.
        """
        steps = self.transform.transforms[self.cached_steps :]
        if not steps:
            return item
        number = self._number(index)
        self._seed(steps, number)
        return run(self.transform, item, start=self.cached_steps, case=case_name(self.data[number], number))

    def _seed(self, steps: Sequence[Any], number: int) -> None:
        if self.seed is not None:
            numbers = (self.seed, self._counts.epoch, number, self._counts.visit(number))
            seed_item(steps, self._generator, numbers)

    def _number(self, index: int) -> int:
        number = operator.index(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"index {number} is out of range for {len(self)} items")
        return number % len(self)

    def _keys_of(self, data: Sequence[Any]) -> list[str]:
        return item_keys(data, chain_digest(self.transform.transforms[: self.cached_steps]))

    def _recipe(self, number: int) -> Recipe:
        item, case = self.data[number], case_name(self.data[number], number)

        def compute() -> Any:
            return run_cached(self.transform, self.cached_steps, copy.deepcopy(item), case=case)

        return Recipe(self._keys[number], case, compute)

    def _cached_item(self, number: int) -> Any:
        """Return the item after the cached steps, fresh."""
        if self.cached_steps == 0:
            return copy.deepcopy(self.data[number])
        return self._tiers.item(self._recipe(number))


def _summary(failures: Sequence[MedvolError]) -> MedvolError:
    """Return the first failure, with the others in its details."""
    first = failures[0]
    return MedvolError(
        first.code,
        found=first.found,
        expected=first.expected,
        fix=first.fix,
        case=first.case,
        file=first.file,
        details=[*first.details, *(failure.message for failure in failures[1:])],
    )
