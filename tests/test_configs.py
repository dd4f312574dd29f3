"""Every config of the repository is complete: its keys are known, its views run, its model is built."""

from __future__ import annotations

import itertools
import re
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

PAPERS = [path for path in CONFIGS if path.parent.name == "papers"]
RENAMED = [path for path in PAPERS if path.read_text().count(" = ") == 1]  # their base is another config, all of it


@pytest.mark.parametrize("path", RENAMED, ids=lambda p: p.stem)
def test_the_name_of_a_paper_is_another_config(path: Path) -> None:
    base = re.findall(r"^_base_ = '(\S+)'$", path.read_text(), re.MULTILINE)
    (same,) = [(path.parent / name).resolve() for name in base]
    assert prepare_config(path).model == prepare_config(same).model
    assert same in CONFIGS


@pytest.mark.parametrize("path", [path for path in CONFIGS if path not in RENAMED], ids=lambda p: p.stem)
def test_config_is_complete(path: Path) -> None:
    unknown = "features" in path.stem.split("_")  # how wide they are
    cfg = prepare_config(path, cfg_options={"model.backbone.spaces": [40]} if unknown else None)
    check_parts(cfg)
    vectors = cfg.data.dataset.type == "Features"
    if "yfcc100m" in path.stem:
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
            pixels = torch.rand(1, sum(cfg.model.backbone.spaces), 1, 1)
        image = pipeline(pixels, torch.tensor([7]), torch.tensor([1]))[0]
        assert image.shape[1] == image.shape[2]
        if name in views and image.shape[-1] <= 32:
            with torch.no_grad():
                model.eval()
                scores = model.head.predict(model.features(image[None].repeat(2, 1, 1, 1)))
            head = cfg.model.head
            assert scores.shape == (2, head.get("num_classes", head.get("num_clusters", 0)))


@pytest.mark.parametrize("path", PAPERS, ids=lambda p: p.stem)
def test_a_config_of_a_paper_says_what_was_published_and_what_was_found(path: Path) -> None:
    """AUTHORYEAR_METHOD_DATA_NETWORK.py, and on top the paper, its number, and what became of it here."""
    assert re.fullmatch(r"[a-z-]+\d{4}(_[a-z0-9-]+){3}", path.stem)
    comment = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    text = " ".join(line.removeprefix("#").strip() for line in comment)
    year = re.findall(r"\d{4}", path.stem)[0]
    assert re.search(rf"\([A-Z][^()]*{year}, arXiv:\d{{4}}\.\d{{5}}\)", text), "the paper"
    assert re.search(r"Published[^:]*: [^.]*\d", text), "its number"
    assert re.search(r"Not reproduced here|Here: [A-Z]", text), "ours"


def test_every_method_has_a_paper() -> None:
    methods = {path.stem.split("_")[1] for path in PAPERS}
    ours = {"deepcluster", "odc", "deepercluster", "moco-v2", "spice-self", "spice", "scan", "temi", "turtle"}
    assert methods >= ours


def test_there_are_configs() -> None:
    assert len(CONFIGS) >= 6
