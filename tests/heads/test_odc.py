from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from mmengine.hooks import Hook
from sklearn.metrics import adjusted_rand_score
from small_heads import config
from torch import Tensor

from odc.apis import build_runner
from odc.errors import InputError
from odc.heads import ODCHead
from odc.memory.labels import LabelStore
from odc.structures import Batch, FeatureTable, LocalComm, PseudoLabels, Refresh

COMM = LocalComm()
K, EACH, D = 3, 10, 5


def features() -> Tensor:
    """Return K groups around orthogonal directions, one after the other, of very different lengths."""
    rng = torch.Generator().manual_seed(0)
    x = torch.eye(D)[:K].repeat_interleave(EACH, 0) + 0.1 * torch.randn(K * EACH, D, generator=rng)
    return x * torch.rand(K * EACH, 1, generator=rng).add(0.1) * 10


def table(x: Tensor) -> FeatureTable:
    return FeatureTable(torch.arange(len(x)), x, None, len(x))


def filled(**options: Any) -> tuple[ODCHead, LabelStore]:
    head = ODCHead(D, K, **{"min_cluster": 2, "batch_size": 8, **options})
    store = LabelStore(K * EACH)
    store.replace(head.refresh(table(features()), torch.Generator().manual_seed(1), COMM))
    return head, store


def batch(store: LabelStore, index: Tensor, z: Tensor) -> dict[str, Batch]:
    none = torch.zeros(len(index)).long()
    return {"train": Batch(index, index[:, None], none, store.target[index], {"train": z[:, None]})}


def follow(head: ODCHead, store: LabelStore, batches: dict[str, Batch], generator: torch.Generator) -> list[int]:
    """Update as the loop does; return the rows that the head named."""
    rows = []
    for delta in head.update(batches, store.view(), generator, COMM):
        store.update(delta)
        rows += delta.row.tolist()
    return rows


def test_refresh_fills_the_memory_from_kmeans_of_the_normalised_features() -> None:
    head, store = filled()
    groups = np.repeat(np.arange(K), EACH)
    assert adjusted_rand_score(groups, store.target[:, 0].numpy()) == 1.0
    unit = features() / features().norm(dim=1, keepdim=True)
    torch.testing.assert_close(head.memory.bank.rows.float(), unit, atol=1e-3, rtol=1e-3)
    for c in range(K):
        mean = head.memory.bank.rows.float()[store.target[:, 0] == c].mean(0)
        torch.testing.assert_close(head.memory.centroids[c], mean, atol=1e-6, rtol=1e-6)


def test_from_the_backbone_it_clusters_what_the_neck_sees_and_remembers_what_the_neck_gives() -> None:
    groups = torch.randperm(K * EACH, generator=torch.Generator().manual_seed(7))
    x, seen = features(), features()[groups]
    head = ODCHead(D, K, min_cluster=2, start="backbone", kmeans_redo=5)
    assert head.plan(0).refresh == Refresh(pooled=True, reset=("classifier",))
    given = FeatureTable(torch.arange(len(x)), x, None, len(x), seen)
    labels = head.refresh(given, torch.Generator().manual_seed(1), COMM).target[:, 0]
    assert adjusted_rand_score(groups.numpy() // EACH, labels.numpy()) == 1.0
    unit = x / x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(head.memory.bank.rows.float(), unit, atol=1e-3, rtol=1e-3)
    for c in range(K):
        mean = head.memory.bank.rows.float()[labels == c].mean(0)
        torch.testing.assert_close(head.memory.centroids[c], mean, atol=1e-6, rtol=1e-6)
    with pytest.raises(InputError, match="'neck' or 'backbone', not 'body'"):
        ODCHead(D, K, start="body")


def test_loss_by_hand() -> None:
    head = ODCHead(4, 3)
    torch.nn.init.normal_(head.classifier.weight)
    target = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 2])[:, None]
    store = LabelStore(10)
    store.replace(PseudoLabels(torch.arange(10)[:, None], target, (3,)))
    index = torch.tensor([0, 9, 5, 6, 1, 5])
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    W, b = head.classifier.weight.tolist(), head.classifier.bias.tolist()
    numerator = denominator = 0.0
    for v, y in zip(z.tolist(), target[index, 0].tolist(), strict=True):
        scores = [sum(w * f for w, f in zip(line, v, strict=True)) + c for line, c in zip(W, b, strict=True)]
        loss = math.log(sum(math.exp(s) for s in scores)) - scores[y]
        weight = {0: 4, 1: 5, 2: 1}[y] ** -0.5
        numerator, denominator = numerator + weight * loss, denominator + weight
    got = head.loss(batch(store, index, z), store.view(), torch.Generator(), COMM).train
    assert set(got) == {"loss"}
    assert float(got["loss"].detach()) == pytest.approx(numerator / denominator, rel=1e-5)


class SlowODC:
    """Equations 2 to 4, sample by sample; half precision only where a feature is stored."""

    def __init__(self, head: ODCHead, y: npt.NDArray[np.int64]) -> None:
        self.F = head.memory.bank.rows.double().numpy().copy()
        self.y = y.copy()
        self.C = np.stack([self.F[self.y == c].mean(0) for c in range(K)])
        self.m, self.k, self.step = head.memory.momentum, head.centroid_interval, 0

    def update(self, index: Tensor, z: Tensor) -> None:
        for i, f in zip(index.tolist(), z.double().numpy(), strict=True):
            blend = self.m * f / np.linalg.norm(f) + (1 - self.m) * self.F[i]
            self.F[i] = blend.astype(np.float16).astype(float)
            self.y[i] = int(((self.F[i] - self.C) ** 2).sum(1).argmin())
        self.step += 1
        if self.step % self.k == 0:
            self.C = np.stack([self.F[self.y == c].mean(0) for c in range(K)])


