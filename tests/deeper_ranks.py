"""What one rank of four, and then of two, does: two-level clustering, DeeperCluster's refresh, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from odc.clustering import two_level_kmeans
from odc.engine.comm import DistComm, get_comm
from odc.engine.shards import gather_state, leave_out_of_ddp, put_whole
from odc.heads import DeeperClusterHead, ODCHead
from odc.memory.labels import LabelStore
from odc.memory.shards import shards_of, spread_over
from odc.structures import Batch, Comm, FeatureTable, PseudoLabels, make_generator


def cases() -> dict[str, tuple[Tensor, int, int]]:
    """Points with numbers of clusters and super-clusters: ordinary, as many clusters as points, points that repeat."""
    rng = make_generator(5)
    many = F.normalize(torch.randn(5003, 17, generator=rng), dim=1)
    few = torch.randn(50, 3, generator=rng)
    return {
        "many": (many, 37, 5),
        "one level": (many[:1500], 40, 1),
        "far from zero": (1000 * many[:1500] + 700, 12, 3),
        "as many as points": (few, 50, 4),
        "repeated": (few[torch.arange(41) % 3], 12, 2),
        "three points": (few[:3], 3, 2),
    }


def cluster(name: str, comm: Comm) -> dict[str, Tensor]:
    """Return all that the clustering of a case gives, labels of all ranks."""
    x, k, m = cases()[name]
    mine = torch.tensor_split(x, comm.world)[comm.rank]
    found = two_level_kmeans(mine, k, m, generator=make_generator(1), comm=comm)
    return {
        "super_labels": comm.gather(found.super_labels),
        "sub_labels": comm.gather(found.sub_labels),
        "super_centroids": found.super_centroids,
        "sub_centroids": found.sub_centroids,
        "num_sub": found.num_sub,
        "super_sizes": found.super_sizes,
        "sub_sizes": found.sub_sizes,
        "repairs": torch.tensor([found.refilled, found.capped]),
    }


def groups(K: int = 6, each: int = 20, D: int = 8) -> Tensor:
    """Return K well separated groups, one after the other."""
    rng = make_generator(0)
    centres = 4 * torch.randn(K, D, generator=rng)
    return centres.repeat_interleave(each, 0) + 0.05 * torch.randn(K * each, D, generator=rng) + 7


def refreshed(comm: Comm) -> dict[str, Tensor]:
    """Return a head after a refresh, and its labels."""
    x = groups()
    index = torch.tensor_split(torch.arange(len(x)), comm.world)[comm.rank]
    torch.manual_seed(0)  # a process that was not forked has another
    head = DeeperClusterHead(8, 6, num_super=2, pca_dim=5)
    labels = head.refresh(FeatureTable(index, x[index], None, len(x)), make_generator(2), comm)
    return {**head.state_dict(), "index": labels.index, "target": labels.target, "variant": labels.variant}


# As many classifiers as ranks or more, fewer, one; and numbers of classes that ranks share unevenly.
HEADS: dict[str, dict[str, Any]] = {
    "eight classifiers": dict(num_clusters=7, num_super=2),
    "three": dict(num_clusters=15, num_super=3, rotation=False),
    "one": dict(num_clusters=5, num_super=1, rotation=False),
    "sum": dict(num_clusters=7, num_super=2, classes="sum"),
    "product, gradient scaled": dict(num_clusters=3, num_super=2, classes="product", scale_sub_gradient=True),
}


SMALLEST = (6, 9)  # of ODC's clusters: with 61 samples in 6, the second leaves no room to split


def head_and_batch(name: str) -> tuple[DeeperClusterHead, Batch]:
    """Return a head with sizeable weights, of which some classes are missing, and a batch of 24 rows."""
    rng = make_generator(3)
    head = DeeperClusterHead(5, **HEADS[name])
    for parameter in head.parameters():
        parameter.data.normal_(generator=rng)
    assert head.sub_classifiers is not None
    S, C = head.num_classes
    kept = torch.full((S,), C) if len(head.sub_classifiers.exists) == 1 else C - torch.arange(S) % C
    head.sub_classifiers.exists.copy_((torch.arange(C) < kept[:, None])[: len(head.sub_classifiers.exists)])
    s = torch.randint(S, (24,), generator=rng)
    target = torch.stack([s, torch.randint(99, (24,), generator=rng) % kept[s]], 1)
    z = torch.randn(24, 1, 5, generator=rng)
    row = torch.arange(24)
    return head, Batch(row, row[:, None], 0 * row, target, {"rotated": z})


def slow_loss(head: DeeperClusterHead, batch: Batch) -> Tensor:
    """Return the loss by the equation, row by row."""
    (z,) = batch.z.values()
    total = z.new_zeros(())
    for f, (s, sub) in zip(z[:, 0], batch.target.tolist(), strict=True):
        x = torch.where(f > 0, f, 0 * f)
        if head.classifier is not None:
            scores = head.classifier.weight @ x + head.classifier.bias
            total = total + scores.exp().sum().log() - scores[s]
        if head.sub_classifiers is not None:
            below = head.sub_classifiers
            g = s if head.classes == "hierarchy" else 0
            kept = below.exists[g]
            scores = below.weight[g] @ x + below.bias[g]
            total = total + scores[kept].exp().sum().log() - scores[sub]
    return total / len(z)


class Losses(nn.Module):
    """The sum of a head's losses, as a module that DDP can wrap."""

    def __init__(self, head: DeeperClusterHead, comm: Comm) -> None:
        super().__init__()
        self.head = head
        self.comm = comm
        self.scale = nn.Parameter(torch.ones(()))  # DDP wants something to average

    def forward(self, batch: Batch) -> Tensor:
        losses = self.head.loss({"train": batch}, LabelStore(0).view(), make_generator(0), self.comm)
        return torch.stack(list(losses.train.values())).sum() * self.scale


