"""Deep clustering with scikit-learn's interface, beyond what scikit-learn itself checks."""

from __future__ import annotations

import doctest
import logging
import multiprocessing
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from mmengine.logging import MMLogger
from PIL import Image
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import odc.estimator.clusterer
from odc import DeepClusterer
from odc.data import ArrayDataset
from odc.errors import InputError
from odc.estimator.training import see_pictures
from odc.folder import cluster

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def blobs() -> tuple[Array, Array]:
    """Three groups of vectors that differ in direction."""
    x, y = make_blobs(120, centers=[[9, 0, 0, 0], [0, 9, 0, 0], [0, 0, 9, 0]], random_state=0)
    return x, y


@pytest.fixture(scope="module")
def digits() -> Array:
    """Some grey images (40, 8, 8), from 0 to 16."""
    images: Array = load_digits().images[:40]
    return images


@pytest.fixture(scope="module")
def on_images(digits: Array) -> DeepClusterer:
    return DeepClusterer(3, method="odc", max_epochs=1).fit(digits)


def trained(**arguments: Any) -> DeepClusterer:
    return DeepClusterer(3, **{"method": "scan", "max_epochs": 2, **arguments})


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys, odc; print(sorted({'torch', 'numpy', 'sklearn', 'mmengine'} & set(sys.modules)))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert told == "[]\n"
    with pytest.raises(AttributeError, match="'DeepCluster'"):
        odc.DeepCluster  # noqa: B018


def test_the_examples_in_its_docstring() -> None:
    assert doctest.testmod(odc.estimator.clusterer).attempted > 4
    assert doctest.testmod(odc.estimator.clusterer).failed == 0


@pytest.mark.parametrize("method", ["scan", "spice", "odc", None])
def test_it_finds_groups_of_vectors(method: str | None, blobs: tuple[Array, Array]) -> None:
    x, y = blobs
    found = DeepClusterer(3, method=method, max_epochs=5).fit(x)
    assert adjusted_rand_score(y, found.labels_) == 1.0
    assert (found.predict(x) == found.labels_).all()
    assert found.score(x) > 0.9


def test_centres_are_mean_directions(blobs: tuple[Array, Array]) -> None:
    x, _ = blobs
    found = DeepClusterer(3, method="kmeans").fit(x)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = np.stack([unit[found.labels_ == k].mean(0) for k in range(3)])
    centres = means / np.linalg.norm(means, axis=1, keepdims=True)
    assert np.allclose(found.cluster_centers_, centres, atol=1e-6)
    assert np.allclose(found.transform(x), 1 - unit @ centres.T, atol=1e-6)
    assert found.transform(x).dtype == np.float32
    assert list(found.get_feature_names_out()) == [f"deepclusterer{k}" for k in range(3)]


def test_the_score_by_hand() -> None:
    x = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    found = DeepClusterer(2).fit(x)
    assert found.score(x) == 1.0, "all at their centres"
    middle = np.array([[1.0, 1.0]])
    assert found.score(middle) == pytest.approx(0, abs=1e-6), "between two"
    a, b = 1 - np.cos(np.pi / 6), 1 - np.cos(np.pi / 3)
    assert found.score([[np.sqrt(3), 1.0]]) == pytest.approx((b - a) / b, rel=1e-5)
    assert DeepClusterer(1, method="scan").fit(x).score(x) == 0.0


def test_the_number_of_clusters_may_be_searched(blobs: tuple[Array, Array]) -> None:
    search = GridSearchCV(DeepClusterer(), {"n_clusters": [2, 3]}, cv=2).fit(blobs[0])
    assert search.best_params_ == {"n_clusters": 3}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_search_on_several_processes(blobs: tuple[Array, Array]) -> None:
    grid = {"deepclusterer__n_clusters": [2, 3]}
    pipeline = make_pipeline(StandardScaler(with_mean=False), trained(max_epochs=5))
    one = GridSearchCV(pipeline, grid, cv=2, n_jobs=1).fit(blobs[0])
    two = GridSearchCV(pipeline, grid, cv=2, n_jobs=2).fit(blobs[0])
    assert (one.cv_results_["mean_test_score"] == two.cv_results_["mean_test_score"]).all()
    assert two.best_params_ == {"deepclusterer__n_clusters": 3}


def test_the_seed_decides() -> None:
    x = np.random.default_rng(0).normal(size=(60, 6))

    def clusters(state: Any) -> list[int]:
        labels: list[int] = trained(random_state=state).fit_predict(x).tolist()
        return labels

    assert clusters(0) == clone(trained()).fit_predict(x).tolist()
    generator = np.random.RandomState(3)
    first = clusters(generator)
    assert clusters(generator) != first, "it has moved on"
    assert clusters(np.random.RandomState(3)) == first


