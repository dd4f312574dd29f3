"""Features from elsewhere: how they are spelt, and a comparison of methods on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from odc.cli import main
from odc.comparison.plan import Cell, Request, plan
from odc.comparison.results import Outcome, read_results
from odc.comparison.samples import remarks
from odc.data.datasets import build_dataset
from odc.data.embeddings import Embeddings
from odc.errors import InputError
from odc.sources import digest, enlarged, literal_config, read_source

METHODS = ("kmeans", "kmeans-raw", "spice-self", "dc")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Random weights of a tiny network, in a file."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("test_resnet", num_classes=0)
    save_file(network.state_dict(), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def vectors(tmp_path: Path) -> Path:
    """Features of the digits: their pixels."""
    digits = build_dataset(dict(type="Digits", size=8))
    x = digits.images().flatten(1).float()
    file = tmp_path / "pixels.npz"
    Embeddings(torch.arange(len(x)), tuple(digits.paths), x, digits.fingerprint).save(file)
    return file


def cells_of(out: Path, *methods: str, **changed: Any) -> list[Cell]:
    return plan(Request(**{"methods": methods, "out": out, "seeds": [0, 1], "dataset": "digits", **changed}))


# -- one spelling ----------------------------------------------------------------------------------------------------


def test_a_network_with_weights_in_a_file(weights: Path) -> None:
    (space,) = read_source(f"timm:test_resnet@{weights}")
    assert space.model == {"backbone": {"type": "TimmBackbone", "name": "test_resnet", "weights": str(weights)}}
    assert space.title == f"timm:test_resnet@tiny.safetensors (SHA-256 {digest(weights)})"
    assert space.size == 160
    assert [transform["type"] for transform in space.view] == ["Resize", "CenterCrop", "ToFloat", "Normalize"]
    (smaller,) = read_source(f"timm:test_resnet@{weights}", size=32)
    assert smaller.view[1] == {"type": "CenterCrop", "size": 32}
    assert smaller.decides() != space.decides()


def test_where_a_file_lies_does_not_matter_but_what_is_in_it(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "other.safetensors"
    other.parent.mkdir()
    other.write_bytes(weights.read_bytes())
    here, there = (read_source(f"timm:test_resnet@{file}")[0].decides() for file in (weights, other))
    assert here == there
    save_file({"x": torch.zeros(1)}, other)
    assert read_source(f"timm:test_resnet@{other}")[0].decides() != here


def test_two_spaces_and_a_plus_in_a_name(weights: Path, vectors: Path, tmp_path: Path) -> None:
    first, second = read_source(f"timm:test_resnet@{weights}+{vectors}")
    assert first.model is not None
    assert second.model is None
    assert second.file == str(vectors)
    plus = tmp_path / "a+b.npz"
    plus.write_bytes(vectors.read_bytes())
    assert [space.spelling for space in read_source(f"{plus}+{vectors}")] == [str(plus), str(vectors)]


@pytest.mark.parametrize(
    ("source", "size", "said"),
    [
        ("dinov2-smal", None, r"no pre-trained backbone 'dinov2-smal'.*; did you mean 'dinov2-small'\?"),
        ("timm:test_resnt", None, "timm has no model 'test_resnt'"),
        ("timm:test_resnet@none.pth", None, "there is no file 'none.pth' of weights"),
        ("none.npz", None, r"'none.npz' does not exist \(looked at /"),
        ("dinov2-small+", None, r"nothing before or after a '\+'"),
        ("dinov2-small", 0, "--size must be at least 1 pixel, not 0"),
    ],
)
def test_what_is_no_source(source: str, size: int | None, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        read_source(source, size)
    assert "\n" not in str(error.value)


def test_a_size_is_for_networks(vectors: Path) -> None:
    with pytest.raises(InputError, match=r"--size 32 is for networks that look at pictures: .*pixels.npz is there"):
        read_source(str(vectors), 32)


def test_a_checkpoint_of_a_training_describes_itself(tmp_path: Path) -> None:
    text = "_x=[\n    dict(mean=[\n            0.3,\n            ],\n        type='Normalize'),\n    ]\n"
    text += "model=dict(backbone=dict(type='ConvNet', widths=[4, 8]), type='ClusterModel')\n"
    text += "data=dict(views=dict(extract=[dict(type='ToFloat')]))"
    file = tmp_path / "epoch_1.pth"
    torch.save({"meta": {"cfg": text}, "state_dict": {}}, file)
    (space,) = read_source(str(file))
    assert space.model == {"backbone": {"type": "ConvNet", "widths": [4, 8]}, "pretrained": str(file)}
    assert space.view == ({"type": "ToFloat"},)
    torch.save({"state_dict": {}}, file)
    with pytest.raises(InputError, match=r"does not say which network it is of.*timm:NAME@"):
        read_source(str(file))


def test_a_config_in_a_checkpoint_may_have_keys_that_are_no_names() -> None:
    text = "a = dict({'head.classifier': dict(momentum=0.0), 3: 4}, b=[dict({})])"
    assert literal_config(text, "x.pth") == {"a": {"head.classifier": {"momentum": 0.0}, 3: 4, "b": [{}]}}


@pytest.mark.parametrize(
    "text",
    [
        *("a = __import__('os')", "a = [x for x in ()]", "a = dict(**{})", "a = b", "a =", "a = dict([])"),
        *("a = dict({**{}})", "a = dict({}, {})", "a = dict({__import__('os'): 1})"),
    ],
)
def test_a_config_in_a_checkpoint_is_never_run(text: str) -> None:
    with pytest.raises(InputError, match=r"the config in 'x.pth' is not one that a training here writes"):
        literal_config(text, "x.pth")


def test_small_pictures_are_not_enlarged_without_a_word(weights: Path) -> None:
    spaces = read_source(f"timm:test_resnet@{weights}")
    (line,) = enlarged(spaces, build_dataset(dict(type="Digits", size=120)))
    assert line.endswith("120 or less, and are enlarged: --size 120 takes them as they are, and 56% of the time")
    (line,) = enlarged(spaces, build_dataset(dict(type="Digits", size=16)))
    assert line.endswith("16 or less, and are enlarged")
    assert not enlarged(spaces, build_dataset(dict(type="Digits", size=160)))


def test_photographs_that_a_small_network_sees_small_are_told_of(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    cell = cells_of(tmp_path, "odc", dataset=str(tmp_path / "pictures"), seeds=[0])[0]
    (line,) = remarks(None, cell.config, build_dataset(dict(type="Digits", size=200)))
    assert line.startswith(
        "the pictures have some 200 pixels on the shorter side, and are seen at 32 by ResNet(depth=18"
    )
    assert "--features dinov2-small" in line
    assert not remarks(None, cell.config, build_dataset(dict(type="Digits", size=32)))


# -- the plan --------------------------------------------------------------------------------------------------------


def test_features_are_extracted_once_for_all_methods_and_seeds(weights: Path, tmp_path: Path) -> None:
    cells = cells_of(tmp_path, *METHODS, features=f"timm:test_resnet@{weights}", size=32)
    assert [cell.place for cell in cells[:3]] == [("features", 0), ("kmeans", 0), ("kmeans", 1)]
    assert all(cell.after == (("features", 0),) for cell in cells[1:])
    assert cells[0].title == "features"
    for cell in cells[1:]:
        assert cell.config.data.dataset.type == "Features"
        assert cell.config.data.dataset.pictures == {"type": "Digits", "size": 16}
        assert cell.config.model.backbone == {"type": "Vectors", "spaces": [1]}
        assert set(map(tuple, cell.config.data.views.values())) == {()}
    keys = {cell.place: cell.key for cell in cells}
    again = cells_of(tmp_path / "b", *METHODS, features=f"timm:test_resnet@{weights}", size=32, threads=3)
    assert again[0].key == keys["features", 0], "whatever number of threads"
    weights.write_bytes(weights.read_bytes() + b" ")
    changed = cells_of(tmp_path, *METHODS, features=f"timm:test_resnet@{weights}", size=32)
    assert all(cell.key != keys[cell.place] for cell in changed)


def test_a_config_of_ones_own_takes_vectors(vectors: Path, tmp_path: Path) -> None:
    name = "spice-self_convnet_1xb128-30e_digits"
    cell = cells_of(tmp_path, f"configs/spice/{name}.py", features=str(vectors), seeds=[0])[-1]
    assert cell.method == name
    assert cell.config.model.frozen == ["backbone", "neck"]
    assert cell.config.model.pretrained is None
    assert set(cell.config.data.views) == {"extract", "train", "rotated", "weak", "strong"}


@pytest.mark.parametrize(
    ("methods", "changed", "said"),
    [
        (["odc-moco"], {}, r"unknown method 'odc-moco'; did you mean 'odc'\?"),
        (["kmeens"], {}, r"unknown method 'kmeens'; did you mean 'kmeans'\?"),
        (["kmeans"], {"dataset": None}, "nothing says how many clusters there are: add --clusters"),
        (["kmeans"], {"evaluate_on": "test"}, "'test'"),
        (["kmeans"], {"features": None, "size": 32}, "--size 32 is for --features"),
        (["kmeans", "dc-consensus"], {}, "'dc-consensus' combines the runs of 'dc', which is none of the --methods"),
        (["kmeans", "consensus"], {}, "'consensus' needs at least two other rows to combine"),
        (["kmeans", "kmeans-consensus"], {"seeds": [0]}, "'kmeans-consensus' needs at least two seeds"),
    ],
)
def test_what_does_not_go_together(
    vectors: Path, tmp_path: Path, methods: list[str], changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        cells_of(tmp_path, *methods, **{"features": str(vectors), **changed})


def test_pictures_are_needed_where_a_network_looks_at_them(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--features timm:test_resnet@.* needs pictures: add --dataset"):
        cells_of(tmp_path, "kmeans", features=f"timm:test_resnet@{weights}", dataset=None)


def test_features_of_other_pictures_stop_it_before_anything_runs(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.py").write_text(
        "comparison = dict(methods={'odc': 'odc_convnet_1xb64-30e_digits'}, options={'data.dataset.size': 9})\n"
    )
    command = ["compare", "--features", str(vectors), "--methods", "kmeans", "--dataset", str(tmp_path / "other.py")]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "with fingerprint" in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_weights_of_another_network_stop_it_before_anything_runs(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "--features", f"timm:test_vit@{weights}", "--dataset", "digits", "--methods", "kmeans"]
    assert main([*command, "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert "does not fit" in error
    assert error.count("\n") == 1
    assert not any((tmp_path / "x").rglob("*.json*"))


def test_a_network_that_is_nowhere_stops_it_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    command = ["compare", "--features", "dinov2-small", "--dataset", "digits", "--methods", "kmeans"]
    assert main([*command, "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert "are not in the cache" in error
    assert error.count("\n") == 1
    assert not any((tmp_path / "x").rglob("*.json*"))


def test_heads_on_frozen_features_need_no_equal_epochs(tmp_path: Path) -> None:
    frozen = ("scan-moco", "temi-moco", "turtle-moco", "dc-moco", "odc-moco")
    cells = plan(Request(methods=frozen, out=tmp_path))
    epochs = {cell.method: cell.config.train_cfg.max_epochs for cell in cells}
    assert epochs["turtle-moco"] < epochs["scan-moco"] == epochs["dc-moco"]
    with pytest.raises(InputError, match="not a fair comparison"):
        plan(Request(methods=frozen, out=tmp_path, options={"odc-moco.train_cfg.max_epochs": 3}))


def test_a_consensus_waits_for_its_rows(vectors: Path, tmp_path: Path) -> None:
    cells = cells_of(tmp_path, "kmeans", "dc", "consensus", "dc-consensus", features=str(vectors))
    after = {cell.place: cell.after for cell in cells if cell.combines}
    assert after == {
        ("consensus", 0): (("kmeans", 0), ("dc", 0)),
        ("consensus", 1): (("kmeans", 1), ("dc", 1)),
        ("dc-consensus", 0): (("dc", 0), ("dc", 1)),
    }


# -- the whole -------------------------------------------------------------------------------------------------------


def test_extract_by_a_source(weights: Path, tmp_path: Path) -> None:
    source = ["extract", "--features", f"timm:test_resnet@{weights}", "--size", "32"]
    assert main([*source, "--dataset", "digits", "--out", str(tmp_path / "out.npz")]) == 0
    found = Embeddings.load(tmp_path / "out.npz")
    digits = build_dataset(dict(type="Digits", size=16))
    features = found.for_dataset(digits)
    assert found.meta["source"] == f"timm:test_resnet@tiny.safetensors (SHA-256 {digest(weights)})"
    network = timm.create_model("test_resnet", num_classes=0).eval()
    (space,) = read_source(f"timm:test_resnet@{weights}", 32)
    from safetensors.torch import load_file

    from odc.data.pipeline import Pipeline

    network.load_state_dict(load_file(weights))
    images = Pipeline(space.view)(digits.images()[:8].repeat(1, 3, 1, 1), torch.arange(8))
    with torch.no_grad():
        torch.testing.assert_close(features[:8], network(images), rtol=1e-3, atol=1e-4)
    assert main([*source, "some_config", "--out", str(tmp_path / "b.npz")]) == 2


def test_a_table_of_methods_on_features(weights: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, few = tmp_path / "out", tmp_path / "few.py"
    few.write_text(
        "comparison = dict(methods={'odc': 'odc_convnet_1xb64-30e_digits'}, options={'data.dataset': dict(\n"
        "    _delete_=True, type='LongTail', ratio=0.5, dataset=dict(type='Digits', size=16))})\n"
    )
    command = ["compare", "--features", f"timm:test_resnet@{weights}", "--size", "32", "--dataset", str(few)]
    command += ["--methods", "kmeans", "dc", "consensus", "--seeds", "0", "--epochs", "1", "--jobs", "2"]
    command += ["--cfg-options", "model.neck.out_channels=16", "--out", str(out)]
    assert main(command) == 0
    told = capfd.readouterr().out
    assert f"Features: timm:test_resnet@tiny.safetensors (SHA-256 {digest(weights)})." in told
    assert "once for all rows and seeds." in told
    records = read_results(out)
    assert set(records) == {("features", 0), ("kmeans", 0), ("dc", 0), ("consensus", 0)}
    for (method, _), record in records.items():
        assert record.error is None
        if method == "features":
            continue
        outcome = Outcome.load(out / record.folder, 359)
        assert outcome is not None
        rows = (out / record.folder / "clusters.csv").read_text().splitlines()
        assert [int(row.split(",")[1]) for row in rows[1:]] == outcome.cluster.tolist()
    assert main(command) == 0, "nothing runs again"
    assert "4 of 4 cells are there already" in capfd.readouterr().out
    weights.write_bytes(weights.read_bytes() + b" ")
    assert main(command) == 2
    assert "has features with other settings" in capfd.readouterr().err
