"""De-identification: no byte of a secret comes through, and what voxels are and where they lie stays bit for bit."""

import copy
import io
import struct
import warnings
import zlib
from datetime import date, datetime
from importlib import import_module
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RTStructureSetStorage,
    SegmentationStorage,
)

from medvol.errors import MedvolError
from medvol.io import read_volume
from medvol.io.deid import deidentify_tree
from medvol.io.deid_file import DeidOptions, deidentify_file
from medvol.io.deid_key import create_key, days_earlier, hashed_uid, read_key
from medvol.io.deid_profile import load_profile
from medvol.io.deid_streams import blank_comments

pytest.importorskip("dicomanonymizer", reason="needs the extra `deid`")

KEY = b"a secret of the test project"
SECRET_UID = "1.2.53.19771203.31415926"
NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
TEXTS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")

# Every form in which a secret was planted, as it would stand in a file.
TRACES = (
    *(b"SECRETX", b"secretx", b"19771203", b"031459", b"31415926", b"077Y", SECRET_UID.encode(), "ŠECRETX".encode()),
    *(struct.pack(f"{order}{kind}", 31415.926) for order in "<>" for kind in "df"),
    *(struct.pack(f"{order}i", 31415926) for order in "<>"),
)


def planted(vr):
    """Return a value that would identify somebody, for each kind of attribute."""
    if vr in TEXTS:
        return "SECRETX"
    if vr == "SQ":
        item = Dataset()
        item.PatientName, item.PatientID, item.InstitutionName = "SECRETX^Deep", "SECRETX", "SECRETX"
        item.ReferencedSOPInstanceUID = SECRET_UID
        return [item]
    values = {"UI": SECRET_UID, "DA": "19771203", "DT": "19771203031459.5+0100", "TM": "031459", "AS": "077Y"}
    values |= dict.fromkeys(("DS", "IS"), "31415926") | dict.fromkeys(("OB", "UN", "OW"), b"SECRETX ")
    values |= dict.fromkeys(("FD", "FL"), 31415.926) | dict.fromkeys(("UL", "SL"), 31415926)
    return values.get(vr, 31415)


def table_tags():
    """Return the tags of the newest table of dicom-anonymizer, a member for each repeating group."""
    table = import_module("dicomanonymizer.dicom_anonymization_databases.dicomfields_2026c")
    return sorted({tag[0] << 16 | (tag[1] or 0x0005) for tag in table.ALL_TAGS})


def plant(dataset, tags):
    """Put a secret into attributes of a dataset, three levels deep as well, and beside them."""
    deep = Dataset()
    for tag in tags:
        if tag >> 16 >= 8 and tag not in (0x00080018, 0x0020000D, 0x0020000E):
            vr = DicomDictionary.get(tag, ("LO",))[0].split(" or ")[0]
            for place in (dataset, deep):
                place.add_new(tag, vr, planted(vr))
    for _ in range(3):  # sequences that the table does not name
        outer = Dataset()
        outer.SharedFunctionalGroupsSequence = [deep]
        deep = outer
    dataset.PerFrameFunctionalGroupsSequence = [deep]
    for place in (dataset, deep):
        block = place.private_block(0x0029, "SECRETX", create=True)
        block.add_new(0x10, "LO", "SECRETX")
        block.add_new(0x11, "SQ", planted("SQ"))
        place.add_new(0x60000010, "US", 8)
        place.add_new(0x60003000, "OW", b"SECRETX ")
        place.add_new(0x60001500, "LO", "SECRETX")
        place.add_new(0x50000110, "US", 0)
        place.add_new(0x50003000, "OW", b"SECRETX ")
        place.add_new(0x00109999, "LO", "SECRETX")  # in no dictionary
    dataset.preamble = b"SECRETX".ljust(128, b"X")
    for name in ("Source", "Sending", "Receiving"):
        setattr(dataset.file_meta, f"{name}ApplicationEntityTitle", "SECRETX")
    dataset.file_meta.PrivateInformationCreatorUID, dataset.file_meta.PrivateInformation = SECRET_UID, b"SECRETX "
    dataset.file_meta.ImplementationVersionName = "SECRETX"


