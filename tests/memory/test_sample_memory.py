"""The memory against a slow version of the paper's equations, and small cases by hand."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from waiting import Waits

from odc.errors import DamagedError, InputError
from odc.memory import LabelStore, SampleBuffer, SampleMemory
from odc.structures import LabelDelta, PseudoLabels, make_generator

Array = npt.NDArray[np.float64]


class Memory(SampleMemory):
    """A memory with the store of its labels: what the loop and ODC's head do with them."""

    def __init__(self, dim: int, num_clusters: int, **options: Any) -> None:
        super().__init__(dim, num_clusters, **options)
        self.store = [LabelStore(0)]  # in a list, so that it is no part of the state

    @property
    def labels(self) -> Tensor:
        return self.store[0].target[:, 0]

    @property
    def count(self) -> Tensor:
        return self.store[0].counts

    def start(self, features: Tensor, labels: Tensor) -> None:
        """Fill memory and store."""
        self.fill(features, labels)
        index = torch.arange(len(labels))[:, None]
        self.store[0].replace(PseudoLabels(index, labels[:, None], (len(self.sum),)))

    def give(self, rows: Tensor, stored: Tensor, new: Tensor) -> None:
        """Commit a batch."""
        self.commit(rows, stored, new, self.store[0].view())
        self.store[0].update(LabelDelta(rows, new[:, None]))

    def move(self, index: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Learn from a batch; return its rows and their labels."""
        rows, stored = self.momentum_step(index, features)
        new = self.assign(stored)
        self.give(rows, stored, new)
        return rows, new

    def recentre(self) -> None:
        self.update_centroids(self.count)

    def split(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Fill the small clusters; return the rows that moved and their labels."""
        self.recentre()
        rows, new = self.plan_split(self.store[0].view(), generator)
        self.relabel(rows, new, self.store[0].view())
        self.store[0].update(LabelDelta(rows, new[:, None]))
        self.recentre()
        return rows, new


class Oracle:
    """ODC's memory with plain loops, in float64, every mean from its members. Features are those stored by ours."""

    def __init__(self, memory: Memory) -> None:
        self.memory, self.t = memory, memory.least(len(memory.labels))
        self.bank: Array = memory.bank.rows.double().numpy().copy()
        self.labels: list[int] = memory.labels.tolist()
        self.K = len(memory.sum)
        self.centroids = np.zeros((self.K, self.bank.shape[1]))
        self.ties = 0
        self.recompute()

    def members(self, cluster: int) -> list[int]:
        return [i for i, label in enumerate(self.labels) if label == cluster]

    def counts(self) -> list[int]:
        return [len(self.members(c)) for c in range(self.K)]

    def recompute(self) -> None:
        for c in range(self.K):
            if self.members(c):
                self.centroids[c] = self.bank[self.members(c)].mean(axis=0)

    def score(self, feature: Array, c: int) -> float:
        dot = float(feature @ self.centroids[c])
        return dot if self.memory.metric == "dot" else dot - float(self.centroids[c] @ self.centroids[c]) / 2

    def nearest(self, feature: Array, clusters: list[int], ours: int) -> int:
        scores = {c: self.score(feature, c) for c in clusters}
        best = max(scores, key=lambda c: scores[c])
        if best != ours and scores[best] - scores[ours] < 1e-6:
            self.ties += 1  # nearer to each other than float32 can tell
            return ours
        return best

    def update(self, index: list[int], features: Array, ours: dict[int, int]) -> None:
        m = self.memory.momentum
        last = {i: f for i, f in zip(index, features, strict=True) if np.isfinite(f).all() and np.linalg.norm(f) > 0}
        assert sorted(last) == sorted(ours)
        for i, f in last.items():
            blended = m * f / np.linalg.norm(f) + (1 - m) * self.bank[i]
            if self.memory.renormalize:
                blended /= np.linalg.norm(blended)
            stored = self.memory.bank.rows[i].double().numpy()
            np.testing.assert_allclose(stored, blended, rtol=2**-10, atol=1e-6)  # of half precision
            self.bank[i] = stored
            self.labels[i] = self.nearest(stored, list(range(self.K)), ours[i])

    def split(self, generator: torch.Generator, ours: list[int]) -> int:
        self.recompute()
        small = [c for c in range(self.K) if len(self.members(c)) < self.t]
        normal = [c for c in range(self.K) if c not in small]
        # Whether ours chose between equals is only visible where the sample was not moved on: allow none.
        homeless = [i for c in small for i in self.members(c)]
        for i in homeless:
            self.labels[i] = self.nearest(self.bank[i], normal, normal[0])
        for c in small:
            sizes = self.counts()
            donor = sizes.index(max(sizes))
            assert sizes[donor] >= 2 * self.t
            rows = self.members(donor)
            half = two_means(self.bank[rows], self.t)
            if int(torch.randint(2, (), generator=generator)):
                half = [not h for h in half]
            for i, h in zip(rows, half, strict=True):
                if h:
                    self.labels[i] = c
        self.recompute()
        assert self.labels == ours
        return len(small)


def two_means(x: Array, least: int) -> list[bool]:
    centred = x - x.mean(axis=0)
    direction = max(centred, key=lambda row: float(row @ row))
    for _ in range(8):
        direction = centred.T @ (centred @ direction)
        direction = direction / np.linalg.norm(direction)
    along = [float(row @ direction) for row in centred]
    half = [a > 0 for a in along]
    for _ in range(10):
        if all(half) or not any(half):
            break
        a = np.mean([row for row, h in zip(x, half, strict=True) if h], axis=0)
        b = np.mean([row for row, h in zip(x, half, strict=True) if not h], axis=0)
        half = [bool(((row - a) ** 2).sum() < ((row - b) ** 2).sum()) for row in x]
    if min(sum(half), len(x) - sum(half)) < least:
        upper = set(sorted(range(len(x)), key=lambda i: along[i])[len(x) // 2 :])
        half = [i in upper for i in range(len(x))]
    return half


def random_memory(sizes: list[int], dim: int = 4, seed: int = 0, **kwargs: Any) -> Memory:
    generator = make_generator(seed, "memory")
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    centres = torch.randn(len(sizes), dim, generator=generator)
    features = centres[labels] + 0.3 * torch.randn(len(labels), dim, generator=generator)
    memory = Memory(dim, len(sizes), **kwargs)
    memory.start(features, labels)
    return memory


def assert_exact(memory: Memory) -> None:
    """Sums, counts and centroids are those of the bank and the labels."""
    K = len(memory.sum)
    assert memory.count.tolist() == torch.bincount(memory.labels, minlength=K).tolist()
    for c in range(K):
        rows = memory.bank.rows[memory.labels == c].double()
        torch.testing.assert_close(memory.sum[c].double(), rows.sum(dim=0), rtol=0, atol=1e-4)
        if len(rows):
            torch.testing.assert_close(memory.centroids[c].double(), rows.mean(dim=0), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("assign", "renormalize"), [("l2", False), ("dot", True)])
def test_a_thousand_iterations_follow_the_equations(assign: str, renormalize: bool) -> None:
    N, D, K, B, t = 200, 6, 5, 16, 25
    generator = make_generator(1, "oracle")
    features = torch.randn(N, D, generator=generator)
    memory = Memory(D, K, min_cluster=t, assign=assign, renormalize=renormalize)
    memory.start(features, torch.arange(N) % K)
    oracle = Oracle(memory)
    splits = 0
    for step in range(1000):
        index = torch.randint(N, (B,), generator=generator)
        # A drifting mean makes clusters grow and starve.
        drift = torch.tensor([np.cos(step / 60), np.sin(step / 60), 0, 0, 0, 0], dtype=torch.float32)
        batch = 0.7 * features[index] + 1.5 * drift + 0.5 * torch.randn(B, D, generator=generator)
        if step % 50 == 7:
            batch[3], batch[5] = torch.nan, 0
        ids, labels = memory.move(index, batch)
        oracle.update(index.tolist(), batch.double().numpy(), dict(zip(ids.tolist(), labels.tolist(), strict=True)))
        assert memory.labels.tolist() == oracle.labels
        if step % 10 == 9:
            memory.recentre()
            oracle_generator = torch.Generator().set_state(generator.get_state())
            memory.split(generator)
            splits += oracle.split(oracle_generator, memory.labels.tolist())
            assert torch.equal(generator.get_state(), oracle_generator.get_state())
            assert min(memory.count.tolist()) >= t
        assert memory.count.tolist() == oracle.counts()
        np.testing.assert_allclose(memory.centroids.numpy(), oracle.centroids, atol=1e-5)
    assert splits >= 20
    assert oracle.ties <= 3
    assert int(memory.skipped) == 40
    assert_exact(memory)


def test_one_update_by_hand() -> None:
    memory = Memory(2, 2, min_cluster=1)
    memory.start(torch.tensor([[2.0, 0], [0, 3], [1, 0], [0, 1]]), torch.tensor([0, 1, 0, 1]))
    assert memory.bank.rows.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]
    assert memory.centroids.tolist() == [[1, 0], [0, 1]]
    assert memory.bias.tolist() == [-0.5, -0.5]

    ids, labels = memory.move(torch.tensor([0]), torch.tensor([[-0.5, 0.0]]))  # (-1, 0) / 2 + (1, 0) / 2 = (0, 0)
    assert (ids.tolist(), labels.tolist()) == ([0], [0])
    ids, labels = memory.move(torch.tensor([0]), torch.tensor([[0.0, 8.0]]))  # (0, 1/2): nearer to (0, 1)
    assert (ids.tolist(), labels.tolist()) == ([0], [1])
    assert memory.sum.tolist() == [[1, 0], [0, 2.5]]
    assert memory.count.tolist() == [1, 3]
    assert memory.dirty.tolist() == [True, True]
    assert memory.centroids.tolist() == [[1, 0], [0, 1]]
    memory.recentre()
    torch.testing.assert_close(memory.centroids, torch.tensor([[1, 0], [0, 2.5 / 3]]))
    assert memory.dirty.tolist() == [False, False]


def test_clusters_left_and_joined_change_and_no_others() -> None:
    memory = Memory(2, 3, min_cluster=1)
    memory.start(torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, 1]]), torch.tensor([0, 0, 1, 2]))
    memory.give(torch.tensor([1]), memory.bank.rows[[1]], torch.tensor([2]))
    assert memory.dirty.tolist() == [True, False, True]
    memory.centroids[1] = 7.0
    memory.recentre()
    assert memory.centroids.tolist() == [[1, 0], [7, 7], [0, 1]]


