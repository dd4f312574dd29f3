"""TEMI: heads on frozen features that give an image and its neighbours the same cluster, and use all clusters.

Adaloglou, Michels, Kalisch, Kollmann. *Exploring the Limits of Deep Image Clustering using Pretrained Models.* BMVC
2023 (arXiv:2303.17896): teacher ensemble-weighted pointwise mutual information. Each of H heads is a perceptron, which
ends on the unit sphere, and K directions there; a logit is the cosine times a gain of the direction. With x an image,
x' one of its k nearest neighbours (drawn anew each epoch), q_s = softmax(student / τ) and q_t = softmax(teacher / τ):

1. p(c) ← m p(c) + (1 - m) mean of q_t(c) over images and neighbours of the batch, from 1/K, for each head;
2. w(x, x') = mean over heads of Σ_c q_t(c|x) q_t(c|x'): how sure all teachers together are that these share a cluster;
3. l(a, b) = -log Σ_c [q_s(c|a) q_t(c|b)]^β / p(c) for each head, the pointwise mutual information for β = 1;
4. loss = mean over heads and pairs of w · ½ [l(x, x') + l(x', x)];
5. each teacher follows its student by an exponential moving average.

w and p have no gradient. For one-hot and agreeing q the loss is minus the entropy of p, so it is lowest, -log K, where
the clusters are equally large; that all clusters stay in use is due to β < 1. In the first epoch the directions do not
train. The answer is the teacher of the head whose loss was the lowest in the last epoch; ground truth takes no part in
that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odc.clustering.preprocess import unit_in_spaces
from odc.errors import InputError
from odc.heads.base import ClusterHead, Counter, checked_spaces, draw_pairs, find_neighbours
from odc.memory import SampleBuffer
from odc.registry import HEADS
from odc.structures import Batch, Comm, FeatureTable, Labels, Losses, Plan, PseudoLabels, Refresh, Stream

_VIEW = "extract"  # images as they are
_NOT_LEARNING = 2.0  # times what the weight of a pair is by chance, 1/K


def pair_weights(log_t: Tensor) -> Tensor:
    """Return w (B,) of equation 2 from the teachers' log-probabilities (H, B, 2, K)."""
    return log_t.sum(2).exp().sum(2).mean(0)


def pair_losses(log_s: Tensor, log_t: Tensor, log_p: Tensor, beta: float) -> Tensor:
    """Return ½ [l(x, x') + l(x', x)] (H, B) of equation 3.

    ``log_s`` and ``log_t`` (H, B, 2, K) are log-probabilities of student and teacher, ``log_p`` (H, K) of the clusters.
    Student of one image meets teacher of the other. In logarithms nothing underflows.
    """
    joint = beta * (log_s + log_t.flip(2)) - log_p[:, None, None]
    return -joint.logsumexp(3).mean(2)


class SphericalHeads(nn.Module):
    """H perceptrons D-hidden-embedding with GELU, whose unit outputs meet K directions each; computed together.

    Weights start from a normal distribution of standard deviation 0.02, biases from 0, gains from 1.
    """

    def __init__(self, num_heads: int, in_channels: int, hidden: int, embedding: int, num_clusters: int) -> None:
        super().__init__()
        self.weight1 = nn.Parameter(torch.empty(num_heads, hidden, in_channels))
        self.bias1 = nn.Parameter(torch.zeros(num_heads, hidden))
        self.weight2 = nn.Parameter(torch.empty(num_heads, embedding, hidden))
        self.bias2 = nn.Parameter(torch.zeros(num_heads, 1, embedding))
        self.direction = nn.Parameter(torch.empty(num_heads, num_clusters, embedding))
        self.gain = nn.Parameter(torch.ones(num_heads, num_clusters, 1))
        for weight in (self.weight1, self.weight2, self.direction):
            nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, x: Tensor, last: float = 1.0) -> Tensor:
        """Map (B, D) to logits (H, B, K) float32, in [-gain, gain]; ``last`` scales the gradient of the directions."""
        # One product for the first layers of all heads: they see the same rows.
        hidden = F.linear(x, self.weight1.flatten(0, 1), self.bias1.flatten())
        hidden = F.gelu(hidden).unflatten(1, self.bias1.shape).transpose(0, 1)
        embedding = torch.baddbmm(self.bias2, hidden, self.weight2.mT)
        with torch.autocast(x.device.type, enabled=False):  # a rounded cosine, over τ, is another probability
            directions = self.gain * F.normalize(self.direction, dim=2)
            if last != 1.0:
                directions = directions.detach().lerp(directions, last)
            embedding = embedding.float()
            # The cosine, by a division of K numbers a row, not of all its width.
            length: Tensor = torch.linalg.vector_norm(embedding, dim=2, keepdim=True).clamp(min=1e-12)
            return torch.bmm(embedding, directions.mT).div(length)

    def one(self, head: Tensor, x: Tensor) -> Tensor:
        """Map (B, D) to the logits (B, K) of one head, whose number is () int64."""
        hidden = F.gelu(F.linear(x, self.weight1[head], self.bias1[head]))
        embedding = F.normalize(F.linear(hidden, self.weight2[head], self.bias2[head, 0]), dim=1)
        return embedding @ (self.gain[head] * F.normalize(self.direction[head], dim=1)).mT


