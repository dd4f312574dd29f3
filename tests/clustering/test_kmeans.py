"""K-means: cases by hand, no empty clusters, determinism, errors."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from odc.clustering import KMeansResult, MissingFaissError, imbalance, kmeans
from odc.clustering.kmeans import _by_torch, _refill, _two_means
from odc.clustering.lloyd import lloyd, nearest
from odc.errors import InputError
from odc.structures import make_generator


def run(x: torch.Tensor, k: int, seed: int = 0, **kwargs: int | bool) -> KMeansResult:
    return kmeans(x, k, generator=make_generator(seed), **kwargs)  # type: ignore[arg-type]


def test_four_points() -> None:
    x = torch.tensor([[0.0, 0], [10, 0], [0, 1], [10, 1]])
    for seed in range(5):
        result = run(x[[0, 2, 1, 3]] if seed % 2 else x, 2, seed)
        # From any start, the pairs on the left and on the right, or those below and above.
        assert sorted(result.centroids.tolist()) in ([[0, 0.5], [10, 0.5]], [[5, 0], [5, 1]])
        assert result.sizes.tolist() == [2, 2]
        assert imbalance(result.sizes, 2) == 1
        assert result.objective[-1] in (1, 100)
        assert result.refilled == 0
    assert result.centroids.dtype == torch.float32
    assert result.labels.dtype == torch.int64


def test_spherical_centroids_are_directions() -> None:
    x = torch.nn.functional.normalize(torch.randn(300, 3, generator=make_generator(1)), dim=1)
    found = run(x, 4, n_iter=200, spherical=True)
    means = torch.stack([x[found.labels == c].sum(0) for c in range(4)])
    assert torch.allclose(found.centroids, torch.nn.functional.normalize(means, dim=1), atol=1e-5)
    assert torch.equal(found.labels, (x @ found.centroids.T).argmax(1))
    twice = run(x[[0, 0, 0, 0, 1, 2, 3]], 6, spherical=True)  # a cluster is split in two of the same point
    assert torch.allclose(twice.centroids.norm(dim=1), torch.ones(6))


def test_of_several_runs_the_best_is_kept() -> None:
    x = torch.tensor([[0.0, 0], [10, 0], [0, 1], [10, 1]])
    single = [run(x, 2, seed).objective[-1] for seed in range(10)]
    assert max(single) == 100  # some starts end below the optimum
    for seed in range(10):
        assert sorted(run(x, 2, seed, n_redo=20).centroids.tolist()) == [[0, 0.5], [10, 0.5]]


def test_labels_are_the_nearest_centroids_and_the_objective_falls() -> None:
    x = torch.randn(500, 8, generator=make_generator(0))
    result = run(x, 20, n_iter=7)
    assert torch.equal(result.labels, torch.cdist(x, result.centroids).argmin(dim=1))
    assert result.sizes.tolist() == torch.bincount(result.labels, minlength=20).tolist()
    assert len(result.objective) == 7
    assert list(result.objective) == sorted(result.objective, reverse=True)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    x = torch.randn(2000, 16, generator=make_generator(0))
    first, second, other = run(x, 50, 3), run(x.numpy(), 50, 3), run(x, 50, 4)  # type: ignore[arg-type]
    assert torch.equal(first.centroids, second.centroids)
    assert torch.equal(first.labels, second.labels)
    assert first.objective == second.objective
    assert not torch.equal(first.centroids, other.centroids)


def test_the_generator_moves_on_and_global_random_state_does_not() -> None:
    x, generator, before = torch.randn(50, 4), make_generator(0), torch.get_rng_state()
    a, b = (kmeans(x, 10, generator=generator, n_iter=1) for _ in range(2))
    assert not torch.equal(a.centroids, b.centroids)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("distinct", "k"), [(1, 5), (3, 10), (3, 40), (40, 40)])
def test_no_cluster_is_empty_where_points_repeat(distinct: int, k: int) -> None:
    points = torch.randn(distinct, 3, generator=make_generator(1))
    x = points[torch.arange(40) % distinct]
    result = run(x, k)
    assert int(result.sizes.min()) >= 1
    assert int(result.sizes.sum()) == 40
    assert result.refilled >= (k - distinct if k < 40 else 0)
    assert bool(result.centroids.isfinite().all())


def test_refill_by_hand() -> None:
    x = np.array([[0, 0], [0, 1], [8, 0], [8, 1], [50, 50]], dtype=np.float32)
    labels = np.array([0, 0, 0, 0, 2])
    centroids = np.array([[4, 0.5], [-99, -99], [50, 50]], dtype=np.float32)
    assert _refill(x, labels, centroids) == 1
    assert labels[0] == labels[1] != labels[2] == labels[3]
    assert sorted(centroids[:2].tolist()) == [[0, 0.5], [8, 0.5]]
    assert (centroids[labels[0]] == [0, 0.5]).all()
    assert (labels[4], centroids[2].tolist()) == (2, [50, 50])


def test_two_means_never_leaves_a_side_empty() -> None:
    for n in (2, 3, 7):
        half = _two_means(np.ones((n, 2), dtype=np.float32))
        assert 0 < half.sum() < n


def test_torch_finds_what_faiss_finds() -> None:
    """From starts of their own, on groups that either must find, to the rounding of sums."""
    generator = make_generator(2)
    centres = 10 * torch.randn(8, 5, generator=generator)
    x = torch.cat([c + torch.randn(40 + 5 * i, 5, generator=generator) for i, c in enumerate(centres)])
    for spherical in (False, True):
        points = torch.nn.functional.normalize(x, dim=1) if spherical else x
        options: dict[str, Any] = dict(n_iter=20, n_redo=10, plus_plus=True, spherical=spherical)
        centroids, labels, objective = _by_torch(points.numpy(), 8, torch.device("cpu"), make_generator(1), **options)
        by_faiss = run(points, 8, **options)
        assert objective[-1] == pytest.approx(by_faiss.objective[-1], rel=1e-4)
        names = torch.cdist(torch.from_numpy(centroids), by_faiss.centroids).argmin(1)
        assert sorted(names.tolist()) == list(range(8))
        assert torch.equal(names[torch.from_numpy(labels)], by_faiss.labels)
        assert len(objective) == 20
        again = lloyd(points, 8, generator=make_generator(1), **options)
        assert torch.equal(again[0], torch.from_numpy(centroids))


def test_an_iteration_of_torch_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("odc.clustering.lloyd._SCORES", 4)  # two points at a time
    x = torch.tensor([[0.0, 0], [10, 0], [0, 1], [10, 3]])
    found, objective = lloyd(x, 1, generator=make_generator(0), n_iter=2)
    assert found.tolist() == [[5, 1]]
    assert objective[1] == 25 * 4 + 1 + 1 + 0 + 4
    label, distance = nearest(x, torch.tensor([[0.0, 0], [10, 1]]))
    assert (label.tolist(), distance.tolist()) == ([0, 1, 0, 1], [0, 1, 1, 4])
    same = torch.ones(6, 2)  # three clusters of one point: the empty ones move apart from the full one
    found, _ = lloyd(same, 3, generator=make_generator(0), n_iter=1)
    assert len(found.unique(dim=0)) == 3
    assert (found - 1).abs().max() < 0.005


def test_one_cluster_and_as_many_as_points() -> None:
    x = torch.tensor([[0.0], [1], [5]])
    assert run(x, 1).centroids.tolist() == [[2]]
    every = run(x, 3)
    assert sorted(every.labels.tolist()) == [0, 1, 2]
    assert torch.equal(every.centroids[every.labels], x)


def test_errors_name_the_numbers() -> None:
    x = torch.randn(10, 3)
    with pytest.raises(InputError, match="11 clusters from 10 samples: lower"):
        run(x, 11)
    with pytest.raises(InputError, match="0 clusters"):
        run(x, 0)
    with pytest.raises(InputError, match="at least 1 iteration, not 0"):
        run(x, 2, n_iter=0)
    with pytest.raises(InputError, match=r"\(10,\)"):
        run(x[:, 0], 2)
    x[2, 1], x[7, 0] = torch.nan, torch.inf
    with pytest.raises(InputError, match="2 of 10 rows of x are not finite"):
        run(x, 2)


def test_without_faiss_the_error_names_both_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingFaissError, match=r"faiss-cpu.*faiss-gpu.*never both") as caught:
        run(torch.randn(10, 3), 2)
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, InputError)


def test_faiss_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    run(torch.randn(50, 3), 10)
    assert capfd.readouterr() == ("", "")
