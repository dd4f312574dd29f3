"""Features on the disk: written once, whole or not at all, and the same bits whatever interrupted it."""

from __future__ import annotations

import json
import multiprocessing
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from small_heads import Blobs, config
from test_comm import run_on_two_ranks

from odc import files
from odc.apis import build_runner
from odc.data import Features
from odc.data.feature_files import read_folder
from odc.data.views import BatchedLoader
from odc.engine import feature_store
from odc.engine.comm import get_comm
from odc.engine.extract import extract
from odc.engine.feature_store import SHARDS, feature_key, stored_features, write_features
from odc.errors import InputError
from odc.files import alone
from odc.structures import LocalComm

COMM = LocalComm()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_store, "SHARD", 10)


def built(tmp_path: Path, **options: Any) -> tuple[Any, Any]:
    runner = build_runner(config("dc", str(tmp_path / "run"), **options))
    return runner.model, runner.train_loop.data.train


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many batches each run of the loader was asked for."""
    counts: list[int] = []
    run = BatchedLoader.run

    def counted(loader: BatchedLoader, batches: Any) -> Iterator[Any]:
        counts.append(0)
        for batch in run(loader, batches):
            counts[-1] += 1
            yield batch

    monkeypatch.setattr(BatchedLoader, "run", counted)
    return counts


def test_it_holds_what_extract_gives(tmp_path: Path, small: None, asked: list[int]) -> None:
    model, source = built(tmp_path)
    path = stored_features(model, source, tmp_path / "store", COMM, batch_size=4, meta={"from": "here"})
    assert path.parent == tmp_path / "store"
    assert sorted(p.name for p in path.iterdir()) == ["features.npy", "index.json"]
    expected = extract(model, source, COMM, batch_size=4).features.cpu()
    space = read_folder(path)
    assert torch.equal(torch.from_numpy(np.array(space.rows)), expected)
    assert (list(space.paths), space.fingerprint) == (source.dataset.paths, source.dataset.fingerprint)
    assert space.meta == {"from": "here", "key": path.name}
    dataset = Features([str(path)], pictures=dict(type="Blobs"))
    assert torch.equal(dataset.images().flatten(1), expected)
    assert isinstance(space.rows, np.memmap)
    before = len(asked)
    assert stored_features(model, source, tmp_path / "store", COMM, batch_size=16) == path
    assert len(asked) == before, "it was there"


@pytest.mark.parametrize("shards", [0, 1, 3])
def test_an_extraction_goes_on(
    shards: int, tmp_path: Path, small: None, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, source = built(tmp_path)
    whole = write_features(model, source, tmp_path / "whole", COMM, batch_size=4)  # shards of 12 of the 48 images
    assert asked == [12]
    written: list[Path] = []
    real = files.written_whole

    def dies(path: Path) -> Any:
        if len(written) == shards:
            raise KeyboardInterrupt
        written.append(path)
        return real(path)

    monkeypatch.setattr(feature_store, "written_whole", dies)
    with pytest.raises(KeyboardInterrupt):
        write_features(model, source, tmp_path / "part", COMM, batch_size=4)
    monkeypatch.setattr(feature_store, "written_whole", real)
    if shards:  # damage that a crash of the machine leaves
        (tmp_path / "part" / SHARDS / "000000.npy").write_bytes(b"\x93NUMPY")
    part = write_features(model, source, tmp_path / "part", COMM, batch_size=16)  # keeps batches of 4
    assert asked[-1] == 12 - 3 * max(0, shards - 1)
    for name in ("features.npy", "index.json"):
        assert (part / name).read_bytes() == (whole / name).read_bytes()
    assert not (part / SHARDS).exists()


def test_the_key_knows_all_that_decides(tmp_path: Path) -> None:
    model, source = built(tmp_path)
    keys = [feature_key(model, source)]
    assert feature_key(*built(tmp_path)) == keys[0]
    keys += [feature_key(model, source, dtype="float16"), feature_key(model, source, precision="bfloat16")]
    keys += [feature_key(model, source, variant=1)]
    mean = {"data.views.extract": [dict(type="ToFloat"), dict(type="Normalize", mean=[0.4], std=[0.3])]}
    keys += [feature_key(*built(tmp_path, **mean)), feature_key(*built(tmp_path, **{"data.dataset.n": 47}))]
    keys += [feature_key(*built(tmp_path, **{"model.neck.dropout": 0.1}))]
    with torch.no_grad():
        next(model.neck.buffers())[0] += 1
    keys.append(feature_key(model, source))
    assert len(set(keys)) == len(keys) == 8
    with pytest.raises(InputError, match=re.escape("view 'train' cannot be stored: it has RandomCrop")):
        feature_key(model, source, view="train")
    with pytest.raises(InputError, match="not in float64 and float32"):
        feature_key(model, source, precision="float64")


def test_images_that_were_lost_stay_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Blobs.image

    def fails(dataset: Blobs, i: int) -> torch.Tensor:
        if i == 5:
            raise InputError("5 is gone")
        return read(dataset, i)

    monkeypatch.setattr(Blobs, "image", fails)
    store = {"data.feature_store": str(tmp_path / "store"), "data.batched": False}
    frozen = {"model.frozen": ["backbone", "neck"], "data.views.train": config("dc", "w").data.views.extract}
    runner = build_runner(config("dc", str(tmp_path / "run"), **frozen, **store))
    runner.train()
    (path,) = (tmp_path / "store").iterdir()
    assert read_folder(path).lost == {"005": "5 is gone"}
    assert Features([str(path)]).lost == {5: "5 is gone"}
    monkeypatch.setattr(Blobs, "image", read)
    again = build_runner(config("dc", str(tmp_path / "again"), **frozen, **store))
    again.train()
    for evaluation in (runner.val_loop.evaluation, again.val_loop.evaluation):
        assert evaluation.lost.nonzero().tolist() == [[5]]


def test_half_precision(tmp_path: Path) -> None:
    model, source = built(tmp_path)
    exact = read_folder(write_features(model, source, tmp_path / "a", COMM, batch_size=16)).rows
    half = read_folder(write_features(model, source, tmp_path / "b", COMM, batch_size=16, dtype="float16")).rows
    assert np.array_equal(half, np.asarray(exact).astype(np.float16))
    assert half.dtype == np.float16
    low = write_features(model, source, tmp_path / "c", COMM, batch_size=16, precision="bfloat16")
    difference = np.abs(read_folder(low).rows - exact).max()
    assert 0 < difference < 0.02 * np.abs(exact).max()
    with torch.no_grad():
        for module in (model.neck.layers[0], model.neck.layers[4]):
            module.weight *= 1e4
    with pytest.raises(InputError, match="more than float16 holds: keep them in float32"):
        write_features(model, source, tmp_path / "d", COMM, batch_size=16, dtype="float16")


def test_what_is_refused(tmp_path: Path) -> None:
    model, source = built(tmp_path)
    path = write_features(model, source, tmp_path / "a", COMM, batch_size=16)
    with pytest.raises(InputError, match="holds other features"):
        write_features(model, source, path, COMM, batch_size=16, dtype="float16")
    index = json.loads((path / "index.json").read_text())
    (path / "index.json").write_text(json.dumps({**index, "paths": index["paths"][1:]}))
    with pytest.raises(InputError, match=r"is damaged: features.npy has the shape \(48, 8\)"):
        Features([str(path)])
    (path / "index.json").write_text(json.dumps(index))
    content = bytearray((path / "features.npy").read_bytes())
    content[-3] ^= 1
    (path / "features.npy").write_bytes(content)
    with pytest.raises(InputError, match="its vectors are not those written"):
        Features([str(path)])
    (path / "index.json").write_text("[]")
    with pytest.raises(InputError, match="is no index of features"):
        Features([str(path)])
    with torch.no_grad():
        model.backbone.layers[0].weight[0] = torch.nan
    with pytest.raises(InputError, match="features of 48 of 48 images are not finite"):
        write_features(model, source, tmp_path / "b", COMM, batch_size=16)


def _share(rank: int, store: Path, pipe: Any) -> None:
    torch.set_num_threads(1)
    feature_store.SHARD = 10
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    group = get_comm()
    model, source = built(store.parent / str(rank))
    path = write_features(model, source, store.parent / "shared", group, batch_size=4)
    found = [len(read_folder(path).paths), model.training]
    if rank == 1:  # one alone fails, and both end
        with torch.no_grad():
            model.backbone.layers[0].weight[0] = torch.nan
    try:
        write_features(model, source, store.parent / "bad", group, batch_size=4)
    except InputError as error:
        found.append(str(error))
    pipe.send((rank, found))
    pipe.send((rank, "done"))
    dist.destroy_process_group()


def test_two_ranks_share_the_work(tmp_path: Path, small: None) -> None:
    ranks = dict(run_on_two_ranks(_share, tmp_path / "store"))
    assert ranks[0][:2] == ranks[1][:2] == [48, True]
    assert ranks[0][2] == "another process could not extract its features"
    assert "of 48 images are not finite" in ranks[1][2]
    alone = write_features(*built(tmp_path), tmp_path / "alone", COMM, batch_size=4)
    for name in ("features.npy", "index.json"):
        assert (tmp_path / "shared" / name).read_bytes() == (alone / name).read_bytes()


def _hold(path: Path, held: Any) -> None:
    with alone(path):
        held.set()
        time.sleep(1.5)


def test_two_at_once(tmp_path: Path) -> None:
    """The second one waits for the first."""
    model, source = built(tmp_path)
    context = multiprocessing.get_context("fork")
    held = context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "a", held))
    other.start()
    assert held.wait(30)
    start = time.monotonic()
    write_features(model, source, tmp_path / "a", COMM, batch_size=16)
    assert time.monotonic() - start > 0.5
    other.join()


def test_a_run_reads_what_another_has_stored(tmp_path: Path, asked: list[int]) -> None:
    frozen = {"model.frozen": ["backbone", "neck"], "data.views.train": config("dc", "w").data.views.extract}
    states: list[dict[str, torch.Tensor]] = []
    for options in (
        {},
        {"data.feature_store": str(tmp_path / "store")},
        {"data.feature_store": str(tmp_path / "store")},
    ):
        runner = build_runner(config("dc", str(tmp_path / f"run{len(states)}"), **frozen, **options))
        runner.train()
        states.append(runner.model.state_dict())
    assert asked == [1, 1], "the third run encodes nothing"
    for state in states[1:]:
        for name, tensor in states[0].items():
            assert torch.equal(state[name], tensor), name
