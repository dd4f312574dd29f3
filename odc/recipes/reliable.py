"""The labels that an image's neighbours share: what one training hands to the next that trains on labels (SPICE)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from mmengine import Config
from mmengine.hooks import Hook
from mmengine.logging import print_log

from odc.apis import load_runner
from odc.clustering.consistency import beta_histogram, local_consistency, reliable_samples
from odc.data.datasets import ImageDataset
from odc.data.embeddings import Embeddings
from odc.data.label_file import LabelFile
from odc.data.table import read_labels
from odc.engine.comm import get_comm
from odc.engine.extract import extract
from odc.errors import InputError, nearest
from odc.evaluation.align import Alignment
from odc.evaluation.gallery import listed
from odc.evaluation.metrics import clustering_accuracy
from odc.files import writable, written_whole
from odc.models.cluster_model import unwrap
from odc.recipes.stage import FILES, Left, Stage
from odc.registry import STAGES
from odc.structures import UNLABELLED

BETA = "beta.png"  # the histogram, and the threshold in it


@dataclass(frozen=True)
class Reliability:
    """What the reliable step found."""

    count: int  # images whose label is trusted
    total: int  # of so many
    per_cluster: tuple[int, ...]  # (K,) of the trusted ones in each cluster
    purity: float | None  # of them that are right under the best map of clusters to classes; None: no ground truth
    labelled: int  # how many of the labels a user gave

    def __str__(self) -> str:
        low, high = min(self.per_cluster), max(self.per_cluster)
        text = f"{self.count:,} of {self.total:,} images have a reliable label, {low:,} to {high:,} a cluster"
        if self.labelled:
            text += f", {self.labelled:,} of them given by hand"
        if self.purity is not None:
            text += f"; {self.purity:.1%} of them are right (for evaluation only)"
        return text + "; their number says nothing about their quality"


@STAGES.register_module()
@dataclass(frozen=True)
class Reliable(Stage):
    """The reliable labels of a training's clusters.

    Neighbours are those in the features of another stage, or of the training itself.
    """

    takes: ClassVar[Mapping[str, bool]] = {"checkpoint": True, "features": False}
    leaves: ClassVar[tuple[str, ...]] = ("labels",)
    writes: ClassVar[tuple[str, ...]] = (BETA,)

    neighbours: int = 100  # nearest images that count, at most half the mean size of a cluster
    threshold: float = 0.99  # this and the next four: see odc.clustering.consistency
    score_threshold: float | None = None
    balance: Any = None
    quota: int | None = None
    include_self: bool = False
    allow_empty: bool = False  # go on where a cluster has no reliable image; what trains on the labels leaves it empty

    def run(self, folder: Path, given: Mapping[str, Left], hooks: Sequence[Hook]) -> dict[str, Any]:
        """Write the labels."""
        left = given["checkpoint"]
        features = given["features"].file("features") if "features" in given else None
        found = self.find(left.config(folder), str(left.file("checkpoint")), folder, features)
        return {**found.__dict__, "told": str(found)}

    def find(
        self,
        cfg: Config,
        checkpoint: str,
        out: str | Path,
        features: str | Path | None = None,
        labelled: str | Path | None = None,
        alignment: str | Path | None = None,
    ) -> Reliability:
        """Keep the predicted clusters of images whose neighbours are in the same one; write labels and histogram.

        Args:
            cfg: a prepared config of a trained clustering, SPICE-Self say.
            checkpoint: of it.
            out: folder to write to.
            features: file of :func:`odc.apis.extract_features` to take neighbours in; by default the model's features.
            labelled: CSV file with the columns ``path`` and ``label``: these images join the reliable ones and win
                over what was predicted for them; needs
            alignment: map of clusters to classes that ``odc align`` wrote.

        Raises:
            InputError: nothing is reliable, or nothing in some cluster, files of other images, or options that do not
                go together.
        """
        if (labelled is None) != (alignment is None):
            raise InputError(
                "labels by hand need to know which cluster is which class: give --labels and --align together"
            )
        folder = writable(out)
        runner, data = load_runner(cfg, checkpoint)
        try:
            model, dataset = unwrap(runner.model), data.train.dataset
            predict, batch_size = model.head.predict, data.extract_batch_size
            table = extract(model, data.train, get_comm(), batch_size=batch_size, logits=predict)
        finally:
            data.close()
        if table.logits is None or table.logits.shape[1] < 2:
            raise InputError(f"{cfg.filename}: its head predicts no clusters that could be reliable")
        scores, clusters = (found.cpu() for found in table.logits.softmax(1).max(1))
        K = table.logits.shape[1]
        x = table.features if features is None else Embeddings.load(features).for_dataset(dataset)
        most = max(1, len(x) // (2 * K))  # a neighbourhood that reaches beyond its cluster says nothing of it
        if self.neighbours > most:
            average = f"{len(x) / K:.0f} images on average: taking {most}"
            print_log(f"{self.neighbours} neighbours reach beyond clusters of {average}", "current")
        beta = local_consistency(x, clusters, min(self.neighbours, most), self.include_self)
        draw_beta(beta.numpy(), self.threshold, folder / BETA)
        print_log(f"local consistency of {len(x):,} images: {beta_histogram(beta)}", "current")
        mask = reliable_samples(
            beta, clusters, K, self.threshold, scores, self.score_threshold, balance=self.balance, quota=self.quota
        )
        target = np.where(mask.numpy(), clusters.numpy(), UNLABELLED)
        by_hand = 0
        if labelled is not None and alignment is not None:
            by_hand = _join(target, clusters.numpy(), dataset, labelled, Alignment.load(alignment))
        per_cluster = np.bincount(target[target >= 0], minlength=K)
        none = np.flatnonzero(per_cluster == 0)
        if len(none) and not self.allow_empty:
            raise InputError(
                f"{len(none)} of {K} clusters have no reliable image ({listed(none)}), so training on these labels "
                f"would leave them empty: lower the threshold of {self.threshold:g} (histogram in {folder / BETA}), "
                "ask for fewer clusters or train longer; reliable.allow_empty=True (odc reliable --allow-empty) goes on"
            )
        meta = {"config": str(cfg.filename), "checkpoint": str(checkpoint), "threshold": str(self.threshold)}
        LabelFile(target, K, dataset.fingerprint, meta).save(folder / FILES["labels"])
        count, purity = int(per_cluster.sum()), _purity(target, dataset)
        found = Reliability(count, len(target), tuple(per_cluster.tolist()), purity, by_hand)
        print_log(f"{found}; {folder / FILES['labels']}, histogram in {folder / BETA}", "current")
        return found


def _join(target: Any, clusters: Any, dataset: ImageDataset, labelled: str | Path, alignment: Alignment) -> int:
    """Write a user's labels over ``target`` (N,), as clusters; return how many."""
    index, names, _ = read_labels(labelled, dataset.paths)
    for name in names:
        if name not in alignment.classes:
            raise InputError(f"'{labelled}': the map has no class '{name}'{nearest(name, alignment.classes)}")
    if int(clusters.max()) >= len(alignment.matches):
        raise InputError(
            f"the map names clusters 0 to {len(alignment.matches) - 1}, but there is a cluster {int(clusters.max())}: "
            "make it with odc align from the clusters.csv of this clustering"
        )
    label = np.array([alignment.classes.index(name) for name in names], dtype=np.int64)
    cluster = alignment.clusters_of(label, clusters[index])
    without = sorted({names[i] for i in np.flatnonzero(cluster < 0)})
    if without:
        print_log(f"no cluster is of class {', '.join(without)}: its labelled images are left out", "current")
    target[index] = cluster
    return int((cluster >= 0).sum())


def _purity(target: Any, dataset: ImageDataset) -> float | None:
    if dataset.targets is None:
        return None
    both = (target >= 0) & (dataset.targets >= 0)
    return clustering_accuracy(target[both], dataset.targets[both])[0] if both.any() else None


def draw_beta(beta: Any, threshold: float, path: Path) -> None:
    """Draw the histogram of the local consistency (N,) with its threshold."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.hist(beta, bins=50, range=(0, 1), color="#4477aa")
    axes.axvline(threshold, color="#cc3311", linestyle="--", label=f"reliable above {threshold:g}")
    axes.set_xlabel("local consistency β (share of the nearest images in the same cluster)")
    axes.set_ylabel("images")
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure)
    with written_whole(path) as file:
        figure.savefig(file, format="png")
