"""SeCu: labels move with every batch, and learnt centres that only their own images pull.

Qian. *Stable Cluster Discrimination for Deep Clustering.* ICCV 2023 (arXiv:2311.14310). Several clusterings are learnt
at once, of K, 2K, ... clusters; each has a label of every image. With z₁ and z₂ the projections of two views of an
image and c_k the centres, all of unit length, a step is, for each clustering of K' clusters,

1. the new label ŷ by the mean view, so that no cluster dies. "size": ŷ = argmax_k ½(z₁+z₂)·c_k + ρ_k, and after the
   batch ρ_k ← max(0, ρ_k + η (r/K' - share of the batch in k)), the dual variable of "at least r/K' of the images";
   "entropy": ŷ = argmax_k ½(z₁+z₂)·c_k - α ΔH_k, ΔH_k what Σ p log p over the shares p of all images in the clusters
   gains when the image moves to k;
2. centres: CE(z·c / t_w, ŷ), z without gradient, and a gradient only through the logit of ŷ, so that it is
   -(1 - p_ŷ) z / t_w on the image's own centre and nothing on the others: hard images weigh more, and a cluster
   without an image in the batch is not pushed away (stability);
3. representation: -Σ_k y_k log softmax(z·c⁰ / t_x)_k, c⁰ the centres when the epoch began, y = (1 - τ) the softmax of
   the other view, without gradient, + τ the label of the epoch before;
4. both losses, averaged over clusterings and views, are added; then the labels are written.

An image comes once an epoch, so the label that is stored when it comes is that of the epoch before; in the first epoch
there is none, and it is ŷ. α multiplies shares of one image, 1/N, so it is given as a multiple of N. The paper's answer
is the first clustering, of K clusters.

Where paper and public code differ: the code runs the views one after the other, here one forward normalises both; there
the centres' rate alone is constant, which ``paramwise_cfg={'head.centers': dict(lr=..., constant_lr=True)}`` says here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odc.errors import InputError
from odc.heads.base import ClusterHead
from odc.registry import HEADS
from odc.structures import Batch, Comm, FeatureTable, LabelDelta, Labels, Losses, Plan, PseudoLabels, Refresh, Stream

_VIEWS = ("query", "key")


def center_losses(logits: Tensor, label: Tensor) -> Tensor:
    """Return step 2's cross-entropy (...) of logits (..., K) and labels (...): gradient only through the label's."""
    own = logits.gather(-1, label[..., None])
    seen = logits.detach().scatter(-1, label[..., None], own)
    return seen.logsumexp(-1) - own[..., 0]


def representation_losses(logits: Tensor, label: Tensor, tau: float) -> Tensor:
    """Return step 3's loss (2, ...) of the logits (2, ..., K) of two views and the label (...) of the epoch before."""
    log_p = logits.log_softmax(-1)
    other = log_p.detach().exp().flip(0)
    of_label = log_p.gather(-1, label.expand(2, *label.shape)[..., None])[..., 0]
    return -(1.0 - tau) * (other * log_p).sum(-1) - tau * of_label


def entropy_gain(counts: Tensor, label: Tensor) -> Tensor:
    """Return ΔH (B, H, K) of moving an image from ``label`` (B, H), -1 for none yet, to each cluster.

    ``counts`` (H, K) are the images that have a label now; moving nowhere gains nothing.
    """
    new = label < 0
    total = (counts.sum(1) + new).clamp(min=1)[..., None]  # (B, H, 1) images with one that has none yet
    share, one = counts / total, 1.0 / total
    gain = torch.special.entr(share) - torch.special.entr(share + one)
    here = label.clamp(min=0)[..., None]
    had = share.gather(2, here)
    left = torch.special.entr(had) - torch.special.entr((had - one).clamp(min=0))
    moved = torch.where(new[..., None], gain, gain + left)
    return torch.where(new[..., None], moved, moved.scatter(2, here, 0.0))


