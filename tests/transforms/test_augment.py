"""Batch augmentation against affine_grid, scipy and hand-made volumes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from medvol.data.facts import Facts
from medvol.transforms.augment import (
    AugmentRanges,
    apply_augmentation,
    apply_to_labels,
    draw_augmentation,
    flip_axes_for,
    mirror_axes_of,
    sampling_grid,
)

ALWAYS = {"affine_probability": 1.0, "intensity_probability": 1.0}
STILL = AugmentRanges(rotate_deg=0, scale=0, shift=0, contrast=0, brightness=0, noise=0, **ALWAYS)
SIZE = (7, 8, 9)
EXTENT_MM = (7.0, 12.0, 27.0)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def volumes(count=2):
    return torch.rand(count, 1, *SIZE, generator=generator(5))


def test_nothing_drawn_changes_nothing():
    draw = draw_augmentation((2, 1, *SIZE), STILL, EXTENT_MM, generator())
    torch.testing.assert_close(apply_augmentation(volumes(), draw), volumes())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flip_mirrors_exactly_the_named_axis_in_about_half_of_the_volumes(axis):
    batch = volumes(1).expand(40, -1, -1, -1, -1)
    changed = apply_augmentation(
        batch, draw_augmentation((40, 1, *SIZE), replace(STILL, flip_axes=(axis,)), EXTENT_MM, generator())
    )
    mirrored = torch.tensor([torch.allclose(one, batch[0].flip(axis + 1), atol=1e-5) for one in changed])
    unchanged = torch.tensor([torch.allclose(one, batch[0], atol=1e-5) for one in changed])
    assert (mirrored ^ unchanged).all()
    assert 8 <= int(mirrored.sum()) <= 32


def test_the_grid_equals_torchs_affine_grid():
    draw = draw_augmentation((3, 1, *SIZE), AugmentRanges(flip_axes=(0, 1)), EXTENT_MM, generator())
    theta = draw.matrix.clone()
    theta[:, :, 3] *= 2
    theta = theta.flip(1)
    theta = torch.cat([theta[:, :, :3].flip(2), theta[:, :, 3:]], dim=2)
    expected = F.affine_grid(theta, [3, 1, *SIZE], align_corners=False)
    torch.testing.assert_close(sampling_grid(draw.matrix, SIZE), expected, atol=1e-6, rtol=0)


def test_rotation_is_rigid_in_millimetres_on_an_anisotropic_grid():
    draw = draw_augmentation((5, 1, *SIZE), replace(STILL, rotate_deg=30), EXTENT_MM, generator())
    extent = torch.tensor(EXTENT_MM)
    in_mm = draw.matrix[:, :, :3] * extent[:, None] / extent[None, :]
    torch.testing.assert_close(in_mm @ in_mm.mT, torch.eye(3).expand(5, 3, 3), atol=1e-5, rtol=0)


def test_the_resample_agrees_with_scipy():
    ranges = replace(STILL, rotate_deg=25, scale=0.2, shift=0.1, flip_axes=(1,))
    batch = torch.from_numpy(ndimage.gaussian_filter(np.random.default_rng(0).random((1, 1, 14, 16, 18)), 1)).float()
    draw = draw_augmentation(batch.shape, ranges, (14, 24, 54), generator(3))
    size = np.array(batch.shape[2:], dtype=float)
    # From voxel index to fraction of the field of view from the centre, through the matrix, and back.
    linear = np.diag(size) @ draw.matrix[0, :, :3].double().numpy() @ np.diag(1 / size)
    centre = (size - 1) / 2
    offset = centre - linear @ centre + size * draw.matrix[0, :, 3].double().numpy()
    expected = ndimage.affine_transform(batch[0, 0].numpy(), linear, offset, order=1, mode="nearest")
    np.testing.assert_allclose(apply_augmentation(batch, draw)[0, 0].numpy(), expected, atol=1e-5)


def test_a_volume_that_is_only_shifted_moves_by_whole_voxels_and_keeps_its_values():
    ranges = replace(STILL, shift=0.3, affine_probability=0.0)
    batch = volumes(1).expand(20, -1, -1, -1, -1)
    draw = draw_augmentation(batch.shape, ranges, EXTENT_MM, generator())
    steps = (draw.matrix[:, :, 3] * torch.tensor(SIZE)).round().int()
    assert steps.abs().amax(dim=0).tolist() == [2, 2, 3]
    for changed, step in zip(apply_augmentation(batch, draw), steps.tolist(), strict=True):
        # Where the source is inside the volume the value is exactly one of its voxels.
        inner = tuple(slice(max(0, -by), length - max(0, by)) for by, length in zip(step, SIZE, strict=True))
        moved = tuple(slice(part.start + by, part.stop + by) for part, by in zip(inner, step, strict=True))
        torch.testing.assert_close(changed[0][inner], batch[0, 0][moved], atol=1e-5, rtol=0)


@given(seed=st.integers(0, 999), axes=st.integers(2, 3), channels=st.integers(1, 2))
def test_what_only_changes_places_is_copied_and_agrees_with_interpolation(seed, axes, channels):
    ranges = replace(STILL, flip_axes=(0, 1), shift=0.6, scale=0.1, affine_probability=0.5)
    batch = torch.rand(4, channels, *SIZE[:axes], generator=generator(seed))
    draw = draw_augmentation(batch.shape, ranges, EXTENT_MM[:axes], generator(seed))
    changed = apply_augmentation(batch, draw)
    grid = sampling_grid(draw.matrix, batch.shape[2:])
    expected = F.grid_sample(batch, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(changed, expected, atol=1e-5, rtol=0)
    turned = (draw.matrix[:, :, :-1].abs() != torch.eye(axes)).flatten(1).any(dim=1)
    for index in torch.nonzero(~turned).flatten().tolist():
        assert set(changed[index].flatten().tolist()) <= set(batch[index].flatten().tolist())


def test_shift_and_flip_by_hand():
    line = torch.tensor([0, 10, 20, 30], dtype=torch.uint8).view(1, 1, 4, 1, 1)
    draw = draw_augmentation((1, 1, 4, 1, 1), STILL, (1, 1, 1), generator())
    for sign, steps, expected in ((1, 1, [10, 20, 30, 30]), (-1, 0, [30, 20, 10, 0]), (-1, -2, [10, 0, 0, 0])):
        matrix = torch.eye(3, 4).unsqueeze(0)
        matrix[0, 0, 0], matrix[0, 0, 3] = sign, steps / 4
        changed = apply_to_labels(line, replace(draw, matrix=matrix))
        assert (changed.dtype, changed.flatten().tolist()) == (torch.uint8, expected)


def test_contrast_keeps_the_mean_and_brightness_moves_it():
    batch = volumes(6)
    contrast = apply_augmentation(
        batch, draw_augmentation((6, 1, *SIZE), replace(STILL, contrast=0.5), EXTENT_MM, generator())
    )
    torch.testing.assert_close(contrast.mean(dim=(1, 2, 3, 4)), batch.mean(dim=(1, 2, 3, 4)))
    assert not torch.allclose(contrast, batch)
    draw = draw_augmentation((6, 1, *SIZE), replace(STILL, brightness=0.5), EXTENT_MM, generator())
    brighter = apply_augmentation(batch, draw)
    torch.testing.assert_close(brighter - batch, draw.offset.view(6, 1, 1, 1, 1).expand_as(batch), atol=1e-5, rtol=0)


def test_noise_has_the_drawn_standard_deviation():
    draw = draw_augmentation((4, 1, *SIZE), replace(STILL, noise=0.5), (1, 1, 1), generator())
    noisy = apply_augmentation(torch.zeros(4, 1, 24, 24, 24), draw)
    torch.testing.assert_close(noisy.std(dim=(1, 2, 3, 4)), draw.noise_sd, rtol=0.05, atol=1e-3)


def test_intensities_are_changed_as_often_as_stated():
    ranges = AugmentRanges(intensity_probability=0.25, affine_probability=0.5)
    draw = draw_augmentation((4000, 1, *SIZE), ranges, (1, 1, 1), generator())
    for changed in (draw.gain != 1, draw.offset != 0, draw.noise_sd != 0):
        assert changed.float().mean().item() == pytest.approx(0.25, abs=0.03)
    turned = (draw.matrix[:, :, :3] - torch.eye(3)).abs().amax(dim=(1, 2)) > 1e-6
    assert turned.float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_the_same_generator_gives_the_same_batch_and_the_input_is_left_alone():
    batch = volumes(3)
    before = batch.clone()
    ranges = AugmentRanges(flip_axes=(0, 1, 2))
    first = apply_augmentation(batch, draw_augmentation((3, 1, *SIZE), ranges, EXTENT_MM, generator(7)))
    second = apply_augmentation(batch, draw_augmentation((3, 1, *SIZE), ranges, EXTENT_MM, generator(7)))
    torch.testing.assert_close(first, second, atol=0, rtol=0)
    torch.testing.assert_close(batch, before, atol=0, rtol=0)
    third = apply_augmentation(batch, draw_augmentation((3, 1, *SIZE), ranges, EXTENT_MM, generator(8)))
    assert not torch.allclose(first, third)


def test_a_whole_batch_equals_its_volumes_one_by_one():
    ranges = replace(AugmentRanges(flip_axes=(0, 2)), noise=0)
    batch = volumes(3)
    draw = draw_augmentation((3, 1, *SIZE), ranges, EXTENT_MM, generator(2))
    whole = apply_augmentation(batch, draw)
    for index in range(3):
        part = slice(index, index + 1)
        alone = replace(
            draw,
            matrix=draw.matrix[part],
            gain=draw.gain[part],
            offset=draw.offset[part],
            noise_sd=draw.noise_sd[part],
        )
        torch.testing.assert_close(apply_augmentation(batch[part], alone), whole[part])


@pytest.mark.parametrize(
    ("laterality_matters", "has_geometry", "axes"),
    [(True, True, (1, 2)), (True, False, ()), (False, True, (0, 1, 2)), (False, False, (0, 1, 2))],
)
def test_left_and_right_are_mirrored_only_where_the_study_says_it_does_not_matter(
    laterality_matters, has_geometry, axes
):
    assert flip_axes_for(laterality_matters=laterality_matters, has_geometry=has_geometry) == axes


def test_an_axis_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="flip_axes"):
        AugmentRanges(flip_axes=(3,))


def test_a_mask_moves_with_its_image():
    generator = torch.Generator().manual_seed(3)
    mask = torch.zeros(4, 1, 12, 13, 14, dtype=torch.uint8)
    mask[:, 0, 3:7, 4:9, 5:9] = 1
    mask[:, 0, 8:10, 9:12, 2:6] = 2
    ranges = AugmentRanges(flip_axes=(0, 1, 2), rotate_deg=30, scale=0.2, affine_probability=1, intensity_probability=0)
    draw = draw_augmentation(mask.shape, ranges, (12.0, 13.0, 14.0), generator)
    moved = apply_to_labels(mask, draw)
    assert moved.dtype == torch.uint8
    assert set(moved.unique().tolist()) <= {0, 1, 2}
    for label in (1, 2):
        image = apply_augmentation((mask == label).float(), draw)
        certain = (image < 0.05) | (image > 0.95)  # where interpolation leaves no doubt, both must agree
        assert torch.equal((moved == label)[certain], (image > 0.5)[certain])


def test_paired_structures_are_exchanged_exactly_where_left_and_right_are_mirrored():
    mask = torch.zeros(64, 1, 6, 5, 4, dtype=torch.uint8)
    mask[:, :, 4:], mask[:, :, :2] = 1, 2  # 1 is the right one, 2 the left one, in RAS order
    ranges = AugmentRanges(flip_axes=(0, 1), shift=0.0, affine_probability=0, intensity_probability=0)
    draw = draw_augmentation(mask.shape, ranges, (6.0, 5.0, 4.0), torch.Generator().manual_seed(0))
    assert 0 < draw.mirrored.sum() < 64
    # A mirrored right kidney lies on the left and is a left kidney: the mask as a whole stays as it was.
    assert torch.equal(apply_to_labels(mask, draw, [(1, 2)]), mask)
    without = apply_to_labels(mask, draw)
    assert torch.equal(without[draw.mirrored], mask[draw.mirrored].flip(2))


def test_gamma_keeps_the_range_of_a_volume_and_bends_its_middle():
    batch = torch.linspace(-1, 3, 5 * 6 * 7).reshape(1, 1, 5, 6, 7).expand(16, -1, -1, -1, -1).contiguous()
    ranges = AugmentRanges(
        shift=0, contrast=0, brightness=0, noise=0, gamma=0.5, affine_probability=0, intensity_probability=1
    )
    draw = draw_augmentation(batch.shape, ranges, (5.0, 6.0, 7.0), torch.Generator().manual_seed(0))
    bent = apply_augmentation(batch, draw)
    assert (draw.gamma >= 1 / 1.5).all()
    assert (draw.gamma <= 1.5).all()
    torch.testing.assert_close(bent.amin(dim=(1, 2, 3, 4)), torch.full((16,), -1.0))
    torch.testing.assert_close(bent.amax(dim=(1, 2, 3, 4)), torch.full((16,), 3.0))
    expected = ((batch + 1) / 4) ** draw.gamma.view(-1, 1, 1, 1, 1) * 4 - 1
    torch.testing.assert_close(bent, expected, atol=1e-5, rtol=0)


def test_blur_is_a_gaussian_of_the_drawn_width():
    batch = torch.rand(8, 2, 9, 10, 11, generator=torch.Generator().manual_seed(1))
    ranges = AugmentRanges(
        shift=0, contrast=0, brightness=0, noise=0, blur=1.5, affine_probability=0, intensity_probability=1
    )
    draw = draw_augmentation(batch.shape, ranges, (9.0, 10.0, 11.0), torch.Generator().manual_seed(2))
    blurred = apply_augmentation(batch, draw)
    for image, expected, width in zip(blurred, batch, draw.blur_sd.tolist(), strict=True):
        for one, other in zip(image, expected, strict=True):
            radius = int(np.ceil(3 * width))
            truth = ndimage.gaussian_filter(other.numpy(), width, mode="nearest", radius=radius)
            np.testing.assert_allclose(one.numpy(), truth, atol=1e-5)


def test_pairs_open_the_left_right_axis_only_where_it_is_known_which_one_that_is():
    assert flip_axes_for(laterality_matters=True, has_geometry=True, paired=True) == (0, 1, 2)
    assert flip_axes_for(laterality_matters=True, has_geometry=True) == (1, 2)
    # In an npy volume the exchange of left and right would be made for a mirror image of some other axis.
    assert flip_axes_for(laterality_matters=True, has_geometry=False, paired=True) == ()


@pytest.mark.parametrize(
    ("flips", "matters", "axes"),
    [
        ((0,), False, (0,)),
        ((0,), True, ()),  # structures were exchanged
        ((0, 2), True, (2,)),
        ((), False, ()),
        (None, False, (0, 1, 2)),  # a model that does not say
        (None, True, (1, 2)),
    ],
)
def test_predictions_are_averaged_over_the_mirror_images_that_training_saw(flips, matters, axes):
    facts = Facts(("background", "a"), ("image",), SIZE, (1.0, 1.5, 3.0), "mr", None, True, matters, flip_axes=flips)
    assert mirror_axes_of(facts) == axes
    assert mirror_axes_of(Facts.from_dict(json.loads(json.dumps(facts.as_dict())))) == axes
    old = facts.as_dict()
    del old["flip_axes"]
    assert Facts.from_dict(old).flip_axes is None


IMAGE = (12, 17)


def images(count=1):
    smooth = ndimage.gaussian_filter(np.random.default_rng(1).random((1, 2, *IMAGE)), (0, 0, 1, 1))
    return torch.from_numpy(smooth).float().expand(count, -1, -1, -1).contiguous()


def test_an_image_is_moved_as_the_slices_of_a_volume_whose_third_axis_stays():
    ranges = replace(STILL, rotate_deg=25, scale=0.2, shift=0.1, flip_axes=(0, 1), blur=1.0, gamma=0.5, contrast=0.3)
    draw = draw_augmentation((6, 2, *IMAGE), ranges, (12.0, 34.0), generator(3))
    # The same, written as a volume of two equal slices.
    matrix = torch.zeros(6, 3, 4)
    matrix[:, :2, :2], matrix[:, :2, 3], matrix[:, 2, 2] = draw.matrix[:, :, :2], draw.matrix[:, :, 2], 1
    volume = images(6)[..., None].expand(-1, -1, -1, -1, 2).contiguous()
    moved = apply_augmentation(volume, replace(draw, matrix=matrix))
    torch.testing.assert_close(apply_augmentation(images(6), draw), moved[..., 0], atol=1e-5, rtol=0)
    mask = (images(6)[:, :1] > 0.5).to(torch.uint8)
    as_volume = apply_to_labels(mask[..., None].expand(-1, -1, -1, -1, 2), replace(draw, matrix=matrix), [(0, 1)])
    assert torch.equal(apply_to_labels(mask, draw, [(0, 1)]), as_volume[..., 0])


def test_a_turned_image_agrees_with_scipy_and_keeps_right_angles():
    ranges = replace(STILL, rotate_deg=25, scale=0.2, shift=0.1)
    extent = torch.tensor([12.0, 34.0])
    draw = draw_augmentation((1, 2, *IMAGE), ranges, extent.tolist(), generator(4))
    in_mm = draw.matrix[0, :, :2] * extent[:, None] / extent[None, :]
    gram = in_mm @ in_mm.T
    torch.testing.assert_close(gram, gram[0, 0] * torch.eye(2), atol=1e-5, rtol=0)
    assert in_mm[0, 1].abs() > 0.03
    size = np.array(IMAGE, dtype=float)
    linear = np.diag(size) @ draw.matrix[0, :, :2].double().numpy() @ np.diag(1 / size)
    centre = (size - 1) / 2
    offset = centre - linear @ centre + size * draw.matrix[0, :, 2].double().numpy()
    expected = ndimage.affine_transform(images()[0, 1].numpy(), linear, offset, order=1, mode="nearest")
    np.testing.assert_allclose(apply_augmentation(images(), draw)[0, 1].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_mirrored_image_is_mirrored_along_the_named_axis(axis):
    draw = draw_augmentation((20, 2, *IMAGE), replace(STILL, flip_axes=(axis,)), (1, 1), generator())
    mirrored = draw.matrix[:, axis, axis] < 0
    assert 3 < int(mirrored.sum()) < 17
    changed = apply_augmentation(images(20), draw)
    torch.testing.assert_close(changed[mirrored], images(20)[mirrored].flip(axis + 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(changed[~mirrored], images(20)[~mirrored], atol=1e-5, rtol=0)


def test_an_image_has_no_third_axis_to_mirror():
    with pytest.raises(ValueError, match="2 spatial axes"):
        draw_augmentation((1, 1, *IMAGE), replace(STILL, flip_axes=(2,)), (1, 1), generator())
