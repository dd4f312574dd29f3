"""Compare clustering methods on equal terms: same images, same backbone, same epochs, same evaluation.

    python benchmarks/compare.py --methods kmeans-pixels dc odc --dataset digits --seeds 0 1 2 --out work_dirs/demo

A method is one of the names below or the path of a config of your own. SPICE, and the methods whose name ends in
``-moco``, start from a backbone that MoCo trains once for each seed, the same for all of them (or from ``--pretrained
FILE``); its time is told apart from theirs. Every cell (method x seed) runs in a process of its own, so that its peak
memory is its own and its failure loses nothing else. ``results.json`` is a list with a record for every cell and is
written after each; ``table.md`` is the table that the terminal shows.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Container, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from odc.errors import InputError, nearest

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = {
    "digits": {
        "dc": "configs/deepcluster/deepcluster_convnet_1xb64-30e_digits.py",
        "odc": "configs/odc/odc_convnet_1xb64-30e_digits.py",
        "deepercluster": "configs/deepercluster/deepercluster_convnet_1xb64-30e_digits.py",
        "spice-self": "configs/pipelines/spice_digits.py",
        "spice": "configs/pipelines/spice_digits.py",
        "moco": "configs/moco/moco_convnet_1xb64-100e_digits.py",
        "dc-moco": "configs/deepcluster/deepcluster_convnet_1xb64-30e_digits-moco.py",
        "odc-moco": "configs/odc/odc_convnet_1xb64-30e_digits-moco.py",
    },
    "folder32": {
        "dc": "configs/deepcluster/deepcluster_resnet18-w16_1xb128-20e_folder32.py",
        "odc": "configs/odc/odc_resnet18-w16_1xb128-20e_folder32.py",
        "deepercluster": "configs/deepercluster/deepercluster_resnet18-w16_1xb128-20e_folder32.py",
        "spice-self": "configs/pipelines/spice_folder32.py",
        "spice": "configs/pipelines/spice_folder32.py",
        "moco": "configs/moco/moco_resnet18-w16_1xb128-40e_folder32.py",
        "dc-moco": "configs/deepcluster/deepcluster_resnet18-w16_1xb128-20e_folder32.py",
        "odc-moco": "configs/odc/odc_resnet18-w16_1xb128-20e_folder32.py",
    },
}
PRETRAINING = "moco"  # its cells come before those of the methods that start from them, and are no row of the table
BASELINES = ("kmeans-pixels", "kmeans-backbone", "kmeans-moco")
PIPELINES = {"spice-self": "self", "spice": "semi"}  # and the stage whose result is the row
METHODS_HELP = f"{', '.join(BASELINES)}, dc, odc, deepercluster, dc-moco, odc-moco, spice-self, spice, or configs"
METRICS = ("acc", "nmi", "ari", "knn")
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "onedl-mmengine", "mmengine", "faiss-cpu", "faiss-gpu")

Report = Callable[[float, str], None]


# -- one cell, in a process of its own -------------------------------------------------------------------------------


def run_baseline(cfg: Any, method: str, report: Report) -> dict[str, float]:
    """K-means on the pixels of the extraction view, or on the features of the backbone, untrained or pre-trained."""
    import torch
    from mmengine.runner import set_random_seed

    from odc.clustering import kmeans, l2_normalize
    from odc.engine.data import ClusterData
    from odc.engine.extract import extract
    from odc.evaluation.evaluator import ClusterMetrics, Evaluation, KNNMetric
    from odc.models import AvgPool, ClusterModel
    from odc.registry import MODELS, build
    from odc.structures import LocalComm, make_generator

    set_random_seed(cfg.randomness.seed)
    data = ClusterData(**cfg.data)
    source = data.eval
    K = num_clusters(cfg)
    model: ClusterModel = build(MODELS, cfg.model)
    if method == "kmeans-pixels":
        model.backbone = model.neck = torch.nn.Flatten()
    else:
        model.neck = AvgPool(model.backbone.out_channels)
        model.init_weights()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    table = extract(model, source, LocalComm(), batch_size=data.extract_batch_size)
    report(0.5, "k-means")
    rng = make_generator(cfg.randomness.seed, "kmeans")
    features, _ = l2_normalize(table.features) if method != "kmeans-pixels" else (table.features, None)
    result = kmeans(features, K, n_iter=100, n_redo=20, plus_plus=True, generator=rng)
    scores = torch.nn.functional.one_hot(result.labels, K).float()
    evaluation = Evaluation(table.features.cpu(), scores.cpu(), source.dataset.targets)
    return ClusterMetrics()(evaluation) | KNNMetric()(evaluation)


def run_method(cfg: Any, report: Report) -> dict[str, float]:
    """Train by a config and return its last evaluation."""
    from mmengine.hooks import Hook

    from odc.apis import build_runner, convert, finish
    from odc.models import MoCo

    class Reporter(Hook):
        def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
            report(runner.train_loop.progress, f"epoch {runner.epoch + 1}/{runner.max_epochs}")

    runner = build_runner(cfg)
    runner.register_hook(Reporter())
    runner.train()
    values = finish(runner, Path(cfg.work_dir))
    if isinstance(runner.model, MoCo):
        convert(Path(cfg.work_dir) / f"epoch_{runner.max_epochs}.pth", Path(cfg.work_dir) / "backbone.pth")
    return values


def run_pipeline(cell: dict[str, Any], report: Report) -> dict[str, float]:
    """Run SPICE from the shared backbone up to the row's stage; the stages before it may be there already."""
    from odc.pipeline import Pipeline

    until = PIPELINES[cell["method"]]
    report(0.0, until)
    pipeline = Pipeline(
        cell["config"],
        work_dir=cell["work_dir"],
        cfg_options=cell["cfg_options"],
        pretrained=cell["pretrained"],
        seed=cell["seed"],
    )
    results = pipeline.run(until)
    values = {k: v for k, v in results[until].items() if isinstance(v, float) and k != "seconds"}
    if "reliable" in results:
        values |= {"reliable": float(results["reliable"]["count"]), "purity": results["reliable"]["purity"]}
    return {**values, "stage_seconds": sum(result["seconds"] for result in results.values())}


