"""Series whose truth is known: order, place, values; and every refusal by name."""

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from medvol.errors import MedvolError
from medvol.geometry import apply_affine
from medvol.io import ReadOptions, dicom_file, dicom_series, read_volume
from medvol.io.dicom_series import list_series, read_series


def test_slices_stacked_against_the_normal_keep_every_voxel_in_its_place(tmp_path, voxels, right_affine, write_series):
    left_handed = right_affine @ np.diag([1.0, 1.0, -1.0, 1.0])
    write_series(tmp_path, voxels, matrix=left_handed)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, voxels[..., ::-1])
    for index in ((0, 0, 0), (6, 7, 8), (3, 1, 5)):
        mirrored = (*index[:2], 8 - index[2])
        np.testing.assert_allclose(apply_affine(volume.affine, index), apply_affine(left_handed, mirrored), atol=1e-4)


def test_voxels_and_places_are_those_written_whatever_names_and_numbers_say(
    tmp_path, voxels, right_affine, write_series
):
    write_series(tmp_path, voxels)
    volume = read_volume(tmp_path)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, voxels)
    np.testing.assert_allclose(volume.affine, right_affine, atol=1e-5)
    assert volume.has_geometry
    assert volume.notes == ()


def test_memory_stays_slice_by_slice(tmp_path, voxels, write_series):
    write_series(tmp_path, voxels)
    assert read_volume(tmp_path).array.T.flags.c_contiguous


def test_an_ordered_series_agrees_with_simpleitk(tmp_path, voxels, write_series):
    files = write_series(tmp_path, voxels)
    image = sitk.ReadImage([str(path) for path in files])
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    for index in ((0, 0, 0), (6, 7, 8), (3, 1, 5)):
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(apply_affine(volume.affine, index), (-x, -y, z), atol=1e-4)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_every_encoding_gives_the_same_volume(tmp_path, voxels, right_affine, write_series, syntax):
    write_series(tmp_path, voxels, syntax=syntax)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, voxels)
    np.testing.assert_allclose(volume.affine, right_affine, atol=1e-5)


def test_run_length_compression_is_read(tmp_path, voxels, write_series):
    write_series(
        tmp_path, voxels, edit=lambda dataset, index: dataset.compress(RLELossless, generate_instance_uid=False)
    )
    np.testing.assert_array_equal(read_volume(tmp_path).array, voxels)


def test_files_without_suffix_and_preamble_in_nested_folders_are_found(tmp_path, voxels, write_series):
    for position, path in enumerate(write_series(tmp_path / "in", voxels, syntax=ImplicitVRLittleEndian)):
        folder = tmp_path / "out" / f"{position % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        dataset = pydicom.dcmread(path)
        bare = Dataset()
        bare.update({tag: dataset[tag] for tag in dataset.keys()})  # noqa: SIM118 - a dataset yields elements
        bare.save_as(folder / f"IM{position}", implicit_vr=True, little_endian=True)
    (tmp_path / "out" / "notes.txt").write_text("not DICOM")
    (tmp_path / "out" / "loop").symlink_to(tmp_path / "out")
    np.testing.assert_array_equal(read_volume(tmp_path / "out").array, voxels)


# Values


def _set(**values):
    def edit(dataset, index):
        for keyword, value in values.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)

    return edit


def test_an_intercept_gives_hounsfield_units_in_int16(tmp_path, voxels, write_series):
    write_series(tmp_path, voxels, edit=_set(RescaleIntercept=-1024))
    volume = read_volume(tmp_path)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, voxels - 1024)


def test_a_slope_per_slice_gives_float32(tmp_path, voxels, write_series):
    def edit(dataset, index):
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5 * (index + 1), index

    write_series(tmp_path, voxels, edit=edit)
    volume = read_volume(tmp_path)
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, voxels * (0.5 * (np.arange(9) + 1)) + np.arange(9))


