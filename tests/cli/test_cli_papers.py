"""The catalogue, found in the tree."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workbench import catalogue
from workbench.catalogue import PARTS

CHAPTERS = [
    *("01-attention-kernels", "02-sequence-layers", "03-token-caches", "04-stores", "05-agents"),
    *("06-associative", "07-parametric", "08-probes", "09-systems"),
]


@pytest.fixture
def papers(cli: Callable[..., Any]) -> list[dict[str, Any]]:
    done = cli("papers", "--json")
    assert done.exit_code == 0
    return json.loads(done.stdout)["papers"]


def test_all_47_with_one_boolean_a_part(papers: list[dict[str, Any]]) -> None:
    assert len({paper["slug"] for paper in papers}) == 47
    for paper in papers:
        assert list(paper) == [
            *("slug", "title", "authors", "year", "link", "chapter", "kind"),
            *(*PARTS, "complete"),
        ]
        assert all(isinstance(paper[part], bool) for part in (*PARTS, "complete"))
        assert paper["complete"] == all(paper[part] for part in PARTS)
        assert paper["link"].startswith("https://arxiv.org/abs/")
        assert 2017 <= paper["year"] <= 2025
    assert list(dict.fromkeys(paper["chapter"] for paper in papers)) == CHAPTERS
    places = {paper["slug"]: paper["chapter"] for paper in papers}
    assert places["titans"] == "02-sequence-layers"
    assert places["flash-attention"] == "01-attention-kernels"
    assert places["sirllm"] == "03-token-caches"


def test_slugs_are_those_of_the_cards(papers: list[dict[str, Any]], root: Path) -> None:
    cards = root.parent / "shared" / "papers"
    if not cards.is_dir():
        pytest.skip("no paper cards: ../shared/papers does not exist")
    slugs = {path.stem for path in cards.glob("*.md")} - {"README"}
    assert {paper["slug"] for paper in papers} == slugs
    for paper in papers:
        first = (cards / f"{paper['slug']}.md").read_text(encoding="utf-8").splitlines()[0]
        assert paper["link"].rsplit("/", 1)[1] in first


def test_parts_are_what_stands_in_the_tree(papers: list[dict[str, Any]], root: Path) -> None:
    for paper in papers:
        slug, module = paper["slug"], paper["slug"].replace("-", "_")
        assert paper["study"] == (root / "workbench" / "studies" / f"{module}.py").is_file()
        assert paper["notebook"] == (root / "notebooks" / paper["chapter"] / f"{slug}.ipynb").is_file()
        assert paper["reported"] == (root / "datasets" / "reported" / f"{slug}.csv").is_file()
    held = {paper["slug"] for paper in papers if paper["mechanism"]}
    assert "flash-attention" in held
    assert "titans" not in held or list(root.glob("workbench/memory/*/titans.py"))


def test_a_mention_in_a_docstring_is_no_mechanism() -> None:
    assert catalogue._registered('"""X.register("titans")"""\nX.register("sirllm")(object())') == {"sirllm"}
    assert catalogue._registered('@MEMORIES.register("em-llm")\nclass A: ...') == {"em-llm"}


def test_a_header_alone_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("study,scale\n\n")
    assert not catalogue._has_rows(path)
    path.write_text("study,scale\na,b\n")
    assert catalogue._has_rows(path)


def test_the_table_lists_every_slug_in_a_narrow_terminal(cli: Callable[..., Any]) -> None:
    shown = cli("papers").stdout
    assert all(slug in shown for slug in catalogue.papers())
    assert "of 47 complete" in shown


def test_only_the_papers_asked_for(cli: Callable[..., Any]) -> None:
    done = json.loads(cli("papers", "sirllm", "wise", "--json").stdout)
    assert [paper["slug"] for paper in done["papers"]] == ["sirllm", "wise"]
