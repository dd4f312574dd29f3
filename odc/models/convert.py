"""Backbones in other projects' checkpoints: their names to ours and back.

A checkpoint of any layout in :data:`LAYOUTS` is brought to one set of names (:func:`take_backbone`): those of
torchvision for ResNets and VGGs, those of timm for vision transformers, without any wrapper's prefix. From these it
goes into a backbone of this package (:mod:`odc.models.loading`) or into a file for another one (:func:`convert`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odc.checkpoints import load_plain, write_tensors
from odc.errors import InputError, nearest
from odc.files import writable

TARGETS = ("odc", "torchvision", "timm")
MARK = "odc_backbone"  # in the meta of a file that holds our backbone and nothing else

_WRAPPERS = {"module", "_orig_mod"}  # DataParallel, DDP; torch.compile
_DEPTHS = {
    (False, (2, 2, 2, 2)): 18,
    (False, (3, 4, 6, 3)): 34,
    (True, (3, 4, 6, 3)): 50,
    (True, (3, 4, 23, 3)): 101,
    (True, (3, 8, 36, 3)): 152,
}
_DEEPEST = 3  # keys above a dictionary of tensors
_VGG_CONVOLUTIONS = {8: 11, 10: 13, 13: 16, 16: 19}
# Names that are not the common ones: patterns, what they become, and a pattern of the names beside which they do.
_RENAMED = (
    (r"^(layer\d+\.\d+)\.shortcut\.", r"\1.downsample.", ""),  # SPICE's ResNet for CIFAR
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", r"patch_embed\.proj\.weight$"),  # DINOv2's training: blocks in chunks
    (r"^(blocks\.\d+\.mlp)\.w12\.", r"\1.fc1.", ""),  # DINOv2's largest: gated
    (r"^(blocks\.\d+\.mlp)\.w3\.", r"\1.fc2.", r"blocks\.(\d+\.)+mlp\.w12\."),
    (r"^pre_logits\.fc1", "classifier.0", r"features\.0\.weight$"),  # timm's VGGs
    (r"^pre_logits\.fc2", "classifier.3", r"features\.0\.weight$"),
)


@dataclass(frozen=True)
class Layout:
    """How a project's checkpoints name a backbone; patterns are of how a name, wrappers left out, begins."""

    shown_by: tuple[str, ...]  # patterns: names are of this layout if each is that of one of them
    # The checkpoint's keys under which the tensors lie, best first; "" is the checkpoint itself, and then they may lie
    # under any other key too, a nested one as well.
    holds: tuple[str, ...] = ("state_dict", "model", "")
    prefixes: tuple[str, ...] = ("",)  # what the backbone's names start with, best first
    heads: str = r"(?!)"  # pattern of names under the prefix that are no backbone's; by default none are

    def fits(self, names: Iterable[str]) -> bool:
        """Return whether names are of this layout."""
        return all(any(re.match(pattern, name) for name in names) for pattern in self.shown_by)


_TIMM = r"(pre_logits\.fc1|conv_stem|stem\.0|features\.conv0)\.weight$"  # of networks that are no transformers
_TORCHVISION = r"(features\.0|features\.0\.0|features\.conv0|conv_proj)\.weight$"  # that are no ResNets
OWN = "own"  # names of whatever network it is, all of them: which are a classifier's, that network has to say
# The first that fits is the one; docs/checkpoints.md says whose they are.
LAYOUTS: dict[str, Layout] = {
    "dino": Layout((r"backbone\.",), ("teacher", "student"), ("backbone.",), r"(head|fc)\."),
    "spice-semi": Layout((r"(model\.)?conv1\.weight$",), ("eval_model", "train_model"), heads=r"fc\."),
    "odc": Layout((r"labels\.index$", r"backbone\."), ("state_dict", ""), ("backbone.",)),
    "openselfsup": Layout((r"backbone\.",), prefixes=("backbone.",)),
    "spice": Layout((r"feature_module\.",), ("state_dict", ""), ("feature_module.",), r"(fc|mlp)\."),
    "moco": Layout((r"encoder_q\.",), prefixes=("encoder_q.backbone.", "encoder_q."), heads=r"(fc|mlp)\."),
    "deepercluster": Layout((r"body\.features\.",), prefixes=("body.",)),
    "deepcluster": Layout(
        (r"features\.0\.weight$", r"(top_layer|sobel\.0)\.weight$"), heads=r"(top_layer|sobel|pred_layer)\."
    ),
    "dinov2": Layout((r"patch_embed\.proj\.weight$", r"(mask_token|register_tokens)$"), heads=r"head\."),
    "timm": Layout(
        (rf"patch_embed\.proj\.weight$|{_TIMM}", rf"blocks\.|{_TIMM}"),
        heads=r"(fc|classifier|head|head\.fc)\.(weight|bias)$",
    ),
    "torchvision": Layout(
        (rf"conv1\.weight$|{_TORCHVISION}", rf"layer1\.0\.conv1\.weight$|{_TORCHVISION}"),
        heads=r"(fc|heads|classifier)\.(head\.)?(weight|bias)$",
    ),
    OWN: Layout(()),
}


