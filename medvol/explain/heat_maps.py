"""Heat maps of a classifier: Grad-CAM where it has a map of features at its end, occlusion where it has not.

Grad-CAM (Selvaraju et al., ICCV 2017) is MONAI's and costs one forward and one backward pass. Occlusion (Zeiler and
Fergus, ECCV 2014) costs a forward pass per patch that is hidden, and needs nothing of the network but its output.
MONAI's OcclusionSensitivity is not used: its `mean_patch` multiplies a patch by its mean instead of replacing it (1.6.1
takes the two factors in the wrong order), and it indexes tensors by lists, which torch will read in another way.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, final

import torch
from monai.visualize import GradCAM
from torch import Tensor, nn

from medvol.transforms.classes import class_probabilities

SMALLEST_MAP = 3
"""Positions along the longest axis of a feature map below which Grad-CAM could only say "somewhere"."""

PATCHES_PER_AXIS = 6
OCCLUSION_BATCH = 16


@dataclass(frozen=True)
class HeatMap:
    """Where an image speaks for a class.

    Args:
        values: Shape of the image without its channel, float32; 0 where nothing speaks for the class.
        method: `Grad-CAM` or `occlusion`.
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
    """Return Grad-CAM where the network ends with a map of features, occlusion elsewhere, as for transformers.

    Args:
        network: Classifier; left as it was.
        image: Shape (channel, x, y, z) or (channel, row, column), as the network takes it.
        label: Index of the class that is asked about.
        further: Other inputs of the network for this image, each with a batch of one.
    """
    layer = feature_layer(network, image, further=further)
    if layer is None:
        return HeatMap(occlusion(network, image, label, further=further), "occlusion")
    return HeatMap(grad_cam(network, image, label, layer=layer, further=further), "Grad-CAM")


def grad_cam(network: nn.Module, image: Tensor, label: int, *, layer: str, further: Sequence[Tensor] = ()) -> Tensor:
    """Return the features of a layer, weighted by the mean gradient of the class's logit, negative ones as 0.

    Args:
        network: Classifier; a copy of it is hooked.
        image: Shape (channel, ...).
        label: Index of the class.
        layer: Name of the module whose output is weighted; see `feature_layer`.
        further: Other inputs of the network, each with a batch of one.

    Returns:
        Shape of the image without its channel, linearly interpolated, float32, at least 0.
    """
    # MONAI's wrapper never takes its hooks away and changes the module's `inplace`.
    hooked = ClassLogits(copy.deepcopy(network), further).eval().requires_grad_(True)
    # By default MONAI maps the highest value to 0 and the lowest to 1.
    cam = GradCAM(hooked, target_layers=f"network.{layer}", postprocessing=_unchanged)
    with torch.enable_grad():
        # The image wants a gradient too, or a hook on the first layer would warn that there is none to pass on.
        found: Tensor = cam(image[None].float().requires_grad_(True), class_idx=label)
    return found[0, 0].detach().float()


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
    """Return the name of the last module that gives a map of features, None when the network does not end with one.

    What counts is what a run of the network shows, not the modules' kinds: the output has the axes of the image and at
    least `SMALLEST_MAP` positions along one of them, and nothing after it gives a row of tokens, as the layers of a
    transformer do behind the convolution that cuts the patches.

    Args:
        network: Classifier; left as it was.
        image: Shape (channel, ...).
        further: Other inputs of the network, each with a batch of one.
    """
    axes, last = image.dim() + 1, None
    hooks = []

    def look(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            nonlocal last
            if not isinstance(output, Tensor):
                return
            if output.dim() == axes > 2 and max(output.shape[2:]) >= SMALLEST_MAP:
                last = name
            elif output.dim() == 3 and min(output.shape[1:]) > 1:
                last = None

        return hook

    for name, module in network.named_modules():
        # Blocks too: MONAI's ResNet calls one activation several times, of which Grad-CAM would mix up the outputs.
        if name:
            hooks.append(module.register_forward_hook(look(name)))
    was_training = network.training
    try:
        with torch.no_grad():
            ClassLogits(network, further).eval()(image[None].float())
    finally:
        for hook in hooks:
            hook.remove()
        network.train(was_training)
    return last


def _unchanged(values: Tensor) -> Tensor:
    return values
