"""CIFAR-10 from scratch on one GPU, in stages of some minutes that hand small files to each other.

    python benchmarks/gpu/cifar10.py features --data CIFAR --out first --minutes 9
    python benchmarks/gpu/cifar10.py features self reliable --data CIFAR --in first --out second
    python benchmarks/gpu/cifar10.py table --in first second --out .

``CIFAR`` is a folder with ``train`` and ``test``, of a folder of images for each class, or an archive of it (``.tar``,
with ``.gz`` or ``.zst``). The classes serve evaluation alone, on the test images. A stage takes what it needs from
``--out``, then from the folders of ``--in``. It leaves ``STAGE.json`` from its first epoch on, and files of at most 15
MiB: ``STAGE.pth.00`` and so on, joined again where they are read.

After every epoch the number of epochs becomes what the time left is enough for, and the learning rate ends with it. A
stage whose time (:data:`STAGES`, ``--total``) is longer than ``--minutes`` goes on in another call. Its weights,
averages and queues go to that in half precision; what is lost is the optimiser's momentum.

``--smoke`` runs the stages on few images with a narrow network, on a machine without a GPU: a rehearsal.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import shutil
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import torch
from mmengine import Config
from mmengine.hooks import Hook
from torch import Tensor

from odc.apis import load_runner, prepare_config, train
from odc.checkpoints import load_plain
from odc.clustering.consistency import local_consistency
from odc.engine.comm import get_comm
from odc.engine.extract import extract
from odc.errors import InputError, one_line
from odc.files import write_text
from odc.models.cluster_model import unwrap
from odc.recipes.reliable import Reliable

PART = 15 * 2**20  # bytes of a file
APART = 25.0  # seconds of a call for reading images and for the evaluation at the end
LEAST_A_CLUSTER = 0.1  # of an equal share: so many reliable images each cluster must have
THRESHOLDS = (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)  # of local consistency, the first that leaves these


@dataclass(frozen=True)
class Stage:
    """A training: its config, the minutes that it gets in all, and what differs from the config."""

    config: str
    minutes: float
    start: str | None = None  # the stage whose backbone it starts from
    options: Mapping[str, Any] = field(default_factory=dict)
    smoke: Mapping[str, Any] = field(default_factory=dict)
    epochs: int | None = None  # at most; None: as many as there is time for
    leaves: str | None = None  # what other stages take of its state: what begins so


_SMALL = {"model.head.batch_size": 64}
STAGES: dict[str, Stage] = {
    "moco": Stage(
        "moco_resnet18_1xb512-200e_cifar10",
        18,
        options={
            "model.split_bn": 4,
            "model.symmetric": True,
            "model.head.temperature": 0.1,
            "optim_wrapper.optimizer.lr": 0.24,
            "optim_wrapper.optimizer.weight_decay": 5e-4,
            "train_cfg.schedule.warmup": 0.02,
        },
        smoke=_SMALL | {"model.head.queue_size": 128},
        leaves="backbone.",
    ),
    "propos": Stage(
        "propos_resnet18_1xb512-1000e_cifar10", 18, smoke=_SMALL | {"model.head.warmup": 1}, leaves="backbone."
    ),
    "self": Stage(
        "spice-self_resnet18_1xb128-30e_cifar10",
        2,
        start="features",
        smoke={"model.head.num_heads": 2, "model.head.chunk": 150, "model.head.hidden_channels": 32},
        epochs=30,
        leaves="head.best_",
    ),
    "semi": Stage(
        "spice-semi_resnet18_1xb512-1024e_cifar10",
        9,
        start="features",
        options={"model.head.steps": 256},
        smoke=_SMALL | {"model.head.labelled_size": 16, "model.head.steps": 4, "model.head.threshold": 0.2},
        leaves="backbone.",
    ),
    "odc": Stage("odc_resnet18-w16_1xb128-20e_folder32", 2, start="features", smoke=_SMALL, epochs=100),
    "dc": Stage("deepcluster_resnet18-w16_1xb128-20e_folder32", 2, start="features", smoke=_SMALL, epochs=100),
    "deepercluster": Stage(
        "deepercluster_resnet18-w16_1xb128-20e_folder32", 2, start="features", smoke=_SMALL, epochs=100
    ),
    "secu": Stage("secu_resnet18_1xb128-401e_cifar10", 2, start="features", smoke=_SMALL, epochs=100),
    "dcboost": Stage(
        "dcboost_resnet18_1xb512-200e_cifar10", 4, start="features", smoke=_SMALL | {"model.head.warmup": 1}, epochs=200
    ),
}
FEATURES = ("moco", "propos")  # what the stage "features" may be
OTHERS = ("reliable", "table")


class Pace(Hook):
    """Fits a training into its time, over several calls, and writes down what every epoch took."""

    def __init__(self, out: Path, told: dict[str, Any], until: float, total: float, most: int | None) -> None:
        self.out, self.told, self.until, self.total, self.most = out, told, until, total, most
        self.before, self.done = float(told.get("seconds", 0.0)), int(told.get("epochs", 0))
        self.finished, self.state, self.backbone = False, dict[str, Tensor](), dict[str, Tensor]()
        told.setdefault("seconds_of_epochs", [])

    def before_train(self, runner: Any) -> None:
        """Go on at the epoch that an earlier call came to, and start the clock."""
        runner.train_loop._epoch, runner.train_loop.evaluated = self.done, True
        self.started = self.last = time.monotonic()

    def after_train_epoch(self, runner: Any) -> None:
        """Plan the epochs that are left by the usual time of one; end the call where another would be too long."""
        loop, seconds = runner.train_loop, self.told["seconds_of_epochs"]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            self.told["peak_gpu_mib"] = torch.cuda.max_memory_allocated() >> 20
        now = time.monotonic()
        seconds.append(round(now - self.last, 3))
        self.last, done = now, runner.epoch + 1
        used = self.before + now - self.started
        usual = sorted(seconds)[len(seconds) // 2]  # the first one has images to decode, and code to compile
        planned = done + max(0, int((self.total - used) / usual))
        planned = planned if self.most is None else min(planned, self.most)
        self.finished = done >= planned
        loop.max_epochs = done if now + usual > self.until else planned
        self.told |= {"seconds": round(used, 1), "epochs": done, "planned_epochs": planned, "finished": self.finished}
        self.told["images_per_second"] = round(loop.images_seen / (now - self.started), 1)
        self.write()

    def after_train(self, runner: Any) -> None:
        """Take what is handed on."""
        model = unwrap(runner.model)
        self.state = {k: v.detach().cpu() for k, v in model.state_dict().items() if not k.startswith("labels.")}
        with model.averaged():
            self.backbone = {f"backbone.{k}": v.detach().cpu() for k, v in model.backbone.state_dict().items()}

    def write(self) -> None:
        """Write what is known so far."""
        write_text(self.out, json.dumps(self.told, indent=1) + "\n")


def half(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with numbers in half precision."""
    return {k: v.half() if v.is_floating_point() else v.clone() for k, v in state.items()}


