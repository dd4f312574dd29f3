"""The report of a comparison: its numbers by hand, its pictures pixel by pixel, and the page in a real browser."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE
from sklearn.metrics import confusion_matrix
from small_records import record

from odc.comparison import charts, clusters, maps, ranking, report
from odc.comparison.pictures import Thumbnails, data_uri
from odc.comparison.ranking import Spread
from odc.comparison.report import write_report
from odc.comparison.results import Outcome, Record
from odc.data.datasets import ArrayDataset, Digits
from odc.errors import InputError
from odc.evaluation.metrics import clustering_accuracy, evaluate_clustering

N, K = 240, 10
COMMAND = "odc compare --methods kmeans random --out <here>"


def digits(labels: bool = True) -> ArrayDataset:
    """The first 240 digits, with or without their classes."""
    whole = Digits()
    assert whole.targets is not None
    return ArrayDataset(
        whole.images()[:N],
        whole.paths[:N],
        whole.targets[:N] if labels else None,
        whole.classes if labels else None,
    )


def make_cell(folder: Path, method: str, seed: int, clusters: int = K, noise: int = 0) -> Record:
    """Cluster the digits for real, leave a cell's folder, and return its record."""
    dataset = digits()
    pixels = dataset.images().flatten(1).numpy().astype(np.float32) / 255
    model = KMeans(clusters, n_init=1, max_iter=20 if method == "kmeans" else 1, random_state=seed).fit(pixels)
    distance = np.sort(model.transform(pixels), axis=1)
    cluster = model.labels_.astype(np.int32)
    if method == "random":
        cluster = np.random.default_rng(seed).integers(0, clusters, N).astype(np.int32)
    assert dataset.targets is not None
    found = evaluate_clustering(cluster, dataset.targets, clusters)
    cluster[:noise] = -1
    place = folder / f"{method}-{seed}"
    place.mkdir(parents=True)
    np.savez(
        place / "outcome.npz",
        cluster=cluster,
        confidence=-distance[:, 0],
        margin=distance[:, 1] - distance[:, 0],
        features=pixels.astype(np.float16),
    )
    curves = [{"epoch": e, "loss": 2.0 / (e + seed), "nmi_prev": 1 - 0.5 / e, "churn": None} for e in range(1, 6)]
    (place / "curves.json").write_text(json.dumps(curves))
    return record(
        method,
        seed,
        acc=found["acc"],
        nmi=found["nmi"],
        ari=found["ari"],
        knn=None,
        entropy=found["entropy"],
        empty=found["empty"],
        seconds=1.5 + seed,
        images_seen=5 * N,
        peak_rss_mb=500.0,
        epochs=5,
        folder=str(place),
    )


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """K-means with two seeds, one of them with images in no cluster, and labels drawn at random."""
    folder = tmp_path_factory.mktemp("cells")
    return [
        make_cell(folder, "random", 0),
        make_cell(folder, "random", 1),
        make_cell(folder, "kmeans", 0, noise=7),
        make_cell(folder, "kmeans", 1),
    ]


class Page(HTMLParser):
    """The tables of a page as text, its images, and whatever a browser would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.images: list[dict[str, str | None]] = []
        self.loaded: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        if named.get("id"):
            self.ids.append(str(named["id"]))
        self.loaded += [str(named[a]) for a in ("src", "href", "xlink:href", "data", "srcset") if a in named]
        if tag == "img":
            self.images.append(named)
        elif tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            row = self.tables[-1][-1]
            row[-1] = " ".join(f"{row[-1]} {data}".split())

    def row(self, method: str) -> dict[str, str]:
        """Return a method's row of the first table by column."""
        head, *rows = self.tables[0]
        return dict(zip(head, next(row for row in rows if row[0] == method), strict=True))


