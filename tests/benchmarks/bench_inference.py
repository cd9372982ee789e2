"""Segmentation of one whole volume against a stock MONAI recipe: the same network, windows and overlap, in one run.

    python tests/benchmarks/bench_inference.py [--shape 160 256 256] [--spacing 1 1 1] [--patch 96] [--overlap 0.5]
                                               [--device cuda]

Stock is what the model zoo's segmentation bundles do: Orientationd, Spacingd, SlidingWindowInferer (Gaussian, float32),
Invertd of the logits, AsDiscreted, SaveImaged. medvol streams: predict_labels and its writer, precision and layout as
measured on this machine. Two more runs in float32 show that streaming changes no label. Each run is a process of its
own; its memory is the peak of the resident set above what the loaded, preprocessed volume and the network take (Linux).
`--only` takes a part of the runs; the results of earlier ones in the same `--folder` join the table. Run it on an idle
machine; a run at full size takes minutes.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import SegResNetDS
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    Invertd,
    LoadImaged,
    Orientationd,
    SaveImaged,
    ScaleIntensityRanged,
    Spacingd,
)
from scipy import ndimage

from medvol.inference.memory import keep_freed_memory
from medvol.inference.runtime import Runtime, choose_runtime
from medvol.inference.segmented import predict_labels
from medvol.inference.sliding_window import SlidingWindow
from medvol.inference.source_grid import LabelsOnSourced
from medvol.io.write_nifti import write_mask
from medvol.networks.fast_norm import use_fast_norm
from medvol.phantoms.grid import oblique_affine
from medvol.transforms.load import LoadVolumed
from medvol.transforms.resample import StretchToSpacingd

CLASSES = 25
SOURCE_SPACING_MM = (1.0, 0.8, 0.8)
RUNS = ("stock", "medvol", "float32", "unstreamed")


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    folder: Path
    patch: int
    overlap: float
    spacing_mm: tuple[float, ...]
    straight: bool
    keep: bool
    device: str


def write_volume(path: Path, shape: tuple[int, ...], straight: bool) -> None:
    """Write a CT-like volume: a body of smooth organs and noise, air around it."""
    rng = np.random.default_rng(0)
    organs = ndimage.zoom(rng.normal(40, 60, [max(length // 16, 2) for length in shape]), 16, order=1)
    organs = ndimage.zoom(organs, [new / old for new, old in zip(shape, organs.shape, strict=True)], order=0)
    place = np.stack(np.meshgrid(*[np.linspace(-1, 1, length) for length in shape], indexing="ij"))
    is_body = (place[1] / 0.8) ** 2 + (place[2] / 0.9) ** 2 < 1
    voxels = np.where(is_body, organs + rng.normal(0, 15, shape), rng.normal(-1000, 10, shape)).astype(np.int16)
    angles = (0.0, 0.0, 0.0) if straight else (4.0, -3.0, 2.0)
    affine = oblique_affine(shape, spacing=SOURCE_SPACING_MM, angles_deg=angles, flip=(True, True, False))
    nib.save(nib.Nifti1Image(voxels, affine), path)


def build_network(device: str) -> SegResNetDS:
    """Return the network with random weights, the same each time."""
    torch.manual_seed(0)
    return (
        SegResNetDS(
            spatial_dims=3,
            init_filters=16,
            in_channels=1,
            out_channels=CLASSES,
            blocks_down=(1, 2, 2, 4),
            norm="INSTANCE",
        )
        .to(device)
        .eval()
    )


def resident_bytes(field: str) -> int:
    """Return VmRSS or VmHWM (its peak) of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def measured(task: Callable[[], object]) -> dict[str, float]:
    """Return seconds and peak memory above the present one."""
    Path("/proc/self/clear_refs").write_text("5")  # begins a new peak
    before, start = resident_bytes("VmRSS"), time.perf_counter()
    task()
    seconds = time.perf_counter() - start
    on_card = torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else 0
    return {"seconds": seconds, "bytes": resident_bytes("VmHWM") - before, "bytes_on_card": on_card}


def stock(setting: Setting) -> dict[str, float]:
    """Run the model zoo's recipe."""
    key = "image"
    preprocessing = Compose(
        [
            LoadImaged(keys=key),
            EnsureChannelFirstd(keys=key),
            Orientationd(keys=key, axcodes="RAS", labels=None),
            Spacingd(keys=key, pixdim=setting.spacing_mm, mode="bilinear"),
            ScaleIntensityRanged(keys=key, a_min=-160, a_max=240, b_min=0, b_max=1, clip=True),
        ]
    )
    postprocessing = Compose(
        [
            Invertd(keys="pred", transform=preprocessing, orig_keys=key, nearest_interp=False, to_tensor=True),
            AsDiscreted(keys="pred", argmax=True),
            SaveImaged(
                keys="pred",
                output_dir=setting.folder,
                output_postfix="stock",
                separate_folder=False,
                output_dtype=np.uint8,
                resample=False,
            ),
        ]
    )
    network, item = build_network(setting.device), preprocessing({key: setting.folder / "case.nii"})
    inferer = SlidingWindowInferer([setting.patch] * 3, 1, setting.overlap, mode="gaussian")

    def task() -> None:
        with torch.no_grad():
            item["pred"] = inferer(item[key][None].to(setting.device), network)[0]
        postprocessing(item)

    result = measured(task)
    (setting.folder / "case_stock.nii.gz").replace(setting.folder / "stock.nii.gz")
    return result


