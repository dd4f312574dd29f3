"""How sure a clustering is of an image, on one scale for all methods."""

from __future__ import annotations

import torch
from torch import Tensor

from odc.errors import InputError


def margins(scores: Tensor) -> Tensor:
    """Return by how much the best of the scores (N, K) of each row is before the second: (N,), 0 where K is 1."""
    if scores.ndim != 2 or scores.shape[1] < 1:
        raise InputError(f"scores must be (N, K), K at least 1; got shape {tuple(scores.shape)}")
    best = scores.topk(min(2, scores.shape[1]), dim=1).values
    return best[:, 0] - best[:, -1]


def rank_share(margin: Tensor, among: Tensor | None = None) -> Tensor:
    """Return the share of the margins ``among`` that are not larger than each of ``margin`` (N,): (N,) in [0, 1].

    Scores of different heads have different units, softmaxes of some are all near 1 and of others all near 1/K. A rank
    says the same of all of them: .9 is surer than 90 % of the images. Without ``among`` these are the margins
    themselves; for new images they are those of the clustering, or evenly spaced ones of these in their order.
    """
    reference = (margin if among is None else among).sort().values
    if not len(reference):
        return torch.zeros(margin.shape, dtype=torch.float32, device=margin.device)
    place = torch.searchsorted(reference, margin.to(reference.dtype).contiguous(), right=True)
    return (place.double() / len(reference)).float()


def confidence(margin: Tensor, held: Tensor) -> Tensor:
    """Return the confidence (N,) float32 of images by their margins (N,): the rank among those ``held`` (N,) bool.

    These are the images in a cluster; for others, in none or lost, it is 0.
    """
    return rank_share(margin, margin[held]).where(held, 0.0)
