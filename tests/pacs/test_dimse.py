"""Pulling and pushing by DICOM's own protocol, against a peer of pynetdicom in this process."""

import gc
import ssl
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless

from medvol.errors import MedvolError
from medvol.io import pacs_dimse
from medvol.io.pacs_address import Access, parse_address
from medvol.io.pacs_pull import pull
from medvol.io.pacs_push import push
from medvol.io.pacs_query import Request, uid_request
from medvol.io.pacs_transfer import connect


@pytest.fixture
def fetch(tmp_path, quick):
    def run(peer, datasets, folder="out", access=quick, series=""):
        request = uid_request(datasets[0].StudyInstanceUID, series)
        return pull(connect(peer.address, access), [request], tmp_path / folder, access=access)

    return run


def pixels(datasets):
    return {one.SOPInstanceUID: one.PixelData for one in datasets}


def test_a_study_arrives_whole(fetch, dicom, archive, write, tmp_path, pulled):
    first, second = write("a"), write("b", number=2, modality="MR")
    archive.add(*first, *second, *write("other", patient="other", study="2"))
    outcome = fetch(dicom, first)
    assert outcome.is_whole
    assert sorted((row.modality, row.moved, row.expected) for row in outcome.rows) == [("CT", 9, 9), ("MR", 9, 9)]
    assert pulled(tmp_path / "out") == pixels(first + second)
    assert fetch(dicom, first).rows[0].moved == 0
    assert dicom.retrievals == ["SERIES", "SERIES"]


def test_one_series_of_a_study_comes_alone(fetch, dicom, archive, write, tmp_path, pulled):
    first, second = write("a"), write("b", number=2)
    archive.add(*first, *second)
    assert fetch(dicom, first, series=second[0].SeriesInstanceUID).is_whole
    assert pulled(tmp_path / "out") == pixels(second)


def test_images_come_in_the_compression_in_which_they_are_stored(fetch, dicom, archive, write, tmp_path):
    datasets = write("a")
    for one in datasets:
        one.compress(RLELossless, generate_instance_uid=False)
    archive.add(*datasets)
    assert fetch(dicom, datasets).is_whole
    read = [pydicom.dcmread(path) for path in (tmp_path / "out").glob("*/*/*.dcm")]
    assert {one.file_meta.TransferSyntaxUID for one in read} == {RLELossless}
    by_uid = {one.SOPInstanceUID: one.pixel_array for one in read}
    for one in datasets:
        np.testing.assert_array_equal(by_uid[one.SOPInstanceUID], one.pixel_array)


def test_an_association_that_ends_is_taken_up_where_it_ended(fetch, dicom, archive, write, tmp_path, pulled):
    datasets = write("a")
    archive.add(*datasets)
    archive.drop_after = [5]
    assert fetch(dicom, datasets).is_whole
    assert pulled(tmp_path / "out") == pixels(datasets)
    assert dicom.retrievals == ["SERIES", "IMAGE"]
    assert sorted(archive.sent) == sorted(pixels(datasets))


def test_a_lost_peer_leaves_nothing_visible_and_the_next_pull_fetches_the_rest(
    fetch, dicom, archive, write, tmp_path, pulled
):
    datasets = write("a")
    archive.add(*datasets)
    archive.drop_after = [5, 0, 0, 0]
    (row,) = fetch(dicom, datasets).rows
    assert (row.verdict, row.moved, row.expected) == ("CONNECTION_LOST", 5, 9)
    assert not pulled(tmp_path / "out")
    archive.drop_after, archive.sent = [], []
    (row,) = fetch(dicom, datasets).rows
    assert (row.verdict, row.before, row.moved, len(archive.sent)) == ("whole", 5, 4, 4)
    assert pulled(tmp_path / "out") == pixels(datasets)


def test_a_missing_instance_makes_a_series_partial(fetch, dicom, archive, write, tmp_path, pulled):
    datasets = write("a")
    archive.add(*datasets)
    archive.lost = {datasets[0].SOPInstanceUID}
    (row,) = fetch(dicom, datasets).rows
    assert (row.verdict, row.moved, row.expected) == ("PARTIAL", 8, 9)
    assert not pulled(tmp_path / "out")


def test_an_instance_of_another_patient_is_not_written(fetch, dicom, archive, write, tmp_path, pulled, monkeypatch):
    datasets, foreign = write("a"), write("b", patient="other")
    archive.add(*datasets)
    chosen = archive.chosen
    monkeypatch.setattr(archive, "chosen", lambda keys: [foreign[0], *chosen(keys)])
    assert fetch(dicom, datasets).is_whole
    assert pulled(tmp_path / "out") == pixels(datasets)


def test_an_instance_without_end_is_cut_off(fetch, dicom, archive, write, tmp_path, pulled, monkeypatch):
    datasets = write("a")
    archive.add(*datasets)
    monkeypatch.setattr(pacs_dimse, "INSTANCE_LIMIT", 1000)
    (row,) = fetch(dicom, datasets).rows
    assert (row.verdict, pulled(tmp_path / "out")) == ("TOO_LARGE", {})


