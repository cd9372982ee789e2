"""The viewer of the notebooks: the right side, true proportions, and a picture where no widget can be."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff
from PIL import Image

from medvol.errors import MedvolError
from medvol.geometry import Volume, affine_from
from medvol.phantoms.body import STRUCTURES, body
from medvol.report import viewer, views
from medvol.report.viewer import view

SHAPE = (7, 8, 9)


def ramp(affine=None):
    return Volume(np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE), np.eye(4) if affine is None else affine)


def test_a_point_on_the_patients_right_front_top_is_left_and_up():
    array = np.zeros(SHAPE, dtype=np.float32)
    array[6, 7, 8] = 1
    shown = view(Volume(array), window=(0, 1))
    assert np.argwhere(shown.view("axial", 8).grey).tolist() == [[0, 0]]
    assert np.argwhere(shown.view("coronal", 7).grey).tolist() == [[0, 0]]
    assert np.argwhere(shown.view("sagittal", 6).grey).tolist() == [[0, 0]]
    assert [shown.view(plane, 0).letters[:2] for plane in ("axial", "coronal", "sagittal")] == ["RL", "RL", "AP"]


@pytest.mark.parametrize("flips", [(-1, -1, 1), (1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_the_order_of_the_voxels_in_the_file_does_not_matter(flips, order):
    plain = ramp(affine_from((1.0, 1.5, 3.0)))
    turn = np.stack([order, flips], axis=1).astype(float)
    affine = plain.affine @ inv_ornt_aff(turn, SHAPE)
    other = view(Volume(np.asarray(apply_orientation(plain.array, turn)), affine))
    expected = view(plain)
    assert other.steps_mm == pytest.approx(expected.steps_mm)
    for plane in views.PLANES:
        np.testing.assert_array_equal(other.view(plane, 2).grey, expected.view(plane, 2).grey)


def test_slices_have_the_proportions_of_the_spacing():
    slices = {plane: view(ramp(affine_from((1.0, 1.5, 3.0)))).view(plane, 0) for plane in views.PLANES}
    assert (slices["axial"].row_mm, slices["axial"].column_mm) == pytest.approx((1.5, 1.0))
    assert (slices["coronal"].row_mm, slices["coronal"].column_mm) == pytest.approx((3.0, 1.0))
    assert (slices["sagittal"].row_mm, slices["sagittal"].column_mm) == pytest.approx((3.0, 1.5))


def test_it_opens_where_the_largest_structure_is_largest():
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[1, 2, 3] = 1
    labels[4:6, 5:8, 2] = 2
    labels[4, 5:8, 3] = 2
    shown = view(ramp(), Volume(labels))
    assert shown.middle == (4, 5, 2)
    assert shown.structures == {"1": 1, "2": 2}
    assert view(ramp()).middle == (3, 4, 4)


def test_volumes_without_geometry_have_no_letters_and_stay_as_they_are():
    shown = view(replace(ramp(), has_geometry=False))
    assert shown.view("axial", 0).letters == ""
    assert shown.steps_mm == (1.0, 1.0, 1.0)


def test_grey_values_outside_the_window_are_black_and_white():
    grey = view(ramp(), window=(100, 200)).view("sagittal", 1).grey
    expected = np.round(255 * np.clip((ramp().array[1] - 100) / 100, 0, 1))
    assert np.abs(grey.astype(int)[::-1, ::-1].T - expected).max() <= 1


def test_one_output_holds_a_widget_and_a_picture():
    pytest.importorskip("ipywidgets")
    forms = view(body().image)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in forms
    picture = Image.open(io.BytesIO(base64.b64decode(forms["image/png"])))
    assert picture.size == (720, 272)


def test_without_the_widget_library_there_is_the_picture_alone(monkeypatch):
    monkeypatch.setattr(viewer, "find_spec", lambda name: None)
    assert sorted(view(ramp())._repr_mimebundle_()) == ["image/png", "text/plain"]


def test_a_moved_slider_redraws_the_picture():
    pytest.importorskip("ipywidgets")
    phantom = body()
    shown = view(phantom.image, phantom.mask, structures=STRUCTURES)
    box = shown.widget()
    sliders, picture = box.children
    before = picture.value
    sliders.children[2].value = 3
    x, y, _ = shown.middle
    assert picture.value == shown.png((x, y, 3)) != before


def test_both_masks_are_drawn_and_named():
    phantom = body()
    shown = view(phantom.image, phantom.mask, truth=phantom.mask, structures=STRUCTURES)
    panes = shown.figure().axes
    styles = {str(line.get_linestyle()[0]) for pane in panes for line in pane.collections}
    assert len(styles) == 2
    assert shown.png() != view(phantom.image, phantom.mask, structures=STRUCTURES).png()


@pytest.mark.parametrize(
    ("volume", "mask", "window"),
    [
        (Volume(np.zeros((7, 8))), None, None),
        (ramp(), Volume(np.zeros((7, 8, 8))), None),
        (ramp(), Volume(np.zeros(SHAPE), affine_from((1.0, 1.0, 2.0))), None),
        (ramp(), None, (3, 3)),
    ],
)
def test_what_cannot_be_shown_is_refused(volume, mask, window):
    with pytest.raises(MedvolError) as refusal:
        view(volume, mask, window=window)
    assert refusal.value.code == "BAD_ARGUMENT"
