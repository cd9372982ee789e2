"""The tabular bundle trained, evaluated and applied with MONAI's own command, from another working directory."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from medvol.errors import MESSAGE_LIMIT, find_refusal
from medvol.phantoms.cohort import classification_cohort

BUNDLE = Path(__file__).parents[2] / "bundles" / "mlp_tabular_classification"
QUIET = {"show_progress": False}

pytestmark = pytest.mark.filterwarnings("ignore:.*eval.*:UserWarning")  # MONAI warns of expressions in any config


def write(path, rows):
    names = list(rows[0])
    lines = [",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def patients(count=60, classes=2):
    """Rows with a number, a number with gaps and a category; the first decides the class."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(count):
        kind = index % classes
        bmi = "" if index % 5 == 0 else round(rng.normal(25, 4), 2)
        size = round(rng.normal(10 + 4 * kind, 1), 3)
        site = ("north", "south", "west")[int(rng.integers(3))]
        rows.append({"case": f"r{index:02d}", "size_mm": size, "bmi": bmi, "site": site, "finding": f"class {kind}"})
    return rows


@pytest.fixture
def run_on(bundle_run, tmp_path):
    """Run modes with the model in one place."""

    def run_modes(modes, dataset, output="o", **options):
        defaults = {"model_dir": str(tmp_path / "o" / "models"), **QUIET}
        bundle_run(BUNDLE, modes, tmp_path / output, dataset_dir=str(dataset), **{**defaults, **options})
        return tmp_path / output

    return run_modes


def refusal_of(action):
    with pytest.raises(Exception) as wrapped:  # noqa: PT011 - MONAI wraps the refusal in RuntimeErrors of its own
        action()
    refusal = find_refusal(wrapped.value)
    assert refusal is not None
    assert len(str(refusal)) <= MESSAGE_LIMIT
    return str(refusal)


def test_a_table_is_learnt_measured_beside_its_baselines_and_applied(run_on, rows_of, missing_properties, tmp_path):
    table = classification_cohort(tmp_path / "study" / "cohort", patients=60, layout="csv")
    output = run_on(["train"], table, max_epochs=20)
    record = json.loads((output / "models" / "model.json").read_text())
    assert len(record["facts"]["columns"]) == 7
    weights = torch.load(output / "models" / "model.pt", weights_only=True)
    assert weights["output.weight"].shape == (1, 64)

    run_on(["train", "evaluate"], table)
    metrics = json.loads((output / "metrics.json").read_text())
    test_rows = [row for row in rows_of(table) if row["split"] == "test"]
    assert (metrics["split"], metrics["n_cases"]) == ("test", len(test_rows))
    assert set(metrics["comparisons"]) == {"logistic regression", "gradient boosting"}
    for compared in metrics["comparisons"].values():
        difference = compared["difference"]["auc"]
        expected = metrics["metrics"]["auc"]["value"] - compared["metrics"]["auc"]["value"]
        assert difference["value"] == pytest.approx(expected)
        assert difference["ci95"][0] <= difference["value"] <= difference["ci95"][1]

    run_on(["inference"], table, "p")
    together = {row["case"]: row for row in rows_of(tmp_path / "p" / "predictions.csv")}
    for row in rows_of(output / "predictions.csv"):
        assert row["prob_vessel"] == together[row["case"]]["prob_vessel"]
        assert together[row["case"]]["label"] == ""  # a table to predict has no truth to look at
    for mode in ("train", "inference"):
        found = missing_properties(BUNDLE, mode, output_dir=output, dataset_dir=table, model_dir=output / "models")
        assert found == []
    for name in ("training.png", "confusion.png", "roc.png", "reliability.png", "history.csv", "cases.csv"):
        assert (output / name).stat().st_size > 100, name
    assert set(json.loads((output / "run.json").read_text())) == {"train", "evaluate"}


def test_a_named_label_gaps_categories_and_three_classes_go_through(run_on, rows_of, tmp_path):
    table = write(tmp_path / "t.csv", patients(90, 3))
    output = run_on(["train"], table, label_column="finding", max_epochs=30)
    facts = json.loads((output / "models" / "model.json").read_text())["facts"]
    assert [column["name"] for column in facts["columns"]] == ["bmi", "site", "size_mm"]
    assert [column["has_gaps"] for column in facts["columns"]] == [True, False, False]
    run_on(["train", "evaluate"], table, label_column="finding")
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["classes"] == ["class 0", "class 1", "class 2"]
    assert metrics["metrics"]["auc"]["value"] > 0.9


def test_a_table_of_test_rows_alone_is_measured_without_the_models_that_need_training_rows(run_on, tmp_path, capsys):
    rows = [{**row, "split": ("train", "val", "test")[index % 3]} for index, row in enumerate(patients())]
    run_on(["train"], write(tmp_path / "t.csv", rows), label_column="finding", max_epochs=1)
    elsewhere = write(tmp_path / "e.csv", [row for row in rows if row["split"] == "test"])
    output = run_on(["train", "evaluate"], elsewhere, "e", label_column="finding")
    metrics = json.loads((output / "metrics.json").read_text())
    assert (metrics["n_cases"], "comparisons" in metrics) == (20, False)
    assert metrics["baseline"]["metrics"]["accuracy"]["value"] == 0.5
    captured = capsys.readouterr()
    assert "No classical models" in captured.out + captured.err


