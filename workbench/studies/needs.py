"""What a scale needs of the machine, checked before any work."""

from __future__ import annotations

import os

from workbench.errors import BadInput
from workbench.studies.base import NeedsUnmet, Scale, Study


def check(study: Study, scale: Scale) -> None:
    """Raise ``NeedsUnmet`` for the first need of ``scale`` that this machine does not meet."""
    for need in scale.needs:
        kind, _, detail = need.partition(":")
        if kind not in _CHECKS:
            raise BadInput(f"{study.slug} {scale.name} needs {need!r}; known needs: cuda, hub, hub:org/name, data:NAME")
        lacking = _CHECKS[kind](detail)
        if lacking:
            others = [name for name, other in study.scales.items() if need not in other.needs]
            instead = f" Scale {' or '.join(others)} runs without." if others else ""
            raise NeedsUnmet(f"{study.slug} at scale {scale.name} needs {need}: {lacking}.{instead}")


def _cuda(_: str) -> str | None:
    import torch

    return None if torch.cuda.is_available() else f"torch {torch.__version__} sees no NVIDIA GPU here"


def _hub(model: str) -> str | None:
    from huggingface_hub import constants, try_to_load_from_cache

    if model and isinstance(try_to_load_from_cache(model, "config.json"), str):
        return None
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE") == "1":
        return "the Hugging Face hub is switched off (HF_HUB_OFFLINE=1)" + _not_cached(model)
    return None if _reachable(constants.ENDPOINT) else f"{constants.ENDPOINT} does not answer" + _not_cached(model)


def _not_cached(model: str) -> str:
    return f" and {model} is not in the local cache" if model else ""


def _reachable(endpoint: str) -> bool:
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(endpoint, method="HEAD"), timeout=5):
            return True
    except HTTPError:
        return True
    except OSError:
        return False


def _data(name: str) -> str | None:
    from workbench_datasets import registry

    absent = [file for file, place in registry.where(name).items() if place is None]
    if not absent:
        return None
    listed = ", ".join(absent[:3]) + (f" and {len(absent) - 3} more" if len(absent) > 3 else "")
    return (
        f"{listed} not found; `workbench data fetch {name}` downloads, `workbench data where {name}` says where they go"
    )


_CHECKS = {"cuda": _cuda, "hub": _hub, "data": _data}
