"""npy and npz: no pickle, honest sizes, rows without their neighbours."""

import io
import os
import pickle
import threading
import time
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medvol.io import ReadOptions, npz, read_volume


@pytest.fixture
def stack() -> np.ndarray:
    return np.arange(5 * 7 * 8 * 9, dtype=np.int16).reshape(5, 7, 8, 9)


@pytest.fixture(autouse=True)
def empty_cache():
    npz._held.clear()
    yield
    npz._held.clear()


def test_an_array_has_no_geometry_and_says_so(tmp_path, voxels):
    np.save(tmp_path / "a.npy", voxels)
    volume = read_volume(tmp_path / "a.npy")
    np.testing.assert_array_equal(volume.array, voxels)
    assert volume.array.dtype == np.int16
    assert not volume.has_geometry
    np.testing.assert_array_equal(volume.affine, np.eye(4))
    assert volume.notes == ("the format has no geometry: the volume lives in voxel space",)


def test_a_spacing_can_be_assumed(tmp_path, voxels):
    np.save(tmp_path / "a.npy", voxels)
    volume = read_volume(tmp_path / "a.npy", options=ReadOptions(assume_spacing_mm=(1.0, 1.5, 3.0)))
    assert volume.has_geometry
    assert volume.spacing_mm == (1.0, 1.5, 3.0)
    assert "assumed" in volume.notes[0]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f4", ">f8", "|b1", "<u2"])
def test_rows_are_rows_in_every_order(tmp_path, stack, order, dtype):
    array = np.asarray(stack % 7, dtype=dtype, order=order)
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", x=array, y=array[:2])
    for reference in (f"{tmp_path}/a.npy#3", f"{tmp_path}/a.npz#x[3]"):
        volume = read_volume(reference)
        np.testing.assert_array_equal(volume.array, array[3])
        assert volume.array.dtype.isnative
        assert volume.array.flags.writeable
        assert volume.source == reference


def test_a_row_of_images_is_an_image(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((5, 7, 8), np.uint8))
    assert read_volume(f"{tmp_path}/a.npy#4").array.shape == (7, 8)


def test_channels_are_the_last_axis_only_where_the_caller_says_so(tmp_path, refused):
    np.save(tmp_path / "a.npy", np.zeros((5, 7, 8, 3), np.uint8))
    volume = read_volume(f"{tmp_path}/a.npy#4", options=ReadOptions(channels=True))
    assert (volume.array.shape, volume.channel_axis) == ((7, 8, 3), 2)
    assert read_volume(f"{tmp_path}/a.npy#4").channel_axis is None
    with refused("WRONG_DIMS", "(5, 7, 8, 3)", "channels=True"):
        read_volume(tmp_path / "a.npy")


def test_a_trailing_axis_of_one_as_keras_stacks_it_is_dropped_with_a_note(tmp_path, stack):
    np.save(tmp_path / "a.npy", stack[..., None])
    volume = read_volume(f"{tmp_path}/a.npy#2")
    np.testing.assert_array_equal(volume.array, stack[2])
    assert any("dropped" in note for note in volume.notes)


@pytest.mark.parametrize("row", [5, 99])
def test_a_row_behind_the_last_is_refused(tmp_path, stack, refused, row):
    np.save(tmp_path / "a.npy", stack)
    np.savez(tmp_path / "a.npz", x=stack)
    for reference in (f"{tmp_path}/a.npy#{row}", f"{tmp_path}/a.npz#x[{row}]"):
        with refused("BAD_REFERENCE", f"row {row}", "0 to 4"):
            read_volume(reference)


class _Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_a_pickle_is_refused_and_not_executed(tmp_path, refused):
    canary = tmp_path / "executed"
    objects = np.array([_Canary(canary)], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=objects)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(_Canary(canary)))
    for name in ("a.npy", "a.npz"):
        with refused("UNSAFE_NPY", name):
            read_volume(tmp_path / name)
    with refused("NOT_NPY"):
        read_volume(tmp_path / "b.npy")
    assert not canary.exists()


def test_two_arrays_need_a_name(tmp_path, stack, refused):
    np.savez(tmp_path / "a.npz", images=stack[0], labels=stack[1])
    with refused("AMBIGUOUS_NPZ", "images, labels", "a.npz#images"):
        read_volume(tmp_path / "a.npz")
    with refused("BAD_REFERENCE", "did you mean 'images'?"):
        read_volume(f"{tmp_path}/a.npz#image")
    np.testing.assert_array_equal(read_volume(f"{tmp_path}/a.npz#labels").array, stack[1])


def test_the_only_array_needs_no_name(tmp_path, stack):
    np.savez_compressed(tmp_path / "a.npz", stack[0])
    np.testing.assert_array_equal(read_volume(tmp_path / "a.npz").array, stack[0])


@pytest.mark.parametrize("kept", [5, 40, 127, 500])
def test_a_truncated_array_is_refused(tmp_path, voxels, refused, kept):
    np.save(tmp_path / "a.npy", voxels)
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data[:kept])
    with refused("TRUNCATED", "a.npy"):
        read_volume(tmp_path / "a.npy")


def test_an_empty_file_is_refused(tmp_path, refused):
    (tmp_path / "a.npy").touch()
    with refused("TRUNCATED"):
        read_volume(tmp_path / "a.npy")


def test_a_damaged_archive_is_refused(tmp_path, refused):
    array = np.random.default_rng(0).integers(0, 9, (7, 8, 9)).astype(np.uint8)
    np.savez_compressed(tmp_path / "a.npz", x=array)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    (tmp_path / "short.npz").write_bytes(data[:-20])
    data[150] ^= 0x40
    (tmp_path / "flip.npz").write_bytes(data)
    for name in ("short.npz", "flip.npz"):
        with refused("CORRUPT", name):
            read_volume(tmp_path / name)


