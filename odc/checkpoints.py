"""Checkpoints: read without running code from them, loaded strictly, written whole or not at all, found again."""

from __future__ import annotations

import datetime
import functools
import hashlib
import io
import os
import pickle
import re
import types
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from mmengine.dist import barrier, get_rank
from mmengine.fileio import LocalBackend, register_backend
from mmengine.model import is_model_wrapper
from mmengine.runner.checkpoint import CheckpointLoader, get_torchvision_models
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from odc import logs
from odc.errors import DamagedError, InputError, meant, one_line
from odc.files import write_text, written_whole
from odc.memory.shards import Shard, shards_of
from odc.reading import DEEPEST, anything, fields, read_text, whole

_CODE = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial, type)


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


def load_plain(source: str | Path) -> dict[str, Any]:
    """Read a checkpoint of tensors and plain Python values to the CPU; code in it is never run.

    The checksums that the file has are verified: those of its archive, or the one that :func:`write_tensors` puts
    into a ``.safetensors`` file. Files of torch before 1.6 have none.

    Args:
        source: local path, where one that ends in ``.safetensors`` is read as such; or an ``http(s)://`` or
            ``torchvision://`` address.

    Returns what the file holds, less ``meta['config']``, which mmengine would execute on resume. Raises InputError for
    a file that is missing, or an address of another kind or out of reach; DamagedError for one that is damaged, not a
    dictionary, or holds objects that need unpickling of code, tensors that are not dense, or too deep containers.
    """
    scheme, separator, _ = str(source).partition("://")
    if separator:
        return _download(str(source), scheme)
    path = Path(source).expanduser()
    if not path.is_file():
        raise InputError(f"checkpoint '{source}' does not exist; check the path")
    with _reading(str(source)):
        if path.suffix == ".safetensors":
            checkpoint: Any = _load_safetensors(path)
        else:
            if zipfile.is_zipfile(path):
                _verify_archive(path)
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        return _checked(checkpoint, str(source))


def _verify_archive(path: Path) -> None:
    """Compare the checksums of an archive of torch, which torch itself does not look at: .1 s for 100 MB."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if len(set(names)) < len(names) or any(i.compress_type != zipfile.ZIP_STORED for i in archive.infolist()):
            raise ValueError("its archive has an entry twice, or a compressed one")
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

    Raises ValueError where a tensor is no plain array of numbers, or containers nest too deep or within themselves.
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
        kind = f"{'quantized ' * value.is_quantized}{value.layout} {value.dtype} on {value.device}"
        raise ValueError(f"it holds a tensor that is not a plain array of real numbers ({kind.replace('torch.', '')})")
    size = value.numel() * value.element_size()
    if size > max(value.untyped_storage().nbytes(), _EXPANDED):
        raise ValueError(f"a tensor of shape {tuple(value.shape)} has only {value.untyped_storage().nbytes():,} bytes")


_EXPANDED = 2**20  # bytes that a tensor may have beyond its storage, as views that repeat values have


def _checked(checkpoint: Any, source: str) -> dict[str, Any]:
    content = _content(checkpoint)
    if not isinstance(content, dict):
        raise DamagedError(f"checkpoint '{source}' holds a {type(content).__name__}, not a dictionary of tensors")
    if isinstance(content.get("meta"), dict):
        content["meta"].pop("config", None)
    return content


def _download(source: str, scheme: str) -> dict[str, Any]:
    if scheme == "torchvision":
        urls, name = get_torchvision_models(), source.partition("://")[2]
        if name not in urls:
            raise InputError(f"torchvision has no weights '{name}'{meant(name, urls)}")
        source = urls[name]
    elif scheme not in ("http", "https"):
        raise InputError(
            f"checkpoint '{source}': only local files, http(s):// and torchvision:// are read; download it first"
        )
    with first_rank_first(), _reading(source):
        loaded = torch.hub.load_state_dict_from_url(source, map_location="cpu", progress=False, weights_only=True)
        return _checked(loaded, source)


@contextmanager
def first_rank_first() -> Iterator[None]:
    """Let rank 0 do it alone, downloading say, and the others afterwards: they find the file in the cache."""
    if get_rank() > 0:
        barrier()
    try:
        yield
    finally:
        if get_rank() == 0:
            barrier()


# mmengine's own would unpickle unsafely in its initialisers.
CheckpointLoader.load_checkpoint = lambda filename, map_location=None, logger=None: load_plain(filename)


class LoadReport:
    """What loading a state into a model does: names ``loaded``, ``missing`` in the state, and ``unexpected`` in it.

    ``mismatched`` ones come with both shapes, as ``name: file (...), model (...)``; ``complete``: there are only loaded
    ones.

    Args:
        given: names to what should be tensors.
        wanted: names to the model's tensors.
        resizing: prefixes of the names under which shapes may differ.
        shards: which of the model's tensors are parts, by name; what is given is the whole.
    """

    def __init__(
        self,
        given: Mapping[str, Any],
        wanted: Mapping[str, Tensor],
        resizing: tuple[str, ...] = (),
        shards: Mapping[str, Shard] = types.MappingProxyType({}),
    ) -> None:
        wrong: dict[str, str] = {}
        for name in wanted.keys() & given.keys():
            file, model = _shape(given[name]), _shape(wanted[name])
            if name in shards:
                model = shards[name].shape(wanted[name].shape)
            if file != model and not (name.startswith(resizing) and isinstance(given[name], Tensor)):
                wrong[name] = f"{name}: file {file}, model {model}"
        self.loaded = tuple(name for name in wanted if name in given and name not in wrong)
        self.missing = tuple(name for name in wanted if name not in given)
        self.unexpected = tuple(name for name in given if name not in wanted)
        self.mismatched = tuple(wrong[name] for name in wanted if name in wrong)
        self.complete = not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} loaded"]
        for kind in ("missing", "unexpected", "mismatched"):
            names = getattr(self, kind)
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            parts.append(f"{len(names)} {kind}" + (f" ({shown})" if names else ""))
        return "; ".join(parts)


TAKE_PART = "take what fits with load_partial=True"


def load_state(
    model: nn.Module,
    state_dict: Mapping[str, Any],
    *,
    partial: bool = False,
    source: str = "the given state",
    otherwise: str = TAKE_PART,
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

    Raises InputError where names or shapes differ (``partial=False``; the model is unchanged), or nothing matches.
    """
    model = model.get_submodule("module") if is_model_wrapper(model) else model
    wanted = model.state_dict()
    prefix = "module."
    given: Any = OrderedDict(state_dict)
    given._metadata = dict(getattr(state_dict, "_metadata", ()))  # versions of the modules that wrote it
    if all(k.startswith(prefix) for k in given) and not any(k.startswith(prefix) for k in wanted):
        consume_prefix_in_state_dict_if_present(given, prefix)

    resizing = tuple(f"{n}." if n else "" for n, m in model.named_modules() if getattr(m, "resizes_on_load", False))
    report = LoadReport(given, wanted, resizing, shards_of(model))
    if not report.loaded and wanted:
        raise InputError(f"{source}: nothing in it fits the model: {report}; use the checkpoint of such a model")
    if not (partial or report.complete):
        raise InputError(f"{source} does not fit the model: {report}; use the model it was saved from, or {otherwise}")
    trained = {k for k, _ in model.named_parameters()}
    for k in report.loaded:
        if wrong := _wrong_values(given[k], wanted[k], k in trained):
            raise DamagedError(f"{source} is damaged: {k} {wrong}; use another file")
    for k in given.keys() - set(report.loaded):
        del given[k]
    try:
        model.load_state_dict(given, strict=not partial)
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


