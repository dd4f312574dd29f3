"""The only file that knows quirks of mmengine and torch versions; the rest of the package sees plain behaviour.

==============================  ======================================================================================
:class:`Runner`                 plain, strictly loaded, resumable checkpoints; capped log buffers; ranks without a GPU
:class:`CheckpointHook`         never less than one complete checkpoint on disk; paths that survive moving ``work_dir``
:func:`settle_precision`        bfloat16 only where processor or GPU computes it themselves
:func:`load_state`              names and shapes are checked; a partial load is asked for and reported
:func:`load_plain`              tensors and plain Python values only: nothing in a checkpoint is ever executed
:func:`find_resume`             the checkpoints to resume from, the newest first
:func:`load_config`             classic configs, with one-line errors
==============================  ======================================================================================

Importing this module replaces, in mmengine's own registries, the loaders of checkpoints, the writer of local files and
the ``Pretrained`` initialiser, since mmengine reaches them by name from places that no subclass can; and the formatter
of its logs.
"""

from __future__ import annotations

import ast
import copy
import datetime
import difflib
import functools
import hashlib
import importlib
import inspect
import io
import logging
import math
import os
import pickle
import platform
import re
import subprocess
import sys
import traceback
import types
import warnings
import zipfile
from argparse import Action, ArgumentParser, Namespace
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable
from urllib.error import URLError

import mmengine
import numpy as np
import torch
import torch.distributed as torch_dist
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import all_gather_object, broadcast_object_list, get_dist_info, is_distributed, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import HistoryBuffer, MessageHub, MMLogger, print_log
from mmengine.logging.logger import MMFormatter
from mmengine.model import is_model_wrapper
from mmengine.model.weight_init import PretrainedInit, update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS
from mmengine.runner.checkpoint import CheckpointLoader, get_torchvision_models
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import DamagedError, InputError, nearest, one_line, printable
from .files import naming, write_text, written_whole
from .options import Written, at, parse, read_option
from .processes import end_with_parent
from .reading import (
    DEEPEST,
    fields,
    flag,
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
from .registry import HOOKS, VISBACKENDS

MAX_HISTORY = 1000
_CODE = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial, type)


def _warn(message: str) -> None:
    print_log(message, logger="current", level=logging.WARNING)


# ---------------------------------------------------------------------------------------------- reading checkpoints


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """Turn everything that can go wrong while reading ``source`` into an :class:`InputError` of one line."""
    try:
        yield
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        # torch's message is a page of advice on how to load the file unsafely; only the name in it is of use.
        found = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
        if found and "Unsupported" in str(error):
            raise DamagedError(
                f"checkpoint '{source}' holds a {found[1]}, which only running code from the file could restore; "
                "convert it to plain tensors (torch.save of its state_dict) where you trust it"
            ) from None
        raise DamagedError(f"checkpoint '{source}' is damaged or not a checkpoint; use another file") from None
    except URLError as error:
        raise InputError(f"checkpoint '{source}' cannot be downloaded ({one_line(error)}); use a local file") from None
    except Exception as error:  # bytes that are no pickle can make the unpickler raise anything
        raise DamagedError(f"checkpoint '{source}' is damaged ({one_line(error)[:200]}); use another file") from error


