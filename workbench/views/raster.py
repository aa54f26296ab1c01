"""Matrices as pictures without a browser: array -> coloured pixels -> a figure with axes, labels and a colour bar.

``map_figure`` gives a PIL image, ``map_svg`` the same figure as SVG with the pixels embedded; both draw one layout.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from workbench.errors import BadInput
from workbench.views import palettes
from workbench.views._check import matrix, one_of, tokens_for

if TYPE_CHECKING:
    from PIL.Image import Image

SCALES = ("linear", "log", "sqrt")
GREY = (208, 212, 217)  # cells that are not a number
_INK, _MUTED, _LINE = "#1f2933", "#5f6b7a", "#b8c0ca"


def limits(values: np.ndarray, scheme: str, low: float | None = None, high: float | None = None) -> tuple[float, float]:
    """The range the colours span: the finite minimum and maximum, symmetric about zero for a diverging scheme."""
    finite = values[np.isfinite(values)]
    smallest, largest = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if scheme in palettes.DIVERGING and low is None and high is None:
        largest = max(abs(smallest), abs(largest))
        smallest = -largest
    low, high = smallest if low is None else low, largest if high is None else high
    if not (math.isfinite(low) and math.isfinite(high)) or low > high:
        raise BadInput(f"low and high must be finite with low <= high, got {low} and {high}")
    return (low, high) if high > low else (low, low + 1.0)


def unit(values: np.ndarray, low: float, high: float, scale: str = "linear") -> np.ndarray:
    """Values to [0, 1]; ``log`` spans at most six decades below ``high``; NaN stays NaN."""
    one_of("raster", "scale", scale, SCALES)
    if scale == "log" and high > 0:
        floor = max(low, high * 1e-6)
        return np.clip(np.log(np.maximum(values, floor) / floor) / (np.log(high / floor) or 1.0), 0, 1)
    fraction = np.clip((values - low) / (high - low), 0, 1)
    return np.sqrt(fraction) if scale == "sqrt" else fraction


def colours(
    values: Any, *, scheme: str = "viridis", low: float | None = None, high: float | None = None, scale: str = "linear"
) -> np.ndarray:
    """(R, C) numbers to (R, C, 3) uint8; cells that are not finite are grey."""
    array = matrix("values", values)
    low, high = limits(array, scheme, low, high)
    finite = np.isfinite(array)
    level = unit(np.where(finite, array, low), low, high, scale)
    pixels = palettes.table(scheme)[np.rint(level * 255).astype(np.intp)]
    pixels[~finite] = GREY
    return pixels


def enlarge(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Nearest-neighbour resize, so that cells keep hard edges."""
    rows = np.arange(height) * pixels.shape[0] // height
    cols = np.arange(width) * pixels.shape[1] // width
    return pixels[rows[:, None], cols]


def png(pixels: np.ndarray) -> bytes:
    """(R, C, 3) uint8 to PNG bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_uri(pixels: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode("ascii")


# ---- one layout, two pens -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    x: float
    y: float
    text: str
    size: float = 11
    colour: str = _MUTED
    anchor: Literal["start", "middle", "end"] = "start"
    turned: bool = False  # reads upwards
    bold: bool = False


@dataclass(frozen=True)
class Line:
    x0: float
    y0: float
    x1: float
    y1: float
    colour: str = _LINE


@dataclass(frozen=True)
class Pixels:
    x: float
    y: float
    width: int
    height: int
    values: np.ndarray


@dataclass(frozen=True)
class Layout:
    width: int
    height: int
    marks: list[Text | Line | Pixels]


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers inside [low, high], about ``count`` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number as an axis prints it."""
    if value == 0:
        return "0"
    tiny_or_huge = abs(value) < 1e-3 or abs(value) >= 1e5
    text = f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e") if tiny_or_huge else f"{value:.4g}"
    return text.replace("-", "\u2212")


def index_ticks(start: int, stop: int, count: int) -> list[int]:
    """Whole positions in [start, stop) at round steps."""
    return sorted({int(t) for t in nice_ticks(start, stop - 1, count) if start <= t < stop and t == int(t)}) or [start]


