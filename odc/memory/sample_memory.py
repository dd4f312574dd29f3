"""ODC's sample memory and centroid memory (Zhan et al., Online Deep Clustering, CVPR 2020, arXiv:2006.10645, §3.2).

After a step of the optimiser come :meth:`SampleMemory.momentum_step`, :meth:`SampleMemory.assign` and
:meth:`SampleMemory.commit`; after every k-th of them :meth:`SampleMemory.update_centroids`,
:meth:`SampleMemory.plan_split` and :meth:`SampleMemory.relabel`: steps 2 to 5 of :mod:`odc.heads.odc`.

The means come from running sums that follow every change of a sample, so that a centroid costs O(D), not a pass over
its members. Everything uses the value *as stored* in the half-precision bank, and arithmetic is in float32: the sums
then are those of the bank up to rounding in float32, which :meth:`SampleMemory.resync` takes back once an epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odc.errors import DamagedError, InputError
from odc.memory.shards import Shard, Sharded
from odc.structures import ALONE, Comm, Labels, gather_first, on_gpu

EPS = 1e-12  # features of a smaller norm are zero
CHUNK = 65536  # rows of the bank in float32 at a time
SCORES = 2**23  # scores (rows x clusters) at a time: 32 MiB


class SampleBuffer(Sharded):
    """A persistent buffer ``rows``, (N, ``*shape``) ``dtype``, with one row a sample, or a row of labels.

    N is not known when a model is built, so it is empty until :meth:`sized` or a checkpoint gives it N rows. With
    ``spread`` a rank holds its part of them, ``shard``, else all of them.
    """

    resizes_on_load = True

    def __init__(self, *shape: int, dtype: torch.dtype = torch.float32, spread: bool = False) -> None:
        super().__init__()
        self.shard = Shard(0) if spread else Shard(0, rank=0, world=1)
        self.rows: Tensor = nn.Buffer(torch.zeros(0, *shape, dtype=dtype))

    @property
    def shards(self) -> dict[str, Shard]:
        """The rows."""
        return {"rows": self.shard}

    def sized(self, num_samples: int) -> Tensor:
        """Return :attr:`rows`, to be written to; of zeros where they were not those of ``num_samples`` before."""
        if self.shard.rows != num_samples:
            self.shard = replace(self.shard, rows=num_samples)
            self.rows = self.rows.new_zeros(self.shard.size, *self.rows.shape[1:])
        return self.rows

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        loaded = state_dict.get(f"{prefix}rows")
        # Only N may differ: another shape of a row is reported as for any other module.
        if isinstance(loaded, Tensor) and loaded.shape[1:] == self.rows.shape[1:]:
            if loaded.is_floating_point() and not bool(loaded.isfinite().all()):
                raise DamagedError(f"{prefix}rows is damaged: it has values that are not finite")
            self.shard = replace(self.shard, rows=len(loaded))
            self.rows = self.rows.new_empty(self.shard.size, *loaded.shape[1:])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class SampleMemory(nn.Module):
    """A feature for each of N rows of labels, and the K centroids of the clusters that these labels say.

    N is that of the clustering it is filled from; until then it is empty. Labels and their counts belong to the
    :class:`odc.memory.LabelStore`, whose view is an argument where they are needed: a method that announces new labels
    is called before the store has them.

    A rank of several holds the features of its part of the rows, as ``torch.tensor_split`` deals them, and all sums and
    centroids: the same bits as the others, since all accumulate the same numbers in the same order, on a GPU too. What
    takes ``comm`` is called on all ranks. No method keeps gradients or draws from a global random generator.

    Args:
        dim: D.
        num_clusters: K.
        momentum: m, the share of the new feature.
        renormalize: L2-normalise F_m after each blend. Off is the paper's equation; on is its public code.
        assign: ``"l2"``, the nearest centroid, or ``"dot"``, the largest inner product, which is what the public code
            does and another label for up to 7 % of the samples, since centroids are not of unit length.
        min_cluster: t; a cluster of fewer samples is small. A float is a share of the mean size N/K.
        dtype: of the bank.

    Raises:
        InputError: an argument is out of its range.
    """

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
            raise InputError(f"momentum must be the share of the new feature, in (0, 1]; got {momentum}")
        if isinstance(min_cluster, float) and not 0 < min_cluster < 1:
            raise InputError(f"min_cluster must be a number of samples or a share of the mean size, not {min_cluster}")
        if min_cluster <= 0 or num_clusters < 1:
            raise InputError(f"min_cluster and num_clusters must be at least 1; got {min_cluster} and {num_clusters}")
        self.momentum = momentum
        self.renormalize = renormalize
        self.metric = assign
        self.min_cluster = min_cluster
        D, K = dim, num_clusters
        self.bank = SampleBuffer(D, dtype=dtype, spread=True)  # F_m
        self.sum: Tensor = nn.Buffer(torch.zeros(K, D))  # of the clusters' rows of the bank; always current
        # A row a cluster: its centroid as of the last update_centroids (an empty cluster keeps its last one), and what
        # assignment adds to F·c: -‖c‖²/2 ("dot": 0), and -inf for a cluster that never had a sample. Together, so that
        # (F, 1) times the row is the whole score: to add the second to all scores would take a tenth of the product.
        self.table: Tensor = nn.Buffer(torch.zeros(K, D + 1))
        self.bias.fill_(-torch.inf)
        self.dirty = nn.Buffer(torch.zeros(K, dtype=torch.bool))  # clusters whose centroid is out of date
        # Rows skipped so far because their feature was zero or not finite.
        self.skipped: Tensor = nn.Buffer(torch.zeros((), dtype=torch.int64))

    @property
    def centroids(self) -> Tensor:
        """(K, D) float32: a view of :attr:`table`."""
        return self.table[:, :-1]

    @property
    def bias(self) -> Tensor:
        """(K,) float32: what assignment adds to F·c, a view of :attr:`table`."""
        return self.table[:, -1]

    def least(self, num_samples: int) -> int:
        """Return t for so many samples."""
        if isinstance(self.min_cluster, float):
            return max(1, int(self.min_cluster * num_samples / len(self.sum)))
        return self.min_cluster

    def check(self, num_samples: int) -> None:
        """Raise :class:`InputError` if K clusters cannot all have t of ``num_samples`` samples: K·t > N."""
        K, t = len(self.sum), self.least(num_samples)
        if K * t > num_samples:
            ways = [f"the number of clusters to {num_samples // t}"] if num_samples >= t else []
            ways += [f"min_cluster to {num_samples // K}"] if num_samples >= K else []
            both = f"the number of clusters to {num_samples} and min_cluster to 1"
            raise InputError(
                f"{K} clusters of at least {t} samples need {K * t} samples, but there are {num_samples}: "
                f"lower {' or '.join(ways) or both}"
            )

    @torch.no_grad()
    def fill(self, features: Tensor, labels: Tensor, comm: Comm = ALONE) -> None:
        """Start from a clustering: rows are L2-normalised, then sums and centroids are computed.

        Features are (Nr, D) floating, those of the rows that this rank holds; zero rows stay zero and are counted in
        ``skipped``. Labels are (N,), 0 to K - 1, of all rows.

        Raises:
            InputError: K·t > N, a shape does not fit, a row is not finite, or a label is outside 0..K - 1.
        """
        K, D = self.centroids.shape
        N = len(labels)
        size = replace(self.bank.shard, rows=N).size
        if features.shape != (size, D) or labels.ndim != 1:
            raise InputError(
                f"expected features ({size}, {D}) and labels (N,); got {tuple(features.shape)} and "
                f"{tuple(labels.shape)}"
            )
        self.check(N)
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= K:
            raise InputError(f"labels run from {low} to {high}, but the clusters are 0 to {K - 1}")
        bank = self.bank.sized(N)
        counts = torch.zeros(2, dtype=torch.int64, device=bank.device)  # rows that are not finite, and those of zeros
        for start in range(0, len(bank), CHUNK):
            rows = features[start : start + CHUNK].to(bank.device, torch.float32)
            norms = torch.linalg.vector_norm(rows, dim=1)
            counts += torch.stack(((~norms.isfinite()).sum(), (norms <= EPS).sum()))
            rows[norms <= EPS] = 0
            bank[start : start + CHUNK] = F.normalize(rows, eps=EPS).to(bank.dtype)
        counts = comm.sum(counts)
        if broken := int(counts[0]):
            raise InputError(
                f"{broken} of the features are not finite, or too long for float32: lower the learning rate"
            )
        self.skipped += counts[1]
        labels = labels.to(bank.device, torch.int64)
        self.resync(labels, comm)
        self.centroids.zero_()
        self.bias.fill_(-torch.inf)
        self.dirty.fill_(True)
        self.update_centroids(torch.bincount(labels, minlength=K))

    @torch.no_grad()
    def momentum_step(self, row: Tensor, features: Tensor, comm: Comm = ALONE) -> tuple[Tensor, Tensor]:
        """Return what a batch makes of its samples' features; the bank stays as it is.

        Features are (B, D) floating, not normalised, of the rows of labels ``row`` (B,) int64, and go to the ranks that
        hold these. Those that are zero or not finite are left out and counted in ``skipped``; of a row's other ones the
        last counts, in the order of the ranks.

        Returns:
            rows (R,) int64 that this rank holds, ascending and unique, and their features (R, D) in the dtype of the
            bank. On a GPU, where how many are different would have to be waited for, they are B, and some are there
            again; of several ranks, which wait for each other anyway, they are not.

        Raises:
            InputError: a shape does not fit; and on the CPU, a row is outside 0..N - 1, or the memory was never filled.
        """
        bank, shard = self.bank.rows, self.bank.shard
        N, D = shard.rows, bank.shape[1]
        if row.ndim != 1 or features.shape != (row.shape[0], D):
            raise InputError(
                f"expected rows (B,) and features (B, {D}); got {tuple(row.shape)}, {tuple(features.shape)}"
            )
        row, features = row.to(bank.device), features.to(bank.device, torch.float32)
        if shard.world > 1:
            order, send, receive = shard.route(row, comm)
            row, features = (comm.all_to_all(x[order], send, receive) for x in (row, features))
        norms = torch.linalg.vector_norm(features, dim=1)
        valid = (norms > EPS) & norms.isfinite()
        self.skipped += comm.sum(row.shape[0] - valid.sum())

        if self._fixed(row):
            rows, place = _last_of_each(row, valid, N)
        else:
            place = valid.nonzero().squeeze(1)
            rows, order = row[place].sort(stable=True)  # features of one row stay in their order
            last = torch.ones_like(rows, dtype=torch.bool)
            last[:-1] = rows[1:] != rows[:-1]
            rows, place = rows[last], place[order[last]]
            if rows.numel():
                low, high = int(rows[0]), int(rows[-1])
                if N == 0:
                    raise InputError("the memory is empty: fill it from a clustering first")
                if low < 0 or high >= N:
                    raise InputError(f"rows run from {low} to {high}, but the memory holds 0 to {N - 1}")

        unit = features.index_select(0, place).div_(norms[place, None])
        before = self._held(rows).float()
        if self._fixed(row):
            unit = torch.where(valid[place, None], unit, before)  # where no row at all is valid
        blended = before.lerp_(unit, self.momentum)
        if self.renormalize:
            blended = F.normalize(blended, eps=EPS)
        return rows, blended.to(bank.dtype)

    @torch.no_grad()
    def assign(self, stored: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the nearest centroid (R,) int64 of features (R, D), argmax of F·c + ``bias``; of equals any.

        By default the bias is :attr:`bias`. There are never more than ``SCORES`` scores in memory.
        """
        table = self.table if bias is None else torch.cat((self.centroids, bias[:, None]), dim=1)
        step = max(1, SCORES // len(table))
        return torch.cat([_largest(F.pad(rows.float(), (0, 1), value=1.0) @ table.T) for rows in stored.split(step)])

    @torch.no_grad()
    def commit(
        self, rows: Tensor, stored: Tensor, new: Tensor, labels: Labels, comm: Comm = ALONE
    ) -> tuple[Tensor, Tensor]:
        """Write features to the memory; sums follow them and the labels that they are about to get, centroids do not.

        The rows (R,) of this rank are those of :meth:`momentum_step` and have the labels ``labels`` now, ``new`` (R,)
        int64 afterwards; their features ``stored`` (R, D) are in the dtype of the bank.

        Returns:
            rows and new labels of all ranks.
        """
        before = self._held(rows)
        self.bank.rows.index_copy_(0, rows - self.bank.shard.start, stored)
        if comm.world > 1:
            rows, new = comm.gather(torch.stack((rows, new), 1)).unbind(1)
            before, stored = comm.gather(torch.stack((before, stored), 1)).unbind(1)
        clusters = torch.cat((labels.target.index_select(0, rows)[:, 0], new))
        change = torch.cat((before.float().neg_(), stored.float()))
        if self._fixed(rows):  # a row that is there again counts once
            other = torch.cat((torch.ones_like(rows[:1]), rows.diff().clamp(max=1)))
            change *= other.repeat(2)[:, None]
        _accumulate(self.sum, clusters, change)
        self.dirty[clusters] = True
        return rows, new

    def _fixed(self, rows: Tensor) -> bool:
        """Return whether a batch has places for all its rows, whatever they are."""
        return on_gpu(rows) and self.bank.shard.world == 1

    @torch.no_grad()
    def update_centroids(self, counts: Tensor) -> None:
        """Make the centroid of every cluster that changed the mean of its samples: O(changed · D); ``counts`` (K,)."""
        if on_gpu(counts):  # all, O(K · D): how many have changed would have to be waited for
            changed = (self.dirty & (counts > 0))[:, None]
            centroids = torch.where(changed, self.sum / counts.clamp(min=1)[:, None], self.centroids)
            bias = centroids.square().sum(dim=1, keepdim=True) * (-0.5 if self.metric == "l2" else 0.0)
            self.table.copy_(torch.where(changed, torch.cat((centroids, bias), dim=1), self.table))
            self.dirty.zero_()
            return
        clusters = (self.dirty & (counts > 0)).nonzero().squeeze(1)
        centroids = self.sum.index_select(0, clusters).div_(counts[clusters, None])
        self.centroids.index_copy_(0, clusters, centroids)
        self.bias[clusters] = centroids.square().sum(dim=1).mul_(-0.5) if self.metric == "l2" else 0.0
        self.dirty.zero_()

    @torch.no_grad()
    def plan_split(self, labels: Labels, generator: torch.Generator, comm: Comm = ALONE) -> tuple[Tensor, Tensor]:
        """Decide which samples must move for every cluster to have t samples.

        The samples of each small cluster go to the nearest centroid of a normal one. Then, for each emptied cluster
        in turn, the largest cluster is split in two by 2-means and one half, chosen at random, becomes the emptied
        cluster; both halves have at least t samples. When N >= (K - 1)(2t - 1) + 1, some cluster with the 2t samples
        for that always exists; otherwise the last clusters are filled sample by sample: the largest cluster at that
        moment gives the one farthest from its mean, and so always keeps t.

        The centroids must be up to date. A split takes one draw from the generator. The first rank splits, and is sent
        the features of the clusters that may have to be.

        Returns:
            rows (R,) int64, ascending, and their new labels (R,) int64.
        """
        t = self.least(labels.target.shape[0])
        small = labels.counts < t
        if not bool(small.any()):
            none = labels.counts.new_empty(0)
            return none, none
        target, counts = labels.target[:, 0].clone(), labels.counts.clone()
        homeless = small.index_select(0, target).nonzero().squeeze(1)
        mine = self._held(self.bank.shard.mine(homeless))
        target[homeless] = comm.gather(self.assign(mine, self.bias.masked_fill(small, -torch.inf)))
        counts[small] = 0
        counts.index_add_(0, target[homeless], torch.ones_like(homeless))

        emptied = small.nonzero().squeeze(1).tolist()
        N, K = target.shape[0], counts.shape[0]
        # As many splits touch no more than as many of the largest clusters; without enough to split, any can give.
        normal = K - len(emptied)
        donors = min(len(emptied), normal) if (K - 1) * (2 * t - 1) < N else normal
        members = self._members(target, counts, counts.argsort(descending=True, stable=True)[:donors])
        features = self._fetch(members, comm)

        def split() -> tuple[Tensor, Tensor]:
            size = counts.cpu().numpy()
            while emptied and size.max() >= 2 * t:
                cluster, donor = emptied.pop(0), int(size.argmax())  # the first of the largest
                rows = members[donor]
                half = _two_means(features(rows), t)
                if int(torch.randint(2, (), generator=generator, device=generator.device)):
                    half = ~half
                members[cluster], members[donor] = rows[half], rows[~half]
                size[[cluster, donor]] = len(members[cluster]), len(members[donor])
            if emptied:
                outward = {cluster: _outward(rows, features(rows)).tolist() for cluster, rows in members.items()}
                for cluster in emptied:
                    taken = []
                    for _ in range(t):
                        donor = int(size.argmax())
                        taken.append(outward[donor].pop())
                        size[donor] -= 1
                    members[cluster] = torch.tensor(taken, device=target.device)
            # Givers come before takers in `members`, so a sample that was given away ends with its taker.
            for cluster, rows in members.items():
                target[rows] = cluster
            moved = (target != labels.target[:, 0]).nonzero().squeeze(1)
            return moved, target[moved]

        moved, new = comm.first(split)
        return moved, new

    def _fetch(self, members: dict[int, Tensor], comm: Comm) -> Callable[[Tensor], Tensor]:
        """Return what gives, on the first rank, the features (R, D) float32 of some of these samples."""
        if comm.world == 1:
            return lambda rows: self._held(rows).float()
        rows = torch.cat(list(members.values())).sort().values
        found = gather_first(self._held(self.bank.shard.mine(rows)), comm)
        held = self.bank.rows if found is None else found.to(rows.device)
        return lambda some: held.index_select(0, torch.searchsorted(rows, some)).float()

    def _held(self, rows: Tensor) -> Tensor:
        """Return the features (R, D) of rows (R,) that this rank holds, as the bank has them."""
        # An index in brackets would take 5 times as long.
        return self.bank.rows.index_select(0, rows - self.bank.shard.start)

    @torch.no_grad()
    def relabel(self, rows: Tensor, new: Tensor, labels: Labels, comm: Comm = ALONE) -> None:
        """Let the sums follow samples that are about to move to other clusters, as in :meth:`commit`.

        ``rows`` (R,), ascending, and their new labels are the same on all ranks.
        """
        old, features = labels.target[rows, 0], comm.gather(self._held(self.bank.shard.mine(rows))).float()
        _accumulate(self.sum, old, -features)
        left = labels.counts - torch.bincount(old, minlength=len(self.sum))
        self.sum[left == 0] = 0  # exactly: what rounding left there is not the new cluster's
        _accumulate(self.sum, new, features)
        self.dirty[old] = True
        self.dirty[new] = True

    @torch.no_grad()
    def resync(self, labels: Tensor, comm: Comm = ALONE) -> None:
        """Recompute the sums from the bank and the labels (N,) int64: a pass over the bank, for once an epoch."""
        self.sum.zero_()
        mine = self.bank.shard.part(labels)
        for rows, of in zip(self.bank.rows.split(CHUNK), mine.split(CHUNK), strict=True):
            _accumulate(self.sum, of, rows.float())
        self.sum.copy_(comm.sum(self.sum))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in ("sum", "table"):
            loaded = state_dict.get(prefix + name)
            if not isinstance(loaded, Tensor):
                continue
            finite = loaded.isfinite()
            if name == "table":
                finite[..., -1] |= loaded[..., -1] == -torch.inf
            if not bool(finite.all()):
                raise DamagedError(f"{prefix}{name} is damaged: it has values that are not finite")
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @staticmethod
    def _members(labels: Tensor, size: Tensor, clusters: Tensor) -> dict[int, Tensor]:
        """Return the samples, ascending, of each of these clusters; one pass over the labels."""
        wanted = torch.zeros_like(size, dtype=torch.bool)
        wanted[clusters] = True
        rows = wanted.index_select(0, labels).nonzero().squeeze(1)
        rows = rows[labels.index_select(0, rows).argsort(stable=True)]
        clusters = clusters.sort().values
        return dict(zip(clusters.tolist(), torch.split(rows, size[clusters].tolist()), strict=True))


def _largest(scores: Tensor) -> Tensor:
    """Return the column (R,) int64 of the largest of each row's scores (R, K); of equals any."""
    if on_gpu(scores):
        return scores.argmax(dim=1)
    return torch.from_numpy(scores.numpy().argmax(1))  # by vector instructions, unlike torch's: a third of the time


def _accumulate(out: Tensor, index: Tensor, rows: Tensor) -> None:
    """``out[index] += rows`` where ``index`` repeats, always in the same order."""
    if on_gpu(out):  # sorts by the index, where index_add_ adds by atomics, in any order
        out.index_put_((index,), rows, accumulate=True)
    else:
        out.index_add_(0, index, rows)


def _last_of_each(row: Tensor, valid: Tensor, N: int) -> tuple[Tensor, Tensor]:
    """Return the rows of ``row`` (B,) that are ``valid`` (B,) anywhere, ascending, and the last valid place of each.

    Both are (B,) int64: a row is there as often as it is valid, and the largest one fills what is left.
    """
    ordered, order = torch.where(valid, row, N).sort(stable=True)  # features of one row stay in their order
    last = torch.searchsorted(ordered, ordered, right=True) - 1
    last = last[torch.arange(len(row), device=row.device).minimum(valid.sum() - 1).clamp(min=0)]
    return ordered[last].clamp(max=N - 1), order[last]


def _outward(rows: Tensor, features: Tensor) -> Tensor:
    """Return these samples (R,) in ascending order of their features' (R, D) distance to the mean of these."""
    return rows[(features - features.mean(dim=0)).square().sum(dim=1).argsort(stable=True)]


def _two_means(x: Tensor, least: int) -> Tensor:
    """Split (n, D) float32 points, n >= 2 · ``least``, in two clusters of at least ``least``: (n,) bool.

    Lloyd's iterations from the two sides of the mean along the leading principal direction; if a child has fewer than
    ``least`` points in the end, the median along that direction splits instead.
    """
    centred = x - x.mean(dim=0)
    direction = centred[centred.square().sum(dim=1).argmax()]
    for _ in range(8):  # of the power method, whose sign is that of its start
        direction = (centred @ direction) @ centred
        direction /= torch.linalg.vector_norm(direction).clamp_(min=EPS)
    along = centred @ direction
    half = along > 0
    for _ in range(10):
        n = int(half.sum())
        if not 0 < n < len(x):
            break
        # The means of the two are total/n and -total/m, since all points have mean 0; no point is gathered.
        total = half.to(centred.dtype) @ centred
        nearer = centred @ total > total.square().sum() * (1 / n - 1 / (len(x) - n)) / 2
        if bool((nearer == half).all()):
            break
        half = nearer
    if not least <= int(half.sum()) <= len(x) - least:
        half = torch.zeros_like(half)
        half[along.argsort(stable=True)[len(x) // 2 :]] = True
    return half
