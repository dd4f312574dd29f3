"""Run the cells of a comparison, each by itself, keep every result, and go on where it stopped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

import torch

from odc.comparison.estimators import num_clusters
from odc.comparison.executor import Executor, Processes, Running
from odc.comparison.jobs import CLUSTERS, Jobs
from odc.comparison.plan import Cell, Request, plan
from odc.comparison.progress import Progress
from odc.comparison.provenance import command, provenance, relative
from odc.comparison.report import write_report
from odc.comparison.results import (
    ABOUT,
    OUTCOME,
    RESULTS,
    About,
    Outcome,
    Place,
    Record,
    append_result,
    read_results,
)
from odc.comparison.samples import remarks
from odc.comparison.table import document
from odc.data.datasets import ImageDataset, build_dataset
from odc.errors import DamagedError, InputError
from odc.evaluation.gallery import write_skipped
from odc.files import write_text
from odc.reading import reading
from odc.recipes.features import Features
from odc.recipes.stage import FILES
from odc.work_dir import working


def compare(request: Request, stream: TextIO) -> list[Record]:
    """Run what has not been run yet; write results, table and report, and return the records of all rows.

    A cell that failed, or was interrupted, runs again from its beginning; one that ended does not. Progress is shown
    on ``stream``.

    Raises:
        InputError: for a wrong request, a folder with results of other settings, or one in which another command is at
            work.
    """
    with working(request.out):
        return _compare(request, stream)


def _compare(request: Request, stream: TextIO) -> list[Record]:
    out = request.out
    earlier = About.load(out) if (out / ABOUT).exists() else None
    threads = request.threads if earlier is None else earlier.threads
    if threads != request.threads:
        stream.write(f"threads a cell: {threads}, as before in {out}, not {request.threads}\n")
    cells = plan(replace(request, threads=threads))
    executor = executor_of(request)
    found = read_results(out)
    ended = {place: record for place, record in found.items() if record.error is None}
    for cell in cells:
        record = ended.get(cell.place)
        if record is not None and record.key != cell.key and cell.combines:
            del ended[cell.place]  # of other rows than now
        elif record is not None and record.key != cell.key:
            ran, runs = record.precision, cell.precision
            how = "with other settings or another version of its config"
            how = how if ran == runs else f"trained in {ran}, but here and now it would be in {runs}"
            raise InputError(f"{out / RESULTS} has {cell.title} {how}: choose another --out, or delete that folder")
    about, dataset = describe(cells, request, earlier)
    row = next(cell for cell in cells if not cell.before)
    for line in remarks(features_stage(row), row.config, dataset):
        stream.write(f"{line}\n")
    for cell in cells:
        last = cell.recipe.stages[-1]
        if isinstance(last, Features) and cell.place not in ended:
            last.check()
    about.save(out)
    for cell in cells:
        record = ended.get(cell.place)
        if record is None:
            continue
        if not set(cell.before) <= set(record.before):  # rows have joined it
            record = replace(record, before=tuple(dict.fromkeys((*record.before, *cell.before))))
            ended[cell.place] = record
            append_result(out, record)
        if (lost := missing(cell, record, len(dataset))) is not None:
            stream.write(f"{cell.title} has ended, but {lost} is missing or damaged: it runs again\n")
            del ended[cell.place]
    waiting = [cell for cell in cells if cell.place not in ended]
    if len(waiting) < len(cells):
        stream.write(f"{len(cells) - len(waiting)} of {len(cells)} cells are there already\n")
    run_all(waiting, ended, about, request, executor, stream)
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
        dataset = build_dataset(about.data)
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


def describe(cells: Sequence[Cell], request: Request, earlier: About | None) -> tuple[About, ImageDataset]:
    """Return what is true of all cells, and the images that are evaluated; say which of these could not be read.

    Raises:
        InputError: the images are not those of ``earlier`` calls on the folder, whose rows stay in its table.
    """
    cell = next(cell for cell in cells if not cell.before)
    clustered, evaluated = cell.images
    data = clustered if evaluated is None else evaluated
    dataset = build_dataset(data)
    trained = dataset if data == clustered else build_dataset(clustered)
    write_skipped(dataset, request.out)
    features = features_stage(cell)
    if features is not None and not any(space.model for space in features.train.spaces):
        build_dataset(features.train.dataset([space.spelling for space in features.train.spaces]))  # are they of these?
    if earlier is not None:
        images = ((earlier.fingerprint, "compares on", dataset), (earlier.clustered, "clusters", trained))
        for was, what, now in images:
            if was != now.fingerprint:
                raise InputError(
                    f"{request.out} {what} images with fingerprint {was}, now there are {len(now):,} with "
                    f"{now.fingerprint}: put those back, or choose another --out"
                )
    unnamed = "the data set" if evaluated is None else "another data set"
    rows = [*([] if earlier is None else earlier.methods), *(cell.method for cell in cells)]
    about = About(
        dataset=request.dataset or request.features or "digits",
        data=dict(data),
        evaluated_on=data.get("split", data.get("root", unnamed)),
        num_clusters=num_clusters(cell.config),
        threads=cell.threads,
        features="" if features is None else features.title,
        command=command(),
        images=len(dataset),
        fingerprint=dataset.fingerprint,
        clustered=trained.fingerprint,
        methods=list(dict.fromkeys(rows)),
    )
    return about, dataset


def features_stage(cell: Cell) -> Features | None:
    """Return the stage that gives a cell its samples, where these are no pictures."""
    return next((stage for stage in cell.recipe.stages if isinstance(stage, Features)), None)


def executor_of(request: Request) -> Executor:
    """Return what runs the cells.

    Raises:
        InputError: for options that nothing reads, or jobs that cannot be.
    """
    if request.executor in CLUSTERS:
        return Jobs(request.executor, request.jobs, request.executor_options, request.out)
    if request.executor_options:
        names = " ".join(request.executor_options)
        raise InputError(f"--executor-options {names}: only jobs take them; add --executor slurm")
    return Processes(request.jobs)


def run_all(
    waiting: list[Cell], ended: dict[Place, Record], about: About, request: Request, executor: Executor, stream: TextIO
) -> None:
    """Run the cells that wait, ``request.jobs`` at a time; add their records to ``ended`` and to the results."""
    facts = provenance()
    running = list[Running]()
    progress = Progress(waiting, ended, request.jobs, stream)

    def keep(cell: Cell, values: dict[str, Any]) -> None:
        record = complete(cell, values, about, ended, facts)
        ended[record.place] = record
        append_result(request.out, record)
        progress.ended(record)

    try:
        while waiting or running:
            while executor.room(running) and (cell := next_cell(waiting, ended)):
                waiting.remove(cell)
                failed = [ended[place] for place in cell.after if ended[place].error is not None]
                failed = [record for record in failed if record.before or cell.combines]
                if failed:
                    keep(cell, {"error": f"not run, since {failed[0].title} failed"})
                else:
                    running.append(executor.start(cell))
            executor.wait(running)
            for r in running:
                if r.record is not None and not r.told:
                    r.told = True
                    keep(r.cell, r.record)
            running = [r for r in running if not r.closed]
            progress.show(running, waiting)
    finally:
        if (left := executor.leave(running)) is not None:
            stream.write(f"\n{left}\n")


def missing(cell: Cell, record: Record, images: int) -> Path | None:
    """Return the file that a cell which has ended, on so many images, should have left, where it is not there whole."""
    if cell.before:
        files = (cell.home / FILES[what] for what in cell.recipe.stages[-1].gives)
        return next((file for file in files if not file.is_file()), None)
    try:  # a method that finds no clusters has none to leave
        there = record.number("entropy") is None or Outcome.load(cell.home, images) is not None
    except InputError:
        there = False
    return None if there else cell.home / OUTCOME


def next_cell(waiting: Sequence[Cell], ended: dict[Place, Any]) -> Cell | None:
    """Return the cell to begin: of those for which everything has ended the one that most others wait for."""

    def followers(place: Place) -> set[Place]:
        direct = {cell.place for cell in waiting if place in cell.after}
        return direct.union(*map(followers, direct))

    ready = [cell for cell in waiting if set(cell.after) <= ended.keys()]
    return max(ready, key=lambda cell: len(followers(cell.place)), default=None)  # the first of equals


def complete(
    cell: Cell, values: dict[str, Any], about: About, ended: dict[Place, Record], facts: dict[str, Any]
) -> Record:
    """Return the record of a cell that has ended, with what is needed to repeat it."""
    shared = [ended[place] for place in cell.after if place in ended and ended[place].before]
    # A job says on which machine it ran.
    facts = facts | {name: values.pop(name) for name in ("error", "log", "machine") if name in values}
    if shared and all("seconds" in record.values for record in shared):
        values["pretrain_seconds"] = sum(record.values["seconds"] for record in shared)
    return Record(
        method=cell.method,
        seed=cell.seed,
        values=values,
        dataset=about.dataset,
        evaluated_on=about.evaluated_on,
        images=about.images,
        num_clusters=about.num_clusters,
        config=relative(cell.recipe.source) if cell.recipe.source else "",
        folder=str(cell.home.relative_to(cell.folder.parent)),
        precision=cell.precision,
        threads=cell.threads,
        key=cell.key,
        before=cell.before,
        features=about.features,
        **facts,
    )


def default_threads(jobs: int, vectors: bool = False) -> int:
    """Return the threads of each of ``jobs`` cells: OMP_NUM_THREADS, where it is set, else its share of the cores.

    On ``vectors`` it is one: heads are small, and their numbers then are the same for any number of jobs.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    return 1 if vectors else max(1, (os.cpu_count() or 1) // jobs)


def default_jobs() -> int:
    """Return 1 where there is a GPU, which one training fills, else a job for every core.

    NVIDIA's tool is asked because torch would start CUDA in this process.
    """
    return 1 if shutil.which("nvidia-smi") else os.cpu_count() or 1
