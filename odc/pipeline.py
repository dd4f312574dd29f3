"""SPICE from pictures to clusters: MoCo → embeddings → Self → reliable labels → Semi, each stage kept on disk.

Every stage has a folder of its own and leaves a ``done.json`` there with a key: a hash of its config, of its data and
of the stages before it. A stage whose key is there already is skipped; one that was interrupted goes on from its last
checkpoint; one that is there with another key stops the pipeline, so nothing is ever overwritten by something else.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine import Config
from mmengine.hooks import Hook
from mmengine.logging import MMLogger, print_log

from odc.apis import extract_features, load_runner, prepare_config, train
from odc.checkpoints import find_resume
from odc.clustering.consistency import beta_histogram, local_consistency, reliable_samples
from odc.config import load_config
from odc.config.checking import check_parts
from odc.data.datasets import ImageDataset
from odc.data.embeddings import Embeddings
from odc.data.label_file import LabelFile
from odc.data.table import read_table
from odc.engine.comm import get_comm
from odc.engine.extract import extract
from odc.engine.loops import unwrap
from odc.engine.precision import settle_precision
from odc.errors import InputError, nearest
from odc.evaluation.align import Alignment, align, read_labels
from odc.evaluation.gallery import listed, write_skipped
from odc.evaluation.markdown import markdown_table
from odc.evaluation.metrics import clustering_accuracy
from odc.evaluation.results import read_results
from odc.files import writable, writable_file, write_text, written_whole
from odc.models.convert import convert
from odc.options import read_arguments
from odc.reading import fields, listing, optional, read_json, real, text, whole
from odc.registry import DATASETS, MODELS, build, check_arguments
from odc.structures import UNLABELLED
from odc.work_dir import working

TRAINED = ("moco", "self", "semi")
STAGES = ("moco", "embeddings", "self", "reliable", "semi")
_MOST_CLUSTERS = 1_000_000  # in a table: a larger number is no number of a cluster
METRICS = {"acc": "ACC", "nmi": "NMI", "ari": "ARI", "knn": "kNN", "kmeans_acc": "k-means ACC"}


@dataclass(frozen=True)
class Reliable:
    """What the reliable step found.

    Attributes:
        count: images whose label is trusted, of ``total``.
        per_cluster: (K,) of them in each cluster.
        purity: share of them that are right under the best one-to-one map of clusters to classes; ``None`` without
            ground truth. For evaluation only.
        labelled: how many of the labels a user gave.
    """

    count: int
    total: int
    per_cluster: tuple[int, ...]
    purity: float | None
    labelled: int

    def __str__(self) -> str:
        low, high = min(self.per_cluster), max(self.per_cluster)
        text = f"{self.count:,} of {self.total:,} images have a reliable label, {low:,} to {high:,} a cluster"
        if self.labelled:
            text += f", {self.labelled:,} of them given by hand"
        if self.purity is not None:
            text += f"; {self.purity:.1%} of them are right (for evaluation only)"
        return text + "; their number says nothing of their quality"


def reliable(
    cfg: Config,
    checkpoint: str,
    out: str | Path,
    *,
    features: str | Path | None = None,
    neighbours: int = 100,
    threshold: float = 0.99,
    score_threshold: float | None = None,
    balance: Any = None,
    quota: int | None = None,
    include_self: bool = False,
    labelled: str | Path | None = None,
    alignment: str | Path | None = None,
    allow_empty: bool = False,
) -> Reliable:
    """Keep the predicted clusters of images whose neighbours are in the same one; write ``labels.npz``, ``beta.png``.

    Args:
        cfg: a prepared config of a trained clustering, SPICE-Self say.
        checkpoint: of it.
        out: folder to write to.
        features: file of :func:`odc.apis.extract_features` to take neighbours in; by default the model's features.
        neighbours: at most half the mean size of a cluster.
        threshold, score_threshold, balance, quota, include_self: see :mod:`odc.clustering.consistency`.
        labelled: CSV file with the columns ``path`` and ``label``: these images join the reliable ones and win over
            what was predicted for them; needs
        alignment: map of clusters to classes that ``odc align`` wrote.
        allow_empty: go on where a cluster has no reliable image. What trains on the labels will leave it empty.

    Raises:
        InputError: nothing is reliable, or nothing in some cluster, files of other images, or options that do not go
            together.
    """
    if (labelled is None) != (alignment is None):
        raise InputError("labels by hand need to know which cluster is which class: give --labels and --align together")
    folder = writable(out)
    runner, data = load_runner(cfg, checkpoint)
    try:
        model, comm, dataset = unwrap(runner.model), get_comm(), data.train.dataset
        table = extract(model, data.train, comm, batch_size=data.extract_batch_size, logits=model.head.predict)
    finally:
        data.close()
    if table.logits is None or table.logits.shape[1] < 2:
        raise InputError(f"{cfg.filename}: its head predicts no clusters that could be reliable")
    scores, clusters = table.logits.softmax(1).max(1)
    K = table.logits.shape[1]
    x = table.features if features is None else Embeddings.load(features).for_dataset(dataset)
    most = max(1, len(x) // (2 * K))  # a neighbourhood that reaches beyond its cluster says nothing of it
    if neighbours > most:
        print_log(
            f"{neighbours} neighbours reach beyond clusters of {len(x) / K:.0f} images on average: taking {most}",
            "current",
        )
    beta = local_consistency(x, clusters.cpu(), min(neighbours, most), include_self)
    draw_beta(beta.numpy(), threshold, folder / "beta.png")
    print_log(f"local consistency of {len(x):,} images: {beta_histogram(beta)}", "current")
    mask = reliable_samples(
        beta, clusters.cpu(), K, threshold, scores.cpu(), score_threshold, balance=balance, quota=quota
    )
    target = np.where(mask.numpy(), clusters.cpu().numpy(), UNLABELLED)
    given = 0
    if labelled is not None and alignment is not None:
        given = _join(target, clusters.cpu().numpy(), dataset, labelled, Alignment.load(alignment))
    none = np.flatnonzero(np.bincount(target[target >= 0], minlength=K) == 0)
    if len(none) and not allow_empty:
        raise InputError(
            f"{len(none)} of {K} clusters have no reliable image ({listed(none)}), so training on these labels would "
            f"leave them empty: lower the threshold of {threshold:g} (histogram in {folder / 'beta.png'}), ask for "
            "fewer clusters or train longer; reliable.allow_empty=True (odc reliable --allow-empty) goes on"
        )
    meta = {"config": str(cfg.filename), "checkpoint": str(checkpoint), "threshold": str(threshold)}
    LabelFile(target, K, dataset.fingerprint, meta).save(folder / "labels.npz")
    found = Reliable(
        int((target >= 0).sum()),
        len(target),
        tuple(np.bincount(target[target >= 0], minlength=K).tolist()),
        _purity(target, dataset),
        given,
    )
    print_log(f"{found}; {folder / 'labels.npz'}, histogram in {folder / 'beta.png'}", "current")
    return found


def _join(target: Any, clusters: Any, dataset: ImageDataset, labelled: str | Path, alignment: Alignment) -> int:
    """Write a user's labels over ``target`` (N,), as clusters; return how many."""
    index, names, _ = read_labels(labelled, dataset.paths)
    for name in names:
        if name not in alignment.classes:
            raise InputError(f"'{labelled}': the map has no class '{name}'{nearest(name, alignment.classes)}")
    if int(clusters.max()) >= len(alignment.matches):
        raise InputError(
            f"the map names clusters 0 to {len(alignment.matches) - 1}, but there is a cluster {int(clusters.max())}: "
            "make it with odc align from the clusters.csv of this clustering"
        )
    label = np.array([alignment.classes.index(name) for name in names], dtype=np.int64)
    cluster = alignment.clusters_of(label, clusters[index])
    without = sorted({names[i] for i in np.flatnonzero(cluster < 0)})
    if without:
        print_log(f"no cluster is of class {', '.join(without)}: its labelled images are left out", "current")
    target[index] = cluster
    return int((cluster >= 0).sum())


