"""What is spread over ranks is whole in a checkpoint: any number of them goes on with it, and comes to the same."""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from shard_ranks import RESUMED_AT, TRAININGS, WORLDS, main
from torch import Tensor

from odc.checkpoints import load_plain

pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="forks"), pytest.mark.slow]


def run(folder: Path, resumes: bool) -> None:
    # Forked, as in test_deeper_ranks.py.
    context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    ranks = [(folder, world, rank, resumes) for world in WORLDS for rank in range(world)]
    processes = [context.Process(target=main, args=args) for args in ranks]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        for process in processes:
            process.start()
    for process in processes:
        process.join(timeout=300)
    assert [process.exitcode for process in processes] == [0] * len(processes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    run(folder, resumes=False)
    run(folder, resumes=True)
    return folder


def learnt(folder: Path, step: int) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint by their addresses: model, optimiser, gradients not yet taken."""
    found: dict[str, Tensor] = {}

    def add(value: Any, address: str) -> None:
        if isinstance(value, dict):
            for key, below in value.items():
                add(below, f"{address}.{key}")
        elif isinstance(value, Tensor):
            found[address] = value

    checkpoint = load_plain(folder / f"iter_{step}.pth")
    for part in ("state_dict", "optimizer", "loop"):
        add(checkpoint[part], part)
    return found


@pytest.mark.parametrize("name", TRAININGS)
def test_any_number_of_ranks_learns_the_same_and_resumes_what_another_began(name: str, folder: Path) -> None:
    steps = 6
    one = {step: learnt(folder / name / "1", step) for step in (RESUMED_AT, steps)}
    runs = [(str(world), step) for world in WORLDS[1:] for step in (RESUMED_AT, steps)]
    runs += [(f"{world}-from-{other}", steps) for world in WORLDS for other in WORLDS if other != world]
    for run, step in runs:
        got = learnt(folder / name / run, step)
        assert got.keys() == one[step].keys(), run
        for what, value in got.items():
            torch.testing.assert_close(value, one[step][what], atol=1e-5, rtol=1e-4, msg=f"{what} of {run}")
