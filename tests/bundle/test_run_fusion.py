"""The fusion bundle trained, evaluated and applied with MONAI's own command, with and without images and covariates."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from medvol.errors import MESSAGE_LIMIT, find_refusal
from medvol.phantoms.cohort import classification_cohort

BUNDLE = Path(__file__).parents[2] / "bundles" / "fusion_classification"
QUIET = {"show_progress": False}
SHORT = {"max_epochs": 2, "batch_size": 8, "precision": "float32"}

pytestmark = pytest.mark.filterwarnings("ignore:.*eval.*:UserWarning")  # MONAI warns of expressions in any config


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return classification_cohort(tmp_path_factory.mktemp("study") / "cohort", patients=15, size=(22, 21, 20))


@pytest.fixture
def run_on(bundle_run, tmp_path):
    """Run modes with the model in one place."""

    def run_modes(modes, dataset, output="o", **options):
        models = str(tmp_path / "o" / "models")
        bundle_run(BUNDLE, modes, tmp_path / output, dataset_dir=str(dataset), model_dir=models, **QUIET, **options)
        return tmp_path / output

    return run_modes


def changed(cohort, name, change):
    """Write a table beside the cohort's, each row changed."""
    with cohort.open(newline="") as stream:
        rows = [change(row) for row in csv.DictReader(stream)]
    path = cohort.with_name(name)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def refusal_of(action):
    with pytest.raises(Exception) as wrapped:  # noqa: PT011 - MONAI wraps the refusal in RuntimeErrors of its own
        action()
    refusal = find_refusal(wrapped.value)
    assert refusal is not None
    assert len(str(refusal)) <= MESSAGE_LIMIT
    return str(refusal)


def test_a_study_is_learnt_measured_and_applied_and_the_value_of_the_image_stated(
    cohort, run_on, rows_of, missing_properties, tmp_path, capsys
):
    # One test case has no image: it is measured with the others.
    first = next(row["case"] for row in rows_of(cohort) if row["split"] == "test")
    table = changed(cohort, "gaps.csv", lambda row: row | ({"image": ""} if row["case"] == first else {}))
    output = run_on(["train"], table, **SHORT)
    facts = json.loads((output / "models" / "model.json").read_text())["facts"]
    assert [column["name"] for column in facts["columns"]] == ["age", "sex"]
    weights = torch.load(output / "models" / "model.pt", weights_only=True)
    assert weights["head.weight"].shape == (2, 128 + 32)

    capsys.readouterr()
    run_on(["train", "evaluate"], table, precision="float32")
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["n_cases"] == sum(row["split"] == "test" for row in rows_of(table))
    assert list(metrics["comparisons"]) == [
        "logistic regression",
        "gradient boosting",
        "network without the image",
        "network without the covariates",
    ]
    value = metrics["image_value"]
    assert value["than"] in list(metrics["comparisons"])[:3]
    difference = metrics["metrics"]["auc"]["value"] - metrics["comparisons"][value["than"]]["metrics"]["auc"]["value"]
    assert value["auc_difference"]["value"] == pytest.approx(difference)
    assert value["sentence"] in capsys.readouterr().out
    evaluated = {row["case"]: row for row in rows_of(output / "predictions.csv")}
    assert len(evaluated) == metrics["n_cases"]

    # What was measured is what prediction gives: with everything, and with every image taken out of the table.
    bare = changed(table, "bare.csv", lambda row: row | {"image": ""})
    for name, source in (("p", table), ("q", bare)):
        run_on(["inference"], source, name)
        found = {row["case"]: float(row["prob_vessel"]) for row in rows_of(tmp_path / name / "predictions.csv")}
        expected = [float(evaluated[case]["prob_vessel"]) for case in evaluated]
        is_equal = np.allclose([found[case] for case in evaluated], expected, atol=1e-5)
        assert is_equal == (name == "p")
    labels = [row["label"] == metrics["classes"][1] for row in evaluated.values()]
    scores = [found[case] * (1 if metrics["classes"][1] == "vessel" else -1) for case in evaluated]
    withheld = metrics["comparisons"]["network without the image"]["metrics"]["auc"]["value"]
    assert withheld == pytest.approx(roc_auc_score(labels, scores), abs=1e-3)
    for mode in ("train", "inference"):
        found = missing_properties(BUNDLE, mode, output_dir=output, dataset_dir=table, model_dir=output / "models")
        assert found == []
    for name in ("training.png", "confusion.png", "roc.png", "reliability.png", "history.csv", "cases.csv"):
        assert (output / name).stat().st_size > 100, name


