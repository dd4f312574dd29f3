"""Time of two-level k-means, against bare FAISS calls that do the same work in the same run.

Ours is ``odc.clustering.two_level_kmeans``: m super-clusters, then k/m sub-clusters in each, repairs and labels
included. The floor is what one would write with FAISS alone: ``Clustering.train`` on all points with m centroids and a
search; then for each super-cluster the copy of its points, ``Clustering.train`` with k/m centroids and a search; no
repair. Both train on all points, for as many iterations (FAISS stops, as ours does, where nothing changes). They are
timed in turn, and the median of the pairs' ratios is the result.

The points are unit vectors around k random ones that overlap, so that no run converges early.

    python benchmarks/speed/two_level.py                       # N = 1 M, D = 256, m = 4, k = 4,000, one thread
    python benchmarks/speed/two_level.py --samples 100000 --clusters 400 --pairs 3
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odc.clustering import l2_normalize_, two_level_kmeans
from odc.clustering.kmeans import load_faiss
from odc.comparison.provenance import cpu_model
from odc.structures import LocalComm, make_generator


def make_points(args: argparse.Namespace) -> Tensor:
    """Return (N, D) float32 unit vectors around k random ones."""
    rng = make_generator(args.seed, "two_level")
    centres = torch.randn(args.clusters, args.dim, generator=rng).mul_(0.4)  # they overlap: k-means does not converge
    x = torch.empty(args.samples, args.dim)
    for rows in x.split(65536):
        rows.normal_(generator=rng).add_(centres[torch.randint(args.clusters, (len(rows),), generator=rng)])
    l2_normalize_(x)
    return x


def bare_faiss(points: Any, args: argparse.Namespace, seed: int) -> float:
    """Return the mean squared distance to the centroids of two levels of FAISS's k-means."""
    faiss = load_faiss()

    def level(x: Any, k: int) -> tuple[Any, Any]:
        clustering = faiss.Clustering(args.dim, k)
        clustering.niter = args.iterations
        clustering.seed = seed
        clustering.min_points_per_centroid = 1
        clustering.max_points_per_centroid = 10_000_000
        index = faiss.IndexFlatL2(args.dim)
        clustering.train(x, index)
        distances, labels = index.search(x, 1)
        return distances[:, 0], labels[:, 0]

    _, labels = level(points, args.super)
    total = 0.0
    for s in range(args.super):
        distances, _ = level(np.ascontiguousarray(points[labels == s]), args.clusters // args.super)
        total += float(distances.sum(dtype=np.float64))
    return total / len(points)


def main() -> None:
    """Run the benchmark and print, and with ``--json`` write, the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000, help="N (default %(default)s)")
    parser.add_argument("--dim", type=int, default=256, help="D (default %(default)s)")
    parser.add_argument("--super", type=int, default=4, help="m (default %(default)s)")
    parser.add_argument("--clusters", type=int, default=4_000, help="k in all (default %(default)s)")
    parser.add_argument("--iterations", type=int, default=10, help="of either level (default %(default)s)")
    parser.add_argument("--pairs", type=int, default=3, help="runs of ours and of the floor (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch and FAISS (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the points (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss = load_faiss()
    faiss.omp_set_num_threads(args.threads)

    x = make_points(args)
    points = x.numpy()
    points_mib = x.numel() * 4 / 2**20
    peaks = {}
    objectives: dict[str, list[float]] = {"ours": [], "faiss": []}
    result: Any = None

    def ours(pair: int) -> float:
        nonlocal result
        start = time.perf_counter()
        result = two_level_kmeans(
            x,
            args.clusters,
            args.super,
            n_iter=args.iterations,
            generator=make_generator(args.seed, pair),
            comm=LocalComm(),
        )
        seconds = time.perf_counter() - start
        distances = [
            (rows - result.sub_centroids[s, z]).square().sum()
            for rows, s, z in zip(
                x.split(65536), result.super_labels.split(65536), result.sub_labels.split(65536), strict=True
            )
        ]
        objectives["ours"].append(float(torch.stack(distances).double().sum()) / len(x))
        return seconds

    def floor(pair: int) -> float:
        start = time.perf_counter()
        objectives["faiss"].append(bare_faiss(points, args, pair + 1))
        return time.perf_counter() - start

    pairs = []
    for pair in range(args.pairs):
        if pair % 2:
            seconds = floor(pair)
            pairs.append((ours(pair), seconds))
        else:
            seconds = ours(pair)
            if pair == 0:  # before FAISS has taken anything
                peaks["ours"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            pairs.append((seconds, floor(pair)))
    peaks["both"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ratios = [a / b for a, b in pairs]
    record = {
        "samples": args.samples,
        "dim": args.dim,
        "super": args.super,
        "clusters": args.clusters,
        "iterations": args.iterations,
        "threads": args.threads,
        "pairs": args.pairs,
        "ours_s": statistics.median(a for a, _ in pairs),
        "faiss_s": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "ours_objective": statistics.mean(objectives["ours"]),
        "faiss_objective": statistics.mean(objectives["faiss"]),
        "super_imbalance": result.super_imbalance,
        "sub_imbalance": result.sub_imbalance,
        "refilled": result.refilled,
        "points_mib": points_mib,
        "ours_peak_memory_mib": peaks["ours"],
        "peak_memory_mib": peaks["both"],
        "torch": torch.__version__,
        "faiss": faiss.__version__,
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
    }
    print(
        f"N={args.samples} D={args.dim} m={args.super} k={args.clusters}, {args.iterations} iterations, "
        f"{args.threads} thread(s), torch {torch.__version__}, faiss {faiss.__version__}, {cpu_model()}\n"
        f"two_level_kmeans {record['ours_s']:8.2f} s, mean squared distance {record['ours_objective']:.4f}\n"
        f"bare FAISS       {record['faiss_s']:8.2f} s, mean squared distance {record['faiss_objective']:.4f}\n"
        f"ratio            {record['ratio']:8.2f}    median of n={args.pairs} pairs, "
        f"{min(ratios):.2f} to {max(ratios):.2f}\n"
        f"peak memory {peaks['ours']:.0f} MiB after the first run of ours, {peaks['both']:.0f} MiB in all; "
        f"the points are {points_mib:.0f} MiB"
    )
    if args.json:
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
