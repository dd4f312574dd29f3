"""What goes wrong because of the input, in one line that names the remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# What would move the cursor, forge a line or turn the direction of writing; and what no encoding can write.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class InputError(ValueError):
    """The input, not the program, is wrong.

    The message is one line: what was wrong, the numbers or names on both sides, and the remedy. What no terminal should
    get, in the name of a file say, is escaped. The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(str(message)))


class DamagedError(InputError):
    """A file holds what this package could not have written: an older copy of it may do."""


def printable(text: str, keep: str = "") -> str:
    """Return text from anywhere with what no terminal should get as an escape, ``\\x1b`` say, but for ``keep``."""
    return _UNPRINTABLE.sub(lambda m: m[0] if m[0] in keep else m[0].encode("unicode_escape").decode(), text)


def one_line(error: BaseException) -> str:
    """Return what an error says, in one line without the name of a file; its kind where it says nothing."""
    said = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.split()) or type(error).__name__


def meant(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to ``name``; nothing where none is close."""
    return "".join(f"; did you mean '{c}'?" for c in difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff))


def nearest(name: str, known: Iterable[str]) -> str:
    """Return :func:`meant`, or where no known name is close a list of what is known."""
    names = sorted(known)
    return meant(name, names, cutoff=0.5) or f"; known: {', '.join(names)}"
