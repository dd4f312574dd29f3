"""Which rows a pass trains on, and in which order: pure functions of the labels and a generator."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from odc.errors import InputError
from odc.structures import UNLABELLED, Stream, sort_into_groups


def draw_rows(stream: Stream, target: Tensor, steps: int | None, generator: torch.Generator) -> Tensor:
    """Draw the rows of one pass over a stream.

    Without ``balance``, random permutations of the rows follow one another until every batch is full: each row is
    seen once before any is seen again. With ``replace`` rows are drawn uniformly and independently. With ``balance``,
    the slots are shared equally over the non-empty classes of the first of those columns, each class's over its
    non-empty classes of the next, and each last group's over its rows: two shares of one parent differ by 1 at most,
    and who gets the odd ones is random. Rows that are unlabelled in a column of ``balance`` take no part.
    With ``turns`` the classes of the first of the columns follow one another in ascending order, again and again: where
    all C that are there have equally many, ⌊n/C⌋ or ⌈n/C⌉ of n consecutive rows are of each.
    With ``distinct`` no batch spans two permutations: what is left of one, less than a batch, is not used.

    Args:
        stream: its ``size``, ``rows``, ``balance``, ``turns``, ``replace`` and ``distinct`` are what counts.
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
        labels = target[:, list(stream.balance)].index_select(0, rows)
        order = _balanced(labels, total, generator)
        if stream.turns:
            order = order.index_select(0, _taking_turns(labels[:, 0].index_select(0, order)))
    elif stream.replace:
        order = torch.randint(len(rows), (total,), generator=generator)
    else:
        passes = -(-total // len(rows))
        keys = torch.rand(passes, len(rows), dtype=torch.float64, generator=generator)
        order = keys.argsort(dim=1).flatten()[:total]
    return rows.index_select(0, order).view(steps, stream.size)


def _balanced(labels: Tensor, total: int, generator: torch.Generator) -> Tensor:
    """Return ``total`` indices into ``labels`` (M, C), shared level by level over its columns, shuffled."""
    group = torch.zeros(len(labels), dtype=torch.int64)  # of every row; one group above the first column
    slots = torch.tensor([total])  # of every group
    for column in labels.unbind(1):
        width = int(column.max()) + 1
        codes, child = _numbered(group * width + column, len(slots) * width)
        slots = _share(slots, codes // width, generator)
        group = child
    order = torch.arange(len(labels)).repeat_interleave(_share(slots, group, generator))
    return order.index_select(0, torch.randperm(total, generator=generator))


def _taking_turns(group: Tensor) -> Tensor:
    """Return the order (M,) in which the groups (M,) follow one another in turn, each one's members as they come."""
    order, _, place, _ = sort_into_groups(group, int(group.max()) + 1)
    return order.index_select(0, place.argsort(stable=True))  # those of one place stay sorted by group


def _numbered(codes: Tensor, bound: int) -> tuple[Tensor, Tensor]:
    """Return the different codes (G,), ascending, and which of these each of ``codes`` (M,) in 0..bound-1 is, (M,)."""
    if bound > 4 * len(codes):
        there, number = torch.unique(codes, return_inverse=True)
        return there, number
    there = torch.bincount(codes, minlength=bound) > 0  # no sorting, which takes ten times as long
    return there.nonzero().squeeze(1), (there.cumsum(0) - 1).index_select(0, codes)


def _share(slots: Tensor, parent: Tensor, generator: torch.Generator) -> Tensor:
    """Share the slots (G,) of every parent equally over its children (parent: (C,) in 0..G-1, each G has some)."""
    size = torch.bincount(parent, minlength=len(slots))
    shuffled = torch.randperm(len(parent), generator=generator)
    order = shuffled.index_select(
        0, _grouped(parent.index_select(0, shuffled), len(slots))
    )  # at random within a parent
    odd = slots % size  # children of each that get one more: the first ones
    first = (size.cumsum(0) - size - (odd.cumsum(0) - odd)).repeat_interleave(odd)
    share = (slots // size).index_select(0, parent)
    share.index_add_(0, order.index_select(0, first.add_(torch.arange(len(first)))), torch.ones_like(first))
    return share


def _grouped(group: Tensor, num_groups: int) -> Tensor:
    """Return the order (M,) that sorts ``group`` (M,) in 0..G-1 stably."""
    if num_groups > 2**16:
        return group.argsort(stable=True)
    return torch.from_numpy(group.numpy().astype(np.uint16).argsort(kind="stable"))  # in two passes, without comparing