def load_plain(filename: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of tensors and plain Python values from a local file; code in it is never run.

    The checksums that the file has are verified: those of its archive, or the one that :func:`write_tensors` puts
    into a ``.safetensors`` file. Files of torch before 1.6 have none.

    Args:
        filename: local path; one that ends in ``.safetensors`` is read as such.
        map_location: as for :func:`torch.load`; safetensors are read to the CPU.

    Returns:
        What the file holds, less ``meta['config']``, which mmengine would execute on resume.

    Raises:
        InputError: the file is missing.
        DamagedError: it is damaged, not a dictionary, or holds objects that need unpickling of code, tensors that are
            not dense, or containers nested too deep.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise InputError(f"checkpoint '{filename}' does not exist; check the path")
    with _reading(str(filename)):
        if path.suffix == ".safetensors":
            checkpoint: Any = _load_safetensors(path)
        else:
            if zipfile.is_zipfile(path):
                _verify_archive(path)
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
        return _without_config(_content(checkpoint), str(filename))


def _verify_archive(path: Path) -> None:
    """Compare the checksums of an archive of torch, which torch itself does not look at: .1 s for 100 MB."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(set(names)) < len(names) or any(i.compress_type != zipfile.ZIP_STORED for i in archive.infolist()):
            raise ValueError("its archive has entries twice, or packed ones")
        if (wrong := archive.testzip()) is not None:
            raise ValueError(f"the checksum of '{wrong}' is wrong: bytes have changed since it was written")


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(path)
    with safe_open(path, "pt") as file:
        written = (file.metadata() or {}).get(_DIGEST)
    if written is not None and written != _digest(tensors):
        raise ValueError("its checksum is wrong: bytes have changed since it was written")
    return tensors


_DIGEST = "odc.sha256"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _content(value: Any, depth: int = 0, known: dict[int, Any] | None = None) -> Any:
    """Return a copy whose containers are of the plain kinds, with the tensors themselves.

    An ordered dictionary from a file may have any attributes, methods' names too; of these only a module's versions
    are kept.

    Raises:
        ValueError: a tensor is no plain array of numbers, or containers are nested too deep or within themselves.
    """
    known = {} if known is None else known
    if isinstance(value, Tensor):
        _check_tensor(value)
    if not isinstance(value, dict | list | tuple | set) or isinstance(value, torch.Size):
        return value
    if depth > DEEPEST:
        raise ValueError(f"it is nested deeper than {DEEPEST}")
    if id(value) not in known:
        if not isinstance(value, dict):
            copied: Any = type(value)(_content(v, depth + 1, known) for v in value)
        else:
            copied = type(value)({k: _content(v, depth + 1, known) for k, v in dict.items(value)})
            versions = getattr(value, "_metadata", None)
            if isinstance(versions, dict) and all(isinstance(v, dict) for v in dict.values(versions)):
                copied._metadata = _content(versions, depth + 1, known)
        known[id(value)] = copied
    return known[id(value)]


def _check_tensor(value: Tensor) -> None:
    if value.layout != torch.strided or value.is_meta or value.is_quantized or value.is_nested or value.is_complex():
        kind = f"{'quantized ' * value.is_quantized}{value.layout} {value.dtype} on {value.device}".replace(
            "torch.", ""
        )
        raise ValueError(f"it holds a tensor that is no plain array of real numbers ({kind})")
    size = value.numel() * value.element_size()
    if size > max(value.untyped_storage().nbytes(), _EXPANDED):
        raise ValueError(f"a tensor of shape {tuple(value.shape)} has only {value.untyped_storage().nbytes():,} bytes")


_EXPANDED = 2**20  # bytes that a tensor may have beyond its storage, as views that repeat values have


def _without_config(checkpoint: Any, source: str) -> dict[str, Any]:
    if not isinstance(checkpoint, dict):
        raise DamagedError(f"checkpoint '{source}' holds a {type(checkpoint).__name__}, not a dictionary of tensors")
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
        checkpoint = _content(checkpoint)
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


_TAKE_PART = "take what fits with load_partial=True (of init_cfg: partial=True)"


def load_state(
    model: nn.Module,
    state_dict: Mapping[str, Any],
    *,
    partial: bool = False,
    source: str = "the given state",
    otherwise: str = _TAKE_PART,
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
        otherwise: what to do, in the message, about a state of another model.

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
        if _shape(given[k]) != _shape(wanted[k]) and not (k.startswith(resizing) and isinstance(given[k], Tensor))
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
        raise InputError(f"{source} does not fit the model: {report}; use the model it was saved from, or {otherwise}")
    chosen = OrderedDict((k, given[k]) for k in report.loaded)
    trained = {k for k, _ in model.named_parameters()}
    for k, value in chosen.items():
        if wrong := _wrong_values(value, wanted[k], k in trained):
            raise DamagedError(f"{source} is damaged: {k} {wrong}; use another file")
    if metadata is not None:
        chosen._metadata = metadata  # type: ignore[attr-defined]  # versions of the modules that wrote it
    try:
        model.load_state_dict(chosen, strict=not partial)
    except DamagedError as error:  # of a module that checks what it takes
        raise DamagedError(f"{source}: {error}; use another file") from error
    except RuntimeError as error:  # a module of its own mind about what it takes
        raise InputError(f"{source} does not fit the model: {one_line(error)}") from error
    return report


def _wrong_values(value: Any, wanted: Tensor, trained: bool) -> str | None:
    """Return what is wrong with a tensor that is to be loaded: that of a parameter is finite, none has a NaN."""
    if not isinstance(value, Tensor):
        return None
    if value.dtype != wanted.dtype and not (value.is_floating_point() and wanted.is_floating_point()):
        return f"has the type {value.dtype}, not {wanted.dtype}".replace("torch.", "")
    if value.is_floating_point() and bool((~value.isfinite() if trained else value.isnan()).any()):
        return "has values that are not finite" if trained else "has a NaN"
    return None


def _shape(value: Any) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _model_state(checkpoint: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    state = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise DamagedError(f"{source} is damaged: its state_dict is no dictionary of names; use another file")
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
        source = f"checkpoint '{self.checkpoint}'"
        state = _model_state(CheckpointLoader.load_checkpoint(self.checkpoint, map_location=self.map_location), source)
        if self.prefix is not None:
            prefix = self.prefix.rstrip(".") + "."
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if not state:
                raise InputError(f"checkpoint '{self.checkpoint}' has no names under prefix '{prefix}'; check prefix")
        report = load_state(module, state, partial=self.partial, source=source)
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
        data = save(dict(content), metadata={"format": "pt", _DIGEST: _digest(content)})
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
    """Record in ``work_dir/last_checkpoint`` what to resume from: the name of a file that lies in ``work_dir``."""
    write_text(Path(work_dir) / "last_checkpoint", Path(checkpoint).name)


def find_resume(work_dir: str | Path) -> Iterator[str]:
    """Yield the checkpoints in ``work_dir``, the newest first.

    The first is the one that ``last_checkpoint`` names; the others, ``epoch_*.pth`` and ``iter_*.pth``, come by the
    iterations behind them, and last those that cannot be read.
    """
    directory = Path(work_dir)
    last = _last_checkpoint(directory)
    if last is not None:
        yield str(last)

    def iterations(path: Path) -> int:
        try:
            return int(_META(load_plain(path).get("meta"))["iter"])
        except ValueError:
            return -1

    # By the count in the file: times of modification change when a directory is copied.
    files = [p for pattern in ("epoch_*.pth", "iter_*.pth") for p in directory.glob(pattern) if p != last]
    counts = {path: iterations(path) for path in files}
    yield from map(str, sorted(files, key=lambda path: (counts[path], path.stat().st_mtime_ns), reverse=True))


def _last_checkpoint(directory: Path) -> Path | None:
    """Return the file that ``last_checkpoint`` names, which lies beside it, if it does."""
    marker = directory / "last_checkpoint"
    if not marker.exists():
        return None
    try:
        name = read_text(marker, most=255)
        if name != os.path.basename(name) or not name.isprintable():
            raise ValueError("it holds no name of a file")
    except (OSError, ValueError) as error:
        _warn(f"'{marker}' does not name a checkpoint ({one_line(error)}); looking for the newest")
        return None
    return directory / name if (directory / name).is_file() else None


# ----------------------------------------------------------------------------------------- what a checkpoint may hold


def _anything(value: Any) -> Any:
    return value


def _note(value: Any) -> Any:
    """Kind: what the message hub keeps; hooks of mmengine and of this package go by some entries, and delete by one."""
    known = {"keep_ckpt_ids": listing(whole()), "last_ckpt": text, "preflight": mapping(real())}
    best = {"best_ckpt": optional(text), "best_score": real()}
    of_best = {name: kind for name in value for start, kind in best.items() if str(name).startswith(start)}
    return fields({}, _anything, **known, **of_best)(value)


_META = fields({"epoch": whole(), "iter": whole()}, _anything, seed=optional(whole(high=2**32 - 1)))
_HUB = fields({"log_scalars": mapping(_anything), "runtime_info": _note, "resumed_keys": mapping(flag)})
_OPTIMIZER = fields(
    {
        "state": mapping(mapping(_anything), keys=whole()),
        "param_groups": listing(fields({"params": listing(whole())}, _anything)),
    },
    _anything,
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


def _check_optimizer(state: Any, optimizer: torch.optim.Optimizer) -> None:
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


# mmengine's guess whether more of a metric is better, by parts of its name, knows none of clustering's.
_GREATER = [*mmengine.hooks.CheckpointHook._default_greater_keys, "nmi", "ari", "knn", "linear", "entropy"]
_LESS = [*mmengine.hooks.CheckpointHook._default_less_keys, "empty"]


def _check_measured(name: str, metrics: Mapping[str, float], who: str) -> None:
    if name not in metrics:
        raise InputError(f"{who} waits for the metric '{name}', which this evaluation lacks{nearest(name, metrics)}")


@HOOKS.register_module()
class CheckpointHook(mmengine.hooks.CheckpointHook):
    """mmengine's hook that never leaves the disk without a complete checkpoint, and writes none during evaluation.

    Takes the arguments of mmengine's. An old checkpoint is deleted after the new one is completely written, the best
    one too, and only in this run's own directory. The last ``max_keep_ckpts`` stay, one that a signal left among them;
    that one goes when training has come to the next of its own, so that the files end as those of an unbroken run.

    Raises:
        InputError: ``max_keep_ckpts=1``, which leaves nothing to fall back to, or an option that it does not have.
    """

    _default_greater_keys: ClassVar[list[str]] = _GREATER
    _default_less_keys: ClassVar[list[str]] = _LESS
    _in_training = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in self.args:  # mmengine takes any name, and fails when it saves
            if name not in inspect.signature(mmengine.runner.Runner.save_checkpoint).parameters:
                known = inspect.signature(mmengine.hooks.CheckpointHook).parameters
                raise InputError(f"CheckpointHook has no option '{name}'{nearest(name, known)}")
        if self.out_dir is not None:
            raise InputError(f"CheckpointHook saves into the work directory, not into out_dir='{self.out_dir}'")
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
        if not self._in_training or not self.save_best:
            return
        for name in self.key_indicators:
            if name != "auto":
                _check_measured(name, metrics, "save_best")
        super().after_val_epoch(runner, metrics)

    def _init_rule(self, rule: str | None, key_indicator: str) -> None:
        try:
            super()._init_rule(rule, key_indicator)
        except ValueError as error:
            raise InputError(f"save_best='{key_indicator}' needs rule='greater' or rule='less': {error}") from error

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
        for name in os.listdir(runner.work_dir):
            path = os.path.join(runner.work_dir, name)
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


@HOOKS.register_module()
class EarlyStoppingHook(mmengine.hooks.EarlyStoppingHook):
    """mmengine's hook for any metric, which a resumed run continues to count.

    Takes the arguments of mmengine's.
    """

    _default_greater_keys: ClassVar[list[str]] = _GREATER
    _default_less_keys: ClassVar[list[str]] = _LESS
    _in_training = False

    def before_run(self, runner: mmengine.runner.Runner) -> None:
        """Do nothing: mmengine builds the loop here, only to see whether it can be stopped."""

    def before_train(self, runner: mmengine.runner.Runner) -> None:
        """Remember that there is something to stop."""
        self._in_training = True

    def after_val_epoch(self, runner: mmengine.runner.Runner, metrics: dict[str, float]) -> None:
        """Stop the training, if the metric says so: a function of its values so far, by epoch."""
        if not self._in_training:
            return
        _check_measured(self.monitor, metrics, type(self).__name__)
        hub, key = runner.message_hub, f"early_stopping_{self.monitor}"
        known = hub.get_info(key) if key in hub.runtime_info else {}
        values = {**known, runner.epoch: float(metrics[self.monitor])}
        hub.update_info(key, values)
        self.wait_count, self.best_score = 0, -math.inf if self.rule == "greater" else math.inf
        for epoch in sorted(values):
            stop, message = self._check_stop_condition(values[epoch])
        if stop:
            runner.train_loop.stop_training = True
            runner.logger.info(message)


# ----------------------------------------------------------------------------------------------------------- Runner


@runtime_checkable
class StatefulLoop(Protocol):
    """A train loop with a state of its own, which :class:`Runner` saves under ``checkpoint['loop']``."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain Python values; called on rank 0 only."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what :meth:`state_dict` returned, on CPU; called on every rank, last of all when resuming."""


class _Formatter(MMFormatter):
    """mmengine's, without what no log should get: names of files could otherwise move the cursor, or forge a line.

    Only pages keep their lines.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        record = copy.copy(record)
        record.msg, record.args = printable(record.getMessage(), "\n" if _is_page(record) else ""), None
        line: str = super().format(record)
        return line


mmengine.logging.logger.MMFormatter = _Formatter  # of all loggers that are made from now on


def _is_page(record: logging.LogRecord) -> bool:
    """Return whether it is a page of mmengine's runner: environment, whole config, list of hooks."""
    own = record.pathname == mmengine.runner.runner.__file__
    return bool(own and record.levelno <= logging.INFO and "\n" in record.getMessage())


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
        "paramwise_options -- ",  # a line for every parameter
    )

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is for the terminal."""
        return not _is_page(record) and not any(note in record.getMessage() for note in self._NOTES)


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
    - ``resume=True`` without ``load_from`` takes the newest checkpoint that is whole (:func:`find_resume`), and says
      which ones are not;
    - a train loop with ``state_dict`` and ``load_state_dict`` is saved and resumed too (:class:`StatefulLoop`);
    - launchers work without a GPU, by gloo; DDP never broadcasts buffers by itself;
    - any number of runners can be built in one process;
    - the terminal shows one-line messages; environment, config and hooks go to the log file.
    """

    precision = "float32"  # what the weights are, or were, trained in; evaluation and extraction are in float32
    _resumed_precision: str | None = None
    _timestamps: ClassVar[set[str]] = set()
    _config_written = False
    _configured: list[dict[str, Any]] | None = None  # the optimiser's options, a dict a group
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
                cfg.setdefault("bucket_cap_mb", _ONE_BUCKET)
                cfg.setdefault("broadcast_buffers", False)
                cfg.setdefault("find_unused_parameters", self.cfg.get("find_unused_parameters", False))
                if get_device() == "cpu":
                    cfg["device_ids"] = None
        with warnings.catch_warnings():
            # torch's replacement, forward_sync_buffers, overwrites buffers with rank 0's when the model is wrapped:
            # those of a rank's own must stay.
            warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
            wrapped: nn.Module = super().wrap_model(cfg or None, model)
        if isinstance(wrapped, nn.parallel.DistributedDataParallel):
            order = {parameter: place for place, parameter in enumerate(wrapped.parameters())}
            # Without annotations: DDP takes those that are texts for wrong ones.
            wrapped.register_comm_hook(order, lambda order, bucket: _average_in_order(order, bucket))
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

    # -- precision

    def settle_precision(self) -> None:
        """Settle what the training that begins computes in: the config's ``precision``, or that of the resumed run."""
        precision = settle_precision(self.cfg.get("precision"))
        before = self._resumed_precision
        if before is not None and before != precision:
            reason = _lacks_bfloat16_anywhere() if before == "bfloat16" else None
            if reason is None:
                self.logger.warning(f"the run goes on in its checkpoint's precision, {before}, not in {precision}")
                precision = before
            else:
                self.logger.warning(f"the run was in {before} so far and goes on in {precision}: {reason}")
        self.precision = precision

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the model trains: autocast to bfloat16, where that is the run's precision.

        It has float32's range, so there is no loss scaling; parameters, gradients and optimiser state stay float32.
        """
        if self.precision == "float32":
            return nullcontext()
        device: str = next(self.model.parameters()).device.type
        return torch.autocast(device, dtype=torch.bfloat16)

    def register_hook(self, hook: Any, priority: Any = None) -> None:
        """Register a hook; what it does not take is wrong input."""
        try:
            super().register_hook(hook, priority)
        except InputError:
            raise
        except (TypeError, ValueError, AssertionError, ImportError, KeyError) as error:
            name = hook.get("type") if isinstance(hook, Mapping) else type(hook).__name__
            raise InputError(f"hook '{name}' cannot be made of {hook}: {one_line(error)}") from error

    def scale_lr(self, optim_wrapper: Any, auto_scale_lr: dict[str, Any] | None = None) -> None:
        """Scale the learning rates by the rows of a move of the optimiser; mmengine would ask a ``DataLoader``."""
        if auto_scale_lr and auto_scale_lr.get("enable"):
            rows, base = self.train_loop.batch_size, auto_scale_lr["base_batch_size"]
            for group in optim_wrapper.optimizer.param_groups:
                group["lr"] *= rows / base
            self.logger.info(
                f"learning rates are those for {base} rows times {rows / base:g}, for {rows} (auto_scale_lr)"
            )

    # -- saving

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save, unless a weight is not finite: a checkpoint is there to go on from."""
        if (name := non_finite(self.model)) is not None:
            raise diverged(self, f"'{name}' of the model is not finite after iteration {self.iter + 1}")
        super().save_checkpoint(*args, **kwargs)

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
        checkpoint["meta"]["precision"] = self.precision
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
        otherwise = _TAKE_PART
        if self._resume:  # which takes all or nothing
            otherwise = f"start anew with what fits: load_from='{filename}' and load_partial=True, without --resume"
        source = f"checkpoint '{filename}'"
        report = load_state(
            self.model, _model_state(checkpoint, source), partial=partial, source=source, otherwise=otherwise
        )
        self._has_loaded = True
        meta = checkpoint.get("meta")
        saved = meta.get("precision") if isinstance(meta, Mapping) else None
        self.precision = saved if saved in PRECISIONS[:2] else "float32"
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
        candidates = find_resume(self.work_dir)
        tried: list[str] = []
        while True:
            found = [next(candidates, None) if is_main_process() else None]
            broadcast_object_list(found)  # one choice for all ranks
            if found[0] is None:
                break
            try:
                self.resume(found[0])
                return
            except DamagedError as error:
                tried.append(found[0])
                _warn(f"not resuming from {found[0]}: {error}")
        if tried:
            raise InputError(
                f"work_dir '{self.work_dir}' has {len(tried)} checkpoint(s), none of which can be loaded "
                f"('{tried[0]}', ...); start anew in another work_dir"
            )
        self.logger.info(f"no checkpoint to resume from in {self.work_dir}; starting from the beginning")

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
            InputError: the checkpoint does not fit, or lacks what resuming needs.
            DamagedError: it cannot be read safely, or holds what no run could have written.
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
        with reading(filename, "is no checkpoint of a run", "use another one"):
            meta, hub = _META(checkpoint["meta"]), _HUB(checkpoint["message_hub"])
            loop._epoch, loop._iter = meta["epoch"], meta["iter"]
            self._resume_seed(meta.get("seed"), filename)
            self._resumed_precision = self.precision
            self.message_hub.load_state_dict(hub)
            if resume_optimizer:
                self._resume_optimizer(checkpoint["optimizer"], filename)
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

    def _resume_optimizer(self, state: Any, filename: str) -> None:
        self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
        optimizer = self.optim_wrapper.optimizer
        _check_optimizer(state, optimizer)
        if self._configured is None:  # once: a damaged checkpoint may have left its own before the older one is taken
            self._configured = _options(optimizer.param_groups)
        try:
            self.optim_wrapper.load_state_dict(state)
        except ValueError as error:
            raise InputError(f"the optimiser of checkpoint '{filename}' does not fit: {one_line(error)}") from None
        _change_options(optimizer, self._configured)

    def _resume_schedulers(self, saved: Any) -> None:
        position = {"last_step", "best", "num_bad_epochs", "cooldown_counter"}
        for number, (scheduler, state) in enumerate(zip(_flat(self.param_schedulers), _flat(saved), strict=False)):
            own = to_plain(scheduler.state_dict())
            fields({}, **{name: functools.partial(_like, value) for name, value in own.items()})(state)
            for name, value in own.items():
                if name.startswith("_") or name in position or name not in state or state[name] == value:
                    continue
                self.logger.warning(
                    f"param_scheduler {number} ({type(scheduler).__name__}) keeps {name}={state[name]} of the "
                    f"checkpoint; the config's {name}={value} is not used"
                )
            scheduler.load_state_dict(state)


