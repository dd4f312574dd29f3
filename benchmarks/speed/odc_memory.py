"""Time of ODC's memory per iteration, against the matrix product that no implementation of it can avoid.

One iteration is what ``ODCHead.update`` does with a batch of B samples, labels included, plus a tenth of the centroids
and splits that follow every tenth. The yardstick is ``torch.mm`` of (B, D) by (D, K): the scores of B samples
under K centroids. Blocks of ten of either are timed in turn, and the median of the blocks' ratios is the result.

The memory starts from K random unit vectors with noise around them, in clusters of uneven sizes, so that labels are
as stable as in training; one in twenty features of a batch comes from another cluster than its sample's, so that
labels and clusters also change.

    python benchmarks/speed/odc_memory.py                      # N = 1.28 M, K = 10,000, D = 256, B = 512, one thread
    python benchmarks/speed/odc_memory.py --samples 20000 --clusters 200 --pairs 3
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from odc.comparison.provenance import cpu_model
from odc.heads import ODCHead
from odc.memory import LabelStore
from odc.structures import Batch, LabelDelta, LocalComm, PseudoLabels

EVERY = 10  # iterations between two recomputations of the centroids


def around(centres: Tensor, clusters: Tensor, generator: torch.Generator) -> Tensor:
    """Return a feature (n, D) for each cluster id (n,): its centre (unit length) and noise of norm 0.7."""
    noise = torch.randn(len(clusters), centres.shape[1], generator=generator)
    return centres[clusters] + noise.mul_(0.7 / centres.shape[1] ** 0.5)


def filled(args: argparse.Namespace, centres: Tensor, generator: torch.Generator) -> tuple[ODCHead, LabelStore]:
    """Return a head whose memory is filled with synthetic clusters of log-normal sizes, and the store of its labels."""
    N, K, D = args.samples, args.clusters, args.dim
    head = ODCHead(D, K, batch_size=args.batch, min_cluster=args.min_cluster, centroid_interval=EVERY)
    weights = torch.randn(K, generator=generator).mul_(0.5).exp_()
    labels = torch.multinomial(weights, N, replacement=True, generator=generator)
    features = torch.empty(N, D, dtype=torch.float16)
    for start in range(0, N, 65536):
        features[start : start + 65536] = around(centres, labels[start : start + 65536], generator)
    head.memory.fill(features, labels)
    store = LabelStore(0)
    store.replace(PseudoLabels(torch.arange(N)[:, None], labels[:, None], (K,)))
    return head, store


def make_batches(
    args: argparse.Namespace, labels: Tensor, centres: Tensor, generator: torch.Generator
) -> list[tuple[Tensor, Tensor]]:
    """Return batches of ids (B,) and features (B, D), one in twenty from a random cluster."""
    batches = []
    for _ in range(EVERY * min(args.pairs, 8)):
        ids = torch.randint(args.samples, (args.batch,), generator=generator)
        clusters = labels[ids]
        stray = torch.rand(args.batch, generator=generator) < 0.05
        clusters[stray] = torch.randint(args.clusters, (int(stray.sum()),), generator=generator)
        batches.append((ids, around(centres, clusters, generator)))
    return batches


def main() -> None:
    """Run the benchmark and print, and with ``--json`` write, the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_280_000, help="N (default %(default)s)")
    parser.add_argument("--clusters", type=int, default=10_000, help="K (default %(default)s)")
    parser.add_argument("--dim", type=int, default=256, help="D (default %(default)s)")
    parser.add_argument("--batch", type=int, default=512, help="B (default %(default)s)")
    parser.add_argument("--min-cluster", type=int, default=20, help="t (default %(default)s)")
    parser.add_argument("--pairs", type=int, default=20, help="pairs of blocks of ten iterations (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the data (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    generator = torch.Generator().manual_seed(args.seed)
    centres = F.normalize(torch.randn(args.clusters, args.dim, generator=generator), dim=1)
    head, store = filled(args, centres, generator)
    memory, comm = head.memory, LocalComm()
    start = time.perf_counter()
    rows, new = memory.plan_split(store.view(), generator)
    memory.relabel(rows, new, store.view())
    store.update(LabelDelta(rows, new[:, None]))
    memory.update_centroids(store.counts)
    first_split, moved_first = time.perf_counter() - start, len(rows)
    batches = make_batches(args, store.target[:, 0], centres, generator)
    scores = torch.empty(args.batch, args.clusters)
    changed = moved = 0

    def ours(block: int) -> float:
        nonlocal changed, moved
        chosen = [batches[(block * EVERY + i) % len(batches)] for i in range(EVERY)]
        given = [
            {"train": Batch(ids, ids[:, None], ids, ids[:, None], {"train": features[:, None]})}
            for ids, features in chosen
        ]
        before = store.target.clone()
        start = time.perf_counter()
        for batch in given:
            for number, delta in enumerate(head.update(batch, store.view(), generator, comm)):
                store.update(delta)
                moved += number * len(delta.row)  # the second ones are those of splits
        seconds = (time.perf_counter() - start) / EVERY
        changed += int((store.target != before).sum())
        return seconds

    def product(block: int) -> float:
        chosen = [batches[(block * EVERY + i) % len(batches)][1] for i in range(EVERY)]
        start = time.perf_counter()
        for features in chosen:
            torch.mm(features, memory.centroids.T, out=scores)
        return (time.perf_counter() - start) / EVERY

    ours(0), product(0)  # warm-up
    changed = moved = 0
    pairs = []
    for block in range(1, args.pairs + 1):
        if block % 2:
            pairs.append((ours(block), product(block)))
        else:
            seconds = product(block)
            pairs.append((ours(block), seconds))
    ratios = sorted(a / b for a, b in pairs)
    quarter = len(ratios) // 4
    result = {
        "samples": args.samples,
        "clusters": args.clusters,
        "dim": args.dim,
        "batch": args.batch,
        "threads": args.threads,
        "pairs": args.pairs,
        "iteration_ms": 1e3 * statistics.median(a for a, _ in pairs),
        "product_ms": 1e3 * statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": [ratios[quarter], ratios[-1 - quarter]],
        "labels_changed_per_iteration": changed / (EVERY * args.pairs),
        "moved_by_splits_per_iteration": moved / (EVERY * args.pairs),
        "first_split_s": first_split,
        "first_split_moved": moved_first,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "torch": torch.__version__,
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
    }
    low, high = ratios[quarter], ratios[-1 - quarter]
    print(
        f"N={args.samples} K={args.clusters} D={args.dim} B={args.batch}, {args.threads} thread(s), "
        f"torch {torch.__version__}, {cpu_model()}\n"
        f"memory   {result['iteration_ms']:8.2f} ms an iteration: memory, labels, a tenth of centroids and splits\n"
        f"product  {result['product_ms']:8.2f} ms (torch.mm, B×D by D×K)\n"
        f"ratio    {result['ratio']:8.2f}    median of n={args.pairs} paired blocks of {EVERY}, "
        f"quartiles {low:.2f} to {high:.2f}\n"
        f"labels changed {changed / (EVERY * args.pairs):.1f} an iteration, "
        f"moved by splits {moved / (EVERY * args.pairs):.1f}; "
        f"first splits {first_split:.2f} s for {moved_first} samples; "
        f"peak memory {result['peak_memory_mib']:.0f} MiB"
    )
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