def model_state(checkpoint: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """Return the state of the model in a checkpoint, which may also be the checkpoint itself."""
    state = checkpoint.get("state_dict", checkpoint)
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise DamagedError(f"{source} is damaged: its state_dict is not a dictionary of names; use another file")
    return state


# ---------------------------------------------------------------------------------------------- writing checkpoints


def to_plain(value: Any, path: str = "checkpoint") -> Any:
    """Return ``value`` with CPU tensors and plain Python values only, so that ``weights_only=True`` loads it.

    NumPy scalars and arrays, paths, times, ranges and subclasses of the containers are converted. Functions and
    classes in a dictionary are dropped: they are code, which the reader has already. ``path`` names the value in the
    error.

    Raises TypeError for a value of another kind; the message says where it is.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if value is None or isinstance(value, (torch.dtype, torch.device)):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(value.copy())
    if isinstance(value, (np.ndarray, np.generic)):
        return to_plain(value.tolist(), path)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (datetime.timedelta, os.PathLike)):
        return str(value)
    plain: Any
    for plain in (bool, int, float, complex, str, bytes):
        if isinstance(value, plain):  # a subclass (an enum's value, for one) is cut down to what it is
            return plain(value)
    if isinstance(value, Mapping):
        items = {to_plain(k, path): to_plain(v, f"{path}.{k}") for k, v in value.items() if not isinstance(v, _CODE)}
        plain = Counter(items) if isinstance(value, Counter) else items
        if isinstance(value, OrderedDict):
            plain = OrderedDict(items)
            if hasattr(value, "_metadata"):  # of a module's state_dict
                plain._metadata = to_plain(value._metadata, path)
        return plain
    if isinstance(value, (list, tuple, set, frozenset, range)):
        kind = tuple if isinstance(value, tuple) else set if isinstance(value, (set, frozenset)) else list
        return kind(to_plain(v, f"{path}[{i}]") for i, v in enumerate(value))
    raise TypeError(f"{path} is a {type(value).__name__}; a checkpoint holds only tensors and plain Python values")


def write_tensors(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write what :func:`load_plain` is to return to ``path``, completely or not at all.

    It is written by ``torch.save``, or where ``path`` ends in ``.safetensors``, for names and tensors only, as such.
    """
    if Path(path).suffix == ".safetensors":
        # The format has no tensors in one memory, which weights of one layer in several places have, and no strides.
        dense = torch.contiguous_format
        apart = {name: tensor.detach().cpu().clone(memory_format=dense) for name, tensor in content.items()}
        data = save(apart, metadata={"format": "pt", _DIGEST: _digest(content)})
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

    def age(path: Path) -> tuple[int, int]:
        # First the count in the file: times of modification change when a directory is copied.
        try:
            count = int(fields({"iter": whole()}, anything)(load_plain(path).get("meta"))["iter"])
        except ValueError:
            count = -1
        return count, path.stat().st_mtime_ns

    files = [p for pattern in ("epoch_*.pth", "iter_*.pth") for p in directory.glob(pattern) if p != last]
    yield from map(str, sorted(files, key=age, reverse=True))


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
        logs.warn(f"'{marker}' does not name a checkpoint ({one_line(error)}); looking for the newest")
        return None
    return directory / name if (directory / name).is_file() else None
