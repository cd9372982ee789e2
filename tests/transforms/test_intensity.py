"""Grey values: each scheme by hand, and the cached part stays narrow."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medvol.data.facts import Facts
from medvol.errors import MedvolError
from medvol.transforms import intensity
from medvol.transforms.intensity import (
    MeasureIntensityd,
    NormaliseIntensityd,
    fixed_limits,
    normalise,
    robust_limits,
)

SIZE = (7, 8, 9)


def facts(scheme, limits=None):
    return Facts(("no", "yes"), ("image",), SIZE, None, scheme, limits, False, True)


def chain(image, scheme, limits=None):
    item = MeasureIntensityd("image", facts(scheme, limits))({"image": image, "case": "c1"})
    return NormaliseIntensityd("image")(item)["image"]


def test_8_bit_values_become_0_to_1_as_in_the_keras_example():
    image = torch.arange(256, dtype=torch.uint8).reshape(1, 4, 8, 8)
    torch.testing.assert_close(chain(image, "scaled", (0.0, 255.0)), image.float() / 255)


def test_limits_of_a_large_volume_are_those_of_all_its_planes(monkeypatch):
    monkeypatch.setattr(intensity, "QUANTILE_VOXELS", 4096)  # every 128th voxel lies in one plane
    image = torch.linspace(1, 1001, 128).expand(64, 64, 128)
    low, high, middle, _ = robust_limits(image).tolist()
    assert [low, middle, high] == pytest.approx(np.percentile(image.numpy(), (0.5, 50, 99.5)).tolist(), abs=30)


def test_a_hu_window_clips_and_scales():
    image = torch.tensor([-2000, -160, 40, 240, 3000], dtype=torch.int16).reshape(1, 1, 1, 5)
    result = chain(image, "ct", (-160.0, 240.0))
    torch.testing.assert_close(result.flatten(), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))


def test_a_robust_z_score_ignores_the_background_and_agrees_with_numpy():
    rng = np.random.default_rng(0)
    brain = rng.normal(400, 50, 3000)
    image = np.concatenate([np.zeros(5000), brain]).reshape(1, 20, 20, 20)
    result = chain(torch.from_numpy(image), "mr").numpy().reshape(-1)[5000:]
    low, first, middle, third, high = np.percentile(brain, [0.5, 25, 50, 75, 99.5])
    expected = (np.clip(brain, low, high) - middle) / ((third - first) / 1.349)
    np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("value", [0, 7])
def test_a_constant_image_becomes_zero(value):
    assert torch.equal(chain(torch.full((1, *SIZE), value), "mr"), torch.zeros(1, *SIZE))


def test_a_binary_mask_keeps_two_finite_levels():
    image = torch.zeros(1, *SIZE)
    image[0, 2:4, 2:5, 3:6] = 1
    result = chain(image, "mr")
    assert torch.isfinite(result).all()


def test_each_channel_has_its_own_limits():
    image = torch.stack([torch.arange(504.0).reshape(SIZE), torch.arange(504.0).reshape(SIZE) * 1000])
    result = chain(image, "mr")
    torch.testing.assert_close(result[0], result[1], rtol=1e-4, atol=1e-4)


def test_large_volumes_are_measured_on_a_stride_and_agree():
    values = torch.rand(1, 2**21, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(robust_limits(values[0]), robust_limits(values[0, ::4]), rtol=0.02, atol=0.01)


def test_normalising_a_batch_axis_free_image_follows_the_one_formula():
    image = torch.tensor([[[[1.0, 5.0]]]])
    limits = torch.tensor([[0.0, 4.0, 2.0, 0.5]])
    torch.testing.assert_close(normalise(image, limits), torch.tensor([[[[-2.0, 4.0]]]]))
    torch.testing.assert_close(fixed_limits(-160, 240), torch.tensor([-160.0, 240.0, -160.0, 400.0]))


def test_what_is_cached_is_still_an_integer_and_the_result_is_float32_with_the_metadata():
    image = MetaTensor(torch.full((1, *SIZE), 3, dtype=torch.int16), affine=torch.diag(torch.tensor([1, 1.5, 3, 1.0])))
    item = MeasureIntensityd("image", facts("mr"))({"image": image})
    assert item["image"].dtype == torch.int16
    result = NormaliseIntensityd("image")(item)
    assert result["image"].dtype == torch.float32
    torch.testing.assert_close(result["image"].affine, image.affine)
    assert "intensity" not in result


def test_a_volume_far_outside_the_range_of_an_8_bit_study_is_refused():
    image = torch.full((1, *SIZE), 1200.0)
    with pytest.raises(MedvolError, match="INTENSITY_RANGE: case c1: grey values 1200 to 1200; expected 0 to 255"):
        chain(image, "scaled", (0.0, 255.0))