def bytes_of(data):
    """Return a file's bytes, and those behind a deflated header."""
    syntax = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True).file_meta.TransferSyntaxUID
    if syntax != DeflatedExplicitVRLittleEndian:
        return data
    (length,) = struct.unpack("<I", data[140:144])
    return data + zlib.decompress(data[144 + length :], -zlib.MAX_WBITS)


def assert_clean(data, traces=TRACES):
    plain = bytes_of(data)
    assert [trace for trace in traces if trace in plain] == []


@pytest.fixture
def profile():
    return load_profile()


@pytest.fixture
def deid(profile):
    def run(path, **options):
        result = deidentify_file(path, DeidOptions(KEY, **options), profile)
        return result, pydicom.dcmread(io.BytesIO(result.data))

    return run


def test_the_newest_table_is_chosen(profile):
    assert profile.name >= "2026c"
    assert len(profile.rules) > 600


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("syntax", NATIVE, ids=lambda uid: uid.name[:24])
def test_no_byte_of_a_secret_in_any_attribute_of_the_table_comes_through(
    tmp_path, voxels, write_series, deid, syntax, shift
):
    def edit(dataset, index):
        plant(dataset, table_tags())

    (path,) = write_series(tmp_path / "in", voxels[..., :1], edit=edit, syntax=syntax)
    assert [trace for trace in TRACES[:1] if trace not in bytes_of(path.read_bytes())] == []
    result, dataset = deid(path, shift_dates=shift)
    # With dates moved, times of the day stay as they were: that is what the option is for.
    assert_clean(result.data, [trace for trace in TRACES if not (shift and trace == b"031459")])
    assert dataset.file_meta.TransferSyntaxUID == syntax
    assert result.data[:128] == bytes(128)
    assert dataset.pixel_array.tolist() == pydicom.dcmread(path).pixel_array.tolist()


def test_a_name_typed_into_any_text_of_the_whole_dictionary_is_found(tmp_path, voxels, write_series, deid):
    def edit(dataset, index):
        tags = [tag for tag, entry in DicomDictionary.items() if entry[0] in TEXTS and tag >> 16 < 0x7FE0]
        plant(dataset, [tag for tag in tags if tag != 0x00080005])  # the character set is read, and written anew
        dataset.SegmentLabel, dataset.ManufacturerModelName = "left kidney of secretx", "xSECRETXx"
        dataset.ICCProfile = b"profile of SECRETX"

    (path,) = write_series(tmp_path / "in", voxels[..., :1], edit=edit)
    result, _ = deid(path, allow_pixels=True)  # codes of the pixels are names, too
    assert_clean(result.data)
    assert result.swept > 100


def test_of_coded_strings_only_the_value_that_identifies_goes(tmp_path, voxels, write_series, deid):
    def edit(dataset, index):
        # Names that are defined terms too, and an identifier beside other terms.
        dataset.PatientName, dataset.PatientID, dataset.OperatorsName = "Head^Primar", "SECRETX7", "Axial"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "SECRETX7"]
        dataset.BodyPartExamined, dataset.ScanOptions, dataset.PatientPosition = "HEAD", "X SECRETX7", "HFS"

    (path,) = write_series(tmp_path / "in", voxels[..., :1], edit=edit)
    result, dataset = deid(path)
    assert_clean(result.data)
    assert list(dataset.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL", "ANONYMIZED"]
    assert (dataset.BodyPartExamined, dataset.ScanOptions) == ("HEAD", "ANONYMIZED")
    assert (dataset.Modality, dataset.PhotometricInterpretation) == ("CT", "MONOCHROME2")


def test_a_dataset_without_secrets_in_it_loses_nothing_that_describes_the_image(tmp_path, voxels, write_series, deid):
    kept = {"Manufacturer": "maker", "ConvolutionKernel": "B30f", "KVP": "120", "BodyPartExamined": "CHEST"}

    def edit(dataset, index):
        dataset.PatientName, dataset.PatientID = "Li^An", "1"  # too short to be searched for within words
        for name, value in kept.items():
            setattr(dataset, name, value)

    (path,) = write_series(tmp_path / "in", voxels[..., :1], edit=edit)
    result, dataset = deid(path)
    assert {name: str(dataset.get(name)) for name in kept} == kept
    assert (result.swept, result.may_show_face) == (0, False)


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda uid: uid.name[:24])
def test_the_volume_of_the_results_is_the_volume_of_the_source(tmp_path, voxels, write_series, syntax):
    write_series(tmp_path / "in", voxels, syntax=syntax)
    report = deidentify_tree(tmp_path / "in", tmp_path / "out", DeidOptions(KEY), show_progress=False)
    assert (report.written, report.refused, report.patients, len(report.series)) == (9, [], 1, 1)
    before, after = read_volume(tmp_path / "in"), read_volume(tmp_path / "out")
    np.testing.assert_array_equal(after.array, before.array)
    np.testing.assert_array_equal(after.affine, before.affine)


