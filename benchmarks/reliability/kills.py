"""SIGKILL and SIGTERM at random moments, to every head, the pipeline and the comparison."""

from __future__ import annotations

import random
import signal
from pathlib import Path

from .process import Run
from .same import differences
from .settings import COMPARE, SPICE, TRAININGS, Setting
from .trial import Bench, Family, Outcome, Trial

TIMES = 2  # a run is interrupted
STARTING = 0.15  # share of the moments that lie in the start of the process, before its log


def interrupt(bench: Bench, setting: Setting, folder: Path, rng: random.Random) -> Outcome:
    """Kill a run at random moments, let the same command go on each time, and compare with the unbroken run."""
    whole = bench.whole(setting)
    part = folder / "part"
    config = bench.config(setting)
    outcome = Outcome()
    told = []
    left = whole.body
    for number in range(TIMES):
        run = Run(setting.argv(config, part, resume=number > 0), folder / f"{number}.txt")
        if rng.random() < STARTING:
            moment, begun = rng.uniform(0.0, whole.startup), False
        else:
            run.wait_for_sign(part)
            moment, begun = rng.uniform(0.0, 0.85 * left), True  # it may be faster than the unbroken run was
            left -= moment
        code = run.wait_at_most(moment)
        if code is not None:  # it was faster than last time
            break
        sent = rng.choice((signal.SIGKILL, signal.SIGTERM))
        run.send(sent)
        code = run.wait(60)
        if code == 0:
            break
        outcome.tried += 1
        told.append(f"{sent.name} {moment:.2f} s after its {'log' if begun else 'start'}")
        if sent == signal.SIGTERM and code is None:
            outcome.lost.append(f"does not end within 60 s of SIGTERM ({told[-1]})")
        if remaining := run.left_after(30):
            run.clear()
            outcome.lost.append(f"{remaining} processes still run 30 s after {told[-1]}")
    run = Run(setting.argv(config, part, resume=True), folder / "last.txt")
    failed = run.failed()
    wrong = [failed] if failed else differences(whole.folder, part)
    if wrong:
        outcome.lost += [f"{'; '.join(wrong)[:600]} after {', '.join(told)}: {run.command}"] * max(1, len(told))
    outcome.tried = max(outcome.tried, len(outcome.lost))
    return outcome


def trials(bench: Bench) -> list[Trial]:
    """Three runs of every head with two kills each; two of the pipeline and of the comparison."""
    made = []
    for setting in (*TRAININGS, SPICE, COMPARE):
        single = setting.command == "train"
        for number in range(1 if bench.quick else 3 if single else 2):

            def run(folder: Path, rng: random.Random, setting: Setting = setting) -> Outcome:
                return interrupt(bench, setting, folder, rng)

            made.append(Trial(f"{setting.name}-{number}", run, 18.0 if single else 60.0))
    return made


FAMILY = Family(
    "kills", "SIGKILL or SIGTERM at a random moment, all heads, pipeline, comparison", True, trials, least=40
)
