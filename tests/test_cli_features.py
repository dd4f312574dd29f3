"""``odc extract`` and ``odc probe``: what they write and print, and what they refuse in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from test_cli import Write, refused, write

from odc.apis import build_runner, extract_features, prepare_config
from odc.checkpoints import load_plain
from odc.cli import main
from odc.data import Embeddings
from odc.engine import feature_store

__all__ = ["write"]  # a fixture

OTHER = "data.eval_dataset.type=Blobs", "data.eval_dataset.n=30"


@pytest.fixture
def trained(write: Write, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """Return config and checkpoint of a head with a neck of its own, trained for an epoch."""
    path = write("odc", **{"train_cfg.max_epochs": 1})
    assert main(["train", path, "--work-dir", "run"]) == 0
    capsys.readouterr()
    return path, "run/epoch_1.pth"


def slow_features(path: str, checkpoint: str, drop_neck: bool) -> torch.Tensor:
    """Return the features of the images one by one, from the checkpoint's own tensors."""
    runner = build_runner(prepare_config(path, work_dir="slow"))
    model = runner.model.cpu()
    model.load_state_dict(load_plain(checkpoint)["state_dict"])
    model.eval()
    rows = []
    with torch.no_grad(), model.averaged():
        for i in range(48):
            image = runner.train_loop.data.dataset.image(i)[None].float() / 255
            z = model.backbone((image - 0.3) / 0.3)
            rows.append(z.mean((2, 3)) if drop_neck else model.neck(z))
    return torch.cat(rows)


