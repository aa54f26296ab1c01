"""The harness of the bench tables: rows, ratios, errors, recording, and what happens to a contender that cannot."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from workbench import bench, provenance
from workbench.bench import _runner
from workbench.bench.base import relative_error
from workbench.errors import BadInput, UnknownName
from workbench.models import meter
from workbench.studies.base import Progress
from workbench_datasets import files, recorded

QUIET = Progress(quiet=True)


class Toy(bench.Bench):
    """Sleeps: ours 1 ms, peers 2 and 12 ms, apart on a busy machine too; one that cannot, one answer that is wrong."""

    name, title = "toy", "Sleeps"

    def cases(self, device: str, quick: bool):
        for size in (1, 2):
            yield bench.Case({"size": size}, self.contenders(), 8e9, "TB/s", check=self.check, launches=5)

    def contenders(self) -> dict[str, bench.Contender]:
        def nap(seconds: float, answer: float):
            return lambda: (time.sleep(seconds), answer)[1]

        def refuses() -> None:
            raise ValueError("head dim 300 is not supported")

        return {
            "mine": bench.Contender(nap(0.001, 1.0), ours=True),
            "peer": bench.Contender(nap(0.002, 1.1), version="lib 1"),
            "slow peer": bench.Contender(nap(0.012, math.inf)),
            "cannot": bench.Contender(refuses, ours=True),
        }

    def check(self, found: float) -> float:
        if math.isinf(found):
            raise MemoryError("no room for the reference")
        return abs(found - 1.0)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(bench.BENCHES, "_known", {**bench.BENCHES._known, "toy": Toy()})
    monkeypatch.setenv("WORKBENCH_RECORDED", str(tmp_path / "recorded"))
    return tmp_path / "recorded"


def test_rows_hold_rates_ratios_and_errors(toy: Path) -> None:
    frame = bench.run("toy", device="cpu", progress=QUIET)
    assert list(frame.columns) == ["size", *_runner.COLUMNS]
    assert len(frame) == 8
    rows = frame[frame["size"] == 1].set_index("item")
    assert rows.loc["mine", "rate"] == pytest.approx(8e9 / (rows.loc["mine", "median_ms"] * 1e-3) / 1e12)
    assert rows.loc["mine", "to_best_peer"] == pytest.approx(
        rows.loc["peer", "median_ms"] / rows.loc["mine", "median_ms"]
    )
    assert rows.loc["peer", "to_best_peer"] == 1.0
    assert rows.loc["slow peer", "to_best_peer"] < 1.0
    assert (rows["to_ceiling"].dropna() == (rows["rate"] / rows["ceiling"]).dropna()).all()
    assert rows.loc["mine", "error"] == 0.0
    assert rows.loc["peer", "error"] == pytest.approx(0.1)
    assert rows["ours"].tolist() == [True, False, False, True]
    assert rows.loc["peer", "version"] == "lib 1"


def test_a_contender_that_cannot_keeps_its_reason_and_a_failed_check_keeps_its_times(toy: Path) -> None:
    rows = bench.run("toy", device="cpu", progress=QUIET).groupby("item").first()
    assert rows.loc["cannot", "failure"] == "ValueError: head dim 300 is not supported"
    assert math.isnan(rows.loc["cannot", "median_ms"])
    assert rows.loc["slow peer", "failure"] == "unchecked: MemoryError: no room for the reference"
    assert rows.loc["slow peer", "median_ms"] >= 12.0
    assert math.isnan(rows.loc["slow peer", "error"])


def test_rates_in_tokens_and_memory_where_a_table_measures_them(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = Toy.cases

    def counted(self, device: str, quick: bool):
        for case in list(cases(self, device, quick))[:1]:
            plain = {name: replace(one, plain=one.run) for name, one in case.contenders.items()}
            yield replace(case, place={**case.place, "tokens": 64}, contenders=plain)

    monkeypatch.setattr(Toy, "cases", counted)
    rows = bench.run("toy", device="cpu", progress=QUIET).set_index("item")
    mine = rows.loc["mine"]
    assert mine["tokens_per_s"] == pytest.approx(64e3 / mine["median_ms"])
    assert math.isnan(rows.loc["cannot", "tokens_per_s"])
    assert rows["extra_gb"].isna().all()  # torch does not count a CPU's


def test_memory_is_measured_on_the_call_without_its_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(meter, "peak_bytes", lambda run, device: asked.append((run(), device)) or 2_345_600_000)
    one = bench.Contender(lambda: "graph", plain=lambda: "plain")
    case, time = bench.Case({}, {"one": one}, 1.0, "TB/s"), {"median_ms": 1.0, "error": ""}
    assert _runner._more(case, one, time, "cuda:1") == {"extra_gb": 2.346}
    assert asked == [("plain", torch.device("cuda:1"))]
    assert math.isnan(_runner._more(case, one, {"median_ms": math.nan, "error": "failed"}, "cuda")["extra_gb"])


def test_nothing_is_recorded_unasked_and_a_scale_replaces_only_itself(toy: Path) -> None:
    bench.run("toy", device="cpu", progress=QUIET)
    assert not toy.exists()
    bench.run("toy", device="cpu", record=True, progress=QUIET)
    bench.run("toy", device="cpu", quick=True, record=True, progress=QUIET)
    bench.run("toy", device="cpu", quick=True, record=True, progress=QUIET)
    held = pd.read_csv(toy / "bench-toy.csv")
    assert held["scale"].value_counts().to_dict() == {"full cpu": 8, "quick cpu": 8}
    assert list(held.columns[: len(provenance.COLUMNS)]) == list(provenance.COLUMNS)
    assert (held["study"] == "bench-toy").all()
    assert held["device"].str.startswith("cpu").all()
    assert len(recorded.load("bench-toy", "quick cpu")) == 8


def test_what_was_measured_is_recorded_whatever_happens_next(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = Toy.cases

    def breaks(self, device: str, quick: bool):
        yield from list(cases(self, device, quick))[:1]
        raise MemoryError("no room for the second case")

    monkeypatch.setattr(Toy, "cases", breaks)
    with pytest.raises(MemoryError):
        bench.run("toy", device="cpu", record=True, progress=QUIET)
    assert len(pd.read_csv(toy / "bench-toy.csv")) == 4


def test_minutes_replace_the_table_s_own_limit(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(bench.run("toy", device="cpu", minutes=1e-9, progress=QUIET)) == 4  # the case that was begun is finished
    assert len(bench.run("toy", device="cpu", minutes=5, progress=QUIET)) == 8
    monkeypatch.setattr(Toy, "limit_s", 30.0)
    limits = [_runner._limit_s(Toy(), *asked) for asked in (("cpu", None), ("cuda", None), ("cuda", 4), ("cpu", 0.5))]
    assert limits == [math.inf, 30.0, 240.0, 30.0]
    for wrong in (0, -1.0, math.nan, True, "2"):
        with pytest.raises(BadInput, match="minutes must be a number above 0"):
            bench.run("toy", device="cpu", minutes=wrong, progress=QUIET)


def test_a_gpu_run_is_a_scale_of_its_own() -> None:
    names = {_runner.scale_name(device, quick) for device in ("cpu", "cuda:0") for quick in (True, False)}
    assert names == {"quick cpu", "full cpu", "quick", "full"}


def test_unknown_tables_and_devices_are_named() -> None:
    with pytest.raises(UnknownName, match="attention"):
        bench.run("atention", progress=QUIET)
    with pytest.raises(BadInput, match="got 3"):
        bench.run("attention", device=3, progress=QUIET)
    with pytest.raises(BadInput, match="'tpu'"):
        bench.run("attention", device="tpu", progress=QUIET)
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match="no CUDA device"):
            bench.run("attention", device="cuda:1", progress=QUIET)


def test_relative_error_sees_one_wrong_tile() -> None:
    exact = torch.randn(100, 64, generator=torch.Generator().manual_seed(0)).double()
    found = exact.clone()
    assert relative_error(found.float(), exact) < 1e-6
    found[3] = 0
    assert 0.05 < relative_error(found, exact) < 0.2


def test_every_table_is_found_by_its_file_and_gives_cases_on_a_cpu() -> None:
    assert "attention" in bench.BENCHES.names()
    for name in bench.BENCHES.names():
        table = bench.BENCHES.get(name)
        case = next(iter(table.cases("cpu", quick=True)))
        assert table.name == name
        assert any(contender.ours for contender in case.contenders.values())
        assert case.work > 0


RECORDED = sorted(path.stem.removeprefix("bench-") for path in (files.files_root() / "recorded").glob("bench-*.csv"))


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_table_belongs_to_a_bench_and_holds_what_it_measured(name: str) -> None:
    """Ratios follow from the times of their own case, and nothing of ours that was timed was wrong."""
    assert name in bench.BENCHES
    for scale in recorded.scales(f"bench-{name}"):
        table = recorded.load(f"bench-{name}", scale)
        place = [x for x in table.columns[: list(table.columns).index("item")] if x not in provenance.COLUMNS]
        timed = table[table["median_ms"].notna()]
        assert len(timed)
        for _, rows in timed.groupby(place):
            peers = rows.loc[~rows["ours"], "median_ms"]
            if len(peers):
                ratio = peers.min() / rows["median_ms"]
                assert (ratio - rows["to_best_peer"]).abs().max() < 1e-9 * ratio.max()
        checked = timed.loc[timed["ours"], "error"].dropna()
        assert (checked < 0.05).all()
