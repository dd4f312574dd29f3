"""Which recipe a folder gets, by hand: a function of what was looked at."""

from __future__ import annotations

from dataclasses import replace

import pytest

from odc.errors import InputError
from odc.folder.choice import choose, epochs_of
from odc.folder.looking import Look

PHOTOS = Look(
    images=3000, sides=(160, 160, 3024), grey=False, skipped=0, duplicates=0, load_seconds=0.004, cores=2, gpu=""
)


def icons(images: int) -> Look:
    return replace(PHOTOS, images=images, sides=(32, 32, 32))


def test_photographs_from_scratch_are_pretrained_and_hear_of_better_features() -> None:
    choice = choose(PHOTOS, 10)
    assert choice.row == "scan-moco"
    assert choice.square == 64
    assert "--features dinov2-small" in choice.advice
    assert "88 MB" in choice.advice
    assert choice.options["moco.train_cfg.max_epochs"] == 65  # 1,500 steps of 23
    assert "65 epochs" in choice.told
    assert "32 pixels" in choice.told


@pytest.mark.parametrize(
    ("images", "epochs"), [(5, 300), (600, 300), (3000, 65), (5421, 36), (10_000, 20), (1_000_000, 20)]
)
def test_pretraining_makes_some_number_of_steps(images: int, epochs: int) -> None:
    assert epochs_of(icons(images)) == epochs


def test_a_gpu_gets_a_wider_network_and_more_epochs() -> None:
    choice = choose(replace(PHOTOS, gpu="NVIDIA"), 10)
    assert choice.options["moco.train_cfg.max_epochs"] == 300
    assert choice.options["model.backbone.width"] == 64


def test_colours_are_not_learnt_to_be_overlooked() -> None:
    options = choose(PHOTOS, 10).options
    for view in ("query", "key"):
        steps = options[f"moco.data.views.{view}"]
        assert "RandomGrayscale" not in [step["type"] for step in steps]
        assert steps[1]["transforms"][0]["hue"] == 0.02
    grey = choose(replace(PHOTOS, grey=True), 10)
    assert grey.options == {"moco.train_cfg.max_epochs": 65}
    assert grey.advice == ""


def test_icons_stay_as_large_as_they_are_and_hear_of_nothing() -> None:
    choice = choose(icons(3000), 10)
    assert (choice.square, choice.advice) == (32, "")
    assert choose(replace(PHOTOS, sides=(8, 16, 20)), 10).square == 32
    assert choose(replace(PHOTOS, sides=(40, 48, 50)), 10).square == 48


@pytest.mark.parametrize(("images", "K"), [(5, 2), (99, 10), (399, 100), (120, 120)])
def test_few_pictures_are_clustered_as_they_are(images: int, K: int) -> None:
    choice = choose(icons(images), K)
    assert choice.row == "kmeans-pixels"
    assert choice.options == {}
    assert choose(icons(images), K, "dinov2-small").row == "kmeans"


def test_features_get_scan() -> None:
    choice = choose(PHOTOS, 10, "timm:resnet18@/a/b/weights.pth+clip-b16")
    assert choice.row == "scan"
    assert (choice.square, choice.advice, choice.options) == (None, "", {})
    assert "timm:resnet18+clip-b16" in choice.told


@pytest.mark.parametrize(
    ("method", "row"),
    [
        ("scan", "scan-moco"),
        ("turtle", "turtle-moco"),
        ("kmeans", "kmeans-moco"),
        ("sklearn.cluster.Birch", "sklearn.cluster.Birch-moco"),
        ("kmeans-pixels", "kmeans-pixels"),
        ("kmeans-backbone", "kmeans-backbone"),
        ("odc-moco", "odc-moco"),
        ("spice", "spice"),
        ("spice-self", "spice-self"),
        ("mine.py", "mine.py"),
    ],
)
def test_a_method_from_scratch_starts_from_a_pretraining(method: str, row: str) -> None:
    choice = choose(icons(3000), 10, method=method)
    assert choice.row == row
    assert ("moco.train_cfg.max_epochs" in choice.options) == (row.endswith("-moco") or row.startswith("spice"))
    assert (choice.square is None) == row.endswith(".py")


def test_a_method_on_features_is_taken_as_it_is() -> None:
    assert choose(PHOTOS, 10, "dinov2-small", "spectral").row == "spectral"
    with pytest.raises(InputError, match="--method spice-self"):
        choose(PHOTOS, 10, "dinov2-small", "spice")


def test_what_was_looked_at_is_told_in_one_line() -> None:
    assert str(PHOTOS) == "3,000 pictures, colour, 160 to 3024 pixels, most about 160; no GPU, 2 cores"
    seen = replace(PHOTOS, images=1, sides=(8, 8, 8), grey=True, skipped=2, duplicates=1, cores=1)
    assert str(seen) == (
        "1 picture, grey, 8 pixels on the shorter side; 2 other files left out; 1 exact duplicate; no GPU, 1 core"
    )
