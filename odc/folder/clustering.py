"""From a folder to clusters: the whole way, which the same call goes on with where it was interrupted."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from odc.choosing import choose_k
from odc.comparison.plan import Request, plan
from odc.comparison.provenance import provenance
from odc.config.checking import check_seed
from odc.data.datasets import ImageDataset, build_dataset
from odc.data.shrunk import Shrunk
from odc.errors import InputError
from odc.evaluation.gallery import write_skipped
from odc.files import writable, write_text
from odc.folder.choice import Choice, choose
from odc.folder.clock import Clock, Step, seconds_of, told
from odc.folder.leaving import COPIES, copy_clusters, leave, remarks
from odc.folder.looking import Look, look
from odc.folder.running import (
    Watch,
    aside,
    check_fixed,
    found,
    given_features,
    keep_time,
    run_stages,
    shorter,
    steps_of,
    used_before,
)
from odc.logs import warn
from odc.pages import PAGE
from odc.portable.files import FOLDER, MODEL
from odc.reading import anything, fields, read_json, text, whole
from odc.recipes import Features, Pipeline, Recipe
from odc.results.clustering import ABOUT, Clustering
from odc.sources import SCRATCH
from odc.work_dir import working

AUTO = "auto"
RUN, REQUEST, NUMBER, LOG = "run", "request.json", "choose-k.json", "log.txt"
_SQUARES = "pictures.npz"


@dataclass(frozen=True)
class Wanted:
    """What somebody asked for; what decides the result is the same in every call on one ``out``."""

    folder: str
    num_clusters: int | str  # or "auto"
    out: str
    features: str = SCRATCH
    method: str | None = None
    budget: str | None = None  # 90s, 10m, 1h30m
    seed: int = 0
    size: int | None = None  # pixels a side at which the network of --features sees pictures
    options: Mapping[str, Any] = field(default_factory=dict)  # {"STAGE.key": value} for the configs

    def decides(self) -> dict[str, Any]:
        """Return what may not change in an ``out``."""
        told = {name: value for name, value in asdict(self).items() if name not in ("out", "options")}
        return {**told, "folder": os.path.abspath(self.folder), "options": {k: str(v) for k, v in self.options.items()}}


_NUMBER = fields({"k": whole(2)}, anything)
_REQUEST = fields({"images": text}, anything)


def cluster(
    folder: str | Path,
    num_clusters: int | str,
    out: str | Path | None = None,
    *,
    features: str = SCRATCH,
    method: str | None = None,
    budget: str | None = None,
    seed: int = 0,
    size: int | None = None,
    copies: str | None = None,
    options: Mapping[str, Any] | None = None,
    stream: TextIO | None = None,
) -> Clustering:
    """Cluster the pictures below a folder; leave tables, a model for new pictures and a page in ``out``.

    The same call goes on where it was interrupted, and is done at once where it has ended. Logs go to
    ``out/run/log.txt``.

    Args:
        folder: of pictures, at any depth.
        num_clusters: K, or ``"auto"``: what the features say (:func:`odc.choosing.choose_k`).
        out: folder for what is left; by default ``work_dirs/<name of the folder>-clusters``.
        features: a SOURCE, see :mod:`odc.sources`; ``"scratch"`` learns them from the pictures alone.
        method: a head or an estimator of the comparisons; by default what suits the pictures.
        budget: time for everything, ``"90s"``, ``"10m"`` or ``"1h30m"``; by default as long as it takes.
        seed: of everything random.
        size: pixels a side at which the network of ``features`` sees pictures.
        copies: ``"link"`` or ``"copy"``: a folder for each cluster, too, with links to its pictures or copies.
        options: ``{"STAGE.key": value}`` for the configs of the recipe.
        stream: where to say what is done, and show the progress; ``None``: nowhere.

    Raises:
        InputError: for a folder without pictures, more clusters than pictures, a budget that nothing fits into, another
            call on ``out`` that was begun with other options, or what the recipe refuses.
    """
    name = Path(os.path.abspath(folder)).name
    wanted = Wanted(
        str(folder),
        num_clusters,
        str(out or Path("work_dirs") / f"{name}-clusters"),
        features,
        method,
        budget,
        seed,
        size,
        dict(options or {}),
    )
    _check(wanted, copies)
    place = Path(wanted.out)
    new = not place.exists()
    try:
        with working(writable(place)), aside(writable(place / RUN) / LOG):
            return _cluster(wanted, place, copies, stream)
    except InputError:
        if new and not (place / RUN / REQUEST).exists():  # nothing was begun
            shutil.rmtree(place, ignore_errors=True)
        raise


def _check(wanted: Wanted, copies: str | None) -> None:
    K, folder, out = wanted.num_clusters, Path(wanted.folder), Path(wanted.out)
    if isinstance(K, str) and K != AUTO:
        raise InputError(f"-k {K}: give a number of clusters, or auto")
    if isinstance(K, int) and K < 2:
        raise InputError(f"-k {K}: one cluster holds everything; take 2 or more")
    if folder.is_file():
        raise InputError(f"{folder} is a file: odc cluster takes the folder of the pictures, here {folder.parent}")
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder} (looked at {folder.absolute()})")
    if out.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            f"--out {out} lies in the folder of pictures, which would grow: choose one outside of {folder}"
        )
    if copies not in (None, *COPIES):
        raise InputError(f"copies must be one of {', '.join(COPIES)}, not {copies}")
    if wanted.size is not None and wanted.features == SCRATCH:
        raise InputError(f"--size {wanted.size} is for the network of --features")
    if wanted.budget is not None:
        seconds_of(wanted.budget)
    check_seed(wanted.seed, "--seed")
    run = out / RUN
    others = [p.name for p in out.iterdir() if p.name not in (RUN, ".lock")] if out.is_dir() else []
    if others and not (run / REQUEST).is_file():
        raise InputError(f"{out} holds other files ({', '.join(sorted(others)[:3])}): choose a new folder for --out")


def _cluster(wanted: Wanted, out: Path, copies: str | None, stream: TextIO | None) -> Clustering:
    run = out / RUN
    clock = Clock([], stream, None if wanted.budget is None else seconds_of(wanted.budget), used_before(run))
    dataset = build_dataset({"type": "ImageFolder", "root": wanted.folder})
    begun = _begun(wanted, dataset, run)
    write_skipped(dataset, out)
    seen = look(dataset, wanted.folder)
    K = wanted.num_clusters
    if isinstance(K, int) and len(dataset) < K:
        raise InputError(f"{K} clusters from {len(dataset):,} pictures: lower -k to {len(dataset)} or less")
    epochs = str(wanted.options.get("moco.train_cfg.max_epochs", ""))
    choice = choose(
        seen,
        K if isinstance(K, int) else 2,
        wanted.features,
        wanted.method,
        int(epochs) if epochs.isdigit() else None,
    )
    recipe = recipe_of(wanted, choice, K if isinstance(K, int) else 2, run)
    clock.steps = _steps(recipe, choice, seen, wanted)
    for line in _introduction(seen, choice, wanted, clock, begun):
        clock.say(line)
    if not begun:
        write_text(run / REQUEST, json.dumps({**wanted.decides(), "images": dataset.fingerprint}, indent=1) + "\n")
    if choice.square is not None:
        _squares(recipe, clock)
    watch = Watch(clock, lambda: keep_time(run, clock))
    if not isinstance(K, int):
        K = _automatic(wanted, recipe, run, watch)
        recipe = recipe_of(wanted, choice, K, run)
    try:
        left = run_stages(Pipeline(recipe, run, hooks=[watch], begins=clock.begin))
        clock.begin("table")
        result = _left(out, dataset) or leave(
            out, dataset, left, recipe, found(left, recipe, len(dataset)), K, _about(wanted, choice, dataset), clock
        )
    finally:
        keep_time(run, clock)
    clock.clear()
    copied = None if copies is None else copy_clusters(result, out, copies)
    for line in [*watch.remarks, *remarks(result, left, out, copied)]:
        clock.say(line)
    return result


def _begun(wanted: Wanted, dataset: ImageDataset, run: Path) -> bool:
    """Return whether an earlier call has begun; raise InputError where that was another one."""
    file = run / REQUEST
    if not file.is_file():
        return False
    before = read_json(file, _REQUEST, "does not say what was asked for", f"delete {run}, or choose another --out")
    now = wanted.decides()
    flags = {"num_clusters": "-k", "folder": "folder", "options": "--cfg-options"}
    for name, value in now.items():
        if before.get(name) != value:
            flag = flags.get(name, f"--{name}")
            raise InputError(
                f"{wanted.out} was begun with {flag} {before.get(name)}, now it is {value}: repeat the call as it was, "
                "or choose another --out"
            )
    if before["images"] != dataset.fingerprint:
        raise InputError(
            f"the pictures in {wanted.folder} are not those that {wanted.out} was begun with (now {len(dataset):,} of "
            "them): put those back, choose another --out, or give new pictures to odc predict"
        )
    return True


def recipe_of(wanted: Wanted, choice: Choice, K: int, run: Path) -> Recipe:
    """Return the recipe of a choice, configured for this folder, as a comparison has it.

    A comparison's plan is what knows the names of all methods, their stages and their options; the stages then run by
    themselves, one after the other, since a cell of a comparison begins anew where it was interrupted.
    """
    options, dataset = {**choice.options, **wanted.options}, wanted.folder
    if choice.square is not None:
        pictures = {"type": "ImageFolder", "root": wanted.folder}
        squares = {"type": "Shrunk", "dataset": pictures, "size": choice.square, "cache": str(run / _SQUARES)}
        options["data.dataset"] = {**squares, "_delete_": True}
        dataset = "folder32"
    request = Request(
        methods=[choice.row],
        out=run,
        dataset=dataset,
        features=None if wanted.features == SCRATCH else wanted.features,
        size=wanted.size,
        seeds=[wanted.seed],
        clusters=K,
        options=options,
    )
    recipe = shorter(plan(request)[-1].recipe)
    for stage in recipe.stages:
        if isinstance(stage, Features):
            stage.check()
            if not any(space.model for space in stage.train.spaces):  # are they of these pictures?
                build_dataset(stage.train.dataset([space.spelling for space in stage.train.spaces]))
    return recipe


def _steps(recipe: Recipe, choice: Choice, seen: Look, wanted: Wanted) -> list[Step]:
    """Return all steps of the work, with first guesses of the seconds that they take."""
    # A step of MoCo on 128 pictures, and what the work on a picture at the end takes: measured on two cores.
    per_step = 0.05 if seen.gpu else 0.35 * 2 / seen.cores
    ends = seen.images * (2 * seen.load_seconds / min(seen.cores, 8) + 0.006) + 8.0
    steps = steps_of(recipe, wanted.features, seen.images, per_step, seen.cores)
    if choice.square is not None:
        steps.insert(0, Step("pictures", "reading", seen.images * seen.load_seconds / min(seen.cores, 8)))
    if wanted.num_clusters == AUTO:
        place = 1 + next((i for i, step in enumerate(steps) if step.name in recipe.shared), len(steps) - 1)
        steps.insert(place, Step("auto", "number of clusters", 20.0 + 0.01 * min(seen.images, 5000)))
    return [*steps, Step("table", "table, model and page", ends)]


def _introduction(seen: Look, choice: Choice, wanted: Wanted, clock: Clock, begun: bool) -> list[str]:
    lines = [f"{wanted.folder}: {seen}", f"recipe: {choice.told} ({choice.why})"]
    expected = f"about {told(clock.left())} to a first guess, exact soon"
    if clock.budget is not None:
        expected += f", at most {told(clock.budget)}"
    last = f"{choice.advice}; " if choice.advice else ""
    lines.append(f"{last}{expected}; {'goes on in' if begun else 'everything goes to'} {wanted.out}")
    return lines


def _squares(recipe: Recipe, clock: Clock) -> None:
    """Decode all pictures, once for all stages."""
    config = next(stage.config for stage in recipe.stages if stage.config is not None)
    squares = build_dataset(config.data.dataset)
    assert isinstance(squares, Shrunk)
    clock.begin("pictures")

    def watch(done: int, total: int) -> None:
        clock.at(done / total)
        check_fixed(clock, total)

    squares.watch = watch
    squares.images()


def _about(wanted: Wanted, choice: Choice, dataset: ImageDataset) -> dict[str, Any]:
    """Return what is kept of how a clustering was made."""
    facts = provenance()
    return {
        "folder": os.path.abspath(wanted.folder),
        "method": choice.row,
        "recipe": choice.told,
        "features": wanted.features,
        "seed": wanted.seed,
        "fingerprint": dataset.fingerprint,
        **{name: facts[name] for name in ("versions", "machine", "command", "date")},
    }


def _left(out: Path, dataset: ImageDataset) -> Clustering | None:
    """Return the clustering that an earlier call has left, where it is whole and of these pictures."""
    if not all((out / name).exists() for name in (ABOUT, PAGE)):
        return None
    try:
        clustering = Clustering.load(out)
    except InputError as error:
        warn(f"{error}: it is made again")
        return None
    whole = "no_model" in clustering.about or (out / FOLDER / MODEL).is_file()
    return clustering if whole and clustering.about.get("fingerprint") == dataset.fingerprint else None


def _automatic(wanted: Wanted, recipe: Recipe, run: Path, watch: Watch) -> int:
    """Return the number of clusters that the features speak for, which their part of the recipe makes first.

    Raises:
        InputError: the recipe clusters pictures as they are, and has no features before.
    """
    clock, file = watch.clock, run / NUMBER
    if file.is_file():
        return int(read_json(file, _NUMBER, "does not say how many clusters there are", f"delete {file}")["k"])
    if not recipe.shared:
        raise InputError(
            f"-k auto needs features before the clusters, and {recipe.name} has none: give a number, or --features"
        )
    name = recipe.shared[0]
    first = recipe.until(name, name)
    left = run_stages(Pipeline(first, run, hooks=[watch], begins=clock.begin))
    clock.begin("auto")
    features = given_features(left, first).numpy()
    chosen = choose_k(features, seed=wanted.seed, watch=lambda done, total: clock.at(done / total))
    K = min(chosen.middle, len(features))
    sure = "" if chosen.k is not None else "the data do not say; taken is the middle of what is plausible, "
    clock.say(f"-k auto: {sure}{K} ({chosen.lowest} to {chosen.highest}): {chosen.why}")
    write_text(file, json.dumps({"k": K, **chosen.describe()}, indent=1) + "\n")
    return K
