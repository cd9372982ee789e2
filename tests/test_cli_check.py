"""The command `medvol check`: every file opened, every finding named with its code, nothing stopped at the first."""

import csv
import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medvol.bundle.study import tabular_study
from medvol.cli import main
from medvol.io.labels import LabelMap
from medvol.io.read import read_volume
from medvol.phantoms.cohort import classification_cohort, segmentation_cohort


@pytest.fixture
def check(tmp_path, capsys):
    """Run the command; return exit code, findings by severity as (code, case), and what was printed."""

    def run(source, *options):
        file = tmp_path / "findings.json"
        code = main(["check", str(source), "--json", str(file), *options])
        facts = json.loads(file.read_text())
        found = {
            severity: {(one["code"], one["case"]) for one in facts["findings"] if one["severity"] == severity}
            for severity in ("refused", "warning")
        }
        assert len(found["refused"]) == facts["refused"]
        return code, found, capsys.readouterr().out

    return run


@pytest.fixture
def edit():
    """Change rows of a case table, given as dictionaries by case."""

    def change(table, changes):
        with table.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        for row in rows:
            row.update(changes.get(row["case"], {}))
        with table.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return rows

    return change


@pytest.fixture
def organs(tmp_path):
    return segmentation_cohort(tmp_path / "organs", patients=9, size=(18, 17, 16))


@pytest.fixture
def pictures(tmp_path):
    return classification_cohort(tmp_path / "pictures", patients=12, size=(22, 21, 20), layout="png")


def cases_in(table, split):
    with table.open(newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["split"] == split]


def test_a_good_study_has_nothing_to_refuse(organs, pictures, check):
    code, found, printed = check(organs)
    assert (code, found["refused"]) == (0, set())
    assert "0 refused" in printed
    code, found, printed = check(pictures)
    assert (code, found["refused"]) == (0, set())
    assert "classification, images" in printed


def test_every_damaged_file_of_a_segmentation_study_is_named_with_its_code(organs, check):
    cut, gone, moved, small, odd, *_ = cases_in(organs, "train")
    unknown = cases_in(organs, "test")[0]
    folder = organs.parent
    image = folder / cut["image"]
    image.write_bytes(image.read_bytes()[:-200])
    (folder / gone["label"]).unlink()

    def rewrite(case, change, shift=(0, 0, 0)):
        mask = nib.load(folder / case["label"])
        affine = mask.affine.copy()
        affine[:3, 3] += shift
        nib.save(nib.Nifti1Image(change(np.asarray(mask.dataobj)), affine), folder / case["label"])

    rewrite(moved, lambda voxels: voxels, shift=(0, 25, 0))
    rewrite(small, lambda voxels: voxels[1:])
    rewrite(odd, lambda voxels: voxels.astype(np.float32) + 0.5)
    rewrite(unknown, lambda voxels: np.where(voxels == 1, 9, voxels))
    for case in cases_in(organs, "val"):
        rewrite(case, lambda voxels: np.where(voxels >= 3, 0, voxels))
    code, found, printed = check(organs)
    assert code == 1
    assert found["refused"] == {
        ("TRUNCATED", cut["case"]),
        ("NOT_FOUND", gone["case"]),
        ("GEOMETRY_MISMATCH", moved["case"]),
        ("GEOMETRY_MISMATCH", small["case"]),
        ("BAD_LABEL", odd["case"]),
        ("BAD_LABEL", unknown["case"]),
    }
    assert "mask value 3 is in no case of val" in printed
    lines = [line for line in printed.splitlines() if line.startswith("TRUNCATED")]
    assert len(lines) == 1
    assert f"{cut['case']}  {cut['image']}: " in lines[0]

    _, found, _ = check(organs, "--resample-labels")
    assert ("GEOMETRY_MISMATCH", moved["case"]) not in found["refused"]
    assert ("BAD_LABEL", odd["case"]) in found["refused"]


