"""Every command that README and documentation show is taken by the parser, and run: long ones on little data.

A command is run as it is written, but for what stands in :func:`shortened`: folders that a reader has and this test has
not, weights that would be fetched, fewer epochs, seeds and images. The commands of a page run in the order of the page,
in a folder of their own, so what a page's commands need must come from that page. ``make test`` runs each of those in
:data:`FAST` once, ``make test-slow`` all.
"""

from __future__ import annotations

import csv
import itertools
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from odc.cli import main
from odc.cli.help import build_parser
from odc.cli.main import GROUPS
from odc.registry import BACKBONES, DATASETS, HEADS, TRANSFORMS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("odc ", "python ", "make ", "pip ", "tools/")

# What is not run here, and why. A command begins so.
NOT_RUN = {
    "pip install": "it fetches packages",
    "make ": "its targets fetch packages, or run this test; the slow tests run what is behind make demo",
    "tools/slurm_train.sh": "it needs Slurm",
    "odc compare --methods odc dc spice --dataset PICTURES": "Slurm; tests/test_jobs.py runs a stand-in",
    "tools/dist_train.sh": "two processes: tests/test_cli.py runs it",
}
# By `make test`: what costs a second or two.
FAST = (
    "odc train moco_convnet_1xb64-100e_digits",
    "odc probe moco_convnet_1xb64-100e_digits work_dirs/moco/epoch_100.pth",
    "odc train finetune_convnet_1xb64-100e_digits-1pct --work-dir",
    "odc train shortest_config.py",
    "odc print-config",
    "python -c",
)


@dataclass
class Page:
    """A page, its commands in order, and the files that it shows."""

    name: str
    commands: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)


def read(path: Path) -> Page:
    """Return what a page shows: commands stand in blocks without a language, or in indented ones."""
    text = path.read_text(encoding="utf-8")
    page = Page(path.relative_to(ROOT).as_posix())
    for block in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S):
        if named := re.match(r"# (\S+\.py)\n", block):
            page.files[named[1]] = block
    rest = re.sub(r"^ *```\w+\n.*?^ *```", "", text, flags=re.M | re.S)
    for fenced, indented in re.findall(r"^```\n(.*?)^```|((?:^    \S.*\n)+)", rest, re.M | re.S):
        lines = re.sub(r"\\\n\s*", "", fenced or indented).splitlines()
        lines = [re.sub(r"\s+# .*", "", line.strip()).removeprefix(".venv/bin/") for line in lines]
        page.commands += [line for line in lines if line.startswith(PROGRAMS)]
    return page


def reason(command: str) -> str | None:
    """Return why a command is not run, or ``None``."""
    return next((why for start, why in NOT_RUN.items() if command.startswith(start)), None)


SHOWN = [read(path) for path in PAGES]
COMMANDS = sorted({command for page in SHOWN for command in page.commands if reason(command) is None})


def test_what_is_not_run_is_counted() -> None:
    shown = {command for page in SHOWN for command in page.commands}
    for start in NOT_RUN:
        assert any(command.startswith(start) for command in shown), f"no page shows '{start}' any more"
    for start in FAST:
        assert any(command.startswith(start) for command in COMMANDS), f"no page shows '{start}' any more"
    left = len(shown) - len(COMMANDS)
    assert left <= 8, f"{left} of {len(shown)} commands are not run"


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("odc ")])
def test_the_parser_takes_it(command: str) -> None:
    build_parser(GROUPS).parse_args(shlex.split(command)[1:])


# ---------------------------------------------------------------------------------------------------------- to run them

DIGITS = ["_delete_=True", "type=LongTail", "ratio=0.7", "dataset.type=Digits", "dataset.size=16"]
PHOTOS, WEIGHTS = 96, "timm:test_resnet@tiny.safetensors"
ESTIMATORS = ("kmeans", "gmm", "spectral", "agglomerative", "hdbscan", "consensus")
LISTS = {"few.csv": range(6), "labels.csv": range(60), "other_labels.csv": range(60, 96)}  # images with labels


