"""Files from anybody: damaged, made up or malicious ones end in one line, and run nothing."""

from __future__ import annotations

import copy
import json
import os
import pickle
import resource
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine import Config
from small_heads import Blobs, config
from torch import Tensor

from odc.apis import build_runner
from odc.checkpoints import load_plain, write_tensors
from odc.cli import main
from odc.comparison.results import read_results
from odc.comparison.run import report_only
from odc.config import load_config
from odc.data import Embeddings, LabelFile
from odc.data.table import read_table
from odc.errors import DamagedError, InputError
from odc.evaluation.align import Alignment
from odc.files import append_line
from odc.reading import read_json
from odc.recipes.pipeline import DONE
from odc.registry import DATASETS, HOOKS, build, resolve
from odc.runner import Runner

_FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "os.fork", "socket.connect")
_seen: list[str] = []
_watching = False


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    harmless = event == "subprocess.Popen" and "sprung" not in str(
        arguments
    )  # mmengine asks compilers for their version
    if _watching and event in _FORBIDDEN and not harmless:
        _seen.append(f"{event} {arguments}"[:200])


sys.addaudithook(_watch)


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path) -> Iterator[None]:
    """Fail a test in which a program is started, a connection is made, or a trap of :class:`Trap` is sprung."""
    global _watching
    _seen.clear()
    _watching = True
    yield
    _watching = False
    assert not _seen, _seen
    assert not (tmp_path / "sprung").exists()


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def refused(action: Callable[[], Any]) -> str:
    """Return the one line that an action is refused with."""
    with pytest.raises(InputError) as error:
        action()
    line = str(error.value)
    assert "\n" not in line
    assert len(line) < 1500
    return line


# ------------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Runner, dict[str, Any], Path]:
    """A runner of ODC, the last checkpoint of a run of it, and the folder of the run."""
    folder = tmp_path_factory.mktemp("run")
    runner = build_runner(config("odc", str(folder)))
    runner.train()
    runner = build_runner(config("odc", str(folder)))
    return runner, load_plain(folder / "epoch_2.pth"), folder


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def wide(depth: int) -> Any:
    value: Any = [0]
    for _ in range(depth):
        value = [value] * 10
    return value


def attributes() -> OrderedDict[str, Any]:
    state: OrderedDict[str, Any] = OrderedDict(a=torch.zeros(1))
    state._metadata = 5  # type: ignore[attr-defined]
    return state


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def each(path: str, *values: Any) -> list[tuple[str, Any]]:
    return [(path, value) for value in values]


