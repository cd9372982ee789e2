"""What exporters follow instead of our own kernels computes the same."""

import pytest
import torch

from medvol.networks.exporting import is_exporting
from medvol.networks.merged_upsampling import _spread_plainly, spread_children

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")


def test_exporting_is_noticed_while_it_happens_and_only_then():
    seen = []

    class Network(torch.nn.Module):
        def forward(self, values):
            seen.append(is_exporting())
            return values + 1

    network = Network().eval()
    network(torch.zeros(2))
    torch.jit.trace(network, torch.zeros(2), check_trace=False)
    network(torch.zeros(2))
    assert seen[0] is False
    assert True in seen[1:-1]
    assert seen[-1] is False


@pytest.mark.parametrize("overlap", [0, 1])
def test_doubled_voxels_are_spread_alike_with_and_without_our_kernel(overlap):
    parts = torch.randn(2, 8 * 3, 3 + overlap, 4 + overlap, 5 + overlap)
    found = _spread_plainly(parts, overlap)
    assert found.shape == (2, 3, 6, 8, 10)
    assert torch.equal(found, spread_children(parts, overlap))
