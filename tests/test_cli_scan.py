"""The command `medvol scan`: a line per series, a verdict for each, and no word of the patient."""

import csv
import gzip
import json
import re
import shutil

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from medvol.cli import main
from medvol.data.sources import open_study
from medvol.geometry import Volume, affine_from
from medvol.io import read_volume
from medvol.io.dicom_scan import scan_tree
from medvol.phantoms.dicom import Identity, write_dicom_series

VOXELS = np.arange(7 * 8 * 9, dtype=np.int16).reshape(7, 8, 9)


def _write(folder, patient, number, voxels=VOXELS, modality="CT", direction=None):
    volume = Volume(voxels, affine_from((1.0, 1.5, 3.0), direction))
    who = Identity(patient=patient, series_number=number, description=f"series {number}", modality=modality)
    return write_dicom_series(volume, folder, identity=who)


@pytest.fixture
def tree(tmp_path):
    """Three patients: two good series and one with a gap, one with two echoes, one whose header is cut."""
    root = tmp_path / "export"
    _write(root / "SECRETX" / "a", "SECRETX", 1)
    _write(root / "SECRETX" / "b", "SECRETX", 2, VOXELS[:5], "MR", [[0, 0, 1], [1, 0, 0], [0, 1, 0]])
    _write(root / "two" / "gap", "second", 1)[4].unlink()
    files = _write(root / "two" / "echoes", "second", 2, modality="MR")
    for path in files:
        dataset = pydicom.dcmread(path)
        dataset.EchoTime, dataset.SOPInstanceUID = 12, f"1.2.3.{path.stem[2:].lstrip('0')}"
        dataset.PixelData = dataset.PixelData[::-1]
        dataset.save_as(path.with_name(f"second_{path.name}"))
    broken = _write(root / "three", "third", 4)[0]
    for path in broken.parent.iterdir():
        if path != broken:
            path.unlink()
    broken.write_bytes(broken.read_bytes()[:400])
    shutil.copy(get_testdata_file("rtstruct.dcm"), root)
    (root / "notes.txt").write_text("text")
    return root


def test_every_series_gets_a_row_with_its_verdict(tree):
    result = scan_tree(tree)
    assert (result.files, result.skipped, result.others) == (9 + 9 + 8 + 18 + 1, 1, 1)
    verdicts = sorted((row.number or 0, row.modality, row.verdict, row.files) for row in result.rows)
    assert verdicts == [
        (0, "", "TRUNCATED", 1),
        (1, "CT", "MISSING_SLICES", 8),
        (1, "CT", "ok", 9),
        (2, "MR", "SEVERAL_VOLUMES", 18),
        (2, "MR", "ok", 9),
    ]
    by_verdict = {(row.verdict, row.modality): row for row in result.rows}
    first, second = by_verdict["ok", "CT"], by_verdict["ok", "MR"]
    assert first.patient == second.patient
    assert first.patient not in {by_verdict["MISSING_SLICES", "CT"].patient, ""}
    assert (first.size, first.spacing_mm, first.orientation) == ((7, 8, 9), (1.0, 1.5, 3.0), "axial")
    assert (second.size, second.orientation) == ((5, 8, 9), "sagittal")
    assert by_verdict["MISSING_SLICES", "CT"].references == ()
    assert "gap of 6 mm" in by_verdict["MISSING_SLICES", "CT"].reason
    assert len(by_verdict["SEVERAL_VOLUMES", "MR"].references) == 2


def test_the_references_of_a_row_can_be_read(tree):
    rows = scan_tree(tree).rows
    references = [reference for row in rows for reference in row.references]
    assert len(references) == 4
    for reference in references:
        assert read_volume(reference).array.shape in ((7, 8, 9), (5, 8, 9))


