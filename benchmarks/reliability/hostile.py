"""Files from somebody else: everything that a command reads back, made to run something or to break the reader."""

from __future__ import annotations

import io
import json
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from odc.checkpoints import load_plain

from . import gadgets
from .process import command
from .settings import COMPARE, ODC, SPICE
from .trial import Bench, Family, Outcome, Trial, complaint
from .worker import Reply, Worker, harm


@dataclass(frozen=True)
class Attack:
    """A hostile file: ``make`` writes it into a folder and returns the command that reads it."""

    name: str
    make: Callable[[Path], list[str]]


def mount(attacks: Callable[[Bench, Path, str], Iterator[Attack]], bench: Bench, folder: Path, every: int) -> Outcome:
    """Give each file to the command line in a worker: a result, or exit 2 and one line; and nothing is run."""
    outcome = Outcome()
    mark = folder / "mark"
    with Worker(folder / "worker", 6000) as worker:
        for number, attack in enumerate(attacks(bench, folder, str(mark))):
            if number % every:
                continue
            place = folder / attack.name
            place.mkdir()
            argv = attack.make(place)
            reply = worker.ask({"argv": argv})
            outcome.tried += 1
            wrong = reply.died or refusal(reply)
            if wrong:
                outcome.crashed.append(f"{attack.name}: {wrong}: {command(argv)}")
            events = harm(reply["events"], str(mark))
            if mark.exists():
                events.append(f"the file {mark} was written")
                mark.unlink()
            if events:
                outcome.executed.append(f"{attack.name}: {events[0]}: {command(argv)}")
            if not (wrong or events):
                shutil.rmtree(place)
    return outcome


def refusal(reply: Reply) -> str | None:
    """Return what is wrong with how a command ended: a result, or exit 2 and one line, is right.

    1 is a comparison's own code for a table in which a method has failed; a fault of the program has a traceback.
    """
    output = reply["output"] + (reply["raised"] or "")
    fine = reply["code"] in (0, 1) and "Traceback (most recent call last)" not in output
    return None if fine else complaint(reply["code"], output)


# -- checkpoints -----------------------------------------------------------------------------------------------------


def readers(config: Path) -> list[Callable[[Path, Path], list[str]]]:
    """Return the commands that read a checkpoint (file, folder to work in)."""

    def resumed(file: Path, place: Path) -> list[str]:
        work = place / "work"
        work.mkdir()
        shutil.copy(file, work / "iter_40.pth")
        (work / "last_checkpoint").write_text("iter_40.pth")
        return ["train", str(config), "--work-dir", str(work), "--resume"]

    def started(file: Path, place: Path) -> list[str]:
        options = [f"model.pretrained={file}", "train_cfg.max_epochs=1"]
        return ["train", str(config), "--work-dir", str(place / "work"), "--cfg-options", *options]

    return [
        resumed,
        lambda file, place: ["test", str(config), str(file), "--work-dir", str(place / "work")],
        lambda file, place: ["convert", str(file), str(place / "out.pth")],
        started,
        lambda file, place: [
            "extract",
            str(config),
            str(file),
            "--out",
            str(place / "f.npz"),
            "--work-dir",
            str(place),
        ],
    ]


def checkpoints(bench: Bench, folder: Path, mark: str) -> Iterator[Attack]:
    """Every gadget, malformed content and broken archive, by the readers in turn; malformed ones by ``--resume``."""
    whole = bench.whole(ODC).folder
    sound = whole / (whole / "last_checkpoint").read_text().strip()
    reader = readers(bench.config(ODC))

    def gadget(name: str, opcodes: bytes, kind: int, read: int) -> Attack:
        def make(place: Path) -> list[str]:
            file = place / "evil.pth"
            value = opcodes if kind != 1 else b"}X\x0a\x00\x00\x00state_dict" + opcodes + b"s"
            data = gadgets.whole(value)
            if kind == 2:
                file.write_bytes(data)  # a bare pickle
            else:
                gadgets.in_archive(sound, data, file)
            return reader[read](file, place)

        return Attack(f"gadget-{name}-{kind}", make)

    for number, (name, opcodes) in enumerate(gadgets.gadgets(mark).items()):
        yield gadget(name, opcodes, number % 3, number % len(reader))
    for number, (name, content) in enumerate(gadgets.archives(sound).items()):

        def broken(place: Path, name: str = name, content: bytes = content, number: int = number) -> list[str]:
            file = place / ("evil.safetensors" if name.startswith("safetensors") else "evil.pth")
            file.write_bytes(content)
            return reader[number % len(reader)](file, place)

        yield Attack(f"archive-{name}", broken)
    loaded = load_plain(sound)
    for name, edit in gadgets.EDITS.items():

        def malformed(place: Path, edit: gadgets.Edit = edit) -> list[str]:
            gadgets.edited(loaded, edit, place / "evil.pth")
            return reader[0](place / "evil.pth", place)

        yield Attack(f"malformed-{name}", malformed)


