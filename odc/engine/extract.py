"""One deterministic pass over a data set: features, and what the head makes of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from mmengine.logging import print_log
from torch import Tensor

from odc.data.keys import mix_array
from odc.data.views import ViewRequest, Views
from odc.engine.data import EXTRACT_VIEW, Source
from odc.errors import InputError
from odc.models.cluster_model import ClusterModel
from odc.structures import Comm, FeatureTable, derive_seed

_FIRST_NOTE_S = 10.0


@torch.no_grad()
def extract(
    model: ClusterModel,
    source: Source,
    comm: Comm,
    *,
    batch_size: int,
    index: Tensor | None = None,
    view: str = EXTRACT_VIEW,
    logits: Callable[[Tensor], Tensor] | None = None,
    logits_view: str | None = None,
    seed: int = 0,
    averaged: bool = True,
) -> FeatureTable:
    """Pass images through backbone and neck in evaluation mode; each rank does a contiguous share.

    Args:
        model: left in the mode, training or evaluation, that it was in.
        source: the data set and its loader.
        comm: the ranks that share the work.
        batch_size: images a forward.
        index: (N,) int64 ascending sample ids; ``None``: all.
        view: the view behind the features.
        logits: maps z (B, D) to the rows of ``FeatureTable.logits``; ``None``: not computed.
        logits_view: the view behind ``logits``; ``None``: ``view``, whose forward pass it then shares.
        seed: keys the augmentation of ``logits_view`` by sample id.
        averaged: use the moving averages of the parameters, where the model keeps them: what evaluation and prediction
            want, but not training.

    Returns:
        This rank's shard, on the model's device.

    Raises:
        InputError: features are not finite.
    """
    if index is None:
        index = torch.arange(len(source.dataset))
    mine = torch.tensor_split(index, comm.world)[comm.rank]
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    context = model.averaged() if averaged else contextlib.nullcontext()
    features: list[Tensor] = []
    outputs: list[Tensor] = []
    views = [view] if logits is None or logits_view in (None, view) else [view, str(logits_view)]
    with context:
        for images in _noted(source.loader.run(_requests(mine, views, batch_size, seed)), mine.numel(), batch_size):
            z = model.features(images["", view][:, 0].to(device, non_blocking=True))
            features.append(z)
            if logits is not None:
                if len(views) > 1:
                    z = model.features(images["", views[1]][:, 0].to(device, non_blocking=True))
                outputs.append(logits(z).float())
    model.train(was_training)
    if not features:
        raise RuntimeError(f"rank {comm.rank} has no sample to extract: {index.numel()} samples for {comm.world} ranks")
    table = FeatureTable(
        mine.to(device), torch.cat(features), torch.cat(outputs) if outputs else None, total=index.numel()
    )
    _check_finite(table.features, mine, index.numel(), source, view, comm)
    return table


def _check_finite(features: Tensor, ids: Tensor, total: int, source: Source, view: str, comm: Comm) -> None:
    """Refuse features (n, D) of these samples that are not finite, before they reach a memory, a clustering or a file.

    Raises:
        InputError: on all ranks; it names the first such image, and says whether its pixels are finite.
    """
    bad = comm.gather(ids[~features.isfinite().all(1).cpu()].to(features.device))
    if not len(bad):
        return
    first = bad[:1].cpu()
    (images,) = source.loader.run(_requests(first, [view], 1, 0))
    if bool(images["", view].isfinite().all()):
        why = (
            "its pixels are finite, so the network has diverged (lower optim_wrapper.optimizer.lr and begin from an "
            "older checkpoint), or the weights that it began from are damaged"
        )
    else:
        why = (
            f"its pixels are not finite either, as the view '{view}' gives them: check the transforms in "
            f"data.views.{view}"
        )
    raise InputError(
        f"the features of {len(bad):,} of {total:,} images are not finite, the first is "
        f"'{source.dataset.paths[int(first)]}'; {why}"
    )


@torch.no_grad()
def encode_views(
    model: ClusterModel,
    source: Source,
    comm: Comm,
    *,
    batch_size: int,
    index: Tensor,
    variant: Tensor,
    views: Sequence[str],
    seed: int,
) -> dict[str, Tensor]:
    """Return the features of some images through augmented views, for a model whose features no longer change.

    The augmentation is keyed by (seed, view, sample, variant): not by the batch or the rank that encodes the image.

    Args:
        model: used in the mode that it is in.
        source: the data set and its loader.
        comm: the ranks, each of which encodes a share.
        batch_size: images a forward.
        index: (S,) int64 sample ids.
        variant: (S,) int64 variants of the images.
        views: names of the views.
        seed: of the augmentation.

    Returns:
        ``{view: (S, D) float32}``, the whole on every rank, on the model's device.
    """
    device = next(model.parameters()).device
    ids, variants = (torch.tensor_split(x.cpu(), comm.world)[comm.rank].numpy() for x in (index, variant))

    def requests() -> Iterator[list[ViewRequest]]:
        for start in range(0, len(ids), batch_size):
            part: list[npt.NDArray[np.int64]] = [x[start : start + batch_size] for x in (ids, variants)]
            yield [
                ViewRequest("", view, (int(i),), int(v), int(key))
                for view in views
                for i, v, key in zip(*part, mix_array(derive_seed(seed, view), *part), strict=True)
            ]

    if not len(ids):
        raise RuntimeError(f"rank {comm.rank} has no sample to encode: {len(index)} samples for {comm.world} ranks")
    features: dict[str, list[Tensor]] = {view: [] for view in views}
    for images in _noted(source.loader.run(requests()), len(ids), batch_size):
        for view in views:
            features[view].append(model.features(images["", view][:, 0].to(device, non_blocking=True)))
    for view, parts in features.items():
        _check_finite(torch.cat(parts), torch.from_numpy(ids), len(index), source, view, comm)
    return {view: comm.gather(torch.cat(parts)) for view, parts in features.items()}


def _noted(batches: Iterator[Views], total: int, batch_size: int) -> Iterator[Views]:
    """Yield the batches; write a line now and then. The work on a batch is done when the next one is asked for."""
    started = noted = time.monotonic()
    for number, batch in enumerate(batches, start=1):
        yield batch
        done, now = min(number * batch_size, total), time.monotonic()
        if now - noted > _FIRST_NOTE_S:
            left = (now - started) / done * (total - done)
            print_log(f"extracting features: {done:,} of {total:,} images, {left:.0f} s left", "current")
            noted = now


def _requests(index: Tensor, views: list[str], batch_size: int, seed: int) -> Iterator[list[ViewRequest]]:
    ids = index.numpy()
    for start in range(0, len(ids), batch_size):
        part = ids[start : start + batch_size]
        keys = mix_array(seed, part.astype(np.int64))
        yield [
            ViewRequest("", view, (int(i),), 0, int(key)) for view in views for i, key in zip(part, keys, strict=True)
        ]
