"""Options of a run: a mistyped one is an error that names the nearest valid one."""

import copy
import sys

import pytest
from monai.bundle import ConfigParser

from medvol.bundle.session import begin, check_options
from medvol.errors import MedvolError, find_refusal

DEFINED = [
    {"max_epochs": 3, "seed": 0, "train": {"trainer": {"_target_": "builtins.dict", "max_epochs": "@max_epochs"}}},
    {"optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.1}, "validate#evaluator#network": "@network"},
]


def with_overrides(**changes):
    # A copy: the parser changes nested blocks in place.
    parser = ConfigParser(
        {key: value for one in copy.deepcopy(DEFINED) for key, value in one.items() if "#" not in key}
    )
    parser.update({key.replace("__", "#"): value for key, value in changes.items()})
    return parser.get()


@pytest.mark.parametrize("changes", [{}, {"max_epochs": 1}, {"train__trainer__max_epochs": 2}])
def test_known_options_pass(changes):
    check_options(with_overrides(**changes), DEFINED)


def test_an_argument_that_the_constructor_knows_passes():
    check_options(with_overrides(optimizer__weight_decay=0.1), DEFINED)


def test_a_block_replaced_as_a_whole_is_the_users_own():
    check_options(with_overrides(optimizer={"_target_": "torch.optim.SGD", "momentum": 0.9}), DEFINED)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_epoch": 1}, r"UNKNOWN_OPTION: --max_epoch;.*did you mean '--max_epochs'"),
        ({"train__trainer__max_epoch": 1}, r"--train#trainer#max_epoch;.*'--train#trainer#max_epochs'"),
        ({"optimizer__weight_deca": 1}, r"'--optimizer#weight_decay'"),
        ({"zzz": 1}, r"UNKNOWN_OPTION: --zzz.*see the options"),
    ],
)
def test_a_mistyped_option_is_refused_with_the_nearest(changes, message):
    with pytest.raises(MedvolError, match=message):
        check_options(with_overrides(**changes), DEFINED)


@pytest.mark.parametrize(("given", "fix"), [("false", "--seed False"), ("null", "--seed None")])
def test_a_word_that_would_arrive_as_a_text_is_refused_with_the_right_one(given, fix):
    with pytest.raises(MedvolError, match=f"BAD_VALUE.*write {fix}"):
        check_options(with_overrides(seed=given), DEFINED)


def test_the_running_configuration_is_found_from_within_an_expression(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "train.json").write_text('{"bundle_root": ".", "output_dir": "o", "session": {}}')
    session = {"_target_": "medvol.bundle.session.begin", "bundle_root": "@bundle_root", "output_dir": "@output_dir"}
    base = {"bundle_root": str(tmp_path), "output_dir": str(tmp_path / "out"), "session": session}
    parsed = ConfigParser(base).get_parsed_content("session")
    assert parsed.bundle == tmp_path.name
    assert parsed.config == base
    assert (tmp_path / "out").is_dir()
    with pytest.raises(RuntimeError) as wrapped:
        ConfigParser({**base, "output_dri": "x"}).get_parsed_content("session")
    assert "'--output_dir'" in str(find_refusal(wrapped.value))


def test_a_folder_that_is_no_bundle_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    with pytest.raises(MedvolError, match="NO_BUNDLE"):
        begin(tmp_path, tmp_path)


def test_other_errors_are_left_to_python():
    assert find_refusal(ValueError("x")) is None
    with pytest.raises(RuntimeError) as wrapped:
        raise RuntimeError("wrapped") from MedvolError("CODE", found="x")
    assert find_refusal(wrapped.value).code == "CODE"