def run_cell(cell: dict[str, Any], pipe: Connection) -> None:
    """Run one cell and send its record; everything it prints goes into a file."""
    folder = Path(cell["work_dir"])
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    last = 0.0

    def report(share: float, where: str) -> None:
        nonlocal last
        if time.monotonic() - last > 0.5:
            last = time.monotonic()
            pipe.send(("progress", share, where))

    started = time.perf_counter()
    try:
        set_threads(cell["threads"])
        if cell["method"] in PIPELINES:
            values = run_pipeline(cell, report)
        elif cell["method"] in BASELINES:
            values = run_baseline(prepare(cell), cell["method"], report)
        else:
            values = run_method(prepare(cell), report)
        record: dict[str, Any] = {name: values.get(name) for name in (*METRICS, *sorted(set(values) - set(METRICS)))}
    except Exception as e:  # whatever it is, it becomes this cell's record
        traceback.print_exc()
        record = {"error": " ".join(f"{type(e).__name__}: {e}".split()), "log": str(folder / "output.txt")}
    # A stage that was there already took its time earlier.
    record["seconds"] = record.pop("stage_seconds", None) or round(time.perf_counter() - started, 2)
    usage = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    record["peak_rss_mb"] = round(usage / 1024, 1)
    pipe.send(("record", record))


def set_threads(threads: int) -> None:
    """Let torch and FAISS use this many threads."""
    import torch

    from odc.clustering.kmeans import load_faiss

    torch.set_num_threads(threads)
    load_faiss().omp_set_num_threads(threads)


def prepare(cell: dict[str, Any]) -> Any:
    """Return the config of a cell, ready to run."""
    from odc.apis import prepare_config

    options: dict[str, Any] = {}
    if cell["epochs"] is not None:
        options["train_cfg.max_epochs"] = cell["epochs"]
    if cell["pretrained"] is not None:
        options["model.pretrained"] = cell["pretrained"]
    cfg = prepare_config(
        cell["config"], work_dir=cell["work_dir"], cfg_options={**options, **cell["cfg_options"]}, seed=cell["seed"]
    )
    # Ground truth is looked at once, at the end: what is measured is training.
    cfg.train_cfg.val_interval = cfg.train_cfg.max_epochs
    return cfg


def num_clusters(cfg: Any) -> int:
    """Return K of the config's head."""
    K = cfg.model.head.get("num_clusters")
    if K is None:
        raise InputError("k-means needs to know K: the head of the first config has no num_clusters")
    return int(K)