def render(results: list[Record], out: Path, dataset: ArrayDataset | None = None) -> str:
    """Write a report and return its text."""
    assert write_report(results, dataset or digits(), out, command=COMMAND) == out
    return out.read_text(encoding="utf-8")


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_the_table_by_hand(tmp_path: Path) -> None:
    results = [
        record("a", 0, acc=0.5, nmi=0.2, ari=0.1, knn=0.9, seconds=10, images_seen=1000, peak_rss_mb=100.4),
        record("a", 1, acc=0.7, nmi=0.4, ari=0.1, knn=0.9, seconds=14, images_seen=1000, peak_rss_mb=100.4),
        record("b", 0, acc=0.8, nmi=0.1, ari=0.1, seconds=30, pretrain_seconds=100.0),
        record("b", 1, acc=0.9, nmi=0.1, ari=0.2, seconds=30, pretrain_seconds=300.0, num_clusters=10),
    ]
    page = Page(render(results, tmp_path / "report.html"))
    assert [row[0] for row in page.tables[0]] == ["Method", "b", "a"]
    # differences of a to b: -0.3 and -0.2; mean -0.25, std 0.0707; t(0.975, 1) = 12.706; half = 12.706 * 0.05 = 0.635
    assert page.row("a") == {
        "Method": "a",
        "ACC": "60.0 ± 14.1",
        "NMI": "30.0 ± 14.1",
        "ARI": "10.0 ± 0.0",
        "kNN": "90.0 ± 0.0",
        "Difference to best": "−25.0 −88.5 to +38.5",
        "Rank": "1.6",  # ACC 2, 2; NMI 1, 1; ARI 1.5, 2
        "Seconds": "12.0 ± 2.8",
        "Images seen": "1,000",
        "Peak MB": "100 ± 0",
        "Seeds": "2",
    }
    assert page.row("b")["Difference to best"] == "best"
    assert ", K = 10; seeds 0, 1; run on" in " ".join((tmp_path / "report.html").read_text(encoding="utf-8").split())
    assert page.row("b")["kNN"] == "–"
    assert page.row("b")["Rank"] == "1.4"
    assert page.row("b")["Seconds"] == "30.0 ± 0.0 + 200.0 before"


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6))
    difference = ranking.paired_difference(dict(enumerate(a.tolist())), dict(enumerate(b.tolist())))
    oracle = stats.ttest_rel(a, b)
    assert difference is not None
    assert difference.interval is not None
    assert difference.mean == pytest.approx(a.mean() - b.mean())
    assert difference.interval == pytest.approx(tuple(oracle.confidence_interval(0.95)))


def test_only_shared_seeds_are_paired() -> None:
    assert ranking.paired_difference({0: 0.5, 1: 0.75}, {1: 0.5, 2: 0.9}) == ranking.Difference(0.25, None)
    assert ranking.paired_difference({0: 0.5}, {1: 0.4}) is None


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    text = render([record("a", 3, acc=0.5, seconds=1), record("b", 3, acc=0.25, seconds=1)], tmp_path / "r.html")
    assert Page(text).row("b")["Difference to best"] == "−25.0 n = 1: no interval"
    assert "a has the highest accuracy, 50.0 % (one seed); b follows, −25.0 points" in text
    assert "±" not in Page(text).row("a")["ACC"]
    assert "</table></div>\n<p>One seed decides nothing: " in text
    two = [record(method, seed, acc=0.5) for method in "ab" for seed in (3, 4)]
    assert "One seed decides nothing" not in render(two, tmp_path / "two.html")


@pytest.mark.parametrize(("second", "sure"), [([0.7, 0.7, 0.71], True), ([0.79, 0.83, 0.78], False)])
def test_the_headline_says_whether_the_seeds_tell_them_apart(second: list[float], sure: bool, tmp_path: Path) -> None:
    results = [record("a", s, acc=v) for s, v in enumerate([0.8, 0.81, 0.82])]
    results += [record("b", s, acc=v) for s, v in enumerate(second)]
    text = render(results, tmp_path / "r.html")
    assert "a has the highest accuracy, 81.0 ± 1.0 %" in text
    assert ("do not tell the two apart" in text) is not sure


