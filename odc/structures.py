"""What flows between the parts: plans, tables of features, pseudo-labels, batches, and who is on the other ranks.

Shape legend, used in names and docstrings everywhere:

====  =======================================================
N     samples of the data set (``Nr``: of this rank's shard)
M     rows of pseudo-labels (a row is one or more samples with one label)
B     rows of a batch (this rank's part)
P     samples a row (1; 2 for pairs of neighbours)
T     target columns a row (1; 2 for hierarchical labels)
D     width of the features
K     clusters
H     heads
====  =======================================================
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

UNLABELLED = -1


@dataclass(frozen=True)
class Stream:
    """One part of a training batch.

    Attributes:
        name: key of the stream's :class:`Batch` in ``ClusterHead.loss``.
        size: rows a step, over all ranks.
        rows: ``"all"``, or ``"labelled"``: only rows whose first target is not -1.
        views: names of the data set's views; every row is seen through each.
        balance: target columns to draw uniformly over, outermost first; ``()`` draws rows uniformly.
        replace: draw rows with replacement (ignored with ``balance``, which repeats rows where it must).
    """

    name: str
    size: int
    rows: str = "all"
    views: tuple[str, ...] = ("train",)
    balance: tuple[int, ...] = ()
    replace: bool = False


@dataclass(frozen=True)
class Plan:
    """What one epoch does: a pure function of the epoch's number, so resuming has nothing to remember.

    Attributes:
        streams: the parts of every batch; the first one sets the number of steps.
        refresh: extract features and rewrite the labels before training.
        steps: steps a pass over the rows; ``None``: ``ceil(rows / size)`` of the first stream.
        chunk: samples per refresh; ``None``: all. A tail shorter than this joins the chunk before it.
        repeats: passes over the rows of one refresh.
        reset: prefixes of model parameters that the refresh re-initialises; their optimiser state and gradient go too.
        logits: the view behind ``FeatureTable.logits``; ``None``: not computed.
        select: extract again when the epoch ends and call ``ClusterHead.select``.
    """

    streams: tuple[Stream, ...]
    refresh: bool = False
    steps: int | None = None
    chunk: int | None = None
    repeats: int = 1
    reset: tuple[str, ...] = ()
    logits: str | None = None
    select: bool = False


@dataclass(frozen=True)
class FeatureTable:
    """One deterministic pass over (a chunk of) the data set: this rank's shard, in ascending order of ``index``.

    Attributes:
        index: (Nr,) int64 sample ids.
        features: (Nr, D) float32, as the neck gives them (not normalised).
        logits: output of ``ClusterHead.logits`` on the view that ``Plan.logits`` names, (Nr, ...) float32, or ``None``.
        total: N, the samples over all ranks.
    """

    index: Tensor
    features: Tensor
    logits: Tensor | None
    total: int


@dataclass(frozen=True)
class PseudoLabels:
    """The rows to train on, identical on every rank.

    Attributes:
        index: (M, P) int64 sample ids.
        target: (M, T) int64; -1 is unlabelled.
        num_classes: T numbers of classes.
        variant: (M,) int64, the variant of the images in this row (rotation by 90° × variant); zeros when omitted.
    """

    index: Tensor
    target: Tensor
    num_classes: tuple[int, ...]
    variant: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        if self.variant.numel() == 0:
            object.__setattr__(self, "variant", torch.zeros(self.index.shape[0], dtype=torch.int64))
        M = self.index.shape[0]
        if self.index.ndim != 2 or self.target.ndim != 2 or self.target.shape[0] != M or self.variant.shape != (M,):
            raise ValueError(
                f"pseudo-labels need index (M, P), target (M, T), variant (M,); got {tuple(self.index.shape)}, "
                f"{tuple(self.target.shape)}, {tuple(self.variant.shape)}"
            )
        if len(self.num_classes) != self.target.shape[1]:
            raise ValueError(f"{self.target.shape[1]} target columns but {len(self.num_classes)} numbers of classes")


@dataclass(frozen=True)
class LabelDelta:
    """Rows whose target changes: ``row`` (R,) int64, unique, and ``target`` (R, T) int64; identical on every rank."""

    row: Tensor
    target: Tensor


@dataclass(frozen=True)
class Batch:
    """This rank's rows of one stream.

    Attributes:
        row: (B,) int64 rows of the label store.
        index: (B, P) int64 sample ids.
        variant: (B,) int64.
        target: (B, T) int64, as the store holds them now.
        z: ``{view: (B, P, D) float32}``, the neck's output.
    """

    row: Tensor
    index: Tensor
    variant: Tensor
    target: Tensor
    z: dict[str, Tensor]


class Labels(Protocol):
    """Read-only view of the label store that heads are given."""

    @property
    def index(self) -> Tensor:
        """(M, P) int64 sample ids of every row."""

    @property
    def target(self) -> Tensor:
        """(M, T) int64 labels of every row, -1 unlabelled."""

    @property
    def counts(self) -> Tensor:
        """(K,) int64 rows in each class of the first target column."""

    def rows_of(self, index: Tensor) -> Tensor:
        """Rows (R,) int64 of sample ids (R,); only where every sample has exactly one row."""


class Comm(Protocol):
    """The other ranks. :class:`LocalComm` is the identity on one process; ``odc.engine`` has the distributed one."""

    rank: int
    world: int

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over ranks (same shape everywhere); ``x`` is left as it is."""

    def gather(self, x: Tensor) -> Tensor:
        """Return the concatenation over ranks along dimension 0, whose length may differ by rank."""

    def broadcast(self, x: Tensor) -> Tensor:
        """Return rank 0's ``x``; shape and dtype must be the same everywhere."""


class LocalComm:
    """One process: every collective is the identity."""

    rank = 0
    world = 1

    def sum(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def gather(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x


def derive_seed(seed: int, *key: int | str) -> int:
    """Return a 63-bit seed that is a function of ``seed`` and ``key`` alone (SHA-256, the same on every machine)."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def make_generator(seed: int, *key: int | str) -> torch.Generator:
    """Return a CPU generator seeded from ``(seed, *key)``: everything random takes one of these."""
    return torch.Generator().manual_seed(derive_seed(seed, *key))


def place_in_group(group: Tensor, counts: Tensor) -> Tensor:
    """Return the place of each row among those of its group: 0, 1, ... from the start of the group.

    Args:
        group: (N,) int64 ascending.
        counts: (G,) int64 rows of each group.
    """
    return torch.arange(len(group), device=group.device) - (counts.cumsum(0) - counts)[group]
