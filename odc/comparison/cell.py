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
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import set_random_seed
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from odc.apis import build_runner, finish, load_runner
from odc.checkpoints import find_resume
from odc.clustering import l2_normalize
from odc.clustering.kmeans import load_faiss
from odc.comparison.maps import embed
from odc.comparison.plan import PRETRAINING, Cell, measure
from odc.comparison.results import QUALITY, Outcome, write_curves
from odc.engine.data import ClusterData
from odc.engine.extract import extract
from odc.engine.loops import ClusterValLoop
from odc.errors import InputError
from odc.evaluation.evaluator import ClusterMetrics, Evaluation, KNNMetric
from odc.files import explain
from odc.models import AvgPool, ClusterModel, MoCo
from odc.models.convert import convert
from odc.pipeline import Pipeline, fit_queue
from odc.processes import end_with_parent
from odc.registry import DATASETS, MODELS, build
from odc.structures import LocalComm

LOG = "output.txt"

Report = Callable[[float, str], None]  # the share that is done, and where it is


@dataclass(frozen=True)
class Result:
    """What a cell found.

    Attributes:
        values: metrics and costs by name.
        outcome: ``None`` where there was no evaluation, or it had no clusters, as MoCo's.
        logs: folder with the log of the training behind the row, if there was one.
    """

    values: dict[str, float]
    outcome: Outcome | None
    logs: Path | None = None


