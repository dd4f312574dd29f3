"""Checkpoints: read safely, loaded strictly, written whole, found again."""

from __future__ import annotations

import copy
import datetime
import io
import os
import pickle
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.fileio import get_file_backend
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn
from toy_runner import Toy, build, one_line, save, truncate

from odc.checkpoints import find_resume, load_plain, load_state, mark_last, to_plain, write_tensors
from odc.errors import InputError


class Trap:
    """Code in a pickle: creates a file when it is unpickled unsafely."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_weights_of_one_layer_in_two_places(name: str, tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    state = nn.ModuleDict({"first": layer, "again": layer}).state_dict() | {"row": layer.weight.detach()[1]}
    write_tensors(tmp_path / name, state)
    found = load_plain(tmp_path / name)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


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
    for scheme in CheckpointLoader._schemes.keys() - {"", "http://", "https://", "torchvision://"} | {"s3://"}:
        with pytest.raises(InputError, match="download it first"):
            CheckpointLoader.load_checkpoint(f"{scheme.removesuffix('://')}://bucket/x.pth")
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
