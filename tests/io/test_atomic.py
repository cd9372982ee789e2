"""Files written whole or not at all, on a disk that fills while torch writes to it."""

import errno
import os

import pytest
import torch

from medvol.errors import MedvolError
from medvol.io import atomic
from medvol.io.atomic import write_atomically


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
