"""``workbench bench``: a table for people, JSON for machines, rows for the record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from workbench.bench import attention


@pytest.fixture(autouse=True)
def one_small_point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    point = attention.Point(1, 64, 4, 16, True, torch.float32)
    monkeypatch.setattr(attention, "points", lambda device, quick: [point])
    monkeypatch.setenv("WORKBENCH_RECORDED", str(tmp_path))


def test_the_table_names_contenders_ratios_and_the_ceiling(cli: Callable[..., Any]) -> None:
    done = cli("bench", "attention", "--device", "cpu")
    assert done.exit_code == 0, done.stderr
    for word in ("ceiling", "TFLOP/s", "tiled", "SDPA", "forward", "backward", "to best peer", "quartiles", "error"):
        assert word in done.stdout


def test_json_holds_every_row_and_no_nan(cli: Callable[..., Any]) -> None:
    value = json.loads(cli("bench", "attention", "--device", "cpu", "--json").stdout)
    assert {"bench", "title", "provenance", "rows"} == set(value)
    row = next(row for row in value["rows"] if row["item"] == "tiled" and row["pass"] == "forward")
    assert row["error"] < 1e-5
    assert row["sm_mhz"] is None
    assert row["to_best_peer"] > 0


def test_record_writes_the_rows_with_their_provenance(cli: Callable[..., Any], tmp_path: Path) -> None:
    done = cli("bench", "attention", "--device", "cpu", "--quick", "--record")
    assert "bench-attention.csv" in done.stderr
    held = pd.read_csv(tmp_path / "bench-attention.csv")
    rows = held[held["scale"] == "quick cpu"]  # beside the shipped rows of other scales
    assert set(rows["item"]) == {"tiled", "eager", "SDPA"}
    assert rows["libraries"].str.contains("torch").all()


def test_called_wrongly(cli: Callable[..., Any]) -> None:
    misspelt = cli("bench", "atention")
    assert misspelt.exit_code == 2
    assert "attention" in misspelt.stderr
    assert cli("bench", "attention", "--device", "tpu").exit_code == 2
    short = cli("bench", "attention", "--device", "cpu", "--minutes", "0")
    assert short.exit_code == 2
    assert "minutes must be a number above 0" in short.stderr
