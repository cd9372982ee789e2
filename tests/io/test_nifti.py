"""The A rows of bad input, one injector each, and agreement with nibabel where the file is good."""

import gzip
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from nibabel.testing import data_path

from medvol.io import ReadOptions, read_volume

DIM, DATATYPE, BITPIX, PIXDIM, VOX_OFFSET, SLOPE, INTERCEPT, UNITS = 40, 70, 72, 76, 108, 112, 116, 123
QFORM_CODE, SFORM_CODE, QUATERN_B, QOFFSET_X, SROW_X = 252, 254, 256, 268, 280


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_voxels_and_affine_are_those_written(tmp_path, voxels, affine, write_nifti, name, kind):
    volume = read_volume(write_nifti(tmp_path / name, voxels, kind=kind))
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, voxels)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    assert volume.has_geometry
    assert volume.notes == ()
    assert volume.array.flags.writeable
    np.testing.assert_allclose(volume.spacing_mm, (1.0, 1.5, 3.0), atol=1e-5)


# A1 to A5: damaged or misnamed files


@pytest.mark.parametrize("kept", [0.99, 0.5, 0.01])
def test_a_truncated_gzip_is_refused(tmp_path, voxels, write_nifti, refused, kept):
    path = write_nifti(tmp_path / "a.nii.gz", voxels)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with refused("TRUNCATED", "a.nii.gz"):
        read_volume(path)


@pytest.mark.parametrize("missing", [1, 4, 8])
def test_a_gzip_without_its_whole_trailer_is_refused(tmp_path, voxels, write_nifti, refused, missing):
    path = write_nifti(tmp_path / "a.nii.gz", voxels)
    path.write_bytes(path.read_bytes()[:-missing])
    with refused("TRUNCATED"):
        read_volume(path)


def test_a_flipped_byte_in_a_gzip_is_refused(tmp_path, write_nifti, refused):
    array = np.random.default_rng(0).integers(0, 30000, (7, 8, 9)).astype(np.int16)
    data = write_nifti(tmp_path / "a.nii.gz", array).read_bytes()
    for position in range(len(data) - 400, len(data), 7):
        path = tmp_path / "b.nii.gz"
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        with pytest.raises(Exception, match=r"CORRUPT|TRUNCATED"):
            read_volume(path)


def test_a_wrong_checksum_behind_the_voxels_is_found(tmp_path, voxels, write_nifti, refused):
    path = write_nifti(tmp_path / "a.nii.gz", voxels)
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(data)
    with refused("CORRUPT", "incorrect data check"):
        read_volume(path)


def test_a_gzip_of_two_members_is_one_file(tmp_path, voxels, write_nifti):
    plain = write_nifti(tmp_path / "a.nii", voxels).read_bytes()
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(plain[:500]) + gzip.compress(plain[500:]) + b"\0" * 512)
    np.testing.assert_array_equal(read_volume(path).array, voxels)


def test_other_bytes_behind_a_gzip_are_refused(tmp_path, voxels, write_nifti, refused):
    path = write_nifti(tmp_path / "a.nii.gz", voxels)
    path.write_bytes(path.read_bytes() + b"something else")
    with refused("CORRUPT"):
        read_volume(path)


def test_a_truncated_file_is_refused_with_both_sizes(tmp_path, voxels, write_nifti, refused):
    path = write_nifti(tmp_path / "a.nii", voxels)
    path.write_bytes(path.read_bytes()[:-10])
    with refused("TRUNCATED", "1,350 bytes", "expected 1,360"):
        read_volume(path)


def test_a_gzip_complete_in_itself_with_too_few_voxels_is_refused(tmp_path, voxels, write_nifti, refused):
    plain = write_nifti(tmp_path / "a.nii", voxels).read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(plain[:-10]))
    with refused("TRUNCATED", "1,350 bytes"):
        read_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_an_empty_file_is_no_nifti(tmp_path, refused, name):
    (tmp_path / name).touch()
    with refused("NOT_NIFTI", "an empty file"):
        read_volume(tmp_path / name)