def test_another_study_is_not_compared_with_models_fitted_on_its_own_rows(run_on, tmp_path, capsys):
    run_on(["train"], write(tmp_path / "t.csv", patients()), label_column="finding", max_epochs=1)
    others = [{**row, "case": f"other{index}"} for index, row in enumerate(patients())]
    output = run_on(["train", "evaluate"], write(tmp_path / "e.csv", others), "e", label_column="finding")
    metrics = json.loads((output / "metrics.json").read_text())
    assert "comparisons" not in metrics
    assert metrics["n_cases"] < 60
    captured = capsys.readouterr()
    told = f"only the {metrics['n_cases']} of 60 cases in test are measured"
    assert told in captured.out + captured.err


def test_columns_are_found_by_name_and_one_bad_row_does_not_stop_the_others(run_on, rows_of, tmp_path, capsys):
    rows = patients()
    run_on(["train"], write(tmp_path / "t.csv", rows), label_column="finding", max_epochs=1)
    capsys.readouterr()
    new = [{"site": "south", "extra": 1, "size_mm": 12.5, "bmi": 20.0, "case": f"n{i}"} for i in range(4)]
    turned = [dict(reversed(row.items())) for row in new]
    new[1]["size_mm"], new[2]["site"] = "large", "east"
    with pytest.raises(SystemExit) as stopped:
        run_on(["inference"], write(tmp_path / "new.csv", new), "p")
    assert stopped.value.code == 3
    found = {row["case"]: row for row in rows_of(tmp_path / "p" / "predictions.csv")}
    assert re.match(r"BAD_VALUE: case n1: column 'size_mm' holds 'large'", found["n1"]["error"])
    assert [found[f"n{index}"]["pred"] != "" for index in range(4)] == [True, False, True, True]
    captured = capsys.readouterr()
    said = captured.out + captured.err
    assert "1 columns are not known to the model and not looked at: extra" in said
    assert "column 'site' holds 'east', unknown to training: taken as empty" in said
    run_on(["inference"], write(tmp_path / "turned.csv", turned), "q")
    again = {row["case"]: row for row in rows_of(tmp_path / "q" / "predictions.csv")}
    assert again["n0"] == found["n0"]


def test_what_is_fitted_does_not_change_when_rows_of_the_test_split_do(run_on, tmp_path):
    rows = [{**row, "split": ("train", "val", "test")[index % 3]} for index, row in enumerate(patients())]
    facts = []
    for name in ("a", "b"):
        table = write(tmp_path / f"{name}.csv", rows)
        models = tmp_path / name / "models"
        run_on(["train"], table, name, label_column="finding", max_epochs=1, model_dir=str(models))
        facts.append((json.loads((models / "model.json").read_text())["facts"], torch.load(models / "model.pt")))
        rows = [{**row, "size_mm": 1e6, "site": "other"} if row["split"] == "test" else row for row in rows]
    assert facts[0][0] == facts[1][0]
    assert all(torch.equal(facts[0][1][name], facts[1][1][name]) for name in facts[0][1])


def test_a_new_table_without_a_column_of_the_training_is_refused_with_the_nearest_name(run_on, tmp_path):
    run_on(["train"], write(tmp_path / "t.csv", patients()), label_column="finding", max_epochs=1)
    new = write(tmp_path / "new.csv", [{"case": "n", "size": 11, "bmi": 20, "site": "north"}])
    said = refusal_of(lambda: run_on(["inference"], new, "p"))
    assert re.match(r"MISSING_COLUMN: .*no column 'size_mm' among 3: .*did you mean 'size'", said)


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        ({}, {"label_column": "findings"}, r"MISSING_COLUMN: .*no column 'findings'.*'finding'"),
        ({"size_mm": "big"}, {}, r"BAD_VALUE: case r00: column 'size_mm' holds 'big'; \d+ of \d+ cells are numbers"),
        ({}, {"exclude_columns": ["bmis"]}, "UNKNOWN_OPTION: .*exclude_columns names 'bmis'.*'bmi'"),
        ({}, {"max_epoch": 1}, "UNKNOWN_OPTION: --max_epoch;.*'--max_epochs'"),
    ],
)
def test_bad_input_is_refused_in_one_line(run_on, tmp_path, change, options, expected):
    rows = [{**row, "split": ("train", "val", "test")[index % 3]} for index, row in enumerate(patients())]
    rows[0] |= change
    table = write(tmp_path / "t.csv", rows)
    said = refusal_of(lambda: run_on(["train"], table, **{"label_column": "finding", "max_epochs": 1, **options}))
    assert re.match(expected, said), said


def test_a_study_of_images_alone_is_of_the_wrong_kind(run_on, tmp_path):
    rows = [{"image": f"v{index}.npy", "label": index % 2} for index in range(8)]
    for row in rows:
        np.save(tmp_path / row["image"], np.zeros((7, 8, 9), np.uint8))
    said = refusal_of(lambda: run_on(["train"], write(tmp_path / "t.csv", rows)))
    assert said.startswith("WRONG_KIND")


def test_inference_before_training_says_so(run_on, tmp_path):
    table = classification_cohort(tmp_path / "study" / "cohort", patients=6, layout="csv")
    assert refusal_of(lambda: run_on(["inference"], table, "p")).startswith("NO_WEIGHTS")
