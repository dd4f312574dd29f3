from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from odc.data.datasets import ArrayDataset, Digits
from odc.data.keys import mix, mix_array
from odc.data.pipeline import Pipeline
from odc.data.views import BatchLoader, ViewDataset, ViewRequest, make_loader
from odc.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # machines of one core

FLOAT = {"type": "ToFloat"}


class Counted(ArrayDataset):
    """Counts how often each image is decoded; image 13 is damaged when asked to."""

    def __init__(self, images: Tensor, damaged: bool = False) -> None:
        super().__init__(images, [f"{i:04d}" for i in range(len(images))])
        self.seen: list[int] = []
        self.damaged = self.strict = damaged

    def image(self, i: int) -> Tensor:
        self.seen.append(i)
        if self.damaged and i == 13:
            raise InputError("cannot decode 0013 (truncated)")
        return super().image(i)


def views() -> dict[str, Pipeline]:
    crop = {"type": "RandomResizedCrop", "size": (8, 8), "scale": (0.2, 1.0)}
    jitter = {"type": "ColorJitter", "brightness": 0.4, "contrast": 0.4}
    return {
        "weak": Pipeline([crop, {"type": "RandomHorizontalFlip"}, FLOAT]),
        "strong": Pipeline([crop, jitter, {"type": "RandomOps"}, {"type": "Cutout", "size": (1, 4)}, FLOAT]),
        "plain": Pipeline([{"type": "Rotate90"}, FLOAT]),
    }


def dataset(n: int = 20, damaged: bool = False) -> ViewDataset:
    generator = torch.Generator().manual_seed(1)
    return ViewDataset(
        Counted(torch.randint(0, 256, (n, 3, 10, 10), dtype=torch.uint8, generator=generator), damaged), views()
    )


def request(i: int, view: str = "weak", key: int | None = None, variant: int = 0, stream: str = "main") -> ViewRequest:
    return ViewRequest(stream, view, (i,), variant, mix(5, i) if key is None else key)


def batches(n: int, size: int = 4, start: int = 0) -> list[list[ViewRequest]]:
    rows = [[(start + b * size + i) % 20 for i in range(size)] for b in range(n)]
    return [[request(i, v, mix(b, i)) for v in ("weak", "strong") for i in ids] for b, ids in enumerate(rows)]


