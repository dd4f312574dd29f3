"""`make speed` sees what it is there to see: every head, and a bar that is missed; and nothing is as large as N·K."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import odc.heads  # noqa: F401
from odc.clustering.kmeans import load_faiss
from odc.data.sampler import draw_rows
from odc.heads import ODCHead
from odc.memory import LabelStore, sample_memory
from odc.registry import HEADS
from odc.structures import Batch, LocalComm, PseudoLabels, Stream, make_generator

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))  # at the end: nothing there hides a module

from speed import growth, training
from speed.__main__ import main
from speed.rows import ROWS
from speed.timing import Pairs, Spent


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    threads, of_faiss = torch.get_num_threads(), load_faiss().omp_get_max_threads()
    yield
    torch.set_num_threads(threads)
    load_faiss().omp_set_num_threads(of_faiss)


def test_every_head_of_the_package_has_a_row() -> None:
    registered = {name for name, head in HEADS.module_dict.items() if head.__module__.startswith("odc.heads.")}
    assert training.HEADS.keys() == registered, "benchmarks/speed/training.py: HEADS"
    assert {row.name for row in ROWS} >= {f"train-{name.removesuffix('Head')}" for name in registered}
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_a_bar_that_is_missed_is_told_by_the_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Of a small product everything else is a multiple.
    assert main(["--tiny", "--only", "odc-memory", "sampler", "--json", str(tmp_path / "found.json")]) == 1
    out = capsys.readouterr().out
    assert "missed: odc-memory" in out
    rows = {row["name"]: row for row in json.loads((tmp_path / "found.json").read_text())["rows"]}
    assert not rows["odc-memory"]["met"]
    assert rows["odc-memory"]["value"] > rows["odc-memory"]["bar"] == 1.3
    assert rows["sampler"]["met"]
    assert main(["--tiny", "--only", "sampler"]) == 0
    assert "all bars are met" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"'odc-memroy'.*'odc-memory'"):
        main(["--only", "odc-memroy"])


def test_ratios_are_of_pairs_and_are_measured_again_where_they_leave_it_open() -> None:
    pairs = Pairs(units=2)
    for ours, floor in ((3.0, 2.0), (2.0, 2.0), (9.0, 3.0), (4.0, 4.0)):
        pairs.add(Spent(ours, 2 * ours), Spent(floor, ours))
    found = pairs.found()
    assert (found.value, pairs.quartiles) == (1.25, (1.0, 1.5))
    assert found.detail["wall_ratio"] == 2.0
    assert found.detail["ours_ms"] == 1750.0, "the median of 3.5 s, a step of two"
    assert not pairs.settled(5, 9.0), "too few"
    assert pairs.settled(4, 1.25), "met"
    assert not pairs.settled(4, 1.2), "missed by the median, met by a quarter of the pairs"
    assert pairs.settled(2, 1.2), "twice as many as wanted"
    assert pairs.settled(4, 0.9), "missed by nearly all"


@pytest.mark.parametrize(
    "name", ["odc-splits", "spice-self", "turtle", "temi", "two-level", "view-crop-32", "train-ODC"]
)
def test_a_row_is_measured(name: str) -> None:
    row = next(row for row in ROWS if row.name == name)
    found = row.measure(True)
    assert found.value > 0.0
    assert found.told
    assert json.loads(json.dumps(found.detail)) == found.detail


@pytest.mark.slow
@pytest.mark.parametrize("name", [row.name for row in ROWS])
def test_every_row_is_measured(name: str) -> None:
    test_a_row_is_measured(name)


def test_the_plot_of_growth_has_every_point() -> None:
    found: dict[str, Any] = {
        name: {what: [float(i + 1) for i in range(len(sizes))] for what in growth.WHAT}
        for name, sizes in (("N", growth.SAMPLES), ("K", growth.CLUSTERS))
    }
    assert growth.plot(found).count("<circle") == 3 * (len(growth.SAMPLES) + len(growth.CLUSTERS))
    assert "| 10,000 | 100,000 | 1,000,000 | 10,000,000 |" in growth.table(found)
    assert growth.slope((10, 100, 1000), [1.0, 1.0, 100.0]) == pytest.approx(2.0)


class _Largest(TorchDispatchMode):
    """Remembers the largest tensor that anything makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.untyped_storage().nbytes() // x.element_size())
        return out


def test_nothing_is_as_large_as_samples_times_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_memory, "SCORES", 2**16)  # scores at a time
    N, K, D, B = 20_000, 2_000, 4, 32
    rng, comm = make_generator(0, "large"), LocalComm()
    labels = torch.randint(K // 2, (N,), generator=rng)
    labels[:K] = torch.arange(K)  # half of the clusters are too small
    head, store = ODCHead(D, K, batch_size=B, min_cluster=5, centroid_interval=1), LabelStore(0)
    with _Largest() as largest:  # type: ignore[no-untyped-call]  # torch says nothing of it
        head.memory.fill(torch.randn(N, D, generator=rng), labels)
        store.replace(PseudoLabels(torch.arange(N)[:, None], labels[:, None], (K,)))
        ids = torch.randint(N, (B,), generator=rng)
        batch = Batch(ids, ids[:, None], ids, ids[:, None], {"train": torch.randn(B, 1, D, generator=rng)})
        for delta in head.update({"train": batch}, store.view(), rng, comm):
            store.update(delta)
        draw_rows(Stream("train", B, balance=(0,)), store.target, None, rng)
    assert int(store.counts.min()) >= 5
    assert N * D <= largest.numel <= 3 * (N * D + K * (D + 1) + B * K), "N·K would be 40 million"
