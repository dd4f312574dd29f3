"""Text on a command line: numbers where numbers are wanted, and names of files as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from odc.cli import main
from odc.config import load_config
from odc.options import Written, parse, read, read_arguments

# What folders and files are called.
NAMES = [
    "My Photos", "a,b", "2023", "1e5", "None", "True", "[old]", "(1)", "a[1", "x=y", "50%", "{b}", "{{ fileBasename }}",
    "Ünï çödé", "it's", '5" prints', "-dash", "a\\b", " padded ", "#1", "$HOME", "~x", "a;b", "null", "0x10",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1e-3", 1e-3),
        ("true", True),
        ("None", None),
        ("cosine", "cosine"),
        ("two words", "two words"),
        ("[0.5,1.0]", [0.5, 1.0]),
        ("(0.5, 1.0)", (0.5, 1.0)),
        ("0.5,1.0", [0.5, 1.0]),
        ("[backbone]", ["backbone"]),
        ("[(1,2),(3,4)]", [(1, 2), (3, 4)]),
        ("(1,2),(3,4)", [(1, 2), (3, 4)]),
        ("[]", []),
        ("[1,]", [1]),
        ("'2023'", "2023"),
        ("['a, b', 2023]", ["a, b", 2023]),
        ("a(b,c", "a(b,c"),
        ("", ""),
    ],
)
def test_what_a_text_says_by_itself(text: str, value: Any) -> None:
    assert parse(text) == value
    assert type(parse(text)) is type(value)


@pytest.mark.parametrize("annotation", ["str", str, "str | None", str | None, "Optional[str]", str | Path | None])
def test_a_text_option_gets_the_text(annotation: Any) -> None:
    for name in NAMES:
        assert read(name, annotation) == (None if name == "None" and annotation not in ("str", str) else name)
    assert read("'None'", annotation) == "None"
    assert read('"a b"', annotation) == "a b"


@pytest.mark.parametrize("annotation", ["Sequence[str]", "list[str] | None", "tuple[str, ...]"])
def test_a_list_of_texts_gets_texts(annotation: str) -> None:
    assert read("[2023, My Photos,'a, b']", annotation) == ["2023", "My Photos", "a, b"]
    assert read("2023", annotation) == ["2023"]


def test_a_text_or_a_list_of_them() -> None:
    assert read("acc", "str | list[str] | None") == "acc"
    assert read("[acc, nmi]", "str | list[str] | None") == ["acc", "nmi"]
    assert read("3", "int | str") == 3


def test_a_flag_or_a_list_of_texts() -> None:
    assert read("False", "Sequence[str] | bool") is False
    assert read("true", "Sequence[str] | bool") is True
    assert read("[]", "Sequence[str] | bool") == []
    assert read("backbone", "Sequence[str] | bool") == ["backbone"]


def test_arguments_of_a_function() -> None:
    def function(name: str, number: float, other: Any = None) -> None: ...

    read_ = read_arguments({"name": Written("2023"), "number": Written("1e-3"), "other": 5}, function)
    assert read_ == {"name": "2023", "number": 1e-3, "other": 5}


def test_options_are_read_by_their_places(tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text(
        "data = dict(dataset=dict(type='ImageFolder', root='x'))\n"
        "train_cfg = dict(label_file=None, max_epochs=3)\n"
        "optim_wrapper = dict(optimizer=dict(type='SGD', lr=1))\n"
        "custom_hooks = [dict(type='CheckpointHook')]\n"
        "visualizer = dict(type='Visualizer', vis_backends=[dict(init_kwargs=dict(project='photos'))])\n"
    )
    options = {
        "data.dataset.root": "2023, 2024",
        "data.dataset.classes": "[2023, a b]",
        "data.dataset.max_samples": "10",
        "train_cfg.label_file": "1e5",
        "train_cfg.max_epochs": "5",
        "optim_wrapper.optimizer.lr": "1e-3",
        "custom_hooks.0.out_dir": "2023",
        "custom_hooks.0.interval": "2",
        "visualizer.vis_backends.0.init_kwargs.project": "2024",
        "work_dir": "7",
    }
    config = load_config(tmp_path / "c.py", {key: Written(value) for key, value in options.items()})
    assert config.data.dataset == dict(type="ImageFolder", root="2023, 2024", classes=["2023", "a b"], max_samples=10)
    assert config.train_cfg == dict(label_file="1e5", max_epochs=5)
    assert config.optim_wrapper.optimizer.lr == 1e-3
    assert config.custom_hooks == [dict(type="CheckpointHook", out_dir="2023", interval=2)]
    assert config.visualizer.vis_backends[0].init_kwargs.project == "2024"
    assert config.work_dir == "7"
    text = load_config(tmp_path / "c.py", {"data.dataset": {"type": "ImageList", "file": "1"}, "work_dir": "7"})
    assert text.data.dataset.file == "1"


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As images, as work directory and as the place of the config, which is written into the work directory again."""
    monkeypatch.chdir(tmp_path)
    seen: list[Any] = []
    monkeypatch.setattr("odc.apis.train", seen.append)
    home = tmp_path / name
    home.mkdir()
    Image.new("L", (8, 8)).save(home / "a.png")
    (home / "c.py").write_text(
        "model = {}\noptim_wrapper = {}\ntrain_cfg = {}\nrandomness = dict(seed=0)\n"
        "data = dict(dataset=dict(type='ImageFolder', root='x'))\n"
    )
    options = [f"data.dataset.root={name}", f"load_from={home}"]
    assert main(["train", str(home / "c.py"), f"--work-dir={name}", "--cfg-options", *options]) == 0
    assert seen[0].data.dataset.root == name
    assert seen[0].work_dir == name
    assert seen[0].load_from == str(home)
    seen[0].dump(home / "dumped.py")
    again = load_config(home / "dumped.py")
    if name != "{{ fileBasename }}":  # which mmengine takes for its own, and fills in
        assert again.data.dataset.root == name
        assert again.work_dir == name
