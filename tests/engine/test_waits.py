"""On a GPU the processor gives out a step, augmentation included, without waiting for anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_heads import HEAD_CONFIGS, config
from waiting import Waits, asking

from odc.apis import build_runner
from odc.data.pipeline import Pipeline

FLOAT = {"type": "ToFloat"}
JITTER = {"type": "ColorJitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
VIEWS: dict[str, list[dict[str, Any]]] = {
    "padded crop": [{"type": "RandomCrop", "size": 16, "padding": 2}, {"type": "RandomHorizontalFlip"}, FLOAT],
    "moco": [
        {"type": "RandomResizedCrop", "size": 16, "scale": (0.2, 1)},
        {"type": "RandomApply", "p": 0.8, "transforms": [JITTER]},
        {"type": "RandomGrayscale", "p": 0.2},
        {"type": "RandomApply", "p": 0.5, "transforms": [{"type": "GaussianBlur", "kernel_size": 3}]},
        FLOAT,
        {"type": "Normalize", "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
    ],
    "grey jitter": [JITTER, FLOAT],
    "float jitter": [FLOAT, JITTER],
    "RandomOps": [{"type": "RandomOps", "n": 4}, FLOAT],
    "semi": [
        {"type": "RandAugment", "num_ops": 3},
        {"type": "Cutout", "size": [1, 8]},
        {"type": "RandomCrop", "size": 16, "padding": 2, "padding_mode": "reflect"},
        FLOAT,
    ],
    "rotated": [{"type": "Rotate90"}, FLOAT, {"type": "Sobel"}],
    "geometry": [
        {"type": "RandomAffine", "degrees": 10, "translate": [0.1, 0.1], "fill": 3, "interpolation": "bilinear"},
        {"type": "ElasticTransform", "sigma": 2.0},
        {"type": "GaussianNoise"} | {"sigma": 0.1},
        FLOAT,
    ],
    "secu": [{"type": "RandomSolarize", "threshold": 128, "p": 0.2}, FLOAT],
    "resized": [{"type": "Resize", "size": 16}, {"type": "CenterCrop", "size": 12}, FLOAT],
}


def test_the_watch_sees_what_waits() -> None:
    waits, x = Waits(), torch.arange(6.0)
    host, mask = torch.arange(6), x > 2
    waits.of_processor(host)
    reading: list[Callable[[], Any]] = [
        *(lambda: float(x[0]), lambda: x.tolist(), lambda: x.nonzero(), lambda: x[mask], lambda: x.cpu() + 1),
        *(lambda: torch.bincount(x.long()), lambda: x.unique(), lambda: x[host], lambda: x.to("cpu")),
        *(lambda: torch.tensor([1.0], device=x.device), lambda: host.to(x.device), lambda: bool(mask.any())),
        *(lambda: x.numpy(), lambda: x.repeat_interleave(x.long()), lambda: x.clone().copy_(host)),
    ]
    for number, read in enumerate(reading):
        with waits.watching():
            read()
        assert sum(waits.found.values()) == 1, f"{number}: {waits.found}"
        waits.found.clear()
    with waits.watching():
        draw = torch.randint(5, (3,), generator=torch.Generator())
        assert int(draw[0]) < 5, "the processor's own"
        assert len(draw.tolist()) == 3
        assert float(torch.tensor([2.0]).sum()) == 2.0
        y = x[draw.to(x.device, non_blocking=True)] + torch.zeros(3, device=x.device)
        y[:] = 0
        x.clone()[mask] = 0.0  # filled, not gathered
        torch.where(mask, x, 1.0).sum().sqrt()
    assert not waits.found


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_waits_for_nothing_and_is_the_same(name: str) -> None:
    generator, view = torch.Generator().manual_seed(3), Pipeline(VIEWS[name])
    images = torch.randint(256, (40, 1 if name == "grey jitter" else 3, 16, 16), generator=generator, dtype=torch.uint8)
    keys, variants = torch.randint(2**62, (40,), generator=generator), torch.arange(40) % 4
    if name == "rotated":
        variants += 4 * (torch.arange(40) % 3)
    wanted = view(images, keys, variants)
    waits = Waits()
    with waits.watching():
        found = view(images, keys, variants)
    assert not waits.found
    # Products of matrices round as the size of the batch lets them; of whole numbers a few then round up, not down.
    assert ((found - wanted).abs() > 1e-5).float().mean() < 1e-3


# What still waits, by the function, and why.
EXPECTED: dict[str, dict[str, str]] = {
    "odc": {
        "plan_split": "looks for small clusters at every centroid_interval-th step, and a split has the size it has",
        "_members": "of plan_split",
        "_two_means": "of plan_split",
        "split": "of plan_split",
        "mine": "of plan_split and relabel",
        "relabel": "of plan_split",
    },
    "two-streams": {"_train_step": "a head of the tests: `unique` of the rows it has drawn"},
}


@pytest.mark.parametrize("name", HEAD_CONFIGS)
def test_a_step_waits_for_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are read by the loop every `log_interval` steps, which is not looked at here."""
    waits = Waits()
    runner = build_runner(config(name, str(tmp_path), val_evaluator=None))
    loop = runner.train_loop
    loop.reads_late, loop.log_interval, step = True, 10**9, loop._train_step

    def watched(*args: Any) -> Any:
        waits.of_processor(*loop.order.values())
        with waits.watching():
            return step(*args[:-1], 10**9)

    monkeypatch.setattr(loop, "_train_step", watched)
    runner.train()
    places = {what.rpartition(":")[2] for what in waits.found}
    assert places <= EXPECTED.get(name, {}).keys(), waits.found
    assert loop.iter > 4


@pytest.mark.parametrize("name", ["odc", "deeper", "turtle", "selflabel"])
def test_what_a_gpu_does_instead_is_the_same(name: str, tmp_path: Path) -> None:
    ends = []
    for gpu in (False, True):
        runner = build_runner(config(name, str(tmp_path / str(gpu)), val_evaluator=None))
        with asking([lambda x: False, lambda x: True][gpu]):
            runner.train()
        ends.append(runner.model.state_dict())
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature:UserWarning")
@pytest.mark.parametrize("name", HEAD_CONFIGS)
def test_a_step_waits_for_nothing_on_a_gpu(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same by CUDA's own account; the first epoch is for kernels that are loaded when they are first used."""
    if name in EXPECTED:
        pytest.skip("waits: " + "; ".join(EXPECTED[name].values()))
    runner = build_runner(config(name, str(tmp_path), val_evaluator=None))
    loop = runner.train_loop
    loop.log_interval, step = 10**9, loop._train_step

    def watched(*args: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error" if loop.epoch else "default")
        try:
            return step(*args[:-1], 10**9)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(loop, "_train_step", watched)
    runner.train()
