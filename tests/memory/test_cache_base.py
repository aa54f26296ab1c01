"""What every cache memory promises: memory freed, rows independent, logs that replay, errors that change nothing."""

from __future__ import annotations

import gc
import json
import weakref

import numpy as np
import pytest
import torch
from conftest import tokens

from workbench.errors import BadInput, MemoryError_, UnknownName
from workbench.memory import MEMORIES, Memory
from workbench.memory.cache.base import TokenCache
from workbench.memory.cache.full import FullCache
from workbench.memory.cache.oracle import OracleCache
from workbench.memory.cache.paged import PagedCache
from workbench.memory.cache.random import RandomCache
from workbench.memory.cache.sirllm import SirLLM
from workbench.memory.cache.streaming import StreamingCache
from workbench.memory.cache.vattention import VAttentionCache
from workbench.memory.cache.window import WindowCache

POLICIES = {
    "full": FullCache,
    "streaming": lambda: StreamingCache(budget=14, n_sink=2),
    "window": lambda: WindowCache(budget=14),
    "random": lambda: RandomCache(budget=14, n_sink=2, seed=3),
    "oracle": lambda: OracleCache(budget=14, n_sink=2, tokens=range(3, 20)),
    "sirllm": lambda: SirLLM(budget=14, n_sink=2, eta=0.8),
}
EVICTING = [name for name in POLICIES if name != "full"]


@pytest.fixture(params=list(POLICIES))
def policy(request):
    return POLICIES[request.param]


def state(memory: TokenCache) -> tuple:
    """Everything that an error must leave alone."""
    keys = [layer.keys.clone() for layer in memory.layers if layer.keys is not None]
    logs = [[(event.kind, event.items) for event in row.log] for row in memory.rows]
    return memory.contents().to_dict("list"), memory.fed, memory.nbytes(), logs, keys


def same(before: tuple, after: tuple) -> bool:
    return before[:4] == after[:4] and all(torch.equal(a, b) for a, b in zip(before[4], after[4], strict=True))


def test_every_slug_is_registered_with_its_class():
    for name, make in POLICIES.items():
        cls = MEMORIES.get(name)
        memory = make()
        assert isinstance(memory, cls)
        assert isinstance(memory, Memory)
        assert cls.slug == name
        assert isinstance(cls(), TokenCache)  # every hyper-parameter has a default
    with pytest.raises(UnknownName, match="did you mean 'streaming'"):
        MEMORIES.get("streming")


def test_evicted_memory_is_freed(llama):
    heads, dim, layers = 2, 8, 3
    memory = StreamingCache(budget=16, n_sink=2).bind(llama)
    memory.write(tokens(2, 14))
    assert memory.nbytes() == 2 * layers * 2 * heads * 14 * dim * 4
    old = weakref.ref(memory.layers[0].keys)
    for start in range(0, 40, 8):
        memory.write(tokens(2, 8, seed=start))
    assert memory.nbytes() == 2 * layers * 2 * heads * 16 * dim * 4
    assert old() is None  # the tensor itself is gone, not only hidden behind a view
    assert all(layer.keys.shape == (2, heads, 16, dim) for layer in memory.layers)
    memory.reset()
    assert memory.nbytes() == 0
    assert memory.contents().empty
    assert list(memory.contents().columns[:4]) == ["slot", "token_id", "position", "round"]


