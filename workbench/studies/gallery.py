"""The gallery: one page with every study's figure, its verdicts and where the numbers came from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import storage
from workbench.studies import gallery_page
from workbench.studies.base import STUDIES, Study
from workbench.studies.result import Result, published
from workbench.studies.runner import run

if TYPE_CHECKING:
    import altair as alt

PNG_SCALE = 2.0


@dataclass(frozen=True)
class Plate:
    """One study in the gallery: its live result, the claims judged on the recorded run if there is one, its files."""

    slug: str
    title: str
    live: Result
    recorded: dict[str, Any] | None
    svg: str
    has_reported: bool
    has_unverified: bool


def plate(slug: str, folder: Path, *, scale: str = "quick", seeds: int = 1, resume: bool = True) -> Plate:
    """Run (or reuse) a study's live run and write ``folder/<slug>.svg`` and ``.png``."""
    study = STUDIES.get(slug)
    live = run(slug, scale=scale, seeds=seeds, resume=resume)
    reported, recorded = published(slug)
    svg = draw(live.figure(), folder / slug)
    return Plate(
        slug=slug,
        title=study.title,
        live=live,
        recorded=None if recorded is None or recorded.empty else _judged(study, recorded),
        svg=svg,
        has_reported=reported is not None and not reported.empty,
        has_unverified=reported is not None and bool((~reported["verified"].astype(bool)).any()),
    )


def _judged(study: Study, recorded: Any) -> dict[str, Any]:
    first = recorded.iloc[0]
    scale = str(first["scale"])
    return {
        "scale": scale,
        "outcomes": study.judge(recorded, scale),
        **{name: str(first[name]) for name in ("device", "libraries", "code", "date")},
    }


def draw(chart: alt.Chart, stem: Path) -> str:
    """Write ``stem``.svg and ``stem``.png (vl-convert, no browser, no network); returns the SVG."""
    import vl_convert as vlc

    specification = chart.to_dict()
    svg = vlc.vegalite_to_svg(specification)
    storage.write_text(stem.with_suffix(".svg"), svg)
    storage.write_bytes(stem.with_suffix(".png"), vlc.vegalite_to_png(specification, scale=PNG_SCALE))
    return svg


def write_index(plates: list[Plate], folder: Path) -> Path:
    """``folder/index.html``: stands alone, figures embedded, links to the SVG and PNG beside it."""
    return storage.write_text(folder / "index.html", gallery_page.page(plates))
