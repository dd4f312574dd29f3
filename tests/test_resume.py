"""A resumed or repeated training ends in the files of an unbroken one, or is refused in one line."""

from __future__ import annotations

import contextlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook
from small_heads import HEAD_CONFIGS, config
from test_conformance import differences
from test_files import small_files

from odc.apis import build_runner, train
from odc.checkpoints import load_plain
from odc.data.datasets import ArrayDataset
from odc.errors import InputError
from odc.evaluation import gallery
from odc.evaluation.evaluator import Evaluation
from odc.files import alone

OFTEN = {"train_cfg.val_interval": 1, "default_hooks.checkpoint.save_best": "acc"}
RESULTS = ("clusters.csv", "clusters.png", "metrics.json", ".results.json")


class Stop(Hook):
    """End the process, or what stands for it here, at a chosen call of a chosen hook."""

    priority = "LOWEST"

    def __init__(self, where: str, number: int) -> None:
        self.left = number
        setattr(self, where, self.count)

    def count(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def interrupted(name: str, folder: Path, where: str, number: int, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(config(name, str(folder), **options), [Stop(where, number)])


def same_end(one: Path, two: Path) -> None:
    names = {p.name for p in one.glob("*.pth")} | {n for n in RESULTS if (one / n).exists()}
    assert names == {p.name for p in two.glob("*.pth")} | {n for n in RESULTS if (two / n).exists()}
    for name in names:
        if not name.endswith(".pth"):
            assert (one / name).read_bytes() == (two / name).read_bytes(), name
            continue
        a, b = load_plain(one / name), load_plain(two / name)
        assert not [
            d for key in ("state_dict", "optimizer", "loop") for d in differences(a.get(key), b.get(key), key)
        ], name


def scalars(folder: Path) -> dict[int, dict[str, float]]:
    """Return the numbers of the evaluations by epoch."""
    found: dict[int, dict[str, float]] = {}
    for file in sorted(folder.glob("*/vis_data/scalars.json")):
        for line in file.read_text().splitlines():
            values = json.loads(line)
            found.setdefault(values["step"], {}).update({k: v for k, v in values.items() if k.startswith("val/")})
    return found


# ----------------------------------------------------------------------------------------- the same end, wherever


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    train(config("odc", str(folder), **OFTEN))
    return folder


@pytest.mark.parametrize(
    ("where", "number"),
    [
        ("before_val", 1),  # between the checkpoint of the first epoch and its evaluation
        ("after_val_epoch", 1),  # after it, before anything remembers
        ("before_val", 2),  # after the last checkpoint, before any result
        ("after_train", 1),  # all is done but the results
    ],
)
def test_an_evaluation_that_a_kill_has_cut_off_is_made_up_for(
    where: str, number: int, unbroken: Path, tmp_path: Path
) -> None:
    interrupted("odc", tmp_path, where, number, **OFTEN)
    assert not (tmp_path / "metrics.json").exists()
    values = train(config("odc", str(tmp_path), resume=True, **OFTEN))
    same_end(unbroken, tmp_path)
    assert scalars(tmp_path) == scalars(unbroken)
    assert {1, 2} <= scalars(tmp_path).keys()
    assert values["epochs"] == 2
    assert "acc" in values


@pytest.mark.parametrize("name", ["clusters.png", "metrics.json"])
def test_results_that_are_damaged_are_made_again_and_others_left_alone(name: str, tmp_path: Path) -> None:
    before = train(config("odc", str(tmp_path)))
    whole = {n: (tmp_path / n).read_bytes() for n in RESULTS}
    (tmp_path / name).write_bytes(whole[name][:-7])
    assert train(config("odc", str(tmp_path), resume=True)) == before
    assert {n: (tmp_path / n).read_bytes() for n in RESULTS} == whole
    times = {n: (tmp_path / n).stat().st_mtime_ns for n in RESULTS}

    class Never(Hook):
        def before_val(self, runner: Any) -> None:
            raise AssertionError("there was nothing to evaluate")

    assert train(config("odc", str(tmp_path), resume=True), [Never()]) == before
    assert {n: (tmp_path / n).stat().st_mtime_ns for n in RESULTS} == times


def test_results_of_an_earlier_end_are_not_those_of_a_longer_training(tmp_path: Path) -> None:
    longer = {"train_cfg.max_epochs": 3}
    train(config("odc", str(tmp_path / "a")))
    interrupted("odc", tmp_path / "a", "before_val", 2, resume=True, **{**longer, "train_cfg.val_interval": 1})
    train(config("odc", str(tmp_path / "a"), resume=True, **{**longer, "train_cfg.val_interval": 1}))
    assert json.loads((tmp_path / "a/.results.json").read_text())["epochs"] == 3


def test_moco_leaves_metrics_without_clusters(tmp_path: Path) -> None:
    values = train(config("moco", str(tmp_path)))
    assert not (tmp_path / "clusters.csv").exists()
    (tmp_path / "metrics.json").unlink()
    assert train(config("moco", str(tmp_path), resume=True)) == values
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert set(found) == values.keys() - {"epochs", "images_seen"} | {"precision"}


def test_interruptions_leave_two_checkpoints_and_in_the_end_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"train_cfg.max_epochs": 3}
    train(config("odc", str(tmp_path / "whole"), **options))

    class Signal(Hook):
        def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
            runner.train_loop._signals.asked = 15

    for steps in range(1, 9):
        resume = {"resume": True} if steps > 1 else {}
        with pytest.raises(SystemExit):
            train(config("odc", str(tmp_path / "part"), **resume, **options), [Signal()])
        names = {p.name for p in (tmp_path / "part").glob("*.pth")}
        assert f"iter_{steps}.pth" in names
        assert len(names) <= 2, names
    train(config("odc", str(tmp_path / "part"), resume=True, **options))
    same_end(tmp_path / "whole", tmp_path / "part")


def test_cached_features_count_once_however_often_a_chunk_is_resumed(tmp_path: Path) -> None:
    whole = train(config("spice-self", str(tmp_path / "whole")))
    for number in (1, 3):
        interrupted(
            "spice-self",
            tmp_path / "part",
            "after_train_iter",
            number,
            resume=number > 1,
            **{"default_hooks.checkpoint": dict(type="CheckpointHook", by_epoch=False, interval=1)},
        )
    part = train(config("spice-self", str(tmp_path / "part"), resume=True))
    assert part["images_seen"] == whole["images_seen"] > 0


# ---------------------------------------------------------------------------------------------- refused in one line


@pytest.mark.parametrize("name", ["odc", "moco", "spice-self", "spice-semi", "classifier"])
def test_other_images_are_refused_whatever_the_head(name: str, tmp_path: Path) -> None:
    interrupted(name, tmp_path, "after_train_epoch", 1)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file() and p.suffix != ".npz"}
    options = {"data.dataset.n": 49} if name != "spice-semi" else {"data.dataset.n": 49, "train_cfg.label_file": None}
    with pytest.raises(InputError, match=r"data.dataset has 49 images with fingerprint \w+, but .* had 48") as error:
        train(config(name, str(tmp_path), resume=True, **options))
    assert "\n" not in str(error.value)
    after = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file() and p.suffix != ".npz"}
    assert after == before, "not even the config is another"


