"""Assignments that are balanced over a batch, by the algorithm of Sinkhorn and Knopp.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin. *Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments* (SwAV). NeurIPS 2020 (arXiv:2006.09882), section 3.1 and appendix A; Cuturi, NeurIPS 2013, for the method.
"""

from __future__ import annotations

import torch
from torch import Tensor

from odc.structures import Comm


@torch.no_grad()
def sinkhorn(
    scores: Tensor, comm: Comm, *, epsilon: float = 0.05, rounds: int = 3, marginals: Tensor | None = None
) -> Tensor:
    """Return assignments (B, K) float32 near to exp(scores / ε) whose clusters have given shares of the whole batch.

    Every round scales the columns, so that their sums over the rows of all ranks are ``marginals``, and then the rows,
    to sums of 1: rows are exact, columns come near with the rounds. In logarithms, so no score is too large or small.
    No gradient.

    Args:
        scores: (B, K) floating of this rank's rows: similarities or logits.
        comm: the ranks, whose rows are one batch.
        epsilon: smoothness; the smaller, the nearer are rows to one-hot.
        rounds: SwAV's 3.
        marginals: (K,) shares of the clusters, with sum 1; by default all 1/K. With fewer rows than clusters in the
            whole batch no one-hot assignment has equal shares.
    """
    K = scores.shape[1]
    wanted = scores.new_full((K,), 1 / K, dtype=torch.float32) if marginals is None else marginals
    log_q = scores.float() / epsilon
    for _ in range(rounds):
        log_q = log_q + wanted.log() - comm.gather(log_q.logsumexp(0)[None]).logsumexp(0)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp()
