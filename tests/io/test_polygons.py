import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path

from medvol.io.polygons import fill_even_odd

CORNERS = st.lists(st.tuples(st.floats(-3, 12), st.floats(-3, 12)), min_size=3, max_size=9)


def box(low, high):
    return np.array([(low[0], low[1]), (high[0], low[1]), (high[0], high[1]), (low[0], high[1])], dtype=float)


def test_a_box_between_centres_holds_the_centres_inside():
    mask = fill_even_odd([box((0.5, 1.5), (3.5, 4.5))], (7, 8))
    assert np.argwhere(mask).tolist() == [[x, y] for x in (1, 2, 3) for y in (2, 3, 4)]


def test_boxes_that_share_an_edge_through_centres_neither_overlap_nor_leave_a_gap():
    left = fill_even_odd([box((1, 1), (3, 5))], (7, 8))
    right = fill_even_odd([box((3, 1), (6, 5))], (7, 8))
    assert not (left & right).any()
    np.testing.assert_array_equal(left | right, fill_even_odd([box((1, 1), (6, 5))], (7, 8)))


def test_a_keyhole_is_the_same_hole_as_a_contour_of_its_own():
    outer, inner = box((0.5, 0.5), (7.5, 7.5)), box((2.5, 2.5), (4.5, 4.5))
    # From a corner obliquely to the hole, around it the other way, and back on the same line.
    keyhole = np.concatenate([outer, outer[:1], inner[:1], inner[::-1]])
    two = fill_even_odd([outer, inner], (9, 9))
    assert two.sum() == 49 - 4
    np.testing.assert_array_equal(fill_even_odd([keyhole], (9, 9)), two)


def test_what_lies_beyond_the_grid_is_cut_off():
    assert fill_even_odd([box((-5, -5), (2.5, 20))], (7, 8)).sum() == 3 * 8
    assert not fill_even_odd([box((-5, -5), (-1, 20)), box((9, 0), (12, 3))], (7, 8)).any()
    assert not fill_even_odd([], (7, 8)).any()


@given(CORNERS)
def test_a_polygon_without_self_intersections_agrees_with_matplotlib(corners):
    middle = np.mean(corners, axis=0)
    points = np.unique(np.array(corners) + 1e-3, axis=0)  # centres on an outline are a matter of convention
    angle = np.arctan2(*(points - middle).T)
    star = points[np.argsort(angle)]
    centres = np.argwhere(np.ones((8, 9), dtype=bool))
    inside = Path(np.concatenate([star, star[:1]]), closed=True).contains_points(centres).reshape(8, 9)
    # Within a thousandth of the outline neither is asked.
    near = [Path(np.concatenate([star + shift, star[:1] + shift]), closed=True).contains_points(centres)
            for shift in ((2e-3, 0), (-2e-3, 0), (0, 2e-3), (0, -2e-3))]  # fmt: skip
    certain = (np.ptp(np.array([*near, inside.ravel()]).astype(int), axis=0) == 0).reshape(8, 9)
    np.testing.assert_array_equal(fill_even_odd([star], (8, 9))[certain], inside[certain])


@given(CORNERS, CORNERS)
def test_polygons_together_are_the_exclusive_or_of_each(first, second):
    first, second = np.array(first), np.array(second)
    together = fill_even_odd([first, second], (8, 9))
    np.testing.assert_array_equal(together, fill_even_odd([first], (8, 9)) ^ fill_even_odd([second], (8, 9)))
