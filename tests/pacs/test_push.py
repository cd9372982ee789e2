"""Pushing by DICOMweb: bounded batches, each instance confirmed, nothing sent twice."""

import pydicom
import pytest

from medvol.errors import MedvolError
from medvol.io import pacs_push
from medvol.io.pacs_push import push
from medvol.io.pacs_transfer import connect


@pytest.fixture
def send(web, tmp_path, quick):
    def run(*names, **options):
        peer = connect(web.address, quick)
        return push(peer, web.address, [tmp_path / name for name in names], access=quick, **options)

    return run


def test_everything_below_a_folder_arrives_byte_for_byte_and_once(send, archive, write, tmp_path, web):
    first, second = write("all/a"), write("all/b", number=2, modality="MR")
    (tmp_path / "all" / "notes.txt").write_text("no image")
    outcome = send("all")
    assert (outcome.is_whole, outcome.others) == (True, 1)
    assert sorted((row.modality, row.moved) for row in outcome.rows) == [("CT", 9), ("MR", 9)]
    assert {one.SOPInstanceUID: one.PixelData for one in archive.images} == {
        one.SOPInstanceUID: one.PixelData for one in first + second
    }
    outcome = send("all")
    assert ([row.before for row in outcome.rows], outcome.is_whole) == ([9, 9], True)
    assert len(archive.received) == 18
    send("all", again=True)
    assert len(archive.received) == 36


def test_batches_are_bounded_in_files_and_bytes(send, archive, write, web, monkeypatch):
    write("a")
    monkeypatch.setattr(pacs_push, "BATCH_FILES", 4)
    assert send("a").is_whole
    assert len(web.server.log) == 3  # 4 + 4 + 1
    monkeypatch.setattr(pacs_push, "BATCH_BYTES", 1)
    send("a", again=True)
    assert len(web.server.log) == 3 + 9


def test_a_dropped_connection_is_taken_up_and_a_lost_one_goes_on_later(send, archive, write, web, monkeypatch):
    write("a")
    monkeypatch.setattr(pacs_push, "BATCH_FILES", 3)
    web.server.statuses = [None, 503, None, 503, 503, 503]
    outcome = send("a")
    (row,) = outcome.rows
    assert (row.verdict, row.moved, row.expected, outcome.untried) == ("SERVER_ERROR", 6, 9, 3)
    assert "6 of 9" in row.reason
    outcome = send("a")
    assert (outcome.rows[0].before, outcome.rows[0].moved, outcome.is_whole) == (6, 3, True)
    assert sorted(archive.received) == sorted(set(archive.received))


def test_an_instance_that_is_refused_is_told_and_sent_again_next_time(send, archive, write):
    datasets = write("a")
    archive.refused = {datasets[2].SOPInstanceUID}
    outcome = send("a")
    (row,) = outcome.rows
    assert (row.verdict, row.moved, row.expected, outcome.is_whole) == ("PARTIAL", 8, 9, False)
    assert "8 of 9" in row.reason
    assert "0xa700" in row.reason
    archive.refused = set()
    assert send("a").rows[0].moved == 1


def test_a_batch_that_is_refused_whole_is_sent_one_by_one(send, archive, write, web):
    datasets = write("a")
    web.server.statuses = [400]
    assert send("a").is_whole
    assert len(web.server.log) == 1 + 9
    archive.refused = {one.SOPInstanceUID for one in datasets}
    assert send("a", again=True).rows[0].moved == 0


def test_what_a_service_does_not_confirm_does_not_count(send, write, web):
    write("a")
    web.server.is_silent = True
    (row,) = send("a").rows
    assert (row.verdict, row.moved) == ("PARTIAL", 0)
    assert "does not confirm" in row.reason


def test_a_wrong_password_ends_at_once(send, write, web):
    write("a")
    web.server.password = "Basic another"
    with pytest.raises(MedvolError, match="NOT_AUTHORISED"):
        send("a")
    assert len(web.server.log) == 1


def test_a_wrong_address_ends_at_once(write, web, tmp_path, quick):
    write("a")
    web.server.statuses = [404]
    with pytest.raises(MedvolError, match="NOT_FOUND.*path of the address"):
        push(connect(web.address, quick), web.address, [tmp_path / "a"], access=quick)
    assert len(web.server.log) == 1


def test_a_journal_holds_for_one_service_only_and_no_uid(send, archive, write, tmp_path, web):
    datasets = write("a")
    send("a")
    (journal,) = (tmp_path / "a" / ".pacs").iterdir()
    assert datasets[0].SOPInstanceUID not in journal.read_text()
    journal.rename(journal.with_name("sent_another.jsonl"))
    assert send("a").rows[0].moved == 9


def test_a_file_that_changed_is_sent_again(send, archive, write, tmp_path):
    write("a")
    send("a")
    path = sorted((tmp_path / "a").glob("*.dcm"))[0]
    dataset = pydicom.dcmread(path)
    dataset.SeriesDescription = "a longer description"
    dataset.save_as(path)
    assert send("a").rows[0].moved == 1


def test_two_files_of_one_uid_are_sent_once_if_equal_and_refused_if_not(send, archive, write, tmp_path):
    write("all/a")
    source = tmp_path / "all" / "a" / "IM0001.dcm"
    copy = tmp_path / "all" / "copy.dcm"
    copy.write_bytes(source.read_bytes())
    assert send("all").rows[0].expected == 9
    copy.write_bytes(source.read_bytes()[:-2] + b"xx")
    with pytest.raises(MedvolError, match="SAME_UID"):
        send("all", again=True)


def test_a_folder_without_dicom_is_refused(send, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("no image")
    with pytest.raises(MedvolError, match="NO_DICOM"):
        send("a")
    with pytest.raises(MedvolError, match="NOT_FOUND"):
        send("absent")


def test_no_log_quotes_what_stands_in_a_header(tmp_path, write, caplog):
    (dataset, *_) = write("a")
    changed = next(one for one in sorted((tmp_path / "a").rglob("*")) if one.is_file())
    uid = str(dataset.StudyInstanceUID).encode()
    # pydicom warns of a UID with letters in it, with the value, through a logger as well.
    changed.write_bytes(changed.read_bytes().replace(uid, b"SECRET".ljust(len(uid), b"X")))
    pacs_push.collect([tmp_path / "a"])
    assert "SECRET" not in caplog.text
