"""Weights of any layout into a backbone: all of them, or nothing and an error."""

from __future__ import annotations

import contextlib
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from odc.checkpoints import LoadReport, load_state
from odc.errors import InputError
from odc.models.convert import (
    LAYOUTS,
    count_batches,
    in_order,
    listed,
    network_of,
    states_of,
    suggest,
    take_backbone,
    timm_names,
)


@dataclass
class _Form:
    """A backbone's tensors as they might go into a backbone."""

    kind: str  # in words
    told: str  # behind "tensors loaded"
    plain: Mapping[str, Tensor]  # before they were given names of this backbone
    given: dict[str, Tensor]
    left: Counter[str]


def load_backbone(backbone: nn.Module, checkpoint: Mapping[str, Any], source: str = "the checkpoint") -> str:
    """Load a checkpoint, as :func:`take_backbone` takes it, into a backbone: all of it, or nothing and an error.

    The names may be with or without ``model.``, as ``TorchvisionBackbone`` and ``TimmBackbone`` have it. A file of the
    backbone's own names is of no layout that must be known, and one of names that timm converts is converted by it.
    Layers of a classifier that the backbone does not have are left. Returns what was loaded and what was left, in one
    line.

    Raises:
        InputError: the layout is unknown, or names or shapes differ; the message has both shapes.
    """
    wanted = backbone.state_dict()
    found: list[tuple[LoadReport, _Form]] = []
    failed: InputError | None = None
    for forms in (_of_a_layout, _by_own_names, _published):
        try:
            found += [_compared(form, backbone, wanted) for form in forms(backbone, wanted, checkpoint, source)]
        except InputError as error:
            failed = failed or error
        best = max(found, key=lambda pair: (pair[0].complete, len(pair[0].loaded)), default=None)
        if best is not None and best[0].complete:
            break
    if best is None or (failed is not None and not best[0].loaded):
        raise failed or InputError(f"{source} holds no backbone")
    report, form = best
    if not report.complete:
        # What it is called is looked at in the file: names may have been changed on the way here.
        advice = suggest(form.plain)
        other = (
            f"give weights of '{backbone.name}', or name their network" if _is_library(backbone) else "use one like it"
        )
        what = network_of(form.plain)
        raise InputError(
            f"{source} holds {what} ({form.kind}), which does not fit the model's {_called(backbone)}: {report}; "
            + (f"set model.backbone={advice}" if advice else other)
        )
    state: Any = OrderedDict(form.given)
    state._metadata = getattr(wanted, "_metadata", {})  # versions, without which some networks load nothing
    load_state(backbone, state, source=source)
    # A network of a library has been called by its name.
    network = "" if _is_library(backbone) else f", {network_of(form.plain)}"
    return f"{len(form.given)} tensors loaded {form.told}{network}; left: {listed(form.left)}"


def _of_a_layout(
    backbone: nn.Module, wanted: Mapping[str, Tensor], checkpoint: Mapping[str, Any], source: str
) -> list[_Form]:
    """Return a checkpoint of a known layout by the names that fit best."""
    state = take_backbone(checkpoint, source=source)
    plain = (state.tensors, timm_names(state.tensors))
    forms = [*plain, *({f"model.{name}": t for name, t in form.items()} for form in plain)]
    given = max(forms, key=lambda form: len(form.keys() & wanted.keys()))
    kind = f"layout {state.layout}"
    return [_Form(kind, f"of {kind}", state.tensors, given, Counter(state.left))]


def _by_own_names(
    backbone: nn.Module, wanted: Mapping[str, Tensor], checkpoint: Mapping[str, Any], source: str
) -> list[_Form]:
    """Return what in a checkpoint has this backbone's own names, behind a usual prefix: averages come last."""
    mine = "model." if all(name.startswith("model.") for name in wanted) else ""
    first = next(iter(wanted), "").removeprefix(mine)
    states = states_of(checkpoint)
    forms = []
    for key in in_order(LAYOUTS["torchvision"], states):
        for prefix in ("", "backbone.", "model.", "backbone.model."):
            if prefix + first in states[key]:
                plain = {n.removeprefix(prefix): t for n, t in states[key].items() if n.startswith(prefix)}
                count_batches(plain)
                left = Counter(n.split(".")[0] for n in states[key] if not n.startswith(prefix))
                given = {mine + name: tensor for name, tensor in plain.items()}
                forms.append(_Form("by the names of its own", "by the backbone's own names", plain, given, left))
    return forms


def _published(
    backbone: nn.Module, wanted: Mapping[str, Tensor], checkpoint: Mapping[str, Any], source: str
) -> list[_Form]:
    """Return what the backbone's library makes of names, or sizes, that are not its own."""
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = getattr(backbone, "from_published", None)
    if convert is None:
        return []
    states = states_of(checkpoint)
    plain: list[tuple[Mapping[str, Tensor], Mapping[str, int]]]
    plain = [(states[key], {}) for key in in_order(LAYOUTS["torchvision"], states)[:2]]
    with contextlib.suppress(InputError):
        found = take_backbone(checkpoint, source=source)
        plain.append((found.tensors, found.left))
    kind = "as its library converts it"
    return [
        _Form(kind, kind, tensors, {f"model.{name}": t for name, t in convert(dict(tensors)).items()}, Counter(left))
        for tensors, left in plain
    ]


def _compared(form: _Form, backbone: nn.Module, wanted: Mapping[str, Tensor]) -> tuple[LoadReport, _Form]:
    """Leave what belongs to a classifier, fit the first convolution to the images' channels, and compare the rest."""
    beyond = {f"model.{name}" for name in getattr(backbone, "classifier_names", ())}
    classifier = r"(model\.)?(fc|classifier|heads?|pre_logits)\."
    extra = [n for n in form.given if n not in wanted and (n in beyond or re.match(classifier, n))]
    form.left.update(name.rpartition(".")[0].removeprefix("model.") for name in extra)
    form.given = {name: tensor for name, tensor in form.given.items() if name not in extra}
    if _is_library(backbone):
        for name in form.given.keys() & wanted.keys():
            form.given[name] = _for_channels(form.given[name], wanted[name])
    return LoadReport(form.given, wanted), form


def _for_channels(given: Tensor, wanted: Tensor) -> Tensor:
    """Return a first convolution's weight for colours as it is for images of another number of channels."""
    if given.ndim != 4 or wanted.ndim != 4 or given.shape[1] != 3 or wanted.shape[1] == 3:
        return given
    if given[:, 0].shape != wanted[:, 0].shape:
        return given
    channels = wanted.shape[1]
    if channels == 1:
        return given.sum(dim=1, keepdim=True)
    return given.repeat(1, -(-channels // 3), 1, 1)[:, :channels] * (3 / channels)


def _is_library(backbone: nn.Module) -> bool:
    return hasattr(backbone, "from_published")


def _called(backbone: nn.Module) -> str:
    name = getattr(backbone, "name", None)
    return type(backbone).__name__ + (f" '{name}'" if isinstance(name, str) else "")
