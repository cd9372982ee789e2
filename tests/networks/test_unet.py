import pytest
import torch

from medvol.errors import MedvolError
from medvol.networks.unet import levels_for, unet


@pytest.mark.parametrize(
    ("size", "spacing", "levels", "factors"),
    [
        ((40, 56, 40), (1.0, 1.0, 1.0), 4, [8, 8, 8]),  # 40 / 8 = 5 voxels; a further halving would leave 2
        ((64, 64, 64), None, 5, [16, 16, 16]),
        ((96, 96, 96), None, 5, [16, 16, 16]),
        ((8, 64, 64), None, 2, [2, 2, 2]),
        ((128, 128, 24), (1.0, 1.0, 5.0), 5, [16, 16, 4]),  # z waits until x and y are as coarse
    ],
)
def test_depth_follows_the_patch_and_coarse_axes_are_halved_last(size, spacing, levels, factors):
    assert levels_for(size, spacing) == levels
    network = unet(1, 2, spatial_size=size, spacing_mm=spacing, width=4)
    assert [int(factor) for factor in network.shape_factor()] == factors


def test_one_output_per_resolution_while_training_and_one_in_use():
    network = unet(2, 3, spatial_size=(16, 24, 32), width=4)
    image = torch.randn(1, 2, 16, 24, 32)
    assert [tuple(output.shape[2:]) for output in network(image)] == [(16, 24, 32), (8, 12, 16)]
    network.eval()
    assert network(image).shape == (1, 3, 16, 24, 32)
    assert network(torch.randn(1, 2, 20, 8, 12)).shape == (1, 3, 20, 8, 12)


def test_the_gradient_reaches_every_parameter():
    network = unet(1, 2, spatial_size=(16, 16, 16), width=4)
    sum(output.square().mean() for output in network(torch.randn(1, 1, 16, 16, 16))).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_a_size_that_cannot_be_halved_is_refused_with_the_next_larger_one():
    network = unet(1, 2, spatial_size=(40, 40, 40), width=4)
    with pytest.raises(MedvolError) as caught:
        network(torch.zeros(1, 1, 40, 41, 47))
    assert caught.value.code == "BAD_PATCH_SIZE"
    assert "[40, 48, 48]" in str(caught.value)


def test_stated_levels_are_kept_and_impossible_ones_refused():
    network = unet(1, 2, spatial_size=(40, 56, 40), width=4, levels=3)
    assert [int(factor) for factor in network.shape_factor()] == [4, 4, 4]
    assert [tuple(output.shape[2:]) for output in network(torch.zeros(1, 1, 8, 8, 12))] == [(8, 8, 12), (4, 4, 6)]
    for levels in (1, 6, 3.5):
        with pytest.raises(MedvolError, match=f"levels {levels}; expected 2 to 5"):
            unet(1, 2, spatial_size=(40, 56, 40), levels=levels)
