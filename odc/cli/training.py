"""Commands that train, measure and compare."""

from __future__ import annotations

import sys
from pathlib import Path

from odc.cli.arguments import (
    AMP,
    CHECKPOINT,
    CLUSTERS,
    DATASET,
    DROP_NECK,
    FEATURES,
    LOG,
    PRETRAINED,
    RUN,
    SIZE,
    WORK,
    Arguments,
    Command,
    arg,
    config_options,
    flag,
    group,
    pairs,
    prepare,
    show,
)
from odc.errors import InputError
from odc.options import parse


def _train(args: Arguments) -> None:
    from odc.apis import train

    options, clusters, resume = config_options(args), args.pop("clusters"), args.pop("resume")
    if clusters is not None:
        if clusters < 1:
            raise InputError(f"--clusters must be at least 1, not {clusters}")
        options["model.head.num_clusters"] = clusters
    cfg = prepare({**args, "cfg_options": options})
    if resume is not None:
        cfg.resume = True
        cfg.load_from = None if resume == "auto" else resume
    train(cfg)


def _test(args: Arguments) -> None:
    from odc.apis import evaluate

    evaluate(prepare(args), **args)


def _extract(args: Arguments) -> None:
    from odc.apis import extract_features

    source, dataset, size = (args.pop(name) for name in ("features", "dataset", "size"))
    if source is None and (args["config"] is None or args["checkpoint"] is None):
        raise InputError("odc extract needs a config and a checkpoint, or --features and --dataset")
    if source is None:
        for name, value in (("--dataset", dataset), ("--size", size)):
            if value is not None:
                raise InputError(f"{name} {value} is for --features: the config has the data set and its views")
        extract_features(prepare(args), **args)
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


def _probe(args: Arguments) -> None:
    from odc.probe import probe

    show(str(probe(prepare(args), **args)))


def _recipe(args: Arguments) -> None:
    from odc.recipes import Pipeline, Recipe
    from odc.recipes.pipeline import summary

    recipe, options, work_dir = Recipe.load(args.pop("config")), config_options(args), args.pop("work_dir")
    if (pretrained := args.pop("pretrained")) is not None:
        recipe = recipe.with_backbone(pretrained)
    recipe = recipe.configured(options, **args)
    pipeline = Pipeline(recipe, work_dir or f"work_dirs/{recipe.name}")
    results = pipeline.run()
    show(f"\n{summary(results)}\n\n{pipeline.places[recipe.stages[-1].name] / 'clusters.csv'}")


def _compare(args: Arguments) -> int:
    from odc.comparison.plan import Request
    from odc.comparison.run import compare, default_jobs, default_threads, report_only
    from odc.comparison.table import table

    out = args["out"] = Path(args["out"])
    args["options"] = config_options(args)
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
    show(f"\n{table(records)}\n\n{out / 'report.html'}")
    return int(any(r.error is not None for r in records))


def _reliable(args: Arguments) -> None:
    from odc.recipes import Reliable

    cfg = prepare(args)
    files = {name: args.pop(name) for name in ("checkpoint", "out", "features", "labelled", "alignment")}
    Reliable("reliable", **args).find(cfg, **files)


