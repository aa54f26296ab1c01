"""A matrix of any size to look into: pooled from afar, exact when close; only what is on the screen crosses the wire.

The browser asks for a tile (rows, columns, how many cells fit), Python answers with float16 cells: at most half a
megabyte an interaction. A tile source is any callable ``source(rows, cols, max_shape) -> array``: ``rows`` and ``cols``
are slices of matrix positions, ``max_shape`` the most cells (rows, columns) it may return. When the region fits it
returns every cell; otherwise it pools.
"""

from __future__ import annotations

import base64
import html
import io
import json
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anywidget
import numpy as np
import traitlets

from workbench.errors import BadInput, WorkbenchError
from workbench.storage import write_bytes, write_text
from workbench.views import palettes as colour_tables
from workbench.views import raster
from workbench.views._check import matrix, visible

if TYPE_CHECKING:
    from PIL.Image import Image

TileSource = Callable[[slice, slice, tuple[int, int]], Any]

#: The most bytes one answer may have, header and labels included.
BYTE_BUDGET = 500_000
#: Cells a side of the largest tile (460,800 bytes as float16).
TILE_SIDE = 480
_LABEL_LENGTH = 24


@dataclass(frozen=True)
class Tile:
    """Cells of a region: ``values`` (h, w) float64; ``pooled`` is "" when they are the exact cells."""

    rows: tuple[int, int]
    cols: tuple[int, int]
    values: np.ndarray
    pooled: str

    def encoded(self) -> tuple[dict[str, Any], bytes]:
        """Header and little-endian float16 cells; divided by ``factor`` so that small ones keep precision."""
        finite = np.isfinite(self.values)
        cells = self.values[finite]
        low, high = (float(cells.min()), float(cells.max())) if cells.size else (0.0, 0.0)
        factor = max(abs(low), abs(high)) or 1.0
        halves = np.where(finite, self.values / factor, np.nan).astype("<f2")
        header = {
            "kind": "tile", "rows": self.rows, "cols": self.cols, "shape": self.values.shape, "pooled": self.pooled,
            "low": low, "high": high, "factor": factor, "nan": int(self.values.size - cells.size),
        }  # fmt: skip
        return header, halves.tobytes()


