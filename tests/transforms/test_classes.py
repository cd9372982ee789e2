"""Logits to class probabilities, with and without a temperature."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax

from medvol.transforms.classes import ClassProbabilitiesd, class_probabilities


def test_the_probabilities_by_hand():
    # sigmoid(2 / T) = 3/4 for T = 2 / ln 3.
    found = class_probabilities(torch.tensor([[2.0]]), 2 / math.log(3))
    assert found[0].tolist() == pytest.approx([0.25, 0.75])


def test_one_logit_is_that_of_the_second_class():
    column = torch.randn(50, 1, generator=torch.Generator().manual_seed(2))
    np.testing.assert_allclose(class_probabilities(column, 2.0)[:, 1], expit(column[:, 0].numpy() / 2), rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 20))
def test_scaling_keeps_the_predicted_class_and_gives_probabilities(seed, temperature):
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(seed)) * 200
    probabilities = class_probabilities(logits, temperature).numpy()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    # Single precision: a scaled logit of thousands is right to about a thousandth.
    np.testing.assert_allclose(probabilities, softmax(logits.double().numpy() / temperature, axis=1), atol=5e-3)
    assert (probabilities.max(axis=1) == probabilities[np.arange(20), logits.argmax(dim=1)]).all()


def test_the_step_replaces_the_logits_of_an_item_by_what_the_function_returns():
    logits = torch.tensor([0.5, -1.0, 2.0])
    item = ClassProbabilitiesd(temperature=1.5)({"pred": logits, "case": "a"})
    assert torch.equal(item["pred"], class_probabilities(logits, 1.5))
    assert item["case"] == "a"
