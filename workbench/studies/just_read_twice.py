"""Just read twice (Arora et al. 2024): what the order of the input costs a recurrent model, and two ways around it.

E1, by hand: a sum of random codes has to hold the first set when it reads once, and the smaller one when it reads
twice. E2, trained: set disjointness by tiny models that differ in the attention alone (causal, with a non-causal
prefix, non-causal) at three sizes of state, Figure 2. E3, prompts: notes about strangers and a question, once and
twice, to the embedded model (full attention) and to a tiny recurrent language model of ours, which saw both forms in
training in equal parts and names it has never seen in the test. ``quick`` asks the shipped models and trains forty
steps; ``full`` trains them all, two seeds each a study seed, and races prefill on the card.

Fixed before the full run, on data seed 100 and training seeds 11 and 12: learning rate, initialisation of the
embedding, stages, sizes of state. At 6e-3, the rate of an earlier full run, the causal model never finds the search
(.15 with 80 elements, after 21,000 steps as well), at 2e-3 every mode finds it. Modes share every setting and the
number of steps, which follows from the time of the dearest variant by a rule (``_jrt_models.train_sets``). Smaller than
the card: a vocabulary of 256 instead of 512; pairs of sizes of one length a stage, every split of it, so that nothing
is padded ((4, 76) in place of (4, 128), none beyond the longest stage); four mixers, BaseConv and attention in turn.
The language models on notes are trained on the answers alone, not with the masked-language loss. The paper's own
language models (360 M and 1.3 B weights) and its data sets are not reproduced; Table 1 stands beside our notes only to
show direction.

``lm``, a scale of its own, trains JRT-RNN and Based of six blocks on the embedded models' corpus, JRT-RNN with the
paper's two losses, and tells what they make of held-out text and of questions read once and twice (``_jrt_language``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from workbench.studies import _corpus_lm, _jrt_language
from workbench.studies._jrt_claims import CLAIMS, shared_names
from workbench.studies.base import STUDIES, Progress, Scale, Study

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd


def _splits(total: int, least: int) -> list[list[int]]:
    """Pairs of sizes of one length, at most 17, the smaller set of ``least`` elements or more."""
    return [[first, total - first] for first in range(least, total - least + 1, max(1, total // 16))]


#: Pairs of sizes by stage of the training; those of a stage are of one length.
_STAGES = [_splits(8, 2), _splits(12, 2), _splits(20, 2), _splits(40, 4), _splits(80, 4)]
_TESTS = [[16, 64], [64, 16], [4, 76], [76, 4]]
_QUICK: dict[str, Any] = {
    "first_seed": 7_000,
    "hand_dims": [32, 64, 128, 256],
    "hand_sizes": [[4, 64], [64, 4], [16, 256], [256, 16]],
    "hand_draws": 12,
    "hand_trials": 50,
    "vocabulary": 256,
    "states": [[48, 8], [32, 4], [24, 3]],
    "stages": _STAGES,
    "test_sizes": _TESTS,
    "test_sequences": 100,
    "test_batch": 100,
    "lr": 6e-3,
    "warmup": 100,
    "data_seed": 0,
    "live_state": [32, 4],
    "live_steps": 40,
    "live_batch": 32,
    "live_sequences": 400,
    "facts": 8,
    "items": 200,
    "embedded_items": 40,
    "embedded_facts": 12,
}
_FULL: dict[str, Any] = {
    **_QUICK,
    "test_sequences": 1_000,
    "test_batch": 250,
    "sequences": 6_000,
    "batch": 128,
    "lr": 2e-3,
    "steps": 12_000,
    "stage_steps": [1_500, 3_500, 6_000, 8_500],
    "timed_steps": 15,
    "train_s": 300,
    "timed_for": 9,
    "train_seeds": [0, 1],
    "notes": 40_000,
    "notes_state": [64, 8],
    "notes_batch": 64,
    "notes_lr": 2e-3,
    "notes_steps": 3_000,
    "notes_short_steps": 1_800,
    "embedded_items": 200,
    "loss_every": 50,
    "prefill_lengths": [1024, 2048, 4096, 8192, 16384, 32768],
    "prefill_batch": 4,
    "prefill_heads": 16,
    "prefill_f": 16,
    "prefill_d": 64,
    "prefill_launches": 12,
    "prefill_s": 1.0,
    "prefill_in_all_s": 12,
    "deadline_s": 430,
    "after_sets_s": 90,
    "after_notes_s": 22,
}

Row = dict[str, Any]
COLUMNS = ["experiment", "item", "first", "second", "x", "unit", "metric", "value", "n"]


class JustReadTwiceStudy(Study):
    slug = "just-read-twice"
    title = "Just read twice: closing the recall gap for recurrent language models"
    scales = {
        "quick": Scale("quick", _QUICK, seconds=25),
        "full": Scale("full", _FULL, 420, ("cuda",)),
        "lm": Scale("lm", _jrt_language.SETTINGS, 170, ("cuda", "data:books")),
    }
    claims = CLAIMS

    def run(self, scale: Scale, seed: int, progress: Progress) -> pd.DataFrame:
        """Tidy rows: experiment, item, the sizes of both sets, x (dimension, bytes, repeats, tokens), unit, metric."""
        import pandas as pd

        settings = scale.settings
        if scale.name == "lm":
            return _jrt_language.rows(settings, seed, progress)
        rows = list((_full if scale.name == "full" else _quick)(settings, seed, progress))
        return pd.DataFrame(rows).reindex(columns=COLUMNS)

    def figure(
        self, live: pd.DataFrame | None, reported: pd.DataFrame | None, recorded: pd.DataFrame | None
    ) -> alt.Chart:
        from workbench.views.just_read_twice import paper_figure

        made = _corpus_lm.shown(self.slug, live, recorded, part="experiment")
        return paper_figure(live, reported, recorded, None if made is None else shared_names(made))


def _quick(settings: Mapping[str, Any], seed: int, progress: Progress) -> Iterator[Row]:
    from workbench.studies import _jrt_models as models
    from workbench.studies import _jrt_parts as parts

    device = settings["device"]
    yield from parts.by_hand(settings, seed)
    yield from parts.sets(settings, seed, progress(parts.shipped_sets(), "sets"), device)
    yield from parts.live_training(settings, seed)
    held = parts.shipped("notes-")
    ours = [(mode, "shipped", held[name]) for mode, name in models.NOTES.items() if name in held]
    yield from parts.prompts(settings, seed, ours, device, progress)
    yield from parts.states(settings)


def _full(settings: Mapping[str, Any], seed: int, progress: Progress) -> Iterator[Row]:
    """Prefill while the card is free, then what the claims need; a part that fails or no longer fits says so.

    Models of study seed 0 ship; those of other seeds only widen the record.
    """
    from workbench.studies import _attention_race as racing
    from workbench.studies import _jrt_gpu as gpu
    from workbench.studies import _jrt_models as models
    from workbench.studies import _jrt_parts as parts

    settings = {**settings, "train_seeds": models.seeds_of(settings, seed)}
    clock, made = racing.Clock(settings["deadline_s"]), list[Any]()
    yield from racing.parts(
        clock,
        [
            ("prefill", 0, lambda: gpu.prefill(settings, seed, racing.Clock(settings["prefill_in_all_s"]), progress)),
            ("state", 0, lambda: parts.states(settings)),
            ("sets", 0, lambda: _trained_sets(settings, seed, made, progress, clock)),
            ("prompt", 30, lambda: _trained_notes(settings, seed, made, progress, clock)),
            ("prompt", 8, lambda: parts.prompts(settings, seed, [], settings["device"], progress)),
            ("by hand", 0, lambda: parts.by_hand(settings, seed)),
        ],
    )
    if seed == 0:
        _save(made, settings)


def _trained_sets(
    settings: Mapping[str, Any], seed: int, kept: list[Any], progress: Progress, clock: Any
) -> Iterator[Row]:
    """Models that the time cut short are told, not judged and not shipped."""
    from workbench.studies import _jrt_models as models
    from workbench.studies import _jrt_parts as parts

    device, rest = settings["device"], settings["after_sets_s"]
    for made in models.train_sets(settings, device, progress, lambda: clock.left() - rest):
        yield from parts.curves(made, settings["loss_every"])
        if made.complete:
            kept.append(made)
            yield from parts.sets(settings, seed, _units(made, settings), device)


def _trained_notes(
    settings: Mapping[str, Any], seed: int, kept: list[Any], progress: Progress, clock: Any
) -> Iterator[Row]:
    from workbench.studies import _jrt_models as models
    from workbench.studies import _jrt_parts as parts

    without, rest = {**settings, "embedded_items": 0}, settings["after_notes_s"]
    for made in models.train_notes(settings, settings["device"], progress, lambda: clock.left() - rest):
        yield from parts.curves(made, settings["loss_every"])
        if made.complete:
            kept.append(made)
            yield from parts.prompts(without, seed, _units(made, settings), settings["device"], progress)


def _units(made: Any, settings: Mapping[str, Any]) -> Iterable[tuple[str, str, Any]]:
    return [(made.mode, str(number), model) for number, model in zip(settings["train_seeds"], made.models)]


def _save(made: list[Any], settings: Mapping[str, Any]) -> None:
    """The first seed of every variant, in one file beside the recorded rows."""
    from workbench.studies import _jrt_models as models
    from workbench.training.tiny import bundle_target, save_bundle

    if made:
        recipe = {"settings": dict(settings), "records": {one.name: one.record for one in made}}
        save_bundle(bundle_target(JustReadTwiceStudy.slug), models.first_of_each(made), recipe)


STUDIES.register("just-read-twice")(JustReadTwiceStudy())
