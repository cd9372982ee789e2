"""Measurements and class probabilities as DICOM structured reports after template TID 1500, Comprehensive 3D SR.

Each structure is a group with its volume in millilitres and its mean intensity, in Hounsfield units where the source is
a CT. Where a segmentation was written the group refers to its segment, else to the images. Each class of a
classification is a group with its probability. Names of classes have no code in any hospital's dictionary: they stand
in the coding scheme 99MEDVOL, which is ours, and are true of one report only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvol.errors import MedvolError
from medvol.io.atomic import write_atomically
from medvol.io.dicom_source import DicomSource, writing
from medvol.io.dicom_write_seg import Algorithm, WrittenObject, concept, series_facts, written_object
from medvol.io.segment_codes import Code, Structure

OWN_SCHEME = "99MEDVOL"

_VOLUME, _MEAN = Code("118565006", "SCT", "Volume"), Code("373098007", "SCT", "Mean")
_MILLILITRE, _NO_UNIT = Code("ml", "UCUM", "milliliter"), Code("1", "UCUM", "no units")
_INTENSITIES = {
    "CT": (Code("112031", "DCM", "Attenuation Coefficient"), Code("[hnsf'U]", "UCUM", "Hounsfield unit")),
    "MR": (Code("110852", "DCM", "MR signal intensity"), _NO_UNIT),
}
_OTHER_INTENSITY = (Code("INTENSITY", OWN_SCHEME, "Intensity"), _NO_UNIT)
_PROBABILITY = Code("122157", "DCM", "Probability")
_SIDES = ("Left", "Right")


@dataclass(frozen=True)
class Measured:
    """The numbers of one structure.

    Args:
        structure: What was measured.
        volume_ml: Millilitres.
        mean: Mean of the source's values inside; None of a structure without a voxel.
    """

    structure: Structure
    volume_ml: float
    mean: float | None = None


def write_structure_report(
    path: str | Path,
    measured: Sequence[Measured],
    source: DicomSource,
    *,
    algorithm: Algorithm,
    segmentation: WrittenObject | None = None,
) -> WrittenObject:
    """Write volume and mean intensity of structures as a structured report, atomically.

    Args:
        path: File to write.
        measured: In the order of the segmentation's segments.
        source: The series, from `dicom_source`.
        algorithm: Named in every group.
        segmentation: What the groups refer to; the images when None.

    Raises:
        MedvolError: `WRONG_ARRAY` without a structure, `NEED_PACKAGE`, `DISK_FULL`, `CANNOT_WRITE`.
    """
    if not measured:
        raise MedvolError("WRONG_ARRAY", found="no measurement", expected="at least one structure")
    with writing(path):
        groups = [
            _structure_group(one, number, source, algorithm, segmentation)
            for number, one in enumerate(measured, start=1)
        ]
        dataset = _report(groups, source, algorithm, "measurements", segmentation)
    return _write(path, dataset)


def write_class_report(
    path: str | Path, probabilities: Mapping[str, float], source: DicomSource, *, algorithm: Algorithm
) -> WrittenObject:
    """Write the probability of each class, and the most likely class, as a structured report, atomically.

    Args:
        path: File to write.
        probabilities: By class, all of them.
        source: The series, from `dicom_source`.
        algorithm: Named in every group.

    Raises:
        MedvolError: `WRONG_ARRAY` without a class, `NEED_PACKAGE`, `DISK_FULL`, `CANNOT_WRITE`.
    """
    if not probabilities:
        raise MedvolError("WRONG_ARRAY", found="no probability", expected="one for each class")
    with writing(path):
        import highdicom as hd

        codes = {
            name: Code(f"CLASS{number}", OWN_SCHEME, name[:64]) for number, name in enumerate(probabilities, start=1)
        }
        likely = max(probabilities, key=lambda name: probabilities[name])
        finding = hd.sr.QualitativeEvaluation(concept(Code("121071", "DCM", "Finding")), concept(codes[likely]))
        groups = [_image_group("most likely class", source, algorithm, qualitative_evaluations=[finding])]
        for name, value in probabilities.items():
            measurement = _measurement(_PROBABILITY, value, _NO_UNIT)
            finding_type = concept(codes[name])
            groups.append(_image_group(name, source, algorithm, measurements=[measurement], finding_type=finding_type))
        dataset = _report(groups, source, algorithm, "classification")
    return _write(path, dataset)


def _structure_group(
    one: Measured, number: int, source: DicomSource, algorithm: Algorithm, segmentation: WrittenObject | None
) -> Any:
    import highdicom as hd

    measurements = [_measurement(_VOLUME, one.volume_ml, _MILLILITRE)]
    if one.mean is not None:
        name, unit = _INTENSITIES.get(source.modality, _OTHER_INTENSITY)
        measurements.append(_measurement(name, one.mean, unit, derivation=concept(_MEAN)))
    structure = one.structure
    facts: dict[str, Any] = {
        "measurements": measurements,
        "finding_category": concept(structure.category),
        "finding_type": concept(structure.kind),
    }
    if structure.modifiers:
        side = [concept(code) for code in structure.modifiers if code.meaning in _SIDES]
        part = [concept(code) for code in structure.modifiers if code.meaning not in _SIDES]
        site = hd.sr.FindingSite(
            concept(structure.kind),
            laterality=side[0] if side else None,
            topographical_modifier=part[0] if part else None,
        )
        facts["finding_sites"] = [site]
    if segmentation is None:
        return _image_group(structure.name, source, algorithm, **facts)
    segment = hd.sr.ReferencedSegment(
        segmentation.class_uid,
        segmentation.instance_uid,
        number,
        source_series=hd.sr.SourceSeriesForSegmentation(source.slices[0].series_uid),
    )
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(structure.name),
        referenced_segment=segment,
        algorithm_id=_identification(algorithm),
        **facts,
    )


def _image_group(name: str, source: DicomSource, algorithm: Algorithm, **facts: Any) -> Any:
    """Return a group that refers to all images of the source."""
    import highdicom as hd

    images = [hd.sr.SourceImageForMeasurementGroup(*uids) for uids in source.instances]
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracking(name),
        algorithm_id=_identification(algorithm),
        source_images=images,
        **facts,
    )


def _measurement(name: Code, value: float, unit: Code, **more: Any) -> Any:
    import highdicom as hd

    # Six digits are more than any of the numbers is worth, and fit into a decimal string.
    return hd.sr.Measurement(concept(name), float(f"{value:.6g}"), concept(unit), **more)


def _tracking(name: str) -> Any:
    import highdicom as hd
    from pydicom.uid import generate_uid

    return hd.sr.TrackingIdentifier(uid=generate_uid(prefix=None), identifier=name)


def _identification(algorithm: Algorithm) -> Any:
    import highdicom as hd

    return hd.sr.AlgorithmIdentification(name=algorithm.name, version=algorithm.version)


def _report(
    groups: Sequence[Any],
    source: DicomSource,
    algorithm: Algorithm,
    description: str,
    segmentation: WrittenObject | None = None,
) -> Any:
    import highdicom as hd
    from highdicom.coding_schemes import CodingSchemeIdentificationItem
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=["medvol", algorithm.name, algorithm.version]),
        name=algorithm.name[:64],
        manufacturer_name="medvol",
        model_name=algorithm.name[:64],
    )
    context = hd.sr.ObserverContext(concept(Code("121007", "DCM", "Device")), device)
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=context),
        procedure_reported=concept(Code("363679005", "SCT", "Imaging procedure")),
        imaging_measurements=list(groups),
    )
    return hd.sr.Comprehensive3DSR(
        evidence=_evidence(source, segmentation),
        content=content,
        is_complete=True,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        coding_schemes=[CodingSchemeIdentificationItem(OWN_SCHEME, name="medvol, names of one report")],
        **series_facts(source, algorithm, 2, description),
    )


def _evidence(source: DicomSource, segmentation: WrittenObject | None) -> list[Any]:
    """Return the objects that the report refers to, the first with what the report takes over of the patient."""
    from pydicom.dataset import Dataset

    first = source.slices[0]
    series = [(*uids, first.series_uid) for uids in source.instances]
    if segmentation is not None:
        series.append((segmentation.class_uid, segmentation.instance_uid, segmentation.series_uid))
    evidence = []
    for number, (class_uid, instance_uid, series_uid) in enumerate(series):
        one = Dataset()
        if not number:
            one.update(source.header)
        one.SOPClassUID, one.SOPInstanceUID = class_uid, instance_uid
        one.StudyInstanceUID, one.SeriesInstanceUID = first.study_uid, series_uid
        evidence.append(one)
    return evidence


def _write(path: str | Path, dataset: Any) -> WrittenObject:
    write_atomically(path, lambda stream: dataset.save_as(stream, enforce_file_format=True))
    return written_object(path, dataset)
