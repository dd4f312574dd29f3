"""ODC's sample memory and centroid memory (Zhan et al., Online Deep Clustering, CVPR 2020, arXiv:2006.10645, §3.2).

After a step of the optimiser comes :meth:`SampleMemory.update`; after every k-th of them
:meth:`SampleMemory.update_centroids`, and :meth:`SampleMemory.split_small` in its two parts::

    F_m(x) <- m · f(x) / ‖f(x)‖ + (1 - m) · F_m(x)
    label(x) <- argmin_c ‖F_m(x) - c‖ = argmax_c F_m(x)·c - ‖c‖²/2
    c <- mean of F_m over the samples of the cluster

The means come from running sums that follow every change of a sample, so that a centroid costs O(D), not a pass over
its members. Everything uses the value *as stored* in the half-precision bank, and arithmetic is in float32: the sums
then are those of the bank up to rounding in float32, which :meth:`SampleMemory.resync` takes back once an epoch.
"""

from __future__ import annotations

import heapq
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odc.errors import DamagedError, InputError

EPS = 1e-12  # features of a smaller norm are zero
CHUNK = 65536  # rows of the bank in float32 at a time
SCORES = 2**24  # scores (rows x clusters) at a time: 64 MiB


class SampleMemory(nn.Module):
    """A feature and a cluster for each of N samples, and the K centroids of these features.

    N is that of the clustering it is filled from; until then it is empty. ``load_state_dict`` takes any N.

    The memory is replicated: where all ranks :meth:`commit` the same rows in the same order, all hold the same bits
    (sums are accumulated in a fixed order, on a GPU too). No method keeps gradients or draws from a global
    random generator.

    Args:
        dim: D.
        num_clusters: K.
        momentum: m, the share of the new feature.
        renormalize: L2-normalise F_m after each blend. Off is the paper's equation; on is its public code.
        assign: ``"l2"``, the nearest centroid, or ``"dot"``, the largest inner product, which is what the public code
            does and another label for up to 7 % of the samples, since centroids are not of unit length.
        min_cluster: t; a cluster of fewer samples is small. A float is a share of the mean size N/K.
        dtype: of the bank.

    Attributes:
        bank: (N, D) ``dtype``, F_m.
        labels: (N,) int32.
        sum: (K, D) float32 sums of the clusters' rows of the bank; always current.
        count: (K,) int64 samples in each cluster; always current and exact.
        centroids: (K, D) float32, as of the last :meth:`update_centroids`; an empty cluster keeps its last one.
        bias: (K,) float32, what assignment adds to F·c: -‖c‖²/2 (``"dot"``: 0), and -inf for a cluster that never had
            a sample.
        dirty: (K,) bool, clusters whose centroid is out of date.
        skipped: () int64, rows skipped so far because their feature was zero or not finite.

    Raises:
        InputError: an argument is out of its range.
    """

    resizes_on_load = True

    bank: Tensor
    labels: Tensor
    sum: Tensor
    count: Tensor
    centroids: Tensor
    bias: Tensor
    dirty: Tensor
    skipped: Tensor

    def __init__(
        self,
        dim: int,
        num_clusters: int,
        *,
        momentum: float = 0.5,
        renormalize: bool = False,
        assign: str = "l2",
        min_cluster: int | float = 20,
        dtype: torch.dtype = torch.float16,
    ) -> None:
        super().__init__()
        if assign not in ("l2", "dot"):
            raise InputError(f"unknown assign={assign!r}: 'l2' or 'dot'")
        if not 0 < momentum <= 1:
            raise InputError(f"momentum is the share of the new feature, in (0, 1]; got {momentum}")
        if isinstance(min_cluster, float) and not 0 < min_cluster < 1:
            raise InputError(f"min_cluster is a number of samples or a share of the mean size, not {min_cluster}")
        if min_cluster <= 0 or num_clusters < 1:
            raise InputError(f"min_cluster and num_clusters must be at least 1; got {min_cluster} and {num_clusters}")
        self.momentum = momentum
        self.renormalize = renormalize
        self.metric = assign
        self.min_cluster = min_cluster
        D, K = dim, num_clusters
        self.register_buffer("bank", torch.zeros(0, D, dtype=dtype))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("sum", torch.zeros(K, D))
        self.register_buffer("count", torch.zeros(K, dtype=torch.int64))
        self.register_buffer("centroids", torch.zeros(K, D))
        self.register_buffer("bias", torch.full((K,), -torch.inf))
        self.register_buffer("dirty", torch.zeros(K, dtype=torch.bool))
        self.register_buffer("skipped", torch.zeros((), dtype=torch.int64))

    def least(self, num_samples: int) -> int:
        """Return t for so many samples."""
        if isinstance(self.min_cluster, float):
            return max(1, int(self.min_cluster * num_samples / self.count.shape[0]))
        return self.min_cluster

    def check(self, num_samples: int) -> None:
        """Raise :class:`InputError` if K clusters cannot all have t of ``num_samples`` samples: K·t > N."""
        K, t = self.count.shape[0], self.least(num_samples)
        if K * t > num_samples:
            ways = [f"the number of clusters to {num_samples // t}"] if num_samples >= t else []
            ways += [f"min_cluster to {num_samples // K}"] if num_samples >= K else []
            both = f"the number of clusters to {num_samples} and min_cluster to 1"
            raise InputError(
                f"{K} clusters of at least {t} samples need {K * t} samples, but there are {num_samples}: "
                f"lower {' or '.join(ways) or both}"
            )

    @torch.no_grad()
    def fill(self, features: Tensor, labels: Tensor) -> None:
        """Start from a clustering: rows are L2-normalised, then sums, counts and centroids are computed.

        Args:
            features: (N, D) floating, of samples 0 to N - 1. Zero rows stay zero and are counted in ``skipped``.
            labels: (N,) integer, 0 to K - 1.

        Raises:
            InputError: K·t > N, a shape does not fit, a row is not finite, or a label is outside 0..K - 1.
        """
        D, K = self.centroids.shape[1], self.count.shape[0]
        if features.ndim != 2 or features.shape[1] != D or labels.shape != features.shape[:1]:
            raise InputError(
                f"expected features (N, {D}) and labels (N,); got {tuple(features.shape)} and {tuple(labels.shape)}"
            )
        N = features.shape[0]
        self.check(N)
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= K:
            raise InputError(f"labels run from {low} to {high}, but the clusters are 0 to {K - 1}")
        self.bank = self.bank.new_empty(N, D)
        for start in range(0, N, CHUNK):
            rows = features[start : start + CHUNK].to(self.bank.device, torch.float32)
            norms = torch.linalg.vector_norm(rows, dim=1)
            finite = norms.isfinite()
            if not bool(finite.all()):
                raise InputError(
                    f"{int((~finite).sum())} of the features from row {start} on are not finite, or too long "
                    "for float32: lower the learning rate"
                )
            self.skipped += (norms <= EPS).sum()
            rows[norms <= EPS] = 0
            self.bank[start : start + CHUNK] = F.normalize(rows, eps=EPS).to(self.bank.dtype)
        self.labels = labels.to(self.labels, copy=True)
        self.resync()
        self.centroids.zero_()
        self.bias.fill_(-torch.inf)
        self.dirty.fill_(True)
        self.update_centroids()

    @torch.no_grad()
    def update(self, index: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Move the memory by a batch: :meth:`momentum_step`, :meth:`assign` and :meth:`commit` in a row.

        Args:
            index: (B,) int64 sample ids.
            features: (B, D) floating, not normalised.

        Returns:
            ids (R,) int64, ascending and unique, R <= B, and their new labels (R,) int64.
        """
        ids, stored = self.momentum_step(index, features)
        labels = self.assign(stored)
        self.commit(ids, stored, labels)
        return ids, labels

    @torch.no_grad()
    def momentum_step(self, index: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a batch makes of its samples' features; the bank stays as it is.

        Rows whose feature is zero or not finite are left out and counted in ``skipped``; of an id's other rows the
        last counts.

        Returns:
            ids (R,) int64, ascending and unique, and their features (R, D) in the dtype of the bank.

        Raises:
            InputError: a shape does not fit, an id is outside 0..N - 1, or the memory was never filled.
        """
        N, D = self.bank.shape
        if index.ndim != 1 or features.shape != (index.shape[0], D):
            raise InputError(
                f"expected ids (B,) and features (B, {D}); got {tuple(index.shape)}, {tuple(features.shape)}"
            )
        index, features = index.to(self.bank.device), features.to(self.bank.device, torch.float32)
        norms = torch.linalg.vector_norm(features, dim=1)
        valid = (norms > EPS) & norms.isfinite()
        self.skipped += index.shape[0] - valid.sum()

        rows = valid.nonzero().squeeze(1)
        ids, order = index[rows].sort(stable=True)  # rows of one id stay in their order
        last = torch.ones_like(ids, dtype=torch.bool)
        last[:-1] = ids[1:] != ids[:-1]
        ids, rows = ids[last], rows[order[last]]
        if ids.numel():
            low, high = int(ids[0]), int(ids[-1])
            if N == 0:
                raise InputError("the memory is empty: fill it from a clustering first")
            if low < 0 or high >= N:
                raise InputError(f"sample ids run from {low} to {high}, but the memory holds 0 to {N - 1}")

        unit = features[rows] / norms[rows, None]
        blended = self.bank[ids].float().lerp_(unit, self.momentum)
        if self.renormalize:
            blended = F.normalize(blended, eps=EPS)
        return ids, blended.to(self.bank.dtype)

    @torch.no_grad()
    def assign(self, stored: Tensor) -> Tensor:
        """Return the nearest centroid (R,) int64 of features (R, D); of equally near ones any."""
        return self._nearest(stored, self.bias)

    @torch.no_grad()
    def commit(self, ids: Tensor, stored: Tensor, labels: Tensor) -> None:
        """Write features and labels of samples to the memory; sums and counts follow, centroids do not yet.

        Args:
            ids: (R,) int64, unique.
            stored: (R, D) in the dtype of the bank.
            labels: (R,) int64.
        """
        clusters = torch.cat((self.labels[ids].long(), labels))
        sign = torch.ones_like(clusters)
        sign[: ids.shape[0]] = -1
        _accumulate(self.sum, clusters, torch.cat((self.bank[ids].float().neg_(), stored.float())))
        self.count.index_add_(0, clusters, sign)
        self.dirty[clusters] = True
        self.bank[ids] = stored
        self.labels[ids] = labels.to(torch.int32)

    @torch.no_grad()
    def update_centroids(self) -> None:
        """Make the centroid of every cluster that changed the mean of its samples: O(changed · D)."""
        rows = (self.dirty & (self.count > 0)).nonzero().squeeze(1)
        centroids = self.sum[rows] / self.count[rows, None]
        self.centroids[rows] = centroids
        self.bias[rows] = centroids.square().sum(dim=1).mul_(-0.5) if self.metric == "l2" else 0.0
        self.dirty.zero_()

    @torch.no_grad()
    def split_small(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Leave no cluster with fewer than t samples: :meth:`plan_split`, then :meth:`relabel`.

        Returns:
            ids (R,) int64 of the samples that moved, ascending, and their new labels (R,) int64.
        """
        ids, labels = self.plan_split(generator)
        self.relabel(ids, labels)
        return ids, labels

    @torch.no_grad()
    def plan_split(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Decide which samples must move for every cluster to have t samples; labels stay as they are.

        The samples of each small cluster go to the nearest centroid of a normal one. Then, for each emptied cluster
        in turn, the largest cluster is split in two by 2-means and one half, chosen at random, becomes the emptied
        cluster; both halves have at least t samples. When N >= (K - 1)(2t - 1) + 1, some cluster with the 2t samples
        for that always exists; otherwise the last clusters are filled sample by sample: the largest cluster at that
        moment gives the one farthest from its mean, and so always keeps t.

        Args:
            generator: one draw from it a split.

        Returns:
            ids (R,) int64, ascending, and their new labels (R,) int64.
        """
        t = self.least(self.labels.shape[0])
        small = self.count < t
        if not bool(small.any()):
            none = self.labels.new_empty(0, dtype=torch.int64)
            return none, none
        self.update_centroids()
        labels, size = self.labels.long(), self.count.clone()
        ids = small[labels].nonzero().squeeze(1)
        labels[ids] = self._nearest(self.bank[ids], self.bias.masked_fill(small, -torch.inf))
        size[small] = 0
        size.index_add_(0, labels[ids], torch.ones_like(ids))

        emptied = small.nonzero().squeeze(1).tolist()
        N, K = labels.shape[0], size.shape[0]
        # As many splits touch no more than as many of the largest clusters; without enough to split, any can give.
        normal = K - len(emptied)
        donors = min(len(emptied), normal) if (K - 1) * (2 * t - 1) < N else normal
        members = self._members(labels, size, size.argsort(descending=True, stable=True)[:donors])
        heap = [(-len(rows), cluster) for cluster, rows in members.items()]  # the largest, of these the first
        heapq.heapify(heap)
        while emptied and -heap[0][0] >= 2 * t:
            cluster, (_, donor) = emptied.pop(0), heap[0]
            rows = members[donor]
            half = _two_means(self.bank[rows].float(), t)
            if int(torch.randint(2, (), generator=generator, device=generator.device)):
                half = ~half
            members[cluster], members[donor] = rows[half], rows[~half]
            heapq.heapreplace(heap, (-len(members[donor]), donor))
            heapq.heappush(heap, (-len(members[cluster]), cluster))
        if emptied:
            outward = {cluster: self._outward(rows).tolist() for cluster, rows in members.items()}
            for cluster in emptied:
                taken = []
                for _ in range(t):
                    n, donor = heap[0]
                    taken.append(outward[donor].pop())
                    heapq.heapreplace(heap, (n + 1, donor))
                members[cluster] = torch.tensor(taken, device=labels.device)
        # Givers come before takers in `members`, so a sample that was given away ends with its taker.
        for cluster, rows in members.items():
            labels[rows] = cluster
        moved = (labels != self.labels).nonzero().squeeze(1)
        return moved, labels[moved]

    @torch.no_grad()
    def relabel(self, ids: Tensor, labels: Tensor) -> None:
        """Move samples ``ids`` (R,) int64, unique, to the clusters ``labels`` (R,) int64, and update the centroids."""
        if ids.numel() == 0:
            return
        old, ones = self.labels[ids].long(), torch.ones_like(ids)
        rows = self.bank[ids].float()
        _accumulate(self.sum, old, -rows)
        self.count.index_add_(0, old, -ones)
        self.sum[self.count == 0] = 0  # exactly: what rounding left there is not the new cluster's
        _accumulate(self.sum, labels, rows)
        self.count.index_add_(0, labels, ones)
        self.dirty[old] = True
        self.dirty[labels] = True
        self.labels[ids] = labels.to(torch.int32)
        self.update_centroids()

    @torch.no_grad()
    def resync(self) -> None:
        """Recompute sums and counts from the bank and the labels: a pass over the bank, for once an epoch."""
        self.sum.zero_()
        self.count.copy_(torch.bincount(self.labels, minlength=self.count.shape[0]))
        for start in range(0, self.bank.shape[0], CHUNK):
            rows = slice(start, start + CHUNK)
            _accumulate(self.sum, self.labels[rows].long(), self.bank[rows].float())

    def _check_state(self, state: dict[str, Any]) -> None:
        """Check that tensors to be loaded are those of one memory.

        Raises:
            DamagedError: they do not fit each other.
        """
        for name, tensor in state.items():
            skip = int(name in ("bank", "labels"))  # N may differ
            if not isinstance(tensor, Tensor) or tensor.shape[skip:] != self.get_buffer(name).shape[skip:]:
                return  # another D or K, or some lack: reported as for any other module
        bank, labels, count, K = state["bank"], state["labels"], state["count"], self.count.shape[0]
        if len(bank) != len(labels) or any(
            tensor.dtype.is_floating_point != self.get_buffer(name).is_floating_point()
            for name, tensor in state.items()
        ):
            raise DamagedError(f"the memory is damaged: {len(bank)} features, {len(labels)} labels, or of other types")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < K:
            raise DamagedError(
                f"the memory is damaged: labels {int(labels.min())} to {int(labels.max())} of {K} clusters"
            )
        if not torch.equal(torch.bincount(labels, minlength=K), count.to(labels.device)):
            raise DamagedError("the memory is damaged: the counts of its clusters are not those of its labels")
        if not all(bool(state[name].isfinite().all()) for name in ("bank", "sum", "centroids")):
            raise DamagedError("the memory is damaged: features that are not finite")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self._check_state({name: state_dict.get(prefix + name) for name in self._buffers})
        for name in ("bank", "labels"):
            buffer, loaded = getattr(self, name), state_dict.get(prefix + name)
            # Only N may differ: another D or K is reported as for any other module.
            if isinstance(loaded, Tensor) and loaded.shape[1:] == buffer.shape[1:]:
                setattr(self, name, buffer.new_empty(loaded.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _nearest(self, stored: Tensor, bias: Tensor) -> Tensor:
        """Return argmax over clusters of F·c + bias, (R,) int64, never holding more than ``SCORES`` scores."""
        step = max(1, SCORES // self.count.shape[0])
        # One fused product and one pass of argmax along contiguous rows: 1.2 times the product alone.
        parts = [torch.addmm(bias, rows.float(), self.centroids.T).argmax(dim=1) for rows in torch.split(stored, step)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @staticmethod
    def _members(labels: Tensor, size: Tensor, clusters: Tensor) -> dict[int, Tensor]:
        """Return the samples, ascending, of each of these clusters; one pass over the labels."""
        wanted = torch.zeros_like(size, dtype=torch.bool)
        wanted[clusters] = True
        rows = wanted[labels].nonzero().squeeze(1)
        rows = rows[labels[rows].argsort(stable=True)]
        clusters = clusters.sort().values
        return dict(zip(clusters.tolist(), torch.split(rows, size[clusters].tolist()), strict=True))

    def _outward(self, rows: Tensor) -> Tensor:
        """Return these samples in ascending order of their distance to their mean."""
        features = self.bank[rows].float()
        return rows[(features - features.mean(dim=0)).square().sum(dim=1).argsort(stable=True)]


def _accumulate(out: Tensor, index: Tensor, rows: Tensor) -> None:
    """``out[index] += rows`` where ``index`` repeats, always in the same order."""
    if out.device.type == "cpu":
        out.index_add_(0, index, rows)
    else:
        _accumulate_sorted(out, index, rows)


def _accumulate_sorted(out: Tensor, index: Tensor, rows: Tensor) -> None:
    """The same where ``index_add_`` adds in any order: on a GPU, by atomics."""
    if index.numel() == 0:
        return
    order = index.argsort(stable=True)
    targets, lengths = torch.unique_consecutive(index[order], return_counts=True)
    out[targets] += torch.segment_reduce(rows[order], "sum", lengths=lengths, axis=0)


def _two_means(x: Tensor, least: int) -> Tensor:
    """Split (n, D) float32 points, n >= 2 · ``least``, in two clusters of at least ``least``: (n,) bool.

    Lloyd's iterations from the two sides of the mean along the leading principal direction; if a child has fewer than
    ``least`` points in the end, the median along that direction splits instead.
    """
    centred = x - x.mean(dim=0)
    direction = centred[centred.square().sum(dim=1).argmax()]
    for _ in range(8):  # of the power method, whose sign is that of its start
        direction = F.normalize(centred.T @ (centred @ direction), dim=0, eps=EPS)
    along = centred @ direction
    half = along > 0
    for _ in range(10):
        n = int(half.sum())
        if not 0 < n < len(x):
            break
        a, b = centred[half].mean(dim=0), centred[~half].mean(dim=0)
        nearer = centred @ (a - b) > (a.square().sum() - b.square().sum()) / 2
        if bool((nearer == half).all()):
            break
        half = nearer
    if not least <= int(half.sum()) <= len(x) - least:
        half = torch.zeros_like(half)
        half[along.argsort(stable=True)[len(x) // 2 :]] = True
    return half