def test_an_error_page_is_no_nifti(tmp_path, refused):
    (tmp_path / "a.nii.gz").write_text("<!DOCTYPE html><html><body>404</body></html>")
    with refused("NOT_NIFTI", "looks like HTML"):
        read_volume(tmp_path / "a.nii.gz")


def test_a_compressed_error_page_is_no_nifti(tmp_path, refused):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"<html>not found</html>"))
    with refused("NOT_NIFTI", "looks like HTML"):
        read_volume(tmp_path / "a.nii.gz")


def test_analyze_is_no_nifti(tmp_path, refused):
    (tmp_path / "a.nii").write_bytes(Path(data_path, "analyze.hdr").read_bytes())
    with refused("NOT_NIFTI", "ANALYZE"):
        read_volume(tmp_path / "a.nii")


@pytest.mark.parametrize(("content", "name"), [("a.nii", "b.nii.gz"), ("a.nii.gz", "b.nii")])
def test_the_content_decides_not_the_name(tmp_path, voxels, write_nifti, content, name):
    data = write_nifti(tmp_path / content, voxels).read_bytes()
    (tmp_path / name).write_bytes(data)
    volume = read_volume(tmp_path / name)
    np.testing.assert_array_equal(volume.array, voxels)
    assert "unlike its name" in volume.notes[0]


# A6 to A8: geometry


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_sform_that_is_not_finite_is_refused_unless_the_qform_is_asked_for(
    tmp_path, voxels, affine, write_nifti, refused, value
):
    path = write_nifti(tmp_path / "a.nii", voxels, {SROW_X: ("<f", value)})
    with refused("BAD_AFFINE", "sform", "affine='qform'"):
        read_volume(path)
    volume = read_volume(path, options=ReadOptions(affine="qform"))
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)


def test_a_singular_sform_is_refused(tmp_path, voxels, write_nifti, refused):
    row = (1.0, 1.0, 0.0, 0.0)
    path = write_nifti(tmp_path / "a.nii", voxels, {SROW_X: ("<12f", row + row + (0.0, 0.0, 3.0, 0.0))})
    with refused("BAD_AFFINE", "singular"):
        read_volume(path)


def test_a_zero_sform_is_refused(tmp_path, voxels, write_nifti, refused):
    with refused("BAD_AFFINE"):
        read_volume(write_nifti(tmp_path / "a.nii", voxels, {SROW_X: ("<12f", (0.0,) * 12)}))


@pytest.mark.parametrize(("shift", "conflict"), [(0.05, False), (0.2, True)])
def test_a_shift_between_qform_and_sform_is_noted_above_a_tenth_of_a_millimetre(
    tmp_path, voxels, affine, write_nifti, shift, conflict
):
    path = write_nifti(tmp_path / "a.nii.gz", voxels, {QOFFSET_X: ("<f", affine[0, 3] + shift)})
    volume = read_volume(path)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    told = [note for note in volume.notes if "disagree by 0.2 mm" in note and "the sform was used" in note]
    assert len(told) == len(volume.notes) == conflict


def test_an_angle_between_qform_and_sform_is_a_conflict(tmp_path, voxels, write_nifti):
    path = write_nifti(tmp_path / "a.nii", voxels, {QUATERN_B: ("<3f", (0.0, 0.0, 0.0))})
    assert "qform and sform disagree" in read_volume(path).notes[0]


def test_the_sform_counts_over_the_qform_as_in_nibabel(tmp_path, voxels, write_nifti):
    path = write_nifti(tmp_path / "a.nii", voxels, {QOFFSET_X: ("<f", 100.0)})
    np.testing.assert_allclose(read_volume(path).affine, nib.load(path).affine, atol=1e-6)


