"""Cells as jobs, which submitit sends to a Slurm cluster, or starts on this machine.

A job writes how it goes to ``jobs/CELL.json`` in the folder of the comparison, which all machines share. It goes on
when the comparison is killed; the next one knows it by its number, in ``jobs/CELL.slurm``, and starts no other.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odc.comparison.cell import run_cell
from odc.comparison.executor import QUEUED, Executor, Running
from odc.comparison.plan import Cell
from odc.comparison.provenance import machine
from odc.engine.precision import lacks_bfloat16
from odc.errors import InputError, nearest, one_line
from odc.files import write_text
from odc.reading import fields, mapping, optional, read_json, read_text, real, scalar, text

if TYPE_CHECKING:
    import submitit

CLUSTERS = {"local-jobs": "local", "slurm": "slurm"}  # the names of executors, and submitit's for them
DAY = 24 * 60  # minutes: submitit's own five would end every training
PATIENCE = 30.0  # seconds until a file that another machine has written is seen here
_INTERVAL = 5.0  # seconds between two reports: the disk may be far away
# A cell is one process, and its job is called after it: nobody else is to decide that.
_OURS = {"name", "job_name", "nodes", "tasks_per_node", "ntasks_per_node", "array_parallelism"}
_SAID = fields({"share": real(0), "where": text, "record": optional(mapping(scalar))})


def run_job(cell: Cell, file: Path, path: Sequence[str]) -> None:
    """Run a cell as a job that says in ``file`` how it goes, with the modules that are found on ``path``."""
    sys.path[:] = dict.fromkeys([*sys.path, *path])
    said: dict[str, Any] = {"record": None}

    def send(message: tuple[Any, ...]) -> None:
        if message[0] == "record":
            said["record"] = message[1] | {"machine": machine()}
        else:
            _, said["share"], said["where"] = message
        write_text(file, json.dumps(said))

    send(("progress", 0.0, "starting"))
    reason = lacks_bfloat16() if "bfloat16" in cell.precision else None
    if reason is None:
        run_cell(cell, send, _INTERVAL)
    else:
        error = f"{machine()} cannot train in bfloat16: {reason}; ask for another machine, or precision=float32"
        send(("record", {"error": error}))


class Job(Running):
    """A job, the file with its number, and beside it the one in which it says how it goes."""

    def __init__(self, cell: Cell, note: Path, job: submitit.Job[None]) -> None:
        super().__init__(cell, QUEUED)
        self.note, self.file, self.job = note, note.with_suffix(".json"), job
        self.ended: float | None = None

    def lives(self) -> bool:
        """Return whether it waits or runs."""
        from submitit import LocalJob

        if not self.job.done():
            return True
        if not isinstance(self.job, LocalJob) or self.job.paths.result_pickle.exists():
            return False
        try:  # of one on this machine that another process has started, only the number of its process is known
            os.kill(int(self.job.job_id), 0)
        except OSError:
            return False
        return True

    def poll(self) -> None:
        """Read what it has written."""
        lives = self.lives()  # first: what it says it says before it ends
        if self.file.exists():
            said = read_json(self.file, _SAID, "is not what a job says of its cell", "delete it, and start again")
            if self.where == QUEUED:
                self.started = time.monotonic()
            self.share, self.where, self.record = said["share"], said["where"], said["record"]
        if not lives:
            self.ended = self.ended or time.monotonic()
            if self.record is None and time.monotonic() - self.ended >= PATIENCE:
                why = f"job {self.job.job_id} ended without a result ({self.job.state.lower()})"
                self.record = {"error": why, "log": str(self.job.paths.stderr)}
            self.closed = self.record is not None
        if self.record is not None:
            self.note.unlink(missing_ok=True)  # it is not to be found again


class Jobs(Executor):
    """A job for each cell: ``"slurm"`` or ``"local-jobs"``, so many that wait or run at a time.

    The options are what each asks for, by the names that submitit has for it; ``slurm_`` in front may be left out.

    Raises:
        InputError: submitit or Slurm is missing, or does not know an option.
    """

    def __init__(self, name: str, jobs: int, options: Mapping[str, Any], out: Path) -> None:
        super().__init__(jobs)
        try:
            import submitit
        except ImportError as error:
            raise InputError("submitit is not installed: pip install 'online-deep-clustering[slurm]'") from error
        self.cluster, self.folder = CLUSTERS[name], out.absolute() / "jobs"
        self.job: type[submitit.Job[Any]] = submitit.SlurmJob if name == "slurm" else submitit.LocalJob
        shared = submitit.AutoExecutor._typed_parameters().keys() - _OURS
        known = sorted(shared | submitit.SlurmExecutor._valid_parameters() - _OURS)
        asked = {"timeout_min": DAY}
        for option, value in options.items():
            bare = option.removeprefix("slurm_")
            if bare not in known:
                raise InputError(f"--executor-options has no '{option}'{nearest(bare, known)}")
            asked[bare if bare in shared else f"slurm_{bare}"] = value
        try:
            self.submitter = submitit.AutoExecutor(self.folder, cluster=self.cluster)
            self.submitter.update_parameters(**asked)
        except (RuntimeError, AssertionError, TypeError, ValueError) as error:
            raise InputError(f"--executor {name}: {one_line(error)}") from error

    def start(self, cell: Cell) -> Running:
        """Submit a job, where there is none."""
        note = self.folder / f"{cell.method}-{cell.seed}-{cell.key}.{self.cluster}"
        if note.exists() and (number := read_text(note, most=100)).isdigit():
            found = Job(cell, note, self.job(self.folder, number))
            found.poll()
            if found.lives() if found.record is None else "error" not in found.record:
                return found
        file = note.with_suffix(".json")
        file.unlink(missing_ok=True)
        self.submitter.update_parameters(name=f"{cell.method}-{cell.seed}")
        try:
            job = self.submitter.submit(run_job, cell, file, sys.path)
        except (OSError, RuntimeError) as error:
            raise InputError(f"the job of {cell.title} is refused: {one_line(error)}") from error
        write_text(note, job.job_id)
        return Job(cell, note, job)

    def leave(self, running: Sequence[Running]) -> str | None:
        """Let them go on."""
        numbers = [r.job.job_id for r in running if isinstance(r, Job)]
        if not numbers:
            return None
        stop = "scancel" if self.cluster == "slurm" else "kill"
        return f"jobs go on: the same command finds what they did; {stop} {' '.join(numbers)} ends them"
