"""What the documentation points to exists, and its site is built, whole and without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from odc.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub names them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ +(.+?) *$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name} links to {link}, which does not exist"
        assert not anchor or anchor in anchors(target), f"{page.name} links to {link}, but there is no such heading"


def test_the_configs_that_are_named_exist() -> None:
    names = {path.stem for path in (ROOT / "configs").rglob("*.py")}
    for page in (ROOT / "README.md", *DOCS):
        for name in re.findall(
            r"\bodc (?:train|test|probe|extract|run|print-config) (\w[\w-]*)(?=[\s`])", page.read_text(encoding="utf-8")
        ):
            assert name in names | {"CONFIG"}, f"{page.name} names the config {name}, which does not exist"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_walks_are_short_and_name_what_is_there() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    walks = text.partition("## Three walks")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^(\d+)\. ", walks, re.M)) == sorted([str(n) for n in range(1, 9)] * 3)
    hops = re.findall(r"`([\w/]+\.py): (\w+)`", walks)
    assert len(hops) >= 24
    for file, name in hops:
        source = (ROOT / "odc" / file).read_text(encoding="utf-8")
        assert re.search(rf"^ *(def|class) {name}\b", source, re.M), f"{file} has no {name}"


def test_files_are_short_and_the_parts_are_there() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    for file in sorted((ROOT / "odc").rglob("*.py")):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 500, f"{file} is too long to read at one go"
    parts = re.findall(r"^\| (`odc/.*?) \|", text, re.M)
    named = {name for cell in parts for name in re.findall(r"`(odc/[\w/]+(?:\.py|/))`", cell)}
    there = {f"odc/{p.name}{'/' * p.is_dir()}" for p in (ROOT / "odc").iterdir() if p.suffix == ".py" or p.is_dir()}
    assert named == there - {"odc/__init__.py", "odc/__pycache__/", "odc/configs/"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site, strictly."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stderr
    return folder


class Asked(HTMLParser):
    """What a page asks for by itself, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[str] = []
        self.parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag in ("script", "img", "iframe", "source") and named.get("src"):
            self.files.append(str(named["src"]))
        if tag == "link" and named.get("href") and named.get("rel") not in ("prev", "next", "canonical"):
            self.files.append(str(named["href"]))

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.parts)


def asked(page: Path) -> Asked:
    found = Asked()
    found.feed(page.read_text(encoding="utf-8"))
    return found


def test_the_site_is_read_without_a_network(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(DOCS)
    for page in pages:
        for file in asked(page).files:
            assert not re.match(r"(https?:)?//", file), f"{page.relative_to(site)} fetches {file}"
            if not file.startswith(("data:", "/")):  # the page for what is not there knows its server's root only
                assert (page.parent / file.partition("?")[0]).exists(), f"{page.relative_to(site)} lacks {file}"


def test_every_page_is_in_the_navigation(site: Path) -> None:
    start = (site / "index.html").read_text(encoding="utf-8")
    for page in DOCS:
        place = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert f'href="{place}"' in start, f"mkdocs.yml does not list {page.name}"


def test_the_reference_has_all_commands(site: Path) -> None:
    text = asked(site / "commands.html").text
    for command in COMMANDS:
        assert f"odc {command.name}" in text
        assert command.example in text
        for names, options in command.arguments:
            assert "SUPPRESS" in options["help"] or names[-1].removeprefix("--") in text.lower(), names


def test_equations_are_drawn(site: Path) -> None:
    for page in DOCS:
        blocks = len(re.findall(r"^ *```math$", page.read_text(encoding="utf-8"), re.M))
        html = (site / page.relative_to(ROOT / "docs")).with_suffix(".html").read_text(encoding="utf-8")
        assert html.count('display="block"') == blocks, page.name
        assert "arithmatex" not in html, page.name
    assert '<svg role="img" aria-label="Images pass' in (site / "concepts.html").read_text(encoding="utf-8")
