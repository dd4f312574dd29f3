"""What features are worth to somebody with labels: probes, trained on frozen features and tested on other images.

- kNN: majority vote of the k nearest training images by cosine.
- Linear: multinomial logistic regression by L-BFGS. As in Kornblith et al. (2019, arXiv:1805.08974), a held-out part of
  the training images chooses the strength of the L2 penalty from a logarithmic grid, and the classifier is then fitted
  to all of them. It chooses by likelihood, since on few images several strengths are equally accurate.
- Low-shot: the linear probe on a fraction of the labels, balanced over the classes (Chen et al. 2020,
  arXiv:2002.05709), over several draws.

The linear probes standardise every dimension by the training images, as the batch norm without affine parameters
before the classifier of He et al. (2022, arXiv:2111.06377) does: a linear classifier stays one, and one grid of
strengths suits features of any scale. Rows divided by their norms, as for the cosine, would keep the large common mean
that features have after a ReLU.

Each trains on one set of samples and is tested on another. Targets of -1 are unknown: those samples are left out. A
test sample of a class that no training sample has is always wrong. All refuse, by :class:`InputError`, shapes that do
not fit, features that are not finite, and a set without any known class.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mmengine.logging import print_log
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from odc.clustering import knn_search
from odc.data.label_file import low_shot
from odc.errors import InputError
from odc.evaluation.metrics import majority

STRENGTHS = (1e0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # λ of the penalty λ/2 ‖W‖² on the mean loss
_FEW = 5  # images a class, of which a fifth is less than one: nothing is held out then,
_FEW_STRENGTH = 1e-2  # and this strength is taken
HELD_OUT = 0.2  # share of the samples of every class
_NEIGHBOURS = (1, 10, 20)
_FRACTIONS = (0.01, 0.1)  # of the labels
_MAX_ITER = 1000
_FIRST_NOTE_S = 10.0

Samples = tuple[Tensor, Tensor]  # features (N, D) floating, of any scale, and targets (N,) int64
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LinearResult:
    """What a linear probe found."""

    accuracy: float  # on the test images, in [0, 1]
    strength: float  # λ of the penalty


@dataclass(frozen=True)
class LowShotResult:
    """What linear probes on few labels found."""

    mean: float  # of the accuracies, in [0, 1]
    std: float  # of the accuracies, with Bessel's correction
    labels: int  # training images of a draw
    draws: int  # number of probes


def knn_probe(train: Samples, test: Samples, ks: Sequence[int]) -> dict[int, float]:
    """Return ``{k: accuracy}`` of a vote among the k nearest training samples by cosine, in one exact search.

    All neighbours vote alike; of classes with equally many votes, the one that has the nearest neighbour wins, as in
    :func:`odc.evaluation.metrics.knn_accuracy`, which is for one set alone.

    Raises:
        InputError: also for a k that is not between 1 and the number of training samples of known class.
    """
    x, y, queries, wanted = _checked(train, test)
    for k in ks:
        if not 1 <= k <= len(x):
            raise InputError(f"k={k}, but with {len(x)} training samples of known class it must be 1 to {len(x)}")
    classes, column = torch.unique(y, return_inverse=True)
    nearest, _ = knn_search(x, queries, k=max(ks))
    correct = dict.fromkeys(ks, 0)
    for ids, target in zip(nearest.split(1024), wanted.split(1024), strict=True):
        voted = column[ids]
        for k in correct:
            correct[k] += int((classes[majority(voted[:, :k], len(classes))] == target).sum())
    return {k: n / len(wanted) for k, n in correct.items()}


def linear_probe(train: Samples, test: Samples, *, generator: torch.Generator) -> LinearResult:
    """Return the accuracy of logistic regression on standardised features; see the top of this file.

    A fifth of the training samples of every class, drawn by ``generator``, chooses the strength of the penalty; with
    less than 5 samples a class it is 0.01.

    Raises:
        InputError: also where the training samples are of one class.
    """
    x, y, queries, wanted = (tensor.numpy() for tensor in _checked(train, test))
    classes = len(np.unique(y))
    if classes < 2:
        raise InputError(f"a linear probe needs at least 2 classes, but the {len(y):,} training samples have 1")
    strength = _best_strength(x, y, generator) if len(y) >= _FEW * classes else _FEW_STRENGTH
    classifier = _fit(x, y, strength)
    if int(classifier[-1].n_iter_.max()) >= _MAX_ITER:
        line = f"the linear probe of {len(x):,} samples has not converged in {_MAX_ITER} iterations (L2 {strength:g})"
        print_log(line, "current", logging.WARNING)
    return LinearResult(float(classifier.score(queries, wanted)), strength)


def low_shot_probe(
    train: Samples, test: Samples, *, fraction: float, generator: torch.Generator, draws: int = 5
) -> LowShotResult:
    """Return mean and standard deviation of :func:`linear_probe` on random fractions of the training samples.

    Draws are those of :func:`odc.data.label_file.low_shot`: as even over the classes as their sizes allow, and at least
    one of each. ``generator`` draws samples and held-out parts.

    Raises:
        InputError: also as :func:`linear_probe`, or for a ``fraction`` of the training samples of known class that is
            not in (0, 1], or less than 2 ``draws``.
    """
    if not 0 < fraction <= 1 or draws < 2:
        raise InputError(f"a low-shot probe needs a fraction in (0, 1] and 2 draws or more, not {fraction} and {draws}")
    x, y, queries, wanted = _checked(train, test)
    accuracies, labels = [], 0
    for _ in range(draws):
        chosen = low_shot(y.numpy(), fraction, generator) >= 0
        result = linear_probe((x[chosen], y[chosen]), (queries, wanted), generator=generator)
        accuracies.append(result.accuracy)
        labels = int(chosen.sum())
    return LowShotResult(statistics.mean(accuracies), statistics.stdev(accuracies), labels, draws)


def generalisation_score(
    features: Tensor, clusters: Tensor, *, generator: torch.Generator, spaces: Sequence[int] = (), folds: int = 10
) -> float:
    """Return how well logistic regression predicts the clusters of samples that it has not seen: no true label enters.

    The score by which TURTLE (Gadetsky et al. 2024, arXiv:2406.07236) chooses its settings: cross-validated accuracy
    of logistic regression (C = 1) on the features as they are, the mean over their spaces. Clusters are shared evenly
    over the folds; a sample whose cluster has no other one is always wrong.

    Of clusterings with different numbers of clusters that are not empty, the one with fewer is the easier task: never
    compare their scores.

    Args:
        features: (N, D) floating, finite.
        clusters: (N,) int64, at least two different ones.
        generator: shuffles the samples of a cluster.
        spaces: widths of the spaces that the features consist of; empty: one.
        folds: at least 2, at most N.
    """
    order = torch.randperm(len(clusters), generator=generator)
    order = order[clusters[order].argsort(stable=True)]
    fold = torch.empty_like(order)
    fold[order] = torch.arange(len(order)) % folds
    y, of = clusters.numpy(), fold.numpy()
    right, parts = 0, features.float().split(list(spaces) or [features.shape[1]], 1)
    for x in (part.numpy() for part in parts):
        for held in range(folds):
            train, test = of != held, of == held
            kept = np.unique(y[train])
            if len(kept) < 2:
                right += int((y[test] == kept[0]).sum())
                continue
            with warnings.catch_warnings():  # a fold that has not converged is as good a judge
                warnings.simplefilter("ignore", ConvergenceWarning)
                right += int(
                    (LogisticRegression(max_iter=_MAX_ITER).fit(x[train], y[train]).predict(x[test]) == y[test]).sum()
                )
    return right / (len(y) * len(parts))


def stratified_split(targets: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return sample ids to train on and to hold out, in ascending order: ``share`` of every class is held out.

    Of a class with several samples at least one is on either side, a single one is trained on; unknown ones are in
    neither. ``targets`` are (N,) int64, ``share`` is in (0, 1).
    """
    kept, held = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]
    for c in targets[targets >= 0].unique():
        ids = (targets == c).nonzero().squeeze(1)
        ids = ids[torch.randperm(len(ids), generator=generator)]
        n = min(max(1, round(share * len(ids))), len(ids) - 1)
        held.append(ids[:n])
        kept.append(ids[n:])
    return torch.cat(kept).sort().values, torch.cat(held).sort().values


