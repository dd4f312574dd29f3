"""20,000 steps of ODC, whose memory and labels move at every one: time and memory must stay what they were."""

from __future__ import annotations

import json
import random
import statistics
from pathlib import Path
from typing import Any

from odc.config import load_config

from .process import Run
from .settings import CONFIGS, ODC, SMALL
from .trial import Bench, Family, Outcome, Trial

STEPS = 20_000
WARM = 1000  # steps before the first tenth counts
GROWTH = 8.0  # MiB that memory may grow after a quarter
SLOWER = 1.05  # median step of the last tenth to that of the first


def soak(steps: int, folder: Path, rng: random.Random) -> Outcome:
    """Train for so many steps; compare the last tenth with the first, and memory after a quarter with the end."""
    epoch = -(-359 // 16)
    options: dict[str, Any] = {
        **SMALL,
        **ODC.options,
        "train_cfg.max_epochs": -(-steps // epoch),
        "train_cfg.val_interval": 100,
        "default_hooks.checkpoint.interval": 500,
        "custom_hooks": [dict(type="ProgressHook"), dict(type="StepWatch", file=str(folder / "watch.json"))],
    }
    config = folder / "soak.py"
    cfg = load_config(CONFIGS / ODC.base, options)
    cfg.custom_imports = dict(imports=["reliability.watch"])
    cfg.dump(str(config))
    outcome = Outcome(tried=steps)
    run = Run(["train", str(config), "--work-dir", str(folder / "run")], folder / "soak.txt")
    failed = run.failed(1800)
    if failed:
        outcome.lost.append(failed)
        return outcome
    watched = json.loads((folder / "watch.json").read_text())
    taken, reference, memory = watched["steps"], watched["reference"], watched["memory"]
    warm = min(WARM, len(taken) // 10)
    first, last = tenths(taken, warm)
    # Other work on the machine slows a step and the reference beside it alike, and comes and goes: so each ten steps
    # are divided by the reference that was measured among them.
    early, late = tenths(
        [statistics.median(taken[10 * i : 10 * i + 10]) / r for i, r in enumerate(reference)], warm // 10
    )
    ratio = late / early
    grown = statistics.median(memory[-5:]) - statistics.median(memory[len(memory) // 4 :][:5])
    outcome.facts.append(
        f"{len(taken) + 1:,} steps: {first * 1e3:.2f} ms of processor time a step in the first tenth (after {warm:,}), "
        f"{last * 1e3:.2f} ms in the last, {ratio:.3f} times as much, both next to a fixed piece of work (medians); "
        f"memory {memory[-1]:.0f} MiB, {grown:+.1f} MiB since a quarter of them"
    )
    if ratio > SLOWER:
        outcome.lost.append(f"a step takes {ratio:.3f} times as long at the end, more than {SLOWER}")
    if grown > GROWTH:
        outcome.lost.append(f"memory grows by {grown:.1f} MiB, more than {GROWTH:.0f}")
    return outcome


def tenths(values: list[float], skip: int) -> tuple[float, float]:
    """Return the medians of the first tenth, without so many values at the start, and of the last."""
    tenth = len(values) // 10
    return statistics.median(values[skip : skip + tenth]), statistics.median(values[-tenth:])


def trials(bench: Bench) -> list[Trial]:
    """One long training."""
    steps = 2000 if bench.quick else STEPS
    return [Trial("odc", lambda folder, rng: soak(steps, folder, rng), steps * 0.01, alone=True)]


FAMILY = Family("soak", "steps of one training: time and memory stay", True, trials, least=20000)
