"""Files that are written completely or not at all, folders with one command at a time, and tables of names."""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import io
import os
import re
import secrets
import socket
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, BinaryIO

from odc.errors import InputError

LOCK = ".lock"
_UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.odc\.tmp")
_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # of some network file systems
_REMEDIES = {
    errno.ENOSPC: "free some space there, or write to another place",
    errno.EDQUOT: "free some of your quota, or write to another place",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or write to another place",
    errno.EACCES: "change its permissions, or use another place",
    errno.EPERM: "change its permissions, or use another place",
    errno.EROFS: "write to another place",
    errno.EIO: "check the disk, or use another place",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.EISDIR: "give the name of a file",
    errno.ENOTDIR: "one of the folders on the way is a file: use another place",
    errno.EEXIST: "use another name",
    errno.ENOENT: "see whether it was moved or deleted meanwhile",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "close other programs: the machine has too many open files",
}


def explain(error: OSError) -> str | None:
    """Return one line for what the disk, and not the program, is to blame for: path, reason, remedy; else ``None``."""
    remedy = _REMEDIES.get(error.errno or 0)
    if remedy is None:
        return None
    where = "" if error.filename is None else f"'{os.fsdecode(error.filename)}': "
    return f"{where}{os.strerror(error.errno or 0).lower()}; {remedy}"


@contextlib.contextmanager
def naming(path: str | Path, instead: str | Path | None = None) -> Iterator[None]:
    """Give an ``OSError`` that names no file, or the file ``instead``, the name ``path``: writes do not say where."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename not in (None, instead and str(instead)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextlib.contextmanager
def written_whole(path: str | Path) -> Iterator[IO[bytes]]:
    """Open ``path`` to write, making its folder: after a crash it holds what it held before, or all that was written.

    The new content goes into a file beside it, since a rename is atomic only within a file system. Any number of
    processes may write the same path: the last one wins. What dead processes have left unfinished is removed.

    Raises OSError, which names ``path``, where it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path.parent)
    unfinished = path.with_name(f".{secrets.token_hex(8)}.odc.tmp")
    with naming(path, unfinished):
        try:
            with _begin(unfinished) as file:
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


def append_line(path: str | Path, line: str) -> None:
    """Add a line to a file of lines; one that a kill has cut short before it stays a line of its own."""
    with Path(path).open("ab+") as file:
        torn = file.tell() > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        file.write(b"\n" * torn + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _begin(path: Path) -> IO[bytes]:
    """Make a file that :func:`_clear` leaves alone as long as it is open."""
    while True:
        file = path.open("xb")
        _hold(file.fileno())
        if path.exists():  # else it was taken for a dead one before it was locked
            return file
        file.close()


def _hold(number: int, wait: bool = True) -> bool:
    """Lock an open file for as long as it is open; return whether that was possible."""
    try:
        fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS | {errno.EWOULDBLOCK, errno.EACCES}:
            raise
        return False
    return True


def _clear(folder: Path) -> None:
    """Remove the unfinished files whose writers are dead: a living one holds its file locked."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if _UNFINISHED.fullmatch(entry.name):
                with open(entry.path, "rb+", buffering=0) as file:
                    if _hold(file.fileno(), wait=False):
                        os.unlink(entry.path)


def writable(folder: str | Path) -> Path:
    """Return the folder, made where there is none; raises InputError where it cannot be made or written to."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to the folder {path}: permission denied")
    return path


def writable_file(file: str | Path) -> Path:
    """Return the path of a file to write, its folder :func:`writable`; raises InputError where it is a folder."""
    path = Path(file)
    if path.is_dir():
        raise InputError(f"'{file}' is a folder: give a file to write")
    return writable(path.parent) / path.name


@contextlib.contextmanager
def alone(folder: str | Path) -> Iterator[str | None]:
    """Keep other commands out of ``folder``, which is made where there is none, until the block ends.

    The lock belongs to this process: a process that dies holds none, and those that it starts do not inherit it. Yields
    ``None``, or why the file system cannot tell whether somebody else works there. Raises InputError where somebody
    does, OSError where the folder cannot be made or written to.
    """
    path = Path(folder) / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    number, doubt = _lock(path)
    try:
        if doubt is None:
            with naming(path):
                os.ftruncate(number, 0)
                os.pwrite(number, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield doubt
    finally:
        with contextlib.suppress(OSError):  # while it is locked, so that nobody else's goes
            path.unlink()
        os.close(number)


def _lock(path: Path) -> tuple[int, str | None]:
    """Return the locked file, open, and ``None``, or why it cannot be locked."""
    while True:
        number = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(number).st_nlink:
                return number, None
            os.close(number)  # its holder ended meanwhile, and deleted it
        except OSError as error:
            if error.errno in _WITHOUT_LOCKS:
                return number, (
                    f"{path.parent} is on a file system without locks ({os.strerror(error.errno or 0)}): see to it "
                    "yourself that no other command works there"
                )
            holder = os.pread(number, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(number)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise InputError(
                f"another command is at work in {path.parent} ({holder}): wait for it to end, or choose another folder"
            ) from None


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file to read bytes; raises OSError for pipes, devices and sockets, which block or act when opened."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"{_KINDS.get(stat.S_IFMT(mode), 'of an unknown kind')}, not a file", path)
    # it may have become a pipe a moment ago, for whose other end nobody should wait
    return open(path, "rb", buffering=8192, opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK))


def write_table(path: str | Path, heading: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file whose names are the disk's, byte by byte; see :func:`table_lines`."""
    with written_whole(path) as file:
        file.write(table_lines([heading, *rows]))


def table_lines(rows: Iterable[Sequence[object]]) -> bytes:
    """Return rows as lines of a CSV file, whose names are the disk's, byte by byte.

    A text that a spreadsheet would take for a formula gets ``./`` in front, which leaves a path what it is.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerows([f"./{x}" if isinstance(x, str) and x.startswith(_FORMULA) else x for x in row] for row in rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
