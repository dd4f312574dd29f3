"""Where features come from that are not learnt here: one spelling for every command that takes them.

======================================  ============================================================================
``dinov2-small``                        a short name of :mod:`odc.models.pretrained`; fetched where it is not there yet
``timm:NAME``, ``torchvision:NAME``     a network of that library with the weights that it publishes
``timm:NAME@FILE``                      the same network with weights in a file; nothing is fetched
``FILE.npz``, ``FILE.parquet``, ...     features that are there already: all that the data set ``Features`` reads
``FILE.pth``                            a checkpoint of this package: its backbone, pooled, and its view ``extract``
======================================  ============================================================================

A short name takes ``@FILE``, too. Several, joined by ``+``, are several spaces of features: ``dinov2-small+clip-b16``.
"""

from __future__ import annotations

import ast
import hashlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine import Config

from odc.apis import extract_features, load_runner, prepare_config
from odc.checkpoints import load_plain
from odc.data.datasets import ImageDataset, build_dataset
from odc.data.embeddings import check_ending
from odc.engine.comm import get_comm
from odc.engine.data import EXTRACT_VIEW
from odc.engine.feature_store import write_features
from odc.errors import InputError
from odc.logs import warn
from odc.models.cluster_model import ClusterModel, unwrap
from odc.models.pretrained import backbone_of, describe, timm_weights
from odc.registry import MODELS, build

SCRATCH = "scratch"  # no features: networks from random weights
_LIBRARIES = ("timm:", "torchvision:")
ENDINGS = (".npz", ".parquet")  # of a table of features, that holds names, too
_FEATURES = (*ENDINGS, ".npy")
_CHECKPOINTS = (".pth", ".pt")
_HEAD = {"type": "ClassifierHead", "num_classes": 2}  # a model has one; nothing asks this one
_LOOKED_AT = 100  # pictures, for their size
_WORTH = 96  # pixels a side from which a network for photographs sees enough without enlarging them


@dataclass(frozen=True)
class Space:
    """One space of features, and what decides it besides the pictures.

    Without a ``model`` the features lie in ``file`` already.
    """

    spelling: str  # as somebody has written it
    file: str | None = None  # that it depends on: weights, a checkpoint, or the features themselves
    digest: str | None = None  # hash of that file
    # Config of the network, ``backbone`` and where needed ``pretrained``, and of the view that it sees pictures by.
    model: Mapping[str, Any] | None = None
    view: tuple[Mapping[str, Any], ...] = ()
    size: int | None = None  # pixels a side that the network sees, where the weights' description says it

    @property
    def title(self) -> str:
        """What a person calls it: the spelling, less folders, and the beginning of the file's hash."""
        if self.file is None:
            return self.spelling
        name = self.spelling.replace(self.file, Path(self.file).name)
        return f"{name} (SHA-256 {self.digest or ''})"

    def decides(self) -> list[Any]:
        """Return what decides the features, the pictures apart: not where files lie, but what is in them."""
        model = None if self.model is None else {key: _less(part, self.file) for key, part in self.model.items()}
        return [model, [dict(transform) for transform in self.view], self.digest]


def _less(part: Any, file: str | None) -> Any:
    """Return a part of a config without the path of a file."""
    if isinstance(part, Mapping):
        return {key: _less(value, file) for key, value in part.items()}
    return None if file is not None and part == file else part


def read_source(source: str, size: int | None = None) -> tuple[Space, ...]:
    """Return the spaces that a source spells; ``size`` is the side, in pixels, at which pictures are seen.

    Raises:
        InputError: for an unknown name, a file that is missing or none of those above, or a size where no picture is
            looked at.
    """
    if size is not None and size < 1:
        raise InputError(f"--size must be at least 1 pixel, not {size}")
    spaces = tuple(_space(part, size) for part in _parts(source))
    if size is not None and all(space.model is None for space in spaces):
        raise InputError(f"--size {size} is for networks that look at pictures: {source} is there already")
    return spaces


def _parts(source: str) -> list[str]:
    """Split at ``+``, but not within the name of a file that has one."""
    parts = [""]
    for piece in source.split("+"):
        joined = f"{parts[-1]}+{piece}" if parts[-1] else piece
        there = Path(joined.partition("@")[2] or joined).exists()
        if parts[-1] and not there:
            parts.append(piece)
        else:
            parts[-1] = joined
    if not all(parts):
        raise InputError(f"'{source}' has nothing before or after a '+': two spaces are written A+B")
    return parts


