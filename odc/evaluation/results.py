"""The result files of a run, and whether they are whole and of this state of the training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from odc.data.datasets import ImageDataset
from odc.evaluation.evaluator import Evaluation
from odc.evaluation.gallery import CLUSTERS, PICTURE, write_clusters
from odc.files import write_text
from odc.reading import fields, listing, mapping, read_json, real, text, whole

METRICS_FILE, MARK_FILE = "metrics.json", ".results.json"


@dataclass(frozen=True)
class Results:
    """An evaluation as it lies on the disk."""

    values: dict[str, float]  # the metrics
    without_images: list[int]  # clusters that none of the evaluated images is in


def write_results(
    dataset: ImageDataset,
    evaluation: Evaluation,
    values: dict[str, float],
    folder: Path,
    *,
    precision: str,
    epochs: int | None = None,
    names: Sequence[str] = (),
) -> list[Path]:
    """Write an evaluation's clusters, where it has any, and its metrics, ``values``; return the files' paths.

    With the ``epochs`` of training behind it, a mark, written last, binds the files to that, for :func:`read_results`;
    ``precision`` is that of the training, ``names`` are those of the first clusters, where they have any.
    """
    files = write_clusters(dataset, evaluation, folder, names) if evaluation.scores.shape[1] else []
    files.append(folder / METRICS_FILE)
    write_text(files[-1], json.dumps({**values, "precision": precision}, indent=2) + "\n")
    if epochs is not None:
        checksums = {file.name: _checksum(file) for file in files}
        mark = {"epochs": epochs, "without_images": evaluation.without_images, "files": checksums}
        write_text(folder / MARK_FILE, json.dumps(mark) + "\n")
    return files


_MARK = fields({"epochs": whole(), "without_images": listing(whole()), "files": mapping(text)})
_VALUES = fields({"precision": text}, real())
_COMPLETE = ({METRICS_FILE}, {METRICS_FILE, CLUSTERS}, {METRICS_FILE, CLUSTERS, PICTURE})  # vectors have no picture
_NONE = "is not a record of results", "they are made again"


def read_results(folder: Path, epochs: int) -> Results | None:
    """Return the results of a folder where they are there, whole, and of so many epochs of training, else ``None``.

    The files are compared with their checksums in the mark, so nothing damaged or cut short counts.
    """
    try:
        mark = read_json(folder / MARK_FILE, _MARK, *_NONE)
        files = mark["files"]
        if mark["epochs"] != epochs or set(files) not in _COMPLETE:
            return None
        if any(_checksum(folder / name) != checksum for name, checksum in files.items()):
            return None
        values = read_json(folder / METRICS_FILE, _VALUES, *_NONE)
    except (OSError, ValueError):  # missing, or not what write_results wrote
        return None
    return Results({name: value for name, value in values.items() if name != "precision"}, mark["without_images"])


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
