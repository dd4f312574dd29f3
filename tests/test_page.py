"""The page of one clustering: what it shows, by hand; hostile names; and its use in a real browser."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Callable, Iterator
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
from sklearn.metrics import silhouette_score

from odc.cli import main
from odc.data.datasets import ArrayDataset
from odc.data.image_files import FileDataset
from odc.errors import InputError
from odc.pages import Words, numbers, sheets, write_page
from odc.pages.choice import choose
from odc.pages.folder import pictures_of
from odc.results.clustering import Clustering

HOSTILE = "</script><img src=x onerror=window.broken=1>.png"
TURNED = "a\u202egnp.exe.png"
N, K = 60, 3


def clustering(cluster: list[int], **columns: Any) -> Clustering:
    """A clustering of images 0.png, 1.png, ... with these columns; else all are alike."""
    n = len(cluster)
    told: dict[str, Any] = {
        "root": "photos",
        "paths": tuple(f"{i:03}.png" for i in range(n)),
        "confidence": np.full(n, 0.5),
        "consistency": np.ones(n),
        "distance": np.zeros(n),
        "outlier": np.zeros(n, np.bool_),
        "duplicate_of": np.full(n, -1),
        "features": np.eye(max(n, 2))[:n],
        "num_clusters": max(cluster) + 1,
    }
    told |= columns
    for name in ("confidence", "consistency", "distance", "features"):
        told[name] = np.asarray(told[name], np.float32)
    told["duplicate_of"] = np.asarray(told["duplicate_of"], np.int64)
    told["outlier"] = np.asarray(told["outlier"], np.bool_)
    return Clustering(cluster=np.asarray(cluster, np.int64), **told)


class Parsed(HTMLParser):
    """The tags of a page, and the text of its scripts by their id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.inside: dict[str, str] = {}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._open = str(dict(attrs).get("id", tag)) if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.inside[self._open] = self.inside.get(self._open, "") + data

    @property
    def data(self) -> Any:
        return json.loads(self.inside["data"])


# -- which images are shown ------------------------------------------------------------------------------------------


def test_a_strip_by_hand() -> None:
    found = clustering(
        [0] * 8,
        distance=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],
        confidence=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.2, 0.3],
        duplicate_of=[-1, 0, -1, -1, -1, -1, -1, -1],
    )
    chosen = choose(found, most=6)  # two of each kind
    central, borderline, others = ([int(chosen.rows[i]) for i in kind] for kind in chosen.strips[0])
    assert central == [0, 2]  # 1 repeats 0
    assert borderline == [6, 7]
    assert len(set(others) & {1, 3, 4, 5}) == 2
    assert chosen.in_strips == len(chosen.rows) == 6


def test_all_images_of_a_few_are_shown_the_surest_first() -> None:
    found = clustering([1, 0, 1, -1, 1, 1, 1], confidence=[0.1, 0.5, 0.2, 0, 0.3, 0.4, 0.9])
    chosen = choose(found)
    assert chosen.clusters == [1, 0]
    assert sorted(chosen.rows.tolist()) == list(range(7))
    assert chosen.rows.tolist()[-1] == 3  # in no cluster


@given(
    st.lists(st.integers(-1, 5), min_size=1, max_size=60).filter(lambda c: max(c) >= 0),
    st.integers(1, 80),
    st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_every_image_is_shown_once_at_most(cluster: list[int], most: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = len(cluster)
    found = clustering(cluster, confidence=rng.random(n), distance=rng.random(n), outlier=rng.random(n) < 0.3)
    chosen = choose(found, most)
    rows = chosen.rows.tolist()
    assert len(set(rows)) == len(rows)
    filled = set(cluster) - {-1}
    assert len(rows) <= max(most, 3 * len(filled))
    assert len(rows) >= min(n, most)
    assert set(chosen.clusters) == filled == {cluster[i] for i in rows} - {-1}
    for c, strip in chosen.strips.items():
        assert all(cluster[rows[i]] == c for kind in strip for i in kind)
    places = [i for strip in chosen.strips.values() for kind in strip for i in kind]
    assert sorted(places) == list(range(chosen.in_strips))


# -- thumbnails ------------------------------------------------------------------------------------------------------


def opened(sheet: sheets.Sheet) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(sheet.uri.split(",")[1])))


