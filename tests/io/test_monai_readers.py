"""The MONAI adapter: channels, metadata, narrow types, and no other reader behind it."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd, Spacingd
from PIL import Image

from medvol.errors import MedvolError
from medvol.io import ReadOptions, read_volume
from medvol.io.monai_readers import VolumeReader
from medvol.transforms.load import LoadVolumed


@pytest.fixture
def load():
    return Compose([LoadVolumed(keys="image"), EnsureChannelFirstd(keys="image")])


def test_it_is_a_load_imaged_so_that_clients_recognise_it():
    assert isinstance(LoadVolumed(keys="image"), LoadImaged)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (np.uint8, torch.uint8),
        (np.int16, torch.int16),
        (np.uint16, torch.int32),
        (np.uint32, torch.int64),
        (np.int32, torch.int32),
        (np.float32, torch.float32),
    ],
)
def test_types_stay_as_narrow_as_torch_computes_with(tmp_path, voxels, affine, write_nifti, load, dtype, expected):
    array = ((voxels + 100) % 256).astype(dtype)
    item = load({"image": str(write_nifti(tmp_path / "a.nii.gz", array)), "case": "a"})
    image = item["image"]
    assert isinstance(image, MetaTensor)
    assert image.dtype == expected
    np.testing.assert_array_equal(image.numpy()[0], array)
    np.testing.assert_allclose(image.affine.numpy(), affine, atol=1e-5)
    assert image.meta["has_geometry"] is True
    assert image.meta["space"] == "RAS"
    assert image.meta["filename_or_obj"] == str(tmp_path / "a.nii.gz")


def test_affine_and_shape_follow_spacing_and_orientation(tmp_path, voxels, write_nifti, load):
    path = write_nifti(tmp_path / "a.nii.gz", voxels.astype(np.float32))
    chain = Compose(
        [load, Orientationd(keys="image", axcodes="RAS", labels=None), Spacingd(keys="image", pixdim=(1.0, 1.0, 1.0))]
    )
    image = chain({"image": str(path)})["image"]
    np.testing.assert_allclose(np.linalg.norm(image.affine.numpy()[:3, :3], axis=0), 1.0, atol=1e-4)


def test_several_references_are_channels_in_their_order(tmp_path, voxels, write_nifti, load):
    paths = [str(write_nifti(tmp_path / f"{name}.nii.gz", voxels + name)) for name in (0, 1, 2)]
    image = load({"image": paths})["image"]
    assert image.shape == (3, 7, 8, 9)
    np.testing.assert_array_equal(image.numpy(), np.stack([voxels, voxels + 1, voxels + 2]))
    assert image.meta["filename_or_obj"] == paths[0]


def test_channels_of_another_shape_are_refused_with_both_shapes(tmp_path, voxels, write_nifti, load):
    paths = [str(write_nifti(tmp_path / "a.nii", voxels)), str(write_nifti(tmp_path / "b.nii", voxels[:5]))]
    with pytest.raises(RuntimeError) as caught:
        load({"image": paths, "case": "c1"})
    refusal = caught.value.__cause__
    assert isinstance(refusal, MedvolError)
    assert (refusal.code, refusal.case) == ("GEOMETRY_MISMATCH", "c1")
    assert "(5, 8, 9)" in str(refusal)
    assert "(7, 8, 9)" in str(refusal)


def test_channels_elsewhere_in_space_are_refused(tmp_path, voxels, write_nifti, refused):
    moved = {292: ("<f", 99.0)}  # srow_x, offset
    paths = [str(write_nifti(tmp_path / "a.nii", voxels)), str(write_nifti(tmp_path / "b.nii", voxels, moved))]
    with refused("GEOMETRY_MISMATCH", "case c1", "another place"):
        LoadVolumed(keys="image")({"image": paths, "case": "c1"})


def test_channels_with_and_without_geometry_are_refused(tmp_path, voxels, write_nifti, refused):
    np.save(tmp_path / "b.npy", voxels)
    with refused("GEOMETRY_MISMATCH", "geometry"):
        LoadVolumed(keys="image")({"image": [write_nifti(tmp_path / "a.nii", voxels), tmp_path / "b.npy"]})


def test_colour_channels_come_first(tmp_path, load):
    Image.fromarray(np.arange(168, dtype=np.uint8).reshape(8, 7, 3)).save(tmp_path / "a.png")
    image = load({"image": tmp_path / "a.png"})["image"]
    assert image.shape == (3, 7, 8)
    assert image[:, 6, 2].tolist() == [60, 61, 62]
    two = load({"image": [tmp_path / "a.png", tmp_path / "a.png"]})["image"]
    assert two.shape == (6, 7, 8)


def test_a_grey_image_gets_one_channel(tmp_path, load):
    Image.fromarray(np.arange(56, dtype=np.uint8).reshape(8, 7)).save(tmp_path / "a.png")
    image = load({"image": tmp_path / "a.png"})["image"]
    assert image.shape == (1, 7, 8)
    assert image.meta["has_geometry"] is False


def test_options_come_in_with_the_read_function(tmp_path, write_nifti):
    path = write_nifti(tmp_path / "a.nii", np.zeros((7, 8, 9, 2), np.int16))
    reader = VolumeReader(read=partial(read_volume, options=ReadOptions(channels=True)))
    chain = Compose([LoadVolumed(keys="image", reader=reader), EnsureChannelFirstd(keys="image")])
    assert chain({"image": str(path)})["image"].shape == (2, 7, 8, 9)


def test_rows_and_series_are_loaded_by_reference(tmp_path, voxels, write_series, load):
    np.savez(tmp_path / "a.npz", x=np.stack([voxels, voxels + 1]), y=voxels)
    write_series(tmp_path / "ct", voxels)
    np.testing.assert_array_equal(load({"image": f"{tmp_path}/a.npz#x[1]"})["image"].numpy()[0], voxels + 1)
    image = load({"image": f"{tmp_path}/ct#1.2.3.4"})["image"]
    np.testing.assert_array_equal(image.numpy()[0], voxels)
    assert "SECRETX" not in repr(image.meta)


def test_a_refusal_names_the_case_and_no_other_reader_is_tried(tmp_path, voxels, write_nifti, refused, monkeypatch):
    path = write_nifti(tmp_path / "a.nii.gz", voxels)
    data = bytearray(path.read_bytes())
    data[-8] ^= 1  # MONAI's own readers accept a wrong checksum
    path.write_bytes(data)

    def never(*args, **kwargs):
        raise AssertionError("a built-in reader was tried")

    monkeypatch.setattr("monai.data.image_reader.NibabelReader.read", never)
    with refused("CORRUPT", "case patient_7"):
        LoadVolumed(keys="image")({"image": str(path), "case": "patient_7"})


def test_items_of_unlike_notes_collate_into_a_batch(tmp_path, voxels, write_nifti, load):
    plain = write_nifti(tmp_path / "a.nii", voxels)
    noted = write_nifti(tmp_path / "b.nii", voxels[..., None])
    (batch,) = DataLoader(Dataset([{"image": str(plain)}, {"image": str(noted)}], load), batch_size=2)
    assert batch["image"].shape == (2, 1, 7, 8, 9)


def test_the_transform_survives_pickling(tmp_path, voxels, write_nifti):
    path = write_nifti(tmp_path / "a.nii", voxels)
    load = pickle.loads(pickle.dumps(LoadVolumed(keys="image")))
    np.testing.assert_array_equal(load({"image": str(path)})["image"].numpy(), voxels)


def test_metadata_are_plain_values(tmp_path, voxels, write_nifti):
    reader = VolumeReader()
    assert reader.verify_suffix("anything")
    _, meta = reader.get_data(reader.read(str(write_nifti(tmp_path / "a.nii", voxels))))
    assert {type(value) for value in meta.values()} <= {np.ndarray, str, int, bool}
    assert meta["original_channel_dim"] == "no_channel"
    np.testing.assert_array_equal(meta["spatial_shape"], (7, 8, 9))
