"""Every bundle trained, evaluated and applied with MONAI's own command, from another working directory."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medvol.errors import find_refusal
from medvol.phantoms.cohort import classification_cohort, segmentation_cohort

ROOT = Path(__file__).parents[2]
BUNDLES = sorted(path.parent.parent for path in ROOT.glob("bundles/*3d_classification/configs/metadata.json"))
RESNET = ROOT / "bundles" / "resnet3d_classification"
QUIET = {"show_progress": False, "precision": "float32"}

pytestmark = pytest.mark.filterwarnings("ignore:.*eval.*:UserWarning")  # MONAI warns of expressions in any config


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return classification_cohort(tmp_path_factory.mktemp("study") / "cohort", patients=15, size=(22, 21, 20))


@pytest.fixture
def train(bundle_run):
    def run_training(bundle, output, dataset, **options):
        defaults = {"max_epochs": 2, "batch_size": 8, "model_dir": str(output / "models"), **QUIET}
        bundle_run(bundle, ["train"], output, dataset_dir=str(dataset), **{**defaults, **options})

    return run_training


@pytest.fixture
def predict(bundle_run):
    def run_inference(bundle, output, dataset, models):
        bundle_run(bundle, ["inference"], output, dataset_dir=str(dataset), model_dir=str(models), show_progress=False)

    return run_inference


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_a_bundle_trains_evaluates_and_predicts_from_any_folder(
    bundle, cohort, tmp_path, bundle_run, train, rows_of, missing_properties
):
    output, models = tmp_path / "out put", tmp_path / "out put" / "models"
    train(bundle, output, cohort)
    weights = torch.load(models / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    record = json.loads((models / "model.json").read_text())
    assert record["facts"]["classes"] == ["aneurysm", "vessel"] or record["facts"]["classes"] == ["vessel", "aneurysm"]

    bundle_run(bundle, ["train", "evaluate"], output, dataset_dir=str(cohort), model_dir=str(models), **QUIET)
    metrics = json.loads((output / "metrics.json").read_text())
    test_cases = [row for row in rows_of(cohort) if row["split"] == "test"]
    assert (metrics["split"], metrics["n_cases"]) == ("test", len(test_cases))
    predicted = rows_of(output / "predictions.csv")
    assert {row["case"] for row in predicted} == {row["case"] for row in test_cases}
    assert {row["label"] for row in predicted} <= {"vessel", "aneurysm"}

    single = cohort.parent / test_cases[0]["image"]
    bundle_run(
        bundle, ["inference"], tmp_path / "one", dataset_dir=str(single), model_dir=str(models), show_progress=False
    )
    (alone,) = rows_of(tmp_path / "one" / "predictions.csv")
    names = [name for name in alone if name.startswith("prob_")]
    together = next(row for row in predicted if row["case"] == test_cases[0]["case"])
    np.testing.assert_allclose([float(alone[n]) for n in names], [float(together[n]) for n in names], atol=1e-4)
    assert sum(float(alone[name]) for name in names) == pytest.approx(1, abs=1e-5)

    for mode in ("train", "inference"):
        assert missing_properties(bundle, mode, output_dir=output, dataset_dir=cohort, model_dir=models) == []

    runs = json.loads((output / "run.json").read_text())
    assert set(runs) == {"train", "evaluate"}
    assert runs["evaluate"]["weights_sha256"] == record["weights_sha256"]
    for name in ("training.png", "confusion.png", "roc.png", "reliability.png", "history.csv", "cases.csv"):
        assert (output / name).stat().st_size > 100, name


def test_the_swin_switch_is_remembered_and_sizes_rounded_to_its_windows(cohort, tmp_path, bundle_run, train, predict):
    bundle, output = ROOT / "bundles" / "vit3d_classification", tmp_path / "o"
    train(bundle, output, cohort, architecture="swin", feature_size=12, max_epochs=1)
    record = json.loads((output / "models" / "model.json").read_text())
    assert record["facts"]["spatial_size"] == [32, 32, 32]
    assert (record["network"]["architecture"], record["network"]["feature_size"]) == ("swin", 12)
    predict(bundle, tmp_path / "p", cohort, output / "models")
    assert (tmp_path / "p" / "predictions.csv").is_file()


def test_two_runs_with_one_seed_give_the_same_weights_and_another_seed_others(cohort, tmp_path, train):
    weights = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(RESNET, tmp_path / name, cohort, seed=seed)
        weights[name] = torch.load(tmp_path / name / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(weights["a"][key], weights["b"][key]) for key in weights["a"])
    assert not all(torch.equal(weights["a"][key], weights["c"][key]) for key in weights["a"])


@pytest.mark.parametrize("name", ["resnet3d_classification", "unet_segmentation", "cnn2d_classification"])
def test_tensorboard_is_written_when_asked_for(name, cohort, tmp_path, bundle_run):
    pytest.importorskip("tensorboard", reason="needs the extra `track`")
    sources = {
        "resnet3d_classification": lambda: cohort,
        "unet_segmentation": lambda: segmentation_cohort(tmp_path / "seg", patients=6, size=(16, 17, 18)),
        "cnn2d_classification": lambda: classification_cohort(tmp_path / "png", patients=9, layout="png"),
    }
    options = {"max_epochs": 1, "batch_size": 2, "model_dir": str(tmp_path / "models"), **QUIET}
    if name == "unet_segmentation":
        options |= {"spatial_size": [16, 16, 16], "patches_per_epoch": 2, "width": 8}
    source = str(sources[name]())
    bundle_run(ROOT / "bundles" / name, ["train"], tmp_path / "o", dataset_dir=source, tensorboard=True, **options)
    assert any((tmp_path / "o" / "tensorboard").iterdir())


def test_a_stacked_npy_study_and_one_of_three_classes_go_through_the_same_bundle(tmp_path, bundle_run, train):
    rng = np.random.default_rng(0)
    study = tmp_path / "arrays"
    study.mkdir()
    for part, count in (("train", 24), ("test", 9)):
        labels = np.arange(count) % 3
        np.save(
            study / f"{part}_data.npy",
            (rng.random((count, 12, 11, 10)) * 80 + 80 * labels[:, None, None, None]).astype(np.uint8),
        )
        np.save(study / f"{part}_labels.npy", labels)
    train(RESNET, tmp_path / "o", study)
    bundle_run(
        RESNET,
        ["train", "evaluate"],
        tmp_path / "o",
        dataset_dir=str(study),
        model_dir=str(tmp_path / "o/models"),
        **QUIET,
    )
    assert json.loads((tmp_path / "o" / "metrics.json").read_text())["classes"] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"max_epoch": 1}, "UNKNOWN_OPTION: --max_epoch;.*'--max_epochs'"),
        ({"dataset_dir": "nowhere"}, "NOT_FOUND"),
        ({"dataset_dir": "empty"}, "EMPTY"),
        ({"max_epochs": "ten"}, "BAD_VALUE: --max_epochs ten; expected a whole number"),
        ({"precision": "bfloat"}, "UNKNOWN_OPTION.*bfloat16"),
        ({"spatial_size": [4, 4]}, "UNKNOWN_OPTION.*three positive numbers"),
    ],
)
def test_bad_options_are_refused_in_one_line(options, expected, cohort, tmp_path, train):
    (tmp_path / "empty").mkdir()
    with pytest.raises(Exception) as wrapped:  # noqa: PT011 - MONAI wraps the refusal in RuntimeErrors of its own
        train(RESNET, tmp_path / "o", options.pop("dataset_dir", cohort), **options)
    refusal = find_refusal(wrapped.value)
    assert refusal is not None
    assert len(str(refusal)) <= 300
    import re

    assert re.search(expected, str(refusal)), str(refusal)


def test_a_segmentation_study_is_of_the_wrong_kind(tmp_path, train):
    with pytest.raises(Exception) as wrapped:  # noqa: PT011
        train(RESNET, tmp_path / "o", segmentation_cohort(tmp_path / "seg", patients=6, size=(16, 17, 18)))
    assert find_refusal(wrapped.value).code == "WRONG_KIND"


def test_patients_seen_in_training_can_neither_be_tested_on_nor_pass_for_validation(
    cohort, tmp_path, bundle_run, train
):
    train(RESNET, tmp_path / "o", cohort)
    options = {"model_dir": str(tmp_path / "o/models"), **QUIET}
    for split in ("test", "val"):
        leaky = cohort.parent / "leaky.csv"
        text = cohort.read_text().replace(",train,", ",swap,").replace(f",{split},", ",train,")
        leaky.write_text(text.replace(",swap,", f",{split},"))
        evaluated = {"dataset_dir": str(leaky), "eval_split": split, **options}
        with pytest.raises(Exception) as wrapped:  # noqa: PT011
            bundle_run(RESNET, ["train", "evaluate"], tmp_path / "e", **evaluated)
        assert find_refusal(wrapped.value).code == "LEAK"
        assert f" {split} patients were in" in str(find_refusal(wrapped.value))
    bundle_run(RESNET, ["train", "evaluate"], tmp_path / "v", dataset_dir=str(cohort), eval_split="val", **options)


def test_one_unreadable_case_does_not_stop_the_others_but_the_exit_code(cohort, tmp_path, train, predict, rows_of):
    train(RESNET, tmp_path / "o", cohort)
    folder = tmp_path / "mixed"
    folder.mkdir()
    images = sorted((cohort.parent / "images").glob("*.nii.gz"))[:3]
    for image in images:
        shutil.copy(image, folder)
    (folder / "broken.nii.gz").write_bytes(images[0].read_bytes()[:500])
    with pytest.raises(SystemExit) as stopped:
        predict(RESNET, tmp_path / "p", folder, tmp_path / "o/models")
    assert stopped.value.code == 3
    rows = rows_of(tmp_path / "p" / "predictions.csv")
    assert [row["pred"] != "" for row in rows] == [True, True, True, False]
    assert rows[-1]["error"].startswith(("TRUNCATED", "CORRUPT"))


def test_an_evaluation_before_training_says_so_before_it_compares_labels(cohort, tmp_path, bundle_run, rows_of):
    table = tmp_path / "other_classes.csv"
    other = {"vessel": "ill", "aneurysm": "well"}
    rows = [f"{cohort.parent / row['image']},{other[row['label']]}" for row in rows_of(cohort)]
    table.write_text("\n".join(["image,label", *rows]))
    with pytest.raises(Exception) as wrapped:  # noqa: PT011
        bundle_run(
            RESNET, ["train", "evaluate"], tmp_path / "o", dataset_dir=str(table), model_dir=str(tmp_path / "no")
        )
    assert find_refusal(wrapped.value).code == "NO_WEIGHTS"


def test_inference_before_training_says_so(cohort, tmp_path, predict):
    with pytest.raises(Exception) as wrapped:  # noqa: PT011
        predict(RESNET, tmp_path / "p", cohort, tmp_path / "none")
    assert find_refusal(wrapped.value).code == "NO_WEIGHTS"


@pytest.mark.slow
def test_on_the_command_line_a_refusal_is_one_line_and_the_exit_code_is_not_0(tmp_path):
    bundle = RESNET
    command = [
        *(sys.executable, "-W", "ignore", "-m", "monai.bundle", "run", "--bundle_root", str(bundle)),
        *("--config_file", str(bundle / "configs" / "train.json"), "--output_dir", str(tmp_path), "--max_epoch", "1"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 1
    assert "did you mean '--max_epochs'?" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_study_of_test_cases_alone_is_measured_beside_the_prevalence_of_the_training(
    cohort, tmp_path, bundle_run, train, rows_of, capsys
):
    models, table = tmp_path / "o" / "models", cohort.with_name("elsewhere.csv")
    train(RESNET, tmp_path / "o", cohort, max_epochs=1)
    header, *lines = cohort.read_text().splitlines()
    rows = rows_of(cohort)
    kept = [line for line, row in zip(lines, rows, strict=True) if row["split"] == "test"]
    table.write_text("\n".join([header, *kept]))

    def baseline_of(dataset, name):
        output = tmp_path / name
        bundle_run(RESNET, ["train", "evaluate"], output, dataset_dir=str(dataset), model_dir=str(models), **QUIET)
        metrics = json.loads((output / "metrics.json").read_text())
        assert metrics["n_cases"] == len(kept)
        assert ("Baseline: " in (output / "report.html").read_text()) == (metrics["baseline"] is not None)
        return metrics["baseline"]

    record = json.loads((models / "model.json").read_text())
    trained = [row["label"] for row in rows if row["split"] == "train"]
    assert record["class_counts"] == {name: trained.count(name) for name in ("vessel", "aneurysm")}
    assert baseline_of(table, "elsewhere") == baseline_of(cohort, "at home")
    del record["class_counts"]  # as records of before
    (models / "model.json").write_text(json.dumps(record))
    assert baseline_of(cohort, "at home again") is not None
    assert baseline_of(table, "elsewhere again") is None
    captured = capsys.readouterr()
    assert "No baseline" in captured.out + captured.err
