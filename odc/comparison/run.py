"""Run the cells of a comparison in processes of their own, keep every result, and go on where it stopped.

In the folder of a comparison are ``results.jsonl``, a line for every cell that has ended; ``comparison.json``, what the
report needs to know of the data; ``table.md`` and ``report.html``; and a folder for every cell.
"""

from __future__ import annotations

import datetime
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import torch
from mmengine.logging import print_log

from odc.apis import working
from odc.comparison.cell import LOG, num_clusters, run_cell
from odc.comparison.plan import PRETRAINING, Cell, Request, plan, stage_configs
from odc.comparison.provenance import command, provenance, relative
from odc.comparison.report import OUTCOME_FILE, read_outcome, write_report
from odc.comparison.table import QUALITY, UNLABELLED, document
from odc.data.datasets import ImageDataset
from odc.errors import DamagedError, InputError, printable
from odc.evaluation.gallery import write_skipped
from odc.files import append_line, naming, write_text
from odc.reading import (
    fields,
    inside,
    listing,
    mapping,
    optional,
    plain,
    read_json,
    read_text,
    reading,
    real,
    scalar,
    text,
    whole,
)
from odc.registry import DATASETS, build

RESULTS, ABOUT = "results.jsonl", "comparison.json"
Place = tuple[str, int]  # method and seed


def compare(request: Request, stream: TextIO) -> list[dict[str, Any]]:
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


def _compare(request: Request, stream: TextIO) -> list[dict[str, Any]]:
    out = request.out
    before = read_about(out) if (out / ABOUT).exists() else {}
    threads = before.get("threads", request.threads)
    if threads != request.threads:
        stream.write(f"threads a cell: {threads}, as before in {out}, not {request.threads}\n")
    cells = plan(replace(request, threads=threads))
    about, clustered = describe(cells, request)
    found = read_results(out)
    for cell in cells:
        record = found.get((cell.method, cell.seed))
        if record is not None and "error" not in record and record["key"] != cell.key:
            ran, runs = record.get("precision"), cell.precision
            how = "with other settings or another version of its config"
            how = how if ran == runs else f"trained in {ran}, but here and now it would be in {runs}"
            raise InputError(f"{out / RESULTS} has {cell.title} {how}: choose another --out, or delete that folder")
    dataset: ImageDataset = build(DATASETS, about["data"])
    trained: ImageDataset = dataset if clustered == about["data"] else build(DATASETS, clustered)
    about |= {"images": len(dataset), "fingerprint": dataset.fingerprint, "clustered": trained.fingerprint}
    write_skipped(dataset, out)
    before = before or {**about, "methods": []}
    for name, what, now in (("fingerprint", "compares on", dataset), ("clustered", "clusters", trained)):
        if before[name] != about[name]:
            raise InputError(
                f"{out} {what} images with fingerprint {before[name]}, now there are {len(now):,} with {about[name]}: "
                "put those back, or choose another --out"
            )
    # Rows of earlier calls on the same folder stay in its table.
    about["methods"] = list(dict.fromkeys([*before["methods"], *(cell.method for cell in cells)]))
    write_text(out / ABOUT, json.dumps(about, indent=1) + "\n")
    ended = {place: record for place, record in found.items() if "error" not in record}
    for cell in cells:
        record = ended.get((cell.method, cell.seed))
        if record is not None and (lost := missing(cell, record, len(dataset))) is not None:
            stream.write(f"{cell.title} has ended, but {lost} is missing or damaged: it runs again\n")
            del ended[cell.method, cell.seed]
    waiting = [cell for cell in cells if (cell.method, cell.seed) not in ended]
    if len(waiting) < len(cells):
        stream.write(f"{len(cells) - len(waiting)} of {len(cells)} cells are there already\n")
    run_all(waiting, ended, about, request, stream)
    return render(out, list({**found, **ended}.values()), dataset, about)


def report_only(out: Path) -> list[dict[str, Any]]:
    """Write table and report of a comparison again, without running anything; return the records.

    Raises:
        InputError: there is no comparison in the folder, or its images have changed.
        DamagedError: its files hold what no comparison writes.
    """
    if not (out / ABOUT).is_file():
        raise InputError(f"there is no comparison in {out}: it has no {ABOUT}")
    about = read_about(out)
    records = list(read_results(out).values())
    if not records:
        raise InputError(f"no cell of the comparison in {out} has ended yet: there is nothing to report")
    with reading(out / ABOUT, "names data that cannot be read", "put back the images that were compared on"):
        dataset: ImageDataset = build(DATASETS, about["data"])
    if dataset.fingerprint != about["fingerprint"]:
        raise InputError(
            f"the {len(dataset):,} images {dataset.origin} are not those that were compared on (fingerprint "
            f"{dataset.fingerprint}, not {about['fingerprint']}): put those back"
        )
    return render(out, records, dataset, about)


