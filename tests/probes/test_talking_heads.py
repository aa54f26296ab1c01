"""Composition scores against explicit matrices, planted channels, and edits that leave no trace."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_patching import FAMILIES, tiny

from workbench.errors import BadInput, ModelError
from workbench.probes import heads, talking_heads
from workbench.probes.composition import (
    Components,
    HeadWeights,
    component_scores,
    components,
    composition,
    head_weights,
    reads,
    score_table,
    without,
)


def random_head(layer: int, head: int, d: int, width: int, seed: int) -> HeadWeights:
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64)

    parts = [matrix(d, width), matrix(d, width), matrix(d, width), matrix(width, d)]
    return HeadWeights(layer, head, *parts, frequencies=torch.tensor([1.0, 0.1], dtype=torch.float64))


@pytest.mark.parametrize("kind", ["query", "key", "value"])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_scores_are_those_of_the_explicit_matrices(kind, offset):
    writer, reader = random_head(0, 0, 20, 4, 1), random_head(1, 0, 20, 4, 2)
    m = {"query": reader.qk(offset), "key": reader.qk(offset).T, "value": reader.ov()}[kind]
    whole = torch.linalg.norm(writer.ov() @ m) / (torch.linalg.norm(writer.ov()) * torch.linalg.norm(m))
    assert composition(writer, reader, kind, offset=offset) == pytest.approx(float(whole), abs=1e-9)
    parts = components(writer)
    assert torch.allclose(parts.u.T @ torch.diag(parts.s) @ parts.v, writer.ov())
    expected = torch.linalg.norm(parts.v @ m, dim=1) / torch.linalg.norm(m)
    assert torch.allclose(component_scores(writer, reader, kind, offset=offset), expected)
    energy = (parts.s**2 * torch.linalg.norm(parts.v @ m, dim=1) ** 2).sum()
    assert float(energy) == pytest.approx(float(torch.linalg.norm(writer.ov() @ m) ** 2), rel=1e-9)
    first, second = reads(reader, kind, offset)
    assert torch.allclose(first @ second.T, m)


def test_a_rotation_of_the_query_is_the_rotation_of_the_score():
    """Two tokens ``offset`` apart: rotating the query by the difference is rotating both by their places."""
    head = random_head(0, 0, 20, 6, 3)
    x, y = torch.randn(20, dtype=torch.float64), torch.randn(20, dtype=torch.float64)

    def turned(row: torch.Tensor, place: float) -> torch.Tensor:
        angle = place * head.frequencies
        first, second, rest = row[:2], row[2:4], row[4:]
        return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin(), rest])

    score = turned(x @ head.q, 9.0) @ turned(y @ head.k, 4.0)
    assert float(x @ head.qk(5.0) @ y) == pytest.approx(float(score), abs=1e-9)


@pytest.mark.parametrize(("d", "width"), [(128, 16), (192, 32)])
def test_a_planted_channel_is_found_by_its_component_and_hidden_from_the_whole_matrix(d, width):
    """Card, part A: nuisance 3, gain 1 and .5: right component in 19 of 20 seeds at least, whole-matrix |z| below 2."""
    right, z_whole = 0, []
    for seed in range(20):
        gain = 1.0 if width == 16 else 0.5
        writers, readers, component = talking_heads.planted_channel(d, width, nuisance=3.0, gain=gain, seed=seed)
        table = score_table([*writers, *readers], kind="query", readers=readers)
        best = table.loc[table["score"].idxmax()]
        right += (best["writer"], best["reader"], best["component"]) == (0, 0, component)
        pair = table[(table["writer"] == 0) & (table["reader"] == 0)].iloc[0]
        z_whole.append(pair["whole_z"])
    assert right >= 19
    assert abs(np.mean(z_whole)) < 2


# ---- models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gemma3"])
def test_folded_weights_of_every_family_give_its_own_scores_and_outputs(family):
    """Attention scores and head outputs of the first layer from the folded matrices, biases aside."""
    model = tiny(family)
    found = {(head.layer, head.head): head for head in head_weights(model)}
    assert set(found) == set(heads.all_heads(model))
    site = heads.sites(model)[0]
    block = dict(model.named_modules())[site.name.rsplit(".", 1)[0]]
    norm = next(getattr(block, n) for n in ("input_layernorm", "ln_1", "self_attn_layer_norm") if hasattr(block, n))
    attention = dict(model.named_modules())[site.name]
    x, y = torch.randn(2, 32, dtype=torch.float64).unbind()
    bare = norm.weight.detach().clone()
    direction = {True: x - x.mean(), False: x}[isinstance(norm, torch.nn.LayerNorm)]
    for h in range(site.n_heads):
        own = found[0, h]
        assert own.q.shape == (32, site.head_dim)
        q, v = _first_projection(attention, direction * bare, site, h)
        assert torch.allclose(direction @ own.q, q, atol=1e-9)
        assert torch.allclose(direction @ own.v, v, atol=1e-9)
        written = y[: site.head_dim] @ site.weight(h).detach()
        centred = written - written.mean() if isinstance(norm, torch.nn.LayerNorm) else written
        assert torch.allclose(y[: site.head_dim] @ own.o, centred, atol=1e-9)


def _first_projection(attention, x, site, head):
    """q and v of one head for the input x, by the module's own forward, biases taken off."""
    width, group = site.head_dim, site.group(head)

    def linear(module):
        zero = module(torch.zeros(1, 1, 32, dtype=torch.float64))
        return (module(x.reshape(1, 1, -1)) - zero)[0, 0]

    if hasattr(attention, "q_proj"):
        q, v = linear(attention.q_proj), linear(attention.v_proj)
        return q[head * width : (head + 1) * width], v[group * width : (group + 1) * width]
    if hasattr(attention, "query_key_value"):
        parts = linear(attention.query_key_value).reshape(site.n_heads, 3, width)
        return parts[head, 0], parts[head, 2]
    joined = linear(attention.c_attn if hasattr(attention, "c_attn") else attention.qkv_proj)
    keys = site.n_heads * width
    values = keys + site.n_kv_heads * width
    return joined[head * width : (head + 1) * width], joined[values + group * width : values + (group + 1) * width]


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor(ids), use_cache=False).logits


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
def test_removing_every_component_is_silencing_the_head_and_alpha_one_changes_nothing(family):
    model, ids = tiny(family), [[5, 9, 11, 20, 7]]
    before = logits(model, ids)
    full = torch.eye(32, dtype=torch.float64)
    with talking_heads.scaled(model, {(1, 2): full}):
        gone = logits(model, ids)
    with heads.zero(model, [(1, 2)]):
        assert torch.allclose(gone, logits(model, ids), atol=1e-9)
    own = talking_heads.channels(model)[1, 2]
    assert isinstance(own, Components)
    with talking_heads.scaled(model, {(1, 2): own.v[:1]}, alpha=1.0):
        assert torch.allclose(before, logits(model, ids), atol=1e-9)
    with talking_heads.scaled(model, {(1, 2): own.v[:1]}):
        assert (before - logits(model, ids)).abs().max() > 1e-6
    assert torch.equal(before, logits(model, ids))
    with pytest.raises(RuntimeError, match="on purpose"), talking_heads.scaled(model, {(1, 2): own.v[:1]}):
        raise RuntimeError("on purpose")
    assert torch.equal(before, logits(model, ids))


