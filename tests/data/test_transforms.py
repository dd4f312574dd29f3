from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from odc.data.keyed import OPS
from odc.data.pipeline import Pipeline
from odc.data.transforms import VariantTransform, build_transform
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


def look(view: Pipeline, image: Tensor, variant: int = 0, key: int = 0) -> Tensor:
    return view(image[None], torch.tensor([key]), torch.tensor([variant]))[0]


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
        out = look(view, image, variant % 4, variant)
        assert out.dtype == torch.float32
        assert out.shape == (channels, 16, 16)
        assert -2 <= out.min() <= out.max() <= 2
    assert torch.equal(image, before)


def test_to_float_and_normalize_by_hand() -> None:
    view = Pipeline([FLOAT, {"type": "Normalize", "mean": [0.5], "std": [0.25]}])
    assert look(view, torch.tensor([[[0, 255]]], dtype=torch.uint8)).tolist() == [[[-2.0, 2.0]]]
    same = torch.rand(1, 2, 2)
    assert torch.equal(look(Pipeline([FLOAT]), same), same)


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
    corners = [look(view, image, variant).flatten().argmax().item() for variant in range(4)]
    assert corners == [1, 0, 2, 3]  # top right, then anti-clockwise
    with pytest.raises(InputError, match="square"):
        look(view, picture(1, 2, 3), 1)


def test_cutout() -> None:
    view = Pipeline([{"type": "Cutout", "size": (3, 5), "fill": 7}, FLOAT])
    image = torch.full((2, 9, 8), 255, dtype=torch.uint8)
    sides = set()
    for seed in range(200):
        cut = look(view, image, key=seed) < 0.5
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
        look(Pipeline(configs), picture(3))
    assert "\n" not in str(caught.value)


def test_own_transforms_take_part() -> None:
    @TRANSFORMS.register_module()
    class AddVariant(VariantTransform):
        def __call__(self, image: Tensor, variant: int) -> Tensor:
            return image + variant

    try:
        view = Pipeline([{"type": "AddVariant"}, lambda image: image.flip(-1), {"type": "ToFloat"}])
        torch.testing.assert_close(look(view, torch.zeros(1, 2, 2, dtype=torch.uint8), 51), torch.full((1, 2, 2), 0.2))
    finally:
        TRANSFORMS.module_dict.pop("AddVariant")


def test_one_transform_that_has_no_form_for_batches_leaves_the_others_theirs() -> None:
    """A function of one's own between keyed transforms, on images of different sizes."""
    images = [picture(3, 16 + i, 20) for i in range(6)]
    keys = torch.arange(6)
    before: list[dict[str, Any]] = [{"type": "RandomHorizontalFlip"}]
    after: list[dict[str, Any]] = [{"type": "RandomCrop", "size": 12}, {"type": "Rotate90"}, FLOAT]
    view = Pipeline([*before, lambda image: image.flip(-1), *after])
    assert view.obstacle == "<lambda>"
    state, variants = torch.get_rng_state(), torch.arange(6)
    out = view(images, keys, variants)
    assert torch.equal(torch.get_rng_state(), state)
    for i, image in enumerate(images):
        assert torch.equal(view([image], keys[[i]], variants[[i]])[0], out[i])
    plain = Pipeline([*before, {"type": "RandomHorizontalFlip", "p": 1.0}, *after])
    assert torch.equal(plain(images, keys, variants), out)
    drawn = Pipeline([lambda image: image.masked_fill_(torch.rand(image.shape) < 0.5, 0), FLOAT])
    twice = drawn(torch.stack([images[0]] * 2), torch.tensor([3, 3]))
    assert torch.equal(twice[0], twice[1])
    assert not torch.equal(twice[0], drawn([images[0]], torch.tensor([4]))[0])
    with pytest.raises(InputError, match=r"view 'odd' gives images of different shapes, \(3, 16, 20\) and \(3, 17"):
        Pipeline([FLOAT])(images, keys, name="odd")


def test_a_keyed_transform_can_be_part_of_one_of_v2() -> None:
    view = Pipeline([{"type": "RandomChoice", "transforms": [{"type": "Cutout", "size": (4, 4)}]}, FLOAT])
    white = torch.full((1, 9, 9), 255, dtype=torch.uint8)
    some = {int((look(view, white, key=key) == 0).sum()) for key in range(40)}
    assert max(some) == 16
    assert min(some) > 0


@pytest.mark.parametrize("channels", [1, 3])
def test_every_random_op_works_at_both_ends_of_its_range(channels: int) -> None:
    image = torch.arange(channels * 256, dtype=torch.int64).remainder(256).to(torch.uint8).view(channels, 16, 16)
    for low, high, operation in OPS.values():
        for magnitude in (low, high):
            out = operation(image[None], torch.tensor([magnitude], dtype=torch.float64))[0]
            assert out.dtype == torch.uint8
            assert out.shape == image.shape