def medvol(setting: Setting, name: str, runtime: Runtime | None) -> dict[str, float]:
    """Run medvol, streamed unless `name` says otherwise."""
    key = "image"
    preprocessing = Compose(
        [
            LoadVolumed(keys=key),
            EnsureChannelFirstd(keys=key),
            Orientationd(keys=key, axcodes="RAS", labels=None),
            ScaleIntensityRanged(keys=key, a_min=-160, a_max=240, b_min=0, b_max=1, clip=True),
            StretchToSpacingd(key, setting.spacing_mm),
        ]
    )
    network = build_network(setting.device)
    if runtime is not None:
        network = use_fast_norm(network).to(memory_format=runtime.memory_format)
        torch.backends.cudnn.benchmark = True  # as choose_runtime does on a graphics card
        if setting.keep:
            keep_freed_memory()
    image = preprocessing({key: str(setting.folder / "case.nii")})[key]
    window, path = SlidingWindow([setting.patch] * 3, overlap=setting.overlap, runtime=runtime), setting.folder / name

    def streamed() -> None:
        predict_labels(image, network, window, folder_for_memmap=setting.folder).write(f"{path}.nii.gz")

    def unstreamed() -> None:
        item = LabelsOnSourced()({"image": image, "pred": window(image[None], network)[0]})
        write_mask(f"{path}.nii.gz", item["pred"].numpy()[0], item["pred"].affine.numpy())

    return measured(unstreamed if name == "unstreamed" else streamed)


def probe(setting: Setting) -> Runtime:
    """Return the runtime that medvol chooses; a process of its own, since the measurement takes memory."""
    return choose_runtime(
        use_fast_norm(build_network(setting.device)),
        (1, *[setting.patch] * 3),
        device=setting.device,
        purpose="infer",
        memory_file=setting.folder / "runtime.json",
    )


def run(name: str, setting: Setting) -> dict[str, float]:
    """Run one of the runs in this process."""
    logging.basicConfig(level=logging.INFO)
    logging.getLogger("monai").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")
    if name == "stock":
        return stock(setting)
    runtime = Runtime(**json.loads((setting.folder / "chosen.json").read_text())) if name == "medvol" else None
    return medvol(setting, name, runtime)


def in_a_process(function: Callable, *arguments: object) -> object:
    """Call a function in a fresh process, so that memory is measured from the same beginning."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def print_table(folder: Path) -> None:
    """Print time and memory of the runs that there are, and which of their labels agree."""
    results = {
        name: json.loads((folder / f"{name}.json").read_text()) for name in RUNS if (folder / f"{name}.json").exists()
    }
    print("| run | seconds | memory above the input, MiB | of the graphics card, MiB |\n|---|---|---|---|")
    for name, result in results.items():
        memory, on_card = (result[key] / 2**20 for key in ("bytes", "bytes_on_card"))
        print(f"| {name} | {result['seconds']:.2f} | {memory:.0f} | {on_card:.0f} |")
    if {"stock", "medvol"} <= set(results):
        speed = results["stock"]["seconds"] / results["medvol"]["seconds"]
        memory = results["stock"]["bytes"] / results["medvol"]["bytes"]
        print(f"medvol is {speed:.1f} times as fast and takes 1/{memory:.1f} of the memory")
    for first, second in (("float32", "unstreamed"), ("float32", "stock"), ("float32", "medvol")):
        if {first, second} <= set(results):
            masks = [np.asarray(nib.load(folder / f"{name}.nii.gz").dataobj) for name in (first, second)]
            differing = int((masks[0] != masks[1]).sum())
            print(f"labels of {first} and {second}: {differing} of {masks[0].size} differ")


def main() -> None:
    """Parse the command line, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=(160, 256, 256))
    parser.add_argument("--spacing", type=float, nargs=3, default=(1.0, 1.0, 1.0), help="of the working grid, mm")
    parser.add_argument("--patch", type=int, default=96)
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--straight", action="store_true", help="axes along the world's; MONAI's Spacing then agrees")
    parser.add_argument("--give-back", action="store_true", help="have malloc return memory, which takes time")
    parser.add_argument("--only", nargs="+", choices=RUNS, default=RUNS)
    parser.add_argument("--folder", type=Path, help="keeps the results; a temporary one when left out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        setting = Setting(
            folder,
            options.patch,
            options.overlap,
            tuple(options.spacing),
            options.straight,
            not options.give_back,
            options.device,
        )
        write_volume(folder / "case.nii", tuple(options.shape), options.straight)
        if "medvol" in options.only:
            chosen = in_a_process(probe, setting)
            print(f"runtime: {chosen}", flush=True)
            (folder / "chosen.json").write_text(json.dumps(asdict(chosen)))
        for name in options.only:
            result = in_a_process(run, name, setting)
            (folder / f"{name}.json").write_text(json.dumps(result))
            print(name, result, flush=True)
        print_table(folder)


if __name__ == "__main__":
    main()