def test_the_qform_counts_where_the_sform_has_no_code(tmp_path, voxels, affine, write_nifti):
    path = write_nifti(tmp_path / "a.nii", voxels, {SFORM_CODE: ("<h", 0), SROW_X: ("<f", np.nan)})
    np.testing.assert_allclose(read_volume(path).affine, affine, atol=1e-5)


def test_no_codes_mean_no_geometry_unless_a_spacing_is_assumed(tmp_path, voxels, write_nifti, refused):
    path = write_nifti(tmp_path / "a.nii", voxels, {QFORM_CODE: ("<2h", (0, 0))})
    with refused("NO_GEOMETRY", "assume_spacing_mm"):
        read_volume(path)
    volume = read_volume(path, options=ReadOptions(assume_spacing_mm=(1.0, 1.5, 3.0)))
    np.testing.assert_array_equal(volume.affine, np.diag([1.0, 1.5, 3.0, 1.0]))
    assert "assumed" in volume.notes[0]


@pytest.mark.parametrize("step", [0.0, np.nan, -1.0])
def test_a_qform_without_usable_steps_is_no_geometry(tmp_path, voxels, write_nifti, refused, step):
    path = write_nifti(tmp_path / "a.nii", voxels, {SFORM_CODE: ("<h", 0), PIXDIM + 4: ("<f", step)})
    with refused("NO_GEOMETRY", "pixdim"):
        read_volume(path)
    metres = write_nifti(
        tmp_path / "b.nii", voxels, {SFORM_CODE: ("<h", 0), PIXDIM + 4: ("<f", step), UNITS: ("<B", 1)}
    )
    assumed = read_volume(metres, options=ReadOptions(assume_spacing_mm=(1.0, 1.5, 3.0)))
    np.testing.assert_allclose(assumed.spacing_mm, (1.0, 1.5, 3.0))


def test_a_shear_in_the_sform_is_kept(tmp_path, voxels, write_nifti):
    rows = (1.0, 0.4, 0.0, 5.0, 0.0, 1.5, 0.0, 6.0, 0.0, 0.0, 3.0, 7.0)
    path = write_nifti(tmp_path / "a.nii", voxels, {SROW_X: ("<12f", rows), QFORM_CODE: ("<h", 0)})
    np.testing.assert_allclose(read_volume(path).affine[:3].ravel(), rows, atol=1e-6)


# A9 to A11: dimensions and size


@pytest.mark.parametrize("dims", [(3, 7, -8, 9), (3, 0, 8, 9), (0, 7, 8, 9), (8, 7, 8, 9), (-3, 7, 8, 9)], ids=str)
def test_impossible_dimensions_are_refused(tmp_path, voxels, write_nifti, refused, dims):
    with refused("BAD_HEADER", "dim"):
        read_volume(write_nifti(tmp_path / "a.nii", voxels, {DIM: ("<4h", dims)}))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_header_that_promises_terabytes_is_refused_before_allocating(tmp_path, voxels, write_nifti, refused, name):
    path = write_nifti(tmp_path / name, voxels, {DIM: ("<4h", (3, 30000, 30000, 30000))})
    with refused("TOO_LARGE", "max_bytes"):
        read_volume(path)


def test_a_ratio_that_only_a_bomb_has_is_refused(tmp_path, voxels, write_nifti, refused):
    path = write_nifti(tmp_path / "a.nii.gz", voxels, {DIM: ("<4h", (3, 1024, 1024, 1024))})
    with refused("TOO_LARGE", "ratio"):
        read_volume(path)


def test_bytes_without_end_behind_the_voxels_are_refused(tmp_path, voxels, write_nifti, refused):
    plain = write_nifti(tmp_path / "a.nii", voxels).read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(plain + bytes(5_000_000)))
    assert read_volume(tmp_path / "a.nii.gz").array.shape == (7, 8, 9)
    with refused("TOO_LARGE"):
        read_volume(tmp_path / "a.nii.gz", options=ReadOptions(max_bytes=1_000_000))


