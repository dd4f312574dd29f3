"""From a config to a trained model and its clusters: what the command line calls, for use from Python too."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine import Config
from mmengine.logging import print_log

from odc.compat import Runner, load_config, load_plain, write_tensors
from odc.engine.data import ClusterData
from odc.engine.loops import ClusterTrainLoop, ClusterValLoop
from odc.engine.optim import check_clipping, check_optimizer
from odc.errors import InputError, nearest
from odc.evaluation.gallery import write_clusters
from odc.models.convert import MARK, describe, extract, rename, suggest
from odc.registry import (
    HOOKS,
    METRICS,
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    VISUALIZERS,
    check_arguments,
    resolve,
)

DEFAULT_HOOKS = ("checkpoint", "logger", "param_scheduler", "runtime_info", "sampler_seed", "timer")
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


def check_parts(cfg: Config) -> None:
    """Check names, options and simple kinds of all that a runner is built from, before anything is built.

    Raises:
        InputError: naming the part and, for a misspelt name, the nearest known one.
    """
    check_arguments(ClusterData, cfg.data, "data")
    resolve(MODELS, cfg.model)
    check_arguments(ClusterTrainLoop, cfg.train_cfg, "train_cfg", given=("runner", "dataloader"))
    _check_mapping("optim_wrapper", cfg.optim_wrapper)
    wrapper = dict(cfg.optim_wrapper)
    paramwise = wrapper.pop("paramwise_cfg", None)
    constructor = wrapper.pop("constructor", "DefaultOptimWrapperConstructor")
    resolve(
        OPTIM_WRAPPER_CONSTRUCTORS, {"type": constructor}, optim_wrapper_cfg=cfg.optim_wrapper, paramwise_cfg=paramwise
    )
    resolve(OPTIM_WRAPPERS, {"type": "OptimWrapper", **wrapper})
    check_optimizer(wrapper["optimizer"])
    if wrapper.get("clip_grad"):
        check_clipping(wrapper["clip_grad"])
    for name, hook in _check_mapping("default_hooks", cfg.get("default_hooks") or {}).items():
        if name not in DEFAULT_HOOKS and "type" not in (hook or {"type": None}):
            raise InputError(f"default_hooks has no '{name}'{nearest(name, DEFAULT_HOOKS)}")
        if isinstance(hook, Mapping) and "type" in hook:
            resolve(HOOKS, {k: v for k, v in hook.items() if k != "priority"})
    for hook in cfg.get("custom_hooks") or ():
        resolve(HOOKS, {k: v for k, v in hook.items() if k != "priority"} if isinstance(hook, Mapping) else hook)
    for metric in cfg.get("val_evaluator") or ():
        resolve(METRICS, metric)
    if cfg.get("visualizer"):
        resolve(VISUALIZERS, cfg.visualizer)
    for name in cfg.randomness:
        if name not in ("seed", "diff_rank_seed", "deterministic"):
            raise InputError(
                f"randomness has no option '{name}'{nearest(name, ('seed', 'diff_rank_seed', 'deterministic'))}"
            )
    level = cfg.get("log_level", "INFO")
    if not isinstance(level, int) and not isinstance(logging.getLevelName(level), int):
        raise InputError(f"no log_level '{level}'{nearest(str(level), ('DEBUG', 'INFO', 'WARNING', 'ERROR'))}")


def _check_mapping(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise InputError(f"{name} is configured by a dict, not by {value!r}")
    return value


def writable(folder: str | Path) -> Path:
    """Return the folder, made where there is none.

    Raises:
        InputError: it cannot be made or written to.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to the folder {path}: permission denied")
    return path


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
    _check_mapping("randomness", cfg.get("randomness", {}))
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
    check_parts(cfg)
    writable(cfg.work_dir)
    val = dict(type="ClusterValLoop") if cfg.get("val_evaluator") else None
    runner = Runner(
        model=cfg.model,
        work_dir=cfg.work_dir,
        train_dataloader={},  # both follow: what the data has to say belongs into the log of this run
        train_cfg=dict(type="ClusterTrainLoop", **cfg.train_cfg),
        optim_wrapper=cfg.optim_wrapper,
        val_dataloader={} if val else None,
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
    data = ClusterData(**cfg.data)
    runner.use_data(data, data if val else None)
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
    if out is not None:
        writable(out)
    runner = build_runner(cfg)
    runner.val()
    return finish(runner, None if out is None else Path(out))


def convert(src: str | Path, dst: str | Path, *, layout: str | None = None, to: str = "odc") -> str:
    """Write the backbone of a checkpoint by other names.

    Args:
        src: checkpoint of a layout in :data:`odc.models.convert.LAYOUTS`, read without running code from it.
        dst: file to write, ``.pth`` or ``.safetensors``.
        layout: of ``src``; by default the one that its names show.
        to: ``"odc"``, for ``model.pretrained`` of a config, ``"torchvision"`` or ``"timm"``.

    Returns:
        What was recognised, taken, left and written, in two lines.

    Raises:
        InputError: ``src`` cannot be read safely or is of no known layout, ``to`` has no names for its network, or
            ``dst`` has another ending, is ``src``, or cannot be written.
    """
    path = Path(dst)
    if path.suffix not in (".pth", ".safetensors"):
        raise InputError(f"'{dst}' ends in neither .pth nor .safetensors: the ending says which of the two to write")
    if path.is_dir() or (path.exists() and Path(src).exists() and path.samefile(src)):
        what = "a folder" if path.is_dir() else "the checkpoint itself"
        raise InputError(f"'{dst}' is {what}: write to another file")
    source = f"checkpoint '{src}'"
    state = extract(load_plain(src), layout, source)
    tensors = rename(state, to, source)
    writable(path.parent)
    nested = to == "odc" and path.suffix == ".pth"
    write_tensors(path, {"state_dict": tensors, "meta": {MARK: describe(state.tensors)}} if nested else tensors)
    backbone = suggest(state.tensors)
    use = f"; use it with model.pretrained='{dst}'" + (f", model.backbone={backbone}" if backbone else "")
    return f"{src}: {state}\n{dst}: {len(tensors)} tensors by the names of {to}{use if to == 'odc' else ''}"


def finish(runner: Runner, out: Path | None) -> dict[str, float]:
    """Return the last evaluation of a runner, and write its clusters to ``out`` if that is given."""
    loop = runner.val_loop
    if not isinstance(loop, ClusterValLoop) or loop.evaluation is None:
        return {}
    if out is not None and runner.rank == 0 and loop.evaluation.scores.shape[1]:
        table, picture = write_clusters(loop.data.eval.dataset, loop.evaluation, out)
        print_log(f"clusters of {len(loop.evaluation.scores):,} images: {table} and {picture}", "current")
        (out / "metrics.json").write_text(json.dumps(loop.values, indent=2) + "\n", encoding="utf-8")
    return dict(loop.values)
