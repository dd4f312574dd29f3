"""Which cells (method × seed) a comparison has, in which order, and whether they are comparable at all."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmengine import Config

from odc.apis import prepare_config
from odc.comparison.estimators import ESTIMATORS, FEATURES, Estimator
from odc.comparison.provenance import ROOT
from odc.config import load_config
from odc.config.checking import check_parts, check_seed
from odc.engine.precision import settle_precision
from odc.errors import InputError, nearest
from odc.pipeline import STAGES, stage_options
from odc.registry import DATASETS, resolve

PRETRAINING = "moco"  # its cells come before those of the methods that start from them, and are no row of the table
FROM_MOCO = "-" + PRETRAINING
MEASURES = ("ClusterMetrics", "KNNMetric")  # of every row, with their defaults
SELF = "-self"  # a pipeline's row after SPICE-Self instead of the whole


@dataclass(frozen=True)
class Cell:
    """One run of one method.

    Attributes:
        method: name of its row.
        seed: of everything random in it.
        config: path of what it trains by, or for an estimator of what it takes data and network from.
        folder: where everything of it goes.
        options: ``{"dotted.key": value}`` to change in the config.
        threads: that it computes with; sums round by their number, so it is part of the key.
        estimator: for a row without training.
        stage: for a pipeline, the one whose result is the row.
        pretrained: backbone that it starts from.
        after: (method, seed) of the cells that have to end before this one begins.
        shown: the report has a map of its features, which takes some seconds to draw.
        minutes: how long each of its trainings may take.
        precision: that it is trained in.
        key: hash of all that decides its result.
    """

    method: str
    seed: int
    config: str
    folder: str
    options: dict[str, Any]
    threads: int = 1
    estimator: Estimator | None = None
    stage: str | None = None
    pretrained: str | None = None
    after: tuple[tuple[str, int], ...] = ()
    shown: bool = False
    minutes: float | None = None
    precision: str = "float32"
    key: str = field(default="", compare=False)

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.method} seed {self.seed}"

    @property
    def home(self) -> Path:
        """Where log, clusters and curves of this row lie; rows of one pipeline share a folder, not a stage's."""
        return Path(self.folder) if self.stage is None else Path(self.folder) / self.stage

    def prepare(self) -> Config:
        """Return the cell's config, ready to run; not for a pipeline, which prepares its stages itself."""
        options: dict[str, Any] = {}
        if self.pretrained is not None:
            options["model.pretrained"] = self.pretrained
        cfg = prepare_config(self.config, work_dir=self.folder, cfg_options={**options, **self.options}, seed=self.seed)
        measure(cfg)
        return cfg


@dataclass(frozen=True)
class Request:
    """What is to be compared.

    Attributes:
        methods: names or paths of configs; see :func:`plan`.
        out: folder of the comparison.
        dataset: name in ``configs/comparisons``, path of such a config, or a folder of pictures.
        seeds: each method runs once for each.
        jobs: cells at a time.
        threads: of each, unless the folder has cells already: then theirs.
        evaluate_on: split of the data set, or a folder of pictures, that all methods are evaluated on; by default what
            the configs say, and where they say nothing the images that are clustered.
        epochs: the same number for every method that is trained; SPICE's trainings share it.
        minutes: the same wall-clock time for every method that is trained, instead of the same number of epochs.
        pretrain_epochs: of the shared pre-training.
        pretrained: backbone to start from instead of the shared pre-training.
        clusters: K of every head.
        options: ``{"dotted.key": value}`` for every config, or with ``moco.``, ``self.``, ``semi.`` or ``reliable.``
            before the key for one of the pre-training or of SPICE's stages.
    """

    methods: Sequence[str]
    out: Path
    dataset: str = "digits"
    evaluate_on: str | None = None
    seeds: Sequence[int] = (0,)
    jobs: int = 1
    threads: int = 1
    epochs: int | None = None
    minutes: float | None = None
    pretrain_epochs: int | None = None
    pretrained: str | None = None
    clusters: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Row:
    """A method, before its seeds."""

    config: str = ""
    estimator: Estimator | None = None
    stage: str | None = None
    from_moco: bool = False
    group: str = ""  # rows of one pipeline share a folder: what the first has done, the second finds