def spread(name: str, comm: Comm, steps: int = 3) -> dict[str, Tensor]:
    """Train a head that is spread over the ranks for some steps, each rank with its part of the batch.

    Returns loss and gradients of the first step, those of the rank's features, and what a checkpoint would hold.
    """
    whole, batch = head_and_batch(name)
    with spread_over(comm):
        head = DeeperClusterHead(5, **HEADS[name])
    head.load_state_dict(whole.state_dict())
    mine = torch.tensor_split(batch.row, comm.world)[comm.rank]
    z = batch.z["rotated"][mine].requires_grad_()
    part = Batch(mine, batch.index[mine], batch.variant[mine], batch.target[mine], {"rotated": z})
    model: nn.Module = Losses(head, comm)
    leave_out_of_ddp(model)
    if comm.world > 1:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9)
    found: dict[str, Tensor] = {}
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(part)
        loss.backward()
        if step == 0:
            assert z.grad is not None
            found = {"loss": comm.sum(loss.detach()) / comm.world, "z": comm.gather(z.grad / comm.world)}
        optimizer.step()
    checkpoint = {"state_dict": head.state_dict(), "optimizer": optimizer.state_dict(), "loop": {"gradients": {}}}
    put_whole(checkpoint, gather_state(head, optimizer, comm))
    momentum = {
        f"momentum {place}": state["momentum_buffer"] for place, state in checkpoint["optimizer"]["state"].items()
    }
    if comm.rank:
        return found | {name: p.detach() for name, p in head.named_parameters() if name not in shards_of(head)}
    return found | momentum | checkpoint["state_dict"]


def drawn(name: str, comm: Comm) -> dict[str, Tensor]:
    """Return sub-classifiers that were drawn anew, whole on the first rank."""
    with spread_over(comm):
        head = DeeperClusterHead(5, **HEADS[name])
    assert head.sub_classifiers is not None
    head.sub_classifiers.reset(make_generator(8))
    if comm.world == 1:
        return {"weight": head.sub_classifiers.weight.detach()}
    found = gather_state(head, None, comm)
    return {"weight": found["state_dict", "sub_classifiers.weight"]} if found else {}


class Counted(DistComm):
    """The ranks, and how many bytes this one has handed to its all-to-alls and gathers."""

    def __init__(self) -> None:
        super().__init__()
        self.handed = {"all_to_all": 0, "gather": 0}

    def all_to_all(self, x: Tensor, send: Sequence[int], receive: Sequence[int], gradient: bool = False) -> Tensor:
        self.handed["all_to_all"] += 0 if gradient else x.nbytes  # with gradient it comes here again without
        return super().all_to_all(x, send, receive, gradient)

    def gather(self, x: Tensor, gradient: bool = False) -> Tensor:
        self.handed["gather"] += 0 if gradient else x.nbytes
        return super().gather(x, gradient)


