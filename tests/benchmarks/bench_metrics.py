"""Scores of a label map of 25 structures: `score_case` against MONAI's three metrics, and against distance transforms.

    python tests/benchmarks/bench_metrics.py [--shape 160 256 256] [--repeats 3] [--threads 2]

Two maps of 25 ellipsoids that differ by about a voxel, spacing 1.5 x 1 x 1 mm. MONAI gets the same maps one-hot, as
`DiceMetric`, `HausdorffDistanceMetric(percentile=95)` and `SurfaceDiceMetric` want them; making them one-hot is timed
too and shown apart. Distance transforms run on the bounding box of each structure. Times are the shortest of all
repeats, the values are checked to agree. Memory is what the process's peak grew by, measured in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

STRUCTURES = {f"structure {label}": label for label in range(1, 26)}
SPACING_MM = (1.5, 1.0, 1.0)
TOLERANCE_MM = 1.0


def ellipsoids(shape: Sequence[int], jitter: float) -> Any:
    """Return 25 ellipsoids in a 5 x 5 pattern; a jitter of 1 moves and scales each by about a voxel."""
    labels = np.zeros(shape, dtype=np.uint8)
    fixed, moved = np.random.default_rng(1), np.random.default_rng(2)
    pitch = np.array([shape[0], shape[1] / 5, shape[2] / 5])
    for label in range(1, 26):
        row, column = divmod(label - 1, 5)
        centre = pitch * (0.5, row + 0.5, column + 0.5) + fixed.uniform(-0.1, 0.1, 3) * pitch
        axes = fixed.uniform(0.22, 0.38, 3) * pitch * (0.5, 1.0, 1.0)
        centre, axes = centre + jitter * moved.normal(0, 1, 3), axes * (1 + 0.03 * jitter * moved.normal(0, 1, 3))
        low = np.maximum((centre - axes).astype(int), 0)
        high = np.minimum((centre + axes).astype(int) + 2, shape)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        grid = np.ogrid[box]
        inside = sum(((x - c) / a) ** 2 for x, c, a in zip(grid, centre, axes, strict=True)) <= 1
        labels[box][inside] = label
    return labels


def ours(pred: Any, truth: Any) -> tuple[dict[str, float], Any]:
    from medvol.metrics.segmentation import score_case

    start = time.perf_counter()
    scores = score_case(pred, truth, STRUCTURES, SPACING_MM, nsd_tolerance_mm=TOLERANCE_MM)
    whole = time.perf_counter() - start
    return {"all s": whole}, np.array(
        [[score[name] for name in ("dice", "hd95_mm", "nsd")] for score in scores.values()]
    )


def monai(pred: Any, truth: Any) -> tuple[dict[str, float], Any]:
    import torch
    from monai.metrics import DiceMetric, HausdorffDistanceMetric, SurfaceDiceMetric
    from monai.networks import one_hot

    def encoded(labels: Any) -> Any:
        return one_hot(torch.from_numpy(labels)[None, None], len(STRUCTURES) + 1, dtype=torch.uint8)

    start = time.perf_counter()
    pair = encoded(pred), encoded(truth)
    times = {"one-hot s": time.perf_counter() - start}
    measures = {
        "dice s": (DiceMetric(include_background=False), {}),
        "hd95 s": (HausdorffDistanceMetric(percentile=95), {"spacing": SPACING_MM}),
        "nsd s": (SurfaceDiceMetric([TOLERANCE_MM] * len(STRUCTURES)), {"spacing": SPACING_MM}),
    }
    values = []
    for name, (measure, options) in measures.items():
        begin = time.perf_counter()
        values.append(measure(*pair, **options)[0].numpy())
        times[name] = time.perf_counter() - begin
    return {**times, "all s": time.perf_counter() - start}, np.stack(values, axis=1)


def transforms(pred: Any, truth: Any) -> tuple[dict[str, float], Any]:
    from scipy.ndimage import binary_erosion, distance_transform_edt

    from medvol.metrics.masks import crop_to_foreground
    from medvol.metrics.overlap import dice

    start = time.perf_counter()
    pair = crop_to_foreground(pred, truth)
    values = []
    for label in STRUCTURES.values():
        masks = [np.pad(mask, 1) for mask in crop_to_foreground(*(labels == label for labels in pair))]
        surfaces = [mask & ~binary_erosion(mask) for mask in masks]
        away = [distance_transform_edt(~surface, sampling=SPACING_MM) for surface in surfaces]
        both = away[1][surfaces[0]], away[0][surfaces[1]]
        near = np.concatenate(both) <= TOLERANCE_MM
        values.append((dice(*masks), max(np.percentile(part, 95) for part in both), near.mean()))
    return {"all s": time.perf_counter() - start}, np.array(values)


METHODS: dict[str, Callable[[Any, Any], tuple[dict[str, float], Any]]] = {
    "score_case": ours,
    "MONAI": monai,
    "distance transforms": transforms,
}


def measure(name: str, shape: Sequence[int], repeats: int, threads: int, queue: Any) -> None:
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(threads)
    pred, truth = ellipsoids(shape, 1.0), ellipsoids(shape, 0.0)
    small = ellipsoids((24, 60, 60), 0.0)
    METHODS[name](small, small)  # imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    runs = [METHODS[name](pred, truth) for _ in range(repeats)]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    times = {key: min(run[0][key] for run in runs) for key in runs[0][0]}
    queue.put(({**times, "peak MiB": grown}, runs[0][1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--shape", type=int, nargs=3, default=(160, 256, 256))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of torch; the others have one")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    results = {}
    for name in METHODS:
        queue = context.Queue()
        process = context.Process(target=measure, args=(name, options.shape, options.repeats, options.threads, queue))
        process.start()
        results[name] = queue.get(timeout=1200)
        process.join()
    reference = results["score_case"][1]
    columns = ("one-hot s", "dice s", "hd95 s", "nsd s", "all s", "peak MiB")
    print(f"{len(STRUCTURES)} structures in {tuple(options.shape)} voxels, mean Dice {reference[:, 0].mean():.3f}")
    print(f"{'':22s}" + "".join(f"{column:>12s}" for column in columns) + f"{'ratio':>8s}{'differs by':>12s}")
    for name, (numbers, values) in results.items():
        cells = "".join(f"{numbers[column]:12.2f}" if column in numbers else f"{'-':>12s}" for column in columns)
        ratio = numbers["all s"] / results["score_case"][0]["all s"]
        print(f"{name:22s}{cells}{ratio:8.1f}{np.abs(values - reference).max():12.1e}")


if __name__ == "__main__":
    main()