def test_markers_say_what_was_done(tmp_path, voxels, write_series, deid):
    paths = write_series(tmp_path / "in", voxels[..., :1])
    for shift, codes, word in ((False, ["113100"], "REMOVED"), (True, ["113100", "113107"], "MODIFIED")):
        _, dataset = deid(paths[0], shift_dates=shift)
        assert dataset.PatientIdentityRemoved == "YES"
        assert [item.CodeValue for item in dataset.DeidentificationMethodCodeSequence] == codes
        assert {item.CodingSchemeDesignator for item in dataset.DeidentificationMethodCodeSequence} == {"DCM"}
        assert dataset.LongitudinalTemporalInformationModified == word
        assert max(map(len, dataset.DeidentificationMethod)) <= 64


def test_a_patient_is_called_as_scan_calls_it(tmp_path, voxels, write_series, deid):
    from medvol.io.dicom_scan import scan_tree

    paths = write_series(tmp_path / "in", voxels)
    result, dataset = deid(paths[0])
    (row,) = scan_tree(tmp_path / "in", key=KEY).rows
    assert dataset.PatientID == str(dataset.PatientName) == result.place.parts[0] == row.patient


def test_uids_follow_from_the_key_alone_and_references_still_hold(tmp_path, voxels, write_series, deid):
    paths = write_series(tmp_path / "in", voxels)
    uids = [str(pydicom.dcmread(path).SOPInstanceUID) for path in paths]

    def refer(dataset, kind):
        dataset.SOPClassUID, dataset.SOPInstanceUID = kind, dataset.file_meta.MediaStorageSOPInstanceUID
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", uids[3]
        series = Dataset()
        series.SeriesInstanceUID, series.ReferencedInstanceSequence = "1.2.3.4", [reference]
        dataset.ReferencedSeriesSequence = [series]
        source = Dataset()
        source.SourceImageSequence = [copy.deepcopy(reference)]
        dataset.DerivationImageSequence = [source]

    for number, kind in enumerate((SegmentationStorage, RTStructureSetStorage)):
        dataset = pydicom.dcmread(paths[0])
        dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.9.{number}"
        refer(dataset, kind)
        dataset.save_as(tmp_path / "one.dcm")
        _, after = deid(tmp_path / "one.dcm")
        (series,) = after.ReferencedSeriesSequence
        _, image = deid(paths[3])
        assert series.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
        assert series.ReferencedInstanceSequence[0].ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.2"
        assert series.SeriesInstanceUID == image.SeriesInstanceUID
        inner = after.DerivationImageSequence[0].SourceImageSequence[0]
        assert inner.ReferencedSOPInstanceUID == image.SOPInstanceUID == hashed_uid(uids[3], KEY)
    assert hashed_uid(uids[3], KEY) != hashed_uid(uids[3], KEY + b"x")
    assert hashed_uid("1.2.3", KEY) == hashed_uid("1.2.3\0", KEY)


