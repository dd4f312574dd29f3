"""Which cells (method × seed) a comparison has, in which order, and whether they are comparable at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from mmengine import Config

from odc.comparison.consensus import END, ROW, Consensus, is_consensus
from odc.comparison.estimators import common, num_clusters
from odc.comparison.methods import Methods
from odc.comparison.results import Place
from odc.comparison.samples import comparisons, dataset_of, evaluated, features_of, on_vectors
from odc.config import override
from odc.config.checking import check_seed
from odc.engine.precision import settle_precision
from odc.errors import InputError, nearest
from odc.models.cluster_model import frozen_parts
from odc.recipes.features import Features
from odc.recipes.recipe import Recipe, addressed
from odc.recipes.reliable import Reliable
from odc.recipes.stage import Stage, Train

MEASURES = ("ClusterMetrics", "KNNMetric")  # of every row, with their defaults


@dataclass(frozen=True)
class Cell:
    """One run of one method, or of a pre-training that methods share."""

    recipe: Recipe  # of which the last stage's result is the row; pre-trainings are cells of their own
    seed: int  # of everything random in it
    folder: Path  # where everything of it goes
    places: Mapping[str, Path]  # folders of the stages
    threads: int  # that it computes with; sums round by their number, so it is part of the key
    after: tuple[Place, ...] = ()  # the cells that have to end before this one begins
    before: tuple[str, ...] = ()  # of a pre-training, the rows that start from it; of a row, nothing
    shown: bool = False  # the report has a map of its features, which takes some seconds to draw
    minutes: float | None = None  # how long each of its trainings may take
    precision: str = "float32"  # that it is trained in
    key: str = field(default="", compare=False)  # hash of all that decides its result

    @property
    def method(self) -> str:
        """Name of its row, or of the pre-training."""
        return self.recipe.name

    @property
    def place(self) -> Place:
        """Method and seed."""
        return self.method, self.seed

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.method} seed {self.seed}" if self.recipe.stages[-1].seeded else self.method

    @property
    def images(self) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
        """Configs of the images that are clustered, and of those that are evaluated where these are others."""
        return next(stage.images for stage in self.recipe.stages if stage.images is not None)

    @property
    def home(self) -> Path:
        """Where log, clusters and curves of this row lie; rows of one recipe share a folder, not a stage's."""
        return self.places[self.recipe.stages[-1].name]

    @property
    def combines(self) -> bool:
        """Whether it needs every cell before it, and runs anew where these are others than they were."""
        return isinstance(self.recipe.stages[-1], Consensus)

    @property
    def own(self) -> tuple[Stage, ...]:
        """Its stages without those that are cells of their own."""
        apart = {*self.recipe.shared} - {self.recipe.stages[-1].name}
        return tuple(stage for stage in self.recipe.stages if stage.name not in apart)

    @property
    def config(self) -> Config:
        """The config of its last stage that has one."""
        return next(stage.config for stage in reversed(self.recipe.stages) if stage.config is not None)


@dataclass(frozen=True)
class Request:
    """What is to be compared."""

    methods: Sequence[str]  # names or paths of configs; see plan
    out: Path  # folder of the comparison
    # Name in configs/comparisons, path of such a config, or a folder of pictures; None: the digits, or with features
    # that are there already what is known of them.
    dataset: str | None = None
    features: str | None = None  # what all methods cluster instead of pictures: see odc.sources
    size: int | None = None  # pixels a side at which the network of these features sees pictures
    # Split of the data set, or a folder of pictures, that all methods are evaluated on; by default what the configs
    # say, and where they say nothing the images that are clustered.
    evaluate_on: str | None = None
    seeds: Sequence[int] = (0,)  # each method runs once for each
    jobs: int = 1  # cells at a time
    threads: int = 1  # of each, unless the folder has cells already: then theirs
    epochs: int | None = None  # the same number for every method that is trained; the trainings of a recipe share it
    minutes: float | None = None  # the same wall-clock time for every such method, instead of the same epochs
    pretrain_epochs: int | None = None  # of pre-training
    pretrained: str | None = None  # backbone to start from instead of pre-training
    clusters: int | None = None  # K of every head
    # {"key": value} for every config, or {"STAGE.key": value} for one stage of the recipes; the stage of a method that
    # is one training has the method's name.
    options: Mapping[str, Any] = field(default_factory=dict)
    executor: str = "local"  # where cells run: "local", "local-jobs" or "slurm"
    executor_options: Mapping[str, Any] = field(default_factory=dict)  # what each job asks for


