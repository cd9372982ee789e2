"""Structured reports and secondary captures: what stands in them, read with pydicom, and what dciodvfy says."""

import shutil
import subprocess

import numpy as np
import pytest
from pydicom import dcmread

from medvol.io.dicom_source import dicom_source
from medvol.io.dicom_write_sc import write_picture
from medvol.io.dicom_write_seg import Algorithm, write_segmentation
from medvol.io.dicom_write_sr import Measured, write_class_report, write_structure_report
from medvol.io.read import read_volume
from medvol.io.segment_codes import coded_structures

pytest.importorskip("highdicom")

ALGORITHM = Algorithm("medvol test", "0.0 weights 0123456789ab")
SIDED = ("liver", "hippocampus_anterior_right", "spleen")


@pytest.fixture
def series(tmp_path, voxels, write_series):
    """Write a series of a modality and return its source."""

    def write(modality="CT"):
        write_series(tmp_path / modality, voxels, edit=lambda dataset, _: setattr(dataset, "Modality", modality))
        return dicom_source(tmp_path / modality)

    return write


@pytest.fixture
def measured():
    liver, hippocampus, spleen = coded_structures(SIDED)
    return [Measured(liver, 1234.56789, 54.25), Measured(hippocampus, 0.0015, -3.0), Measured(spleen, 0.0)]


