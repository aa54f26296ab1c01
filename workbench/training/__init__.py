"""Recipes that train the workbench's own small models: data stream, resumable loop, export.

``train_embedded`` is the door; heavy imports happen inside it.
"""

from __future__ import annotations

from typing import Any

__all__ = ["train_embedded"]


def __getattr__(name: str) -> Any:
    if name == "train_embedded":
        from workbench.training.embedded import train_embedded

        return train_embedded
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
