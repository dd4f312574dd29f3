"""What flows between the parts: plans, tables of features, pseudo-labels, batches and losses; and the other ranks.

Shape legend, used in names and docstrings everywhere:

| | |
|---|---|
| N | samples of the data set (``Nr``: of this rank's shard) |
| M | rows of pseudo-labels (a row is one or more samples with one label) |
| B | rows of a batch (this rank's part) |
| P | samples a row (1; 2 for pairs of neighbours) |
| T | target columns a row (1; 2 for hierarchical labels) |
| D | width of the features |
| K | clusters |
| H | heads |
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from odc.errors import InputError

UNLABELLED = -1


@dataclass(frozen=True)
class Stream:
    """One part of a training batch.

    Raises:
        InputError: for less than one row a step, other ``rows``, ``distinct`` with what repeats rows, or ``turns``
            without ``balance``.
    """

    name: str  # key of the stream's batch in ClusterHead.loss
    size: int  # rows a step, over all ranks
    rows: str = "all"  # or "labelled": only rows whose first target is not -1
    views: tuple[str, ...] = ("train",)  # names of the data set's views; every row is seen through each
    balance: tuple[int, ...] = ()  # target columns to draw uniformly over, outermost first; (): over the rows
    turns: bool = False  # with balance: the classes of its first column take turns, a step has equally many of each
    replace: bool = False  # draw rows with replacement; balance repeats rows where it must, whatever this says
    distinct: bool = False  # no row twice in a step, which has fewer than `size` where there are fewer in all

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(
                f"stream '{self.name}' needs at least 1 row a step, not {self.size} rows (model.head.batch_size)"
            )
        if self.rows not in ("all", "labelled"):
            raise InputError(f"stream '{self.name}' has rows='{self.rows}'; known: all, labelled")
        if self.distinct and (self.balance or self.replace):
            raise InputError(
                f"stream '{self.name}' cannot have distinct rows with balance or replace, which repeat some"
            )
        if self.turns and not self.balance:
            raise InputError(f"stream '{self.name}' has turns, but no balance that says whose")


@dataclass(frozen=True)
class Refresh:
    """Features are extracted and ``ClusterHead.refresh`` makes new labels, before training on them.

    Raises:
        InputError: for a chunk of less than one sample, or less than one pass.
    """

    chunk: int | None = None  # samples a refresh; None: all. A tail shorter than this joins the chunk before it
    repeats: int = 1  # passes over the rows of one refresh
    logits: str | None = None  # the view behind FeatureTable.logits; None: not computed
    pooled: bool = False  # FeatureTable.pooled is wanted, too
    # Names of the head's modules to draw anew once the labels are there, in this order: each has a method
    # reset(generator). The optimiser's state and the gradients of their parameters go too.
    reset: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.repeats < 1 or (self.chunk is not None and self.chunk < 1):
            raise InputError(
                f"a refresh needs at least 1 sample a chunk and 1 pass over its rows, not chunk={self.chunk} and "
                f"repeats={self.repeats}"
            )


@dataclass(frozen=True)
class Plan:
    """What one epoch does: a pure function of the epoch's number, so resuming has nothing to remember.

    Raises:
        InputError: for no stream, two of one name, or less than one step.
    """

    streams: tuple[Stream, ...]  # the parts of every batch; the first one sets the number of steps
    steps: int | None = None  # a pass over the rows; None: ceil(rows / size) of the first stream
    refresh: Refresh | None = None  # how the labels are made anew before training; None: they stay
    select: bool = False  # extract again when the epoch ends, and call ClusterHead.select

    def __post_init__(self) -> None:
        names = [stream.name for stream in self.streams]
        if not names or len(set(names)) < len(names):
            raise InputError(f"a plan needs streams of different names; it has {names}")
        if self.steps is not None and self.steps < 1:
            raise InputError(f"a plan needs at least 1 step an epoch, not {self.steps}")

    @property
    def repeats(self) -> int:
        """Passes over the rows."""
        return 1 if self.refresh is None else self.refresh.repeats


@dataclass(frozen=True)
class FeatureTable:
    """One deterministic pass over (a chunk of) the data set: this rank's shard, in ascending order of ``index``."""

    index: Tensor  # (Nr,) int64 sample ids
    features: Tensor  # (Nr, D) float32, as the neck gives them (not normalised)
    logits: Tensor | None  # (Nr, ...) float32, of ClusterHead.logits on the view that Refresh.logits names
    total: int  # N, the samples over all ranks
    # (Nr, D') float32, the backbone's, averaged over the image, where Refresh.pooled asks for what the neck sees
    pooled: Tensor | None = None


@dataclass(frozen=True)
class PseudoLabels:
    """The rows to train on, identical on every rank."""

    index: Tensor  # (M, P) int64 sample ids
    target: Tensor  # (M, T) int64; -1 is unlabelled
    num_classes: tuple[int, ...]  # T of them
    # (M,) int64, the variant of the images in this row (rotation by 90° × variant); zeros when omitted
    variant: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    names: tuple[str, ...] = ()  # of the classes of the first target column, where somebody has named them

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
        if self.names and len(self.names) != self.num_classes[0]:
            raise ValueError(f"{len(self.names)} names for {self.num_classes[0]} classes")


