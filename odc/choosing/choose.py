"""A number of clusters from five criteria, which are compared with what data without clusters would give.

Criteria of clusterings rise or fall with K on any data: two clusters along the longest axis are always compact and
always found again. So silhouette, Davies-Bouldin index and stability count as far as they exceed those of Gaussian data
with the same mean and covariance (as the gap statistic does for inertia, Tibshirani et al., JRSS-B 2001). All are taken
in a reduced space, where silhouettes follow the quality of clusters best (Lowe et al., arXiv:2406.02465).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.decomposition import PCA

from odc.choosing.criteria import FloatArray, Labels, coding_length, curves, fitted, hdbscan_counts
from odc.clustering.kmeans import finite_array
from odc.clustering.knn import unit_rows
from odc.errors import InputError
from odc.structures import make_generator

SAMPLES = 3_000  # looked at, of however many
DIMENSIONS = 16  # of the reduced space
_FEWEST = 30  # samples that can say anything
_PAIRS, _NULL_PAIRS = 5, 3  # of halves, for the stability
_NULLS = 2  # data sets without clusters
_NULL_KS = 10  # numbers of clusters that these are looked at with; between them, a line over log K
_GATE = 0.15  # agreement of halves beyond that of structureless data: below, there is nothing to count
_COVERED = 0.5  # share of the samples that HDBSCAN must place for its count to say anything
_NEARLY = 0.9  # of the largest excess of the stability: as good
_APART = 3.0  # ratio of the largest to the smallest K that criteria may name, the one furthest off left out
_FROM, _TO = 2, 60


@dataclass(frozen=True)
class Choice:
    """A number of clusters, how sure it is, and where it comes from."""

    k: int | None  # None: the data do not say
    lowest: int  # the interval, see :func:`choose_k`; where k is None, what is plausible
    highest: int
    why: str  # a sentence
    samples: int  # N
    looked_at: int  # samples that the criteria have seen
    dimensions: int  # of the reduced space
    votes: Mapping[str, int | None] = field(default_factory=dict)  # of each criterion; None: it does not say
    ks: tuple[int, ...] = ()  # numbers of clusters that were tried
    curves: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # of each criterion, over ks
    # The same of data without clusters; coding length has none, it compares with one cluster: see one_cluster.
    null: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    one_cluster: float | None = None  # coding length of all as one cluster
    hdbscan: tuple[tuple[int, float], ...] = ()  # for each smallest size: clusters, share of the samples in them

    @property
    def middle(self) -> int:
        """The recommendation, or where there is none the middle of what is plausible, by ratio."""
        return self.k if self.k is not None else round(math.sqrt(self.lowest * self.highest))

    def describe(self) -> dict[str, Any]:
        """Return everything as plain values, for JSON."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            **plain,
            "votes": dict(self.votes),
            "curves": {name: list(curve) for name, curve in self.curves.items()},
            "null": {name: list(curve) for name, curve in self.null.items()},
            "ks": list(self.ks),
            "hdbscan": [{"clusters": count, "share": share} for count, share in self.hdbscan],
        }


def default_ks(lowest: int = _FROM, highest: int = _TO) -> tuple[int, ...]:
    """Return the numbers from ``lowest`` to ``highest`` that are tried: all up to 20, then in steps of some 8 %."""
    found = [lowest]
    while found[-1] < highest:
        found.append(min(highest, max(found[-1] + 1, round(found[-1] * 1.08) if found[-1] >= 20 else 0)))
    return tuple(found)


def read_ks(text: str) -> tuple[int, ...]:
    """Return the numbers of ``2-30`` (as :func:`default_ks`), ``2,3,5``, or both: ``2-10,20``.

    Raises:
        InputError: it is something else, or a number is less than 2.
    """
    found: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        ends = [int(end) for end in (first, last if dash else first) if end.isdigit()]
        if len(ends) < 2 or ends[0] < 2 or ends[1] < ends[0]:
            raise InputError(f"'{text}' are no numbers of clusters to try, from 2 on: write 2-30, or 5,10,20")
        found.update(default_ks(*ends))
    return tuple(sorted(found))


