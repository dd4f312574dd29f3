"""Every config of the repository is complete: its keys are known, its views run, its model is built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from odc.apis import prepare_config
from odc.config.checking import check_parts
from odc.data.pipeline import Pipeline
from odc.registry import MODELS, build

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted(
    p for p in (ROOT / "configs").glob("*/*.py") if p.parent.name not in ("_base_", "pipelines", "comparisons")
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_config_is_complete(path: Path) -> None:
    vectors = "features" in path.stem.split("_")
    cfg = prepare_config(path, cfg_options={"model.backbone.spaces": [40]} if vectors else None)
    check_parts(cfg)
    if path.stem.endswith("yfcc100m"):
        cfg.model.head.num_clusters //= 1000  # 58.6 GiB of classifiers do not fit everywhere
    model = build(MODELS, cfg.model)
    channels = 1 if cfg.model.backbone.get("in_channels") == 1 else 3
    plan = model.head.plan(0)
    views = {view for stream in plan.streams for view in stream.views} | {"extract"}
    views |= {plan.refresh.logits} if plan.refresh is not None and plan.refresh.logits else set()
    assert views <= set(cfg.data.views)
    for name, transforms in cfg.data.views.items():
        pipeline = Pipeline(transforms)
        size = (16, 16) if channels == 1 else (300, 260)
        pixels = torch.randint(0, 255, (1, channels, *size), dtype=torch.uint8)
        if vectors:
            pixels = torch.rand(1, 40, 1, 1)
        image = pipeline(pixels, torch.tensor([7]), torch.tensor([1]))[0]
        assert image.shape[1] == image.shape[2]
        if name in views and image.shape[-1] <= 32:
            with torch.no_grad():
                model.eval()
                scores = model.head.predict(model.features(image[None].repeat(2, 1, 1, 1)))
            head = cfg.model.head
            assert scores.shape == (2, head.get("num_classes", head.get("num_clusters", 0)))


def test_there_are_configs() -> None:
    assert len(CONFIGS) >= 6
