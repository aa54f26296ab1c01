"""The gallery's page as HTML: semantic, readable without colour, in light and dark, with no other file or host."""

from __future__ import annotations

import base64
from html import escape
from typing import TYPE_CHECKING, Any

from workbench import __version__, provenance
from workbench_datasets.papers import papers

if TYPE_CHECKING:
    from workbench.studies.base import Outcome
    from workbench.studies.gallery import Plate

#: A sign beside the word, so that a verdict reads without colour.
SIGNS = {"holds": "✓", "not reproduced": "✗", "inconclusive": "?"}

STYLE = """
:root { color-scheme: light dark; --ink: #1f2933; --muted: #52606d; --paper: #ffffff; --panel: #f5f7fa; --line: #cbd2d9;
  --holds: #00694b; --failed: #a03c00; --open: #6b5900; --link: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --muted: #9aa5b1; --paper: #14191f; --panel: #1d242c;
  --line: #3e4c59; --holds: #4fd1a5; --failed: #ff9f5a; --open: #e6cf53; --link: #7cc4fa; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; }
h1 { font-size: 1.9rem; margin: 0 0 .25rem; } h2 { font-size: 1.35rem; margin: 0 0 .2rem; }
p.about, p.source, figcaption, footer { color: var(--muted); font-size: .9rem; }
a { color: var(--link); } a:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .4rem 1rem; }
article { margin-top: 2.5rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; background: #fff; border-radius: .4rem; padding: .75rem;
  border: 1px solid var(--line); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .92rem; }
caption { text-align: left; font-weight: 600; padding: .5rem 0; }
th, td { text-align: left; vertical-align: top; padding: .4rem .6rem; border-bottom: 1px solid var(--line); }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap; } thead th { background: var(--panel); }
.verdict { font-weight: 600; white-space: nowrap; }
.holds { color: var(--holds); } .not-reproduced { color: var(--failed); } .inconclusive { color: var(--open); }
""".strip()


def page(plates: list[Plate]) -> str:
    """The whole document."""
    links = "".join(f'<li><a href="#{plate.slug}">{escape(plate.title)}</a></li>' for plate in plates)
    body = "\n".join(_article(plate) for plate in plates) or "<p>No study was drawn.</p>"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Memory Workbench: gallery</title>
<style>
{STYLE}
</style>
</head>
<body>
<header>
<h1>Memory Workbench: gallery</h1>
<p class="about">Each figure sets a paper's reported numbers, the recorded run and a live run side by side.
Reported numbers that nobody could verify are drawn hollow. A claim that fails is shown as failed.</p>
</header>
<nav aria-label="Studies"><ul>{links}</ul></nav>
<main>
{body}
</main>
<footer><p>memory-workbench {__version__}, {escape(provenance.code_version())}, drawn {provenance.now()}</p></footer>
</body>
</html>
"""


def _article(plate: Plate) -> str:
    held = sum(outcome.verdict == "holds" for outcome in plate.live.outcomes.values())
    summary = f"{held} of {len(plate.live.outcomes)} claims hold in the live run at scale {plate.live.scale}"
    picture = base64.b64encode(plate.svg.encode()).decode("ascii")
    alt = f"Figure of {plate.title}: {_shown(plate)}. {summary}."
    slug = escape(plate.slug)
    return f"""<article id="{slug}" aria-labelledby="{slug}-title">
<h2 id="{slug}-title">{escape(plate.title)}</h2>
{_paper(plate.slug)}
<figure>
<img src="data:image/svg+xml;base64,{picture}" alt="{escape(alt)}">
<figcaption>{escape(_shown(plate).capitalize())}. {summary}.
Files: <a href="{slug}.svg">SVG</a>, <a href="{slug}.png">PNG</a>.</figcaption>
</figure>
{_claims(plate)}
{_sources(plate)}
</article>"""


def _shown(plate: Plate) -> str:
    """What the figure sets side by side, as the words of a sentence."""
    parts = ["live run"]
    if plate.recorded:
        parts.insert(0, f"recorded run ({plate.recorded['scale']})")
    if plate.has_reported:
        parts.insert(0, "reported numbers" + (" (hollow: unverified)" if plate.has_unverified else ""))
    return ", ".join(parts)


def _paper(slug: str) -> str:
    paper = papers().get(slug)
    if paper is None:
        return ""
    return (
        f'<p class="source">{escape(paper.authors)} ({paper.year}). '
        f'<a href="{escape(paper.link)}">{escape(paper.title)}</a></p>'
    )


def _claims(plate: Plate) -> str:
    recorded = plate.recorded["outcomes"] if plate.recorded else {}
    rows = "\n".join(_claim(claim, recorded.get(claim["id"]), bool(plate.recorded)) for claim in plate.live.claims())
    last = '<th scope="col">Recorded</th>' if plate.recorded else ""
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="Claims of {escape(plate.title)}"><table>
<caption>Claims</caption>
<thead><tr><th scope="col">Claim</th><th scope="col">Statement</th><th scope="col">Verdict, live</th>
<th scope="col">Effect and interval</th><th scope="col">n</th>{last}</tr></thead>
<tbody>
{rows}
</tbody></table></div>"""


def _claim(claim: dict[str, Any], recorded: Outcome | None, has_recorded: bool) -> str:
    interval = f"{_number(claim['effect'])} [{_number(claim['low'])}, {_number(claim['high'])}]"
    note = f"<br><small>{escape(claim['note'])}</small>" if claim["note"] else ""
    last = f"<td>{_verdict(recorded.verdict) if recorded else '–'}</td>" if has_recorded else ""
    return (
        f'<tr><th scope="row">{escape(claim["id"])}</th><td>{escape(claim["statement"])}{note}</td>'
        f'<td>{_verdict(claim["verdict"])}</td><td class="number">{interval}</td>'
        f'<td class="number">{claim["n"]}</td>{last}</tr>'
    )


def _verdict(verdict: str) -> str:
    return f'<span class="verdict {verdict.replace(" ", "-")}">{SIGNS[verdict]} {verdict}</span>'


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.3g}"


def _sources(plate: Plate) -> str:
    live = plate.live.provenance
    seeds = f"{len(live['seeds'])} seed{'s' if len(live['seeds']) > 1 else ''}"
    lines = [f"Live: {live['device']}; {live['libraries']}; {live['code']}; {live['date']}; {seeds}"]
    if plate.recorded:
        lines.append("Recorded: " + "; ".join(plate.recorded[name] for name in ("device", "libraries", "code", "date")))
    return "".join(f'<p class="source">{escape(line)}</p>' for line in lines)
