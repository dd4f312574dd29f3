"""The comparison: which cells it plans, in which order, what it refuses, what it keeps, and what its table says."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import small_records
import torch
from mmengine import Config
from PIL import Image

from odc.cli import main
from odc.comparison.cell import _Watch, run
from odc.comparison.estimators import ESTIMATORS, Estimate
from odc.comparison.executor import Processes, Running
from odc.comparison.plan import Cell, Request, plan
from odc.comparison.progress import Progress
from odc.comparison.results import Outcome, Record, read_curves, read_results, write_curves
from odc.comparison.run import default_threads, next_cell
from odc.comparison.table import document, table
from odc.engine import precision
from odc.errors import InputError
from odc.options import Written
from odc.recipes import Reliable

ROOT = Path(__file__).parent.parent
ODC = f"{ROOT}/configs/odc/odc_convnet_1xb64-30e_digits.py"


def cells_of(out: Path, *methods: str, **changed: Any) -> list[Cell]:
    return plan(Request(**{"methods": methods, "out": out, "seeds": [0, 1], "jobs": 2, **changed}))


def configs(cell: Cell) -> dict[str, Any]:
    return {stage.name: stage.config for stage in cell.recipe.stages if stage.config is not None}


def start(cell: Cell) -> Path | None:
    """Return the backbone that a cell's last stage starts from."""
    last = cell.recipe.stages[-1]
    given = last.needs.get("backbone")
    if given is not None:
        return cell.places[given] / "backbone.pth"
    return None if last.pretrained is None else Path(last.pretrained)


def titles(cells: list[Cell]) -> list[tuple[str, int]]:
    return [(cell.method, cell.seed) for cell in cells]


# -- the plan --------------------------------------------------------------------------------------------------------


def test_one_pretraining_a_seed_comes_first_and_all_start_from_it(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, "kmeans-pixels", "kmeans-moco", "odc-moco", "dc")
    assert titles(cells)[:4] == [("moco", 0), ("moco", 1), ("kmeans-pixels", 0), ("kmeans-pixels", 1)]
    starts = {(cell.method, cell.seed): start(cell) for cell in cells}
    assert starts["odc-moco", 1] == starts["kmeans-moco", 1] == tmp_path / "moco-1" / "backbone.pth"
    assert starts["odc-moco", 0] != starts["odc-moco", 1]
    assert starts["dc", 0] is starts["kmeans-pixels", 0] is starts["moco", 0] is None


def test_a_cell_waits_for_the_pretraining_of_its_own_seed(tmp_path: Path) -> None:
    waiting = cells_of(tmp_path, "odc-moco", "dc")[2:]  # both trainings of MoCo run
    assert waiting[0].method == "odc-moco"
    first = next_cell(waiting, {})
    assert first is not None
    assert first.method == "dc"
    second = next_cell(waiting, {("moco", 1): {}})
    assert second is not None
    assert titles([second]) == [("odc-moco", 1)]
    assert next_cell([cell for cell in waiting if cell.method == "odc-moco"], {}) is None


def test_spice_waits_for_the_row_whose_stage_it_takes_over(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, "spice", "spice-self", seeds=[4])
    after = {cell.method: cell.after for cell in cells}
    assert after == {"moco": (), "spice-self": (("moco", 4),), "spice": (("moco", 4), ("spice-self", 4))}
    assert len({cell.folder for cell in cells}) == 2, "both rows share a folder"
    assert len({cell.home for cell in cells}) == 3, "but not what they leave there"
    alone = cells_of(tmp_path, "spice", seeds=[4])[-1]
    assert alone.after == (("moco", 4),)
    assert alone.key == cells[1].key, "the same result, whatever else is compared"


def test_what_most_others_wait_for_begins_first(tmp_path: Path) -> None:
    waiting = cells_of(tmp_path, "kmeans-pixels", "kmeans-moco", "odc", "spice-self", "spice", seeds=[0])
    begun, ended = [], dict[tuple[str, int], Any]()
    while (cell := next_cell(waiting, ended)) is not None:
        begun.append(cell.method)
        waiting.remove(cell)
        ended[cell.method, cell.seed] = {}
    assert begun == ["moco", "spice-self", "kmeans-pixels", "kmeans-moco", "odc", "spice"]


def test_a_cell_that_draws_its_map_leaves_room_for_another_but_not_for_any_number() -> None:
    trains, draws = (cast(Running, SimpleNamespace(told=told)) for told in (False, True))
    one, two = Processes(1), Processes(2)
    assert one.room([])
    assert not one.room([trains])
    assert one.room([draws])
    assert not one.room([draws, draws])
    assert two.room([trains, draws, draws])
    assert not two.room([trains, trains, draws])


