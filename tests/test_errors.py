import copy

from rankckpt_jax.errors import InputError


def test_the_message_has_every_part_that_is_given():
    error = InputError("Bad size", where="config.size", expected="> 0", found="-1")
    assert str(error).splitlines() == [
        "Bad size",
        "  where: config.size",
        "  expected: > 0",
        "  found: -1",
    ]
    assert error.what == "Bad size"


def test_it_survives_being_copied():
    error = InputError("Bad size", where="config.size")
    for same in (copy.copy(error), copy.deepcopy(error)):
        assert str(same) == str(error)
        assert same.what == "Bad size"
