from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_heads import config

from odc.apis import build_runner
from odc.errors import InputError
from odc.heads.spice_semi import SpiceSemiHead, fixmatch_loss
from odc.memory.labels import LabelStore
from odc.structures import Batch, LocalComm, PseudoLabels


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_unlabelled_loss_by_an_oracle() -> None:
    weak, strong = 3 * torch.randn(9, 4, generator=rng()), torch.randn(9, 4, generator=rng(1))
    loss, mask = fixmatch_loss(weak, strong, 0.8)
    total, used = 0.0, 0
    for w, s in zip(weak.tolist(), strong.tolist(), strict=True):
        q = [math.exp(v) / sum(math.exp(u) for u in w) for v in w]
        if max(q) >= 0.8:
            used += 1
            total += math.log(sum(math.exp(u) for u in s)) - s[q.index(max(q))]
    assert 0 < used < 9, "this test looks at one side only"
    assert int(mask.sum()) == used
    assert float(loss) == pytest.approx(total / 9, rel=1e-5)  # over all rows, not over the confident ones


def test_weak_views_get_no_gradient_and_an_empty_mask_gives_zero() -> None:
    weak = torch.zeros(5, 3, requires_grad=True)
    strong = torch.randn(5, 3, generator=rng(), requires_grad=True)
    loss, mask = fixmatch_loss(weak, strong, 0.95)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert not mask.any()
    assert weak.grad is None
    assert strong.grad is not None
    assert float(strong.grad.abs().sum()) == 0.0


def semi(**options: Any) -> SpiceSemiHead:
    torch.manual_seed(0)
    return SpiceSemiHead(**{"in_channels": 5, "num_clusters": 3, **options})


def losses(head: SpiceSemiHead, num_classes: int = 3) -> tuple[dict[str, torch.Tensor], dict[str, Batch]]:
    store = LabelStore(0)
    target = torch.tensor([0, 1, 2, -1, -1, -1, -1, -1])[:, None]
    store.replace(PseudoLabels(torch.arange(8)[:, None], target, (num_classes,)))

    def batch(row: torch.Tensor, views: tuple[str, ...], seed: int) -> Batch:
        z = {view: 30 * torch.randn(len(row), 1, 5, generator=rng(seed + i)) for i, view in enumerate(views)}
        return Batch(row, store.index[row], store.variant[row], store.target[row], z)

    batches = {
        "labelled": batch(torch.tensor([2, 0]), ("weak",), 1),
        "all": batch(torch.arange(8), ("weak", "strong"), 3),
    }
    found = head.loss(batches, store.view(), rng(0), LocalComm())
    assert not any("loss" in name for name in found.log)
    return {**found.train, **found.log}, batches


def test_both_losses() -> None:
    head = semi(threshold=0.5, weight=2.0)
    out, batches = losses(head)
    labelled = head.predict(batches["labelled"].z["weak"][:, 0])
    weak, strong = (head.predict(batches["all"].z[view][:, 0]) for view in ("weak", "strong"))
    unlabelled, mask = fixmatch_loss(weak, strong, 0.5)
    assert 0 < int(mask.sum()) < 8
    assert torch.equal(out["labelled_loss"], F.cross_entropy(labelled, torch.tensor([2, 0])))
    assert torch.equal(out["unlabelled_loss"], 2 * unlabelled)
    assert float(out["confident"]) == pytest.approx(int(mask.sum()) / 8)
    assert float(out["unused"]) == 0.0
    assert {name for name in out if "loss" in name} == {"labelled_loss", "unlabelled_loss"}
    nobody, _ = losses(semi(threshold=1.0))
    assert (float(nobody["unlabelled_loss"].detach()), float(nobody["unused"])) == (0.0, 1.0)


def test_the_plan_is_fixmatch_s() -> None:
    plan = semi().plan(7)
    labelled, every = plan.streams
    assert (labelled.rows, labelled.size, labelled.views) == ("labelled", 64, ("weak",))
    assert (every.rows, every.size, every.views) == ("all", 448, ("weak", "strong"))
    assert (plan.refresh, plan.steps, plan.select) == (None, 1024, False)


def test_wrong_options_and_labels() -> None:
    with pytest.raises(InputError, match=r"threshold must be in \[0, 1\] and its weight not negative, not 1.5 and 1.0"):
        semi(threshold=1.5)
    with pytest.raises(InputError, match=r"not 0.95 and -1"):
        semi(weight=-1)
    with pytest.raises(InputError, match=r"labels have 4 classes, but model.head.num_clusters is 3: set it to 4"):
        losses(semi(), num_classes=4)


def test_without_labels_the_error_says_so(tmp_path: Path) -> None:
    runner = build_runner(config("spice-semi", str(tmp_path), **{"train_cfg.label_file": None}))
    with pytest.raises(InputError, match=r"stream 'labelled' .* all 48 are unlabelled: set train_cfg.label_file"):
        runner.train()


def test_it_is_evaluated_by_its_averages_and_trains_on_what_it_was_given(tmp_path: Path) -> None:
    runner = build_runner(config("spice-semi", str(tmp_path)))
    runner.train()
    model, loop = runner.model, runner.val_loop
    assert int(model.average.steps) == runner.iter == 8
    assert int((model.labels.target >= 0).sum()) == 12
    assert 0 < runner.train_loop.epoch_means()["confident"] <= 1
    averaged = loop.evaluation.scores
    with model.averaged():
        average = model.head.predict(loop.evaluation.features.to(runner.train_loop.device)).cpu()
    assert torch.allclose(averaged, average, atol=1e-6)
    model.average.steps.zero_()  # as if there were none
    assert not torch.allclose(loop.evaluate().scores, averaged, atol=1e-4)
