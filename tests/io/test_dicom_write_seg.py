"""Segmentations of series of every kind, read again by medvol's own reader and by dcmqi, and judged by dciodvfy."""

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage

from medvol.errors import MedvolError
from medvol.io.dicom_rle import encode_frame
from medvol.io.dicom_series import list_series
from medvol.io.dicom_source import dicom_source, on_source_grid
from medvol.io.dicom_write_seg import KINDS, Algorithm, write_segmentation
from medvol.io.labels import read_label, read_label_channels
from medvol.io.read import read_volume
from medvol.io.segment_codes import COLUMNS, coded_structures, read_codes

pytest.importorskip("highdicom")

ALGORITHM = Algorithm("medvol test", "0.0 weights 0123456789ab")
NAMES = ("liver", "left kidney", "spleen")


def item(**values):
    dataset = Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


@pytest.fixture
def truth():
    """An L-shape that no flip or turn maps onto itself, a structure with gaps between planes, and an absent one."""
    labels = np.zeros((7, 8, 9), dtype=np.uint8)
    labels[1:3, 2:7, 1:4] = 1
    labels[1:6, 2:4, 2] = 1
    labels[4:6, 5:8, [3, 5, 8]] = 2
    return labels


@pytest.fixture
def image(tmp_path, voxels, write_series):
    write_series(tmp_path / "ct", voxels, edit=lambda dataset, _: setattr(dataset, "FrameOfReferenceUID", "1.2.9"))
    return tmp_path / "ct"


@pytest.fixture
def write(tmp_path):
    def write_labels(labels, affine, image, *, names=NAMES, kind="labelmap", path="seg.dcm"):
        structures = coded_structures(names)
        source = dicom_source(image)
        return write_segmentation(
            tmp_path / path, labels, affine, source, structures, algorithm=ALGORITHM, kind=kind
        ).path

    return write_labels


