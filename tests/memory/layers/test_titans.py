"""Titans: special cases, who sees what, what is held; the shared kit tests causality, streaming and gradients."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from workbench.errors import BadInput
from workbench.memory import MEMORIES
from workbench.memory.layers._titans_attention import SegmentAttention, WindowAttention, segment_mask, window_mask
from workbench.memory.layers.base import build_layer, nbytes
from workbench.models.mixer import MixerConfig, MixerLM
from workbench_kernels.linear_memory import linear_recurrence

NAMES = ("titans", "titans-mac", "titans-mag", "titans-mal")
HEBBIAN: dict[str, Any] = {"depth": 1, "objective": "inner product", "momentum": False}


def titans(**settings: Any) -> Any:
    torch.manual_seed(1)
    return build_layer("titans", 8, **{"heads": 2, "persistent": 0, **settings}).double()


def tokens(length: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def parts(layer: Any, x: torch.Tensor) -> tuple[Any, ...]:
    state = layer.start(len(x))
    q, k, v, _ = layer.core.project(x, state.get("conv"))
    return q, k, v, layer.core.gates(x)


def held_to(layer: Any, x: torch.Tensor, y: torch.Tensor) -> None:
    found, _ = layer.core.run(x, layer.start(len(x)))
    torch.testing.assert_close(found, y.flatten(-2), rtol=1e-9, atol=1e-10)


@torch.no_grad()
def test_hebbian_is_causal_linear_attention():
    layer, x = titans(depth=1, objective="inner product", momentum=False, decay=False), tokens(11)
    q, k, v, gates = parts(layer, x)
    scores = torch.einsum("bthd,bshd->bhts", q, k).tril()
    held_to(layer, x, torch.einsum("bhts,bshd->bthd", scores, v * gates.theta[..., None]))


@torch.no_grad()
def test_without_momentum_and_decay_it_is_delta_net():
    layer, x = titans(depth=1, momentum=False, decay=False, chunk=1, theta_max=0.5), tokens(11)
    q, k, v, gates = parts(layer, x)
    held_to(layer, x, linear_recurrence(q, k, v, beta=2 * gates.theta)[0])


@torch.no_grad()
def test_without_momentum_it_is_the_gated_rule_that_decays_after_the_error():
    """Gated DeltaNet decays before the error; equation 13 takes the gradient first. Written out token by token."""
    layer, x = titans(depth=1, momentum=False, chunk=1), tokens(9)
    q, k, v, gates = parts(layer, x)
    m, reads = torch.zeros(2, 2, 4, 4, dtype=torch.float64), []
    for t in range(9):
        error = torch.einsum("bhd,bhde->bhe", k[:, t], m) - v[:, t]
        step = 2 * gates.theta[:, t, :, None, None] * k[:, t, :, :, None] * error[:, :, None]
        m = (1 - gates.alpha[:, t, :, None, None]) * m - step
        reads.append(torch.einsum("bhd,bhde->bhe", q[:, t], m))
    held_to(layer, x, torch.stack(reads, 1))


@torch.no_grad()
def test_persistent_tokens_are_read_before_the_stream():
    layer, x = titans(persistent=3, chunk=2), tokens(5)
    plain = titans(persistent=0, chunk=2)
    plain.load_state_dict({**layer.state_dict(), "persistent": layer.persistent[:0]})
    before = layer.persistent.expand(2, 3, 8)
    torch.testing.assert_close(layer(x)[0], plain(torch.cat([before, x], 1))[0][:, 3:], rtol=1e-9, atol=1e-11)


def test_clipped_errors_take_the_steps_of_hubers_loss():
    from workbench_kernels.linear_memory import NeuralState, neural_memory

    torch.manual_seed(0)
    k, v = torch.nn.functional.normalize(torch.randn(1, 1, 1, 4).double(), dim=-1), torch.randn(1, 1, 1, 4).double()
    ws = [torch.randn(1, 1, a, b).double().requires_grad_() for a, b in ((4, 6), (6, 4))]
    error = (torch.nn.functional.gelu(k[:, 0] @ ws[0][0]) @ ws[1][0] - v[:, 0]).norm()
    state = NeuralState(tuple(w.detach() for w in ws), tuple(torch.zeros_like(w) for w in ws))
    gate = torch.zeros(1, 1, 1).double()
    for clip in (0.5 * error.item(), 2.0 * error.item()):
        loss = error**2 if error < clip else 2 * clip * error - clip**2
        steps = torch.autograd.grad(loss, ws, retain_graph=True)
        _, after = neural_memory(k, k, v, theta=gate + 0.1, eta=gate, alpha=gate, state=state, chunk=1, clip=clip)
        for w, new, step in zip(state.weights, after.weights, steps):
            torch.testing.assert_close(new, w - 0.1 * step)
    with pytest.raises(ValueError, match="clip must be"):
        neural_memory(k, k, v, theta=gate, eta=gate, alpha=gate, state=state, clip=-1.0)


@pytest.mark.parametrize("settings", [{"chunk": 4}, {"chunk": 4, "depth": 1}, HEBBIAN])
def test_a_memory_that_forgets_all_still_learns(settings):
    """alpha of one in float32: nothing of earlier tokens is read, and every gradient is a number."""
    layer = titans(**settings, conv=0).float()
    torch.nn.init.constant_(layer.core.gate_bias[2], 60.0)
    torch.nn.init.normal_(layer.core.first[-1])
    x = tokens(9).float()
    y, _ = layer(x)
    y.square().sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in layer.parameters())
    if settings is HEBBIAN:
        torch.testing.assert_close(y[:, 8], layer(x[:, 8:])[0][:, 0])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gates_of_half_precision_are_no_coarser_than_their_memory(dtype):
    """sigmoid(8) = .99966 is 1 in bfloat16: the memory would be wiped at every token."""
    layer = titans(conv=0).to(dtype)
    torch.nn.init.constant_(layer.core.gate_bias[2], 8.0)
    torch.nn.init.zeros_(layer.core.to_gates.weight)
    alpha = layer.core.gates(tokens(3).to(dtype)).alpha
    assert alpha.dtype == torch.float32
    torch.testing.assert_close(1 - alpha, torch.full_like(alpha, 3.3535e-4), rtol=1e-3, atol=0)


# -- attention --------------------------------------------------------------------------------------------------------


def test_masks_by_hand():
    assert segment_mask(2, 1, 1).int().tolist() == [[1, 1, 1, 0, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]]
    assert window_mask(3, 1, 3, 1).int().tolist() == [
        [1, 0, 1, 1, 0, 0],  # persistent; two slots, of which the newer one is filled; itself
        [1, 0, 1, 1, 1, 0],
        [1, 0, 0, 1, 1, 1],
    ]
    assert build_layer("titans-mag", 8, heads=2, window=2, persistent=1).mask(3).int().tolist() == [
        [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1],
    ]  # fmt: skip


@torch.no_grad()
def test_the_segment_mask_is_what_the_attention_does():
    """Change one column's token and see whose output moves."""
    torch.manual_seed(0)
    attention = SegmentAttention(8, 2, 0, 6).double()
    fixed = torch.randn(2, 8, dtype=torch.float64)
    x, answers = torch.randn(2, 1, 6, 8, dtype=torch.float64)
    state = attention.start(1, "cpu", torch.float64)
    before, _ = attention.run(x, answers, state, 0, fixed)
    mask = segment_mask(6, 0, 2)
    moved = torch.zeros_like(mask)
    for column in range(mask.shape[1]):
        given = [fixed.clone(), answers.clone(), x.clone()]
        part, at = (0, column) if column < 2 else divmod(column - 2, 6)
        (given[0] if column < 2 else given[1 + part][0])[at] += 1
        after, _ = attention.run(given[2], given[1], state, 0, given[0])
        moved[:, column] = (after != before).any(-1)[0]
    assert torch.equal(moved, mask)


