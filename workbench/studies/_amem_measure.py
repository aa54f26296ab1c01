"""What the A-MEM study measures: bridge worlds, LoCoMo's dialogues, and answers in the dialogue world.

Two memories are built of each dialogue, with links and with links and evolution; every ablation reads one of them:
without evolution FLAT and LINKS-ONLY hold the same notes, with evolution EVOLVE-ONLY and FULL do
(``tests/stores/test_a_mem_study.py`` holds this against memories that were built for the ablation).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from workbench.memory.retrieval import Encoder
    from workbench.memory.stores.a_mem import AMem

FLAT, LINKS, EVOLVE, FULL = "FLAT", "LINKS-ONLY", "EVOLVE-ONLY", "FULL"
WINDOW, RECENT, HISTORY = "WINDOW", "RECENT-N", "FULL-HISTORY"
SUM = "FULL, linked notes by sum"
NOTES, HITS = "equal notes", "equal hits"
COLUMNS = (
    "experiment",
    "encoder",
    "method",
    "accounting",
    "budget",
    "unit",
    "kind",
    "question",
    "metric",
    "value",
    "n",
)
#: method -> (which of the two memories, its settings while it is read)
READ: dict[str, tuple[str, dict[str, Any]]] = {
    FLAT: (LINKS, {"link": False}),
    LINKS: (LINKS, {"link": True}),
    EVOLVE: (FULL, {"link": False}),
    FULL: (FULL, {"link": True}),
    SUM: (FULL, {"link": True, "link_order": "sum"}),
    WINDOW: (LINKS, {"link": False, "reader": "window"}),
    RECENT: (LINKS, {"link": False, "reader": "recent"}),
    HISTORY: (LINKS, {"link": False, "reader": "history", "show": "content"}),
}


def rows(experiment: str, found: Iterable[Mapping[str, Any]], **same: Any) -> pd.DataFrame:
    """Lines of the tidy frame; columns that do not apply are empty."""
    import pandas as pd

    frame = pd.DataFrame([{"experiment": experiment, **same, **line} for line in found])
    return frame.reindex(columns=list(COLUMNS))


class Pair:
    """The same pieces written into a memory with links and into one with links and evolution."""

    def __init__(self, pieces: Sequence[Any], encoder: Encoder, **settings: Any):
        from workbench.memory.stores.a_mem import AMem
        from workbench.tasks.evidence import fill

        self.memories: dict[str, AMem] = {}
        self.ids: dict[str, Mapping[Any, int]] = {}
        self.order = settings.get("link_order", "sum")
        for name in (LINKS, FULL):
            memory = AMem.variant(name, encoder=encoder, log_reads=False, **settings)
            self.memories[name], self.ids[name] = memory, fill(memory, pieces)

    def reader(self, method: str) -> tuple[AMem, Mapping[Any, int]]:
        """The memory that ``method`` reads, set up for it, and its ids of the pieces."""
        name, settings = READ[method]
        memory = self.memories[name]
        plain = {"reader": "links", "show": "note", "link_order": self.order}
        for key, value in {**plain, **settings}.items():
            setattr(memory, key, value)
        return memory, self.ids[name]


# ---------------------------------------------------------------------- bridge world


def bridge(settings: Mapping[str, Any], world: int) -> pd.DataFrame:
    """One bridge world: for every question whether all its evidence lies within the budget, for each method."""
    from workbench.studies._amem_encoder import quick_encoder
    from workbench_datasets.bridge_world import bridge_world

    made = bridge_world(world, one_hop=settings["one_hop"])
    kind = settings["encoder"]
    texts = [note.text for note in made.notes]
    encoder = quick_encoder(texts) if kind == "words" else _warm(texts)
    pair = Pair(made.notes, encoder, link_order=settings["link_order"])
    lines = [
        line
        for method in settings["methods"]
        for budget in settings["budgets"]
        for line in _bridge_method(pair, made, method, budget)
    ]
    lines += _tightness(pair, [note.entities[0] for note in made.notes])
    return rows("bridge", lines, encoder=kind, unit=str(world))


def _bridge_method(pair: Pair, world: Any, method: str, budget: int) -> list[dict[str, Any]]:
    from workbench.tasks.evidence import score

    memory, ids = pair.reader(method)
    asked = [q for q in world.questions if q.hops == 2 or method in (FLAT, FULL)]
    table = score(memory, asked, budget_notes=budget, id_of=ids, method=method, at=())
    same = {"method": method, "accounting": NOTES, "budget": budget}
    hops = [f"{q.hops}-hop" for q in asked]
    lines = [
        {**same, "kind": kind, "question": number, "metric": "all evidence", "value": value, "n": 1}
        for number, (kind, value) in enumerate(zip(hops, table["all"]))
    ]
    return [*lines, {**same, "metric": "tokens", "value": table["tokens"].mean(), "n": len(asked)}]


def _tightness(pair: Pair, labels: Sequence[Any]) -> list[dict[str, Any]]:
    """Mean silhouette of the notes' embeddings by label: before evolution and after it."""
    sides = {"before": pair.memories[LINKS], "after": pair.memories[FULL]}
    same = {"metric": "silhouette", "n": len(labels)}
    return [{**same, "kind": side, "value": silhouette(memory, labels)} for side, memory in sides.items()]