def errors_of(path):
    """Return what dciodvfy calls errors."""
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy (Debian's dicom3tools) is absent")
    result = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    return [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("Error")]


def dcmqi_labels(path, folder, target):
    """Return the voxels that dcmqi reads, on a grid given as shape and affine, placed by affine."""
    import SimpleITK

    program = shutil.which("segimage2itkimage")
    if program is None:
        pytest.skip("segimage2itkimage (dcmqi) is absent")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    options = ["--inputDICOM", str(path), "--outputDirectory", str(folder), "--outputType", "nrrd"]
    subprocess.run([program, *options], capture_output=True, check=True)
    meta = json.loads((folder / "meta.json").read_text())
    labels = np.zeros(target.array.shape, dtype=np.uint8)
    for number, segments in enumerate(meta["segmentAttributes"], start=1):
        found = SimpleITK.ReadImage(str(folder / f"{number}.nrrd"))
        values = SimpleITK.GetArrayFromImage(found)
        for index in np.argwhere(values)[:, ::-1]:
            point = np.array(found.TransformIndexToPhysicalPoint([int(one) for one in index])) * (-1, -1, 1)
            place = np.rint(np.linalg.inv(target.affine) @ [*point, 1])[:3].astype(int)
            labels[tuple(place)] = values[tuple(index[::-1])] if segments[1:] else segments[0]["labelID"]
    return labels


def turns():
    """Every order and direction of three axes."""
    return itertools.product(itertools.permutations(range(3)), itertools.product((False, True), repeat=3))


def turned(labels, affine, axes, flips):
    """Return labels with permuted and flipped axes, and the affine under which they lie where they lay."""
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for new, old in enumerate(axes):
        turn[old, new] = -1 if flips[new] else 1
        turn[old, 3] = labels.shape[old] - 1 if flips[new] else 0
    return np.flip(labels.transpose(axes), [axis for axis in range(3) if flips[axis]]), affine @ turn


def test_labels_of_all_48_axis_orders_come_back_where_they_were(write, image, truth):
    volume = read_volume(image)
    source = dicom_source(image)
    for number, (axes, flips) in enumerate(turns()):
        labels, affine = turned(truth, volume.affine, axes, flips)
        np.testing.assert_array_equal(on_source_grid(labels, affine, source), truth)
        if number % 9 == 0:  # another order and other directions each time; what is written is the array above
            read = read_label(write(labels, affine, image), image)
            np.testing.assert_array_equal(read.volume.array, truth)
    assert read.names == dict(enumerate(NAMES, start=1))
    assert read.volume.notes == ()


@pytest.mark.parametrize("kind", ["labelmap", "binary"])
def test_dcmqi_reads_the_same_voxels_of_a_mask_in_another_order(write, image, truth, tmp_path, kind):
    volume = read_volume(image)
    labels, affine = turned(truth, volume.affine, (2, 0, 1), (True, False, True))
    path = write(labels, affine, image, kind=kind)
    np.testing.assert_array_equal(dcmqi_labels(path, tmp_path / "q", volume), truth)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_back_equal(write, image, truth, kind):
    path = write(truth, read_volume(image).affine, image, kind=kind)
    np.testing.assert_array_equal(read_label(path, image).volume.array, truth)
    assert dcmread(path).NumberOfFrames == (6 if kind == "binary" else 5)  # planes where nothing is are left out


def test_a_gantry_tilt_keeps_every_plane_where_it_was(tmp_path, write, write_series, voxels, right_affine, truth):
    tilted = right_affine.copy()
    tilted[:3, 2] += 0.7 * right_affine[:3, 1] / 1.5
    write_series(tmp_path / "ct", voxels, matrix=tilted)
    volume = read_volume(tmp_path / "ct")
    for axes, flips in (((0, 1, 2), (False, True, True)), ((1, 2, 0), (True, False, False))):
        labels, affine = turned(truth, volume.affine, axes, flips)
        path = write(labels, affine, tmp_path / "ct")
        np.testing.assert_array_equal(read_label(path, tmp_path / "ct").volume.array, truth)
    source = {dcmread(one).SOPInstanceUID: dcmread(one).ImagePositionPatient for one in (tmp_path / "ct").iterdir()}
    for group in dcmread(path).PerFrameFunctionalGroupsSequence:
        uid = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        assert group.PlanePositionSequence[0].ImagePositionPatient == source[uid]


@pytest.mark.parametrize("flip", [False, True])
def test_files_and_numbers_in_any_order_make_no_difference(tmp_path, write, write_series, voxels, truth, flip):
    order = np.random.default_rng(1).permutation(9)

    def shuffle(dataset, index):
        dataset.InstanceNumber = int(order[index]) + 1

    paths = write_series(tmp_path / "ct", voxels[:, :, ::-1] if flip else voxels, edit=shuffle)
    for path, number in zip(paths, order, strict=True):
        path.rename(path.with_name(f"new{number}.dcm"))
    path = write(truth, read_volume(tmp_path / "ct").affine, tmp_path / "ct")
    np.testing.assert_array_equal(read_label(path, tmp_path / "ct").volume.array, truth)


@pytest.fixture
def enhanced(tmp_path, voxels, write_series, right_affine):
    """One enhanced file with its frames in a random order."""
    order = np.random.default_rng(2).permutation(9)
    paths = [write_series(tmp_path / "plain", voxels)[index] for index in order]
    slices = [dcmread(path) for path in paths]
    dataset = slices[0]
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    dataset.FrameOfReferenceUID, dataset.NumberOfFrames = "1.2.9", 9
    measures = item(PixelSpacing=dataset.PixelSpacing, SliceThickness=dataset.SliceThickness)
    dataset.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=[item(ImageOrientationPatient=dataset.ImageOrientationPatient)],
            PixelMeasuresSequence=[measures],
            PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=0, RescaleType="HU")],
        )
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        item(PlanePositionSequence=[item(ImagePositionPatient=one.ImagePositionPatient)]) for one in slices
    ]
    dataset.PixelData = b"".join(one.PixelData for one in slices)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "InstanceNumber"):
        delattr(dataset, name)
    dataset.save_as(tmp_path / "enhanced.dcm", enforce_file_format=True)
    return tmp_path / "enhanced.dcm"


