"""Commands for what a clustering left: a person's folder, and what comes after it."""

from __future__ import annotations

from odc.cli.arguments import CHECKPOINT, Arguments, Command, arg, flag, prepare, show


def _reliable(args: Arguments) -> None:
    from odc.recipes import Reliable

    cfg = prepare(args)
    files = {name: args.pop(name) for name in ("checkpoint", "out", "features", "labelled", "alignment")}
    Reliable("reliable", **args).find(cfg, **files)


def _align(args: Arguments) -> None:
    from odc.evaluation.align import align_clusters

    show(align_clusters(**args))


_RELIABLE = (
    *CHECKPOINT,
    arg("--out", "folder for labels.npz and beta.png", metavar="DIR", required=True),
    arg("--features", "take neighbours in these, from odc extract", metavar="FILE"),
    arg("--neighbours", "nearest images of each that count (default 100)", type=int, default=100),
    arg("--threshold", "share of them that must be in the same cluster (default .99)", type=float, default=0.99),
    arg("--score-threshold", "keep only labels more confident than this", type=float),
    arg(
        "--balance",
        "keep equally many labels of every cluster: those of the smallest, or --quota",
        choices=["min", "quota"],
    ),
    arg("--quota", "labels of every cluster, with --balance quota", type=int),
    arg(
        "--labels",
        "images (path, label) whose class you know: these labels join the others, and win",
        metavar="CSV",
        dest="labelled",
    ),
    arg("--align", "which cluster is which class, from odc align", metavar="JSON", dest="alignment"),
    flag("--allow-empty", "go on where a cluster has no reliable image"),
)
_ALIGN = (
    arg("clusters", "clusters.csv of a run"),
    arg("labels", "CSV with the columns path and label: some images whose class you know"),
    arg("--out", "file for the map from clusters to classes", metavar="JSON", required=True),
    arg("--features", "from odc extract; needed for classes with fewer than 3 labels", metavar="FILE"),
    arg("--test", "other labelled images to measure the map on", metavar="CSV"),
    arg("--min-margin", "leave a cluster unnamed where its class is ahead by less", type=float, default=0.0),
)
COMMANDS = (
    Command(
        "reliable",
        "Keep the labels that an image's neighbours share.",
        _reliable,
        _RELIABLE,
        "odc reliable spice-self_convnet_1xb128-30e_digits work_dirs/self/epoch_30.pth --out work_dirs/kept",
    ),
    Command(
        "align",
        "Find out which cluster is which class, from a few labelled images.",
        _align,
        _ALIGN,
        "odc align clusters.csv labels.csv --out map.json",
    ),
)
