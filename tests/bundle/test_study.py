"""The studies that bundles work on."""

from medvol.bundle.study import cases_to_predict, rows_to_predict
from medvol.phantoms.cohort import classification_cohort


def test_a_class_of_a_table_to_predict_is_not_looked_at(tmp_path):
    # Read off a table the classes come sorted; the model's order is another one, and index 1 another class.
    volumes = classification_cohort(tmp_path / "volumes", patients=6, size=(12, 13, 14))
    rows = classification_cohort(tmp_path / "rows", patients=6, layout="csv")
    for study in (cases_to_predict(str(volumes), tmp_path), rows_to_predict(str(rows), tmp_path)):
        assert {case.label for case in study.cases} == {None}
        assert study.classes == ()


def test_rows_to_predict_are_not_asked_for_splits_or_for_every_file(tmp_path):
    (tmp_path / "a.npy").touch()
    table = tmp_path / "cases.csv"
    table.write_text("case,image,split,patient,age\nx,a.npy,train,p,50\ny,a.npy,test,p,60\nz,b.npy,test,q,70\n")
    assert len(cases_to_predict(str(table), tmp_path).cases) == 3
    assert len(rows_to_predict(str(table), tmp_path).cases) == 3
