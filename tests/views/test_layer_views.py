"""Pictures of sequence memories on real states: drawn, saved without a network, bad frames named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from workbench import views
from workbench.errors import BadInput
from workbench.models.mixer import MixerCache, MixerConfig, MixerLM
from workbench.views._check import MAX_ROWS
from workbench.views.layers import named


@pytest.fixture(scope="module")
def cache() -> MixerCache:
    torch.manual_seed(0)
    mixers = [{"mixer": "gated-delta-net", "heads": 2}, {"mixer": "mom", "heads": 2}]
    cache = MixerLM(MixerConfig(20, 8, mixers)).eval().new_cache(log=True)
    cache.write(torch.arange(1, 13)[None])
    return cache


def points() -> pd.DataFrame:
    lines = [(name, dim) for name in ("mom", "sliding-window-attention (window=8)") for dim in (8, 16)]
    frame = pd.DataFrame(lines, columns=["line", "dim"])
    frame = frame.assign(bytes=[160, 576, 500, 900], accuracy=[0.1, 0.5, 0.1, 0.2], chance=1 / 32)
    return frame.assign(low=np.nan, high=np.nan)


def test_every_matrix_has_a_name_of_its_own(cache: MixerCache) -> None:
    names = named(cache.contents())
    assert len(names) == len(set(names)) == len(cache.contents())
    assert {"layer 0 · memory · head 1", "layer 1 · memory shared · head 0"} <= set(names)
    alone = cache.model.blocks[0].mixer.describe(cache.read(0))
    assert named(alone) == ["conv", "memory · head 0", "memory · head 1"]


def test_views_draw_and_save(cache: MixerCache, tmp_path) -> None:
    memories = cache.read(1)["memory"][0, :, 0]
    charts = {
        "states": views.state_table(cache.contents()),
        "alike": views.state_similarity(memories, [str(i) for i in range(len(memories))]),
        "writes": views.token_scalars(cache.scalars(), list("abcdefghijkl")),
        "recall": views.recall_by_state(points()),
    }
    for name, chart in charts.items():
        chart.save(tmp_path / f"{name}.svg")
        assert (tmp_path / f"{name}.svg").stat().st_size > 2000, name


def test_similarity_is_the_cosine() -> None:
    states = np.array([[[1.0, 0]], [[2.0, 0]], [[0, 3.0]], [[-1.0, 0]]])
    values = views.state_similarity(states, list("abcd")).data["value"].to_numpy().reshape(4, 4)
    np.testing.assert_allclose(values[0], [1, 1, 0, -1])


def test_a_long_stream_is_drawn_by_its_end() -> None:
    rows = [{"position": at, "layer": layer, "name": "decay", "value": 0.5} for at in range(4000) for layer in (0, 1)]
    drawn = views.token_scalars(pd.DataFrame(rows)).data
    assert len(drawn) == MAX_ROWS
    assert drawn["position"].min() == 1500
    assert drawn["position"].max() == 3999


def test_bad_frames_are_named(cache: MixerCache) -> None:
    with pytest.raises(BadInput, match="effective_rank"):
        views.state_table(cache.contents().drop(columns="effective_rank"))
    with pytest.raises(BadInput, match="no rows"):
        views.token_scalars(cache.scalars().head(0))
    with pytest.raises(BadInput, match="names"):
        views.state_similarity(np.zeros((3, 2)), ["a"])
    with pytest.raises(BadInput, match="pairs"):
        views.state_similarity(np.zeros((80, 2)), ["a"] * 80)
    with pytest.raises(BadInput, match="chance"):
        views.recall_by_state(points().drop(columns="chance"))
