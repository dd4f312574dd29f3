"""From a config to a trained model and its clusters: what the command line calls, for use from Python too."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log

from odc.config import override, parse_config
from odc.config.checking import check_compile, check_config, check_monitored, check_parts, check_seed
from odc.config.modules import copies_in, keep_modules, own_modules
from odc.config.views import NOTE, fill_views
from odc.data.datasets import ImageDataset
from odc.data.embeddings import Embeddings, check_ending
from odc.data.feature_files import read_folder, read_space
from odc.engine.comm import get_comm, is_first_rank
from odc.engine.data import EXTRACT_VIEW, ClusterData, Source
from odc.engine.extract import extract
from odc.engine.feature_store import stored_features
from odc.engine.resume import SameRunHook
from odc.engine.validation import ClusterValLoop
from odc.errors import InputError
from odc.evaluation.gallery import sizes_told, write_skipped
from odc.evaluation.results import write_results
from odc.files import writable, writable_file
from odc.models.backbones import Vectors
from odc.models.cluster_model import ClusterModel, unwrap
from odc.models.necks import AvgPool
from odc.registry import check_kind
from odc.runner import Runner
from odc.work_dir import of_another_run, set_aside, working

# Keys of a config that mmengine's runner takes as they are.
_OF_THE_RUNNER = (
    *("auto_scale_lr", "custom_hooks", "default_hooks", "env_cfg", "experiment_name", "launcher", "load_from"),
    *("log_level", "log_processor", "model", "randomness", "resume", "visualizer", "work_dir"),
)


def prepare_config(
    config: str | Path | Config,
    *,
    work_dir: str | Path | None = None,
    cfg_options: dict[str, Any] | None = None,
    seed: int | None = None,
    amp: bool = False,
    strict: bool = False,
    launcher: str = "none",
) -> Config:
    """Read a config and put the command line's options into it.

    Args:
        config: path or name of the config, or one that is already parsed, which stays as it is.
        work_dir: where everything of the run goes; by default ``work_dirs/<name of the config>``.
        cfg_options: ``{"dotted.key": value}`` to change.
        seed: ``randomness.seed``; by default the config's.
        amp: ``precision="bfloat16"``.
        strict: unreadable images are an error instead of being skipped.
        launcher: ``"none"``, ``"pytorch"``, ``"slurm"`` or ``"mpi"``.

    Raises:
        InputError: for a config that does not exist or has unknown keys, a seed out of range, and views that should be
            as the weights want them where nobody knows how that is.
    """
    cfg = override(config if isinstance(config, Config) else parse_config(config), cfg_options)
    check_config(cfg)
    if work_dir is not None:
        cfg.work_dir = str(work_dir)
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs") / Path(cfg.filename).stem)
    if isinstance(cfg.get("val_evaluator"), Mapping):
        cfg.val_evaluator = [cfg.val_evaluator]
    check_kind(cfg.setdefault("randomness", {}), "dict", "randomness")
    if seed is not None:
        cfg.randomness.seed = seed
    if cfg.randomness.get("seed") is None:
        raise InputError(f"{cfg.filename}: randomness.seed is not set: a run without a seed cannot be repeated")
    check_seed(cfg.randomness.seed, f"{cfg.filename}: randomness.seed" if seed is None else "the seed")
    if amp:
        cfg.precision = "bfloat16"
    if strict:
        (cfg.data.dataset.get("pictures") or cfg.data.dataset).strict = True
    cfg.launcher = launcher
    _fill_spaces(cfg)
    fill_views(cfg)
    return cfg


def build_runner(cfg: Config) -> Runner:
    """Return the runner of a prepared config.

    Raises:
        InputError: for a part that is configured wrongly, or data that cannot be read.
    """
    check_parts(cfg)
    writable(cfg.work_dir)
    val = dict(type="ClusterValLoop") if cfg.get("val_evaluator") else None
    optim_wrapper = cfg.optim_wrapper.copy()
    counts = optim_wrapper.pop("accumulative_counts", 1)
    passed_on = {key: cfg[key] for key in _OF_THE_RUNNER if cfg.get(key) is not None}
    runner = Runner(
        **passed_on,
        train_dataloader={},  # both follow: what the data has to say belongs into the log of this run
        train_cfg=dict(type="ClusterTrainLoop", accumulative_counts=counts, **cfg.train_cfg),
        optim_wrapper=optim_wrapper,  # the loop accumulates: mmengine's wrapper knows no position to resume
        val_dataloader={} if val else None,
        val_cfg=val,
        val_evaluator=cfg.val_evaluator if val else None,
        default_scope="odc",
        cfg=cfg,
    )
    runner.register_hook(SameRunHook())
    options = check_compile(cfg.get("compile"))
    if options is not None:
        _compile_backbone(unwrap(runner.model), options)
    data = ClusterData(**cfg.data)
    for source in (data.train, data.eval):
        _check_spaces(unwrap(runner.model), source.dataset)
    runner.use_data(data, data if val else None)
    print_log(data.train.dataset.describe(), "current")
    if NOTE in cfg:
        print_log(cfg[NOTE], "current")
    if data.eval is not data.train:
        print_log(f"evaluated on {data.eval.dataset.describe()}", "current")
    if runner.rank == 0:
        _write_skipped(data, Path(cfg.work_dir))
    return runner


def _compile_backbone(model: ClusterModel, options: Mapping[str, Any]) -> None:
    """Compile the backbone, where a step spends its time, and what has its architecture, as MoCo's key encoder.

    It is done in place, so that parameters keep their names: checkpoints with and without it are the same. Heads stay
    as they are: they are small, and what they do depends on data.
    """
    for module in model.modules():
        if type(module) is type(model.backbone):
            module.compile(**options)
    print_log("the backbone is compiled at its first use, which may take minutes", "current")


def _fill_spaces(cfg: Config) -> None:
    """Tell the backbone ``Vectors`` how wide the vectors of the data set are, where the config does not."""
    backbone, data = cfg.model.get("backbone"), cfg.data.get("dataset")
    if isinstance(backbone, Mapping) and backbone.get("type") == "Vectors" and not backbone.get("spaces"):
        if not isinstance(data, Mapping) or data.get("type") != "Features":
            raise InputError("the backbone Vectors needs data.dataset=dict(type='Features', files=[...])")
        if not data.get("files"):
            raise InputError("Features needs at least one file: data.dataset.files=[FILE]")
        cfg.model.backbone.spaces = [read_space(entry).rows.shape[1] for entry in data["files"]]


def _check_spaces(model: ClusterModel, dataset: ImageDataset) -> None:
    """Check that a model for vectors, and no other, gets vectors, of the width that it is for."""
    if dataset.spaces and model.head.needs_images is not None:
        raise InputError(
            f"{type(model.head).__name__} needs images, since {model.head.needs_images}, but data.dataset has vectors "
            f"{dataset.origin}: train it on the pictures, with a backbone for them"
        )
    ours = model.backbone.spaces if isinstance(model.backbone, Vectors) else ()
    if ours != dataset.spaces:
        given = f"vectors of {' + '.join(map(str, dataset.spaces))} numbers" if dataset.spaces else "images"
        taken, remedy = "images", "model.backbone=dict(type='Vectors')"
        if ours:
            taken, remedy = (
                f"those of {' + '.join(map(str, ours))}",
                "the files that it was trained on, or as wide ones",
            )
        raise InputError(f"the data set has {given} ({dataset.origin}), but the backbone takes {taken}: take {remedy}")


def _write_skipped(data: ClusterData, folder: Path) -> None:
    tables = [write_skipped(data.train.dataset, folder)]
    if data.eval is not data.train:
        tables.append(write_skipped(data.eval.dataset, folder, "skipped_eval.csv"))
    if told := " and ".join(map(str, filter(None, tables))):
        print_log(f"all files that were skipped, and why: {told}", "current")


def train(cfg: Config, hooks: Sequence[Hook] = ()) -> dict[str, float]:
    """Train by a prepared config; leave the clusters in the work directory.

    Args:
        cfg: of :func:`prepare_config`.
        hooks: more of them than the config names.

    Returns:
        The last evaluation, ``epochs``, and ``images_seen``: views of images that the training put through the network.

    Raises:
        InputError: for a part that is configured wrongly, data that cannot be read, another command that is at work in
            the folder, or a training to resume that was of something else.
    """
    check_parts(cfg)  # a wrong config leaves no folder
    folder, first = Path(cfg.work_dir), is_first_rank(cfg.get("launcher", "none"))
    with working(folder) if first else contextlib.nullcontext():
        modules = own_modules(cfg.get("custom_imports")) if first else {}
        earlier = of_another_run(cfg) if first else []
        earlier += copies_in(folder, modules) if earlier else []
        runner = build_runner(cfg)
        check_monitored(cfg, labelled=runner.train_loop.data.eval.dataset.targets is not None)
        set_aside(folder, earlier)
        keep_modules(folder, modules)
        for hook in hooks:
            runner.register_hook(hook)
        runner.train()
        costs = {"epochs": float(runner.epoch), "images_seen": float(runner.train_loop.images_seen)}
        return {**finish(runner, folder, runner.epoch), **costs}


def evaluate(cfg: Config, checkpoint: str, out: str | Path | None = None) -> dict[str, float]:
    """Evaluate a checkpoint; return the metrics, and write the clusters to ``out`` if that is given."""
    cfg.load_from, cfg.resume = checkpoint, False
    if not cfg.get("val_evaluator"):
        raise InputError("the config has no val_evaluator: nothing to test")
    if out is not None:
        writable(out)
    runner = build_runner(cfg)
    runner.val()
    return finish(runner, None if out is None else Path(out))


def extract_features(
    cfg: Config,
    checkpoint: str | None,
    out: str | Path | None = None,
    *,
    split: str = "train",
    drop_neck: bool = False,
) -> Embeddings:
    """Return the features of all images of a data set, seen through the view ``extract``; the ranks share the work.

    Args:
        cfg: a prepared config.
        checkpoint: of the model that the config describes; ``None``: the model as it starts, with the weights that its
            backbone names.
        out: file to write them to, ``.npz`` or ``.parquet``. Until it is there, what is done lies in a folder of its
            name with ``.part`` behind it, and the same command goes on from that.
        split: ``"train"`` for ``data.dataset``, or ``"eval"`` for ``data.eval_dataset``.
        drop_neck: the backbone's output, averaged over the image, instead of the neck's. It is the same where the neck
            only averages; ODC and others drop a neck with layers of its own downstream.

    Raises:
        InputError: the checkpoint does not fit, ``out`` has another ending or cannot be written, the data set is not
            configured, or a part of the config is wrong.
    """
    if out is not None:
        check_ending(out)
        writable_file(out)
    if split == "eval" and not cfg.data.get("eval_dataset"):
        raise InputError("the config has no data.eval_dataset to extract: set it, or leave out --split eval")
    runner, data = load_runner(cfg, checkpoint)
    try:
        part = None if out is None else Path(f"{out}.part")
        embeddings = embed(runner, data, data.eval if split == "eval" else data.train, drop_neck, part)
    finally:
        data.close()
    if out is not None and runner.rank == 0:
        embeddings.save(out)
        shutil.rmtree(f"{out}.part", ignore_errors=True)
        N, D = embeddings.features.shape
        print_log(f"features of {N:,} images, {D} each: {out}", "current")
    return embeddings


def load_runner(cfg: Config, checkpoint: str | None) -> tuple[Runner, ClusterData]:
    """Return a runner whose model is loaded, or without a checkpoint initialised, and its data.

    Nothing that it does is for the visualizers.
    """
    cfg.load_from, cfg.resume, cfg.visualizer = checkpoint, False, None
    runner = build_runner(cfg)
    if checkpoint is None:
        unwrap(runner.model).init_weights()
    runner.load_or_resume()
    return runner, runner.train_loop.data


def embed(runner: Runner, data: ClusterData, source: Source, drop_neck: bool, part: Path | None = None) -> Embeddings:
    """Return the features of one data set, of all ranks; what is done meanwhile lies in the folder ``part``.

    Without one, or with a view that no folder can be of, an extraction that is cut off begins anew.
    """
    model, comm, batch_size = unwrap(runner.model), get_comm(), data.extract_batch_size
    neck, view = model.neck, source.views[EXTRACT_VIEW]
    try:
        if drop_neck:
            model.neck = AvgPool(model.backbone.out_channels)
        if part is None or view.random is not None or view.description is None:
            table = extract(model, source, comm, batch_size=batch_size)
            index, features = comm.gather(table.index).cpu(), comm.gather(table.features).cpu()
        else:
            space = read_folder(stored_features(model, source, part, comm, batch_size=batch_size))
            index, features = torch.arange(len(space.paths)), torch.from_numpy(np.array(space.rows))
            comm.sum(torch.zeros(1, device=next(model.parameters()).device))  # all have read it
        after = type(model.neck).__name__
    finally:
        model.neck = neck
    of = {"config": str(runner.cfg.filename), "checkpoint": str(runner.cfg.load_from)}
    meta = {
        **({"source": str(runner.cfg["_source"])} if "_source" in runner.cfg else of),
        "view": EXTRACT_VIEW,
        "after": f"{type(model.backbone).__name__} and {after}",
    }
    dataset = source.dataset
    return Embeddings(index, tuple(dataset.paths), features, dataset.fingerprint, meta)


def finish(runner: Runner, out: Path | None, epochs: int | None = None) -> dict[str, float]:
    """Return the last evaluation of a runner, after so many epochs, and write its results to ``out`` if that is given.

    Where the loop found them there, from an earlier run, they stay as they are.
    """
    loop = runner.val_loop
    if not isinstance(loop, ClusterValLoop):
        return {}
    if out is not None and runner.rank == 0 and loop.evaluation is not None:
        *pictured, _ = write_results(
            loop.data.eval.dataset,
            loop.evaluation,
            loop.values,
            out,
            epochs=epochs,
            precision=runner.precision,
            names=unwrap(runner.model).labels.names,
        )
        if pictured:
            files = " and ".join(map(str, pictured))
            told = sizes_told(loop.evaluation.clusters, loop.evaluation.scores.shape[1])
            print_log(f"clusters of {len(loop.evaluation.scores):,} images: {files}; {told}", "current")
        _write_skipped(loop.data, out)
    return dict(loop.values)
