"""What the command line does, and what one reads when the input is wrong: one line on stderr and exit code 2."""

from __future__ import annotations

import csv
import json
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_heads import config
from test_conformance import differences

import odc
from odc.checkpoints import load_plain
from odc.cli import arguments, main
from odc.config.checking import PACKAGES

ROOT = Path(__file__).parent.parent
Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Return a function that writes the config of a small head and returns its path; the work is done beside it."""
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)

    def write(head: str = "dc", name: str = "small.py", more: str = "", **options: Any) -> str:
        cfg = config(head, "unused", **options).to_dict()
        del cfg["work_dir"]
        cfg["log_level"] = "INFO"
        lines = ["custom_imports = dict(imports=['small_heads'])", *(f"{k} = {v!r}" for k, v in cfg.items()), more]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return name

    yield write
    sys.path[:] = path


def refused(capsys: pytest.CaptureFixture[str], argv: list[str], *words: str) -> str:
    """Check that a command ends with 2 and one line on stderr with these words; return the line."""
    capsys.readouterr()
    code = main(argv)
    err = capsys.readouterr().err
    assert code == 2, f"exit code {code}"
    assert err.startswith("odc: error: ")
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err, err
    return err


def pictures(folder: Path, n: int = 24) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(rng.integers(0, 255, (9, 10), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return folder


FOLDER = """
data['dataset'] = dict(type='ImageFolder', root='pictures', grey=True)
for _view in data['views'].values():
    _view.insert(0, dict(type='Resize', size=[8, 8]))