def test_a_removed_component_is_gone_from_the_weights_and_the_others_stay():
    head = random_head(0, 0, 20, 4, 5)
    parts, after = components(head), components(without(head, 1))
    assert after.s[:3].tolist() == pytest.approx(parts.s[[0, 2, 3]].tolist())
    assert float(after.s[3]) == pytest.approx(0, abs=1e-9)
    assert torch.allclose(without(head, 1, alpha=1.0).ov(), head.ov())
    with pytest.raises(BadInput, match="component 9"):
        without(head, 9)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
def test_steering_to_the_natural_place_changes_nothing_and_elsewhere_it_does(family):
    model, ids = tiny(family), [[5, 9, 11, 20], [6, 8, 30, 3]]
    basis, before = talking_heads.random_directions(32, 3, 0), logits(model, ids)
    with talking_heads.steered(model, [1], basis, None) as found:
        assert torch.equal(before, logits(model, ids))
    natural = found[0]
    assert natural.shape == (2, 3)
    with talking_heads.steered(model, [1], basis, natural):
        assert torch.allclose(before, logits(model, ids), atol=1e-9)
    with talking_heads.steered(model, [1], basis, natural + 5):
        moved = logits(model, ids)
    assert (moved[:, -1] - before[:, -1]).abs().max() > 1e-3
    assert torch.allclose(moved[:, :-1], before[:, :-1], atol=1e-9)
    with talking_heads.steered(model, [1, 2], basis, torch.zeros(3), ends=[1, 3]) as found:
        logits(model, ids)
    assert len(found) == 2
    assert torch.equal(before, logits(model, ids))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox"])
