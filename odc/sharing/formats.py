"""A clustering in the files that other tools read: no tool need be there, and no image is copied.

Where a file needs the images it has their absolute paths, in a JSON text or a column, so the tools read them where they
are. Bytes of a name that are no UTF-8 cannot be told to any of these tools: such images are left out, and said.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image
from torchvision.transforms.v2.functional import to_pil_image

from odc.clustering import knn_search
from odc.data.datasets import ImageDataset
from odc.errors import InputError, nearest
from odc.files import writable, write_text, written_whole
from odc.pages.folder import pictures_of
from odc.pages.numbers import places
from odc.results import Clustering
from odc.results.clustering import ABOUT
from odc.structures import UNLABELLED

Watch = Callable[[int, int], None]
_SIDE, _QUALITY, _NEIGHBOURS, _TABLE = 160, 80, 20, "clusters.parquet"


@dataclass(frozen=True)
class Tool:
    """A tool, and what writes its files: into a folder, and returns the lines that say what to do with them."""

    title: str
    documentation: str  # the page that describes the format
    write: Callable[[Clustering, Path, Path, Watch | None], list[str]]


def share(folder: str | Path, to: str, out: str | Path, watch: Watch | None = None) -> list[str]:
    """Write a clustering in the files of another tool, into a folder of its own.

    Args:
        folder: that ``odc cluster`` left.
        to: one of :data:`TOOLS`.
        out: folder to write to.
        watch: told how many of how many thumbnails are drawn.

    Returns:
        What to do with the files, line by line.

    Raises:
        InputError: no such tool, no clustering, or its images are unknown or gone.
    """
    if to not in TOOLS:
        raise InputError(f"--to has no '{to}'{nearest(to, TOOLS)}")
    folder, out = Path(folder), Path(out)
    clustering = Clustering.load(folder)
    if not clustering.root:
        raise InputError(f"'{folder}' is of vectors, whose images are unknown: {TOOLS[to].title} shows images")
    if not Path(clustering.root).is_dir():
        raise InputError(f"the images of '{folder}' were in {clustering.root}, which is not there: put them back")
    if (out / ABOUT).exists():
        raise InputError(f"'{out}' holds a clustering: give another folder to --out")
    told, lines = _told(clustering), []
    if len(told) < len(clustering):
        lines.append(f"{len(clustering) - len(told):,} images are left out: their names are no Unicode")
    return lines + TOOLS[to].write(told, folder, writable(out), watch)


def _told(clustering: Clustering) -> Clustering:
    """Return the clustering less the images whose names are no Unicode; what these repeated, or repeated them, is told
    by the first one that is left."""
    kept = np.array([_is_unicode(path) for path in clustering.paths])
    if kept.all():
        return clustering
    place = np.cumsum(kept) - 1
    first = clustering.duplicate_of[kept]
    columns = {
        name: getattr(clustering, name)[kept]
        for name in ("cluster", "confidence", "consistency", "distance", "outlier", "features")
    }
    known = (first >= 0) & kept[first]
    return dataclasses.replace(
        clustering,
        paths=tuple(path for path, there in zip(clustering.paths, kept, strict=True) if there),
        duplicate_of=np.where(known, place[first], UNLABELLED),
        **columns,
    )


def _is_unicode(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8
        return False
    return True


def _label(clustering: Clustering, cluster: int) -> str:
    """Return what a tool calls a cluster: its name, or ``cluster 3``; ``none`` for no cluster."""
    return clustering.names.get(cluster, f"cluster {cluster}") if cluster >= 0 else "none"


def _labels(clustering: Clustering) -> list[str]:
    return [_label(clustering, c) for c in clustering.cluster.tolist()]


def _absolute(clustering: Clustering) -> list[str]:
    root = os.path.abspath(clustering.root)
    return [os.path.join(root, path) for path in clustering.paths]


def _columns(clustering: Clustering) -> dict[str, list[Any]]:
    """Return what is told of every image, besides its cluster, as JSON values."""
    first = [clustering.paths[i] if i >= 0 else None for i in clustering.duplicate_of.tolist()]
    floats = {
        name: [round(x, 5) for x in getattr(clustering, name).tolist()]
        for name in ("confidence", "consistency", "distance")
    }
    return {**floats, "outlier": clustering.outlier.tolist(), "duplicate_of": first}


# -- FiftyOne ---------------------------------------------------------------------------------------------------------


def _fiftyone(clustering: Clustering, folder: Path, out: Path, watch: Watch | None) -> list[str]:
    """``data.json``, number to file, and ``labels.json``, number to label, confidence and attributes."""
    columns = _columns(clustering)
    names = [f"{i:07d}" for i in range(len(clustering))]  # an ending would be cut off from them
    rows = zip(names, _labels(clustering), clustering.cluster.tolist(), *columns.values(), strict=True)
    labels = {
        name: {
            "label": label,
            "confidence": values[0],
            "attributes": {"number": cluster, **dict(zip(list(columns)[1:], values[1:], strict=True))},
        }
        for name, label, cluster, *values in rows
    }
    write_text(out / "data.json", json.dumps(dict(zip(names, _absolute(clustering), strict=True))) + "\n")
    write_text(out / "labels.json", json.dumps({"classes": None, "labels": labels}) + "\n")
    return [
        "import fiftyone as fo",
        f"kind, folder = fo.types.FiftyOneImageClassificationDataset, {str(out)!r}",
        "dataset = fo.Dataset.from_dir(folder, kind, data_path='data.json', label_field='cluster')",
    ]


# -- Hugging Face datasets --------------------------------------------------------------------------------------------


def _datasets(clustering: Clustering, folder: Path, out: Path, watch: Watch | None) -> list[str]:
    """A Parquet file with the images as a column of paths, which ``datasets`` opens where they are."""
    kinds = {"confidence": "float32", "consistency": "float32", "distance": "float32", "outlier": "bool"}
    classes = [_label(clustering, c) for c in range(clustering.num_clusters)]
    unique = classes if len(set(classes)) == len(classes) else [f"{name} ({c})" for c, name in enumerate(classes)]
    value = {name: {"dtype": kind, "_type": "Value"} for name, kind in (("path", "string"), *kinds.items())}
    features = {
        "image": {"_type": "Image"},
        "path": value["path"],
        "cluster": {"names": unique, "_type": "ClassLabel"},  # -1: in none
        **{name: value[name] for name in kinds},
        "duplicate_of": value["path"],
        "features": {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "List"},
    }
    columns = _columns(clustering)
    image = pyarrow.StructArray.from_arrays(
        [pyarrow.nulls(len(clustering), pyarrow.binary()), pyarrow.array(_absolute(clustering))], ["bytes", "path"]
    )
    arrays = {
        "image": image,
        "path": pyarrow.array(clustering.paths),
        "cluster": pyarrow.array(clustering.cluster),
        **{name: pyarrow.array(getattr(clustering, name)) for name in kinds},
        "duplicate_of": pyarrow.array(columns["duplicate_of"], pyarrow.string()),
        "features": _vectors(clustering),
    }
    told = json.dumps({"info": {"features": features}})
    _write_parquet(pyarrow.table(arrays).replace_schema_metadata({"huggingface": told}), out / _TABLE)
    return [
        "from datasets import load_dataset",
        f"dataset = load_dataset('parquet', data_files={str(out / _TABLE)!r}, split='train')",
    ]


def _vectors(clustering: Clustering) -> pyarrow.Array:
    """Return the features as lists of float32."""
    rows = np.ascontiguousarray(clustering.features, np.float32)
    offsets = np.arange(len(rows) + 1, dtype=np.int64) * rows.shape[1]
    return pyarrow.LargeListArray.from_arrays(offsets, rows.ravel()).cast(pyarrow.list_(pyarrow.float32()))


def _write_parquet(table: pyarrow.Table, file: Path) -> None:
    with written_whole(file) as out:
        pyarrow.parquet.write_table(table, out, row_group_size=5_000)


# -- Embedding Atlas --------------------------------------------------------------------------------------------------


def _atlas(clustering: Clustering, folder: Path, out: Path, watch: Watch | None) -> list[str]:
    """A Parquet file with the places of a map, neighbours, thumbnails and all columns."""
    images = pictures_of(clustering, folder)
    assert images is not None
    spots, why = places(clustering.unit, folder / "run")
    N = len(clustering)
    shown = _columns(clustering)
    place = {path: i for i, path in enumerate(images.paths)}
    arrays = {
        "id": pyarrow.array(np.arange(N)),
        "path": pyarrow.array(clustering.paths),
        "cluster": pyarrow.array(clustering.cluster),
        "label": pyarrow.array(_labels(clustering)),
        **{name: pyarrow.array(values) for name, values in shown.items() if name != "duplicate_of"},
        "duplicate_of": pyarrow.array(shown["duplicate_of"], pyarrow.string()),
        "image": pyarrow.array(
            [{"bytes": _thumbnail(images, place.get(path))} for path in _watched(clustering.paths, watch)],
            pyarrow.struct([("bytes", pyarrow.binary())]),
        ),
    }
    flags = ["--image", "image"]
    if spots:
        x, y = np.array(spots, np.float32).T
        arrays |= {"x": pyarrow.array(x), "y": pyarrow.array(-y)}
        flags += ["--x", "x", "--y", "y"]
    if N > 1:
        near, cosine = (part.numpy() for part in knn_search(clustering.unit, k=min(_NEIGHBOURS, N - 1)))
        beside = [
            {"ids": ids, "distances": apart} for ids, apart in zip(near.tolist(), (1 - cosine).tolist(), strict=True)
        ]
        arrays["neighbors"] = pyarrow.array(beside)
        flags += ["--neighbors", "neighbors"]
    _write_parquet(pyarrow.table(arrays), out / _TABLE)
    lines = [f"embedding-atlas {shlex.quote(str(out / _TABLE))} {' '.join(flags)}"]
    return lines if spots else [f"no map: {why}", *lines]


def _watched(paths: Sequence[str], watch: Watch | None) -> Iterator[str]:
    for i, path in enumerate(paths):
        yield path
        if watch is not None:
            watch(i + 1, len(paths))


def _thumbnail(images: ImageDataset, row: int | None) -> bytes | None:
    """Return the JPEG of an image; ``None`` where it is gone, or no image any more."""
    if row is None:
        return None
    try:
        image: Image.Image = to_pil_image(images.preview(row, _SIDE)).convert("RGB")
    except InputError:
        return None
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "jpeg", quality=_QUALITY)
    return file.getvalue()


# -- Label Studio -----------------------------------------------------------------------------------------------------


def _label_studio(clustering: Clustering, folder: Path, out: Path, watch: Watch | None) -> list[str]:
    """``tasks.json``, an image each with its cluster as a prediction to be corrected, and ``config.xml``, the choices.

    The least sure images come first: they are worth a look.
    """
    labels, columns = _labels(clustering), _columns(clustering)
    order = np.argsort(clustering.confidence, kind="stable").tolist()
    version = str(clustering.about.get("method") or "odc")
    tasks = [
        {
            "data": {
                "image": f"/data/local-files/?d={quote(clustering.paths[i])}",
                "path": clustering.paths[i],
                "cluster": int(clustering.cluster[i]),
                **{name: values[i] for name, values in columns.items()},
            },
            "predictions": [
                {
                    "model_version": version,
                    "score": columns["confidence"][i],
                    "result": [
                        {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [labels[i]]}}
                    ],
                }
            ]
            if clustering.cluster[i] >= 0
            else [],
        }
        for i in order
    ]
    choices = dict.fromkeys(_label(clustering, c) for c in range(clustering.num_clusters))
    config = [
        "<View>",
        '  <Image name="image" value="$image"/>',
        '  <Text name="path" value="$path"/>',
        '  <Choices name="label" toName="image" choice="single" showInline="true">',
        *(f"    <Choice value={quoteattr(choice)}/>" for choice in choices),
        "  </Choices>",
        "</View>",
    ]
    write_text(out / "tasks.json", json.dumps(tasks) + "\n")
    write_text(out / "config.xml", "\n".join(config) + "\n")
    root = os.path.abspath(clustering.root)
    return [
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true "
        f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={shlex.quote(root)} label-studio start",
        f"a new project: its labelling interface is {out / 'config.xml'} (Code); its storage, Local files, is {root}; "
        f"then import {out / 'tasks.json'}",
    ]


TOOLS: Mapping[str, Tool] = {
    "fiftyone": Tool("FiftyOne", "Importing data into FiftyOne, FiftyOneImageClassificationDataset", _fiftyone),
    "datasets": Tool("Hugging Face datasets", "Datasets documentation, Load image data: Parquet", _datasets),
    "embedding-atlas": Tool("Embedding Atlas", "Embedding Atlas, Command Line Utility", _atlas),
    "labelstudio": Tool("Label Studio", "Import pre-annotated data into Label Studio", _label_studio),
}