def test_lengths_of_stream_and_store_are_kept_apart(llama):
    memory = StreamingCache(budget=10, n_sink=2).bind(llama)
    memory.feed(tokens(1, 33))
    assert (memory.get_seq_length(), memory.width, len(memory.rows[0])) == (33, 10, 10)
    assert memory.get_mask_sizes(5, 0) == (15, 0)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_its_rows_one_by_one(llama, policy, side, kernel):
    llama.set_attn_implementation(kernel)
    lengths = [[9, 4], [3, 10], [7, 7], [1, 5], [8, 2]]
    batch, alone, expected = policy().bind(llama), [policy().bind(llama) for _ in range(2)], []
    for row, memory in enumerate(alone):
        memory.name_rows([row])
    batch.name_rows([0, 1])
    for step, both in enumerate(lengths):
        width = max(both)
        ids, mask = torch.zeros(2, width, dtype=torch.long), torch.zeros(2, width, dtype=torch.long)
        for row, length in enumerate(both):
            part = slice(width - length, width) if side == "left" else slice(0, length)
            ids[row, part], mask[row, part] = tokens(1, length, seed=10 * step + row)[0], 1
        logits = batch.write(ids, mask)
        for row, length in enumerate(both):
            with alone[row].round(length):
                expected = alone[row].write(ids[row, mask[row].bool()][None])[0]
            assert (logits[row, mask[row].bool()] - expected).abs().max() < 1e-4
    for row, memory in enumerate(alone):
        ours, theirs = batch.contents(row), memory.contents(0)
        assert ours["position"].tolist() == theirs["position"].tolist()
        assert ours["reason"].tolist() == theirs["reason"].tolist()
        if "score" in ours:
            np.testing.assert_allclose(ours["score"], theirs["score"], rtol=1e-4)
    budget = batch.budget or 10**9
    assert batch.width == max(len(row) for row in batch.rows) <= budget


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt-oss"])
def test_memories_work_under_the_workbench_kernel(family, policy, name):
    """Evicted, unequal, padded rows through our own attention socket: the same logits as eager."""
    from workbench.models.attention import KERNELS

    model, results = family(name), []
    for kernel in ("eager", KERNELS.get("flash-attention").plug()):
        model.set_attn_implementation(kernel)
        memory, logits = policy().bind(model), []
        for step, lengths in enumerate([(9, 4), (3, 10), (1, 1), (8, 2)]):
            ids = tokens(2, max(lengths), seed=step)
            mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
            logits.append(memory.write(ids, mask)[mask.bool()])
        results.append(torch.cat(logits))
    assert (results[0] - results[1]).abs().max() < 1e-4


def test_events_replay_to_the_contents(llama, policy):
    memory = policy().bind(llama)
    for start in range(6):
        memory.write(tokens(2, 5, seed=start))
        memory.write(tokens(2, 1, seed=start))
        for row in range(2):
            assert memory.events(row).held() == set(memory.contents(row)["position"])
    log = memory.events(0)
    if memory.budget is not None:
        assert {"write", "evict"} <= {event.kind for event in log}
        evicted = [position for event in log if event.kind == "evict" for position in event.items]
        assert len(evicted) == len(set(evicted)) == 36 - len(memory.contents(0))


