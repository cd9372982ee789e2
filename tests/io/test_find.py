import nibabel as nib
import numpy as np
import pytest

from medvol.io import find_volumes, read_volume
from medvol.io.find import find_passed_over


@pytest.fixture
def tree(tmp_path, voxels, write_nifti, write_series):
    for name in ("b.nii.gz", "sub/a.nii", "sub/A.nii.gz", ".hidden.nii.gz", ".git/c.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_nifti(tmp_path / name, voxels)
    np.save(tmp_path / "sub_a.npy", voxels)
    np.savez(tmp_path / "many.npz", x=voxels, y=voxels)
    np.savez(tmp_path / "one.npz", x=voxels)
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "patients.csv").write_text("case,patient\n")
    write_series(tmp_path / "study" / "ct", voxels)
    write_series(tmp_path / "study" / "mixed" / "x", voxels, series="1.2.3.5")
    write_series(tmp_path / "study" / "mixed" / "y", voxels, series="1.2.3.6")
    return tmp_path


def test_every_volume_is_found_once_with_a_safe_unique_name(tree):
    found = find_volumes(tree)
    assert [one.name for one in found] == [
        "b",
        "one",
        "study_ct_series7",
        "study_mixed_x_series7",
        "study_mixed_y_series7",
        "sub_A",
        "sub_a_2",
        "sub_a_3",
    ]
    assert [one.verdict for one in found] == [""] * 8


def test_what_is_found_can_be_read(tree, voxels):
    for one in find_volumes(tree):
        np.testing.assert_array_equal(read_volume(one.reference).array, voxels)


def test_a_series_scattered_over_folders_is_one_volume(tmp_path, voxels, write_series):
    for index, path in enumerate(write_series(tmp_path / "a", voxels)):
        folder = tmp_path / f"part{index % 2}"
        folder.mkdir(exist_ok=True)
        path.rename(folder / path.name)
    (tmp_path / "a").rmdir()
    (found,) = find_volumes(tmp_path)
    assert found.reference == f"{tmp_path}#1.2.3.4"
    np.testing.assert_array_equal(read_volume(found.reference).array, voxels)


def test_two_versions_of_one_series_are_two_volumes(tmp_path, voxels, write_series):
    write_series(tmp_path / "raw", voxels)
    write_series(tmp_path / "denoised", voxels + 1)
    found = find_volumes(tmp_path)
    assert [one.name for one in found] == ["denoised_series7", "raw_series7"]
    np.testing.assert_array_equal(read_volume(found[0].reference).array, voxels + 1)


def test_a_series_that_reading_refuses_is_listed_with_its_verdict(tmp_path, voxels, write_series):
    write_series(tmp_path, voxels)[4].unlink()
    (found,) = find_volumes(tmp_path)
    assert found.verdict == "MISSING_SLICES"
    assert found.name == f"{tmp_path.name}_series7"


def test_a_single_file_is_found(tmp_path, voxels, write_nifti, write_series):
    path = write_nifti(tmp_path / "case 1.nii.gz", voxels)
    assert [(one.reference, one.name) for one in find_volumes(path)] == [(str(path), "case_1")]
    dicom = write_series(tmp_path / "ct", voxels)[0]
    assert [(one.reference, one.name) for one in find_volumes(dicom)] == [(str(dicom), "009")]


def test_no_name_holds_a_patient(tmp_path, voxels, write_series):
    write_series(tmp_path, voxels)
    assert "SECRETX" not in repr(find_volumes(tmp_path))


def test_an_empty_folder_is_refused(tmp_path, refused):
    (tmp_path / "notes.txt").touch()
    with refused("EMPTY_FOLDER", "1 files, none of them a volume"):
        find_volumes(tmp_path)


def test_a_missing_folder_is_refused_with_the_nearest_name(tmp_path, refused):
    (tmp_path / "images").mkdir()
    with refused("NOT_FOUND", "did you mean 'images'?"):
        find_volumes(tmp_path / "image")


def test_linked_folders_are_followed_once(tmp_path, voxels, write_nifti):
    (tmp_path / "root").mkdir()
    write_nifti(tmp_path / "outside.nii.gz", voxels)
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    assert [one.name for one in find_volumes(tmp_path / "root")] == ["link_outside"]


def _without_series(dataset, index):
    del dataset.SeriesInstanceUID


def test_files_without_a_series_uid_are_the_volume_of_their_folder(tmp_path, voxels, write_series):
    write_series(tmp_path / "a", voxels, edit=_without_series)
    write_series(tmp_path / "b", voxels + 1, edit=_without_series)
    found = find_volumes(tmp_path)
    assert [(one.reference, one.name, one.verdict) for one in found] == [
        (str(tmp_path / "a"), "a_series7", ""),
        (str(tmp_path / "b"), "b_series7", ""),
    ]
    np.testing.assert_array_equal(read_volume(found[1].reference).array, voxels + 1)


def test_files_without_a_series_uid_beside_others_are_refused_in_the_list_as_in_reading(
    tmp_path, voxels, write_series, refused
):
    write_series(tmp_path / "a", voxels[:, :, :5], edit=_without_series)
    write_series(tmp_path / "a" / "named", voxels)
    named, unnamed = find_volumes(tmp_path)
    assert (unnamed.reference, unnamed.verdict, named.verdict) == (str(tmp_path / "a"), "MIXED_SERIES", "")
    with refused("MIXED_SERIES"):
        read_volume(unnamed.reference)