def test_rounding_left_in_an_emptied_cluster_is_dropped() -> None:
    memory = random_memory([40, 1], min_cluster=10)
    memory.sum[1] += 0.25
    memory.split(make_generator(0))
    assert_exact(memory)


def test_l2_and_dot_differ_for_centroids_of_different_length() -> None:
    labels: dict[str, int] = {}
    for assign in ("l2", "dot"):
        memory = Memory(2, 2, min_cluster=1, assign=assign)
        # Cluster 0: the mean of two opposite-ish vectors is short, (0.6, 0); cluster 1 is (0.8, 0.6), longer.
        memory.start(torch.tensor([[0.6, 0.8], [0.6, -0.8], [0.8, 0.6]]), torch.tensor([0, 0, 1]))
        labels[assign] = int(memory.assign(torch.tensor([[0.6, 0.05]]).half()))
    assert labels == {"l2": 0, "dot": 1}


def test_momentum_and_renormalize() -> None:
    def stored(**kwargs: Any) -> list[float]:
        memory = Memory(2, 1, min_cluster=1, dtype=torch.float32, **kwargs)
        memory.start(torch.tensor([[1.0, 0]]), torch.tensor([0]))
        memory.move(torch.tensor([0]), torch.tensor([[0.0, 2]]))
        return [round(v, 4) for v in memory.bank.rows[0].tolist()]

    assert stored() == [0.5, 0.5]
    assert stored(momentum=0.75) == [0.25, 0.75]
    assert stored(renormalize=True) == [0.7071, 0.7071]