def non_finite(model: nn.Module) -> str | None:
    """Return the name of the first parameter or batch-norm statistic that is not finite; ``None``: all are."""
    model = model.get_submodule("module") if is_model_wrapper(model) else model
    named: dict[str, Tensor] = dict(model.named_parameters())
    for prefix, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            named.update((name, b) for name, b in module.named_buffers(prefix) if b.is_floating_point())
    if not named:
        return None
    finite = torch.stack([tensor.detach().sum(dtype=torch.float32) for tensor in named.values()]).isfinite()
    return None if bool(finite.all()) else list(named)[int((~finite).nonzero()[0])]


def diverged(runner: mmengine.runner.Runner, what: str, remedy: str | None = None) -> BaseException:
    """Return what to raise, on all ranks, where a training has left the finite numbers; the first rank says why.

    Args:
        runner: the runner.
        what: what is not finite, and where.
        remedy: by default to lower the learning rate.
    """
    if not is_main_process():
        return SystemExit(2)
    if remedy is None:
        rate = max(group.get("initial_lr", group["lr"]) for group in runner.optim_wrapper.optimizer.param_groups)
        remedy = f"lower the learning rate, now {rate:g} (optim_wrapper.optimizer.lr)"
    last = next(find_resume(runner.work_dir), None)
    kept = "no checkpoint was saved" if last is None else f"the last checkpoint, '{last}', was saved before that"
    return InputError(f"{what}: {remedy}; {kept}")


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
            f"({type(error).__name__}: {one_line(error)}): put these options of optim_wrapper.optimizer back, or "
            "start anew in another --work-dir"
        ) from None