def _purity(target: Any, dataset: ImageDataset) -> float | None:
    if dataset.targets is None:
        return None
    both = (target >= 0) & (dataset.targets >= 0)
    return clustering_accuracy(target[both], dataset.targets[both])[0] if both.any() else None


def draw_beta(beta: Any, threshold: float, path: Path) -> None:
    """Draw the histogram of the local consistency (N,) with its threshold."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.hist(beta, bins=50, range=(0, 1), color="#4477aa")
    axes.axvline(threshold, color="#cc3311", linestyle="--", label=f"reliable above {threshold:g}")
    axes.set_xlabel("local consistency β (share of the nearest images in the same cluster)")
    axes.set_ylabel("images")
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure)
    with written_whole(path) as file:
        figure.savefig(file, format="png")


_FEW = 10_000  # clusters that a table may have, however few of their images it has


def align_clusters(
    clusters: str | Path,
    labels: str | Path,
    out: str | Path,
    *,
    features: str | Path | None = None,
    test: str | Path | None = None,
    min_margin: float = 0.0,
) -> str:
    """Name the clusters of a ``clusters.csv`` by a few labelled images; write the map as JSON.

    Args:
        clusters: table with the columns ``path`` and ``cluster``.
        labels: table with the columns ``path`` and ``label``.
        out: JSON file to write.
        features: file of :func:`odc.apis.extract_features`, needed where a class has fewer than three labels.
        test: table of other labelled images to measure the map's accuracy on; none may be among ``labels``.
        min_margin: see :func:`odc.evaluation.align.align`.

    Returns:
        What was found, a line for each cluster.
    """
    file = writable_file(out)
    rows = read_table(clusters, "path", "cluster")
    paths = [row["path"] for row in rows]
    of = _clusters(rows, clusters)
    index, names, unlabelled = read_labels(labels, paths)
    classes = tuple(sorted(set(names)))
    label = np.array([classes.index(name) for name in names], dtype=np.int64)
    x = None
    if features is not None:
        table = Embeddings.load(features)
        place = {path: i for i, path in enumerate(table.paths)}
        missing = [path for path in paths if path not in place]
        if missing:
            raise InputError(
                f"'{features}' has no features of {len(missing)} of the {len(paths)} images in '{clusters}', the first "
                f"is '{missing[0]}': extract them from the same data set"
            )
        x = table.features[[place[path] for path in paths]].numpy()
    if of.max() >= max(len(of), _FEW):
        raise InputError(
            f"'{clusters}' has cluster {of.max()}, but only {len(of):,} images: clusters are numbered from 0, give a "
            "table that odc wrote"
        )
    found = align(of, int(of.max()) + 1, index, label, classes, x, min_margin)
    found.save(file)
    lines = [f"cluster {m.cluster}: {_told(m, found.rule)}" for m in found.matches]
    if found.unmatched:
        lines.append(f"no cluster is of class {', '.join(found.unmatched)}")
    if unlabelled:
        lines.append(f"{unlabelled} rows of {labels} have no label yet (empty or {UNLABELLED}) and take no part")
    if test is not None:
        lines.append(_accuracy(found, of, paths, set(index.tolist()), test))
    lines.append(f"{len(found.matches)} clusters, {len(classes)} classes, by {found.rule}: {out}")
    return "\n".join(lines)


def _clusters(rows: Sequence[Mapping[str, str]], source: str | Path) -> Any:
    """Return the column ``cluster`` (N,) int64 of a table."""
    try:
        numbers = [int(row["cluster"]) for row in rows]
    except ValueError as error:
        raise InputError(f"'{source}': the column cluster must hold numbers: {error}") from error
    if min(numbers) < 0:
        raise InputError(
            f"'{source}': {sum(n < 0 for n in numbers)} of {len(numbers)} images are in cluster {min(numbers)}, but "
            "clusters are numbered from 0: leave out the rows of images in none (noise, in other programs)"
        )
    if max(numbers) >= _MOST_CLUSTERS:
        raise InputError(
            f"'{source}' has a cluster {max(numbers)}, but numbers below {_MOST_CLUSTERS:,} are expected of "
            f"{len(numbers):,} images: number the clusters from 0"
        )
    return np.array(numbers, dtype=np.int64)


def _told(match: Any, rule: str) -> str:
    votes = f"{match.support} of its {match.labelled} labelled images, margin {match.margin:.2f}"
    return f"{match.label} ({votes})" if match.label is not None else f"no class stands out ({votes})"


def _accuracy(found: Alignment, clusters: Any, paths: list[str], used: set[int], test: str | Path) -> str:
    index, names, _ = read_labels(test, paths)
    again = sorted(used & set(index.tolist()))
    if again:
        raise InputError(
            f"'{test}': {len(again)} of {len(names)} images took part in the alignment, the first is "
            f"'{paths[again[0]]}': measure on others"
        )
    named = found.labels(clusters[index])
    right = sum(c >= 0 and found.classes[c] == name for c, name in zip(named.tolist(), names, strict=True))
    silent = int((named < 0).sum())
    return f"{right} of {len(names)} other labelled images are right ({right / len(names):.1%}); {silent} have no class"


# -- the pipeline ----------------------------------------------------------------------------------------------------


def stage_options(options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return which options go to which stage: those that begin with its name to it, others to all that are trained."""
    by_stage: dict[str, dict[str, Any]] = {stage: {} for stage in (*TRAINED, "reliable")}
    for key, value in options.items():
        stage, _, rest = key.partition(".")
        if stage in by_stage and rest:
            by_stage[stage][rest] = value
        else:
            for name in TRAINED:
                by_stage[name][key] = value
    return by_stage


