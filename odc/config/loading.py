"""Configs: found, read, overridden, and the modules imported that they name."""

from __future__ import annotations

import ast
import copy
import difflib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine import Config

import odc
from odc.errors import InputError, meant, one_line
from odc.options import Written, annotation_of, parse, read, unquoted
from odc.reading import mapping, plain, read_json
from odc.registry import REGISTRIES

# Top-level keys of a config that are one value, by what they would be annotated with.
KINDS = {
    "custom_imports": "dict",
    "default_scope": "str",
    "experiment_name": "str",
    "find_unused_parameters": "bool",
    "launcher": "str",
    "load_from": "str | Path",
    "load_partial": "bool",
    "resume": "bool",
    "work_dir": "str | Path",
}
_UNTYPED = {"train_cfg": "ClusterTrainLoop"}  # dicts of a config that need no ``type``


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Return a config with options applied: :func:`parse_config`, then :func:`override`."""
    return override(parse_config(path), overrides)


def parse_config(path: str | Path) -> Config:
    """Read a config, and run it where it is code; the modules that it names in ``custom_imports`` are not imported.

    Args:
        path: of a ``.py`` config, which is code: all that stands in it is run; or of a ``.json`` one, which is data: it
            can neither inherit nor import. Or the name of one that the package has: :func:`find_config`.

    Raises InputError where the file is missing, or cannot be parsed or run.
    """
    path = find_config(path)
    if path.suffix not in (".py", ".json"):
        raise InputError(f"config '{path}' ends in neither .py nor .json: write it as one of them")
    if path.suffix == ".py":
        return _run_config(path)
    values = read_json(path, _config_data, "is not a config in JSON", "see odc print-config for what a config holds")
    return Config(values, filename=str(path))


def configs_folder() -> Path:
    """Return the folder of the package's configs: inside an installed package, beside it in a checkout."""
    inside = Path(odc.__file__).parent / "configs"
    return inside if inside.is_dir() else inside.parents[1] / "configs"


def find_config(name: str | Path, folder: Path | None = None) -> Path:
    """Return the path of a config: ``name`` itself where it is a file, else the package's config of this name.

    Args:
        name: a path; or as much of the end of one in :func:`configs_folder` as tells it from others, ``.py`` or not.
        folder: that a path is relative to, by default the current one.

    Raises InputError where there is none, or there are several.
    """
    path, configs = Path(folder or "", name), configs_folder()
    if path.is_file():
        return path
    wanted = (*Path(name).parts[:-1], path.name.removesuffix(".py"))
    known = {p: p.relative_to(configs.parent).with_suffix("").parts for p in sorted(configs.rglob("*.py"))}
    found = [p for p, parts in known.items() if parts[-len(wanted) :] == wanted]
    if len(found) > 1:
        several = " and ".join(f"'{p.relative_to(configs)}'" for p in found)
        raise InputError(f"config '{name}' may be {several}: say which, with the folder")
    if not found and path.is_dir():
        raise InputError(f"'{name}' is a folder, not a config: odc cluster {name} -k K clusters the pictures in it")
    if not found:
        near = meant(wanted[0], [parts[-1] for parts in known.values()]) if len(wanted) == 1 else ""
        raise InputError(f"config '{name}' does not exist{near or _near(path)}")
    return found[0]


def _run_config(path: Path) -> Config:
    try:
        # lazy_import=None would take a config that imports anything for one of mmengine's lazy-import configs.
        return Config.fromfile(str(path), lazy_import=False, import_custom_modules=False)
    except Exception as error:
        wrong = _syntax_error(path) if isinstance(error, SyntaxError) else None
        with warnings.catch_warnings():  # mmengine leaves a temporary file open in the frames of its error
            warnings.simplefilter("ignore", ResourceWarning)
            traceback.clear_frames(error.__traceback__)
        if wrong is not None:
            raise InputError(f"config '{wrong.filename}', line {wrong.lineno}: {wrong.msg}") from error
        raise InputError(f"config '{path}': {type(error).__name__}: {one_line(error)}") from error


def _config_data(value: Any) -> dict[str, Any]:
    """Kind: what a config in JSON may be."""

    def check(part: Any) -> None:
        for name, entry in part.items() if isinstance(part, dict) else enumerate(part):
            if name in ("_base_", "_scope_", "custom_imports"):
                raise ValueError(f"it has '{name}', which leads to code: write it as a .py config")
            if isinstance(entry, dict | list):
                check(entry)

    values: dict[str, Any] = mapping(plain)(plain(value))
    check(values)
    return values


