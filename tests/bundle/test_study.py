"""The studies that bundles work on."""

import nibabel as nib
import numpy as np
import pytest

from medvol.bundle.study import cases_to_predict, rows_to_predict
from medvol.errors import MedvolError
from medvol.geometry import Volume
from medvol.phantoms.cohort import classification_cohort
from medvol.phantoms.dicom import Identity, write_dicom_series


def test_a_class_of_a_table_to_predict_is_not_looked_at(tmp_path):
    # Read off a table the classes come sorted; the model's order is another one, and index 1 another class.
    volumes = classification_cohort(tmp_path / "volumes", patients=6, size=(12, 13, 14))
    rows = classification_cohort(tmp_path / "rows", patients=6, layout="csv")
    for study in (cases_to_predict(str(volumes), tmp_path), rows_to_predict(str(rows), tmp_path)):
        assert {case.label for case in study.cases} == {None}
        assert study.classes == ()


def write_volumes(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        nib.save(nib.Nifti1Image(np.zeros((7, 8, 9), np.int16), np.eye(4)), folder / f"{name}.nii.gz")


@pytest.mark.parametrize(("output", "kept"), [("out", ["a", "b"]), ("sub/out", ["a", "b", "sub_c"]), (".", ["a", "b"])])
def test_the_results_of_an_earlier_run_are_no_cases_of_the_folder_around_them(output, kept, tmp_path, caplog):
    caplog.set_level("INFO")
    write_volumes(tmp_path, "a", "b")
    if "/" in output:
        write_volumes(tmp_path / "sub", "c")
    write_volumes(tmp_path / output / "predictions", "a", "b")  # as another tool may have rewritten them
    study = cases_to_predict(str(tmp_path), tmp_path / output, task="segmentation")
    assert [case.case for case in study.cases] == kept
    assert "2 images in the output folder" in caplog.text


def test_results_of_an_earlier_run_make_no_class_folders(tmp_path):
    for name in ("p1", "p2"):
        write_volumes(tmp_path / name, f"scan_{name}")
    write_volumes(tmp_path / "out" / "predictions", "scan_p1")
    study = cases_to_predict(str(tmp_path), tmp_path / "out", task="segmentation")
    assert sorted(case.image[0] for case in study.cases) == [
        f"{tmp_path}/{one}/scan_{one}.nii.gz" for one in ("p1", "p2")
    ]


def test_a_folder_of_results_alone_is_refused_or_was_meant(tmp_path):
    write_volumes(tmp_path / "out" / "predictions", "a")
    with pytest.raises(MedvolError, match="EMPTY_DATASET: .*nothing but results of an earlier run"):
        cases_to_predict(str(tmp_path), tmp_path / "out")
    assert len(cases_to_predict(str(tmp_path / "out" / "predictions"), tmp_path / "out").cases) == 1
    (tmp_path / "cases.csv").write_text("image\nout/predictions/a.nii.gz\n")
    assert len(cases_to_predict(str(tmp_path), tmp_path / "out").cases) == 1


def test_a_prediction_tells_how_the_source_was_read_and_what_was_not(tmp_path, caplog):
    caplog.set_level("INFO")
    write_volumes(tmp_path, "a", "b", "c")
    (tmp_path / "ages.csv").write_text("image,age\na.nii.gz,50\n")
    cases_to_predict(str(tmp_path), tmp_path / "out")
    assert "read as: CSV case table" in caplog.text
    assert "2 files, such as b.nii.gz, are not in the table ages.csv, and not read" in caplog.text
    (tmp_path / "rows.csv").write_text("age,weight\n50,70\n")
    rows_to_predict(str(tmp_path / "rows.csv"), tmp_path)
    assert "read as: CSV of 2 features" in caplog.text


def test_rows_to_predict_are_not_asked_for_splits_or_for_every_file(tmp_path):
    (tmp_path / "a.npy").touch()
    table = tmp_path / "cases.csv"
    table.write_text("case,image,split,patient,age\nx,a.npy,train,p,50\ny,a.npy,test,p,60\nz,b.npy,test,q,70\n")
    assert len(cases_to_predict(str(table), tmp_path).cases) == 3
    assert len(rows_to_predict(str(table), tmp_path).cases) == 3


def test_a_dicom_page_among_the_results_is_no_case(tmp_path):
    for place, uid in (("ct", "1.2.3"), ("predictions", "1.2.4")):
        volume = Volume(np.arange(7 * 8 * 9, dtype=np.int16).reshape(7, 8, 9), np.diag([-1.0, -1.5, 3.0, 1.0]))
        write_dicom_series(volume, tmp_path / place, identity=Identity(study=uid))
    (case,) = cases_to_predict(str(tmp_path), tmp_path, task="segmentation").cases
    assert case.image[0].startswith(f"{tmp_path}/ct#")
