"""Which operations of a piece of code would let the processor wait for a GPU, found on a machine that has none.

Everything runs on the CPU. What a run on a GPU would have there is told apart from what the processor has in either
case: results of factories without a ``device``, and of what is computed from these alone, are the processor's; all else
is the GPU's. An operation waits that reads a number of the GPU's, whose result has a shape that depends on its data, or
that copies between the two without ``non_blocking``. What waits inside of a library's C++ without a sign of it, as a
check of arguments does, is in :data:`WAITS`.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

# Operations of ATen, by name, that read the GPU's memory to know a value or a shape.
WAITS = {
    *("_local_scalar_dense", "is_nonzero", "equal", "allclose"),  # values
    *("nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive"),  # shapes
    *("bincount", "segment_reduce", "histc", "multinomial"),  # of arguments that are checked
}
_READS = ("tolist", "numpy", "cpu", "__array__")
_FACTORIES = {
    *(torch.tensor, torch.as_tensor, torch.from_numpy, torch.arange, torch.empty, torch.zeros, torch.ones, torch.full),
    *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.linspace, torch.eye, torch.scalar_tensor),
}


@contextmanager
def asking(on_gpu: Callable[[Any], bool]) -> Iterator[None]:
    """Let all who ask :func:`odc.structures.on_gpu` ask this instead."""
    with ExitStack() as stack:
        for module in [m for name, m in sys.modules.items() if name.startswith("odc.") and hasattr(m, "on_gpu")]:
            stack.enter_context(patch.object(module, "on_gpu", on_gpu))
        yield


class Waits:
    """What waited while this was watching: lines ``operation at file:line``, and how often."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}
        self._host: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def of_processor(self, *tensors: Tensor) -> None:
        """Say that the processor has these on a machine with a GPU, too."""
        for tensor in tensors:
            self._host[tensor] = True

    def on_gpu(self, tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and tensor not in self._host

    def note(self, what: str) -> None:
        frames = [f for f in traceback.extract_stack() if "/odc/" in f.filename or "torchvision" in f.filename]
        here = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "?"
        key = f"{what} at {here}"
        self.found[key] = self.found.get(key, 0) + 1

    @contextmanager
    def watching(self) -> Iterator[Waits]:
        """Watch what runs inside, which does what it would with a GPU."""
        with asking(self.on_gpu), _Operations(self), _Calls(self):
            yield self


class _Operations(TorchDispatchMode):
    """Every operation of ATen, whoever calls it."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)]
        name, gpu = func.__name__.split(".")[0], any(map(self.waits.on_gpu, given))
        if gpu:
            where = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
            masks = [i for i in where if i is not None and i.dtype in (torch.bool, torch.uint8)]
            values = args[2] if len(args) > 2 else None
            filled = len(masks) == 1 and isinstance(values, Tensor) and values.numel() == 1 and values.ndim == 0
            if masks and not filled:
                self.waits.note(f"{name} by a mask")
            elif any(not self.waits.on_gpu(i) for i in where if i is not None and i.ndim):
                self.waits.note(f"{name} by the processor's numbers")
            elif name in WAITS or (name == "repeat_interleave" and (kwargs or {}).get("output_size") is None):
                self.waits.note(name)
        out = func(*args, **(kwargs or {}))
        if given and not gpu:
            self.waits.of_processor(*(x for x in tree_leaves(out) if isinstance(x, Tensor)))
        return out


class _Calls(TorchFunctionMode):
    """Calls from Python, of which some never become an operation where everything lies in one memory."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name, waits = kwargs or {}, getattr(func, "__name__", ""), self.waits
        here = kwargs.get("device") is None
        if func in _FACTORIES:
            out = func(*args, **kwargs)
            if here:
                waits.of_processor(out)
            elif func in (torch.tensor, torch.as_tensor):
                waits.note(f"{name} on the GPU")
            return out
        if name in _READS and waits.on_gpu(args[0]):
            waits.note(name)
            there = args[0].clone() if name == "cpu" else args[0].detach()
            waits.of_processor(there)
            return there if name == "cpu" else func(there, *args[1:], **kwargs)
        if name == "to":
            return self._moved(func, args, kwargs)
        if name == "copy_" and waits.on_gpu(args[0]) and not waits.on_gpu(args[1]):
            at_once = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
            if not at_once and args[1].ndim:
                waits.note("copy_ to the GPU")
        return func(*args, **kwargs)

    def _moved(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        waits, device = self.waits, kwargs.get("device", kwargs.get("other", args[1] if len(args) > 1 else None))
        out = func(*args, **kwargs)
        if isinstance(device, torch.device | str | Tensor):
            to_gpu, was = waits.on_gpu(device) if isinstance(device, Tensor) else device != "cpu", waits.on_gpu(args[0])
            if to_gpu != was:
                out = out.view_as(out) if out is args[0] else out  # a tensor of its own
                if not kwargs.get("non_blocking"):
                    waits.note(f"to {'the GPU' if to_gpu else 'the processor'}")
                elif not to_gpu:
                    waits.note("to the processor")
                waits._host.pop(out, None) if to_gpu else waits.of_processor(out)
        return out
