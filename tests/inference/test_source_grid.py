"""Labels on the source grid: those of the unstreamed path, in the source's axis order, at the right millimetres."""

from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from torch.nn import functional

from medvol.errors import MedvolError
from medvol.geometry import apply_affine
from medvol.inference import interpolate
from medvol.inference.sliding_window import SlidingWindow
from medvol.inference.source_grid import LabelsOnSourced, SourceGrid, label_dtype, labels_on_source
from medvol.inference.windows import Slab
from medvol.phantoms.grid import oblique_affine

SHAPE = (7, 8, 9)
AXIS_ORDERS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]
SHEARED = np.array([[1.0, 0.2, 0.0, 5.0], [0.0, 1.5, -0.4, -3.0], [0.1, 0.0, 3.0, 8.0], [0.0, 0.0, 0.0, 1.0]])
AFFINES = {
    "straight": np.diag([1.0, 1.5, 3.0, 1.0]),
    "oblique, flipped": oblique_affine(SHAPE),
    "oblique, turned far": oblique_affine(SHAPE, angles_deg=(100.0, 35.0, -50.0), flip=(False, True, True)),
    "sheared": SHEARED,
}


def axis_order_affine(order, signs):
    """Source axis i runs along world axis order[i], with or against it."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * (1.0, 1.5, 3.0)[axis]
    affine[:3, 3] = (3.0, -5.0, 11.0)
    return affine


def preprocessed(array, affine, working=None):
    """Orient by MONAI and resize by torch, as the contract of the preprocessing chain says."""
    meta = {"original_affine": affine.copy(), "spatial_shape": np.array(array.shape), "has_geometry": True}
    image = MetaTensor(torch.from_numpy(array.astype(np.float32))[None], affine=torch.from_numpy(affine), meta=meta)
    image = Orientation(axcodes="RAS", labels=None)(image)
    sizes = tuple(image.shape[1:])
    working = sizes if working is None else working
    resize = np.eye(4)
    for axis in range(3):
        ratio = sizes[axis] / working[axis]
        resize[axis, axis], resize[axis, 3] = ratio, 0.5 * ratio - 0.5
    data = functional.interpolate(image.as_tensor()[None], size=working, mode="trilinear", align_corners=False)[0]
    return MetaTensor(data, meta={**image.meta, "affine": image.affine @ torch.from_numpy(resize)})


def unstreamed(logits, image):
    """Full logits, F.interpolate, argmax, then nibabel's way back to the source's axes."""
    affine = np.asarray(image.meta["original_affine"])
    shape = tuple(image.meta["spatial_shape"])
    source_to_ras = nib.orientations.io_orientation(affine)
    ras_shape = nib.orientations.apply_orientation(np.zeros(shape), source_to_ras).shape
    full = functional.interpolate(logits[None], size=ras_shape, mode="trilinear", align_corners=False)[0]
    ras_to_source = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(nib.orientations.aff2axcodes(affine))
    )
    return nib.orientations.apply_orientation(full.argmax(0).numpy(), ras_to_source), full


def cut(logits, axis, count):
    """Slabs of `count` planes, each a copy that is spoilt once the next is asked for."""
    for start in range(0, logits.shape[1 + axis], count):
        length = min(count, logits.shape[1 + axis] - start)
        part = logits.narrow(1 + axis, start, length).clone()
        yield Slab(axis, start, part)
        part.fill_(float("nan"))


def random_logits(classes, shape, seed=0):
    return torch.randn(classes, *shape, generator=torch.Generator().manual_seed(seed))


def written(logits, image, *, axis=0, count=3, **options):
    grid = SourceGrid.of(image)
    out = np.full(grid.shape, 255, dtype=label_dtype(len(logits)))
    counts = labels_on_source(cut(logits, axis, count), logits.shape[1:], grid, out=out, **options)
    return out, counts


@pytest.mark.parametrize(("order", "signs"), AXIS_ORDERS)
def test_labels_equal_the_unstreamed_ones_for_every_axis_order(order, signs):
    affine = axis_order_affine(order, signs)
    image = preprocessed(np.zeros(SHAPE), affine, (6, 11, 10))
    logits = random_logits(5, image.shape[1:])
    labels, counts = written(logits, image)
    expected, _ = unstreamed(logits, image)
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(counts, np.bincount(expected.ravel(), minlength=5))


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("working", [None, (4, 3, 5), (1, 1, 1), (19, 30, 21), (7, 20, 3)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_labels_equal_the_unstreamed_ones_for_every_resize(name, working, axis):
    image = preprocessed(np.zeros(SHAPE), AFFINES[name], working)
    logits = random_logits(4, image.shape[1:])
    labels, _ = written(logits, image, axis=axis, count=2)
    np.testing.assert_array_equal(labels, unstreamed(logits, image)[0])


@pytest.mark.parametrize("scratch_bytes", [1, 5_000, 2**24])
def test_labels_depend_neither_on_the_memory_allowed_nor_on_the_number_of_classes(monkeypatch, scratch_bytes):
    monkeypatch.setattr(interpolate, "SCRATCH_BYTES", scratch_bytes)
    image = preprocessed(np.zeros(SHAPE), AFFINES["oblique, flipped"], (5, 9, 12))
    logits = random_logits(300, image.shape[1:])
    labels, counts = written(logits, image)
    assert labels.dtype == np.uint16
    assert labels.max() > 255
    np.testing.assert_array_equal(labels, unstreamed(logits, image)[0])
    assert counts.sum() == np.prod(SHAPE)


@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_labels_depend_on_the_number_of_slabs_in_no_bit(count):
    image = preprocessed(np.zeros((20, 8, 9)), np.diag([1.0, 1.5, 3.0, 1.0]), (33, 9, 12))
    # Differences of one unit in the last place decide every label here.
    logits = 1 + 1e-7 * random_logits(3, image.shape[1:]).round()
    np.testing.assert_array_equal(written(logits, image, count=count)[0], written(logits, image, count=7)[0])


def test_the_lowest_of_equal_classes_is_taken(monkeypatch):
    monkeypatch.setattr(interpolate, "SCRATCH_BYTES", 1)
    image = preprocessed(np.zeros(SHAPE), np.eye(4))
    logits = torch.zeros(6, *SHAPE)
    logits[2:] = 1.0
    assert (written(logits, image)[0] == 2).all()


@pytest.mark.parametrize("structures", [None, [3, 1]])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_probabilities_are_the_softmax_of_the_interpolated_logits(monkeypatch, structures, dtype):
    monkeypatch.setattr(interpolate, "SCRATCH_BYTES", 2_000)
    image = preprocessed(np.zeros(SHAPE), np.eye(4), (5, 9, 12))
    logits = 5 * random_logits(4, image.shape[1:])
    chosen = structures or range(4)
    probabilities = np.zeros((len(chosen), *SHAPE), dtype=dtype)
    labels, _ = written(logits, image, probabilities=probabilities, structures=structures)
    expected_labels, full = unstreamed(logits, image)
    expected = torch.softmax(full, dim=0)[list(chosen)].numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-3 if dtype == np.float16 else 1e-6)
    np.testing.assert_array_equal(labels, expected_labels)


def ball(shape, affine, centre_mm, radius_mm):
    """Grey value 100 inside a ball, with a ramp of 2 mm at its surface."""
    points = apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))
    distance = np.linalg.norm(points - centre_mm, axis=-1)
    return np.clip((radius_mm - distance) / 2 + 0.5, 0, 1) * 100


def oracle(windows):
    """Two classes, the second where the grey value is above 50."""
    return torch.cat([torch.zeros_like(windows), windows - 50], dim=1)


@pytest.mark.parametrize("name", AFFINES)
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.7])
def test_a_ball_comes_back_at_its_millimetres(name, factor):
    shape = (40, 30, 18)
    affine = AFFINES[name].copy()
    centre_mm = apply_affine(affine, (17.3, 16.1, 8.2))
    image = preprocessed(ball(shape, affine, centre_mm, 9.0), affine)
    working = tuple(max(1, round(length * factor)) for length in image.shape[1:])
    image = preprocessed(ball(shape, affine, centre_mm, 9.0), affine, working)
    grid = SourceGrid.of(image)
    labels = np.zeros(shape, dtype=np.uint8)
    labels_on_source(SlidingWindow((12, 12, 12)).slabs(image, oracle), working, grid, out=labels)
    found_mm = apply_affine(affine, np.argwhere(labels)).mean(axis=0)
    np.testing.assert_allclose(found_mm, centre_mm, atol=0.25)
    volume_ml = labels.sum() * grid.voxel_ml
    assert volume_ml == pytest.approx(4 / 3 * np.pi * 9.0**3 / 1000, rel=0.12)


def test_the_transform_gives_what_streaming_gives_to_the_bit():
    affine = AFFINES["oblique, turned far"]
    image = preprocessed(np.random.default_rng(0).random(SHAPE), affine, (6, 13, 11))
    torch.manual_seed(0)
    network, window = torch.nn.Conv3d(1, 4, 3, padding=1), SlidingWindow((4, 5, 6))
    streamed = np.zeros(SHAPE, dtype=np.uint8)
    labels_on_source(window.slabs(image, network), image.shape[1:], SourceGrid.of(image), out=streamed)
    item = LabelsOnSourced(keys="pred")({"image": image, "pred": window(image[None], network)[0], "case": "a"})
    assert isinstance(item["pred"], MetaTensor)
    assert item["pred"].dtype == torch.uint8
    np.testing.assert_array_equal(item["pred"].affine.numpy(), affine)
    np.testing.assert_array_equal(item["pred"].numpy()[0], streamed)


def test_a_cropped_image_is_refused_and_the_case_named():
    image = preprocessed(np.zeros(SHAPE), AFFINES["straight"])
    cropped = MetaTensor(image.as_tensor()[:, 1:], meta=image.meta)
    with pytest.raises(MedvolError, match="MOVED_GRID: case a"):
        LabelsOnSourced()({"image": cropped, "pred": torch.zeros(2, 6, 8, 9), "case": "a"})


def test_an_image_without_metadata_is_refused():
    with pytest.raises(MedvolError, match="NO_SOURCE_GRID"):
        SourceGrid.of(MetaTensor(torch.zeros(1, 7, 8, 9)))


def test_a_volume_without_geometry_keeps_its_axes():
    image = preprocessed(np.zeros(SHAPE), np.eye(4))
    image.meta["has_geometry"] = False
    logits = random_logits(3, SHAPE)
    np.testing.assert_array_equal(written(logits, image)[0], logits.argmax(0).numpy())


def test_logits_that_are_not_finite_are_refused():
    image = preprocessed(np.zeros(SHAPE), np.eye(4))
    logits = random_logits(3, SHAPE)
    logits[1, 3, 3, 3] = float("nan")
    with pytest.raises(MedvolError, match="NONFINITE_LOGITS"):
        written(logits, image)


@pytest.mark.parametrize("out", [np.zeros((8, 7, 9), np.uint8), np.zeros(SHAPE, np.float32), np.zeros(SHAPE, np.int8)])
def test_an_array_that_cannot_hold_the_labels_is_refused(out):
    image = preprocessed(np.zeros(SHAPE), np.eye(4))
    logits = random_logits(200, SHAPE)
    with pytest.raises(MedvolError, match="WRONG_ARRAY"):
        labels_on_source(cut(logits, 0, 3), SHAPE, SourceGrid.of(image), out=out)


@pytest.mark.parametrize("kept", [slice(0, 1), slice(1, 3)])
def test_a_missing_slab_is_an_error(kept):
    image = preprocessed(np.zeros(SHAPE), np.eye(4))
    slabs = [
        Slab(0, start, part) for start, part in zip((0, 3, 6), random_logits(3, SHAPE).split(3, dim=1), strict=True)
    ]
    with pytest.raises(ValueError, match="slab"):
        labels_on_source(slabs[kept], SHAPE, SourceGrid.of(image), out=np.zeros(SHAPE, np.uint8))


@pytest.mark.parametrize(("classes", "dtype"), [(2, np.uint8), (256, np.uint8), (257, np.uint16)])
def test_labels_take_the_smallest_type_that_holds_them(classes, dtype):
    assert label_dtype(classes) == dtype