def test_a_case_table_comes_out_that_medvol_reads(tree, tmp_path, capsys):
    table = tmp_path / "out" / "cases.csv"
    assert main(["scan", str(tree), "--csv", str(table), "--json", str(tmp_path / "scan.json")]) == 0
    printed = capsys.readouterr().out
    assert "SEVERAL_VOLUMES (2 volumes)" in printed
    assert "5 series of 2 patients in 45 files, 4 volumes can be read" in printed
    study = open_study(str(table), require_label=False)
    assert len(study.cases) == 4
    assert len({case.patient for case in study.cases}) == 2
    assert sorted(read_volume(case.image[0]).array.shape for case in study.cases)[0] == (5, 8, 9)
    with table.open() as stream:
        assert next(csv.reader(stream)) == ["case", "patient", "image"]
    facts = json.loads((tmp_path / "scan.json").read_text())
    assert len(facts["series"]) == 5
    assert facts["series"][0].keys() >= {"patient", "verdict", "reason", "spacing_mm", "references"}


def test_no_name_of_a_patient_leaves_the_headers(tree, tmp_path, capsys):
    clean = tmp_path / "clean"
    (tree / "SECRETX").rename(clean)
    main(["scan", str(clean), "--csv", str(tmp_path / "cases.csv"), "--json", str(tmp_path / "scan.json")])
    texts = capsys.readouterr().out + (tmp_path / "cases.csv").read_text() + (tmp_path / "scan.json").read_text()
    assert "SECRETX" not in texts


def test_pseudonyms_depend_on_the_key_alone(tree, tmp_path):
    plain, again, keyed = (
        {row.patient for row in scan_tree(tree, key=key).rows} for key in (b"", b"", b"a secret of the project")
    )
    assert plain == again
    assert plain & keyed == {""}


def test_a_series_exported_twice_is_one_row_of_all_its_files(tree):
    shutil.copytree(tree / "two" / "echoes", tree / "copy")
    shutil.copytree(tree / "SECRETX" / "a", tree / "copy_of_a")
    rows = {(row.verdict, row.modality): row for row in scan_tree(tree).rows}
    once, echoes = rows["ok", "CT"], rows["SEVERAL_VOLUMES", "MR"]
    assert (once.files, len(once.references)) == (18, 1)
    assert (echoes.files, len(echoes.references)) == (36, 2)
    np.testing.assert_array_equal(np.sort(read_volume(once.references[0]).array.ravel()), VOXELS.ravel())


def test_a_single_file_is_a_tree_too(tree):
    (row,) = scan_tree(sorted((tree / "SECRETX" / "a").iterdir())[0]).rows
    assert (row.verdict, row.size) == ("ok", (7, 8, 1))
    np.testing.assert_array_equal(read_volume(row.references[0]).array, VOXELS[..., :1])


def test_a_tree_without_dicom_is_refused(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("text")
    assert main(["scan", str(tmp_path)]) == 1
    assert "NO_DICOM" in capsys.readouterr().err


def test_a_table_of_nothing_is_refused(tree, tmp_path, capsys):
    assert main(["scan", str(tree / "two" / "gap"), "--csv", str(tmp_path / "cases.csv")]) == 1
    assert "NO_VOLUMES" in capsys.readouterr().err
    assert not (tmp_path / "cases.csv").exists()


@pytest.mark.parametrize(("cut", "code"), [(None, "BAD_DICOM.*another kind of file"), (400, "TRUNCATED")])
def test_a_file_by_its_name_that_is_no_dicom_file_is_refused(tmp_path, capsys, cut, code):
    path = _write(tmp_path / "one", "third", 4)[0]
    path.write_bytes(path.read_bytes()[:cut] if cut else gzip.compress(b"no image"))
    assert main(["scan", str(path)]) == 1
    assert re.search(f"medvol: {code}", capsys.readouterr().err)


def test_a_series_without_its_uid_is_one_volume_in_the_table_too(tmp_path, capsys):
    for path in _write(tmp_path / "tree" / "a", "first", 1):
        dataset = pydicom.dcmread(path)
        del dataset.SeriesInstanceUID
        dataset.save_as(path)
    assert main(["scan", str(tmp_path / "tree"), "--csv", str(tmp_path / "cases.csv")]) == 0
    assert "1 volumes can be read" in capsys.readouterr().out
    (case,) = open_study(str(tmp_path / "cases.csv"), require_label=False).cases
    np.testing.assert_array_equal(np.sort(read_volume(case.image[0]).array.ravel()), VOXELS.ravel())
