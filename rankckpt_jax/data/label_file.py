"""Labels from a file `labels.csv` beside images, with lines FILE,LABEL."""

from __future__ import annotations

import codecs
import csv
import pathlib
import unicodedata
from collections.abc import Iterable

from rankckpt_jax.data import image_files
from rankckpt_jax.errors import InputError, some

NAME = "labels.csv"

_DELIMITERS = (";", "\t", ",")
_FILE_HEADINGS = ("file", "filename", "file_name", "image", "path", "filepath")
_LABEL_HEADINGS = ("label", "class", "category", "class_name", "target")

Row = tuple[int, list[str]]
"""(number of the line in the file, its cells)."""


def lists_images(path: pathlib.Path) -> bool:
    """Return whether a CSV file names image files, rather than anything else."""
    return any(
        image_files.is_image(pathlib.Path(cell))
        for _, cells in _read_rows(path)
        for cell in cells
    )


def read(path: pathlib.Path) -> dict[pathlib.Path, str]:
    """Return the label of each image that a file lists, in the file's order.

    The first line is a heading if it names no image file. A heading that names both
    columns decides which is which. Otherwise the first column is the file, relative to
    the folder of the CSV file, and the second is the label.

    Raises:
      InputError: The file cannot be read, a line lacks a file or a label, a file is
        outside the folder, or has two labels.
    """
    rows = _read_rows(path)
    columns = (0, 1)
    if rows and not any(image_files.is_image(pathlib.Path(c)) for c in rows[0][1]):
        columns = _find_columns([cell.casefold() for cell in rows[0][1]])
        rows = rows[1:]
    # File systems and programs write the same letters in different ways.
    by_name = {
        unicodedata.normalize("NFC", str(file)): file
        for file in image_files.images(path.parent)
    }
    labels: dict[pathlib.Path, str] = {}
    for line, cells in rows:
        if len(cells) <= max(columns) or not all(cells[i] for i in columns):
            raise _unusable(
                f"{path}, line {line}",
                expected="a file and a label",
                found=",".join(cells),
            )
        name, label = (cells[i] for i in columns)
        relative = pathlib.PurePosixPath(name.replace("\\", "/"))
        if relative.is_absolute() or ".." in relative.parts:
            raise _unusable(
                f"{path}, line {line}",
                expected=f"paths below {path.parent}",
                found=name,
            )
        file = path.parent / relative
        file = by_name.get(unicodedata.normalize("NFC", str(file)), file)
        if labels.setdefault(file, label) != label:
            raise _unusable(
                f"{path}, line {line}",
                expected="one label per image",
                found=f"{name!r} with the labels {labels[file]!r} and {label!r}",
            )
    if not labels:
        raise _unusable(str(path), expected="lines FILE,LABEL", found="no such line")
    return labels


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


def _find_columns(heading: list[str]) -> tuple[int, int]:
    """Return the columns (file, label) of a heading in lower case."""
    files = [i for i, cell in enumerate(heading) if cell in _FILE_HEADINGS]
    labels = [i for i, cell in enumerate(heading) if cell in _LABEL_HEADINGS]
    return (files[0], labels[0]) if files and labels else (0, 1)


def _read_rows(path: pathlib.Path) -> list[Row]:
    """Return the lines that are not empty, split at the delimiter of the first."""
    try:
        data = path.read_bytes()
        utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        lines = data.decode("utf-16" if utf_16 else "utf-8-sig").splitlines()
        first = next(filter(str.strip, lines), "")
        delimiter = next((d for d in _DELIMITERS if d in first), ",")
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
        rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unusable(
            str(path),
            expected="a CSV file in UTF-8 with lines FILE,LABEL",
            found=getattr(error, "strerror", None) or str(error),
        ) from error
    return [(line, cells) for line, cells in rows if any(cells)]


def _unusable(where: str, expected: str, found: str) -> InputError:
    return InputError(
        "The labels of the images cannot be used",
        where=where,
        expected=expected,
        found=found,
        fix="correct the file, or remove it and put the images of each class into a "
        "folder of its own",
    )
