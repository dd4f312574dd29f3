"""Whether a config, or what odc cluster would do with a folder, fits images and machine; and how long it takes."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine import Config

from odc.apis import prepare_config
from odc.config import find_config
from odc.data.datasets import build_dataset
from odc.doctor.findings import ADVICE, OK, PROBLEM, Finding, duration, size
from odc.doctor.machine import cores, free_memory
from odc.doctor.timing import Timing, measure
from odc.engine.precision import lacks_bfloat16
from odc.errors import InputError
from odc.folder.choice import choose
from odc.folder.clustering import RUN, Wanted, recipe_of
from odc.folder.looking import look
from odc.folder.running import steps_of
from odc.models.cluster_model import ClusterModel
from odc.recipes import Recipe
from odc.recipes.stage import Train
from odc.registry import MODELS, resolve

_FEW = 10  # images a cluster below which most methods find little
_SHARE = 0.8  # of the free memory


def look_at(target: str, num_clusters: int = 10) -> list[Finding]:
    """Look at a folder of pictures, as ``odc cluster`` would, or at a config; its real loop runs for some seconds.

    Args:
        target: a folder, or the path or name of a config.
        num_clusters: K, for a folder.

    Raises:
        InputError: there is neither, or the images cannot be read.
    """
    return _folder(target, num_clusters) if Path(target).is_dir() else _config(target)


def _folder(folder: str, K: int) -> list[Finding]:
    dataset = build_dataset({"type": "ImageFolder", "root": folder})
    seen = look(dataset, folder)
    found = [Finding("images", OK, str(seen)), clusters(len(dataset), K)]
    if found[-1].status == PROBLEM:
        return found
    choice = choose(seen, K)
    found.append(Finding("recipe", OK, choice.told))
    with tempfile.TemporaryDirectory() as place:
        recipe = recipe_of(Wanted(folder, K, place), choice, K, Path(place) / RUN)
    seconds = len(dataset) * seen.load_seconds / min(seen.cores, 8)  # to decode all, once
    guessed = 0.0
    for stage, step in zip(recipe.stages, steps_of(recipe, "scratch", len(dataset), 0.35, seen.cores), strict=True):
        if isinstance(stage, Train) and not stage.config.model.get("frozen"):
            timing = measure(stage.fitted(len(dataset))[0].config, dataset)
            seconds += timing.seconds
            found += _memory(timing)
        else:
            guessed += step.guess
    told = f"odc cluster {folder} -k {K} takes about {duration(seconds + guessed)} here"
    return [*found, Finding("time", OK, f"{told}, {duration(seconds)} of it by what some steps took")]


def _config(target: str) -> list[Finding]:
    path = find_config(target)
    with tempfile.TemporaryDirectory() as place:
        try:
            recipe = Recipe.load(str(path)).configured({})
            configs = {stage.name: stage.config for stage in recipe.stages if isinstance(stage, Train)}
        except InputError:
            configs = {}
        if len(configs) < 2:
            configs = {"": prepare_config(str(path), work_dir=place)}
    found: list[Finding] = []
    for name, config in configs.items():
        dataset = build_dataset(config.data.dataset)
        if not found:
            shape = dataset.image(0).shape
            told = f"{len(dataset):,}, the first {' × '.join(map(str, shape[1:]))} pixels"
            told = f"{len(dataset):,} vectors of {shape[0]} numbers" if dataset.spaces else told
            found.append(Finding("images", OK, told))
        called = f"{name}: " if name else ""
        found += [_called(called, finding) for finding in fits(config, len(dataset))]
        if any(finding.status == PROBLEM for finding in found):
            return found
        if name != next(iter(configs)):  # it needs what the stages before it leave
            continue
        timing = measure(config, dataset)
        found += [_called(called, finding) for finding in _memory(timing)]
        others = len(configs) - 1
        later = f"; the {others} trainings after it start from what it leaves, and are not timed" if others else ""
        found.append(Finding("time", OK, f"{called}{timing}{later}"))
    return found


def _called(name: str, finding: Finding) -> Finding:
    return Finding(finding.name, finding.status, f"{name}{finding.found}", finding.remedy)


def clusters(num_images: int, K: int) -> Finding:
    """Say whether so many images can have K clusters."""
    told = f"{K} of {num_images:,} images"
    if num_images < K:
        return Finding("clusters", PROBLEM, f"{told}: more clusters than images", f"{num_images} clusters at most")
    told += f", {num_images / K:.0f} a cluster"
    if num_images < _FEW * K:
        return Finding("clusters", ADVICE, f"{told}: little to learn a cluster from", "fewer clusters, or --features")
    return Finding("clusters", OK, told)


def fits(config: Config, num_images: int) -> list[Finding]:
    """Say whether clusters, batch, queue, workers and precision of a config fit the images and this machine."""
    head, found = config.model.get("head", {}), list[Finding]()
    K = head.get("num_clusters")
    found += [clusters(num_images, int(k)) for k in ([K] if isinstance(K, int) else [])]
    kind = resolve(MODELS, config.model)[0]
    model = config.model.to_dict()
    fitted, told = kind.fitted(model, num_images) if issubclass(kind, ClusterModel) else (model, None)
    if told is not None:
        found.append(_unfit(model["head"], fitted["head"], told))
    batch = fitted["head"].get("batch_size")
    if isinstance(batch, int):
        found.append(_batch(batch, num_images))
    workers = config.data.get("num_workers") or 0
    if workers > cores():
        found.append(Finding("workers", ADVICE, f"{workers} on {cores():g} cores", f"data.num_workers={int(cores())}"))
    reason = lacks_bfloat16() if config.get("precision") == "bfloat16" else None
    if reason is not None:
        found.append(Finding("precision", ADVICE, f"float32, not bfloat16: {reason}", "precision='float32'"))
    return found


def _unfit(head: Mapping[str, Any], fitted: Mapping[str, Any], told: str) -> Finding:
    """Return what odc train refuses, and a recipe changes by itself."""
    changes = [f"model.head.{key}={value}" for key, value in fitted.items() if head.get(key) != value]
    return Finding("queue" if "queue" in told else "neighbours", PROBLEM, told, f"--cfg-options {' '.join(changes)}")


def _batch(batch: int, num_images: int) -> Finding:
    if batch > num_images:
        remedy = f"model.head.batch_size={max(2, num_images // 4)}"
        return Finding("batch", ADVICE, f"{batch} images, more than all {num_images:,}", remedy)
    return Finding("batch", OK, f"{batch} images, {-(-num_images // batch):,} steps an epoch")


def _memory(timing: Timing) -> list[Finding]:
    """Say whether what a training takes is free."""
    free, needed = free_memory(), timing.memory
    told = f"about {size(needed)}, {size(timing.rows)} of them features; {size(free)} are free"
    if needed > _SHARE * free:
        remedy = "fewer data.num_workers, a smaller batch, data.dataset.max_samples, or more memory"
        return [Finding("memory", PROBLEM if needed > free else ADVICE, told, remedy)]
    return [Finding("memory", OK, told)]