@pytest.mark.parametrize("kind", ["labelmap", "binary"])
def test_frames_of_an_enhanced_source_are_named_by_their_number(write, enhanced, truth, kind):
    image = enhanced
    path = write(truth, read_volume(image).affine, image, kind=kind)
    np.testing.assert_array_equal(read_label(path, image).volume.array, truth)
    dataset = dcmread(path)
    (source,) = dataset.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == dcmread(image).SOPInstanceUID
    positions = [
        one.PlanePositionSequence[0].ImagePositionPatient for one in dcmread(image).PerFrameFunctionalGroupsSequence
    ]
    for group in dataset.PerFrameFunctionalGroupsSequence:
        (reference,) = group.DerivationImageSequence[0].SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == source.ReferencedSOPInstanceUID
        position = group.PlanePositionSequence[0].ImagePositionPatient
        assert position == positions[reference.ReferencedFrameNumber - 1]
    assert errors_of(path) == [] or kind == "labelmap"


def test_structures_that_overlap_go_into_binary_and_are_refused_in_a_label_map(write, image, truth, refused):
    masks = np.stack([truth == 1, truth == 2, truth > 0], axis=-1)
    affine = read_volume(image).affine
    path = write(masks, affine, image, kind="binary")
    np.testing.assert_array_equal(read_label_channels(path, image).volume.array, masks)
    assert dcmread(path).SegmentsOverlap == "YES"
    with refused("LABELS_OVERLAP", f"{(truth > 0).sum()} voxels", "binary"):
        write(masks, affine, image)


def test_labels_beside_the_series_voxels_are_refused_with_the_distance(write, image, truth, refused):
    affine = read_volume(image).affine
    shifted = affine.copy()
    shifted[:3, 3] += 0.5 * affine[:3, 0]
    with refused("GEOMETRY_MISMATCH", "0.5 mm beside"):
        write(truth, shifted, image)
    with refused("GEOMETRY_MISMATCH", "6 x 8 x 9"):
        write(truth[1:], affine, image)
    with refused("WRONG_ARRAY", "label 4"):
        write(np.where(truth == 2, 4, truth).astype(np.uint8), affine, image)
    with refused("WRONG_ARRAY", "float64"):
        write(truth.astype(np.float64), affine, image)


