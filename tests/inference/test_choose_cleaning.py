"""Cleaning is chosen where it pays and left where it harms; the scores are those of cleaning for real."""

import weakref

import numpy as np
import pytest

from medvol.inference.choose_cleaning import choose_cleaning, cleaning_table
from medvol.metrics.overlap import dice
from medvol.transforms.components import Cleaning, clean_labels

SHAPE = (24, 16, 12)
VOXEL_ML = 0.5


def truth_of(label=1):
    truth = np.zeros(SHAPE, dtype=np.uint8)
    truth[3:11, 3:11, 3:9] = label  # 384 voxels
    return truth


def study(spoil, patients=6, label=1):
    """Cases whose prediction is the truth, spoilt."""
    for number in range(patients):
        pred = truth_of(label)
        spoil(pred, number)
        yield pred, truth_of(label), VOXEL_ML, f"p{number}"


def speck(pred, number):
    pred[18:21, 3:7, 3 : 6 + number % 2] = 1  # 36 or 48 voxels


def hole(pred, number):
    pred[5:9, 5:9, 5:7] = 0


def rows(tried, structure="organ"):
    return [row for row in tried if row.structure == structure]


def test_a_perfect_prediction_is_left_alone():
    cleanings, tried = choose_cleaning(study(lambda pred, number: None), {"organ": 1})
    assert cleanings == {}
    assert not any(row.chosen for row in tried)
    assert len(cleaning_table(tried)) == 1  # the head


def test_specks_are_removed_by_the_smallest_volume_that_does_it():
    cleanings, tried = choose_cleaning(study(speck), {"organ": 1})
    # The true organ has 192 ml: 19.2 is a tenth, which leaves specks of 24 ml; half of it, 96, removes all.
    assert cleanings == {1: Cleaning(min_volume_ml=96.0)}
    chosen = [row for row in tried if row.chosen]
    assert len(chosen) == 1
    expected = np.mean([2 * 384 / (2 * 384 + size) for size in (36, 48)])
    assert chosen[0].dice_before == pytest.approx(expected)
    assert (chosen[0].dice_after, chosen[0].helped, chosen[0].harmed) == (1.0, 6, 0)
    assert any("at least 96 ml" in line and line.endswith("yes") for line in cleaning_table(tried))


def test_holes_are_filled_where_the_truth_has_none():
    cleanings, _ = choose_cleaning(study(hole), {"organ": 1})
    assert cleanings == {1: Cleaning(fill_holes=True)}


def test_specks_and_holes_together_are_both_cleaned():
    def spoil(pred, number):
        speck(pred, number)
        hole(pred, number)

    cleanings, _ = choose_cleaning(study(spoil), {"organ": 1})
    assert cleanings == {1: Cleaning(min_volume_ml=96.0, fill_holes=True)}


@pytest.mark.parametrize(("patients", "chosen"), [(1, False), (2, False), (3, True)])
def test_a_step_that_helped_fewer_than_three_patients_is_not_taken(patients, chosen):
    cleanings, tried = choose_cleaning(study(speck, patients=patients), {"organ": 1})
    assert max(row.helped for row in tried) == patients
    assert bool(cleanings) == chosen


def two_pieces(number):
    truth = truth_of()
    truth[16:22, 3:9, 3:9] = 1  # a second true piece of 216 voxels
    pred = truth.copy()
    pred[13, 13, 1 : 3 + number % 3] = 1  # and a false one
    return pred, truth, VOXEL_ML, f"p{number}"


def test_the_largest_component_is_not_taken_where_the_truth_has_two():
    cleanings, tried = choose_cleaning((two_pieces(number) for number in range(4)), {"organ": 1}, margin=0.0)
    assert not cleanings[1].keep_largest
    assert cleanings[1].min_volume_ml > 0
    (largest,) = [row for row in tried if row.cleaning == Cleaning(keep_largest=True)]
    assert (largest.harmed, largest.helped, largest.chosen) == (4, 0, False)


def test_a_gain_below_the_margin_is_not_taken():
    def spoil(pred, number):
        pred[20, 13, 1] = 1  # one voxel of 384: 0.0013 of Dice

    assert choose_cleaning(study(spoil), {"organ": 1}, margin=0.002)[0] == {}
    assert choose_cleaning(study(spoil), {"organ": 1}, margin=0.001)[0] == {1: Cleaning(min_volume_ml=19.2)}