# -- all cells -------------------------------------------------------------------------------------------------------


def plan_cells(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the cells in order of method and seed.

    Raises:
        InputError: for an unknown method or data set, or configs that would not be a fair comparison.
    """
    known = CONFIGS.get(args.dataset)
    if known is None:
        raise InputError(f"unknown data set '{args.dataset}'{nearest(args.dataset, CONFIGS)}")
    configs = {}
    for method in args.methods:
        if method.endswith(".py"):
            configs[Path(method).stem] = method
        elif method in known and method != PRETRAINING:
            configs[method] = str(ROOT / known[method])
        elif method in BASELINES:
            configs[method] = ""
        else:
            names = [*BASELINES, *(name for name in known if name != PRETRAINING)]
            raise InputError(f"unknown method '{method}'{nearest(method, names)}, or the path of a config")
    # The baselines take data and backbone from the first method that is trained.
    trained = (path for method, path in configs.items() if path and method not in PIPELINES)
    first = next(trained, str(ROOT / known["odc"]))
    follow = [method for method in configs if method.endswith("-" + PRETRAINING) or method in PIPELINES]
    if args.pretrained is not None and not follow:
        raise InputError(f"--pretrained is for SPICE and methods whose name ends in -{PRETRAINING}: there is none")
    if args.pretrained is not None and not Path(args.pretrained).is_file():
        raise InputError(f"--pretrained: there is no file '{args.pretrained}'")
    if follow and args.pretrained is None:
        configs = {PRETRAINING: str(ROOT / known[PRETRAINING]), **configs}
    cells = [
        {
            "method": method,
            "seed": seed,
            "config": path or first,
            "epochs": args.pretrain_epochs if method == PRETRAINING else args.epochs,
            "pretrained": pretrained(args, seed) if method in follow else None,
            "cfg_options": args.cfg_options or {},
            "threads": max(1, (os.cpu_count() or 1) // args.jobs),
            # SPICE's two rows share their folder: what the first has done, the second finds.
            "work_dir": str(Path(args.out) / f"{'spice' if method in PIPELINES else method}-{seed}"),
            "after": before(method, seed, configs),
        }
        for method, path in configs.items()
        for seed in args.seeds
    ]
    check_fair(cells)
    return cells


def before(method: str, seed: int, methods: Container[str]) -> list[tuple[str, int]]:
    """Return the cells that have to end before this one begins."""
    first = [PRETRAINING] if method.endswith("-" + PRETRAINING) or method in PIPELINES else []
    first += ["spice-self"] if method == "spice" else []
    return [(name, seed) for name in first if name in methods]


def pretrained(args: argparse.Namespace, seed: int) -> str:
    """Return the checkpoint that the methods of this seed start from."""
    return args.pretrained or str(Path(args.out) / f"{PRETRAINING}-{seed}" / "backbone.pth")


def check_fair(cells: Sequence[dict[str, Any]]) -> None:
    """Check that all configs have the same images and backbone, and but for the pre-training as many epochs.

    Raises:
        InputError: naming the two configs and what differs.
    """
    reference: dict[str, tuple[str, Any]] = {}
    for config in dict.fromkeys(cell["config"] for cell in cells):
        cell = next(c for c in cells if c["config"] == config)
        if cell["method"] in PIPELINES:  # a schedule of its own; it checks itself that its stages fit together
            continue
        cfg = prepare(cell)
        terms = {} if cell["method"] == PRETRAINING else {"train_cfg.max_epochs": cfg.train_cfg.max_epochs}
        terms |= {
            "data.dataset": cfg.data.dataset,
            "data.eval_dataset": cfg.data.get("eval_dataset"),
            "data.views.extract": cfg.data.views.extract,
            "model.backbone": cfg.model.backbone,
        }
        for key, value in terms.items():
            first, expected = reference.setdefault(key, (cell["method"], value))
            if value != expected:
                raise InputError(
                    f"not a fair comparison: {key} is {expected} for {first} but {value} for {cell['method']}: make "
                    "them equal, with --epochs or --cfg-options for all of them"
                )


class Running:
    """A cell that runs in a process of its own, and what is known of it so far."""

    def __init__(self, cell: dict[str, Any], context: Any) -> None:
        self.cell = cell
        self.title = f"{cell['method']} seed {cell['seed']}"
        self.share, self.where = 0.0, "starting"
        self.record: dict[str, Any] | None = None
        self.pipe, send = context.Pipe(duplex=False)
        self.process = context.Process(target=run_cell, args=(cell, send))
        self.process.start()
        send.close()

    def receive(self) -> bool:
        """Take one message; return whether the cell has ended."""
        try:
            message = self.pipe.recv()
        except EOFError:
            self.process.join()
            if self.record is None:
                self.record = {"error": f"the process ended with exit code {self.process.exitcode}"}
            return True
        if message[0] == "record":
            self.record = message[1]
        else:
            _, self.share, self.where = message
        return False


def run_all(cells: Sequence[dict[str, Any]], out: Path, jobs: int) -> list[dict[str, Any]]:
    """Run the cells, ``jobs`` at a time; return their records in the order of the cells."""
    context = multiprocessing.get_context("forkserver")  # imports once; never forks a process that has threads
    context.set_forkserver_preload(["odc.apis", "odc.models", "odc.heads", "odc.engine.loops"])
    facts = provenance()
    records: dict[int, dict[str, Any]] = {}
    running: dict[int, Running] = {}
    waiting = list(enumerate(cells))
    progress = Progress(len(cells))
    try:
        while waiting or running:
            while len(running) < jobs and (ready_cell := next_cell(waiting, cells, records)):
                waiting.remove(ready_cell)
                running[ready_cell[0]] = Running(ready_cell[1], context)
            ready = multiprocessing.connection.wait([r.pipe for r in running.values()], timeout=1.0)
            for number, r in list(running.items()):
                if r.pipe in ready and r.receive():
                    del running[number]
                    records[number] = describe(r, facts)
                    write(out / "results.json", json.dumps([records[n] for n in sorted(records)], indent=1) + "\n")
                    progress.ended(records[number])
            progress.show(len(records), list(running.values()))
    finally:
        for r in running.values():
            r.process.terminate()
    return [records[n] for n in sorted(records)]


def next_cell(
    waiting: Sequence[tuple[int, dict[str, Any]]], cells: Sequence[dict[str, Any]], records: dict[int, dict[str, Any]]
) -> tuple[int, dict[str, Any]] | None:
    """Return the first cell for which everything has ended that has to come before it."""
    ended = {(cells[n]["method"], cells[n]["seed"]) for n in records}
    return next((cell for cell in waiting if ended.issuperset(cell[1]["after"])), None)


def describe(r: Running, facts: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a cell that has ended, with all that is needed to repeat it."""
    cell, record = r.cell, r.record or {}
    untold = cell["method"] in BASELINES or cell["method"] in PIPELINES
    epochs = 0 if untold else int(prepare(cell).train_cfg.max_epochs)
    return {
        "method": cell["method"],
        "seed": cell["seed"],
        **record,
        "epochs": epochs,
        "threads": cell["threads"],
        "config": relative(cell["config"]),
        **facts,
    }


class Progress:
    """What runs, what is done, and the time left: redrawn on a terminal, a line every ten seconds in a file."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.started = time.monotonic()
        self.noted = self.started
        self.terminal = sys.stdout.isatty()

    def show(self, done: int, running: Sequence[Running]) -> None:
        """Show the cells that run."""
        now = time.monotonic()
        if now - self.noted < (0.5 if self.terminal else 10.0) or not running:
            return
        self.noted = now
        part = (done + sum(r.share for r in running)) / self.total
        left = datetime.timedelta(seconds=round((now - self.started) / part * (1 - part))) if part > 0 else "?"
        line = f"{done}/{self.total} done, {left} left: " + "; ".join(f"{r.title} {r.where}" for r in running)
        if self.terminal:
            print(f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
        else:
            print(line, flush=True)

    def ended(self, record: dict[str, Any]) -> None:
        """Show a cell's result."""
        clear = "\r\033[K" if self.terminal else ""
        result = record.get("error") or "  ".join(f"{m} {record[m]:.3f}" for m in METRICS if record[m] is not None)
        print(
            f"{clear}{record['method']} seed {record['seed']}  {result}  {record.get('seconds', 0):.1f} s", flush=True
        )


def provenance() -> dict[str, Any]:
    """Return what a number needs to be repeated: versions, hardware, revision, command."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "versions": versions,
        "machine": f"{cpu_model()}, {os.cpu_count()} cores",
        "git_revision": git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else ""),
        "command": shlex.join(["python", relative(sys.argv[0]), *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def cpu_model() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git(*args: str) -> str:
    """Return what git says of the checkout, or nothing where there is no git."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip()


def relative(path: str) -> str:
    """Return a path relative to the checkout, if it is inside."""
    full = Path(path).resolve()
    return str(full.relative_to(ROOT)) if full.is_relative_to(ROOT) else path


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return the table in Markdown: mean ± sample standard deviation over the seeds."""
    # Without ground truth there is only how the clusters are filled.
    labelled = any(r.get("acc") is not None for r in records)
    metrics = METRICS if labelled else ("entropy", "empty")
    names = ("ACC", "NMI", "ARI", "kNN") if labelled else ("entropy", "empty clusters")
    rows = [["method", *names, "seconds", "peak MB", "seeds"]]
    for method in dict.fromkeys(r["method"] for r in records if r["method"] != PRETRAINING):
        mine = [r for r in records if r["method"] == method]
        good = [r for r in mine if "error" not in r]
        if not good:
            rows.append([method, "failed", *[""] * (len(names) + 1), f"0 of {len(mine)}"])
            continue
        cells = [spread([r[m] for r in good], 3) for m in metrics]
        cells += [spread([r[m] for r in good], digits) for m, digits in (("seconds", 1), ("peak_rss_mb", 0))]
        rows.append([method, *cells, str(len(mine)) if len(good) == len(mine) else f"{len(good)} of {len(mine)}"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    shared = [r for r in records if r["method"] == PRETRAINING and "error" not in r]
    if shared:
        took = f"{spread([r['seconds'] for r in shared], 1)} s and {spread([r['peak_rss_mb'] for r in shared], 0)} MB"
        lines.append(
            f"\nBefore SPICE and the rows of -{PRETRAINING}, once a seed and shared by them: {shared[0]['epochs']} "
            f"epochs of pre-training by {shared[0]['config']}, {took}."
        )
    lines += [f"\n{r['method']} seed {r['seed']} failed: {r['error']}" for r in records if "error" in r]
    return "\n".join(lines)


def spread(values: Sequence[float | None], digits: int) -> str:
    """Return mean ± sample standard deviation."""
    known = [v for v in values if v is not None]
    if not known:
        return "–"
    mean = f"{statistics.mean(known):.{digits}f}"
    return mean if len(known) < 2 else f"{mean} ± {statistics.stdev(known):.{digits}f}"


def default_jobs() -> int:
    """Return 1 where there is a GPU, which one training fills, else a job for every core.

    NVIDIA's tool is asked because torch would start CUDA in this process.
    """
    return 1 if shutil.which("nvidia-smi") else os.cpu_count() or 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; return the exit code: 0, 1 when a method failed, 2 for wrong input."""
    from odc.compat import Overrides

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", required=True, help=METHODS_HELP)
    parser.add_argument("--dataset", default="digits", help=f"one of {', '.join(CONFIGS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", required=True, help="folder for results.json, table.md and a folder for every cell")
    parser.add_argument("--jobs", type=int, help="cells at a time (default: one a core; with a GPU, one)")
    parser.add_argument("--epochs", type=int, help="the same number of epochs for every method")
    parser.add_argument("--pretrained", metavar="FILE", help="start the -moco methods from it instead of training MoCo")
    parser.add_argument("--pretrain-epochs", type=int, help="epochs of MoCo (default: its config's)")
    parser.add_argument("--cfg-options", nargs="+", action=Overrides, metavar="KEY=VALUE", help="for every config")
    args = parser.parse_args(argv)
    args.jobs = args.jobs or default_jobs()
    try:
        cells = plan_cells(args)
    except InputError as e:
        print(f"compare: error: {e}", file=sys.stderr)
        return 2
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    records = run_all(cells, out, args.jobs)
    text = table(records)
    write(out / "table.md", text + "\n")
    print(f"\n{text}\n\n{out / 'results.json'}")
    return 1 if any("error" in r for r in records) else 0


if __name__ == "__main__":
    sys.exit(main())