@dataclass(frozen=True)
class ProbeReport:
    """What all probes of one set of features found, and on how many images of known class."""

    provenance: dict[str, str]  # in words, by name: features, config, training and test images
    knn: dict[int, float]  # accuracy by k
    linear: LinearResult  # with all labels
    low_shot: dict[float, LowShotResult]  # by the fraction of the labels
    train: int  # images
    test: int  # images

    def __str__(self) -> str:
        """Return a table for people, a line each probe, accuracies in per cent."""
        linear = self.linear
        rows = [(f"kNN, k={k}", f"{100 * accuracy:5.1f}", "") for k, accuracy in self.knn.items()]
        note = f"{self.train:,} labels, L2 penalty {linear.strength:g}"
        rows.append(("linear", f"{100 * linear.accuracy:5.1f}", note))
        for fraction, few in self.low_shot.items():
            accuracy, note = f"{100 * few.mean:5.1f} ± {100 * few.std:.1f}", f"{few.labels:,} labels, {few.draws} draws"
            rows.append((f"linear, {100 * fraction:g} % of labels", accuracy, note))
        lines = [f"{name:<10}{text}" for name, text in self.provenance.items()]
        lines += ["", "accuracy in % (kNN: cosine, majority vote; linear: logistic regression)"]
        return "\n".join([*lines, *(f"  {name:<26}{found:<14}{note}".rstrip() for name, found, note in rows)])

    def to_json(self) -> str:
        """Return the same for programs, accuracies in [0, 1]."""
        return json.dumps(asdict(self), indent=2) + "\n"


