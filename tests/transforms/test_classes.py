import numpy as np
import pytest
import torch

from medvol.metrics.calibration import Calibration, apply_calibration
from medvol.transforms.classes import ClassProbabilitiesd


@pytest.mark.parametrize("logits", [[[0.3], [-2.0]], [[0.3, 1.0], [2.0, -1.0]]])
def test_probabilities_are_those_that_the_calibration_was_fitted_for(logits):
    step = ClassProbabilitiesd("pred", temperature=1.7, bias=(-0.4, 0.4))
    found = torch.stack([step({"pred": torch.tensor(row)})["pred"] for row in logits])
    expected = apply_calibration(logits, Calibration(1.7, (-0.4, 0.4)))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert not np.allclose(found.numpy(), apply_calibration(logits, Calibration(1.7)))
