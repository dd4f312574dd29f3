"""Ways to use three labels a class on the features of a folder: which names of other images are right?

    python benchmarks/refine.py FEATURES.npz --seeds 0 1 2

FEATURES are of `odc extract`; the class of an image is the first folder of its path, for drawing labels and measuring.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression

from odc.clustering import knn_search
from odc.clustering.knn import unit_rows
from odc.clustering.propagation import propagate
from odc.comparison.estimators import Estimate
from odc.data.embeddings import Embeddings
from odc.evaluation.align import align
from odc.evaluation.markdown import markdown_table
from odc.files import write_table
from odc.labelling import refine
from odc.results import Clustering

Array = npt.NDArray[Any]


@dataclass
class Images:
    """What is the same for all draws of labels."""

    x: Array  # (N, D) features of unit length
    centred: Array  # (N, D) less their mean, of unit length
    nearest: Array  # (N, 10) neighbours
    y: Array  # (N,) classes
    classes: tuple[str, ...]
    cluster: Array  # (N,)
    folder: Path  # of the clustering
    paths: tuple[str, ...]


def agreeing(model: LogisticRegression, images: Images, index: Array, label: Array) -> Array:
    """Return what a classifier says that was trained once more, on images eight in ten of whose neighbours agree."""
    said = model.predict(images.centred)
    said[index] = label
    kept = (said[images.nearest] == said[:, None]).mean(1) >= 0.8
    kept[index] = True
    again = LogisticRegression(C=10, max_iter=300).fit(images.centred[kept], said[kept])
    return np.asarray(again.predict(images.centred))


def ways(images: Images, index: Array, seed: int) -> dict[str, Callable[[], Array]]:
    """Return the ways to classes (N,) from the labels of the images ``index``, by name."""
    label, C, x = images.y[index], len(images.classes), images.centred
    few = images.folder / "few.csv"
    write_table(few, ("path", "label"), [(images.paths[i], images.classes[images.y[i]]) for i in index])
    means = np.stack([x[index[label == c]].mean(0) for c in range(C)])
    model = LogisticRegression(C=100, max_iter=300).fit(x[index], label)

    def named(features: Array | None) -> Array:
        return align(images.cluster, C, index, label, images.classes, features).labels(images.cluster)

    return {
        "odc align, votes alone": lambda: named(None),
        "odc align": lambda: named(images.x),
        "nearest mean of a class": lambda: np.asarray((x @ means.T).argmax(1)),
        "logistic regression": lambda: np.asarray(model.predict(x)),
        "and again where neighbours agree": lambda: agreeing(model, images, index, label),
        "labels that flow": lambda: np.asarray(propagate(images.x, index, label, C).argmax(1)),
        "odc refine": lambda: refine(images.folder, few, images.folder / str(seed)).clustering.cluster,
    }


def main() -> None:
    """Print a table: mean and standard deviation over the seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("features")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    table = Embeddings.load(args.features)
    classes, y = np.unique([path.partition("/")[0] for path in table.paths], return_inverse=True)
    C, z = len(classes), table.features.numpy()
    x, centred = unit_rows(z), unit_rows(unit_rows(z) - unit_rows(z).mean(0))
    estimate = Estimate.parse("spectral", None)
    assert estimate is not None
    cluster = estimate.fit_predict(x, C, 0)
    right: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        Clustering.describe("", table.paths, z, (cluster, np.zeros(len(x), np.float32)), C).save(place)
        nearest = knn_search(centred, k=10)[0].numpy()
        images = Images(x, centred, nearest, y, tuple(map(str, classes)), cluster, Path(place), table.paths)
        for seed in args.seeds:
            rng = np.random.default_rng(seed)
            index = np.concatenate([rng.choice(np.flatnonzero(y == c), 3, replace=False) for c in range(C)])
            others = np.setdiff1d(np.arange(len(y)), index)
            for name, way in ways(images, index, seed).items():
                begun = time.time()
                found = way()
                seconds.setdefault(name, []).append(time.time() - begun)
                right.setdefault(name, []).append(float((found[others] == y[others]).mean()))
    rows = [["way", "right", "seconds"]]
    rows += [[n, f"{np.mean(v):.3f} ± {np.std(v):.3f}", f"{np.mean(seconds[n]):.1f}"] for n, v in right.items()]
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