_TRAIN = (
    *RUN,
    arg(
        "--resume",
        "go on from a checkpoint, by default the newest in the work directory",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
    ),
    AMP,
    arg("--seed", "seed of the run (default: the config's randomness.seed)", type=int),
    arg("--clusters", "number of clusters: model.head.num_clusters", type=int),
    LOG,
)
_TEST = (*CHECKPOINT, arg("--out", "write clusters.csv, clusters.png and metrics.json there", metavar="DIR"))
_EXTRACT = (
    arg("config", "path or name of a config, unless --features is given", nargs="?"),
    *RUN[1:],
    arg("checkpoint", "path of the checkpoint, unless --features is given", nargs="?"),
    FEATURES,
    DATASET,
    SIZE,
    arg("--out", ".npz or .parquet to write; with --features a folder, too", metavar="FILE", required=True),
    arg("--split", "images of data.dataset (default) or data.eval_dataset", choices=["train", "eval"], default="train"),
    DROP_NECK,
)
_PROBE = (  # one process: on several, extract, then probe the files
    *WORK,
    arg("checkpoint", "path of the checkpoint, unless --features is given", nargs="?"),
    arg("--features", "features of data.dataset, from odc extract", metavar="FILE"),
    arg("--test-features", "features of data.eval_dataset, where there is one", metavar="FILE"),
    arg("--out", "write the results there too, as JSON", metavar="FILE"),
    DROP_NECK,
)
_RECIPE = (
    *WORK,
    CLUSTERS,
    PRETRAINED,
    AMP,
    arg("--seed", "seed of all stages (default: the configs')", type=int),
    LOG,
)
_COMPARE = (
    arg("--out", "folder for results, table.md and report.html", metavar="DIR", required=True),
    arg(
        "--methods",
        "dc odc deepercluster spice; with a pre-training odc-moco kmeans-moco; with --features kmeans "
        "spectral scan temi turtle odc; paths of configs; consensus",
        nargs="+",
        metavar="METHOD",
    ),
    *group(
        "images and features",
        DATASET,
        FEATURES,
        SIZE,
        arg("--evaluate-on", "train, test, train+test, or another folder of pictures", metavar="WHERE"),
        CLUSTERS,
    ),
    *group(
        "runs",
        arg("--seeds", "each method runs once with each (default: 0 1 2)", nargs="+", type=int, default=[0, 1, 2]),
        arg("--epochs", "of every method; the trainings of a recipe share them", type=int),
        arg("--minutes", "of every method, instead of epochs", type=float),
        PRETRAINED,
        arg("--pretrain-epochs", "epochs of pre-training (default: its config's)", type=int, metavar="EPOCHS"),
        pairs("--cfg-options", "of every config; STAGE.KEY or METHOD.KEY of that one alone"),
        LOG,
        flag("--report-only", "write table and report again, run nothing"),
    ),
    *group(
        "where they run",
        arg("--jobs", "runs at a time (default: one a core; with a GPU, one; on Slurm, 100)", type=int),
        arg(
            "--executor",
            "local (default), or jobs that go on alone: local-jobs, slurm",
            choices=["local", "local-jobs", "slurm"],
            default="local",
            metavar="WHERE",
        ),
        pairs("--executor-options", "of a job: partition=gpu gpus_per_node=1 timeout_min=600"),
    ),
)
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
COMMANDS = (
    Command(
        "train",
        "Train by a config.",
        _train,
        _TRAIN,
        "odc train odc_convnet_1xb64-30e_digits --work-dir work_dirs/digits",
    ),
    Command(
        "test",
        "Evaluate a checkpoint; --out writes its clusters.",
        _test,
        _TEST,
        "odc test odc_convnet_1xb64-30e_digits work_dirs/digits/epoch_30.pth",
    ),
    Command(
        "extract",
        "Write the features of all images to a file.",
        _extract,
        _EXTRACT,
        "odc extract --features dinov2-small --dataset photos --out photos.npz",
    ),
    Command(
        "probe",
        "Measure features by nearest neighbours and linear classifiers.",
        _probe,
        _PROBE,
        "odc probe moco_convnet_1xb64-100e_digits work_dirs/moco/epoch_100.pth",
    ),
    Command(
        "run",
        "Run the stages of a recipe, such as spice_digits, one after the other.",
        _recipe,
        _RECIPE,
        "odc run spice_digits --work-dir work_dirs/spice",
    ),
    Command(
        "spice",
        "Another name of run.",
        _recipe,
        _RECIPE,
        "odc spice spice_digits --seed 1",
    ),
    Command(
        "reliable",
        "Keep the labels that an image's neighbours share.",
        _reliable,
        _RELIABLE,
        "odc reliable spice-self_convnet_1xb128-30e_digits work_dirs/self/epoch_30.pth --out work_dirs/kept",
    ),
    Command(
        "compare",
        "Compare methods: table, results, and a report with pictures.",
        _compare,
        _COMPARE,
        "odc compare --methods kmeans-moco odc-moco --seeds 0 1 2 --out work_dirs/compare",
    ),
)
