"""Short forms of long names."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence


def shorten_names(names: Sequence[str], most: int) -> list[str]:
    """Return names without the middle of long ones; different names stay different.

    Example:
      >>> shorten_names(["mobilenet_v1_1.0_224", "inception_v3"], 13)
      ['mobile….0_224', 'inception_v3']

    Args:
      names: The names.
      most: Largest width of a name, unless different names would become equal.
    """
    longest = max(map(text_width, names), default=0)
    for limit in range(most, longest):
        short = [_shorten(name, limit) for name in names]
        if len(set(short)) == len(set(names)):
            return short
    return list(names)


def shorten_in_text(text: str, names: Sequence[str], most: int) -> str:
    """Return a text in which each name has its short form.

    Args:
      text: A sentence.
      names: Names that may occur in it.
      most: Largest width of a name, unless different names would become equal.
    """
    pairs = zip(names, shorten_names(names, most), strict=True)
    # A name may contain another one.
    for name, short in sorted(pairs, key=lambda pair: -len(pair[0])):
        text = text.replace(name, short) if name != short else text
    return text


def text_width(text: str) -> int:
    """Return the width of `text` in a terminal, where wide characters take two."""
    return len(text) if text.isascii() else sum(map(_letter_width, text))


def text_start(text: str, most: int) -> str:
    """Return the longest start of a text of at most this width."""
    widths = itertools.accumulate(map(_letter_width, text))
    return text[: sum(1 for _ in itertools.takewhile(lambda w: w <= most, widths))]


def _letter_width(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 1 + (unicodedata.east_asian_width(letter) in "WF")


def _shorten(name: str, most: int) -> str:
    """Return a name without its middle if it is wider than `most`."""
    if text_width(name) <= most:
        return name
    head = text_start(name, (most - 1) // 2)
    tail = text_start(name[::-1], most - 1 - text_width(head))[::-1]
    return f"{head}…{tail}"