ENTRIES: list[tuple[str, Any]] = [
    *each("meta", None, 5, [], {}, "x", {"epoch": 1}, {"iter": 1}),
    *each("meta.epoch", "1", -1, 1.5, None, 10**400, True, [1], torch.tensor(1)),
    *each("meta.iter", "6", -6, float("nan")),
    *each("meta.seed", "3", -3, 2**70, {}),
    *each("message_hub", None, 5, {}, {"log_scalars": {}}),
    ("message_hub.runtime_info", []),
    ("message_hub.resumed_keys", {"epoch": "yes"}),
    ("message_hub.runtime_info.keep_ckpt_ids", ["../../x"]),
    ("message_hub.runtime_info.keep_ckpt_ids", 7),
    ("message_hub.runtime_info.preflight", {"a": "b"}),
    ("message_hub.runtime_info.best_ckpt", 5),
    *each("optimizer", None, 5, {}, {"state": {}}, {"state": [], "param_groups": []}),
    ("optimizer.param_groups", 5),
    ("optimizer.param_groups", []),
    ("optimizer.param_groups.0.params", "abc"),
    ("optimizer.param_groups.0.lr", "fast"),
    ("optimizer.param_groups.0.lr", float("nan")),
    ("optimizer.param_groups.0.momentum", None),
    ("optimizer.state.0", 5),
    ("optimizer.state.0.momentum_buffer", torch.zeros(3, 3)),
    ("optimizer.state.0.momentum_buffer", torch.full((4, 1, 3, 3), torch.nan)),
    ("optimizer.state.999", {"momentum_buffer": torch.zeros(2)}),
    *each("loop", None, 5, {}, []),
    *(entry for name in ("chunk", "step", "images_seen", "seed") for entry in each(f"loop.{name}", "1", -1)),
    ("loop.threads", 0),
    ("loop.begun", 1),
    ("loop.order", {"train": torch.zeros(3, 16)}),
    ("loop.order", {"train": torch.full((3, 16), 48)}),
    ("loop.order", {"train": torch.full((3, 16), -1)}),
    ("loop.order", [1]),
    ("loop.index_before", torch.zeros(3)),
    ("loop.labels_before", "x"),
    ("loop.more", 1),
    ("state_dict", None),
    ("state_dict", 5),
    ("state_dict", {5: torch.zeros(1)}),
    ("state_dict", {}),
    ("state_dict", attributes()),
    ("state_dict.labels.index", torch.full((48, 1), 48)),
    ("state_dict.labels.index", torch.full((48, 1), -1)),
    ("state_dict.labels.index", torch.zeros(48, 1)),
    ("state_dict.labels.index", torch.zeros(7, 1, dtype=torch.int64)),
    ("state_dict.labels.target", torch.full((48, 1), 4)),
    ("state_dict.labels.target", torch.full((48, 1), -2)),
    ("state_dict.labels.target", torch.zeros(48, dtype=torch.int64)),
    ("state_dict.labels.num_classes", torch.tensor([99])),
    ("state_dict.labels.num_classes", torch.zeros(0, dtype=torch.int64)),
    ("state_dict.labels.counts", torch.tensor([-4, 20, 20, 12])),
    ("state_dict.labels.variant", torch.full((48,), -1)),
    ("state_dict.labels.index", torch.zeros(1, dtype=torch.int64).expand(10**12, 1)),
    ("state_dict.head.memory.bank.rows", torch.full((48, 8), torch.nan, dtype=torch.float16)),
    ("state_dict.head.memory.bank.rows", torch.zeros(9, 8, dtype=torch.float16)),
    ("state_dict.head.memory.bank.rows", torch.zeros(1, dtype=torch.float16).expand(10**11, 8)),
    ("state_dict.head.memory.table", torch.full((4, 9), torch.inf)),
    ("state_dict.head.memory.dirty", torch.zeros(4)),
    ("state_dict.head.classifier.weight", torch.full((4, 8), torch.inf)),
    ("state_dict.head.classifier.weight", torch.zeros(4, 8, dtype=torch.complex64)),
    ("state_dict.head.classifier.weight", torch.zeros(4, 8, dtype=torch.int64)),
    ("state_dict.head.classifier.weight", torch.zeros(4, 8).to_sparse()),
    ("state_dict.head.classifier.weight", torch.zeros(4, 8, device="meta")),
    ("state_dict.head.classifier.weight", "x"),
    ("state_dict.head.classifier.weight", torch.zeros(5, 8)),
    ("state_dict.backbone.layers.0.weight", torch.full((4, 1, 3, 3), torch.nan)),
    ("more", nested(60)),
    ("more", wide(60)),
    ("more", endless()),
]


