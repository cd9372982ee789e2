"""A real Orthanc takes and gives a series and segmentations of it unchanged, by both protocols, also after a crash."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("orthanc_round_trip.py")


def what_is_absent():
    for program in ("Orthanc", "unshare", "ip"):
        if shutil.which(program) is None:
            return f"{program} is absent"
    if not any(Path(place, "libOrthancDicomWeb.so").exists() for place in PLUGINS):
        return "the DICOMweb plugin of Orthanc is absent"
    for module in ("pynetdicom", "dicomweb_client"):
        if importlib.util.find_spec(module) is None:
            return f"{module}, of the extra 'net', is not installed"
    return ""


PLUGINS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc/plugins")
UNSHARE = ["unshare", "-n"] if hasattr(os, "geteuid") and os.geteuid() == 0 else ["unshare", "-rn"]


@pytest.fixture(scope="module")
def facts():
    absent = what_is_absent()
    if absent:
        pytest.skip(absent)
    if subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace may be made here, without which Orthanc listens on the network")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NETRC": os.devnull}
    command = [*UNSHARE, sys.executable, "-W", "error", str(PROGRAM), "9", "16"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "SECRETX" not in done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_both_protocols_bring_a_series_back_unchanged(facts):
    for label in ("push the series by DICOMweb", "pull the series by DICOMweb", "pull the series by DICOM"):
        assert facts[label]["verdicts"] == [["CT", "whole", 9, 0]]
    assert facts["web is equal to ct"]
    assert facts["get is equal to ct"]


@pytest.mark.slow
def test_segmentations_come_back_unchanged_and_nothing_moves_twice(facts):
    segmentation = ["SEG", "whole", 1, 0]
    assert facts["push the study by DICOMweb"]["verdicts"] == [["CT", "whole", 9, 0], segmentation, segmentation]
    assert [row[2] for row in facts["push it again"]["verdicts"]] == [0, 0, 0]
    assert [row[2:] for row in facts["pull the study by DICOMweb"]["verdicts"]] == [[0, 9], [1, 0], [1, 0]]
    assert facts["web is equal to all"]
    # Orthanc 1.10 knows no LABELMAP, keeps it all the same, and cannot give it by C-GET: it says so.
    by_dicom = [row[:2] for row in facts["pull the study by DICOM"]["verdicts"]]
    assert by_dicom.count(["SEG", "whole"]) == (2 if facts["get is equal to all"] else 1)
    assert facts["get is equal to all"] or by_dicom.count(["SEG", "REFUSED"]) == 1
    assert facts["get is equal to ct and binary"] != facts["get is equal to all"]
    assert [row[:2] for row in facts["pull by patient"]["verdicts"]] == [["SEG", "whole"]] * 2


@pytest.mark.slow
def test_c_store_brings_what_the_server_takes_and_tells_what_it_does_not(facts):
    assert facts["push the series by DICOM"]["verdicts"] == [["CT", "whole", 9, 0]]
    assert facts["push the BINARY segmentation by DICOM"]["verdicts"] == [["SEG", "whole", 1, 0]]
    label_map = facts["push the LABELMAP segmentation by DICOM"]
    is_taken = label_map["verdicts"] == [["SEG", "whole", 1, 0]]
    assert is_taken or label_map["verdicts"] == [["SEG", "PARTIAL", 0, 0]]
    assert is_taken or "does not take this kind" in label_map["reasons"][0]
    assert facts["stored is equal to ct and binary"]


@pytest.mark.slow
def test_a_pull_during_which_the_server_is_killed_goes_on_when_it_is_back(facts):
    ((modality, verdict, moved, before),) = facts["pull while Orthanc is killed"]["verdicts"]
    assert (modality, verdict, before) == ("CT", "CONNECTION_LOST", 0)
    assert 4 <= moved < 9
    assert facts["visible after the kill"] == 0
    assert facts["pull after the kill"]["verdicts"] == [["CT", "whole", 9 - moved, moved]]
    assert facts["killed is equal to ct"]
