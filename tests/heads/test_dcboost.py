"""DCBoost: which images are trusted, and its losses from the equations; a checkpoint of ProPos to begin from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small_heads import config

from odc.apis import build_runner
from odc.errors import InputError
from odc.heads import DCBoostHead
from odc.heads.byol import members
from odc.heads.dcboost import compactness, separation, trusted
from odc.structures import make_generator

Array = npt.NDArray[np.float64]


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=make_generator(seed), dtype=torch.float64), dim=-1)


def slow(y: Array, label: Array, most: int) -> tuple[list[bool], int]:
    """X_h and k, image by image."""
    B, best, found, chosen = len(y), -1.0, [False] * len(y), 0
    for k in range(1, min(most, B - 1) + 1):
        agree = []
        for i in range(B):
            others = sorted((j for j in range(B) if j != i), key=lambda j: -float(y[i] @ y[j]))
            agree.append(all(label[j] == label[i] for j in others[:k]))
        if k * sum(agree) / B > best:
            best, found, chosen = k * sum(agree) / B, agree, k
    return found, chosen


@given(st.integers(0, 1000), st.integers(2, 14), st.integers(1, 20))
def test_trusted_images_are_those_of_the_best_k(seed: int, n: int, most: int) -> None:
    label = torch.randint(3, (n,), generator=make_generator(seed))
    y = F.normalize(unit(3, 4, seed=seed)[label] + 0.3 * unit(n, 4, seed=seed + 1), dim=1)
    found, k = trusted(y, label, most)
    assert (found.tolist(), int(k)) == slow(y.numpy(), label.numpy(), most)


def test_trusted_by_hand() -> None:
    """Four of one cluster and two of another: with k = 1 all are trusted, 6; with k = 2 and 3 four, 8 and 12."""
    angle = torch.tensor([0.0, 0.01, 0.03, 0.06, 2.0, 2.1])
    y = torch.stack([angle.cos(), angle.sin()], 1)
    found, k = trusted(y, torch.tensor([0, 0, 0, 0, 1, 1]), 50)
    assert (found.tolist(), int(k)) == ([True] * 4 + [False] * 2, 3)
    found, k = trusted(y, torch.tensor([0, 0, 0, 0, 1, 1]), 1)
    assert (found.tolist(), int(k)) == ([True] * 6, 1)
    found, _ = trusted(y, torch.arange(6), 50)
    assert not bool(found.any())


@given(st.integers(0, 1000), st.integers(1, 6))
def test_the_losses_are_the_equations_and_know_no_names(seed: int, K: int) -> None:
    x, y = unit(9, 3, seed=seed), unit(9, 3, seed=seed + 1)
    label = torch.randint(-1, K, (9,), generator=make_generator(seed))
    classes = sorted(set(label.tolist()) - {-1})
    a, b = x.numpy(), y.numpy()
    of = {c: [i for i in range(9) if label[i] == c] for c in classes}
    positive = []
    for c in classes:
        length = max(np.square(b[of[c]].sum(0)).sum(), len(of[c]))
        positive.append(sum(np.square(a[i] - b[j]).sum() for i in of[c] for j in of[c]) / length)
    mean = {c: (a[of[c]].sum(0), b[of[c]].sum(0)) for c in classes}
    mean = {c: tuple(m / np.linalg.norm(m) for m in both) for c, both in mean.items()}
    negative = [-np.square(mean[c][0] - mean[d][1]).sum() for c in classes for d in classes if c != d]
    wanted = [float(np.mean(found)) if found else 0.0 for found in (positive, negative)]
    rename = torch.randperm(K + 2, generator=make_generator(seed))
    for names in (label, torch.where(label >= 0, rename[label], label)):
        member = members(names, K + 2)
        found = [loss(x, y, member).item() for loss in (compactness, separation)]
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_losses_by_hand() -> None:
    """Classes without a width have nothing to gain in L_pos; orthogonal ones are at squared distance 2."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    member = members(torch.tensor([0, 0, 1]), 2)
    assert compactness(x, x, member).item() == 0.0
    assert separation(x, x, member).item() == -2.0
    assert compactness(x, x[[2, 2, 1]], member).item() == 2.0  # 4 pairs at 2, over 2²; and 1 pair at 2, over 1
    assert separation(x, x, member[:1]).item() == 0.0


def test_nobody_trusted_is_no_loss_and_no_gradient() -> None:
    made = DCBoostHead(5, 6, hidden_channels=4, out_channels=3)
    x = unit(6, 3).float().requires_grad_()
    losses = made.cluster_losses(x, unit(6, 3, seed=1).float(), torch.arange(6))
    assert [loss.item() for loss in losses.train.values()] == [0.0, 0.0]
    assert losses.log["trusted"].item() == 0.0
    (gradient,) = torch.autograd.grad(torch.stack(list(losses.train.values())).sum(), x)
    assert not bool(gradient.any())


def test_it_begins_from_a_checkpoint_of_propos(tmp_path: Path) -> None:
    short: dict[str, Any] = {"train_cfg.max_epochs": 1, "model.head.warmup": 0}
    first = build_runner(config("propos", str(tmp_path / "propos"), **short))
    first.train()
    checkpoint = str(tmp_path / "propos" / "epoch_1.pth")
    second = build_runner(config("dcboost", str(tmp_path / "dcboost"), load_from=checkpoint))
    second.load_or_resume()
    mine, before = second.model.state_dict(), first.model.state_dict()
    assert mine.keys() == before.keys()
    assert all(torch.equal(mine[name], before[name]) for name in mine)
    assert second.model.head.plan(0).streams[0].name == "align"  # whatever the labels of the checkpoint


def test_what_is_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="neighbours must be at least 1, not 0"):
        DCBoostHead(5, 3, neighbours=0)
