"""Run the cells of a comparison in processes of their own, keep every result, and go on where it stopped."""

from __future__ import annotations

import datetime
import multiprocessing
import multiprocessing.connection
import os
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import torch

from odc.comparison.cell import LOG, num_clusters, run_cell
from odc.comparison.plan import PRETRAINING, Cell, Request, plan, stage_configs
from odc.comparison.provenance import command, provenance, relative
from odc.comparison.ranking import EVENNESS
from odc.comparison.report import write_report
from odc.comparison.results import (
    ABOUT,
    OUTCOME,
    QUALITY,
    RESULTS,
    About,
    Outcome,
    Place,
    Record,
    append_result,
    read_results,
)
from odc.comparison.table import document
from odc.data.datasets import ImageDataset
from odc.errors import DamagedError, InputError, printable
from odc.evaluation.gallery import write_skipped
from odc.files import write_text
from odc.reading import reading
from odc.registry import DATASETS, build
from odc.work_dir import working


def compare(request: Request, stream: TextIO) -> list[Record]:
    """Run what has not been run yet; write results, table and report, and return the records of all rows.

    A cell that failed, or was interrupted, runs again from its beginning; one that ended does not.

    Args:
        request: what to compare.
        stream: where progress is shown.

    Raises:
        InputError: for a wrong request, a folder with results of other settings, or one in which another command is at
            work.
    """
    with working(request.out):
        return _compare(request, stream)


def _compare(request: Request, stream: TextIO) -> list[Record]:
    out = request.out
    before = About.load(out) if (out / ABOUT).exists() else None
    threads = request.threads if before is None else before.threads
    if threads != request.threads:
        stream.write(f"threads a cell: {threads}, as before in {out}, not {request.threads}\n")
    cells = plan(replace(request, threads=threads))
    told, clustered = describe(cells, request)
    found = read_results(out)
    for cell in cells:
        record = found.get((cell.method, cell.seed))
        if record is not None and record.error is None and record.key != cell.key:
            ran, runs = record.precision, cell.precision
            how = "with other settings or another version of its config"
            how = how if ran == runs else f"trained in {ran}, but here and now it would be in {runs}"
            raise InputError(f"{out / RESULTS} has {cell.title} {how}: choose another --out, or delete that folder")
    dataset: ImageDataset = build(DATASETS, told["data"])
    trained: ImageDataset = dataset if clustered == told["data"] else build(DATASETS, clustered)
    write_skipped(dataset, out)
    # Rows of earlier calls on the same folder stay in its table.
    methods = [*([] if before is None else before.methods), *(cell.method for cell in cells)]
    about = About(
        **told,
        images=len(dataset),
        fingerprint=dataset.fingerprint,
        clustered=trained.fingerprint,
        methods=list(dict.fromkeys(methods)),
    )
    if before is not None:
        for was, what, now in (
            (before.fingerprint, "compares on", dataset),
            (before.clustered, "clusters", trained),
        ):
            if was != now.fingerprint:
                raise InputError(
                    f"{out} {what} images with fingerprint {was}, now there are {len(now):,} with {now.fingerprint}: "
                    "put those back, or choose another --out"
                )
    about.save(out)
    ended = {place: record for place, record in found.items() if record.error is None}
    for cell in cells:
        record = ended.get((cell.method, cell.seed))
        if (
            record is not None
            and (rows := tuple(dict.fromkeys((*record.before, *rows_from(cell, cells))))) != record.before
        ):
            ended[record.place] = record = replace(record, before=rows)  # some have joined it
            append_result(out, record)
        if record is not None and (lost := missing(cell, record, len(dataset))) is not None:
            stream.write(f"{cell.title} has ended, but {lost} is missing or damaged: it runs again\n")
            del ended[cell.method, cell.seed]
    waiting = [cell for cell in cells if (cell.method, cell.seed) not in ended]
    if len(waiting) < len(cells):
        stream.write(f"{len(cells) - len(waiting)} of {len(cells)} cells are there already\n")
    run_all(cells, waiting, ended, about, request, stream)
    return render(out, list({**found, **ended}.values()), dataset, about)


