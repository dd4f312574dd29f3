"""TURTLE: the labels that a linear classifier learns best in a few steps, in every space of features at once.

Gadetsky, Jiang, Brbić. *Let Go of Your Labels with Unsupervised Transfer.* ICML 2024 (arXiv:2406.07236). Backbones are
pre-trained and do not change; φ_s(x), s = 1..S, are the features of an image in their spaces. A task encoder in each
space, θ_s, a linear layer with weight normalisation, labels the images softly:

    τ(x) = 1/S Σ_s softmax(θ_s φ_s(x))                                      a mean of softmaxes

Every step takes one batch of different images, for both levels:

1. inner: a linear classifier W_s is drawn for each space and takes M steps of Adam on
   Σ_s mean_x CE(W_s φ_s(x), τ(x)), the labels being given;
2. outer: one step of the optimiser on θ, the classifiers being given, for

    L(θ) = Σ_s mean_x CE(W_s φ_s(x), τ(x)) - γ Σ_s H(mean_x softmax(θ_s φ_s(x)))

The gradient reaches θ through the labels τ and the entropies alone: that W depends on τ, too, is left out (the paper's
first-order gradient). A cross-entropy whose target is trained pushes τ to one-hot labels that W finds; the entropy H of
the mean label of each space keeps the clusters alive, and with γ = 10 of one size. No labels, pairs, teacher,
neighbours or augmentation: images are seen through the view ``"extract"``.

"Cold start", the default, draws W anew at every step; "warm start" goes on with the W and the moments of the step
before. The paper chooses between them, and both learning rates, by :class:`odc.evaluation.GeneralisationScore`.

W is trained by hand: its gradient is (softmax(W φ) - τ)ᵀ φ, two matrix products a step, and no graph is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from odc.clustering.preprocess import check_differ, fit_whitening, l2_normalize
from odc.errors import InputError
from odc.heads.base import ClusterHead, Counter
from odc.registry import HEADS
from odc.structures import Batch, Comm, FeatureTable, Labels, Losses, Plan, Refresh, Stream

_BETAS, _EPS = (0.9, 0.999), 1e-8  # of Adam, inside
# Of the largest variance: what is below is whitened as if it had that much. At 1e-5, the default of `fit_whitening`,
# 512 dimensions of 5,421 photographs were mostly noise.
_FLOOR = 1e-2
_LEARNT = 0.1  # of the inner loss at the start: less is no learning


@dataclass(frozen=True)
class Inner:
    """The classifiers of all spaces, and Adam's moments: K ΣD_s weights, space after space, then biases."""

    weight: Tensor  # (K (ΣD_s + S),)
    first: Tensor
    second: Tensor
    steps: int  # of Adam, so far


def draw_inner(num_clusters: int, spaces: Sequence[int], generator: torch.Generator, like: Tensor) -> Inner:
    """Draw classifiers as ``nn.Linear`` does, weights and biases uniform within ±1/√D_s; the moments are zero."""
    K, S = num_clusters, len(spaces)
    weight = torch.rand(K * (sum(spaces) + S), generator=generator).mul_(2).sub_(1)
    for (w, b), width in zip(_views(weight, K, spaces), spaces, strict=True):
        w.mul_(width**-0.5)
        b.mul_(width**-0.5)
    weight = weight.to(like, non_blocking=True)
    return Inner(weight, torch.zeros_like(weight), torch.zeros_like(weight), 0)


