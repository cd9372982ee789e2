"""Pulling by DICOMweb: whole series or none, whatever the service does."""

import contextlib
import gc
import logging
import socket
import ssl
from dataclasses import replace

import pydicom
import pytest

from medvol.errors import MedvolError
from medvol.io import pacs_web
from medvol.io.dicom_scan import scan_tree
from medvol.io.pacs_address import Access, parse_address
from medvol.io.pacs_pull import pull
from medvol.io.pacs_push import push
from medvol.io.pacs_query import Request, uid_request
from medvol.io.pacs_store import HIDDEN
from medvol.io.pacs_transfer import connect


@pytest.fixture
def fetch(web, tmp_path, quick, monkeypatch):
    """Pull one study of the service, in bites that are smaller than an instance."""
    monkeypatch.setattr(pacs_web, "CHUNK", 50)

    def run(datasets, folder="out", access=quick, series=""):
        request = uid_request(datasets[0].StudyInstanceUID, series)
        return pull(connect(web.address, access), [request], tmp_path / folder, access=access)

    return run


def pixels(datasets):
    return {one.SOPInstanceUID: one.PixelData for one in datasets}


def test_a_study_arrives_whole_and_can_be_scanned(fetch, archive, write, tmp_path, pulled):
    first, second = write("a", number=1), write("b", number=2, modality="MR")
    archive.add(*first, *second, *write("other", patient="other", study="2"))
    outcome = fetch(first)
    assert outcome.is_whole
    assert sorted((row.modality, row.moved, row.expected) for row in outcome.rows) == [("CT", 9, 9), ("MR", 9, 9)]
    assert pulled(tmp_path / "out") == pixels(first + second)
    assert [(row.verdict, row.files) for row in scan_tree(tmp_path / "out").rows] == [("ok", 9), ("ok", 9)]


def test_files_come_back_byte_for_byte(fetch, archive, write, tmp_path):
    datasets = write("a")
    archive.add(*datasets)
    fetch(datasets)
    originals = sorted(path.read_bytes() for path in (tmp_path / "a").iterdir())
    assert sorted(path.read_bytes() for path in (tmp_path / "out").glob("*/*/*.dcm")) == originals


def test_no_uid_and_no_patient_stands_in_a_path(fetch, archive, write, tmp_path):
    datasets = write("a")
    archive.add(*datasets)
    fetch(datasets)
    names = "\n".join(str(path.relative_to(tmp_path)) for path in (tmp_path / "out").rglob("*"))
    texts = names + "".join(path.read_text() for path in (tmp_path / "out" / HIDDEN).glob("*.jsonl"))
    assert not any(one in texts for one in ("SECRETX", datasets[0].StudyInstanceUID, datasets[0].SOPInstanceUID))


def test_what_is_there_is_not_fetched_again(fetch, archive, write, web):
    datasets = write("a")
    archive.add(*datasets)
    fetch(datasets)
    count = len(web.retrievals)
    outcome = fetch(datasets)
    assert (outcome.rows[0].moved, outcome.rows[0].before, outcome.is_whole) == (0, 9, True)
    assert len(web.retrievals) == count == 1


@pytest.mark.parametrize("states_length", [True, False], ids=["length stated", "until the end"])
def test_a_dropped_connection_is_taken_up_where_it_ended(fetch, archive, write, web, tmp_path, pulled, states_length):
    datasets = write("a")
    archive.add(*datasets)
    archive.drop_after = [5]
    web.server.states_length = states_length
    assert fetch(datasets).is_whole
    assert pulled(tmp_path / "out") == pixels(datasets)
    # The fifth was cut within, so it was sent twice; the four before it once.
    assert sorted(archive.sent.count(one.SOPInstanceUID) for one in datasets) == [1] * 8 + [2]