class MatrixView(anywidget.AnyWidget):
    """A canvas on a (R, C) matrix: drag or arrow keys pan, wheel or +/- zooms, hover reads, click or Enter selects.

    Args: ``tile_source`` an (R, C) array or a tile source (see the module); ``shape`` (R, C), taken from an array;
    ``row_labels``/``col_labels`` one token a row/column (fetched only where visible); ``units`` stand at the bar;
    ``pooling`` names what a pooled cell is ("mean", "max"). Observe ``selected`` (``(i, j)`` or ``()``) and
    ``viewport`` (row start, row stop, column start, column stop). ``bytes_sent`` and ``last_bytes`` count the wire.
    """

    _esm = Path(__file__).parent / "matrix.js"
    _css = Path(__file__).parent / "matrix.css"

    shape = traitlets.Tuple(traitlets.Int(), traitlets.Int(), default_value=(1, 1)).tag(sync=True)
    title = traitlets.Unicode("").tag(sync=True)
    units = traitlets.Unicode("").tag(sync=True)
    row_label = traitlets.Unicode("query").tag(sync=True)
    col_label = traitlets.Unicode("key").tag(sync=True)
    height = traitlets.Int(520, min=160, max=4000).tag(sync=True)
    scheme = traitlets.Enum(colour_tables.names(), "viridis").tag(sync=True)
    scaling = traitlets.Enum(list(raster.SCALES), "linear").tag(sync=True)
    domain = traitlets.List(
        traitlets.Float(), help="colour range held fixed: [low, high], or [] to follow the view"
    ).tag(sync=True)
    selected = traitlets.Tuple(help="(i, j) of the selected cell, or ()").tag(sync=True)
    viewport = traitlets.Tuple(help="(row start, stop, column start, stop) in view, or () for all").tag(sync=True)
    revision = traitlets.Int(0).tag(sync=True)
    palettes = traitlets.Dict({name: colour_tables.anchors(name) for name in colour_tables.names()}).tag(sync=True)
    diverging = traitlets.List(sorted(colour_tables.DIVERGING)).tag(sync=True)

    still_class = traitlets.Unicode(help="CSS class of the still picture, which the live widget hides").tag(sync=True)

    bytes_sent = traitlets.Int(0, help="bytes of tiles sent since the widget was made")
    last_bytes = traitlets.Int(0, help="bytes of the latest answer")
    last_error = traitlets.Unicode("", help="why the latest tile could not be computed")

    def __init__(
        self,
        tile_source: TileSource | Any,
        shape: Sequence[int] | None = None,
        row_labels: Sequence[str] | None = None,
        col_labels: Sequence[str] | None = None,
        title: str = "",
        *,
        units: str = "",
        pooling: str = "mean",
        **traits: Any,
    ):
        self._hold(tile_source, shape, row_labels, col_labels, pooling)
        name = f"wbm-still-{uuid.uuid4().hex[:10]}"
        super().__init__(shape=self._shape, title=title, units=units, still_class=name, **traits)
        self.on_msg(self._answer)

    def update(
        self,
        tile_source: TileSource | Any,
        shape: Sequence[int] | None = None,
        row_labels: Sequence[str] | None = None,
        col_labels: Sequence[str] | None = None,
        *,
        pooling: str | None = None,
        **traits: Any,
    ) -> MatrixView:
        """Show another matrix in the same place; the viewport stays when the shape does. Returns itself."""
        before = self._shape
        self._hold(tile_source, shape, row_labels, col_labels, self._pooling if pooling is None else pooling)
        with self.hold_sync():
            for name, value in traits.items():
                setattr(self, name, value)
            if before != self._shape:
                self.shape, self.viewport, self.selected = self._shape, (), ()
            self.revision += 1
        return self

    def _hold(self, source: Any, shape: Any, row_labels: Any, col_labels: Any, pooling: str) -> None:
        if not callable(source):
            source = matrix("tile_source", source)
            shape = source.shape if shape is None else shape
            if tuple(shape) != source.shape:
                raise BadInput(f"shape {tuple(shape)} is not the array's shape {source.shape}; leave shape out")
            source = array_source(source, pooling)
        self._shape = _legal_shape(shape)
        self._row_tokens = _labels("row_labels", row_labels, self._shape[0])
        self._col_tokens = _labels("col_labels", col_labels, self._shape[1])
        self._source, self._pooling = source, pooling
        self._overview: Tile | None = None  # drawn twice, on the canvas and in the still picture: computed once

    @traitlets.validate("selected")
    def _legal_selection(self, proposal: Any) -> tuple[int, ...]:
        cell = tuple(int(index) for index in proposal["value"])
        if cell and not (len(cell) == 2 and 0 <= cell[0] < self._shape[0] and 0 <= cell[1] < self._shape[1]):
            raise traitlets.TraitError(f"selected must be () or (i, j) inside {self._shape}, got {cell}")
        return cell

    @traitlets.validate("domain")
    def _legal_domain(self, proposal: Any) -> tuple[float, ...]:
        limits = tuple(float(limit) for limit in proposal["value"])
        if limits and not (len(limits) == 2 and limits[0] < limits[1]):
            raise traitlets.TraitError(f"domain must be () or (low, high) with low < high, got {limits}")
        return limits

    # ---- tiles ----
    def tile(
        self,
        rows: slice | tuple[int, int] | None = None,
        cols: slice | tuple[int, int] | None = None,
        max_shape: tuple[int, int] = (TILE_SIDE, TILE_SIDE),
    ) -> Tile:
        """The cells of a region (default: everything), at most ``max_shape`` of them and never beyond the byte budget.

        Raises BadInput for a region outside the matrix or a source that returns a wrong shape.
        """
        r, c = _span("rows", rows, self._shape[0]), _span("cols", cols, self._shape[1])
        room = _room(max_shape)
        whole = (r, c, room) == ((0, self._shape[0]), (0, self._shape[1]), (TILE_SIDE, TILE_SIDE))
        if whole and self._overview is not None:
            return self._overview
        tile = self._computed(r, c, room)
        self._overview = tile if whole else self._overview
        return tile

    def _computed(self, r: tuple[int, int], c: tuple[int, int], room: tuple[int, int]) -> Tile:
        values = matrix("tile", self._source(slice(*r), slice(*c), room))
        size = (r[1] - r[0], c[1] - c[0])
        exact = size[0] <= room[0] and size[1] <= room[1]
        if exact and values.shape != size:
            raise BadInput(
                f"the tile source returned {values.shape} cells for a region of {size} that fits; return every cell"
            )
        if not exact and (values.shape[0] > min(room[0], size[0]) or values.shape[1] > min(room[1], size[1])):
            raise BadInput(
                f"the tile source returned {values.shape} cells where at most {room} of {size} were asked for"
            )
        return Tile(r, c, values, "" if exact else self._pooling)

    def packed(
        self, rows: Any = None, cols: Any = None, max_shape: tuple[int, int] = (TILE_SIDE, TILE_SIDE)
    ) -> tuple[dict, bytes]:
        """A tile as it crosses the wire: header (with the visible tokens when exact) and float16 bytes."""
        tile = self.tile(rows, cols, max_shape)
        header, cells = tile.encoded()
        if not tile.pooled:
            header["row_tokens"], header["col_tokens"] = self._tokens(tile)
        if _size(header, cells) > BYTE_BUDGET:
            header["row_tokens"], header["col_tokens"] = [], []
        return header, cells

    def _answer(self, _widget: Any, message: Any, _buffers: Any) -> None:
        if not isinstance(message, dict) or message.get("kind") != "tile":
            return
        echo = {key: message.get(key) for key in ("id", "role", "revision")}
        try:
            header, cells = self.packed(tuple(message["rows"]), tuple(message["cols"]), tuple(message["max"]))
        except (
            Exception
        ) as error:  # the source is the caller's code: its failure belongs on the screen, not in a lost log
            self._report(error, echo)
            return
        self.last_error = ""
        self.last_bytes = _size(header | echo, cells)
        self.bytes_sent += self.last_bytes
        self.send(header | echo, [cells])

    def _report(self, error: Exception, echo: dict[str, Any]) -> None:
        kind = "" if isinstance(error, WorkbenchError) else f"{type(error).__name__}: "
        self.last_error = f"{kind}{error}"
        self.send({"kind": "error", "message": f"These cells could not be computed. {self.last_error}", **echo})

    # ---- pictures without a browser ----
    def figure(self, rows: Any = None, cols: Any = None, *, ratio: float = 2.0) -> Image:
        """The picture as a PIL image, of the current viewport unless ``rows``/``cols`` (start, stop) are given."""
        return raster.paint(self._layout(rows, cols), ratio)

    def to_png(self, path: str | Path, rows: Any = None, cols: Any = None, *, ratio: float = 2.0) -> Path:
        """Write the picture as PNG (atomically) and return its path."""
        return write_bytes(path, _png(self.figure(rows, cols, ratio=ratio)))

    def to_svg(self, path: str | Path, rows: Any = None, cols: Any = None) -> Path:
        """Write the picture as SVG: real text, the map as an embedded PNG."""
        return write_text(path, raster.write_svg(self._layout(rows, cols)))

    def _layout(self, rows: Any, cols: Any) -> raster.Layout:
        if rows is None and cols is None and len(self.viewport) == 4:
            r0, r1, c0, c1 = self.viewport
            rows, cols = _whole(r0, r1, self._shape[0]), _whole(c0, c1, self._shape[1])
        tile = self.tile(rows, cols)
        low, high = self.domain or (None, None)
        row_tokens, col_tokens = ([], []) if tile.pooled else self._tokens(tile)
        return raster.layout(
            tile.values, title=self.title, row_label=self.row_label, col_label=self.col_label,
            row_tokens=row_tokens or None, col_tokens=col_tokens or None, rows=tile.rows, cols=tile.cols,
            scheme=self.scheme, scale=self.scaling, low=low, high=high,
            units=" ".join(filter(None, (tile.pooled, self.units))),
        )  # fmt: skip

    def _tokens(self, tile: Tile) -> tuple[list[str], list[str]]:
        return self._row_tokens[slice(*tile.rows)], self._col_tokens[slice(*tile.cols)]

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live widget and, for a front end that cannot run it, the same picture as PNG."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, *metadata = bundle if isinstance(bundle, tuple) else (bundle,)
        data = data | self._still()
        return (data, *metadata) if metadata else data

    def _ipython_display_(self) -> None:
        """The live widget and, under it, a still picture that is only seen where no kernel runs.

        A second output is needed because JupyterLab, reopening a notebook without its kernel, prefers the widget it
        cannot show to a PNG in the same output.
        """
        from IPython.display import display

        bundle = super()._repr_mimebundle_() or ({}, {})
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        display(data, metadata=metadata, raw=True)
        still = self._still()
        if still:
            display(still | {"text/html": self._still_html(still["image/png"])}, raw=True)

    def _still(self) -> dict[str, str]:
        try:
            picture = _png(self.figure(ratio=1.5))
        except Exception as error:  # a source that fails must not take the live view (which shows the failure) with it
            self.last_error = str(error)
            return {}
        return {"image/png": base64.b64encode(picture).decode("ascii")}

    def _still_html(self, png: str) -> str:
        """The picture, hidden by the live widget; while it is seen, the output that says "model not found" is not."""
        child = ".jp-OutputArea-child"
        dead = f"{child}:has(+ {child} .{self.still_class}):not(:has(.wbm)) {{ display: none !important; }}"
        words = html.escape(self.title or "matrix")
        return (
            f'<style>{dead}</style><img class="{self.still_class}" alt="{words}" style="max-width:100%" '
            f'src="data:image/png;base64,{png}">'
        )


