"""Heat maps point at a lesion whose place is known, and only when the network has learnt to look for it."""

import copy

import numpy as np
import pytest
import torch
from monai.visualize import GradCAM
from scipy.stats import spearmanr
from torch import nn

from medvol.explain.heat_maps import ClassLogits, feature_layer, heat_map, hires_cam, occlusion
from medvol.networks.cnn2d import cnn2d
from medvol.networks.conv3d import conv3d
from medvol.networks.densenet3d import densenet3d
from medvol.networks.fusion import fusion_network
from medvol.networks.mlp import mlp
from medvol.networks.resnet2d import resnet50_2d
from medvol.networks.resnet3d import resnet3d
from medvol.networks.vit2d import vit2d
from medvol.networks.vit3d import vit3d

SIZE = (20, 24, 16)
RADIUS = 3


def lesions(count, seed):
    """Noise; every other volume has a ball brighter by two deviations. Also the balls as masks."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), axis=-1)
    centres = np.stack([rng.integers(RADIUS + 1, side - RADIUS - 1, count) for side in SIZE], axis=1)
    masks = np.linalg.norm(grid[None] - centres[:, None, None, None], axis=-1) <= RADIUS
    labels = np.arange(count) % 2
    volumes = rng.normal(size=(count, *SIZE)) + 2.0 * masks * labels[:, None, None, None]
    return torch.tensor(volumes[:, None], dtype=torch.float32), torch.tensor(labels), masks


@pytest.fixture(scope="module")
def trained():
    """A tiny network that finds the ball, trained for a few seconds."""
    torch.manual_seed(0)
    network = resnet3d(1, 2, widths=(8, 16), dropout=0.0)
    volumes, labels, _ = lesions(64, seed=1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(volumes), labels).backward()
        optimizer.step()
    return network.eval()


def overlaps(network, method):
    """Return for each sick case whether the peak lies on the ball or a voxel beside it, and how hot the ball is."""
    volumes, labels, masks = lesions(16, seed=2)
    hits, shares = [], []
    for volume, mask in zip(volumes[labels == 1], masks[labels == 1], strict=True):
        values = method(network, volume).numpy()
        peak = np.unravel_index(values.argmax(), values.shape)
        hits.append(np.linalg.norm(np.argwhere(mask) - peak, axis=1).min() <= 2.0)
        shares.append(values[mask].mean() / max(float(values.mean()), 1e-12))
    return np.mean(hits), np.median(shares)


def cam(network, volume):
    return hires_cam(network, volume, 1, layer=feature_layer(network, volume))


def hidden(network, volume):
    return occlusion(network, volume, 1)


@pytest.mark.parametrize("method", [cam, hidden], ids=["hires_cam", "occlusion"])
def test_the_map_of_a_trained_network_is_hottest_on_the_lesion(trained, method):
    volumes, labels, _ = lesions(16, seed=2)
    with torch.no_grad():
        assert (trained(volumes).argmax(1) == labels).float().mean() >= 0.9, "the network did not learn"
    hit, share = overlaps(trained, method)
    assert hit >= 0.75
    assert share > 3


@pytest.mark.parametrize("method", [cam, hidden], ids=["hires_cam", "occlusion"])
def test_the_map_of_a_random_network_is_another_one(trained, method):
    torch.manual_seed(5)
    random = resnet3d(1, 2, widths=(8, 16), dropout=0.0).eval()
    assert overlaps(random, method)[0] < 0.5
    volumes, _, _ = lesions(4, seed=3)
    correlations = [
        spearmanr(method(trained, volume).flatten(), method(random, volume).flatten()).statistic
        for volume in volumes[1::2]
    ]
    assert np.nanmax(np.abs(correlations)) < 0.6


def test_behind_a_global_mean_it_is_the_weighted_sum_of_the_features_by_hand_and_the_grad_cam_of_monai():
    torch.manual_seed(0)
    stem, features, head = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1), nn.Linear(3, 1)
    network = nn.Sequential(stem, features, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    image = torch.randn(1, 7, 8)
    # The gradient of the logit at every pixel is the head's weight over the number of pixels.
    expected = (head.weight[0, :, None, None] / 56 * features(stem(image)).relu()).sum(0).clamp_min(0)
    assert feature_layer(network, image) == "2"
    found = hires_cam(network, image, 1, layer="2")
    torch.testing.assert_close(found, expected.detach())
    theirs = GradCAM(copy.deepcopy(network), target_layers="2", postprocessing=lambda heat: heat)
    torch.testing.assert_close(found, theirs(image[None], class_idx=0)[0, 0].detach())


def test_occlusion_is_the_probability_that_a_patch_costs_by_hand():
    class Corner(nn.Module):
        def forward(self, x):
            return torch.stack([torch.zeros(len(x)), x[:, 0, 0, 0]], dim=1)

    image = torch.zeros(1, 8, 8)
    image[0, 0, 0] = 4.0
    # Patches of 8 / 4 = 2 pixels: only the one in the corner changes the pixel, to the patch's mean of 1.
    lost = 1 / (1 + np.exp(-4)) - 1 / (1 + np.exp(-1))
    found = occlusion(Corner(), image, 1, patches_per_axis=4)
    assert found.shape == (8, 8)
    assert found[0, 0] == pytest.approx(lost, abs=1e-5)
    assert found[2:, 2:].max() == pytest.approx(0, abs=1e-6)
    assert occlusion(Corner(), image, 0, patches_per_axis=4).max() == pytest.approx(0, abs=1e-6)


def test_one_logit_speaks_for_either_class():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    image = torch.randn(3, 1, 2, 2)
    logits = ClassLogits(network)(image)
    assert logits.shape == (3, 2)
    torch.testing.assert_close(logits.softmax(1)[:, 1], network(image)[:, 0].sigmoid())


NETWORKS = {
    "resnet3d": (resnet3d(1, 2), (1, 20, 24, 16), "HiResCAM"),
    "densenet3d": (densenet3d(1, 3, spatial_size=(20, 24, 16)), (1, 20, 24, 16), "HiResCAM"),
    "conv3d": (conv3d(1, 1, spatial_size=(20, 24, 22)), (1, 20, 24, 22), "HiResCAM"),
    "cnn2d": (cnn2d(3, 1, spatial_size=(32, 28)), (3, 32, 28), "HiResCAM"),
    "resnet50_2d": (resnet50_2d(3, 2), (3, 96, 112), "HiResCAM"),
    "vit2d": (vit2d(3, 2, spatial_size=(16, 16), preset="compact"), (3, 16, 16), "occlusion"),
    "vit3d": (vit3d(1, 2, spatial_size=(16, 16, 16), preset="compact"), (1, 16, 16, 16), "occlusion"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_a_bundle_gets_a_map_on_the_grid_of_its_image_and_stays_as_it_was(name):
    network, shape, method = NETWORKS[name]
    before, hooks = copy.deepcopy(network.state_dict()), sum(len(m._forward_hooks) for m in network.modules())
    inplace = [getattr(module, "inplace", None) for module in network.modules()]
    found = heat_map(network, torch.randn(shape), 1)
    assert (found.method, tuple(found.values.shape)) == (method, shape[1:])
    assert torch.isfinite(found.values).all()
    assert found.values.min() >= 0
    assert network.training
    assert [getattr(module, "inplace", None) for module in network.modules()] == inplace
    assert sum(len(m._forward_hooks) + len(m._backward_hooks) for m in network.modules()) == hooks
    assert all(parameter.grad is None for parameter in network.parameters())
    for key, value in network.state_dict().items():
        torch.testing.assert_close(value, before[key])


def test_the_image_of_a_fusion_is_explained_with_its_row_held():
    torch.manual_seed(0)
    network = fusion_network(1, 2, 2, widths=(8, 16)).eval()
    image, row, seen = torch.randn(1, *SIZE), torch.tensor([[0.3, -1.0]]), torch.ones(1)
    found = heat_map(network, image, 1, further=(row, seen))
    assert found.method == "HiResCAM"
    assert tuple(found.values.shape) == SIZE
    assert tuple(occlusion(network, image, 1, patches_per_axis=2, further=(row, seen)).shape) == SIZE


def test_a_network_of_rows_has_no_map_of_features():
    assert feature_layer(mlp(5, 2), torch.randn(5)) is None
