"""The benchmark of reliability sees what it is there to see: other files, and what a file makes a command run."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import pytest
import torch

from odc.checkpoints import load_plain, write_tensors

sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))  # at the end: nothing there hides a module

from reliability import gadgets, images
from reliability.disk import small_disk
from reliability.entry import Injury
from reliability.process import Run
from reliability.report import Row, document
from reliability.same import differences, torn
from reliability.trial import Family, Outcome, Trial, complaint
from reliability.worker import Worker, harm


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """What a small run leaves."""
    folder = tmp_path / "whole"
    checkpoint = {
        "meta": {"epoch": 2, "iter": 8, "seed": 0, "time": "now"},
        "state_dict": {"weight": torch.arange(6.0).view(2, 3), "labels": torch.tensor([1, 2])},
        "optimizer": {"state": {0: {"momentum_buffer": torch.tensor([float("nan"), 0.5])}}, "param_groups": []},
    }
    for name in ("iter_4.pth", "iter_8.pth"):
        write_tensors(folder / name, checkpoint)
    (folder / "last_checkpoint").write_text("iter_8.pth")
    (folder / "clusters.csv").write_text("path,cluster\na,0\n")
    (folder / "metrics.json").write_text('{"acc": 0.5, "seconds": 3}')
    (folder / "results.jsonl").write_text('{"method": "odc", "seed": 0, "acc": 0.5, "seconds": 3}\n')
    return folder


def _copy(whole: Path) -> Path:
    part = whole.with_name("part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(whole, part)
    return part


def test_equal_files_are_equal_whatever_they_cost(whole: Path) -> None:
    part = _copy(whole)
    (part / "metrics.json").write_text('{"acc": 0.5, "seconds": 9}')
    (part / "results.jsonl").write_text('{"method": "odc", "seed": 0, "acc": 0.5, "seconds": 9}\n')
    (part / "iter_4.pth").unlink()  # superseded: another interruption keeps another one
    changed = load_plain(part / "iter_8.pth")
    changed["meta"]["time"] = "later"
    write_tensors(part / "iter_8.pth", changed)
    assert differences(whole, part) == []


def test_one_bit_is_a_difference(whole: Path) -> None:
    part = _copy(whole)
    changed = load_plain(part / "iter_8.pth")
    changed["state_dict"]["weight"][1, 2] = torch.nextafter(torch.tensor(5.0), torch.tensor(6.0))
    write_tensors(part / "iter_8.pth", changed)
    assert differences(whole, part) == ["iter_8.pth: .state_dict.weight has other bits"]
    changed["state_dict"]["weight"][1, 2] = 5.0
    changed["optimizer"]["state"][0]["momentum_buffer"][0] = 0.0
    write_tensors(part / "iter_8.pth", changed)
    assert differences(whole, part) == ["iter_8.pth: .optimizer.state.0.momentum_buffer has other bits"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("clusters.csv", "path,cluster\na,1\n", "clusters.csv: other bytes"),
        ("metrics.json", '{"acc": 0.6, "seconds": 3}', "metrics.json: {'acc': 0.6}"),
        ("results.jsonl", '{"method": "odc", "seed": 0, "acc": 0.6}\n', "results.jsonl: "),
        ("clusters.csv.tmp", "", "clusters.csv.tmp is left"),
        ("iter_6.pth", "", "3 checkpoints are kept in '.', not 2"),
        ("last_checkpoint", "iter_4.pth", "last_checkpoint: other bytes"),
    ],
)
def test_other_files_are_differences(whole: Path, name: str, content: str, said: str) -> None:
    part = _copy(whole)
    (part / name).write_text(content)
    (found,) = differences(whole, part)
    assert found.startswith(said)


def test_missing_files_are_differences_and_cut_ones_are_torn(whole: Path) -> None:
    part = _copy(whole)
    (part / "clusters.csv").write_text("path,clu")
    (part / "metrics.json").write_text('{"acc"')
    (part / "iter_8.pth").write_bytes((whole / "iter_8.pth").read_bytes()[:500])
    assert [line.partition(" ")[0].rstrip(":") for line in torn(part, whole)] == [
        "clusters.csv",
        "iter_8.pth",
        "metrics.json",
    ]
    assert torn(whole, whole) == []
    part = _copy(whole)
    (part / "clusters.csv").unlink()
    (part / "iter_8.pth").unlink()
    assert differences(whole, part) == ["clusters.csv is missing", "iter_8.pth is missing"]


def test_what_counts_as_a_refusal() -> None:
    assert complaint(2, "a log line\nodc: error: 'x' is no folder\n") is None
    assert complaint(2, "usage: odc ...\nodc train: error: unrecognized arguments: x\n") is None
    assert complaint(1, "odc: error: x\n") == "ended with 1"
    assert complaint(2, "odc: error: two\nlines\n") == "the last line is no error: lines"
    assert complaint(2, "Traceback (most recent call last):\n  x\nKeyError: 'a'\n") == "traceback (KeyError: 'a')"
    assert complaint(2, "") == "the last line is no error: "


def test_a_worker_tells_what_a_command_ran_and_how_it_died(tmp_path: Path) -> None:
    """A config is code, so it stands in for a hostile file that is not refused."""
    mark = tmp_path / "mark"
    (tmp_path / "runs.py").write_text(f"import os\nos.system('touch {mark}')\n")
    (tmp_path / "asks.py").write_text("import subprocess\nsubprocess.run(['git', '--version'])\n")
    (tmp_path / "dies.py").write_text("import os\nos.kill(os.getpid(), 11)\n")
    with Worker(tmp_path / "worker") as worker:
        reply = worker.ask({"argv": ["print-config", str(tmp_path / "runs.py")]})
        assert mark.exists()
        assert [event.partition(" ")[0] for event in harm(reply["events"], str(mark))] == ["os.system"]
        reply = worker.ask({"argv": ["print-config", str(tmp_path / "asks.py")]})
        assert len(reply["events"]) == 1
        assert harm(reply["events"], str(mark)) == []  # the machine may be asked about
        assert len(harm(reply["events"], "version")) == 1  # but not by what a trial has marked
        assert worker.ask({"argv": ["print-config", str(tmp_path / "nothing.py")]})["code"] == 2
        picture = tmp_path / "a.png"
        picture.write_bytes(images.originals(random.Random(0))[3][1])
        assert worker.ask({"image": str(picture)})["code"] == 0
        assert worker.ask({"argv": ["print-config", str(tmp_path / "dies.py")]}).died == "killed by SIGSEGV"


@pytest.mark.slow
def test_every_gadget_would_run_something(tmp_path: Path) -> None:
    """Unpickled as no command may, by a config: else a trial that counts none executed would show nothing."""
    mark = str(tmp_path / "mark")
    apart = {"execv", "pty", "posix_spawn", "hub", "torch.load"}  # replace the process, or need what is not there
    by_write = []
    with Worker(tmp_path / "worker") as worker:
        for name, opcodes in gadgets.gadgets(mark).items():
            if name in apart:
                continue
            (tmp_path / "data.pkl").write_bytes(gadgets.whole(opcodes))
            (tmp_path / "loads.py").write_text(
                "import pickle\nclass Reader(pickle.Unpickler):\n    def persistent_load(self, x): return x\n"
                f"with open({str(tmp_path / 'data.pkl')!r}, 'rb') as file:\n    Reader(file).load()\n"
            )
            events = harm(worker.ask({"argv": ["print-config", str(tmp_path / "loads.py")]})["events"], mark)
            if not events:
                by_write.append(name)
                assert Path(mark).exists(), name
            Path(mark).unlink(missing_ok=True)
    assert by_write == ["eval", "exec", "open", "timeit", "runpy", "runstring"]


def test_an_injury_kills_inside_the_write_and_leaves_the_file_cut(tmp_path: Path) -> None:
    (tmp_path / "writes.py").write_text(
        f"from odc.files import write_text\nwrite_text({str(tmp_path / 'clusters.csv')!r}, 'x' * 5000)\n"
    )
    injury = Injury("open", "clusters.csv", action="cut", size=3000)
    run = Run(["print-config", str(tmp_path / "writes.py")], tmp_path / "out.txt", injury=injury.dumps())
    assert run.wait(120) is not None
    assert run.process.returncode < 0
    assert run.left_after(10) == 0
    (unfinished,) = tmp_path.glob("*.tmp")  # under whatever name it was opened
    assert unfinished.stat().st_size == 3000
    assert not (tmp_path / "clusters.csv").exists()


def test_a_small_disk_is_taken_away_whatever_happens(tmp_path: Path) -> None:
    folder = tmp_path / "disk"

    def fails() -> None:
        with small_disk(folder) as mounted:
            assert folder.is_mount() == mounted
            raise KeyError("trial")

    with pytest.raises(KeyError, match="trial"):
        fails()
    assert not folder.is_mount()


def test_the_table_counts_what_is_lost_crashed_and_executed() -> None:
    row = Row(Family("kills", "killed", True, lambda bench: []))
    other = Row(Family("hostile", "files", False, lambda bench: []))
    row.add(Trial("a", lambda folder, rng: Outcome()), Outcome(tried=5, lost=["gone"]), 1.0)
    other.add(Trial("b", lambda folder, rng: Outcome()), Outcome(tried=1200, executed=["ran"], crashed=["x", "y"]), 2.0)
    text = document([row, other], 0, 2, 60.0)
    assert [cell.strip() for cell in text.splitlines()[8].split("|")[1:-1]] == ["killed", "5", "4", "1", "1"]
    assert [cell.strip() for cell in text.splitlines()[12].split("|")[1:-1]] == ["files", "1,200", "2", "1", "2"]
    assert "- kills/a: gone" in text
    assert "- hostile/b: ran" in text


def test_every_mutation_of_every_format_is_one_line_or_an_image(tmp_path: Path) -> None:
    """The pictures that are mutated are sound: each decodes before."""
    rng = random.Random(1)
    sound = images.originals(rng)
    assert len({ending for ending, _ in sound}) > 10
    for mutate in images.MUTATIONS:
        changed = [mutate(content, sound[0][1], rng) for _, content in sound]
        assert sum(a != b for a, (_, b) in zip(changed, sound, strict=True)) > len(sound) // 2