def test_a_lost_connection_leaves_nothing_visible_and_the_next_pull_fetches_the_rest(
    fetch, archive, write, tmp_path, pulled, quick
):
    datasets = write("a")
    archive.add(*datasets)
    archive.drop_after = [5, 0, 0, 0, 0]
    outcome = fetch(datasets)
    (row,) = outcome.rows
    assert (row.verdict, row.moved, row.expected, outcome.is_whole) == ("CONNECTION_LOST", 4, 9, False)
    assert not pulled(tmp_path / "out")
    archive.drop_after, archive.sent = [], []
    (row,) = fetch(datasets).rows
    assert (row.verdict, row.before, row.moved) == ("whole", 4, 5)
    assert len(archive.sent) == 5
    assert pulled(tmp_path / "out") == pixels(datasets)


def test_after_a_lost_connection_no_other_request_is_tried(web, archive, write, tmp_path, quick):
    datasets, other = write("a"), write("b", patient="other")
    archive.add(*datasets, *other)
    archive.drop_after = [5, 0, 0, 0]
    requests = [uid_request(one[0].StudyInstanceUID) for one in (datasets, other)]
    outcome = pull(connect(web.address, quick), requests, tmp_path / "out", access=quick)
    assert ([row.verdict for row in outcome.rows], outcome.untried) == (["CONNECTION_LOST"], 1)


def test_a_missing_instance_makes_a_series_partial_with_its_numbers(fetch, archive, write, tmp_path, pulled):
    datasets, other = write("a"), write("b", number=2)
    archive.add(*datasets, *other)
    archive.lost = {datasets[3].SOPInstanceUID}
    outcome = fetch(datasets)
    by_verdict = {row.verdict: row for row in outcome.rows}
    assert (by_verdict["PARTIAL"].moved, by_verdict["PARTIAL"].expected) == (8, 9)
    assert "8 of 9" in by_verdict["PARTIAL"].reason
    assert not outcome.is_whole
    assert pulled(tmp_path / "out") == pixels(other)


def test_fewer_instances_listed_than_stated_are_partial(fetch, archive, write, tmp_path, pulled):
    datasets = write("a")
    archive.add(*datasets)
    archive.stated = 12
    (row,) = fetch(datasets).rows
    assert (row.verdict, row.moved, row.expected) == ("PARTIAL", 9, 12)
    assert not pulled(tmp_path / "out")


def test_a_series_that_grew_is_visible_as_it_was_until_it_is_whole_again(fetch, archive, write, tmp_path, pulled):
    datasets = write("a")
    archive.add(*datasets[:6])
    fetch(datasets)
    archive.add(*datasets[6:])
    archive.lost = {datasets[8].SOPInstanceUID}
    assert fetch(datasets).rows[0].verdict == "PARTIAL"
    assert pulled(tmp_path / "out") == pixels(datasets[:6])
    archive.lost, archive.sent = set(), []
    assert fetch(datasets).is_whole
    assert archive.sent == [datasets[8].SOPInstanceUID]
    assert pulled(tmp_path / "out") == pixels(datasets)


def test_a_file_that_was_cut_afterwards_is_fetched_again(fetch, archive, write, tmp_path, pulled):
    datasets = write("a")
    archive.add(*datasets)
    fetch(datasets)
    path = next((tmp_path / "out").glob("*/*/*.dcm"))
    path.write_bytes(path.read_bytes()[:-50])
    (row,) = fetch(datasets).rows
    assert (row.verdict, row.before, row.moved) == ("whole", 8, 1)
    assert pulled(tmp_path / "out") == pixels(datasets)


def test_a_journal_that_was_cut_costs_its_last_line_only(fetch, archive, write, tmp_path):
    datasets = write("a")
    archive.add(*datasets)
    fetch(datasets)
    (journal,) = (tmp_path / "out" / HIDDEN).glob("*.jsonl")
    journal.write_text(journal.read_text()[:-3])
    (row,) = fetch(datasets).rows
    assert (row.verdict, row.before, row.moved) == ("whole", 8, 1)
    assert fetch(datasets).rows[0].before == 9


