"""What EM-LLM's hyper-parameters may be; every refusal names the parameter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.checks import number, whole
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
             "repr_topk": 1, "max_cached": 0, "refine_from_layer": -1, "seed": 0}  # fmt: skip
    for name, low in least.items():
        whole(name, given[name], low)
    for name, choices in CHOICES.items():
        if given[name] not in choices:
            raise BadInput(f"{name}={given[name]!r} is not one of {', '.join(choices)}")
    number("gamma", given["gamma"])
    number("contiguity", given["contiguity"], 0, 1)
    if not isinstance(given["official_offset"], bool):
        raise BadInput(f"official_offset={given['official_offset']!r} must be True or False")
    if not isinstance(given["folder"], str | Path):
        raise BadInput(f"folder={given['folder']!r} must be a path")
    _check_sizes(given)


def _check_sizes(given: dict[str, Any]) -> None:
    if given["min_block"] > given["max_block"]:
        raise BadInput(f"min_block={given['min_block']} is larger than max_block={given['max_block']}")
    if given["chunk"] > given["n_local"]:
        raise BadInput(f"chunk={given['chunk']} must not be larger than n_local={given['n_local']}")
    if given["tau"] == 1:
        raise BadInput("tau=1: one surprise has no deviation, so nothing would be a boundary; give 0 or at least 2")
    if given["official_offset"] and given["threshold"] != "chunk":
        raise BadInput("official_offset=True belongs to threshold='chunk'; the sliding threshold has no offset")