@HEADS.register_module()
class SeCuHead(ClusterHead):
    """SeCu's projector, centres and losses.

    The views ``"query"`` and ``"key"`` of the data are the two; they may differ, as the paper's do.

    Args:
        in_channels: D of the backbone's pooled features.
        num_clusters: K.
        multiples: clusters of each clustering, as multiples of K; the first is the answer.
        batch_size: images a step, over all ranks.
        hidden_channels: width of the projector's hidden layer; by default ``in_channels``.
        out_channels: width of projections and centres.
        constraint: ``"size"`` or ``"entropy"``.
        size_ratio: r in [0, 1]; 0.9 in the paper for up to 100 classes, 0.4 for ImageNet.
        dual_lr: η; 0.1 in the paper, 20 for ImageNet.
        entropy_weight: α as a multiple of N; the paper's is 0.12 on CIFAR-10, 0.08 on ImageNet.
        tau: τ, the share of the label in step 3.
        temperature: t_x.
        center_temperature: t_w; by default ``temperature``.

    Raises:
        InputError: for an option out of its range.
    """

    needs_images = "it learns from two augmentations of each"

    def __init__(
        self,
        in_channels: int,
        num_clusters: int,
        multiples: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
        batch_size: int = 128,
        hidden_channels: int | None = None,
        out_channels: int = 128,
        constraint: str = "size",
        size_ratio: float = 0.9,
        dual_lr: float = 0.1,
        entropy_weight: float = 0.12,
        tau: float = 0.2,
        temperature: float = 0.05,
        center_temperature: float | None = None,
    ) -> None:
        super().__init__()
        if constraint not in ("size", "entropy"):
            raise InputError(f"SeCuHead's constraint must be 'size' or 'entropy', not '{constraint}'")
        if not 0.0 <= size_ratio <= 1.0 or not 0.0 <= tau <= 1.0 or dual_lr < 0 or entropy_weight < 0:
            raise InputError(
                f"SeCuHead's size_ratio and tau must be in [0, 1], not {size_ratio} and {tau}, dual_lr and "
                f"entropy_weight at least 0, not {dual_lr} and {entropy_weight}"
            )
        t_w = temperature if center_temperature is None else center_temperature
        if temperature <= 0 or t_w <= 0:
            raise InputError(f"SeCuHead's temperatures must be positive, not {temperature} and {t_w}")
        if num_clusters < 2 or not multiples or min(multiples) < 1:
            raise InputError(
                f"SeCuHead needs at least 2 clusters and multiples of at least 1, not num_clusters={num_clusters} and "
                f"multiples={list(multiples)}"
            )
        self.sizes = tuple(m * num_clusters for m in multiples)  # clusters of each clustering
        self.label_classes = self.sizes
        self.batch_size = batch_size
        self.constraint = constraint
        self.size_ratio = size_ratio
        self.dual_lr = dual_lr
        self.entropy_weight = entropy_weight
        self.tau = tau
        self.temperature, self.center_temperature = temperature, t_w
        if constraint == "size":
            self.equal_sizes = f"keeps each at {size_ratio:g} of the mean size (lower model.head.size_ratio)"
        else:
            self.equal_sizes = f"favours equal ones by entropy_weight={entropy_weight:g} (lower it, in model.head)"
        hidden = in_channels if hidden_channels is None else hidden_channels
        self.projector = nn.Sequential(
            nn.Linear(in_channels, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, out_channels),
        )
        # The centres of all clusterings, one below the other; they are used at unit length.
        self.centers = nn.Parameter(F.normalize(nn.init.normal_(torch.empty(sum(self.sizes), out_channels))))
        self.start_centers = nn.Buffer(self.centers.detach().clone())  # when the epoch began
        H, K = len(self.sizes), max(self.sizes)
        sizes = torch.tensor(self.sizes)
        # The centre of each cluster; clusterings that have fewer than the largest are filled up with absent ones.
        slot = (sizes.cumsum(0) - sizes)[:, None] + torch.arange(K)
        self.absent: Tensor = nn.Buffer(torch.arange(K) >= sizes[:, None], persistent=False)  # (H, K)
        self.slot: Tensor = nn.Buffer(slot.masked_fill(self.absent, 0), persistent=False)  # (H, K)
        self.share: Tensor = nn.Buffer((1.0 / sizes)[:, None], persistent=False)  # (H, 1) of the mean cluster
        self.dual: Tensor = nn.Buffer(torch.zeros(H, K))  # ρ
        self.counts: Tensor = nn.Buffer(torch.zeros(H, K, dtype=torch.int64))  # images with each label
        self.iteration: Tensor = nn.Buffer(torch.zeros((), dtype=torch.int64))
        # What `loss` found for `update` of the same step, (B, H): the labels of this rank's images. No state.
        self._found = torch.zeros(0, H, dtype=torch.int64)

    def plan(self, epoch: int) -> Plan:
        """One pass over all images, each seen through two views; before the first one they get rows without labels."""
        return Plan(
            (Stream("train", self.batch_size, views=_VIEWS, distinct=True),),
            refresh=Refresh() if epoch == 0 else None,
        )

    def refresh(self, table: FeatureTable, generator: torch.Generator, comm: Comm) -> PseudoLabels:
        """Make a row of unknown labels for every image, one label a clustering."""
        index = comm.gather(table.index)[:, None]
        self.start_centers.copy_(self.centers)
        return PseudoLabels(index, torch.full((len(index), len(self.sizes)), -1), self.sizes)

    def project(self, z: Tensor) -> Tensor:
        """Map features (B, D) to projections of unit length (B, D')."""
        return F.normalize(self.projector(z))

    def similarity(self, z: Tensor, centers: Tensor) -> Tensor:
        """Return z·c (..., H, K) of projections (..., D') and all centres; far below any for absent ones."""
        found: Tensor = (z @ F.normalize(centers)[self.slot.flatten()].T).unflatten(-1, self.slot.shape)
        return found.masked_fill(self.absent, -1e4)  # finite, since 0 · ∞ is not

    def assign(self, similarity: Tensor, label: Tensor) -> Tensor:
        """Return the new labels (B, H) of step 1, of similarities (B, H, K) and the labels that images have (B, H)."""
        if self.constraint == "size":
            return (similarity + self.dual).argmax(2)
        # α ΔH, α = entropy_weight · N; N are the images that have a label, all of them after the first epoch
        weight = self.entropy_weight * self.counts[:1].sum().clamp(min=1)
        return (similarity - weight * entropy_gain(self.counts, label)).argmax(2)

    def loss(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> Losses:
        """Steps 1 to 3; logged is the share of labels in the first clustering that are not those of before."""
        batch = batches["train"]
        z = self.project(torch.cat([batch.z[view][:, 0] for view in _VIEWS])).unflatten(0, (2, -1))  # (2, B, D')
        similarity = self.similarity(z.detach(), self.centers)  # (2, B, H, K)
        new = self.assign(similarity.detach().mean(0), batch.target)
        self._found = new
        known = torch.where(batch.target < 0, new, batch.target)
        center = center_losses(similarity / self.center_temperature, new.expand(2, *new.shape))
        fixed = self.similarity(z, self.start_centers)
        representation = representation_losses(fixed / self.temperature, known, self.tau)
        moved = (known[:, 0] != new[:, 0]).float().mean()
        return Losses({"loss": representation.mean(), "center_loss": center.mean()}, log={"moved": moved})

    def update(
        self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm
    ) -> Iterator[LabelDelta]:
        """Move the dual variables and counts, then write the labels; a new epoch starts from the centres of now."""
        row, new = comm.gather(batches["train"].row), comm.gather(self._found)
        found = self._count(new)
        self.counts += found - self._count(labels.target[row])
        share = found / len(row)
        self.dual.add_(self.dual_lr * (self.size_ratio * self.share - share)).clamp_(min=0).masked_fill_(self.absent, 0)
        self.iteration += 1
        steps = -(-len(labels.index) // self.batch_size)  # an epoch
        self.start_centers.copy_(torch.where(self.iteration % steps == 0, self.centers, self.start_centers))
        yield LabelDelta(row, new)

    def _count(self, label: Tensor) -> Tensor:
        """Return how many of the labels (B, H), -1 for none, are each cluster: (H, K) int64."""
        H, K = self.slot.shape
        place = torch.arange(H, device=label.device) * K + label.clamp(min=0)
        counts = torch.zeros(H * K, dtype=torch.int64, device=label.device)
        return counts.index_add_(0, place.flatten(), (label >= 0).long().flatten()).view(H, K)

    def predict(self, z: Tensor) -> Tensor:
        """Map features (B, D) to the scores (B, K) of the first clustering, by "size" with its dual variables."""
        K = self.sizes[0]
        return self.project(z) @ F.normalize(self.centers[:K]).T + self.dual[0, :K]
