"""Patches anywhere in unlabelled volumes."""

import numpy as np
import pytest
from monai.transforms import EnsureChannelFirstd

from medvol.data.cache import CachedVolumes
from medvol.data.random_patches import RandomPatches
from medvol.data.study import Case, Study
from medvol.data.table import items
from medvol.errors import MedvolError
from medvol.transforms.load import LoadVolumed

SHAPE = (7, 8, 9)


@pytest.fixture
def make(tmp_path):
    ramp = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    for index in range(3):
        np.save(tmp_path / f"{index}.npy", ramp + 1000 * index)
    cases = tuple(Case(str(k), str(k), (str(tmp_path / f"{k}.npy"),)) for k in range(3))

    def patches(size=(3, 4, 5), per_epoch=40, seed=0):
        chain = [LoadVolumed(keys="image"), EnsureChannelFirstd(keys="image")]
        data = items(Study(cases, "unlabelled"))
        volumes = CachedVolumes(data, chain, cache_dir=tmp_path / "cache", seed=seed, progress=False)
        return RandomPatches(volumes, size, per_epoch=per_epoch)

    return patches


def corners(patches, epoch):
    patches.set_epoch(epoch)
    return [int(np.asarray(patches[index]["image"]).flat[0]) for index in range(len(patches))]


def test_patches_have_the_size_and_lie_everywhere_inside(make):
    patches = make()
    patches.set_epoch(1)
    starts = set()
    for index in range(len(patches)):
        voxels = np.asarray(patches[index]["image"]).astype(int)
        voxels = voxels.reshape(voxels.shape[-3:])
        assert voxels.shape == (3, 4, 5)
        start = np.unravel_index(voxels[0, 0, 0] - 1000 * (index % 3), SHAPE)
        assert voxels[-1, -1, -1] - voxels[0, 0, 0] == np.ravel_multi_index((2, 3, 4), SHAPE)
        starts.add(tuple(int(one) for one in start))
    # The first voxel can be at 5 x 5 x 5 places.
    assert len(starts) > 25
    assert np.max(list(starts), axis=0).tolist() == [4, 4, 4]


def test_each_epoch_draws_others_and_a_resumed_run_the_same(make):
    first = make()
    one, two = corners(first, 1), corners(first, 2)
    assert one != two
    assert corners(make(), 2) == two
    assert corners(make(seed=1), 2) != two


def test_no_patches_are_refused_and_items_are_the_volumes(make):
    assert [item["case"] for item in make().data] == ["0", "1", "2"]
    with pytest.raises(MedvolError, match="BAD_VALUE: 0 patches"):
        make(per_epoch=0)
