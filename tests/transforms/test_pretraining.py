"""Unlabelled volumes on the way to patches: the segmentation's chain, and a size that a patch fits into."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medvol.data.facts import Facts
from medvol.transforms.pretraining import middle_patch, patch_source
from medvol.transforms.segmentation import image_preprocessing

FACTS = Facts(
    classes=("background",),
    channels=("image",),
    spatial_size=(9, 6, 9),
    spacing_mm=None,
    intensity="ct",
    limits=(0.0, 503.0),
    has_geometry=False,
    laterality_matters=True,
    label_values=(0,),
)


@pytest.fixture
def item(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(7 * 8 * 9, dtype=np.int16).reshape(7, 8, 9) + 50)
    return {"case": "a", "image": str(tmp_path / "a.npy")}


def test_a_source_of_patches_is_padded_with_its_darkest_value_and_never_cropped(item):
    facts = replace(FACTS, limits=(0.0, 100.0))
    image = patch_source(facts, patch_size=(9, 6, 9))(item)["image"]
    assert image.shape == (1, 9, 8, 9)
    whole = image_preprocessing(facts)(item)["image"]
    assert torch.equal(torch.as_tensor(image[:, 1:-1]), torch.as_tensor(whole))
    assert (image[:, [0, -1]] == 0.5).all()


def test_the_middle_patch_is_the_middle_of_the_whole_chain(item):
    image = middle_patch(FACTS, patch_size=(5, 6, 7))(item)["image"]
    whole = image_preprocessing(FACTS)(item)["image"]
    assert torch.equal(torch.as_tensor(image), torch.as_tensor(whole[:, 1:-1, 1:-1, 1:-1]))
    assert image.dtype == torch.float32
    assert middle_patch(FACTS, patch_size=(9, 6, 9))(item)["image"].shape == (1, 9, 6, 9)
