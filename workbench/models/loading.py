"""``load``: the embedded models, a local folder or a hub id, as one ``LoadedModel``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from workbench import checks
from workbench.errors import BadInput, ModelError
from workbench.models import hub, weights
from workbench.models.loaded import LoadedModel
from workbench.models.mixer import MixerConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    attention: str | None = None,
) -> LoadedModel:
    """Load a model with its tokenizer, ready to swap and to trace.

    Args:
        name: "embedded", "embedded-relu", a folder that ``save_pretrained`` wrote, or a hub id ("org/name").
        device: "cpu" (default), "cuda", "cuda:1", ...
        dtype: float32 by default on CPU and bfloat16 on CUDA; a torch dtype or its name.
        revision: a commit (best: it pins the weights), branch or tag of a hub repository.
        attention: the kernel to start with; default "sdpa" where the model can take it, else "flash-attention".

    Raises:
        ModelError: no such model (the nearest names are suggested), no model in the folder, pickled weights only, a
            truncated or missing weight file, weights that are not finite (located), an encoder-decoder.
        KernelUnsupported: ``attention`` cannot do what the model needs.

    Only safetensors are read and no code of a repository is ever run.
    """
    name = str(name)
    where, number = device_of(device), _dtype(dtype, device)
    folder = hub.locate(name, revision)
    weights.check_folder(folder, name)
    config = _config(folder, name)
    model = _model(folder, config, name, number).to(where).eval()
    weights.check_finite(model, name)
    loaded = LoadedModel(name, model, _tokenizer(folder, name), folder=folder)
    loaded.start_with(attention)
    return loaded


def device_of(device: str | torch.device | None) -> torch.device:
    with contextlib.suppress(RuntimeError, TypeError):  # what torch does not know is named by the check
        where = torch.device(device or "cpu")
        if where.type != "cuda":  # torch's other devices (mps, xpu) are taken at their word
            return where
    return torch.device(checks.device(device))


def _dtype(dtype: str | torch.dtype | None, device: Any) -> torch.dtype:
    if dtype is None:
        return torch.bfloat16 if device_of(device).type == "cuda" else torch.float32
    if isinstance(dtype, torch.dtype) and dtype in DTYPES.values():
        return dtype
    if isinstance(dtype, str) and dtype.removeprefix("torch.") in DTYPES:
        return DTYPES[dtype.removeprefix("torch.")]
    raise BadInput(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")


def _config(folder: Path, name: str) -> Any:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, KeyError, OSError, TypeError) as error:
        raise ModelError(f"the config.json of {name} cannot be used: {_first_line(error)}") from error
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{name} is an encoder-decoder ({config.model_type}); decoders and encoders can be loaded")
    return config


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _auto_class(config: Any) -> Any:
    """The auto class that fits the architecture which the checkpoint says it is."""
    architecture = (config.architectures or [""])[0]
    kind = config.model_type
    if isinstance(config, MixerConfig):
        return AutoModelForCausalLM
    if architecture in _names(MODEL_FOR_MASKED_LM_MAPPING_NAMES.get(kind)):
        return AutoModelForMaskedLM
    if architecture in _names(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)):
        return AutoModelForCausalLM
    return AutoModel


def _names(entry: str | tuple | None) -> tuple:
    return entry if isinstance(entry, tuple) else (entry,)


def _model(folder: Path, config: Any, name: str, dtype: torch.dtype) -> Any:
    try:
        with _quiet():
            model, info = _auto_class(config).from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"{name} cannot be loaded: {_first_line(error)} (architecture: {config.architectures})"
        ) from error
    weights.check_complete(info, name)
    return model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers prints a table of keys and a bar per shard; what matters is raised by ``check_complete``."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _tokenizer(folder: Path, name: str) -> Any:
    """The tokenizer beside the weights, or None where the folder has none (ids can still be given)."""
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        return None
    try:
        with _quiet():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise ModelError(f"the tokenizer of {name} cannot be read: {_first_line(error)}; check {folder}") from error
