"""What a training goes on with: which images and settings it must share with the one that it resumes, what that one's
position and state may be, and the optimiser's options that the config has changed since."""

from __future__ import annotations

import copy
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import Tensor, nn

from odc import logs
from odc.checkpoints import to_plain
from odc.engine.data import ClusterData
from odc.errors import InputError, one_line
from odc.memory.sample_memory import SampleBuffer
from odc.models.cluster_model import ClusterModel, unwrap
from odc.reading import Kind, anything, fields, flag, listing, mapping, optional, reading, real, scalar, text, whole

# Everything in these decides what is computed, but for what follows: of a data set it is where its images are, and how
# they are checked, that may change, since the fingerprint tells which they are; of vectors, files and pictures, too.
_SETTINGS = re.compile(r"(model|data|train_cfg|optim_wrapper\.(optimizer\.type|accumulative_counts))(\..+)?")
_FREE = re.compile(
    r"(data\.(num_workers|extract_batch_size|feature_store)|train_cfg\.(max_epochs|val_interval|log_interval|schedule))(\..+)?"
    r"|data\.(eval_)?dataset\.((.+\.)?(strict|verify)|files|pictures\..+)"
)
_ONLY_AT_THE_START = (
    *("model.pretrained", "model.backbone.pretrained", "model.backbone.weights"),
    "train_cfg.label_file",
)


class SameRunHook(Hook):
    """Put what a training is of into its checkpoints, and refuse to resume one that was of something else.

    ``meta.classes`` are the names of the labels' classes, where they have any (:func:`take_names`);
    ``meta.images`` has number and fingerprint of the images that are clustered, and of those that are evaluated where
    they are others; ``meta.settings`` has the settings by their dotted names.
    """

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Add both to ``checkpoint["meta"]``."""
        checkpoint["meta"] |= {"images": _images(runner), "settings": _settings(runner.cfg)}
        if isinstance(model := unwrap(runner.model), ClusterModel) and model.labels.names:
            checkpoint["meta"]["classes"] = list(model.labels.names)

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Compare, before anything of the checkpoint is taken.

        Raises:
            InputError: other images, or other settings.
        """
        meta = checkpoint.get("meta")
        if not runner.resumes or not isinstance(meta, Mapping):
            return
        images, settings = meta.get("images"), meta.get("settings")
        if isinstance(images, Mapping):
            _check_images(images, _images(runner))
        if isinstance(settings, Mapping):
            _check_settings(runner, settings, _settings(runner.cfg))


def take_names(wrapped: Any, meta: Any, source: str) -> None:
    """Let the labels of a model that were loaded have the names that their classes had when they were saved.

    Raises:
        DamagedError: these are not the names of as many classes.
    """
    written = meta.get("classes") if isinstance(meta, Mapping) else None
    model = unwrap(wrapped)
    if written is None or not isinstance(model, ClusterModel):
        return
    with reading(source, "is not the checkpoint of a run", "use another one"):
        names, K = tuple(listing(text)(written)), len(model.labels.counts)
        if len(names) != K or len(set(names)) < K:
            raise ValueError(f"it names {len(set(names))} classes, and its labels have {K}")
        model.labels.names = names


def _images(runner: Any) -> dict[str, str]:
    data = runner.train_loop.dataloader
    if not isinstance(data, ClusterData):
        return {}
    sources = {"dataset": data.train} | ({} if data.eval is data.train else {"eval_dataset": data.eval})
    return {
        name: f"{len(source.dataset):,} images with fingerprint {source.dataset.identity}"
        for name, source in sources.items()
    }


def _check_images(before: Mapping[str, Any], now: Mapping[str, str]) -> None:
    remedies = {
        "dataset": "put those back, or start anew in another --work-dir",
        "eval_dataset": "put those back; odc test evaluates a checkpoint on other images",
    }
    for name, remedy in remedies.items():
        if before.get(name) != now.get(name):
            has, had = (_short(images.get(name, "no images of its own")) for images in (now, before))
            raise InputError(f"data.{name} has {has}, but the training to resume had {had}: {remedy}")


def _settings(cfg: Any) -> dict[str, str]:
    """Return the settings that a resumed training must share, and those read at its start, as JSON by dotted name."""
    return {
        name: text
        for name, text in _flat(cfg.to_dict(), "")
        if text != "null"
        and _SETTINGS.fullmatch(name)
        and not _FREE.fullmatch(name)
        and not (text.startswith('"') and name.startswith(("data.dataset", "data.eval_dataset")))
    }


