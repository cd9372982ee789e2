"""The pipeline is free of patient data: a secret in every text of the headers reaches no output, no log, no cache."""

import base64
import gzip
import io
import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.datadict import DicomDictionary, dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from medvol.cli import main
from medvol.geometry import Volume, affine_from
from medvol.io import read_volume
from medvol.io.dicom_scan import scan_tree
from medvol.phantoms.cohort import classification_cohort, segmentation_cohort
from medvol.phantoms.dicom import Identity, write_dicom_series

pytestmark = pytest.mark.filterwarnings("ignore:.*eval.*:UserWarning")  # MONAI warns of expressions in any config

SECRET, DESCRIPTION = "SECRETX", "DESCRIBEDX"
DATE, TIME = "19771203", "031459.265358"
TRACES = tuple(text.encode(code) for text in (SECRET, SECRET.lower(), DATE, TIME) for code in ("ascii", "utf-16-le"))
TEXTS = dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"), SECRET)
DATES = {"DA": DATE, "DT": f"{DATE}031459", "TM": TIME}
# What reading depends on; the description has a word of its own, which `medvol scan` shows on purpose.
NEEDED = ("Modality", "SpecificCharacterSet", "PhotometricInterpretation", "ImageType", "SeriesDescription")


def secrets():
    """Return a dataset with a secret in every attribute that holds text or a date, nested and private ones too."""
    dataset = Dataset()
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        value = TEXTS.get(vr) or DATES.get(vr)
        if value and 8 <= tag >> 16 < 0x7FE0 and keyword not in NEEDED:
            dataset.add(DataElement(tag, vr, value, validation_mode=pydicom.config.IGNORE))
    inner = Dataset()
    inner.PatientName = inner.CodeMeaning = SECRET
    dataset.RequestAttributesSequence = [inner]
    dataset.private_block(0x0029, SECRET, create=True).add_new(0x10, "LO", SECRET)
    return dataset


def plant(folder):
    """Put the secrets into every DICOM file below a folder, its preamble and its file meta information."""
    hidden = secrets()
    for path in folder.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        who = dataset.PatientID
        dataset.update(hidden)
        dataset.PatientID, dataset.PatientName = f"{SECRET}{who}", f"{SECRET}^{who}"
        dataset.SeriesDescription = DESCRIPTION
        dataset.ImageType = [*dataset.ImageType, SECRET]
        dataset.preamble = SECRET.encode().ljust(128)
        for name in ("Source", "Sending", "Receiving"):
            setattr(dataset.file_meta, f"{name}ApplicationEntityTitle", SECRET)
        dataset.file_meta.ImplementationVersionName = SECRET
        dataset.save_as(path)
        assert path.read_bytes().count(SECRET.encode()) > 1000


