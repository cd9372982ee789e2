"""Five kills at random moments of a training, each resumed, against the same training left alone: weights to the bit.

    python tests/benchmarks/kill_and_resume.py [resnet3d_classification|unet_segmentation] [--kills 5] [--seed 0]

A training is ended by SIGKILL wherever it is: in the middle of an epoch, while it writes its checkpoint. What is
printed is a row per kill and the SHA-256 of both models.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from monai.bundle import run

from medvol.phantoms.cohort import classification_cohort, segmentation_cohort

ROOT = Path(__file__).parents[2] / "bundles"
OPTIONS = {
    "resnet3d_classification": {"max_epochs": 30, "batch_size": 4, "spatial_size": [20, 22, 18], "val_interval": 2},
    "unet_segmentation": {"max_epochs": 20, "batch_size": 2, "patches_per_epoch": 8, "width": 4, "val_interval": 2},
}


def train(bundle: str, study: Path, output: Path, resume: bool) -> None:
    options = {**OPTIONS[bundle], "precision": "float32", "show_progress": False, "resume": resume}
    options |= {"bundle_root": ROOT / bundle, "dataset_dir": study, "output_dir": output}
    options |= {"model_dir": output / "models", "config_file": ROOT / bundle / "configs" / "train.json"}
    output.mkdir(exist_ok=True)
    with (output / "log.txt").open("a") as log, redirect_stdout(log), redirect_stderr(log):
        run(**{name: str(value) if isinstance(value, Path) else value for name, value in options.items()})


def start(bundle: str, study: Path, output: Path, *, resume: bool) -> BaseProcess:
    # A fork has MONAI imported already: nearly all of its life is the training's.
    process = get_context("fork").Process(target=train, args=(bundle, study, output, resume))
    process.start()
    return process


def finish(process: BaseProcess) -> None:
    process.join()
    if process.exitcode != 0:
        raise SystemExit(f"a training that was left alone ended with {process.exitcode}")


def epochs_done(output: Path) -> int:
    file = output / "checkpoint.pt"
    return int(torch.load(file, weights_only=True)["progress"]["epoch"]) if file.is_file() else 0


def digest(output: Path) -> str:
    return hashlib.sha256((output / "models" / "model.pt").read_bytes()).hexdigest()


def main() -> int:
    torch.set_num_threads(1)  # a fork inherits no threads, and equal to the bit means equal thread counts
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", nargs="?", default="resnet3d_classification", choices=OPTIONS)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="kill_and_resume_"))
    make = segmentation_cohort if chosen.bundle.endswith("_segmentation") else classification_cohort
    study = make(place / "study", patients=12, size=(22, 21, 20))
    began = time.perf_counter()
    finish(start(chosen.bundle, study, place / "whole", resume=False))
    alone_s = time.perf_counter() - began
    rng = random.Random(chosen.seed)
    print(f"{chosen.bundle}: {OPTIONS[chosen.bundle]['max_epochs']} epochs, {alone_s:.1f} s alone")
    print("| kill | after | epochs done before | epochs done after |\n|---|---|---|---|")
    parts = place / "parts"
    for number in range(1, chosen.kills + 1):
        before, wait_s = epochs_done(parts), rng.uniform(0.15, 0.55) * alone_s
        running = start(chosen.bundle, study, parts, resume=number > 1)
        time.sleep(wait_s)
        ended = running.exitcode is not None
        running.kill()  # SIGKILL
        running.join()
        word = " (it was finished already)" if ended else ""
        print(f"| {number} | {wait_s:.1f} s{word} | {before} | {epochs_done(parts)} |", flush=True)
    finish(start(chosen.bundle, study, parts, resume=True))
    whole, resumed = digest(place / "whole"), digest(parts)
    print(f"left alone {whole}\nkilled     {resumed}\n{'equal' if whole == resumed else 'DIFFERENT'}")
    shutil.rmtree(place)
    return int(whole != resumed)


if __name__ == "__main__":
    sys.exit(main())
