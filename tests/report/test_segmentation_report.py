"""What a segmentation run leaves behind: tables that add up, and pictures that show the right side of the patient."""

import csv
import gc
import json
import logging
import weakref
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from nibabel.orientations import apply_orientation, inv_ornt_aff
from PIL import Image

from medvol.errors import MedvolError
from medvol.geometry import affine_from
from medvol.metrics.segmentation import score_case, summarise
from medvol.phantoms.body import STRUCTURES, body
from medvol.phantoms.grid import oblique_affine
from medvol.report import segmented_cases
from medvol.report.segmentation import evaluate_segmentation, metrics_table, write_evaluation, write_predictions
from medvol.report.segmented_cases import SegmentedCases
from medvol.report.views import cut_views

ORGANS = {"liver, right": 1, "spleen": 2}
SHAPE = (7, 8, 9)
HIPPOCAMPUS = Path(__file__).parents[3] / "shared" / "data" / "msd_hippocampus"


def organs(shift=0):
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[1:4, 1 + shift : 5 + shift, 2:6] = 1
    labels[5:7, 2:5, 2:5] = 2
    return labels


def add_cases(cases, shifts=(0, 1, 2), truth=True):
    rng = np.random.default_rng(0)
    for number, shift in enumerate(shifts):
        cases.add(
            f"c{number}",
            f"p{number // 2}",
            rng.normal(size=SHAPE),
            organs(shift),
            organs() if truth else None,
            oblique_affine(SHAPE),
            output=f"predictions/c{number}.nii.gz",
        )
    return cases


