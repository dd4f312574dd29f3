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

Targets of -1 are unknown: those samples are left out.
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
_MAX_ITER = 1000
_FIRST_NOTE_S = 10.0

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LinearResult:
    """What a linear probe found.

    Attributes:
        accuracy: on the test images, in [0, 1].
        strength: λ of the penalty λ/2 ‖W‖² on the mean loss.
    """

    accuracy: float
    strength: float


@dataclass(frozen=True)
class LowShotResult:
    """What linear probes on few labels found.

    Attributes:
        mean: of the accuracies, in [0, 1].
        std: of the accuracies, with Bessel's correction.
        labels: training images of a draw.
        draws: number of probes.
    """

    mean: float
    std: float
    labels: int
    draws: int


def knn_probe(
    train_features: Tensor, train_targets: Tensor, test_features: Tensor, test_targets: Tensor, ks: Sequence[int]
) -> dict[int, float]:
    """Return ``{k: accuracy}`` of a vote among the k nearest training samples by cosine, in one exact search.

    All neighbours vote alike; of classes with equally many votes, the one that has the nearest neighbour wins, as in
    :func:`odc.evaluation.knn_accuracy`, which is for one set alone.

    Args:
        train_features: (N, D) floating; need not be normalised.
        train_targets: (N,) int64.
        test_features: (M, D) floating.
        test_targets: (M,) int64.
        ks: each between 1 and the number of training samples of known class.

    Raises:
        InputError: shapes do not fit, features are not finite, no class is known, or a k is out of range.
    """
    x, y, queries, wanted = _checked(train_features, train_targets, test_features, test_targets)
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


def linear_probe(
    train_features: Tensor,
    train_targets: Tensor,
    test_features: Tensor,
    test_targets: Tensor,
    *,
    generator: torch.Generator,
) -> LinearResult:
    """Return the accuracy of logistic regression on standardised features; see the top of this file.

    A fifth of the training samples of every class, drawn by ``generator``, chooses the strength of the penalty; with
    less than 5 samples a class it is 0.01. A test sample of a class that no training sample has is always wrong.

    Args:
        train_features: (N, D) floating, of any scale.
        train_targets: (N,) int64.
        test_features: (M, D) floating.
        test_targets: (M,) int64.
        generator: draws the held-out part.

    Raises:
        InputError: shapes do not fit, features are not finite, or fewer than two classes are known.
    """
    sets = _checked(train_features, train_targets, test_features, test_targets)
    x, y, queries, wanted = (column.numpy() for column in sets)
    if len(np.unique(y)) < 2:
        raise InputError(f"a linear probe needs at least 2 classes, but the {len(y):,} training samples have 1")
    strength = _FEW_STRENGTH
    if len(y) >= _FEW * len(np.unique(y)):
        kept, held = (ids.numpy() for ids in stratified_split(torch.from_numpy(y), HELD_OUT, generator))
        best = np.inf
        started = noted = time.monotonic()
        for done, candidate in enumerate(STRENGTHS, start=1):
            classifier = _fit(x[kept], y[kept], candidate)
            loss = log_loss(y[held], classifier.predict_proba(x[held]), labels=classifier.classes_)
            if loss < best:
                best, strength = loss, candidate
            now = time.monotonic()
            if now - noted > _FIRST_NOTE_S:
                left = (now - started) / done * (len(STRENGTHS) + 1 - done)
                print_log(f"linear probe: {done} of {len(STRENGTHS) + 1} fits, about {left:.0f} s left", "current")
                noted = now
    classifier = _fit(x, y, strength)
    if int(classifier[-1].n_iter_.max()) >= _MAX_ITER:
        line = f"the linear probe of {len(x):,} samples has not converged in {_MAX_ITER} iterations (L2 {strength:g})"
        print_log(line, "current", logging.WARNING)
    return LinearResult(float(classifier.score(queries, wanted)), strength)


def low_shot_probe(
    train_features: Tensor,
    train_targets: Tensor,
    test_features: Tensor,
    test_targets: Tensor,
    *,
    fraction: float,
    generator: torch.Generator,
    draws: int = 5,
) -> LowShotResult:
    """Return mean and standard deviation of :func:`linear_probe` on random fractions of the training samples.

    Draws are those of :func:`odc.data.label_file.low_shot`: as even over the classes as their sizes allow, and at least
    one of each.

    Args:
        train_features: (N, D) floating, of any scale.
        train_targets: (N,) int64.
        test_features: (M, D) floating.
        test_targets: (M,) int64.
        fraction: of the training samples of known class, in (0, 1].
        generator: draws samples and held-out parts.
        draws: at least 2.

    Raises:
        InputError: as :func:`linear_probe`, or ``fraction`` or ``draws`` is out of range.
    """
    if not 0 < fraction <= 1 or draws < 2:
        raise InputError(f"a low-shot probe needs a fraction in (0, 1] and 2 draws or more, not {fraction} and {draws}")
    x, y = _known(train_features, train_targets, "training")
    accuracies, labels = [], 0
    for _ in range(draws):
        chosen = low_shot(y.numpy(), fraction, generator) >= 0
        result = linear_probe(x[chosen], y[chosen], test_features, test_targets, generator=generator)
        accuracies.append(result.accuracy)
        labels = int(chosen.sum())
    return LowShotResult(statistics.mean(accuracies), statistics.stdev(accuracies), labels, draws)