def test_cases_with_an_image_a_row_both_or_nothing_are_told_apart(cohort, run_on, rows_of, tmp_path):
    run_on(["train"], cohort, **SHORT)
    nothing = {"age": "", "sex": ""}
    gaps = [{}, {"image": ""}, nothing, {"image": "", **nothing}]
    rows = [row for row in rows_of(cohort) if row["split"] == "test"][:4]
    change = {row["case"]: gap for row, gap in zip(rows, gaps, strict=True)}
    table = changed(cohort, "new.csv", lambda row: row | change.get(row["case"], {}))
    with pytest.raises(SystemExit) as stopped:
        run_on(["inference"], table, "p")
    assert stopped.value.code == 3
    found = {row["case"]: row for row in rows_of(tmp_path / "p" / "predictions.csv")}
    assert [found[row["case"]]["pred"] != "" for row in rows] == [True, True, True, False]
    assert found[rows[3]["case"]]["error"].startswith("EMPTY_CASE: case " + rows[3]["case"])

    # A folder of scans alone: the same answer as the row without covariates.
    folder = tmp_path / "scans"
    folder.mkdir()
    for row in rows:
        shutil.copy(cohort.parent / row["image"], folder / f"{row['case']}.nii.gz")
    run_on(["inference"], folder, "q")
    alone = {row["case"]: float(row["prob_vessel"]) for row in rows_of(tmp_path / "q" / "predictions.csv")}
    assert len(alone) == 4
    np.testing.assert_allclose(alone[rows[2]["case"]], float(found[rows[2]["case"]]["prob_vessel"]), atol=1e-5)
    assert abs(alone[rows[0]["case"]] - float(found[rows[0]["case"]]["prob_vessel"])) > 1e-6


def test_a_table_that_lacks_one_of_the_covariates_is_refused(cohort, run_on):
    run_on(["train"], cohort, **{**SHORT, "max_epochs": 1})
    table = changed(cohort, "renamed.csv", lambda row: {"years" if k == "age" else k: v for k, v in row.items()})
    assert re.match("MISSING_COLUMN: .*no column 'age'", refusal_of(lambda: run_on(["inference"], table, "p")))


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        (lambda row: {k: v for k, v in row.items() if k not in ("age", "sex")}, {}, "WRONG_KIND: .*without covariates"),
        (lambda row: row | {"image": ""}, {}, "WRONG_KIND: .*without images"),
        (lambda row: row | ({"image": ""} if row["split"] == "train" else {}), {}, "WRONG_KIND: .*without images"),
        (
            lambda row: row | ({"age": "old"} if row["split"] == "train" and row["case"].endswith("_2") else {}),
            {},
            r"BAD_VALUE: case p\d+_2: column 'age' holds 'old'",
        ),
        (dict, {"drop_modality": 0.2}, "UNKNOWN_OPTION: --drop_modality"),
    ],
)
def test_bad_input_is_refused_in_one_line(cohort, run_on, change, options, expected):
    table = changed(cohort, "bad.csv", change)
    said = refusal_of(lambda: run_on(["train"], table, **SHORT, **options))
    assert re.match(expected, said), said


def test_a_study_of_test_cases_alone_is_measured_beside_the_network_without_images(cohort, run_on, rows_of, tmp_path):
    run_on(["train"], cohort, **SHORT)
    header, *lines = cohort.read_text().splitlines()
    kept = [line for line, row in zip(lines, rows_of(cohort), strict=True) if row["split"] == "test"]
    table = cohort.with_name("elsewhere.csv")
    table.write_text("\n".join([header, *kept]))
    output = run_on(["train", "evaluate"], table, "e", precision="float32")
    metrics = json.loads((output / "metrics.json").read_text())
    assert list(metrics["comparisons"]) == ["network without the image", "network without the covariates"]
    assert metrics["image_value"]["than"] == "network without the image"
    assert metrics["baseline"] is not None
