"""Who is how good: the records of a comparison by method, averaged over the seeds, ranked, and compared in pairs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from scipy import stats

from odc.comparison.results import MANY_TO_ONE, QUALITY, Record

EVENNESS = {"entropy": "entropy", "empty": "empty clusters"}  # without ground truth: how the clusters are filled
RANKED = ("acc", "nmi", "ari")  # kNN is of the features, not of the clusters


@dataclass(frozen=True)
class Spread:
    """Mean over seeds and sample standard deviation, ``None`` with one seed."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences, with a 95 % confidence interval (Student's t), ``None`` with one pair."""

    mean: float
    interval: tuple[float, float] | None


def paired_difference(mine: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """Return ``mine`` - ``other`` over the seeds that both have, or ``None`` if they share none."""
    pairs = [mine[seed] - other[seed] for seed in mine if seed in other]
    n = len(pairs)
    if n < 2:
        return Difference(pairs[0], None) if pairs else None
    mean = statistics.fmean(pairs)
    half = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(pairs) / math.sqrt(n)
    return Difference(mean, (mean - half, mean + half))


@dataclass(frozen=True)
class Row:
    """A method, or a stage that methods share."""

    name: str
    records: list[Record] = field(default_factory=list)  # a cell for each seed
    rank: float | None = None  # mean rank over RANKED and the seeds, 1 is best; None without ground truth
    # To the best method in ACC, on the seeds that both have; None for the best itself.
    difference: Difference | None = None
    best: bool = False

    @property
    def ended(self) -> list[Record]:
        """The cells that did not fail."""
        return [r for r in self.records if r.error is None]

    @property
    def failed(self) -> dict[str, list[Record]]:
        """The cells that failed, by what went wrong."""
        found: dict[str, list[Record]] = {}
        for r in self.records:
            if r.error is not None:
                found.setdefault(r.error, []).append(r)
        return found

    def spread(self, *names: str) -> Spread | None:
        """Return mean and deviation of a value, or of the sum of several, over the seeds that have all of them."""
        values = [[r.number(name) for name in names] for r in self.ended]
        sums = [sum(filter(None, row)) for row in values if None not in row]
        if not sums:
            return None
        return Spread(statistics.fmean(sums), statistics.stdev(sums) if len(sums) > 1 else None)

    def by_seed(self, name: str) -> dict[int, float]:
        """Return a value by seed."""
        return {r.seed: value for r in self.ended if (value := r.number(name)) is not None}


def by_method(records: Sequence[Record]) -> list[Row]:
    """Group records."""
    found: dict[str, Row] = {}
    for r in records:
        found.setdefault(r.method, Row(r.method)).records.append(r)
    return list(found.values())


_OVER_CLUSTERING = (
    "ACC maps clusters to classes one to one, so with more clusters than classes some are always wrong; ACC n:1 lets "
    "each cluster stand for its most frequent class, and rises with the number of clusters alone."
)


@dataclass(frozen=True)
class Comparison:
    """The records of a comparison in order: methods are rows, stages that they share come before them."""

    rows: list[Row]
    stages: list[Row]

    @classmethod
    def of(cls, records: Sequence[Record]) -> Comparison:
        """Tell rows and stages apart."""
        every = by_method(records)
        shared = [row for row in every if any(r.before for r in row.records)]
        return cls([row for row in every if row not in shared], shared)

    @property
    def ended(self) -> list[Record]:
        """The cells of methods that did not fail."""
        return [r for row in self.rows for r in row.ended]

    @property
    def features(self) -> str:
        """What all methods cluster, where it is not the pictures."""
        return next((r.features for r in self.ended), "")

    @property
    def labelled(self) -> bool:
        """Whether there is ground truth, as far as one can tell."""
        return not self.ended or any(r.number("acc") is not None for r in self.ended)

    @property
    def quality(self) -> dict[str, str]:
        """Names of the columns that say how good the clusters are, or without ground truth how they are filled."""
        if not self.labelled:
            return EVENNESS
        return {"acc": QUALITY["acc"], **MANY_TO_ONE, **QUALITY} if self.over_clustering else QUALITY

    @property
    def over_clustering(self) -> str:
        """What to say of the two accuracies where K is not the number of classes, else nothing."""
        measured = any(r.number(name) is not None for r in self.ended for name in MANY_TO_ONE)
        return _OVER_CLUSTERING if measured else ""

    def ranked(self) -> list[Row]:
        """Return the methods, best first by ACC or, without ground truth, by evenness; those that all failed last."""
        key = "acc" if self.labelled else "entropy"
        means = {row.name: -math.inf if (value := row.spread(key)) is None else value.mean for row in self.rows}
        rows = sorted(self.rows, key=lambda row: (not row.ended, -means[row.name]))
        ranks = mean_ranks(rows)
        rows = [replace(row, rank=ranks.get(row.name)) for row in rows]
        if rows and self.labelled and means[rows[0].name] > -math.inf:
            best = replace(rows[0], best=True)
            theirs = best.by_seed(key)
            rest = [replace(row, difference=paired_difference(row.by_seed(key), theirs)) for row in rows[1:]]
            return [best, *rest]
        return rows


def mean_ranks(rows: Sequence[Row]) -> dict[str, float]:
    """Return each method's rank by :data:`RANKED`, 1 the best, averaged over metrics and seeds; equals share a rank."""
    ranks: dict[str, list[float]] = {}
    for metric in RANKED:
        by_method = {row.name: row.by_seed(metric) for row in rows}
        for seed in {seed: None for values in by_method.values() for seed in values}:
            values = {name: found[seed] for name, found in by_method.items() if seed in found}
            for name, rank in zip(values, stats.rankdata([-v for v in values.values()]), strict=True):
                ranks.setdefault(name, []).append(float(rank))
    return {name: statistics.fmean(found) for name, found in ranks.items()}


# -- in words --------------------------------------------------------------------------------------------------------


def amount(value: Spread | None, digits: int = 1, factor: float = 1) -> str:
    """Return mean ± standard deviation."""
    if value is None:
        return "–"
    mean = f"{factor * value.mean:,.{digits}f}".replace("-", "−")
    return mean if value.std is None else f"{mean} ± {factor * value.std:,.{digits}f}"


def points(value: float) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if text in ("+0.0", "−0.0") else text


def joined(names: Sequence[str]) -> str:
    """Return ``"a, b and c"``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def one_seed(rows: Sequence[Row]) -> str:
    """Return what to say beside methods of one seed, nothing where all that ended have more.

    Its numbers are the smallest and the largest in ``benchmarks/results/digits.md``.
    """
    if all(len(row.ended) != 1 for row in rows if row.spread("members") is None):  # a consensus may be of several seeds
        return ""
    return (
        "One seed decides nothing: rows differ from seed to seed and from processor to processor (ACC on the digits "
        "by a standard deviation of .002 to .10, five seeds). The same command with --seeds 0 1 2 3 4 adds the "
        "missing ones."
    )


def headline(rows: Sequence[Row], labelled: bool) -> str:
    """Return in a sentence or two which of the ranked methods is best, and how sure that is."""
    if not any(row.ended for row in rows):
        return "No method ended, so there is nothing to compare."
    if not labelled:
        return (
            "There is no ground truth, so nothing here says which method is best: they are in the order of the entropy "
            "of their cluster sizes (1: all equally large), which does not measure quality."
        )
    acc = rows[0].spread("acc")
    over = f"mean ± sample standard deviation over {len(rows[0].by_seed('acc'))} seeds"
    text = f"{rows[0].name} has the highest accuracy, {amount(acc, 1, 100)} % "
    text += "(one seed)" if acc is None or acc.std is None else f"({over})"
    rivals = [(row.name, row.difference) for row in rows if row.difference is not None]
    if not rivals:
        return text + "."
    name, second = rivals[0]
    text += f"; {name} follows, {points(second.mean)} points on the seeds that both have"
    if second.interval is None:
        return text + ". One seed says little about such a difference."
    low, high = second.interval
    text += f" (95 % confidence interval {points(low)} to {points(high)})"
    return text + (". The interval contains 0: these seeds do not tell the two apart." if low <= 0 <= high else ".")
