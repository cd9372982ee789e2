"""Every trap of DICOM that was met: a series is read with every voxel in its place, or refused by name.

The generator writes landmarks at known positions: each voxel of the phantom has a value of its own, so the place of a
value in the volume that is read tells whether it lies where it was written. pydicom alone writes the files.
"""

import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from medvol.errors import MedvolError
from medvol.geometry import apply_affine
from medvol.io import ReadOptions, read_volume
from medvol.io.dicom_codecs import codec_problem, extract_bits, stated_size
from medvol.io.dicom_header import read_slice_headers
from medvol.io.dicom_series import list_series
from medvol.io.dicom_stored import Stored

TOLERANCE_MM = 0.03
TRAPS: dict[str, tuple[Callable, str, bool]] = {}


@dataclass
class Maker:
    """What a trap gets: a folder to fill, the phantom, where it lies, and the writer of plain series."""

    folder: Path
    voxels: np.ndarray
    affine: np.ndarray
    write: Callable[..., list[Path]]
    truth: np.ndarray = field(init=False)

    def __post_init__(self):
        self.truth = self.voxels

    def plain(self, edit=None, **options):
        return self.write(self.folder, self.voxels, edit=edit, **options)

    def changed(self, path, name, **values):
        """Write a copy of a file with other attributes."""
        dataset = pydicom.dcmread(path)
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
        dataset.save_as(self.folder / name)


def trap(code="", *, by_headers=True):
    """Mark a function as a trap that must be refused with a code, or read in place when there is none.

    What only decoding the pixels can find, the list of series does not know.
    """

    def mark(function):
        TRAPS[function.__name__.strip("_")] = (function, code, by_headers)
        return function

    return mark


@pytest.fixture
def maker(tmp_path, voxels, right_affine, write_series):
    return Maker(tmp_path / "study", voxels, right_affine, write_series)


def set_to(**values):
    def edit(dataset, index):
        for keyword, value in values.items():
            setattr(dataset, keyword, value(index) if callable(value) else value)

    return edit


def shift(distance):
    def edit(dataset, index):
        cosines = np.array(dataset.ImageOrientationPatient, float)
        normal = np.cross(cosines[:3], cosines[3:])
        moved = np.array(dataset.ImagePositionPatient, float) + normal * distance(index)
        dataset.ImagePositionPatient = [f"{one:.6f}" for one in moved]

    return edit


