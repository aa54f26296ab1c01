"""The race: what it counts, who is put out of it, and what it refuses."""

from __future__ import annotations

import gc
import math
import time

import pytest
import torch

from workbench.errors import BadInput
from workbench.systems import timing


def test_one_row_a_contender_in_the_order_given_with_ordered_quartiles() -> None:
    table = timing.race({"b": lambda: time.sleep(0.001), "a": lambda: None}, device="cpu", warmup=2, launches=9)
    assert list(table.columns) == list(timing.COLUMNS)
    assert table["item"].tolist() == ["b", "a"]
    assert (table["launches"] == 9).all()
    assert (table["error"] == "").all()
    assert (table["q25_ms"] <= table["median_ms"]).all()
    assert (table["median_ms"] <= table["q75_ms"]).all()
    assert table["median_ms"][0] >= 1.0


def test_contenders_take_turns_and_the_order_alternates() -> None:
    order: list[str] = []
    timing.race({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, device="cpu", warmup=1, launches=4)
    assert order[-8:] == list("abbaabba")


def test_every_launch_is_counted() -> None:
    calls: list[int] = []
    timing.race({"a": lambda: calls.append(1)}, device="cpu", warmup=3, launches=5)
    assert len(calls) == 8


def test_a_contender_that_raises_has_its_text_and_the_others_go_on() -> None:
    def fails() -> None:
        raise RuntimeError("no kernel for head dim 17\nwith a second line")

    table = timing.race({"bad": fails, "good": lambda: None}, device="cpu", warmup=1, launches=3).set_index("item")
    assert table.loc["bad", "error"] == "RuntimeError: no kernel for head dim 17"
    assert math.isnan(table.loc["bad", "median_ms"])
    assert table.loc["bad", "launches"] == 0
    assert table.loc["good", "launches"] == 3


def test_one_that_fails_in_the_middle_is_out() -> None:
    calls: list[int] = []

    def fails_later() -> None:
        calls.append(1)
        if len(calls) > 3:
            raise ValueError

    table = timing.race({"late": fails_later}, device="cpu", warmup=2, launches=9)
    assert table["error"][0] == "ValueError"
    assert len(calls) == 4


def test_a_budget_cuts_launches_but_never_below_three() -> None:
    def slow() -> None:
        time.sleep(0.01)

    table = timing.race({"a": slow}, device="cpu", warmup=50, launches=1000, budget_s=0.4)
    assert 3 <= table["launches"][0] < 60
    table = timing.race({"a": slow}, device="cpu", warmup=1, launches=50, budget_s=1e-6)
    assert table["launches"][0] == 3


def test_a_slow_contender_sits_out_rounds_and_the_quick_one_does_not() -> None:
    contenders = {"slow": lambda: time.sleep(0.02), "quick": lambda: None}
    # many launches to warm up: their mean says how many fit, and one alone may have met a break of the process
    table = timing.race(contenders, device="cpu", warmup=50, launches=40, budget_s=0.5).set_index("item")
    assert 3 <= table.loc["slow", "launches"] < 20
    assert table.loc["quick", "launches"] == 40


def test_the_collector_is_off_inside_and_on_again_after() -> None:
    seen: list[bool] = []
    timing.race({"a": lambda: seen.append(gc.isenabled())}, device="cpu", warmup=1, launches=1)
    assert seen == [False, False]
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"warmup": 0}, "warmup"),
        ({"launches": 0}, "launches"),
        ({"budget_s": 0.0}, "budget_s"),
        ({"device": "meta"}, "meta"),
        ({"contenders": {}}, "contender"),
        ({"contenders": {"x": 3}}, "'x'"),
    ],
)
def test_bad_input_is_named(settings: dict, named: str) -> None:
    words = {"contenders": {"a": lambda: None}, "device": "cpu"} | settings
    with pytest.raises(BadInput, match=named):
        timing.race(words.pop("contenders"), **words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize(
    "call", [lambda: timing.race({"a": lambda: None}, device="cuda"), lambda: timing.ceilings("cuda")]
)
def test_a_card_that_is_not_there_is_an_error(call) -> None:
    with pytest.raises(BadInput, match="no CUDA device"):
        call()


def test_ceilings_are_rates_of_known_jobs() -> None:
    found = timing.ceilings("cpu")
    assert found["matmul_tflops"] > 0
    assert found["copy_tb_s"] > 0
    assert (found["matmul_size"], found["matmul_dtype"], found["copy_bytes"]) == (768, "float32", 64 << 20)


def test_what_a_call_costs_a_cpu_is_its_own_work() -> None:
    """Somebody else's turn, as a sleep, is none of it."""
    work = torch.randn(256, 256)
    busy = timing.seconds_of(lambda: [work @ work for _ in range(100)], "cpu")
    assert busy > 0
    assert timing.seconds_of(lambda: time.sleep(0.1), "cpu") < 0.05


def test_clocks_are_numbers_or_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert timing.clocks() == {}
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\n/bin/sleep .1\necho '1980, 1980, 2619, 310.25, [N/A], 41'\n")
    tool.chmod(0o755)
    asked: list[int] = []
    assert timing.clocks(lambda: asked.append(1)) == {
        "sm_mhz": 1980.0,
        "sm_max_mhz": 1980.0,
        "memory_mhz": 2619.0,
        "power_w": 310.25,
        "temperature_c": 41.0,
    }
    assert asked


def test_a_card_is_named_as_nvidia_smi_names_it_and_its_failure_is_no_clock(monkeypatch, tmp_path) -> None:
    """CUDA_VISIBLE_DEVICES means nothing to nvidia-smi: the first line of all cards is often another card's."""
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(timing, "_uuid", lambda device: f"GPU-{device}")
    tool.write_text('#!/bin/sh\ncase "$*" in *--id=GPU-cuda:3) echo 1785;; *) echo 345;; esac\n')
    tool.chmod(0o755)
    assert timing.clocks(device="cuda:3") == {"sm_mhz": 1785.0}
    tool.write_text("#!/bin/sh\necho 345\nexit 6\n")
    assert timing.clocks(device="cuda:3") == {}
    tool.write_text("#!/bin/sh\nexec /bin/sleep 30\n")
    monkeypatch.setattr(timing, "_SMI_S", 0.2)
    assert timing.clocks(device="cuda:3") == {}


def test_long_errors_fit_a_cell() -> None:
    assert len(timing.one_line(RuntimeError("x" * 1000))) == 200