def test_what_is_wrong_with_the_table_does_not_hide_what_is_wrong_with_the_files(pictures, check, edit):
    train, (val, *_), (test, *_) = (cases_in(pictures, split) for split in ("train", "val", "test"))
    tiny, broken, gone, twice, unlabelled = train[:5]
    Image.fromarray(np.zeros((5, 30), np.uint8)).save(pictures.parent / tiny["image"])
    (pictures.parent / broken["image"]).write_bytes(b"\x89PNG\r\n\x1a\n and nothing else")
    (pictures.parent / gone["image"]).unlink()
    edit(
        pictures,
        {
            twice["case"]: {"patient": test["patient"]},
            unlabelled["case"]: {"label": ""},
            val["case"]: {"split": "vall"},
        },
    )
    code, found, _ = check(pictures)
    assert code == 1
    codes = {(code, case) for code, case in found["refused"] if code not in ("SPLIT_LEAK", "TRUNCATED", "BAD_IMAGE")}
    assert codes == {
        ("IMAGE_TOO_SMALL", tiny["case"]),
        ("NOT_FOUND", gone["case"]),
        ("NO_LABEL", unlabelled["case"]),
        ("BAD_SPLIT", val["case"]),
    }
    assert "SPLIT_LEAK" in {code for code, _ in found["refused"]}
    assert broken["case"] in {case for _, case in found["refused"]}


def test_a_class_that_a_split_lacks_is_a_warning_and_no_refusal(pictures, check, edit):
    edit(pictures, {row["case"]: {"label": "vessel"} for row in cases_in(pictures, "val")})
    code, found, printed = check(pictures)
    assert (code, found["refused"], found["warning"]) == (0, set(), {("CLASS_MISSING", "")})
    assert "class 'aneurysm' has no case in val" in printed


def test_channels_and_kinds_of_volumes_are_compared(tmp_path, check):
    rng = np.random.default_rng(0)
    rows = []
    for index in range(6):
        for name, shape in (("a", (7, 8, 9)), ("b", (7, 8, 9 - (index == 2)))):
            nib.save(
                nib.Nifti1Image(rng.random(shape, dtype=np.float32), np.diag([1, 1.5, 3, 1])),
                tmp_path / f"{index}{name}.nii",
            )
        rows.append([f"c{index}", f"{index}a.nii", f"{index}b.nii", index % 2])
    for name in ("a", "b"):
        np.save(tmp_path / f"4{name}.npy", rng.random((7, 8, 9)))
    rows[4][1:3] = ["4a.npy", "4b.npy"]
    lines = ["case,image:t1,image:t2,label", *(",".join(map(str, row)) for row in rows)]
    table = tmp_path / "cases.csv"
    table.write_text("\n".join(lines))
    code, found, _ = check(table)
    assert code == 1
    assert found["refused"] == {("GEOMETRY_MISMATCH", "c2"), ("MIXED_GEOMETRY", "c4")}


def test_a_case_without_an_image_is_left_to_fusion(pictures, check, edit):
    case = cases_in(pictures, "train")[0]["case"]
    edit(pictures, {case: {"image": ""}})
    code, found, _ = check(pictures)
    assert (code, found["refused"]) == (0, set())
    assert ("NO_IMAGE", case) in found["warning"]


def test_a_table_of_features_has_no_file_to_open(tmp_path, check):
    table = classification_cohort(tmp_path / "c", patients=15, layout="csv")
    code, found, printed = check(table)
    assert (code, found["refused"]) == (0, set())
    assert "0 files opened" in printed


