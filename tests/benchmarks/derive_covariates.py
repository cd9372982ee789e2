"""Two covariates of the shapes in AdrenalMNIST3D, for the fusion bundle: a case table beside which the npz stays.

    python tests/benchmarks/derive_covariates.py adrenalmnist3d.npz adrenal_covariates.csv

`volume_voxels` counts the voxels of the gland; `elongation` is the ratio of the largest to the smallest standard
deviation of their positions along the principal axes. Both are read off the binary shape, so the image holds them too:
what the fusion gains is what a shape says beyond its size and length.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

CLASSES = ("normal", "hyperplasia")


def volume_and_elongation(shape: npt.NDArray[np.bool_]) -> tuple[int, float]:
    """Return the number of voxels and the ratio of the principal axes of one shape."""
    places = np.argwhere(shape).astype(np.float64)
    spread = np.linalg.eigvalsh(np.cov(places.T))
    return len(places), float(np.sqrt(spread[-1] / max(spread[0], 1e-6)))


def main(source: str, target: str) -> None:
    """Write the table and what it cannot say itself."""
    path, table = Path(source).resolve(), Path(target)
    arrays = np.load(path)
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case", "image", "label", "split", "volume_voxels", "elongation"])
        for part in ("train", "val", "test"):
            labels = arrays[f"{part}_labels"].ravel()
            for index, (volume, label) in enumerate(zip(arrays[f"{part}_images"], labels, strict=True)):
                count, elongation = volume_and_elongation(volume > 0)
                image = f"{path}#{part}_images[{index}]"
                writer.writerow([f"{part}{index:04d}", image, CLASSES[label], part, count, f"{elongation:.4f}"])
    # As medvol reads the npz itself: see medvol/data/medmnist.py. Of two classes the last is the positive one.
    facts = {"classes": list(CLASSES), "task": "classification", "laterality_matters": False}
    table.with_name(f"{table.stem}.study.json").write_text(json.dumps(facts, indent=4))


if __name__ == "__main__":
    main(*sys.argv[1:])
