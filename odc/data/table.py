"""Tables of images in CSV files: read in one way wherever the product takes one."""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from odc.errors import InputError, nearest, one_line
from odc.reading import read_text
from odc.structures import UNLABELLED


def label_of(cell: str) -> str:
    """Return the class that a cell names, without blanks around it; ``""`` where it is unknown (empty or -1)."""
    label = cell.strip()
    return "" if label == str(UNLABELLED) else label


def read_names(path: str | Path) -> str:
    """Return the text of a file with names in it: UTF-8, in which other bytes stand for names that have them.

    Raises OSError where it cannot be read, ValueError where it is no such text.
    """
    text = read_text(path, most=2**30, errors="surrogateescape").removeprefix("\ufeff")
    if "\0" in text or text.startswith(("\udcff\udcfe", "\udcfe\udcff")):
        raise ValueError("not UTF-8 text")
    return text


def read_table(path: str | Path, *columns: str, optional: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read the rows of a CSV file under a header line, UTF-8; empty lines are left out.

    Args:
        columns: what every row must have a cell for; the first one's are paths of images, none empty.
        optional: columns that may be missing as a whole; what is there of them is read too.

    Paths are returned without the ``./`` that keeps spreadsheets from taking them for formulas. Raises InputError where
    it cannot be read, has no rows, lacks a column, or a row has more cells than the header or not those of ``columns``.
    """
    try:
        reader = csv.reader(io.StringIO(read_names(path), newline=""))
        lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"cannot read the table '{path}' ({one_line(error)})") from error
    names = lines[0][1] if lines else []
    for column in columns:
        if column not in names:
            raise InputError(f"'{path}' has no column '{column}'{nearest(column, names)}; it has {names}")
        if names.count(column) > 1:
            raise InputError(f"'{path}' has {names.count(column)} columns '{column}': give each its own name")
    if len(lines) < 2:
        raise InputError(f"'{path}' has no rows below its heading")
    wanted = (*columns, *(column for column in optional if column in names))
    rows = []
    for number, cells in lines[1:]:
        where, row = f"line {number} of '{path}'", dict(zip(names, cells, strict=False))
        if len(cells) > len(names):
            told = f"has {len(cells)} cells, but the heading has {len(names)}"
            raise InputError(f"{where} {told}: put quotes around a cell with a comma")
        for column in wanted:
            if column not in row:
                raise InputError(f"{where} has {len(cells)} of {len(names)} cells: the one of '{column}' is missing")
        if not row[columns[0]].strip():
            raise InputError(f"{where} names no image: its cell of the column '{columns[0]}' is empty")
        rows.append(row | {columns[0]: posixpath.normpath(row[columns[0]])})
    return rows


def classes_of(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the different labels in their order: as numbers, where all are whole numbers, else as text."""
    different = set(labels)
    number = {label: int(label) for label in different if label.isdecimal()}
    return tuple(sorted(different, key=(lambda x: (number[x], x)) if len(number) == len(different) else None))


def read_labels(path: str | Path, paths: Sequence[str]) -> tuple[npt.NDArray[np.int64], list[str], int]:
    """Read a table (CSV) of images whose class is known, columns ``path`` and ``label``; empty or -1: not known yet.

    Returns:
        The images' positions (L,) in ``paths``, which are those of all images, their labels, and how many have none.

    Raises:
        InputError: as :func:`read_table` and :func:`match_paths`, or no row has a label.
    """
    rows = read_table(path, "path", "label")
    labels = [label_of(row["label"]) for row in rows]
    known = [row for row, label in zip(rows, labels, strict=True) if label]
    if not known:
        raise InputError(f"none of the {len(rows)} rows of '{path}' has a label: all are empty or {UNLABELLED}")
    return match_paths(known, paths, path), [label for label in labels if label], len(rows) - len(known)


def match_paths(rows: Sequence[Mapping[str, str]], paths: Sequence[str], source: str | Path) -> npt.NDArray[np.int64]:
    """Return the positions (L,) in ``paths`` of the column ``path`` of the rows.

    Raises:
        InputError: a path is not among them, or stands twice.
    """
    position = {path: i for i, path in enumerate(paths)}
    found = np.array([position.get(row["path"], -1) for row in rows], dtype=np.int64)
    if (found < 0).any():
        first = rows[int((found < 0).argmax())]["path"]
        raise InputError(
            f"'{source}': {int((found < 0).sum())} of {len(rows)} paths are not among the {len(paths)} images, the "
            f"first is '{first}'; they are named like '{paths[0]}'"
        )
    if len(np.unique(found)) < len(found):
        values, counts = np.unique(found, return_counts=True)
        name = paths[int(values[counts.argmax()])]
        raise InputError(f"'{source}': '{name}' is in it {counts.max()} times")
    return found