def fit_queue(cfg: Config, N: int) -> str | None:
    """Make the model of a config suit N images; return what was changed, or ``None``."""
    kind: Any = MODELS.get(cfg.model.type)
    cfg.model, told = kind.fitted(cfg.model.to_dict(), N)
    return None if told is None else str(told)


def _checkpoint(value: Any) -> str:
    """Kind: the name of a checkpoint in the folder of its stage."""
    if not re.fullmatch(r"(epoch|iter)_\d+\.pth", text(value)):
        raise ValueError(f"epoch_<number>.pth or iter_<number>.pth is expected, not '{value[:60]}'")
    return str(value)


_MARK = "is no record of a stage"
_SECONDS = real(0)
_RAN = {"key": text, "seconds": _SECONDS, "precision": text, "threads": whole(1)}
BEGUN = fields(_RAN)
DONE = fields(
    _RAN,
    optional(real()),  # metrics
    checkpoint=_checkpoint,
    told=text,
    per_cluster=listing(whole()),
    without_images=listing(whole()),
    **dict.fromkeys(("count", "total", "labelled", "images"), whole()),
)


class Pipeline:
    """SPICE's stages in one work directory.

    Args:
        config: file whose ``pipeline`` is a dict of ``moco``, ``self`` and ``semi``, paths of configs relative to it,
            and ``reliable``, arguments of :func:`reliable`.
        work_dir: where a folder for each stage goes; by default ``work_dirs/<name of the config>``.
        cfg_options: ``{"dotted.key": value}``; a key that starts with ``moco.``, ``self.``, ``semi.`` or ``reliable.``
            goes to that stage, any other to all three configs.
        clusters: K of Self and Semi; by default the configs'.
        pretrained: backbone to start from instead of training MoCo.
        seed: of all stages; by default the configs'.
        amp: bfloat16 autocast.
        strict: unreadable images are an error instead of being skipped.
        hooks: more of them for every training.

    Raises:
        InputError: for a config that is no pipeline, or stages of different images.
    """

    def __init__(
        self,
        config: str | Path,
        *,
        work_dir: str | Path | None = None,
        cfg_options: Mapping[str, Any] | None = None,
        clusters: int | None = None,
        pretrained: str | Path | None = None,
        seed: int | None = None,
        amp: bool = False,
        strict: bool = False,
        hooks: Sequence[Hook] = (),
    ) -> None:
        path = Path(config)
        self.hooks = hooks
        stages = load_config(str(config), None).get("pipeline")
        expected = {*TRAINED, "reliable"}
        if not isinstance(stages, Mapping) or set(stages) != expected:
            raise InputError(f"{config}: a pipeline is a dict of {', '.join(sorted(expected))}")
        self.folder = Path(work_dir) if work_dir is not None else Path("work_dirs") / path.stem
        options = stage_options(cfg_options or {})
        if clusters is not None:
            for name in ("self", "semi"):
                options[name]["model.head.num_clusters"] = clusters
        if pretrained is not None and not Path(pretrained).is_file():
            raise InputError(f"there is no backbone '{pretrained}' to start from")
        self.pretrained = None if pretrained is None else Path(pretrained)
        backbone = self.pretrained or self.folder / "moco" / "backbone.pth"
        options["self"]["model.pretrained"] = options["semi"]["model.pretrained"] = str(backbone)
        options["semi"]["train_cfg.label_file"] = str(self.folder / "reliable" / "labels.npz")
        self.configs = {
            name: prepare_config(
                path.parent / stages[name],
                work_dir=self.folder / name,
                cfg_options=options[name],
                seed=seed,
                amp=amp,
                strict=strict,
            )
            for name in TRAINED
        }
        self.reliable_options = {**stages["reliable"], **read_arguments(options["reliable"], reliable)}
        check_arguments(reliable, self.reliable_options, "reliable", given=("cfg", "checkpoint", "out", "features"))
        for cfg in self.configs.values():
            check_parts(cfg)  # here, and not when the stage's turn comes
        self.dataset: ImageDataset = build(DATASETS, self.configs["moco"].data.dataset)
        by_hand = "model.head.queue_size" in options["moco"]
        self.fitted = None if by_hand or pretrained else fit_queue(self.configs["moco"], len(self.dataset))
        for name in ("self", "semi"):
            K = self.configs[name].model.head.get("num_clusters", 1)
            if len(self.dataset) < K:
                raise InputError(f"{K} clusters cannot share {len(self.dataset)} images: lower --clusters")
        for name in TRAINED:
            if self.configs[name].data.dataset != self.configs["moco"].data.dataset:
                raise InputError(
                    f"the stages must see the same images: data.dataset is {self.configs['moco'].data.dataset} for "
                    f"moco but {self.configs[name].data.dataset} for {name}"
                )
            if self.configs[name].model.backbone != self.configs["moco"].model.backbone:
                raise InputError(
                    f"the stages must have the same backbone: it is {self.configs['moco'].model.backbone} for moco "
                    f"but {self.configs[name].model.backbone} for {name}"
                )

    def run(self, until: str = "semi") -> dict[str, dict[str, Any]]:
        """Run what is not there yet, up to the stage ``until``; return each stage's result and write ``summary.md``.

        Raises:
            InputError: another command is at work in the folder, or as :func:`odc.apis.train`.
        """
        with working(self.folder):
            return self._run(until)

    def _run(self, until: str) -> dict[str, dict[str, Any]]:
        write_skipped(self.dataset, self.folder)
        # What is said before the first stage's own log exists.
        self.logger = MMLogger("pipeline", logger_name="mmengine")
        if self.fitted:
            self.logger.info(self.fitted)
        results: dict[str, dict[str, Any]] = {}
        embeddings = self.folder / "embeddings" / "features.npz"

        def last(name: str) -> str:
            return str(self.folder / name / results[name]["checkpoint"])

        def moco() -> dict[str, Any]:
            values = self._train("moco")
            convert(self.folder / "moco" / values["checkpoint"], self.folder / "moco" / "backbone.pth")
            return values

        def embed() -> dict[str, Any]:
            cfg = self._config("moco", "embeddings")
            return {"images": len(extract_features(cfg, last("moco"), embeddings).index)}

        def choose() -> dict[str, Any]:
            cfg = self._config("self", "reliable")
            # Self's own features are the same, its backbone being frozen; without MoCo's stage there are no others.
            features = None if self.pretrained else embeddings
            found = reliable(cfg, last("self"), self.folder / "reliable", features=features, **self.reliable_options)
            return {**found.__dict__, "told": str(found)}

        work: dict[str, Callable[[], dict[str, Any]]] = {
            "moco": moco,
            "embeddings": embed,
            "self": lambda: self._train("self"),
            "reliable": choose,
            "semi": lambda: self._train("semi"),
        }
        stages = list(STAGES if self.pretrained is None else STAGES[2:])
        stages = stages[: stages.index(until) + 1]
        self._forget_incomplete(stages)
        key = "" if self.pretrained is None else hashlib.sha256(self.pretrained.read_bytes()).hexdigest()
        for number, name in enumerate(stages):
            key = self._key(name, key)
            results[name] = self._stage(name, key, work[name], f"stage {number + 1}/{len(stages)}, {name}")
        write_text(self.folder / "summary.md", summary(results) + "\n")
        return results

    def _forget_incomplete(self, stages: Sequence[str]) -> None:
        """Let stages that are done be done again where their files are gone or damaged: what is there is used."""
        needed = False  # checkpoints are: a later stage has still to be done
        for name in reversed(stages):
            done = self.folder / name / "done.json"
            if not done.is_file():
                needed = True
                continue
            missing = self._missing(
                name, read_json(done, DONE, _MARK, f"delete {done.parent} to run this stage again"), needed
            )
            if missing is not None:
                self.logger.info(f"{name} was done, but its {missing} is missing or damaged: it is made again")
                done.unlink()
                needed = True

    def _missing(self, name: str, result: Mapping[str, Any], needed: bool) -> str | None:
        """Return which file of a stage that was done is missing or damaged, if one is."""
        folder = self.folder / name
        if name == "reliable":
            files = ["labels.npz", "beta.png"]
        elif name == "embeddings":
            files = ["features.npz"]
        else:
            files = (["backbone.pth"] if name == "moco" else []) + ([result["checkpoint"]] if needed else [])
            if self.configs[name].get("val_evaluator") and read_results(folder, int(result["epochs"])) is None:
                return "evaluation"
        return next((file for file in files if not (folder / file).is_file()), None)

    def _key(self, name: str, before: str) -> str:
        parts: list[Any] = [name, before, self.dataset.fingerprint, self._ran(name)]
        if name in TRAINED:
            cfg = self.configs[name]
            apart = ("work_dir", "resume", "load_from", "visualizer", "precision")
            told = {k: v for k, v in cfg.to_dict().items() if k not in apart}
            parts.append({k: v for k, v in told.items() if not k.startswith("_")})
        elif name == "reliable":
            parts.append(self.reliable_options)
        # Where the folder lies does not change what is in it.
        text = json.dumps(parts, sort_keys=True, default=str).replace(str(self.folder), "")
        if self.pretrained is not None:
            text = text.replace(str(self.pretrained), "")
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _ran(self, name: str) -> dict[str, Any]:
        """Return how this machine computes a stage, on which its numbers depend beside config and data."""
        precision = settle_precision(self.configs[name].get("precision")) if name in TRAINED else "float32"
        return {"precision": precision, "threads": torch.get_num_threads()}

    def _stage(self, name: str, key: str, work: Callable[[], dict[str, Any]], title: str) -> dict[str, Any]:
        folder, ran = writable(self.folder / name), self._ran(name)
        begun, done = folder / "begun.json", folder / "done.json"
        left = {
            file: read_json(file, kind, _MARK, f"delete {folder} to run this stage again")
            for file, kind in ((done, DONE), (begun, BEGUN))
            if file.exists()
        }
        for file, before in left.items():
            # An unfinished stage that trains nothing has nothing to lose: other options may begin it anew.
            if before["key"] != key and (file == done or name in TRAINED):
                raise InputError(
                    f"{folder} holds a stage of another config, other data or other stages before it"
                    f"{_otherwise(before, ran)}: delete {folder}, or choose another --work-dir"
                )
        if done in left:
            self.logger.info(f"{title}: there already, from the same config and data")
            return dict(left[done])
        self.logger.info(f"{title}: begins")
        earlier = left[begun]["seconds"] if begun in left else 0.0
        started = time.monotonic()

        def seconds() -> float:
            return float(round(earlier + time.monotonic() - started, 1))

        write_text(begun, json.dumps({"key": key, "seconds": earlier, **ran}) + "\n")
        try:
            values = work()
        finally:
            write_text(begun, json.dumps({"key": key, "seconds": seconds(), **ran}) + "\n")
        result = {"key": key, "seconds": seconds(), **ran, **values}
        write_text(done, json.dumps(result, indent=2, default=float) + "\n")
        return result

    def _config(self, name: str, folder: str) -> Config:
        """Return a stage's config for another stage that only reads its checkpoint."""
        cfg: Config = self.configs[name].copy()
        cfg.work_dir = str(self.folder / folder)
        return cfg

    def _train(self, name: str) -> dict[str, Any]:
        cfg = self.configs[name]
        cfg.resume = True  # from its own folder, where an earlier run was interrupted
        values = train(cfg, self.hooks)
        found = read_results(Path(cfg.work_dir), int(values["epochs"]))
        empty = [] if found is None else found.without_images
        return {**values, "without_images": empty, "checkpoint": Path(next(find_resume(cfg.work_dir))).name}