@pytest.mark.parametrize("ending", ["npz", "parquet"])
@pytest.mark.parametrize("drop_neck", [False, True])
def test_extract(ending: str, drop_neck: bool, trained: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    path, checkpoint = trained
    out = f"out/features.{ending}"
    argv = ["extract", path, checkpoint, "--out", out, *(["--drop-neck"] if drop_neck else [])]
    assert main(argv) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert f"features of 48 images, 8 each: {out}" in told.out.splitlines()[-1]
    read = Embeddings.load(out)
    torch.testing.assert_close(read.features, slow_features(path, checkpoint, drop_neck), atol=1e-5, rtol=1e-4)
    assert read.paths == tuple(f"{i:03d}" for i in range(48))
    assert read.meta == {
        "config": path,
        "checkpoint": checkpoint,
        "view": "extract",
        "after": f"ConvNet and {'AvgPool' if drop_neck else 'ODCNeck'}",
    }
    direct = extract_features(prepare_config(path), checkpoint, drop_neck=drop_neck)
    assert torch.equal(direct.features, read.features)


@pytest.mark.parametrize("drop_neck", [False, True])
def test_features_are_those_of_the_moving_average(drop_neck: bool, write: Write) -> None:
    path = write("odc", **{"train_cfg.max_epochs": 1, "model.ema": 0.9})
    assert main(["train", path, "--work-dir", "run"]) == 0
    features = extract_features(prepare_config(path), "run/epoch_1.pth", drop_neck=drop_neck).features
    torch.testing.assert_close(features, slow_features(path, "run/epoch_1.pth", drop_neck), atol=1e-5, rtol=1e-4)
    load_partial = prepare_config(path, cfg_options={"model.ema": None, "load_partial": True})
    plain = extract_features(load_partial, "run/epoch_1.pth", drop_neck=drop_neck).features
    assert not torch.allclose(features, plain, atol=1e-3)


def test_an_extraction_goes_on(trained: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    path, checkpoint = trained
    cfg, real = prepare_config(path), Embeddings.save
    whole = extract_features(cfg, checkpoint, "whole.npz").features

    def dies(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Embeddings, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        extract_features(cfg, checkpoint, "part.npz")
    assert Path("part.npz.part").is_dir()
    monkeypatch.setattr(Embeddings, "save", real)
    monkeypatch.setattr(feature_store, "encode", dies)
    assert torch.equal(extract_features(cfg, checkpoint, "part.npz").features, whole)
    assert Path("part.npz").read_bytes() == Path("whole.npz").read_bytes()
    assert not Path("part.npz.part").exists()
    assert not Path("whole.npz.part").exists()


def test_extract_the_images_to_evaluate_on(trained: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    path, checkpoint = trained
    argv = ["extract", path, checkpoint, "--out", "f.npz", "--split", "eval"]
    refused(capsys, argv, "no data.eval_dataset")
    assert main([*argv, "--cfg-options", *OTHER]) == 0
    assert len(Embeddings.load("f.npz").paths) == 30


def test_extract_what_is_wrong(trained: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    path, checkpoint = trained
    refused(capsys, ["extract", path, checkpoint, "--out", "f.csv"], "'f.csv' ends in neither .npz nor .parquet")
    refused(capsys, ["extract", path, "no.pth", "--out", "f.npz"], "'no.pth' does not exist")
    Path("file").write_text("")
    refused(capsys, ["extract", path, checkpoint, "--out", "file/f.npz"], "cannot make the folder file")
    wide = ["--cfg-options", "model.neck.out_channels=9"]
    refused(capsys, ["extract", path, checkpoint, "--out", "f.npz", *wide], checkpoint, "does not fit")
    assert not Path("f.npz").exists()


def test_probe_a_checkpoint_then_its_file(trained: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    path, checkpoint = trained
    assert main(["probe", path, checkpoint, "--out", "out/probe.json"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    table = told.out[told.out.index("features  ") :]
    assert table.splitlines()[:4] == [
        "features  run/epoch_1.pth: 8 an image, after ConvNet and ODCNeck",
        f"config    {path}",
        f"training  39 images in memory, fingerprint {fingerprint()}",
        "test      the other 9, 20% of every class, drawn by seed 3 (no data.eval_dataset of other images)",
    ]
    names = ["kNN, k=1 ", "kNN, k=10 ", "kNN, k=20 ", "linear ", "linear, 1 % of labels ", "linear, 10 % of labels "]
    rows = table.splitlines()[-6:]
    assert all(row.startswith(f"  {name}") for row, name in zip(rows, names, strict=True)), rows
    assert "3 labels, 5 draws" in rows[-2]
    written = json.loads(Path("out/probe.json").read_text())
    assert f"{100 * written['linear']['accuracy']:.1f} " in rows[3]
    assert (written["train"], written["test"]) == (39, 9)

    assert main(["extract", path, checkpoint, "--out", "f.npz"]) == 0
    capsys.readouterr()
    assert main(["probe", path, "--features", "f.npz"]) == 0
    again = capsys.readouterr().out
    assert again.splitlines()[0] == "features  f.npz (of run/epoch_1.pth): 8 an image, after ConvNet and ODCNeck"
    assert again.splitlines()[1:] == table.splitlines()[1:]


def fingerprint() -> str:
    from small_heads import Blobs

    return Blobs().fingerprint


def test_probe_on_other_images(trained: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    path, checkpoint = trained
    assert main(["probe", path, checkpoint, "--drop-neck", "--cfg-options", *OTHER]) == 0
    table = capsys.readouterr().out
    table = table[table.index("features  ") :]
    assert "after ConvNet and AvgPool" in table
    assert "training  48 images in memory, " in table
    assert "test      30 images in memory (data.eval_dataset), " in table

    for split in ("train", "eval"):
        argv = ["extract", path, checkpoint, "--drop-neck", "--split", split, "--out", f"{split}.npz"]
        assert main([*argv, "--cfg-options", *OTHER]) == 0
    capsys.readouterr()
    probe = ["probe", path, "--features", "train.npz"]
    both = ["--test-features", "eval.npz", "--cfg-options", *OTHER]
    assert main([*probe, *both]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == table.splitlines()[1:]
    argv = ["extract", path, checkpoint, "--split", "eval", "--out", "necked.npz", "--cfg-options", *OTHER]
    assert main(argv) == 0
    line = refused(capsys, [*probe, "--test-features", "necked.npz", *both[2:]], "extract both in the same way")
    assert "after" in line
    assert "'ConvNet and AvgPool', but in 'necked.npz' it is 'ConvNet and ODCNeck'" in line
    refused(capsys, [*probe, "--cfg-options", *OTHER], "--test-features", "odc extract --split eval")
    refused(capsys, [*probe, "--test-features", "eval.npz"], "which the config does not have", "'eval.npz'")
    refused(capsys, ["probe", path, "--features", "eval.npz"], "30 images", "48 images", fingerprint())
    same = ["--cfg-options", "data.eval_dataset.type=Blobs"]  # testing on what was trained on would flatter
    assert main(["probe", path, checkpoint, *same]) == 0
    assert "test      the other 9, 20% of every class" in capsys.readouterr().out


def test_probe_what_is_wrong(trained: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    path, checkpoint = trained
    refused(capsys, ["probe", path], "either a checkpoint or the features")
    refused(capsys, ["probe", path, checkpoint, "--features", "f.npz"], "one of the two")
    refused(capsys, ["probe", path, checkpoint, "--test-features", "f.npz"], "--test-features needs --features")
    refused(capsys, ["probe", path, "--features", "f.npz", "--drop-neck"], "--drop-neck needs a checkpoint")
    refused(capsys, ["probe", path, "--features", "f.npz"], "'f.npz' do not exist")
    Path("f.npz").write_text("no features")
    refused(capsys, ["probe", path, "--features", "f.npz"], "'f.npz' is not a table of features")
    refused(capsys, ["probe", path, checkpoint, "--out", "run"], "'run' is a folder")
    refused(capsys, ["probe", path, checkpoint, "--cfg-options", "data.dataset.type=Blob"], "did you mean 'Blobs'")


def test_probe_without_labels_or_with_other_classes(
    trained: tuple[str, str], capsys: pytest.CaptureFixture[str], write: Write
) -> None:
    path, checkpoint = trained
    plain = "\nfrom odc.registry import DATASETS\nfrom small_heads import Blobs\n\n\n"
    plain += "@DATASETS.register_module(force=True)\nclass Plain(Blobs):\n"
    plain += "    def __init__(self, classes=None):\n        super().__init__(20)\n        self.classes = classes\n"
    plain += "        self.targets = self.targets if classes else None\n"
    Path("plain_set.py").write_text(plain)
    more = "custom_imports['imports'] += ['plain_set']"
    path = write("odc", more=more)
    refused(capsys, ["probe", path, checkpoint, "--cfg-options", "data.dataset.type=Plain"], "20 images", "no labels")
    other = ["data.eval_dataset.type=Plain", "data.eval_dataset.classes=(a,b,d)"]
    refused(capsys, ["probe", path, checkpoint, "--cfg-options", *other], "3 classes", "'c'")


def test_the_linear_metric_runs_during_training(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("dc", **{"val_evaluator": [dict(type="LinearProbe", max_samples=40)], "train_cfg.max_epochs": 1})
    assert main(["train", path, "--work-dir", "run"]) == 0
    value = json.loads(Path("run/metrics.json").read_text())["linear"]
    assert f"evaluation  linear {value:.4f}" in capsys.readouterr().out
    refused(capsys, ["train", path, "--cfg-options", "val_evaluator.0.sed=1"], "'sed'", "did you mean 'seed'")


def test_long_work_says_how_far_it_is(
    trained: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("odc.evaluation.probes._FIRST_NOTE_S", 0.0)
    assert main(["probe", *trained]) == 0
    assert re.search(r"linear probe: 3 of 7 fits, about \d+ s left", capsys.readouterr().out)
