import pytest

from rankckpt_jax.errors import InputError
from rankckpt_jax.finetune import budget
from rankckpt_jax.finetune.budget import Budget


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, Budget()),
        ("", Budget()),
        (0, Budget()),
        (800, Budget(steps=800)),
        ("800", Budget(steps=800)),
        ("90s", Budget(seconds=90)),
        ("30min", Budget(seconds=1800)),
        ("1.5 h", Budget(seconds=5400)),
    ],
)
def test_parse_reads_steps_and_times(value, expected):
    assert budget.parse(value) == expected


@pytest.mark.parametrize("value", ["30 m", "0min", "1e3", -1, 2.5, True, "all"])
def test_parse_refuses_what_is_neither(value):
    with pytest.raises(InputError, match="90s, 30min or 2h"):
        budget.parse(value)
