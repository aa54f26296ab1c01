"""The gallery stands alone: figures embedded, verdicts readable without colour, nothing fetched."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from workbench.studies import run
from workbench.studies.gallery import plate, write_index


class Page(HTMLParser):
    """Collects every attribute that could fetch something, the alt texts and the open elements."""

    VOID = {"meta", "img", "br", "link"}

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.alts: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert tag not in ("script", "link", "iframe")
        if tag == "img":
            self.addresses.append(found["src"] or "")
            self.alts.append(found["alt"] or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def page(work: Path) -> tuple[Path, str]:
    run("drift", seeds=2, record=True, quiet=True)
    index = write_index([plate("drift", work / "gallery", scale="full")], work / "gallery")
    return index, index.read_text()


def test_index_svg_and_png_are_written(page: tuple[Path, str]) -> None:
    folder = page[0].parent
    assert sorted(path.name for path in folder.iterdir()) == ["drift.png", "drift.svg", "index.html"]
    assert (folder / "drift.svg").read_text().startswith("<svg")
    assert (folder / "drift.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_stands_alone_and_is_well_formed(page: tuple[Path, str]) -> None:
    parsed = Page()
    parsed.feed(page[1])
    assert parsed.open == []
    assert all(address.startswith("data:image/svg+xml;base64,") for address in parsed.addresses)
    assert not re.search(r"""@import|url\(|src=["']https?:""", page[1])
    assert '<html lang="en">' in page[1]
    assert parsed.alts == [
        "Figure of A walk that drifts: recorded run (quick), live run. "
        "1 of 2 claims hold in the live run at scale full."
    ]


def test_verdicts_are_words_and_signs_not_only_colours(page: tuple[Path, str]) -> None:
    assert "✓ holds" in page[1]
    assert "✗ not reproduced" in page[1]
    assert "Recorded: cpu" in page[1]


def test_titles_are_escaped(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workbench.studies import STUDIES

    monkeypatch.setattr(type(STUDIES.get("drift")), "title", "A <b>bold</b> walk")
    index = write_index([plate("drift", work / "gallery")], work / "gallery")
    assert "<b>bold" not in index.read_text()