def test_a_binary_segmentation_is_valid_and_says_what_made_it_and_of_what(write, image, truth):
    path = write(truth, read_volume(image).affine, image, kind="binary")
    assert errors_of(path) == []
    dataset, source = dcmread(path), dcmread(next(image.iterdir()))
    for name in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert dataset[name].value == source[name].value
    kidney = dataset.SegmentSequence[1]
    assert kidney.SegmentLabel == "left kidney"
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("64033007", "SCT")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert kidney.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion == ALGORITHM.version
    uids = {one.ReferencedSOPInstanceUID for one in dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert uids == {dcmread(one).SOPInstanceUID for one in image.iterdir()}
    assert dataset.SeriesInstanceUID != source.SeriesInstanceUID


@pytest.mark.parametrize(
    ("name", "value"),
    [("SpecificCharacterSet", ""), ("PatientSex", "male"), ("StudyDate", "anonymised"), ("PatientBirthDate", "1.2.60"),
     ("Laterality", "U"), ("StudyTime", "late"), ("PatientName", "OnlyAFamilyName"), ("PatientAge", "75"),
     ("FrameOfReferenceUID", None)],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*(Invalid value|value length|cannot contain).*:UserWarning")  # while it is damaged
def test_a_source_with_a_broken_attribute_gets_a_valid_segmentation(
    tmp_path, write, write_series, voxels, truth, name, value
):
    from pydicom import config

    def damage(dataset, index):
        if name in dataset:
            del dataset[name]
        if value is not None:
            setattr(dataset, name, value)

    with config.disable_value_validation():
        write_series(tmp_path / "ct", voxels, edit=damage)
    path = write(truth, read_volume(tmp_path / "ct").affine, tmp_path / "ct", kind="binary")
    np.testing.assert_array_equal(read_label(path, tmp_path / "ct").volume.array, truth)
    assert errors_of(path) == []


def test_names_in_another_alphabet_stay_readable(tmp_path, write, write_series, voxels, truth):
    def name(dataset, index):
        dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
        dataset.PatientName = "Yamada^Tarou=山田^太郎"

    write_series(tmp_path / "ct", voxels, edit=name)
    dataset = dcmread(write(truth, read_volume(tmp_path / "ct").affine, tmp_path / "ct"))
    assert str(dataset.PatientName) == "Yamada^Tarou=山田^太郎"


def test_a_source_without_identifiers_or_of_another_format_is_refused(tmp_path, write_series, voxels, refused):
    def anonymise(dataset, index):
        dataset.StudyInstanceUID = ""

    write_series(tmp_path / "ct", voxels, edit=anonymise)
    with refused("NO_UID", "StudyInstanceUID"):
        dicom_source(tmp_path / "ct")
    unclassed = write_series(tmp_path / "unclassed", voxels, edit=lambda dataset, _: delattr(dataset, "SOPClassUID"))
    assert set(dicom_source(tmp_path / "unclassed").classes) == {CTImageStorage}  # as the head of the file says
    for path in unclassed:
        dataset = dcmread(path)
        dataset.file_meta.MediaStorageSOPClassUID = ""
        dataset.save_as(path, enforce_file_format=False)
    with refused("NO_UID", "SOPClassUID"):
        dicom_source(tmp_path / "unclassed")
    np.save(tmp_path / "a.npy", voxels)
    with refused("NOT_DICOM", "--output_formats"):
        dicom_source(tmp_path / "a.npy")


def test_without_highdicom_the_extra_that_brings_it_is_named(write, image, truth, refused, monkeypatch):
    affine = read_volume(image).affine
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with refused("NEED_PACKAGE", "medvol-monai[dicom]"):
        write(truth, affine, image)


def test_an_older_file_stays_when_the_new_one_is_refused(write, image, truth):
    affine = read_volume(image).affine
    before = write(truth, affine, image).read_bytes()
    with pytest.raises(MedvolError):
        write(truth[1:], affine, image)
    path = Path(image).parent / "seg.dcm"
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir() if one.name.startswith(".")] == []


def test_a_structure_is_known_by_its_synonyms_and_its_side(tmp_path, refused):
    kidney, lung, tumour = coded_structures(["Kidney-Right", "lh lungs", "Tumour"])
    assert kidney.meaning == "Kidney, Right"
    assert lung.meaning == "Lung, Left"
    assert tumour.category.meaning == "Morphologically Abnormal Structure"
    with refused("UNKNOWN_STRUCTURE", "'spleeen'", "spleen", "--segment_codes"):
        coded_structures(["spleeen"])
    with refused("UNKNOWN_STRUCTURE", "'left liver'"):
        coded_structures(["left liver"])
    (front,) = coded_structures(["Anterior"], ["Anterior=hippocampus_anterior"])
    assert (front.name, front.meaning) == ("Anterior", "Hippocampus, Anterior")
    table = tmp_path / "own.csv"
    table.write_text("name,category,type\nblob,49755003^SCT^Morphologically Abnormal Structure,1^99OWN^Blob\n")
    blob, liver, front = coded_structures(["Blob", "liver", "front"], [str(table), "front=hippocampus_anterior"])
    assert front.kind.meaning == "Hippocampus"
    assert (blob.kind.scheme, liver.kind.value) == ("99OWN", "10200004")
    table.write_text("name,category,type\nblob,49755003^SCT^Morphologically Abnormal Structure,1-99OWN-Blob\n")
    with refused("BAD_TABLE", "line 2", "value^scheme^meaning"):
        coded_structures(["blob"], table)
    with refused("NOT_FOUND"):
        coded_structures(["blob"], tmp_path / "none.csv")


def test_the_shipped_table_has_codes_that_the_standard_knows_and_no_name_twice():
    from pydicom.sr._concepts_dict import concepts

    from medvol.io.segment_codes import TABLE

    known = {value for entry in concepts["SCT"].values() for value in entry}
    rows = read_codes(TABLE)
    codes = {code for row in rows.values() for code in (row.category, row.kind, *row.modifiers)}
    assert {code.value for code in codes if code.scheme == "SCT"} <= known
    lines = TABLE.read_text().splitlines()
    assert set(COLUMNS) <= set(lines[0].split(","))
    names = [name for line in lines[1:] for name in (line.split(",")[0], *line.split(",")[1].split("|")) if name]
    normalised = ["_".join(name.casefold().replace("_", " ").split()) for name in names]
    assert len(set(normalised)) == len(normalised)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(3, 1), (1, 2), (5, 127), (4, 128), (3, 129), (2, 700)])
