"""Gradients of small maps are right under autocast, whatever the memory held before."""

import copy

import pytest
import torch
from torch import nn

from medvol.inference.runtime import RuntimeInferer, choose_runtime
from medvol.networks.resnet3d import resnet3d
from medvol.networks.small_maps import is_small, use_exact_small_maps

PLAIN = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)

CASES = [
    # Each of them fails with torch's own convolution in bfloat16; those that let the process die are left out.
    (nn.Conv3d, {"kernel_size": 3, "padding": 1}, (2, 8, 8)),
    (nn.Conv3d, {"kernel_size": 3, "padding": 1}, (2, 2, 2)),
    (nn.Conv3d, {"kernel_size": (3, 3, 1), "padding": (1, 1, 0)}, (2, 5, 5)),
    (nn.Conv3d, {"kernel_size": 5, "padding": 2}, (4, 8, 8)),
    (nn.Conv2d, {"kernel_size": 3, "padding": 1, "stride": 2}, (4, 1)),
    (nn.ConvTranspose3d, {"kernel_size": 3, "padding": 1}, (2, 3, 3)),
]


def fill_freed_memory():
    """Leave behind what a gradient that is not written would show."""
    for _ in range(3):
        blocks = [torch.full((1 << size,), 1e4) for size in range(8, 21, 2)]
        del blocks


def weight_gradient(convolution, maps, *, lowered):
    convolution = copy.deepcopy(convolution)
    fill_freed_memory()
    with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
        answer = convolution(maps)
    fill_freed_memory()
    answer.float().square().sum().backward()
    return convolution.weight.grad


@pytest.mark.parametrize(("kind", "options", "sizes"), CASES, ids=str)
def test_the_gradient_of_a_small_map_is_that_of_float32(kind, options, sizes):
    torch.manual_seed(0)
    convolution, maps = kind(32, 32, **options), torch.randn(2, 32, *sizes)
    expected = weight_gradient(convolution, maps, lowered=False)
    found = weight_gradient(use_exact_small_maps(convolution), maps, lowered=True)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_larger_maps_stay_in_bfloat16_and_nothing_changes_without_autocast():
    torch.manual_seed(0)
    plain, maps = nn.Conv3d(4, 4, 3, padding=1), torch.randn(1, 4, 7, 8, 9)
    exact = use_exact_small_maps(copy.deepcopy(plain))
    with torch.autocast("cpu", torch.bfloat16):
        assert exact(maps).dtype == torch.bfloat16
        assert exact(maps[:, :, :3]).dtype == torch.float32
    torch.testing.assert_close(exact(maps[:, :, :2]), plain(maps[:, :, :2]), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("sizes", "kernel", "dilation", "small"),
    [
        ((4, 4, 4), (3, 3, 3), (1, 1, 1), False),
        ((4, 3, 4), (3, 3, 3), (1, 1, 1), True),
        ((4, 4, 1), (3, 3, 1), (1, 1, 1), False),
        ((4, 4, 4), (3, 3, 3), (2, 1, 1), True),
        ((1, 1, 1), (1, 1, 1), (1, 1, 1), False),
        ((2, 9), (3, 3), (1, 1), True),
    ],
)
def test_a_map_is_small_where_the_kernel_reaches_over_it(sizes, kernel, dilation, small):
    assert is_small(sizes, kernel, dilation) == small


def test_a_network_keeps_its_modules_names_and_answers():
    network = resnet3d(1, 2, widths=(8, 16, 16)).eval()
    maps, names = torch.randn(1, 1, 12, 16, 16), list(network.state_dict())
    before, answer = list(network.modules()), network(maps)
    use_exact_small_maps(network)
    assert all(one is other for one, other in zip(before, network.modules(), strict=True))
    assert list(network.state_dict()) == names
    torch.testing.assert_close(network(maps), answer, rtol=0, atol=0)
    assert not any(type(module) in PLAIN for module in network.modules())


def test_training_of_small_volumes_in_bfloat16_has_the_gradients_of_float32():
    torch.manual_seed(0)
    network, maps = resnet3d(1, 2, dropout=0.0), torch.randn(4, 1, 12, 16, 16)  # 2 x 2 x 2 voxels in its last stage
    runtime = choose_runtime(network, (1, 12, 16, 16), device="cpu", precision="bfloat16", purpose="train")
    exact = copy.deepcopy(network)
    exact(maps).square().sum().backward()
    fill_freed_memory()
    RuntimeInferer(runtime)(maps, network).square().sum().backward()
    for name, value in network.named_parameters():
        expected = dict(exact.named_parameters())[name].grad
        error = float((value.grad - expected).norm() / (expected.norm() + 1e-6))
        assert error < 0.2, name
