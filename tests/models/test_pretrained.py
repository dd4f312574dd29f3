"""Public weights: their names, and what they want to see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torchvision

from odc.errors import InputError
from odc.models.pretrained import KNOWN, Preprocessing, backbone_of, describe, trained_how
from odc.registry import BACKBONES, resolve

timm = pytest.importorskip("timm")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize("name", KNOWN)
def test_every_short_name_is_one_that_its_library_has(name: str) -> None:
    config = backbone_of(name)
    assert config["pretrained"] is True
    resolve(BACKBONES, config)
    if KNOWN[name].library == "timm":
        assert KNOWN[name].name in timm.list_pretrained()
    assert describe(config).size == 256 if "dinov3" in name else 224


def test_sources(tmp_path: Path) -> None:
    file = tmp_path / "a@b.pth"
    file.touch()
    small = {"type": "TimmBackbone", "name": "vit_small_patch14_dinov2.lvd142m", "image_size": 224}
    assert backbone_of("dinov2-small") == {**small, "pretrained": True}
    assert backbone_of(f"dinov2-small@{file}") == {**small, "weights": str(file)}
    assert backbone_of("timm:resnet10t") == {"type": "TimmBackbone", "name": "resnet10t", "pretrained": True}
    assert backbone_of(f"torchvision:resnet18@{file}") == {
        "type": "TorchvisionBackbone",
        "name": "resnet18",
        "weights": str(file),
    }


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("dinov2-smal", "no pre-trained backbone 'dinov2-smal' .*; did you mean 'dinov2-small'"),
        ("timm:resnett18", "timm has no model 'resnett18'; did you mean 'resnet18'"),
        (
            "timm:resnet18.a1_in2k",
            "timm has no weights 'resnet18.a1_in2k' of 'resnet18'; did you mean 'resnet18.a1_",
        ),
        ("torchvision:resnet17", "torchvision has no classification model 'resnet17'; did you mean 'resnet1"),
        ("torchvision:resnet18.V3", "torchvision has no weights 'V3' of 'resnet18'; known: DEFAULT, IMAGENET1K_V1"),
        ("tim:resnet18", "no library 'tim'; did you mean 'timm'"),
        ("timm:resnet18@gone.pth", "there is no file 'gone.pth' of weights"),
    ],
)
def test_wrong_sources_are_told_in_one_line(source: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as error:
        backbone_of(source)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("backbone", "wanted"),
    [
        # crop_pct .875: 224 / .875 = 256.
        (dict(name="tf_efficientnet_lite0"), Preprocessing(224, 256, "bicubic", (0.5,) * 3, (0.5,) * 3)),
        # .9: 248.9, rounded down.
        (dict(name="vit_base_patch16_224.dino"), Preprocessing(224, 248, "bicubic", *IMAGENET)),
        (dict(name="vit_base_patch16_224.dino", image_size=160), Preprocessing(160, 177, "bicubic", *IMAGENET)),
        (dict(name="vit_small_patch14_dinov2", image_size=224), Preprocessing(224, 224, "bicubic", *IMAGENET)),
        # Squeezed, whatever the proportions.
        (dict(name="convnext_base.fb_in22k_ft_in1k_384"), Preprocessing(384, (384, 384), "bicubic", *IMAGENET)),
    ],
)
def test_timm_says_what_its_weights_want(backbone: dict[str, Any], wanted: Preprocessing) -> None:
    assert describe({"type": "TimmBackbone", **backbone}) == wanted


def test_torchvision_says_what_its_weights_want() -> None:
    first = dict(type="TorchvisionBackbone", name="resnet50.IMAGENET1K_V1")
    assert describe(first) == Preprocessing(224, 256, "bilinear", *IMAGENET)
    assert describe({**first, "name": "resnet50"}).resize == 232  # the default is version 2
    (mean,) = describe({**first, "in_channels": 1}).mean
    assert mean == pytest.approx(0.449, abs=1e-9)
    preset = torchvision.models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1.transforms()
    wanted = describe(dict(type="TorchvisionBackbone", name="vit_b_16.IMAGENET1K_SWAG_E2E_V1"))
    assert (wanted.size, wanted.resize, wanted.interpolation) == (preset.crop_size[0], preset.resize_size[0], "bicubic")


def test_how_weights_were_trained() -> None:
    assert trained_how("timm", "vit_small_patch14_dinov2") == "without labels, on LVD-142M"
    assert trained_how("timm", "resnet18.a1_in1k") == "with labels of 1,000 classes"
    assert trained_how("timm", "vit_base_patch16_224.augreg_in21k") == "with labels of 21,843 classes"
    assert trained_how("timm", "vit_base_patch16_clip_224.laion2b") is None
    assert trained_how("torchvision", "vit_b_16") == "with the labels of ImageNet"


def test_a_size_of_ones_own() -> None:
    asked = describe(dict(type="TimmBackbone", name="tf_efficientnet_lite0", image_size=192), size=160)
    assert (asked.size, asked.resize) == (160, 160)
    squeezed = describe(dict(type="TimmBackbone", name="convnext_base.fb_in22k_ft_in1k_384"), size=64)
    assert squeezed.transforms()[0]["size"] == [64, 64]


def test_backbones_that_nobody_describes() -> None:
    with pytest.raises(InputError, match=r"AsPretrained is for TimmBackbone and .*for 'ResNet' write"):
        describe(dict(type="ResNet", depth=18))
    import timm

    if timm.is_model("vit_base_patch16_sapiens2"):  # older ones have none that is not square
        with pytest.raises(InputError, match="takes images of 1024×768 pixels"):
            describe(dict(type="TimmBackbone", name="vit_base_patch16_sapiens2"))
