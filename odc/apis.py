"""From a config to a trained model and its clusters: what the command line calls, for use from Python too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmengine import Config
from mmengine.logging import print_log

from odc.compat import Runner, load_config
from odc.engine.data import ClusterData
from odc.engine.loops import ClusterValLoop
from odc.errors import InputError, nearest
from odc.evaluation.gallery import write_clusters
from odc.registry import check_arguments

KNOWN_KEYS = {
    "auto_scale_lr",
    "custom_hooks",
    "custom_imports",
    "data",
    "default_hooks",
    "default_scope",
    "env_cfg",
    "experiment_name",
    "launcher",
    "load_from",
    "load_partial",
    "log_level",
    "log_processor",
    "model",
    "optim_wrapper",
    "randomness",
    "resume",
    "train_cfg",
    "val_evaluator",
    "visualizer",
    "work_dir",
}


def check_config(cfg: Config) -> None:
    """Check the top-level keys of a config; helper variables start with an underscore.

    Raises:
        InputError: for an unknown key, naming the nearest known one, or a key that lacks.
    """
    for key in cfg:
        if key not in KNOWN_KEYS and not key.startswith("_"):
            raise InputError(f"{cfg.filename or 'the config'}: unknown key '{key}'{nearest(key, KNOWN_KEYS)}")
    for key in ("model", "data", "train_cfg", "optim_wrapper"):
        if key not in cfg:
            raise InputError(f"{cfg.filename or 'the config'}: the key '{key}' lacks")


def prepare_config(
    config: str | Path,
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
        config: path of the config.
        work_dir: where everything of the run goes; by default ``work_dirs/<name of the config>``.
        cfg_options: ``{"dotted.key": value}`` to change.
        seed: ``randomness.seed``; by default the config's.
        amp: bfloat16 autocast.
        strict: unreadable images are an error instead of being skipped.
        launcher: ``"none"``, ``"pytorch"``, ``"slurm"`` or ``"mpi"``.

    Raises:
        InputError: for a config that does not exist or has unknown keys.
    """
    cfg = load_config(str(config), cfg_options)
    check_config(cfg)
    if work_dir is not None:
        cfg.work_dir = str(work_dir)
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs") / Path(config).stem)
    if seed is not None:
        cfg.setdefault("randomness", {})["seed"] = seed
    if cfg.get("randomness", {}).get("seed") is None:
        raise InputError(f"{config}: randomness.seed is not set: a run without a seed cannot be repeated")
    if amp:
        cfg.optim_wrapper.type = "Bf16OptimWrapper"
    if strict:
        cfg.data.dataset.strict = True
    cfg.launcher = launcher
    return cfg


def build_runner(cfg: Config) -> Runner:
    """Return the runner of a prepared config.

    Raises:
        InputError: for a part that is configured wrongly, or data that cannot be read.
    """
    check_arguments(ClusterData, cfg.data, "data")
    data = ClusterData(**cfg.data)
    val = dict(type="ClusterValLoop") if cfg.get("val_evaluator") else None
    runner = Runner(
        model=cfg.model,
        work_dir=cfg.work_dir,
        train_dataloader=data,
        train_cfg=dict(type="ClusterTrainLoop", **cfg.train_cfg),
        optim_wrapper=cfg.optim_wrapper,
        val_dataloader=data if val else None,
        val_cfg=val,
        val_evaluator=cfg.val_evaluator if val else None,
        auto_scale_lr=cfg.get("auto_scale_lr"),
        default_hooks=cfg.get("default_hooks"),
        custom_hooks=cfg.get("custom_hooks"),
        load_from=cfg.get("load_from"),
        resume=cfg.get("resume", False),
        launcher=cfg.get("launcher", "none"),
        env_cfg=cfg.get("env_cfg", dict(dist_cfg=dict(backend="nccl"))),
        log_processor=cfg.get("log_processor"),
        log_level=cfg.get("log_level", "INFO"),
        visualizer=cfg.get("visualizer"),
        default_scope="odc",
        randomness=cfg.randomness,
        experiment_name=cfg.get("experiment_name"),
        cfg=cfg,
    )
    print_log(data.train.dataset.describe(), "current")
    if data.eval is not data.train:
        print_log(f"evaluated on {data.eval.dataset.describe()}", "current")
    return runner


def train(cfg: Config) -> dict[str, float]:
    """Train by a prepared config; return the last evaluation, and leave the clusters in the work directory."""
    runner = build_runner(cfg)
    runner.train()
    return finish(runner, Path(cfg.work_dir))


def evaluate(cfg: Config, checkpoint: str, out: str | Path | None = None) -> dict[str, float]:
    """Evaluate a checkpoint; return the metrics, and write the clusters to ``out`` if that is given."""
    cfg.load_from, cfg.resume = checkpoint, False
    if not cfg.get("val_evaluator"):
        raise InputError("the config has no val_evaluator: nothing to test")
    runner = build_runner(cfg)
    runner.val()
    return finish(runner, None if out is None else Path(out))


def finish(runner: Runner, out: Path | None) -> dict[str, float]:
    """Return the last evaluation of a runner, and write its clusters to ``out`` if that is given."""
    loop = runner.val_loop
    if not isinstance(loop, ClusterValLoop) or loop.evaluation is None:
        return {}
    if out is not None and runner.rank == 0:
        table, picture = write_clusters(loop.data.eval.dataset, loop.evaluation, out)
        print_log(f"clusters of {len(loop.evaluation.scores):,} images: {table} and {picture}", "current")
        (out / "metrics.json").write_text(json.dumps(loop.values, indent=2) + "\n", encoding="utf-8")
    return dict(loop.values)