def test_a_step_that_helps_one_patient_much_and_harms_more_of_them_is_not_taken():
    def spoil(pred, number):
        if number == 0:
            pred[14:22, 3:11, 3:8] = 1  # 320 voxels: this patient gains a lot
        else:
            pred[9] = 0  # the others lose the slice behind the gap
            pred[3] = 0

    cleanings, tried = choose_cleaning(study(spoil, patients=4), {"organ": 1})
    (largest,) = [row for row in tried if row.cleaning == Cleaning(keep_largest=True)]
    assert (largest.helped, largest.harmed) == (1, 3)
    assert largest.dice_before == pytest.approx((2 * 384 / 1088 + 3 * 2 * 288 / 672) / 4)
    assert largest.dice_after == pytest.approx((1 + 3 * 2 * 240 / 624) / 4)
    assert largest.dice_after > largest.dice_before + 0.005
    assert not cleanings.get(1, Cleaning()).keep_largest


def test_many_cases_of_one_patient_count_as_one_patient():
    cases = [(pred, truth, voxel_ml, "same") for pred, truth, voxel_ml, _ in study(speck)]
    _, tried = choose_cleaning(cases, {"organ": 1})
    assert max(row.helped for row in tried) == 1


def test_every_score_is_that_of_cleaning_the_masks_for_real():
    rng = np.random.default_rng(0)
    cases = []
    for number in range(4):
        truth = truth_of()
        truth[18:20, 3 + number : 6 + number, 3:6] = 1
        pred = np.where(rng.random(SHAPE) < 0.06, rng.integers(0, 3, SHAPE), truth).astype(np.uint8)
        pred[5:8, 5:8, 5:8] = 0
        cases.append((pred, truth, VOXEL_ML, f"p{number // 2}"))
    _, tried = choose_cleaning(cases, {"organ": 1, "other": 2})
    assert {row.structure for row in tried} == {"organ", "other"}
    assert any(row.cleaning.fill_holes for row in tried)
    for row in tried:
        label = {"organ": 1, "other": 2}[row.structure]
        cleaned = [clean_labels(pred, {label: row.cleaning}, VOXEL_ML) == label for pred, *_ in cases]
        expected = np.mean([dice(mask, truth == label) for mask, (_, truth, *_) in zip(cleaned, cases, strict=True)])
        assert row.dice_after == pytest.approx(expected, abs=1e-12), row


def test_each_structure_is_judged_by_itself_also_when_it_is_absent():
    def spoil(pred, number):
        speck(pred, number)
        pred[3:11, 13:15, 3:9] = 2

    cases = []
    for pred, truth, voxel_ml, patient in study(spoil):
        truth[3:11, 13:15, 3:9] = 2
        cases.append((pred, truth, voxel_ml, patient))
    cleanings, tried = choose_cleaning(cases, {"organ": 1, "good": 2, "absent": 3})
    assert set(cleanings) == {1}
    assert all(row.dice_before == 1.0 for row in rows(tried, "good") + rows(tried, "absent"))


def test_a_false_structure_may_vanish_altogether():
    def cases():
        for number in range(4):
            pred, truth = truth_of(), truth_of()
            if number:
                truth[:] = 0
                pred[:] = 0
                pred[1:3, 1:4, 1:4] = 1  # 18 voxels where there is nothing
            yield pred, truth, VOXEL_ML, f"p{number}"

    cleanings, tried = choose_cleaning(cases(), {"organ": 1})
    assert cleanings == {1: Cleaning(min_volume_ml=19.2)}
    assert max(row.dice_after for row in tried) == 1.0


def test_cases_are_taken_one_by_one_and_not_kept():
    alive = []

    def cases():
        for pred, truth, voxel_ml, patient in study(speck):
            assert not any(reference() is not None for reference in alive[:-1])
            alive.append(weakref.ref(pred))
            yield pred, truth, voxel_ml, patient
            del pred, truth

    choose_cleaning(cases(), {"organ": 1})
    assert len(alive) == 6


def test_no_cases_give_no_cleaning():
    assert choose_cleaning([], {"organ": 1}) == ({}, [])


def test_a_tried_step_is_a_flat_row():
    _, tried = choose_cleaning(study(speck), {"organ": 1})
    assert set(tried[0].as_dict()) == {
        "structure", "dice_before", "dice_after", "helped", "harmed", "chosen",
        "keep_largest", "min_volume_ml", "fill_holes",
    }  # fmt: skip
