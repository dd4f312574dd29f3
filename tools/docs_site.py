"""What the documentation's site needs beyond the pages of ``docs/``: hooks that ``mkdocs.yml`` names.

- The pages link to files of the checkout (sources, configs, results), as they do where the checkout is read. Each file
  that is linked becomes a page of the site, so a copy of the site is complete and needs no network.
- ``<!-- commands -->`` in a page becomes the reference of all commands, from the parser itself: it cannot go stale.
- Equations are TeX in the pages, since code hosts draw that; here they become MathML, which browsers draw themselves.
- A drawing (``.svg``) becomes part of its page, so that it follows the page's colours.
"""

from __future__ import annotations

import argparse
import html
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
_LANGUAGES = {".py": "python", ".sh": "bash", ".html": "html", ".json": "json", "Makefile": "make"}
_NOT_SEARCHED = "---\nsearch: {exclude: true}\nhide: [toc]\n---\n\n"
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_FENCE = re.compile(r"^(`{3,}).*?^\1", re.M | re.S)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside ``docs/`` to which pages link, and those to which these link."""
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    while waiting:
        page = waiting.pop()
        for link in _links((ROOT / page).read_text(encoding="utf-8")):
            path = _resolve(page, link)
            uri = _uri(path)
            if path.startswith("docs/") or not (ROOT / path).exists() or uri in files.src_uris:
                continue
            content = _content(path)
            files.append(File.generated(config, uri, content=content, inclusion=InclusionLevel.NOT_IN_NAV))
            if path.endswith(".md"):
                waiting.append(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead the links out of ``docs/`` to the pages of these files; write the commands where they belong."""
    here = page.file.src_uri
    path = here.removeprefix("files/") if here.startswith("files/") else f"docs/{here}"
    if path.endswith(".md") and here.startswith("files/") and not (ROOT / path).is_file():
        return markdown  # a page that stands for a file: it has no links to follow

    def moved(match: re.Match[str]) -> str:
        link = match[2]
        if "://" in link or link.startswith(("#", "mailto:")):
            return match[0]
        anchor = link.partition("#")[2]
        target = _uri(_resolve(path, link))
        if target not in files.src_uris:
            return match[0]  # the strict build says so
        relative = os.path.relpath(target, PurePosixPath(here).parent)
        return f"{match[1]}{relative}{'#' + anchor if anchor else ''}{match[3]}"

    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(moved, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    markdown = "".join([*parts, _LINK.sub(moved, markdown[end:])])
    return markdown.replace("<!-- commands -->", "\n".join(commands())) if "<!-- commands -->" in markdown else markdown


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn TeX into MathML, and put drawings into the page."""
    content = re.sub(
        r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', lambda m: _mathml(m[1], True), content, flags=re.S
    )
    content = re.sub(
        r'<span class="arithmatex">\\\((.*?)\\\)</span>', lambda m: _mathml(m[1], False), content, flags=re.S
    )
    content = re.sub(r":(?:attr|class|data|exc|func|meth|mod):(?=<code>)", "", content)  # roles of docstrings
    folder = (ROOT / "docs" / page.file.src_uri).parent

    def drawn(match: re.Match[str]) -> str:
        text = re.search(r'alt="([^"]*)"', match[0])
        svg = (folder / match[1]).read_text(encoding="utf-8").partition("<svg ")[2]
        return f'<svg role="img" aria-label="{text[1] if text else ""}" {svg}'

    return re.sub(r'<img [^>]*?src="(?:\.\./)*([^":]+\.svg)"[^>]*>', drawn, content)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Take the script that lets the search work without a server from the site itself, not from the network."""
    return _own_worker(output, "../" * page.file.dest_uri.count("/"))


def on_post_template(output: str, template_name: str, config: MkDocsConfig) -> str:
    """Do the same for the page that says that there is no such page."""
    return _own_worker(output, "")


def _own_worker(output: str, root: str) -> str:
    return re.sub(r'src="https?://[^"]*/iframe-worker/[^"]*"', f'src="{root}worker.js"', output)


# ------------------------------------------------------------------------------------------------ files of the checkout


def _links(markdown: str) -> list[str]:
    links = [match[2] for match in _LINK.finditer(_FENCE.sub("", markdown))]
    return [link for link in links if "://" not in link and not link.startswith(("#", "mailto:"))]


def _resolve(page: str, link: str) -> str:
    """Return the path in the checkout to which a page there links."""
    return os.path.normpath(PurePosixPath(page).parent / link.partition("#")[0]).replace(os.sep, "/")


def _uri(path: str) -> str:
    """Return the place in the site's sources of a path in the checkout."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.endswith((".md", ".png", ".jsonl")):
        return f"files/{path}"
    return f"files/{path}.md"


def _content(path: str) -> str | bytes:
    file = ROOT / path
    if file.is_dir():
        names = sorted(p.relative_to(file).as_posix() for p in file.rglob("*") if p.is_file() and p.suffix == ".py")
        return f"{_NOT_SEARCHED}# {path}/\n\n" + "".join(f"- `{name}`\n" for name in names)
    if path.endswith((".png", ".jsonl")):
        return file.read_bytes()
    text = file.read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    language = _LANGUAGES.get(file.suffix or file.name, "text")
    return f"{_NOT_SEARCHED}# {path}\n\n``````{language}\n{text}\n``````\n"


# ------------------------------------------------------------------------------------------------------------ equations


def _mathml(tex: str, block: bool) -> str:
    return convert(html.unescape(tex.strip()), display="block" if block else "inline")


# ------------------------------------------------------------------------------------------------ reference of commands


def commands() -> Iterator[str]:
    """Yield the lines of the reference of all commands."""
    from odc.cli.main import GROUPS

    for title, members in GROUPS.items():
        yield f"\n## {title[0].upper()}{title[1:]}\n"
        for command in members:
            yield f"### odc {command.name}\n\n{_text(command.help)}\n\n```\n{command.example}\n```\n"
            heading = None
            for names, options in command.arguments:
                if options["help"] == argparse.SUPPRESS:
                    continue
                if (under := options.get("group")) != heading:
                    heading = under
                    yield f"**{_text(under)}**\n" if under else ""
                yield f"`{_written(names, options)}`\n:   {_said(options)}\n"


def _written(names: list[str], options: dict[str, Any]) -> str:
    """Return how an argument is written."""
    positional = not names[0].startswith("-")
    kind = options.get("type")
    number = "N" if kind is int else "NUMBER" if kind is float else None
    value = options.get("metavar") or number or names[-1].lstrip("-").upper()
    if options.get("choices") and "metavar" not in options:
        value = "/".join(map(str, options["choices"]))
    if options.get("nargs") == "+":
        value += " ..."
    if positional or options.get("nargs") == "?":
        value = f"[{value}]" if options.get("nargs") == "?" else value
    parts = [] if positional else [", ".join(names)]
    if options.get("action") != "store_true":
        parts.append(value)
    return " ".join(parts)


def _said(options: dict[str, Any]) -> str:
    """Return what is said of an argument."""
    return _text(options["help"].replace("%%", "%")) + ("; must be given" if options.get("required") else "")


def _text(text: str) -> str:
    """Return text in which nothing is markup."""
    return re.sub(r"([*_`\[\]])", r"\\\1", html.escape(text, quote=False))
