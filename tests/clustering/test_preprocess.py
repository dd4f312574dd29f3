"""Normalisation and whitening: cases by hand, shards, edges."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from odc.clustering import fit_whitening, l2_normalize
from odc.errors import InputError
from odc.structures import LocalComm, make_generator


class Replay(LocalComm):
    """Rank 0 of two: sums what it has with what rank 1 noted down."""

    rank, world = 0, 2

    def __init__(self, other: list[Tensor]) -> None:
        self.other = other

    def sum(self, x: Tensor) -> Tensor:
        return x + self.other.pop(0)


def correlated(n: int, dim: int) -> Tensor:
    generator = make_generator(0, "whitening")
    return torch.randn(n, dim, generator=generator) @ torch.randn(dim, dim, generator=generator) + 3


def test_l2_normalize_by_hand() -> None:
    x = torch.tensor([[3.0, 4], [0, 0], [0, -2], [1e-20, 0]])
    unit, zeros = l2_normalize(x)
    torch.testing.assert_close(unit, torch.tensor([[0.6, 0.8], [0, 0], [0, -1], [0, 0]]))
    assert unit[3].tolist() == [0, 0]
    assert zeros == 2
    assert l2_normalize(x, eps=2.5)[1] == 3


def test_whitening_by_hand() -> None:
    # Variance 4 along x, 1 along y; centred at (10, 20).
    x = torch.tensor([[12.0, 20], [8, 20], [12, 20], [8, 20], [10, 22], [10, 18], [10, 20], [10, 20]])
    whitening = fit_whitening(x, 2, LocalComm())
    torch.testing.assert_close(whitening.mean, torch.tensor([10.0, 20]))
    torch.testing.assert_close(whitening.projection, torch.tensor([[2**-0.5, 0], [0, 1]]))
    torch.testing.assert_close(whitening.apply(torch.tensor([[12.0, 21]])), torch.tensor([[2**0.5, 1.0]]))


def test_whitened_features_have_unit_covariance_and_signs_are_fixed() -> None:
    x = correlated(500, 12)
    whitening = fit_whitening(x, 8, LocalComm())
    white = whitening.apply(x)
    torch.testing.assert_close(white.mean(dim=0), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cov(white.T, correction=0), torch.eye(8), atol=1e-3, rtol=0)
    largest = whitening.projection.abs().argmax(dim=0)
    assert bool((whitening.projection[largest, torch.arange(8)] > 0).all())
    assert torch.equal(fit_whitening(x, 8, LocalComm()).projection, whitening.projection)
    assert whitening.projection.dtype == torch.float32


def test_two_shards_are_as_good_as_one() -> None:
    x = correlated(300, 6)
    whole = fit_whitening(x, 6, LocalComm())
    ours, theirs = x[:90], x[90:]
    mean = x.double().mean(dim=0)
    total = torch.cat([theirs.double().sum(dim=0), torch.tensor([210.0], dtype=torch.float64)])
    centred = theirs.double() - mean
    sharded = fit_whitening(ours, 6, Replay([total, centred.T @ centred]))
    torch.testing.assert_close(sharded.mean, whole.mean)
    torch.testing.assert_close(sharded.projection, whole.projection, atol=1e-5, rtol=1e-4)


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = correlated(100, 5)
    whole = fit_whitening(x, 5, LocalComm())
    white = whole.apply(x)
    monkeypatch.setattr("odc.clustering.preprocess.CHUNK", 7)
    torch.testing.assert_close(fit_whitening(x, 5, LocalComm()).projection, whole.projection)
    torch.testing.assert_close(whole.apply(x), white)


@pytest.mark.parametrize(("n", "dim", "asked", "kept"), [(5, 20, 10, 4), (50, 3, 10, 3), (50, 20, 10, 10)])
def test_components_are_reduced_to_what_there_is(n: int, dim: int, asked: int, kept: int) -> None:
    x = correlated(n, dim)
    whitening = fit_whitening(x, asked, LocalComm())
    assert whitening.apply(x).shape == (n, kept)
    assert bool(whitening.apply(x).isfinite().all())


def test_floor_keeps_directions_without_variance_small() -> None:
    x = torch.zeros(100, 2)
    x[:, 0] = torch.randn(100, generator=make_generator(0))
    x[:, 1] = 1e-6 * torch.randn(100, generator=make_generator(1))
    assert float(fit_whitening(x, 2, LocalComm()).apply(x)[:, 1].std()) < 1e-3
    assert float(fit_whitening(x, 2, LocalComm(), floor=0).apply(x)[:, 1].std()) > 0.9


def test_a_large_mean_does_not_cancel() -> None:
    x = torch.randn(1000, 3, generator=make_generator(0)) + 1000
    white = fit_whitening(x, 3, LocalComm()).apply(x)
    torch.testing.assert_close(torch.cov(white.T, correction=0), torch.eye(3), atol=1e-3, rtol=0)


def test_errors_name_the_numbers() -> None:
    with pytest.raises(InputError, match="got 1"):
        fit_whitening(torch.ones(1, 3), 2, LocalComm())
    with pytest.raises(InputError, match="4 rows to whiten are all equal"):
        fit_whitening(torch.ones(4, 3), 2, LocalComm())
    with pytest.raises(InputError, match="not finite"):
        fit_whitening(torch.tensor([[1.0], [torch.nan]]), 1, LocalComm())
    with pytest.raises(InputError, match="not 0"):
        fit_whitening(torch.randn(4, 3), 0, LocalComm())
