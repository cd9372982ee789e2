import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medvol.data.facts import Facts
from medvol.errors import MedvolError, find_refusal
from medvol.geometry import affine_from
from medvol.transforms.masks import ClassIndexd, OntoImaged, PadToPatchd, RememberSitesd, class_indices
from medvol.transforms.segmentation import evaluation_preprocessing, image_preprocessing, training_preprocessing

SHAPE = (7, 8, 9)
AFFINE = torch.tensor(affine_from((1.0, 1.5, 3.0), None, (4.0, 5.0, 6.0)))


def facts(**changes):
    values = {
        "classes": ("background", "liver", "spleen"),
        "channels": ("image",),
        "spatial_size": (8, 8, 8),
        "spacing_mm": (1.0, 1.5, 1.5),
        "intensity": "mr",
        "limits": None,
        "has_geometry": True,
        "laterality_matters": True,
        "label_values": (0, 5, 255),
    }
    return Facts(**{**values, **changes})


def volume(array, affine=AFFINE):
    return MetaTensor(torch.as_tensor(array), affine=affine, meta={"has_geometry": True})


def refusal(step, item):
    with pytest.raises(MedvolError) as caught:
        step(item)
    assert len(str(caught.value)) <= 300
    return caught.value


@pytest.mark.parametrize("values", [(0, 1, 2), (0, 5, 255)])
def test_rounding_errors_are_no_other_value(values):
    voxels = np.array(values, np.float32) + np.float32([1e-6, -1e-4, 1e-4])
    assert class_indices(voxels, values, case="a").tolist() == [0, 1, 2]


def test_values_become_class_indices_whatever_their_type():
    voxels = np.array([0, 5, 255, 5])
    for dtype in (np.uint8, np.int32, np.float32, np.float64):
        assert class_indices(voxels.astype(dtype), (0, 5, 255), case="a").tolist() == [0, 1, 2, 1]
    consecutive = np.array([0.0, 2.0, 1.0])
    assert class_indices(consecutive, (0, 1, 2), case="a").dtype == np.uint8
    assert class_indices(consecutive, (0, 1, 2), case="a").tolist() == [0, 2, 1]


@pytest.mark.parametrize("wrong", [1.0012, -1.0, 4.0, float("nan")])
@pytest.mark.parametrize("values", [(0, 1, 2), (0, 5, 255)])
def test_a_value_that_training_did_not_know_is_refused_with_the_value(wrong, values):
    with pytest.raises(MedvolError) as caught:
        class_indices(np.array([0.0, wrong]), values, case="a")
    assert caught.value.code == "BAD_LABEL"
    assert caught.value.case == "a"
    assert ("not finite" if np.isnan(wrong) else f"{wrong:g}") in str(caught.value)


def test_a_mask_on_another_grid_is_refused_and_resampled_on_request():
    image, elsewhere = volume(torch.zeros(1, *SHAPE)), AFFINE.clone()
    elsewhere[0, 3] += 2.0
    mask = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    mask[0, 3, 4, 5] = 2
    moved = {"case": "a", "image": image, "label": volume(mask, elsewhere)}
    assert refusal(OntoImaged("label", "image"), moved).code == "GEOMETRY_MISMATCH"
    result = OntoImaged("label", "image", resample=True)(moved)["label"]
    # Two millimetres to the right are two voxels of one millimetre.
    assert torch.nonzero(result[0]).tolist() == [[5, 4, 5]]
    assert result.dtype == torch.uint8
    small = {"case": "a", "image": image, "label": volume(mask[:, :5])}
    assert "5 x 8 x 9" in str(refusal(OntoImaged("label", "image"), small))
    channels = {"case": "a", "image": image, "label": volume(torch.cat([mask, mask]))}
    assert refusal(OntoImaged("label", "image"), channels).code == "WRONG_CHANNELS"


def test_a_mask_without_geometry_lies_on_the_image_when_it_has_its_shape():
    mask = MetaTensor(torch.ones(1, *SHAPE, dtype=torch.uint8), meta={"has_geometry": False})
    item = {"case": "a", "image": volume(torch.zeros(1, *SHAPE)), "label": mask}
    assert torch.equal(OntoImaged("label", "image")(item)["label"].affine, AFFINE)


def test_sites_are_voxels_of_their_class_and_absent_classes_have_none():
    mask = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    mask[0, 2:5, 3, 1:8] = 1
    sites = RememberSitesd("label", 3)({"label": volume(mask)})["sites"]
    assert all(mask[0, x, y, z] == 1 for x, y, z in sites[0].tolist())
    assert len(torch.unique(sites[0], dim=0)) == 21
    assert (sites[1] == -1).all()


def test_padding_fills_a_patch_with_the_minimum_and_background_and_moves_the_affine():
    image, mask = torch.rand(2, *SHAPE) + 3, torch.ones(1, *SHAPE, dtype=torch.uint8)
    item = PadToPatchd("image", "label", (10, 8, 4))({"image": volume(image), "label": volume(mask)})
    assert item["image"].shape == (2, 10, 8, 9)
    assert torch.equal(item["image"][:, 1:8], image)
    assert float(item["image"][:, 0].max()) == float(image.min())
    assert int(item["label"].sum()) == mask.numel()
    torch.testing.assert_close(item["label"].affine[:3, 3], torch.tensor([3.0, 5.0, 6.0], dtype=torch.float64))


