"""What a run leaves behind: tables that add up, pictures that are pictures, a record with checksums."""

import csv
import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from medvol.errors import MedvolError
from medvol.inference.collect import Predictions
from medvol.report.classification import (
    EvaluatedSplit,
    evaluate_predictions,
    image_value,
    write_evaluation,
    write_predictions,
)
from medvol.report.outdated import require_current
from medvol.report.pictures import draw_training
from medvol.report.run_record import processor_model, write_run_record

CLASSES = ("healthy, left", "sick")


def predictions(count=40, classes=2, labelled=True):
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    logits = rng.normal(size=(count, classes)) + 1.5 * np.eye(classes)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Predictions(
        cases=tuple(f"c{i}" for i in range(count)),
        patients=tuple(f"p{i // 2}" for i in range(count)),
        logits=logits,
        probabilities=probabilities,
        labels=labels if labelled else None,
    )


def read_rows(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def evaluated(classes=CLASSES):
    return EvaluatedSplit("demo_classification", "test", classes, tuple([0] * 7 + [1] * 3))


def test_metrics_json_has_a_value_and_an_interval_for_every_metric_beside_the_baseline(tmp_path, caplog):
    found = predictions()
    write_evaluation(tmp_path, found, evaluated())
    assert "Only 20 patients" in caplog.text
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert (result["bundle"], result["split"]) == ("demo_classification", "test")
    assert (result["n_cases"], result["n_patients"]) == (40, 20)
    assert set(result["metrics"]) == {
        "auc", "accuracy", "balanced_accuracy", "f1", "sensitivity", "specificity", "brier", "ece"
    }  # fmt: skip
    assert result["metrics"]["auc"]["value"] == pytest.approx(roc_auc_score(found.labels, found.probabilities[:, 1]))
    for entry in result["metrics"].values():
        low, high = entry["ci95"]
        assert low <= entry["value"] <= high
    assert result["baseline"]["metrics"]["accuracy"]["value"] == 0.5
    assert result["baseline"]["metrics"]["auc"]["value"] == 0.5


def test_other_models_stand_beside_the_network_with_the_paired_difference(tmp_path, caplog):
    caplog.set_level("INFO")
    found = predictions()
    other = found.probabilities[:, ::-1]
    write_evaluation(tmp_path, found, replace(evaluated(), others={"upside down": other}))
    compared = json.loads((tmp_path / "metrics.json").read_text())["comparisons"]["upside down"]
    area = roc_auc_score(found.labels, found.probabilities[:, 1])
    assert compared["metrics"]["auc"]["value"] == pytest.approx(1 - area)
    assert compared["difference"]["auc"]["value"] == pytest.approx(2 * area - 1)
    assert f"{2 * area - 1:+.3f} (" in caplog.text


def compared(auc, low, high):
    entry = {"value": (low + high) / 2, "ci95": [low, high]}
    return {"metrics": {"auc": {"value": auc}}, "difference": {"auc": entry}}


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.02, 0.18, "The image adds value over the covariates alone: AUC 0.800 with it, 0.700 of a without"),
        (-0.1, 0.3, "The image is not shown to add value"),
        (-0.4, -0.2, "The image makes it worse"),
    ],
)
def test_what_the_image_adds_is_said_against_the_best_model_that_does_not_see_it(low, high, verdict):
    comparisons = {"a": compared(0.7, low, high), "b": compared(0.6, 0.5, 0.6), "sees all": compared(0.9, 0, 0)}
    value = image_value(comparisons, ("a", "b"))
    assert value["than"] == "a"
    assert value["sentence"].startswith(verdict)
    assert f"(95 % interval {low:+.3f} to {high:+.3f}, patients resampled)" in value["sentence"]


def test_predictions_csv_keeps_apart_what_the_network_told_apart(tmp_path):
    near_one = np.array([1 - 1e-12, 1 - 2e-12, 1 - 3e-12])
    probabilities = np.stack([1 - near_one, near_one], axis=1)
    found = Predictions(("a", "b", "c"), ("a", "b", "c"), probabilities, probabilities, None)
    write_predictions(tmp_path / "predictions.csv", found, ("healthy", "sick"), "test")
    assert [float(row["prob_sick"]) for row in read_rows(tmp_path / "predictions.csv")] == near_one.tolist()


