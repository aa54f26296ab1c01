"""WISE (Wang et al. 2024): do edits stick, carry over to other words, and leave the rest alone, all three at once?

The embedded model's facts are edited one after the other: a new object of the same type for a known person. Every
method writes the same edits into the same matrix (ROME into a middle layer's) and is asked the same three prompts an
edit. For T below the longest stream the model is reset and blocks of T edits are averaged, as the paper does.

Settings were looked for on a quarter of the people (``part="tune"``), by the mean of Rel, Gen and Loc after 24 edits:
for WISE the step size (.1, .3, 1), unrelated prompts (plain text, or questions: the paper takes both its negatives and
its locality prompts from one set of questions) and 0 or 4 contexts; for FT-L and FT-EWC step, clamp and strength; for
ROME the layer (2, 3, 4, after 12 edits) and the ridge. Margins and clamp are set in the model's own units beforehand.
GRACE comes twice: with its authors' radius of 1, and with the best of four radii (shares of a key's norm). Results are
of the other people.

A first try of 200 edits with shards of 100 and 40 steps, on one stream of the other people, gave WISE a Rel of .25: a
matrix of 200,000 entries holds far fewer edits a shard than one of 45 million. Shards of 25 and 20 steps were then
chosen on the first people at 96 edits (8 shards did better than 2), and the study moved to streams not seen before.
What is left of a block is merged when it ends. The full scale was cut to what two cores do in a quarter of an hour: two
streams of 200 edits, sweeps of 48 edits on one stream; a deadline leaves out the end of the plan. The quick scale is 12
edits of 12 steps (GRACE: 30), in shards of 4.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from workbench.studies._fan_out import fan_out
from workbench.studies._wise_claims import CLAIMS, EWC, FTL, GRACE, ROME, WIDE, WISE
from workbench.studies.base import STUDIES, Progress, Scale, Study

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

    from workbench.memory.parametric.base import ParametricMemory
    from workbench.models import LoadedModel
    from workbench.tasks.edits import EditSet

#: What WISE is run with: margins in median token norms of W_v a, the clamp in standard deviations of W_v.
WISE_SETTINGS: dict[str, Any] = {"units": "model", "alpha": 0.25, "beta": 1.0, "gamma": 0.5, "clamp": 10.0, "lr": 0.3}
_TUNED = {"lr": 2e-3, "clamp": 2e-2}
_QUICK: dict[str, Any] = {
    "model": "embedded", "dtype": "float32", "methods": [WISE, FTL, GRACE, WIDE], "lengths": {"12": 1}, "streams": 2,
    "steps": 12, "contexts": 3, "shard": 4, "grace": 30, "sweep": {}, "sweep_edits": 0, "sweep_streams": 0,
    "processes": 1, "deadline": 0,
}  # fmt: skip
_FULL: dict[str, Any] = {
    **_QUICK, "methods": [WISE, FTL, GRACE, WIDE, EWC, ROME], "lengths": {"200": 1, "1": 4, "10": 1, "50": 1},
    "streams": 2, "steps": 20, "contexts": 4, "shard": 25, "grace": 50, "processes": 2, "deadline": 960,
    "sweep": {
        "k": [1, 2, 4, 8], "rho": [0.05, 0.2, 0.5, 1.0], "merge": ["ties", "linear", "slerp"],
        "mode": ["merge", "retrieve"], "negatives": ["question", "text"], "routing": ["linear", "activated"],
    },
    "sweep_edits": 48, "sweep_streams": 1,
}  # fmt: skip
#: The point that all sweeps share.
BASE: dict[str, Any] = {"k": 2, "rho": 0.2, "merge": "ties", "mode": "merge", "negatives": "question",
                        "routing": "linear"}  # fmt: skip
#: Sweeps whose Deltas are kept beside the answers.
_ROUTED = ("negatives", "routing")
#: Streams of study seed 0.
FIRST_SEED = 62_000
#: Plain texts that Delta is measured on beside the untouched facts.
TEXTS = 48
#: Edits of the stream on which forgetting is followed edit by edit.
FOLLOWED = 50

Cell = tuple[str, str, str, Any, int, int, int]  # experiment, method, setting, its value, T, stream, block


class WISEStudy(Study):
    slug, title = "wise", "WISE: lifelong editing with side memories"
    scales = {"quick": Scale("quick", _QUICK, seconds=20), "full": Scale("full", _FULL, seconds=900)}
    claims = CLAIMS

    def run(self, scale: Scale, seed: int, progress: Progress) -> pd.DataFrame:
        import pandas as pd

        settings = scale.settings
        end = time.time() + settings["deadline"] if settings["deadline"] else 0.0
        work = partial(_measure, settings, seed, end)
        parts = fan_out(work, plan(settings), settings["processes"], progress, "runs of edits")
        return pd.DataFrame([row for part in parts for row in _shared(part, settings["sweep"])])

    def figure(
        self, live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None
    ) -> alt.Chart:
        from workbench.views.wise import paper_figure

        return paper_figure(live, reported, recorded)


def plan(settings: Mapping[str, Any]) -> list[Cell]:
    """What is run, in the order of importance: a deadline leaves out the end."""

    def main(lengths: Iterable[str]) -> list[Cell]:
        return [
            ("main", method, "", 0, int(length), stream, block)
            for length in lengths
            for stream in range(settings["streams"])
            for method in reversed(settings["methods"])  # the slow ones first: cells are shared out as they come
            for block in range(settings["lengths"][length])
        ]

    longest, *shorter = settings["lengths"]
    points = [(name, value) for name, values in settings["sweep"].items() for value in values if value != BASE[name]]
    sweep: list[Cell] = [
        ("sweep", WISE, name, value, settings["sweep_edits"], stream, 0)
        for name, value in ([("base", 0), *points] if points else [])
        for stream in range(settings["sweep_streams"])
    ]
    return main([longest]) + main(shorter[:-1]) + sweep + main(shorter[-1:])


def _shared(rows: list[dict[str, Any]], sweep: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of the point that all sweeps share, once under each sweep's name."""
    if not rows or rows[0]["setting"] != "base":
        return rows
    return [
        {**row, "setting": _named(name, BASE[name])}
        for name in sweep
        for row in rows
        if name in _ROUTED or row["metric"] == "right"
    ]