def test_equal_values_share_a_rank() -> None:
    records = [record("a", 0, acc=0.5), record("b", 0, acc=0.5), record("c", 0)]
    ranks = ranking.mean_ranks(ranking.Comparison.of(records).rows)
    assert ranks == {"a": 1.5, "b": 1.5}


def test_pretraining_is_no_row(tmp_path: Path) -> None:
    results = [
        record("moco", 0, before=("a",), knn=0.75, seconds=100.0, epochs=40),
        record("moco", 1, before=("a",), knn=0.85, seconds=120.0, epochs=40),
        record("a", 0, acc=0.5, seconds=1.0, pretrain_seconds=110.0),
    ]
    text = render(results, tmp_path / "r.html")
    assert [row[0] for row in Page(text).tables[0]] == ["Method", "a"]
    assert "40 epochs: 110.0 ± 14.1 s; the kNN accuracy of its features is 80.0 ± 7.1 %" in text


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 cells"):
        write_report([], digits(), tmp_path / "r.html", command="")


# -- what is missing -------------------------------------------------------------------------------------------------


def test_failed_cells_have_a_row_and_are_escaped(cells: list[Record], tmp_path: Path) -> None:
    error = '<script>alert("x")</script>'
    results = [
        *cells,
        record("a<b>", 0, error=error, log="logs/0.txt"),
        record("a<b>", 1, error=error, log="logs/1.txt"),
        record("kmeans", 2, error="InputError: K=500"),
    ]
    text = render(results, tmp_path / "r.html")
    page = Page(text)
    rows = [row[0] for row in page.tables[0]]
    assert f"a<b> failed with seeds 0, 1: {error} (logs/0.txt)" in rows
    assert "kmeans failed with seed 2: InputError: K=500" in rows
    assert page.row("kmeans")["Seeds"] == "2 of 3"
    assert rows[-1].startswith("a<b>")  # after those that ended
    assert "script" not in page.tags
    assert "b" not in page.ids
    assert "&lt;here&gt;" in text


def test_names_of_classes_and_paths_are_escaped(tmp_path: Path) -> None:
    dataset = digits()
    evil = ArrayDataset(dataset.images(), [f"{i:03}<script>\"'" for i in range(N)], dataset.targets, ["<script>"] * K)
    page = Page(render([make_cell(tmp_path, "kmeans", 0)], tmp_path / "r.html", evil))
    assert "script" not in page.tags
    assert any("<script>\"' (<script>)" in str(image["alt"]) for image in page.images)


def test_all_methods_failed(tmp_path: Path) -> None:
    text = render([record("a", 0, error="E: no")], tmp_path / "r.html")
    assert "No method ended" in text
    assert "No method has ended." in text
    assert "no ground truth" not in text


def test_cells_without_files_say_so(cells: list[Record], tmp_path: Path) -> None:
    bare = replace(cells[0], folder=str(tmp_path / "nowhere"))
    text = render([bare], tmp_path / "r.html")
    assert "The cell has left no <code>outcome.npz</code>" in text
    assert "Without learning curves: random." in text
    assert "No map: the cell has left no outcome.npz" in text
    assert not Page(text).images


