"""Where the marks of a chart go. The template draws them, so that every word in a chart is escaped like any other.

They are laid by hand, not by matplotlib, because the page needs what its SVG has not:

- Colours are the page's variables, so one drawing is right on a light page and on a dark one.
- Words are the page's own, in its font, never below 12 pixels: the chart of costs is laid out twice, for a desktop and
  for a phone, and a panel of a curve is one path that the page stretches to its column, with words beside it.
- Of two charts on a page no two elements have one id: matplotlib's has 244.
- A map of 1,797 images has 18 kB, by matplotlib 3.11.2 it has 198, and a report two for every method; the chart of 8
  methods has 4 kB instead of 38, a panel 0.5 instead of 5.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from odc.comparison.ranking import Spread

# -- quality against cost --------------------------------------------------------------------------------------------

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 44  # CSS pixels around the plot
_FONT = 13
_LEAST = 0.01  # seconds
CHAR = 0.68 * _FONT  # of a bold letter; generous, because fonts differ


@dataclass(frozen=True)
class Point:
    """What one method reached: seconds, seconds with what it starts from if there is that, and accuracy in [0, 1]."""

    name: str
    cost: Spread
    total: Spread | None
    quality: Spread


class Box(NamedTuple):
    """A rectangle in CSS pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Return the area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


@dataclass(frozen=True)
class Mark:
    """A method in the plot, in CSS pixels: error bars are pairs of ends."""

    name: str
    x: float
    y: float
    total_x: float | None
    x_bar: tuple[float, float] | None
    y_bar: tuple[float, float] | None

    def boxes(self) -> list[Box]:
        """Return what names should not cover: the mark, its error bars and the line to the other mark."""
        x, y, spots = self.x, self.y, [self.x] if self.total_x is None else [self.x, self.total_x]
        left, right = self.x_bar or (x, x)
        low, high = self.y_bar or (y, y)
        lines = [
            Box(min(spots), y - 2, max(spots), y + 2),
            Box(left, y - 2, right, y + 2),
            Box(x - 2, high, x + 2, low),
        ]
        return [*(Box(spot - 6, y - 6, spot + 6, y + 6) for spot in spots), *lines]


@dataclass(frozen=True)
class Label:
    """A mark's name."""

    box: Box
    anchor: str  # of its SVG text
    x: float  # where that is anchored
    leader: bool  # a line has to lead there from the mark


@dataclass(frozen=True)
class CostChart:
    """Quality against cost, at one size: ticks are positions and their words."""

    width: int
    height: int
    frame: Box
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    marks: list[tuple[Mark, Label]]


