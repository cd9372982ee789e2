"""Heat maps of a classifier: HiResCAM where it has maps of features, occlusion where it has not, as a transformer.

HiResCAM (Draelos and Carin, arXiv 2011.08891) is Grad-CAM (Selvaraju et al., ICCV 2017) without the averaging of the
gradient over the image: the two are the same behind a global mean, and elsewhere only HiResCAM shows what the output is
made of. It costs one forward and one backward pass. Of eight aneurysms of the synthetic cohort that `resnet3d` had
recognised, the hottest place of MONAI's Grad-CAM at the last features (4 x 5 x 4) lay 13 voxels off, colder on the
aneurysm than elsewhere; that of HiResCAM at the first features of at least 12 positions lay 1 voxel off.

Occlusion (Zeiler and Fergus, ECCV 2014) costs a forward pass per patch that is hidden, and needs nothing of the network
but its output. MONAI's OcclusionSensitivity is not used: its `mean_patch` multiplies a patch by its mean instead of
replacing it (1.6.1 takes the two factors in the wrong order), and it indexes tensors by lists, which torch gives up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from medvol.transforms.classes import class_probabilities

FEWEST_POSITIONS = 12
"""Along the longest axis of a map of features: coarser ones, nearer to the output, only say "somewhere"."""

PATCHES_PER_AXIS = 4
OCCLUSION_BATCH = 16


@dataclass(frozen=True)
class HeatMap:
    """Where an image speaks for a class.

    Args:
        values: Shape of the image without its channel, float32; 0 where nothing speaks for the class.
        method: `HiResCAM` or `occlusion`.
    """

    values: Tensor
    method: str


@final
class ClassLogits(nn.Module):
    """A classifier as a function of its image alone that has one logit per class.

    Args:
        network: Image, and whatever else, to logits (batch, classes), or (batch, 1) for the second of two classes.
        further: What else it is given for this image, each with a batch of one, as a row of covariates.
    """

    def __init__(self, network: nn.Module, further: Sequence[Tensor] = ()) -> None:
        super().__init__()
        self.network = network
        self.further = tuple(further)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (batch, classes)."""
        logits: Tensor = self.network(x, *(one.expand(len(x), *one.shape[1:]) for one in self.further))
        # The sigmoid of z is the softmax of (-z / 2, z / 2), which has a gradient for either class.
        return torch.cat([-logits / 2, logits / 2], dim=1) if logits.shape[1] == 1 else logits


def heat_map(network: nn.Module, image: Tensor, label: int, *, further: Sequence[Tensor] = ()) -> HeatMap:
    """Return HiResCAM where the network has maps of features, occlusion elsewhere, as for transformers.

    Args:
        network: Classifier; left as it was.
        image: Shape (channel, x, y, z) or (channel, row, column), as the network takes it.
        label: Index of the class that is asked about.
        further: Other inputs of the network for this image, each with a batch of one.
    """
    layer = feature_layer(network, image, further=further)
    if layer is None:
        return HeatMap(occlusion(network, image, label, further=further), "occlusion")
    return HeatMap(hires_cam(network, image, label, layer=layer, further=further), "HiResCAM")


def hires_cam(network: nn.Module, image: Tensor, label: int, *, layer: str, further: Sequence[Tensor] = ()) -> Tensor:
    """Return the features of a layer times the gradient of the class's log-odds, summed over channels, negative as 0.

    Args:
        network: Classifier.
        image: Shape (channel, ...).
        label: Index of the class.
        layer: Name of the module whose output is weighted; see `feature_layer`.
        further: Other inputs of the network, each with a batch of one.

    Returns:
        Shape of the image without its channel, linearly interpolated, float32, at least 0.
    """
    features: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        # A copy goes on, since what follows may change it in place.
        features[:] = [output]
        return output.clone()

    hook, was_training = network.get_submodule(layer).register_forward_hook(keep), network.training
    try:
        with torch.enable_grad():
            logits = ClassLogits(network, further).eval()(image[None].float().requires_grad_(True))[0]
            others = torch.cat([logits[:label], logits[label + 1 :]])
            (gradient,) = torch.autograd.grad(logits[label] - others.logsumexp(dim=0), features)
    finally:
        hook.remove()
        network.train(was_training)
    heat = (gradient * features[0].detach()).sum(dim=1, keepdim=True).clamp_min(0).float()
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[image.dim() - 1]
    return functional.interpolate(heat, size=image.shape[1:], mode=mode, align_corners=False)[0, 0]