def plan(request: Request) -> list[Cell]:
    """Return the cells, pre-training first, in order of method and seed.

    A method is an estimator on features (:mod:`odc.comparison.estimators`), a name of the data set's comparison config,
    or the path of a config. Followed by ``-moco`` it starts from the backbone that MoCo trains once a seed, or from
    ``request.pretrained``; a pipeline always does. Followed by ``-self`` a pipeline's row is its Self stage.

    Raises:
        InputError: for an unknown method or data set, or configs that would not be a fair comparison.
    """
    _check(request)
    path, options = _dataset(request)
    known = load_config(path, None).get("comparison")
    if not isinstance(known, Mapping) or set(known) - {"options"} != {"moco", "methods"}:
        raise InputError(
            f"{path}: a comparison is a dict of moco, a config, of methods, configs by name, and where wanted of "
            "options, settings for all of them"
        )
    options = {**known.get("options", {}), **options}
    configs = {name: str(Path(path).parent / config) for name, config in known["methods"].items()}
    rows = _rows(request.methods, configs)
    trained = [row.config for row in rows.values() if row.config and row.stage is None]
    # Estimators take data and network from the first method that is trained.
    first = trained[0] if trained else next(c for c in configs.values() if not _is_pipeline(c))
    if request.evaluate_on is not None:
        options["data.eval_dataset"] = _evaluated(load_config(first, options).data.dataset, request.evaluate_on)
    _check_use(request, rows)
    if any(row.from_moco for row in rows.values()) and request.pretrained is None:
        rows = {PRETRAINING: _Row(str(Path(path).parent / known["moco"])), **rows}
    cells = [
        _cell(request, options, rows, name, row, seed, first) for name, row in rows.items() for seed in request.seeds
    ]
    check_fair(cells)
    keys: dict[tuple[str, int], str] = {}
    for i, cell in enumerate(cells):
        cell = replace(cell, precision=_precision(cell))
        keys[cell.method, cell.seed] = key = _key(cell, [keys[c] for c in cell.after if c[0] == PRETRAINING])
        cells[i] = replace(cell, key=key)
    return cells


def _check(request: Request) -> None:
    if len(set(request.seeds)) < len(request.seeds):
        raise InputError(f"--seeds {' '.join(map(str, request.seeds))}: each seed once")
    for seed in request.seeds:
        check_seed(seed, "--seeds")
    numbers = {
        "--jobs": request.jobs,
        "--clusters": request.clusters,
        "--epochs": request.epochs,
        "--pretrain-epochs": request.pretrain_epochs,
    }
    for option, value in numbers.items():
        if value is not None and value < 1:
            raise InputError(f"{option} {value}: at least 1")
    if request.epochs is not None and request.minutes is not None:
        raise InputError(
            f"--epochs {request.epochs} and --minutes {request.minutes:g}: methods get the same epochs or the same "
            "time, give one of the two"
        )
    if request.minutes is not None and request.minutes <= 0:
        raise InputError(f"--minutes is a time, not {request.minutes:g}")


def _check_use(request: Request, rows: Mapping[str, _Row]) -> None:
    """Refuse what no row would read."""
    follow = any(row.from_moco for row in rows.values())
    for option, value in (("--pretrained", request.pretrained), ("--pretrain-epochs", request.pretrain_epochs)):
        if value is not None and not follow:
            raise InputError(f"{option} is for SPICE and methods whose name ends in {FROM_MOCO}: there is none")
    if request.pretrained is not None and request.pretrain_epochs is not None:
        raise InputError(
            f"--pretrained {request.pretrained} and --pretrain-epochs {request.pretrain_epochs}: with a given backbone "
            "nothing is pre-trained, leave one out"
        )
    if request.pretrained is not None and not Path(request.pretrained).is_file():
        raise InputError(f"--pretrained: there is no file '{request.pretrained}'")
    for option, budget in (("--epochs", request.epochs), ("--minutes", request.minutes)):
        if budget is not None and all(row.estimator is not None for row in rows.values()):
            raise InputError(f"{option} {budget:g} is for methods that are trained: there is none")


def _dataset(request: Request) -> tuple[str, dict[str, Any]]:
    """Return the path of the comparison config, and the options that the data set adds to all configs."""
    folder = ROOT / "configs" / "comparisons"
    options = dict(request.options)
    names = sorted(path.stem for path in folder.glob("*.py"))
    if request.dataset in names:
        return str(folder / f"{request.dataset}.py"), options
    if Path(request.dataset).is_dir():
        options.setdefault("data.dataset.root", request.dataset)
        return str(folder / "folder32.py"), options
    if request.dataset.endswith(".py"):
        return request.dataset, options
    raise InputError(
        f"unknown data set '{request.dataset}'{nearest(request.dataset, names)}, or a folder of pictures, or the path "
        "of a comparison config"
    )