"""


# -- what is right ---------------------------------------------------------------------------------------------------


def test_train_then_test(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", write(), "--work-dir", "run"]) == 0
    seen = capsys.readouterr()
    assert seen.err == ""
    lines = [line.split(" - INFO - ", 1)[1] for line in seen.out.splitlines()]
    starts = [
        "images of 1×8×8 stay in memory",
        "48 images in memory",
        "the modules of custom_imports lie beside the config: small_heads.py",
        "pre-flight on 48 images",
        "epoch 1/2  loss",
        "epoch 2/2  loss",
        "evaluation  acc",
        "clusters of 48 images",
    ]
    assert len(lines) == len(starts), "more or fewer lines than a user wants to read"
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True)), lines

    assert main(["test", "small.py", "run/epoch_2.pth", "--out", "out", "--work-dir", "tested"]) == 0
    out = Path("out")
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == json.loads(Path("run/metrics.json").read_text())
    quality = {"acc", "nmi", "nmi_geometric", "ari", "acc_many_to_one"}  # of four clusters and three classes
    assert quality | {"entropy", "empty", "knn", "precision"} == set(metrics)
    with (out / "clusters.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [f"{i:03d}" for i in range(48)]
    clusters = {int(row["cluster"]) for row in rows}
    assert clusters <= set(range(4))
    ranks = sorted(float(row["confidence"]) for row in rows)
    assert ranks == pytest.approx([(i + 1) / 48 for i in range(48)], abs=1e-5)
    with Image.open(out / "clusters.png") as picture:
        assert picture.format == "PNG"
        assert picture.height > 60 * len(clusters), "a row of 64 pixels for each cluster"
    assert (out / "clusters.csv").read_bytes() == Path("run/clusters.csv").read_bytes()


def test_resume_finds_the_newest_and_says_when_all_is_done(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write()
    assert main(["train", path, "--work-dir", "whole"]) == 0
    assert main(["train", path, "--work-dir", "part", "--cfg-options", "train_cfg.max_epochs=1"]) == 0
    assert main(["train", path, "--work-dir", "part", "--resume"]) == 0
    assert "resumed part/epoch_1.pth at epoch 1" in capsys.readouterr().out.replace(f"{Path.cwd()}/", "")
    assert main(["train", path, "--work-dir", "whole", "--resume"]) == 0
    assert "nothing to train: 2 of 2 epochs are done" in capsys.readouterr().out
    assert main(["train", path, "--work-dir", "again", "--resume", "whole/epoch_1.pth"]) == 0
    whole, again = (load_plain(f"{name}/epoch_2.pth") for name in ("whole", "again"))
    assert not differences(whole["state_dict"], again["state_dict"])


def test_options_reach_the_run(write: Write) -> None:
    path = write(name="base.py")
    Path("child.py").write_text("_base_ = ['base.py']\nmodel = dict(head=dict(num_clusters=5))\n")
    options = ["--cfg-options", "train_cfg.max_epochs=1", "model.head.batch_size=8"]
    assert main(["train", "child.py", *options, "--seed", "11", "--amp"]) == 0
    checkpoint = load_plain("work_dirs/child/epoch_1.pth")
    assert checkpoint["state_dict"]["head.classifier.weight"].shape == (5, 8)
    assert checkpoint["meta"]["iter"] == 6, "48 rows, 8 a step"
    assert checkpoint["loop"]["seed"] == 11
    dump = Path("work_dirs/child/child.py")  # beside it is the module that it imports
    assert "precision = 'bfloat16'" in dump.read_text()
    assert main(["train", path, *options, "--work-dir", "other", "--seed", "11"]) == 0
    other = load_plain("other/epoch_1.pth")["state_dict"]
    a, b = checkpoint["state_dict"]["backbone.layers.0.weight"], other["backbone.layers.0.weight"]
    assert a.dtype == b.dtype == torch.float32
    assert not torch.equal(a, b)


def test_clusters_is_short_for_the_option_of_the_head(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write()
    assert main(["train", path, "--clusters", "3", "--cfg-options", "train_cfg.max_epochs=1", "--work-dir", "run"]) == 0
    assert load_plain("run/epoch_1.pth")["state_dict"]["head.classifier.weight"].shape[0] == 3
    refused(capsys, ["train", path, "--clusters", "0"], "--clusters must be at least 1, not 0")
    refused(capsys, ["train", write("moco", "moco.py"), "--clusters", "3"], "'num_clusters'", "MoCoHead")


def test_a_recipe_and_a_comparison_are_no_training(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["train", "spice_digits"], "spice_digits.py is a recipe", "odc run")
    refused(capsys, ["print-config", "comparisons/digits"], "digits.py is a comparison", "odc compare --dataset")


def test_help_imports_nothing_heavy() -> None:
    code = """if True:
        import contextlib, sys
        from odc.cli.main import COMMANDS, main
        for argv in ([], *([command.name] for command in COMMANDS)):
            with contextlib.suppress(SystemExit):
                main([*argv, "--help"])
        heavy = {"torch", "torchvision", "mmengine", "numpy", "scipy", "sklearn", "matplotlib", "faiss", "cv2", "PIL"}
        print(sorted(heavy & sys.modules.keys()), file=sys.stderr)
    """
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stderr == "[]\n"
    assert "print-config" in run.stdout


def test_print_config_shows_what_is_inherited(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write(name="base.py")
    Path("child.py").write_text("_base_ = 'base.py'\ntrain_cfg = dict(max_epochs=9)\n")
    assert main(["print-config", "child.py", "--cfg-options", "model.head.num_clusters=77"]) == 0
    printed = capsys.readouterr().out
    Path("printed.py").write_text(printed)
    for text in ("max_epochs=9", "val_interval=2", "num_clusters=77", "type='ConvNet'"):
        assert text in printed
    assert main(["print-config", "printed.py"]) == 0
    assert capsys.readouterr().out == printed


def test_custom_imports_from_a_file_beside_the_config(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path("elsewhere")
    folder.mkdir()
    (folder / "beside_the_config.py").write_text(
        "from odc.heads import DeepClusterHead\nfrom odc.registry import HEADS\n\n\n"
        "@HEADS.register_module(force=True)\nclass Beside(DeepClusterHead):\n    pass\n"
    )
    path = write(name="elsewhere/small.py", more="custom_imports['imports'] += ['beside_the_config']")
    assert main(["train", path, "--cfg-options", "model.head.type=Beside", "train_cfg.max_epochs=1"]) == 0
    monkeypatch.delitem(sys.modules, "beside_the_config")


# -- what is wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("model.head.pca_dims=3", ["'pca_dims'", "did you mean 'pca_dim'"]),
        ("model.head.num_clusters=many", ["'num_clusters' must be int, not 'many'"]),
        ("model.head.num_clusters=0", ["num_clusters", "at least 1", "0"]),
        ("model.head.num_clusters=True", ["'num_clusters' must be int, not True"]),
        ("model.hed=1", ["'hed'", "did you mean 'head'"]),
        ("model.type=ClusterModl", ["'ClusterModl'", "did you mean 'ClusterModel'"]),
        ("model.backbone.widths=3", ["'widths' must be tuple, not 3"]),
        ("model.backbone.in_channels=3", ["images have 1 channels", "takes 3", "model.backbone.in_channels"]),
        ("data.dataste=1", ["'dataste'", "did you mean 'dataset'"]),
        ("data.dataset.label_sed=1", ["'label_sed'", "did you mean 'label_seed'"]),
        ("data.dataset.type=Blob", ["'Blob'", "did you mean 'Blobs'"]),
        ("data.views.train.0.siz=3", ["RandomCrop", "'siz'", "did you mean 'size'"]),
        ("data.views.train.0.type=RandomCorp", ["'RandomCorp'", "did you mean 'RandomCrop'"]),
        ("data.views.train.0.size=99", ["RandomCrop failed", "(99, 99)"]),
        ("data.views.train=1", ["data.views.train must be a list"]),
        ("data.num_workers=-1", ["num_workers", "-1"]),
        ("data.extract_batch_size=0", ["data.extract_batch_size", "at least 1", "0"]),
        ("train_cfg.max_epoch=3", ["'max_epoch'", "did you mean 'max_epochs'"]),
        ("train_cfg.max_epochs=two", ["'max_epochs' must be int, not 'two'"]),
        ("train_cfg.max_epochs=0", ["max_epochs", "at least 1", "0"]),
        (
            "train_cfg.type=EpochBasedTrainLoop",
            ["'train_cfg.type' is not for this training: one loop"],
        ),
        ("train_cfg.schedule.type=Cosin", ["'Cosin'", "did you mean 'Cosine'"]),
        ("train_cfg.schedule=Cosine", ["'schedule' must be dict or None, not 'Cosine'"]),
        ("optim_wrapper.optimizer.momentun=0.3", ["'momentun'", "did you mean 'momentum'"]),
        ("optim_wrapper.optimizer.type=SGDD", ["'SGDD'", "did you mean 'SGD'"]),
        ("optim_wrapper.optimizer.lr=-1", ["optimizer 'SGD' does not take lr=-1", "Invalid learning rate"]),
        ("optim_wrapper.optimizer.lr=fast", ["optimizer 'SGD' does not take lr='fast'"]),
        ("optim_wrapper.optimiser.lr=1", ["'optimiser'", "did you mean 'optimizer'"]),
        ("optim_wrapper.type=AmpOptimWraper", ["'AmpOptimWraper'", "did you mean 'OptimWrapper'"]),
        ("optim_wrapper.constructor=ByNam", ["'ByNam'", "did you mean 'ByName'"]),
        ("optim_wrapper.clip_grad.max_nrm=1", ["clip_grad", "'max_nrm'", "did you mean 'max_norm'"]),
        ("default_hooks.checkpoint.intervl=1", ["CheckpointHook", "'intervl'", "did you mean 'interval'"]),
        ("default_hooks.checkpoit.interval=1", ["'checkpoit'", "did you mean 'checkpoint'"]),
        ("custom_hooks.0.second=1", ["ProgressHook", "'second'", "did you mean 'seconds'"]),
        ("custom_hooks.0.type=ProgresHook", ["'ProgresHook'", "did you mean 'ProgressHook'"]),
        ("val_evaluator.0.type=ClusterMetric", ["'ClusterMetric'", "did you mean 'ClusterMetrics'"]),
        ("val_evaluator.1.kk=3", ["KNNMetric", "'kk'", "did you mean 'k'"]),
        ("visualizer.type=Visualize", ["'Visualize'", "did you mean 'Visualizer'"]),
        ("randomness.sed=1", ["'sed'", "did you mean 'seed'"]),
        ("randomness=5", ["randomness", "5"]),
        ("randomness.seed=None", ["randomness.seed is not set"]),
        ("log_level=INFOS", ["'INFOS'", "did you mean 'INFO'"]),
        ("trian_cfg=1", ["'trian_cfg'", "did you mean 'train_cfg'"]),
        ("model.head.num_clusters=49", ["49 clusters", "48 samples"]),
        ("model.head.batch_size=0", ["'train'", "0 rows", "model.head.batch_size"]),
        ("load_from=nothing.pth", ["'nothing.pth' does not exist"]),
    ],
)
def test_wrong_settings(option: str, words: list[str], write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["train", write(), "--work-dir", "run", "--cfg-options", option], *words)
    assert not list(Path().glob("run/*.pth"))


def test_clusters_that_the_samples_cannot_fill(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", write("odc"), "--cfg-options"]
    line = refused(capsys, [*train, "model.head.min_cluster=20"], "4 clusters", "20 samples", "80", "48")
    assert "lower the number of clusters to 2 or min_cluster to 12" in line
    line = refused(capsys, [*train, "model.head.num_clusters=49", "model.head.min_cluster=1"], "49 clusters", "48")
    assert "lower the number of clusters to 48\n" in line
    line = refused(capsys, [*train, "model.head.min_cluster=50"], "4 clusters", "200", "48")
    assert "lower min_cluster to 12\n" in line
    line = refused(capsys, [*train, "model.head.num_clusters=49", "model.head.min_cluster=50"], "49 clusters")
    assert "lower the number of clusters to 48 and min_cluster to 1\n" in line


def test_configs_that_cannot_be_read(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write(name="there.py")
    refused(capsys, ["train", "their.py"], "'their.py' does not exist", "did you mean", "there.py")
    refused(capsys, ["print-config", "no/such/folder.py"], "'no/such/folder.py' does not exist")
    Path("broken.py").write_text("model = dict(\n")
    refused(capsys, ["train", "broken.py"], "broken.py", "line 1")
    Path("short.py").write_text("model = dict(type='ClusterModel')\n")
    refused(capsys, ["train", "short.py"], "short.py", "'data'")
    refused(capsys, ["train", write(more="custom_imports['imports'] += ['no_such_module']")], "'no_such_module'")


def test_folders_of_pictures(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(more=FOLDER)
    refused(capsys, ["train", path], "image folder pictures does not exist", str(Path.cwd() / "pictures"))
    folder = pictures(Path("pictures"))
    for i in range(5):
        (folder / f"note{i}.jpg").write_text("this is no picture")
    assert main(["train", path, "--work-dir", "run"]) == 0
    out = capsys.readouterr().out
    (warning,) = [line for line in out.splitlines() if "WARNING" in line]
    assert "skipped 5 of 29 files under pictures" in warning
    (log,) = Path("run").rglob("*.log")
    assert "skipped 5 of 29 files under pictures" in log.read_text()
    assert "5 not an image (note0.jpg, note1.jpg, ...)" in warning
    rows = Path("run/skipped.csv").read_text().splitlines()
    assert rows == ["path,reason", *(f"note{i}.jpg,not an image" for i in range(5))]
    assert "all files that were skipped, and why: run/skipped.csv" in out
    assert "24 images under pictures (no labels)" in out
    assert set(json.loads(Path("run/metrics.json").read_text())) == {"entropy", "empty", "precision"}
    refused(capsys, ["train", path, "--strict"], "5 of 29 files", "5 not an image (note0.jpg,")
    Path("empty").mkdir()
    refused(capsys, ["train", path, "--cfg-options", "data.dataset.root=empty"], "no image under empty")


def test_damaged_pictures_do_not_end_a_training(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(more=FOLDER)
    folder = pictures(Path("pictures"))
    whole = (folder / "23.png").read_bytes()
    (folder / "24.png").write_bytes(whole[:60])
    place = whole.index(b"IDAT") + 8
    (folder / "25.png").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
    refused(capsys, ["train", path, "--work-dir", "run", "--strict"], "24.png")
    assert main(["train", path, "--work-dir", "run"]) == 0
    out = capsys.readouterr().out
    assert "skipped 1 of 26 files under pictures" in out
    assert "cannot decode pictures/25.png" in out
    assert "another image stands in for 25.png" in out
    clusters = Path("run/clusters.csv").read_text()
    assert len(clusters.splitlines()) == 25
    assert "25.png" not in clusters
    skipped = Path("run/skipped.csv").read_text()
    assert "24.png" in skipped
    assert '25.png,"cannot decode pictures/25.png' in skipped
    (folder / "24.png").unlink()
    (folder / "25.png").unlink()
    assert main(["train", path, "--work-dir", "run3"]) == 0
    assert not Path("run3/skipped.csv").exists()


def test_checkpoints_that_do_not_fit(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(**{"train_cfg.max_epochs": 1})
    assert main(["train", path, "--work-dir", "run"]) == 0
    checkpoint = "run/epoch_1.pth"
    line = refused(
        capsys, ["test", path, checkpoint, "--cfg-options", "model.head.num_clusters=7"], checkpoint, "does not fit"
    )
    assert "head.classifier.weight: file (4, 8), model (7, 8)" in line
    line = refused(capsys, ["test", write("odc", "odc.py"), checkpoint], checkpoint, "6 missing", "3 unexpected")
    assert "head.memory.sum" in line
    assert "head.projection" in line
    refused(capsys, ["train", "odc.py", "--resume", checkpoint], "other settings: model.head.type is")
    for argv in (["test", path, "run/epoch_9.pth"], ["train", path, "--resume", "run/epoch_9.pth"]):
        refused(capsys, argv, "'run/epoch_9.pth' does not exist")
    Path("text.pth").write_text("no checkpoint")
    refused(capsys, ["test", path, "text.pth"], "'text.pth' is damaged")
    refused(capsys, ["test", path, checkpoint, "--cfg-options", "val_evaluator=None"], "no val_evaluator")


def test_folders_that_cannot_be_written(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write()
    Path("file").write_text("")
    refused(capsys, ["train", path, "--work-dir", "file/run"], "cannot make the folder file/run")
    refused(capsys, ["test", path, "x.pth", "--out", "file/run"], "cannot make the folder file/run")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere: there is no such folder for it
    refused(capsys, ["train", path, "--work-dir", "locked"], "cannot write to the folder locked", "permission denied")


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["trian"], ["train"], ["test", "config.py"], ["train", "c.py", "--launcher", "rocket"]):
        with pytest.raises(SystemExit) as error:
            main(argv)
        assert error.value.code == 2
        assert "usage: odc" in capsys.readouterr().err
    with pytest.raises(SystemExit) as error:
        main(["train", "--help"])
    assert error.value.code == 0
    told = capsys.readouterr().out
    for option in ("--work-dir", "--resume", "--amp", "--cfg-options", "--launcher", "--seed", "--strict"):
        assert option in told


# -- the same in OpenMMLab's places ----------------------------------------------------------------------------------


def environment(**more: str) -> dict[str, str]:
    search = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def test_train_in_a_process_of_its_own(write: Write) -> None:
    path = write(**{"train_cfg.max_epochs": 1})
    command = [sys.executable, str(ROOT / "tools" / "train.py"), path, "--work-dir", "run"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "clusters of 48 images: run/clusters.csv and run/clusters.png" in done.stdout


@pytest.mark.parametrize(
    ("tool", "argv", "code", "out", "err"),
    [
        ("print_config", ["small.py"], 0, "type='ClusterModel'", ""),
        ("test", ["small.py", "no.pth"], 2, "48 images", "odc: error: checkpoint 'no.pth' does not exist"),
        ("train", ["no.py"], 2, "", "odc: error: config 'no.py' does not exist"),
    ],
)
def test_tools_are_the_same_commands(
    tool: str,
    argv: list[str],
    code: int,
    out: str,
    err: str,
    write: Write,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write()
    monkeypatch.setattr(sys, "argv", [f"tools/{tool}.py", *argv])
    with pytest.raises(SystemExit) as error:
        runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
    assert error.value.code == code
    seen = capsys.readouterr()
    assert out in seen.out
    assert seen.err.startswith(err)


def test_dist_train_trains_on_two_processes(write: Write) -> None:
    path = write("odc", **{"train_cfg.max_epochs": 1})
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    done = subprocess.run(
        [str(ROOT / "tools" / "dist_train.sh"), path, "2", "--work-dir", "run"],
        env=environment(PORT=str(port), PYTHON=sys.executable),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("epoch 1/1  loss") == 1, "every rank writes the log"
    for name in ("epoch_1.pth", "clusters.csv", "clusters.png", "metrics.json"):
        assert (Path("run") / name).is_file()
    labels = load_plain("run/epoch_1.pth")["state_dict"]["labels.target"]
    assert labels.shape == (48, 1)
    assert int(labels.min()) >= 0
    usage = subprocess.run([str(ROOT / "tools" / "dist_train.sh")], capture_output=True, text=True)
    assert usage.returncode == 2
    assert usage.stderr.startswith("usage:")


def test_an_override_without_a_value_is_one_line(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", write(), "--cfg-options", "model.head.num_clusters"])
    assert stopped.value.code == 2
    assert "--cfg-options takes KEY=VALUE, not 'model.head.num_clusters'" in capsys.readouterr().err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"odc {odc.__version__}\n"


def test_a_reader_may_stop_reading(write: Write) -> None:
    command = [sys.executable, "-m", "odc.cli", "print-config", write()]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0


def test_curves_are_shown_where_one_asks_for_them(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(PACKAGES, "WandbVisBackend", "no_such_package")
    assert main(["train", write(), "--log", "wandb"]) == 2
    assert "WandbVisBackend needs the package no_such_package: pip install no_such_package" in capsys.readouterr().err
    # Another writer in the place of TensorBoard's, which need not be installed here.
    monkeypatch.setitem(arguments.LOGS, "tensorboard", "LocalVisBackend")
    kept: list[Any] = []
    monkeypatch.setattr("odc.apis.train", lambda cfg: kept.append(cfg))
    assert main(["train", write(), "--log", "tensorboard", "--work-dir", "run"]) == 0
    assert [backend.type for backend in kept[0].visualizer.vis_backends] == ["LocalVisBackend", "LocalVisBackend"]
