"""The volume cache against MONAI's PersistentDataset and CacheDataset: the same volumes, chain and run.

    python tests/benchmarks/bench_cache.py [--cases 32] [--side 96] [--epochs 5]

Each data set runs in a process of its own, so that memory is its own. Volumes are int16 NIfTI (gzip), loaded and
oriented; `float` converts to float32 behind the cache as training does. Times are medians over the volumes, of each the
shortest of all epochs but the first. A crop is 64 cubed at a random place: `RandSpatialCropd` is MONAI's behind the
cache, `random_crop` and `read_crop` are ours without reading the rest. RSS is what the process grew by, `anon` the part
that the system cannot take back.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

NAMES = (
    "PersistentDataset",
    "PersistentDataset track_meta",
    "CacheDataset",
    "CachedVolumes",
    "CachedVolumes ram_bytes=0",
)


def write_study(folder: Path, cases: int, side: int) -> list[dict[str, str]]:
    import nibabel as nib
    import numpy as np

    rng = np.random.default_rng(0)
    items = []
    for number in range(cases):
        # Smooth plus noise: compresses about as a CT does.
        grid = np.linspace(-1, 1, side)
        ball = np.add.outer(np.add.outer(grid**2, grid**2), grid**2)
        voxels = (1000 * (ball < rng.uniform(0.3, 1)) - 1000 + rng.normal(0, 20, ball.shape)).astype(np.int16)
        path = folder / f"{number}.nii.gz"
        nib.save(nib.Nifti1Image(voxels, np.diag([-1.0, -1.0, 1.5, 1.0])), path)
        items.append({"case": str(number), "image": str(path)})
    return items


def make(name: str, items: list[dict[str, str]], steps: list[Any], folder: Path) -> Any:
    from monai.data import CacheDataset, PersistentDataset
    from monai.data.utils import pickle_hashing

    from medvol.data.cache import CachedVolumes

    if name.startswith("PersistentDataset"):
        # hash_transform, because without it a changed parameter gives old voxels.
        track = name.endswith("track_meta")
        return PersistentDataset(items, steps, cache_dir=folder, hash_transform=pickle_hashing, track_meta=track)
    if name == "CacheDataset":
        return CacheDataset(items, steps, num_workers=1, progress=False)
    ram_bytes = 0 if name.endswith("=0") else 2**31
    return CachedVolumes(items, steps, cache_dir=folder, ram_bytes=ram_bytes, progress=False)


def memory_mib() -> tuple[float, float]:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024, int(fields["RssAnon"].split()[0]) / 1024


def median_us(times: list[float]) -> float:
    return statistics.median(times) * 1e6


def access_times(dataset: Any, epochs: int) -> list[float]:
    """Return the shortest time of each volume: another process on the machine only ever adds."""
    times = [float("inf")] * len(dataset)
    for _ in range(epochs):
        for index in range(len(dataset)):
            start = time.perf_counter()
            item = dataset[index]
            times[index] = min(times[index], time.perf_counter() - start)
            del item
    return times


def measure(name: str, items: list[dict[str, str]], epochs: int, crop: int, queue: Any) -> None:
    warnings.simplefilter("ignore")
    import numpy as np
    import torch
    from monai.transforms import CastToTyped, Compose, EnsureChannelFirstd, Orientationd, RandSpatialCropd, Transform

    from medvol.data.cache import AfterCache
    from medvol.transforms.load import LoadVolumed

    class ToFloat(Transform, AfterCache):
        def __call__(self, data: Any) -> Any:
            return {**data, "image": data["image"].float()}

    torch.set_num_threads(1)
    load = [
        LoadVolumed(keys="image"),
        EnsureChannelFirstd(keys="image"),
        Orientationd(keys="image", axcodes="RAS", labels=None),
        CastToTyped(keys="image", dtype=torch.int16),
    ]
    random_crop = RandSpatialCropd(keys="image", roi_size=(crop,) * 3, random_size=False)
    Compose(load)(items[0])  # imports
    result: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        before = memory_mib()
        start = time.perf_counter()
        dataset = make(name, items, load, Path(folder))
        for item in dataset:
            del item
        result["first epoch s"] = time.perf_counter() - start
        whole = access_times(dataset, epochs)
        after = memory_mib()
        result["whole us"] = median_us(whole)
        result["epoch ms"] = sum(whole) * 1e3
        result["disk MiB"] = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 2**20
        result["RSS MiB"], result["anon MiB"] = (now - then for now, then in zip(after, before, strict=True))
        if name.startswith("CachedVolumes"):
            rng = np.random.default_rng(0)
            room = np.array(dataset[0]["image"].shape[1:]) - crop + 1
            read, drawn = [float("inf")] * len(items), [float("inf")] * len(items)
            for _ in range(epochs):
                for index in range(len(items)):
                    corner = rng.integers(0, room).tolist()
                    start = time.perf_counter()
                    dataset.read_crop(index, corner, (crop,) * 3)
                    read[index] = min(read[index], time.perf_counter() - start)
                for index in range(len(items)):
                    start = time.perf_counter()
                    dataset.random_crop(index, (crop,) * 3)
                    drawn[index] = min(drawn[index], time.perf_counter() - start)
            result["read_crop us"], result["random_crop us"] = median_us(read), median_us(drawn)
        later = make(name, items, [*load, ToFloat()] if name.startswith("CachedVolumes") else load, Path(folder))
        later[0]
        if not name.startswith("CachedVolumes"):
            later = _Then(later)
        access_times(later, 1)
        result["float us"] = median_us(access_times(later, epochs))
        crops = make(name, items, [*load, random_crop], Path(folder))
        access_times(crops, 1)
        result["RandSpatialCropd us"] = median_us(access_times(crops, epochs))
    queue.put(result)


class _Then:
    """A MONAI data set followed by the conversion that `ToFloat` is for ours."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        item = self.dataset[index]
        return {**item, "image": item["image"].float()}


COLUMNS = (
    "first epoch s",
    "epoch ms",
    "whole us",
    "float us",
    "RandSpatialCropd us",
    "random_crop us",
    "read_crop us",
    "disk MiB",
    "RSS MiB",
    "anon MiB",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cases", type=int, default=32)
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        items = write_study(Path(folder), options.cases, options.side)
        for name in NAMES:
            queue = context.Queue()
            process = context.Process(target=measure, args=(name, items, options.epochs, options.crop, queue))
            process.start()
            results[name] = queue.get(timeout=1200)
            process.join()
    print(f"{options.cases} volumes of {options.side} cubed, int16; crops of {options.crop} cubed")
    print(f"{'':30s}" + "".join(f"{column:>20s}" for column in COLUMNS))
    for name, result in results.items():
        print(
            f"{name:30s}"
            + "".join(f"{result[column]:20.1f}" if column in result else f"{'-':>20s}" for column in COLUMNS)
        )
    peer = results["PersistentDataset"]
    for name in ("CachedVolumes", "CachedVolumes ram_bytes=0"):
        ours = results[name]
        print(
            f"{name} against PersistentDataset: second epoch {peer['epoch ms'] / ours['epoch ms']:.1f} times as fast, "
            f"random crops {peer['RandSpatialCropd us'] / ours['random_crop us']:.1f}, "
            f"RandSpatialCropd {peer['RandSpatialCropd us'] / ours['RandSpatialCropd us']:.1f}"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
