from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from small_heads import config
from test_conformance import differences, train
from torch import Tensor

from odc.apis import build_runner
from odc.data.datasets import ArrayDataset, Digits
from odc.engine.hooks import NEAR_CHANCE, SAME, PreflightHook, feature_statistics
from odc.errors import InputError
from odc.models.backbones import ConvNet
from odc.registry import DATASETS
from odc.structures import make_generator

CHANCE = "near chance"
SAME_LINE = "nearly the same features"
TOO_FEW = "pre-flight: 19 images are too few"


@DATASETS.register_module(force=True)
class Noise(ArrayDataset):
    """``n`` images (1, 8, 8) of uniform noise up to ``top``; 1: all black."""

    def __init__(self, n: int = 240, top: int = 256) -> None:
        images = torch.randint(0, top, (n, 1, 8, 8), generator=make_generator(0, "noise"), dtype=torch.uint8)
        super().__init__(images, [f"{i:05d}" for i in range(n)])


@torch.no_grad()
def untrained(images: Tensor) -> Tensor:
    """Return pooled features of an untrained ConvNet."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ConvNet(1, (16, 32, 64)).eval()
    return torch.cat([net(part.float() / 255 - 0.3).mean((2, 3)) for part in images.split(256)])


def test_groups_far_apart_agree_fully() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(30, 1) + 0.01 * torch.rand(
        60, 2, generator=make_generator(0, "a")
    )
    targets = torch.arange(60) % 2
    targets[:7] = -1
    values = feature_statistics(x, 2, 0, targets)
    assert values["consistency"] == values["stability"] == values["kmeans_nmi"] == values["knn"] == 1.0
    assert values["excess"] == 1.0
    assert values["spread"] == pytest.approx(0.5, abs=0.02)  # (1/2, 1/2) from either
    wrong = feature_statistics(x, 2, 0, torch.arange(60) // 2 % 2)
    assert wrong["kmeans_nmi"] < 0.1
    assert wrong["knn"] < 0.7
    assert "knn" not in feature_statistics(x, 2, 0, torch.full((60,), -1))


def test_consistency_by_hand() -> None:
    """Points on a circle, in clusters of two halves: the oracle counts neighbours one by one."""
    angle = torch.arange(24) / 24 * 2 * torch.pi
    x = torch.stack([angle.cos(), angle.sin()], dim=1)
    values = feature_statistics(x, 2, 0)
    # Two half circles of 12 whatever the starts. Of a point's five neighbours either side, the i-th point from a border
    # (i = 0..5) has 5 - i in the other cluster, and each cluster has two borders.
    inside = [10 - max(5 - i, 0) - max(5 - (11 - i), 0) for i in range(12)]
    assert values["consistency"] == pytest.approx(sum(inside) / 120)


@pytest.mark.parametrize("K", [5, 10, 50])
def test_digits_pass_and_noise_does_not(K: int) -> None:
    digits = Digits(16).images()
    assert feature_statistics(untrained(digits), K, 0)["excess"] > NEAR_CHANCE + 0.15
    noise = torch.randint(0, 256, digits.shape, generator=make_generator(0, "noise"), dtype=torch.uint8)
    assert feature_statistics(untrained(noise), K, 0)["excess"] < NEAR_CHANCE - 0.04
    independent = torch.randn(1800, 32, generator=make_generator(0, "independent"))
    assert abs(feature_statistics(independent, K, 0)["excess"]) < 0.05


@pytest.mark.parametrize("n", [20, 49, 500])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_features(n: int, value: float) -> None:
    values = feature_statistics(torch.full((n, 8), value), 2, 0)
    assert values["excess"] == 0.0
    assert values["spread"] < SAME


def test_features_that_differ_by_a_millionth_are_the_same() -> None:
    noise = torch.randn(1000, 64, generator=make_generator(0, "a"))
    values = feature_statistics(1.0 + 1e-6 * noise, 10, 0)
    assert values["spread"] < SAME
    assert abs(values["excess"]) < NEAR_CHANCE
    assert feature_statistics(noise, 10, 0)["spread"] == pytest.approx(1.0, abs=0.01)


def run(folder: Path, head: str = "odc", **options: Any) -> tuple[Any, str]:
    """Train; return the runner and its log."""
    options = {"log_level": "INFO", "train_cfg.max_epochs": 1, **options}
    runner = build_runner(config(head, str(folder), **options))
    runner.train()
    return runner, next(folder.rglob("*.log")).read_text()


def test_what_is_told_and_kept(tmp_path: Path) -> None:
    runner, log = run(tmp_path / "a")
    values = runner.message_hub.get_info("preflight")
    line = next(line for line in log.splitlines() if "pre-flight" in line)
    # 48 images are enough for two clusters.
    assert "pre-flight on 48 images, 2 clusters: neighbours in one cluster " in line
    for name in ("consistency", "chance_consistency", "stability", "chance_stability", "kmeans_nmi", "knn"):
        assert f"{values[name]:.3f}" in line
    assert "for evaluation only: k-means NMI" in line
    assert CHANCE not in log  # so few are not judged
    last: dict[str, Any] = {"resume": True, "load_from": str(tmp_path / "a" / "epoch_1.pth"), "train_cfg.max_epochs": 2}
    again, log = run(tmp_path / "b", **last)
    assert "pre-flight" not in log
    assert again.message_hub.get_info("preflight") == values


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (dict(type="Noise"), CHANCE),
        (dict(type="Noise", n=19), TOO_FEW),
        (dict(type="Digits", size=16), None),
    ],
)
def test_what_is_warned_of(dataset: dict[str, Any], said: str | None, tmp_path: Path) -> None:
    few: dict[str, Any] = {
        "model.head.min_cluster": 1,
        "model.backbone.widths": [16, 32],
        "model.neck": dict(_delete_=True, type="AvgPool"),
    }
    few["data.dataset"] = dict(_delete_=True, **dataset)
    _, log = run(tmp_path, **few)
    assert [line for line in (CHANCE, SAME_LINE, TOO_FEW) if line in log] == ([said] if said else [])
    if "n" not in dataset and said:
        assert "evaluation only:" not in log  # no true classes
        assert "set model.pretrained to its checkpoint" in log


@pytest.mark.parametrize("name", ["odc", "dc", "deeper", "spice-self"])
@pytest.mark.parametrize("n", [12, 240])
def test_equal_images_are_refused(name: str, n: int, tmp_path: Path) -> None:
    cfg = config(name, str(tmp_path), **{"data.dataset": dict(_delete_=True, type="Noise", top=1, n=n)})
    if name == "odc":
        cfg.model.head.min_cluster = 1
    with pytest.raises(InputError, match=r"(are all|images are) equal: there is nothing to cluster; see whether"):
        build_runner(cfg).train()
    assert not list(tmp_path.glob("*.pth"))
    log = next(tmp_path.rglob("*.log")).read_text()
    assert (SAME_LINE in log) == (n >= 20)


@pytest.mark.parametrize("warmup", [1, 2])
def test_a_training_that_ends_in_its_warm_up_is_told_so(warmup: int, tmp_path: Path) -> None:
    runner = build_runner(config("propos", str(tmp_path), **{"model.head.warmup": warmup}))
    with patch.object(runner.logger, "warning") as warning:
        PreflightHook().before_train_epoch(runner)
    told = [call.args[0] for call in warning.call_args_list if "none of the 2 epochs makes labels" in call.args[0]]
    assert len(told) == (warmup == 2)


@pytest.mark.parametrize("name", ["moco", "classifier"])
def test_not_where_nothing_is_clustered(name: str, tmp_path: Path) -> None:
    runner, log = run(tmp_path, name)
    assert "pre-flight" not in log
    assert "preflight" not in runner.message_hub.runtime_info


@pytest.mark.parametrize(("name", "batched"), [("odc", None), ("odc", False), ("two-streams", None)])
def test_training_is_the_same_without_it(name: str, batched: bool | None, tmp_path: Path) -> None:
    path = {"data.batched": batched}
    without = train(name, tmp_path / "without", custom_hooks=[dict(type="ProgressHook")], **path)
    assert not differences(without, train(name, tmp_path / "with", **path))


def test_evenly_spaced_images(tmp_path: Path) -> None:
    hooks = [dict(type="PreflightHook", max_samples=25)]
    _, log = run(tmp_path, custom_hooks=hooks)
    assert "pre-flight on 25 images, 2 clusters" in log
    with pytest.raises(InputError, match="at least 20, not 19"):
        run(tmp_path, custom_hooks=[dict(type="PreflightHook", max_samples=19)])