def test_hashed_uids_are_valid_and_differ():
    uids = {hashed_uid(f"1.2.{number}", KEY) for number in range(2000)}
    assert len(uids) == 2000
    assert all(pydicom.uid.UID(uid).is_valid and uid.startswith("2.25.") for uid in uids)


def test_dates_of_a_patient_move_by_the_same_whole_days_and_times_stay(tmp_path, voxels, write_series, deid):
    def edit(dataset, index):
        dataset.StudyDate, dataset.StudyTime = "20240301", "101112.5"
        dataset.AcquisitionDateTime = f"2024030{index + 1}101112.25+0100"
        dataset.FrameReferenceDateTime = "2024"  # a year alone cannot move by days
        dataset.PatientBirthDate = "19771203"
        for name, value in (("ContentDate", "2024.03.31"), ("CurveDate", "SECRETX")):
            dataset.add(DataElement(name, "DA", value, validation_mode=pydicom.config.IGNORE))
        item = Dataset()
        item.RadiopharmaceuticalStartDateTime = "20240229235959"
        dataset.RadiopharmaceuticalInformationSequence = [item]

    paths = write_series(tmp_path / "in", voxels[..., :2], edit=edit)
    gone = days_earlier("SECRETX\n", KEY)
    assert 1 <= gone <= 365
    for index, path in enumerate(paths):
        result, dataset = deid(path, shift_dates=True)
        assert (date(2024, 3, 1) - datetime.strptime(dataset.StudyDate, "%Y%m%d").date()).days == gone
        assert dataset.StudyTime == "101112.5"
        moved = date.fromordinal(date(2024, 3, 1 + index).toordinal() - gone)
        assert dataset.AcquisitionDateTime == f"{moved:%Y%m%d}101112.25"
        assert dataset.ContentDate == f"{date.fromordinal(date(2024, 3, 31).toordinal() - gone):%Y%m%d}"
        inner = dataset.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartDateTime
        assert inner == f"{date.fromordinal(date(2024, 2, 29).toordinal() - gone):%Y%m%d}235959"
        assert dataset.PatientBirthDate == ""
        assert not dataset.FrameReferenceDateTime.startswith("2024")
        assert_clean(result.data)
        _, removed = deid(path)
        assert removed.StudyDate == removed.StudyTime == ""
    assert len({days_earlier(f"patient {number}", KEY) for number in range(500)}) > 200


