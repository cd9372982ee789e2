"""Augmentation of a whole batch of volumes or images: draw first, apply second.

`draw_augmentation` takes every random number from one generator; `apply_augmentation` is deterministic and works on the
batch tensor, on its device, with a single affine resample. Per-sample augmentation in the data workers costs more than
a small network does, and depends on how many workers there are; this does neither. What was drawn stays on the
processor, where a look at it waits for no graphics card.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from medvol.data.facts import Facts


@dataclass(frozen=True)
class AugmentRanges:
    """How far and how often each property may be changed; zero switches it off.

    Most volumes keep their grey values, and those that are neither rotated nor scaled are shifted by whole voxels,
    which interpolates nothing: batch normalisation learns its statistics from what it is shown, and a network that
    never saw a clean background or a sharp edge answers with a bias when it meets one.

    Args:
        flip_axes: Spatial axes (0 = x, of images the rows) that are mirrored with probability one half each.
        rotate_deg: Largest angle about each axis, of images in their plane, in degrees.
        scale: Largest relative change of size, common to the axes.
        shift: Largest shift along each axis, as a fraction of the field of view.
        contrast: Largest relative change of the intensities' distance from the volume's mean.
        brightness: Largest addition to the (normalised) intensities.
        noise: Largest standard deviation of added Gaussian noise.
        gamma: Largest relative change of the exponent that bends grey values within the volume's own range.
        blur: Largest standard deviation of Gaussian smoothing, in voxels.
        affine_probability: How often a volume is rotated and scaled; shifts and flips are drawn for every one.
        intensity_probability: How often contrast, brightness and noise are each changed (nnU-Net's value).
    """

    flip_axes: tuple[int, ...] = ()
    rotate_deg: float = 15.0
    scale: float = 0.1
    shift: float = 0.08
    contrast: float = 0.15
    brightness: float = 0.1
    noise: float = 0.05
    gamma: float = 0.0
    blur: float = 0.0
    affine_probability: float = 0.2
    intensity_probability: float = 0.15

    def __post_init__(self) -> None:
        object.__setattr__(self, "flip_axes", tuple(self.flip_axes))
        if any(axis not in (0, 1, 2) for axis in self.flip_axes):
            raise ValueError(f"flip_axes must be among 0, 1, 2, got {self.flip_axes}")


@dataclass(frozen=True)
class AugmentDraw:
    """What was drawn for a batch of n volumes or images.

    Args:
        matrix: Output to input position in units of the field of view from its centre: (n, 3, 4) with axes x y z, or
            (n, 2, 3) for images.
        gain: Factor on the distance from the volume's mean, (n,).
        offset: Addition to the intensities, (n,).
        noise_sd: Standard deviation of the noise, (n,).
        noise_seed: Seed of the noise field.
        gamma: Exponent on the position within the volume's range, (n,).
        blur_sd: Standard deviation of the smoothing in voxels, (n,).
        mirrored: Whether axis 0, left/right of volumes, was mirrored, bool (n,).
    """

    matrix: Tensor
    gain: Tensor
    offset: Tensor
    noise_sd: Tensor
    noise_seed: int
    gamma: Tensor
    blur_sd: Tensor
    mirrored: Tensor


def flip_axes_for(*, laterality_matters: bool, has_geometry: bool, paired: bool = False) -> tuple[int, ...]:
    """Return the axes that may be mirrored without making a label wrong.

    Volumes are in RAS+ order, so axis 0 is left/right. Without a geometry nobody knows which axis that is.

    Args:
        laterality_matters: Whether mirroring left and right could change a label.
        has_geometry: Whether the volumes carry an affine.
        paired: Whether `apply_to_labels` exchanges the paired structures of a mirrored mask.
    """
    if not laterality_matters or (paired and has_geometry):
        return (0, 1, 2)
    return (1, 2) if has_geometry else ()


def mirror_axes_of(facts: Facts) -> tuple[int, ...]:
    """Return the axes along which a segmentation's logits may be averaged over mirror images: those of its training.

    Not left/right where structures were exchanged: their logits would have to be, too.
    """
    allowed = flip_axes_for(laterality_matters=facts.laterality_matters, has_geometry=facts.has_geometry)
    return allowed if facts.flip_axes is None else tuple(axis for axis in facts.flip_axes if axis in allowed)


def draw_augmentation(
    shape: Sequence[int], ranges: AugmentRanges, extent_mm: Sequence[float], generator: torch.Generator
) -> AugmentDraw:
    """Draw the changes of a batch.

    Args:
        shape: Of the batch, (n, channel, x, y, z), or (n, channel, row, column) for images.
        ranges: How far each property may change.
        extent_mm: Field of view along each axis; only ratios matter. Keeps rotations rigid on anisotropic grids.
        generator: Source of every random number.

    Raises:
        ValueError: When an axis is to be mirrored that the batch does not have.
    """
    count, axes = shape[0], len(shape) - 2
    if any(axis >= axes for axis in ranges.flip_axes):
        raise ValueError(f"flip_axes {ranges.flip_axes} of a batch with {axes} spatial axes")

    def uniform(*columns: int) -> Tensor:
        return torch.rand(count, *columns, generator=generator) * 2 - 1

    def happens(probability: float) -> Tensor:
        return (torch.rand(count, generator=generator) < probability).float()

    turned = happens(ranges.affine_probability).unsqueeze(1)
    angles = turned * uniform(3 if axes == 3 else 1) * math.radians(ranges.rotate_deg)
    scales = torch.exp(turned * uniform(1) * math.log1p(ranges.scale))
    shifts = uniform(axes) * ranges.shift
    size = torch.tensor([float(length) for length in shape[2:]])
    shifts = torch.where(turned > 0, shifts, (shifts * size).round() / size)
    signs = torch.ones(count, axes)
    for axis in ranges.flip_axes:
        signs[:, axis] = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    extent = torch.tensor([float(length) for length in extent_mm])
    rigid = _rotations(angles) * (scales * signs).unsqueeze(1)  # columns of the rotation are mirrored and scaled
    linear = rigid * extent / extent.unsqueeze(1)
    return AugmentDraw(
        matrix=torch.cat([linear, shifts.unsqueeze(2)], dim=2),
        gain=1 + happens(ranges.intensity_probability) * uniform() * ranges.contrast,
        offset=happens(ranges.intensity_probability) * uniform() * ranges.brightness,
        noise_sd=happens(ranges.intensity_probability) * uniform().abs() * ranges.noise,
        noise_seed=int(torch.randint(2**31, (1,), generator=generator)),
        gamma=_gammas(uniform, happens, ranges),
        blur_sd=_blurs(uniform, happens, ranges),
        mirrored=signs[:, 0] < 0,
    )


def _gammas(uniform: Callable[..., Tensor], happens: Callable[[float], Tensor], ranges: AugmentRanges) -> Tensor:
    return torch.exp(happens(ranges.intensity_probability) * uniform() * math.log1p(ranges.gamma))


def _blurs(uniform: Callable[..., Tensor], happens: Callable[[float], Tensor], ranges: AugmentRanges) -> Tensor:
    return happens(ranges.intensity_probability) * uniform().abs() * ranges.blur


def apply_augmentation(batch: Tensor, draw: AugmentDraw) -> Tensor:
    """Return the changed batch, same shape (n, channel, spatial axes); outside the image its border is repeated.

    Resampling is trilinear, of images bilinear, one pass for flips, rotation, scale and shift together. What a volume
    was not drawn for is not computed for it.
    """
    moved = _moved(batch, draw.matrix, "bilinear")
    for index in _where(draw.blur_sd != 0):
        moved[index] = _blurred(moved[index], float(draw.blur_sd[index]))
    for index in _where(draw.gamma != 1):
        moved[index] = _bent(moved[index], float(draw.gamma[index]))
    for index in _where((draw.gain != 1) | (draw.offset != 0)):
        mean = moved[index].mean()
        moved[index].sub_(mean).mul_(float(draw.gain[index])).add_(mean + float(draw.offset[index]))
    generator = torch.Generator(moved.device).manual_seed(draw.noise_seed)
    for index in _where(draw.noise_sd != 0):
        noise = torch.empty_like(moved[index]).normal_(generator=generator)
        moved[index].add_(noise, alpha=float(draw.noise_sd[index]))
    return moved


def apply_to_labels(labels: Tensor, draw: AugmentDraw, mirror_pairs: Sequence[tuple[int, int]] = ()) -> Tensor:
    """Return the masks of a batch, (n, 1, spatial axes), moved as `apply_augmentation` moves their images.

    The nearest voxel is taken. Where left and right were mirrored, the classes of each pair are exchanged: a mirrored
    left kidney is a right kidney.

    Args:
        labels: Class indices, any integer dtype; kept.
        draw: What was drawn for the images.
        mirror_pairs: Classes that are each other's mirror image.
    """
    moved = _moved(labels, draw.matrix, "nearest")
    exchanged = moved.clone()
    where = draw.mirrored.view(-1, *[1] * (labels.dim() - 1)).to(labels.device)
    for first, second in mirror_pairs:
        exchanged[where & (moved == first)] = second
        exchanged[where & (moved == second)] = first
    return exchanged


def _where(drawn: Tensor) -> list[int]:
    return torch.nonzero(drawn).flatten().tolist()


def _moved(values: Tensor, matrix: Tensor, mode: str) -> Tensor:
    """Return the batch moved by output-to-input matrices as of `AugmentDraw`; what only changes places is copied.

    Most volumes are mirrored and shifted by whole voxels. Copying those costs a tenth of interpolating them, which on
    a processor would be a fifth of a small network's step. On a graphics card one kernel for the batch is faster.
    """
    size = torch.tensor(values.shape[2:])
    linear, steps = matrix[:, :, :-1], matrix[:, :, -1] * size
    of_places = (linear.abs() == torch.eye(len(size))).all(dim=(1, 2)) & ((steps - steps.round()).abs() < 1e-3).all(1)
    of_places &= values.device.type == "cpu"
    moved = torch.empty_like(values)
    for index in _where(of_places):
        moved[index] = _copied(values[index], linear[index].diagonal() < 0, steps[index])
    if not of_places.all():
        rows = torch.nonzero(~of_places).flatten().to(values.device)
        grid = sampling_grid(matrix[~of_places].to(values.device), values.shape[2:])
        sampled = F.grid_sample(values[rows].float(), grid, mode=mode, padding_mode="border", align_corners=False)
        moved[rows] = sampled.to(values.dtype)
    return moved


def _copied(one: Tensor, mirrored: Tensor, steps: Tensor) -> Tensor:
    """Return a volume or image, (channel, spatial axes), mirrored and shifted by whole voxels, borders repeated."""
    for axis, length in enumerate(one.shape[1:]):
        places = torch.arange(length)
        places = (places.flip(0) if mirrored[axis] else places) + int(steps[axis].round())
        one = one.index_select(1 + axis, places.clamp(0, length - 1))
    return one


def _blurred(image: Tensor, sd_voxels: float) -> Tensor:
    """Return the image, (channel, spatial axes), smoothed by a Gaussian along each axis, borders repeated."""
    reach = math.ceil(3 * sd_voxels)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sd_voxels) ** 2)
    taps = (taps / taps.sum()).to(image.device)
    axes = image.dim() - 1
    convolve = F.conv3d if axes == 3 else F.conv2d
    for axis in range(1, axes + 1):
        shape, pad = [1] * (axes + 2), [0] * (2 * axes)
        shape[axis + 1] = len(taps)
        pad[2 * (axes - axis) : 2 * (axes - axis) + 2] = [reach, reach]
        image = convolve(F.pad(image[:, None], pad, mode="replicate"), taps.view(shape))[:, 0]
    return image


def _bent(image: Tensor, gamma: float) -> Tensor:
    """Return the image with its position within its own range raised to a power."""
    low, high = image.aminmax()
    span = (high - low).clamp_min(1e-6)
    return ((image - low) / span) ** gamma * span + low


def sampling_grid(matrix: Tensor, size: Sequence[int]) -> Tensor:
    """Return the grid that `grid_sample` wants, (n, x, y, z, 3) with its last axis in the order z y x; or of images.

    The same as `affine_grid`, built from three rays: about twice as fast, since no 4-vector per voxel is stored.
    """
    rays = [_voxel_centres(int(length)).to(matrix.device) for length in size]
    # grid_sample counts positions from -1 to 1 over the field of view, a factor of 2 that only the shift feels.
    linear, shift = matrix[:, :, :-1].flip(1), 2 * matrix[:, :, -1].flip(1)
    # Each (n, length, axes):
    x, y, *z = (linear[:, None, :, axis] * ray[None, :, None] for axis, ray in enumerate(rays))
    plane = x[:, :, None] + (y + shift[:, None])[:, None]  # (n, x, y, axes)
    return plane[:, :, :, None] + z[0][:, None, None] if z else plane


def _voxel_centres(length: int) -> Tensor:
    return (torch.arange(length, dtype=torch.float32) * 2 + 1) / length - 1


def _rotations(angles: Tensor) -> Tensor:
    """Return Rz @ Ry @ Rx for angles in radians, (n, 3) to (n, 3, 3); of an image's one angle, (n, 1) to (n, 2, 2)."""
    cos, sin = angles.cos(), angles.sin()
    if angles.shape[1] == 1:
        return torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)
    zero, one = torch.zeros(len(angles)), torch.ones(len(angles))

    def matrix(*entries: Tensor) -> Tensor:
        return torch.stack(entries, dim=1).view(-1, 3, 3)

    about_x = matrix(one, zero, zero, zero, cos[:, 0], -sin[:, 0], zero, sin[:, 0], cos[:, 0])
    about_y = matrix(cos[:, 1], zero, sin[:, 1], zero, one, zero, -sin[:, 1], zero, cos[:, 1])
    about_z = matrix(cos[:, 2], -sin[:, 2], zero, sin[:, 2], cos[:, 2], zero, zero, zero, one)
    return about_z @ about_y @ about_x