def test_steered_ends_are_whole_passes_with_the_last_place_set(family):
    model, ids = tiny(family), [5, 9, 11, 20, 7]
    basis = talking_heads.random_directions(32, 2, 1)
    points = torch.tensor([[0.0, 0.0], [3.0, -1.0], [0.5, 2.0]], dtype=torch.float64)
    found, natural = talking_heads.steered_ends(model, ids, 1, basis, points)
    for point, row in zip(points, found):
        with talking_heads.steered(model, [1], basis, point):
            whole = logits(model, [ids])[0, -1].float().log_softmax(-1)
        assert torch.allclose(row, whole, atol=1e-4)
    same, _ = talking_heads.steered_ends(model, ids, 1, basis, natural[None])
    assert torch.allclose(same[0], logits(model, [ids])[0, -1].float().log_softmax(-1), atol=1e-4)


def test_bad_input():
    model = tiny("llama")
    writer, reader = random_head(0, 0, 20, 4, 1), random_head(1, 0, 20, 4, 2)
    with pytest.raises(BadInput, match="earlier layer"):
        composition(reader, writer)
    with pytest.raises(BadInput, match="kind"):
        component_scores(writer, reader, "output")
    with pytest.raises(BadInput, match="rotary"):
        head_weights(tiny("gpt2"))[0].qk(2.0)
    with pytest.raises(BadInput, match="layer 7"), talking_heads.scaled(model, {(7, 0): torch.ones(1, 32)}):
        pass
    with pytest.raises(BadInput, match="rows of 32"), talking_heads.scaled(model, {(0, 0): torch.ones(1, 5)}):
        pass
    with pytest.raises(BadInput, match="span nothing"):
        talking_heads.orthonormal(torch.zeros(2, 4))
    with pytest.raises(BadInput, match="layer 9"), talking_heads.steered(model, [9], torch.ones(1, 32), None):
        pass

    with pytest.raises(BadInput, match="at least one before"):
        talking_heads.steered_ends(model, [5], 1, torch.ones(1, 32), torch.zeros(1, 1))
    with pytest.raises(BadInput, match="width"):
        talking_heads.planted_channel(8, 8, nuisance=0, gain=1, seed=0)

    with pytest.raises(BadInput, match="nuisance"):
        talking_heads.planted_channel(8, 4, nuisance=-1, gain=1, seed=0)
    with pytest.raises(BadInput, match="finite"):
        talking_heads.orthonormal(torch.full((2, 4), torch.nan))
    with pytest.raises(BadInput, match="k=5"):
        talking_heads.random_directions(4, 5, 0)

    class Odd(torch.nn.Module):
        pass

    with pytest.raises((ModelError, BadInput)):
        head_weights(Odd())


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda m, b: talking_heads.scaled(m, {(0, 0): b, (1, 0): torch.zeros(1, 32)}), "span nothing"),
        (lambda m, b: talking_heads.scaled(m, {(0, 0): b}, alpha=float("nan")), "alpha"),
        (lambda m, b: talking_heads.scaled(m, {(0, 0): [[1.0] * 32]}), "rows of 32"),
        (lambda m, b: talking_heads.steered(m, [1], b[:, :5], None), "rows of 32"),
        (lambda m, b: talking_heads.steered(m, [1], 2 * b, torch.zeros(2)), "orthonormal"),
        (lambda m, b: talking_heads.steered(m, [1], b * torch.nan, torch.zeros(2)), "orthonormal"),
        (lambda m, b: talking_heads.steered(m, [1], b, torch.zeros(1)), "2 coordinates"),
        (lambda m, b: talking_heads.steered(m, [1], b, torch.zeros(3, 2)), "points were given for 3"),
        (lambda m, b: talking_heads.steered(m, [1], b, torch.zeros(2), ends=[4]), "ends"),
        (lambda m, b: talking_heads.steered(m, [1], b, torch.zeros(2), ends=[1, 2]), "ends"),
    ],
)
def test_edits_that_would_not_do_what_they_say_are_refused_and_leave_no_trace(edit, said):
    model, ids = tiny("llama"), [[5, 9, 11, 20]]
    before = logits(model, ids)
    with pytest.raises(BadInput, match=said), edit(model, talking_heads.random_directions(32, 2, 0)):
        logits(model, ids)
    assert torch.equal(before, logits(model, ids))


def test_points_that_are_no_rows_are_refused():
    basis = talking_heads.random_directions(32, 2, 0)
    for points in (torch.zeros(2), torch.zeros(0, 2)):
        with pytest.raises(BadInput, match="points are rows"):
            talking_heads.steered_ends(tiny("llama"), [5, 9], 1, basis, points)
