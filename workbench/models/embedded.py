"""The models that ship with the workbench."""

from __future__ import annotations

from pathlib import Path

from workbench.errors import ModelError, UnknownName

NAMES = ("embedded", "embedded-relu")
#: Small attention-only models of one task (``workbench train lists``); they know no language.
LISTS = ("list-item", "list-colour")


def path(name: str) -> Path:
    """The folder of a shipped model, loadable by ``transformers.AutoModelForCausalLM.from_pretrained``.

    Raises:
        UnknownName: no such model ships.
        ModelError: the folder or its weights are absent from this installation.
    """
    from workbench_datasets.files import files_root

    if name not in (*NAMES, *LISTS):
        raise UnknownName("shipped model", name, (*NAMES, *LISTS))
    folder = files_root() / "models" / name
    if not (folder / "model.safetensors").is_file():
        raise ModelError(f"{folder} holds no model.safetensors: reinstall the package or see `workbench train --help`")
    return folder