def test_contents_say_what_is_held_and_why(llama, policy):
    memory, ids = policy().bind(llama), tokens(2, 36)
    memory.feed(ids, chunk=6)
    table = memory.contents()
    assert list(table.columns[:4]) == ["slot", "token_id", "position", "round"]
    assert list(table.columns[-3:]) == ["reason", "age", "row"]
    for row in range(2):
        mine = table[table["row"] == row]
        assert mine["slot"].tolist() == list(range(len(mine)))
        assert (np.diff(mine["position"]) > 0).all()
        assert mine["token_id"].tolist() == ids[row, mine["position"].tolist()].tolist()
        assert (mine["age"] == 6 - mine["round"]).all()
        assert mine["round"].tolist() == (mine["position"] // 6 + 1).tolist()
        assert (mine["reason"].iloc[-6:] == "new").all()
    with pytest.raises(BadInput, match="row=2"):
        memory.contents(2)


@pytest.mark.parametrize("name", EVICTING)
def test_sinks_stay_and_the_budget_holds(llama, name):
    memory = POLICIES[name]().bind(llama)
    for start in range(8):
        memory.write(tokens(2, 7, seed=start))
        for row in memory.rows:
            assert len(row) <= 14
            if name != "window":
                assert row.items["position"][:2].tolist() == [0, 1]


@pytest.mark.parametrize("name", EVICTING)
def test_too_long_a_round_changes_nothing(llama, name):
    memory = POLICIES[name]().bind(llama)
    memory.write(tokens(1, 10))
    before = state(memory)
    with pytest.raises(MemoryError_, match="a round of 15 tokens does not fit"):
        memory.write(tokens(1, 15))
    with pytest.raises(MemoryError_, match="does not fit"):
        memory.open_round(15)
    assert same(before, state(memory))
    memory.write(tokens(1, 3))  # and the memory goes on
    assert memory.rows[0].rounds == 2


def test_bad_passes_change_nothing(llama):
    memory = StreamingCache(budget=14, n_sink=2).bind(llama)
    memory.write(tokens(2, 10))
    before = state(memory)
    with pytest.raises(MemoryError_, match="holds 2 rows"):
        memory.write(tokens(3, 4))
    with pytest.raises(MemoryError_, match="attention_mask must be"):
        memory.write(tokens(2, 4), torch.ones(2, 3))
    with pytest.raises(MemoryError_, match="attention_mask must be"):
        memory.write(tokens(2, 4), torch.ones(2, 1, 4, 14))
    with pytest.raises(BadInput, match="3 entries"):
        memory.open_round([1, 2, 3])
    with pytest.raises(MemoryError_, match="cannot be cropped"):
        memory.crop(-1)
    assert same(before, state(memory))


def test_a_pass_that_dies_midway_is_undone(llama):
    whole, broken = (StreamingCache(budget=14, n_sink=2).bind(llama) for _ in range(2))
    for memory in (whole, broken):
        memory.write(tokens(1, 10))

    def die(*_):
        raise KeyboardInterrupt

    handle = llama.model.layers[1].mlp.register_forward_pre_hook(die)
    try:
        with pytest.raises(KeyboardInterrupt):
            broken.write(tokens(1, 6, seed=1))
    finally:
        handle.remove()
    logits = [memory.write(tokens(1, 6, seed=1)) for memory in (whole, broken)]
    assert torch.equal(*logits)
    assert whole.contents().equals(broken.contents())
    assert broken.rows[0].rounds == 2


def test_snapshots_go_back_any_number_of_times(llama):
    memory = SirLLM(budget=16, n_sink=2, eta=0.9).bind(llama)
    memory.write(tokens(2, 12))
    moment, before = memory.snapshot(), state(memory)
    first = memory.write(tokens(2, 9, seed=5))
    for _ in range(2):
        memory.restore(moment)
        assert same(before, state(memory))
        assert torch.equal(memory.write(tokens(2, 9, seed=5)), first)


def test_opened_rounds_reserve_their_room(llama):
    memory = SirLLM(budget=16, n_sink=2).bind(llama)
    memory.write(tokens(1, 14))
    with memory.round(8):
        assert len(memory.rows[0]) == 8
        memory.write(tokens(1, 5))
        memory.write(tokens(1, 1))
        with pytest.raises(MemoryError_, match="room for"):
            memory.write(tokens(1, 3))
        memory.write(tokens(1, 2))
    assert memory.rows[0].rounds == 2
    assert (memory.contents()["round"] == 2).sum() == 8


def test_hooks_leave_other_passes_alone_and_go_with_the_memory(llama):
    ids = tokens(1, 12)
    with torch.no_grad():
        plain = llama(ids).logits
    hooks = len(llama._forward_pre_hooks), len(llama._forward_hooks)
    memory = StreamingCache(budget=8, n_sink=2).bind(llama)
    memory.write(tokens(1, 6))
    with torch.no_grad():
        assert torch.equal(llama(ids).logits, plain)
    assert len(memory.contents()) == 6
    assert memory.bind(llama) is memory  # bound already: nothing is lost
    assert len(memory.contents()) == 6
    memory.unbind()
    assert (len(llama._forward_pre_hooks), len(llama._forward_hooks)) == hooks
    dropped = StreamingCache(budget=8).bind(llama)
    del dropped
    gc.collect()
    assert (len(llama._forward_pre_hooks), len(llama._forward_hooks)) == hooks


def test_hooks_may_be_called_twice_for_one_pass(llama):
    """LoadedModel calls them too."""
    once, twice = (SirLLM(budget=14, n_sink=2).bind(llama) for _ in range(2))
    handles = [
        llama.register_forward_pre_hook(lambda m, a, k: twice.before_forward(len(k["input_ids"][0])), with_kwargs=True),
        llama.register_forward_hook(lambda m, a, k, o: twice.after_forward(k["input_ids"], o.logits), with_kwargs=True),
    ]
    for start in range(4):
        twice.write(tokens(2, 6, seed=start))
    for handle in handles:
        handle.remove()
    for start in range(4):
        once.write(tokens(2, 6, seed=start))
    assert once.contents().equals(twice.contents())


def test_generate_goes_on_from_what_was_fed(llama):
    ids = tokens(1, 20)
    options = {"do_sample": False, "max_new_tokens": 10, "pad_token_id": 0, "eos_token_id": None}
    whole = llama.generate(ids, attention_mask=torch.ones_like(ids), **options)
    memory = FullCache().bind(llama)
    memory.write(ids[:, :13])
    ours = llama.generate(ids, attention_mask=torch.ones_like(ids), past_key_values=memory, **options)
    assert torch.equal(ours, whole)
    memory.reset()
    memory.write(ids[:, :13])  # only the new tokens, with a mask over the whole stream
    rest = llama.generate(ids[:, 13:], attention_mask=torch.ones_like(ids), past_key_values=memory, **options)
    assert torch.equal(rest[:, 7:], whole[:, 20:])


def test_generate_with_padding_equals_one_by_one(llama):
    options = {"do_sample": False, "max_new_tokens": 15, "pad_token_id": 0, "eos_token_id": None}
    prompts = [tokens(1, 9, seed=1), tokens(1, 4, seed=2)]
    ids = torch.cat([prompts[0], torch.cat([torch.zeros(1, 5, dtype=torch.long), prompts[1]], dim=1)])
    mask = (ids != 0).long()
    batch = llama.generate(ids, attention_mask=mask, past_key_values=StreamingCache(11, 2).bind(llama), **options)
    for row, prompt in enumerate(prompts):
        memory = StreamingCache(11, 2).bind(llama)
        alone = llama.generate(prompt, attention_mask=torch.ones_like(prompt), past_key_values=memory, **options)
        assert batch[row, 9:].tolist() == alone[0, prompt.shape[1] :].tolist()


def test_generate_reads_a_long_prompt_in_chunks(llama):
    ids = tokens(1, 50)
    memory, again = (StreamingCache(12, 2).bind(llama) for _ in range(2))
    options = {"do_sample": False, "max_new_tokens": 5, "pad_token_id": 0, "eos_token_id": None}
    options["attention_mask"] = torch.ones_like(ids)
    with pytest.raises(MemoryError_, match="prefill_chunk_size=10"):
        llama.generate(ids, past_key_values=memory, **options)
    out = llama.generate(ids, past_key_values=memory, prefill_chunk_size=10, **options)
    again.feed(ids)
    again.feed(out[:, 50:-1], chunk=1)
    assert memory.contents()["position"].tolist() == again.contents()["position"].tolist()
    for mine, theirs in zip(memory.layers, again.layers, strict=True):
        assert (mine.values - theirs.values).abs().max() < 1e-4


def test_beam_search_reorders_rows(llama):
    ids = tokens(2, 8)
    options = {"num_beams": 3, "max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    options["attention_mask"] = torch.ones_like(ids)
    plain = llama.generate(ids, **options)
    assert torch.equal(llama.generate(ids, past_key_values=FullCache().bind(llama), **options), plain)


def test_sliding_windows_want_padding_on_the_right(family):
    memory = StreamingCache(budget=14).bind(family("mistral"))
    memory.write(tokens(2, 6))
    before = state(memory)
    with pytest.raises(MemoryError_, match="pad the new tokens on the right"):
        memory.write(tokens(2, 3), torch.tensor([[0, 1, 1], [1, 1, 1]]))
    assert same(before, state(memory))


@pytest.mark.parametrize(
    ("make", "mention"),
    [
        (lambda: StreamingCache(budget=4, n_sink=4), "n_sink"),
        (lambda: StreamingCache(budget=8, n_sink=-1), "n_sink"),
        (lambda: WindowCache(budget=0), "budget must be a whole number .*, got 0"),
        (lambda: WindowCache(budget=2.5), "budget must be a whole number .*, got 2.5"),
        (lambda: RandomCache(budget=4, n_sink=4), "n_sink"),
        (lambda: OracleCache(budget=4, n_sink=4), "n_sink"),
        (lambda: StreamingCache(n_sink=2.5), "n_sink must be a whole number .*, got 2.5"),
        (lambda: RandomCache(n_sink=True), "n_sink must be a whole number .*, got True"),
        (lambda: OracleCache(n_sink="4"), "n_sink must be a whole number .*, got '4'"),
        (lambda: StreamingCache(budget=None), "budget=None"),
        (lambda: WindowCache(budget=None), "budget=None"),
        (lambda: RandomCache(seed=-1), "seed must be a whole number .*, got -1"),
        (lambda: RandomCache(seed="x"), "seed must be a whole number .*, got 'x'"),
        (lambda: OracleCache(tokens="abc"), "tokens='abc'"),
        (lambda: OracleCache(tokens=5), "tokens=5"),
    ],
)
def test_bad_settings_are_named(make, mention):
    with pytest.raises(BadInput, match=mention):
        make()


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (WindowCache, {"budget": 8}),
        (StreamingCache, {"budget": 8, "n_sink": 2}),
        (OracleCache, {"budget": 8, "n_sink": 2, "tokens": (3, 5)}),
        (RandomCache, {"budget": 8, "n_sink": 2, "seed": 3}),
        (SirLLM, {"budget": 8, "n_sink": 2, "n_rec": 1, "mask_tokens": (3,)}),
        (PagedCache, {"block": 4, "max_tokens": 32, "max_batch": 2, "memory_mib": 1}),
        (VAttentionCache, {"page_kib": 64, "max_tokens": 32, "max_batch": 2, "memory_mib": 1}),
    ],
)
def test_numpys_whole_numbers_are_taken_and_become_plain_ones(kind, given):
    theirs = {name: tuple(map(np.int64, v)) if isinstance(v, tuple) else np.int64(v) for name, v in given.items()}
    assert json.dumps(kind(**theirs).settings()) == json.dumps(kind(**given).settings())