def make(method: str, settings: Mapping[str, Any], seed: int, **changed: Any) -> ParametricMemory:
    """The memory behind a method's name, as the study sets it."""
    from workbench.memory import MEMORIES

    slug, given = _method(method, settings, seed)
    return MEMORIES.get(slug)(**{**given, **changed})


def _method(method: str, settings: Mapping[str, Any], seed: int) -> tuple[str, dict[str, Any]]:
    from workbench.tasks.edits import negatives

    plain = negatives(64, seed=seed)
    shard, contexts = settings["shard"], settings["contexts"]
    side = {
        **WISE_SETTINGS, "steps": settings["steps"], "contexts": contexts, "save_freq": shard, "seed": seed,
        "merge_freq": shard * (3 if shard == 4 else 8), "negatives": negatives(64, seed=seed, kind="question"),
    }  # fmt: skip
    made: dict[str, tuple[str, dict[str, Any]]] = {
        WISE: ("wise", side),
        FTL: ("ft-l", _TUNED),
        EWC: ("ft-ewc", {**_TUNED, "strength": 100.0, "texts": plain}),
        ROME: ("rome", {"layer": 3, "ridge": 0.1, "contexts": min(contexts, 2), "texts": plain, "seed": seed}),
        GRACE: ("grace", {"eps": 1.0, "steps": settings["grace"]}),
        WIDE: ("grace", {"eps": 1.0, "steps": settings["grace"], "units": "model"}),
    }
    return made[method]


