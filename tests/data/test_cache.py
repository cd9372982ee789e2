"""The data set: what it returns, how often it computes, what it survives."""

import itertools
import pickle
import secrets
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import DataLoader as MonaiLoader
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Invertd,
    Lambdad,
    Orientationd,
    RandFlipd,
    RandGaussianNoised,
    RandomizableTrait,
    RandSpatialCropd,
    Resized,
    SaveImage,
    ScaleIntensityd,
    Spacingd,
    SpatialCrop,
    Transform,
)
from torch.utils.data import DataLoader, Subset

from medvol.data import cache_tiers
from medvol.data.cache import AfterCache, CachedVolumes
from medvol.data.cache_entry import MAPPED_BYTES
from medvol.errors import MedvolError
from medvol.transforms.load import LoadVolumed

SHAPE = (7, 8, 9)
# Oblique and left-handed, spacing about 1.0, 1.5, 3.0 mm.
AFFINE = np.array([[-0.98, 0.2, 0.1, 10.0], [0.1, 1.48, -0.2, -20.0], [0.05, 0.1, 2.99, 30.0], [0, 0, 0, 1.0]])


def write_volume(path, seed=0):
    voxels = np.random.default_rng(seed).integers(-1000, 1000, SHAPE).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, AFFINE), path)
    return voxels


@pytest.fixture
def items(tmp_path):
    for number in range(4):
        write_volume(tmp_path / f"v{number}.nii.gz", seed=number)
    return [{"case": f"c{n}", "image": str(tmp_path / f"v{n}.nii.gz"), "label": n % 2} for n in range(4)]


def geometry_chain(*more):
    return Compose(
        [
            LoadVolumed(keys="image"),
            EnsureChannelFirstd(keys="image"),
            Orientationd(keys="image", axcodes="RAS", labels=None),
            Spacingd(keys="image", pixdim=(1.2, 1.3, 2.0), mode="bilinear"),
            *more,
        ]
    )


class CountingLoad(Transform):
    """Loads, and keeps count in a folder: a file that is named by a parameter would be a part of the key."""

    def __init__(self, log):
        self.log = str(log)
        Path(log).mkdir(exist_ok=True)

    def __call__(self, data):
        (Path(self.log) / f"{data['case']} {secrets.token_hex(4)}").touch()
        voxels = np.asarray(nib.load(data["image"]).dataobj)
        return {**data, "image": MetaTensor(torch.from_numpy(voxels[None].copy()), affine=torch.from_numpy(AFFINE))}


class Double(Transform, AfterCache):
    def __call__(self, data):
        return {**data, "image": data["image"] * 2.0}


def runs(log):
    return sorted(path.name.split()[0] for path in log.iterdir())


def cached(items, chain, tmp_path, **options):
    return CachedVolumes(items, chain, cache_dir=tmp_path / "cache", progress=False, **options)