# -- folders of results ----------------------------------------------------------------------------------------------


def _pickled(mark: str) -> bytes:
    """Return an ``.npy`` of objects whose pickle would write the mark."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|O", "fortran_order": False, "shape": (1,)})
    return head.getvalue() + gadgets.whole(gadgets.call("os.system", f"touch {mark}"))


def _declared(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    """Return an ``.npy`` that declares more than it holds."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": dtype, "fortran_order": False, "shape": shape})
    return head.getvalue() + bytes(64)


def _rewritten(file: Path, members: dict[str, bytes]) -> None:
    """Replace members of an ``.npz``."""
    with zipfile.ZipFile(file) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in {**content, **members}.items():
            archive.writestr(name, data)


def _json(change: dict[str, Any]) -> Callable[[str], str]:
    return lambda text: json.dumps({**json.loads(text), **change})


def _first_line(change: dict[str, Any]) -> Callable[[str], str]:
    def edit(text: str) -> str:
        first, *others = text.splitlines()
        return "\n".join([json.dumps({**json.loads(first), **change}), *others]) + "\n"

    return edit


def comparisons(bench: Bench, folder: Path, mark: str) -> Iterator[Attack]:
    """Folders that ``odc compare --report-only`` gets from somebody."""
    whole = bench.whole(COMPARE).folder
    run = f"touch {mark}"
    system = {"type": "os.system", "command": run}
    texts: list[tuple[str, str, Callable[[str], str | bytes]]] = [
        ("system", "comparison.json", _json({"data": system})),
        ("popen", "comparison.json", _json({"data": {"type": "subprocess.Popen", "args": ["touch", mark]}})),
        ("output", "comparison.json", _json({"data": {"type": "subprocess.getoutput", "cmd": run}})),
        ("open", "comparison.json", _json({"data": {"type": "pathlib.Path.touch", "self": mark}})),
        ("nested", "comparison.json", _json({"data": {"type": "LongTail", "ratio": 1.0, "dataset": system}})),
        ("scoped", "comparison.json", _json({"data": {"type": "mmengine.os.system", "command": run}})),
        ("listed", "comparison.json", _json({"data": [1, 2]})),
        ("typeless", "comparison.json", _json({"data": {}})),
        ("number", "comparison.json", _json({"data": {"type": 5}})),
        ("methods", "comparison.json", _json({"methods": 7})),
        ("no-methods", "comparison.json", _json({"methods": []})),
        ("fingerprint", "comparison.json", _json({"fingerprint": ["a"]})),
        ("command", "comparison.json", _json({"command": {"a": 1}})),
        ("script", "comparison.json", _json({"command": "<script>alert(1)</script>\x1b[2J"})),
        ("array", "comparison.json", lambda text: "[]"),
        ("empty", "comparison.json", lambda text: ""),
        ("cut", "comparison.json", lambda text: text[:40]),
        ("binary", "comparison.json", lambda text: b"\xff\xfe\x00\x01"),
        ("deep", "comparison.json", lambda text: "[" * 100_000),
        ("null", "results.jsonl", lambda text: "null\n" + text),
        ("numbers", "results.jsonl", lambda text: "5\n[1]\n" + text),
        ("keyless", "results.jsonl", lambda text: '{"a": 1}\n' + text),
        ("torn", "results.jsonl", lambda text: text + text.splitlines()[0][:50]),
        ("torn-bytes", "results.jsonl", lambda text: text.encode() + "é".encode()[:1]),
        ("up", "results.jsonl", _first_line({"folder": "../../../../../etc"})),
        ("absolute", "results.jsonl", _first_line({"folder": "/etc"})),
        ("folder", "results.jsonl", _first_line({"folder": 5})),
        ("seed", "results.jsonl", _first_line({"seed": "zero"})),
        ("method", "results.jsonl", _first_line({"method": ["a"]})),
        ("stranger", "results.jsonl", _first_line({"method": "no such row"})),
        ("metric", "results.jsonl", _first_line({"acc": "high", "nmi": [1]})),
        ("infinite", "results.jsonl", _first_line({"acc": 1e400, "seconds": -1})),
        ("lacking", "results.jsonl", lambda text: '{"method": "odc", "seed": 0}\n'),
        ("versions", "results.jsonl", _first_line({"versions": "old", "machine": 3})),
        ("error", "results.jsonl", _first_line({"error": {"a": 1}})),
    ]
    for name, file, edit in texts:

        def make(place: Path, file: str = file, edit: Callable[[str], str | bytes] = edit) -> list[str]:
            out = place / "received"
            shutil.copytree(whole, out)
            changed = edit((out / file).read_text())
            (out / file).write_bytes(changed if isinstance(changed, bytes) else changed.encode())
            return ["compare", "--report-only", "--out", str(out)]

        yield Attack(f"compare-{name}", make)
    for name, member, data in (
        ("objects", "features.npy", _pickled(mark)),
        ("huge", "features.npy", _declared((2**40, 8))),
        ("clusters", "cluster.npy", _declared((359,), "<f8")),
        ("cut", "features.npy", b"\x93NUMPY\x01\x00"),
    ):

        def arrays(place: Path, member: str = member, data: bytes = data) -> list[str]:
            out = place / "received"
            shutil.copytree(whole, out)
            for file in out.rglob("outcome.npz"):
                _rewritten(file, {member: data})
            return ["compare", "--report-only", "--out", str(out)]

        yield Attack(f"outcome-{name}", arrays)
    for name, pattern, content in (
        ("curves", "curves.json", b'{"epoch": "x"}'),
        ("curves-text", "curves.json", b'[{"epoch": "x", "loss": "<b>"}]'),
        ("curves-cut", "curves.json", b'[{"ep'),
        ("map", "embedding-2d.npz", b"PK\x03\x04nothing"),
        ("outcome", "outcome.npz", b"nothing"),
    ):

        def files(place: Path, pattern: str = pattern, content: bytes = content) -> list[str]:
            out = place / "received"
            shutil.copytree(whole, out)
            for file in out.rglob(pattern):
                file.write_bytes(content)
            return ["compare", "--report-only", "--out", str(out)]

        yield Attack(f"left-{name}", files)


