"""Talking heads (Merullo, Eickhoff, Pavlick 2024): low-rank channels between heads, and what editing them does.

Two layers of evidence. *Planted*: random heads with one channel built in, where what is true is known; it shows why the
writer has to be taken apart. *List*: the embedded model names the colour of the remaining thing, a task that it was
trained on. The reader is the head that adds most to the answer's logit; its candidate channels are the components of
earlier heads with the highest query-composition score. They are removed one by one (against random components), the
last position is steered in the space of three of them (against random spaces), and the best point on one half of long
lists is tried on the other half.

*Small list models*: attention-only, 3 layers of 4 heads (``workbench train lists``), which name the thing that is left
("item") or its colour ("colour", trained with every taken thing's colour written beside it, so that looking up forms
first). The same measurements, on what they were trained on: lists of 2 to 8 things, and beyond. Removal is measured at
8 things in log-probability, where both answer right.

The paper's model was GPT-2 small, which is not available offline. Whether these small models use an inhibition channel
at all is an open question that the study answers: it also records where heads look from the last position. Settings
were fixed on prompts of seeds below 1,000; the study's begin at ``FIRST_SEED``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from workbench.studies._fan_out import fan_out
from workbench.studies._talking_claims import CLAIMS
from workbench.studies.base import STUDIES, Progress, Scale, Study

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

    from workbench.models import LoadedModel
    from workbench.tasks.remaining import Remaining

FIRST_SEED = 51_000
#: d, d_h, nuisance m, gain g of the planted channels, as in the card.
PLANTED = ((128, 16, 0.0, 0.5), (128, 16, 0.0, 1.0), (128, 16, 3.0, 1.0), (192, 32, 3.0, 0.5), (192, 32, 10.0, 1.0))
_QUICK: dict[str, Any] = {
    "model": "embedded",
    "planted_seeds": 20,
    "sizes": [2, 6, 10, 12, 14, 16, 20],
    "per_size": 16,
    "removed_size": 12,
    "removed_prompts": 6,
    "top": 8,
    "random": 20,
    "steered_size": 16,
    "steered_prompts": 12,
    "grid": 7,
    "random_spaces": 3,
    "lists": {
        "sizes": [2, 4, 6, 8, 10, 12, 16, 20],
        "per_size": 64,
        "removed_size": 8,
        "removed_prompts": 48,
        "top": 8,
        "random": 24,
        "steered_size": 12,
        "steered_prompts": 32,
        "grid": 7,
        "random_spaces": 3,
    },
    "processes": 1,
}
_FULL: dict[str, Any] = {
    **_QUICK,
    "planted_seeds": 100,
    "sizes": list(range(2, 21)),
    "per_size": 100,
    "removed_prompts": 24,
    "top": 20,
    "random": 60,
    "steered_prompts": 60,
    "grid": 15,
    "random_spaces": 8,
    "lists": {
        **_QUICK["lists"],
        "sizes": list(range(2, 21)),
        "per_size": 256,
        "removed_prompts": 96,
        "top": 20,
        "random": 108,
        "steered_prompts": 60,
        "grid": 15,
        "random_spaces": 8,
    },
    "processes": 16,
}

Row = dict[str, Any]
Ask = Callable[[int, int, int], list["Remaining"]]  # number of prompts, things in the list, which use of the seed


class TalkingHeadsStudy(Study):
    slug, title = "talking-heads", "Talking heads: channels between attention heads"
    scales = {"quick": Scale("quick", _QUICK, seconds=28), "full": Scale("full", _FULL, seconds=900)}
    claims = CLAIMS

    def run(self, scale: Scale, seed: int, progress: Progress) -> pd.DataFrame:
        import pandas as pd

        settings = scale.settings
        parts = ("planted", *(f"{kind}{part}" for kind in ("", "item ", "colour ") for part in _MEASURED))
        rows = fan_out(partial(_part, settings, seed), parts, settings["processes"], progress, "parts")
        frame = pd.DataFrame([row for found in rows for row in found])
        return frame.reindex(columns=["experiment", "case", "unit", "x", "metric", "value"])

    def figure(
        self, live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None
    ) -> alt.Chart:
        from workbench.views.talking_heads import paper_figure

        return paper_figure(live, reported, recorded)


def _part(settings: Mapping[str, Any], seed: int, part: str) -> list[Row]:
    if part == "planted":
        found: Iterable[Row] = _planted(settings, seed)
    else:
        kind, _, measured = part.rpartition(" ")
        loaded = _model(f"list-{kind}" if kind else settings["model"], settings["device"])
        own = {**settings, **settings["lists"]} if kind else settings
        found = _MEASURED[measured](loaded, own, seed, _ask(loaded, kind, seed))
    return [{"experiment": part, **row} for row in found]


@lru_cache(maxsize=3)
def _model(name: str, device: str) -> LoadedModel:
    from workbench.models import load

    return load(name, device=device)


def _planted(settings: Mapping[str, Any], seed: int) -> Iterable[Row]:
    """z of the right component, of the runner-up and of the right pair's whole matrices; was each the largest?"""
    from workbench.probes.composition import score_table
    from workbench.probes.talking_heads import planted_channel

    for d, width, nuisance, gain in PLANTED:
        for i in range(settings["planted_seeds"]):
            number = FIRST_SEED + 1_000 * seed + i
            writers, readers, right = planted_channel(d, width, nuisance=nuisance, gain=gain, seed=number)
            table = score_table([*writers, *readers], readers=readers).sort_values("score", ascending=False)
            top, second = table.iloc[0], table.iloc[1]
            whole = table[(table["writer"] == 0) & (table["reader"] == 0)].iloc[0]
            pairs = table.drop_duplicates(["writer", "reader"])
            best = pairs.loc[pairs["whole"].idxmax()]
            named = {"case": f"d={d}, d_h={width}, nuisance {nuisance:g}, gain {gain:g}", "unit": str(i)}
            values = {
                "top z": top["z"],
                "second z": second["z"],
                "whole z": whole["whole_z"],
                "component found": float((top["writer"], top["reader"], top["component"]) == (0, 0, right)),
                "pair has largest whole score": float((best["writer"], best["reader"]) == (0, 0)),
            }
            yield from ({**named, "metric": metric, "value": float(value)} for metric, value in values.items())