def test_damaged_files_are_named(cells: list[Record], tmp_path: Path) -> None:
    shutil.copytree(cells[0].folder, tmp_path / "cell")
    moved = replace(cells[0], folder=str(tmp_path / "cell"))
    outcome, curves = tmp_path / "cell" / "outcome.npz", tmp_path / "cell" / "curves.json"
    whole = outcome.read_bytes()
    outcome.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"outcome\.npz\' is not the outcome of a cell"):
        render([moved], tmp_path / "r.html")
    np.savez(outcome, cluster=np.zeros(N, np.int32))
    with pytest.raises(InputError, match="confidence"):
        render([moved], tmp_path / "r.html")
    outcome.write_bytes(whole)
    smaller = ArrayDataset(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), list("abcde"))
    with pytest.raises(InputError, match="of 240 images but the data set has 5"):
        render([moved], tmp_path / "r.html", smaller)
    curves.write_text('[{"epoch": 1}, 3]')
    with pytest.raises(InputError, match=r"curves\.json' is not a list of epochs"):
        render([moved], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_without_ground_truth(cells: list[Record], tmp_path: Path) -> None:
    known = ("acc", "nmi", "ari", "knn")
    results = [replace(c, values={k: v for k, v in c.values.items() if k not in known}) for c in cells]
    text = render(results, tmp_path / "r.html", digits(labels=False))
    page = Page(text)
    assert "There is no ground truth" in text
    assert page.tables[0][0][:3] == ["Method", "Entropy", "Empty clusters"]
    assert [row[0] for row in page.tables[0][1:]] == ["random", "kmeans"]  # drawn at random is more even
    with np.load(Path(cells[0].folder) / "outcome.npz") as first:
        share = np.bincount(first["cluster"]) / N
    with np.load(Path(cells[1].folder) / "outcome.npz") as second:
        other = np.bincount(second["cluster"]) / N
    mean = np.mean([-(s * np.log(s)).sum() / math.log(K) for s in (share, other)])
    assert page.row("random")["Entropy"].startswith(f"{mean:.3f} ±")
    assert "Classes and clusters" not in text
    assert "By cluster" in text
    assert "By class" not in text
    assert " are “" not in text


# -- clusters --------------------------------------------------------------------------------------------------------


def clusters_of(cell: Record, dataset: ArrayDataset) -> tuple[clusters.Clusters, Outcome]:
    outcome = Outcome.load(Path(cell.folder), N)
    assert outcome is not None
    found = clusters.clusters_of(cell.method, outcome, dataset, Thumbnails(dataset))
    return found, outcome


def test_confusion_matrix_and_noise(cells: list[Record]) -> None:
    dataset = digits()
    found, outcome = clusters_of(cells[2], dataset)
    assert dataset.targets is not None
    assert found.confusion is not None
    assert found.none == 7
    assert found.confusion.clusters[-1] == "none"
    counts = np.array(found.confusion.counts)
    ours = np.where(outcome.cluster < 0, K, outcome.cluster)
    oracle = confusion_matrix(dataset.targets, ours, labels=range(K + 1))[:K]
    columns = [K if name == "none" else int(name) for name in found.confusion.clusters]
    assert (counts == oracle[:, columns]).all()
    known = outcome.cluster >= 0
    accuracy, _ = clustering_accuracy(outcome.cluster[known], dataset.targets[known])
    assert np.trace(counts) == round(accuracy * known.sum())
    assert not found.profile
    assert sum(found.sizes.values()) == N - 7
    assert list(found.sizes.values()) == sorted(found.sizes.values(), reverse=True)


def test_unmatched_clusters_come_last_and_many_become_a_picture(tmp_path: Path) -> None:
    dataset = digits()
    found, outcome = clusters_of(make_cell(tmp_path, "kmeans", 0, clusters=40), dataset)
    assert found.confusion is not None
    assert len(found.sizes) == 40
    assert len(found.strips) == clusters.MOST_CLUSTERS
    assert found.profile.startswith("M0 100L0 0L")
    picture = decode(found.confusion.uri)
    assert picture.size == (40, K)
    sizes = np.bincount(outcome.cluster)[[int(c) for c in found.confusion.clusters[K:]]]
    assert (np.diff(sizes) <= 0).all()


def decode(uri: str) -> Image.Image:
    kind, data = uri.split(",")
    assert re.fullmatch(r"data:image/(png|jpeg);base64", kind)
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_strips_show_the_right_images(cells: list[Record]) -> None:
    dataset = digits()
    found, outcome = clusters_of(cells[2], dataset)
    assert dataset.targets is not None
    for cluster, kinds in found.strips.items():
        members = np.flatnonzero(outcome.cluster == cluster)
        assert found.sizes[cluster] == len(members)
        votes = np.bincount(dataset.targets[members])
        name, share = found.majority[cluster]
        assert name == str(votes.argmax())
        assert share == pytest.approx(votes.max() / len(members))
        central = members[np.argsort(-outcome.confidence[members], kind="stable")][:6]
        rest = np.setdiff1d(members, central)
        borderline = rest[np.argsort(outcome.margin[rest], kind="stable")][:6]
        for (_, sprite, names), expected in zip(kinds[:2], (central, borderline), strict=True):
            pixels = torch.from_numpy(np.array(decode(sprite.uri)))
            tiles = pixels.reshape(8, -1, 8).transpose(0, 1)
            assert (tiles == torch.stack([dataset.image(int(i))[0] for i in expected])).all()
            assert (sprite.columns, sprite.rows, sprite.width, sprite.height) == (6, 1, 288, 48)
            assert [name.split()[0] for name in names] == [dataset.paths[i] for i in expected]
        assert [kind for kind, _, _ in kinds] == ["most central", "borderline", "random"]
        shown = [name for _, _, names in kinds for name in names]
        assert len(shown) == len(set(shown)) == min(18, len(members))


def test_no_image_in_a_cluster(tmp_path: Path) -> None:
    cell = make_cell(tmp_path, "kmeans", 0, noise=N)
    text = render([cell], tmp_path / "r.html")
    assert "No image is in a cluster." in text
    assert "No map: no image is in a cluster." in text


def test_unknown_classes_are_left_out(tmp_path: Path) -> None:
    dataset = digits()
    assert dataset.targets is not None
    targets = dataset.targets.copy()
    targets[100:] = -1
    part = ArrayDataset(dataset.images(), dataset.paths, targets, dataset.classes)
    found, _ = clusters_of(make_cell(tmp_path, "kmeans", 0), part)
    assert found.confusion is not None
    assert np.sum(found.confusion.counts) == 100


@pytest.mark.parametrize(
    ("shape", "columns", "width"),
    [
        ((1, 8, 8), 6, 48),
        ((3, 28, 28), 3, 56),
        ((3, 32, 32), 3, 64),
        ((3, 96, 48), 6, 48),
        ((3, 47, 47), 3, 94),
        ((3, 90, 200), 3, 96),
    ],
)
def test_thumbnails_fit_a_phone(shape: tuple[int, int, int], columns: int, width: int) -> None:
    images = torch.randint(0, 255, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    thumbnails = Thumbnails(ArrayDataset(images, list("abc")))
    assert (thumbnails.columns, thumbnails.width) == (columns, width)
    sprite = thumbnails.sprite([0, 1, 2, 0, 1, 2])
    assert sprite.width == columns * width <= 300
    picture = decode(sprite.uri)
    assert sprite.width % picture.width == 0
    assert picture.mode == ("L" if shape[0] == 1 else "RGB")


def test_photographs_are_cropped_to_their_middle(tmp_path: Path) -> None:
    from odc.data.image_files import ImageFolder

    for name, size in (("a.png", (400, 200)), ("b.png", (10, 20))):
        across = size[0] > size[1]
        image = Image.new("RGB", size, "blue")
        image.paste("red", (100, 0, 300, 200) if across else (0, 5, 10, 15))
        image.save(tmp_path / name)
    sprite = Thumbnails(ImageFolder(str(tmp_path))).sprite([0, 1])
    pixels = np.array(decode(sprite.uri)).astype(int)
    assert pixels.shape == (96, 192, 3)
    assert not sprite.pixelated
    for left in (0, 96):
        inside = pixels[8:88, left + 8 : left + 88]
        assert ((inside[..., 0] > 200) & (inside[..., 2] < 60)).all()


def test_every_thumbnail_has_its_name(cells: list[Record], tmp_path: Path) -> None:
    text = render(cells, tmp_path / "r.html")
    assert '<i title="digits/' in text
    strips = [str(image["alt"]) for image in Page(text).images if str(image["alt"]).startswith("Cluster ")]
    assert text.count("<i title=") == sum(1 + alt.count(", digits/") for alt in strips)


def test_seeds_agree_by_hand(cells: list[Record], tmp_path: Path) -> None:
    a, b = np.array([0, 0, 1, 1]), np.array([1, 1, 0, 0])
    assert report.seeds_agree([a]) is None
    assert report.seeds_agree([a, b]) == 1.0
    assert report.seeds_agree([a, b, np.array([0, 1, 0, 1])]) == pytest.approx((1 - 0.5 - 0.5) / 3)
    text = render(cells, tmp_path / "r.html")
    assert len(re.findall(r"seeds agree by -?\d\.\d\d", text)) == 2


def test_photographs_become_jpeg_and_drawings_png() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    assert data_uri(Image.fromarray(noise).resize((128, 128), Image.Resampling.BICUBIC)).startswith("data:image/jpeg")
    assert data_uri(Image.new("L", (8, 8))).startswith("data:image/png")


# -- maps ------------------------------------------------------------------------------------------------------------


def test_maps_are_kept_under_the_checksum_of_the_features(
    cells: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(cells[1].folder, tmp_path / "cell", ignore=shutil.ignore_patterns("embedding-2d.npz"))
    outcome = Outcome.load(tmp_path / "cell", N)
    assert outcome is not None
    monkeypatch.setattr(maps, "MOST_POINTS", 60)
    runs = []

    def counted(**options: Any) -> Any:
        runs.append(options)
        return TSNE(**options)

    monkeypatch.setattr(maps, "TSNE", counted)
    first, why = maps.embed(outcome.features, tmp_path / "cell")
    assert first is not None
    assert why == ""
    index, xy = first
    assert len(index) == 60
    assert (np.diff(index) > 0).all()
    assert xy.shape == (60, 2)
    again, _ = maps.embed(outcome.features, tmp_path / "cell")
    assert again is not None
    assert (again[1] == xy).all()
    assert len(runs) == 1
    maps.embed(outcome.features + 1, tmp_path / "cell")
    assert len(runs) == 2
    (tmp_path / "cell" / "embedding-2d.npz").write_bytes(b"PK")
    anew, _ = maps.embed(outcome.features, tmp_path / "cell")
    assert len(runs) == 3
    assert anew is not None
    assert (anew[1] == xy).all()


def test_features_that_have_no_map(cells: list[Record], tmp_path: Path) -> None:
    outcome = Outcome.load(Path(cells[0].folder), N)
    assert outcome is not None
    features = outcome.features.copy()
    features[3, 0] = np.nan
    assert maps.embed(features, tmp_path) == (None, "1 rows of features are not finite")
    assert maps.embed(outcome.features[:5], tmp_path) == (None, "5 images are too few for a map")
    assert maps.embed(np.full((15, 4), 7, np.float32), tmp_path) == (
        None,
        "all 15 images have equal features: there is nothing to map",
    )


def test_classes_that_nobody_knows_are_no_map() -> None:
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    spots = maps.scale(np.array([[0, 0], [0, 1], [1, 1], [1, 0]], np.float32))
    dataset = ArrayDataset(images, list("abcd"), np.full(4, -1), ["cat", "dog"])
    assert [name for name, _ in maps.maps_of(spots, np.arange(4), np.arange(4), dataset, [0], {})] == ["cluster"]


def test_matched_clusters_have_their_classes_colours() -> None:
    dataset = ArrayDataset(
        torch.zeros(4, 1, 8, 8, dtype=torch.uint8), list("abcd"), np.array([0, 0, 1, -1]), ["cat", "dog"]
    )
    spots = maps.scale(np.array([[0, 0], [0, 1], [1, 1], [1, 0]], np.float32))
    cluster = np.array([5, 5, 3, -1])
    drawn = maps.maps_of(spots, np.arange(4), cluster, dataset, [5, 3], {5: 0, 3: 1})
    by_cluster, by_class = (groups for _, groups in drawn)
    assert {g.label: g.colour for g in by_cluster} == {"": "none", "5": "few0", "3": "few1"}
    assert {g.label: g.colour for g in by_class} == {"": "none", "cat": "few0", "dog": "few1"}
    assert by_cluster[0].path == "M780 20h0"
    assert by_class[1].path == "M20 20h0M20 780h0"


def test_more_groups_than_shapes_are_dots_with_numbers() -> None:
    ids = np.arange(30)
    spots = maps.scale(np.stack([ids % 6, ids // 6], 1).astype(np.float32))
    found = maps.groups(spots, ids, {i: str(i) for i in range(30)}, {i: i for i in range(30)}, range(30), False)
    assert all(g.dots for g in found)
    assert found[0].colour == found[maps.COLOURS].colour == "many0"
    assert {g.label for g in found} == {str(i) for i in range(30)}
    boxes = [(g.x * 3.4, g.y * 3.4) for g in found]
    for i, (x, y) in enumerate(boxes):
        assert all(abs(x - u) > 8 or abs(y - v) > 8 for u, v in boxes[:i])


# -- charts ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0.1, 1e4),
            st.floats(0, 1),
            st.floats(0, 0.1),
            st.booleans(),
            st.text("mwo-", min_size=2, max_size=10),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_names_in_the_chart_do_not_overlap(given_points: list[tuple[float, float, float, bool, str]]) -> None:
    points = [
        charts.Point(name, Spread(cost, 0.1 * cost), Spread(cost * 3, None) if pretrained else None, Spread(acc, std))
        for cost, acc, std, pretrained, name in given_points
    ]
    for width in (report.WIDE, report.NARROW):
        chart = charts.cost_chart(points, width, 320)
        assert len(chart.marks) == len(points)
        for i, (mark, label) in enumerate(chart.marks):
            assert chart.frame.left <= label.box.left <= label.box.right <= chart.frame.right + 0.1
            assert chart.frame.top <= label.box.top <= label.box.bottom <= chart.frame.bottom + 0.1
            assert chart.frame.left <= mark.x <= chart.frame.right
            assert chart.frame.top <= mark.y <= chart.frame.bottom
            assert all(label.box.overlap(other.box) == 0 for _, other in chart.marks[:i])
        for position, word in chart.x_ticks:
            assert chart.frame.left <= position <= chart.frame.right
            assert float(word) > 0


def test_the_chart_by_hand() -> None:
    chart = charts.cost_chart(
        [
            charts.Point("a", Spread(1.0, None), Spread(100.0, None), Spread(0.5, 0.05)),
            charts.Point("b", Spread(10.0, 1.0), None, Spread(0.9, None)),
        ],
        960,
        400,
    )
    (a, _), (b, _) = chart.marks
    assert a.total_x is not None
    assert (b.x - a.x) == pytest.approx((a.total_x - a.x) / 2, abs=0.2)  # 1, 10, 100
    assert a.y > b.y
    assert a.y_bar is not None
    assert a.y_bar[0] - a.y == pytest.approx((a.y - b.y) / 8, abs=0.2)  # 5 of 40 points
    assert a.x_bar is None
    assert b.y_bar is None


def test_ticks_by_hand() -> None:
    assert charts.ticks(61.0, 83.0, 5) == [65, 70, 75, 80]
    assert charts.ticks(-0.1, 0.2, 4) == [-0.1, 0, 0.1, 0.2]
    assert charts.log_ticks(0.8, 250, 10) == [1, 2, 5, 10, 20, 50, 100, 200]
    assert charts.log_ticks(0.8, 250, 3) == [1, 10, 100]
    assert charts.log_ticks(8.5, 21.0, 5) == [9, 10, 15, 20]


def test_a_panel_by_hand() -> None:
    found = charts.panel("loss", [[(1, 4.0), (2, 2.0), (3, 0.0)], [(3, 1.0)]], (0.0, 4.0))
    assert found.lines == ["M0 0L50 50L100 100", "M100 75h0"]
    assert (found.low, found.high, found.first, found.last) == ("0", "4", "1", "3")
    long = charts.panel("loss", [[(i, 0.0) for i in range(10_000)]], (0.0, 1.0))
    assert long.lines[0].count("L") <= 300
    assert long.lines[0].endswith("L100 100")


def test_curves_share_axes_but_for_the_loss() -> None:
    a = [{"epoch": 1, "loss": 4.0, "entropy": 0.2}, {"epoch": 2, "loss": 2.0, "entropy": 0.3, "acc": 0.5}]
    b = [{"epoch": 1, "loss": 9.0, "entropy": 0.4}, {"epoch": 2, "loss": 8.0, "entropy": 0.8, "knn": math.nan}]
    first, second = charts.curves_of({"a": {0: a, 1: a[::-1]}, "b": {0: b}}).values()
    # ACC was looked at once, and kNN never: neither is a curve
    assert [(p.name, p.low, p.high) for p in first] == [
        ("loss", "2", "4"),
        ("entropy of the sizes", "0.2", "0.8"),
    ]
    assert [(p.name, p.low, p.high) for p in second] == [
        ("loss", "8", "9"),
        ("entropy of the sizes", "0.2", "0.8"),
    ]
    assert len(first[0].lines) == 2


# -- the file --------------------------------------------------------------------------------------------------------


def test_the_same_cells_give_the_same_bytes(cells: list[Record], tmp_path: Path) -> None:
    first = render(cells, tmp_path / "a.html")
    assert render(cells, tmp_path / "b.html") == first
    # and so where every map is drawn anew
    moved = []
    for cell in cells:
        folder = tmp_path / Path(cell.folder).name
        shutil.copytree(cell.folder, folder, ignore=shutil.ignore_patterns("embedding-2d.npz"))
        moved.append(replace(cell, folder=str(folder)))
    anew = render(moved, tmp_path / "c.html")
    here, there = str(tmp_path), str(Path(cells[0].folder).parent)
    assert anew.replace(here, "") == first.replace(there, "")
    assert {p.name for p in tmp_path.iterdir() if p.is_file()} == {"a.html", "b.html", "c.html"}


def test_nothing_is_loaded_from_anywhere(cells: list[Record], tmp_path: Path) -> None:
    text = render(cells, tmp_path / "r.html")
    page = Page(text)
    assert page.images
    for address in page.loaded:
        assert address.startswith(("data:", "#"))
        assert not address.startswith("#") or address[1:] in page.ids
    assert len(page.ids) == len(set(page.ids))
    assert "script" not in page.tags
    assert not re.search(r"https?://|url\(|@import", text)
    assert all(image["alt"] for image in page.images)
    assert len(text) < 500_000


# -- a real browser --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [375, 1000, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(browser: Any, cells: list[Record], width: int, scheme: str, tmp_path: Path) -> None:
    failed = record("hdbscan", 0, error="E: " + "a/very/long/path/" * 20, log="l" * 300)
    render([*cells, failed], tmp_path / "report.html")
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get((tmp_path / "report.html").as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    pictures = browser.execute_script(
        "return [...document.images].map(i => [i.naturalWidth, i.getBoundingClientRect()]).map("
        "([n, r]) => [n, r.width, r.right])"
    )
    assert len(pictures) > 30
    assert all(natural > 0 and shown > 0 and right <= width for natural, shown, right in pictures)
    assert browser.execute_script("return document.querySelectorAll('table.numbers tbody tr').length") == 3
    chart = "return [...document.querySelectorAll('#cost svg[role=img]')].filter(s => s.clientWidth).length"
    assert browser.execute_script(chart) == 1  # of two sizes, the one that fits
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") is (scheme == "light")
    small = """return [...document.querySelectorAll('body *')].filter(e => [...e.childNodes].some(
        n => n.nodeType == 3 && n.data.trim()) && e.getClientRects().length).map(e => {
        const svg = e.closest('svg'), scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
        return parseFloat(getComputedStyle(e).fontSize) * scale}).filter(s => s < 12).length"""
    assert browser.execute_script(small) == 0
    assert browser.get_log("browser") == []
