"""The only file that knows quirks of mmengine and torch versions; the rest of the package sees plain behaviour.

==============================  ======================================================================================
:class:`Runner`                 plain, strictly loaded, resumable checkpoints; capped log buffers; ranks without a GPU
:class:`CheckpointHook`         never less than one complete checkpoint on disk; paths that survive moving ``work_dir``
:class:`Bf16OptimWrapper`       mixed precision without a scaler, on CPU and GPU
:func:`load_state`              names and shapes are checked; a partial load is asked for and reported
:func:`load_plain`              tensors and plain Python values only: nothing in a checkpoint is ever executed
:func:`find_resume`             the newest checkpoint that is whole
:func:`load_config`             classic configs, with one-line errors
==============================  ======================================================================================

Importing this module replaces, in mmengine's own registries, the loaders of checkpoints, the writer of local files and
the ``Pretrained`` initialiser, since mmengine reaches them by name from places that no subclass can.
"""

from __future__ import annotations

import ast
import copy
import datetime
import difflib
import functools
import importlib
import inspect
import io
import logging
import os
import pickle
import re
import subprocess
import sys
import traceback
import types
import warnings
from argparse import ArgumentParser, Namespace
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable
from urllib.error import URLError

import mmengine
import numpy as np
import torch
import torch.distributed as torch_dist
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.dist import broadcast_object_list, get_dist_info, is_distributed, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import HistoryBuffer, MessageHub, MMLogger, print_log
from mmengine.model import is_model_wrapper
from mmengine.model.weight_init import PretrainedInit, update_init_info
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner.checkpoint import CheckpointLoader, get_torchvision_models
from safetensors.torch import load_file, save
from torch import Tensor, nn

from .errors import InputError, nearest
from .files import naming, write_text, written_whole
from .processes import end_with_parent
from .registry import HOOKS, OPTIM_WRAPPERS, VISBACKENDS

MAX_HISTORY = 1000
_CODE = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial, type)


def _warn(message: str) -> None:
    print_log(message, logger="current", level=logging.WARNING)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# ---------------------------------------------------------------------------------------------- reading checkpoints


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """Turn everything that can go wrong while reading ``source`` into an :class:`InputError` of one line."""
    try:
        yield
    except pickle.UnpicklingError as error:
        # torch's message is a page of advice on how to load the file unsafely; only the name in it is of use.
        found = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
        if found and "Unsupported" in str(error):
            raise InputError(
                f"checkpoint '{source}' holds a {found[1]}, which only running code from the file could restore; "
                "convert it to plain tensors (torch.save of its state_dict) where you trust it"
            ) from None
        raise InputError(f"checkpoint '{source}' is damaged or not a checkpoint; use another file") from None
    except URLError as error:
        raise InputError(f"checkpoint '{source}' cannot be downloaded ({_one_line(error)}); use a local file") from None
    except Exception as error:  # bytes that are no pickle can make the unpickler raise anything
        raise InputError(f"checkpoint '{source}' is damaged ({_one_line(error)[:200]}); use another file") from error


