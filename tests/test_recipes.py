"""Recipes: SPICE's, the reliable step and the naming of clusters, on digits, for as few steps as show what they do."""

from __future__ import annotations

import ast
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.visualization import LocalVisBackend
from torchvision.transforms.v2.functional import to_pil_image

from odc.checkpoints import load_plain
from odc.cli import main
from odc.comparison.results import read_results
from odc.config import parse_config
from odc.data.datasets import Digits
from odc.data.label_file import LabelFile
from odc.data.table import read_table
from odc.engine import precision
from odc.errors import InputError
from odc.models import MoCo
from odc.recipes import Pipeline, Recipe
from odc.recipes.pipeline import summary
from odc.registry import VISBACKENDS

ROOT = Path(__file__).resolve().parent.parent
CONFIG = str(ROOT / "configs/pipelines/spice_digits.py")
SHORT = [
    "moco.train_cfg.max_epochs=2",
    "self.train_cfg.max_epochs=1",
    "self.model.head.repeats=1",
    "reliable.threshold=0.3",
    "reliable.allow_empty=True",
    "semi.train_cfg.max_epochs=1",
    "semi.model.head.steps=3",
]


def spice(folder: Path, *options: str) -> int:
    return main(["spice", CONFIG, "--work-dir", str(folder), "--cfg-options", *SHORT, *options])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spice") / "run"
    assert spice(folder) == 0
    return folder


@pytest.mark.parametrize(
    ("batch", "queue", "images", "expected"),
    [
        (128, 4096, 5000, (128, 4096)),
        (128, 4096, 4096, (128, 2048)),
        (128, 4096, 1000, (128, 384)),
        (128, 4096, 240, (64, 64)),
        (128, 4096, 100, (32, 32)),
        (48, 96, 60, (16, 16)),
    ],
)
def test_a_queue_fits_the_images(batch: int, queue: int, images: int, expected: tuple[int, int]) -> None:
    model, told = MoCo.fitted(dict(type="MoCo", head=dict(batch_size=batch, queue_size=queue)), images)
    assert (model["head"]["batch_size"], model["head"]["queue_size"]) == expected
    assert (told is None) == (expected == (batch, queue))
    if told is not None:
        assert f"{queue:,} keys is too large for {images:,} images: it gets {expected[1]:,}" in told
        assert ("batches of" in told) == (expected[0] < batch)


def test_every_stage_leaves_its_result(done: Path) -> None:
    for file in ("moco/backbone.pth", "embeddings/features.npz", "reliable/labels.npz", "reliable/beta.png"):
        assert (done / file).is_file(), file
    rows = read_table(done / "semi/clusters.csv", "path", "cluster")
    assert len(rows) == 1797
    lines = (done / "summary.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines if line.startswith("|")] == [
        "stage", "-" * len(lines[1].split("|")[1].strip()), "moco", "embeddings", "self", "reliable", "semi", "all"
    ]  # fmt: skip
    assert f"Trained in float32, threads: {torch.get_num_threads()}." in lines
    found = json.loads((done / "reliable/done.json").read_text())
    empty = json.loads((done / "semi/done.json").read_text())["without_images"]
    told = lines[len(lines) - lines[::-1].index("") :]
    assert "have a reliable label" in told[0]
    assert set(empty) >= {c for c in range(10) if not found["per_cluster"][c]}, "nothing teaches these clusters"
    assert [line for line in told if "semi: " in line] == (
        [f"semi: {len(empty)} clusters have no image: {', '.join(map(str, empty))}"] if empty else []
    )
    assert "their number says nothing about their quality" in told[0]
    labels = LabelFile.load(done / "reliable/labels.npz")
    found = json.loads((done / "reliable/done.json").read_text())
    assert found["count"] == int((labels.target >= 0).sum()) == sum(found["per_cluster"])
    assert 0 < found["count"] < 1797


def test_what_is_there_is_not_done_again(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in done.rglob("*") if file.is_file() and file.name != "summary.md"}
    assert spice(done) == 0
    out = capsys.readouterr().out
    assert out.count("there already, from the same config and data") == 5
    assert "begins" not in out
    after = {file: file.stat().st_mtime_ns for file in done.rglob("*") if file.is_file() and file.name != "summary.md"}
    assert before == after