def test_the_last_valid_row_of_an_id_counts_and_bad_rows_are_skipped() -> None:
    memory = random_memory([3, 3], dim=2, min_cluster=1, momentum=1.0)
    before = memory.bank.rows[4].clone()
    rows = torch.tensor([[1.0, 0], [torch.inf, 0], [0, 1], [0, 0], [torch.nan, 1], [1e30, 1e30]])
    ids, _ = memory.move(torch.tensor([2, 4, 2, 4, 2, 4]), rows)
    assert ids.tolist() == [2]
    assert memory.bank.rows[2].tolist() == [0, 1]
    assert torch.equal(memory.bank.rows[4], before)
    assert int(memory.skipped) == 4
    ids, labels = memory.move(torch.tensor([1]), torch.zeros(1, 2))
    assert ids.numel() == labels.numel() == 0


def test_update_is_momentum_step_assign_commit_and_parts_can_be_assigned_apart() -> None:
    whole = random_memory([30, 30], min_cluster=5)
    parts = copy.deepcopy(whole)
    generator = make_generator(0)
    index, features = torch.randint(60, (24,), generator=generator), torch.randn(24, 4, generator=generator)
    whole.move(index, features)
    ids, stored = parts.momentum_step(index, features)
    parts.give(ids, stored, torch.cat([parts.assign(stored[:7]), parts.assign(stored[7:])]))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name


