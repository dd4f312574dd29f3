"""Sinkhorn's balancing: a case by hand, the marginals, two ranks as one, and scores of any size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from odc.clustering import sinkhorn
from odc.structures import LocalComm, make_generator


class Split:
    """Two ranks, of which the other one's part of what is gathered is known."""

    def __init__(self, others: list[Tensor]) -> None:
        self.others = iter(others)
        self.rank, self.world = 0, 2

    def gather(self, x: Tensor, gradient: bool = False) -> Tensor:
        return torch.cat([x, next(self.others)])


def test_by_hand() -> None:
    """Columns to 1/2, then rows to 1, once: [[3, 1], [1, 1]] has column sums 4 and 2."""
    scores = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).log()
    found = sinkhorn(scores, LocalComm(), epsilon=1.0, rounds=1)
    assert found.tolist() == [pytest.approx([0.6, 0.4]), pytest.approx([1 / 3, 2 / 3])]


def test_marginals_are_reached() -> None:
    scores = torch.randn(200, 5, generator=make_generator(0, "scores")) + torch.arange(5.0)
    wanted = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    for marginals in (None, wanted):
        found = sinkhorn(scores, LocalComm(), epsilon=0.5, rounds=200, marginals=marginals)
        assert found.sum(1).tolist() == pytest.approx([1.0] * 200, abs=1e-5)
        expected = [0.2] * 5 if marginals is None else wanted.tolist()
        assert found.mean(0).tolist() == pytest.approx(expected, abs=1e-4)


def test_a_column_that_all_like_is_shared() -> None:
    scores = torch.tensor([[5.0, 4.0], [5.0, 0.0], [5.0, 3.9], [5.0, 1.0]])
    found = sinkhorn(scores, LocalComm(), rounds=50)
    assert found.argmax(1).tolist() == [1, 0, 1, 0], "those that mind least go"


def test_any_size_of_scores_is_finite() -> None:
    scores = torch.tensor([[3e4, 0.0, 0.0], [0.0, -3e4, 0.0], [3e4, 0.0, 1.0]], dtype=torch.float16)
    found = sinkhorn(scores, LocalComm())
    assert found.dtype == torch.float32
    assert bool(found.isfinite().all())
    assert found.sum(1).tolist() == pytest.approx([1.0] * 3)


def test_two_ranks_are_one_batch_and_no_gradient_passes() -> None:
    scores = torch.randn(8, 3, generator=make_generator(0, "scores")).requires_grad_()
    together = sinkhorn(scores, LocalComm())
    assert not together.requires_grad
    others, log_q = [], scores.detach() / 0.05
    for _ in range(3):
        others.append(log_q[5:].logsumexp(0)[None])
        log_q = log_q - torch.tensor(3.0).log() - log_q.logsumexp(0)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    torch.testing.assert_close(sinkhorn(scores[:5], Split(others)), together[:5])  # type: ignore[arg-type]
