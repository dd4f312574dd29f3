"""What somebody with a folder of pictures came for: a table of clusters, and a picture of them."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from mmengine.logging import print_log
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from odc.clustering import confidence, log_odds, margins
from odc.data.datasets import ImageDataset
from odc.errors import InputError
from odc.evaluation.evaluator import Evaluation
from odc.files import write_table, written_whole

CLUSTERS, PICTURE = "clusters.csv", "clusters.png"
_SMALLEST = 3  # clusters whose size is told
_ROWS, _COLUMNS, _TILE, _GAP, _MARGIN = 30, 14, 64, 4, 150


def write_clusters(
    dataset: ImageDataset, evaluation: Evaluation, folder: Path, names: Sequence[str] = ()
) -> list[Path]:
    """Write ``clusters.csv`` (path, cluster, confidence) and ``clusters.png`` whole, or not at all; return their paths.

    Confidence is the share of the images whose margin, of the best score before the second, is not larger. Images that
    were lost are in neither.
    """
    scores = evaluation.scores
    cluster = scores.argmax(1)
    sureness = log_odds(scores).gather(1, cluster[:, None])[:, 0]
    return write_assigned(dataset, cluster, margins(scores), sureness, folder, evaluation.lost, names)


def write_assigned(
    dataset: ImageDataset,
    cluster: Tensor,
    margin: Tensor,
    sureness: Tensor,
    folder: Path,
    lost: Tensor | None = None,
    names: Sequence[str] = (),
) -> list[Path]:
    """Write clusters (N,) int64, -1: in none, however they were found, as :func:`write_clusters` does.

    ``margin`` (N,), in any unit that rises with how sure the cluster is, gives confidence; by ``sureness`` (N,) the
    images of a cluster are in order. The picture has a row for each cluster, largest first, with its surest images. Of
    vectors without pictures there is the table alone, and a picture that was there before goes. Where the first
    clusters have ``names``, so has the table (column ``name``, empty for the others).
    """
    lost = torch.zeros(len(cluster), dtype=torch.bool) if lost is None else lost
    table, picture = folder / CLUSTERS, folder / PICTURE
    share = confidence(margin, (cluster >= 0) & ~lost)
    rows = zip(dataset.paths, cluster.tolist(), share.tolist(), lost.tolist(), strict=True)
    written = ((path, c, *named(c, names), f"{p:.5f}") for path, c, p, gone in rows if not gone)
    write_table(table, ("path", "cluster", *(("name",) if names else ()), "confidence"), written)
    if dataset.pictures is None:
        picture.unlink(missing_ok=True)
        print_log(f"no {PICTURE}: data.dataset has vectors without pictures", "current")
        return [table]
    drawn = draw_clusters(dataset.pictures, cluster, sureness.where(~lost, -torch.inf))
    with written_whole(picture) as raw:
        drawn.save(raw, format="png")
    return [table, picture]


def named(cluster: int, names: Sequence[str]) -> tuple[str, ...]:
    """Return the cell of a cluster's name, empty where it has none; no cell where no cluster has one."""
    return (names[cluster] if 0 <= cluster < len(names) else "",) if names else ()


def write_skipped(dataset: ImageDataset, folder: Path, name: str = "skipped.csv") -> Path | None:
    """Write which files of a data set are not among its images, or were lost, and why (path, reason); return its path.

    ``None`` where there are no such files: then a table that an earlier run left is removed.
    """
    rows = sorted({**dataset.skipped, **{dataset.paths[i]: why for i, why in dataset.lost.items()}}.items())
    if not rows:
        (folder / name).unlink(missing_ok=True)
        return None
    write_table(folder / name, ("path", "reason"), rows)
    return folder / name


def sizes_told(cluster: Tensor, num_clusters: int) -> str:
    """Return in words how the K clusters (N,) are filled; the smallest, and those without an image, by number."""
    sizes = torch.bincount(cluster, minlength=num_clusters)
    order = sizes.argsort(stable=True)
    empty, filled = order[sizes[order] == 0], order[sizes[order] > 0]
    text = f"{len(filled):,} clusters of {int(sizes[filled].min()):,} to {int(sizes.max()):,} images"
    if len(filled) > 1:
        text += ", the smallest " + ", ".join(f"{int(c)} ({int(sizes[c]):,})" for c in filled[:_SMALLEST])
    return text + (f"; {len(empty):,} without an image: {listed(empty.tolist())}" if len(empty) else "")


def listed(numbers: Iterable[int], most: int = 10) -> str:
    """Return ``"0, 1, 2, ..."``, at most so many of the numbers."""
    every = [str(int(n)) for n in numbers]
    return ", ".join(every[:most]) + (", ..." if len(every) > most else "")


def fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return an image as large as fits; a tiny one is enlarged in whole pixels, so that one sees what is there."""
    image.thumbnail(size, Image.Resampling.LANCZOS)
    factor = max(1, min(size[0] // image.width, size[1] // image.height))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _readable(dataset: ImageDataset, samples: list[int]) -> Iterator[Tensor]:
    """Yield the images that are still there: a file may have gone since it was trained on."""
    for sample in samples:
        try:
            image = dataset.image(sample)
        except (InputError, OSError) as error:
            print_log(f"{PICTURE} leaves out an image: {error}", "current", logging.WARNING)
            continue
        yield image


def draw_clusters(dataset: ImageDataset, cluster: Tensor, sureness: Tensor) -> Image.Image:
    """Draw the largest clusters, a row each: number, size, and surest images, the first of equals first.

    ``cluster`` is (N,) int64, ``sureness`` (N,) floating. An image that cannot be read any more is left out, with a
    warning.
    """
    ids, sizes = cluster.unique(return_counts=True)
    largest = sizes.argsort(descending=True, stable=True)[:_ROWS]
    step = _TILE + _GAP
    sheet = Image.new("RGB", (_MARGIN + _COLUMNS * step + _GAP, len(largest) * step + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    for row, i in enumerate(largest.tolist()):
        top = _GAP + row * step
        draw.text((_GAP * 2, top + 12), f"cluster {int(ids[i])}", fill="black", font=font)
        draw.text((_GAP * 2, top + 32), f"{int(sizes[i]):,} images", fill="dimgray", font=font)
        members = (cluster == ids[i]).nonzero().squeeze(1)
        best = members[sureness[members].argsort(descending=True, stable=True)]
        readable = _readable(dataset, best[: 4 * _COLUMNS].tolist())  # some may have gone since
        for column, image in enumerate(itertools.islice(readable, _COLUMNS)):
            tile = fitted(to_pil_image(image).convert("RGB"), (_TILE, _TILE))
            sheet.paste(tile, (_MARGIN + column * step, top))
    return sheet