def _views(flat: Tensor, num_clusters: int, spaces: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Return weight (K, D_s) and bias (K,) of each space, in the memory of ``flat``."""
    K = num_clusters
    weights = flat[: K * sum(spaces)].split([K * width for width in spaces])
    biases = flat[K * sum(spaces) :].split(K)
    return [(w.view(K, -1), b) for w, b in zip(weights, biases, strict=True)]


@torch.no_grad()
def fit_inner(
    x: Sequence[Tensor], target: Tensor, start: Inner, steps: int, lr: float, total: int, comm: Comm
) -> tuple[Inner, Tensor, Tensor]:
    """Take Adam steps on Σ_s mean CE(W_s x_s, target) over the rows of all ranks.

    Args:
        x: (B, D_s) floating, this rank's rows in each space.
        target: (B, K), rows sum to 1.
        start: left as it is.
        steps: M, at least 1.
        lr: Adam's.
        total: rows over all ranks.
        comm: the other ranks.

    Returns:
        The classifiers; Σ_s log softmax(W_s x_s) by them, (B, K); and this rank's sum over rows of the loss at the
        start, ().
    """
    K, widths = target.shape[1], [part.shape[1] for part in x]
    flat, first, second = start.weight.clone(), start.first.clone(), start.second.clone()
    gradient, root = torch.empty_like(flat), torch.empty_like(flat)
    parameters, slots = _views(flat, K, widths), _views(gradient, K, widths)
    before = flat.new_zeros(())
    for step in range(1, steps + 1):
        for part, (weight, bias), (of_weight, of_bias) in zip(x, parameters, slots, strict=True):
            scores = torch.addmm(bias, part, weight.T)
            if step == 1:
                before -= (target * scores.log_softmax(1)).sum()
            error = scores.softmax(1).sub_(target)
            torch.mm(error.T, part, out=of_weight)
            torch.sum(error, 0, out=of_bias)
        g = comm.sum(gradient).div_(total)
        t = start.steps + step
        first.lerp_(g, 1 - _BETAS[0])
        second.mul_(_BETAS[1]).addcmul_(g, g, value=1 - _BETAS[1])
        torch.sqrt(second, out=root).div_(math.sqrt(1 - _BETAS[1] ** t)).add_(_EPS)
        flat.addcdiv_(first, root, value=-lr / (1 - _BETAS[0] ** t))
    log_q = torch.zeros_like(target)
    for part, (weight, bias) in zip(x, parameters, strict=True):
        log_q += torch.addmm(bias, part, weight.T).log_softmax(1)
    return Inner(flat, first, second, start.steps + steps), log_q, before


@HEADS.register_module()
class TurtleHead(ClusterHead):
    """TURTLE's task encoders; the view ``"extract"``.

    Args:
        in_channels: D, over all spaces.
        num_clusters: K.
        spaces: widths D_s of the spaces that the features consist of, one after the other; empty: one space.
        batch_size: different images a step, over all ranks; all of them where there are fewer.
        steps: steps an epoch.
        inner_steps: M.
        inner_lr: learning rate of the classifiers.
        warm_start: go on with the classifiers of the step before.
        gamma: γ, what the entropy of the mean label weighs. As it grows, clusters become equal in size; where it is too
            small, clusters die. 10 in the paper; where sizes may differ, the least at which all clusters live.
        whiten: width after PCA-whitening of the unit vectors of each space; reduced to what N and D allow. Directions
            with less than a hundredth of the largest variance are not blown up to the size of the others. ``None``:
            features as they are, as in the paper. It is the remedy for features too small for ``inner_lr``, and takes
            less time.

    Raises:
        InputError: for a number out of its range, or spaces of another width in all than ``in_channels``.
    """

    def __init__(
        self,
        in_channels: int,
        num_clusters: int,
        spaces: Sequence[int] = (),
        batch_size: int = 10_000,
        steps: int = 100,
        inner_steps: int = 10,
        inner_lr: float = 1e-3,
        warm_start: bool = False,
        gamma: float = 10.0,
        whiten: int | None = None,
    ) -> None:
        super().__init__()
        spaces = tuple(spaces) or (in_channels,)
        if sum(spaces) != in_channels:
            raise InputError(f"TurtleHead's spaces {spaces} have {sum(spaces)} numbers, the features {in_channels}")
        if num_clusters < 2 or inner_steps < 1:
            raise InputError(
                f"TurtleHead needs 2 clusters and 1 inner step or more, not num_clusters={num_clusters} and "
                f"inner_steps={inner_steps}"
            )
        if inner_lr <= 0 or gamma < 0:
            raise InputError(f"TurtleHead needs inner_lr > 0 and gamma >= 0, not {inner_lr} and {gamma}")
        if whiten is not None and whiten < 1:
            raise InputError(f"TurtleHead's whiten is a width of at least 1, or None, not {whiten}")
        self.num_clusters = num_clusters
        self.spaces = spaces
        self.widths = spaces if whiten is None else tuple(min(whiten, width) for width in spaces)
        self.batch_size = batch_size
        self.steps = steps
        self.inner_steps = inner_steps
        self.inner_lr = inner_lr
        self.warm_start = warm_start
        self.gamma = gamma
        self.whiten = whiten
        self.equal_sizes = (
            f"favours clusters of equal size by gamma={gamma:g} (lower model.head.gamma to let them differ)"
        )
        self.encoders = nn.ModuleList(weight_norm(nn.Linear(width, num_clusters)) for width in self.widths)
        if whiten is not None:  # with fewer samples than dimensions the last columns stay zero
            for s, (D, d) in enumerate(zip(spaces, self.widths, strict=True)):
                self.register_buffer(f"mean{s}", torch.zeros(D))
                self.register_buffer(f"projection{s}", torch.zeros(D, d))
        if warm_start:
            size = num_clusters * (sum(self.widths) + len(spaces))
            self.inner_weight = nn.Buffer(torch.zeros(size))
            self.inner_first = nn.Buffer(torch.zeros(size))
            self.inner_second = nn.Buffer(torch.zeros(size))
            self.inner_taken = Counter()  # steps of Adam; 0: no classifiers yet
        self._fitted: Inner | None = None  # from `loss` to `update` of the same step, where the start is warm

    def plan(self, epoch: int) -> Plan:
        """Look at all features before the first epoch; every step draws different images."""
        stream = Stream("train", self.batch_size, views=("extract",), distinct=True)
        return Plan((stream,), steps=self.steps, refresh=Refresh() if epoch == 0 else None)

    def refresh(self, table: FeatureTable, generator: torch.Generator, comm: Comm) -> None:
        """Fit the whitening; there are no labels to make."""
        check_differ(comm.gather(table.features))
        if self.whiten is None:
            return
        for s, part in enumerate(table.features.split(self.spaces, 1)):
            found = fit_whitening(l2_normalize(part)[0], self.widths[s], comm, floor=_FLOOR)
            self.get_buffer(f"mean{s}").copy_(found.mean)
            self.get_buffer(f"projection{s}").zero_()[:, : found.projection.shape[1]] = found.projection

    def _inputs(self, z: Tensor) -> list[Tensor]:
        """Return the features (B, d_s) of each space as the linear layers see them, from z (B, D)."""
        parts = list(z.split(self.spaces, 1))
        if self.whiten is None:
            return parts
        found = []
        for s, part in enumerate(parts):  # (x / |x| - mean) P, without two copies of x
            mean, projection = self.get_buffer(f"mean{s}"), self.get_buffer(f"projection{s}")
            norm = torch.linalg.vector_norm(part, dim=1, keepdim=True).clamp(min=1e-12)
            found.append((part @ projection) / norm - mean @ projection)
        return found

    def _start(self, x: Tensor, generator: torch.Generator) -> Inner:
        """Return the classifiers that the inner steps begin with."""
        if self.warm_start and int(self.inner_taken):
            return Inner(self.inner_weight, self.inner_first, self.inner_second, int(self.inner_taken))
        return draw_inner(self.num_clusters, self.widths, generator, like=x)

    def loss(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> Losses:
        """L(θ), its two parts as ``loss`` and ``entropy_loss``.

        Logged besides, of the whole batch: ``inner_start`` and ``inner_end``, the inner loss before and after the M
        steps; ``confidence``, the mean of the largest label of an image; ``clusters``, how many are the largest of some
        image.
        """
        x = self._inputs(batches["train"].z["extract"][:, 0])
        total = len(x[0])
        if comm.world > 1:
            total = int(comm.sum(torch.tensor(total, device=x[0].device)))
        labels_of = [encoder(part).softmax(1) for encoder, part in zip(self.encoders, x, strict=True)]
        tau = torch.stack(labels_of).mean(0)
        given = [part.detach() for part in x]
        fitted, log_q, before = fit_inner(
            given, tau.detach(), self._start(given[0], generator), self.inner_steps, self.inner_lr, total, comm
        )
        self._fitted = fitted if self.warm_start else None
        sums = torch.stack([p.sum(0) for p in labels_of])  # (S, K) of this rank
        mean = comm.gather(sums[None], gradient=True).sum(0) / total
        entropy = -(mean * mean.clamp(min=torch.finfo(mean.dtype).tiny).log()).sum()
        ce = -(tau * log_q).sum()
        # The loop averages gradients over ranks, and a rank's part is not a mean over its rows.
        train = {"loss": comm.world * ce / total, "entropy_loss": -self.gamma * entropy}
        with torch.no_grad():
            surest, cluster = tau.max(1)
            used = ce.new_zeros(self.num_clusters).index_fill_(0, cluster, 1.0)
            told = comm.sum(torch.cat([torch.stack([before, ce, surest.sum()]), used]))
            start, end, confidence = (told[:3] / total).unbind()
        log = {"inner_start": start, "inner_end": end, "confidence": confidence, "clusters": (told[3:] > 0).sum()}
        return Losses(train, log=log)

    def update(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> tuple[()]:
        """Keep the classifiers of this step for the next one, where the start is warm."""
        if self._fitted is not None:
            self.inner_weight.copy_(self._fitted.weight)
            self.inner_first.copy_(self._fitted.first)
            self.inner_second.copy_(self._fitted.second)
            self.inner_taken.set(self._fitted.steps)
            self._fitted = None
        return ()

    def diagnosis(self, means: dict[str, float]) -> str | None:
        """Call it no learning where the classifiers learn nothing of the labels, or most clusters have died."""
        start, end, clusters = means["inner_start"], means["inner_end"], means["clusters"]
        if start - end < _LEARNT * start:
            return (
                f"{self.inner_steps} inner steps take the classifiers' loss from {start:.3f} to {end:.3f} only, so the "
                "labels follow the entropy alone: raise model.head.inner_lr, or set model.head.whiten=128 where the "
                "features are small"
            )
        if clusters < self.num_clusters / 2:
            return (
                f"of {self.num_clusters} clusters {clusters:.1f} are in use: raise model.head.gamma, now "
                f"{self.gamma:g}, which keeps clusters alive"
            )
        return None

    def predict(self, z: Tensor) -> Tensor:
        """Map features (B, D) to log τ (B, K)."""
        pairs = zip(self.encoders, self._inputs(z), strict=True)
        logs = torch.stack([encoder(part).log_softmax(1) for encoder, part in pairs])
        return logs.logsumexp(0) - math.log(len(logs))
