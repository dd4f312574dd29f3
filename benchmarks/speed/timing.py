"""Ours and a floor in turn: pairs of short blocks, of which each gives a ratio.

What else a machine does changes by the second, and slows both blocks of a pair. Judged is processor time, which another
process that waits for the same core does not take part in; the ratio of wall-clock time is told, too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Spent:
    """Seconds of this process, all its threads, and of the clock on the wall."""

    cpu: float
    wall: float

    @classmethod
    def now(cls) -> Spent:
        """Return the present state of both clocks."""
        return cls(time.process_time(), time.perf_counter())

    def since(self, start: Spent) -> Spent:
        """Return what passed since ``start``."""
        return Spent(self.cpu - start.cpu, self.wall - start.wall)


def timed(work: Callable[[], object]) -> Spent:
    """Return what a call takes."""
    start = Spent.now()
    work()
    return Spent.now().since(start)


@dataclass
class Pairs:
    """What both blocks of every pair took, each of ``units`` steps."""

    units: int = 1
    ours: list[Spent] = field(default_factory=list)
    floor: list[Spent] = field(default_factory=list)

    def add(self, ours: Spent, floor: Spent) -> None:
        """Take note of a pair."""
        self.ours.append(ours)
        self.floor.append(floor)

    def __len__(self) -> int:
        return len(self.ours)

    @property
    def ratios(self) -> list[float]:
        """Of processor time, ascending."""
        return sorted(a.cpu / b.cpu for a, b in zip(self.ours, self.floor, strict=True))

    @property
    def ratio(self) -> float:
        """The median of the pairs' ratios of processor time."""
        return statistics.median(self.ratios)

    @property
    def wall_ratio(self) -> float:
        """The median of the pairs' ratios of wall-clock time."""
        return statistics.median(a.wall / b.wall for a, b in zip(self.ours, self.floor, strict=True))

    @property
    def quartiles(self) -> tuple[float, float]:
        """The middle half of the ratios of processor time."""
        return quartiles(self.ratios)

    def milliseconds(self) -> tuple[float, float]:
        """Return the medians of processor time of one step, ours and the floor's."""
        ours, floor = (statistics.median(x.cpu for x in side) for side in (self.ours, self.floor))
        return 1e3 * ours / self.units, 1e3 * floor / self.units


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the values that a quarter of them is at most, and at least."""
    ordered, quarter = sorted(values), len(values) // 4
    return ordered[quarter], ordered[-1 - quarter]


def in_turn(ours: Callable[[], object], floor: Callable[[], object], pairs: int, units: int = 1) -> Pairs:
    """Time ``pairs`` pairs of blocks, after one to warm up; which of the two comes first takes turns.

    ``units`` is how many steps a block is, for :meth:`Pairs.milliseconds` alone.
    """
    found = Pairs(units)
    ours(), floor()
    for pair in range(pairs):
        if pair % 2:
            second = timed(floor)
            found.add(timed(ours), second)
        else:
            first = timed(ours)
            found.add(first, timed(floor))
    return found