@pytest.mark.parametrize(("value", "intercept"), [(60000, 0), (40000, -1024)])
def test_values_beyond_int16_give_float32_even_when_met_late(tmp_path, voxels, write_series, value, intercept):
    def edit(dataset, index):
        dataset.PixelRepresentation = 0
        dataset.RescaleIntercept = intercept
        stored = np.full((8, 7), value if index == 5 else index, np.uint16)
        dataset.PixelData = stored.tobytes()

    write_series(tmp_path, voxels, edit=edit)
    volume = read_volume(tmp_path)
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(np.unique(volume.array[..., 5]), value + intercept)
    np.testing.assert_array_equal(np.unique(volume.array[..., 2]), 2 + intercept)


def test_unused_high_bits_are_masked_and_the_sign_extended(tmp_path, voxels, write_series):
    def edit(dataset, index):
        dataset.BitsStored, dataset.HighBit = 12, 11
        stored = np.frombuffer(dataset.PixelData, np.uint16)
        dataset.PixelData = ((stored & 0x0FFF) | 0x5000).tobytes()  # an overlay in the bits above

    write_series(tmp_path, voxels, edit=edit)
    np.testing.assert_array_equal(read_volume(tmp_path).array, voxels)


def test_monochrome1_is_noted_and_not_inverted(tmp_path, voxels, write_series):
    write_series(tmp_path, voxels, edit=_set(PhotometricInterpretation="MONOCHROME1"))
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, voxels)
    assert "MONOCHROME1" in volume.notes[0]


def test_a_modality_table_is_applied(tmp_path, voxels, write_series):
    def edit(dataset, index):
        del dataset.RescaleSlope, dataset.RescaleIntercept
        dataset.PixelRepresentation = 0
        dataset.PixelData = np.full((8, 7), index, np.uint16).tobytes()
        table = Dataset()
        table.LUTDescriptor = [16, 0, 16]
        table.add_new(0x00283006, "US", [100 * step for step in range(16)])
        table.ModalityLUTType = "US"
        dataset.ModalityLUTSequence = Sequence([table])

    write_series(tmp_path, voxels, edit=edit)
    np.testing.assert_array_equal(read_volume(tmp_path).array[3, 3], 100 * np.arange(9))


# Groups


def test_two_series_are_refused_and_read_by_uid(tmp_path, voxels, write_series, refused):
    write_series(tmp_path / "a", voxels)
    write_series(tmp_path / "b", voxels[:5] + 1, series="1.2.3.5")
    with refused("MIXED_SERIES", "2 images in 2 series", "folder#UID"):
        read_volume(tmp_path)
    np.testing.assert_array_equal(read_volume(f"{tmp_path}#1.2.3.5").array, voxels[:5] + 1)
    with pytest.raises(MedvolError) as caught:
        read_volume(tmp_path)
    assert [line[:8] for line in caught.value.details] == ["1.2.3.4:", "1.2.3.5:"]


def test_an_unknown_uid_is_refused(tmp_path, voxels, write_series, refused):
    write_series(tmp_path, voxels)
    with refused("NOT_FOUND", "did you mean '1.2.3.4'?"):
        read_volume(f"{tmp_path}#1.2.3.44")


@pytest.mark.parametrize(
    "values",
    [
        {"ImageOrientationPatient": [0, 1, 0, 0, 0, 1]},
        {"PixelSpacing": [2.0, 2.0]},
        {"FrameOfReferenceUID": "1.9"},
        {"StudyInstanceUID": "1.2.4"},
    ],
    ids=str,
)
def test_images_that_differ_within_a_series_are_refused(tmp_path, voxels, write_series, refused, values):
    write_series(tmp_path, voxels, edit=lambda dataset, index: index < 4 or _set(**values)(dataset, index))
    with refused("MIXED_SERIES", "2 images in 1 series"):
        read_volume(tmp_path)


def test_orientations_that_drift_by_rounding_are_one_image(tmp_path, voxels, write_series):
    def edit(dataset, index):
        values = [float(one) for one in dataset.ImageOrientationPatient]
        dataset.ImageOrientationPatient = [f"{one + 4e-4 * (index % 2):.6f}" for one in values]

    write_series(tmp_path, voxels, edit=edit)
    np.testing.assert_array_equal(read_volume(tmp_path).array, voxels)


def test_a_localizer_in_the_series_is_left_out_with_a_note(tmp_path, voxels, write_series):
    write_series(tmp_path, voxels)
    edit = _set(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    path = write_series(tmp_path / "scout", voxels[..., :1], edit=edit)[0]
    shutil.move(path, tmp_path / "scout.dcm")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, voxels)
    assert "1 localizer files left out: scout.dcm" in volume.notes