_ONE_BUCKET = 2**20  # MiB


def _average_in_order(order: Mapping[Tensor, int], bucket: Any) -> torch.futures.Future[Tensor]:
    """Average gradients over the ranks, laid out in the order of the model's parameters.

    How sums of three numbers or more are rounded depends on where they lie in what is reduced. After its first step DDP
    lays gradients out anew, in the order in which they came, so a resumed run would differ from an unbroken one.
    """
    gradients = [
        gradient
        for _, gradient in sorted(
            zip(bucket.parameters(), bucket.gradients(), strict=True), key=lambda pair: order[pair[0]]
        )
    ]
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / torch_dist.get_world_size()

    def put_back(done: torch.futures.Future[list[Tensor]]) -> Tensor:
        parts = done.value()[0].split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        whole: Tensor = bucket.buffer()
        return whole

    return torch_dist.all_reduce(flat, async_op=True).get_future().then(put_back)


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

PRECISIONS = ("float32", "bfloat16", "auto")
FORBID_BFLOAT16 = "ODC_BFLOAT16"


def check_precision(asked: Any) -> str:
    """Return what the ``precision`` of a config asks for, of :data:`PRECISIONS`; ``None`` is the first of them.

    Raises:
        InputError: for anything else.
    """
    asked = PRECISIONS[0] if asked is None else asked
    if asked not in PRECISIONS:
        raise InputError(f"precision is {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}, not {asked!r}")
    return str(asked)


