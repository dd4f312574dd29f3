"""ODC's memory, against the matrix product that no implementation of it can avoid.

One iteration is what ``ODCHead.update`` does with a batch of B samples, labels included, plus a tenth of the centroids
and splits that follow every tenth. The floor is ``torch.mm`` of (B, D) by (D, K): the scores of B samples under K
centroids, into memory that is there already.

The memory starts from K random unit vectors with noise around them, in clusters of uneven sizes, so that labels are
as stable as in training; one in twenty features of a batch comes from another cluster than its sample's, so that
labels and clusters also change. A hundred clusters are too small at first: what dissolving and filling them takes is a
row of its own.
"""

from __future__ import annotations

import functools
import statistics

import torch
import torch.nn.functional as F
from torch import Tensor

from odc.heads import ODCHead
from odc.memory import LabelStore
from odc.structures import Batch, LabelDelta, LocalComm, PseudoLabels, make_generator

from .timing import Found, in_turn, timed

EVERY = 10  # iterations between two updates of the centroids
SMALL = 100  # clusters of less than t samples


def around(centres: Tensor, clusters: Tensor, generator: torch.Generator) -> Tensor:
    """Return a feature (n, D) for each cluster id (n,): its centre (unit length) and noise of norm 0.7."""
    noise = torch.randn(len(clusters), centres.shape[1], generator=generator)
    return centres[clusters] + noise.mul_(0.7 / centres.shape[1] ** 0.5)


def filled(N: int, K: int, D: int, B: int) -> tuple[ODCHead, LabelStore, Tensor]:
    """Return a head whose memory is filled with clusters of log-normal sizes, the store of its labels, and centres."""
    rng = make_generator(0, "odc memory")
    centres = F.normalize(torch.randn(K, D, generator=rng), dim=1)
    head = ODCHead(D, K, batch_size=B, centroid_interval=EVERY)
    weights = torch.randn(K, generator=rng).mul_(0.3).exp_()
    small = min(SMALL, K // 2)
    weights[:small] = 0
    labels = torch.multinomial(weights, N, replacement=True, generator=rng)
    labels[: 10 * small] = torch.arange(10 * small) % small
    features = torch.empty(N, D, dtype=torch.float16)
    for rows, of in zip(features.split(65536), labels.split(65536), strict=True):
        rows.copy_(around(centres, of, rng))
    head.memory.fill(features, labels)
    store = LabelStore(0)
    store.replace(PseudoLabels(torch.arange(N)[:, None], labels[:, None], (K,)))
    return head, store, centres


@functools.cache
def _prepared(tiny: bool) -> tuple[Found, ODCHead, LabelStore, Tensor]:
    """Return what the hundred small clusters took, and a memory without any."""
    N, K, D, B = (4_000, 40, 16, 32) if tiny else (1_280_000, 10_000, 256, 512)
    head, store, centres = filled(N, K, D, B)
    memory, rng = head.memory, make_generator(0, "split")
    view, few = store.view(), int((store.counts < memory.least(N)).sum())
    planned = [timed(lambda: memory.plan_split(view, rng)) for _ in range(4)][1:]
    rows, new = memory.plan_split(view, rng)

    def follow() -> None:
        memory.relabel(rows, new, view)
        store.update(LabelDelta(rows, new[:, None]))
        memory.update_centroids(store.counts)

    followed = timed(follow)
    cpu = 1e3 * (statistics.median(spent.cpu for spent in planned) + followed.cpu)
    wall = 1e3 * (statistics.median(spent.wall for spent in planned) + followed.wall)
    told = f"{few} clusters, {len(rows):,} samples move; wall {wall:.0f} ms"
    return Found(cpu, told, dict(small=few, moved=len(rows), wall_ms=wall)), head, store, centres


def small_clusters(tiny: bool) -> Found:
    """Return the milliseconds that a hundred small clusters take."""
    return _prepared(tiny)[0]


def memory_step(tiny: bool, bar: float) -> Found:
    """Return how often the product an iteration takes."""
    _, head, store, centres = _prepared(tiny)
    memory, comm, rng = head.memory, LocalComm(), make_generator(0, "batches")
    N, B, K = len(store.target), head.batch_size, head.num_clusters
    batches = []
    for _ in range(EVERY * 4):
        ids = torch.randint(N, (B,), generator=rng)
        clusters = store.target[ids, 0]
        stray = torch.rand(B, generator=rng) < 0.05
        clusters[stray] = torch.randint(K, (int(stray.sum()),), generator=rng)
        z = around(centres, clusters, rng)
        batches.append(Batch(ids, ids[:, None], ids, ids[:, None], {"train": z[:, None]}))
    scores = torch.empty(B, K)
    blocks = {"ours": 0, "floor": 0}

    def block(which: str) -> list[Batch]:
        blocks[which] += 1
        start = blocks[which] * EVERY % len(batches)
        return batches[start : start + EVERY]

    def ours() -> None:
        for batch in block("ours"):
            for delta in head.update({"train": batch}, store.view(), rng, comm):
                store.update(delta)

    def floor() -> None:
        for batch in block("floor"):
            torch.mm(batch.z["train"][:, 0], memory.centroids.T, out=scores)

    found = in_turn(ours, floor, 3 if tiny else 12, bar, EVERY).found()
    _prepared.cache_clear()  # nothing needs it any more
    return Found(found.value, found.told, {**found.detail, "samples": N, "clusters": K, "batch": B})
