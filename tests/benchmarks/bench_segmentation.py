"""Training throughput of a segmentation against a stock MONAI recipe: the same network, patches and batch, in one run.

    python tests/benchmarks/bench_segmentation.py [--seconds 20]

Stock is what MONAI's tutorials do: CacheDataset in memory, RandCropByPosNegLabeld and per-sample dictionary transforms,
float32, default layout, `SupervisedTrainer`; with 0 and with 2 workers, of which the faster counts. medvol is what its
bundles do: patches read from CachedVolumes, one augmentation per batch, measured precision and layout. A step is
forward, loss, backward and optimiser alone, on a batch that is there already. The step of Swin UNETR is measured by
bench_swin.py. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

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

CPU = torch.device("cpu")
VOLUME = (48, 64, 48)
PATCH = (40, 56, 40)
BATCH = 4
CASES = 24
KEYS = ("image", "label")


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


def stock_network() -> nn.Module:
    """Return MONAI's network."""
    torch.manual_seed(0)
    ours = unet(1, 3, spatial_size=PATCH)
    return SegResNetDS(
        init_filters=16, out_channels=3, norm="INSTANCE", blocks_down=ours.blocks_down, dsdepth=ours.dsdepth
    )


def our_network() -> nn.Module:
    """Return the bundle's network, with the same weights."""
    network = unet(1, 3, spatial_size=PATCH)
    network.load_state_dict(stock_network().state_dict())
    return network


def stock_trainer(items: list[dict[str, str]], workers: int) -> SupervisedTrainer:
    """Return the trainer of MONAI's segmentation tutorials, with the augmentation of the bundle."""
    half = 0.5
    transform = Compose(
        [
            LoadImaged(keys=KEYS, reader="NibabelReader"),
            EnsureChannelFirstd(keys=KEYS),
            Orientationd(keys=KEYS, axcodes="RAS", labels=None),
            NormalizeIntensityd(keys="image"),
            RandCropByPosNegLabeld(keys=KEYS, label_key="label", spatial_size=PATCH, pos=1, neg=1, num_samples=1),
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
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=list_data_collate,
    )
    network = stock_network()
    return SupervisedTrainer(
        device=CPU,
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


def medvol_trainer(items: list[dict[str, str]], cache_dir: Path) -> SupervisedTrainer:
    """Return the trainer of the segmentation bundles."""
    patch = PATCH
    facts = Facts(
        ("background", "a", "b"), ("image",), patch, (1.0, 1.0, 1.0), "mr", None, True, False, label_values=(0, 1, 2)
    )
    volumes = CachedVolumes(items, training_preprocessing(facts, patch_size=patch), cache_dir=cache_dir, progress=False)
    volumes.fill()
    network = our_network()
    runtime = choose_runtime(network, (1, *patch), device=CPU, batch=BATCH)
    ranges = AugmentRanges(
        flip_axes=(0, 1, 2),
        **{"rotate_deg": 30.0, "scale": 0.25, "shift": 0.05, "contrast": 0.25, "noise": 0.1, "gamma": 0.4, "blur": 1.0},
        **{"affine_probability": 0.4, "intensity_probability": 0.2},
    )
    return SupervisedTrainer(
        device=CPU,
        max_epochs=10_000,
        train_data_loader=training_loader(ClassPatches(volumes, patch, per_epoch=CASES), batch_size=BATCH, seed=0),
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


def patches_per_second(trainer: SupervisedTrainer, seconds: float, batch: int) -> float:
    """Train for a while after a warm-up of two steps and return the patches per second."""
    began: list[float] = []
    count = [0]

    @trainer.on(Events.ITERATION_COMPLETED)
    def step(engine: SupervisedTrainer) -> None:
        if began:
            count[0] += batch
            if time.perf_counter() - began[0] > seconds:
                engine.terminate()
        elif engine.state.iteration == 2:
            began.append(time.perf_counter())

    trainer.run()
    return count[0] / (time.perf_counter() - began[0])


def seconds_per_step(kind: str, seconds: float) -> float:
    """Return the time of forward, loss, backward and optimiser, fastest of those that fit into the time."""
    network = stock_network() if kind == "stock" else our_network()
    runtime = None if kind == "stock" else choose_runtime(network, (1, *PATCH), device=CPU, batch=BATCH)
    loss = stock_loss() if kind == "stock" else DeepDiceCeLoss()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=kind != "stock")
    inferer = RuntimeInferer(runtime)
    images = torch.randn(BATCH, 1, *PATCH)
    labels = torch.randint(0, 3, (BATCH, 1, *PATCH)).float()
    network.train()
    durations: list[float] = []
    while len(durations) < 3 or sum(durations) < seconds:
        start = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        outputs: Tensor | list[Tensor] = inferer(images, network)
        loss(outputs, labels).backward()
        optimiser.step()
        durations.append(time.perf_counter() - start)
    return min(durations[1:])


def measure(what: str, kind: str, seconds: float) -> float:
    """Return one number, measured in a process of its own: what one recipe sets must not help the other."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, what, kind, seconds).result()


def _measure(what: str, kind: str, seconds: float) -> float:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if what == "step":
        return seconds_per_step(kind, seconds)
    with tempfile.TemporaryDirectory() as folder:
        items = write_study(Path(folder), VOLUME)
        if kind == "medvol":
            return patches_per_second(medvol_trainer(items, Path(folder) / "cache"), seconds, BATCH)
        return patches_per_second(stock_trainer(items, workers=int(kind)), seconds, BATCH)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20, help="measured time per recipe")
    seconds = parser.parse_args().seconds
    print(f"unet, patches of {'x'.join(map(str, PATCH))}, batch {BATCH}, {torch.get_num_threads()} threads, ", end="")
    print(f"torch {torch.__version__}\n{'':<20}{'stock':>8}{'medvol':>9}{'ratio':>8}")
    steps = [measure("step", kind, seconds) for kind in ("stock", "medvol")]
    print(f"{'seconds per step':<20}{steps[0]:>8.2f}{steps[1]:>9.2f}{steps[0] / steps[1]:>8.2f}", flush=True)
    stock = max(measure("training", workers, seconds) for workers in ("0", "2"))
    ours = measure("training", "medvol", seconds)
    print(f"{'patches per second':<20}{stock:>8.2f}{ours:>9.2f}{ours / stock:>8.2f}")


if __name__ == "__main__":
    main()
