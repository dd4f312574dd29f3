"""The page of one clustering: one HTML file with its pictures inside, which loads nothing and needs no server.

Unlike the report of a comparison it has a script, because it is a tool: clusters are named, merged and marked in it,
and leave it as a table. Only the script that stands in the file may run, by a policy with its hash. What a stranger
could have chosen, names of files above all, reaches the page as JSON, and from there as text, never as HTML.

The same clustering and images give the same bytes: nothing in it is the time of writing, and everything drawn by lot
comes from generators of fixed seed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import posixpath
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from markupsafe import Markup

from odc.clustering import knn_search
from odc.comparison import report
from odc.data.datasets import ImageDataset
from odc.files import written_whole
from odc.pages import numbers
from odc.pages.choice import IN_STRIP, MOST_CLUSTERS, Choice, choose
from odc.pages.sheets import Sheets, draw_sheets
from odc.pages.words import Words
from odc.results.clustering import Clustering
from odc.results.columns import Floats, prototypes

PAGE = "report.html"
NEIGHBOURS = 12  # shown of an image
SIMILAR = 12  # clusters offered to merge one with
_SCRIPTS = ("core.js", "labels.js", "clusters.js", "panel.js", "map.js", "main.js")
_TEMPLATES = Path(__file__).parent / "templates"


def write_page(
    found: Clustering,
    dataset: ImageDataset | None,
    out: Path,
    *,
    words: Words | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the page of a clustering to ``out``, whole or not at all, and return its path.

    The places on the map take longer than anything else that is computed; they are kept in the folder ``run`` beside
    the page, under a hash of the features.

    Args:
        found: the clustering; of more than :data:`odc.pages.choice.MOST_IMAGES` images a sample is shown.
        dataset: images with the paths of the clustering, or some of them; ``None``, as where it has vectors without
            pictures: names are shown instead.
        out: the file to write.
        words: what names of clusters are guessed from.
        watch: told how many of how many thumbnails are drawn.

    Raises:
        InputError: words and features are of different widths.
        OSError: it cannot be written.
    """
    chosen = choose(found)
    unit = found.unit
    pictures = None if dataset is None else dataset.pictures
    told = _content(found, chosen, unit, words, out)
    sheets, gone = Sheets([]), 0
    if dataset is not None and pictures is not None:
        place = {path: i for i, path in enumerate(dataset.paths)}
        ids = [place.get(found.paths[row], -1) for row in chosen.rows.tolist()]
        gone = ids.count(-1)
        sheets = draw_sheets(pictures, ids, chosen.in_strips, watch)
    told |= {
        "tiles": sheets.tiles,
        "pixelated": sheets.pixelated,
        "sheets": [[sheet.columns, sheet.rows] for sheet in sheets.sheets],
    }
    style, script = (report.TEMPLATES / report.TOKENS).read_text(encoding="utf-8") + _text("page.css"), _script()
    page = report.environment(_TEMPLATES).get_template("page.html")
    stream = page.generate(
        title=Path(found.root).name or out.absolute().parent.name,
        found=found,
        told=told,
        gone=gone,
        data=_json(told),
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        sheets=[Markup(sheet.uri) for sheet in sheets.sheets],
        in_strip=IN_STRIP,
        most_clusters=MOST_CLUSTERS,
    )
    with written_whole(out) as file:
        for part in stream:
            file.write(part.encode())
    return out


def _content(found: Clustering, chosen: Choice, unit: Floats, words: Words | None, out: Path) -> dict[str, Any]:
    """Return what the script of the page works on, but for the thumbnails; images by their places on the page."""
    rows, shown = chosen.rows, chosen.clusters
    here = unit[rows]
    place = np.full(len(found), -1, np.int64)
    place[rows] = np.arange(len(rows))
    centers = prototypes(unit, found.cluster, found.num_clusters)
    k = min(NEIGHBOURS, len(rows) - 1)
    nearest = knn_search(here, k=k)[0].tolist() if k else [[] for _ in rows]
    ordered = np.array(shown, np.int64)
    guessed: Mapping[int, list[str]] = {} if words is None else words.guesses(centers, ordered)
    similar = numbers.similar(centers[ordered], SIMILAR)
    silhouette = numbers.silhouette(unit, found.cluster)
    xy, why = numbers.places(here, out.parent / "run")
    first = found.duplicate_of[rows]
    clusters = [
        {
            "id": c,
            "name": found.names.get(c, ""),
            "size": int(found.sizes[c]),
            "consistency": _share(found.consistency[found.cluster == c].mean()),
            "silhouette": silhouette.clusters.get(c),
            "strips": chosen.strips[c],
            "similar": [shown[j] for j in similar[i]],
            "guesses": guessed.get(c, []),
        }
        for i, c in enumerate(shown)
    ]
    held = found.cluster >= 0
    return {
        "key": str(found.about.get("fingerprint") or hashlib.sha256(repr(found.paths).encode()).hexdigest()[:16])
        + hashlib.sha256(found.cluster.tobytes()).hexdigest()[:16],
        "total": len(found),
        "num_clusters": found.num_clusters,
        "none": int((~held).sum()),
        "outliers": int(found.outlier.sum()),
        "repeated": int((found.duplicate_of >= 0).sum()),
        "consistency": _share(found.consistency[held].mean()) if held.any() else None,
        "silhouette": silhouette.whole,
        "folder": _address(found.root, out.parent),
        "no_map": why,
        "clusters": clusters,
        "path": [found.paths[row] for row in rows.tolist()],
        "cluster": found.cluster[rows].tolist(),
        "confidence": _thousandths(found.confidence[rows]),
        "consistent": _thousandths(found.consistency[rows]),
        "distance": _thousandths(found.distance[rows]),
        "outlier": np.flatnonzero(found.outlier[rows]).tolist(),
        # Of a sample the first of some copies may not be shown: then nothing is told.
        "first": [[i, int(place[f])] for i, f in enumerate(first.tolist()) if f >= 0 and place[f] >= 0],
        "nearest": nearest,
        "xy": xy,
    }


def _share(x: float) -> float:
    return round(float(x), 3)


def _thousandths(x: Floats) -> list[int]:
    counts: list[int] = np.rint(1000 * x.astype(np.float64)).astype(np.int64).tolist()
    return counts


def _address(root: str, home: Path) -> str:
    """Return where the images are, seen from the page, as a part of an address: it begins with a dot."""
    if not root:
        return ""
    path = posixpath.relpath(Path(root).absolute().as_posix(), home.absolute().as_posix())
    return quote((path if path.startswith(".") else f"./{path}").encode("utf-8", "surrogateescape")) + "/"


def _json(value: Any) -> Markup:
    """Return JSON that is safe inside a script element: nothing in it can end the element or begin a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII: any other letter is an escape
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _text(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _script() -> str:
    return '"use strict";\n(() => {\n' + "".join(_text(name) for name in _SCRIPTS) + "})();\n"


def _policy(style: str, script: str) -> str:
    """Return a policy by which this style and script, and pictures in the page, are all that a browser may take."""

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {digest(script)}; style-src {digest(style)}; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
