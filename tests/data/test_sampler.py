from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from odc.data.sampler import draw_rows
from odc.errors import InputError
from odc.structures import Stream, make_generator


def draw(target: Tensor, steps: int | None = None, seed: int = 0, size: int = 4, **stream: object) -> Tensor:
    return draw_rows(Stream("main", size, **stream), target, steps, make_generator(seed))  # type: ignore[arg-type]


def column(*labels: int) -> Tensor:
    return torch.tensor(labels).view(-1, 1)


def counts(order: Tensor) -> Counter[int]:
    return Counter(order.flatten().tolist())


def test_one_pass_is_a_permutation_topped_up() -> None:
    order = draw(column(*[0] * 10))
    assert order.shape == (3, 4)
    assert order.dtype == torch.int64
    assert sorted(order.flatten()[:10].tolist()) == list(range(10))
    assert not torch.equal(order, draw(column(*[0] * 10), seed=1))
    assert torch.equal(order, draw(column(*[0] * 10)))


@settings(deadline=None, max_examples=50)
@given(rows=st.integers(1, 12), size=st.integers(1, 9), steps=st.integers(1, 9), seed=st.integers(0, 99))
def test_every_window_of_a_pass_is_a_permutation(rows: int, size: int, steps: int, seed: int) -> None:
    order = draw(column(*[-1] * rows), steps, seed, size).flatten()
    assert len(order) == steps * size
    for start in range(0, len(order) - rows + 1, rows):
        assert sorted(order[start : start + rows].tolist()) == list(range(rows))
    tail = order[len(order) // rows * rows :].tolist()
    assert len(set(tail)) == len(tail)


def test_labelled_rows_only() -> None:
    order = draw(column(-1, 3, -1, 0, 5), rows="labelled", size=3)
    assert order.shape == (1, 3)
    assert set(order.flatten().tolist()) == {1, 3, 4}


def test_with_replacement() -> None:
    order = draw(column(*[0] * 100), 1, size=100, replace=True).flatten().tolist()
    assert 50 < len(set(order)) < 80  # 63 expected
    assert set(draw(column(-1, 0), 1, rows="labelled", replace=True).flatten().tolist()) == {1}


def test_balance_by_hand() -> None:
    # class 0: row 0; class 7: rows 1-3; class 9: row 5; row 4 is unlabelled; 9 slots, 3 a class
    assert counts(draw(column(0, 7, 7, 7, -1, 9), 3, size=3, balance=(0,))) == {0: 3, 1: 1, 2: 1, 3: 1, 5: 3}
    # 4 slots for 2 classes, then 2 for the sub-classes 0 and 5 of class 0, and 2 for the one of class 1
    target = torch.tensor([[0, 0], [0, 5], [0, 5], [1, 5]])
    order = counts(draw(target, 1, balance=(0, 1)))
    assert order[0] == 1
    assert order[1] + order[2] == 1
    assert order[3] == 2
    assert draw(column(0, 7, 7, 7, -1, 9), None, size=3, balance=(0,)).shape == (2, 3)  # 5 rows take part


def oracle_shares(labels: list[tuple[int, ...]], total: int) -> list[tuple[int, int]]:
    """Bounds of every row's count: slots shared level by level, each share its floor or its ceiling."""
    bounds = []
    for row in labels:
        low = high = total
        for level in range(len(row) + 1):
            inside = [other for other in labels if other[:level] == row[:level]]
            shares = len({other[: level + 1] for other in inside}) if level < len(row) else len(inside)
            low, high = low // shares, math.ceil(high / shares)
        bounds.append((low, high))
    return bounds


@settings(deadline=None, max_examples=80)
@given(
    labels=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=15),
    deep=st.booleans(),
    size=st.integers(1, 12),
    steps=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_balance_is_even_at_every_level(
    labels: list[tuple[int, int]], deep: bool, size: int, steps: int, seed: int
) -> None:
    balance = (0, 1) if deep else (0,)
    target = torch.tensor(labels)
    order = draw(target, steps, seed, size, balance=balance)
    drawn = counts(order)
    assert drawn.total() == steps * size
    used = [label[: len(balance)] for label in labels]
    for row, (low, high) in enumerate(oracle_shares(used, steps * size)):
        assert low <= drawn[row] <= high
    for level in range(len(balance) + 1):
        # children of one parent, and rows of one group, differ by one at most
        children: dict[tuple[int, ...], Counter[object]] = {}
        for row, label in enumerate(used):
            child: object = label[: level + 1] if level < len(balance) else row
            children.setdefault(label[:level], Counter())[child] += drawn[row]
        for share in children.values():
            assert max(share.values()) - min(share.values()) <= 1


@settings(deadline=None, max_examples=80)
@given(
    labels=st.lists(st.integers(-1, 4), min_size=1, max_size=15).filter(lambda labels: max(labels) >= 0),
    size=st.integers(1, 12),
    steps=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_classes_take_turns(labels: list[int], size: int, steps: int, seed: int) -> None:
    target = column(*labels)
    order = draw(target, steps, seed, size, balance=(0,), turns=True)
    assert order.shape == (steps, size)
    assert counts(order) == counts(draw(target, steps, seed, size, balance=(0,))), "as many of each row as without"
    classes = sorted({label for label in labels if label >= 0})
    seen = target[order.flatten(), 0].tolist()
    whole = len(seen) // len(classes) * len(classes)
    assert seen[:whole] == classes * (whole // len(classes))
    assert seen[whole:] == sorted(set(seen[whole:])), "the odd ones once each"


def test_turns_by_hand() -> None:
    target = column(1, 0, 1, -1, 0)
    order = draw(target, 1, size=8, balance=(0,), turns=True).flatten().tolist()
    assert target[order, 0].tolist() == [0, 1] * 4
    assert counts(torch.tensor(order)) == {0: 2, 1: 2, 2: 2, 4: 2}
    firsts = {tuple(draw(target, 1, seed, 2, balance=(0,), turns=True).flatten().tolist()) for seed in range(40)}
    assert firsts == {(1, 0), (1, 2), (4, 0), (4, 2)}, "which row of a class comes first is random"


@given(st.permutations(range(5)))
@settings(deadline=None, max_examples=20)
def test_names_of_classes_do_not_matter_to_the_shares(names: list[int]) -> None:
    labels = [0, 0, 1, 2, 2, 2, 3, 4]
    drawn = counts(draw(column(*(names[label] for label in labels)), 5, balance=(0,)))
    shares: Counter[int] = Counter()
    for row, label in enumerate(labels):
        shares[label] += drawn[row]
    assert set(shares.values()) == {4}


def test_odd_slots_and_order_are_random() -> None:
    target = column(0, 1, 2)
    first = [int(draw(target, 1, seed, 1, balance=(0,))) for seed in range(60)]
    assert min(Counter(first).values()) > 8
    assert len(Counter(first)) == 3


def test_refusals() -> None:
    with pytest.raises(InputError, match=r"stream 'main' has no labelled row to draw from: 0 of 2 rows"):
        draw(column(-1, -1), rows="labelled")
    with pytest.raises(InputError, match="no labelled row"):
        draw(column(-1, -1), balance=(0,))
    with pytest.raises(InputError, match="no row"):
        draw(column())
    with pytest.raises(ValueError, match=r"balances columns \(1,\)"):
        draw(column(0), balance=(1,))
    with pytest.raises(ValueError, match="known: all, labelled"):
        draw(column(0), rows="some")
    with pytest.raises(InputError, match="stream 'main' has turns, but no balance that says whose"):
        draw(column(0), turns=True)
    with pytest.raises(ValueError, match="at least 1 row a step"):
        draw(column(0), size=0)
