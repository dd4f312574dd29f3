"""Features of a whole data set on the disk: computed once, for every run that wants the same ones.

A folder of features holds ``features.npy`` (N, D), which readers map instead of loading it, and ``index.json`` with the
names of the images, their fingerprint, and where the features are from. The index is written last, so a folder that has
one is whole. Until then ``shards/`` holds what is done, a file for some thousand images: an extraction that was killed
goes on behind them, and the result has the same bits as one that was not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mmengine.logging import print_log

from odc import logs
from odc.data.feature_files import FEATURES, INDEX, digest_of, read_folder
from odc.engine.data import EXTRACT_VIEW, Source
from odc.engine.extract import check_finite, encode
from odc.errors import InputError
from odc.files import LOCK, alone, writable, write_text, written_whole
from odc.models.cluster_model import ClusterModel
from odc.reading import fields, mapping, read_json, text, whole
from odc.structures import Comm, LocalComm

SHARDS, PLAN = "shards", "plan.json"
SHARD = 1024  # images of a shard, rounded up to whole batches
_PLAN = fields({"key": text, "batch_size": whole(1)})
_PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DTYPES = {"float32": np.float32, "float16": np.float16}


@torch.no_grad()
def stored_features(
    model: ClusterModel,
    source: Source,
    folder: str | Path,
    comm: Comm,
    *,
    batch_size: int,
    view: str = EXTRACT_VIEW,
    variant: int = 0,
    precision: str = "float32",
    dtype: str = "float32",
    meta: Mapping[str, str] | None = None,
) -> Path:
    """Return the folder, below ``folder``, with the features of a data set, which are extracted where it lacks them.

    It is called by :func:`feature_key`, so other weights, another view or other images are other features. Give it to
    the data set ``Features``, or read it with :func:`odc.data.feature_files.read_folder`. Arguments and errors are
    those of :func:`write_features`.
    """
    key = feature_key(model, source, view=view, variant=variant, precision=precision, dtype=dtype)
    how = batch_size, view, variant, precision, dtype, meta
    return _write(model, source, Path(folder) / key, key, comm, *how)


@torch.no_grad()
def write_features(
    model: ClusterModel,
    source: Source,
    path: str | Path,
    comm: Comm,
    *,
    batch_size: int,
    view: str = EXTRACT_VIEW,
    variant: int = 0,
    precision: str = "float32",
    dtype: str = "float32",
    meta: Mapping[str, str] | None = None,
) -> Path:
    """Pass all images through backbone and neck in evaluation mode; leave the features in the folder ``path``.

    Where they are there already nothing is done; where another process is at it, its result is waited for. Ranks share
    the work, and need ``path`` to be one folder for all. A process holds some shards at a time, however many images
    there are; the disk needs twice the size of the features in the end.

    Args:
        model: left in the mode, training or evaluation, that it was in; its moving averages are used, where it has any.
        source: the data set and its loader.
        path: folder to write.
        comm: the ranks.
        batch_size: images a forward; one that goes on keeps the one that it was begun with.
        view: name of a view without chance.
        variant: of the images (rotation by 90° × variant).
        precision: ``"float32"``, or autocast to ``"bfloat16"`` or ``"float16"``, which is for GPUs.
        dtype: of the file, ``"float32"`` or ``"float16"``.
        meta: where the features are from, for whoever reads them.

    Returns:
        ``path``.

    Raises:
        InputError: a view of chance, features that are not finite, or a folder that holds others or cannot be written.
    """
    key = feature_key(model, source, view=view, variant=variant, precision=precision, dtype=dtype)
    how = batch_size, view, variant, precision, dtype, meta
    return _write(model, source, Path(path), key, comm, *how)


def _write(
    model: ClusterModel,
    source: Source,
    path: Path,
    key: str,
    comm: Comm,
    batch_size: int,
    view: str,
    variant: int,
    precision: str,
    dtype: str,
    meta: Mapping[str, str] | None,
) -> Path:
    """Do what :func:`write_features` says, for features of this key: to find it takes all weights."""
    device = next(model.parameters()).device
    with ExitStack() as stack:

        def enter() -> tuple[torch.Tensor, ...]:
            return (torch.tensor(_begin(stack, path, key, source, batch_size), device=device),)

        batch_size, *todo = comm.first(enter)[0].tolist()
        if batch_size:
            error, was_training = None, model.training
            model.eval()
            try:
                with model.averaged(), _autocast(model, precision):
                    mine = todo[comm.rank :: comm.world]
                    _write_shards(model, source, path, mine, batch_size, view, variant, dtype)
            except InputError as wrong:  # the others must not wait for this rank
                error = wrong
            finally:
                model.train(was_training)
            failed = comm.sum(torch.tensor(int(error is not None), device=device))
            if error is not None:
                raise error
            if int(failed):
                raise InputError("another process could not extract its features")

            def finish() -> tuple[torch.Tensor, ...]:
                _finish(path, key, source, batch_size, dtype, dict(meta or {}))
                return (torch.zeros(1, device=device),)

            comm.first(finish)
    return path


def feature_key(
    model: ClusterModel,
    source: Source,
    *,
    view: str = EXTRACT_VIEW,
    variant: int = 0,
    precision: str = "float32",
    dtype: str = "float32",
) -> str:
    """Return 16 hex digits of all that decides the features: weights and layers, view, images, and precision.

    Raises:
        InputError: a view that cannot be told from others, or that draws; an unknown precision or dtype.
    """
    if precision not in _PRECISIONS or dtype not in _DTYPES:
        raise InputError(
            f"features are computed in {', '.join(_PRECISIONS)} and kept in {' or '.join(_DTYPES)}, not in {precision} "
            f"and {dtype}"
        )
    pipeline = source.views[view]
    if pipeline.random or pipeline.description is None:
        raise InputError(
            f"the view '{view}' cannot be stored: it has {pipeline.random or 'a function'}, which may give "
            "something else each time"
        )
    digest = hashlib.sha256()
    told = [pipeline.description, variant, source.dataset.identity, precision, dtype, model.description]
    digest.update(json.dumps(told).encode())
    with model.averaged():
        for part in (model.backbone, model.neck):
            for name, tensor in part.state_dict().items():
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _autocast(model: ClusterModel, precision: str) -> AbstractContextManager[Any]:
    dtype = _PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(next(model.parameters()).device.type, dtype=dtype)


def _shard_size(batch_size: int) -> int:
    return -(-SHARD // batch_size) * batch_size


def _begin(stack: ExitStack, path: Path, key: str, source: Source, batch_size: int) -> list[int]:
    """Return the size of a batch and the shards that are still to be done; 0 where the features are there.

    The folder is locked for as long as ``stack`` holds.
    """
    told = False
    while not _there(path, key, source):
        writable(path)
        try:
            doubt = stack.enter_context(alone(path))
            break
        except InputError:  # at work there
            if not told:
                print_log(f"waiting for another process that extracts these features: {path / LOCK}", "current")
            told = True
            time.sleep(0.5)
    else:
        return [0]
    if doubt:
        logs.warn(doubt)
    if _there(path, key, source):  # it has become so before the lock was ours
        return [0]
    shards = path / SHARDS
    plan = _plan(shards)
    if plan is None or plan["key"] != key:
        shutil.rmtree(shards, ignore_errors=True)
        plan = {"key": key, "batch_size": batch_size}
        write_text(shards / PLAN, json.dumps(plan))
    batch_size = plan["batch_size"]
    size, N = _shard_size(batch_size), len(source.dataset)
    every = range(-(-N // size))
    todo = [s for s in every if _shard(shards, s, min(size, N - s * size)) is None]
    if len(todo) < len(every):
        done = sum(min(size, N - s * size) for s in every if s not in set(todo))
        print_log(f"going on with an extraction: {done:,} of {N:,} images are done", "current")
    return [batch_size, *todo]


def _there(path: Path, key: str, source: Source) -> bool:
    """Return whether the features are there and whole."""
    if not (path / INDEX).exists():
        return False
    space = read_folder(path)
    if space.meta.get("key") != key or len(space.paths) != len(source.dataset):
        raise InputError(f"'{path}' holds other features: choose another folder, or delete this one")
    return True


def _plan(shards: Path) -> dict[str, Any] | None:
    try:
        plan: dict[str, Any] = read_json(shards / PLAN, _PLAN, "is no plan of an extraction", "it begins anew")
        return plan
    except (OSError, InputError):
        return None


def _file(shards: Path, number: int) -> Path:
    return shards / f"{number:06d}.npy"


def _shard(shards: Path, number: int, length: int) -> npt.NDArray[Any] | None:
    """Return the features of a shard, or ``None`` where it is not done."""
    try:
        rows: npt.NDArray[Any] = np.load(_file(shards, number), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    complete = rows.ndim == 2 and len(rows) == length and _file(shards, number).with_suffix(".json").is_file()
    return rows if complete else None


def _write_shards(
    model: ClusterModel,
    source: Source,
    path: Path,
    mine: list[int],
    batch_size: int,
    view: str,
    variant: int,
    dtype: str,
) -> None:
    """Extract and write these shards, ascending; only the last one of the data set is shorter than the others."""
    size, N = _shard_size(batch_size), len(source.dataset)
    ids = [np.arange(s * size, min(N, (s + 1) * size)) for s in mine]
    if not ids:
        return
    every = np.concatenate(ids)
    variants, keys = np.full_like(every, variant), {view: np.zeros_like(every)}
    batches = (z[view] for z in encode(model, source, every, variants, keys, batch_size))
    for number, index in zip(mine, ids, strict=True):
        z = torch.cat([next(batches) for _ in range(-(-len(index) // batch_size))])
        check_finite(z, torch.from_numpy(index), N, source, view, LocalComm())
        with np.errstate(over="ignore"):
            rows = z.cpu().numpy().astype(_DTYPES[dtype])
        if not np.isfinite(rows).all():
            raise InputError(
                f"the features of '{source.dataset.paths[int(index[0])]}' and others have values of up to "
                f"{float(z.abs().max()):g}, more than float16 holds: keep them in float32"
            )
        shard, dataset = _file(path / SHARDS, number), source.dataset
        lost = {dataset.paths[i]: dataset.lost[i] for i in index.tolist() if i in dataset.lost}
        write_text(shard.with_suffix(".json"), json.dumps(lost))
        with written_whole(shard) as file:
            np.save(file, rows)


def _finish(path: Path, key: str, source: Source, batch_size: int, dtype: str, meta: dict[str, str]) -> None:
    """Put the shards together, and the index beside them."""
    size, N = _shard_size(batch_size), len(source.dataset)

    def shards() -> Iterator[npt.NDArray[Any]]:
        for number, start in enumerate(range(0, N, size)):
            rows = _shard(path / SHARDS, number, min(size, N - start))
            if rows is None:
                raise InputError(
                    f"'{_file(path / SHARDS, number)}' is missing: all processes need one folder, which this one sees"
                )
            yield rows

    D = next(shards()).shape[1]
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (N, D)}
    with written_whole(path / FEATURES) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for rows in shards():
            file.write(np.ascontiguousarray(rows).data)
    features = np.load(path / FEATURES, mmap_mode="r")
    lost = [
        read_json(_file(path / SHARDS, number).with_suffix(".json"), mapping(text), "is no list", "extract them anew")
        for number in range(-(-N // size))
    ]
    index = {
        "fingerprint": source.dataset.fingerprint,
        "lost": {name: why for part in lost for name, why in part.items()},
        "shape": [N, D],
        "meta": {**meta, "key": key},
        "sha256": digest_of(features),
        "paths": list(source.dataset.paths),
    }
    write_text(path / INDEX, json.dumps(index))
    with contextlib.suppress(OSError):
        shutil.rmtree(path / SHARDS)
    print_log(f"features of {N:,} images, {D:,} each ({features.nbytes / 2**20:,.1f} MiB): {path}", "current")