def report_only(out: Path) -> list[Record]:
    """Write table and report of a comparison again, without running anything; return the records.

    Raises:
        InputError: there is no comparison in the folder, or its images have changed.
        DamagedError: its files hold what no comparison writes.
    """
    if not (out / ABOUT).is_file():
        raise InputError(f"there is no comparison in {out}: it has no {ABOUT}")
    about = About.load(out)
    records = list(read_results(out).values())
    if not records:
        raise InputError(f"no cell of the comparison in {out} has ended yet: there is nothing to report")
    with reading(out / ABOUT, "names data that cannot be read", "put back the images that were compared on"):
        dataset: ImageDataset = build(DATASETS, about.data)
    if dataset.fingerprint != about.fingerprint:
        raise InputError(
            f"the {len(dataset):,} images {dataset.origin} are not those that were compared on (fingerprint "
            f"{dataset.fingerprint}, not {about.fingerprint}): put those back"
        )
    return render(out, records, dataset, about)


def render(out: Path, records: Sequence[Record], dataset: ImageDataset, about: About) -> list[Record]:
    """Write ``table.md`` and ``report.html``; return the records in the order of the methods, then of the seeds."""
    for r in records:
        if r.method not in about.methods:
            raise DamagedError(f"{out / RESULTS} has '{r.method}', which {out / ABOUT} does not name: delete that line")
    records = sorted(records, key=lambda r: (about.methods.index(r.method), r.seed))
    write_text(out / "table.md", document(records, about.command) + "\n")
    write_report(records, dataset, out / "report.html", command=about.command)
    return records


