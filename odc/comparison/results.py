"""What a comparison leaves on the disk, as types: each is written and read here, and nowhere else.

In the folder of a comparison are ``results.jsonl``, a line for every cell that has ended; ``comparison.json``, what the
report needs to know of the data; and a folder for every cell, with ``outcome.npz``, its clusters, and ``curves.json``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from odc import logs
from odc.clustering import log_odds
from odc.errors import DamagedError, InputError
from odc.evaluation.evaluator import Evaluation
from odc.files import append_line, naming, write_text, written_whole
from odc.reading import (
    Kind,
    fields,
    inside,
    listing,
    mapping,
    memory,
    optional,
    plain,
    read_arrays,
    read_json,
    read_text,
    reading,
    real,
    scalar,
    text,
    whole,
)
from odc.structures import UNLABELLED

RESULTS, ABOUT = "results.jsonl", "comparison.json"  # in the folder of a comparison
OUTCOME, CURVES = "outcome.npz", "curves.json"  # in that of a cell
QUALITY = {"acc": "ACC", "nmi": "NMI", "ari": "ARI", "knn": "kNN"}  # what every row is measured by
MANY_TO_ONE = {"acc_many_to_one": "ACC n:1"}  # besides, where K is not the number of classes
_AGAIN = "run this cell again"

Place = tuple[str, int]  # method and seed
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


# -- kinds of entries ------------------------------------------------------------------------------------------------


def _fingerprint(value: Any) -> str:
    """Kind: hexadecimal digits."""
    if not re.fullmatch("[0-9a-f]{16,64}", text(value)):
        raise ValueError("hexadecimal digits are expected")
    return str(value)


def _method(value: Any) -> str:
    """Kind: the name of a row; nothing is imported by it, though it may be the path of a class."""
    if not text(value) or len(value) > 200:
        raise ValueError(f"the name of a method has 1 to 200 characters, not {len(value)}")
    return str(value)


Text = Annotated[str, text]
Count = Annotated[int, whole(1)]
Fingerprint = Annotated[str, _fingerprint]


def _kinds(entries: type) -> dict[str, Kind]:
    """Return the kinds that the fields of a dataclass are annotated with."""
    hints = get_type_hints(entries, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if get_origin(hint) is Annotated}


@dataclass(frozen=True)
class About:
    """What is true of all cells of a comparison."""

    dataset: Text  # what it was called on the command line
    data: Annotated[dict[str, Any], mapping(plain)]  # config of the data set that is evaluated
    evaluated_on: Text  # name of that, its split or folder
    num_clusters: Count  # K
    threads: Count  # of each cell
    command: Text  # what repeats the whole comparison
    features: Text  # what all methods cluster, where it is not the pictures; else empty
    images: Count  # how many are evaluated
    fingerprint: Fingerprint  # of the images that are evaluated
    clustered: Fingerprint  # of those that are trained on
    methods: Annotated[list[str], listing(_method)]  # rows and shared stages of all calls, in the order of the table

    @classmethod
    def load(cls, out: Path) -> About:
        """Read it from the folder of a comparison.

        Raises:
            DamagedError: it says what no comparison writes.
        """
        what = "is not what a comparison writes of its data"
        return cls(
            **read_json(out / ABOUT, fields(_kinds(cls)), what, f"delete it, and run the comparison on {out} again")
        )

    def save(self, out: Path) -> None:
        """Write it into the folder of a comparison."""
        write_text(out / ABOUT, json.dumps(dataclasses.asdict(self), indent=1) + "\n")


@dataclass(frozen=True)
class Record:
    """A cell that has ended or failed, with what is needed to repeat it."""

    method: Annotated[str, _method]  # name of its row, or of a stage that rows share
    seed: Annotated[int, whole()]  # of the cell
    # Metrics and costs by name: acc, nmi, ari, knn in [0, 1]; seconds, pretrain_seconds (of the training that it starts
    # from), images_seen, peak_rss_mb, epochs; width of the features where the cell has extracted them, for all seeds;
    # members that a consensus is of.
    values: Mapping[str, Any]
    dataset: Text  # this and the next three: as in About
    evaluated_on: Text
    images: Count
    num_clusters: Count
    config: Text  # what it was trained by; empty for an estimator
    folder: Annotated[str, inside]  # where the cell has left its files, within that of the comparison
    precision: Text  # that it was trained in
    threads: Count  # that it computed with
    key: Fingerprint  # hash of all that decides the result
    versions: Annotated[Mapping[str, str], mapping(text)]  # this and the next four: as in provenance()
    machine: Text
    git_revision: Text
    command: Text
    date: Text
    features: Text = ""  # as in About
    error: Annotated[str | None, text] = None  # why it failed
    log: Annotated[str | None, text] = None  # file with what it printed, where it failed
    before: Annotated[tuple[str, ...], listing(_method)] = ()  # of a shared stage, no row: the rows that start from it

    @property
    def place(self) -> Place:
        """Method and seed."""
        return self.method, self.seed

    @property
    def title(self) -> str:
        """What a person calls the cell."""
        return f"{self.method} seed {self.seed}" if self.number("width") is None else self.method

    def number(self, name: str) -> float | None:
        """Return a value, or ``None`` where it was not measured."""
        value = self.values.get(name)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    def to_json(self) -> dict[str, Any]:
        """Return the entries of its line; values stand beside the other entries."""
        told = {name: value for name in _RECORD_KINDS if (value := getattr(self, name)) not in (None, ())}
        return {"method": self.method, "seed": self.seed, **self.values, **told}

    @classmethod
    def from_json(cls, value: Any) -> Record:
        """Return the record that a line holds.

        Raises:
            ValueError: no run writes such a line.
        """
        told = _RECORD(value)
        values = {name: told.pop(name) for name in list(told) if name not in _RECORD_KINDS}
        return cls(**{**told, "before": tuple(told.get("before", ()))}, values=values)


_RECORD_KINDS = _kinds(Record)
_SHARES = dict.fromkeys((*QUALITY, *MANY_TO_ONE, "entropy", "purity"), optional(real(-1.001, 1.001)))
_AMOUNTS = ("seconds", "pretrain_seconds", "images_seen", "peak_rss_mb", "epochs", "clusters", "empty", "noise")
_RECORD = fields(
    {name: kind for name, kind in _RECORD_KINDS.items() if name not in ("features", "error", "log", "before")},
    scalar,  # metrics of one's own
    **{**_RECORD_KINDS, **_SHARES, **dict.fromkeys(_AMOUNTS, optional(real(0)))},
)


def read_results(out: Path) -> dict[Place, Record]:
    """Return the last record of every cell; a line that a kill cut short, or that is no record, does not count."""
    file = out / RESULTS
    if not file.exists():
        return {}
    records: dict[Place, Record] = {}
    with reading(file, "is not a file of results", "delete it to run all methods again"):
        lines = read_text(file).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            with reading(file, f"has no result in line {number}", "its cell counts as not run"):
                record = Record.from_json(json.loads(line))
        except DamagedError as error:
            logs.warn(str(error))
            continue
        records[record.place] = record
    return records


def append_result(out: Path, record: Record) -> None:
    """Add the record of a cell to those in the folder of a comparison."""
    with naming(out / RESULTS):
        append_line(out / RESULTS, json.dumps(record.to_json()))


@dataclass(frozen=True)
class Outcome:
    """The clusters of N images, and what they are seen by."""

    features: Floats  # (N, D) float32, what was clustered
    cluster: Ints  # (N,) int64, -1: in none
    confidence: Floats  # (N,) float32, higher is more central
    margin: Floats  # (N,) float32, of the best cluster before the second; small is at the border

    @classmethod
    def from_scores(cls, evaluation: Evaluation) -> Outcome | None:
        """Return what the scores of a head say; confidence and margin are log-odds, the latter to the second best."""
        scores = evaluation.scores
        if not scores.shape[1]:
            return None
        best, order = scores.topk(min(2, scores.shape[1]), dim=1)
        confidence = log_odds(scores).gather(1, order[:, :1])[:, 0]
        return cls._of(evaluation.features, order[:, 0], confidence, best[:, 0] - best[:, -1])

    @classmethod
    def from_clusters(cls, features: Tensor, cluster: Tensor) -> Outcome:
        """Judge clusters (N,) int64 by the distances of features (N, D) to the clusters' means."""
        ids = cluster[cluster >= 0].unique()
        if not len(ids):
            nothing = torch.zeros(len(features))
            return cls._of(features, cluster, nothing, nothing)
        means = torch.stack([features[cluster == i].mean(0) for i in ids])
        distance = torch.cdist(features, means)
        own = torch.searchsorted(ids, cluster).clamp(0, len(ids) - 1)[:, None]
        mine = distance.gather(1, own)[:, 0]
        other = distance.scatter(1, own, torch.inf).min(1).values if len(ids) > 1 else mine
        return cls._of(features, cluster, -mine, other - mine)

    @classmethod
    def _of(cls, *columns: Tensor) -> Outcome:
        return cls(*(column.numpy() for column in columns))

    def save(self, folder: Path) -> None:
        """Write it as a compressed .npz of plain arrays, completely or not at all.

        Features are in half precision, shrunk where they do not fit.
        """
        largest = float(np.abs(self.features).max(initial=0.0))
        with written_whole(folder / OUTCOME) as out:
            np.savez_compressed(
                out,
                features=(self.features / max(1.0, largest / float(np.finfo(np.float16).max))).astype(np.float16),
                cluster=self.cluster.astype(np.int32),
                confidence=self.confidence.astype(np.float32),
                margin=self.margin.astype(np.float32),
            )

    @classmethod
    def load(cls, folder: Path, total: int) -> Outcome | None:
        """Read it from a cell's folder, or return ``None`` where there is none.

        Raises:
            InputError: the file is damaged, or of another number of images than ``total``.
        """
        path = folder / OUTCOME
        if not path.is_file():
            return None
        with reading(path, "is not the outcome of a cell", _AGAIN):
            arrays = read_arrays(path, _OUTCOME, most=memory() // 4)
        lengths = {len(array) for array in arrays.values()}
        if lengths != {total}:
            found = " and ".join(f"{n:,}" for n in sorted(lengths))
            raise InputError(f"{path} is of {found} images but the data set has {total:,}: {_AGAIN}")
        cluster = arrays["cluster"]
        if total and not UNLABELLED <= cluster.min() <= cluster.max() < total:
            found = f"clusters {cluster.min()} to {cluster.max()} of {total:,} images"
            raise DamagedError(f"'{path}' is not the outcome of a cell ({found}): {_AGAIN}")
        floats = {name: arrays[name].astype(np.float32) for name in ("features", "confidence", "margin")}
        return cls(cluster=cluster.astype(np.int64), **floats)


_OUTCOME = {"features": ("f", 2), "cluster": ("iu", 1), "confidence": ("f", 1), "margin": ("f", 1)}


_LOGGED = fields({"step": whole()}, real())


def write_curves(logs: Path, folder: Path) -> None:
    """Write what a training logged of each epoch into its cell's folder.

    It is a list in the order of the epochs: ``{"epoch": 1, "loss": ..., "nmi_prev": ...}``.
    """
    epochs: dict[int, dict[str, float]] = {}
    for file in sorted(logs.glob("*/vis_data/scalars.json")):  # one for each start; a resumed run goes on
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                logged = _LOGGED(json.loads(line))
            except (ValueError, RecursionError):  # cut short by a kill
                continue
            step = logged.pop("step")
            values = {name.partition("/")[2]: value for name, value in logged.items() if value is not None}
            losses = [value for name, value in values.items() if "loss" in name]
            if losses:
                values.setdefault("loss", sum(losses))  # a method with several trains on their sum
            epochs.setdefault(step, {"epoch": step}).update(values)
    write_text(folder / CURVES, json.dumps([epochs[step] for step in sorted(epochs)]) + "\n")


def read_curves(folder: Path) -> list[dict[str, float]]:
    """Return the epochs of a cell, none where there are no curves.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / CURVES
    if not path.is_file():
        return []
    epochs = read_json(path, listing(mapping(optional(real()))), "is not a list of epochs", _AGAIN)
    return [{name: float(value) for name, value in epoch.items() if value is not None} for epoch in epochs]
