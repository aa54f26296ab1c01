"""One small file that holds a workbench's state: JSON for everything that can be read, safetensors for the numbers.

The file is a zip with ``state.json`` (version, state) and, if there are tensors, ``tensors.safetensors``.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.errors import BadInput, BundleError
from workbench.storage import write_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from workbench.models.loaded import LoadedModel

#: Raised when the layout changes in a way that older code cannot read.
VERSION = 1

_STATE, _TENSORS = "state.json", "tensors.safetensors"


def save_bundle(path: str | Path, state: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Path:
    """Write state and tensors to one file, atomically; an older file stands until the new one is whole.

    Raises:
        BadInput: a value that JSON cannot hold (its key is named). StorageError: disk full, folder not writable.
    """
    text = _encode(state)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(_STATE, text)
        if tensors:
            archive.writestr(_TENSORS, _tensor_bytes(tensors), zipfile.ZIP_STORED)
    return write_bytes(path, packed.getvalue())


def _encode(state: Mapping[str, Any]) -> str:
    for key, value in state.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise BadInput(
                f"state[{key!r}] cannot be saved as JSON: {error}; give it as a tensor or as plain values"
            ) from None
    return json.dumps({"bundle_version": VERSION, "state": dict(state)}, ensure_ascii=False, indent=1)


def _tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def load_bundle(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(state, tensors) of a bundle.

    Raises:
        BundleError: no such file, not a bundle, another version, a missing or damaged part.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
    except FileNotFoundError as error:
        raise BundleError(f"there is no bundle {path}") from error
    except (OSError, zipfile.BadZipFile, EOFError, ValueError) as error:
        raise BundleError(f"{path} is not a whole workbench bundle: {error}; save it again") from error
    return _state(path, parts), _tensors(path, parts)


def _state(path: Path, parts: dict[str, bytes]) -> dict[str, Any]:
    if _STATE not in parts:
        raise BundleError(
            f"{path} is not a workbench bundle: it has no {_STATE} (found: {', '.join(parts) or 'nothing'})"
        )
    try:
        whole = json.loads(parts[_STATE])
        version, state = whole["bundle_version"], whole["state"]
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{_STATE} in {path} is damaged: {error!r}") from error
    if version != VERSION:
        raise BundleError(
            f"{path} was written as bundle version {version}; this workbench reads version {VERSION}: open it with the "
            "workbench that wrote it"
        )
    return state


def _tensors(path: Path, parts: dict[str, bytes]) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    if _TENSORS not in parts:
        return {}
    try:
        return load(parts[_TENSORS])
    except (SafetensorError, ValueError, KeyError) as error:
        raise BundleError(f"{_TENSORS} in {path} is damaged: {error}") from error


# -- the part of a state that a model can say of itself ---------------------------------------------------------------


def model_state(loaded: LoadedModel) -> dict[str, Any]:
    """Name, dtype, kernel and memory with its hyper-parameters, as plain values.

    Of a memory of items its file is named; what one without a file holds is not in the state, nor are edits: give
    ``save_bundle`` what their ``pack()`` returns.
    """
    from workbench.models.through_store import plain_settings

    memory = loaded.memory
    settings: dict[str, Any] = {} if memory is None else plain_settings(memory)
    return {
        "model": loaded.name,
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "attention": loaded.attention,
        "memory": "none" if memory is None else getattr(memory, "slug", type(memory).__name__),
        "memory_settings": settings,
    }


def put_state(loaded: LoadedModel, state: Mapping[str, Any]) -> None:
    """Put the kernel and the memory of a saved state into a model, at once.

    Raises:
        BundleError: the state is of another model or has no such part.
    """
    from workbench.memory.base import MEMORIES
    from workbench.models.through_store import open_memory

    try:
        name, slug = state["model"], state["memory"]
        attention, settings = state["attention"], state.get("memory_settings", {})
    except KeyError as error:
        raise BundleError(f"the state has no {error}; it was not written by model_state") from error
    if name != loaded.name:
        raise BundleError(f"the state belongs to the model {name!r}, this one is {loaded.name!r}; load {name!r} first")
    loaded.use(attention=attention, memory=None if slug == "none" else open_memory(MEMORIES.get(slug), settings))
