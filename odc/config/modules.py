"""The modules that a config imports, kept beside the config of a run: its folder then needs no other.

A config names modules in ``custom_imports``, and these import others. Those that are somebody's own, files that no
package has installed, are copied into the folder of a training, where :func:`odc.config.loading.override` finds them.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from odc import logs
from odc.errors import InputError
from odc.files import written_whole

_MOST = 1000  # files of all modules together
_INSTALLED = {"site-packages", "dist-packages"}


def own_modules(custom_imports: Mapping[str, Any] | None) -> dict[str, Path]:
    """Return the files of the modules that a config imports, and of those that they import, as they are to be called.

    Left out is what is installed, or comes with Python or with this package, and what is not there.

    Raises:
        InputError: there are more than a thousand files, as where a name is that of a folder of everything.
    """
    names = (custom_imports or {}).get("imports") or []
    todo, seen, files = [names] if isinstance(names, str) else list(names), set[str](), dict[str, Path]()
    while todo:
        name = todo.pop().partition(".")[0]
        if name in seen:
            continue
        seen.add(name)
        found = dict(_files(name))
        files |= found
        if len(files) > _MOST:
            raise InputError(f"custom_imports: '{name}' has more than {_MOST:,} files: give a module of its own")
        for file in found.values():
            todo += _imported(file)
    return dict(sorted(files.items()))


def _files(name: str) -> Iterator[tuple[str, Path]]:
    """Yield the files of a module or package, if it is somebody's own."""
    if name == "odc" or name in sys.stdlib_module_names or name in sys.builtin_module_names:
        return
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return
    if spec is None:
        return
    places = [Path(place) for place in spec.submodule_search_locations or ()]
    where = places or ([Path(spec.origin)] if spec.origin else [])
    if any(_INSTALLED & set(place.parts) for place in where) or name in importlib.metadata.packages_distributions():
        return
    for place in places:
        for file in sorted(place.rglob("*.py")):
            yield f"{name}/{file.relative_to(place).as_posix()}", file
    if not places and spec.origin and spec.origin.endswith(".py"):
        yield f"{name}.py", Path(spec.origin)


def _imported(file: Path) -> list[str]:
    """Return the names that a file imports, relative ones apart: they are in its package."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):  # it is said when it is imported
        return []
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    return names + [
        node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module and not node.level
    ]


def copies_in(folder: Path, modules: Mapping[str, Path]) -> list[str]:
    """Return the names in a folder, files and packages, of copies that an earlier training may have left there."""
    names = dict.fromkeys(name.partition("/")[0] for name, file in modules.items() if not _is(folder / name, file))
    return [name for name in names if (folder / name).exists()]


def keep_modules(folder: Path, modules: Mapping[str, Path]) -> None:
    """Copy modules into the folder of a training, and say their hash.

    One that differs from what is there, since the training that goes on began, takes its place: a warning says so, and
    the former stays under its name with its hash behind it.
    """
    told = []
    for name, file in modules.items():
        place, content = folder / name, file.read_bytes()
        told.append(f"{name} (SHA-256 {hash_of(content)})")
        if _is(place, file):
            continue
        if place.is_file() and (former := place.read_bytes()) != content:
            kept = place.with_name(f"{place.name}.{hash_of(former)}")
            place.rename(kept)
            logs.warn(
                f"{name} has changed since the training began (SHA-256 {hash_of(former)}, now {hash_of(content)}): it "
                f"goes on with {file}; the former is {kept}"
            )
        place.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(place) as out:
            out.write(content)
    if told:
        shown = ", ".join(told[:5]) + (f" and {len(told) - 5} more" if len(told) > 5 else "")
        print_log(f"the modules of custom_imports lie beside the config: {shown}", "current")


def warn_of_another(name: str, config: Path) -> None:
    """Warn where a module that was imported is another one than that beside the config."""
    module = sys.modules.get(name)
    file, parts = getattr(module, "__file__", None), Path(*name.split("."))
    for beside in (config.parent / parts.with_suffix(".py"), config.parent / parts / "__init__.py"):
        if file is None or not beside.is_file() or _is(beside, Path(file)):
            continue
        used, there = Path(file).read_bytes(), beside.read_bytes()
        if used != there:
            logs.warn(
                f"custom_imports of config '{config}': '{name}' is {file} (SHA-256 {hash_of(used)}), found first, not "
                f"{beside} ({hash_of(there)})"
            )


def _is(place: Path, file: Path) -> bool:
    return place.exists() and place.samefile(file)


def hash_of(content: bytes) -> str:
    """Return eight hexadecimal digits of the SHA-256."""
    return hashlib.sha256(content).hexdigest()[:8]
