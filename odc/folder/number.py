"""How many clusters a folder of pictures, a clustering or a file of features speaks for.

Of pictures a random part is looked at, as many as the criteria take.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
import torchvision

from odc.choosing import Choice, choose_k
from odc.choosing.chart import draw
from odc.choosing.choose import SAMPLES
from odc.clustering.preprocess import unit_in_spaces
from odc.data.arrow_folders import is_saved_dataset
from odc.data.datasets import ImageDataset, build_dataset
from odc.data.feature_files import INDEX, read_space
from odc.errors import InputError
from odc.files import writable, write_text
from odc.folder.clock import Clock, Step
from odc.folder.clustering import LOG
from odc.folder.running import aside
from odc.results.clustering import ABOUT, FEATURES, Clustering
from odc.sources import Space, extract_space, extraction_config, load_network, read_source

PICTURE, NUMBERS = "choose-k.png", "choose-k.json"
_SIDE = 32  # pixels of pictures without a network


def number_of_clusters(
    source: str,
    features: str | None = None,
    ks: Sequence[int] | None = None,
    out: str | Path | None = None,
    *,
    size: int | None = None,
    seed: int = 0,
    stream: TextIO | None = None,
) -> tuple[Choice, Path]:
    """Write the picture and the numbers of :func:`odc.choosing.choose_k`; return its choice, and where they lie.

    Args:
        source: a folder of pictures, the folder that ``odc cluster`` left, or features (``A+B``: several spaces).
        features: the network by which pictures are seen; without one, by their pixels.
        ks: numbers of clusters to try.
        out: folder for what is written; by default ``work_dirs/<name>-choose-k``.
        size: pixels a side at which the network sees pictures.
        seed: of everything random.
        stream: where the progress is shown; ``None``: nowhere.

    Raises:
        InputError: there is no such thing, it does not fit ``features``, or the features are not finite.
    """
    if "+" not in source and not Path(source).exists():
        raise InputError(
            f"there is no folder or file {source} (looked at {Path(source).absolute()}); a network needs the folder of "
            "pictures that it is to see: odc choose-k FOLDER --features NAME"
        )
    name = Path(os.path.abspath(source)).stem
    place = Path(out or Path("work_dirs") / f"{name}-choose-k")
    new = not place.exists()
    clock = Clock([Step("features", "features", 60.0), Step("count", "numbers of clusters", 20.0)], stream)
    try:
        with aside(writable(place) / LOG):
            x, total = _vectors(source, features, size, place, clock)
            clock.begin("count")
            choice = choose_k(x, ks, seed, lambda done, of: clock.at(done / of))
            clock.clear()
    except InputError:
        if new:
            shutil.rmtree(place, ignore_errors=True)
        raise
    choice = dataclasses.replace(choice, samples=total)
    if choice.ks:
        draw(choice, place / PICTURE)
    write_text(place / NUMBERS, json.dumps({"of": source, "features": features, **choice.describe()}, indent=1) + "\n")
    return choice, place


def _vectors(source: str, features: str | None, size: int | None, place: Path, clock: Clock) -> tuple[Any, int]:
    """Return features (M, D), of unit length in each space, and the number of images that they are a part of."""
    path = Path(source)
    if path.name == FEATURES and (path.parent / ABOUT).is_file():
        path = path.parent
    of_vectors = (path / ABOUT).is_file() or not path.is_dir() or (path / INDEX).is_file() or is_saved_dataset(path)
    if of_vectors:
        for flag, value in (("--features", features), ("--size", size)):
            if value is not None:
                raise InputError(
                    f"{source} has features already: {flag} {value} is for a folder of pictures, leave it out"
                )
        if (path / ABOUT).is_file():
            unit = Clustering.load(path).unit
            return unit, len(unit)
        spaces = read_source(source)
        if any(space.model is not None for space in spaces):
            raise InputError(
                f"{source} is neither a folder nor a file of features: give the pictures, and it as --features {source}"
            )
        return _joined([space.spelling for space in spaces])
    pictures = {"type": "ImageFolder", "root": source}
    whole = build_dataset(pictures)
    part = {**pictures, "max_samples": SAMPLES} if len(whole) > SAMPLES else pictures
    clock.begin("features")
    if features is None:
        if size is not None:
            raise InputError(f"--size {size} is for the network of --features")
        clock.say(
            "by their pixels, which say little of photographs: --features dinov2-small sees more, and the folder that "
            "odc cluster left has features"
        )
        return _pixels(build_dataset(part), clock), len(whole)
    return _seen(read_source(features, size), part, place, clock), len(whole)


def _joined(files: Sequence[str]) -> tuple[Any, int]:
    """Return the vectors of files side by side, those of one image in a row."""
    found = [read_space(file) for file in files]
    for other in found[1:]:
        if set(other.paths) != set(found[0].paths):
            raise InputError(f"{found[0].file} and {other.file} are not of the same images: extract both of one folder")
    parts = []
    for space in found:
        row = {name: i for i, name in enumerate(space.paths)}
        order = np.array([row[name] for name in found[0].paths])
        parts.append(torch.from_numpy(np.asarray(space.rows, dtype=np.float32)[order]))
    unit = unit_in_spaces(torch.cat(parts, dim=1), [part.shape[1] for part in parts])
    return unit.numpy(), len(unit)


def _pixels(dataset: ImageDataset, clock: Clock) -> Any:
    """Return pictures as (M, D) float32: small squares, less their mean."""
    rows = []
    for i in range(len(dataset)):
        image = dataset.image(i)
        small = torchvision.transforms.v2.functional.resize(image, [_SIDE, _SIDE]).float()
        rows.append(small.expand(3, -1, -1).flatten())
        clock.at((i + 1) / len(dataset))
    x = torch.stack(rows)
    return (x - x.mean(0)).numpy()


def _seen(spaces: Sequence[Space], pictures: dict[str, Any], place: Path, clock: Clock) -> Any:
    """Return what networks make of pictures; it stays in ``place``, where another call goes on."""
    if any(space.model is None for space in spaces):
        raise InputError("--features takes networks here: give a file of features instead of the folder")
    for space in spaces:
        load_network(space)
    folders = []
    for number, space in enumerate(spaces):
        folders.append(str(place / f"features-{number}"))
        config = extraction_config(space, pictures, place)
        extract_space(
            space,
            config,
            Path(folders[-1]),
            lambda done, of, number=number: clock.at((number + done / of) / len(spaces)),  # type: ignore[misc]
        )
    return _joined(folders)[0]
