"""Seconds per training epoch of each classification bundle against Keras on its torch backend, in one run.

    python tests/benchmarks/bench_keras.py [--bundles conv3d cnn2d] [--epochs 3]

medvol's epoch is the bundle's own train.json as `python -m monai.bundle run` runs it: cache, whole-batch augmentation,
averaged weights, measured precision. Keras' epoch is `model.fit` on arrays in memory, float32, without augmentation: it
does less. conv3d, cnn2d and mlp are built of Keras layers, as in the Keras examples; for the other networks, which have
no Keras counterpart, Keras trains the bundle's own network through its TorchModuleWrapper. Each run is a process of its
own; the fastest epoch after the first counts. Needs the extra `test`. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from keras_models import keras_cnn2d, keras_conv3d, keras_mlp

BUNDLES = Path(__file__).parents[2] / "bundles"


@dataclass(frozen=True)
class Setting:
    """One comparison.

    Args:
        folder: Name of the bundle.
        shape: Of a case in the arrays given to Keras, channels last; one number for a table.
        cases: Number of cases.
        native: Whether Keras' model is built of Keras layers.
        options: Of the bundle.
        covariates: Numbers that each case has beside its volume.
    """

    folder: str
    shape: tuple[int, ...]
    cases: int
    native: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    covariates: int = 0


SETTINGS = {
    "conv3d": Setting("conv3d_classification", (64, 64, 64, 1), 32, native=True, options={"batch_size": 8}),
    "cnn2d": Setting("cnn2d_classification", (64, 64, 3), 1024, native=True),
    "mlp": Setting("mlp_tabular_classification", (30,), 4096, native=True),
    "resnet3d": Setting("resnet3d_classification", (28, 28, 28, 1), 256),
    "densenet3d": Setting("densenet3d_classification", (28, 28, 28, 1), 128),
    "vit3d": Setting("vit3d_classification", (28, 28, 28, 1), 128),
    "fusion": Setting("fusion_classification", (28, 28, 28, 1), 256, covariates=2),
    "resnet50_2d": Setting(
        "resnet50_2d_classification", (128, 128, 3), 64, options={"spatial_size": [128, 128], "batch_size": 16}
    ),
    "vit2d": Setting(
        "vit2d_classification",
        (64, 64, 3),
        256,
        options={"preset": "compact", "spatial_size": [64, 64], "batch_size": 32},
    ),
}


def write_study(setting: Setting, folder: Path) -> Path:
    """Write random 8-bit cases, or rows of numbers, with two classes, and return what `--dataset_dir` takes."""
    rng = np.random.default_rng(0)
    labels = np.arange(setting.cases) % 2
    folder.mkdir(parents=True)
    if setting.covariates:
        return write_volumes_and_covariates(setting, folder)
    if len(setting.shape) == 1:
        with (folder / "rows.csv").open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow([*(f"x{index}" for index in range(setting.shape[0])), "split", "label"])
            splits = ["val" if index < 16 else "train" for index in range(setting.cases + 16)]
            for index, split in enumerate(splits):
                writer.writerow([*rng.normal(size=setting.shape[0]).round(4), split, f"c{index % 2}"])
        return folder / "rows.csv"
    shape = setting.shape[:-1] if setting.shape[-1] == 1 else setting.shape
    arrays: dict[str, Any] = {}
    for split, count in (("train", setting.cases), ("val", 8), ("test", 8)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.resize(labels, count)[:, None].astype(np.uint8)
    np.savez(folder / "study.npz", **arrays)
    return folder / "study.npz"


def write_volumes_and_covariates(setting: Setting, folder: Path) -> Path:
    """Write a volume per case and a case table with its covariates; return the table."""
    rng = np.random.default_rng(0)
    names = [f"x{index}" for index in range(setting.covariates)]
    with (folder / "cases.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case", "image", "label", "split", *names])
        for index in range(setting.cases + 16):
            image = f"case{index}.npy"
            np.save(folder / image, rng.integers(0, 256, setting.shape[:-1], dtype=np.uint8))
            numbers = rng.normal(size=setting.covariates).round(4)
            writer.writerow([f"case{index}", image, f"c{index % 2}", "val" if index < 16 else "train", *numbers])
    return folder / "cases.csv"


def medvol_seconds(setting: Setting, folder: Path, epochs: int) -> float:
    """Return the seconds of the bundle's fastest epoch after the first."""
    from ignite.engine import Events
    from monai.bundle import ConfigWorkflow

    root = BUNDLES / setting.folder
    workflow = ConfigWorkflow(
        config_file=str(root / "configs" / "train.json"),
        workflow_type="train",
        logging_file=False,
        bundle_root=str(root),
        dataset_dir=str(write_study(setting, folder / "study")),
        output_dir=str(folder / "out"),
        model_dir=str(folder / "models"),
        show_progress=False,
        max_epochs=epochs,
        val_interval=10 * epochs,
        keep="last",
        **setting.options,
    )
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    times: list[float] = []
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: times.append(-time.perf_counter()))
    # Before the handlers that write files after an epoch, which Keras does not either.
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(every=trainer.state.epoch_length or len(trainer.data_loader)),
        lambda: times.append(times.pop() + time.perf_counter()),
    )
    trainer.run()
    return min(times[1:])


