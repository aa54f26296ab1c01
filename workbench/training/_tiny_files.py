"""Safetensors files of tiny trainings: the checkpoint of a run, and the bundle of a study's models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from workbench.errors import BundleError, ModelError
from workbench.storage import write_bytes

#: Parts of a run that may differ when it goes on elsewhere: they change no number.
_MAY_DIFFER = ("code",)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Path:
    """One safetensors file with ``about`` as JSON in its header, atomically."""
    from safetensors.torch import save

    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return write_bytes(path, save(held, {"about": json.dumps(about, sort_keys=True)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, about) of such a file; BundleError for one that is damaged or another's."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118 - not a dict
    except FileNotFoundError as error:
        raise BundleError(f"there is no file {path}") from error
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise BundleError(f"{path} is damaged or was not written by this workbench: {error}; make it anew") from error


def read_run(
    path: Path, identity: Mapping[str, Any], at_step: Callable[[int], Mapping[str, Any]]
) -> tuple[dict[str, Tensor], int] | None:
    """Tensors and step of a run's checkpoint; None where there is none, ModelError for another run's.

    ``at_step`` gives the part of the identity that depends on the step.
    """
    if not path.exists():
        return None
    tensors, about = read_tensors(path)
    wanted = {key: value for key, value in json.loads(json.dumps(identity)).items() if key not in _MAY_DIFFER}
    different = [key for key, value in wanted.items() if about.get(key) != value]
    if not different:
        different = [key for key, value in at_step(int(about["step"])).items() if about.get(key) != value]
    if different:
        raise ModelError(
            f"{path} belongs to another run ({', '.join(different)} differ): choose another checkpoint, or delete it"
        )
    return tensors, int(about["step"])


def architecture(model: nn.Module) -> str:
    """Hash of what a model is, whatever its weights: two that share all shapes may still differ in a window."""
    config: Any = getattr(model, "config", None)
    told = config.to_dict() if hasattr(config, "to_dict") else {}
    told.pop("transformers_version", None)
    text = f"{model!r} {sorted((name, str(value)) for name, value in told.items())}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
