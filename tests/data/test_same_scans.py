"""The same scan under two names."""

import numpy as np
import pytest

from medvol.data.same_scans import same_scans, scan_of
from medvol.data.study import Case

SHAPE = (7, 8, 9)


def scans(*names):
    """Scans of `split/name/number`: equal numbers, equal voxels."""
    for text in names:
        split, name, number = text.split("/")
        voxels = np.random.default_rng(int(number)).random(SHAPE)
        reference = f"/data/{name}"
        yield scan_of(Case(name.partition(".")[0], name, (reference,), split=split or None), reference, voxels)


def test_a_file_in_two_splits_is_refused_with_both_cases_and_the_number_of_pairs():
    # 1 is in train twice and in test once, which are two pairs across; 2 in val and test, one pair.
    (leak,), told = same_scans(
        scans("train/a.nii/1", "train/b.nii/1", "test/c.nii/1", "val/d.nii/2", "test/e.nii/2", "train/f.nii/3")
    )
    assert (leak.code, leak.case, leak.file, told) == ("LEAK", "c", "/data/c.nii", [])
    assert leak.found == "here in test, the same scan as case a of train (a.nii); 3 such pairs"
    assert leak.details == (
        "case a of train (a.nii) and case c of test (c.nii)",
        "case d of val (d.nii) and case e of test (e.nii)",
    )
    assert len(str(leak)) <= 300


def test_rows_in_two_splits_are_told():
    refused, (leak,) = same_scans(scans("train/a.npz#x[0]/1", "test/b.npz#x[1]/1"))
    assert (refused, leak.code) == ([], "LEAK")
    assert "1 such pair" in leak.found


@pytest.mark.parametrize("split", ["train", ""])
def test_a_scan_twice_on_one_side_is_told(split):
    refused, (twice,) = same_scans(scans(f"{split}/a.nii/1", f"{split}/b.nii/1", f"{split}/c.nii/1"))
    assert (refused, twice.code, twice.case) == ([], "SAME_SCAN", "b")
    assert "3 such pairs" in twice.found


def test_one_reference_in_two_cases_is_left_to_the_table():
    (scan,) = scans("train/a.nii/1")
    other = scan_of(Case("b", "b", split="test"), scan.reference, np.random.default_rng(1).random(SHAPE))
    assert scan.content == other.content
    assert same_scans([scan, other]) == ([], [])


def test_voxels_without_contrast_are_no_scan():
    assert scan_of(Case("a", "a"), "a.nii", np.full(SHAPE, 7)) is None


def test_shape_type_and_voxels_decide_and_their_order_in_memory_does_not():
    voxels = np.arange(6, dtype=np.int16).reshape(1, 2, 3)

    def content(array):
        return scan_of(Case("a", "a"), "a.nii", array).content

    assert content(np.asfortranarray(voxels)) == content(voxels)
    assert len({content(one) for one in (voxels, voxels.reshape(1, 3, 2), voxels.view(np.uint16), voxels + 1)}) == 4