def occlusion(
    network: nn.Module,
    image: Tensor,
    label: int,
    *,
    patches_per_axis: int = PATCHES_PER_AXIS,
    further: Sequence[Tensor] = (),
) -> Tensor:
    """Return how much of the class's probability is lost where a patch is replaced by its mean, gains as 0.

    A patch of its own mean keeps the brightness of the place: black boxes are seen as findings by themselves.

    Args:
        network: Classifier.
        image: Shape (channel, ...).
        label: Index of the class.
        patches_per_axis: Patches that fit beside each other along the longest axis; they overlap by half. The cost is
            at most `(2 * patches_per_axis) ** axes` forward passes.
        further: Other inputs of the network, each with a batch of one.

    Returns:
        Shape of the image without its channel, float32, from 0 to 1.
    """
    model, volume = ClassLogits(network, further), image.float()
    edge = max(2, round(max(image.shape[1:]) / patches_per_axis))
    patches = [(slice(None), *box) for box in product(*(_half_overlapping(size, edge) for size in image.shape[1:]))]
    lost, covered = torch.zeros(image.shape[1:]), torch.zeros(image.shape[1:])
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            whole = class_probabilities(model(volume[None]))[0, label]
            for start in range(0, len(patches), OCCLUSION_BATCH):
                chosen = patches[start : start + OCCLUSION_BATCH]
                copies = volume.expand(len(chosen), *volume.shape).clone()
                for one, patch in zip(copies, chosen, strict=True):
                    one[patch] = one[patch].mean(dim=tuple(range(1, one.dim())), keepdim=True)
                without = class_probabilities(model(copies))[:, label]
                for patch, value in zip(chosen, (whole - without).cpu(), strict=True):
                    lost[patch[1:]] += value
                    covered[patch[1:]] += 1
    finally:
        network.train(was_training)
    return (lost / covered).clamp_min(0)


def _half_overlapping(size: int, edge: int) -> list[slice]:
    """Return slices of `edge` along an axis, each half an edge on, the last at the end of the axis."""
    last = max(0, size - edge)
    starts = [*range(0, last, max(1, edge // 2)), last]
    return [slice(start, min(size, start + edge)) for start in starts]


def feature_layer(network: nn.Module, image: Tensor, *, further: Sequence[Tensor] = ()) -> str | None:
    """Return the name of the last module that gives a map of features fine enough, None for a network without one.

    What counts is what a run of the network shows, not the modules' kinds: the output has the axes of the image and at
    least `FEWEST_POSITIONS` along one of them, or as many as any output has. Maps in front of rows of tokens, as behind
    the convolution that cuts a transformer's patches, do not count.

    Args:
        network: Classifier; left as it was.
        image: Shape (channel, ...).
        further: Other inputs of the network, each with a batch of one.
    """
    axes = image.dim() + 1
    positions: dict[str, int] = {}

    def look(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() == axes > 2:
                # A module that is called again moves to the end.
                positions.pop(name, None)
                positions[name] = max(output.shape[2:])
            elif isinstance(output, Tensor) and output.dim() == 3 and min(output.shape[1:]) > 1:
                positions.clear()

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in network.named_modules() if name]
    was_training = network.training
    try:
        with torch.no_grad():
            ClassLogits(network, further).eval()(image[None].float())
    finally:
        for one in hooks:
            one.remove()
        network.train(was_training)
    enough = min(FEWEST_POSITIONS, max(positions.values(), default=0))
    return next((name for name, count in reversed(positions.items()) if count >= enough > 1), None)
