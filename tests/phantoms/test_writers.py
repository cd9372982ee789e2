"""Phantoms as files, read back by the tools that users have."""

import csv

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813 - its usual name
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from medvol.errors import MedvolError
from medvol.geometry import Volume, affine_from, apply_affine, lps_to_ras, same_grid
from medvol.phantoms.body import body, side_of
from medvol.phantoms.dicom import Identity, write_dicom_series
from medvol.phantoms.grid import oblique_affine, oblique_grid
from medvol.phantoms.shapes import ball
from medvol.phantoms.writers import to_bytes, write_nifti, write_npy, write_png, write_rows, write_stacked

SHAPE = (7, 8, 9)
OBLIQUE = oblique_affine(SHAPE)


def numbered(dtype=np.int16, affine=OBLIQUE):
    """No two voxels alike, negative values among them."""
    return Volume((np.arange(504).reshape(SHAPE) * 3 - 700).astype(dtype), affine)


def read_series(folder):
    """The series as SimpleITK reads it, in RAS+."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine = lps_to_ras(affine_from(image.GetSpacing(), direction, image.GetOrigin()))
    return Volume(sitk.GetArrayFromImage(image).T, affine)


def assert_same_voxels_at_same_places(first, second, *, atol=0.0):
    """Every voxel of the first is at the same millimetres in the second, with the same value."""
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in first.array.shape], indexing="ij"), axis=-1).reshape(-1, 3)
    index = apply_affine(np.linalg.inv(second.affine), apply_affine(first.affine, voxels))
    np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
    there = second.array[tuple(np.rint(index).astype(int).T)]
    np.testing.assert_allclose(there, first.array.reshape(-1), atol=atol)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
def test_nifti_comes_back_equal_with_both_transforms_set(tmp_path, name, dtype):
    volume = numbered(dtype)
    image = nibabel.load(write_nifti(volume, tmp_path / name))
    assert image.get_data_dtype() == dtype
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), volume.array)
    sform, sform_code = image.get_sform(coded=True)
    qform, qform_code = image.get_qform(coded=True)
    assert (sform_code, qform_code) == (1, 1)
    np.testing.assert_allclose(sform, volume.affine, atol=1e-5)
    np.testing.assert_allclose(qform, sform, atol=1e-4)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_simpleitk_puts_nifti_voxels_where_the_affine_says(tmp_path):
    image = sitk.ReadImage(str(write_nifti(numbered(), tmp_path / "a.nii.gz")))
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine = lps_to_ras(affine_from(image.GetSpacing(), direction, image.GetOrigin()))
    assert same_grid(affine, OBLIQUE, SHAPE, tolerance_voxels=1e-3)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T, numbered().array)


def test_equal_volumes_give_equal_bytes_whatever_the_file_is_called(tmp_path):
    first, second = (write_nifti(numbered(), tmp_path / name).read_bytes() for name in ("a.nii.gz", "b.nii.gz"))
    assert first == second
    pngs = [write_png(numbered(), tmp_path / name).read_bytes() for name in ("a.png", "b.png")]
    assert pngs[0] == pngs[1]


def test_a_boolean_mask_becomes_uint8(tmp_path):
    image = nibabel.load(write_nifti(Volume(numbered().array > 0, OBLIQUE), tmp_path / "m.nii.gz"))
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), numbered().array > 0)


def test_a_sheared_affine_is_not_written_as_nifti(tmp_path):
    sheared = OBLIQUE.copy()
    sheared[:3, 2] += 0.3 * sheared[:3, 1]
    with pytest.raises(MedvolError) as refusal:
        write_nifti(numbered(affine=sheared), tmp_path / "a.nii")
    assert refusal.value.code == "SHEARED"
    assert not (tmp_path / "a.nii").exists()


@pytest.mark.parametrize("write", [write_nifti, lambda volume, path: write_npy(volume.array, path)])
def test_an_unknown_suffix_is_refused(tmp_path, write):
    with pytest.raises(MedvolError, match=r"a\.img"):
        write(numbered(), tmp_path / "a.img")


def test_npy_comes_back_in_c_order(tmp_path):
    array = np.load(write_npy(numbered().array.T, tmp_path / "a.npy"), allow_pickle=False)
    assert array.flags.c_contiguous
    np.testing.assert_array_equal(array, numbered().array.T)


def test_png_columns_run_along_x_and_rows_along_y(tmp_path):
    volume = numbered()
    with Image.open(write_png(volume, tmp_path / "a.png", index=2, window=(-700, -700 + 255 * 4))) as image:
        assert (image.mode, image.size) == ("L", (7, 8))
        expected = np.rint(np.clip((volume.array[:, :, 2] + 700.0) / 4, 0, 255))
        np.testing.assert_array_equal(np.asarray(image).T, expected)


def test_png_takes_the_middle_slice_and_the_whole_range_by_default(tmp_path):
    volume = numbered()
    with Image.open(write_png(volume, tmp_path / "a.png")) as image:
        np.testing.assert_array_equal(np.asarray(image).T, to_bytes(volume.array[:, :, 4], -700, 809))


@pytest.mark.parametrize("index", [-1, 9])
def test_a_slice_outside_the_volume_is_refused(tmp_path, index):
    with pytest.raises(MedvolError, match="0 to 8"):
        write_png(numbered(), tmp_path / "a.png", index=index)


def test_a_window_maps_its_ends_to_0_and_255():
    assert to_bytes(np.array([-9, 0, 50, 100, 999]), 0, 100).tolist() == [0, 0, 128, 255, 255]
    assert to_bytes(np.array([5, 5]), 5, 5).tolist() == [0, 0]


def test_stacked_arrays_are_named_as_keras_examples_name_them(tmp_path):
    data = np.arange(48, dtype=np.uint8).reshape(2, 2, 3, 4)
    files = write_stacked(tmp_path / "new", {"train": (data, np.array([0, 1])), "test": (data[:1], np.array([1]))})
    names = ["train_data.npy", "train_labels.npy", "test_data.npy", "test_labels.npy"]
    assert [file.name for file in files] == names
    np.testing.assert_array_equal(np.load(files[0]), data)
    with pytest.raises(MedvolError, match="one label per volume"):
        write_stacked(tmp_path, {"train": (data, np.array([0]))})


def test_rows_come_back_as_written(tmp_path):
    rows = [{"case": "a", "size, mm": 1.5, "label": None}, {"case": 'b "x"', "size, mm": 2, "label": "é"}]
    path = write_rows(rows, tmp_path / "a.csv")
    with path.open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [
            {"case": "a", "size, mm": "1.5", "label": ""},
            {"case": 'b "x"', "size, mm": "2", "label": "é"},
        ]
    assert b"\r" not in path.read_bytes()


@pytest.mark.parametrize("rows", [[], [{"a": 1}, {"b": 1}], [{"a": 1, "b": 2}, {"b": 2, "a": 1}]])
def test_rows_with_differing_columns_are_refused(tmp_path, rows):
    with pytest.raises(MedvolError):
        write_rows(rows, tmp_path / "a.csv")


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize(
    "affine",
    [OBLIQUE, oblique_affine(SHAPE, flip=(False,) * 3), affine_from((2.0, 1.0, 3.0), origin=(9, -8, 7))],
    ids=["left-handed", "right-handed", "straight"],
)
def test_simpleitk_reads_the_series_at_the_same_millimetres(tmp_path, modality, affine):
    volume = numbered(affine=affine)
    write_dicom_series(volume, tmp_path, identity=Identity(modality=modality))
    assert_same_voxels_at_same_places(volume, read_series(tmp_path))


def test_the_liver_stays_on_the_right_through_dicom(tmp_path):
    phantom = body(grid=oblique_grid((80, 60, 28)))
    write_dicom_series(phantom.mask, tmp_path)
    series = read_series(tmp_path)
    assert {name: side_of(series, label) for name, label in phantom.answer["label"].items()} == phantom.answer["side"]


def test_fractions_are_stored_to_half_a_step_of_65536(tmp_path):
    volume = ball(grid=oblique_grid(), values=(37.5, -12.25)).image
    write_dicom_series(volume, tmp_path, identity=Identity(modality="MR"))
    step = (37.5 + 12.25) / 65535
    assert_same_voxels_at_same_places(volume, read_series(tmp_path), atol=0.51 * step)


@settings(max_examples=25, deadline=None)
@given(st.integers(-32768, 32767), st.integers(0, 65535))
@example(-500, 65535)  # the usual offset of 1024 would not fit
def test_whole_numbers_within_16_bits_are_stored_exactly(low, span):
    import tempfile

    array = np.array([low, low + span, low + span // 2]).reshape(3, 1, 1)
    with tempfile.TemporaryDirectory() as folder:
        (path,) = write_dicom_series(Volume(array, np.eye(4)), folder)
        one = pydicom.dcmread(path)
        stored = one.pixel_array[0].astype(int) * float(one.RescaleSlope) + float(one.RescaleIntercept)
        assert stored.tolist() == array[:, 0, 0].tolist()
        assert float(one.RescaleSlope) == 1.0


def test_a_constant_volume_keeps_its_value(tmp_path):
    (path,) = write_dicom_series(Volume(np.full((3, 4, 1), 0.3), np.eye(4)), tmp_path)
    one = pydicom.dcmread(path)
    np.testing.assert_allclose(one.pixel_array * float(one.RescaleSlope) + float(one.RescaleIntercept), 0.3)


def test_a_tilted_stack_keeps_every_position(tmp_path):
    tilted = affine_from((1.0, 1.0, 3.0))
    tilted[1, 2] = 0.8  # 15 degrees
    files = write_dicom_series(numbered(affine=tilted), tmp_path)
    positions = np.array([pydicom.dcmread(file).ImagePositionPatient for file in files], dtype=float)
    expected = lps_to_ras(tilted)[:3, 3] + np.arange(9)[:, None] * lps_to_ras(tilted)[:3, 2]
    np.testing.assert_allclose(positions, expected, atol=1e-9)
    assert float(pydicom.dcmread(files[0]).SliceThickness) == pytest.approx(3.0)


def test_rows_and_columns_that_are_not_at_a_right_angle_are_refused(tmp_path):
    sheared = np.eye(4)
    sheared[0, 1] = 0.2
    with pytest.raises(MedvolError, match="SHEARED"):
        write_dicom_series(numbered(affine=sheared), tmp_path)


def test_a_series_says_the_same_in_every_slice_and_each_slice_has_its_own_uid(tmp_path):
    files = write_dicom_series(numbered(), tmp_path, identity=Identity(patient="p007", description="case 1"))
    slices = [pydicom.dcmread(file) for file in files]
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "ImageOrientationPatient", "Rows"):
        assert len({str(one[keyword].value) for one in slices}) == 1
    uids = {one.SOPInstanceUID for one in slices}
    assert len(uids) == 9
    assert all(uid.is_valid for uid in uids)
    assert all(one.file_meta.MediaStorageSOPInstanceUID == one.SOPInstanceUID for one in slices)
    assert [one.InstanceNumber for one in slices] == list(range(1, 10))
    assert (slices[0].PatientID, slices[0].Modality, slices[0].BitsAllocated) == ("p007", "CT", 16)
    assert (slices[0].Rows, slices[0].Columns) == (8, 7)
    assert [float(x) for x in slices[0].PixelSpacing] == pytest.approx([1.5, 1.0])  # between rows, between columns


def test_equal_series_give_equal_bytes_and_other_voxels_another_series(tmp_path):
    first = write_dicom_series(numbered(), tmp_path / "a")
    second = write_dicom_series(numbered(), tmp_path / "b")
    other = write_dicom_series(Volume(numbered().array + np.int16(1), OBLIQUE), tmp_path / "c")
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    here, there = pydicom.dcmread(first[0]), pydicom.dcmread(other[0])
    assert here.StudyInstanceUID == there.StudyInstanceUID
    assert here.SeriesInstanceUID != there.SeriesInstanceUID
    assert here.SOPInstanceUID != there.SOPInstanceUID


@pytest.mark.parametrize(
    "volume",
    [Volume(np.zeros((3, 4)), np.eye(4)), Volume(np.full((3, 4, 2), np.nan), np.eye(4))],
    ids=["2D", "nan"],
)
def test_voxels_that_make_no_series_are_refused(tmp_path, volume):
    with pytest.raises(MedvolError, match="all values finite"):
        write_dicom_series(volume, tmp_path)


@pytest.mark.parametrize("arguments", [{"modality": "US"}, {"patient": "x" * 61}, {"study": "x" * 17}])
def test_identities_that_no_file_can_hold_are_refused(arguments):
    with pytest.raises(MedvolError, match="BAD_ARGUMENT"):
        Identity(**arguments)