RISKS = {
    "BurnedInAnnotation": {"BurnedInAnnotation": "YES"},
    "ImageType": {"ImageType": ["DERIVED", "PRIMARY", "MPR"]},
    "ImageType not": {"ImageType": ["ORIGINAL", "SECONDARY", "AXIAL"]},
    "ImageType of a screen": {"ImageType": ["ORIGINAL", "PRIMARY", "SCREEN SAVE"]},
    "ConversionType": {"ConversionType": "WSD"},
    "Secondary Capture": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
    "Ultrasound": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1", "BurnedInAnnotation": "NO"},
    "Angiographic": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.12.1", "BurnedInAnnotation": "NO"},
    "Photographic": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.4", "BurnedInAnnotation": "NO"},
    "without BurnedInAnnotation": {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1"},
    "RecognizableVisualFeatures": {"RecognizableVisualFeatures": "YES"},
    "neither": {"ImagePositionPatient": None},
}


@pytest.mark.parametrize("words", RISKS)
def test_pixels_that_may_show_a_name_are_refused_unless_told(tmp_path, voxels, write_series, deid, refused, words):
    def edit(dataset, index):
        for name, value in RISKS[words].items():
            setattr(dataset, name, value)

    (path,) = write_series(tmp_path / "in", voxels[..., :1], edit=edit)
    with refused("PIXELS_AT_RISK", words.split(" not")[0], "--allow-pixels"):
        deid(path)
    _, dataset = deid(path, allow_pixels=True)
    assert dataset.PatientIdentityRemoved == "YES"


def test_a_radiograph_that_states_no_annotation_is_taken(tmp_path, voxels, write_series, deid):
    def edit(dataset, index):
        dataset.SOPClassUID, dataset.BurnedInAnnotation = "1.2.840.10008.5.1.4.1.1.1", "NO"

    (path,) = write_series(tmp_path / "in", voxels[..., :1], edit=edit)
    assert deid(path)[1].BurnedInAnnotation == "NO"


@pytest.mark.parametrize(
    ("tail", "name"),
    [("88.33", "Comprehensive SR"), ("104.1", "Encapsulated PDF"), ("11.1", "Presentation State"), ("66", "Raw Data")],
)
def test_what_is_free_text_by_nature_is_always_refused(tmp_path, voxels, write_series, deid, refused, tail, name):
    def edit(dataset, index):
        dataset.SOPClassUID = f"1.2.840.10008.5.1.4.1.1.{tail}"

    (path,) = write_series(tmp_path / "in", voxels[..., :1], edit=edit)
    with refused("UNSAFE_OBJECT", name):
        deid(path, allow_pixels=True)


def test_refusals_quote_nothing_of_the_header(tmp_path, voxels, write_series, deid):
    def unknown_class(dataset, index):
        dataset.SOPClassUID = SECRET_UID

    def no_uid(dataset, index):
        dataset.StudyInstanceUID = ""

    def bad_number(dataset, index):
        dataset.add_new("Columns", "US", 31415)
        dataset.add_new("ImageType", "CS", ["DERIVED", "SECRETX"])

    messages = []
    for edit in (unknown_class, no_uid, bad_number):
        (path,) = write_series(tmp_path / "in", voxels[..., :1], edit=edit)
        for options in ({}, {"allow_pixels": True}):
            with pytest.raises(MedvolError) as caught:
                deid(path, **options)
            messages += [str(caught.value), *caught.value.details]
    assert not [text for text in messages if "SECRETX" in text or SECRET_UID in text]


def test_an_overlay_in_unused_bits_of_the_pixels_is_cleared_and_the_values_stay(tmp_path, voxels, write_series, deid):
    values = np.abs(voxels[..., :1]) % 2000

    def edit(dataset, index):
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 12, 11, 0
        dataset.add_new(0x60000100, "US", 16)
        dataset.add_new(0x60000102, "US", 15)
        stored = np.frombuffer(dataset.PixelData, "<u2")
        dataset.PixelData = (stored | 0x8000).astype("<u2").tobytes()

    (path,) = write_series(tmp_path / "in", values, edit=edit)
    before = read_volume(path).array
    _, dataset = deid(path)
    assert np.frombuffer(dataset.PixelData, "<u2").max() < 1 << 12
    np.testing.assert_array_equal(dataset.pixel_array.T, before[..., 0])


def test_negative_values_survive_the_clearing_of_overlays(tmp_path, voxels, write_series, deid):
    def edit(dataset, index):
        dataset.BitsStored, dataset.HighBit = 12, 11
        dataset.add_new(0x60000102, "US", 15)

    (path,) = write_series(tmp_path / "in", voxels[..., :1], edit=edit)
    assert pydicom.dcmread(path).pixel_array.min() < 0
    _, dataset = deid(path)
    assert dataset.PixelData == pydicom.dcmread(path).PixelData


def test_bytes_behind_the_pixels_and_comments_in_streams_go(tmp_path, voxels, write_series, deid):
    def edit(dataset, index):
        dataset.PixelData += b"SECRETX "

    (path,) = write_series(tmp_path / "in", voxels[..., :1], edit=edit)
    assert_clean(deid(path)[0].data)

    texts = b"\xff\xfe\x00\x09SECRETX" + b"\xff\xe1\x00\x09SECRETX"
    comment = b"\xff\xd8" + b"\xff\xe0\x00\x04JF" + texts + b"\xff\xda\x00\x02"
    newer = b"\xff\x4f" + b"\xff\x51\x00\x04si" + b"\xff\x64\x00\x0b\x00\x01SECRETX" + b"\xff\x90SECRETX"
    blanked = blank_comments(encapsulate([comment, newer]))
    assert len(blanked) == len(encapsulate([comment, newer]))
    assert blanked.count(b"SECRETX") == 1  # of the code itself, behind the start of a tile
    assert b"\xff\xe0\x00\x04JF" in blanked


def test_compressed_frames_decode_as_before(profile, data_folder, tmp_path):
    pytest.importorskip("imagecodecs", reason="needs the extra `codecs`")
    seen = set()
    for path in sorted(one for one in (data_folder / "wg04_compression").rglob("*") if one.is_file()):
        try:
            before = read_volume(path)
        except MedvolError:
            continue
        after = tmp_path / "after.dcm"
        after.write_bytes(deidentify_file(path, DeidOptions(KEY, allow_pixels=True), profile).data)
        np.testing.assert_array_equal(read_volume(after).array, before.array)
        seen.add(path.name.split("_")[-1])
    assert {"JPLL", "JLSL", "J2KR"} <= seen


def test_names_of_structures_are_numbered_or_kept_but_never_with_a_name(tmp_path, voxels, write_series, deid):
    def edit(dataset, index):
        dataset.SOPClassUID = RTStructureSetStorage
        regions = []
        for number, name in enumerate(("liver", "tumour of Secretx")):
            item = Dataset()
            item.ROINumber, item.ROIName = number, name
            regions.append(item)
        dataset.StructureSetROISequence = regions

    (path,) = write_series(tmp_path / "in", voxels[..., :1], edit=edit)
    for options, names in (({}, ["ROI 0", "ROI 1"]), ({"keep_structure_names": True}, ["liver", "ANONYMIZED"])):
        result, dataset = deid(path, **options)
        assert [item.ROIName for item in dataset.StructureSetROISequence] == names
        assert_clean(result.data)


def test_texts_in_any_character_set_come_out_in_utf8(tmp_path, voxels, write_series, deid):
    def edit(dataset, index):
        dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
        dataset.PatientName = "SECRETX^Tarou=山田^太郎"
        dataset.Manufacturer, dataset.StationName = "山本製作所", "山田"
        dataset.ManufacturerModelName = "山田 1号"
        item = Dataset()
        item.SpecificCharacterSet, item.Manufacturer = "ISO_IR 100", "Müller"
        dataset.ContributingEquipmentSequence = [item]

    (path,) = write_series(tmp_path / "in", voxels[..., :1], edit=edit)
    result, dataset = deid(path)
    assert dataset.Manufacturer == "山本製作所"
    assert dataset.SpecificCharacterSet == "ISO_IR 192"
    assert "山本製作所".encode() in result.data
    assert dataset.ContributingEquipmentSequence[0].Manufacturer == "Müller"
    assert "山田".encode() not in result.data
    assert "山田".encode("iso2022_jp")[3:7] not in result.data


@pytest.mark.parametrize("syntax", NATIVE[:3], ids=lambda uid: uid.name[:24])
def test_private_numbers_of_diffusion_move_to_where_dicom_has_them(tmp_path, voxels, write_series, deid, syntax):
    blocks = {
        ("SIEMENS MR HEADER", 0x0019): {0x0C: ("IS", 1000), 0x0E: ("FD", [0.5, -0.25, 0.125])},
        ("GEMS_PARM_01", 0x0043): {0x39: ("IS", [1000001000, 8, 0, 0])},
        ("GEMS_ACQU_01", 0x0019): {0xBB: ("DS", 0.5), 0xBC: ("DS", -0.25), 0xBD: ("DS", 0.125)},
        ("Philips Imaging DD 001", 0x2001): {0x03: ("FL", 1000.0)},
        ("Philips MR Imaging DD 001", 0x2005): {0xB0: ("FL", 0.5), 0xB1: ("FL", -0.25), 0xB2: ("FL", 0.125)},
    }
    philips = ("Philips Imaging DD 001", "Philips MR Imaging DD 001")
    for names in (("SIEMENS MR HEADER",), ("GEMS_PARM_01", "GEMS_ACQU_01"), philips):

        def edit(dataset, index, names=names):
            dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
            for (creator, group), values in blocks.items():
                if creator in names:
                    block = dataset.private_block(group, creator, create=True)
                    for offset, (vr, value) in values.items():
                        block.add_new(offset, vr, value)

        (path,) = write_series(tmp_path / "in", voxels[..., :1], edit=edit, syntax=syntax)
        _, dataset = deid(path)
        assert (dataset.DiffusionBValue, list(dataset.DiffusionGradientOrientation)) == (1000, [0.5, -0.25, 0.125])
        assert not any(element.tag.is_private for element in dataset)


def test_blocks_that_lost_their_names_are_told_by_the_maker_of_the_scanner(tmp_path, voxels, write_series, deid):
    for maker, value in (("GE MEDICAL SYSTEMS", 700.0), ("SIEMENS", None), ("", None)):

        def edit(dataset, index, maker=maker):
            dataset.SOPClassUID, dataset.Manufacturer = "1.2.840.10008.5.1.4.1.1.4", maker
            dataset.add_new(0x00431039, "IS", [700, 8, 0, 0])

        (path,) = write_series(tmp_path / "in", voxels[..., :1], edit=edit)
        assert deid(path)[1].get("DiffusionBValue") == value


def test_a_text_where_a_b_value_should_be_is_not_taken_over(tmp_path, voxels, write_series, deid):
    def edit(dataset, index):
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
        block = dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        block.add_new(0x0C, "LO", "SECRETX")
        block.add_new(0x0E, "UN", b"SECRETX ")

    (path,) = write_series(tmp_path / "in", voxels[..., :1], edit=edit)
    result, dataset = deid(path)
    assert "DiffusionBValue" not in dataset
    assert_clean(result.data)


def test_a_file_without_preamble_and_meta_is_taken(tmp_path, voxels, write_series, deid):
    (path,) = write_series(tmp_path / "in", voxels[..., :1], syntax=ImplicitVRLittleEndian)
    dataset = pydicom.dcmread(path)
    bare = tmp_path / "bare"
    with bare.open("wb") as stream:
        buffer = pydicom.filebase.DicomBytesIO()
        buffer.is_little_endian, buffer.is_implicit_VR = True, True
        pydicom.filewriter.write_dataset(buffer, dataset)
        stream.write(buffer.getvalue())
    result, after = deid(bare)
    assert after.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian
    assert after.pixel_array.tolist() == dataset.pixel_array.tolist()
    assert_clean(result.data)


def test_damaged_files_are_refused_or_clean(tmp_path, voxels, write_series, profile):
    def edit(dataset, index):
        plant(dataset, table_tags()[::20])

    (path,) = write_series(tmp_path / "in", voxels[..., :1], edit=edit)
    data, rng = path.read_bytes(), np.random.default_rng(3)
    outcomes = {"written": 0, "refused": 0}
    messages = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(150):
            changed = bytearray(data[: rng.integers(len(data))] if rng.random() < 0.3 else data)
            for position in rng.integers(len(changed), size=3):
                changed[position] = rng.integers(256)
            path.write_bytes(changed)
            try:
                deidentify_file(path, DeidOptions(KEY), profile)
                outcomes["written"] += 1
            except MedvolError as error:
                outcomes["refused"] += 1
                messages.append(str(error))
    assert not [text for text in messages if "SECRETX" in text]
    assert min(outcomes.values()) > 0, outcomes


def test_a_cut_file_is_refused(tmp_path, voxels, write_series, deid, refused):
    (path,) = write_series(tmp_path / "in", voxels[..., :1])
    path.write_bytes(path.read_bytes()[:-5])
    with refused("TRUNCATED"):
        deid(path)


def test_sequences_too_deep_to_follow_are_refused(tmp_path, voxels, write_series, deid, refused):
    (path,) = write_series(tmp_path / "in", voxels[..., :1])
    data = path.read_bytes()
    at = data.index(struct.pack("<HH", 0x7FE0, 0x0010))
    level = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    path.write_bytes(data[:at] + level * 3000)
    with refused("BAD_DICOM"):
        deid(path)


def test_a_second_run_goes_on_and_overwrites_nothing(tmp_path, voxels, write_series):
    paths = write_series(tmp_path / "in", voxels)
    aside = tmp_path / "aside"
    paths[0].rename(aside)
    first = deidentify_tree(tmp_path / "in", tmp_path / "out", DeidOptions(KEY), show_progress=False)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.dcm")}
    aside.rename(paths[0])
    second = deidentify_tree(tmp_path / "in", tmp_path / "out", DeidOptions(KEY), show_progress=False)
    assert (first.written, second.written, second.present) == (8, 1, 8)
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())


