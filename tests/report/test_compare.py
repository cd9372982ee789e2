"""Two evaluations of the same cases are compared in pairs, and nothing else is compared at all."""

import csv
import json

import numpy as np
import pytest

from medvol.cli import main
from medvol.errors import MedvolError
from medvol.metrics.classification import accuracy, auc
from medvol.metrics.statistics import bootstrap_means, delong_test
from medvol.report.compare import compare_evaluations, comparison_table

LABELS = np.arange(40) % 2


def scores(noise, seed):
    return 1 / (1 + np.exp(-(2 * LABELS - 1 + np.random.default_rng(seed).normal(0, noise, len(LABELS)))))


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def classified(folder, values, per_patient=1, classes=("no", "yes")):
    rows = [
        {
            "case": f"c{index:02}",
            "patient": f"p{index // per_patient}",
            "split": "test",
            "label": classes[LABELS[index]],
            "pred": classes[int(value > 0.5)],
            f"prob_{classes[0]}": 1 - value,
            f"prob_{classes[1]}": value,
            "error": "",
        }
        for index, value in enumerate(values)
    ]
    return write(folder / "predictions.csv", rows)


def segmented(folder, dice, structures=("liver", "spleen")):
    rows = [
        {"case": f"c{index}", "patient": f"p{index}", "split": "val"}
        | {f"{score}_{name}": value for name in structures for score, value in values.items()}
        | {"output": f"c{index}.nii.gz", "error": ""}
        for index, values in enumerate({"dice": d, "hd95_mm": 10 * (1 - d), "nsd": d} for d in dice)
    ]
    return write(folder / "predictions.csv", rows)