def test_columns_that_training_refuses_or_leaves_out_are_found_and_cells_of_every_split(tmp_path, check):
    def row(index, age):
        return f"{age},{index * 3}%,n{index},{'xy'[index % 2]}"

    table = tmp_path / "table.csv"
    ages = [*range(60)]
    head = "age,stenosis,name,label"
    table.write_text("\n".join([head, *(row(*pair) for pair in enumerate(ages))]))
    code, found, printed = check(table)
    assert (code, found["refused"]) == (1, {("BAD_VALUE", "")})
    assert "column 'stenosis' holds" in printed
    assert found["warning"] == {("NO_FEATURES", "")}
    assert "column 'name' tells nothing in training" in printed
    study = tabular_study(str(table), tmp_path / "out")
    tested = next(index for index, case in enumerate(study.cases) if case.split == "test")
    ages[tested] = "three"
    rows = [",".join([line.split(",")[0], line.split(",")[-1]]) for line in (row(*pair) for pair in enumerate(ages))]
    table.write_text("\n".join(["age,label", *rows]))
    assert check(table)[1]["refused"] == {("BAD_VALUE", study.cases[tested].case)}
    table.write_text("\n".join(["one,label", *(f"1,{'xy'[index % 2]}" for index in range(60))]))
    assert check(table)[1]["refused"] == {("NO_FEATURES", "")}


def test_features_are_split_as_their_bundle_splits_them(tmp_path, check):
    rows = "\n".join(f"{index},{index * 7 % 5},{'xy'[index % 2]}" for index in range(60))
    (tmp_path / "table.csv").write_text(f"a,b,label\n{rows}\n")
    trained = tabular_study(str(tmp_path / "table.csv"), tmp_path / "out")
    _, _, printed = check(tmp_path / "table.csv")
    assert f"note: {next(note for note in trained.notes if note.startswith('split by patient'))}" in printed


def test_what_no_bundle_trains_on_is_refused(tmp_path, check, pictures, edit):
    rows = "\n".join(f"{index % 7},{20 + index * 1.5}" for index in range(30))
    (tmp_path / "ages.csv").write_text(f"a,label\n{rows}\n")
    assert check(tmp_path / "ages.csv")[1]["refused"] == {("WRONG_KIND", "")}
    rows = "\n".join(f"{index},k{index}" for index in range(8))
    (tmp_path / "one_each.csv").write_text(f"a,label\n{rows}\n")
    assert check(tmp_path / "one_each.csv")[:2] == (
        1,
        {"refused": {("EMPTY_SPLIT", "")}, "warning": {("EMPTY_SPLIT", "")}},
    )
    edit(pictures, {row["case"]: {"split": "val"} for row in cases_in(pictures, "test")})
    code, found, printed = check(pictures)
    assert (code, found["warning"]) == (0, {("EMPTY_SPLIT", "")})
    assert "no case in the split 'test'" in printed


def test_masks_without_any_structure_are_refused(organs, check):
    for row in cases_in(organs, "train"):
        mask = nib.load(organs.parent / row["label"])
        nib.save(nib.Nifti1Image(np.zeros_like(mask.dataobj), mask.affine), organs.parent / row["label"])
    code, found, printed = check(organs)
    assert (code, ("BAD_LABEL", "") in found["refused"]) == (1, True)
    assert "masks that hold nothing but 0" in printed


def test_a_spacing_that_no_scanner_has_is_a_warning(tmp_path, check):
    for index in range(6):
        affine = np.diag([1e6 if index == 2 else 1.0, 1.5, 3.0, 1.0])
        grey = np.random.default_rng(index).normal(size=(9, 8, 7)).astype(np.float32)
        nib.save(nib.Nifti1Image(grey, affine), tmp_path / f"c{index}.nii")
    rows = "\n".join(f"c{index}.nii,{'xy'[index % 2]}" for index in range(6))
    (tmp_path / "cases.csv").write_text(f"image,label\n{rows}\n")
    code, found, printed = check(tmp_path / "cases.csv")
    assert (code, found["warning"]) == (0, {("ODD_SPACING", "c2")})
    assert "a spacing of 1e+06 x 1.5 x 3 mm" in printed


