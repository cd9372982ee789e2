"""The bundles for 2D images, trained, evaluated and applied with MONAI's own command on tiny pictures."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image

from medvol.errors import find_refusal
from medvol.geometry import Volume
from medvol.networks.resnet2d import resnet50_2d
from medvol.networks.vit2d import timm_state, vit2d
from medvol.phantoms.cohort import classification_cohort
from medvol.phantoms.dicom import write_dicom_series

ROOT = Path(__file__).parents[2] / "bundles"
CNN, RESNET, VIT = (ROOT / f"{name}_classification" for name in ("cnn2d", "resnet50_2d", "vit2d"))
SMALL = {
    CNN: {"spatial_size": [18, 20]},
    RESNET: {"spatial_size": [32, 32]},
    VIT: {"spatial_size": [16, 24], "preset": "compact"},
}
QUIET = {"show_progress": False, "precision": "float32"}

pytestmark = pytest.mark.filterwarnings("ignore:.*eval.*:UserWarning")  # MONAI warns of expressions in any config


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """PNG files in folders named after split and class, and their table."""
    place = tmp_path_factory.mktemp("study") / "cohort"
    return classification_cohort(place, patients=15, size=(22, 21, 20), layout="png")


@pytest.fixture
def train(bundle_run):
    def run_training(bundle, output, dataset, **options):
        defaults = {"max_epochs": 1, "batch_size": 8, "model_dir": str(output / "models"), **QUIET, **SMALL[bundle]}
        bundle_run(bundle, ["train"], output, dataset_dir=str(dataset), **{**defaults, **options})
        return json.loads((output / "models" / "model.json").read_text())

    return run_training


@pytest.fixture
def evaluate(bundle_run):
    def run_evaluation(bundle, output, dataset):
        options = {"dataset_dir": str(dataset), "model_dir": str(output / "models"), **QUIET}
        bundle_run(bundle, ["train", "evaluate"], output, **options)
        return json.loads((output / "metrics.json").read_text())

    return run_evaluation


@pytest.fixture
def predict(bundle_run, rows_of):
    def run_inference(bundle, output, dataset, models):
        options = {"dataset_dir": str(dataset), "model_dir": str(models), "show_progress": False}
        bundle_run(bundle, ["inference"], output, **options)
        return rows_of(output / "predictions.csv")

    return run_inference


def refusal_of(wrapped):
    refusal = find_refusal(wrapped.value)
    assert refusal is not None
    assert len(str(refusal)) <= 300
    return str(refusal)


def pictures(folder, classes, count, size=(24, 26), mode="L"):
    """Write class folders of noise whose brightness tells the class; folders of other names hold other noise."""
    rng = np.random.default_rng(list(folder.name.encode()))
    for index, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            shape = size if mode == "L" else (*size, 3)
            array = (rng.random(shape) * 80 + 40 * index).astype(np.uint8)
            Image.fromarray(array).save(folder / name / f"{name}{number}.png")
    return folder


@pytest.mark.parametrize("bundle", [CNN, RESNET, VIT], ids=lambda path: path.name)
def test_a_bundle_trains_evaluates_and_predicts_images_from_any_folder(
    bundle, cohort, tmp_path, train, evaluate, predict, rows_of, missing_properties
):
    output = tmp_path / "out put"
    record = train(bundle, output, cohort, max_epochs=2)
    assert record["facts"]["spatial_size"] == SMALL[bundle]["spatial_size"]
    history = rows_of(output / "history.csv")
    assert len(history) == 2
    assert {"train_loss", "train_accuracy", "val_loss", "val_accuracy"} <= set(history[0])
    assert float(history[1]["val_loss"]) == pytest.approx(-float(history[1]["log_likelihood"]), abs=1e-6)

    metrics = evaluate(bundle, output, cohort)
    test_cases = [row for row in rows_of(cohort) if row["split"] == "test"]
    assert (metrics["split"], metrics["n_cases"]) == ("test", len(test_cases))
    predicted = {row["case"]: row for row in rows_of(output / "predictions.csv")}
    assert set(predicted) == {row["case"] for row in test_cases}

    (alone,) = predict(bundle, tmp_path / "one", cohort.parent / test_cases[0]["image"], output / "models")
    names = [name for name in alone if name.startswith("prob_")]
    together = predicted[test_cases[0]["case"]]
    # A graphics card takes other kernels, with other last bits, for other batches.
    atol = 1e-2 if torch.cuda.is_available() else 1e-4
    np.testing.assert_allclose([float(alone[n]) for n in names], [float(together[n]) for n in names], atol=atol)
    places = {"output_dir": output, "dataset_dir": cohort, "model_dir": output / "models"}
    assert missing_properties(bundle, "train", precision="float32", **SMALL[bundle], **places) == []
    assert missing_properties(bundle, "inference", **places) == []
    for name in ("training.png", "confusion.png", "roc.png", "reliability.png", "cases.csv"):
        assert (output / name).stat().st_size > 100, name


def test_train_and_test_folders_of_coloured_classes_are_split_and_learnt(tmp_path, train, evaluate, rows_of):
    for part, count in (("train", 8), ("test", 3)):
        pictures(tmp_path / "study" / part, ("a", "b", "c"), count, mode="RGB")
    record = train(CNN, tmp_path / "o", tmp_path / "study", in_channels="auto")
    assert record["facts"]["channels"] == ["red", "green", "blue"]
    metrics = evaluate(CNN, tmp_path / "o", tmp_path / "study")
    assert (metrics["classes"], metrics["n_cases"]) == (["a", "b", "c"], 9)
    assert {row["split"] for row in rows_of(tmp_path / "o" / "cases.csv")} == {"train", "val", "test"}


def test_patients_beside_the_class_folders_are_on_one_side_of_the_split(tmp_path, train, rows_of):
    study = pictures(tmp_path / "study", ("a", "b"), 12)
    lines = [f"{name}/{name}{number}.png,{name}{number // 3}" for name in "ab" for number in range(12)]
    (study / "patients.csv").write_text("\n".join(["image,patient", *lines]))
    train(CNN, tmp_path / "o", study, in_channels=1)
    sides = {}
    for row in rows_of(tmp_path / "o" / "cases.csv"):
        sides.setdefault(row["patient"], set()).add(row["split"])
    assert len(sides) == 8
    assert all(len(side) == 1 for side in sides.values())


def test_a_model_of_png_files_predicts_arrays_and_dicom_alike_and_lists_a_volume_as_failed(
    tmp_path, train, predict, cohort
):
    train(CNN, tmp_path / "o", cohort)
    source = sorted((cohort.parent / "test").rglob("*.png"))[0]
    picture = np.asarray(Image.open(source))
    folder = tmp_path / "mixed"
    folder.mkdir()
    shutil.copy(source, folder / "png.png")
    np.save(folder / "npy.npy", picture)
    np.save(folder / "volume.npy", np.stack([picture] * 5, axis=-1))
    (path,) = write_dicom_series(Volume(picture.T[..., None].astype(np.int16)), tmp_path / "d")
    dataset = pydicom.dcmread(path)
    del dataset.ImagePositionPatient
    dataset.save_as(folder / "radiograph.dcm")
    with pytest.raises(SystemExit) as stopped:
        predict(CNN, tmp_path / "p", folder, tmp_path / "o/models")
    assert stopped.value.code == 3
    rows = (tmp_path / "p" / "predictions.csv").read_text().splitlines()[1:]
    assert rows[-1].startswith("volume,")
    assert "WRONG_DIMS" in rows[-1]
    assert "3D bundle" in rows[-1]
    assert len({row.split(",", 1)[1].split(",", 3)[-1] for row in rows[:3]}) == 1


def test_a_stacked_npz_of_coloured_images_goes_through(tmp_path, train, evaluate):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 16), ("val", 6), ("test", 6)):
        labels = np.arange(count) % 2
        noise = rng.random((count, 28, 28, 3)) * 80 + 80 * labels[:, None, None, None]
        arrays |= {f"{part}_images": noise.astype(np.uint8), f"{part}_labels": labels[:, None]}
    np.savez(tmp_path / "colourmnist.npz", **arrays)
    record = train(CNN, tmp_path / "o", tmp_path / "colourmnist.npz", max_epochs=3)
    assert record["facts"]["limits"] == [0.0, 255.0]
    assert evaluate(CNN, tmp_path / "o", tmp_path / "colourmnist.npz")["n_cases"] == 6


def test_the_likeliest_classes_are_listed_with_their_percentages(tmp_path, train, predict, rows_of):
    classes = tuple("abcdefg")
    study = pictures(tmp_path / "study", classes, 5)
    train(VIT, tmp_path / "o", study)
    (row,) = predict(VIT, tmp_path / "p", study / "c" / "c0.png", tmp_path / "o/models")
    (top,) = rows_of(tmp_path / "p" / "top5.csv")
    outputs = json.loads((tmp_path / "p" / "run.json").read_text())["inference"]["outputs"]
    assert any("top5.csv" in str(entry) for entry in outputs)
    expected = sorted(classes, key=lambda name: -float(row[f"prob_{name}"]))[:5]
    assert [top[f"class_{rank}"] for rank in range(1, 6)] == expected
    assert [float(top[f"percent_{rank}"]) for rank in range(1, 6)] == pytest.approx(
        [100 * float(row[f"prob_{name}"]) for name in expected], abs=0.006
    )


def test_folders_of_other_names_are_predicted_and_labels_of_other_classes_not_shown(tmp_path, train, predict):
    train(CNN, tmp_path / "o", pictures(tmp_path / "study", ("a", "b", "c"), 6))
    for name, classes in (("known", ("b", "c")), ("other", ("clinic1", "clinic2"))):
        rows = predict(
            CNN, tmp_path / name / "p", pictures(tmp_path / name / "images", classes, 2), tmp_path / "o/models"
        )
        assert [row["label"] for row in rows] == [""] * 4
        assert {row["pred"] for row in rows} <= {"a", "b", "c"}


def test_a_frozen_encoder_keeps_the_published_weights_and_statistics_and_the_head_learns(tmp_path, cohort, train):
    torch.manual_seed(3)
    published = resnet50_2d(3, 1000).state_dict()
    torch.save(published, tmp_path / "resnet50.pth")
    train(RESNET, tmp_path / "o", cohort, pretrained=str(tmp_path / "resnet50.pth"), freeze_encoder=True)
    trained = torch.load(tmp_path / "o" / "models" / "model.pt", weights_only=True)
    for name, value in published.items():
        if not name.startswith("fc."):
            assert torch.equal(trained[name], value), name
    assert trained["fc.weight"].shape == (2, 2048)
    torch.manual_seed(0)
    train(RESNET, tmp_path / "f", cohort, pretrained=str(tmp_path / "resnet50.pth"))
    tuned = torch.load(tmp_path / "f" / "models" / "model.pt", weights_only=True)
    assert not torch.equal(tuned["conv1.weight"], published["conv1.weight"])
    assert (tuned["conv1.weight"] - published["conv1.weight"]).abs().max() < 0.05


def test_timms_weights_start_a_transformer_of_another_size(tmp_path, cohort, train):
    published = timm_state(vit2d(3, 1000, preset="tiny", spatial_size=(64, 64)))
    torch.save(published, tmp_path / "vit.pth")
    options = {"preset": "tiny", "spatial_size": [32, 48], "normalisation": "half"}
    record = train(VIT, tmp_path / "o", cohort, pretrained=str(tmp_path / "vit.pth"), freeze_encoder=True, **options)
    assert (record["network"]["preset"], record["facts"]["intensity"]) == ("tiny", "half")
    trained = torch.load(tmp_path / "o" / "models" / "model.pt", weights_only=True)
    assert torch.equal(trained["blocks.3.attn.qkv.weight"], published["blocks.3.attn.qkv.weight"])
    assert trained["classification_head.weight"].shape == (2, 192)


@pytest.mark.parametrize(
    ("bundle", "options", "expected"),
    [
        (CNN, {"spatial_size": [16, 20]}, "INPUT_TOO_SMALL.*at least 18"),
        (CNN, {"spatial_size": [32, 32, 32]}, "UNKNOWN_OPTION.*rows and columns"),
        (CNN, {"normalisation": "imagnet"}, "UNKNOWN_OPTION.*'imagenet'"),
        (CNN, {"window_hu": [0, 1]}, "UNKNOWN_OPTION: --window_hu"),
        (RESNET, {"freeze_encoder": True}, "NO_WEIGHTS.*--pretrained"),
        (RESNET, {"pretrained": "nowhere.pth"}, "NOT_FOUND"),
        (VIT, {"preset": "bas"}, "UNKNOWN_OPTION.*'base'"),
        (VIT, {"preset": "tiny", "spatial_size": [30, 32]}, r"INPUT_SIZE.*\[32, 32\]"),
        (VIT, {"pretrained": "hub"}, "NO_WEIGHTS.*name the file"),
    ],
)
def test_bad_options_are_refused_in_one_line(bundle, options, expected, cohort, tmp_path, train):
    with pytest.raises(Exception) as wrapped:  # noqa: PT011 - MONAI wraps the refusal in RuntimeErrors of its own
        train(bundle, tmp_path / "o", cohort, **options)
    assert re.search(expected, refusal_of(wrapped))


def test_weights_of_another_network_are_refused_and_so_are_those_for_another_number_of_channels(
    tmp_path, cohort, train
):
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save(resnet50_2d(3, 5).state_dict(), tmp_path / "colour.pth")
    for name, options in (("other.pth", {}), ("colour.pth", {"normalisation": "zero_one", "in_channels": 1})):
        with pytest.raises(Exception) as wrapped:  # noqa: PT011
            train(RESNET, tmp_path / "o", cohort, pretrained=str(tmp_path / name), **options)
        assert re.search("OTHER_NETWORK.*in_channels", refusal_of(wrapped))


def test_a_study_of_volumes_is_refused_by_a_bundle_for_images(tmp_path, train):
    volumes = classification_cohort(tmp_path / "cohort", patients=6, size=(12, 13, 14))
    with pytest.raises(Exception) as wrapped:  # noqa: PT011
        train(CNN, tmp_path / "o", volumes)
    assert re.search("WRONG_DIMS: case.*3D bundle", refusal_of(wrapped))


def test_without_a_study_the_synthetic_one_is_made(tmp_path, bundle_run, rows_of):
    options = {"max_epochs": 1, "model_dir": str(tmp_path / "models"), **QUIET, **SMALL[CNN]}
    bundle_run(CNN, ["train"], tmp_path / "o", **options)
    bundle_run(CNN, ["inference"], tmp_path / "o", model_dir=str(tmp_path / "models"), show_progress=False)
    assert len(rows_of(tmp_path / "o" / "predictions.csv")) == 16
