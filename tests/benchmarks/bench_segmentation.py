"""Training throughput of a segmentation against a stock MONAI recipe: the same network, patches and batch, in one run.

    python tests/benchmarks/bench_segmentation.py [--seconds 20] [--rounds 5] [--classes 25]
                                                   [--device cuda --patch 96 96 96 --batch 2]

Stock is what MONAI's tutorials do: CacheDataset in memory, RandCropByPosNegLabeld and per-sample dictionary transforms,
float32, default layout, `SupervisedTrainer`. For both, the faster number of workers counts. medvol is what its
bundles do: patches read from CachedVolumes, one augmentation per batch, measured precision and layout. A step is
forward, loss, backward and optimiser alone, on a batch that is there already; both recipes take turns, each time in a
new process, since a machine that others use as well changes by a tenth within a minute: the medians are compared. The
step of Swin UNETR is measured by bench_swin.py. Loading is with 0, 2 and, on a graphics card, 8 workers. Run it on an
idle machine.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader, list_data_collate
from monai.engines import SupervisedTrainer
from monai.losses import DeepSupervisionLoss, DiceCELoss
from monai.networks.nets import SegResNetDS
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    RandAdjustContrastd,
    RandAffined,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from torch import Tensor, nn

from medvol.data.cache import CachedVolumes
from medvol.data.facts import Facts
from medvol.data.loading import training_loader
from medvol.data.patches import ClassPatches
from medvol.inference.runtime import RuntimeInferer, choose_runtime
from medvol.networks.unet import unet
from medvol.training.handlers import AugmentBatch, AverageWeights, ClipGradients, RefuseNan, averaged_weights
from medvol.training.losses import DeepDiceCeLoss
from medvol.transforms.augment import AugmentRanges
from medvol.transforms.segmentation import training_preprocessing

CASES = 24
KEYS = ("image", "label")
MARGIN = 8  # voxels by which a volume is larger than a patch


@dataclass(frozen=True)
class Setting:
    """What both recipes share."""

    device: str
    patch: tuple[int, int, int]
    batch: int
    classes: int
    seconds: float


def write_study(folder: Path, shape: tuple[int, int, int]) -> list[dict[str, str]]:
    """Write noisy balls of two labels as NIfTI."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, length) for length in shape], indexing="ij"))
    items = []
    for number in range(CASES):
        inside = [np.linalg.norm(grid - rng.uniform(-0.3, 0.3, (3, 1, 1, 1)), axis=0) < 0.3 for _ in range(2)]
        mask = np.where(inside[0], 1, np.where(inside[1], 2, 0)).astype(np.uint8)
        image = (rng.normal(100, 20, shape) + 60 * mask).astype(np.int16)
        item = {"case": str(number), "patient": str(number)}
        for key, array in (("image", image), ("label", mask)):
            item[key] = str(folder / f"{number}_{key}.nii.gz")
            nib.save(nib.Nifti1Image(array, np.eye(4)), item[key])
        items.append(item)
    return items


def stock_network(setting: Setting) -> nn.Module:
    """Return MONAI's network."""
    torch.manual_seed(0)
    ours = unet(1, setting.classes, spatial_size=setting.patch)
    return SegResNetDS(
        init_filters=16,
        out_channels=setting.classes,
        norm="INSTANCE",
        blocks_down=ours.blocks_down,
        dsdepth=ours.dsdepth,
    ).to(setting.device)


def our_network(setting: Setting) -> nn.Module:
    """Return the bundle's network, with the same weights."""
    network = unet(1, setting.classes, spatial_size=setting.patch).to(setting.device)
    network.load_state_dict(stock_network(setting).state_dict())
    return network


def stock_trainer(items: list[dict[str, str]], setting: Setting, workers: int) -> SupervisedTrainer:
    """Return the trainer of MONAI's segmentation tutorials, with the augmentation of the bundle."""
    half = 0.5
    transform = Compose(
        [
            LoadImaged(keys=KEYS, reader="NibabelReader"),
            EnsureChannelFirstd(keys=KEYS),
            Orientationd(keys=KEYS, axcodes="RAS", labels=None),
            NormalizeIntensityd(keys="image"),
            RandCropByPosNegLabeld(
                keys=KEYS, label_key="label", spatial_size=setting.patch, pos=1, neg=1, num_samples=1
            ),
            *[RandFlipd(keys=KEYS, prob=half, spatial_axis=axis) for axis in range(3)],
            RandAffined(
                keys=KEYS,
                prob=0.4,
                rotate_range=[0.52] * 3,
                scale_range=[0.25] * 3,
                mode=("bilinear", "nearest"),
                padding_mode="border",
            ),
            RandAdjustContrastd(keys="image", prob=0.2, gamma=(0.7, 1.4)),
            RandScaleIntensityd(keys="image", prob=0.2, factors=0.25),
            RandShiftIntensityd(keys="image", prob=0.2, offsets=0.1),
            RandGaussianNoised(keys="image", prob=0.2, std=0.1),
            RandGaussianSmoothd(keys="image", prob=0.2, sigma_x=(0.1, 1), sigma_y=(0.1, 1), sigma_z=(0.1, 1)),
        ]
    )
    loader = DataLoader(
        CacheDataset(items, transform, progress=False),
        batch_size=setting.batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=list_data_collate,
    )
    network = stock_network(setting)
    return SupervisedTrainer(
        device=torch.device(setting.device),
        max_epochs=10_000,
        train_data_loader=loader,
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=1e-4),
        loss_function=stock_loss(),
        decollate=False,
    )


def stock_loss() -> nn.Module:
    """Return MONAI's loss of a network with deep supervision."""
    return DeepSupervisionLoss(DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True))