class _Watch(Hook):
    """Report the progress of a training, and fit it into its time.

    After every epoch the number of epochs is set to what the time left is enough for, so that the learning rate, which
    follows the share of the training that is done, has its whole schedule however long an epoch takes. The first epoch
    goes by the config's number; the training never ends before it, and runs over its time by less than an epoch.
    """

    def __init__(
        self, report: Report, minutes: float | None, trainings: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.report = report
        self.minutes = minutes
        self.trainings = trainings  # that come one after the other in this cell
        self.begun = 0
        self.clock = clock
        self.started = 0.0

    def before_train(self, runner: Any) -> None:
        """Start the clock: of each training of a pipeline anew."""
        self.started = self.clock()
        self.begun += 1
        if self.minutes is not None:
            runner.train_loop.val_interval = sys.maxsize  # the loop evaluates after the last epoch in any case

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        """Report."""
        used = 0.0 if self.minutes is None else (self.clock() - self.started) / (60 * self.minutes)
        share = (self.begun - 1 + max(used, runner.train_loop.progress)) / self.trainings
        self.report(share, f"epoch {runner.epoch + 1}/{runner.max_epochs}")

    def after_train_epoch(self, runner: Any) -> None:
        """Plan the epochs that are left."""
        if self.minutes is not None:
            done = runner.epoch + 1
            used = self.clock() - self.started
            runner.train_loop.max_epochs = done + max(0, int((60 * self.minutes - used) * done / used))


def run_method(cell: Cell, report: Report) -> Result:
    """Train by a config."""
    cfg = cell.prepare()
    fitted = None
    if cell.method == PRETRAINING and "model.head.queue_size" not in cell.options:
        fitted = fit_queue(cfg, len(build(DATASETS, cfg.data.dataset)))
    runner = build_runner(cfg)
    if fitted:
        print_log(fitted, "current")
    runner.register_hook(_Watch(report, cell.minutes))
    runner.train()
    folder, loop = Path(cell.folder), runner.train_loop
    costs = {"images_seen": float(loop.images_seen), "epochs": float(loop.epoch)}
    values = finish(runner, folder) | costs
    if isinstance(runner.model, MoCo):
        convert(next(find_resume(folder)), folder / "backbone.pth")
    evaluation = runner.val_loop.evaluation if isinstance(runner.val_loop, ClusterValLoop) else None
    return Result(values, None if evaluation is None else Outcome.from_scores(evaluation), folder)


def run_pipeline(cell: Cell, report: Report) -> Result:
    """Run SPICE from the shared backbone up to the row's stage; the stages before it may be there already."""
    stage = cell.stage or "semi"
    if cell.minutes is not None:  # how much of it an interrupted training has had is not known
        for done in Path(cell.folder).glob("*/begun.json"):
            if not done.with_name("done.json").exists():
                shutil.rmtree(done.parent)
    left = [name for name in ("self", stage) if not (Path(cell.folder) / name / "done.json").exists()]
    pipeline = Pipeline(
        cell.config,
        work_dir=cell.folder,
        # A row of a table that is poor says more than one that is missing.
        cfg_options={"reliable.allow_empty": True, **cell.options},
        pretrained=cell.pretrained,
        seed=cell.seed,
        hooks=[_Watch(report, cell.minutes, len(set(left)))],
    )
    for cfg in pipeline.configs.values():
        measure(cfg)
    results = pipeline.run(stage)
    values = {k: v for k, v in results[stage].items() if isinstance(v, float)}
    if "reliable" in results:
        values |= {"reliable": float(results["reliable"]["count"])}
        if results["reliable"]["purity"] is not None:
            values["purity"] = results["reliable"]["purity"]
    for cost in ("seconds", "images_seen", "epochs"):
        values[cost] = float(sum(result.get(cost, 0.0) for result in results.values()))
    # The features behind the result: evaluated again, since the stage may have been there already.
    cfg = pipeline.configs[stage].copy()
    cfg.work_dir = str(Path(cell.folder) / "evaluation")
    runner, _ = load_runner(cfg, str(Path(cell.folder) / stage / results[stage]["checkpoint"]))
    val = runner.val_loop
    outcome = Outcome.from_scores(val.evaluate()) if isinstance(val, ClusterValLoop) else None
    return Result(values, outcome, Path(cell.folder) / stage)


def run_estimator(cell: Cell, report: Report) -> Result:
    """Cluster the pixels of the extraction view, or the features of the backbone, untrained or pre-trained."""
    estimator, cfg = cell.estimator, cell.prepare()
    assert estimator is not None
    set_random_seed(cfg.randomness.seed)
    data = ClusterData(**cfg.data)
    try:
        model: ClusterModel = build(MODELS, cfg.model)
        if estimator.features == "pixels":
            model.backbone = model.neck = torch.nn.Flatten()
        else:
            model.neck = AvgPool(model.backbone.out_channels)
            model.init_weights()
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        table = extract(model, data.eval, LocalComm(), batch_size=data.extract_batch_size)
        targets = data.eval.dataset.targets
    finally:
        data.close()
    report(0.5, estimator.path.rpartition(".")[2])
    features = table.features.cpu()
    x = features if estimator.features == "pixels" else l2_normalize(features)[0]
    clusters = torch.from_numpy(estimator.fit_predict(x.numpy(), num_clusters(cfg), cell.seed))
    # Those in no cluster, HDBSCAN's noise, are a cluster of their own for the metrics.
    found = clusters.unique(return_inverse=True)[1]
    scores = torch.nn.functional.one_hot(found, max(int(found.max()) + 1, num_clusters(cfg))).float()
    evaluation = Evaluation(features, scores, targets)
    values = ClusterMetrics()(evaluation) | KNNMetric()(evaluation)
    noise = int((clusters < 0).sum())
    values |= {"clusters": float(len(clusters[clusters >= 0].unique())), "epochs": 0.0, "images_seen": 0.0}
    if noise:
        values["noise"] = float(noise)
    return Result(values, Outcome.from_clusters(x, clusters))


def num_clusters(cfg: Any) -> int:
    """Return K of the config's head."""
    K = cfg.model.head.get("num_clusters")
    if K is None:
        raise InputError("an estimator needs to know K: the head of the first config has no num_clusters")
    return int(K)


def run_cell(cell: Cell, pipe: Connection) -> None:
    """Run one cell and send its record; everything it prints goes into a file."""
    end_with_parent()  # the comparison may be killed
    folder = cell.home
    if cell.stage is None:  # it begins anew: what an interrupted run has left would mix with this one's
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    number = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(number, stream)
    last = 0.0

    def report(share: float, where: str) -> None:
        nonlocal last
        if time.monotonic() - last > 0.5:
            last = time.monotonic()
            pipe.send(("progress", share, where))

    # W&B names its runs by these, where somebody asked for it.
    for name, value in (
        ("WANDB_PROJECT", "odc"),
        ("WANDB_RUN_GROUP", Path(cell.folder).parent.name),
        ("WANDB_NAME", cell.title),
    ):
        os.environ.setdefault(name, value)
    started = time.perf_counter()
    record: dict[str, Any]
    images = 0
    try:
        torch.set_num_threads(cell.threads)
        load_faiss().omp_set_num_threads(cell.threads)
        threadpool_limits(cell.threads)  # scikit-learn and NumPy have pools of their own
        run = run_estimator if cell.estimator is not None else run_pipeline if cell.stage is not None else run_method
        result = run(cell, report)
        values = {"seconds": round(time.perf_counter() - started, 2), **result.values}
        record = {name: values.get(name) for name in (*QUALITY, *sorted(set(values) - set(QUALITY)))}
        record |= {name: int(values[name]) for name in ("epochs", "images_seen") if name in values}
        if result.outcome is not None:
            result.outcome.save(folder)
            images = len(result.outcome.cluster)
        if result.logs is not None:
            write_curves(result.logs, folder)
    except Exception as e:  # whatever it is, it becomes this cell's record
        with contextlib.suppress(OSError):  # the log's disk may be what is full
            traceback.print_exc()
        line = explain(e) if isinstance(e, OSError) else None
        record = {
            "error": " ".join((line or f"{type(e).__name__}: {e}").split()),
            "log": str(folder / LOG),
            "seconds": round(time.perf_counter() - started, 2),
        }
    usage = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    record["peak_rss_mb"] = round(usage / 1024, 1)
    pipe.send(("record", record))
    if cell.shown and images and (found := Outcome.load(folder, images)) is not None:
        pipe.send(("progress", 1.0, "map of the features"))
        os.nice(5)  # the next cell has begun
        embed(found.features, folder)  # here, beside the other cells, and not one after the other when all have ended
