"""What one rank of one, two or four does: trains heads whose tensors are spread, and resumes what others began."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from small_heads import HEAD_CONFIGS, config
from torch import Tensor, nn

from odc.apis import build_runner
from odc.registry import BACKBONES

WORLDS = (1, 2, 4)
EVERY_STEP = {"default_hooks.checkpoint": dict(type="CheckpointHook", by_epoch=False, interval=1, max_keep_ckpts=99)}
TRAININGS: dict[str, tuple[str, dict[str, Any]]] = {
    "deeper": ("deeper", {}),
    "deeper, two steps a move": ("deeper", {"optim_wrapper.accumulative_counts": 2}),
    "deeper, one classifier": (
        "deeper",
        {"model.head.num_super": 1, "model.head.classes": "product", "model.ema": 0.5},
    ),
    "odc": ("odc", {}),
}
RESUMED_AT = 3  # in the middle of an epoch, and of a move of two steps


@BACKBONES.register_module()
class Plain(nn.Module):
    """A convolution without batch norm: how many ranks there are changes nothing but how sums round."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, stride=2)
        self.out_channels = 8

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.conv(x).relu()
        return features


def train(name: str, folder: Path, world: int, load_from: Path | None = None) -> None:
    """Train to the end, from the start or from a checkpoint."""
    head, options = TRAININGS[name]
    common: dict[str, Any] = {
        "model.backbone": dict(type="Plain", _delete_=True),
        "model.neck": dict(type="AvgPool", _delete_=True),
        "val_evaluator": [],
        **EVERY_STEP,
    }
    if load_from is not None:
        common |= {"resume": True, "load_from": str(load_from)}
    assert head in HEAD_CONFIGS
    launcher = "none" if world == 1 else "pytorch"
    build_runner(config(head, str(folder), launcher=launcher, **common, **options)).train()


def main(folder: Path, world: int, rank: int, resumes: bool) -> None:
    """Write the checkpoints ``{name}/{world}/iter_*.pth``, or ``{name}/{world}-from-{other}/iter_*.pth``."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"}
    if world > 1:
        store = f"file://{folder}/store-{world}-{resumes}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    for name in TRAININGS:
        if not resumes:
            train(name, folder / name / str(world), world)
            continue
        for other in WORLDS:
            if other != world:
                begun = folder / name / str(other) / f"iter_{RESUMED_AT}.pth"
                train(name, folder / name / f"{world}-from-{other}", world, begun)