def test_tiny_images_stay_as_they_are() -> None:
    images = torch.arange(50 * 12, dtype=torch.uint8).reshape(50, 1, 4, 3)
    drawn = sheets.draw_sheets(ArrayDataset(images, [f"{i:02}" for i in range(50)]), [49, *range(49)], 3)
    assert drawn.pixelated
    assert [(s.columns, s.rows) for s in drawn.sheets] == [(8, 6), (2, 1)]
    first = np.asarray(opened(drawn.sheets[0]))
    assert first.shape == (24, 32)
    assert (first[:4, :3] == images[49, 0].numpy()).all()
    assert (first[:4, 3] == 128).all()  # beside an image that is no square
    assert (first[4:8, 8:11] == images[9, 0].numpy()).all()  # place 10 has image 9
    assert (np.asarray(opened(drawn.sheets[1]))[:4, 4:7] == images[48, 0].numpy()).all()


def test_photographs_are_cropped_to_their_middle(tmp_path: Path) -> None:
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, :100, 0] = wide[:, 100:200, 1] = wide[:, 200:, 2] = 255
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(wide.transpose(1, 0, 2)).save(tmp_path / "b.png")
    drawn = sheets.draw_sheets(FileDataset(str(tmp_path), ["a.png", "b.png"], {}, {}), [0, 1, -1], 0)
    assert not drawn.pixelated
    sheet = np.asarray(opened(drawn.sheets[0])).astype(int)
    assert sheet.shape == (sheets.LARGE, 3 * sheets.LARGE, 3)
    inside = np.s_[4:-4, 4 : sheets.LARGE - 4]
    for k in (0, 1):
        tile = sheet[:, k * sheets.LARGE : (k + 1) * sheets.LARGE][inside]
        assert (tile[..., 1] > 200).all()
        assert (tile[..., [0, 2]] < 60).all()
    assert (np.abs(sheet[:, 2 * sheets.LARGE :][inside] - 128) < 3).all()  # not in the data set


def test_few_images_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (200, 100), "red").save(tmp_path / "a.png")
    dataset = FileDataset(str(tmp_path), ["a.png"], {}, {})

    def sides(count: int, large: int) -> list[int]:
        return [opened(s).width // s.columns for s in sheets.draw_sheets(dataset, [0] * count, large).sheets]

    monkeypatch.setattr(sheets, "FEW", 50)
    assert sides(50, 0) == [sheets.LARGE] * 2
    assert sides(60, 20) == [sheets.LARGE, sheets.SMALL]  # 20 are a sheet
    assert sides(99, 99) == [sheets.LARGE] * 2 + [sheets.SMALL]
    assert sides(51, 0) == [sheets.SMALL] * 2


def test_a_large_photograph_is_decoded_small(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 1600, dtype=np.uint8)
    Image.fromarray(np.broadcast_to(ramp[:, None], (1600, 1200)).copy()).convert("RGB").save(tmp_path / "a.jpg")
    dataset = FileDataset(str(tmp_path), ["a.jpg"], {}, {})
    small = dataset.preview(0, 128)
    assert small.shape == (3, 200, 150)
    assert dataset.image(0).shape == (3, 1600, 1200)
    assert (small[0, :, 0].float() - torch.linspace(0, 255, 200)).abs().max() < 6
    assert dataset.preview(0, 5000).shape == (3, 1600, 1200)


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_silhouettes() -> None:
    unit = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [-1, 0]], np.float32)
    found = numbers.silhouette(unit, np.array([0, 0, 1, 1, -1]))
    assert (found.whole, found.clusters) == (1.0, {0: 1.0, 1: 1.0})
    assert numbers.silhouette(unit, np.array([0, 0, 0, 0, -1])).whole is None
    assert numbers.silhouette(unit[:2], np.array([0, 1])).whole is None  # every image alone
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 5)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    c = rng.integers(0, 4, 80)
    assert numbers.silhouette(x, c).whole == pytest.approx(silhouette_score(x, c, metric="cosine"), abs=6e-4)


def test_images_without_a_place_go_between_those_that_have_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("odc.comparison.maps.MOST_POINTS", 12)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 6)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    unit = np.repeat(x, [2] * 12, axis=0)  # every image twice
    places, why = numbers.places(unit, tmp_path)
    xy = np.array(places)
    assert why == ""
    assert xy.shape == (24, 2)
    assert (xy.min(), xy.max()) == (0, 1000)
    with np.load(tmp_path / "embedding-2d.npz") as kept:
        index, spots = kept["index"], kept["xy"]
    others = np.setdiff1d(np.arange(24), index)
    assert len(others) == 12
    for i in others:  # by hand: three nearest by cosine, weights 1, 1/2, 1/3
        nearest = np.argsort(-(unit[index] @ unit[i]), kind="stable")[:3]
        mean = (spots[nearest] * (np.array([6, 3, 2]) / 11)[:, None]).sum(0)
        low, high = spots.min(0), spots.max(0)
        scaled = (mean - (low + high) / 2) / (high - low).max() * 1000 + 500
        if len(set(np.round(unit[index] @ unit[i], 5)[nearest])) == 3:
            assert np.abs(xy[i] - scaled).max() <= 1
    assert numbers.places(unit[:5], tmp_path) == ([], "5 images are too few for a map")