def lacks_bfloat16() -> str | None:
    """Return why this process, alone, is not to compute in bfloat16, or ``None`` where its device has instructions.

    Elsewhere it is emulated, which takes many times as long as float32.

    Raises:
        InputError: the environment variable ``ODC_BFLOAT16`` is neither 0, which forbids it, nor 1.
    """
    forbidden = os.environ.get(FORBID_BFLOAT16, "1")
    if forbidden not in ("0", "1"):
        raise InputError(f"{FORBID_BFLOAT16}={forbidden}: 0 forbids bfloat16, 1 leaves it to the machine")
    if forbidden == "0":
        return f"{FORBID_BFLOAT16}=0 forbids it"
    device = get_device()
    if device == "cpu":
        return None if _cpu_has_bfloat16() else "this processor has no instructions for it and would emulate it"
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return None
        return f"the GPU ({torch.cuda.get_device_name()}) would emulate it"
    return f"nothing is known of it on the device '{device}'"


def _cpu_has_bfloat16() -> bool:
    try:
        through_onednn = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # a torch without oneDNN
        return False
    if platform.machine() not in ("x86_64", "AMD64"):
        return through_onednn
    # oneDNN says yes to every AVX-512, and emulates where that has no bfloat16.
    return through_onednn and bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def settle_precision(asked: Any) -> str:
    """Return what to train in, ``"float32"`` or ``"bfloat16"``: the latter where it is asked for and all ranks have it.

    It is said once in a process; where ``"bfloat16"`` cannot be, unlike ``"auto"``, as a warning.

    Args:
        asked: see :func:`check_precision`.
    """
    asked = check_precision(asked)
    if asked == "float32":
        return "float32"
    reason = _lacks_bfloat16_anywhere()
    told = f"training in {'bfloat16' if reason is None else f'float32, not bfloat16: {reason}'}"
    if told not in _told:
        _told.add(told)
        print_log(told, "current", logging.WARNING if asked == "bfloat16" and reason else logging.INFO)
    return "bfloat16" if reason is None else "float32"


