"""Features that cannot change: computed once for a run instead of at every step, and kept on the disk where asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.logging import print_log
from torch import Tensor

from odc.data.feature_files import read_folder
from odc.data.keys import mix_array
from odc.engine.data import EXTRACT_VIEW, ClusterData, Source
from odc.engine.extract import check_finite, encode, extract, share
from odc.engine.feature_store import stored_features
from odc.models.backbones import Vectors
from odc.models.cluster_model import ClusterModel
from odc.models.necks import AvgPool
from odc.structures import Batch, Comm, FeatureTable, Plan, Stream, derive_seed


@dataclass(frozen=True)
class FeatureCache:
    """Features of the training views, until the labels are made anew."""

    slot: dict[str, Tensor]  # {view: (M, P) int64}, where the features of each row's images are
    z: dict[str, Tensor]  # {view: (S, D) float32} of the S different images (sample and variant)
    encoded: dict[str, int]  # what had to be encoded for it, by a name that tells it from what other caches have

    def lookup(self, streams: Iterable[Stream], rows: dict[str, Batch]) -> dict[tuple[str, str], Tensor]:
        """Return the features of a step, ``{(stream, view): (B, P, D) float32}``."""
        found = {}
        for stream in streams:
            row, same = rows[stream.name].row, dict[tuple[int, int], Tensor]()
            for view in stream.views:
                where = id(self.z[view]), id(self.slot[view])  # views that are alike are looked up once
                if where not in same:
                    slot = self.slot[view].index_select(0, row)
                    # several times as fast on a CPU as indexing by a matrix
                    same[where] = self.z[view].index_select(0, slot.flatten()).unflatten(0, slot.shape)
                found[stream.name, view] = same[where]
        return found


def features_are_fixed(model: ClusterModel) -> bool:
    """Return whether an image's features change neither with a step nor with the batch that the image is in.

    So it is where nothing in backbone and neck trains or is in training mode, and nothing else encodes the images.
    """
    encoder = (*model.backbone.modules(), *model.neck.modules())
    trains = any(p.requires_grad for module in encoder for p in module.parameters(recurse=False))
    # these two do the same in either mode
    changes = any(module.training for module in encoder if not isinstance(module, AvgPool | Vectors))
    return not trains and not changes and model.encodes_alone


class Features:
    """Where the loop gets features from; ``seed`` maps a purpose, an epoch and a chunk to a seed.

    While they cannot change, images are encoded

    - through a view without chance: once for the run, all of them in the order of their ids, whichever labels, steps or
      evaluations want them; views that are alike share this;
    - through a view of chance: once a labelling, augmented by (epoch and chunk of the labelling, view, id, variant),
      until the labels are made anew. Where they never are, a step encodes its images, since one augmentation for a
      whole training would be none.

    They stay in the memory of the model's device. Nothing is saved with a checkpoint: a resumed run computes the same
    again, or reads what ``data.feature_store`` holds of views without chance.
    """

    def __init__(self, runner: Any, data: ClusterData, comm: Comm, seed: Callable[[str, int, int], int]) -> None:
        self.runner, self.data, self.comm, self.seed = runner, data, comm, seed
        # Of all images, by data set and view: {variant: (N, D)}, and the same one below the other
        self._tables: dict[tuple[str, str], dict[int, Tensor]] = {}
        self._joined: dict[str, tuple[list[int], Tensor]] = {}
        self._drawn: tuple[Any, dict[str, Tensor], Tensor] | None = None  # of views of chance, for one labelling
        self._told = False

    def forget(self) -> None:
        """Drop everything: a step may change the features."""
        self._tables, self._joined, self._drawn = {}, {}, None

    @torch.no_grad()
    def extract(
        self,
        model: ClusterModel,
        index: Tensor | None,
        logits_view: str | None,
        at: tuple[int, int] = (0, 0),
        pooled: bool = False,
    ) -> FeatureTable:
        """Extract features of some images, or of all, and where a view is given, the head's logits through it.

        ``at`` are epoch and chunk, which key the augmentation of a view of chance. With ``pooled`` comes what the neck
        sees.
        """
        batch_size = self.data.extract_batch_size
        alike = isinstance(model.neck, AvgPool)  # the neck's features are what it sees
        if not features_are_fixed(model) or (pooled and not alike):
            with self.runner.autocast():
                return extract(
                    model,
                    self.data.train,
                    self.comm,
                    batch_size=batch_size,
                    index=index,
                    logits=None if logits_view is None else model.head.logits,
                    logits_view=logits_view or EXTRACT_VIEW,
                    seed=self.seed("logits", *at),
                    averaged=model.labels_by_average,
                    pooled=pooled,
                )
        fixed = self._table(model, EXTRACT_VIEW)
        index = torch.arange(len(self.data.dataset)) if index is None else index
        mine = share(index, self.comm).to(fixed.device)
        logits, training = None, model.head.training
        if logits_view is not None:
            model.head.eval()
            if self._drawn_anew(logits_view):
                seed = self.seed("logits", *at)
                z = self._encode(model, index, torch.zeros_like(index), [logits_view], seed)[logits_view]
                z = torch.tensor_split(z, self.comm.world)[self.comm.rank]
            else:
                z = self._table(model, logits_view)[mine]
            logits = torch.cat([model.head.logits(part).float() for part in z.split(batch_size)])
            model.head.train(training)
        return FeatureTable(mine, fixed[mine], logits, total=len(index), pooled=fixed[mine] if pooled else None)

    @torch.no_grad()
    def evaluation(self, model: ClusterModel, source: Source) -> FeatureTable:
        """Return this rank's features and scores of all images to evaluate on, as :func:`extract` computes them.

        That is in float32, so what was computed for a training in another precision is not taken.
        """
        batch_size, predict = self.data.extract_batch_size, model.head.predict
        if self.runner.precision != "float32" or not features_are_fixed(model):
            return extract(model, source, self.comm, batch_size=batch_size, logits=predict)
        fixed = self._table(model, EXTRACT_VIEW, "train" if source is self.data.train else "eval")
        mine = share(torch.arange(len(source.dataset)), self.comm).to(fixed.device)
        training = model.head.training
        model.head.eval()
        with model.averaged():
            logits = torch.cat([predict(part).float() for part in fixed[mine].split(batch_size)])
        model.head.train(training)
        return FeatureTable(mine, fixed[mine], logits, total=len(source.dataset))

    @torch.no_grad()
    def cache(self, model: ClusterModel, plan: Plan, labelled: tuple[int, int] | None) -> FeatureCache | None:
        """Return the features of the training views, where a step can take them from here.

        ``labelled`` are epoch and chunk of the last labelling; ``None``: there was none.
        """
        if not features_are_fixed(model):
            return None
        index, variant, N = model.labels.index, model.labels.variant, len(self.data.dataset)
        views = sorted({view for stream in plan.streams for view in stream.views})
        drawn = [view for view in views if self._drawn_anew(view)]
        if drawn and labelled is None:
            if not self._told:
                print_log(
                    f"backbone and neck are frozen, but every step encodes its images: data.views.{drawn[0]} draws, "
                    "and the labels are never made anew; views without chance are encoded once",
                    "current",
                )
            self._told = True
            return None
        slot: dict[str, Tensor] = {}
        z: dict[str, Tensor] = {}
        encoded: dict[str, int] = {}
        for view in views:
            if view in drawn:
                continue
            variants = variant.unique().tolist() if self.data.views[view].varies else [0]
            z[view] = self._table_of_variants(model, view, variants)
            slot[view] = index
            if len(variants) > 1:
                place = torch.searchsorted(torch.tensor(variants, device=variant.device), variant)
                slot[view] = place[:, None] * N + index
            encoded |= {f"{self._alike(view)}/{v}": N for v in variants}
        if drawn and labelled is not None:
            features, of_rows = self._augmented(model, drawn, labelled)
            z |= features
            slot |= dict.fromkeys(drawn, of_rows)
            encoded |= {f"{view}@{labelled[0]}.{labelled[1]}": len(features[view]) for view in drawn}
        return FeatureCache(slot, z, encoded)

    def _augmented(
        self, model: ClusterModel, views: list[str], labelled: tuple[int, int]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the features of the rows' images through views of chance, and where each row's are (M, P)."""
        store, N = model.labels, len(self.data.dataset)
        images, slot = (store.variant[:, None] * N + store.index).unique(return_inverse=True)
        key = views, labelled
        if self._drawn is None or self._drawn[0] != key or not torch.equal(self._drawn[2], images):
            self._drawn = None  # before there are two
            features = self._encode(model, images % N, images // N, views, self.seed("train", *labelled))
            self._drawn = key, features, images
        return self._drawn[1], slot

    def _drawn_anew(self, view: str) -> bool:
        """Return whether a view shows an image otherwise each time; ``extract`` does not, whatever is in it."""
        return self._alike(view) != EXTRACT_VIEW and self.data.views[view].random is not None

    def _alike(self, view: str) -> str:
        """Return the view that stands for all that are written as this one is."""
        mine = self.data.views.get(view)
        names = (EXTRACT_VIEW, *sorted(self.data.views))
        if mine is None or mine.description is None:
            return view
        return next(name for name in names if self.data.views[name].description == mine.description)

    def _table_of_variants(self, model: ClusterModel, view: str, variants: list[int]) -> Tensor:
        """Return the features of all images in these variants, (V·N, D), a variant below the other."""
        if len(variants) == 1:
            return self._table(model, view, variant=variants[0])
        known, joined = self._joined.get(view, ([], None))
        if joined is None or known != variants:
            joined = torch.cat([self._table(model, view, variant=v) for v in variants])
            self._joined[view] = variants, joined
            tables = self._tables["train", self._alike(view)]
            tables.update(zip(variants, joined.split(len(self.data.dataset)), strict=True))  # held once
        return joined

    def _table(self, model: ClusterModel, view: str, where: str = "train", variant: int = 0) -> Tensor:
        """Return the features of all images of a data set through a view without chance, (N, D) float32."""
        view = self._alike(view)
        tables = self._tables.setdefault((where, view), {})
        if variant not in tables:
            source = self.data.train if where == "train" else self.data.eval
            tables[variant] = self._all(model, source, view, variant)
            N, D = tables[variant].shape
            print_log(
                f"features of {N:,} images through the view '{view}', {D:,} each, stay in memory for the run: "
                f"{4 * N * D / 2**20:,.1f} MiB",
                "current",
            )
        return tables[variant]

    def _all(self, model: ClusterModel, source: Source, view: str, variant: int) -> Tensor:
        device = next(model.parameters()).device
        if isinstance(model.backbone, Vectors) and isinstance(model.neck, AvgPool):
            return source.dataset.images().flatten(1).to(device)
        pipeline = self.data.views[view]
        if self.data.feature_store is not None and pipeline.random is None and pipeline.description is not None:
            path = stored_features(
                *(model, source, self.data.feature_store, self.comm),
                batch_size=self.data.extract_batch_size,
                view=view,
                variant=variant,
                precision=self.runner.precision,
            )
            space = read_folder(path)
            source.dataset.note_lost(space.lost_of(space.paths))
            return torch.from_numpy(np.array(space.rows)).to(device)
        everything = torch.arange(len(source.dataset))
        return self._encode(model, everything, torch.full_like(everything, variant), [view], None, source)[view]

    def _encode(
        self,
        model: ClusterModel,
        index: Tensor,
        variant: Tensor,
        views: list[str],
        seed: int | None,
        source: Source | None = None,
    ) -> dict[str, Tensor]:
        """Return the features of images and variants (S,) through views, ``{view: (S, D) float32}``, on every rank.

        The augmentation is keyed by (seed, view, sample, variant): not by the batch or the rank that encodes the image.
        Without a seed, what would be drawn is the same for every view and run, as :func:`extract` has it.
        """
        source = self.data.train if source is None else source
        mine = share(index, self.comm)
        ids, variants = mine.numpy(), share(variant, self.comm).numpy()
        if seed is None:
            keys = dict.fromkeys(views, mix_array(0, ids))
        else:
            keys = {view: mix_array(derive_seed(seed, view), ids, variants) for view in views}
        with self.runner.autocast():
            parts = list(encode(model, source, ids, variants, keys, self.data.extract_batch_size))
            features = {view: torch.cat([z[view] for z in parts]) for view in views}
            for view, z in features.items():
                check_finite(z, mine, len(index), source, view, self.comm)
        return {view: self.comm.gather(z) for view, z in features.items()}
