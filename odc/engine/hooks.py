"""Observers: they log, and never write the state of a model.

The two statistics of the pre-flight need no labels, and are not 0 for features without structure, so each stands next
to its value at chance: the same on the same features with every column permuted by itself, which keeps how each feature
is distributed and destroys what the images have in common.

The verdict is by the excess of the consistency, (value - chance) / (1 - chance), because it varies least. Measured,
lowest to highest over 4 seeds, for 1,797 digits (16×16) and 1,800 images of uniform noise:

=======================================================  ============  ============  ============
excess of the consistency                                K = 5         K = 10        K = 50
=======================================================  ============  ============  ============
digits, ConvNet after 20 epochs of MoCo (kNN 96.8 %)     0.81 to 0.84  0.84 to 0.85  0.68 to 0.71
digits, untrained ConvNet (kNN 93.8 %)                   0.59 to 0.68  0.65 to 0.68  0.55 to 0.56
noise, untrained ConvNet                                 0.22 to 0.25  0.16 to 0.18  0.08 to 0.10
noise, untrained ResNet-18 of width 16                   0.24 to 0.26  0.20 to 0.21  0.09 to 0.11
independent normal columns                               -0.03 to .02  -0.02 to .01  -0.01 to .00
=======================================================  ============  ============  ============

Features that are all the same, or differ by a millionth or a thousandth of their length, have -0.02 to 0.01. Of 200
digits (8 samples, K = 10) the untrained ConvNet has 0.44 to 0.55 and noise at most 0.19; of 100 they come as near as
0.24 and 0.15, so there is no verdict below 200 images. What passes is not thereby good: features that agree about
nothing but brightness pass too, the encoder trained on digits reaches 0.50 on noise (K = 10), and two clusters of noise
reach 0.37.
"""

from __future__ import annotations

import datetime
import math
import time
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import Tensor

from odc.clustering import kmeans, knn_search, l2_normalize, size_entropy
from odc.engine.extract import extract
from odc.engine.frozen import features_are_fixed
from odc.errors import InputError
from odc.evaluation.evaluator import label_statistics, tells_apart
from odc.evaluation.metrics import Ids, knn_accuracy, nmi
from odc.models.cluster_model import unwrap
from odc.registry import HOOKS
from odc.structures import make_generator

NEIGHBOURS = 10
FEWEST = 20  # images that anything is computed of
FEWEST_JUDGED = 200
NEAR_CHANCE = 0.3  # excess of the consistency
EVEN = 0.9  # of the clusters in use by entropy: what is below contradicts clusters of equal size
SAME = 1e-6  # mean squared distance of unit features from their mean


class ExtractionHook(Hook):
    """Is told how far an extraction of features is, too."""

    def extracted(self, done: int, total: int) -> None:
        """Take how many of how many images are done."""


