"""Segmentations written frame by frame with pydicom, whose voxels have known positions, against the image's grid."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG2MPML, ExplicitVRLittleEndian

from medvol.errors import MedvolError
from medvol.io.labels import read_label, read_label_channels
from medvol.io.reference import source_files

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
FRAME = "1.2.9"
NAMES = {1: "liver", 2: "spleen", 3: "tumour"}


def item(**values):
    dataset = Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def frame_item(matrix, level, segment):
    lps = LPS @ matrix
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    position = [float(f"{value:.10g}") for value in lps[:3, 3] + level * lps[:3, 2]]
    directions = [float(f"{value:.10g}") for value in [*(lps[:3, 0] / steps[0]), *(lps[:3, 1] / steps[1])]]
    groups = item(
        PlanePositionSequence=[item(ImagePositionPatient=position)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=directions)],
        PixelMeasuresSequence=[item(PixelSpacing=[steps[1], steps[0]], SliceThickness=steps[2])],
    )
    if segment:
        groups.SegmentIdentificationSequence = [item(ReferencedSegmentNumber=segment)]
    return groups


@pytest.fixture
def image(framed_series):
    return framed_series


@pytest.fixture
def write_seg(right_affine):
    """Write masks by segment number, each on the grid of `matrix`; planes where nothing is are left out."""

    def write(path, masks, *, kind="BINARY", matrix=None, shuffle=False, edit=None, pixels=None):
        matrix = right_affine if matrix is None else matrix
        if kind == "LABELMAP":
            merged = sum(mask.astype(np.uint8) * number for number, mask in masks.items())
            planes = [(0, level) for level in range(merged.shape[2]) if merged[..., level].any()]
            masks = {0: merged}
        else:
            planes = [
                (n, level) for n, mask in masks.items() for level in range(mask.shape[2]) if mask[..., level].any()
            ]
        if shuffle:
            planes = [planes[place] for place in np.random.default_rng(1).permutation(len(planes))]
        stack = np.stack([masks[number][..., level].T for number, level in planes])
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = f"1.2.840.10008.5.1.4.1.1.66.{7 if kind == 'LABELMAP' else 4}"
        meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = "1.2.7.1", ExplicitVRLittleEndian
        dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.7.1"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.3.7", FRAME
        dataset.Modality, dataset.SegmentationType = "SEG", kind
        dataset.Rows, dataset.Columns, dataset.NumberOfFrames = *stack.shape[1:], len(stack)
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
        bits = 1 if kind == "BINARY" else 8
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
        numbers = NAMES if kind == "LABELMAP" else {number: NAMES[number] for number in masks}
        dataset.SegmentSequence = [item(SegmentNumber=one, SegmentLabel=name) for one, name in numbers.items()]
        dataset.PerFrameFunctionalGroupsSequence = [frame_item(matrix, level, number) for number, level in planes]
        if kind == "FRACTIONAL":
            dataset.SegmentationFractionalType, dataset.MaximumFractionalValue = "PROBABILITY", 200
        data = np.packbits(stack.ravel(), bitorder="little") if bits == 1 else stack.astype(np.uint8)
        dataset.PixelData = data.tobytes() + b"\0" * (data.nbytes % 2)
        if edit:
            edit(dataset)
        dataset.save_as(path, enforce_file_format=True)
        return str(path)

    return write


@pytest.fixture
def truth():
    """A liver of an L-shape that no flip or turn maps onto itself, and a spleen that starts and ends elsewhere."""
    labels = np.zeros((7, 8, 9), dtype=np.uint8)
    labels[1:3, 2:7, 1:4] = 1
    labels[1:6, 2:4, 2] = 1
    labels[4:6, 5:8, 3:8] = 2
    return labels


def masks_of(labels):
    return {int(value): labels == value for value in np.unique(labels) if value}


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
@pytest.mark.parametrize("shuffle", [False, True])
def test_sparse_frames_in_any_order_lie_where_their_positions_say(tmp_path, image, truth, write_seg, kind, shuffle):
    scale = 200 if kind == "FRACTIONAL" else 1
    masks = {number: mask.astype(np.uint8) * scale for number, mask in masks_of(truth).items()}
    label = read_label(write_seg(tmp_path / "seg.dcm", masks, kind=kind, shuffle=shuffle), image)
    np.testing.assert_array_equal(label.volume.array, truth)
    assert label.names[1] == "liver"
    assert label.names[2] == "spleen"
    assert label.volume.notes == ()


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_frames_cut_along_any_axis_and_turned_any_way_give_the_same_labels(
    tmp_path, image, truth, right_affine, write_seg, axes
):
    for flips in itertools.product((False, True), repeat=3):
        turn = np.zeros((4, 4))
        turn[3, 3] = 1
        for new, old in enumerate(axes):
            turn[old, new] = -1 if flips[new] else 1
            turn[old, 3] = truth.shape[old] - 1 if flips[new] else 0
        turned = np.flip(truth.transpose(axes), [axis for axis in range(3) if flips[axis]])
        ref = write_seg(tmp_path / "seg.dcm", masks_of(turned), matrix=right_affine @ turn, shuffle=True)
        np.testing.assert_array_equal(read_label(ref, image).volume.array, truth)


def test_a_segmentation_on_a_nifti_of_the_series_is_placed_by_millimetres(tmp_path, truth, right_affine, write_seg):
    import nibabel as nib

    flipped = right_affine @ np.array([[-1.0, 0, 0, 6], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(np.zeros(truth.shape, np.int16), flipped), tmp_path / "ct.nii.gz")
    label = read_label(write_seg(tmp_path / "seg.dcm", masks_of(truth)), tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(label.volume.array, truth[::-1])
    assert "not compared" in label.volume.notes[0]


def test_voxels_of_more_than_half_the_maximum_are_inside(tmp_path, image, truth, write_seg):
    fraction = np.zeros(truth.shape, dtype=np.uint8)
    fraction[2, 3, 4:7] = 99, 100, 101  # of 200
    label = read_label(write_seg(tmp_path / "seg.dcm", {1: fraction}, kind="FRACTIONAL"), image)
    assert np.argwhere(label.volume.array).tolist() == [[2, 3, 6]]


def test_segments_that_overlap_are_refused_by_name_unless_those_chosen_do_not(
    tmp_path, image, truth, write_seg, refused
):
    tumour = np.zeros(truth.shape, dtype=bool)
    tumour[2, 3:5, 2] = True
    ref = write_seg(tmp_path / "seg.dcm", {**masks_of(truth), 3: tumour})
    with refused("LABELS_OVERLAP", "'liver' and 'tumour' share 2 voxels", "seg.dcm#"):
        read_label(ref, image)
    both = read_label(f"{ref}#spleen;TUMOUR", image)
    np.testing.assert_array_equal(both.volume.array, np.where(tumour, 2, truth == 2))
    assert both.names == {1: "spleen", 2: "tumour"}
    by_number = read_label(f"{ref}#2;cyst?", image)
    np.testing.assert_array_equal(by_number.volume.array, truth == 2)
    assert by_number.names == {1: "spleen", 2: "cyst"}
    assert "absent" in by_number.volume.notes[0]
    channels = read_label_channels(ref, image)
    np.testing.assert_array_equal(channels.volume.array, np.stack([truth == 1, truth == 2, tumour], axis=-1))
    with refused("NOT_FOUND", "no structure 'splen'", "did you mean 'spleen'?"):
        read_label(f"{ref}#splen", image)
    with refused("BAD_REFERENCE", "listed twice"):
        read_label(f"{ref}#spleen;2", image)


def test_two_segments_of_one_name_are_one_structure(tmp_path, image, truth, write_seg):
    def rename(dataset):
        dataset.SegmentSequence[1].SegmentLabel = "Liver"

    label = read_label(write_seg(tmp_path / "seg.dcm", masks_of(truth), edit=rename), image)
    np.testing.assert_array_equal(label.volume.array, truth > 0)
    assert label.names == {1: "liver"}


def test_another_frame_of_reference_is_refused_and_a_missing_one_needs_a_reference_to_the_series(
    tmp_path, image, truth, write_seg, refused
):
    def other(dataset):
        dataset.FrameOfReferenceUID = "1.2.10"
        dataset.ReferencedSeriesSequence = [item(SeriesInstanceUID="1.2.3.4")]

    def missing(dataset):
        del dataset.FrameOfReferenceUID

    def by_series(dataset):
        missing(dataset)
        dataset.ReferencedSeriesSequence = [item(SeriesInstanceUID="1.2.3.4")]

    with refused("FRAME_MISMATCH", "1.2.10", FRAME):
        read_label(write_seg(tmp_path / "seg.dcm", masks_of(truth), edit=other), image)
    with refused("FRAME_MISMATCH", "no common frame"):
        read_label(write_seg(tmp_path / "seg.dcm", masks_of(truth), edit=missing), image)
    label = read_label(write_seg(tmp_path / "seg.dcm", masks_of(truth), edit=by_series), image)
    np.testing.assert_array_equal(label.volume.array, truth)


def test_planes_off_the_voxels_are_refused_with_the_distance_and_resampled_on_request(
    tmp_path, image, truth, right_affine, write_seg, refused
):
    shift = np.eye(4)
    shift[:3, 3] = 0.0, 0.0, 0.3  # 0.9 mm along the normal
    ref = write_seg(tmp_path / "seg.dcm", masks_of(truth), matrix=right_affine @ shift)
    with refused("GEOMETRY_MISMATCH", "0.9 mm off", "--resample_labels True"):
        read_label(ref, image)
    label = read_label(ref, image, resample=True)
    np.testing.assert_array_equal(label.volume.array, truth)  # every centre is still the nearest
    assert "resampled" in label.volume.notes[0]
    # Half the spacing along x: voxel i of the image lies on voxel 2 i of the segmentation.
    halve = np.diag([0.5, 1.0, 1.0, 1.0])
    fine = np.repeat(truth, 2, axis=0)
    ref = write_seg(tmp_path / "seg.dcm", masks_of(fine), matrix=right_affine @ halve, shuffle=True)
    with refused("GEOMETRY_MISMATCH", "0.5 x 1.5 mm"):
        read_label(ref, image)
    np.testing.assert_array_equal(read_label(ref, image, resample=True).volume.array, truth)


def test_planes_on_every_second_slice_are_taken_for_those_of_a_coarser_series(
    tmp_path, image, truth, right_affine, write_seg, refused
):
    coarse = truth[:, :, ::2]
    matrix = right_affine @ np.diag([1.0, 1.0, 2.0, 1.0])
    with refused("GEOMETRY_MISMATCH", "planes 6 mm apart", "step, 3 mm"):
        read_label(write_seg(tmp_path / "seg.dcm", masks_of(coarse), matrix=matrix), image)

    def state_step(dataset):
        for group in dataset.PerFrameFunctionalGroupsSequence:
            group.PixelMeasuresSequence[0].SpacingBetweenSlices = 3.0

    def name_slices(dataset):
        for group in dataset.PerFrameFunctionalGroupsSequence:
            source = item(ReferencedSOPInstanceUID="1.2.3.4.1")
            group.DerivationImageSequence = [item(SourceImageSequence=[source])]

    alone = np.where(np.arange(9) % 2, 0, truth)
    for edit in (state_step, name_slices):
        label = read_label(write_seg(tmp_path / "seg.dcm", masks_of(coarse), matrix=matrix, edit=edit), image)
        np.testing.assert_array_equal(label.volume.array, alone)


def test_voxels_outside_the_image_are_counted(tmp_path, image, truth, right_affine, write_seg):
    shift = np.eye(4)
    shift[:3, 3] = -2, 0, 3
    label = read_label(write_seg(tmp_path / "seg.dcm", masks_of(truth), matrix=right_affine @ shift), image)
    expected = np.zeros_like(truth)
    expected[:5, :, 3:] = truth[2:, :, :6]
    np.testing.assert_array_equal(label.volume.array, expected)
    lost = int((truth > 0).sum() - (expected > 0).sum())
    assert label.volume.notes == (f"{lost} labelled voxels lie outside the image",)


def test_a_segmentation_beside_its_image_is_refused_and_not_read_as_empty(
    tmp_path, image, truth, right_affine, write_seg, refused
):
    shift = np.eye(4)
    for steps in (20.0, 20.3):
        shift[2, 3] = steps
        ref = write_seg(tmp_path / "seg.dcm", masks_of(truth), matrix=right_affine @ shift)
        with refused("GEOMETRY_MISMATCH", f"{(truth > 0).sum()} labelled voxels, all outside"):
            read_label(ref, image, resample=True)


def test_a_compression_that_nothing_decodes_is_named(tmp_path, image, truth, write_seg, refused):
    ref = write_seg(tmp_path / "seg.dcm", masks_of(truth), kind="LABELMAP")
    dataset = dcmread(ref)
    dataset.PixelData = encapsulate([b"video"] * int(dataset.NumberOfFrames))
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = MPEG2MPML
    dataset.save_as(ref, enforce_file_format=True)
    with refused("NEED_CODEC", "MPEG2", "pip install"):
        read_label(ref, image)


def test_a_folder_with_one_segmentation_names_it_and_several_need_a_uid(tmp_path, image, truth, write_seg, refused):
    folder = tmp_path / "labels"
    folder.mkdir()
    write_seg(folder / "a", masks_of(truth))
    np.testing.assert_array_equal(read_label(folder, image).volume.array, truth)
    assert source_files(folder) == (folder / "a",)
    assert source_files(f"{folder}#spleen") == (folder / "a",)

    def rename(dataset):
        dataset.SeriesInstanceUID = "1.2.3.8"

    write_seg(folder / "b", {1: truth == 2}, edit=rename)
    with refused("SEVERAL_LABELS", "2 segmentations"):
        read_label(folder, image)
    label = read_label(f"{folder}#1.2.3.8;liver", image)
    np.testing.assert_array_equal(label.volume.array, truth == 2)
    # Beside its images a segmentation must be named: the folder alone means the series.
    write_seg(Path(image) / "seg", masks_of(truth))
    with refused("SEVERAL_LABELS", "beside images"):
        read_label(image, image)
    np.testing.assert_array_equal(read_label(f"{image}#1.2.3.7", image).volume.array, truth)


@pytest.mark.parametrize(
    ("name", "code"),
    [("DimensionOrganizationType", "TILED_IMAGE"), ("PixelData", "TRUNCATED"), ("SegmentationType", "BAD_DTYPE"),
     ("NumberOfFrames", "BAD_DICOM"), ("Position", "NO_GEOMETRY")],
)  # fmt: skip
def test_a_damaged_or_strange_segmentation_is_refused(tmp_path, image, truth, write_seg, name, code):
    def edit(dataset):
        if name == "Position":
            del dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence
        else:
            value = {"DimensionOrganizationType": "TILED_FULL", "PixelData": b"\0\0", "NumberOfFrames": 99}
            setattr(dataset, name, value.get(name, "ODD"))

    with pytest.raises(MedvolError) as caught:
        read_label(write_seg(tmp_path / "seg.dcm", masks_of(truth), edit=edit), image)
    assert caught.value.code == code
    assert len(str(caught.value)) <= 300


@pytest.mark.realdata
def test_the_files_of_highdicom_are_read_or_refused_by_name(data_folder, tmp_path, refused):
    folder = data_folder / "highdicom_test_files"
    if not folder.is_dir():
        pytest.skip("highdicom_test_files is absent")
    one = read_label(folder / "seg_image_ct_binary_single_frame.dcm", folder / "ct_image.dcm")
    assert int((one.volume.array == 1).sum()) == 1832  # as highdicom 0.28 counts
    with refused("FRAME_MISMATCH"):
        read_label(folder / "seg_image_ct_binary.dcm", folder / "ct_image.dcm")
