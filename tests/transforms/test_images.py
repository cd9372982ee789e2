"""The chain from an image file to network input: Pillow's resize, three channels from grey, other kinds refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medvol.data.cache import CachedVolumes
from medvol.data.facts import Facts
from medvol.data.image_facts import COLOURS, GREY
from medvol.errors import find_refusal
from medvol.transforms.images import image_preprocessing, mirror_axes, percentiles

SHARED = Path(__file__).parents[3] / "shared" / "data"
SIZE = (9, 11)


def facts(channels=GREY, scheme="zero_one", limits=(0.0, 255.0), size=SIZE, laterality_matters=True):
    return Facts(("no", "yes"), channels, size, None, scheme, limits, False, laterality_matters)


def saved(path, array):
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)
    return str(path)


def prepared(path, known):
    return image_preprocessing(known)({"case": "c1", "image": path})["image"]


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (30, 47), dtype=np.uint8)


@pytest.mark.parametrize("size", [(9, 11), (60, 80), (9, 80), (30, 47)])
def test_an_image_is_resized_as_pillow_does_it_within_half_a_grey_level(tmp_path, picture, size):
    image = prepared(saved(tmp_path / "a.png", picture), facts(size=size))
    assert image.shape == (1, *size)
    assert image.dtype == torch.float32
    exact = Image.fromarray(picture.astype(np.float32)).resize(size[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_allclose(image[0].numpy() * 255, np.asarray(exact), atol=0.51)


def test_a_grey_image_becomes_three_channels_normalised_as_imagenet(tmp_path, picture):
    image = prepared(saved(tmp_path / "a.png", picture), facts(COLOURS, "imagenet", size=picture.shape))
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (picture[None] / 255 - mean[:, None, None]) / deviation[:, None, None]
    np.testing.assert_allclose(image.numpy(), expected, atol=1e-5)
    half = prepared(str(tmp_path / "a.png"), facts(COLOURS, "half", size=picture.shape))
    np.testing.assert_allclose(half.numpy(), np.stack([picture / 127.5 - 1] * 3), atol=1e-5)


def test_colours_stay_red_green_blue(tmp_path):
    colours = np.zeros((9, 11, 3), np.uint8)
    colours[..., 0], colours[..., 1], colours[..., 2] = 250, 100, 20
    image = prepared(saved(tmp_path / "a.png", colours), facts(COLOURS))
    np.testing.assert_allclose(image.mean(dim=(1, 2)).numpy() * 255, [250, 100, 20], atol=1e-3)


def test_a_grey_network_takes_a_grey_image_saved_as_colour(tmp_path, picture):
    as_colours = np.stack([picture] * 3, axis=-1)
    as_colours[0, 0, 2] ^= 1  # as JPEG rounds
    image = prepared(saved(tmp_path / "a.png", as_colours), facts(size=picture.shape))
    np.testing.assert_allclose(image[0].numpy() * 255, picture, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_images_of_more_than_8_bits_are_scaled_by_their_own_percentiles(tmp_path, dtype):
    array = (np.random.default_rng(0).permutation(30 * 40).reshape(30, 40) * 20).astype(dtype)
    array[0, 0] = 30000
    image = prepared(saved(tmp_path / "a.npy", array), facts(size=(30, 40), limits=None))
    low, high = np.percentile(array, [0.5, 99.5])
    np.testing.assert_allclose(image[0].numpy(), (np.clip(array, low, high) - low) / (high - low), atol=1e-5)


def test_a_window_clips_and_percentiles_of_colours_keep_the_hue(tmp_path):
    array = np.full((9, 11), 400, np.int16)
    array[:4], array[4:8] = -1000, 40
    image = prepared(saved(tmp_path / "a.npy", array), facts(limits=(-160.0, 240.0)))
    np.testing.assert_allclose(image[0, [0, 5, 8], 0].numpy(), [0.0, 0.5, 1.0])
    colours = np.random.default_rng(0).integers(0, 100, (9, 11, 3)) + np.array([0, 200, 900])
    scaled = prepared(saved(tmp_path / "c.npy", colours), facts(COLOURS, limits=None)).mean(dim=(1, 2))
    low, high = np.percentile(colours, [0.5, 99.5])
    np.testing.assert_allclose(
        scaled.numpy(), ((np.clip(colours, low, high) - low) / (high - low)).mean((0, 1)), atol=1e-5
    )


def test_a_constant_image_is_finite():
    assert percentiles(torch.full((1, 9, 11), 7)).tolist() == [7.0, 7.0]


def test_a_constant_image_of_any_normalisation_is_finite(tmp_path):
    path = saved(tmp_path / "a.npy", np.full(SIZE, 700, np.int16))
    for scheme, channels in (("zero_one", GREY), ("imagenet", COLOURS)):
        assert torch.isfinite(prepared(path, facts(channels, scheme, None))).all()


def test_several_images_of_a_case_become_channels_each_with_its_own_percentiles(tmp_path, picture):
    paths = [saved(tmp_path / "a.npy", picture.astype(np.int16)), saved(tmp_path / "b.npy", picture * 10.0)]
    image = prepared(paths, facts(("t1", "t2"), limits=None))
    assert image.shape == (2, *SIZE)
    torch.testing.assert_close(image[0], image[1], atol=0.01, rtol=0)


def test_the_cache_keeps_one_integer_channel_and_returns_the_same_image(tmp_path, picture):
    item = {"case": "c1", "image": saved(tmp_path / "a.png", picture)}
    chain = image_preprocessing(facts(COLOURS, "imagenet"))
    fresh = chain(dict(item))["image"]
    dataset = CachedVolumes([item], chain, cache_dir=tmp_path / "cache", progress=False)
    later = CachedVolumes([item], chain, cache_dir=tmp_path / "cache", progress=False)
    assert fresh.shape == (3, *SIZE)
    for again in (dataset[0]["image"], later[0]["image"]):
        torch.testing.assert_close(again.as_tensor(), fresh.as_tensor(), atol=0, rtol=0)
    assert (dataset.stats.misses, later.stats.hits) == (1, 1)
    kept = dict(item)
    for step in chain.transforms[: later.cached_steps]:
        kept = step(kept)
    assert (kept["image"].dtype, len(kept["image"])) == (torch.uint8, 1)


@pytest.mark.parametrize(
    ("array", "known", "code"),
    [
        (np.zeros((7, 8, 9), np.uint8), facts(), "WRONG_DIMS"),
        (np.arange(20 * 20 * 3, dtype=np.uint8).reshape(20, 20, 3), facts(), "WRONG_CHANNELS"),
        (np.zeros((20, 20), np.uint8), facts(("t1", "t2")), "WRONG_CHANNELS"),
        (np.zeros((7, 20), np.uint8), facts(), "IMAGE_TOO_SMALL"),
        (np.full((20, 20), 3000, np.int16), facts(), "INTENSITY_RANGE"),
        (np.full((20, 20), 0.5, np.float32), facts(), "INTENSITY_RANGE"),
        (np.full((20, 20), 200, np.uint8), facts(limits=(0.0, 1.0)), "INTENSITY_RANGE"),
    ],
)
def test_an_image_of_another_kind_is_refused_with_its_case(tmp_path, array, known, code):
    with pytest.raises(Exception) as wrapped:  # noqa: PT011 - MONAI's Compose wraps the refusal
        prepared(saved(tmp_path / "a.npy", array), known)
    refusal = find_refusal(wrapped.value)
    assert (refusal.code, refusal.case) == (code, "c1")
    assert len(str(refusal)) <= 300


def test_images_are_mirrored_left_to_right_alone_and_only_where_the_study_says_so():
    assert mirror_axes(facts()) == ()
    assert mirror_axes(facts(laterality_matters=False)) == (1,)


@pytest.mark.realdata
def test_a_slice_is_the_same_picture_as_jpeg_and_as_matlab_file():
    pairs = [
        (jpg, SHARED / "figshare_brain_tumor_mat" / f"{jpg.stem}.mat")
        for jpg in sorted((SHARED / "figshare_brain_tumor_jpg").glob("*/*.jpg"))
    ]
    both = [pair for pair in pairs if pair[1].is_file()]
    if not both:
        pytest.skip("figshare_brain_tumor_jpg and figshare_brain_tumor_mat are not in the shared data folder")
    known = facts(limits=None, size=(64, 64))
    for jpg, mat in both[:4]:
        one, other = prepared(str(jpg), known), prepared(str(mat), known)
        assert (one - other).abs().mean() < 0.005
        assert (one - other.mT).abs().mean() > 0.02
