"""Pictures of matrices: colours, scales, NaN, ticks, labels, PNG and SVG of one layout."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from workbench.errors import BadInput, UnknownName
from workbench.views import map_figure, map_svg, palettes, raster


@pytest.mark.parametrize("scheme", palettes.names())
def test_every_scheme_runs_from_its_first_to_its_last_colour(scheme):
    table, ends = palettes.table(scheme), palettes.anchors(scheme)
    assert table.shape == (256, 3)
    assert ["#" + bytes(table[i]).hex() for i in (0, -1)] == [ends[0], ends[-1]]


@pytest.mark.parametrize("scheme", ["viridis", "cividis", "magma"])
def test_magnitude_schemes_get_lighter_all_the_way(scheme):
    """Monotone lightness is what keeps order readable for colour-blind readers and in grey prints."""
    light = palettes.table(scheme) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) > -0.6).all()
    assert light[-1] - light[0] > 150


@settings(max_examples=40, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.sampled_from(raster.SCALES))
def test_scales_keep_order_and_span_zero_to_one(low, width, scale):
    values = np.linspace(low, low + width, 17)
    level = raster.unit(values, low, low + width, scale)
    assert (np.diff(level) >= -1e-12).all()
    assert level.min() >= 0
    assert level[-1] == pytest.approx(1.0)


def test_nan_is_grey_and_diverging_schemes_are_symmetric_about_zero():
    pixels = raster.colours([[np.nan, -2.0], [0.0, 1.0]], scheme="blue-orange")
    assert tuple(pixels[0, 0]) == raster.GREY
    assert tuple(pixels[0, 1]) == tuple(palettes.table("blue-orange")[0])
    assert np.ptp(pixels[1, 0].astype(int)) <= 4  # zero is the neutral middle
    assert raster.limits(np.array([[-2.0, 1.0]]), "blue-orange") == (-2.0, 2.0)
    assert raster.limits(np.full((2, 2), 3.0), "viridis") == (3.0, 4.0)


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e5, 1e5), st.floats(1e-4, 1e5), st.integers(2, 9))
def test_ticks_lie_inside_and_are_evenly_spaced(low, width, count):
    ticks = raster.nice_ticks(low, low + width, count)
    assert all(low - 1e-6 * width <= t <= low + 1.000001 * width for t in ticks)
    assert len(ticks) <= 2.6 * count + 1
    if len(ticks) > 2:
        np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0], rtol=1e-6, atol=1e-9)


def test_the_picture_and_the_svg_show_the_same_labels(tmp_path):
    words = [" Ada", " has", " <b>", "\n"]
    cells = np.eye(4)
    svg = map_svg(cells, "head 5 & more", row_tokens=words, col_tokens=words, units="probability", subtitle="exact")
    for text in (
        "head 5 &amp; more",
        "·Ada",
        "·&lt;b&gt;",
        "↵",
        "probability",
        "exact",
        "query position",
        "key position",
    ):
        assert text in svg
    picture = map_figure(cells, "head 5", row_tokens=words, col_tokens=words)
    assert picture.mode == "RGB"
    pixels = np.asarray(picture).reshape(-1, 3)
    for colour in (palettes.table("viridis")[0], palettes.table("viridis")[-1]):
        assert (pixels == colour).all(axis=1).sum() > 500
    picture.save(tmp_path / "map.png")


def test_positions_of_a_part_stand_on_its_axes():
    svg = map_svg(np.random.default_rng(0).random((64, 64)), rows=(16_000, 16_384), cols=(0, 16_384))
    assert ">16,100<" in svg or ">16,200<" in svg
    assert ">5,000<" in svg


def test_png_bytes_are_the_pixels():
    pixels = raster.colours(np.arange(6.0).reshape(2, 3))
    back = np.asarray(Image.open(io.BytesIO(raster.png(pixels))))
    np.testing.assert_array_equal(back, pixels)
    big = raster.enlarge(pixels, 4, 9)
    np.testing.assert_array_equal(big[::2, ::3], pixels)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: map_figure(np.ones((2, 2, 2))), BadInput, "array must be a matrix|values must be a matrix"),
        (lambda: map_figure(np.eye(3), row_tokens=["a"]), BadInput, "row_tokens must hold 3 labels, got 1"),
        (lambda: map_figure(np.eye(3), scheme="jet"), UnknownName, "colour scheme called 'jet'"),
        (lambda: map_figure(np.eye(3), scale="cube"), BadInput, "scale='cube'"),
        (lambda: map_figure(np.eye(3), low=2, high=1), BadInput, "low <= high"),
        (lambda: map_figure(np.eye(3), rows=(5, 5)), BadInput, "rows must be"),
        (lambda: map_figure([["a"]]), BadInput, "real numbers"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
