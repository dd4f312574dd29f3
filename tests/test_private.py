"""Private names of mmengine: those in use are listed, with the reason, exist, and are used in three files alone.

They may change with any version: ``setup.py`` allows none beyond the next minor one.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PRIVATE = {
    "mmengine.runner.Runner._timestamp": "runners of one second would share logger, message hub and folder of logs",
    "mmengine.runner.Runner._train_dataloader": "the data is read once there is a log for what it has to say",
    "mmengine.runner.Runner._val_dataloader": "the same",
    "mmengine.runner.Runner._resume": "the option of the constructor",
    "mmengine.runner.Runner._load_from": "the option of the constructor",
    "mmengine.runner.Runner._randomness_cfg": "a resumed run keeps its seed",
    "mmengine.runner.Runner._init_model_weights": "a resumed run does not read the weights that it started from",
    "mmengine.runner.Runner._maybe_compile": "it compiles train_step, which no loop here calls",
    "mmengine.runner.EpochBasedTrainLoop._epoch": "the position to resume at",
    "mmengine.runner.EpochBasedTrainLoop._iter": "the position to resume at",
    "mmengine.runner.Runner._log_env": "it asks for compilers and versions where nobody reads them",
    "mmengine.Config._format_python_code": "0.4 s of formatting at every checkpoint",
    "mmengine.logging.MMLogger._instance_dict": "loggers are kept for good; a training inside of a program has its own",
    "mmengine.logging.MessageHub._log_scalars": "the histories of logged values are bounded",
    "mmengine.visualization.LocalVisBackend._dump": "its errors do not name the file",
    "mmengine.hooks.CheckpointHook._default_greater_keys": "it guesses by the name whether more is better",
    "mmengine.hooks.CheckpointHook._default_less_keys": "the same",
    "mmengine.hooks.CheckpointHook._init_rule": "a name that it cannot guess by is wrong input",
    "mmengine.hooks.CheckpointHook._save_best_checkpoint": "it deletes the best file before the better one is written",
    "mmengine.hooks.CheckpointHook._save_checkpoint_with_step": "it deletes the old file before the new one is written",
    "mmengine.hooks.EarlyStoppingHook._default_greater_keys": "as for CheckpointHook",
    "mmengine.hooks.EarlyStoppingHook._default_less_keys": "as for CheckpointHook",
    "mmengine.hooks.EarlyStoppingHook._check_stop_condition": "a resumed run counts anew, from all values so far",
}

ROOT = Path(__file__).parent.parent
USERS = {"odc/runner.py", "odc/logs.py", "odc/engine/checkpointing.py"}
NAMES = {listed.rpartition(".")[2] for listed in PRIVATE}
_PRIVATE = re.compile(r"_[a-zA-Z]\w*")


@pytest.mark.parametrize("listed", PRIVATE)
def test_a_listed_name_is_there(listed: str) -> None:
    owner, _, name = listed.rpartition(".")
    module, _, kind = owner.rpartition(".")
    found = getattr(importlib.import_module(module), kind)
    written = re.compile(rf"(self\.|'){name}\b")  # in the class itself, or by an instance
    sources = "".join(inspect.getsource(base) for base in found.__mro__ if base is not object)
    assert hasattr(found, name) or written.search(sources), f"mmengine has no {listed} any more: {PRIVATE[listed]}"


def uses(path: Path) -> Iterator[str]:
    """Yield the private names of mmengine that a file touches: attributes, and what its classes override."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    imported = {
        alias.asname or alias.name.partition(".")[0]
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if (getattr(node, "module", None) or alias.name).partition(".")[0] == "mmengine"
    }
    own = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)} | {
        node.name for node in nodes if isinstance(node, ast.FunctionDef)
    }
    for node in nodes:
        if isinstance(node, ast.Attribute) and _PRIVATE.fullmatch(node.attr):
            root = ast.unparse(node).partition(".")[0]
            if root in imported or (node.attr in NAMES and node.attr not in own):
                yield f"{path.name}:{node.lineno}: {ast.unparse(node)}"
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    for kind in vars(module).values():
        if isinstance(kind, type) and kind.__module__ == module.__name__:
            for name in vars(kind):
                bases = [base for base in kind.__mro__[1:] if base.__module__.startswith("mmengine.")]
                if name != "_abc_impl" and _PRIVATE.fullmatch(name) and any(name in vars(base) for base in bases):
                    yield f"{path.name}: {kind.__name__}.{name}"


@pytest.mark.parametrize("path", sorted((ROOT / "odc").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_other_file_uses_one(path: Path) -> None:
    found = list(uses(path))
    if str(path.relative_to(ROOT)) in USERS:
        assert found, "this test looks at nothing"
        found = [use for use in found if use.rpartition(".")[2] not in NAMES]
    assert not found