@dataclass(frozen=True)
class BackboneState:
    """A backbone's tensors, by torchvision's names (transformers: timm's)."""

    layout: str  # a key of LAYOUTS
    prefix: str  # what the names began with in the checkpoint
    tensors: dict[str, Tensor]
    taken: int  # of them; the others are batch norm's counters, which files older than torch 0.4.1 lack
    left: Mapping[str, int]  # what was not taken: prefix to number of tensors, 0 for an entry that holds none

    def __str__(self) -> str:
        added = len(self.tensors) - self.taken
        return (
            f"layout {self.layout} ({self.prefix}*): {self.taken} tensors taken, {network_of(self.tensors)}"
            + (f", {added} counters of batch norm added" if added > 0 else "")
            + f"; left: {listed(self.left)}"
        )


def listed(left: Mapping[str, int]) -> str:
    """Return ``"fc (2), queue (1), epoch"`` for prefixes and their numbers of tensors."""
    return ", ".join(f"{name} ({count})" if count else name for name, count in left.items()) or "nothing"


def states_of(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Return the dictionaries of tensors in a checkpoint, by their keys joined by ``/``; wrappers left out of names."""
    states: dict[str, dict[str, Tensor]] = {}

    def visit(path: tuple[str, ...], value: Mapping[Any, Any]) -> None:
        named = {str(k): v for k, v in value.items() if isinstance(v, Tensor)}
        tensors = {".".join(part for part in k.split(".") if part not in _WRAPPERS): v for k, v in named.items()}
        if tensors:
            states["/".join(path)] = tensors
        for key, inner in value.items():
            if isinstance(key, str) and isinstance(inner, Mapping) and len(path) < _DEEPEST:  # optimisers have numbers
                visit((*path, key), inner)

    visit((), checkpoint)
    return states


def _places(layout: Layout, states: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """Return the keys of the states that may be of a layout, best first; averages come after what they are of."""
    if not layout.shown_by:
        return sorted(in_order(layout, states), key=lambda key: -len(states[key]))
    return sorted(in_order(layout, states), key=lambda key: not layout.fits(states[key]))


def in_order(layout: Layout, states: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """Return the keys under which a layout's tensors may lie, best first."""
    places = [key for key in layout.holds if key in states]
    if "" in layout.holds:
        others = [key for key in states if key not in places]
        places += sorted(others, key=lambda key: bool(re.search("ema|average|momentum|student|train_model", key)))
    return places


def _recognise(checkpoint: Mapping[str, Any], states: Mapping[str, Mapping[str, Tensor]], source: str) -> str:
    meta = checkpoint.get("meta")
    if isinstance(meta, Mapping) and MARK in meta:
        return "odc"
    for name, layout in LAYOUTS.items():
        if any(layout.fits(states[key]) for key in _places(layout, states)):
            return name
    raise InputError(f"{source} holds no backbone: it holds no tensors, but {', '.join(checkpoint)}")


def take_backbone(
    checkpoint: Mapping[str, Any], layout: str | None = None, source: str = "the checkpoint"
) -> BackboneState:
    """Take the backbone out of a checkpoint.

    Args:
        checkpoint: as ``torch.load`` gives it: names to tensors, or a dictionary that holds such.
        layout: a key of :data:`LAYOUTS`; by default the one that the names show.
        source: what to call the checkpoint in messages.

    Raises:
        InputError: there is no such layout, or the checkpoint holds no backbone of it.
    """
    if layout is not None and layout not in LAYOUTS:
        raise InputError(f"no layout '{layout}'{nearest(layout, LAYOUTS)}")
    states = states_of(checkpoint)
    name = layout or _recognise(checkpoint, states, source)
    rules = LAYOUTS[name]
    for key in _places(rules, states):
        prefix = next((p for p in rules.prefixes if any(n.startswith(p) for n in states[key])), None)
        if prefix is not None:
            break
    else:
        wanted = " or ".join(f"{p}*" for p in rules.prefixes)
        raise InputError(
            f"{source} has no {wanted} under {' or '.join(repr(k) for k in rules.holds if k) or 'its names'}, so it "
            f"is not of the layout {name}"
        )
    if all(n.startswith(f"{prefix}model.") for n in states[key] if n.startswith(prefix)):
        prefix += "model."  # of a backbone that wraps another project's model
    mine: dict[str, Tensor] = {}
    left: Counter[str] = Counter()
    for full, tensor in states[key].items():
        inner = full.removeprefix(prefix)
        if full.startswith(prefix) and not re.match(rules.heads, inner) and (inner != "mask_token" or name == OWN):
            mine[inner] = tensor
        else:
            left[prefix + inner.split(".")[0] if full.startswith(prefix) else full.split(".")[0]] += 1
    linear = [re.fullmatch(r"classifier\.(\d+)\.weight", n) for n, tensor in mine.items() if tensor.ndim == 2]
    if name == "torchvision" and any(linear):  # the last of them is the classifier proper
        last = f"classifier.{max(int(match[1]) for match in linear if match)}"
        left[last] = sum(mine.pop(f"{last}.{kind}", None) is not None for kind in ("weight", "bias"))
    for entry, value in checkpoint.items():
        others = [k for k in states if k != key and k.split("/")[0] == str(entry)]
        if not isinstance(value, Tensor) and (others or key.split("/")[0] != str(entry)):
            left[str(entry)] += sum(len(states[k]) for k in others)
    if not mine:
        raise InputError(f"{source} holds no backbone, only {listed(left)}")
    return BackboneState(name, prefix, _common_names(mine), len(mine), left)


def _common_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by torchvision's names, those of transformers by timm's.

    Raises:
        InputError: two tensors would have one name.
    """
    rules = [(old, new) for old, new, beside in _RENAMED if any(re.match(beside, name) for name in tensors)]
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, common in rules:
            new = re.sub(pattern, common, new)
        if new in out:
            raise InputError(f"two tensors would both be called '{new}', '{name}' and another: it is no such network")
        # The linear layers of timm's VGGs are convolutions.
        out[new] = tensor.flatten(1) if name.startswith("pre_logits.fc") and tensor.ndim == 4 else tensor
    if {"register_tokens", "cls_token", "pos_embed"} <= out.keys():
        # timm has no position for the class token of these: it is added once and for all.
        out["reg_token"] = out.pop("register_tokens")
        out["cls_token"] = out["cls_token"] + out["pos_embed"][:, :1]
        out["pos_embed"] = out["pos_embed"][:, 1:]
    count_batches(out)
    return out


def count_batches(tensors: dict[str, Tensor]) -> None:
    """Add batch norm's counters where they are not: files older than torch 0.4.1 lack them."""
    for name in [name for name in tensors if name.endswith(".running_mean")]:
        tensors.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))


