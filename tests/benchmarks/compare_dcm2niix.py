"""Every DICOM series below folders, as medvol reads it, against reference NIfTI files and against dcm2niix.

    python tests/benchmarks/compare_dcm2niix.py FOLDER... [--dcm2niix PATH]

A reference is `NAME_ground_truth.nii.gz` beside a folder NAME, or, for the compression samples of NEMA WG-04, the file
of the same image in the folder REF. dcm2niix runs with `-p n`, so that both take the rescale of the header. Each volume
of a series is compared with the one volume of the other side that agrees best; a row gives the greatest difference of a
voxel's value and of its place. `none` means that the other side has no volume on the same grid. The last column is
WRONG where a volume that was read agrees with neither; where reference and dcm2niix disagree it names the odd one.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medvol.errors import MedvolError
from medvol.geometry import Volume, apply_affine, is_sheared
from medvol.io import read_volume
from medvol.io.dicom_series import SeriesInfo, list_series

VALUE_TOLERANCE = 1e-5  # of the greatest value: converters round the product of slope and pixel in other places
PLACE_TOLERANCE_MM = 0.03

LOSSLESS = ("RLE", "J2KR", "JLSL", "JPLL")  # the others of WG-04 are lossy and have no reference

Grid = tuple[np.ndarray, np.ndarray]  # affine and voxels of one volume


def volumes_of(path: Path) -> Iterator[Grid]:
    image: Any = nib.load(path)
    voxels = np.asarray(image.dataobj)
    if voxels.dtype.fields is not None:  # colours
        return
    voxels = voxels[..., None] if voxels.ndim == 3 else voxels.reshape(*voxels.shape[:3], -1)
    for number in range(voxels.shape[3]):
        yield np.asarray(image.affine, float), voxels[..., number]


def difference(volume: Volume, other: Grid) -> tuple[float, float] | None:
    """Return the greatest difference of values and of places in mm; None when the grids are not the same."""
    affine, voxels = other
    if sorted(voxels.shape) != sorted(volume.array.shape):
        return None
    corners = np.stack(np.meshgrid(*[(0, length - 1) for length in voxels.shape], indexing="ij"), axis=-1)
    to_ours = np.linalg.inv(volume.affine) @ affine
    index = apply_affine(to_ours, corners.reshape(-1, 3))
    nearest = np.rint(index).astype(int)
    apart = float(np.linalg.norm((index - nearest) * volume.spacing_mm, axis=1).max())
    if apart > 0.5 or (nearest < 0).any() or (nearest >= volume.array.shape).any():
        return None
    # A permutation of axes with flips: turn the other array into ours.
    turn = np.rint(to_ours[:3, :3]).astype(int)
    order = [int(np.abs(turn[axis]).argmax()) for axis in range(3)]
    turned = voxels.transpose(order)
    for axis in range(3):
        if turn[axis, order[axis]] < 0:
            turned = np.flip(turned, axis)
    if turned.shape != volume.array.shape:
        return None
    return float(np.abs(volume.array.astype(np.float64) - turned).max()), apart


def worst(volumes: Sequence[Volume], others: Sequence[Grid]) -> tuple[str, bool]:
    """Return the greatest difference over volumes as text, and whether it is a wrong one."""
    found = []
    for volume in volumes:
        matches = [match for other in others if (match := difference(volume, other)) is not None]
        if matches:
            limit = VALUE_TOLERANCE * max(1.0, float(np.abs(volume.array).max()))
            value, apart = min(matches)
            found.append((value > limit or apart > PLACE_TOLERANCE_MM, value, apart))
    if not found:
        return "none", False
    text = f"{max(value for _, value, _ in found):.2g} / {max(apart for _, _, apart in found):.2g}"
    missing = len(volumes) - len(found)
    return text + (f" ({missing} none)" if missing else ""), any(bad for bad, _, _ in found)


def reference_of(folder: Path, info: SeriesInfo) -> list[Grid]:
    truth = folder.parent / f"{folder.name}_ground_truth.nii.gz"
    if truth.exists():
        return list(volumes_of(truth))
    if folder.parent.name == "wg04_compression" and folder.name in LOSSLESS:
        name = info.files[0].name.replace(folder.name, "UNC")
        same = folder.parent / "REF" / name
        if same.exists():
            volume = read_volume(same)
            return [(volume.affine, volume.array)]
    return []


def convert(program: str, folder: Path, into: Path) -> list[Grid]:
    into.mkdir()
    command = [program, "-z", "n", "-b", "n", "-p", "n", "-d", "0", "-f", "%s_%e_%p", "-o", str(into), str(folder)]
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return [one for path in sorted(into.glob("*.nii")) for one in volumes_of(path)]


def rows_of(folder: Path, shown: str, others: list[Grid]) -> Iterator[tuple[str, ...]]:
    for info in list_series(folder):
        outcome, read = info.verdict or "read", []
        if info.files[0].parent != folder:
            continue
        is_alone = len(info.files) == len(info.volumes) == 1
        for target in [info.files[0]] if is_alone else [f"{folder}#{fragment}" for fragment, _ in info.volumes]:
            try:
                read.append(read_volume(target))
            except MedvolError as error:
                outcome = error.code
        if info.verdict and read:
            outcome = f"{info.verdict}, {len(read)} read by name"
        with_truth, is_wrong = worst(read, truth := reference_of(folder, info))
        with_other, differs = worst(read, others)
        if any(is_sheared(one.affine) for one in read):
            # dcm2niix writes a tilted stack as if it were upright, beside a resampled one.
            with_other, differs = f"{with_other} (tilt)", False
        agrees = (bool(truth) and with_truth != "none" and not is_wrong) or (with_other[:4] != "none" and not differs)
        verdict = " and ".join(["reference"] * is_wrong + ["dcm2niix"] * differs)
        verdict = "" if not verdict else f"{verdict} differs" if agrees else "WRONG"
        reason = info.reason.found[:60] if info.reason is not None else ""
        yield (
            shown,
            str(info.number),
            str(len(info.files)),
            outcome,
            reason,
            with_truth if truth else "",
            with_other,
            verdict,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--dcm2niix", default=shutil.which("dcm2niix"))
    options = parser.parse_args()
    if options.dcm2niix is None:
        sys.exit("dcm2niix is absent: pip install dcm2niix, or name it with --dcm2niix")
    warnings.simplefilter("ignore")
    seen: Counter[str] = Counter()
    print("| series | number | files | medvol | reason | reference: value / mm | dcm2niix: value / mm | |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for position, root in enumerate(options.folders):
            folders = sorted({path.parent for path in root.rglob("*") if path.is_file()})
            for number, folder in enumerate(folders):
                place = Path(temporary) / f"{position}_{number}"
                source = folder
                packed = list(folder.glob("*.dcm.gz")) + list(folder.glob("IM_*.gz"))
                if packed:
                    source = place.with_name(place.name + "_unpacked")
                    source.mkdir()
                    for path in packed:
                        (source / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
                if not any(path.is_file() for path in source.iterdir()) or not list_series(source):
                    continue
                others = convert(options.dcm2niix, source, place)
                shown = f"{root.name}/{folder.relative_to(root)}"
                for row in rows_of(source, shown, others):
                    seen[row[3].partition(",")[0] + (f" {row[-1]}" if row[-1] else "")] += 1
                    print("| " + " | ".join(row) + " |", flush=True)
    print("\n" + ", ".join(f"{name}: {count}" for name, count in sorted(seen.items())))


if __name__ == "__main__":
    main()
