"""EM-LLM (Fountas et al. 2024): are events cut at surprise better memory blocks than fixed ones?

A frozen model reads streams of episodes several times longer than its local window, and is then asked for a fact that
has left it. The variants share local window, retrieved tokens, sinks and chunk; they differ in where events are cut and
what is fetched. Questions are trials that leave no trace. Segment quality is measured on one similarity matrix a
stream, with as many fixed and random boundaries as surprise found.

Two honest extras of the card: *recency*, logs whose order is asked for (fetched events carry no position), and *prose*,
boundaries against the paragraphs of a book that the model was not trained on. Logs have at most 32 events (as in the
model's training), so that all that left the window may be fetched: what is asked is whether order survives without
positions, not whether the right events are found.

``quick`` is shrunk to half a minute on two cores: six streams of 640 tokens and six variants, chunk 128. Streams run
from ``FIRST_SEED`` on; settings were tried on lower seeds only for their running time. The full scale was run twice on
the same streams: the first run measured no segments, because ``segments`` (the longest stream whose similarity matrix
is made) was set below the length that streams have in tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.studies._em_llm_claims import (
    CLAIMS,
    FULL,
    RANDOM_TOPK,
    S_C,
    SAME_F,
    SAME_R,
    SC,
    SM,
    SM_C,
    STREAMING,
    F,
    R,
    S,
)  # fmt: skip
from workbench.studies.base import STUDIES, Progress, Scale, Study

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

    from workbench.memory.cache.em_llm import EMLLM
    from workbench.models import LoadedModel

#: label -> settings beside the shared ones
VARIANTS: dict[str, dict[str, Any]] = {
    S: {"refine": "none"},
    SM: {"refine": "modularity"},
    SC: {"refine": "conductance"},
    S_C: {"refine": "none", "contiguity": 0.3},
    SM_C: {"refine": "modularity", "contiguity": 0.3},
    F: {"segmentation": "fixed", "refine": "none", "max_block": 32},
    "F+M": {"segmentation": "fixed", "refine": "modularity", "max_block": 32},
    R: {"segmentation": "random", "refine": "none"},
    "R+M": {"segmentation": "random", "refine": "modularity"},
    RANDOM_TOPK: {"refine": "none", "retrieval": "random"},
    STREAMING: {"refine": "none", "retrieval": "none"},
}
_QUICK: dict[str, Any] = {
    "model": "embedded",
    "dtype": "float32",
    "shared": {
        "n_local": 128,
        "n_mem": 128,
        "n_init": 4,
        "chunk": 128,
        "min_block": 4,
        "max_block": 48,
        "repr_topk": 2,
    },
    "variants": [S, SM, F, R, RANDOM_TOPK, STREAMING],
    "lengths": {"640": 6},
    "questions": 2,
    "gammas": [],
    "shares": [],
    "order": {},
    "passkey": {},
    "passkey_variants": [],
    "recency": {"32": 10},
    "prose": {},
    "segments": 4000,
}
_FULL = {
    **_QUICK,
    "variants": list(VARIANTS),
    "lengths": {"2048": 16, "8192": 2},
    "questions": 4,
    "gammas": [0.5, 1.5, 2.0],
    "shares": [0.15, 0.5],
    "order": {"2048": 10},
    "passkey": {"512": 4, "1536": 16, "8192": 2},
    "passkey_variants": [SM, STREAMING, FULL],
    "recency": {"32": 60},
    "prose": {"2048": 4},
}
#: Streams of study seed 0; settings were tried on lower ones.
FIRST_SEED = 52_000


def make(label: str, shared: Mapping[str, Any], seed: int, **changed: Any) -> EMLLM:
    """The memory behind a label of :data:`VARIANTS`."""
    from workbench.memory.cache.em_llm import EMLLM

    return EMLLM(**{**shared, **VARIANTS[label], **changed, "seed": seed})


class EMLLMStudy(Study):
    slug, title = "em-llm", "Human-like Episodic Memory for Infinite Context LLMs"
    scales = {"quick": Scale("quick", _QUICK, seconds=25), "full": Scale("full", _FULL, seconds=1200)}
    claims = CLAIMS

    def run(self, scale: Scale, seed: int, progress: Progress) -> pd.DataFrame:
        import pandas as pd

        settings = scale.settings
        loaded = _model(settings["model"], settings["device"], settings["dtype"])
        lines: list[dict[str, Any]] = []
        for work in progress(_plan(settings), "streams"):
            lines += _PARTS[work[0]](loaded, settings, seed, *work[1:])
        return pd.DataFrame(lines)

    def figure(
        self, live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None
    ) -> alt.Chart:
        from workbench.views.em_llm import paper_figure

        return paper_figure(live, reported, recorded)


def _plan(settings: Mapping[str, Any]) -> list[tuple[str, int, int]]:
    """Part, length of the stream (tokens), number of the stream."""
    counted = [("episodes", settings["lengths"])]
    counted += [(part, settings[part]) for part in ("order", "passkey", "recency", "prose")]
    return [(part, int(length), index) for part, sizes in counted for length, n in sizes.items() for index in range(n)]


@lru_cache(maxsize=1)
def _model(name: str, device: str, dtype: str) -> LoadedModel:
    from workbench.models import load

    return load(name, device=device, dtype=dtype)


def _line(experiment: str, variant: str, length: int, unit: Any, metric: str, value: float, window: int = 0) -> dict:
    named = {"experiment": experiment, "variant": variant, "length": length, "unit": str(unit)}
    return {**named, "metric": metric, "value": float(value), "window": window}


def _episodes(loaded: LoadedModel, settings: Mapping[str, Any], seed: int, length: int, index: int) -> Iterable[dict]:
    from workbench.tasks.episodes import episode_stream

    number = (FIRST_SEED + seed) * 1_000 + index
    behind = settings["shared"]["n_local"]
    stream = episode_stream(loaded.tokenizer, number, tokens=length, questions=settings["questions"], behind=behind)
    for label in settings["variants"]:
        memory = make(label, settings["shared"], number).bind(loaded.model)
        yield from _asked(loaded, memory, stream, "episodes", label, length, index)
        yield from _segmented(memory, stream, label, length, index, settings["segments"])
        memory.unbind()
    for gamma in settings["gammas"] if length < 4000 else ():
        memory = make(S, settings["shared"], number, gamma=gamma).bind(loaded.model)
        yield from _asked(loaded, memory, stream, "gamma", f"S, gamma {gamma:g}", length, index)
        memory.unbind()


def _asked(
    loaded: LoadedModel, memory: EMLLM, stream: Any, experiment: str, label: str, length: int, index: int
) -> Iterable[dict]:
    from workbench.tasks.episodes import ask, boundary_scores, read_stream

    read_stream(loaded, memory, stream)
    answers = [ask(loaded, memory, question) for question in stream.asks]
    for name, metric in (("correct", "correct"), ("fact_recall", "fact recall")):
        yield _line(experiment, label, length, index, metric, np.mean([answer[name] for answer in answers]))
    if stream.boundaries:
        found = [place for place, _ in memory.boundaries]
        for metric, value in boundary_scores(found, stream.boundaries, len(stream.ids)).items():
            yield _line(experiment, label, length, index, metric, value)


def _segmented(memory: EMLLM, stream: Any, label: str, length: int, index: int, longest: int) -> Iterable[dict]:
    """Quality of the cuts of S and SM and of as many fixed and random ones, on the similarities of this very run."""
    from workbench.tasks.episodes import boundary_scores

    n, first = len(stream.ids), memory.n_init
    if label not in (SM, SC) or n > longest:
        return
    raw, moved = [at for _, at in memory.boundaries], [at for at, _ in memory.boundaries]
    cuts = {S: raw, label: moved, **same_number(raw, first, n, index)}
    matrix = memory.adjacency(first, n)
    name = "segments" if label == SM else "segments, conductance"
    for variant, places in cuts.items():
        for metric, value in quality(matrix, [at - first for at in places]).items():
            yield _line(name, variant, length, index, metric, value)
        if variant in (SAME_F, SAME_R) and label == SM:
            for metric, value in boundary_scores(places, stream.boundaries, n).items():
                yield _line("episodes", variant, length, index, metric, value)


def same_number(places: Sequence[int], first: int, n: int, seed: int) -> dict[str, list[int]]:
    """As many evenly spaced, and as many random, boundaries in [first, n)."""
    count = len(places)
    even = np.linspace(first, n, count + 2)[1:-1].round().astype(int)
    drawn = np.random.default_rng(seed).choice(np.arange(first + 1, n), count, replace=False)
    return {SAME_F: even.tolist(), SAME_R: sorted(drawn.tolist())}


def quality(matrix: np.ndarray, places: Sequence[int]) -> dict[str, float]:
    from workbench.memory.cache import _events

    measures = {"modularity": _events.modularity, "conductance": _events.conductance, "I/IS": _events.intra_inter}
    return {name: measure(matrix, places) for name, measure in measures.items()}


def _order(loaded: LoadedModel, settings: Mapping[str, Any], seed: int, length: int, index: int) -> Iterable[dict]:
    """Questions whose answer stands in the episode after the one they name."""
    from workbench.tasks.episodes import episode_stream

    number = (FIRST_SEED + seed) * 1_000 + 500 + index
    asked = {"tokens": length, "questions": settings["questions"], "behind": settings["shared"]["n_local"]}
    stream = episode_stream(loaded.tokenizer, number, kind="next", **asked)
    labels = {S: 0.0, S_C: 0.3, **{f"S+C, share {share:g}": share for share in settings["shares"]}}
    for label, share in labels.items():
        memory = make(S, settings["shared"], number, contiguity=share).bind(loaded.model)
        yield from _asked(loaded, memory, stream, "order", label, length, index)
        memory.unbind()


def _passkey(loaded: LoadedModel, settings: Mapping[str, Any], seed: int, length: int, index: int) -> Iterable[dict]:
    from workbench.memory.cache.full import FullCache
    from workbench.tasks.episodes import Ask, ask, passkey_stream

    stream = passkey_stream(loaded.tokenizer, (FIRST_SEED + seed) * 1_000 + index, tokens=length)
    question: Ask = stream.asks[0]
    window = loaded.model.config.get_text_config().max_position_embeddings
    for label in settings["passkey_variants"]:
        if label == FULL:
            correct, recall = _plain(loaded, FullCache().bind(loaded.model), stream, question), 1.0
        else:
            memory = make(label, settings["shared"], index).bind(loaded.model)
            memory.feed(_ids(loaded, stream.ids))
            said = ask(loaded, memory, question)
            correct, recall = said["correct"], said["fact_recall"]
            memory.unbind()
        for metric, value in (("correct", correct), ("fact recall", recall)):
            yield _line("passkey", label, length, index, metric, value, window)


def _ids(loaded: LoadedModel, ids: Sequence[int]) -> Any:
    import torch

    return torch.tensor([list(ids)], device=loaded.device)


def _plain(loaded: LoadedModel, memory: Any, stream: Any, question: Any) -> float:
    """Full context at its true positions, with the same greedy answer."""
    gold = loaded.tokenizer(question.answer, add_special_tokens=False)["input_ids"]
    prompt = loaded.tokenizer(question.prompt, add_special_tokens=False)["input_ids"]
    memory.feed(_ids(loaded, [*stream.ids, *prompt[:-1]]), chunk=512)
    said, token = [], prompt[-1]
    for _ in gold:
        logits = memory.write(_ids(loaded, [token]))[0, -1]
        token = int(logits.argmax())
        said.append(token)
    memory.unbind()
    return float(said == gold)


def _recency(loaded: LoadedModel, settings: Mapping[str, Any], seed: int, length: int, index: int) -> Iterable[dict]:
    """Which of two events of a log came first? Fetched events have no position, so a memory may not know.

    ``length``: events in the log; it is shorter than the trained window, so the plain model reads it as a whole.
    """
    from workbench.memory.cache.full import FullCache
    from workbench.tasks.episodes import ask, order_stream, read_stream

    stream = order_stream(loaded.tokenizer, (FIRST_SEED + seed) * 1_000 + 700 + index, events=length)
    plain = _plain(loaded, FullCache().bind(loaded.model), stream, stream.asks[0])
    yield _line("recency", FULL, length, index, "correct", plain)
    memory = make(S, settings["shared"], index).bind(loaded.model)
    read_stream(loaded, memory, stream)
    yield _line("recency", S, length, index, "correct", ask(loaded, memory, stream.asks[0])["correct"])
    memory.unbind()


def _prose(loaded: LoadedModel, settings: Mapping[str, Any], seed: int, length: int, index: int) -> Iterable[dict]:
    """Boundaries against the paragraphs of a real book; nothing is claimed. Without the book, and behind its end,
    there are no rows."""
    from workbench.errors import BadInput
    from workbench.tasks.episodes import boundary_scores, prose_stream, read_stream

    try:
        stream = prose_stream(loaded.tokenizer, 5 + 7 * seed + index, tokens=length)
    except (FileNotFoundError, BadInput):
        return
    memory = make(SM, settings["shared"], index).bind(loaded.model)
    read_stream(loaded, memory, stream)
    raw = [at for _, at in memory.boundaries]
    found = {S: raw, SM: [at for at, _ in memory.boundaries], **same_number(raw, memory.n_init, length, index)}
    memory.unbind()
    for label, places in found.items():
        for metric, value in boundary_scores(places, stream.boundaries, length).items():
            yield _line("prose", label, length, index, metric, value)


_PARTS = {"episodes": _episodes, "order": _order, "passkey": _passkey, "recency": _recency, "prose": _prose}
STUDIES.register("em-llm")(EMLLMStudy())
