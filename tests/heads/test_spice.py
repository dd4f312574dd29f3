from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score
from small_heads import config
from torch import Tensor

from odc.apis import build_runner
from odc.errors import InputError
from odc.heads.spice import (
    ParallelMLPs,
    SpiceSelfHead,
    double_softmax_floor,
    double_softmax_loss,
    label_around_prototypes,
    mean_pairwise_nmi,
)
from odc.structures import Batch, FeatureTable, LocalComm, PseudoLabels, Refresh


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(N: int, D: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(N, D, generator=rng(seed)), dim=1)


# -- the loss ------------------------------------------------------------------------------------------------------


def test_the_floor_of_the_loss() -> None:
    assert double_softmax_floor(10) == pytest.approx(1.461, abs=5e-4)
    for K in (2, 10, 20):
        sure = 100.0 * F.one_hot(torch.arange(K), K).float()
        assert torch.allclose(double_softmax_loss(sure, torch.arange(K)), torch.tensor(double_softmax_floor(K)))
        logits = 5 * torch.randn(200, K, generator=rng(K))
        losses = double_softmax_loss(logits, torch.randint(K, (200,), generator=rng()))
        assert float(losses.min()) > double_softmax_floor(K) - 1e-6
    # A head that knows nothing, and collapsed heads: ln K.
    assert float(double_softmax_loss(torch.zeros(1, 10), torch.tensor([3]))) == pytest.approx(math.log(10))


def test_the_loss_by_an_oracle() -> None:
    logits, target = torch.randn(7, 4, generator=rng()), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    for value, row, y in zip(double_softmax_loss(logits, target), logits.tolist(), target.tolist(), strict=True):
        p = [math.exp(v) / sum(math.exp(w) for w in row) for v in row]
        q = math.exp(p[y]) / sum(math.exp(v) for v in p)
        assert float(value) == pytest.approx(-math.log(q), rel=1e-5)


# -- pseudo-labels -------------------------------------------------------------------------------------------------