def same(a: dict[Any, Tensor], b: dict[Any, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@given(st.integers(0, 2**64), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4))
def test_mix_array_is_mix(seed: int, parts: list[int]) -> None:
    expected = mix(seed, *parts)
    assert 0 <= expected < 2**63
    got = mix_array(seed, *(np.array([part], dtype=np.int64) for part in parts))
    assert got.dtype == np.int64
    assert got.reshape(-1).tolist() == [expected]
    assert mix_array(seed, *parts).tolist() == expected


def test_mix_by_published_numbers_and_spread() -> None:
    assert mix(0) == 0xE220A8397B1DCDAF >> 1  # SplitMix64's first output from seed 0
    keys = mix_array(1, 2, np.arange(300)[:, None], np.arange(300))
    assert keys.shape == (300, 300)
    assert len(np.unique(keys)) == keys.size
    assert len(np.unique(keys & 0xFFFFFFFF)) > keys.size - 10  # the bits that seed a CPU generator
    assert mix(1, 2, 3) != mix(1, 3, 2)


def test_shapes_order_and_values() -> None:
    data = dataset()
    pairs = [ViewRequest("pairs", "plain", (i, i + 1), i % 4, 0) for i in range(3)]
    out = data.__getitems__([request(7, "plain"), *pairs, request(3, "plain"), request(3)])
    assert {key: tuple(x.shape) for key, x in out.items()} == {
        ("main", "plain"): (2, 1, 3, 10, 10),
        ("pairs", "plain"): (3, 2, 3, 10, 10),
        ("main", "weak"): (1, 1, 3, 8, 8),
    }
    assert torch.equal(out["main", "plain"][0, 0], data.source.image(7) / 255)
    assert torch.equal(out["pairs", "plain"][2, 1], torch.rot90(data.source.image(3) / 255, 2, (1, 2)))


def test_a_row_is_the_same_in_any_batch() -> None:
    data = dataset()
    whole = data.__getitems__([request(i, v) for v in ("weak", "strong") for i in range(12)])
    torch.rand(7)
    order = [5, 11, 0, 3]
    part = data.__getitems__([request(i, v) for i in order for v in ("strong", "weak")])
    for key in whole:
        assert torch.equal(part[key], whole[key][order])


def test_keys_and_positions_give_different_views() -> None:
    data = dataset()
    rows = [ViewRequest("main", "weak", (4, 4), 0, key) for key in (1, 2, 1)]
    out = data.__getitems__(rows)["main", "weak"]
    assert torch.equal(out[0], out[2])
    assert not torch.equal(out[0], out[1])
    assert not torch.equal(out[0, 0], out[0, 1])


@pytest.mark.parametrize("workers", [0, 2])
def test_random_state_of_the_caller_is_left_alone(workers: int) -> None:
    loader = make_loader(dataset(), workers)

    def state() -> tuple[Any, ...]:
        numpy_state = np.random.get_state()  # noqa: NPY002
        return torch.get_rng_state().tolist(), random.getstate(), numpy_state[1].tolist(), torch.get_num_threads()  # type: ignore[index]

    before = state()
    list(loader.run(batches(2)))
    with pytest.raises(InputError):
        list(loader.run([[request(0), request(0, "nope")]]))
    assert state() == before
    loader.close()


def test_the_number_of_threads_does_not_matter() -> None:
    images = torch.randint(0, 256, (2, 3, 300, 300), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    view = Pipeline([{"type": "ColorJitter", "contrast": 0.9}, {"type": "GaussianBlur", "kernel_size": 5}, FLOAT])
    data = ViewDataset(Counted(images), {"weak": view})
    before = torch.get_num_threads()
    try:
        out = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out.append(data.__getitems__([request(0), request(1)]))
            assert torch.get_num_threads() == threads
        assert same(*out)
    finally:
        torch.set_num_threads(before)


def test_an_image_is_decoded_once_a_batch_and_never_shared() -> None:
    data = dataset()
    data.views["greedy"] = Pipeline([lambda image: image.zero_(), FLOAT])
    out = data.__getitems__([request(2, "greedy"), request(2, "plain"), request(2, "greedy"), request(6, "plain")])
    assert isinstance(data.source, Counted)
    assert data.source.seen == [2, 6]
    assert torch.equal(out["main", "plain"][0, 0], data.source.image(2) / 255)


def test_refusals() -> None:
    data = dataset()
    with pytest.raises(InputError, match="stream 'main' asks for view 'weka'; did you mean 'weak'"):
        data.__getitems__([request(0, "weka")])
    with pytest.raises(ValueError, match="differ in their number of samples"):
        data.__getitems__([request(0), ViewRequest("main", "weak", (1, 2), 0, 0)])
    data.views["odd"] = Pipeline([lambda image: image[:, : 3 + int(torch.randint(6, ()))], FLOAT])
    with pytest.raises(InputError, match=r"view 'odd' gives images of different shapes, \(3, \d, 10\) and"):
        data.__getitems__([request(i, "odd") for i in range(20)])


@pytest.fixture(params=[0, 2])
def loader(request: pytest.FixtureRequest) -> Iterator[BatchLoader]:
    loader = BatchLoader(dataset(damaged=True), request.param)
    yield loader
    loader.close()


def alive() -> list[int]:
    return sorted(child.pid or 0 for child in multiprocessing.active_children())


def test_workers_give_the_same_in_order_and_stay() -> None:
    torch.ones(300, 300) @ torch.ones(300, 300)  # threads of the parent exist before the fork
    data, workers = dataset(), make_loader(dataset(), 2)
    expected = [data.__getitems__(batch) for batch in batches(6)]
    before = alive()
    got = list(workers.run(iter(batches(6))))
    assert len(got) == 6
    assert all(map(same, got, expected))
    pids = alive()
    assert len(pids) == len(before) + 2
    assert all(map(same, workers.run(batches(3)), expected))
    assert alive() == pids
    workers.close()
    deadline = time.monotonic() + 20
    while alive() != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert alive() == before
    assert all(map(same, workers.run(batches(2)), expected))  # starts new ones
    workers.close()


def test_an_abandoned_run_does_not_reach_the_next(loader: BatchLoader) -> None:
    data = dataset()
    for batch in loader.run(batches(8)):
        assert batch
        break
    got = list(loader.run(batches(2, size=5)))
    assert all(map(same, got, [data.__getitems__(batch) for batch in batches(2, size=5)]))
    assert len(got) == 2
    first = loader.run(batches(8))
    next(first)
    second = loader.run(batches(1))
    with pytest.raises(RuntimeError, match="ended by a later one"):
        next(first)
    assert len(list(second)) == 1
    assert list(loader.run([])) == []


def test_an_input_error_is_the_same_one_line_and_not_the_end(loader: BatchLoader) -> None:
    for _ in range(2):
        run = loader.run(batches(6))
        assert len(list(itertools.islice(run, 3))) == 3
        with pytest.raises(InputError) as caught:
            next(run)
        assert str(caught.value) == "cannot decode 0013 (truncated)"
    assert len(list(loader.run(batches(3)))) == 3


def test_another_image_stands_in_for_a_damaged_one_and_that_is_known(loader: BatchLoader) -> None:
    source = loader._dataset.source
    source.strict = False
    whole = dataset()
    got = list(loader.run(batches(6)))
    for batch, requests in zip(got, batches(6), strict=True):
        instead = [
            ViewRequest(r.stream, r.view, (14,) if r.ids == (13,) else r.ids, r.variant, r.key) for r in requests
        ]
        assert same(batch, whole.__getitems__(instead))
    assert source.lost == {13: "cannot decode 0013 (truncated)"}


def test_other_errors_end_the_run_not_the_loader(loader: BatchLoader) -> None:
    def broken() -> Iterator[list[ViewRequest]]:
        yield from batches(1)
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        list(loader.run(broken()))
    with pytest.raises(ValueError, match="differ in their number"):
        list(loader.run([[request(0), ViewRequest("main", "weak", (1, 2), 0, 0)]]))
    assert len(list(loader.run(batches(3)))) == 3


def test_a_killed_worker_is_an_error_that_close_mends() -> None:
    before = set(alive())
    loader = make_loader(dataset(), 1)
    run = loader.run(batches(30))
    next(run)
    (child,) = (child for child in multiprocessing.active_children() if child.pid not in before)

    def lose_it() -> None:
        child.kill()
        child.join(10)  # its end may be noticed anywhere from here on
        list(run)

    with pytest.raises(RuntimeError, match="worker"):
        lose_it()
    loader.close()
    assert len(list(loader.run(batches(3)))) == 3
    loader.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_to_the_whole_group_do_not_make_the_parent_fail(number: signal.Signals) -> None:
    before = set(alive())
    loader = make_loader(dataset(), 1)
    assert len(list(loader.run(batches(2)))) == 2
    (child,) = (child for child in multiprocessing.active_children() if child.pid not in before)
    os.kill(child.pid or 0, number)
    if number == signal.SIGTERM:
        child.join(10)
        assert child.exitcode == 0  # anything else is raised in the parent, wherever it is
    else:
        assert len(list(loader.run(batches(2)))) == 2
    loader.close()


def test_negative_workers() -> None:
    with pytest.raises(InputError, match="num_workers"):
        make_loader(dataset(), -1)


def test_no_more_workers_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("odc.data.views.cores", lambda: 2)
    dataset = ViewDataset(Digits(), {"extract": Pipeline([{"type": "ToFloat"}])})
    assert [make_loader(dataset, wanted)._num_workers for wanted in (0, 1, 4)] == [0, 1, 2]  # type: ignore[union-attr]
