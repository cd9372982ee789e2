"""Inference by overlapping windows, streamed: logits leave plane by plane and are never held for the whole volume.

The arithmetic is that of MONAI's `SlidingWindowInferer(mode="gaussian")`: its window positions, its importance map, the
weighted mean of the logits. What differs is how long the sums live. Windows are visited in rows along one axis, the
longest. The planes that no later row touches are divided by their weights and handed on, so only as many planes as a
window is thick are held: of 25 classes at 256 x 256 x 160 with windows of 64 that is 262 MB instead of 1049 MB, and it
does not grow with the length of the volume. Rejected: finishing strips within a row as well, which would have saved a
quarter of the buffer, because a strip of full thickness has to be held besides the planes carried to the next row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product, repeat
from typing import Any, final

import torch
from monai.data.meta_tensor import MetaTensor
from monai.data.utils import compute_importance_map
from monai.inferers import Inferer
from torch import Tensor, nn
from tqdm import tqdm

from medvol.data.loading import without_metadata
from medvol.errors import MedvolError
from medvol.inference.runtime import Runtime, RuntimeInferer
from medvol.inference.windows import Slab, Start, WindowPlan, WindowSums, constant_values, has_room, plan_windows

logger = logging.getLogger(__name__)

SIGMA_SCALE = 0.125  # of the window's side; nnU-Net and MONAI
PROGRESS_AFTER_S = 3.0


@final
class SlidingWindow(Inferer):
    """Logits of volumes of any size from a network that sees windows of one size.

    A volume smaller than the window is padded evenly on both sides with each channel's minimum, and cropped back. All
    is done without gradients, on the network's device: volume and sums lie there where they take at most half of a
    graphics card's free memory, else in the computer's.

    Constant windows (air around the patient, the padding of a mosaic) are all alike, so with `skip_air` the network
    sees one of them per row and its answer serves for all others of the same values. That is exact: no rule decides
    what air is, and no label changes anywhere.

    Args:
        patch_size: Voxels of a window along x, y, z.
        overlap: Share of a window that its neighbour covers too, 0 to below 1.
        batch_size: Windows per call of the network.
        runtime: Precision and layout; plain float32 when None.
        mirror_axes: Spatial axes (0 = x) along which windows may be mirrored; logits are mirrored back and averaged
            over all combinations. None unless asked for: the sides of a body are not alike.
        skip_air: Whether to predict constant windows once per row.
        show_progress: Whether to draw a progress bar over the windows after three seconds.

    Raises:
        MedvolError: `UNKNOWN_OPTION` for sizes that describe no window.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        *,
        overlap: float = 0.5,
        batch_size: int = 1,
        runtime: Runtime | None = None,
        mirror_axes: Sequence[int] = (),
        skip_air: bool = True,
        show_progress: bool = False,
    ) -> None:
        super().__init__()
        if len(patch_size) != 3 or min(patch_size) < 1 or not 0 <= overlap < 1 or batch_size < 1:
            raise MedvolError(
                "UNKNOWN_OPTION",
                found=f"patch_size {list(patch_size)}, overlap {overlap}, batch_size {batch_size}",
                expected="three positive sizes, an overlap of 0 to below 1, a positive batch size",
                fix="write --spatial_size '[96, 96, 96]' or --overlap 0.5",
            )
        self.patch_size: Start = (int(patch_size[0]), int(patch_size[1]), int(patch_size[2]))
        self.overlap = overlap
        self.batch_size = batch_size
        self.skip_air = skip_air
        self.show_progress = show_progress
        self._run = RuntimeInferer(runtime, as_float32=False)  # summed in float32, class by class
        self._mirrors = [
            [2 + axis for axis in axes]
            for count in range(len(mirror_axes) + 1)
            for axes in combinations(sorted(mirror_axes), count)
        ]

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the logits of whole volumes, on a processor the same to the bit as `slabs` gives.

        Args:
            inputs: Shape (n, channel, x, y, z).
            network: A network, or a sequence of them (folds), whose logits are averaged.
            *args: Passed on to the network.
            **kwargs: Passed on to the network.

        Returns:
            Float32, shape (n, classes, x, y, z), with the metadata of `inputs`.
        """
        output = torch.empty(0)
        for number, image in enumerate(inputs):
            for axis, start, logits in self._stream(image, network, args, kwargs):
                if output.numel() == 0:
                    output = torch.empty(
                        (len(inputs), len(logits), *inputs.shape[2:]), dtype=torch.float32, device=inputs.device
                    )
                output[number].narrow(1 + axis, start, logits.shape[1 + axis]).copy_(logits)
        return MetaTensor(output).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else output

    def slabs(self, image: Tensor, network: Any) -> Iterator[Slab]:
        """Yield the logits of a volume slab by slab, along its longest axis, each as soon as no window touches it.

        The logits are a view of the buffer: they are valid until the next slab is asked for.

        Args:
            image: Shape (channel, x, y, z).
            network: A network, or a sequence of them (folds), whose logits are averaged.

        Raises:
            MedvolError: `WRONG_DIMS` for an image of other axes, `WRONG_LOGITS` when the network's output is not one
                value per class and voxel.
        """
        return self._stream(image, network, (), {})

    def _stream(self, image: Tensor, network: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[Slab]:
        image = without_metadata(image)
        if image.dim() != 4 or image.numel() == 0:
            raise MedvolError(
                "WRONG_DIMS",
                found=f"an image of shape {tuple(image.shape)}",
                expected="(channel, x, y, z) with at least one voxel",
            )

        def run(windows: Tensor, one: Any) -> Tensor:
            return self._run(windows, one, *args, **kwargs)

        predict = _Predictor(run, network, self._mirrors)
        if predict.device is not None and has_room(predict.device, image.nbytes):
            image = image.to(predict.device)
        plan = plan_windows(image, self.patch_size, self.overlap)
        buffer = WindowSums(plan, compute_importance_map(self.patch_size, mode="gaussian", sigma_scale=SIGMA_SCALE))
        total = sum(len(row) for row in plan.rows)
        with tqdm(
            total=total, desc="Windows", unit="window", delay=PROGRESS_AFTER_S, disable=not self.show_progress
        ) as bar:
            for row, next_row in zip(plan.rows, [*plan.rows[1:], None], strict=True):
                for start, logits in self._predict_row(plan, row, predict):
                    buffer.add(start, logits)
                    del logits  # else one window's logits would stay in memory while the next is predicted
                    bar.update()
                # The planes before the next row's first are touched by nothing that follows.
                count = (next_row[0][plan.axis] if next_row else plan.size[plan.axis]) - buffer.start
                yield buffer.finish(count)
                buffer.advance(count)
        if predict.windows < total:
            logger.info("%d of %d windows were constant and not predicted again", total - predict.windows, total)

    def _predict_row(
        self, plan: WindowPlan, row: Sequence[Start], predict: _Predictor
    ) -> Iterator[tuple[Start, Tensor]]:
        """Yield the logits of a row's windows in an order that depends on the volume alone, constant ones first."""
        alike: dict[tuple[Any, ...], list[Start]] = {}
        others = []
        for start in row:
            values = constant_values(plan.cut(start))
            if values is None:
                others.append(start)
            else:
                alike.setdefault(values if self.skip_air else start, []).append(start)
        for group in alike.values():
            yield from zip(group, repeat(predict(plan.cut(group[0])[None])[0]), strict=False)
        for first in range(0, len(others), self.batch_size):
            chosen = others[first : first + self.batch_size]
            yield from zip(chosen, predict(torch.stack([plan.cut(start) for start in chosen])), strict=True)


