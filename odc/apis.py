"""From a config to a trained model and its clusters: what the command line calls, for use from Python too."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import LOG_PROCESSORS
from torch import Tensor

from odc.checkpoints import load_plain, write_tensors
from odc.config import at, override, parse_config
from odc.data.datasets import ImageDataset
from odc.data.embeddings import Embeddings, check_ending
from odc.engine.comm import get_comm
from odc.engine.compiled import check_compile, compile_backbone
from odc.engine.data import EXTRACT_VIEW, ClusterData, Source
from odc.engine.extract import extract as extract_table
from odc.engine.loops import ClusterTrainLoop, ClusterValLoop, unwrap
from odc.engine.optim import check_clipping, check_optimizer
from odc.engine.precision import check_precision
from odc.engine.processes import check_environment, check_wrapper
from odc.engine.ranks import is_first_rank
from odc.engine.resume import SameRunHook
from odc.errors import InputError, nearest
from odc.evaluation.gallery import sizes_told, write_skipped
from odc.evaluation.probes import HELD_OUT, ProbeReport, run_probes, stratified_split
from odc.evaluation.results import write_results
from odc.files import alone, write_text
from odc.models.cluster_model import ClusterModel
from odc.models.convert import MARK, describe, extract, rename, suggest
from odc.models.necks import AvgPool
from odc.refused import REFUSED_KEYS
from odc.registry import (
    BACKBONES,
    DATASETS,
    HEADS,
    HOOKS,
    METRICS,
    MODELS,
    NECKS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    VISBACKENDS,
    VISUALIZERS,
    build,
    check_arguments,
    resolve,
)
from odc.runner import Runner
from odc.structures import make_generator

# What a training leaves in its work directory beside its config: checkpoints, logs, results.
_OF_A_RUN = re.compile(
    r"((epoch|iter)_\d+|best_.+)\.pth|last_checkpoint|\d{8}_\d{6}(_\d+)?"
    r"|\.results\.json|metrics\.json|clusters\.(csv|png)"
)
DEFAULT_HOOKS = ("checkpoint", "logger", "param_scheduler", "runtime_info", "sampler_seed", "timer")
KNOWN_KEYS = {
    "auto_scale_lr",
    "compile",
    "custom_hooks",
    "custom_imports",
    "data",
    "default_hooks",
    "default_scope",
    "env_cfg",
    "find_unused_parameters",
    "experiment_name",
    "launcher",
    "load_from",
    "load_partial",
    "log_level",
    "log_processor",
    "model",
    "model_wrapper_cfg",
    "optim_wrapper",
    "precision",
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
    for key, instead in REFUSED_KEYS.items():
        if at(cfg, key) not in (None, False, {}, [], ()):
            raise InputError(f"{cfg.filename or 'the config'}: '{key}' is not for this training: {instead}")
    for key in cfg:
        if key not in KNOWN_KEYS and key not in REFUSED_KEYS and not key.startswith("_"):
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
    kind, parts = resolve(MODELS, cfg.model)
    if isinstance(kind, type) and issubclass(kind, ClusterModel):
        resolve(BACKBONES, parts["backbone"])
        resolve(NECKS, parts.get("neck") or {"type": "AvgPool"}, in_channels=0)
        resolve(HEADS, parts["head"], in_channels=0)
    given = ("runner", "dataloader", "accumulative_counts")
    check_arguments(ClusterTrainLoop, cfg.train_cfg, "train_cfg", given=given)
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
    _check_monitored(cfg, labelled=True)
    if cfg.get("visualizer"):
        _check_visualizer(cfg.visualizer)
    check_wrapper(_check_mapping("model_wrapper_cfg", cfg.get("model_wrapper_cfg") or {}))
    check_environment(_check_mapping("env_cfg", cfg.get("env_cfg") or {}))
    _check_scaling(_check_mapping("auto_scale_lr", cfg.get("auto_scale_lr") or {}))
    _build_for_check(LOG_PROCESSORS, {"type": "LogProcessor", **(cfg.get("log_processor") or {})})
    check_compile(cfg.get("compile"))
    check_precision(cfg.get("precision"))
    check_arguments(Runner.set_randomness, cfg.randomness, "randomness", given=("self",))
    level = cfg.get("log_level", "INFO")
    if not isinstance(level, int) and not isinstance(logging.getLevelName(level), int):
        raise InputError(f"no log_level '{level}'{nearest(str(level), ('DEBUG', 'INFO', 'WARNING', 'ERROR'))}")


# mmengine's visualizer back ends that need a package which this one does not require.
PACKAGES = {
    "AimVisBackend": "aim",
    "ClearMLVisBackend": "clearml",
    "DVCLiveVisBackend": "dvclive",
    "MLflowVisBackend": "mlflow",
    "NeptuneVisBackend": "neptune",
    "TensorboardVisBackend": "tensorboard",
    "WandbVisBackend": "wandb",
}


def _check_visualizer(cfg: Any) -> None:
    resolve(VISUALIZERS, cfg)
    for backend in cfg.get("vis_backends") or ():
        kind, _ = resolve(VISBACKENDS, backend, save_dir=".")
        package = PACKAGES.get(kind.__name__)
        if package is not None and importlib.util.find_spec(package) is None:
            raise InputError(f"{kind.__name__} needs the package {package}: pip install {package}")


def _check_monitored(cfg: Config, labelled: bool) -> None:
    """Check that the metrics which hooks wait for are measured, as far as the metrics say what they measure."""
    hooks = [*(cfg.get("default_hooks") or {}).values(), *(cfg.get("custom_hooks") or ())]
    wanted: list[tuple[str, str]] = []
    for hook in hooks:
        if isinstance(hook, Mapping) and hook.get("save_best"):
            names = [hook["save_best"]] if isinstance(hook["save_best"], str) else hook["save_best"]
            wanted += [(f"{hook['type']}'s save_best", name) for name in names]
        if isinstance(hook, Mapping) and hook.get("monitor"):
            wanted.append((f"{hook['type']}'s monitor", hook["monitor"]))
    if not wanted:
        return
    kinds = [resolve(METRICS, metric)[0] for metric in cfg.get("val_evaluator") or ()]
    if not kinds:
        raise InputError(
            f"{wanted[0][0]} is '{wanted[0][1]}', but nothing is measured: the config has no val_evaluator"
        )
    if not all(hasattr(kind, "names") for kind in kinds):
        return
    known = [name for kind in kinds for name in kind.names(labelled)]
    for where, name in wanted:
        if name != "auto" and name not in known:
            without = "" if labelled else " of images without labels"
            raise InputError(f"{where}: val_evaluator does not measure '{name}'{without}{nearest(name, known)}")


def _check_scaling(cfg: Mapping[str, Any]) -> None:
    known = ("enable", "base_batch_size")
    for name in cfg:
        if name not in known:
            raise InputError(f"auto_scale_lr has no option '{name}'{nearest(name, known)}")
    base = cfg.get("base_batch_size")
    if cfg.get("enable") and (not isinstance(base, int) or base < 1):
        raise InputError(f"auto_scale_lr.base_batch_size is the rows that the learning rate is for, not {base}")


def _build_for_check(registry: Any, cfg: Mapping[str, Any]) -> None:
    """Build what is cheap, to hear what it has to say of its options."""
    target, arguments = resolve(registry, cfg)
    try:
        target(**arguments)
    except (TypeError, ValueError, AssertionError, KeyError) as error:
        raise InputError(f"{registry.name} '{target.__name__}' does not take {arguments}: {error}") from error


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


def check_seed(seed: Any, where: str) -> None:
    """Check a seed, before anything runs.

    Raises:
        InputError: it is no whole number of 32 bits, which is what NumPy's generator takes.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise InputError(f"{where} is a whole number from 0 to {2**32 - 1}, not {seed!r}")


