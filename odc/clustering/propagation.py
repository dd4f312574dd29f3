"""Labels of a few samples to all others, from neighbour to neighbour.

Zhou, Bousquet, Lal, Weston, Schölkopf. *Learning with local and global consistency.* NeurIPS 2003, on the graph of
Iscen, Tolias, Avrithis, Chum. *Label propagation for deep semi-supervised learning.* CVPR 2019 (arXiv:1904.04717): with
the weights w_ij = max(0, cos)³ of the k nearest neighbours, W made symmetric and S = D^-½ W D^-½, the labels Y flow by

    F ← α S F + (1 - α) Y.

The columns of F are then divided by their sums, so that a class does not win by its size or by the density of its part
of the graph: the class mass normalisation of Zhu, Ghahramani, Lafferty (ICML 2003) with equal masses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from odc.clustering.knn import knn_search
from odc.errors import InputError

Ints = npt.NDArray[np.int64]
_KEPT, _ROUNDS, _POWER = 0.99, 100, 3


def propagate(
    x: npt.NDArray[Any], index: Ints, label: Ints, num_classes: int, *, neighbours: int = 10
) -> npt.NDArray[np.float32]:
    """Return how much of each class has come to each sample: (N, C), rows sum to 1, or are 0 where no label reaches.

    Args:
        x: (N, D) floating, finite; compared by the cosine, less their mean.
        index: (L,) rows of ``x`` whose class is known, each once; their own row of what is returned is that class.
        label: (L,) their classes, each of 0 to C - 1 at least once.
        num_classes: C.
        neighbours: k; N - 1 where there are fewer.

    Raises:
        InputError: rows are not finite.
    """
    x = np.asarray(x, np.float32)
    bad = int((~np.isfinite(x).all(axis=1)).sum())
    if bad:
        raise InputError(f"{bad} of {len(x)} rows of features are not finite: extract them anew")
    N = len(x)
    known = np.zeros((N, num_classes), np.float32)
    known[index, label] = 1
    shares = known.copy()
    if N > 1:
        graph = _graph(x - x.mean(0), min(neighbours, N - 1))
        for _ in range(_ROUNDS):
            shares = _KEPT * (graph @ shares) + (1 - _KEPT) * known
    shares /= np.maximum(shares.sum(0), 1e-30)
    total = shares.sum(1, keepdims=True)
    shares = np.divide(shares, total, out=np.zeros_like(shares), where=total > 0)
    shares[index] = known[index]
    found: npt.NDArray[np.float32] = shares
    return found


def _graph(x: npt.NDArray[np.float32], k: int) -> scipy.sparse.csr_matrix:
    """Return S (N, N) of the k nearest neighbours."""
    N = len(x)
    nearest, cosine = (part.numpy() for part in knn_search(x, k=k))
    weights = np.maximum(cosine, 0).astype(np.float32) ** _POWER
    one_way = scipy.sparse.csr_matrix((weights.ravel(), (np.repeat(np.arange(N), k), nearest.ravel())), (N, N))
    both = one_way + one_way.T
    degree = np.asarray(both.sum(1)).ravel()
    scale = scipy.sparse.diags(np.where(degree > 0, np.maximum(degree, 1e-30) ** -0.5, 0).astype(np.float32))
    return (scale @ both @ scale).tocsr()