def test_runs_of_any_length_decode_to_the_same_voxels(dtype, shape):
    from pydicom.pixels.decoders.rle import _rle_decode_frame

    rng = np.random.default_rng(0)
    smooth = np.sort(rng.integers(0, np.iinfo(dtype).max, shape), axis=1).astype(dtype)
    for frame in (np.zeros(shape, dtype), np.full(shape, np.iinfo(dtype).max, dtype), smooth, smooth // 100 * 100):
        coded = encode_frame(frame)
        assert len(coded) % 2 == 0
        bits = 8 * frame.dtype.itemsize
        decoded = np.frombuffer(_rle_decode_frame(coded, *shape, 1, bits, ">"), f"<u{bits // 8}")
        np.testing.assert_array_equal(decoded.reshape(shape), frame)


def test_more_than_255_structures_take_16_bits(tmp_path, write, image):
    table = tmp_path / "own.csv"
    rows = [f"s{n},91723000^SCT^Anatomical Structure,{n}^99OWN^Structure {n}" for n in range(1, 301)]
    table.write_text("\n".join(["name,category,type", *rows]))
    structures = coded_structures([f"s{n}" for n in range(1, 301)], table)
    labels = np.zeros((7, 8, 9), dtype=np.uint16)
    labels[1:3, 2:7, 1:4] = 300
    labels[4, 5:8, 3] = 255
    affine, source = read_volume(image).affine, dicom_source(image)
    path = tmp_path / "seg.dcm"
    write_segmentation(path, labels, affine, source, structures, algorithm=ALGORITHM)
    np.testing.assert_array_equal(read_label(path, image).volume.array, labels)


def test_of_the_source_only_what_describes_patient_and_study_is_taken_over(
    tmp_path, write, write_series, voxels, truth
):
    private = ("OperatorsName", "SeriesDescription", "ProtocolName", "ImageComments", "PerformingPhysicianName")

    def plant(dataset, index):
        for name in (*private, "PatientComments", "StudyDescription"):
            setattr(dataset, name, "SECRETY^x")
        dataset.add_new(0x00091001, "LO", "SECRETY")

    write_series(tmp_path / "ct", voxels, edit=plant)
    dataset = dcmread(write(truth, read_volume(tmp_path / "ct").affine, tmp_path / "ct"))
    telling = {element.keyword for element in dataset.iterall() if "SECRETY" in str(element.value)[:200]}
    assert telling == {"PatientComments", "StudyDescription"}


@pytest.mark.realdata
@pytest.mark.parametrize("folder", ["mr_dicom_studies", "dcm_qa_enh"])
def test_real_series_get_their_labels_back(data_folder, write, folder):
    if not (data_folder / folder).is_dir():
        pytest.skip(f"{folder} is absent")
    references = [
        f"{data_folder / folder}#{fragment}"
        for series in list_series(data_folder / folder)
        for fragment, _ in series.volumes[:1]
    ]
    assert references
    for reference in references[:2]:
        volume = read_volume(reference)
        labels = np.digitize(volume.array, np.quantile(volume.array, [0.6, 0.8, 0.95])).astype(np.uint8)
        labels[:, :, ::3] = 0
        path = write(labels, volume.affine, reference, kind="binary")
        np.testing.assert_array_equal(read_label(path, reference).volume.array, labels)
        assert errors_of(path) == []
