"""One place that decides precision and memory layout, by a short measurement on the network at hand.

bfloat16 doubles the speed of a small residual network on a processor with AVX512-BF16 or AMX and slows it down on one
without; channels last helps wide networks and hurts narrow ones. So the training step itself is timed, once, and the
answer is remembered beside the volume cache.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, final

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from medvol.errors import require_choice
from medvol.inference.memory import keep_freed_memory
from medvol.io.atomic import write_text

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "float32", "bfloat16")
PROBE_BATCH = 8
PROBE_REPEATS = 3
WORTHWHILE = 1.05  # a choice that gains less than 5 % is noise; the plainer one is kept


@dataclass(frozen=True)
class Runtime:
    """How a network is run.

    Args:
        device_type: `cpu` or `cuda`.
        dtype: `float32`, or `bfloat16` for autocast.
        channels_last: Whether tensors are laid out with channels as the fastest axis.
    """

    device_type: str
    dtype: str = "float32"
    channels_last: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        """Layout of 5D tensors."""
        return torch.channels_last_3d if self.channels_last else torch.contiguous_format

    def __str__(self) -> str:
        layout = "channels_last_3d" if self.channels_last else "contiguous"
        return f"{self.device_type}, {self.dtype}, {layout}"


@final
class RuntimeInferer(Inferer):
    """MONAI inferer that runs the network as a `Runtime` says and returns float32 outputs.

    Args:
        runtime: Precision and layout; plain float32 when None.
        mirror_axes: Spatial axes (0 = x) along which volumes may be mirrored without changing the answer. Outputs are
            averaged over all combinations of mirrored axes, 2 to the power of their number.
    """

    def __init__(self, runtime: Runtime | None = None, mirror_axes: Sequence[int] = ()) -> None:
        super().__init__()
        self.runtime = runtime
        self.mirror_axes = tuple(mirror_axes)

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Return `network(inputs)`, float32, averaged over the mirror images; a list where the network returns one."""
        outputs = [
            self._run(inputs.flip([axis + 2 for axis in axes]) if axes else inputs, network, *args, **kwargs)
            for count in range(len(self.mirror_axes) + 1)
            for axes in combinations(self.mirror_axes, count)
        ]
        return outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(dim=0)

    def _run(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        if self.runtime is None:
            return network(inputs, *args, **kwargs)
        if inputs.dim() == 5:
            inputs = inputs.to(memory_format=self.runtime.memory_format)
        with torch.autocast(self.runtime.device_type, torch.bfloat16, enabled=self.runtime.dtype == "bfloat16"):
            outputs = network(inputs, *args, **kwargs)
        # With deep supervision a network in training mode returns one tensor per resolution.
        return outputs.float() if isinstance(outputs, Tensor) else [output.float() for output in outputs]


def choose_runtime(
    network: nn.Module,
    input_shape: Sequence[int],
    *,
    device: torch.device,
    precision: str = "auto",
    memory_file: str | Path | None = None,
) -> Runtime:
    """Return the fastest way to train `network` on this machine, and put its weights into that layout.

    Args:
        network: Network on `device`; a copy is timed, its weights stay as they are.
        input_shape: Channel and spatial size of one volume, (channel, x, y, z).
        device: Where it will run.
        precision: `auto` measures. `float32` and `bfloat16` fix the choice, contiguous layout, nothing measured: what
            to pass when two runs must be equal to the bit, since a measurement may come out differently.
        memory_file: JSON file in which measurements are remembered.

    Raises:
        MedvolError: `UNKNOWN_OPTION`.
    """
    require_choice("precision", precision, PRECISIONS)
    if device.type == "cpu":
        keep_freed_memory()
    if precision != "auto":
        runtime = Runtime(device.type, precision)
    elif device.type == "cpu":
        runtime = _remembered(network, input_shape, Path(memory_file) if memory_file else None)
    else:
        runtime = Runtime(device.type, "bfloat16" if torch.cuda.is_bf16_supported() else "float32", channels_last=True)
    network.to(memory_format=runtime.memory_format)  # type: ignore[call-overload]  # torch's stub lacks it
    logger.info("Runtime: %s", runtime)
    return runtime


def measure_runtimes(network: nn.Module, input_shape: Sequence[int]) -> dict[Runtime, float]:
    """Return the seconds per training step of each candidate, fastest of three, on a copy of the network."""
    candidates = [Runtime("cpu", dtype, layout) for dtype in ("float32", "bfloat16") for layout in (False, True)]
    return {candidate: _seconds_per_step(copy.deepcopy(network), input_shape, candidate) for candidate in candidates}


def fastest(seconds: dict[Runtime, float]) -> Runtime:
    """Return the fastest runtime; an earlier, plainer one when the gain is below 5 %."""
    best = next(iter(seconds))
    for candidate, duration in seconds.items():
        if duration * WORTHWHILE < seconds[best]:
            best = candidate
    return best


def _seconds_per_step(network: nn.Module, input_shape: Sequence[int], runtime: Runtime) -> float:
    network.train().to(memory_format=runtime.memory_format)  # type: ignore[call-overload]
    inferer = RuntimeInferer(runtime)
    batch = torch.zeros(PROBE_BATCH, *input_shape)
    durations = []
    for _ in range(PROBE_REPEATS + 1):  # the first builds kernels and does not count
        start = time.perf_counter()
        inferer(batch, network).sum().backward()
        durations.append(time.perf_counter() - start)
    return min(durations[1:])


def _remembered(network: nn.Module, input_shape: Sequence[int], memory_file: Path | None) -> Runtime:
    key = _machine_key(network, input_shape)
    known = _read_memory(memory_file)
    if key in known:
        return Runtime(**known[key])
    # Dropout in the probe draws from torch's global generator; training must not depend on whether it was measured.
    with torch.random.fork_rng(devices=[]):
        seconds = measure_runtimes(network, input_shape)
    best = fastest(seconds)
    slowest = max(seconds.values())
    logger.info("Measured a training step: %s, %.1f times the slowest", best, slowest / seconds[best])
    if memory_file is not None:
        memory_file.parent.mkdir(parents=True, exist_ok=True)
        write_text(memory_file, json.dumps({**known, key: asdict(best)}, indent=4))
    return best


def _read_memory(memory_file: Path | None) -> dict[str, Any]:
    if memory_file is None or not memory_file.is_file():
        return {}
    try:
        known = json.loads(memory_file.read_text())
    except ValueError:
        logger.warning("%s is damaged; measuring again", memory_file)
        return {}
    return known if isinstance(known, dict) else {}


def _machine_key(network: nn.Module, input_shape: Sequence[int]) -> str:
    layout = [(name, tuple(parameter.shape)) for name, parameter in network.named_parameters()]
    machine = (
        torch.__version__,
        platform.processor(),
        torch.backends.cpu.get_cpu_capability(),
        torch.get_num_threads(),
    )
    text = repr((layout, tuple(input_shape), machine))
    return hashlib.sha256(text.encode()).hexdigest()[:24]
