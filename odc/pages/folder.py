"""The page of what ``odc cluster`` left, written again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from odc.data.datasets import ImageDataset
from odc.data.image_files import FileDataset
from odc.errors import InputError
from odc.pages.page import PAGE, write_page
from odc.pages.words import Words
from odc.results.clustering import Clustering


def report(
    folder: str | Path,
    images: str | Path | None = None,
    names: str | Path | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> Path:
    """Write ``report.html`` of the clustering in a folder again, and return its path.

    Args:
        folder: what ``odc cluster`` left.
        images: where the images are now, if they have moved; else where they were.
        names: an ``.npz`` file of words and their vectors, see :class:`odc.pages.Words`.
        watch: told how many of how many thumbnails are drawn.

    Raises:
        InputError: there is no clustering, its images are gone, or the words do not fit.
    """
    folder = Path(folder)
    found = Clustering.load(folder)
    words = None if names is None else Words.load(names)
    return write_page(found, pictures_of(found, folder, images), folder / PAGE, words=words, watch=watch)


def pictures_of(found: Clustering, folder: Path, images: str | Path | None = None) -> ImageDataset | None:
    """Return the images of a clustering that are still there, ``None`` where they were never known.

    Raises InputError where their folder, or all of them, are gone.
    """
    if not found.root and images is None:
        return None
    root = Path(found.root if images is None else images)
    if not root.is_dir():
        raise InputError(f"the images of {folder} were in {root}, which is not there: say where they are by --images")
    there = [path for path in found.paths if (root / path).is_file()]
    if not there:
        raise InputError(
            f"none of the {len(found):,} images of {folder} is in {root}, not even {found.paths[0]}: say where they "
            "are by --images"
        )
    return FileDataset(str(root), there, {}, {})