def test_one_instance_with_two_contents_is_refused_and_a_copy_counted_once(tmp_path, voxels, write_series):
    write_series(tmp_path / "in" / "a", voxels)
    write_series(tmp_path / "in" / "b", voxels)
    write_series(tmp_path / "in" / "c", voxels + 1)
    report = deidentify_tree(tmp_path / "in", tmp_path / "out", DeidOptions(KEY), show_progress=False)
    assert (report.written, report.present, report.codes) == (9, 9, {"OTHER_CONTENT": 9})
    np.testing.assert_array_equal(read_volume(tmp_path / "out").array, voxels)


def test_folders_that_overlap_are_in_use_or_of_other_settings_are_refused(tmp_path, voxels, write_series, refused):
    write_series(tmp_path / "in", voxels[..., :1])

    def run(target, key=KEY, **options):
        return deidentify_tree(tmp_path / "in", target, DeidOptions(key, **options), show_progress=False)

    for target in (tmp_path / "in", tmp_path / "in" / "out", tmp_path):
        with refused("FOLDERS_OVERLAP"):
            run(target)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").touch()
    with refused("FOLDER_IN_USE"):
        run(tmp_path / "used")
    run(tmp_path / "out")
    with refused("OTHER_SETTINGS", "another key"):
        run(tmp_path / "out", key=KEY + b"x")
    with refused("OTHER_SETTINGS", "shift_dates"):
        run(tmp_path / "out", shift_dates=True)


