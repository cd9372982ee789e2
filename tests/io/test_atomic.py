"""Files written whole or not at all, on a disk that fills while torch writes to it."""

import errno
import os
import signal
import threading

import pytest
import torch

from medvol.errors import MedvolError
from medvol.io import atomic
from medvol.io.atomic import interruptions_wait, write_atomically


class FullAfter:
    """A file that takes `room` bytes and then none, as one on a full disk does."""

    def __init__(self, stream, room):
        self.stream, self.room = stream, room

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.stream.write(data)

    def __getattr__(self, name):
        return getattr(self.stream, name)


def save(path, tensor, room=None):
    """Save a tensor as checkpoints are saved, onto a disk that has `room` bytes left."""
    write_atomically(path, lambda stream: torch.save(tensor, stream if room is None else FullAfter(stream, room)))


@pytest.mark.parametrize("room", [0, 100, 1_000, 39_000, 40_300])  # of 41 kB: from the first byte to the directory
def test_a_disk_that_fills_while_torch_writes_is_refused_by_name(tmp_path, room):
    save(tmp_path / "checkpoint.pt", torch.zeros(3))
    with pytest.raises(MedvolError, match=r"DISK_FULL: .*checkpoint\.pt.*the old file is intact"):
        save(tmp_path / "checkpoint.pt", torch.zeros(10_000), room)
    assert torch.equal(torch.load(tmp_path / "checkpoint.pt", weights_only=True), torch.zeros(3))
    assert [one.name for one in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_defect_while_writing_stays_a_defect(tmp_path):
    def write(stream):
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        write_atomically(tmp_path / "a", write)
    assert not list(tmp_path.iterdir())


def test_a_refusal_while_writing_stays_that_refusal(tmp_path):
    def write(stream):
        try:
            raise OSError(errno.ENOSPC, "of another file")
        except OSError as error:
            raise MedvolError("CANNOT_READ", found="another file") from error

    with pytest.raises(MedvolError, match="CANNOT_READ"):
        write_atomically(tmp_path / "a", write)


def test_a_folder_that_takes_nothing_is_refused(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(atomic.tempfile, "mkstemp", refuse)
    with pytest.raises(MedvolError, match="CANNOT_WRITE.*Permission denied"):
        save(tmp_path / "a", torch.zeros(3))


@pytest.fixture
def terminal():
    """Signals as a program in a terminal has them: those of this process may be ignored, as in a shell's background."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("terminal")
def test_a_first_interruption_waits_until_the_file_is_whole(tmp_path):
    def write(stream):
        signal.raise_signal(signal.SIGINT)
        stream.write(b"whole")

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a", write)
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"whole"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("terminal")
def test_a_second_interruption_does_not_wait_and_leaves_nothing(tmp_path):
    def write(stream):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        stream.write(b"whole")

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a", write)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("terminal")
def test_an_interruption_in_a_block_within_a_block_waits_for_both():
    done = []

    def work():
        with interruptions_wait():
            with interruptions_wait():
                signal.raise_signal(signal.SIGINT)
                done.append("inner")
            done.append("outer")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["inner", "outer"]


@pytest.mark.usefixtures("terminal")
def test_signals_that_the_process_ignores_stay_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interruptions_wait():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_files_are_written_in_other_threads_too(tmp_path):
    thread = threading.Thread(target=lambda: write_atomically(tmp_path / "a", lambda stream: stream.write(b"whole")))
    thread.start()
    thread.join()
    assert (tmp_path / "a").read_bytes() == b"whole"