def changed(checkpoint: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy of a checkpoint with another entry; names in ``state_dict`` have dots."""
    checkpoint = copy.deepcopy(checkpoint)
    parts = path.split(".", 1) if path.startswith("state_dict") else path.split(".")
    place: Any = checkpoint
    for part in parts[:-1]:
        place = place[int(part) if part.isdigit() else part]
    place[int(parts[-1]) if parts[-1].isdigit() else parts[-1]] = value
    return checkpoint


def test_what_no_run_could_have_written_is_refused(
    trained: tuple[Runner, dict[str, Any], Path], tmp_path: Path
) -> None:
    runner, checkpoint, _ = trained
    file = tmp_path / "c.pth"
    torch.save(checkpoint, file)
    runner.resume(str(file))
    assert len(ENTRIES) > 80
    for path, value in ENTRIES:
        torch.save(changed(checkpoint, path, value), file)
        try:
            line = refused(lambda: runner.resume(str(file)))
        except (Exception, pytest.fail.Exception) as error:
            raise AssertionError(f"{path} = {str(value)[:80]}: {type(error).__name__} {error}") from error
        assert "c.pth" in line, path


def test_a_malformed_newest_checkpoint_gives_way_to_the_older_one(
    trained: tuple[Runner, dict[str, Any], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, checkpoint, folder = trained
    good = load_plain(folder / "epoch_1.pth")
    for path in ("meta.epoch", "loop.step", "optimizer.state.0", "state_dict.labels.target"):
        work = tmp_path / path
        work.mkdir()
        torch.save(good, work / "epoch_1.pth")
        torch.save(
            changed(checkpoint, path, "x" if "labels" not in path else torch.full((48, 1), 9)), work / "epoch_2.pth"
        )
        (work / "last_checkpoint").write_text("epoch_2.pth")
        capsys.readouterr()
        runner = build_runner(config("odc", str(work), resume=True))
        runner.load_or_resume()
        assert (runner.epoch, runner.iter) == (1, 3)
        shown = capsys.readouterr()
        lines = (shown.out + shown.err).splitlines()
        assert len(lines) == 1
        assert "not resuming from" in lines[0]
        assert "epoch_2.pth" in lines[0]


def test_every_flipped_bit_of_the_content_is_noticed(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(40), "b": torch.arange(30)}
    rng = np.random.default_rng(0)
    for name in ("c.pth", "c.safetensors"):
        file = tmp_path / name
        write_tensors(file, tensors)
        whole = file.read_bytes()
        for bit in rng.integers(0, 8 * len(whole), 300):
            data = bytearray(whole)
            data[bit // 8] ^= 1 << bit % 8
            file.write_bytes(data)
            try:
                found = load_plain(file)
            except DamagedError as error:
                assert "\n" not in str(error)  # noqa: PT017
                continue
            assert found.keys() == tensors.keys()
            assert all(torch.equal(found[k], tensors[k]) and found[k].dtype == tensors[k].dtype for k in tensors), bit


def rezipped(file: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, change(name, data))


def test_archives_with_other_sizes_than_they_declare(tmp_path: Path) -> None:
    file = tmp_path / "c.pth"

    def fresh() -> Path:
        torch.save({"a": torch.arange(16.0)}, file)
        return file

    rezipped(fresh(), lambda name, data: data.replace(b"K\x10", b"M\xff\xff") if name.endswith(".pkl") else data)
    assert "damaged" in refused(lambda: load_plain(file))  # more elements than there are bytes
    rezipped(fresh(), lambda name, data: data, zipfile.ZIP_DEFLATED)
    assert "a compressed one" in refused(lambda: load_plain(file))
    rezipped(fresh(), lambda name, data: b"" if name.endswith("data.pkl") else data)
    refused(lambda: load_plain(file))
    fresh().write_bytes(file.read_bytes()[:-30])
    refused(lambda: load_plain(file))
    torch.save({"a": Trap(tmp_path / "sprung")}, file)
    refused(lambda: load_plain(file))
    torch.save({"a": Trap(tmp_path / "sprung")}, file, _use_new_zipfile_serialization=False)
    refused(lambda: load_plain(file))
    file.write_bytes(pickle.dumps({"a": Trap(tmp_path / "sprung")}))
    refused(lambda: load_plain(file))
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "c.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    refused(lambda: load_plain(tmp_path / "c.safetensors"))
    (tmp_path / "c.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    refused(lambda: load_plain(tmp_path / "c.safetensors"))


# -------------------------------------------------------------------------------------------- names, configs in JSON

NAMES = [
    "os.system",
    "subprocess.Popen",
    "builtins.eval",
    "odc.engine.hooks.ProgressHook",
    "this.that",
    ".",
    "a.b.c",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_that_of_something_registered(name: str) -> None:
    before = set(sys.modules)
    for registry in (HOOKS, DATASETS):
        assert registry.get(name) is None
        refused(lambda registry=registry: resolve(registry, {"type": name, "command": "true"}))  # type: ignore[misc]
    assert "this" not in set(sys.modules) - before
    for kind in (5, None, ["Digits"], {"type": "Digits"}):
        refused(lambda kind=kind: build(DATASETS, {"type": kind}))  # type: ignore[misc]
    assert HOOKS.get("mmengine.EMAHook") is HOOKS.get("EMAHook") is not None
    assert HOOKS.get("odc.ProgressHook") is HOOKS.get("ProgressHook") is not None
    assert DATASETS.get("BaseDataset") is None  # mmengine's, which unpickles what it is pointed at


def test_a_config_in_json_is_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = config("dc", str(tmp_path / "run")).to_dict()
    path = tmp_path / "c.json"
    path.write_text(json.dumps(values))
    assert load_config(path, {"model.head.num_clusters": 3}).model.head.num_clusters == 3
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')\n")
    places = ("model", "model.head", "data.dataset", "optim_wrapper.optimizer", "visualizer", "custom_hooks.0")
    for place in places:
        cfg = Config(copy.deepcopy({**values, "visualizer": {"type": "Visualizer"}}))
        cfg.merge_from_dict({f"{place}.type": "os.system"})
        path.write_text(json.dumps(cfg.to_dict()))
        assert main(["train", str(path)]) == 2, place
        assert capsys.readouterr().err.count("\n") == 1, place
    for more in ({"_base_": "code.py"}, {"custom_imports": {"imports": ["code"]}}, {"model": {"_scope_": "code"}}):
        path.write_text(json.dumps({**values, **more}))
        assert "leads to code" in refused(lambda: load_config(path))
    for text in (
        "[1]",
        "5",
        "",
        "{",
        '{"a": ' + "[" * 100_000,
        '{"a": ' + "[" * 60 + "]" * 60 + "}",
        "\x00",
        "1" * 10**5,
    ):
        path.write_text(text)
        assert "not a config in JSON" in refused(lambda: load_config(path))
    (tmp_path / "c.yaml").write_text(f"a: !!python/object/apply:os.system ['touch {tmp_path / 'sprung'}']\n")
    assert "neither .py nor .json" in refused(lambda: load_config(tmp_path / "c.yaml"))


# -------------------------------------------------------------------------------------------------------- comparisons

SCRIPT = "<script>alert(1)</script>\"'|&\x1b[2J\n| x | y |"


def comparison(place: Path, /, **changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the files of a comparison on 48 images, with one row, and return what is in them."""
    about = {
        "dataset": "blobs",
        "data": {"type": "Blobs"},
        "evaluated_on": "the data set",
        "num_clusters": 3,
        "command": "odc compare",
        "features": "",
        "images": 48,
        "fingerprint": Blobs().fingerprint,
        "clustered": Blobs().fingerprint,
        "threads": 1,
        "methods": ["odc", "sklearn.cluster.Birch-moco"],
    }
    record = {
        "method": "odc",
        "seed": 0,
        **dict(acc=0.5, nmi=0.5, ari=0.5, knn=0.5, seconds=1.5, images_seen=96, epochs=2, peak_rss_mb=300.0),
        **{key: about[key] for key in ("dataset", "evaluated_on", "images", "num_clusters")},
        **dict(
            config="c.py",
            folder="odc-0",
            threads=1,
            precision="float32",
            key="0" * 16,
            versions={"torch": "2"},
            machine="m",
        ),
        **dict(git_revision="", command="odc compare", date="2026-01-01"),
    }
    for name, value in changes.items():
        (about if name in about and name in ("data", "methods", "fingerprint", "command") else record)[name] = value
    place.mkdir(exist_ok=True)
    (place / "comparison.json").write_text(json.dumps(about))
    (place / "results.jsonl").write_text(json.dumps(record) + "\n")
    cell = place / "odc-0"
    cell.mkdir(exist_ok=True)
    np.savez_compressed(
        cell / "outcome.npz",
        features=np.random.default_rng(0).normal(size=(48, 4)).astype(np.float16),
        cluster=(np.arange(48) % 3).astype(np.int32),
        confidence=np.zeros(48, np.float32),
        margin=np.zeros(48, np.float32),
    )
    (cell / "curves.json").write_text('[{"epoch": 1, "loss": NaN}, {"epoch": 2, "loss": 1.0}]')
    return about, record


def test_a_report_of_received_files_holds_no_markup_of_theirs(tmp_path: Path) -> None:
    comparison(tmp_path, method=SCRIPT, methods=[SCRIPT], command=SCRIPT, machine=SCRIPT, config=SCRIPT, date=SCRIPT)
    append_line(
        tmp_path / "results.jsonl", json.dumps({**comparison(tmp_path)[1], "seed": 1, "error": SCRIPT, "log": SCRIPT})
    )
    comparison(
        tmp_path / "x", method=SCRIPT, methods=[SCRIPT, "odc"], command=SCRIPT, machine=SCRIPT, evaluated_on=SCRIPT
    )
    (record,) = report_only(tmp_path / "x")
    assert record.method == SCRIPT
    page = (tmp_path / "x" / "report.html").read_text(encoding="utf-8")
    table = (tmp_path / "x" / "table.md").read_text(encoding="utf-8")
    assert "<script" not in page.lower()
    assert "&lt;script&gt;" in page
    before, _, after = table.split("```")  # between is code, whatever stands there
    assert "<script" not in before + after
    assert "\n| x | y |" not in table
    assert "\x1b" not in page + table
    report_only(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"type": "os.system", "command": "true"}},
        {"data": {"type": "LongTail", "dataset": {"type": "os.system", "command": "true"}, "ratio": 0.5}},
        {"data": {"type": "BaseDataset", "ann_file": "x.pkl"}},
        {"data": {"type": "ClusterModel"}},
        {"data": {"type": "Digits", "size": 10**7}},
        {"data": {"type": "Blobs", "n": 10**12}},
        {"data": {"type": "Blobs", "n": -1}},
        {"data": "Blobs"},
        {"data": {}},
        {"data": {"type": ["Blobs"]}},
        {"data": {"type": "ImageFolder", "root": "a\0b"}},
        {"methods": "odc"},
        {"methods": ["dc"]},
        {"methods": [5]},
        {"fingerprint": 5},
        {"fingerprint": "../x"},
    ],
)
def test_what_a_comparison_says_of_its_data_is_checked(changes: dict[str, Any], tmp_path: Path) -> None:
    comparison(tmp_path, **changes)
    refused(lambda: report_only(tmp_path))


