"""MoCo's two encoders; the method is described in :mod:`odc.heads.moco`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odc.errors import InputError
from odc.heads.moco import fitting_queue
from odc.models.cluster_model import ClusterModel, Images
from odc.models.ema import follow
from odc.registry import MODELS
from odc.structures import Comm


@MODELS.register_module()
class MoCo(ClusterModel):
    """A query encoder that is trained, and a key encoder that follows it.

    Batch norm must not tell which images are a pair, so queries and keys are never normalised together in the same
    company: on several ranks the keys are dealt out over them (``shuffle_bn``); on one device both batches are
    normalised in groups, the queries' of neighbours, the keys' dealt out (``split_bn``). A batch is in random order, so
    dealing it out like cards is as good as a shuffle.

    Args:
        backbone: config of the backbone.
        head: config of a :class:`odc.heads.MoCoHead`.
        neck: config of a neck; by default average pooling.
        momentum: m of the key encoder.
        shuffle_bn: deal the keys out over the ranks.
        split_bn: groups a batch is normalised in, on each rank; 1 normalises it whole.
        symmetric: each view is once the query and once the key: twice the work a step, and more learnt from it.

    Raises:
        InputError: for a momentum outside [0, 1], or groups of less than two images.
    """

    encodes_alone = False

    def __init__(
        self,
        backbone: dict[str, Any],
        head: dict[str, Any],
        neck: dict[str, Any] | None = None,
        momentum: float = 0.999,
        shuffle_bn: bool = True,
        split_bn: int = 1,
        symmetric: bool = False,
    ) -> None:
        super().__init__(backbone, head, neck)
        if not 0.0 <= momentum <= 1.0:
            raise InputError(f"MoCo's momentum must be in [0, 1], not {momentum}")
        self.momentum = momentum
        self.shuffle_bn = shuffle_bn
        self.split_bn = split_bn
        self.symmetric = symmetric
        self.key_encoder = nn.ModuleList(copy.deepcopy(part) for part in self._query_encoder()).requires_grad_(False)

    @classmethod
    def fitted(cls, model_cfg: dict[str, Any], num_samples: int) -> tuple[dict[str, Any], str | None]:
        """Return the config with a queue that is smaller than the data set, where its own is not.

        It becomes what :func:`odc.heads.moco.fitting_queue` says, and the groups of batch norm stay at least two
        images large.
        """
        head = model_cfg["head"]
        batch, queue = head.get("batch_size"), head.get("queue_size")
        fitting = None if batch is None or queue is None or queue < num_samples else fitting_queue(num_samples, batch)
        if fitting is None:
            return model_cfg, None
        smaller, keys = fitting
        text = f"MoCo's queue of {queue:,} keys is too large for {num_samples:,} images: it gets {keys:,}"
        return {
            **model_cfg,
            "head": {**head, "batch_size": smaller, "queue_size": keys},
            "split_bn": min(model_cfg.get("split_bn", 1), smaller // 2),
        }, text + (f", and batches of {smaller} instead of {batch}" if smaller < batch else "")

    def init_weights(self) -> None:
        """Initialise as :meth:`ClusterModel.init_weights`, and the key encoder like the query encoder."""
        super().init_weights()
        for key_part, part in zip(self.key_encoder, self._query_encoder(), strict=True):
            key_part.load_state_dict(part.state_dict())

    def _query_encoder(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        projector = self.head.projector
        if not isinstance(projector, nn.Module):
            raise InputError(f"MoCo needs a head with a projector; '{type(self.head).__name__}' has none")
        return self.backbone, self.neck, projector

    def encode(self, images: Images, comm: Comm) -> Images:
        """Map both views to projections of unit length, (B, V, D).

        V is 1, or 2 where each view is once the query; ``query[:, v]`` and ``key[:, v]`` are a pair.
        """
        first, second = images["train", "query"][:, 0], images["train", "key"][:, 0]
        V = 1 + self.symmetric
        query = self._project(self._query_encoder(), torch.cat([first, second][:V]))
        with torch.no_grad():
            key = self._keys(torch.cat([second, first][:V]), comm)
        return {
            ("train", view): z.unflatten(0, (V, -1)).transpose(0, 1).contiguous()
            for view, z in (("query", query), ("key", key))
        }

    def after_move(self, progress: float) -> None:
        """Let the key encoder follow the query encoder, before the next keys are made."""
        super().after_move(progress)
        follow(self.key_encoder, self._query_encoder(), 1.0 - self.momentum)

    def _keys(self, x: Tensor, comm: Comm) -> Tensor:
        """Encode the keys (B, C, H, W) in other company than the queries; (B, D) in their own order."""
        if comm.world == 1 or not self.shuffle_bn:
            order = _dealt(len(x), self.split_bn, x.device)
            return self._project(self.key_encoder, x[order])[order.argsort()]
        everything = comm.gather(x)
        order = _dealt(len(everything), comm.world * self.split_bn, x.device)
        mine = order.chunk(comm.world)[comm.rank]
        k = comm.gather(self._project(self.key_encoder, everything[mine]))
        return k[order.argsort()].chunk(comm.world)[comm.rank]

    def _project(self, parts: Any, x: Tensor) -> Tensor:
        """Pass images (B, C, H, W) through encoder and projector, in ``split_bn`` groups; (B, D) of unit length."""
        if len(x) < 2 * self.split_bn:
            raise InputError(
                f"split_bn={self.split_bn} leaves groups of less than 2 of the {len(x)} images a process: set "
                f"model.head.batch_size to at least {2 * self.split_bn} images a process"
                + (", or model.split_bn=1" if self.split_bn > 1 else "")
            )
        encode: Callable[[Tensor], Tensor] = nn.Sequential(*parts)
        x = x.contiguous(memory_format=torch.channels_last)
        return F.normalize(torch.cat([encode(group) for group in x.chunk(self.split_bn)]).float(), dim=1)


def _dealt(n: int, groups: int, device: torch.device) -> Tensor:
    """Return 0, groups, 2·groups, ..., 1, groups + 1, ...: (n,) int64."""
    return (torch.arange(n, device=device) % groups).argsort(stable=True)