def test_files_without_an_image_are_skipped_with_a_note(tmp_path, voxels, write_series):
    write_series(tmp_path, voxels)
    for name in ("rtstruct.dcm", "test-SR.dcm"):
        shutil.copy(get_testdata_file(name), tmp_path)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, voxels)
    assert volume.notes == ("2 DICOM files without an image skipped",)


def test_a_folder_without_images_is_refused(tmp_path, refused):
    with refused("NO_DICOM", "no DICOM file"):
        read_volume(tmp_path)
    shutil.copy(get_testdata_file("rtstruct.dcm"), tmp_path)
    with refused("NO_DICOM", "none with an image"):
        read_volume(tmp_path)


# Positions


def test_the_same_file_twice_is_dropped_and_noted(tmp_path, voxels, write_series):
    files = write_series(tmp_path, voxels)
    shutil.copy(files[4], tmp_path / "copy.dcm")
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, voxels)
    assert "1 files dropped" in volume.notes[0]


def test_other_pixels_at_the_same_position_are_refused_naming_both(tmp_path, voxels, write_series, refused):
    files = write_series(tmp_path, voxels)
    dataset = pydicom.dcmread(files[4])
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(tmp_path / "other.dcm")
    with refused("DUPLICATE_POSITION", files[4].name, "other.dcm"):
        read_volume(tmp_path)


def test_the_same_pixels_with_another_rescale_are_another_image(tmp_path, voxels, write_series, refused):
    files = write_series(tmp_path, voxels)
    dataset = pydicom.dcmread(files[4])
    dataset.RescaleSlope = 2
    dataset.save_as(tmp_path / "other.dcm")
    with refused("DUPLICATE_POSITION"):
        read_volume(tmp_path)


def test_two_volumes_that_no_tag_tells_apart_are_refused_with_their_number(tmp_path, voxels, write_series, refused):
    write_series(tmp_path / "a", voxels)
    write_series(tmp_path / "b", voxels + 1)
    with refused("DUPLICATE_POSITION", "18 images in 9 places"):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    ("gone", "words"), [((4,), ("1 missing",)), ((2, 6), ("2 missing",)), ((3, 4), ("2 missing",))]
)
def test_missing_slices_are_refused_between_their_neighbours(tmp_path, voxels, write_series, refused, gone, words):
    files = write_series(tmp_path, voxels)
    for index in gone:
        files[index].unlink()
    with refused("MISSING_SLICES", files[gone[0] - 1].name, "gap of", "3 mm", *words):
        read_volume(tmp_path)


def test_one_of_three_gaps_doubled_is_a_missing_slice_with_three_files(tmp_path, voxels, write_series, refused):
    files = write_series(tmp_path, voxels[..., :4])
    files[1].unlink()
    with refused("MISSING_SLICES", "6 mm"):
        read_volume(tmp_path)


def test_missing_slices_at_an_end_leave_a_note(tmp_path, voxels, write_series):
    def edit(dataset, index):
        dataset.InstanceNumber = 1 if index == 0 else index + 3

    write_series(tmp_path, voxels, edit=edit)
    assert "at the ends" in read_volume(tmp_path).notes[0]


def _move_along_normal(shift):
    def edit(dataset, index):
        cosines = np.array(dataset.ImageOrientationPatient, float)
        normal = np.cross(cosines[:3], cosines[3:])
        position = np.array(dataset.ImagePositionPatient, float) + normal * shift(index)
        dataset.ImagePositionPatient = [f"{one:.6f}" for one in position]

    return edit


@pytest.mark.parametrize(("jitter", "accepted"), [(0.02, True), (0.1, False)])
def test_steps_may_differ_by_two_percent(tmp_path, voxels, right_affine, write_series, refused, jitter, accepted):
    write_series(tmp_path, voxels, edit=_move_along_normal(lambda index: jitter * (index == 4)))
    if accepted:
        np.testing.assert_allclose(read_volume(tmp_path).affine, right_affine, atol=1e-4)
    else:
        with refused("UNEVEN_SPACING", "2.9 to 3.1 mm"):
            read_volume(tmp_path)