def pipelines(bench: Bench, folder: Path, mark: str) -> Iterator[Attack]:
    """Work directories that ``odc run`` is to go on in."""
    whole = bench.whole(SPICE).folder
    edits: list[tuple[str, str, Callable[[str], str | bytes]]] = [
        ("binary", "self/done.json", lambda text: b"\xff\x00"),
        ("list", "self/done.json", lambda text: "[1]"),
        ("keyless", "self/done.json", lambda text: "{}"),
        ("cut", "self/done.json", lambda text: text[:20]),
        ("seconds", "self/done.json", _json({"seconds": "x"})),
        ("up", "self/done.json", _json({"checkpoint": "../../../../../../etc/passwd"})),
        ("number", "self/done.json", _json({"checkpoint": 5})),
        ("metric", "self/done.json", _json({"acc": "high"})),
        ("told", "reliable/done.json", _json({"told": ["\x1b[2J"]})),
        ("begun-binary", "semi/begun.json", lambda text: b"\xff"),
        ("begun-seconds", "semi/begun.json", _json({"seconds": "x"})),
        ("begun-cut", "semi/begun.json", lambda text: ""),
    ]
    for name, file, edit in edits:

        def make(place: Path, file: str = file, edit: Callable[[str], str | bytes] = edit) -> list[str]:
            # The key of a stage does not depend on where the folder lies.
            out = place / "spice"
            shutil.copytree(whole, out)
            shutil.rmtree(out / "semi") if file.startswith("reliable") else None
            changed = edit((out / file).read_text())
            (out / file).write_bytes(changed if isinstance(changed, bytes) else changed.encode())
            if file.endswith("begun.json"):
                (out / file).with_name("done.json").unlink()
            return SPICE.argv(bench.config(SPICE), out)

        yield Attack(f"spice-{name}", make)


