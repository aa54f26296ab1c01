"""The table of sequence memories: contenders do the work, the error is not blind, missing peers become reasons."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from workbench import bench
from workbench.bench import _layer_peers, layers

SMALL = layers.Point("linear", 60, heads=2, dim=8, dtype=torch.float32)


@pytest.mark.parametrize("which", layers.PASSES)
@pytest.mark.parametrize("rule", _layer_peers.FLA)
def test_every_contender_agrees_with_the_float64_recurrence(rule: str, which: str) -> None:
    case = layers.rule_case(replace(SMALL, rule=rule, which=which), "cpu")
    assert set(case.contenders) == {"ours, torch", "recurrence"}
    for contender in case.contenders.values():
        assert case.check is not None
        assert case.check(contender.run()) < 1e-5


def test_a_wrong_gradient_shows() -> None:
    case = layers.rule_case(replace(SMALL, rule="gated delta", which=layers.PASSES[1]), "cpu")
    y, dq, dk, *rest = case.contenders["ours, torch"].run()
    assert case.check is not None
    assert case.check((y, dq, dk.flip(1), *rest)) > 0.1


def test_softmax_attention_is_not_called_wrong() -> None:
    case = layers.rule_case(replace(SMALL, kind="crossover"), "cpu")
    assert case.check is not None
    assert math.isnan(case.check(case.contenders["SDPA"].run()))
    assert case.check(case.contenders["ours, torch"].run()) < 1e-5


def test_gpu_points_hold_the_shapes_of_the_goal() -> None:
    for quick in (True, False):
        early = (*layers.points("cuda", quick)[0], *layers.crossover("cuda", quick)[0])
        goal = {(p.rule, p.which) for p in early if (p.length, p.heads, p.dim) == (32768, 16, 128)}
        assert {(rule, which) for rule in ("linear", "gated delta") for which in layers.PASSES} <= goal
    assert all(p.batch * p.length == 32768 for part in layers.crossover("cuda", False) for p in part)
    assert layers.Point("linear", 32768).bytes_moved == 4 * 32768 * 16 * 128 * 2


def test_a_peer_that_is_not_there_becomes_a_reason() -> None:
    q = torch.zeros(1, 4, 1, 4)
    with pytest.raises(ImportError):
        _layer_peers.fla("linear")(q, q, q, None, None)
    case = layers.neural_case(NEURAL, "cpu")
    with pytest.raises(ImportError):
        case.contenders["titans-pytorch"].run()


NEURAL = layers.NeuralPoint(64, "forward", batch=2, dim=16, heads=2, chunk=16)


@pytest.mark.parametrize("which", layers.PASSES)
def test_the_neural_memory_is_held_to_float64(which: str) -> None:
    case = layers.neural_case(replace(NEURAL, which=which), "cpu")
    found = case.contenders["ours, torch"].run()
    y = found if which == "forward" else found[0]
    assert y.shape == (2, 64, 16)
    assert case.check is not None
    assert case.check(found) < 1e-5
    wrong = y * 1.1 if which == "forward" else (y * 1.1, *found[1:])
    assert 0.05 < case.check(wrong) < 0.2
    other = torch.randn(y.shape)
    assert math.isnan(case.check(other if which == "forward" else (other,)))


def test_the_neural_race_comes_before_the_crossover_and_has_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a card would be asked, in order; no case is made."""
    monkeypatch.setattr(layers, "rule_case", lambda point, device: (point.kind, point.rule, point.length))
    monkeypatch.setattr(layers, "neural_case", lambda point, device: ("neural", point.chunk, point.length))
    order = list(dict.fromkeys(layers.LayersBench().cases("cuda", False)))
    wanted = [
        ("rule", "linear", 32768), ("rule", "gated delta", 32768), ("crossover", "gated delta", 32768),
        ("neural", 64, 2048), ("neural", 32, 2048), ("crossover", "linear", 32768),
    ]  # fmt: skip
    assert order[:6] == wanted
    assert {("neural", 64, 8192), ("neural", 32, 8192)} <= set(order)
    makers = layers.neural_makers(NEURAL, "cuda")
    assert list(makers) == ["ours, triton", "ours, torch", "titans-pytorch", "titans-pytorch, one gradient point"]


def test_the_table_runs() -> None:
    frame = bench.run("layers", device="cpu", quick=True)
    assert set(frame["kind"]) == {"rule", "neural memory", "crossover"}
    ours = frame[frame["ours"]]
    assert (ours["failure"] == "").all()
    assert (ours["error"] < 1e-5).all()
    assert ours["median_ms"].notna().all()