@lru_cache(maxsize=3)
def _ask(loaded: LoadedModel, kind: str, seed: int) -> Ask:
    """One door a model and seed: what is found for it is found once."""
    return partial(_asked, loaded, kind, seed)


def _asked(loaded: LoadedModel, kind: str, seed: int, n: int, size: int, use: int) -> list[Remaining]:
    from workbench.tasks.lists import list_trials
    from workbench.tasks.remaining import remaining

    number = FIRST_SEED + 100 * seed + use
    return list_trials(kind, n, size, seed=number) if kind else remaining(loaded, n, size, seed=number)


def _list(loaded: LoadedModel, settings: Mapping[str, Any], seed: int, ask: Ask) -> Iterable[Row]:
    """Accuracy over list length and place, and where each head looks from the last position."""
    from workbench.tasks.remaining import PARTS, answers, looks

    for size in settings["sizes"]:
        for i, row in enumerate(answers(loaded, ask(settings["per_size"], size, 1)).itertuples()):
            where = {"case": f"place {row.place}", "unit": str(i), "x": size}
            yield {**where, "metric": "correct", "value": float(row.correct)}
            yield {**where, "metric": "log_p", "value": row.log_p}
    shares = looks(loaded, ask(4, 6, 2))
    for layer, heads in enumerate(shares):
        for head, parts in enumerate(heads):
            for part, share in zip(PARTS, parts):
                yield {"case": f"{layer}.{head}", "unit": part, "x": layer, "metric": "looks at", "value": float(share)}


@lru_cache(maxsize=3)
def _reader_and_table(loaded: LoadedModel, ask: Ask) -> tuple[Any, Any, dict[Any, Any]]:
    """The head that adds most to the answer, the components of all earlier heads by their score with its query."""
    import numpy as np

    from workbench.probes.attribution import logit_attribution
    from workbench.probes.composition import head_weights, score_table
    from workbench.probes.talking_heads import channels

    asked = ask(12, 6, 3)
    added = logit_attribution(loaded, [one.ids for one in asked], [one.answer_id for one in asked]).mean((2, 3))
    where = np.unravel_index(int(added.argmax()), tuple(added.shape))
    weights = head_weights(loaded)
    reader = next(head for head in weights if (head.layer, head.head) == (int(where[0]), int(where[1])))
    table = score_table(weights, readers=[reader]).sort_values("score", ascending=False)
    return reader, table, channels(loaded)


