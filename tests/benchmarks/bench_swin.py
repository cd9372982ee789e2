"""Swin UNETR against stock MONAI: seconds for one window and one training step, and how far the results differ.

    python tests/benchmarks/bench_swin.py [--feature_sizes 24 48] [--size 96] [--train_size 64] [--repeats 5]
                                          [--device cuda]

Stock is MONAI's `SwinUNETR` as its tutorials use it: float32, default layout. `MONAI, fastest` is the same network with
everything MONAI and torch offer: `use_flash_attention` (inference only), bfloat16 autocast, channels last. Each variant
has a process of its own (what one sets must not help the other), one after the other. Medians over the repeats, and of
the processor's seconds, which a busy machine changes less (with OMP_NUM_THREADS=1: threads that wait count as busy).
Errors are against stock. Weights are random. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import monai.networks.nets.swin_unetr as monai_swin
import numpy as np
import torch
from torch import Tensor, nn

from medvol.inference.memory import keep_freed_memory
from medvol.networks.swin_unetr import swin_unetr

OUTPUTS = 3
LAST = torch.channels_last_3d
STOCK, FASTEST, OURS, OURS_HALF = ("stock, float32", "MONAI, fastest", "medvol, float32", "medvol, bfloat16")
VARIANTS = (STOCK, FASTEST, OURS, OURS_HALF)


def rearrange(tensor: Tensor, pattern: str) -> Tensor:
    """Stand in for einops, which MONAI's network wants for permutations alone."""
    before, after = (side.split() for side in pattern.split("->"))
    return tensor.permute([before.index(name) for name in after])


def build(variant: str, feature_size: int) -> nn.Module:
    """Return the network; all variants have the same weights."""
    monai_swin.rearrange = rearrange
    torch.manual_seed(0)
    network = monai_swin.SwinUNETR(1, OUTPUTS, feature_size=feature_size, use_flash_attention=variant == FASTEST)
    if variant == FASTEST:
        return network.to(memory_format=LAST)
    if variant == STOCK:
        return network
    keep_freed_memory()
    ours = swin_unetr(1, OUTPUTS, feature_size=feature_size)
    ours.load_state_dict(network.state_dict())
    return ours


def run(
    variant: str, feature_size: int, shape: tuple[int, ...], repeats: int, *, training: bool, device: str
) -> tuple[list[tuple[float, float]], np.ndarray]:
    """Return wall and processor seconds of each step and the last logits; runs in the variant's process."""
    network = build(variant, feature_size).train(training).to(device)
    volumes = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(device)
    volumes = volumes if variant == STOCK else volumes.to(memory_format=LAST)
    labels = (volumes[:, 0] > 0).long()
    seconds = []
    for _ in range(repeats + 1):
        network.zero_grad()
        start = time.perf_counter(), time.process_time()
        with torch.set_grad_enabled(training):
            with torch.autocast(device, torch.bfloat16, enabled=variant in (FASTEST, OURS_HALF)):
                logits = network(volumes)
            logits = logits.float()
            if training:
                nn.functional.cross_entropy(logits, labels).backward()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return seconds[1:], logits.detach().cpu().contiguous().numpy()  # the first fills caches and does not count


def compare(feature_size: int, shape: tuple[int, ...], repeats: int, *, training: bool, device: str) -> None:
    """Print a row per variant."""
    for variant in VARIANTS:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            how = {"training": training, "device": device}
            seconds, logits = pool.submit(run, variant, feature_size, shape, repeats, **how).result()
        wall, busy = (statistics.median(column) for column in zip(*seconds, strict=True))
        if variant == STOCK:
            stock, exact = (wall, busy), logits
        error, same = np.abs(logits - exact).max(), (logits.argmax(1) == exact.argmax(1)).mean()
        ratios = f"{wall:>9.3f}{stock[0] / wall:>8.2f}{busy:>9.3f}{stock[1] / busy:>8.2f}"
        print(f"  {variant:<18}{ratios}{error:>12.1e}{same:>12.5f}", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--feature_sizes", type=int, nargs="+", default=[24, 48])
    parser.add_argument("--size", type=int, default=96, help="edge of the window; 0 leaves inference out")
    parser.add_argument("--train_size", type=int, default=64, help="edge of the training patch; 0 leaves it out")
    parser.add_argument("--batch", type=int, default=1, help="patches per training step")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    where = torch.cuda.get_device_name() if options.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"SwinUNETR, {where}, torch {torch.__version__}, {options.repeats} repeats")
    print(f"  {'':<18}{'wall s':>9}{'ratio':>8}{'cpu s':>9}{'ratio':>8}{'max error':>12}{'same label':>12}")
    for feature_size in options.feature_sizes:
        for training, edge, batch in ((False, options.size, 1), (True, options.train_size, options.batch)):
            if edge:
                name = "training step" if training else "inference"
                print(f"feature size {feature_size}, {name}, {batch} x {edge} cubed")
                compare(
                    feature_size,
                    (batch, 1, edge, edge, edge),
                    options.repeats,
                    training=training,
                    device=options.device,
                )


if __name__ == "__main__":
    main()
