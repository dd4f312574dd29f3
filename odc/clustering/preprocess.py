"""What DC and DeeperCluster do to features before k-means: PCA with whitening, and L2 normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from odc.errors import InputError
from odc.structures import Comm, on_gpu

CHUNK = 16384  # rows in float64 at a time
NO_DIFFERENCE = (
    "there is nothing to cluster; see whether the images differ (data.views), and if they do, pre-train the backbone "
    "(configs/moco) or lower the learning rate"
)
_ROUNDING = 2.0**-23  # relative, of float32
_TINY = 1e-30  # standard deviations below this have no inverse in float32


def l2_normalize(x: Tensor, eps: float = 1e-12) -> tuple[Tensor, int]:
    """Return the rows of ``x`` (N, D) floating divided by their L2 norms, and how many are zero (norm <= ``eps``).

    Zero rows become exact zeros. Same dtype and device.
    """
    unit, zero = _unit(x, eps)
    return unit, 0 if torch.compiler.is_exporting() else int(zero.sum())


def _unit(x: Tensor, eps: float = 1e-12) -> tuple[Tensor, Tensor]:
    """Return what :func:`l2_normalize` does, and which rows (N, 1) are zero, without reading a number from a GPU."""
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    if torch.compiler.is_exporting():  # a graph that is exported does not branch
        return torch.where(norms <= eps, 0, x / norms.clamp(min=eps)), norms <= eps
    if on_gpu(x) or bool(norms.isinf().any()):  # long rows, whose squares overflow; rows that are not finite stay so
        x = torch.where(norms.isinf(), x / x.abs().amax(dim=1, keepdim=True), x)
        norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    zero = norms <= eps
    return torch.where(zero, 0, x / norms.masked_fill(zero, 1)), zero


def distances_to(x: Tensor, centers: Tensor) -> Tensor:
    """Return the Euclidean distances (B, K) of ``x`` (B, D) to ``centers`` (K, D), both floating.

    They are those of :func:`torch.cdist`, which chooses its algorithm by B: a graph that is exported cannot.
    """
    if not torch.compiler.is_exporting():
        return torch.cdist(x, centers)
    squares = x.square().sum(1, keepdim=True) - 2 * x @ centers.T + centers.square().sum(1)
    return squares.clamp(min=0).sqrt()


def unit_in_spaces(x: Tensor, spaces: Sequence[int]) -> Tensor:
    """Return the rows of ``x`` (N, D), spaces of these widths (D in all) side by side, of length 1 in each space."""
    return torch.cat([_unit(part)[0] for part in x.split(list(spaces), dim=1)], dim=1)


def l2_normalize_(x: Tensor, eps: float = 1e-12) -> int:
    """Divide the rows of ``x`` (N, D) by their L2 norms in place; return how many are zero (norm <= ``eps``)."""
    zero = 0
    for rows in torch.split(x, CHUNK):
        unit, more = l2_normalize(rows, eps)
        rows.copy_(unit)
        zero += more
    return zero


def check_differ(x: Tensor, total: int | None = None) -> None:
    """Raise :class:`InputError` if the rows of ``x`` (N, D) floating, N > 1, are all equal up to rounding.

    ``total`` is of how many images they are the extremes, where they are not those of all.
    """
    if len(x) < 2 or x.shape[1] < 1:
        return
    low, high = x.amin(0), x.amax(0)
    if float((high - low).max()) <= 8 * _ROUNDING * float(torch.maximum(high.abs(), low.abs()).max()):
        raise InputError(
            f"the features of all {len(x) if total is None else total:,} images are equal: {NO_DIFFERENCE}"
        )


@dataclass(frozen=True)
class Whitening:
    """A fitted PCA with whitening."""

    mean: Tensor  # (D,) float32
    # (D, d) float32: principal directions, largest variance first, over their standard deviations; d is less than asked
    # for where there were too few samples or dimensions.
    projection: Tensor

    def apply(self, x: Tensor, in_place: bool = False) -> Tensor:
        """Return ``(x - mean) @ projection`` for ``x`` (N, D): (N, d) float32; chunked.

        In place it is in the memory of ``x``, contiguous float32, which is overwritten: for features that fill most of
        the memory. Else ``x`` stays as it is.
        """
        shape = x.shape[0], self.projection.shape[1]
        # d <= D: row i lies where rows up to i, then read, were.
        out = x.view(-1)[: math.prod(shape)].view(shape) if in_place else x.new_empty(shape, dtype=torch.float32)
        for start in range(0, len(x), CHUNK):
            out[start : start + CHUNK] = (x[start : start + CHUNK].float() - self.mean) @ self.projection
        return out


@torch.no_grad()
def fit_whitening(x: Tensor, n_components: int, comm: Comm, floor: float = 1e-5) -> Whitening:
    """Fit PCA with whitening on the rows of all ranks.

    Mean and covariance (divided by N) are sums in float64 that ``comm.sum`` adds up over ranks; the result is the
    same on every rank, bit by bit. Of a direction's two signs, the one with its largest component positive is taken.

    Args:
        x: (Nr, D) floating, this rank's rows.
        n_components: directions to keep; reduced to min(N - 1, D).
        comm: the ranks.
        floor: variances are raised to at least this share of the largest one before the division by their root, so
            that directions without variance are not blown up (DeeperCluster: 1e-5).

    Raises:
        InputError: fewer than two rows, rows that are not finite, rows all equal up to rounding, or
            ``n_components`` < 1.
    """
    if n_components < 1:
        raise InputError(f"whitening needs at least 1 component, not {n_components}")
    if x.ndim != 2 or x.shape[1] < 1:
        raise InputError(f"x must be (N, D), D at least 1; got shape {tuple(x.shape)}")
    D = x.shape[1]
    # Two passes, mean first: the moments about zero would cancel where the mean is large.
    total = x.new_zeros(D + 1, dtype=torch.float64)
    for rows in torch.split(x, CHUNK):
        total[:D] += rows.sum(dim=0, dtype=torch.float64)
    total[D] = x.shape[0]
    total = comm.sum(total)
    N = int(total[D])
    if N < 2:
        raise InputError(f"whitening needs at least 2 samples, got {N}")
    mean = total[:D] / N
    if not bool(mean.isfinite().all()):
        raise InputError(f"some of the {N} rows to whiten are not finite: remove them, or lower the learning rate")

    outer = x.new_zeros(D, D, dtype=torch.float64)
    for rows in torch.split(x, CHUNK):
        centred = rows.double() - mean
        outer.addmm_(centred.T, centred)
    variances, directions = torch.linalg.eigh(comm.sum(outer) / N)  # ascending
    # What rounding makes of equal rows is no direction: whitened, it would look like structure.
    if float(variances[-1]) <= _ROUNDING**2 * float(mean.square().sum()) + _TINY**2:
        raise InputError(f"the {N} rows to whiten are all equal: {NO_DIFFERENCE}")

    kept = min(n_components, N - 1, D)
    variances, directions = variances.flip(0)[:kept], directions.flip(1)[:, :kept]
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    scale = largest.sign() / variances.clamp(min=floor * float(variances[0])).sqrt()
    # eigh may differ in its last bits between machines: rank 0's is everybody's.
    projection = comm.broadcast((directions * scale).float())
    return Whitening(comm.broadcast(mean.float()), projection)
