"""Architectures: parameter counts, sizes, gradients."""

import pytest
import torch

from medvol.errors import MedvolError
from medvol.inference.memory import keep_freed_memory
from medvol.networks.conv3d import conv3d
from medvol.networks.densenet3d import densenet3d, smallest_size
from medvol.networks.resnet3d import resnet3d


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_conv3d_has_the_parameters_of_the_keras_example():
    convolutions = (27 * 32 + 32) + (27 * 32 * 64 + 64)
    dense = (14**3 * 64 * 128 + 128) + (128 + 1)
    assert convolutions + dense == 22_535_361
    assert parameters(conv3d(1, 1, spatial_size=(64, 64, 64))) == 22_535_361


def test_resnet3d_stays_under_one_million_parameters():
    assert parameters(resnet3d(1, 2)) == 900_578


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (lambda size: resnet3d(2, 3), (28, 28, 28)),
        (lambda size: resnet3d(2, 3), (9, 12, 10)),
        (lambda size: densenet3d(2, 3, spatial_size=size), (28, 28, 28)),
        (lambda size: densenet3d(2, 3, spatial_size=size), (7, 8, 9)),
        (lambda size: conv3d(2, 3, spatial_size=size), (10, 11, 13)),
    ],
)
def test_every_parameter_receives_a_gradient_and_the_output_has_a_logit_per_class(build, size):
    torch.manual_seed(0)
    network = build(size)
    output = network(torch.randn(4, 2, *size))
    assert output.shape == (4, 3)
    output.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_evaluation_does_not_depend_on_the_other_volumes_of_the_batch():
    torch.manual_seed(0)
    network = resnet3d(1, 2).eval()
    batch = torch.randn(3, 1, 9, 10, 11)
    torch.testing.assert_close(network(batch)[:1], network(batch[:1]))


@pytest.mark.parametrize(("preset", "smallest"), [("compact", 7), ("121", 29)])
def test_the_stated_smallest_size_works_and_one_voxel_less_is_refused_with_it(preset, smallest):
    size = (smallest, smallest + 1, smallest + 2)
    network = densenet3d(1, 2, spatial_size=size, preset=preset).eval()
    assert network(torch.zeros(1, 1, *size)).shape == (1, 2)
    with pytest.raises(MedvolError, match=f"INPUT_TOO_SMALL.*at least {smallest}"):
        densenet3d(1, 2, spatial_size=(smallest + 1, smallest - 1, smallest), preset=preset)
    with pytest.raises(MedvolError, match=f"at least {smallest}"):
        network(torch.zeros(1, 1, smallest - 1, smallest, smallest))


def test_monai_densenet_really_fails_below_the_size_we_state():
    from monai.networks.nets import DenseNet121

    network = DenseNet121(spatial_dims=3, in_channels=1, out_channels=2).eval()
    assert smallest_size(4, pool_stem=True) == 29
    network(torch.zeros(1, 1, 29, 29, 29))
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 1, 28, 28, 28))


def test_densenet_survives_torchscript():
    network = densenet3d(1, 2, spatial_size=(8, 8, 8)).eval()
    volume = torch.randn(1, 1, 8, 9, 10)
    torch.testing.assert_close(torch.jit.script(network)(volume), network(volume))


def test_conv3d_refuses_a_size_that_its_poolings_reduce_to_nothing():
    conv3d(1, 1, spatial_size=(10, 10, 10))(torch.zeros(1, 1, 10, 10, 10))
    with pytest.raises(MedvolError, match="at least 10"):
        conv3d(1, 1, spatial_size=(12, 9, 12))


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(MedvolError, match="UNKNOWN_OPTION: preset 'compct'; expected compact or 121"):
        densenet3d(1, 2, spatial_size=(28, 28, 28), preset="compct")


def test_the_stem_of_densenet3d_leaves_no_gradient_unset_whatever_lay_in_memory():
    # oneDNN's weight gradient of a padded stride 2 convolution leaves a plane of the kernel as malloc gave it when the
    # first axis is as long as the kernel; freed blocks of nan make that visible.
    keep_freed_memory()
    network = densenet3d(2, 3, spatial_size=(7, 16, 16))
    stem = network.features[: list(dict(network.features.named_children())).index("conv0") + 1]
    for _ in range(20):
        network.zero_grad()
        loss = stem(torch.randn(4, 2, 7, 16, 16)).square().sum()
        blocks = [torch.full((size,), torch.nan) for size in (21_952, 22_000, 30_000, 100_000, 1_000_000) * 6]
        del blocks
        loss.backward()
        assert bool(network.features.conv0.weight.grad.isfinite().all())