@torch.no_grad()
def test_window_attention_is_masked_attention_over_all():
    torch.manual_seed(0)
    attention, x = WindowAttention(8, 2, 0, 4).double(), tokens(13, 1)
    fixed = torch.randn(2, 8, dtype=torch.float64)
    y, state = attention.run(x, attention.start(1, "cpu", torch.float64), fixed)
    q, k, v = attention.split(attention.to_qkv(torch.cat([fixed[None], x], 1)))
    gap = torch.arange(13)[:, None] - torch.arange(13)
    seen = torch.cat([torch.ones(13, 2, dtype=torch.bool), (gap >= 0) & (gap < 4)], 1)
    whole = torch.nn.functional.scaled_dot_product_attention(
        q[:, 2:].transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=seen
    )
    torch.testing.assert_close(y, attention.to_out(whole.transpose(1, 2).flatten(-2)), rtol=1e-9, atol=1e-11)
    assert state["held"] == 3


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_a_late_token_changes_nothing_before_it_in_float32(name):
    torch.manual_seed(0)
    extra = {"titans-mac": {"segment": 8}, "titans-mag": {"window": 8}, "titans-mal": {"window": 8}}.get(name, {})
    layer = build_layer(name, 16, heads=2, chunk=8, **extra)
    x = torch.randn(2, 40, 16)
    y, _ = layer(x)
    for at in (7, 8, 21, 39):
        other = x.clone()
        other[:, at:] = torch.randn_like(other[:, at:])
        assert torch.equal(layer(other)[0][:, :at], y[:, :at])
        assert (layer(other)[0][:, at:] != y[:, at:]).any()


