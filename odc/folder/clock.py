"""One line of progress over all stages, the time left, and how much of a budget a training may have."""

from __future__ import annotations

import datetime
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TextIO

from odc.errors import InputError, printable

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_IN_A_FILE, _ON_A_TERMINAL = 30.0, 0.5  # seconds between two lines


def seconds_of(budget: str) -> float:
    """Return the seconds of a text like ``90s``, ``10m``, ``1.5h`` or ``1h30m``.

    Raises:
        InputError: for anything else.
    """
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", budget.strip())
    total = (
        0.0
        if found is None
        else sum(float(n or 0) * u for n, u in zip(found.groups(), (3600.0, 60.0, 1.0), strict=True))
    )
    if total <= 0:
        raise InputError(f"--budget {budget}: give hours, minutes or seconds, as in 90s, 10m or 1h30m")
    return total


def told(seconds: float) -> str:
    """Return a time in words: ``40 s``, ``12 min``, ``2 h 5 min``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


@dataclass
class Step:
    """A part of the work."""

    name: str
    title: str  # what is shown
    guess: float  # seconds that it takes, before it is known
    trains: bool = False  # it can be made shorter
    done: bool = False


class Clock:
    """What runs, what is done, and the time left: redrawn on a terminal, a line every half minute in a file.

    Args:
        steps: all of them, in their order.
        stream: where to; ``None``: nowhere.
        budget: seconds for everything, ``None``: as long as it takes.
        used: seconds that earlier calls have had of it.
        now: the clock.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        stream: TextIO | None,
        budget: float | None = None,
        used: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.steps, self.stream, self.budget, self.now = list(steps), stream, budget, now
        self.terminal = stream is not None and stream.isatty()
        self.started = now() - used
        self.step: Step | None = None
        self.share, self.began, self.from_share = 0.0, self.started, 0.0
        self.noted = -_IN_A_FILE
        self.warned = False

    @property
    def used(self) -> float:
        """Seconds since the beginning, those of earlier calls among them."""
        return self.now() - self.started

    def begin(self, name: str) -> None:
        """Say that a step begins; the ones before it are done."""
        for step in self.steps:
            if step.name == name:
                self.step = step
                break
            step.done = True
        self.share, self.began, self.from_share = 0.0, self.now(), -1.0
        self.show(force=not self.terminal)

    def at(self, share: float) -> None:
        """Say how much of the present step is done, in [0, 1]: an earlier call may have done a part."""
        if self.from_share < 0:
            self.from_share, self.began = share, self.now()
        self.share = min(1.0, share)
        self.show()

    def skip(self, names: Sequence[str]) -> None:
        """Say that steps are there already."""
        for step in self.steps:
            step.done = step.done or step.name in names

    def of_step(self) -> float:
        """Return the seconds that the present step has left."""
        if self.step is None or self.step.done:
            return 0.0
        gone, made = self.now() - self.began, self.share - self.from_share
        if self.from_share >= 0 and made > 0 and gone > (1.0 if made > 0.02 else 10.0):
            return gone / made * (1 - self.share)
        return max(0.0, self.step.guess * (1 - max(0.0, self.share)) - (gone if self.from_share < 0 else 0.0))

    def left(self) -> float:
        """Return the seconds left of everything."""
        later = sum(step.guess for step in self.steps if not step.done and step is not self.step)
        return self.of_step() + later

    def available(self, reserve: float = 0.0) -> float | None:
        """Return the seconds that the present step, a training, may have of the budget; ``None``: as many as it needs.

        What follows and cannot be made shorter keeps what it will need; trainings that follow get their share.
        """
        if self.budget is None or self.step is None:
            return None
        later = [step for step in self.steps if not step.done and step is not self.step]
        fixed = sum(step.guess for step in later if not step.trains)
        mine = self.step.guess / (self.step.guess + sum(step.guess for step in later if step.trains))
        return (self.budget - (self.began - self.started) - fixed - reserve) * mine

    def show(self, force: bool = False) -> None:
        """Show the line, if the last one is long enough ago."""
        if self.stream is None or self.step is None:
            return
        now = self.now()
        if not force and now - self.noted < (_ON_A_TERMINAL if self.terminal else _IN_A_FILE):
            return
        self.noted = now
        number = 1 + self.steps.index(self.step)
        line = f"[{number}/{len(self.steps)}] {self.step.title}"
        line += f"  {self.share:.0%}" if self.share > 0 else ""
        line = printable(f"{line}  about {datetime.timedelta(seconds=round(self.left()))} left")
        if self.terminal:
            line = line[: shutil.get_terminal_size().columns - 1]
            self.stream.write(f"\r\033[K{line}")
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def say(self, line: str) -> None:
        """Write a line that stays."""
        if self.stream is None:
            return
        self.stream.write(("\r\033[K" if self.terminal else "") + printable(line) + "\n")
        self.stream.flush()

    def clear(self) -> None:
        """Take the line away."""
        if self.stream is not None and self.terminal:
            self.stream.write("\r\033[K")
            self.stream.flush()
