"""Injure, starve and feed the framework, and count what it survives: a table, and exit code 1 where anything is lost.

python -m benchmarks.reliability                            # everything: some 20 minutes on two cores
python -m benchmarks.reliability --quick                    # a few trials of every kind
python -m benchmarks.reliability --only ranks images        # some kinds
python -m benchmarks.reliability --only ranks/2-launcher    # one trial, as the report names it
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from odc.errors import nearest

from . import damage, degenerate, disk, hostile, images, kills, moments, ranks, soak
from .report import Row, document
from .trial import Bench, Family, Outcome, Trial

FAMILIES = (
    soak.FAMILY,  # the longest first
    ranks.FAMILY,
    kills.FAMILY,
    moments.FAMILY,
    disk.FAMILY,
    damage.FAMILY,
    images.FAMILY,
    hostile.FAMILY,
    degenerate.FAMILY,
)


def attempt(bench: Bench, family: Family, trial: Trial) -> tuple[Outcome, float]:
    """Run one trial; return what came of it, and its seconds. Its folder stays where it fell short."""
    folder = bench.scratch / family.name / trial.name
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    try:
        outcome = trial.run(folder, bench.rng(family.name, trial.name))
    except Exception as error:
        traceback.print_exc()
        outcome = Outcome(tried=1)
        (outcome.lost if family.injures else outcome.crashed).append(f"{type(error).__name__}: {error}")
    if not outcome.failures:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome, time.monotonic() - started


Work = list[tuple[Family, Trial]]


def choose(bench: Bench, only: Sequence[str] | None) -> Work:
    """Return all trials, or those of some ``kind`` or ``kind/trial``.

    Raises:
        ValueError: there is none of that name.
    """
    work = [(family, trial) for family in FAMILIES for trial in family.trials(bench)]
    if only is None:
        return work
    names = {name for family, trial in work for name in (family.name, f"{family.name}/{trial.name}")}
    for name in only:
        if name not in names:
            raise ValueError(f"no trial '{name}'{nearest(name, names)}")
    return [(family, trial) for family, trial in work if {family.name, f"{family.name}/{trial.name}"} & set(only)]


def run(bench: Bench, work: Work, jobs: int, *, part: bool) -> list[Row]:
    """Run trials, so many at a time; tell of each, and of the time left; return a row for every family.

    ``part``: these are not all trials, so that none need be as many as the claim is about.
    """
    rows = {family.name: Row(family) for family, _ in work}
    total, done, started = sum(trial.seconds for _, trial in work), 0.0, time.monotonic()
    ended = itertools.chain(
        _all(bench, [(family, trial) for family, trial in work if trial.alone], 1),
        _all(bench, [(family, trial) for family, trial in work if not trial.alone], jobs),
    )
    for number, (family, trial, outcome, seconds) in enumerate(ended, start=1):
        rows[family.name].add(trial, outcome, seconds)
        done += trial.seconds
        left = datetime.timedelta(seconds=round((time.monotonic() - started) * (total - done) / done))
        short = len(outcome.failures)
        print(
            f"[{number}/{len(work)}] {family.name}/{trial.name}: {outcome.tried:,} tried, "
            f"{short or 'none'} fell short, {seconds:.0f} s; about {left} left",
            flush=True,
        )
        for line in (*outcome.failures, *outcome.facts):
            print(f"    {line}", flush=True)
    for row in rows.values():
        row.check(part)
    return list(rows.values())


def _all(bench: Bench, work: Work, jobs: int) -> Iterator[tuple[Family, Trial, Outcome, float]]:
    """Run trials, so many at a time, and yield what has ended, with its seconds.

    An interruption waits for the trials that run, which clean up, and begins no others.
    """
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(attempt, bench, family, trial): (family, trial) for family, trial in work}
        try:
            for future in as_completed(waiting):
                yield (*waiting[future], *future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 where everything held, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reliability",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(family.name for family in FAMILIES)
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"some of: {names}; or KIND/TRIAL")
    parser.add_argument("--quick", action="store_true", help="a few trials of every kind")
    parser.add_argument("--seed", type=int, default=0, help="of all moments, bits and pictures (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time, a thread each (default %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report there, too")
    parser.add_argument(
        "--scratch", type=Path, default=Path("work_dirs/reliability"), help="where trials work (default %(default)s)"
    )
    args = parser.parse_args(argv)
    started = time.monotonic()
    try:
        bench = Bench(args.scratch.resolve(), args.seed, args.quick)
        work = choose(bench, args.only)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    rows = run(bench, work, args.jobs, part=args.quick or args.only is not None)
    text = document(rows, args.seed, args.jobs, time.monotonic() - started)
    print(f"\n{text}")
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")
    return int(any(row.outcome.failures for row in rows))


if __name__ == "__main__":
    sys.exit(main())