def _changed(name: str, value: Any, edits: int, seed: int) -> dict[str, Any]:
    """Arguments of WISE for one point of the sweep over ``edits`` edits; elsewhere k = 2 and rho = .2."""
    from workbench.tasks.edits import negatives

    k = value if name == "k" else 2
    shards = {"save_freq": edits // k, "merge_freq": edits}
    if name == "negatives":
        return {**shards, "negatives": negatives(64, seed=seed, kind=value)}
    if name == "mode" and value == "retrieve":  # four side memories, each of one shard
        return {"mode": "retrieve", "save_freq": edits // 4, "merge_freq": edits // 4}
    return shards if name in ("k", "base") else {**shards, name: value}


@lru_cache(maxsize=1)
def _model(name: str, device: str, dtype: str) -> LoadedModel:
    from workbench.models import load

    return load(name, device=device, dtype=dtype)


@lru_cache(maxsize=4)
def _edits(name: str, device: str, dtype: str, longest: int, seed: int) -> EditSet:
    from workbench.tasks.edits import edit_set

    return edit_set(_model(name, device, dtype), longest, seed=seed)


def _measure(settings: Mapping[str, Any], seed: int, end: float, cell: Cell) -> list[dict[str, Any]]:
    """Write one block of edits with one method and ask all its prompts; nothing after the deadline."""
    from workbench.tasks.edits import write_all

    experiment, method, name, value, length, stream, block = cell
    if end and time.time() > end:
        return []
    where = settings["model"], settings["device"], settings["dtype"]
    number = FIRST_SEED + 100 * seed + stream
    longest = max(*(int(t) * n for t, n in settings["lengths"].items()), settings["sweep_edits"])
    edits = _edits(*where, longest, number).part(block * length, (block + 1) * length)
    changed = _changed(name, value, length, number) if experiment == "sweep" else {}
    memory = make(method, settings, number, **changed).bind(_model(*where))
    label = {"experiment": experiment, "method": method, "setting": _named(name, value), "edits": length}
    follow = experiment == "main" and stream == block == 0 and length <= FOLLOWED and length == _followed(settings)
    lines: list[dict[str, Any]] = []

    def after(count: int) -> None:
        if follow:
            found = memory.answers(edits.prepared(memory, "rel")).accuracy()[:count]
            lines.extend(
                _row(label, f"{stream}.{block}.{i}", "followed", count, "right", v) for i, v in enumerate(found)
            )

    started = time.perf_counter()
    write_all(memory, edits, after)
    if method == WISE and changed.get("mode") != "retrieve":
        memory.merge_now()  # type: ignore[attr-defined]
    seconds = (time.perf_counter() - started) / length
    lines += list(_asked(memory, edits, label, f"{stream}.{block}"))
    lines += _learning(memory, label, f"{stream}.{block}", seconds)
    memory.unbind()
    return lines


def _followed(settings: Mapping[str, Any]) -> int:
    """The longest stream that is followed edit by edit."""
    return max((int(t) for t in settings["lengths"] if int(t) <= FOLLOWED), default=0)


def _named(name: str, value: Any) -> str:
    if name in ("", "base"):
        return name
    return f"{name}={value:g}" if isinstance(value, int | float) else f"{name}={value}"


def _row(label: Mapping[str, Any], unit: str, kind: str, after: int, metric: str, value: float) -> dict[str, Any]:
    return {**label, "unit": unit, "kind": kind, "after": after, "metric": metric, "value": float(value)}


def _asked(memory: ParametricMemory, edits: EditSet, label: Mapping[str, Any], unit: str) -> Iterable[dict[str, Any]]:
    from workbench.tasks.edits import scores

    length, point = label["edits"], label["setting"].split("=")[0]
    routed = label["method"] == WISE and (label["experiment"] == "main" or point in ("base", *_ROUTED))
    for row in scores(memory, edits).to_dict("records"):
        yield _row(label, f"{unit}.{row['edit']}", row["kind"], length, "right", row["right"])
        if routed:
            yield _row(label, f"{unit}.{row['edit']}", row["kind"], length, "delta", row["delta"])
            yield _row(label, f"{unit}.{row['edit']}", row["kind"], length, "side", row["side"])
    if routed:
        yield from _texts(memory, label, unit)


def _texts(memory: Any, label: Mapping[str, Any], unit: str) -> Iterable[dict[str, Any]]:
    """Delta of plain texts that no edit was learned with, and the thresholds."""
    from workbench.tasks.edits import negatives

    texts = negatives(TEXTS, seed=FIRST_SEED - 1)
    served = memory.serve(memory.prepare(texts, ["the"] * len(texts)))
    for i, (delta, side) in enumerate(zip(served.delta.tolist(), served.side.tolist())):
        yield _row(label, f"{unit}.{i}", "text", label["edits"], "delta", delta)
        yield _row(label, f"{unit}.{i}", "text", label["edits"], "side", side >= 0)
    for i, eps in enumerate(memory.eps()):
        yield _row(label, f"{unit}.{i}", "eps", label["edits"], "eps", eps)


def _learning(memory: ParametricMemory, label: Mapping[str, Any], unit: str, seconds: float) -> list[dict[str, Any]]:
    steps = sum(learned.steps for learned in memory.learned()) / len(memory)
    found = {"steps": steps, "seconds an edit": seconds, "bytes": memory.nbytes()}
    return [_row(label, f"{unit}.0", "writing", label["edits"], name, value) for name, value in found.items()]


STUDIES.register("wise")(WISEStudy())
