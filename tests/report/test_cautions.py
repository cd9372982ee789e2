"""What a reader is told before the numbers."""

import numpy as np

from medvol.inference.collect import Predictions
from medvol.metrics.json_ready import json_ready
from medvol.report.cautions import cautions
from medvol.report.classification import EvaluatedSplit, evaluate_predictions


def told_of(labels, classes):
    """Cautions of an evaluation in which every case is a patient and all are told apart."""
    truth = np.array(labels)
    probabilities = np.full((len(labels), len(classes)), 0.1 / (len(classes) - 1))
    probabilities[np.arange(len(labels)), truth] = 0.9
    names = tuple(f"p{index}" for index in range(len(labels)))
    predictions = Predictions(names, names, np.log(probabilities), probabilities, truth)
    result = json_ready(evaluate_predictions(predictions, EvaluatedSplit("b", "test", classes, ())))
    return result, cautions(result)


def test_a_class_of_one_patient_is_named_for_its_interval_is_a_point():
    result, told = told_of([0] * 60 + [1], ("well", "ill"))
    assert result["metrics"]["sensitivity"]["ci95"] == [1.0, 1.0]
    assert result["patients_of_class"] == {"well": 60, "ill": 1}
    assert told == ["Classes with few patients: 'ill' (1). What is said of them hangs on single patients."]


def test_a_class_without_a_case_is_named_for_the_means_leave_it_out():
    _, told = told_of([0] * 20 + [1] * 20, ("a", "b", "c"))
    assert told == ["No case of 'c': the numbers say nothing of it, and means over classes leave it out."]


def test_classes_with_patients_enough_are_not_spoken_of():
    assert told_of([0] * 20 + [1] * 20, ("a", "b"))[1] == []