@HEADS.register_module()
class TEMIHead(ClusterHead):
    """TEMI's heads, for frozen features of images without augmentation: the view ``"extract"``.

    Features are extracted before every epoch, which costs nothing where backbone and neck are frozen; neighbours are
    searched where features have changed, by the cosine (of several spaces: its mean over them). Of the N rows of an
    epoch each is an image and one of its neighbours. Memory: N·k·4 bytes for the neighbours, and for a batch
    12·H·batch_size·(hidden_channels + K) bytes.

    Args:
        in_channels: D.
        num_clusters: K.
        num_heads: H; 50 in the paper.
        neighbours: k, which the paper has at 50, 25 for ImageNet. Where classes may have fewer images than that, or
            differ much in size, less: a neighbour of another class pulls two clusters together.
        batch_size: pairs a step, over all ranks.
        beta: β, in (0, 1].
        temperature: τ of students and teachers.
        teacher_momentum: share that a teacher keeps of itself in a step.
        marginal_momentum: m of equation 1.
        hidden_channels: width of each head's hidden layer.
        embedding_channels: of the unit sphere.
        normalize: what the heads see: ``"none"``, features as they are; ``"unit"``, of length 1 in each space;
            ``"standard"``, each dimension less its mean and over its standard deviation, as the paper's public code
            does for ImageNet.
        spaces: widths of the feature spaces that z is made of, D in all; filled in from the backbone.

    Raises:
        InputError: for an option out of its range; at a refresh with no more than k images.
    """

    def __init__(
        self,
        in_channels: int,
        num_clusters: int,
        num_heads: int = 16,
        neighbours: int = 50,
        batch_size: int = 512,
        beta: float = 0.6,
        temperature: float = 0.1,
        teacher_momentum: float = 0.996,
        marginal_momentum: float = 0.9,
        hidden_channels: int = 512,
        embedding_channels: int = 256,
        normalize: str = "none",
        spaces: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if normalize not in ("none", "unit", "standard"):
            raise InputError(f"TEMIHead's normalize must be 'none', 'unit' or 'standard', not '{normalize}'")
        if num_heads < 1 or num_clusters < 2 or neighbours < 1:
            raise InputError(
                f"TEMIHead needs 1 head, 2 clusters and 1 neighbour or more, not {num_heads}, {num_clusters} and "
                f"{neighbours}"
            )
        if not 0.0 < beta <= 1.0 or temperature <= 0.0:
            raise InputError(
                f"TEMIHead's beta must be in (0, 1] and its temperature positive, not {beta} and {temperature}"
            )
        for name, momentum in (("teacher_momentum", teacher_momentum), ("marginal_momentum", marginal_momentum)):
            if not 0.0 <= momentum < 1.0:
                raise InputError(f"TEMIHead's {name} must be in [0, 1), not {momentum}")
        self.num_clusters = num_clusters
        self.label_classes = (1,)
        self.k = neighbours
        self.batch_size = batch_size
        self.beta = beta
        self.temperature = temperature
        self.teacher_momentum = teacher_momentum
        self.marginal_momentum = marginal_momentum
        self.normalize = normalize
        self.spaces = checked_spaces("TEMIHead", spaces, in_channels)
        self.equal_sizes = f"favours equal ones, the more the smaller beta={beta:g} is (model.head.beta, up to 1)"
        shape = (num_heads, in_channels, hidden_channels, embedding_channels, num_clusters)
        self.student = SphericalHeads(*shape)
        self.teacher = SphericalHeads(*shape).requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict())
        self.marginal: Tensor = nn.Buffer(torch.full((num_heads, num_clusters), 1.0 / num_clusters))  # p of equation 1
        self.epoch_loss: Tensor = nn.Buffer(torch.zeros(num_heads))  # of each head, summed over the steps of this epoch
        self.epochs = Counter()  # begun
        self.neighbours = SampleBuffer(neighbours, dtype=torch.int32)  # sample ids, nearest first
        self.found_for: Tensor = nn.Buffer(torch.zeros(in_channels, dtype=torch.float64))  # sum of their features
        self.mean: Tensor = nn.Buffer(torch.zeros(in_channels))  # where normalize is "standard"
        self.scale: Tensor = nn.Buffer(torch.ones(in_channels))
        # What `loss` found for `update` of the same step, (H, K + 1): mean q_t, and loss, of each head. No state.
        self._found = torch.zeros(num_heads, num_clusters + 1)

    def plan(self, epoch: int) -> Plan:
        """One pass over all images, each with a neighbour that is drawn anew before every epoch."""
        return Plan((Stream("pairs", self.batch_size, views=(_VIEW,)),), refresh=Refresh())

    def refresh(self, table: FeatureTable, generator: torch.Generator, comm: Comm) -> PseudoLabels:
        """Draw a neighbour for every image; before that find them, where they are not those of these features."""
        index = comm.gather(table.index)
        total = comm.sum(table.features.sum(0, dtype=torch.float64))
        (same,) = comm.first(lambda: (torch.tensor(torch.equal(total, self.found_for), device=total.device),))
        if not bool(same) or len(self.neighbours.rows) != table.total:
            z = comm.gather(table.features)
            nearest, _ = find_neighbours(index, z, self.spaces, self.k, comm)
            self.mean, self.scale = comm.first(lambda: _standard(z))
            self.neighbours.sized(table.total).copy_(nearest)
            self.found_for.copy_(total)
        self.epoch_loss.zero_()
        self.epochs.set(int(self.epochs) + 1)
        return draw_pairs(index, self.neighbours.rows, generator)

    def _input(self, z: Tensor) -> Tensor:
        """Map features (B, D) to what the heads see of them."""
        if self.normalize == "none":
            return z
        return unit_in_spaces(z, self.spaces) if self.normalize == "unit" else (z - self.mean) * self.scale

    def loss(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> Losses:
        """Equations 1 to 4, with p over the batches of all ranks; logged besides: the mean of w."""
        z = batches["pairs"].z[_VIEW]  # (B, 2, D)
        x = self._input(z.flatten(0, 1))
        with torch.no_grad():
            log_t = (self.teacher(x) / self.temperature).log_softmax(2)
            mean = comm.sum(log_t.exp().mean(1)) / comm.world
            log_p = self._moved(mean).clamp(min=torch.finfo().tiny).log()
            log_t = log_t.unflatten(1, z.shape[:2])
            weight = pair_weights(log_t)
        log_s = (self.student(x, last=float(int(self.epochs) > 1)) / self.temperature).log_softmax(2)
        losses = weight * pair_losses(log_s.unflatten(1, z.shape[:2]), log_t, log_p, self.beta)
        self._found = torch.cat([mean, losses.detach().mean(1, keepdim=True)], dim=1)
        return Losses({"loss": losses.mean()}, log={"pair_weight": weight.mean()})

    def _moved(self, mean: Tensor) -> Tensor:
        """Return the marginals (H, K) after a step whose mean q_t is ``mean``."""
        return self.marginal_momentum * self.marginal + (1.0 - self.marginal_momentum) * mean

    def update(self, batches: dict[str, Batch], labels: Labels, generator: torch.Generator, comm: Comm) -> tuple[()]:
        """Move the teachers, the marginals, and the sums of the losses."""
        for teacher, student in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            teacher.lerp_(student, 1.0 - self.teacher_momentum)
        self.marginal.copy_(self._moved(self._found[:, :-1]))
        self.epoch_loss += comm.sum(self._found[:, -1]) / comm.world
        return ()

    def diagnosis(self, means: dict[str, float]) -> str | None:
        """Call it no learning where neighbours share a cluster little more often than by chance."""
        weight, chance = means["pair_weight"], 1.0 / self.num_clusters
        if weight >= _NOT_LEARNING * chance:
            return None
        return (
            f"the heads do not learn: neighbours share a cluster with probability {weight:.3f}, and {chance:.3f} is "
            "chance; more epochs or a higher learning rate may be what lacks"
        )

    def predict(self, z: Tensor) -> Tensor:
        """Map features (B, D) to logits (B, K), over τ, of the teacher of the head with the lowest loss."""
        return self.teacher.one(self.epoch_loss.argmin(), self._input(z)) / self.temperature


def _standard(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean (D,) and the inverse standard deviation (D,), 1 where there is none, of features (N, D)."""
    var, mean = torch.var_mean(z.double(), dim=0, correction=0)
    # What rounding makes of equal values is no deviation.
    scale = torch.where(var > 1e-12 * (mean.square() + var), var, 1.0).rsqrt()
    return mean.float(), scale.float()
