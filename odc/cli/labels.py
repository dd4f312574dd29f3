"""Commands for a clustering: a few labels of a person, and other tools."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from odc.cli.arguments import Arguments, Command, arg, flag, show
from odc.cli.folder import progress
from odc.errors import InputError


def _page(folder: Path, again: bool = False) -> None:
    """Write the page of a clustering that has changed, if its images are there, and ``again``: if it has one."""
    from odc.pages import PAGE, report
    from odc.results import Clustering

    root = Clustering.load(folder).root
    if root and Path(root).is_dir() and ((folder / PAGE).is_file() or not again):
        with contextlib.redirect_stdout(sys.stderr):  # where logs go
            report(folder, watch=progress("thumbnails"))


def _align(args: Arguments) -> None:
    as_json, clusters, features = args.pop("json"), Path(args.pop("clusters")), args.pop("features")
    if clusters.is_dir():
        from odc.labelling import name_clusters

        if features is not None:
            raise InputError(f"--features {features}: {clusters} has features of its own, leave it out")
        named = name_clusters(clusters, **args)
        show(json.dumps(named.data(), indent=1) if as_json else str(named))
        _page(clusters, again=True)
        return
    from odc.evaluation.align import align_clusters

    if args["out"] is None:
        raise InputError(f"{clusters} is a table: say with --out which file the map from clusters to classes goes to")
    told = align_clusters(clusters, features=features, **args)
    show(Path(args["out"]).read_text(encoding="utf-8") if as_json else told)


def _refine(args: Arguments) -> None:
    from odc.labelling import refine

    as_json = args.pop("json")
    refined = refine(**args, say=lambda line: print(line, file=sys.stderr))
    show(json.dumps(refined.data(), indent=1) if as_json else str(refined))
    _page(refined.out)


def _share(args: Arguments) -> None:
    from odc.sharing import share

    show("\n".join(share(**args, watch=progress("thumbnails"))))


_SHARE = (
    arg("folder", "folder that odc cluster left"),
    arg(
        "--to",
        "fiftyone, datasets, embedding-atlas or labelstudio",
        choices=["fiftyone", "datasets", "embedding-atlas", "labelstudio"],
        metavar="TOOL",
        required=True,
    ),
    arg("--out", "folder for its files", metavar="DIR", required=True),
)
_LABELS = arg("labels", "CSV with the columns path and label: some images whose class you know")
_JSON = flag("--json", "print what was found as JSON")
_ALIGN = (
    arg("clusters", "folder that odc cluster left, or clusters.csv of a run"),
    _LABELS,
    arg("--out", "file for the map from clusters to classes (default: map.json in the folder)", metavar="JSON"),
    arg(
        "--features", "of a clusters.csv, from odc extract; needed for classes with less than 3 labels", metavar="FILE"
    ),
    arg("--test", "other labelled images to measure the names on", metavar="CSV"),
    arg(
        "--min-margin",
        "leave a cluster unnamed where its class is ahead by a smaller share (default .1)",
        type=float,
        default=0.1,
    ),
    _JSON,
)
_REFINE = (
    arg("folder", "folder that odc cluster left"),
    _LABELS,
    arg("--out", "folder for the new clustering", metavar="DIR", required=True),
    arg("--test", "other labelled images to measure on (default: a third of the labels)", metavar="CSV"),
    flag("--named-only", "give every image one of the names, also those of clusters that no label is of"),
    arg("--seed", "seed of the training (default 0)", type=int, default=0),
    _JSON,
)
COMMANDS = (
    Command(
        "align",
        "Name clusters by a few labelled images.",
        _align,
        _ALIGN,
        "odc align work_dirs/photos labels.csv --test others.csv",
    ),
    Command(
        "refine",
        "Train a clustering on a few labels, and tell whether it is better.",
        _refine,
        _REFINE,
        "odc refine work_dirs/photos labels.csv --out work_dirs/photos-2",
    ),
    Command(
        "share",
        "Write a clustering in the files of another tool, and tell how to open them.",
        _share,
        _SHARE,
        "odc share work_dirs/photos --to fiftyone --out work_dirs/fiftyone",
    ),
)
