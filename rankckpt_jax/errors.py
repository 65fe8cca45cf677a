"""Errors that a user reads: unusable input, full disks, interruptions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any


class InputError(ValueError):
    """The user's input cannot be used: what is wrong, where, and how to fix it.

    `rankckpt_jax.main` prints it without a traceback and exits with code 2. If one
    checkpoint raises it, that checkpoint becomes a failed row and the run continues.

    Attributes:
      what: The first line of the message.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        expected: str = "",
        found: str = "",
        fix: str = "",
    ):
        """Build the message from its parts, without empty parts and secrets.

        Args:
          what: One sentence that names the problem, without a full stop.
          where: The file, config field or argument.
          expected: What is allowed.
          found: The value that was given.
          fix: What the user can do.
        """
        parts = [("where", where), ("expected", expected)]
        parts += [("found", found), ("to fix", fix)]
        self.what = redact(what)
        details = "".join(f"\n  {name}: {text}" for name, text in parts if text)
        super().__init__(self.what + redact(details))

    def __reduce__(self):
        """Support pickling between processes, which keyword arguments would break."""
        return _rebuild, (type(self), self.what, str(self))


class UnreadableImage(InputError):
    """An image cannot be decoded; raised while a pipeline reads it.

    The run then finds all such images, drops them and continues with the rest.
    """


class StorageError(InputError):
    """A result cannot be written: the disk is full, read-only or gone.

    It ends the run, because the next checkpoint would fail in the same way.
    """


class Interrupted(Exception):
    """The run was asked to stop and has saved its state; run it again to resume."""


def _rebuild(cls: type[InputError], what: str, message: str) -> InputError:
    error = cls(what)
    error.args = (message,)
    return error


def suggest(given: object, known: Iterable[str]) -> str:
    """Return a hint for an unknown name.

    Example:
      >>> suggest("nlepp", ["leep", "nleep"])
      "did you mean 'nleep'?"
    """
    nearest = difflib.get_close_matches(str(given), list(known), n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else "use one of the names above"


# Names that a message has at most.
_MANY = 60


def unknown_name(
    kind: str, given: object, known: Iterable[str], where: str
) -> InputError:
    """Return the error for a name that is not one of `known`.

    Example:
      >>> print(unknown_name("measure", "nlepp", ["leep", "nleep"], "config.measures"))
      Unknown measure 'nlepp'
        where: config.measures
        expected: one of leep, nleep
        found: nlepp
        to fix: did you mean 'nleep'?

    Args:
      kind: What the name stands for, such as "measure".
      given: The unknown name.
      known: The names that exist. Of many, the message has the nearest.
      where: The config field or argument.
    """
    known = list(known)
    expected = "one of " + ", ".join(known)
    if len(known) > _MANY:
        near = difflib.get_close_matches(str(given), known, n=8, cutoff=0)
        expected = f"one of {len(known)} names, such as " + ", ".join(near)
    return InputError(
        f"Unknown {kind} {str(given)!r}",
        where=where,
        expected=expected,
        found=str(given),
        fix=suggest(given, known),
    )


def some(names: Iterable[str], most: int = 8) -> str:
    """Join the first names, and count the rest.

    Example:
      >>> some("abcd", most=2)
      'a, b and 2 more'
    """
    names = list(names)
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


HIDDEN = "[hidden]"
"""The text that replaces a secret."""

# Up to the last @ before the path, because a password may contain others.
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^\s/?#'\"<>,]*@")
_QUERY = re.compile(r"\?([^\s?#'\"<>=&]+=[^\s#'\"<>]*)")
# Parts of a query that are not secret.
_HARMLESS = re.compile(r"tf-hub-format=compressed|(download|dl|raw)=(0|1|true|false)")
_SECRET_NAMES = re.compile(
    r"(?i)(password|passwd|passphrase|secret|credential|api_?key|access_?key"
    r"|private_?key|auth_?token|access_?token|(^|_)token$|authorization)"
)


def redact(value: Any) -> Any:
    """Replace the secrets in a text, or in the texts of nested plain data.

    Secrets are the user and password in an address, all values of its query (the name
    of the key differs by service), and any text in a field named like a password, token
    or key.

    Example:
      >>> redact("https://me:pass@host/a.zip?Expires=9&Signature=x: not found")
      'https://[hidden]@host/a.zip?Expires=[hidden]&Signature=[hidden] not found'
      >>> redact({"api_key": "x", "mirrors": ("https://t0ken@host/{path}",)})
      {'api_key': '[hidden]', 'mirrors': ('https://[hidden]@host/{path}',)}

    Args:
      value: A text, mapping, list or tuple. Other values are returned unchanged.
    """
    if isinstance(value, str):
        return _QUERY.sub(_hide_query, _USER.sub(rf"\1{HIDDEN}@", value))
    if isinstance(value, Mapping):
        return {
            redact(key): HIDDEN
            if isinstance(inner, str) and inner and _SECRET_NAMES.search(str(key))
            else redact(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return type(value)([redact(inner) for inner in value])
    return value


def describe_unexpected(error: Exception) -> str:
    """Describe an error that is not the user's, without secrets, for a row or cell.

    The caller logs the traceback.
    """
    reason = str(error).strip().partition("\n")[0]
    text = redact(f"{type(error).__name__}: {reason}".removesuffix(": "))
    return f"{text}. The log has the traceback; please report it."


def _hide_query(match: re.Match[str]) -> str:
    pairs = (
        pair
        if _HARMLESS.fullmatch(pair.rstrip(":,.;)"))
        else f"{pair.partition('=')[0]}={HIDDEN}"
        for pair in match[1].split("&")
    )
    return "?" + "&".join(pairs)