_told: set[str] = set()  # what settle_precision has said in this process


def _lacks_bfloat16_anywhere() -> str | None:
    reason = lacks_bfloat16()
    reasons = all_gather_object(reason) if is_distributed() else [reason]  # ranks of different kinds must agree
    return next((r for r in reasons if r is not None), None)


# ----------------------------------------------------------------------------------------------------------- config


class Overrides(Action):
    """``--cfg-options KEY=VALUE ...``, each value as it is written: :func:`load_config` knows what kind it is to be."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """Store ``{key: value}``."""
        options = dict(getattr(namespace, self.dest) or {})
        for word in values:
            key, equals, value = word.partition("=")
            if not equals:
                parser.error(f"{option_string} takes KEY=VALUE, not '{word}'")
            options[key] = Written(value)
        setattr(namespace, self.dest, options)


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> Config:
    """Read a classic config, merge ``overrides`` and import what its ``custom_imports`` names.

    Modules are looked for on ``sys.path``, then next to the config, then in the current directory; the latter two
    stay on ``sys.path``, so that worker processes find the modules too.

    Args:
        path: a ``.py`` config, which is code: all that stands in it is run; or a ``.json`` one, which is data: it can
            neither inherit nor import.
        overrides: dotted keys to values; those of ``--cfg-options`` are :class:`odc.options.Written`, and get the kind
            that their place in the config is annotated with.

    Raises:
        InputError: the file is missing, cannot be parsed or run, an override has no place, or an import fails.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"config '{path}' does not exist{_near(path)}")
    if path.suffix not in (".py", ".json"):
        raise InputError(f"config '{path}' ends in neither .py nor .json: write it as one of them")
    if path.suffix == ".json":
        values = read_json(path, _config_data, "is no config in JSON", "see odc print-config for what a config holds")
        config = Config(values, filename=str(path))
    else:
        config = _run_config(path)
    _merge(config, path, overrides or {})
    return config


