"""Real scans: agreement with independent converters, and refusals of the series that no reader should stack."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medvol.errors import MedvolError
from medvol.geometry import apply_affine
from medvol.io import find_volumes, parse_reference, read_volume
from medvol.io.dicom_series import list_series
from medvol.io.mat import read_mat_fields

pytestmark = pytest.mark.realdata


def _values_at(volume, points):
    """Return the values of a volume at world points that must be voxel centres."""
    index = apply_affine(np.linalg.inv(volume.affine), points)
    nearest = np.round(index).astype(int)
    assert np.abs(index - nearest).max() < 0.02
    assert (nearest >= 0).all()
    assert (nearest < volume.array.shape).all()
    return volume.array[tuple(nearest.T)]


def test_an_mr_study_agrees_with_simpleitk(data_folder):
    found = find_volumes(data_folder / "mr_dicom_studies")
    assert len(found) == 5
    for one in found:
        volume = read_volume(one.reference)
        reference = parse_reference(one.reference)
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(reference.path), reference.key)
        image = sitk.ReadImage(names)
        indices = np.random.default_rng(0).integers(0, image.GetSize(), (200, 3))
        lps = np.array([image.TransformIndexToPhysicalPoint(index.tolist()) for index in indices])
        expected = sitk.GetArrayViewFromImage(image).transpose(2, 1, 0)[tuple(indices.T)]
        assert volume.array.shape == image.GetSize()
        np.testing.assert_array_equal(_values_at(volume, lps * (-1, -1, 1)), expected)


@pytest.mark.parametrize(
    "case",
    ["anatomical/001", "anatomical/001_implicit", "ge/anatomical/001", "generic/anatomical/001_implicit",
     "generic/anatomical/002_non_isotropic", "generic/compressed_rle/001", "philips/anatomical/001",
     "siemens/anatomical/001", "hitachi/anatomical/001"],
)  # fmt: skip
def test_vendor_series_agree_with_their_ground_truth(data_folder, case):
    folder = data_folder / "dicom2nifti_tests" / case
    truth = folder.parent / f"{folder.name}_ground_truth.nii.gz"
    if not folder.is_dir() or not truth.exists():
        pytest.skip(f"{case} is absent")
    try:
        volume = read_volume(folder)
    except MedvolError as error:
        if error.code == "NEED_CODEC":
            pytest.skip(str(error))
        raise
    other = nib.load(truth)
    assert sorted(volume.array.shape) == sorted(other.shape)
    grid = np.stack(np.meshgrid(*[range(length) for length in other.shape], indexing="ij"), axis=-1).reshape(-1, 3)
    chosen = np.random.default_rng(0).choice(grid, 2000)
    points = apply_affine(np.asarray(other.affine, float), chosen)
    np.testing.assert_allclose(_values_at(volume, points), other.get_fdata()[tuple(chosen.T)], rtol=1e-5)


@pytest.mark.parametrize(
    ("case", "codes"),
    [
        ("dicom2nifti_tests/failing/sliceincrement/001", {"MISSING_SLICES"}),
        ("dicom2nifti_tests/failing/notavolume/001", {"SEVERAL_VOLUMES"}),
        ("dicom2nifti_tests/failing/sliceorientation/001", {"MIXED_SERIES"}),
        ("dicom2nifti_tests/siemens/fmri/001", {"SIEMENS_MOSAIC"}),
        ("dicom2nifti_tests/generic/rgb/001", {"COLOUR_IMAGE"}),
        ("dicom2nifti_tests/ge/dti/001", {"SEVERAL_VOLUMES"}),
        ("dcm_qa_ct", {"UNEVEN_SPACING"}),
        ("dicom_numpy_dupes", {"UNEVEN_SPACING"}),
    ],
)
def test_series_that_are_no_single_volume_are_refused_with_the_verdict_of_the_list(data_folder, refused, case, codes):
    folder = data_folder / case
    (code,) = codes
    assert {one.verdict for one in list_series(folder)} == codes
    with refused(code):
        read_volume(folder)


@pytest.mark.parametrize(
    ("case", "count"),
    [("ge/dti/001", 2), ("ge/dti/001_implicit", 2), ("philips/dti/001", 4), ("philips/dti/001_implicit", 4),
     ("siemens/fmri_classic/001", 2), ("siemens/fmri_classic/001_implicit", 2),
     ("philips_enhanced/fmri/001", 4), ("philips_enhanced/fmri/001_implicit", 4),
     ("philips_enhanced/anatomical/001", 1), ("philips_enhanced/anatomical/001_implicit", 1),
     ("siemens_multiframe/anatomical/001", 1), ("hyperfine/anatomical/001", 1)],
)  # fmt: skip
def test_each_volume_of_a_series_is_one_of_its_ground_truth(data_folder, case, count):
    folder = data_folder / "dicom2nifti_tests" / case
    (series,) = list_series(folder)
    assert series.verdict == ("SEVERAL_VOLUMES" if count > 1 else "")
    assert len(series.volumes) == count
    truth = nib.load(folder.parent / f"{folder.name}_ground_truth.nii.gz")
    expected = truth.get_fdata().reshape(*truth.shape[:3], count)
    grid = np.stack(np.meshgrid(*[range(length) for length in truth.shape[:3]], indexing="ij"), axis=-1).reshape(-1, 3)
    chosen = np.random.default_rng(0).choice(grid, 5000)
    points = apply_affine(np.asarray(truth.affine, float), chosen)
    met = set()
    for fragment, _ in series.volumes:
        values = _values_at(read_volume(f"{folder}#{fragment}"), points)
        differences = np.abs(expected[tuple(chosen.T)] - values[:, None]).max(axis=0)
        met.add(int(differences.argmin()))
        assert differences.min() <= 1e-6 * max(1.0, float(np.abs(values).max()))
    assert met == set(range(count))


@pytest.mark.parametrize(
    ("case", "volumes", "tag"),
    [("dcm_qa_enh/Siemens", 4, "TemporalPositionIdentifier"), ("dcm_qa_enh/Philips", 2, "EchoTime")],
)
def test_enhanced_files_hold_the_volumes_that_their_tags_say(data_folder, case, volumes, tag):
    (series,) = list_series(data_folder / case)
    assert len(series.volumes) == volumes
    arrays = [read_volume(f"{data_folder / case}#{fragment}").array for fragment, _ in series.volumes]
    assert all(tag in fragment for fragment, _ in series.volumes)
    assert len({array.tobytes() for array in arrays}) == volumes


@pytest.mark.parametrize("kind", ["RLE", "J2KR", "JLSL", "JPLL"])
def test_lossless_compressions_equal_their_reference_bit_for_bit(data_folder, kind):
    for path in sorted((data_folder / "wg04_compression" / kind).iterdir()):
        reference = read_volume(path.parents[1] / "REF" / path.name.replace(kind, "UNC"))
        try:
            volume = read_volume(path)
        except MedvolError as error:
            if error.code != "NEED_CODEC":
                raise
            pytest.skip(str(error))
        assert volume.array.dtype == reference.array.dtype
        np.testing.assert_array_equal(volume.array, reference.array)


def test_a_gantry_tilt_is_kept_and_noted(data_folder):
    volume = read_volume(data_folder / "dicom2nifti_tests" / "failing" / "gantrytilting" / "001")
    assert any("gantry tilt" in note for note in volume.notes)


def test_every_volume_of_the_vendor_collection_is_read_or_refused(data_folder, refused):
    found = find_volumes(data_folder / "dicom2nifti_tests")
    assert len({one.name for one in found}) == len(found) > 80
    for one in found:
        code = ""
        try:
            read_volume(one.reference)
        except MedvolError as error:
            code = error.code
        assert code == one.verdict or (not one.verdict and code in ("WRONG_DIMS", "BAD_DTYPE", "NEED_CODEC")), one


def test_hippocampus_images_agree_with_nibabel(data_folder):
    for path in sorted((data_folder / "msd_hippocampus").glob("*Tr/*.nii.gz"))[::40]:
        volume, other = read_volume(path), nib.load(path)
        np.testing.assert_allclose(volume.array, other.get_fdata(), rtol=1e-6)
        np.testing.assert_allclose(volume.affine, other.affine, atol=1e-5)


def test_rows_of_a_medmnist_archive_are_its_rows(data_folder):
    path = data_folder / "adrenalmnist3d" / "adrenalmnist3d.npz"
    with np.load(path) as archive:
        for name in ("train_images", "test_images"):
            for row in (0, len(archive[name]) - 1):
                np.testing.assert_array_equal(read_volume(f"{path}#{name}[{row}]").array, archive[name][row])


def test_radiomics_images_and_masks_lie_on_one_grid_as_simpleitk_has_it(data_folder):
    for path in sorted((data_folder / "pyradiomics_cases").glob("*.nrrd")):
        volume, image = read_volume(path), sitk.ReadImage(path)
        np.testing.assert_array_equal(volume.array, sitk.GetArrayViewFromImage(image).transpose(2, 1, 0))
        index = [length - 1 for length in image.GetSize()]
        x, y, z = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(apply_affine(volume.affine, index), (-x, -y, z), atol=1e-3)


def test_figshare_masks_lie_inside_their_images(data_folder):
    for path in sorted((data_folder / "figshare_brain_tumor_mat").glob("*.mat"))[:5]:
        fields, volume = read_mat_fields(path), read_volume(path)
        assert fields.label in (1, 2, 3)
        assert fields.patient
        assert fields.mask.shape == volume.array.shape
        assert volume.array[fields.mask == 1].mean() > volume.array.mean()