def test_a_patient_is_asked_for_by_their_number(dicom, archive, write, tmp_path, quick):
    archive.add(*write("a"), *write("b", patient="other"))
    request = [Request("row 2", {"PatientID": "other", "Modality": "CT"})]
    assert len(pull(connect(dicom.address, quick), request, tmp_path / "out", access=quick).rows) == 1
    archive.ignores = {"PatientID"}
    request = [Request("row 2", {"PatientID": "nobody"})]
    with pytest.raises(MedvolError, match="NOTHING_FOUND"):
        pull(connect(dicom.address, quick), request, tmp_path / "out", access=quick)


def test_files_arrive_and_those_refused_are_told(dicom, archive, write, tmp_path, quick):
    datasets = write("a")
    archive.refused = {datasets[2].SOPInstanceUID}
    peer = connect(dicom.address, quick)
    outcome = push(peer, dicom.address, [tmp_path / "a"], access=quick)
    (row,) = outcome.rows
    assert (row.verdict, row.moved, row.expected) == ("PARTIAL", 8, 9)
    assert "0xa700" in row.reason
    archive.refused = set()
    assert push(peer, dicom.address, [tmp_path / "a"], access=quick).rows[0].moved == 1
    assert pixels(archive.images) == pixels(datasets)


def test_a_kind_of_object_that_the_peer_does_not_take_is_told(dicom, archive, write, tmp_path, quick):
    write("a")
    path = sorted((tmp_path / "a").iterdir())[0]
    dataset = pydicom.dcmread(path)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.save_as(path)
    (row,) = push(connect(dicom.address, quick), dicom.address, [tmp_path / "a"], access=quick).rows
    assert (row.verdict, row.moved, row.expected) == ("PARTIAL", 8, 9)
    assert "does not take this kind" in row.reason


def test_a_series_of_a_kind_that_the_peer_does_not_take_keeps_no_other_from_going(dicom, write, tmp_path, quick):
    for path in [tmp_path / "all" / "a" / f"IM{number + 1:04d}.dcm" for number in range(len(write("all/a")))]:
        dataset = pydicom.dcmread(path)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        dataset.save_as(path)
    write("all/b", number=2)
    rows = push(connect(dicom.address, quick), dicom.address, [tmp_path / "all"], access=quick).rows
    assert sorted((row.verdict, row.moved) for row in rows) == [("PARTIAL", 0), ("whole", 9)]


def test_a_title_that_the_peer_does_not_know_is_told(fetch, dicom, archive, write, quick):
    datasets = write("a")
    archive.add(*datasets)
    with pytest.raises(MedvolError, match="NOT_AUTHORISED.*STRANGER.*--own-title"):
        fetch(dicom, datasets, access=replace(quick, own_title="STRANGER"))


def test_a_peer_without_c_get_is_told(fetch, start_dicom, archive, write):
    datasets = write("a")
    archive.add(*datasets)
    (row,) = fetch(start_dicom(gives=False), datasets).rows
    assert row.verdict == "REFUSED"
    assert "C-GET" in row.reason


def test_a_port_where_nobody_listens_is_refused_after_the_retries(tmp_path):
    pytest.importorskip("pynetdicom", reason="the extra 'net' is not installed")
    access = Access(first_wait_s=0.0, retries=1, timeout_s=2)
    peer = connect(parse_address("dicom://PACS@127.0.0.1:9"), access)
    with pytest.raises(MedvolError, match="CONNECTION_LOST"):
        pull(peer, [uid_request("1.2")], tmp_path, access=access)


def test_a_certificate_is_verified_unless_its_authority_is_named(
    fetch, start_dicom, archive, write, tls, certificate, quick
):
    peer, datasets = start_dicom(context=tls), write("a")
    archive.add(*datasets)
    with pytest.raises(MedvolError, match="TLS_FAILED.*--ca-file"):
        fetch(peer, datasets)
    assert fetch(peer, datasets, access=replace(quick, ca_file=certificate[0])).is_whole


def test_a_peer_that_asks_for_a_certificate_gets_the_own_one(
    fetch, start_dicom, archive, write, tls, certificate, quick
):
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_verify_locations(certificate[0])
    peer, datasets = start_dicom(context=tls), write("a")
    archive.add(*datasets)
    known = replace(quick, ca_file=certificate[0], certificate=certificate[0], key=certificate[1])
    assert fetch(peer, datasets, access=known).is_whole
    with pytest.raises(MedvolError, match="TLS_FAILED|CONNECTION_LOST"):
        fetch(peer, datasets, access=replace(quick, ca_file=certificate[0]))


def open_tls_clients():
    sockets = [one for one in gc.get_objects() if issubclass(type(one), ssl.SSLSocket) and not one.server_side]
    return {id(one) for one in sockets if one.fileno() >= 0}


def test_a_peer_that_hangs_up_within_tls_leaves_no_socket_open(fetch, start_dicom, write, tls, certificate, quick):
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_verify_locations(certificate[0])
    before = open_tls_clients()
    with pytest.raises(MedvolError, match="TLS_FAILED|CONNECTION_LOST"):
        fetch(start_dicom(context=tls), write("a"), access=replace(quick, ca_file=certificate[0]))
    assert open_tls_clients() <= before
