"""Pages for people keep their promises: links lead somewhere, verbs and targets exist, examples are the files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from holdfast.commands import VERBS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_VERB = re.compile(r"^\$ (?:.*\s)?holdfast ([a-z]+)", re.MULTILINE)
_TARGET = re.compile(r"^\$ make (?:[A-Z]+=\S+ )*([a-z]+)", re.MULTILINE)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return _FENCE.sub("", page.read_text())


def console(page: Path) -> str:
    """What the page tells a person to type."""
    return "".join(body for language, body in _FENCE.findall(page.read_text()) if language == "console")


def anchors(page: Path) -> set[str]:
    """The fragments that its headings make."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in _LINK.findall(prose(page)):
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if link.startswith("https://"):
            continue
        if not target.exists() or (fragment and fragment not in anchors(target)):
            dead.append(link)

    assert dead == []


def test_verbs_that_people_are_told_to_type_exist() -> None:
    known = {verb for verbs in VERBS.values() for verb in verbs}

    assert {(name(page), verb) for page in PAGES for verb in _VERB.findall(console(page)) if verb not in known} == set()


def test_make_targets_that_people_are_told_to_type_exist() -> None:
    known = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert {
        (name(page), made) for page in PAGES for made in _TARGET.findall(console(page)) if made not in known
    } == set()


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md"])
def test_the_first_run_file_is_the_example(page: str) -> None:
    shown = next(body for language, body in _FENCE.findall((ROOT / page).read_text()) if language == "yaml")
    lines = [line for line in shown.splitlines() if not line.startswith("#")]

    assert len(shown.splitlines()) <= 12
    assert lines == (ROOT / "examples/digits/holdfast.yaml").read_text().splitlines()


def test_every_page_below_docs_can_be_reached_from_the_readme() -> None:
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        waiting += page.glob("*.md") if page.is_dir() else []
        if page in seen or page.suffix != ".md" or not page.exists():
            continue
        seen.add(page)
        waiting += [(page.parent / link.partition("#")[0]).resolve() for link in _LINK.findall(prose(page))]

    assert set(PAGES) - seen == set()


def test_every_part_of_the_package_has_its_place_on_the_page_about_architecture() -> None:
    rows = re.search(
        r"^## Where the code lies\n(.*?)^## ", (ROOT / "docs/concepts/architecture.md").read_text(), re.M | re.S
    )
    assert rows is not None
    placed = [part for cells in re.findall(r"^\| (`.*?) \|", rows[1], re.M) for part in re.findall(r"`(\w+)`", cells)]
    there = {path.stem for path in (ROOT / "src/holdfast").iterdir() if path.suffix == ".py" or path.is_dir()}

    assert sorted(there - {"__init__", "__main__", "__pycache__"}) == sorted(placed)