def cost_chart(points: Sequence[Point], width: int, height: int) -> CostChart:
    """Place methods (at least one) by seconds, on a logarithmic axis, and quality; no two names overlap if they can."""
    costs = [max(_LEAST, value.mean) for p in points for value in (p.cost, p.total or p.cost)]
    low_x, high_x = math.log10(min(costs)) - 0.2, math.log10(max(costs)) + 0.2
    ends = [100 * (p.quality.mean + sign * (p.quality.std or 0.0)) for p in points for sign in (-1, 1)]
    pad = max(2.0, 0.08 * (max(ends) - min(ends)))
    low_y, high_y = max(-2.0, min(ends) - pad), min(102.0, max(ends) + pad)
    frame = Box(_LEFT, _TOP, width - _RIGHT, height - _BOTTOM)

    def place_x(seconds: float) -> float:
        share = (math.log10(max(seconds, 10**low_x)) - low_x) / (high_x - low_x)
        return round(frame.left + min(1.0, share) * (frame.right - frame.left), 1)

    def place_y(percent: float) -> float:
        share = (percent - low_y) / (high_y - low_y)
        return round(frame.bottom - min(1.0, max(0.0, share)) * (frame.bottom - frame.top), 1)

    def bar(place: Callable[[float], float], value: Spread, factor: float = 1) -> tuple[float, float] | None:
        if value.std is None:
            return None
        return place(factor * (value.mean - value.std)), place(factor * (value.mean + value.std))

    marks = []
    for p in points:
        total_x = None if p.total is None else place_x(p.total.mean)
        bars = bar(place_x, p.cost), bar(place_y, p.quality, 100)
        marks.append(Mark(p.name, place_x(p.cost.mean), place_y(100 * p.quality.mean), total_x, *bars))
    taken = [box for mark in marks for box in mark.boxes()]
    labels = []
    for mark in marks:
        labels.append(_label(mark, frame, taken))
        taken.append(labels[-1].box)
    x_ticks = [(place_x(v), f"{v:g}") for v in log_ticks(10**low_x, 10**high_x, (frame.right - frame.left) // 64)]
    y_ticks = [(place_y(v), f"{v:g}") for v in ticks(low_y, high_y, (frame.bottom - frame.top) // 40)]
    return CostChart(width, height, frame, x_ticks, y_ticks, list(zip(marks, labels, strict=True)))


def _label(mark: Mark, frame: Box, taken: Sequence[Box]) -> Label:
    """Return the place of a mark's name beside it."""
    box, distance = place(mark.x, mark.y, CHAR * len(mark.name), _FONT + 3.0, frame, taken)
    # The side that faces the mark is the one that is exact, whatever the font.
    anchor, x = "middle", (box.left + box.right) / 2
    if box.left > mark.x:
        anchor, x = "start", box.left
    elif box.right < mark.x:
        anchor, x = "end", box.right
    return Label(box, anchor, round(x, 1), distance > 20)


def place(
    x: float, y: float, width: float, height: float, frame: Box, taken: Sequence[Box], *, over: bool = False
) -> tuple[Box, int]:
    """Return where a name goes beside a point, or ``over`` it, and how far from it: nearest of what covers least."""
    ways = [(0, 0.0, 0.0)] if over else []
    for distance in (9, 14, 20, 28, 38, 50, 64, 80, 100, 130):
        angles = map(math.radians, (0, 180, 270, 90, 315, 225, 45, 135))
        ways += [(distance, math.cos(angle), math.sin(angle)) for angle in angles]
    found: list[tuple[float, int, Box]] = []
    for distance, dx, dy in ways:
        left = x + distance * dx - width * (1 - dx) / 2
        top = y + distance * dy - height * (1 - dy) / 2
        # A name is moved back into the frame rather than refused: phones are narrow.
        left = max(frame.left, min(left, frame.right - width))
        top = max(frame.top, min(top, frame.bottom - height))
        box = Box(round(left, 1), round(top, 1), round(left + width, 1), round(top + height, 1))
        found.append((sum(box.overlap(other) for other in taken), distance, box))
    _, distance, box = min(found, key=lambda way: way[0])  # the first of equals is the nearest
    return box, distance


def ticks(low: float, high: float, most: float) -> list[float]:
    """Return round numbers between ``low`` and ``high``, a step of 1, 2 or 5 times a power of ten apart."""
    least = (high - low) / max(1, most)
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= least)
    return [round(i * step, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float, most: float) -> list[float]:
    """Return round numbers between ``low`` and ``high`` (above 0) for a logarithmic axis."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for mantissas in ((1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [float(f"{m}e{p}") for p in powers for m in mantissas if low <= float(f"{m}e{p}") <= high]
        if len(found) <= most:
            break
    return found


# -- learning curves -------------------------------------------------------------------------------------------------

CURVES = {
    "loss": "loss",
    "nmi_prev": "NMI with last labels",
    "churn": "labels that change",
    "entropy": "entropy of the sizes",
    "clusters": "clusters",
    "knn": "kNN accuracy",
    "acc": "ACC",
}
_MOST_POINTS = 300


@dataclass(frozen=True)
class Panel:
    """A quantity over the epochs: the ends of its axes in words, a path for each seed in a square of 100 x 100."""

    name: str
    low: str
    high: str
    first: str
    last: str
    lines: list[str]


def panel(name: str, series: Sequence[Sequence[tuple[float, float]]], span: tuple[float, float]) -> Panel:
    """Draw series of (epoch, value), none of them empty, over the vertical axis ``span``."""
    epochs = [epoch for one in series for epoch, _ in one]
    first, last = min(epochs), max(epochs)
    words = f"{span[0]:.3g}", f"{span[1]:.3g}", f"{first:g}", f"{last:g}"
    return Panel(name, *words, [_path(one, (first, last), span) for one in series])


def _path(series: Sequence[tuple[float, float]], across: tuple[float, float], up: tuple[float, float]) -> str:
    """Return the SVG path of at most :data:`_MOST_POINTS` of the points, in a square of 100 x 100."""
    step = math.ceil(len(series) / _MOST_POINTS)
    spots = [
        f"{100 * (x - across[0]) / ((across[1] - across[0]) or 1):.4g} {100 * (up[1] - y) / ((up[1] - up[0]) or 1):.4g}"
        for x, y in [*series[:-1:step], series[-1]]
    ]
    return "M" + "L".join(spots) + ("h0" if len(spots) == 1 else "")


def curves_of(curves: Mapping[str, Mapping[int, Sequence[Mapping[str, float]]]]) -> dict[str, list[Panel]]:
    """Return small multiples, of epochs by method and seed.

    All methods share a quantity's axis, but for the loss, which is another for each.
    """

    def series(one: Sequence[Mapping[str, float]], name: str) -> list[tuple[float, float]]:
        found = [(e["epoch"], e[name]) for e in one if "epoch" in e and name in e]
        return [(epoch, value) for epoch, value in found if math.isfinite(epoch) and math.isfinite(value)]

    def span(lines: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float]:
        values = [value for one in lines for _, value in one]
        low, high = min(values), max(values)
        return (low, high) if high > low else (low - 0.5, high + 0.5)

    every: dict[str, dict[str, list[list[tuple[float, float]]]]] = {}
    for method, seeds in curves.items():
        drawn = {name: [s for one in seeds.values() if (s := series(one, name))] for name in CURVES}
        # A quantity that was looked at once is no curve.
        every[method] = {name: lines for name, lines in drawn.items() if any(len(line) > 1 for line in lines)}
    shared = {name: [line for drawn in every.values() for line in drawn.get(name, [])] for name in CURVES}
    return {
        method: [panel(CURVES[n], lines, span(lines if n == "loss" else shared[n])) for n, lines in drawn.items()]
        for method, drawn in every.items()
        if drawn
    }


def profile(sizes: Sequence[int]) -> str:
    """Return the SVG path of sizes, largest first, as an area in a square of 100 x 100: for many clusters."""
    tops = _path(list(enumerate(sizes)), (0, len(sizes) - 1), (0, sizes[0]))
    return f"M0 100L{tops[1:]}L100 100z"
