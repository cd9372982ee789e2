"""Sizes rounded up to what a network's patches divide."""

from medvol.data.facts import Facts
from medvol.data.multiples import in_multiples

FACTS = Facts(
    classes=("a", "b"),
    channels=("image",),
    spatial_size=(7, 8, 9),
    spacing_mm=(1.0, 1.5, 3.0),
    intensity="mr",
    limits=None,
    has_geometry=True,
    laterality_matters=True,
)


def test_every_axis_is_rounded_up_and_nothing_else_changes():
    rounded = in_multiples(FACTS, 4)
    assert rounded.spatial_size == (8, 8, 12)
    assert {**rounded.as_dict(), "spatial_size": [7, 8, 9]} == FACTS.as_dict()


def test_a_size_that_fits_is_left_and_not_talked_about(caplog):
    caplog.set_level("INFO")
    assert in_multiples(FACTS, 1) == FACTS
    assert not caplog.records
    in_multiples(FACTS, 2)
    assert "7 x 8 x 9 rounded up to 8 x 8 x 10" in caplog.text
