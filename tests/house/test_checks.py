"""What is a whole number, and what a number, is one rule for all rooms."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from workbench import checks
from workbench.errors import BadInput

NEITHER: list[Any] = [True, np.True_, None, "1", [1], (1,), 1j, torch.tensor(1), np.array([1])]
NUMBERS: list[Any] = [2.0, np.float32(2), np.float16(2), Fraction(2)]
WHOLE: list[Any] = [2, np.int64(2), np.uint8(2), np.int8(2)]


@pytest.mark.parametrize("value", WHOLE, ids=repr)
def test_whole_numbers_come_back_as_plain_ones(value: Any) -> None:
    assert checks.is_whole(value)
    for made, kind in ((checks.whole("n", value), int), (checks.number("x", value), float)):
        assert made == 2
        assert type(made) is kind


@pytest.mark.parametrize("value", [*NEITHER, *NUMBERS, math.inf, math.nan], ids=repr)
def test_what_is_no_whole_number_is_named(value: Any) -> None:
    assert not checks.is_whole(value)
    with pytest.raises(BadInput, match=r"^heads must be a whole number of at least 1, got ") as told:
        checks.whole("heads", value)
    assert str(told.value).endswith(repr(value))


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_numbers_come_back_as_floats(value: Any) -> None:
    assert checks.is_number(value)
    made = checks.number("x", value)
    assert made == 2
    assert type(made) is float


@pytest.mark.parametrize("value", [*NEITHER, math.inf, -math.inf, math.nan, np.float32("nan"), 10**400], ids=repr)
def test_what_is_no_number_is_named(value: Any) -> None:
    assert not checks.is_number(value)
    with pytest.raises(BadInput, match=r"^lr must be a finite number, got "):
        checks.number("lr", value)


@pytest.mark.parametrize(
    ("value", "bounds", "legal"),
    [
        (0, {}, "of at least 1"),
        (-1, {"least": 0}, "of at least 0"),
        (1, {"least": 2, "most": 4096}, "from 2 to 4,096"),
        (5000, {"least": 2, "most": 4096}, "from 2 to 4,096"),
        (9, {"least": None, "most": 8}, "of at most 8"),
        (10**400, {"most": 8}, "from 1 to 8"),
    ],
)
def test_whole_numbers_have_bounds_that_belong_to_them(value: int, bounds: dict[str, Any], legal: str) -> None:
    with pytest.raises(BadInput, match=f"^n must be a whole number {legal} or None, got {str(value)[:20]}"):
        checks.whole("n", value, **bounds, more=" or None")
    for name, limit in bounds.items():
        if limit is not None:
            assert checks.whole("n", limit, **bounds) == limit, name


@pytest.mark.parametrize(
    ("value", "bounds", "legal"),
    [
        (-0.1, {"least": 0}, " of at least 0"),
        (1.1, {"least": 0, "most": 1}, " from 0 to 1"),
        (0, {"above": 0}, " above 0"),
        (0.0, {"above": 0, "most": 1}, " above 0 and at most 1"),
        (1.5, {"above": 0, "most": 1}, " above 0 and at most 1"),
        (2, {"most": 1}, " of at most 1"),
    ],
)
def test_numbers_have_bounds(value: float, bounds: dict[str, Any], legal: str) -> None:
    with pytest.raises(BadInput, match=f"^x must be a finite number{legal}, got {value!r}$"):
        checks.number("x", value, **bounds)
    assert checks.number("x", bounds.get("most", 0.5), **bounds) == bounds.get("most", 0.5)
    if "least" in bounds:
        assert checks.number("x", bounds["least"], **bounds) == bounds["least"]


def test_a_long_text_is_not_told_whole() -> None:
    with pytest.raises(BadInput) as told:
        checks.whole("n", "7" * 1_000_000)
    assert len(str(told.value)) < 200


@pytest.mark.parametrize(
    "asked", ["mars", "cuda:x", "cuda:-1", "cuda:", "", None, 0, "meta", torch.device("meta")], ids=repr
)
def test_what_is_no_device_is_named(asked: Any) -> None:
    with pytest.raises(BadInput, match=r"^device must be 'cpu', 'cuda' or 'cuda:N', got ") as told:
        checks.device(asked)
    assert str(told.value).endswith(repr(asked))


def test_auto_is_a_device_only_where_it_may_be() -> None:
    assert checks.device("auto", auto=True) == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(BadInput, match=r"^device must be 'cpu'"):
        checks.device("auto")
    with pytest.raises(BadInput, match=r"^device must be 'auto', 'cpu'"):
        checks.device("mars", auto=True)


def test_a_card_has_to_be_there_where_the_work_is_done_here() -> None:
    beyond = f"cuda:{torch.cuda.device_count()}"
    seen = f"{torch.cuda.device_count()} CUDA device" if torch.cuda.is_available() else "no CUDA device here"
    for asked in (beyond, torch.device(beyond)):
        with pytest.raises(BadInput, match=f"device '{beyond}' was asked for, but torch sees {seen}"):
            checks.device(asked)
        assert checks.device(asked, here=False) == beyond
    assert checks.device(torch.device("cpu")) == checks.device("cpu") == "cpu"
