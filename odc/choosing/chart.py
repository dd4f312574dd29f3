"""The criteria over the number of clusters, as a picture."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from odc.choosing.choose import Choice
from odc.files import written_whole

TITLES = {  # of each criterion: what a person reads
    "silhouette": "silhouette (higher is better)",
    "davies_bouldin": "Davies–Bouldin index (lower is better)",
    "stability": "stability: agreement of halves (higher is better)",
    "coding_length": "coding length, bits an image (lower is better)",
}
NAMES = {
    "silhouette": "silhouette",
    "davies_bouldin": "Davies–Bouldin",
    "stability": "stability",
    "coding_length": "coding length",
    "hdbscan": "HDBSCAN",
}
_OWN, _NULL, _CHOSEN = "#4477aa", "#999999", "#cc3311"


def draw(choice: Choice, path: Path) -> None:
    """Write a PNG: a panel for each curve with the null and the vote, one of all votes; the choice runs through all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    figure = Figure(figsize=(11, 6.4), layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(sentence(choice), 110)), fontsize=12)
    panels: list[Any] = list(figure.subplots(2, 3).flat)
    ticks = [K for K in (2, 3, 5, 10, 20, 30, 50, 100, 200, 500) if choice.ks[0] <= K <= choice.ks[-1]]
    for axes, (name, title) in zip(panels, TITLES.items(), strict=False):
        axes.plot(choice.ks, choice.curves[name], color=_OWN, marker=".", markersize=4, label="these features")
        if name in choice.null:
            axes.plot(choice.ks, choice.null[name], color=_NULL, linestyle="--", label="data without clusters")
        elif choice.one_cluster is not None:
            axes.axhline(choice.one_cluster, color=_NULL, linestyle="--", label="all as one cluster")
        vote = choice.votes.get(name)
        if vote is not None:
            at = choice.curves[name][choice.ks.index(vote)]
            axes.plot([vote], [at], "o", color=_OWN, markersize=9, fillstyle="none", label=f"it names {vote}")
        axes.set_title(title, fontsize=10)
        axes.legend(frameon=False, fontsize=8)
    _draw_votes(panels[4], choice)
    panels[5].set_axis_off()
    panels[5].text(0, 1, _legend(choice), va="top", fontsize=9, transform=panels[5].transAxes, linespacing=1.5)
    for axes in panels[:5]:
        axes.set_xscale("log")
        axes.set_xlim(choice.ks[0] / 1.08, max(choice.ks[-1], choice.highest) * 1.08)
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda K, _: f"{K:g}"))
        axes.set_xlabel("number of clusters", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        if choice.k is not None:
            axes.axvspan(choice.lowest / 1.01, choice.highest * 1.01, color=_CHOSEN, alpha=0.1, linewidth=0)
            axes.axvline(choice.k, color=_CHOSEN, linewidth=1.5)
    FigureCanvasAgg(figure)
    with written_whole(path) as file:
        figure.savefig(file, format="png", dpi=110)


def _draw_votes(axes: Any, choice: Choice) -> None:
    names = [name for name in NAMES if name in choice.votes][::-1]
    for row, name in enumerate(names):
        vote = choice.votes[name]
        if vote is None:
            axes.text(choice.ks[0], row, "  does not say", va="center", fontsize=8, color=_NULL)
        else:
            axes.plot([vote], [row], "o", color=_OWN)
            axes.annotate(f"{vote}", (vote, row), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.set_yticks(range(len(names)), [NAMES[name] for name in names], fontsize=9)
    axes.set_ylim(-0.5, len(names) - 0.2)
    axes.set_title("what each names", fontsize=10)


def _legend(choice: Choice) -> str:
    seen = (
        f"{choice.looked_at:,} of {choice.samples:,} images"
        if choice.looked_at < choice.samples
        else (f"{choice.samples:,} images")
    )
    lines = [f"{seen}, {choice.dimensions} principal components"]
    if choice.k is not None:
        lines += [f"red: {choice.k} clusters; band: {choice.lowest} to {choice.highest}"]
    lines += ["dashed: the same of data with their mean and", "covariance, but without clusters"]
    for count, share in choice.hdbscan:
        lines.append(f"HDBSCAN: {count} clusters with {share:.0%} of the images")
    return "\n".join(lines)


def sentence(choice: Choice) -> str:
    """Return the answer as a sentence."""
    if choice.k is None:
        return f"{choice.why[0].upper()}{choice.why[1:]}"
    between = "" if choice.lowest == choice.highest else f" (from {choice.lowest} to {choice.highest})"
    return f"{choice.k} clusters{between}: {choice.why}"


def table(choice: Choice) -> str:
    """Return the votes as lines for a terminal, and the answer below them."""
    lines = [f"{NAMES[name]:15} {'-' if vote is None else vote:>4}" for name, vote in choice.votes.items()]
    return "\n".join([*lines, "", sentence(choice)]) if lines else sentence(choice)