def stratified_split(targets: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return sample ids to train on and to hold out, in ascending order: ``share`` of every class is held out.

    Of a class with several samples at least one is on either side, a single one is trained on; unknown ones are in
    neither.

    Args:
        targets: (N,) int64, -1 unknown.
        share: in (0, 1).
        generator: draws the samples.
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
class ProbeResults:
    """What all probes of one set of features found, and on how many images of known class.

    Attributes:
        knn: accuracy by k.
        linear: the linear probe with all labels.
        low_shot: linear probes by the fraction of the labels.
        train: training images.
        test: test images.
    """

    knn: dict[int, float]
    linear: LinearResult
    low_shot: dict[float, LowShotResult]
    train: int
    test: int

    def __str__(self) -> str:
        """Return a table, a line each probe, accuracies in per cent."""
        rows = [(f"kNN, k={k}", f"{100 * accuracy:5.1f}", "") for k, accuracy in self.knn.items()]
        linear = self.linear
        rows.append(
            ("linear", f"{100 * linear.accuracy:5.1f}", f"{self.train:,} labels, L2 penalty {linear.strength:g}")
        )
        for fraction, few in self.low_shot.items():
            accuracy = f"{100 * few.mean:5.1f} ± {100 * few.std:.1f}"
            rows.append(
                (f"linear, {100 * fraction:g} % of labels", accuracy, f"{few.labels:,} labels, {few.draws} draws")
            )
        return "\n".join(f"  {name:<26}{accuracy:<14}{note}".rstrip() for name, accuracy, note in rows)


@dataclass(frozen=True)
class ProbeReport:
    """The results, and what they are of.

    Attributes:
        provenance: in words, by name: features, config, training and test images.
        results: what the probes found.
    """

    provenance: dict[str, str]
    results: ProbeResults

    def __str__(self) -> str:
        """Return a small table for people."""
        lines = [f"{name:<10}{text}" for name, text in self.provenance.items()]
        return "\n".join(
            [*lines, "", "accuracy in % (kNN: cosine, majority vote; linear: logistic regression)", str(self.results)]
        )

    def to_json(self) -> str:
        """Return the same for programs, accuracies in [0, 1]."""
        return json.dumps({"provenance": self.provenance, **asdict(self.results)}, indent=2) + "\n"


def run_probes(
    train_features: Tensor,
    train_targets: Tensor,
    test_features: Tensor,
    test_targets: Tensor,
    *,
    generator: torch.Generator,
    ks: Sequence[int] = (1, 10, 20),
    fractions: Sequence[float] = (0.01, 0.1),
) -> ProbeResults:
    """Run all probes; a k of ``ks`` that exceeds the number of training samples of known class is left out.

    Args:
        train_features: (N, D) floating.
        train_targets: (N,) int64.
        test_features: (M, D) floating.
        test_targets: (M,) int64.
        generator: draws held-out parts and low-shot samples.
        ks: neighbours that vote.
        fractions: of the labels, for the low-shot probes.

    Raises:
        InputError: as the probes.
    """
    sets = (train_features, train_targets, test_features, test_targets)
    train, test = int((train_targets >= 0).sum()), int((test_targets >= 0).sum())
    return ProbeResults(
        knn_probe(*sets, [k for k in ks if k <= train] or [1]),
        linear_probe(*sets, generator=generator),
        {fraction: low_shot_probe(*sets, fraction=fraction, generator=generator) for fraction in fractions},
        train,
        test,
    )


def _known(features: Tensor, targets: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return the rows of known class on the CPU, float32 and int64."""
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
    return x, targets.cpu()[known]


def _checked(
    train_features: Tensor, train_targets: Tensor, test_features: Tensor, test_targets: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return both sets' rows of known class, which have one width."""
    x, y = _known(train_features, train_targets, "training")
    queries, wanted = _known(test_features, test_targets, "test")
    if x.shape[1] != queries.shape[1]:
        raise InputError(f"training features have width {x.shape[1]}, but test features {queries.shape[1]}")
    return x, y, queries, wanted


def _fit(x: Array, y: Array, strength: float) -> Any:
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (strength * len(x)), max_iter=_MAX_ITER))
    with warnings.catch_warnings():  # told in one line, of the fit that counts
        warnings.simplefilter("ignore", ConvergenceWarning)
        return classifier.fit(x, y)