def _removed(loaded: LoadedModel, settings: Mapping[str, Any], seed: int, ask: Ask) -> Iterable[Row]:
    """Loss of log-probability of the answer when one component is removed: the top ones and random ones."""
    from workbench.probes.talking_heads import scaled
    from workbench.tasks.remaining import answers

    reader, table, parts = _reader_and_table(loaded, ask)
    yield {"case": "reader", "unit": f"{reader.layer}.{reader.head}", "metric": "head", "value": 1.0}
    asked = ask(settings["removed_prompts"], settings["removed_size"], 4)
    before = answers(loaded, asked)["log_p"].mean()
    top = table.head(settings["top"])
    rest = table.iloc[settings["top"] :]
    rest = rest.sample(min(settings["random"], len(rest)), random_state=seed)
    for case, rows in (("top", top), ("random", rest)):
        for row in rows.itertuples():
            direction = parts[row.writer_layer, row.writer].v[row.component][None]
            with scaled(loaded, {(row.writer_layer, row.writer): direction}):
                lost = before - answers(loaded, asked)["log_p"].mean()
            unit = f"{row.writer_layer}.{row.writer}.{row.component}"
            yield {"case": case, "unit": unit, "x": row.z, "metric": "damage", "value": float(lost)}


def _steered(loaded: LoadedModel, settings: Mapping[str, Any], seed: int, ask: Ask) -> Iterable[Row]:
    """How often steering changes the colour that is named, and the accuracy at the best point of the first half."""
    import torch

    from workbench.probes.talking_heads import orthonormal, random_directions

    reader, table, parts = _reader_and_table(loaded, ask)
    writers = table.drop_duplicates(["writer_layer", "writer"]).head(3)
    rows = [parts[row.writer_layer, row.writer].v[row.component] for row in writers.itertuples()]
    asked = ask(settings["steered_prompts"], settings["steered_size"], 5)
    spaces = {"channels": orthonormal(torch.stack(rows))}
    for i in range(settings["random_spaces"]):
        spaces[f"random {i}"] = random_directions(rows[0].shape[0], 3, FIRST_SEED + seed + i)
    for name, basis in spaces.items():
        yield from _space_rows(loaded, settings, asked, reader.layer, name, basis)


def _space_rows(
    loaded: LoadedModel, settings: Mapping[str, Any], asked: Sequence[Remaining], layer: int, name: str, basis: Any
) -> Iterable[Row]:
    """A grid over the first two axes, three standard deviations of the natural coordinates to each side."""
    import numpy as np
    import torch

    from workbench.probes.talking_heads import steered_ends
    from workbench.tasks.remaining import judged

    natural = torch.stack([steered_ends(loaded, one.ids, layer, basis, torch.zeros(1, 3))[1] for one in asked])
    centre, spread = natural.mean(0), natural.std(0)
    steps = torch.linspace(-3, 3, settings["grid"])
    first, second = torch.meshgrid(steps, steps, indexing="ij")
    offsets = torch.stack([first.ravel(), second.ravel(), torch.zeros(first.numel())], 1)
    right, changed, plain = [], [], []
    for one, own in zip(asked, natural):
        points = torch.cat([own[None], centre + offsets * spread])
        found = [judged(row, one) for row in steered_ends(loaded, one.ids, layer, basis, points)[0]]
        plain.append(found[0]["listed"])
        right.append([row["listed"] for row in found[1:]])
        changed.append([row["said"] != found[0]["said"] for row in found[1:]])
    half, scores = len(asked) // 2, np.array(right, float)
    best = int(scores[:half].mean(0).argmax())  # chosen on the first half, tried on the second
    for i, moves in enumerate(changed):
        yield {"case": name, "unit": str(i), "metric": "changed", "value": float(np.mean(moves))}
    for i in range(half, len(asked)):
        yield {"case": name, "unit": str(i), "metric": "accuracy before", "value": float(plain[i])}
        yield {"case": name, "unit": str(i), "metric": "accuracy at best point", "value": float(scores[i, best])}


_MEASURED: dict[str, Callable[..., Iterable[Row]]] = {"list": _list, "removed": _removed, "steered": _steered}
STUDIES.register("talking-heads")(TalkingHeadsStudy())
