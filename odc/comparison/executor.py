"""Where the cells of a comparison run: in processes of this machine, or elsewhere (:mod:`odc.comparison.jobs`)."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from odc.comparison.cell import LOG, run_cell
from odc.comparison.plan import Cell

QUEUED = "queued"  # where a cell is that has been started and waits for a place


class Running(ABC):
    """A cell that has begun, and what is known of it so far."""

    pipe: Connection | None = None  # speaks when there is something to read

    def __init__(self, cell: Cell, where: str) -> None:
        self.cell = cell
        self.share, self.where = 0.0, where  # what is done of it, and where it is
        self.record: dict[str, Any] | None = None  # its values, once they are known
        self.told = False  # they are written
        self.closed = False  # it has ended; after its record it may still draw its map
        self.started = time.monotonic()

    @abstractmethod
    def poll(self) -> None:
        """Take what it has said, and see whether it has ended."""


class Executor(ABC):
    """Runs cells, so many at a time."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs

    def room(self, running: Sequence[Running]) -> bool:
        """Return whether a cell can begin: those that only draw their map give way, but they have memory."""
        return sum(not r.told for r in running) < self.jobs and len(running) < 2 * self.jobs

    @abstractmethod
    def start(self, cell: Cell) -> Running:
        """Begin a cell."""

    def wait(self, running: Sequence[Running]) -> None:
        """Wait until one of the cells has something to say, a second at most, and take it."""
        multiprocessing.connection.wait([r.pipe for r in running if r.pipe is not None], timeout=1.0)
        for r in running:
            r.poll()

    @abstractmethod
    def leave(self, running: Sequence[Running]) -> str | None:
        """Give up cells; return what has to be said about them."""


class Process(Running):
    """A cell in a process of its own."""

    def __init__(self, cell: Cell, context: Any) -> None:
        super().__init__(cell, "starting")
        self.pipe, send = context.Pipe(duplex=False)
        self.process = context.Process(target=run_cell, args=(cell, send.send))
        self.process.start()
        send.close()

    def poll(self) -> None:
        """Take what has come through the pipe."""
        assert self.pipe is not None
        try:
            while self.pipe.poll():
                message = self.pipe.recv()
                if message[0] == "record":
                    self.record = message[1]
                else:
                    _, self.share, self.where = message
        except EOFError:
            self.process.join()
            self.closed = True
            if self.record is None:
                code = self.process.exitcode
                why = "was killed, perhaps because memory ran out" if code == -9 else f"ended with exit code {code}"
                self.record = {"error": f"the process {why}", "log": str(self.cell.home / LOG)}


class Processes(Executor):
    """A process of this machine for each cell, which ends with this one."""

    def __init__(self, jobs: int) -> None:
        super().__init__(jobs)
        if torch.cuda.is_available():  # a process that has looked for GPUs, as imports do, cannot be forked
            self.context: Any = multiprocessing.get_context("spawn")
        else:
            self.context = multiprocessing.get_context("forkserver")  # imports once; never forks one with threads
            self.context.set_forkserver_preload(["odc.comparison.cell"])

    def start(self, cell: Cell) -> Running:
        """Begin a cell."""
        return Process(cell, self.context)

    def leave(self, running: Sequence[Running]) -> str | None:
        """End them."""
        for r in running:
            if isinstance(r, Process):
                r.process.terminate()
        return None
