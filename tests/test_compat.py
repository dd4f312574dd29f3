"""Every remedy in ``odc.compat`` fails its test here when it is taken away."""

from __future__ import annotations

import copy
import datetime
import io
import logging
import os
import pickle
import shutil
import socket
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmengine
import numpy as np
import pytest
import torch
import torch.distributed as torch_dist
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.fileio import get_file_backend
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel, BaseModule
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from odc import compat
from odc.compat import (
    MAX_HISTORY,
    CheckpointHook,
    Runner,
    find_resume,
    load_config,
    load_plain,
    load_state,
    mark_last,
    to_plain,
)
from odc.errors import InputError

# ------------------------------------------------------------------------------------------------------------ a toy


class Points(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"x": torch.tensor([float(i), 1.0]) / 8}


class Toy(BaseModel):
    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.fc = nn.Linear(2, width)
        self.bn = nn.BatchNorm1d(width)

    def forward(self, x: Tensor, mode: str = "tensor") -> Any:
        z = self.bn(self.fc(x))
        return {"loss": (z - 1).square().mean()} if mode == "loss" else list(z)


class Scores(BaseMetric):
    """Scores in a given order, one an evaluation."""

    def __init__(self, scores: tuple[float, ...]) -> None:
        super().__init__()
        self.scores = iter(scores)

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        return {"acc": next(self.scores)}


def loader() -> DataLoader[dict[str, Tensor]]:
    return DataLoader(Points(), batch_size=4)


def build(work_dir: Path, *, epochs: int = 2, **kwargs: Any) -> Runner:
    """Build a runner of the toy with 2 iterations an epoch, on mmengine's own loop."""
    torch.manual_seed(0)
    arguments: dict[str, Any] = {
        "model": Toy(),
        "work_dir": str(work_dir),
        "train_dataloader": loader(),
        "train_cfg": {"by_epoch": True, "max_epochs": epochs},
        "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}},
        "default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": 1}},
        "randomness": {"seed": 0},
    }
    return Runner(**(arguments | kwargs))


def evaluation(*scores: float) -> dict[str, Any]:
    return {"val_dataloader": loader(), "val_cfg": {}, "val_evaluator": Evaluator(Scores(scores))}


def weights(runner: Any) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in runner.model.state_dict().items()}


def log_of(runner: Any) -> str:
    return "".join(p.read_text() for p in Path(runner.log_dir).glob("*.log"))


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    messages: list[str] = []
    monkeypatch.setattr(compat, "_warn", messages.append)
    return messages


def one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


