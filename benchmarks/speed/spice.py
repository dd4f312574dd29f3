"""SPICE: a step of Self against the bare products of its heads, and the memory of local consistency.

A step is what training does with a batch once the backbone is frozen: features of its rows from those of all images,
ten heads, their loss, gradients, and Adam. The floor is the heads' matrix products for as many rows, forward and
backward, and nothing else: not the pass that an optimiser makes over all weights. Rows come as the loop draws them.

Local consistency runs in a process of its own, whose memory is looked at.
"""

from __future__ import annotations

import torch

from odc.clustering import local_consistency
from odc.clustering.kmeans import load_faiss
from odc.data.sampler import draw_rows
from odc.heads import SpiceSelfHead
from odc.memory import LabelStore
from odc.structures import Batch, LocalComm, PseudoLabels, make_generator

from .timing import Found, in_child, in_turn, memory_of


def self_step(tiny: bool, bar: float) -> Found:
    """Return how often the bare products a step takes, of ten heads with K = 100 on features of 512 numbers."""
    N, K, D, width = (500, 10, 16, 16) if tiny else (50_000, 100, 512, 512)
    rng, comm = make_generator(0, "spice"), LocalComm()
    torch.manual_seed(0)
    head = SpiceSelfHead(D, K, hidden_channels=width)
    H, B = head.num_heads, head.batch_size
    x = torch.randn(N, D, generator=rng)
    ids = torch.randint(N, (10 * N, 1), generator=rng)
    target = torch.stack([torch.arange(10 * N) // N, torch.randint(K, (10 * N,), generator=rng)], 1)
    store = LabelStore(0)
    store.replace(PseudoLabels(ids, target, (H, K)))
    order = draw_rows(head.plan(0).streams[0], store.target, 64, rng)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.005, fused=True)
    steps = 0

    def step() -> None:
        nonlocal steps
        row = order[steps % len(order)]
        steps += 1
        index = store.index.index_select(0, row)
        z = {"strong": x.index_select(0, index.flatten())[:, None]}
        batch = Batch(row, index, store.variant[row], store.target.index_select(0, row), z)
        head.loss({"train": batch}, store.view(), rng, comm).train["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    w1, w2 = head.mlps.weight1.detach(), head.mlps.weight2.detach()
    rows = torch.randn(H, B, D, generator=rng)

    def products() -> None:
        hidden = rows @ w1.mT
        out = hidden @ w2.mT
        back = out @ w2  # the gradient of the hidden layer; that of the input is not needed
        _ = out.mT @ hidden, back.mT @ rows

    return in_turn(step, products, 5 if tiny else 25, bar).found()


def consistency_memory(tiny: bool) -> Found:
    """Return how many times the memory of 60,000 features their local consistency takes besides them."""
    N, D, k = (2_000, 64, 20) if tiny else (60_000, 512, 100)
    grown = in_child(_consistency, N, D, k)
    features = 4 * N * D / 2**20
    return Found(grown / features, f"{grown:.0f} MiB for {features:.0f} MiB of features", dict(grown_mib=grown))


def _consistency(N: int, D: int, k: int) -> float:
    torch.set_num_threads(1)
    load_faiss().omp_set_num_threads(1)
    rng = make_generator(0, "consistency")
    x, labels = torch.randn(N, D, generator=rng), torch.randint(10, (N,), generator=rng)
    local_consistency(x[:200], labels[:200], 10)  # what libraries take at their first call
    before = memory_of("VmRSS")
    local_consistency(x, labels, k)
    return memory_of("VmHWM") - before