def _resnet(tensors: Mapping[str, Tensor]) -> tuple[int | None, int, int, int] | None:
    """Return depth (``None``: no usual one), kernel of the stem, channels and width, or ``None`` for other networks."""
    stem = tensors.get("conv1.weight")
    if stem is None or stem.ndim != 4 or "layer4.0.conv1.weight" not in tensors:
        return None
    blocks = Counter(m[1] for m in (re.fullmatch(r"layer(\d)\.\d+\.conv1\.weight", name) for name in tensors) if m)
    counts = (blocks["1"], blocks["2"], blocks["3"], blocks["4"])
    usual = tensors["layer1.0.conv1.weight"].shape[0] == stem.shape[0]  # not so in wide ResNets and ResNeXts
    depth = _DEPTHS.get(("layer1.0.conv3.weight" in tensors, counts)) if usual else None
    return depth, stem.shape[2], stem.shape[1], stem.shape[0]


def network_of(tensors: Mapping[str, Tensor]) -> str:
    """Return in words which network a backbone's tensors are of: kind, depth, stem, channels."""
    if found := _resnet(tensors):
        depth, kernel, channels, width = found
        kind = f"a ResNet-{depth}" if depth else "a kind of ResNet"
        wide = f" of width {width}" if width != 64 else ""
        return f"{kind}{wide} with a {kernel}x{kernel} stem for {_images(channels)}"
    convolutions = [t for n, t in tensors.items() if re.fullmatch(r"features\.\d+\.weight", n) and t.ndim == 4]
    if convolutions:
        first = convolutions[0]
        norm = " with batch norm" if "features.1.running_mean" in tensors else ""
        depth = _VGG_CONVOLUTIONS.get(len(convolutions))
        kind = f"a VGG-{depth}" if depth and first.shape[2] == 3 else "an AlexNet" if first.shape[2] == 11 else "a net"
        return f"{kind}{norm} for {_images(first.shape[1])}"
    patch = tensors.get("patch_embed.proj.weight")
    if patch is not None and patch.ndim == 4:
        blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
        return f"a transformer of {len(blocks)} blocks, width {patch.shape[0]}, patches of {patch.shape[2]} px"
    small = [t for n, t in tensors.items() if re.fullmatch(r"layers\.\d+\.weight", n) and t.ndim == 4]
    if small:
        return f"a ConvNet of {len(small)} convolutions for {_images(small[0].shape[1])}"
    return "a network without a name here"


def _images(channels: int) -> str:
    known = {1: "grey images", 2: "two gradients (Sobel)", 3: "colour images"}
    return known.get(channels, f"images of {channels} channels")


