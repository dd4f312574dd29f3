"""Parts of tensors that are spread over the ranks: out of DDP, and whole in a checkpoint.

The first rank writes one file with the whole, as it would if it were alone, so any number of ranks resumes from it, and
what reads it knows nothing of parts. They come to its main memory a piece at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from odc.errors import InputError
from odc.memory.shards import Shard, shards_of
from odc.structures import Comm, gather_first


def leave_out_of_ddp(model: nn.Module) -> None:
    """Let the wrapper that ``model`` is about to get neither average nor copy what is a part of the rank's own.

    Raises:
        InputError: nothing is left to average, which DDP does not take.
    """
    shards = shards_of(model)
    if shards and all(name in shards for name, p in model.named_parameters() if p.requires_grad):
        raise InputError(
            f"all that is trained, '{next(iter(shards))}' first, is spread over the processes: train the backbone or "
            "the neck too, or take one process"
        )
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(shards))


def _state_of(
    model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> Iterator[tuple[tuple[Any, ...], Tensor, Shard]]:
    """Yield all that is a part, with its address in a checkpoint, in the same order on every rank."""
    shards = shards_of(model)
    if not shards:
        return
    tensors = dict((*model.named_parameters(), *model.named_buffers()))
    names = {tensor: name for name, tensor in tensors.items() if name in shards}
    for name, shard in shards.items():
        yield ("state_dict", name), tensors[name].detach(), shard
    if optimizer is None:
        return
    for name, shard in shards.items():
        if (gradient := tensors[name].grad) is not None:
            yield ("loop", "gradients", name), gradient, shard
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for place, parameter in enumerate(parameters):
        if parameter not in names:
            continue
        for key, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor) or not value.ndim:
                continue  # the same on all ranks
            if value.shape != parameter.shape:
                raise InputError(
                    f"{type(optimizer).__name__} keeps '{key}' of '{names[parameter]}', which is spread over the "
                    f"processes, in another shape, {tuple(value.shape)}: take another optimiser, or one process"
                )
            yield ("optimizer", "state", place, key), value, shards[names[parameter]]


def gather_state(
    model: nn.Module, optimizer: torch.optim.Optimizer | None, comm: Comm
) -> dict[tuple[Any, ...], Tensor]:
    """Return the whole of all that is a part, by its address in a checkpoint, on the first rank; nothing on others.

    These are tensors of the model and, with an optimiser, of its state and the gradients that it has not yet taken.

    Raises:
        InputError: the optimiser has a state that cannot be put together.
    """
    found = {}
    for address, mine, shard in _state_of(model, optimizer):
        blocks = gather_first(mine, comm)
        if blocks is not None:
            found[address] = shard.whole(blocks)
    return found


def put_whole(checkpoint: dict[str, Any], whole: Mapping[tuple[Any, ...], Tensor]) -> None:
    """Put into a checkpoint what :func:`gather_state` found."""
    for address, tensor in whole.items():
        below: Any = checkpoint
        for key in address[:-1]:
            below = below[key]
        below[address[-1]] = tensor


def own_gradients(loop: Any, model: nn.Module) -> Any:
    """Return the state of a loop from a checkpoint with this rank's parts of the gradients."""
    shards = shards_of(model)
    if not shards or not isinstance(loop, Mapping) or not isinstance(loop.get("gradients"), Mapping):
        return loop
    parameters = dict(model.named_parameters())
    gradients = {
        name: _part(value, parameters[name], shards[name]) if name in shards else value
        for name, value in loop["gradients"].items()
    }
    return {**loop, "gradients": gradients}


def own_state(state: Any, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """Return the state of an optimiser from a checkpoint with this rank's parts of what is spread."""
    shards = shards_of(model)
    if not shards or not isinstance(state, Mapping) or not isinstance(state.get("state"), Mapping):
        return state
    spread = {p: shards[name] for name, p in model.named_parameters() if name in shards}
    own = dict(state["state"])
    for place, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        if parameter in spread and isinstance(own.get(place), Mapping):
            own[place] = {key: _part(value, parameter, spread[parameter]) for key, value in own[place].items()}
    return {**state, "state": own}


def _part(value: Any, mine: Tensor, shard: Shard) -> Any:
    """Return the part of what is whole; what has another shape stays, and is refused by who looks at it."""
    whole = isinstance(value, Tensor) and value.shape == shard.shape(mine.shape)
    return shard.part(value) if whole else value


def check_optimizer(wrapper: Any, model: nn.Module) -> None:
    """Refuse an optimiser that looks at all parameters, or at all of one, where a rank has parts.

    Raises:
        InputError: it clips the norm of the gradients, or it is Adafactor or L-BFGS.
    """
    if not (shards := shards_of(model)):
        return
    kind, clips = type(wrapper.optimizer).__name__, (wrapper.clip_grad_kwargs or {}).get("max_norm") is not None
    if clips or kind in ("Adafactor", "LBFGS"):
        what = "optim_wrapper.clip_grad by the norm" if clips else f"the optimiser {kind}"
        raise InputError(
            f"{what} cannot be had with '{next(iter(shards))}' spread over the processes, since none of them sees all "
            f"of it: {'clip by value (type=' + repr('value') + ')' if clips else 'take SGD or Adam'}, or one process"
        )
