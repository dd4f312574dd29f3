"""MoCo on the digits in bfloat16, as ``--amp`` trains it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from odc.apis import build_runner, prepare_config

CONFIG = Path(__file__).parent.parent / "configs/moco/moco_convnet_1xb64-100e_digits.py"


def test_moco_trains_in_bfloat16(tmp_path: Path) -> None:
    options = {"train_cfg.max_epochs": 2, "train_cfg.schedule": dict(_delete_=True, type="Constant")}
    cfg = prepare_config(CONFIG, work_dir=tmp_path, cfg_options=options, amp=True)
    cfg.log_level = "WARNING"
    runner = build_runner(cfg)
    kinds: set[torch.dtype] = set()
    losses: list[float] = []

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if module.training:  # evaluation is in float32
            kinds.add(output.dtype)

    for encoder in (runner.model.backbone, runner.model.key_encoder[0]):
        next(m for m in encoder.modules() if isinstance(m, nn.Conv2d)).register_forward_hook(note)
    original = runner.model.head.loss

    def loss(*args: Any) -> dict[str, Tensor]:
        out: dict[str, Tensor] = original(*args)
        losses.append(float(out["loss"].detach()))
        assert out["loss"].dtype == torch.float32
        return out

    runner.model.head.loss = loss
    runner.train()
    assert kinds == {torch.bfloat16}, "autocast reaches neither encoder's convolutions"
    queue = runner.model.head.queue.keys
    assert queue.dtype == torch.float32
    torch.testing.assert_close(queue.norm(dim=1), torch.ones(len(queue)))  # unit length in float32, not to 3 digits
    assert {p.dtype for p in runner.model.parameters()} == {torch.float32}
    assert all(map(math.isfinite, losses))
    assert sum(losses[-5:]) < sum(losses[15:20]) - 0.5  # sums of five, after the queue has filled for the first time
    assert runner.val_loop.values["knn"] > 0.9
