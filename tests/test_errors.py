"""The error type: one line, the whole finding, and it survives a worker process."""

import errno
import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medvol.errors import MedvolError, find_refusal, nearest, require_choices


def example():
    return MedvolError(
        "TRUNCATED",
        case="p1",
        file="a/b.nii.gz",
        found="10 of 20 bytes",
        expected="20",
        fix="copy it again",
        details=["x"],
    )


def test_the_message_names_code_case_file_finding_expectation_and_fix():
    assert str(example()) == "TRUNCATED: case p1, a/b.nii.gz: 10 of 20 bytes; expected 20; copy it again"


def test_it_survives_pickling_with_all_its_attributes():
    copy = pickle.loads(pickle.dumps(example()))
    assert copy.as_dict() == example().as_dict()
    assert copy.details == ("x",)


def test_naming_the_case_keeps_a_name_that_is_already_there():
    assert example().for_case("p2").case == "p1"
    assert MedvolError("X", found="y").for_case("p2").case == "p2"


@given(st.text(st.characters(codec="ascii", exclude_categories=["C"]), min_size=61, max_size=400))
def test_a_long_path_is_shortened_before_the_fix_is_lost(path):
    error = MedvolError("X", file=path, found="f" * 150, fix="do this")
    assert str(error).endswith("do this")
    assert len(str(error)) <= 300


def test_the_nearest_name_is_offered_only_when_it_is_near():
    assert nearest("max_epoch", ["max_epochs", "seed"]) == "did you mean 'max_epochs'?"
    assert nearest("zzz", ["max_epochs", "seed"]) == ""


def test_a_full_disk_is_a_refusal_whatever_library_met_it():
    try:
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.csv")
        except OSError as error:
            raise RuntimeError("as a library wraps it") from error
    except RuntimeError as wrapped:
        refusal = find_refusal(wrapped)
    assert str(refusal) == "DISK_FULL: a.csv: no space left to write it; free space, or name another folder"
    assert find_refusal(OSError(errno.EACCES, "Permission denied")) is None


def test_a_refusal_comes_before_the_full_disk_that_it_was_made_from():
    refusal = MedvolError("CANNOT_WRITE", found="no room")
    refusal.__cause__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert find_refusal(refusal) is refusal


def test_a_single_choice_of_several_may_be_a_plain_word():
    assert require_choices("colour", "red", ["red", "blue"]) == ("red",)
    assert require_choices("colour", ["red", "blue"], ["red", "blue"]) == ("red", "blue")
    with pytest.raises(MedvolError, match=r"UNKNOWN_OPTION: colour 'bluee'; .*did you mean 'blue'?"):
        require_choices("colour", "bluee", ["red", "blue"])