def suggest(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the config of a backbone of this package that takes the tensors, ``None`` where that is not certain."""
    depth, kernel, channels, width = _resnet(tensors) or (None, 0, 0, 0)
    if depth in (18, 34, 50) and kernel in (3, 7):
        stem = "'imagenet'" if kernel == 7 else "'cifar' (or 'stl')"
        more = (f", in_channels={channels}" if channels != 3 else "") + (f", width={width}" if width != 64 else "")
        return f"dict(type='ResNet', depth={depth}, stem={stem}{more})"
    if network_of(tensors).startswith("a VGG-16") and "classifier.3.weight" in tensors:
        name = "vgg16_bn" if "features.1.running_mean" in tensors else "vgg16"
        return f"dict(type='TimmBackbone', name='{name}', in_channels={tensors['features.0.weight'].shape[1]})"
    return None


def timm_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by timm's names, which differ from torchvision's for the linear layers of VGGs."""
    out = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"classifier\.([03])\.(weight|bias)", name)
        if match and "features.0.weight" in tensors:
            side = 7 if match[1] == "0" else 1
            if match[2] == "weight":
                tensor = tensor.unflatten(1, (tensor.shape[1] // side**2, side, side))
            name = f"pre_logits.fc{1 if match[1] == '0' else 2}.{match[2]}"
        out[name] = tensor
    return out


def rename(state: BackboneState, to: str = "odc", source: str = "the checkpoint") -> dict[str, Tensor]:
    """Return a backbone's tensors, each with memory of its own, by the names of a project.

    Args:
        state: of :func:`take_backbone`.
        to: ``"odc"``: ``backbone.*`` for networks of our ``ResNet``'s and ``ConvNet``'s names, ``backbone.model.*``
            for all others, as ``TorchvisionBackbone`` and ``TimmBackbone`` have it; ``"torchvision"`` or ``"timm"``:
            plain names without a classifier.
        source: what to call the checkpoint in messages.

    Raises:
        InputError: for an unknown target, or one that has no names for such a network.
    """
    if to not in TARGETS:
        raise InputError(f"a checkpoint is written for {', '.join(TARGETS)}, not for '{to}'{nearest(to, TARGETS)}")
    tensors = state.tensors
    resnet = "layer1.0.conv1.weight" in tensors
    vgg = network_of(tensors).startswith("a VGG")
    # DeepCluster's AlexNet has torchvision's names, but is wider and has batch norm.
    fits = LAYOUTS[to].fits(tensors) and not state.layout.startswith("deep")
    if to == "odc":
        ours = resnet or any(name.startswith("layers.") for name in tensors)
        named = {f"backbone.{'' if ours else 'model.'}{name}": tensor for name, tensor in tensors.items()}
    elif vgg and to == "timm":
        named = timm_names(tensors)
    elif resnet or vgg or fits or state.layout in (to, OWN):
        named = dict(tensors)
    else:
        raise InputError(f"{source} is {network_of(tensors)}: {to} has no such names; write it with --to odc")
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in named.items()}


def convert(src: str | Path, dst: str | Path, *, layout: str | None = None, to: str = "odc") -> str:
    """Write the backbone of a checkpoint by other names; return what was taken, left and written, in two lines.

    Args:
        src: checkpoint of a layout in :data:`LAYOUTS`, read without running code from it.
        dst: file to write, ``.pth`` or ``.safetensors``.
        layout: of ``src``; by default the one that its names show.
        to: ``"odc"``, for ``model.pretrained`` of a config, ``"torchvision"`` or ``"timm"``.

    Raises:
        InputError: ``src`` cannot be read safely or holds no tensors, ``to`` has no names for its network, or
            ``dst`` has another ending, is ``src``, or cannot be written.
    """
    path = Path(dst)
    if path.suffix not in (".pth", ".safetensors"):
        raise InputError(f"'{dst}' ends in neither .pth nor .safetensors: the ending says which of the two to write")
    if path.is_dir() or (path.exists() and Path(src).exists() and path.samefile(src)):
        what = "a folder" if path.is_dir() else "the checkpoint itself"
        raise InputError(f"'{dst}' is {what}: write to another file")
    source = f"checkpoint '{src}'"
    state = take_backbone(load_plain(src), layout, source)
    tensors = rename(state, to, source)
    writable(path.parent)
    nested = to == "odc" and path.suffix == ".pth"
    write_tensors(path, {"state_dict": tensors, "meta": {MARK: network_of(state.tensors)}} if nested else tensors)
    backbone = suggest(state.tensors)
    use = f"; use it with model.pretrained='{dst}'" + (f", model.backbone={backbone}" if backbone else "")
    return f"{src}: {state}\n{dst}: {len(tensors)} tensors by the names of {to}{use if to == 'odc' else ''}"
