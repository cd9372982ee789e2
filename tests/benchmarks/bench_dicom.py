"""A DICOM series read by medvol, SimpleITK and MONAI's PydicomReader, and a scan of many files.

    python tests/benchmarks/bench_dicom.py [--slices 300] [--side 512] [--rounds 5] [--syntax native jpegls jpeg2k]
    python tests/benchmarks/bench_dicom.py --scan [--files 10000]

The series is a phantom with noise of 20 HU, generated once per syntax and warm in the page cache. Every read runs in a
process of its own, so that peak memory is its own; imports are not counted. Rounds are interleaved, so that a busy
machine slows all loaders alike; ratios are of the minima; processor time counts all threads. The floor reads the bytes
of all files and copies them once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SYNTAXES = {"native": "", "jpegls": "1.2.840.10008.1.2.4.80", "jpeg2k": "1.2.840.10008.1.2.4.90"}
LOADERS = ("floor", "medvol", "SimpleITK", "MONAI")


def write_series(folder: Path, syntax: str, slices: int, side: int) -> None:
    import imagecodecs
    import numpy as np
    from pydicom import dcmread
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID

    from medvol.geometry import Volume, affine_from
    from medvol.phantoms.dicom import write_dicom_series

    rng = np.random.default_rng(0)
    axis = np.linspace(-1, 1, side)
    disc = np.add.outer(axis**2, axis**2) < 0.7
    voxels = np.empty((side, side, slices), np.int16)
    for index in range(slices):
        voxels[..., index] = np.where(disc, 40, -1000) + rng.normal(0, 20, disc.shape)
    for path in write_dicom_series(Volume(voxels, affine_from((0.7, 0.7, 1.0))), folder):
        if syntax == "native":
            continue
        dataset = dcmread(path)
        pixels = np.frombuffer(dataset.PixelData, "<u2").reshape(side, side)
        options = {"level": 0} if syntax == "jpeg2k" else {}
        dataset.PixelData = encapsulate([getattr(imagecodecs, f"{syntax}_encode")(pixels, **options)])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = UID(SYNTAXES[syntax])
        dataset.save_as(path)


def loader(name: str, folder: str) -> Callable[[], Any]:
    """Import what a loader needs; return the read alone."""
    if name == "floor":
        import numpy as np

        paths = sorted(Path(folder).iterdir())
        return lambda: [np.frombuffer(path.read_bytes(), np.uint8).copy() for path in paths]
    if name == "medvol":
        import imagecodecs._jpeg2k
        import imagecodecs._jpegls  # noqa: F401
        import pydicom.encaps
        import pydicom.pixels  # noqa: F401

        import medvol.io.dicom_series  # noqa: F401
        from medvol.io import read_volume

        return lambda: read_volume(folder).array
    if name == "SimpleITK":
        import SimpleITK as sitk  # noqa: N813

        def read() -> Any:
            names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(folder)
            return sitk.GetArrayViewFromImage(sitk.ReadImage(names))

        return read
    from monai.transforms import LoadImage

    load = LoadImage(reader="PydicomReader", image_only=True)
    return lambda: load(folder)


def child(name: str, folder: str) -> None:
    import warnings

    warnings.simplefilter("ignore")
    read = loader(name, folder)
    start, used = time.perf_counter(), time.process_time()
    try:
        result = read()
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:60]}))
        return
    seconds, used = time.perf_counter() - start, time.process_time() - used
    # ru_maxrss would count what the parent held when it forked.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1024
    print(json.dumps({"seconds": seconds, "used": used, "peak": peak, "kind": str(getattr(result, "dtype", "bytes"))}))


def run(name: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name, str(folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def compare(syntax: str, folder: Path, rounds: int) -> None:
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in LOADERS}
    for _ in range(rounds):
        for name in LOADERS:
            runs[name].append(run(name, folder))
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    least = {name: min(one.get("seconds", float("nan")) for one in found) for name, found in runs.items()}
    print(f"\n{syntax}: {len(list(folder.iterdir()))} files, {size:.0f} MiB, {rounds} rounds")
    print("| loader | min s | median s | x medvol | processor s | peak MiB | result |\n|---|---|---|---|---|---|---|")
    for name, found in runs.items():
        if "error" in found[0]:
            print(f"| {name} | {found[0]['error']} | | | | | |")
            continue
        median = statistics.median(one["seconds"] for one in found)
        peak = max(one["peak"] for one in found)
        used = min(one["used"] for one in found)
        numbers = f"{least[name]:.3f} | {median:.3f} | {least[name] / least['medvol']:.2f} | {used:.2f} | {peak:.0f}"
        print(f"| {name} | {numbers} | {found[0]['kind']} |", flush=True)


def scan_speed(folder: Path, files: int, rounds: int) -> None:
    import numpy as np

    from medvol.geometry import Volume, affine_from
    from medvol.io.dicom_scan import scan_tree
    from medvol.phantoms.dicom import Identity, write_dicom_series

    voxels = np.zeros((64, 64, 100), np.int16)
    for number in range(files // 100):
        who = Identity(patient=f"p{number // 4}", series_number=number % 4 + 1)
        voxels[0, 0] = number
        write_dicom_series(Volume(voxels, affine_from((1.0, 1.0, 2.0))), folder / f"{number:04d}", identity=who)
    times, used = [], []
    for _ in range(rounds):
        start, before = time.perf_counter(), time.process_time()
        found = scan_tree(folder)
        times.append(time.perf_counter() - start)
        used.append(time.process_time() - before)
    verdicts = ", ".join(sorted({row.verdict for row in found.rows}))
    print(f"scan: {found.files:,} files in {len(found.rows)} series ({verdicts})")
    rate, pure = found.files / min(times), found.files / min(used)
    print(f"min {min(times):.2f} s, median {statistics.median(times):.2f} s, {rate:,.0f} files per second")
    print(f"{pure:,.0f} files per second of processor time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--syntax", nargs="+", choices=SYNTAXES, default=list(SYNTAXES))
    parser.add_argument("--scan", action="store_true")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="keep the series here, for another run")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        if options.scan:
            scan_speed(root / "scan", options.files, options.rounds)
            return
        for syntax in options.syntax:
            folder = root / syntax
            if not folder.exists():
                write_series(folder, syntax, options.slices, options.side)
            compare(syntax, folder, options.rounds)


if __name__ == "__main__":
    main()
