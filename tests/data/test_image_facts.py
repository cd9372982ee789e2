"""Facts of an image study, by hand: what is read off the training split and what a user may say."""

import numpy as np
import pytest
from PIL import Image

from medvol.data.facts import Facts
from medvol.data.image_facts import COLOURS, GREY, fit_image_facts, is_grey, two_of
from medvol.data.study import Case, Study
from medvol.errors import MedvolError


def study_of(folder, arrays, channels=("image",)):
    """Save each array as a training case; a test case that must not be looked at is added."""
    cases = []
    for index, array in enumerate(arrays):
        path = folder / f"{index}.npy"
        np.save(path, array)
        cases.append(Case(f"c{index}", f"p{index}", (str(path),) * len(channels), "a", "train"))
    cases.append(Case("t", "t", (str(folder / "absent.npy"),) * len(channels), "b", "test"))
    return Study(tuple(cases), "classification", ("a", "b"), channels, laterality_matters=True)


GREYS = np.full((20, 30), 17, np.uint8)
RED = np.zeros((20, 30, 3), np.uint8) + np.array([200, 10, 10], np.uint8)


def fit(folder, *arrays, **options):
    return fit_image_facts(study_of(folder, arrays), **{"spatial_size": (64, 48), **options})


def test_8_bit_grey_images_share_one_range_and_one_channel(tmp_path):
    found = fit(tmp_path, GREYS, GREYS.astype(np.int64), GREYS.astype(float))
    assert found == Facts(("a", "b"), GREY, (64, 48), None, "zero_one", (0.0, 255.0), False, True)
    assert Facts.from_dict(found.as_dict()) == found


@pytest.mark.parametrize(
    ("array", "limits"),
    [
        (GREYS / 255, (0.0, 1.0)),
        (GREYS * 100.0, None),
        (GREYS.astype(np.int16) * 100, None),
        (GREYS.astype(np.int16) * -1, None),
    ],
)
def test_other_ranges_are_0_to_1_or_each_images_own(tmp_path, array, limits):
    assert fit(tmp_path, array).limits == limits


def test_a_range_that_is_given_is_taken(tmp_path):
    assert fit(tmp_path, GREYS, grey_range=[-160, 240]).limits == (-160.0, 240.0)
    assert fit(tmp_path, GREYS, grey_range="percentile").limits is None


def test_one_coloured_training_image_makes_three_channels(tmp_path):
    assert fit(tmp_path, GREYS, RED).channels == COLOURS
    assert fit(tmp_path, GREYS, np.stack([GREYS] * 3, axis=-1)).channels == GREY


def test_published_weights_and_the_user_ask_for_three_channels(tmp_path):
    assert fit(tmp_path, GREYS, normalisation="imagenet").channels == COLOURS
    assert fit(tmp_path, GREYS, in_channels=3).channels == COLOURS
    assert fit(tmp_path, RED, in_channels=1).channels == GREY


def test_several_image_columns_are_channels_by_their_names(tmp_path):
    study = study_of(tmp_path, [GREYS], ("t1", "t2"))
    assert fit_image_facts(study, spatial_size=32).channels == ("t1", "t2")
    with pytest.raises(MedvolError, match="WRONG_CHANNELS.*t1, t2"):
        fit_image_facts(study, spatial_size=32, normalisation="imagenet")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"normalisation": "imagnet"}, "did you mean 'imagenet'"),
        ({"grey_range": "percentil"}, "did you mean 'percentile'"),
        ({"grey_range": [3, 3]}, "two rising values"),
        ({"in_channels": 2}, "auto, 1 or 3"),
        ({"in_channels": 1, "normalisation": "half"}, "3 channels"),
        ({"spatial_size": (8, 8, 8)}, "rows and columns"),
        ({"spatial_size": (8, 0)}, "rows and columns"),
    ],
)
def test_an_option_that_means_nothing_is_refused(tmp_path, options, expected):
    with pytest.raises(MedvolError, match=f"UNKNOWN_OPTION.*{expected}"):
        fit(tmp_path, GREYS, **options)


def test_a_volume_among_the_training_images_is_refused_with_its_case(tmp_path):
    with pytest.raises(MedvolError, match=r"WRONG_DIMS: case c1.*3D bundle"):
        fit(tmp_path, GREYS, np.zeros((7, 8, 9)))


def test_one_number_is_a_square():
    assert two_of(28) == (28, 28)


def test_the_rounding_of_jpeg_makes_no_colour(tmp_path):
    grey = np.tile(np.linspace(0, 255, 32, dtype=np.uint8), (24, 1))
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "a.jpg", quality=75)
    assert is_grey(np.asarray(Image.open(tmp_path / "a.jpg")))
    assert not is_grey(RED)
