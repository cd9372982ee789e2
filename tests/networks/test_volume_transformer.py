"""The switch between ViT and Swin, and the sizes that either takes."""

import pytest
import torch

from medvol.errors import MedvolError
from medvol.networks.published import read_state
from medvol.networks.swin_unetr import swin_unetr
from medvol.networks.volume_transformer import size_multiple, start_from, volume_transformer


@pytest.mark.parametrize(
    ("options", "size", "multiple"),
    [
        ({}, (27, 24, 20), 4),
        ({}, (20, 24, 28), 8),
        ({"patch_size": 2}, (48, 48, 48), 2),
        ({"preset": "base"}, (28, 28, 28), 16),
        ({"architecture": "swin"}, (28, 28, 28), 32),
    ],
)
def test_the_multiple_is_that_of_the_patches_or_windows(options, size, multiple):
    assert size_multiple(size, **options) == multiple


@pytest.mark.parametrize("options", [{}, {"patch_size": 8}, {"architecture": "swin", "feature_size": 12}])
def test_every_switch_gives_logits_of_one_shape(options):
    network = volume_transformer(2, 3, spatial_size=(32, 32, 32), **options).eval()
    with torch.no_grad():
        assert network(torch.zeros(2, 2, 32, 32, 32)).shape == (2, 3)


def test_a_swin_encoder_starts_from_a_segmentation_network(tmp_path):
    torch.manual_seed(0)
    torch.save(swin_unetr(1, 2, feature_size=12).state_dict(), tmp_path / "seg.pt")
    network = volume_transformer(1, 2, spatial_size=(32, 32, 32), architecture="swin", feature_size=12)
    start_from(network, tmp_path / "seg.pt")
    saved, own = read_state(tmp_path / "seg.pt"), network.state_dict()
    shared = [name for name in own if name in saved]
    assert len(shared) > 100
    assert all(torch.equal(own[name], saved[name]) for name in shared)


def test_a_vit_starts_from_another_size_with_its_head_untouched(tmp_path):
    torch.manual_seed(0)
    torch.save(volume_transformer(1, 5, spatial_size=(16, 16, 16)).state_dict(), tmp_path / "vit.pt")
    network = volume_transformer(1, 2, spatial_size=(24, 24, 24))
    head = network.classification_head.weight.clone()
    start_from(network, tmp_path / "vit.pt")
    assert torch.equal(network.classification_head.weight, head)
    assert torch.equal(network.blocks[0].attn.qkv.weight, read_state(tmp_path / "vit.pt")["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize("options", [{"architecture": "swim"}, {"preset": "tiny"}])
def test_an_unknown_word_is_refused_with_the_nearest(options):
    with pytest.raises(MedvolError, match="UNKNOWN_OPTION"):
        volume_transformer(1, 2, spatial_size=(32, 32, 32), **options)


def test_no_file_is_no_change():
    network = volume_transformer(1, 2, spatial_size=(8, 8, 8))
    before = network.blocks[0].attn.qkv.weight.clone()
    assert torch.equal(start_from(network, "").blocks[0].attn.qkv.weight, before)
