"""The labels that an image's neighbours share: what one training hands to the next that trains on labels (SPICE)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
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
from odc.engine.comm import get_comm
from odc.engine.extract import extract
from odc.errors import InputError, nearest
from odc.evaluation.align import Alignment, read_labels
from odc.evaluation.gallery import listed
from odc.evaluation.metrics import clustering_accuracy
from odc.files import writable, written_whole
from odc.models.cluster_model import unwrap
from odc.options import read_arguments
from odc.recipes.stage import FILES, Left, Stage
from odc.registry import STAGES, check_arguments
from odc.structures import UNLABELLED

BETA = "beta.png"  # the histogram, and the threshold in it


@dataclass(frozen=True)
class Reliability:
    """What the reliable step found.

    Attributes:
        count: images whose label is trusted, of ``total``.
        per_cluster: (K,) of them in each cluster.
        purity: share of them that are right under the best one-to-one map of clusters to classes; ``None`` without
            ground truth. For evaluation only.
        labelled: how many of the labels a user gave.
    """

    count: int
    total: int
    per_cluster: tuple[int, ...]
    purity: float | None
    labelled: int

    def __str__(self) -> str:
        low, high = min(self.per_cluster), max(self.per_cluster)
        text = f"{self.count:,} of {self.total:,} images have a reliable label, {low:,} to {high:,} a cluster"
        if self.labelled:
            text += f", {self.labelled:,} of them given by hand"
        if self.purity is not None:
            text += f"; {self.purity:.1%} of them are right (for evaluation only)"
        return text + "; their number says nothing about their quality"


def reliable(
    cfg: Config,
    checkpoint: str,
    out: str | Path,
    *,
    features: str | Path | None = None,
    neighbours: int = 100,
    threshold: float = 0.99,
    score_threshold: float | None = None,
    balance: Any = None,
    quota: int | None = None,
    include_self: bool = False,
    labelled: str | Path | None = None,
    alignment: str | Path | None = None,
    allow_empty: bool = False,
) -> Reliability:
    """Keep the predicted clusters of images whose neighbours are in the same one; write ``labels.npz``, ``beta.png``.

    Args:
        cfg: a prepared config of a trained clustering, SPICE-Self say.
        checkpoint: of it.
        out: folder to write to.
        features: file of :func:`odc.apis.extract_features` to take neighbours in; by default the model's features.
        neighbours: at most half the mean size of a cluster.
        threshold, score_threshold, balance, quota, include_self: see :mod:`odc.clustering.consistency`.
        labelled: CSV file with the columns ``path`` and ``label``: these images join the reliable ones and win over
            what was predicted for them; needs
        alignment: map of clusters to classes that ``odc align`` wrote.
        allow_empty: go on where a cluster has no reliable image. What trains on the labels will leave it empty.

    Raises:
        InputError: nothing is reliable, or nothing in some cluster, files of other images, or options that do not go
            together.
    """
    if (labelled is None) != (alignment is None):
        raise InputError("labels by hand need to know which cluster is which class: give --labels and --align together")
    folder = writable(out)
    runner, data = load_runner(cfg, checkpoint)
    try:
        model, comm, dataset = unwrap(runner.model), get_comm(), data.train.dataset
        table = extract(model, data.train, comm, batch_size=data.extract_batch_size, logits=model.head.predict)
    finally:
        data.close()
    if table.logits is None or table.logits.shape[1] < 2:
        raise InputError(f"{cfg.filename}: its head predicts no clusters that could be reliable")
    scores, clusters = table.logits.softmax(1).max(1)
    K = table.logits.shape[1]
    x = table.features if features is None else Embeddings.load(features).for_dataset(dataset)
    most = max(1, len(x) // (2 * K))  # a neighbourhood that reaches beyond its cluster says nothing of it
    if neighbours > most:
        print_log(
            f"{neighbours} neighbours reach beyond clusters of {len(x) / K:.0f} images on average: taking {most}",
            "current",
        )
    beta = local_consistency(x, clusters.cpu(), min(neighbours, most), include_self)
    draw_beta(beta.numpy(), threshold, folder / BETA)
    print_log(f"local consistency of {len(x):,} images: {beta_histogram(beta)}", "current")
    mask = reliable_samples(
        beta, clusters.cpu(), K, threshold, scores.cpu(), score_threshold, balance=balance, quota=quota
    )
    target = np.where(mask.numpy(), clusters.cpu().numpy(), UNLABELLED)
    given = 0
    if labelled is not None and alignment is not None:
        given = _join(target, clusters.cpu().numpy(), dataset, labelled, Alignment.load(alignment))
    none = np.flatnonzero(np.bincount(target[target >= 0], minlength=K) == 0)
    if len(none) and not allow_empty:
        raise InputError(
            f"{len(none)} of {K} clusters have no reliable image ({listed(none)}), so training on these labels would "
            f"leave them empty: lower the threshold of {threshold:g} (histogram in {folder / BETA}), ask for "
            "fewer clusters or train longer; reliable.allow_empty=True (odc reliable --allow-empty) goes on"
        )
    meta = {"config": str(cfg.filename), "checkpoint": str(checkpoint), "threshold": str(threshold)}
    LabelFile(target, K, dataset.fingerprint, meta).save(folder / FILES["labels"])
    found = Reliability(
        int((target >= 0).sum()),
        len(target),
        tuple(np.bincount(target[target >= 0], minlength=K).tolist()),
        _purity(target, dataset),
        given,
    )
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


@STAGES.register_module()
@dataclass(frozen=True)
class Reliable(Stage):
    """The reliable labels of a training's clusters; see :func:`reliable` for the options.

    Neighbours are those in the features of another stage, or of the training itself.
    """

    takes: ClassVar[Mapping[str, bool]] = {"checkpoint": True, "features": False}
    leaves: ClassVar[tuple[str, ...]] = ("labels",)

    _: KW_ONLY
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, name: str, entry: Mapping[str, Any], near: Path, read: Callable[[Path], Config]) -> Reliable:
        """Take the options."""
        return cls(name, options=dict(entry))

    def configured(self, options: Mapping[str, Any], seed: int | None, amp: bool, strict: bool) -> Reliable:
        """Return the stage with options changed."""
        new = {**self.options, **read_arguments(options, reliable)}
        given = ("cfg", "checkpoint", "out", "features", "labelled", "alignment")
        check_arguments(reliable, new, f"stage '{self.name}'", given=given)
        return replace(self, options=new)

    def decides(self) -> Any:
        """Return the options."""
        return dict(self.options)

    def run(self, folder: Path, given: Mapping[str, Left], hooks: Sequence[Hook]) -> dict[str, Any]:
        """Write the labels."""
        left = given["checkpoint"]
        features = given["features"].file("features") if "features" in given else None
        found = reliable(left.config(folder), str(left.file("checkpoint")), folder, features=features, **self.options)
        return {**found.__dict__, "told": str(found)}

    def lacks(self, folder: Path, result: Mapping[str, Any], needed: bool) -> str | None:
        """Return which file is missing, the picture among them."""
        return next((file for file in (FILES["labels"], BETA) if not (folder / file).is_file()), None)