def test_a_mask_that_compresses_extremely_well_is_read(tmp_path, write_nifti):
    mask = np.zeros((200, 201, 202), np.uint8)
    path = write_nifti(tmp_path / "a.nii.gz", mask)
    assert mask.nbytes > 500 * path.stat().st_size
    assert not read_volume(path).array.any()


def test_a_voxel_offset_inside_the_header_is_refused(tmp_path, voxels, write_nifti, refused):
    for offset in (100.0, np.nan, 352.5, -16.0):
        with refused("BAD_HEADER", "vox_offset"):
            read_volume(write_nifti(tmp_path / "a.nii", voxels, {VOX_OFFSET: ("<f", offset)}))


def test_a_bitpix_that_contradicts_the_type_is_refused(tmp_path, voxels, write_nifti, refused):
    with refused("BAD_HEADER", "bitpix"):
        read_volume(write_nifti(tmp_path / "a.nii", voxels, {BITPIX: ("<h", 8)}))


def test_four_dimensions_are_refused_unless_channels_are_declared(tmp_path, write_nifti, refused):
    array = np.arange(7 * 8 * 9 * 2, dtype=np.int16).reshape(7, 8, 9, 2)
    path = write_nifti(tmp_path / "a.nii", array)
    with refused("WRONG_DIMS", "(7, 8, 9, 2)"):
        read_volume(path)
    volume = read_volume(path, options=ReadOptions(channels=True))
    assert volume.channel_axis == 3
    np.testing.assert_array_equal(volume.array, array)


def test_a_five_dimensional_vector_has_its_channels_last(tmp_path, write_nifti, refused):
    array = np.arange(7 * 8 * 9 * 3, dtype=np.float32).reshape(7, 8, 9, 1, 3)
    path = write_nifti(tmp_path / "a.nii", array)
    with refused("WRONG_DIMS"):
        read_volume(path)
    volume = read_volume(path, options=ReadOptions(channels=True))
    assert (volume.array.shape, volume.channel_axis) == ((7, 8, 9, 3), 3)


def test_trailing_axes_of_length_one_are_dropped_with_a_note(tmp_path, voxels, write_nifti):
    volume = read_volume(write_nifti(tmp_path / "a.nii", voxels[..., None, None]))
    assert volume.array.shape == (7, 8, 9)
    assert "dropped" in volume.notes[0]


def test_a_volume_of_three_axes_has_no_channels_even_if_allowed(tmp_path, voxels, write_nifti):
    volume = read_volume(write_nifti(tmp_path / "a.nii", voxels), options=ReadOptions(channels=True))
    assert (volume.array.shape, volume.channel_axis) == ((7, 8, 9), None)


def test_one_dimension_is_refused(tmp_path, write_nifti, refused, voxels):
    with refused("WRONG_DIMS"):
        read_volume(write_nifti(tmp_path / "a.nii", voxels, {DIM: ("<4h", (1, 7, 1, 1))}))


# A12 to A15: values


def test_voxels_that_are_not_finite_are_refused_with_their_number_and_place(tmp_path, write_nifti, refused):
    array = np.ones((7, 8, 9), np.float32)
    array[1, 2, 3], array[4, 5, 6] = np.nan, -np.inf
    path = write_nifti(tmp_path / "a.nii.gz", array)
    with refused("NONFINITE", "2 voxels", "(1, 2, 3)", "nan_fill"):
        read_volume(path)
    volume = read_volume(path, options=ReadOptions(nan_fill=-7.0))
    assert volume.array[1, 2, 3] == volume.array[4, 5, 6] == -7
    assert volume.array.sum() == 7 * 8 * 9 - 2 - 14
    assert "2 NaN or infinite voxels" in volume.notes[0]