def _run_config(path: Path) -> Config:
    try:
        # lazy_import=None would take a config that imports anything for one of mmengine's lazy-import configs.
        return Config.fromfile(str(path), lazy_import=False, import_custom_modules=False)
    except Exception as error:
        wrong = _syntax_error(path) if isinstance(error, SyntaxError) else None
        where = (
            f"{wrong.filename}', line {wrong.lineno}: {wrong.msg}" if wrong else f"{path}': {type(error).__name__}: "
        )
        with warnings.catch_warnings():  # mmengine leaves a temporary file open in the frames of its error
            warnings.simplefilter("ignore", ResourceWarning)
            traceback.clear_frames(error.__traceback__)
        raise InputError(f"config '{where}" + ("" if wrong else one_line(error))) from error


def _config_data(value: Any) -> dict[str, Any]:
    """Kind: what a config in JSON may be."""

    def check(part: Any) -> None:
        for name, entry in part.items() if isinstance(part, dict) else enumerate(part):
            if name in ("_base_", "_scope_", "custom_imports"):
                raise ValueError(f"it has '{name}', which leads to code: write it as a .py config")
            if isinstance(entry, dict | list):
                check(entry)

    values: dict[str, Any] = mapping(plain)(plain(value))
    check(values)
    return values


def _merge(config: Config, path: Path, overrides: dict[str, Any]) -> None:
    """Merge the overrides into a config, and import what its ``custom_imports`` names."""
    written = {key: (value, at(config, key)) for key, value in overrides.items() if isinstance(value, Written)}
    try:
        for key, value in overrides.items():
            if isinstance(value, dict) and "_delete_" in value:
                config.merge_from_dict({key: None})  # where there is nothing, merging would keep _delete_ itself
        # A copy: merging takes _delete_ out of what it is given.
        config.merge_from_dict(
            {**copy.deepcopy(overrides), **{key: parse(value) for key, (value, _) in written.items()}}
        )
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"config '{path}' has no place for the overrides {overrides}: {one_line(error)}") from error
    if config.get("custom_imports"):
        _import_custom(config.custom_imports, path)
    for key, (value, replaced) in written.items():  # now the types are there, and their annotations
        config.merge_from_dict({key: read_option(value, config, key, replaced)})


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
        return False, f": {type(error).__name__}: {one_line(error)} ({at.filename}, line {at.lineno})"
    return None
