"""DCBoost: a finish for a network that clusters already; what neighbours agree on tightens clusters and parts them.

Li, Jia, Liu, Hou. *You Can Trust Your Clustering Model: A Parameter-free Self-Boosting Plug-in for Deep Clustering.*
NeurIPS 2025 (arXiv:2511.21193). Steps 1 to 3, two networks, alignment (L_ins) and labels, are those of
:mod:`odc.heads.byol`: features are trained already, but projector and predictor may be new, so the first 10 epochs are
of alignment alone. With x and y the online and the target projections, of unit length, of the B images of a batch, over
all ranks,

4. for k = 1, 2, …, 50: B_k = how many images have the label of each of the k nearest others in the batch. X_h, the
   images that are trusted, are those for the k with the largest k · B_k / B: more neighbours make surer images, but
   fewer;
5. with S_c = Σ x and S'_c = Σ y over the n_c images of X_h with label c, and μ, μ' these at unit length,
   L_pos = mean over c of 1/‖S'_c‖² Σ_{i,j in c} ‖x_i - y_j‖² = mean over c of 2 (n_c² - S_c·S'_c) / ‖S'_c‖²;
   L_neg = - mean over c ≠ d of ‖μ_c - μ'_d‖²;
6. loss = L_ins + L_pos + L_neg.

From the paper are steps 1 to 4, that L_pos is of squared distances between online and target features of pairs with
equal label, each class weighted by the inverse square of the length of its features' sum, that L_neg is of squared
distances between online and target prototypes of X_h, and that the three are added without weights. This project's
reading, as the paper's own formulas were not at hand, are: that neighbours are sought by the cosine among the target's
projections, which move less; that the sum in L_pos' weight is the target's, so a constant, and its square at least n_c,
which it is where features of a class are no closer than chance; and that L_pos and L_neg are means over the classes in
X_h, before the predictor. The paper's queue for 200 clusters is not here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from odc.errors import InputError
from odc.heads.byol import BYOLHead, members, prototypes
from odc.registry import HEADS
from odc.structures import Losses


def trusted(y: Tensor, label: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return X_h (B,) bool and its k () int64, step 4, for unit features y (B, D), labels (B,) int64 and k <= ``most``.

    Of several best k it is the smallest.
    """
    similarity = (y @ y.T).fill_diagonal_(-torch.inf)
    nearest = similarity.topk(min(most, len(y) - 1), dim=1).indices
    agree = (label[nearest] == label[:, None]).long().cumprod(1)  # (B, k): all of the first k do
    k = torch.arange(1, agree.shape[1] + 1, device=y.device)
    best = (k * agree.sum(0)).argmax()
    return agree.index_select(1, best[None])[:, 0].bool(), best + 1


def compactness(online: Tensor, target: Tensor, member: Tensor) -> Tensor:
    """Return L_pos (), step 5, of unit features (B, D) and who is in which class, (K, B) bool; 0 for nobody."""
    n = member.sum(1).to(online.dtype)
    sums, others = member.to(online.dtype) @ online, member.to(online.dtype) @ target
    weight = 1.0 / torch.maximum(others.square().sum(1), n).clamp(min=1)
    return (2.0 * weight * (n.square() - (sums * others).sum(1))).sum() / (n > 0).sum().clamp(min=1)


def separation(online: Tensor, target: Tensor, member: Tensor) -> Tensor:
    """Return L_neg (), step 5, of unit features (B, D) and who is in which class, (K, B) bool; 0 for fewer than two."""
    mu, other = prototypes(online, member), prototypes(target, member)
    present = member.any(1)
    pair = present & present[:, None] & ~torch.eye(len(member), dtype=torch.bool, device=member.device)
    return -(((2.0 - 2.0 * mu @ other.T) * pair).sum() / pair.sum().clamp(min=1))


@HEADS.register_module()
class DCBoostHead(BYOLHead):
    """DCBoost's head: :class:`odc.heads.byol.BYOLHead` with the losses of trusted images.

    It has the state of a :class:`odc.heads.ProPosHead` of the same widths, and starts from a checkpoint of that, or
    from the backbone of anything (``model.pretrained``). Logged besides: the share of trusted images, and their k.

    Args:
        in_channels: D of the backbone's pooled features.
        num_clusters: K.
        batch_size: images a step, over all ranks; classes need some in it to be neighbours.
        hidden_channels: width of the hidden layers of projector and predictor.
        out_channels: width of the projections.
        noise: σ.
        warmup: epochs of alignment alone, without labels.
        refresh_interval: epochs from one clustering to the next.
        kmeans_iter: k-means iterations a clustering.
        kmeans_redo: starts of it, of which the best is kept.
        neighbours: the largest k.

    Raises:
        InputError: for numbers out of range.
    """

    def __init__(
        self,
        in_channels: int,
        num_clusters: int,
        batch_size: int = 512,
        hidden_channels: int = 4096,
        out_channels: int = 256,
        noise: float = 0.001,
        warmup: int = 10,
        refresh_interval: int = 1,
        kmeans_iter: int = 100,
        kmeans_redo: int = 1,
        neighbours: int = 50,
    ) -> None:
        super().__init__(
            in_channels,
            num_clusters,
            batch_size,
            hidden_channels,
            out_channels,
            noise,
            warmup,
            refresh_interval,
            kmeans_iter,
            kmeans_redo,
        )
        if neighbours < 1:
            raise InputError(f"DCBoostHead's neighbours must be at least 1, not {neighbours}")
        self.neighbours = neighbours

    def cluster_losses(self, online: Tensor, target: Tensor, label: Tensor) -> Losses:
        """L_pos and L_neg."""
        trust, k = trusted(target, label, self.neighbours)
        member = members(label, self.num_clusters) & trust
        return Losses(
            {
                "compact_loss": compactness(online, target, member),
                "apart_loss": separation(online, target, member),
            },
            {"trusted": trust.float().mean(), "k": k.float()},
        )
