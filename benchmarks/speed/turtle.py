"""TURTLE's step, against its bare matrix products.

Ours is everything that a training does once the features of a batch are there: the labels, ten inner steps of Adam on
classifiers that are drawn anew, the loss, its gradient, and the optimiser's move. The floor is only the products, into
memory that is there already: for each space 2M + 3 of them, each of 2·B·D·K operations (M inner steps forward and
backward, the labels, the trained classifiers' scores, the gradient of the labels).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from odc.heads import TurtleHead
from odc.memory.labels import LabelStore
from odc.structures import Batch, FeatureTable, LocalComm, make_generator

from .timing import Found, in_turn


def bare_products(head: TurtleHead, x: Tensor) -> Callable[[], None]:
    """Return the products of a step on features (B, D), as a function."""
    rng, B, K = make_generator(0, "floor"), len(x), head.num_clusters
    parts = x.split(head.spaces, 1)
    weights = [torch.randn(K, part.shape[1], generator=rng) for part in parts]
    scores, gradients, out = torch.randn(B, K, generator=rng), [w.clone() for w in weights], torch.empty(B, K)

    def products() -> None:
        for part, weight, gradient in zip(parts, weights, gradients, strict=True):
            for _ in range(head.inner_steps + 2):
                torch.mm(part, weight.T, out=out)
            for _ in range(head.inner_steps + 1):
                torch.mm(scores.T, part, out=gradient)

    return products


def turtle_step(tiny: bool, bar: float) -> Found:
    """Return how often the bare products a step takes, of 5,000 rows of two spaces and 100 clusters."""
    spaces, K, B = ([8, 12], 5, 64) if tiny else ([768, 1280], 100, 5_000)
    torch.manual_seed(0)
    x = torch.randn(B, sum(spaces), generator=make_generator(0, "turtle"))
    head, comm, row = TurtleHead(sum(spaces), K, spaces), LocalComm(), torch.arange(B)
    with torch.no_grad():
        head.refresh(FeatureTable(row, x, None, B), make_generator(0), comm)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    batches = {"train": Batch(row, row[:, None], 0 * row, -1 - 0 * row[:, None], {"extract": x[:, None]})}
    labels = LabelStore(0).view()

    def step() -> None:
        losses = head.loss(batches, labels, make_generator(0), comm)
        torch.stack(list(losses.train.values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return in_turn(step, bare_products(head, x), 3 if tiny else 7, bar).found()
