"""The plain 2D network: parameters, sizes, gradients, layers."""

import pytest
import torch
from torch.nn import functional

from medvol.errors import MedvolError
from medvol.networks.cnn2d import cnn2d


def test_it_has_the_parameters_of_the_keras_example():
    convolutions = (9 * 3 * 32 + 32) + (9 * 32 * 64 + 64) + (9 * 64 * 64 + 64)
    dense = (12**2 * 64 * 64 + 64) + (64 + 1)
    assert convolutions + dense == 646_273
    network = cnn2d(3, 1, spatial_size=(64, 64))
    assert sum(parameter.numel() for parameter in network.parameters()) == 646_273


def test_it_is_the_layers_of_the_example_in_turn():
    torch.manual_seed(0)
    network = cnn2d(3, 2, spatial_size=(20, 27)).eval()
    state, images = network.state_dict(), torch.randn(2, 3, 20, 27)
    hidden = images
    for name in ("conv1", "conv2"):
        hidden = functional.conv2d(hidden, state[f"{name}.weight"], state[f"{name}.bias"]).relu()
        hidden = functional.max_pool2d(hidden, 2)
    hidden = functional.conv2d(hidden, state["conv3.weight"], state["conv3.bias"]).relu().flatten(1)
    hidden = functional.linear(hidden, state["dense.weight"], state["dense.bias"]).relu()
    expected = functional.linear(hidden, state["output.weight"], state["output.bias"])
    torch.testing.assert_close(network(images), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("channels", "size"), [(1, (18, 19)), (3, (28, 40))])
def test_every_parameter_receives_a_gradient_and_the_output_has_a_logit_per_class(channels, size):
    torch.manual_seed(0)
    network = cnn2d(channels, 3, spatial_size=size, dropout=0.1)
    output = network(torch.randn(8, channels, *size))
    assert output.shape == (8, 3)
    output.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_a_size_that_its_poolings_reduce_to_nothing_is_refused_with_the_smallest_legal_one():
    with pytest.raises(MedvolError, match="INPUT_TOO_SMALL.*images of 64 x 17 pixels.*at least 18"):
        cnn2d(3, 1, spatial_size=(64, 17))
