"""MoM (Du et al. 2025): does it help a linear memory to be several, of which each token gets a few?

By hand, without training: facts under shared keys, where separation is all that differs. Trained: multi-query
associative recall (MQAR) by small models whose state is what runs out; one memory, one memory expanded to the floats
that a token of the mixture writes, one of the floats that the mixture holds (stricter than the paper; reported, not
judged), mixtures of several sizes, without the shared memory, without the balance loss. ``full`` trains them, three
seeds each, and writes one seed's models beside the record; ``quick`` asks those on fresh sequences and trains one for
60 steps. One decoding step is timed at several lengths.

Vocabulary 512 and sequences of 160 tokens as in the card; 48 pairs need 192 tokens. Settings (learning rate, steps,
batch) were tried on seeds 11 to 13 and data seed 100 only. The balance loss is taken layer by layer. The paper's
language models of 380M and 1.3B parameters are not trained here: their tables stand beside ours for the order of the
models, not for the numbers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from workbench.studies._mom_claims import CLAIMS
from workbench.studies.base import STUDIES, Progress, Scale, Study

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

_SHAPE: dict[str, Any] = {
    "vocabulary": 512, "dim": 128, "length": 160, "conv_scope": "subsequence", "chunk": None,
    "train_pairs": [4, 8, 16, 32], "curriculum": 0.2, "data_seed": 0, "lr": 1e-2, "batch": 128, "stack": None,
}  # fmt: skip
_QUICK: dict[str, Any] = {
    **_SHAPE,
    "train": False,
    "hand_facts": [8, 16, 32],
    "hand_seeds": 8,
    "tests": [[8, 160], [16, 160], [32, 160]],
    "longest": 192,
    "routing_test": [16, 160],
    "test_sequences": 32,
    "groups": 8,
    "live": {"steps": 60, "batch": 8, "train_pairs": [2], "length": 16, "vocabulary": 32, "sequences": 2_000},
    "decode_dim": 64,
    "contexts": [128, 256, 512, 1024, 2048, 4096],
    "decode_steps": 15,
}
_FULL: dict[str, Any] = {
    **_QUICK,
    "train": True,
    "seeds": 3,
    "steps": 1500,
    "sequences": 65_536,
    "train_seconds": 90.0,
    "deadline_seconds": 190.0,
    "hand_seeds": 32,
    "tests": [[8, 160], [16, 160], [32, 160], [48, 192], [32, 320]],
    "test_sequences": 256,
    "decode_dim": 256,
    "decode_steps": 30,
}
Lines = Iterator[dict[str, Any]]


class MomStudy(Study):
    slug, title = "mom", "MoM: Linear Sequence Modeling with Mixture-of-Memories"
    scales = {"quick": Scale("quick", _QUICK, seconds=25), "full": Scale("full", _FULL, 150, ("cuda",))}
    claims = CLAIMS

    def run(self, scale: Scale, seed: int, progress: Progress) -> pd.DataFrame:
        import pandas as pd

        from workbench.studies import _mom_parts as parts

        settings = scale.settings
        lines = [*parts.by_hand(settings, seed), *parts.decoding(settings, seed)]
        lines += (_trained if settings["train"] else _loaded)(settings, seed, progress)
        return pd.DataFrame(lines)[["part", "variant", "x", "model", "unit", "metric", "value"]]

    def figure(
        self, live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None
    ) -> alt.Chart:
        from workbench.views.mom import paper_figure

        return paper_figure(live, reported, recorded)


def shipped() -> dict[str, Any]:
    """The trained models that ship, one a variant; empty when there are none."""
    from workbench.studies._mom_models import VARIANTS
    from workbench.training.tiny import bundle_path, load_bundle

    path = bundle_path("mom")
    return {name: model for name, model in load_bundle(path).items() if name in VARIANTS} if path.is_file() else {}


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

    begun, seeds = time.monotonic(), [1_000 * (seed + 1) + i for i in range(settings["seeds"])]
    steps = tiny.affordable(settings, seeds, settings["device"])
    yield parts.line("training", "all", 0, "steps", steps)
    first: dict[str, Any] = {}
    for variant in progress(list(tiny.VARIANTS), "variants"):
        if time.monotonic() - begun > settings["deadline_seconds"]:
            progress.say(f"{variant}: left out, the time is up")
            continue
        made = tiny.trained(variant, settings, steps, seeds, settings["device"], diverged="keep", label=variant)
        first[variant] = made.models[0]
        yield parts.line("training", variant, steps, "seconds", made.record["seconds"])
        yield from parts.learned(variant, made.losses)
        yield from _looked_at(variant, made.models, settings, seed)
        progress.say(f"{variant}: {made.record['seconds']:.0f} s, {made.how}")
        if seed == 0:
            tiny.ship(first, tiny.recipe(settings, steps))


def _looked_at(variant: str, models: list[Any], settings: Mapping[str, Any], seed: int) -> Lines:
    from workbench.studies import _mom_parts as parts

    yield from parts.asked(variant, models, settings, seed)
    yield from parts.routed(variant, models, settings, seed)
    yield from parts.sizes(variant, models[0])


STUDIES.register("mom")(MomStudy())