def override(config: Config, overrides: Mapping[str, Any] | None = None) -> Config:
    """Return a copy of a config with options applied, once what its ``custom_imports`` names is imported.

    Modules are looked for on ``sys.path``, then next to the config, then in the current directory; the latter two
    stay on ``sys.path``, so that worker processes find the modules too.

    Args:
        config: of :func:`parse_config`.
        overrides: dotted keys to values; those of ``--cfg-options`` are :class:`odc.options.Written`, and get the kind
            that their place in the config is annotated with.

    Raises InputError where an override has no place, or an import fails.
    """
    config, overrides = copy.deepcopy(config), dict(overrides or {})
    written = {key: (value, at(config, key)) for key, value in overrides.items() if isinstance(value, Written)}
    try:
        for key, value in overrides.items():
            if isinstance(value, dict) and "_delete_" in value:
                config.merge_from_dict({key: None})  # where there is nothing, merging would keep _delete_ itself
        # A copy: merging takes _delete_ out of what it is given.
        config.merge_from_dict(copy.deepcopy(overrides) | {key: parse(value) for key, (value, _) in written.items()})
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        place = f"config '{config.filename}' has no place for the overrides {overrides}"
        raise InputError(f"{place}: {one_line(error)}") from error
    if config.get("custom_imports"):
        _import_custom(config.custom_imports, Path(config.filename))
    for key, (value, replaced) in written.items():  # now the types are there, and their annotations
        config.merge_from_dict({key: read_option(value, config, key, replaced)})
    return config


def _syntax_error(path: Path) -> SyntaxError | None:
    """Return the first syntax error of the config and its bases: mmengine's own names a temporary copy."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except SyntaxError as error:
        return error
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_base_":
            names = [n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            files = [path.parent / name for name in names]
            return next(filter(None, (_syntax_error(file) for file in files if file.is_file())), None)
    return None


def _near(path: Path) -> str:
    """Return ``"; did you mean '...'?"`` with the existing name closest to the first part of ``path`` that is not."""
    missing = path.absolute()
    while not missing.parent.is_dir():
        missing = missing.parent
    close = difflib.get_close_matches(missing.name, [p.name for p in missing.parent.iterdir()], n=1)
    return f"; did you mean '{missing.parent / close[0]}'?" if close else f"; '{missing.parent}' has nothing like it"


def _import_custom(custom_imports: dict[str, Any], path: Path) -> None:
    # At the end: a file beside the config must not hide an installed module of the same name.
    for directory in (str(path.absolute().parent), os.getcwd()):
        if directory not in sys.path:
            sys.path.append(directory)
    importlib.invalidate_caches()
    names = custom_imports["imports"]
    for name in [names] if isinstance(names, str) else names:
        _import(name, path, custom_imports.get("allow_failed_imports", False))
        if name in sys.modules:
            from odc.config.modules import warn_of_another  # it imports torch, which reading a config does not need

            warn_of_another(name, path)


def _import(name: str, path: Path, may_be_absent: bool) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:
        message = f"custom_imports of config '{path}': cannot import '{name}'"
        if not isinstance(error, ModuleNotFoundError) or error.name != name:
            at = error if isinstance(error, SyntaxError) else traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {one_line(error)} ({at.filename}, line {at.lineno})"
            raise InputError(f"{message}: {reason}") from error
        message += "; put it next to the config, in the current directory or on PYTHONPATH"
        if not may_be_absent:
            raise InputError(message) from error
        from odc import logs  # it imports torch, which reading a config does not need

        logs.warn(message)


def read_option(text: str, config: Any, key: str, replaced: Any) -> Any:
    """Return the value that a text stands for at a place, ``"dotted.key"``, of a config.

    The kind is that of the parameter which the place is for. Where nothing says what it is, what replaces a text is
    text.
    """
    *above, name = key.split(".")
    if name == "type":
        return unquoted(text)
    node = at(config, key.rpartition(".")[0])
    if not above:
        return read(text, f"{KINDS[name]} | None" if name in KINDS else None)
    kind = node.get("type", _UNTYPED.get(".".join(above))) if isinstance(node, Mapping) else None
    annotations = [annotation_of(target, name) for target in _targets(kind)]
    annotation = next((a for a in annotations if a is not None), None)
    return read(text, "str | None" if annotation is None and isinstance(replaced, str) else annotation)


def at(node: Any, key: str) -> Any:
    """Return what lies at a place, ``"dotted.key"``, of a config, or ``None``."""
    for part in filter(None, key.split(".")):
        if isinstance(node, (list, tuple)) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        else:
            node = node.get(part) if isinstance(node, (Mapping, Config)) else None
    return node


def _targets(kind: Any) -> list[Any]:
    """Return what a ``type`` may mean: itself where it is no name, else what the registries have under it."""
    if not isinstance(kind, str):
        return [] if kind is None else [kind]
    for registry in REGISTRIES:
        registry.import_from_location()
    name = kind.rpartition(".")[2]
    tables = [r.module_dict for own in REGISTRIES for r in (own, own.parent) if r is not None]
    return [table[name] for table in tables if name in table]
