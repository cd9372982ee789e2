"""The generated studies: known difficulty, no shortcut, complete or absent, made once."""

import csv
import itertools
import json
import os
import subprocess
import sys
import time

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage, stats
from sklearn.metrics import roc_auc_score

from medvol.errors import MedvolError
from medvol.phantoms import cohort as cohort_module
from medvol.phantoms.body import STRUCTURES
from medvol.phantoms.cohort import (
    LAYOUTS,
    SEGMENTATION_LAYOUTS,
    SEPARATION,
    classification_cohort,
    ideal_auc,
    segmentation_cohort,
)
from medvol.phantoms.folders import made_once
from medvol.phantoms.scenes import bulge_radius_mm, draw_patients

SMALL = {"patients": 8, "size": (14, 13, 12)}


def read_rows(table):
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_marker(folder):
    return json.loads((folder / "cohort.json").read_text())


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The default study: table rows, whether each is an aneurysm, its voxels, the marker, seconds it took."""
    folder = tmp_path_factory.mktemp("default") / "study"
    start = time.perf_counter()
    table = classification_cohort(folder)
    seconds = time.perf_counter() - start
    rows = read_rows(table)
    images = [np.asanyarray(nibabel.load(folder / row["image"]).dataobj) for row in rows]
    positive = np.array([row["label"] == "aneurysm" for row in rows])
    return {"rows": rows, "positive": positive, "images": images, "marker": read_marker(folder), "seconds": seconds}


def test_the_default_study_has_240_cases_and_takes_seconds(study):
    assert len(study["rows"]) == 240
    assert list(study["rows"][0]) == ["case", "patient", "image", "label", "split", "age", "sex"]
    assert {image.shape for image in study["images"]} == {(28, 30, 26)}
    assert {image.dtype for image in study["images"]} == {np.dtype(np.int16)}
    assert study["seconds"] < 15


def test_the_latent_has_the_stated_area_within_sampling_error(study):
    latent = [study["marker"]["truth"][row["case"]]["latent"] for row in study["rows"]]
    assert study["marker"]["ideal_auc"] == ideal_auc(SEPARATION) == pytest.approx(0.9401, abs=1e-4)
    # Standard error 0.016 (Hanley and McNeil), a little more because of the pairs.
    assert roc_auc_score(study["positive"], latent) == pytest.approx(ideal_auc(SEPARATION), abs=0.04)


@pytest.mark.parametrize("separation", [0.5, 2.2])
def test_the_area_of_many_latents_is_the_closed_form(separation):
    draws = draw_patients(20_000, seed=1, separation=separation)
    area = roc_auc_score([draw.label for draw in draws], [draw.latent for draw in draws])
    assert area == pytest.approx(ideal_auc(separation), abs=0.006)
    assert ideal_auc(separation) == pytest.approx(stats.norm.cdf(separation / np.sqrt(2)))


def test_the_radius_grows_strictly_with_the_latent_and_always_exceeds_the_vessel():
    radius = [bulge_radius_mm(latent, SEPARATION) for latent in np.linspace(-6, 8, 200)]
    assert (np.diff(radius) > 0).all()
    assert radius[30] > 2.6  # latent -3.9; the widest vessel has 2.6 mm


def test_there_is_no_shortcut_through_whole_image_statistics(study):
    for name, measure in {"mean": np.mean, "std": np.std, "max": np.max, "median": np.median}.items():
        area = roc_auc_score(study["positive"], [measure(image) for image in study["images"]])
        assert 0.3 < area < 0.7, name


def test_no_nuisance_tells_the_label(study):
    truth = [study["marker"]["truth"][row["case"]] for row in study["rows"]]
    nuisances = {name: [known[name] for known in truth] for name in ("vessel_radius_mm", "contrast_hu", "noise_hu")}
    nuisances |= {f"centre {axis}": [known["centre_mm"][axis] for known in truth] for axis in range(3)}
    for name, values in nuisances.items():
        assert 0.38 < roc_auc_score(study["positive"], values) < 0.62, name


def test_the_size_of_the_bulge_can_be_measured_in_the_voxels(study):
    def widest_mm(image):
        smooth = ndimage.gaussian_filter(image.astype(float), 0.7)[3:-3, 3:-3, 3:-3]
        above = smooth - np.median(smooth)
        return ndimage.distance_transform_edt(above > 0.5 * np.percentile(above, 99.5)).max()

    area = roc_auc_score(study["positive"], [widest_mm(image) for image in study["images"]])
    assert 0.85 < area < ideal_auc(SEPARATION) + 0.04


def test_age_and_sex_tell_a_little():
    draws = draw_patients(20_000, seed=2, separation=1.0)
    label = np.array([draw.label for draw in draws])
    assert roc_auc_score(label, [draw.age for draw in draws]) == pytest.approx(ideal_auc(0.3), abs=0.01)
    assert 0.53 < roc_auc_score(label, [draw.sex == "F" for draw in draws]) < 0.62


def test_cases_of_one_patient_share_label_age_and_half_of_the_latents_variance():
    draws = draw_patients(9000, seed=3, separation=SEPARATION)
    pairs = [(a, b) for a, b in itertools.pairwise(draws) if a.patient == b.patient]
    assert len(pairs) == 3000
    assert all((a.label, a.age, a.sex, a.split) == (b.label, b.age, b.sex, b.split) for a, b in pairs)
    noise = np.array([[d.latent - SEPARATION * d.label for d in pair] for pair in pairs])
    assert np.corrcoef(noise.T)[0, 1] == pytest.approx(0.5, abs=0.05)
    assert noise.std() == pytest.approx(1.0, abs=0.03)


@settings(max_examples=25, deadline=None)
@given(st.integers(6, 80), st.integers(0, 1000))
def test_no_patient_is_on_two_sides_and_every_split_has_both_classes(patients, seed):
    draws = draw_patients(patients, seed=seed, separation=2.0, splits=(0.6, 0.15, 0.25))
    assert len({draw.case for draw in draws}) == len(draws)
    sides = {}
    for draw in draws:
        assert sides.setdefault(draw.patient, draw.split) == draw.split
    assert {(draw.split, draw.label) for draw in draws} == {(s, y) for s in ("train", "val", "test") for y in (0, 1)}


def test_equal_arguments_give_equal_bytes_and_another_seed_other_voxels(tmp_path):
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        classification_cohort(tmp_path / name, **SMALL, seed=seed)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert content(tmp_path / "a") != content(tmp_path / "c")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_has_the_same_cases_and_nothing_the_table_does_not_name(tmp_path, layout):
    table = classification_cohort(tmp_path / "study", **SMALL, layout=layout)
    rows = read_rows(table)
    reference = read_rows(classification_cohort(tmp_path / "reference", **SMALL, layout="npy"))
    for mine, theirs in zip(rows, reference, strict=True):
        assert {name: mine[name] for name in ("case", "patient", "label", "split", "age")} == {
            name: theirs[name] for name in ("case", "patient", "label", "split", "age")
        }
    latents = [read_marker(tmp_path / name)["truth"] for name in ("study", "reference")]
    assert latents[0] == latents[1]
    files = {path.relative_to(table.parent).as_posix() for path in table.parent.rglob("*") if path.is_file()}
    named = {row["image"].split("#")[0] for row in rows if "image" in row}
    rest = {file for file in files if not any(file == name or file.startswith(name + "/") for name in named)}
    labels = {"train_labels.npy", "test_labels.npy"} if layout == "stacked" else set()
    assert rest == {"cases.csv", "cohort.json"} | labels


def test_stacked_rows_are_the_volumes_the_table_names(tmp_path):
    table = classification_cohort(tmp_path / "stacked", **SMALL, layout="stacked")
    single = classification_cohort(tmp_path / "npy", **SMALL, layout="npy")
    for row, other in zip(read_rows(table), read_rows(single), strict=True):
        name, index = row["image"].split("#")
        volume = np.load(single.parent / other["image"]).astype(float)
        expected = np.rint(np.clip((volume + 200) * 255 / 800, 0, 255))
        np.testing.assert_array_equal(np.load(table.parent / name)[int(index)], expected)
        label = np.load(table.parent / name.replace("data", "labels"))[int(index)]
        assert row["label"] == ("vessel", "aneurysm")[label]
        assert name.startswith("test") == (row["split"] == "test")


def test_png_slices_lie_in_folders_by_split_and_class_and_show_the_bulge(tmp_path):
    table = classification_cohort(tmp_path / "png", **SMALL, layout="png")
    for row in read_rows(table):
        assert row["image"] == f"{row['split']}/{row['label']}/{row['case']}.png"
        with Image.open(table.parent / row["image"]) as image:
            assert (image.mode, image.size) == ("L", (14, 13))
            x, y, _ = read_marker(table.parent)["truth"][row["case"]]["centre_mm"]
            middle = np.asarray(image)[round(y + 6), round(x + 6.5)]
            assert middle > np.median(np.asarray(image))


def test_the_feature_table_measures_the_radius_and_keeps_the_label_last(tmp_path):
    table = classification_cohort(tmp_path / "csv", patients=120, layout="csv")
    rows, truth = read_rows(table), read_marker(table.parent)["truth"]
    assert list(rows[0])[-1] == "label"
    assert "latent" not in rows[0]
    for row in rows:
        assert float(row["diameter_mm"]) == 2 * truth[row["case"]]["aneurysm_radius_mm"]
    area = roc_auc_score([row["label"] == "aneurysm" for row in rows], [float(row["diameter_mm"]) for row in rows])
    assert area == pytest.approx(ideal_auc(), abs=0.05)


def test_dicom_cases_are_series_of_their_patient(tmp_path):
    table = classification_cohort(tmp_path / "dicom", patients=6, size=(14, 13, 12), layout="dicom")
    seen = set()
    for row in read_rows(table):
        slices = [pydicom.dcmread(path) for path in sorted((table.parent / row["image"]).iterdir())]
        assert len(slices) == 12
        assert {one.PatientID for one in slices} == {row["patient"]}
        seen.add(slices[0].SeriesInstanceUID)
    assert len(seen) == len(read_rows(table))


def test_without_splits_the_table_has_no_such_column(tmp_path):
    table = classification_cohort(tmp_path / "a", **SMALL, splits=None, layout="png")
    rows = read_rows(table)
    assert "split" not in rows[0]
    assert rows[0]["image"] == f"{rows[0]['label']}/{rows[0]['case']}.png"


@pytest.mark.parametrize("layout", SEGMENTATION_LAYOUTS)
def test_masks_hold_the_volumes_of_the_truth(tmp_path, layout):
    table = segmentation_cohort(tmp_path / "body", patients=6, layout=layout)
    marker = read_marker(table.parent)
    assert marker["structures"] == STRUCTURES
    assert marker["contrast_to_noise"]["liver"] == 3.0
    ratios = []
    for row in read_rows(table):
        path = table.parent / row["label"]
        if layout == "npy":
            mask, voxel_ml = np.load(path), 2.0 * 2.0 * 2.4 / 1000
        else:
            image = nibabel.load(path)
            mask, voxel_ml = np.asanyarray(image.dataobj), abs(np.linalg.det(image.affine[:3, :3])) / 1000
        assert mask.dtype == np.uint8
        truth = marker["truth"][row["case"]]["volume_ml"]
        ratios.append([(mask == label).sum() * voxel_ml / truth[name] for name, label in STRUCTURES.items()])
    assert np.mean(ratios, axis=0) == pytest.approx(np.ones(4), abs=0.12)


def test_images_and_masks_of_the_body_lie_on_one_grid_and_fit_each_other(tmp_path):
    table = segmentation_cohort(tmp_path / "body", patients=6)
    handed = set()
    for row in read_rows(table):
        image, mask = (nibabel.load(table.parent / row[name]) for name in ("image", "label"))
        np.testing.assert_array_equal(image.affine, mask.affine)
        voxels, labels = np.asanyarray(image.dataobj), np.asanyarray(mask.dataobj)
        assert np.median(voxels[labels == STRUCTURES["liver"]]) == pytest.approx(60, abs=12)
        assert np.median(voxels[labels == STRUCTURES["spine"]]) > 400
        liver = nibabel.affines.apply_affine(mask.affine, np.argwhere(labels == STRUCTURES["liver"])).mean(axis=0)
        assert liver[0] > 3  # the patient's right in RAS+
        handed.add(nibabel.aff2axcodes(image.affine))
    assert handed == {("R", "A", "S"), ("L", "P", "S")}


def test_cases_of_one_body_share_their_organs(tmp_path):
    marker = read_marker(segmentation_cohort(tmp_path / "body", patients=6).parent)

    def shares(case):
        known = marker["truth"][case]
        return np.array(list(known["volume_ml"].values())) / known["width_mm"] ** 3

    np.testing.assert_allclose(shares("p001_1"), shares("p001_2"))
    assert not np.allclose(shares("p001_1"), shares("p002_1"))


def test_a_second_call_returns_the_folder_untouched(tmp_path, monkeypatch):
    table = classification_cohort(tmp_path / "a", **SMALL)
    before = {path: path.stat().st_mtime_ns for path in table.parent.rglob("*")}
    monkeypatch.setattr(cohort_module, "draw_patients", None)  # would fail if it were built again
    assert classification_cohort(tmp_path / "a", **SMALL) == table
    assert {path: path.stat().st_mtime_ns for path in table.parent.rglob("*")} == before


def test_other_arguments_are_refused_and_named(tmp_path):
    table = classification_cohort(tmp_path / "a", **SMALL)
    before = content(table.parent)
    with pytest.raises(MedvolError, match="seed=0 instead of 5") as refusal:
        classification_cohort(tmp_path / "a", **SMALL, seed=5)
    assert refusal.value.code == "FOLDER_IN_USE"
    assert content(table.parent) == before


def test_a_folder_of_the_user_is_never_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(MedvolError, match="FOLDER_IN_USE"):
        classification_cohort(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(MedvolError, match="FOLDER_IN_USE"):
        classification_cohort(tmp_path / "file", **SMALL)


@pytest.mark.parametrize("damage", ["missing", "shorter", "table", "version"])
def test_a_damaged_or_old_cohort_is_made_anew(tmp_path, damage):
    table = classification_cohort(tmp_path / "a", **SMALL)
    sound = content(table.parent)
    image = table.parent / read_rows(table)[0]["image"]
    if damage == "missing":
        image.unlink()
    elif damage == "shorter":
        image.write_bytes(image.read_bytes()[:-5])
    elif damage == "table":
        table.write_bytes(table.read_bytes().replace(b"vessel", b"VESSEL"))
    else:
        marker = table.parent / "cohort.json"
        marker.write_text(marker.read_text().replace('"version": 1', '"version": 0'))
    assert content(table.parent) != sound
    classification_cohort(tmp_path / "a", **SMALL)
    assert content(table.parent) == sound
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_damaged_cohort_with_a_foreign_file_is_refused(tmp_path):
    table = classification_cohort(tmp_path / "a", **SMALL)
    (table.parent / read_rows(table)[0]["image"]).unlink()
    (table.parent / "notes.txt").write_text("mine")
    with pytest.raises(MedvolError, match=r"notes\.txt"):
        classification_cohort(tmp_path / "a", **SMALL)
    assert (table.parent / "notes.txt").read_text() == "mine"


def test_a_build_that_fails_leaves_nothing_behind(tmp_path):
    def build(place):
        (place / "half.txt").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        made_once(tmp_path / "deep" / "a", {}, build)
    assert list((tmp_path / "deep").iterdir()) == []


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "a").mkdir()
    assert classification_cohort(tmp_path / "a", **SMALL).is_file()


def test_whoever_comes_second_uses_what_the_first_has_made(tmp_path):
    def build(place):
        (place / "cases.csv").write_text("case\n")
        return {}

    made = {}

    def slow_build(place):
        first = made_once(tmp_path / "a", {"x": 1}, build)  # another process gets there first
        made["inode"] = first.stat().st_ino
        return build(place)

    table = made_once(tmp_path / "a", {"x": 1}, slow_build)
    assert table == tmp_path / "a" / "cases.csv"
    assert table.stat().st_ino == made["inode"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_two_processes_at_once_agree_on_one_folder(tmp_path):
    code = (
        "import sys; from medvol.phantoms.cohort import classification_cohort as make; "
        "make(sys.argv[1], patients=8, size=(14, 13, 12))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    workers = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) for _ in range(2)]
    results = [(worker.communicate(timeout=60)[1], worker.returncode) for worker in workers]
    assert [code for _, code in results] == [0, 0], results
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    alone = classification_cohort(tmp_path / "b", **SMALL)
    assert content(tmp_path / "a") == content(alone.parent)


def test_the_marker_is_strict_json(tmp_path):
    table = classification_cohort(tmp_path / "a", **SMALL)
    marker = read_marker(table.parent)
    assert marker["arguments"]["separation"] == SEPARATION
    assert set(marker["truth"]) == {row["case"] for row in read_rows(table)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layout": "nifty"}, "did you mean 'nifti'"),
        ({"patients": 5}, "at least 6"),
        ({"size": (28, 30, 8)}, "at least 12"),
        ({"size": (28, 30)}, "three numbers"),
        ({"separation": 0.0}, "separation"),
        ({"splits": (0.5, 0.5, 0.5)}, "sum to 1"),
        ({"splits": (1.0, 0.0, 0.0)}, "above 0"),
    ],
)
def test_arguments_that_make_no_study_are_refused(tmp_path, arguments, message):
    with pytest.raises(MedvolError, match=message) as refusal:
        classification_cohort(tmp_path / "a", **arguments)
    assert refusal.value.code == "BAD_ARGUMENT"
    assert list(tmp_path.iterdir()) == []


def test_importing_the_phantoms_imports_no_heavy_library():
    code = (
        "import sys, medvol.phantoms.cohort, medvol.metrics.statistics, medvol.metrics.calibration; "
        "heavy = {'torch', 'monai', 'scipy', 'sklearn', 'nibabel', 'pydicom', 'PIL', 'pandas'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_place_that_cannot_be_written_to_and_a_negative_seed_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(MedvolError, match="CANNOT_WRITE"):
        classification_cohort(tmp_path / "file" / "cohort", layout="csv")
    for make in (classification_cohort, segmentation_cohort):
        with pytest.raises(MedvolError, match="BAD_ARGUMENT: seed -1"):
            make(tmp_path / "cohort", seed=-1)