@HOOKS.register_module()
class ProgressHook(Hook):
    """What one wants to read while a training runs, and the same numbers for the visualizer.

    One line an epoch: losses, how the labels moved, how the clusters are filled, the time left. A collapse is visible
    at once: the entropy of the cluster sizes falls, clusters empty, labels stop moving. Inside a long epoch a line
    every ``seconds``, and a line for every evaluation.

    Args:
        seconds: time between two lines inside an epoch.
    """

    priority = "BELOW_NORMAL"

    def __init__(self, seconds: float = 20.0) -> None:
        if seconds <= 0:
            raise InputError(f"ProgressHook's seconds must be positive, not {seconds}")
        self.seconds = seconds

    def before_train(self, runner: Any) -> None:
        """Start the clock of the lines; that of the time left starts with the first step."""
        self._noted = time.monotonic()
        # When, and at which progress, the first step began and ended. What went before it, loading and looking at
        # features, is not done again; nor is what makes the first step slow: workers and kernels that start.
        self._marks: list[tuple[float, float]] = []

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Start the clock, at the first step."""
        if not self._marks:
            self._marks.append((time.monotonic(), runner.train_loop.progress))

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict[str, float] | None = None
    ) -> None:
        """Log the step, if the last line is long ago."""
        if len(self._marks) == 1:
            self._marks.append((time.monotonic(), runner.train_loop.progress))
        if time.monotonic() - self._noted >= self.seconds:
            step = f"epoch {runner.epoch + 1}/{runner.max_epochs}  step {batch_idx + 1}/{len(runner.train_dataloader)}"
            self._line(runner, step, runner.train_loop.epoch_means(), self._marks[1:])

    def after_train_epoch(self, runner: Any) -> None:
        """Log the epoch."""
        loop = runner.train_loop
        stats = dict(loop.epoch_means())
        now = unwrap(runner.model).labels.view()
        stats |= label_statistics(loop.index_before, loop.labels_before, now, len(now.counts))
        done = runner.epoch + 1
        runner.visualizer.add_scalars({f"train/{k}": v for k, v in stats.items()}, step=done)
        self._line(runner, f"epoch {done}/{runner.max_epochs}", stats, self._marks)

    def after_train(self, runner: Any) -> None:
        """Close the visualizer; warn where the head says that nothing was learnt, next to what the features were."""
        runner.visualizer.close()  # W&B would take the next training in this process for the same run
        means = runner.train_loop.epoch_means()
        found = unwrap(runner.model).head.diagnosis(means) if means else None
        if found is None:
            return
        known = runner.message_hub.runtime_info.get("preflight")
        before = f"; before the training the features had {_numbers(known)}" if known else ""
        runner.logger.warning(f"{found}{before}: pre-train longer or on more images, or see whether the features fit")

    def after_val_epoch(self, runner: Any, metrics: dict[str, float]) -> None:
        """Log the evaluation."""
        runner.visualizer.add_scalars({f"val/{k}": v for k, v in metrics.items()}, step=runner.epoch)
        runner.logger.info("evaluation  " + _numbers(metrics))
        assumption, evaluation = unwrap(runner.model).head.equal_sizes, runner.val_loop.evaluation
        if assumption is not None and runner.epoch >= runner.max_epochs:
            sizes = torch.bincount(evaluation.clusters, minlength=evaluation.scores.shape[1])
            told = unequal(sizes)
            if told is not None:
                runner.logger.warning(f"{told}, but this method {assumption}")

    def _line(self, runner: Any, where: str, stats: dict[str, float], marks: list[tuple[float, float]]) -> None:
        now = time.monotonic()
        done = runner.train_loop.progress
        line = f"{where}  {_numbers(stats)}"
        for began, progress in [mark for mark in marks if mark[1] < done][-1:]:
            left = (now - began) / (done - progress) * (1.0 - done)
            line += f"  left {datetime.timedelta(seconds=round(left))}"
        runner.logger.info(line)
        self._noted = now


def _numbers(values: dict[str, float]) -> str:
    """``empty`` counts clusters; everything else is a loss or a share."""
    return "  ".join(f"{name} {value:.{0 if name == 'empty' else 4}f}" for name, value in values.items())


def unequal(sizes: Tensor) -> str | None:
    """Return half a sentence on the sizes (K,) int64 of clusters where they are far from equal, else ``None``.

    Far is where the effective number of clusters, e to the entropy of the sizes, is below :data:`EVEN` K.
    """
    effective, K = math.exp(size_entropy(sizes)), len(sizes)
    if effective >= EVEN * K:
        return None
    return (
        f"the clusters have {int(sizes.min()):,} to {int(sizes.max()):,} images, as unequal as if "
        f"{effective:.1f} of {K} were in use"
    )


def feature_statistics(features: Tensor, num_clusters: int, seed: int, targets: Ids | None = None) -> dict[str, float]:
    """Return how far features agree with themselves, and with the true classes where these are known.

    Args:
        features: (N, D) float32, finite, N > num_clusters.
        num_clusters: K of the k-means runs, on the features normalised to unit length.
        seed: of the k-means runs and of the permutations.
        targets: (N,) int64 true classes, -1 unknown.

    Returns:
        ``consistency``: mean share of an image's 10 nearest neighbours (cosine) that are in its cluster; ``stability``:
        NMI of two k-means runs from different starts; both also as ``chance_...``; ``excess`` of the consistency;
        ``spread``: mean squared distance of the unit features from their mean; and with targets ``kmeans_nmi`` and
        ``knn``, accuracy of the 10 nearest neighbours' vote.
    """
    generator = make_generator(seed, "preflight")
    unit, _ = l2_normalize(features)
    values = {"spread": float(unit.var(dim=0, correction=0).sum())}
    for prefix in ("", "chance_"):
        if prefix:
            columns = [column[torch.randperm(len(column), generator=generator)] for column in features.unbind(1)]
            unit, _ = l2_normalize(torch.stack(columns, dim=1))
        first, second = (kmeans(unit, num_clusters, generator=generator).labels for _ in range(2))
        nearest, _ = knn_search(unit, k=min(NEIGHBOURS, len(unit) - 1))
        values[f"{prefix}consistency"] = float((first[nearest] == first[:, None]).float().mean())
        values[f"{prefix}stability"] = nmi(first, second)
        if not prefix and targets is not None and tells_apart(targets):
            known = torch.as_tensor(targets)
            values["kmeans_nmi"] = nmi(first, targets)
            values["knn"] = knn_accuracy(features, known, min(NEIGHBOURS, int((known >= 0).sum()) - 1))
    chance = values["chance_consistency"]
    values["excess"] = (values["consistency"] - chance) / (1.0 - chance) if chance < 1.0 else 0.0
    return values


@HOOKS.register_module()
class PreflightHook(Hook):
    """Say, before a clustering starts, how far its features are from chance; warn where they are near.

    Runs once, before the first epoch, for heads that have clusters to find: not for MoCo, and not where the training
    starts from given labels. It reads the model and changes nothing. The numbers are
    ``runner.message_hub.get_info("preflight")``, also after a resume: see :func:`feature_statistics`.

    Args:
        max_samples: images to look at, evenly spaced, where there are more.
    """

    def __init__(self, max_samples: int = 5000) -> None:
        if max_samples < FEWEST:
            raise InputError(f"PreflightHook's max_samples must be at least {FEWEST}, not {max_samples}")
        self.max_samples = max_samples

    def before_train_epoch(self, runner: Any) -> None:
        """Extract features on all ranks; the first one looks at them."""
        loop = runner.train_loop
        if loop.epoch > 0 or loop.iter > 0 or loop.label_file is not None or loop.label_fraction is not None:
            return
        model = unwrap(runner.model)
        with torch.no_grad():
            empty = torch.zeros(1, model.neck.out_channels, device=next(model.parameters()).device)
            K = model.eval().head.predict(empty).shape[1]
        model.train()
        N = len(loop.data.dataset)
        if K < 2:
            return
        plans = (model.head.plan(epoch) for epoch in range(loop.max_epochs))
        if model.head.label_classes is not None and all(plan.refresh is None for plan in plans):
            runner.logger.warning(
                f"pre-flight: none of the {loop.max_epochs} epochs makes labels, so there will be no clusters: raise "
                "train_cfg.max_epochs, or lower the head's warmup (model.head.warmup)"
            )
        if N < FEWEST:
            runner.logger.info(
                f"pre-flight: {N} images are too few to say anything about (at least {FEWEST} are needed)"
            )
            return
        index = torch.linspace(0, N - 1, min(N, self.max_samples)).round().long()
        if features_are_fixed(model):
            table = loop.features.extract(model, index, None)  # which keeps them
        else:
            with runner.autocast():
                table = extract(model, loop.data.train, loop.comm, batch_size=loop.data.extract_batch_size, index=index)
        features = loop.comm.gather(table.features).cpu()
        if loop.comm.rank == 0:
            targets = loop.data.dataset.targets
            self._tell(runner, features, min(K, max(2, len(index) // 20)), None if targets is None else targets[index])

    def _tell(self, runner: Any, features: Tensor, num_clusters: int, targets: Ids | None) -> None:
        values = feature_statistics(features, num_clusters, runner.train_loop.seed, targets)
        runner.message_hub.update_info("preflight", values)
        line = (
            f"pre-flight on {len(features):,} images, {num_clusters} clusters: neighbours in one cluster "
            f"{values['consistency']:.3f} (chance {values['chance_consistency']:.3f}), NMI of two k-means "
            f"{values['stability']:.3f} (chance {values['chance_stability']:.3f})"
        )
        if "knn" in values:
            line += f"; for evaluation only: k-means NMI {values['kmeans_nmi']:.3f}, kNN {values['knn']:.3f}"
        runner.logger.info(line)
        remedy = (
            "pre-train the backbone (configs/moco) and set model.pretrained to its checkpoint, or take public weights "
            "(model.backbone.pretrained=True of a TimmBackbone or TorchvisionBackbone); where they are set, check "
            "that the log says the backbone was loaded"
        )
        if values["spread"] < SAME:
            runner.logger.warning(f"all images have nearly the same features, there is nothing to cluster: {remedy}")
        elif len(features) >= FEWEST_JUDGED and values["excess"] < NEAR_CHANCE:
            runner.logger.warning(
                f"the features are near chance: neighbours share a cluster little more often "
                f"({values['consistency']:.3f}) than with independent features ({values['chance_consistency']:.3f}), "
                f"so clusters will say little about the images: {remedy}"
            )