def load_plain(filename: str | Path, map_location: Any = "cpu", *, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint of tensors and plain Python values from a local file; code in it is never run.

    Args:
        filename: local path; one that ends in ``.safetensors`` is read as such.
        map_location: as for :func:`torch.load`; safetensors are read to the CPU.
        mmap: map the tensors instead of reading them, to look at a file cheaply.

    Returns:
        What the file holds, less ``meta['config']``, which mmengine would execute on resume.

    Raises:
        InputError: the file is missing, damaged, not a dictionary, or holds objects that need unpickling of code.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise InputError(f"checkpoint '{filename}' does not exist; check the path")
    with _reading(str(filename)):
        if path.suffix == ".safetensors":
            checkpoint: Any = load_file(path)
        else:
            checkpoint = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    return _without_config(checkpoint, str(filename))


def _without_config(checkpoint: Any, source: str) -> dict[str, Any]:
    if not isinstance(checkpoint, dict):
        raise InputError(f"checkpoint '{source}' holds a {type(checkpoint).__name__}, not a dictionary of tensors")
    meta = checkpoint.get("meta")
    if isinstance(meta, dict):
        meta.pop("config", None)
    return checkpoint


# mmengine names a loader in its log by what follows "load_from_".
def _load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    return load_plain(filename, map_location)


def _load_from_http(filename: str, map_location: Any = None) -> dict[str, Any]:
    rank, world = get_dist_info()
    if world > 1 and rank > 0:  # rank 0 downloads, the others find the file in the cache
        torch_dist.barrier()
    with _reading(filename):
        checkpoint = torch.hub.load_state_dict_from_url(
            filename, map_location=map_location, progress=False, weights_only=True
        )
    if world > 1 and rank == 0:
        torch_dist.barrier()
    return _without_config(checkpoint, filename)


def _load_from_torchvision(filename: str, map_location: Any = None) -> dict[str, Any]:
    urls = get_torchvision_models()
    name = filename.partition("://")[2]
    if name not in urls:
        close = difflib.get_close_matches(name, urls, n=1)
        raise InputError(f"torchvision has no weights '{name}'" + (f"; did you mean '{close[0]}'?" if close else ""))
    return _load_from_http(urls[name], map_location)


def _load_from_unsupported(filename: str, map_location: Any = None) -> dict[str, Any]:
    raise InputError(
        f"checkpoint '{filename}': only local files, http(s):// and torchvision:// are read; download it first"
    )


# mmengine's own loaders fall back to unsafe unpickling, so none of them stays.
CheckpointLoader.register_scheme(list(CheckpointLoader._schemes), _load_from_unsupported, force=True)
CheckpointLoader.register_scheme("", _load_from_local, force=True)
CheckpointLoader.register_scheme(["http://", "https://"], _load_from_http, force=True)
CheckpointLoader.register_scheme("torchvision://", _load_from_torchvision, force=True)


def read_checkpoint(source: str) -> dict[str, Any]:
    """Read a checkpoint to the CPU as :func:`load_plain` does; ``http(s)://`` and ``torchvision://`` addresses too.

    Raises:
        InputError: as :func:`load_plain`, and for an address that cannot be reached.
    """
    checkpoint: dict[str, Any] = CheckpointLoader.load_checkpoint(source, map_location="cpu")
    return checkpoint


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_state` did.

    Attributes:
        loaded: names that were copied into the model.
        missing: names of the model that the state lacks.
        unexpected: names of the state that the model lacks.
        mismatched: names with both shapes, as ``name: file (...), model (...)``.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether the state and the model fit each other exactly."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} loaded"]
        for kind in ("missing", "unexpected", "mismatched"):
            names = getattr(self, kind)
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            parts.append(f"{len(names)} {kind}" + (f" ({shown})" if names else ""))
        return "; ".join(parts)


def load_state(
    model: nn.Module, state_dict: Mapping[str, Any], *, partial: bool = False, source: str = "the given state"
) -> LoadReport:
    """Load ``state_dict`` into ``model``: all of it, or nothing and an error.

    A ``module.`` prefix of every name is stripped where the model has none. The shapes under a module with a true
    attribute ``resizes_on_load`` are not compared: it takes buffers of any length in its ``_load_from_state_dict``
    (and, on a partial load, must bear that some of them are missing).

    Args:
        model: receives the state; a DDP wrapper is looked through.
        state_dict: names to tensors.
        partial: load the names that are in both with equal shapes, and leave the rest of the model as it is.
        source: what to call the state in messages.

    Returns:
        Names loaded, missing, unexpected and mismatched.

    Raises:
        InputError: names or shapes differ (``partial=False``; the model is unchanged), or nothing matches.
    """
    if is_model_wrapper(model):
        model = model.get_submodule("module")
    wanted = model.state_dict()
    prefix = "module."
    given: OrderedDict[str, Any] = OrderedDict(state_dict)
    metadata: dict[str, Any] | None = getattr(state_dict, "_metadata", None)
    if given and all(k.startswith(prefix) for k in given) and not any(k.startswith(prefix) for k in wanted):
        given = OrderedDict((k.removeprefix(prefix), v) for k, v in given.items())
        metadata = {k.removeprefix("module").removeprefix("."): v for k, v in (metadata or {}).items()}

    resizing = tuple(f"{n}." if n else "" for n, m in model.named_modules() if getattr(m, "resizes_on_load", False))
    common = [k for k in wanted if k in given]
    mismatched = {
        k: f"{k}: file {_shape(given[k])}, model {_shape(wanted[k])}"
        for k in common
        if _shape(given[k]) != _shape(wanted[k]) and not k.startswith(resizing)
    }
    report = LoadReport(
        loaded=tuple(k for k in common if k not in mismatched),
        missing=tuple(k for k in wanted if k not in given),
        unexpected=tuple(k for k in given if k not in wanted),
        mismatched=tuple(mismatched.values()),
    )
    if not report.loaded and wanted:
        raise InputError(f"{source}: nothing in it fits the model: {report}; use the checkpoint of such a model")
    if not (partial or report.complete):
        raise InputError(
            f"{source} does not fit the model: {report}; use the model it was saved from, "
            "or take what fits with load_partial=True (of init_cfg: partial=True)"
        )
    chosen = OrderedDict((k, given[k]) for k in report.loaded)
    if metadata is not None:
        chosen._metadata = metadata  # type: ignore[attr-defined]  # versions of the modules that wrote it
    try:
        model.load_state_dict(chosen, strict=not partial)
    except RuntimeError as error:  # a module of its own mind about what it takes
        raise InputError(f"{source} does not fit the model: {_one_line(error)}") from error
    return report


def _shape(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _model_state(checkpoint: Mapping[str, Any]) -> Mapping[str, Any]:
    state: Mapping[str, Any] = checkpoint.get("state_dict", checkpoint)
    return state


@WEIGHT_INITIALIZERS.register_module(name="Pretrained", force=True)
class Pretrained(PretrainedInit):
    """``init_cfg=dict(type='Pretrained', checkpoint=..., prefix=..., partial=...)`` that checks names and shapes.

    Args:
        checkpoint: local path, ``http(s)://`` or ``torchvision://`` address.
        prefix: take only the names under it, without it (``'backbone.'``).
        map_location: as for :func:`torch.load`.
        partial: take what fits, for example a backbone from a classifier with its last layer.

    Raises:
        InputError: as :func:`load_state`, and for a prefix that no name starts with.
    """

    def __init__(
        self, checkpoint: str, prefix: str | None = None, map_location: str = "cpu", partial: bool = False
    ) -> None:
        super().__init__(checkpoint, prefix, map_location)
        self.partial = partial

    def __call__(self, module: nn.Module) -> None:
        """Load the weights into ``module``."""
        state = _model_state(CheckpointLoader.load_checkpoint(self.checkpoint, map_location=self.map_location))
        if self.prefix is not None:
            prefix = self.prefix.rstrip(".") + "."
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if not state:
                raise InputError(f"checkpoint '{self.checkpoint}' has no names under prefix '{prefix}'; check prefix")
        report = load_state(module, state, partial=self.partial, source=f"checkpoint '{self.checkpoint}'")
        print_log(f"{self.checkpoint}: {report}", logger="current")
        if hasattr(module, "_params_init_info"):  # mmengine's record of who initialised what, while it initialises
            update_init_info(module, init_info=self._get_init_info())


# ---------------------------------------------------------------------------------------------- writing checkpoints


def to_plain(value: Any, path: str = "checkpoint") -> Any:
    """Return ``value`` with CPU tensors and plain Python values only, so that ``weights_only=True`` loads it.

    NumPy scalars and arrays, paths, times, ranges and subclasses of the containers are converted. Functions and
    classes in a dictionary are dropped: they are code, which the reader has already. ``path`` names the value in the
    error.

    Raises:
        TypeError: a value of another kind; the message says where it is.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if value is None or isinstance(value, (torch.dtype, torch.device)):
        return value
    if isinstance(value, np.generic):
        return to_plain(value.item(), path)
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy()) if value.dtype.kind in "biufc" else to_plain(value.tolist(), path)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (datetime.timedelta, os.PathLike)):
        return str(value)
    plain: Any
    for plain in (bool, int, float, complex, str, bytes):
        if isinstance(value, plain):  # a subclass (an enum's value, for one) is cut down to what it is
            return plain(value)
    if isinstance(value, Mapping):
        items = [(to_plain(k, path), to_plain(v, f"{path}.{k}")) for k, v in value.items() if not isinstance(v, _CODE)]
        if isinstance(value, Counter):
            return Counter(dict(items))
        if not isinstance(value, OrderedDict):
            return dict(items)
        ordered = OrderedDict(items)
        if hasattr(value, "_metadata"):  # of a module's state_dict
            ordered._metadata = to_plain(value._metadata, path)  # type: ignore[attr-defined]
        return ordered
    if isinstance(value, (list, tuple, set, frozenset, range)):
        kind = tuple if isinstance(value, tuple) else set if isinstance(value, (set, frozenset)) else list
        return kind(to_plain(v, f"{path}[{i}]") for i, v in enumerate(value))
    raise TypeError(f"{path} is a {type(value).__name__}; a checkpoint holds only tensors and plain Python values")


def write_tensors(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain Python values to ``path``, completely or not at all.

    Args:
        path: ends in ``.safetensors``, for names and tensors only, or in anything else, for ``torch.save``.
        content: what :func:`load_plain` will return.
    """
    if Path(path).suffix == ".safetensors":
        data = save(dict(content), metadata={"format": "pt"})
    else:
        buffer = io.BytesIO()
        torch.save(dict(content), buffer)
        data = buffer.getvalue()
    with written_whole(path) as file:
        file.write(data)


@register_backend("local", force=True, prefixes="")
class AtomicLocalBackend(LocalBackend):
    """mmengine's local files, written completely or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to ``filepath``, creating its directory where there is none."""
        with written_whole(filepath) as file:
            file.write(obj)

    def put_text(self, obj: str, filepath: str | Path, encoding: str = "utf-8") -> None:
        """Write text to ``filepath``, creating its directory where there is none."""
        self.put(obj.encode(encoding), filepath)


def mark_last(work_dir: str | Path, checkpoint: str | Path) -> None:
    """Record in ``work_dir/last_checkpoint`` what to resume from: the bare name of a file that lies in ``work_dir``."""
    inside = Path(checkpoint).absolute().parent == Path(work_dir).absolute()
    text = Path(checkpoint).name if inside else str(checkpoint)
    write_text(Path(work_dir) / "last_checkpoint", text)


def find_resume(work_dir: str | Path) -> str | None:
    """Return the checkpoint to resume from, or ``None`` where ``work_dir`` has none.

    It is the one that ``last_checkpoint`` names or, where that is missing or damaged, the ``epoch_*.pth`` or
    ``iter_*.pth`` of the most iterations. Damaged files are skipped with a warning.

    Raises:
        InputError: there are checkpoints, but none can be loaded.
    """
    directory = Path(work_dir)
    skipped = []

    def iterations(path: Path) -> int:
        """Return the iterations behind ``path``, -1 where it cannot be loaded."""
        try:
            return int(load_plain(path, mmap=True).get("meta", {}).get("iter", 0))
        except InputError as error:
            skipped.append(path)
            _warn(f"not resuming from {path}: {error}")
            return -1

    marker = directory / "last_checkpoint"
    if marker.is_file():
        last = directory / marker.read_text(encoding="utf-8").strip()
        if not last.is_file():  # an absolute path, written before work_dir was moved
            last = directory / last.name
        if iterations(last) >= 0:
            return str(last)
    files = [p for pattern in ("epoch_*.pth", "iter_*.pth") for p in directory.glob(pattern) if p not in skipped]
    # By the count in the file: times of modification change when a directory is copied.
    counts = {path: iterations(path) for path in files}
    newest = max(counts, key=lambda path: (counts[path], path.stat().st_mtime_ns), default=None)
    if newest is not None and counts[newest] >= 0:
        return str(newest)
    if skipped:
        raise InputError(
            f"work_dir '{work_dir}' has {len(skipped)} checkpoint(s), none of which can be loaded "
            f"('{skipped[0]}', ...); start anew in another work_dir"
        )
    return None


@HOOKS.register_module()
class CheckpointHook(mmengine.hooks.CheckpointHook):
    """mmengine's hook that never leaves the disk without a complete checkpoint, and writes none during evaluation.

    Takes the arguments of mmengine's. An old checkpoint is deleted after the new one is completely written, the best
    one too, and only in this run's own directory. The last ``max_keep_ckpts`` stay, one that a signal left among them;
    that one goes when training has come to the next of its own, so that the files end as those of an unbroken run.

    Raises:
        InputError: ``max_keep_ckpts=1``, which leaves nothing to fall back to, or an option that it does not have.
    """

    _in_training = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in self.args:  # mmengine takes any name, and fails when it saves
            if name not in inspect.signature(mmengine.runner.Runner.save_checkpoint).parameters:
                known = inspect.signature(mmengine.hooks.CheckpointHook).parameters
                raise InputError(f"CheckpointHook has no option '{name}'{nearest(name, known)}")
        if self.max_keep_ckpts == 1:
            raise InputError("max_keep_ckpts=1 keeps no checkpoint to fall back to; use 2 or more, or -1 for all")

    def before_train(self, runner: mmengine.runner.Runner) -> None:
        """Find the directory, and what an earlier part of the run left in it."""
        super().before_train(runner)
        self._in_training = True
        # A resumed run's best file lies where the run is now, not where it was when the path was saved.
        self._set_best({k: path and os.path.join(self.out_dir, os.path.basename(path)) for k, path in self._best()})

    def after_train(self, runner: mmengine.runner.Runner) -> None:
        """Publish, where asked to."""
        super().after_train(runner)
        self._in_training = False

    def after_val_epoch(self, runner: mmengine.runner.Runner, metrics: dict[str, float]) -> None:
        """Save the best model, in training."""
        if self._in_training:
            super().after_val_epoch(runner, metrics)

    def _best(self) -> list[tuple[str, str | None]]:
        if not self.save_best:
            return []
        single = len(self.key_indicators) == 1
        return [("", self.best_ckpt_path)] if single else list(self.best_ckpt_path_dict.items())

    def _set_best(self, paths: Mapping[str, str | None]) -> None:
        for key, path in paths.items():
            if key:
                self.best_ckpt_path_dict[key] = path
            else:
                self.best_ckpt_path = path

    def _save_best_checkpoint(self, runner: mmengine.runner.Runner, metrics: dict[str, float]) -> None:
        old = dict(self._best())
        self._set_best(dict.fromkeys(old))  # mmengine deletes first what it knows of, so it is to know of nothing
        super()._save_best_checkpoint(runner, metrics)
        new = dict(self._best())
        self._set_best({key: new[key] or old[key] for key in new})
        for key, path in old.items():
            if path and new[key] and new[key] != path:
                self._delete(path)

    def _save_checkpoint_with_step(self, runner: mmengine.runner.Runner, step: int, meta: dict[str, Any]) -> None:
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler and runner.param_schedulers is not None,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            mark_last(runner.work_dir, self.last_ckpt)
        self._delete_outdated(runner, name, step, runner.iter + 1)

    def after_stop(self, runner: mmengine.runner.Runner, name: str, iterations: int) -> None:
        """Take note that a signal stopped the run after ``iterations``, and left the checkpoint ``name``."""
        self._delete_outdated(runner, name, runner.epoch if self.by_epoch else iterations, iterations)

    def _delete_outdated(self, runner: mmengine.runner.Runner, newest: str, step: int, iterations: int) -> None:
        """Delete what is superfluous beside ``newest``; later checkpoints, of a run that went further, stay."""
        if self.max_keep_ckpts <= 0:
            return
        own = re.compile(re.escape(self.filename_tmpl).replace(r"\{\}", r"(\d+)"))
        regular: list[tuple[int, str]] = []
        for folder in {self.out_dir, runner.work_dir}:
            for name in os.listdir(folder):
                path = os.path.join(folder, name)
                if name == newest:
                    continue
                if found := own.fullmatch(name):
                    if int(found[1]) <= step:
                        regular.append((int(found[1]), path))
                elif (found := re.fullmatch(r"iter_(\d+)\.pth", name)) and int(found[1]) <= iterations:
                    self._delete(path)
        for _, path in sorted(regular)[: 1 - self.max_keep_ckpts]:
            self._delete(path)

    def _delete(self, path: str) -> None:
        if is_main_process() and self.file_backend.isfile(path):
            self.file_backend.remove(path)


# ----------------------------------------------------------------------------------------------------------- Runner


@runtime_checkable
class StatefulLoop(Protocol):
    """A train loop with a state of its own, which :class:`Runner` saves under ``checkpoint['loop']``."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain Python values; called on rank 0 only."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned, on CPU; called on every rank, last of all when resuming."""


class _OneLiners(logging.Filter):
    """Keeps pages (environment, whole config, list of hooks) and mmengine's notes to itself off the terminal.

    The log file has everything.
    """

    _NOTES = (
        "FileClient",
        "HardDiskBackend",
        "Saving checkpoint at",
        "Checkpoints will be saved to",
        "Loads checkpoint by",
        "all SyncBatchNorm (SyncBN) layers in the model",
    )

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is for the terminal."""
        message = record.getMessage()
        return not any(note in message for note in self._NOTES) and (
            "\n" not in message or record.levelno > logging.INFO
        )


def _log_failed(handler: logging.FileHandler, record: logging.LogRecord) -> None:
    """Raise again what :mod:`logging` caught, with the name of the file."""
    error = sys.exc_info()[1]
    if error is not None:
        with naming(handler.baseFilename):
            raise error


@VISBACKENDS.register_module(force=True)
class LocalVisBackend(mmengine.visualization.LocalVisBackend):
    """mmengine's, with the name of the file in its errors."""

    def _dump(self, value_dict: dict[str, Any], file_path: str, file_format: str) -> None:
        with naming(file_path):
            super()._dump(value_dict, file_path, file_format)


class _CappedScalars(OrderedDict[str, HistoryBuffer]):
    """Log buffers of at most :data:`MAX_HISTORY` values: mmengine's copy their whole history at every update."""

    def __setitem__(self, key: str, buffer: HistoryBuffer) -> None:
        buffer.max_length = min(buffer.max_length, MAX_HISTORY)
        super().__setitem__(key, buffer)


class Runner(mmengine.runner.Runner):
    """mmengine's runner with checkpoints that are plain, strictly loaded and resumable.

    Differences, all else being mmengine's:

    - checkpoints hold tensors and plain Python values only, without the histories of logged scalars; nothing in a
      checkpoint is executed when loading;
    - ``load_from`` must fit the model exactly unless the config says ``load_partial = True``; a resumed checkpoint
      must always fit;
    - ``resume=True`` without ``load_from`` takes the newest checkpoint that is whole (:func:`find_resume`);
    - a train loop with ``state_dict`` and ``load_state_dict`` is saved and resumed too (:class:`StatefulLoop`);
    - launchers work without a GPU, by gloo; DDP never broadcasts buffers by itself;
    - any number of runners can be built in one process;
    - the terminal shows one-line messages; environment, config and hooks go to the log file.
    """

    _timestamps: ClassVar[set[str]] = set()
    _config_written = False
    _timestamp: str
    _randomness_cfg: dict[str, Any]
    optim_wrapper: Any
    param_schedulers: Any

    # -- building

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        """Set up processes and ranks; on a machine without a GPU the ranks speak gloo, whatever the config says."""
        if self.distributed:
            # Against a fresh process's own default (all cores, on every rank); mmengine does the same and warns.
            for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
                os.environ.setdefault(variable, "1")
            if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun's ranks; Slurm and MPI see to theirs
                end_with_parent()
            if get_device() == "cpu" and not is_distributed():
                _init_gloo(self._launcher, env_cfg.get("dist_cfg", {}).get("timeout"))
        super().setup_env(env_cfg)
        # mmengine shares logger and message hub between runners of one name, and names them by the second.
        stamp, number = self._timestamp, 1
        while self._timestamp in self._timestamps:
            number += 1
            self._timestamp = f"{stamp}_{number}"
        self._timestamps.add(self._timestamp)

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """Return mmengine's logger, whose terminal shows one-line messages only; the file has everything.

        A file that cannot be written stops the run, as its other files do: :mod:`logging` would print a traceback for
        every line and go on.
        """
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if type(handler) is logging.StreamHandler:
                handler.addFilter(_OneLiners())
            elif isinstance(handler, logging.FileHandler):
                handler.handleError = functools.partial(_log_failed, handler)  # type: ignore[method-assign]
        return logger

    def dump_config(self) -> None:
        """Do nothing yet: one whose checkpoint is refused must not replace the config of the run that is there."""

    def _write_config(self) -> None:
        """Write the formatted config into the work directory; from then on it is not formatted any more.

        mmengine puts the config's text into every checkpoint and lets yapf format it anew each time: 0.4 s.
        """
        name = os.path.basename(self.cfg.filename or f"{self.timestamp}.py")
        if is_main_process():
            write_text(Path(self.work_dir) / name, self.cfg.dump())
        object.__setattr__(self.cfg, "_format_python_code", False)

    def build_message_hub(self, message_hub: dict[str, Any] | None = None) -> MessageHub:
        """Return mmengine's message hub with every log buffer, now and later, of a bounded length."""
        hub = super().build_message_hub(message_hub)
        capped = _CappedScalars()
        capped.update(hub.log_scalars)
        hub._log_scalars = capped
        return hub

    def use_data(self, train: Any, val: Any) -> None:
        """Train on ``train`` and evaluate on ``val`` (``None``: never) instead of what the constructor was given."""
        self._train_dataloader, self._val_dataloader = train, val

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Wrap ``model`` in DDP where there are ranks; without a GPU with ``device_ids=None``."""
        cfg = dict(model_wrapper_cfg or {})
        if self.distributed and not is_model_wrapper(model):
            cfg.setdefault("type", "MMDistributedDataParallel")
            if cfg["type"] == "MMDistributedDataParallel":
                cfg.setdefault("broadcast_buffers", False)
                cfg.setdefault("find_unused_parameters", self.cfg.get("find_unused_parameters", False))
                if get_device() == "cpu":
                    cfg["device_ids"] = None
        with warnings.catch_warnings():
            # torch's replacement, forward_sync_buffers, overwrites buffers with rank 0's when the model is wrapped:
            # those of a rank's own must stay.
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            wrapped: nn.Module = super().wrap_model(cfg or None, model)
        return wrapped

    def _maybe_compile(self, target: str) -> None:
        """Do nothing: mmengine would compile ``train_step``, which no loop here calls (:mod:`odc.engine.compiled`)."""

    def register_default_hooks(self, hooks: dict[str, Any] | None = None) -> None:
        """Register mmengine's default hooks, with this package's :class:`CheckpointHook` for its own in any scope."""
        hooks = dict(hooks or {})
        checkpoint = hooks.setdefault("checkpoint", {"type": "CheckpointHook"})
        if isinstance(checkpoint, dict) and checkpoint["type"] in ("CheckpointHook", "mmengine.CheckpointHook"):
            hooks["checkpoint"] = {**checkpoint, "type": CheckpointHook}
        super().register_default_hooks(hooks)

    # -- saving

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        """Call all hooks; after those ``before_save_checkpoint``, complete the checkpoint and make it plain."""
        super().call_hook(fn_name, **kwargs)
        if fn_name == "before_save_checkpoint":  # here rather than in a hook: no hook can then come after it
            self._finish(kwargs["checkpoint"])

    def _finish(self, checkpoint: dict[str, Any]) -> None:
        hub = checkpoint["message_hub"]
        hub["log_scalars"] = {}
        hub["resumed_keys"] = {k: True for k in hub["runtime_info"] if hub["resumed_keys"].get(k)}
        checkpoint["meta"]["torch_version"] = torch.__version__
        if "optimizer" in checkpoint and isinstance(self.train_loop, StatefulLoop):
            checkpoint["loop"] = self.train_loop.state_dict()
        plain = to_plain(checkpoint)
        checkpoint.clear()
        checkpoint.update(plain)

    # -- loading

    def load_checkpoint(self, filename: str, map_location: Any = "cpu", strict: bool | None = None) -> dict[str, Any]:
        """Load the model's state from ``filename`` and return the whole checkpoint.

        Args:
            filename: local path, ``http(s)://`` or ``torchvision://`` address.
            map_location: as for :func:`torch.load`.
            strict: whether names and shapes must all fit; ``None``: unless the config has ``load_partial = True``.

        Raises:
            InputError: the file cannot be read safely, or does not fit (see :func:`load_state`).
        """
        partial = self.cfg.get("load_partial", False) if strict is None else not strict
        checkpoint: dict[str, Any] = CheckpointLoader.load_checkpoint(filename, map_location=map_location)
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        report = load_state(self.model, _model_state(checkpoint), partial=partial, source=f"checkpoint '{filename}'")
        self._has_loaded = True
        self.logger.info(f"model state from {filename}: {report}")
        return checkpoint

    def load_or_resume(self) -> None:
        """Load or resume what the config asks for, once, and write the config, which now is that of the run."""
        if not self._has_loaded:
            self._load_or_resume()
        if not self._config_written:
            self._write_config()
            self._config_written = True

    def _load_or_resume(self) -> None:
        if not self._resume or self._load_from is not None:
            super().load_or_resume()
            return
        found = [find_resume(self.work_dir) if is_main_process() else None]
        broadcast_object_list(found)  # one choice for all ranks
        if found[0] is None:
            self.logger.info(f"no checkpoint to resume from in {self.work_dir}; starting from the beginning")
        else:
            self.resume(found[0])

    def resume(
        self,
        filename: str,
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: Any = "cpu",
    ) -> None:
        """Continue the run that wrote ``filename``: model, position, seed, optimiser, schedules, the loop's own state.

        Args:
            filename: local path or ``http(s)://`` address.
            resume_optimizer: restore the optimiser; options that the config has changed since, of the learning rate
                say, are applied, with a warning that has both numbers.
            resume_param_scheduler: restore mmengine's parameter schedulers. They keep the schedule they were saved
                with, so a changed one (a grown ``max_epochs``) is reported with both numbers.
            map_location: as for :func:`torch.load`.

        Raises:
            InputError: the checkpoint cannot be read safely, does not fit, or lacks what resuming needs.
        """
        loop = self.train_loop
        if loop is None:
            raise InputError(f"resuming '{filename}' needs a training config; to evaluate it, set load_from only")
        checkpoint = self.load_checkpoint(filename, map_location, strict=True)
        needed = {"meta", "message_hub"}
        needed |= {"optimizer"} if resume_optimizer else set()
        needed |= {"loop"} if isinstance(loop, StatefulLoop) else set()
        if lacking := sorted(needed - checkpoint.keys()):
            raise InputError(
                f"checkpoint '{filename}' lacks {', '.join(lacking)}, so training cannot continue from it; "
                "to start from its weights, set load_from without resume"
            )
        meta = checkpoint["meta"]
        loop._epoch, loop._iter = meta["epoch"], meta["iter"]
        self._resume_seed(meta.get("seed"), filename)
        self.message_hub.load_state_dict(checkpoint["message_hub"])
        if resume_optimizer:
            self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
            configured = [_options(o.param_groups) for o in _optimizers(self.optim_wrapper)]
            try:
                self.optim_wrapper.load_state_dict(checkpoint["optimizer"])
            except ValueError as error:
                raise InputError(f"the optimiser of checkpoint '{filename}' does not fit: {_one_line(error)}") from None
            for optimizer, options in zip(_optimizers(self.optim_wrapper), configured, strict=True):
                _change_options(optimizer, options)
        if resume_param_scheduler and self.param_schedulers is not None and "param_schedulers" in checkpoint:
            self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
            self._resume_schedulers(checkpoint["param_schedulers"])
        if isinstance(loop, StatefulLoop):
            loop.load_state_dict(checkpoint["loop"])
        self.logger.info(f"resumed {filename} at epoch {self.epoch}, iteration {self.iter}")

    def _resume_seed(self, seed: int | None, filename: str) -> None:
        configured = self._randomness_cfg.get("seed")
        if seed is None or seed == configured:
            return
        if configured is not None:
            self.logger.warning(f"the run of '{filename}' continues with its own seed {seed}, not {configured}")
        self._randomness_cfg = {**self._randomness_cfg, "seed": seed}
        self.set_randomness(**self._randomness_cfg)

    def _resume_schedulers(self, saved: Any) -> None:
        position = {"last_step", "best", "num_bad_epochs", "cooldown_counter"}
        for number, (scheduler, state) in enumerate(zip(_flat(self.param_schedulers), _flat(saved), strict=False)):
            for name, value in to_plain(scheduler.state_dict()).items():
                if name.startswith("_") or name in position or name not in state or state[name] == value:
                    continue
                self.logger.warning(
                    f"param_scheduler {number} ({type(scheduler).__name__}) keeps {name}={state[name]} of the "
                    f"checkpoint; the config's {name}={value} is not used"
                )
            scheduler.load_state_dict(state)


def _optimizers(wrapper: Any) -> list[torch.optim.Optimizer]:
    return [w.optimizer for w in (wrapper.values() if isinstance(wrapper, OptimWrapperDict) else (wrapper,))]


def _options(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return of each group of parameters the options that a config can give."""
    apart = ("params", "param_names", "initial_lr")
    return [{name: to_plain(value) for name, value in group.items() if name not in apart} for group in groups]


def _change_options(optimizer: torch.optim.Optimizer, configured: list[dict[str, Any]]) -> None:
    """Give a resumed optimiser the options of the config instead of those that it was saved with, and say so.

    The learning rate keeps the share of the one at the start that the schedule had come to.

    Raises:
        InputError: what was saved is not the state of an optimiser with these options.
    """
    told: dict[str, None] = {}  # each once: groups mostly have the same options
    for group, saved, new in zip(optimizer.param_groups, _options(optimizer.param_groups), configured, strict=True):
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
        _warn(f"the training goes on with {', '.join(told)}, as the config says")


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
            f"({type(error).__name__}: {_one_line(error)}): put these options of optim_wrapper.optimizer back, or "
            "start anew in another --work-dir"
        ) from None


def _flat(schedulers: Any) -> list[Any]:
    """Return mmengine's schedulers, or their states, in one list: with several optimisers they are lists by name."""
    return [s for group in schedulers.values() for s in group] if isinstance(schedulers, dict) else list(schedulers)


_RANK_VARIABLES = {
    "pytorch": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    "mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
}


def is_first_rank(launcher: str) -> bool:
    """Return whether this process is the first of those that ``launcher`` started, before they speak to each other."""
    return launcher not in _RANK_VARIABLES or os.environ.get(_RANK_VARIABLES[launcher][0], "0") == "0"


def _init_gloo(launcher: str, timeout: float | None) -> None:
    """Start gloo from the launcher's environment variables; mmengine's own start-up requires a GPU."""
    variables = _RANK_VARIABLES[launcher]
    try:
        values = [os.environ[name] for name in variables]
    except KeyError as error:
        starter = {"slurm": "tools/slurm_train.sh", "mpi": "mpirun"}.get(launcher, "tools/dist_train.sh")
        raise InputError(
            f"--launcher {launcher} needs the environment variable {error}, which {starter} sets: start with that"
        ) from None
    os.environ.update(zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), values, strict=True))
    os.environ.setdefault("MASTER_PORT", "29500")
    if "MASTER_ADDR" not in os.environ and launcher == "slurm":
        hosts = subprocess.run(
            ["scontrol", "show", "hostname", os.environ["SLURM_NODELIST"]], capture_output=True, text=True, check=True
        )
        os.environ["MASTER_ADDR"] = hosts.stdout.split()[0]
    limit = {} if timeout is None else {"timeout": datetime.timedelta(seconds=timeout)}
    torch_dist.init_process_group(backend="gloo", **limit)  # type: ignore[arg-type]


# -------------------------------------------------------------------------------------------------- mixed precision


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(OptimWrapper):
    """Optimiser wrapper that runs the model in bfloat16 by autocast, on CPU or GPU.

    bfloat16 has float32's range, so there is no loss scaling; parameters, gradients and optimiser state stay float32.
    Takes the arguments of mmengine's ``OptimWrapper``.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter autocast on the device of ``model``, and mmengine's context for gradient accumulation."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield


# ----------------------------------------------------------------------------------------------------------- config


class Overrides(DictAction):
    """mmengine's ``--cfg-options KEY=VALUE ...``, with one line for a word without ``=``."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """Store ``{key: value}``."""
        for value in values:
            if "=" not in value:
                parser.error(f"{option_string} takes KEY=VALUE, not '{value}'")
        super().__call__(parser, namespace, values, option_string)


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> Config:
    """Read a classic config, merge ``overrides`` and import what its ``custom_imports`` names.

    Modules are looked for on ``sys.path``, then next to the config, then in the current directory; the latter two
    stay on ``sys.path``, so that worker processes find the modules too.

    Args:
        path: a ``.py``, ``.json`` or ``.yaml`` config; calls such as ``os.path.join`` in it are run.
        overrides: dotted keys to values, as ``--cfg-options`` gives them.

    Raises:
        InputError: the file is missing, cannot be parsed or run, an override has no place, or an import fails.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"config '{path}' does not exist{_near(path)}")
    try:
        # lazy_import=None would take a config that imports anything for one of mmengine's lazy-import configs.
        config = Config.fromfile(str(path), lazy_import=False, import_custom_modules=False)
    except Exception as error:
        wrong = _syntax_error(path) if isinstance(error, SyntaxError) else None
        where = (
            f"{wrong.filename}', line {wrong.lineno}: {wrong.msg}" if wrong else f"{path}': {type(error).__name__}: "
        )
        with warnings.catch_warnings():  # mmengine leaves a temporary file open in the frames of its error
            warnings.simplefilter("ignore", ResourceWarning)
            traceback.clear_frames(error.__traceback__)
        raise InputError(f"config '{where}" + ("" if wrong else _one_line(error))) from error
    try:
        for key, value in (overrides or {}).items():
            if isinstance(value, dict) and "_delete_" in value:
                config.merge_from_dict({key: None})  # where there is nothing, merging would keep _delete_ itself
        config.merge_from_dict(copy.deepcopy(overrides or {}))  # merging takes _delete_ out of what it is given
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"config '{path}' has no place for the overrides {overrides}: {_one_line(error)}") from error
    if config.get("custom_imports"):
        _import_custom(config.custom_imports, path)
    return config


def _syntax_error(path: Path) -> SyntaxError | None:
    """Return the first syntax error of the config and its bases: mmengine's own names a temporary copy."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except SyntaxError as error:
        return error
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_base_":
            names = [n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            files = [path.parent / name for name in names]
            return next(filter(None, (_syntax_error(file) for file in files if file.is_file())), None)
    return None


def _near(path: Path) -> str:
    """Return ``"; did you mean '...'?"`` with the existing name closest to the first part of ``path`` that is not."""
    missing = path.absolute()
    while not missing.parent.is_dir():
        missing = missing.parent
    names = [p.name for p in missing.parent.iterdir()]
    close = difflib.get_close_matches(missing.name, names, n=1)
    return f"; did you mean '{missing.parent / close[0]}'?" if close else f"; '{missing.parent}' has nothing like it"


def _import_custom(custom_imports: dict[str, Any], path: Path) -> None:
    # At the end: a file beside the config must not hide an installed module of the same name.
    for directory in (str(path.absolute().parent), os.getcwd()):
        if directory not in sys.path:
            sys.path.append(directory)
    importlib.invalidate_caches()
    names = custom_imports["imports"]
    for name in [names] if isinstance(names, str) else names:
        if problem := _import_problem(name):
            absent, reason = problem
            message = f"custom_imports of config '{path}': cannot import '{name}'{reason}"
            if not (absent and custom_imports.get("allow_failed_imports", False)):
                raise InputError(message)
            _warn(message)


def _import_problem(name: str) -> tuple[bool, str] | None:
    """Import ``name``; where that fails, return whether there is no such module, and the reason."""
    try:
        importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            return True, "; put it next to the config, in the current directory or on PYTHONPATH"
        at = error if isinstance(error, SyntaxError) else traceback.extract_tb(error.__traceback__)[-1]
        return False, f": {type(error).__name__}: {_one_line(error)} ({at.filename}, line {at.lineno})"
    return None
