"""Structure sets written with pydicom from corners in voxel indices, whose millimetres follow from the affine."""

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

from medvol.io.labels import read_label, read_label_channels

FRAME = "1.2.9"


def item(**values):
    dataset = Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def box(low, high, level, axis=2):
    """Return corners of a rectangle in index coordinates, at `level` along `axis`."""
    flat = [(low[0], low[1]), (high[0], low[1]), (high[0], high[1]), (low[0], high[1])]
    return np.insert(np.array(flat, dtype=float), axis, level, axis=1)


@pytest.fixture
def image(framed_series):
    return framed_series


@pytest.fixture
def write_rt(right_affine):
    """Write contours, given in voxel indices of the image, by the name of their structure."""

    def write(path, structures, *, kind="CLOSED_PLANAR", edit=None, slices=False):
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ right_affine
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = RTStructureSetStorage, "1.2.8.1"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = RTStructureSetStorage, "1.2.8.1"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.Modality = "1.2.3", "1.2.3.8", "RTSTRUCT"
        dataset.ReferencedFrameOfReferenceSequence = [item(FrameOfReferenceUID=FRAME)]
        dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
        for number, (name, contours) in enumerate(structures.items()):  # numbers of structures may start at 0
            dataset.StructureSetROISequence.append(
                item(ROINumber=number, ROIName=name, ReferencedFrameOfReferenceUID=FRAME)
            )
            drawn = []
            for corners in contours:
                points = corners @ lps[:3, :3].T + lps[:3, 3]
                one = item(
                    ContourGeometricType=kind,
                    NumberOfContourPoints=len(points),
                    ContourData=[float(f"{value:.9g}") for value in points.ravel()],
                )
                if slices:
                    uid = f"1.2.3.4.{round(corners[0, 2]) + 1}"
                    one.ContourImageSequence = [item(ReferencedSOPInstanceUID=uid)]
                drawn.append(one)
            # Contours in an order of their own.
            dataset.ROIContourSequence.insert(0, item(ReferencedROINumber=number, ContourSequence=drawn[::-1]))
        if edit:
            edit(dataset)
        dataset.save_as(path, enforce_file_format=True)
        return str(path)

    return write


LIVER = [box((0.5, 1.5), (3.5, 4.5), level) for level in (2, 3, 4)]
SPLEEN = [box((4.2, 0.7), (6.3, 6.6), level) for level in (3, 4, 5, 6)]


@pytest.fixture
def truth():
    labels = np.zeros((7, 8, 9), dtype=np.uint8)
    labels[1:4, 2:5, 2:5] = 1
    labels[5:7, 1:7, 3:7] = 2
    return labels


def test_contours_become_the_voxels_whose_centres_they_enclose(tmp_path, image, truth, write_rt):
    label = read_label(write_rt(tmp_path / "rt.dcm", {"liver": LIVER, "spleen": SPLEEN}), image)
    np.testing.assert_array_equal(label.volume.array, truth)
    assert label.names == {1: "liver", 2: "spleen"}
    assert label.volume.notes == ()
    chosen = read_label(f"{tmp_path / 'rt.dcm'}#Spleen;kidney?", image)
    np.testing.assert_array_equal(chosen.volume.array, truth == 2)


def test_contours_across_another_axis_fill_the_same_voxels(tmp_path, image, truth, write_rt):
    sagittal = [box((1.5, 1.5), (4.5, 4.5), level, axis=0) for level in (1, 2, 3)]
    label = read_label(write_rt(tmp_path / "rt.dcm", {"liver": sagittal}), image)
    np.testing.assert_array_equal(label.volume.array, truth == 1)


def test_a_contour_within_a_contour_is_a_hole(tmp_path, image, truth, write_rt):
    holes = [box((1.5, 2.5), (2.5, 3.5), level) for level in (2, 3, 4)]
    label = read_label(write_rt(tmp_path / "rt.dcm", {"liver": LIVER + holes}), image)
    truth[2, 3, :] = 0
    np.testing.assert_array_equal(label.volume.array, truth == 1)


def test_structures_that_overlap_are_refused_by_name_or_read_as_channels(tmp_path, image, truth, write_rt, refused):
    body = [box((-0.5, -0.5), (6.5, 7.5), level) for level in range(9)]
    ref = write_rt(tmp_path / "rt.dcm", {"BODY": body, "liver": LIVER})
    with refused("LABELS_OVERLAP", "'BODY' and 'liver' share 27 voxels"):
        read_label(ref, image)
    channels = read_label_channels(ref, image).volume.array
    assert channels[..., 0].all()
    np.testing.assert_array_equal(channels[..., 1], truth == 1)


def test_contours_between_slices_go_to_the_nearest_with_a_note(tmp_path, image, truth, write_rt):
    off = [corners + np.array([0, 0, 0.4]) for corners in LIVER]
    label = read_label(write_rt(tmp_path / "rt.dcm", {"liver": off}), image)
    np.testing.assert_array_equal(label.volume.array, truth == 1)
    assert label.volume.notes == ("'liver': contours up to 1.2 mm off the slices they were given to",)


