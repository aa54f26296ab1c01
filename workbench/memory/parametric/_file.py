"""A file of edits: safetensors whose sparse tensors are packed as one bit an entry and the values that are not zero."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import BundleError
from workbench.storage import write_bytes

_HEAD, _VERSION = "memory_workbench", 1
#: Share of entries that are not zero below which a tensor is packed.
_SPARSE = 0.9


def fingerprint(weight: Tensor) -> str:
    """Shape and a short hash of a matrix: edits fit the model whose matrix gives the same."""
    data = weight.detach().float().contiguous().cpu().numpy().tobytes()
    return f"{'x'.join(map(str, weight.shape))}-{hashlib.sha256(data).hexdigest()[:16]}"


def pack(tensors: Mapping[str, Tensor], head: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """Tensors, sparse ones packed, and the head as JSON: what a file of edits or a larger bundle holds of them."""
    packed: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        dense = value != 0
        if value.dtype == torch.float32 and float(dense.float().mean()) < _SPARSE:
            shapes[name] = list(value.shape)
            packed[f"{name}.bits"] = torch.from_numpy(np.packbits(dense.numpy().ravel()))
            packed[f"{name}.values"] = value[dense]
        else:
            packed[name] = value
    return packed, json.dumps({"version": _VERSION, "sparse": shapes, **head})


def unpack(packed: Mapping[str, Tensor], text: str, source: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What was given to ``pack``; ``source`` names it in messages. BundleError for anything else."""
    try:
        head = json.loads(text)
        version = head.pop("version")
        if version != _VERSION:
            raise BundleError(f"{source} has version {version}; this package reads version {_VERSION}")
        return _unpacked(dict(packed), head.pop("sparse")), head
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise BundleError(f"the edits in {source} are damaged: {error!r}; save them again") from error


def write(path: str | Path, tensors: Mapping[str, Tensor], head: Mapping[str, Any]) -> Path:
    """Write tensors and a JSON head atomically."""
    from safetensors.torch import save

    packed, text = pack(tensors, head)
    return write_bytes(path, save(packed, metadata={_HEAD: text}))


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and head of a file of edits; BundleError for anything else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            told = (file.metadata() or {}).get(_HEAD)
            if told is None:
                raise BundleError(f"{path} is a safetensors file without edits; give one that save() wrote")
            packed = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be opened as a file of edits: {error}") from error
    return unpack(packed, told, str(path))


def check_like(tensors: Mapping[str, Tensor], empty: Mapping[str, Tensor], source: str) -> None:
    """Raise BundleError unless the tensors could be a state of the memory whose empty state is ``empty``: its shapes
    (a first size of 0 there may be any here, the same in all), numbers throughout."""
    absent = [name for name in empty if name not in tensors]
    if absent:
        raise BundleError(f"the edits in {source} are damaged: {absent[0]} is missing; save them again")
    name, first = next(iter(empty.items()))
    rows = len(first) or len(tensors[name])
    for name, value in tensors.items():
        wanted = (rows, *empty.get(name, first).shape[1:])
        if tuple(value.shape) != wanted or value.dtype not in (torch.float32, torch.float64):
            raise BundleError(
                f"the edits in {source} are damaged: {name} is {value.dtype} {tuple(value.shape)}, and the matrix that "
                f"they were written into needs {wanted} in float32; save them again"
            )
        if bool(value.isnan().any()):
            raise BundleError(f"the edits in {source} are damaged: {name} has entries that are no numbers")


def _unpacked(packed: dict[str, Tensor], shapes: Mapping[str, list[int]]) -> dict[str, Tensor]:
    for name, shape in shapes.items():
        bits, values = packed.pop(f"{name}.bits"), packed.pop(f"{name}.values")
        count = int(np.prod(shape))
        dense = torch.from_numpy(np.unpackbits(bits.numpy(), count=count).astype(bool))
        made = torch.zeros(count)
        made[dense] = values
        packed[name] = made.view(shape)
    return packed
