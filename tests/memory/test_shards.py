"""Parts of tensors: together they are the whole, whatever the numbers of rows, columns and ranks."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from odc.memory.shards import Shard, Sharded, shards_of, spread_over
from odc.structures import LocalComm


class Rank(LocalComm):
    """One of some ranks, which says nothing to the others."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world


def shard_of(rank: int, world: int, rows: int, length: int) -> Shard:
    with spread_over(Rank(rank, world)):
        return Shard.of_rows(rows, length)


def test_five_rows_of_three_ranks_by_hand() -> None:
    rows = torch.arange(10).view(5, 2)
    shards = [Shard(5, rank=rank, world=3) for rank in range(3)]
    assert [shard.part(rows).tolist() for shard in shards] == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9]]]
    assert shards[0].owner(torch.arange(5)).tolist() == [0, 0, 1, 1, 2]
    assert shards[1].sizes == [2, 2, 1]
    assert shards[1].start == 2
    assert shards[2].shape(torch.Size([1, 2])) == (5, 2)


def test_two_rows_of_five_classes_on_three_ranks_by_hand() -> None:
    rows = torch.arange(1, 11).view(2, 5)
    shards = [shard_of(rank, 3, 2, 5) for rank in range(3)]
    # Each row is cut in two, (1 2 3)(4 5 0)(6 7 8)(9 10 0); the first rank holds two of the four blocks.
    assert [shard.part(rows).tolist() for shard in shards] == [[[1, 2, 3], [4, 5, 0]], [[6, 7, 8]], [[9, 10, 0]]]
    assert shards[1].of_row(0) == []
    assert shards[1].of_row(1) == [(0, slice(0, 3))]
    assert shards[2].of_row(1) == [(0, slice(3, 6))]


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.booleans())
def test_parts_are_the_whole(rows: int, length: int, world: int, vectors: bool) -> None:
    whole = torch.arange(1, rows * length + 1).view(rows, length)
    whole = torch.stack((whole, -whole), 2) if vectors else whole
    shards = [shard_of(rank, world, rows, length) for rank in range(world)]
    parts = [shard.part(whole) for shard in shards]
    assert all(len(part) == shard.size >= 1 for part, shard in zip(parts, shards, strict=True))
    assert max(shards[0].sizes) - min(shards[0].sizes) <= 1
    assert torch.equal(shards[0].whole(torch.cat(parts)), whole)
    for shard, part in zip(shards, parts, strict=True):
        assert shard.shape(part.shape) == whole.shape
        blocks = torch.arange(shard.start, shard.start + shard.size)
        assert bool((shard.owner(blocks) == shard.rank).all())
        for row in range(rows):
            for block, place in shard.of_row(row):
                assert torch.equal(part[block, : len(whole[row, place])], whole[row, place])


class Numbers(Sharded):
    """Numbers that are spread, and one that is not."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.shard = Shard(n)
        self.spread: Tensor = nn.Buffer(torch.zeros(self.shard.size))
        self.one: Tensor = nn.Buffer(torch.zeros(()))

    @property
    def shards(self) -> dict[str, Shard]:
        return {"spread": self.shard}


def test_a_module_takes_its_part_of_what_is_loaded() -> None:
    whole = {"0.spread": torch.arange(5.0), "0.one": torch.tensor(7.0)}
    for rank, wanted in enumerate(([0.0, 1, 2], [3.0, 4])):
        with spread_over(Rank(rank, 2)):
            model = nn.Sequential(Numbers(5))
        assert list(shards_of(model)) == ["0.spread"]
        model.load_state_dict(whole)
        assert model.state_dict()["0.spread"].tolist() == wanted
        model.load_state_dict(model.state_dict())  # its own part is taken, too
        assert model.state_dict()["0.spread"].tolist() == wanted
    assert not shards_of(nn.Sequential(Numbers(5))), "one process has the whole"
