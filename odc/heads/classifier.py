"""A linear classifier on given labels: low-shot and full fine-tuning of a pre-trained backbone.

The protocol of Chen, Kornblith, Norouzi, Hinton, *A Simple Framework for Contrastive Learning of Visual
Representations*, ICML 2020 (arXiv:2002.05709), section 6 and appendix B.8: backbone and a new linear layer are trained
together by cross-entropy on all labels, or on 1 % or 10 % of them, the same number of each class.

The labels are there before training starts (``train_cfg.label_fraction``, or ``train_cfg.label_file`` for those of
another run); nothing here changes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odc.clustering.preprocess import unit_in_spaces
from odc.errors import InputError
from odc.heads.base import ClusterHead, LinearClassifier, check_classes, checked_spaces
from odc.registry import HEADS
from odc.structures import Batch, Comm, Labels, Losses, Plan, Stream


@HEADS.register_module()
class ClassifierHead(ClusterHead):
    """Cross-entropy on the labelled rows.

    Args:
        in_channels: D.
        num_classes: K, at least as many as the labels have.
        batch_size: rows a step, over all ranks.
        normalize: what the classifier sees: ``"none"``, features as they are, or ``"unit"``, of length √d in each space
            of width d, so that a number is about 1: for features that do not train, whose size is arbitrary.
        spaces: widths of the feature spaces that z is made of, D in all; filled in from the backbone.

    Raises:
        InputError: for an option out of its range; at the first step, when the labels have more classes than K.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        batch_size: int = 256,
        normalize: str = "none",
        spaces: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise InputError(f"ClassifierHead needs at least 2 classes, not num_classes={num_classes}")
        if normalize not in ("none", "unit"):
            raise InputError(f"ClassifierHead's normalize must be 'none' or 'unit', not '{normalize}'")
        self.num_classes = num_classes
        self.normalize = normalize
        self.spaces = checked_spaces("ClassifierHead", spaces, in_channels)
        self.size: Tensor = nn.Buffer(torch.cat([torch.full((d,), d**0.5) for d in self.spaces]), persistent=False)
        self.batch_size = batch_size
        self.classifier = LinearClassifier(in_channels, num_classes)

    def plan(self, epoch: int) -> Plan:
        """One pass over the labelled rows."""
        return Plan((Stream("train", self.batch_size, rows="labelled"),))

    def loss(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> Losses:
        """Mean cross-entropy, and ``accuracy``, the share of the rows that are right."""
        check_classes(labels, self.num_classes, "num_classes")
        batch = batches["train"]
        target = batch.target[:, 0]
        logits = self.predict(batch.z["train"][:, 0])
        right = (logits.argmax(1) == target).float().mean()
        return Losses({"loss": F.cross_entropy(logits, target)}, log={"accuracy": right})

    def predict(self, z: Tensor) -> Tensor:
        """Map features (B, D) to logits (B, K)."""
        if self.normalize == "unit":
            z = unit_in_spaces(z, self.spaces) * self.size
        logits: Tensor = self.classifier(z)
        return logits
