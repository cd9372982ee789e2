"""Writing a label map of 20 structures as a DICOM segmentation, against the same labels as NIfTI.

    python tests/benchmarks/bench_dicom_write.py [--slices 300] [--size 512]

Balls in a series of plain slices that is written first. `headers` is reading the series' headers, which every kind
needs once; the other lines are from the labels in memory to the file on disk, the best of three. NIfTI is our own
writer. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from medvol.geometry import Volume
from medvol.io.dicom_source import dicom_source
from medvol.io.dicom_write_seg import KINDS, Algorithm, write_segmentation
from medvol.io.segment_codes import coded_structures
from medvol.io.write_nifti import write_mask
from medvol.phantoms.dicom import write_dicom_series

STRUCTURES = (
    *(
        "liver",
        "spleen",
        "kidney_left",
        "kidney_right",
        "pancreas",
        "stomach",
        "gallbladder",
        "aorta",
        "heart",
        "spine",
    ),
    *("lung_left", "lung_right", "esophagus", "trachea", "colon", "duodenum", "urinary_bladder", "prostate", "tumour"),
    "inferior_vena_cava",
)


def balls(shape: tuple[int, int, int]) -> np.ndarray:
    """Return 20 balls, z slowest in memory as a volume from a series is."""
    rng = np.random.default_rng(0)
    labels = np.zeros(shape[::-1], dtype=np.uint8).T
    radius = min(shape) // 7
    for label in range(1, len(STRUCTURES) + 1):
        centre = [int(rng.integers(radius, length - radius)) for length in shape]
        box = tuple(slice(one - radius, one + radius) for one in centre)
        offsets = np.stack(np.meshgrid(*[np.arange(-radius, radius)] * 3, indexing="ij"))
        labels[box][np.linalg.norm(offsets, axis=0) < radius] = label
    return labels


def best(work: Callable[[], object], rounds: int = 3) -> float:
    """Return the seconds of the fastest of some calls."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def main() -> None:
    """Print a line per format: seconds, the ratio to NIfTI, megabytes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--slices", type=int, default=300)
    options = parser.parse_args()
    shape = (options.size, options.size, options.slices)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        affine = np.diag([-0.7, -0.7, 1.0, 1.0])
        write_dicom_series(Volume(np.zeros(shape, dtype=np.int16), affine), place / "ct")
        labels, structures = balls(shape), coded_structures(STRUCTURES)
        source = dicom_source(place / "ct")
        print(f"{' x '.join(map(str, shape))}, {len(structures)} structures")
        print(f"  headers          {best(lambda: dicom_source(place / 'ct')):6.2f} s")
        nifti = best(lambda: write_mask(place / "a.nii.gz", labels, affine, ("background", *STRUCTURES)))
        print(f"  nifti            {nifti:6.2f} s   1.0   {(place / 'a.nii.gz').stat().st_size / 1e6:7.2f} MB")
        for kind in KINDS:
            path = place / f"{kind}.dcm"

            def work(path: Path = path, kind: str = kind) -> None:
                algorithm = Algorithm("medvol benchmark")
                write_segmentation(path, labels, affine, source, structures, algorithm=algorithm, kind=kind)

            seconds = best(work)
            print(f"  {kind:<16} {seconds:6.2f} s {seconds / nifti:5.1f}   {path.stat().st_size / 1e6:7.2f} MB")


if __name__ == "__main__":
    main()
