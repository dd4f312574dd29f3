"""What DESIGN promises about the parts, read from their source: who may import whom, and who may do what."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "odc").rglob("*.py"))

BASE = {"errors", "structures", "files", "reading", "refused"}
METHODS = BASE | {"registry", "clustering", "memory"}
# What each part of the package may import. The only edge that goes back, labels to sampler, is data, not code.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "processes": set(),
    "reading": {"errors", "files"},
    "structures": {"errors"},
    "refused": set(),
    "registry": {"errors", "options", "refused"},
    "options": set(),
    "logs": {"errors", "files", "registry"},
    "checkpoints": {"errors", "files", "reading", "logs", "memory"},
    "clustering": BASE,
    "choosing": {"errors", "files", "structures", "clustering"},
    "memory": BASE,
    "data": BASE | {"processes", "registry"},
    "evaluation": BASE | {"registry", "data", "clustering"},
    "heads": METHODS,
    "models": METHODS | {"checkpoints", "heads", "options"},
    "engine": METHODS | {"checkpoints", "logs", "data", "evaluation", "heads", "models"},
    "runner": METHODS | {"checkpoints", "logs", "processes", "models", "engine"},
    "config": METHODS | {"options", "logs", "data", "models", "engine", "runner"},
    "work_dir": {"errors", "files", "logs"},
    "apis": METHODS | {"config", "data", "evaluation", "models", "engine", "runner", "work_dir"},
    "probe": METHODS | {"data", "evaluation", "engine", "apis"},
    "sources": METHODS | {"checkpoints", "logs", "data", "models", "engine", "apis"},
    "recipes": METHODS
    | {"checkpoints", "config", "options", "data", "evaluation", "models", "engine", "apis", "work_dir", "sources"},
    "comparison": METHODS
    | {
        "checkpoints",
        "logs",
        "config",
        "data",
        "evaluation",
        "models",
        "engine",
        "apis",
        "recipes",
        "processes",
        "work_dir",
        "sources",
    },
    "pages": METHODS | {"data", "comparison", "results"},
    "cli": {"errors", "files"}
    | {"pages", "folder", "results", "labelling", "portable", "sharing"}
    | {"choosing", "export", "doctor"}
    | {"options", "config", "models", "apis", "probe", "recipes", "evaluation", "comparison", "sources"},
    "results": METHODS | {"data"},
    "portable": METHODS
    | {"checkpoints", "data", "heads", "models", "engine", "sources", "recipes", "comparison", "results"},
    "export": {"errors", "files", "structures", "clustering", "results", "portable"},
    "doctor": METHODS | {"processes", "config", "data", "engine", "models", "apis", "recipes", "folder"},
    "folder": METHODS
    | {"logs", "config", "data", "evaluation", "models", "engine", "apis", "recipes", "comparison", "sources"}
    | {"processes", "choosing", "pages", "portable", "results", "work_dir"},
    "estimator": METHODS
    | {"logs", "data", "evaluation", "recipes", "sources", "comparison", "results", "folder", "portable"},
    "__init__": {"estimator"},  # when it is asked for
    "sharing": METHODS | {"data", "pages", "results"},
    "labelling": METHODS | {"apis", "checkpoints", "data", "evaluation", "models", "results", "portable"},
}


@functools.cache
def source(path: Path) -> ast.Module:
    """Return what a file says, parsed once for all that look at it."""
    return ast.parse(path.read_text(encoding="utf-8"))


def part(path: Path) -> str:
    """Return the part of the package that a file belongs to."""
    return path.relative_to(ROOT / "odc").parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the full names of what a file imports anywhere in it, and their lines."""
    package = ["odc", *path.relative_to(ROOT / "odc").parts[:-1]]
    for node in ast.walk(source(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_imports_go_one_way(path: Path) -> None:
    mine = part(path)
    assert mine in MAY_IMPORT, f"say in MAY_IMPORT where odc/{mine} stands"
    for module, line in imports(path):
        names = module.split(".")
        if names[0] == "odc" and len(names) > 1 and names[1] != mine:
            assert names[1] in MAY_IMPORT[mine], f"{name(path)}:{line}: {mine} must not import {module}"


def test_every_part_is_there() -> None:
    assert MAY_IMPORT.keys() == {part(path) for path in SOURCES}


def test_the_order_has_no_circle() -> None:
    left = {k: set(v) for k, v in MAY_IMPORT.items()}
    while left:
        free = [k for k, v in left.items() if not v & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        for k in free:
            del left[k]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_only_the_engine_knows_the_other_ranks(path: Path) -> None:
    if part(path) in ("engine", "checkpoints", "runner", "config"):  # config: the options of a start
        return
    tree = source(path)
    found = [
        f"{name(path)}:{line}: {m}" for m, line in imports(path) if m.startswith(("torch.distributed", "mmengine.dist"))
    ]
    found += [
        f"{name(path)}:{node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.distributed")
    ]
    assert not found


def test_the_engine_is_where_the_collectives_are() -> None:
    users = {name(p) for p in SOURCES if any(m.startswith("torch.distributed") for m, _ in imports(p))}
    assert "odc/engine/comm.py" in users, "this test looks at nothing"


@pytest.mark.parametrize("path", [p for p in SOURCES if part(p) != "cli"], ids=name)
def test_a_library_does_not_print(path: Path) -> None:
    tree = source(path)
    calls = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) in ("print", "pprint")]
    assert not calls, f"{name(path)}: lines {calls}"


