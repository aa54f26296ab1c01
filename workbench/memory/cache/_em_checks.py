"""What EM-LLM's hyper-parameters may be; every refusal names the parameter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from workbench.errors import BadInput
from workbench.memory.cache import _events

CHOICES = {
    "segmentation": ("surprise", "fixed", "random"),
    "refine": ("none", *_events.METRICS),
    "threshold": ("sliding", "chunk"),
    "similarity": ("cos01", "dot"),
    "retrieval": ("similarity", "random", "none"),
    "offload": ("cpu", "disk"),
}


def check(given: dict[str, Any]) -> None:
    least = {"n_local": 1, "n_mem": 0, "n_init": 0, "chunk": 1, "tau": 0, "min_block": 1, "max_block": 1,
             "repr_topk": 1, "max_cached": 0, "refine_from_layer": -1}  # fmt: skip
    for name, low in least.items():
        value = given[name]
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
            raise BadInput(f"{name}={value!r} must be a whole number >= {low}")
    for name, choices in CHOICES.items():
        if given[name] not in choices:
            raise BadInput(f"{name}={given[name]!r} is not one of {', '.join(choices)}")
    for name, top in (("gamma", math.inf), ("contiguity", 1.0)):
        value = given[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise BadInput(f"{name}={value!r} must be a finite number")
        if not (-math.inf if name == "gamma" else 0.0) <= value <= top:
            raise BadInput(f"{name}={value!r} must be in [0, {top}]")
    _check_sizes(given)


def _check_sizes(given: dict[str, Any]) -> None:
    if given["min_block"] > given["max_block"]:
        raise BadInput(f"min_block={given['min_block']} is larger than max_block={given['max_block']}")
    if given["chunk"] > given["n_local"]:
        raise BadInput(f"chunk={given['chunk']} must not be larger than n_local={given['n_local']}")
    if given["official_offset"] and given["threshold"] != "chunk":
        raise BadInput("official_offset=True belongs to threshold='chunk'; the sliding threshold has no offset")
