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
    for hook in (ReadAtOnce(), before):
        runner.register_hook(hook)
    with pytest.raises(InputError, match=f"{words}.* at epoch 2, step 2: lower the learning rate, now 0.05") as error:
        runner.train()
    assert str(error.value).endswith(f"the last checkpoint, '{tmp_path / 'epoch_1.pth'}', was saved before that")
    for name, tensor in runner.model.state_dict().items():
        if "running" not in name and "num_batches" not in name:  # of batch norm, which a forward moves
            assert torch.equal(tensor, before.state[name]), name


class ReadAtOnce(Hook):
    """Lets the loop read as on a processor: at every step."""

    def before_train(self, runner: Any) -> None:
        runner.train_loop.reads_late = False


class ReadLate(Hook):
    """Lets the loop read as from a GPU: every few steps."""

    def before_train(self, runner: Any) -> None:
        runner.train_loop.reads_late = True


@pytest.mark.parametrize(("kind", "words"), [("loss", "the loss is nan"), ("gradient", "the loss is finite but its")])
@pytest.mark.parametrize("interval", [2, 10])
def test_what_is_read_late_is_in_no_checkpoint(kind: str, words: str, interval: int, tmp_path: Path) -> None:
    options = {"log_interval": interval, "max_epochs": 9}
    every = {"default_hooks.checkpoint": dict(type="CheckpointHook", by_epoch=False, interval=4)}
    head = dict(type="Poisoned", num_clusters=4, batch_size=16, min_cluster=5, kind=kind, _delete_=True)
    cfg = config("odc", str(tmp_path), **{"model.head": head}, **every)
    cfg.train_cfg.update(options)
    runner = build_runner(cfg)
    runner.register_hook(ReadLate())
    with pytest.raises(InputError, match=f"{words}.* at epoch 2, step 2: lower the learning rate") as error:
        runner.train()
    assert "iter_4.pth" in str(error.value)
    assert [path.name for path in tmp_path.glob("*.pth")] == ["iter_4.pth"]


def test_a_fused_optimiser_takes_nothing_either(tmp_path: Path) -> None:
    runner, before = poisoned(tmp_path, kind="gradient", after=1), Before()
    runner.cfg.optim_wrapper.optimizer.fused = True
    runner.optim_wrapper["optimizer"]["fused"] = True
    for hook in (ReadLate(), before):
        runner.register_hook(hook)
    with pytest.raises(InputError, match=r"gradient sums to .* at epoch 1, step 2"):
        runner.train()
    weight = runner.model.head.classifier.weight  # in the last step before the reading, too
    assert bool(weight.isfinite().all())
    assert torch.equal(weight, before.state["head.classifier.weight"])


def test_late_reading_changes_no_number(tmp_path: Path) -> None:
    runners = [build_runner(config("spice-semi", str(tmp_path / name))) for name in ("at once", "late")]
    runners[1].register_hook(ReadLate())
    for runner in runners:
        runner.train()
    assert runners[0].train_loop.epoch_means() == runners[1].train_loop.epoch_means()
    for name, tensor in runners[0].model.state_dict().items():
        assert torch.equal(tensor, runners[1].model.state_dict()[name]), name


class NoWaiting(Hook):
    """Makes it an error for the processor to wait for the GPU inside a step."""

    priority = "VERY_LOW"

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if batch_idx == 1:  # the first step prepares, and the last one reads
            torch.cuda.set_sync_debug_mode("error")

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["teacher", "sinkhorn", "moco", "spice-semi"])
def test_no_step_waits_for_the_gpu(name: str, tmp_path: Path) -> None:
    cfg = config(name, str(tmp_path), val_evaluator=None, **{"train_cfg.max_epochs": 1})
    runner = build_runner(cfg)
    runner.register_hook(NoWaiting())
    try:
        runner.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")


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
    with pytest.raises(InputError, match=r"features of 48 of 48 images are not finite, .* '000'; its pixels are not"):
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
