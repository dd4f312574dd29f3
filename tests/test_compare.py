"""The comparison: which cells it plans, in which order, what it refuses, and what its table says."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from odc.errors import InputError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("compare")


def arguments(tmp_path: Path, *methods: str, **changed: Any) -> argparse.Namespace:
    given: dict[str, Any] = {
        "methods": methods,
        "dataset": "digits",
        "seeds": [0, 1],
        "out": str(tmp_path),
        "jobs": 2,
        "epochs": None,
        "pretrain_epochs": None,
        "pretrained": None,
        "cfg_options": None,
    }
    return argparse.Namespace(**given | changed)


def titles(cells: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(cell["method"], cell["seed"]) for cell in cells]


def test_one_pretraining_a_seed_comes_first_and_all_start_from_it(compare: Any, tmp_path: Path) -> None:
    cells = compare.plan_cells(arguments(tmp_path, "kmeans-pixels", "kmeans-moco", "odc-moco", "dc"))
    assert titles(cells)[:4] == [("moco", 0), ("moco", 1), ("kmeans-pixels", 0), ("kmeans-pixels", 1)]
    starts = {(cell["method"], cell["seed"]): cell["pretrained"] for cell in cells}
    assert starts["odc-moco", 1] == starts["kmeans-moco", 1] == str(tmp_path / "moco-1" / "backbone.pth")
    assert starts["odc-moco", 0] != starts["odc-moco", 1]
    assert starts["dc", 0] is starts["kmeans-pixels", 0] is starts["moco", 0] is None


def test_a_cell_waits_for_the_pretraining_of_its_own_seed(compare: Any, tmp_path: Path) -> None:
    cells = compare.plan_cells(arguments(tmp_path, "odc-moco", "dc"))
    waiting = list(enumerate(cells))[2:]  # both trainings of MoCo run
    assert waiting[0][1]["method"] == "odc-moco"
    assert compare.next_cell(waiting, cells, {})[1]["method"] == "dc"
    assert titles([compare.next_cell(waiting, cells, {1: {}})[1]]) == [("odc-moco", 1)]
    only = [cell for cell in waiting if cell[1]["method"] == "odc-moco"]
    assert compare.next_cell(only, cells, {}) is None


def test_spice_waits_for_the_row_whose_stage_it_takes_over(compare: Any, tmp_path: Path) -> None:
    cells = compare.plan_cells(arguments(tmp_path, "spice", "spice-self", seeds=[4]))
    after = {cell["method"]: cell["after"] for cell in cells}
    assert after == {"moco": [], "spice-self": [("moco", 4)], "spice": [("moco", 4), ("spice-self", 4)]}
    assert len({cell["work_dir"] for cell in cells}) == 2, "both rows share a folder"
    alone = compare.plan_cells(arguments(tmp_path, "spice", seeds=[4]))[-1]
    assert alone["after"] == [("moco", 4)]


def test_without_such_methods_nothing_is_pretrained(compare: Any, tmp_path: Path) -> None:
    assert titles(compare.plan_cells(arguments(tmp_path, "odc", seeds=[3]))) == [("odc", 3)]


def test_a_given_backbone_takes_the_place_of_the_pretraining(compare: Any, tmp_path: Path) -> None:
    file = tmp_path / "backbone.pth"
    file.touch()
    cells = compare.plan_cells(arguments(tmp_path, "odc-moco", pretrained=str(file)))
    assert titles(cells) == [("odc-moco", 0), ("odc-moco", 1)]
    assert {cell["pretrained"] for cell in cells} == {str(file)}


def test_wrong_methods_are_named(compare: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown method 'odc-moko'.*'odc-moco'"):
        compare.plan_cells(arguments(tmp_path, "odc-moko"))
    with pytest.raises(InputError, match="unknown method 'moco'"):
        compare.plan_cells(arguments(tmp_path, "moco"))
    with pytest.raises(InputError, match=r"unknown data set 'digit'.*'digits'"):
        compare.plan_cells(arguments(tmp_path, "odc", dataset="digit"))
    with pytest.raises(InputError, match="SPICE and methods whose name ends in -moco: there is none"):
        compare.plan_cells(arguments(tmp_path, "odc", pretrained="x.pth"))
    with pytest.raises(InputError, match=r"no file 'x.pth'"):
        compare.plan_cells(arguments(tmp_path, "odc-moco", pretrained="x.pth"))


def test_another_backbone_or_number_of_epochs_is_refused(compare: Any, tmp_path: Path) -> None:
    config = tmp_path / "mine.py"
    base = f"_base_ = '{ROOT}/configs/odc/odc_convnet_1xb64-30e_digits.py'\n"
    config.write_text(base + "train_cfg = dict(max_epochs=7)\n")
    with pytest.raises(InputError, match=r"train_cfg.max_epochs is 30 for odc but 7 for mine"):
        compare.plan_cells(arguments(tmp_path, "odc", str(config)))
    config.write_text(base + "model = dict(backbone=dict(widths=[8, 16]))\n")
    with pytest.raises(InputError, match=r"model.backbone is .* for moco but .*8, 16.* for mine"):
        compare.plan_cells(arguments(tmp_path, "odc-moco", str(config)))


def test_the_table_tells_the_pretraining_apart(compare: Any) -> None:
    record = {"seed": 0, "seconds": 5.0, "peak_rss_mb": 100.0, "epochs": 9, "config": "moco.py"}
    rows = [{**record, "method": "moco", "knn": 0.9}]
    rows += [{**record, "method": "odc-moco", "seconds": 2.0, "acc": 0.5, "nmi": 0.25, "ari": 0.125, "knn": 0.75}]
    lines = compare.table(rows).splitlines()
    assert len(lines) == 5, "two lines of heading, one row, and what was shared"
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        "odc-moco", "0.500", "0.250", "0.125", "0.750", "2.0", "100", "1"
    ]  # fmt: skip
    assert "9 epochs of pre-training by moco.py, 5.0 s and 100 MB" in lines[4]


def test_kmeans_on_a_pretrained_backbone(compare: Any, tmp_path: Path) -> None:
    arguments = ["--methods", "kmeans-moco", "--seeds", "3", "--jobs", "1", "--pretrain-epochs", "1"]
    assert compare.main([*arguments, "--out", str(tmp_path)]) == 0
    records = json.loads((tmp_path / "results.json").read_text())
    assert titles(records) == [("moco", 3), ("kmeans-moco", 3)]
    # Same backbone, same images, same evaluation: what pre-training saw last is what k-means starts from.
    assert records[0]["knn"] == records[1]["knn"]
    assert (tmp_path / "moco-3" / "backbone.pth").is_file()
