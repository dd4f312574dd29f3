"""The portable model: of every head the clusters of the training, from two files, and nothing that is not in them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_heads import HEAD_CONFIGS, Blobs, config
from torch import Tensor

from odc.apis import load_runner, train
from odc.checkpoints import find_resume, write_tensors
from odc.errors import InputError
from odc.evaluation.evaluator import Evaluation
from odc.portable import PortableModel
from odc.portable.networks import split_view
from odc.portable.packing import pack_nearest, pack_training
from odc.results import Clustering

QUICK = ("odc", "scan", "spice-semi", "turtle", "deeper", "sinkhorn")
CLUSTERED = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in HEAD_CONFIGS if name != "moco"
]


def evaluation_of(cfg: Any) -> tuple[Evaluation, str]:
    train(cfg)
    checkpoint = next(find_resume(cfg.work_dir))
    runner, data = load_runner(cfg.copy(), checkpoint)
    evaluation: Evaluation = runner.val_loop.evaluate()
    data.close()
    return evaluation, checkpoint


@functools.cache
def images() -> Blobs:
    return Blobs()


Packed = Callable[[str], tuple[PortableModel, Clustering, Path]]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """Return a function that trains a head and packs it, once."""

    @functools.cache
    def make(name: str) -> tuple[PortableModel, Clustering, Path]:
        folder = tmp_path_factory.mktemp("packed")
        cfg = config(name, str(folder / "run"))
        evaluation, checkpoint = evaluation_of(cfg)
        K = evaluation.scores.shape[1]
        clustering = Clustering.describe("", images().paths, evaluation.features, evaluation.scores, K, images())
        model = pack_training(clustering, cfg, checkpoint, images())
        model.save(folder / "model")
        return model, clustering, folder

    return make


def pixels() -> list[Tensor]:
    return list(images().images())


@pytest.mark.parametrize("name", CLUSTERED)
def test_training_images_get_their_clusters(packed: Packed, name: str) -> None:
    model, clustering, folder = packed(name)
    assert model.about["agreement"] == 1.0
    again = PortableModel.load(folder / "model")
    found = again.predict(pixels())
    np.testing.assert_array_equal(found.cluster, clustering.cluster)
    np.testing.assert_allclose(found.confidence, clustering.confidence, atol=2 / 48)
    np.testing.assert_allclose(found.distance, clustering.distance, atol=1e-4)
    # The model has its features in half precision: an image at the limit may lie on its other side.
    lonely = 1 - np.sort(clustering.unit @ clustering.unit.T, axis=1)[:, ::-1][:, 10]
    sure = np.abs(lonely - again.reference.limits[clustering.cluster]) > 1e-4
    assert sure.sum() >= 40
    np.testing.assert_array_equal(found.outlier[sure], clustering.outlier[sure])
    np.testing.assert_allclose(found.features, clustering.features, atol=1e-5)
    # one neighbour of equal distance may be another
    np.testing.assert_allclose(found.consistency, clustering.consistency, atol=0.1001)
    np.testing.assert_array_equal(found.repeats, np.arange(48))


def test_a_batch_changes_nothing(packed: Packed) -> None:
    model, _, _ = packed("scan")
    whole, one = model.predict(pixels()), model.predict(pixels()[7:8])
    np.testing.assert_allclose(whole.scores[7:8], one.scores, atol=1e-5)
    assert whole.consistency[7] == one.consistency[0]


def test_it_holds_no_memory_of_the_images(packed: Packed) -> None:
    for name in ("odc", "scan"):
        tensors = load_file(packed(name)[2] / "model" / "model.safetensors")
        heads = {key: t for key, t in tensors.items() if key.startswith("head.") and len(t.shape) and len(t) == 48}
        assert not heads, f"{name}: {heads.keys()}"


def test_moving_averages_are_what_predicts(packed: Packed) -> None:
    """SPICE-Semi evaluates by averages; the plain parameters give other scores."""
    folder = packed("spice-semi")[2]
    cfg = config("spice-semi", str(folder / "run"))
    runner, data = load_runner(cfg, next(find_resume(cfg.work_dir)))
    data.close()
    plain = runner.model.head.classifier.weight
    averaged = load_file(folder / "model" / "model.safetensors")["head.head.classifier.weight"]
    assert not torch.equal(plain.cpu(), averaged)


def test_a_head_without_clusters_is_refused(tmp_path: Path) -> None:
    cfg = config("moco", str(tmp_path / "run"))
    train(cfg)
    clustering = Clustering.describe("", images().paths, torch.randn(48, 8), (np.zeros(48), np.zeros(48)), 1)
    with pytest.raises(InputError, match=r"the head has 0 clusters, but the clustering 1"):
        pack_training(clustering, cfg, next(find_resume(cfg.work_dir)), images())


# -- nearest prototypes


def test_the_nearest_prototype_of_vectors_by_hand() -> None:
    x = np.array([[1, 0], [3, 0], [0, 2], [0, 4], [5, 5]], np.float32)
    clustering = Clustering.describe(
        "", list("abcde"), x, (np.array([0, 0, 1, 1, -1]), np.ones(5, np.float32)), 3, spaces=(2,)
    )
    model = pack_nearest(clustering, [], None)
    found = model.judge(torch.tensor([[9.0, 1.0], [0.1, 0.2]]))
    assert found.cluster.tolist() == [0, 1]
    u = np.array([9, 1]) / 82**0.5
    np.testing.assert_allclose(found.scores[0, :2], [-np.hypot(1 - u[0], u[1]), -np.hypot(u[0], 1 - u[1])], rtol=1e-5)
    assert found.scores[0, 2] == -np.inf, "a cluster without images attracts none"
    np.testing.assert_allclose(found.distance[0], 1 - u[0], atol=1e-6)
    # all five images are its neighbours: two of them share its cluster
    np.testing.assert_allclose(found.consistency, [0.4, 0.4])
    assert model.about["agreement"] == 1.0
    assert model.judge(torch.from_numpy(x)).repeats.tolist() == [0, 0, 2, 2, 4], "vectors of one direction are one"


def test_raw_vectors_keep_their_lengths() -> None:
    x = np.array([[1, 0], [2, 0], [10, 0], [12, 0]], np.float32)
    clustering = Clustering.describe("", list("abcd"), x, (np.array([0, 0, 1, 1]), np.ones(4, np.float32)), 2)
    model = pack_nearest(clustering, [], None, unit=False)
    assert model.judge(torch.tensor([[6.0, 0.0], [6.5, 0.0]])).cluster.tolist() == [0, 1]


def test_vectors_take_no_pictures() -> None:
    clustering = Clustering.describe(
        "", list("ab"), np.eye(2), (np.array([0, 1]), np.ones(2, np.float32)), 2, about={"features": "z.npz"}
    )
    model = pack_nearest(clustering, [], None)
    with pytest.raises(InputError, match=r"takes vectors, not pictures: it was made of z.npz"):
        model.predict(pixels())
    with pytest.raises(InputError, match=r"takes features of 2 numbers, not \(1, 3\)"):
        model.judge(torch.zeros(1, 3))


def test_confidence_of_new_images_is_a_rank_among_the_old() -> None:
    angle = torch.linspace(0.0, torch.pi / 2, 101)
    x = torch.stack([angle.cos(), angle.sin()], 1)
    cluster = np.r_[np.zeros(50, np.int64), np.ones(51, np.int64)]
    clustering = Clustering.describe("", [f"{i:03d}" for i in range(101)], x, (cluster, np.ones(101)), 2)
    model = pack_nearest(clustering, [], None)
    best, second = model.scores(x).topk(2).values.unbind(1)
    new = torch.tensor([[1.0, 1.01], [1.0, 0.2], [0.0, 1.0]])
    margin = model.scores(new).sort(1).values.diff(dim=1)[:, 0]
    expected = [(best - second <= m).float().mean() for m in margin]
    np.testing.assert_allclose(model.judge(new).confidence, expected, atol=1e-6)
    assert expected[0] < 0.05 < 0.7 < expected[1]


# -- the disk


def edited(folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    said = json.loads((folder / "model" / "model.json").read_text())
    change(said)
    (tmp_path / "model.json").write_text(json.dumps(said))
    (tmp_path / "model.safetensors").write_bytes((folder / "model" / "model.safetensors").read_bytes())
    return tmp_path


def setting(*keys: Any) -> Callable[[dict[str, Any]], None]:
    *path, last, value = keys

    def change(said: dict[str, Any]) -> None:
        for key in path:
            said = said[key]
        said[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (setting("format", 2), "is of format 2, written by odc"),
        (setting("num_clusters", 10**9), "a whole number of at least 1"),
        (setting("num_clusters", 5), "is torch.float32"),
        (setting("networks", 0, "backbone", "type", "os.system"), "unknown backbone 'os.system'"),
        (setting("networks", 0, "backbone", "type", "subprocess.Popen"), "unknown backbone 'subprocess.Popen'"),
        (setting("networks", 0, "backbone", "widths", [9000, 9000]), "which would have"),
        (setting("networks", 0, "backbone", "widths", [10**9]), "no part has an option 1000000000"),
        (setting("networks", 0, "view", [{"type": "Resize", "size": [50_000, 50_000]}]), "no part has an option 50000"),
        (setting("networks", 0, "backbone", "weights", "/etc/passwd"), "has no option 'weights'"),
        (setting("networks", 0, "view", [{"type": "RandomCrop", "size": 8}]), "must not draw"),
        (setting("networks", 0, "view", [{"type": "Lambda", "lambd": "x"}]), ""),
        (setting("head", "kind", "pickle"), "a head is 'trained' or 'nearest'"),
        (setting("head", "head", "type", "Nobody"), "unknown head 'Nobody'"),
        (setting("head", "head", "num_heads", 3), "does not fit"),
        (setting("spaces", [3]), "spaces have [3]"),
        (setting("names", {"9": "x"}), "of clusters that there are not"),
        (setting("about", "x", [[[]]]), None),
        (setting("extra", 1), "an entry 'extra', which is unknown"),
        (setting("value_range", [1]), "two numbers are expected"),
    ],
)
def test_a_hostile_description_is_one_line(
    packed: Packed, tmp_path: Path, change: Callable[[dict[str, Any]], None], told: str | None
) -> None:
    folder = edited(packed("scan")[2], tmp_path, change)
    if told is None:
        PortableModel.load(folder)
        return
    with pytest.raises(InputError) as error:
        PortableModel.load(folder)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_hostile_weights_are_one_line(packed: Packed, tmp_path: Path) -> None:
    source = packed("scan")[2] / "model"
    tensors = load_file(source / "model.safetensors")
    (tmp_path / "model.json").write_bytes((source / "model.json").read_bytes())

    def refused(told: str, **changes: Tensor | None) -> None:
        mixed = {**tensors, **{name.replace("__", "."): t for name, t in changes.items()}}
        write_tensors(tmp_path / "model.safetensors", {name: t for name, t in mixed.items() if t is not None})
        with pytest.raises(InputError) as error:
            PortableModel.load(tmp_path)
        assert told in str(error.value)

    refused("it lacks quantiles", quantiles=None)
    refused("quantiles are not in order", quantiles=torch.tensor([1.0, 0.0]))
    refused("reference.cluster", reference__cluster=torch.zeros(3, dtype=torch.int64))
    refused("in clusters that there are not", reference__cluster=torch.full((48,), 7))
    refused("paths of reference images", reference__paths=torch.zeros(3, dtype=torch.uint8))
    refused("which nothing here takes", more=torch.zeros(3))
    refused("nothing in it fits", **{name.replace(".", "__"): None for name in tensors if name.startswith("networks")})
    refused("not finite", prototypes=torch.full_like(tensors["prototypes"], torch.nan))
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 1000)
    with pytest.raises(InputError, match=r"is damaged"):
        PortableModel.load(tmp_path)
    bits = bytearray((source / "model.safetensors").read_bytes())
    bits[-5] ^= 1
    (tmp_path / "model.safetensors").write_bytes(bits)
    with pytest.raises(InputError, match=r"checksum is wrong"):
        PortableModel.load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"copy both files"):
        PortableModel.load(tmp_path)


def test_where_no_model_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no model: it has no"):
        PortableModel.load(tmp_path)


def test_the_folder_of_the_clustering_will_do(packed: Packed) -> None:
    folder = packed("scan")[2]
    np.testing.assert_array_equal(
        PortableModel.load(folder).prototypes, PortableModel.load(folder / "model").prototypes
    )


def test_a_model_of_a_strangers_head_says_which(packed: Packed, tmp_path: Path) -> None:
    said = json.loads((packed("sinkhorn")[2] / "model" / "model.json").read_text())
    assert said["needs"] == ["small_heads"]
    folder = edited(packed("sinkhorn")[2], tmp_path, setting("head", "head", "type", "NotHere"))
    with pytest.raises(InputError, match=r"unknown head 'NotHere'.*needs small_heads, of its maker"):
        PortableModel.load(folder)


def test_loading_draws_nothing(packed: Packed) -> None:
    folder = packed("scan")[2]
    state = torch.get_rng_state()
    PortableModel.load(folder)
    assert torch.equal(state, torch.get_rng_state())


# -- export


@pytest.mark.parametrize("name", ["deeper", "spice-semi", "turtle"])
def test_the_module_is_the_model(packed: Packed, name: str) -> None:
    model, clustering, _ = packed(name)
    assert model.input_shape == (1, 8, 8)
    cluster, scores = model.module()(model.prepared(pixels()))
    np.testing.assert_array_equal(cluster.numpy(), clustering.cluster)
    np.testing.assert_allclose(scores.detach().numpy(), model.predict(pixels()).scores, atol=1e-5)


def test_pictures_of_other_sizes_and_channels(packed: Packed) -> None:
    model, _, _ = packed("scan")
    found = model.predict([torch.zeros(3, 20, 31, dtype=torch.uint8), torch.zeros(1, 8, 8, dtype=torch.uint8)])
    assert found.cluster[0] == found.cluster[1]
    with pytest.raises(InputError, match=r"has 2 channels, the model takes 1"):
        model.predict([torch.zeros(2, 8, 8, dtype=torch.uint8)])


def test_a_view_is_split_behind_what_gives_the_size() -> None:
    view: list[dict[str, Any]] = [{"type": "Resize", "size": 9}, {"type": "CenterCrop", "size": 8}, {"type": "ToFloat"}]
    assert split_view(view) == (view[:2], view[2:])
    assert split_view(view[2:]) == ([], view[2:])


# -- models that were written long ago

WRITTEN = Path(__file__).parent / "format-1"
SCORES = {
    "nearest": [[-0.1861, -0.2462, -0.5928], [-0.3622, -0.5156, -0.8558]],
    "trained": [[-0.0007, 0.0004, -0.0007], [-0.0003, 0.0001, -0.0003]],
}


@pytest.mark.parametrize("kind", sorted(SCORES))
def test_a_model_of_the_first_format_still_loads(kind: str) -> None:
    """Two folders from when the format began: whoever changes it keeps reading them, or says why not."""
    model = PortableModel.load(WRITTEN / kind)
    image = torch.zeros(1, 8, 8, dtype=torch.uint8)
    image[0, 2:4, :5] = 120
    found = model.predict([image, torch.full((1, 8, 8), 128, dtype=torch.uint8)])
    np.testing.assert_allclose(found.scores, SCORES[kind], atol=1e-4)
    assert found.repeats.tolist() == [1, -1], "the first is an image of the clustering"
    assert model.reference.paths[1] == "1.png"
    assert model.names == {0: "top", 1: "middle"}
    assert model.about["method"] == "by hand"
