import pytest

from rankckpt_jax.devices import processes
from rankckpt_jax.errors import InputError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_processes": 2}, "coordinator` is not set"),
        ({"coordinator": "host", "num_processes": 2, "process_id": 0}, "host"),
        ({"coordinator": "host:1", "num_processes": 2}, "process_id` is not set"),
        (
            {"coordinator": "host:1", "num_processes": 2, "process_id": 2},
            "out of range",
        ),
    ],
)
def test_join_refuses_incomplete_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        processes.join(**arguments)