def test_two_spacings_in_one_series_are_refused(tmp_path, voxels, write_series, refused):
    write_series(tmp_path, voxels, edit=_move_along_normal(lambda index: 1.2 * max(index - 4, 0)))
    with refused("UNEVEN_SPACING", "3 to 4.2 mm"):
        read_volume(tmp_path)


def test_a_gantry_tilt_stays_in_the_affine(tmp_path, voxels, right_affine, write_series):
    tilted = right_affine.copy()
    tilted[:3, 2] += right_affine[:3, 1] / 1.5 * 3.0 * np.tan(np.radians(13.5))
    write_series(tmp_path, voxels, matrix=tilted)

    def truth(point):
        return tilted[:3, :3] @ point + tilted[:3, 3]

    # The helper writes spacing from the columns, so the thickness differs; positions are what counts.
    volume = read_volume(tmp_path)
    np.testing.assert_allclose(apply_affine(volume.affine, (6, 7, 8)), truth(np.array([6, 7, 8])), atol=1e-4)
    assert volume.notes == ("gantry tilt or shear of 13.5 degrees kept in the affine",)


def test_a_slice_off_the_line_is_refused(tmp_path, voxels, write_series, refused):
    def edit(dataset, index):
        if index == 4:
            row = np.array(dataset.ImageOrientationPatient, float)[:3]
            dataset.ImagePositionPatient = [
                f"{one:.6f}" for one in np.array(dataset.ImagePositionPatient, float) + 2 * row
            ]

    write_series(tmp_path, voxels, edit=edit)
    with refused("UNEVEN_SPACING", "2 mm off the straight line"):
        read_volume(tmp_path)


# Missing or wrong attributes


@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"])
@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_or_empty_attribute_of_geometry_is_refused_by_name(
    tmp_path, voxels, write_series, refused, keyword, value
):
    write_series(tmp_path, voxels, edit=_set(**{keyword: value}))
    with refused("NO_GEOMETRY", keyword):
        read_volume(tmp_path)


def test_a_missing_pixel_spacing_can_be_assumed(tmp_path, voxels, right_affine, write_series):
    write_series(tmp_path, voxels, edit=_set(PixelSpacing=None))
    volume = read_volume(tmp_path, options=ReadOptions(assume_spacing_mm=(1.0, 1.5, 9.0)))
    np.testing.assert_allclose(volume.affine, right_affine, atol=1e-5)
    assert "assumed" in volume.notes[0]


def test_a_single_slice_takes_its_thickness_with_a_note(tmp_path, voxels, right_affine, write_series, refused):
    path = write_series(tmp_path, voxels)[2]
    volume = read_volume(path)
    assert volume.array.shape == (7, 8, 1)
    np.testing.assert_allclose(np.abs(volume.spacing_mm), (1.0, 1.5, 3.0), atol=1e-5)
    np.testing.assert_allclose(volume.affine[:3, 3], apply_affine(right_affine, (0, 0, 2)), atol=1e-5)
    assert "SliceThickness 3 mm" in volume.notes[0]
    bare = write_series(tmp_path / "bare", voxels[..., :1], edit=_set(SliceThickness=None))[0]
    with refused("NO_GEOMETRY", "SliceThickness"):
        read_volume(bare)


def test_directions_that_are_no_unit_vectors_are_refused(tmp_path, voxels, write_series, refused):
    write_series(tmp_path, voxels, edit=_set(ImageOrientationPatient=[1, 0, 0, 0.1, 1, 0]))
    with refused("BAD_AFFINE", "unit length or right angle"):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"NumberOfFrames": 2, "Rows": 4}, "MULTIFRAME"),
        ({"SharedFunctionalGroupsSequence": Sequence([Dataset()])}, "ENHANCED_MULTIFRAME"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "SIEMENS_MOSAIC"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "BitsAllocated": 8, "Rows": 4}, "COLOUR_IMAGE"),
        ({"BitsAllocated": 32, "Rows": 4}, "BAD_DTYPE"),
        ({"RescaleSlope": 0}, "BAD_DICOM"),
    ],
    ids=str,
)
def test_what_is_no_grey_slice_is_refused_by_name(tmp_path, voxels, write_series, refused, values, code):
    write_series(tmp_path, voxels, edit=_set(**values))
    with refused(code, ".dcm"):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("examples_rgb_color.dcm", "COLOUR_IMAGE"),
        ("examples_palette.dcm", "COLOUR_IMAGE"),
        ("MR_truncated.dcm", "TRUNCATED"),
    ],
)
def test_files_that_come_with_pydicom_are_refused_by_name(name, code, refused):
    with refused(code):
        read_volume(get_testdata_file(name))


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm",
                                  "MR_small_implicit.dcm", "MR_small_expb.dcm"])  # fmt: skip
