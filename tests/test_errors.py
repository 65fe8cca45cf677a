import copy

from rankckpt_jax.errors import InputError


def test_input_error_message_contains_given_parts():
    error = InputError("Bad size", where="config.size", expected="> 0", found="-1")
    assert str(error).splitlines() == [
        "Bad size",
        "  where: config.size",
        "  expected: > 0",
        "  found: -1",
    ]
    assert error.what == "Bad size"


def test_input_error_can_be_copied():
    error = InputError("Bad size", where="config.size")
    for same in (copy.copy(error), copy.deepcopy(error)):
        assert str(same) == str(error)
        assert same.what == "Bad size"