def _otherwise(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return how a stage was computed in another way than it would be now, or nothing."""
    then, here = (f"in {ran.get('precision')} on {ran.get('threads')} threads" for ran in (before, now))
    return "" if then == here else f" (it ran {then}, now it would {here}; OMP_NUM_THREADS sets the threads)"


def summary(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of the stages in Markdown, how they were computed, and what the reliable step found."""
    measured = {m: name for m, name in METRICS.items() if any(v.get(m) is not None for v in results.values())}
    rows = [["stage", *measured.values(), "seconds"]]
    for stage, values in results.items():
        cells = ["" if values.get(m) is None else f"{values[m]:.3f}" for m in measured]
        rows.append([stage, *cells, f"{values['seconds']:.1f}"])
    rows.append(["all", *[""] * len(measured), f"{sum(values['seconds'] for values in results.values()):.1f}"])
    precision, threads = (
        " / ".join(dict.fromkeys(str(results[stage][name]) for stage in TRAINED if stage in results))
        for name in ("precision", "threads")
    )
    found = [values["told"] for values in results.values() if "told" in values]
    empty = [
        f"{stage}: {len(values['without_images'])} clusters have no image: {listed(values['without_images'])}"
        for stage, values in results.items()
        if values.get("without_images")
    ]
    return "\n".join([markdown_table(rows), "", f"Trained in {precision}, threads: {threads}.", "", *found, *empty])
