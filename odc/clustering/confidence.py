"""How sure a head is of a cluster, in numbers that keep their order when the probabilities have become 1."""

from __future__ import annotations

import torch
from torch import Tensor

from odc.errors import InputError


def log_odds(logits: Tensor) -> Tensor:
    """Return log p_c / (1 - p_c) for p = softmax of ``logits`` (N, K) floating: (N, K), infinite for K = 1.

    It is z_c - log Σ_{j≠c} exp z_j, and rises with p_c. But probabilities of trained heads round to 1, even in double
    precision, and among equals the order of the data set would decide who is the surest.
    """
    if logits.ndim != 2 or logits.shape[1] < 1:
        raise InputError(f"logits must be (N, K), K at least 1; got shape {tuple(logits.shape)}")
    best = logits.argmax(1, keepdim=True)
    others = logits.scatter(1, best, -torch.inf).logsumexp(1, keepdim=True)
    log_p = logits - logits.logsumexp(1, keepdim=True)
    # No probability but the largest can be above 1/2, so this is exact for all others.
    odds = log_p - torch.log1p(-log_p.clamp(max=-0.5).exp())
    return odds.scatter(1, best, logits.gather(1, best) - others)