def render(
    out: Path, records: Sequence[dict[str, Any]], dataset: ImageDataset, about: dict[str, Any]
) -> list[dict[str, Any]]:
    """Write ``table.md`` and ``report.html``; return the records in the order of the methods, then of the seeds."""
    for r in records:
        if r["method"] not in about["methods"]:
            raise DamagedError(
                f"{out / RESULTS} has '{r['method']}', which {out / ABOUT} does not name: delete that line"
            )
    records = sorted(records, key=lambda r: (about["methods"].index(r["method"]), r["seed"]))
    write_text(out / "table.md", document(records, about["command"]) + "\n")
    told = [{**r, "folder": str(out / r["folder"])} for r in records]
    write_report(told, dataset, out / "report.html", command=about["command"])
    return records


def describe(cells: Sequence[Cell], request: Request) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what is true of all cells (the evaluated data, K, the command), and the config of the clustered data."""
    rows = [cell for cell in cells if cell.method != PRETRAINING]
    cell = next((cell for cell in rows if cell.stage is None), rows[0])
    cfg = cell.prepare() if cell.stage is None else stage_configs(cell)["self"]
    evaluated = cfg.data.get("eval_dataset")
    data = cfg.data.dataset if evaluated is None else evaluated
    unnamed = "the data set" if evaluated is None else "another data set"
    about = {
        "dataset": request.dataset,
        "data": data.to_dict(),
        "evaluated_on": data.get("split", data.get("root", unnamed)),
        "num_clusters": num_clusters(cfg),
        "threads": cell.threads,
        "command": command(),
    }
    return about, cfg.data.dataset.to_dict()


def _fingerprint(value: Any) -> str:
    """Kind: hexadecimal digits."""
    if not re.fullmatch("[0-9a-f]{16,64}", text(value)):
        raise ValueError("hexadecimal digits are expected")
    return str(value)


def _method(value: Any) -> str:
    """Kind: the name of a row; nothing is imported by it, though it may be the path of a class."""
    if not text(value) or len(value) > 200:
        raise ValueError(f"the name of a method has 1 to 200 characters, not {len(value)}")
    return str(value)


_ABOUT = fields(
    {
        **dict.fromkeys(("dataset", "evaluated_on", "command"), text),
        **dict.fromkeys(("images", "num_clusters", "threads"), whole(1)),
        "data": mapping(plain),
        **dict.fromkeys(("fingerprint", "clustered"), _fingerprint),
        "methods": listing(_method),
    }
)
_SHARES = dict.fromkeys(("acc", "nmi", "ari", "knn", "entropy", "purity"), optional(real(-1.001, 1.001)))
_AMOUNTS = ("seconds", "pretrain_seconds", "images_seen", "peak_rss_mb", "epochs", "clusters", "empty", "noise")
_RECORD = fields(
    {
        "method": _method,
        "seed": whole(),
        "folder": inside,
        "key": _fingerprint,
        "versions": mapping(text),
        **dict.fromkeys(
            ("dataset", "evaluated_on", "config", "precision", "machine", "git_revision", "command", "date"), text
        ),
        **dict.fromkeys(("images", "num_clusters", "threads"), whole(1)),
    },
    scalar,  # metrics of one's own
    **_SHARES,
    **dict.fromkeys(_AMOUNTS, optional(real(0))),
    **dict.fromkeys(("error", "log"), text),
)


def read_about(out: Path) -> dict[str, Any]:
    """Return what ``comparison.json`` says of the data.

    Raises:
        DamagedError: it says what no comparison writes.
    """
    what, remedy = "is not what a comparison writes of its data", f"delete it, and run the comparison on {out} again"
    about: dict[str, Any] = read_json(out / ABOUT, _ABOUT, what, remedy)
    return about


def read_results(out: Path) -> dict[Place, dict[str, Any]]:
    """Return the last record of every cell; a line that a kill cut short, or that is no record, does not count."""
    file = out / RESULTS
    records: dict[Place, dict[str, Any]] = {}
    if not file.exists():
        return records
    with reading(file, "is no file of results", "delete it to run all methods again"):
        lines = read_text(file).split("\n")
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            with reading(file, f"has no result in line {place}", "its cell counts as not run"):
                record = _RECORD(json.loads(line))
        except DamagedError as error:
            print_log(str(error), "current", logging.WARNING)
            continue
        records[record["method"], record["seed"]] = record
    return records


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
    cells: Sequence[Cell], ended: dict[Place, dict[str, Any]], about: dict[str, Any], request: Request, stream: TextIO
) -> None:
    """Run cells, ``request.jobs`` at a time; add their records to ``ended`` and to the results."""
    context = multiprocessing.get_context("forkserver")  # imports once; never forks a process that has threads
    context.set_forkserver_preload(["odc.comparison.cell"])
    facts = provenance()
    waiting, running = list(cells), list[Running]()
    progress = Progress(waiting, ended, request.jobs, stream)

    def keep(cell: Cell, values: dict[str, Any]) -> None:
        record = complete(cell, values, about, ended, request.out) | facts
        ended[cell.method, cell.seed] = record
        with naming(request.out / RESULTS):
            append_line(request.out / RESULTS, json.dumps(record))
        progress.ended(record)

    try:
        while waiting or running:
            while _room(running, request.jobs) and (cell := next_cell(waiting, ended)):
                waiting.remove(cell)
                if "error" in ended.get((PRETRAINING, cell.seed), {}) and (PRETRAINING, cell.seed) in cell.after:
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


def missing(cell: Cell, record: dict[str, Any], images: int) -> Path | None:
    """Return the file that a cell which has ended, on so many images, should have left, where it is not there whole."""
    file = cell.home / ("backbone.pth" if cell.method == PRETRAINING else OUTCOME_FILE)
    if cell.method == PRETRAINING:
        there = file.is_file()
    else:
        try:  # a method that finds no clusters has none to leave
            there = record.get("entropy") is None or read_outcome(cell.home, images) is not None
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
    cell: Cell, values: dict[str, Any], about: dict[str, Any], ended: dict[Place, dict[str, Any]], out: Path
) -> dict[str, Any]:
    """Return the record of a cell that has ended, with what is needed to repeat it."""
    shared = ended.get((PRETRAINING, cell.seed), {}) if (PRETRAINING, cell.seed) in cell.after else {}
    return {
        "method": cell.method,
        "seed": cell.seed,
        **values,
        **({"pretrain_seconds": shared["seconds"]} if "seconds" in shared else {}),
        **{k: about[k] for k in ("dataset", "evaluated_on", "images", "num_clusters")},
        "config": "" if cell.estimator is not None else relative(cell.config),
        "folder": str(cell.home.relative_to(out)),
        "precision": cell.precision,
        "threads": cell.threads,
        "key": cell.key,
    }


class Progress:
    """What runs, what is done, and the time left: redrawn on a terminal, a line every ten seconds in a file."""

    def __init__(self, cells: Sequence[Cell], ended: dict[Place, dict[str, Any]], jobs: int, stream: TextIO) -> None:
        self.total = len(cells)
        self.done = 0
        self.jobs = jobs
        self.seconds: dict[str, list[float]] = {}
        for record in ended.values():
            self._note(record)
        self.noted = time.monotonic()
        self.stream = stream
        self.terminal = stream.isatty()

    def _note(self, record: dict[str, Any]) -> None:
        if record.get("seconds") is not None and "error" not in record:
            self.seconds.setdefault(record["method"], []).append(record["seconds"])

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

    def ended(self, record: dict[str, Any]) -> None:
        """Show a cell's result."""
        self.done += 1
        self._note(record)
        clear = "\r\033[K" if self.terminal else ""
        names = QUALITY if any(record.get(m) is not None for m in QUALITY) else UNLABELLED
        values = "  ".join(f"{m} {record[m]:.3f}" for m in names if record.get(m) is not None)
        result = record.get("error", values) + (f" (see {record['log']})" if "log" in record else "")
        title = f"{record['method']} seed {record['seed']}"
        self.stream.write(clear + printable(f"{title}  {result}  {record.get('seconds', 0):.1f} s") + "\n")
        self.stream.flush()


def default_threads(jobs: int) -> int:
    """Return the threads of each of ``jobs`` cells: OMP_NUM_THREADS, where it is set, else its share of the cores."""
    return torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else max(1, (os.cpu_count() or 1) // jobs)


def default_jobs() -> int:
    """Return 1 where there is a GPU, which one training fills, else a job for every core.

    NVIDIA's tool is asked because torch would start CUDA in this process.
    """
    return 1 if shutil.which("nvidia-smi") else os.cpu_count() or 1