def test_slices_that_come_with_pydicom_have_pydicoms_values(name):
    dataset = pydicom.dcmread(get_testdata_file(name))
    expected = dataset.pixel_array * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
    volume = read_volume(get_testdata_file(name))
    np.testing.assert_array_equal(volume.array[..., 0].T, expected)


# Damage


@pytest.mark.parametrize("kept", [0.98, 0.6, 0.2])
def test_a_truncated_file_is_refused_by_name(tmp_path, voxels, write_series, kept):
    path = write_series(tmp_path, voxels)[4]
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(MedvolError, match=f"(TRUNCATED|BAD_DICOM).*{path.name}"):
        read_volume(tmp_path)


def test_pixels_fewer_than_the_header_promises_are_refused(tmp_path, voxels, write_series, refused):
    write_series(tmp_path, voxels, edit=_set(Rows=80))
    with refused("TRUNCATED", "112 bytes of pixels", "expected 1,120"):
        read_volume(tmp_path)


def test_a_cut_compressed_file_is_refused(tmp_path, voxels, write_series):
    edit = lambda dataset, index: dataset.compress(RLELossless, generate_instance_uid=False)  # noqa: E731
    path = write_series(tmp_path, voxels, edit=edit)[4]
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(MedvolError, match=f"(TRUNCATED|BAD_DICOM).*{path.name}"):
        read_volume(tmp_path)


def test_an_attribute_that_is_no_number_is_refused_without_quoting_it(tmp_path, voxels, write_series, refused):
    path = write_series(tmp_path, voxels)[4]
    data = path.read_bytes()
    assert data.count(b"ORIGIN") == 0
    position = data.index(b"DS", data.index(struct.pack("<HH", 0x0018, 0x0050))) + 4
    path.write_bytes(data[:position] + b"SECRETX"[: data[position - 2]] + data[position + min(7, data[position - 2]) :])
    with pytest.raises(MedvolError) as caught:
        read_volume(tmp_path)
    assert caught.value.code in ("BAD_DICOM", "TRUNCATED")
    assert path.name in str(caught.value)
    assert "SEC" not in caught.value.found


def test_a_deflate_bomb_is_refused_before_pydicom_expands_it(tmp_path, voxels, write_series, refused, monkeypatch):
    path = write_series(tmp_path, voxels, syntax=DeflatedExplicitVRLittleEndian)[0]
    monkeypatch.setattr(dicom_file, "INFLATE_LIMIT", 10_000_000)
    meta = pydicom.filereader.read_file_meta_info(path)
    start = 128 + 4 + 12 + meta.FileMetaInformationGroupLength
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(bytes(30_000_000)) + packer.flush()
    path.write_bytes(path.read_bytes()[:start] + bomb)
    with refused("TOO_LARGE", path.name):
        read_volume(path)


def test_no_patient_data_stand_in_a_volume_or_a_refusal(tmp_path, voxels, write_series):
    write_series(tmp_path, voxels)
    volume = read_volume(tmp_path)
    assert "SECRETX" not in repr(volume)
    assert "SECRETX" not in repr(list_series(tmp_path))
    write_series(tmp_path, voxels, edit=_set(PixelSpacing=None))
    with pytest.raises(MedvolError) as caught:
        read_volume(tmp_path)
    assert "SECRETX" not in repr(caught.value.as_dict())


# Lists


