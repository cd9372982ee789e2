"""The command `medvol deid`: a key that stays apart, a table of what was left out, and an exit code that tells."""

import csv
import json
import shutil

import numpy as np
import pydicom
import pytest

from medvol.cli import main
from medvol.geometry import Volume, affine_from
from medvol.io import read_volume
from medvol.phantoms.dicom import Identity, write_dicom_series

pytest.importorskip("dicomanonymizer", reason="needs the extra `deid`")

VOXELS = np.arange(7 * 8 * 9, dtype=np.int16).reshape(7, 8, 9)
COUNT = 2 * VOXELS.shape[2]


@pytest.fixture
def export(tmp_path):
    """Two patients, a report, a screen, a file that is cut and one that is no DICOM."""
    root = tmp_path / "export of SECRETX"
    for patient in ("SECRETX", "second"):
        who = Identity(patient=patient, description=f"head of {patient}")
        write_dicom_series(Volume(VOXELS, affine_from((1.0, 1.5, 3.0))), root / patient, identity=who)
    return root


@pytest.fixture
def risky(export):
    sample = sorted((export / "SECRETX").iterdir())[0]
    for name, values in {
        "report.dcm": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11"},
        "screen.dcm": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "ConversionType": "WSD"},
        "derived.dcm": {"ImageType": ["DERIVED", "SECONDARY"]},
    }.items():
        dataset = pydicom.dcmread(sample)
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
        dataset.SOPInstanceUID = f"1.2.3.{len(name)}"
        dataset.save_as(export / name)
    (export / "cut.dcm").write_bytes(sample.read_bytes()[:-50])
    (export / "notes.txt").write_text("SECRETX")
    return export


def _words(folder, *more):
    return ["deid", str(folder), str(folder.parent / "out"), "--key-file", str(folder.parent / "key"), *more]


def test_a_tree_is_written_with_a_new_key_and_read_as_the_same_volumes(export, tmp_path, capsys):
    assert main(_words(export, "--new-key")) == 0
    printed = capsys.readouterr()
    assert f"{COUNT}     written" in printed.out
    assert "2 patients, 2 studies, 2 series" in printed.out
    assert "2 series are CT or MR of a head" in printed.out
    assert "SECRETX" not in printed.out.replace(str(export), "")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    folders = {path.parent for path in (tmp_path / "out").rglob("*.dcm")}
    assert len(folders) == 2
    for folder in folders:
        np.testing.assert_array_equal(read_volume(folder).array, VOXELS)
        assert [len(part) for part in folder.relative_to(tmp_path / "out").parts][:1] == [12]


def test_patients_are_called_as_scan_with_the_same_key_calls_them(export, tmp_path, capsys):
    main(_words(export, "--new-key"))
    main(["scan", str(export), "--key-file", str(tmp_path / "key"), "--json", str(tmp_path / "scan.json")])
    scanned = {row["patient"] for row in json.loads((tmp_path / "scan.json").read_text())["series"]}
    assert scanned == {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}


def test_what_is_left_out_is_counted_by_code_and_listed_and_gives_exit_code_3(risky, tmp_path, capsys):
    assert main(_words(risky, "--new-key", "--refused", str(tmp_path / "refused.csv"))) == 3
    printed = capsys.readouterr().out
    for line in (
        "2      refused, PIXELS_AT_RISK",
        "1      refused, TRUNCATED",
        "1      refused, UNSAFE_OBJECT",
        "1      no DICOM",
    ):
        assert line in printed, printed
    record = json.loads((tmp_path / "out" / "deid.json").read_text())
    assert record["refused"] == {"PIXELS_AT_RISK": 2, "TRUNCATED": 1, "UNSAFE_OBJECT": 1}
    assert (record["files"], record["patients"], record["not_dicom"], record["finished"]) == (COUNT, 2, 1, True)
    assert record["profile"] >= "2026c"
    with (tmp_path / "refused.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert sorted(row["code"] for row in rows) == ["PIXELS_AT_RISK", "PIXELS_AT_RISK", "TRUNCATED", "UNSAFE_OBJECT"]
    for path in (tmp_path / "out").rglob("*"):
        assert "SECRETX" not in path.name
        assert path.is_dir() or b"SECRETX" not in path.read_bytes()


def test_pixels_are_taken_when_told_and_a_second_run_only_adds_them(risky, tmp_path, capsys):
    main(_words(risky, "--new-key"))
    assert main(_words(risky, "--allow-pixels")) == 3
    printed = capsys.readouterr().out
    assert "2      written" in printed
    assert f"{COUNT}     there already, or copies" in printed


def test_nothing_written_gives_exit_code_1(risky, tmp_path, capsys):
    for folder in ("SECRETX", "second"):
        shutil.rmtree(risky / folder)
    assert main(_words(risky, "--new-key")) == 1
    assert "nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_the_key_is_made_on_request_only_never_anew_and_never_among_the_results(export, tmp_path, capsys):
    def refusal(*words):
        assert main(list(words)) == 1
        return capsys.readouterr().err

    assert "NOT_FOUND" in refusal(*_words(export))
    (tmp_path / "key").write_bytes(b"a secret of the project\n")
    assert "KEY_EXISTS" in refusal(*_words(export, "--new-key"))
    assert (tmp_path / "key").read_bytes() == b"a secret of the project\n"
    inside = ["deid", str(export), str(tmp_path / "out"), "--key-file", str(tmp_path / "out" / "a" / "key")]
    assert "KEY_AMONG_RESULTS" in refusal(*inside, "--new-key")
    among = _words(export, "--refused", str(tmp_path / "out" / "r.csv"))
    assert "LIST_AMONG_RESULTS" in refusal(*among)
    assert not (tmp_path / "out").exists()


def test_a_key_that_others_may_read_is_pointed_out(export, tmp_path, capsys):
    (tmp_path / "key").write_bytes(b"a secret of the project\n")
    (tmp_path / "key").chmod(0o644)
    assert main(_words(export)) == 0
    assert "chmod 600" in capsys.readouterr().err


def test_results_break_no_rule_that_their_source_kept(export, tmp_path):
    import subprocess

    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy (Debian dicom3tools) is absent")

    def errors(path):
        said = subprocess.run([program, str(path)], capture_output=True, text=True, check=False).stderr
        return {line for line in said.splitlines() if line.startswith("Error")}

    main(_words(export, "--new-key"))
    before = errors(sorted((export / "SECRETX").iterdir())[0])
    for shift in ((), ("--shift-dates",)):
        out = tmp_path / f"out{len(shift)}"
        main(["deid", str(export), str(out), "--key-file", str(tmp_path / "key"), *shift])
        assert errors(next(out.rglob("*.dcm"))) <= before
