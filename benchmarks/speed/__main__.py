"""Hot paths against floors that are measured in the same run, on one thread: exit 1 where one is missed.

A row says how often the time, or the memory, of its floor ours takes; :mod:`benchmarks.speed.timing` how it is timed.

    python -m benchmarks.speed                               # all rows, some ten minutes: what `make speed` runs
    python -m benchmarks.speed --only odc-memory train-ODC   # two of them
    python -m benchmarks.speed --growth benchmarks/results/speed-growth   # how time and memory grow: a table, a plot
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from odc.clustering.kmeans import load_faiss
from odc.comparison.provenance import cpu_model
from odc.errors import nearest

from . import growth
from .rows import ROWS, Row
from .timing import Found


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    return dict(
        cpu=cpu_model(), cores=os.cpu_count(), threads=1, torch=torch.__version__, python=platform.python_version()
    )


def told(row: Row, found: Found) -> str:
    """Return a line of the table, in Markdown."""
    verdict = "" if found.value <= row.bar else " **missed**"
    over = f" over {row.floor}" if row.floor else ""
    value = f"{found.value:.3g} {row.unit}{verdict}"
    return f"| {row.name} | {row.what}{over} | {value} | {row.bar:g} {row.unit} | {found.told} |"


def chosen(names: Sequence[str]) -> list[Row]:
    """Return the rows of these names, all for none; ends the program for an unknown one."""
    known = {row.name: row for row in ROWS}
    for name in names:
        if name not in known:
            sys.exit(f"no row is called '{name}'{nearest(name, known)}")
    return [known[name] for name in names] or list(ROWS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the rows, print a table, and return 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[], help=" ".join(row.name for row in ROWS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    parser.add_argument(
        "--growth", type=Path, metavar="STEM", help="measure growth instead: a table, STEM.svg, STEM.json"
    )
    parser.add_argument("--tiny", action="store_true", help="sizes that take no time and mean nothing: for tests")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    load_faiss().omp_set_num_threads(1)
    if args.growth is not None:
        found = growth.measure()
        args.growth.with_suffix(".svg").write_text(growth.plot(found), encoding="utf-8")
        text = json.dumps({**found, "machine": machine()}, indent=2)
        args.growth.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
        print(growth.table(found))
        return 0
    rows, results = chosen(args.only), []
    begun, expected, done = time.monotonic(), sum(row.seconds for row in rows), 0.0
    print("| row | what over what | found | at most | ours to floor, quartiles |\n|---|---|---|---|---|", flush=True)
    for number, row in enumerate(rows):
        took = time.monotonic() - begun
        left = (expected - done) * (took / done if done else 1.0)
        print(f"[{number + 1}/{len(rows)}] {row.name}, about {left:.0f} s left", file=sys.stderr, flush=True)
        result = row.measure(args.tiny)
        done += row.seconds
        results.append(
            dict(name=row.name, what=row.what, floor=row.floor, unit=row.unit, bar=row.bar, value=result.value)
            | dict(met=result.value <= row.bar, detail=result.detail)
        )
        print(told(row, result), flush=True)
    missed = [str(result["name"]) for result in results if not result["met"]]
    seconds = time.monotonic() - begun
    verdict = f"missed: {', '.join(missed)}" if missed else "all bars are met"
    print(f"\n{machine()}; {seconds:.0f} s; {verdict}")
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"rows": results, "machine": machine(), "seconds": seconds}, indent=2) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
