"""What a clustering method has to write: three methods, and up to four more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odc.clustering.knn import knn_search
from odc.clustering.preprocess import check_differ, unit_in_spaces
from odc.errors import InputError
from odc.structures import (
    Batch,
    Comm,
    FeatureTable,
    LabelDelta,
    Labels,
    Losses,
    Plan,
    PseudoLabels,
)


class ClusterHead(nn.Module, ABC):
    """Base of all clustering heads.

    A head writes :meth:`plan`, :meth:`loss` and :meth:`predict`, and overrides any of :meth:`logits`,
    :meth:`refresh`, :meth:`update` and :meth:`select`, whose defaults do nothing. It is built with ``in_channels``,
    the width D of the features it gets. All it must remember is in parameters and persistent buffers.

    Every ``generator`` is a function of the seed and the position in the training, so a resumed run draws the same, and
    is in the same state on every rank.
    """

    # Numbers of classes (T of them) of the labels that `refresh` makes: a checkpoint with labels of others is damaged.
    # None: any.
    label_classes: tuple[int, ...] | None = None
    # What the method does with images that vectors in their place cannot do, to follow "needs images, since"; or None.
    needs_images: str | None = None
    # What makes the clusters equally large, and the option that relaxes it, as the end of "..., but this method ...";
    # the log says so where a trained head's clusters are not. None: nothing does.
    equal_sizes: str | None = None

    @abstractmethod
    def plan(self, epoch: int) -> Plan:
        """Return what this epoch (from 0) does; a pure function of the epoch."""

    @abstractmethod
    def loss(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> Losses:
        """Return what this rank's rows are trained on, and what else is logged.

        Gradients are averaged over ranks: a mean over this rank's rows is a mean over the whole batch. Anything
        else, a weighted mean say, needs ``comm``. Changes nothing.
        """

    @abstractmethod
    def predict(self, z: Tensor) -> Tensor:
        """Map features (B, D) to scores (B, K) of the clusters; the argmax is the cluster."""

    def logits(self, z: Tensor) -> Tensor:
        """Map features (B, D) to what ``FeatureTable.logits`` holds; by default :meth:`predict`."""
        return self.predict(z)

    def refresh(self, table: FeatureTable, generator: torch.Generator, comm: Comm) -> PseudoLabels | None:
        """Make new labels from the features of (a chunk of) the data set; ``None`` keeps the present ones."""
        return None

    def update(
        self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm
    ) -> Iterable[LabelDelta]:
        """Learn from the batch at the end of a step; return, or yield one by one, the rows whose label changes.

        What is yielded is in ``labels`` when the next line runs. The optimiser has moved before, unless gradients are
        accumulated.
        """
        return ()

    def select(self, table: FeatureTable, comm: Comm) -> None:
        """Choose among candidates at the end of an epoch; ``table`` has features, no logits; writes buffers only."""
        return

    def diagnosis(self, means: dict[str, float]) -> str | None:
        """Return one line if the last epoch's means of what :meth:`loss` names say that nothing is learnt."""
        return None


class Counter(nn.Module):
    """A whole number that is remembered as all else, () int64, and that the processor knows without asking a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.value: Tensor = nn.Buffer(torch.zeros((), dtype=torch.int64))
        self._known = 0

    def __int__(self) -> int:
        return self._known

    def set(self, number: int) -> None:
        """Take another value."""
        self._known = number
        self.value.fill_(number)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known = int(self.value)


class LinearClassifier(nn.Linear):
    """A linear layer with weights from N(0, 0.01²) and bias 0, as DeepCluster and ODC start it."""

    def __init__(self, in_channels: int, num_clusters: int) -> None:
        super().__init__(in_channels, num_clusters)
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)

    def reset(self, generator: torch.Generator) -> None:
        """Draw the weights anew and set the bias to 0, as DeepCluster does after every clustering."""
        self.weight.data.copy_(torch.empty(self.weight.shape).normal_(std=0.01, generator=generator))
        self.bias.data.zero_()


def weighted_mean(losses: Tensor, weights: Tensor, comm: Comm) -> Tensor:
    """Return Σ w·l / Σ w over the whole batch, from this rank's losses (B,) and weights (B,).

    Gradients are averaged over ranks, so each rank gives ``world`` × its part of the numerator over the sum of all
    weights.
    """
    return comm.world * (weights * losses).sum() / comm.sum(weights.sum())


def checked_spaces(head: str, spaces: Sequence[int], in_channels: int) -> tuple[int, ...]:
    """Return the widths of the feature spaces that z is made of; none given is one space.

    Raises:
        InputError: they are not ``in_channels`` wide in all; ``head`` says whose.
    """
    if spaces and sum(spaces) != in_channels:
        raise InputError(f"{head}'s spaces {tuple(spaces)} are {sum(spaces)} wide, but features have {in_channels}")
    return tuple(spaces) or (in_channels,)


def find_neighbours(index: Tensor, z: Tensor, spaces: Sequence[int], k: int, comm: Comm) -> tuple[Tensor, Tensor]:
    """Return the ids (N, k) int64 of the nearest images of each, nearest first, and the unit features (N, D).

    By the cosine; of several spaces, its mean over them. An image is no neighbour of itself, its copies are.

    Args:
        index: (N,) int64 ids of the images of all ranks.
        z: (N, D) float32, their features.
        spaces: widths of the feature spaces that z is made of.
        k: neighbours.
        comm: the ranks, of which the first one searches.

    Raises:
        InputError: no more than k images, or all features are equal.
    """
    if len(index) <= k:
        raise InputError(
            f"{k} neighbours need more than {k} images, but there are {len(index)}: lower model.head.neighbours"
        )
    check_differ(z)
    unit = unit_in_spaces(z, spaces)
    (nearest,) = comm.first(lambda: knn_search(unit, k=k)[:1])
    return index[nearest], unit


def draw_pairs(index: Tensor, neighbours: Tensor, generator: torch.Generator) -> PseudoLabels:
    """Return a row for every image (N,): it, and one of its neighbours (N, k) ids by sample id; no labels."""
    draw = torch.randint(neighbours.shape[1], (len(index), 1), generator=generator).to(index.device)
    pairs = torch.cat([index[:, None], neighbours[index].gather(1, draw).long()], dim=1)
    return PseudoLabels(pairs, torch.zeros_like(index)[:, None], (1,))


def check_classes(labels: Labels, num_classes: int, option: str) -> None:
    """Raise :class:`InputError` if the labels have more classes than the head, whose ``option`` says how many."""
    if len(labels.counts) > num_classes:
        raise InputError(
            f"the labels have {len(labels.counts)} classes, but model.head.{option} is {num_classes}: set it to "
            f"{len(labels.counts)}"
        )