def silhouette(memory: AMem, labels: Sequence[Any]) -> float:
    """Mean silhouette by cosine: how much nearer notes of one label are to one another than to those of the next."""
    from sklearn.metrics import silhouette_score

    memory.store.refresh()
    return float(silhouette_score(memory.store.vectors(), labels, metric="cosine"))


# ---------------------------------------------------------------------- LoCoMo


def locomo(settings: Mapping[str, Any], place: int) -> pd.DataFrame:
    """One of LoCoMo's dialogues: evidence recall by category, in both accountings, over k, and what it costs."""
    from workbench_datasets import locomo as data

    dialogue = data.load().dialogues[place]
    encoder = _warm([turn.line for turn in dialogue.turns])
    pair = Pair(dialogue.turns, encoder, reembed_every=settings["reembed_every"])
    asked = [question for question in dialogue.questions if question.evidence]
    lines: list[dict[str, Any]] = []
    for budget in settings["budgets"]:
        for method in (FLAT, LINKS, WINDOW, EVOLVE, FULL, RECENT):
            lines += _locomo_reading(pair, method, asked, NOTES, budget)
    for k in settings["ks"]:
        for method in (FLAT, LINKS, FULL):
            lines += _locomo_reading(pair, method, asked, HITS, k)
    lines.append(_history_tokens(pair, dialogue))
    lines += _tightness(pair, [turn.session for turn in dialogue.turns])
    lines += _links_made(pair)
    return rows("locomo", lines, encoder="minilm", unit=dialogue.name)


def _locomo_reading(
    pair: Pair, method: str, asked: Sequence[Any], accounting: str, size: int
) -> Iterator[dict[str, Any]]:
    from workbench.tasks.evidence import score

    memory, ids = pair.reader(method)
    memory.link_cap = size
    limits: dict[str, int] = {"budget_notes": size} if accounting == NOTES else {"k": size}
    table = score(memory, asked, id_of=ids, method=method, at=(), **limits)  # type: ignore[arg-type]
    same = {"method": method, "accounting": accounting, "budget": size}
    for kind, part in table.groupby("kind"):
        yield {**same, "kind": kind, "metric": "recall", "value": part["recall"].mean(), "n": len(part)}
    for metric in ("tokens", "notes"):
        yield {**same, "metric": metric, "value": table[metric].mean(), "n": len(table)}


def _history_tokens(pair: Pair, dialogue: Any) -> dict[str, Any]:
    memory, _ = pair.reader(HISTORY)
    found = memory.read("all of it")
    return {"method": HISTORY, "metric": "tokens", "value": found.tokens, "n": len(found.items)}


def _links_made(pair: Pair) -> list[dict[str, Any]]:
    memory = pair.memories[FULL]
    held = memory.notes.sync().held
    evolved = memory.contents()["evolved"]
    links = sum(len(note.links) for note in held.values()) / len(held)
    counts = {"links per note": links, "evolutions per note": evolved.mean()}
    return [{"method": FULL, "metric": name, "value": value, "n": len(held)} for name, value in counts.items()]


def _minilm() -> Encoder:
    from workbench.memory.retrieval import cached

    return cached("minilm")


def _warm(texts: Sequence[str]) -> Encoder:
    """MiniLM that knows the vectors writing will ask for: made in one batch, several times faster than one by one."""
    from workbench.memory.stores import _amem_rules as rules
    from workbench.memory.stores._amem_notes import Note

    encoder, held = _minilm(), rules.Terms()
    contents, topics = encoder.encode(texts), encoder.encode(rules.TOPICS)
    needed: list[str] = []
    for place, (text, vector) in enumerate(zip(texts, contents)):
        named = rules.entities(text, held)
        made = rules.fields(text, named, held, vector, topics)
        needed.append(Note(text, 0.0, tuple(made.keywords), made.context, tuple(made.tags)).index_text())
        needed += [" ".join(named)] if named else []
        held.replace(place, text)
    encoder.encode(needed)
    return encoder
