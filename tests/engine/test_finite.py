"""What is not finite stops a training before anything takes it, and the line that says so is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from small_heads import config

from odc.apis import build_runner, evaluate
from odc.checkpoints import load_plain
from odc.errors import InputError
from odc.heads import ODCHead
from odc.registry import HEADS
from odc.structures import Losses


@HEADS.register_module(force=True)
class Poisoned(ODCHead):
    """ODC whose loss or gradient is not finite from step ``after`` on."""

    def __init__(self, after: int = 4, kind: str = "loss", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.after, self.kind, self.calls = after, kind, 0

    def loss(self, *args: Any) -> Losses:
        losses = super().loss(*args)
        self.calls += 1
        if self.calls > self.after:
            weight = self.classifier.weight.flatten()[0]
            # The root of 0 has a value, but an infinite slope.
            losses.train["loss"] += weight * torch.nan if self.kind == "loss" else (weight - weight).sqrt()
        return losses


def poisoned(tmp_path: Path, **options: Any) -> Any:
    head = dict(type="Poisoned", num_clusters=4, batch_size=16, min_cluster=5, centroid_interval=2, _delete_=True)
    return build_runner(config("odc", str(tmp_path), **{"model.head": {**head, **options}, "model.ema": 0.9}))


class Before(Hook):
    """Keeps the model's state as it was before the last step."""

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        self.state = {name: tensor.clone() for name, tensor in runner.model.state_dict().items()}


@pytest.mark.parametrize(("kind", "words"), [("loss", "the loss is nan"), ("gradient", "the loss is finite but its")])
def test_nothing_takes_it(kind: str, words: str, tmp_path: Path) -> None:
    runner, before = poisoned(tmp_path, kind=kind), Before()
    runner.register_hook(before)
    with pytest.raises(InputError, match=f"{words}.* at epoch 2, step 2: lower the learning rate, now 0.05") as error:
        runner.train()
    assert str(error.value).endswith(f"the last checkpoint, '{tmp_path / 'epoch_1.pth'}', was saved before that")
    for name, tensor in runner.model.state_dict().items():
        if "running" not in name and "num_batches" not in name:  # of batch norm, which a forward moves
            assert torch.equal(tensor, before.state[name]), name


def test_there_may_be_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the loss is nan at epoch 1, step 2: .*; no checkpoint was saved$"):
        poisoned(tmp_path, after=1).train()
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_rate_that_is_much_too_high(every: int, tmp_path: Path) -> None:
    """The step itself overflows: whatever is saved is finite."""
    options = {"default_hooks.checkpoint": dict(type="CheckpointHook", interval=every, by_epoch=False)}
    with pytest.raises(InputError, match=r"lower the learning rate, now 1e\+38"):
        build_runner(config("odc", str(tmp_path), **options, **{"optim_wrapper.optimizer.lr": 1e38})).train()
    for checkpoint in tmp_path.glob("*.pth"):
        state = load_plain(checkpoint)["state_dict"]
        assert all(bool(v.isfinite().all()) for k, v in state.items() if "weight" in k or "running" in k), checkpoint


def test_pixels_are_named_before_the_rate(tmp_path: Path) -> None:
    views = {"data.views.train": [dict(type="ToFloat"), dict(type="Normalize", mean=[torch.nan], std=[1.0])]}
    with pytest.raises(InputError, match=r"images, '0\d\d' first, have pixels that are not finite .*data.views.train"):
        build_runner(config("odc", str(tmp_path / "a"), **views)).train()
    views = {"data.views.extract": [dict(type="ToFloat"), dict(type="Normalize", mean=[torch.nan], std=[1.0])]}
    with pytest.raises(InputError, match=r"features of 48 of 48 images are not finite, of '000' first; nor are"):
        build_runner(config("odc", str(tmp_path / "b"), **views)).train()


def test_weights_are_named_where_pixels_are_finite(tmp_path: Path) -> None:
    build_runner(config("dc", str(tmp_path), **{"train_cfg.max_epochs": 1})).train()
    checkpoint = torch.load(tmp_path / "epoch_1.pth", weights_only=True)
    checkpoint["state_dict"]["backbone.layers.0.weight"][0] = torch.nan
    torch.save(checkpoint, tmp_path / "bad.pth")
    with pytest.raises(
        InputError, match=r"bad.pth' is damaged: backbone\.layers\.0\.weight has values that are not finite"
    ):
        evaluate(config("dc", str(tmp_path / "b")), str(tmp_path / "bad.pth"))
