"""How evenly clusters are filled."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

Sizes = Tensor | npt.NDArray[Any]


def size_entropy(sizes: Sizes) -> float:
    """Return the entropy in nats of a sample's cluster, from the samples in each, any shape; at most ln K."""
    counts = sizes.cpu().numpy() if isinstance(sizes, Tensor) else sizes
    share = counts[counts > 0] / counts.sum()
    return max(0.0, float(-(share * np.log(share)).sum()))


def imbalance(sizes: Sizes, num_clusters: int) -> float:
    """Return K · Σ sizes² / N², from the samples in each cluster, any shape: 1 is perfectly even, K all in one."""
    counts = sizes.cpu().numpy() if isinstance(sizes, Tensor) else sizes
    return num_clusters * float((counts.astype(np.float64) ** 2).sum()) / int(counts.sum()) ** 2
