"""Label maps as DICOM segmentations, which a viewer lays over the series that they were made from.

A label map becomes a SEG of the type LABELMAP, 8 or 16 bits per voxel, run-length encoded. In JPEG-LS it is a third of
the size, but dcmqi 1.5.7 and what builds on it refuse a segmentation in JPEG-LS, so that is for those who ask. BINARY,
a bit per voxel and a frame for every structure of a plane, is what viewers from before 2024 read, and the only type in
which structures may overlap; it takes many times the space and twice as long (tests/benchmarks/bench_dicom_write.py).
Planes where nothing is are left out. Every plane has the position that its source slice states, to the last digit;
labels find their plane by affine, never by index.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medvol import __version__
from medvol.errors import MedvolError, require_choice
from medvol.geometry import Affine, spacing_mm
from medvol.io.atomic import write_atomically
from medvol.io.dicom_rle import encode_frame
from medvol.io.dicom_source import DicomSource, on_source_grid, source_references, writing
from medvol.io.segment_codes import Code, Structure

KINDS = ("labelmap", "labelmap-jpegls", "binary")
SERIES_NUMBER_STEP = 1000
"""Results of series 3 are series 3001, 3002, ..., where no scanner numbers its own."""

_UTF8 = "ISO_IR 192"
_LONGEST = 64  # characters of a text attribute


@dataclass(frozen=True)
class Algorithm:
    """What made a result.

    Args:
        name: Such as `medvol unet_segmentation`.
        version: Of the program and of the weights.
    """

    name: str
    version: str = __version__


@dataclass(frozen=True)
class WrittenObject:
    """A DICOM object that others may refer to.

    Args:
        path: The file.
        class_uid: SOP class.
        instance_uid: SOP instance.
        series_uid: Series.
    """

    path: Path
    class_uid: str
    instance_uid: str
    series_uid: str


def write_segmentation(
    path: str | Path,
    labels: npt.NDArray[Any],
    affine: Affine,
    source: DicomSource,
    structures: Sequence[Structure],
    *,
    algorithm: Algorithm,
    kind: str = "labelmap",
) -> WrittenObject:
    """Write a label map, or masks that may overlap, as a segmentation of a series, atomically.

    Args:
        path: File to write.
        labels: Shape (x, y, z), uint8 or uint16, where n means the n-th structure and 0 none; or (x, y, z, structure),
            true inside, for `binary` alone where they overlap.
        affine: Voxel index to RAS+ millimetres: the series' voxels in any order and direction of the axes.
        source: The series, from `dicom_source`.
        structures: What the labels mean; one may be absent from the voxels.
        algorithm: Named in every segment.
        kind: `labelmap`, `labelmap-jpegls` or `binary`.

    Raises:
        MedvolError: `GEOMETRY_MISMATCH`, `WRONG_ARRAY`, `LABELS_OVERLAP`, `UNKNOWN_OPTION`, `NEED_PACKAGE`,
            `DISK_FULL`, `CANNOT_WRITE`; no part of a file is left, an older one stays.
    """
    require_choice("kind", kind, KINDS)
    frames = _frames(labels, affine, source, structures, kind)
    with writing(path):
        dataset = _segmentation(frames, source, structures, algorithm, kind)
    write_atomically(path, lambda stream: dataset.save_as(stream, enforce_file_format=True))
    return written_object(path, dataset)


def series_facts(source: DicomSource, algorithm: Algorithm, offset: int, description: str) -> dict[str, Any]:
    """Return what every result of a source says of its own series.

    Args:
        source: The series it was made from.
        algorithm: What made it.
        offset: Tells the results of one source apart in their series number.
        description: Behind the algorithm's name.
    """
    from pydicom.uid import generate_uid

    number = source.slices[0].number or 0
    return {
        "series_instance_uid": generate_uid(prefix=None),
        "sop_instance_uid": generate_uid(prefix=None),
        "series_number": (number if 0 < number < 10**6 else 0) * SERIES_NUMBER_STEP + offset,
        "instance_number": 1,
        "manufacturer": "medvol",
        "manufacturer_model_name": algorithm.name[:_LONGEST],
        "software_versions": algorithm.version[:_LONGEST],
        "device_serial_number": "none",
        "series_description": f"{algorithm.name} {description}"[:_LONGEST],
        "specific_character_set": _UTF8,
    }


def written_object(path: str | Path, dataset: Any) -> WrittenObject:
    """Return how others refer to a dataset."""
    uids = (dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.SeriesInstanceUID)
    return WrittenObject(Path(path), *(str(uid) for uid in uids))


def concept(code: Code) -> Any:
    """Return a code as highdicom takes it."""
    from highdicom.sr import CodedConcept

    return CodedConcept(code.value, code.scheme, code.meaning)


def _frames(
    labels: npt.NDArray[Any], affine: Affine, source: DicomSource, structures: Sequence[Structure], kind: str
) -> npt.NDArray[Any]:
    """Return the labels as (plane, row, column), checked; perhaps with a last axis of structures."""
    is_map = labels.ndim == 3 and labels.dtype in (np.dtype(np.uint8), np.dtype(np.uint16))
    is_stack = labels.ndim == 4 and labels.dtype in (np.dtype(np.uint8), np.dtype(np.bool_))
    expected = f"(x, y, z) of 0 to {len(structures)}, uint8 or uint16, or (x, y, z, {len(structures)}) of bool"
    if not structures or not (is_map or is_stack) or (is_stack and labels.shape[3] != len(structures)):
        found = f"an array of shape {labels.shape} and type {labels.dtype} for {len(structures)} structures"
        raise MedvolError("WRONG_ARRAY", found=found, expected=expected)
    view = on_source_grid(labels, affine, source)
    frames = np.ascontiguousarray(view.transpose(2, 1, 0, *range(3, view.ndim)))
    highest = int(frames.max())
    if highest > (len(structures) if is_map else 1):
        raise MedvolError("WRONG_ARRAY", found=f"a label {highest}", expected=expected)
    if is_stack and kind != "binary" and (shared := int((frames.sum(axis=-1, dtype=np.uint16) > 1).sum())):
        raise MedvolError(
            "LABELS_OVERLAP",
            found=f"{shared} voxels of several structures",
            expected="one structure per voxel in a label map",
            fix="write it as binary",
        )
    return frames


def _segmentation(
    frames: npt.NDArray[Any], source: DicomSource, structures: Sequence[Structure], algorithm: Algorithm, kind: str
) -> Any:
    import highdicom as hd
    from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless

    identification = hd.AlgorithmIdentificationSequence(
        name=algorithm.name[:_LONGEST],
        family=hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
        version=algorithm.version[:_LONGEST],
    )
    dataset = hd.seg.Segmentation(
        source_images=_source_slices(source),
        pixel_array=frames,
        segmentation_type="BINARY" if kind == "binary" else "LABELMAP",
        segment_descriptions=[_description(one, n, identification) for n, one in enumerate(structures, start=1)],
        transfer_syntax_uid=JPEGLSLossless if kind == "labelmap-jpegls" else ExplicitVRLittleEndian,
        content_label="SEGMENTATION",
        **series_facts(source, algorithm, 1, "segmentation"),
    )
    _name_sources(dataset, source)
    if kind == "labelmap":
        _encode_runs(dataset)
    return dataset


def _encode_runs(dataset: Any) -> None:
    """Run-length encode the frames of a dataset that holds them as they are."""
    from pydicom.encaps import encapsulate
    from pydicom.uid import RLELossless

    stored = np.dtype(f"<u{dataset.BitsAllocated // 8}")
    planes = np.frombuffer(dataset.PixelData, dtype=stored)[: dataset.NumberOfFrames * dataset.Rows * dataset.Columns]
    planes = planes.reshape(dataset.NumberOfFrames, dataset.Rows, dataset.Columns)
    dataset.PixelData = encapsulate([encode_frame(plane) for plane in planes])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = RLELossless


def _description(structure: Structure, number: int, identification: Any) -> Any:
    import highdicom as hd

    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=structure.name[:_LONGEST],
        segmented_property_category=concept(structure.category),
        segmented_property_type=concept(structure.kind),
        algorithm_type="AUTOMATIC",
        algorithm_identification=identification,
        display_color=hd.color.CIELabColor.from_rgb(*_colour(number)),
    )
    if structure.modifiers:
        modifiers = [concept(one) for one in structure.modifiers]
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = modifiers
    return description


def _colour(number: int) -> tuple[int, int, int]:
    """Return red, green and blue of a structure; hues a golden section apart stay distinct for any number of them."""
    rgb = colorsys.hsv_to_rgb((number * 0.618034) % 1, 0.7, 0.95)
    return round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])


def _source_slices(source: DicomSource) -> list[Any]:
    """Return a header per plane, as of plain slices, whose instance UID is the number of the plane.

    highdicom takes one multi-frame file or plain slices, all of one orientation to the last digit and of a class that
    it knows. The real classes, instances and frames are put in by `_name_sources`.
    """
    from pydicom.dataset import Dataset
    from pydicom.uid import CTImageStorage
    from pydicom.valuerep import format_number_as_ds

    def decimal(values: Sequence[float]) -> list[str]:
        return [format_number_as_ds(float(value) + 0.0) for value in values]  # turns -0.0 into 0.0

    first, steps = source.slices[0], spacing_mm(source.affine)
    geometry = {
        "ImageOrientationPatient": decimal(first.orientation or ()),
        "PixelSpacing": decimal((float(steps[1]), float(steps[0]))),
        "SliceThickness": decimal([first.thickness or float(steps[2])])[0],
    }
    columns, rows, _ = source.shape
    slices = []
    for number, (_, position) in enumerate(source.planes):
        one = Dataset()
        if not number:
            one.update(source.header)
            one.Modality = source.modality
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, _placeholder(number)
        one.StudyInstanceUID, one.SeriesInstanceUID = first.study_uid, first.series_uid
        one.FrameOfReferenceUID = source.header.FrameOfReferenceUID
        one.Rows, one.Columns = rows, columns
        one.ImagePositionPatient = decimal(position)
        for name, value in geometry.items():
            setattr(one, name, value)
        slices.append(one)
    return slices


def _placeholder(number: int) -> str:
    return f"2.25.{number}"


def _name_sources(dataset: Any, source: DicomSource) -> None:
    """Put the files and frames that planes come from in the place of the planes' numbers."""
    plane_of = {_placeholder(number): index for number, (index, _) in enumerate(source.planes)}
    for group in dataset.PerFrameFunctionalGroupsSequence:
        for derivation in group.get("DerivationImageSequence") or ():
            for item in derivation.SourceImageSequence:
                # Frames of several structures may share the item.
                index = plane_of.get(str(item.ReferencedSOPInstanceUID))
                if index is not None:
                    one = source.slices[index]
                    item.ReferencedSOPClassUID = source.classes[index]
                    item.ReferencedSOPInstanceUID = one.instance_uid
                    if one.frames > 1:
                        item.ReferencedFrameNumber = one.frame + 1
    references = source_references(source)
    dataset.SourceImageSequence = references
    dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence = references
