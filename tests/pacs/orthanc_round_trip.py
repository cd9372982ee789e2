"""A round trip through a real Orthanc, run in a network namespace of its own; prints what happened as JSON.

    unshare -n python tests/pacs/orthanc_round_trip.py 300 512

Orthanc 1.10 listens on every address of the machine, whatever its settings say. A new namespace has none but loopback,
and without Orthanc's own namespace this program refuses to run. The arguments are slices and rows of the series.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pydicom

from medvol.geometry import Volume
from medvol.io.dicom_source import dicom_source
from medvol.io.dicom_write_seg import Algorithm, write_segmentation
from medvol.io.pacs_address import Access, parse_address
from medvol.io.pacs_pull import pull
from medvol.io.pacs_push import push
from medvol.io.pacs_query import Request, uid_request
from medvol.io.pacs_transfer import connect
from medvol.io.segment_codes import coded_structures
from medvol.phantoms.dicom import Identity, write_dicom_series

WEB, DICOM = "http://localhost:8042/dicom-web", "dicom://ORTHANC@localhost:4242"
PLUGINS = [
    Path(place) / "libOrthancDicomWeb.so" for place in ("/usr/share/orthanc/plugins", "/usr/lib/orthanc/plugins")
]


def find_plugin():
    """Return the DICOMweb plugin, None where it is absent."""
    return next((path for path in PLUGINS if path.exists()), None)


@contextmanager
def orthanc(folder):
    """Run an Orthanc that stores below a folder; yield its process."""
    settings = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "HttpPort": 8042,
        "DicomPort": 4242,
        "DicomAet": "ORTHANC",
        "Plugins": [str(find_plugin())],
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"user": "secret"},
        **{f"DicomAlwaysAllow{name}": True for name in ("Echo", "Find", "Get", "Store")},
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    folder.mkdir(exist_ok=True)
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("a") as log:
        process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        for port in (8042, 4242):
            wait_for(port)
        yield process
    finally:
        process.kill()  # it takes seconds to end by itself, and has written what it confirmed
        process.wait()


def wait_for(port):
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with suppress(OSError), socket.create_connection(("localhost", port), timeout=1):
            return
        time.sleep(0.05)
    raise TimeoutError(f"Orthanc does not listen on {port}")


def contents(folder):
    """Return pixel bytes by SOP instance UID of what is visible below a folder."""
    paths = [path for path in folder.rglob("*.dcm") if ".pacs" not in path.parts]
    return {str(one.SOPInstanceUID): one.PixelData for one in map(pydicom.dcmread, paths)}


def make_study(folder, slices, rows):
    """Write a series and two segmentations of it; return the UID of the study and what each file holds."""
    voxels = np.random.default_rng(0).integers(0, 2000, (rows, rows, slices)).astype(np.int16)
    affine = np.diag([1.0, 1.5, 3.0, 1.0])
    write_dicom_series(Volume(voxels, affine), folder / "ct", identity=Identity(patient="SECRETX"))
    labels = np.zeros(voxels.shape, np.uint8)
    labels[rows // 4 : rows // 2, rows // 4 : rows // 2, slices // 4 : slices // 2] = 1
    source, structures = dicom_source(str(folder / "ct")), coded_structures(["liver"])
    for kind in ("labelmap", "binary"):
        path = folder / kind / "seg.dcm"
        write_segmentation(path, labels, affine, source, structures, algorithm=Algorithm("test"), kind=kind)
    return str(pydicom.dcmread(folder / "ct" / "IM0001.dcm").StudyInstanceUID)


class Killing:
    """A peer whose server is killed after some instances."""

    def __init__(self, peer, process, after):
        self.peer, self.process, self.left = peer, process, after
        self.find, self.close = peer.find, peer.close

    def fetch(self, remote, wanted, keep):
        def keep_and_kill(uid, write):
            keep(uid, write)
            self.left -= 1
            if self.left == 0:
                self.process.kill()
                self.process.wait()

        self.peer.fetch(remote, wanted, keep_and_kill)


def main(slices, rows):
    facts = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        study = make_study(root / "source", slices, rows)
        secret = root / "credentials"
        secret.write_text("user:secret")
        secret.chmod(0o600)
        web, dicom = Access(credentials=secret, first_wait_s=0.1), Access(first_wait_s=0.1)

        def timed(label, action):
            start, cpu = time.perf_counter(), time.process_time()
            outcome = action()
            facts[label] = {
                "verdicts": sorted((row.modality, row.verdict, row.moved, row.before) for row in outcome.rows),
                "reasons": [row.reason for row in outcome.rows if row.reason],
                "seconds": round(time.perf_counter() - start, 2),
                "cpu_seconds": round(time.process_time() - cpu, 2),
            }

        def send(url, access, source, again=False):
            address = parse_address(url)
            return push(connect(address, access), address, [source], access=access, again=again)

        def fetch(url, access, folder, request=None):
            peer = connect(parse_address(url), access)
            return pull(peer, [request or uid_request(study)], root / folder, access=access)

        def compare(folder, *sources):
            label = f"{folder} is equal to {' and '.join(sources) or 'all'}"
            facts[label] = contents(root / folder) == {
                uid: pixels for source in sources for uid, pixels in contents(root / "source" / source).items()
            }

        with orthanc(root / "first"):
            timed("push the series by DICOMweb", lambda: send(WEB, web, root / "source" / "ct"))
            timed("pull the series by DICOMweb", lambda: fetch(WEB, web, "web"))
            compare("web", "ct")
            timed("pull the series by DICOM", lambda: fetch(DICOM, dicom, "get"))
            compare("get", "ct")
            timed("push the study by DICOMweb", lambda: send(WEB, web, root / "source"))
            timed("push it again", lambda: send(WEB, web, root / "source"))
            timed("pull the study by DICOMweb", lambda: fetch(WEB, web, "web"))
            compare("web", "")
            timed("pull the study by DICOM", lambda: fetch(DICOM, dicom, "get"))
            compare("get", "")
            compare("get", "ct", "binary")
            by_patient = Request("row 2", {"PatientID": "SECRETX", "Modality": "SEG"})
            timed("pull by patient", lambda: fetch(WEB, web, "patient", by_patient))
        with orthanc(root / "second"):
            timed("push the series by DICOM", lambda: send(DICOM, dicom, root / "source" / "ct"))
            timed("push the BINARY segmentation by DICOM", lambda: send(DICOM, dicom, root / "source" / "binary"))
            timed("pull what DICOM pushed", lambda: fetch(WEB, web, "stored"))
            compare("stored", "ct", "binary")
            timed("push the LABELMAP segmentation by DICOM", lambda: send(DICOM, dicom, root / "source" / "labelmap"))
        with orthanc(root / "second") as process:
            peer = Killing(connect(parse_address(DICOM), dicom), process, slices // 2)
            request = [Request("row 2", {"StudyInstanceUID": study, "Modality": "CT"})]
            timed("pull while Orthanc is killed", lambda: pull(peer, request, root / "killed", access=dicom))
            facts["visible after the kill"] = len(contents(root / "killed"))
        with orthanc(root / "second"):
            timed("pull after the kill", lambda: fetch(WEB, web, "killed", request[0]))
            compare("killed", "ct")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    if [name for _, name in socket.if_nameindex()] != ["lo"]:
        sys.exit("run it by `unshare -n`: Orthanc would listen on the network")
    subprocess.run([shutil.which("ip") or "ip", "link", "set", "lo", "up"], check=True)
    main(*map(int, sys.argv[1:] or ("9", "16")))
