"""Files that are read back: their size before their content, and their content before anything is done with it.

They may come from anybody, so a reader takes what this package could have written and nothing else. What that is, is
said by *kinds*: functions that return the value they were given, or raise ``ValueError`` with the reason. No name in
such a file leads to code.
"""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from odc.errors import DamagedError, InputError, one_line
from odc.files import open_regular

Kind = Callable[[Any], Any]

MOST_TEXT = 2**26  # bytes of a text file: a record is 1 KiB
DEEPEST = 50  # containers within each other
_PIECE = 2**20  # bytes read at a time
_LARGEST = 1e15  # numbers are counts, shares, losses and seconds


@contextmanager
def reading(path: str | Path, what: str, remedy: str) -> Iterator[None]:
    """Turn everything that goes wrong while reading ``path`` into a :class:`DamagedError` of one line.

    It says ``what``, ``"is not a table of features"`` say, and what to do about it (``remedy``).
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # damaged bytes can lead a reader to anything
        reason = one_line(error)[:300]
        if isinstance(error, RecursionError | MemoryError):
            reason = "nested too deep" if isinstance(error, RecursionError) else "more than memory holds"
        raise DamagedError(f"'{path}' {what} ({reason}): {remedy}") from error


# --------------------------------------------------------------------------------------------------------------- text


def read_text(path: str | Path, most: int = MOST_TEXT, errors: str = "strict") -> str:
    """Return a regular file of UTF-8 text of at most ``most`` bytes; raises ValueError or OSError.

    ``errors`` is ``"surrogateescape"`` where names of files stand in it, which may be any bytes.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"{size:,} bytes, more than the {most:,} it can have")
        return file.read(most).decode("utf-8", errors)


def read_json(path: str | Path, kind: Kind, what: str, remedy: str) -> Any:
    """Return what a JSON file holds; raises DamagedError where it is no JSON, too large, or not of the kind."""
    with reading(path, what, remedy):
        return kind(json.loads(read_text(path)))


# -------------------------------------------------------------------------------------------------------------- kinds


def _shown(value: Any) -> str:
    text = f"{type(value).__name__}" if isinstance(value, Collection) and not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def anything(value: Any) -> Any:
    """Kind: whatever it is."""
    return value


def _instance(types: type | tuple[type, ...], expected: str) -> Kind:
    def kind(value: Any) -> Any:
        if not isinstance(value, types):
            raise ValueError(f"{expected} is expected, not {_shown(value)}")
        return value

    return kind


text, flag = _instance(str, "text"), _instance(bool, "true or false")
_list, _dictionary = _instance((list, tuple), "a list"), _instance(dict, "a dictionary")


def whole(low: int = 0, high: int = 2**62) -> Kind:
    """Return the kind of whole numbers from ``low`` to ``high``."""

    def kind(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"a whole number of at least {low} is expected, not {_shown(value)}")
        return value

    return kind


def real(low: float = -_LARGEST, high: float = _LARGEST) -> Kind:
    """Return the kind of numbers from ``low`` to ``high``; one that is not finite was not measured: ``None``."""

    def kind(value: Any) -> float | None:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"a number from {low:g} to {high:g} is expected, not {_shown(value)}")
        return value

    return kind


def optional(kind: Kind) -> Kind:
    """Return the kind that takes ``None``, too."""
    return lambda value: None if value is None else kind(value)


def scalar(value: Any) -> Any:
    """Kind: text, a number, true, false or nothing."""
    return value if value is None or isinstance(value, str | bool) else real()(value)


def inside(value: Any) -> str:
    """Kind: a path that stays in the folder that it is relative to."""
    path = PurePosixPath(text(value))
    if path.is_absolute() or ".." in path.parts or "\0" in value:
        raise ValueError(f"a path inside the folder is expected, not {_shown(value)}")
    return str(path)


def listing(kind: Kind) -> Kind:
    """Return the kind of lists of a kind."""
    return lambda value: [_within(i, kind, v) for i, v in enumerate(_list(value))]


