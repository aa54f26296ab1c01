"""Every view on a real small frame: drawn, saved without a network, within the row cap; bad frames named."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from workbench import views
from workbench.errors import BadInput
from workbench.memory.base import EventLog
from workbench.probes import induction, similarity
from workbench.views import frames, theme
from workbench.views._check import MAX_ROWS, visible


@pytest.fixture(scope="session")
def log() -> EventLog:
    """A window of eight that evicts its oldest, merges once, and is read every fifth step."""
    log, held = EventLog(), []
    for position in range(24):
        log.append("write", [position], "new token")
        held.append(position)
        if len(held) > 8:
            log.append("evict", [held.pop(0)], "oldest")
        if position % 5 == 4:
            log.append("read", held[-3:], "attended")
    log.append("merge", held[:2], "alike", into=[100])
    return log


def contents() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {"slot": range(60), "token_id": range(60), "token": [f" w{i}" for i in range(60)], "position": range(60),
         "score": rng.gamma(2, 1, 60), "reason": ["sink"] * 4 + ["entropy"] * 56}
    )  # fmt: skip


def scored(trace: Any) -> pd.DataFrame:
    data = frames.tokens(trace)
    return data.assign(kept=data["surprise"] > data["surprise"].median())


def rounds(trace: Any) -> pd.DataFrame:
    data = scored(trace)
    return pd.concat([data.assign(round=r, surprise=data["surprise"] * 0.8**r) for r in range(3)])


def head_numbers() -> pd.DataFrame:
    rng = np.random.default_rng(2)
    data = pd.DataFrame([(layer, head) for layer in range(3) for head in range(4)], columns=["layer", "head"])
    return data.assign(score=rng.random(12), s_m=rng.normal(size=12), s_c=rng.normal(size=12), pruned=data["head"] == 1)


def results() -> pd.DataFrame:
    rows = [
        (d, p, 0.9 - k * d / 900, "a" if d < 500 else "b")
        for d in (100, 400, 800)
        for k, p in enumerate(("full", "sirllm"))
    ]
    data = pd.DataFrame(rows, columns=["distance", "policy", "accuracy", "part"])
    return data.assign(low=data["accuracy"] - 0.05, high=data["accuracy"] + 0.05)


def sources() -> dict[str, pd.DataFrame]:
    live = pd.DataFrame({"item": ["SirLLM", "Streaming"], "value": [0.8, 0.4], "low": [0.7, 0.3], "high": [0.9, 0.5]})
    reported = live.assign(value=[0.85, 0.35], verified=[True, False], source=["Table 2", "abstract"])
    return {
        "live": live,
        "reported": reported[["item", "value", "verified", "source"]],
        "recorded": live.assign(value=0.6),
    }


def claims() -> pd.DataFrame:
    rows = [("recall", "Recall is higher with SirLLM than with the window", "holds", 0.31, 0.2, 0.42, 300),
            ("slope", "The kept share grows", "not reproduced", -0.04, -0.07, -0.01, 50),
            ("decay", "Forgetting helps", "inconclusive", 0.02, -0.03, 0.08, 1200)]  # fmt: skip
    return pd.DataFrame(rows, columns=["id", "statement", "verdict", "effect", "low", "high", "n"])


def costs() -> pd.DataFrame:
    return pd.DataFrame({"action": ["map", "region", "map"], "unit": ["s", "s", "bytes"], "predicted": [8.1, 0.1, 3e8],
                         "spent": [7.4, np.nan, 2.9e8]})  # fmt: skip


def photo() -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    from sklearn.datasets import load_sample_image

    image = load_sample_image("flower.jpg")[::4, ::4]
    patches = image[:104, :160].reshape(13, 8, 20, 8, 3).mean(axis=(1, 3))  # 13 x 20 patches by their mean colour
    grid = similarity.patch_grid(similarity.cosine_map(patches.reshape(-1, 3), patches[6, 10][None]), (13, 20))
    points = pd.DataFrame({"x": [0.5, 0.1], "y": [0.5, 0.1], "label": ["positive", "negative"]})
    return image, grid, points


Draw = Callable[[Any, EventLog], Any]


#: view -> (how it is drawn from a real trace and log, what must be readable in the picture)
def people() -> tuple[pd.DataFrame, pd.DataFrame]:
    nodes = pd.DataFrame(
        {"id": [1, 2, 3], "label": ["Ada", "Ben", "Cleo"], "size": [3, 1, 1], "group": ["a", "b", "b"]}
    )
    edges = pd.DataFrame({"source": [1, 1], "target": [2, 3], "weight": [1.0, 2.0], "kind": ["met", "wrote"]})
    return nodes, edges


def reading() -> pd.DataFrame:
    rows = [(1, 7, "direct", None, 0.9, "Ada met Ben."), (2, 4, "link", 7, 0.5, "Ben lives in Oreby.")]
    return pd.DataFrame(rows, columns=["rank", "id", "how", "via", "score", "text"])


VIEWS: dict[str, tuple[Draw, list[str]]] = {
    "head_grid": (lambda t, log: views.head_grid(frames.heads(t, 1), title="Layer 1"), ["head 0", "head 3", "Layer 1"]),
    "head_scores": (
        lambda t, log: views.head_scores(head_numbers(), mark="pruned", units="probability"),
        ["probability", "layer"],
    ),
    "head_scores_signed": (lambda t, log: views.head_scores(head_numbers(), score="s_m", signed=True), ["s_m"]),
    "head_scatter": (lambda t, log: views.head_scatter(head_numbers(), "s_m", "s_c", x_title="memory"), ["memory"]),
    "head_tokens": (
        lambda t, log: views.head_tokens(frames.attention(t, 1, 2)),
        ["·Ada", "query", "key", "probability"],
    ),
    "head_links": (lambda t, log: views.head_links(frames.attention(t, 0, None), title="mean"), ["·Ada", "mean"]),
    "token_strip": (lambda t, log: views.token_strip(scored(t), kept="kept"), ["·Ada", "nats"]),
    "token_strip_time": (lambda t, log: views.token_strip(rounds(t), time="round", signed=True), ["·Ada"]),
    "token_track": (
        lambda t, log: views.token_track(
            frames.tokens(t), threshold=3.0, marks=pd.DataFrame({"position": [5.5], "kind": ["gold"]})
        ),
        ["surprise", "entropy", "gold", "token position"],
    ),
    "token_curves": (
        lambda t, log: views.token_curves(rounds(t).query("position in (3, 5)"), y="surprise", line="token"),
        ["round"],
    ),
    "memory_table": (
        lambda t, log: views.memory_table(contents(), sort="score"),
        ["40 of 60 items", "reason", "score"],
    ),
    "memory_timeline": (
        lambda t, log: views.memory_timeline(frames.spans(log, t.tokens[0])),
        ["stayed", "entered", "left", "event"],
    ),
    "event_log": (lambda t, log: views.event_log(frames.events(log)), ["write", "evict", "merge", "read"]),
    "slot_attention": (
        lambda t, log: views.slot_attention(frames.slot_mass(t, 1, range(12))),
        ["memory slot", "attention mass"],
    ),
    "node_link": (
        lambda t, log: views.node_link(*people(), title="who knows whom"),
        ["who knows whom", "Ada"],
    ),
    "retrieval_trace": (lambda t, log: views.retrieval_trace(reading(), gold=[4]), ["direct", "link"]),
    "similarity_map": (
        lambda t, log: views.similarity_map(frames.activations(similarity.cosine_map(t.hidden[1]), names=t.tokens[0])),
        ["cosine", "·Ada"],
    ),
    "image_overlay": (lambda t, log: views.image_overlay(*photo()[:2], points=photo()[2]), ["similarity", "positive"]),
    "cost_bars": (lambda t, log: views.cost_bars(costs()), ["predicted", "spent", "seconds", "bytes"]),
    "claims_table": (
        lambda t, log: views.claims_table(claims(), title="Claims"),
        ["holds", "not reproduced", "inconclusive", "0.31 ["],
    ),
    "line_with_band": (
        lambda t, log: views.line_with_band(results(), "distance", "accuracy", low="low", high="high", colour="policy"),
        ["sirllm", "accuracy", "distance"],
    ),
    "bars_with_interval": (
        lambda t, log: views.bars_with_interval(
            results(), "policy", "accuracy", low="low", high="high", colour="policy", facet="part"
        ),
        ["sirllm", "accuracy"],
    ),
    "paper_recorded_live": (
        lambda t, log: views.paper_recorded_live(**sources(), unit="accuracy"),
        ["paper", "recorded", "live", "hollow"],
    ),
}


def rows_of(spec: dict[str, Any]) -> int:
    return max((len(data) for data in spec.get("datasets", {}).values()), default=0)


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_drawn_and_saved_without_browser_or_network(name, trace, log, tmp_path, monkeypatch):
    import socket

    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: pytest.fail("a view opened a connection"))
    draw, readable = VIEWS[name]
    chart = draw(trace, log)
    spec = chart.to_dict()
    assert 0 < rows_of(spec) <= MAX_ROWS
    chart.save(tmp_path / f"{name}.svg")
    chart.save(tmp_path / f"{name}.png")
    svg = (tmp_path / f"{name}.svg").read_text()
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    for text in readable:
        assert text in svg, f"{text!r} is not in the picture"
    assert "NaN" not in svg
    assert "undefined" not in svg


def test_every_public_view_is_drawn_here_and_documented():
    drawn = {name.removesuffix("_signed").removesuffix("_time") for name in VIEWS}
    helpers = {"themed", "bare", "beside", "below", "layered", "map_figure", "map_svg"}
    of_layers = {"state_table", "state_similarity", "token_scalars", "recall_by_state"}  # drawn in test_layer_views.py
    assert drawn | helpers | of_layers == set(views.__all__)
    assert all(getattr(views, name).__doc__ for name in views.__all__)
    with pytest.raises(AttributeError, match="it offers"):
        _ = views.head_gird


def test_pdf_and_inline_html_need_no_network(tmp_path, trace, log):
    chart = VIEWS["claims_table"][0](trace, log)
    chart.save(tmp_path / "c.pdf")
    chart.save(tmp_path / "c.html", inline=True)
    assert (tmp_path / "c.pdf").read_bytes().startswith(b"%PDF")
    assert 'src="http' not in (tmp_path / "c.html").read_text()


def test_views_compose_and_nothing_is_set_globally(trace, log):
    import altair as alt

    before = (alt.theme.active, alt.data_transformers.active)
    parts = [VIEWS[name][0](trace, log) for name in ("cost_bars", "line_with_band", "head_scores")]
    whole = theme.below(parts[0], theme.beside(*parts[1:]), title="together")
    spec = whole.to_dict()
    assert spec["config"]["background"] == theme.PAPER
    assert "config" not in json.dumps(spec["vconcat"])
    assert parts[0].to_dict()["config"]
    assert (alt.theme.active, alt.data_transformers.active) == before
    assert theme.layered(parts[1]).to_dict()["config"]
    for compose in (theme.beside, theme.below, theme.layered):
        with pytest.raises(BadInput, match="at least one chart"):
            compose()


def test_maps_beside_each_other_share_their_selection():
    pair = theme.beside(*(views.head_scores(head_numbers(), score=name, signed=True) for name in ("s_m", "s_c")))
    (parameter,) = pair.to_dict()["params"]
    assert parameter["name"] == "head"
    assert len(parameter["views"]) >= 2


def test_a_view_leaves_its_frame_alone():
    data = head_numbers()
    before = data.copy()
    views.head_scores(data)
    views.memory_table(data)
    pd.testing.assert_frame_equal(data, before)


def test_selections_have_the_names_that_widgets_observe(trace, log):
    wanted = {
        "head_grid": "head",
        "head_scores": "head",
        "head_tokens": "cell",
        "token_strip": "token",
        "token_track": "stretch",
        "memory_table": "item",
        "memory_timeline": "before",
        "event_log": "stretch",
        "slot_attention": "slot",
        "similarity_map": "cell",
        "image_overlay": "patch",
        "line_with_band": "lines",
    }
    for view, parameter in wanted.items():
        spec = json.dumps(VIEWS[view][0](trace, log).to_dict())
        assert f'"name": "{parameter}"' in spec, view


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: views.head_grid(pd.DataFrame({"head": [0]})), "head_grid: column 'image' is missing"),
    (lambda: views.head_grid([1, 2]), "head_grid: frame must be a pandas DataFrame, got list"),
    (lambda: views.head_scores(head_numbers().drop(columns="layer")), "head_scores: column 'layer' is missing"),
    (lambda: views.head_scores(head_numbers().assign(score="x")), "head_scores: column 'score' must hold numbers"),
    (lambda: views.head_scores(head_numbers().head(0)), "head_scores: the frame has no rows"),
    (lambda: views.head_scatter(head_numbers(), "s_m", "nope"), "head_scatter: column 'nope' is missing"),
    (
        lambda: views.head_tokens(pd.DataFrame({"query": [0], "key": [0]})),
        "head_tokens: column 'query_token' is missing",
    ),
    (lambda: views.head_links(pd.DataFrame({"query": [0], "key": [0]})), "head_links: column 'query_token' is missing"),
    (
        lambda: views.token_strip(pd.DataFrame({"position": [0], "token": ["a"]})),
        "token_strip: column 'surprise' is missing",
    ),
    (lambda: views.token_track(pd.DataFrame({"position": [0], "token": ["a"]})), "token_track: none of the columns"),
    (
        lambda: views.token_curves(pd.DataFrame({"round": [0], "score": [1.0]})),
        "token_curves: column 'item' is missing",
    ),
    (lambda: views.memory_table(contents(), bars=["reason"]), "memory_table: column 'reason' must hold numbers"),
    (lambda: views.memory_table(contents(), sort="nope"), "memory_table: column 'nope' is missing"),
    (lambda: views.memory_table(contents(), bars=[], columns=[]), "memory_table: no columns are left"),
    (lambda: views.memory_timeline(contents()), "memory_timeline: column 'token'|memory_timeline: column 'why_in'"),
    (
        lambda: views.event_log(pd.DataFrame({"step": [0], "n": [1], "kind": ["forget"], "why": ["x"]})),
        "event_log: kind 'forget'",
    ),
    (lambda: views.slot_attention(contents()), "slot_attention: column 'mass' is missing"),
    (lambda: views.similarity_map(contents()), "similarity_map: column 'row_token' is missing"),
    (lambda: views.image_overlay(np.ones((4, 4, 4)), np.ones((2, 2))), "image must be"),
    (lambda: views.image_overlay(np.full((4, 4), 300.0), np.ones((2, 2))), "image must be uint8 or numbers in"),
    (lambda: views.image_overlay(np.ones((4, 4)), np.ones(4)), "grid must be a matrix"),
    (lambda: views.image_overlay(np.ones((4, 4)), np.ones((2, 2)), box=(0.5, 0, 0.2, 1)), "box must be"),
    (lambda: views.cost_bars(costs().drop(columns="spent")), "cost_bars: column 'spent' is missing"),
    (lambda: views.claims_table(claims().assign(verdict="maybe")), "claims_table: verdict='maybe'"),
    (lambda: views.claims_table(claims().drop(columns="low")), "claims_table: column 'low' is missing"),
    (lambda: views.line_with_band(results(), "distance", "accuracy", low="low"), "give both low and high"),
    (lambda: views.bars_with_interval(results(), "policy", "nope"), "bars_with_interval: column 'nope' is missing"),
    (lambda: views.paper_recorded_live(None, None, pd.DataFrame()), "all empty"),
    (
        lambda: views.paper_recorded_live(pd.DataFrame({"item": ["a"]})),
        r"paper_recorded_live \(live\): column 'value' is missing",
    ),
    (lambda: frames.heads_of(np.ones((2, 2))), r"maps must be \(heads, rows, columns\)"),
    (lambda: frames.heads_of(np.ones((2, 3, 3)), statistics={"entropy": [1.0]}), "must hold 2 numbers"),
    (lambda: frames.cells(np.ones((2, 2)), ["a"], ["b", "c"]), "do not fit 1 query"),
    (lambda: frames.cells(np.ones((80, 2)), ["a"] * 80, ["b", "c"]), "more than a chart shows"),
    (lambda: frames.slots(np.ones((2, 3)), tokens=["a"]), "tokens must hold 3 entries"),
    (lambda: frames.events(pd.DataFrame({"step": [0]})), "events: column 'kind' is missing"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_frames_are_refused_by_name(call, message):
    with pytest.raises(BadInput, match=message):
        call()


def test_more_rows_than_a_chart_can_hold_are_refused():
    rows = pd.DataFrame({"x": np.arange(MAX_ROWS + 1.0), "y": 0.0})
    with pytest.raises(BadInput, match="line_with_band: 5,001 rows are more than the 5,000"):
        views.line_with_band(rows, "x", "y")
    assert views.line_with_band(rows.head(MAX_ROWS), "x", "y", points=False).to_dict()


def test_frames_of_a_trace_say_what_the_trace_says(trace):
    tokens = frames.tokens(trace)
    assert list(tokens["token"]) == [visible(token) for token in trace.tokens[0]]
    assert np.isnan(tokens["surprise"][0])
    np.testing.assert_allclose(tokens["surprise"][1:], trace.surprise[0, 1:].numpy(), rtol=1e-6)
    cells = frames.attention(trace, 1, 2, rows=slice(4, 9), cols=slice(0, 6))
    region = trace.region(1, 2, slice(4, 9), slice(0, 6)).numpy()
    np.testing.assert_allclose(cells.pivot(index="query", columns="key", values="value").to_numpy(), region, atol=1e-7)
    assert cells["query"].min() == 4
    slots = frames.slot_mass(trace, 1, [0, 3, 5], queries=slice(6, 10))
    mass = trace.mass(1, [3]).numpy()[:, 6:10].mean(axis=1)
    np.testing.assert_allclose(slots.query("position == 3")["mass"], mass, atol=1e-6)
    with pytest.raises(BadInput, match="rows must lie inside"):
        frames.attention(trace, 1, 2, rows=slice(4, 9_000))
    with pytest.raises(BadInput, match="row 3 is outside this trace of 1 texts"):
        frames.tokens(trace, 3)


def test_heads_carry_their_statistics(trace, monkeypatch):
    n = len(trace.tokens[0])
    dense = trace.region(1, None, slice(0, n), slice(0, n)).numpy().astype(float)
    away = np.arange(n)[:, None] - np.arange(n)[None]
    told = frames.heads(trace, 1, size=8)
    logs = np.log(dense, where=dense > 0, out=np.zeros_like(dense))
    np.testing.assert_allclose(told["entropy"], -(dense * logs).sum(-1).mean(-1), atol=1e-5)
    np.testing.assert_allclose(told["sink_mass"], dense[..., :4].sum(-1).mean(-1), atol=1e-5)
    np.testing.assert_allclose(told["distance"], (dense * away).sum(-1).mean(-1), atol=1e-4)
    monkeypatch.setattr(frames, "_quickly", lambda trace, layer: False)
    assert list(frames.heads(trace, 1, size=8)) == ["head", "image"]


def test_spans_agree_with_the_log_at_every_moment(log):
    spans = frames.spans(log)
    for step in range(len(log)):
        shown = set(spans.query("entered <= @step and left > @step")["item"])
        assert shown == log.held(step), step


def test_spans_of_an_item_that_returns_have_two_rows():
    log = EventLog()
    for kind in ("write", "evict", "write", "reset"):
        log.append(kind, [] if kind == "reset" else [7], "why")
    spans = frames.spans(log, {7: " Ada"})
    assert list(zip(spans["entered"], spans["left"], spans["token"])) == [(0, 1, "·Ada"), (2, 3, "·Ada")]


def test_white_space_in_tokens_is_made_visible():
    assert [visible(t) for t in (" Ada", "Ġkey", "▁of", "\n", "a\tb", "", " ", "Ċ")] == [
        "·Ada", "·key", "·of", "↵", "a⇥b", "∅", "·", "↵",
    ]  # fmt: skip


def test_heads_of_a_model_by_their_scores(model, tmp_path):
    """The frame of the induction probe is what the head map draws."""
    scores = induction.induction_scores(model, length=8, batch=1, copy=False)
    views.head_scores(scores, score="prefix_matching", low=0, high=1).save(tmp_path / "heads.svg")
    assert "prefix_matching" in (tmp_path / "heads.svg").read_text()


@pytest.mark.parametrize(
    ("panels", "columns"), [(0, 1), (1, 1), (2, 2), (3, 3), (4, 2), (5, 3), (6, 3), (7, 3), (8, 3)]
)
def test_panels_fill_their_last_row(panels, columns):
    assert theme.even(panels) == columns
    assert theme.even(panels, 2) <= 2


def test_the_line_of_a_claim_stands_at_its_threshold(trace, log):
    chart = views.claims_table(claims().assign(threshold=[0.4, 0.0, 0.02]))
    rows = next(iter(chart.to_dict()["datasets"].values()))
    assert [round(row["_effect"], 2) for row in rows] == [-0.45, -0.57, 0.0]
