"""Which mask value is which structure, and which of them mirror each other."""

from dataclasses import replace

import pytest

from medvol.data.structures import find_mirror_pairs, name_structures, require_declared
from medvol.data.study import Case, Study
from medvol.errors import MedvolError


@pytest.mark.parametrize(
    ("found", "declared", "structures", "values", "names"),
    [
        ([0, 1, 2], (), (), (0, 1, 2), ("background", "label_1", "label_2")),
        ([0, 255], (), (), (0, 255), ("background", "label_255")),
        ([1, 2], (), (), (0, 1, 2), ("background", "label_1", "label_2")),
        # The source's index is the mask value; what no mask shows stays a class, what it does not name is numbered.
        ([0, 2], ("Background", "a", "b"), (), (0, 1, 2), ("background", "a", "b")),
        ([0, 2, 5], ("x", "a", "b", "c"), (), (0, 1, 2, 3, 5), ("background", "a", "b", "c", "label_5")),
        ([0, 255], ("background", "liver"), (), (0, 255), ("background", "liver")),
        ([0, 3, 9], (), ["liver", "tumour"], (0, 3, 9), ("background", "liver", "tumour")),
        ([0, 3, 9], (), {"9": "tumour"}, (0, 3, 9), ("background", "label_3", "tumour")),
        ([0, 1], ("background", "a"), {1: "liver"}, (0, 1), ("background", "liver")),
    ],
)
def test_values_get_their_names(found, declared, structures, values, names):
    assert name_structures(found, declared, structures) == (values, names)


@pytest.mark.parametrize(
    ("structures", "message"),
    [
        (["liver"], "BAD_VALUE: 1 structures for 2 values.*names for 1, 2"),
        ({"liver": 1}, "BAD_VALUE.*mask values"),
        ({-1: "liver"}, "BAD_VALUE.*mask values"),
        (["liver", "liver"], "BAD_VALUE: the structure 'liver' for the mask values 1, 2"),
        (["background", "liver"], "BAD_VALUE.*'background' is value 0"),
    ],
)
def test_names_that_do_not_fit_are_refused(structures, message):
    with pytest.raises(MedvolError, match=message):
        name_structures([0, 1, 2], (), structures)


def test_names_given_by_value_stay_with_their_value():
    names, values = ("background", "liver", "tumour"), (0, 1, 2)
    assert name_structures([0, 1, 2], names, mask_values=values) == (values, names)
    # In order, 3 would be the tumour; and the gap of {0, 1, 4} is no class.
    assert name_structures([0, 1, 3], names, mask_values=values)[1] == (*names, "label_3")
    assert name_structures([0, 1], names, mask_values=(0, 1, 4)) == ((0, 1, 4), names)
    # Who names all that the masks hold needs no more of the source.
    assert name_structures([0, 1, 3], names, ["a", "tumour"], mask_values=values) == (
        (0, 1, 3),
        ("background", "a", "tumour"),
    )


def test_a_mask_value_that_the_source_does_not_declare_is_refused():
    cases = tuple(Case(name, name, ("i.nii",), f"/d/{name}_mask.nii") for name in "ab")
    study = Study(cases, "segmentation", ("background", "liver", "tumour"), source="/d/dataset.json")
    found = {0: "a", 1: "a", 3: "b"}
    require_declared(found, study)  # names in order declare no values
    study = replace(study, mask_values=(0, 1, 2))
    with pytest.raises(
        MedvolError, match=r"UNKNOWN_LABEL: case b, /d/b_mask.nii: the mask value 3; expected 0 background, "
    ):
        require_declared(found, study)
    require_declared({0: "a", 2: "a"}, study)
    require_declared(found, study, {3: "vessel"})
    require_declared(found, study, ["liver", "vessel"])


def test_a_name_for_two_values_is_refused_with_the_file_and_both():
    with pytest.raises(MedvolError, match=r"BAD_VALUE: d.json: the structure 'a' for the mask values 1, 2"):
        name_structures([0, 1], ("background", "a", "a"), mask_values=(0, 1, 2), file="d.json")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("kidney_left", "kidney_right"),
        ("Left-Hippocampus", "Right-Hippocampus"),
        ("lung_upper_lobe_left", "lung_upper_lobe_right"),
        ("ctx-lh-insula", "ctx-rh-insula"),
        ("left kidney", "right kidney"),
        ("rib_left_1", "rib_right_1"),
    ],
)
def test_left_and_right_of_one_structure_are_a_pair(first, second):
    assert find_mirror_pairs(["background", first, "liver", second]) == ((1, 3),)
    assert find_mirror_pairs(["background", second, "liver", first]) == ((1, 3),)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("kidney_left", "adrenal_gland_right"),
        ("rib_left_1", "rib_right_2"),
        ("leftover", "rightover"),
        ("l_kidney", "r_kidney"),
        ("kidney_left", "kidney"),
    ],
)
def test_other_names_are_not_guessed_to_be_a_pair(first, second):
    assert find_mirror_pairs(["background", first, second]) == ()