@torch.no_grad()
def test_mac_answers_come_from_the_segments_first_weights():
    """The second segment hears of the first; with steps of size nearly zero it hears nothing of it."""
    torch.manual_seed(0)
    layer = build_layer("titans-mac", 8, heads=2, segment=4, chunk=2, conv=0).double()
    x = tokens(8, 1)
    changed = x.clone()
    changed[:, 1] += 1
    moved = (layer(x)[0] - layer(changed)[0]).abs().sum(-1)[0]
    assert (moved[4:] > 1e-8).all()
    layer.core.gate_bias[0] = -200.0
    layer.core.to_gates.weight.zero_()
    still = (layer(x)[0] - layer(changed)[0]).abs().sum(-1)[0]
    assert (still[4:] == 0).all()
    assert (still[1:4] > 0).all()


# -- cost and state ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_state_does_not_grow_and_attention_does():
    layer = build_layer("titans", 64, heads=2)
    full = build_layer("sliding-window-attention", 64, heads=2, window=None)
    sizes = [[nbytes(one(torch.randn(1, n, 64))[1]) for n in (64, 256)] for one in (layer, full)]
    assert sizes[0][0] == sizes[0][1]
    assert sizes[1][1] > 3.9 * sizes[1][0]


@torch.no_grad()
def test_time_is_linear_in_the_stream():
    """Best of five, so that a busy machine does not decide; quadratic growth would give 16."""
    layer, best = build_layer("titans", 64, heads=2), {}
    for n in (1024, 4096):
        x, took = torch.randn(1, n, 64), []
        for _ in range(5):
            begun = time.process_time()
            layer(x)
            took.append(time.process_time() - begun)
        best[n] = min(took)
    assert best[4096] / best[1024] < 8


# -- looking ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_contents_events_and_pairs(name):
    torch.manual_seed(0)
    layer = build_layer(name, 8, heads=2, chunk=2)
    assert layer.stored_pairs().empty
    assert layer.contents()["tokens"].tolist() == [0] * 4
    x = torch.randn(6, 8)
    layer.write(x[:5])
    layer.write(x[5:])
    table = layer.contents()
    assert table["part"].tolist() == ["weights0", "weights0", "weights1", "weights1"]
    assert table["shape"].tolist() == ["4x16", "4x16", "16x4", "16x4"]
    assert (table["moved"] > 0).all()
    assert (table["momentum"] > 0).all()
    assert ((table["effective_rank"] > 1) & (table["effective_rank"] <= 4 + 1e-6)).all()
    assert table["tokens"].tolist() == [6] * 4
    assert table["theta"].between(0, layer.core.theta_max).all()
    log = layer.events().frame()
    writes = log[log["kind"] == "write"]
    assert [len(row) for row in writes["surprise"]] == [5, 1]
    assert sum(map(sum, writes["error_after"])) < sum(map(sum, writes["error_before"]))
    pairs = layer.stored_pairs(labels=list("abcdef"))
    assert pairs["token"].tolist() == list("abcdef")
    assert (pairs["rank"] < 6).all()
    with pytest.raises(BadInput, match="labels must name the 6 tokens"):
        layer.stored_pairs(["a"])
    layer.hold(layer.start(1), 0)  # another memory: nothing is known of its pairs
    assert layer.stored_pairs().empty
    assert layer.contents()["theta"].isna().all()
    layer.write(x[:2])
    assert len(layer.stored_pairs()) == 2
    layer.reset()
    assert layer.stored_pairs().empty


@torch.no_grad()
def test_the_logged_surprise_is_the_gradients_norm():
    layer, x = titans(chunk=3), tokens(5, 1)
    layer.write(x)
    logged = next(iter(layer.events())).detail["surprise"]
    state = layer.start(1)
    for t in range(5):
        _, k, v, _ = layer.core.project(x[:, t : t + 1], state["conv"])
        anchor = "anchor" if state["filled"] else "weights"
        ws = [w.clone().requires_grad_() for w in layer.core.weights(state, anchor)]
        with torch.enable_grad():
            answer = torch.nn.functional.gelu(k.transpose(1, 2) @ ws[0]) @ ws[1]
            loss = (answer - v.transpose(1, 2)).square().sum()
            grads = torch.autograd.grad(loss, ws)
        norm = sum(g.square().sum((-1, -2)) for g in grads).sqrt().mean()
        assert logged[t] == pytest.approx(float(norm), abs=1e-5)
        _, state = layer(x[:, t : t + 1], state)