def test_threads_take_turns(blobs: tuple[Array, Array]) -> None:
    x, found = blobs[0], dict[int, list[int]]()

    def run(seed: int) -> None:
        found[seed] = trained(random_state=seed).fit_predict(x).tolist()

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {seed: trained(random_state=seed).fit_predict(x).tolist() for seed in (0, 1)}


def state() -> dict[str, Any]:
    """What a training must leave as it was."""
    return {
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "torch": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "start": multiprocessing.get_start_method(allow_none=True),
        "variables": dict(os.environ),
        "loggers": list(MMLogger._instance_dict),
        "root": (logging.root.level, list(logging.root.handlers)),
        "files": sorted(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else [],
        "temporary": sorted(Path(tempfile.gettempdir()).glob("odc-*")),
        "here": sorted(Path.cwd().iterdir()),
    }


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(
    fails: bool,
    blobs: tuple[Array, Array],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    trained().fit(blobs[0])  # what the first one imports stays
    capfd.readouterr()
    before = state()
    if fails:
        with pytest.raises(InputError):
            trained(options={"model.head.num_heads": 0}).fit(blobs[0])
    else:
        trained().fit(blobs[0]).predict(blobs[0])
    assert state() == before
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_ends_a_training_and_not_the_program(
    blobs: tuple[Array, Array], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # as what a shell starts in the background does
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("odc.heads.scan.SCANHead.loss", lambda *args: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        trained().fit(blobs[0])
    assert signal.getsignal(signal.SIGINT) is before
    assert not list(tmp_path.iterdir())
    signal.signal(signal.SIGINT, ignored)


def test_the_log_is_shown_when_asked_for(blobs: tuple[Array, Array], capfd: pytest.CaptureFixture[str]) -> None:
    trained(verbose=True).fit(blobs[0])
    assert "epoch 2/2" in capfd.readouterr().out


def test_few_pictures_are_in_memory_at_a_time() -> None:
    held, most = set[int](), 0

    class Pictures(ArrayDataset):
        def image(self, i: int) -> torch.Tensor:
            held.add(i)
            return super().image(i)

    class Model:
        spaces, prototypes = (1,), np.eye(1, dtype=np.float32)

        def features(self, images: list[torch.Tensor]) -> torch.Tensor:
            nonlocal most
            most = max(most, len(held))
            held.clear()
            return torch.ones(len(images), 1)

        def scores(self, features: torch.Tensor) -> torch.Tensor:
            return features

    data = Pictures(torch.zeros(100, 1, 2, 2, dtype=torch.uint8), [f"{i:03d}" for i in range(100)])
    found, distances = see_pictures(Model(), data)  # type: ignore[arg-type]
    assert (found.shape, distances.shape, most) == ((100,), (100, 1), 32)


def test_images_from_scratch(on_images: DeepClusterer, digits: Array, tmp_path: Path) -> None:
    assert not hasattr(on_images, "n_features_in_")
    assert on_images.cluster_centers_.shape == (3, 256)
    pictures = [Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8)) for image in digits]
    assert (on_images.predict(digits) == on_images.labels_).all()
    assert (on_images.predict(pictures) == on_images.labels_).all(), "another form of the same"
    for i, picture in enumerate(pictures[:3]):
        picture.save(tmp_path / f"{i}.png")
    assert (on_images.predict(tmp_path) == on_images.labels_[:3]).all()
    assert np.allclose(on_images.transform(digits[:3]), on_images.transform(tmp_path), atol=1e-5)


def test_a_fitted_one_is_pickled_whole(on_images: DeepClusterer, digits: Array) -> None:
    again = pickle.loads(pickle.dumps(on_images))
    assert (again.predict(digits) == on_images.labels_).all()
    assert again.get_params() == on_images.get_params()
    assert (again.labels_ == on_images.labels_).all()


def test_a_saved_one_predicts_the_same(
    on_images: DeepClusterer, digits: Array, blobs: tuple[Array, Array], tmp_path: Path
) -> None:
    on_images.save(tmp_path / "images")
    again = DeepClusterer.load(tmp_path / "images")
    assert (again.predict(digits) == on_images.labels_).all()
    assert again.n_clusters == 3
    found = DeepClusterer(3).fit(blobs[0])
    found.save(tmp_path / "vectors")
    again = DeepClusterer.load(tmp_path / "vectors")
    assert again.n_features_in_ == 4
    assert (again.predict(blobs[0]) == found.labels_).all()
    assert (again.transform(blobs[0]) == found.transform(blobs[0])).all()
    with pytest.raises(InputError, match="holds no model"):
        DeepClusterer.load(tmp_path)
    with pytest.raises(NotFittedError):
        DeepClusterer().save(tmp_path)


def test_what_the_command_line_has_left_predicts(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    draws = np.random.default_rng(0)
    for i in range(8):
        pixels = (draws.integers(0, 60, (20, 24, 3)) + i % 2 * 150).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{i}.png")
    left = cluster(tmp_path / "in", 2, tmp_path / "out")
    again = DeepClusterer.load(tmp_path / "out")
    assert (again.predict(tmp_path / "in") == left.cluster).all()


def test_confidence_is_a_rank(blobs: tuple[Array, Array]) -> None:
    x = np.random.default_rng(0).normal(size=(50, 6))
    found = DeepClusterer(3).fit(x)
    share = np.sort(found.confidence_)
    assert np.allclose(share, np.arange(1, 51) / 50, atol=1e-4), "no two margins are the same"
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = np.stack([unit[found.labels_ == k].mean(0) for k in range(3)])
    far = np.sort(np.linalg.norm(unit[:, None] - means, axis=2), axis=1)
    assert (np.argsort(found.confidence_) == np.argsort(far[:, 1] - far[:, 0])).all()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # random weights
def test_features_of_a_network(digits: Array, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A network that somebody else has trained: here random weights in a file."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("test_resnet", num_classes=0)
    save_file(network.state_dict(), tmp_path / "tiny.safetensors")
    source = f"timm:test_resnet@{tmp_path / 'tiny.safetensors'}"
    x = torch.from_numpy(digits).float()[:, None]
    found = DeepClusterer(3, method="scan", features=source, max_epochs=2).fit(x)
    assert found.cluster_centers_.shape == (3, network.num_features)
    (tmp_path / "tiny.safetensors").unlink()  # the model has the weights
    assert (found.predict(x) == found.labels_).all()
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ValueError, match="is for images, but X has vectors"):
        found.fit(digits.reshape(40, -1))
    (tmp_path / "x.npz").touch()
    with pytest.raises(InputError, match="are there already: give them as X"):
        DeepClusterer(3, features=str(tmp_path / "x.npz")).fit(x)


def test_a_folder_names_its_images(digits: Array, tmp_path: Path) -> None:
    for i, image in enumerate(digits[:6]):
        Image.fromarray(image.astype(np.uint8) * 15).save(tmp_path / f"{5 - i}.png")
    (tmp_path / "x.png").write_bytes(b"none")
    with pytest.warns(UserWarning, match=r"1 of 7 images cannot be read and are left out, x\.png first"):
        found = DeepClusterer(1, max_epochs=1).fit(tmp_path)
    assert found.paths_ == tuple(f"{i}.png" for i in range(6))
    assert found.labels_.shape == (6,)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"n_clusters": 121}, "n_samples=120 should be >= n_clusters=121"),
        ({"n_clusters": 0}, "n_clusters must be at least 1, not 0"),
        ({"max_epochs": 0}, "max_epochs must be at least 1, not 0"),
        ({"method": "spectral", "max_epochs": 3}, "max_epochs=3 is for methods that are trained: 'spectral' is not"),
        ({"method": "scam"}, "unknown method 'scam'; did you mean 'scan'?"),
        ({"options": {"model.head.num_head": 1}}, "num_head"),
        ({"random_state": -1}, "Seed must be between 0 and 2**32 - 1"),
    ],
)
def test_wrong_arguments_are_said(arguments: dict[str, Any], told: str, blobs: tuple[Array, Array]) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        DeepClusterer(**arguments).fit(blobs[0])


