"""The networks of the Keras examples against Keras 3 on its torch backend, with its weights copied over.

Keras keeps channels last, so its first dense layer counts (x, y, z, channel) where ours counts (channel, x, y, z).

Its Adam is torch's with another epsilon: Keras adds epsilon to the root of the second moment before that moment's bias
is corrected, torch adds it behind, so that in step t torch needs epsilon / sqrt(1 - 0.999 ** t) for the same numbers:
3.2e-6 in the first step, and after some thousand steps Keras' own 1e-7.
"""

import sys

import pytest
import torch
from keras_models import keras_cnn2d, keras_conv3d, keras_mlp
from torch import nn

from medvol.networks.cnn2d import cnn2d
from medvol.networks.conv3d import conv3d
from medvol.networks.mlp import mlp

EPSILON = 1e-7  # of Keras' Adam
LEARNING_RATE = 1e-3


@pytest.fixture(scope="module")
def keras(tmp_path_factory):
    # Keras chooses its backend and writes a file into its folder while it is imported; neither is to outlive that.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        module = pytest.importorskip("keras", minversion="3.0", reason="Keras is absent: pip install -e '.[test]'")
    # absl, which comes with Keras, holds pytest's stream of this moment and closes it with the next logging.conf.
    from absl import logging

    logging.get_absl_handler().python_handler.setStream(sys.__stderr__)
    if module.backend.backend() != "torch":
        pytest.skip(f"Keras was already imported with the backend {module.backend.backend()}")
    module.utils.set_random_seed(0)
    yield module
    module.utils.clear_session(free_memory=True)


def as_ours(model):
    """Return the weights of a Keras model by position, in torch's layout."""
    tensors, grid, channels = [], None, None
    for layer in model.layers:
        if layer.name.startswith("flatten"):
            *grid, channels = layer.input.shape[1:]
        if not layer.weights:
            continue
        kernel, bias = (torch.as_tensor(weight.value).detach().clone() for weight in layer.weights)
        if grid:
            kernel = kernel.view(*grid, channels, -1).movedim(-2, 0).flatten(0, -2)
            grid = None
        # Outputs last in Keras, first in torch; inputs second to last in Keras, second in torch.
        tensors += [kernel.movedim((-1, -2), (0, 1)), bias]
    return tensors


def copy_into(network, model):
    """Copy all weights of a Keras model; the number and shape of tensors must be the same."""
    for parameter, value in zip(network.parameters(), as_ours(model), strict=True):
        assert parameter.shape == value.shape
        parameter.data = value.contiguous()


def away_from_zero(model):
    # Keras starts biases at 0, which would hide a bias that is not copied.
    for weight in model.weights:
        if len(weight.shape) == 1:
            weight.assign(torch.randn(tuple(weight.shape)) * 0.1)


CASES = {
    "cnn2d": (lambda keras: keras_cnn2d(keras, (22, 27, 3)), lambda: cnn2d(3, 1, spatial_size=(22, 27)), (3, 22, 27)),
    "conv3d": (
        lambda keras: keras_conv3d(keras, (14, 15, 18, 1)),
        lambda: conv3d(1, 1, spatial_size=(14, 15, 18)),
        (1, 14, 15, 18),
    ),
    # No dropout: the two libraries draw other units.
    "mlp": (lambda keras: keras_mlp(keras, (30,), dropout=0.0), lambda: mlp(30, 1, dropout=0.0), (30,)),
}


def pair(keras, name):
    """Return the Keras model, our network with its weights, and a batch in the layout of each."""
    torch.manual_seed(0)
    build, ours, shape = CASES[name]
    model, network = build(keras), ours()
    away_from_zero(model)
    copy_into(network, model)
    batch = torch.randn(8, *shape)
    return model, network, batch, batch.movedim(1, -1).contiguous()


@pytest.mark.parametrize(
    ("build", "ours", "expected"),
    [
        (lambda keras: keras_cnn2d(keras, (64, 64, 3)), lambda: cnn2d(3, 1, spatial_size=(64, 64)), 646_273),
        (lambda keras: keras_conv3d(keras, (64, 64, 64, 1)), lambda: conv3d(1, 1, spatial_size=(64,) * 3), 22_535_361),
        (lambda keras: keras_mlp(keras, (30,)), lambda: mlp(30, 1), 6_209),
    ],
    ids=["cnn2d", "conv3d", "mlp"],
)
def test_the_example_has_as_many_parameters_in_keras_as_here(keras, build, ours, expected):
    with torch.device("meta"):
        network = ours()
    assert build(keras).count_params() == expected == sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_keras_with_its_weights(keras, name):
    model, network, batch, channels_last = pair(keras, name)
    with torch.no_grad():
        expected, result = model(channels_last, training=False), network.eval()(batch).sigmoid()
    assert expected.std() > 0.01
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_dropout_changes_nothing_in_use(keras):
    model, network = keras_mlp(keras, (30,)), mlp(30, 1).eval()
    copy_into(network, model)
    rows = torch.randn(4, 30)
    with torch.no_grad():
        torch.testing.assert_close(network(rows).sigmoid(), model(rows, training=False), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_a_step_of_adam_on_the_binary_cross_entropy_leads_to_the_weights_of_keras(keras, name):
    model, network, batch, channels_last = pair(keras, name)
    labels = (torch.arange(len(batch)) % 3 == 0).float().unsqueeze(1)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    model.compile(optimizer=keras.optimizers.Adam(LEARNING_RATE, epsilon=EPSILON), loss="binary_crossentropy")
    loss = model.train_on_batch(channels_last.numpy(), labels.numpy())

    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, eps=EPSILON / (1 - 0.999) ** 0.5)
    ours = nn.functional.binary_cross_entropy_with_logits(network.train()(batch), labels)
    ours.backward()
    optimizer.step()
    assert ours.item() == pytest.approx(float(loss), abs=1e-5)
    for parameter, old, expected in zip(network.parameters(), before, as_ours(model), strict=True):
        assert (expected - old).abs().max() > LEARNING_RATE / 2
        torch.testing.assert_close(parameter.detach(), expected, atol=1e-4, rtol=0)