def _space(text: str, size: int | None) -> Space:
    path = Path(text)
    if not path.exists() and (text.startswith(_LIBRARIES) or "@" in text or not _is_path(path)):
        return _of_network(text, size)
    if not path.exists():
        raise InputError(f"'{text}' does not exist (looked at {path.absolute()}): it would be features or a checkpoint")
    if path.suffix in _CHECKPOINTS:
        return _of_checkpoint(text)
    return Space(text, text, digest(text))


def _is_path(path: Path) -> bool:
    return len(path.parts) > 1 or path.suffix in (*_FEATURES, *_CHECKPOINTS)


def _of_network(text: str, size: int | None) -> Space:
    backbone = backbone_of(text)
    told = describe(backbone, size)
    if size is not None and _takes_one_size(backbone):
        backbone["image_size"] = size
    file = backbone.get("weights")
    view = tuple(told.transforms())
    return Space(text, file, None if file is None else digest(file), {"backbone": backbone}, view, told.size)


def _takes_one_size(backbone: Mapping[str, Any]) -> bool:
    """Return whether a network must be told the size of its images, as most transformers."""
    if backbone["type"] == "TimmBackbone":
        return bool(timm_weights(backbone["name"]).get("fixed_input_size"))
    return str(backbone["name"]).startswith(("vit_", "maxvit_"))


def digest(path: str | Path) -> str:
    """Return 16 hex digits of the SHA-256 of a file, or of the names and contents of all files in a folder.

    Raises:
        InputError: there is no such file.
    """
    path, found = Path(path), hashlib.sha256()
    if not path.exists():
        raise InputError(f"'{path}' does not exist (looked at {path.absolute()})")
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        if path.is_dir():
            found.update(f"{file.relative_to(path)}\0".encode("utf-8", "surrogateescape"))
        with file.open("rb") as opened:
            while piece := opened.read(1 << 20):
                found.update(piece)
    return found.hexdigest()[:16]


def _of_checkpoint(text: str) -> Space:
    """Return what a checkpoint of this package describes itself as: its config is in it, as text."""
    meta = load_plain(text).get("meta")
    written = meta.get("cfg") if isinstance(meta, Mapping) else None
    if not isinstance(written, str):
        raise InputError(
            f"'{text}' does not say which network it is of, as a checkpoint of a training here does: write "
            f"timm:NAME@{text} or torchvision:NAME@{text}"
        )
    config = literal_config(written, text)
    try:
        backbone, view = config["model"]["backbone"], config["data"]["views"]["extract"]
    except (KeyError, TypeError):
        raise InputError(f"the config in '{text}' has no model.backbone, or no data.views.extract") from None
    if backbone.get("type") == "Vectors":
        raise InputError(f"'{text}' is of a training on features, not on pictures: give the features themselves")
    # The weights are in the checkpoint, whatever they began from.
    model = {"backbone": {k: v for k, v in backbone.items() if k not in ("pretrained", "weights")}, "pretrained": text}
    return Space(text, text, digest(text), model, tuple(view))


