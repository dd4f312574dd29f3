"""Files that are written completely or not at all, and names as they are: in tables, in logs, on the disk."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, BinaryIO


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[IO[bytes]]:
    """Open ``path`` to write, making its folder: after a crash it holds what it held before, or all that was written.

    The new content goes into a file beside it, since a rename is atomic only within a file system.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text to ``path``, completely or not at all."""
    with written_whole(path) as file:
        file.write(text.encode())


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file to read bytes; pipes, devices and sockets, which block or act when they are opened, never are.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"{_KINDS.get(stat.S_IFMT(mode), 'of an unknown kind')}, not a file", path)
    return open(path, "rb", buffering=8192, opener=_open_at_once)


def _open_at_once(path: str, flags: int) -> int:
    """Open a file that may have become a pipe a moment ago, for whose other end nobody should wait."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def shown(name: str) -> str:
    """Return a name as a log can print it: bytes that are not UTF-8 and control characters are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def read_text(path: str | Path) -> str:
    """Return the text of a file that may hold names: UTF-8, in which other bytes stand for names that have them.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no such text.
    """
    with open_regular(path) as file:
        data = file.read()
    if b"\0" in data or data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("not UTF-8 text")
    return data.decode("utf-8-sig", "surrogateescape")


def write_table(path: str | Path, heading: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file whose names are the disk's, byte by byte.

    A text that a spreadsheet would take for a formula gets ``./`` in front, which leaves a path what it is.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(heading)
    writer.writerows([f"./{x}" if isinstance(x, str) and x.startswith(_FORMULA) else x for x in row] for row in rows)
    with written_whole(path) as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