@pytest.mark.parametrize(("step", "words"), [(0.5, "1.5 mm apart"), (2.0, "6 mm apart"), (1.3, "3.9 mm apart")])
def test_contours_of_another_series_are_refused_with_the_step_and_resampled_on_request(
    tmp_path, image, write_rt, refused, step, words
):
    levels = np.arange(1.0, 7.2, step)
    contours = [box((0.5, 1.5), (3.5, 4.5), level) for level in levels]
    ref = write_rt(tmp_path / "rt.dcm", {"liver": contours})
    with refused("GEOMETRY_MISMATCH", words, "the image's step, 3 mm", "--resample_labels True"):
        read_label(ref, image)
    labels = read_label(ref, image, resample=True).volume.array
    reach = max(step, 1) / 2
    near = [bool(np.abs(levels - place).min() <= reach + 1e-6) for place in range(9)]
    assert labels.any(axis=(0, 1)).tolist() == near
    assert labels.sum() == 9 * sum(near)


def test_two_lesions_on_slices_apart_need_a_reference_to_the_image(tmp_path, image, write_rt, refused):
    contours = [box((0.5, 1.5), (3.5, 4.5), level) for level in (1, 6)]
    with refused("GEOMETRY_MISMATCH", "15 mm apart"):
        read_label(write_rt(tmp_path / "rt.dcm", {"lesion": contours}), image)
    label = read_label(write_rt(tmp_path / "rt.dcm", {"lesion": contours}, slices=True), image)
    assert np.flatnonzero(label.volume.array.any(axis=(0, 1))).tolist() == [1, 6]


def test_a_contour_that_crosses_slices_is_refused(tmp_path, image, write_rt, refused):
    tilted = box((0.5, 1.5), (3.5, 4.5), 2)
    tilted[2:, 2] += 0.9
    with refused("GEOMETRY_MISMATCH", "'liver': a contour that spans 2.7 mm"):
        read_label(write_rt(tmp_path / "rt.dcm", {"liver": [tilted]}), image)


def test_contours_outside_the_image_are_counted_and_refused_when_none_is_inside(tmp_path, image, write_rt, refused):
    contours = [box((0.5, 1.5), (3.5, 4.5), level) for level in (7, 8, 9, 10)]
    label = read_label(write_rt(tmp_path / "rt.dcm", {"liver": contours}), image)
    assert label.volume.array.sum() == 18
    assert label.volume.notes == ("'liver': 2 of 4 contour planes lie outside the image",)
    with refused("GEOMETRY_MISMATCH", "2 contour planes, none within"):
        read_label(write_rt(tmp_path / "rt.dcm", {"liver": contours[2:]}), image)


def test_points_and_open_lines_are_left_out_with_a_note(tmp_path, image, write_rt):
    for kind in ("POINT", "OPEN_PLANAR"):
        label = read_label(write_rt(tmp_path / "rt.dcm", {"marker": LIVER}, kind=kind), image)
        assert not label.volume.array.any()
        assert label.volume.notes == ("'marker': 3 points or open lines left out", "'marker': no closed contour")


def test_the_frame_of_reference_must_be_the_images_unless_every_contour_names_its_slices(
    tmp_path, image, truth, write_rt, refused
):
    def invent(dataset):
        dataset.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = "1.2.10"
        dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.10"

    def remove(dataset):
        del dataset.ReferencedFrameOfReferenceSequence
        del dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID

    for edit in (invent, remove):
        with refused("FRAME_MISMATCH", FRAME):
            read_label(write_rt(tmp_path / "rt.dcm", {"liver": LIVER}, edit=edit), image)
        label = read_label(write_rt(tmp_path / "rt.dcm", {"liver": LIVER}, edit=edit, slices=True), image)
        np.testing.assert_array_equal(label.volume.array, truth == 1)
        assert "names a slice of this image" in label.volume.notes[0]


def test_damaged_contours_are_refused(tmp_path, image, write_rt, refused):
    def cut(dataset):
        dataset.ROIContourSequence[0].ContourSequence[0].ContourData = [1.0, 2.0, 3.0, 4.0]

    with refused("BAD_DICOM", "rt.dcm"):
        read_label(write_rt(tmp_path / "rt.dcm", {"liver": LIVER}, edit=cut), image)


@pytest.mark.realdata
def test_the_structure_set_of_rt_utils_lies_on_its_image(data_folder):
    folder = data_folder / "rt_utils" / "mock_data"
    if not folder.is_dir():
        pytest.skip("rt_utils is absent")
    label = read_label(folder / "invalid_reference_rt.dcm", folder)
    assert label.names == {1: "ROI-1", 2: "ROI-2", 3: "ROI-3", 4: "ROI-4"}
    assert len(label.volume.notes) == 4  # each has a contour beyond the two slices of the image
    assert "1 of 3 contour planes" in label.volume.notes[0]
