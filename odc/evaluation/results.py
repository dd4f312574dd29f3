"""The result files of a run, and whether they are whole and of this state of the training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from odc.data.datasets import ImageDataset
from odc.evaluation.evaluator import Evaluation
from odc.evaluation.gallery import CLUSTERS, PICTURE, write_clusters
from odc.files import write_text

METRICS, MARK = "metrics.json", ".results.json"


def write_results(
    dataset: ImageDataset, evaluation: Evaluation, values: dict[str, float], folder: Path, epochs: int | None = None
) -> list[Path]:
    """Write an evaluation's clusters, where it has any, and its metrics; return the files' paths.

    Args:
        dataset: the N evaluated images.
        evaluation: of them.
        values: the metrics.
        folder: where to.
        epochs: of training behind it: a mark, written last, binds the files to that, for :func:`read_results`.
    """
    files = list(write_clusters(dataset, evaluation, folder)) if evaluation.scores.shape[1] else []
    files.append(folder / METRICS)
    write_text(files[-1], json.dumps(values, indent=2) + "\n")
    if epochs is not None:
        mark = {"epochs": epochs, "files": {file.name: _checksum(file) for file in files}}
        write_text(folder / MARK, json.dumps(mark) + "\n")
    return files


def read_results(folder: Path, epochs: int) -> dict[str, float] | None:
    """Return the metrics of a folder whose results are there, whole, and of so many epochs of training, else ``None``.

    The files are compared with their checksums in the mark, so nothing damaged or cut short counts.
    """
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
        files = mark["files"]
        if mark["epochs"] != epochs or set(files) not in ({METRICS}, {METRICS, CLUSTERS, PICTURE}):
            return None
        if any(_checksum(folder / name) != checksum for name, checksum in files.items()):
            return None
        values = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        return {str(name): float(value) for name, value in values.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # missing, or not what write_results wrote
        return None


def _checksum(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
