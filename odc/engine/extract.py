"""Features of images: of a whole data set, and, where they cannot change, once instead of at every step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mmengine.logging import print_log
from torch import Tensor

from odc.data.keys import mix_array
from odc.data.views import ViewRequest
from odc.engine.data import EXTRACT_VIEW, ClusterData, Source
from odc.errors import InputError
from odc.models.cluster_model import ClusterModel
from odc.structures import Batch, Comm, FeatureTable, Plan, Stream, derive_seed

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
            want, but not training.

    Returns:
        This rank's shard, on the model's device.

    Raises:
        InputError: features are not finite.
    """
    index = torch.arange(len(source.dataset)) if index is None else index
    mine = _share(index, comm)
    ids = mine.numpy()
    keys = dict.fromkeys([EXTRACT_VIEW] if logits is None else [EXTRACT_VIEW, logits_view], mix_array(seed, ids))
    features: list[Tensor] = []
    outputs: list[Tensor] = []
    was_training = model.training
    model.eval()
    with model.averaged() if averaged else contextlib.nullcontext():
        for z in _encode(model, source, ids, np.zeros_like(ids), keys, batch_size):
            features.append(z[EXTRACT_VIEW])
            if logits is not None:
                outputs.append(logits(z[logits_view]).float())
    model.train(was_training)
    found = torch.cat(features)
    _check_finite(found, mine, len(index), source, EXTRACT_VIEW, comm)
    return FeatureTable(mine.to(found.device), found, torch.cat(outputs) if outputs else None, total=len(index))


def _share(index: Tensor, comm: Comm) -> Tensor:
    """Return this rank's contiguous part of ids (N,), on the CPU."""
    mine = torch.tensor_split(index.cpu(), comm.world)[comm.rank]
    if not len(mine):
        raise RuntimeError(f"rank {comm.rank} has no sample to encode: {len(index)} samples for {comm.world} ranks")
    return mine


def _encode(
    model: ClusterModel,
    source: Source,
    ids: npt.NDArray[np.int64],
    variants: npt.NDArray[np.int64],
    keys: dict[str, npt.NDArray[np.int64]],
    batch_size: int,
) -> Iterator[dict[str, Tensor]]:
    """Yield the features of images (S,), a batch after another, ``{view: (B, D)}``; write a line now and then.

    ``keys`` are those of the images (S,) for each view. The work on a batch is done when the next one is asked for.
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
        yield {view: model.features(images["", view][:, 0].to(device, non_blocking=True)) for view in keys}
        done, now = min(done + batch_size, len(ids)), time.monotonic()
        if now - noted > _FIRST_NOTE_S:
            left = (now - started) / done * (len(ids) - done)
            print_log(f"extracting features: {done:,} of {len(ids):,} images, {left:.0f} s left", "current")
            noted = now


def _check_finite(features: Tensor, ids: Tensor, total: int, source: Source, view: str, comm: Comm) -> None:
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


@dataclass(frozen=True)
class FeatureCache:
    """Features of the training views of one refresh."""

    slot: Tensor  # (M, P) int64, where the features of each row's images are
    z: dict[str, Tensor]  # {view: (S, D) float32} of the S different images (sample and variant) of the rows

    def lookup(self, streams: Iterable[Stream], rows: dict[str, Batch]) -> dict[tuple[str, str], Tensor]:
        """Return the features of a step, ``{(stream, view): (B, P, D) float32}``."""
        return {(s.name, view): self.z[view][self.slot[rows[s.name].row]] for s in streams for view in s.views}


def features_are_fixed(model: ClusterModel) -> bool:
    """Return whether an image's features change neither with a step nor with the batch that the image is in.

    So it is where nothing in backbone and neck trains or is in training mode, and nothing else encodes the images.
    """
    encoder = (*model.backbone.modules(), *model.neck.modules())
    trains = any(p.requires_grad for module in encoder for p in module.parameters(recurse=False))
    return not trains and not any(module.training for module in encoder) and model.encodes_alone


class Features:
    """Where the loop gets features from; ``seed`` maps a purpose to a function of the seed and the present refresh.

    While they cannot change, an image is augmented once for each (epoch, chunk, view), instead of anew at every
    position. Nothing here is saved: a resumed run computes the same features again.
    """

    def __init__(self, runner: Any, data: ClusterData, comm: Comm, seed: Callable[[str], int]) -> None:
        self.runner, self.data, self.comm, self.seed = runner, data, comm, seed
        self.fixed: Tensor | None = None  # (N, D) of all images without augmentation, while these cannot change

    @torch.no_grad()
    def extract(self, model: ClusterModel, index: Tensor | None, logits_view: str | None) -> FeatureTable:
        """Extract features of some images, or of all, and where a view is given, the head's logits through it.

        Where they cannot change, the features without augmentation are computed only once.
        """
        batch_size = self.data.extract_batch_size
        if not features_are_fixed(model):
            with self.runner.autocast():
                return extract(
                    model,
                    self.data.train,
                    self.comm,
                    batch_size=batch_size,
                    index=index,
                    logits=None if logits_view is None else model.head.logits,
                    logits_view=logits_view or EXTRACT_VIEW,
                    seed=self.seed("logits"),
                    averaged=False,
                )
        everything = torch.arange(len(self.data.dataset))
        if self.fixed is None:
            self.fixed = self._encode(model, everything, torch.zeros_like(everything), [EXTRACT_VIEW], "")[EXTRACT_VIEW]
        index = everything if index is None else index
        mine = _share(index, self.comm).to(self.fixed.device)
        logits, training = None, model.head.training
        if logits_view is not None:
            model.head.eval()
            z = self._encode(model, index, torch.zeros_like(index), [logits_view], "logits")[logits_view]
            z = torch.tensor_split(z, self.comm.world)[self.comm.rank]
            logits = torch.cat([model.head.logits(part).float() for part in z.split(batch_size)])
            model.head.train(training)
        return FeatureTable(mine, self.fixed[mine], logits, total=len(index))

    @torch.no_grad()
    def _encode(
        self, model: ClusterModel, index: Tensor, variant: Tensor, views: list[str], purpose: str
    ) -> dict[str, Tensor]:
        """Return the features of images and variants (S,) through views, ``{view: (S, D) float32}``, on every rank.

        The augmentation is keyed by (seed, view, sample, variant): not by the batch or the rank that encodes the image.
        """
        mine = _share(index, self.comm)
        ids, variants = mine.numpy(), _share(variant, self.comm).numpy()
        keys = {view: mix_array(derive_seed(self.seed(purpose), view), ids, variants) for view in views}
        with self.runner.autocast():
            parts = list(_encode(model, self.data.train, ids, variants, keys, self.data.extract_batch_size))
            features = {view: torch.cat([z[view] for z in parts]) for view in views}
            for view, z in features.items():
                _check_finite(z, mine, len(index), self.data.train, view, self.comm)
        return {view: self.comm.gather(z) for view, z in features.items()}

    def cache(self, model: ClusterModel, plan: Plan) -> FeatureCache | None:
        """Compute the features of the training views, where these stay what they are until the next refresh."""
        if plan.refresh is None or not features_are_fixed(model):
            return None
        store = model.labels
        variants = int(store.variant.max()) + 1
        images, slot = (store.index * variants + store.variant[:, None]).unique(return_inverse=True)
        views = sorted({view for stream in plan.streams for view in stream.views})
        return FeatureCache(slot, self._encode(model, images // variants, images % variants, views, "train"))
