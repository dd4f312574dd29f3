"""ProPos: scattering from the equation, clusters that are absent or renamed, ranks, warm-up, and what predicts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from odc.errors import InputError
from odc.heads import ProPosHead
from odc.heads.byol import members, prototypes
from odc.heads.propos import scattering
from odc.memory.labels import LabelStore
from odc.structures import Batch, Comm, FeatureTable, LocalComm, Losses, make_generator

Array = npt.NDArray[np.float64]


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=make_generator(seed), dtype=torch.float64), dim=-1)


def head(**options: Any) -> ProPosHead:
    torch.manual_seed(0)
    return ProPosHead(5, **{"num_clusters": 4, "hidden_channels": 7, "out_channels": 3, "batch_size": 12, **options})


def oracle(x: Array, y: Array, label: Array, temperature: float) -> float:
    """L_p, cluster by cluster."""

    def mean(of: Array, c: int) -> Array:
        total: Array = np.array([row for row, k in zip(of, label, strict=True) if k == c]).sum(0)
        total /= np.linalg.norm(total)
        return total

    clusters = sorted(set(label.tolist()) - {-1})
    losses = []
    for c in clusters:
        positive = math.exp(mean(x, c) @ mean(y, c) / temperature)
        negatives = sum(math.exp(mean(x, c) @ mean(x, j) / temperature) for j in clusters if j != c)
        losses.append(-math.log(positive / (positive + negatives)))
    return sum(losses) / len(losses)


def scattered(x: torch.Tensor, y: torch.Tensor, label: torch.Tensor, K: int, t: float) -> torch.Tensor:
    member = members(label, K)
    return scattering(prototypes(x, member), prototypes(y, member), member.any(1), t)


@given(st.integers(0, 1000), st.integers(1, 9), st.floats(0.1, 2.0))
def test_scattering_is_the_equation_and_knows_no_names(seed: int, K: int, temperature: float) -> None:
    x, y = unit(10, 3, seed=seed), unit(10, 3, seed=seed + 1)
    label = torch.randint(-1, K, (10,), generator=make_generator(seed))
    label[0] = 0
    found = float(scattered(x, y, label, K, temperature))
    assert found == pytest.approx(oracle(x.numpy(), y.numpy(), label.numpy(), temperature), rel=1e-9, abs=1e-12)
    rename = torch.randperm(K + 3, generator=make_generator(seed))  # with clusters that no image is in
    renamed = torch.where(label >= 0, rename[label], label)
    assert float(scattered(x, y, renamed, K + 3, temperature)) == pytest.approx(found, rel=1e-9, abs=1e-12)


def test_by_hand() -> None:
    """Two orthogonal clusters, whose targets are equal to them: -log e^(1/τ) / (e^(1/τ) + e^0)."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    label = torch.tensor([0, 0, 1])
    assert float(scattered(x, x, label, 2, 0.5)) == pytest.approx(math.log(1 + math.exp(-2.0)))
    assert float(scattered(x, -x, label, 2, 0.5)) == pytest.approx(math.log(1 + math.exp(2.0)))
    assert float(scattered(x[:2], x[:2], label[:2], 2, 0.5)) == 0.0  # one cluster has nothing to be apart from


def test_absent_clusters_have_no_gradient_and_spoil_none() -> None:
    x = unit(6, 3).requires_grad_()
    for label in (torch.tensor([0, 0, 5, 5, -1, 5]), torch.full((6,), -1)):
        loss = scattered(x, unit(6, 3, seed=1), label, 50, 0.5)
        (gradient,) = torch.autograd.grad(loss, x)
        assert bool(gradient.isfinite().all())
        assert not bool(gradient[label < 0].any())
    assert loss.item() == 0.0


def batch(online: torch.Tensor, target: torch.Tensor, label: torch.Tensor, name: str = "train") -> dict[str, Batch]:
    row = torch.arange(len(label))
    return {name: Batch(row, row[:, None], 0 * row, label[:, None], {"online": online, "target": target})}


def loss_of(made: ProPosHead, batches: dict[str, Batch], comm: Comm | None = None) -> Losses:
    return made.double().loss(batches, LabelStore(0).view(), make_generator(3), comm or LocalComm())


