"""Time and memory of SPICE-Self and of local consistency where both are large: K = 100, 49,900 images of 96 pixels.

What one refresh ("outer iteration") costs after the features are there: labels for ten heads, all steps of its eight
passes over the rows, the choice of a head; then local consistency of all images. The features are synthetic: 100
overlapping clusters in 512 dimensions, which is what a ResNet-34 gives. What the features themselves cost is the
network's speed, measured on a few synthetic images of that size and printed for the two views of a refresh.

The floor of the steps is their bare matrix products, forward and backward, and that of local consistency the product of
all features with each other, both measured in the same run.

    python benchmarks/speed/spice.py                                     # one thread
    python benchmarks/speed/spice.py --samples 5000 --clusters 10        # CIFAR-10's refresh
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odc.clustering import local_consistency
from odc.clustering.kmeans import load_faiss
from odc.comparison.provenance import cpu_model
from odc.heads import SpiceSelfHead
from odc.models import ResNet
from odc.structures import Batch, FeatureTable, LocalComm, make_generator


def peak_mib() -> float:
    """Return the most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def synthetic(args: argparse.Namespace) -> Tensor:
    """Return features (N, D) float32 of overlapping clusters."""
    rng = make_generator(0, "spice")
    centres = torch.randn(args.clusters, args.dim, generator=rng)
    x = torch.randn(args.samples, args.dim, generator=rng)
    return x + 0.3 * centres[torch.randint(args.clusters, (args.samples,), generator=rng)]


def bare_products(head: SpiceSelfHead, rows: int, dim: int) -> float:
    """Return the median seconds of the heads' matrix products for one batch, forward and backward."""
    w1, w2 = head.mlps.weight1.detach(), head.mlps.weight2.detach()
    x = torch.randn(head.num_heads, rows, dim, generator=make_generator(0, "floor"))

    def products() -> None:
        hidden = x @ w1.mT
        out = hidden @ w2.mT
        back = out @ w2  # the gradient of the hidden layer; that of the input is not needed
        out.mT @ hidden
        back.mT @ x

    return statistics.median(timed(products) for _ in range(20))


def main() -> None:
    """Run the benchmark and print, and with ``--json`` write, the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=49_900, help="N (default %(default)s)")
    parser.add_argument("--clusters", type=int, default=100, help="K (default %(default)s)")
    parser.add_argument("--dim", type=int, default=512, help="D (default %(default)s)")
    parser.add_argument("--neighbours", type=int, default=100, help="of local consistency (default %(default)s)")
    parser.add_argument("--steps", type=int, default=200, help="steps to time (default %(default)s)")
    parser.add_argument("--images", type=int, default=32, help="images to time the network on (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch and FAISS (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    load_faiss().omp_set_num_threads(args.threads)
    torch.manual_seed(0)

    x = synthetic(args)
    comm = LocalComm()
    head = SpiceSelfHead(args.dim, args.clusters)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.005)
    record: dict[str, Any] = {k: v for k, v in vars(args).items() if k != "json"}
    record["features_mib"] = x.numel() * 4 / 2**20
    record["before_mib"] = peak_mib()

    start = time.perf_counter()
    with torch.no_grad():
        table = FeatureTable(torch.arange(args.samples), x, head.logits(x), total=args.samples)
        labels = head.refresh(table, make_generator(0), comm)
    record["labels_s"] = time.perf_counter() - start
    del table

    M = len(labels.index)
    order = torch.randperm(M, generator=make_generator(0, "order"))
    size = head.batch_size * head.num_heads
    seconds = []
    for step in range(args.steps):
        row = order[torch.arange(step * size, (step + 1) * size) % M]
        began = time.perf_counter()
        z = {"strong": x[labels.index[row]]}
        batch = Batch(row, labels.index[row], labels.variant[row], labels.target[row], z)
        optimizer.zero_grad()
        losses = head.loss({"train": batch}, None, make_generator(0), comm)  # type: ignore[arg-type]  # asks for no labels
        losses.train["loss"].backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    steps = -(-M // size) * head.repeats
    record["rows"], record["steps_a_refresh"] = M, steps
    record["step_s"] = statistics.median(seconds)
    record["step_floor_s"] = bare_products(head, head.batch_size, args.dim)
    record["steps_s"] = steps * record["step_s"]
    with torch.no_grad():
        whole = FeatureTable(torch.arange(args.samples), x, None, total=args.samples)
        record["select_s"] = timed(lambda: head.select(whole, comm))
    record["self_peak_mib"] = peak_mib()

    with torch.no_grad():
        clusters = head.predict(x).argmax(1)
    record["consistency_s"] = timed(lambda: local_consistency(x, clusters, args.neighbours))
    record["consistency_peak_mib"] = peak_mib()
    record["consistency_floor_s"] = timed(lambda: [part @ x.T for part in x.split(1024)])

    network = ResNet(34, stem="stl").eval()
    images = torch.randn(args.images, 3, 96, 96, generator=make_generator(0, "images"))
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        network.to(memory_format=torch.channels_last)(images[:2])
        record["images_per_s"] = args.images / timed(lambda: network(images))
    record["features_s"] = 2 * args.samples / record["images_per_s"]
    record["torch"], record["machine"] = torch.__version__, cpu_model()

    print(f"N = {args.samples:,}, K = {args.clusters}, D = {args.dim}, {args.threads} thread(s), 10 heads")
    print(f"  labels of a refresh     {record['labels_s']:8.1f} s   {M:,} rows")
    print(
        f"  its {steps:,} steps       {record['steps_s']:10.1f} s   {record['step_s'] * 1e3:.1f} ms each (median of "
        f"{args.steps}), {record['step_s'] / record['step_floor_s']:.2f} x its bare products"
    )
    print(f"  choice of a head        {record['select_s']:8.1f} s")
    print(
        f"  local consistency       {record['consistency_s']:8.1f} s   "
        f"{record['consistency_s'] / record['consistency_floor_s']:.2f} x the bare product of all with all"
    )
    print(
        f"  features of two views   {record['features_s']:8.0f} s   at {record['images_per_s']:.1f} images/s of a "
        f"ResNet-34 ({args.images} images of 96x96)"
    )
    print(
        f"  peak memory {record['before_mib']:.0f} MiB before ({record['features_mib']:.0f} MiB of features), "
        f"{record['self_peak_mib']:.0f} MiB after Self, {record['consistency_peak_mib']:.0f} MiB after consistency"
    )
    if args.json:
        args.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