@dataclass(frozen=True)
class LabelDelta:
    """Rows whose target changes: ``row`` (R,) int64 and ``target`` (R, T) int64; identical on every rank.

    A row may be there again with the same target: fixed shapes, which a GPU need not be waited for, are filled up so.
    """

    row: Tensor
    target: Tensor


@dataclass(frozen=True)
class Batch:
    """This rank's rows of one stream."""

    row: Tensor  # (B,) int64 rows of the label store
    index: Tensor  # (B, P) int64 sample ids
    variant: Tensor  # (B,) int64
    target: Tensor  # (B, T) int64, as the store holds them now
    z: dict[str, Tensor]  # {view: (B, P, D) float32}, the neck's output


@dataclass(frozen=True)
class Losses:
    """What ``ClusterHead.loss`` finds, by name, () each.

    Raises:
        InputError: nothing is trained on, or one name is in both.
    """

    train: dict[str, Tensor]  # with gradient: their sum is trained on, and each is logged
    log: dict[str, Tensor] = field(default_factory=dict)  # only logged

    def __post_init__(self) -> None:
        if not self.train or self.train.keys() & self.log.keys():
            raise InputError(
                f"losses need at least one name to train on, and other names to log, not {list(self.train)} and "
                f"{list(self.log)}"
            )


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


class Comm(Protocol):
    """The other ranks. :class:`LocalComm` is the identity on one process; ``odc.engine`` has the distributed one."""

    rank: int
    world: int

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum over ranks (same shape everywhere); ``x`` is left as it is."""

    def gather(self, x: Tensor, gradient: bool = False) -> Tensor:
        """Return the concatenation over ranks along dimension 0, whose length may differ by rank.

        With ``gradient``, that of ``x`` is the sum of what all ranks send back to it. The loop averages gradients over
        ranks, so a loss of the whole batch that every rank computes alike trains as it would on one process.
        """

    def all_to_all(self, x: Tensor, send: Sequence[int], receive: Sequence[int], gradient: bool = False) -> Tensor:
        """Send ``send[r]`` rows of ``x`` to rank r, in their order, and return what came: rank 0's rows, rank 1's, ...

        ``receive[r]`` rows come from rank r, which must know so. With ``gradient``, that of a row is what its receiver
        sends back.
        """

    def broadcast(self, x: Tensor) -> Tensor:
        """Return rank 0's ``x``; shape and dtype must be the same everywhere."""

    def first(self, decide: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Return what ``decide`` returns on rank 0, which alone calls it; an :class:`InputError` is raised on all."""


class LocalComm:
    """One process: every collective is the identity."""

    rank, world = 0, 1

    def sum(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def gather(self, x: Tensor, gradient: bool = False) -> Tensor:
        """Return ``x``."""
        return x

    def all_to_all(self, x: Tensor, send: Sequence[int], receive: Sequence[int], gradient: bool = False) -> Tensor:
        """Return ``x``."""
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def first(self, decide: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Return what ``decide`` returns."""
        return decide()


ALONE = LocalComm()
PIECE = 2**26  # bytes that one rank sends to the first at a time


def gather_first(x: Tensor, comm: Comm) -> Tensor | None:
    """Return the concatenation over ranks along dimension 0 on the first rank, ``None`` on the others.

    It comes to the first rank's main memory a piece at a time; on one process it is ``x``.
    """
    if comm.world == 1:
        return x
    lengths = comm.gather(torch.tensor([len(x)], device=x.device)).tolist()
    rows = max(1, PIECE // max(1, x[:1].nbytes))
    whole = torch.empty(sum(lengths), *x.shape[1:], dtype=x.dtype) if comm.rank == 0 else None
    done = 0
    for rank, length in enumerate(lengths):
        for start in range(0, length, rows):
            size = min(rows, length - start)
            piece = x[start : start + size] if comm.rank == rank else x[:0]
            came = [size * (comm.rank == 0 and r == rank) for r in range(comm.world)]
            found = comm.all_to_all(piece, [len(piece)] + [0] * (comm.world - 1), came)
            if whole is not None:
                whole[done : done + size] = found
            done += size
    return whole


def derive_seed(seed: int, *key: int | str) -> int:
    """Return a 63-bit seed that is a function of ``seed`` and ``key`` alone (SHA-256, the same on every machine)."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def make_generator(seed: int, *key: int | str) -> torch.Generator:
    """Return a CPU generator seeded from ``(seed, *key)``: everything random takes one of these."""
    return torch.Generator().manual_seed(derive_seed(seed, *key))


def on_gpu(x: Tensor) -> bool:
    """Return whether reading a number of ``x`` makes the processor wait.

    There a step asks for fixed shapes and for masks instead, so that it can be given out before the last one is done.
    """
    return x.device.type != "cpu"


def sort_into_groups(group: Tensor, num_groups: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the order (N,) that sorts rows by ``group`` (N,) int64 in 0..G-1; those of one group stay as they come.

    With it come, in this order, each row's group and its place in there, 0, 1, ..., (N,), and the sizes (G,) of the
    groups. Nothing is read from a GPU.
    """
    ordered, order = group.sort(stable=True)
    bounds = torch.searchsorted(ordered, torch.arange(num_groups + 1, device=group.device))
    place = torch.arange(len(group), device=group.device) - bounds[ordered]
    return order, ordered, place, bounds.diff()  # not bincount, which reads the largest group from a GPU