def run_probes(
    train: Samples, test: Samples, *, generator: torch.Generator, provenance: dict[str, str] | None = None
) -> ProbeReport:
    """Run all probes: 1, 10 and 20 neighbours, as far as there are so many, and all, 1 % and 10 % of the labels.

    ``generator`` draws held-out parts and low-shot samples; ``provenance`` goes into the report.
    """
    known = int((train[1] >= 0).sum())
    return ProbeReport(
        provenance or {},
        knn_probe(train, test, [k for k in _NEIGHBOURS if k <= known] or [1]),
        linear_probe(train, test, generator=generator),
        {share: low_shot_probe(train, test, fraction=share, generator=generator) for share in _FRACTIONS},
        known,
        int((test[1] >= 0).sum()),
    )


def _checked(train: Samples, test: Samples) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return features, float32, and targets of the samples of known class, to train and to test on; on the CPU."""
    found: list[Tensor] = []
    for name, (features, targets) in (("training", train), ("test", test)):
        if features.ndim != 2 or targets.shape != features.shape[:1]:
            raise InputError(
                f"{name} features must be (N, D) and their targets (N,), not {tuple(features.shape)} and "
                f"{tuple(targets.shape)}"
            )
        known = targets.cpu() >= 0
        if not bool(known.any()):
            raise InputError(f"none of the {len(targets):,} {name} samples has a known class: a probe needs labels")
        x = features.detach().cpu()[known].float()
        bad = int((~x.isfinite().all(1)).sum())
        if bad:
            raise InputError(f"{bad:,} of {len(x):,} rows of {name} features are not finite: lower the learning rate")
        found += [x, targets.cpu()[known]]
    x, y, queries, wanted = found
    if x.shape[1] != queries.shape[1]:
        raise InputError(f"training features have width {x.shape[1]}, but test features {queries.shape[1]}")
    return x, y, queries, wanted


def _best_strength(x: Array, y: Array, generator: torch.Generator) -> float:
    """Return the strength whose classifier finds what is held out most likely, the strongest of equals."""
    kept, held = (ids.numpy() for ids in stratified_split(torch.from_numpy(y), HELD_OUT, generator))
    losses: list[float] = []
    started = noted = time.monotonic()
    for done, strength in enumerate(STRENGTHS, start=1):
        classifier = _fit(x[kept], y[kept], strength)
        losses.append(log_loss(y[held], classifier.predict_proba(x[held]), labels=classifier.classes_))
        now = time.monotonic()
        if now - noted > _FIRST_NOTE_S:
            left = (now - started) / done * (len(STRENGTHS) + 1 - done)
            print_log(f"linear probe: {done} of {len(STRENGTHS) + 1} fits, about {left:.0f} s left", "current")
            noted = now
    return STRENGTHS[int(np.argmin(losses))]


def _fit(x: Array, y: Array, strength: float) -> Any:
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (strength * len(x)), max_iter=_MAX_ITER))
    with warnings.catch_warnings():  # told in one line, of the fit that counts
        warnings.simplefilter("ignore", ConvergenceWarning)
        return classifier.fit(x, y)