def test_without_such_methods_nothing_is_pretrained(tmp_path: Path) -> None:
    assert titles(cells_of(tmp_path, "odc", seeds=[3])) == [("odc", 3)]


def test_a_given_backbone_takes_the_place_of_the_pretraining(tmp_path: Path) -> None:
    file = tmp_path / "backbone.pth"
    file.write_bytes(b"one")
    cells = cells_of(tmp_path, "odc-moco", pretrained=str(file))
    assert titles(cells) == [("odc-moco", 0), ("odc-moco", 1)]
    assert {start(cell) for cell in cells} == {file}
    file.write_bytes(b"another")
    assert cells_of(tmp_path, "odc-moco", pretrained=str(file))[0].key != cells[0].key


def test_any_method_can_start_from_moco(tmp_path: Path) -> None:
    config = tmp_path / "mine.py"
    config.write_text(f"_base_ = '{ODC}'\n")
    cells = cells_of(tmp_path, "deepercluster-moco", f"{config}-moco", str(config), seeds=[0])
    assert titles(cells) == [("moco", 0), ("deepercluster-moco", 0), ("mine-moco", 0), ("mine", 0)]
    assert [start(cell) is None for cell in cells] == [True, False, False, True]


def test_a_key_changes_with_what_decides_the_result_and_with_nothing_else(tmp_path: Path) -> None:
    key = cells_of(tmp_path, "odc", seeds=[0])[0].key
    assert cells_of(tmp_path / "elsewhere", "dc", "odc", seeds=[0, 1])[2].key == key
    assert cells_of(tmp_path, "odc", seeds=[1])[0].key != key
    assert cells_of(tmp_path, "odc", seeds=[0], epochs=2)[0].key != key
    assert cells_of(tmp_path, "odc", seeds=[0], clusters=12)[0].key != key
    assert cells_of(tmp_path, "odc", seeds=[0], minutes=1.0)[0].key != key


def test_an_estimator_is_the_same_whatever_stands_beside_it(tmp_path: Path) -> None:
    keys = [
        next(cell.key for cell in cells_of(tmp_path, *methods, seeds=[0]) if cell.method == "kmeans-moco")
        for methods in (["kmeans-moco"], ["odc", "kmeans-moco"], ["kmeans-moco", "spice", "dc-moco"])
    ]
    assert len(set(keys)) == 1
    assert cells_of(tmp_path, "kmeans-moco", seeds=[0], clusters=9)[-1].key != keys[0]


def test_the_number_of_clusters_reaches_every_head(tmp_path: Path) -> None:
    for cell in cells_of(tmp_path, "dc", "kmeans-moco", "spice", clusters=7, seeds=[0]):
        found = {name: config.model.head.get("num_clusters") for name, config in configs(cell).items()}
        assert found.pop("moco", None) is None
        assert set(found.values()) == (set() if cell.method == "moco" else {7})


def test_options_of_the_comparison_reach_every_stage_and_those_of_the_command_win(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, "odc", "kmeans-moco", "spice", dataset="digits-longtail", seeds=[0])
    expected = {"type": "LongTail", "ratio": 0.7, "dataset": {"type": "Digits", "size": 16}}
    assert all(config.data.dataset == expected for cell in cells for config in configs(cell).values())
    assert len(configs(cells[-1])) == 3
    changed = {"data.dataset": {"_delete_": True, "type": "Digits", "size": 12}}
    cells = cells_of(tmp_path, "odc", dataset="digits-longtail", seeds=[0], options=changed)
    assert cells[0].config.data.dataset == {"type": "Digits", "size": 12}


def test_a_name_wins_over_a_folder_of_the_same_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cells_of(tmp_path, "odc")[0].config.data.dataset.type == "Digits"
    assert cells_of(tmp_path, "odc", dataset="./digits")[0].config.data.dataset.root == "./digits"


def test_a_comparison_config_of_ones_own_names_configs_by_path_or_by_name(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"_base_ = '{ODC}'\n")
    (tmp_path / "recipe.py").write_text(
        "recipe = [dict(name='moco', config='moco_convnet_1xb64-100e_digits'),\n"
        "          dict(name='second', config='mine.py', backbone='moco')]\n"
    )
    (tmp_path / "compared.py").write_text(
        "comparison = dict(moco='moco_convnet_1xb64-100e_digits', methods=dict(\n"
        "    mine='mine.py', dc='deepcluster_convnet_1xb64-30e_digits.py', two='recipe.py'))\n"
    )
    cells = cells_of(tmp_path, "mine", "dc", "two", dataset=str(tmp_path / "compared.py"), seeds=[0])
    assert titles(cells) == [("moco", 0), ("mine", 0), ("dc", 0), ("two", 0)]
    sources = [Path(cell.config.filename) for cell in cells]
    assert sources[1] == sources[3] == tmp_path / "mine.py"
    assert sources[0] == ROOT / "configs/moco/moco_convnet_1xb64-100e_digits.py"
    assert sources[2] == ROOT / "configs/deepcluster/deepcluster_convnet_1xb64-30e_digits.py"


