"""A PACS in the test's own process: a DICOMweb service and a DICOM peer over the same images, with faults to order."""

from __future__ import annotations

import io
import json
import re
import shutil
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from medvol.geometry import Volume
from medvol.io.pacs_address import Access, parse_address
from medvol.phantoms.dicom import Identity, write_dicom_series

VOXELS = np.arange(7 * 8 * 9, dtype=np.int16).reshape(7, 8, 9)
LEVELS = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}
QUICK = Access(first_wait_s=0.0, retries=2, timeout_s=20)


@pytest.fixture
def quick():
    """Two retries without a wait."""
    return QUICK


@pytest.fixture
def write(tmp_path):
    """Write a phantom series of nine slices; return its datasets in order."""

    def make(folder, patient="SECRETX", number=1, study="1", modality="CT"):
        who = Identity(patient=patient, study=study, series_number=number, modality=modality)
        volume = Volume(VOXELS + number, np.diag([1.0, 1.5, 3.0, 1.0]))
        paths = write_dicom_series(volume, tmp_path / folder, identity=who)
        return [pydicom.dcmread(path) for path in paths]

    return make


class Archive:
    """The images of a PACS and what it does wrong."""

    def __init__(self):
        self.images = []  # datasets
        self.stated = None  # NumberOfSeriesRelatedInstances, where it is not the truth
        self.lost = set()  # listed, but never sent
        self.drop_after = []  # one per retrieval: hang up after so many instances
        self.ignores = set()  # keys of queries that it passes over
        self.refused = set()  # instances that it does not store
        self.received = []  # instances in the order in which they were sent to it
        self.sent = []  # instances in the order in which they were handed out

    def add(self, *datasets):
        self.images += datasets
        return self

    def answers(self, level, keys):
        """Yield datasets as C-FIND and QIDO-RS answer."""
        seen = set()
        for one in self.images:
            uid = one[LEVELS[level]].value
            fits = all(str(one.get(key, "")) == value for key, value in keys.items() if key not in self.ignores)
            if uid in seen or not fits:
                continue
            seen.add(uid)
            answer = Dataset()
            names = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "PatientID", "Modality")
            for name in (*names, "StudyDate", "AccessionNumber"):
                setattr(answer, name, one.get(name, ""))
            of_series = sum(other.SeriesInstanceUID == one.SeriesInstanceUID for other in self.images)
            answer.NumberOfSeriesRelatedInstances = of_series if self.stated is None else self.stated
            yield answer

    def chosen(self, keys):
        """Yield the datasets of a retrieval; None where the connection is to be dropped."""
        left = self.drop_after.pop(0) if self.drop_after else None
        for one in self.images:
            if all(str(one.get(key, "")) in value.split("\\") for key, value in keys.items()):
                if one.SOPInstanceUID in self.lost:
                    continue
                if left == 0:
                    yield None
                    return
                left = None if left is None else left - 1
                self.sent.append(one.SOPInstanceUID)
                yield one


@pytest.fixture
def archive():
    return Archive()


def encoded(dataset):
    stream = io.BytesIO()
    dataset.save_as(stream)
    return stream.getvalue()


