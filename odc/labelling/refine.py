"""A clustering that a person's labels train further: semi-supervised, the labels given fixed.

Labels flow from neighbour to neighbour to all images (:mod:`odc.clustering.propagation`), and a linear classifier is
trained on what came to each: Iscen, Tolias, Avrithis, Chum, *Label propagation for deep semi-supervised learning*, CVPR
2019 (arXiv:1904.04717), with the features as they are. The classes of the labels become the clusters 0 to C - 1, in the
order of their names. Where there are more clusters than classes, those without any labelled image stay clusters, behind
them: somebody who names 12 of 20 clusters does not want the images of the other eight among the twelve.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mmengine import Config

from odc.apis import load_runner, prepare_config, train
from odc.checkpoints import find_resume
from odc.clustering import margins
from odc.clustering.propagation import propagate
from odc.data.datasets import build_dataset
from odc.data.label_file import LabelFile
from odc.errors import InputError
from odc.evaluation.align import Alignment, align
from odc.files import alone, writable, write_table
from odc.labelling.given import Given, Score, check_apart, score_table
from odc.models.cluster_model import unwrap
from odc.portable import PortableModel
from odc.portable.files import FOLDER
from odc.portable.packing import pack_training
from odc.results import Clustering
from odc.results.clustering import ABOUT, FEATURES, TABLE
from odc.structures import UNLABELLED

CONFIG = "finetune_features_1xb256-10e"
RUN = "run"  # the training, in the folder of the clustering
RELIABLE = "labels.csv"  # what a training on the pictures may start from
_SURE = 0.5  # consistency of an image that stands for a cluster without labels
_SHARED = 0.9  # of a label that is to be trusted
_ROWS = 16_384
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """The names of labelled images that took no part, before and after."""

    on: str  # which labels
    before: Score
    after: Score
    table: str  # of both by class

    @property
    def worse(self) -> bool:
        """Whether less are right than before."""
        return self.after.right < self.before.right


@dataclass(frozen=True)
class Refined:
    """What a refinement has found."""

    clustering: Clustering
    out: Path
    labels: int
    classes: int
    others: tuple[int, ...]  # clusters of before that no label is of, and that stayed
    moved: int  # images whose name is another than before, or that had none
    measured: Measured | None

    def __str__(self) -> str:
        lines = []
        if self.measured is not None:
            before, after = self.measured.before, self.measured.after
            if self.measured.worse:
                lines += [
                    f"WORSE than before on {self.measured.on}: {after.share:.1%} are right, and were {before.share:.1%}"
                ]
            lines += [self.measured.table, "", f"on {self.measured.on}, before: {before}", f"after: {after}"]
        else:
            lines += [
                "nothing was measured: give other labels with --test, or 3 of every class, of which a third is then "
                "held out to measure on"
            ]
        clusters = f"{self.clustering.num_clusters} clusters, {self.classes} with the names of the classes"
        if self.others:
            told = ", ".join(map(str, self.others[:10])) + (", ..." if len(self.others) > 10 else "")
            clusters += (
                f", and {len(self.others)} that no label is of, before: {told} (--named-only gives all images a name)"
            )
        lines += [f"{clusters}; {self.moved:,} of {len(self.clustering):,} images have another name than by odc align"]
        return "\n".join([*lines, f"from {self.labels} labels: {self.out}"])

    def data(self) -> dict[str, Any]:
        """Return the same as JSON values."""
        measured = self.measured
        scores = (
            {}
            if measured is None
            else {k: asdict(v) for k, v in (("before", measured.before), ("after", measured.after))}
        )
        return {
            "out": str(self.out),
            "labels": self.labels,
            "clusters": self.clustering.num_clusters,
            "names": {str(c): name for c, name in sorted(self.clustering.names.items())},
            "others": list(self.others),
            "moved": self.moved,
            "measured": None if measured is None else {"on": measured.on, "worse": measured.worse, **scores},
        }


@dataclass(frozen=True, eq=False)
class Labelling:
    """What to train on: a label for every image that one came to."""

    target: Ints  # (N,) 0 to K - 1, -1: none came
    names: dict[int, str]
    others: tuple[int, ...]  # clusters of before, that are C, C + 1, ... now
    classes: int  # C

    @property
    def num_clusters(self) -> int:
        """K."""
        return self.classes + len(self.others)


def spread(clustering: Clustering, given: Given, named_only: bool = False) -> Labelling:
    """Let labels flow to all images; clusters that no label is of may stay, and then their images' labels flow, too.

    They stay where there are more clusters than classes, unless ``named_only``; those images stand for them half of
    whose neighbours or more are in the same cluster.
    """
    C, cluster = len(given.classes), clustering.cluster
    others: list[int] = []
    if clustering.num_clusters > C and not named_only:
        touched = set(cluster[given.index].tolist())
        others = [k for k in range(clustering.num_clusters) if k not in touched and clustering.sizes[k]]
    index, label = [given.index], [given.label]
    for place, k in enumerate(others):
        mine = np.flatnonzero(cluster == k)
        sure = clustering.consistency[mine]
        stands = mine[sure >= min(_SURE, sure.max())]
        index.append(stands)
        label.append(np.full(len(stands), C + place, np.int64))
    rows, labels = np.concatenate(index), np.concatenate(label)
    flow = propagate(clustering.unit, rows, labels, C + len(others))
    target = np.where(flow.any(1), flow.argmax(1), UNLABELLED).astype(np.int64)
    names = dict(enumerate(given.classes))
    names |= {C + place: clustering.names[k] for place, k in enumerate(others) if k in clustering.names}
    return Labelling(target, names, tuple(others), C)


def refine(
    folder: str | Path,
    labels: str | Path,
    out: str | Path,
    *,
    test: str | Path | None = None,
    named_only: bool = False,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Refined:
    """Train a clustering on a few labels; leave the new one in ``out``, in the same files.

    Args:
        folder: that ``odc cluster`` left, or this.
        labels: table (CSV) with the columns ``path`` and ``label``; these images keep their labels.
        out: another folder.
        test: table of other labelled images, to measure on before and after. Without one a third of the labels of every
            class is held out where each has three or more; the clustering that is left is then trained on all of them.
        named_only: every image gets one of the names, also those of clusters that no label is of.
        seed: of the training.
        say: is told what is being done.

    Raises:
        InputError: there is no clustering, labels are of other images, of one class or none, or ``out`` holds another
            clustering.
    """
    folder, out = Path(folder), Path(out)
    clustering = Clustering.load(folder)
    given = Given.read(labels, clustering.paths)
    other = None if test is None else Given.read(test, clustering.paths)
    if test is not None and other is not None:
        check_apart(given, other, clustering.paths, test)
    if len(given.classes) < 2 and (named_only or clustering.num_clusters < 2):
        raise InputError(f"'{labels}' has labels of one class, {given.classes[0]}: a classifier needs at least two")
    _check_place(folder, out)
    with alone(writable(out)):
        measured, before = None, _named(clustering, given)
        if other is not None:
            found, config = _trained(clustering, given, folder, out / RUN, named_only, seed, say)
            measured = _measure(clustering, before, other, found, f"the labels of {test}")
        else:
            held = given.third()
            if held.any():
                say("training on two thirds of the labels, to measure on the others")
                with tempfile.TemporaryDirectory(dir=out) as place:
                    part, _ = _trained(clustering, given.part(~held), folder, Path(place), named_only, seed, say)
                named = _named(clustering, given.part(~held))
                measured = _measure(clustering, named, given.part(held), part, "a third of the labels, held out")
            say("training on all labels")
            found, config = _trained(clustering, given, folder, out / RUN, named_only, seed, say)
        names = before.names_of(clustering.cluster)
        moved = sum(
            a != b
            for a, b, c in zip(names, _names(found), found.cluster.tolist(), strict=True)
            if c < len(given.classes)
        )
        if (model := _packed(folder, found, config)) is not None:
            model.save(out / FOLDER)
        _write_reliable(found, given, out / RELIABLE)
        found.save(out)
    others = tuple(found.about["refined"]["others"])
    return Refined(found, out, len(given), len(given.classes), others, moved, measured)


def _check_place(folder: Path, out: Path) -> None:
    if out.resolve() == folder.resolve():
        raise InputError(f"'{out}' holds the clustering to refine: give another folder to --out")
    if (out / ABOUT).is_file() and "refined" not in Clustering.load(out).about:
        raise InputError(f"'{out}' holds a clustering that odc refine did not make: give another folder to --out")


def _names(clustering: Clustering) -> list[str | None]:
    return [clustering.names.get(c) for c in clustering.cluster.tolist()]


def _named(clustering: Clustering, given: Given) -> Alignment:
    """Return what ``odc align`` makes of the same labels."""
    K, x = clustering.num_clusters, clustering.unit
    return align(clustering.cluster, K, given.index, given.label, given.classes, x)


def _measure(clustering: Clustering, before: Alignment, other: Given, found: Clustering, on: str) -> Measured:
    names = {"before": before.names_of(clustering.cluster[other.index])}
    names["after"] = [found.names.get(c) for c in found.cluster[other.index].tolist()]
    scores = {when: Score.of(other.names, told) for when, told in names.items()}
    return Measured(on, **scores, table=score_table(other.names, names))


def _trained(
    clustering: Clustering,
    given: Given,
    folder: Path,
    work_dir: Path,
    named_only: bool,
    seed: int,
    say: Callable[[str], None],
) -> tuple[Clustering, Config]:
    """Return the clustering of a classifier that is trained in a folder, where an earlier one goes, and its config."""
    labelling = spread(clustering, given, named_only)
    if work_dir.exists():
        shutil.rmtree(work_dir)
    config = training(folder, clustering, labelling, writable(work_dir), seed)
    train(config)
    scores = _scores(config, next(find_resume(work_dir)), clustering)
    cluster, margin = scores.argmax(1).numpy(), margins(scores).numpy()
    differ = int((cluster[given.index] != given.label).sum())
    if differ:
        say(f"{differ} of {len(given)} labelled images would be in another cluster: they stay where their label is")
    cluster[given.index], margin[given.index] = given.label, margin.max()
    about = dict(clustering.about) | {
        "refined": {"labels": len(given), "classes": len(given.classes), "others": list(labelling.others), "seed": seed}
    }
    found = Clustering.describe(
        clustering.root,
        clustering.paths,
        clustering.features,
        (cluster, margin),
        labelling.num_clusters,
        names=labelling.names,
        about=about,
        spaces=clustering.spaces,
    )
    return dataclasses.replace(found, duplicate_of=clustering.duplicate_of), config


def _write_reliable(found: Clustering, given: Given, file: Path) -> None:
    """Write the labels given, and those of images that nine in ten of their neighbours share, as a table."""
    sure = (found.consistency >= _SHARED) & (found.cluster >= 0)
    sure[given.index] = True
    names = {c: found.names.get(c, f"cluster {c}") for c in range(found.num_clusters)}
    rows = [(found.paths[i], names[int(found.cluster[i])]) for i in np.flatnonzero(sure)]
    write_table(file, ("path", "label"), rows)


def _packed(folder: Path, found: Clustering, config: Config) -> PortableModel | None:
    """Return the model of a new clustering: the networks of the old one, if there is one, and the classifier."""
    if not (folder / FOLDER).is_dir():
        return None
    old, checkpoint = PortableModel.load(folder), next(find_resume(config.work_dir))
    new = pack_training(found, config, checkpoint, None)
    reference = new.reference
    if old.reference.paths == reference.paths:  # the same pictures have the same prints
        reference = dataclasses.replace(reference, prints=old.reference.prints)
    told = {"features": old.about.get("features", new.about["features"])}
    return dataclasses.replace(
        new,
        networks=old.networks,
        levels=old.levels,
        spaces=old.spaces,
        reference=reference,
        about=dict(new.about) | told,
    )


def training(folder: Path, clustering: Clustering, labelling: Labelling, work_dir: Path, seed: int) -> Config:
    """Return the prepared config of the classifier's training; its labels are written into the work directory."""
    files = {"file": str(folder / FEATURES), "paths": str(folder / TABLE)}
    options = {
        "data.dataset": {"_delete_": True, "type": "Features", "files": [files]},
        "model.backbone.spaces": list(clustering.spaces or clustering.features.shape[1:]),
        "model.head.num_classes": labelling.num_clusters,
        "train_cfg.label_file": str(work_dir / "labels.npz"),
        "val_evaluator": None,
        "log_level": "WARNING",
    }
    config = prepare_config(CONFIG, work_dir=work_dir, cfg_options=options, seed=seed)
    dataset = build_dataset(config.data.dataset)
    place = {path: i for i, path in enumerate(clustering.paths)}
    target = labelling.target[[place[path] for path in dataset.paths]]
    LabelFile(target, labelling.num_clusters, dataset.fingerprint).save(work_dir / "labels.npz")
    return config


@torch.no_grad()
def _scores(config: Config, checkpoint: str, clustering: Clustering) -> torch.Tensor:
    """Return the scores (N, K) of the trained classifier."""
    runner, data = load_runner(config, checkpoint)
    try:
        model = unwrap(runner.model)
        model.eval()
        device = next(model.parameters()).device
        parts = [clustering.features[i : i + _ROWS] for i in range(0, len(clustering), _ROWS)]
        scores = [model.head.predict(torch.from_numpy(np.asarray(x, np.float32)).to(device)).cpu() for x in parts]
    finally:
        data.close()
    return torch.cat(scores)