@pytest.fixture
def study(tmp_path):
    """Image and mask with their axes in different orders; the mask marks where the image is bright."""
    rng = np.random.default_rng(0)
    bright = np.zeros(SHAPE, dtype=np.uint8)
    bright[1:4, 2:6, 3:5] = 5
    bright[5, 6:, 6:] = 255
    image = (rng.random(SHAPE) * 50 + 900.0 * (bright > 0)).astype(np.int16)
    flipped = AFFINE.numpy() @ np.diag([-1.0, 1, 1, 1])
    flipped[:3, 3] = (AFFINE.numpy() @ [6, 0, 0, 1])[:3]
    nib.save(nib.Nifti1Image(image, AFFINE.numpy()), tmp_path / "i.nii.gz")
    nib.save(nib.Nifti1Image(bright[::-1], flipped), tmp_path / "m.nii.gz")
    return {"case": "a", "image": str(tmp_path / "i.nii.gz"), "label": str(tmp_path / "m.nii.gz")}


def test_image_and_mask_meet_on_the_working_grid_in_ras_order(study):
    item = training_preprocessing(facts(), patch_size=(8, 8, 8))(study)
    assert item["image"].shape == item["label"].shape == (1, 8, 8, 18)
    assert torch.allclose(item["image"].affine, item["label"].affine)
    bright = item["image"][0] > item["image"].max() * 0.8
    assert set(item["label"][0][bright].unique().tolist()) == {1, 2}
    assert bright.sum() > 0.5 * (item["label"] > 0).sum()


def test_in_evaluation_the_mask_stays_on_the_source_grid_and_the_image_is_that_of_inference(study):
    item = evaluation_preprocessing(facts())(study)
    assert item["label"].shape == item["shown"].shape == (1, *SHAPE)
    assert (item["shown"][0][item["label"][0] > 0] >= 900).all()
    alone = image_preprocessing(facts())({"case": "a", "image": study["image"]})
    assert torch.equal(alone["image"], item["image"])


@pytest.mark.parametrize("without", ["image", "label"])
def test_an_array_without_geometry_goes_with_the_other_voxel_by_voxel(study, tmp_path, without):
    stored = np.diag([-1.0, -1.5, 3.0, 1.0])[[2, 0, 1, 3]]  # along L, P and S, in another order
    for key in ("image", "label"):
        image = nib.load(study[key])
        array = np.asarray(image.dataobj)[:: -1 if key == "label" else 1]  # both in the order of the image
        study[key] = str(tmp_path / f"{key}.{'npy' if key == without else 'nii.gz'}")
        if key == without:
            np.save(study[key], array)
        else:
            nib.save(nib.Nifti1Image(array, stored), study[key])
    known = without == "label"
    item = evaluation_preprocessing(facts(has_geometry=known, spacing_mm=(1.0, 1.5, 1.5) if known else None))(study)
    mask = item["label"][0] > 0
    assert (item["shown"][0][mask] >= 900).all()
    assert (item["shown"][0][~mask] < 900).all()


def test_a_mask_without_geometry_of_another_shape_is_refused_even_where_masks_are_resampled(study, tmp_path):
    np.save(tmp_path / "m.npy", np.zeros((6, 8, 9), np.uint8))
    study["label"] = str(tmp_path / "m.npy")
    with pytest.raises(RuntimeError) as caught:
        evaluation_preprocessing(facts(), resample_labels=True)(study)
    found = find_refusal(caught.value)
    assert (found.code, found.fix) == ("GEOMETRY_MISMATCH", "resample the mask")


def test_a_refusal_names_the_case(study):
    from medvol.data.cache_chain import run

    chain = training_preprocessing(facts(label_values=(0, 5, 9)), patch_size=(8, 8, 8))
    with pytest.raises(MedvolError) as caught:
        run(chain, study, start=0, case="a")
    assert find_refusal(caught.value).code == "BAD_LABEL"
    assert "255" in str(caught.value)


def test_class_index_transform_keeps_the_grid():
    mask = volume(torch.tensor([[[[0, 5, 255]]]], dtype=torch.int16))
    result = ClassIndexd("label", facts())({"label": mask})["label"]
    assert result.flatten().tolist() == [0, 1, 2]
    assert torch.equal(result.affine, AFFINE)


def test_a_file_of_several_channels_is_read_when_the_study_has_several(study, tmp_path):
    image = nib.load(study["image"])
    both = np.stack([np.asarray(image.dataobj), 2 * np.asarray(image.dataobj)], axis=-1)
    nib.save(nib.Nifti1Image(both, image.affine), tmp_path / "both.nii.gz")
    item = training_preprocessing(facts(channels=("t1", "t2")), patch_size=(8, 8, 8))(
        {**study, "image": str(tmp_path / "both.nii.gz")}
    )
    assert item["image"].shape == (2, 8, 8, 18)
    first, second = item["image"].as_tensor().flatten(1)
    assert torch.corrcoef(torch.stack([first, second]))[0, 1] > 0.9999  # limits and rounding are each channel's own
    with pytest.raises(Exception) as wrapped:  # noqa: PT011 - MONAI wraps what a step raises
        training_preprocessing(facts(channels=("t1", "t2")), patch_size=(8, 8, 8))(study)
    assert find_refusal(wrapped.value).code == "WRONG_CHANNELS"
