"""What no sequence memory may take: tokens, states and sizes that do not fit are named, and the state stays as it was.

Over every registered layer and all its example settings, as ``test_layers``.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.memory.layers.layer_kit import CASES, DIM, TOKENS, Case, copied, same, tensors, tokens
from workbench.errors import BadInput, MemoryError_
from workbench.memory.base import MEMORIES
from workbench.memory.layers.base import build_layer, layer_names
from workbench.models.mixer import MixerConfig

every_layer = pytest.mark.parametrize("case", CASES, ids=str)


@every_layer
def test_bad_tokens_are_named(case: Case) -> None:
    layer = case.layer()
    for bad in (tokens()[..., :-1], tokens()[0], tokens()[:, :0], "text"):
        with pytest.raises(BadInput, match="x must be a tensor"):
            layer(bad)
    with pytest.raises(BadInput, match=r"torch\.float32"):
        layer(tokens().float())
    for bad in (torch.ones(2, TOKENS), torch.ones(2, TOKENS - 1, dtype=torch.bool), [True]):
        with pytest.raises(BadInput, match="keep must be bool"):
            layer(tokens(), keep=bad)
    with pytest.raises(BadInput, match="one stream"):
        layer.write(tokens(2))


@every_layer
def test_a_state_of_another_batch_dtype_device_or_layer_is_refused(case: Case) -> None:
    layer = case.layer()
    _, state = layer(tokens(2))
    before = copied(state)
    with pytest.raises(BadInput, match="must be"):
        layer(tokens(3), state)
    with pytest.raises(BadInput, match=r"torch\.float32"):
        layer(tokens(2), {k: v.float() if isinstance(v, Tensor) else v for k, v in state.items()})
    with pytest.raises(BadInput, match="meta"):
        layer(tokens(2), {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in state.items()})
    with pytest.raises(BadInput, match="holds"):
        layer(tokens(2), {**state, "stranger": torch.zeros(2)})
    with pytest.raises(BadInput, match="what an earlier call gave back"):
        layer(tokens(2), next(tensors(state))[1])
    some = next(tensors(state))[0]
    with pytest.raises(BadInput, match=f"{some}.* must be .*, got None"):
        layer(tokens(2), {**state, some: None})
    assert same(state, before)


@every_layer
def test_counts_that_no_stream_has_are_refused(case: Case) -> None:
    layer = case.layer()
    _, state = layer(tokens(2))
    before = copied(state)
    for name, slot in layer.layout(2).items():
        if slot.shape:
            continue
        for bad in (True, 1.5, "x", None, torch.ones(2), torch.ones(3, dtype=torch.int64)):
            with pytest.raises(BadInput, match=f"{name}.* must be a whole number"):
                layer(tokens(2), {**state, name: bad})
        beyond = [] if slot.most is None else [slot.most + 1, torch.tensor([0, slot.most + 1])]
        for bad in (-1, torch.tensor([0, -1]), *beyond):
            with pytest.raises(BadInput, match=f"{name}.* must be .*got {int(torch.as_tensor(bad).view(-1)[-1])}"):
                layer(tokens(2), {**state, name: bad})
    assert same(state, before)


@every_layer
def test_numpys_whole_numbers_are_taken_and_become_plain_ones(case: Case) -> None:
    theirs = {name: np.int64(value) if type(value) is int else value for name, value in case.settings.items()}
    layer = build_layer(case.slug, np.int64(DIM), **theirs)  # type: ignore[arg-type]
    assert json.loads(json.dumps(layer.settings())) == json.loads(json.dumps(case.layer().settings()))
    config = MixerConfig(np.int64(19), DIM, [{"mixer": case.slug, **theirs}])
    assert json.loads(config.to_json_string())["mixers"] == [{"mixer": case.slug, **case.settings}]


@pytest.mark.parametrize("slug", layer_names())
def test_sizes_that_do_not_fit_are_refused(slug: str) -> None:
    with pytest.raises(BadInput, match="dim"):
        build_layer(slug, 0)
    with pytest.raises(BadInput, match="cannot be built with"):
        build_layer(slug, DIM, no_such_setting=1)
    if "heads" in MEMORIES.get(slug).examples[0]:
        for heads in (3, 0, 1.5):
            with pytest.raises(BadInput, match="heads"):
                build_layer(slug, DIM, heads=heads)


def test_a_memory_of_another_kind_is_no_layer() -> None:
    with pytest.raises(MemoryError_, match="linear-attention"):
        build_layer("sirllm", DIM)
