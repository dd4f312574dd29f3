"""One cell of a comparison, in a process of its own: run it, and leave on disk what the report shows of it."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from odc.apis import load_runner
from odc.clustering.kmeans import load_faiss
from odc.comparison.maps import embed
from odc.comparison.plan import Cell
from odc.comparison.results import QUALITY, Outcome, write_curves
from odc.config import override
from odc.engine.hooks import ExtractionHook
from odc.evaluation.evaluator import Evaluation
from odc.files import explain
from odc.processes import end_with_parent
from odc.recipes.pipeline import Pipeline
from odc.recipes.stage import Left, Train

LOG = "output.txt"

Report = Callable[[float, str], None]  # takes the share that is done, and where it is
Send = Callable[[tuple[Any, ...]], None]  # takes ("progress", share, where) or ("record", values)


class _Watch(ExtractionHook):
    """Report the progress of a training, and fit it into its time.

    After every epoch the number of epochs is set to what the time left is enough for, so that the learning rate, which
    follows the share of the training that is done, has its whole schedule however long an epoch takes. The first epoch
    goes by the config's number; the training never ends before it, and runs over its time by less than an epoch.
    """

    def __init__(
        self, report: Report, minutes: float | None, trainings: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.report, self.minutes, self.clock = report, minutes, clock
        self.trainings = trainings  # that come one after the other in this cell
        self.begun, self.started = 0, 0.0
        self.evaluation: Evaluation | None = None  # the last one of the last training

    def before_train(self, runner: Any) -> None:
        """Start the clock: of each training of a recipe anew."""
        self.started = self.clock()
        self.begun += 1
        if self.minutes is not None:
            runner.train_loop.val_interval = sys.maxsize  # the loop evaluates after the last epoch in any case

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        """Report."""
        used = 0.0 if self.minutes is None else (self.clock() - self.started) / (60 * self.minutes)
        share = (self.begun - 1 + max(used, runner.train_loop.progress)) / self.trainings
        self.report(share, f"epoch {runner.epoch + 1}/{runner.max_epochs}")

    def extracted(self, done: int, total: int) -> None:
        """Report: of a stage that trains nothing."""
        self.report(done / total, f"{done:,} of {total:,} images")

    def after_val(self, runner: Any) -> None:
        """Keep the evaluation."""
        self.evaluation = runner.val_loop.evaluation

    def after_train_epoch(self, runner: Any) -> None:
        """Plan the epochs that are left."""
        if self.minutes is not None:
            done = runner.epoch + 1
            used = self.clock() - self.started
            runner.train_loop.max_epochs = done + max(0, int((60 * self.minutes - used) * done / used))


def run(cell: Cell, report: Report) -> tuple[dict[str, float], int]:
    """Run the stages of a cell that are not there yet; leave its outcome and its curves in its home.

    Returns:
        Metrics of the last stage, what stages that train nothing have counted, and the costs of all; and the number of
        images in the outcome, 0 where there is none.
    """
    if cell.minutes is not None:  # how much of it an interrupted training has had is not known
        for done in cell.folder.glob("*/begun.json"):
            if not done.with_name("done.json").exists():
                shutil.rmtree(done.parent)
    left = [s for s in cell.own if isinstance(s, Train) and not (cell.places[s.name] / "done.json").exists()]
    watch = _Watch(report, cell.minutes, max(1, len(left)))
    pipeline = Pipeline(cell.recipe, cell.folder, places=cell.places, hooks=[watch])
    results = pipeline.run()
    mine = [results[stage.name] for stage in cell.own]
    last, result = cell.recipe.stages[-1], results[cell.recipe.stages[-1].name]
    values = {k: v for k, v in result.items() if isinstance(v, float)}
    for one in mine:
        if one.get("count") is not None:
            values["reliable"] = float(one["count"])
            if one["purity"] is not None:
                values["purity"] = one["purity"]
    for cost, kind in (("seconds", float), ("images_seen", int), ("epochs", int)):
        values[cost] = kind(sum(one.get(cost, 0) for one in mine))
    images = result.get("images", 0)
    if isinstance(last, Train):
        write_curves(cell.home, cell.home)
        if not cell.before:
            trained = watch.evaluation if last in left else None
            outcome = Outcome.from_scores(trained or _evaluated(Left(last, cell.home, result)))
            if outcome is not None:
                outcome.save(cell.home)
                images = len(outcome.cluster)
    return values, images


def _evaluated(left: Left) -> Evaluation:
    """Evaluate a training that an earlier run has ended."""
    runner, _ = load_runner(left.config(left.folder / "evaluation"), str(left.file("checkpoint")))
    evaluation: Evaluation = runner.val_loop.evaluate()
    return evaluation


def run_cell(cell: Cell, send: Send, interval: float = 0.5) -> None:
    """Run one cell; send its record, and every ``interval`` seconds its progress. All it prints goes into a file."""
    end_with_parent()  # the comparison may be killed
    if cell.recipe.single:  # it begins anew: what an interrupted run has left would mix with this one's
        shutil.rmtree(cell.home, ignore_errors=True)
    cell.home.mkdir(parents=True, exist_ok=True)
    number = os.open(cell.home / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(number, stream)
    last = 0.0

    def report(share: float, where: str) -> None:
        nonlocal last
        if time.monotonic() - last > interval:
            last = time.monotonic()
            send(("progress", share, where))

    # W&B names its runs by these, where somebody asked for it.
    names = {"WANDB_PROJECT": "odc", "WANDB_RUN_GROUP": cell.folder.parent.name, "WANDB_NAME": cell.title}
    os.environ.update({name: value for name, value in names.items() if name not in os.environ})
    started = time.perf_counter()
    record: dict[str, Any]
    images = 0
    try:
        torch.set_num_threads(cell.threads)
        load_faiss().omp_set_num_threads(cell.threads)
        threadpool_limits(cell.threads)  # scikit-learn and NumPy have pools of their own
        for stage in cell.recipe.stages:
            if stage.config is not None:
                override(stage.config)  # for the modules that it imports: names in it are registered there
        values, images = run(cell, report)
        record = {**dict.fromkeys(QUALITY), **dict(sorted(values.items()))}
    except Exception as e:  # whatever it is, it becomes this cell's record
        with contextlib.suppress(OSError):  # the log's disk may be what is full
            traceback.print_exc()
        line = explain(e) if isinstance(e, OSError) else None
        record = {
            "error": " ".join((line or f"{type(e).__name__}: {e}").split()),
            "log": str(cell.home / LOG),
            "seconds": round(time.perf_counter() - started, 2),
        }
    usage = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    record["peak_rss_mb"] = round(usage / 1024, 1)
    send(("record", record))
    if cell.shown and images and (outcome := Outcome.load(cell.home, images)) is not None:
        send(("progress", 1.0, "map of the features"))
        os.nice(5)  # the next cell has begun
        embed(outcome.features, cell.home)  # here, beside the other cells, and not one after the other at the end
