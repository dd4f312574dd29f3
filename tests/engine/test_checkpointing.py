"""Hooks that save checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mmengine
import pytest
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from toy_runner import Scores, Toy, build, evaluation

from odc.engine.checkpointing import CheckpointHook
from odc.errors import InputError
from odc.runner import Runner


class Watch(Hook):
    """Checkpoints that are whole at the moment a new one is about to be written."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.seen: list[set[str]] = []

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        self.seen.append({p.name for p in Path(runner.work_dir).glob("*.pth")})


def test_old_checkpoints_are_deleted_after_the_new_one_is_written(tmp_path: Path) -> None:
    watch = Watch()
    hooks = {"checkpoint": {"type": "CheckpointHook", "interval": 1, "max_keep_ckpts": 2}}
    build(tmp_path, epochs=4, default_hooks=hooks, custom_hooks=[watch]).train()
    assert watch.seen[2] == {"epoch_1.pth", "epoch_2.pth"}
    assert watch.seen[3] == {"epoch_2.pth", "epoch_3.pth"}
    assert {p.name for p in tmp_path.glob("*.pth")} == {"epoch_3.pth", "epoch_4.pth"}


def test_the_best_checkpoint_is_replaced_after_the_better_one_is_written(tmp_path: Path) -> None:
    watch = Watch()
    hooks = {"checkpoint": {"type": "CheckpointHook", "interval": 1, "save_best": "acc"}}
    build(tmp_path, epochs=3, default_hooks=hooks, custom_hooks=[watch], **evaluation(0.1, 0.5, 0.3)).train()
    assert any({"best_acc_epoch_1.pth"} <= seen for seen in watch.seen)
    assert {p.name for p in tmp_path.glob("best*")} == {"best_acc_epoch_2.pth"}
    # Each time, the best that there was is still there while the next is written (or was just replaced by it).
    assert all(any(n.startswith("best") for n in seen) for seen in watch.seen[2:])


def test_several_best_checkpoints(tmp_path: Path) -> None:
    class Two(Scores):
        def compute_metrics(self, results: list[Any]) -> dict[str, float]:
            score = next(self.scores)
            return {"acc": score, "loss": score}

    hooks = {"checkpoint": {"type": "CheckpointHook", "interval": 1, "save_best": ["acc", "loss"]}}
    arguments = evaluation() | {"val_evaluator": Evaluator(Two((0.5, 0.1, 0.9)))}
    build(tmp_path, epochs=3, default_hooks=hooks, **arguments).train()
    assert {p.name for p in tmp_path.glob("best*")} == {"best_acc_epoch_3.pth", "best_loss_epoch_2.pth"}


def test_a_resumed_copy_leaves_the_best_file_of_the_original_alone(tmp_path: Path) -> None:
    hooks = {"checkpoint": {"type": "CheckpointHook", "interval": 1, "save_best": "acc"}}
    build(tmp_path / "a", epochs=1, default_hooks=hooks, **evaluation(0.1)).train()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    build(tmp_path / "b", epochs=2, default_hooks=hooks, resume=True, **evaluation(0.5)).train()
    assert (tmp_path / "a" / "best_acc_epoch_1.pth").exists()
    assert {p.name for p in (tmp_path / "b").glob("best*")} == {"best_acc_epoch_2.pth"}


def test_keeping_one_checkpoint_is_refused() -> None:
    with pytest.raises(InputError, match="max_keep_ckpts=1"):
        CheckpointHook(max_keep_ckpts=1)


def test_checkpoints_lie_in_the_work_directory() -> None:
    with pytest.raises(InputError, match="work directory, not into out_dir='elsewhere'"):
        CheckpointHook(out_dir="elsewhere")


@pytest.mark.parametrize("hooks", [None, {}, {"checkpoint": {"type": "mmengine.CheckpointHook"}}])
def test_the_checkpoint_hook_is_ours_in_any_scope(tmp_path: Path, hooks: dict[str, Any] | None) -> None:
    runner = build(tmp_path, default_hooks=hooks)
    assert [type(h) for h in runner.hooks if isinstance(h, mmengine.hooks.CheckpointHook)] == [CheckpointHook]


def test_a_run_may_do_without_a_checkpoint_hook(tmp_path: Path) -> None:
    runner = build(tmp_path, default_hooks={"checkpoint": None})
    assert not any(isinstance(h, mmengine.hooks.CheckpointHook) for h in runner.hooks)


def test_evaluation_alone_ignores_save_best(tmp_path: Path) -> None:
    hooks = {"checkpoint": {"type": "CheckpointHook", "save_best": "acc"}}
    build(tmp_path, epochs=1).train()
    runner = Runner(
        model=Toy(),
        work_dir=str(tmp_path / "val"),
        default_hooks=hooks,
        load_from=str(tmp_path / "epoch_1.pth"),
        **evaluation(0.7),
    )
    assert runner.val() == {"acc": 0.7}
    assert not list((tmp_path / "val").glob("*.pth"))
    resuming = Runner(model=Toy(), work_dir=str(tmp_path), resume=True, **evaluation(0.7))
    with pytest.raises(InputError, match="set load_from only"):
        resuming.val()