def medvol_trainer(items: list[dict[str, str]], cache_dir: Path, setting: Setting, workers: int) -> SupervisedTrainer:
    """Return the trainer of the segmentation bundles."""
    patch, device = setting.patch, torch.device(setting.device)
    facts = Facts(
        ("background", "a", "b"), ("image",), patch, (1.0, 1.0, 1.0), "mr", None, True, False, label_values=(0, 1, 2)
    )
    volumes = CachedVolumes(items, training_preprocessing(facts, patch_size=patch), cache_dir=cache_dir, progress=False)
    volumes.fill()
    network = our_network(setting)
    runtime = choose_runtime(network, (1, *patch), device=device, batch=setting.batch)
    patches = ClassPatches(volumes, patch, per_epoch=CASES)
    ranges = AugmentRanges(
        flip_axes=(0, 1, 2),
        **{"rotate_deg": 30.0, "scale": 0.25, "shift": 0.05, "contrast": 0.25, "noise": 0.1, "gamma": 0.4, "blur": 1.0},
        **{"affine_probability": 0.4, "intensity_probability": 0.2},
    )
    return SupervisedTrainer(
        device=device,
        max_epochs=10_000,
        train_data_loader=training_loader(patches, batch_size=setting.batch, seed=0, workers=workers),
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True),
        loss_function=DeepDiceCeLoss(),
        inferer=RuntimeInferer(runtime),
        train_handlers=[
            AugmentBatch(ranges, facts.extent_mm, seed=0),
            RefuseNan(),
            ClipGradients(network),
            AverageWeights(averaged_weights(network), network),
        ],
        optim_set_to_none=True,
        decollate=False,
    )


def patches_per_second(trainer: SupervisedTrainer, setting: Setting) -> float:
    """Train for a while after a warm-up of two epochs and return the patches per second."""
    began: list[float] = []
    count = [0]

    @trainer.on(Events.ITERATION_COMPLETED)
    def step(engine: SupervisedTrainer) -> None:
        if began:
            count[0] += setting.batch
            if time.perf_counter() - began[0] > setting.seconds:
                engine.terminate()
        elif engine.state.epoch == 3:
            began.append(time.perf_counter())

    trainer.run()
    return count[0] / (time.perf_counter() - began[0])


def seconds_per_step(kind: str, setting: Setting) -> float:
    """Return the time of forward, loss, backward and optimiser, fastest of those that fit into the time."""
    device, shape = torch.device(setting.device), (1, *setting.patch)
    network = stock_network(setting) if kind == "stock" else our_network(setting)
    runtime = None if kind == "stock" else choose_runtime(network, shape, device=device, batch=setting.batch)
    loss = stock_loss() if kind == "stock" else DeepDiceCeLoss()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=kind != "stock")
    inferer = RuntimeInferer(runtime)
    images = torch.randn(setting.batch, *shape, device=device)
    labels = torch.randint(0, setting.classes, (setting.batch, *shape), device=device).float()
    network.train()
    durations: list[float] = []
    while len(durations) < 3 or sum(durations) < setting.seconds:
        start = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        outputs: Tensor | list[Tensor] = inferer(images, network)
        loss(outputs, labels).backward()
        optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - start)
    return min(durations[1:])


def measure(what: str, kind: str, setting: Setting, workers: int = 0) -> float:
    """Return one number, measured in a process of its own: what one recipe sets must not help the other."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, what, kind, setting, workers).result()


def _measure(what: str, kind: str, setting: Setting, workers: int) -> float:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if what == "step":
        return seconds_per_step(kind, setting)
    with tempfile.TemporaryDirectory() as folder:
        x, y, z = (length + MARGIN for length in setting.patch)
        items = write_study(Path(folder), (x, y, z))
        if kind == "medvol":
            return patches_per_second(medvol_trainer(items, Path(folder) / "cache", setting, workers), setting)
        return patches_per_second(stock_trainer(items, setting, workers), setting)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20, help="measured time per recipe")
    parser.add_argument("--rounds", type=int, default=5, help="how often the step of each is measured")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--patch", type=int, nargs=3, default=(40, 56, 40))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--classes", type=int, default=3, help="outputs of the network")
    options = parser.parse_args()
    setting = Setting(options.device, tuple(options.patch), options.batch, options.classes, options.seconds)
    on_card = torch.device(options.device).type == "cuda"
    where = torch.cuda.get_device_name() if on_card else f"{torch.get_num_threads()} threads"
    print(f"unet, patches of {'x'.join(map(str, setting.patch))}, batch {setting.batch}, ", end="")
    print(f"{setting.classes} classes, {where}, ", end="")
    print(f"torch {torch.__version__}\n{'':<20}{'stock':>10}{'medvol':>10}{'ratio':>8}")
    rounds = []
    for _ in range(options.rounds):
        rounds.append([1000 * measure("step", kind, setting) for kind in ("stock", "medvol")])
        print("  a round, ms per step:", *[round(one) for one in rounds[-1]], flush=True)
    steps = [median(one) for one in zip(*rounds, strict=True)]
    print(f"{'ms per step, median':<20}{steps[0]:>10.1f}{steps[1]:>10.1f}{steps[0] / steps[1]:>8.2f}", flush=True)
    best = []
    for kind in ("stock", "medvol"):
        rates = {count: measure("training", kind, setting, count) for count in ((0, 2, 8) if on_card else (0, 2))}
        print(f"  {kind}, patches per second by workers:", {count: round(rate, 2) for count, rate in rates.items()})
        best.append(max(rates.values()))
    print(f"{'patches per second':<20}{best[0]:>10.2f}{best[1]:>10.2f}{best[1] / best[0]:>8.2f}")


if __name__ == "__main__":
    main()
