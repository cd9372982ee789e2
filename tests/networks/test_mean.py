"""The mean of several networks: their logits averaged in use, each learning for itself."""

import copy

import pytest
import torch

from medvol.errors import MedvolError
from medvol.networks.mean import MeanOfNetworks
from medvol.networks.unet import ResidualUNet, unet
from medvol.training.losses import DeepDiceCeLoss
from medvol.training.preflight import patch_multiple, predict_memory

SIZE = (12, 8, 16)


def make(width):
    torch.manual_seed(1)
    return unet(2, 3, spatial_size=SIZE, width=width, levels=3)


def labels():
    return torch.randint(0, 3, (2, 1, *SIZE), generator=torch.Generator().manual_seed(2))


def test_the_answer_is_the_mean_of_the_networks_logits():
    network = make([4, 6, 4]).eval()
    image = torch.randn(2, 2, *SIZE)
    first, second, third = (one(image) for one in network.networks)
    assert torch.allclose(network(image), (first + second + third) / 3, atol=1e-6)
    assert not torch.allclose(first, third, atol=0.01), "networks of one width start from other weights"


def test_one_width_is_the_network_itself():
    assert isinstance(make(4), ResidualUNet)
    assert isinstance(make([4]), MeanOfNetworks)


def test_outputs_while_training_are_those_of_all_networks_the_finest_resolution_first():
    shapes = [tuple(output.shape[2:]) for output in make([4, 6])(torch.randn(2, 2, *SIZE))]
    assert shapes == [SIZE, SIZE, (6, 4, 8), (6, 4, 8)]


def test_without_deep_supervision_each_network_gives_one_output():
    network = unet(1, 2, spatial_size=SIZE, width=[4, 4], levels=3, supervised=1)
    assert [tuple(output.shape) for output in network(torch.randn(1, 1, *SIZE))] == [(1, 2, *SIZE)] * 2


def test_each_network_learns_as_if_it_were_alone():
    network, loss = make([4, 6]), DeepDiceCeLoss()
    alone = [copy.deepcopy(one) for one in network.networks]
    image, target = torch.randn(2, 2, *SIZE), labels()
    together = loss(network(image), target)
    together.backward()
    losses = [loss(one(image), target) for one in alone]
    assert together.item() == pytest.approx(sum(one.item() for one in losses) / 2, rel=1e-5)
    for one, other, own in zip(network.networks, alone, losses, strict=True):
        own.backward()
        for found, expected in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.allclose(2 * found.grad, expected.grad, rtol=1e-3, atol=1e-6)


def test_the_planner_learns_its_multiple_and_its_memory():
    network = make([4, 4])
    assert patch_multiple(network, 2) == (4, 4, 4)
    one, two = (predict_memory(make(width), (2, *SIZE), 2, loss=DeepDiceCeLoss()) for width in (4, [4, 4]))
    assert two.weights_gb == pytest.approx(2 * one.weights_gb)
    assert two.tensors_gb == pytest.approx(2 * one.tensors_gb, rel=0.3)


@pytest.mark.parametrize("width", [[], [4, 0], [4, "6"], [4, 2.5], "wide"])
def test_widths_that_are_none_are_refused(width):
    with pytest.raises(MedvolError, match="UNKNOWN_OPTION: width .*expected channels, or a list of them"):
        make(width)
