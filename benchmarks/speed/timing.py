"""Ours and a floor in turn: pairs of short blocks, of which each gives a ratio; and the memory of a process of its own.

What else a machine does changes by the second, and slows both blocks of a pair. Judged is processor time, which another
process that waits for the same core does not take part in; the ratio of wall-clock time is told, too.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")


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


@dataclass(frozen=True)
class Found:
    """What a row measures: the value that is compared with its bar, a few words for the table, and all of it."""

    value: float
    told: str
    detail: dict[str, Any]


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
    def quartiles(self) -> tuple[float, float]:
        """The middle half of the ratios."""
        ratios, quarter = self.ratios, len(self) // 4
        return ratios[quarter], ratios[-1 - quarter]

    def settled(self, wanted: int, bar: float) -> bool:
        """Return whether there are pairs enough: twice as many as ``wanted`` where these leave it open."""
        if len(self) < wanted:
            return False
        return len(self) >= 2 * wanted or not self.quartiles[0] <= bar < statistics.median(self.ratios)

    def found(self) -> Found:
        """Return the median of the ratios, and what it is of."""
        wall = statistics.median(a.wall / b.wall for a, b in zip(self.ours, self.floor, strict=True))
        ours, floor = (1e3 * statistics.median(x.cpu for x in s) / self.units for s in (self.ours, self.floor))
        ratio, (low, high) = statistics.median(self.ratios), self.quartiles
        detail = dict(
            ours_ms=ours, floor_ms=floor, quartiles=[low, high], wall_ratio=wall, pairs=len(self), steps=self.units
        )
        return Found(
            ratio, f"{ours:.4g} to {floor:.4g} ms, {low:.2f}–{high:.2f}, wall {wall:.2f}, n={len(self)}", detail
        )


def in_turn(ours: Callable[[], object], floor: Callable[[], object], pairs: int, bar: float, units: int = 1) -> Pairs:
    """Time pairs of blocks, after one to warm up, until they are settled; which of the two is first takes turns.

    ``units`` is how many steps a block is, which changes nothing but the times that are told.
    """
    found = Pairs(units)
    ours(), floor()
    while not found.settled(pairs, bar):
        if len(found) % 2:
            second = timed(floor)
            found.add(timed(ours), second)
        else:
            first = timed(ours)
            found.add(first, timed(floor))
    return found


def in_child(work: Callable[..., _T], *arguments: Any) -> _T:
    """Return what a function of a module returns in a process of its own, which has done nothing before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def memory_of(what: str) -> float:
    """Return MiB of this process, ``VmRSS`` now or ``VmHWM`` at most so far (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:"))