def contents(data):
    """Yield bytes, and whatever is compressed or encoded in them."""
    yield data
    if data[:2] == b"\x1f\x8b":
        yield from contents(gzip.decompress(data))
    elif data[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                yield name.encode()
                yield from contents(archive.read(name))
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        for found in re.finditer(rb"zTXt|iTXt|eXIf", data):
            start = data.find(b"\0", found.end()) + 2
            yield zlib.decompressobj().decompress(data[start:])
    for found in re.finditer(rb"base64,([A-Za-z0-9+/=]{100,})", data):  # pictures within a page
        yield from contents(base64.b64decode(found.group(1)))


def leaks(folder, traces=TRACES):
    """Return the files below a folder that hold a trace, or are named by one."""
    found = set()
    for path in sorted(folder.rglob("*")):
        pieces = [str(path.relative_to(folder)).encode()]
        if path.is_file():
            pieces += list(contents(path.read_bytes()))
        found |= {(str(path.relative_to(folder)), trace) for trace in traces for piece in pieces if trace in piece}
    return found


@pytest.fixture
def command(capfd):
    """Run commands; give their exit code, with all that they print checked."""

    def run(*words):
        code = main([str(word) for word in words])
        printed = "".join(capfd.readouterr())
        assert not [trace for trace in (SECRET, SECRET.lower(), DATE, TIME) if trace in printed], printed
        assert words[0] == "scan" or DESCRIPTION not in printed, printed
        return code, printed

    return run


def test_the_search_finds_what_is_packed_away(tmp_path):
    from PIL import Image, PngImagePlugin

    text = PngImagePlugin.PngInfo()
    text.add_text("a", SECRET, zip=True)
    Image.new("L", (2, 2)).save(tmp_path / "a.png", pnginfo=text)
    (tmp_path / "b.gz").write_bytes(gzip.compress(SECRET.encode()))
    with zipfile.ZipFile(tmp_path / "c.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.gz", gzip.compress(SECRET.encode() * 9))
    picture = base64.b64encode((tmp_path / "a.png").read_bytes() + b"\0" * 90).decode()
    (tmp_path / "d.html").write_text(f'<img src="data:image/png;base64,{picture}">')
    (tmp_path / f"{SECRET}.txt").touch()
    (tmp_path / "fine.txt").touch()
    assert {name for name, _ in leaks(tmp_path)} == {"a.png", "b.gz", "c.npz", "d.html", f"{SECRET}.txt"}


RUNS = {
    "resnet3d_classification": ["--batch_size", "4", "--tensorboard", "True"],
    "unet_segmentation": ["--width", "4", "--patches_per_epoch", "4", "--batch_size", "2", "--val_interval", "1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("bundle", RUNS)
def test_no_text_of_a_header_reaches_what_the_commands_write_or_print(bundle, tmp_path, command):
    make = segmentation_cohort if bundle == "unet_segmentation" else classification_cohort
    table = make(tmp_path / "study", patients=9, size=(18, 17, 16), layout="dicom")
    plant(table.parent)
    out = tmp_path / "out"
    _, printed = command(
        "scan", table.parent, "--json", out / "scan.json", "--csv", out / "cases.csv", "--key-file", table
    )
    assert DESCRIPTION in printed
    command("scan", table.parent, "--csv", out / "other.csv")
    assert {name for name, _ in leaks(out, [DESCRIPTION.encode()])} == {"scan.json"}
    assert command("check", table, "--json", out / "check.json")[0] == 0
    assert command("table", table, "-o", out / "split.csv")[0] == 0
    quiet = ["--precision", "float32"]
    assert command("train", bundle, table, "-o", out / "run", "--max_epochs", "1", *quiet, *RUNS[bundle])[0] == 0
    own = RUNS[bundle][:2] if bundle == "unet_segmentation" else []
    assert command("evaluate", bundle, table, "-o", out / "run", *quiet, *own)[0] == 0
    (image, *_) = sorted((table.parent / "images").iterdir())
    for source, place in ((image, "one"), (out / "cases.csv", "table")):
        words = ["predict", bundle, source, "-o", out / place, "--model_dir", out / "run" / "models", *quiet]
        assert command(*words)[0] == 0
    assert len(list(out.rglob("*.mvcache"))) >= 9
    assert len(list(out.rglob("*"))) > 30
    assert leaks(out) == set()
    assert {name for name, _ in leaks(out, [DESCRIPTION.encode()])} == {"scan.json"}


def _cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def _cut_header(path):
    path.write_bytes(path.read_bytes()[:3000])


def _set(**values):
    def edit(path):
        dataset = pydicom.dcmread(path)
        for keyword, value in values.items():
            tag = Tag(keyword)
            data = value.encode().ljust(len(value) + len(value) % 2)
            # As it stands in a file: no number, no date, whatever the attribute asks for.
            dataset[tag] = RawDataElement(tag, dictionary_VR(tag), len(data), data, 0, False, True)
        dataset.save_as(path)

    return edit


def _charset(path):
    path.write_bytes(path.read_bytes().replace(b"ISO_IR 192", SECRET.encode().ljust(10)))


# Not among them, as they are shown on purpose: series UIDs, the modality, and the values that tell volumes of a series
# apart (echo times, kernels, coils), by which a user names one of them.
DAMAGE = {
    "gap": Path.unlink,
    "cut": _cut,
    "cut header": _cut_header,
    "position": _set(ImagePositionPatient=f"{SECRET}\\0\\0"),
    "orientation": _set(ImageOrientationPatient=SECRET),
    "spacing": _set(PixelSpacing=f"{SECRET}\\1"),
    "slope": _set(RescaleSlope=SECRET),
    "number": _set(InstanceNumber=SECRET, SeriesNumber=SECRET),
    "colour": _set(PhotometricInterpretation=SECRET),
    "class": _set(SOPClassUID=SECRET),
    "character set": _charset,
    "times": _set(AcquisitionTime=SECRET, ContentTime=SECRET, AcquisitionNumber=SECRET),
    "date": _set(AcquisitionDate=SECRET, StudyDate=SECRET),
    "instance": _set(SOPInstanceUID=SECRET, FrameOfReferenceUID=SECRET, StudyInstanceUID=SECRET),
    "window": _set(WindowCenter=SECRET, WindowWidth=SECRET),
    "rows": _set(Rows=SECRET),
}


@pytest.fixture
def damaged(tmp_path):
    """A study with one damaged series for each kind, and its case table."""
    rows = ["case,patient,image,label"]
    for number, (kind, damage) in enumerate(DAMAGE.items()):
        voxels = np.random.default_rng(number).integers(0, 1000, (18, 17, 16)).astype(np.int16)
        folder = tmp_path / "study" / kind.replace(" ", "_")
        files = write_dicom_series(Volume(voxels, affine_from((1.0, 1.5, 3.0))), folder, identity=Identity(kind))
        plant(folder)
        damage(files[5])
        rows.append(f"case{number},{number},{folder.name},{'ab'[number % 2]}")
    table = tmp_path / "study" / "cases.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


@pytest.mark.slow
def test_refusals_quote_no_text_of_a_header(damaged, tmp_path, command):
    out, folder = tmp_path / "out", damaged.parent
    assert command("scan", folder, "--json", out / "scan.json", "--csv", out / "cases.csv")[0] == 0
    assert command("check", damaged, "--json", out / "check.json")[0] == 1
    words = ("predict", "unet_segmentation", folder, "-o", out / "p", "--precision", "float32")
    assert command(*words)[0] == 3
    assert len((out / "p" / "predictions.csv").read_text().splitlines()) > 3
    assert command("predict", "unet_segmentation", folder / "slope", "-o", out / "one")[0] == 1
    assert leaks(out) == set()


def test_log_lines_of_pydicom_which_quote_values_go_nowhere(tmp_path, caplog):
    voxels = np.arange(7 * 8 * 9, dtype=np.int16).reshape(7, 8, 9)
    for path in write_dicom_series(Volume(voxels, affine_from((1.0, 1.5, 3.0))), tmp_path / "in"):
        # A letter beyond ASCII makes pydicom read the file, which checks each value and says what it finds.
        _set(StudyInstanceUID=SECRET, SeriesDescription="Schädel", AcquisitionTime=SECRET, KVP=SECRET)(path)
    caplog.set_level("DEBUG")
    np.testing.assert_array_equal(np.sort(read_volume(tmp_path / "in").array.ravel()), voxels.ravel())
    assert scan_tree(tmp_path / "in").rows[0].verdict == "ok"
    assert SECRET not in caplog.text
