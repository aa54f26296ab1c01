"""Claims of Just read twice about single runs: their intervals, and which way each of them points."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from workbench.memory.layers._prefix_linear import quadratic
from workbench.statistics import HOLDS, NOT_REPRODUCED, difference_of_means
from workbench.studies import _jrt_claims as claims
from workbench.studies import _jrt_gpu
from workbench.views import just_read_twice as pictures
from workbench.views._jrt_figure import orders_of

SIZES = ((16, 64), (64, 16), (4, 76), (76, 4))


def one_model(shares: dict[str, tuple[float, float]], n: int = 400) -> pd.DataFrame:
    """Shares right of one model a mode: small set first, large set first."""
    rows = [
        ("sets", mode, a, b, 5e3, "0", "accuracy", small if a < b else large, n)
        for mode, (small, large) in shares.items()
        for a, b in SIZES
    ]
    return pd.DataFrame(rows, columns=["experiment", "item", "first", "second", "x", "unit", "metric", "value", "n"])


def test_the_interval_of_one_model_is_that_of_its_test_sequences():
    frame = one_model({"causal": (0.8, 0.5), "prefix": (0.7, 0.6)})
    causal = (0.8 * 0.2 + 0.5 * 0.5) / 800  # two pairs of sizes of 400 sequences each, in either order
    prefix = (0.7 * 0.3 + 0.6 * 0.4) / 800
    gap, half = claims.order_matters(frame), claims._half_the_gap("prefix")(frame)
    better = claims._better_with_large_first("prefix")(frame)
    for found, effect, variance in (
        (gap, 0.3, causal),
        (half, 0.3 / 2 - 0.1, causal / 4 + prefix),
        (better, 0.1, (0.5 * 0.5 + 0.6 * 0.4) / 800),
    ):
        assert found.effect == pytest.approx(effect)
        assert found.high - found.effect == pytest.approx(1.96 * variance**0.5)
        assert found.effect - found.low == pytest.approx(1.96 * variance**0.5)
    orders = orders_of(frame)
    assert orders is not None
    for panel, variance in ((pictures.PANELS[2], causal), (pictures.PANELS[0], 0.8 * 0.2 / 800)):
        (drawn,) = orders[(orders["mode"] == "causal") & (orders["panel"] == panel)].to_dict("records")
        assert drawn["high"] - drawn["value"] == pytest.approx(1.96 * variance**0.5)


def by_hand(shares: dict[tuple[int, int, int], list[float]]) -> pd.DataFrame:
    """Shares right for (passes, first, second), one a draw."""
    rows = [
        ("by hand", f"{passes} x", first, second, 256, str(unit), "accuracy", value)
        for (passes, first, second), values in shares.items()
        for unit, value in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=["experiment", "item", "first", "second", "x", "unit", "metric", "value"])


@pytest.mark.parametrize(
    ("twice", "easy"), [([0.3, 0.32, 0.34], [0.3, 0.33, 0.33]), ([0.9, 0.92, 0.91], [0.6, 0.61, 0.6])]
)
def test_the_second_pass_and_the_order_by_hand(twice, easy):
    frame = by_hand({(1, 256, 16): [0.1, 0.12, 0.11], (2, 256, 16): twice, (1, 16, 256): easy})
    gain, gone = claims.second_pass_helps(frame), claims.order_is_gone(frame)
    assert gain.effect == pytest.approx(sum(twice) / 3 - 0.11)
    apart = difference_of_means(twice, easy)
    assert gone.effect == pytest.approx(abs(apart.effect))
    assert gone.high == pytest.approx(max(abs(apart.low), abs(apart.high)))
    assert gone.low == pytest.approx(0.0 if apart.low <= 0 <= apart.high else apart.low)
    turned = by_hand({(2, 256, 16): easy, (1, 16, 256): twice})
    assert claims.order_is_gone(turned).low == pytest.approx(gone.low), "the size counts, not the sign"
    verdicts = [NOT_REPRODUCED, HOLDS] if twice[0] < 0.5 else [HOLDS, NOT_REPRODUCED]
    assert [gain.verdict, gone.verdict] == verdicts


def answers(item: str, once: float, twice: float, n: int = 200) -> pd.DataFrame:
    rows = [
        ("prompt", item, times, str(i), "correct", float(i < share * n))
        for times, share in ((1, once), (2, twice))
        for i in range(n)
    ]
    return pd.DataFrame(rows, columns=["experiment", "item", "x", "unit", "metric", "value"])


def test_repeating_helps_where_the_second_answer_is_the_better_one():
    for item, claim in (
        (claims.RECURRENT, claims.repeating_helps),
        (claims.EMBEDDED, claims.repeating_helps_attention),
    ):
        assert claim(answers(item, 0.5, 0.7)).verdict == HOLDS
        assert claim(answers(item, 0.7, 0.5)).verdict == NOT_REPRODUCED


@pytest.mark.parametrize(("slope", "verdict"), [(-0.05, HOLDS), (0.05, NOT_REPRODUCED)])
def test_live_training_holds_where_the_loss_falls(slope, verdict):
    rows = [("live training", x, 5 + slope * x + 0.01 * (-1) ** x) for x in range(1, 41)]
    frame = pd.DataFrame(rows, columns=["experiment", "x", "value"])
    assert claims.learns_live(frame).verdict == verdict
    assert claims.learns_live(frame.head(10)).n == 0


def test_the_race_runs_what_its_names_say():
    """The contenders of the prefill race on a CPU, against the sums over pairs of the numbers that they drew."""
    settings = {"prefill_batch": 2, "prefill_heads": 3, "prefill_f": 4, "prefill_d": 5}
    race = _jrt_gpu.contenders(settings, 20, torch.Generator().manual_seed(1), "chunked")
    made = {name: run().float() for name, run in race.items()}
    again = torch.Generator().manual_seed(1)
    shapes = [(2, 40, 3, 4)] * 3 + [(2, 40, 3, 5), (2, 20, 3, 5)]
    q, k, ke, v, ve = (torch.randn(shape, generator=again).bfloat16().float() for shape in shapes)
    short = q[:, :20], k[:, :20], v[:, :20]
    wanted = {
        claims.LINEAR: quadratic(*short),
        claims.LINEAR_TWICE: quadratic(q, k, v),
        claims.PREFIX_TIME: quadratic(*short, (ke[:, :20], ve)),
    }
    for name, exact in wanted.items():
        assert made[name].shape == exact.shape
        assert (made[name] - exact).abs().max() < 2e-2, name
    assert (wanted[claims.LINEAR] - wanted[claims.PREFIX_TIME]).abs().max() > 0.1
    assert made[claims.QUADRATIC].shape == (2, 3, 20, 5)
