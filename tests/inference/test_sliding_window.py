"""Sliding windows: MONAI's arithmetic, whatever the sizes, the batch, the folds; streamed with a bounded buffer."""

import logging

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from medvol.errors import MedvolError
from medvol.inference.runtime import Runtime
from medvol.inference.sliding_window import SlidingWindow

PATCH = (4, 5, 6)
SHAPES = [(7, 8, 9), (11, 6, 13), (4, 5, 6), (3, 8, 9), (2, 3, 4), (4, 17, 6), (1, 1, 20)]


def image(shape, channels=1, seed=0):
    return torch.randn(1, channels, *shape, generator=torch.Generator().manual_seed(seed))


def convolution(channels=1, classes=3, seed=0):
    torch.manual_seed(seed)
    return nn.Conv3d(channels, classes, 3, padding=1).eval()


def assembled(window, volume, network):
    """Put slabs together, checking that they follow one another."""
    parts, stop, axes = [], 0, set()
    for axis, start, logits in window.slabs(volume, network):
        assert start == stop
        stop = start + logits.shape[1 + axis]
        axes.add(axis)
        parts.append(logits.clone())
    assert len(axes) == 1
    return torch.cat(parts, dim=1 + axes.pop())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
def test_logits_equal_those_of_monai_s_gaussian_windows(shape, overlap):
    network, volume = convolution(), image(shape)
    theirs = SlidingWindowInferer(PATCH, mode="gaussian", overlap=overlap, cval=float(volume.min()))(volume, network)
    ours = SlidingWindow(PATCH, overlap=overlap)(volume, network)
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_slabs_are_the_whole_to_the_bit(shape):
    network, volume = convolution(), image(shape)
    window = SlidingWindow(PATCH)
    assert torch.equal(assembled(window, volume[0], network), window(volume, network)[0])


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_cancel_for_a_network_that_returns_its_input(shape):
    volume = image(shape, channels=2)
    torch.testing.assert_close(SlidingWindow(PATCH)(volume, lambda windows: windows), volume, atol=1e-6, rtol=1e-6)


def test_a_constant_network_gives_a_constant():
    output = SlidingWindow(PATCH)(image((7, 8, 9)), lambda windows: torch.full_like(windows, 2.5))
    torch.testing.assert_close(output, torch.full((1, 1, 7, 8, 9), 2.5), atol=0, rtol=1e-6)


def test_the_input_is_left_as_it_was():
    volume = image((7, 8, 9))
    before = volume.clone()
    SlidingWindow(PATCH)(volume, lambda windows: windows)
    assert torch.equal(volume, before)


@pytest.mark.parametrize("batch_size", [2, 3, 100])
def test_the_batch_size_changes_nothing(batch_size):
    network, volume = convolution(), image((11, 6, 13))
    one, many = SlidingWindow(PATCH), SlidingWindow(PATCH, batch_size=batch_size)
    torch.testing.assert_close(many(volume, network), one(volume, network), atol=1e-6, rtol=0)


def test_volumes_of_a_batch_are_predicted_one_by_one():
    network = convolution()
    first, second = image((7, 8, 9)), image((7, 8, 9), seed=1)
    window = SlidingWindow(PATCH)
    both = window(torch.cat([first, second]), network)
    assert torch.equal(both, torch.cat([window(first, network), window(second, network)]))


@pytest.mark.parametrize("as_list", [list, nn.ModuleList])
def test_folds_are_averaged(as_list):
    folds, volume = [convolution(seed=seed) for seed in range(3)], image((7, 8, 9))
    window = SlidingWindow(PATCH)
    mean = torch.stack([window(volume, fold) for fold in folds]).mean(dim=0)
    torch.testing.assert_close(window(volume, as_list(folds)), mean, atol=1e-6, rtol=1e-6)