def test_what_is_missing_of_a_stage_is_made_again(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(done, tmp_path / "run")
    lost = [
        "moco/backbone.pth",
        "embeddings/features.npz",
        "self/metrics.json",
        "reliable/beta.png",
        "semi/clusters.csv",
    ]
    for file in lost:
        (folder / file).unlink()
    assert spice(folder) == 0
    out = capsys.readouterr().out
    assert out.count("is missing or damaged: it is made again") == 5
    assert "epoch 1/" not in out, "nothing is trained again"
    for file in lost:
        assert (folder / file).is_file()
    for file in (
        "self/metrics.json",
        "self/clusters.csv",
        "semi/metrics.json",
        "semi/clusters.csv",
        "semi/clusters.png",
    ):
        assert (folder / file).read_bytes() == (done / file).read_bytes(), file
    for stage in ("moco", "self", "reliable", "semi"):
        found, before = (json.loads((f / stage / "done.json").read_text()) for f in (folder, done))
        assert {**found, "seconds": 0} == {**before, "seconds": 0}


def test_another_config_does_not_overwrite_it(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert spice(done, "self.model.head.num_heads=3") == 2
    err = capsys.readouterr().err
    assert f"{done / 'self'} holds a stage of another config" in err
    assert len(err.strip().splitlines()) == 1


def test_a_stage_of_other_threads_or_another_precision_is_not_taken_over(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    for name in ("moco", "self", "semi"):
        stage = json.loads((done / name / "done.json").read_text())
        assert (stage["precision"], stage["threads"]) == ("float32", threads)
    try:
        torch.set_num_threads(threads + 1)
        assert spice(done) == 2
    finally:
        torch.set_num_threads(threads)
    told = f"(it ran in float32 on {threads} threads, now it would in float32 on {threads + 1} threads; OMP_NUM_THREADS"
    assert told in capsys.readouterr().err
    monkeypatch.setattr(precision, "_cpu_has_bfloat16", lambda: True)
    assert spice(done, "precision=auto") == 2
    assert f"now it would in bfloat16 on {threads} threads" in capsys.readouterr().err
    monkeypatch.setenv("ODC_BFLOAT16", "0")
    assert spice(done, "precision=auto") == 0, "what counts is what it ran in"


def test_an_interrupted_stage_goes_on(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    (folder / "moco").mkdir(parents=True)
    for name in ("begun.json", "epoch_1.pth"):
        (folder / "moco" / name).write_bytes((done / "moco" / name).read_bytes())
    (folder / "moco/last_checkpoint").write_text("epoch_1.pth")
    assert spice(folder) == 0
    assert "epoch 1/2" not in capsys.readouterr().out, "the first epoch of MoCo is there already"
    for file in ("moco/metrics.json", "self/metrics.json", "semi/metrics.json"):
        if (done / file).exists():
            assert json.loads((folder / file).read_text()) == json.loads((done / file).read_text()), file
    ours, theirs = (LabelFile.load(f / "reliable/labels.npz") for f in (folder, done))
    assert np.array_equal(ours.target, theirs.target)


def test_a_given_backbone_takes_the_place_of_moco(done: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(CONFIG).with_backbone(done / "moco/backbone.pth")
    assert [stage.name for stage in recipe.stages] == ["self", "reliable", "semi"], "there is no model to extract with"
    options = {key: value for key, value in options_of(SHORT).items() if not key.startswith("moco.")}
    found = Pipeline(recipe.configured(options).until("self"), tmp_path).run()
    assert list(found) == ["self"]
    whole = json.loads((done / "self/done.json").read_text())
    assert {k: v for k, v in found["self"].items() if k not in ("key", "seconds")} == {
        k: v for k, v in whole.items() if k not in ("key", "seconds")
    }


def test_stages_of_different_images_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert spice(tmp_path, "self.data.dataset.size=8") == 2
    assert "the stages must see the same images" in capsys.readouterr().err
    config = tmp_path / "config.py"
    config.write_text("recipe = dict(moco='a.py')")
    assert main(["run", str(config)]) == 2
    assert "a recipe must be a list of stages" in capsys.readouterr().err


def test_a_cluster_without_a_reliable_image_stops_before_semi(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("moco", "embeddings", "self"):
        shutil.copytree(done / name, tmp_path / name)
    found = json.loads((done / "reliable/done.json").read_text())["per_cluster"]
    assert found.count(0) >= 1, "so short a training fills no cluster of its own"
    assert spice(tmp_path, "reliable.allow_empty=False") == 2
    err = capsys.readouterr().err
    assert f"{found.count(0)} of 10 clusters have no reliable image ({found.index(0)}, " in err
    assert "lower the threshold of 0.3" in err
    assert not (tmp_path / "semi").exists()
    pipeline = ["spice", CONFIG, "--work-dir", str(tmp_path), "--cfg-options", *SHORT]
    assert main([*pipeline, "reliable.allow_emtpy=True"]) == 2
    assert "no option 'allow_emtpy'; did you mean 'allow_empty'?" in capsys.readouterr().err
    assert main([*pipeline, "self.model.head.num_clusters=1798", "semi.model.head.num_clusters=1798"]) == 2
    assert "1798 clusters cannot share 1797 images" in capsys.readouterr().err
    Pipeline(Recipe.load(CONFIG).configured(options_of(SHORT)).until("reliable"), tmp_path).run()
    assert (tmp_path / "reliable/labels.npz").is_file(), "the remedy works where the stage stopped"


def options_of(words: list[str]) -> dict[str, Any]:
    return {key: ast.literal_eval(value) for key, value in (word.split("=") for word in words)}


def test_nothing_reliable_proposes_a_threshold(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(next((done / "self").glob("*.py")))
    arguments = ["reliable", config, str(done / "self/epoch_1.pth"), "--out", str(tmp_path)]
    assert main([*arguments, "--threshold", "1"]) == 2
    err = capsys.readouterr().err
    assert "no sample is reliable" in err
    assert "ten bins" in err
    assert (tmp_path / "beta.png").is_file(), "the picture shows what there is"
    assert main([*arguments, "--labels", "x.csv"]) == 2
    assert "--labels and --align together" in capsys.readouterr().err


def test_labels_by_hand_name_the_clusters_and_win(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = Digits(size=16)
    assert dataset.targets is not None
    clusters = [int(row["cluster"]) for row in read_table(done / "self/clusters.csv", "cluster")]
    mine, others = tmp_path / "mine.csv", tmp_path / "others.csv"
    for file, ids in ((mine, range(60)), (others, range(100, 160))):
        rows = [f"{dataset.paths[i]},digit {dataset.targets[i]}" for i in ids]
        file.write_text("\n".join(["path,label", *rows]) + "\n")
    table, found = str(done / "self/clusters.csv"), str(tmp_path / "map.json")
    assert main(["align", table, str(mine), "--out", found, "--test", str(others), "--min-margin", "-1"]) == 0
    out = capsys.readouterr().out
    assert "of 60 other labelled images are right" in out
    assert f"{max(clusters) + 1} clusters, 10 classes: " in out
    assert main(["align", table, str(mine), "--out", found, "--test", str(mine)]) == 2
    assert "60 of 60 images took part in the alignment" in capsys.readouterr().err

    assert main(["align", table, str(mine), "--out", found, "--min-margin", "-1"]) == 0
    names = {m["cluster"]: m["label"] for m in json.loads(Path(found).read_text())["clusters"]}
    config = str(next((done / "self").glob("*.py")))
    arguments = ["reliable", config, str(done / "self/epoch_1.pth"), "--out", str(tmp_path / "joined"), "--allow-empty"]
    assert main([*arguments, "--threshold", "0.3", "--labels", str(mine), "--align", found]) == 0
    target = LabelFile.load(tmp_path / "joined/labels.npz").target
    for i in range(60):
        label = f"digit {dataset.targets[i]}"
        if label in names.values():
            assert names[int(target[i])] == label
            if names[clusters[i]] == label:
                assert target[i] == clusters[i], "an image that is right already stays where it is"
        else:
            assert target[i] == -1


@pytest.mark.slow
def test_a_long_tail_with_duplicates_and_more_clusters_than_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = Digits(size=16)
    assert dataset.targets is not None
    for digit in range(10):
        folder = tmp_path / "images" / str(digit)
        folder.mkdir(parents=True)
        members = np.flatnonzero(dataset.targets == digit)[: int(120 * 0.7**digit) + 1]
        for number, i in enumerate(members.tolist()):
            image = to_pil_image(dataset.image(i))
            image.save(folder / f"{number:03d}.png")
            if number % 5 == 0:
                image.save(folder / f"{number:03d}-again.png")
    source = f"dict(_delete_=True, type='ImageFolder', root='{tmp_path / 'images'}', grey=True)"
    stages = {}
    for name, base in (
        ("moco", "moco/moco_convnet_1xb64-100e_digits.py"),
        ("self", "spice/spice-self_convnet_1xb128-30e_digits.py"),
        ("semi", "spice/spice-semi_convnet_1xb256-20e_digits.py"),
    ):
        stages[name] = f"{name}.py"
        (tmp_path / f"{name}.py").write_text(f"_base_ = '{ROOT}/configs/{base}'\ndata = dict(dataset={source})\n")
    recipe = [
        dict(name="moco", config=stages["moco"]),
        dict(name="self", config=stages["self"], backbone="moco"),
        dict(name="reliable", type="Reliable", checkpoint="self", neighbours=10, threshold=0.2),
        dict(name="semi", config=stages["semi"], backbone="moco", labels="reliable"),
    ]
    (tmp_path / "all.py").write_text(f"recipe = {recipe}\n")
    arguments = ["spice", str(tmp_path / "all.py"), "--work-dir", str(tmp_path / "run"), "--clusters", "15"]
    options = [o for o in SHORT if "threshold" not in o] + ["moco.model.head.queue_size=192"]
    assert main([*arguments, "--cfg-options", *options]) == 0
    out = capsys.readouterr().out
    count = len(list((tmp_path / "images").rglob("*.png")))
    assert f"local consistency of {count} images: β from 0 to 1 in ten bins" in out
    found = json.loads((tmp_path / "run/reliable/done.json").read_text())
    assert len(found["per_cluster"]) == 15
    assert sum(found["per_cluster"]) == found["count"] > 0
    if 0 in found["per_cluster"]:
        assert "of 15 clusters have no reliable sample" in out


@pytest.mark.slow
def test_each_training_has_a_visualizer_of_its_own(tmp_path: Path) -> None:
    """W&B and the like log to one run at a time, so each is closed before the next opens, and reading needs none."""
    events: list[str] = []

    @VISBACKENDS.register_module()
    class Witness(LocalVisBackend):
        def _init_env(self) -> None:
            super()._init_env()
            events.append(f"open {Path(self._save_dir).parent.parent.name}")

        def close(self) -> None:
            events.append("close")

    options = options_of(SHORT)
    options["visualizer"] = {"type": "Visualizer", "vis_backends": [{"type": "Witness"}]}
    try:
        Pipeline(Recipe.load(CONFIG).configured(options), tmp_path).run()
    finally:
        VISBACKENDS.module_dict.pop("Witness")
    assert events == [word for stage in ("moco", "self", "semi") for word in (f"open {stage}", "close")]


def test_the_summary_has_no_columns_that_nothing_fills() -> None:
    ran = {"precision": "float32", "threads": 1}
    lines = summary({"self": {"seconds": 2.0, **ran}, "semi": {"seconds": 3.0, **ran}}).splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == ["stage", "seconds"]
    assert [cell.strip() for cell in lines[-3].split("|")[1:-1]] == ["all", "5.0"]
    known = summary({"moco": {"seconds": 2.0, "knn": 0.5, **ran}}).splitlines()
    assert [cell.strip() for cell in known[0].split("|")[1:-1]] == ["stage", "kNN", "seconds"]


# -- recipes of one's own, and what they refuse ----------------------------------------------------------------------

ODC = f"{ROOT}/configs/odc/odc_convnet_1xb64-30e_digits.py"


def write(path: Path, *stages: dict[str, Any]) -> str:
    path.write_text(f"recipe = {list(stages)}\n")
    return str(path)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([dict(name="a")], "stage 'a' is a training: it needs a config, may have options, and has []"),
        ([dict(config=ODC)], "a stage needs a name of letters and digits, other than a setting's, and has None"),
        ([dict(name="model", config=ODC)], "other than a setting's, and has 'model'"),
        ([dict(name="a", config=ODC), dict(name="a", config=ODC)], "two stages are called 'a'"),
        ([dict(name="a", config=ODC, backbone="b")], "takes its backbone of 'b', which is not an earlier stage"),
        ([dict(name="a", config=ODC), dict(name="b", config=ODC, labels="a")], "which leaves checkpoint, backbone"),
        ([dict(name="a", type="Reliabel", checkpoint="b")], "unknown stage 'Reliabel'; did you mean 'Reliable'?"),
        ([dict(name="a", type="Extract")], "stage 'a' needs checkpoint='...', the name of an earlier stage"),
        ([dict(name="a", config="nowhere.py")], "does not exist"),
        ([], "a recipe must be a list of stages"),
    ],
)
def test_a_recipe_that_cannot_be_run_says_why(tmp_path: Path, stages: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        Recipe.load(write(tmp_path / "mine.py", *stages))


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("reliable.thresold=3", "no option 'thresold'; did you mean 'threshold'?"),
        ("moko.train_cfg.max_epochs=3", "no stage and no setting is called 'moko'; did you mean 'moco'?"),
        ("modle.head.num_clusters=3", "no stage and no setting is called 'modle'; did you mean 'model'?"),
        ("moco.traincfg.max_epochs=3", "unknown key 'traincfg'; did you mean 'train_cfg'?"),
        ("semi.train_cfg.max_epochz=3", "no option 'max_epochz'; did you mean 'max_epochs'?"),
        ("self.model.head.num_haeds=3", "no option 'num_haeds'; did you mean 'num_heads'?"),
        ("embeddings.size=3", "stage 'embeddings' has no option 'size'"),
        ("reliable.out=x", "no option 'out'"),
    ],
)
def test_an_option_that_nothing_reads_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, said: str
) -> None:
    assert main(["run", CONFIG, "--work-dir", str(tmp_path / "run"), "--cfg-options", option]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_an_option_with_an_address_wins_over_one_for_all_stages() -> None:
    options = {"semi.train_cfg.max_epochs": 3, "train_cfg.max_epochs": 5}
    recipe = Recipe.load(CONFIG).configured(options, seed=7, clusters=12)
    assert [stage.config.train_cfg.max_epochs for stage in recipe.trained] == [5, 5, 3]
    assert {stage.config.randomness.seed for stage in recipe.trained} == {7}
    assert [stage.config.model.head.get("num_clusters") for stage in recipe.trained] == [None, 12, 12]


def test_each_config_is_parsed_once() -> None:
    parsed: list[Path] = []

    def read(path: Path) -> Any:
        parsed.append(Path(path).resolve())
        return parse_config(path)

    Recipe.load(CONFIG, read=read).configured({"train_cfg.max_epochs": 5})
    assert len(parsed) == len(set(parsed)) == 4


def test_a_recipe_of_the_package_is_found_by_name_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert [stage.name for stage in Recipe.load("spice_digits").stages] == [
        "moco", "embeddings", "self", "reliable", "semi"
    ]  # fmt: skip


def test_until_keeps_what_a_stage_needs_and_nothing_else() -> None:
    recipe = Recipe.load(CONFIG)
    assert recipe.pretraining == ("moco",)
    assert [stage.name for stage in recipe.until("self").stages] == ["moco", "self"]
    assert [stage.name for stage in recipe.until("reliable").stages] == ["moco", "embeddings", "self", "reliable"]
    with pytest.raises(InputError, match="no stage 'slef'; did you mean 'self'"):
        recipe.until("slef")


def test_a_key_follows_what_a_stage_needs() -> None:
    recipe, ran = Recipe.load(CONFIG), dict.fromkeys(("moco", "embeddings", "self", "reliable", "semi"), "so")

    def changed(**options: Any) -> set[str]:
        new = recipe.configured({key.replace("__", "."): value for key, value in options.items()}).keys(ran)
        return {name for name, key in recipe.configured().keys(ran).items() if new[name] != key}

    assert changed() == set()
    assert changed(reliable__threshold=0.5) == {"reliable", "semi"}
    assert changed(self__train_cfg__max_epochs=2) == {"self", "reliable", "semi"}
    assert changed(moco__train_cfg__max_epochs=2) == set(ran)


@pytest.mark.slow
def test_a_method_of_two_stages_is_one_file_outside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is the one that the documentation shows, with a head of one's own in a module beside it."""
    page = (ROOT / "docs/recipes.md").read_text()
    text = page[page.index("# turned.py") : page.index("```\n\n```\nodc run")].replace(": 3", ": 1")
    text += "custom_imports = dict(imports=['turned_head'])\nrecipe[1]['options']['model.head.type'] = 'TurnedHead'\n"
    (tmp_path / "turned.py").write_text(text)
    (tmp_path / "turned_head.py").write_text(
        "from odc.heads import ODCHead\nfrom odc.registry import HEADS\n\n\n"
        "@HEADS.register_module(force=True)\nclass TurnedHead(ODCHead):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["run", "turned.py", "--clusters", "10", "--work-dir", "run"]) == 0, capsys.readouterr().err
    assert "stage 2/2, clusters: begins" in capsys.readouterr().out
    assert len(read_table("run/clusters/clusters.csv", "path", "cluster")) == 1797
    options = ["--seeds", "0", "--jobs", "1", "--out", "out"]  # one job: as many threads as here
    assert main(["compare", "--methods", "turned.py", "kmeans-pixels", *options]) == 0
    records = {r.method: r for r in read_results(Path("out")).values()}
    assert set(records) == {"rotations", "turned", "kmeans-pixels"}
    assert records["rotations"].before == ("turned",)
    assert records["turned"].values["epochs"] == 1
    assert records["turned"].number("pretrain_seconds") == records["rotations"].number("seconds")
    assert "stage rotations, 1 epochs of" in Path("out/table.md").read_text()
    for folder in ("run", "out/turned-0"):
        values = json.loads(Path(folder, "clusters/metrics.json").read_text())
        assert values["acc"] == records["turned"].number("acc"), "the same, run either way"
    monkeypatch.delitem(sys.modules, "turned_head")


@pytest.mark.slow
def test_a_stage_starts_from_a_checkpoint_and_goes_on_from_its_own(tmp_path: Path) -> None:
    """SCAN: the head that self-labelling trains is the one that the stage before has chosen."""
    short = [f"{stage}.train_cfg.max_epochs=1" for stage in ("moco", "scan", "selflabel")]
    short += ["moco.model.head.queue_size=64", "selflabel.model.head.threshold=0.5"]
    arguments = ["run", "scan_digits", "--work-dir", str(tmp_path), "--cfg-options", *short]
    assert main(arguments) == 0
    first, second = (load_plain(tmp_path / stage / "epoch_1.pth")["state_dict"] for stage in ("scan", "selflabel"))
    best = int(first["head.classifiers.best"])
    assert int(second["head.classifiers.best"]) == best
    begun = float(second["head.classifiers.first_loss"])
    assert begun == pytest.approx(float(first["head.classifiers.losses"][best]), rel=1e-4)
    (tmp_path / "selflabel" / "done.json").unlink()
    assert main(arguments) == 0, "it goes on from its own checkpoint"
    again = load_plain(tmp_path / "selflabel" / "epoch_1.pth")["state_dict"]
    assert all(torch.equal(again[name], second[name]) for name in second)