def test_two_configs_of_one_name_are_two_rows_of_one_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(f"_base_ = '{ODC}'\n")
    mine = str(tmp_path / "a/mine.py")
    with pytest.raises(InputError, match=r"a/mine.py' and '.*b/mine.py' would both be the row 'mine'"):
        cells_of(tmp_path, mine, str(tmp_path / "b/mine.py"))
    assert titles(cells_of(tmp_path, mine, mine, seeds=[0])) == [("mine", 0)]


def test_a_folder_is_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    cells = cells_of(tmp_path, "kmeans-pixels", "odc", dataset=str(tmp_path / "pictures"))
    assert {cell.config.data.dataset.root for cell in cells} == {str(tmp_path / "pictures")}


def test_a_budget_is_shared_by_the_trainings_of_spice(tmp_path: Path) -> None:
    by_method = {c.method: c for c in cells_of(tmp_path, "spice", "spice-self", "dc", seeds=[0], epochs=7)}

    def epochs(cell: Cell) -> dict[str, int]:
        return {name: config.train_cfg.max_epochs for name, config in configs(cell).items() if name != "moco"}

    assert epochs(by_method["dc"]) == {"dc": 7}
    assert epochs(by_method["spice-self"]) == {"self": 7}
    assert epochs(by_method["spice"]) == {"self": 4, "semi": 3}
    assert by_method["spice"].folder != by_method["spice-self"].folder, "Self is not the same one"
    assert by_method["spice"].after == (("moco", 0),)
    one = cells_of(tmp_path, "spice", seeds=[0], epochs=1)[-1]
    assert epochs(one) == {"self": 1, "semi": 1}
    timed = {c.method: c.minutes for c in cells_of(tmp_path, "spice", "spice-self", "dc", "kmeans-moco", minutes=3.0)}
    assert timed == {"moco": None, "spice": 1.5, "spice-self": 3.0, "dc": 3.0, "kmeans-moco": None}


def test_options_can_be_for_one_stage(tmp_path: Path) -> None:
    options = {"moco.model.head.queue_size": 128, "semi.model.head.steps": 5, "data.num_workers": 1}
    cells = cells_of(tmp_path, "dc", "kmeans-moco", "spice", seeds=[0], options=options)
    assert {config.data.num_workers for cell in cells for config in configs(cell).values()} == {1}
    assert {configs(cell)["moco"].model.head.queue_size for cell in cells if "moco" in configs(cell)} == {128}
    assert configs(cells[-1])["semi"].model.head.steps == 5
    assert "queue_size" not in configs(cells[1])["dc"].model.head


def test_options_as_they_are_written_reach_their_stage(tmp_path: Path) -> None:
    """Names stay as they are and numbers become numbers, in the process of a cell too."""
    written = {"data.dataset.root": "2023, my photos", "self.model.head.num_clusters": "7", "reliable.threshold": ".5"}
    folder = tmp_path / "2023, my photos"
    folder.mkdir()
    options = {key: Written(value) for key, value in written.items()}
    cells = cells_of(tmp_path, "spice", seeds=[0], dataset=str(folder), options=options)
    cell = pickle.loads(pickle.dumps(cells[-1]))
    assert {config.data.dataset.root for config in configs(cell).values()} == {"2023, my photos"}
    assert configs(cell)["self"].model.head.num_clusters == 7
    stage = cell.recipe["reliable"]
    assert isinstance(stage, Reliable)
    assert stage.threshold == 0.5


def test_every_row_is_measured_the_same_way_and_once(tmp_path: Path) -> None:
    config = tmp_path / "mine.py"
    config.write_text(f"_base_ = '{ODC}'\nval_evaluator = [dict(type='KNNMetric', k=3), dict(type='KMeansMetric')]\n")
    cfg = cells_of(tmp_path, str(config), seeds=[0])[0].config
    assert cfg.val_evaluator == [{"type": "ClusterMetrics"}, {"type": "KNNMetric"}, {"type": "KMeansMetric"}]
    assert cfg.train_cfg.val_interval == cfg.train_cfg.max_epochs


@pytest.mark.parametrize(("where", "split"), [("test", "test"), ("train+test", "train+test"), ("train", None)])
def test_what_is_evaluated_can_be_another_split(tmp_path: Path, where: str, split: str | None) -> None:
    cells = cells_of(tmp_path, "kmeans-pixels", "dc", "spice", dataset="mnist", evaluate_on=where, seeds=[0])
    found = [config for cell in cells for config in configs(cell).values()]
    assert len(found) == 6
    for cfg in found:
        assert cfg.data.dataset.split == "train"
        other = cfg.data.get("eval_dataset")
        assert other == (None if split is None else {**cfg.data.dataset, "split": split})