def test_similar_clusters() -> None:
    centers = np.array([[1, 0], [0, 1], [0.8, 0.6]], np.float32)
    assert numbers.similar(centers, 5) == [[2, 1], [2, 0], [0, 1]]
    assert numbers.similar(centers[:1], 5) == [[]]


def test_names_are_guessed_by_hand(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", words=np.array(["up", "right", "left"]), vectors=np.array([[5, 9], [6, 5], [4, 5.0]]))
    words = Words.load(tmp_path / "w.npz")
    centers = np.array([[0.8, 0.6], [0.6, 0.8], [9, 9]], np.float32)
    found = words.guesses(centers, np.array([0, 1]))
    assert found[0][0] == "right"
    assert set(found[1][:2]) == {"left", "up"}
    with pytest.raises(InputError, match=r"width 2, and the features 3"):
        words.guesses(np.eye(3, dtype=np.float32), np.arange(3))


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"words": np.array(["a"])}, "it holds words"),
        ({"words": np.array(["a"]), "vectors": np.zeros((2, 3))}, "1 words and 2 vectors"),
        ({"words": np.array(["a"]), "vectors": np.array([[np.nan]])}, "not finite"),
        ({"words": np.array(["a"], dtype=object), "vectors": np.zeros((1, 3))}, "kind"),
    ],
)
def test_damaged_words(arrays: dict[str, Any], told: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(InputError, match=told):
        Words.load(tmp_path / "w.npz")


def test_words_must_have_vectors(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("apple\n")
    with pytest.raises(InputError, match="only a network with a text tower"):
        Words.load(tmp_path / "words.txt")
    with pytest.raises(InputError, match="there is no file"):
        Words.load(tmp_path / "words.npz")


# -- the file --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``odc cluster`` leaves, of 60 small photographs in three colours, two of them with hostile names."""
    home = tmp_path_factory.mktemp("clustering")
    root = home / "photos & more"
    (root / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"sub/{i:02}.png" for i in range(N - 2)] + [HOSTILE.replace("/", "∕"), TURNED]
    order = np.argsort(names)
    names = [names[i] for i in order]
    colour = np.arange(N) % K
    for name, c in zip(names, colour, strict=True):
        pixels = rng.integers(0, 90, (90, 120, 3))
        pixels[..., c] += 160
        Image.fromarray(pixels.astype(np.uint8)).save(root / name)
    x = rng.normal(size=(N, 8)).astype(np.float32) * 0.25
    x[np.arange(N), colour] += 1
    found = Clustering.describe(
        root, names, x, (colour.astype(np.int64), rng.random(N).astype(np.float32)), K + 1, about={"method": "kmeans"}
    )
    outlier, repeats = np.zeros(N, np.bool_), np.full(N, -1, np.int64)
    outlier[5], repeats[9] = True, 3
    found = replace(found, outlier=outlier, duplicate_of=repeats, names={2: "blue"})
    found.save(home)
    assert main(["report", str(home)]) == 0
    return home


def test_the_page_holds_what_the_table_says(folder: Path) -> None:
    found = Clustering.load(folder)
    told = Parsed((folder / "report.html").read_text(encoding="utf-8")).data
    assert sorted(told["path"]) == sorted(found.paths)
    row = {path: i for i, path in enumerate(found.paths)}
    rows = [row[path] for path in told["path"]]
    assert told["cluster"] == found.cluster[rows].tolist()
    assert told["confidence"] == np.rint(1000 * found.confidence[rows].astype(float)).astype(int).tolist()
    assert [told["path"][i] for i in told["outlier"]] == [found.paths[5]]
    assert [[told["path"][i] for i in pair] for pair in told["first"]] == [[found.paths[9], found.paths[3]]]
    assert [c["id"] for c in told["clusters"]] == [0, 1, 2]  # equally large; 3 is empty
    assert [c["name"] for c in told["clusters"]] == ["", "", "blue"]
    assert told["num_clusters"] == K + 1
    near = found.unit[rows] @ found.unit[rows].T
    np.fill_diagonal(near, -2)
    assert (np.array(told["nearest"])[:, 0] == near.argmax(1)).all()
    assert len(told["xy"]) == N


def test_the_same_clustering_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    found = Clustering.load(folder)
    out = write_page(found, pictures_of(found, folder), folder / "again.html")
    assert out.read_bytes() == (folder / "report.html").read_bytes()
    out.unlink()


def test_names_cannot_leave_their_place(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Parsed(text)
    assert any("onerror" in path for path in page.data["path"])
    assert "onerror" not in re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)
    assert "\u202e" not in text
    assert page.tags.count("script") == 2 + len(page.data["sheets"])
    assert "img" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "style"]
    # Nothing but this script and this style may run or be taken, and nothing is loaded.
    policy = next(v for n, v in page.attributes if n == "content" and v and "default-src" in v)
    for kind in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(page.inside[kind].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert not re.search(r"https?:|innerHTML|insertAdjacent|document\.write|\beval\b|new Function", text)


def test_json_cannot_end_its_script(tmp_path: Path) -> None:
    paths = ("</script><script>broken = 1</script>", "<!--<script>", "a\udcff\u2028.png")
    found = clustering([0, 0, 0], paths=paths, root="")
    page = Parsed(write_page(found, None, tmp_path / "p.html").read_text(encoding="utf-8"))
    assert page.tags.count("script") == 2
    assert sorted(page.data["path"]) == sorted(paths)
    assert page.data["folder"] == ""


def test_a_sample_of_many_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("odc.pages.page.choose", lambda found: choose(found, 30))
    rng = np.random.default_rng(0)
    found = clustering([0, 1] * 40, features=rng.normal(size=(80, 4)), outlier=[False, True] * 40)
    text = write_page(found, None, tmp_path / "p.html").read_text(encoding="utf-8")
    told = Parsed(text).data
    assert len(told["path"]) == 36 or len(told["path"]) == 30
    assert f"Shown are {len(told['path'])} of the images" in text
    assert told["total"] == 80
    assert told["clusters"][0]["size"] == 40


def test_one_image_has_a_page(tmp_path: Path) -> None:
    told = Parsed(write_page(clustering([0]), None, tmp_path / "p.html").read_text(encoding="utf-8")).data
    assert (told["nearest"], told["xy"], told["silhouette"]) == ([[]], [], None)
    assert told["no_map"] == "1 images are too few for a map"


# -- the command -----------------------------------------------------------------------------------------------------


def test_moved_images(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = replace(Clustering.load(folder), root=str(tmp_path / "gone"))
    found.save(tmp_path / "moved")
    assert main(["report", str(tmp_path / "moved")]) == 2
    assert "gone, which is not there: say where they are by --images" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "moved"), "--images", str(tmp_path)]) == 2
    assert "none of the 60 images" in capsys.readouterr().err
    os.link(folder / "photos & more/sub/00.png", tmp_path / "00.png")
    (tmp_path / "sub").mkdir()
    os.link(tmp_path / "00.png", tmp_path / "sub/00.png")
    assert main(["report", str(tmp_path / "moved"), "--images", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"page": str(tmp_path / "moved/report.html")}
    assert "59 images are not where they were" in (tmp_path / "moved/report.html").read_text(encoding="utf-8")


def test_a_folder_without_a_clustering(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "has no clustering.json" in capsys.readouterr().err


# -- a real browser --------------------------------------------------------------------------------------------------

Run = Callable[..., Any]


@pytest.fixture
def run(browser: Any, folder: Path) -> Iterator[Run]:
    """Open the page, with nothing said yet; return how to run a script in it. In the end the console is empty."""
    opened_at(browser, folder, 1280, "light")
    browser.execute_script("localStorage.clear()")
    browser.refresh()
    yield browser.execute_script
    assert browser.get_log("browser") == []


def opened_at(browser: Any, folder: Path, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get((folder / "report.html").as_uri())


def until(run: Run, script: str) -> Any:
    """Return what a script returns once that is true."""
    for _ in range(100):
        if found := run(f"return {script}"):
            return found
        time.sleep(0.02)
    raise AssertionError(script)


def press(browser: Any, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    for key in keys:
        ActionChains(browser).send_keys(key).perform()


@pytest.mark.parametrize(("width", "scheme"), [(375, "dark"), (1280, "light")])
def test_every_view_fits(browser: Any, run: Run, folder: Path, width: int, scheme: str) -> None:
    opened_at(browser, folder, width, scheme)
    assert run("return innerWidth") == width
    until(
        run, "[...document.querySelectorAll('.tile')].some(t => getComputedStyle(t).backgroundImage.startsWith('url'))"
    )
    small = """return [...document.querySelectorAll('body *')].filter(e => [...e.childNodes].some(
        n => n.nodeType == 3 && n.data.trim()) && e.checkVisibility() && parseFloat(getComputedStyle(e).fontSize) < 12)
        .map(e => e.outerHTML)"""
    for view in ("clusters", "map", "outliers", "copies", "labels"):
        run(f"document.querySelector('nav a[href=\"#{view}\"]').click()")
        assert run("return [...document.querySelectorAll('main > section')].filter(s => !s.hidden).map(s => s.id)") == [
            view
        ]
        assert run("return document.documentElement.scrollWidth") <= width, view
        assert run(small) == [], view
    paper = run("return getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") is (scheme == "light")
    assert run("return window.broken") is None
    assert run("return document.querySelectorAll('img').length") == 0
    loaded = run("return performance.getEntriesByType('resource').map(r => r.name)")
    assert [name for name in loaded if not name.startswith(("data:", "chrome"))] == []


def test_by_keyboard(browser: Any, run: Run) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    active = "document.activeElement"
    run("document.querySelector('#search').focus()")
    press(browser, Keys.TAB, Keys.ARROW_RIGHT, Keys.ENTER)  # the second bar
    assert run(f"return {active}.id") == "cluster-1"
    run("document.querySelector('#cards .name').focus()")
    press(browser, Keys.TAB, Keys.TAB, Keys.TAB, Keys.TAB, Keys.TAB)
    assert run(f"return {active}.classList[0]") == "tile"  # behind four buttons; one stop a strip
    first = run(f"return {active}.dataset.i")
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    ActionChains(browser).move_to_element(browser.find_element("css selector", ".tile:focus")).perform()
    assert run(f"return getComputedStyle({active}).backgroundImage").startswith("url")  # also under the mouse
    at = run(f"return {active}.dataset.i")
    assert at != first
    assert run(f"return getComputedStyle({active}).outlineStyle") == "solid"
    press(browser, Keys.ENTER)
    assert run("return document.getElementById('panel').open")
    for _ in range(30):  # the dialog keeps the focus
        press(browser, Keys.TAB)
        assert run(f"return {active} === document.body || {active}.closest('dialog') !== null")
    title = run("return document.getElementById('panel-title').textContent")
    run("document.getElementById('next').focus()")
    press(browser, Keys.ENTER)
    assert run("return document.getElementById('panel-title').textContent") != title
    press(browser, Keys.ESCAPE)
    assert not run("return document.getElementById('panel').open")
    assert run(f"return {active}.dataset.i") == at
    press(browser, Keys.TAB)
    assert run(f"return {active}.className") == "name"  # of the next cluster
    run("document.querySelector('nav a[href=\"#map\"]').click(); document.getElementById('canvas').focus()")
    press(browser, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    said = until(run, "document.getElementById('spot').textContent")
    press(browser, Keys.ENTER)
    assert said.startswith(run("return document.getElementById('panel-path').textContent"))


def test_an_image_is_told_of(run: Run, folder: Path) -> None:
    found = Clustering.load(folder)
    search(run, "ONERROR png")
    until(run, "document.getElementById('hits').textContent == '1 image'")
    run("document.querySelector('#found .tile').click()")
    (i,) = (i for i, path in enumerate(found.paths) if "onerror" in path)
    assert run("return document.getElementById('panel-path').textContent") == found.paths[i]
    values = run("return document.getElementById('values').innerText")
    assert f"cluster {found.cluster[i]}" in values
    assert f"surer than {round(100 * found.confidence[i])} %" in values
    link = run("return document.querySelector('#values a').href")
    assert link.startswith(folder.as_uri() + "/photos%20%26%20more/")
    assert len(run("return [...document.querySelectorAll('#nearest .tile')].map(t => t.dataset.i)")) == 12
    hidden = run("return [...document.querySelectorAll('.tile')].map(t => t.title).filter(t => t.includes('202e'))")
    assert hidden
    assert "a\\u202egnp.exe.png" in hidden[0]


def search(run: Run, text: str) -> None:
    run("const i = document.getElementById('search'); i.value = arguments[0]; i.oninput()", text)


def label(run: Run, text: str) -> None:
    run("const i = document.getElementById('own'); i.value = arguments[0]; i.dispatchEvent(new Event('input'))", text)


def name(run: Run, cluster: int, text: str) -> None:
    run(f"const i = document.querySelector('#cluster-{cluster} .name'); i.value = arguments[0]; i.oninput()", text)


def test_labels_are_said_kept_and_downloaded(browser: Any, run: Run, folder: Path, tmp_path: Path) -> None:
    found = Clustering.load(folder)
    name(run, 0, ' red, "bright" ')
    run("document.querySelector('#cluster-1 .buttons button:last-child').click()")
    assert run("return document.getElementById('merge').open")
    run("[...document.querySelectorAll('#choices button')].find(b => b.textContent.includes('cluster 0')).click()")
    until(run, "document.querySelector('#cluster-1 .name').value.includes('bright')")
    run("document.querySelector('#cluster-2 .buttons [aria-pressed]').click()")  # mixed: its name does not count
    mine = next(i for i in range(N) if found.cluster[i] == 2)
    run(
        "document.getElementById('search').value = arguments[0]; document.getElementById('search').oninput()",
        found.paths[mine],
    )
    until(run, "document.getElementById('hits').textContent == '1 image'")
    run("document.querySelector('#found .tile').click()")
    label(run, "odd")
    browser.refresh()  # all of it is still there
    until(run, "document.getElementById('labelled').textContent == '2'")
    where = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", where)
    run("document.getElementById('download').click()")
    for _ in range(200):
        if (tmp_path / "labels.csv").exists():
            break
        time.sleep(0.02)
    with (tmp_path / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["path"]: row["label"] for row in csv.DictReader(file)}
    expected = {found.paths[mine]: "odd"}
    for c in (0, 1):
        members = [i for i in range(N) if found.cluster[i] == c and not found.outlier[i] and found.duplicate_of[i] < 0]
        members.sort(key=lambda i: -round(1000 * float(found.confidence[i])))
        expected |= {found.paths[i]: 'red, "bright"' for i in members[: (len(members) + 1) // 2]}
    assert rows == expected
    run("document.querySelector('#cluster-1 .merged button').click()")
    until(run, "document.querySelector('#cluster-1 .name').value == ''")
    assert "bright" in run("return document.querySelector('#cluster-0 .name').value")


def test_what_a_browser_has_kept_may_be_anything(browser: Any, run: Run) -> None:
    key = "Object.keys(localStorage)[0]"
    name(run, 0, "red")
    until(run, key)
    for kept in (
        '{"names": [[0, 5], [77, "x"], 3], "group": [[0, 9]], "mixed": {}}',
        "[",
        "null",
        '{"images": [["x", "y"]]}',
    ):
        run(f"localStorage.setItem({key}, arguments[0])", kept)
        browser.refresh()
        assert run("return document.getElementById('labelled').textContent") == "0"


def test_names_that_were_there_count_when_they_are_looked_at(run: Run) -> None:
    assert run("return document.querySelector('#cluster-2 .name').value") == "blue"
    assert run("return document.getElementById('labelled').textContent") == "0"
    run("document.querySelector('#cluster-2 .buttons button:nth-child(3)').click()")
    until(run, "document.getElementById('labelled').textContent == '1'")
    assert run("return document.getElementById('table').textContent").startswith("blue")


def test_names_that_are_no_text_leave_as_their_bytes(browser: Any, tmp_path: Path) -> None:
    write_page(clustering([0, 0], paths=("a\udcff.png", "😀.png"), root=""), None, tmp_path / "report.html")
    opened_at(browser, tmp_path, 1280, "light")
    name(browser.execute_script, 0, "é")
    where = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", where)
    until(browser.execute_script, "document.getElementById('download').disabled === false")
    browser.execute_script("document.querySelectorAll('.tile')[0].click()")
    for i in (0, 1):
        label(browser.execute_script, "é")
        if i == 0:
            browser.execute_script("document.getElementById('next').click()")
    browser.execute_script("document.getElementById('download').click()")
    for _ in range(200):
        if (tmp_path / "labels.csv").exists():
            break
        time.sleep(0.02)
    lines = set((tmp_path / "labels.csv").read_bytes().split(b"\n"))
    assert lines == {b"path,label", b"a\xff.png,\xc3\xa9", "😀.png,é".encode(), b""}
