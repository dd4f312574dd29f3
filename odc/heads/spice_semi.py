"""SPICE-Semi: the whole network is trained on reliable labels and, semi-supervised, on all images.

Niu, Shan, Wang. *SPICE: Semantic Pseudo-Labeling for Image Clustering.* IEEE Transactions on Image Processing 2022
(arXiv:2103.09382), "reliable pseudo-labeling". The samples whose neighbours are in their own cluster (local
consistency, :func:`odc.clustering.reliable_samples`) keep SPICE-Self's label, and FixMatch learns from these and all
images: Sohn et al., NeurIPS 2020 (arXiv:2001.07685). With q the prediction of an image's weak view, without gradient,

    loss = mean of H(y, weak view) over the labelled batch
           + λ · mean of 1(max q ≥ τ) · H(argmax q, strong view) over the batch of all images  (equation 4 there).

The second mean is over all its rows, masked or not: without a confident image it is 0. All views of both batches pass
the network in one forward. What is evaluated is the moving average of the parameters (``model.ema``), the last one: the
best of several would have to be chosen by the true labels. Batch norm's running statistics are averaged with them, so
they describe some 1 / (1 - ema) steps whatever batch norm's own momentum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from odc.errors import InputError
from odc.heads.base import ClusterHead, LinearClassifier, check_classes
from odc.registry import HEADS
from odc.structures import Batch, Comm, Labels, Losses, Plan, Stream


def fixmatch_loss(weak: Tensor, strong: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Return FixMatch's unlabelled loss (equation 4 of arXiv:2001.07685) and its mask, from both views' logits (B, K).

    The loss () is the masked cross-entropies' sum / B; the mask (B,) bool says that the weak view, which gets no
    gradient, is confident by ``threshold`` τ at least.
    """
    confidence, label = weak.detach().softmax(1).max(1)
    mask = confidence >= threshold
    return (F.cross_entropy(strong, label, reduction="none") * mask).mean(), mask


@HEADS.register_module()
class SpiceSemiHead(ClusterHead):
    """A linear classifier trained by FixMatch; views ``"weak"`` and ``"strong"``, labels from ``train_cfg.label_file``.

    Args:
        in_channels: D.
        num_clusters: K, at least as many as the labels have.
        labelled_size: labelled rows a step, over all ranks.
        batch_size: rows a step of all images, labelled ones included, over all ranks.
        steps: of an epoch.
        threshold: τ.
        weight: λ.

    Raises:
        InputError: for values out of range; at the first step, when the labels have more classes than K.
    """

    needs_images = "it compares a weak and a strong augmentation of each"

    def __init__(
        self,
        in_channels: int,
        num_clusters: int,
        labelled_size: int = 64,
        batch_size: int = 448,
        steps: int = 1024,
        threshold: float = 0.95,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0.0 <= threshold <= 1.0 or weight < 0.0:
            raise InputError(
                f"SpiceSemiHead's threshold must be in [0, 1] and its weight not negative, not {threshold} and {weight}"
            )
        self.num_clusters = num_clusters
        self.labelled_size = labelled_size
        self.batch_size = batch_size
        self.steps = steps
        self.threshold = threshold
        self.weight = weight
        self.classifier = LinearClassifier(in_channels, num_clusters)

    def plan(self, epoch: int) -> Plan:
        """A fixed number of steps on labelled rows and on all rows; the labels stay."""
        streams = (
            Stream("labelled", self.labelled_size, rows="labelled", views=("weak",)),
            Stream("all", self.batch_size, views=("weak", "strong")),
        )
        return Plan(streams, steps=self.steps)

    def loss(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> Losses:
        """Both losses; ``confident``, the share of the mask, and ``unused``, of the steps whose mask was empty."""
        check_classes(labels, self.num_clusters, "num_clusters")
        labelled, every = batches["labelled"], batches["all"]
        weak, strong = (self.predict(every.z[view][:, 0]) for view in ("weak", "strong"))
        unlabelled, mask = fixmatch_loss(weak, strong, self.threshold)
        return Losses(
            {
                "labelled_loss": F.cross_entropy(self.predict(labelled.z["weak"][:, 0]), labelled.target[:, 0]),
                "unlabelled_loss": self.weight * unlabelled,
            },
            log={"confident": mask.float().mean(), "unused": (~mask.any()).float()},
        )

    def predict(self, z: Tensor) -> Tensor:
        """Map features (B, D) to logits (B, K)."""
        logits: Tensor = self.classifier(z)
        return logits