# ---- sources ----


def array_source(array: Any, pooling: str = "mean") -> TileSource:
    """A tile source over an (R, C) array in memory; a pooled cell is the mean or the max of what it stands for."""
    cells = matrix("array", array)
    if pooling not in ("mean", "max"):
        raise BadInput(f"pooling={pooling!r} is not one of 'mean', 'max'")

    def source(rows: slice, cols: slice, max_shape: tuple[int, int]) -> np.ndarray:
        region = cells[rows, cols]
        return _pool(_pool(region, 0, max_shape[0], pooling), 1, max_shape[1], pooling)

    return source


def _pool(cells: np.ndarray, axis: int, most: int, pooling: str) -> np.ndarray:
    """At most ``most`` cells along ``axis``; bins differ by at most one cell in size."""
    length = cells.shape[axis]
    if length <= most:
        return cells
    edges = np.arange(most) * length // most
    if pooling == "max":
        return np.maximum.reduceat(cells, edges, axis=axis)
    counts = np.diff(np.append(edges, length))
    return np.add.reduceat(cells, edges, axis=axis) / (counts[:, None] if axis == 0 else counts)


def trace_source(
    trace: Any, layer: int, head: int | None = None, *, reduce: str = "mean", batch: int = 0, progress: Any = None
) -> TileSource:
    """A tile source over the attention of one traced layer: pooled maps from afar, exact probabilities when close.

    ``head=None`` is the mean over heads. Nothing N x N is ever stored: each tile is computed from Q, K and LSE, on the
    model's device. ``progress`` is called with the fraction of a pooled map that is done.
    """

    def source(rows: slice, cols: slice, max_shape: tuple[int, int]) -> np.ndarray:
        if rows.stop - rows.start <= max_shape[0] and cols.stop - cols.start <= max_shape[1]:
            return _plane(trace.region(layer, head, rows, cols, batch=batch))
        size = _pooled_size(rows.stop - rows.start, cols.stop - cols.start, max_shape)
        words = {"reduce": reduce, "rows": rows, "cols": cols, "batch": batch, "progress": progress}
        return _plane(trace.map(layer, head, size=size, **words))

    return source


