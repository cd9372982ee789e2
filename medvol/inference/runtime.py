"""One place that decides precision and memory layout, by a short measurement on the network at hand.

bfloat16 doubles the speed of a small residual network on a processor with AVX512-BF16 or AMX and slows it down on one
without; channels last helps wide networks and hurts narrow ones. So the training step or the inference call itself is
timed, once, and the answer is remembered beside the volume cache. `torch.compile` is tried only where a C++ compiler is
there and the caller expects so many calls that its minute or more can pay; its time is measured and counted against it.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, final

import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from medvol.errors import MedvolError, require_choice
from medvol.inference.memory import keep_freed_memory
from medvol.inference.turns import REPEATS, seconds_in_turns
from medvol.io.atomic import write_text
from medvol.networks.mean import as_outputs
from medvol.networks.small_maps import use_exact_small_maps

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "float32", "bfloat16")
PURPOSES = ("train", "infer")
PROBE_BATCH = {"train": 8, "infer": 1}
PROBE_SECONDS = 40.0  # for all candidates together, as far as a single call of each allows
COMPILE_WORTHWHILE = 600.0  # seconds of plain calls below which compiling is not even tried
WORTHWHILE = 1.05  # what a lower precision or a compiler must gain
WORTHWHILE_LAYOUT = 1.02  # what another layout must gain, which is as exact; less is noise


@dataclass(frozen=True)
class Runtime:
    """How a network is run.

    Args:
        device_type: `cpu` or `cuda`.
        dtype: `float32`, or `bfloat16` or `float16` for autocast.
        channels_last: Whether tensors are laid out with channels as the fastest axis.
        compiled: Whether the network is compiled by `torch.compile`.
    """

    device_type: str
    dtype: str = "float32"
    channels_last: bool = False
    compiled: bool = False

    @property
    def memory_format(self) -> torch.memory_format:
        """Layout of 5D tensors."""
        return self.layout(5)

    def layout(self, dimensions: int) -> torch.memory_format:
        """Return the layout of tensors with so many dimensions, 5 for volumes and 4 for images."""
        last = {4: torch.channels_last, 5: torch.channels_last_3d} if self.channels_last else {}
        return last.get(dimensions, torch.contiguous_format)

    def __str__(self) -> str:
        layout = "channels last" if self.channels_last else "contiguous"
        return f"{self.device_type}, {self.dtype}, {layout}" + (", compiled" if self.compiled else "")


@final
class RuntimeInferer(Inferer):
    """MONAI inferer that runs the network as a `Runtime` says.

    Args:
        runtime: Precision and layout; plain float32 when None.
        mirror_axes: Spatial axes (0 = x) along which volumes may be mirrored without changing the answer. Outputs are
            averaged over all combinations of mirrored axes.
        as_float32: Whether outputs are turned to float32 in the default layout, where softmax over classes is fast.
    """

    def __init__(
        self, runtime: Runtime | None = None, mirror_axes: Sequence[int] = (), *, as_float32: bool = True
    ) -> None:
        super().__init__()
        self.runtime = runtime
        self.mirror_axes = tuple(mirror_axes)
        self.as_float32 = as_float32

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Return `network(inputs)` averaged over the mirror images; a list where the network returns one."""
        outputs = [
            self._run(inputs.flip([axis + 2 for axis in axes]) if axes else inputs, network, *args, **kwargs)
            for count in range(len(self.mirror_axes) + 1)
            for axes in combinations(self.mirror_axes, count)
        ]
        return outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(dim=0)

    def _run(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        if self.runtime is None:
            return network(inputs, *args, **kwargs)
        laid_out = inputs.to(memory_format=self.runtime.layout(inputs.dim()))
        half = getattr(torch, self.runtime.dtype if self.runtime.dtype != "float32" else "bfloat16")
        with torch.autocast(self.runtime.device_type, half, enabled=self.runtime.dtype != "float32"):
            outputs = network(laid_out, *args, **kwargs)
        if not self.as_float32:
            return outputs
        # With deep supervision a network in training mode returns one tensor per resolution.
        return _plain(outputs) if isinstance(outputs, Tensor) else [_plain(output) for output in outputs]


def _plain(outputs: Tensor) -> Tensor:
    return outputs.to(torch.float32, memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Probe:
    """What is timed.

    Args:
        purpose: `train`: forward and backward in training mode. `infer`: forward in evaluation mode, no gradients.
        batch: Volumes per call.
        seconds: Time for all candidates together; each is called at least once.
        expected_calls: Calls that will follow; decides whether compiling can pay. 0 leaves compiling out.
    """

    purpose: str = "train"
    batch: int = 0
    seconds: float = PROBE_SECONDS
    expected_calls: int = 0

    def __post_init__(self) -> None:
        require_choice("purpose", self.purpose, PURPOSES)
        if self.batch < 1:
            object.__setattr__(self, "batch", PROBE_BATCH[self.purpose])


def choose_runtime(  # noqa: PLR0913 - one place for every wish about the runtime
    network: nn.Module,
    input_shape: Sequence[int],
    *,
    device: torch.device | str,
    precision: str = "auto",
    channels_last: bool | None = None,
    memory_file: str | Path | None = None,
    purpose: str = "train",
    batch: int = 0,
    expected_calls: int = 0,
) -> Runtime:
    """Return the fastest way to run `network` on this machine, and put its weights into that layout.

    On a processor convolutions of small maps are kept in float32 while training (`medvol.networks.small_maps`).

    Args:
        network: Network on `device`; a copy is timed, its weights stay as they are.
        input_shape: Channel and spatial size of one volume, patch or image, as (channel, x, y, z).
        device: Where it will run; by name, as MONAI Label sets it, too.
        precision: `auto` measures. `float32` and `bfloat16` fix the choice, nothing measured: what to pass when two
            runs must be equal to the bit, since a measurement may come out differently.
        channels_last: Fixes the layout. None: measured, or the default layout with a fixed precision.
        memory_file: JSON file in which measurements are remembered.
        purpose: `train` times a training step, `infer` a forward pass without gradients.
        batch: Volumes per call; 0 for 8 in training and 1 in inference.
        expected_calls: Calls that will follow. With 10 minutes of them or more, a compiled network is timed too.

    Raises:
        MedvolError: `UNKNOWN_OPTION`.
    """
    require_choice("precision", precision, PRECISIONS)
    probe = Probe(purpose, batch, expected_calls=expected_calls)
    device = torch.device(device)
    if device.type == "cpu":
        keep_freed_memory()
        if purpose == "train":
            use_exact_small_maps(network)
    else:
        torch.backends.cudnn.benchmark = True
    if precision != "auto":
        runtime = Runtime(device.type, precision, bool(channels_last))
    else:
        layouts = (False, True) if channels_last is None else (channels_last,)
        candidates = runtimes_for(device, purpose, layouts)
        runtime = _remembered(network, input_shape, candidates, probe, Path(memory_file) if memory_file else None)
    network.to(memory_format=runtime.layout(1 + len(input_shape)))  # type: ignore[call-overload]  # torch's stub lacks it
    if runtime.compiled:
        network.compile()
    logger.info("Runtime: %s", runtime)
    return runtime


def runtimes_for(device: torch.device, purpose: str, layouts: Sequence[bool] = (False, True)) -> list[Runtime]:
    """Return what is worth measuring on a device, the plainer first.

    A graphics card with tensor cores for bfloat16 is always faster with them. An older one emulates bfloat16, slowly;
    its float16 needs the loss scaled in training, which no trainer here does.
    """
    dtypes = ["float32", "bfloat16"]
    if device.type != "cpu" and torch.cuda.is_bf16_supported(including_emulation=False):
        dtypes = ["bfloat16"]
    elif device.type != "cpu":
        dtypes = ["float32", "float16"] if purpose == "infer" else ["float32"]
    return [Runtime(device.type, dtype, layout) for dtype in dtypes for layout in layouts]


def measure_runtimes(
    network: nn.Module,
    input_shape: Sequence[int],
    probe: Probe | None = None,
    candidates: Sequence[Runtime] | None = None,
) -> dict[Runtime, float]:
    """Return the seconds per call of each candidate, fastest of five or fewer, on a copy of the network.

    Args:
        network: Network on the device where it is timed.
        input_shape: (channel, x, y, z), or (channel, row, column).
        probe: What is timed; a training step of 8 volumes when None.
        candidates: Runtimes to time, plainer ones first; on a processor, both precisions in both layouts when None.
    """
    probe = probe or Probe()
    if candidates is None:
        candidates = runtimes_for(torch.device("cpu"), probe.purpose)
    trial = copy.deepcopy(network)
    seconds = seconds_in_turns(
        {candidate: partial(_duration, trial, input_shape, candidate, probe) for candidate in candidates}, probe.seconds
    )
    best = fastest(seconds)
    if has_compiler() and seconds[best] * probe.expected_calls >= COMPILE_WORTHWHILE:
        compiled, trial = replace(best, compiled=True), copy.deepcopy(network)
        trial.compile()
        try:
            start = time.perf_counter()
            call = partial(_duration, trial, input_shape, compiled, probe)
            per_call = seconds_in_turns({compiled: call}, probe.seconds / len(candidates))[compiled]
            compiling = max(0.0, time.perf_counter() - start - (REPEATS + 1) * per_call)
        except Exception as error:  # the compiler and everything it calls; a network that runs uncompiled is no failure
            logger.warning("torch.compile failed, running uncompiled: %s", str(error).splitlines()[0][:120])
        else:
            seconds[compiled] = per_call + compiling / probe.expected_calls
    return seconds


def fastest(seconds: dict[Runtime, float]) -> Runtime:
    """Return the fastest runtime; an earlier, plainer one when the gain is below 5 %, for another layout 2 %."""
    best = next(iter(seconds))
    for candidate, duration in seconds.items():
        only_layout = replace(candidate, channels_last=best.channels_last) == best
        if duration * (WORTHWHILE_LAYOUT if only_layout else WORTHWHILE) < seconds[best]:
            best = candidate
    return best


def has_compiler() -> bool:
    """Return whether there is a C++ compiler for `torch.compile` to use."""
    return any(shutil.which(name) for name in ("g++", "clang++", "cl"))


def _duration(network: nn.Module, input_shape: Sequence[int], runtime: Runtime, probe: Probe) -> float:
    training = probe.purpose == "train"
    network.train(training).to(memory_format=runtime.layout(1 + len(input_shape)))  # type: ignore[call-overload]
    network.zero_grad(set_to_none=True)
    inferer = RuntimeInferer(runtime)
    device = next((one.device for one in network.parameters()), torch.device(runtime.device_type))
    batch = torch.zeros(probe.batch, *input_shape, device=device)
    start = time.perf_counter()
    with torch.set_grad_enabled(training):
        outputs = inferer(batch, network)
        if training:
            torch.stack([output.sum() for output in as_outputs(outputs)]).sum().backward()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _remembered(
    network: nn.Module, input_shape: Sequence[int], candidates: list[Runtime], probe: Probe, memory_file: Path | None
) -> Runtime:
    key = _machine_key(network, input_shape, candidates, probe)
    known = _read_memory(memory_file)
    if key in known:
        return Runtime(**known[key])
    # Dropout in the probe draws from torch's global generator; training must not depend on whether it was measured.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if candidates[0].device_type == "cuda" else ()):
        seconds = measure_runtimes(network, input_shape, probe, candidates)
    best = fastest(seconds)
    what = "a training step" if probe.purpose == "train" else "an inference call"
    times = "; ".join(f"{candidate}: {duration:.3g} s" for candidate, duration in seconds.items())
    logger.info("Measured %s of %d x %s: %s", what, probe.batch, "x".join(map(str, input_shape)), times)
    if memory_file is not None:
        try:
            write_text(memory_file, json.dumps({**known, key: asdict(best)}, indent=4))
        except MedvolError as refusal:  # as in a server's read-only folder; the answer is there all the same
            logger.info("Not remembered: %s", refusal)
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


def _machine_key(network: nn.Module, input_shape: Sequence[int], candidates: Sequence[Runtime], probe: Probe) -> str:
    layout = [(name, tuple(parameter.shape)) for name, parameter in network.named_parameters()]
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.is_file() else []
    machine = (
        torch.__version__,
        platform.processor(),
        # What torch calls AVX512 is with or without bfloat16.
        sorted({line for line in lines if line.startswith(("model name", "flags"))}),
        torch.backends.cpu.get_cpu_capability(),
        torch.get_num_threads(),
        torch.cuda.get_device_name() if candidates[0].device_type == "cuda" else "",
    )
    # Two networks with the same weights may be computed differently: their text tells them apart.
    text = repr((str(network), layout, tuple(input_shape), tuple(candidates), probe, machine))
    return hashlib.sha256(text.encode()).hexdigest()[:24]