def writable_file(file: str | Path) -> Path:
    """Return the path of a file to write, its folder made where there is none.

    Raises:
        InputError: it is a folder, or its folder cannot be made or written to.
    """
    path = Path(file)
    if path.is_dir():
        raise InputError(f"'{file}' is a folder: give a file to write")
    writable(path.parent)
    return path


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
        InputError: for a config that does not exist or has unknown keys, and a seed out of range.
    """
    cfg = override(config if isinstance(config, Config) else parse_config(config), cfg_options)
    check_config(cfg)
    if work_dir is not None:
        cfg.work_dir = str(work_dir)
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs") / Path(cfg.filename).stem)
    if isinstance(cfg.get("val_evaluator"), Mapping):
        cfg.val_evaluator = [cfg.val_evaluator]
    _check_mapping("randomness", cfg.get("randomness", {}))
    if seed is not None:
        cfg.setdefault("randomness", {})["seed"] = seed
    if cfg.get("randomness", {}).get("seed") is None:
        raise InputError(f"{cfg.filename}: randomness.seed is not set: a run without a seed cannot be repeated")
    check_seed(cfg.randomness.seed, f"{cfg.filename}: randomness.seed" if seed is None else "the seed")
    if amp:
        cfg.precision = "bfloat16"
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
    optim_wrapper = cfg.optim_wrapper.copy()
    counts = optim_wrapper.pop("accumulative_counts", 1)
    runner = Runner(
        model=cfg.model,
        work_dir=cfg.work_dir,
        train_dataloader={},  # both follow: what the data has to say belongs into the log of this run
        train_cfg=dict(type="ClusterTrainLoop", accumulative_counts=counts, **cfg.train_cfg),
        optim_wrapper=optim_wrapper,  # the loop accumulates: mmengine's wrapper knows no position to resume
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
    runner.register_hook(SameRunHook())
    options = check_compile(cfg.get("compile"))
    if options is not None:
        compile_backbone(unwrap(runner.model), options)
    data = ClusterData(**cfg.data)
    runner.use_data(data, data if val else None)
    print_log(data.train.dataset.describe(), "current")
    if data.eval is not data.train:
        print_log(f"evaluated on {data.eval.dataset.describe()}", "current")
    if runner.rank == 0:
        _write_skipped(data, Path(cfg.work_dir))
    return runner


def _write_skipped(data: ClusterData, folder: Path) -> None:
    tables = [write_skipped(data.train.dataset, folder)]
    if data.eval is not data.train:
        tables.append(write_skipped(data.eval.dataset, folder, "skipped_eval.csv"))
    told = " and ".join(str(table) for table in tables if table is not None)
    if told:
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
        earlier = Earlier(cfg) if first else None
        runner = build_runner(cfg)
        _check_monitored(cfg, labelled=runner.train_loop.data.eval.dataset.targets is not None)
        if earlier is not None:
            earlier.set_aside()
        for hook in hooks:
            runner.register_hook(hook)
        runner.train()
        costs = {"epochs": float(runner.epoch), "images_seen": float(runner.train_loop.images_seen)}
        return {**finish(runner, folder, runner.epoch), **costs}


@contextlib.contextmanager
def working(folder: str | Path) -> Iterator[None]:
    """Keep other commands out of a folder, which is made where there is none.

    Raises:
        InputError: another command is at work there, or it cannot be written to.
    """
    with alone(writable(folder)) as doubt:
        if doubt:
            print_log(doubt, "current", logging.WARNING)
        yield


class Earlier:
    """What another training has left in the work directory of one that does not go on with it.

    Beside the new run's files it would be taken for a part of that run, so it goes into a folder of its own there. A
    folder without checkpoints has nothing to keep.

    Args:
        cfg: of the new training, before it writes anything.

    Raises:
        InputError: the new training starts from one of these files.
    """

    def __init__(self, cfg: Config) -> None:
        self.folder = Path(cfg.work_dir)
        names = [path.name for path in self.folder.iterdir() if _OF_A_RUN.fullmatch(path.name)]
        goes_on = cfg.get("resume") and (not cfg.get("load_from") or self._holds(cfg.load_from))
        self.names = names if any(name.endswith(".pth") for name in names) and not goes_on else []
        written = self.folder / Path(cfg.filename or "").name
        if self.names and written.is_file() and not written.samefile(cfg.filename):
            self.names.append(written.name)
        starts = {
            "load_from": cfg.get("load_from"),
            "model.pretrained": cfg.model.get("pretrained"),
            "train_cfg.label_file": cfg.train_cfg.get("label_file"),
        }
        for name, file in starts.items():
            if self.names and file is not None and self._holds(file):
                raise InputError(
                    f"{name}='{file}' is of the training that {self.folder} holds: choose another --work-dir"
                )

    def _holds(self, file: str) -> bool:
        return Path(file).resolve().parent == self.folder.resolve()

    def set_aside(self) -> None:
        """Move it, where there is any, and say so."""
        if not self.names:
            return
        number = 1
        while (place := self.folder / f"earlier-{number}").exists():
            number += 1
        place.mkdir()
        for name in self.names:
            (self.folder / name).rename(place / name)
        print_log(
            f"another training was in {self.folder} and is now in {place}: --resume would go on with it, another "
            "--work-dir leave it where it is",
            "current",
            logging.WARNING,
        )


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


def extract_features(
    cfg: Config,
    checkpoint: str,
    out: str | Path | None = None,
    *,
    split: str = "train",
    drop_neck: bool = False,
) -> Embeddings:
    """Return the features of all images of a data set, seen through the view ``extract``; the ranks share the work.

    Args:
        cfg: a prepared config.
        checkpoint: of the model that the config describes.
        out: file to write them to, ``.npz`` or ``.parquet``.
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
        raise InputError("the config has no data.eval_dataset to extract: set it, or take the split train")
    runner, data = load_runner(cfg, checkpoint)
    try:
        embeddings = _embed(runner, data, data.eval if split == "eval" else data.train, drop_neck)
    finally:
        data.close()
    if out is not None and runner.rank == 0:
        embeddings.save(out)
        N, D = embeddings.features.shape
        print_log(f"features of {N:,} images, {D} each: {out}", "current")
    return embeddings