def describe(cells: Sequence[Cell], request: Request) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is true of all cells (the evaluated data, K, the command), and the config of the clustered data."""
    rows = [cell for cell in cells if cell.method != PRETRAINING]
    cell = next((cell for cell in rows if cell.stage is None), rows[0])
    cfg = cell.prepare() if cell.stage is None else stage_configs(cell)["self"]
    evaluated = cfg.data.get("eval_dataset")
    data = cfg.data.dataset if evaluated is None else evaluated
    unnamed = "the data set" if evaluated is None else "another data set"
    told = {
        "dataset": request.dataset,
        "data": data.to_dict(),
        "evaluated_on": data.get("split", data.get("root", unnamed)),
        "num_clusters": num_clusters(cfg),
        "threads": cell.threads,
        "command": command(),
    }
    return told, cfg.data.dataset.to_dict()


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


def run_all(
    cells: Sequence[Cell],
    waiting: list[Cell],
    ended: dict[Place, Record],
    about: About,
    request: Request,
    stream: TextIO,
) -> None:
    """Run the waiting ones of the cells, ``request.jobs`` at a time; add their records to ``ended`` and the results."""
    context = multiprocessing.get_context("forkserver")  # imports once; never forks a process that has threads
    context.set_forkserver_preload(["odc.comparison.cell"])
    facts = provenance()
    running = list[Running]()
    progress = Progress(waiting, ended, request.jobs, stream)

    def keep(cell: Cell, values: dict[str, Any]) -> None:
        record = complete(cell, cells, values, about, ended, request.out, facts)
        ended[record.place] = record
        append_result(request.out, record)
        progress.ended(record)

    try:
        while waiting or running:
            while _room(running, request.jobs) and (cell := next_cell(waiting, ended)):
                waiting.remove(cell)
                if (PRETRAINING, cell.seed) in cell.after and ended[PRETRAINING, cell.seed].error is not None:
                    keep(cell, {"error": f"not run, since {PRETRAINING} seed {cell.seed} failed"})
                else:
                    running.append(Running(cell, context))
            ready = multiprocessing.connection.wait([r.pipe for r in running], timeout=1.0)
            for r in [r for r in running if r.pipe in ready]:
                r.receive()
                if r.record is not None and not r.told:
                    r.told = True
                    keep(r.cell, r.record)
            running = [r for r in running if not r.closed]
            progress.show(running, waiting)
    finally:
        for r in running:
            r.process.terminate()


def _room(running: Sequence[Running], jobs: int) -> bool:
    """Return whether a cell can begin: those that only draw their map give way, but they have memory."""
    return sum(not r.told for r in running) < jobs and len(running) < 2 * jobs


def missing(cell: Cell, record: Record, images: int) -> Path | None:
    """Return the file that a cell which has ended, on so many images, should have left, where it is not there whole."""
    file = cell.home / ("backbone.pth" if cell.method == PRETRAINING else OUTCOME)
    if cell.method == PRETRAINING:
        there = file.is_file()
    else:
        try:  # a method that finds no clusters has none to leave
            there = record.number("entropy") is None or Outcome.load(cell.home, images) is not None
        except InputError:
            there = False
    return None if there else file


def next_cell(waiting: Sequence[Cell], ended: dict[Place, Any]) -> Cell | None:
    """Return the cell to begin: of those for which everything has ended the one that most others wait for."""

    def followers(place: Place) -> set[Place]:
        direct = {(cell.method, cell.seed) for cell in waiting if place in cell.after}
        return direct.union(*(followers(place) for place in direct))

    ready = [cell for cell in waiting if set(cell.after) <= ended.keys()]
    return max(ready, key=lambda cell: len(followers((cell.method, cell.seed))), default=None)  # the first of equals


def complete(
    cell: Cell,
    cells: Sequence[Cell],
    values: dict[str, Any],
    about: About,
    ended: dict[Place, Record],
    out: Path,
    facts: dict[str, Any],
) -> Record:
    """Return the record of one of the cells, which has ended, with what is needed to repeat it."""
    shared = ended.get((PRETRAINING, cell.seed)) if (PRETRAINING, cell.seed) in cell.after else None
    error, log = values.pop("error", None), values.pop("log", None)
    if shared is not None and "seconds" in shared.values:
        values["pretrain_seconds"] = shared.values["seconds"]
    return Record(
        method=cell.method,
        seed=cell.seed,
        values=values,
        error=error,
        log=log,
        dataset=about.dataset,
        evaluated_on=about.evaluated_on,
        images=about.images,
        num_clusters=about.num_clusters,
        config="" if cell.estimator is not None else relative(cell.config),
        folder=str(cell.home.relative_to(out)),
        precision=cell.precision,
        threads=cell.threads,
        key=cell.key,
        before=rows_from(cell, cells),
        **facts,
    )


def rows_from(cell: Cell, cells: Sequence[Cell]) -> tuple[str, ...]:
    """Return the rows that start from a cell that is no row itself."""
    if cell.method != PRETRAINING:
        return ()
    return tuple(dict.fromkeys(c.method for c in cells if (cell.method, cell.seed) in c.after))


class Progress:
    """What runs, what is done, and the time left: redrawn on a terminal, a line every ten seconds in a file."""

    def __init__(self, cells: Sequence[Cell], ended: dict[Place, Record], jobs: int, stream: TextIO) -> None:
        self.total = len(cells)
        self.done = 0
        self.jobs = jobs
        self.seconds: dict[str, list[float]] = {}
        for record in ended.values():
            self._note(record)
        self.noted = time.monotonic()
        self.stream = stream
        self.terminal = stream.isatty()

    def _note(self, record: Record) -> None:
        seconds = record.number("seconds")
        if seconds is not None and record.error is None:
            self.seconds.setdefault(record.method, []).append(seconds)

    def left(self, running: Sequence[Running], waiting: Sequence[Cell]) -> float | None:
        """Return the seconds left, ``None`` as long as nothing is known.

        A method takes what its other seeds took; one of which none has ended what the known ones do on average.
        """
        now, rest = time.monotonic(), []
        known = {method: statistics.mean(values) for method, values in self.seconds.items()}
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
        line = printable(line + "; ".join(f"{r.cell.title} {r.where}" for r in running))
        if self.terminal:
            self.stream.write(f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}")
        else:
            self.stream.write(line + "\n")
        self.stream.flush()

    def ended(self, record: Record) -> None:
        """Show a cell's result."""
        self.done += 1
        self._note(record)
        clear = "\r\033[K" if self.terminal else ""
        names = QUALITY if any(record.number(m) is not None for m in QUALITY) else EVENNESS
        result = "  ".join(f"{m} {value:.3f}" for m in names if (value := record.number(m)) is not None)
        if record.error is not None:
            result = record.error + (f" (see {record.log})" if record.log else "")
        seconds = record.number("seconds") or 0.0
        self.stream.write(clear + printable(f"{record.title}  {result}  {seconds:.1f} s") + "\n")
        self.stream.flush()


def default_threads(jobs: int) -> int:
    """Return the threads of each of ``jobs`` cells: OMP_NUM_THREADS, where it is set, else its share of the cores."""
    return torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else max(1, (os.cpu_count() or 1) // jobs)


def default_jobs() -> int:
    """Return 1 where there is a GPU, which one training fills, else a job for every core.

    NVIDIA's tool is asked because torch would start CUDA in this process.
    """
    return 1 if shutil.which("nvidia-smi") else os.cpu_count() or 1
