"""One of several ranks is killed, or their launcher: the others end soon, and a resumed run ends in the same files."""

from __future__ import annotations

import os
import random
import signal
from dataclasses import replace
from pathlib import Path

from .process import Run
from .same import differences
from .settings import ODC
from .trial import Bench, Family, Outcome, Trial

# So long that ranks without their launcher would be seen to train on.
LONGER = replace(
    ODC,
    name="odc-longer",
    options={
        **ODC.options,
        "train_cfg.max_epochs": 15,
        "train_cfg.val_interval": 15,
        "default_hooks.checkpoint.interval": 20,
    },
)
WITHIN = 60.0  # seconds that the others may take to end
# (ranks, whom to kill): a rank, or the launcher
VICTIMS = ((2, 0), (2, 1), (2, "launcher"), (4, 0), (4, 2), (4, "launcher"))


def kill_one(bench: Bench, ranks: int, victim: int | str, folder: Path, rng: random.Random) -> Outcome:
    """Kill one process of a run, see the others end, resume on as many ranks, and compare."""
    whole, config = bench.whole(LONGER, ranks), bench.config(LONGER)
    part = folder / "part"
    outcome = Outcome(tried=1)
    run = Run(LONGER.argv(config, part), folder / "killed.txt", ranks=ranks)
    run.wait_for_sign(part)
    moment = rng.uniform(0.0, 0.4 * whole.body)
    if run.wait_at_most(moment) is not None:
        outcome.lost.append(f"it ended before {moment:.1f} s: {run.last_line()}")
        return outcome
    told = f"{ranks} ranks, " + (f"rank {victim}" if isinstance(victim, int) else victim) + f" killed at {moment:.1f} s"
    if victim == "launcher":
        run.send(signal.SIGKILL)
    else:
        chosen = [pid for pid, env in run.pids().items() if env.get("RANK") == str(victim)]
        if not chosen:
            raise RuntimeError(f"there is no rank {victim} of {ranks} to kill")
        for pid in chosen:
            os.kill(pid, signal.SIGKILL)
    wrong = []
    if left := run.left_after(WITHIN):
        wrong.append(f"{left} processes still run after {WITHIN:.0f} s")
        run.clear()
    if (part / "metrics.json").exists():
        wrong.append("the others trained on to the end")
    last = Run(LONGER.argv(config, part, resume=True), folder / "last.txt", ranks=ranks)
    failed = last.failed()
    wrong += [f"--resume {failed}"] if failed else differences(whole.folder, part)
    if wrong:
        outcome.lost.append(f"{told}: {'; '.join(wrong)[:600]}")
    return outcome


def trials(bench: Bench) -> list[Trial]:
    """One for each victim."""

    def make(ranks: int, victim: int | str) -> Trial:
        return Trial(f"{ranks}-{victim}", lambda f, r: kill_one(bench, ranks, victim, f, r), 25.0 * ranks)

    return [make(*victim) for victim in (VICTIMS[1:3] if bench.quick else VICTIMS)]


FAMILY = Family("ranks", "one of 2 or 4 ranks killed, or their launcher", True, trials, least=6)