def test_windows_are_mirrored_only_where_asked_for():
    network, volume = convolution(), image((8, 8, 9))  # one window along x, so that its mirror image is the volume's
    mirrored = SlidingWindow((8, 5, 6), mirror_axes=(0,))
    plain = SlidingWindow((8, 5, 6))
    by_hand = (plain(volume, network) + plain(volume.flip(2), network).flip(2)) / 2
    torch.testing.assert_close(mirrored(volume, network), by_hand, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(mirrored(volume, network), plain(volume, network))


def test_padding_is_each_channel_s_minimum_evenly_on_both_sides():
    seen = []
    volume = image((2, 5, 6), channels=2)

    def network(windows):
        seen.append(windows.clone())
        return windows

    SlidingWindow((5, 5, 6))(volume, network)
    assert torch.equal(seen[0][:, :, 1:3], volume)
    for channel in range(2):
        assert (seen[0][0, channel, [0, 3, 4]] == volume[0, channel].min()).all()


def test_bfloat16_gives_float32_logits_close_to_float32():
    network, volume = convolution(), image((7, 8, 9))
    half = SlidingWindow(PATCH, runtime=Runtime("cpu", "bfloat16", channels_last=True))(volume, network)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, SlidingWindow(PATCH)(volume, network), atol=0.05, rtol=0)


def test_a_row_s_constant_windows_are_predicted_once_and_no_logit_changes(caplog):
    volume = torch.full((1, 1, 12, 10, 30), -1.0)
    volume[..., 20:] = image((12, 10, 10))
    calls = {True: 0, False: 0}
    network, outputs = convolution(), {}
    for skip in (True, False):

        def count(windows, skip=skip):
            calls[skip] += len(windows)
            return network(windows)

        with caplog.at_level(logging.INFO, logger="medvol.inference.sliding_window"):
            outputs[skip] = SlidingWindow(PATCH, skip_air=skip)(volume, count)
    assert torch.equal(outputs[True], outputs[False])
    assert calls[True] < calls[False] * 2 / 3
    assert f"{calls[False] - calls[True]} of {calls[False]} windows" in caplog.text


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements that any operation returned."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_no_more_planes_than_a_window_is_thick_are_held_along_the_longest_axis(axis):
    classes, shape = 24, [8, 8, 8]
    shape[axis] = 80
    volume = image(shape)[0]
    with LargestTensor() as recorded:
        for _ in SlidingWindow((4, 4, 4)).slabs(volume, lambda w: w.expand(-1, classes, -1, -1, -1)):
            pass
    assert recorded.elements == classes * 4 * 8 * 8  # a twentieth of all logits


def test_slabs_come_while_the_volume_is_still_being_predicted():
    calls = []
    slabs = SlidingWindow((4, 4, 4)).slabs(image((40, 4, 4))[0], lambda w: calls.append(1) or w)
    next(slabs)
    assert len(calls) == 1


def test_metadata_stays_and_no_gradient_is_kept():
    volume = MetaTensor(image((7, 8, 9)), affine=torch.diag(torch.tensor([1.0, 1.5, 3.0, 1.0])))
    output = SlidingWindow(PATCH)(volume, convolution())
    assert torch.equal(output.affine, volume.affine)
    assert not output.requires_grad


def test_a_network_that_halves_its_output_is_refused():
    with pytest.raises(MedvolError, match="WRONG_LOGITS.*patch_size"):
        SlidingWindow(PATCH)(image((7, 8, 9)), nn.AvgPool3d(2))


def test_deep_supervision_lists_are_refused():
    with pytest.raises(MedvolError, match=r"WRONG_LOGITS.*eval\(\)"):
        SlidingWindow(PATCH)(image((7, 8, 9)), lambda windows: [windows, windows])


def test_an_image_without_channel_is_refused():
    with pytest.raises(MedvolError, match="WRONG_DIMS"):
        next(SlidingWindow(PATCH).slabs(torch.zeros(7, 8, 9), convolution()))


@pytest.mark.parametrize(
    "options", [{"patch_size": (4, 5)}, {"patch_size": (4, 5, 0)}, {"overlap": 1.0}, {"batch_size": 0}]
)
def test_sizes_that_describe_no_window_are_refused(options):
    with pytest.raises(MedvolError, match="UNKNOWN_OPTION"):
        SlidingWindow(**{"patch_size": PATCH, **options})
