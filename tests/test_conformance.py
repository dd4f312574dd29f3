"""What every head must pass: resume at every step, two ranks, rows whose number changes."""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_heads import HEAD_CONFIGS, config

from odc.apis import build_runner
from odc.data.table import read_table

EVERY_STEP = {"default_hooks.checkpoint": dict(type="CheckpointHook", by_epoch=False, interval=1, max_keep_ckpts=99)}


def train(name: str, work_dir: Path, **options: Any) -> dict[str, Any]:
    """Train and return all that is learnt: the model with memory and labels, and the optimiser's state."""
    runner = build_runner(config(name, str(work_dir), **options))
    runner.train()
    return {"model": runner.model.state_dict(), "optimizer": runner.optim_wrapper.state_dict()}


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Return the places where two nested structures are not bitwise the same."""
    if isinstance(a, torch.Tensor):
        return [] if a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu()) else [path]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f"{path}: {sorted(map(str, a))} / {sorted(map(str, b))}"]
        return [d for key in a for d in differences(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, list):
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}[{i}]")]
    return [] if a == b else [f"{path}: {a} / {b}"]


Whole = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Return a function that trains a head without an interruption, once for all tests, and keeps every checkpoint."""

    @functools.cache
    def trained(name: str, batched: bool | None = None, counts: int = 1) -> tuple[Path, dict[str, Any]]:
        folder = tmp_path_factory.mktemp("whole") / "run"
        path = {"data.batched": batched, "optim_wrapper.accumulative_counts": counts}
        return folder, train(name, folder, **path, **EVERY_STEP)

    return trained


def resume(whole: Whole, tmp_path: Path, name: str, batched: bool | None, counts: int, most: int) -> None:
    """Check that trainings that go on from ``most`` of the checkpoints, evenly spaced, end as the whole one."""
    folder, ended = whole(name, batched, counts)
    checkpoints = sorted(folder.glob("iter_*.pth"), key=lambda p: int(p.stem[5:]))
    assert len(checkpoints) >= 6
    chosen = {round(i) for i in torch.linspace(0, len(checkpoints) - 1, min(most, len(checkpoints))).tolist()}
    path = {"data.batched": batched, "optim_wrapper.accumulative_counts": counts}
    for checkpoint in (checkpoints[i] for i in sorted(chosen)):
        resumed = train(name, tmp_path / checkpoint.stem, resume=True, load_from=str(checkpoint), **path)
        assert not differences(ended, resumed), checkpoint.stem


PATHS = [
    *((name, None, 1) for name in HEAD_CONFIGS),
    ("odc", False, 1),
    *((name, None, 2) for name in ("odc", "moco")),
]


@pytest.mark.parametrize(("name", "batched", "counts"), PATHS)
def test_resume_is_bitwise(whole: Whole, name: str, batched: bool | None, counts: int, tmp_path: Path) -> None:
    resume(whole, tmp_path, name, batched, counts, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batched", "counts"), [*PATHS, ("spice-semi", None, 2)])
def test_resume_at_every_step_is_bitwise(
    whole: Whole, name: str, batched: bool | None, counts: int, tmp_path: Path
) -> None:
    resume(whole, tmp_path, name, batched, counts, 99)


@pytest.mark.parametrize("name", HEAD_CONFIGS)
def test_training_teaches_and_repeats(whole: Whole, name: str, tmp_path: Path) -> None:
    first = whole(name)[1]
    assert not differences(first, train(name, tmp_path / "b"))
    other = train(name, tmp_path / "c", **{"randomness.seed": 4})
    assert differences(first, other), "the seed reaches nothing"


@pytest.mark.parametrize("name", ["dc", "odc"])
def test_workers_change_nothing(whole: Whole, name: str, tmp_path: Path) -> None:
    two = train(name, tmp_path / "2", **{"data.batched": False, "data.num_workers": 2})
    assert not differences(whole(name, False)[1], two)


@pytest.mark.parametrize("name", [name for name in HEAD_CONFIGS if name != "classifier"])
def test_ground_truth_does_not_reach_training(whole: Whole, name: str, tmp_path: Path) -> None:
    permuted = train(name, tmp_path / "b", **{"data.dataset.label_seed": 1})
    assert not differences(whole(name)[1], permuted)


def test_the_number_of_rows_changes(tmp_path: Path) -> None:
    runner = build_runner(config("pairs", str(tmp_path)))
    rows = []
    original = runner.model.labels.replace

    def replace(labels: Any) -> None:
        rows.append(len(labels.index))
        original(labels)

    runner.model.labels.replace = replace
    runner.train()
    assert len(set(rows)) > 1


def test_two_ranks_agree_and_resume(tmp_path: Path) -> None:
    """All heads in one launch, since starting two interpreters is what takes time."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    script = Path(__file__).parent / "two_ranks.py"
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path)],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [p.communicate(timeout=300)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], "\n".join(outputs)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for found in ranks:
        assert found.pop("precision") == {"whole": {"precision": "float32"}}, "a rank computes in bfloat16 alone"
    for found in ranks:
        for name in ("turtle", "propos", "dcboost"):
            assert found.pop(f"{name} as one")["difference"] < 1e-14, name
    alone, again = (rank.pop("table")["alone"] for rank in ranks)
    rows = read_table(tmp_path / "table" / "clusters.csv", "path", "cluster", "confidence")
    assert {row["path"]: row["cluster"] for row in rows} == {path: cluster for path, (cluster, _) in alone.items()}
    for row in rows:
        assert float(row["confidence"]) == pytest.approx(alone[row["path"]][1], abs=1.5 / 47), "but for a tie"
    assert alone == again
    assert len({f"{p:.3f}" for _, p in alone.values()}) > 15, "rows in another order would look the same"
    refused, quiet = (rank.pop("refused") for rank in ranks)
    assert "2 trained parameters, 'backbone.fc.weight' first" in refused["unused"]
    assert "find_unused_parameters=True" in refused["unused"]
    assert "lower the learning rate, now 1e+30" in refused["nan"]
    assert quiet["nan"] == "2", "the other rank stops with the first, and leaves the word to it"
    assert len(ranks[0]) == len(HEAD_CONFIGS) + 2
    for name, whole in ranks[0].items():
        assert whole["whole"] == ranks[1][name]["whole"], f"{name}: the ranks differ"
        assert whole["resumed"] == whole["whole"], f"{name}: the resumed run differs"
        assert whole["resumed"] == ranks[1][name]["resumed"], f"{name}: the resumed ranks differ"