def probe(
    cfg: Config,
    checkpoint: str | None = None,
    *,
    features: str | Path | None = None,
    test_features: str | Path | None = None,
    drop_neck: bool = False,
    out: str | Path | None = None,
) -> ProbeReport:
    """Probe features by kNN and by linear classifiers with all and with few labels; see :mod:`odc.evaluation.probes`.

    Probes train on ``data.dataset`` and are tested on ``data.eval_dataset``. Where that is not set, or is the same
    images, a fifth of ``data.dataset`` is held out for the test: of every class, drawn by the seed.

    Args:
        cfg: a prepared config.
        checkpoint: model to extract the features with; or else
        features: file of the features of ``data.dataset``, as :func:`extract_features` writes it, and
        test_features: file of those of ``data.eval_dataset``.
        drop_neck: see :func:`extract_features`; for a checkpoint only.
        out: JSON file to write.

    Raises:
        InputError: neither or both of ``checkpoint`` and ``features``, features of another data set, no labels, or
            as :func:`extract_features`.
    """
    if (checkpoint is None) == (features is None):
        raise InputError("probe either a checkpoint or the features in a file (--features): give one of the two")
    if checkpoint is not None and test_features is not None:
        raise InputError("--test-features goes with --features: a checkpoint's test features are extracted")
    if features is not None and drop_neck:
        raise InputError("--drop-neck goes with a checkpoint: the features in a file are what odc extract made them")
    if out is not None:
        writable_file(out)
    if checkpoint is not None:
        runner, data = load_runner(cfg, checkpoint)
        train, test = data.train.dataset, data.eval.dataset
        separate = _check_labels(train, test)
        try:
            tables = [_embed(runner, data, s, drop_neck) for s in (data.train, data.eval)[: 1 + separate]]
        finally:
            data.close()
    else:
        check_arguments(ClusterData, cfg.data, "data")
        train = test = build(DATASETS, cfg.data.dataset)
        if cfg.data.get("eval_dataset"):
            test = build(DATASETS, cfg.data.eval_dataset)
        separate = _check_labels(train, test)
        if separate and test_features is None:
            raise InputError(
                "the config has a data.eval_dataset: give its features too (--test-features, odc extract --split "
                "eval), or set data.eval_dataset=None to hold out a part of data.dataset"
            )
        if not separate and test_features is not None:
            raise InputError(f"the config has no data.eval_dataset that '{test_features}' could be of: set it")
        tables = [Embeddings.load(file) for file in (features, test_features) if file is not None]
    x, y = tables[0].for_dataset(train), _targets(train)
    rng = make_generator(cfg.randomness.seed, "probe")
    if separate:
        queries, wanted = tables[1].for_dataset(test), _targets(test)
        for name, value in tables[0].meta.items():
            if name != "config" and value != tables[1].meta.get(name):
                raise InputError(
                    f"the {name} of the features in '{features}' is '{value}', but in '{test_features}' it is "
                    f"'{tables[1].meta.get(name)}': extract both in the same way"
                )
        told = f"{int((wanted >= 0).sum()):,} images {test.origin} (data.eval_dataset), fingerprint {test.fingerprint}"
    else:
        kept, held = stratified_split(y, HELD_OUT, rng)
        x, y, queries, wanted = x[kept], y[kept], x[held], y[held]
        told = (
            f"the other {len(held):,}, {HELD_OUT:.0%} of every class, drawn by seed {cfg.randomness.seed} "
            "(no data.eval_dataset of other images)"
        )
    meta = {"checkpoint": "an unknown checkpoint", "after": "unknown layers", **tables[0].meta}
    source = meta["checkpoint"] if features is None else f"{features} (of {meta['checkpoint']})"
    provenance = {
        "features": f"{source}: {x.shape[1]} an image, after {meta['after']}",
        "config": str(cfg.filename),
        "training": f"{int((y >= 0).sum()):,} images {train.origin}, fingerprint {train.fingerprint}",
        "test": told,
    }
    report = ProbeReport(provenance, run_probes(x, y, queries, wanted, generator=rng))
    if out is not None:
        write_text(out, report.to_json())
    return report