def only(name: str, *values: Any) -> list[dict[str, Any]]:
    return [{name: value} for value in values]


@pytest.mark.parametrize(
    "changes",
    [
        *only("folder", "../odc-0", "/etc", 5, None, "a/../../b", "a\0b"),
        *only("seed", "0", -1, 1.5, None, True, 10**30),
        *only("acc", "high", 1e300, -5, [1], {}),
        *only("seconds", "1", -1, 1e300, 10**400),
        *only("method", 5, None, "", "x" * 1000, ["odc"]),
        *only("versions", "2", {"torch": 2}, None),
        *only("key", 5, "x", None),
        {"date": 5},
        {"error": {"a": 1}},
        {"custom": [1, 2]},
        {"images": 0},
        {"num_clusters": "3"},
    ],
)
def test_a_record_that_no_run_writes_does_not_count(changes: dict[str, Any], tmp_path: Path, warned: list[str]) -> None:
    comparison(tmp_path, **changes)
    assert read_results(tmp_path) == {}
    assert "results.jsonl' has no result in line 1" in "".join(warned)
    assert "no cell of the comparison" in refused(lambda: report_only(tmp_path))


def test_a_torn_line_swallows_no_other(tmp_path: Path) -> None:
    _, record = comparison(tmp_path)
    file = tmp_path / "results.jsonl"
    whole = file.read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        append_line(file, json.dumps({**record, "seed": 1}))
        append_line(file, json.dumps({**record, "seed": 2}))
        found = {seed for _, seed in read_results(tmp_path)}
        assert found == ({0, 1, 2} if cut == len(whole) - 1 else {1, 2})
    for line in (b"\xff\xfe", b"[" * 100_000, b"5", b"null"):
        file.write_bytes(whole + line + b"\n" + whole.replace(b'"seed": 0', b'"seed": 3'))
        if line == b"\xff\xfe":
            assert "results.jsonl" in refused(lambda: read_results(tmp_path))
        else:
            assert {seed for _, seed in read_results(tmp_path)} == {0, 3}