def bytes_of_a_step(name: str) -> dict[str, Tensor]:
    """Return what all ranks hand to their collectives in a step of DeeperCluster's head, and in one of ODC's memory."""
    comm = Counted()
    whole, batch = head_and_batch(name)
    with spread_over(comm):
        deeper, odc = DeeperClusterHead(5, **HEADS[name]), ODCHead(5, 6, min_cluster=1, centroid_interval=99)
    deeper.load_state_dict(whole.state_dict())
    mine = torch.tensor_split(batch.row, comm.world)[comm.rank]
    z = batch.z["rotated"][mine].requires_grad_()
    part = Batch(mine, mine[:, None], 0 * mine, batch.target[mine], {"rotated": z, "train": z.detach()})
    Losses(deeper, comm)(replace(part, z={"rotated": z})).backward()
    found = {"deeper": comm.handed["all_to_all"]}
    store = LabelStore(0)
    store.replace(PseudoLabels(batch.index, batch.row[:, None] % 6, (6,)))
    odc.memory.fill(batch.z["rotated"][mine, 0], store.target[:, 0], comm)
    comm.handed = dict.fromkeys(comm.handed, 0)
    list(odc.update({"train": part}, store.view(), make_generator(0), comm))
    found |= {f"odc, {what}": n for what, n in comm.handed.items()}
    return {what: comm.sum(torch.tensor(n)) for what, n in found.items()}


def remembered(min_cluster: int, comm: Comm) -> dict[str, Tensor]:
    """Let ODC's memory, spread over the ranks, learn from some batches, each rank with its part of them.

    Rows come twice, one feature is zero, and clusters become small: they are split, or filled sample by sample.
    """
    N, K, D, B = 61, 6, 4, 12
    rng = make_generator(4)
    features, target = torch.randn(N, D, generator=rng), torch.arange(N) % K
    with spread_over(comm):
        head = ODCHead(D, K, batch_size=B, min_cluster=min_cluster, centroid_interval=2, momentum=0.9)
    head.memory.fill(torch.tensor_split(features, comm.world)[comm.rank], target, comm)
    store = LabelStore(0)
    store.replace(PseudoLabels(torch.arange(N)[:, None], target[:, None], (K,)))
    moves = 0
    for step in range(12):  # two epochs: sums are computed anew after each
        row = torch.randint(N, (B,), generator=rng)
        z = torch.randn(B, 1, D, generator=rng)
        z[:, :, 0] += 2  # so that some clusters empty
        row[7], z[2] = row[1], 0
        row, z = (torch.tensor_split(x, comm.world)[comm.rank] for x in (row, z))
        batch = Batch(row, row[:, None], 0 * row, store.target[row], {"train": z})
        for delta in head.update({"train": batch}, store.view(), make_generator(5, step), comm):
            store.update(delta)
            moves += 1
    memory = head.memory
    assert len(memory.bank.rows) == len(torch.tensor_split(features, comm.world)[comm.rank])
    found = {name: tensor for name, tensor in memory.state_dict().items() if name != "bank.rows"}
    found |= {"bank": comm.gather(memory.bank.rows), "target": store.target, "counts": store.counts}
    return found | {"moves": torch.tensor(moves)}


def main(folder: Path, rank: int) -> None:
    """Write ``{world}-{rank}.pt`` for worlds of four and two."""
    torch.set_num_threads(1)
    for world in (4, 2):
        if rank >= world:
            return
        dist.init_process_group("gloo", init_method=f"file://{folder}/store{world}", rank=rank, world_size=world)
        comm = get_comm()
        results: dict[str, Any] = {name: cluster(name, comm) for name in cases()}
        results["refresh"] = refreshed(comm)
        results["spread"] = {name: spread(name, comm) for name in HEADS}
        results["remembered"] = {t: remembered(t, comm) for t in SMALLEST}
        results["bytes"] = {name: bytes_of_a_step(name) for name in HEADS}
        results["drawn"] = {name: drawn(name, comm) for name in HEADS}
        torch.save(results, folder / f"{world}-{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
