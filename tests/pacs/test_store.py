"""The folder of a pull: what is written to its end counts, and nothing else."""

import errno

import pytest

from medvol.errors import MedvolError
from medvol.io.pacs_query import RemoteSeries
from medvol.io.pacs_store import SeriesFolder

REMOTE = RemoteSeries("1.2", "1.2.3", "CT", 0, {"1.2.3.1": "", "1.2.3.2": ""})


def test_an_instance_counts_once_it_is_written_and_stays_for_the_next_run(tmp_path):
    local = SeriesFolder(tmp_path, REMOTE)
    local.keep("1.2.3.2", lambda stream: stream.write(b"abc"))
    assert (local.missing(), local.bytes) == (["1.2.3.1"], 3)
    assert SeriesFolder(tmp_path, REMOTE).missing() == ["1.2.3.1", "1.2.3.2"]  # not yet for sure on disk
    local.sync()
    assert SeriesFolder(tmp_path, REMOTE).missing() == ["1.2.3.1"]
    assert not local.place.exists()


def test_a_full_disk_is_told_and_what_was_begun_does_not_count(tmp_path):
    def write(stream):
        stream.write(b"abc")
        raise OSError(errno.ENOSPC, "No space left on device")

    local = SeriesFolder(tmp_path, REMOTE)
    with pytest.raises(MedvolError, match="DISK_FULL.*run it again"):
        local.keep("1.2.3.1", write)
    local.sync()
    assert len(SeriesFolder(tmp_path, REMOTE).missing()) == 2


def test_a_folder_that_is_a_file_is_told(tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(MedvolError, match="CANNOT"):
        SeriesFolder(tmp_path / "out", REMOTE).keep("1.2.3.1", lambda stream: stream.write(b"abc"))


def test_lines_that_are_not_ours_count_for_nothing(tmp_path):
    local = SeriesFolder(tmp_path, REMOTE)
    local.keep("1.2.3.1", lambda stream: stream.write(b"abc"))
    local.sync()
    (journal,) = (tmp_path / ".pacs").glob("*.jsonl")
    journal.write_text(journal.read_text() + '\nnull\n[1, 2]\n["a"]\n{"b": 1}\n["../../c", "x"]\n\xff')
    assert SeriesFolder(tmp_path, REMOTE).missing() == ["1.2.3.2"]