@pytest.mark.parametrize("chunk", [0, -1, 1.5, "a"])
def test_a_stream_is_not_fed_in_chunks_of_nothing(llama, chunk):
    memory = StreamingCache(budget=14).bind(llama)
    with pytest.raises(BadInput, match="chunk must be"):
        memory.feed(tokens(1, 6), chunk=chunk)
    assert memory.fed == 0


def test_layers_and_rows_that_are_not_there_are_named(llama):
    memory = StreamingCache(budget=14).bind(llama)
    memory.write(tokens(1, 6))
    for layer in (-1, 99):
        with pytest.raises(BadInput, match=f"layer={layer}"):
            memory.read(layer)
    with pytest.raises(BadInput, match="row='a'"):
        memory.contents("a")


def test_what_is_no_token_no_number_and_no_moment_is_named(llama):
    memory = StreamingCache(budget=14).bind(llama)
    memory.write(tokens(1, 6))
    before = state(memory)
    for ids, mention in (([[1, 2]], "list"), (torch.ones(1, 2), "float32"), (tokens(1, 2)[0], "shape")):
        with pytest.raises(BadInput, match=mention):
            memory.write(ids)
    for size in ("a", 1.5, -1, [[1]]):
        with pytest.raises(BadInput, match="n_new="):
            memory.open_round(size)
    with pytest.raises(BadInput, match="got NoneType"):
        memory.restore(None)
    assert same(before, state(memory))


