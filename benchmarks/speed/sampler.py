"""The rows of an epoch, drawn uniformly over the clusters as DeepCluster does."""

from __future__ import annotations

import statistics

import torch

from odc.data.sampler import draw_rows
from odc.structures import Stream, make_generator

from .timing import Found, timed


def uniform_draw(tiny: bool) -> Found:
    """Return the seconds that an epoch's order of 1.28 M rows in 10,000 uneven clusters takes."""
    N, K = (10_000, 100) if tiny else (1_280_000, 10_000)
    rng = make_generator(0, "sampler")
    weights = torch.randn(K, generator=rng).mul_(0.5).exp_()
    target = torch.multinomial(weights, N, replacement=True, generator=rng)[:, None]
    stream = Stream("train", 512, balance=(0,))
    spent = [timed(lambda: draw_rows(stream, target, None, rng)) for _ in range(8)][1:]
    cpu, wall = (statistics.median(getattr(s, clock) for s in spent) for clock in ("cpu", "wall"))
    return Found(cpu, f"wall {wall:.2f} s, n={len(spent)}", dict(wall_s=wall, samples=N, clusters=K))
