"""From what recipes leave to a model: features of networks from elsewhere, estimators, pixels, pictures kept small."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from odc.comparison.plan import Request, plan
from odc.comparison.results import Outcome
from odc.data import ImageDataset, build_dataset
from odc.data.feature_files import read_space
from odc.errors import InputError
from odc.models import ClusterModel
from odc.portable import PortableModel, pack
from odc.portable.packing import networks_of, pack_nearest
from odc.recipes import Left, Pipeline
from odc.registry import DATASETS
from odc.results import Clustering
from odc.sources import extract_space, extraction_config, read_source

BACKBONE = {"type": "ConvNet", "in_channels": 3, "widths": [4, 6]}
VIEW: list[dict[str, Any]] = [{"type": "Resize", "size": 18}, {"type": "CenterCrop", "size": 16}, {"type": "ToFloat"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures of three kinds, and a checkpoint of a network that nobody trained."""
    place = tmp_path_factory.mktemp("pictures")
    (place / "images").mkdir()
    draws = np.random.default_rng(0)
    for i in range(24):
        pixels = draws.integers(0, 90, (20 + i % 3, 24, 3), np.uint8)
        pixels[:, :, i % 3] += 120
        Image.fromarray(pixels).save(place / "images" / f"{i:02d}.png")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ClusterModel(BACKBONE, {"type": "ClassifierHead", "num_classes": 2})
        model.init_weights()
    config = f"model = dict(backbone={BACKBONE})\ndata = dict(views=dict(extract={VIEW}))\n"
    torch.save({"state_dict": model.state_dict(), "meta": {"cfg": config}}, place / "network.pth")
    return place


def pictures(folder: Path) -> ImageDataset:
    return build_dataset({"type": "ImageFolder", "root": str(folder / "images")})


def run(folder: Path, out: Path, method: str, features: str | None = None) -> tuple[PortableModel, Clustering]:
    """Run a recipe as a comparison plans it, and pack it."""
    wanted = Request(
        methods=[method], out=out, dataset=str(folder / "images"), features=features, clusters=3, seeds=[0]
    )
    pipeline = Pipeline(plan(wanted)[-1].recipe, out)
    results = pipeline.run()
    stages = pipeline.recipe.stages
    left = {stage.name: Left(stage, pipeline.places[stage.name], results[stage.name]) for stage in stages}
    shown = pictures(folder)
    outcome = Outcome.load(left[stages[-1].name].folder, len(shown))
    assert outcome is not None
    x = outcome.features
    if features is not None:
        x = np.array(read_space(str(left[stages[0].name].folder / "train-0")).rows)
    clustering = Clustering.describe("", shown.paths, x, (outcome.cluster, outcome.margin), 3, shown)
    model = pack(clustering, left, pipeline.recipe, shown)
    model.save(out / "model")
    return PortableModel.load(out), clustering


def test_an_estimator_on_features_of_a_network(folder: Path, tmp_path: Path) -> None:
    model, clustering = run(folder, tmp_path, "kmeans", str(folder / "network.pth"))
    shown = pictures(folder)
    found = model.predict([shown.image(i) for i in range(24)])
    np.testing.assert_array_equal(found.cluster, clustering.cluster)
    np.testing.assert_allclose(found.confidence, clustering.confidence, atol=1e-4)
    np.testing.assert_allclose(found.features, clustering.features, atol=1e-5)
    assert model.about["agreement"] == 1.0
    assert model.about["new_images"] == "they go to the nearest prototype"
    assert model.input_shape == (3, 16, 16)
    assert model.prepare == VIEW[:2]


def test_an_estimator_on_pixels(folder: Path, tmp_path: Path) -> None:
    model, clustering = run(folder, tmp_path, "kmeans-pixels")
    shown = pictures(folder)
    found = model.predict([shown.image(i) for i in range(24)])
    np.testing.assert_array_equal(found.cluster, clustering.cluster)


def test_two_networks_side_by_side(folder: Path) -> None:
    shown = pictures(folder)
    sources = read_source("+".join([str(folder / "network.pth")] * 2))
    networks = networks_of(sources, shown)
    config = extraction_config(sources[0], {"type": "ImageFolder", "root": str(folder / "images")}, folder / "w")
    extract_space(sources[0], config, folder / "z.npz")
    z = np.array(read_space(str(folder / "z.npz")).rows)
    x = np.concatenate([z, z], 1)
    cluster = np.arange(24) % 3
    clustering = Clustering.describe("", shown.paths, x, (cluster, np.ones(24)), 3, shown, spaces=(6, 6))
    model = pack_nearest(clustering, networks, shown, True, sources)
    assert model.spaces == (6, 6)
    np.testing.assert_allclose(model.features([shown.image(i) for i in range(24)]), x, atol=1e-5)
    model.save(folder / "two")
    again = PortableModel.load(folder / "two")
    np.testing.assert_array_equal(again.scores(torch.from_numpy(x)), model.scores(torch.from_numpy(x)))


def test_features_of_another_width_are_refused(folder: Path) -> None:
    shown = pictures(folder)
    clustering = Clustering.describe("", shown.paths, torch.randn(24, 5), (np.arange(24) % 3, np.ones(24)), 3, shown)
    networks = networks_of(read_source(str(folder / "network.pth")), shown)
    with pytest.raises(InputError, match=r"has features of 5 numbers, but the networks give 6"):
        pack_nearest(clustering, networks, shown)


def test_features_of_a_file_are_of_no_network(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "z.npy", np.eye(24, 4, dtype=np.float32))
    (tmp_path / "z.txt").write_text("\n".join(pictures(folder).paths))
    assert networks_of(read_source(str(tmp_path / "z.npy")), pictures(folder)) == []


@DATASETS.register_module(force=True)
class Halved(ImageDataset):
    """Pictures at half their size, as a data set that keeps them small gives them."""

    def __init__(self, dataset: dict[str, Any]) -> None:
        self._whole = build_dataset(dataset)
        self.paths, self.fingerprint, self.origin = self._whole.paths, self._whole.fingerprint, self._whole.origin

    @property
    def transforms(self) -> list[dict[str, Any]]:
        return [{"type": "Resize", "size": [12, 12]}]

    def image(self, i: int) -> torch.Tensor:
        return torch.nn.functional.interpolate(self._whole.image(i)[None], (12, 12))[0]


def spec_of(folder: Path, data: dict[str, Any], view: Sequence[dict[str, Any]]) -> dict[str, Any]:
    from mmengine import Config

    from odc.portable.packing import Pictures, _spec

    config = Config({"data": {"dataset": data, "views": {"extract": list(view)}}})
    return _spec("x", BACKBONE, None, config, Pictures.of(pictures(folder)))


def test_what_a_data_set_did_to_its_pictures_is_part_of_the_view(folder: Path) -> None:
    whole = {"type": "ImageFolder", "root": str(folder / "images")}
    spec = spec_of(folder, {"type": "Halved", "dataset": whole}, VIEW[2:])
    assert spec["view"] == [{"type": "Resize", "size": [12, 12]}, *VIEW[2:]]
    assert spec["side"] == 12
    assert spec_of(folder, whole, VIEW[2:])["side"] is None, "pictures of several sizes, and nothing resizes them"