def literal_config(text: str, where: str) -> dict[str, Any]:
    """Return the values of a config as :mod:`mmengine` writes it: assignments of plain values and calls of ``dict``.

    Nothing is run, so it may come from a stranger.

    Raises:
        InputError: there is anything else in it.
    """

    def is_dict(node: ast.expr) -> bool:
        return isinstance(node, ast.Dict) and None not in node.keys

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict":
            first = node.args or [ast.Dict([], [])]  # dict({...}) is written where keys are no names
            if len(first) > 1 or not is_dict(first[0]) or any(keyword.arg is None for keyword in node.keywords):
                raise ValueError("a dictionary is unpacked")
            return {**value(first[0]), **{str(keyword.arg): value(keyword.value) for keyword in node.keywords}}
        if isinstance(node, ast.List | ast.Tuple):
            found = [value(element) for element in node.elts]
            return found if isinstance(node, ast.List) else tuple(found)
        if isinstance(node, ast.Dict):
            return {value(k) if k else None: value(v) for k, v in zip(node.keys, node.values, strict=True)}
        return ast.literal_eval(node)

    try:
        tree = ast.parse(text)
        return {
            target.id: value(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise InputError(f"the config in '{where}' is not one that a training here writes: {error}") from None


# --------------------------------------------------------------------------------------------------------- extraction


def extraction_config(
    space: Space,
    pictures: Mapping[str, Any],
    work_dir: str | Path,
    *,
    strict: bool = False,
    launcher: str = "none",
) -> Config:
    """Return the prepared config of a network that is only looked at, and of the pictures that it is shown.

    Raises:
        InputError: the pictures cannot be read.
    """
    assert space.model is not None
    view = view_of(space, len(build_dataset(pictures).image(0)))
    config = {
        "model": {"type": "ClusterModel", **space.model, "head": _HEAD, "frozen": ["backbone", "neck"]},
        "data": {"dataset": dict(pictures), "views": {"extract": view}, "extract_batch_size": 64},
        "train_cfg": {"max_epochs": 1},
        "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.1}},
        "randomness": {"seed": 0},
        "_source": space.title,
    }
    return prepare_config(Config(config), work_dir=work_dir, strict=strict, launcher=launcher)


def view_of(space: Space, channels: int) -> list[dict[str, Any]]:
    """Return the transforms by which the network of a space sees pictures of so many channels."""
    colour = channels == 1 and space.size is not None
    grey = [{"type": "Grayscale", "num_output_channels": 3}] if colour else []
    return [*grey, *(dict(transform) for transform in space.view)]


def network_of(space: Space) -> ClusterModel:
    """Return the network of a space, in evaluation mode, with its weights, fetched where they are not there.

    Raises:
        InputError: the weights cannot be had, or are not those of this network.
    """
    model: ClusterModel = build(MODELS, {"type": "ClusterModel", **(space.model or {}), "head": _HEAD})
    model.init_weights()
    model.eval()
    return model


def load_network(space: Space) -> None:
    """Load the network of a space, if it has one: so that what is wrong with it is said before anything else is done.

    Raises:
        InputError: as :func:`network_of`.
    """
    if space.model is not None:
        network_of(space)


def extract_space(space: Space, config: Config, out: Path, watch: Callable[[int, int], None] | None = None) -> None:
    """Write the features that a prepared ``config`` gives, to a ``.npz`` or ``.parquet`` file or to a folder.

    An extraction to a folder goes on where it was interrupted, and is not done again; ``watch`` is told how many of how
    many images of it are done.
    """
    if out.suffix in ENDINGS:
        extract_features(config, None, out)
        return
    runner, data = load_runner(config, None)
    try:
        meta = {"source": space.title, "view": EXTRACT_VIEW}
        model, size = unwrap(runner.model), data.extract_batch_size
        data.train.watch = watch
        write_features(model, data.train, out, get_comm(), batch_size=size, meta=meta)
    finally:
        data.close()


def extract_source(
    source: str,
    pictures: Mapping[str, Any],
    out: str | Path,
    size: int | None = None,
    work_dir: str | Path | None = None,
    strict: bool = False,
    launcher: str = "none",
) -> None:
    """Write the features that a source gives of a data set, ``data.dataset`` of a config, to a file or a folder.

    Raises:
        InputError: the source is unknown, is there already, or has several spaces.
    """
    (space, *others), out = read_source(source, size), Path(out)
    if others or space.model is None:
        told = "are several spaces" if others else "is there already"
        raise InputError(f"--features {source} {told}: extract the features of one network at a time")
    if out.suffix and not out.is_dir():
        check_ending(out)
    for line in enlarged([space], build_dataset(pictures)):
        warn(line)
    config = extraction_config(space, pictures, work_dir or "work_dirs/extract", strict=strict, launcher=launcher)
    extract_space(space, config, out)


def typical_side(dataset: ImageDataset) -> int:
    """Return the shorter side of the pictures in pixels: the median of some of them, evenly spaced."""
    N = len(dataset)
    shown = [dataset.image(i).shape[1:] for i in range(0, N, max(1, N // _LOOKED_AT))]
    return int(statistics.median(min(shape) for shape in shown))


def enlarged(spaces: Sequence[Space], dataset: ImageDataset) -> list[str]:
    """Return a line for each network that sees pictures larger than they are: that takes time and adds nothing."""
    side = typical_side(dataset) if any(space.size is not None for space in spaces) else 0
    lines = []
    for space in spaces:
        if space.size is None or side >= space.size:
            continue
        line = f"{space.spelling} sees pictures at {space.size} pixels; half of them have a shorter side of {side} or "
        line += "less, and are enlarged"
        if side >= _WORTH:
            line += f": --size {side} takes them as they are, and {(side / space.size) ** 2:.0%} of the time"
        lines.append(line)
    return lines
