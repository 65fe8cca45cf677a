import math

import pytest

from rankckpt_jax.errors import InputError
from rankckpt_jax.finetune import halving


@pytest.mark.parametrize("num_trials", range(1, 41))
def test_plan_spends_equal_shares_of_the_budget(num_trials):
    budget = 100 * num_trials
    rounds = halving.plan(num_trials, budget)
    # Jamieson and Talwalkar (2016): ceil(log2 n) rounds of the same cost.
    assert len(rounds) == max(1, math.ceil(math.log2(num_trials)))
    assert rounds[0].trials == num_trials
    before = 0
    for item in rounds:
        share = budget / len(rounds)
        assert item.step - before == math.floor(share / item.trials)
        before = item.step
    for first, second in zip(rounds, rounds[1:], strict=False):
        assert second.trials == math.ceil(first.trials / 2)
    assert rounds[-1].trials <= 2
    # What rounding leaves is less than a step per trial and round.
    assert 0 <= budget - halving.spent(rounds) < sum(r.trials for r in rounds)


def test_plan_raises_for_a_budget_of_less_than_a_step():
    with pytest.raises(InputError, match="at least 24 steps for 8 trials in 3 rounds"):
        halving.plan(8, 23)
    assert halving.plan(8, 24)[0].step == 1


def test_survivors_keep_the_highest_and_drop_diverged_trials():
    values = (0.2, None, 0.9, 0.9, 0.1)
    assert halving.survivors(values, 1) == (2,)
    assert halving.survivors(values, 3) == (0, 2, 3)
    assert halving.survivors((None, None, None), 2) == (0, 1)
