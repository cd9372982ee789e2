"""The folder: several processes, killed ones, damaged and foreign files, a full disk, the limit."""

import contextlib
import errno
import multiprocessing
import os
import secrets
import signal
import subprocess
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from medvol.data import cache_store
from medvol.data.cache import CachedVolumes

COUNT = 12
FORK = multiprocessing.get_context("fork")


class Make:
    """Makes a volume from its number and leaves a note that it ran."""

    def __init__(self, notes, pause_s=0.0):
        self.notes = str(notes)
        self.pause_s = pause_s

    def __call__(self, data):
        (Path(self.notes) / f"{data['case']} {secrets.token_hex(4)}").touch()
        time.sleep(self.pause_s)
        return {**data, "image": torch.full((1, 7, 8, 9), data["number"], dtype=torch.int16)}


@pytest.fixture
def notes(tmp_path):
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


def made(notes):
    return sorted(path.name.split()[0] for path in notes.iterdir())


def volumes(tmp_path, notes, *, count=COUNT, pause_s=0.0, folder="cache", **options):
    items = [{"case": f"c{number:02d}", "number": number} for number in range(count)]
    return CachedVolumes(items, Make(notes, pause_s), cache_dir=tmp_path / folder, progress=False, **options)


def entries(tmp_path, folder="cache"):
    return sorted((tmp_path / folder).glob("*.mvcache"))


def assert_right(dataset, times=1):
    for _ in range(times):
        for number, item in enumerate(dataset):
            assert item["image"].dtype == torch.int16
            assert (item["image"] == number).all()


def go_through(tmp_path, notes, queue):
    try:
        dataset = volumes(tmp_path, notes, pause_s=0.02, ram_bytes=0)
        for _ in range(2):
            assert_right(dataset)
        queue.put((None, dataset.stats))
    except BaseException as error:
        queue.put((repr(error), None))