def load_runner(cfg: Config, checkpoint: str) -> tuple[Runner, ClusterData]:
    """Return a runner whose model is loaded, and its data; nothing that it does is for the visualizers."""
    cfg.load_from, cfg.resume, cfg.visualizer = checkpoint, False, None
    runner = build_runner(cfg)
    runner.load_or_resume()
    return runner, runner.train_loop.data


def _embed(runner: Runner, data: ClusterData, source: Source, drop_neck: bool) -> Embeddings:
    """Return the features of one data set, gathered from all ranks."""
    model, comm = unwrap(runner.model), get_comm()
    neck = model.neck
    try:
        if drop_neck:
            model.neck = AvgPool(model.backbone.out_channels)
        table = extract_table(model, source, comm, batch_size=data.extract_batch_size)
        after = type(model.neck).__name__
    finally:
        model.neck = neck
    meta = {
        "config": str(runner.cfg.filename),
        "checkpoint": str(runner.cfg.load_from),
        "view": EXTRACT_VIEW,
        "after": f"{type(model.backbone).__name__} and {after}",
    }
    dataset = source.dataset
    index, features = comm.gather(table.index).cpu(), comm.gather(table.features).cpu()
    return Embeddings(index, tuple(dataset.paths), features, dataset.fingerprint, meta)


