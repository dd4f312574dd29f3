"""The command line: ``odc <subcommand>``; ``tools/*.py`` are the same functions in OpenMMLab's places.

What a subcommand is called with has the names of its function's parameters, and is passed on by them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import odc
from odc.errors import InputError, printable
from odc.files import explain
from odc.options import Overrides, parse

_LOGS = {"tensorboard": "TensorboardVisBackend", "wandb": "WandbVisBackend"}
_Arguments = dict[str, Any]  # by name, as they are written


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit code: 0, 1 where a compared method failed, or 2 for wrong input."""
    parser = argparse.ArgumentParser(prog="odc", description="Deep clustering of images.")
    parser.add_argument("--version", action="version", version=f"odc {odc.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, help_, run, arguments in _COMMANDS:
        command = commands.add_parser(name, help=help_, description=help_)
        for names, options in arguments:
            command.add_argument(*names, **options)
        command.set_defaults(run=run)
    args = vars(parser.parse_args(argv))
    try:
        code = args.pop("run")(args) or 0
        sys.stdout.flush()
    except InputError as e:
        print(f"odc: error: {printable(str(e))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, head say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        line = explain(e)
        if line is None:
            raise
        print(f"odc: error: {line}", file=sys.stderr)
        return 2
    return int(code)


def _show(text: str) -> None:
    """Print lines; names in them cannot move the cursor."""
    print(printable(text, keep="\n"))


def _options(args: _Arguments) -> dict[str, Any]:
    """Take out the options for the config; return them with the visualizers that ``--log`` asks for."""
    options = dict(args.pop("cfg_options") or {})
    if names := args.pop("log"):
        backends = [{"type": kind} for kind in ("LocalVisBackend", *(_LOGS[name] for name in names))]
        options["visualizer"] = {"type": "Visualizer", "vis_backends": backends}
    return options


def _prepare(args: _Arguments) -> Any:
    """Take out what is for the config; return it prepared."""
    from odc.apis import prepare_config

    args.pop("local_rank", None)  # launchers may give it; the environment says it too
    names = ("config", "work_dir", "cfg_options", "strict", "launcher", "seed", "amp")
    return prepare_config(**{name: args.pop(name) for name in names if name in args})


# -------------------------------------------------------------------------------------------------------- subcommands


def _train(args: _Arguments) -> None:
    from odc.apis import train

    options, clusters, resume = _options(args), args.pop("clusters"), args.pop("resume")
    if clusters is not None:
        if clusters < 1:
            raise InputError(f"--clusters must be at least 1, not {clusters}")
        options["model.head.num_clusters"] = clusters
    cfg = _prepare({**args, "cfg_options": options})
    if resume is not None:
        cfg.resume = True
        cfg.load_from = None if resume == "auto" else resume
    train(cfg)


def _test(args: _Arguments) -> None:
    from odc.apis import evaluate

    evaluate(_prepare(args), **args)


def _extract(args: _Arguments) -> None:
    from odc.apis import extract_features

    source, dataset, size = (args.pop(name) for name in ("features", "dataset", "size"))
    if source is None and (args["config"] is None or args["checkpoint"] is None):
        raise InputError("odc extract needs a config and a checkpoint, or --features and --dataset")
    if source is None:
        for name, value in (("--dataset", dataset), ("--size", size)):
            if value is not None:
                raise InputError(f"{name} {value} is for --features: the config has the data set and its views")
        extract_features(_prepare(args), **args)
        return
    from odc.comparison.samples import pictures_of
    from odc.sources import extract_source

    if args["config"] is not None:
        raise InputError(f"--features {source} needs no config, and {args['config']} is one: leave one of them out")
    for name in ("cfg_options", "drop_neck"):
        if args[name]:
            raise InputError(f"--{name.replace('_', '-')} changes a config: --features {source} has none, leave it out")
    if args["split"] != "train":
        raise InputError(f"--split {args['split']}: give the other part to --dataset, it has its own features")
    rest = {name: args[name] for name in ("work_dir", "strict", "launcher")}
    extract_source(source, pictures_of(dataset or "digits").data.dataset.to_dict(), args["out"], size, **rest)


def _probe(args: _Arguments) -> None:
    from odc.probe import probe

    _show(str(probe(_prepare(args), **args)))


def _recipe(args: _Arguments) -> None:
    from odc.recipes import Pipeline, Recipe
    from odc.recipes.pipeline import summary

    recipe, options, work_dir = Recipe.load(args.pop("config")), _options(args), args.pop("work_dir")
    if (pretrained := args.pop("pretrained")) is not None:
        recipe = recipe.with_backbone(pretrained)
    recipe = recipe.configured(options, **args)
    pipeline = Pipeline(recipe, work_dir or f"work_dirs/{recipe.name}")
    results = pipeline.run()
    _show(f"\n{summary(results)}\n\n{pipeline.places[recipe.stages[-1].name] / 'clusters.csv'}")


def _compare(args: _Arguments) -> int:
    from odc.comparison.plan import Request
    from odc.comparison.run import compare, default_jobs, default_threads, report_only
    from odc.comparison.table import table

    out = args["out"] = Path(args["out"])
    args["options"] = _options(args)
    if args.pop("report_only"):
        records = report_only(out)
    elif not args["methods"]:
        raise InputError("--methods needs at least one method")
    else:
        asked = {key: parse(value) for key, value in (args.pop("executor_options") or {}).items()}
        if args["jobs"] is None:
            args["jobs"] = 100 if args["executor"] == "slurm" else default_jobs()
        threads = asked.get("cpus_per_task") or default_threads(
            max(1, args["jobs"]), vectors=args["features"] is not None
        )
        records = compare(Request(**args, threads=threads, executor_options=asked), sys.stdout)
    _show(f"\n{table(records)}\n\n{out / 'report.html'}")
    return int(any(r.error is not None for r in records))


def _reliable(args: _Arguments) -> None:
    from odc.recipes import Reliable

    cfg = _prepare(args)
    files = {name: args.pop(name) for name in ("checkpoint", "out", "features", "labelled", "alignment")}
    Reliable("reliable", **args).find(cfg, **files)


def _align(args: _Arguments) -> None:
    from odc.evaluation.align import align_clusters

    _show(align_clusters(**args))


def _convert(args: _Arguments) -> None:
    from odc.models.convert import convert

    _show(convert(**args))


def _print_config(args: _Arguments) -> None:
    from odc.config import load_config
    from odc.config.checking import check_config

    cfg = load_config(args["config"], args["cfg_options"])
    check_config(cfg)
    _show(cfg.pretty_text)


# --------------------------------------------------------------------------------------------------------- arguments


def _arg(names: str, help_: str, **options: Any) -> tuple[list[str], dict[str, Any]]:
    """Return an argument of a subcommand, and what :mod:`argparse` is to know of it."""
    return names.split(), {"help": help_, **options}


def _flag(name: str, help_: str) -> tuple[list[str], dict[str, Any]]:
    return _arg(name, help_, action="store_true")


def _pairs(name: str, help_: str) -> tuple[list[str], dict[str, Any]]:
    return _arg(name, help_, nargs="+", action=Overrides, metavar="KEY=VALUE")


_CONFIG = (
    _arg("config", "path of the config, or its name in the package"),
    _pairs("--cfg-options", "change settings of the config, e.g. model.head.num_clusters=20"),
)
_WORK = (
    *_CONFIG,
    _arg("--work-dir", "where everything of the run goes (default: work_dirs/<config>)"),
    _flag("--strict", "unreadable images are an error, not skipped"),
)
_RUN = (
    *_WORK,
    _arg("--launcher", "", choices=["none", "pytorch", "slurm", "mpi"], default="none"),
    _arg("--local_rank --local-rank", argparse.SUPPRESS, type=int),
)
_CHECKPOINT = (*_RUN, _arg("checkpoint", "path of the checkpoint"))
_AMP = _flag("--amp", "train in bfloat16 where it is safe and the machine has it")
_CLUSTERS = _arg("--clusters", "number of clusters (default: the configs')", type=int)
_PRETRAINED = _arg("--pretrained", "start from this backbone instead of pre-training one", metavar="FILE")
_LOG = _arg("--log", "write the curves there too", nargs="+", choices=list(_LOGS), default=[])
_DROP_NECK = _flag(
    "--drop-neck", "take the backbone's output, averaged over the image, without the layers of a neck like ODC's"
)
_TRAIN = (
    *_RUN,
    _arg(
        "--resume",
        "go on from a checkpoint; without a value, from the newest in the work directory",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
    ),
    _AMP,
    _arg("--seed", "seed of the run (default: the config's randomness.seed)", type=int),
    _arg("--clusters", "number of clusters: model.head.num_clusters", type=int),
    _LOG,
)
_TEST = (*_CHECKPOINT, _arg("--out", "write clusters.csv, clusters.png and metrics.json there", metavar="DIR"))
_DATASET = _arg(
    "--dataset",
    "name in configs/comparisons, path of such a config, or a folder of pictures (default: digits)",
)
_FEATURES = _arg(
    "--features",
    "features that are not learnt here: a short name (dinov2-small), timm:NAME or torchvision:NAME, with @FILE for "
    "weights in a file, a file of features, or a checkpoint; A+B are two spaces",
    metavar="SOURCE",
)
_SIZE = _arg(
    "--size", "pixels a side at which the network of --features sees pictures (default: as its weights want)", type=int
)
_EXTRACT = (
    _arg("config", "path of the config, or its name in the package, unless --features is given", nargs="?"),
    *_RUN[1:],
    _arg("checkpoint", "path of the checkpoint, unless --features is given", nargs="?"),
    _FEATURES,
    _DATASET,
    _SIZE,
    _arg("--out", "file to write, .npz or .parquet; with --features a folder, too", metavar="FILE", required=True),
    _arg(
        "--split", "images of data.dataset (default) or data.eval_dataset", choices=["train", "eval"], default="train"
    ),
    _DROP_NECK,
)
_PROBE = (  # one process: on several, extract, then probe the files
    *_WORK,
    _arg("checkpoint", "path of the checkpoint, unless --features is given", nargs="?"),
    _arg("--features", "features of data.dataset, from odc extract", metavar="FILE"),
    _arg("--test-features", "features of data.eval_dataset, where there is one", metavar="FILE"),
    _arg("--out", "write the results there too, as JSON", metavar="FILE"),
    _DROP_NECK,
)
_RECIPE = (
    *_WORK,
    _CLUSTERS,
    _PRETRAINED,
    _AMP,
    _arg("--seed", "seed of all stages (default: the configs')", type=int),
    _LOG,
)
_COMPARE = (
    _arg("--out", "folder for results, table.md and report.html", metavar="DIR", required=True),
    _arg(
        "--methods",
        "names in the data set's comparison config (dc, odc, deepercluster, spice), paths of configs, or "
        "<estimator>-<features>: kmeans, gmm, spectral, agglomerative, hdbscan or the dotted path of a class with "
        "fit_predict, on pixels, backbone or moco. odc-moco starts from a shared pre-training, spice-self is a recipe "
        "up to that stage. With --features: dc, odc, deepercluster, spice-self, scan, temi, turtle, paths of configs, "
        "<estimator> or <estimator>-raw. consensus combines all rows of a seed, METHOD-consensus the seeds of one",
        nargs="+",
        metavar="METHOD",
    ),
    _DATASET,
    _FEATURES,
    _SIZE,
    _arg(
        "--evaluate-on",
        "split of the data set (train, test, train+test) or folder of pictures (default: the configs', or what is "
        "clustered)",
        metavar="WHERE",
    ),
    _CLUSTERS,
    _arg("--seeds", "each method runs once with each (default: 0 1 2)", nargs="+", type=int, default=[0, 1, 2]),
    _arg("--jobs", "cells at a time (default: one a core; with a GPU, one; on Slurm, 100)", type=int),
    _arg(
        "--executor",
        "where cells run: in processes that end with this one (default), or as jobs, which go on and are found again, "
        "on this machine or a cluster",
        choices=["local", "local-jobs", "slurm"],
        default="local",
    ),
    _pairs(
        "--executor-options",
        "what each job asks for, e.g. partition=gpu gpus_per_node=1 cpus_per_task=8 timeout_min=600 (default: a day)",
    ),
    _arg("--epochs", "the same number of epochs for every method; the trainings of a recipe share it", type=int),
    _arg("--minutes", "time of every method, instead of epochs; the trainings of a recipe share it", type=float),
    _PRETRAINED,
    _arg("--pretrain-epochs", "epochs of pre-training (default: its config's)", type=int),
    _pairs("--cfg-options", "settings of every config; STAGE.KEY or METHOD.KEY is for that one alone"),
    _LOG,
    _flag("--report-only", "write table and report again, run nothing"),
)
_RELIABLE = (
    *_CHECKPOINT,
    _arg("--out", "folder for labels.npz and beta.png", metavar="DIR", required=True),
    _arg("--features", "take neighbours in these, from odc extract", metavar="FILE"),
    _arg("--neighbours", "nearest images of each that count (default 100)", type=int, default=100),
    _arg("--threshold", "share of them that must be in the same cluster (default .99)", type=float, default=0.99),
    _arg("--score-threshold", "keep only labels more confident than this", type=float),
    _arg(
        "--balance",
        "keep equally many labels of every cluster: those of the smallest, or --quota",
        choices=["min", "quota"],
    ),
    _arg("--quota", "labels of every cluster, with --balance quota", type=int),
    _arg(
        "--labels",
        "images (path, label) whose class you know: these labels join the others, and win",
        metavar="CSV",
        dest="labelled",
    ),
    _arg("--align", "which cluster is which class, from odc align", metavar="JSON", dest="alignment"),
    _flag("--allow-empty", "go on where a cluster has no reliable image"),
)
_ALIGN = (
    _arg("clusters", "clusters.csv of a run"),
    _arg("labels", "CSV with the columns path and label: some images whose class you know"),
    _arg("--out", "file for the map from clusters to classes", metavar="JSON", required=True),
    _arg("--features", "from odc extract; needed for classes with fewer than 3 labels", metavar="FILE"),
    _arg("--test", "other labelled images to measure the map on", metavar="CSV"),
    _arg("--min-margin", "leave a cluster unnamed where its class is ahead by less", type=float, default=0.0),
)
_CONVERT = (
    _arg("src", "checkpoint of this or another project"),
    _arg("dst", "file to write, .pth or .safetensors"),
    _arg("--layout", "layout of the checkpoint (default: recognised by its names)"),
    _arg("--to", "names to write: those of odc (default), torchvision or timm", default="odc"),
)
_Run = Callable[[_Arguments], int | None]  # the exit code, None for 0
_COMMANDS: list[tuple[str, str, _Run, Sequence[tuple[list[str], dict[str, Any]]]]] = [
    ("train", "Train by a config.", _train, _TRAIN),
    ("test", "Evaluate a checkpoint; --out writes its clusters.", _test, _TEST),
    ("extract", "Write the features of all images to a file.", _extract, _EXTRACT),
    ("probe", "Measure features by nearest neighbours and linear classifiers.", _probe, _PROBE),
    ("run", "Run the stages of a recipe, such as spice_digits, one after the other.", _recipe, _RECIPE),
    ("spice", "Another name of run.", _recipe, _RECIPE),
    ("compare", "Compare methods: table, results, and a report with pictures.", _compare, _COMPARE),
    ("reliable", "Keep the labels that an image's neighbours share.", _reliable, _RELIABLE),
    ("align", "Find out which cluster is which class, from a few labelled images.", _align, _ALIGN),
    ("convert", "Take the backbone out of a checkpoint of any known layout.", _convert, _CONVERT),
    ("print-config", "Print the whole config, with everything it inherits.", _print_config, _CONFIG),
]


if __name__ == "__main__":
    sys.exit(main())
