"""Features of images, of a whole data set or a part of it: the one way from images to z outside of a step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from mmengine.logging import print_log
from torch import Tensor

from odc.data.keys import mix_array
from odc.data.views import ViewRequest
from odc.engine.data import EXTRACT_VIEW, Source
from odc.errors import InputError
from odc.models.cluster_model import ClusterModel
from odc.structures import Comm, FeatureTable

_FIRST_NOTE_S = 10.0


@torch.no_grad()
def extract(
    model: ClusterModel,
    source: Source,
    comm: Comm,
    *,
    batch_size: int,
    index: Tensor | None = None,
    logits: Callable[[Tensor], Tensor] | None = None,
    logits_view: str = EXTRACT_VIEW,
    seed: int = 0,
    averaged: bool = True,
    pooled: bool = False,
) -> FeatureTable:
    """Pass images through backbone and neck in evaluation mode; each rank does a contiguous share.

    Args:
        model: left in the mode, training or evaluation, that it was in.
        source: the data set and its loader.
        comm: the ranks that share the work.
        batch_size: images a forward.
        index: (N,) int64 ascending sample ids; ``None``: all.
        logits: maps z (B, D) to the rows of ``FeatureTable.logits``; ``None``: not computed.
        logits_view: the view behind ``logits``; where it is that behind the features, they share a forward pass.
        seed: keys the augmentation of ``logits_view`` by sample id.
        averaged: use the moving averages of the parameters, where the model keeps them: what evaluation and prediction
            want, but of most models not training.
        pooled: fill ``FeatureTable.pooled``.

    Returns:
        This rank's shard, on the model's device.

    Raises:
        InputError: features are not finite.
    """
    index = torch.arange(len(source.dataset)) if index is None else index
    mine = share(index, comm)
    ids = mine.numpy()
    keys = dict.fromkeys([EXTRACT_VIEW] if logits is None else [EXTRACT_VIEW, logits_view], mix_array(seed, ids))
    features: list[Tensor] = []
    outputs: list[Tensor] = []
    D = model.neck.out_channels if pooled else None  # an estimator on pixels has no neck that knows
    was_training = model.training
    model.eval()
    with model.averaged() if averaged else contextlib.nullcontext():
        for z in encode(model, source, ids, np.zeros_like(ids), keys, batch_size, pooled):
            features.append(z[EXTRACT_VIEW])
            if logits is not None:
                outputs.append(logits(z[logits_view][:, :D]).float())
    model.train(was_training)
    found = torch.cat(features)
    check_finite(found, mine, len(index), source, EXTRACT_VIEW, comm)
    return FeatureTable(
        mine.to(found.device),
        found[:, :D] if pooled else found,
        torch.cat(outputs) if outputs else None,
        total=len(index),
        pooled=found[:, D:] if pooled else None,
    )


def share(index: Tensor, comm: Comm) -> Tensor:
    """Return this rank's contiguous part of ids (N,), on the CPU."""
    mine = torch.tensor_split(index.cpu(), comm.world)[comm.rank]
    if not len(mine):
        raise RuntimeError(f"rank {comm.rank} has no sample to encode: {len(index)} samples for {comm.world} ranks")
    return mine


def encode(
    model: ClusterModel,
    source: Source,
    ids: npt.NDArray[np.int64],
    variants: npt.NDArray[np.int64],
    keys: dict[str, npt.NDArray[np.int64]],
    batch_size: int,
    pooled: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Yield the features of images (S,), a batch after another, ``{view: (B, D)}``; write a line now and then.

    ``keys`` are those of the images (S,) for each view; ``pooled`` is that of ``ClusterModel.features``. The work on a
    batch is done when the next one is asked for.
    """

    def requests() -> Iterator[list[ViewRequest]]:
        for start in range(0, len(ids), batch_size):
            part = slice(start, start + batch_size)
            yield [
                ViewRequest("", view, (int(i),), int(v), int(key))
                for view, of_view in keys.items()
                for i, v, key in zip(ids[part], variants[part], of_view[part], strict=True)
            ]

    device = next(model.parameters()).device
    started = noted = time.monotonic()
    done = 0
    for images in source.loader.run(requests()):
        yield {view: model.features(images["", view][:, 0].to(device, non_blocking=True), pooled) for view in keys}
        done, now = min(done + batch_size, len(ids)), time.monotonic()
        if source.watch is not None:
            source.watch(done, len(ids))
        if now - noted > _FIRST_NOTE_S:
            left = (now - started) / done * (len(ids) - done)
            print_log(f"extracting features: {done:,} of {len(ids):,} images, {left:.0f} s left", "current")
            noted = now


def check_finite(features: Tensor, ids: Tensor, total: int, source: Source, view: str, comm: Comm) -> None:
    """Refuse features (n, D) of these samples that are not finite, before they reach a memory, a clustering or a file.

    Raises:
        InputError: on all ranks; it names the first such image, and says whether its pixels are finite.
    """
    bad = comm.gather(ids[~features.isfinite().all(1).cpu()].to(features.device))
    if not len(bad):
        return
    first = int(bad[0])
    (images,) = source.loader.run([[ViewRequest("", view, (first,), 0, 0)]])
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
        f"'{source.dataset.paths[first]}'; {why}"
    )
