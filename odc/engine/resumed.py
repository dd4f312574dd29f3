"""What a run goes on with: what it may be, and the optimiser's options that the config has changed since."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from odc import logs
from odc.checkpoints import to_plain
from odc.errors import InputError, one_line
from odc.reading import anything, fields, flag, listing, mapping, optional, real, scalar, text, whole


def _note(value: Any) -> Any:
    """Kind: what the message hub keeps; hooks of mmengine and of this package go by some entries, and delete by one."""
    known = {"keep_ckpt_ids": listing(whole()), "last_ckpt": text, "preflight": mapping(real())}
    best = {"best_ckpt": optional(text), "best_score": real()}
    of_best = {name: kind for name in value for start, kind in best.items() if str(name).startswith(start)}
    return fields({}, anything, **known, **of_best)(value)


META = fields({"epoch": whole(), "iter": whole()}, anything, seed=optional(whole(high=2**32 - 1)))
HUB = fields({"log_scalars": mapping(anything), "runtime_info": _note, "resumed_keys": mapping(flag)})
_OPTIMIZER = fields(
    {
        "state": mapping(mapping(anything), keys=whole()),
        "param_groups": listing(fields({"params": listing(whole())}, anything)),
    },
    anything,
)


def like(own: Any, saved: Any) -> Any:
    """Kind, once ``own`` is given: what can take its place."""
    if isinstance(own, bool):
        flag(saved)
    elif isinstance(own, int | float):
        if real()(saved) is None:
            raise ValueError("it is not finite")
    elif isinstance(own, str):
        text(saved)
    elif isinstance(own, list | tuple):
        listing(scalar)(saved)
    elif own is None:
        scalar(saved)
    return saved


def _stands_for(shape: torch.Size, own: torch.Size) -> bool:
    """Return whether a state of this shape can be that of a parameter: counters are scalars, Adafactor's rows are 1."""
    same = len(shape) == len(own) and all(size in (1, full) for size, full in zip(shape, own, strict=True))
    return not shape or same


def check_state(state: Any, optimizer: torch.optim.Optimizer) -> None:
    """Check the state of an optimiser against the parameters and options that it is to be loaded into."""
    _OPTIMIZER(state)
    parameters: dict[int, Tensor] = {}
    for own, saved in zip(optimizer.param_groups, state["param_groups"], strict=False):
        parameters.update(zip(saved["params"], own["params"], strict=False))
        for name, value in saved.items():
            if name != "params":
                like(own.get(name, 0.0), value)
    for position, entries in state["state"].items():
        for name, value in entries.items():
            if not isinstance(value, Tensor):
                scalar(value)
            elif position not in parameters or not _stands_for(value.shape, parameters[position].shape):
                raise ValueError(f"'{name}' of parameter {position} has the shape {tuple(value.shape)}")
            elif not bool(value.isfinite().all()):
                raise ValueError(f"'{name}' of parameter {position} is not finite")


def options_of(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return of each group of parameters the options that a config can give."""
    apart = ("params", "param_names", "initial_lr")
    return [{name: to_plain(value) for name, value in group.items() if name not in apart} for group in groups]


def change_options(optimizer: torch.optim.Optimizer, configured: list[dict[str, Any]]) -> None:
    """Give a resumed optimiser the options of the config instead of those that it was saved with, and say so.

    The learning rate keeps the share of the one at the start that the schedule had come to.

    Raises:
        InputError: what was saved is not the state of an optimiser with these options.
    """
    told: dict[str, None] = {}  # each once: groups mostly have the same options
    for group, saved, new in zip(optimizer.param_groups, options_of(optimizer.param_groups), configured, strict=True):
        rate = saved.get("lr")
        saved["lr"] = group.get("initial_lr", rate)
        changed = {name: value for name, value in new.items() if saved.get(name) != value}
        if not changed:
            continue
        words = [f"{name}={value} instead of {saved.get(name)}" for name, value in changed.items()]
        _check_change(optimizer, {**group, **saved}, changed, ", ".join(words))
        told |= dict.fromkeys(words)
        if "lr" in changed:
            group["initial_lr"] = changed["lr"]
            changed["lr"] *= rate / saved["lr"] if saved["lr"] else 1.0
        group.update(changed)
    if told:
        logs.warn(f"the training goes on with {', '.join(told)}, as the config says")


def _check_change(optimizer: torch.optim.Optimizer, saved: dict[str, Any], changed: dict[str, Any], words: str) -> None:
    """Try on one number whether an optimiser can go on with other options: some need a state that was not kept."""
    trial = copy.copy(optimizer)
    number = nn.Parameter(torch.zeros(1))
    trial.param_groups = [{**saved, "params": [number]}]
    trial.state = defaultdict(dict)
    try:
        for options in ({}, changed):
            trial.param_groups[0].update(options)
            number.grad = torch.ones(1)
            trial.step()
    except Exception as error:  # whatever the optimiser stumbles over
        raise InputError(
            f"the optimiser was saved without what {type(optimizer).__name__} needs to go on with {words} "
            f"({type(error).__name__}: {one_line(error)}): put these options of optim_wrapper.optimizer back, or "
            "start anew in another --work-dir"
        ) from None


def flat(schedulers: Any) -> list[Any]:
    """Return mmengine's schedulers, or their states, in one list: with several optimisers they are lists by name."""
    return [s for group in schedulers.values() for s in group] if isinstance(schedulers, dict) else list(schedulers)
