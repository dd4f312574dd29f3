"""Features of a model that does not change them: computed once instead of at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from odc.engine.data import EXTRACT_VIEW, ClusterData
from odc.engine.extract import encode_views, extract
from odc.models.cluster_model import ClusterModel
from odc.structures import Batch, Comm, FeatureTable, Plan, Stream


@dataclass(frozen=True)
class FeatureCache:
    """Features of the training views of one refresh.

    Attributes:
        slot: (M, P) int64, where the features of each row's images are.
        z: ``{view: (S, D) float32}`` of the S different images (sample and variant) of the rows.
    """

    slot: Tensor
    z: dict[str, Tensor]

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
    """Where the loop gets features from.

    Args:
        runner: for what it trains in.
        data: the run's.
        comm: the ranks.
        seed: from a purpose to a function of the seed and the present refresh.

    Attributes:
        fixed: (N, D) of all images without augmentation, while these cannot change.
    """

    def __init__(self, runner: Any, data: ClusterData, comm: Comm, seed: Callable[[str], int]) -> None:
        self.runner, self.data, self.comm, self.seed = runner, data, comm, seed
        self.fixed: Tensor | None = None

    def extract(self, model: ClusterModel, index: Tensor | None, logits_view: str | None) -> FeatureTable:
        """Extract features of some images, or of all, and where a view is given, the head's logits through it."""
        if features_are_fixed(model):
            return self._extract_fixed(model, index, logits_view)
        with self.runner.autocast():
            return extract(
                model,
                self.data.train,
                self.comm,
                batch_size=self.data.extract_batch_size,
                index=index,
                logits=None if logits_view is None else model.head.logits,
                logits_view=logits_view,
                seed=self.seed("logits"),
                averaged=False,
            )

    @torch.no_grad()
    def _extract_fixed(self, model: ClusterModel, index: Tensor | None, logits_view: str | None) -> FeatureTable:
        """As :meth:`extract`, where the features without augmentation have to be computed only once."""
        everything = torch.arange(len(self.data.dataset))
        if self.fixed is None:
            self.fixed = self._encode(model, everything, torch.zeros_like(everything), [EXTRACT_VIEW], "")[EXTRACT_VIEW]
        index = everything if index is None else index
        mine = torch.tensor_split(index, self.comm.world)[self.comm.rank].to(self.fixed.device)
        logits, training = None, model.head.training
        if logits_view is not None:
            model.head.eval()
            z = self._encode(model, index, torch.zeros_like(index), [logits_view], "logits")[logits_view]
            z = torch.tensor_split(z, self.comm.world)[self.comm.rank]
            logits = torch.cat([model.head.logits(part).float() for part in z.split(self.data.extract_batch_size)])
            model.head.train(training)
        return FeatureTable(mine, self.fixed[mine], logits, total=len(index))

    def _encode(
        self, model: ClusterModel, index: Tensor, variant: Tensor, views: list[str], purpose: str
    ) -> dict[str, Tensor]:
        with self.runner.autocast():
            return encode_views(
                model,
                self.data.train,
                self.comm,
                batch_size=self.data.extract_batch_size,
                index=index,
                variant=variant,
                views=views,
                seed=self.seed(purpose),
            )

    def cache(self, model: ClusterModel, plan: Plan) -> FeatureCache | None:
        """Compute the features of the training views, where these stay what they are until the next refresh."""
        if plan.refresh is None or not features_are_fixed(model):
            return None
        store = model.labels
        variants = int(store.variant.max()) + 1
        images, slot = (store.index * variants + store.variant[:, None]).unique(return_inverse=True)
        views = sorted({view for stream in plan.streams for view in stream.views})
        return FeatureCache(slot, self._encode(model, images // variants, images % variants, views, "train"))