def _check_labels(train: ImageDataset, test: ImageDataset) -> bool:
    """Check that two data sets have labels of the same classes; return whether they are different images."""
    for key, dataset in (("dataset", train), ("eval_dataset", test)):
        if dataset.targets is None:
            raise InputError(
                f"the {len(dataset):,} images {dataset.origin} (data.{key}) have no labels, which a probe needs: put "
                "the images of each class into a folder of their own, or take ImageList or ImageCSV"
            )
    if train.classes != test.classes:
        ours, theirs = set(train.classes or ()), set(test.classes or ())
        odd = sorted(ours ^ theirs)
        raise InputError(
            f"data.dataset has {len(ours)} classes and data.eval_dataset {len(theirs)}, and they differ"
            + (f", in '{odd[0]}' first" if odd else " in their order")
            + ": give both the same classes"
        )
    return train.fingerprint != test.fingerprint


def _targets(dataset: ImageDataset) -> Tensor:
    return torch.from_numpy(dataset.targets)


def finish(runner: Runner, out: Path | None, epochs: int | None = None) -> dict[str, float]:
    """Return the last evaluation of a runner, after so many epochs, and write its results to ``out`` if that is given.

    Where the loop found them there, from an earlier run, they stay as they are.
    """
    loop = runner.val_loop
    if not isinstance(loop, ClusterValLoop):
        return {}
    if out is not None and runner.rank == 0 and loop.evaluation is not None:
        *pictured, _ = write_results(
            loop.data.eval.dataset, loop.evaluation, loop.values, out, epochs=epochs, precision=runner.precision
        )
        if pictured:
            files = " and ".join(map(str, pictured))
            told = sizes_told(loop.evaluation.clusters, loop.evaluation.scores.shape[1])
            print_log(f"clusters of {len(loop.evaluation.scores):,} images: {files}; {told}", "current")
        _write_skipped(loop.data, out)
    return dict(loop.values)