def test_four_processes_at_once_make_no_error_and_compute_each_entry_once(tmp_path, notes):
    queue = FORK.Queue()
    processes = [FORK.Process(target=go_through, args=(tmp_path, notes, queue)) for _ in range(4)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert [error for error, _ in results if error] == []
    assert made(notes) == [f"c{number:02d}" for number in range(COUNT)]
    assert sum(stats.misses for _, stats in results) == COUNT
    assert sum(stats.damaged + stats.uncached for _, stats in results) == 0
    assert len(list((tmp_path / "cache").iterdir())) == COUNT, "no lock and no part file is left"


def fill(tmp_path, notes):
    volumes(tmp_path, notes, pause_s=0.01).fill()


@pytest.mark.parametrize("after", [1, 5])
def test_refill_after_kill_9_completes_what_is_missing(tmp_path, notes, after):
    process = FORK.Process(target=fill, args=(tmp_path, notes))
    process.start()
    deadline = time.monotonic() + 30
    while len(entries(tmp_path)) < after and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    complete = len(entries(tmp_path))
    assert after <= complete < COUNT
    dataset = volumes(tmp_path, notes, pause_s=0.01)
    stats = dataset.fill()
    assert (stats.misses, stats.damaged) == (COUNT - complete, 0)
    assert_right(dataset)


def test_what_a_killed_writer_leaves_is_removed_and_what_a_live_one_holds_is_not(tmp_path, notes):
    volumes(tmp_path, notes).fill()
    folder = tmp_path / "cache"
    key = entries(tmp_path)[0].stem
    dead, alive, young = (folder / f"{key}.{name * 16}.mvpart" for name in "abc")
    lock = folder / f"{key}.mvlock"
    for path in (dead, alive, young, lock):
        path.write_bytes(b"half")
    for path in (dead, alive, lock):
        os.utime(path, (1, 1))
    with alive.open() as stream:
        assert cache_store._try_lock(stream.fileno())
        volumes(tmp_path, notes)
    assert [path.exists() for path in (dead, lock, alive, young)] == [False, False, True, True]


def test_lock_that_is_never_released_does_not_stop_the_others(tmp_path, notes, monkeypatch):
    monkeypatch.setattr(cache_store, "LOCK_PATIENCE_S", 0.1)
    dataset = volumes(tmp_path, notes, count=1)
    with dataset._tiers.folder.only_one(dataset._keys[0]):
        assert_right(volumes(tmp_path, notes, count=1))


DAMAGE = {
    "torn": lambda content: content[: len(content) // 2],
    "bit flip in the voxels": lambda content: content[:-200] + bytes([content[-200] ^ 4]) + content[-199:],
    "bit flip in the header": lambda content: content[:90] + bytes([content[90] ^ 1]) + content[91:],
    "zero length": lambda content: b"",
    "text": lambda content: b"not an entry\n",
    "zeros": lambda content: bytes(len(content)),
    "longer": lambda content: content + b"x",
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("ram_bytes", [0, 2**20])
def test_damaged_entry_is_recomputed_and_counted(tmp_path, notes, name, ram_bytes):
    volumes(tmp_path, notes, count=2).fill()
    victim = entries(tmp_path)[0]
    victim.write_bytes(DAMAGE[name](victim.read_bytes()))
    dataset = volumes(tmp_path, notes, count=2, ram_bytes=ram_bytes)
    assert_right(dataset)
    assert (dataset.stats.damaged, dataset.stats.misses) == (1, 1)
    again = volumes(tmp_path, notes, count=2)
    assert_right(again)
    assert (again.stats.damaged, again.stats.misses) == (0, 0)


def test_entry_of_another_case_under_this_name_is_recomputed(tmp_path, notes):
    volumes(tmp_path, notes, count=2).fill()
    one, other = entries(tmp_path)
    one.write_bytes(other.read_bytes())
    dataset = volumes(tmp_path, notes, count=2)
    assert_right(dataset)
    assert dataset.stats.damaged == 1


def test_entry_replaced_or_removed_while_in_use_gives_the_right_voxels(tmp_path, notes):
    dataset = volumes(tmp_path, notes, count=2, ram_bytes=0)
    dataset.fill()
    one, other = entries(tmp_path)
    one.unlink()
    other.write_bytes(b"half written by a stranger")
    assert_right(dataset)
    assert dataset.stats.misses == 4


def test_foreign_files_are_never_touched(tmp_path, notes):
    folder = tmp_path / "cache"
    (folder / "sub").mkdir(parents=True)
    strangers = {
        folder / "precious.txt": b"keep",
        folder / "a.mvcache": b"MEDVOLC\x01 but no key for a name",
        folder / f"{'0' * 40}.mvcache": b"named like an entry, but not one",
        folder / "notes.mvpart": b"x",
        folder / "sub" / f"{'1' * 40}.mvcache": b"MEDVOLC",
    }
    for path, content in strangers.items():
        path.write_bytes(content)
        os.utime(path, (1, 1))
    size = _entry_size(tmp_path, notes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            dataset = volumes(tmp_path, notes, max_disk_bytes=2 * size, ram_bytes=0)
            dataset.fill()
            dataset.set_data(dataset.data[:3])
            dataset.fill()
    assert {path: path.read_bytes() for path in strangers} == strangers


def _entry_size(tmp_path, notes):
    dataset = volumes(tmp_path, notes, count=1, folder="measure")
    return dataset.fill().disk_bytes


def test_least_recently_used_entries_of_others_make_room(tmp_path, notes):
    size = _entry_size(tmp_path, notes)
    old = volumes(tmp_path, notes, count=6)
    old.fill()
    for age, key in enumerate(old._keys):
        os.utime(old._tiers.folder.entry_path(key), (1000 + age, 1000 + age))
    volumes(tmp_path, notes, count=1)[0]  # using the oldest makes it the newest
    items = [{"case": f"n{number}", "number": number} for number in range(3)]
    new = CachedVolumes(items, Make(notes), cache_dir=tmp_path / "cache", progress=False, max_disk_bytes=6 * size + 100)
    new.fill()
    left = {path.stem for path in entries(tmp_path)}
    assert left == {old._keys[0], old._keys[4], old._keys[5], *new._keys}
    assert new.stats.disk_bytes <= 6 * size + 100


def test_study_larger_than_the_limit_keeps_what_fits_and_says_so_once(tmp_path, notes):
    size = _entry_size(tmp_path, notes)
    dataset = volumes(tmp_path, notes, max_disk_bytes=4 * size + 50, ram_bytes=0)
    with pytest.warns(UserWarning, match="max_disk_bytes") as caught:
        assert_right(dataset, times=3)
    assert len(caught) == 1
    assert len(entries(tmp_path)) == 4
    stats = dataset.stats
    assert stats.disk_bytes <= 4 * size + 50
    assert (stats.hits, stats.misses, stats.uncached) == (2 * 4, 4 + 3 * (COUNT - 4), 3 * (COUNT - 4))


def test_limit_holds_with_several_writers(tmp_path, notes):
    size = _entry_size(tmp_path, notes)

    def write(offset):
        warnings.simplefilter("ignore")
        items = [{"case": f"w{offset}", "number": number} for number in range(20)]
        CachedVolumes(items, Make(notes), cache_dir=tmp_path / "cache", progress=False, max_disk_bytes=30 * size).fill()

    processes = [FORK.Process(target=write, args=(offset,)) for offset in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(entries(tmp_path)) <= 30 + len(processes), "one entry too many per process that writes at once"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("ram_bytes", [0, 2**20])
def test_disk_trouble_leaves_one_warning_and_nothing_half_written(tmp_path, notes, monkeypatch, number, ram_bytes):
    real, written = os.write, []

    def full(descriptor, data):
        if len(written) >= 7:
            raise OSError(number, os.strerror(number))
        written.append(1)
        return real(descriptor, bytes(data)[:1000])

    dataset = volumes(tmp_path, notes, ram_bytes=ram_bytes)
    monkeypatch.setattr(os, "write", full)
    with pytest.warns(UserWarning, match="cannot take more") as caught:
        assert_right(dataset, times=2)
    assert len(caught) == 1
    monkeypatch.undo()
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".mvcache"] * len(entries(tmp_path))
    assert dataset.stats.uncached >= COUNT - len(entries(tmp_path))
    if ram_bytes:
        assert dataset.stats.misses == COUNT, "what fits into memory is not computed again"
    again = volumes(tmp_path, notes)
    assert_right(again)
    assert again.stats.damaged == 0


@contextlib.contextmanager
def tiny_disk(path, options):
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    try:
        mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small file system needs to be root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def test_the_last_part_of_a_disk_is_left_free(tmp_path, notes, monkeypatch):
    size = _entry_size(tmp_path, notes)
    room = cache_store.SPARE_BYTES + 3 * size + size // 2

    def usage(folder):
        return SimpleNamespace(total=2**40, free=room - sum(path.stat().st_size for path in entries(tmp_path)))

    monkeypatch.setattr(cache_store.shutil, "disk_usage", usage)
    dataset = volumes(tmp_path, notes, ram_bytes=0)
    with pytest.warns(UserWarning, match="kept free for models and results") as caught:
        assert_right(dataset, times=2)
    assert len(caught) == 1
    assert len(entries(tmp_path)) == 3


def test_entries_of_others_make_room_on_a_disk_that_is_nearly_full(tmp_path, notes, monkeypatch):
    size = _entry_size(tmp_path, notes)
    volumes(tmp_path, notes, count=4).fill()
    # A twentieth of this disk is one entry, and half an entry is free beside that.
    usage = SimpleNamespace(total=20 * size, free=size + size // 2)
    monkeypatch.setattr(cache_store.shutil, "disk_usage", lambda folder: usage)
    new = CachedVolumes([{"case": "n0", "number": 0}], Make(notes), cache_dir=tmp_path / "cache", progress=False)
    new.fill()
    left = {path.stem for path in entries(tmp_path)}
    assert left >= set(new._keys)
    assert len(left) == 4


def test_really_full_disk_is_survived(tmp_path, notes, monkeypatch):
    monkeypatch.setattr(cache_store, "_room_on_disk", lambda folder: 2**40)  # as if another filled it meanwhile
    with tiny_disk(tmp_path / "cache", "size=24k"):
        dataset = volumes(tmp_path, notes, ram_bytes=0)
        with pytest.warns(UserWarning, match="No space left on device") as caught:
            assert_right(dataset, times=2)
        assert len(caught) == 1
        stored = entries(tmp_path)
        assert 0 < len(stored) < COUNT
        assert sorted((tmp_path / "cache").iterdir()) == stored


def test_read_only_folder_is_survived(tmp_path, notes):
    with tiny_disk(tmp_path / "cache", "ro,size=24k"):
        dataset = volumes(tmp_path, notes)
        with pytest.warns(UserWarning, match="Read-only"):
            assert_right(dataset)
        assert_right(dataset)
        assert (dataset.stats.misses, dataset.stats.uncached) == (COUNT, COUNT)


def test_workers_warn_once_together_on_a_full_disk(tmp_path, notes, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_store.cache_entry, "write", full)
    dataset = volumes(tmp_path, notes, ram_bytes=0)
    with pytest.warns(UserWarning, match="No space left"):
        dataset[0]
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=2)
    assert sum(len(batch["case"]) for batch in loader) == COUNT
    assert dataset.stats.uncached == COUNT + 1
    dataset.set_data(dataset.data)
    assert_right(dataset)  # tries the disk again, and says nothing new


def test_process_that_warned_spares_the_others_the_warning(tmp_path, notes):
    counts = volumes(tmp_path, notes)._counts
    process = FORK.Process(target=lambda: os._exit(0 if counts.warn_once() else 1))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert not counts.warn_once()


def test_cache_dir_that_is_a_file_is_refused(tmp_path, notes):
    (tmp_path / "cache").write_text("x")
    with pytest.raises(cache_store.MedvolError, match="NOT_A_FOLDER"):
        volumes(tmp_path, notes)


def test_entries_that_two_chains_made_live_in_one_folder(tmp_path, notes):
    for pause_s in (0.0, 0.001):
        volumes(tmp_path, notes, pause_s=pause_s).fill()
    assert len(entries(tmp_path)) == 2 * COUNT
    assert np.unique([path.stat().st_size for path in entries(tmp_path)]).size <= 2
