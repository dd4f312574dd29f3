"""Killed by itself at a chosen moment: while a file is written, or the result is evaluated."""

from __future__ import annotations

import random
from pathlib import Path

from .entry import Injury
from .process import Run
from .same import differences
from .settings import COMPARE, EPOCHWISE, ODC, SPICE, Setting
from .trial import Bench, Family, Outcome, Trial

# (setting, injury); the sizes lie inside the files, the calls inside the run.
MOMENTS: tuple[tuple[Setting, Injury], ...] = (
    (ODC, Injury("open", "iter_16.pth")),
    (ODC, Injury("open", "iter_60.pth", action="cut", size=300_000)),
    (ODC, Injury("os.rename", "iter_24.pth")),
    (ODC, Injury("os.rename", "iter_4.pth")),
    (ODC, Injury("os.rename", "last_checkpoint", call=1)),
    (ODC, Injury("os.rename", "last_checkpoint", call=7)),
    (ODC, Injury("open", "last_checkpoint", call=3)),
    (ODC, Injury("metrics", call=1)),
    (ODC, Injury("metrics", call=2)),
    (ODC, Injury("metrics", call=3)),
    (ODC, Injury("metrics", call=2, action="term")),  # in the last one, the third, a signal changes nothing
    (EPOCHWISE, Injury("os.rename", "epoch_5.pth")),
    (EPOCHWISE, Injury("metrics", call=3)),
    (EPOCHWISE, Injury("open", "clusters.csv")),
    (EPOCHWISE, Injury("open", "clusters.csv", action="cut", size=3000)),
    (EPOCHWISE, Injury("open", "clusters.csv", action="term")),
    (EPOCHWISE, Injury("open", "clusters.png")),
    (EPOCHWISE, Injury("open", "metrics.json")),
    (EPOCHWISE, Injury("os.rename", "metrics.json")),
    (ODC, Injury("open", "clusters.csv", action="cut", size=3000)),
    (SPICE, Injury("os.rename", "done.json", call=1)),
    (SPICE, Injury("open", "features.npz")),
    (SPICE, Injury("os.rename", "begun.json", call=4)),
    (SPICE, Injury("open", "clusters.csv", call=2)),
    (SPICE, Injury("os.rename", "labels.npz")),
    (SPICE, Injury("open", "summary.md")),
    (COMPARE, Injury("open", "results.jsonl", call=2)),
    (COMPARE, Injury("open", "table.md")),
    (COMPARE, Injury("open", "report.html")),
)
QUICK = (1, 12, 14, 18)


def told(injury: Injury) -> str:
    """Return an injury in words."""
    what = {"open": f"opening {injury.file}", "os.rename": f"renaming to {injury.file}", "metrics": "evaluation"}
    how = {"cut": f"cut at {injury.size:,} bytes", "term": "SIGTERM"}.get(injury.action, injury.action)
    return f"{how} at {what[injury.event]}, the {injury.call}. time"


def injure(bench: Bench, setting: Setting, injury: Injury, folder: Path) -> Outcome:
    """Run a command into its injury, let the same command go on, and compare with the unbroken run."""
    whole = bench.whole(setting)
    part, config = folder / "part", bench.config(setting)
    outcome = Outcome(tried=1)
    first = Run(setting.argv(config, part), folder / "injured.txt", injury=injury.dumps())
    code = first.wait()
    if code == 0:
        outcome.lost.append(f"{told(injury)}: it did not happen, the trial shows nothing")
        return outcome
    if left := first.left_after(30):
        first.clear()
        outcome.lost.append(f"{left} processes still run 30 s after {told(injury)}")
        return outcome
    last = Run(setting.argv(config, part, resume=True), folder / "last.txt")
    failed = last.failed()
    wrong = [failed] if failed else differences(whole.folder, part)
    if wrong:
        outcome.lost.append(f"{told(injury)}: {'; '.join(wrong)[:600]}: {first.command}")
    return outcome


def trials(bench: Bench) -> list[Trial]:
    """One for each moment."""
    chosen = [MOMENTS[i] for i in QUICK] if bench.quick else MOMENTS

    def make(number: int, setting: Setting, injury: Injury) -> Trial:
        def run(folder: Path, rng: random.Random) -> Outcome:
            return injure(bench, setting, injury, folder)

        return Trial(f"{setting.name}-{number}", run, 12.0 if setting.command == "train" else 50.0)

    return [make(number, *moment) for number, moment in enumerate(chosen)]


FAMILY = Family("moments", "killed in saving, in evaluation, in writing results", True, trials, least=20)
