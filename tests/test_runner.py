"""What the runner does otherwise than mmengine's."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmengine
import numpy as np
import pytest
import torch
import torch.distributed as torch_dist
from mmengine.hooks import Hook
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from toy_runner import Toy, build, evaluation, log_of, one_line, save, truncate, weights

from odc.checkpoints import load_plain, write_tensors
from odc.engine.comm import launched
from odc.errors import InputError


def test_a_checkpoint_of_a_run_loads_safely_and_says_where_it_comes_from(tmp_path: Path) -> None:
    runner = build(tmp_path, epochs=1, cfg={"note": "hello"})
    runner.message_hub.update_info("score", np.float64(0.5))  # numpy scalars come from metrics
    runner.train()
    checkpoint = torch.load(tmp_path / "epoch_1.pth", weights_only=True)
    assert checkpoint["message_hub"]["log_scalars"] == {}
    assert type(checkpoint["message_hub"]["runtime_info"]["score"]) is float
    meta = checkpoint["meta"]
    assert (meta["epoch"], meta["iter"], meta["seed"], meta["torch_version"]) == (1, 2, 0, torch.__version__)
    assert "hello" in meta["cfg"]
    assert "time" in meta
    assert "mmengine_version" in meta


def test_what_a_hook_adds_last_is_made_plain_too(tmp_path: Path) -> None:
    class Late(Hook):
        priority = "LOWEST"

        def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
            checkpoint["late"] = np.float32(2)

    build(tmp_path, epochs=1, custom_hooks=[Late()]).train()
    assert load_plain(tmp_path / "epoch_1.pth")["late"] == 2.0


def test_meta_config_is_dropped_and_never_executed_on_resume(tmp_path: Path) -> None:
    build(tmp_path / "a", epochs=1).train()
    path = tmp_path / "a" / "epoch_1.pth"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["meta"]["config"] = f"import pathlib\npathlib.Path({str(tmp_path / 'sprung')!r}).touch()\n"
    torch.save(checkpoint, path)
    build(tmp_path / "b", epochs=2, load_from=str(path), resume=True).train()
    assert not (tmp_path / "sprung").exists()


def test_load_from_is_strict_unless_the_config_asks_otherwise(tmp_path: Path) -> None:
    build(tmp_path / "a", epochs=1).train()
    path = str(tmp_path / "a" / "epoch_1.pth")
    with pytest.raises(InputError, match=r"fc.weight: file \(1, 2\), model \(3, 2\)"):
        build(tmp_path / "b", model=Toy(width=3), load_from=path).train()
    with pytest.raises(InputError, match=r"6 mismatched .* start anew with what fits: .*, without --resume"):
        build(tmp_path / "c", model=Toy(width=3), load_from=path, resume=True, cfg={"load_partial": True}).train()
    runner = build(tmp_path / "d", model=Toy(width=3), load_from=path, cfg={"load_partial": True})
    runner.load_or_resume()
    assert "1 loaded" in log_of(runner)  # bn.num_batches_tracked
    assert "6 mismatched" in log_of(runner)


def test_starting_anew_over_damaged_checkpoints_is_refused(tmp_path: Path, warned: list[str]) -> None:
    save(tmp_path / "epoch_1.pth", 2)
    truncate(tmp_path / "epoch_1.pth")
    with pytest.raises(InputError, match="none of which can be loaded") as error:
        build(tmp_path, resume=True).train()
    one_line(error)
    assert len(warned) == 1
    assert "epoch_1.pth" in warned[0]


def test_resume_equals_an_unbroken_run(tmp_path: Path) -> None:
    unbroken = build(tmp_path / "a", epochs=4)
    unbroken.train()
    build(tmp_path / "b", epochs=2).train()
    (tmp_path / "b").rename(tmp_path / "c")
    resumed = build(tmp_path / "c", epochs=4, resume=True)
    for p in resumed.model.parameters():
        nn.init.zeros_(p)
    resumed.train()
    assert (resumed.epoch, resumed.iter) == (4, 8)
    assert "resumed key" not in log_of(resumed)  # no complaints about the histories that are left out
    expected = weights(unbroken)
    assert all(torch.equal(v, expected[k]) for k, v in weights(resumed).items())


def test_resume_skips_a_truncated_checkpoint(tmp_path: Path, warned: list[str]) -> None:
    build(tmp_path, epochs=2).train()
    truncate(tmp_path / "epoch_2.pth")
    runner = build(tmp_path, epochs=3, resume=True)
    runner.train()
    assert "epoch_1.pth at epoch 1, iteration 2" in log_of(runner)
    assert warned
    assert load_plain(tmp_path / "epoch_3.pth")["meta"]["iter"] == 6


def test_resume_without_a_checkpoint_starts_and_says_so(tmp_path: Path) -> None:
    runner = build(tmp_path, epochs=1, resume=True)
    runner.train()
    assert "no checkpoint to resume from" in log_of(runner)


def test_resume_keeps_the_seed_of_the_run(tmp_path: Path) -> None:
    build(tmp_path, epochs=1, randomness={"seed": 3}).train()
    shared = {"seed": None}
    runner = build(tmp_path, epochs=2, resume=True, randomness=shared)
    runner.train()
    assert runner.seed == 3
    assert shared == {"seed": None}


def test_a_checkpoint_without_training_state_cannot_be_resumed(tmp_path: Path) -> None:
    torch.save({"state_dict": Toy().state_dict()}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="lacks loop, message_hub, meta, optimizer") as error:
        build(tmp_path, load_from=str(tmp_path / "weights.pth"), resume=True).train()
    one_line(error)
    with pytest.raises(InputError, match="does not exist"):
        build(tmp_path, load_from=str(tmp_path / "missing.pth"), resume=True).train()


def test_another_optimiser_cannot_be_resumed(tmp_path: Path) -> None:
    build(tmp_path, epochs=1).train()
    runner = build(tmp_path, epochs=2, resume=True)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.optim_wrapper.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(InputError, match="optimiser") as error:
        runner.train()
    one_line(error)


class CountingLoop(mmengine.runner.EpochBasedTrainLoop):
    order = torch.tensor([-1])

    def state_dict(self) -> dict[str, Any]:
        return {"order": torch.tensor([2, 0, 1]), "step": np.int64(self._iter)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert self._iter == 2, "comes after mmengine's part"
        self.order, self.step = state["order"], state["step"]


def test_the_state_of_the_loop_is_saved_and_given_back(tmp_path: Path) -> None:
    def cfg(epochs: int) -> dict[str, Any]:
        return {"type": CountingLoop, "max_epochs": epochs}

    hooks = {"checkpoint": {"type": "CheckpointHook", "interval": 1, "save_best": "acc"}}
    build(tmp_path, train_cfg=cfg(1), default_hooks=hooks, **evaluation(1.0)).train()
    assert load_plain(tmp_path / "epoch_1.pth")["loop"]["step"] == 2
    assert "loop" not in load_plain(tmp_path / "best_acc_epoch_1.pth")
    runner = build(tmp_path, train_cfg=cfg(1), resume=True)
    runner.train()
    assert runner.train_loop.order.tolist() == [2, 0, 1]
    assert runner.train_loop.step == 2
    without = load_plain(tmp_path / "epoch_1.pth")
    del without["loop"]
    write_tensors(tmp_path / "epoch_1.pth", without)
    with pytest.raises(InputError, match="lacks loop"):
        build(tmp_path, train_cfg=cfg(1), resume=True).train()


def test_runners_of_one_second_share_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda *_: "20260102_030405")
    first, second = build(tmp_path / "a"), build(tmp_path / "a")
    assert first.experiment_name != second.experiment_name
    assert first.message_hub is not second.message_hub
    assert first.logger is not second.logger
    assert first.log_dir != second.log_dir


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(s.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # mmengine warns where they are not set
        monkeypatch.delenv(name, raising=False)
    yield monkeypatch
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("launcher", ["pytorch", "slurm"])
@pytest.mark.parametrize(
    "cfg", [{}, {"find_unused_parameters": True}, {"model_wrapper_cfg": {"find_unused_parameters": True}}]
)
def test_launchers_work_without_a_gpu(
    tmp_path: Path, one_rank: pytest.MonkeyPatch, launcher: str, cfg: dict[str, Any]
) -> None:
    if launcher == "slurm":
        for name, value in (("PROCID", "0"), ("NTASKS", "1"), ("LOCALID", "0")):
            one_rank.setenv(f"SLURM_{name}", value)
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            one_rank.delenv(name)
    env = {"dist_cfg": {"backend": "nccl", "timeout": 60}}
    runner = build(tmp_path, epochs=1, launcher=launcher, env_cfg=env, cfg=cfg)
    assert torch_dist.get_backend() == "gloo"
    assert isinstance(runner.model, DistributedDataParallel)
    assert runner.model.device_ids is None
    assert not runner.model.broadcast_buffers
    assert runner.model.find_unused_parameters == bool(cfg)
    runner.train()
    again = build(tmp_path, epochs=2, launcher=launcher, resume=True)
    again.train()
    assert again.iter == 4


def test_a_launcher_without_its_variables_is_one_line(tmp_path: Path, one_rank: pytest.MonkeyPatch) -> None:
    one_rank.delenv("RANK")
    with pytest.raises(InputError, match="'RANK'") as error:
        build(tmp_path, launcher="pytorch")
    one_line(error)


def test_more_processes_than_gpus_are_refused(one_rank: pytest.MonkeyPatch) -> None:
    one_rank.setenv("LOCAL_RANK", "2")
    assert launched("pytorch", gpus=3) == ["0", "1", "2"]
    assert launched("pytorch", gpus=0) == ["0", "1", "2"], "without any, processes share the processor"
    with pytest.raises(InputError, match="process 3 on this machine has no GPU of its own, there are 2: start at most"):
        launched("pytorch", gpus=2)
