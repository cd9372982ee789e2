"""Inference that writes DICOM beside, or in the place of, NIfTI: what is written, listed, refused and not told."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom import dcmread
from scipy import ndimage

from medvol.bundle.dicom_results import mean_by_label
from medvol.data.facts import Facts
from medvol.errors import find_refusal
from medvol.geometry import Volume, same_grid
from medvol.inference.record import ModelRecord, save_model
from medvol.io.labels import read_label
from medvol.io.read import read_volume
from medvol.networks.resnet3d import resnet3d
from medvol.networks.unet import unet
from medvol.phantoms.dicom import Identity, write_dicom_series

pytest.importorskip("highdicom")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[2]
UNET, RESNET = (ROOT / "bundles" / name for name in ("unet_segmentation", "resnet3d_classification"))
NAMES = ("liver", "kidney_left")
ALL = ["nifti", "dicom-seg", "dicom-sr", "dicom-sc"]

pytestmark = pytest.mark.filterwarnings("ignore:.*eval.*:UserWarning")  # MONAI warns of expressions in any config


def facts(classes, **changes):
    values = {
        **{"channels": ("image",), "spatial_size": (16, 16, 16), "spacing_mm": (2.0, 2.0, 2.0), "intensity": "mr"},
        **{"limits": None, "has_geometry": True, "laterality_matters": True, "label_values": ()},
    }
    return Facts(classes=classes, **{**values, **changes})


@pytest.fixture
def segmenter(tmp_path):
    """A network that has learnt nothing, whose labels are therefore of no simple shape."""
    shown = facts(("background", *NAMES), label_values=(0, 1, 2))
    network = unet(in_channels=1, num_outputs=3, spatial_size=(16, 16, 16), spacing_mm=(2.0, 2.0, 2.0), width=4)
    save_model(tmp_path / "models", network, ModelRecord(shown, network={"width": 4}))
    return tmp_path / "models"


@pytest.fixture
def series(tmp_path):
    """Two oblique CT series, of which one runs against the other's direction."""
    rng = np.random.default_rng(0)
    affine = np.diag([-2.0, -1.5, 3.0, 1.0])
    affine[:2, :2] = np.array([[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]) @ affine[:2, :2]
    for name, flip in (("a", 1), ("b", -1)):
        voxels = rng.normal(40, 100, (17, 18, 14)).astype(np.int16)
        turned = affine @ np.diag([1, flip, flip, 1])
        identity = Identity(patient="SECRETX", study=name)
        write_dicom_series(Volume(voxels, turned), tmp_path / "tree" / name, identity=identity)
    return tmp_path / "tree"


@pytest.fixture
def predict(tmp_path, bundle_run):
    def run_inference(dataset, models, bundle=UNET, **options):
        paths = {"dataset_dir": str(dataset), "model_dir": str(models), "show_progress": False}
        bundle_run(bundle, ["inference"], tmp_path / "out", **paths, **options)
        with (tmp_path / "out" / "predictions.csv").open(newline="") as stream:
            return list(csv.DictReader(stream))

    return run_inference


def numbers(report, name):
    """Return the numbers of a measurement in a report, from top to bottom."""
    found = []
    for item in report.get("ContentSequence") or ():
        if item.ConceptNameCodeSequence[0].CodeMeaning == name:
            found.append(float(item.MeasuredValueSequence[0].NumericValue))
        found += numbers(item, name)
    return found


def test_every_format_shows_the_same_mask_and_is_listed(series, segmenter, predict, tmp_path):
    rows = predict(series, segmenter, output_formats=ALL)
    assert len(rows) == 2
    outputs = json.loads((tmp_path / "out" / "run.json").read_text())["inference"]["outputs"]
    for row in rows:
        mask = tmp_path / "out" / row["output"]
        stem = mask.name.removesuffix(".nii.gz")
        names = [f"{stem}{tail}" for tail in (".nii.gz", ".dcm", "_sr.dcm", "_sc.dcm")]
        assert {str(mask.with_name(name)) for name in names} <= set(outputs)
        image = series / stem[0]
        volume, expected = read_volume(image), nib.load(mask)
        assert same_grid(volume.affine, expected.affine, volume.array.shape)
        labels = np.asarray(expected.dataobj)
        assert len(np.unique(labels)) > 1
        label = read_label(mask.with_name(names[1]), image)
        np.testing.assert_array_equal(label.volume.array, labels)
        assert label.names == {1: "liver", 2: "kidney_left"}
        report = dcmread(mask.with_name(names[2]))
        volumes = [float(row[f"volume_ml_{name}"]) for name in NAMES]
        assert numbers(report, "Volume") == pytest.approx(volumes, rel=1e-5)
        means = ndimage.mean(volume.array, labels, [one for one in (1, 2) if (labels == one).any()])
        assert numbers(report, "Attenuation Coefficient") == pytest.approx(means, rel=1e-5)
        page = dcmread(mask.with_name(names[3]))
        assert page.pixel_array.std() > 1
        assert page.StudyInstanceUID == dcmread(next(image.iterdir())).StudyInstanceUID


def test_dicom_alone_writes_no_nifti(series, segmenter, predict, tmp_path):
    rows = predict(series, segmenter, output_formats=["dicom-seg-binary"])
    assert sorted(row["output"][-4:] for row in rows) == [".dcm", ".dcm"]
    written = [path.name for path in (tmp_path / "out" / "predictions").iterdir()]
    assert len(written) == 2
    assert dcmread(tmp_path / "out" / rows[0]["output"]).SegmentationType == "BINARY"


def test_nothing_of_the_patient_leaves_the_dicom_files(series, segmenter, predict, tmp_path, caplog):
    predict(series, segmenter, output_formats=ALL)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    telling = {path.suffix for path in files if b"SECRETX" in path.read_bytes()}
    assert telling == {".dcm"}
    assert "SECRETX" not in caplog.text


def test_sources_of_which_none_is_dicom_are_refused_before_the_first_case(series, segmenter, predict, tmp_path):
    volume = read_volume(series / "a")
    nib.save(nib.Nifti1Image(np.asarray(volume.array), volume.affine), tmp_path / "c.nii.gz")
    with pytest.raises(Exception) as wrapped:  # noqa: PT011
        predict(tmp_path / "c.nii.gz", segmenter, output_formats=["nifti", "dicom-seg"])
    refusal = find_refusal(wrapped.value)
    assert (refusal.code, refusal.case) == ("NOT_DICOM", "c")
    assert len(str(refusal)) <= 300
    assert not (tmp_path / "out" / "predictions").exists()


def test_a_file_that_is_no_dicom_among_dicom_stops_no_other_case(series, segmenter, predict, tmp_path, capsys):
    volume = read_volume(series / "a")
    nib.save(nib.Nifti1Image(np.asarray(volume.array), volume.affine), series / "c.nii.gz")
    (series / "d.dcm").touch()
    with pytest.raises(SystemExit) as ended:
        predict(series, segmenter, output_formats=["nifti", "dicom-seg"])
    assert ended.value.code == 3
    with (tmp_path / "out" / "predictions.csv").open(newline="") as stream:
        rows = {row["case"][0]: row for row in csv.DictReader(stream)}
    codes = {case: row["error"].partition(":")[0] for case, row in rows.items()}
    assert codes == {"a": "", "b": "", "c": "NOT_DICOM", "d": "TRUNCATED"}
    assert rows["c"]["output"] == "predictions/c.nii.gz"
    assert "1 of 4 cases are not DICOM and get no DICOM result, such as c" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"output_formats": ["dicom"]}, "UNKNOWN_OPTION"),
        ({"output_formats": []}, "UNKNOWN_OPTION"),
        ({"output_formats": ["dicom-seg", "dicom-seg-binary"]}, "UNKNOWN_OPTION"),
        ({"output_formats": ["dicom-seg"], "segment_codes": ["liver=lever"]}, "UNKNOWN_STRUCTURE"),
        ({"output_formats": ["dicom-seg"], "segment_codes": "none.csv"}, "NOT_FOUND"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_first_case(options, code, series, segmenter, predict, tmp_path):
    with pytest.raises(Exception) as wrapped:  # noqa: PT011
        predict(series, segmenter, **options)
    assert find_refusal(wrapped.value).code == code
    assert not (tmp_path / "out" / "predictions").exists()


def without_study(folder):
    """Take the study's UID from a series, which reads but allows no result."""
    for path in folder.iterdir():
        dataset = dcmread(path)
        dataset.StudyInstanceUID = ""
        dataset.save_as(path)


@pytest.mark.parametrize("formats", [["dicom-seg"], ["nifti", "dicom-seg"]])
def test_a_header_that_allows_no_result_is_told_in_the_row_of_its_case(
    formats, series, segmenter, predict, tmp_path, capsys
):
    without_study(series / "a")
    with pytest.raises(SystemExit) as ended:
        predict(series, segmenter, output_formats=formats)
    assert ended.value.code == 3
    with (tmp_path / "out" / "predictions.csv").open(newline="") as stream:
        first, second = csv.DictReader(stream)
    assert (first["case"][0], bool(first["output"]), first["error"][:6]) == ("a", "nifti" in formats, "NO_UID")
    assert (second["case"][0], bool(second["output"]), second["error"]) == ("b", True, "")
    assert "Segmented 2 cases, 0 could not be read, 1 have no DICOM result" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "run.json").read_text())["inference"]
    assert (record["predicted"], record["failed"], record["without_dicom_result"]) == (2, 0, 1)


