"""MoM (Du et al. 2025): does it help a linear memory to be several, of which each token gets a few?

By hand, without training: facts under shared keys, where separation is all that differs. Trained: multi-query
associative recall (MQAR) by small models whose state is what runs out; one memory, one memory expanded to the floats
that a token of the mixture writes, one of the floats that the mixture holds (stricter than the paper; reported, not
judged), mixtures of several sizes, without the shared memory, without the balance loss. ``full`` trains them, five
seeds each, and writes one seed's models beside the record; ``quick`` asks those on fresh sequences and trains one for
60 steps. One decoding step is timed at several lengths.

The task is smaller than the card's (vocabulary 64 instead of 512, d = 64, heads of 8 x 8, up to 16 pairs in 64
tokens), so that it can be learned in the minutes that were given; sequences grow from 16 to 64 tokens while training.
The short convolution runs over the text, not over each memory's own tokens as in the paper's code, and the output
gate of every variant begins open. Vocabulary, initial embedding and gate, and stages were tried on seed 21, with one
memory and the mixture, the learning rate and the number of steps on seeds 60 to 64 (at 5e-3 some seeds of some rules
fall behind, at 2e-3 none does), before any reported seed. The balance loss is taken layer by layer. The
paper's language models of 380M and 1.3B parameters are not trained here: their tables stand beside ours for the order
of the models, not for the numbers.

``lm``, a scale of its own, trains language models of four blocks on the embedded models' corpus: one memory, the
mixture, and one memory expanded to the state that the mixture activates (``_corpus_lm``).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from workbench.studies import _corpus_lm as language
from workbench.studies._mom_claims import CLAIMS
from workbench.studies.base import STUDIES, Progress, Scale, Study

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

_SHAPE: dict[str, Any] = {
    "vocabulary": 64, "dim": 64, "conv_scope": "sequence", "chunk": None, "impl": "chunked",
    "stages": [[0.4, 16, [2, 4]], [0.2, 32, [4, 8]], [0.4, 64, [4, 8, 16]]],
    "data_seed": 0, "lr": 5e-3, "warmup": 100, "batch": 64,
}  # fmt: skip
_QUICK: dict[str, Any] = {
    **_SHAPE,
    "train": False,
    "hand_facts": [8, 16, 32],
    "hand_seeds": 8,
    "tests": [[4, 64], [8, 64], [16, 64], [24, 96]],
    "longest": 96,
    "routing_test": [16, 64],
    "test_sequences": 64,
    "groups": 8,
    "live": {"steps": 60, "batch": 16, "stages": [[1.0, 16, [2, 4]]], "sequences": 2_000},
    "decode_dim": 64,
    "contexts": [128, 256, 512, 1024, 2048, 4096],
    "decode_steps": 15,
}
_FULL: dict[str, Any] = {
    **_QUICK,
    "train": True,
    "seeds": 5,
    "lr": 2e-3,
    "steps": 2000,
    "least_steps": 1200,
    "sequences": 65_536,
    "train_seconds": 260.0,
    "last_start_seconds": 320.0,
    "deadline_seconds": 360.0,
    "hand_seeds": 32,
    "tests": [[4, 64], [8, 64], [16, 64], [24, 96], [16, 128]],
    "test_sequences": 256,
    "decode_dim": 256,
    "decode_steps": 30,
}
_LM: dict[str, Any] = {
    **language.SETTINGS, "conv_scope": "sequence", "chunk": None, "impl": "chunked", "dearest": "GDN MoM",
    "train_seconds": 100.0, "deadline_seconds": 140.0,
}  # fmt: skip
Lines = Iterator[dict[str, Any]]


class MomStudy(Study):
    slug, title = "mom", "MoM: Linear Sequence Modeling with Mixture-of-Memories"
    scales = {
        "quick": Scale("quick", _QUICK, seconds=25),
        "full": Scale("full", _FULL, 280, ("cuda",)),
        "lm": Scale("lm", _LM, 150, ("cuda", "data:books")),
    }
    claims = CLAIMS

    def run(self, scale: Scale, seed: int, progress: Progress) -> pd.DataFrame:
        import pandas as pd

        run = _language if scale.name == "lm" else _recalling
        lines = list(run(scale.settings, seed, progress))
        return pd.DataFrame(lines)[["part", "variant", "x", "model", "unit", "metric", "value"]]

    def figure(
        self, live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None
    ) -> alt.Chart:
        from workbench.views.mom import paper_figure

        return paper_figure(live, reported, recorded, language.shown(self.slug, live, recorded))


def _language(settings: Mapping[str, Any], seed: int, progress: Progress) -> Lines:
    from workbench.studies import _mom_models as tiny

    return language.lines(tiny.language_models(settings), settings, seed, progress)


def _recalling(settings: Mapping[str, Any], seed: int, progress: Progress) -> Lines:
    from workbench.studies import _mom_parts as parts

    yield from parts.by_hand(settings, seed)
    yield from parts.decoding(settings, seed)
    yield from (_trained if settings["train"] else _loaded)(settings, seed, progress)


def shipped() -> dict[str, Any]:
    """The trained models that ship, one a variant; empty when there are none."""
    from workbench.studies._mom_models import VARIANTS
    from workbench.training import tiny

    return tiny.shipped("mom", VARIANTS)


def _loaded(settings: Mapping[str, Any], seed: int, progress: Progress) -> Lines:
    """The shipped models answer on fresh sequences; one is trained for a moment."""
    from workbench.studies import _mom_parts as parts

    models = shipped()
    if not models:
        progress.say("no trained models ship with this copy: run the full scale on a GPU to make them")
    for variant, model in progress(list(models.items()), "trained models"):
        yield from _looked_at(variant, [model], settings, seed)
    yield from parts.live(settings, seed)


def _trained(settings: Mapping[str, Any], seed: int, progress: Progress) -> Lines:
    """Every variant in turn, all with the same number of steps; past the deadline the rest is left out and named."""
    from workbench.studies import _mom_models as tiny
    from workbench.studies import _mom_parts as parts
    from workbench.studies._trainings import made_by
    from workbench.training.tiny import ship

    begun, seeds = time.monotonic(), [1_000 * (seed + 1) + i for i in range(settings["seeds"])]
    plan = tiny.planned(settings, seeds, settings["device"])
    yield parts.line("training", "all", 0, "steps", plan.steps)
    first: dict[str, Any] = {}
    for variant in progress(list(tiny.VARIANTS), "variants"):
        made = _made(variant, settings, plan, seeds, begun, progress)
        if made is None:
            continue
        first[variant] = made.models[0]
        yield parts.line("training", variant, plan.steps, "seconds", made.record["seconds"])
        yield from parts.learned(variant, made.losses)
        yield from _looked_at(variant, made.models, settings, seed)
        progress.say(f"{variant}: {made.record['seconds']:.0f} s, {made.how}")
        if seed == 0:
            ship("mom", first, made_by(made, settings))


def _made(
    variant: str, settings: Mapping[str, Any], plan: Any, seeds: list[int], begun: float, progress: Progress
) -> Any:
    """The trained models of one variant; none is begun after ``last_start_seconds``."""
    from workbench.studies import _mom_models as tiny
    from workbench.studies._trainings import had

    passed = time.monotonic() - begun
    options = {"label": variant, "diverged": "keep", "budget_seconds": settings["deadline_seconds"] - passed}
    train = partial(tiny.trained, variant, settings, plan, seeds, settings["device"], **options)
    return had(variant, train, settings["last_start_seconds"] - passed, progress)


def _looked_at(variant: str, models: list[Any], settings: Mapping[str, Any], seed: int) -> Lines:
    from workbench.studies import _mom_parts as parts

    yield from parts.asked(variant, models, settings, seed)
    yield from parts.routed(variant, models, settings, seed)
    yield from parts.sizes(variant, models[0])


STUDIES.register("mom")(MomStudy())