def write_enhanced(path, array, affine, *, order=None, edit=None, edit_frame=None, syntax=ExplicitVRLittleEndian):
    """Write one enhanced CT file; `order` gives for each frame the slice that it holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    order = list(range(array.shape[2])) if order is None else order
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = EnhancedCTImageStorage, f"1.2.9.{len(str(path))}"
    meta.TransferSyntaxUID = syntax
    encoding = {"is_implicit_VR": syntax.is_implicit_VR, "is_little_endian": syntax.is_little_endian}
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128, **encoding)
    dataset.SOPClassUID, dataset.SOPInstanceUID = EnhancedCTImageStorage, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "SECRETX", "1.2.3", "1.2.3.9"
    dataset.Modality, dataset.NumberOfFrames = "CT", len(order)
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = array.shape[1], array.shape[0], 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    shared, measures, plane, value = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [float(steps[1]), float(steps[0])], 9.0
    plane.ImageOrientationPatient = [float(f"{one:.9f}") for one in (lps[:3, :2] / steps[:2]).T.ravel()]
    value.RescaleSlope, value.RescaleIntercept, value.RescaleType = 1, -1000, "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([plane])
    shared.PixelValueTransformationSequence = Sequence([value])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    groups = []
    for frame, index in enumerate(order):
        group, position, content = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [float(f"{one:.6f}") for one in lps[:3, 3] + index * lps[:3, 2]]
        content.StackID, content.InStackPositionNumber = "1", index + 1
        content.DimensionIndexValues = [1, index + 1]
        group.PlanePositionSequence, group.FrameContentSequence = Sequence([position]), Sequence([content])
        if edit_frame is not None:
            edit_frame(group, frame)
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    kind = ">i2" if syntax == ExplicitVRBigEndian else "<i2"
    dataset.PixelData = np.ascontiguousarray(array[:, :, order].T + 1000).astype(kind).tobytes()
    dataset["PixelData"].VR = "OW"
    if edit is not None:
        edit(dataset)
    dataset.save_as(path, enforce_file_format=True)
    return path


# Order and numbers


@trap()
def _instance_numbers_at_random(maker):
    maker.plain(set_to(InstanceNumber=lambda index: (index * 5) % 9 + 1))


@trap()
def _no_instance_numbers(maker):
    maker.plain(lambda dataset, index: delattr(dataset, "InstanceNumber"))


@trap()
def _one_instance_number_absent(maker):
    maker.plain(lambda dataset, index: index == 3 and delattr(dataset, "InstanceNumber"))


@trap()
def _all_instance_numbers_equal(maker):
    maker.plain(set_to(InstanceNumber=1))


@trap()
def _slice_location_against_the_positions(maker):
    maker.plain(set_to(SliceLocation=lambda index: -7.5 * index, SpacingBetweenSlices=11.0, SliceThickness=5.0))


@trap()
def _sagittal_feet_first(maker):
    maker.affine = np.array([[0, 0, 3.0, 5], [1.0, 0, 0, -4], [0, -1.5, 0, 9], [0, 0, 0, 1]])
    maker.plain(set_to(PatientPosition="FFDL"), matrix=maker.affine)


@trap()
def _acquisitions_interleaved(maker):
    maker.plain(set_to(AcquisitionNumber=lambda index: 1 + index % 2, AcquisitionTime=lambda index: f"1200{index:02d}"))


@trap()
def _gantry_tilt(maker):
    maker.affine = maker.affine.copy()
    maker.affine[:3, 2] += maker.affine[:3, 1] / 1.5 * 3.0 * np.tan(np.radians(13.5))
    maker.plain(matrix=maker.affine)


@trap()
def _positions_rounded(maker):
    maker.plain(shift(lambda index: 0.02 * (-1) ** index))


@trap()
def _orientation_drifts_by_rounding(maker):
    def edit(dataset, index):
        values = [float(one) for one in dataset.ImageOrientationPatient]
        dataset.ImageOrientationPatient = [f"{one + 4e-4 * (index % 2):.6f}" for one in values]

    maker.plain(edit)


@trap("MISSING_SLICES")
def _inner_slice_missing(maker):
    maker.plain()[4].unlink()


@trap("UNEVEN_SPACING")
def _spacing_changes_halfway(maker):
    maker.plain(shift(lambda index: 2.0 * max(index - 4, 0)))


@trap("UNEVEN_SPACING")
def _slice_beside_the_line(maker):
    def edit(dataset, index):
        if index == 4:
            x, y, z = dataset.ImagePositionPatient
            dataset.ImagePositionPatient = [x + 2, y, z]

    maker.plain(edit)


@trap("BAD_AFFINE")
def _directions_no_unit_vectors(maker):
    maker.plain(set_to(ImageOrientationPatient=[1, 0, 0, 0, 1.1, 0]))


# Several images


@trap()
def _same_file_twice(maker):
    shutil.copy(maker.plain()[2], maker.folder / "copy.dcm")


@trap()
def _same_image_under_another_uid(maker):
    maker.changed(maker.plain()[2], "copy.dcm", SOPInstanceUID="1.2.3.77", InstanceNumber=77, AcquisitionNumber=2)


@trap("DUPLICATE_POSITION")
def _other_pixels_at_one_position(maker):
    path = maker.plain()[2]
    maker.changed(path, "other.dcm", PixelData=bytes(112))


@trap("DUPLICATE_POSITION")
def _same_pixels_beside_each_other(maker):
    path = maker.plain()[2]
    x, y, z = pydicom.dcmread(path).ImagePositionPatient
    # Along a row of the image, so at the same level of the stack.
    row = np.array(pydicom.dcmread(path).ImageOrientationPatient, float)[:3]
    maker.changed(path, "beside.dcm", ImagePositionPatient=[f"{one:.6f}" for one in (x, y, z) + 40 * row])


@trap("DUPLICATE_POSITION")
def _two_volumes_without_a_tag(maker):
    maker.plain()
    maker.write(maker.folder / "b", maker.voxels + 1000)


@trap("SEVERAL_VOLUMES")
def _two_echoes(maker):
    maker.plain(set_to(EchoTime=4.6))
    maker.write(maker.folder / "b", maker.voxels + 1000, edit=set_to(EchoTime=9.2))


@trap("SEVERAL_VOLUMES")
def _two_phases(maker):
    maker.plain(set_to(TemporalPositionIdentifier=1))
    maker.write(maker.folder / "b", maker.voxels + 1000, edit=set_to(TemporalPositionIdentifier=2))


@trap("DUPLICATE_POSITION")
def _second_echo_incomplete(maker):
    maker.plain(set_to(EchoTime=4.6))
    maker.write(maker.folder / "b", maker.voxels + 1000, edit=set_to(EchoTime=9.2))[3].unlink()


@trap("MIXED_SERIES")
def _two_series(maker):
    maker.plain()
    maker.write(maker.folder / "b", maker.voxels, series="1.2.3.5")


@trap("MIXED_SERIES")
def _matrix_changes(maker):
    maker.plain()
    maker.write(maker.folder / "b", maker.voxels[:5])


@trap("MIXED_SERIES")
def _two_frames_of_reference(maker):
    maker.plain(set_to(FrameOfReferenceUID=lambda index: f"1.9.{index // 5}"))


@trap("MIXED_SERIES")
def _orientation_changes(maker):
    maker.plain(lambda dataset, index: index > 6 and set_to(ImageOrientationPatient=[0, 1, 0, 0, 0, 1])(dataset, index))


@trap()
def _localizer_across(maker):
    path = maker.plain()[0]
    turned = dict(ImageOrientationPatient=[0, 1, 0, 0, 0, -1], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    maker.changed(path, "scout.dcm", SOPInstanceUID="1.2.3.88", **turned)


@trap()
def _localizer_of_the_same_orientation(maker):
    path = maker.plain()[0]
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "PixelData": bytes(112)}
    maker.changed(path, "scout.dcm", SOPInstanceUID="1.2.3.88", **scout)


@trap()
def _page_of_a_dose_report(maker):
    path = maker.plain()[0]
    page = pydicom.dcmread(path)
    page.SOPClassUID = page.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    page.SeriesInstanceUID, page.SOPInstanceUID, page.Modality = "1.2.3.99", "1.2.3.99.1", "OT"
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        delattr(page, keyword)
    page.save_as(maker.folder / "report.dcm")


@trap()
def _reports_and_structures_beside(maker):
    maker.plain()
    for name in ("rtstruct.dcm", "test-SR.dcm"):
        shutil.copy(get_testdata_file(name), maker.folder)


# Values


def _unsigned(dataset, index, **values):
    dataset.PixelRepresentation = 0
    stored = np.frombuffer(dataset.PixelData, "<i2") + np.int16(200)
    dataset.PixelData, dataset.RescaleIntercept = stored.astype("<u2").tobytes(), -200
    set_to(**values)(dataset, index)


@trap()
def _unsigned_with_intercept(maker):
    maker.plain(_unsigned)


@trap()
def _slope_per_slice(maker):
    def edit(dataset, index):
        slope = 2.0 ** (index % 3)
        stored = np.frombuffer(dataset.PixelData, "<i2").astype(float)
        dataset.RescaleSlope, dataset.RescaleIntercept = 1 / slope, 0
        dataset.PixelData = (stored * slope).astype("<i2").tobytes()

    maker.plain(edit)


@trap()
def _monochrome1(maker):
    maker.plain(set_to(PhotometricInterpretation="MONOCHROME1"))


@trap()
def _modality_table(maker):
    def edit(dataset, index):
        _unsigned(dataset, index)
        del dataset.RescaleSlope, dataset.RescaleIntercept
        table = Dataset()
        table.LUTDescriptor = [1024, 0, 16]
        table.add_new(0x00283006, "US", list(range(1024)))
        table.ModalityLUTType = "US"
        dataset.ModalityLUTSequence = Sequence([table])

    maker.plain(edit)
    maker.truth = maker.voxels + 200


@trap()
def _twelve_bits_signed_below_an_overlay(maker):
    def edit(dataset, index):
        dataset.BitsStored, dataset.HighBit = 12, 11
        stored = np.frombuffer(dataset.PixelData, "<u2")
        dataset.PixelData = ((stored & 0x0FFF) | 0x5000).astype("<u2").tobytes()

    maker.plain(edit)


@trap()
def _twelve_bits_at_the_top(maker):
    def edit(dataset, index):
        dataset.BitsStored, dataset.HighBit = 12, 15
        stored = np.frombuffer(dataset.PixelData, "<i2")
        dataset.PixelData = (stored << 4).astype("<i2").tobytes()

    maker.plain(edit)


@trap()
def _padding(maker):
    maker.plain(set_to(PixelPaddingValue=-100))


@trap("BAD_DICOM")
def _slope_zero(maker):
    maker.plain(set_to(RescaleSlope=0))


@trap("BAD_DTYPE")
def _thirty_two_bits(maker):
    maker.plain(set_to(BitsAllocated=32, Rows=4))


@trap("COLOUR_IMAGE")
def _colour(maker):
    maker.plain(set_to(PhotometricInterpretation="RGB", SamplesPerPixel=3, BitsAllocated=8, Rows=4))


# Encodings and files


@trap()
def _implicit(maker):
    maker.plain(syntax=ImplicitVRLittleEndian)


@trap()
def _big_endian(maker):
    maker.plain(syntax=ExplicitVRBigEndian)


@trap()
def _deflated(maker):
    maker.plain(syntax=DeflatedExplicitVRLittleEndian)


@trap()
def _run_length(maker):
    maker.plain(lambda dataset, index: dataset.compress(RLELossless, generate_instance_uid=False))


@trap()
def _no_preamble_nested_and_junk(maker):
    for position, path in enumerate(maker.plain(syntax=ImplicitVRLittleEndian)):
        data = path.read_bytes()
        path.unlink()
        place = maker.folder / f"{position % 2}" / "deeper"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"IM{position}").write_bytes(data[132:])
    (maker.folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" + bytes(600))
    (maker.folder / "notes.txt").write_text("text")
    (maker.folder / "loop").symlink_to(maker.folder)


@trap()
def _index_file_beside(maker):
    maker.plain()
    shutil.copy(get_testdata_file("DICOMDIR"), maker.folder)


@trap("TRUNCATED")
def _truncated(maker):
    path = maker.plain()[4]
    path.write_bytes(path.read_bytes()[:-30])


@trap("BAD_DICOM")
def _nested_without_end(maker):
    path = maker.plain()[4]
    data = path.read_bytes()
    at = data.index(struct.pack("<HH", 0x0018, 0x0050))
    item = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    path.write_bytes(data[:at] + item * 5000 + data[at:])


@trap("NO_GEOMETRY")
def _no_pixel_spacing(maker):
    maker.plain(lambda dataset, index: delattr(dataset, "PixelSpacing"))


@trap("NO_GEOMETRY")
def _spacing_of_the_detector_only(maker):
    def edit(dataset, index):
        del dataset.PixelSpacing
        dataset.ImagerPixelSpacing = [0.14, 0.14]

    maker.plain(edit)


@trap("NO_GEOMETRY")
def _no_position(maker):
    maker.plain(lambda dataset, index: delattr(dataset, "ImagePositionPatient"))


@trap("SIEMENS_MOSAIC")
def _mosaic(maker):
    maker.plain(set_to(ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]))


@trap("MULTIFRAME")
def _frames_without_groups(maker):
    maker.plain(set_to(NumberOfFrames=2, Rows=4))


# Enhanced multi-frame


@trap()
def _enhanced(maker):
    write_enhanced(maker.folder / "one.dcm", maker.voxels, maker.affine)


@trap()
def _enhanced_shuffled(maker):
    write_enhanced(maker.folder / "one.dcm", maker.voxels, maker.affine, order=[4, 0, 8, 2, 6, 1, 7, 3, 5])


@trap()
def _enhanced_big_endian(maker):
    write_enhanced(maker.folder / "one.dcm", maker.voxels, maker.affine, syntax=ExplicitVRBigEndian)


@trap()
def _enhanced_run_length(maker):
    def edit(dataset):
        dataset.compress(RLELossless, generate_instance_uid=False)

    write_enhanced(maker.folder / "one.dcm", maker.voxels, maker.affine, order=[8, *range(8)], edit=edit)


@trap()
def _enhanced_rescale_per_frame(maker):
    def edit_frame(group, frame):
        value = Dataset()
        value.RescaleSlope, value.RescaleIntercept, value.RescaleType = 1, -1000 + 10 * frame, "HU"
        group.PixelValueTransformationSequence = Sequence([value])

    write_enhanced(maker.folder / "one.dcm", maker.voxels, maker.affine, edit_frame=edit_frame)
    maker.truth = maker.voxels + 10 * np.arange(9, dtype=np.int16)


@trap("MISSING_SLICES")
def _enhanced_frame_missing(maker):
    write_enhanced(maker.folder / "one.dcm", maker.voxels, maker.affine, order=[0, 1, 2, 4, 5, 6, 7, 8])


@trap("MIXED_SERIES")
def _enhanced_two_stacks(maker):
    def edit_frame(group, frame):
        group.FrameContentSequence[0].StackID = "1" if frame < 5 else "2"

    write_enhanced(maker.folder / "one.dcm", maker.voxels, maker.affine, edit_frame=edit_frame)


@trap("ENHANCED_MULTIFRAME")
def _enhanced_groups_missing(maker):
    write_enhanced(
        maker.folder / "one.dcm",
        maker.voxels,
        maker.affine,
        edit=lambda dataset: dataset.PerFrameFunctionalGroupsSequence.pop(),
    )


@trap("CONCATENATION")
def _concatenation(maker):
    def edit(dataset):
        dataset.ConcatenationUID, dataset.InConcatenationNumber = "1.2.3.4.5", 1

    write_enhanced(maker.folder / "one.dcm", maker.voxels, maker.affine, edit=edit)


@trap("TILED_IMAGE")
def _tiles(maker):
    def edit(dataset):
        dataset.DimensionOrganizationType = "TILED_FULL"

    write_enhanced(maker.folder / "one.dcm", maker.voxels, maker.affine, edit=edit)


@trap("TRUNCATED")
def _enhanced_truncated(maker):
    path = write_enhanced(maker.folder / "one.dcm", maker.voxels, maker.affine)
    path.write_bytes(path.read_bytes()[:-200])


# Combinations of traps


def turned(maker, degrees=13.5):
    maker.affine = maker.affine.copy()
    maker.affine[:3, 2] += maker.affine[:3, 1] / 1.5 * 3.0 * np.tan(np.radians(degrees))


def compressed(name, number, **options):
    """Return an edit that compresses a slice by imagecodecs, and the transfer syntax."""
    imagecodecs = pytest.importorskip("imagecodecs", reason="the extra 'codecs' is not installed")

    def edit(dataset, index):
        kind = np.int16 if name == "jpeg2k" else np.uint16
        stored = np.frombuffer(dataset.PixelData, kind).reshape(8, 7)
        dataset.PixelData = pydicom.encaps.encapsulate([getattr(imagecodecs, f"{name}_encode")(stored, **options)])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(f"1.2.840.10008.1.2.4.{number}")

    return edit


def patched(path, tag, kind, change):
    """Overwrite the bytes of a short explicit element: `change` gets its value and returns another."""
    data = path.read_bytes()
    at = data.index(struct.pack("<HH2s", *tag, kind))
    (length,) = struct.unpack_from("<H", data, at + 6)
    value = change(data[at + 8 : at + 8 + length])
    path.write_bytes(data[: at + 6] + struct.pack("<H", len(value)) + value + data[at + 8 + length :])


@trap()
def _tilt_and_numbers_at_random(maker):
    turned(maker)
    maker.plain(set_to(InstanceNumber=lambda index: (index * 5) % 9 + 1), matrix=maker.affine)


@trap("UNEVEN_SPACING")
def _tilt_and_uneven_steps(maker):
    turned(maker)
    maker.plain(shift(lambda index: 1.0 * (index > 4)), matrix=maker.affine)


@trap()
def _tilt_and_localizer(maker):
    turned(maker)
    path = maker.plain(matrix=maker.affine)[0]
    across = dict(ImageOrientationPatient=[0, 1, 0, 0, 0, -1], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    maker.changed(path, "scout.dcm", SOPInstanceUID="1.2.3.88", **across)


@trap("MISSING_SLICES")
def _one_file_twice_and_one_missing(maker):
    files = maker.plain()
    shutil.copy(files[2], maker.folder / "copy.dcm")
    files[5].unlink()


@trap("SEVERAL_VOLUMES")
def _two_echoes_and_one_file_twice(maker):
    path = maker.plain(set_to(EchoTime=4.6))[3]
    maker.write(maker.folder / "b", maker.voxels + 1000, edit=set_to(EchoTime=9.2))
    shutil.copy(path, maker.folder / "copy.dcm")


@trap("MIXED_SERIES")
def _two_echoes_half_a_step_apart(maker):
    between = maker.affine.copy()
    between[:3, 3] += between[:3, 2] / 2
    maker.plain(set_to(EchoTime=4.6))
    maker.write(maker.folder / "b", maker.voxels + 1000, matrix=between, edit=set_to(EchoTime=9.2))


@trap("MIXED_SERIES")
def _two_kernels_one_above_the_other(maker):
    maker.plain(set_to(ConvolutionKernel=lambda index: "SHARP" if index < 5 else "SOFT"))


@trap()
def _echo_time_rounded(maker):
    maker.plain(set_to(EchoTime=lambda index: 4.6 + 0.01 * (index % 2)))


@trap()
def _what_varies_by_slice_in_one_volume(maker):
    maker.plain(
        set_to(
            RepetitionTime=lambda index: 800 + 31 * index,
            TriggerTime=lambda index: 100 + 3 * index,
            XRayTubeCurrent=lambda index: 100 + index,
            SliceThickness=lambda index: 3 + index,
            KVP=120,
        )
    )


@trap("SEVERAL_VOLUMES")
def _four_dixon_images(maker):
    for number, kind in enumerate(("W", "F", "IP", "OP")):
        edit = set_to(ImageType=["ORIGINAL", "PRIMARY", "DIXON", kind])
        maker.write(maker.folder / kind, maker.voxels + 1000 * number, edit=edit)


@trap("SEVERAL_VOLUMES")
def _times_and_b_values(maker):
    for number, (time, value) in enumerate([(1, 0), (1, 1000), (2, 0), (2, 1000)]):
        edit = set_to(TemporalPositionIdentifier=time, DiffusionBValue=float(value))
        maker.write(maker.folder / f"{number}", maker.voxels + 1000 * number, edit=edit)


@trap("SEVERAL_VOLUMES")
def _heart_beats_of_unequal_length(maker):
    for phase in range(4):
        edit = set_to(TriggerTime=lambda index, phase=phase: round(phase * (700 + 40 * ((index * 7) % 9)) / 4, 1))
        maker.write(maker.folder / f"{phase}", maker.voxels + 1000 * phase, edit=edit)


@trap("SEVERAL_VOLUMES")
def _every_slice_at_a_time_of_its_own(maker):
    for number in range(3):
        edit = set_to(AcquisitionTime=lambda index, number=number: f"12{number:02d}{(index * 4) % 9:02d}.5")
        maker.write(maker.folder / f"{number}", maker.voxels + 1000 * number, edit=edit)


@trap("DUPLICATE_POSITION")
def _times_around_midnight(maker):
    def late(index):
        return f"235959.{index}" if index < 5 else f"000001.{index}"

    for number, time in enumerate((lambda index: f"235950.{index}", late, lambda index: f"000008.{index}")):
        maker.write(maker.folder / f"{number}", maker.voxels + 1000 * number, edit=set_to(AcquisitionTime=time))


@trap("DUPLICATE_POSITION")
def _two_reconstructions_in_turn(maker):
    for number in range(2):
        edit = set_to(
            AcquisitionTime=lambda index: f"1200{index:02d}",
            ContentTime=lambda index, number=number: f"1300{2 * index + (number if index % 2 else 1 - number):02d}",
        )
        maker.write(maker.folder / f"{number}", maker.voxels + 1000 * number, edit=edit)


@trap("MIXED_SERIES")
def _one_uid_in_two_studies(maker):
    maker.plain()
    maker.write(maker.folder / "b", maker.voxels + 1000, edit=set_to(StudyInstanceUID="1.2.4"))


@trap("MIXED_SERIES")
def _half_of_the_slices_mirrored(maker):
    def edit(dataset, index):
        if index > 4:
            row = [float(one) for one in dataset.ImageOrientationPatient]
            dataset.ImageOrientationPatient = [-one for one in row[:3]] + row[3:]

    maker.plain(edit)


@trap("MIXED_SERIES")
def _slices_round_an_axis(maker):
    def edit(dataset, index):
        angle = np.radians(4 * index)
        dataset.ImageOrientationPatient = [f"{one:.6f}" for one in (np.cos(angle), np.sin(angle), 0, 0, 0, -1)]
        dataset.ImagePositionPatient = [0, 0, 0]

    maker.plain(edit)


@trap("UNEVEN_SPACING")
def _a_bow_in_the_stack(maker):
    def edit(dataset, index):
        x, y, z = (float(one) for one in dataset.ImagePositionPatient)
        dataset.ImagePositionPatient = [x + 0.2 * index * (8 - index) / 16, y, z]

    maker.affine = np.diag([1.0, 1.5, 3.0, 1.0])
    maker.plain(edit, matrix=maker.affine)


@trap("UNEVEN_SPACING")
def _one_position_in_centimetres(maker):
    def edit(dataset, index):
        if index == 4:
            dataset.ImagePositionPatient = [float(one) / 10 for one in dataset.ImagePositionPatient]

    maker.plain(edit)


@trap()
def _spacing_in_another_sixth_digit(maker):
    maker.plain(set_to(PixelSpacing=lambda index: [1.5 + 1e-6 * (index == 3), 1.0]))


@trap()
def _positions_of_three_decimals_and_long_strings(maker):
    def longer(value):
        text = b"\\".join(b"%.20f" % float(b"%.3f" % float(one)) for one in value.split(b"\\"))
        return text + b" " * (len(text) % 2)

    for path in maker.plain():
        patched(path, (0x0020, 0x0032), b"DS", longer)


@trap("BAD_DICOM")
def _a_position_that_is_no_number(maker):
    patched(maker.plain()[3], (0x0020, 0x0032), b"DS", lambda value: b"nan\\nan\\nan ")


@trap("BAD_DICOM")
def _a_decimal_comma(maker):
    for path in maker.plain():
        patched(path, (0x0018, 0x0050), b"DS", lambda value: b"3,00")


@trap("NO_GEOMETRY")
def _one_position_missing(maker):
    maker.plain(lambda dataset, index: index == 4 and delattr(dataset, "ImagePositionPatient"))


@trap("MIXED_SERIES")
def _one_orientation_missing(maker):
    maker.plain(lambda dataset, index: index == 4 and delattr(dataset, "ImageOrientationPatient"))


@trap()
def _negative_spacing_between_slices(maker):
    maker.plain(set_to(SpacingBetweenSlices=-3.0, PatientPosition="HFDR"))


@trap()
def _steps_of_nine_micrometres(maker):
    maker.affine = np.diag([0.009, 0.009, 0.009, 1.0])
    maker.plain(set_to(PixelSpacing=[0.009, 0.009]), matrix=maker.affine)


@trap("UNEVEN_SPACING")
def _uneven_steps_of_twenty_micrometres(maker):
    def edit(dataset, index):
        x, y, z = dataset.ImagePositionPatient
        dataset.PixelSpacing, dataset.ImagePositionPatient = [0.02, 0.02], [x, y, float(z) + 0.008 * (index > 4)]

    maker.plain(edit, matrix=np.diag([0.02, 0.02, 0.02, 1.0]))


@trap()
def _slices_spread_over_folders_under_one_name(maker):
    for position, path in enumerate(maker.plain()):
        (maker.folder / f"{position}").mkdir()
        shutil.move(path, maker.folder / f"{position}" / "IM1")


@trap()
def _the_whole_series_twice(maker):
    files = maker.plain()
    (maker.folder / "again").mkdir()
    for path in files:
        shutil.copy(path, maker.folder / "again")


@trap()
def _signed_and_unsigned_in_turn(maker):
    maker.plain(lambda dataset, index: index % 2 and _unsigned(dataset, index))


@trap()
def _eight_twelve_and_sixteen_bits_in_turn(maker):
    maker.voxels = maker.truth = np.abs(maker.voxels) % 100

    def edit(dataset, index):
        stored = np.frombuffer(dataset.PixelData, "<u2")
        if index % 3 == 1:
            dataset.BitsStored, dataset.HighBit = 12, 11
            dataset.PixelData = (stored | 0xB000).astype("<u2").tobytes()
        elif index % 3 == 2:
            dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
            dataset.PixelData = stored.astype("u1").tobytes()

    maker.plain(edit)


@trap()
def _compressions_in_turn(maker):
    edits = [lambda dataset, index: None, compressed("jpegls", 80), compressed("jpeg2k", 90, level=0)]
    edits.append(lambda dataset, index: dataset.compress(RLELossless, generate_instance_uid=False))
    maker.plain(lambda dataset, index: edits[index % 4](dataset, index))


@trap("BAD_DICOM", by_headers=False)
def _compressed_pixels_of_another_size(maker):
    imagecodecs = pytest.importorskip("imagecodecs", reason="the extra 'codecs' is not installed")

    def edit(dataset, index):
        stored = np.zeros((8, 7 if index != 4 else 5), np.uint16)
        dataset.PixelData = pydicom.encaps.encapsulate([imagecodecs.jpegls_encode(stored)])
        dataset["PixelData"].is_undefined_length = True

    maker.plain(edit, syntax=pydicom.uid.JPEGLSLossless)


@trap("BAD_DICOM")
def _compressed_pixels_called_plain(maker):
    for path in maker.plain(compressed("jpegls", 80)):
        data = path.read_bytes()
        path.write_bytes(data.replace(b"1.2.840.10008.1.2.4.80", b"1.2.840.10008.1.2.1\0\0\0", 1))


@trap("BAD_DICOM")
def _plain_pixels_called_compressed(maker):
    for path in maker.plain():
        patched(path, (0x0002, 0x0010), b"UI", lambda value: b"1.2.840.10008.1.2.4.80")


@trap("BAD_DICOM")
def _more_bits_stored_than_allocated(maker):
    maker.plain(set_to(BitsStored=20, HighBit=19))


@trap()
def _table_of_signed_pixels_and_monochrome1(maker):
    def edit(dataset, index):
        del dataset.RescaleSlope, dataset.RescaleIntercept
        dataset.PhotometricInterpretation = "MONOCHROME1"
        table = Dataset()
        table.add_new(0x00283002, "SS", [1024, -200, 16])
        table.add_new(0x00283006, "US", list(range(1000, 2024)))
        table.ModalityLUTType = "US"
        dataset.ModalityLUTSequence = Sequence([table])

    maker.plain(edit)
    maker.truth = maker.voxels + 1200


@trap()
def _wanted_attributes_of_unknown_representation(maker):
    for path in maker.plain():
        data = path.read_bytes()
        for tag, kind in (((0x0020, 0x0032), b"DS"), ((0x0028, 0x0010), b"US")):
            at = data.index(struct.pack("<HH2s", *tag, kind))
            (length,) = struct.unpack_from("<H", data, at + 6)
            data = data[: at + 4] + struct.pack("<2sHI", b"UN", 0, length) + data[at + 8 :]
        path.write_bytes(data)


@trap()
def _private_attribute_of_ge_where_siemens_counts_mosaics(maker):
    def edit(dataset, index):
        dataset.add_new(0x00190010, "LO", "GEMS_ACQU_01")
        dataset.add_new(0x0019100A, "DS", "5")

    maker.plain(edit)


@trap("SIEMENS_MOSAIC")
def _mosaic_told_by_its_count_alone(maker):
    def edit(dataset, index):
        dataset.add_new(0x00190010, "LO", "SIEMENS MR HEADER")
        dataset.add_new(0x0019100A, "US", 36)

    maker.plain(edit)


@trap("TRUNCATED")
def _a_file_of_zeros(maker):
    path = maker.plain()[-1]
    path.write_bytes(bytes(path.stat().st_size))


@trap("TRUNCATED")
def _an_empty_file_named_as_an_image(maker):
    maker.plain()[0].write_bytes(b"")


@trap()
def _an_empty_file_of_another_name(maker):
    maker.plain()
    (maker.folder / "LOCK").write_bytes(b"")


@trap("TRUNCATED")
def _no_pixels_in_one_file(maker):
    maker.plain(lambda dataset, index: index == 3 and setattr(dataset, "PixelData", b""))


def of_frames(maker, change=lambda frames: frames, **options):
    """Return an edit that compresses the frames of an enhanced file, after a change of their list."""
    imagecodecs = pytest.importorskip("imagecodecs", reason="the extra 'codecs' is not installed")

    def edit(dataset):
        frames = [imagecodecs.jpegls_encode(one) for one in np.frombuffer(dataset.PixelData, "<u2").reshape(-1, 8, 7)]
        dataset.PixelData = pydicom.encaps.encapsulate(change(frames), **options)
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLSLossless

    return edit


@trap()
def _enhanced_with_several_fragments_per_frame(maker):
    edit = of_frames(maker, fragments_per_frame=2)
    write_enhanced(maker.folder / "one.dcm", maker.voxels, maker.affine, order=[4, 0, 8, 2, 6, 1, 7, 3, 5], edit=edit)


@trap()
def _enhanced_with_an_extended_offset_table(maker):
    def edit(dataset):
        of_frames(maker)(dataset)
        frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=9))
        dataset.PixelData, offsets, lengths = pydicom.encaps.encapsulate_extended(frames)
        dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = offsets, lengths
        dataset["PixelData"].is_undefined_length = True

    write_enhanced(maker.folder / "one.dcm", maker.voxels, maker.affine, order=[4, 0, 8, 2, 6, 1, 7, 3, 5], edit=edit)


@trap("BAD_DICOM", by_headers=False)
def _enhanced_with_more_frames_than_stated(maker):
    edit = of_frames(maker, lambda frames: [*frames, frames[0]], has_bot=False)
    write_enhanced(maker.folder / "one.dcm", maker.voxels, maker.affine, edit=edit)


@trap("BAD_DICOM", by_headers=False)
def _enhanced_with_fewer_frames_than_stated(maker):
    edit = of_frames(maker, lambda frames: frames[:-1], has_bot=False)
    write_enhanced(maker.folder / "one.dcm", maker.voxels, maker.affine, edit=edit)


@trap()
def _enhanced_in_two_files(maker):
    for number, (low, high) in enumerate([(5, 9), (0, 5)]):
        start = maker.affine.copy()
        start[:3, 3] += low * start[:3, 2]

        def edit(dataset, number=number):
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.9.{number + 50}"

        write_enhanced(maker.folder / f"{number}.dcm", maker.voxels[..., low:high], start, edit=edit)


@trap()
def _enhanced_of_one_frame(maker):
    maker.voxels = maker.truth = maker.voxels[..., :1]

    def edit(dataset):
        dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness = 3.0

    write_enhanced(maker.folder / "one.dcm", maker.voxels, maker.affine, edit=edit)


@trap("MIXED_SERIES")
def _enhanced_with_an_orientation_per_frame(maker):
    def edit_frame(group, frame):
        plane = Dataset()
        plane.ImageOrientationPatient = [0, 1, 0, 0, 0, 1] if frame > 6 else [1, 0, 0, 0, 1, 0]
        group.PlaneOrientationSequence = Sequence([plane])

    write_enhanced(maker.folder / "one.dcm", maker.voxels, maker.affine, edit_frame=edit_frame)


@trap("NO_GEOMETRY")
def _enhanced_with_one_empty_position(maker):
    def edit_frame(group, frame):
        if frame == 4:
            group.PlanePositionSequence = Sequence([])

    write_enhanced(maker.folder / "one.dcm", maker.voxels, maker.affine, edit_frame=edit_frame)


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_is_read_in_place_or_refused_by_name(maker, name):
    function, code, by_headers = TRAPS[name]
    function(maker)
    if code:
        with pytest.raises(MedvolError) as caught:
            read_volume(maker.folder)
        assert caught.value.code == code, str(caught.value)
        assert len(str(caught.value)) <= 300
        assert caught.value.fix
        assert "SECRETX" not in repr(caught.value.as_dict())
        verdicts = {one.verdict for one in list_series(maker.folder)}
        assert verdicts == {""} if not by_headers else code in verdicts or code == "MIXED_SERIES"
    else:
        volume = read_volume(maker.folder)
        assert_in_place(volume, maker.truth, maker.affine)
        assert volume.array.T.flags.c_contiguous
        assert [one.verdict for one in list_series(maker.folder) if one.modality == "CT"] == [""]


def assert_in_place(volume, truth, affine):
    """Every voxel of the truth has its value at its position, and there is no other voxel."""
    assert sorted(volume.array.shape) == sorted(truth.shape)
    indices = np.stack(np.meshgrid(*[range(length) for length in truth.shape], indexing="ij"), axis=-1).reshape(-1, 3)
    inside = apply_affine(np.linalg.inv(volume.affine), apply_affine(affine, indices))
    nearest = np.rint(inside).astype(int)
    assert np.abs((inside - nearest) * volume.spacing_mm).max() < TOLERANCE_MM
    np.testing.assert_allclose(volume.array[tuple(nearest.T)], truth[tuple(indices.T)], rtol=1e-6)


# Naming one of several


def _named(folder, *fragments):
    return [read_volume(f"{folder}#{fragment}").array for fragment in fragments]


@pytest.mark.parametrize(
    ("first", "second", "fragments"),
    [
        ({"EchoTime": 4.6}, {"EchoTime": 9.2}, ("EchoTime=4.6", "1.2.3.4;EchoTime=9.20")),
        ({"DiffusionBValue": 0.0}, {"DiffusionBValue": 1000.0}, ("DiffusionBValue=0", "DiffusionBValue=1000")),
        ({"ImageType": ["A", "B", "M"]}, {"ImageType": ["A", "B", "P"]}, ("ImageType=A,B,M", "ImageType=a,b,p")),
        ({"AcquisitionNumber": 2}, {"AcquisitionNumber": 10}, ("AcquisitionNumber=2", "AcquisitionNumber=10")),
        ({"EchoTime": 4.6}, {}, ("EchoTime=4.6", "EchoTime=none")),
    ],
    ids=str,
)
def test_volumes_of_one_series_are_read_by_the_tag_that_tells_them_apart(maker, refused, first, second, fragments):
    maker.plain(set_to(**first))
    maker.write(maker.folder / "b", maker.voxels + 1000, edit=set_to(**second))
    with refused(
        "SEVERAL_VOLUMES", "2 volumes of 9 slices, told apart by", fragments[0].partition("=")[0], "folder#UID;"
    ):
        read_volume(maker.folder)
    one, two = _named(maker.folder, *fragments)
    np.testing.assert_array_equal(one, maker.voxels)
    np.testing.assert_array_equal(two, maker.voxels + 1000)


def test_the_details_of_a_refusal_read_as_references(maker):
    maker.plain(set_to(EchoTime=4.6))
    maker.write(maker.folder / "b", maker.voxels + 1000, edit=set_to(EchoTime=9.2))
    with pytest.raises(MedvolError) as caught:
        read_volume(maker.folder)
    one, two = (read_volume(detail).array for detail in caught.value.details)
    np.testing.assert_array_equal(two - one, 1000)
    (listed,) = list_series(maker.folder)
    assert [fragment for fragment, _ in listed.volumes] == ["1.2.3.4;EchoTime=4.6", "1.2.3.4;EchoTime=9.2"]


def test_two_tags_explain_what_none_alone_does(maker, refused):
    for position, (echo, part) in enumerate([(4.6, "M"), (4.6, "P"), (9.2, "M"), (9.2, "P")]):
        edit = set_to(EchoTime=echo, ImageType=["ORIGINAL", "PRIMARY", part])
        maker.write(maker.folder / str(position), maker.voxels + 1000 * position, edit=edit)
    with refused("SEVERAL_VOLUMES", "4 volumes", "EchoTime and ImageType"):
        read_volume(maker.folder)
    with refused("SEVERAL_VOLUMES", "2 volumes", "ImageType"):
        read_volume(f"{maker.folder}#EchoTime=9.2")
    (array,) = _named(maker.folder, "EchoTime=9.2;ImageType=ORIGINAL,PRIMARY,M")
    np.testing.assert_array_equal(array, maker.voxels + 2000)


def test_times_count_by_their_rank_and_are_never_shown(maker, refused):
    maker.plain(set_to(AcquisitionTime="235911.25"))
    maker.write(maker.folder / "b", maker.voxels + 1000, edit=set_to(AcquisitionTime="081530.5"))
    with pytest.raises(MedvolError) as caught:
        read_volume(maker.folder)
    assert caught.value.code == "SEVERAL_VOLUMES"
    assert "AcquisitionTime: 1, 2" in caught.value.found
    assert "2359" not in repr(caught.value.as_dict())
    early, late = _named(maker.folder, "AcquisitionTime=1", "AcquisitionTime=2")
    np.testing.assert_array_equal(early, maker.voxels + 1000)
    np.testing.assert_array_equal(late, maker.voxels)
    with refused("NOT_FOUND", "no AcquisitionTime 3"):
        read_volume(f"{maker.folder}#AcquisitionTime=3")


def test_phases_of_beats_of_unequal_length_are_named_by_their_rank(maker, refused):
    _heart_beats_of_unequal_length(maker)
    with refused("SEVERAL_VOLUMES", "4 volumes of 9 slices", "TriggerRank: 1, 2, 3, 4"):
        read_volume(maker.folder)
    for phase in range(4):
        array = read_volume(f"{maker.folder}#TriggerRank={phase + 1}").array
        np.testing.assert_array_equal(array, maker.voxels + 1000 * phase)


def test_volumes_of_slices_at_times_of_their_own_are_named_by_the_rank_of_the_time(maker):
    _every_slice_at_a_time_of_its_own(maker)
    for number in range(3):
        array = read_volume(f"{maker.folder}#1.2.3.4;AcquisitionTime={number + 1}").array
        np.testing.assert_array_equal(array, maker.voxels + 1000 * number)


def test_contrasts_side_by_side_are_read_by_their_name(maker, refused):
    _two_echoes_half_a_step_apart(maker)
    with refused("MIXED_SERIES", "EchoTime", "4.6, 9.2", "folder#UID;EchoTime=4.6"):
        read_volume(maker.folder)
    np.testing.assert_array_equal(read_volume(f"{maker.folder}#EchoTime=9.2").array, maker.voxels + 1000)


@pytest.mark.parametrize("fragment", ["SeriesNumber=3", "SeriesDescription=second one", "1.2.3.5", "Modality=MR"])
def test_a_series_is_chosen_by_what_describes_it(maker, fragment):
    maker.plain()
    edit = set_to(SeriesNumber=3, SeriesDescription="Second one", Modality="MR")
    maker.write(maker.folder / "b", maker.voxels + 1000, series="1.2.3.5", edit=edit)
    (array,) = _named(maker.folder, fragment)
    np.testing.assert_array_equal(array, maker.voxels + 1000)


def test_orientations_of_one_series_are_named(maker, refused):
    maker.plain()
    matrix = np.array([[0, 0, 3.0, 5], [1.0, 0, 0, -4], [0, -1.5, 0, 9], [0, 0, 0, 1]])
    maker.write(maker.folder / "b", maker.voxels + 1000, matrix=matrix)
    with refused("MIXED_SERIES", "2 images in 1 series", "folder#UID;Orientation=axial"):
        read_volume(maker.folder)
    (array,) = _named(maker.folder, "Orientation=sagittal")
    assert sorted(array.ravel()) == sorted(maker.voxels.ravel() + 1000)


def test_time_points_of_an_enhanced_file_are_named(maker, refused):
    def edit_frame(group, frame):
        group.FrameContentSequence[0].TemporalPositionIndex = 1 + frame // 9

    array = np.concatenate([maker.voxels, maker.voxels + 1000], axis=2)
    path = write_enhanced(maker.folder / "one.dcm", maker.voxels, maker.affine, order=[*range(9), *range(9)])
    dataset = pydicom.dcmread(path)
    for frame, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        edit_frame(group, frame)
    dataset.PixelData = np.ascontiguousarray(array.T).astype("<i2").tobytes()
    dataset.save_as(path)
    with refused("SEVERAL_VOLUMES", "2 volumes of 9 slices", "TemporalPositionIdentifier: 1, 2"):
        read_volume(path)
    one, two = _named(maker.folder, "TemporalPositionIdentifier=1", "TemporalPositionIdentifier=2")
    np.testing.assert_array_equal(one, maker.voxels - 1000)
    np.testing.assert_array_equal(two, maker.voxels)


def test_an_unknown_name_or_value_is_refused_with_the_nearest(maker, refused):
    maker.plain(set_to(EchoTime=4.6))
    with refused("BAD_REFERENCE", "did you mean 'EchoTime'?"):
        read_volume(f"{maker.folder}#EchoTme=4.6")
    with refused("NOT_FOUND", "no EchoTime 5", "one of 4.6"):
        read_volume(f"{maker.folder}#EchoTime=5")


# Notes and options


def test_what_was_dropped_or_set_aside_is_named(maker):
    files = maker.plain()
    shutil.copy(files[2], maker.folder / "copy.dcm")
    notes = read_volume(maker.folder).notes
    assert any("1 files dropped" in note and ("copy.dcm" in note or files[2].name in note) for note in notes)


def test_missing_images_of_an_acquisition_leave_a_note(maker):
    maker.plain(set_to(ImagesInAcquisition=12))
    assert "12 images in the acquisition, 9 here" in read_volume(maker.folder).notes[0]


def test_the_spacing_of_the_detector_is_told_but_not_taken(maker, refused):
    _spacing_of_the_detector_only(maker)
    with refused("NO_GEOMETRY", "0.14 x 0.14 mm at the detector", "assume_spacing_mm"):
        read_volume(maker.folder)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
@pytest.mark.parametrize(("pad_to", "kind"), [(None, np.int16), (-1024, np.int16), (0.5, np.float32)])
def test_padding_is_counted_and_replaced_on_request(maker, syntax, pad_to, kind):
    def edit(dataset, index):
        dataset.PixelPaddingValue = -2000
        stored = np.frombuffer(dataset.PixelData, "<i2").copy()
        stored[:7] = -2000  # the first row
        dataset.PixelData = stored.tobytes()

    maker.plain(edit, syntax=syntax)
    volume = read_volume(maker.folder, options=ReadOptions(pad_to=pad_to))
    assert volume.array.dtype == kind
    np.testing.assert_array_equal(volume.array[:, 0], -2000 if pad_to is None else pad_to)
    np.testing.assert_array_equal(volume.array[:, 1:], maker.voxels[:, 1:])
    assert volume.notes[-1].startswith("12.5% of the voxels are padding")


def test_missing_slices_are_interpolated_on_request(maker):
    ramp = np.broadcast_to(np.arange(9, dtype=np.int16) * 10, (7, 8, 9))
    files = maker.write(maker.folder, ramp)
    files[3].unlink()
    files[4].unlink()
    volume = read_volume(maker.folder, options=ReadOptions(uneven_spacing="resample"))
    np.testing.assert_allclose(volume.array, ramp, atol=1e-4)
    np.testing.assert_allclose(volume.affine, maker.affine, atol=1e-4)
    assert volume.notes == ("steps from 3 to 9 mm resampled to 3 mm as asked for: 2 of 9 slices interpolated",)


def test_uneven_steps_are_resampled_on_request_and_nothing_lies_beyond_the_last_slice(maker):
    # Slices at 0, 3, 6, 9, 12, 16, 20, 24, 28 mm: steps of 3 mm reach 27 mm.
    places = np.array([0, 3, 6, 9, 12, 16, 20, 24, 28])
    ramp = np.broadcast_to(places.astype(np.int16) * 10, (7, 8, 9))
    maker.write(maker.folder, ramp, edit=shift(lambda index: places[index] - 3 * index))
    volume = read_volume(maker.folder, options=ReadOptions(uneven_spacing="resample"))
    # The lower middle of the eight steps is 3 mm.
    assert volume.array.shape == (7, 8, 10)
    np.testing.assert_allclose(volume.array[2, 3], 30 * np.arange(10), atol=1e-3)
    np.testing.assert_allclose(volume.affine, maker.affine, atol=1e-4)


def test_an_even_series_is_not_touched_by_the_option(maker):
    maker.plain()
    volume = read_volume(maker.folder, options=ReadOptions(uneven_spacing="resample"))
    assert volume.array.dtype == np.int16
    assert volume.notes == ()


def test_options_that_are_mistyped_are_refused(refused):
    with refused("UNKNOWN_OPTION", "did you mean 'resample'?"):
        ReadOptions(uneven_spacing="resampel")
    with refused("UNKNOWN_OPTION", "pad_to"):
        ReadOptions(pad_to=float("nan"))


def test_an_index_file_stands_for_its_folder(maker):
    maker.plain()
    shutil.copy(get_testdata_file("DICOMDIR"), maker.folder)
    np.testing.assert_array_equal(read_volume(maker.folder / "DICOMDIR").array, maker.voxels)


# Bits and codecs


def test_stored_bits_are_extracted_as_pydicom_does():
    from pydicom.pixels import pixel_array

    for bits, high, signed in [(12, 11, 0), (12, 11, 1), (12, 15, 1), (10, 12, 0), (16, 15, 1), (16, 15, 0)]:
        stored = np.random.default_rng(bits + high).integers(0, 1 << 16, (5, 6)).astype("<u2")
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 5, 6, 1
        dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", signed
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, high
        dataset.PixelData = stored.tobytes()
        dataset["PixelData"].VR = "OW"
        mine = extract_bits(stored, Stored(16, bits, high, bool(signed)))
        if high == bits - 1:  # pydicom knows no other place
            np.testing.assert_array_equal(mine, pixel_array(dataset))
        else:
            shifted = (stored >> (high - bits + 1)) & ((1 << bits) - 1)
            expected = shifted.astype(int) - ((shifted >> (bits - 1)) << bits) * signed
            np.testing.assert_array_equal(mine, expected)


@pytest.mark.parametrize("name", ["jpegls", "jpeg2k", "ljpeg"])
@pytest.mark.parametrize("signed", [0, 1])
def test_compressed_frames_are_decoded_by_imagecodecs_as_they_were_encoded(maker, name, signed):
    imagecodecs = pytest.importorskip("imagecodecs", reason="the extra 'codecs' is not installed")
    uid = {"jpegls": "80", "jpeg2k": "90", "ljpeg": "70"}[name]
    syntax = pydicom.uid.UID(f"1.2.840.10008.1.2.4.{uid}")

    def edit(dataset, index):
        if not signed:
            _unsigned(dataset, index)
        stored = np.frombuffer(dataset.PixelData, "<u2").reshape(8, 7)
        options = {"level": 0} if name == "jpeg2k" else {}
        encoded = getattr(imagecodecs, f"{name}_encode")(stored, **options)
        dataset.PixelData = pydicom.encaps.encapsulate([encoded])
        dataset["PixelData"].is_undefined_length = True

    maker.plain(edit, syntax=syntax)
    np.testing.assert_array_equal(read_volume(maker.folder).array, maker.voxels)


@pytest.mark.parametrize("name", ["jpegls", "jpeg2k", "ljpeg", "jpeg"])
def test_a_stream_that_states_another_size_is_refused_before_it_is_decoded(maker, refused, monkeypatch, name):
    imagecodecs = pytest.importorskip("imagecodecs", reason="the extra 'codecs' is not installed")
    number = {"jpegls": 80, "jpeg2k": 90, "ljpeg": 70, "jpeg": 51}[name]

    def edit(dataset, index):
        stored = np.zeros((40, 30), np.uint8 if name == "jpeg" else np.uint16)
        dataset.PixelData = pydicom.encaps.encapsulate([getattr(imagecodecs, f"{name}_encode")(stored)])
        dataset["PixelData"].is_undefined_length = True
        assert stated_size(next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))) == (40, 30)

    maker.plain(edit, syntax=pydicom.uid.UID(f"1.2.840.10008.1.2.4.{number}"))
    monkeypatch.setattr(imagecodecs, f"{name}_decode", lambda frame: pytest.fail("decoded"))
    with refused("BAD_DICOM"):
        read_volume(maker.folder)


def test_a_compression_that_nothing_decodes_is_refused_by_the_header_alone(maker, monkeypatch):
    def edit(dataset, index):
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xf7" + bytes(40)])
        dataset["PixelData"].is_undefined_length = True

    path = maker.plain(edit, syntax=pydicom.uid.JPEGLSLossless)[0]
    monkeypatch.setattr("medvol.io.dicom_codecs.find_spec", lambda name: None)
    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.available_plugins", ())
    (header,) = read_slice_headers(path)
    problem = codec_problem(header)
    assert problem.code == "NEED_CODEC"
    assert "JPEG-LS" in problem.found
    assert "imagecodecs" in problem.fix
    assert "codecs" in problem.fix
    assert list_series(maker.folder)[0].verdict == "NEED_CODEC"