def test_nothing_in_the_results_names_the_source(tmp_path, voxels, write_series):
    write_series(tmp_path / "SECRETX folder" / "a", voxels)
    (tmp_path / "SECRETX folder" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM SECRETX")
    (tmp_path / "SECRETX folder" / "notes.txt").write_text("SECRETX")
    report = deidentify_tree(tmp_path / "SECRETX folder", tmp_path / "out", DeidOptions(KEY), show_progress=False)
    assert report.others == 2
    for path in (tmp_path / "out").rglob("*"):
        assert "SECRETX" not in str(path.relative_to(tmp_path))
        if path.is_file():
            assert b"SECRETX" not in path.read_bytes()
            assert b"1.2.3.4" not in path.read_bytes()


def test_a_key_is_random_private_and_never_overwritten(tmp_path, refused):
    first, second = create_key(tmp_path / "a" / "key"), create_key(tmp_path / "other")
    assert first != second
    assert (tmp_path / "other").stat().st_mode & 0o777 == 0o600
    assert read_key(tmp_path / "other") == second
    with refused("KEY_EXISTS"):
        create_key(tmp_path / "other")
    (tmp_path / "short").write_text("1234\n")
    with refused("SHORT_KEY", "4 bytes"):
        read_key(tmp_path / "short")


def test_every_kind_of_dataset_that_pydicom_brings_is_written_or_refused(profile):
    outcomes = {}
    for name in sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm")):
        try:
            result = deidentify_file(name, DeidOptions(KEY, allow_pixels=True), profile)
        except MedvolError as error:
            outcomes[error.code] = outcomes.get(error.code, 0) + 1
            continue
        outcomes["written"] = outcomes.get("written", 0) + 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            before, after = pydicom.dcmread(name, force=True), pydicom.dcmread(io.BytesIO(result.data))
        if "PixelData" in before and not after.file_meta.TransferSyntaxUID.is_encapsulated:
            assert before.PixelData.startswith(after.PixelData[:-1])
    assert outcomes["written"] > 20, outcomes
