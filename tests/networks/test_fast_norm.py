"""Instance norm in both layouts against torch's own, forward and backward."""

import copy

import pytest
import torch
from torch import nn

from medvol.networks import fast_norm
from medvol.networks.fast_norm import FastInstanceNorm3d, instance_norm, use_fast_norm

LAYOUTS = (torch.contiguous_format, torch.channels_last_3d)


def volumes(batch=2, dtype=torch.float32, layout=torch.channels_last_3d, shape=(7, 8, 9)):
    torch.manual_seed(0)
    # A mean far from zero: where a variance from sums of squares would lose its digits.
    return (torch.randn(batch, 5, *shape) * 2 + 10).to(dtype).to(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_result_and_gradients_are_torchs_and_the_layout_is_kept(layout, affine, batch):
    ours, stock = FastInstanceNorm3d(5, affine=affine), nn.InstanceNorm3d(5, affine=affine)
    if affine:
        nn.init.normal_(stock.weight)
        nn.init.normal_(stock.bias)
    ours.load_state_dict(stock.state_dict())
    mine, theirs = volumes(batch, layout=layout).requires_grad_(), volumes(batch, layout=layout).requires_grad_()
    upstream = torch.randn(batch, 5, 7, 8, 9)
    result, expected = ours(mine), stock(theirs)
    torch.testing.assert_close(result, expected, atol=2e-5, rtol=0)
    assert result.is_contiguous(memory_format=layout)
    result.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(mine.grad, theirs.grad, atol=2e-5, rtol=0)
    for parameter, reference in zip(ours.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, reference.grad, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize(("shape", "fold"), [((7, 8, 9), 8), ((7, 3, 18), 2), ((7, 9, 9), 1)])
def test_slabs_and_voxels_side_by_side_give_the_statistics_of_the_whole_volume(monkeypatch, shape, fold):
    monkeypatch.setattr(fast_norm, "SLAB_ROWS", 104)  # 504, 378 or 567 voxels: several slabs and a smaller rest
    volume = volumes(2, shape=shape)
    volume[:, :, 3:] += 20  # the slabs have different means
    assert fast_norm._fold(volume) == fold
    expected = nn.InstanceNorm3d(5)(volume.double()).float()
    torch.testing.assert_close(instance_norm(volume), expected, atol=2e-6, rtol=0)
    half = volume.bfloat16()
    expected = nn.InstanceNorm3d(5)(half.double())
    torch.testing.assert_close(instance_norm(half).double(), expected, atol=0.02, rtol=0.005)


@pytest.mark.parametrize(("shape", "fold"), [((7, 8, 9), 8), ((7, 3, 18), 2), ((7, 9, 9), 1)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.bfloat16, 0.004)])
def test_slabs_and_voxels_side_by_side_give_the_gradients_of_the_whole_volume(
    monkeypatch, shape, fold, batch, dtype, tolerance
):
    monkeypatch.setattr(fast_norm, "SLAB_ROWS", 104)
    inputs = [volumes(batch, dtype, shape=shape), torch.rand(5) + 0.5, torch.randn(5)]
    upstream = torch.randn(batch, 5, *shape).to(dtype).to(memory_format=torch.channels_last_3d)
    upstream[:, :, :2] += 1  # in step with nothing
    assert fast_norm._fold(inputs[0]) == fold
    mine = [one.detach().clone().requires_grad_() for one in inputs]
    exact = [one.detach().double().requires_grad_() for one in inputs]
    instance_norm(*mine).backward(upstream)
    # In the default layout: torch's own gradient of a single volume is wrong where the upstream is channels last.
    reference = nn.functional.instance_norm(exact[0], weight=exact[1], bias=exact[2])
    reference.backward(upstream.double().contiguous())
    for found, expected in zip(mine, exact, strict=True):
        error = (found.grad.double() - expected.grad).norm() / expected.grad.norm()
        assert error < tolerance
        assert found.grad.dtype == found.dtype


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_is_as_close_to_the_exact_result_as_its_rounding(layout):
    volume = volumes(2, torch.bfloat16, layout)
    weight, bias = torch.rand(5) + 0.5, torch.randn(5)
    expected = nn.functional.instance_norm(volume.double(), weight=weight.double(), bias=bias.double())
    for dtype in (torch.float32, torch.bfloat16):
        result = instance_norm(volume, weight.to(dtype), bias.to(dtype))
        assert result.dtype == torch.bfloat16
        torch.testing.assert_close(result.double(), expected, atol=0.02, rtol=0.01)


def test_gradients_are_the_derivatives():
    volume = volumes(2, torch.float64, shape=(2, 3, 2)).requires_grad_()
    weight, bias = (torch.rand(5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    torch.autograd.gradcheck(instance_norm, (volume, weight, bias))


def test_every_plain_instance_norm_is_replaced_and_its_parameters_are_shared():
    stock = nn.Sequential(
        nn.Sequential(nn.InstanceNorm3d(5, affine=True)),
        nn.InstanceNorm3d(5),
        nn.InstanceNorm3d(5, track_running_stats=True),
    ).eval()
    expected = copy.deepcopy(stock)
    scale = stock[0][0].weight
    network = use_fast_norm(stock)
    assert network[0][0].weight is scale
    assert [type(module) is FastInstanceNorm3d for module in (network[0][0], network[1], network[2])] == [
        True,
        True,
        False,
    ]
    assert list(network.state_dict()) == list(expected.state_dict())
    torch.testing.assert_close(network(volumes()), expected(volumes()), atol=2e-5, rtol=0)


def test_a_single_voxel_is_refused_as_torch_does():
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        FastInstanceNorm3d(5)(torch.zeros(1, 5, 1, 1, 1))
