"""The two files of a portable model: what they say is taken strictly, and no name in them leads to code."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import odc
from odc.checkpoints import load_plain, load_state
from odc.errors import DamagedError, InputError
from odc.models.libraries import Library
from odc.portable.heads import Nearest, Trained, build_head, head_spec
from odc.portable.networks import SPEC, Network
from odc.portable.reference import MOST, Reference
from odc.reading import (
    anything,
    fields,
    listing,
    mapping,
    memory,
    optional,
    plain,
    read_json,
    reading,
    real,
    text,
    whole,
)
from odc.registry import BACKBONES, resolve
from odc.results.duplicates import Prints

FOLDER = "model"  # of a model, in that of its clustering
MODEL, WEIGHTS = "model.json", "model.safetensors"
FORMAT = 1
_AGAIN = "make it again (odc cluster)"
_MOST_OPTION = 100_000  # of a number in the config of a part
_MOST_PIXELS = 2048  # a side that a view may make of pictures


def model_folder(folder: Path) -> Path:
    """Return where a model lies: in a folder, or in that of the clustering that it is of."""
    return folder / FOLDER if not (folder / MODEL).is_file() and (folder / FOLDER).is_dir() else folder


def read_model(folder: Path) -> dict[str, Any]:
    """Return the arguments of a :class:`odc.portable.PortableModel` that a folder holds; errors as of its ``load``."""
    said = read_json(folder / MODEL, _model, "does not describe a model", _AGAIN)
    if not (folder / WEIGHTS).is_file():
        raise DamagedError(f"'{folder}' has no {WEIGHTS}: copy both files of a model, or {_AGAIN}")
    with reading(folder / WEIGHTS, "does not hold the weights of a model", _AGAIN):
        size = os.stat(folder / WEIGHTS).st_size
        if size > memory() // 2:
            raise ValueError(f"{size:,} bytes, more than half of the memory")
        return _Reader(said, load_plain(folder / WEIGHTS), str(folder / WEIGHTS)).arguments()


def reference_tensors(reference: Reference) -> dict[str, Tensor]:
    """Return what is kept of the reference images."""
    found = {
        "reference.rows": reference.rows,
        "reference.cluster": torch.from_numpy(reference.cluster),
        "reference.limits": torch.from_numpy(reference.limits),
        "reference.paths": _text_tensor(reference.paths),
    }
    if reference.prints is not None:
        for name in _PRINTS:
            array = getattr(reference.prints, name)
            found[f"reference.{name}"] = torch.from_numpy(array.view(np.int64) if name in _HASHES else array)
    return found


def used_state(head: Trained | Nearest) -> dict[str, Tensor]:
    """Return the state of a head without its memories of the images it was trained on, unless it predicts by these."""
    state = dict(head.state_dict())
    of_images = {name for name in state if name.startswith(_resizing(head))} if _resizing(head) else set()
    kept = {name: tensor for name, tensor in state.items() if name not in of_images}
    if not of_images or not isinstance(head, Trained):
        return state
    width = int(head.spec["given"]["in_channels"])
    if head.spec["neck"] is not None:
        width = next(p for p in head.neck.parameters()).shape[1]
    bare = _loaded(Trained(head.spec, width), kept, "the head")
    x = torch.randn(16, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        try:
            same = torch.equal(bare(x), head.cpu()(x))
        except Exception:  # it needs them
            same = False
    return kept if same else state


def _resizing(module: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name}." for name, part in module.named_modules() if getattr(part, "resizes_on_load", False))


def _loaded(module: Any, tensors: Mapping[str, Tensor], source: str) -> Any:
    """Load a state without memories of images into a part."""
    state = dict(tensors)
    for name, tensor in module.state_dict().items():
        if name.startswith(_resizing(module) or ("\0",)):
            state.setdefault(name, tensor)
    load_state(module, state, source=source, otherwise=_AGAIN)
    return module


def _text_tensor(paths: Sequence[str]) -> Tensor:
    return torch.from_numpy(np.frombuffer("\0".join(paths).encode("utf-8", "surrogateescape"), np.uint8).copy())


def strangers(networks: Sequence[Network], head: Trained | Nearest) -> Iterator[str]:
    """Yield the modules, which are not of this package, of registered parts that a model consists of."""
    parts: list[nn.Module] = [head.head, head.neck] if isinstance(head, Trained) else []
    for network in networks:
        parts += [network.backbone, network.neck]
    for part in parts:
        if not type(part).__module__.startswith(("odc.", "torch.")):
            yield type(part).__module__


_HASHES = ("exact", "rough")
_PRINTS = {"exact": (torch.int64, 2), "rough": (torch.int64, 2), "thumbs": (torch.uint8, 256), "side": (torch.int64, 0)}


def _checked(value: Any, most: float) -> Any:
    """Return a config whose numbers are those of parts that somebody could have trained, and memory can hold."""
    stack = [plain(value)]
    while stack:
        one = stack.pop()
        stack += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        if isinstance(one, int | float) and abs(one) > most:
            raise ValueError(f"no part has an option {one}")
    return value


def _network(value: Any) -> Any:
    found = SPEC(_checked(value, _MOST_OPTION))
    _checked(found["view"], _MOST_PIXELS)
    return found


def _head(value: Any) -> Any:
    return head_spec(_checked(value, _MOST_OPTION))


_SAID = fields(
    {
        "format": whole(),
        "written_by": text,
        "num_clusters": whole(1, 1_000_000),
        "names": mapping(text),
        "networks": listing(_network),
        "head": _head,
        "spaces": listing(whole(1)),
        "value_range": optional(listing(real())),
        "needs": listing(text),
        "about": mapping(plain),
    }
)
_FORMAT = fields({"format": whole(), "written_by": text}, anything)


def _model(value: Any) -> dict[str, Any]:
    """Kind: what :meth:`PortableModel.save` says, of this format."""
    told = _FORMAT(value)
    if told["format"] != FORMAT:
        raise InputError(
            f"the model is of format {told['format']}, written by {told['written_by'][:40]}, and odc {odc.__version__} "
            f"reads format {FORMAT}: use the version that wrote it, or {_AGAIN}"
        )
    said: dict[str, Any] = _SAID(value)
    if said["value_range"] is not None and (len(said["value_range"]) != 2 or None in said["value_range"]):
        raise ValueError("value_range: two numbers are expected")
    if any(not name.isdecimal() or int(name) >= said["num_clusters"] for name in said["names"]):
        raise ValueError("names: of clusters that there are not")
    widths = [network["width"] for network in said["networks"]]
    if not said["spaces"] or (widths and widths != said["spaces"]):
        raise ValueError(f"networks give {widths} numbers, spaces have {said['spaces']}")
    return said


class _Reader:
    """Builds a model of what its two files hold, and takes nothing else."""

    def __init__(self, said: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str) -> None:
        self.said, self.tensors, self.source = said, dict(tensors), source

    def arguments(self) -> dict[str, Any]:
        said, K, D = self.said, self.said["num_clusters"], sum(self.said["spaces"])
        with torch.random.fork_rng(devices=[]):
            try:
                networks = [self.network(i, spec) for i, spec in enumerate(said["networks"])]
                head = self.part("head.", lambda: build_head(said["head"], D), library=False)
            except DamagedError:
                raise
            except InputError as error:
                made_by = f" (the model needs {', '.join(said['needs'])}, of its maker)" if said["needs"] else ""
                raise InputError(f"{error}{made_by}") from error
        quantiles = self.take("quantiles", torch.float32, None)
        reference = self.reference(K, D)
        prototypes = self.take("prototypes", torch.float32, K, D)
        if self.tensors:
            raise ValueError(f"it holds {', '.join(sorted(self.tensors))[:200]}, which nothing here takes")
        if bool((quantiles[1:] < quantiles[:-1]).any()):
            raise ValueError("quantiles are not in order")
        levels = said["value_range"]
        return dict(
            networks=networks,
            head=head,
            spaces=tuple(said["spaces"]),
            num_clusters=K,
            quantiles=quantiles.numpy(),
            prototypes=prototypes.numpy(),
            reference=reference,
            names={int(c): name for c, name in said["names"].items()},
            levels=None if levels is None else (levels[0], levels[1]),
            about=said["about"],
        )

    def network(self, i: int, spec: Mapping[str, Any]) -> Network:
        kind = None if spec["backbone"] is None else resolve(BACKBONES, spec["backbone"])[0]
        library = isinstance(kind, type) and issubclass(kind, Library)
        if kind is not None and {"weights", "pretrained"} & spec["backbone"].keys():
            raise ValueError("networks: a portable model names no other file of weights")
        network: Network = self.part(f"networks.{i}.", lambda: Network(spec), library)
        return network

    def part(self, prefix: str, make: Callable[[], Any], library: bool) -> Any:
        """Return a part with its weights, once it is known not to be larger than these."""
        mine = {
            name.removeprefix(prefix): self.tensors.pop(name) for name in list(self.tensors) if name.startswith(prefix)
        }
        if not library:  # whose networks look at numbers while they are made
            with torch.device("meta"):
                wanted = make().state_dict()
            large, there = (sum(tensor.numel() for tensor in state.values()) for state in (wanted, mine))
            if large > 2 * there + 1_000_000:
                raise ValueError(f"it has {there:,} numbers for {prefix}, which would have {large:,}")
        return _loaded(make(), mine, f"'{self.source}'")

    def reference(self, K: int, D: int) -> Reference:
        rows = self.take("reference.rows", torch.float16, None, D)
        R = len(rows)
        cluster = self.take("reference.cluster", torch.int64, R)
        limits = self.take("reference.limits", torch.float32, K + 1)
        paths = bytes(self.take("reference.paths", torch.uint8, None).numpy()).decode("utf-8", "surrogateescape")
        names = tuple(paths.split("\0"))
        if not 1 <= R <= MOST or len(names) != R:
            raise ValueError(f"there are {R:,} rows and {len(names):,} paths of reference images")
        if not -1 <= int(cluster.min()) <= int(cluster.max()) < K:
            raise ValueError("reference images are in clusters that there are not")
        prints = None
        if "reference.exact" in self.tensors:
            arrays: dict[str, npt.NDArray[Any]] = {}
            for name, (dtype, width) in _PRINTS.items():
                array = self.take(f"reference.{name}", dtype, R, *([width] if width else [])).numpy()
                arrays[name] = array.view(np.uint64) if name in _HASHES else array
            prints = Prints(**arrays)
        return Reference(rows, cluster.numpy(), limits.numpy(), names, prints)

    def take(self, name: str, dtype: torch.dtype, *shape: int | None) -> Tensor:
        tensor = self.tensors.pop(name, None)
        if tensor is None:
            raise ValueError(f"it lacks {name}")
        fits = len(tensor.shape) == len(shape) and all(a in (b, None) for b, a in zip(tensor.shape, shape, strict=True))
        if tensor.dtype != dtype or not fits:
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {dtype} {shape}")
        if bool(tensor.isnan().any()) or (name in ("prototypes", "reference.rows") and bool(tensor.isinf().any())):
            raise ValueError(f"{name} has values that are not finite")
        return tensor