def test_state_dict_continues_bitwise() -> None:
    memory = random_memory([30, 30], min_cluster=5)
    generator = make_generator(0)
    batches = [(torch.randint(60, (8,), generator=generator), torch.randn(8, 4, generator=generator)) for _ in range(9)]
    for index, features in batches[:4]:
        memory.move(index, features)
    other = Memory(4, 2, min_cluster=5)
    other.load_state_dict(memory.state_dict())
    other.store = copy.deepcopy(memory.store)
    for each in (memory, other):
        for index, features in batches[4:]:
            each.move(index, features)
        each.recentre()
        each.split(make_generator(1))
    for name, value in memory.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_only_the_number_of_samples_may_differ_on_loading() -> None:
    state = random_memory([4, 4], min_cluster=1).state_dict()
    for other in (Memory(5, 2, min_cluster=1), Memory(4, 3, min_cluster=1)):
        with pytest.raises(RuntimeError, match="size mismatch"):
            other.load_state_dict(state)
    filled = random_memory([9, 9], min_cluster=1)
    filled.load_state_dict(state)
    assert filled.bank.rows.shape == (8, 4)


def test_fixed_shapes_do_what_sizes_of_the_data_do() -> None:
    """What a GPU does, on the CPU: rows that come again, and features that are zero or not finite."""
    states = []
    for watching in (False, True):
        generator, waits = make_generator(3), Waits()
        memory, labels = SampleMemory(4, 3, min_cluster=1), LabelStore(24)
        memory.fill(torch.randn(24, 4, generator=generator), torch.arange(24) % 3)
        labels.replace(PseudoLabels(torch.arange(24)[:, None], torch.arange(24)[:, None] % 3, (3,)))
        for step in range(4):
            row, z = torch.randint(24, (10,), generator=generator), torch.randn(10, 4, generator=generator)
            z[0], z[4, 1], z[7] = 0, torch.nan, 0
            if step == 3:
                z[:] = 0  # nothing is valid
            with waits.watching() if watching else nullcontext():
                rows, stored = memory.momentum_step(row, z)
                assert len(rows) == (10 if watching else len(row[z.sum(1).abs() > 0].unique()))
                new = memory.assign(stored)
                if step == 3 and watching:
                    new = labels.target[rows, 0]  # the row that stands for none may go to the nearest cluster
                memory.commit(rows, stored, new, labels.view())
                labels.update(LabelDelta(rows, new[:, None]))
                memory.update_centroids(labels.counts)
        assert not waits.found
        states.append({**memory.state_dict(), **labels.state_dict()})
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, msg=name)


def test_an_emptied_cluster_keeps_its_centroid_and_one_never_filled_attracts_nothing() -> None:
    memory = Memory(2, 3, min_cluster=1)
    memory.start(torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]]), torch.tensor([0, 0, 2, 2]))
    assert memory.assign(torch.tensor([[0.01, 0], [-0.01, 0]]).half()).tolist() == [0, 2]  # (0, 0) would be nearer
    memory.give(torch.tensor([0, 1]), memory.bank.rows[:2].clone(), torch.tensor([2, 2]))
    memory.recentre()
    assert memory.centroids[0].tolist() == [1, 0]
    assert memory.assign(torch.tensor([[1.0, 0]]).half()).tolist() == [0]


