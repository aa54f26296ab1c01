"""One look for every chart. Nothing is enabled globally: each chart carries its own configuration.

``themed(chart)`` dresses a finished chart. Vega-Lite refuses a configured chart inside a composed one, so put views
together with ``beside``, ``below`` or ``layered``, which undress the parts and dress the whole.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import altair as alt

from workbench.errors import BadInput
from workbench.views import palettes

INK, MUTED, FAINT, PAPER = "#1f2933", "#5f6b7a", "#e4e7eb", "#ffffff"
FONT = "Inter, 'Helvetica Neue', Helvetica, 'Liberation Sans', Arial, sans-serif"
MONO = "'DejaVu Sans Mono', Menlo, Consolas, monospace"
CATEGORIES = palettes.OKABE_ITO

#: Cells that overlap by a hair, so that no seams show when a picture is scaled.
SEAMLESS = {"width": {"band": 1.04}, "height": {"band": 1.04}}

#: What a verdict looks like: colour and shape, so that neither is needed alone.
VERDICTS = {
    "holds": ("#009E73", "circle"),
    "not reproduced": ("#D55E00", "cross"),
    "inconclusive": ("#5f6b7a", "diamond"),
}
#: What happens to a held item between two moments.
CHANGES = {"stayed": "#0072B2", "entered": "#009E73", "left": "#E69F00", "elsewhere": "#d5dae0"}
#: Where a number comes from.
SOURCES = {"paper": "#4D4D4D", "recorded": "#E69F00", "live": "#0072B2"}


def _config() -> dict[str, Any]:
    axis = {
        "labelFont": FONT, "titleFont": FONT, "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": 500,
        "labelColor": MUTED, "titleColor": INK, "gridColor": FAINT, "domainColor": "#b8c0ca", "tickColor": "#b8c0ca",
        "tickSize": 4, "labelPadding": 4, "titlePadding": 8,
    }  # fmt: skip
    legend = {
        "labelFont": FONT, "titleFont": FONT, "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": 500,
        "labelColor": INK, "titleColor": MUTED, "symbolSize": 80, "gradientThickness": 10, "gradientLength": 140,
    }  # fmt: skip
    title = {
        "font": FONT, "subtitleFont": FONT, "fontSize": 15, "fontWeight": 600, "color": INK, "anchor": "start",
        "subtitleColor": MUTED, "subtitleFontSize": 11.5, "subtitlePadding": 4, "offset": 12,
    }  # fmt: skip
    return {
        "background": PAPER,
        "font": FONT,
        "padding": 12,
        "view": {"stroke": None, "continuousWidth": 460, "continuousHeight": 260},
        "axis": axis,
        "axisX": {"grid": False},
        "axisY": {"ticks": False, "domain": False},
        "legend": legend,
        "title": title,
        "header": {
            "labelFont": FONT, "titleFont": FONT, "labelFontSize": 12, "labelFontWeight": 600, "labelColor": INK,
            "titleFontSize": 12, "titleColor": MUTED, "titleFontWeight": 500,
        },
        "range": {"category": list(CATEGORIES), **dict.fromkeys(("heatmap", "ramp"), palettes.anchors("viridis"))},
        "line": {"strokeWidth": 2, "strokeCap": "round", "strokeJoin": "round"},
        "bar": {"cornerRadiusEnd": 2},
        "text": {"font": FONT, "fontSize": 11, "color": INK},
        "concat": {"spacing": 28},
        "facet": {"spacing": 18},
    }  # fmt: skip


def themed(chart: Any, title: str = "", subtitle: str | list[str] = "") -> Any:
    """``chart`` with the shared look (and a title), as a new object."""
    dressed = chart.copy(deep=False)
    dressed.config = alt.Config(**_config())
    if title:
        dressed.title = alt.TitleParams(text=title, **({"subtitle": subtitle} if subtitle else {}))
    elif subtitle:
        dressed.title = alt.TitleParams(text=subtitle, fontSize=11.5, fontWeight="normal", color=MUTED)
    return dressed


def bare(chart: Any) -> Any:
    """``chart`` without its configuration, ready to be composed."""
    plain = chart.copy(deep=False)
    plain.config = alt.Undefined
    return plain


def beside(*charts: Any, title: str = "", subtitle: str | list[str] = "", **resolve: str) -> Any:
    """Charts in one row; colours are independent unless ``color="shared"`` is asked for.

    Selections of the same name and fields become one: a head clicked in one map is lit in all.
    """
    return _composed(alt.hconcat, charts, title, subtitle, resolve)


def below(*charts: Any, title: str = "", subtitle: str | list[str] = "", **resolve: str) -> Any:
    """Charts in one column."""
    return _composed(alt.vconcat, charts, title, subtitle, resolve)


def layered(*charts: Any, title: str = "", subtitle: str | list[str] = "") -> Any:
    """Charts drawn over one another on the same axes."""
    if not charts:
        raise BadInput("charts: give at least one chart to compose")
    return themed(alt.layer(*map(bare, charts)), title, subtitle)


def _composed(join: Any, charts: tuple[Any, ...], title: str, subtitle: Any, resolve: dict[str, str]) -> Any:
    if not charts:
        raise BadInput("charts: give at least one chart to compose")
    apart = ("color", "shape", "opacity", "xOffset", "yOffset")  # shared offsets would move bars off their rows
    scales = {**dict.fromkeys(apart, "independent"), **resolve}
    with warnings.catch_warnings():  # selections of one name become one on purpose: that is how views are linked
        warnings.filterwarnings("ignore", "Automatically deduplicated selection parameter")
        joined = join(*map(bare, charts))
    return themed(joined.resolve_scale(**scales), title, subtitle)


def even(panels: int, most: int = 3) -> int:
    """Columns for so many panels, at most ``most``, so that the last row is as full as it can be: 4 are two and two."""
    rows = max(1, math.ceil(panels / most))
    return max(1, math.ceil(panels / rows))


def magnitude(scheme: str = "viridis", **scale: Any) -> alt.Scale:
    """A colour scale for numbers that start at zero (or any low end)."""
    return alt.Scale(range=palettes.anchors(scheme), interpolate="rgb", **scale)


def signed(limit: float, scheme: str = "blue-orange") -> alt.Scale:
    """A colour scale for signed numbers, symmetric about zero out to ``limit``."""
    limit = limit or 1.0
    stops = palettes.anchors(scheme)
    domain = [limit * (2 * i / (len(stops) - 1) - 1) for i in range(len(stops))]
    return alt.Scale(range=stops, domain=domain, interpolate="rgb", clamp=True)


def categories(values: list[str]) -> alt.Scale:
    """Okabe-Ito colours in the order of ``values``; more than eight repeat."""
    return alt.Scale(domain=values, range=[CATEGORIES[i % len(CATEGORIES)] for i in range(len(values))])
