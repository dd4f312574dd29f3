"""DeeperCluster on one, two and four ranks: the same clusters to the last bit, and the gradients of the equation."""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from typing import Any

import pytest
import torch
from deeper_ranks import cases, cluster, head_and_batch, main, refreshed, slow_loss

from odc.structures import LocalComm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")
Results = dict[tuple[int, int], dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("ranks")
    # Forked: four interpreters that import everything would take most of the time. What CUDA has
    # looked at cannot be forked. The ranks run on one thread.
    context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    processes = [context.Process(target=main, args=(folder, rank)) for rank in range(4)]
    with warnings.catch_warnings():
        # Python >= 3.12 warns of any fork beside other threads
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        for process in processes:
            process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0] * 4
    return {(w, r): torch.load(folder / f"{w}-{r}.pt", weights_only=True) for w in (2, 4) for r in range(w)}


@pytest.mark.parametrize("name", cases())
def test_the_number_of_ranks_changes_no_bit(name: str, results: Results) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        one = cluster(name, LocalComm())
    finally:
        torch.set_num_threads(threads)
    assert int(one["sub_sizes"].sum()) == len(cases()[name][0])
    for where, result in results.items():
        for what, wanted in one.items():
            assert torch.equal(result[name][what], wanted), f"{what} on rank {where[1]} of {where[0]}"


def test_refresh_is_the_same_on_all_ranks_and_gives_the_same_labels_on_any_number(results: Results) -> None:
    one = refreshed(LocalComm())
    for (world, rank), result in results.items():
        for what, wanted in results[world, 0]["refresh"].items():
            if not what.startswith("classifier"):  # what a refresh draws anew, the loop broadcasts
                assert torch.equal(result["refresh"][what], wanted), f"{what} on rank {rank} of {world}"
        for what in ("index", "target", "variant", "num_sub"):
            assert torch.equal(result["refresh"][what], one[what]), what
        # Whitening sums in the order of the ranks: float64, so the last bit of a float32 may differ.
        torch.testing.assert_close(result["refresh"]["centroids"], one["centroids"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("world", [2, 4])
def test_gradients_over_ranks_are_those_of_the_whole_batch(world: int, results: Results) -> None:
    head, batch = head_and_batch()
    slow_loss(head, batch).backward()
    for name, parameter in head.named_parameters():
        for rank in range(world):
            got = results[world, rank]["gradients"][name]
            torch.testing.assert_close(got, parameter.grad, atol=1e-6, rtol=1e-5)
