"""Texts that come out of MONAI's configurations as they went in."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from monai.bundle import ConfigParser

from medvol.bundle.config_text import config_literal, config_text

pytestmark = pytest.mark.filterwarnings("ignore:.*eval.*:UserWarning")  # MONAI warns of expressions in any config

TEXTS = st.text(st.sampled_from("#$@%:'\"\\aimport _x/\n.") | st.characters(exclude_categories=["Cs"]), max_size=12)


@example("#1 import os")
@given(TEXTS)
def test_a_text_stays_what_it_is(text):
    assert ConfigParser({"path": config_text(text)}).get_parsed_content("path") == text


@example("import os")
@given(TEXTS)
def test_a_literal_stays_what_it_is_beside_a_reference(text):
    config = {"root": "r", "path": f"$@root + {config_literal(text)}"}
    assert ConfigParser(config).get_parsed_content("path") == "r" + text


@pytest.mark.parametrize("text", ["study", "a b", "C:\\x", "me@home", "50%"])
def test_usual_texts_are_not_touched(text):
    assert config_text(text) == text