def test_what_it_was_not_fitted_on_is_said(on_images: DeepClusterer, digits: Array, blobs: tuple[Array, Array]) -> None:
    with pytest.raises(ValueError, match="fitted on images"):
        on_images.predict(digits.reshape(40, -1))
    with pytest.raises(ValueError, match=r"dim <= 2 is required by DeepClusterer"):
        DeepClusterer(3).fit(blobs[0]).predict(digits)
    with pytest.raises(TypeError, match=r"n_clusters must be a whole number, not 2\.5"):
        DeepClusterer(2.5).fit(blobs[0])  # type: ignore[arg-type]


def test_empty_clusters_are_said() -> None:
    x = np.repeat(np.eye(3), 4, axis=0)
    with pytest.warns(ConvergenceWarning, match="of 5 clusters have no sample"):
        found = DeepClusterer(5, method="scan", max_epochs=3).fit(x)
    empty = np.bincount(found.labels_, minlength=5) == 0
    assert empty.sum() >= 2
    assert (found.cluster_centers_[empty] == 0).all()
    assert (found.transform(x)[:, empty] == 1).all()


def test_noise_has_no_cluster(blobs: tuple[Array, Array]) -> None:
    x = blobs[0][:30]
    with pytest.warns(ConvergenceWarning, match="3 of 3 clusters"):
        found = DeepClusterer(3, method="hdbscan", options=None).fit(np.random.default_rng(0).normal(size=(30, 4)))
    assert (found.labels_ == -1).all()
    assert (found.predict(x) == -1).all()
    assert found.score(x) == 0.0