def mapping(kind: Kind, keys: Kind = text) -> Kind:
    """Return the kind of dictionaries whose values are of a kind."""
    return lambda value: {keys(k): _within(k, kind, v) for k, v in _dictionary(value).items()}


def fields(needed: Mapping[str, Kind], others: Kind | None = None, **known: Kind) -> Kind:
    """Return the kind of dictionaries with the entries ``needed``, and perhaps those ``known``.

    Any further entry is of the kind ``others``, or an error where that is ``None``.
    """
    kinds = {**needed, **known}

    def filled(value: Any) -> dict[str, Any]:
        if lacking := sorted(needed.keys() - _dictionary(value).keys()):
            raise ValueError(f"it lacks {', '.join(lacking)}")
        found = {}
        for name, entry in value.items():
            kind = kinds.get(name, others)
            if kind is None:
                raise ValueError(f"it has an entry {_shown(name)}, which is unknown")
            found[text(name)] = _within(name, kind, entry)
        return found

    return filled


def _within(place: Any, kind: Kind, value: Any) -> Any:
    try:
        return kind(value)
    except InputError:
        raise
    except ValueError as error:
        raise ValueError(f"{str(place)[:60]}: {error}") from None


def plain(value: Any, depth: int = 0) -> Any:
    """Kind: text, numbers, lists and dictionaries, not nested deeper than :data:`DEEPEST`."""
    if depth > DEEPEST:
        raise ValueError(f"nested deeper than {DEEPEST}")
    if isinstance(value, dict):
        for name, entry in value.items():
            text(name)
            plain(entry, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            plain(entry, depth + 1)
    else:
        scalar(value)
    return value


# ------------------------------------------------------------------------------------------------------------- arrays


def memory() -> int:
    """Return the bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def read_arrays(path: str | Path, wanted: Mapping[str, tuple[str, int]], most: int) -> dict[str, npt.NDArray[Any]]:
    """Read the arrays of an ``.npz`` file: these and no others, none of them pickled, their checksums verified.

    Args:
        wanted: of each array the letters that its dtype's kind is one of (``"f"`` floating, ``"iu"`` integers, ``"U"``
            text), and how many dimensions it has.
        most: bytes that all of them may have when they are unpacked, which is looked at before one is.

    Raises ValueError, or what else damaged bytes lead to; see :func:`reading`.
    """
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if members.keys() != wanted.keys() or len(members) != len(archive.infolist()):
            raise ValueError(f"it holds {', '.join(sorted(members))[:200]}, not {', '.join(sorted(wanted))}")
        total = sum(info.file_size for info in members.values())
        if total > most:
            raise ValueError(f"it unpacks to {total:,} bytes, more than the {most:,} it can have")
        return {name: _read_array(archive, members[name], *wanted[name]) for name in wanted}


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, kinds: str, ndim: int) -> npt.NDArray[Any]:
    content = bytearray(info.file_size)
    place = 0
    with archive.open(info) as member:
        header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[npy.read_magic(member)]
        shape, fortran, dtype = header(member)
        start = member.tell()
        member.seek(0)  # so that the checksum is that of the whole
        count = math.prod(shape)
        if dtype.kind not in kinds or len(shape) != ndim or dtype.itemsize == 0:
            raise ValueError(f"{info.filename} has {dtype} {shape}, not {ndim} dimensions of kind {kinds}")
        if not dtype.isnative or min(shape, default=0) < 0 or start + count * dtype.itemsize != info.file_size:
            raise ValueError(f"{info.filename} declares {shape} {dtype}, but has {info.file_size - start:,} bytes")
        while piece := member.read(_PIECE):
            content[place : place + len(piece)] = piece
            place += len(piece)
    if place != info.file_size:
        raise ValueError(f"{info.filename} ends after {place:,} of {info.file_size:,} bytes")
    array: npt.NDArray[Any] = np.frombuffer(content, dtype, count, start)
    return array.reshape(shape, order="F" if fortran else "C")