def keras_seconds(name: str, setting: Setting, epochs: int, batch: int) -> float:
    """Return the seconds of Keras' fastest epoch after the first."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras

    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    images = rng.random((setting.cases, *setting.shape), dtype=np.float32)
    labels = (np.arange(setting.cases) % 2)[:, None]
    if setting.native:
        model = {"conv3d": keras_conv3d, "cnn2d": keras_cnn2d, "mlp": keras_mlp}[name](keras, setting.shape)
        loss: Any = "binary_crossentropy"
    else:
        images = np.ascontiguousarray(np.moveaxis(images, -1, 1))
        if setting.covariates:
            rows = rng.normal(size=(setting.cases, setting.covariates)).astype(np.float32)
            images = np.concatenate([images.reshape(setting.cases, -1), rows], axis=1)
        model = keras.Sequential([keras.layers.TorchModuleWrapper(wrapped_network(name, setting))])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss)
    times: list[float] = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            times.append(-time.perf_counter())

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            times[-1] += time.perf_counter()

    model.fit(images, labels, epochs=epochs, batch_size=batch, verbose=0, callbacks=[Clock()])
    return min(times[1:])


def wrapped_network(name: str, setting: Setting) -> Any:
    """Return the bundle's network for two classes."""
    from medvol.networks.densenet3d import densenet3d
    from medvol.networks.fusion import fusion_network
    from medvol.networks.resnet2d import resnet50_2d
    from medvol.networks.resnet3d import resnet3d
    from medvol.networks.vit2d import vit2d
    from medvol.networks.volume_transformer import volume_transformer

    size, channels = setting.shape[:-1], setting.shape[-1]
    build: dict[str, Callable[[], Any]] = {
        "resnet3d": lambda: resnet3d(channels, 2),
        "densenet3d": lambda: densenet3d(channels, 2, spatial_size=size),
        "vit3d": lambda: volume_transformer(channels, 2, spatial_size=size),
        "fusion": lambda: in_one_row(fusion_network(channels, setting.covariates, 2), (channels, *size)),
        "resnet50_2d": lambda: resnet50_2d(channels, 2),
        "vit2d": lambda: vit2d(channels, 2, spatial_size=size, preset="compact"),
    }
    return build[name]()


def in_one_row(network: Any, shape: tuple[int, ...]) -> Any:
    """Return the network behind one tensor, (n, voxels and covariates), as Keras' wrapper of a module takes it."""
    from torch import nn

    class InOneRow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, rows: Any) -> Any:
            voxels = int(np.prod(shape))
            return self.network(rows[:, :voxels].reshape(-1, *shape), rows[:, voxels:])

    return InOneRow()


def default_batch(setting: Setting) -> int:
    """Return the batch size that the bundle trains with."""
    values = json.loads((BUNDLES / setting.folder / "configs" / "train.json").read_text())
    return int(setting.options.get("batch_size", values["batch_size"]))


def quiet(function: Callable[..., float], *arguments: Any) -> float:
    """Call a function with warnings and information off."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    return function(*arguments)


def in_a_process(function: Callable[..., float], *arguments: Any) -> float:
    """Call a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(quiet, function, *arguments).result()


def main() -> None:
    """Parse the command line, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    print("| bundle | cases, size | Keras | Keras, s | medvol, s | ratio |\n|---|---|---|---|---|---|")
    for name in options.bundles:
        setting = SETTINGS[name]
        with tempfile.TemporaryDirectory() as folder:
            theirs = in_a_process(keras_seconds, name, setting, options.epochs, default_batch(setting))
            ours = in_a_process(medvol_seconds, setting, Path(folder), options.epochs)
        size = " x ".join(map(str, setting.shape))
        how = "layers" if setting.native else "wrapped"
        print(
            f"| {name} | {setting.cases}, {size} | {how} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
