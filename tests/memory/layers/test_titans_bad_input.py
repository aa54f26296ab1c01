"""Titans' bad input: settings, states and masks that cannot be; the shared kit tests tokens and padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from workbench.errors import BadInput
from workbench.memory.layers.base import build_layer

NAMES = ("titans", "titans-mac", "titans-mag", "titans-mal")
HEBBIAN: dict[str, Any] = {"depth": 1, "objective": "inner product", "momentum": False}

BAD = [
    ("titans", {"chunk": 0}, "chunk must be"),
    ("titans", {"depth": 0}, "depth must be"),
    ("titans", {"heads": 3}, "heads=3 does not divide"),
    ("titans", {"theta_max": -0.1}, "theta_max must be"),
    ("titans", {"theta_max": float("nan")}, "theta_max must be"),
    ("titans", {"read": "late"}, "read must be one of"),
    ("titans", {"decay_to": "mean"}, "decay_to must be one of"),
    ("titans", {"objective": "cosine"}, "objective must be one of"),
    ("titans", {"objective": "inner product"}, "it needs depth=1"),
    ("titans", {**HEBBIAN, "decay_to": "init"}, "it needs .*decay_to='zero'"),
    ("titans", {"momentum": "no"}, "momentum must be True or False"),
    ("titans-mac", {"decay": None}, "decay must be True or False"),
    ("titans-mag", {"unit_keys": 1}, "unit_keys must be True or False"),
    ("titans", {"theta_max": True}, "theta_max must be"),
    ("titans", {"clip": True}, "clip must be"),
    ("titans", {"persistent": -1}, "persistent must be"),
    ("titans", {"expansion": 0}, "expansion must be"),
    ("titans", {"clip": 0.0}, "clip must be"),
    ("titans", {"impl": "cuda"}, "impl must be one of"),
    ("titans", {"size": 3}, "no argument 'size'"),
    ("titans-mac", {"segment": 0}, "segment must be"),
    ("titans-mac", {"gate": "max"}, "gate must be one of"),
    ("titans-mag", {"window": 0}, "window must be"),
    ("titans-mag", {"gate": "max"}, "gate must be one of"),
    ("titans-mal", {"window": 0}, "window must be"),
]


@pytest.mark.parametrize(("name", "settings", "said"), BAD)
def test_settings_outside_their_range(name, settings, said):
    with pytest.raises(BadInput, match=said):
        build_layer(name, 8, **{"heads": 2, **settings})


#: What the attention of each counts: tokens of the segment, or of the window.
HELD = {"titans-mac": "place", "titans-mag": "held", "titans-mal": "held"}


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_states_that_do_not_fit_are_refused_and_left_alone(name):
    layer = build_layer(name, 8, heads=2, chunk=4)
    _, state = layer(torch.randn(2, 3, 8))
    before = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in state.items()}
    with pytest.raises(BadInput, match="state"):
        layer(torch.randn(3, 2, 8), state)
    with pytest.raises(BadInput, match="state"):
        layer(torch.randn(2, 2, 8), {**state, "weights0": state["weights0"].double()})
    with pytest.raises(BadInput, match="state"):
        layer(torch.randn(2, 2, 8), {key: value for key, value in state.items() if key != "momentum1"})
    with pytest.raises(BadInput, match=r"state\['filled'\] must be from 0 to 3, got 6"):  # 4 persistent tokens and 2
        layer(torch.randn(2, 2, 8), build_layer(name, 8, heads=2, chunk=8)(torch.randn(2, 2, 8))[1])
    if name in HELD:
        with pytest.raises(BadInput, match=rf"state\['{HELD[name]}'\] must be from 0 to 63, got 64"):
            layer(torch.randn(2, 2, 8), {**state, HELD[name]: 64})
    for held in ("text", {**state, "weights0": None}, state):  # the last of two rows
        with pytest.raises(BadInput, match="state"):
            layer.hold(held, 3)
    assert layer.contents()["tokens"].eq(0).all()
    for key, value in before.items():
        assert torch.equal(value, state[key]) if isinstance(value, torch.Tensor) else value == state[key]


def test_masks_of_tokens_that_cannot_be_are_refused():
    mac, mag = build_layer("titans-mac", 8, heads=2, segment=4), build_layer("titans-mag", 8, heads=2)
    for layer in (mac, mag):
        for tokens in (0, -1, 1.5):
            with pytest.raises(BadInput, match="tokens must be a whole number of at least 1"):
                layer.mask(tokens)
    with pytest.raises(BadInput, match="at most segment=4, got 5"):
        mac.mask(5)