@final
class _Predictor:
    """Networks and mirror images that answer as one, and the number of windows that they were asked about."""

    def __init__(self, run: Callable[[Tensor, Any], Any], network: Any, mirrors: Sequence[list[int]]) -> None:
        self.run = run
        self.networks = list(network) if isinstance(network, Sequence | nn.ModuleList) else [network]
        self.mirrors = mirrors
        self.windows = 0
        first = self.networks[0]
        parameter = next(iter(first.parameters()), None) if isinstance(first, nn.Module) else None
        self.device = None if parameter is None else parameter.device

    @torch.no_grad()
    def __call__(self, windows: Tensor) -> Tensor:
        """Return the mean logits, (n, classes, *window), on the network's device; those of one network in its type."""
        self.windows += len(windows)
        sent = windows if self.device is None else windows.to(self.device)
        mean, count = None, len(self.networks) * len(self.mirrors)
        for network, axes in product(self.networks, self.mirrors):
            logits = self._logits(sent.flip(axes), network).flip(axes) if axes else self._logits(sent, network)
            logits = logits if count == 1 else logits.float()
            # Never in place: a network may return a tensor that it keeps, or its input.
            mean = logits if mean is None else mean + logits
        if mean is None:
            raise ValueError("no network")
        return mean / count if count > 1 else mean

    def _logits(self, windows: Tensor, network: Any) -> Tensor:
        logits = self.run(windows, network)
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        if len(found) != 5 or (found[0], *found[2:]) != (len(windows), *windows.shape[2:]):
            raise MedvolError(
                "WRONG_LOGITS",
                found=f"{found} from windows of shape {tuple(windows.shape)}",
                expected="one value per class and voxel of the window",
                fix="set the network to eval(), and patch_size to sides that it can halve as often as it does",
            )
        return without_metadata(logits)
