"""Where the cells of a comparison run: in processes of this machine."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import time
from collections.abc import Sequence
from typing import Any

from odc.comparison.cell import LOG, run_cell
from odc.comparison.plan import Cell


class Running:
    """A cell that runs in a process of its own, and what is known of it so far."""

    def __init__(self, cell: Cell, context: Any) -> None:
        self.cell = cell
        self.share, self.where = 0.0, "starting"
        self.record: dict[str, Any] | None = None
        self.told = self.closed = False  # the record is written; the process has ended, after drawing its map
        self.started = time.monotonic()
        self.pipe, send = context.Pipe(duplex=False)
        self.process = context.Process(target=run_cell, args=(cell, send))
        self.process.start()
        send.close()

    def receive(self) -> None:
        """Take one message."""
        try:
            message = self.pipe.recv()
        except EOFError:
            self.process.join()
            if self.record is None:
                code = self.process.exitcode
                why = "was killed, perhaps because memory ran out" if code == -9 else f"ended with exit code {code}"
                self.record = {"error": f"the process {why}", "log": str(self.cell.home / LOG)}
            self.closed = True
            return
        if message[0] == "record":
            self.record = message[1]
        else:
            _, self.share, self.where = message

    def stop(self) -> None:
        """End it, whatever it does."""
        self.process.terminate()


class Processes:
    """Runs cells in processes of this machine, so many at a time."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.context = multiprocessing.get_context("forkserver")  # imports once; never forks a process with threads
        self.context.set_forkserver_preload(["odc.comparison.cell"])

    def room(self, running: Sequence[Running]) -> bool:
        """Return whether a cell can begin: those that only draw their map give way, but they have memory."""
        return sum(not r.told for r in running) < self.jobs and len(running) < 2 * self.jobs

    def start(self, cell: Cell) -> Running:
        """Begin a cell."""
        return Running(cell, self.context)

    def wait(self, running: Sequence[Running]) -> None:
        """Wait until one of the cells has something to say, a second at most, and let it be received."""
        ready = multiprocessing.connection.wait([r.pipe for r in running], timeout=1.0)
        for r in running:
            if r.pipe in ready:
                r.receive()