@pytest.mark.parametrize(
    ("code", "bits", "name"), [(128, 24, "RGB"), (2304, 32, "RGBA"), (32, 64, "complex64"), (1536, 128, "float128")]
)
def test_types_that_float32_cannot_hold_are_refused(tmp_path, voxels, write_nifti, refused, code, bits, name):
    with refused("BAD_DTYPE", name):
        read_volume(write_nifti(tmp_path / "a.nii", voxels, {DATATYPE: ("<2h", (code, bits))}))


def test_a_type_of_no_standard_is_refused(tmp_path, voxels, write_nifti, refused):
    with refused("BAD_HEADER", "datatype"):
        read_volume(write_nifti(tmp_path / "a.nii", voxels, {DATATYPE: ("<h", 77)}))


def test_doubles_beyond_float32_are_refused(tmp_path, write_nifti, refused):
    array = np.zeros((7, 8, 9))
    array[0, 0, 0] = -1e300
    with refused("BAD_DTYPE", "1e+300"):
        read_volume(write_nifti(tmp_path / "a.nii", array))


def test_doubles_become_float32(tmp_path, write_nifti):
    array = np.linspace(-1, 1, 7 * 8 * 9).reshape(7, 8, 9)
    volume = read_volume(write_nifti(tmp_path / "a.nii", array))
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, array.astype(np.float32))


def test_long_integers_are_narrowed_where_they_fit(tmp_path, voxels, affine, refused):
    for value, code in ((2**31 - 1, ""), (2**31, "BAD_DTYPE")):
        array = voxels.astype(np.int64)
        array[0, 0, 0] = value
        image = nib.Nifti1Image(array, affine, dtype=np.int64)
        image.to_filename(tmp_path / "a.nii")
        if code:
            with refused(code, str(value)):
                read_volume(tmp_path / "a.nii")
        else:
            volume = read_volume(tmp_path / "a.nii")
            assert volume.array.dtype == np.int32
            np.testing.assert_array_equal(volume.array, array)


@pytest.mark.parametrize("slope", [0.0, np.nan, np.inf, 1.0])
def test_a_slope_that_means_nothing_leaves_integers_as_they_are(tmp_path, voxels, write_nifti, slope):
    inter = 0.0 if slope == 1.0 else 5.0
    path = write_nifti(tmp_path / "a.nii", voxels, {SLOPE: ("<2f", (slope, inter))})
    volume = read_volume(path)
    assert volume.array.dtype == np.int16
    np.testing.assert_array_equal(volume.array, np.asarray(nib.load(path).dataobj))


def test_a_slope_gives_float32_that_agrees_with_nibabel(tmp_path, voxels, write_nifti):
    path = write_nifti(tmp_path / "a.nii.gz", voxels, {SLOPE: ("<2f", (0.37, -1024.0))})
    volume = read_volume(path)
    assert volume.array.dtype == np.float32
    np.testing.assert_allclose(volume.array, nib.load(path).get_fdata(), rtol=1e-7)
    assert volume.array[0, 0, 0] == pytest.approx(-100 * 0.37 - 1024)


def test_a_slope_that_overflows_is_refused(tmp_path, voxels, write_nifti, refused):
    with refused("BAD_DTYPE"):
        read_volume(write_nifti(tmp_path / "a.nii", voxels, {SLOPE: ("<2f", (3e38, 0.0))}))


def test_an_intercept_that_is_not_finite_is_refused(tmp_path, voxels, write_nifti, refused):
    with refused("BAD_HEADER", "scl_inter"):
        read_volume(write_nifti(tmp_path / "a.nii", voxels, {SLOPE: ("<2f", (2.0, np.nan))}))


@pytest.mark.parametrize(("code", "factor"), [(1, 1000.0), (3, 0.001), (2, 1.0), (0, 1.0), (10, 1.0)])
def test_positions_become_millimetres(tmp_path, voxels, affine, write_nifti, code, factor):
    volume = read_volume(write_nifti(tmp_path / "a.nii", voxels, {UNITS: ("<B", code)}))
    np.testing.assert_allclose(volume.affine[:3], affine[:3] * factor, rtol=1e-5, atol=1e-5 * factor)
    assert any("converted to millimetres" in note for note in volume.notes) == (factor != 1.0)


