"""The numbers of a comparison: mean and spread over the seeds, and the table in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from odc.comparison.plan import PRETRAINING
from odc.evaluation.markdown import markdown_table

Record = Mapping[str, Any]
QUALITY = {"acc": "ACC", "nmi": "NMI", "ari": "ARI", "knn": "kNN"}
UNLABELLED = {"entropy": "entropy", "empty": "empty clusters"}  # without ground truth: how the clusters are filled


def table(records: Sequence[Record]) -> str:
    """Return the table in Markdown: mean ± sample standard deviation over the seeds, and what it was measured on."""
    rows_of = [r for r in records if r["method"] != PRETRAINING]
    good = [r for r in rows_of if "error" not in r]
    quality = QUALITY if not good or any(r.get("acc") is not None for r in good) else UNLABELLED
    rows = [["method", *quality.values(), "seconds", "peak MB", "images seen", "seeds"]]
    for method in dict.fromkeys(r["method"] for r in rows_of):
        mine = [r for r in rows_of if r["method"] == method]
        done = [r for r in mine if "error" not in r]
        if not done:
            rows.append([method, "failed", *[""] * (len(quality) + 2), f"0 of {len(mine)}"])
            continue
        cells = [spread([r.get(m) for r in done], 3) for m in quality]
        cells += [spread([r.get(m) for r in done], digits) for m, digits in (("seconds", 1), ("peak_rss_mb", 0))]
        seen = statistics.mean(r.get("images_seen") or 0 for r in done)
        seeds = str(len(mine)) if len(done) == len(mine) else f"{len(done)} of {len(mine)}"
        rows.append([method, *cells, f"{seen:,.0f}", seeds])
    lines = [markdown_table(rows)]
    if good:
        first = good[0]
        lines.append(
            f"Evaluated on the {first['images']:,} images of {first['evaluated_on']}, K = {first['num_clusters']}; "
            "images seen: views that training put through the network."
        )
    shared = [r for r in records if r["method"] == PRETRAINING and "error" not in r]
    if shared:
        took = f"{spread([r['seconds'] for r in shared], 1)} s and {spread([r['peak_rss_mb'] for r in shared], 0)} MB"
        lines.append(
            f"Before SPICE and the rows of -{PRETRAINING}, once a seed and shared by them: {shared[0]['epochs']:.0f} "
            f"epochs of pre-training by {shared[0]['config']}, {took}."
        )
    lines += [f"{r['method']} seed {r['seed']} failed: {r['error']}" for r in records if "error" in r]
    return "\n\n".join(lines)


def document(records: Sequence[Record], command: str) -> str:
    """Return the table with what is needed to repeat it: the command, the machine, versions and revision."""
    facts = []
    for name in ("machine", "versions", "git_revision", "date"):
        known = [r[name] if name != "versions" else ", ".join(f"{k} {v}" for k, v in r[name].items()) for r in records]
        known = [value[:10] if name == "date" else value for value in known]
        facts.append(" / ".join(dict.fromkeys(known)))
    machine, versions, revision, date = facts
    where = f"Machine: {machine}. Versions: {versions}. Revision {revision or 'unknown'}, {date}."
    return f"# Methods compared on {records[0]['dataset']}\n\n```\n{command}\n```\n\n{table(records)}\n\n{where}"


def spread(values: Sequence[float | None], digits: int) -> str:
    """Return mean ± sample standard deviation."""
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    mean = f"{statistics.mean(known):.{digits}f}"
    return mean if len(known) < 2 else f"{mean} ± {statistics.stdev(known):.{digits}f}"
