"""Self-labelling: a clustering is trained on the images that it is sure of.

Van Gansbeke, Vandenhende, Georgoulis, Proesmans, Van Gool. *SCAN: Learning to Classify Images without Labels.* ECCV
2020 (arXiv:2005.12320), "fine-tuning through self-labeling", which goes on from SCAN's network and its chosen head.
With p = softmax of the scores of an image's weak view, without gradient, over the images of the batch of all ranks that
are sure, max p > τ:

    loss = Σ w_c · CE(scores of the strong view, c = argmax p)  /  Σ w_c,    w_c = n / n_c

where n_c of the n sure images are of cluster c, so that large clusters do not win. Without any sure image the loss is
0. All views pass the network in one forward, so batch norm's statistics move once a step.

It can make a clustering worse, and lose clusters. So what the stage before has found stays, and SCAN's loss of all
images is computed before and after: the lower one is the better clustering, as far as one can know without labels. To
keep clusters from being lost, ``balance`` spreads the labels over them by Sinkhorn's algorithm, equally or in the sizes
that they had at the start.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor

from odc.clustering.sinkhorn import sinkhorn
from odc.errors import InputError
from odc.heads.base import ClusterHead
from odc.heads.scan import NeighbourClassifiers
from odc.registry import HEADS
from odc.structures import Batch, Comm, FeatureTable, Labels, Losses, Plan, PseudoLabels, Refresh, Stream

_PAPER = 0.99  # τ of the paper
_ROUNDS = 10  # of Sinkhorn's algorithm: logits of sure images are far apart


def weighted_cross_entropy(logits: Tensor, target: Tensor, chosen: Tensor, by_class: bool, comm: Comm) -> Tensor:
    """Return the mean cross-entropy () over the chosen rows of all ranks, by class or not; 0 where none is chosen.

    Args:
        logits: (B, K) of this rank's rows.
        target: (B,) int64 labels of all rows.
        chosen: (B,) bool.
        by_class: weight a row by n / n_c, n_c of the n chosen ones having its label.
        comm: the ranks.
    """
    # Not bincount, nor the rows that are chosen alone: a GPU would be asked how many there are.
    counts = comm.sum(target.new_zeros(logits.shape[1]).index_add_(0, target, chosen.long()))
    weights = counts.sum() / counts[target].clamp(min=1) if by_class else torch.ones_like(target)
    weights = weights * chosen
    losses = F.cross_entropy(logits, target, reduction="none")
    return comm.world * (weights * losses).sum() / comm.sum(weights.sum()).clamp(min=1)


@HEADS.register_module()
class SelfLabelHead(ClusterHead):
    """Self-labelling of SCAN's chosen classifier; views ``"weak"`` and ``"strong"``.

    It starts from a checkpoint of :class:`odc.heads.SCANHead` (``load_from``, or a recipe's ``checkpoint``), which has
    the same ``num_clusters``, ``num_heads``, ``neighbours`` and ``normalize``.

    Args:
        in_channels: D.
        num_clusters: K.
        num_heads: H, of which one trains.
        neighbours: k, for SCAN's loss.
        batch_size: rows a step, over all ranks; 1,000 in the paper, for the weights of the classes.
        threshold: τ.
        class_weights: weight by n / n_c; the paper does not for ImageNet.
        balance: ``None``, or how the labels of a batch are spread over the clusters by :func:`odc.clustering.sinkhorn`:
            ``"equal"`` sizes, or ``"start"``, in the sizes that the clusters had before. Then labels may differ from
            argmax p; images are chosen by p as before.
        entropy_weight: λ, for SCAN's loss.
        normalize: as SCAN's.
        spaces: widths of the feature spaces that z is made of, D in all; filled in from the backbone.

    Raises:
        InputError: for an option out of its range.
    """

    def __init__(
        self,
        in_channels: int,
        num_clusters: int,
        num_heads: int = 1,
        neighbours: int = 20,
        batch_size: int = 1000,
        threshold: float = _PAPER,
        class_weights: bool = True,
        balance: str | None = None,
        entropy_weight: float = 5.0,
        normalize: str = "none",
        spaces: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if not 0.0 <= threshold < 1.0:
            raise InputError(f"SelfLabelHead's threshold must be in [0, 1), not {threshold}")
        if balance not in (None, "equal", "start"):
            raise InputError(f"SelfLabelHead balances by 'equal', 'start' or not at all (None), not by '{balance}'")
        self.batch_size = batch_size
        self.threshold = threshold
        self.class_weights = class_weights
        self.balance = balance
        self.label_classes = (num_clusters,)
        if balance == "equal":
            self.equal_sizes = "spreads its labels equally by balance='equal' (set model.head.balance to 'start')"
        self.classifiers = NeighbourClassifiers(
            in_channels, num_clusters, num_heads, neighbours, entropy_weight, normalize, spaces
        )

    def plan(self, epoch: int) -> Plan:
        """One pass over all images; SCAN's loss before the first one, and after each."""
        stream = Stream("all", self.batch_size, views=("weak", "strong"))
        return Plan((stream,), refresh=Refresh() if epoch == 0 else None, select=True)

    def refresh(self, table: FeatureTable, generator: torch.Generator, comm: Comm) -> PseudoLabels:
        """Take SCAN's loss and the clusters, which are the labels that are kept for the log, before the training."""
        if self.threshold < _PAPER:
            print_log(
                f"threshold={self.threshold:g} trusts less sure labels than the paper's {_PAPER:g}: see whether SCAN's "
                "loss falls",
                "current",
                logging.WARNING,
            )
        index = self.classifiers.look(table, comm)
        sizes = self.classifiers.sizes(self.classifiers.judge(table, comm))
        self.classifiers.first_loss.copy_(self._loss())
        self.classifiers.first_sizes.copy_(sizes / sizes.sum())
        label = comm.gather(self.predict(table.features).argmax(1))
        (label,) = comm.first(lambda: (label,))
        return PseudoLabels(index[:, None], label[:, None], (self.classifiers.num_clusters,))

    def _loss(self) -> Tensor:
        """Return SCAN's loss () of the head that trains, when all were last judged."""
        return self.classifiers.losses[self.classifiers.best]

    def loss(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> Losses:
        """Weighted cross-entropy; ``confident``, the share of sure images, ``unused``, of the steps without any."""
        weak, strong = (self.predict(batches["all"].z[view][:, 0]) for view in ("weak", "strong"))
        p, label = weak.detach().softmax(1).max(1)
        chosen = p > self.threshold
        if self.balance is not None:
            marginals = self.classifiers.first_sizes if self.balance == "start" else None
            label = sinkhorn(weak, comm, epsilon=1.0, rounds=_ROUNDS, marginals=marginals).argmax(1)
        loss = weighted_cross_entropy(strong, label, chosen, self.class_weights, comm)
        share = comm.sum(chosen.float().mean()) / comm.world
        return Losses({"loss": loss}, log={"confident": share, "unused": (share == 0).float()})

    def select(self, table: FeatureTable, comm: Comm) -> None:
        """Compute SCAN's loss of the head that trains, and say whether it is the better clustering."""
        sizes = self.classifiers.sizes(self.classifiers.judge(table, comm, choose=False))
        now, before = float(self._loss()), float(self.classifiers.first_loss)
        better = "better" if now < before else "not better"
        print_log(
            f"SCAN's loss of all images is {now:.4f}, and was {before:.4f} before self-labelling: by it, the clusters "
            f"are {better} than those of the stage before; {int((sizes > 0).sum())} of {len(sizes)} are in use",
            "current",
        )

    def predict(self, z: Tensor) -> Tensor:
        """Map features (B, D) to the logits (B, K) of the head that trains."""
        return self.classifiers.one(self.classifiers.best, z)