def test_an_unknown_unit_is_refused(tmp_path, voxels, write_nifti, refused):
    with refused("BAD_HEADER", "xyzt_units"):
        read_volume(write_nifti(tmp_path / "a.nii", voxels, {UNITS: ("<B", 5)}))


def test_big_endian_files_are_read_into_native_order(tmp_path, voxels, affine):
    image = nib.Nifti1Image(voxels, affine, header=nib.Nifti1Header(endianness=">"))
    image.set_data_dtype(np.int16)
    image.set_qform(affine, 1)
    image.to_filename(tmp_path / "a.nii.gz")
    assert gzip.decompress((tmp_path / "a.nii.gz").read_bytes())[:4] == struct.pack(">i", 348)
    volume = read_volume(tmp_path / "a.nii.gz")
    assert volume.array.dtype == np.dtype("=i2")
    np.testing.assert_array_equal(volume.array, voxels)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)


def test_a_slice_is_a_volume_one_voxel_deep(tmp_path, voxels, write_nifti):
    path = write_nifti(tmp_path / "a.nii", voxels[..., :1], {DIM: ("<h", 2)})
    assert read_volume(path).array.shape == (7, 8, 1)


def test_a_header_pair_is_refused_by_name(tmp_path, voxels, affine, refused):
    nib.Nifti1Pair(voxels, affine).to_filename(tmp_path / "a.hdr")
    with refused("NOT_NIFTI", ".hdr/.img"):
        read_volume(tmp_path / "a.hdr")


@pytest.mark.parametrize("name", ["anatomical.nii", "standard.nii.gz", "reoriented_anat_moved.nii"])
def test_files_that_come_with_nibabel_agree_with_it(name):
    path = f"{data_path}/{name}"
    volume, other = read_volume(path), nib.load(path)
    np.testing.assert_allclose(volume.array, other.get_fdata(), rtol=1e-6)
    np.testing.assert_allclose(volume.affine, other.affine, atol=1e-5)


def test_functional_series_that_come_with_nibabel_are_channels_on_request(refused):
    for name in ("example4d.nii.gz", "functional.nii"):
        path = f"{data_path}/{name}"
        with refused("WRONG_DIMS"):
            read_volume(path)
        volume = read_volume(path, options=ReadOptions(channels=True))
        np.testing.assert_allclose(volume.array, nib.load(path).get_fdata(), rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(
    array=hnp.arrays(
        st.sampled_from([np.uint8, np.int16, np.uint16, np.int32, np.float32]),
        hnp.array_shapes(min_dims=3, max_dims=3, max_side=5),
        elements={"allow_nan": False, "allow_infinity": False},
    ),
    codes=st.sampled_from(["RAS", "LPS", "PIR", "SAL", "IPR"]),
    compressed=st.booleans(),
)
def test_what_is_written_is_read(tmp_path_factory, array, codes, compressed):
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    for axis, (letter, step) in enumerate(zip(codes, (1.0, 1.5, 3.0), strict=True)):
        row = next(index for index, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        matrix[row, axis] = step if letter in "RAS" else -step
        matrix[row, 3] = 10.0 * axis
    path = tmp_path_factory.mktemp("nifti") / ("a.nii.gz" if compressed else "a.nii")
    nib.Nifti1Image(array, matrix).to_filename(path)
    volume = read_volume(path)
    assert volume.array.dtype == array.dtype
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, matrix)
    assert "".join(nib.aff2axcodes(volume.affine)) == codes


@pytest.mark.parametrize("bad", [{"affine": "qfrom"}, {"assume_spacing_mm": (1.0, 0.0, 1.0)}, {"nan_fill": np.nan}])
def test_an_option_that_means_nothing_is_refused(bad, refused):
    with refused("UNKNOWN_OPTION"):
        ReadOptions(**bad)
