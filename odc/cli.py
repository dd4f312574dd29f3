"""The command line: ``odc <subcommand>``; ``tools/*.py`` are the same functions in OpenMMLab's places."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import odc
from odc.errors import InputError, printable
from odc.files import explain
from odc.options import Overrides, parse


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; return the exit code: 0, 1 where a compared method failed, or 2 for wrong input."""
    parser = argparse.ArgumentParser(prog="odc", description="Deep clustering of images.")
    parser.add_argument("--version", action="version", version=f"odc {odc.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, help_, add, run in _COMMANDS:
        command = commands.add_parser(name, help=help_, description=help_)
        add(command)
        command.set_defaults(run=run)
    args = parser.parse_args(argv)
    try:
        code = args.run(args) or 0
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


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="path of the config, or its name in the package")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=Overrides,
        metavar="KEY=VALUE",
        help="change settings of the config, e.g. model.head.num_clusters=20",
    )


def _add_log(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log", nargs="+", choices=list(_LOGS), default=[], help="write the curves there too")


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of the command line for the config, with the visualizers that ``--log`` asks for."""
    options = dict(args.cfg_options or {})
    backends = [{"type": "LocalVisBackend"}]
    backends += [{"type": _LOGS[name]} for name in args.log]
    if args.log:
        options["visualizer"] = {"type": "Visualizer", "vis_backends": backends}
    return options


def _add_work(parser: argparse.ArgumentParser) -> None:
    _add_config(parser)
    parser.add_argument("--work-dir", help="where everything of the run goes (default: work_dirs/<config>)")
    parser.add_argument("--strict", action="store_true", help="unreadable images are an error, not skipped")


def _add_run(parser: argparse.ArgumentParser) -> None:
    _add_work(parser)
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)


def _add_train(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="go on from a checkpoint; without a value, from the newest in the work directory",
    )
    parser.add_argument("--amp", action="store_true", help="train in bfloat16 where it is safe and the machine has it")
    parser.add_argument("--seed", type=int, help="seed of the run (default: the config's randomness.seed)")
    parser.add_argument("--clusters", type=int, help="number of clusters: model.head.num_clusters")
    _add_log(parser)


def _add_test(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("checkpoint", help="path of the checkpoint")
    parser.add_argument("--out", metavar="DIR", help="write clusters.csv, clusters.png and metrics.json there")


def _add_drop_neck(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--drop-neck",
        action="store_true",
        help="take the backbone's output, averaged over the image, without the layers of a neck like ODC's",
    )


def _add_extract(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("checkpoint", help="path of the checkpoint")
    parser.add_argument("--out", metavar="FILE", required=True, help="file to write, .npz or .parquet")
    parser.add_argument(
        "--split",
        choices=["train", "eval"],
        default="train",
        help="images of data.dataset (default) or data.eval_dataset",
    )
    _add_drop_neck(parser)


def _add_probe(parser: argparse.ArgumentParser) -> None:
    _add_work(parser)
    parser.set_defaults(launcher="none")  # one process: on several, extract, then probe the files
    parser.add_argument("checkpoint", nargs="?", help="path of the checkpoint, unless --features is given")
    parser.add_argument("--features", metavar="FILE", help="features of data.dataset, from odc extract")
    parser.add_argument("--test-features", metavar="FILE", help="features of data.eval_dataset, where there is one")
    parser.add_argument("--out", metavar="FILE", help="write the results there too, as JSON")
    _add_drop_neck(parser)


def _prepare(args: argparse.Namespace, **more: Any) -> Any:
    from odc.apis import prepare_config

    return prepare_config(
        args.config,
        work_dir=args.work_dir,
        cfg_options=args.cfg_options,
        strict=args.strict,
        launcher=args.launcher,
        **more,
    )


def _train(args: argparse.Namespace) -> None:
    from odc.apis import train

    args.cfg_options = _options(args)
    if args.clusters is not None:
        if args.clusters < 1:
            raise InputError(f"--clusters must be at least 1, not {args.clusters}")
        args.cfg_options["model.head.num_clusters"] = args.clusters
    cfg = _prepare(args, seed=args.seed, amp=args.amp)
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
    train(cfg)


def _test(args: argparse.Namespace) -> None:
    from odc.apis import evaluate

    evaluate(_prepare(args), args.checkpoint, args.out)


def _extract(args: argparse.Namespace) -> None:
    from odc.apis import extract_features

    extract_features(_prepare(args), args.checkpoint, args.out, split=args.split, drop_neck=args.drop_neck)


def _probe(args: argparse.Namespace) -> None:
    from odc.probe import probe

    report = probe(
        _prepare(args),
        args.checkpoint,
        features=args.features,
        test_features=args.test_features,
        drop_neck=args.drop_neck,
        out=args.out,
    )
    _show(str(report))


def _add_reliable(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("checkpoint", help="path of the checkpoint")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder for labels.npz and beta.png")
    parser.add_argument("--features", metavar="FILE", help="take neighbours in these, from odc extract")
    parser.add_argument("--neighbours", type=int, default=100, help="nearest images of each that count (default 100)")
    parser.add_argument(
        "--threshold", type=float, default=0.99, help="share of them that must be in the same cluster (default .99)"
    )
    parser.add_argument("--score-threshold", type=float, help="keep only labels more confident than this")
    parser.add_argument(
        "--balance",
        choices=["min", "quota"],
        help="keep equally many labels of every cluster: those of the smallest, or --quota",
    )
    parser.add_argument("--quota", type=int, help="labels of every cluster, with --balance quota")
    parser.add_argument(
        "--labels",
        metavar="CSV",
        help="images (path, label) whose class you know: these labels join the others, and win",
    )
    parser.add_argument("--align", metavar="JSON", help="which cluster is which class, from odc align")
    parser.add_argument("--allow-empty", action="store_true", help="go on where a cluster has no reliable image")


def _reliable(args: argparse.Namespace) -> None:
    from odc.recipes.reliable import reliable

    reliable(
        _prepare(args),
        args.checkpoint,
        args.out,
        features=args.features,
        neighbours=args.neighbours,
        threshold=args.threshold,
        score_threshold=args.score_threshold,
        balance=args.balance,
        quota=args.quota,
        labelled=args.labels,
        alignment=args.align,
        allow_empty=args.allow_empty,
    )


def _add_align(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("clusters", help="clusters.csv of a run")
    parser.add_argument("labels", help="CSV with the columns path and label: some images whose class you know")
    parser.add_argument("--out", metavar="JSON", required=True, help="file for the map from clusters to classes")
    parser.add_argument(
        "--features", metavar="FILE", help="from odc extract; needed for classes with fewer than 3 labels"
    )
    parser.add_argument("--test", metavar="CSV", help="other labelled images to measure the map on")
    parser.add_argument(
        "--min-margin", type=float, default=0.0, help="leave a cluster unnamed where its class is ahead by less"
    )


def _align(args: argparse.Namespace) -> None:
    from odc.evaluation.align import align_clusters

    _show(
        align_clusters(
            args.clusters, args.labels, args.out, features=args.features, test=args.test, min_margin=args.min_margin
        )
    )


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    _add_work(parser)
    parser.add_argument("--clusters", type=int, help="number of clusters (default: the configs')")
    parser.add_argument("--pretrained", metavar="FILE", help="start from this backbone instead of pre-training one")
    parser.add_argument("--amp", action="store_true", help="train in bfloat16 where it is safe and the machine has it")
    parser.add_argument("--seed", type=int, help="seed of all stages (default: the configs')")
    _add_log(parser)


def _recipe(args: argparse.Namespace) -> None:
    from odc.recipes import Pipeline, Recipe
    from odc.recipes.pipeline import summary

    recipe = Recipe.load(args.config)
    if args.pretrained is not None:
        recipe = recipe.with_backbone(args.pretrained)
    options = {"seed": args.seed, "amp": args.amp, "strict": args.strict, "clusters": args.clusters}
    recipe = recipe.configured(_options(args), **options)
    pipeline = Pipeline(recipe, args.work_dir or f"work_dirs/{recipe.name}")
    results = pipeline.run()
    _show(f"\n{summary(results)}\n\n{pipeline.places[recipe.stages[-1].name] / 'clusters.csv'}")


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", required=True, help="folder for results, table.md and report.html")
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="METHOD",
        help="names in the data set's comparison config (dc, odc, deepercluster, spice), paths of configs, or "
        "<estimator>-<features>: kmeans, gmm, spectral, agglomerative, hdbscan or the dotted path of a class with "
        "fit_predict, on pixels, backbone or moco. odc-moco starts from a shared pre-training, spice-self is a recipe "
        "up to that stage",
    )
    parser.add_argument(
        "--dataset",
        default="digits",
        help="name in configs/comparisons, path of such a config, or a folder of pictures (default: digits)",
    )
    parser.add_argument(
        "--evaluate-on",
        metavar="WHERE",
        help="split of the data set (train, test, train+test) or folder of pictures (default: the configs', or what is "
        "clustered)",
    )
    parser.add_argument("--clusters", type=int, help="number of clusters (default: the configs')")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1, 2], help="each method runs once with each (default: 0 1 2)"
    )
    parser.add_argument(
        "--jobs", type=int, help="cells at a time (default: one a core; with a GPU, one; on Slurm, 100)"
    )
    parser.add_argument(
        "--executor",
        choices=["local", "local-jobs", "slurm"],
        default="local",
        help="where cells run: in processes that end with this one (default), or as jobs, which go on and are found "
        "again, on this machine or a cluster",
    )
    parser.add_argument(
        "--executor-options",
        nargs="+",
        action=Overrides,
        metavar="KEY=VALUE",
        help="what each job asks for, e.g. partition=gpu gpus_per_node=1 cpus_per_task=8 timeout_min=600 (default: a "
        "day)",
    )
    parser.add_argument(
        "--epochs", type=int, help="the same number of epochs for every method; the trainings of a recipe share it"
    )
    parser.add_argument(
        "--minutes", type=float, help="time of every method, instead of epochs; the trainings of a recipe share it"
    )
    parser.add_argument("--pretrained", metavar="FILE", help="start from this backbone instead of pre-training one")
    parser.add_argument("--pretrain-epochs", type=int, help="epochs of pre-training (default: its config's)")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=Overrides,
        metavar="KEY=VALUE",
        help="settings of every config; STAGE.KEY or METHOD.KEY is for that one alone",
    )
    _add_log(parser)
    parser.add_argument("--report-only", action="store_true", help="write table and report again, run nothing")


def _compare(args: argparse.Namespace) -> int:
    from pathlib import Path

    from odc.comparison.plan import Request
    from odc.comparison.run import compare, default_jobs, default_threads, report_only
    from odc.comparison.table import table

    out = Path(args.out)
    if args.report_only:
        records = report_only(out)
    elif not args.methods:
        raise InputError("--methods needs at least one method")
    else:
        asked = {key: parse(value) for key, value in (args.executor_options or {}).items()}
        jobs = args.jobs if args.jobs is not None else 100 if args.executor == "slurm" else default_jobs()
        request = Request(
            methods=args.methods,
            out=out,
            dataset=args.dataset,
            evaluate_on=args.evaluate_on,
            seeds=args.seeds,
            jobs=jobs,
            threads=asked.get("cpus_per_task") or default_threads(max(1, jobs)),
            epochs=args.epochs,
            minutes=args.minutes,
            pretrain_epochs=args.pretrain_epochs,
            pretrained=args.pretrained,
            clusters=args.clusters,
            options=_options(args),
            executor=args.executor,
            executor_options=asked,
        )
        records = compare(request, sys.stdout)
    _show(f"\n{table(records)}\n\n{out / 'report.html'}")
    return int(any(r.error is not None for r in records))


def _print_config(args: argparse.Namespace) -> None:
    from odc.config import load_config
    from odc.config.checking import check_config

    cfg = load_config(args.config, args.cfg_options)
    check_config(cfg)
    _show(cfg.pretty_text)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("src", help="checkpoint of this or another project")
    parser.add_argument("dst", help="file to write, .pth or .safetensors")
    parser.add_argument("--layout", help="layout of the checkpoint (default: recognised by its names)")
    parser.add_argument("--to", default="odc", help="names to write: those of odc (default), torchvision or timm")


def _convert(args: argparse.Namespace) -> None:
    from odc.models.convert import convert

    _show(convert(args.src, args.dst, layout=args.layout, to=args.to))


_LOGS = {"tensorboard": "TensorboardVisBackend", "wandb": "WandbVisBackend"}
_Run = Callable[[argparse.Namespace], int | None]  # the exit code, None for 0
_COMMANDS: list[tuple[str, str, Callable[[argparse.ArgumentParser], None], _Run]] = [
    ("train", "Train by a config.", _add_train, _train),
    ("test", "Evaluate a checkpoint; --out writes its clusters.", _add_test, _test),
    ("extract", "Write the features of all images to a file.", _add_extract, _extract),
    ("probe", "Measure features by nearest neighbours and linear classifiers.", _add_probe, _probe),
    ("run", "Run the stages of a recipe, such as spice_digits, one after the other.", _add_recipe, _recipe),
    ("spice", "Another name of run.", _add_recipe, _recipe),
    ("compare", "Compare methods: table, results, and a report with pictures.", _add_compare, _compare),
    ("reliable", "Keep the labels that an image's neighbours share.", _add_reliable, _reliable),
    ("align", "Find out which cluster is which class, from a few labelled images.", _add_align, _align),
    ("convert", "Take the backbone out of a checkpoint of any known layout.", _add_convert, _convert),
    ("print-config", "Print the whole config, with everything it inherits.", _add_config, _print_config),
]


if __name__ == "__main__":
    sys.exit(main())