def test_predictions_csv_has_a_row_per_case_and_the_refusals(tmp_path):
    found = predictions(4)
    refusal = MedvolError("TRUNCATED", case="bad", found="10 of 20 bytes")
    write_predictions(tmp_path / "predictions.csv", found, CLASSES, "test", failures=[refusal])
    rows = read_rows(tmp_path / "predictions.csv")
    assert [row["case"] for row in rows] == ["c0", "c1", "c2", "c3", "bad"]
    assert list(rows[0]) == [
        "case", "patient", "split", "label", "pred", "prob_healthy, left", "prob_sick", "error"
    ]  # fmt: skip
    assert float(rows[1]["prob_sick"]) == pytest.approx(found.probabilities[1, 1], abs=1e-6)
    assert rows[1]["label"] == "sick"
    assert rows[4]["error"].startswith("TRUNCATED: case bad")


def test_unlabelled_cases_are_predicted_but_not_evaluated(tmp_path):
    write_predictions(tmp_path / "p.csv", predictions(3, labelled=False), CLASSES)
    assert [row["label"] for row in read_rows(tmp_path / "p.csv")] == ["", "", ""]
    with pytest.raises(MedvolError, match="NO_LABEL"):
        evaluate_predictions(predictions(3, labelled=False), evaluated())


@pytest.mark.parametrize("classes", [2, 5])
def test_the_pictures_are_readable_images_with_something_on_them(tmp_path, classes):
    names = tuple(f"class {index}" for index in range(classes))
    files = write_evaluation(tmp_path, predictions(60, classes), evaluated(names))
    pictures = [file for file in files if file.suffix == ".png"]
    assert {file.name for file in pictures} == {"confusion.png", "roc.png", "reliability.png"}
    for file in pictures:
        pixels = np.asarray(Image.open(file).convert("L"))
        assert min(pixels.shape) > 300
        assert pixels.std() > 5


def test_the_training_curve_takes_epochs_without_validation(tmp_path):
    rows = [{"epoch": 1, "train_loss": 0.7, "learning_rate": 0.1}, {"epoch": 2, "train_loss": 0.5, "auc": 0.8}]
    assert draw_training(tmp_path / "t.png", rows).stat().st_size > 5000


def test_the_run_record_holds_the_checksum_of_every_output_and_keeps_other_modes(tmp_path):
    output = tmp_path / "a.txt"
    output.write_text("x")
    arguments = {"started": time.time() - 5, "command": "run", "config": {"seed": 1}, "facts": {"data": "abc"}}
    write_run_record(tmp_path, mode="train", outputs=[output], **arguments)
    write_run_record(tmp_path, mode="evaluate", outputs=[], **arguments)
    record = json.loads((tmp_path / "run.json").read_text())
    assert set(record) == {"train", "evaluate"}
    assert record["train"]["outputs"][str(output)] == hashlib.sha256(b"x").hexdigest()
    assert record["train"]["wall_time_s"] == pytest.approx(5, abs=2)
    assert record["train"]["peak_memory_mb"] > 10
    assert record["train"]["versions"]["monai"].startswith("1.6")
    assert record["train"]["config"] == {"seed": 1}
    assert record["train"]["machine"]["processor"] == processor_model() != ""


def test_the_model_of_the_processor_is_named_where_the_system_knows_it():
    described = Path("/proc/cpuinfo")
    if not described.is_file() or "model name" not in described.read_text():
        pytest.skip("the system names no model")
    assert f"model name\t: {processor_model()}" in described.read_text()


def test_an_evaluation_of_before_a_training_is_said_to_be_outdated_and_not_compared(tmp_path, caplog):
    rest = {"outputs": [], "started": time.time(), "command": "run", "config": {}, "facts": {}}
    write_run_record(tmp_path, mode="train", **rest)
    write_run_record(tmp_path, mode="evaluate", **rest)
    require_current(tmp_path / "predictions.csv")
    assert "earlier model" not in caplog.text
    write_run_record(tmp_path, mode="train", **rest)
    assert "earlier model" in caplog.text
    with pytest.raises(MedvolError, match="OUTDATED"):
        require_current(tmp_path / "predictions.csv")
    write_run_record(tmp_path, mode="evaluate", **rest)
    require_current(tmp_path / "predictions.csv")


def test_replaced_predictions_are_told(tmp_path, caplog):
    rest = {"outputs": [], "started": time.time(), "command": "run", "config": {}, "facts": {}}
    write_run_record(tmp_path, mode="inference", **rest)
    assert "were replaced" not in caplog.text
    write_run_record(tmp_path, mode="inference", **rest)
    assert "were replaced" in caplog.text
