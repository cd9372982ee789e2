"""The loss of masked-volume modelling by hand."""

import pytest
import torch

from medvol.training.masked import MaskedError, image_as_target, validation_error


def outputs_of(prediction, hidden):
    return torch.cat((prediction, hidden), dim=1)


def test_only_hidden_voxels_count_and_each_alike():
    volumes = torch.zeros(1, 1, 1, 1, 4)
    prediction = torch.tensor([1.0, 2.0, 3.0, 100.0]).view(volumes.shape)
    hidden = torch.tensor([1.0, 0.0, 1.0, 0.0]).view(volumes.shape)
    assert MaskedError()(outputs_of(prediction, hidden), volumes).item() == (1 + 9) / 2


def test_the_mean_goes_over_channels_and_cases_too():
    volumes = torch.zeros(2, 2, 1, 1, 2)
    prediction = torch.arange(8.0).view(volumes.shape)
    hidden = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).view(2, 1, 1, 1, 2)
    expected = (0 + 2**2 + 4**2 + 5**2 + 6**2 + 7**2) / 6
    assert MaskedError()(outputs_of(prediction, hidden), volumes).item() == pytest.approx(expected)


def test_visible_voxels_get_no_gradient():
    prediction = torch.ones(1, 1, 1, 1, 2, requires_grad=True)
    hidden = torch.tensor([1.0, 0.0]).view(1, 1, 1, 1, 2)
    MaskedError()(outputs_of(prediction, hidden), torch.zeros(1, 1, 1, 1, 2)).backward()
    assert prediction.grad.flatten().tolist() == [2.0, 0.0]


def test_a_batch_is_its_own_target_whatever_its_label():
    image = torch.randn(2, 1, 2, 2, 2)
    given, target = image_as_target({"image": image, "label": torch.tensor([0, 1])})
    assert torch.equal(given, image)
    assert torch.equal(target, image)


def test_the_validation_error_weighs_batches_by_their_cases():
    metric = validation_error()
    metric.reset()
    for count, error in ((3, 2.0), (1, 6.0)):
        volumes = torch.zeros(count, 1, 1, 1, 1)
        pred = outputs_of(torch.full_like(volumes, error), torch.ones_like(volumes))
        metric.iteration_completed(
            type("Engine", (), {"state": type("S", (), {"output": {"pred": pred, "label": volumes}})})()
        )
    assert metric.compute() == pytest.approx((3 * 4 + 36) / 4)