def _pooled_size(height: int, width: int, most: tuple[int, int]) -> int:
    """The larger side that keeps both sides of a square pooling within ``most``."""
    larger = max(most)
    return larger if min(larger, height) <= most[0] and min(larger, width) <= most[1] else min(most)


def _plane(values: Any) -> np.ndarray:
    """(..., R, C) to (R, C): the mean over every leading axis (batch, heads), taken where the values are."""
    if hasattr(values, "detach"):
        return values.detach().float().reshape(-1, *values.shape[-2:]).mean(0).cpu().numpy()
    array = np.asarray(values, dtype=float)
    return array.reshape(-1, *array.shape[-2:]).mean(axis=0)


# ---- checks ----


def _legal_shape(shape: Any) -> tuple[int, int]:
    if shape is None:
        raise BadInput("shape (rows, columns) must be given with a tile source that is a callable")
    sides = tuple(int(side) for side in shape)
    if len(sides) != 2 or min(sides) < 1:
        raise BadInput(f"shape must be (rows, columns), both at least 1, got {tuple(shape)}")
    return sides[0], sides[1]


def _labels(argument: str, labels: Sequence[str] | None, length: int) -> list[str]:
    if labels is None:
        return []
    if isinstance(labels, str) or len(labels) != length:
        raise BadInput(f"{argument} must hold {length} labels, got {len(labels)}")
    return [visible(label)[:_LABEL_LENGTH] for label in labels]


def _span(argument: str, region: slice | tuple[int, int] | None, size: int) -> tuple[int, int]:
    """(start, stop) inside [0, size]; negative and clipped slices are refused: a tile must be what it says."""
    if region is None:
        return 0, size
    if isinstance(region, slice):
        if region.step not in (None, 1):
            raise BadInput(f"{argument} must have step 1, got {region}")
        region = (0 if region.start is None else region.start, size if region.stop is None else region.stop)
    start, stop = region
    if not (float(start).is_integer() and float(stop).is_integer() and 0 <= start < stop <= size):
        raise BadInput(f"{argument} must be (start, stop) with 0 <= start < stop <= {size}, got ({start}, {stop})")
    return int(start), int(stop)


def _whole(start: float, stop: float, size: int) -> tuple[int, int]:
    first = min(max(0, int(np.floor(start))), size - 1)
    return first, min(size, max(first + 1, int(np.ceil(stop))))


def _room(max_shape: Any) -> tuple[int, int]:
    sides = tuple(int(side) for side in max_shape)
    if len(sides) != 2 or min(sides) < 1:
        raise BadInput(f"max_shape must be (rows, columns), both at least 1, got {tuple(max_shape)}")
    return min(sides[0], TILE_SIDE), min(sides[1], TILE_SIDE)


def _size(header: dict[str, Any], cells: bytes) -> int:
    return len(json.dumps(header, ensure_ascii=False).encode()) + len(cells)


def _png(picture: Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
