from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from small_heads import config
from torch import Tensor

from odc.apis import build_runner
from odc.errors import InputError
from odc.heads import DeepClusterHead, weighted_mean
from odc.memory.labels import LabelStore
from odc.structures import Batch, FeatureTable, LocalComm, PseudoLabels, Refresh, Stream

COMM = LocalComm()


def table(features: Tensor) -> FeatureTable:
    return FeatureTable(torch.arange(len(features)), features, None, len(features))


def groups(K: int = 4, each: int = 12, D: int = 6) -> Tensor:
    """Return K well separated groups, one after the other, with unequal variances of the dimensions."""
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(K, D, generator=rng) * 4
    points = centres.repeat_interleave(each, 0) + 0.05 * torch.randn(K * each, D, generator=rng)
    return points * torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.1][:D]) + 7.0


def pca_whiten_l2(x: Tensor, d: int) -> Any:
    """The paper's preprocessing by NumPy's SVD."""
    a = x.double().numpy()
    a = a - a.mean(0)
    u, _, _ = np.linalg.svd(a, full_matrices=False)
    whitened = u[:, :d] * math.sqrt(len(a))  # unit variance
    return whitened / np.linalg.norm(whitened, axis=1, keepdims=True)


def test_refresh_is_whitening_then_l2_then_kmeans() -> None:
    x = groups()
    head = DeepClusterHead(6, 4, pca_dim=3)
    labels = head.refresh(table(x), torch.Generator().manual_seed(1), COMM)
    wanted = pca_whiten_l2(x, 3)
    ours = F.normalize((x - head.mean) @ head.projection).double().numpy()
    np.testing.assert_allclose(ours @ ours.T, wanted @ wanted.T, atol=1e-4)  # equal up to the signs of the directions
    assert torch.equal(labels.index, torch.arange(48)[:, None])
    assert labels.num_classes == (4,)
    reference = KMeans(4, n_init=10, random_state=0).fit_predict(wanted)
    assert adjusted_rand_score(reference, labels.target[:, 0].numpy()) == 1.0
    means = np.stack([ours[labels.target[:, 0].numpy() == c].mean(0) for c in range(4)])
    np.testing.assert_allclose(head.centroids.numpy(), means, atol=1e-5)


def test_the_cluster_of_an_image_is_its_nearest_centroid() -> None:
    x = groups()
    head = DeepClusterHead(6, 4, pca_dim=3)
    labels = head.refresh(table(x), torch.Generator().manual_seed(1), COMM)
    scores = head.predict(x)
    assert torch.equal(scores.argmax(1), labels.target[:, 0])
    ours = F.normalize((x - head.mean) @ head.projection)
    by_hand = -0.5 * (ours[:, None] - head.centroids).square().sum(2)
    torch.testing.assert_close(scores, by_hand, atol=1e-5, rtol=1e-5)


def test_the_classifier_is_drawn_anew() -> None:
    head = DeepClusterHead(256, 40, pca_dim=8)
    with torch.no_grad():
        head.classifier.weight.fill_(3.0)
        head.classifier.bias.fill_(3.0)
    head.classifier.reset(torch.Generator().manual_seed(1))
    first = head.classifier.weight.clone()
    assert abs(float(first.mean().detach())) < 5e-4
    assert abs(float(first.std().detach()) - 0.01) < 5e-4
    assert not head.classifier.bias.any()
    head.classifier.reset(torch.Generator().manual_seed(1))
    assert torch.equal(head.classifier.weight, first), "not a function of the generator alone"
    head.classifier.reset(torch.Generator().manual_seed(2))
    assert not torch.equal(head.classifier.weight, first)


def test_fewer_samples_than_components() -> None:
    x = groups(K=2, each=3)[:5]
    head = DeepClusterHead(6, 2, pca_dim=6)
    labels = head.refresh(table(x), torch.Generator().manual_seed(1), COMM)
    assert not head.projection[:, 4:].any(), "N - 1 = 4 components exist"
    assert head.projection[:, :4].any(0).all()
    assert torch.equal(head.predict(x).argmax(1), labels.target[:, 0])
    # A second, larger clustering uses all of them again, and nothing of the first is left after a third.
    head.refresh(table(groups(K=2, each=12)), torch.Generator().manual_seed(1), COMM)
    assert head.projection.any(0).all()
    head.refresh(table(x), torch.Generator().manual_seed(1), COMM)
    assert not head.projection[:, 4:].any()
    assert not head.centroids[:, 4:].any()


def test_more_clusters_than_samples() -> None:
    with pytest.raises(InputError, match=r"\b9\b.*\b8\b|\b8\b.*\b9\b") as error:
        DeepClusterHead(6, 9, pca_dim=3).refresh(table(groups(K=2, each=4)), torch.Generator(), COMM)
    assert "\n" not in str(error.value)


