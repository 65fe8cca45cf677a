"""Labels from a file `labels.csv` beside images, with a line for each image.

    FILE,LABEL            one class, or a number
    FILE,LABEL|LABEL      several labels; also in several lines of the same file
    FILE,0,1,1            a column of 0 or 1 for each label, named in the heading

A column with the heading `split` may divide the images.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import pathlib
import unicodedata
from collections.abc import Iterable, Mapping

from rankckpt_jax.data import image_files, label_kind, targets
from rankckpt_jax.data.label_kind import Entry, Label
from rankckpt_jax.errors import some

NAME = "labels.csv"

_DELIMITERS = (";", "\t", ",")
_FILE_HEADINGS = ("file", "filename", "file_name", "image", "path", "filepath")
_LABEL_HEADINGS = (
    *("label", "class", "category", "class_name", "target"),
    *("labels", "classes", "categories", "tags", "value", "score"),
)
_SPLIT_HEADINGS = ("split", "subset", "partition")

Row = tuple[int, list[str]]
"""(number of the line in the file, its cells)."""


@dataclasses.dataclass(frozen=True)
class Labels:
    """The labels of the images that a file lists.

    Attributes:
      target: Their kind, one of `targets.TARGETS`.
      labels: The label of each image in the file's order: a name for classes, a tuple
        of names for multi_label, a float for regression.
      splits: The cell of the column `split` of each image; empty without the column.
      source: What was taken for the labels, such as "classes" or "numbers from 0 to 5".
      note: A sentence on what was assumed and how to change it, or empty.
    """

    target: str
    labels: Mapping[pathlib.Path, Label]
    splits: Mapping[pathlib.Path, str]
    source: str
    note: str = ""


@dataclasses.dataclass(frozen=True)
class _Columns:
    """Positions of the columns of a file.

    Attributes:
      file: The column of the file.
      labels: The column of the label, or one column of 0 and 1 for each label.
      names: The labels of these columns; empty for a column of labels.
      split: The column `split`, if there is one.
      chosen: The heading of the column of the label if others could be meant.
    """

    file: int
    labels: tuple[int, ...]
    names: tuple[str, ...] = ()
    split: int | None = None
    chosen: str = ""


def lists_images(path: pathlib.Path) -> bool:
    """Return whether a CSV file names image files, rather than anything else."""
    return any(_names_image(cells) for _, cells in _read_rows(path))


def read(path: pathlib.Path, target: str = targets.AUTO) -> Labels:
    """Return the labels of the images that a file lists.

    The first line is a heading if it names no image file. A heading that names both
    columns decides which is which. Otherwise the first column is the file, relative to
    the folder of the CSV file, and the next is the label. Several columns of 0 and 1
    are labels that an image has or lacks.

    Args:
      path: The file.
      target: The kind of the labels; see `config.task.target`.

    Raises:
      InputError: The file cannot be read, a line has no file or no label of this kind,
        a file is outside the folder, or has two classes or two numbers.
    """
    rows = _read_rows(path)
    heading: list[str] = []
    if rows and not _names_image(rows[0][1]):
        heading, rows = rows[0][1], rows[1:]
    columns = _find_columns(heading, rows, target)
    entries, splits = _read_entries(path, rows, columns)
    if not entries:
        raise label_kind.unusable(
            str(path), expected="lines FILE,LABEL", found="no such line"
        )
    if columns.names:
        names = tuple(unicodedata.normalize("NFC", name) for name in columns.names)
        found = label_kind.from_indicators(path, names, entries, target)
    else:
        found = label_kind.from_cells(path, entries, target)
    source = found.source + (f" in column {columns.chosen!r}" if columns.chosen else "")
    return Labels(found.target, found.labels, splits, source, found.note)


def describe_unlisted(path: pathlib.Path, listed: Iterable[pathlib.Path]) -> str:
    """Return a sentence about images beside a file that it does not list, or ""."""
    known = set(listed)
    unlisted = [file for file in image_files.images(path.parent) if file not in known]
    if not unlisted:
        return ""
    names = [repr(str(file.relative_to(path.parent))) for file in unlisted]
    return (
        f"{len(unlisted)} images are not listed in {path.name} and are ignored; add "
        f"them to the file, or remove them: {some(names)}"
    )


def _find_columns(heading: list[str], rows: list[Row], target: str) -> _Columns:
    lower = [cell.casefold() for cell in heading]

    def find(names: Iterable[str]) -> int | None:
        return next((i for i, cell in enumerate(lower) if cell in names), None)

    split = find(_SPLIT_HEADINGS)
    given = [i for i in range(max(len(heading), 2)) if i != split]
    file = find(_FILE_HEADINGS)
    file = given[0] if file is None else file
    label = find(_LABEL_HEADINGS)
    if label is not None and label != file:
        return _Columns(file, (label,), split=split)
    others = [i for i in given if i != file] or [len(heading)]
    may_be_indicators = label_kind.are_indicators(
        cells[i] for _, cells in rows for i in others if i < len(cells)
    )
    if heading and may_be_indicators and (len(others) > 1 or target == "multi_label"):
        names = tuple(heading[i] for i in others if i < len(heading))
        return _Columns(file, tuple(others), names, split)
    chosen = heading[others[0]] if len(others) > 1 else ""
    return _Columns(file, (others[0],), (), split, chosen)


def _read_entries(
    path: pathlib.Path, rows: list[Row], columns: _Columns
) -> tuple[list[Entry], dict[pathlib.Path, str]]:
    """Return the lines of all images, and the cell of `split` of each image."""
    # File systems and programs write the same letters in different ways.
    by_name = {
        unicodedata.normalize("NFC", str(file)): file
        for file in image_files.images(path.parent)
    }
    entries: list[Entry] = []
    splits: dict[pathlib.Path, str] = {}
    for line, cells in rows:
        where = f"{path}, line {line}"
        needed = (columns.file, *columns.labels, columns.split or 0)
        if len(cells) <= max(needed) or not cells[columns.file]:
            raise label_kind.unusable(
                where, expected="a file and a label", found=",".join(cells)
            )
        name = cells[columns.file]
        relative = pathlib.PurePosixPath(name.replace("\\", "/"))
        if relative.is_absolute() or ".." in relative.parts:
            raise label_kind.unusable(
                where, expected=f"paths below {path.parent}", found=name
            )
        file = path.parent / relative
        file = by_name.get(unicodedata.normalize("NFC", str(file)), file)
        own = tuple(cells[i] for i in columns.labels)
        entries.append(Entry(line, file, name, own, ",".join(cells)))
        if columns.split is not None:
            split = cells[columns.split]
            if splits.setdefault(file, split) != split:
                raise label_kind.unusable(
                    where,
                    expected="one split per image",
                    found=f"{name!r} in {splits[file]!r} and {split!r}",
                )
    return entries, splits


def _names_image(cells: Iterable[str]) -> bool:
    return any(image_files.is_image(pathlib.Path(cell)) for cell in cells)


def _read_rows(path: pathlib.Path) -> list[Row]:
    """Return the lines that are not empty, split at the delimiter of the file."""
    try:
        data = path.read_bytes()
        utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        lines = data.decode("utf-16" if utf_16 else "utf-8-sig").splitlines()
        reader = csv.reader(lines, delimiter=_delimiter(lines), skipinitialspace=True)
        rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise label_kind.unusable(
            str(path),
            expected="a CSV file in UTF-8 with lines FILE,LABEL",
            found=getattr(error, "strerror", None) or str(error),
        ) from error
    return [(line, cells) for line, cells in rows if any(cells)]


def _delimiter(lines: list[str]) -> str:
    """Return the delimiter that leaves the name of an image alone in its cell.

    A semicolon may also separate the labels of an image.
    """
    first = [line for line in lines if line.strip()][:2]
    for delimiter in _DELIMITERS:
        rows = csv.reader(first, delimiter=delimiter, skipinitialspace=True)
        if any(
            len(cells) > 1 and _names_image(map(str.strip, cells)) for cells in rows
        ):
            return delimiter
    return next((d for d in _DELIMITERS if first and d in first[0]), ",")
