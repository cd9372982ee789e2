"""The commands `medvol pull` and `medvol push`: the closing table, exit codes, and no word of the patient."""

import csv
import sys

import pydicom
import pytest

from medvol.cli import main

SAME = ["--retries", "0"]


def test_what_was_pushed_can_be_pulled_and_scanned_by_commands(web, archive, write, tmp_path, capsys):
    datasets = write("source")
    assert main(["push", web.url, str(tmp_path / "source")]) == 0
    printed = capsys.readouterr().out
    assert "9/9" in printed
    assert "1 series, 9 files" in printed
    assert main(["pull", web.url, "--study", datasets[0].StudyInstanceUID, "-o", str(tmp_path / "out")]) == 0
    assert "9 of them now" in capsys.readouterr().out
    assert main(["scan", str(tmp_path / "out"), "--csv", str(tmp_path / "cases.csv")]) == 0
    assert "1 volumes can be read" in capsys.readouterr().out


def test_a_table_of_requests_is_answered_row_by_row(dicom, archive, write, tmp_path, capsys):
    first, second = write("a", patient="SECRETX"), write("b", patient="second", study="2", modality="MR")
    archive.add(*first, *second)
    query = tmp_path / "query.csv"
    with query.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["PatientID", "StudyInstanceUID", "Modality"])
        rows.writerows([["SECRETX", "", "CT"], ["", second[0].StudyInstanceUID, ""], ["SECRETX-too", "", ""]])
    assert main(["pull", dicom.url, "--query", str(query), "-o", str(tmp_path / "out")]) == 3
    output = capsys.readouterr()
    assert "NOTHING_FOUND" in output.out
    assert "2 series, 18 files" in output.out
    assert "row 4" in output.err
    assert len(list((tmp_path / "out").glob("*/*/*.dcm"))) == 18
    paths = "\n".join(map(str, (tmp_path / "out").rglob("*")))
    assert "SECRETX" not in output.out + output.err + paths.replace(str(tmp_path), "")


def test_missing_instances_are_told_with_exit_code_3(web, archive, write, tmp_path, capsys):
    datasets = write("a")
    archive.add(*datasets)
    archive.lost = {datasets[4].SOPInstanceUID}
    words = ["pull", web.url, "--study", datasets[0].StudyInstanceUID, "-o", str(tmp_path / "out"), *SAME]
    assert main(words) == 3
    output = capsys.readouterr()
    assert "8/9" in output.out
    assert "PARTIAL" in output.out
    assert "8 of 9 instances arrived" in output.err
    archive.lost = set()
    assert main(words) == 0
    assert "1 of them now" in capsys.readouterr().out


def test_a_refusal_is_one_line_with_exit_code_1(web, archive, write, tmp_path, capsys):
    web.server.password = "Basic another"
    assert main(["pull", web.url, "--study", "1.2", "-o", str(tmp_path / "out"), *SAME]) == 1
    error = capsys.readouterr().err
    assert error.startswith("medvol: NOT_AUTHORISED")
    assert not (tmp_path / "out").exists()
    assert main(["pull", web.url, "-o", str(tmp_path / "out")]) == 1
    assert "BAD_QUERY" in capsys.readouterr().err
    assert main(["pull", "https://u:SECRETX@host/dicom-web", "--study", "1.2", "-o", str(tmp_path / "out")]) == 1
    assert "SECRETX" not in capsys.readouterr().err


@pytest.mark.parametrize("url", ["https://host/dicom-web", "dicom://PACS@host"])
def test_the_extra_is_named_where_it_is_not_installed(monkeypatch, tmp_path, capsys, url):
    for name in ("dicomweb_client.api", "dicomweb_client", "pynetdicom"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["pull", url, "--study", "1.2", "-o", str(tmp_path)]) == 1
    assert "pip install 'medvol-monai[net]'" in capsys.readouterr().err


def test_a_secret_in_every_attribute_stays_in_the_images(web, archive, write, tmp_path, capsys):
    datasets = write("a")
    for one in datasets:
        for name in ("PatientName", "InstitutionName", "AccessionNumber", "StudyDescription", "SeriesDescription"):
            setattr(one, name, "SECRETX")
    archive.add(*datasets)
    main(["pull", web.url, "--study", datasets[0].StudyInstanceUID, "-o", str(tmp_path / "out"), *SAME])
    main(["push", web.url, str(tmp_path / "out"), *SAME])
    output = capsys.readouterr()
    texts = [output.out, output.err]
    for path in (tmp_path / "out").rglob("*"):
        texts.append(str(path.relative_to(tmp_path)))
        if path.is_file() and path.suffix != ".dcm":
            texts.append(path.read_text())
    assert "SECRETX" not in "".join(texts)
    assert pydicom.dcmread(next((tmp_path / "out").glob("*/*/*.dcm"))).PatientName == "SECRETX"
