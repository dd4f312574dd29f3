"""The numbers of a comparison: mean and spread over the seeds, and the table in Markdown."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from odc.comparison.results import QUALITY, Record
from odc.errors import printable
from odc.evaluation.markdown import escaped, markdown_table

EVENNESS = {"entropy": "entropy", "empty": "empty clusters"}  # without ground truth: how the clusters are filled


def table(records: Sequence[Record]) -> str:
    """Return the table in Markdown: mean ± sample standard deviation over the seeds, and what it was measured on."""
    rows_of = [r for r in records if not r.before]
    good = [r for r in rows_of if r.error is None]
    quality = QUALITY if not good or any(r.number("acc") is not None for r in good) else EVENNESS
    rows = [["method", *quality.values(), "seconds", "peak MB", "images seen", "seeds"]]
    for method in dict.fromkeys(r.method for r in rows_of):
        mine = [r for r in rows_of if r.method == method]
        done = [r for r in mine if r.error is None]
        if not done:
            rows.append([method, "failed", *[""] * (len(quality) + 2), f"0 of {len(mine)}"])
            continue
        cells = [amount(spread([r.number(m) for r in done]), 3) for m in quality]
        cells += [
            amount(spread([r.number(m) for r in done]), digits) for m, digits in (("seconds", 1), ("peak_rss_mb", 0))
        ]
        seen = statistics.fmean(r.number("images_seen") or 0 for r in done)
        seeds = str(len(mine)) if len(done) == len(mine) else f"{len(done)} of {len(mine)}"
        rows.append([method, *cells, f"{seen:,.0f}", seeds])
    lines = [markdown_table(rows)]
    if note := one_seed(good):
        lines.append(note)
    if good:
        first = good[0]
        where = escaped(first.evaluated_on)
        lines.append(
            f"Evaluated on the {first.images:,} images of {where}, K = {first.num_clusters}; "
            "images seen: views that training put through the network."
        )
    for stage in dict.fromkeys(r.method for r in records if r.before):
        shared = [r for r in records if r.method == stage and r.error is None]
        if shared:
            seconds, memory = (spread([r.number(name) for r in shared]) for name in ("seconds", "peak_rss_mb"))
            lines.append(
                f"Before {escaped(listed(shared[0].before))}, once a seed and shared by them: stage {escaped(stage)}, "
                f"{shared[0].number('epochs') or 0:.0f} epochs of {escaped(shared[0].config)}, took "
                f"{amount(seconds)} s and {amount(memory, 0)} MB."
            )
    lines += [escaped(f"{r.title} failed: {r.error}") for r in records if r.error is not None]
    return "\n\n".join(lines)


def listed(names: Sequence[str]) -> str:
    """Return ``"a, b and c"``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def one_seed(good: Sequence[Record]) -> str:
    """Return what to say beside rows of one seed, nothing where all that ended have more.

    Its numbers are the smallest and the largest in ``benchmarks/results/digits.md``.
    """
    seeds = Counter(r.method for r in good)
    if all(n > 1 for n in seeds.values()):
        return ""
    return (
        "One seed decides nothing: rows differ from seed to seed and from processor to processor (ACC on the digits "
        "by a standard deviation of .002 to .10, five seeds). The same command with --seeds 0 1 2 3 4 adds what lacks."
    )


def document(records: Sequence[Record], command: str) -> str:
    """Return the table with what is needed to repeat it: the command, the machine, versions and revision."""
    facts = []
    for name in ("machine", "precision", "threads", "versions", "git_revision", "date"):
        known = [getattr(r, name) for r in records]
        if name == "versions":
            known = [", ".join(f"{k} {v}" for k, v in versions.items()) for versions in known]
        known = [str(value)[:10] if name == "date" else str(value) for value in known]
        facts.append(escaped(" / ".join(dict.fromkeys(known))))
    machine, precision, threads, versions, revision, date = facts
    where = (
        f"Machine: {machine}; trained in {precision}, threads a run: {threads}. Versions: {versions}. "
        f"Revision {revision or 'unknown'}, {date}."
    )
    title = f"# Methods compared on {escaped(records[0].dataset)}"
    return f"{title}\n\n```\n{printable(command)}\n```\n\n{table(records)}\n\n{where}"


@dataclass(frozen=True)
class Spread:
    """Mean over ``n`` seeds and sample standard deviation, ``None`` with one seed."""

    mean: float
    std: float | None
    n: int


def spread(values: Sequence[float | None]) -> Spread | None:
    """Return mean and sample standard deviation of the values that there are."""
    known = [v for v in values if v is not None]
    if not known:
        return None
    return Spread(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))


def amount(value: Spread | None, digits: int = 1, factor: float = 1) -> str:
    """Return mean ± standard deviation."""
    if value is None:
        return "–"
    mean = f"{factor * value.mean:,.{digits}f}".replace("-", "−")
    return mean if value.std is None else f"{mean} ± {factor * value.std:,.{digits}f}"
