"""EM-LLM one token at a time: the room that decoding goes on in changes nothing but the time a step takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import FAMILIES, tokens
from torch.utils._python_dispatch import TorchDispatchMode

from tests.batched_products import Products
from workbench.memory.cache._em_decode import AHEAD, DecodeRoom
from workbench.memory.cache._em_step import DecodesInRoom
from workbench.memory.cache.em_llm import EMLLM

SMALL = {"n_local": 16, "n_mem": 24, "n_init": 2, "chunk": 8, "min_block": 3, "max_block": 10, "repr_topk": 2}
ROOMY = {"llama", "llama-yarn", "qwen3", "gpt-neox", "phi3", "olmo2"}
SETTINGS = [
    {}, {"contiguity": 0.3}, {"retrieval": "none"}, {"retrieval": "random"}, {"refine": "none"}, {"n_mem": 0},
    {"n_mem": 0, "max_cached": 3},
    {"contiguity": 0.3, "max_cached": 3}, {"segmentation": "fixed"}, {"n_local": 300},
]  # fmt: skip

#: Who chooses the events of a token in a room: the host's loops, or the tensors that a card is given.
CHOOSERS = pytest.mark.parametrize("chooses_on", [frozenset(), frozenset({"cpu"})], ids=["host", "device"])


def small(**changed) -> EMLLM:
    return EMLLM(**{**SMALL, "tau": 16, "gamma": 0.5, "contiguity": 0.3, **changed})


def decoded(memory: EMLLM, ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([memory.write(ids[:, i : i + 1]) for i in range(ids.shape[1])], dim=1)


def story(model, settings, ids) -> tuple[EMLLM, torch.Tensor]:
    """A stream that is read, decoded, read on in the middle of an event, and decoded again."""
    memory = small(**settings).bind(model)
    memory.feed(ids[:, :72])
    first = decoded(memory, ids[:, 72:112])
    middle = memory.write(ids[:, 112:117])
    logits = torch.cat([first, middle, decoded(memory, ids[:, 117:150])], dim=1)
    memory.unbind()
    return memory, logits


def without_numbers(log) -> list[tuple]:
    """All that a log says save what was measured."""
    return [
        (event.step, event.kind, event.items, event.why, {k: v for k, v in event.detail.items() if "mean" not in k})
        for event in log
    ]


def agree(model, settings, ids, monkeypatch, chooses_on=frozenset()) -> EMLLM:
    monkeypatch.setattr(DecodesInRoom, "chooses_on", chooses_on)
    roomy, logits = story(model, settings, ids)
    with monkeypatch.context() as patch:
        patch.setattr(DecodesInRoom, "_laid_out", lambda self: False)
        plain, expected = story(model, settings, ids)
    assert plain._roomy is None
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()
    assert without_numbers(roomy.events()) == without_numbers(plain.events())
    mine, other = roomy.contents(), plain.contents()
    numbers = ["last_score", "peak_surprise", "representative_scores"]
    assert mine.drop(columns=numbers).equals(other.drop(columns=numbers))
    assert mine["last_score"].fillna(0).to_numpy() == pytest.approx(other["last_score"].fillna(0).to_numpy(), abs=1e-4)
    for layer in range(len(roomy.layers)):
        torch.testing.assert_close(roomy._mass[layer], plain._mass[layer], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(roomy.layers[layer].keys, plain.layers[layer].keys, atol=1e-5, rtol=1e-5)
    return roomy


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_room_changes_nothing_in_any_family(family, name, monkeypatch):
    memory = agree(family(name), {}, tokens(1, 150, seed=3), monkeypatch)
    assert (memory._roomy is not None) == (name in ROOMY)


@CHOOSERS
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_room_changes_nothing_under_any_setting(llama, settings, chooses_on, monkeypatch):
    memory = agree(llama, settings, tokens(1, 150, seed=4), monkeypatch, chooses_on)
    asks_host = settings.get("retrieval") in {"none", "random"} or "max_cached" in settings or "n_local" in settings
    assert (memory._roomy.choice is not None) == (bool(chooses_on) and not asks_host)


def test_a_room_that_is_full_is_laid_out_anew(llama):
    ids, settings = tokens(1, 12 + AHEAD + 8, seed=5), {"n_local": 200}  # nothing leaves: only the room ends
    memory = small(**settings).bind(llama)
    memory.feed(ids[:, :12])
    assert memory._roomy is None
    rooms, logits = [], []
    for i in range(12, ids.shape[1]):
        logits.append(memory.write(ids[:, i : i + 1]))
        rooms.append(memory._roomy)
    memory.unbind()
    assert [room is rooms[0] for room in rooms] == [True] * AHEAD + [False] * 8
    assert len(set(rooms)) == 2
    with torch.no_grad():
        plain = llama(ids).logits[:, 12:]
    assert (torch.cat(logits, 1) - plain).abs().max() < 1e-4


@CHOOSERS
def test_a_moment_is_gone_back_to_exactly(llama, chooses_on, monkeypatch):
    monkeypatch.setattr(DecodesInRoom, "chooses_on", chooses_on)
    memory, ids = small().bind(llama), tokens(1, 150, seed=6)
    memory.feed(ids[:, :72])
    decoded(memory, ids[:, 72:90])
    moment = memory.snapshot()
    held = [layer.keys.clone() for layer in memory.layers]
    once = decoded(memory, ids[:, 90:130])
    state = str(memory.contents().to_dict("list"))
    for _ in range(2):
        memory.restore(moment)
        assert all(torch.equal(layer.keys, keys) for layer, keys in zip(memory.layers, held))
        assert torch.equal(decoded(memory, ids[:, 90:130]), once)
        assert str(memory.contents().to_dict("list")) == state
    memory.unbind()


@CHOOSERS
def test_a_token_that_dies_leaves_no_trace(llama, chooses_on, monkeypatch):
    monkeypatch.setattr(DecodesInRoom, "chooses_on", chooses_on)
    memory, ids = small().bind(llama), tokens(1, 120, seed=7)
    memory.feed(ids[:, :72])
    first = decoded(memory, ids[:, 72:80])
    table, width = memory.contents(), memory.layers[0].width
    handle = llama.model.layers[1].register_forward_hook(lambda *_: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            memory.write(ids[:, 99:100])
    handle.remove()
    then = decoded(memory, ids[:, 80:110])
    memory.reset()
    memory.feed(ids[:, :72])
    assert torch.equal(decoded(memory, ids[:, 72:80]), first)
    assert memory.layers[0].width == width
    assert memory.contents().equals(table)
    assert torch.equal(decoded(memory, ids[:, 80:110]), then)
    memory.unbind()


def test_bytes_of_a_room_are_counted_once(llama):
    memory, ids = small().bind(llama), tokens(1, 90, seed=8)
    memory.feed(ids[:, :72])
    decoded(memory, ids[:, 72:80])
    room = memory._roomy
    assert sum(layer.nbytes() for layer in memory.layers) == room.nbytes()
    assert memory.nbytes() == room.nbytes() + memory.archive.nbytes()
    memory.write(ids[:, 80:88])
    assert sum(layer.nbytes() for layer in memory.layers) < room.nbytes()
    memory.unbind()


# ---------------------------------------------------------------------- widths that a card multiplies fast
ROUNDED = {"cpu": 8}  # what a room does on a card, here


@CHOOSERS
@pytest.mark.parametrize("settings", [SETTINGS[i] for i in (0, 2, 3, 5, 7, 9)])
def test_rounded_widths_change_nothing_under_any_setting(llama, settings, chooses_on, monkeypatch):
    monkeypatch.setattr(DecodeRoom, "multiples", ROUNDED)
    memory = agree(llama, settings, tokens(1, 150, seed=10), monkeypatch, chooses_on)
    assert memory._roomy.multiple == 8


@pytest.mark.parametrize("name", sorted(ROOMY - {"llama"}))
def test_rounded_widths_change_nothing_in_any_family(family, name, monkeypatch):
    monkeypatch.setattr(DecodeRoom, "multiples", ROUNDED)
    memory = agree(family(name), {}, tokens(1, 150, seed=11), monkeypatch, frozenset({"cpu"}))
    assert memory._roomy.multiple == 8


def spoiled(room: DecodeRoom) -> None:
    """NaN wherever nothing was written yet."""
    room._both[:, room.start + room.n :] = torch.nan
    room._near[:, :, room.n :] = torch.nan
    if room.choice is not None:  # and where the device will put the events
        room._both[:, room._gap : room.start] = torch.nan


def passed(memory: EMLLM, how: dict, chooses: bool, m: int) -> tuple[torch.Tensor, torch.Tensor, DecodeRoom]:
    """One layer of a pass in a room of its own: the output, the attention drawn."""
    retriever, generator = memory.retriever, torch.Generator().manual_seed(12)
    masses = {layer: mass.clone() for layer, mass in memory._mass.items()}
    sizes = {"reach": memory.n_local, "most": retriever.longest, "fetches": retriever if chooses else None}
    room = DecodeRoom(memory.layers, masses, memory.bound_rotary, **sizes)
    spoiled(room)
    room.open()
    query = torch.randn(1, 4, 1, room.dim, generator=generator)
    room.write(0, *torch.randn(2, 1, room.heads, 1, room.dim, generator=generator))
    far = room.far_query(query)
    if chooses:
        m = room.fetch(0, far, room.choice, retriever)
    elif m:
        m = room.place(0, np.arange(m), retriever)
    out = room.attend(0, far, room.near_scores(0, query), m, **how)
    return out, room._drawn[0], room


@pytest.mark.parametrize("events", ["chosen", 0, 1, 2])
@pytest.mark.parametrize("sinks", [None, torch.tensor([0.5, -1.0, 2.0, 0.0])], ids=["", "sinks"])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_rows_that_fill_up_a_width_weigh_nothing(llama, events, sinks, softcap, monkeypatch):
    """At every remainder of the width by 8; rows ahead hold NaN and are never read, the rows of zeros draw nothing."""
    how = {"scaling": 0.4, "softcap": softcap, "sinks": sinks}
    memory, ids, leads = small().bind(llama), tokens(1, 90, seed=13), set()
    memory.feed(ids[:, :72])
    for i in range(72, 82):
        out, drawn, room = passed(memory, how, events == "chosen", events)
        assert room.multiple == 1
        with monkeypatch.context() as patch:
            patch.setattr(DecodeRoom, "multiples", ROUNDED)
            mine, also_drawn, room = passed(memory, how, events == "chosen", events)
        assert out.isfinite().all()
        assert drawn.shape == also_drawn.shape == (2, 2, room.n + 1 - room.far)
        torch.testing.assert_close(mine, out, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(also_drawn, drawn, atol=1e-6, rtol=1e-5)
        leads.add(room._lead(0))
        memory.feed(ids[:, i : i + 1])
    memory.unbind()
    assert len(leads) > 3


@pytest.mark.parametrize("n_local", [16, 300])
@pytest.mark.parametrize("retrieval", ["similarity", "none"])
def test_operands_begin_where_a_card_reads_fast(llama, n_local, retrieval, monkeypatch):
    """Whatever the width is: every row of every operand begins at a multiple of 8 numbers, of 16 bytes."""
    monkeypatch.setattr(DecodesInRoom, "chooses_on", frozenset({"cpu"}))
    for multiples, even in ((ROUNDED, True), ({}, False)):
        monkeypatch.setattr(DecodeRoom, "multiples", multiples)
        memory, ids = small(n_local=n_local, retrieval=retrieval).bind(llama), tokens(1, 90, seed=14)
        memory.feed(ids[:, :72])
        with Products() as seen:
            decoded(memory, ids[:, 72:84])
        memory.unbind()
        assert (sum(step % 8 for step in seen.steps) == 0) == even
        assert all(start % 16 == 0 for start in seen.starts)


class Ops(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


def test_a_token_asks_for_the_events_once_a_layer_and_joins_no_tensors(llama):
    """What decoding costs beside the model itself: per layer one score, one top-k, one gather, at any length."""
    counts = []
    for settings in ({"retrieval": "none"}, {}):
        memory, ids = small(**settings, n_local=32).bind(llama), tokens(1, 200, seed=9)
        memory.feed(ids[:, :160])
        steps = []
        for i in range(160, 200):
            room = memory._roomy
            with Ops() as ops:
                memory.write(ids[:, i : i + 1])
            if room is not None and room is memory._roomy:
                steps.append(ops.names)
        memory.unbind()
        counts.append(steps)
    window, fetching = ([{n: step.count(n) for n in set(step)} for step in steps] for steps in counts)
    depth = llama.config.num_hidden_layers
    assert window
    assert fetching
    assert all(step["bmm"] == 3 * depth for step in window + fetching)
    for step in fetching:
        assert step["mv"] == step["topk"] == depth
        assert step.get("index_select", 0) <= depth  # none where the events are those of the step before
    assert max(step["cat"] for step in fetching) <= max(step["cat"] for step in window)
