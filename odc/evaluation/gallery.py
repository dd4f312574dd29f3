"""What somebody with a folder of pictures came for: a table of clusters, and a picture of them."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from odc.clustering import log_odds
from odc.data.datasets import ImageDataset
from odc.errors import InputError
from odc.evaluation.evaluator import Evaluation
from odc.files import write_table

_ROWS, _COLUMNS, _TILE, _GAP, _MARGIN = 30, 14, 64, 4, 150


def write_clusters(dataset: ImageDataset, evaluation: Evaluation, folder: Path) -> tuple[Path, Path]:
    """Write ``clusters.csv`` (path, cluster, confidence) and ``clusters.png`` into a folder; return their paths.

    Confidence is the softmax of the head's scores. The picture has a row for each cluster, largest first, with its
    most confident images. Images that were lost are in neither.
    """
    folder.mkdir(parents=True, exist_ok=True)
    confidence, cluster = evaluation.scores.softmax(1).max(1)
    lost = torch.zeros(len(cluster), dtype=torch.bool) if evaluation.lost is None else evaluation.lost
    table, picture = folder / "clusters.csv", folder / "clusters.png"
    rows = zip(dataset.paths, cluster.tolist(), confidence.tolist(), lost.tolist(), strict=True)
    write_table(
        table, ("path", "cluster", "confidence"), ((path, c, f"{p:.4f}") for path, c, p, gone in rows if not gone)
    )
    sureness = log_odds(evaluation.scores).gather(1, cluster[:, None])[:, 0]  # many confidences are exactly 1
    draw_clusters(dataset, cluster, sureness.where(~lost, -torch.inf)).save(picture)
    return table, picture


def write_skipped(dataset: ImageDataset, folder: Path, name: str = "skipped.csv") -> Path | None:
    """Write which files of a data set are not among its images, or were lost, and why (path, reason).

    Returns:
        The path of the table; ``None`` where there are none: then one that an earlier run left is removed.
    """
    rows = sorted({**dataset.skipped, **{dataset.paths[i]: why for i, why in dataset.lost.items()}}.items())
    if not rows:
        (folder / name).unlink(missing_ok=True)
        return None
    write_table(folder / name, ("path", "reason"), rows)
    return folder / name


def draw_clusters(dataset: ImageDataset, cluster: Tensor, confidence: Tensor) -> Image.Image:
    """Draw the largest clusters, a row each: number, size, and most confident images.

    Args:
        dataset: N images.
        cluster: (N,) int64.
        confidence: (N,) floating; of equally confident images the first come first. Images that cannot be decoded are
            left out.
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
        best = members[confidence[members].argsort(descending=True, stable=True)]
        column = 0
        for sample in best[: 4 * _COLUMNS].tolist():  # some may have gone since
            try:
                tile = to_pil_image(dataset.image(sample)).convert("RGB")
            except InputError:
                continue
            tile.thumbnail((_TILE, _TILE))
            if max(tile.size) < _TILE:  # tiny images are enlarged in whole pixels, so that one sees what is there
                factor = max(1, _TILE // max(tile.size))
                tile = tile.resize((tile.width * factor, tile.height * factor), Image.Resampling.NEAREST)
            sheet.paste(tile, (_MARGIN + column * step, top))
            column += 1
            if column == _COLUMNS:
                break
    return sheet
