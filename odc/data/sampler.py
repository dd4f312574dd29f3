"""Which rows a pass trains on, and in which order: pure functions of the labels and a generator."""

from __future__ import annotations

import torch
from torch import Tensor

from odc.errors import InputError
from odc.structures import UNLABELLED, Stream, place_in_group


def draw_rows(stream: Stream, target: Tensor, steps: int | None, generator: torch.Generator) -> Tensor:
    """Draw the rows of one pass over a stream.

    Without ``balance``, random permutations of the rows follow one another until every batch is full: each row is
    seen once before any is seen again. With ``replace`` rows are drawn uniformly and independently. With ``balance``,
    the slots are shared equally over the non-empty classes of the first of those columns, each class's over its
    non-empty classes of the next, and each last group's over its rows: two shares of one parent differ by 1 at most,
    and who gets the odd ones is random. Rows that are unlabelled in a column of ``balance`` take no part.
    With ``distinct`` no batch spans two permutations: what is left of one, less than a batch, is not used.

    Args:
        stream: its ``size``, ``rows``, ``balance``, ``replace`` and ``distinct`` are what counts.
        target: (M, T) int64, -1 unlabelled.
        steps: batches; ``None``: as many as see every row that takes part, ``ceil(rows / size)``.
        generator: CPU generator; the result is a function of it and the other arguments alone.

    Returns (steps, size) int64 rows of ``target``, with ``distinct`` and fewer rows than that as many a step as there
    are; raises InputError where none takes part, ValueError where there is no such column.
    """
    if target.ndim != 2 or not all(0 <= column < target.shape[1] for column in stream.balance):
        raise ValueError(f"stream '{stream.name}' balances columns {stream.balance} of target {tuple(target.shape)}")
    columns = stream.balance or ((0,) if stream.rows == "labelled" else ())
    rows = (target[:, list(columns)] != UNLABELLED).all(dim=1).nonzero().squeeze(1)
    if not len(rows):
        kind = "labelled row" if columns else "row"
        raise InputError(f"stream '{stream.name}' has no {kind} to draw from: 0 of {len(target):,} rows take part")
    if steps is None:
        steps = -(-len(rows) // stream.size)
    total = steps * stream.size
    if stream.distinct:
        size = min(stream.size, len(rows))
        whole = len(rows) // size * size
        keys = torch.rand(-(-steps * size // whole), len(rows), dtype=torch.float64, generator=generator)
        return rows[keys.argsort(dim=1)[:, :whole]].view(-1, size)[:steps]
    if stream.balance:
        order = _balanced(target[rows][:, list(stream.balance)], total, generator)
    elif stream.replace:
        order = torch.randint(len(rows), (total,), generator=generator)
    else:
        passes = -(-total // len(rows))
        keys = torch.rand(passes, len(rows), dtype=torch.float64, generator=generator)
        order = keys.argsort(dim=1).flatten()[:total]
    return rows[order].view(steps, stream.size)


def _balanced(labels: Tensor, total: int, generator: torch.Generator) -> Tensor:
    """Return ``total`` indices into ``labels`` (M, C), shared level by level over its columns, shuffled."""
    group = torch.zeros(len(labels), dtype=torch.int64)  # of every row; one group above the first column
    slots = torch.tensor([total])  # of every group
    for column in labels.unbind(1):
        width = int(column.max()) + 1
        codes, child = torch.unique(group * width + column, return_inverse=True)
        slots = _share(slots, codes // width, generator)
        group = child
    order = torch.arange(len(labels)).repeat_interleave(_share(slots, group, generator))
    return order[torch.randperm(total, generator=generator)]


def _share(slots: Tensor, parent: Tensor, generator: torch.Generator) -> Tensor:
    """Share the slots (G,) of every parent equally over its children (parent: (C,) in 0..G-1, each G has some)."""
    size = torch.bincount(parent, minlength=len(slots))
    shuffled = torch.randperm(len(parent), generator=generator)
    order = shuffled[parent[shuffled].argsort(stable=True)]  # by parent, at random within
    rank = torch.empty_like(parent)
    rank[order] = place_in_group(parent[order], size)
    return slots[parent] // size[parent] + (rank < slots[parent] % size[parent])
