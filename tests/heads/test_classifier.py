from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from small_heads import config
from torch import Tensor

from odc.apis import build_runner
from odc.data import LabelFile, low_shot
from odc.errors import InputError
from odc.heads import ClassifierHead
from odc.memory.labels import LabelStore
from odc.structures import Batch, LocalComm, PseudoLabels, Stream, make_generator


def test_the_plan_asks_for_labelled_rows_only() -> None:
    plan = ClassifierHead(4, 3, batch_size=5).plan(7)
    assert plan.streams == (Stream("train", 5, rows="labelled"),)
    assert not plan.refresh


def labels(target: list[int], K: int) -> LabelStore:
    store = LabelStore(len(target))
    store.replace(PseudoLabels(torch.arange(len(target))[:, None], torch.tensor(target)[:, None], (K,)))
    return store


def batch(z: Tensor, target: list[int]) -> dict[str, Batch]:
    row = torch.arange(len(target))
    return {"train": Batch(row, row[:, None], row * 0, torch.tensor(target)[:, None], {"train": z[:, None]})}


def test_loss_by_hand() -> None:
    head = ClassifierHead(2, 2)
    head.classifier.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    z = torch.tensor([[math.log(3.0), 5.0], [0.0, 1.0]])
    losses = head.loss(batch(z, [1, 0]), labels([1, 0], 2).view(), make_generator(0), LocalComm())
    out = {**losses.train, **losses.log}
    # p(class 1) = 1/4 of the first row, p(class 0) = 1/2 of the second.
    assert float(out["loss"].detach()) == pytest.approx((math.log(4) + math.log(2)) / 2)
    assert float(out["accuracy"]) == 0.5  # the tie goes to class 0
    assert torch.equal(head.predict(z), z[:, :1] * torch.tensor([1.0, 0.0]))


def test_more_classes_than_the_head_has() -> None:
    head = ClassifierHead(2, 2)
    with pytest.raises(InputError, match=r"labels have 3 classes, but model\.head\.num_classes is 2: set it to 3"):
        head.loss(batch(torch.zeros(1, 2), [0]), labels([0, 2], 3).view(), make_generator(0), LocalComm())
    with pytest.raises(InputError, match="at least 2 classes, not num_classes=1"):
        ClassifierHead(2, 1)


@pytest.mark.parametrize(
    ("sizes", "fraction", "wanted"),
    [
        ([10, 10, 10], 0.5, [5, 5, 5]),
        ([10, 10, 10], 0.01, [1, 1, 1]),
        ([2, 10, 10], 0.5, [2, 4, 5]),  # 11 of 22: the small class is used up, who gets the odd one is random
        ([1, 3, 0, 9], 1.0, [1, 3, 0, 9]),
    ],
)
def test_low_shot_is_even_over_the_classes(sizes: list[int], fraction: float, wanted: list[int]) -> None:
    target = np.repeat(np.arange(-1, len(sizes)), [4, *sizes])
    out = low_shot(target, fraction, make_generator(0, "a"))
    taken = out >= 0
    assert torch.equal(out[taken], torch.from_numpy(target)[taken])
    assert not bool(taken[:4].any())  # unlabelled images stay so
    assert sorted(torch.bincount(out[taken], minlength=len(sizes)).tolist()) == sorted(wanted)
    assert torch.equal(out, low_shot(target, fraction, make_generator(0, "a")))
    if fraction < 1:
        assert not torch.equal(out, low_shot(target, fraction, make_generator(1, "a")))


def test_low_shot_draws_every_image_alike() -> None:
    target = np.array([0] * 6 + [1] * 3)
    counts = torch.zeros(9)
    for seed in range(600):
        counts += low_shot(target, 4 / 9, make_generator(seed, "a")) >= 0
    # Two of six, two of three: 200 and 400 of 600, standard deviation 11.5.
    torch.testing.assert_close(counts, torch.tensor([200.0] * 6 + [400.0] * 3), atol=50, rtol=0)


def run(tmp_path: Path, **options: object) -> tuple[Tensor, Tensor]:
    """Train; return the rows seen and the labels at the end."""
    runner = build_runner(config("classifier", str(tmp_path), **options))
    seen: list[Tensor] = []
    original = runner.model.head.loss

    def loss(batches: dict[str, Batch], *args: object) -> object:
        seen.append(batches["train"].row)
        return original(batches, *args)

    runner.model.head.loss = loss
    runner.train()
    return torch.cat(seen), runner.model.labels.target[:, 0]