def test_plans() -> None:
    plan = DeepClusterHead(6, 4, batch_size=32).plan(3)
    assert plan.streams == (Stream("train", 32, balance=(0,)),)
    assert plan.refresh == Refresh(reset=("classifier",))
    assert DeepClusterHead(6, 4, batch_size=32, balance="weights").plan(3).streams == (Stream("train", 32),)
    with pytest.raises(InputError, match="'sampling' or 'weights', not by 'x'"):
        DeepClusterHead(6, 4, balance="x")


def batch_and_labels(K: int = 3) -> tuple[Batch, LabelStore]:
    target = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 2])[:, None]
    store = LabelStore(10)
    store.replace(PseudoLabels(torch.arange(10)[:, None], target, (K,)))
    row = torch.tensor([0, 9, 5, 6, 1, 5])
    z = torch.randn(6, 1, 4, generator=torch.Generator().manual_seed(3))
    return Batch(row, row[:, None], torch.zeros(6).long(), target[row], {"train": z}), store


@pytest.mark.parametrize("balance", ["sampling", "weights"])
def test_loss_by_hand(balance: str) -> None:
    batch, store = batch_and_labels()
    head = DeepClusterHead(4, 3, balance=balance)
    torch.nn.init.normal_(head.classifier.weight)
    W, b = head.classifier.weight.tolist(), head.classifier.bias.tolist()
    numerator = denominator = 0.0
    for z, y in zip(batch.z["train"][:, 0].tolist(), batch.target[:, 0].tolist(), strict=True):
        scores = [sum(w * v for w, v in zip(line, z, strict=True)) + c for line, c in zip(W, b, strict=True)]
        loss = math.log(sum(math.exp(s) for s in scores)) - scores[y]
        weight = {0: 4, 1: 5, 2: 1}[y] ** -0.5 if balance == "weights" else 1.0
        numerator, denominator = numerator + weight * loss, denominator + weight
    got = head.loss({"train": batch}, store.view(), torch.Generator(), COMM).train
    assert set(got) == {"loss"}
    assert float(got["loss"].detach()) == pytest.approx(numerator / denominator, rel=1e-5)


class Rank(LocalComm):
    """One of two ranks whose sums are known beforehand."""

    world = 2

    def __init__(self, total: Tensor) -> None:
        self.total = total

    def sum(self, x: Tensor) -> Tensor:
        return self.total


def test_weighted_mean_over_two_ranks_is_that_of_the_whole_batch() -> None:
    rng = torch.Generator().manual_seed(4)
    weights = torch.rand(10, generator=rng) + 0.1
    whole = torch.randn(10, generator=rng).requires_grad_()
    parts = [whole.detach()[:4].clone().requires_grad_(), whole.detach()[4:].clone().requires_grad_()]
    wanted = weighted_mean(whole, weights, COMM)
    assert float(wanted.detach()) == pytest.approx(float((weights * whole.detach()).sum() / weights.sum()), rel=1e-6)
    comm = Rank(weights.sum())
    losses = [weighted_mean(p, w, comm) for p, w in zip(parts, (weights[:4], weights[4:]), strict=True)]
    torch.testing.assert_close(torch.stack(losses).mean(), wanted)
    wanted.backward()
    (torch.stack(losses).sum() / 2).backward()  # as gradients are averaged over ranks
    torch.testing.assert_close(torch.cat([p.grad for p in parts if p.grad is not None]), whole.grad)


class AtFirstSteps(Hook):
    """Looks at classifier and optimiser before the first step of every epoch."""

    def __init__(self) -> None:
        self.fresh: list[bool] = []
        self.backbone: list[bool] = []
        self.seen = -1

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if runner.epoch == self.seen:
            return
        self.seen = runner.epoch
        model, state = runner.model, runner.optim_wrapper.optimizer.state
        weight, bias = model.head.classifier.weight, model.head.classifier.bias
        self.fresh.append(not (weight in state or bias in state or bias.any() or weight.grad is not None))
        self.backbone.append(next(model.backbone.parameters()) in state)


@pytest.mark.parametrize(("name", "fresh"), [("dc", [True, True, True]), ("odc", [True, False, False])])
def test_a_refresh_drops_the_classifiers_optimiser_state_and_no_other(
    name: str, fresh: list[bool], tmp_path: Path
) -> None:
    runner = build_runner(config(name, str(tmp_path), **{"train_cfg.max_epochs": 3, "val_evaluator": None}))
    hook = AtFirstSteps()
    runner.register_hook(hook)
    runner.train()
    assert hook.fresh == fresh
    assert hook.backbone == [False, True, True]