def test_split_by_hand() -> None:
    # Cluster 1 has one sample, at (0.96, 0.28): the nearest normal centroid is that of cluster 0, which then falls
    # apart into the samples near (1, 0) and those near (0, 1).
    east, north, west = [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]
    features = torch.tensor([east] * 4 + [north] * 4 + [[0.96, 0.28]] + [west] * 3)
    labels = torch.tensor([0] * 8 + [1] + [2] * 3)
    outcomes = set()
    for seed in range(10):
        memory = Memory(2, 3, min_cluster=2)
        memory.start(features, labels)
        ids, new = memory.split(torch.Generator().manual_seed(seed))
        assert memory.labels[ids].tolist() == new.tolist()
        assert ids.tolist() == sorted(ids.tolist())
        assert sorted(memory.count.tolist()) == [3, 4, 5]
        assert memory.labels[9:].tolist() == [2] * 3
        assert len(set(memory.labels[[0, 1, 2, 3, 8]].tolist())) == 1
        assert_exact(memory)
        outcomes.add(int(memory.labels[0]))
    assert outcomes == {0, 1}  # the half is chosen at random


@pytest.mark.parametrize(("least", "N", "expected"), [(0.16, 1_281_167, 20), (0.5, 40, 2), (0.01, 40, 1), (7, 70, 7)])
def test_the_least_size_as_a_share_of_the_mean_size(least: float, N: int, expected: int) -> None:
    memory = Memory(2, 10_000 if N > 1000 else 10, min_cluster=least)
    assert memory.least(N) == expected
    memory.check(N)


def test_a_cluster_below_its_share_is_split() -> None:
    memory = random_memory([18, 2], min_cluster=0.25)  # of a mean size of 10: 2.5, so 2 are enough
    assert not len(memory.split(make_generator(0))[0])
    memory = random_memory([19, 1], min_cluster=0.25)
    memory.split(make_generator(0))
    assert int(memory.count.min()) >= 2


@pytest.mark.parametrize("least", [0, 0.0, 1.0, 2.5, -1])
def test_a_least_size_that_is_none(least: float) -> None:
    with pytest.raises(InputError, match="min_cluster"):
        Memory(2, 2, min_cluster=least)


