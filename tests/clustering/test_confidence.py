"""Log-odds against exact arithmetic, where probabilities no longer tell samples apart; ranks of margins by hand."""

from __future__ import annotations

import math
from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st

from odc.clustering import confidence, log_odds, margins, rank_share


def test_by_hand() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25], [0.9, 0.08, 0.02]], dtype=torch.float64)
    expected = [[math.log(x / (1 - x)) for x in row] for row in p.tolist()]
    torch.testing.assert_close(log_odds(p.log() + 7), torch.tensor(expected, dtype=torch.float64))
    assert log_odds(torch.zeros(2, 1)).tolist() == [[math.inf]] * 2


def test_the_order_is_kept_where_probabilities_are_one() -> None:
    logits = torch.tensor([[60.0, 0.0, 0.0], [80.0, 0.0, 1.0], [100.0, -5.0, 2.0]])
    assert logits.double().softmax(1)[:, 0].tolist() == [1.0, 1.0, 1.0]
    found = log_odds(logits)[:, 0]
    expected = [60 - math.log(2), 80 - math.log(1 + math.e), 100 - math.log(math.exp(-5) + math.exp(2))]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert found.argsort().tolist() == [0, 1, 2]


@given(st.lists(st.lists(st.integers(-20, 20), min_size=4, max_size=4), min_size=2, max_size=6))
def test_the_order_is_that_of_the_probabilities(rows: list[list[int]]) -> None:
    """With powers of two in the place of exp, probabilities are exact fractions."""
    found = log_odds(torch.tensor(rows, dtype=torch.float64) * math.log(2))
    for c in range(4):
        exact = [Fraction(2) ** row[c] / sum(Fraction(2) ** z for z in row) for row in rows]
        for i, p in enumerate(exact):
            assert math.isclose(float(found[i, c]), math.log(p / (1 - p)), rel_tol=1e-9, abs_tol=1e-9)


def test_margins_by_hand() -> None:
    scores = torch.tensor([[1.0, 5.0, 2.0], [4.0, 4.0, 0.0], [-torch.inf, 1.0, -torch.inf]])
    assert margins(scores).tolist() == [3, 0, math.inf]
    assert margins(torch.ones(2, 1)).tolist() == [0, 0]


def test_ranks_by_hand() -> None:
    margin = torch.tensor([3.0, 1.0, 3.0, math.inf])
    assert rank_share(margin).tolist() == [0.75, 0.25, 0.75, 1.0]
    assert rank_share(torch.tensor([0.0, 1.0, 2.0, 9.0]), margin).tolist() == [0, 0.25, 0.25, 0.75]
    held = torch.tensor([True, True, False, False])
    assert confidence(margin, held).tolist() == [1.0, 0.5, 0, 0]
    assert confidence(margin, ~held | held).tolist() == rank_share(margin).tolist()
    assert confidence(margin, held & ~held).tolist() == [0] * 4


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=30), st.floats(0.25, 4))
def test_the_unit_of_a_margin_does_not_matter(values: list[float], factor: float) -> None:
    margin = torch.tensor(values, dtype=torch.float64)
    found = rank_share(margin)
    slow = [sum(y <= x for y in values) / len(values) for x in values]
    torch.testing.assert_close(found, torch.tensor(slow, dtype=torch.float32))
    torch.testing.assert_close(found, rank_share(margin * factor))