def assert_equal(first, second):
    """Same types all the way down, same values, NaN equal to itself."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(torch.as_tensor(first), torch.as_tensor(second))
        if isinstance(first, MetaTensor):
            assert_equal(first.meta, second.meta)
            assert_equal(first.applied_operations, second.applied_operations)
            assert torch.equal(first.affine, second.affine)
            assert (first.is_batch, first.spatial_ndim) == (second.is_batch, second.spatial_ndim)
    elif isinstance(first, np.ndarray):
        np.testing.assert_array_equal(first, second)
        assert first.dtype == second.dtype
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_equal(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_equal(one, other)
    else:
        assert repr(first) == repr(second)  # NaN included


@pytest.mark.parametrize("ram_bytes", [0, 2**30])
def test_first_later_and_next_process_accesses_are_equal(items, tmp_path, ram_bytes):
    first_set = cached(items, geometry_chain(), tmp_path, ram_bytes=ram_bytes)
    first, second = first_set[0], first_set[0]
    other = cached(items, geometry_chain(), tmp_path, ram_bytes=ram_bytes)
    assert_equal(first, second)
    assert_equal(first, other[0])
    assert (other.stats.hits, other.stats.misses) == (1, 0)
    assert isinstance(first["image"], MetaTensor)
    assert (first["case"], first["label"]) == ("c0", 0)


def test_cached_item_has_the_voxels_and_affine_of_the_chain_itself(items, tmp_path):
    plain = geometry_chain()(items[1])
    item = cached(items, geometry_chain(), tmp_path)[1]
    assert torch.equal(item["image"].as_tensor(), plain["image"].as_tensor())
    assert torch.equal(item["image"].affine, plain["image"].affine)
    assert item["image"].dtype == plain["image"].dtype
    assert (item["image"].is_batch, item["image"].spatial_ndim) == (False, 3)
    assert set(item["image"].meta) == set(plain["image"].meta)
    assert [step["class"] for step in item["image"].applied_operations] == ["Orientation", "SpatialResample"]


def test_integers_stay_integers_on_disk(items, tmp_path):
    dataset = cached(items, Compose([LoadVolumed(keys="image"), EnsureChannelFirstd(keys="image"), Double()]), tmp_path)
    assert dataset[0]["image"].dtype == torch.float32
    dataset.fill()
    voxels = 2 * int(np.prod(SHAPE))
    assert all(voxels < path.stat().st_size < voxels + 8192 for path in (tmp_path / "cache").glob("*.mvcache"))


def test_deterministic_steps_run_once(items, tmp_path):
    log = tmp_path / "log"
    for _ in range(2):
        dataset = cached(items, [CountingLoad(log)], tmp_path)
        for _ in range(2):
            for item in dataset:
                assert item["image"].shape == (1, *SHAPE)
    assert runs(log) == ["c0", "c1", "c2", "c3"]


def test_after_cache_steps_run_on_each_access(items, tmp_path):
    dataset = cached(items, [CountingLoad(tmp_path / "log"), Double()], tmp_path)
    assert dataset.cached_steps == 1
    voxels = np.asarray(nib.load(items[0]["image"]).dataobj)
    for _ in range(2):
        np.testing.assert_array_equal(dataset[0]["image"].numpy()[0], voxels * 2.0)


def test_random_step_inside_a_wrapper_or_compose_is_not_cached(items, tmp_path):
    class Wrapper(Transform):
        def __init__(self, inner):
            self.inner = inner

        def __call__(self, data):
            return self.inner(data)

    noise = RandGaussianNoised(keys="image", prob=1.0)
    load = CountingLoad(tmp_path / "log")
    assert cached(items, [load, Wrapper(noise)], tmp_path).cached_steps == 1
    assert cached(items, Compose([load, Compose([Compose([noise])])]), tmp_path).cached_steps == 1
    assert cached(items, Compose([Compose([load, ScaleIntensityd(keys="image")]), noise]), tmp_path).cached_steps == 2


def test_step_that_draws_from_a_global_generator_is_refused(items, tmp_path):
    def jitter(data):
        return {**data, "shift": float(np.random.rand())}  # noqa: NPY002

    dataset = cached(items, [CountingLoad(tmp_path / "log"), jitter], tmp_path)
    with pytest.raises(MedvolError, match=r"RANDOM_STEP.*c0") as caught:
        dataset[0]
    assert caught.value.case == "c0"


def test_changing_an_item_never_changes_the_cache(items, tmp_path):
    for ram_bytes in (0, 2**30):
        dataset = cached(items, geometry_chain(), tmp_path, ram_bytes=ram_bytes)
        item = dataset[0]
        # Not a copy of the item: copying a MetaTensor deeply still shares the tensors in its metadata.
        reference = cached(items, geometry_chain(), tmp_path / "other")[0]
        for _ in range(2):
            item["image"].zero_()
            item["image"].meta["affine"].zero_()
            item["image"].applied_operations.clear()
            item["case"] = "other"
            crop = dataset.read_crop(0, (0, 0, 0), (2, 2, 2))
            crop["image"].zero_()
            item = dataset[0]
            assert_equal(item, reference)
        assert_equal(dataset[0], reference)


def test_changing_an_item_never_changes_what_a_step_keeps_nor_the_data(tmp_path):
    atlas = torch.arange(504.0).reshape(1, 7, 8, 9)

    def add_atlas(data):
        data["list"].append("seen")
        return {**data, "atlas": atlas}

    data = [{"case": "a", "list": []}]
    item = cached(data, add_atlas, tmp_path, ram_bytes=0)[0]
    item["atlas"].zero_()
    assert item["list"] == ["seen"]
    assert atlas.sum() == 503 * 252
    assert data == [{"case": "a", "list": []}]


def test_invertd_works_on_an_item_that_another_process_prepared(items, tmp_path):
    chain = geometry_chain(Resized(keys="image", spatial_size=(10, 11, 12)))
    cached(items, chain, tmp_path).fill()
    again = geometry_chain(Resized(keys="image", spatial_size=(10, 11, 12)))
    item = cached(items, again, tmp_path, ram_bytes=0)[0]
    item["pred"] = item["image"].clone()
    back = Invertd(keys="pred", transform=again, orig_keys="image", nearest_interp=False)(item)["pred"]
    assert back.shape == (1, *SHAPE)
    np.testing.assert_allclose(back.affine.numpy(), AFFINE, atol=1e-6)
    folder = tmp_path / "saved"
    SaveImage(output_dir=folder, resample=True, separate_folder=False, print_log=False)(item["image"])
    saved = nib.load(next(folder.iterdir()))
    np.testing.assert_allclose(saved.affine, AFFINE, atol=1e-4)
    assert saved.shape == SHAPE


def test_random_steps_do_not_depend_on_the_number_of_workers(items, tmp_path):
    chain = Compose(
        [
            LoadVolumed(keys="image"),
            EnsureChannelFirstd(keys="image"),
            RandFlipd(keys="image", prob=0.5, spatial_axis=1),
            Compose([RandGaussianNoised(keys="image", prob=1.0, std=50.0)]),
        ]
    )

    def two_epochs(loader_class, workers):
        dataset = cached(items, chain, tmp_path, ram_bytes=0)
        loader = loader_class(dataset, batch_size=2, num_workers=workers, persistent_workers=workers > 0)
        return torch.cat([batch["image"].as_tensor() for _ in range(2) for batch in loader])

    alone = two_epochs(MonaiLoader, 0)
    assert torch.equal(alone, two_epochs(MonaiLoader, 2))
    assert not torch.equal(alone[:4], alone[4:]), "a second epoch draws anew"
    dataset = cached(items, chain, tmp_path)
    dataset.set_epoch(0)
    first = dataset[0]["image"]
    dataset.set_epoch(1)
    assert not torch.equal(first, dataset[0]["image"])
    dataset.set_epoch(0)
    assert torch.equal(first, dataset[0]["image"]), "a resumed epoch draws the same"


@pytest.mark.slow
def test_spawned_workers_give_the_same_and_count_in_the_main_process(items, tmp_path):
    chain = Compose(
        [LoadVolumed(keys="image"), EnsureChannelFirstd(keys="image"), RandGaussianNoised(keys="image", prob=1.0)]
    )
    alone = [item["image"] for item in cached(items, chain, tmp_path)]
    dataset = cached(items, chain, tmp_path)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="spawn")
    for one, other in zip(alone, loader, strict=True):
        assert torch.equal(one.as_tensor(), torch.as_tensor(other["image"]))
    assert dataset.stats.hits == len(items)
    assert dataset.stats.ram_bytes == 0, "workers hold nothing of their own"


def test_unpickled_data_set_gives_the_same_items(items, tmp_path):
    dataset = cached(items, geometry_chain(), tmp_path)
    dataset.fill()
    data = pickle.dumps(dataset)
    assert len(data) < 100_000 + 4 * int(np.prod(SHAPE))
    assert_equal(pickle.loads(data)[2], dataset[2])


def test_indices_slices_and_sequences_behave_as_in_monai(items, tmp_path):
    dataset = cached(items, [CountingLoad(tmp_path / "log")], tmp_path)
    assert len(dataset) == 4
    assert [dataset[-1]["case"], dataset[np.int64(1)]["case"]] == ["c3", "c1"]
    assert isinstance(dataset[1:3], Subset)
    assert [item["case"] for item in dataset[1:3]] == ["c1", "c2"]
    assert [item["case"] for item in dataset[[3, 0]]] == ["c3", "c0"]
    assert [item["case"] for item in dataset.__getitems__([2, 0])] == ["c2", "c0"]
    assert [item["case"] for item in dataset] == ["c0", "c1", "c2", "c3"]
    for index in (4, -5):
        with pytest.raises(IndexError, match="4 items"):
            dataset[index]


def test_set_data_takes_other_items_and_deletes_nothing(items, tmp_path):
    log = tmp_path / "log"
    dataset = cached(items[:2], [CountingLoad(log)], tmp_path)
    dataset.fill()
    precious = tmp_path / "cache" / "precious.txt"
    precious.write_text("keep me")
    before = sorted((tmp_path / "cache").iterdir())
    dataset.set_data(items[1:])
    assert sorted((tmp_path / "cache").iterdir()) == before
    assert [item["case"] for item in dataset] == ["c1", "c2", "c3"]
    assert runs(log) == ["c0", "c1", "c2", "c3"], "c1 was prepared already"
    assert precious.read_text() == "keep me"


def test_set_data_that_is_refused_changes_nothing(items, tmp_path):
    dataset = cached(items[:2], [CountingLoad(tmp_path / "log")], tmp_path)
    with pytest.raises(MedvolError, match="NOT_DESCRIBABLE: case bad"):
        dataset.set_data([items[2], {"case": "bad", "image": iter([1])}])
    assert [item["case"] for item in dataset] == ["c0", "c1"]


def test_plain_tensors_arrays_and_values_are_kept(items, tmp_path):
    values = {
        "tensor": torch.arange(6, dtype=torch.uint8).reshape(2, 3),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "array": np.arange(4.0, dtype=">f8"),
        "empty": torch.zeros(0, 4),
        "names": ["a", ("b", 1, None)],
        "nested": {"x": {1: 2.5}, "flag": True, "nan": float("nan")},
        "scalar": np.float32(1.5),
        "path": Path("somewhere/a.nii"),
        "large": np.zeros((3, 1000), np.int32),
    }

    def add(data):
        return {**data, **values}

    dataset = cached(items[:1], [add], tmp_path, ram_bytes=0)
    first, second = dataset[0], dataset[0]
    assert_equal(first, second)
    assert_equal(first, {**items[0], **values})


def test_metadata_is_plain_at_both_accesses(items, tmp_path):
    def with_meta(data):
        meta = {
            "affine": np.eye(4),
            "n": np.int64(3),
            "zero": np.array(2.5),
            "size": np.array([1, 2]),
            "file": Path("a/b"),
        }
        return {**data, "image": MetaTensor(torch.zeros(1, 2, 2, 2), meta=meta)}

    dataset = cached(items[:1], [with_meta], tmp_path, ram_bytes=0)
    for _ in range(2):
        meta = dataset[0]["image"].meta
        assert [type(meta[name]) for name in ("n", "zero", "file")] == [int, float, str]
        assert torch.equal(meta["size"], torch.tensor([1, 2]))
        assert torch.equal(meta["affine"], torch.eye(4, dtype=torch.float64))


def test_users_own_id_and_class_fields_are_not_taken_for_a_trace(tmp_path):
    item = {"id": "p7", "class": "tumour", "case": "a"}
    assert cached([item], [dict], tmp_path)[0] == item


def test_unstorable_value_is_refused_by_name(items, tmp_path):
    dataset = cached(items, [lambda data: {**data, "odd": object()}], tmp_path)
    with pytest.raises(MedvolError, match="NOT_CACHEABLE: case c0: 'odd' is a object"):
        dataset[0]


def test_fill_names_the_case_of_a_bad_file_before_the_first_epoch(items, tmp_path):
    Path(items[2]["image"]).write_bytes(b"")
    dataset = cached(items, geometry_chain(), tmp_path)
    with pytest.raises(MedvolError) as caught:
        dataset.fill()
    assert caught.value.case == "c2"
    assert "v2.nii.gz" in caught.value.message
    assert dataset.stats.misses == 3, "the other cases were prepared"


def test_error_of_a_step_names_case_and_cause(items, tmp_path):
    def fail(data):
        raise ValueError("no such organ")

    with pytest.raises(MedvolError, match=r"STEP_FAILED: case c1, .*v1.nii.gz: ValueError: no such organ"):
        cached(items, [fail], tmp_path)[1]


def test_refusal_of_a_step_keeps_its_code_and_gains_the_case(items, tmp_path):
    def refuse(data):
        raise MedvolError("WRONG_DIMS", found="an image with axes (7, 8)")

    with pytest.raises(MedvolError, match=r"WRONG_DIMS: case c3: an image with axes \(7, 8\)"):
        cached(items, Compose([CountingLoad(tmp_path / "log"), refuse]), tmp_path)[3]


def test_refusal_in_a_worker_arrives_with_its_code_and_case(items, tmp_path):
    Path(items[0]["image"]).write_bytes(b"<html>not found</html>")
    dataset = cached(items, geometry_chain(), tmp_path)
    with pytest.raises(MedvolError) as alone:
        dataset[0]
    with pytest.raises(MedvolError) as caught:
        next(iter(DataLoader(dataset, batch_size=None, num_workers=1)))
    assert caught.value.code == alone.value.code
    assert "c0" in caught.value.message


def test_fill_counts_and_a_second_fill_computes_nothing(items, tmp_path, capsys):
    dataset = CachedVolumes(items, geometry_chain(), cache_dir=tmp_path / "cache")
    stats = dataset.fill()
    assert "Preparing volumes" in capsys.readouterr().err
    assert (stats.misses, stats.damaged, stats.uncached) == (4, 0, 0)
    assert stats.ram_bytes == stats.disk_bytes == sum(path.stat().st_size for path in (tmp_path / "cache").iterdir())
    assert dataset.fill().misses == 4


def test_ram_is_bounded_by_its_budget(items, tmp_path):
    one = cached(items[:1], [CountingLoad(tmp_path / "log")], tmp_path).fill().disk_bytes
    dataset = cached(items, [CountingLoad(tmp_path / "log")], tmp_path, ram_bytes=2 * one)
    dataset.fill()
    assert dataset.stats.ram_bytes == 2 * one
    assert len({item["case"] for item in dataset}) == 4


def test_worker_holds_nothing_in_memory_of_its_own(items, tmp_path, monkeypatch):
    dataset = cached(items, [CountingLoad(tmp_path / "log")], tmp_path)
    monkeypatch.setattr(cache_tiers, "get_worker_info", object)
    assert dataset.fill().ram_bytes == 0
    monkeypatch.undo()
    dataset = cached(items, [CountingLoad(tmp_path / "log")], tmp_path)
    assert dataset.fill().ram_bytes > 0


@pytest.mark.parametrize("ram_bytes", [0, 2**30])
def test_read_crop_equals_monai_spatial_crop(items, tmp_path, ram_bytes):
    dataset = cached(items, [CountingLoad(tmp_path / "log")], tmp_path, ram_bytes=ram_bytes)
    whole = dataset[1]
    start, size = (1, 3, 2), (4, 5, 6)
    crop = dataset.read_crop(1, start, size)["image"]
    expected = SpatialCrop(roi_start=start, roi_end=[a + b for a, b in zip(start, size, strict=True)])(whole["image"])
    assert crop.dtype == torch.int16
    assert torch.equal(crop.as_tensor(), expected.as_tensor())
    np.testing.assert_allclose(crop.affine.numpy(), expected.affine.numpy(), atol=1e-12)
    world = AFFINE @ [*start, 1]  # by hand: the crop's first voxel stays where it was
    np.testing.assert_allclose(crop.affine.numpy()[:, 3], world, atol=1e-12)
    trace, monai_trace = dict(crop.applied_operations[-1]), dict(expected.applied_operations[-1])
    trace.pop("id"), monai_trace.pop("id")
    assert trace == monai_trace
    back = SpatialCrop(roi_start=start, roi_end=(5, 8, 8)).inverse(crop)
    assert back.shape == (1, *SHAPE)
    np.testing.assert_allclose(back.affine.numpy(), AFFINE, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 7, 8, 9), (2, 130, 131, 132)])
def test_crop_of_several_channels_from_disk_is_exact_whether_read_or_mapped(tmp_path, shape):
    voxels = np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)
    assert (voxels.nbytes >= MAPPED_BYTES) == (shape[1] > 7)
    dataset = cached([{"case": "a"}], [lambda data: {**data, "image": torch.from_numpy(voxels)}], tmp_path, ram_bytes=0)
    dataset.fill()
    for start in ((0, 0, 0), (2, 3, 1), (shape[1] - 5, shape[2] - 4, shape[3] - 3)):
        crop = dataset.read_crop(0, start, (5, 4, 3))["image"].numpy()
        i, j, k = start
        np.testing.assert_array_equal(crop, voxels[:, i : i + 5, j : j + 4, k : k + 3])
    next((tmp_path / "cache").glob("*.mvcache")).write_bytes(b"half")
    np.testing.assert_array_equal(dataset.read_crop(0, (0, 0, 0), (1, 1, 1))["image"].numpy(), voxels[:, :1, :1, :1])
    assert dataset.stats.misses == 2


def test_read_crop_crops_image_and_mask_alike_and_leaves_the_rest(items, tmp_path):
    voxels = np.arange(np.prod(SHAPE), dtype=np.int64).reshape(1, *SHAPE)

    def prepare(data):
        small = torch.from_numpy((voxels > 100).astype(np.uint8))  # small enough to lie in the header
        return {**data, "image": torch.from_numpy(voxels * 10), "mask": small, "intensity": torch.ones(1, 4)}

    dataset = cached(items, [prepare, Lambdad(keys="image", func=float_of)], tmp_path)
    crop = dataset.read_crop(0, (2, 0, 1), (3, 8, 2))
    np.testing.assert_array_equal(crop["image"].numpy(), (voxels * 10)[:, 2:5, 0:8, 1:3])
    np.testing.assert_array_equal(crop["mask"].numpy(), (voxels > 100)[:, 2:5, 0:8, 1:3])
    assert (crop["intensity"].shape, crop["case"]) == ((1, 4), "c0")


def float_of(image):
    return image.float()


def test_finish_runs_the_later_steps_on_a_crop(items, tmp_path):
    dataset = cached(items, [CountingLoad(tmp_path / "log"), Double()], tmp_path)
    crop = dataset.read_crop(0, (0, 0, 0), (2, 2, 2))
    assert torch.equal(dataset.finish(0, crop)["image"].as_tensor(), crop["image"].as_tensor() * 2.0)


@pytest.mark.parametrize(
    ("start", "size"),
    [((0, 0, 5), (2, 2, 5)), ((-1, 0, 0), (2, 2, 2)), ((0, 0, 0), (0, 1, 1)), ((0, 0), (2, 2)), ((0, 0, 0), (2, 2))],
)
def test_crop_outside_is_refused_with_the_numbers(items, tmp_path, start, size):
    dataset = cached(items, [CountingLoad(tmp_path / "log")], tmp_path)
    with pytest.raises(MedvolError, match="BAD_CROP: case c0"):
        dataset.read_crop(0, start, size)


def test_random_crop_step_works_on_the_cached_volume(items, tmp_path):
    chain = [CountingLoad(tmp_path / "log"), RandSpatialCropd(keys="image", roi_size=(3, 4, 5), random_size=False)]
    dataset = cached(items, chain, tmp_path)
    assert {tuple(dataset[0]["image"].shape) for _ in range(3)} == {(1, 3, 4, 5)}


def test_large_arrays_are_mapped_and_fresh_each_time(tmp_path):
    def make(data):
        return {**data, "image": torch.arange(2**21 + 5, dtype=torch.float32).reshape(1, -1)}

    dataset = cached([{"case": "a"}], [make], tmp_path)
    for _ in range(3):
        image = dataset[0]["image"]
        assert float(image.sum(dtype=torch.float64)) == pytest.approx((2**21 + 4) * (2**21 + 5) / 2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # torch warns of tensors over read-only memory
            image.zero_()
    assert dataset.stats.ram_bytes == 0


def test_many_large_items_at_once_do_not_use_up_the_file_descriptors(tmp_path):
    import resource

    def make(data):
        return {**data, "image": torch.zeros(2**21)}

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    dataset = cached([{"case": "a"}], [make], tmp_path)
    dataset.fill()
    open_now = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + 40, hard))
    try:
        kept = [dataset[0]["image"] for _ in range(60)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (len(kept), dataset.stats.misses) == (60, 1)


def test_chain_without_cached_steps_and_empty_chain_just_run(items, tmp_path):
    class Draw(Transform, RandomizableTrait):
        def __call__(self, data):
            return {**data, "seen": True}

    assert cached(items, [Draw()], tmp_path)[0]["seen"]
    assert cached(items, None, tmp_path)[0] == items[0]
    assert not list((tmp_path / "cache").glob("*")) if (tmp_path / "cache").exists() else True


def test_items_that_are_plain_paths_and_chains_that_return_tensors_work(items, tmp_path):
    def load(path):
        return torch.from_numpy(np.asarray(nib.load(path).dataobj).copy())

    dataset = cached([item["image"] for item in items], load, tmp_path)
    assert_equal(dataset[1], dataset[1])
    assert dataset[1].shape == SHAPE


def test_no_two_cases_share_an_entry(items, tmp_path):
    dataset = cached(items, [CountingLoad(tmp_path / "log")], tmp_path)
    dataset.fill()
    for one, other in itertools.combinations(list(dataset), 2):
        assert not torch.equal(one["image"].as_tensor(), other["image"].as_tensor())


def test_random_crop_is_a_crop_of_the_item_and_moves_with_epoch_and_access(items, tmp_path):
    dataset = cached(items, [CountingLoad(tmp_path / "log"), Double()], tmp_path)
    whole = dataset[2]["image"]
    size, places = (3, 4, 5), set()
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        for _ in range(20):
            crop = dataset.random_crop(2, size)["image"]
            corner = np.linalg.solve(AFFINE, crop.affine.numpy()[:, 3])[:3].round().astype(int)
            where = tuple(slice(first, first + length) for first, length in zip(corner, size, strict=True))
            assert torch.equal(crop.as_tensor(), whole.as_tensor()[(slice(None), *where)])
            places.add(tuple(corner.tolist()))
    # 5 * 5 * 5 places; both ends of each axis are reached by 40 draws with probability 0.999.
    assert len(places) > 20
    assert all({0, 4} <= {place[axis] for place in places} for axis in range(3))
    dataset.set_epoch(1)
    again = cached(items, [CountingLoad(tmp_path / "log"), Double()], tmp_path)
    again.set_epoch(1)
    assert_equal(dataset.random_crop(1, size), again.random_crop(1, size))
    with pytest.raises(MedvolError, match="BAD_CROP: case c0"):
        dataset.random_crop(0, (3, 4, 10))
