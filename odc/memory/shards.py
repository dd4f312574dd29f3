"""Tensors that are spread over the ranks: each holds a part, and all parts in the order of the ranks are the whole.

A module that holds parts is :class:`Sharded`. Checkpoints hold the whole (:mod:`odc.engine.shards` gathers it), so any
number of ranks can read them; DDP, broadcasts and comparisons between ranks leave parts out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from odc.structures import ALONE, Comm

_RANKS: ContextVar[Comm] = ContextVar("ranks", default=ALONE)


@contextmanager
def spread_over(comm: Comm) -> Iterator[None]:
    """Let modules that are built meanwhile hold the parts of this rank; otherwise they hold the whole.

    What builds a training does this: before there is a checkpoint or a refresh, parts have to know their size, and
    memory that only the whole would need is never asked for.
    """
    token = _RANKS.set(comm)
    try:
        yield
    finally:
        _RANKS.reset(token)


@dataclass(frozen=True)
class Shard:
    """Which part of a tensor, (R, ...) or (R, C, ...), this rank holds: some of its blocks, as evenly as they can be.

    A block is a row, or where a row of C numbers or vectors is cut in ``parts``, one of these, filled up with zeros to
    the longest. Ranks hold neighbouring blocks, as ``torch.tensor_split`` deals them.
    """

    rows: int
    length: int = 1  # C
    parts: int = 1
    rank: int = field(default_factory=lambda: _RANKS.get().rank)
    world: int = field(default_factory=lambda: _RANKS.get().world)

    @staticmethod
    def of_rows(rows: int, length: int) -> Shard:
        """Return a shard that cuts rows where there are fewer of them than ranks: every rank has a block."""
        return Shard(rows, length, -(-_RANKS.get().world // rows))

    @property
    def width(self) -> int:
        """Length of a block."""
        return -(-self.length // self.parts)

    @property
    def start(self) -> int:
        """First block of this rank."""
        return sum(self.sizes[: self.rank])

    @property
    def size(self) -> int:
        """Blocks of this rank."""
        return self.sizes[self.rank]

    @property
    def sizes(self) -> list[int]:
        """Blocks of every rank."""
        least, more = divmod(self.rows * self.parts, self.world)
        return [least + (rank < more) for rank in range(self.world)]

    def owner(self, block: Tensor) -> Tensor:
        """Return the rank that holds each block, int64 of any shape."""
        least, more = divmod(self.rows * self.parts, self.world)
        first = more * (least + 1)  # blocks of the ranks that have one more
        return torch.where(block < first, block // (least + 1), more + (block - first) // max(least, 1))

    def route(self, block: Tensor, comm: Comm) -> tuple[Tensor, list[int], list[int]]:
        """Return how to send what is of these blocks (B,) int64 to the ranks that hold them.

        That is the order to bring it into, and how many go to each rank and come from each, for ``comm.all_to_all``.
        """
        if comm.world != self.world:
            raise ValueError(f"this is spread over {self.world} ranks, not over {comm.world}")
        owner = self.owner(block)
        sizes = torch.bincount(owner, minlength=self.world)
        one_each = [1] * self.world
        send, receive = torch.stack((sizes, comm.all_to_all(sizes, one_each, one_each))).tolist()
        return owner.argsort(stable=True), send, receive

    def mine(self, row: Tensor) -> Tensor:
        """Return those of ascending blocks (R,) int64 that this rank holds."""
        return row[(row >= self.start) & (row < self.start + self.size)]

    def part(self, whole: Tensor) -> Tensor:
        """Return this rank's blocks of the whole tensor, (size, ...) or (size, width, ...)."""
        if self.parts == 1:
            return whole[self.start : self.start + self.size]
        blocks = whole.new_zeros(self.size, self.width, *whole.shape[2:])
        for row in range(self.rows):
            for block, place in self.of_row(row):
                found = whole[row, place]
                blocks[block, : len(found)] = found
        return blocks

    def whole(self, blocks: Tensor) -> Tensor:
        """Return the whole tensor from the blocks of all ranks."""
        if self.parts == 1:
            return blocks
        rows: Tensor = blocks.unflatten(0, (self.rows, self.parts)).flatten(1, 2)
        return rows[:, : self.length].contiguous()

    def of_row(self, row: int) -> list[tuple[int, slice]]:
        """Return this rank's blocks of a row, counted from its first one, each with its place in the row."""
        blocks = range(max(self.start, row * self.parts), min(self.start + self.size, (row + 1) * self.parts))
        places = [slice((b - row * self.parts) * self.width, (b - row * self.parts + 1) * self.width) for b in blocks]
        return [(b - self.start, place) for b, place in zip(blocks, places, strict=True)]

    def shape(self, mine: torch.Size) -> tuple[int, ...]:
        """Return the shape of the whole from that of this rank's blocks."""
        return (self.rows, *mine[1:]) if self.parts == 1 else (self.rows, self.length, *mine[2:])


class Sharded(nn.Module):
    """A module of which some parameters and buffers of its own are parts.

    Its ``state_dict`` has this rank's parts, but it is loaded from the whole. :attr:`shards` is by the tensors' names,
    and without any on one process, where the parts are the whole.
    """

    @property
    def shards(self) -> dict[str, Shard]:
        """Which part each of these tensors is."""
        raise NotImplementedError

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name, shard in self.shards.items():
            given, mine = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(given, Tensor) and given.shape == shard.shape(mine.shape):
                state_dict[prefix + name] = shard.part(given)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def shards_of(model: nn.Module, prefix: str = "") -> dict[str, Shard]:
    """Return which tensors of a model are parts, by their dotted names behind ``prefix``; none on one process."""
    return {
        f"{path}.{name}" if path else name: shard
        for path, module in model.named_modules(prefix=prefix)
        if isinstance(module, Sharded)
        for name, shard in module.shards.items()
        if shard.world > 1
    }
