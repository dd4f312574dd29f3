"""``odc`` with an accident built in: ``python -m reliability.entry INJURY train CONFIG ...``.

The command is the real one; Python's own audit events (a file is opened, or renamed) say when it is time. The injury
is in the process, not in the config, so that the same command without it goes on.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import resource
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from odc.files import written_whole


@dataclass(frozen=True)
class Injury:
    """What happens, and when.

    Attributes:
        event: ``open`` (for writing), ``os.rename``, or ``metrics``: a metric is about to be computed.
        file: part of the name of the file that is opened, or renamed to.
        call: the how many-th time.
        action: ``kill`` (SIGKILL), ``cut`` (the kernel kills it at ``size`` bytes into any file), ``fill`` (the file
            system gets full but for ``size`` bytes), ``limit`` (files can have ``size`` bytes), or ``term``.
        size: in bytes.
    """

    event: str
    file: str = ""
    call: int = 1
    action: str = "kill"
    size: int = 0

    def dumps(self) -> str:
        """Return it as JSON."""
        return json.dumps(dataclasses.asdict(self))


def happen(injury: Injury, near: Path) -> None:
    """Let it happen, to this process or to the file system of ``near``."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    if injury.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif injury.action == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    elif injury.action == "cut":
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, to make an OSError of it
        resource.setrlimit(resource.RLIMIT_FSIZE, (injury.size, hard))
    elif injury.action == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (injury.size, hard))
    elif injury.action == "fill":
        fill(near, injury.size)


def fill(folder: Path, leave: int) -> None:
    """Leave so many bytes of a folder's file system; never called on one that is not a trial's own."""
    while not folder.is_dir():
        folder = folder.parent
    space = os.statvfs(folder)
    path = next(p for p in (folder, *folder.parents) if os.path.ismount(p)) / "ballast"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.posix_fallocate(descriptor, 0, max(1, space.f_bavail * space.f_frsize - leave))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    finally:
        os.close(descriptor)


def arm(injury: Injury) -> None:
    """Wait for the moment."""
    seen = 0

    def count(path: Path) -> None:
        nonlocal seen
        seen += 1
        if seen == injury.call:
            happen(injury, path)

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event != injury.event or seen >= injury.call:
            return
        name = args[0] if event == "open" else args[1]
        if not isinstance(name, (str, bytes, os.PathLike)):
            return
        path = _intended() if event == "open" else None
        path = path or Path(os.fsdecode(name))
        if injury.file in path.name and (event == "os.rename" or _writes(args)):
            count(path.parent)

    if injury.event != "metrics":
        sys.addaudithook(watch)
        return
    from odc.evaluation.evaluator import KNNMetric

    compute = KNNMetric.__call__

    def interrupted(self: Any, evaluation: Any) -> Any:
        count(Path())
        return compute(self, evaluation)

    KNNMetric.__call__ = interrupted  # type: ignore[method-assign]


def _intended() -> Path | None:
    """Return the file that is being written whole, where this is called from that: it is opened under another name."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code is written_whole.__wrapped__.__code__:  # type: ignore[attr-defined]  # of the generator
            return Path(frame.f_locals["path"])
        frame = frame.f_back
    return None


def _writes(args: tuple[Any, ...]) -> bool:
    mode, flags = args[1], args[2]
    by_mode = isinstance(mode, str) and any(letter in mode for letter in "wax+")
    return by_mode or bool(isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR))


if __name__ == "__main__":
    from odc.cli import main

    arm(Injury(**json.loads(sys.argv[1])))
    sys.argv = ["odc", *sys.argv[2:]]
    sys.exit(main(sys.argv[1:]))