def test_what_is_evaluated_can_be_a_folder(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, "odc", "kmeans-pixels", evaluate_on=str(tmp_path), seeds=[0])
    assert [c.config.data.eval_dataset for c in cells] == [{"type": "ImageFolder", "root": str(tmp_path)}] * 2


@pytest.mark.parametrize(
    ("methods", "changed", "said"),
    [
        (["odc-moko"], {}, r"unknown method 'odc-moko'.*'odc-moco'"),
        (["moco"], {}, "unknown method 'moco'"),
        (["odc"], {"dataset": "digit"}, r"unknown data set 'digit'.*'digits'"),
        (
            ["odc"],
            {"pretrained": "x.pth"},
            "--pretrained is for methods that start from a pre-training: there",
        ),
        (["odc-moco"], {"pretrained": "x.pth"}, "no backbone 'x.pth' to start from"),
        (["odc"], {"seeds": [1, 1]}, "--seeds 1 1 has a seed twice: give each once"),
        (["odc"], {"seeds": [3, -1]}, "--seeds must be a whole number from 0 to 4294967295, not -1"),
        (["odc"], {"jobs": 0}, "--jobs must be at least 1, not 0"),
        (["odc"], {"clusters": 0}, "--clusters must be at least 1, not 0"),
        (["odc"], {"epochs": 0}, "--epochs must be at least 1, not 0"),
        (["odc"], {"options": {"moco.train_cfg.max_epochs": 50}}, "no stage and no setting is called 'moco'"),
        (["odc"], {"options": {"moco.traincfg.max_epochz": 50}}, "no stage and no setting is called 'moco'"),
        (
            ["odc-moco"],
            {"options": {"moco.traincfg.max_epochz": 50}},
            "unknown key 'traincfg'; did you mean 'train_cfg'",
        ),
        (["odc"], {"options": {"odc.model.head.momentun": 0.5}}, "no option 'momentun'; did you mean 'momentum'"),
        (["spice"], {"options": {"reliable.thresold": 3}}, "no option 'thresold'; did you mean 'threshold'"),
        (["odc"], {"options": {"model.head.min_clusters": 3}}, "no option 'min_clusters'; did you mean 'min_cluster'"),
        (["spice"], {"options": {"semi.model.head.step": 3}}, "no option 'step'; did you mean 'steps'"),
        (
            ["odc"],
            {"pretrain_epochs": 3},
            "--pretrain-epochs is for methods that start from a pre-training: there",
        ),
        (["odc-moco"], {"pretrain_epochs": 3, "pretrained": "x.pth"}, "--pretrained x.pth and --pretrain-epochs 3"),
        (["gmm-pixels"], {"epochs": 3}, "--epochs 3 is for methods that are trained: there is none"),
        (["gmm-pixels"], {"minutes": 0.5}, "--minutes 0.5 is for methods that are trained: there is none"),
        (["odc"], {"epochs": 2, "minutes": 1.0}, "--epochs 2 and --minutes 1"),
        (["odc"], {"minutes": 0.0}, "--minutes must be more than 0, not 0"),
        (["odc"], {"evaluate_on": "test"}, "--evaluate-on test: there is no such folder, and Digits has no splits"),
        (["sklearn.cluster.Kmeans-pixels"], {}, r"sklearn.cluster has no 'Kmeans'.*'KMeans'"),
        (["sklearn.decomposition.PCA-pixels"], {}, "has no fit_predict"),
        (["nowhere.Thing-pixels"], {}, "cannot import 'nowhere'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, methods: list[str], changed: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        cells_of(tmp_path, *methods, **changed)


def test_a_config_is_parsed_once_however_many_rows_and_seeds_it_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []
    whole = Config.fromfile

    def fromfile(path: str, **options: Any) -> Any:
        parsed.append(Path(path).name)
        return whole(path, **options)

    monkeypatch.setattr(Config, "fromfile", fromfile)
    cells = cells_of(tmp_path, "odc", "dc-moco", "spice", "spice-self", "kmeans-moco", seeds=[0, 1, 2])
    assert len(cells) == 18
    assert len(parsed) == len(set(parsed)) == 7, "comparison, recipe, and five trainings"


def test_another_backbone_or_number_of_epochs_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "mine.py"
    config.write_text(f"_base_ = '{ODC}'\ntrain_cfg = dict(max_epochs=7)\n")
    with pytest.raises(InputError, match=r"train_cfg.max_epochs is 30 for odc but 7 for mine"):
        cells_of(tmp_path, "odc", str(config))
    assert len(cells_of(tmp_path, "odc", str(config), minutes=1.0)) == 4, "with a budget of time epochs may differ"
    config.write_text(f"_base_ = '{ODC}'\nmodel = dict(backbone=dict(widths=[8, 16]))\n")
    with pytest.raises(InputError, match=r"model.backbone is .* for moco but .*8, 16.* for mine"):
        cells_of(tmp_path, "odc-moco", str(config))
    config.write_text(f"_base_ = '{ODC}'\ndata = dict(views=dict(train=[dict(type='ToFloat')]))\n")
    with pytest.raises(InputError, match=r"data.views.train is .* for odc but .* for mine"):
        cells_of(tmp_path, "odc", str(config))


def test_an_estimator_has_no_epochs_that_could_differ(tmp_path: Path) -> None:
    assert len(cells_of(tmp_path, "kmeans-pixels", "odc", "dc", epochs=3, seeds=[0])) == 3


# -- estimators ------------------------------------------------------------------------------------------------------


def test_an_estimator_gets_k_and_seed_where_it_has_them() -> None:
    x = np.repeat(np.eye(4, dtype=np.float32), 6, axis=0) + np.linspace(0, 0.01, 24, dtype=np.float32)[:, None]
    truth = np.repeat(np.arange(4), 6)
    for name in ("kmeans-pixels", "gmm-pixels", "agglomerative-pixels", "sklearn.cluster.Birch-pixels"):
        estimator = Estimate.parse(name)
        assert estimator is not None
        clusters = estimator.fit_predict(x, 4, seed=3)
        assert len(set(zip(clusters.tolist(), truth.tolist(), strict=True))) == len(set(clusters.tolist())) == 4, name
    assert Estimate.parse("odc-moco") is None
    assert Estimate.parse("path/my.config.py-moco") is None


def test_an_estimator_of_pairs_stays_within_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else 20)
    x = np.random.default_rng(0).random((200, 2), dtype=np.float32)
    every, means = Estimate.parse("agglomerative-pixels"), Estimate.parse("kmeans-pixels")
    assert every is not None
    assert means is not None
    with pytest.raises(InputError, match=r"all pairs of 200 images, 0\.0 GiB, more than half of the 0\.0 GiB"):
        every.fit_predict(x, 3, 0)
    assert len(every.fit_predict(x[:100], 3, 0)) == 100  # 39,600 of 81,920 bytes
    assert len(means.fit_predict(x, 3, 0)) == 200


@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_of_few_or_strange_images(name: str) -> None:
    estimator = Estimate.parse(f"{name}-pixels")
    assert estimator is not None
    x = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    for points in (x, x[:3], 1e6 * x):
        assert estimator.fit_predict(points, 2, 0).shape == (len(points),)
    with pytest.raises(InputError, match="7 clusters from 6 images: take between 1 and 6"):
        estimator.fit_predict(x, 7, 0)
    with pytest.raises(InputError, match=r"finds no 2 clusters in 6 images: |6 of 6 rows of x are") as error:
        estimator.fit_predict(np.full_like(x, np.nan), 2, 0)
    assert "\n" not in str(error.value)


def test_features_fit_into_half_precision(tmp_path: Path) -> None:
    for scale in (1e-3, 1.0, 1e9):
        Outcome.from_clusters(scale * torch.tensor([[0.0], [2.0], [-10.0]]), torch.tensor([0, 0, 1])).save(tmp_path)
        found = Outcome.load(tmp_path, 3)
        assert found is not None
        assert (found.features / found.features[1]).ravel().tolist() == pytest.approx([0, 1, -5], rel=2e-3)


def test_centre_and_border_of_clusters_by_hand() -> None:
    features = torch.tensor([[0.0], [2.0], [10.0], [13.0], [99.0]])  # means 1 and 11.5
    found = Outcome.from_clusters(features, torch.tensor([4, 4, 7, 7, -1]))
    assert found.confidence[:4].tolist() == [-1.0, -1.0, -1.5, -1.5]
    assert found.margin[:4].tolist() == [10.5, 8.5, 7.5, 10.5]


@pytest.mark.slow
def test_when_its_time_is_up_a_training_ends_with_the_epoch(tmp_path: Path) -> None:
    cell = cells_of(tmp_path, "dc", minutes=1e-4, seeds=[0])[0]
    shares: list[float] = []
    values, images = run(cell, lambda share, where: shares.append(share))
    assert values["epochs"] == 1.0
    assert values["images_seen"] == len(shares) * 64
    outcome = Outcome.load(cell.home, images)
    assert outcome is not None
    assert outcome.cluster.shape == (1797,)


def test_a_training_is_as_long_as_its_time_whatever_its_config_says(tmp_path: Path) -> None:
    """The clock counts epochs, 10 s each but the third of 20: 65 s are enough for 5, and one epoch more is too long."""
    clock = itertools.accumulate([0.0, 10.0, 10.0, 20.0, 10.0, 10.0, 10.0])
    loop = SimpleNamespace(max_epochs=30, val_interval=30)
    watch = _Watch(lambda share, where: None, minutes=65 / 60, clock=lambda: next(clock))
    watch.before_train(SimpleNamespace(train_loop=loop))
    planned = []
    for epoch in range(30):
        watch.after_train_epoch(SimpleNamespace(epoch=epoch, train_loop=loop))
        planned.append(loop.max_epochs)
        if epoch + 1 == loop.max_epochs:
            break
    assert planned == [6, 6, 4, 5, 5]


def test_curves_join_restarts_and_add_up_losses(tmp_path: Path) -> None:
    lines = {"a": ['{"train/a_loss": 1.0, "train/b_loss": 0.5, "step": 1}'], "b": ['{"train/loss": 3.0, "step": 2}']}
    lines["b"].append('{"val/acc": 0.25, "step": 2}')
    for name, told in lines.items():
        folder = tmp_path / name / "vis_data"
        folder.mkdir(parents=True)
        (folder / "scalars.json").write_text("\n".join(told) + "\n")
    write_curves(tmp_path, tmp_path)
    assert read_curves(tmp_path) == [
        {"epoch": 1, "a_loss": 1.0, "b_loss": 0.5, "loss": 1.5},
        {"epoch": 2, "loss": 3.0, "acc": 0.25},
    ]


@pytest.mark.slow
def test_clustered_images_that_have_changed_are_noticed_where_others_are_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("mine", "others"):
        (tmp_path / name).mkdir()
        for i in range(12):
            Image.new("RGB", (32, 32), (20 * i, 0, 0)).save(tmp_path / name / f"{i}.png")
    command = ["compare", "--methods", "kmeans-pixels", "--dataset", str(tmp_path / "mine"), "--clusters", "2"]
    command += ["--evaluate-on", str(tmp_path / "others"), "--seeds", "0", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    Image.new("RGB", (32, 32), (0, 99, 0)).save(tmp_path / "mine" / "3.png")
    assert main(command) == 2
    assert "clusters images with fingerprint" in capsys.readouterr().err


# -- results ---------------------------------------------------------------------------------------------------------


def record(method: str, seed: int, **told: Any) -> Record:
    costs = {"images_seen": 50.0, "seconds": 5.0, "peak_rss_mb": 100.0, "epochs": 9.0}
    return small_records.record(method, seed, **{**costs, "config": "moco.py", **told})


def test_the_table_tells_the_pretraining_apart() -> None:
    row = record("odc-moco", 0, seconds=2.0, acc=0.5, nmi=0.25, ari=0.125, knn=0.75)
    lines = table([record("moco", 0, knn=0.9, before=("odc-moco", "spice")), row]).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        "odc-moco", "0.500", "0.250", "0.125", "0.750", "2.0", "100", "50", "1"
    ]  # fmt: skip
    assert "Evaluated on the 100 images of train, K = 10" in lines[6]
    assert lines[8] == (
        "Before odc-moco and spice, once a seed and shared by them: stage moco, 9 epochs of moco.py, took 5.0 s and "
        "100 MB."
    )


def test_the_table_tells_the_clusters_that_a_pretraining_has_of_its_own() -> None:
    first = [record("propos", seed, acc=0.5 + seed / 4, nmi=0.5, ari=0.25, knn=1.0, before=("b",)) for seed in (0, 1)]
    text = table([*first, record("b", 0, acc=0.5, nmi=0.25, ari=0.125, knn=0.75)])
    assert "MB. Its own clusters: ACC 0.625 ± 0.177, NMI 0.500 ± 0.000, ARI 0.250 ± 0.000, kNN 1.000 ± 0.000." in text


def test_the_document_says_how_to_repeat_it() -> None:
    facts = {"machine": "a CPU", "versions": {"torch": "2", "numpy": "1"}, "git_revision": "abc", "dataset": "digits"}
    ran = {"precision": "float32", "threads": 2}
    rows = [record("odc", s, acc=0.5, **facts, **ran, date=f"2026-01-0{s + 1}T10:00") for s in (0, 1)]
    text = document(rows, "odc compare --x")
    assert text.startswith("# Methods compared on digits\n\n```\nodc compare --x\n```\n\n| method")
    assert text.endswith(
        "\n\nMachine: a CPU; trained in float32, threads a run: 2. Versions: torch 2, numpy 1. "
        "Revision abc, 2026-01-01 / 2026-01-02."
    )


def test_accuracy_by_many_to_one_has_a_column_where_it_was_measured() -> None:
    plain = [record("odc", s, acc=0.5, nmi=0.4) for s in (0, 1)]
    assert table(plain).startswith("| method | ACC           | NMI ")
    assert "ACC n:1" not in table(plain)
    over = [record("odc", s, acc=0.5, acc_many_to_one=0.75, nmi=0.4) for s in (0, 1)]
    heading, _, row, *_ = table(over).splitlines()
    assert [cell.strip() for cell in heading.split("|")[1:5]] == ["method", "ACC", "ACC n:1", "NMI"]
    assert [cell.strip()[:5] for cell in row.split("|")[1:5]] == ["odc", "0.500", "0.750", "0.400"]
    assert "ACC n:1 lets each cluster stand for its most frequent class" in table(over)


def test_beside_one_seed_stands_that_it_decides_nothing() -> None:
    one, two = record("odc", 0, acc=0.5), record("odc", 1, acc=0.6)
    for rows in ([one], [one, two, record("dc", 0, acc=0.5)]):
        lines = table(rows).split("\n\n")
        assert lines[1].startswith(
            "One seed decides nothing: rows differ from seed to seed and from processor to processor (ACC"
        )
        assert lines[1].endswith("--seeds 0 1 2 3 4 adds the missing ones.")
    assert "One seed" not in table([one, two])
    assert "One seed" not in table([record("dc", 0, error="E: why")])


def test_a_failed_method_is_in_the_table_and_loses_nothing_else() -> None:
    rows = [record("odc", 0, acc=0.5, nmi=0.5, ari=0.5, knn=0.5), record("dc", 0, error="E: why")]
    text = table(rows)
    assert "| dc     | failed |" in text
    assert "dc seed 0 failed: E: why" in text


def test_a_line_cut_short_does_not_count_and_the_last_of_a_cell_does(tmp_path: Path) -> None:
    lines = [json.dumps(record("odc", 0, acc=a).to_json()) for a in (0.1, 0.2)]
    (tmp_path / "results.jsonl").write_text("\n".join(lines) + '\n{"method": "dc", "se')
    assert {place: r.number("acc") for place, r in read_results(tmp_path).items()} == {("odc", 0): 0.2}


def test_the_time_left_counts_what_other_seeds_took(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, "odc", "kmeans-pixels")
    ended = {("odc", 0): record("odc", 0, seconds=60.0), ("kmeans-pixels", 0): record("kmeans-pixels", 0, seconds=2.0)}
    progress = Progress(cells, ended, 1, io.StringIO())
    assert progress.left([], [c for c in cells if c.seed == 1]) == 62.0
    assert Progress(cells, {}, 1, io.StringIO()).left([], cells) is None


def test_the_environment_sets_the_threads_of_a_cell_or_the_jobs_share_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [default_threads(jobs) for jobs in (1, 3, 8, 20)] == [8, 2, 1, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "ignored: OpenMP has read it when the process began")
    assert default_threads(1) == default_threads(8) == torch.get_num_threads()


# -- end to end, on digits -------------------------------------------------------------------------------------------


def quality(out: Path) -> dict[tuple[str, int], list[float]]:
    return {place: [r.values[m] for m in ("acc", "nmi", "ari", "knn")] for place, r in read_results(out).items()}


@pytest.mark.slow
def test_rows_of_all_kinds_then_the_same_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MoCo, an estimator on it, a head that is not in the package and a class of scikit-learn; n = 1 epoch."""
    head = tmp_path / "blind_head.py"
    head.write_text(
        "from odc.heads import DeepClusterHead\nfrom odc.registry import HEADS\n\n\n"
        "@HEADS.register_module()\nclass BlindHead(DeepClusterHead):\n    pass\n"
    )
    config = tmp_path / "blind.py"
    config.write_text(
        f"_base_ = '{ROOT}/configs/deepcluster/deepcluster_convnet_1xb64-30e_digits.py'\n"
        "custom_imports = dict(imports=['blind_head'])\nmodel = dict(head=dict(type='BlindHead'))\n"
    )
    methods = ["kmeans-moco", str(config), "sklearn.cluster.Birch-pixels", "hdbscan-pixels"]
    command = ["compare", "--methods", *methods, "--seeds", "3", "--jobs", "1", "--epochs", "1"]
    command += ["--pretrain-epochs", "1", "--out", str(tmp_path / "a")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "odc.cli", *arguments], env=environment, capture_output=True, text=True, check=False
        )

    done = run(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "a"
    records = read_results(out)
    assert list(records) == [
        ("moco", 3),
        ("kmeans-moco", 3),
        ("blind", 3),
        ("sklearn.cluster.Birch-pixels", 3),
        ("hdbscan-pixels", 3),
    ]
    # Same backbone, same images, same evaluation: what pre-training saw last is what k-means starts from.
    assert records["moco", 3].number("knn") == records["kmeans-moco", 3].number("knn")
    assert records["kmeans-moco", 3].number("pretrain_seconds") == records["moco", 3].number("seconds")
    assert [(r.method, r.before) for r in records.values() if r.before] == [("moco", ("kmeans-moco",))]
    assert records["moco", 3].number("images_seen") == 29 * 64 * 2, "29 steps of 64 rows through two views"
    with np.load(out / records["blind", 3].folder / "outcome.npz") as outcome:
        assert outcome["cluster"].shape == (1797,)
    curves = json.loads((out / records["blind", 3].folder / "curves.json").read_text())
    assert [epoch["epoch"] for epoch in curves] == [1]
    assert "loss" in curves[0]
    assert (out / "report.html").stat().st_size > 50_000

    # Nothing is run twice, with another number of threads neither, and the report can be had again.
    environment |= {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    again = run(*command)
    assert again.returncode == 0
    assert f"threads a cell: 1, as before in {out}, not 2" in again.stdout
    assert "5 of 5 cells are there already" in again.stdout
    html = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    assert main(["compare", "--report-only", "--out", str(out)]) == 0
    assert (out / "report.html").read_bytes() == html
    # Other settings do not mix with what is there, nor does another precision.
    assert {r.precision for r in records.values()} == {"float32"}
    assert "trained in float32, threads a run: 1" in (out / "table.md").read_text()
    assert b"1 thread a cell; trained in float32" in html
    capsys.readouterr()
    monkeypatch.setattr(precision, "_cpu_has_bfloat16", lambda: True)
    monkeypatch.syspath_prepend(tmp_path)
    assert main([*command, "--cfg-options", "precision=auto"]) == 2
    assert "has moco seed 3 trained in float32, but here and now it would be in bfloat16" in capsys.readouterr().err
    changed = ["compare", "--methods", "hdbscan-pixels", "--seeds", "3", "--clusters", "9", "--out", str(out)]
    assert main(changed) == 2
    assert "has hdbscan-pixels seed 3 with other settings" in capsys.readouterr().err


@pytest.mark.slow
def test_a_cell_that_lost_what_it_left_runs_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", "--methods", "kmeans-pixels", "--seeds", "0", "--out", str(tmp_path)]
    assert main(arguments) == 0
    outcome = tmp_path / "kmeans-pixels-0/outcome.npz"
    whole = outcome.read_bytes()
    outcome.write_bytes(whole[:-100])
    assert main(arguments) == 0
    assert f"but {outcome} is missing or damaged: it runs again" in capsys.readouterr().out
    assert outcome.read_bytes() == whole


@pytest.mark.slow
def test_what_needs_a_pretraining_that_failed_is_not_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--seeds", "0", "--jobs", "2", "--cfg-options", "moco.model.head.queue_size=5000"]
    assert main(["compare", "--methods", "kmeans-pixels", "kmeans-moco", "spice", "--out", str(out), *options]) == 1
    records = read_results(out)
    assert "the queue holds 5000 keys, but 1797 images" in str(records["moco", 0].error)
    for method in ("kmeans-moco", "spice"):
        assert records[method, 0].error == "not run, since moco seed 0 failed"
    assert records["kmeans-pixels", 0].values["acc"] > 0.7
    options[-1] = "moco.model.head.queue_size=6000"  # what failed does not bind: the folder can still be used
    assert main(["compare", "--methods", "kmeans-moco", "--out", str(out), *options]) == 1
    assert "holds 6000 keys" in str(read_results(out)["moco", 0].error)
    assert (out / "report.html").exists()


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_ends_as_if_unbroken(tmp_path: Path) -> None:
    methods = ["kmeans-pixels", "odc", "dc", "gmm-backbone"]
    options = ["--methods", *methods, "--seeds", "0", "--jobs", "1", "--epochs", "2"]
    command = [sys.executable, "-m", "odc.cli", "compare", *options, "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path / "whole")], env=environment, check=True, capture_output=True)
    process = subprocess.Popen([*command, str(tmp_path / "broken")], env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "broken" / "odc-0" / "output.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    process.send_signal(signal.SIGKILL)
    process.wait()
    early = read_results(tmp_path / "broken")
    assert ("kmeans-pixels", 0) in early
    assert len(early) < len(methods)
    subprocess.run([*command, str(tmp_path / "broken")], env=environment, check=True, capture_output=True)
    assert quality(tmp_path / "broken") == quality(tmp_path / "whole")
    assert read_results(tmp_path / "broken")["kmeans-pixels", 0] == early["kmeans-pixels", 0], "not run again"
