"""Time of TURTLE's step, against its bare matrix products in the same run.

Ours is everything that a training does once the features of a batch are there: the labels, ten inner steps of Adam on
classifiers that are drawn anew, the loss, its gradient, and the optimiser's move. The floor is only the products, into
memory that is there already: for each space 2M + 3 of them, each of 2·B·D·K operations (M inner steps forward and
backward, the labels, the trained classifiers' scores, the gradient of the labels), and the projection of ``--whiten``.
They are timed in turn, and the median of the pairs' ratios is the result.

    python benchmarks/speed/turtle.py                                          # two spaces, K = 100, one thread
    python benchmarks/speed/turtle.py --spaces 1280 --clusters 43 --whiten 256 --samples 2048   # the config of features
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from odc.comparison.provenance import cpu_model
from odc.heads import TurtleHead
from odc.memory.labels import LabelStore
from odc.structures import Batch, FeatureTable, LocalComm, make_generator


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bare_products(head: TurtleHead, x: Tensor) -> Callable[[], None]:
    """Return the products of a step on features (B, D), as a function."""
    rng, B, K = make_generator(0, "floor"), len(x), head.num_clusters
    parts = x.split(head.spaces, 1)
    shapes = list(zip(parts, head.widths, strict=True))
    inputs = [torch.randn(B, d, generator=rng) if head.whiten else part for part, d in shapes]
    projections = [torch.randn(part.shape[1], d, generator=rng) for part, d in shapes]
    weights = [torch.randn(K, d, generator=rng) for _, d in shapes]
    scores, gradients = torch.randn(B, K, generator=rng), [torch.empty_like(w) for w in weights]
    projected, out = [torch.empty_like(part) for part in inputs], torch.empty(B, K)

    def products() -> None:
        for s, part in enumerate(inputs):
            if head.whiten:
                torch.mm(parts[s], projections[s], out=projected[s])
            for _ in range(head.inner_steps + 2):
                torch.mm(part, weights[s].T, out=out)
            for _ in range(head.inner_steps + 1):
                torch.mm(scores.T, part, out=gradients[s])

    return products


def main() -> None:
    """Run the benchmark and print, and with ``--json`` write, the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5_000, help="rows a step (default %(default)s)")
    parser.add_argument("--spaces", type=int, nargs="+", default=[768, 1280], help="D of each (default %(default)s)")
    parser.add_argument("--clusters", type=int, default=100, help="K (default %(default)s)")
    parser.add_argument("--whiten", type=int, help="width of the whitened features (default: as they are)")
    parser.add_argument("--pairs", type=int, default=9, help="steps of ours and of the floor (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    x = torch.randn(args.samples, sum(args.spaces), generator=make_generator(0, "turtle"))
    head, comm = TurtleHead(sum(args.spaces), args.clusters, args.spaces, whiten=args.whiten), LocalComm()
    row = torch.arange(args.samples)
    with torch.no_grad():
        head.refresh(FeatureTable(row, x, None, args.samples), make_generator(0), comm)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
    batches = {"train": Batch(row, row[:, None], 0 * row, -1 - 0 * row[:, None], {"extract": x[:, None]})}
    labels = LabelStore(0).view()

    def step() -> None:
        optimizer.zero_grad()
        losses = head.loss(batches, labels, make_generator(0), comm)
        torch.stack(list(losses.train.values())).sum().backward()
        optimizer.step()

    floor = bare_products(head, x)
    step()
    floor()
    pairs = []
    for pair in range(args.pairs):
        first, second = (step, floor) if pair % 2 else (floor, step)
        seconds = {first: timed(first), second: timed(second)}
        pairs.append((seconds[step], seconds[floor]))
    ratios = [a / b for a, b in pairs]
    record = {k: v for k, v in vars(args).items() if k != "json"}
    record |= {
        "step_s": statistics.median(a for a, _ in pairs),
        "floor_s": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "torch": torch.__version__,
        "cpu": cpu_model(),
    }
    print(
        f"B={args.samples} D={'+'.join(map(str, args.spaces))} K={args.clusters} M={head.inner_steps} "
        f"whiten={args.whiten}, {args.threads} thread(s), torch {torch.__version__}, {record['cpu']}\n"
        f"TURTLE's step  {record['step_s'] * 1e3:8.1f} ms\n"
        f"bare products  {record['floor_s'] * 1e3:8.1f} ms\n"
        f"ratio          {record['ratio']:8.2f}    median of n={args.pairs} pairs, "
        f"{min(ratios):.2f} to {max(ratios):.2f}"
    )
    if args.json:
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