def bytes_of(kept: Any) -> int:
    """Of every storage that a layer's own records hold on to."""
    found, todo = {}, [kept]
    while todo:
        one = todo.pop()
        if isinstance(one, torch.Tensor):
            found[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        elif isinstance(one, dict | list | tuple):
            todo += one.values() if isinstance(one, dict) else one
    return sum(found.values())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_of_a_stream_is_its_pairs_and_not_its_memories(name):
    """A few vectors a token; a state of each token would be as many times the memory."""
    layer = build_layer(name, 32, heads=2, chunk=4)
    sizes = []
    for _ in range(2):
        layer.write(torch.randn(32, 32))
        sizes.append(bytes_of({key: value for key, value in vars(layer).items() if key[0] == "_"}))
    assert len(layer.stored_pairs()) == 64
    assert (sizes[1] - sizes[0]) / 32 < nbytes(layer.held) / 20


@torch.no_grad()
def test_a_pair_that_was_written_is_recalled():
    """One key many times: the error of its pair falls to almost nothing, and its value is the nearest."""
    layer = titans(chunk=1, conv=0, momentum=False, decay=False)
    layer.core.gate_bias[0] = 0.0
    x = tokens(3, 1)[0]
    layer.write(x[:2])
    layer.write(x[2:].repeat(40, 1))
    pairs = layer.stored_pairs()
    assert pairs["error"].iloc[-1] < 0.01 * pairs["static_error"].iloc[-1]
    assert pairs["rank"].iloc[-1] == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_implementation_goes_to_the_kernel_and_into_a_model_s_config(name, tmp_path):
    x = torch.randn(1, 5, 8)
    by_default, by_torch = (build_layer(name, 8, heads=2, chunk=16, **words) for words in ({}, {"impl": "chunked"}))
    by_torch.load_state_dict(by_default.state_dict())
    assert torch.equal(by_default(x)[0], by_torch(x)[0])  # "auto" is torch on a CPU
    layer = build_layer(name, 8, heads=2, chunk=16, persistent=0, impl="triton")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"impl.*triton"):
            layer(x)
    MixerLM(MixerConfig(8, 8, [{"mixer": name, "heads": 2, "impl": "triton"}])).save_pretrained(tmp_path)
    assert MixerConfig.from_pretrained(tmp_path).mixers[0]["impl"] == "triton"
    assert MixerLM.from_pretrained(tmp_path).blocks[0].mixer.core.impl == "triton"


def test_all_four_are_registered():
    assert set(NAMES) <= set(MEMORIES.names())


# -- padding: the shared kit holds reads, streams and gradients; here what only counting layers can get wrong ----------


def padded_rows(layer: Any) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Four rows of 9, 5, 9 and 0 tokens under padding, and the state after them."""
    x, keep = tokens(9, 4), torch.ones(4, 9, dtype=torch.bool)
    keep[1, [0, 1, 2, 7]], keep[3] = False, False
    return x, keep, layer(x, keep=keep)[1]


@pytest.mark.parametrize("slug", NAMES)
@torch.no_grad()
def test_padding_changes_no_number_of_a_state(slug: str) -> None:
    """Momentum, anchors, counts and convolutions are each row's own, to the last one."""
    layer = build_layer(slug, 8, heads=2, chunk=4).double()
    x, keep, state = padded_rows(layer)
    for row in range(4):
        kept = x[row : row + 1, keep[row]]
        alone = layer(kept)[1] if kept.shape[1] else layer.start(1)
        for name, value in alone.items():
            own = torch.as_tensor(state[name])
            own = own[row : row + 1] if own.dim() else own
            torch.testing.assert_close(own, torch.as_tensor(value).expand_as(own), rtol=1e-12, atol=1e-13)


@torch.no_grad()
def test_counts_are_shared_again_when_rows_fall_in_step() -> None:
    layer = titans(chunk=4)
    _, _, state = padded_rows(layer)
    assert state["filled"].tolist() == [1, 1, 1, 0]  # 9, 5, 9 and 0 tokens in chunks of 4
    catch_up = torch.zeros(4, 1, dtype=torch.bool)
    catch_up[3] = True
    after = layer(tokens(1, 4), state, keep=catch_up)[1]
    assert after["filled"] == 1
    assert isinstance(after["filled"], int)


@torch.no_grad()
def test_a_row_out_of_a_padded_batch_can_be_held_and_read() -> None:
    layer = build_layer("titans-mag", 8, heads=2, chunk=4, window=3).double()
    x, keep, state = padded_rows(layer)
    layer.hold({name: torch.as_tensor(value)[1:2] for name, value in state.items()}, 5)
    asked = layer.read(x[0, :3])
    layer.hold(layer(x[1:2, keep[1]])[1], 5)
    torch.testing.assert_close(asked, layer.read(x[0, :3]), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("slug", NAMES)
def test_without_padding_no_row_is_looked_at(slug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training with stacked seeds or in a CUDA graph takes the way it always took."""
    from workbench.memory.layers import _titans_base

    monkeypatch.delattr(_titans_base, "in_step")
    layer = build_layer(slug, 8, heads=2, chunk=4).double()
    layer(tokens(3), layer(tokens(9))[1])