def _axis_labels(tokens: list[str] | None, start: int, stop: int, size: float) -> list[tuple[float, str]]:
    """(fraction along the axis, label): tokens when each has 9 pixels, else round positions."""
    span = stop - start
    if tokens is not None and size / span >= 9:
        return [((i + 0.5) / span, _clip(token)) for i, token in enumerate(tokens)]
    return [((t - start + 0.5) / span, f"{t:,}") for t in index_ticks(start, stop, max(2, int(size // 70)))]


def _clip(token: str, width: int = 14) -> str:
    return token if len(token) <= width else token[: width - 1] + "…"


def _cell_size(rows: int, cols: int, room: int) -> tuple[int, int]:
    """Pixels (height, width) of the map: square cells, whole pixels each where there is room, slender maps widened."""
    cell = max(1.0, min(room / max(rows, cols), 26.0))
    cell = math.floor(cell) if cell >= 2 else room / max(rows, cols)
    return max(60, round(rows * cell)), max(60, round(cols * cell))


def layout(
    values: Any,
    *,
    title: str = "",
    subtitle: str = "",
    row_label: str = "query position",
    col_label: str = "key position",
    row_tokens: Sequence[str] | None = None,
    col_tokens: Sequence[str] | None = None,
    rows: tuple[int, int] | None = None,
    cols: tuple[int, int] | None = None,
    scheme: str = "viridis",
    scale: str = "linear",
    low: float | None = None,
    high: float | None = None,
    units: str = "",
    room: int = 560,
) -> Layout:
    """Where everything goes. ``rows``/``cols`` are the (start, stop) positions the map covers, if not its own cells."""
    array = matrix("array", values)
    span_r, span_c = _span("rows", rows, array.shape[0]), _span("cols", cols, array.shape[1])
    names_r = tokens_for("row_tokens", row_tokens, array.shape[0])
    names_c = tokens_for("col_tokens", col_tokens, array.shape[1])
    low, high = limits(array, scheme, low, high)
    height, width = _cell_size(array.shape[0], array.shape[1], room)
    ticks_r, ticks_c = _axis_labels(names_r, *span_r, height), _axis_labels(names_c, *span_c, width)
    named_c = names_c is not None and width / array.shape[1] >= 9
    left = 44 + round(6.4 * max(len(label) for _, label in ticks_r))
    top = 16 + 24 * bool(title) + 17 * bool(subtitle)
    under = 40 + (round(6.4 * max(len(label) for _, label in ticks_c)) if named_c else 12)
    pixels = enlarge(colours(array, scheme=scheme, low=low, high=high, scale=scale), height, width)
    marks: list[Text | Line | Pixels] = [Pixels(left, top, width, height, pixels)]
    if title:
        marks.append(Text(16, 30, title, 15, _INK, bold=True))
    if subtitle:
        marks.append(Text(16, 25 + 23 * bool(title), subtitle, 11.5))
    marks += _row_axis(ticks_r, left, top, height, row_label)
    marks += _col_axis(ticks_c, left, top + height, width, col_label, named_c, under)
    marks += _colour_bar(left + width + 22, top, min(height, 220), low, high, scheme, scale, units)
    wide = max(
        left + width + 92,
        32 + round(8.2 * len(title)),
        32 + round(6.1 * len(subtitle)),
        left + width + 34 + 6 * len(units),
    )
    return Layout(wide, top + height + under, marks)


def _span(argument: str, given: tuple[int, int] | None, size: int) -> tuple[int, int]:
    if given is None:
        return 0, size
    start, stop = given
    if not 0 <= start < stop:
        raise BadInput(f"{argument} must be (start, stop) with 0 <= start < stop, got {given}")
    return int(start), int(stop)


def _row_axis(ticks: list[tuple[float, str]], left: float, top: float, height: float, label: str) -> list[Text | Line]:
    marks: list[Text | Line] = []
    for fraction, text in ticks:
        y = top + fraction * height
        marks += [Line(left - 4, y, left, y), Text(left - 7, y + 4, text, anchor="end")]
    return [*marks, Text(22, top + height / 2, label, 12, _INK, "middle", turned=True)]


def _col_axis(ticks: list[tuple[float, str]], left: float, bottom: float, width: float, label: str, turned: bool,
              under: float) -> list[Text | Line]:  # fmt: skip
    marks: list[Text | Line] = []
    for fraction, text in ticks:
        x = left + fraction * width
        place = (
            Text(x + 4, bottom + 7, text, anchor="end", turned=True)
            if turned
            else Text(x, bottom + 18, text, anchor="middle")
        )
        marks += [Line(x, bottom, x, bottom + 4), place]
    return [*marks, Text(left + width / 2, bottom + under - 12, label, 12, _INK, "middle")]


def _colour_bar(
    x: float, y: float, height: int, low: float, high: float, scheme: str, scale: str, units: str
) -> list[Any]:
    ramp = np.repeat(palettes.table(scheme)[::-1][np.linspace(0, 255, height).astype(int)][:, None], 12, axis=1)
    marks: list[Any] = [Pixels(x, y, 12, height, ramp)]
    for value in bar_ticks(low, high, scale):
        at = y + (1 - float(unit(np.array(value), low, high, scale))) * height
        marks += [Line(x + 12, at, x + 16, at), Text(x + 19, at + 4, short(value))]
    name = " · ".join(part for part in (units, scale if scale != "linear" else "") if part)
    return [*marks, Text(x, y + height + 18, name)] if name else marks


def bar_ticks(low: float, high: float, scale: str) -> list[float]:
    if scale != "log" or high <= 0:
        return nice_ticks(low, high, 5)
    floor = max(low, high * 1e-6)
    return [10.0**p for p in range(math.ceil(math.log10(floor) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)] or [
        high
    ]


def map_figure(
    array: Any,
    title: str = "",
    row_label: str = "query position",
    col_label: str = "key position",
    row_tokens: Sequence[str] | None = None,
    col_tokens: Sequence[str] | None = None,
    scheme: str = "viridis",
    *,
    ratio: float = 2.0,
    **options: Any,
) -> Image:
    """A matrix as a PIL image with axes, title, colour bar.

    Args: array (R, C) numbers, NaN drawn grey; ``row_tokens``/``col_tokens`` one label a row/column, printed when a
    cell has room; ``scheme`` one of ``palettes.names()``; ``ratio`` pixels per point (2 for sharp screens). Options as
    in ``layout``: subtitle, rows, cols, scale ("linear", "log", "sqrt"), low, high, units, room.
    Raises BadInput for anything that is no matrix and for labels whose number does not match.
    """
    return paint(layout(array, title=title, row_label=row_label, col_label=col_label, row_tokens=row_tokens,
                        col_tokens=col_tokens, scheme=scheme, **options), ratio)  # fmt: skip


def map_svg(
    array: Any,
    title: str = "",
    row_label: str = "query position",
    col_label: str = "key position",
    row_tokens: Sequence[str] | None = None,
    col_tokens: Sequence[str] | None = None,
    scheme: str = "viridis",
    **options: Any,
) -> str:
    """The figure of ``map_figure`` as SVG text: real text, the map as an embedded PNG."""
    return write_svg(layout(array, title=title, row_label=row_label, col_label=col_label, row_tokens=row_tokens,
                            col_tokens=col_tokens, scheme=scheme, **options))  # fmt: skip


def paint(plan: Layout, ratio: float = 2.0) -> Image:
    """A layout drawn with PIL at ``ratio`` pixels per point."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (round(plan.width * ratio), round(plan.height * ratio)), "white")
    pen = ImageDraw.Draw(picture)
    for mark in plan.marks:
        if isinstance(mark, Pixels):
            size = (round(mark.width * ratio), round(mark.height * ratio))
            picture.paste(Image.fromarray(mark.values).resize(size, Image.Resampling.NEAREST),
                          (round(mark.x * ratio), round(mark.y * ratio)))  # fmt: skip
        elif isinstance(mark, Line):
            pen.line(
                [v * ratio for v in (mark.x0, mark.y0, mark.x1, mark.y1)], fill=mark.colour, width=max(1, round(ratio))
            )
        else:
            _paint_text(picture, mark, ratio)
    return picture


def _paint_text(picture: Image, mark: Text, ratio: float) -> None:
    from PIL import Image, ImageDraw

    font = _font(mark.size * ratio)
    pen = ImageDraw.Draw(picture)
    thick = 0.35 * ratio if mark.bold else 0
    anchor = {"start": "ls", "middle": "ms", "end": "rs"}[mark.anchor]
    if not mark.turned:
        pen.text((mark.x * ratio, mark.y * ratio), mark.text, mark.colour, font, anchor, stroke_width=thick)
        return
    width, height = math.ceil(pen.textlength(mark.text, font)) + 2, math.ceil(mark.size * ratio * 1.5)
    stamp = Image.new("L", (width, height))
    ImageDraw.Draw(stamp).text((1, height * 0.72), mark.text, 255, font, "ls")
    stamp = stamp.rotate(90, expand=True)
    shift = {"start": width, "middle": width / 2, "end": 0}[mark.anchor]
    corner = (round(mark.x * ratio - height * 0.72), round(mark.y * ratio - shift))
    picture.paste(Image.new("RGB", stamp.size, mark.colour), corner, stamp)


def _font(size: float) -> Any:
    """A face that knows most scripts when the system has one, else the face PIL carries."""
    from PIL import ImageFont

    try:
        return ImageFont.truetype("DejaVuSans.ttf", size * 0.92)
    except OSError:
        return ImageFont.load_default(size)


def write_svg(plan: Layout) -> str:
    """A layout as SVG text."""
    body = "\n".join(_svg_mark(mark) for mark in plan.marks)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{plan.width}" height="{plan.height}" '
        f'viewBox="0 0 {plan.width} {plan.height}" font-family="Inter, Helvetica, Arial, sans-serif">\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _svg_mark(mark: Text | Line | Pixels) -> str:
    if isinstance(mark, Pixels):
        return (f'<image x="{mark.x:g}" y="{mark.y:g}" width="{mark.width}" height="{mark.height}" '
                f'style="image-rendering:pixelated" href="{data_uri(mark.values)}"/>')  # fmt: skip
    if isinstance(mark, Line):
        return f'<line x1="{mark.x0:g}" y1="{mark.y0:g}" x2="{mark.x1:g}" y2="{mark.y1:g}" stroke="{mark.colour}"/>'
    turn = f' transform="rotate(-90 {mark.x:g} {mark.y:g})"' if mark.turned else ""
    weight = ' font-weight="600"' if mark.bold else ""
    return (f'<text x="{mark.x:g}" y="{mark.y:g}" font-size="{mark.size:g}" fill="{mark.colour}" '
            f'text-anchor="{mark.anchor}"{weight}{turn}>{escape(mark.text)}</text>')  # fmt: skip