# Seeding by position, so that dropout repeats after a resume.
SEEDERS = {"odc/data/keys.py": {"torch.cuda.manual_seed"}}


# torchvision's transforms know no other generator; a training inside of a program seeds it. It gets its state back.
RESTORERS = {"odc/data/pipeline.py", "odc/estimator/isolation.py"}
STATES = {"random.getstate", "np.random.get_state"}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_draws_from_the_global_generators(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    seeding = {"torch.manual_seed", "torch.cuda.manual_seed", "torch.seed", "random.seed"}
    assert "default_generator" not in text or name(path) in RESTORERS | SEEDERS.keys()
    for node in ast.walk(source(path)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in STATES and name(path) in RESTORERS:
            continue
        where = f"{name(path)}:{node.lineno}: {called}"
        assert called not in seeding - SEEDERS.get(name(path), set()), where
        assert not re.match(r"(np|numpy)\.random\.(?!default_rng|Generator)", called), where
        assert not re.match(r"random\.\w+$", called), where
        if called in ("torch.rand", "torch.randn", "torch.randint", "torch.randperm") and part(path) != "data":
            assert any(k.arg == "generator" for k in node.keywords), where


HOST = re.compile(
    r"(?i)\b(files\.)?pythonhosted\.org|\bpypi\.(org|python)|index-url|extra-index|\b(mirror|nexus|artifactory)\b\S*\."
)


def test_no_file_names_a_registry_host() -> None:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
    )
    paths = [ROOT / line for line in listed.stdout.splitlines()] or SOURCES
    found = []
    for path in paths:
        if path == Path(__file__).resolve() or not path.is_file() or path.suffix in (".png", ".pth", ".gz"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if HOST.search(line.replace("--no-emit-index-url", "")):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found, "\n".join(found)


# What some hooks set besides their own attributes: how long the loop goes on.
STEERED = {
    "odc/comparison/cell.py": {"runner.train_loop.val_interval", "runner.train_loop.max_epochs"},
    "odc/engine/checkpointing.py": {"runner.train_loop.stop_training"},
    "odc/folder/running.py": {"runner.train_loop.max_epochs"},
}


def hooks() -> Iterator[tuple[str, ast.ClassDef]]:
    """Yield the classes of hooks, and where they are defined."""
    for path in SOURCES:
        for node in ast.walk(source(path)):
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Hook") for base in node.bases):
                yield name(path), node


@pytest.mark.parametrize(("where", "hook"), list(hooks()), ids=lambda x: x if isinstance(x, str) else x.name)
def test_hooks_observe(where: str, hook: ast.ClassDef) -> None:
    """A hook never writes to the model: no assignment to anything but its own attributes, no method that writes."""
    writers = {"copy_", "fill_", "zero_", "add_", "mul_", "load_state_dict", "register_buffer"}
    for node in ast.walk(hook):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                for inner in ast.walk(target):
                    if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
                        written = ast.unparse(inner)
                        assert written.startswith("self.") or written in STEERED.get(where, ()), written
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr not in writers, f"line {node.lineno}: {ast.unparse(node)}"
            if node.func.attr in ("replace", "update"):  # of a text or a dict, not of a store of labels
                assert not re.search("model|labels|head", ast.unparse(node.func.value)), f"line {node.lineno}"


def test_there_are_hooks_to_look_at() -> None:
    assert {"ProgressHook", "PreflightHook", "CheckpointHook"} <= {hook.name for _, hook in hooks()}


def test_no_train_step_is_overridden() -> None:
    """DDP bypasses it."""
    for path in SOURCES:
        for node in ast.walk(source(path)):
            assert not (isinstance(node, ast.FunctionDef) and node.name == "train_step"), name(path)


@pytest.mark.parametrize("path", [p for p in SOURCES if part(p) in ("clustering", "heads", "memory")], ids=name)
def test_algorithms_do_not_choose_a_device(path: Path) -> None:
    for node in ast.walk(source(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            assert node.func.attr != "cuda", f"{name(path)}:{node.lineno}"