@pytest.mark.parametrize("interval", [1, 3])
def test_an_update_moves_memory_then_labels_then_every_kth_time_the_centroids(interval: int) -> None:
    head, store = filled(centroid_interval=interval, min_cluster=1, momentum=0.3)
    oracle = SlowODC(head, store.target[:, 0].numpy())
    rng = torch.Generator().manual_seed(5)
    changes = 0
    for _ in range(12):
        index = torch.randperm(K * EACH, generator=rng)[:8]
        z = torch.randn(8, D, generator=rng)
        before = head.memory.centroids.clone()
        oracle.update(index, z)
        before_update = store.target.clone()
        rows = follow(head, store, batch(store, index, z), rng)
        assert set(index.tolist()) <= set(store.index[rows, 0].tolist())
        changes += int((store.target != before_update).sum())
        assert min(np.bincount(oracle.y, minlength=K)) >= 1, "a small cluster: the oracle leaves them out"
        np.testing.assert_allclose(head.memory.bank.rows.double().numpy(), oracle.F, atol=2e-3)
        np.testing.assert_allclose(head.memory.centroids.double().numpy(), oracle.C, atol=1e-3)
        assert torch.equal(before, head.memory.centroids) == (oracle.step % interval != 0)
        assert store.target[:, 0].tolist() == oracle.y.tolist()
        assert store.counts.tolist() == np.bincount(oracle.y, minlength=K).tolist()
    assert changes >= 5, "labels hardly moved: nothing was compared"


def test_small_clusters_are_filled_with_the_centroids_update_and_not_before() -> None:
    head, store = filled(centroid_interval=2, min_cluster=5, momentum=1.0)
    first = (store.target[:, 0] == store.target[0, 0]).nonzero().squeeze(1)
    toward = head.memory.centroids[(store.target[0, 0] + 1) % K]
    for step, members in enumerate((first[:4], first[4:8])):
        rows = follow(head, store, batch(store, members, toward.expand(4, D)), torch.Generator())
        if step == 0:
            assert sorted(store.counts.tolist()) == [6, 10, 14]
        else:
            assert int(store.counts.min()) >= 5, "one of 2 samples was left"
            assert len(rows) > 4, "samples that the split moved are in the delta too"
            for c in range(K):
                mean = head.memory.bank.rows.float()[store.target[:, 0] == c].mean(0)
                torch.testing.assert_close(head.memory.centroids[c], mean, atol=1e-5, rtol=1e-5)


def test_predict_is_the_nearest_centroid_of_the_normalised_feature() -> None:
    head, _ = filled()
    z = torch.randn(50, D, generator=torch.Generator().manual_seed(6)) * 3
    distance = (z / z.norm(dim=1, keepdim=True))[:, None] - head.memory.centroids
    assert torch.equal(head.predict(z).argmax(1), distance.square().sum(2).argmin(1))


def test_plans() -> None:
    head = ODCHead(D, K, batch_size=32, replace=False)
    assert head.plan(0).refresh == Refresh(reset=("classifier",))
    assert head.plan(1).refresh is None
    for epoch in (0, 1):
        (stream,) = head.plan(epoch).streams
        assert (stream.size, stream.replace, stream.balance) == (32, False, ())
    assert ODCHead(D, K).plan(0).streams[0].replace


@pytest.mark.parametrize(
    ("clusters", "least", "words"),
    [(31, 1, ["31", "30"]), (4, 8, ["4 clusters", "8 samples", "32", "30"])],
)
def test_more_than_there_are_samples(clusters: int, least: int, words: list[str]) -> None:
    head = ODCHead(D, clusters, min_cluster=least)
    with pytest.raises(InputError) as error:
        head.refresh(table(features()), torch.Generator(), COMM)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


class Watch(Hook):
    """Compares, at every step, the labels in the loss with those before the update, and the memory's sums with them."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.moved = self.steps = 0
        self.loss, self.update = model.head.loss, model.head.update
        model.head.loss, model.head.update = self.on_loss, self.on_update

    def on_loss(self, batches: dict[str, Batch], labels: Any, *args: Any) -> Any:
        self.before = labels.target.clone()
        assert torch.equal(batches["train"].target, self.before[batches["train"].row])
        assert torch.equal(labels.index[batches["train"].row], batches["train"].index)
        return self.loss(batches, labels, *args)

    def on_update(self, batches: dict[str, Batch], labels: Any, *args: Any) -> Any:
        assert torch.equal(labels.target, self.before), "labels changed between the loss and the update"
        yield from self.update(batches, labels, *args)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        store, memory = self.model.labels, self.model.head.memory
        sums = torch.zeros_like(memory.sum).index_add_(0, store.target[:, 0], memory.bank.rows.float())
        torch.testing.assert_close(memory.sum, sums, atol=1e-4, rtol=1e-4)
        assert torch.equal(store.counts, torch.bincount(store.target[:, 0], minlength=len(store.counts)))
        self.moved += int((store.target != self.before).sum())
        self.steps += 1


def test_in_training_the_store_follows_the_memory_at_every_step(tmp_path: Path) -> None:
    runner = build_runner(config("odc", str(tmp_path), **{"train_cfg.max_epochs": 3, "val_evaluator": None}))
    watch = Watch(runner.model)
    runner.register_hook(watch)
    runner.train()
    assert watch.steps == 9
    assert watch.moved > 0
