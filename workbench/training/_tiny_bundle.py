"""A study's trained models in one safetensors file: ``variant/parameter`` tensors, how they were made in the header."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workbench.errors import BadInput, BundleError, UnknownName, WorkbenchError
from workbench.training._tiny_files import read_tensors, write_tensors

if TYPE_CHECKING:
    from workbench.training.tiny import Recipe

VERSION = 1
MOST_BYTES = 4 << 20
STORED = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


def bundle_path(slug: str) -> Path:
    """Where a study's models are: those of a run of your own (``WORKBENCH_RECORDED``) before the shipped ones."""
    from workbench_datasets.files import files_root

    own = bundle_target(slug)
    return own if own.is_file() else files_root() / "models" / "layers" / own.name


def bundle_target(slug: str) -> Path:
    """Where a full run writes them: ``models/layers`` beside the folder of recorded runs."""
    from workbench_datasets import recorded
    from workbench_datasets.papers import check_slug

    return recorded.folder().parent / "models" / "layers" / f"{check_slug(slug)}.safetensors"


def shipped(slug: str, names: Iterable[str]) -> dict[str, Any]:
    """The models of these variants in a study's file; empty when there is no file."""
    path, wanted = bundle_path(slug), set(names)
    return {name: model for name, model in load_bundle(path).items() if name in wanted} if path.is_file() else {}


def ship(slug: str, models: Mapping[str, nn.Module], recipe: Recipe | Mapping[str, Any]) -> Path:
    """Write a study's models beside the recorded runs; one that diverged (beyond what float16 holds) is left out.

    Where all did, nothing is written: the run goes on to its other variants.
    """
    whole = {name: m for name, m in models.items() if all(bool(torch.isfinite(p.half()).all()) for p in m.parameters())}
    return save_bundle(bundle_target(slug), whole, recipe) if whole else bundle_target(slug)


def save_bundle(
    path: str | Path,
    models: Mapping[str, nn.Module],
    recipe: Recipe | Mapping[str, Any],
    *,
    dtype: str = "float16",
    most_bytes: int = MOST_BYTES,
) -> Path:
    """Write models (each with a transformers ``config``) to one file, atomically.

    Args:
        recipe: how they were made: a ``Recipe``, or plain values such as ``Trained.record``.
        dtype: of the stored floats; "float16" halves the file and rounds weights to three digits.
        most_bytes: refuse to write a larger file.

    Raises:
        BadInput: no models, one without a config, weights that are not finite in ``dtype``, a file that is too large.
    """
    from workbench.provenance import code_version, now

    if not models:
        raise BadInput("models is empty: give at least one {variant: model}")
    if dtype not in STORED:
        raise BadInput(f"dtype={dtype!r}: expected one of {', '.join(STORED)}")
    tensors = {f"{variant}/{name}": _stored(f"{variant}/{name}", value, STORED[dtype])
               for variant, model in models.items() for name, value in _weights(model).items()}  # fmt: skip
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    if size > most_bytes:
        raise BadInput(
            f"{len(models)} models hold {size:,} bytes as {dtype}: at most {most_bytes:,} are shipped; leave variants "
            "or seeds out"
        )
    about = {
        "version": VERSION,
        "models": {variant: _config(variant, model) for variant, model in models.items()},
        "recipe": dict(recipe) if isinstance(recipe, Mapping) else asdict(recipe),
        "stored": dtype,
        "code": code_version(),
        "date": now(),
    }
    return write_tensors(Path(path), tensors, about)


def load_bundle(path: str | Path, variants: Iterable[str] | None = None) -> dict[str, Any]:
    """The models of a bundle by variant, in eval mode, in float32 on the CPU.

    Raises:
        BundleError: no such file, a damaged one, one of another version, or weights that do not fit their config.
        UnknownName: a variant that is not in it.
    """
    tensors, about = _read(Path(path))
    wanted = list(about["models"]) if variants is None else list(variants)
    for variant in wanted:
        if variant not in about["models"]:
            raise UnknownName("variant", variant, about["models"])
    return {variant: _model(Path(path), variant, about["models"][variant], tensors) for variant in wanted}


def bundle_record(path: str | Path) -> dict[str, Any]:
    """What a bundle says of itself: version, models (configs by variant), recipe, stored, code, date."""
    return _read(Path(path))[1]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, about = read_tensors(path)
    if about.get("version") != VERSION or not isinstance(about.get("models"), dict):
        raise BundleError(
            f"{path} is no bundle of version {VERSION} (it says {about.get('version')!r}): open it with the workbench "
            "that wrote it, or run the study at full scale again"
        )
    return tensors, about


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, a tied one once, and the buffers that are saved."""
    saved = model.state_dict(keep_vars=True)
    buffers = {name: value for name, value in model.named_buffers() if name in saved}
    return {**dict(model.named_parameters()), **buffers}


def _stored(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    held = value.detach().cpu()
    held = held.to(dtype) if held.is_floating_point() else held
    if held.is_floating_point() and not bool(torch.isfinite(held).all()):
        raise BadInput(f"{name} has values that are not finite as {dtype}: do not ship a model that diverged")
    return held.clone()


def _config(variant: str, model: Any) -> dict[str, Any]:
    import json

    if not hasattr(getattr(model, "config", None), "to_dict"):
        raise BadInput(f"the model {variant!r} ({type(model).__name__}) has no transformers config: give a MixerLM")
    config = {**model.config.to_dict(), "model_type": model.config.model_type, "dtype": "float32"}
    return json.loads(json.dumps(config, default=str))


def _model(path: Path, variant: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    try:
        model = _built(config)
    except (WorkbenchError, ValueError, TypeError, KeyError) as error:
        raise BundleError(f"{path}: the config of {variant!r} cannot be built here: {error}") from error
    own = _weights(model)
    mine = {name: value for name, value in tensors.items() if name.rpartition("/")[0] == variant}
    given = {name.rpartition("/")[2]: value for name, value in mine.items()}
    different = sorted(own.keys() ^ given.keys()) or [n for n in own if own[n].shape != given[n].shape]
    if different:
        raise BundleError(f"{path}: weights of {variant!r} do not fit its config ({', '.join(different[:3])})")
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(given[name])
    return model.eval()


def _built(config: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    import workbench.models.mixer  # noqa: F401 - makes its kind known to transformers

    settings = dict(config)
    kind = settings.pop("model_type")
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn and overwritten
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings), dtype=torch.float32)