def test_a_wrong_password_is_not_tried_again(fetch, archive, write, web):
    datasets = write("a")
    archive.add(*datasets)
    web.server.password = "Basic another"
    with pytest.raises(MedvolError, match="NOT_AUTHORISED.*401"):
        fetch(datasets)
    assert len(web.server.log) == 1


def test_credentials_come_from_a_file_or_from_netrc(fetch, archive, write, web, tmp_path, monkeypatch, quick):
    datasets = write("a")
    archive.add(*datasets)
    web.server.password = "Basic dTpzZWNyZXQ="  # u:secret
    file = tmp_path / "credentials"
    file.write_text("u:secret\n")
    file.chmod(0o600)
    assert fetch(datasets, "from_file", replace(quick, credentials=file)).is_whole
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login u password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert fetch(datasets, "from_netrc").is_whole
    web.server.password = "Bearer of-a-token"
    file.write_text("Bearer of-a-token")
    assert fetch(datasets, "with_token", replace(quick, credentials=file)).is_whole


def test_a_failing_service_is_tried_again_and_then_given_up(fetch, archive, write, web):
    datasets = write("a")
    archive.add(*datasets)
    web.server.statuses = [500, 503]
    assert fetch(datasets).is_whole
    web.server.statuses = [500, 500, 500]
    web.server.log.clear()
    with pytest.raises(MedvolError, match="SERVER_ERROR.*500") as caught:
        fetch(datasets, "second")
    assert len(web.server.log) == 3
    assert "SECRETX" not in str(caught.value)


def test_a_redirect_is_refused(fetch, archive, write, web):
    datasets = write("a")
    archive.add(*datasets)
    web.server.statuses = [302]
    with pytest.raises(MedvolError, match="REDIRECTED"):
        fetch(datasets)


def test_a_list_in_pages_is_read_to_its_end(fetch, archive, write, web):
    datasets = write("a")
    archive.add(*datasets)
    web.server.page = 4
    assert fetch(datasets).is_whole


def test_uids_that_are_paths_are_passed_over(fetch, archive, write, tmp_path, pulled):
    datasets = write("a")
    evil = pydicom.dcmread(tmp_path / "a" / "IM0001.dcm")
    with pydicom.config.disable_value_validation():
        evil.SOPInstanceUID = "../../../escaped"
        archive.add(*datasets, evil)
    archive.stated = 9
    assert fetch(datasets).is_whole
    assert pulled(tmp_path / "out") == pixels(datasets)
    assert not list(tmp_path.rglob("*escaped*"))


def test_an_instance_of_another_patient_is_not_written(fetch, archive, write, tmp_path, pulled, monkeypatch):
    datasets, foreign = write("a"), write("b", patient="other")
    archive.add(*datasets)
    chosen = archive.chosen
    monkeypatch.setattr(archive, "chosen", lambda keys: [foreign[0], *chosen(keys)])
    assert fetch(datasets).is_whole
    assert pulled(tmp_path / "out") == pixels(datasets)


def test_a_service_that_passes_over_the_patient_hands_out_nobody_else(web, archive, write, tmp_path, quick):
    archive.add(*write("a"), *write("b", patient="other"))
    archive.ignores = {"PatientID"}
    request = [Request("row 2", {"PatientID": "nobody"})]
    with pytest.raises(MedvolError, match="NOTHING_FOUND.*row 2") as caught:
        pull(connect(web.address, quick), request, tmp_path / "out", access=quick)
    assert "nobody" not in str(caught.value)
    request = [Request("row 2", {"PatientID": "other"})]
    outcome = pull(connect(web.address, quick), request, tmp_path / "out", access=quick)
    assert (len(outcome.rows), outcome.is_whole) == (1, True)