def _evaluated(dataset: Config, where: str) -> dict[str, Any] | None:
    """Return what ``--evaluate-on`` means for a data set: another split of it, or a folder; ``None`` is itself."""
    if "split" in inspect.signature(resolve(DATASETS, dataset)[0]).parameters:
        other = {**dataset, "split": where}
    elif Path(where).is_dir():
        other = {"type": "ImageFolder", "root": where}
    else:
        raise InputError(
            f"--evaluate-on {where}: there is no such folder, and {dataset.type} has no splits: give a folder of "
            "pictures, or leave it out to evaluate on the images that are clustered"
        )
    return None if other == dataset else {**other, "_delete_": True}


def _is_pipeline(config: str) -> bool:
    return "pipeline" in load_config(config, None)


def _rows(methods: Sequence[str], configs: Mapping[str, str]) -> dict[str, _Row]:
    """Return the rows by name."""
    rows: dict[str, _Row] = {}
    for method in methods:
        name, row = _row(method, configs)
        if rows.setdefault(name, row) != row:
            raise InputError(
                f"'{rows[name].config}' and '{row.config}' would both be the row '{name}': give one of the files "
                "another name"
            )
    return rows


def _row(method: str, configs: Mapping[str, str]) -> tuple[str, _Row]:
    estimator = Estimator.parse(method)
    if estimator is not None:
        return method, _Row(estimator=estimator, from_moco=estimator.features == PRETRAINING)
    for suffix in ("", FROM_MOCO, SELF):
        name = method.removesuffix(suffix)
        if suffix and name == method:
            continue
        path = name if name.endswith(".py") else configs.get(name)
        if path is None:
            continue
        pipeline = _is_pipeline(path)
        if suffix and pipeline != (suffix == SELF):
            continue
        title = f"{Path(path).stem}{suffix}" if name.endswith(".py") else method
        if pipeline:
            return title, _Row(path, stage="self" if suffix else "semi", from_moco=True, group=title.removesuffix(SELF))
        return title, _Row(path, from_moco=title.endswith(FROM_MOCO))
    names = [*configs, *(f"{name}{FROM_MOCO}" for name in configs), *(f"{name}{SELF}" for name in configs)]
    names += [f"{estimator}-{features}" for estimator in ESTIMATORS for features in FEATURES]
    raise InputError(f"unknown method '{method}'{nearest(method, names)}, or the path of a config")


def _cell(
    request: Request, options: Mapping[str, Any], rows: Mapping[str, _Row], name: str, row: _Row, seed: int, first: str
) -> Cell:
    config = row.config or first
    mine = _mine(options, name, row)
    epochs = request.pretrain_epochs if name == PRETRAINING else request.epochs
    pipeline = row.stage is not None
    minutes = None if name == PRETRAINING or row.estimator is not None else request.minutes
    if epochs is not None and row.estimator is None:
        mine |= {f"{stage}train_cfg.max_epochs": share for stage, share in _shares(row, epochs).items()}
    if minutes is not None:
        minutes /= len(_shares(row, 1))
    # With a budget, the Self stage of the whole is shorter than the one that is a row: they have nothing to share.
    together = bool(row.group) and request.epochs is None and request.minutes is None
    if request.clusters is not None:
        heads = ("self.", "semi.") if pipeline else ("",)
        if pipeline or "num_clusters" in load_config(config, None).model.head:
            mine |= {f"{stage}model.head.num_clusters": request.clusters for stage in heads}
    pretrained = None
    if row.from_moco:
        pretrained = request.pretrained or str(request.out / f"{PRETRAINING}-{seed}" / "backbone.pth")
    after = [(PRETRAINING, seed)] if row.from_moco and PRETRAINING in rows else []
    if together and row.stage == "semi" and f"{row.group}{SELF}" in rows:
        after.append((f"{row.group}{SELF}", seed))
    return Cell(
        method=name,
        seed=seed,
        config=config,
        folder=str(request.out / f"{row.group if together else name}-{seed}"),
        options=mine,
        threads=request.threads,
        estimator=row.estimator,
        stage=row.stage,
        pretrained=pretrained,
        after=tuple(after),
        shown=name != PRETRAINING and seed == request.seeds[0],
        minutes=minutes,
    )


def _mine(options: Mapping[str, Any], name: str, row: _Row) -> dict[str, Any]:
    """Return the options that are for a row: those that begin with a stage's name are for that stage alone."""
    if row.stage is not None:
        return dict(options)
    of_stage = stage_options(options)[PRETRAINING] if name == PRETRAINING else {}
    general = {key: value for key, value in options.items() if key.partition(".")[0] not in STAGES}
    return {**general, **of_stage}