def test_series_are_listed_with_what_reading_would_say(tmp_path, voxels, write_series):
    write_series(tmp_path / "a", voxels)
    files = write_series(tmp_path / "b", voxels, series="1.2.3.5", edit=_set(SeriesNumber=2, Modality="MR"))
    files[3].unlink()
    shutil.copy(get_testdata_file("rtstruct.dcm"), tmp_path)
    first, second = list_series(tmp_path)
    assert (first.uid, first.modality, first.number, first.count, first.verdict) == (
        "1.2.3.5",
        "MR",
        2,
        8,
        "MISSING_SLICES",
    )
    assert (second.uid, second.description, second.rows, second.columns, second.count, second.verdict) == (
        "1.2.3.4",
        "phantom",
        8,
        7,
        9,
        "",
    )
    assert first.files == tuple(sorted(path for path in files if path.exists()))


def test_a_damaged_header_is_listed_and_blocks_only_its_neighbours(tmp_path, voxels, write_series):
    write_series(tmp_path / "a", voxels)
    broken = write_series(tmp_path / "b", voxels, series="1.2.3.5")[0]
    broken.write_bytes(broken.read_bytes()[:300])
    listed = {one.uid: one.verdict for one in list_series(tmp_path)}
    assert set(listed) == {"1.2.3.4", "1.2.3.5", ""}
    assert listed["1.2.3.4"] == ""
    assert listed["1.2.3.5"] in ("TRUNCATED", "BAD_DICOM")
    np.testing.assert_array_equal(read_series(tmp_path, "1.2.3.4").array, voxels)
    with pytest.raises(MedvolError, match=broken.name):
        read_series(tmp_path, "1.2.3.5")


def test_more_than_the_limit_is_refused_before_decoding(tmp_path, voxels, write_series, refused):
    write_series(tmp_path, voxels)
    with refused("TOO_LARGE"):
        read_series(tmp_path, options=ReadOptions(max_bytes=1007))


def test_a_file_that_vanishes_before_its_pixels_are_read_is_named(tmp_path, voxels, write_series, refused, monkeypatch):
    files = write_series(tmp_path, voxels)
    read = dicom_series.read_stack

    def late(slices, pad_to):
        files[5].unlink()
        return read(slices, pad_to)

    monkeypatch.setattr(dicom_series, "read_stack", late)
    with refused("CANNOT_READ", files[5].name):
        read_volume(tmp_path)


def test_a_missing_folder_is_refused(refused):
    with refused("NOT_FOUND"):
        list_series(Path("no such folder"))


def test_series_without_uid_are_told_apart_by_folder_and_number(tmp_path, voxels, write_series, refused):
    def edit(dataset, index):
        del dataset.SeriesInstanceUID
        dataset.SeriesNumber = 7 + index // 5

    write_series(tmp_path, voxels, edit=edit)
    with refused("MIXED_SERIES", "a folder of its own"):
        read_volume(tmp_path)
    for path in tmp_path.iterdir():
        folder = tmp_path / str(pydicom.dcmread(path).SeriesNumber)
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    assert read_volume(tmp_path / "7").array.shape == (7, 8, 5)
    with refused("MIXED_SERIES", "2 images"):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"PatientID": "SECRETY"}, ("patient", "2 images in 1 series")),
        ({"Modality": "MR"}, ("modality",)),
        ({"PixelSpacing": [2.0, 2.0]}, ("PixelSpacing",)),
        ({"FrameOfReferenceUID": "1.9"}, ("FrameOfReferenceUID",)),
        ({"StudyInstanceUID": "1.2.4"}, ("study",)),
    ],
    ids=str,
)
def test_a_mixed_series_says_what_differs_and_never_who(tmp_path, voxels, write_series, refused, values, words):
    write_series(tmp_path, voxels, edit=lambda dataset, index: index != 4 or _set(**values)(dataset, index))
    with pytest.raises(MedvolError) as caught:
        read_volume(tmp_path)
    assert "SECRET" not in repr(caught.value.as_dict())
    with refused("MIXED_SERIES", *words):
        raise caught.value


def test_patients_without_an_id_are_told_apart_by_name(tmp_path, voxels, write_series, refused):
    def edit(dataset, index):
        dataset.PatientID = ""
        dataset.PatientName = f"SECRETX^{index // 5}"

    write_series(tmp_path, voxels, edit=edit)
    with refused("MIXED_SERIES", "patient"):
        read_volume(tmp_path)