def test_volumes_without_contrast_of_one_slice_or_far_from_the_median_spacing_are_warnings(tmp_path, check):
    spacings = {3: (1.0, 1.5, 30.3), 4: (0.09, 1.5, 3.0), 5: (10.0, 1.5, 3.0)}  # median 1 x 1.5 x 3; c5 is just within
    rows = ["image,label"]
    for index in range(9):
        grey = np.random.default_rng(index).normal(size=(9, 8, 1 if index == 2 else 7)).astype(np.float32)
        if index == 1:
            grey[...] = 5.0
        affine = np.diag([*spacings.get(index, (1.0, 1.5, 3.0)), 1.0])
        nib.save(nib.Nifti1Image(grey, affine), tmp_path / f"c{index}.nii")
        rows.append(f"c{index}.nii,{'xy'[index % 2]}")
    (tmp_path / "cases.csv").write_text("\n".join(rows))
    code, found, printed = check(tmp_path / "cases.csv")
    assert (code, found["refused"]) == (0, set())
    warned = {("NO_CONTRAST", "c1"), ("ONE_SLICE", "c2"), ("ODD_SPACING", "c3"), ("ODD_SPACING", "c4")}
    assert found["warning"] == warned
    assert "all voxels are 5" in printed
    assert "a volume of 9 x 8 x 1 voxels" in printed
    assert "a spacing of 1 x 1.5 x 30.3 mm; expected the study's median of 1 x 1.5 x 3 mm, within a factor" in printed


def test_a_picture_without_contrast_is_a_warning(pictures, check):
    case = cases_in(pictures, "train")[0]
    Image.fromarray(np.full((22, 21), 7, np.uint8)).save(pictures.parent / case["image"])
    code, found, _ = check(pictures)
    assert (code, found["warning"]) == (0, {("NO_CONTRAST", case["case"])})


def test_the_same_scan_in_two_splits_is_refused_and_within_one_told(tmp_path, check):
    # c0 and c3 (train, val) hold the same voxels in files that differ, c1 and c2 (train) as well; c4 and c5 are empty.
    splits, seeds = ("train", "train", "train", "val", "val", "test"), (0, 1, 1, 0, None, None)
    rows = ["case,image,label,split"]
    for index, (split, seed) in enumerate(zip(splits, seeds, strict=True)):
        grey = np.zeros((9, 8, 7)) if seed is None else np.random.default_rng(seed).normal(size=(9, 8, 7))
        name = f"c{index}.nii{'.gz' * (index % 2)}"
        nib.save(nib.Nifti1Image(grey.astype(np.float32), np.eye(4)), tmp_path / name)
        rows.append(f"c{index},{name},{'xy'[index % 2]},{split}")
    (tmp_path / "cases.csv").write_text("\n".join(rows))
    code, found, printed = check(tmp_path / "cases.csv")
    assert (code, found["refused"]) == (1, {("LEAK", "c3")})
    assert ("SAME_SCAN", "c2") in found["warning"]
    assert {("NO_CONTRAST", "c4"), ("NO_CONTRAST", "c5")} <= found["warning"]
    assert "c3.nii.gz: here in val, the same scan as case c0 of train (c0.nii); 1 such pair" in printed


def test_what_is_no_study_is_one_finding(tmp_path, check):
    (tmp_path / "empty").mkdir()
    code, found, printed = check(tmp_path / "empty")
    assert (code, found["refused"]) == (1, {("EMPTY_DATASET", "")})
    assert "could not be read as a study" in printed


def test_a_structure_has_one_value_in_all_masks_that_name_theirs(organs, check, monkeypatch):
    *_, last = cases_in(organs, "train")
    other = cases_in(organs, "test")[0]["case"]
    swapped = {last["case"], other}

    def named(reference, image, *, resample):
        names = {1: "Liver", 2: "tumour"}
        case = next(row["case"] for row in rows if reference.endswith(row["label"]))
        return LabelMap(read_volume(reference), {1: "tumour", 2: "liver"} if case in swapped else names)

    rows = [row for split in ("train", "val", "test") for row in cases_in(organs, split)]
    monkeypatch.setattr("medvol.bundle.check.find_label", lambda reference: reference)
    monkeypatch.setattr("medvol.bundle.check.read_label", named)
    code, found, _ = check(organs)
    assert code == 1
    assert found["refused"] == {("BAD_LABEL", case) for case in swapped}


def declare(table, names, **facts):
    """Declare the names of the mask values 0, 1, ... beside a case table."""
    told = {"task": "segmentation", "classes": names, "mask_values": list(range(len(names))), **facts}
    table.with_suffix(".study.json").write_text(json.dumps(told))