def test_the_loss_is_both_parts_of_both_views() -> None:
    made = head(noise=0.0, weight=0.3, temperature=0.7).double()
    online, target = torch.randn(2, 8, 2, 3, generator=make_generator(1), dtype=torch.float64)
    label = torch.arange(8) % 3
    found = loss_of(made, batch(online, target, label)).train
    align = prototype = 0.0
    for v in range(2):
        p = made.predictor(online[:, v])
        align += sum(-2 * F.cosine_similarity(p[i], target[i, v], dim=0).item() / 8 for i in range(8)) / 2
        x, y = (F.normalize(z[:, v], dim=1).numpy() for z in (online, target))
        prototype += 0.3 * oracle(x, y, label.numpy(), 0.7) / 2
    assert found["align_loss"].item() == pytest.approx(align)
    assert found["prototype_loss"].item() == pytest.approx(prototype)


def test_noise_is_of_the_generator() -> None:
    online, target = torch.randn(2, 8, 2, 3, generator=make_generator(1), dtype=torch.float64)
    batches = batch(online, target, torch.arange(8) % 3)
    quiet, noisy = head(noise=0.0), head(noise=0.5)
    found = [loss_of(made, batches).train["align_loss"].item() for made in (quiet, noisy, noisy)]
    assert found[1] == found[2] != found[0]


def test_the_warm_up_is_alignment_without_noise_and_labels() -> None:
    online, target = torch.randn(2, 8, 2, 3, generator=make_generator(1), dtype=torch.float64)
    label = torch.arange(8) % 3  # of the checkpoint that it begins from
    warm = loss_of(head(noise=0.5), batch(online, target, label, "align"))
    quiet = loss_of(head(noise=0.0), batch(online, target, label))
    assert warm.train == {"align_loss": quiet.train["align_loss"]}
    assert warm.log == {}


class TwoRanks(LocalComm):
    """The second of two ranks, whose other one has what is given; gradients reach this rank's rows alone."""

    rank, world = 1, 2

    def __init__(self, *others: torch.Tensor) -> None:
        self.others = list(others)

    def gather(self, x: torch.Tensor, gradient: bool = False) -> torch.Tensor:
        return torch.cat([self.others.pop(0), x if gradient else x.detach()])


def test_a_rank_takes_part_in_the_scattering_of_the_whole_batch() -> None:
    made = head(noise=0.0)
    online, target = torch.randn(2, 8, 2, 3, generator=make_generator(1), dtype=torch.float64)
    label = torch.tensor([0, 0, 1, 2, 0, 3, 1, 1])
    whole = loss_of(made, batch(online, target, label)).train["prototype_loss"]
    other = TwoRanks(F.normalize(online[:3], dim=2), F.normalize(target[:3], dim=2), label[:3])
    mine = loss_of(made, batch(online[3:], target[3:], label[3:]), other).train["prototype_loss"]
    assert mine.item() == pytest.approx(whole.item(), rel=1e-12)


def test_plan() -> None:
    made = head(warmup=2, refresh_interval=3, balance=True)
    plans = [made.plan(epoch) for epoch in range(7)]
    assert [plan.refresh is not None for plan in plans] == [False, False, True, False, False, True, False]
    assert [plan.streams[0].balance for plan in plans] == [()] * 2 + [(0,)] * 5
    assert {plan.streams[0].views for plan in plans} == {("query", "key")}
    assert [plan.streams[0].name for plan in plans] == ["align"] * 2 + ["train"] * 5
    assert head(warmup=0).plan(0).streams[0].balance == ()


@torch.no_grad()
def test_labels_are_the_nearest_centroids_and_so_is_the_answer() -> None:
    made = head(num_clusters=3).eval()
    z = torch.randn(60, 5, generator=make_generator(2))
    logits = made.logits(z)
    assert torch.allclose(logits.norm(dim=1), torch.ones(60))
    table = FeatureTable(torch.arange(60), z, logits, 60)
    found = made.refresh(table, make_generator(0), LocalComm())
    assert torch.allclose(made.centroids.norm(dim=1), torch.ones(3))
    assert torch.equal(made.predict(z).argmax(1), found.target[:, 0])
    for c in range(3):  # of spherical k-means that has converged
        mean = F.normalize(logits[found.target[:, 0] == c].sum(0), dim=0)
        assert torch.allclose(made.centroids[c], mean, atol=1e-4)
    again = made.refresh(replace(table), make_generator(0), LocalComm())
    assert torch.equal(again.target, found.target)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_clusters": 0}, "num_clusters must be at least 1, not 0"),
        ({"noise": -1.0}, "noise must be at least 0"),
        ({"warmup": -1}, "warmup must be at least 0 epochs, not -1"),
        ({"refresh_interval": 0}, "refresh_interval at least 1, not 0"),
        ({"temperature": 0.0}, "temperature must be positive, not 0"),
        ({"weight": -0.1}, "weight at least 0, not -0.1"),
    ],
)
def test_what_is_out_of_range_is_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        head(**options)