def plan(request: Request) -> list[Cell]:
    """Return the cells, pre-training first, in order of method and seed.

    A method is an estimator on features (:mod:`odc.comparison.estimators`), a name of the data set's comparison config,
    or the path of a config, of one training or of a recipe. ``METHOD-PRETRAINING`` starts a training from the backbone
    of a pre-training that the comparison config names; it runs once a seed, unless there is ``request.pretrained``.
    ``METHOD-STAGE`` is a recipe's row after that stage.

    Raises:
        InputError: for an unknown method or data set, an option that nothing reads, or configs that would not be a fair
            comparison.
    """
    _check(request)
    path, options = dataset_of(request.dataset or "digits")
    features = features_of(request.features, request.size, request.dataset, request.evaluate_on, request.clusters)
    methods = Methods(path) if features is None else Methods(comparisons() / "features.py", vectors=True)
    alone = [method for method in request.methods if not is_consensus(method)]
    rows = methods.rows(alone)
    if features is not None:
        rows = [row.on_spaces(features) for row in rows]
        options = {}
    _check_use(request, rows)
    if request.pretrained is not None:
        rows = [row.with_backbone(request.pretrained) for row in rows]
    by_stage = _by_stage(request, methods, rows, options)
    cells = [_cell(request, by_stage, rows, row, seed) for row in rows for seed in request.seeds]
    check_fair(cells)
    elsewhere = request.executor == "slurm"
    keyed = [_keyed(cell, elsewhere) for cell in [*_pretraining(cells), *cells]]
    return [*keyed, *_consensus(request, [cell for cell in keyed if not cell.before])]


