"""The file of an entry: it gives back what was put in, or says that it is damaged."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.data import MetaTensor

from medvol.data import cache_codec, cache_entry
from medvol.data.cache_entry import EntryDamaged

KEY = "0123456789abcdef" * 2 + "01234567"
DTYPES = ["bool", "u1", "i2", "<i4", ">i2", "i8", "u2", "u4", "f2", "f4", "f8", ">f8", "c8", "<U3", "S2", "<M8[s]"]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=13))
)
NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=5), st.complex_numbers())
TENSORS = hnp.arrays(
    st.sampled_from([np.dtype(name) for name in ("bool", "u1", "i2", "i8", "f4", "f8")]),
    hnp.array_shapes(min_dims=0, max_dims=4, max_side=9),
).map(lambda array: torch.from_numpy(array.copy()))
ITEMS = st.recursive(
    st.one_of(NUMBERS, ARRAYS, TENSORS, st.binary(max_size=9), TENSORS.map(lambda tensor: tensor.to(torch.bfloat16))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(max_size=4), st.integers()), inner, max_size=3),
    ),
    max_leaves=6,
)


def same(one, other):
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        one_bits, other_bits = (
            value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for value in (one, other)
        )
        return one.dtype == other.dtype and one.shape == other.shape and one_bits == other_bits
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other)


def through_a_file(item, folder):
    content, arrays = cache_codec.encode(item)
    header, head = cache_entry.pack(KEY, content, arrays)
    path = Path(folder) / "entry"
    with path.open("wb") as stream:
        cache_entry.write(stream.fileno(), head, arrays)
    assert path.stat().st_size == header.length
    return read(path)


def read(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        header = cache_entry.read_header(descriptor, KEY)
        arrays = cache_entry.read_arrays(descriptor, header)
        cache_entry.verify(header, arrays)
    finally:
        os.close(descriptor)
    return cache_codec.build(cache_codec.template(header.content), arrays)


@settings(max_examples=50, deadline=None)
@given(ITEMS)
def test_any_item_comes_back_from_disk_as_it_was(item):
    with tempfile.TemporaryDirectory() as folder:
        assert same(through_a_file(item, folder), item)


@settings(max_examples=20, deadline=None)
@given(
    hnp.arrays(np.float64, (3, 4)),
    st.dictionaries(st.text(max_size=4), NUMBERS.filter(lambda x: "nan" not in repr(x)), max_size=4),
)
def test_meta_tensor_comes_back_with_affine_meta_and_operations(offsets, meta):
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3] += torch.from_numpy(np.nan_to_num(offsets, posinf=1.0, neginf=-1.0))
    operations = [
        {"class": "Flip", "id": 12345, "tracing": True, "do_transforms": True, "extra_info": {"axes": (0, 1)}}
    ]
    image = MetaTensor(
        torch.arange(504).reshape(1, 7, 8, 9), affine=affine, meta=dict(meta), applied_operations=operations
    )
    with tempfile.TemporaryDirectory() as folder:
        back = through_a_file({"image": image}, folder)["image"]
    assert same(back.as_tensor(), image.as_tensor())
    assert torch.equal(back.affine, image.affine)
    assert {key: value for key, value in back.meta.items() if key in meta} == meta
    assert back.applied_operations[0] == operations[0] | {"id": "none"}


def test_arrays_lie_aligned_behind_the_header(tmp_path):
    big = np.arange(5000, dtype=np.float64)
    content, arrays = cache_codec.encode({"a": big, "b": big[:601]})
    header, head = cache_entry.pack(KEY, content, arrays)
    assert [place.offset % 64 for place in header.places] == [0, 0]
    assert len(head) == header.places[0].offset
    assert header.places[1].offset >= header.places[0].offset + big.nbytes


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_flipped_bit_is_found_or_does_no_harm(data):
    item = {"image": np.arange(1500, dtype=np.int16), "label": 1, "affine": np.eye(4)}
    with tempfile.TemporaryDirectory() as folder:
        through_a_file(item, folder)
        path = Path(folder) / "entry"
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        try:
            back = read(path)
        except EntryDamaged:
            return
        assert same(back, item), "a bit of the padding"


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5000))
def test_torn_file_is_found_at_any_length(length):
    with tempfile.TemporaryDirectory() as folder:
        through_a_file({"image": np.arange(3000, dtype=np.int16)}, folder)
        path = Path(folder) / "entry"
        whole = path.read_bytes()
        path.write_bytes(whole[: min(length, len(whole) - 1)])
        with pytest.raises(EntryDamaged):
            read(path)


def test_longer_file_foreign_text_and_entry_of_another_key_are_found(tmp_path):
    through_a_file({"a": 1}, tmp_path)
    path = tmp_path / "entry"
    whole = path.read_bytes()
    for content in (whole + b"\0", b"hello\n", b"\0" * 200, whole.replace(KEY.encode(), KEY[::-1].encode())):
        path.write_bytes(content)
        with pytest.raises(EntryDamaged):
            read(path)


def test_mapped_array_is_writable_private_and_outlives_the_file(tmp_path):
    array = np.arange(2**20, dtype=np.float64)
    through_a_file({"a": array}, tmp_path)
    path = tmp_path / "entry"
    before = path.read_bytes()
    first = read(path)["a"]
    assert not first.flags.owndata, "8 MiB are mapped"
    first[:] = 0
    assert path.read_bytes() == before
    second = read(path)["a"]
    path.unlink()
    np.testing.assert_array_equal(second, array)


def test_object_and_structured_arrays_and_foreign_objects_are_refused(tmp_path):
    for value in (np.array([object()]), np.zeros(2, [("a", "i4")]), {1, 2}, torch.zeros(2).to_sparse(), lambda: 0):
        with pytest.raises(cache_codec.MedvolError, match=r"NOT_CACHEABLE.*x\.y"):
            cache_codec.encode({"x": {"y": value}})


def test_build_shares_nothing_with_the_template():
    content, arrays = cache_codec.encode({"small": np.zeros(3), "list": [1, {"a": [2]}]})
    template = cache_codec.template(content)
    first = cache_codec.build(template, arrays)
    first["small"][:] = 1
    first["list"][1]["a"].append(3)
    again = cache_codec.build(template, arrays)
    assert again["list"] == [1, {"a": [2]}]
    assert not again["small"].any()
