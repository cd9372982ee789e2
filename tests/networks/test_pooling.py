import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from medvol.networks.densenet3d import densenet3d
from medvol.networks.pooling import MeanOfPairs
from medvol.networks.resnet3d import resnet3d


def test_pairs_and_a_last_voxel_alone_by_hand():
    line = torch.tensor([1.0, 3.0, 10.0]).view(1, 1, 3, 1, 1)
    assert MeanOfPairs(round_up=True)(line).flatten().tolist() == [2.0, 10.0]
    assert MeanOfPairs(round_up=False)(line.expand(1, 1, 3, 2, 2)).flatten().tolist() == [2.0]


@given(size=st.tuples(*[st.integers(2, 9)] * 3), round_up=st.booleans(), seed=st.integers(0, 99))
def test_values_and_gradients_are_those_of_torch(size, round_up, seed):
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    found = MeanOfPairs(round_up=round_up)(ours)
    expected = nn.AvgPool3d(2, ceil_mode=round_up)(theirs)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    "network", [resnet3d(1, 2), densenet3d(1, 2, spatial_size=(7, 8, 9))], ids=["resnet3d", "densenet3d"]
)
def test_pooling_stays_in_bfloat16_and_in_its_layout(network):
    seen = []
    for module in network.modules():
        if isinstance(module, MeanOfPairs):
            module.register_forward_hook(lambda _module, inputs, output: seen.append((inputs[0], output)))
    network = network.to(memory_format=torch.channels_last_3d)
    x = torch.randn(2, 1, 7, 8, 9).to(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16):
        network(x)
    assert len(seen) == 2
    assert all(output.dtype == before.dtype == torch.bfloat16 for before, output in seen)
    assert all(output.is_contiguous(memory_format=torch.channels_last_3d) for _, output in seen)