class Trap:
    """Code in a pickle: creates a file when it is unpickled unsafely."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


# --------------------------------------------------------------------------------------------- checkpoints are plain


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


def test_to_plain_converts_and_survives_safe_loading() -> None:
    state: OrderedDict[str, Tensor] = OrderedDict(w=nn.Parameter(torch.ones(2)))
    state._metadata = OrderedDict({"": {"version": 2}})  # type: ignore[attr-defined]
    value = {
        "scalar": np.int64(3),
        "flag": np.bool_(True),
        "array": np.arange(3),
        "words": np.array(["a", "b"]),
        "when": datetime.datetime(2026, 1, 2),
        "path": Path("a/b"),
        "range": range(2),
        "counter": Counter([1, 1]),
        "nested": [(np.float32(1.5), {"x"})],
        "state": state,
        "none": None,
        "dropped": len,
    }
    buffer = io.BytesIO()
    torch.save(to_plain(value), buffer)
    buffer.seek(0)
    back = torch.load(buffer, weights_only=True)
    assert back["scalar"] == 3
    assert back["flag"] is True
    assert back["array"].tolist() == [0, 1, 2]
    assert back["words"] == ["a", "b"]
    assert back["when"] == "2026-01-02T00:00:00"
    assert back["path"] == "a/b"
    assert back["range"] == [0, 1]
    assert back["counter"] == Counter({1: 2})
    assert isinstance(back["counter"], Counter)
    assert back["nested"] == [(1.5, {"x"})]
    assert back["state"]._metadata[""] == {"version": 2}
    assert not back["state"]["w"].requires_grad
    assert back["none"] is None
    assert "dropped" not in back


def test_to_plain_says_where_it_met_something_else() -> None:
    with pytest.raises(TypeError, match=r"checkpoint\.a\[1\] is a object"):
        to_plain({"a": [1, object()]})


# -------------------------------------------------------------------------------------------------- loading is safe


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "x": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    for load in (load_plain, CheckpointLoader.load_checkpoint):
        with pytest.raises(InputError, match="convert it to plain tensors") as error:
            load(str(tmp_path / "trap.pth"))
        assert "trap.pth" in one_line(error)
    assert not (tmp_path / "sprung").exists()


def test_code_in_a_downloaded_checkpoint_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"  # what is there is not downloaded again
    cache.mkdir(parents=True)
    torch.save({"x": Trap(tmp_path / "sprung")}, cache / "trap.pth")
    torch.save({"state_dict": {"w": torch.ones(1)}, "meta": {"config": "raise"}}, cache / "good.pth")
    for scheme in ("http", "https"):
        with pytest.raises(InputError, match="convert it to plain tensors"):
            CheckpointLoader.load_checkpoint(f"{scheme}://localhost/trap.pth")
    good = CheckpointLoader.load_checkpoint("https://localhost/good.pth")
    assert good["state_dict"]["w"].item() == 1
    assert "config" not in good["meta"]
    assert not (tmp_path / "sprung").exists()


def test_every_other_scheme_is_refused() -> None:
    kept = {"", "http://", "https://", "torchvision://"}
    loaders = CheckpointLoader._schemes
    assert {k for k, v in loaders.items() if v is not compat._load_from_unsupported} == kept
    with pytest.raises(InputError, match="download it first"):
        CheckpointLoader.load_checkpoint("s3://bucket/x.pth")
    with pytest.raises(InputError, match="did you mean 'resnet50'"):
        CheckpointLoader.load_checkpoint("torchvision://resnet5O")


def test_an_unreachable_address_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match="cannot be downloaded") as error:
        CheckpointLoader.load_checkpoint("http://127.0.0.1:9/x.pth")
    one_line(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "damaged"),
        (b"hello, world", "damaged"),
        (pickle.dumps([1]), "holds a list|damaged"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        load_plain(path)
    assert "x.pth" in one_line(error)


def test_meta_config_is_dropped_and_never_executed_on_resume(tmp_path: Path) -> None:
    build(tmp_path / "a", epochs=1).train()
    path = tmp_path / "a" / "epoch_1.pth"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["meta"]["config"] = f"import pathlib\npathlib.Path({str(tmp_path / 'sprung')!r}).touch()\n"
    torch.save(checkpoint, path)
    build(tmp_path / "b", epochs=2, load_from=str(path), resume=True).train()
    assert not (tmp_path / "sprung").exists()


# ------------------------------------------------------------------------------------------------ loading is strict


def test_load_state_copies_everything() -> None:
    source, target = Toy(), Toy()
    nn.init.constant_(source.fc.weight, 7.0)
    report = load_state(target, source.state_dict())
    assert report.complete
    assert set(report.loaded) == set(source.state_dict())
    assert torch.equal(target.fc.weight, source.fc.weight)


def test_load_state_names_what_does_not_fit_and_changes_nothing() -> None:
    model = Toy(width=3)
    before = copy.deepcopy(model.state_dict())
    state = Toy(width=5).state_dict() | {"extra": torch.ones(1)}
    del state["bn.running_mean"]
    with pytest.raises(InputError) as error:
        load_state(model, state, source="checkpoint 'x.pth'")
    text = one_line(error)
    for part in ("x.pth", "1 missing (bn.running_mean)", "1 unexpected (extra)", "5 mismatched", "load_partial"):
        assert part in text
    assert "fc.weight: file (5, 2), model (3, 2)" in text
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_partial_load_takes_what_fits_and_says_so() -> None:
    model = Toy(width=3)
    state = {"bn.weight": torch.full((3,), 2.0), "fc.weight": torch.ones(5, 2), "extra": torch.ones(1)}
    report = load_state(model, state, partial=True)
    assert report.loaded == ("bn.weight",)
    assert report.unexpected == ("extra",)
    assert report.mismatched == ("fc.weight: file (5, 2), model (3, 2)",)
    assert len(report.missing) == len(model.state_dict()) - 2
    assert model.bn.weight.tolist() == [2.0, 2.0, 2.0]
    assert "1 loaded" in str(report)


@pytest.mark.parametrize("partial", [False, True])
def test_a_state_with_nothing_in_common_is_an_error(partial: bool) -> None:
    with pytest.raises(InputError, match="nothing in it fits") as error:
        load_state(Toy(), {"other": torch.ones(1)}, partial=partial)
    one_line(error)


class Versioned(nn.Linear):
    _version = 3
    seen = 0

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: dict[str, Any], *args: Any) -> None:
        self.seen = local_metadata["version"]
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def test_the_prefix_of_ddp_is_stripped_only_where_the_model_has_none() -> None:
    wrapped = nn.Module()
    wrapped.module = nn.Sequential(Versioned(1, 1))
    for target in (nn.Sequential(Versioned(1, 1)), copy.deepcopy(wrapped)):
        assert load_state(target, wrapped.state_dict()).complete
        assert [m.seen for m in target.modules() if isinstance(m, Versioned)] == [3]  # versions are stripped too


class Resizing(nn.Module):
    resizes_on_load = True

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("labels", torch.zeros(size))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        self.labels = state_dict[f"{prefix}labels"].clone()


def test_shapes_are_not_compared_where_a_module_resizes_itself() -> None:
    model = nn.ModuleDict({"store": Resizing(2), "store2": nn.Linear(1, 1)})
    state = nn.ModuleDict({"store": Resizing(5), "store2": nn.Linear(1, 1)}).state_dict()
    assert load_state(model, state).complete
    assert model["store"].labels.shape == (5,)
    with pytest.raises(InputError, match=r"1 mismatched \(store2\.weight"):
        load_state(model, state | {"store2.weight": torch.ones(2, 1)})
    bare = Resizing(2)
    load_state(bare, Resizing(3).state_dict())
    assert bare.labels.shape == (3,)


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


class Net(BaseModule):
    def __init__(self, **init_cfg: Any) -> None:
        super().__init__(init_cfg={"type": "Pretrained", **init_cfg})
        self.fc = nn.Linear(2, 1)


def test_pretrained_weights_are_strict_too(tmp_path: Path) -> None:
    path = str(tmp_path / "net.pth")
    torch.save({"state_dict": {"backbone.fc.weight": torch.ones(1, 2), "backbone.fc.bias": torch.ones(1)}}, path)
    net = Net(checkpoint=path, prefix="backbone")
    net.init_weights()
    assert net.fc.weight.tolist() == [[1.0, 1.0]]
    with pytest.raises(InputError, match="nothing in it fits"):
        Net(checkpoint=path).init_weights()
    with pytest.raises(InputError, match="no names under prefix 'neck"):
        Net(checkpoint=path, prefix="neck.").init_weights()
    torch.save({"fc.weight": torch.zeros(1, 2), "head.weight": torch.ones(1)}, path)
    with pytest.raises(InputError, match=r"1 missing \(fc.bias\); 1 unexpected \(head.weight\)"):
        Net(checkpoint=path).init_weights()
    net = Net(checkpoint=path, partial=True)
    net.init_weights()
    assert net.fc.weight.tolist() == [[0.0, 0.0]]


# ------------------------------------------------------------------------------------------------- writing is atomic


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "x.pth"
    backend = get_file_backend(str(path))
    backend.put(b"old", str(path))
    backend.put_text("old", str(path.with_suffix(".txt")))

    def full(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        backend.put(b"new", str(path))
    with pytest.raises(OSError, match="disk full"):
        backend.put_text("new", str(path.with_suffix(".txt")))
    assert path.read_bytes() == b"old"
    assert {p.name for p in path.parent.iterdir()} == {"x.pth", "x.txt"}


def test_files_are_never_partly_written_in_place(tmp_path: Path) -> None:
    path = tmp_path / "x"
    backend = get_file_backend(str(path))
    backend.put(b"old", path)
    with path.open("rb") as reader:  # who reads while the new file is written keeps the whole old one
        backend.put(b"new content", path)
        assert reader.read() == b"old"
    assert backend.get(path) == b"new content"


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


# -------------------------------------------------------------------------------------------------- what to resume


def save(path: Path, iteration: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"meta": {"epoch": 1, "iter": iteration}, "state_dict": {"w": torch.zeros(2000)}}, path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def names(work_dir: Path) -> list[str]:
    found = [Path(path) for path in find_resume(work_dir)]
    assert all(path.parent == work_dir for path in found)
    return [path.name for path in found]


def test_last_checkpoint_survives_moving_the_directory(tmp_path: Path, warned: list[str]) -> None:
    build(tmp_path / "old", epochs=1).train()
    assert (tmp_path / "old" / "last_checkpoint").read_text() == "epoch_1.pth"
    (tmp_path / "old").rename(tmp_path / "new")
    assert names(tmp_path / "new") == ["epoch_1.pth"]
    assert not warned


@pytest.mark.parametrize(
    "content", [b"../elsewhere/epoch_1.pth", b"/etc/passwd", b"\xff\x00\x80", b"epoch_1.pth" * 1000, b"a\x1b[2Jb", b""]
)
def test_last_checkpoint_names_a_file_beside_it_or_nothing(tmp_path: Path, content: bytes, warned: list[str]) -> None:
    save(tmp_path / "elsewhere" / "epoch_1.pth", 9)
    save(tmp_path / "run" / "epoch_2.pth", 2)
    (tmp_path / "run" / "last_checkpoint").write_bytes(content)
    assert names(tmp_path / "run") == ["epoch_2.pth"]
    assert all("does not name a checkpoint" in line and line.isprintable() for line in warned)


def test_checkpoints_lie_in_the_work_directory() -> None:
    with pytest.raises(InputError, match="work directory, not into out_dir='elsewhere'"):
        CheckpointHook(out_dir="elsewhere")


def test_without_checkpoints_there_is_nothing_to_resume(tmp_path: Path) -> None:
    assert names(tmp_path) == []
    assert names(tmp_path / "missing") == []


def test_checkpoints_come_newest_first_and_damaged_ones_last(tmp_path: Path) -> None:
    for epoch in (2, 9, 10):
        save(tmp_path / f"epoch_{epoch}.pth", 2 * epoch)
    os.utime(tmp_path / "epoch_2.pth", (2e9, 2e9))  # times of modification prove nothing after a copy
    assert names(tmp_path) == ["epoch_10.pth", "epoch_9.pth", "epoch_2.pth"]
    mark_last(tmp_path, tmp_path / "epoch_9.pth")
    assert names(tmp_path) == ["epoch_9.pth", "epoch_10.pth", "epoch_2.pth"]
    truncate(tmp_path / "epoch_10.pth")
    save(tmp_path / "iter_19.pth", 19)
    assert names(tmp_path) == ["epoch_9.pth", "iter_19.pth", "epoch_2.pth", "epoch_10.pth"]


def test_starting_anew_over_damaged_checkpoints_is_refused(tmp_path: Path, warned: list[str]) -> None:
    save(tmp_path / "epoch_1.pth", 2)
    truncate(tmp_path / "epoch_1.pth")
    with pytest.raises(InputError, match="none of which can be loaded") as error:
        build(tmp_path, resume=True).train()
    one_line(error)
    assert len(warned) == 1
    assert "epoch_1.pth" in warned[0]


# ----------------------------------------------------------------------------------------------------------- resume


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
    with pytest.raises(InputError, match="lacks message_hub, meta, optimizer") as error:
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


def test_a_changed_schedule_is_reported_with_both_numbers(tmp_path: Path) -> None:
    def schedule(epochs: int) -> dict[str, Any]:
        cosine = {"type": "CosineAnnealingLR", "T_max": epochs, "end": epochs}
        return {"epochs": epochs, "param_scheduler": [cosine, {"type": "MultiStepLR", "milestones": [epochs - 1]}]}

    build(tmp_path, **schedule(2)).train()
    same = build(tmp_path, resume=True, **schedule(2))
    same.train()
    assert "keeps" not in log_of(same)
    grown = build(tmp_path, resume=True, **schedule(5))
    grown.train()
    assert "keeps end=2 of the checkpoint; the config's end=5" in log_of(grown)
    assert "keeps T_max=2" in log_of(grown)
    assert grown.param_schedulers[0].end == 2


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
    build(tmp_path / "plain", epochs=1).train()
    with pytest.raises(InputError, match="lacks loop"):
        build(tmp_path / "plain", train_cfg=cfg(1), resume=True).train()


# ----------------------------------------------------------------------------------------------- running many times


def test_log_buffers_are_bounded(tmp_path: Path) -> None:
    hub = build(tmp_path).message_hub
    for _ in range(MAX_HISTORY + 5):
        hub.update_scalar("train/loss", 1.0)
    assert len(hub.get_scalar("train/loss").data[0]) == MAX_HISTORY
    hub.log_scalars["direct"] = HistoryBuffer()
    assert hub.get_scalar("direct").max_length == MAX_HISTORY


def test_runners_of_one_second_share_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda *_: "20260102_030405")
    first, second = build(tmp_path / "a"), build(tmp_path / "a")
    assert first.experiment_name != second.experiment_name
    assert first.message_hub is not second.message_hub
    assert first.logger is not second.logger
    assert first.log_dir != second.log_dir


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


@pytest.mark.parametrize("hooks", [None, {}, {"checkpoint": {"type": "mmengine.CheckpointHook"}}])
def test_the_checkpoint_hook_is_ours_in_any_scope(tmp_path: Path, hooks: dict[str, Any] | None) -> None:
    runner = build(tmp_path, default_hooks=hooks)
    assert [type(h) for h in runner.hooks if isinstance(h, mmengine.hooks.CheckpointHook)] == [CheckpointHook]


def test_a_run_may_do_without_a_checkpoint_hook(tmp_path: Path) -> None:
    runner = build(tmp_path, default_hooks={"checkpoint": None})
    assert not any(isinstance(h, mmengine.hooks.CheckpointHook) for h in runner.hooks)


# ----------------------------------------------------------------------------------------------------------- ranks


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
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    yield monkeypatch
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


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


# ----------------------------------------------------------------------------------------------------------- config


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def clean_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("base", [True, False])
def test_a_classic_config_may_import_and_call(tmp_path: Path, base: bool) -> None:
    write(tmp_path / "base.py", "lr = 1\n")
    text = (
        "import os.path as osp\nimport numpy as np\nx = osp.join('a', str(int(np.prod([2, 3]))))\nmodel = dict(k=1)\n"
    )
    path = write(tmp_path / "c.py", text + ("_base_ = ['base.py']\n" if base else ""))
    config = load_config(path, {"model.j": 5})
    assert (config.x, config.model.k, config.model.j, config.get("lr")) == ("a/6", 1, 5, 1 if base else None)


@pytest.mark.parametrize(("wrong", "right"), [("odc/r50.py", "odc/r50x.py"), ("odcc/r50x.py", "odc")])
def test_a_missing_config_suggests_the_nearest(tmp_path: Path, wrong: str, right: str) -> None:
    write(tmp_path / "odc" / "r50x.py", "")
    with pytest.raises(InputError) as error:
        load_config(tmp_path / wrong)
    assert f"did you mean '{tmp_path / right}'" in one_line(error)
    with pytest.raises(InputError, match="nothing like it"):
        load_config(tmp_path / "odc" / "qqqqqqqqqqqqqqqq")


def test_a_syntax_error_names_file_and_line_even_in_a_base(tmp_path: Path) -> None:
    base = write(tmp_path / "base.py", "a = 1\nb = (\n")
    for path in (base, write(tmp_path / "c.py", "_base_ = 'base.py'\n")):
        with pytest.raises(InputError) as error:
            load_config(path)
        assert str(base) in one_line(error)
        assert "line 2" in one_line(error)


@pytest.mark.parametrize("text", ["a = undefined_name", "_base_ = 'missing.py'"])
def test_a_config_that_cannot_be_run_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"undefined_name|missing\.py") as error:
        load_config(write(tmp_path / "c.py", text))
    assert "c.py" in one_line(error)


def test_an_override_without_a_place_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no place for the overrides") as error:
        load_config(write(tmp_path / "c.py", "a = [1]\nb = 3\n"), {"a.7": 1})
    one_line(error)


@pytest.mark.usefixtures("clean_imports")
def test_custom_modules_are_found_beside_the_config_and_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    write(tmp_path / "cwd" / "custom_cwd_head.py", "NAME = 'cwd'\n")
    write(tmp_path / "configs" / "custom_near_head.py", "NAME = 'near'\n")
    imports = "custom_imports = dict(imports=['custom_near_head', 'custom_cwd_head'])\n"
    load_config(write(tmp_path / "configs" / "c.py", imports))
    assert sys.modules["custom_near_head"].NAME == "near"
    assert sys.modules["custom_cwd_head"].NAME == "cwd"
    assert str(tmp_path / "configs") in sys.path  # for worker processes, which import by name
    assert str(tmp_path / "cwd") in sys.path
    load_config(write(tmp_path / "configs" / "d.py", ""), {"custom_imports": {"imports": "custom_near_head"}})


@pytest.mark.usefixtures("clean_imports")
def test_a_failed_custom_import_says_why(tmp_path: Path, warned: list[str]) -> None:
    write(tmp_path / "custom_broken.py", "x = 1\nimport not_there_at_all\n")
    write(tmp_path / "custom_syntax.py", "x = 1\ny = (\n")
    for name, reason in (
        ("custom_absent", "put it next to the config"),
        ("custom_broken", r"No module named 'not_there_at_all' \(.*custom_broken.py, line 2\)"),
        ("custom_syntax", r"SyntaxError: .*custom_syntax.py, line 2"),
    ):
        path = write(tmp_path / "c.py", f"custom_imports = dict(imports=['{name}'])\n")
        with pytest.raises(InputError, match=reason) as error:
            load_config(path)
        assert f"cannot import '{name}'" in one_line(error)
    write(path, "custom_imports = dict(imports=['custom_absent'], allow_failed_imports=True)\n")
    load_config(path)
    assert len(warned) == 1


def test_warnings_go_to_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    logger = mmengine.logging.MMLogger.get_instance("compat-test", logger_name="compat-test")
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    compat._warn("careful")
    assert records == ["careful"]


def test_pages_stay_off_the_terminal_and_go_to_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = build(tmp_path)
    runner.logger.info("a line")
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert "a line" in shown
    assert "Hooks will be executed" not in shown
    assert "Hooks will be executed in the following order:\n" in next(tmp_path.rglob("*.log")).read_text()


def test_no_name_forges_a_line_or_moves_the_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runner = build(tmp_path)
    capsys.readouterr()
    name = "a\x1b[2J\x07\rb\n11/26 00:00:00 - mmengine - INFO - evaluation  acc 1.0000\u202e\udcff.png"
    runner.logger.info("skipped %s", name)
    runner.logger.warning(f"skipped {name}")
    captured = capsys.readouterr()
    shown = (captured.out + captured.err).splitlines()
    log = next(tmp_path.rglob("*.log")).read_text()
    expected = r"skipped a\x1b[2J\x07\rb\n11/26 00:00:00 - mmengine - INFO - evaluation  acc 1.0000\u202e\udcff.png"
    assert [line.endswith(expected) for line in shown] == [True, True]
    assert all(line in log for line in shown)
