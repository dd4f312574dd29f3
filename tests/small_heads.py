"""Four small heads that need something else than DC and ODC, a tiny data set, and configs for all the heads.

Each is the essence of a published method, small enough to train for two epochs in a blink.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine import Config
from torch import Tensor, nn

from odc.clustering import knn_search
from odc.data.datasets import ArrayDataset
from odc.data.label_file import LabelFile
from odc.heads import ClusterHead
from odc.registry import DATASETS, HEADS
from odc.structures import (
    Batch,
    Comm,
    FeatureTable,
    LabelDelta,
    Labels,
    Losses,
    Plan,
    PseudoLabels,
    Refresh,
    Stream,
    make_generator,
)


@DATASETS.register_module(force=True)
class Blobs(ArrayDataset):
    """``n`` noisy grey images (1, 8, 8) with a bright spot in one of three places; labels can be permuted."""

    def __init__(self, n: int = 48, label_seed: int | None = None) -> None:
        rng = make_generator(0, "blobs")
        target = torch.arange(n) % 3
        images = torch.randint(0, 90, (n, 1, 8, 8), generator=rng, dtype=torch.uint8)
        for i, c in enumerate(target.tolist()):
            images[i, 0, 2 * c + 1 : 2 * c + 3, 2 * c + 1 : 2 * c + 3] += 150
        if label_seed is not None:
            target = target[torch.randperm(n, generator=make_generator(label_seed, "labels"))]
        super().__init__(images, [f"{i:03d}" for i in range(n)], target.numpy(), ["a", "b", "c"])


class _Linear(ClusterHead):
    """A linear layer of K scores: what the four heads share."""

    def __init__(self, in_channels: int, num_clusters: int = 3, batch_size: int = 16) -> None:
        super().__init__()
        self.num_clusters = num_clusters
        self.batch_size = batch_size
        self.classifier = nn.Linear(in_channels, num_clusters)

    def predict(self, z: Tensor) -> Tensor:
        scores: Tensor = self.classifier(z)
        return scores


@HEADS.register_module(force=True)
class NeighbourPairs(_Linear):
    """Rows are pairs of neighbours (as SCAN's, arXiv:2005.12320); their number changes from epoch to epoch."""

    def plan(self, epoch: int) -> Plan:
        return Plan((Stream("pairs", self.batch_size),), refresh=Refresh())

    def refresh(self, table: FeatureTable, generator: torch.Generator, comm: Comm) -> PseudoLabels:
        index, z = comm.gather(table.index), comm.gather(table.features)
        nearest, similarity = knn_search(z, k=1)
        pairs = torch.stack([index, index[nearest[:, 0]]], dim=1)
        close = torch.ones(len(index), dtype=torch.bool)
        farthest = int(torch.randint(1, len(index) // 2, (1,), generator=generator))  # so many are left out
        close[similarity[:, 0].argsort(stable=True)[:farthest]] = False
        (pairs,) = comm.first(lambda: (pairs[close],))
        return PseudoLabels(pairs, torch.zeros(len(pairs), 1, dtype=torch.int64), (1,))

    def loss(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> Losses:
        z = batches["pairs"].z["train"]
        p = self.predict(z.flatten(0, 1)).softmax(1).unflatten(0, z.shape[:2])
        mean = p.mean((0, 1))
        return Losses({"loss": -(p[:, 0] * p[:, 1]).sum(1).log().mean(), "entropy_loss": (mean * mean.log()).sum()})


@HEADS.register_module(force=True)
class MeanTeacher(_Linear):
    """A teacher that follows the student by exponential moving average (as TEMI's, arXiv:2303.17896)."""

    def __init__(self, in_channels: int, num_clusters: int = 3, batch_size: int = 16) -> None:
        super().__init__(in_channels, num_clusters, batch_size)
        self.teacher = nn.Linear(in_channels, num_clusters).requires_grad_(False)

    def plan(self, epoch: int) -> Plan:
        return Plan((Stream("train", self.batch_size, views=("train", "other")),))

    def loss(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> Losses:
        z = batches["train"].z
        wanted = self.teacher(z["other"][:, 0]).softmax(1).detach()
        return Losses({"loss": F.cross_entropy(self.predict(z["train"][:, 0]), wanted)})

    def update(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> tuple[()]:
        for teacher, student in zip(self.teacher.parameters(), self.classifier.parameters(), strict=True):
            teacher.lerp_(student, 0.1)
        return ()


@HEADS.register_module(force=True)
class Sinkhorn(_Linear):
    """Balanced codes of the batch, over all ranks, without any label rows (as SwAV's, arXiv:2006.09882)."""

    def plan(self, epoch: int) -> Plan:
        return Plan((Stream("train", self.batch_size, views=("train", "other")),), steps=3)

    def loss(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> Losses:
        scores = {view: self.predict(z[:, 0]) for view, z in batches["train"].z.items()}
        losses = []
        for view, other in (("train", "other"), ("other", "train")):
            code = (comm.gather(scores[view].detach()) / 0.1).exp()
            for _ in range(3):
                code = code / code.sum(0, keepdim=True)
                code = code / code.sum(1, keepdim=True)
            mine = torch.tensor_split(code, comm.world)[comm.rank]
            losses.append(F.cross_entropy(scores[other], mine))
        return Losses({"loss": torch.stack(losses).mean()})


class _RandomBias(nn.Linear):
    def reset(self, generator: torch.Generator) -> None:
        self.bias.data.copy_(torch.randn(len(self.bias), generator=generator))


@HEADS.register_module(force=True)
class TwoStreams(_Linear):
    """Labelled and unlabelled rows side by side (as FixMatch's, arXiv:2001.07685), chunk by chunk, with a choice.

    The labels of a chunk are those of its most confident half; online, some of the rows it has seen change class.
    """

    def __init__(self, in_channels: int, num_clusters: int = 3, batch_size: int = 16) -> None:
        super().__init__(in_channels, num_clusters, batch_size)
        self.classifier = _RandomBias(in_channels, num_clusters)
        self.best: Tensor
        self.register_buffer("best", torch.tensor(-1.0))

    def plan(self, epoch: int) -> Plan:
        streams = (
            Stream("labelled", self.batch_size // 2, rows="labelled", balance=(0,)),
            Stream("all", self.batch_size, views=("train", "other"), replace=True),
        )
        refresh = Refresh(chunk=20, repeats=2, logits="other", reset=("classifier",))
        return Plan(streams, steps=2, refresh=refresh, select=True)

    def refresh(self, table: FeatureTable, generator: torch.Generator, comm: Comm) -> PseudoLabels:
        assert table.logits is not None
        confidence, label = comm.gather(table.logits).max(1)
        label = torch.where(confidence >= confidence.median(), label, -1)
        if comm.world > 1:
            label = comm.broadcast(label)
        return PseudoLabels(comm.gather(table.index)[:, None], label[:, None], (self.num_clusters,))

    def loss(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> Losses:
        labelled, everything = batches["labelled"], batches["all"]
        pseudo = self.predict(everything.z["train"][:, 0]).argmax(1)
        losses = {
            "loss": F.cross_entropy(self.predict(labelled.z["train"][:, 0]), labelled.target[:, 0]),
            "other_loss": 0.1 * F.cross_entropy(self.predict(everything.z["other"][:, 0]), pseudo),
        }
        return Losses(losses)

    def update(
        self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm
    ) -> Iterator[LabelDelta]:
        row = comm.gather(batches["labelled"].row).unique()
        row = row[torch.rand(len(row), generator=generator) < 0.2]
        for part in row.split(3):  # one after the other
            yield LabelDelta(part, (labels.target[part] + 1) % self.num_clusters)

    def select(self, table: FeatureTable, comm: Comm) -> None:
        self.best.copy_(torch.maximum(self.best, comm.gather(table.features).norm(dim=1).max()))


HEAD_CONFIGS: dict[str, dict[str, Any]] = {
    "dc": dict(type="DeepClusterHead", num_clusters=4, batch_size=16, pca_dim=8),
    "odc": dict(type="ODCHead", num_clusters=4, batch_size=16, min_cluster=5, centroid_interval=2, start="backbone"),
    "deeper": dict(type="DeeperClusterHead", num_clusters=5, num_super=2, batch_size=64, refresh_interval=1, pca_dim=6),
    "secu": dict(type="SeCuHead", num_clusters=3, multiples=(1, 2), batch_size=16, out_channels=4),
    "moco": dict(type="MoCoHead", batch_size=16, queue_size=40, out_channels=4),
    "propos": dict(
        type="ProPosHead",
        num_clusters=3,
        batch_size=16,
        hidden_channels=12,
        out_channels=6,
        warmup=1,
        noise=0.1,
        balance=True,
    ),
    "dcboost": dict(type="DCBoostHead", num_clusters=3, batch_size=16, hidden_channels=12, out_channels=6, warmup=1),
    "spice-self": dict(
        type="SpiceSelfHead", num_clusters=3, num_heads=2, hidden_channels=8, batch_size=20, chunk=20, repeats=2
    ),
    "spice-semi": dict(type="SpiceSemiHead", num_clusters=3, labelled_size=4, batch_size=16, steps=4, threshold=0.36),
    "turtle": dict(
        type="TurtleHead",
        num_clusters=3,
        batch_size=60,
        steps=3,
        inner_steps=2,
        inner_lr=0.05,
        warm_start=True,
        whiten=6,
    ),
    "scan": dict(
        type="SCANHead",
        num_clusters=3,
        num_heads=2,
        neighbours=4,
        batch_size=16,
        mean_momentum=0.5,
        answer="consensus",
        normalize="unit",
    ),
    "selflabel": dict(
        type="SelfLabelHead", num_clusters=3, neighbours=4, batch_size=16, threshold=0.36, balance="start"
    ),
    "temi": dict(
        type="TEMIHead",
        num_clusters=3,
        num_heads=2,
        neighbours=3,
        batch_size=16,
        hidden_channels=6,
        embedding_channels=4,
        normalize="standard",
    ),
    "classifier": dict(type="ClassifierHead", num_classes=3, batch_size=8),
    "pairs": dict(type="NeighbourPairs"),
    "teacher": dict(type="MeanTeacher"),
    "sinkhorn": dict(type="Sinkhorn"),
    "two-streams": dict(type="TwoStreams"),
}


def config(name: str, work_dir: str, **options: Any) -> Config:
    """Return a ready config that trains head ``name`` for two epochs; ``options`` are dotted keys to change."""
    finish = [dict(type="ToFloat"), dict(type="Normalize", mean=[0.3], std=[0.3])]
    shaky = [dict(type="RandomCrop", size=8, padding=1), *finish]
    cfg = Config(
        dict(
            model=dict(
                type="ClusterModel",
                backbone=dict(type="ConvNet", widths=[4, 8]),
                neck=dict(type="ODCNeck", hidden_channels=16, out_channels=8),
                head=HEAD_CONFIGS[name],
            ),
            data=dict(dataset=dict(type="Blobs"), views=dict(extract=finish, train=shaky, other=shaky)),
            train_cfg=dict(max_epochs=2, val_interval=2, schedule=dict(type="Cosine")),
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.05, momentum=0.9)),
            default_hooks=dict(
                logger=None,
                timer=None,
                param_scheduler=None,
                sampler_seed=None,
                checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=2),
            ),
            custom_hooks=[dict(type="ProgressHook"), dict(type="PreflightHook")],
            val_evaluator=[dict(type="ClusterMetrics"), dict(type="KNNMetric", k=3)],
            randomness=dict(seed=3),
            work_dir=work_dir,
            log_level="WARNING",
        )
    )
    if name == "moco":
        cfg.model.update(type="MoCo", momentum=0.9, split_bn=2)
        cfg.data.views.update(query=shaky, key=shaky)
        cfg.val_evaluator = [dict(type="KMeansMetric", num_clusters=3), dict(type="KNNMetric", k=3)]
    if name in ("propos", "dcboost"):
        cfg.model.update(type="BYOL", momentum=0.9, final_momentum=1.0)
        cfg.data.views.update(query=shaky, key=shaky)
    if name == "secu":
        cfg.data.views.update(query=shaky, key=shaky)
    if name.startswith(("spice", "selflabel")):
        cfg.data.views.update(weak=shaky, strong=shaky)
    if name == "spice-self":
        cfg.model.frozen = ["backbone", "neck"]
    if name == "spice-semi":
        cfg.model.ema = 0.9
        file = Path(work_dir) / f"labels-{os.getpid()}.npz"  # of its own for each rank
        target = np.where(np.arange(48) % 4 == 0, np.arange(48) // 4 % 3, -1)
        LabelFile(target, 3, Blobs().fingerprint).save(file)
        cfg.train_cfg.label_file = str(file)
    if name == "classifier":
        cfg.train_cfg.label_fraction = 0.5
    if name == "deeper":
        cfg.data.views.update(rotated=[*shaky[:1], dict(type="Rotate90"), *finish])
    cfg.merge_from_dict(options)
    return cfg
