"""The schedule rises, falls, and works for runs of any length."""

import pytest
import torch

from medvol.training.schedule import one_cycle


def rates(total_steps, **options):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = one_cycle(optimizer, max_lr=0.1, total_steps=total_steps, **options)
    found = []
    for _ in range(total_steps):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("total_steps", range(1, 13))
def test_runs_of_a_few_steps_have_a_schedule(total_steps):
    found = rates(total_steps)
    assert all(0 <= rate <= 0.1 + 1e-9 for rate in found)
    assert found[0] == pytest.approx(0.1 / 25)


def test_the_highest_rate_comes_after_the_warm_up_and_the_end_is_near_zero():
    found = rates(200, warmup_fraction=0.25)
    assert max(found) == pytest.approx(0.1)
    assert found.index(max(found)) == 49
    assert found[-1] < 1e-5
