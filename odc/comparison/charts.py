"""Where the marks of a chart go. The template draws them, so that every word in a chart is escaped like any other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

# -- quality against cost --------------------------------------------------------------------------------------------

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 44  # CSS pixels around the plot
_FONT = 13
_CHAR = 0.68 * _FONT  # of a bold letter; generous, because fonts differ


@dataclass(frozen=True)
class Point:
    """What one method reached at what cost.

    Attributes:
        name: of the method.
        cost: seconds, above 0.
        total: seconds with the pre-training, or ``None`` where there is none.
        quality: in per cent.
        cost_std: standard deviation over seeds, or ``None`` with one seed.
        quality_std: standard deviation over seeds, or ``None`` with one seed.
    """

    name: str
    cost: float
    total: float | None
    quality: float
    cost_std: float | None
    quality_std: float | None


@dataclass(frozen=True)
class Box:
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
    """A method in the plot, in CSS pixels: error bars are pairs of ends; its name is in a box, at an SVG anchor."""

    name: str
    x: float
    y: float
    total_x: float | None
    x_bar: tuple[float, float] | None
    y_bar: tuple[float, float] | None
    label: Box
    anchor: str
    text_x: float
    leader: bool


@dataclass(frozen=True)
class CostChart:
    """Quality against cost, at one size: ticks are positions and their words."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    marks: list[Mark]


