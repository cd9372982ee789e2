import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from medvol.data.cache import CachedVolumes
from medvol.data.patches import ClassPatches
from medvol.errors import MedvolError
from medvol.transforms.masks import RememberSitesd

SHAPE, PATCH = (17, 18, 19), (7, 8, 9)


def make(item):
    """A volume that names its voxels, with a small structure 2 in one corner and a larger one in the middle."""
    label = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    label[0, 6:12, 7:13, 8:14] = 1
    if item["case"] != "plain":
        label[0, 15, 16, 17] = 2
    image = torch.arange(np.prod(SHAPE), dtype=torch.float32).reshape(1, *SHAPE)
    return {**item, "image": image, "label": MetaTensor(label)}


@pytest.fixture
def volumes(tmp_path):
    items = [{"case": name} for name in ("first", "plain")]
    chain = Compose([make, RememberSitesd("label", 3)])
    return CachedVolumes(items, chain, cache_dir=tmp_path / "cache", progress=False)


def test_a_patch_is_a_piece_of_the_volume_with_its_mask(volumes):
    patches = ClassPatches(volumes, PATCH, per_epoch=20)
    whole = make({"case": "first"})
    for index in range(0, 20, 2):
        patch = patches[index]
        assert patch["image"].shape == patch["label"].shape == (1, *PATCH)
        x, y, z = np.unravel_index(int(patch["image"][0, 0, 0, 0]), SHAPE)
        where = (slice(None), slice(x, x + 7), slice(y, y + 8), slice(z, z + 9))
        assert torch.equal(patch["image"], whole["image"][where])
        assert torch.equal(patch["label"], whole["label"][where])


def test_classes_are_drawn_evenly_whatever_their_size(volumes):
    always = ClassPatches(volumes, PATCH, per_epoch=200, class_share=1.0)
    rare = np.mean([bool((always[index]["label"] == 2).any()) for index in range(0, 200, 2)])
    assert 0.35 < rare < 0.65  # two classes, each drawn half of the time; the middle one never reaches the corner
    assert all(bool((always[index]["label"] > 0).any()) for index in range(1, 200, 2))
    never = ClassPatches(volumes, PATCH, per_epoch=200, class_share=0.0)
    assert np.mean([bool((never[index]["label"] == 2).any()) for index in range(0, 200, 2)]) < 0.25


def test_patches_depend_on_seed_and_epoch_and_not_on_what_was_read_before(volumes, tmp_path):
    patches = ClassPatches(volumes, PATCH, per_epoch=6)

    def epoch(number):
        patches.set_epoch(number)
        return [patches[index]["image"][0, 0, 0, 0].item() for index in range(6)]

    first = epoch(1)
    assert epoch(2) != first
    assert epoch(1) == first
    assert len(set(first)) > 2


def test_volumes_without_any_structure_give_patches_from_anywhere(tmp_path):
    def empty(item):
        return {**make(item), "label": MetaTensor(torch.zeros(1, *SHAPE, dtype=torch.uint8))}

    chain = Compose([empty, RememberSitesd("label", 3)])
    volumes = CachedVolumes([{"case": "a"}], chain, cache_dir=tmp_path / "cache", progress=False)
    patches = ClassPatches(volumes, PATCH, per_epoch=3, class_share=1.0)
    assert len({patches[index]["image"][0, 0, 0, 0].item() for index in range(3)}) > 1


@pytest.mark.parametrize(("share", "count"), [(1.5, 3), (-0.1, 3), (0.5, 0)])
def test_shares_and_counts_that_mean_nothing_are_refused(volumes, share, count):
    with pytest.raises(MedvolError) as caught:
        ClassPatches(volumes, PATCH, per_epoch=count, class_share=share)
    assert caught.value.code == "BAD_VALUE"


def test_a_volume_smaller_than_the_patch_is_refused_by_name(volumes):
    with pytest.raises(MedvolError) as caught:
        ClassPatches(volumes, (20, 8, 9), per_epoch=2)[0]
    assert caught.value.code == "BAD_CROP"
    assert caught.value.case == "first"