def test_a_flip_in_an_uncompressed_archive_is_found_by_its_checksum(tmp_path, voxels, refused):
    np.savez(tmp_path / "a.npz", x=voxels)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[600] ^= 1
    (tmp_path / "a.npz").write_bytes(data)
    with refused("CORRUPT", "CRC"):
        read_volume(tmp_path / "a.npz")


def test_an_archive_without_arrays_is_refused(tmp_path, refused):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("word/document.xml", "<xml/>")
    with refused("NOT_NPZ"):
        read_volume(tmp_path / "a.npz")


def test_a_member_shorter_than_its_header_promises_is_refused(tmp_path, voxels, refused):
    buffer = io.BytesIO()
    np.save(buffer, voxels)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", buffer.getvalue()[:-8])
    with refused("CORRUPT", "bytes"):
        read_volume(tmp_path / "a.npz")


def _header(text: str) -> bytes:
    body = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


def test_a_promise_of_terabytes_is_refused(tmp_path, refused):
    head = _header("{'descr': '<f8', 'fortran_order': False, 'shape': (30000, 30000, 30000), }")
    (tmp_path / "a.npy").write_bytes(head)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", head)
    with refused("TRUNCATED"):
        read_volume(tmp_path / "a.npy")
    with refused("TOO_LARGE", "max_bytes"):
        read_volume(tmp_path / "a.npz")


def test_more_than_the_limit_is_refused(tmp_path, stack, refused):
    np.save(tmp_path / "a.npy", stack)
    options = ReadOptions(max_bytes=stack[0].nbytes)
    assert read_volume(f"{tmp_path}/a.npy#0", options=options).array.shape == (7, 8, 9)
    with refused("TOO_LARGE"):
        read_volume(tmp_path / "a.npy", options=options)


@pytest.mark.parametrize("dtype", ["c8", "U3", "S2", "M8[s]", [("a", "i2")]])
def test_what_is_no_number_is_refused(tmp_path, refused, dtype):
    np.save(tmp_path / "a.npy", np.zeros((7, 8, 9), dtype))
    with refused("BAD_DTYPE"):
        read_volume(tmp_path / "a.npy")


@pytest.mark.parametrize("shape", [(), (7,), (7, 8, 0), (2, 2, 7, 8, 9)])
def test_what_is_no_volume_is_refused(tmp_path, refused, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.int16))
    with refused("WRONG_DIMS"):
        read_volume(tmp_path / "a.npy")


def test_an_archive_is_decompressed_once_for_all_its_rows(tmp_path, stack, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", x=stack, y=stack[:2])
    reads = []
    original = npz._read_member
    monkeypatch.setattr(npz, "_read_member", lambda *args: reads.append(1) or original(*args))
    for row in (0, 4, 2, 0):
        np.testing.assert_array_equal(read_volume(f"{tmp_path}/a.npz#x[{row}]").array, stack[row])
    assert len(reads) == 1


def test_a_rewritten_archive_is_read_anew(tmp_path, stack):
    path = tmp_path / "a.npz"
    np.savez(path, x=stack)
    assert read_volume(f"{path}#x[0]").array[0, 0, 1] == 1
    np.savez(path, x=stack + 1)
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 1_000_000_000))
    assert read_volume(f"{path}#x[0]").array[0, 0, 1] == 2


def test_a_changed_row_does_not_change_the_next_read(tmp_path, stack):
    np.savez(tmp_path / "a.npz", x=stack)
    read_volume(f"{tmp_path}/a.npz#x[1]").array[:] = 0
    np.testing.assert_array_equal(read_volume(f"{tmp_path}/a.npz#x[1]").array, stack[1])


def test_the_number_of_held_arrays_is_bounded(tmp_path, stack, monkeypatch):
    for name in range(6):
        np.savez(tmp_path / f"{name}.npz", x=stack)
        read_volume(f"{tmp_path}/{name}.npz#x[0]")
    assert len(npz._held) == npz.HELD_ARRAYS
    monkeypatch.setattr(npz, "HELD_BYTES", stack.nbytes)
    read_volume(f"{tmp_path}/0.npz#x[0]")
    assert len(npz._held) == 1


def test_threads_share_one_opened_array(tmp_path, stack, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", x=stack)
    reads, wrong = [], []
    original = npz._read_member
    monkeypatch.setattr(npz, "_read_member", lambda *args: reads.append(1) or original(*args))

    def work(row):
        for _ in range(20):
            if not np.array_equal(read_volume(f"{tmp_path}/a.npz#x[{row}]").array, stack[row]):
                wrong.append(row)

    threads = [threading.Thread(target=work, args=(row,)) for row in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(reads), wrong) == (1, [])


@settings(max_examples=30, deadline=None)
@given(
    array=hnp.arrays(
        st.sampled_from([np.uint8, np.int8, np.int16, np.uint16, np.int32, np.uint32, np.float32]),
        hnp.array_shapes(min_dims=2, max_dims=3, max_side=5),
        elements={"allow_nan": False, "allow_infinity": False},
    )
)
def test_what_is_saved_is_read(tmp_path_factory, array):
    folder = tmp_path_factory.mktemp("npy")
    np.save(folder / "a.npy", array)
    np.savez_compressed(folder / "a.npz", array)
    for name in ("a.npy", "a.npz"):
        volume = read_volume(folder / name)
        assert volume.array.dtype == array.dtype
        np.testing.assert_array_equal(volume.array, array)


def test_the_array_held_for_all_rows_cannot_be_written(tmp_path, stack):
    np.savez(tmp_path / "a.npz", x=stack)
    read_volume(f"{tmp_path}/a.npz#x[1]")
    (held,) = npz._held.values()
    assert not held.flags.writeable