def test_only_the_fraction_is_seen_and_the_log_says_so(tmp_path: Path) -> None:
    rows, target = run(tmp_path, **{"train_cfg.label_fraction": 0.25, "log_level": "INFO"})
    assert int((target >= 0).sum()) == 12
    assert torch.bincount(target[target >= 0]).tolist() == [4, 4, 4]
    assert set(rows.tolist()) == set((target >= 0).nonzero()[:, 0].tolist())
    log = next(tmp_path.rglob("*.log")).read_text()
    line = "12 of 48 rows are labelled, 3 classes, from ground truth (train_cfg.label_fraction=0.25)"
    assert log.count(line) == 1


def test_labels_from_a_file(tmp_path: Path) -> None:
    options = {"train_cfg.label_fraction": None, "train_cfg.label_file": str(tmp_path / "a.npz")}
    dataset = build_runner(config("classifier", str(tmp_path / "0"))).train_dataloader.dataset
    wanted = np.full(48, -1)
    wanted[5:25] = 1
    LabelFile(wanted, 2, dataset.fingerprint).save(tmp_path / "a.npz")
    rows, target = run(tmp_path / "1", **options)
    assert target.tolist() == wanted.tolist()
    assert set(rows.tolist()) == set(range(5, 25))
    LabelFile(wanted[1:], 2, "other").save(tmp_path / "a.npz")
    with pytest.raises(InputError, match="47 images with fingerprint other, but the data set has 48"):
        run(tmp_path / "2", **options)


def test_labels_of_a_loaded_run_give_way_to_those_asked_for(tmp_path: Path) -> None:
    run(tmp_path / "a")
    last = str(tmp_path / "a" / "epoch_2.pth")
    _, kept = run(tmp_path / "b", load_from=last, **{"train_cfg.label_fraction": None})
    assert int((kept >= 0).sum()) == 24
    _, asked = run(tmp_path / "c", load_from=last, **{"train_cfg.label_fraction": 0.25})
    assert int((asked >= 0).sum()) == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_cfg.label_fraction": 0.0}, r"in \(0, 1\], not 0.0"),
        ({"train_cfg.label_fraction": 1.5}, r"in \(0, 1\], not 1.5"),
        ({"train_cfg.label_file": "a.npz"}, "label_file='a.npz' and label_fraction=0.5"),
        ({"train_cfg.label_fraction": None}, "all 48 are unlabelled: set train_cfg.label_file"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        build_runner(config("classifier", str(tmp_path), **options)).train()


def test_without_true_labels(tmp_path: Path) -> None:
    runner = build_runner(config("classifier", str(tmp_path)))
    runner.train_dataloader.dataset.targets = None
    with pytest.raises(InputError, match="takes true labels, but the 48 images in memory have none"):
        runner.train()


def test_the_three_blobs_are_learnt(tmp_path: Path) -> None:
    options: dict[str, object] = {"train_cfg.max_epochs": 20, "optim_wrapper.optimizer.lr": 0.2}
    options["model.neck"] = dict(_delete_=True, type="AvgPool")
    runner = build_runner(config("classifier", str(tmp_path), **options))
    runner.train()
    assert runner.val_loop.values["acc"] >= 0.9


def test_features_of_unit_length_in_each_space() -> None:
    head = ClassifierHead(3, 2, normalize="unit", spaces=(2, 1))
    head.classifier.weight.data.copy_(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 1.0]]))
    # (3, 4) of length 5 becomes √2 · (.6, .8); -7 becomes √1 · -1.
    scores = head.predict(torch.tensor([[3.0, 4.0, -7.0]]))
    torch.testing.assert_close(scores, torch.tensor([[2**0.5 * 1.4 - 1, -1.0]]))
    torch.testing.assert_close(head.predict(torch.tensor([[30.0, 40.0, -0.7]])), scores)
    with pytest.raises(InputError, match="'none' or 'unit', not 'l2'"):
        ClassifierHead(3, 2, normalize="l2")
    with pytest.raises(InputError, match="are 4 wide, but features have 3"):
        ClassifierHead(3, 2, spaces=(2, 2))