def shortened(command: str) -> list[str]:
    """Return the arguments of a command for little data: 582 digits or 96 photographs, one epoch, one seed."""
    words = [re.sub(r"epoch_\d+", "epoch_1", word) for word in shlex.split(command.replace("$gamma", "3"))]
    words = [re.sub(r"/path/to/\w+|\bFOLDER\b", "photos", word) for word in words]
    words = [re.sub(r"(num_clusters)=K", r"\1=3", word) for word in words]
    words = ["odc_convnet_1xb64-30e_digits" if word == "CONFIG" else word for word in words]
    words = [word.replace("=BACKBONE", "=None") for word in words]  # from random weights
    kind, config = words[1], words[2] if len(words) > 2 else ""
    mine = any("photos" in word for word in words)
    for option, value in (("--features", WEIGHTS), ("--clusters", "3" if mine else "10"), ("-k", "3")):
        if option in words:
            place = words.index(option) + 1
            two = option == "--features" and "+" in words[place]
            words[place] = f"{value}+{value}" if two else value
    options: list[str] = []
    if kind == "compare":
        words += ["--seeds", *("01" if "-consensus" in command else "0"), "--jobs", "2"]
        if "--features" not in words:
            named = itertools.takewhile(lambda word: word[:2] != "--", words[words.index("--methods") + 1 :])
            methods = [name for name in named if not name.startswith(ESTIMATORS)]
            words += ["--dataset", "digits-longtail", *(["--epochs", "2"] if methods else [])]
            if any("moco" in word or word.startswith("spice") for word in words):
                words += ["--pretrain-epochs", "1"]
            if any("spice" in word for word in words):
                options = ["reliable.threshold=0", "reliable.allow_empty=True"]
    elif kind in ("train", "run", "spice"):
        options = [] if "max_epochs" in command else ["train_cfg.max_epochs=1"]
        if "digits" in config or config in ("shortest_config.py", "turned.py"):
            options += [f"data.dataset.{option}" for option in DIGITS]
        if config.startswith("moco") and "folder32" in config:  # what the error for so few images says
            options += ["model.head.queue_size=32", "model.head.batch_size=32", "model.split_bn=1"]
        if "folder224" in config:
            options.append("data.dataset.max_samples=48")
        if "dinov2" in config:
            options += ["model.backbone.name=test_vit", "model.backbone.pretrained=False"]
        if kind != "train" and "spice" in config:
            options += ["reliable.threshold=0", "reliable.allow_empty=True"]
    elif kind == "convert":
        words[2] = "moco.pth.tar"
    elif kind in ("test", "probe", "extract") and "digits" in config:
        options = [f"data.dataset.{option}" for option in DIGITS]
    if options:
        words += ["--cfg-options", *options]
    return words


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what a reader has: a checkout's configs, photographs, weights, tables of labels."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "configs").symlink_to(ROOT / "configs")
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for i in range(PHOTOS):
        pixels = rng.integers(0, 80, (32, 32, 3)) + np.eye(3, dtype=np.int64)[i % 3] * 150
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"photos/{i:02d}.png")
    for name, images in LISTS.items():
        with (folder / name).open("w", newline="") as file:
            rows = [(f"{i:02d}.png", "rgb"[i % 3]) for i in images]
            csv.writer(file).writerows([("path", "label"), *rows])
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), folder / "tiny.safetensors")
    return folder


@pytest.fixture
def inside(world: Path, tmp_path: Path) -> Iterator[Path]:
    """Stand in a folder of that; forget what the page's own files register."""
    for place in world.iterdir():
        (tmp_path / place.name).symlink_to(place.resolve())
    registries = (HEADS, BACKBONES, DATASETS, TRANSFORMS)
    import odc.apis  # noqa: F401  # what is registered there stays

    known, before, path, loaded = (
        [dict(r.module_dict) for r in registries],
        Path.cwd(),
        list(sys.path),
        set(sys.modules),
    )
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)
    sys.path[:] = path
    for name in set(sys.modules) - loaded:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    for registry, modules in zip(registries, known, strict=True):
        registry._module_dict = modules


def run(page: Page, folder: Path, fast: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Run the commands of a page: all, or the fast ones."""
    for name, text in page.files.items():
        (folder / name).write_text(text)
    for command in page.commands:
        if reason(command) is not None or (fast and not command.startswith(FAST)):
            continue
        words = tuple(shortened(command))
        if words[0] == "python":
            exec(words[2], {})
            code = 0
        else:
            prepare(words)
            code = main(words[1:])
            code = 0 if words[1] == "doctor" and code == 1 else code  # it has found something: not our business
        printed = capsys.readouterr()
        assert code == 0, f"{page.name}: {command}\nrun as {shlex.join(words)}\n{printed.err}\n{printed.out[-2000:]}"


def prepare(words: tuple[str, ...]) -> None:
    """Put there what a reader has from elsewhere."""
    if words[1] == "convert":
        weights = torchvision.models.resnet18().state_dict()
        torch.save({"state_dict": {f"encoder_q.{name}": tensor for name, tensor in weights.items()}}, words[2])
    if "--names" in words:  # vectors of the width of the clustering's features
        width = np.load(Path(words[2]) / "features.npy").shape[1]
        np.savez("words.npz", words=["red", "green"], vectors=np.eye(2, width, dtype=np.float32))
    if words[1] == "align" and words[2].endswith(".csv"):  # labels of the images that are in that table
        with Path(words[2]).open(newline="") as file:
            rows = list(csv.DictReader(file))
        for name, part in (("labels.csv", rows[::2]), ("other_labels.csv", rows[1::2])):
            lines = [f"{row['path']},class {row['cluster']}" for row in part]
            Path(name).unlink()  # a link to what all pages share
            Path(name).write_text("\n".join(["path,label", *lines]) + "\n")


def fast_pages() -> Iterator[Page]:
    """Yield pages that together show every fast command."""
    seen: set[str] = set()
    for page in SHOWN:
        fast = {command for command in page.commands if command.startswith(FAST)}
        if fast - seen:
            yield page
        seen |= fast


@pytest.mark.parametrize("page", list(fast_pages()), ids=lambda page: page.name)
def test_fast_commands_run(page: Page, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(page, inside, True, capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in SHOWN if any(reason(c) is None for c in page.commands)], ids=lambda page: page.name
)
def test_all_commands_run(page: Page, inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(page, inside, False, capsys)
