"""Gradient accumulation: k steps of B rows move the optimiser as one step of k·B rows does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_heads import config
from torch import Tensor, nn

from odc.apis import build_runner
from odc.errors import InputError
from odc.registry import BACKBONES

STATIC = [dict(type="ToFloat"), dict(type="Normalize", mean=[0.3], std=[0.3])]


@BACKBONES.register_module(force=True)
class NoNorm(nn.Module):
    """One convolution: nothing in it knows how many images come together."""

    out_channels = 6

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.relu(self.conv(x))
        return out


def train(tmp_path: Path, batch: int, counts: int, rate: float = 0.5) -> Any:
    """Train on all true labels, through a view without augmentation, and return the runner."""
    cfg = config("classifier", str(tmp_path / f"{batch}-{counts}"))
    cfg.model.backbone, cfg.model.neck = dict(type="NoNorm"), dict(type="AvgPool")
    cfg.data.views.train = STATIC
    cfg.train_cfg.label_fraction = 1.0
    cfg.model.head.batch_size = batch
    cfg.optim_wrapper.accumulative_counts = counts
    cfg.optim_wrapper.optimizer.lr = rate
    runner = build_runner(cfg)
    runner.train()
    return runner


@pytest.mark.parametrize(("batch", "counts"), [(8, 2), (4, 4), (4, 12)])
def test_steps_of_a_part_are_one_step_of_the_whole(batch: int, counts: int, tmp_path: Path) -> None:
    whole, parts = train(tmp_path, batch * counts, 1), train(tmp_path, batch, counts)
    assert parts.iter == counts * whole.iter
    for (name, a), b in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=2e-6, msg=name)


def test_the_last_steps_of_a_pass_count_by_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """48 rows by 8 are 6 steps, so groups of 4 and of 2: the optimiser sees the mean of each."""
    seen: list[list[Tensor]] = []
    original = torch.optim.SGD.step

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    train(tmp_path, 8, 1, rate=0.0)  # so all gradients are of the same weights
    single, seen[:] = seen[:6], []
    train(tmp_path, 8, 4, rate=0.0)
    assert len(seen) == 4  # in two epochs
    for members, group in ((single[:4], seen[0]), (single[4:], seen[1])):
        for i, gradient in enumerate(group):
            mean = torch.stack([member[i] for member in members]).mean(0)
            torch.testing.assert_close(gradient, mean, rtol=0, atol=1e-6)


def test_averages_follow_the_optimiser_and_queues_the_images(tmp_path: Path) -> None:
    counts = {"optim_wrapper.accumulative_counts": 3}
    semi = build_runner(config("spice-semi", str(tmp_path / "semi"), **counts))
    semi.train()
    assert semi.iter == 8  # four steps an epoch: groups of three and of one
    assert int(semi.model.average.steps) == 4
    moco = build_runner(config("moco", str(tmp_path / "moco"), **counts))
    moco.train()
    assert moco.iter == 6
    assert int(moco.model.head.queue.position) == 6 * 16 % 40


@pytest.mark.parametrize("counts", [0, -1])
def test_numbers_that_cannot_be(counts: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"optim_wrapper.accumulative_counts must be at least 1, not {counts}"):
        build_runner(config("dc", str(tmp_path), **{"optim_wrapper.accumulative_counts": counts})).train()
