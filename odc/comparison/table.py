"""The table of a comparison, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from odc.comparison.ranking import Comparison, Row, amount, joined, one_seed
from odc.comparison.results import Record
from odc.errors import printable
from odc.evaluation.markdown import escaped, markdown_table


def table(records: Sequence[Record]) -> str:
    """Return the table in Markdown: mean ± sample standard deviation over the seeds, and what it was measured on."""
    found = Comparison.of(records)
    heading = ["method", *found.quality.values(), "seconds", "peak MB", "images seen", "seeds"]
    lines = [escaped(f"Features: {found.features}.")] if found.features else []
    lines += [markdown_table([heading, *(_cells(row, list(found.quality)) for row in found.rows)])]
    lines += [found.over_clustering] if found.over_clustering else []
    if note := one_seed(found.rows):
        lines.append(note)
    lines += [
        f"Evaluated on the {r.images:,} images of {escaped(r.evaluated_on)}, K = {r.num_clusters}; "
        "images seen: views that training put through the network."
        for r in found.ended[:1]
    ]
    for stage in found.stages:
        for r in stage.ended[:1]:
            took = f"took {amount(stage.spread('seconds'))} s and {amount(stage.spread('peak_rss_mb'), 0)} MB"
            if (width := r.number("width")) is not None:
                lines.append(f"The features, {width:,.0f} numbers an image, {took}, once for all rows and seeds.")
                continue
            lines.append(
                f"Before {escaped(joined(r.before))}, once a seed and shared by them: stage {escaped(r.method)}, "
                f"{r.number('epochs') or 0:.0f} epochs of {escaped(r.config)}, {took}.{_own(stage, found.quality)}"
            )
    lines += [escaped(f"{r.title} failed: {r.error}") for r in records if r.error is not None]
    return "\n\n".join(lines)


def _own(stage: Row, quality: Mapping[str, str]) -> str:
    """Return what to say of a pre-training that has clusters itself, as ProPos has and MoCo has not."""
    if all(r.number("acc") is None for r in stage.ended):
        return ""
    values = ", ".join(f"{word} {amount(stage.spread(name), 3)}" for name, word in quality.items())
    return f" Its own clusters: {values}."


def _cells(row: Row, quality: Sequence[str]) -> list[str]:
    ended, seeds = row.ended, str(len(row.records))
    if not ended:
        return [row.name, "failed", *[""] * (len(quality) + 2), f"0 of {seeds}"]
    columns = [*((name, 3) for name in quality), ("seconds", 1), ("peak_rss_mb", 0)]
    seen = statistics.fmean(r.number("images_seen") or 0 for r in ended)
    seeds = seeds if len(ended) == len(row.records) else f"{len(ended)} of {seeds}"
    return [row.name, *(amount(row.spread(name), digits) for name, digits in columns), f"{seen:,.0f}", seeds]


def document(records: Sequence[Record], command: str) -> str:
    """Return the table with what is needed to repeat it: the command, the machine, versions and revision."""

    def known(values: Sequence[object]) -> str:
        return escaped(" / ".join(dict.fromkeys(str(value) for value in values)))

    versions = known([", ".join(f"{k} {v}" for k, v in r.versions.items()) for r in records])
    where = (
        f"Machine: {known([r.machine for r in records])}; trained in {known([r.precision for r in records])}, "
        f"threads a run: {known([r.threads for r in records])}. Versions: {versions}. "
        f"Revision {known([r.git_revision for r in records]) or 'unknown'}, {known([r.date[:10] for r in records])}."
    )
    title = f"# Methods compared on {escaped(records[0].dataset)}"
    return f"{title}\n\n```\n{printable(command)}\n```\n\n{table(records)}\n\n{where}"
