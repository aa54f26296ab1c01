"""Checks of a checkpoint folder before and after loading: safetensors only, whole, finite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workbench.errors import ModelError

#: Weight files that carry pickled code; they are never opened.
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")

CONVERT = (
    "convert it once, where you trust it: model = AutoModelForCausalLM.from_pretrained(FOLDER, use_safetensors=False); "
    "model.save_pretrained(NEW_FOLDER) (or open a pull request with the hub's 'convert to safetensors' space)"
)


def check_folder(folder: Path, name: str) -> list[Path]:
    """The safetensors files of a model folder, each opened far enough to know that it is whole.

    Raises:
        ModelError: no config.json, only pickled weights, no weights, a missing shard, a truncated or corrupt file.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} is not a model: there is no config.json in it (found: {_listing(folder)}); give the folder that "
            "save_pretrained wrote, a hub id such as 'org/name', or 'embedded'"
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(_no_safetensors(folder, name))
    for file in [*_missing_shards(folder), *files]:
        check_file(file)
    return files


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") or "nothing"


def _no_safetensors(folder: Path, name: str) -> str:
    pickled = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickled:
        return pickled_only(name, pickled)
    return f"{folder} has a config.json but no weights: no *.safetensors file in it (found: {_listing(folder)})"


def pickled_only(name: str, files: list[str]) -> str:
    """Why a checkpoint without safetensors is refused, and what to do."""
    return (
        f"{name} has pickled weights only ({', '.join(files[:3])}), and opening a pickle can run any code; only "
        f"safetensors is read here. To use it, {CONVERT}"
    )


def _missing_shards(folder: Path) -> list[Path]:
    """Shards that an index names and the folder lacks."""
    lost: list[Path] = []
    for index in sorted(folder.glob("*.safetensors.index.json")):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"{index} is damaged ({error}); fetch it again") from error
        lost += [folder / shard for shard in sorted(shards) if not (folder / shard).is_file()]
    return lost


def check_file(file: Path) -> None:
    """Raise ModelError unless ``file`` exists and its length agrees with its header."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise ModelError(f"the weights are incomplete: {file} is named in the index and is not there; fetch it again")
    try:
        with safe_open(file, framework="pt") as opened:
            opened.keys()
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file} ({file.stat().st_size:,} bytes) is truncated or corrupt: {error}; fetch or save it again"
        ) from error


def check_finite(model: nn.Module, name: str) -> None:
    """Raise ModelError that locates NaN or infinite weights: parameter, how many, the first index."""
    bad = [line for key, value in model.named_parameters() if (line := _bad_values(key, value))]
    if bad:
        more = f" and {len(bad) - 5} more parameters" if len(bad) > 5 else ""
        raise ModelError(
            f"{name} has weights that are not finite: {'; '.join(bad[:5])}{more}; the checkpoint is broken"
        )


def _bad_values(key: str, value: torch.Tensor) -> str:
    if not value.is_floating_point() or value.numel() == 0 or bool(torch.isfinite(value.detach().sum())):
        return ""  # a sum is finite only if every term is; the slow look happens only when it is not
    wrong = ~torch.isfinite(value.detach())
    count = int(wrong.sum())
    if not count:
        return ""
    first = tuple(wrong.nonzero()[0].tolist())
    return f"{key} {tuple(value.shape)}: {count} of {value.numel()} values, first at {list(first)}"


def check_complete(info: dict[str, Any], name: str) -> None:
    """Raise ModelError if the checkpoint left parameters without weights (they would be random)."""
    missing = sorted(key for key in info["missing_keys"] if ".pooler." not in f".{key}")
    mismatched = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info.get("mismatched_keys", ()))
    lost = missing or mismatched
    if lost:
        word = "no weights for" if missing else "weights of another shape for"
        raise ModelError(
            f"{name} holds {word} {len(lost)} parameters ({', '.join(lost[:4])}{', ...' if len(lost) > 4 else ''}), "
            "so they would be random; the checkpoint does not fit its config.json"
        )
