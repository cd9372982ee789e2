"""The quick walk over a header finds what pydicom finds, or leaves the file to it."""

import io
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from pydicom.data import get_testdata_files
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medvol.errors import MedvolError
from medvol.io import dicom_header
from medvol.io.dicom_header import is_dicom, read_slice_headers
from medvol.io.dicom_walk import walk_header

WANTED = ("Rows", "PixelSpacing", "SeriesDescription", "ModalityLUTSequence", "InstanceNumber", 0x0019100C)


def _outcome(path):
    try:
        headers = read_slice_headers(path)
    except MedvolError as error:
        return error.code, str(error)
    return [(replace(one, problem=None), one.problem and str(one.problem)) for one in headers]


def _images():
    for path in sorted({Path(name) for name in get_testdata_files()}):
        if path.is_file() and path.stat().st_size < 3_000_000:
            with path.open("rb") as stream:
                if is_dicom(stream.read(132)):
                    yield path


def test_headers_are_the_same_with_and_without_the_walk(monkeypatch):
    walked = {path: _outcome(path) for path in _images()}
    assert len(walked) > 80
    monkeypatch.setattr(dicom_header, "walk_header", lambda stream, wanted: None)
    for path, outcome in walked.items():
        assert _outcome(path) == outcome, path.name


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
def test_what_stands_inside_sequences_is_passed_over(tmp_path, voxels, write_series, syntax):
    def edit(dataset, index):
        inner, outer = Dataset(), Dataset()
        inner.Rows, inner.PixelSpacing = 99, [9, 9]
        inner.ModalityLUTSequence = Sequence([])
        outer.Rows = 98
        outer.ReferencedImageSequence = Sequence([inner, inner])
        dataset.ReferencedImageSequence = Sequence([outer])
        for one in (outer, dataset):
            one["ReferencedImageSequence"].is_undefined_length = index == 0
        for item in (inner, outer):
            item.is_undefined_length_sequence_item = index == 0

    for path in write_series(tmp_path, voxels[..., :2], syntax=syntax, edit=edit):
        with path.open("rb") as stream:
            header = walk_header(stream, WANTED)
            assert struct.unpack("<HH", stream.read(4)) == (0x7FE0, 0x0010)
        assert header.Rows == 8
        assert [float(one) for one in header.get("PixelSpacing")] == [1.5, 1.0]
        assert "ModalityLUTSequence" not in header


def test_a_long_header_is_read_further(tmp_path, voxels, write_series):
    def edit(dataset, index):
        dataset.add_new(0x00091010, "OB", bytes(100_000))

    path = write_series(tmp_path, voxels[..., :1], edit=edit)[0]
    with path.open("rb") as stream:
        assert walk_header(stream, WANTED).Rows == 8


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian], ids=["big", "deflated"])
def test_what_is_not_plain_is_left_to_pydicom(tmp_path, voxels, write_series, syntax):
    path = write_series(tmp_path, voxels[..., :1], syntax=syntax)[0]
    with path.open("rb") as stream:
        assert walk_header(stream, WANTED) is None
        assert stream.tell() == 0


def test_a_header_that_ends_early_is_left_to_pydicom(tmp_path, voxels, write_series):
    data = write_series(tmp_path, voxels[..., :1])[0].read_bytes()
    pixels = data.index(struct.pack("<HH", 0x7FE0, 0x0010))
    for end in range(132, pixels + 4, 7):
        assert walk_header(io.BytesIO(data[:end]), WANTED) is None


def test_a_description_beyond_ascii_is_left_to_pydicom(tmp_path, voxels, write_series):
    def edit(dataset, index):
        dataset.SpecificCharacterSet, dataset.SeriesDescription = "ISO_IR 192", "Schädel"

    path = write_series(tmp_path, voxels[..., :1], edit=edit)[0]
    with path.open("rb") as stream:
        assert walk_header(stream, WANTED) is None
    assert read_slice_headers(path)[0].description == "Schädel"


@pytest.mark.parametrize(("number", "code"), [(b"7.0", ""), (b"7.5", "BAD_DICOM"), (b"abc", "BAD_DICOM")])
def test_an_integer_text_is_an_integer_or_refused(tmp_path, voxels, write_series, number, code):
    path = write_series(tmp_path, voxels[..., :1])[0]
    data = path.read_bytes()
    at = data.index(struct.pack("<HH2sH", 0x0020, 0x0011, b"IS", 2))
    value = number + b" " * (len(number) % 2)
    path.write_bytes(data[:at] + struct.pack("<HH2sH", 0x0020, 0x0011, b"IS", len(value)) + value + data[at + 10 :])
    if code:
        with pytest.raises(MedvolError, match=code):
            read_slice_headers(path)
    else:
        assert read_slice_headers(path)[0].number == 7
