"""Addresses, credentials and queries: refused before anything is sent, without repeating what is secret."""

import pytest

from medvol.errors import MedvolError
from medvol.io.pacs_address import DIMSE, WEB, Access, parse_address, read_secret, tls_context
from medvol.io.pacs_query import Request, read_requests, uid_request
from medvol.io.pacs_transfer import connect


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://pacs.example/dicom-web/", (WEB, True, "pacs.example", 443, "", "https://pacs.example/dicom-web")),
        ("http://[::1]:8042/x", (WEB, False, "::1", 8042, "", "http://[::1]:8042/x")),
        ("dicom://MY_PACS@pacs.example:11112", (DIMSE, False, "pacs.example", 11112, "MY_PACS", "")),
        ("dicoms://PACS@pacs.example", (DIMSE, True, "pacs.example", 2762, "PACS", "")),
    ],
)
def test_an_address_says_kind_host_port_and_title(text, expected):
    found = parse_address(text)
    assert (found.kind, found.is_tls, found.host, found.port, found.title, found.url) == expected


@pytest.mark.parametrize(
    "text",
    [
        "https://user:SECRETX@pacs.example/dicom-web",
        "https://SECRETX@pacs.example/dicom-web",
        "https://pacs.example/dicom-web?token=SECRETX",
        "https://pacs.example/dicom-web#SECRETX",
        "dicom://PACS:SECRETX@pacs.example:104",
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(text):
    with pytest.raises(MedvolError, match="SECRET_IN_ADDRESS.*--credentials") as caught:
        parse_address(text)
    assert "SECRETX" not in repr(caught.value.as_dict()) + str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *("pacs.example", "ftp://pacs.example", "https://", "https://a:b/", "https://pacs.example:99999/"),
        *("dicom://pacs.example:104", "dicom://P@h/x", "dicom://SEVENTEEN_LETTERS@pacs.example"),
    ],
)
def test_other_addresses_are_refused(text):
    with pytest.raises(MedvolError, match="BAD_ADDRESS|SECRET_IN_ADDRESS"):
        parse_address(text)


def test_credentials_that_everybody_can_read_are_refused(tmp_path):
    file = tmp_path / "credentials"
    file.write_text("user:pass:word")
    file.chmod(0o604)
    with pytest.raises(MedvolError, match="READABLE_SECRET.*chmod 600"):
        read_secret(file)
    file.chmod(0o600)
    secret = read_secret(file)
    assert (secret.user, secret.password, secret.token) == ("user", "pass:word", "")
    assert "pass" not in repr(secret)


@pytest.mark.parametrize("text", ["", "SECRETX", "a:SECRETX\nb:SECRETX", ":SECRETX", "Bearer "])
def test_credentials_of_another_form_are_refused_and_not_repeated(tmp_path, text):
    file = tmp_path / "credentials"
    file.write_text(text)
    file.chmod(0o600)
    with pytest.raises(MedvolError, match="BAD_CREDENTIALS") as caught:
        read_secret(file)
    assert "SECRETX" not in repr(caught.value.as_dict())


def test_a_password_is_not_sent_over_an_open_connection(tmp_path, monkeypatch):
    pytest.importorskip("dicomweb_client", reason="the extra 'net' is not installed")
    file = tmp_path / "credentials"
    file.write_text("user:secret")
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "absent"))
    access = Access(credentials=file)
    connect(parse_address("http://127.0.0.1/dicom-web"), access)
    connect(parse_address("https://pacs.example/dicom-web"), access)
    with pytest.raises(MedvolError, match="UNSAFE_CREDENTIALS.*https"):
        connect(parse_address("http://pacs.example/dicom-web"), access)


def test_credentials_for_a_dicom_address_are_refused(tmp_path):
    pytest.importorskip("pynetdicom", reason="the extra 'net' is not installed")
    file = tmp_path / "credentials"
    file.write_text("user:secret")
    with pytest.raises(MedvolError, match="UNUSED_OPTION"):
        connect(parse_address("dicom://PACS@localhost"), Access(credentials=file))


def test_files_of_certificates_must_be_there_and_usable(tmp_path):
    with pytest.raises(MedvolError, match="NOT_FOUND"):
        Access(ca_file=tmp_path / "absent.pem")
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(MedvolError, match="BAD_CERTIFICATE"):
        tls_context(Access(ca_file=tmp_path / "bad.pem"))


@pytest.mark.parametrize("options", [{"retries": -1}, {"timeout_s": 0}, {"own_title": "A" * 17}, {"own_title": ""}])
def test_settings_that_cannot_be_meant_are_refused(options):
    with pytest.raises(MedvolError, match="BAD_ARGUMENT"):
        Access(**options)


def test_a_query_is_a_table_of_requests(tmp_path):
    file = tmp_path / "query.csv"
    file.write_text("PatientID,StudyDate,Modality,SeriesInstanceUID\n007,20200101-20201231,CT,\n,,,\n8,,,1.2.3\n")
    first, second = read_requests(file)
    assert first.keys == {"PatientID": "007", "StudyDate": "20200101-20201231", "Modality": "CT"}
    assert (second.keys, second.where) == ({"PatientID": "8", "SeriesInstanceUID": "1.2.3"}, "row 4")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("PatientId\n1\n", "did you mean 'PatientID'"),
        ("PatientID\nSECRETX*\n", "row 2: a PatientID"),
        ("PatientID\nSECRETX\\\\B\n", "row 2: a PatientID"),
        ("StudyInstanceUID\n../SECRETX\n", "row 2: a StudyInstanceUID"),
        ("StudyDate\n2020\n", "row 2: a StudyDate"),
        ("PatientID,Modality\n1,CT\n,CT\n", "row 3: nothing that narrows"),
        ("PatientID\n1,2\n", "row 2 has more cells"),
        ("PatientID\n", "no row"),
        ("", "no header"),
    ],
)
def test_a_query_that_is_wrong_or_asks_for_everything_is_refused_by_its_row(tmp_path, text, words):
    file = tmp_path / "query.csv"
    file.write_text(text)
    with pytest.raises(MedvolError, match="BAD_QUERY") as caught:
        read_requests(file)
    assert words in str(caught.value)
    assert "SECRETX" not in str(caught.value)


def test_a_request_of_nothing_or_of_a_path_is_refused():
    with pytest.raises(MedvolError, match="BAD_QUERY"):
        uid_request()
    with pytest.raises(MedvolError, match="BAD_QUERY"):
        uid_request(study="1.2/../3")
    with pytest.raises(MedvolError, match="BAD_QUERY"):
        Request("row 2", {"PatientName": "x", "PatientID": "1"})