def test_nothing_small_moves_nothing_and_draws_nothing() -> None:
    memory = random_memory([5, 5], min_cluster=5)
    before, generator = copy.deepcopy(memory.state_dict()), make_generator(0)
    state = generator.get_state()
    ids, labels = memory.split(generator)
    assert ids.numel() == labels.numel() == 0
    assert torch.equal(generator.get_state(), state)
    for name, value in memory.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("sizes", "t"),
    [
        ([30, 30, 0], 20),  # nobody has 2t: two givers
        ([20, 40, 0], 20),  # K·t = N exactly
        ([60, 0, 0], 20),  # K·t = N: one giver of 2t + t, whose halves cannot both be split
        ([0, 39, 39, 39, 3], 20),
        ([5, 0, 0, 0], 1),
        ([1, 1, 8, 0, 2], 2),
        ([7], 7),
        ([25, 25, 25, 25, 0, 0], 16),
        ([1000, 1, 2, 3, 4, 5, 6, 7], 100),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_no_cluster_stays_small(sizes: list[int], t: int, seed: int) -> None:
    memory = random_memory(sizes, min_cluster=t, seed=seed)
    memory.split(make_generator(seed))
    assert min(memory.count.tolist()) >= t
    assert int(memory.count.sum()) == sum(sizes)
    assert_exact(memory)


def test_identical_features_are_split_at_the_median() -> None:
    memory = Memory(3, 2, min_cluster=20)
    memory.start(torch.ones(40, 3), torch.zeros(40, dtype=torch.int64))
    memory.split(make_generator(0))
    assert memory.count.tolist() == [20, 20]
    assert_exact(memory)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    t=st.integers(1, 20),
    seed=st.integers(0, 1000),
    levels=st.integers(1, 4),
)
def test_any_small_clusters_are_filled(sizes: list[int], t: int, seed: int, levels: int) -> None:
    N, K = sum(sizes), len(sizes)
    t = min(t, N // K)
    if t < 1:
        return
    labels = torch.repeat_interleave(torch.arange(K), torch.tensor(sizes))
    # Few levels: many samples are the same.
    features = torch.randint(-levels, levels + 1, (N, 3), generator=make_generator(seed)).float()
    memory = Memory(3, K, min_cluster=t)
    memory.start(features, labels)
    ids, _ = memory.split(make_generator(seed, "split"))
    assert min(memory.count.tolist()) >= t
    assert int(memory.count.sum()) == N
    assert len(set(ids.tolist())) == len(ids)
    assert_exact(memory)


def test_resync_removes_drift_only() -> None:
    memory = random_memory([30, 30], min_cluster=5)
    exact, centroids = memory.sum.clone(), memory.centroids.clone()
    memory.sum += 0.25
    memory.resync(memory.store[0].target[:, 0])
    torch.testing.assert_close(memory.sum, exact)
    assert torch.equal(memory.centroids, centroids)


def test_large_assignments_are_cut_into_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = random_memory([30, 30, 30], min_cluster=5)
    whole = memory.assign(memory.bank.rows)
    monkeypatch.setattr("odc.memory.sample_memory.SCORES", 12)
    assert torch.equal(memory.assign(memory.bank.rows), whole)


def test_zero_rows_at_the_start_are_stored_and_counted() -> None:
    memory = Memory(2, 1, min_cluster=1)
    memory.start(torch.tensor([[3.0, 4], [0, 0], [0, 2]]), torch.zeros(3, dtype=torch.int64))
    assert memory.bank.rows[1].tolist() == [0, 0]
    assert int(memory.skipped) == 1


def test_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    memory = random_memory([60, 0, 0], min_cluster=20)
    memory.move(torch.tensor([1]), torch.ones(1, 4))
    memory.split(make_generator(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_errors_name_the_numbers() -> None:
    with pytest.raises(InputError, match=r"10 clusters of at least 20 samples need 200 samples, but there are 150"):
        Memory(4, 10).check(150)
    with pytest.raises(InputError, match="40 samples, but there are 4"):
        Memory(2, 2).fill(torch.ones(4, 2), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(InputError, match="momentum"):
        Memory(4, 1, min_cluster=1, momentum=0)
    with pytest.raises(InputError, match="at least 1"):
        Memory(4, 1, min_cluster=0)
    with pytest.raises(InputError, match="cosine"):
        Memory(4, 1, min_cluster=1, assign="cosine")
    memory = Memory(2, 2, min_cluster=1)
    with pytest.raises(InputError, match="fill it"):
        memory.move(torch.tensor([1]), torch.ones(1, 2))
    good = F.normalize(torch.ones(4, 2))
    labels: Tensor = torch.tensor([0, 1, 0, 1])
    with pytest.raises(InputError, match=r"\(3, 2\) and \(4,\)"):
        memory.start(good[:3], labels)
    with pytest.raises(InputError, match="from 0 to 2, but the clusters are 0 to 1"):
        memory.start(good, labels + torch.tensor([0, 0, 0, 1]))
    with pytest.raises(InputError, match="1 of the features"):
        memory.start(good.index_fill(0, torch.tensor([2]), torch.nan), labels)
    memory.start(good, labels)
    with pytest.raises(InputError, match="from 1 to 4, but the memory holds 0 to 3"):
        memory.move(torch.tensor([4, 1]), torch.ones(2, 2))
    with pytest.raises(InputError, match="features"):
        memory.move(torch.tensor([1]), torch.ones(1, 3))


def test_a_buffer_sizes_itself() -> None:
    buffer = SampleBuffer(2, 3, dtype=torch.float16)
    assert buffer.rows.shape == (0, 2, 3)
    rows = buffer.sized(4)
    rows[1] = 7
    assert buffer.sized(4) is buffer.rows is rows
    assert buffer.rows[1].unique().tolist() == [7]
    assert not buffer.sized(5).any()
    other = SampleBuffer(2, 3, dtype=torch.float16)
    other.load_state_dict({"rows": rows})
    assert torch.equal(other.rows, rows)
    with pytest.raises(RuntimeError, match="size mismatch"):
        SampleBuffer(3, dtype=torch.float16).load_state_dict({"rows": rows})
    with pytest.raises(DamagedError, match="not finite"):
        other.load_state_dict({"rows": rows.index_fill(0, torch.tensor([2]), torch.nan)})