def bomb(path: Path, **shapes: tuple[str, tuple[int, ...]]) -> None:
    """Write an .npz whose headers declare arrays of these types and shapes over a few zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (dtype, shape) in shapes.items():
            header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode().ljust(117) + b"\n"
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(64))


OUTCOME = {
    "features": ("<f2", (48, 4)),
    "cluster": ("<i4", (48,)),
    "confidence": ("<f4", (48,)),
    "margin": ("<f4", (48,)),
}


@pytest.mark.parametrize(
    "changes",
    [
        {"features": ("<f2", (48, 10**9))},
        {"features": ("<f2", (48, -1))},
        {"cluster": ("<i4", (10**10,))},
        {"cluster": ("|O", (48,))},
        {"cluster": ("<U0", (10**10,))},
        {"margin": ("<c8", (48,))},
        {"more": ("<f4", (1,))},
        {},
    ],
)
def test_outcomes_that_declare_what_they_do_not_hold(changes: dict[str, Any], tmp_path: Path) -> None:
    comparison(tmp_path)
    bomb(tmp_path / "odc-0" / "outcome.npz", **{**OUTCOME, **changes})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "outcome.npz" in refused(lambda: report_only(tmp_path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KiB


@pytest.mark.parametrize(
    "content", ["[1]", "{}", '[{"epoch": "1"}]', '[{"epoch": 1e999}, {"epoch": [1]}]', "[" * 10**5]
)
def test_curves_that_no_training_leaves(content: str, tmp_path: Path) -> None:
    comparison(tmp_path)
    (tmp_path / "odc-0" / "curves.json").write_text(content)
    assert "curves.json" in refused(lambda: report_only(tmp_path))


@pytest.mark.parametrize(
    "content",
    [
        "[1]",
        "{",
        '{"seconds": 1}',
        '{"key": 5, "seconds": 1}',
        '{"key": "x", "seconds": "1"}',
        '{"key": "x", "seconds": 1, "checkpoint": "../../other/epoch_1.pth"}',
        '{"key": "x", "seconds": 1, "checkpoint": "/tmp/epoch_1.pth"}',
        '{"key": "x", "seconds": 1, "acc": "high"}',
        '{"key": "x", "seconds": 1, "per_cluster": 5}',
        "[" * 10**5,
    ],
)
def test_records_of_stages(content: str, tmp_path: Path) -> None:
    path = tmp_path / "done.json"
    path.write_text(content)
    assert "done.json" in refused(lambda: read_json(path, DONE, "is not the record of a stage", "delete it"))


def test_a_map_that_was_tampered_with_is_drawn_anew(tmp_path: Path) -> None:
    comparison(tmp_path)
    report_only(tmp_path)
    cache, page = tmp_path / "odc-0" / "embedding-2d.npz", (tmp_path / "report.html").read_bytes()
    with np.load(cache) as file:
        kept = dict(file)
    for name, value in (
        ("xy", np.zeros((5, 2), np.float32)),
        ("xy", np.full((48, 2), np.nan, np.float32)),
        ("index", np.full(48, 10**6)),
        ("index", kept["index"][::-1]),
        ("checksum", np.array("x")),
    ):
        np.savez(cache, **{**kept, name: value})
        report_only(tmp_path)
        assert (tmp_path / "report.html").read_bytes() == page


# ------------------------------------------------------------------------------------------------ tables of all kinds


@pytest.mark.slow
def test_a_label_file_that_declares_12_gb(tmp_path: Path) -> None:
    path = tmp_path / "labels.npz"
    bomb(
        path, target=("<i8", (1_500_000_000,)), num_classes=("<i8", ()), fingerprint=("<U16", ()), meta=("<U1", (0, 2))
    )
    assert "declares" in refused(lambda: LabelFile.load(path))
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("target.npy", "w", force_zip64=True) as f,
    ):
        piece = bytes(2**24)
        for _ in range(2**30 // len(piece) + 1):
            f.write(piece)
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("num_classes", "fingerprint", "meta"):
            archive.writestr(f"{name}.npy", b"")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "unpacks to" in refused(lambda: LabelFile.load(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_features_that_unpack_to_more_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    arrays: dict[str, Any] = dict(
        index=np.arange(9), paths=np.array(list("abcdefghi")), features=np.zeros((9, 10**5), np.float32)
    )
    np.savez_compressed(path, **arrays, fingerprint=np.array("f"), meta=np.array("{}"))
    assert "unpacks to" in refused(lambda: Embeddings.load(path))
    np.savez(path, **arrays, fingerprint=np.array("f"), meta=np.array("[" * 10**5))
    assert "nested too deep" in refused(lambda: Embeddings.load(path))


def test_parquet_of_a_billion_rows(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "f.parquet"
    Embeddings(torch.arange(3), ("a", "b", "c"), torch.zeros(3, 2), "f").save(path)
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table] * 1000), path, use_dictionary=True)
    assert "dictionary" in refused(lambda: Embeddings.load(path))
    many = pa.table({"id": pa.nulls(10**6, pa.int64()), "path": pa.nulls(10**6, pa.string())})
    pq.write_table(many, path)
    assert "its columns are" in refused(lambda: Embeddings.load(path))
    pq.write_table(table.append_column("more", pa.array([1, 2, 3])), path, use_dictionary=False)
    assert "its columns are" in refused(lambda: Embeddings.load(path))


@pytest.mark.parametrize(
    "clusters",
    [5, [5], [{"cluster": 1}], [{"cluster": 7, "label": "a", "support": 1, "labelled": 1, "margin": 1}],
     [{"cluster": 0, "label": "z", "support": 1, "labelled": 1, "margin": 1}],
     [{"cluster": 0, "label": "a", "support": 1, "labelled": 1, "margin": 1, "__class__": "x"}],
     [{"cluster": 0, "label": "a", "support": -1, "labelled": 1, "margin": 1}]],
)  # fmt: skip
def test_maps_of_clusters(clusters: Any, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"rule": "votes", "classes": ["a"], "clusters": clusters}))
    assert "is not a map of clusters" in refused(lambda: Alignment.load(path))


def test_tables_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.csv"
    for content in (b"\xff\xfe", b"path,label\n" + b"a" * 200_000 + b",x\n", b"", b"path\n", b"a,b\n1,2\n"):
        path.write_bytes(content)
        refused(lambda: read_table(path, "path", "label"))
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe", Path("/dev/zero"), tmp_path / "missing"):
        refused(lambda place=place: read_table(place, "path"))  # type: ignore[misc]
        refused(lambda place=place: LabelFile.load(place))  # type: ignore[misc]
    monkeypatch.chdir(tmp_path)
    Path("clusters.csv").write_text("path,cluster\na,0\nb,1000000000\n")
    Path("labels.csv").write_text("path,label\na,x\n")
    assert main(["align", "clusters.csv", "labels.csv", "--out", "map.json"]) == 2


def test_what_the_terminal_gets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "a\x1b[2J\x07\nodc: error: forged\udcff"
    assert main(["print-config", name]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert r"a\x1b[2J\x07\nodc: error: forged\udcff" in err


def no_nan(state: dict[str, Tensor]) -> bool:
    return all(not bool(value.isnan().any()) for value in state.values() if value.is_floating_point())


def test_the_good_ones_are_read(trained: tuple[Runner, dict[str, Any], Path], tmp_path: Path) -> None:
    _, checkpoint, folder = trained
    assert no_nan(checkpoint["state_dict"])
    runner = build_runner(config("odc", str(tmp_path / "again"), resume=True, load_from=str(folder / "epoch_2.pth")))
    runner.load_or_resume()
    assert (runner.epoch, runner.iter) == (2, 6)
    comparison(tmp_path / "c")
    (record,) = report_only(tmp_path / "c")
    assert record.number("acc") == 0.5
    assert "sklearn.cluster._birch" not in sys.modules or "sklearn.cluster" in sys.modules
