"""The model that every clustering method trains: backbone, neck, head, and the labels that they train on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from torch import Tensor, nn

from odc.checkpoints import load_plain
from odc.errors import InputError, meant, nearest
from odc.heads.base import ClusterHead
from odc.memory.labels import LabelStore
from odc.models.ema import MovingAverage
from odc.models.loading import load_backbone
from odc.models.necks import pool
from odc.options import parameters
from odc.registry import BACKBONES, HEADS, MODELS, NECKS, build
from odc.structures import Batch, Comm, Losses

Images = dict[tuple[str, str], Tensor]
_FREEZABLE = ("backbone", "neck")


@MODELS.register_module()
class ClusterModel(BaseModel):
    """Backbone → neck → head, with the :class:`LabelStore` that alone owns the pseudo-labels.

    Args:
        backbone: config of a backbone.
        head: config of a head; ``in_channels`` is filled in from the neck, and where the head takes it ``spaces``, the
            widths of the spaces that z consists of: the backbone's where the neck has no weights and keeps its width.
        neck: config of a neck; ``in_channels`` is filled in from the backbone.
        pretrained: checkpoint that :meth:`init_weights`, called before training, loads the backbone from: a path, or
            an ``http(s)://`` or ``torchvision://`` address, of any layout in :data:`odc.models.convert.LAYOUTS`.
        frozen: parts whose parameters do not train: ``"backbone"``, ``"neck"``, or modules in these by their names,
            ``"backbone.layer1"`` say; ``True`` is backbone and neck, ``False`` nothing. Where both are frozen, the loop
            computes features once instead of at every step.
        norm_eval: keep the frozen parts in evaluation mode: no dropout, and batch norm's statistics stay. ``False``
            lets these drift with the batches, as SPICE's public code does.
        ema: decay of an exponential moving average of the trained parameters and of batch norm's statistics, which
            then takes their place whenever images are evaluated; ``None``: no average.

    Raises:
        InputError: for a part that is configured wrongly.
    """

    # z of a step is `features` of its images, and of nothing else in the step: where backbone and neck are frozen, the
    # loop computes it once.
    encodes_alone = True
    # Whether labels are made (`refresh`, `select`) of the features by `averaged` weights, as clusters are, or by those
    # that train.
    labels_by_average = False

    def __init__(
        self,
        backbone: dict[str, Any],
        head: dict[str, Any],
        neck: dict[str, Any] | None = None,
        pretrained: str | None = None,
        frozen: Sequence[str] | bool = (),
        norm_eval: bool = True,
        ema: float | None = None,
    ) -> None:
        super().__init__()
        self.frozen = frozen_parts(frozen)
        if ema is not None and not 0.0 <= ema < 1.0:
            raise InputError(f"model.ema must be a decay in [0, 1), not {ema}")
        self.pretrained = pretrained
        # What maps images to z, but for the weights and where they are from
        self.description = json.dumps([_without_weights(backbone), neck or {}], sort_keys=True, default=_name)
        # Convolutions are faster so, by a third on a CPU; networks without any take no notice.
        self.backbone = build(BACKBONES, backbone).to(memory_format=torch.channels_last)
        width = getattr(self.backbone, "out_channels", None)
        if not isinstance(width, int):
            raise InputError(
                f"backbone '{backbone['type']}' has no out_channels: set it in __init__ to the width of its output"
            )
        self.neck = build(NECKS, neck or {"type": "AvgPool"}, in_channels=width)
        self.head: ClusterHead = build(HEADS, head, **self.given(head))
        if not isinstance(self.head, ClusterHead):
            raise InputError(f"head '{type(self.head).__name__}' must inherit from odc.heads.ClusterHead")
        self.labels = LabelStore(0)
        self.norm_eval = norm_eval
        known = [name for name, _ in self.named_modules() if name.partition(".")[0] in _FREEZABLE]
        for part in self.frozen:
            if part not in known:
                alike = [name for name in known if name.count(".") == str(part).count(".")]  # no deeper than meant
                close = meant(str(part), alike) or nearest(str(part), _FREEZABLE)
                raise InputError(f"model.frozen cannot name '{part}'{close}")
            self.get_submodule(part).requires_grad_(False)
        self.average = None if ema is None else MovingAverage(self._parts(), ema)

    def given(self, head: dict[str, Any]) -> dict[str, Any]:
        """Return what a head need not be told in its config: ``in_channels``, and ``spaces`` where it takes them."""
        width = self.neck.out_channels
        kept = width == self.backbone.out_channels and not any(True for _ in self.neck.parameters())
        spaces = tuple(getattr(self.backbone, "spaces", ())) if kept else ()
        return {"in_channels": width} | ({"spaces": spaces or (width,)} if takes_spaces(head) else {})

    @classmethod
    def fitted(cls, model_cfg: dict[str, Any], num_samples: int) -> tuple[dict[str, Any], str | None]:
        """Return the model's config as it suits so many images, and one line on what was changed (``None``: nothing).

        For a setting that is a number of images, where nobody chose it for these. ``model_cfg`` stays as it is. Here:
        an image has no more neighbours than there are others.
        """
        head = model_cfg["head"]
        wanted = head.get("neighbours")
        if not isinstance(wanted, int) or not 1 < num_samples <= wanted:
            return model_cfg, None
        told = f"{num_samples} images have {num_samples - 1} neighbours each, not {wanted} (model.head.neighbours)"
        return {**model_cfg, "head": {**head, "neighbours": num_samples - 1}}, told

    def train(self, mode: bool = True) -> ClusterModel:
        """Set the mode, training or evaluation; frozen parts stay in evaluation mode unless ``norm_eval`` is False."""
        super().train(mode)
        if self.norm_eval:
            for part in self.frozen:
                self.get_submodule(part).eval()
        return self

    def _parts(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "neck": self.neck, "head": self.head}

    def after_move(self, progress: float) -> None:
        """Let what follows the weights, here their moving average, follow a move of the optimiser.

        ``progress`` is the share of the training, in [0, 1), that was done before the step.
        """
        if self.average is not None:
            self.average.update(self._parts())

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the parts hold their moving averages, where there are any."""
        return nullcontext() if self.average is None else self.average.applied(self._parts())

    def init_weights(self) -> None:
        """Initialise the parts by their own rules, then the backbone from ``pretrained``, where that is given.

        Raises:
            InputError: the checkpoint cannot be read safely, or does not fit the backbone exactly.
        """
        # What replaces all of the backbone's weights need not wait for others to be read, or fetched.
        self.backbone.is_init = self.pretrained is not None
        super().init_weights()
        if self.pretrained is not None:
            source = f"checkpoint '{self.pretrained}'"
            loaded = load_backbone(self.backbone, load_plain(self.pretrained), source)
            print_log(f"backbone from {self.pretrained}: {loaded}", "current")

    def features(self, images: Tensor, pooled: bool = False) -> Tensor:
        """Map images (B, C, H, W) to z (B, D) float32, with ``pooled`` beside what the neck sees (B, D + D').

        Raises:
            InputError: batch norm cannot train on what is one value a channel, a single image say.
        """
        try:
            body = self.backbone(images.contiguous(memory_format=torch.channels_last))
            z: Tensor = self.neck(body)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise InputError(
                f"batch normalisation cannot train on a step of {len(images)} image a process: set "
                "model.head.batch_size to at least 2 images a process"
            ) from error
        return torch.cat([z.float(), pool(body).float()], dim=1) if pooled else z.float()

    def forward(
        self,
        images: Images,
        rows: dict[str, Batch],
        generator: torch.Generator,
        comm: Comm,
        z: Images | None = None,
    ) -> tuple[Losses, dict[str, Batch]]:
        """Compute the losses of one step; all views of all streams pass the backbone in one forward.

        Args:
            images: ``{(stream, view): (B, P, C, H, W) float32}``.
            rows: the rows of each stream, their ``z`` still empty.
            generator: for ``ClusterHead.loss``.
            comm: the other ranks.
            z: ``{(stream, view): (B, P, D) float32}``, where the features are known already; no images are then needed.

        Returns:
            The head's losses, and the batches with ``z`` detached, for ``ClusterHead.update``.
        """
        if z is None:
            z = self.encode(images, comm)
        with torch.autocast(next(iter(z.values())).device.type, enabled=False):
            batches = {
                name: replace(batch, z={view: x for (stream, view), x in z.items() if stream == name})
                for name, batch in rows.items()
            }
            losses = self.head.loss(batches, self.labels.view(), generator, comm)
        return losses, {
            name: replace(batch, z={view: x.detach() for view, x in batch.z.items()}) for name, batch in batches.items()
        }

    def encode(self, images: Images, comm: Comm) -> Images:
        """Map the images of one step to z, ``{(stream, view): (B, P, D) float32}``.

        One forward for each size of image (most methods have one size), so batch norm sees all views together.
        """
        by_shape: dict[torch.Size, list[tuple[str, str]]] = {}
        for key, x in images.items():
            by_shape.setdefault(x.shape[2:], []).append(key)
        z: Images = {}
        for keys in by_shape.values():
            flat = [images[key].flatten(0, 1) for key in keys]
            parts = self.features(torch.cat(flat)).split([len(x) for x in flat])
            z |= {key: part.unflatten(0, images[key].shape[:2]) for key, part in zip(keys, parts, strict=True)}
        return z


def _without_weights(backbone: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in backbone.items() if name not in ("weights", "pretrained")}


def _name(value: Any) -> str:
    return str(getattr(value, "__qualname__", value))


def takes_spaces(head: Any) -> bool:
    """Return whether the config of a head is of one that is told the widths of the spaces that z consists of."""
    kind = head.get("type") if isinstance(head, Mapping) else None
    kind = HEADS.get(kind) if isinstance(kind, str) else kind
    return kind is not None and "spaces" in parameters(kind)


def frozen_parts(frozen: Sequence[str] | bool | None) -> tuple[str, ...]:
    """Return the parts that an option ``frozen`` names: ``True`` is all that can be, ``False`` and ``None`` none."""
    if frozen is None or isinstance(frozen, bool):
        return _FREEZABLE if frozen else ()
    return tuple(frozen)


def unwrap(model: Any) -> ClusterModel:
    """Return the model inside a wrapper for several ranks, or the model itself."""
    inner: ClusterModel = getattr(model, "module", model)
    return inner
