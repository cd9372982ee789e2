"""Scores of a case and of a study: by hand, against one structure at a time, against means of the rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medvol.errors import MedvolError
from medvol.metrics.masks import diagonal_mm
from medvol.metrics.overlap import dice, iou, volume_ml
from medvol.metrics.segmentation import empty_counts, mean_of_structures, score_case, summarise
from medvol.metrics.surface import hd95_mm, nsd
from medvol.phantoms.body import STRUCTURES, body
from medvol.phantoms.grid import oblique_affine

SHAPE = (7, 8, 9)
SPACING = (1.0, 1.5, 3.0)


def labels(seed, highest=4, dtype=np.uint8):
    return np.random.default_rng(seed).integers(0, highest + 1, SHAPE).astype(dtype)


def case(dice_value, **structures):
    names = structures or {"liver": 1.0}
    score = {"dice": dice_value, "iou": dice_value / (2 - dice_value), "hd95_mm": 3.0, "nsd": 0.5}
    return {name: {**score, "volume_ml": 1.0, "true_volume_ml": volume} for name, volume in names.items()}


def test_a_box_moved_by_one_voxel_has_the_scores_one_can_count():
    truth, pred = np.zeros(SHAPE, dtype=np.uint8), np.zeros(SHAPE, dtype=np.uint8)
    truth[1:3, 2:4, 2:6] = 7
    pred[1:3, 2:4, 3:7] = 7
    score = score_case(pred, truth, {"box": 7}, SPACING, nsd_tolerance_mm=2.0)["box"]
    assert score["dice"] == 0.75
    assert score["iou"] == pytest.approx(0.6)
    assert score["hd95_mm"] == pytest.approx(3.0)  # a quarter of the surface is one slice of 3 mm away
    assert score["nsd"] == 0.75
    assert score["volume_ml"] == score["true_volume_ml"] == pytest.approx(16 * 4.5 / 1000)
    assert score["volume_difference_ml"] == 0.0


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["uint8", "int16", "float32"]))
def test_all_structures_at_once_equal_one_after_the_other(seed, dtype):
    pred, truth = labels(seed, dtype=dtype), labels(seed + 1, dtype=dtype)
    pred[:, :3], truth[:, :2] = 0, 0
    affine = oblique_affine(SHAPE)
    scores = score_case(pred, truth, {"c": 3, "a": 1, "absent": 9}, affine, nsd_tolerance_mm=1.5)
    assert list(scores) == ["c", "a", "absent"]
    for name, label in {"c": 3, "a": 1, "absent": 9}.items():
        masks = pred == label, truth == label
        assert scores[name]["dice"] == dice(*masks)
        assert scores[name]["iou"] == iou(*masks)
        assert scores[name]["hd95_mm"] == pytest.approx(hd95_mm(*masks, affine))
        assert scores[name]["nsd"] == nsd(*masks, affine, tolerance_mm=1.5)
        assert scores[name]["volume_ml"] == pytest.approx(volume_ml(masks[0], affine))
        difference = volume_ml(masks[0], affine) - volume_ml(masks[1], affine)
        assert scores[name]["volume_difference_ml"] == pytest.approx(difference)


def test_the_phantom_body_against_itself_is_perfect_and_has_its_known_volumes():
    phantom = body()
    scores = score_case(phantom.mask.array, phantom.mask.array, STRUCTURES, phantom.mask.affine)
    for name, score in scores.items():
        assert (score["dice"], score["iou"], score["hd95_mm"], score["nsd"]) == (1.0, 1.0, 0.0, 1.0)
        assert score["volume_ml"] == pytest.approx(phantom.answer["volume_ml"][name], rel=0.1)


def test_empty_masks_follow_the_written_rule_and_are_counted():
    truth, pred = np.zeros(SHAPE, dtype=np.uint8), np.zeros(SHAPE, dtype=np.uint8)
    truth[1, 1, 1], pred[2, 2, 2] = 1, 2
    scores = score_case(pred, truth, {"missed": 1, "invented": 2, "absent": 3}, SPACING)
    worst = diagonal_mm(SHAPE, SPACING)
    for name in ("missed", "invented"):
        assert [scores[name][key] for key in ("dice", "iou", "nsd", "hd95_mm")] == [0.0, 0.0, 0.0, worst]
    assert [scores["absent"][key] for key in ("dice", "iou", "nsd", "hd95_mm")] == [1.0, 1.0, 1.0, 0.0]
    counts = empty_counts([scores, scores])
    assert counts["missed"] == {"both_empty": 0, "missed": 2, "invented": 0}
    assert counts["invented"] == {"both_empty": 0, "missed": 0, "invented": 2}
    assert counts["absent"] == {"both_empty": 2, "missed": 0, "invented": 0}
    empty = score_case(0 * pred, 0 * truth, {"absent": 3}, SPACING)
    assert empty["absent"]["dice"] == 1.0


def test_the_summary_has_means_over_cases_and_structures_with_intervals_by_patient():
    scores = [case(0.8, liver=1.0, spleen=1.0), case(0.6, liver=1.0, spleen=1.0), case(0.1, liver=1.0, spleen=1.0)]
    scores[0]["spleen"]["dice"] = 0.4
    result = summarise(scores, ["p1", "p1", "p2"], resamples=200)
    assert list(result)[:4] == ["dice", "hd95_mm", "nsd", "iou"]
    assert set(result) >= {"dice_liver", "hd95_mm_liver", "nsd_liver", "dice_spleen", "hd95_mm_spleen", "nsd_spleen"}
    assert result["dice_liver"]["value"] == pytest.approx(0.5)
    assert result["dice"]["value"] == pytest.approx((0.6 + 0.6 + 0.1) / 3)
    assert mean_of_structures(scores[0], "dice") == pytest.approx(0.6)
    # Patients, not cases: a resample is of p1 twice, of p2 twice, or of both.
    assert result["dice"]["ci95"] == pytest.approx([0.1, 0.6])
    assert result["hd95_mm"] == {"value": 3.0, "ci95": [3.0, 3.0], "undefined_resamples": 0}


@pytest.mark.parametrize("structures", [{}, {"a": 0}, {"a": 1, "b": 1}, {"a": -1}])
def test_labels_that_are_no_structures_are_refused(structures):
    with pytest.raises(MedvolError, match="BAD_ARGUMENT"):
        score_case(labels(0), labels(1), structures, SPACING)


def test_a_summary_of_nothing_is_refused():
    with pytest.raises(MedvolError, match="EMPTY_DATASET"):
        summarise([], [])