def test_a_classification_without_a_dicom_result_is_one_row(series, predict, tmp_path, capsys):
    without_study(series / "a")
    network = resnet3d(in_channels=1, num_outputs=2, widths=(32, 64, 128), dropout=0.2)
    save_model(tmp_path / "models", network, ModelRecord(facts(("vessel", "aneurysm"))))
    with pytest.raises(SystemExit) as ended:
        predict(series, tmp_path / "models", RESNET, output_formats=["dicom-sr"])
    assert ended.value.code == 3
    with (tmp_path / "out" / "predictions.csv").open(newline="") as stream:
        rows = [(row["case"][0], bool(row["pred"]), row["error"].partition(":")[0]) for row in csv.DictReader(stream)]
    assert rows == [("a", True, "NO_UID"), ("b", True, "")]
    assert "Predicted 2 cases, 0 could not be read, 1 have no DICOM result" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["nifti", "dicom-seg"])
def test_one_format_may_be_written_as_a_word(word, series, segmenter, predict):
    suffix = {"nifti": ".nii.gz", "dicom-seg": ".dcm"}[word]
    rows = predict(series, segmenter, output_formats=word)
    assert [row["output"].endswith(suffix) for row in rows] == [True, True]


def test_a_classification_reports_the_probabilities_of_its_table(series, predict, tmp_path):
    shown = facts(("vessel", "aneurysm"))
    network = resnet3d(in_channels=1, num_outputs=2, widths=(32, 64, 128), dropout=0.2)
    save_model(tmp_path / "models", network, ModelRecord(shown))
    rows = predict(series, tmp_path / "models", RESNET, output_formats=["dicom-sr"])
    outputs = json.loads((tmp_path / "out" / "run.json").read_text())["inference"]["outputs"]
    for row in rows:
        path = tmp_path / "out" / "predictions" / f"{row['case']}_sr.dcm"
        assert str(path) in outputs
        expected = [float(row["prob_vessel"]), float(row["prob_aneurysm"])]
        assert numbers(dcmread(path), "Probability") == pytest.approx(expected, abs=1e-5)


def test_means_by_label_are_those_of_scipy():
    rng = np.random.default_rng(0)
    image, labels = rng.normal(0, 1, (7, 8, 9)), rng.integers(0, 3, (7, 8, 9)).astype(np.uint8)
    found = mean_by_label(image, labels, 3)
    assert found[:2] == pytest.approx(list(ndimage.mean(image, labels, [1, 2])))
    assert found[2] is None
