"""MatrixView without a browser: tiles, float16, the byte budget, sources, errors, pictures, the mimebundle."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
import traitlets
from PIL import Image

from workbench.errors import BadInput, StorageError, UnknownName
from workbench.views import palettes
from workbench.widgets.matrix import BYTE_BUDGET, MatrixView, array_source, trace_source


def decoded(header: dict[str, Any], cells: bytes) -> np.ndarray:
    return np.frombuffer(cells, "<f2").astype(float).reshape(header["shape"]) * header["factor"]


@pytest.fixture
def wide() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1000, 700))


def test_a_region_that_fits_comes_exact_to_float16(wide):
    header, cells = MatrixView(wide).packed((10, 410), (100, 500))
    assert header["pooled"] == ""
    assert header["shape"] == (400, 400)
    np.testing.assert_allclose(decoded(header, cells), wide[10:410, 100:500], atol=2e-3 * np.abs(wide).max())
    assert (header["low"], header["high"]) == (wide[10:410, 100:500].min(), wide[10:410, 100:500].max())


def test_small_numbers_keep_their_precision():
    tiny = np.array([[1e-9, 5e-9], [2.5e-9, 0.0]])
    header, cells = MatrixView(tiny).packed()
    np.testing.assert_allclose(decoded(header, cells), tiny, rtol=1e-3)
    huge = tiny * 1e18
    np.testing.assert_allclose(decoded(*MatrixView(huge).packed()), huge, rtol=1e-3)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_the_overview_is_the_pooled_matrix(wide, pooling):
    header, cells = MatrixView(wide, pooling=pooling).packed(max_shape=(50, 70))
    assert header["pooled"] == pooling
    blocks = wide.reshape(50, 20, 70, 10)
    wanted = blocks.mean(axis=(1, 3)) if pooling == "mean" else blocks.max(axis=(1, 3))
    np.testing.assert_allclose(decoded(header, cells), wanted, atol=2e-3 * np.abs(wanted).max())


def test_no_answer_goes_over_the_budget_even_with_long_labels():
    words = ["w" * 200 + str(i) for i in range(600)]
    view = MatrixView(np.ones((600, 600)), row_labels=words, col_labels=words)
    for rows, cols in [((0, 600), (0, 600)), ((0, 480), (0, 480)), ((60, 540), (120, 600))]:
        header, cells = view.packed(rows, cols, (10_000, 10_000))
        assert len(cells) + len(json.dumps(header)) <= BYTE_BUDGET


def test_messages_are_answered_with_binary_and_counted(wide):
    view, sent = MatrixView(wide, title="x"), []
    view.send = lambda content, buffers=None: sent.append((content, buffers))
    view._answer(
        view,
        {"kind": "tile", "id": 7, "role": "detail", "revision": 0, "rows": [0, 40], "cols": [0, 30], "max": [480, 480]},
        [],
    )
    content, buffers = sent[0]
    assert (content["id"], content["role"], content["revision"]) == (7, "detail", 0)
    np.testing.assert_allclose(decoded(content, buffers[0]), wide[:40, :30], atol=0.01)
    assert view.bytes_sent == view.last_bytes
    assert 40 * 30 * 2 < view.last_bytes < 40 * 30 * 2 + 600
    json.dumps(content)
    view._answer(view, {"kind": "something else"}, [])
    view._answer(view, "no dict", [])
    assert len(sent) == 1


def test_bad_requests_and_failing_sources_become_messages_not_crashes(wide):
    view, sent = MatrixView(wide), []
    view.send = lambda content, buffers=None: sent.append(content)
    view._answer(view, {"kind": "tile", "rows": [0, 5000], "cols": [0, 2], "max": [9, 9]}, [])
    assert "rows must be (start, stop)" in sent[-1]["message"]
    view._answer(view, {"kind": "tile"}, [])
    assert sent[-1]["kind"] == "error"
    assert view.last_error
    view._answer(view, {"kind": "tile", "rows": [0, 5], "cols": [0, 2], "max": [9, 9]}, [])
    assert view.last_error == ""


def test_nan_and_infinite_cells_travel_as_nan_and_are_counted():
    cells = np.array([[1.0, np.nan, 3.0], [np.inf, -np.inf, 2.0]])
    header, data = MatrixView(cells).packed()
    assert header["nan"] == 3
    assert (header["low"], header["high"]) == (1.0, 3.0)
    np.testing.assert_array_equal(np.isnan(decoded(header, data)), ~np.isfinite(cells))
    nothing, _ = MatrixView(np.full((2, 2), np.nan)).packed()
    assert (nothing["low"], nothing["high"], nothing["nan"]) == (0.0, 0.0, 4)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        ({"rows": (0, 1001)}, "rows must be .* <= 1000, got"),
        ({"rows": (5, 5)}, "rows must be"),
        ({"cols": (-3, 4)}, "cols must be"),
        ({"cols": slice(0, 10, 2)}, "cols must have step 1"),
        ({"rows": (0.5, 3)}, "rows must be"),
        ({"max_shape": (0, 5)}, "max_shape must be"),
        ({"max_shape": (5,)}, "max_shape must be"),
    ],
)
def test_regions_outside_the_matrix_are_refused(wide, region, message):
    with pytest.raises(BadInput, match=message):
        MatrixView(wide).tile(**region)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MatrixView(np.ones(4)), r"tile_source must be a matrix .* got shape \(4,\)"),
        (lambda: MatrixView(np.ones((0, 4))), "at least one cell"),
        (lambda: MatrixView(np.array([["a"]])), "must hold real numbers"),
        (lambda: MatrixView(np.ones((2, 3)), shape=(3, 2)), "is not the array's shape"),
        (lambda: MatrixView(lambda r, c, m: None), "shape .* must be given"),
        (lambda: MatrixView(lambda r, c, m: None, shape=(0, 2)), "both at least 1"),
        (lambda: MatrixView(np.ones((2, 3)), row_labels=["a"]), "row_labels must hold 2 labels, got 1"),
        (lambda: MatrixView(np.ones((2, 3)), col_labels="abc"), "col_labels must hold 3 labels"),
        (lambda: MatrixView(np.ones((2, 3)), pooling="sum"), "pooling='sum'"),
        (lambda: array_source(np.ones((2, 2, 2))), "array must be a matrix"),
        (lambda: MatrixView(lambda r, c, m: np.ones((3, 3)), (9, 9)).tile((0, 4), (0, 4)), "for a region of"),
        (lambda: MatrixView(lambda r, c, m: np.ones((9, 9)), (99, 99)).tile(max_shape=(5, 5)), "at most"),
    ],
)
def test_wrong_arrays_labels_and_sources_are_named(make, message):
    with pytest.raises(BadInput, match=message):
        make()


def test_traits_refuse_what_cannot_be_shown(wide):
    view = MatrixView(wide)
    for name, value in [
        ("selected", (1000, 0)),
        ("selected", (1,)),
        ("domain", (2.0, 1.0)),
        ("scheme", "jet"),
        ("scaling", "cube"),
    ]:
        with pytest.raises(traitlets.TraitError):
            setattr(view, name, value)
    view.selected = [3, 4]
    assert view.selected == (3, 4)
    with pytest.raises(UnknownName, match="did you mean 'viridis'"):
        palettes.table("viridi")


def test_update_shows_another_matrix_and_keeps_the_place_when_the_shape_stays(wide):
    view = MatrixView(wide, title="a")
    view.viewport, view.selected = (0.0, 10.0, 0.0, 10.0), (1, 1)
    assert view.update(wide * 2, title="b") is view
    assert (view.viewport, view.selected, view.title, view.revision) == ((0.0, 10.0, 0.0, 10.0), (1, 1), "b", 1)
    view.update(np.ones((5, 5)))
    assert (view.shape, view.viewport, view.selected, view.revision) == ((5, 5), (), (), 2)


def test_pictures_are_written_and_the_output_carries_one(wide, tmp_path):
    words = [f"t{i}" for i in range(20)]
    view = MatrixView(wide[:20, :20], row_labels=words, col_labels=words, title="one head", units="probability")
    picture = Image.open(view.to_png(tmp_path / "a.png"))
    assert picture.width > 600
    text = view.to_svg(tmp_path / "a.svg").read_text()
    assert "one head" in text
    assert ">t19<" in text
    view.viewport = (2.2, 6.8, 0, 9)
    assert ">t7<" in view.to_svg(tmp_path / "b.svg").read_text()
    assert ">t12<" not in (tmp_path / "b.svg").read_text()
    data, _ = view._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).width > 400
    json.dumps(data)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        view.to_png(tmp_path / "file" / "a.png")


def test_the_shown_output_is_the_widget_and_a_still_picture_computed_once():
    asked = []

    def source(rows: slice, cols: slice, max_shape: tuple[int, int]) -> np.ndarray:
        asked.append(max_shape)
        return np.eye(6)

    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    InteractiveShell.instance()
    view = MatrixView(source, (6, 6), title="a <b> & c")
    with capture_output() as shown:
        view._ipython_display_()
    InteractiveShell.clear_instance()
    live, still = (output.data for output in shown.outputs)
    assert "application/vnd.jupyter.widget-view+json" in live
    assert "image/png" not in live
    assert view.still_class in still["text/html"]
    assert "a &lt;b&gt; &amp; c" in still["text/html"]
    view.packed()
    assert len(asked) == 1
    view.update(np.eye(6) * 2)
    assert view.tile().values.max() == 2


def test_a_failing_source_does_not_take_the_live_view_with_it():
    def broken(rows: slice, cols: slice, max_shape: tuple[int, int]) -> np.ndarray:
        raise RuntimeError("gone")

    data, _ = MatrixView(broken, (4, 4))._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert "image/png" not in data


def test_a_trace_is_exact_when_close_and_pooled_from_afar(trace):
    n = len(trace.tokens[0])
    view = MatrixView(trace_source(trace, 1, 2), (n, n), row_labels=trace.tokens[0], col_labels=trace.tokens[0])
    full = trace.region(1, 2, slice(0, n), slice(0, n)).numpy()
    np.testing.assert_allclose(view.tile().values, full, atol=1e-6)
    np.testing.assert_allclose(view.tile((5, 12), (3, 9)).values, full[5:12, 3:9], atol=1e-6)
    pooled = view.tile(max_shape=(8, 8))
    assert pooled.pooled == "mean"
    assert max(pooled.values.shape) <= 8
    assert view.tile((0, 4), (0, n), (4, 8)).values.shape[1] <= 8
    mean = MatrixView(trace_source(trace, 1, None), (n, n)).tile().values
    np.testing.assert_allclose(mean, trace.region(1, None, slice(0, n), slice(0, n)).numpy().mean(axis=0), atol=1e-6)