def test_the_surest_samples_are_not_the_first_ones_of_the_data_set() -> None:
    """A trained head gives all of a cluster p = 1, even in double precision; its logits still say who is surer."""
    N, K = 40, 2
    head = SpiceSelfHead(4, num_clusters=K, num_heads=1)
    margin = torch.arange(N, 0, -1.0).flip(0) + 50.0  # the later, the surer
    logits = torch.stack([margin, torch.zeros(N)], dim=1)
    logits[N // 2 :] = logits[N // 2 :].flip(1)
    assert bool((logits.double().softmax(1).max(1).values == 1).all())
    early, late = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0, 1.0, 0, 0])
    embedding = torch.where((torch.arange(N) % 20 < 10)[:, None], early, late)
    embedding[N // 2 :] = embedding[N // 2 :].roll(2, 1)
    position, cluster = head._rows(embedding, logits)
    # The surest half of each cluster is its later one, so these lie nearest to the prototype and come first.
    assert set(position[cluster == 0].tolist()[:10]) == set(range(10, 20))
    assert set(position[cluster == 1].tolist()[:10]) == set(range(30, 40))


def slow_labels(embedding: Tensor, confidence: Tensor, center_ratio: float) -> list[list[int]]:
    """For every cluster its samples, nearest first: the definition, one number at a time."""
    N, K = confidence.shape
    n = N // K
    k = max(1, math.floor(center_ratio * n))
    out = []
    for c in range(K):
        sure = sorted(range(N), key=lambda i: (-float(confidence[i, c]), i))[:k]
        prototype = np.mean([embedding[i].numpy() for i in sure], axis=0)
        prototype = prototype / np.linalg.norm(prototype)
        out.append(sorted(range(N), key=lambda i: (-float(embedding[i].numpy() @ prototype), i))[:n])
    return out


# Never two samples a prototype: both are equally near to their mean, and rounding would put them in order.
@pytest.mark.parametrize(("N", "K", "ratio"), [(23, 4, 0.7), (30, 3, 0.3), (16, 5, 1.0), (5, 5, 0.5)])
def test_labels_by_an_oracle(N: int, K: int, ratio: float) -> None:
    embedding, confidence = unit(N, 6), torch.randn(N, K, generator=rng(1)).softmax(1)
    chosen, among = label_around_prototypes(embedding, confidence, ratio)
    assert bool(among.all())
    assert chosen.shape == (N // K, K)
    assert chosen.T.tolist() == slow_labels(embedding, confidence, ratio)


def test_labels_by_hand() -> None:
    """Six points on a half circle, two clusters of three; the prototype is the one most confident sample (⌊.5·3⌋)."""
    angle = torch.tensor([0.0, 10.0, 25.0, 155.0, 170.0, 180.0]).deg2rad()
    embedding = torch.stack([angle.cos(), angle.sin()], dim=1)
    confidence = torch.tensor([0.6, 0.9, 0.5, 0.4, 0.2, 0.1])
    chosen, _ = label_around_prototypes(embedding, torch.stack([confidence, 1 - confidence], dim=1), 0.5)
    # Around 10°: itself, 0°, 25°. Around 180°: itself, 170°, 155°.
    assert chosen.T.tolist() == [[1, 0, 2], [5, 4, 3]]


def test_of_equals_the_first_come_first() -> None:
    embedding = torch.tensor([[1.0, 0.0]]).repeat(8, 1)  # duplicates, and no head prefers any
    chosen, _ = label_around_prototypes(embedding, torch.full((8, 2), 0.5), 0.5)
    assert chosen.T.tolist() == [[0, 1, 2, 3]] * 2


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(2, 6), st.floats(0.01, 1.0), st.integers(0, 99))
def test_clusters_are_equally_large(N: int, K: int, ratio: float, seed: int) -> None:
    confidence = torch.randn(N, K, generator=rng(seed)).softmax(1)
    if K > N:
        with pytest.raises(InputError, match=rf"{K} clusters cannot share {N} samples: lower model.head.num_clusters"):
            label_around_prototypes(unit(N, 3, seed), confidence, ratio)
        return
    chosen, among = label_around_prototypes(unit(N, 3, seed), confidence, ratio)
    assert bool(among.all())
    assert chosen.shape == (N // K, K)
    assert all(len(set(column)) == N // K for column in chosen.T.tolist())


@pytest.mark.parametrize(("unequal", "sizes"), [(0.0, [4, 4, 4]), (0.5, [6, 3, 2]), (1.0, [9, 2, 1])])
def test_clusters_may_follow_what_is_predicted(unequal: float, sizes: list[int]) -> None:
    """Of 12 samples 9, 2 and 1 are predicted; by the roots they have 6.65, 3.13 and 2.22."""
    confidence = 0.1 + 0.8 * torch.nn.functional.one_hot(torch.tensor([0] * 9 + [1] * 2 + [2]), 3)
    chosen, among = label_around_prototypes(unit(12, 6), confidence, 0.5, unequal)
    assert among.sum(0).tolist() == sizes
    assert chosen.shape == (max(sizes), 3)
    assert all(len(set(column.tolist())) == max(sizes) for column in chosen.T)


# -- the head ------------------------------------------------------------------------------------------------------


def head(**options: Any) -> SpiceSelfHead:
    torch.manual_seed(0)
    return SpiceSelfHead(**{"in_channels": 5, "num_clusters": 3, "num_heads": 4, "hidden_channels": 7, **options})


def table(h: SpiceSelfHead, features: Tensor, start: int = 100) -> FeatureTable:
    weak = features + 0.1 * torch.randn(features.shape, generator=rng(9))
    with torch.no_grad():
        return FeatureTable(torch.arange(start, start + len(features)), features, h.logits(weak), len(features))


def refresh(h: SpiceSelfHead, features: Tensor) -> PseudoLabels:
    with torch.no_grad():
        return h.refresh(table(h, features), rng(), LocalComm())


def test_parallel_perceptrons_are_separate_ones() -> None:
    mlps = ParallelMLPs(3, 5, 7, 2)
    z = torch.randn(4, 5, generator=rng())
    out = mlps(z[None])
    assert out.shape == (3, 4, 2)
    for h, (w1, b1, w2, b2) in enumerate(zip(mlps.weight1, mlps.bias1, mlps.weight2, mlps.bias2, strict=True)):
        assert torch.allclose(out[h], F.linear(F.linear(z, w1, b1[0]).relu(), w2, b2[0]), atol=1e-6)
    assert not torch.equal(mlps.weight1[0], mlps.weight1[1])
    assert float(mlps.weight1.detach().abs().max()) <= 5**-0.5
    assert float(mlps.weight2.detach().abs().max()) <= 7**-0.5


@pytest.mark.parametrize("N", [30, 31, 32])
def test_every_head_labels_by_its_own_predictions(N: int) -> None:
    h, features = head(), 3 * torch.randn(N, 5, generator=rng(2))
    labels = refresh(h, features)
    logits = table(h, features).logits
    assert logits is not None
    assert labels.num_classes == (4, 3)
    assert labels.target.shape == (4 * 3 * (N // 3), 2)
    for number in range(4):
        wanted = slow_labels(F.normalize(features, dim=1), logits[:, number].double().softmax(1), 0.5)
        rows = labels.target[:, 0] == number
        for c in range(3):
            got = labels.index[rows & (labels.target[:, 1] == c), 0] - 100
            assert got.tolist() == wanted[c]


def test_a_sample_that_several_clusters_choose() -> None:
    features = 3 * torch.randn(30, 5, generator=rng(2))
    kept, first = refresh(head(), features), refresh(head(overlap="first"), features)

    def by_sample(labels: PseudoLabels) -> dict[tuple[int, int], list[int]]:
        out: dict[tuple[int, int], list[int]] = {}
        for i, (h, c) in zip(labels.index[:, 0].tolist(), labels.target.tolist(), strict=True):
            out.setdefault((h, i), []).append(c)
        return out

    all_labels, one = by_sample(kept), by_sample(first)
    assert max(map(len, all_labels.values())) > 1, "no sample has two labels: this test looks at nothing"
    assert set(map(len, one.values())) == {1}
    assert one.keys() == all_labels.keys()
    # The kept label is that of the cluster in whose order the sample comes first.
    logits = table(head(), features).logits
    assert logits is not None
    for (h, i), (c,) in one.items():
        order = slow_labels(F.normalize(features, dim=1), logits[:, h].double().softmax(1), 0.5)
        place = {cluster: order[cluster].index(i - 100) for cluster in all_labels[h, i]}
        assert place[c] == min(place.values())


def test_a_head_that_is_very_sure_still_ranks_its_samples() -> None:
    """Logits 20 to 27 above all others: every probability is 1 in single precision."""
    logits = torch.zeros(8, 2)
    logits[:, 0] = torch.tensor([20.0, 21, 22, 23, 24, 25, 26, 27])
    assert set(logits.softmax(1)[:, 0].tolist()) == {1.0}
    angle = torch.arange(8) * 20.0
    embedding = torch.stack([angle.deg2rad().cos(), angle.deg2rad().sin()], dim=1)
    position, cluster = head(num_clusters=2)._rows(embedding, logits)
    assert sorted(position[cluster == 0].tolist()) == [4, 5, 6, 7]  # around the two surest, at 120° and 140°


def test_telemetry_by_oracles() -> None:
    h, features = head(), 3 * torch.randn(30, 5, generator=rng(2))
    labels = refresh(h, features)
    logits = table(h, features).logits
    assert logits is not None
    predicted = logits.argmax(2).numpy()
    shares = []
    for number in range(4):
        ids = labels.index[labels.target[:, 0] == number, 0].tolist()
        shares.append(len(set(ids)) / len(ids))
    nmi = [
        normalized_mutual_info_score(predicted[:, a], predicted[:, b]) for a, b in itertools.combinations(range(4), 2)
    ]
    unique, clusters, agreement = h.health.tolist()
    assert unique == pytest.approx(np.mean(shares))
    assert 0 < unique < 1
    assert clusters == pytest.approx(np.mean([len(set(column)) for column in predicted.T]))
    assert agreement == pytest.approx(np.mean(nmi), abs=1e-6)


def test_agreement_of_heads() -> None:
    a = torch.tensor([0, 0, 1, 1, 2, 2])
    assert mean_pairwise_nmi(a[:, None], 3) == 1.0
    assert mean_pairwise_nmi(torch.stack([a, 2 - a], dim=1), 3) == pytest.approx(1.0)  # only the names differ
    assert mean_pairwise_nmi(torch.stack([a, torch.tensor([0, 1, 0, 1, 0, 1])], dim=1), 3) == pytest.approx(
        0.0, abs=1e-9
    )
    assert mean_pairwise_nmi(torch.zeros(6, 2, dtype=torch.int64), 3) == 1.0


def batch(h: SpiceSelfHead, counts: list[int]) -> tuple[Batch, Tensor, Tensor]:
    number = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    number = number[torch.randperm(len(number), generator=rng(4))]
    cluster = torch.randint(h.num_clusters, (len(number),), generator=rng(5))
    z = torch.randn(len(number), 1, 5, generator=rng(6))
    row = torch.arange(len(number))
    return Batch(row, row[:, None], row * 0, torch.stack([number, cluster], 1), {"strong": z}), number, cluster


@pytest.mark.parametrize("counts", [[3, 3, 3, 3], [4, 4, 2, 4], [2, 0, 2, 2], [0, 0, 1, 0]])
def test_the_loss_is_the_mean_over_heads_of_the_mean_over_rows(counts: list[int]) -> None:
    h = head()
    rows, number, cluster = batch(h, counts)
    losses = h.loss({"train": rows}, labels=None, generator=rng(0), comm=LocalComm())  # type: ignore[arg-type]
    out = {**losses.train, **losses.log}
    logits = h.logits(rows.z["strong"][:, 0])
    means = [double_softmax_loss(logits[number == i, i], cluster[number == i]).mean() for i in range(4) if counts[i]]
    wanted = torch.stack(means).mean()
    assert torch.allclose(out["loss"], wanted, atol=1e-6)
    assert float(out["above_floor"]) == pytest.approx(float(wanted.detach()) - double_softmax_floor(3), abs=1e-6)
    assert list(losses.train) == ["loss"], "only the loss is trained on"
    parameters = list(h.mlps.parameters())
    for a, b in zip(torch.autograd.grad(out["loss"], parameters), torch.autograd.grad(wanted, parameters), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def slow_selection(h: SpiceSelfHead, features: Tensor) -> list[float]:
    logits = h.logits(features).detach()
    losses = []
    for i in range(h.num_heads):
        order = slow_labels(F.normalize(features, dim=1), logits[:, i].double().softmax(1), h.center_ratio)
        rows = [(s, c) for c, samples in enumerate(order) for s in samples]
        target = torch.tensor([c for _, c in rows])
        losses.append(float(double_softmax_loss(logits[[s for s, _ in rows], i], target).mean()))
    return losses


def test_the_lowest_loss_over_heads_and_epochs_is_chosen() -> None:
    h, features = head(), 3 * torch.randn(30, 5, generator=rng(2))
    assert torch.allclose(h.predict(features), h.logits(features)[:, 0], atol=1e-6), "before the first choice"
    losses = slow_selection(h, features)
    first = int(np.argmin(losses))
    assert first != 0, "head 0 would be chosen by doing nothing"
    with torch.no_grad():
        h.select(table(h, features), LocalComm())
    best = h.logits(features)[:, first].detach()
    assert float(h.best_loss) == pytest.approx(min(losses), rel=1e-6)
    assert torch.allclose(h.predict(features), best, atol=1e-6)
    # A worse epoch changes nothing, whatever the heads do meanwhile.
    with torch.no_grad():
        h.mlps.weight2.zero_()
        h.select(table(h, features), LocalComm())
    assert torch.allclose(h.predict(features), best, atol=1e-6)
    # A better one does.
    with torch.no_grad():
        for parameter, value in zip(h.mlps.parameters(), head().mlps.parameters(), strict=True):
            parameter.copy_(value)
        h.mlps.weight2.mul_(20)
        h.select(table(h, features), LocalComm())
    losses = slow_selection(h, features)
    assert float(h.best_loss) == pytest.approx(min(losses), rel=1e-6)
    assert torch.allclose(h.predict(features), h.logits(features)[:, int(np.argmin(losses))], atol=1e-5)


def test_selection_looks_at_images_without_augmentation() -> None:
    """The labels are made of ``features``; the logits of the table are not used."""
    h, features = head(), 3 * torch.randn(30, 5, generator=rng(2))
    with torch.no_grad():
        h.select(FeatureTable(torch.arange(30), features, None, 30), LocalComm())
    assert float(h.best_loss) == pytest.approx(min(slow_selection(h, features)), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(overlap="last"), ["'keep' or 'first'", "'last'"]),
        (dict(center_ratio=0.0), ["(0, 1]", "0.0"]),
        (dict(center_ratio=1.5), ["(0, 1]", "1.5"]),
        (dict(num_heads=0), ["not 0 and 3"]),
        (dict(num_clusters=1), ["not 4 and 1"]),
        (dict(repeats=0), ["repeats >= 1", "repeats=0"]),
        (dict(chunk=2), ["chunk >= num_clusters", "chunk=2 for 3 clusters"]),
    ],
)
def test_wrong_options_are_told_in_one_line(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        head(**options)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_how_many_images_a_refresh_takes() -> None:
    plans = [head(num_clusters=K).plan(3).refresh for K in (3, 10, 20, 100)]
    assert [plan and plan.chunk for plan in plans] == [5000, 5000, 10000, 50000]
    plan = head(chunk=1000, repeats=5, batch_size=32).plan(0)
    assert plan.refresh == Refresh(chunk=1000, repeats=5, logits="weak")
    assert (plan.streams[0].size, plan.streams[0].balance) == (4 * 32, (0,))


# -- in the loop ---------------------------------------------------------------------------------------------------


def test_fewer_images_than_a_refresh_takes_are_trained_on(tmp_path: Path) -> None:
    """48 images, a chunk of 5,000 by default, and more clusters than classes."""
    options = {"num_clusters": 7, "num_heads": 3, "chunk": None}
    runner = build_runner(config("spice-self", str(tmp_path), **{f"model.head.{k}": v for k, v in options.items()}))
    before = [p.detach().clone() for p in runner.model.head.mlps.parameters()]
    runner.train()
    assert len(runner.model.labels.index) == 3 * 7 * (48 // 7)
    assert runner.iter == 2 * 2 * 3  # epochs, repeats, and steps of 20 of 42 rows a head
    assert not any(torch.equal(p, q) for p, q in zip(before, runner.model.head.mlps.parameters(), strict=True))
    assert runner.val_loop.evaluation.scores.shape == (48, 7)
    means = runner.train_loop.epoch_means()
    assert means["above_floor"] == pytest.approx(means["loss"] - double_softmax_floor(7), abs=1e-5)
    assert means["clusters"] <= 7
    assert 0 <= means["agreement"] <= 1


@pytest.mark.parametrize("K", [49, 100])
def test_more_clusters_than_images(K: int, tmp_path: Path) -> None:
    runner = build_runner(
        config("spice-self", str(tmp_path), **{"model.head.num_clusters": K, "model.head.chunk": 200})
    )
    with pytest.raises(InputError, match=f"{K} clusters cannot share 48 samples"):
        runner.train()


def test_a_training_that_does_not_learn_is_called_that(tmp_path: Path) -> None:
    options = {"optim_wrapper.optimizer.lr": 0.0, "train_cfg.max_epochs": 1}
    build_runner(config("spice-self", str(tmp_path), **options)).train()
    warning = [line for line in next(tmp_path.rglob("*.log")).read_text().splitlines() if "do not learn" in line]
    assert len(warning) == 1
    assert "WARNING" in warning[0]
    assert "before the training the features had" in warning[0]
    assert " consistency 0." in warning[0]


def test_a_loss_near_its_floor_is_no_complaint() -> None:
    head = SpiceSelfHead(4, num_clusters=10)
    guess = math.log(10) - double_softmax_floor(10)
    assert head.diagnosis({"above_floor": 0.7 * guess, "clusters": 10.0}) is None
    told = head.diagnosis({"above_floor": 0.9 * guess, "clusters": 10.0})
    assert told is not None
    assert f"{0.9 * guess:.3f} above its floor, where a guess among 10 clusters is {guess:.3f}" in told
