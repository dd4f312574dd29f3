"""What the documentation points to exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub names them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    titles = re.findall(r"^#+ +(.+?) *$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
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
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
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