def test_random_draws_by_row_name_and_place_only(llama):
    held = []
    for seed, names in ((1, [0, 1]), (1, [0, 1]), (2, [0, 1]), (1, [7, 8])):
        memory = RandomCache(budget=20, n_sink=2, seed=seed).bind(llama)
        memory.name_rows(names)
        memory.feed(tokens(2, 60), chunk=6)
        held.append([memory.contents(row)["position"].tolist() for row in range(2)])
    assert held[0] == held[1]
    assert held[0][0] != held[0][1]
    assert held[0] != held[2]
    assert held[0] != held[3]
    with pytest.raises(MemoryError_, match="before anything is written"):
        memory.name_rows([0, 1])


def test_oracle_holds_what_it_was_told(llama):
    ids = tokens(2, 60, seed=4)
    memory = OracleCache(budget=12, n_sink=2).bind(llama)
    memory.name_rows([0, 1])
    wanted = [{int(ids[0, 9])}, {int(ids[1, 20])}]
    memory.hold(dict(enumerate(wanted)))
    memory.feed(ids, chunk=5)
    assert 9 in memory.contents(0)["position"].tolist()
    assert 20 in memory.contents(1)["position"].tolist()
    assert set(memory.contents(0).query("reason == 'oracle'")["token_id"]) <= wanted[0]