def _shares(row: _Row, epochs: int) -> dict[str, int]:
    """Return the epochs of each training of a row by the prefix of its options; SPICE's two share them."""
    if row.stage is None:
        return {"": epochs}
    if row.stage == "self":
        return {"self.": epochs}
    return {"self.": epochs - epochs // 2, "semi.": max(1, epochs // 2)}


def check_fair(cells: Sequence[Cell]) -> None:
    """Check that all configs have the same images, training view and network, and but for MoCo's as many epochs.

    SPICE has a schedule of its own, unless a budget is given; what it sees, its cost, is in the table.

    Raises:
        InputError: naming the two configs and what differs; or a config has a part that is unknown.
    """
    reference: dict[str, tuple[str, Any]] = {}
    firsts: dict[str, Cell] = {}
    for cell in sorted(cells, key=lambda cell: cell.estimator is not None):  # estimators share a method's config
        firsts.setdefault(cell.config, cell)
    for cell in firsts.values():
        configs = {"moco": cell.prepare()} if cell.stage is None else stage_configs(cell)
        for cfg in configs.values():
            check_parts(cfg)  # here, and not when the cell's turn comes
        cfg = configs["moco"]
        terms = _common(cfg)
        if cell.stage is None and cell.estimator is None and cell.method != PRETRAINING:
            if "train" in cfg.data.views:
                terms["data.views.train"] = cfg.data.views.train
            if cell.minutes is None:
                terms["train_cfg.max_epochs"] = cfg.train_cfg.max_epochs
        for key, value in terms.items():
            first, expected = reference.setdefault(key, (cell.method, value))
            if value != expected:
                raise InputError(
                    f"not a fair comparison: {key} is {expected} for {first} but {value} for {cell.method}: make them "
                    "equal, with --epochs, --minutes or --cfg-options for all of them"
                )


def measure(cfg: Config) -> None:
    """Let a training be measured as every other, and once, at the end: its time is for training."""
    own = [metric for metric in cfg.get("val_evaluator") or () if metric["type"] not in MEASURES]
    cfg.val_evaluator = [*({"type": name} for name in MEASURES), *own]
    cfg.train_cfg.val_interval = cfg.train_cfg.max_epochs


def _common(cfg: Config) -> dict[str, Any]:
    """Return what all methods must have in common."""
    return {
        "data.dataset": cfg.data.dataset,
        "data.eval_dataset": cfg.data.get("eval_dataset"),
        "data.views.extract": cfg.data.views.extract,
        "model.backbone": cfg.model.backbone,
    }


def stage_configs(cell: Cell) -> dict[str, Config]:
    """Return the configs of a pipeline's trained stages, without building anything."""
    path = Path(cell.config)
    options = stage_options(cell.options)
    return {
        name: prepare_config(path.parent / config, cfg_options=options[name], seed=cell.seed)
        for name, config in load_config(str(path), None).pipeline.items()
        if isinstance(config, str)
    }


def _precision(cell: Cell) -> str:
    """Return what a cell will be trained in on this machine, whatever its config asks for."""
    if cell.estimator is not None:
        return "float32"
    if cell.stage is None:
        return settle_precision(cell.prepare().get("precision"))
    configs = stage_configs(cell)
    trained = ("self", cell.stage)
    return " / ".join(dict.fromkeys(settle_precision(configs[name].get("precision")) for name in trained))


def _key(cell: Cell, before: Sequence[str]) -> str:
    """Return the hash of a cell's settings and of the cells before it; where it lies does not matter."""
    if cell.estimator is not None:  # whose config it takes data and network from does not matter
        cfg = cell.prepare()
        told = [{**_common(cfg), "clusters": cfg.model.head.get("num_clusters"), "randomness": cfg.randomness}]
    elif cell.stage is None:
        told = [cell.prepare().to_dict()]
    else:
        told = [load_config(cell.config, None).to_dict(), *(cfg.to_dict() for cfg in stage_configs(cell).values())]
    apart = ("work_dir", "visualizer", "precision")  # what it is trained in is told by the cell
    kept = [{k: v for k, v in t.items() if k not in apart and not k.startswith("_")} for t in told]
    estimator = None if cell.estimator is None else [cell.estimator.path, cell.estimator.features]
    given = None
    if cell.pretrained is not None and not before:
        given = hashlib.sha256(Path(cell.pretrained).read_bytes()).hexdigest()
    options = {} if cell.stage is None else cell.options
    options = {k: v for k, v in options.items() if k.rpartition(".")[2] not in apart}
    ran = [cell.threads, cell.precision]
    parts = [kept, cell.stage, estimator, cell.minutes, options, ran, list(before), given]
    text = json.dumps(parts, sort_keys=True, default=str)
    if cell.pretrained is not None:
        text = text.replace(cell.pretrained, "")
    return hashlib.sha256(text.encode()).hexdigest()[:16]