def test_pictures_without_a_series_uid_stand_for_themselves(tmp_path, voxels, write_series):
    def edit(dataset, index):
        del dataset.SeriesInstanceUID, dataset.ImagePositionPatient, dataset.ImageOrientationPatient

    files = write_series(tmp_path, voxels[:, :, :3], edit=edit)
    assert {one.reference for one in find_volumes(tmp_path)} == {str(path) for path in files}


def test_localizers_without_a_series_uid_are_not_taken_for_the_series_beside_them(tmp_path, voxels, write_series):
    def scout(dataset, index):
        _without_series(dataset, index)
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]

    for path in write_series(tmp_path / "scout", voxels[:, :, :2], edit=scout):
        path.rename(tmp_path / f"scout_{path.name}")
    write_series(tmp_path, voxels)
    assert {(one.reference, one.verdict) for one in find_volumes(tmp_path)} == {
        (str(tmp_path), "MIXED_SERIES"),
        (f"{tmp_path}#1.2.3.4", ""),
    }


def test_the_name_of_a_series_without_a_number_does_not_depend_on_its_neighbours(tmp_path, voxels, write_series):
    def edit(dataset, index):
        dataset.SeriesNumber = None

    write_series(tmp_path / "tree" / "b", voxels, series="1.2.3.5", edit=edit)
    (alone,) = find_volumes(tmp_path / "tree" / "b")
    write_series(tmp_path / "tree" / "a", voxels, series="1.2.3.4")
    assert (alone.name, [one.name for one in find_volumes(tmp_path / "tree")]) == ("b", ["a_series7", "b"])


def test_a_link_that_leads_nowhere_is_a_volume_that_reading_refuses(tmp_path, voxels, write_nifti, refused):
    write_nifti(tmp_path / "here.nii.gz", voxels)
    (tmp_path / "gone.nii.gz").symlink_to(tmp_path / ".git" / "annex" / "gone")
    (tmp_path / "gone.npz").symlink_to("nowhere")
    found = {one.reference: one.verdict for one in find_volumes(tmp_path)}
    assert found == {
        str(tmp_path / "gone.nii.gz"): "NOT_FOUND",
        str(tmp_path / "gone.npz"): "NOT_FOUND",
        str(tmp_path / "here.nii.gz"): "",
    }
    with refused("NOT_FOUND", "a link to a file that is not there", "`datalad get`"):
        read_volume(tmp_path / "gone.nii.gz")


def test_a_series_whose_last_file_is_a_link_to_nowhere_is_no_shorter_volume(tmp_path, voxels, write_series, refused):
    last = write_series(tmp_path / "ct", voxels)[-1]
    last.unlink()
    last.symlink_to("nowhere")
    assert [one.verdict for one in find_volumes(tmp_path)] == ["NOT_FOUND", "NOT_FOUND"]  # the file, and its series
    with refused("NOT_FOUND", last.name, "a link to a file that is not there"):
        read_volume(tmp_path / "ct")


def test_a_folder_of_links_that_lead_nowhere_holds_volumes_that_reading_refuses(tmp_path):
    for name in ("1.dcm", "2.dcm"):
        (tmp_path / name).symlink_to("nowhere")
    assert [one.verdict for one in find_volumes(tmp_path)] == ["NOT_FOUND", "NOT_FOUND"]


def test_files_that_look_like_images_and_are_no_volumes_are_named(tree):
    for name in ("pair.hdr", "pair.img", "alone.IMG", "slide.tif", ".x.tif", "lost"):
        (tree / name).touch()
    (tree / "lost").unlink()
    (tree / "lost").symlink_to("nowhere")
    passed = [path.relative_to(tree).as_posix() for path in find_passed_over(tree)]
    assert passed == ["alone.IMG", "lost", "many.npz", "pair.hdr", "slide.tif"]


@pytest.mark.parametrize("name", ["pair.hdr", "pair.img", "many.npz", "notes.doc"])
def test_a_single_file_that_is_no_volume_is_left_to_reading_to_refuse(name, tmp_path, voxels, refused):
    header = nib.Nifti1Pair(voxels, np.eye(4)).header
    (tmp_path / "pair.hdr").write_bytes(header.binaryblock)
    (tmp_path / "pair.img").write_bytes(voxels.tobytes())
    (tmp_path / "notes.doc").write_text("nothing of it")
    np.savez(tmp_path / "many.npz", x=voxels, y=voxels)
    code, words = {
        "pair.hdr": ("NOT_NIFTI", ".hdr/.img pair"),
        "pair.img": ("UNKNOWN_FORMAT", "the ANALYZE or NIfTI pair"),
        "many.npz": ("AMBIGUOUS_NPZ", "many.npz#x"),
        "notes.doc": ("UNKNOWN_FORMAT", "convert it to NIfTI"),
    }[name]
    with refused(code, words):
        (found,) = find_volumes(tmp_path / name)
        read_volume(found.reference)
