"""EM-LLM: one softmax over events and window, cuts held to brute force, events that lose no token, clear errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import FAMILIES, REFUSED, build, tokens

from workbench.errors import BadInput, MemoryError_
from workbench.memory import MEMORIES, Memory
from workbench.memory.cache import _events
from workbench.memory.cache._event_choice import filled, neighbours
from workbench.memory.cache._event_pool import EventPool, Growing
from workbench.memory.cache._event_store import EventStore
from workbench.memory.cache._retriever import representatives
from workbench.memory.cache.em_llm import EMLLM

SMALL = {"n_local": 16, "n_mem": 24, "n_init": 2, "chunk": 8, "min_block": 3, "max_block": 10, "repr_topk": 2}


def small(**changed) -> EMLLM:
    return EMLLM(**{**SMALL, "tau": 16, "gamma": 0.5, **changed})


def read(model, memory: EMLLM, ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([memory.write(part) for part in ids.split(memory.chunk, dim=1)], dim=1)


# ---------------------------------------------------------------------- attention
@pytest.mark.parametrize("name", list(FAMILIES))
def test_when_everything_fits_logits_equal_plain_attention(family, name):
    model, ids = family(name), tokens(1, 40)
    with torch.no_grad():
        plain = model(ids).logits
    before = model.config._attn_implementation
    memory = small(n_local=64).bind(model)
    assert (read(model, memory, ids) - plain).abs().max() < 1e-4
    assert plain.std() > 0.05
    assert model.config._attn_implementation == before
    memory.unbind()
    with torch.no_grad():
        assert torch.equal(model(ids).logits, plain)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_long_streams_and_generation_run_on_every_family(family, name):
    model, memory = family(name), small(contiguity=0.3).bind(family(name))
    read(model, memory, tokens(1, 120))
    assert memory.stored
    options = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": 0, "eos_token_id": None}
    memory.reset()
    ids = tokens(1, 8)
    assert model.generate(ids, past_key_values=memory, **options).shape == (1, 14)
    memory.unbind()


def test_one_pass_is_the_formula_of_the_paper(llama):
    """Layer 0 against plain loops: true distance inside the window, n_local - 1 for everything else."""
    memory = small().bind(llama)
    ids = tokens(1, 88)
    read(llama, memory, ids[:, :80])
    seen = {}
    plain = memory.attend

    def spy(layer, query, key, value, **options):
        out = plain(layer, query, key, value, **options)
        if layer == 0:
            seen.update(query=query[0], out=out[0], now=memory.current_pass, raw=memory.layers[0].keys[0], v=value[0])
        return out

    memory.attend = spy
    memory.write(ids[:, 80:])
    rotary, best = memory.bound_rotary, memory.last_retrieved[0]
    pairs = [memory.archive.get(event)[0] for event in [*best[0], *best[1]]]
    raw_q = rotary.unrotate(0, seen["query"][None], seen["now"].new)[0]
    n, n_q, group = seen["raw"].shape[1], 8, 2

    def turned(vector, place):
        tables = rotary.tables(torch.tensor([[place]]), torch.empty(()))
        return rotary.rotate(0, vector[None, None, None], tables)[0, 0, 0]

    for head in range(4):
        for i in range(n_q):
            logits, values = [], []
            for keys, stored in pairs:
                logits += [turned(raw_q[head, i], 15) @ key for key in keys[head // group]]
                values += list(stored[head // group])
            for j in range(n - n_q + i + 1):
                distance = min(n - n_q + i - j, 15)
                logits.append(turned(raw_q[head, i], distance) @ seen["raw"][head // group, j])
                values.append(seen["v"][head // group, j])
            weights = torch.softmax(torch.stack(logits) * 8**-0.5, 0)
            assert (weights @ torch.stack(values) - seen["out"][head, i]).abs().max() < 1e-4
    memory.unbind()


def test_order_of_events_is_nothing_and_their_content_everything(llama):
    outs = []
    for change in ("as it is", "permuted", "replaced"):
        memory = small().bind(llama)
        ids = tokens(1, 88, seed=4)
        read(llama, memory, ids[:, :80])
        plain = memory._retrieved

        def other(layer, far, plain=plain, change=change):
            keys, values = plain(layer, far)
            if change == "permuted":
                return keys.flip(1), values.flip(1)
            return (keys, values.roll(1, 1)) if change == "replaced" else (keys, values)

        memory._retrieved = other
        outs.append(memory.write(ids[:, 80:]))
        memory.unbind()
    assert (outs[0] - outs[1]).abs().max() < 1e-4
    assert (outs[0] - outs[2]).abs().max() > 1e-3


# ---------------------------------------------------------------------- graphs
def _matrix(seed: int, n: int = 40) -> np.ndarray:
    half = np.random.default_rng(seed).random((n, n))
    return half + half.T


@pytest.mark.parametrize("seed", range(5))
def test_curves_agree_with_brute_force(seed):
    matrix, cuts = _matrix(seed), np.arange(1, 40)
    total = matrix.sum()
    for cut, fast in zip(cuts, _events.modularity_curve(matrix, cuts)):
        label = np.arange(40) >= cut
        slow = sum(
            matrix[i, j] - matrix[i].sum() * matrix[j].sum() / total
            for i in range(40)
            for j in range(40)
            if label[i] == label[j]
        )
        assert fast == pytest.approx(slow / (2 * total), abs=1e-6)
        assert _events.modularity(matrix, [cut]) == pytest.approx(fast, abs=1e-9)
    for cut, fast in zip(cuts, _events.conductance_curve(matrix, cuts)):
        across = sum(matrix[i, j] for i in range(cut) for j in range(cut, 40))
        inside = [sum(matrix[i, j] for i in part for j in part) for part in (range(cut), range(cut, 40))]
        assert fast == pytest.approx(min(across / min(vol, total - vol) for vol in inside), abs=1e-6)
        assert _events.conductance(matrix, [cut]) == pytest.approx(fast, abs=1e-9)


@pytest.mark.parametrize("metric", _events.METRICS)
@pytest.mark.parametrize("seed", range(20))
def test_refinement_moves_left_within_its_event_and_never_loses(metric, seed):
    rng = np.random.default_rng(seed)
    matrix, places = _matrix(seed, 60), sorted(rng.choice(np.arange(4, 60), 5, replace=False).tolist())
    kept = _events.near_dropped(places, 3)
    moved, alpha = _events.refine_all(matrix, places, metric=metric, min_block=3), 0
    assert len(moved) == len(kept)
    curve = _events.modularity_curve if metric == "modularity" else lambda *a: -_events.conductance_curve(*a)
    for old, new in zip(kept, moved):
        assert alpha < new <= old
        half = (old - alpha) // 2
        low, high = max(0, alpha - half), min(60, max(old + half, old + 1))
        was, now = curve(matrix[low:high, low:high], np.array([old, new]) - low)
        assert now >= was
        alpha = new


def test_a_planted_change_is_found():
    matrix = np.full((30, 30), 0.1)
    matrix[:14, :14] = matrix[14:, 14:] = 1.0
    for metric in _events.METRICS:
        assert _events.refined(matrix, 0, 18, metric=metric, min_block=3) == 14


def test_surprise_thresholds_by_hand():
    before, fresh = np.array([1.0, 3.0]), np.array([3.1, 2.9, np.nan, 9.0])
    assert _events.threshold(before, 1.0) == pytest.approx(3.0)
    assert _events.surprise_flags(fresh, before, gamma=1.0, tau=2).tolist() == [True, False, False, False]
    assert _events.surprise_flags(fresh, before, gamma=1.0, tau=9).tolist() == [True, False, False, True]
    assert _events.chunk_flags(fresh, before, gamma=1.0, tau=9).tolist() == [True, False, False, True]
    shifted = _events.chunk_flags(fresh, before, gamma=1.0, tau=9, offset=True)
    assert shifted.tolist() == [False, False, True, False]


def test_modularity_needs_a_positive_sum():
    with pytest.raises(BadInput, match="cos01"):
        _events.modularity(-np.ones((4, 4)), [2])
    with pytest.raises(BadInput, match="no tokens"):
        _events.adjacency([np.zeros((2, 0, 4))])


# ---------------------------------------------------------------------- events
SETTINGS = [{}, {"refine": "none"}, {"refine": "conductance"}, {"segmentation": "fixed"}, {"segmentation": "random"},
            {"threshold": "chunk", "official_offset": True}]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS)
def test_every_old_token_is_in_exactly_one_event_of_legal_size(llama, settings):
    memory, ids = small(**settings).bind(llama), tokens(1, 150, seed=2)
    read(llama, memory, ids)
    covered = [place for event in memory.stored for place in range(event.start, event.end)]
    held = memory.held()["position"].tolist()
    assert sorted([*covered, *held]) == list(range(150))
    assert all(3 <= event.length <= 10 for event in memory.stored)
    assert covered[-1] < 150 - 16
    assert [t for e in memory.stored for t in e.token_ids] == ids[0, covered].tolist()
    assert all(new <= old for new, old in memory.boundaries)
    memory.unbind()


def test_refinement_keeps_the_number_of_boundaries_it_is_given(llama):
    memory = small().bind(llama)
    read(llama, memory, tokens(1, 150, seed=2))
    places = [new for new, _ in memory.boundaries]
    assert places == sorted(set(places))
    assert any(new < old for new, old in memory.boundaries)
    memory.unbind()


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_budget_and_neighbours(llama, share):
    memory, ids = small(contiguity=share).bind(llama), tokens(1, 200, seed=3)
    earlier: dict[int, set[int]] = {}
    for part in ids.split(8, dim=1):
        memory.write(part)
        told = [event for event in memory.rows[0].log if event.kind == "read"]
        for event in told[-1:]:
            fetched = sorted(set().union(*event.detail["retrieved"].values()))
            assert event.items == tuple(memory.stored[e].start for e in fetched)
        for layer, (best, near) in memory.last_retrieved.items():
            lengths = [memory.stored[event].length for event in [*best, *near]]
            assert sum(lengths) <= 24 + 10 / 2
            earlier.setdefault(layer, set()).update(best)
            assert all({e - 1, e + 1} & earlier[layer] for e in near)
            assert not set(best) & set(near)
    assert share == 0 or any(near for _, near in memory.last_retrieved.values())
    memory.unbind()


def test_choosing_by_hand():
    lengths, order = [10, 10, 10, 10], [1, 2, 3, 0]
    assert filled(order, lengths, 20) == [1, 2]
    assert filled(order, lengths, 25) == [1, 2, 3]  # half over is as near as half under
    assert filled(order, lengths, 24) == [1, 2]
    assert filled(order, lengths, 40) == [1, 2, 3, 0]
    assert filled(order, lengths, 4) == []
    assert filled(order, lengths, 0) == []
    assert neighbours([1], [3], lengths, 20) == [2, 0]
    assert neighbours([1], [3], lengths, 30) == [2, 0, 3]
    assert neighbours([1], [3], lengths, 9) == []


def by_arrays(chosen, queue, lengths, budget):
    """The contiguity buffer without a loop: every event where it is named first, as far as the budget goes."""
    around = np.stack([np.add(chosen, 1), np.subtract(chosen, 1)], axis=1).ravel()
    wanted = np.concatenate([around[(around >= 0) & (around < len(lengths))], np.array(queue, dtype=int)])
    _, first = np.unique(wanted, return_index=True)
    wanted = wanted[np.sort(first)]
    wanted = wanted[~np.isin(wanted, chosen)]
    return wanted[np.cumsum(np.array(lengths)[wanted]) <= budget].tolist()


@pytest.mark.parametrize("seed", range(20))
def test_the_buffer_of_neighbours_equals_a_queue(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 60))
    lengths, queue = rng.integers(1, 30, n).tolist(), []
    for _ in range(5):
        chosen = rng.permutation(n)[: rng.integers(1, n)].tolist()
        budget = int(rng.integers(0, sum(lengths)))
        found = neighbours(chosen, queue, lengths, budget)
        assert found == by_arrays(chosen, queue, lengths, budget)
        queue = found


@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_offloading_changes_nothing(llama, offload, tmp_path):
    ids, logits = tokens(1, 150, seed=5), []
    for settings in ({}, {"max_cached": 2, "offload": offload, "folder": str(tmp_path)}):
        memory = small(**settings).bind(llama)
        logits.append(read(llama, memory, ids))
        memory.unbind()
    assert torch.equal(*logits)
    assert memory.archive.loads > 0
    assert (memory.contents()["place"] == offload).any()
    assert bool(list(tmp_path.glob("*.safetensors"))) == (offload == "disk")
    assert not list(tmp_path.glob("*.tmp"))


def test_the_pool_gathers_what_a_loop_over_events_would():
    generator, pool, held = torch.Generator().manual_seed(0), EventPool(), []
    for lengths in ([3, 5], [4], [9, 3, 3]):
        parts = tuple((torch.randn(2, sum(lengths), 4, generator=generator),) * 2 for _ in range(3))
        pool.add(len(pool), lengths, parts)
        held += parts[1][0].split(lengths, 1)
    for events in ([0], [1, 2, 5], [5, 0, 3]):
        keys, values = pool.gather(1, np.array(events))
        assert torch.equal(keys, torch.cat([held[event] for event in events], 1))
        assert torch.equal(values, keys)
    assert torch.equal(pool.get(4)[1][0], held[4])
    with pytest.raises(MemoryError_, match="event 6 is not"):
        pool.get(6)
    with pytest.raises(BadInput, match="in order and whole"):
        pool.add(9, [2], parts)
    with pytest.raises(BadInput, match="no tokens"):
        pool.add(6, [], parts)
    assert len(pool) == 6


def test_copies_share_their_room_and_never_write_over_each_other():
    first = Growing()
    first.append(torch.zeros(40, 2))
    first.append(torch.ones(4, 2))  # room for 50 now
    twin = first.copy()
    first.append(torch.full((3, 2), 2.0))
    assert twin.n == 44
    twin.append(torch.full((3, 2), 3.0))
    assert first.filled[44:].eq(2).all()
    assert twin.filled[44:].eq(3).all()
    assert first.nbytes() < 2 * 47 * 2 * 4
    with pytest.raises(MemoryError_, match="nothing was stored"):
        _ = Growing().filled


@pytest.mark.parametrize("top", [1, 3, 20])
def test_representatives_of_many_events_are_those_of_each(top):
    generator, lengths = torch.Generator().manual_seed(top), [3, 8, 5]
    keys, mass = torch.randn(2, 16, 4, generator=generator), torch.rand(4, 16, generator=generator)
    mean, places, scores = representatives(keys, mass, lengths, top)
    start = 0
    for event, length in enumerate(lengths):
        drawn = mass.view(2, 2, 16).sum(1)[:, start : start + length]
        best = drawn.topk(min(top, length))
        for head in range(2):
            expected = keys[head, start + best.indices[head]].mean(0)
            assert torch.allclose(mean[event].view(2, 4)[head], expected, atol=1e-6)
        k = min(top, length)
        assert torch.equal(places[event, :, :k], best.indices)
        assert torch.equal(scores[event, :, :k], best.values)
        start += length


def test_a_lost_file_is_named(llama, tmp_path):
    memory = small(max_cached=1, offload="disk", folder=str(tmp_path)).bind(llama)
    read(llama, memory, tokens(1, 100))
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    with pytest.raises(MemoryError_, match="cannot be read"):
        memory.archive.get(0)
    memory.unbind()


# ---------------------------------------------------------------------- the memory protocol
def test_contents_events_snapshot_and_reset(llama):
    memory, ids = small(contiguity=0.3).bind(llama), tokens(1, 130, seed=6)
    assert isinstance(memory, Memory)
    assert MEMORIES.get("em-llm") is EMLLM
    first = read(llama, memory, ids[:, :104])
    table = memory.contents()
    assert len(table) == 3 * len(memory.stored)
    assert set(table["buffer"]) <= {"similarity", "contiguity", "-"}
    assert table["retrieved"].max() > 0
    for line in table.itertuples():
        assert all(line.start <= place < line.end for place in line.representatives)
    log = memory.events()
    assert log.held() == set(range(104))  # nothing is ever lost
    assert {"write", "merge", "read"} == {event.kind for event in log}
    moment = memory.snapshot()
    once = memory.write(ids[:, 104:112])
    state = memory.contents().to_dict("list")
    memory.restore(moment)
    assert memory.contents().equals(table)
    assert torch.equal(memory.write(ids[:, 104:112]), once)
    assert str(memory.contents().to_dict("list")) == str(state)
    memory.reset()
    assert memory.nbytes() == 0
    assert torch.equal(read(llama, memory, ids[:, :104]), first)  # the same chunks give the same stream
    memory.unbind()


def test_it_serves_a_loaded_model():
    from workbench.models import load

    embedded = load("embedded", dtype="float32")
    with embedded.use(memory=EMLLM(n_local=32, n_mem=32, n_init=2, chunk=16, min_block=3, max_block=12)):
        embedded.feed("In the station Mitan found the comb. The key of Mitan has the number 935. " * 4)
        assert embedded.memory.stored
        assert embedded.generate("In the", max_new_tokens=4).text
        trace = embedded.trace("In the station Mitan found the comb. " * 3)  # longer than a chunk
        assert trace.memory == "none"
        assert "without the memory" in " ".join(trace.notes)
    with embedded.use(memory="em-llm") as loaded:
        assert loaded.memory.first_refining_layer == 5


# ---------------------------------------------------------------------- bad input
BAD = [
    ({"gamma": float("nan")}, "gamma"), ({"gamma": float("inf")}, "gamma"), ({"gamma": "1"}, "gamma"),
    ({"min_block": 20, "max_block": 10}, "min_block"), ({"chunk": 100, "n_local": 50}, "chunk"),
    ({"n_local": 0}, "n_local"), ({"n_mem": -1}, "n_mem"), ({"repr_topk": 0}, "repr_topk"),
    ({"contiguity": 1.5}, "contiguity"), ({"contiguity": -0.1}, "contiguity"),
    ({"segmentation": "topic"}, "segmentation"),
    ({"refine": "cut"}, "refine"), ({"offload": "moon"}, "offload"), ({"official_offset": True}, "official_offset"),
    ({"tau": 1.5}, "tau"), ({"chunk": True}, "chunk"), ({"tau": 1}, "tau=1"), ({"folder": 3}, "folder=3"),
    ({"seed": -1}, "seed"), ({"seed": "x"}, "seed"), ({"official_offset": 2, "threshold": "chunk"}, "offset=2"),
]  # fmt: skip


@pytest.mark.parametrize(("settings", "named"), BAD)
def test_bad_settings_name_the_parameter(settings, named):
    with pytest.raises(ValueError, match=named):
        EMLLM(**settings)


def test_bad_models_and_streams(llama, family, tmp_path):
    with pytest.raises(ValueError, match="refine_from_layer=3"):
        small(refine_from_layer=3).bind(llama)
    config, settings, mention = REFUSED["gpt2"]
    with pytest.raises(MemoryError_, match=mention):
        small().bind(build(config, settings, tmp_path))
    memory = small().bind(llama)
    with pytest.raises(MemoryError_, match="one stream"):
        memory.write(tokens(2, 4))
    with pytest.raises(ValueError, match="input_ids"):  # an empty text
        memory.feed(tokens(1, 4)[:, :0])
    with pytest.raises(MemoryError_, match="round of 9"):
        memory.write(tokens(1, 9))
    assert memory.nbytes() == 0
    with pytest.raises(BadInput, match="stretch"):
        memory.adjacency(5, 6)
    memory.write(tokens(1, 8))
    with pytest.raises(BadInput, match="stretch"):
        memory.adjacency(5, 5)
    with pytest.raises(MemoryError_, match="one stream"):
        memory.reorder_cache(torch.tensor([0, 0]))
    with pytest.raises(BadInput, match="no tokens"):
        EventStore(2, "cpu", None).add(0, [], ())
    memory.unbind()


def test_a_pass_that_dies_leaves_no_trace(llama):
    memory, ids = small().bind(llama), tokens(1, 72, seed=8)
    read(llama, memory, ids[:, :64])
    fed = memory.fed
    handle = llama.model.layers[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        memory.write(ids[:, 64:])
    handle.remove()
    assert llama.config._attn_implementation == "sdpa"
    assert memory.fed == fed
    after = memory.write(ids[:, 64:])
    memory.reset()
    assert torch.equal(read(llama, memory, ids)[:, 64:], after)
    memory.unbind()