def cost_chart(points: Sequence[Point], width: int, height: int) -> CostChart:
    """Place methods (at least one) by seconds, on a logarithmic axis, and quality; no two names overlap if they can."""
    costs = [value for p in points for value in (p.cost, p.total or p.cost)]
    low_x, high_x = math.log10(min(costs)) - 0.2, math.log10(max(costs)) + 0.2
    ends = [p.quality + sign * (p.quality_std or 0.0) for p in points for sign in (-1, 1)]
    pad = max(2.0, 0.08 * (max(ends) - min(ends)))
    low_y, high_y = max(-2.0, min(ends) - pad), min(102.0, max(ends) + pad)
    left, right, top, bottom = _LEFT, width - _RIGHT, _TOP, height - _BOTTOM

    def place_x(seconds: float) -> float:
        share = (math.log10(seconds) - low_x) / (high_x - low_x)
        return round(left + min(1.0, max(0.0, share)) * (right - left), 1)

    def place_y(percent: float) -> float:
        share = (percent - low_y) / (high_y - low_y)
        return round(bottom - min(1.0, max(0.0, share)) * (bottom - top), 1)

    bare = []
    for p in points:
        x_bar = y_bar = None
        if p.cost_std is not None:
            least = 10**low_x
            x_bar = (place_x(max(least, p.cost - p.cost_std)), place_x(p.cost + p.cost_std))
        if p.quality_std is not None:
            y_bar = (place_y(p.quality - p.quality_std), place_y(p.quality + p.quality_std))
        total = None if p.total is None else place_x(p.total)
        bare.append((p.name, place_x(p.cost), place_y(p.quality), total, x_bar, y_bar))

    frame = Box(left, top, right, bottom)
    taken = [box for mark in bare for box in _obstacles(*mark[1:])]
    marks = []
    for name, x, y, total, x_bar, y_bar in bare:
        label, leader = _label(name, x, y, frame, taken)
        taken.append(label)
        # The side that faces the mark is the one that is exact, whatever the font.
        anchor, text_x = "middle", (label.left + label.right) / 2
        if label.left > x:
            anchor, text_x = "start", label.left
        elif label.right < x:
            anchor, text_x = "end", label.right
        marks.append(Mark(name, x, y, total, x_bar, y_bar, label, anchor, round(text_x, 1), leader))
    x_ticks = [(place_x(v), f"{v:g}") for v in log_ticks(10**low_x, 10**high_x, (right - left) // 64)]
    y_ticks = [(place_y(v), f"{v:g}") for v in ticks(low_y, high_y, (bottom - top) // 40)]
    return CostChart(width, height, left, right, top, bottom, x_ticks, y_ticks, marks)


def _obstacles(
    x: float, y: float, total: float | None, x_bar: tuple[float, float] | None, y_bar: tuple[float, float] | None
) -> list[Box]:
    """Return what names should not cover: the marks, their error bars and the line between them."""
    boxes = [Box(x - 6, y - 6, x + 6, y + 6)]
    if total is not None:
        boxes += [Box(total - 6, y - 6, total + 6, y + 6), Box(min(x, total), y - 2, max(x, total), y + 2)]
    if x_bar is not None:
        boxes.append(Box(x_bar[0], y - 2, x_bar[1], y + 2))
    if y_bar is not None:
        boxes.append(Box(x - 2, y_bar[1], x + 2, y_bar[0]))
    return boxes


def _label(name: str, x: float, y: float, frame: Box, taken: Sequence[Box]) -> tuple[Box, bool]:
    """Return the box of a name, the nearest free one, and whether it is so far off that a line has to lead there."""
    width, height = _CHAR * len(name), _FONT + 3.0
    best: tuple[float, Box, bool] | None = None
    for distance in (9, 14, 20, 28, 38, 50, 64, 80, 100, 130):
        for angle in (0, 180, 270, 90, 315, 225, 45, 135):
            dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            left = x + distance * dx - width * (1 - dx) / 2
            top = y + distance * dy - height * (1 - dy) / 2
            # A name is moved back into the frame rather than refused: phones are narrow.
            left = max(frame.left, min(left, frame.right - width))
            top = max(frame.top, min(top, frame.bottom - height))
            box = Box(round(left, 1), round(top, 1), round(left + width, 1), round(top + height, 1))
            covered = sum(box.overlap(other) for other in taken)
            if covered == 0:
                return box, distance > 20
            if best is None or covered < best[0]:
                best = covered, box, distance > 20
    assert best is not None
    return best[1], best[2]


def ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers between ``low`` and ``high``, a step of 1, 2 or 5 times a power of ten apart."""
    least = (high - low) / max(1, most)
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= least)
    return [round(i * step, 10) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def log_ticks(low: float, high: float, most: int) -> list[float]:
    """Return round numbers between ``low`` and ``high`` (above 0) for a logarithmic axis."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found: list[float] = []
    for mantissas in ((1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [float(f"{m}e{p}") for p in powers for m in mantissas if low <= float(f"{m}e{p}") <= high]
        if len(found) <= most:
            break
    return found


# -- learning curves -------------------------------------------------------------------------------------------------

_MOST_POINTS = 300


@dataclass(frozen=True)
class Panel:
    """One quantity over the epochs, in a square of 100 x 100 that the page stretches.

    Attributes:
        name: of the quantity.
        low: of the vertical axis, in words.
        high: of the vertical axis, in words.
        first: of the horizontal axis, in words.
        last: of the horizontal axis, in words.
        lines: an SVG path for each seed.
    """

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
    low, high = span

    def path(one: Sequence[tuple[float, float]]) -> str:
        step = math.ceil(len(one) / _MOST_POINTS)
        kept = [*one[:-1:step], one[-1]]
        spots = [
            f"{100 * (epoch - first) / ((last - first) or 1):.4g} {100 * (high - v) / ((high - low) or 1):.4g}"
            for epoch, v in kept
        ]
        return "M" + "L".join(spots) + ("h0" if len(spots) == 1 else "")

    return Panel(name, f"{low:.3g}", f"{high:.3g}", f"{first:g}", f"{last:g}", [path(one) for one in series])


# -- cluster sizes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """A cluster: its images, the height of its bar in per cent, and of the part in its majority class (or ``None``)."""

    cluster: int
    size: int
    height: float
    major: float | None


def bars(sizes: Mapping[int, int], purity: Mapping[int, float]) -> list[Bar]:
    """Return a bar for each cluster, in the order given; the highest is 100 per cent high."""
    highest = max(sizes.values())
    return [
        Bar(c, n, round(100 * n / highest, 2), round(100 * purity[c], 2) if c in purity else None)
        for c, n in sizes.items()
    ]


def profile(sizes: Sequence[int]) -> str:
    """Return the SVG path of sizes, largest first, as an area in a square of 100 x 100: for many clusters."""
    kept = np.unique(np.linspace(0, len(sizes) - 1, min(len(sizes), _MOST_POINTS)).round().astype(int)).tolist()
    tops = [f"{100 * i / max(1, len(sizes) - 1):.4g} {100 - 100 * sizes[i] / max(sizes):.4g}" for i in kept]
    return f"M0 100L{'L'.join(tops)}L100 100z"


# -- maps ------------------------------------------------------------------------------------------------------------

COLOURS = 20  # told apart by colour alone; then they begin again
MAP = 800  # units of a map's side, two to a CSS pixel
_SHOWN = 340.0  # CSS pixels of a map's side on a phone
# A shape for each of the first colours, as path commands after "M x y"; with more groups, the numbers tell.
_SHAPES = (
    "h0",
    "m0-7l7 12h-14z",
    "m-5-5h10v10h-10z",
    "m0-8l8 8-8 8-8-8z",
    "m-2-7h4v5h5v4h-5v5h-4v-5h-5v-4h5z",
    "m0 7l7-12h-14z",
    "m-7-4l3-3 4 4 4-4 3 3-4 4 4 4-3 3-4-4-4 4-3-3 4-4z",
    "m0-8l8 6-3 9h-10l-3-9z",
)
FEW = len(_SHAPES)


@dataclass(frozen=True)
class Group:
    """Points of one cluster or class.

    Attributes:
        colour: the page's name of the colour: ``few`` or ``many`` and a number, or ``none``: in no group.
        dots: the marks are dots, drawn as the round ends of lines without length; else filled shapes.
        path: SVG path of all marks, in a square of side :data:`MAP`.
        label: its name, or empty where it is not told.
        x: of the name's middle, in per cent.
        y: of the name's middle, in per cent.
    """

    colour: str
    dots: bool
    path: str
    label: str
    x: float
    y: float


def scale(xy: Floats) -> Ints:
    """Return points (n, 2) in a square of side :data:`MAP`, both axes by the same factor."""
    low, high = xy.min(0), xy.max(0)
    factor = (MAP - 40) / max(1e-9, float((high - low).max()))
    spots: Ints = np.rint((xy - (low + high) / 2) * factor + MAP / 2).astype(np.int64)
    return spots


def groups(
    spots: Ints, ids: Ints, names: Mapping[int, str], colours: Mapping[int, int], told: Iterable[int], few: bool
) -> list[Group]:
    """Return the marks of every group, and where their names go: nearest to the median, moved apart.

    Args:
        spots: (n, 2) from :func:`scale`.
        ids: (n,) group of each point, -1 none.
        names: by group.
        colours: by group.
        told: the groups whose names are shown.
        few: no colour is above seven: every group also gets a shape of its own.
    """
    told = [g for g in told if (ids == g).any()]
    middles = [_middle(spots[ids == g]) * (_SHOWN / MAP) for g in told]
    middle = dict(zip(told, _apart(middles, [names[g] for g in told]), strict=True))
    out = []
    for g in sorted({-1, *colours}):
        mine = spots[ids == g].tolist()
        if not mine:
            continue
        shape, colour = "h0", "none"
        if g >= 0:
            shape = _SHAPES[colours[g]] if few else "h0"
            colour = f"few{colours[g]}" if few else f"many{colours[g] % COLOURS}"
        x, y = middle.get(g, (0.0, 0.0))
        path = "".join(f"M{a} {b}{shape}" for a, b in mine)
        label = names[g] if g in middle else ""
        out.append(Group(colour, shape == "h0", path, label, round(x, 2), round(y, 2)))
    return out


def _middle(spots: Ints) -> npt.NDArray[np.float64]:
    """Return the point nearest to the median: the median itself may lie between two parts of a group."""
    spot: Ints = spots[np.square(spots - np.median(spots, axis=0)).sum(1).argmin()]
    return spot.astype(np.float64)


def _apart(middles: Sequence[npt.NDArray[np.float64]], names: Sequence[str]) -> list[tuple[float, float]]:
    """Return the middles of names in per cent of the map, pushed apart until they do not overlap on a phone."""
    at = np.array(middles, dtype=np.float64).reshape(-1, 2)
    half = np.array([(0.5 * _CHAR * len(name) + 3, 9.0) for name in names]).reshape(-1, 2)
    for _ in range(60):
        moved = False
        for i in range(len(at)):
            for j in range(i):
                gap = np.abs(at[i] - at[j]) - (half[i] + half[j])
                if (gap < 0).all():
                    axis = int(gap.argmax())  # the shorter way out
                    push = -gap[axis] / 2 + 0.1
                    sign = 1.0 if at[i, axis] >= at[j, axis] else -1.0
                    at[i, axis] += sign * push
                    at[j, axis] -= sign * push
                    moved = True
        at = np.clip(at, half, _SHOWN - half)
        if not moved:
            break
    return [(100 * float(x) / _SHOWN, 100 * float(y) / _SHOWN) for x, y in at]
