"""A training that starts from a table of a few labels: what it trains on, and the names in what it leaves."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch
from small_heads import config

from odc.apis import build_runner, evaluate, train
from odc.checkpoints import load_plain, write_tensors
from odc.data.table import classes_of
from odc.errors import DamagedError, InputError
from odc.memory.labels import LabelStore
from odc.structures import PseudoLabels

NAMES = ("a cat, black", "dog", "Übel")  # one is quoted in a CSV


def table(path: Path, rows: list[tuple[str, str]]) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return str(path)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_order_of_classes() -> None:
    assert classes_of(["10", "9", "9"]) == ("9", "10")
    assert classes_of(["10", "9", "x"]) == ("10", "9", "x")
    assert classes_of(["07", "7", "1"]) == ("1", "07", "7")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the folder of a training on nine labels, and their table, less which it is."""
    folder = tmp_path_factory.mktemp("by-hand")
    rows = [(f"{i:03d}", NAMES[i % 3]) for i in range(9)] + [("010", ""), ("011", "-1")]
    few = table(folder / "few.csv", rows)
    train(config("classifier", str(folder / "run"), **{"train_cfg.label_fraction": None, "train_cfg.label_file": few}))
    return folder, few


def test_rows_with_a_label_are_trained_on(trained: tuple[Path, str]) -> None:
    state = load_plain(trained[0] / "run" / "epoch_2.pth")["state_dict"]
    assert state["labels.target"][:, 0].tolist() == [0, 1, 2] * 3 + [-1] * 39
    assert state["labels.num_classes"].tolist() == [3]


def test_classes_have_their_names_in_the_table_of_clusters(trained: tuple[Path, str]) -> None:
    rows = read(trained[0] / "run" / "clusters.csv")
    assert list(rows[0])[:3] == ["path", "cluster", "name"]
    assert all(row["name"] == NAMES[int(row["cluster"])] for row in rows)


def test_the_names_are_in_the_checkpoint_not_in_the_file(trained: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(trained[0] / "run", tmp_path / "run")
    gone = {"train_cfg.label_fraction": None, "train_cfg.label_file": str(tmp_path / "gone.csv")}
    evaluate(config("classifier", str(tmp_path), **gone), str(tmp_path / "run" / "epoch_2.pth"), tmp_path / "out")
    assert (tmp_path / "out" / "clusters.csv").read_bytes() == (tmp_path / "run" / "clusters.csv").read_bytes()
    resumed = config("classifier", str(tmp_path / "run"), resume=True, **gone, **{"train_cfg.max_epochs": 3})
    train(resumed)
    assert "name" in read(tmp_path / "run" / "clusters.csv")[0]


def test_names_that_are_none(trained: tuple[Path, str], tmp_path: Path) -> None:
    checkpoint = load_plain(trained[0] / "run" / "epoch_2.pth")
    for wrong in (["a", "b"], ["a", "b", "b"], ["a", "b", 3], "abc", {"a": 1}):
        checkpoint["meta"]["classes"] = wrong
        write_tensors(tmp_path / "wrong.pth", checkpoint)
        with pytest.raises(DamagedError, match=r"is not the checkpoint of a run"):
            evaluate(config("classifier", str(tmp_path)), str(tmp_path / "wrong.pth"))


def test_labels_that_a_head_makes_have_no_names() -> None:
    store = LabelStore(2)
    ids = torch.arange(2)[:, None]
    store.replace(PseudoLabels(ids, ids, (2,), names=("a", "b")))
    given = store.names
    store.replace(PseudoLabels(ids, ids, (2,)))
    assert (given, store.names) == (("a", "b"), ())
    with pytest.raises(ValueError, match="2 names for 3 classes"):
        PseudoLabels(ids, ids, (3,), names=("a", "b"))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("000", "x"), ("999", "y")], "1 of 2 paths are not among the 48 images, the first is '999'"),
        ([("000", "x"), ("000", "y")], "'000' is in it 2 times"),
        ([("000", ""), ("001", "-1")], "none of the 2 rows"),
        (
            [(f"{i:03d}", str(i)) for i in range(4)],
            "labels have 4 classes, but model.head.num_classes is 3: set it to 4",
        ),
    ],
)
def test_tables_that_do_not_fit(rows: list[tuple[str, str]], words: str, tmp_path: Path) -> None:
    options = {"train_cfg.label_fraction": None, "train_cfg.label_file": table(tmp_path / "few.csv", rows)}
    with pytest.raises(InputError, match=words):
        train(config("classifier", str(tmp_path / "run"), **options))


# -- parts of a backbone ----------------------------------------------------------------------------------------------


RESNET = {
    "model.backbone": dict(_delete_=True, type="ResNet", depth=18, stem="cifar", width=2, in_channels=1),
    "model.neck": dict(_delete_=True, type="AvgPool"),
}


def test_parts_of_a_backbone_that_do_not_train(tmp_path: Path) -> None:
    runner = build_runner(
        config("classifier", str(tmp_path), **RESNET, **{"model.frozen": ["backbone.conv1", "backbone.layer1"]})
    )
    model = runner.model
    model.init_weights()
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    runner.train()
    after = model.backbone.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    still = {name for name in before if name.startswith(("conv1.", "layer1."))}
    assert still
    assert not changed & still, "neither weights nor batch norm's statistics"
    assert changed >= {"bn1.weight", "bn1.running_mean", "layer2.0.conv1.weight"}
    assert not model.backbone.layer1.training
    assert model.backbone.layer2.training is model.backbone.training


@pytest.mark.parametrize(
    ("frozen", "words"),
    [
        ("backbone.layer11", "model.frozen cannot name 'backbone.layer11'; did you mean 'backbone.layer1'?"),
        ("backbone.layer1.0.conv", "did you mean 'backbone.layer1.0.conv"),
        ("bakbone", "did you mean 'backbone'?"),
        ("head", "model.frozen cannot name 'head'"),
        ("backbone.bn1.weight", "model.frozen cannot name 'backbone.bn1.weight'"),
    ],
)
def test_a_misspelt_part(frozen: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        build_runner(config("classifier", str(tmp_path), **RESNET, **{"model.frozen": [frozen]}))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
