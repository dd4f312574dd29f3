"""The disk is full, at any point of a run: on a small file system of its own, or where that takes root, by a limit."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .entry import Injury, fill
from .process import Run
from .same import differences, torn
from .settings import EPOCHWISE
from .trial import Bench, Family, Outcome, Trial, complaint

SIZE = 24 << 20  # of the file system; a run keeps two checkpoints of 1.4 MB
# What is still free when a file is opened (event, file, how many-th, bytes); the first: from the start.
POINTS = (
    ("", "", 0, 0),
    ("", "", 0, 20_000),
    ("", "", 0, 3_000_000),
    ("open", "epoch_1.pth", 1, 0),
    ("open", "epoch_3.pth", 1, 700_000),
    ("open", "last_checkpoint", 2, 0),
    ("open", "clusters.csv", 1, 0),
    ("open", "clusters.csv", 1, 4096),
    ("open", "clusters.png", 1, 0),
    ("open", "metrics.json", 1, 0),
)
QUICK = (0, 4, 7)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a small file system at ``folder`` and take it away again; yield whether that could be done."""
    folder.mkdir(parents=True)
    mounted = False
    if os.geteuid() == 0:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True, check=False
        )
        mounted = done.returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def starve(bench: Bench, point: tuple[str, str, int, int], folder: Path) -> Outcome:
    """Run into a full disk; look at what is left; make space, go on, and compare with the unbroken run."""
    event, file, call, size = point
    whole, config = bench.whole(EPOCHWISE), bench.config(EPOCHWISE)
    outcome = Outcome(tried=1)
    told = f"{size:,} bytes left " + (f"when {file} is opened, the {call}. time" if event else "from the start")
    with small_disk(folder / "disk") as mounted:
        part = folder / "disk" / "part"
        if mounted and not event:
            fill(part, size)
        action = "fill" if mounted else "limit"
        injury = Injury(event or "open", file, max(call, 1), action, size) if event or not mounted else None
        run = Run(EPOCHWISE.argv(config, part), folder / "full.txt", injury=None if injury is None else injury.dumps())
        code = run.wait()
        if code == 0:
            outcome.lost.append(f"{told}: it did not happen, the trial shows nothing")
            return outcome
        how = "" if mounted else " (by a limit on the size of files)"
        wrong = [complaint(code, run.output()) or "", *torn(part, whole.folder)]
        (folder / "disk" / "ballast").unlink(missing_ok=True)
        again = Run(EPOCHWISE.argv(config, part, resume=True), folder / "last.txt")
        failed = again.failed()
        wrong += [f"--resume {failed}"] if failed else differences(whole.folder, part)
        if any(wrong):
            outcome.lost.append(f"{told}{how}: {'; '.join(filter(None, wrong))[:600]}: {run.command}")
    return outcome


def trials(bench: Bench) -> list[Trial]:
    """One for each point."""

    def make(number: int, point: tuple[str, str, int, int]) -> Trial:
        def run(folder: Path, rng: random.Random) -> Outcome:
            return starve(bench, point, folder)

        return Trial(f"{number}", run, 13.0)

    return [make(number, POINTS[number]) for number in (QUICK if bench.quick else range(len(POINTS)))]


FAMILY = Family("disk", "disk full", True, trials, least=8)
