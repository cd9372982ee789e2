"""Values of options are of the kind that the bundle's own are, refused before anything is read."""

import json

import pytest

from medvol.bundle.option_values import require_no_hash, require_values
from medvol.bundle.short import shipped_bundles
from medvol.errors import MedvolError

DEFINED = [
    {"max_epochs": 60, "width": 16, "learning_rate": 0.003, "resume": False, "cache_ram_gb": 4, "spatial_size": "auto"},
    {"model_dir": "$@output_dir + '/models'", "label_column": "label", "mirror": "$@record.mirror"},
    {"warmup_fraction": 0.25, "device": "$torch.device('cpu')"},
    {"max_epochs": "@more", "more": 5},
]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("max_epochs", "ten", r"--max_epochs ten.*a whole number from 1 on"),
        ("max_epochs", 0, r"--max_epochs 0.*a whole number from 1 on"),
        ("max_epochs", 1.5, r"--max_epochs 1.5.*a whole number from 1 on"),
        ("max_epochs", float("inf"), r"--max_epochs inf.*a whole number"),
        ("max_epochs", True, r"--max_epochs True.*a whole number"),
        ("max_epochs", [1, 2], r"--max_epochs \[1, 2\].*a whole number from 1 on;"),
        ("width", [16, 0], r"--width \[16, 0\].*a whole number from 1 on, or a list of them; such as --width 16"),
        ("width", [], r"--width \[\].*or a list of them"),
        ("learning_rate", "abc", r"--learning_rate abc.*not negative.*such as --learning_rate 0.003"),
        ("learning_rate", -1, r"--learning_rate -1.*not negative"),
        ("learning_rate", [0.1], r"--learning_rate \[0.1\].*not negative"),
        ("cache_ram_gb", "much", r"--cache_ram_gb much.*a number.*such as --cache_ram_gb 4"),
        ("cache_ram_gb", -5, r"--cache_ram_gb -5.*not negative"),
        ("warmup_fraction", 2, r"--warmup_fraction 2.*from 0 to below 1"),
        ("device", "foo", r"--device foo; expected cpu.*leave it out"),
        ("device", "cuda:99", r"--device cuda:99; expected cpu.*leave it out"),
        ("model_dir", True, r"--model_dir without a value; expected a path; write what it is behind --model_dir"),
        ("label_column", True, r"--label_column without a value; expected a text"),
        ("spatial_size", False, r"--spatial_size without a value"),
        ("resume", "maybe", r"--resume maybe.*True or False"),
        ("resume", 2, r"--resume 2.*True or False"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_an_example(name, value, words):
    with pytest.raises(MedvolError, match=f"BAD_VALUE: {words}"):
        require_values({name: value}, DEFINED)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_epochs", 1),
        ("width", [16, 32]),
        ("mirror", True),
        ("max_epochs", "auto"),
        ("max_epochs", "$20 * 2"),
        ("max_epochs", "@more"),
        ("learning_rate", 1),
        ("learning_rate", 0.0),  # as of a model that is only carried over
        ("cache_ram_gb", 0.5),
        ("cache_ram_gb", None),
        ("resume", 1),
        ("resume", True),
        ("spatial_size", [64, 64, 64]),
        ("run_name", "x"),
        ("warmup_fraction", 0),
        ("device", "cpu"),
        ("device", "$torch.device('cuda')"),
    ],
)
def test_other_numbers_expressions_and_what_has_no_kind_are_taken(name, value):
    require_values({name: value}, DEFINED)


def test_every_shipped_configuration_satisfies_the_rules():
    for folder in shipped_bundles():
        files = [file for file in (folder / "configs").glob("*.json") if file.name != "metadata.json"]
        configs = [json.loads(file.read_text()) for file in files]
        assert len(configs) > 2
        for config in configs:
            require_values(config, configs)


@pytest.mark.parametrize("words", [["--output_dir", "res #2"], ["--model_dir=a#b"], ["--x", "1", "--bundle_root", "#"]])
def test_a_path_that_monai_would_change_is_refused(words):
    with pytest.raises(MedvolError, match=r"BAD_VALUE: --\w+ .*'#'.*medvol train"):
        require_no_hash(["run", *words])


def test_other_words_may_hold_a_hash():
    require_no_hash(["run", "--optimizer#lr", "0.1", "--output_dir", "o", "--note", "#1", "--model_dir"])
