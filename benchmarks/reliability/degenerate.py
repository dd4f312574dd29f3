"""Numbers and pictures at the edge: a result, or one line and exit 2 before anything is lost."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from odc.config import load_config

from .hostile import refusal
from .process import command
from .settings import CONFIGS, SMALL, TRAININGS, Setting, pictures
from .trial import Bench, Family, Outcome, Trial
from .worker import Worker

BY_NAME = {setting.name: setting for setting in TRAININGS}
SHORT = {"train_cfg.max_epochs": 2, "train_cfg.val_interval": 2}
Pictures = Callable[[Path], None]


def constant(folder: Path) -> None:
    """Forty grey pictures, all equal."""
    folder.mkdir()
    for i in range(40):
        Image.new("L", (16, 16), 90).save(folder / f"{i:02d}.png")


def black(folder: Path) -> None:
    """Forty black pictures."""
    folder.mkdir()
    for i in range(40):
        Image.new("L", (16, 16)).save(folder / f"{i:02d}.png")


def some(count: int) -> Pictures:
    """So many different pictures."""
    return lambda folder: pictures(folder, count)


def pairs(folder: Path) -> None:
    """Twenty pictures, each twice."""
    pictures(folder / "a", 20)
    shutil.copytree(folder / "a", folder / "b")


def _normalised(view: str, mean: float, std: float) -> dict[str, Any]:
    return {view: [dict(type="ToFloat"), dict(type="Normalize", mean=[mean], std=[std])]}


# name: (setting, options, pictures instead of the setting's)
CASES: dict[str, tuple[str, dict[str, Any], Pictures | None]] = {
    **{f"constant-{name}": (name, {}, constant) for name in ("dc", "odc", "deepercluster", "moco", "spice-self")},
    "black-odc": ("odc", {}, black),
    "pairs-dc": ("dc", {}, pairs),
    "one-image-odc": ("odc", {}, some(1)),
    "two-images-dc": ("dc", {}, some(2)),
    "two-images-moco": ("moco", {}, some(2)),
    "k-is-n-dc": ("dc", {"model.head.num_clusters": 24}, some(24)),
    "k-is-n-odc": ("odc", {"model.head.num_clusters": 24, "model.head.min_cluster": 1}, some(24)),
    "k-is-n-self": ("spice-self", {"model.head.num_clusters": 24}, some(24)),
    "k-over-n-dc": ("dc", {"model.head.num_clusters": 30}, some(24)),
    "k-over-n-odc": ("odc", {"model.head.num_clusters": 30}, some(24)),
    "k-over-n-deepercluster": ("deepercluster", {"model.head.num_clusters": 40}, some(24)),
    "k-over-n-self": ("spice-self", {"model.head.num_clusters": 30}, some(24)),
    **{f"k-one-{name}": (name, {"model.head.num_clusters": 1}, None) for name in ("dc", "odc", "spice-self")},
    "k-zero": ("dc", {"model.head.num_clusters": 0}, None),
    "min-cluster": ("odc", {"model.head.min_cluster": 200}, None),
    **{f"batch-of-one-{name}": (name, {"model.head.batch_size": 1}, some(24)) for name in ("dc", "odc", "moco")},
    "batch-of-two": ("dc", {"model.head.batch_size": 2}, some(9)),
    **{f"batch-over-n-{name}": (name, {"model.head.batch_size": 256}, some(24)) for name in ("dc", "odc", "moco")},
    **{f"lr-{name}": (name, {"optim_wrapper.optimizer.lr": 1e6}, None) for name in BY_NAME if "files" not in name},
    "lr-infinite": ("odc", {"optim_wrapper.optimizer.lr": float("inf")}, None),
    "lr-nan": ("odc", {"optim_wrapper.optimizer.lr": float("nan")}, None),
    "lr-zero": ("odc", {"optim_wrapper.optimizer.lr": 0.0}, None),
    "std-zero": ("odc", _normalised("data.views.train", 0.3, 0.0), None),
    "std-tiny": ("odc", _normalised("data.views.train", 0.3, 1e-38), None),
    "nan-pixels": ("odc", _normalised("data.views.train", float("nan"), 1.0), None),
    "nan-extract": ("dc", _normalised("data.views.extract", float("nan"), 1.0), None),
    # Far below zero: nothing passes the first ReLU.
    "dead-relus": ("dc", _normalised("data.views.extract", 1e30, 1.0), None),
    "pca-over-n": ("dc", {"model.head.pca_dim": 16}, some(10)),
    "few-rows-semi": ("spice-semi", {"model.head.threshold": 1.0}, None),
    "classes": ("classifier", {"model.head.num_classes": 3}, None),
    "fraction": ("classifier", {"train_cfg.label_fraction": 1e-9}, None),
}  # fmt: skip
QUICK = ("constant-odc", "k-is-n-dc", "batch-of-one-dc", "lr-odc", "lr-zero")


def write(bench: Bench, setting: Setting, options: dict[str, Any], images: Pictures | None, folder: Path) -> Path:
    """Write the config of a case."""
    bench.config(setting)  # what its config names
    made = {} if setting.files is None else setting.files(folder)
    changed: dict[str, Any] = {**SMALL, **setting.options, **made, **SHORT, **options}
    if images is not None:
        root = folder / "pictures"
        images(root)
        changed["data.dataset"] = dict(_delete_=True, type="ImageFolder", root=str(root), grey=True)
    path = folder / "case.py"
    cfg = load_config(CONFIGS / setting.base, changed)
    text = cfg.pretty_text
    # A config is Python, whose numbers have no names for these.
    path.write_text(f"inf = float('inf')\nnan = float('nan')\n{text}\n_x = [inf, nan]\ndel inf, nan\n")
    return path


def feed(bench: Bench, names: list[str], folder: Path) -> Outcome:
    """Train on each case in a worker: a result, or exit 2 and one line."""
    outcome = Outcome()
    with Worker(folder / "worker") as worker:
        for name in names:
            setting, options, images = CASES[name]
            place = folder / name
            place.mkdir()
            argv = [
                "train",
                str(write(bench, BY_NAME[setting], options, images, place)),
                "--work-dir",
                str(place / "run"),
            ]
            reply = worker.ask({"argv": argv})
            outcome.tried += 1
            wrong = reply.died or refusal(reply)
            if not wrong and reply["code"] == 0 and "nan" in _results(place / "run"):
                wrong = "the result is not a number"
            if wrong:
                outcome.crashed.append(f"{name}: {wrong}: {command(argv)}")
            else:
                shutil.rmtree(place)
    return outcome


def _results(run: Path) -> str:
    return " ".join(
        (run / name).read_text().lower() for name in ("clusters.csv", "metrics.json") if (run / name).exists()
    )


def trials(bench: Bench) -> list[Trial]:
    """Two portions."""
    names = list(QUICK if bench.quick else CASES)
    parts = [names] if bench.quick else [names[::2], names[1::2]]

    def make(number: int, part: list[str]) -> Trial:
        def run(folder: Path, rng: random.Random) -> Outcome:
            return feed(bench, part, folder)

        return Trial(f"{number}", run, 1.5 * len(part) + 8)

    return [make(number, part) for number, part in enumerate(parts)]


FAMILY = Family("degenerate", "degenerate pictures and settings", False, trials, least=40)
