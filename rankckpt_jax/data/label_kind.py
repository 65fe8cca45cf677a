"""The kind of the labels in a file: classes, several labels or numbers."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from rankckpt_jax.data import targets
from rankckpt_jax.errors import InputError, some

Label = str | tuple[str, ...] | float
_Label = TypeVar("_Label", bound=Label)

SEVERAL = 0.1
"""Smallest share of images with several labels that makes a task multi-label.

Fewer may be mistakes. In multi-label data sets far more images have several labels.
"""

# Separators of the labels in a cell; a name may contain the last one.
_SEPARATORS = ("|", ";", ",")
_ONE, _ZERO = ("1", "1.0", "true"), ("0", "0.0", "false")
_UNKNOWN = ("", "-1", "-1.0", "nan")
# Whole numbers without gaps are the numbers of classes, if there are so few.
_FEW_CLASSES = 20
# Images per number from which fractional numbers may be classes.
_OFTEN = 10


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of a file: its number, image, name of the image, cells and text."""

    line: int
    file: pathlib.Path
    name: str
    cells: tuple[str, ...]
    text: str


@dataclasses.dataclass(frozen=True)
class Found:
    """Labels with their kind. The attributes are those of `label_file.Labels`."""

    target: str
    labels: Mapping[pathlib.Path, Label]
    source: str
    note: str = ""


def are_indicators(cells: Iterable[str]) -> bool:
    """Return whether all cells are 0, 1 or an unknown value, and some are 0 or 1."""
    found = {cell.casefold() for cell in cells}
    return found <= {*_ONE, *_ZERO, *_UNKNOWN} and bool(found & {*_ONE, *_ZERO})


def from_indicators(
    path: pathlib.Path, names: Sequence[str], entries: Sequence[Entry], target: str
) -> Found:
    """Return the labels of a file with a column of 0 or 1 for each label.

    Args:
      path: The file, for errors.
      names: The label of each column.
      entries: The lines.
      target: See `config.task.target`.

    Raises:
      InputError: Another value, two names or lines of an image that differ, or the
        columns cannot be of the kind `target`.
    """
    if len(set(names)) < len(names):
        raise unusable(f"{path}, line 1", "different names", ", ".join(names))
    sets: dict[pathlib.Path, tuple[str, ...]] = {}
    for entry in entries:
        values = [cell.casefold() for cell in entry.cells]
        if unknown := [v for v in values if v not in {*_ONE, *_ZERO}]:
            found = f"{unknown[0]!r} in {entry.text}"
            raise unusable(f"{path}, line {entry.line}", "0 or 1 per label", found)
        own = tuple(n for n, v in zip(names, values, strict=True) if v in _ONE)
        _add_once(path, sets, entry, own, "one line per image")
    single = all(len(own) == 1 for own in sets.values())
    if target == "classes" or (target == targets.AUTO and single):
        if not single:
            raise _not_of_kind(path, "classes", "images with no or several labels")
        note = (
            f"every image has exactly one of the {len(names)} columns of {path.name}, "
            "so they are taken as classes; if an image may have several labels, set "
            "config.task.target=multi_label"
        )
        labels = {file: own[0] for file, own in sets.items()}
        note = note if target == targets.AUTO else ""
        return Found("classes", labels, f"classes ({len(names)} columns)", note)
    if target == "regression":
        raise _not_of_kind(path, "regression", f"{len(names)} columns of 0 and 1")
    return Found("multi_label", sets, f"labels ({len(names)} columns)")


def from_cells(path: pathlib.Path, entries: Sequence[Entry], target: str) -> Found:
    """Return the labels of a file with one column of labels.

    Args:
      path: The file, for errors.
      entries: The lines, with one cell each.
      target: See `config.task.target`.

    Raises:
      InputError: A cell cannot be of the kind `target`, or an image has two classes or
        two numbers.
    """
    target, note = (target, "") if target != targets.AUTO else _guess(path, entries)
    if target == "multi_label":
        separator = _separator(entries, _SEPARATORS)
        sets: dict[pathlib.Path, tuple[str, ...]] = {}
        for entry in entries:
            cell = entry.cells[0]
            parts = cell.split(separator) if separator else [cell]
            stripped = (unicodedata.normalize("NFC", part.strip()) for part in parts)
            both = (*sets.get(entry.file, ()), *filter(None, stripped))
            sets[entry.file] = tuple(dict.fromkeys(both))
        return Found(target, sets, "labels", note)
    if target == "regression":
        numbers: dict[pathlib.Path, float] = {}
        for entry in entries:
            number = _to_number(entry.cells[0])
            if number is None or not math.isfinite(number):
                where, found = f"{path}, line {entry.line}", entry.text
                raise unusable(where, "a file and a finite number", found)
            _add_once(path, numbers, entry, number, "one number per image")
        low, high = min(numbers.values()), max(numbers.values())
        return Found(target, numbers, f"numbers from {low:g} to {high:g}", note)
    classes: dict[pathlib.Path, str] = {}
    for entry in entries:
        if not entry.cells[0]:
            where = f"{path}, line {entry.line}"
            raise unusable(where, expected="a file and a label", found=entry.text)
        _add_once(path, classes, entry, entry.cells[0], "one label per image")
    return Found(target, classes, "classes", note)


