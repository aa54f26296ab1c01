"""Similarity of activations: between any two sets, and of image patches laid over the image."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

import altair as alt
import numpy as np

from workbench.errors import BadInput
from workbench.views import theme
from workbench.views._check import frame_for, matrix, one_of

if TYPE_CHECKING:
    import pandas as pd


def similarity_map(
    frame: pd.DataFrame,
    *,
    units: str = "cosine",
    signed: bool = True,
    row_title: str = "",
    col_title: str = "",
    size: int = 0,
    title: str = "",
    subtitle: str = "",
    limit: float | None = None,
) -> alt.Chart:
    """Similarity of every row to every column; a click selects (selection ``cell``, fields ``row``, ``col``).

    Columns: ``row``, ``col`` (numbers), ``value``, ``row_token``, ``col_token`` (``frames.activations``). Signed maps
    are symmetric about zero out to ``limit`` (default: the largest magnitude), so the sign is always honest.
    """
    data = frame_for("similarity_map", frame, numbers=("row", "col", "value"), columns=("row_token", "col_token"))
    most = float(data["value"].abs().max()) if limit is None else limit
    scale = theme.signed(most) if signed else theme.magnitude("viridis")
    pick = alt.selection_point(name="cell", fields=["row", "col"], on="click")
    step = size or max(8, min(24, 560 // max(data["row"].nunique(), data["col"].nunique())))
    cells = (
        alt.Chart(data)
        .mark_rect(**theme.SEAMLESS)
        .encode(
            x=alt.X("col:O", title=col_title or None, axis=_names(data, "col", -90, step)),
            y=alt.Y("row:O", title=row_title or None, axis=_names(data, "row", 0, step)),
            color=alt.Color("value:Q", title=units, scale=scale),
            stroke=alt.condition({"param": "cell", "empty": False}, alt.value("#1f2933"), alt.value(None)),
            tooltip=[
                "row:Q",
                "row_token:N",
                "col:Q",
                "col_token:N",
                alt.Tooltip("value:Q", title=units, format=".4~g"),
            ],
        )
    )
    return theme.themed(cells.add_params(pick).properties(width=alt.Step(step), height=alt.Step(step)), title, subtitle)


def _names(data: pd.DataFrame, which: str, angle: int, step: int) -> alt.Axis:
    if step < 11:
        return alt.Axis(ticks=False, domain=False, labelOverlap=True, labelAngle=0)
    names = {str(int(i)): str(t)[:16] for i, t in zip(data[which], data[f"{which}_token"])}
    return alt.Axis(
        labelExpr=f"{json.dumps(names)}[datum.label]",
        labelAngle=angle,
        ticks=False,
        domain=False,
        labelLimit=110,
        labelOverlap=False,
    )


def image_overlay(
    image: Any,
    grid: Any,
    *,
    opacity: float = 0.55,
    signed: bool = False,
    units: str = "similarity",
    box: tuple[float, float, float, float] | None = None,
    points: pd.DataFrame | None = None,
    width: int = 420,
    title: str = "",
    subtitle: str = "",
) -> alt.Chart:
    """An image with the similarity of its patches over it; hovering a patch reads its value and rank.

    Args: ``image`` (H, W) or (H, W, 3) array, uint8 or floats in [0, 1]; ``grid`` (rows, columns) of patch values;
    ``box`` the (left, top, right, bottom) fraction of the image that the grid covers (a centre crop), default all of
    it; ``points`` a frame with ``x``, ``y`` (fractions of the image, y down) and ``label`` (positive, negative,
    neutral). The slider (parameter ``opacity``) fades the map; a click selects a patch (selection ``patch``, fields
    row, col).
    """
    pixels = _pixels(image)
    data = _patches(matrix("grid", grid), (0.0, 0.0, 1.0, 1.0) if box is None else box)
    height = round(width * pixels.shape[0] / pixels.shape[1])
    scale = theme.signed(float(data["value"].abs().max())) if signed else theme.magnitude("viridis")
    fade = alt.param(
        name="opacity", value=opacity, bind=alt.binding_range(min=0, max=1, step=0.05, name="map opacity ")
    )
    pick = alt.selection_point(name="patch", fields=["row", "col"], on="click")
    x, y = (alt.Scale(domain=[0, 1], nice=False), alt.Scale(domain=[1, 0], nice=False))
    photo = alt.Chart(alt.Data(values=[{"image": _uri(pixels), "x": 0.5, "y": 0.5}])).mark_image(
        width=width, height=height, aspect=False
    )
    photo = photo.encode(x=alt.X("x:Q", scale=x, axis=None), y=alt.Y("y:Q", scale=y, axis=None), url="image:N")
    patches = (
        alt.Chart(data)
        .mark_rect(opacity=alt.expr("opacity"), strokeWidth=2)
        .encode(
            x=alt.X("x0:Q", scale=x, axis=None),
            x2="x1:Q",
            y=alt.Y("y0:Q", scale=y, axis=None),
            y2="y1:Q",
            color=alt.Color("value:Q", title=units, scale=scale),
            stroke=alt.condition({"param": "patch", "empty": False}, alt.value("#ffffff"), alt.value(None)),
            tooltip=["row:Q", "col:Q", alt.Tooltip("value:Q", title=units, format=".4~g"), alt.Tooltip("rank:Q")],
        )
    )
    layers = [photo, patches.add_params(pick, fade)]
    if points is not None and len(points):
        layers.append(_points(points, x, y))
    chart = (
        alt.layer(*layers)
        .properties(width=width, height=height)
        .resolve_scale(color="independent", shape="independent")
    )
    return theme.themed(chart, title, subtitle)


def _patches(grid: np.ndarray, box: tuple[float, float, float, float]) -> pd.DataFrame:
    import pandas as pd

    left, top, right, bottom = box
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise BadInput(f"box must be (left, top, right, bottom) fractions inside the image, got {box}")
    r, c = np.indices(grid.shape)
    high, wide = (bottom - top) / grid.shape[0], (right - left) / grid.shape[1]
    rank = np.empty(grid.size, dtype=int)
    rank[np.argsort(-grid.ravel(), kind="stable")] = np.arange(1, grid.size + 1)
    frame = pd.DataFrame({"row": r.ravel(), "col": c.ravel(), "value": grid.ravel(), "rank": rank})
    frame["x0"], frame["y0"] = left + frame["col"] * wide, top + frame["row"] * high
    frame["x1"], frame["y1"] = frame["x0"] + wide, frame["y0"] + high
    return frame_for("image_overlay", frame)


def _points(points: pd.DataFrame, x: alt.Scale, y: alt.Scale) -> alt.Chart:
    data = frame_for("image_overlay (points)", points, numbers=("x", "y"), columns=("label",))
    kinds = ("positive", "negative", "neutral")
    for label in data["label"]:
        one_of("image_overlay", "label", label, kinds)
    look = {"positive": ("#D55E00", "circle"), "negative": ("#0072B2", "cross"), "neutral": ("#9aa4b0", "diamond")}
    present = [kind for kind in kinds if kind in set(data["label"])]
    return (
        alt.Chart(data)
        .mark_point(filled=True, size=110, stroke="#ffffff", strokeWidth=1.5, opacity=1)
        .encode(
            x=alt.X("x:Q", scale=x),
            y=alt.Y("y:Q", scale=y),
            tooltip=["label:N", "x:Q", "y:Q"],
            color=alt.Color(
                "label:N", title="points", scale=alt.Scale(domain=present, range=[look[k][0] for k in present])
            ),
            shape=alt.Shape(
                "label:N", title="points", scale=alt.Scale(domain=present, range=[look[k][1] for k in present])
            ),
        )
    )


def _pixels(image: Any) -> np.ndarray:
    array = np.asarray(image)
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] != 3):
        raise BadInput(f"image must be (height, width) or (height, width, 3), got shape {array.shape}")
    if array.dtype != np.uint8:
        if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise BadInput(
                f"image must be uint8 or numbers in [0, 1], got {array.dtype} from {array.min()} to {array.max()}"
            )
        array = np.rint(array * 255).astype(np.uint8)
    return array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2)


def _uri(pixels: np.ndarray) -> str:
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((1024, 1024))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
