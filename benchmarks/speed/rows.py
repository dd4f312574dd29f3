"""The rows of ``make speed``: what is measured, over which floor, and the bar."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from .augmentation import WORKER, views_in_memory, worker_view
from .odc_memory import memory_step, small_clusters
from .sampler import uniform_draw
from .spice import consistency_memory, self_step
from .temi import temi_step
from .timing import Found
from .training import HEADS, training_step
from .turtle import turtle_step
from .two_level import two_level


@dataclass(frozen=True)
class Row:
    """One measurement: ``measure(tiny)`` finds a value in ``unit`` ("×" of the floor), ``bar`` at most."""

    name: str
    what: str
    floor: str
    bar: float
    unit: str
    measure: Callable[[bool], Found]
    seconds: float  # about what it takes: for the time left


def _over(name: str, what: str, floor: str, bar: float, measure: Callable[..., Found], seconds: float) -> Row:
    return Row(name, what, floor, bar, "×", functools.partial(measure, bar=bar), seconds)


_PRODUCTS = "its bare matrix products"
ROWS: tuple[Row, ...] = (
    *(
        _over(
            f"train-{name.removesuffix('Head')}",
            f"step of training {name.removesuffix('Head')}, ResNet-18 of 16 channels, 128 images",
            "a bare loop of the same forward, loss, backward and optimiser",
            1.05,
            functools.partial(training_step, name),
            16.0,
        )
        for name in HEADS
    ),
    Row("odc-splits", "ODC: 100 small clusters of 10,000, N = 1.28 M", "", 150.0, "ms", small_clusters, 25.0),
    _over(
        "odc-memory", "ODC's memory, N = 1.28 M, K = 10,000, D = 256, B = 512", "its product", 1.3, memory_step, 15.0
    ),
    _over("spice-self", "step of SPICE-Self, 10 heads, K = 100, D = 512", _PRODUCTS, 1.3, self_step, 6.0),
    _over("turtle", "step of TURTLE, 5,000 rows, 768 + 1,280 wide, K = 100", _PRODUCTS, 1.3, turtle_step, 25.0),
    _over("temi", "step of TEMI, 512 pairs, 16 heads, D = 1,280", _PRODUCTS, 1.4, temi_step, 15.0),
    _over("two-level", "two-level k-means, N = 100,000, k = 1,000", "bare FAISS", 1.3, two_level, 40.0),
    Row("sampler", "rows of an epoch, uniform over 10,000 clusters, N = 1.28 M", "", 0.3, "s", uniform_draw, 4.0),
    Row(
        "consistency-memory",
        "local consistency, N = 60,000, D = 512",
        "memory of the features",
        2.0,
        "×",
        consistency_memory,
        40.0,
    ),
    *(
        _over(
            f"view-{name}", f"view {name} in a worker", "torchvision's v2", bar, functools.partial(worker_view, name), 4
        )
        for name, bar in zip(WORKER, (0.6, 0.4, 1.1, 0.4, 1.5), strict=True)
    ),
    _over("views-in-memory", "MoCo's view of 128 images of 32×32", "the network's step", 0.2, views_in_memory, 8.0),
)