def _check(request: Request) -> None:
    if len(set(request.seeds)) < len(request.seeds):
        raise InputError(f"--seeds {' '.join(map(str, request.seeds))} has a seed twice: give each once")
    for seed in request.seeds:
        check_seed(seed, "--seeds")
    for name in ("jobs", "clusters", "epochs", "pretrain_epochs"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    if request.epochs is not None and request.minutes is not None:
        raise InputError(
            f"--epochs {request.epochs} and --minutes {request.minutes:g}: methods get the same epochs or the same "
            "time, give one of the two"
        )
    if request.minutes is not None and request.minutes <= 0:
        raise InputError(f"--minutes must be more than 0, not {request.minutes:g}")


def _check_use(request: Request, rows: Sequence[Recipe]) -> None:
    """Refuse what no row would read."""
    follow = any(row.pretraining for row in rows)
    for option, value in (("--pretrained", request.pretrained), ("--pretrain-epochs", request.pretrain_epochs)):
        if value is not None and not follow:
            names = " ".join(row.name for row in rows)
            raise InputError(f"{option} is for methods that start from a pre-training: there is none in {names}")
    if request.pretrained is not None and request.pretrain_epochs is not None:
        raise InputError(
            f"--pretrained {request.pretrained} and --pretrain-epochs {request.pretrain_epochs}: with a given backbone "
            "nothing is pre-trained, leave one out"
        )
    for option, budget in (("--epochs", request.epochs), ("--minutes", request.minutes)):
        if budget is not None and not any(_trainings(row) for row in rows):
            raise InputError(f"{option} {budget:g} is for methods that are trained: there is none")


def _trainings(recipe: Recipe) -> list[Train]:
    """Return the trainings of a row that are not its pre-training: they share a budget."""
    return [stage for stage in recipe.trained if stage.name not in recipe.pretraining]


def _by_stage(
    request: Request, methods: Methods, rows: Sequence[Recipe], options: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the options of every stage by its name; those of the command line win.

    Raises:
        InputError: for an option that no stage reads.
    """
    stages = [stage for row in rows for stage in row.stages]
    found = addressed({**methods.options(stages), **options}, stages)
    given = addressed(request.options, stages)
    found = {name: {**found[name], **given[name]} for name in found}
    features = next((stage for stage in stages if isinstance(stage, Features)), None)
    if features is not None:
        for stage in stages:
            if stage.config is not None:
                found[stage.name] = {**on_vectors(stage, features), **found[stage.name]}
    elif request.evaluate_on is not None:
        first = next(stage for stage in stages if stage.config is not None)
        dataset = override(first.config, found[first.name]).data.dataset
        other = evaluated(dataset, request.evaluate_on)
        for stage in stages:
            if stage.config is not None:
                found[stage.name]["data.eval_dataset"] = other
    return found


def _cell(request: Request, by_stage: Mapping[str, Any], rows: Sequence[Recipe], row: Recipe, seed: int) -> Cell:
    """Return the cell of a row and a seed; its key comes later."""
    trainings = _trainings(row)
    mine = {stage.name: dict(by_stage[stage.name]) for stage in row.stages}
    for stage in row.stages:
        if stage.name in row.pretraining and request.pretrain_epochs is not None:
            mine[stage.name]["train_cfg.max_epochs"] = request.pretrain_epochs
        if isinstance(stage, Reliable):  # a row of a table that is poor says more than one that is missing
            mine[stage.name].setdefault("allow_empty", True)
    for number, stage in enumerate(trainings if request.epochs is not None else ()):
        share, rest = divmod(request.epochs or 0, len(trainings))
        # The first gets what cannot be shared.
        mine[stage.name]["train_cfg.max_epochs"] = max(1, share) if number else share + rest
    recipe = row.configured(mine, seed=seed, clusters=request.clusters)
    # With a budget, a stage of the whole is shorter than the one that is a row: they have nothing to share.
    together = request.epochs is None and request.minutes is None
    group = row.whole or row.name
    folder = request.out / f"{group if together else row.name}-{seed}"
    places = {stage.name: folder if row.single else folder / stage.name for stage in row.stages}
    before = [_shared(row[name], seed) for name in row.shared]
    places |= {name: request.out / f"{name}-{s}" for name, s in before}
    others = [other for other in rows if together and (other.whole or other.name) == group and other.name != row.name]
    shared = [other.name for other in others if other.stages[-1].name in places]
    return Cell(
        recipe=replace(recipe, stages=tuple(map(_measured, recipe.stages))),
        seed=seed,
        folder=folder,
        places=places,
        threads=request.threads,
        after=(*before, *((name, seed) for name in shared)),
        shown=seed == request.seeds[0],
        minutes=request.minutes / len(trainings) if request.minutes is not None and trainings else None,
    )


def _shared(stage: Stage, seed: int) -> Place:
    """Return the cell of a stage that rows share: what no seed changes is there once."""
    return stage.name, seed if stage.seeded else 0


def _measured(stage: Stage) -> Stage:
    """Let a training be measured as every other, and once, at the end: its time is for training."""
    if not isinstance(stage, Train):
        return stage
    config = stage.config.copy()
    own = [metric for metric in config.get("val_evaluator") or () if metric["type"] not in MEASURES]
    config.val_evaluator = [*({"type": name} for name in MEASURES), *own]
    config.train_cfg.val_interval = config.train_cfg.max_epochs
    return replace(stage, config=config)


def _pretraining(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells of the pre-trainings that the rows' cells start from, once a seed."""
    found: dict[Place, Cell] = {}
    for cell in cells:
        for name in cell.recipe.shared:
            stage = cell.recipe[name]
            source = "" if stage.config is None else stage.config.filename
            new = replace(
                cell,
                recipe=replace(cell.recipe.until(name, name), source=source, single=stage.seeded),
                seed=_shared(stage, cell.seed)[1],
                threads=cell.threads if stage.seeded else torch.get_num_threads(),
                folder=cell.places[name],
                after=tuple(place for place in cell.after if place[0] in stage.needs.values()),
                before=(cell.method,),
                shown=False,
                minutes=None,
            )
            first = found.get(new.place, new)
            if _keyed(first, False).key != _keyed(new, False).key:
                raise InputError(
                    f"{first.before[0]} and {cell.method} start from pre-trainings of other settings that are both "
                    f"called '{name}': give one of the stages another name"
                )
            found[new.place] = replace(first, before=tuple(dict.fromkeys((*first.before, cell.method))))
    names = list(dict.fromkeys(name for name, _ in found))
    return sorted(found.values(), key=lambda cell: names.index(cell.method))


def check_fair(cells: Iterable[Cell]) -> None:
    """Check that all configs have the same images and network, and those of one training the same view and epochs.

    A recipe of several trainings has a schedule of its own, unless a budget is given; what it sees, its cost, is in the
    table.

    Raises:
        InputError: naming the two methods and what differs.
    """
    reference: dict[str, tuple[str, Any]] = {}
    for cell in sorted(cells, key=lambda cell: not _trainings(cell.recipe)):  # estimators have a method's config
        for stage in cell.recipe.stages:
            if stage.config is None:
                continue
            terms = common(stage.config)
            # Where features stay what they are an epoch costs little, heads differ in how many steps they call one, and
            # an augmentation is no part of the method.
            still = {"backbone", "neck"} <= {*frozen_parts(stage.config.model.get("frozen"))}
            fixed = still or stage.config.data.dataset.type == "Features"
            trained = isinstance(stage, Train) and stage.name not in cell.recipe.pretraining
            if cell.recipe.single and trained and not fixed:
                if "train" in stage.config.data.views:
                    terms["data.views.train"] = stage.config.data.views.train
                if cell.minutes is None:
                    terms["train_cfg.max_epochs"] = stage.config.train_cfg.max_epochs
            name = stage.name if stage.name in cell.recipe.pretraining else cell.method
            for key, value in terms.items():
                first, expected = reference.setdefault(key, (name, value))
                if value != expected:
                    raise InputError(
                        f"not a fair comparison: {key} is {expected} for {first} but {value} for {name}: make them "
                        "equal, with --epochs, --minutes or --cfg-options for all of them"
                    )


def _keyed(cell: Cell, elsewhere: bool) -> Cell:
    """Return the cell with its key, and with what it will be trained in.

    On this machine that is what it has; elsewhere what the config would like best, and a node without it refuses.
    """
    ran: dict[str, list[Any]] = {}
    for stage in cell.recipe.stages:
        asked = stage.config.get("precision") if isinstance(stage, Train) else None
        wanted = "bfloat16" if asked in ("bfloat16", "auto") else "float32"
        precision = wanted if elsewhere else settle_precision(asked)
        ran[stage.name] = [cell.threads, precision]
    computed = [stage for stage in cell.own if stage.config is not None] or cell.own
    precision = " / ".join(dict.fromkeys(ran[stage.name][1] for stage in computed))
    keys = cell.recipe.keys(ran, cell.minutes)
    return replace(cell, precision=precision, key=keys[cell.recipe.stages[-1].name])


def _consensus(request: Request, cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells that combine rows, whose ``cells`` these are: of all of a seed, or of all seeds of a method.

    Raises:
        InputError: there are not two rows to combine.
    """
    found: list[Cell] = []
    for method in filter(is_consensus, request.methods):
        one = method.removesuffix(END)
        groups = [[cell for cell in cells if cell.seed == seed] for seed in request.seeds]
        if method != ROW:
            groups = [[cell for cell in cells if cell.method == one]]
            if not groups[0]:
                names = list(dict.fromkeys(cell.method for cell in cells))
                raise InputError(
                    f"'{method}' combines the runs of '{one}', which is none of the --methods{nearest(one, names)}"
                )
        for members in groups:
            if len(members) < 2:
                what = "at least two other rows" if method == ROW else "at least two seeds"
                raise InputError(
                    f"'{method}' needs {what} to combine: give more --{'methods' if method == ROW else 'seeds'}"
                )
            found.append(_combined(request, method, members))
    return found


def _combined(request: Request, method: str, members: Sequence[Cell]) -> Cell:
    first = members[0]
    clustered, other = first.images
    stage = Consensus(
        method,
        dataset=clustered if other is None else other,
        members={cell.title: cell.home for cell in members},
        keys=tuple(cell.key for cell in members),
        num_clusters=num_clusters(first.config),
        seed=first.seed,
        config=None,
    )
    folder = request.out / f"{method}-{first.seed}"
    cell = Cell(
        recipe=Recipe(method, (stage,), "", single=True),
        seed=first.seed,
        folder=folder,
        places={method: folder},
        threads=request.threads,
        after=tuple(cell.place for cell in members),
        shown=first.seed == request.seeds[0],
    )
    return _keyed(cell, elsewhere=False)
