"""The families of ``model_families``, saved by transformers and loaded through the workbench."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from model_families import FAMILIES, make_model, make_tokenizer

from workbench.models import LoadedModel, load


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a family to the folder that holds its saved model and tokenizer."""
    made: dict[str, Path] = {}
    tokenizer = make_tokenizer()

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            make_model(family).save_pretrained(made[family])
            tokenizer.save_pretrained(made[family])
        return made[family]

    return folder


@pytest.fixture(scope="session")
def loaded(family_folder: Callable[[str], Path]) -> Callable[[str], LoadedModel]:
    """A function from a family to its loaded model (one object for the session; tests must restore what they swap)."""
    made: dict[str, LoadedModel] = {}

    def get(family: str) -> LoadedModel:
        if family not in made:
            made[family] = load(family_folder(family))
        return made[family]

    return get


@pytest.fixture(scope="session")
def eager(family_folder: Callable[[str], Path]) -> Callable[[str], Any]:
    """A function from a family to the same weights as transformers loads them, eager attention, no workbench."""
    made: dict[str, Any] = {}

    def get(family: str) -> Any:
        if family not in made:
            kind = getattr(transformers, FAMILIES[family][2])
            made[family] = kind.from_pretrained(family_folder(family), attn_implementation="eager").eval()
        return made[family]

    return get


@pytest.fixture
def llama(loaded: Callable[[str], LoadedModel]) -> LoadedModel:
    return loaded("llama")
