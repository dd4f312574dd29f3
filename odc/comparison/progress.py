"""What runs of a comparison, what is done, and the time left."""

from __future__ import annotations

import datetime
import shutil
import statistics
import time
from collections.abc import Sequence
from typing import TextIO

from odc.comparison.executor import QUEUED, Running
from odc.comparison.plan import Cell
from odc.comparison.ranking import EVENNESS, by_method
from odc.comparison.results import QUALITY, Place, Record
from odc.errors import printable


class Progress:
    """What runs, what is done, and the time left: redrawn on a terminal, a line every ten seconds in a file."""

    def __init__(self, cells: Sequence[Cell], ended: dict[Place, Record], jobs: int, stream: TextIO) -> None:
        self.total, self.done, self.jobs = len(cells), 0, jobs
        self.known = list(ended.values())
        self.noted = time.monotonic()
        self.stream, self.terminal = stream, stream.isatty()

    def left(self, running: Sequence[Running], waiting: Sequence[Cell]) -> float | None:
        """Return the seconds left, ``None`` as long as nothing is known.

        A method takes what its other seeds took; one of which none has ended what the known ones do on average.
        """
        now, rest = time.monotonic(), []
        known = {row.name: value.mean for row in by_method(self.known) if (value := row.spread("seconds"))}
        for r in running:
            if r.share > 0.02:
                total = (now - r.started) / r.share
                known.setdefault(r.cell.method, total)
                rest.append(total * (1 - r.share))
        if not known:
            return None
        typical = statistics.mean(known.values())
        rest += [known.get(r.cell.method, typical) for r in running if r.share <= 0.02]
        rest += [known.get(cell.method, typical) for cell in waiting]
        return max([sum(rest) / self.jobs, *rest])

    def show(self, running: Sequence[Running], waiting: Sequence[Cell]) -> None:
        """Show the cells that run."""
        now = time.monotonic()
        if now - self.noted < (0.5 if self.terminal else 10.0) or not running:
            return
        self.noted = now
        seconds = self.left(running, waiting)
        left = "?" if seconds is None else datetime.timedelta(seconds=round(seconds))
        line = f"{self.done}/{self.total} done, about {left} left: "
        told = [f"{r.cell.title} {r.where}" for r in running if r.where != QUEUED]
        if (queued := len(running) - len(told)) > 0:
            told.append(f"{queued} {QUEUED}")
        line = printable(line + "; ".join(told))
        if self.terminal:
            self.stream.write(f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}")
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def ended(self, record: Record) -> None:
        """Show a cell's result."""
        self.done += 1
        self.known.append(record)
        clear = "\r\033[K" if self.terminal else ""
        names = QUALITY if any(record.number(m) is not None for m in QUALITY) else EVENNESS
        result = "  ".join(f"{m} {value:.3f}" for m in names if (value := record.number(m)) is not None)
        if record.error is not None:
            result = record.error + (f" (see {record.log})" if record.log else "")
        seconds = record.number("seconds") or 0.0
        self.stream.write(clear + printable(f"{record.title}  {result}  {seconds:.1f} s") + "\n")
        self.stream.flush()