def test_an_evaluation_whose_model_was_trained_anew_is_not_compared(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        classified(folder, scores(1, 0))
    compare_evaluations(*folders)
    (folders[1] / "run.json").write_text(json.dumps({"evaluate": {"outdated_by_training": "2026-01-01"}}))
    assert refusal(*folders).code == "OUTDATED"


def refusal(*paths):
    with pytest.raises(MedvolError) as caught:
        compare_evaluations(*paths)
    assert len(caught.value.message) <= 300
    return caught.value


def test_the_differences_are_those_of_the_metrics_and_the_tests_those_of_the_statistics(tmp_path):
    first, second = scores(2.0, 0), scores(0.5, 1)
    compared = compare_evaluations(classified(tmp_path / "a", first).parent, classified(tmp_path / "b", second))
    area = compared["metrics"]["auc"]
    assert area["first"] == pytest.approx(auc(LABELS, np.stack([1 - first, first], 1)))
    assert area["second"] == pytest.approx(auc(LABELS, np.stack([1 - second, second], 1)))
    assert area["difference"]["value"] == pytest.approx(area["second"] - area["first"])
    low, high = area["difference"]["ci95"]
    assert low < area["difference"]["value"] < high
    assert compared["tests"]["delong"]["p_value"] == pytest.approx(delong_test(LABELS, second, first).p_value)
    only = compared["tests"]["mcnemar"]
    gain = accuracy(LABELS, np.stack([1 - second, second], 1)) - accuracy(LABELS, np.stack([1 - first, first], 1))
    assert only["only_second"] - only["only_first"] == pytest.approx(40 * gain)
    assert (compared["task"], compared["n_cases"], compared["n_patients"]) == ("classification", 40, 40)


def test_a_model_compared_with_itself_differs_in_nothing(tmp_path):
    path = classified(tmp_path, scores(1.0, 0))
    compared = compare_evaluations(path, path)
    assert all(row["difference"]["value"] == 0 for row in compared["metrics"].values())
    assert compared["tests"]["delong"]["p_value"] == 1
    assert not any("*" in line for line in comparison_table(compared))


def test_the_order_of_rows_columns_and_classes_does_not_matter(tmp_path):
    first, second = classified(tmp_path / "a", scores(2.0, 0)), classified(tmp_path / "b", scores(0.5, 1))
    with second.open(newline="") as stream:
        rows = [dict(reversed(row.items())) for row in csv.DictReader(stream)]
    other = write(tmp_path / "c" / "predictions.csv", rows[::-1])
    assert compare_evaluations(first, other) == compare_evaluations(first, second)


def test_tests_that_take_cases_as_independent_are_left_out_where_patients_have_several(tmp_path):
    paths = [classified(tmp_path / str(seed), scores(1.0, seed), per_patient=2) for seed in (0, 1)]
    compared = compare_evaluations(*paths)
    assert compared["n_patients"] == 20
    assert compared["tests"] == {}


def test_masks_are_compared_structure_by_structure_and_on_average(tmp_path):
    first, second = np.linspace(0.5, 0.9, 9), np.linspace(0.6, 0.95, 9)
    compared = compare_evaluations(segmented(tmp_path / "a", first), segmented(tmp_path / "b", second))
    expected = bootstrap_means({"dice": second - first}, [f"p{n}" for n in range(9)])["dice"]
    found = compared["metrics"]["dice"]["difference"]
    assert found["value"] == pytest.approx(expected["value"])
    assert found["ci95"] == pytest.approx(expected["ci95"])
    assert compared["metrics"]["hd95_mm_spleen"]["difference"]["value"] == pytest.approx(-10 * (second - first).mean())
    assert set(compared["metrics"]) == {
        *("dice", "hd95_mm", "nsd"),
        *(f"{score}_{name}" for score in ("dice", "hd95_mm", "nsd") for name in ("liver", "spleen")),
    }
    (line,) = (line for line in comparison_table(compared) if line.startswith("  dice_liver"))
    assert line.endswith("*")
    assert "+0.075" in line


def test_other_cases_labels_classes_and_tasks_are_refused(tmp_path):
    first = classified(tmp_path / "a", scores(1.0, 0))
    assert refusal(first, classified(tmp_path / "b", scores(1.0, 0)[:30])).code == "OTHER_CASES"
    other_names = classified(tmp_path / "c", scores(1.0, 0), classes=("no", "maybe"))
    assert refusal(first, other_names).code == "OTHER_CASES"  # the labels differ
    assert refusal(first, segmented(tmp_path / "d", np.full(40, 0.5))).code == "OTHER_CASES"
    masks = segmented(tmp_path / "e", np.full(5, 0.5))
    assert refusal(masks, segmented(tmp_path / "f", np.full(5, 0.5), structures=("liver",))).code == "OTHER_CLASSES"


def test_files_that_no_evaluation_wrote_are_refused(tmp_path):
    first = classified(tmp_path / "a", scores(1.0, 0))
    assert refusal(first, tmp_path / "absent").code == "NOT_FOUND"
    assert refusal(first, write(tmp_path / "b.csv", [{"x": 1}])).code == "BAD_TABLE"
    (tmp_path / "c.csv").write_bytes(bytes(range(256)))
    assert refusal(first, tmp_path / "c.csv").code == "BAD_TABLE"
    rows = [{"case": "c00", "patient": "p0", "split": "", "label": "", "prob_no": 0.5, "prob_yes": 0.5, "error": ""}]
    unlabelled = write(tmp_path / "d.csv", rows)
    assert refusal(unlabelled, unlabelled).code == "NO_LABEL"
    words = write(tmp_path / "e.csv", [{**rows[0], "label": "no", "prob_no": "half"}])
    assert refusal(words, words).code == "BAD_TABLE"


def test_the_command_prints_the_table_and_writes_json(tmp_path, capsys):
    paths = [classified(tmp_path / str(seed), scores(1.0, seed)).parent for seed in (0, 1)]
    assert main(["compare", *map(str, paths), "--json", str(tmp_path / "c.json")]) == 0
    assert "difference is second minus first" in capsys.readouterr().out
    assert json.loads((tmp_path / "c.json").read_text())["metrics"]["auc"]["difference"]["ci95"]
    assert main(["compare", str(paths[0]), str(tmp_path / "absent")]) == 1
    assert "NOT_FOUND" in capsys.readouterr().err


def test_one_patient_has_a_difference_and_no_interval(tmp_path):
    pair = [segmented(tmp_path / str(dice), np.array([dice])) for dice in (0.5, 0.75)]
    lines = comparison_table(compare_evaluations(*pair))
    (line,) = (line for line in lines if line.split()[0] == "dice")
    assert line.split() == ["dice", "0.500", "0.750", "+0.250", "undefined"]
    assert not any("nan" in line or "*" in line for line in lines)