def choose_k(
    x: npt.NDArray[Any],
    ks: Sequence[int] | None = None,
    seed: int = 0,
    watch: Callable[[int, int], None] | None = None,
) -> Choice:
    """Return how many clusters the features ``x`` speak for.

    The rows are scaled to unit length; of more than :data:`SAMPLES` a random part is looked at; principal components
    reduce them to :data:`DIMENSIONS`. Each criterion votes: silhouette, Davies-Bouldin index, stability under
    resampling (each against data without clusters), coding length, and HDBSCAN's count. Recommended is the median of
    the votes. The interval is what they span without the one that is furthest off; where they differ, it goes on to the
    largest number of clusters, not above three times its beginning, that halves of the data agree on nearly as well as
    on any. There is no recommendation
    where halves of the data do not agree more than those of structureless data, where all samples as one cluster have
    the shortest code, or where votes, without the furthest, differ by a factor of more than three.

    Args:
        x: (N, D) floating features, finite; they need not be normalised.
        ks: numbers of clusters to try, 2 or more each; by default 2 to 60, less where there are few samples.
        seed: of subsample, halves and starts; the same seed gives the same choice on the same machine.
        watch: told how many of how many steps are done.

    Raises:
        InputError: ``x`` is not numbers (N, D), some are not finite, or ``ks`` are not in 2 ... N - 1.
    """
    points: FloatArray = unit_rows(finite_array(x, "features"))
    N = len(points)
    if ks is not None and (not ks or min(ks) < 2 or (N >= _FEWEST and max(ks) >= N)):
        raise InputError(f"numbers of clusters to try must be from 2 to {N - 1}, for {N} samples; got {sorted(ks)}")
    if len(points) > SAMPLES:
        points = points[torch.randperm(N, generator=make_generator(seed, "choose-k"))[:SAMPLES].numpy()]
    different = len(np.unique(points, axis=0))
    common = {"samples": N, "looked_at": len(points), "dimensions": min(DIMENSIONS, *points.shape)}
    if different < _FEWEST:
        told = f"{different} different samples are too few to say anything: {_FEWEST} are the least"
        lowest = min(2, N)
        return Choice(None, lowest, max(lowest, math.isqrt(N)), told, **common)
    tried = tuple(sorted(set(ks or default_ks(_FROM, min(_TO, max(_FROM, different // 5))))))
    tried = tuple(K for K in tried if different > K)
    if not tried:
        raise InputError(f"there are {different} different samples: try fewer than that many clusters, not {ks}")

    z = reduced(points)
    grid = sorted({tried[i] for i in np.linspace(0, len(tried) - 1, _NULL_KS).round().astype(int)})
    total, done = 2 * len(tried) + _NULLS * len(grid) + 1, 0

    def step() -> None:
        nonlocal done
        done += 1
        if watch is not None:
            watch(done, total)

    labels: dict[int, Labels] = {}
    for K in tried:
        labels[K] = fitted(z, K, make_generator(seed, "choose-k", "labels", K), starts=3).labels_
        step()
    found = curves(z, labels, make_generator(seed, "choose-k", "halves"), _PAIRS, step)
    nulls = []
    for number in range(_NULLS):
        generator = make_generator(seed, "choose-k", "null", number)
        shapeless = reduced(structureless(points, generator))
        cut = {K: fitted(shapeless, K, generator).labels_ for K in grid}
        nulls.append(curves(shapeless, cut, generator, _NULL_PAIRS, step))
    evidence = {
        name: (getattr(found, name), _between(tried, grid, [getattr(n, name) for n in nulls])) for name in _NAMES
    }
    coding = np.array([coding_length(z, labels[K]) for K in tried])
    one = coding_length(z, np.zeros(len(z), dtype=np.int32))
    counts = hdbscan_counts(z)
    step()
    votes = _votes(tried, evidence, found.spread, coding, one, counts)
    own, empty = evidence["stability"]
    excess = own - empty
    least = excess.max() * (_NEARLY if excess.max() > 0 else 1)
    as_stable = [K for K, value in zip(tried, excess, strict=True) if value >= least]
    return Choice(
        *decide(votes, float(excess.max()), bool(coding.min() < one), tried, as_stable),
        votes=votes,
        ks=tried,
        curves={**{name: _plain(own) for name, (own, _) in evidence.items()}, "coding_length": _plain(coding)},
        null={name: _plain(empty) for name, (_, empty) in evidence.items()},
        one_cluster=one,
        hdbscan=tuple(counts),
        **common,
    )


_NAMES = ("silhouette", "davies_bouldin", "stability")


def _plain(curve: npt.NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in curve)


def reduced(points: FloatArray) -> FloatArray:
    """Return the first principal components of ``points`` (M, D): (M, d) float32, centred, not scaled."""
    d = min(DIMENSIONS, *points.shape)
    return np.ascontiguousarray(PCA(d, random_state=0).fit_transform(points), dtype=np.float32)


def structureless(points: FloatArray, generator: torch.Generator) -> FloatArray:
    """Return as many points from the Gaussian with the mean and covariance of ``points`` (M, D), at unit length.

    Random mixtures of the centred points have exactly that covariance, without a matrix (D, D).
    """
    M, mean = len(points), points.mean(0)
    mixed = torch.randn(M, M, generator=generator).numpy() @ (points - mean) / np.float32(math.sqrt(M))
    return np.asarray(unit_rows(mixed + mean), dtype=np.float32)


def _between(
    tried: tuple[int, ...], grid: list[int], of_nulls: list[npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64]:
    """Return the mean of curves over ``grid`` at the numbers of clusters that were tried."""
    return np.asarray(np.interp(np.log(tried), np.log(grid), np.mean(of_nulls, axis=0)))


def decide(
    votes: Mapping[str, int | None], excess: float, splits: bool, ks: Sequence[int], as_stable: Sequence[int] = ()
) -> tuple[int | None, int, int, str]:
    """Return the recommendation, the interval and the reason.

    Args:
        votes: numbers of clusters by criterion; ``None`` where one says nothing.
        excess: largest agreement of halves beyond that of structureless data.
        splits: whether some number of clusters has a shorter code than one cluster.
        ks: numbers of clusters that were tried, ascending.
        as_stable: those of them with which halves agree nearly as well as with the best.
    """
    given = sorted(vote for vote in votes.values() if vote is not None)
    if excess < _GATE or not splits:
        told = (
            f"halves of the data agree by {excess:.2f} more than those of data without clusters, less than {_GATE:g}"
            if excess < _GATE
            else "all samples as one cluster have a shorter code than as any number of clusters"
        )
        return None, ks[0], ks[-1], f"the data do not say: {told}"
    if len(given) < 3:
        return (
            None,
            given[0],
            given[-1],
            f"the data do not say: only {len(given)} of {len(votes)} criteria find a number",
        )
    k = round(statistics.median(given))
    lowest, highest = _without_furthest(given)
    if highest > _APART * lowest:
        named = ", ".join(f"{name.replace('_', ' ')} {vote}" for name, vote in votes.items() if vote is not None)
        return None, lowest, highest, f"the data do not say: criteria are far apart ({named})"
    if lowest == highest:
        told = f"{given.count(k)} of {len(given)} criteria name {k}"
    else:
        told = f"{len(given)} criteria name {given[0]} to {given[-1]}"
        more = max((K for K in as_stable if highest < K <= _APART * lowest), default=highest)
        if more > highest:
            told += f", and up to {more} clusters are found again as reliably: they may be parts of larger ones"
            highest = more
    if k == ks[-1]:
        told += f"; there may be more clusters than the {ks[-1]} that were tried"
    return k, min(k, lowest), max(k, highest), told


def _without_furthest(given: list[int]) -> tuple[int, int]:
    """Return the ends of at least three ascending votes, less the end that is further from their median, by ratio."""
    middle = statistics.median(given)
    return (given[1], given[-1]) if middle / given[0] > given[-1] / middle else (given[0], given[-2])


def _votes(
    ks: tuple[int, ...],
    evidence: Mapping[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]],
    spread: npt.NDArray[np.float64],
    coding: npt.NDArray[np.float64],
    one: float,
    counts: Sequence[tuple[int, float]],
) -> dict[str, int | None]:
    """Return the number of clusters that each criterion names."""
    own, empty = evidence["stability"]
    excess = own - empty
    best = int(excess.argmax())
    own_s, empty_s = evidence["silhouette"]
    own_d, empty_d = evidence["davies_bouldin"]
    found = [count for count, share in counts if share >= _COVERED and count >= 2]
    return {
        "silhouette": ks[int((own_s - empty_s).argmax())],
        "davies_bouldin": ks[int(np.log(own_d / empty_d).argmin())],
        # One cluster too many is cut at random, and agrees nearly as well: the fewest within a standard error.
        "stability": ks[int((excess >= excess[best] - spread[best]).argmax())],
        "coding_length": ks[int(coding.argmin())] if coding.min() < one else None,
        "hdbscan": round(statistics.median(found)) if found else None,
    }
