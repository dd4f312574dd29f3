"""What one rank of four, and then of two, does: two-level clustering, DeeperCluster's refresh, and its gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from odc.clustering import two_level_kmeans
from odc.engine.comm import get_comm
from odc.heads import DeeperClusterHead
from odc.memory.labels import LabelStore
from odc.structures import Batch, Comm, FeatureTable, LocalComm, make_generator


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


def head_and_batch() -> tuple[DeeperClusterHead, Batch]:
    """Return a head with sizeable weights, and a batch of 24 rows."""
    rng = make_generator(3)
    head = DeeperClusterHead(5, 7, num_super=2)
    for parameter in head.parameters():
        parameter.data.normal_(generator=rng)
    target = torch.stack([torch.randint(8, (24,), generator=rng), torch.randint(3, (24,), generator=rng)], 1)
    z = torch.randn(24, 1, 5, generator=rng)
    row = torch.arange(24)
    return head, Batch(row, row[:, None], target[:, 0] % 4, target, {"rotated": z})


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

    def __init__(self, head: DeeperClusterHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, batch: Batch) -> Tensor:
        losses = self.head.loss({"train": batch}, LabelStore(0).view(), make_generator(0), LocalComm())
        return torch.stack(list(losses.train.values())).sum()


def gradients(comm: Comm) -> dict[str, Tensor]:
    """Return the gradients that DDP averages, each rank having its part of the batch."""
    head, batch = head_and_batch()
    mine = torch.tensor_split(batch.row, comm.world)[comm.rank]
    part = Batch(
        batch.row[mine],
        batch.index[mine],
        batch.variant[mine],
        batch.target[mine],
        {"rotated": batch.z["rotated"][mine]},
    )
    model = nn.parallel.DistributedDataParallel(Losses(head))
    model(part).backward()
    return {name: p.grad for name, p in head.named_parameters() if p.grad is not None}


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
        results["gradients"] = gradients(comm)
        torch.save(results, folder / f"{world}-{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()
