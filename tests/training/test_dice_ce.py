"""Dice plus cross-entropy by hand, against MONAI and by finite differences."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from monai.losses import DiceCELoss

from medvol.training.dice_ce import dice_ce

stock = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False, batch=True)


def test_two_voxels_by_hand():
    logits = torch.tensor([[[0.0, 0.0], [math.log(3), math.log(1 / 3)]]], dtype=torch.float64)  # 3/4 and 1/4
    labels = torch.tensor([[[1, 0]]])
    dice = 1 - 2 * 0.75 / (1 + 0.75 + 0.25)
    assert dice_ce(logits, labels).item() == pytest.approx(dice - math.log(0.75), abs=1e-5)


@settings(deadline=None)
@given(
    classes=st.integers(2, 6),
    batch=st.integers(1, 3),
    shape=st.tuples(*[st.integers(1, 4)] * 3),
    scale=st.sampled_from([0.1, 3.0, 60.0]),
    seed=st.integers(0, 2**16),
)
def test_value_and_gradient_are_monais(classes, batch, shape, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(batch, classes, *shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (batch, 1, *shape), generator=generator)
    mine, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found, expected = dice_ce(mine, labels), stock(theirs, labels)
    torch.testing.assert_close(found, expected)
    (3 * found).backward()
    (3 * expected).backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_gradient_is_the_derivative():
    logits = torch.randn(2, 3, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (2, 1, 2, 3, 2))
    torch.autograd.gradcheck(lambda tensor: dice_ce(tensor, labels), (logits,))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64])
def test_layout_of_the_logits_and_type_of_the_labels_do_not_matter(layout, dtype):
    logits = torch.randn(2, 4, 7, 8, 9).to(memory_format=layout).requires_grad_()
    labels = torch.randint(0, 4, (2, 1, 7, 8, 9))
    loss = dice_ce(logits, labels.to(dtype))
    loss.backward()
    expected = logits.detach().contiguous().requires_grad_()
    reference = stock(expected, labels)
    reference.backward()
    torch.testing.assert_close(loss, reference)
    torch.testing.assert_close(logits.grad, expected.grad, atol=1e-7, rtol=1e-4)


def test_a_structure_that_is_nowhere_and_foreseen_nowhere_costs_nothing():
    labels = torch.randint(0, 2, (1, 1, 4, 5, 6))
    logits = torch.zeros(1, 3, 4, 5, 6).scatter_(1, labels, 200.0)
    assert dice_ce(logits, labels).item() == pytest.approx(0, abs=1e-6)


def test_only_the_softmax_is_kept_for_the_gradient():
    logits = torch.randn(1, 25, 8, 8, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.nbytes) or one, lambda one: one):
        dice_ce(logits, torch.randint(0, 25, (1, 1, 8, 8, 8)))
    assert sum(kept) < 1.2 * logits.nbytes