def findings_of(tmp_path):
    return json.loads((tmp_path / "findings.json").read_text())["findings"]


def test_a_mask_value_that_the_source_does_not_declare_is_refused_in_every_case(organs, check):
    declare(organs, ["background", "a", "b"])  # the phantom of this size holds 1 to 3
    with organs.open(newline="") as stream:
        names = [row["case"] for row in csv.DictReader(stream)]
    code, found, printed = check(organs)
    assert code == 1
    assert found["refused"] == {("UNKNOWN_LABEL", name) for name in names}
    assert "the mask value 3; expected 0 background, 1 a, 2 b" in printed


def test_two_values_of_one_name_and_a_structure_in_no_training_mask_are_found(organs, tmp_path, check):
    declare(organs, ["background", "lesion", "b", "lesion"])
    code, found, printed = check(organs)
    assert (code, found["refused"]) == (1, {("BAD_VALUE", "")})
    assert "the structure 'lesion' for the mask values 1, 3" in printed
    declare(organs, ["background", "a", "b", "c", "never"])
    code, found, _ = check(organs)
    assert (code, found["refused"]) == (0, set())
    told = [one["found"] for one in findings_of(tmp_path) if one["code"] == "CLASS_MISSING"]
    assert told == ["no training mask holds 'never' (value 4): it cannot be learnt"]


def test_masks_without_a_structure_beside_others_are_a_warning_with_their_number(organs, tmp_path, check):
    train = [row["case"] for row in cases_in(organs, "train")][:2]
    with organs.open(newline="") as stream:
        masks = {row["case"]: organs.parent / row["label"] for row in csv.DictReader(stream)}
    for case in train:
        mask = nib.load(masks[case])
        nib.save(nib.Nifti1Image(np.zeros(mask.shape, np.uint8), mask.affine), masks[case])
    code, found, _ = check(organs)
    assert (code, found["refused"]) == (0, set())
    told = [one for one in findings_of(tmp_path) if one["code"] == "EMPTY_MASK"]
    assert [(one["severity"], one["case"], one["details"]) for one in told] == [("warning", train[0], train)]
    assert told[0]["found"] == f"2 of {len(masks)} masks hold nothing but 0, this is the first"


def test_what_a_reader_noted_is_a_warning_for_each_case(organs, check):
    train = cases_in(organs, "train")
    for case in train[:2]:
        path = organs.parent / case["image"]
        image = nib.load(path)
        moved = image.affine.copy()
        moved[0, 3] += 50
        image.set_qform(moved, 1)
        nib.save(image, path)
    plain = organs.parent / train[2]["image"]
    plain.rename(plain.with_suffix(""))  # compressed, under a name that says otherwise
    with organs.open() as stream:
        text = stream.read().replace(train[2]["image"], train[2]["image"].removesuffix(".gz"))
    organs.write_text(text)
    code, found, printed = check(organs)
    assert (code, found["refused"]) == (0, set())
    assert {one for one in found["warning"] if one[0] in ("AFFINE_CONFLICT", "NOTED")} == {
        ("AFFINE_CONFLICT", train[0]["case"]),
        ("AFFINE_CONFLICT", train[1]["case"]),
        ("NOTED", train[2]["case"]),
    }
    assert "qform and sform disagree by 50 mm" in printed
    assert "the content is gzip, unlike its name" in printed


def test_a_column_that_gives_the_label_away_is_told_of(check, tmp_path):
    table = tmp_path / "t.csv"
    rows = [f"c{i},p{i},{('ben', 'mal')[i % 2]},{(i * 7) % 11},{('no', 'yes')[i % 2]}" for i in range(60)]
    table.write_text("\n".join(["case,patient,diagnosis,age,label", *rows]) + "\n")
    code, found, printed = check(table)
    assert (code, found["refused"], found["warning"]) == (0, set(), {("LEAK", "")})
    assert "column 'diagnosis' alone tells the class of every training row" in printed