# -- features, labels, tables, configs -------------------------------------------------------------------------------


def tables(bench: Bench, folder: Path, mark: str) -> Iterator[Attack]:
    """Features, label files, tables and configs."""
    config, whole = bench.config(ODC), bench.whole(ODC).folder
    sound = whole / (whole / "last_checkpoint").read_text().strip()
    spice = bench.whole(SPICE).folder
    features, labels = spice / "embeddings" / "features.npz", spice / "reliable" / "labels.npz"

    def probe(place: Path, file: Path) -> list[str]:
        return ["probe", str(config), "--features", str(file), "--work-dir", str(place / "work")]

    def reliable(place: Path, *more: str) -> list[str]:
        out = ["--out", str(place / "out"), "--work-dir", str(place / "work")]
        return ["reliable", str(config), str(sound), *out, "--threshold", "0.1", *more]

    for name, member, data in (
        ("objects", "features.npy", _pickled(mark)),
        ("paths", "paths.npy", _pickled(mark)),
        ("meta", "meta.npy", _pickled(mark)),
        ("huge", "features.npy", _declared((2**40, 8))),
        ("shape", "features.npy", _declared((2, 2, 2))),
        ("index", "index.npy", _declared((4,), "<i8")),
    ):

        def arrays(place: Path, member: str = member, data: bytes = data) -> list[str]:
            shutil.copy(features, place / "f.npz")
            _rewritten(place / "f.npz", {member: data})
            return probe(place, place / "f.npz")

        yield Attack(f"features-{name}", arrays)
    for name, content in (("text", b"hello"), ("magic", b"PAR1" + bytes(40) + b"PAR1"), ("empty", b"")):

        def parquet(place: Path, content: bytes = content) -> list[str]:
            (place / "f.parquet").write_bytes(content)
            return probe(place, place / "f.parquet")

        yield Attack(f"parquet-{name}", parquet)
    for name, member, data in (
        ("objects", "target.npy", _pickled(mark)),
        ("huge", "target.npy", _declared((2**40,), "<i8")),
        ("classes", "num_classes.npy", _declared((), "<i8")),
        ("meta", "meta.npy", _pickled(mark)),
    ):

        def given(place: Path, member: str = member, data: bytes = data) -> list[str]:
            shutil.copy(labels, place / "l.npz")
            _rewritten(place / "l.npz", {member: data})
            options = [f"train_cfg.label_file={place / 'l.npz'}", "train_cfg.max_epochs=1"]
            return ["train", str(config), "--work-dir", str(place / "work"), "--cfg-options", *options]

        yield Attack(f"labels-{name}", given)
    path = (whole / "clusters.csv").read_text().splitlines()[1].split(",")[0]
    clusters, known = f"path,cluster\n{path},0\n", f"path,label\n{path},cat\n"
    for name, one, two in (
        ("huge-cluster", f"path,cluster\n{path},1000000000\n", known),
        ("negative", f"path,cluster\n{path},-1\n", known),
        ("float", f"path,cluster\n{path},1.5\n", known),
        ("digits", f"path,cluster\n{path},{'9' * 5000}\n", known),
        ("short-row", f"path,cluster\n{path}\n", known),
        ("long-row", f"path,cluster\n{path},0,1,2,3\n", known),
        ("field", f"path,cluster\n{'x' * 200_000},0\n", known),
        ("quote", f'path,cluster\n"{path},0\n', known),
        ("nul", f"path,cluster\n{path}\0,0\n", known),
        ("twice", f"{clusters}{path},1\n", known),
        ("columns", "a,b\n1,2\n", known),
        ("nothing", "", known),
        ("label-empty", clusters, f"path,label\n{path},\n"),
        ("label-escape", clusters, f'path,label\n{path},"\x1b[2J\nodc: error"\n'),
        ("label-short", clusters, f"path,label\n{path}\n"),
        ("label-nothing", clusters, "path,label\n"),
        ("utf-16", clusters, known.encode("utf-16").decode("latin1")),
    ):

        def align(place: Path, one: str = one, two: str = two) -> list[str]:
            (place / "clusters.csv").write_bytes(one.encode())
            (place / "labels.csv").write_bytes(two.encode("latin1", "replace"))
            return ["align", str(place / "clusters.csv"), str(place / "labels.csv"), "--out", str(place / "map.json")]

        yield Attack(f"align-{name}", align)
    match = {"cluster": 0, "label": "cat", "support": 1, "labelled": 1, "margin": 1.0}
    for name, value in (
        ("list", [1]),
        ("classes", {"rule": "votes", "classes": 5, "clusters": []}),
        ("none", {"rule": "votes", "classes": ["cat"], "clusters": []}),
        ("huge", {"rule": "votes", "classes": ["cat"], "clusters": [{**match, "cluster": 10**9}]}),
        ("text", {"rule": "votes", "classes": ["cat"], "clusters": [{**match, "cluster": "a", "support": "b"}]}),
        ("stranger", {"rule": "votes", "classes": ["cat"], "clusters": [{**match, "label": "dog"}]}),
    ):

        def mapped(place: Path, value: object = value) -> list[str]:
            (place / "map.json").write_text(json.dumps(value))
            (place / "labels.csv").write_text(known)
            return reliable(place, "--labels", str(place / "labels.csv"), "--align", str(place / "map.json"))

        yield Attack(f"map-{name}", mapped)
    for name, kind, text in (
        ("csv-binary", "ImageCSV", b"\xff\xfe\x00"),
        ("csv-field", "ImageCSV", b"path,label\n" + b"x" * 200_000 + b",1\n"),
        ("csv-up", "ImageCSV", b"path,label\n../../../../../etc/passwd,1\n"),
        ("list-nul", "ImageList", b"a\0b\tcat\n"),
        ("list-absolute", "ImageList", b"/etc/passwd\tcat\n"),
        ("list-device", "ImageList", b"/dev/zero\tcat\n"),
    ):

        def listed(place: Path, kind: str = kind, text: bytes = text) -> list[str]:
            (place / "images.txt").write_bytes(text)
            dataset = {"_delete_": True, "type": kind, "file": str(place / "images.txt")}
            (place / "c.json").write_text(json.dumps({"_base_": str(config), "data": {"dataset": dataset}}))
            return ["train", str(place / "c.json"), "--work-dir", str(place / "work")]

        yield Attack(f"images-{name}", listed)
    system = {"type": "os.system", "command": f"touch {mark}"}
    base = {"_base_": str(config)}
    configs: list[tuple[str, dict[str, Any]]] = [
        ("dataset", {**base, "data": {"dataset": {"_delete_": True, **system}}}),
        ("head", {**base, "model": {"head": {"_delete_": True, **system}}}),
        ("model", {**base, "model": {"_delete_": True, **system}}),
        ("metric", {**base, "val_evaluator": [system]}),
        ("hook", {**base, "custom_hooks": [{"type": "subprocess.Popen", "args": ["touch", mark]}]}),
        ("view", {**base, "data": {"views": {"train": [system]}}}),
        ("schedule", {**base, "train_cfg": {"schedule": system}}),
        ("passwd", {"_base_": "/etc/passwd"}),
    ]
    for name, value in configs:

        def configured(place: Path, value: dict[str, Any] = value) -> list[str]:
            (place / "c.json").write_text(json.dumps(value))
            return ["train", str(place / "c.json"), "--work-dir", str(place / "work")]

        yield Attack(f"json-{name}", configured)

    def yaml(place: Path) -> list[str]:
        (place / "c.yaml").write_text(f"model: !!python/object/apply:os.system ['touch {mark}']\n")
        return ["train", str(place / "c.yaml"), "--work-dir", str(place / "work")]

    yield Attack("yaml", yaml)


def trials(bench: Bench) -> list[Trial]:
    """One for each kind of file."""
    every = 8 if bench.quick else 1

    def make(kind: Callable[[Bench, Path, str], Iterator[Attack]], seconds: float) -> Trial:
        def run(folder: Path, rng: random.Random) -> Outcome:
            return mount(kind, bench, folder, every)

        return Trial(kind.__name__, run, seconds)

    return [make(checkpoints, 60.0), make(comparisons, 50.0), make(pipelines, 40.0), make(tables, 50.0)]


FAMILY = Family("hostile", "hostile files: checkpoints, results, features, tables, configs", False, trials, least=150)
