"""Self-labelling: the loss by hand and over ranks, an empty batch, balanced labels, and from SCAN's checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_heads import HEAD_CONFIGS, config
from torch import Tensor

from odc.apis import build_runner
from odc.checkpoints import load_plain
from odc.errors import InputError
from odc.heads.selflabel import SelfLabelHead, weighted_cross_entropy
from odc.memory.labels import LabelStore
from odc.structures import Batch, FeatureTable, LocalComm, Losses, PseudoLabels, make_generator

COMM = LocalComm()


def rng(seed: int = 0) -> torch.Generator:
    return make_generator(seed, "test")


def head(**options: Any) -> SelfLabelHead:
    """Return a head whose logits are the first three features."""
    found = SelfLabelHead(**{"in_channels": 4, "num_clusters": 3, "neighbours": 2, "batch_size": 8, **options})
    with torch.no_grad():
        found.classifiers.linear.weight.copy_(torch.eye(3, 4))
        found.classifiers.linear.bias.zero_()
    return found


def step(of: SelfLabelHead, weak: Tensor, strong: Tensor) -> Losses:
    B = len(weak)
    rows = torch.arange(B)[:, None]
    batch = Batch(rows[:, 0], rows, torch.zeros(B).long(), torch.zeros(B, 1).long(), {})
    batch.z.update(weak=weak[:, None], strong=strong[:, None])
    store = LabelStore(0)
    store.replace(PseudoLabels(rows, torch.zeros_like(rows), (3,)))
    return of.loss({"all": batch}, store.view(), rng(), COMM)


def test_by_hand() -> None:
    """Three sure rows, two of cluster 0 and one of 1, weigh 3/2, 3/2 and 3; the fourth is not sure."""
    weak = torch.tensor([[9.0, 0, 0, 0], [9.0, 0, 0, 0], [0, 9.0, 0, 0], [0, 0, 1.0, 0]])
    strong = torch.tensor([[0.0, 0, 0, 0], [1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 0, 0]])
    ce = [math.log(3), math.log(math.e + 2) - 1, math.log(math.e**2 + 2) - 2]
    found = step(head(), weak, strong)
    assert float(found.train["loss"].detach()) == pytest.approx((1.5 * ce[0] + 1.5 * ce[1] + 3 * ce[2]) / 6, rel=1e-6)
    assert float(found.log["confident"]) == 0.75
    equal = step(head(class_weights=False), weak, strong)
    assert float(equal.train["loss"].detach()) == pytest.approx(sum(ce) / 3, rel=1e-6)


def test_without_a_sure_image_the_loss_is_zero_and_told() -> None:
    of = head()
    found = step(of, torch.zeros(4, 4), torch.randn(4, 4, generator=rng()))
    found.train["loss"].backward()
    assert float(found.train["loss"].detach()) == 0.0
    assert (float(found.log["confident"]), float(found.log["unused"])) == (0.0, 1.0)
    assert of.classifiers.linear.weight.grad is not None
    assert float(of.classifiers.linear.weight.grad.abs().sum()) == 0.0


def test_weak_views_get_no_gradient() -> None:
    weak, strong = (9 * torch.eye(4)[:3].requires_grad_() for _ in range(2))
    weak.retain_grad()
    strong.retain_grad()
    step(head(), weak, strong).train["loss"].backward()
    assert weak.grad is None or float(weak.grad.abs().sum()) == 0.0
    assert strong.grad is not None
    assert float(strong.grad.abs().sum()) > 0


def test_ranks_weigh_by_the_counts_of_all() -> None:
    logits = torch.randn(9, 3, generator=rng()).requires_grad_()
    target = torch.tensor([0, 0, 1, 0, 2, 0, 1, 2, 0])
    chosen = torch.tensor([1, 1, 1, 0, 0, 1, 1, 1, 0]).bool()
    weighted_cross_entropy(logits, target, chosen, True, COMM).backward()
    whole = logits.grad
    assert whole is not None
    counts, weight = torch.bincount(target[chosen], minlength=3), 0.0
    for c in target[chosen].tolist():
        weight += float(counts.sum() / counts[c])

    class Two:
        world = 2

        def sum(self, x: Tensor) -> Tensor:
            return counts if x.shape else torch.tensor(weight)

    for part in (slice(0, 4), slice(4, 9)):
        mine = logits.detach()[part].requires_grad_()
        weighted_cross_entropy(mine, target[part], chosen[part], True, Two()).backward()  # type: ignore[arg-type]
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad / 2, whole[part])  # the loop takes the mean over ranks


@pytest.mark.parametrize(("balance", "labels"), [(None, [0, 0, 0, 0, 0, 1]), ("equal", [0, 0, 2, 2, 1, 1])])
def test_labels_may_be_balanced(balance: str | None, labels: list[int]) -> None:
    """All but one row like cluster 0 best; where sizes must be equal, those that like others most go there."""
    weak = torch.tensor([[9, 0, 0], [9, 0, 0], [9, 0, 3], [9, 0, 3], [9, 3, 0], [3, 9, 0]]).float()
    weak = torch.cat([weak, torch.zeros(6, 1)], dim=1)
    strong = torch.randn(6, 4, generator=rng())
    found = step(head(threshold=0.5, balance=balance), weak, strong).train["loss"]
    target = torch.tensor(labels)
    expected = weighted_cross_entropy(strong[:, :3], target, torch.ones(6).bool(), True, COMM)
    torch.testing.assert_close(found.detach(), expected)


def test_the_sizes_of_the_start_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.cat([6 * torch.eye(4)[:3].repeat_interleave(torch.tensor([12, 6, 2]), 0)])
    x = x + 0.1 * torch.randn(20, 4, generator=rng())
    lines: list[str] = []
    monkeypatch.setattr("odc.heads.selflabel.print_log", lambda line, *_: lines.append(line))
    of = head(threshold=0.9, balance="start")
    labels = of.refresh(FeatureTable(torch.arange(20), x, None, 20), rng(), COMM)
    assert "threshold=0.9 trusts less sure labels than the paper's 0.99" in lines[0]
    assert of.classifiers.first_sizes.tolist() == pytest.approx([0.6, 0.3, 0.1])
    assert torch.equal(labels.target[:, 0], x[:, :3].argmax(1))
    before = float(of.classifiers.first_loss)
    with torch.no_grad():
        of.classifiers.linear.bias[0] = 99  # all in one cluster: consistent, and the worst
    of.select(FeatureTable(torch.arange(20), x, None, 20), COMM)
    told = lines[1]
    now = float(of.classifiers.losses[0])
    assert now > before
    assert f"is {now:.4f}, and was {before:.4f} before self-labelling: by it, the clusters are not better" in told
    assert "1 of 3 are in use" in told


def test_it_goes_on_from_scan(tmp_path: Path) -> None:
    """The chosen classifier of SCAN's checkpoint is the one that trains, and the log compares the two."""
    same = {key: value for key, value in HEAD_CONFIGS["scan"].items() if key in ("num_heads", "normalize")}
    first = build_runner(config("scan", str(tmp_path / "scan"), **{"train_cfg.max_epochs": 3}))
    first.train()
    options: dict[str, Any] = {f"model.head.{key}": value for key, value in same.items()}
    options |= {"load_from": str(tmp_path / "scan" / "epoch_3.pth")}
    second = build_runner(config("selflabel", str(tmp_path / "selflabel"), **options))
    second.train()
    a = load_plain(tmp_path / "scan" / "epoch_3.pth")["state_dict"]
    b = second.model.cpu().state_dict()
    assert int(b["head.classifiers.best"]) == int(a["head.classifiers.best"])
    assert torch.equal(b["head.classifiers.nearest.rows"], a["head.classifiers.nearest.rows"])
    assert float(b["head.classifiers.first_loss"]) == pytest.approx(
        float(a["head.classifiers.losses"][int(a["head.classifiers.best"])]), rel=1e-4
    )
    options["model.head.num_heads"] = 1
    with pytest.raises(InputError, match=r"head\.classifiers"):
        build_runner(config("selflabel", str(tmp_path / "other"), **options)).train()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"threshold": 1.0}, r"threshold must be in \[0, 1\), not 1.0"),
        ({"balance": "some"}, "by 'equal', 'start' or not at all"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        head(**options)