def rows_of(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_metrics_json_has_means_with_intervals_rules_and_counts(tmp_path):
    cases = add_cases(SegmentedCases(ORGANS, nsd_tolerance_mm=2.0, lesion_structures=["spleen"]))
    write_evaluation(tmp_path, cases, bundle="demo_segmentation", split="test")
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert (result["bundle"], result["split"]) == ("demo_segmentation", "test")
    assert (result["n_cases"], result["n_patients"], result["structures"]) == (3, 2, list(ORGANS))
    assert result["metrics"]["dice_liver, right"]["value"] == pytest.approx((1 + 0.75 + 0.5) / 3)
    assert result["metrics"]["dice"]["value"] == pytest.approx((1 + 0.875 + 0.75) / 3)
    assert result["metrics"]["hd95_mm_liver, right"]["value"] == pytest.approx((0 + 1.5 + 3.0) / 3)
    for entry in result["metrics"].values():
        assert entry["ci95"][0] <= entry["value"] <= entry["ci95"][1]
    assert result["baseline"] is None
    assert result["rules"]["nsd_tolerance_mm"] == 2.0
    assert "diagonal" in result["rules"]["empty_mask"]["one_empty"]
    assert result["empty_masks"]["spleen"] == {"both_empty": 0, "missed": 0, "invented": 0}
    assert result["lesions"]["spleen"]["true_positives"] == 3
    assert result["lesions"]["spleen"]["metrics"]["sensitivity"]["value"] == 1.0


def test_the_numbers_are_those_of_scoring_the_masks_directly():
    cases = add_cases(SegmentedCases(ORGANS))
    scores = [score_case(organs(shift), organs(), ORGANS, oblique_affine(SHAPE)) for shift in (0, 1, 2)]
    result = evaluate_segmentation(cases, bundle="b", split="val", seed=3)
    assert result["metrics"] == summarise(scores, ["p0", "p0", "p1"], seed=3)


def test_predictions_csv_has_a_row_per_case_and_the_refusals(tmp_path):
    cases = add_cases(SegmentedCases(ORGANS))
    cases.add_failure(MedvolError("TRUNCATED", case="bad", found="10 of 20 bytes"))
    write_predictions(tmp_path / "p.csv", cases, "test")
    rows = rows_of(tmp_path / "p.csv")
    assert list(rows[0])[:5] == ["case", "patient", "split", "dice_liver, right", "hd95_mm_liver, right"]
    assert list(rows[0])[-4:] == ["volume_ml_spleen", "true_volume_ml_spleen", "output", "error"]
    assert [row["case"] for row in rows] == ["c0", "c1", "c2", "bad"]
    assert float(rows[1]["dice_liver, right"]) == 0.75
    assert float(rows[1]["true_volume_ml_spleen"]) == pytest.approx(18 * 4.5 / 1000)
    assert (rows[2]["patient"], rows[2]["split"], rows[2]["output"]) == ("p1", "test", "predictions/c2.nii.gz")
    assert rows[3]["error"].startswith("TRUNCATED: case bad")


def test_cases_without_truth_have_volumes_only_and_are_not_evaluated(tmp_path):
    cases = add_cases(SegmentedCases({"liver": 1, "absent": 9}), truth=False)
    write_predictions(tmp_path / "p.csv", cases)
    rows = rows_of(tmp_path / "p.csv")
    assert list(rows[0]) == ["case", "patient", "split", "volume_ml_liver", "volume_ml_absent", "output", "error"]
    assert float(rows[0]["volume_ml_liver"]) == pytest.approx(48 * 4.5 / 1000)
    assert float(rows[0]["volume_ml_absent"]) == 0.0
    with pytest.raises(MedvolError, match="NO_LABEL: case c0"):
        evaluate_segmentation(cases, bundle="b", split="test")


def test_a_run_without_a_case_is_refused():
    with pytest.raises(MedvolError, match="EMPTY_DATASET"):
        evaluate_segmentation(SegmentedCases(ORGANS), bundle="b", split="test")


def test_a_refusal_of_a_case_names_it():
    with pytest.raises(MedvolError, match="SHAPE_MISMATCH: case c9"):
        SegmentedCases(ORGANS).add("c9", "p", None, organs(), organs()[1:], np.eye(4))


def test_tensors_with_a_channel_are_taken_like_arrays():
    affine = oblique_affine(SHAPE)
    cases = SegmentedCases(ORGANS)
    pred = MetaTensor(torch.from_numpy(organs(1))[None].float(), affine=affine)
    row = cases.add("c", "p", torch.rand(2, *SHAPE), pred, torch.from_numpy(organs())[None], pred.affine)
    assert row.scores == score_case(organs(1), organs(), ORGANS, affine)


def test_a_volume_without_geometry_counts_voxels_and_shows_no_letters():
    cases = SegmentedCases(ORGANS)
    cases.add("c", "p", np.random.default_rng(0).random(SHAPE), organs(1), organs(), None)
    assert cases.rows[0].scores["spleen"]["volume_ml"] == pytest.approx(18 / 1000)
    assert evaluate_segmentation(cases, bundle="b", split="test")["rules"]["cases_without_geometry"] == 1
    ((_, shown),) = cases.shown()
    assert [view.letters for view in shown.views] == ["", "", ""]


def test_the_table_of_metrics_is_logged(caplog, tmp_path):
    cases = add_cases(SegmentedCases(ORGANS))
    result = evaluate_segmentation(cases, bundle="demo", split="test")
    lines = metrics_table(result)
    assert lines[0] == "demo on test: 3 cases of 2 patients"
    assert lines[1].split()[:2] == ["metric", "value"]
    assert lines[2].split()[:2] == ["dice", "0.875"]
    with caplog.at_level(logging.INFO, logger="medvol.report.segmentation"):
        write_evaluation(tmp_path, cases, bundle="demo", split="test")
    assert lines[2] in caplog.messages


def test_best_median_and_worst_are_shown_and_few_slices_are_kept(monkeypatch):
    monkeypatch.setattr(segmented_cases, "CASES_KEPT", 5)
    cases = SegmentedCases({"all": 1})
    truth = np.zeros((40, 4, 4), dtype=np.uint8)
    truth[:30] = 1
    sizes = np.random.default_rng(0).permutation(np.arange(1, 30))
    for size in sizes:
        pred = np.zeros_like(truth)
        pred[:size] = 1
        cases.add(f"size {size}", "p", truth.astype(float), pred, truth, np.eye(4))
    assert len(cases._views) == 5
    shown = {heading.split(":")[0]: views.case for heading, views in cases.shown()}
    assert shown["best"] == "size 29"
    assert shown["worst"] == "size 1"
    assert abs(int(shown["median"].split()[1]) - 15) <= 2


@pytest.mark.parametrize(("count", "words"), [(1, ["case"]), (2, ["best", "worst"]), (3, ["best", "median", "worst"])])
def test_few_cases_are_shown_once_each(count, words):
    cases = add_cases(SegmentedCases(ORGANS), range(count))
    assert [heading.split(":")[0] for heading, _ in cases.shown()] == words


def test_volumes_are_forgotten_once_a_case_is_added():
    cases = SegmentedCases(ORGANS)
    image, pred, truth = np.random.default_rng(0).random(SHAPE), organs(1), organs()
    cases.add("c", "p", image, pred, truth, np.eye(4))
    references = [weakref.ref(array) for array in (image, pred, truth)]
    del image, pred, truth
    gc.collect()
    assert [reference() for reference in references] == [None, None, None]


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("flips", list(product((1, -1), repeat=3)))
def test_every_orientation_of_the_file_gives_the_same_views(order, flips):
    phantom = body()
    image, labels, affine = phantom.image.array, phantom.mask.array, phantom.mask.affine
    expected = cut_views("c", image, labels, labels, affine, STRUCTURES)
    orientation = np.array([[axis, flip] for axis, flip in zip(order, flips, strict=True)])
    turned = [apply_orientation(array, orientation) for array in (image, labels)]
    moved = affine @ inv_ornt_aff(orientation, labels.shape)
    found = cut_views("c", turned[0], turned[1], turned[1], moved, STRUCTURES)
    assert found.window == pytest.approx(expected.window)
    for view, reference in zip(found.views, expected.views, strict=True):
        np.testing.assert_array_equal(view.truth, reference.truth)
        np.testing.assert_array_equal(view.grey, reference.grey)
        assert (view.row_mm, view.column_mm) == pytest.approx((reference.row_mm, reference.column_mm))


def test_the_liver_is_shown_at_the_edge_marked_right_and_the_spine_at_the_one_marked_posterior():
    phantom = body()  # in RAS+, liver at positive x: the patient's right is not the array's first column
    views = cut_views("c", phantom.image.array, phantom.mask.array, phantom.mask.array, phantom.mask.affine, STRUCTURES)
    axial, coronal, sagittal = views.views
    assert (axial.letters, coronal.letters, sagittal.letters) == ("RLAP", "RLSI", "APSI")
    rows, columns = np.nonzero(axial.truth == STRUCTURES["liver"])
    assert columns.mean() < axial.truth.shape[1] / 2
    spine = np.nonzero(axial.truth == STRUCTURES["spine"])[0].mean()
    assert spine > rows.mean()
    heart = np.nonzero(coronal.truth == STRUCTURES["heart"])[0].mean()
    assert heart < np.nonzero(coronal.truth == STRUCTURES["liver"])[0].mean()
    assert (axial.row_mm, axial.column_mm) == pytest.approx((60 / 33, 60 / 34))
    assert sagittal.row_mm == pytest.approx(60 / 20)


def test_the_slices_pass_through_the_largest_true_structure_and_are_cropped_to_a_margin():
    shape = (60, 50, 40)
    truth, pred = np.zeros(shape, dtype=np.uint8), np.zeros(shape, dtype=np.uint8)
    truth[20:26, 20:26, 20:26], truth[30:33, 20:22, 20:22] = 1, 2
    pred[20:40, 20:24, 20:24] = 2
    views = cut_views("c", np.zeros(shape), pred, truth, affine_from((2.0, 2.0, 2.0)), {"a": 1, "b": 2})
    for view in views.views:
        assert (view.truth == 1).sum() == 36
    # 20 voxels and a margin of 12 mm, 6 voxels, to either side; at the edge of the image less.
    assert views.views[0].truth.shape == (6 + 12, 20 + 12)
    nothing = cut_views("c", np.zeros(shape), 0 * pred, 0 * truth, np.eye(4), {"a": 1})
    assert nothing.views[0].grey.shape == (50, 60)


def test_the_window_is_that_of_the_structures_not_of_the_air_around_the_body():
    phantom = body()
    views = cut_views("c", phantom.image.array, phantom.mask.array, phantom.mask.array, phantom.mask.affine, STRUCTURES)
    assert -700 < views.window[0] < 0
    assert 60 <= views.window[1] < 700
    empty = np.full(SHAPE, np.nan)
    assert cut_views("c", empty, organs(), organs(), np.eye(4), ORGANS).window == (0.0, 1.0)


def test_the_pictures_are_readable_images_with_something_on_them(tmp_path):
    phantom = body()
    cases = SegmentedCases(STRUCTURES)
    for shift in range(3):
        pred = np.roll(phantom.mask.array, shift, axis=0)
        cases.add(f"c{shift}", "p", phantom.image.array, pred, phantom.mask.array, phantom.mask.affine)
    files = write_evaluation(tmp_path, cases, bundle="demo", split="test")
    pictures = {file.name: file for file in files if file.suffix == ".png"}
    assert set(pictures) == {"overlays.png", "dice_by_case.png"}
    pixels = np.asarray(Image.open(pictures["overlays.png"]).convert("RGB")).astype(int)
    assert min(pixels.shape[:2]) > 500
    slices = pixels[: int(0.93 * len(pixels))]  # the legend below has colours of its own
    coloured = slices.max(axis=2) - slices.min(axis=2) > 80
    assert 500 < coloured.sum() < 0.2 * coloured.size
    assert np.asarray(Image.open(pictures["dice_by_case.png"]).convert("L")).std() > 5


@pytest.mark.realdata
def test_a_real_case_is_drawn(tmp_path):
    if not HIPPOCAMPUS.is_dir():
        pytest.skip("shared/data/msd_hippocampus is not beside the checkout")
    name = sorted(path.name for path in (HIPPOCAMPUS / "labelsTr").glob("hippocampus*.nii.gz"))[0]
    image, label = (nib.load(HIPPOCAMPUS / folder / name) for folder in ("imagesTr", "labelsTr"))
    truth = np.asarray(label.dataobj).astype(np.uint8)
    cases = SegmentedCases({"anterior": 1, "posterior": 2})
    row = cases.add("h", "h", np.asarray(image.dataobj), np.roll(truth, 1, axis=0), truth, label.affine)
    assert 0.6 < row.scores["anterior"]["dice"] < 0.95
    files = write_evaluation(tmp_path, cases, bundle="demo", split="val")
    assert all(file.stat().st_size > 1000 for file in files if file.suffix == ".png")