class Handler(BaseHTTPRequestHandler):
    """QIDO-RS, WADO-RS and STOW-RS over the archive of the server."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.log.append(self.path)
        if not self._is_let_in():
            return
        parts = urlsplit(self.path)
        found = re.fullmatch(
            r"/dicom-web(?:/studies(?:/([^/]+))?)?(?:/series(?:/([^/]+))?)?(?:/instances(?:/([^/]+))?)?", parts.path
        )
        if found is None:
            self._send(404, "text/plain", b"")
            return
        names = dict(zip(LEVELS.values(), found.groups(), strict=True))
        keys = {name: value for name, value in names.items() if value}
        last = parts.path.rsplit("/", 1)[-1]
        if last in ("studies", "series", "instances"):
            given = {name: values[0] for name, values in parse_qs(parts.query).items()}
            offset = int(given.pop("offset", 0))
            given.pop("includefield", None)
            level = {"studies": "STUDY", "series": "SERIES", "instances": "IMAGE"}[last]
            answers = list(self.server.archive.answers(level, keys | given))
            page = self.server.page or len(answers)
            shown = [one.to_json_dict() for one in answers[offset : offset + page]]
            warning = [("Warning", "299 PACS: more of SECRETX")]
            self._send(200, "application/dicom+json", json.dumps(shown).encode(), warning)
            return
        self._send_parts(keys)

    def do_POST(self):
        self.server.log.append(self.path)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._is_let_in():
            return
        boundary = self.headers["Content-Type"].split('boundary="')[1].rstrip('"').encode()
        parts = [part.split(b"\r\n\r\n", 1)[1] for part in body.split(b"\r\n--" + boundary)[1:-1]]
        answer, archive = Dataset(), self.server.archive
        answer.ReferencedSOPSequence, answer.FailedSOPSequence = [], []
        for part in parts:
            one, item = pydicom.dcmread(io.BytesIO(part)), Dataset()
            item.ReferencedSOPInstanceUID = one.SOPInstanceUID
            if one.SOPInstanceUID in archive.refused:
                item.FailureReason = 0xA700
                answer.FailedSOPSequence.append(item)
                continue
            archive.add(one).received.append(one.SOPInstanceUID)
            if not self.server.is_silent:
                answer.ReferencedSOPSequence.append(item)
        status = 409 if not answer.ReferencedSOPSequence and answer.FailedSOPSequence else 200
        self._send(status, "application/dicom+json", json.dumps(answer.to_json_dict()).encode())

    def _is_let_in(self):
        if self.server.password and self.headers.get("Authorization") != self.server.password:
            self._send(401, "text/plain", b"no")
            return False
        if self.server.statuses:
            status = self.server.statuses.pop(0)
            if status is not None:
                self._send(status, "text/plain", b"SECRETX", [("Location", "http://127.0.0.1:9/elsewhere")])
                return False
        return True

    def _send(self, status, kind, body, headers=()):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _send_parts(self, keys):
        body, is_dropped = b"", False
        for one in self.server.archive.chosen(keys):
            if one is None:
                is_dropped = True
                break
            body += b"\r\n--edge\r\nContent-Type: application/dicom\r\n\r\n" + encoded(one)
        if not body and not is_dropped:
            self._send(404, "text/plain", b"")
            return
        whole = body + b"\r\n--edge--"
        self.send_response(200)
        self.send_header("Content-Type", 'multipart/related; type="application/dicom"; boundary=edge')
        if self.server.states_length:
            self.send_header("Content-Length", str(len(whole) + (1000 if is_dropped else 0)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        # A dropped one ends within an instance: what its last hundred bytes held never arrives.
        self.wfile.write(body[:-100] if is_dropped else whole)
        self.close_connection = is_dropped or not self.server.states_length


class Web:
    """A DICOMweb service on a port of its own."""

    def __init__(self, archive, context=None):
        server = self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        server.archive, server.log, server.statuses = archive, [], []
        server.password, server.page, server.states_length, server.is_silent = "", 0, True, False
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
            server.handle_error = lambda *_: None  # a client that does not trust us hangs up
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://localhost:{server.server_port}/dicom-web"
        self.address = parse_address(self.url)
        self.thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def retrievals(self):
        return [
            path for path in self.server.log if not urlsplit(path).path.endswith(("studies", "series", "instances"))
        ]

    def close(self):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def serve(archive, monkeypatch, tmp_path):
    """Start a service, encrypted where a context is given."""
    pytest.importorskip("dicomweb_client", reason="the extra 'net' is not installed")
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    services = []

    def start(context=None):
        services.append(Web(archive, context))
        return services[-1]

    yield start
    for service in services:
        service.close()


@pytest.fixture
def web(serve):
    return serve()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """Certificate and key of `localhost`, signed by themselves."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is absent, which makes the certificate")
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "cert.pem", folder / "key.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    words += ["-addext", "subjectAltName=DNS:localhost", "-out", str(files[0]), "-keyout", str(files[1])]
    subprocess.run(words, check=True, capture_output=True)
    return files


@pytest.fixture
def tls(certificate):
    """What a server needs to encrypt."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


class Dicom:
    """A DICOM peer on a port of its own."""

    def __init__(self, archive, context=None, gives=True):
        from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt

        self.archive = archive
        entity = AE(ae_title="PACS")
        entity.require_called_aet = True
        entity.require_calling_aet = ["MEDVOL"]
        for uid in ("1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3")[: 2 if gives else 1]:
            entity.add_supported_context(uid)
        for uid in ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"):
            entity.add_supported_context(uid, ALL_TRANSFER_SYNTAXES, scu_role=True, scp_role=True)
        handlers = [(evt.EVT_C_FIND, self._find), (evt.EVT_C_GET, self._get), (evt.EVT_C_STORE, self._store)]
        self.server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers, ssl_context=context)
        scheme = "dicom" if context is None else "dicoms"
        self.url = f"{scheme}://PACS@localhost:{self.server.socket.getsockname()[1]}"
        self.address = parse_address(self.url)
        self.retrievals = []

    def _keys(self, query):
        found = {name: query.get(name, "") for name in (*LEVELS.values(), "PatientID", "Modality", "AccessionNumber")}
        return {
            name: "\\".join(value) if isinstance(value, pydicom.multival.MultiValue) else str(value)
            for name, value in found.items()
            if value
        }

    def _find(self, event):
        query = event.identifier
        for answer in self.archive.answers(query.QueryRetrieveLevel, self._keys(query)):
            yield 0xFF00, answer

    def _get(self, event):
        query = event.identifier
        self.retrievals.append(query.QueryRetrieveLevel)
        chosen = list(self.archive.chosen(self._keys(query)))
        yield len(chosen)
        for one in chosen:
            if one is None:
                event.assoc.abort()
                return
            yield 0xFF00, one

    def _store(self, event):
        data = pydicom.dcmread(io.BytesIO(event.encoded_dataset()))
        if data.SOPInstanceUID in self.archive.refused:
            return 0xA700
        self.archive.add(data).received.append(data.SOPInstanceUID)
        return 0x0000

    def close(self):
        self.server.shutdown()


@pytest.fixture
def start_dicom(archive):
    pytest.importorskip("pynetdicom", reason="the extra 'net' is not installed")
    peers = []

    def start(**options):
        peers.append(Dicom(archive, **options))
        return peers[-1]

    yield start
    for peer in peers:
        peer.close()


@pytest.fixture
def dicom(start_dicom):
    return start_dicom()


@pytest.fixture
def pulled():
    """Return pixel bytes by SOP instance UID of what lies visibly below a folder."""

    def read(folder):
        paths = [path for path in folder.glob("*/*/*") if ".pacs" not in path.parts]
        return {one.SOPInstanceUID: one.PixelData for one in map(pydicom.dcmread, paths)}

    return read
