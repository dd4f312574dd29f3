"""The tables of what was tried and what came of it."""

from __future__ import annotations

import resource
import shlex
import sys

import torch

from odc.comparison.provenance import provenance
from odc.evaluation.markdown import markdown_table

from .trial import Family, Outcome, Trial


class Row:
    """What came of a family so far."""

    def __init__(self, family: Family) -> None:
        self.family, self.outcome, self.seconds = family, Outcome(), 0.0

    def add(self, trial: Trial, outcome: Outcome, seconds: float) -> None:
        """Add a trial's outcome; its lines get its name."""
        self.outcome.tried += outcome.tried
        self.seconds += seconds
        for kind in ("lost", "crashed", "executed", "facts"):
            getattr(self.outcome, kind).extend(f"{trial.name}: {line}" for line in getattr(outcome, kind))

    def check(self, part: bool) -> None:
        """Count it as lost, or crashed, where fewer were tried than the claim is about."""
        least = 1 if part else self.family.least
        if self.outcome.tried < least:
            line = f"only {self.outcome.tried:,} were tried, not {least:,}"
            (self.outcome.lost if self.family.injures else self.outcome.crashed).append(line)


def document(rows: list[Row], seed: int, jobs: int, seconds: float) -> str:
    """Return the report in Markdown."""
    parts = ["# Reliability", "", "```", f"python -m benchmarks.reliability {shlex.join(sys.argv[1:])}".rstrip(), "```"]
    injuries = [["injury", "injured", "survived", "lost", "seconds"]]
    inputs = [["input", "tried", "crashed", "executed", "seconds"]]
    for row in rows:
        tried, lost = row.outcome.tried, len(row.outcome.lost)
        numbers = [f"{tried:,}", f"{tried - lost:,}", f"{lost:,}"]
        if not row.family.injures:
            numbers = [f"{tried:,}", f"{len(row.outcome.crashed):,}", f"{len(row.outcome.executed):,}"]
        (injuries if row.family.injures else inputs).append([row.family.title, *numbers, f"{row.seconds:.0f}"])
    for table in (injuries, inputs):
        if len(table) > 1:
            parts += ["", markdown_table(table)]
    parts += [
        "",
        "Survived: the same command, with `--resume`, ended in the files of a run that nothing happened to: "
        "checkpoints, `clusters.csv` and `metrics.json` bit for bit, and nothing else left. Crashed: anything but a "
        "result or one line and exit code 2. Executed: a program started, a module imported, a connection made, or a "
        "marked file written by what was read.",
    ]
    facts = [line for row in rows for line in row.outcome.facts]
    if facts:
        parts += ["", *(f"- {line}" for line in facts)]
    failures = [f"- {row.family.name}/{line}" for row in rows for line in row.outcome.failures]
    parts += ["", *(["What fell short:", "", *failures] if failures else ["Nothing fell short."])]
    told = provenance()
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    native = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    precision = "natively" if native else "not"
    parts += [
        "",
        f"Seed {seed}; {seconds:.0f} s, {jobs} trials at a time of one thread each ("
        f"{usage.ru_utime + usage.ru_stime:.0f} s of processor time); float32, or bfloat16 where a config asks for it, "
        f"which this processor computes {precision}.",
        "",
        f"Machine: {told['machine']}. Versions: {versions}. Revision {told['git_revision']}, {told['date']}.",
    ]
    return "\n".join(parts) + "\n"
