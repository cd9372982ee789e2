"""The tabular network: parameters, dropout, gradients."""

import pytest
import torch

from medvol.errors import MedvolError
from medvol.networks.mlp import mlp


def test_it_has_the_parameters_of_the_keras_example():
    expected = (30 * 64 + 64) + (64 * 64 + 64) + (64 + 1)
    assert expected == 6_209
    assert sum(parameter.numel() for parameter in mlp(30, 1).parameters()) == expected


def test_one_fifth_is_dropped_while_training_and_nothing_in_use():
    torch.manual_seed(0)
    network, rows = mlp(5, 1), torch.randn(4, 5)
    assert [layer.p for layer in network if isinstance(layer, torch.nn.Dropout)] == [0.2, 0.2]
    assert not torch.equal(network(rows), network(rows))
    network.eval()
    torch.testing.assert_close(network(rows)[2:3], network(rows[2:3]))


def test_every_parameter_receives_a_gradient_and_the_output_has_a_logit_per_class():
    torch.manual_seed(0)
    network = mlp(5, 3, width=8)
    output = network(torch.randn(16, 5))
    assert output.shape == (16, 3)
    output.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_a_table_without_features_is_refused():
    with pytest.raises(MedvolError, match="INPUT_TOO_SMALL.*at least 1"):
        mlp(0, 1)
