"""What all families share: trials, what came of them, the folder they work in, and unbroken runs to compare with."""

from __future__ import annotations

import random
import re
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .process import Run
from .settings import Setting


@dataclass
class Outcome:
    """What came of a trial.

    Attributes:
        tried: injuries that were done to it, or inputs that it was given.
        lost: one line for each injury that was not survived.
        crashed: one line for each input that ended in anything but a result or one line of explanation.
        executed: one line for each input of which something was run.
        facts: what was measured, for the report.
    """

    tried: int = 0
    lost: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    facts: list[str] = field(default_factory=list)

    @property
    def failures(self) -> list[str]:
        """All that fell short, a line each."""
        return [*self.lost, *self.crashed, *self.executed]


@dataclass(frozen=True)
class Trial:
    """One thing to try: ``run`` gets a folder of its own and a generator of its own, and says what came of it.

    Attributes:
        name: unique in its family.
        run: does it; whatever it raises counts against the framework, too.
        seconds: what it takes on two idle cores, about: for the time left.
        alone: nothing else may run beside it: it measures time.
    """

    name: str
    run: Callable[[Path, random.Random], Outcome]
    seconds: float = 15.0
    alone: bool = False


@dataclass(frozen=True)
class Family:
    """Trials of one kind.

    Attributes:
        name: for ``--only``.
        title: what is done, for the table.
        injures: injuries to runs, which are survived or lost; else inputs, which may crash something or be executed.
        trials: makes the trials; few of them where the bench is ``quick``.
        least: how many must be tried for the claim, where all trials are run.
    """

    name: str
    title: str
    injures: bool
    trials: Callable[[Bench], list[Trial]]
    least: int = 1


@dataclass(frozen=True)
class Whole:
    """A run that nothing happened to.

    Attributes:
        folder: its work directory.
        startup: seconds before it wrote the first line of its log.
        body: seconds from then to its end.
    """

    folder: Path
    startup: float
    body: float


class Bench:
    """Where trials work, and the unbroken runs that they are compared with; each is made once, when it is asked for.

    Args:
        scratch: folder for everything; what an earlier bench left there is deleted.
        seed: of everything that is drawn.
        quick: a few trials of every family.
    """

    def __init__(self, scratch: Path, seed: int = 0, quick: bool = False) -> None:
        mine = scratch / "made-by-reliability"
        if mine.exists():
            shutil.rmtree(scratch)
        scratch.mkdir(parents=True, exist_ok=True)
        if any(scratch.iterdir()):
            raise FileExistsError(f"{scratch} holds files of others: choose another --scratch")
        mine.touch()
        self.scratch, self.seed, self.quick = scratch, seed, quick
        self._wholes: dict[str, Whole] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def rng(self, *name: object) -> random.Random:
        """Return a generator of the seed and a name."""
        return random.Random("/".join(map(str, (self.seed, *name))))

    def whole(self, setting: Setting, ranks: int = 1) -> Whole:
        """Return the unbroken run of a setting on so many ranks."""
        name = f"{setting.name}-{ranks}"
        with self._lock:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if name not in self._wholes:
                self._wholes[name] = self._make(setting, name, ranks)
            return self._wholes[name]

    def _make(self, setting: Setting, name: str, ranks: int) -> Whole:
        folder = self.scratch / "whole" / name
        started = time.monotonic()
        run = Run(setting.argv(self.config(setting), folder), folder.with_suffix(".txt"), ranks=ranks)
        run.wait_for_sign(folder)
        signed = time.monotonic()
        if failed := run.failed():
            raise RuntimeError(f"the unbroken run of {name} {failed} ({run.command})")
        return Whole(folder, signed - started, time.monotonic() - signed)

    def config(self, setting: Setting) -> Path:
        """Return the config of a setting, written where trials find it."""
        folder = self.scratch / "configs"
        with self._lock:
            return setting.write(folder)


_ERROR = re.compile(r"^odc( [\w-]+)?: error: \S")


def complaint(code: int | None, output: str) -> str | None:
    """Return what is wrong with how a command refused: it must end with 2 and one line, the last; else ``None``."""
    if "Traceback (most recent call last)" in output:
        lines = [line for line in output.splitlines() if line.strip()]
        return f"traceback ({lines[-1][:200]})"
    if code != 2:
        return f"ended with {code}"
    lines = [line for line in output.splitlines() if line.strip()]
    if not lines or not _ERROR.match(lines[-1]):
        return f"the last line is no error: {lines[-1][:200] if lines else ''}"
    return None
