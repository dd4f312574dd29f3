"""Options as they are written on a command line, ``KEY=VALUE``, and the values that they stand for.

A word alone does not say its kind: ``2023`` is a number to a learning rate and the name of a folder to a data set. So
an option stays as written until the config is there, and then gets the kind that its parameter is annotated with.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import types
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin

BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_TEXT = {"str", "Path"}
_TEXTS = re.compile(r"(list|tuple|Sequence|Iterable)\[str\b", re.IGNORECASE)
_CLOSING = {"[": "]", "(": ")"}


class Written(str):
    """The value of an option as it was written, not yet read."""


class Overrides(Action):
    """``--cfg-options KEY=VALUE ...``, each value as it is written: the config knows what kind it is to be."""

    def __call__(
        self, parser: ArgumentParser, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        """Store ``{key: value}``."""
        options = dict(getattr(namespace, self.dest) or {})
        for word in values:
            key, equals, value = word.partition("=")
            if not equals:
                parser.error(f"{option_string} takes KEY=VALUE, not '{word}'")
            options[key] = Written(value)
        setattr(namespace, self.dest, options)


def split(text: str) -> list[str]:
    """Return the parts between the commas that are in no brackets or quotes; one part where these do not match."""
    parts, expected, quote = [""], "", ""
    for c in text:
        if quote:
            quote = "" if c == quote else quote
        elif c in "'\"" and not parts[-1].strip():
            quote = c
        elif c in _CLOSING:
            expected = _CLOSING[c] + expected
        elif c in _CLOSING.values():
            if not expected.startswith(c):
                return [text]
            expected = expected[1:]
        elif c == "," and not expected:
            parts.append("")
            continue
        parts[-1] += c
    return [text] if expected or quote else parts


def unquoted(text: str) -> str:
    """Return the text without the quotes around it, where there are any."""
    return text[1:-1] if len(text) > 1 and text[0] in "'\"" and text.find(text[0], 1) == len(text) - 1 else text


def _elements(text: str) -> list[str] | None:
    """Return the elements of ``[a, b]``, ``(a, b)`` or ``a, b`` as they are written; ``None`` where it is no list."""
    parts = split(text)
    if len(parts) == 1:
        if not text or _CLOSING.get(text[0]) != text[-1] or split(f"{text},x") == [f"{text},x"]:
            return None
        parts = split(text[1:-1])
    return [part.strip() for part in (parts if parts[-1].strip() else parts[:-1])]


def parse(text: str) -> Any:
    """Return what a text says by itself: a list, a number, a truth value, ``None``, or itself; quotes make it text."""
    text = text.strip()
    if unquoted(text) != text:
        return unquoted(text)
    elements = _elements(text)
    if elements is not None:
        values = [parse(element) for element in elements]
        return tuple(values) if text.startswith("(") and len(split(text)) == 1 else values
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError):
        return float(text)
    return {"true": True, "false": False}.get(text.lower(), None if text == "None" else text)


def alternatives(annotation: Any) -> list[str]:
    """Return the names of the kinds that an annotation allows, ``["Sequence[str]", "None"]`` say."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [name for kind in get_args(annotation) for name in alternatives(kind)]
    if not isinstance(annotation, str):
        plain = isinstance(annotation, type) and not get_args(annotation)
        annotation = annotation.__name__ if plain else str(annotation).replace("typing.", "")
    if (optional := annotation.removeprefix("Optional[")) != annotation:
        return [*alternatives(optional.removesuffix("]")), "None"]
    names, depth = [""], 0
    for c in annotation:
        depth += (c == "[") - (c == "]")
        names = [*names, ""] if c == "|" and not depth else [*names[:-1], names[-1] + c]
    return [{"NoneType": "None"}.get(name.strip(), name.strip()) for name in names]


def read(text: str, annotation: Any) -> Any:
    """Return the value that a text stands for, for a parameter with this annotation.

    Where it is text, the text as it is, less quotes around all of it; where it is a list of texts, its elements, each
    text too; otherwise as :func:`parse`.
    """
    kinds = set(alternatives(annotation))
    if "None" in kinds and text == "None":
        return None
    if "bool" in kinds and text.lower() in ("true", "false"):  # though it may be a list of texts as well
        return text.lower() == "true"
    texts = any(_TEXTS.match(kind) for kind in kinds)
    plain = bool(kinds & _TEXT) and all(kind in _TEXT | {"None"} or _TEXTS.match(kind) for kind in kinds)
    if plain and not (texts and text[:1] in _CLOSING):
        return unquoted(text)
    if texts:
        elements = _elements(text)
        return [unquoted(element) for element in ([text] if elements is None else elements)]
    return parse(text)


def read_arguments(arguments: Mapping[str, Any], target: Any) -> dict[str, Any]:
    """Return keyword arguments of ``target`` (a class or function), read where they are only :class:`Written`."""
    return {k: read(v, annotation_of(target, k)) if isinstance(v, Written) else v for k, v in arguments.items()}


def parameters(target: Any) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class or function by name.

    Where a class passes ``**options`` on, what its base takes by keyword is among them, so that options that several
    classes share are stated once.
    """
    found = dict(inspect.signature(target).parameters)
    for base in inspect.getmro(target)[1:] if inspect.isclass(target) else ():
        rest = [name for name, p in found.items() if p.kind is p.VAR_KEYWORD]
        if not rest or vars(base).get("__init__", object.__init__) is object.__init__:
            continue
        del found[rest[0]]
        theirs = inspect.signature(base).parameters.items()
        found = {name: p for name, p in theirs if p.kind in (*BY_KEYWORD, p.VAR_KEYWORD)} | found
    return found


def annotation_of(target: Any, name: str) -> Any:
    """Return the annotation of a parameter; ``None``: it has none, or there is no such parameter."""
    found = parameters(target).get(name)
    return None if found is None or found.annotation is found.empty else found.annotation
