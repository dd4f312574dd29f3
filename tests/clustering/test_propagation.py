"""Labels that flow from neighbour to neighbour: by hand, against a dense solution, and what must always hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from odc.clustering.propagation import propagate
from odc.errors import InputError


def test_two_directions_by_hand() -> None:
    # Less their mean, the rows point four ways, two by two; the one neighbour of each is its twin.
    x = np.array([[2, 0], [4, 0], [-2, 0], [-4, 0]], dtype=np.float32)
    shares = propagate(x, np.array([1, 2]), np.array([0, 1]), 2, neighbours=1)
    assert shares.tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]


def test_where_no_label_reaches_there_is_none() -> None:
    x = np.array([[2, 0], [4, 0], [-2, 0], [-4, 0]], dtype=np.float32)
    assert propagate(x, np.array([1]), np.array([0]), 1, neighbours=1).tolist() == [[1], [1], [0], [0]]
    assert propagate(x[:1], np.array([0]), np.array([1]), 2).tolist() == [[0, 1]]


def dense(x: np.ndarray, index: np.ndarray, label: np.ndarray, C: int, k: int) -> np.ndarray:
    """The limit of the flow, (1 - α) (I - α S)⁻¹ Y, from the equation."""
    x = x.astype(np.float64) - x.astype(np.float64).mean(0)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = unit @ unit.T
    N = len(x)
    W = np.zeros((N, N))
    for i in range(N):
        others = [j for j in np.argsort(-cosine[i], kind="stable") if j != i][:k]
        W[i, others] = np.maximum(cosine[i, others], 0) ** 3
    W = W + W.T
    S = W / np.sqrt(W.sum(1))[:, None] / np.sqrt(W.sum(1))[None, :]
    Y = np.zeros((N, C))
    Y[index, label] = 1
    F = 0.01 * np.linalg.solve(np.eye(N) - 0.99 * S, Y)
    F /= F.sum(0)
    F /= F.sum(1, keepdims=True)
    F[index] = Y[index]
    return F


def test_it_is_the_solution_of_the_equation() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5)).astype(np.float32) + np.repeat(np.eye(3, 5) * 2, 20, axis=0).astype(np.float32)
    index, label = np.array([0, 1, 20, 40]), np.array([0, 0, 1, 2])
    found, wanted = propagate(x, index, label, 3, neighbours=4), dense(x, index, label, 3, 4)
    # A hundred rounds leave 0.99^100 = 0.37 of what the limit has beyond the near ones, alike in all columns.
    assert (found.argmax(1) == wanted.argmax(1)).mean() >= 0.95
    assert np.abs(found - wanted).mean() < 0.05


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 30), st.integers(1, 3), st.integers(0, 2**16))
def test_given_labels_stay_and_shares_sum_to_one(N: int, C: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(N, 4)).astype(np.float32)
    C = min(C, N)
    index, label = rng.permutation(N)[:C], np.arange(C)
    shares = propagate(x, index, label, C)
    assert shares.dtype == np.float32
    assert np.array_equal(shares[index], np.eye(C, dtype=np.float32)[label])
    total = shares.sum(1)
    assert np.all((total == 0) | (np.abs(total - 1) < 1e-5))
    assert np.array_equal(shares, propagate(x, index, label, C)), "nothing is drawn"


def test_features_must_be_numbers() -> None:
    with pytest.raises(InputError, match="1 of 2 rows of features are not finite"):
        propagate(np.array([[1, 0], [np.inf, 1]], dtype=np.float32), np.array([0]), np.array([0]), 1)
