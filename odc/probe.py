"""Probe a checkpoint, or the features that it gave: what a config needs for :mod:`odc.evaluation.probes`."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine import Config

from odc.apis import embed, load_runner
from odc.data.datasets import ImageDataset, build_dataset
from odc.data.embeddings import Embeddings
from odc.engine.data import ClusterData
from odc.errors import InputError
from odc.evaluation.probes import HELD_OUT, ProbeReport, run_probes, stratified_split
from odc.files import writable_file, write_text
from odc.registry import check_arguments
from odc.structures import make_generator


def probe(
    cfg: Config,
    checkpoint: str | None = None,
    *,
    features: str | Path | None = None,
    test_features: str | Path | None = None,
    drop_neck: bool = False,
    out: str | Path | None = None,
) -> ProbeReport:
    """Probe features by kNN and by linear classifiers with all and with few labels; see :mod:`odc.evaluation.probes`.

    Probes train on ``data.dataset`` and are tested on ``data.eval_dataset``. Where that is not set, or is the same
    images, a fifth of ``data.dataset`` is held out for the test: of every class, drawn by the seed.

    Args:
        cfg: a prepared config.
        checkpoint: model to extract the features with; or else
        features: file of the features of ``data.dataset``, as :func:`extract_features` writes it, and
        test_features: file of those of ``data.eval_dataset``.
        drop_neck: see :func:`extract_features`; for a checkpoint only.
        out: JSON file to write.

    Raises:
        InputError: neither or both of ``checkpoint`` and ``features``, features of another data set, no labels, or
            as :func:`extract_features`.
    """
    if (checkpoint is None) == (features is None):
        raise InputError("probe either a checkpoint or the features in a file (--features): give one of the two")
    if checkpoint is not None and test_features is not None:
        raise InputError("--test-features needs --features: of a checkpoint, the test features are extracted")
    if features is not None and drop_neck:
        raise InputError("--drop-neck needs a checkpoint: the features in a file stay as odc extract wrote them")
    if out is not None:
        writable_file(out)
    if checkpoint is not None:
        runner, data = load_runner(cfg, checkpoint)
        train, test = data.train.dataset, data.eval.dataset
        separate = _check_labels(train, test)
        try:
            tables = [embed(runner, data, s, drop_neck) for s in (data.train, data.eval)[: 1 + separate]]
        finally:
            data.close()
    else:
        check_arguments(ClusterData, cfg.data, "data")
        train = build_dataset(cfg.data.dataset)
        test = build_dataset(cfg.data.eval_dataset) if cfg.data.get("eval_dataset") else train
        separate = _check_labels(train, test)
        if separate and test_features is None:
            raise InputError(
                "the config has a data.eval_dataset: give its features too (--test-features, odc extract --split "
                "eval), or set data.eval_dataset=None to hold out a part of data.dataset"
            )
        if not separate and test_features is not None:
            raise InputError(f"'{test_features}' is for data.eval_dataset, which the config does not have: set it")
        tables = [Embeddings.load(file) for file in (features, test_features) if file is not None]
    x, y = tables[0].for_dataset(train), torch.from_numpy(train.targets)
    generator = make_generator(cfg.randomness.seed, "probe")
    if separate:
        queries, wanted = tables[1].for_dataset(test), torch.from_numpy(test.targets)
        for name, value in tables[0].meta.items():
            if name != "config" and value != tables[1].meta.get(name):
                raise InputError(
                    f"the {name} of the features in '{features}' is '{value}', but in '{test_features}' it is "
                    f"'{tables[1].meta.get(name)}': extract both in the same way"
                )
        told = f"{int((wanted >= 0).sum()):,} images {test.origin} (data.eval_dataset), fingerprint {test.fingerprint}"
    else:
        kept, held = stratified_split(y, HELD_OUT, generator)
        x, y, queries, wanted = x[kept], y[kept], x[held], y[held]
        told = (
            f"the other {len(held):,}, {HELD_OUT:.0%} of every class, drawn by seed {cfg.randomness.seed} "
            "(no data.eval_dataset of other images)"
        )
    meta = {"checkpoint": "an unknown checkpoint", "after": "unknown layers", **tables[0].meta}
    source = meta["checkpoint"] if features is None else f"{features} (of {meta['checkpoint']})"
    provenance = {
        "features": f"{source}: {x.shape[1]} an image, after {meta['after']}",
        "config": str(cfg.filename),
        "training": f"{int((y >= 0).sum()):,} images {train.origin}, fingerprint {train.fingerprint}",
        "test": told,
    }
    report = run_probes((x, y), (queries, wanted), generator=generator, provenance=provenance)
    if out is not None:
        write_text(out, report.to_json())
    return report


def _check_labels(train: ImageDataset, test: ImageDataset) -> bool:
    """Check that two data sets have labels of the same classes; return whether they are different images."""
    for key, dataset in (("dataset", train), ("eval_dataset", test)):
        if dataset.targets is None:
            raise InputError(
                f"the {len(dataset):,} images {dataset.origin} (data.{key}) have no labels, which a probe needs: put "
                "the images of each class into a folder of their own, or take ImageList or ImageCSV"
            )
    if train.classes != test.classes:
        ours, theirs = set(train.classes or ()), set(test.classes or ())
        odd = sorted(ours ^ theirs)
        raise InputError(
            f"data.dataset has {len(ours)} classes and data.eval_dataset {len(theirs)}, and they differ"
            + (f": '{odd[0]}' is in one alone" if odd else " in their order")
            + ": give both the same classes"
        )
    return train.fingerprint != test.fingerprint