def test_answers_without_end_are_cut_off(fetch, archive, write, tmp_path, pulled, monkeypatch):
    datasets = write("a")
    archive.add(*datasets)
    monkeypatch.setattr(pacs_web, "INSTANCE_LIMIT", 1000)
    (row,) = fetch(datasets).rows
    assert (row.verdict, pulled(tmp_path / "out")) == ("TOO_LARGE", {})
    monkeypatch.setattr(pacs_web, "ANSWER_LIMIT", 100)
    with pytest.raises(MedvolError, match="TOO_LARGE"):
        fetch(datasets, "second")


def test_an_address_that_is_no_service_is_named(web, quick, tmp_path):
    address = parse_address(web.url.replace("dicom-web", "elsewhere"))
    with pytest.raises(MedvolError, match="NOT_FOUND.*path of the address"):
        pull(connect(address, quick), [uid_request("1.2")], tmp_path, access=quick)


def test_a_certificate_is_verified_unless_its_authority_is_named(
    serve, archive, write, tmp_path, certificate, tls, quick
):
    secure_web, datasets = serve(tls), write("a")
    archive.add(*datasets)
    request = [uid_request(datasets[0].StudyInstanceUID)]
    with pytest.raises(MedvolError, match="TLS_FAILED.*--ca-file"):
        pull(connect(secure_web.address, quick), request, tmp_path / "out", access=quick)
    trusted = replace(quick, ca_file=certificate[0])
    assert pull(connect(secure_web.address, trusted), request, tmp_path / "out", access=trusted).is_whole
    by_number = parse_address(secure_web.url.replace("localhost", "127.0.0.1"))  # the certificate is of another name
    with pytest.raises(MedvolError, match="TLS_FAILED"):
        pull(connect(by_number, trusted), request, tmp_path / "out", access=trusted)


def test_a_service_that_asks_for_a_certificate_gets_the_own_one(
    serve, archive, write, tmp_path, certificate, tls, quick
):
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_verify_locations(certificate[0])
    datasets = write("a")
    archive.add(*datasets)
    service = serve(tls)
    request = [uid_request(datasets[0].StudyInstanceUID)]
    known = replace(quick, ca_file=certificate[0], certificate=certificate[0], key=certificate[1])
    assert pull(connect(service.address, known), request, tmp_path / "out", access=known).is_whole
    stranger = replace(quick, ca_file=certificate[0])
    with pytest.raises(MedvolError, match="TLS_FAILED|CONNECTION_LOST"):
        pull(connect(service.address, stranger), request, tmp_path / "out", access=stranger)


def test_warnings_of_the_service_and_dropped_connections_leave_nothing_in_logs(fetch, archive, write, caplog):
    datasets = write("a")
    archive.add(*datasets)
    archive.drop_after = [3, 0, 0, 0]
    with caplog.at_level(logging.WARNING):
        fetch(datasets)
    assert not caplog.records


def test_an_unreachable_service_is_refused_after_its_retries(tmp_path):
    pytest.importorskip("dicomweb_client", reason="the extra 'net' is not installed")
    access = Access(first_wait_s=0.0, retries=1, timeout_s=2)
    peer = connect(parse_address("http://127.0.0.1:9/dicom-web"), access)
    with pytest.raises(MedvolError, match="CONNECTION_LOST"):
        pull(peer, [uid_request("1.2")], tmp_path, access=access)


def connections_to(port):
    sockets = [one for one in gc.get_objects() if issubclass(type(one), socket.socket) and one.fileno() >= 0]
    found = 0
    for one in sockets:
        with contextlib.suppress(OSError):  # one that listens has no peer
            found += one.getpeername()[1] == port
    return found


def test_a_pull_and_a_push_leave_no_connection_open(web, archive, write, tmp_path, quick):
    datasets = write("a")
    archive.add(*datasets)
    peer = connect(web.address, quick)
    assert pull(peer, [uid_request(datasets[0].StudyInstanceUID)], tmp_path / "out", access=quick).is_whole
    assert connections_to(web.server.server_port) == 0
    assert push(peer, web.address, [tmp_path / "a"], access=quick).is_whole
    assert connections_to(web.server.server_port) == 0
