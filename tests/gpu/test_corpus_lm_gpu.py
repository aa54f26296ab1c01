"""Language models of Titans and MoM on the card: their steps as CUDA graphs give the losses of the CPU."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.studies import STUDIES
from workbench.studies import _corpus_lm as lm
from workbench.studies import _mom_models as mom
from workbench.studies import _titans_trained as titans

SMALL = {
    "tokens": 192, "windows": 64, "books": False, "test_windows": 8, "groups": 4, "gaps": [0], "questions": 16,
    "dim": 64, "heads": 2, "blocks": 2, "batch": 4, "steps": 8, "least_steps": 8, "seeds": 2, "warmup": 2,
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
    np.testing.assert_allclose(card.losses["loss"], here.losses["loss"], rtol=2e-3)
    rows = list(lm.read(variant, card.models, {**settings, "device": "cuda"}, data))
    assert all(np.isfinite(row["value"]) for row in rows)