def assert_valid(path, allowed=""):
    """Expect no error of dciodvfy, but for one that its version of 2022 makes of a later part of the standard."""
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy (Debian's dicom3tools) is absent")
    result = subprocess.run([program, str(path)], capture_output=True, text=True, check=False)
    errors = [line for line in (result.stdout + result.stderr).splitlines() if line.startswith("Error")]
    assert [line for line in errors if not allowed or allowed not in line] == []


def content(node):
    """Yield name, value and parent of every item of a report, from top to bottom."""
    for item in node.get("ContentSequence") or ():
        name = item.ConceptNameCodeSequence[0].CodeMeaning
        if item.ValueType == "NUM":
            number = item.MeasuredValueSequence[0]
            yield name, (float(number.NumericValue), number.MeasurementUnitsCodeSequence[0].CodeValue)
        elif item.ValueType == "CODE":
            yield name, item.ConceptCodeSequence[0].CodeMeaning
        elif item.ValueType in ("IMAGE", "COMPOSITE"):
            yield name, item.ReferencedSOPSequence[0]
        else:
            yield name, item.get("TextValue") or item.get("UID")
        yield from content(item)


def values(path, name):
    return [value for found, value in content(dcmread(path)) if found == name]


def test_a_report_holds_millilitres_and_hounsfield_units_of_each_structure(tmp_path, series, measured):
    path = write_structure_report(tmp_path / "sr.dcm", measured, series(), algorithm=ALGORITHM).path
    assert_valid(path)
    assert values(path, "Volume") == [(1234.57, "ml"), (0.0015, "ml"), (0.0, "ml")]
    # A structure without a voxel has no mean.
    assert values(path, "Attenuation Coefficient") == [(54.25, "[hnsf'U]"), (-3.0, "[hnsf'U]")]
    assert values(path, "Derivation") == ["Mean", "Mean"]
    assert values(path, "Finding") == ["Liver", "Hippocampus", "Spleen"]
    assert values(path, "Laterality") == ["Right"]
    assert values(path, "Topographical modifier") == ["Anterior"]
    assert values(path, "Algorithm Name") == [ALGORITHM.name] * 3
    assert values(path, "Algorithm Version") == [ALGORITHM.version] * 3
    assert values(path, "Tracking Identifier") == list(SIDED)


@pytest.mark.parametrize(("modality", "name"), [("MR", "MR signal intensity"), ("PT", "Intensity")])
def test_the_intensity_of_another_modality_has_no_unit(tmp_path, series, measured, modality, name):
    path = write_structure_report(tmp_path / "sr.dcm", measured, series(modality), algorithm=ALGORITHM).path
    assert_valid(path)
    assert values(path, name) == [(54.25, "1"), (-3.0, "1")]


@pytest.mark.parametrize("kind", ["labelmap", "binary"])
def test_a_report_refers_to_the_segments_of_a_segmentation(tmp_path, series, measured, kind):
    source = series()
    labels, structures = np.zeros((7, 8, 9), dtype=np.uint8), coded_structures(SIDED)
    labels[2, 3, 4] = 1
    affine = read_volume(source.reference).affine
    options = {"algorithm": ALGORITHM, "kind": kind}
    written = write_segmentation(tmp_path / "seg.dcm", labels, affine, source, structures, **options)
    path = write_structure_report(tmp_path / "sr.dcm", measured, source, algorithm=ALGORITHM, segmentation=written).path
    assert_valid(path, "that is not segmentation" if kind == "labelmap" else "")
    references = values(path, "Referenced Segment")
    assert [one.ReferencedSegmentNumber for one in references] == [1, 2, 3]
    assert {one.ReferencedSOPInstanceUID for one in references} == {dcmread(tmp_path / "seg.dcm").SOPInstanceUID}
    assert values(path, "Source Series for Segmentation") == [source.slices[0].series_uid] * 3
    (evidence,) = dcmread(path).CurrentRequestedProcedureEvidenceSequence
    uids = [one.SeriesInstanceUID for one in evidence.ReferencedSeriesSequence]
    assert written.series_uid in uids


def test_a_report_of_classes_holds_each_probability_and_the_most_likely(tmp_path, series):
    source = series()
    path = write_class_report(tmp_path / "sr.dcm", {"vessel": 0.25, "aneurysm": 0.75}, source, algorithm=ALGORITHM).path
    assert_valid(path)
    assert values(path, "Probability") == [(0.25, "1"), (0.75, "1")]
    assert values(path, "Finding") == ["aneurysm", "vessel", "aneurysm"]
    images = {one.ReferencedSOPInstanceUID for one in values(path, "Source of Measurement")}
    assert images == {one.instance_uid for one in source.slices}
    assert dcmread(path).StudyInstanceUID == source.slices[0].study_uid


def test_a_picture_becomes_a_page_that_claims_no_side_and_no_scanner(tmp_path, series, refused):
    picture = np.arange(20 * 30 * 3, dtype=np.uint8).reshape(20, 30, 3)
    source = series()
    path = write_picture(tmp_path / "sc.dcm", picture, source, algorithm=ALGORITHM, names_the_patient=False).path
    assert_valid(path)
    dataset = dcmread(path)
    np.testing.assert_array_equal(dataset.pixel_array, picture)
    assert list(dataset.ImageType) == ["DERIVED", "SECONDARY"]
    assert dataset.BurnedInAnnotation == "NO"
    assert dataset.Laterality == ""
    assert dataset.PatientID == "SECRETX"  # of the source, where the hospital needs it
    assert "SECRETX" not in f"{dataset.SeriesDescription}{dataset.ManufacturerModelName}{dataset.SoftwareVersions}"
    write_picture(path, picture, source, algorithm=ALGORITHM, names_the_patient=True)
    assert dcmread(path).BurnedInAnnotation == "YES"
    with refused("WRONG_ARRAY", "(20, 30)"):
        write_picture(path, picture[:, :, 0], source, algorithm=ALGORITHM, names_the_patient=False)


def test_a_report_of_nothing_is_refused(tmp_path, series, refused):
    with refused("WRONG_ARRAY"):
        write_structure_report(tmp_path / "sr.dcm", [], series(), algorithm=ALGORITHM)
    with refused("WRONG_ARRAY"):
        write_class_report(tmp_path / "sr.dcm", {}, series(), algorithm=ALGORITHM)
    assert not (tmp_path / "sr.dcm").exists()


def test_nothing_of_the_patient_is_logged(tmp_path, series, measured, caplog):
    caplog.set_level(0)
    source = series()
    write_structure_report(tmp_path / "sr.dcm", measured, source, algorithm=ALGORITHM)
    labels = np.zeros(source.shape, dtype=np.uint8)
    write_segmentation(
        tmp_path / "seg.dcm", labels, source.affine, source, coded_structures(SIDED), algorithm=ALGORITHM
    )
    assert caplog.text == ""


def test_a_series_whose_class_stands_in_the_head_of_its_files_alone_gets_a_report(tmp_path, voxels, write_series):
    write_series(tmp_path / "ct", voxels, edit=lambda dataset, _: delattr(dataset, "SOPClassUID"))
    source = dicom_source(tmp_path / "ct")
    path = write_class_report(tmp_path / "sr.dcm", {"vessel": 0.25, "aneurysm": 0.75}, source, algorithm=ALGORITHM).path
    assert_valid(path)
