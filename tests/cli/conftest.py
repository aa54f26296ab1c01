from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import study_kit
from typer.testing import CliRunner

from workbench.cli import app
from workbench.studies import STUDIES


@pytest.fixture
def cli() -> Callable[..., Any]:
    """``cli("papers", "--json")`` in this process; the result has exit_code, stdout, stderr."""

    def invoke(*arguments: str, **options: Any) -> Any:
        return CliRunner().invoke(app, list(arguments), prog_name="workbench", **options)

    return invoke


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study_kit.install(tmp_path_factory.mktemp("site"))


@pytest.fixture
def drift(tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The study 'drift' is installed; cache, record and log are this test's own."""
    monkeypatch.syspath_prepend(str(installed))
    for name, place in study_kit.environment(installed, tmp_path).items():
        if name.startswith(("WORKBENCH_", "DRIFT_")):
            monkeypatch.setenv(name, place)
    yield tmp_path
    STUDIES._known.pop("drift", None)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a word tokenizer and 48 positions, saved as a folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["the", "key", "of", "ada", "is", "under", "mat", "a", "cat", "sat", "on", "it", "and", "slept"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(["<unk>", *words])}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    config = LlamaConfig(
        **{"vocab_size": 16, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 48},
        **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": None},
    )
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    return folder