def _flat(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, below in value.items():
            if not str(key).startswith("_"):
                yield from _flat(below, f"{name}.{key}" if name else str(key))
    else:
        yield name, json.dumps(value, sort_keys=True, skipkeys=True, default=lambda x: getattr(x, "__name__", "?"))


def _check_settings(runner: Any, before: Mapping[str, Any], now: Mapping[str, str]) -> None:
    different = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    late = [name for name in different if name in _ONLY_AT_THE_START]
    wrong = [name for name in different if name not in late]
    if wrong:
        told = "; ".join(f"{name} is {_short(now.get(name))} and was {_short(before.get(name))}" for name in wrong[:3])
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InputError(
            f"the training to resume had other settings: {told}{more}: put them back, or start anew in another "
            "--work-dir (model.pretrained=CHECKPOINT takes the backbone along)"
        )
    if late:
        runner.logger.warning(f"{', '.join(late)}: read when a training starts, not when it is resumed")


def _short(text: Any) -> str:
    if text is None:
        return "not set"
    return str(text) if len(str(text)) <= 60 else f"{str(text)[:57]}..."


def _note(value: Any) -> Any:
    """Kind: what the message hub keeps; hooks of mmengine and of this package go by some entries, and delete by one."""
    known = {"keep_ckpt_ids": listing(whole()), "last_ckpt": text, "preflight": mapping(real())}
    best = {"best_ckpt": optional(text), "best_score": real()}
    of_best = {name: kind for name in value for start, kind in best.items() if str(name).startswith(start)}
    return fields({}, anything, **known, **of_best)(value)


def _table(value: Any) -> Tensor:
    """Kind: whole numbers in rows, (M, ...) int64."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.ndim != 2:
        raise ValueError("a table of whole numbers is expected")
    return value


def _gradient(value: Any) -> Tensor:
    """Kind: a finite tensor."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or not bool(value.isfinite().all()):
        raise ValueError("a tensor of finite numbers is expected")
    return value


# What a checkpoint has of where the loop stands inside an epoch: the loop's attributes, by name, and their kinds.
POSITION: dict[str, Kind] = {
    **dict.fromkeys(("chunk", "repeat", "step", "images_seen", "seed"), whole()),
    **dict.fromkeys(("begun", "refreshed", "evaluated"), flag),
    **dict.fromkeys(("index_before", "labels_before"), _table),
    "order": mapping(_table),
    "counted": listing(text),
}
_LOOP = fields({**POSITION, "gradients": mapping(_gradient), **dict.fromkeys(("threads", "ranks"), whole(1))})


def read_position(state: Any, model: ClusterModel, num_images: int) -> dict[str, Any]:
    """Return a position that was saved, once it is one among the labels and memories that ``model`` has loaded.

    Raises:
        ValueError: it is no position, or one of another model, of other labels or other images.
    """
    position: dict[str, Any] = _LOOP(state)
    M, N = len(model.labels.index), num_images
    rows = torch.cat([torch.zeros(0, dtype=torch.int64), *(order.flatten() for order in position["order"].values())])
    for what, index, most in (("labels", model.labels.index, N), ("rows", rows, M)):
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < most:
            raise ValueError(f"{what} {int(index.min())} to {int(index.max())} of {most:,}")
    memories = [module.shard.rows for module in model.modules() if isinstance(module, SampleBuffer)]
    if not set(memories) <= {0, M, N}:
        raise ValueError(f"memories of {memories} rows for {M:,} labels of {N:,} images")
    if any(position["step"] > len(order) for order in position["order"].values()):
        raise ValueError(f"step {state['step']}, but its order ends before")
    expected, found = model.head.label_classes, tuple(model.labels.num_classes.tolist())
    if expected is not None and found not in (expected, (0,)):
        raise ValueError(f"the labels have {found} classes, the head {expected}")
    for name, parameter in model.named_parameters():
        gradient = position["gradients"].get(name)
        if gradient is not None and gradient.shape != parameter.shape:
            raise ValueError(f"the gradient of {name} has the shape {tuple(gradient.shape)}")
    return position


META = fields({"epoch": whole(), "iter": whole()}, anything, seed=optional(whole(high=2**32 - 1)))
HUB = fields({"log_scalars": mapping(anything), "runtime_info": _note, "resumed_keys": mapping(flag)})
_OPTIMIZER = fields(
    {
        "state": mapping(mapping(anything), keys=whole()),
        "param_groups": listing(fields({"params": listing(whole())}, anything)),
    },
    anything,
)


def _like(own: Any, saved: Any) -> Any:
    """Kind, once ``own`` is given: what can take its place."""
    if isinstance(own, bool):
        flag(saved)
    elif isinstance(own, int | float):
        if real()(saved) is None:
            raise ValueError("it is not finite")
    elif isinstance(own, str):
        text(saved)
    elif isinstance(own, list | tuple):
        listing(scalar)(saved)
    elif own is None:
        scalar(saved)
    return saved


def _stands_for(shape: torch.Size, own: torch.Size) -> bool:
    """Return whether a state of this shape can be that of a parameter: counters are scalars, Adafactor's rows are 1."""
    same = len(shape) == len(own) and all(size in (1, full) for size, full in zip(shape, own, strict=True))
    return not shape or same


def check_state(state: Any, optimizer: torch.optim.Optimizer) -> None:
    """Check the state of an optimiser against the parameters and options that it is to be loaded into."""
    _OPTIMIZER(state)
    parameters: dict[int, Tensor] = {}
    for own, saved in zip(optimizer.param_groups, state["param_groups"], strict=False):
        parameters.update(zip(saved["params"], own["params"], strict=False))
        for name, value in saved.items():
            if name != "params":
                _like(own.get(name, 0.0), value)
    for position, entries in state["state"].items():
        for name, value in entries.items():
            if not isinstance(value, Tensor):
                scalar(value)
            elif position not in parameters or not _stands_for(value.shape, parameters[position].shape):
                raise ValueError(f"'{name}' of parameter {position} has the shape {tuple(value.shape)}")
            elif not bool(value.isfinite().all()):
                raise ValueError(f"'{name}' of parameter {position} is not finite")


def options_of(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return of each group of parameters the options that a config can give."""
    apart = ("params", "param_names", "initial_lr")
    return [{name: to_plain(value) for name, value in group.items() if name not in apart} for group in groups]


def change_options(optimizer: torch.optim.Optimizer, configured: list[dict[str, Any]]) -> None:
    """Give a resumed optimiser the options of the config instead of those that it was saved with, and say so.

    The learning rate keeps the share of the one at the start that the schedule had come to.

    Raises:
        InputError: what was saved is not the state of an optimiser with these options.
    """
    told: dict[str, None] = {}  # each once: groups mostly have the same options
    for group, saved, new in zip(optimizer.param_groups, options_of(optimizer.param_groups), configured, strict=True):
        rate = saved.get("lr")
        saved["lr"] = group.get("initial_lr", rate)
        changed = {name: value for name, value in new.items() if saved.get(name) != value}
        if not changed:
            continue
        words = [f"{name}={value} instead of {saved.get(name)}" for name, value in changed.items()]
        _check_change(optimizer, {**group, **saved}, changed, ", ".join(words))
        told |= dict.fromkeys(words)
        if "lr" in changed:
            group["initial_lr"] = changed["lr"]
            changed["lr"] *= rate / saved["lr"] if saved["lr"] else 1.0
        group.update(changed)
    if told:
        logs.warn(f"the training goes on with {', '.join(told)}, as the config says")


def _check_change(optimizer: torch.optim.Optimizer, saved: dict[str, Any], changed: dict[str, Any], words: str) -> None:
    """Try on one number whether an optimiser can go on with other options: some need a state that was not kept."""
    trial = copy.copy(optimizer)
    number = nn.Parameter(torch.zeros(1))
    trial.param_groups = [{**saved, "params": [number]}]
    trial.state = defaultdict(dict)
    try:
        for options in ({}, changed):
            trial.param_groups[0].update(options)
            number.grad = torch.ones(1)
            trial.step()
    except Exception as error:  # whatever the optimiser stumbles over
        raise InputError(
            f"the optimiser was saved without what {type(optimizer).__name__} needs to go on with {words} "
            f"({type(error).__name__}: {one_line(error)}): put these options of optim_wrapper.optimizer back, or "
            "start anew in another --work-dir"
        ) from None
