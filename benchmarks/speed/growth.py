"""How time and memory grow with the samples N and the clusters K: what must not depend on their product.

Each point is a process of its own. An iteration is ODC's update with a batch of 512 and a tenth of what follows every
tenth; an order is that of an epoch drawn uniformly over the clusters; the memory is what both take at most, with
features of 32 numbers in half precision, besides what Python and its libraries take.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

import torch

from odc.data.sampler import draw_rows
from odc.heads import ODCHead
from odc.memory import LabelStore
from odc.structures import Batch, LocalComm, PseudoLabels, Stream, make_generator

from .timing import in_child, memory_of, timed

D, B, EVERY = 32, 512, 10
SAMPLES, CLUSTERS = (10**4, 10**5, 10**6, 10**7), (10**2, 10**3, 10**4, 10**5)
WHAT = {"iteration": "ms an iteration of ODC", "draw": "s an epoch's order", "memory": "MiB"}


def point(N: int, K: int) -> dict[str, float]:
    """Return what N samples in K clusters take, by the names of :data:`WHAT`."""
    torch.set_num_threads(1)
    rng, comm = make_generator(0, "growth"), LocalComm()
    torch.mm(torch.randn(9, 9), torch.randn(9, 9))
    before = memory_of("VmRSS")
    head, store = ODCHead(D, K, batch_size=B, min_cluster=1, centroid_interval=EVERY), LabelStore(0)
    labels = torch.randint(K, (N,), generator=rng)
    labels[:K] = torch.arange(K)
    features = torch.empty(N, D, dtype=torch.float16)
    for rows in features.split(2**18):
        rows.copy_(torch.randn(len(rows), D, generator=rng))
    head.memory.fill(features, labels)
    del features
    store.replace(PseudoLabels(torch.arange(N)[:, None], labels[:, None], (K,)))
    view = store.view()

    def iterations() -> None:
        for _ in range(EVERY):
            ids = torch.randint(N, (B,), generator=rng)
            z = {"train": head.memory.bank.rows[ids].float()[:, None]}
            for delta in head.update({"train": Batch(ids, ids[:, None], ids, ids[:, None], z)}, view, rng, comm):
                store.update(delta)

    iteration = statistics.median(timed(iterations).cpu for _ in range(4)) / EVERY
    stream = Stream("train", B, balance=(0,))
    draw = statistics.median(timed(lambda: draw_rows(stream, store.target, None, rng)).cpu for _ in range(3))
    return {"iteration": 1e3 * iteration, "draw": draw, "memory": memory_of("VmHWM") - before}


def slope(x: tuple[int, ...], y: list[float]) -> float:
    """Return the slope of log y over log x between the last two points, where what is constant counts least."""
    return math.log(y[-1] / y[-2]) / math.log(x[-1] / x[-2])


def measure() -> dict[str, Any]:
    """Return the points over N, with K = 100, and over K, with N = 1 M."""
    found: dict[str, Any] = {}
    for name, sizes in (("N", SAMPLES), ("K", CLUSTERS)):
        points = []
        for size in sizes:
            points.append(in_child(point, *((size, 100) if name == "N" else (10**6, size))))
            print(f"growth: {name} = {size:,}", flush=True)
        found[name] = {what: [p[what] for p in points] for what in WHAT}
    return found


def table(found: dict[str, Any]) -> str:
    """Return the points as tables in Markdown."""
    lines = []
    for name, sizes, fixed in (("N", SAMPLES, "K = 100"), ("K", CLUSTERS, "N = 1,000,000")):
        lines += [f"| {name} ({fixed}) | " + " | ".join(f"{size:,}" for size in sizes) + " | slope at the end |"]
        lines += ["|---" * (len(sizes) + 2) + "|"]
        for what, words in WHAT.items():
            values = found[name][what]
            cells = " | ".join(f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in values)
            lines.append(f"| {words} | {cells} | {slope(sizes, values):.2f} |")
        lines.append("")
    return "\n".join(lines)


def plot(found: dict[str, Any]) -> str:
    """Return an SVG: for N and for K a panel with a line for each of :data:`WHAT`, each over its first point."""
    colours = dict(zip(WHAT, ("#3b6fb6", "#c05a2e", "#4d8b4d"), strict=True))
    ratios = [v / line[0] for panel in found.values() for line in panel.values() for v in line]
    low, high = math.floor(math.log10(min(ratios))), math.ceil(math.log10(max(*ratios, SAMPLES[-1] / SAMPLES[0])))
    out = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 330" font-family="sans-serif" font-size="12">',
        '<rect width="760" height="330" fill="#fff"/>',
    ]

    def height(value: float) -> float:
        return 260 - 220 * (math.log10(value) - low) / (high - low)

    for left, (name, sizes, fixed) in zip(
        (60, 420), (("N", SAMPLES, "K = 100"), ("K", CLUSTERS, "N = 1,000,000")), strict=True
    ):
        places = [left + 300 * i / (len(sizes) - 1) for i in range(len(sizes))]
        for power in range(low, high + 1):
            y = height(10.0**power)
            label = f"{10.0**power:g}".replace("1e+0", "1e")
            out.append(f'<path d="M{left} {y:.1f}h300" stroke="#ddd"/>')
            out.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555">×{label}</text>')
        for x, size in zip(places, sizes, strict=True):
            out.append(f'<text x="{x:.1f}" y="278" text-anchor="middle" fill="#555">{size:,}</text>')
        out.append(f'<text x="{left + 150}" y="26" text-anchor="middle">{name} ({fixed})</text>')
        ends = [(places[0], 1.0), (places[-1], sizes[-1] / sizes[0])]
        line = " ".join(f"{x:.1f},{height(v):.1f}" for x, v in ends)
        out.append(f'<polyline points="{line}" fill="none" stroke="#999" stroke-dasharray="4 4"/>')
        for what, colour in colours.items():
            values = found[name][what]
            line = " ".join(f"{x:.1f},{height(v / values[0]):.1f}" for x, v in zip(places, values, strict=True))
            out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
            out += [
                f'<circle cx="{x:.1f}" cy="{height(v / values[0]):.1f}" r="3" fill="{colour}"/>'
                for x, v in zip(places, values, strict=True)
            ]
    for i, (what, colour) in enumerate(colours.items()):
        x = 60 + 220 * i
        out.append(f'<path d="M{x} 306h24" stroke="{colour}" stroke-width="2"/>')
        out.append(f'<text x="{x + 30}" y="310">{WHAT[what]}</text>')
    out.append('<path d="M680 306h24" stroke="#999" stroke-dasharray="4 4"/><text x="710" y="310">linear</text></svg>')
    return "\n".join(out) + "\n"
