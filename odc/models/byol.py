"""BYOL's two networks, online and target; the methods on them are described in :mod:`odc.heads.byol`."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from odc.errors import InputError
from odc.heads.byol import BYOLHead
from odc.models.cluster_model import ClusterModel, Images
from odc.models.ema import follow
from odc.registry import MODELS
from odc.structures import Comm


@MODELS.register_module()
class BYOL(ClusterModel):
    """An online network that is trained, and a target network that follows it by an exponential moving average.

    Both are backbone, neck and the head's projector; the predictor is the online network's alone. Every view of a batch
    is a forward of its own, in either network, so batch norm sees one view at a time, as in the papers; ProPos' public
    code has a variant that joins them. The target's batch norm has its own statistics, of what passes the target. There
    are no negative images that it could tell apart, so it is not shuffled as MoCo's is.

    Labels are made of the target's features, and clusters are evaluated by it: the target is what :meth:`averaged`
    puts in the place of the online network.

    Args:
        backbone: config of the backbone.
        head: config of a :class:`odc.heads.BYOLHead`.
        neck: config of a neck; by default average pooling.
        momentum: m of θ' ← m θ' + (1 - m) θ, after every move of the optimiser.
        final_momentum: what m rises to, along half a cosine, by the end of the training; ``None``: it is constant.
        pretrained: checkpoint that both backbones start from, as in :class:`ClusterModel`.

    Raises:
        InputError: for a momentum outside [0, 1], or one that falls.
    """

    encodes_alone = False
    labels_by_average = True

    def __init__(
        self,
        backbone: dict[str, Any],
        head: dict[str, Any],
        neck: dict[str, Any] | None = None,
        momentum: float = 0.996,
        final_momentum: float | None = None,
        pretrained: str | None = None,
    ) -> None:
        super().__init__(backbone, head, neck, pretrained)
        self.momentum = momentum
        self.final_momentum = momentum if final_momentum is None else final_momentum
        if not 0.0 <= self.momentum <= self.final_momentum <= 1.0:
            raise InputError(
                f"BYOL's momentum must be in [0, 1] and not fall, but goes from {momentum} to {self.final_momentum}"
            )
        self.target = nn.ModuleList(copy.deepcopy(part) for part in self._online()).requires_grad_(False)

    def _online(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        if not isinstance(self.head, BYOLHead):
            raise InputError(f"BYOL needs a head that inherits from BYOLHead, not '{type(self.head).__name__}'")
        return self.backbone, self.neck, self.head.projector

    def init_weights(self) -> None:
        """Initialise as :meth:`ClusterModel.init_weights`, and the target like the online network."""
        super().init_weights()
        for part, online in zip(self.target, self._online(), strict=True):
            part.load_state_dict(online.state_dict())

    def encode(self, images: Images, comm: Comm) -> Images:
        """Map two views to projections of both networks, "online" and "target", (B, 2, D) float32, not normalised.

        The target's have no gradient; ``online[:, v]`` and ``target[:, v]`` are of the two different views of an image.
        """
        stream = next(iter(images))[0]
        views = [images[stream, view][:, 0] for view in ("query", "key")]
        online = [self._project(self._online(), x) for x in views]
        with torch.no_grad():
            target = [self._project(self.target, x) for x in reversed(views)]
        return {(stream, "online"): torch.stack(online, 1), (stream, "target"): torch.stack(target, 1)}

    @staticmethod
    def _project(parts: Iterable[nn.Module], x: Tensor) -> Tensor:
        """Pass images (B, C, H, W) through encoder and projector; (B, D), not normalised."""
        if len(x) < 2:
            raise InputError(
                f"BYOL's batch norm cannot train on a step of {len(x)} image a process: set model.head.batch_size to "
                "at least 2 images a process"
            )
        x = x.contiguous(memory_format=torch.channels_last)
        for part in parts:
            x = part(x)
        return x.float()

    def after_move(self, progress: float) -> None:
        """Let the target follow the online network."""
        super().after_move(progress)
        rest = (self.final_momentum - self.momentum) * (1.0 + math.cos(math.pi * progress)) / 2.0
        follow(self.target, self._online(), 1.0 - (self.final_momentum - rest))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Return a context in which backbone, neck and the head's projector are the target's."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        online = self._online()
        self.backbone, self.neck, self.head.projector = self.target
        self.target = nn.ModuleList(online)
