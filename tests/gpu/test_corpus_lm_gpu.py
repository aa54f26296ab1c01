"""Language models of the studies of sequence layers on the card: their steps as CUDA graphs give the CPU's losses."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.studies import STUDIES
from workbench.studies import _corpus_lm as lm
from workbench.studies import _jrt_language as jrt
from workbench.studies import _mom_models as mom
from workbench.studies import _titans_trained as titans

#: A peak rate at which a run's losses follow from its data. With the studies' 2e-3 those of MAG do not: on one CPU, in
#: float64, weights that are moved by 6e-10 of themselves separate its losses by 3e-12, 6e-10, 2e-8, 1e-6, 2e-5, 6e-4,
#: 1e-3 from step to step, and half a rounding of float32 separates them by 1.5e-3 as two machines do. With 1e-4 half a
#: dozen roundings change the losses of every model here by 1e-6 at most, and a tenth of that rate by 4e-5 to 7e-3.
RATE, CLOSE = 1e-4, 5e-5
SMALL = {
    "tokens": 192, "windows": 64, "books": False, "test_windows": 8, "groups": 4, "gaps": [0], "questions": 16,
    "dim": 64, "heads": 2, "blocks": 2, "batch": 4, "steps": 8, "least_steps": 8, "seeds": 2, "warmup": 2, "lr": RATE,
}  # fmt: skip
MIXERS = {"titans": titans.language_models, "mom": mom.language_models}
CASES = [("titans", name) for name in titans.LANGUAGE] + [("mom", name) for name in mom.LANGUAGE]


@pytest.fixture(scope="module")
def data():
    return lm.corpus({**STUDIES.get("titans").scale("lm").settings, **SMALL, "device": "cpu"}, 0)


@pytest.mark.parametrize(("slug", "variant"), CASES)
def test_a_graph_of_steps_trains_as_the_cpu_does(slug, variant, data):
    settings = {**STUDIES.get(slug).scale("lm").settings, **SMALL}
    mixer = MIXERS[slug](settings)[variant]
    plan = lm.Plan(8, 2, False)
    card = lm.trained(mixer, {**settings, "device": "cuda"}, data, plan, 0)
    assert "graph" in card.how.split(", "), card.how
    here = lm.trained(mixer, {**settings, "device": "cpu"}, data, plan, 0)
    np.testing.assert_allclose(card.losses["loss"], here.losses["loss"], rtol=CLOSE)
    rows = list(lm.read(variant, card.models, {**settings, "device": "cuda"}, data))
    assert all(np.isfinite(row["value"]) for row in rows)


@pytest.mark.parametrize("variant", [jrt.JRT, jrt.BASED])
def test_both_losses_of_just_read_twice_are_the_same_on_the_card(variant):
    """Masked places come with the windows, so a graph of steps learns what the CPU learns."""
    small = {**SMALL, "tokens": 256, "prefix": 128, "positions": [192], "gap": 0, "gaps": [], "blocks": 1, "key_dim": 8}
    settings = {**STUDIES.get("just-read-twice").scale("lm").settings, **small}
    data = jrt.corpus({**settings, "device": "cpu"}, 0)
    mixer = jrt.models(settings, data.vocabulary - 1)[variant]
    for plan in (lm.Plan(8, 2, False), lm.Plan(8, 2, None)):
        card = lm.trained(mixer, {**settings, "device": "cuda"}, data, plan, 0)
        assert "graph" in card.how.split(", "), card.how
        here = lm.trained(mixer, {**settings, "device": "cpu"}, data, lm.Plan(8, 2, False), 0)
        np.testing.assert_allclose(card.losses["loss"], here.losses["loss"], rtol=CLOSE)
    rows = list(jrt.read(variant, card.models, {**settings, "device": "cuda"}, data))
    assert all(np.isfinite(row["value"]) for row in rows)