def put(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state as ``path.00``, ``path.01`` and so on, instead of what is there."""
    for old in path.parent.glob(f"{path.name}.[0-9][0-9]"):
        old.unlink()
    buffer = io.BytesIO()
    torch.save({"state_dict": dict(state)}, buffer)
    data = buffer.getvalue()
    for number, start in enumerate(range(0, len(data), PART)):
        Path(f"{path}.{number:02d}").write_bytes(data[start : start + PART])


def take(path: Path, into: Path) -> Path:
    """Join the parts of ``path`` to the checkpoint ``into``, in single precision again."""
    joined = into.with_suffix(".half")
    joined.write_bytes(b"".join(part.read_bytes() for part in sorted(path.parent.glob(f"{path.name}.[0-9][0-9]"))))
    state = {k: v.float() if v.is_floating_point() else v for k, v in load_plain(joined)["state_dict"].items()}
    joined.unlink()
    torch.save({"state_dict": state}, into)
    return into


def machine() -> dict[str, Any]:
    """Return what the numbers are measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": str(torch.version.cuda)}
    return {"gpu": gpu, "versions": versions, "date": time.strftime("%Y-%m-%d", time.gmtime())}


def unpacked(data: Path, work: Path) -> Path:
    """Return the folder with ``train`` and ``test``; an archive is unpacked, once."""
    if data.is_file():
        folder = work / "data" / data.name.partition(".")[0]
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            with open(data, "rb") as file:
                stream: Any = pyarrow.CompressedInputStream(file, "zstd") if data.suffix == ".zst" else file
                with tarfile.open(fileobj=stream, mode="r|*") as archive:
                    archive.extractall(folder, filter="data")
            (folder / "done").touch()
        data = folder
    for folder in (data, *sorted(p for p in data.iterdir() if p.is_dir())):
        if (folder / "train").is_dir() and (folder / "test").is_dir():
            return folder
    raise InputError(f"'{data}' has no folders train and test: give the folder that has them, or an archive of it")


class Session:
    """The folders and the settings of one call."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out, self.work = args, args.out, args.work
        self.inputs = [args.out, *args.inputs]
        for folder in (self.out, self.work):
            folder.mkdir(parents=True, exist_ok=True)
        self.data = None if args.data is None else unpacked(args.data, self.work)

    def found(self, name: str) -> tuple[Path, dict[str, Any]] | None:
        """Return the folder that has a stage, and what it tells of it."""
        for folder in self.inputs:
            if (folder / f"{name}.json").is_file():
                return folder, json.loads((folder / f"{name}.json").read_text())
        return None

    def needed(self, name: str) -> tuple[Path, dict[str, Any]]:
        """Return the folder of a stage that has come to its end."""
        there = self.found(name)
        if there is None:
            raise InputError(f"no folder of {', '.join(map(str, self.inputs))} has {name}.json: run {name} first")
        if not there[1].get("finished", True):
            raise InputError(f"{name} is not finished: another call goes on, or ends it, by --total {name}=MINUTES")
        return there

    def options(self, name: str, stage: Stage) -> dict[str, Any]:
        """Return what is changed in a stage's config."""
        few = {"train": 300, "test": 120} if self.args.smoke else {}

        def images(split: str) -> dict[str, Any]:
            limit = {"max_samples": few[split]} if split in few else {}
            folder = dict(type="ImageFolder", root=str(self.data / split), **limit)  # type: ignore[operator]
            cache = self.work / f"{split}{few.get(split, '')}.npz"
            return dict(_delete_=True, type="Shrunk", dataset=folder, size=32, cache=str(cache))

        head = {} if name in FEATURES else {"model.head.num_clusters": 10}
        options: dict[str, Any] = {
            "data.dataset": images("train"),
            "data.eval_dataset": images("test"),
            "data.extract_batch_size": 1000,
            "model.backbone.width": 64,
            "train_cfg.val_interval": 10**6,
            "train_cfg.log_interval": 50,
            "default_hooks.checkpoint": dict(type="CheckpointHook", interval=10**6, save_last=name == "self"),
            **head,
            **stage.options,
        }
        if torch.cuda.is_available():
            options |= {"optim_wrapper.optimizer.fused": True, "compile": self.args.compile}
        if self.args.smoke:
            options |= {"model.backbone.width": 8, "data.extract_batch_size": 100, **stage.smoke}
        for item in self.args.set:
            key, _, value = item.partition("=")
            of, _, key = key.partition(".")
            if of == name:
                options[key] = json.loads(value)
        return options

    def train(self, name: str, kind: str) -> None:
        """Run a training, or go on with it."""
        stage, began = STAGES[kind], time.monotonic()
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        options = self.options(kind, stage)
        there = self.found(name)
        told: dict[str, Any] = {"stage": name, "kind": kind}
        if there is not None and there[1].get("finished") is False:
            told = there[1]
            options |= {"load_from": str(take(there[0] / f"{name}.pth", folder / "start.pth")), "load_partial": True}
        elif stage.start is not None:
            before, of = self.needed(stage.start)
            told["from"] = of["kind"]
            options["model.pretrained"] = str(take(before / f"{stage.start}.pth", folder / "backbone.pth"))
        if name == "semi":
            labels, of = self.needed("reliable")
            told["labels"] = of["threshold"]
            options["train_cfg.label_file"] = str(labels / "labels.npz")
        total = 60 * dict(self.args.total).get(name, 60 if self.args.smoke else stage.minutes)
        here = min(60 * self.args.minutes - APART, total)
        told |= {"config": stage.config, "options": options, "command": " ".join(sys.argv), **machine()}
        # A first guess, which the first epoch replaces; a pace of nothing makes two epochs, one after the other.
        options["train_cfg.max_epochs"] = told.get("planned_epochs", 2 if self.args.smoke else stage.epochs or 60)
        cfg = prepare_config(stage.config, work_dir=folder / "run", cfg_options=options, seed=self.args.seed, amp=True)
        most = 2 if self.args.smoke else stage.epochs
        pace = Pace(self.out / f"{name}.json", told, began + here, total, most)
        last = self.run(cfg, pace)
        metrics = {k: round(float(v), 4) for k, v in last.items() if k not in ("epochs", "images_seen")}
        calls = [*told.get("calls", []), round(time.monotonic() - began, 1)]
        pace.told |= {"metrics": metrics, "calls": calls}
        pace.told["images_seen"] = told.get("images_seen", 0) + int(last["images_seen"])
        if not pace.finished:
            put(half(pace.state), self.out / f"{name}.pth")
        elif stage.leaves is not None:
            state = half(pace.backbone) if stage.leaves == "backbone." else pace.state
            put({k: v for k, v in state.items() if k.startswith(stage.leaves)}, self.out / f"{name}.pth")
        pace.write()
        print(f"{name}: {told['epochs']} epochs, {metrics}", flush=True)

    @staticmethod
    def run(cfg: Config, pace: Pace) -> dict[str, float]:
        """Train; where the compiled backbone fails on this machine, without it, since a minute here is dear."""
        plain = cfg.copy()
        plain.compile = False
        try:
            return train(cfg, [pace])
        except InputError:
            raise
        except Exception as error:
            if not cfg.get("compile") or pace.told.get("seconds_of_epochs"):
                raise
            pace.told["compile_failed"] = one_line(error)
            plain.work_dir += "-eager"
            return train(plain, [pace])

    def reliable(self) -> None:
        """Find the labels that neighbours share: the strictest that leave some of every cluster."""
        began, folder = time.monotonic(), self.work / "reliable"
        folder.mkdir(parents=True, exist_ok=True)
        before, of = self.needed("features")
        heads, _ = self.needed("self")
        state = load_plain(take(before / "features.pth", folder / "model.pth"))["state_dict"]
        state |= load_plain(take(heads / "self.pth", folder / "heads.pth"))["state_dict"]
        torch.save({"state_dict": state}, folder / "model.pth")
        options = self.options("self", STAGES["self"]) | {"load_partial": True, "model.pretrained": None}
        cfg = prepare_config(STAGES["self"].config, work_dir=folder, cfg_options=options, seed=self.args.seed)
        checkpoint = str(folder / "model.pth")
        runner, data = load_runner(cfg.copy(), checkpoint)
        model = unwrap(runner.model)
        table = extract(model, data.train, get_comm(), batch_size=data.extract_batch_size, logits=model.head.predict)
        assert table.logits is not None
        N, K = table.logits.shape
        k, cluster = min(100, N // (2 * K)), table.logits.argmax(1)
        beta = local_consistency(table.features, cluster, k)
        for threshold in THRESHOLDS:
            if int(torch.bincount(cluster[beta > threshold], minlength=K).min()) >= LEAST_A_CLUSTER * N / K:
                break
        found = Reliable("reliable", neighbours=k, threshold=threshold, allow_empty=True).find(cfg, checkpoint, folder)
        shutil.copy(folder / "labels.npz", self.out / "labels.npz")
        told = {"stage": "reliable", "kind": "reliable", "from": of["kind"], "threshold": threshold, **found.__dict__}
        told |= {"seconds": round(time.monotonic() - began, 1), "command": " ".join(sys.argv), **machine()}
        write_text(self.out / "reliable.json", json.dumps(told, indent=1) + "\n")

    def table(self) -> None:
        """Write all stages that are there as a table in Markdown."""
        names = ["features", "self", "reliable", *(n for n in STAGES if n not in (*FEATURES, "self"))]
        told = [there[1] for there in map(self.found, names) if there is not None]
        if not told:
            raise InputError(f"no folder of {', '.join(map(str, self.inputs))} has a stage's JSON")
        measured = {"acc": "ACC", "nmi": "NMI", "ari": "ARI", "knn": "kNN", "kmeans_acc": "k-means ACC"}
        head = ["stage", "from", *measured.values(), "epochs", "minutes", "images/s", "GPU MiB", "calls of, s"]
        rows = [head, ["---"] * len(head)]
        for one in told:
            values = [one.get("metrics", {}).get(key) for key in measured]
            purity = one.get("purity")
            name = one["kind"] if one["stage"] == "features" else one["stage"]
            if one["stage"] == "reliable":
                name += f": {one['count']:,} of {one['total']:,} above {one['threshold']:g}"
                name += "" if purity is None else f", {purity:.1%} right"
            rows.append(
                [
                    name + ("" if one.get("finished", True) else " (not finished)"),
                    one.get("from", ""),
                    *("" if v is None else f"{v:.3f}" for v in values),
                    str(one.get("epochs", "")),
                    f"{one['seconds'] / 60:.1f}",
                    str(one.get("images_per_second", "")),
                    str(one.get("peak_gpu_mib", "")),
                    " + ".join(f"{s:.0f}" for s in one.get("calls", [])),
                ]
            )
        where = sorted({f"{one['gpu']}, torch {one['versions']['torch']}, {one['date']}" for one in told})
        text = "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\n{'; '.join(where)}\n"
        write_text(self.out / "table.md", text)
        print(text, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run stages in the order that they are named in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ["features", *(name for name in STAGES if name not in FEATURES), *OTHERS]
    parser.add_argument("stages", nargs="+", choices=known, metavar="STAGE", help=", ".join(known))
    parser.add_argument("--data", type=Path, help="folder or archive of the images")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--in", dest="inputs", type=Path, nargs="*", default=[], help="folders of earlier calls")
    parser.add_argument(
        "--work", type=Path, default=Path("work_dirs/gpu-cifar10"), help="everything else, to be deleted"
    )
    parser.add_argument("--features", choices=FEATURES, default="moco", help="what the stage of that name is")
    parser.add_argument("--minutes", type=float, default=9.0, help="that a stage may take in this call")

    def pair(text: str) -> tuple[str, float]:
        name, _, minutes = text.partition("=")
        return name, float(minutes)

    parser.add_argument("--total", type=pair, nargs="*", default=[], metavar="STAGE=MINUTES", help="in all calls")
    parser.add_argument("--set", nargs="*", default=[], metavar="STAGE.KEY=JSON", help="an option of a stage's config")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="on a GPU")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args(argv)
    if args.data is None and set(args.stages) != {"table"}:
        parser.error("--data is needed, but for the table")
    try:
        session = Session(args)
        for name in args.stages:
            if name in OTHERS:
                getattr(session, name)()
            else:
                session.train(name, args.features if name == "features" else name)
    except InputError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
