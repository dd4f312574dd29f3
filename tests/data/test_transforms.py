from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from odc.data.transforms import OPS, Pipeline, VariantTransform, build_transform
from odc.errors import InputError
from odc.registry import TRANSFORMS

JITTER: dict[str, Any] = {"type": "ColorJitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
FLOAT = {"type": "ToFloat"}
WEAK: list[dict[str, Any]] = [{"type": "RandomCrop", "size": 16, "padding": 4}, {"type": "RandomHorizontalFlip"}]
VIEWS: dict[str, list[dict[str, Any]]] = {
    "extract": [{"type": "Resize", "size": (16, 16)}, {"type": "CenterCrop", "size": 16}],
    "weak": WEAK,
    "spice_strong": [{"type": "RandomHorizontalFlip"}, {"type": "RandomOps", "n": 4}, {"type": "Cutout"}],
    "semi_strong": [{"type": "RandAugment", "num_ops": 3}, {"type": "Cutout", "size": (1, 8), "fill": 127}, *WEAK],
    "moco": [
        {"type": "RandomResizedCrop", "size": 16, "scale": (0.2, 1), "interpolation": "bicubic"},
        {"type": "RandomApply", "p": 0.8, "transforms": [JITTER]},
        {"type": "RandomGrayscale", "p": 0.2},
        {"type": "RandomApply", "p": 0.5, "transforms": [{"type": "GaussianBlur", "kernel_size": 3}]},
        {"type": "RandomHorizontalFlip"},
    ],
    "odc": [{"type": "RandomRotation", "degrees": 2}, JITTER, {"type": "RandomGrayscale", "p": 0.2}],
    "deepercluster": [*WEAK, {"type": "Rotate90"}],
    "digits": [{"type": "Resize", "size": (16, 16)}, {"type": "RandomAffine", "degrees": 10, "translate": (0.1, 0.1)}],
}


def picture(channels: int, height: int = 16, width: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", VIEWS)
def test_every_method_s_view_works_on_grey_and_colour(name: str, channels: int) -> None:
    normalise = {"type": "Normalize", "mean": [0.5] * channels, "std": [0.25] * channels}
    view = Pipeline([*VIEWS[name], FLOAT, normalise])
    image = picture(channels)
    before = image.clone()
    for variant in range(12):
        out = view(image, variant % 4)
        assert out.dtype == torch.float32
        assert out.shape == (channels, 16, 16)
        assert -2 <= out.min() <= out.max() <= 2
    assert torch.equal(image, before)


def test_to_float_and_normalize_by_hand() -> None:
    view = Pipeline([FLOAT, {"type": "Normalize", "mean": [0.5], "std": [0.25]}])
    assert view(torch.tensor([[[0, 255]]], dtype=torch.uint8)).tolist() == [[[-2.0, 2.0]]]
    same = torch.rand(1, 2, 2)
    assert torch.equal(Pipeline([FLOAT])(same), same)


def test_sobel_against_convolution() -> None:
    image = torch.rand(2, 3, 5, 7)
    x = image.mean(1, keepdim=True)
    across = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
    kernels = torch.stack((across, across.T))[:, None]
    expected = torch.nn.functional.conv2d(x, kernels, padding=1)
    sobel = build_transform({"type": "Sobel"})
    torch.testing.assert_close(sobel(image), expected)
    assert torch.equal(sobel(image)[1], sobel(image[1]))


def test_rotate_by_variant() -> None:
    view = Pipeline([{"type": "Rotate90"}, FLOAT])
    image = torch.tensor([[[0, 255], [0, 0]]], dtype=torch.uint8)
    corners = [view(image, variant).flatten().argmax().item() for variant in range(4)]
    assert corners == [1, 0, 2, 3]  # top right, then anti-clockwise
    with pytest.raises(InputError, match="square"):
        view(picture(1, 2, 3), 1)


def test_cutout() -> None:
    view = Pipeline([{"type": "Cutout", "size": (3, 5), "fill": 7}, FLOAT])
    image = torch.full((2, 9, 8), 255, dtype=torch.uint8)
    sides = set()
    for seed in range(200):
        torch.default_generator.manual_seed(seed)
        cut = view(image) < 0.5
        assert torch.equal(cut[0], cut[1])
        rows, columns = cut[0].any(1), cut[0].any(0)
        assert torch.equal(cut[0], rows[:, None] & columns)
        height, width = int(rows.sum()), int(columns.sum())
        assert min(height, width) >= 1
        sides.add(max(height, width))
    assert sides == {2, 3, 4, 5}  # 2: cut off at a corner
    with pytest.raises(InputError, match="least"):
        Pipeline([{"type": "Cutout", "size": (4, 2)}])


def test_random_ops_draws_from_all_14() -> None:
    image, seen = picture(3), set()
    one, three = build_transform({"type": "RandomOps", "n": 1}), build_transform({"type": "RandomOps", "n": 3})
    for seed in range(60):
        torch.default_generator.manual_seed(seed)
        seen.add(one(image).numpy().tobytes())
    assert len(seen) > 30
    torch.default_generator.manual_seed(0)
    assert not torch.equal(three(image), image)
    with pytest.raises(InputError, match="before ToFloat"):
        one(image.float())
    with pytest.raises(InputError, match="n >= 1"):
        build_transform({"type": "RandomOps", "n": 0})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "RandomHorizontalFlp"}, "did you mean 'RandomHorizontalFlip'?"),
        ({"type": "RandomHorizontalFlip", "prob": 1}, "has no argument 'prob'"),
        ({"type": "RandomCrop", "sizes": 3}, "did you mean 'size'?"),
        ({"type": "RandomCrop"}, "size"),
        ({"type": "Resize", "size": 3, "interpolation": "bicubix"}, "did you mean 'bicubic'?"),
        ({"type": "RandomHorizontalFlip", "p": 2}, "RandomHorizontalFlip"),
        ({"type": "RandomApply", "transforms": [{"type": "Rotate90"}]}, "cannot hold"),
        ({"type": "RandomApply", "transforms": [{"type": "Flop"}]}, "no transform 'Flop'"),
        ({"type": "Normalize", "mean": [0, 0], "std": [1]}, "for every channel"),
        ({"type": "Normalize", "mean": [0], "std": [0]}, "std > 0"),
        ({}, "no transform 'None'"),
    ],
)
def test_bad_configs(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Pipeline([config])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        ([{"type": "RandomHorizontalFlip"}], "add dict\\(type='ToFloat'\\)"),
        ([{"type": "Sobel"}], "needs float images"),
        ([{"type": "Normalize", "mean": [0], "std": [1]}], "needs float images"),
        ([FLOAT, {"type": "Normalize", "mean": [0], "std": [1]}], "1 means but the image has 3 channels"),
        ([{"type": "GaussianBlur", "kernel_size": 99}, FLOAT], "GaussianBlur failed on an image torch.uint8"),
        ([{"type": "FiveCrop", "size": 3}, FLOAT], "FiveCrop does not return one image"),
    ],
)
def test_bad_images(configs: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Pipeline(configs)(picture(3))
    assert "\n" not in str(caught.value)


def test_own_transforms_take_part() -> None:
    @TRANSFORMS.register_module()
    class AddVariant(VariantTransform):
        def __call__(self, image: Tensor, variant: int) -> Tensor:
            return image + variant

    try:
        view = Pipeline([{"type": "AddVariant"}, lambda image: image.flip(-1), {"type": "ToFloat"}])
        torch.testing.assert_close(view(torch.zeros(1, 2, 2, dtype=torch.uint8), 51), torch.full((1, 2, 2), 0.2))
    finally:
        TRANSFORMS.module_dict.pop("AddVariant")


def test_augment_then_finish_is_the_call() -> None:
    view = Pipeline([*WEAK, FLOAT, {"type": "Normalize", "mean": [0.3] * 3, "std": [0.7] * 3}, {"type": "Sobel"}])
    image = picture(3)
    parts = []
    for seed in range(5):
        torch.default_generator.manual_seed(seed)
        parts.append(view.augment(image, 0))
    batch = view.finish(torch.stack(parts))
    for seed in range(5):
        torch.default_generator.manual_seed(seed)
        assert torch.equal(view(image), batch[seed])


@pytest.mark.parametrize("channels", [1, 3])
def test_every_random_op_works_at_both_ends_of_its_range(channels: int) -> None:
    image = torch.arange(channels * 256, dtype=torch.int64).remainder(256).to(torch.uint8).view(channels, 16, 16)
    for low, high, operation in OPS.values():
        for magnitude in (low, high):
            out = operation(image, magnitude)
            assert out.dtype == torch.uint8
            assert out.shape == image.shape
