"""What a run ends with where it cannot go on: an error to read, or a later time."""

import difflib
from collections.abc import Iterable

from rankckpt_jax.redaction import redact


class InputError(ValueError):
    """Something the user gave cannot be used; says what, where and how to mend it.

    `rankckpt_jax.main` prints it without a traceback and exits with code 2. A
    checkpoint whose loading raises it becomes a failed row, and the others go on.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        expected: str = "",
        found: str = "",
        mend: str = "",
    ):
        """Builds the message from its parts; empty parts are left out, and secrets too.

        Args:
          what: One sentence that names the fault, without a full stop.
          where: The file, config field or argument that is at fault.
          expected: What would have been accepted.
          found: What was there instead.
          mend: What the user can do about it.
        """
        parts = [("where", where), ("expected", expected)]
        parts += [("found", found), ("to mend", mend)]
        self.what = redact(what)
        details = "".join(f"\n  {name}: {text}" for name, text in parts if text)
        super().__init__(self.what + redact(details))

    def __reduce__(self):
        """Survives copying between processes, which the default would not."""
        return _rebuild, (type(self), self.what, str(self))


class UnreadableImage(InputError):
    """An image of a split cannot be decoded; raised while a pipeline reads it.

    A run then looks for all such images, leaves them out and goes on with the others.
    """


class StorageError(InputError):
    """What was computed cannot be kept: a disk is full, read-only or gone.

    It ends the run, where another `InputError` ends a checkpoint's row: the next
    checkpoint would fare no better.
    """


class Interrupted(Exception):
    """A run ended early because it was asked to, having saved its state.

    Started again, it goes on from there.
    """


def _rebuild(cls: type[InputError], what: str, message: str) -> InputError:
    error = cls(what)
    error.args = (message,)
    return error


def suggest(given: object, known: Iterable[str]) -> str:
    """How to mend a name that is none of the known ones.

    Example:
      >>> suggest("nlepp", ["leep", "nleep"])
      "did you mean 'nleep'?"
    """
    nearest = difflib.get_close_matches(str(given), list(known), n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else "take one that is known"


def some(names: Iterable[str], most: int = 8) -> str:
    """The first of many names, and how many more there are.

    Example:
      >>> some("abcd", most=2)
      'a, b and 2 more'
    """
    names = list(names)
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
