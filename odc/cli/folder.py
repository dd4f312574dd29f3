"""Commands for what a clustering left: a person's folder, and what comes after it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import signal
import sys
import time
from collections.abc import Callable

from odc.cli.arguments import SIZE, Arguments, Command, arg, flag, pairs, show
from odc.errors import printable


def _cluster(args: Arguments) -> int:
    from odc.folder import cluster

    as_json, K = args.pop("json"), args.pop("clusters")
    number = K if K == "auto" or not K.lstrip("-").isdigit() else int(K)
    options, copies = dict(args.pop("cfg_options") or {}), args.pop("copies")
    stream = sys.stderr if as_json else sys.stdout
    # A training saves a checkpoint first; what comes between trainings only has to end.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        found = cluster(args.pop("folder"), number, **args, options=options, copies=copies, stream=stream)
    except KeyboardInterrupt:
        print("\nodc: stopped; the same command goes on", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    if as_json:
        print(
            json.dumps(
                {"images": len(found), "clusters": found.num_clusters, "sizes": found.sizes.tolist(), **found.about}
            )
        )
    return 0


def _choose_k(args: Arguments) -> None:
    from odc.choosing.chart import table
    from odc.choosing.choose import read_ks
    from odc.folder.number import PICTURE, number_of_clusters

    as_json, ks = args.pop("json"), args.pop("ks")
    args["ks"] = None if ks is None else read_ks(ks)
    choice, place = number_of_clusters(**args, stream=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(choice.describe()))
    else:
        show(table(choice) + (f"\n{place / PICTURE}" if choice.ks else ""))


def progress(what: str) -> Callable[[int, int], None]:
    """Return what is told how many of how many are done: on a terminal it says so, and how long the rest will take."""
    start = last = time.monotonic()

    def watch(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if not sys.stderr.isatty() or (now - last < 0.5 and done < total):
            return
        last = now
        left = datetime.timedelta(seconds=round((now - start) / done * (total - done)))
        line = f"{what} {done:,} of {total:,}, {left} left" if done < total else ""
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)

    return watch


def _predict(args: Arguments) -> int:
    from odc.portable import PortableModel
    from odc.portable.following import follow
    from odc.portable.predicting import STDOUT, Rows, predict

    new, out, as_json, link = args["new"], args["out"], args["json"], args["link"]
    stdout = sys.stdout.buffer if out == STDOUT else None
    terminates = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends in good order, as Ctrl-C does
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where logs go
            model = PortableModel.load(args["model"])
            if args["watch"]:
                rows = None if stdout is None else Rows(stdout, model.columns, as_json)
                print(f"odc: looking at {new}; Ctrl-C ends it", file=sys.stderr)
                said = follow(model, new, None if out == STDOUT else out, rows_out=rows, link=link)
            else:
                watch = progress("images")
                said = predict(model, new, out, stream=stdout, as_json=as_json, link=link, watch=watch)
    except KeyboardInterrupt:
        again = "" if out == STDOUT else "; the same command goes on"
        print(f"\nodc: stopped{again}", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, terminates)
    if as_json and out != STDOUT:
        print(json.dumps(dataclasses.asdict(said)))
    print(printable(said.told(), keep="\n"), file=sys.stderr)
    return 0


def _report(args: Arguments) -> None:
    from odc.pages import report

    as_json = args.pop("json")
    with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):  # where logs go
        page = report(**args, watch=progress("thumbnails"))
    if as_json:
        print(json.dumps({"page": str(page)}))
    else:
        show(f"{page}: open it in a browser")


_REPORT = (
    arg("folder", "what odc cluster left", metavar="DIR"),
    arg("--images", "where the images are now, if they have moved", metavar="FOLDER"),
    arg("--names", "guess names of clusters from these words: .npz with words and vectors", metavar="FILE"),
    flag("--json", "print the path of the page as JSON"),
)
_CLUSTER = (
    arg("folder", "folder of the pictures, at any depth"),
    arg("-k --clusters", "number of clusters, or auto", metavar="K", required=True),
    arg("--out", "where everything goes (default: work_dirs/FOLDER-clusters)", metavar="DIR"),
    arg(
        "--features",
        "features of a network that others have trained: dinov2-small, timm:NAME, NAME@FILE, a file of features; "
        "default: scratch, learnt from the pictures alone",
        default="scratch",
        metavar="SOURCE",
    ),
    arg("--method", "scan, turtle, temi, spice, odc, kmeans, spectral, ... (default: what suits the pictures)"),
    arg("--budget", "time for everything: 90s, 10m, 1h30m", metavar="TIME"),
    arg("--seed", "of everything random (default 0)", type=int, default=0),
    SIZE,
    arg("--link", "a folder a cluster, too, of links", dest="copies", action="store_const", const="link"),
    arg("--copy", "a folder a cluster, too, of copies", dest="copies", action="store_const", const="copy"),
    pairs("--cfg-options", "settings of the recipe, e.g. moco.train_cfg.max_epochs=200"),
    flag("--json", "print the result as JSON, and progress on the standard error stream"),
)
_PREDICT = (
    arg("model", "what odc cluster left, or the folder model in it", metavar="DIR"),
    arg("new", "folder, list of files (.txt, .csv), an image, or a file of features"),
    arg("--out", "table to write, .csv or .parquet (default: the rows are printed)", metavar="FILE", default="-"),
    flag("--watch", "go on with images as they arrive in the folder, until Ctrl-C"),
    arg("--link", "make a folder a cluster there, of links to the images", metavar="DIR"),
    flag("--json", "print an object an image, or with --out one of the whole"),
)
_CHOOSE_K = (
    arg("source", "folder of pictures, folder that odc cluster left, or a file of features"),
    arg("--features", "a network by which pictures are seen (default: their pixels)", metavar="SOURCE"),
    arg("--ks", "numbers to try: 2-30, or 5,10,20; of many, some (default: 2-60)", metavar="NUMBERS"),
    arg("--out", "where the picture and the numbers go (default: work_dirs/NAME-choose-k)", metavar="DIR"),
    SIZE,
    arg("--seed", "of everything random (default 0)", type=int, default=0),
    flag("--json", "print the result as JSON, and progress on the standard error stream"),
)
COMMANDS = (
    Command(
        "cluster",
        "Cluster a folder of pictures; the same command goes on where it was interrupted.",
        _cluster,
        _CLUSTER,
        "odc cluster photos -k 10 --out clusters --features dinov2-small",
    ),
    Command(
        "predict",
        "Find the clusters of new images.",
        _predict,
        _PREDICT,
        "odc predict work_dirs/photos /path/to/new_photos --out new.csv",
    ),
    Command(
        "report",
        "Write the page of a clustering again.",
        _report,
        _REPORT,
        "odc report work_dirs/photos",
    ),
    Command(
        "choose-k",
        "Find out how many clusters the features speak for, or that they do not say.",
        _choose_k,
        _CHOOSE_K,
        "odc choose-k photos --features dinov2-small --out choice",
    ),
)
