"""Time of a step of TEMI, against its bare matrix products in the same run.

A step is what training does with a batch of pairs once their features are there: teachers, students, loss, gradients,
AdamW, and the update of teachers and marginals. The floor is the matrix products of the layers alone, of the same
shapes: teachers forward, students forward, and of the students the gradients of all weights and of all but the first
layer's input; no bias, GELU, normalisation, softmax, optimiser or average. Steps of both are timed in turn, and the
median of the pairs' ratios is the result.

    python benchmarks/speed/temi.py                    # H = 16, D = 1,280, K = 43, 512 pairs, one thread
    python benchmarks/speed/temi.py --heads 50 --dim 384 --clusters 100
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from odc.comparison.provenance import cpu_model
from odc.heads import TEMIHead
from odc.memory import LabelStore
from odc.structures import Batch, LocalComm, make_generator


def timed(work: Callable[[], object]) -> float:
    """Return the seconds of all threads that a call takes; what else the machine does counts little."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Run the benchmark and print, and with ``--json`` write, the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=16, help="H (default %(default)s)")
    parser.add_argument("--dim", type=int, default=1280, help="D (default %(default)s)")
    parser.add_argument("--clusters", type=int, default=43, help="K (default %(default)s)")
    parser.add_argument("--batch", type=int, default=512, help="pairs a step (default %(default)s)")
    parser.add_argument("--pairs", type=int, default=9, help="steps of ours and of the floor (default %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    head = TEMIHead(args.dim, args.clusters, num_heads=args.heads, batch_size=args.batch)
    head.epochs.set(2)  # the directions train
    optimizer = torch.optim.AdamW(head.student.parameters(), lr=1e-3, fused=True)
    z = torch.randn(args.batch, 2, args.dim, generator=make_generator(0, "z"))
    none = torch.zeros(args.batch, dtype=torch.int64)
    batches = {"pairs": Batch(none, none[:, None].expand(-1, 2), none, none[:, None], {"extract": z})}
    labels, comm = LabelStore(0).view(), LocalComm()

    def step() -> None:
        optimizer.zero_grad()
        losses = head.loss(batches, labels, make_generator(0), comm)
        losses.train["loss"].backward()
        optimizer.step()
        with torch.no_grad():
            head.update(batches, labels, make_generator(0), comm)

    x = z.flatten(0, 1)
    w1, w2, w3 = (p.detach() for p in (head.student.weight1, head.student.weight2, head.student.direction))

    def products() -> None:
        for gradients in (False, True):
            hidden = F.linear(x, w1.flatten(0, 1)).unflatten(1, w1.shape[:2]).transpose(0, 1)
            embedding = torch.bmm(hidden, w2.mT)
            logits = torch.bmm(embedding, w3.mT)
            if gradients:
                torch.bmm(logits.mT, embedding)
                back = torch.bmm(logits, w3)
                torch.bmm(back.mT, hidden)
                back = torch.bmm(back, w2).transpose(0, 1).flatten(1)
                torch.mm(back.T, x)

    for work in (step, products):
        work()
    pairs = []
    with torch.no_grad():
        for pair in range(args.pairs):
            with torch.enable_grad():
                ours = timed(step) if pair % 2 else 0.0
            floor = timed(products)
            with torch.enable_grad():
                pairs.append((ours or timed(step), floor))
    ratios = [a / b for a, b in pairs]
    record: dict[str, Any] = {k: v for k, v in vars(args).items() if k != "json"}
    record |= {
        "step_s": statistics.median(a for a, _ in pairs),
        "products_s": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "torch": torch.__version__,
        "cpu": cpu_model(),
    }
    print(
        f"TEMI, H={args.heads} D={args.dim} K={args.clusters}, {args.batch} pairs, {args.threads} thread(s), torch "
        f"{torch.__version__}, {cpu_model()}\n"
        f"step           {record['step_s'] * 1e3:8.1f} ms\n"
        f"bare products  {record['products_s'] * 1e3:8.1f} ms\n"
        f"ratio          {record['ratio']:8.2f}    median of n={args.pairs} pairs, {min(ratios):.2f} to "
        f"{max(ratios):.2f}"
    )
    if args.json:
        args.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
