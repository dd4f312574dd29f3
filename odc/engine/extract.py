"""One deterministic pass over a data set: features, and what the head makes of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor

from odc.data.views import Request, mix_array
from odc.engine.data import EXTRACT_VIEW, Source
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
    view: str = EXTRACT_VIEW,
    logits: Callable[[Tensor], Tensor] | None = None,
    logits_view: str | None = None,
    seed: int = 0,
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

    Returns:
        This rank's shard, on the model's device.
    """
    if index is None:
        index = torch.arange(len(source.dataset))
    mine = torch.tensor_split(index, comm.world)[comm.rank]
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    features: list[Tensor] = []
    outputs: list[Tensor] = []
    views = [view] if logits is None or logits_view in (None, view) else [view, str(logits_view)]
    started = noted = time.monotonic()
    done = 0
    for images in source.loader.run(_requests(mine, views, batch_size, seed)):
        z = model.features(images["", view][:, 0].to(device, non_blocking=True))
        features.append(z)
        if logits is not None:
            seen = z if len(views) == 1 else model.features(images["", views[1]][:, 0].to(device, non_blocking=True))
            outputs.append(logits(seen).float())
        done += z.shape[0]
        now = time.monotonic()
        if now - noted > _FIRST_NOTE_S:
            left = (now - started) / done * (mine.numel() - done)
            print_log(f"extracting features: {done:,} of {mine.numel():,} images, {left:.0f} s left", "current")
            noted = now
    model.train(was_training)
    if not features:
        raise RuntimeError(f"rank {comm.rank} has no sample to extract: {index.numel()} samples for {comm.world} ranks")
    table = FeatureTable(
        mine.to(device), torch.cat(features), torch.cat(outputs) if outputs else None, total=index.numel()
    )
    bad = int((~torch.isfinite(table.features).all(1)).sum())
    if bad:
        print_log(f"{bad:,} of {mine.numel():,} feature rows are not finite", "current", logging.WARNING)
    return table


def _requests(index: Tensor, views: list[str], batch_size: int, seed: int) -> Iterator[list[Request]]:
    ids = index.numpy()
    for start in range(0, len(ids), batch_size):
        part = ids[start : start + batch_size]
        keys = mix_array(seed, part.astype(np.int64))
        yield [Request("", view, (int(i),), 0, int(key)) for view in views for i, key in zip(part, keys, strict=True)]
