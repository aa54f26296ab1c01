"""Whether WISE's hyper-parameters make sense."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from workbench.checks import whole
from workbench.errors import BadInput
from workbench.memory.parametric._wise_merge import MERGES

_CHOICES = {"merge": tuple(MERGES), "mode": ("merge", "retrieve"), "routing": ("linear", "activated"),
            "route_by": ("prompt", "token"), "units": ("absolute", "model")}  # fmt: skip
_SHARES = ("rho", "density")
_POSITIVE = ("act_ratio", "lr", "clamp")
_NOT_NEGATIVE = ("alpha", "beta", "gamma", "weight_decay")
_COUNTS = {"steps": 1, "save_freq": 1, "merge_freq": 1, "contexts": 0}


#: Those that may be infinite: no bound at all.
_UNBOUNDED = ("clamp", "reach", "eps")


def check(given: Mapping[str, Any]) -> None:
    """Raise BadInput for the first hyper-parameter that is out of range."""
    check_numbers({name: given[name] for name in (*_SHARES, "mix", *_POSITIVE, *_NOT_NEGATIVE)})
    for name, choices in _CHOICES.items():
        if given[name] not in choices:
            raise BadInput(f"{name} must be one of {', '.join(choices)}, got {given[name]!r}")
    for name in _SHARES:
        if not 0 < given[name] <= 1:
            raise BadInput(f"{name} is a share in (0, 1], got {given[name]!r}")
    if not 0 <= given["mix"] <= 1:
        raise BadInput(f"mix is a share in [0, 1], got {given['mix']!r}")
    for name in _POSITIVE:
        if not given[name] > 0:
            raise BadInput(f"{name} must be above 0, got {given[name]!r}")
    for name in _NOT_NEGATIVE:
        if not given[name] >= 0:
            raise BadInput(f"{name} must be at least 0, got {given[name]!r}")
    for name, least in _COUNTS.items():
        whole(name, given[name], least)
    whole("seed", given["seed"], None)
    if given["merge_freq"] % given["save_freq"]:
        raise BadInput(
            f"merge_freq={given['merge_freq']} must be a multiple of save_freq={given['save_freq']}: shards are merged "
            "whole"
        )
    check_texts("negatives", given["negatives"], "")


def check_numbers(given: Mapping[str, Any]) -> None:
    """Raise BadInput for the first that is no number, or infinite where that is no bound left out."""
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadInput(f"{name} must be a number, got {value!r}")
        if math.isinf(value) and name not in _UNBOUNDED:
            raise BadInput(f"{name} must be finite, got {value!r}")


def check_texts(name: str, texts: Any, why: str, *, needed: bool = False) -> list[str]:
    """The texts as a list; BadInput for a single text, an empty one, or none where they are needed."""
    listed = isinstance(texts, Iterable) and not isinstance(texts, str)
    if not listed or not all(isinstance(text, str) and text.strip() for text in texts):
        raise BadInput(f"{name} is a list of texts that are not empty; put a single text into a list")
    if needed and not texts:
        raise BadInput(f"{name} is empty: {why}; give a list of ordinary texts")
    return list(texts)
