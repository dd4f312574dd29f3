"""What is remembered of every sample, whatever their number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from odc.errors import DamagedError


class SampleBuffer(nn.Module):
    """A persistent buffer with one row a sample, or a row of labels.

    Their number N is not known when a model is built, so it is empty until :meth:`sized` or a checkpoint gives it N
    rows.

    Args:
        shape: of a row.
        dtype: of the rows.

    Attributes:
        rows: (N, ``*shape``) ``dtype``.
    """

    resizes_on_load = True

    rows: Tensor

    def __init__(self, *shape: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(0, *shape, dtype=dtype))

    def sized(self, num_samples: int) -> Tensor:
        """Return :attr:`rows`, to be written to; of zeros where they were not ``num_samples`` before."""
        if len(self.rows) != num_samples:
            self.rows = self.rows.new_zeros(num_samples, *self.rows.shape[1:])
        return self.rows

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        loaded = state_dict.get(f"{prefix}rows")
        # Only N may differ: another shape of a row is reported as for any other module.
        if isinstance(loaded, Tensor) and loaded.shape[1:] == self.rows.shape[1:]:
            if loaded.is_floating_point() and not bool(loaded.isfinite().all()):
                raise DamagedError(f"{prefix}rows is damaged: it has values that are not finite")
            self.rows = self.rows.new_empty(loaded.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
