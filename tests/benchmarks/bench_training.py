"""Training throughput against a stock MONAI recipe: the same network, batch and augmentation, in one run.

    python tests/benchmarks/bench_training.py [--seconds 20] [--device cuda]

Stock is what MONAI's classification tutorials do: CacheDataset in memory, per-sample dictionary transforms, float32,
default layout, `SupervisedTrainer`. For both, the faster number of workers counts. medvol is what its bundles do:
CachedVolumes, one augmentation per batch, measured precision and layout. Run it on an idle machine.
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

import numpy as np
import torch
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader
from monai.engines import SupervisedTrainer
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    RandAdjustContrastd,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandShiftIntensityd,
    ScaleIntensityRanged,
)

from medvol.data.cache import CachedVolumes
from medvol.data.facts import Facts
from medvol.data.loading import training_loader
from medvol.inference.runtime import RuntimeInferer, choose_runtime
from medvol.networks.resnet3d import resnet3d
from medvol.training.handlers import AugmentBatch, AverageWeights, ClipGradients, RefuseNan, averaged_weights
from medvol.training.losses import ClassificationLoss
from medvol.transforms.augment import AugmentRanges
from medvol.transforms.preprocess import volume_preprocessing

BATCH = {28: 32, 64: 16}
CASES = {28: 256, 64: 64}


def write_volumes(folder: Path, size: int) -> list[dict]:
    """Write smooth 8-bit volumes as npy and return their items."""
    rng = np.random.default_rng(0)
    items = []
    for index in range(CASES[size]):
        coarse = rng.random((size // 4,) * 3)
        path = folder / f"v{size}_{index}.npy"
        np.save(path, (np.kron(coarse, np.ones((4, 4, 4))) * 255).astype(np.uint8))
        items.append({"case": path.stem, "patient": path.stem, "image": str(path), "label": index % 2})
    return items


def stock_trainer(items: list[dict], size: int, workers: int, device: torch.device) -> SupervisedTrainer:
    """Return the trainer of MONAI's classification tutorials."""
    key = "image"
    transform = Compose(
        [
            LoadImaged(keys=key, reader="NumpyReader"),
            EnsureChannelFirstd(keys=key, channel_dim="no_channel"),
            ScaleIntensityRanged(keys=key, a_min=0, a_max=255, b_min=0, b_max=1),
            *[RandFlipd(keys=key, prob=0.5, spatial_axis=axis) for axis in range(3)],
            RandAffined(
                keys=key,
                prob=1.0,
                rotate_range=[0.26] * 3,
                scale_range=[0.1] * 3,
                translate_range=[0.08 * size] * 3,
                padding_mode="border",
            ),
            RandAdjustContrastd(keys=key, prob=1.0, gamma=(0.85, 1.15)),
            RandShiftIntensityd(keys=key, prob=1.0, offsets=0.1),
            RandGaussianNoised(keys=key, prob=1.0, std=0.03),
        ]
    )
    dataset = CacheDataset(items, transform, progress=False)
    torch.manual_seed(0)
    network = resnet3d(1, 2).to(device)
    return SupervisedTrainer(
        device=device,
        max_epochs=10_000,
        train_data_loader=DataLoader(
            dataset, batch_size=BATCH[size], shuffle=True, num_workers=workers, persistent_workers=workers > 0
        ),
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=1e-4),
        loss_function=torch.nn.CrossEntropyLoss(),
    )


def medvol_trainer(
    items: list[dict], size: int, cache_dir: Path, workers: int, device: torch.device
) -> SupervisedTrainer:
    """Return the trainer of the resnet3d bundle."""
    facts = Facts(("a", "b"), ("image",), (size,) * 3, None, "scaled", (0.0, 255.0), False, False)
    dataset = CachedVolumes(items, volume_preprocessing(facts), cache_dir=cache_dir, progress=False)
    dataset.fill()
    torch.manual_seed(0)
    network = resnet3d(1, 2).to(device)
    runtime = choose_runtime(network, (1, size, size, size), device=device)
    averaged = averaged_weights(network)
    return SupervisedTrainer(
        device=device,
        max_epochs=10_000,
        train_data_loader=training_loader(dataset, batch_size=BATCH[size], seed=0, workers=workers),
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True),
        loss_function=ClassificationLoss(),
        inferer=RuntimeInferer(runtime),
        train_handlers=[
            AugmentBatch(AugmentRanges(flip_axes=(0, 1, 2)), facts.extent_mm, seed=0),
            RefuseNan(),
            ClipGradients(network),
            AverageWeights(averaged, network),
        ],
        optim_set_to_none=True,
    )


def volumes_per_second(trainer: SupervisedTrainer, seconds: float) -> float:
    """Train for a while after a warm-up of one epoch and return the volumes per second."""
    began: list[float] = []
    volumes = [0]

    @trainer.on(Events.EPOCH_STARTED(every=1))
    def start(engine: SupervisedTrainer) -> None:
        if engine.state.epoch == 2:
            began.append(time.perf_counter())

    @trainer.on(Events.ITERATION_COMPLETED)
    def stop(engine: SupervisedTrainer) -> None:
        if began:
            volumes[0] += len(engine.state.batch)
            if time.perf_counter() - began[0] > seconds:
                engine.terminate()

    trainer.run()
    return volumes[0] / (time.perf_counter() - began[0])


def measure(kind: str, size: int, seconds: float, workers: int, device: str) -> float:
    """Return the volumes per second of one recipe, in a process of its own: what one sets must not help the other."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, kind, size, seconds, workers, torch.device(device)).result()


def _measure(kind: str, size: int, seconds: float, workers: int, device: torch.device) -> float:
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        items = write_volumes(Path(folder), size)
        if kind == "medvol":
            return volumes_per_second(medvol_trainer(items, size, Path(folder) / "cache", workers, device), seconds)
        return volumes_per_second(stock_trainer(items, size, workers, device), seconds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20, help="measured time per recipe")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    on_card = torch.device(options.device).type == "cuda"
    where = torch.cuda.get_device_name() if on_card else f"{torch.get_num_threads()} threads"
    print(f"resnet3d, {where}, torch {torch.__version__}; volumes per second, with the faster number of workers")
    print(f"{'size':<6}{'batch':>6}{'stock':>16}{'medvol':>16}{'ratio':>8}")
    for size in (28, 64):
        found = []
        for kind in ("stock", "medvol"):
            counts = (0, 2, 8) if on_card else (0, 2)
            rates = {count: measure(kind, size, options.seconds, count, options.device) for count in counts}
            found.append(max((rate, count) for count, rate in rates.items()))
        cells = "".join(f"{rate:>12.1f} ({count})" for rate, count in found)
        print(f"{size:<6}{BATCH[size]:>6}{cells}{found[1][0] / found[0][0]:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