def _guess(path: pathlib.Path, entries: Sequence[Entry]) -> tuple[str, str]:
    """Return the kind of cells, and what was assumed if they may be of another kind."""
    if _separator(entries, _SEPARATORS[:2]):
        return "multi_label", ""
    cells = [entry.cells[0] for entry in entries]
    numbers = [_to_number(cell) for cell in cells]
    known = [n for n in numbers if n is not None and math.isfinite(n)]
    fractional = any(not number.is_integer() for number in known)
    # A few cells without a number are mistakes if the others are fractional.
    if fractional and len(known) >= (1 - SEVERAL) * len(cells):
        often = _OFTEN * len(set(known)) <= len(known)
        note = _assumed(path, known, "regression", "classes") if often else ""
        return "regression", note
    by_file: dict[pathlib.Path, set[str]] = {}
    for entry in entries:
        by_file.setdefault(entry.file, set()).add(entry.cells[0])
    several = sum(len(own) > 1 for own in by_file.values())
    if len(known) == len(cells) and not several:
        distinct = sorted(set(known))
        if len(distinct) > 1 and 2 * len(distinct) > len(by_file):
            return "regression", _assumed(path, known, "regression", "classes")
        counts = distinct[-1] - distinct[0] + 1 == len(distinct) and distinct[0] in (
            0,
            1,
        )
        if not counts or len(distinct) > _FEW_CLASSES:
            return "classes", _assumed(path, known, "classes", "regression")
        return "classes", ""
    if several >= SEVERAL * len(by_file):
        return "multi_label", ""
    return "classes", ""


def _assumed(
    path: pathlib.Path, numbers: Sequence[float], kind: str, other: str
) -> str:
    words = {"classes": "classes", "regression": "numbers to predict"}
    distinct = sorted(set(numbers))
    shown = some((f"{number:g}" for number in distinct), most=4)
    return (
        f"the labels in {path.name} are {len(distinct)} different numbers ({shown}) of "
        f"{len(numbers)} images, and are taken as {words[kind]}; if they are "
        f"{words[other]}, set config.task.target={other}"
    )


def _separator(entries: Sequence[Entry], known: Iterable[str]) -> str:
    """Return the first separator that occurs in a cell, or ""."""
    cells = [entry.cells[0] for entry in entries]
    return next((s for s in known if any(s in cell for cell in cells)), "")


def _to_number(cell: str) -> float | None:
    # Python reads "1_000" as a number.
    if "_" in cell:
        return None
    try:
        return float(cell)
    except ValueError:
        return None


def _add_once(
    path: pathlib.Path,
    labels: dict[pathlib.Path, _Label],
    entry: Entry,
    label: _Label,
    expected: str,
) -> None:
    """Add the label of an image, which may not have another."""
    known = labels.setdefault(entry.file, label)
    if known != label:
        raise InputError(
            "The labels of the images cannot be used",
            where=f"{path}, line {entry.line}",
            expected=expected,
            found=f"{entry.name!r} with the labels {known!r} and {label!r}",
            fix="correct the file, or set config.task.target=multi_label if an image "
            "may have several labels",
        )


def _not_of_kind(path: pathlib.Path, target: str, found: str) -> InputError:
    return InputError(
        f"The labels are not of the kind {target}",
        where=str(path),
        expected=f"{targets.TARGETS[target]} per image",
        found=found,
        fix="change config.task.target, or the file",
    )


def unusable(where: str, expected: str, found: str) -> InputError:
    """Return the error for a line or a file that cannot be used."""
    return InputError(
        "The labels of the images cannot be used",
        where=where,
        expected=expected,
        found=found,
        fix="correct the file, or remove it and put the images of each class into a "
        "folder of its own",
    )
