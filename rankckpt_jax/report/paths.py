"""Texts without absolute paths, because people send the page around."""

from __future__ import annotations

import os
import pathlib
import re
import shlex

_DIRECTORIES = re.compile(
    r"""(?<![\w:/.~…\\-])   # not within an address or a relative path
    (?:/(?:[^\s/"'<>|,;:()]+/)+ | [A-Za-z]:\\(?:[^\s\\"'<>|,;:()]+\\)*)
    (?=[^\s/\\])""",
    re.VERBOSE,
)
"""The directories of an absolute path, on Unix or Windows."""


def hide_directories(text: str) -> str:
    r"""Return a text in which absolute paths are shortened to their last part.

    Addresses such as `gs://bucket/file` and relative paths stay.

    Example:
      >>> hide_directories("No such file: /home/ann/pool/a.h5, see gs://pool/a.h5")
      'No such file: …/a.h5, see gs://pool/a.h5'
      >>> hide_directories("/home/ann/my photos")
      '…/my photos'
      >>> hide_directories(r"C:\Users\ann\a.h5 or photos/train")
      '…/a.h5 or photos/train'
    """
    for root in _current_directory(), _home():
        text = text.replace(f"{root.rstrip(os.sep)}{os.sep}", "…/") if root else text
    if re.fullmatch(r"/[^\n\"'<>|,;:()]+", text):
        # The whole text is one path, whose names may have spaces.
        return f"…/{text.rstrip('/').rpartition('/')[2]}"
    return _DIRECTORIES.sub("…/", text)


def relative_command(command: str) -> str:
    """Return a command that does the same in this directory, without absolute paths.

    Paths become relative to the current directory, or to the home directory as `~`.

    Args:
      command: A line for a shell.
    """
    words = shlex.split(command)
    return " ".join(shlex.quote(_relative_word(word)) for word in words)


def _relative_word(word: str) -> str:
    """Return a word such as `--field=/home/ann/a,/home/ann/b` with relative paths."""
    start, equals, values = word.rpartition("=")
    paths = ",".join(map(_relative_path, values.split(",")))
    return f"{start}{equals}{paths}"


def _relative_path(path: str) -> str:
    if not os.path.isabs(path):
        return path
    place, home = pathlib.PurePath(path), _home()
    if home and place.is_relative_to(home) and not place.is_relative_to(os.getcwd()):
        return f"~/{place.relative_to(home).as_posix()}"
    return os.path.relpath(path)


def _current_directory() -> str:
    root = os.getcwd()
    return "" if root == os.path.sep else root


def _home() -> str:
    home = os.path.expanduser("~")
    return home if os.path.isabs(home) and home != os.path.sep else ""
