"""The key: whatever could change a voxel changes it, and nothing else does."""

import ast
import functools
import importlib
import logging
import os
import pickle
import subprocess
import sys
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import NibabelReader, set_track_meta
from monai.transforms import (
    Compose,
    CropForegroundd,
    EnsureChannelFirstd,
    Lambdad,
    LoadImaged,
    Orientationd,
    RandFlipd,
    Resized,
    ScaleIntensityRanged,
    Spacingd,
    Transform,
)

from medvol.data import cache_key
from medvol.data.cache import CachedVolumes
from medvol.data.cache_code import package_of
from medvol.data.cache_describe import describe
from medvol.data.cache_key import chain_digest, item_keys, references
from medvol.errors import MedvolError
from medvol.transforms.load import LoadVolumed

SCALE = 2.0


def digest(value):
    return describe(value, what="step 1")


def scaled(image):
    return image * SCALE


@pytest.mark.parametrize(
    ("place", "described_by"),
    [
        ("site/{}.py", ["{}-1.0.dist-info/METADATA"]),  # pip install --target, --user, PYTHONPATH on a cluster
        ("site/{}/__init__.py", ["{}-1.0.dist-info/METADATA"]),
        ("lib/python3/dist-packages/{}.py", []),  # a distribution's own, without that folder being Python's
        ("project/{}.py", None),
        ("project/src/{}.py", []),  # an editable install leaves its description elsewhere
    ],
)
def test_a_package_stands_for_its_code_wherever_it_is_installed(tmp_path, monkeypatch, place, described_by):
    name = f"package{abs(hash(place))}"
    file = tmp_path / place.format(name)
    file.parent.mkdir(parents=True)
    file.write_text("import re\nPATTERN = re.compile('x')\n\ndef step(image):\n    return PATTERN, image\n")
    root = file.parent.parent if file.name == "__init__.py" else file.parent
    for described in described_by or ():
        (root / described.format(name)).parent.mkdir()
        (root / described.format(name)).write_text(f"Name: {name}\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(root)
    installed = "site" in place or "dist-packages" in place
    assert package_of(importlib.import_module(name).__name__) == (name if installed else "")
    if installed:  # what it holds is not looked at: a pattern could not be followed
        digest(sys.modules[name].step)


class Shift(Transform):
    OFFSET = 1.0

    def __init__(self, offset):
        self.offset = offset

    def __call__(self, data):
        return data + self.offset + self.OFFSET


@dataclass(frozen=True)
class Options:
    window: tuple[float, float] = (0.0, 1.0)
    table: dict[str, int] = field(default_factory=dict)


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value


class Cyclic:
    def __init__(self):
        self.me = self


def closure(value):
    return lambda image: image + value


def load_npy(data):
    return {**data, "image": torch.from_numpy(np.load(data["image"]))}


PAIRS = {
    "parameter": (lambda: Shift(1.0), lambda: Shift(1.5)),
    "MONAI parameter": (
        lambda: ScaleIntensityRanged("image", 0, 1, 0, 1),
        lambda: ScaleIntensityRanged("image", 0, 1, 0, 100),
    ),
    "lambda's code": (lambda: Lambdad("image", lambda x: x + 1), lambda: Lambdad("image", lambda x: x - 1)),
    "lambda's constant": (lambda: Lambdad("image", lambda x: x + 1), lambda: Lambdad("image", lambda x: x + 2)),
    "closure": (lambda: closure(1), lambda: closure(2)),
    "closure over an array": (lambda: closure(np.arange(3)), lambda: closure(np.arange(1, 4))),
    "default": (lambda: lambda x, y=1: x + y, lambda: lambda x, y=2: x + y),
    "keyword default": (lambda: lambda x, *, y=1: x + y, lambda: lambda x, *, y=2: x + y),
    "partial": (lambda: functools.partial(np.clip, a_min=0), lambda: functools.partial(np.clip, a_min=1)),
    "partial's function": (lambda: functools.partial(np.min, axis=0), lambda: functools.partial(np.max, axis=0)),
    "tensor": (lambda: Shift(torch.zeros(3)), lambda: Shift(torch.tensor([0.0, 0.0, 1e-7]))),
    "dtype of a tensor": (lambda: Shift(torch.zeros(2)), lambda: Shift(torch.zeros(2).double())),
    "shape of an array": (lambda: Shift(np.zeros((2, 3))), lambda: Shift(np.zeros((3, 2)))),
    "int and float": (lambda: Shift(1), lambda: Shift(1.0)),
    "int and bool": (lambda: Shift(1), lambda: Shift(True)),
    "text and number": (lambda: Shift("1"), lambda: Shift(1)),
    "list and tuple": (lambda: Shift([1]), lambda: Shift((1,))),
    "nesting": (lambda: Shift([[1], 2]), lambda: Shift([[1, 2]])),
    "neighbouring texts": (lambda: Shift(["ab", "c"]), lambda: Shift(["a", "bc"])),
    "dataclass field": (lambda: Shift(Options()), lambda: Shift(Options(window=(0.0, 2.0)))),
    "dictionary in a dataclass": (lambda: Shift(Options(table={"a": 1})), lambda: Shift(Options(table={"a": 2}))),
    "slot": (lambda: Shift(Slotted(1)), lambda: Shift(Slotted(2))),
    "wrapped transform": (
        lambda: Shift(Resized("image", (8, 8, 8))),
        lambda: Shift(Resized("image", (8, 8, 8), mode="nearest")),
    ),
    "transform's class": (lambda: Orientationd("image", "RAS", labels=None), lambda: CropForegroundd("image", "image")),
    "set": (lambda: Shift({1, 2}), lambda: Shift({1, 3})),
    "order in a Compose": (
        lambda: Compose([Shift(1), Shift(2)]),
        lambda: Compose([Shift(2), Shift(1)]),
    ),
    "map_items of a Compose": (lambda: Compose([Shift(1)]), lambda: Compose([Shift(1)], map_items=False)),
    "generator's seed": (lambda: Shift(np.random.default_rng(1)), lambda: Shift(np.random.default_rng(2))),
}


@pytest.mark.parametrize("name", PAIRS)
def test_key_changes_with(name):
    first, second = PAIRS[name]
    assert digest(first()) == digest(first()), "the same thing made twice has the same key"
    assert digest(first()) != digest(second())


def test_key_changes_with_a_global_that_a_function_reads(monkeypatch):
    before = digest(scaled)
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert digest(scaled) != before


def test_key_changes_with_a_method_and_a_class_attribute_of_the_users_class(monkeypatch):
    before = digest(Shift(1.0))
    monkeypatch.setattr(Shift, "OFFSET", 2.0)
    changed = digest(Shift(1.0))
    assert changed != before
    monkeypatch.setattr(Shift, "__call__", lambda self, data: data)
    assert digest(Shift(1.0)) != changed


def test_key_changes_with_a_function_that_the_function_calls(monkeypatch):
    def outer(image):
        return scaled(image)

    before = digest(outer)
    monkeypatch.setitem(globals(), "scaled", lambda image: image)
    assert digest(outer) != before


def test_key_changes_with_the_content_of_a_file_that_a_parameter_names(tmp_path):
    atlas = tmp_path / "atlas.npy"
    atlas.write_bytes(b"one")
    before = digest(Shift(str(atlas)))
    atlas.write_bytes(b"other")
    assert digest(Shift(str(atlas))) != before
    assert digest(Shift(atlas)) != digest(Shift(str(atlas)))


def test_key_of_a_transform_stays_when_it_has_run_or_was_pickled(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.random.default_rng(0).random((7, 8, 9)).astype(np.float32))
    chain = Compose(
        [
            LoadVolumed(keys="image"),
            EnsureChannelFirstd(keys="image"),
            Orientationd(keys="image", axcodes="LPS", labels=None),
            Spacingd(keys="image", pixdim=(1.1, 1.2, 1.3)),
            CropForegroundd(keys="image", source_key="image"),
            Resized(keys="image", spatial_size=(5, 6, 7)),
        ]
    )
    before = chain_digest(chain.transforms)
    chain({"case": "a", "image": str(path)})
    assert chain_digest(chain.transforms) == before
    assert chain_digest(pickle.loads(pickle.dumps(chain)).transforms) == before


def test_key_of_monais_own_loader_stays_when_it_has_read(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((7, 8, 9)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of optional codecs that are not installed
        load = LoadImaged(keys="image", reader="NumpyReader")
        nifti = LoadImaged(keys="image", reader=NibabelReader())
    nib.save(nib.Nifti1Image(np.zeros((7, 8, 9), np.int16), np.eye(4)), tmp_path / "a.nii")
    for step, name in ((load, "a.npy"), (nifti, "a.nii")):
        before = digest(step)
        step({"image": str(tmp_path / name)})
        assert digest(step) == before


@pytest.mark.slow
def test_key_is_the_same_in_another_process_whatever_its_hash_seed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from medvol.data.cache_describe import describe\n"
        "from monai.transforms import Compose, Lambdad, Spacingd\n"
        "import numpy as np\n"
        "LIMIT = set('abcdefghijklm')\n"
        "steps = [Spacingd('image', (1, 1, 2)), Lambdad('image', lambda x: x if 'a' in LIMIT else np.clip(x, 0, 1))]\n"
        "print(describe(steps, what='chain').hex())\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-W", "ignore", script],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
    assert len(found.pop().strip()) == 40


@pytest.mark.parametrize(
    "value",
    [
        Shift(threading.Lock()),
        Shift(logging.getLogger("x")),
        Cyclic(),
        np.sin,
        torch.nn.Linear(2, 2),
        Path,
        re_sub := "".join,
    ],
)
def test_harmless_and_odd_values_have_a_key(value):
    assert digest(value) == digest(value)


@pytest.mark.parametrize("value", [(n for n in range(3)), iter([1]), sys.__stderr__, memoryview(b"a")])
def test_value_without_a_key_is_refused_with_step_and_attribute(value):
    with pytest.raises(MedvolError, match=r"NOT_DESCRIBABLE: step 1 \(Lambdad\): .*(closure value).*AfterCache"):
        chain_digest([Lambdad("image", closure(value))])


def test_data_set_with_a_step_without_a_key_is_refused_but_not_behind_a_random_one(tmp_path):
    step = Lambdad("image", closure(iter([1])))
    with pytest.raises(MedvolError, match="NOT_DESCRIBABLE"):
        CachedVolumes([{"case": "a"}], [step], cache_dir=tmp_path)
    CachedVolumes([{"case": "a"}], [RandFlipd("image"), step], cache_dir=tmp_path)


def test_versions_and_metadata_tracking_are_in_the_key(monkeypatch):
    before = chain_digest([])
    set_track_meta(False)
    try:
        assert chain_digest([]) != before
    finally:
        set_track_meta(True)
    assert {line.split()[0] for line in cache_key.versions().splitlines()} == {"entry", "medvol", *cache_key.PACKAGES}
    assert "absent" not in cache_key.versions()
    monkeypatch.setattr(cache_key, "versions", lambda: "monai 99")
    assert chain_digest([]) != before


def test_every_field_of_the_item_is_in_the_key(tmp_path):
    base = {"case": "a", "label": 1, "age": 40.0, "extra": [1, None]}
    changed = [base | {"case": "b"}, base | {"label": 2}, base | {"age": None}, base | {"extra": [1]}]
    keys = item_keys([base, dict(base), *changed], b"")
    assert keys[0] == keys[1]
    assert len(set(keys)) == 1 + len(changed)


def rewritten(path, tmp_path):
    dataset = CachedVolumes([{"case": "a", "image": str(path)}], load_npy, cache_dir=tmp_path / "cache", progress=False)
    return dataset[0]["image"]


def test_file_rewritten_with_the_same_size_is_seen(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((7, 8, 9), np.int16))
    assert int(rewritten(path, tmp_path).sum()) == 0
    np.save(path, np.ones((7, 8, 9), np.int16))
    assert int(rewritten(path, tmp_path).sum()) == 504


def test_file_changed_with_size_and_time_kept_is_seen_at_its_ends(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros(200_000, np.int16))
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    assert int(rewritten(path, tmp_path)[-1]) == 0
    for offset, index, value in ((-1, -1, 256), (-400_000, 0, 1)):
        with path.open("r+b") as stream:
            stream.seek(offset, os.SEEK_END)
            stream.write(b"\x01")
        os.utime(path, ns=times)
        assert int(rewritten(path, tmp_path)[index]) == value


def test_file_with_another_time_alone_is_prepared_anew(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros(4))
    first = item_keys([str(path)], b"")
    os.utime(path, ns=(1, 1))
    assert item_keys([str(path)], b"") != first


def test_change_is_seen_by_fill_of_the_same_data_set(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.zeros(4))
    dataset = CachedVolumes([{"case": "a", "image": str(path)}], load_npy, cache_dir=tmp_path / "cache", progress=False)
    dataset.fill()
    np.save(path, np.ones(4))
    assert dataset[0]["image"].sum() == 0, "sources are looked at once per life"
    assert dataset.fill().misses == 2
    assert dataset[0]["image"].sum() == 4


def test_references_name_files_folders_rows_and_lists_but_not_words(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.zeros((3, 4)))
    (tmp_path / "train").mkdir()
    monkeypatch.chdir(tmp_path)
    item = {
        "case": "train",
        "split": "train",
        "image": [f"{tmp_path}/a.npy#2", str(tmp_path / "train")],
        "mask": tmp_path / "a.npy",
        "remark": "left # of lesions \0",
        "missing": str(tmp_path / "none.nii"),
        "number": 3,
    }
    assert list(references(item)) == [tmp_path / "a.npy", tmp_path / "train", tmp_path / "a.npy"]


def test_file_added_to_a_folder_changes_the_key(tmp_path):
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "1.dcm").write_bytes(b"one")
    item = {"case": "a", "image": f"{folder}#1.2.3"}
    before = item_keys([item], b"")
    (folder / "2.dcm").write_bytes(b"two")
    assert item_keys([item], b"") != before


def test_voxels_beside_their_header_are_a_part_of_the_key(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(8))
    header = "ObjectType = Image\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile = a.raw\n"
    (tmp_path / "a.mhd").write_text(header)
    before = item_keys([str(tmp_path / "a.mhd")], b"")
    (tmp_path / "a.raw").write_bytes(b"\x01" * 8)
    assert item_keys([str(tmp_path / "a.mhd")], b"") != before


def test_file_that_cannot_be_read_names_the_case(tmp_path, monkeypatch):
    path = tmp_path / "a.npy"
    path.write_bytes(b"x")

    def refuse(_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(cache_key, "_fingerprint", refuse)
    with pytest.raises(MedvolError, match=r"CANNOT_READ: case k, .*a.npy: Permission denied"):
        item_keys([{"case": "k", "image": str(path)}], b"")


def medvol_imports(path):
    """Yield the files of medvol that a file of medvol imports."""
    root = Path(cache_key.medvol.__file__).parent
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
        for name in names:
            file = root.parent.joinpath(*name.split(".")).with_suffix(".py")
            if name.startswith("medvol.") and file.is_file():
                yield file


def test_every_module_that_a_cached_step_runs_is_in_the_key(monkeypatch):
    root = Path(cache_key.medvol.__file__).parent
    reached, ahead = set(), list(root.glob("transforms/*.py"))
    while ahead:
        file = ahead.pop()
        if file not in reached:
            reached.add(file)
            ahead.extend(medvol_imports(file))
    hashed = set()
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (hashed.add(path), read_bytes(path))[1])
    assert len(cache_key._source_digest()) == 16
    makes_no_voxel = {root / "errors.py", root / "metrics" / "masks.py"}  # words of refusals, parts of predictions
    assert reached - hashed == makes_no_voxel