def test_images_of_another_content_and_other_evaluated_ones_are_refused(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"data\.eval_dataset has 20 images .* odc test evaluates"):
        train(config("odc", str(begun), resume=True, **{"data.eval_dataset": dict(type="Blobs", n=20)}))
    monkeypatch.setattr(ArrayDataset, "fingerprint", "0123456789abcdef")
    with pytest.raises(InputError, match=r"48 images with fingerprint 0123456789abcdef, but .* had 48 images"):
        train(config("odc", str(begun), resume=True))


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was interrupted, for those that are refused: they leave it as it is."""
    folder = tmp_path_factory.mktemp("begun")
    interrupted("odc", folder, "after_train_epoch", 1)
    return folder


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model.head.num_clusters": 5}, "model.head.num_clusters is 5 and was 4"),
        ({"model.head.batch_size": 8}, "model.head.batch_size is 8 and was 16"),
        ({"model.ema": 0.9}, "model.ema is 0.9 and was not set"),
        ({"data.batched": False}, "data.batched is false and was not set"),
        ({"data.views.train": [dict(type="ToFloat")]}, "data.views.train is "),
        ({"optim_wrapper.optimizer": dict(type="Adam", lr=0.1, _delete_=True)}, 'type is "Adam" and was "SGD"'),
        ({"model.head": dict(HEAD_CONFIGS["dc"], _delete_=True)}, 'model.head.type is "DeepClusterHead"'),
    ],
)
def test_other_settings_are_refused(options: dict[str, Any], words: str, begun: Path) -> None:
    with pytest.raises(InputError, match="put them back, or start anew in another --work-dir") as error:
        train(config("odc", str(begun), resume=True, **options))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_a_new_training_may_take_from_another(tmp_path: Path) -> None:
    """What the refusal advises works: the backbone alone, for another K and another head."""
    train(config("odc", str(tmp_path / "a")))
    options = {"model.pretrained": str(tmp_path / "a/epoch_2.pth"), "model.head.num_clusters": 5}
    train(config("dc", str(tmp_path / "b"), **options))


def test_what_may_change_is_taken(tmp_path: Path) -> None:
    options = {"train_cfg.max_epochs": 3, "data.extract_batch_size": 7, "train_cfg.schedule": dict(type="Constant")}
    options |= {"data.batched": None, "data.num_workers": 1}  # the first is what it was
    interrupted("odc", tmp_path, "after_train_epoch", 1)
    assert train(config("odc", str(tmp_path), resume=True, **options))["epochs"] == 3


# ---------------------------------------------------------------------------------------------- optimiser options


def groups(file: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = load_plain(file)["optimizer"]["param_groups"]
    return found


def test_other_options_of_the_optimiser_are_applied_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("odc.logs.warn", said.append)
    interrupted("odc", tmp_path, "after_train_epoch", 1)
    rate = groups(tmp_path / "epoch_1.pth")[0]["lr"] / 0.05
    options = {"lr": 0.01, "momentum": 0.5, "weight_decay": 0.1}
    more = {f"optim_wrapper.optimizer.{name}": value for name, value in options.items()}
    runner = build_runner(config("odc", str(tmp_path), resume=True, **more))
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.resume(str(tmp_path / "epoch_1.pth"))
    (group,) = runner.optim_wrapper.optimizer.param_groups
    assert group["lr"] == pytest.approx(0.01 * rate)
    assert said == [
        "the training goes on with lr=0.01 instead of 0.05, momentum=0.5 instead of 0.9, weight_decay=0.1 instead of "
        "0, as the config says"
    ]
    train(config("odc", str(tmp_path), resume=True, **more))
    (group,) = groups(tmp_path / "epoch_2.pth")
    assert {name: group[name] for name in options} | {"lr": group["initial_lr"]} == options
    said.clear()
    train(config("odc", str(tmp_path), resume=True, **more))
    assert not said, "nothing has changed"


def test_options_that_need_what_was_not_kept_are_refused(tmp_path: Path) -> None:
    adam = {"optim_wrapper.optimizer": dict(type="Adam", lr=0.01, _delete_=True)}
    interrupted("odc", tmp_path, "after_train_epoch", 1, **adam)
    with pytest.raises(InputError, match="saved without what Adam needs to go on with amsgrad=True instead of False"):
        train(config("odc", str(tmp_path), resume=True, **adam, **{"optim_wrapper.optimizer.amsgrad": True}))
    train(config("odc", str(tmp_path), resume=True, **adam, **{"optim_wrapper.optimizer.betas": (0.8, 0.9)}))
    assert groups(tmp_path / "epoch_2.pth")[0]["betas"] == (0.8, 0.9)


# ------------------------------------------------------------------------------------------------------- the folder


def test_a_training_that_begins_in_a_used_folder_sets_the_old_one_aside(tmp_path: Path) -> None:
    train(config("odc", str(tmp_path / "run"), **{"train_cfg.max_epochs": 3}))
    (tmp_path / "run/notes.txt").touch()
    old = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir() if p.suffix in (".pth", ".csv", ".png")}
    train(config("odc", str(tmp_path / "run")))
    assert {p.name for p in (tmp_path / "run").glob("*.pth")} == {"epoch_1.pth", "epoch_2.pth"}
    assert {n: (tmp_path / "run/earlier-1" / n).read_bytes() for n in old} == old
    assert (tmp_path / "run/notes.txt").exists()
    elsewhere = {"load_from": str(tmp_path / "run/earlier-1/epoch_2.pth"), "train_cfg.max_epochs": 3}
    train(config("odc", str(tmp_path / "run"), resume=True, **elsewhere))
    assert (tmp_path / "run/earlier-2/epoch_2.pth").exists()
    assert {p.name for p in (tmp_path / "run").glob("*.pth")} == {"epoch_3.pth"}
    with pytest.raises(InputError, match=r"model.pretrained='.*' belongs to the training that .*: choose another"):
        train(config("dc", str(tmp_path / "run"), **{"model.pretrained": str(tmp_path / "run/epoch_3.pth")}))


def test_a_wrong_config_moves_nothing_and_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        train(config("odc", str(tmp_path / "new"), **{"model.head.num_cluster": 3}))
    assert not (tmp_path / "new").exists()
    train(config("odc", str(tmp_path / "run")))
    with pytest.raises(InputError):
        train(config("odc", str(tmp_path / "run"), **{"data.dataset.m": 3}))
    assert (tmp_path / "run/epoch_2.pth").exists()


def test_the_folder_is_locked_while_it_is_trained_in(tmp_path: Path) -> None:
    held: list[str] = []

    class Look(Hook):
        def after_train_epoch(self, runner: Any) -> None:
            held.append((tmp_path / ".lock").read_text())

    train(config("odc", str(tmp_path)), [Look()])
    assert len(held) == 2
    assert held[0].startswith("process ")
    with alone(tmp_path):
        pass


def test_another_number_of_processes_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = build_runner(config("odc", str(tmp_path)))
    state = runner.train_loop.state_dict()
    said: list[str] = []
    monkeypatch.setattr(runner.logger, "warning", said.append)
    runner.train_loop.load_state_dict(state)
    assert not said
    runner.train_loop.load_state_dict({**state, "ranks": 4})
    assert len(said) == 1
    assert "trained on 4 processes, this run has 1" in said[0]


# ------------------------------------------------------------------------------------------------ disks and pictures


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File too large") as error, small_files():
        train(config("odc", str(tmp_path)))
    assert Path(error.value.filename).is_relative_to(tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_log_that_cannot_be_written_stops_the_run(tmp_path: Path) -> None:
    runner = build_runner(config("odc", str(tmp_path)))
    (handler,) = (h for h in runner.logger.handlers if isinstance(h, logging.FileHandler))
    full = Path("/dev/full").open("w")  # noqa: SIM115  # closing it fails, too
    stream, handler.stream = handler.stream, full
    with pytest.raises(OSError, match="No space left on device") as error:
        runner.logger.warning("x")
    handler.stream = stream
    with contextlib.suppress(OSError):
        full.close()
    assert error.value.filename == handler.baseFilename


def test_the_picture_leaves_out_an_image_that_is_gone(tmp_path: Path) -> None:
    class Gone(ArrayDataset):
        def image(self, i: int) -> torch.Tensor:
            if i == 1:
                raise InputError("'b' cannot be read")
            return super().image(i)

    images = torch.full((4, 1, 8, 8), 255, dtype=torch.uint8)
    images[2] = 0
    dataset = Gone(images, list("abcd"))
    scores = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    gallery.write_clusters(dataset, Evaluation(torch.zeros(4, 2), scores, None), tmp_path)
    assert len((tmp_path / "clusters.csv").read_text().splitlines()) == 5
    drawn = gallery.draw_clusters(dataset, scores.argmax(1), scores.amax(1))
    left = gallery._MARGIN + 10
    assert drawn.getpixel((left, 20)) == (0, 0, 0), "the next takes its place"
