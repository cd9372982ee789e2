"""Intervals in the log are numbers, or said not to exist."""

import math

from medvol.report.log_words import interval_text


def test_an_interval_is_two_numbers_with_signs_where_asked():
    assert interval_text((0.1, 0.25)) == "0.100 to 0.250"
    assert interval_text((-0.1, 0.25), signed=True) == "-0.100 to +0.250"


def test_an_interval_that_does_not_exist_is_not_printed_as_nan():
    assert interval_text((math.nan, math.nan)) == "undefined"
